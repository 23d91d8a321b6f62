"""Staff keys in a real browser: none yet, make one, see it once, use it, revoke it. With MUNIMENT_SHOTS=<folder> it
also leaves a picture of each page there."""

import re

import pytest
from django.contrib.auth import get_user_model
from django.test import Client as HttpClient

from governance.models import StaffKey
from tests.browser import PASSWORD, Visitor
from tests.world import World, build

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """A small world and an administrator, whom the live server takes to have signed in just now."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    monkeypatch.setattr("governance.staff_keys_admin.is_recent", lambda request: True)
    get_user_model().objects.create_superuser("mara", "mara@example.com", PASSWORD, first_name="Mara")
    return build()


def test_a_member_of_staff_makes_a_key_uses_it_and_ends_it(world: World, visitor: Visitor) -> None:
    world.verify()
    visitor.sign_in()
    page = visitor.page
    visitor.follow(page.get_by_role("link", name="Staff keys", exact=True))
    visitor.shot("staff-keys-empty")
    visitor.follow(page.get_by_role("link", name="Make a key for me…"))
    visitor.shot("staff-key-make")
    page.get_by_label("What it is for").fill("monthly report, on Mara's laptop")
    page.get_by_label("Reason").fill("audit of the third quarter")
    visitor.follow(page.get_by_role("button", name="Make a key"))
    key = page.get_by_label("Key").input_value()
    assert re.fullmatch(r"sk_[A-Za-z0-9]{12}_[A-Za-z0-9_-]{43}", key)
    page.locator("#secret").evaluate("field => { field.value = field.value.slice(0, 15) + '_' + 'x'.repeat(43) }")
    visitor.shot("staff-key-made")
    answer = HttpClient().get("/v1/records", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200 and len(answer.json()["items"]) >= 1

    visitor.follow(page.get_by_role("link", name="I have it"))
    visitor.shot("staff-key")
    visitor.go("/admin/governance/staffkey/")
    visitor.shot("staff-keys")
    visitor.go(f"/admin/governance/staffkey/{StaffKey.objects.get().pk}/change/")
    visitor.follow(page.get_by_role("link", name="Revoke…"))
    page.get_by_label("Reason").fill("the laptop is lost")
    visitor.shot("staff-key-revoke")
    visitor.follow(page.get_by_role("button", name="Revoke"))
    assert HttpClient().get("/v1/records", headers={"Authorization": f"Bearer {key}"}).status_code == 401
    assert visitor.complaints == []
