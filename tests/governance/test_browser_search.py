"""Audit search in a real browser: from a person, a reason and an id to records, without script and without one
violation of the Content-Security-Policy. With MUNIMENT_SHOTS=<folder> it leaves a picture of each page there."""

from datetime import timedelta
from typing import Any

import pytest

from audit import rollups, search_scan
from audit.models import Record
from tests.audit.filling import fill
from tests.browser import NARROW, Visitor
from tests.staff import administrator, drained
from tests.world import World, build, token

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """A small world with an administrator."""
    # Playwright's synchronous API runs an event loop in this thread, which Django takes for asynchronous code.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    made = build()
    administrator()
    return made


def calls(world: World) -> None:
    """Allowed, flagged, refused, not established; with outcomes, sessions and resources."""
    agents: list[dict[str, Any]] = [{}, {"mode": "background", "chain": ["planner", "reader"]}]
    for number in range(60):
        user = ("alice", "bob", "a.person.with.a.very.long.name.indeed")[number % 3]
        answer = world.verify(
            token=token(sub=user), agent=agents[number % 2], request={"id": f"req-{number}", "session_id": "s-1"},
            resource={"type": "memory", "id": f"m_{number % 4}"},
            tool="memory.capture" if number % 5 == 0 else "memory.recall",
        )  # fmt: skip
        if answer["decision"] == "allow":
            path = f"/v1/records/{answer['record']}/outcome"
            world.post(path, {"status": "ok", "count": number % 5, "duration_ms": 12 + number})
    world.verify(token=None)
    world.verify(token=token()[:-8] + "AAAAAAAA")
    drained()
    rollups.catch_up()


def test_staff_search_by_person_reason_and_id(world: World, visitor: Visitor) -> None:
    visitor.sign_in()
    visitor.go("/admin/records/?window=1h&decision=deny")
    visitor.shot("search-empty")
    calls(world)
    page = visitor.page
    visitor.go("/admin/records/?window=1h")
    visitor.shot("search")
    page.get_by_text("+ filter").click()
    page.get_by_text("Time:").click()
    page.get_by_text("Save this search").click()
    visitor.shot("search-open")

    page.get_by_label("Reason").select_option("not_granted")
    visitor.follow(page.get_by_role("button", name="Show", exact=True))
    assert page.get_by_text("Reason: Not granted").is_visible() and "reason=not_granted" in page.url
    refused = Record.objects.filter(reason="not_granted").count()
    assert page.get_by_text(f"{refused} records").first.is_visible()
    visitor.shot("search-reason")

    page.get_by_text("+ filter").click()
    page.get_by_label("Whose records").fill("alice@example.com")
    visitor.follow(page.get_by_role("button", name="Find the user"))
    assert "subject=usr_" in page.url and "reason=not_granted" in page.url and "alice" not in page.url
    visitor.follow(page.get_by_role("link", name="Remove the filter Reason"))
    assert "reason=" not in page.url
    visitor.follow(page.get_by_role("button", name="Show who these users are"))
    assert page.get_by_text("alice@example.com").first.is_visible() and "alice" not in page.url
    visitor.shot("search-users")

    visitor.go("/admin/records/?window=1h")
    page.get_by_text("+ filter").click()
    page.get_by_label("Id", exact=True).fill("req-7")
    visitor.follow(page.get_by_role("button", name="Find the id"))
    assert "request_key=" in page.url and "req-7" not in page.url
    assert page.locator("table.found tbody tr").count() == 1
    assert visitor.complaints == []


def test_staff_keep_a_search_walk_its_pages_and_follow_a_bar(
    world: World, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls(world)
    visitor.sign_in()
    page = visitor.page
    visitor.go("/admin/records/?window=24h&client=claude")
    page.get_by_text("Save this search").click()
    page.get_by_label("Name").fill("What Claude does")
    page.get_by_label("Others on the staff see it too").check()
    visitor.follow(page.get_by_role("button", name="Save", exact=True))
    page.get_by_text("Saved searches").click()
    visitor.shot("search-saved")
    visitor.follow(page.get_by_role("link", name="What Claude does"))
    visitor.follow(page.get_by_role("link", name="Older →"))
    visitor.follow(page.get_by_role("link", name="← Newer"))
    visitor.follow(page.get_by_role("link", name="Oldest", exact=True))
    visitor.follow(page.get_by_role("link", name="Oldest first"))
    first = page.locator("table.found tbody tr").first
    assert first.locator(".pill").inner_text() == "Denied"
    page.get_by_text("As a table").click()
    visitor.follow(page.locator(".chart.linked tbody a").last)
    assert "since=" in page.url and page.locator("table.found tbody tr").count() > 0

    with page.expect_download() as got:
        page.get_by_role("button", name="This page as CSV").click()
    assert got.value.suggested_filename.endswith(".csv")

    monkeypatch.setattr(search_scan, "BUDGET", 10)
    visitor.go("/admin/records/?window=1h&scope=memory%3Awrite&mode=api")
    fill([{"agent": {"mode": "background"}} for _ in range(15)], timedelta(milliseconds=1))
    visitor.go("/admin/records/?window=1h&subject=usr_alice&mode=api")
    assert page.get_by_text("nothing found so far").is_visible()
    visitor.shot("search-further")
    visitor.follow(page.get_by_role("link", name="Look further back"))

    page.set_viewport_size(NARROW)
    visitor.go("/admin/records/?window=1h")
    assert page.locator("thead").first.is_hidden()
    assert visitor.complaints == []
