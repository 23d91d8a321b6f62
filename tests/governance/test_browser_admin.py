"""The admin in a real browser: sign in, search, read a record, grant and revoke, without one violation of the
Content-Security-Policy. With MUNIMENT_SHOTS=<folder> it also leaves a picture of each page there."""

from typing import Any

import pytest
from django.contrib.auth import get_user_model

from audit.models import Record, Sighting
from clients.models import Grant
from tests.browser import PASSWORD, Visitor
from tests.live import until
from tests.staff import drained
from tests.world import World, build, token

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """A small world, and an administrator."""
    # Playwright's synchronous API runs an event loop in this thread, which Django takes for asynchronous code.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    made = build()
    get_user_model().objects.create_superuser("mara", "", PASSWORD, first_name="Mara")
    return made


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
    world.verify(token=token(client="claude-desktop-beta"))
    until(Sighting.objects.exists, 30)
    drained()


def test_staff_see_records_grant_and_revoke(world: World, visitor: Visitor) -> None:
    visitor.sign_in()
    visitor.picture("home-empty")
    visitor.go("/admin/records/?window=1h&decision=allow")
    visitor.picture("records-empty")
    calls(world)
    page = visitor.page
    visitor.go("/admin/")
    visitor.picture("home")

    visitor.follow(page.get_by_role("link", name="Audit search", exact=True))
    visitor.picture("records")
    visitor.follow(page.get_by_role("link", name="Older →"))
    visitor.follow(page.get_by_role("link", name="← Newer"))
    assert page.get_by_role("link", name="← Newer").count() == 0
    page.get_by_text("+ filter").click()
    page.get_by_label("Decision").select_option("deny")
    visitor.follow(page.get_by_role("button", name="Show", exact=True))
    assert "decision=deny" in page.url
    denied = Record.objects.filter(decision="deny").count()
    assert page.locator("table.found tbody .pill").all_inner_texts() == ["Denied"] * denied
    visitor.picture("records-denied")
    visitor.follow(page.get_by_role("link", name="No grant lets Claude use memory:write.").first)
    visitor.picture("record-denied")
    assert page.locator(".steps .stopped").inner_text().endswith("No grant lets Claude use memory:write.")

    visitor.follow(page.get_by_role("link", name="Grant memory:write…"))
    assert page.get_by_label("memory:write").is_checked()
    visitor.picture("grant-form")
    page.get_by_label("because").fill("pilot with 40 users")
    visitor.follow(page.get_by_role("button", name="See what would change"))
    visitor.picture("grant-preview")
    visitor.follow(page.get_by_role("button", name="Grant"))
    assert page.get_by_role("heading", name="Claude may use memory:write for everyone").is_visible()
    visitor.picture("grant")
    assert world.verify(tool="memory.capture")["decision"] == "allow"

    visitor.follow(page.get_by_role("link", name="Revoke…"))
    visitor.picture("revoke")
    page.get_by_label("Reason").fill("the pilot is over")
    visitor.follow(page.get_by_role("button", name="Revoke"))
    assert page.get_by_text("The next call is decided without it.").is_visible()
    assert world.verify(tool="memory.capture")["reason"] == "not_granted"
    visitor.go("/admin/clients/grant/")
    visitor.picture("grants")
    assert Grant.objects.exclude(revoked_at=None).count() == 1

    allowed = Record.objects.filter(type="outcome").latest("at")
    visitor.go(f"/admin/records/{allowed.parent}/")
    visitor.picture("record-allowed")
    drained()
    policy = Record.objects.filter(type="policy").latest("at")
    visitor.go(f"/admin/records/{policy.id}/")
    visitor.picture("record-policy")
    visitor.follow(page.get_by_role("button", name="Sign out"))
    visitor.picture("signed-out")
    assert visitor.complaints == []
