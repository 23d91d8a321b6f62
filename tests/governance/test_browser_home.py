"""Home, the menu of a phone, copying an id, errors and the API reference, in a real browser."""

import time
from datetime import timedelta

import pytest
from django.utils import timezone

from audit import rollups
from clients.models import Client, Grant
from tests.browser import Visitor
from tests.staff import administrator, drained
from tests.world import World, build, token

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """A small world whose grants end soon."""
    # Playwright's synchronous API runs an event loop in this thread, which Django takes for asynchronous code.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    made = build()
    administrator()
    Grant.objects.update(expires_at=timezone.now() + timedelta(days=6))
    long = Client.objects.create(slug="long", name="A client that somebody gave a very long name " * 2)
    Grant.objects.create(client=long, reason="pilot", expires_at=timezone.now() + timedelta(days=12))
    return made


def calls(world: World) -> None:
    """Enough to see: users, refusals of several kinds, unknown clients and tools."""
    for number in range(40):
        world.verify(token=token(sub=f"user{number % 7}"))
    for _ in range(6):
        world.verify(tool="memory.capture")
    for kind in ({"token": None}, {"token": token(scope="profile")}, {"token": token(client="cursor")}):
        world.verify(**kind)
    world.verify(tool="memory.forget")
    time.sleep(1.2)  # the inbox's counts
    drained()
    while rollups.count():
        pass


def test_home_leads_from_a_number_to_what_it_counts_and_from_a_denial_to_a_grant(
    world: World, visitor: Visitor
) -> None:
    visitor.sign_in()
    visitor.shot("home-empty")
    calls(world)
    visitor.go("/admin/")
    visitor.shot("home")
    page = visitor.page
    visitor.follow(page.get_by_role("link", name="30 days"))
    visitor.shot("home-30d")
    visitor.go("/reference")
    visitor.shot("reference")
    visitor.go("/admin/reasons/")
    visitor.shot("reasons")
    assert visitor.complaints == []
