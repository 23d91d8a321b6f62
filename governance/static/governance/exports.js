/* The progress of a run, looked at again every two seconds. Without script there is a button for it. */
(() => {
  "use strict";
  const EVERY = 2000;
  const MOST = 450; // looks: a page that was left open must not keep its session open for ever
  const section = document.querySelector("[data-progress]");
  if (!section) return;
  let looks = 0;

  const look = async () => {
    if (document.hidden) return setTimeout(look, EVERY);
    if (++looks > MOST) return;
    let answer;
    try {
      answer = await fetch(section.dataset.progress, { credentials: "same-origin", redirect: "error", cache: "no-store" });
    } catch {
      return setTimeout(look, EVERY * 5);
    }
    if (!answer.ok) return;
    // What the whole page says depends on the state: when it has become another, the page is loaded anew.
    if (answer.headers.get("X-Run-State") !== section.dataset.state) return location.reload();
    const found = new DOMParser().parseFromString(await answer.text(), "text/html");
    section.querySelector("[data-live]").replaceChildren(...found.body.childNodes);
    setTimeout(look, EVERY);
  };
  setTimeout(look, EVERY);
})();
