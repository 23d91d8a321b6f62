"""A real browser for tests of the admin: it remembers every complaint, and takes pictures. With MUNIMENT_SHOTS=<folder>
each page that it looks at leaves a picture there."""

import os
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--js-flags=--no-opt",  # a page is open too shortly to be optimised
]  # fmt: skip
# Once the new size has been drawn.
WIDTH = """new Promise(done => requestAnimationFrame(() => requestAnimationFrame(
    () => done(document.documentElement.scrollWidth))))"""
TOO_WIDE = """[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth)
    .map(e => e.outerHTML.slice(0, 100))"""
# Narrow, and with more lines than words: words that are broken for want of room.
SQUEEZED = """[...document.querySelectorAll('main *')].filter(e => {
    const text = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim()).join(' ').trim()
    if (text.length < 2 || !e.checkVisibility() || getComputedStyle(e).writingMode !== 'horizontal-tb') return false
    const box = e.getBoundingClientRect(), line = parseFloat(getComputedStyle(e).lineHeight)
    return box.width > 4 && box.width < 2 * line && Math.floor(box.height / line + 0.25) > text.split(/\\s+/).length
}).map(e => e.outerHTML.slice(0, 100))"""
# What axe finds grave, in short: all that it has to tell takes longer to bring here than to find.
GRAVE = """options => axe.run(document, options).then(found => found.violations
    .filter(one => ['serious', 'critical'].includes(one.impact))
    .map(one => `${one.id} ${one.nodes.map(node => node.html.slice(0, 200)).join(' ')}`))"""
# What axe judges an element by: how it and the one around it are styled, what it is, whether it has a name.
MARKUP = """[...new Set([...document.querySelectorAll('body *')].map(e => [
    ...[e.parentElement, e].map(one => `${one.tagName}.${one.className}`), e.type, e.role, e.alt,
    e.getAttributeNames().filter(name => name.startsWith('aria-')), e.labels && e.labels.length > 0,
    e.textContent.trim() !== ''].join(' ')))]"""
HIGHEST = 1800  # of a picture, in pixels
PASSWORD = "correct horse battery"
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
WATCH = """document.addEventListener('securitypolicyviolation',
    e => console.error('CSP ' + e.violatedDirective + ' ' + e.blockedURI + ' ' + e.sample))"""


def launched(playwright: Any) -> Any:
    """The browser, which may take its time to start on a machine that is busy."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS, timeout=120_000)


class Visitor:
    """A browser page that remembers every complaint, and takes pictures of what it sees."""

    judged: ClassVar[set[str]] = set()  # by axe, in this run

    def __init__(self, browser: Any, url: str) -> None:
        from axe_playwright_python.base import AXE_SCRIPT  # type: ignore[import-untyped]

        self.axe, self.url = AXE_SCRIPT, url
        self.complaints: list[str] = []
        self.shots = Path(os.environ["MUNIMENT_SHOTS"]) if os.environ.get("MUNIMENT_SHOTS") else None
        context = browser.new_context(viewport=WIDE, color_scheme="light", timezone_id="UTC")
        context.add_init_script(WATCH)
        self.page = context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("console", self._complain)
        self.page.on("pageerror", lambda error: self.complaints.append(f"{self.page.url}: {error}"))

    def _complain(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{self.page.url}: {message.text}")

    def go(self, path: str) -> None:
        """Open a path; anything but success is a failure of the test."""
        response = self.page.goto(self.url + path)
        assert response is not None and response.status == 200, (path, response and response.status)

    def follow(self, link: Any) -> None:
        """Click, and wait for the page that comes."""
        with self.page.expect_navigation():
            link.click()

    def sign_in(self) -> None:
        """As the administrator, by keyboard."""
        self.go("/admin/login/?next=/admin/")
        self.shot("login")
        self.page.get_by_label("Username").fill("mara")
        self.page.get_by_label("Password").fill(PASSWORD)
        with self.page.expect_navigation():
            self.page.keyboard.press("Enter")
        assert self.page.url == f"{self.url}/admin/"

    def barriers(self) -> list[str]:
        """What axe finds serious on the page that is open; it takes as long as all else, and is asked only where there
        is markup that it has not judged yet."""
        markup = set(self.page.evaluate(MARKUP))
        if markup <= self.judged:
            return []
        self.judged |= markup
        self.page.evaluate(self.axe)
        options = {"resultTypes": ["violations"], "preload": False}
        return [f"{self.page.url}: {words}" for words in self.page.evaluate(GRAVE, options)]

    def shot(self, name: str) -> None:
        """Nothing serious for axe; nothing is wider than the page, and no word is broken for want of room, on a phone
        neither. With MUNIMENT_SHOTS: pictures, light and dark."""
        for width, size in (("1440", WIDE), ("390", NARROW)):
            self.page.set_viewport_size(size)
            wide = self.page.evaluate(WIDTH)
            assert wide <= size["width"], f"{name} at {width} is {wide} wide: {self.page.evaluate(TOO_WIDE)}"
            squeezed = self.page.evaluate(SQUEEZED)
            assert not squeezed, f"{name} at {width}: {squeezed}"
            for scheme in ("dark", "light"):
                if self.shots is None:
                    break
                self.page.emulate_media(color_scheme=scheme)
                self._save(self.shots / f"{name}-{width}-{scheme}.png")
        self.page.set_viewport_size(WIDE)
        self.complaints += self.barriers()

    def picture(self, name: str) -> None:
        """As `shot`, but only where pictures are wanted: of a page that another test looks at already."""
        if self.shots is not None:
            self.shot(name)

    def _save(self, path: Path) -> None:
        """Few colours and the upper part are enough for a picture of a page, and a tenth of the bytes."""
        from PIL import Image

        picture = Image.open(BytesIO(self.page.screenshot(full_page=True))).convert("RGB")
        picture = picture.crop((0, 0, picture.width, min(picture.height, HIGHEST)))
        picture.quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)
