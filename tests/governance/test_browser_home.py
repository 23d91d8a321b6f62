"""Home, the menu of a phone, copying an id, errors and the API reference, in a real browser."""

from datetime import timedelta

import pytest
from django.utils import timezone

from audit import rollups
from audit.models import Sighting
from clients.models import Client, Grant
from tests.browser import NARROW, Visitor
from tests.live import until
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
    until(Sighting.objects.exists, 30)
    drained()
    while rollups.count():
        pass


def test_home_leads_from_a_number_to_what_it_counts_and_from_a_denial_to_a_grant(
    world: World, visitor: Visitor
) -> None:
    asked: set[str] = set()
    page = visitor.page
    page.on("request", lambda request: asked.add(request.url))
    visitor.sign_in()
    visitor.shot("home-empty")
    calls(world)
    visitor.go("/admin/")
    visitor.shot("home")
    page.get_by_text("As a table").click()
    assert page.locator(".chart table").is_visible()
    visitor.follow(page.get_by_role("link", name="30 days"))
    assert page.get_by_role("heading", name="50 calls in 30 days, 10 denied").is_visible()
    visitor.shot("home-30d")
    visitor.follow(page.get_by_role("link", name="10 denied"))
    assert page.locator("tbody .pill").all_inner_texts() == ["Denied"] * 10
    page.go_back()
    visitor.follow(page.get_by_role("link", name="Grant… Claude, memory.capture"))
    assert page.get_by_label("memory:write").is_checked()
    visitor.go("/admin/reasons/")
    visitor.shot("reasons")
    visitor.go("/reference")
    visitor.shot("reference")
    visitor.follow(
        page.get_by_role("navigation", name="Contents").get_by_role("link", name="Declare a backend's tools")
    )
    assert page.locator("#declare_tools").evaluate("e => e.matches(':target')")
    assert {url.partition("/")[0] + "//" + url.split("/")[2] for url in asked} == {visitor.url}
    assert visitor.complaints == []


def test_a_phone_has_a_menu_that_opens_by_keyboard_without_script(world: World, visitor: Visitor) -> None:
    visitor.sign_in()
    page = visitor.page
    context = page.context.browser.new_context(
        viewport=NARROW, java_script_enabled=False, storage_state=page.context.storage_state()
    )
    phone = context.new_page()
    phone.goto(f"{visitor.url}/admin/clients/grant/")
    grants = phone.get_by_role("navigation", name="Main").get_by_role("link", name="Grants")
    assert not grants.is_visible()
    phone.keyboard.press("Tab")
    assert phone.evaluate("document.activeElement.textContent") == "Skip to the content"
    phone.keyboard.press("Tab")
    phone.keyboard.press("Tab")
    assert phone.evaluate("document.activeElement.textContent") == "Menu · Grants"
    phone.keyboard.press("Enter")
    assert grants.is_visible() and grants.get_attribute("aria-current") == "page"
    if visitor.shots:
        phone.screenshot(path=str(visitor.shots / "menu-390-light.png"), full_page=True)
    phone.get_by_role("link", name="API reference").focus()
    with phone.expect_navigation():
        phone.keyboard.press("Enter")
    assert phone.get_by_role("heading", name="API reference").is_visible()
    context.close()
    assert visitor.complaints == []


def test_an_id_is_copied_and_that_is_said(world: World, visitor: Visitor) -> None:
    record = world.verify()["record"]
    visitor.sign_in()
    page = visitor.page
    page.context.grant_permissions(["clipboard-write"])
    visitor.go(f"/admin/records/{record}/")
    button = page.get_by_role("button", name="Copy record id")
    button.focus()
    page.keyboard.press("Enter")
    page.get_by_role("status").get_by_text("Copied").wait_for(state="attached")
    assert "copied" in str(button.get_attribute("class"))
    visitor.go("/admin/clients/client/add/")
    page.get_by_label("Name").focus()
    page.keyboard.press("Control+V")
    assert page.get_by_label("Name").input_value() == record
    assert visitor.complaints == []


def test_errors_look_like_ours(world: World, visitor: Visitor) -> None:
    visitor.sign_in()
    page = visitor.page
    page.goto(f"{visitor.url}/admin/nothing/")
    assert page.get_by_role("heading", name="There is nothing here").is_visible()
    visitor.shot("not-found")
    page.goto(f"{visitor.url}/nothing")
    visitor.shot("not-found-outside")
    assert [text for text in visitor.complaints if "404" not in text] == []
