"""What the admin is for, from end to end: a real browser, a real web server, a real database, and a real identity
provider, through which six members of staff sign in. A denial becomes a grant, the next call is allowed; what is
sensitive takes two; what is unknown is decided; what happened is found, explained, proved and answered for."""

import base64
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
from django.db import connections
from oidc_provider_mock import User, run_server_in_thread

from audit import rollups
from audit.models import Checkpoint, Head, Record
from clients.models import AccessRequest
from governance import demo, demo_issuer
from governance.embedded_process import launch, stop_group
from governance.supervisor_plan import seal_command
from tests.browser import CHROMIUM, Visitor, launched
from tests.conftest import WEB_KEYS
from tests.live import ROOT, until, web
from tests.staff import drained, statement
from tests.world import World
from tools.models import Backend

pytestmark = [pytest.mark.browser, pytest.mark.timeout(420)]
STAFF = {
    "ada": ("Ada Auditor", "auditors"), "max": ("Max Manager", "access"), "eve": ("Eve Approver", "approvers"),
    "pia": ("Pia Privacy", "privacy"), "otto": ("Otto Operator", "platform"), "nobody": ("Nobody", "catering"),
}  # fmt: skip
FOREIGN = re.compile(r"^https?://(?!127\.0\.0\.1[:/]|localhost[:/])")
ROLES = "auditors=auditor,access=access-manager,approvers=approver,privacy=privacy-officer"


@pytest.fixture
def issuer(db: None) -> Iterator[str]:
    """A real OpenID provider on loopback, with the staff and their groups."""
    people = [
        User(sub=sub, claims={"name": name, "email": f"{sub}@example.org", "groups": [group]})
        for sub, (name, group) in STAFF.items()
    ]
    with run_server_in_thread(user_claims=people) as provider:
        yield f"http://localhost:{provider.server_port}"


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """The demo's two weeks of calls, counted."""
    # Playwright's synchronous API runs an event loop in this thread, which Django takes for asynchronous code.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    demo.key_file().unlink(missing_ok=True)
    demo.load()
    settle()
    backend = Backend.objects.get(slug="inner")
    client = demo.Grant.objects.filter(client__slug="claude").first()
    assert client is not None
    return World(demo.key_file().read_text().strip(), backend, client.client, client)  # type: ignore[arg-type]


@pytest.fixture
def url(world: World, issuer: str) -> Iterator[str]:
    """A real web server, whose staff come from that provider alone."""
    oidc = {
        "MUNIMENT_OIDC_ISSUER": issuer, "MUNIMENT_OIDC_NAME": "Example Inc.", "MUNIMENT_OIDC_CLIENT_ID": "muniment",
        "MUNIMENT_OIDC_CLIENT_SECRET": "a secret of the test", "MUNIMENT_OIDC_ROLES": ROLES,
        "MUNIMENT_OIDC_ADMIN_GROUP": "platform", "MUNIMENT_LOCAL_PASSWORDS": "0",
    }  # fmt: skip
    with web(workers=1, **oidc) as [server]:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture
def enter(url: str) -> Iterator[Callable[[str], Visitor]]:
    """Somebody's own browser, signed in at the provider."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        browser = launched(started)

        def sign_in(sub: str) -> Visitor:
            visitor = Visitor(browser, url)
            # The provider's own page would load a style sheet from elsewhere.
            visitor.page.route(FOREIGN, lambda route: route.abort())
            visitor.go("/admin/login/?next=/admin/")
            visitor.picture("sign-in")
            visitor.follow(visitor.page.get_by_role("link", name="Sign in with Example Inc."))
            with visitor.page.expect_navigation(url=f"{url}/**"):
                visitor.page.get_by_role("button", name=sub, exact=True).click()
            visitor.complaints.clear()  # of the provider's page
            return visitor

        yield sign_in
        browser.close()
        connections.close_all()


@pytest.fixture
def sealer(world: World, tmp_path: Path) -> Iterator[None]:
    """A real sealer, with its own key and none of the web process's."""
    foreign = {f"MUNIMENT_{name}" for name in WEB_KEYS}
    environment = {name: value for name, value in os.environ.items() if name not in foreign} | {
        "MUNIMENT_PROCESS": "seal", "MUNIMENT_LOG_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
        "MUNIMENT_SEAL_STATE": str(tmp_path / "seal"),
    }  # fmt: skip
    log = tmp_path / "seal.log"
    process = launch(seal_command(), log=log, account=None, death_signal=SIGKILL, environment=environment, cwd=ROOT)
    try:
        until(all_sealed, 60)
        yield
    finally:
        stop_group(process, 5)


def all_sealed() -> bool:
    """Whether a checkpoint covers every record."""
    newest = Checkpoint.objects.order_by("size").last()
    return newest is not None and newest.size == Head.objects.get().next


def settle() -> None:
    """Everything that happened is in the log, and counted."""
    drained(30)
    while rollups.count():
        pass


def call(world: World, tool: str, client: str = "claude", user: str = "alice", **more: Any) -> dict[str, Any]:
    """One call as the backend makes it."""
    scope = more.pop("scope", "memory:read memory:write")
    return world.verify(tool, token=demo_issuer.mint(user, client, scope), **more)


def test_a_denial_becomes_a_grant_by_two_and_ends_again(
    world: World, enter: Callable[[str], Visitor], sealer: None
) -> None:
    assert call(world, "memory.capture")["reason"] == "not_granted"
    settle()
    max_, eve = enter("max"), enter("eve")
    assert max_.page.url == f"{max_.url}/admin/", "home"
    max_.picture("home")
    page = max_.page
    row = page.get_by_role("row").filter(has_text="Claude wanted to use memory.capture")
    max_.follow(row.get_by_role("link", name="Grant…"))
    assert page.get_by_label("memory:write").is_checked()
    page.get_by_label("because").fill("pilot with 40 users")
    max_.picture("grant-form")
    max_.follow(page.get_by_role("button", name="See what would change"))
    assert page.get_by_text("would turn from refused to allowed").first.is_visible()
    max_.picture("grant-preview")
    assert page.get_by_role("button", name="Grant", exact=True).count() == 0, "it is sensitive: a second person decides"
    max_.follow(page.get_by_role("button", name="Ask for it"))
    [asked] = AccessRequest.objects.all()
    assert page.get_by_role("button", name="Approve").count() == 0, "nobody approves what they asked for"
    max_.picture("request-own")
    assert call(world, "memory.capture")["reason"] == "not_granted"

    eve.go("/admin/")
    eve.picture("home-approver")
    eve.follow(eve.page.get_by_role("link", name="Decide").first)
    assert eve.page.url == f"{eve.url}/admin/clients/accessrequest/{asked.pk}/change/"
    eve.picture("request")
    eve.page.get_by_label("Why").fill("fine for a pilot")
    eve.follow(eve.page.get_by_role("button", name="Approve"))
    assert call(world, "memory.capture")["decision"] == "allow", "the very next call"

    asked.refresh_from_db()
    assert asked.grant is not None
    settle()
    max_.go(f"/admin/clients/grant/{asked.grant.pk}/change/")
    assert page.get_by_text("Made by Eve Approver").is_visible()
    max_.picture("grant")
    max_.follow(page.get_by_role("link", name="Revoke…"))
    max_.picture("grant-revoke")
    page.get_by_label("Reason").fill("the pilot is over")
    max_.follow(page.get_by_role("button", name="Revoke"))
    assert call(world, "memory.capture")["reason"] == "not_granted", "the very next call"
    for name, path in {"grants": "/admin/clients/grant/", "requests": "/admin/clients/accessrequest/"}.items():
        max_.go(path)
        max_.picture(name)
    assert max_.complaints == [] and eve.complaints == []


def test_what_is_unknown_is_decided_and_what_is_stopped_is_refused(
    world: World, enter: Callable[[str], Visitor], sealer: None
) -> None:
    visitor = enter("max")
    page = visitor.page
    assert call(world, "memory.recall", "cursor-dev")["reason"] == "client_unknown"
    settle()
    visitor.go("/admin/inbox/")
    visitor.picture("inbox")
    visitor.follow(page.get_by_role("link", name="Attach to a client… cursor-dev"))
    page.get_by_label("Client", exact=True).select_option("Claude")
    page.get_by_label("Reason").fill("Claude's developers use it")
    visitor.picture("inbox-attach")
    visitor.follow(page.get_by_role("button", name="Attach to a client"))
    assert call(world, "memory.recall", "cursor-dev")["decision"] == "allow"

    visitor.go("/admin/access/matrix/")
    visitor.picture("access-matrix")
    visitor.follow(page.get_by_role("cell", name="Claude: missing grant").get_by_role("link").first)
    assert page.get_by_role("heading", name="No: no grant lets Claude use memory:write.").is_visible()
    assert page.locator(".steps .stopped").count() == 1
    visitor.picture("explainer")

    visitor.go("/admin/access/stops/")
    visitor.picture("kill-switches")
    page.get_by_label("Client", exact=True).select_option("claude")
    visitor.follow(page.get_by_role("button", name="Stop this client"))
    visitor.picture("kill-switch")
    page.get_by_label("Reason").fill("it sends what it should not")
    visitor.follow(page.get_by_role("button", name="Stop it now"))
    assert call(world, "memory.recall")["reason"] == "client_suspended"
    visitor.go("/admin/")
    assert page.get_by_text("Stopped: client Claude").is_visible()
    visitor.picture("home-stopped")
    visitor.follow(page.get_by_role("link", name="Look", exact=True).first)
    visitor.follow(page.get_by_role("link", name="Resume client Claude"))
    page.get_by_label("Reason").fill("it was updated")
    visitor.follow(page.get_by_role("button", name="Resume it now"))
    assert call(world, "memory.recall")["decision"] == "allow"
    review(visitor)
    assert visitor.complaints == []


def review(visitor: Visitor) -> None:
    """Every grant that ChatGPT has is looked at again, and the finished review is a record."""
    page = visitor.page
    visitor.go("/admin/clients/review/")
    visitor.picture("reviews")
    visitor.go("/admin/clients/review/add/")
    page.get_by_label("Of a client").select_option("ChatGPT")
    page.get_by_label("Reason").fill("the yearly review")
    visitor.follow(page.get_by_role("button", name="Start the review"))
    visitor.picture("review")
    for box in page.locator("input[name=item]").all():
        box.check()
    page.get_by_label("Note").fill("still needed")
    visitor.follow(page.get_by_role("button", name="Keep the ticked"))
    visitor.follow(page.get_by_role("button", name="Finish the review"))
    visitor.picture("review-finished")
    settle()
    assert statement(Record.objects.filter(type="review").latest("at"))["action"] == "review.finish"


def test_what_happened_to_one_person_is_found_explained_proved_and_answered_for(
    world: World, enter: Callable[[str], Visitor], sealer: None
) -> None:
    said = call(world, "memory.recall", request={"id": "req-of-the-journey"})
    settle()
    until(all_sealed, 60)
    visitor = enter("pia")
    page, uid = visitor.page, said["subject"]["uid"]
    visitor.go("/admin/people/")
    visitor.picture("people")
    page.get_by_label("E-mail address, sub or uid").fill("alice@example.com")
    visitor.follow(page.get_by_role("button", name="Find", exact=True))
    assert page.url == f"{visitor.url}/admin/timeline/user/{uid}/" and "alice" not in page.url
    assert page.get_by_text("alice@example.com").count() == 0
    visitor.picture("timeline-user")
    visitor.follow(page.get_by_role("button", name="Show who this is…"))
    assert page.get_by_text("alice@example.com").first.is_visible()

    visitor.go("/admin/records/?window=30d")
    visitor.picture("audit-search")
    page.get_by_text("+ filter").click()
    page.locator("select[name=reason]").select_option(label="Not granted")
    visitor.follow(page.get_by_role("button", name="Show", exact=True))
    shown = page.locator("table.rows tbody .pill").all_inner_texts()
    assert {"Denied"} <= set(shown) <= {"Denied", "Asked: no"}, "questions without a token are told from calls"
    visitor.picture("audit-search-refused")
    page.get_by_text("+ filter").click()
    page.get_by_label("Whose records").fill("Alice@Example.com")
    visitor.follow(page.get_by_role("button", name="Find the user"))
    assert f"subject={uid}" in page.url and "reason=not_granted" in page.url and "xample" not in page.url
    visitor.go("/admin/records/?window=1h")
    page.get_by_text("+ filter").click()
    page.locator("#id_kind").select_option(label="Request id")
    page.locator("#id_value").fill("req-of-the-journey")
    visitor.follow(page.get_by_role("button", name="Find the id"))
    assert "req-of-the-journey" not in page.url
    [row] = page.locator("table.rows tbody tr").all()
    visitor.follow(row.locator("td.what a"))
    assert page.url == f"{visitor.url}/admin/records/{said['record']}/"
    visitor.follow(page.get_by_role("button", name="Verify now"))
    assert page.locator("#proof .verdict").is_visible()
    visitor.picture("record")
    visitor.follow(page.get_by_role("button", name="Show protected details…"))
    assert page.get_by_text("req-of-the-journey").is_visible()
    visitor.picture("record-details")

    visitor.go(f"/admin/people/{uid}/report/")
    visitor.picture("report-ask")
    visitor.follow(page.get_by_role("button", name="Show the report…"))
    visitor.picture("report")
    assert page.get_by_text("alice@example.com").first.is_visible()
    settle()
    looks = Record.objects.filter(type="staff", subject=uid).order_by("at")
    actions = [statement(record)["action"] for record in looks]
    assert sorted(actions) == ["person.lookup", "person.lookup", "person.report", "personal.view", "personal.view"]
    assert visitor.complaints == []


SYSTEM = {
    "clients": "/admin/clients/client/", "client": "/admin/clients/client/1/change/", "tools": "/admin/tools/tool/",
    "tool": "/admin/tools/tool/1/change/", "scopes": "/admin/tools/scope/", "users": "/admin/audit/subject/",
    "issuers": "/admin/clients/issuer/", "backends": "/admin/tools/backend/", "key-sets": "/admin/clients/keyset/",
    "backend-keys": "/admin/tools/backendkey/", "staff-keys": "/admin/governance/staffkey/",
    "staff": "/admin/auth/user/", "roles": "/admin/auth/group/", "log": "/admin/log/", "outbox": "/admin/audit/outbox/",
    "schedules": "/admin/django_celery_beat/periodictask/", "published-keys": "/admin/audit/publishedkey/",
    "why-refused": "/admin/reasons/", "api-reference": "/reference",
    "timeline-client": "/admin/timeline/client/claude/?window=30d",
    "timeline-tool": "/admin/timeline/tool/inner/memory.recall/?window=30d",
}  # fmt: skip


def pictures_of_system(visitor: Visitor) -> None:
    """The pages that the others do not pass by."""
    for name, path in SYSTEM.items():
        visitor.go(path)
        visitor.picture(name)


def test_each_role_sees_only_what_it_may(world: World, enter: Callable[[str], Visitor], sealer: None) -> None:
    uid = call(world, "memory.recall")["subject"]["uid"]
    grants, personal, runs = {"max"}, {"pia"}, {"otto"}
    for sub in STAFF.keys() - {"nobody"}:
        visitor = enter(sub)
        visitor.go("/admin/records/")
        visitor.go("/admin/clients/grant/add/")  # who may not grant may ask
        assert visitor.page.url.split("?")[0].endswith("/grant/add/" if sub in grants else "/access/ask/"), sub
        response = visitor.page.goto(f"{visitor.url}/admin/auth/user/")
        assert response is not None and response.status == (200 if sub in runs else 403), sub
        visitor.go(f"/admin/timeline/user/{uid}/")
        assert (visitor.page.get_by_role("button", name="Show who this is…").count() == 1) == (sub in personal), sub
        if sub == "otto":
            pictures_of_system(visitor)
        visitor.page.context.close()
    outside = enter("nobody")
    assert outside.page.url.startswith(f"{outside.url}/admin/login/")
    assert outside.page.get_by_text("None of your groups at the identity provider has a role here").is_visible()
