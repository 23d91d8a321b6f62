/* Buttons that copy an id. Without script, or where the browser has no clipboard for this page, they are not shown. */
(() => {
  "use strict";
  if (!navigator.clipboard) return;
  document.documentElement.classList.add("can-copy");
  const said = document.createElement("div");
  said.className = "unseen";
  said.setAttribute("role", "status");
  document.addEventListener("DOMContentLoaded", () => document.body.append(said));

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy-button");
    if (!button) return;
    let copied = true;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
    } catch {
      copied = false;
    }
    button.classList.toggle("copied", copied);
    button.classList.toggle("refused", !copied);
    // Emptied first, so that the second copy of the same thing is said too.
    said.textContent = "";
    setTimeout(() => { said.textContent = copied ? "Copied" : "The browser did not allow it to be copied"; }, 50);
    setTimeout(() => button.classList.remove("copied", "refused"), 2000);
  });
})();
