"""Grants in the admin: made, extended and revoked with a reason, by POST, by those who may, and in the log."""

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client as HttpClient
from django.utils import timezone

from clients.models import Client, Grant
from governance.process import recorder
from tests.granting import ADD, ASK, confirm, given, grant, hidden, preview
from tests.staff import administrator, drained, member, newest
from tests.world import World, build, token
from tools.models import Scope, Tool


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


def test_a_grant_allows_the_next_call_and_is_recorded_as_the_viewers(world: World, http: HttpClient) -> None:
    page = preview(http, given("memory:write"))
    assert page.status_code == 200 and Grant.objects.count() == 1, "nothing is saved by looking"
    assert confirm(http, page).status_code == 302
    assert world.verify(tool="memory.capture")["decision"] == "allow"
    made = Grant.objects.latest("created_at")
    assert made.expires_at and timedelta(days=89) < made.expires_at - timezone.now() < timedelta(days=91)
    told = newest("policy")
    assert told["actor"] == "staff:1" and len(told["_sd"]) == 2
    assert {change["table"] for change in told["changes"]} == {"clients_grant", "clients_grant_scopes"}


def test_revoking_denies_the_very_next_call(world: World, http: HttpClient) -> None:
    assert world.verify()["decision"] == "allow"
    url = f"/admin/clients/grant/{world.grant.pk}/act/revoke/"
    assert http.get(url).status_code == 200 and world.verify()["decision"] == "allow"
    assert http.post(url, {"reason": "over"}).status_code == 302
    assert world.verify()["reason"] == "not_granted"
    again = http.post(url, {"reason": "over"}, follow=True)
    assert b"does not apply" in again.content


def test_extending_moves_the_end_and_nothing_else(world: World, http: HttpClient) -> None:
    url = f"/admin/clients/grant/{world.grant.pk}/act/extend/"
    said = http.post(url, {"reason": "works well", "ends": "30"}, follow=True).content.decode()
    assert "it now ends on " in said and "&lt;" not in said
    grant = Grant.objects.get(pk=world.grant.pk)
    assert grant.expires_at is not None and grant.reason == "launch review"
    assert http.post(url, {"reason": "for good", "ends": "never"}).status_code == 302
    assert Grant.objects.get(pk=world.grant.pk).expires_at is None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"reason": " "}, "This field is required"),
        ({"reason": "a\x07b"}, "cannot be printed"),
        ({"reason": "a\x00b"}, "Null characters"),
        ({"ends": "on"}, "Say when"),
        ({"ends": "on", "expires_at": "2020-01-01T00:00"}, "in the past"),
        ({"ends": "30", "starts_at": "2090-01-01T00:00"}, "before it starts"),
        ({"ends": "soon"}, "Select a valid choice"),
        ({"scopes": []}, "at least one scope"),
        ({"scopes": [999]}, "Select a valid choice"),
        ({"effect": "maybe"}, "Select a valid choice"),
        ({"subject": "usr_nobody"}, "no user with this uid"),
        ({"modes": ["dreaming"]}, "Select a valid choice"),
        ({"tenant": "x" * 200}, "at most 128"),
    ],
)
def test_nonsense_is_a_form_error(world: World, http: HttpClient, other: dict[str, Any], words: str) -> None:
    for step in ("preview", "confirm"):
        response = http.post(ADD, given("memory:write", **other) | {"step": step})
        assert response.status_code == 200 and words in response.content.decode()
    assert Grant.objects.count() == 1


def test_a_duplicate_is_a_form_error(world: World, http: HttpClient) -> None:
    assert grant(http, given("memory:write")).status_code == 302
    made = Grant.objects.latest("pk")
    text = preview(http, given("memory:write", reason="again", ends="30")).content.decode()
    assert f"Grant {made.pk} says the same and is active" in text
    assert f"/admin/clients/grant/{made.pk}/act/extend/" in text


def test_a_refusal_suggests_the_grant_but_changes_nothing(world: World, http: HttpClient) -> None:
    text = http.get(f"{ADD}?client=claude&scope=memory:write").content.decode()
    assert text.count("checked") == 3  # the scope, the effect, the end
    assert Grant.objects.count() == 1


def test_a_grant_is_neither_edited_nor_deleted(world: World, http: HttpClient) -> None:
    base = f"/admin/clients/grant/{world.grant.pk}"
    assert http.post(f"{base}/change/", {"reason": "other"}).status_code == 403
    assert http.get(f"{base}/delete/").status_code == 403
    assert http.post(f"{base}/delete/", {"post": "yes"}).status_code == 403
    assert http.post("/admin/clients/grant/", {"action": "delete_selected", "_selected_action": [1]}).status_code in (
        200,
        302,
        403,
    )
    assert Grant.objects.filter(pk=world.grant.pk, reason="launch review").exists()


def test_permissions_are_checked_for_each_change(world: World) -> None:
    viewer = member("vera", "clients.view_grant")
    base = f"/admin/clients/grant/{world.grant.pk}"
    assert viewer.get(f"{base}/change/").status_code == 200
    assert b"/act/" not in viewer.get(f"{base}/change/").content
    assert viewer.post(ADD, given("memory:write")).status_code == 403
    led = viewer.get(f"{ADD}?client=claude&scope=memory:write")
    assert (led.status_code, led["Location"]) == (302, f"{ASK}?client=claude&scope=memory%3Awrite"), "to asking"
    for method in (viewer.get, viewer.post):
        assert method(f"{base}/act/revoke/").status_code == 403
        assert method(f"{base}/act/extend/").status_code == 403
    adder = member("adam", "clients.view_grant", "clients.add_grant")
    assert grant(adder, given("memory:write")).status_code == 302
    assert adder.post(f"{base}/act/revoke/", {"reason": "x"}).status_code == 403
    assert HttpClient().post(ADD, given("memory:write", tenant="x")).status_code == 302  # to the login page
    assert Grant.objects.count() == 2 and not Grant.objects.exclude(revoked_at=None).exists()
    drained()


def test_a_forged_form_of_another_site_is_refused(world: World, http: HttpClient) -> None:
    strict = HttpClient(enforce_csrf_checks=True, cookies=http.cookies)
    strict.cookies = http.cookies
    assert strict.post(f"/admin/clients/grant/{world.grant.pk}/act/revoke/", {"reason": "x"}).status_code == 403
    assert Grant.objects.get().revoked_at is None
