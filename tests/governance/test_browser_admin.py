"""The admin in a real browser: sign in, search, read a record, grant and revoke, without one violation of the
Content-Security-Policy. With MUNIMENT_SHOTS=<folder> it also leaves a picture of each page there."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.servers.basehttp import ThreadedWSGIServer
from django.core.wsgi import get_wsgi_application
from django.db import connections
from django.test.testcases import QuietWSGIRequestHandler

from audit.models import Record
from clients.models import Client, Grant, OAuthClientId
from tests.world import World, build, token

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# Once the new size has been drawn.
WIDTH = """new Promise(done => requestAnimationFrame(() => requestAnimationFrame(
    () => done(document.documentElement.scrollWidth))))"""
TOO_WIDE = """[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth)
    .map(e => e.outerHTML.slice(0, 100))"""
PASSWORD = "correct horse battery"
LONG = "The assistant of the department for exceptionally long names of things, third edition, EMEA and beyond"
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
WATCH = """document.addEventListener('securitypolicyviolation',
    e => console.error('CSP ' + e.violatedDirective + ' ' + e.blockedURI + ' ' + e.sample))"""


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """A small world, an administrator, and a client whose name does not fit anywhere."""
    # Playwright's synchronous API runs an event loop in this thread, which Django takes for asynchronous code.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    made = build()
    get_user_model().objects.create_superuser("mara", "", PASSWORD, first_name="Mara")
    long = Client.objects.create(slug="long-name", name=LONG)
    OAuthClientId.objects.create(
        client=long, issuer_id=made.client.oauth_client_ids.get().issuer_id, oauth_id="x" * 120
    )
    return made


@pytest.fixture
def server(world: World) -> Iterator[str]:
    """The whole application on a port of loopback."""
    httpd = ThreadedWSGIServer(("127.0.0.1", 0), QuietWSGIRequestHandler)
    httpd.daemon_threads = False  # so that server_close waits for them, and they close their connections
    httpd.set_app(get_wsgi_application())
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join(timeout=10)


class Visitor:
    """A browser page that remembers every complaint, and takes pictures of what it sees."""

    def __init__(self, browser: Any, url: str) -> None:
        from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]

        self.axe = Axe()
        self.url = url
        self.complaints: list[str] = []
        self.shots = Path(os.environ["MUNIMENT_SHOTS"]) if os.environ.get("MUNIMENT_SHOTS") else None
        context = browser.new_context(viewport=WIDE, color_scheme="light", timezone_id="UTC")
        context.add_init_script(WATCH)
        self.page = context.new_page()
        self.page.set_default_timeout(15_000)
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
        """What axe finds serious on the page that is open; Django's own date and list widgets are Django's."""
        if any(path in self.page.url for path in ("/auth/", "/django_celery_beat/")):
            return []
        found = self.axe.run(self.page).response["violations"]
        grave = [v for v in found if v["impact"] in ("serious", "critical")]
        return [f"{self.page.url}: {v['id']} {[n['html'][:200] for n in v['nodes']]}" for v in grave]

    def shot(self, name: str) -> None:
        """Nothing is wider than the page, on a phone neither. With MUNIMENT_SHOTS: pictures, light and dark."""
        for width, size in (("1440", WIDE), ("390", NARROW)):
            self.page.set_viewport_size(size)
            wide = self.page.evaluate(WIDTH)
            assert wide <= size["width"], f"{name} at {width} is {wide} wide: {self.page.evaluate(TOO_WIDE)}"
            for scheme in ("dark", "light"):
                if self.shots is None:
                    break
                self.page.emulate_media(color_scheme=scheme)
                self.page.screenshot(path=str(self.shots / f"{name}-{width}-{scheme}.png"), full_page=True)
        self.page.set_viewport_size(WIDE)
        self.complaints += self.barriers()


@pytest.fixture
def visitor(server: str) -> Iterator[Visitor]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield Visitor(browser, server)
        browser.close()
        # To Django this event loop is a place of its own, with connections of its own.
        connections.close_all()


def calls(world: World) -> None:
    """A busy hour: allowed, denied, forged, unknown."""
    agents: list[dict[str, Any]] = [{}, {"mode": "background", "chain": ["planner", "reader"]}]
    for number in range(40):
        user = ("alice", "bob", "carol")[number % 3]
        answer = world.verify(token=token(sub=user), agent=agents[number % 2], request={"id": f"req-{number}"})
        if number % 2:
            path = f"/v1/records/{answer['record']}/outcome"
            world.post(path, {"status": "ok", "count": number % 5, "duration_ms": 12 + number})
    for user in ("alice", "bob"):
        world.verify(tool="memory.capture", token=token(sub=user))
        world.verify(tool="memory.forget", token=token(sub=user))
        world.verify(token=token(sub=user, scope="profile"))
    world.verify(token=token()[:-8] + "AAAAAAAA")
    world.verify(token=None)
    world.verify(token=token(client="claude-desktop-beta"))
    world.verify(token=token(sub="dana"))
    time.sleep(1.2)  # the drain of the outbox, and of the inbox's counts
    world.verify(token=token(client="claude-desktop-beta"))


def test_staff_see_records_grant_and_revoke(world: World, visitor: Visitor) -> None:
    visitor.sign_in()
    visitor.shot("home-empty")
    visitor.go("/admin/records/?window=1h&decision=allow")
    visitor.shot("records-empty")
    calls(world)
    page = visitor.page
    visitor.go("/admin/")
    visitor.shot("home")

    visitor.follow(page.get_by_role("link", name="Records", exact=True))
    visitor.shot("records")
    visitor.follow(page.get_by_role("link", name="Older →"))
    visitor.follow(page.get_by_role("link", name="← Newer"))
    assert page.get_by_role("link", name="← Newer").count() == 0
    page.get_by_label("Decision").select_option("deny")
    visitor.follow(page.get_by_role("button", name="Show"))
    assert "decision=deny" in page.url
    assert page.locator("tbody .pill").all_inner_texts() == ["Denied"] * Record.objects.filter(decision="deny").count()
    visitor.shot("records-denied")
    visitor.follow(page.get_by_role("link", name="Claude was refused memory.capture: not granted").first)
    visitor.shot("record-denied")
    assert page.locator(".steps .stopped").inner_text().endswith("No grant lets Claude use memory:write.")

    visitor.follow(page.get_by_role("link", name="Grant memory:write…"))
    assert page.get_by_label("memory:write").is_checked()
    visitor.shot("grant-form")
    page.get_by_label("Reason").fill("pilot with 40 users")
    visitor.follow(page.get_by_role("button", name="Grant"))
    assert page.get_by_role("heading", name="Claude may use memory:write for everyone").is_visible()
    visitor.shot("grant")
    assert world.verify(tool="memory.capture")["decision"] == "allow"

    visitor.follow(page.get_by_role("link", name="Revoke…"))
    visitor.shot("revoke")
    page.get_by_label("Reason").fill("the pilot is over")
    visitor.follow(page.get_by_role("button", name="Revoke"))
    assert page.get_by_text("The next call is decided without it.").is_visible()
    assert world.verify(tool="memory.capture")["reason"] == "not_granted"
    visitor.go("/admin/clients/grant/")
    visitor.shot("grants")
    assert Grant.objects.exclude(revoked_at=None).count() == 1

    allowed = Record.objects.filter(type="outcome").latest("at")
    visitor.go(f"/admin/records/{allowed.parent}/")
    visitor.shot("record-allowed")
    time.sleep(0.8)
    policy = Record.objects.filter(type="policy").latest("at")
    visitor.go(f"/admin/records/{policy.id}/")
    visitor.shot("record-policy")
    visitor.follow(page.get_by_role("button", name="Sign out"))
    visitor.shot("signed-out")
    assert visitor.complaints == []


def test_every_page_keeps_to_the_content_security_policy(world: World, visitor: Visitor) -> None:
    visitor.sign_in()
    calls(world)
    long = Client.objects.get(slug="long-name")
    user, recall = get_user_model().objects.get(), world.backend.tools.get(name="memory.recall")
    for name, path in {
        "client-long": f"/admin/clients/client/{long.pk}/change/", "clients": "/admin/clients/client/",
        "client-add": "/admin/clients/client/add/", "issuers": "/admin/clients/issuer/",
        "issuer-add": "/admin/clients/issuer/add/", "key-sets": "/admin/clients/keyset/",
        "backends": "/admin/tools/backend/", "backend": f"/admin/tools/backend/{world.backend.pk}/change/",
        "keys": "/admin/tools/backendkey/", "key-add": "/admin/tools/backendkey/add/", "tools": "/admin/tools/tool/",
        "tool": f"/admin/tools/tool/{recall.pk}/change/", "scopes": "/admin/tools/scope/",
        "users": "/admin/audit/subject/", "inbox": "/admin/audit/sighting/", "outbox": "/admin/audit/outbox/",
        "published": "/admin/audit/publishedkey/", "staff": "/admin/auth/user/",
        "staff-one": f"/admin/auth/user/{user.pk}/change/", "roles": "/admin/auth/group/add/",
        "schedules": "/admin/django_celery_beat/periodictask/", "password": "/admin/password_change/",
        "schedule-add": "/admin/django_celery_beat/periodictask/add/",
    }.items():  # fmt: skip
        visitor.go(path)
        visitor.shot(name)
    assert visitor.complaints == []
