"""Grants in the admin: made, extended and revoked with a reason, by POST, by those who may, and in the log."""

import os
import re
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from django.db import connections
from django.test import Client as HttpClient
from django.utils import timezone

from audit.models import Record, Subject
from audit.subjects import resolve
from clients import grants
from clients.admin import granting
from clients.grants import Actor
from clients.models import AccessRequest, Client, Grant
from tests.granting import ADD, ASK, confirm, given, grant, hidden, preview
from tests.staff import administrator, drained, member, newest
from tests.world import ISSUER, World, build, token
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
        ({"tenant": "x" * 300}, "at most 255"),
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


# --- what is saved is what was seen --------------------------------------------------------------------------------


def test_the_preview_says_what_would_change_and_for_how_many_calls(world: World, http: HttpClient) -> None:
    for sub in ("alice", "bob"):
        world.verify("memory.capture", token=token(sub=sub))
    text = preview(http, given("memory:write")).content.decode()
    assert "Claude may use memory:write for everyone until " in text and "because “pilot with 40 users”" in text
    assert "Claude may call memory.capture" in text and "would turn from refused to allowed" in text
    assert '<strong class="num">2</strong> calls' in text and '<span class="num">2</span> users' in text
    record = Record.objects.filter(tool="memory.capture").latest("at")
    assert f"/admin/records/{record.id}/" in text
    assert "window=7d&amp;client=claude&amp;tool=memory.capture&amp;decision=deny" in text
    assert Grant.objects.count() == 1


def test_who_may_not_read_records_sees_the_effect_and_no_counts(world: World) -> None:
    world.verify("memory.capture")
    text = preview(member("adam", "clients.add_grant"), given("memory:write")).content.decode()
    assert "Claude may call memory.capture" in text and "You may not read records" in text
    assert "refused to allowed" not in text and "/admin/records/" not in text


def test_what_was_not_seen_is_not_saved(world: World, http: HttpClient) -> None:
    page = preview(http, given("memory:write"))
    for other in (
        {"tenant": "acme"}, {"effect": "flag"}, {"tool": Tool.objects.latest("pk").pk}, {"ends": "365"},
        {"seen": ""}, {"seen": "x" * 500}, {"seen": hidden(page)["seen"][0] + "x"}, {"modes": ["api"]},
    ):  # fmt: skip
        answer = confirm(http, page, **other)
        assert answer.status_code == 200 and "What you saw was too old, or of another grant" in answer.content.decode()
    another = administrator("nora")
    assert "of another grant" in confirm(another, page).content.decode(), "nor what another saw"
    assert http.post(ADD, given("memory:write") | {"step": "confirm"}).status_code == 200, "nor without looking"
    assert Grant.objects.count() == 1
    assert confirm(http, page).status_code == 302


def test_it_ends_when_the_preview_said(world: World, http: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    page = preview(http, given("memory:write"))
    soon = timezone.now() + timedelta(minutes=30)
    monkeypatch.setattr(timezone, "now", lambda: soon)
    assert confirm(http, page).status_code == 302
    ends = Grant.objects.latest("pk").expires_at
    assert ends and ends < soon + timedelta(days=90) - timedelta(minutes=29)


def test_a_preview_is_good_for_an_hour(world: World, http: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    page = preview(http, given("memory:write"))
    monkeypatch.setattr(granting, "GOOD_FOR", -1)
    assert "too old" in confirm(http, page).content.decode()


def test_a_change_of_policy_in_between_shows_the_new_preview(world: World, http: HttpClient) -> None:
    page = preview(http, given("memory:write"))
    block = grants.create(
        actor=Actor("command:x", ""), reason="x", client=None, scopes=[Scope.objects.get(name="memory:write")],
        effect="deny", modes=["background"],
    )  # fmt: skip
    again = confirm(http, page)
    text = again.content.decode()
    assert "The policy changed since you looked" in text and f"Block {block.pk} forbids it" in text
    assert Grant.objects.filter(effect="allow").count() == 1
    assert confirm(http, again).status_code == 302, "what was seen now is saved"


def test_a_change_of_policy_that_makes_no_difference_is_none(world: World, http: HttpClient) -> None:
    page = preview(http, given("memory:write"))
    Client.objects.create(slug="other", name="Other")
    assert confirm(http, page).status_code == 302


@pytest.mark.parametrize(("effect", "saved"), [("deny", False), ("other", True)])
def test_a_change_of_policy_after_the_last_look_is_noticed_too(
    world: World, http: HttpClient, monkeypatch: pytest.MonkeyPatch, effect: str, saved: bool
) -> None:
    """Between the last look at the policy and the commit, as by somebody at the same moment."""
    page = preview(http, given("memory:write"))
    real, changes = grants.create, iter([True, False, False])

    def meanwhile(**members: Any) -> Grant:
        made = real(**members)
        if next(changes):
            with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as other:
                row = "(effect, reason, modes, created_at, created_by) VALUES ('deny', 'x', '{background}', now(), '')"
                other.execute(
                    f"INSERT INTO clients_grant {row}" if effect == "deny" else
                    "INSERT INTO clients_client (slug, name, kind, status) VALUES ('new', 'New', 'mcp', 'active')"
                )  # fmt: skip
        return made

    monkeypatch.setattr(grants, "create", meanwhile)
    answer = confirm(http, page)
    assert (answer.status_code == 302) == saved
    assert saved or "The policy changed since you looked" in answer.content.decode()
    assert Grant.objects.filter(scopes__name="memory:write").count() == int(saved)


def test_the_sentence_can_be_changed_after_it_was_seen(world: World, http: HttpClient) -> None:
    page = preview(http, given("memory:write", tenant="acme"))
    text = http.post(ADD, hidden(page) | {"step": "edit"}).content.decode()
    assert 'value="acme"' in text and "pilot with 40 users</textarea>" in text and 'value="confirm"' not in text
    assert Grant.objects.count() == 1


# --- nonsense, and what is odd -------------------------------------------------------------------------------------


def held(**members: Any) -> Grant:
    """A grant that the operator made."""
    names = members.pop("scopes", ["memory:write"])
    scopes = [Scope.objects.get(name=name) for name in names]
    return grants.create(
        actor=Actor("command:x", ""), reason="x", **{"client": Client.objects.get()} | members, scopes=scopes
    )


def test_what_a_block_forbids_wholly_cannot_be_granted(world: World, http: HttpClient) -> None:
    block = held(effect="deny", client=None, scopes=[])
    text = preview(http, given("memory:write")).content.decode()
    assert f"Block {block.pk} forbids this to everybody; nothing would change." in text
    assert f"/admin/clients/grant/{block.pk}/change/" in text
    assert Grant.objects.count() == 2


@pytest.mark.parametrize(
    "block",
    [
        {"modes": ["background"]}, {"tenant": "acme"}, {"scopes": ["memory:read"]}, {"scopes": ["memory:write"]},
        {"tool": "memory.capture"}, {"role": "nurse"}, {"expires_at": timezone.now() + timedelta(days=1)},
    ],
)  # fmt: skip
def test_what_a_block_forbids_in_part_can_be_granted(world: World, http: HttpClient, block: dict[str, Any]) -> None:
    if "tool" in block:
        block = {"tool": Tool.objects.get(name="memory.capture")}
    held(**{"effect": "deny", "client": None, "scopes": []} | block)
    assert grant(http, given("memory:write")).status_code == 302


def test_what_would_add_nothing_is_said_and_must_be_meant(world: World, http: HttpClient) -> None:
    wide = held(client=None)
    page = preview(http, given("memory:write", tenant="acme"))
    text = page.content.decode()
    assert f"Grant {wide.pk} gives the same and more" in text and "This would add nothing." in text
    assert "tick the box" in confirm(http, page).content.decode()
    assert Grant.objects.count() == 2
    assert confirm(http, page, anyway="on").status_code == 302


def test_what_gives_exactly_the_same_under_other_names_is_a_duplicate(world: World, http: HttpClient) -> None:
    wide = held()
    text = preview(http, given("memory:read", "memory:write")).content.decode()
    assert f"Grant {wide.pk} says the same and is active" in text


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"scopes": ["memory:odd"]}, "No tool needs memory:odd"),
        ({"scopes": ["memory:odd"], "effect": "deny"}, "No tool needs memory:odd"),
        ({"tool": "memory.recall", "scopes": ["memory:odd2"]}, "memory.recall does not need memory:odd2"),
        ({"client": "asleep"}, "Asleep is suspended"),
        ({"client": "asleep"}, "Asleep has no OAuth client id yet"),
        ({"subject": "alice"}, "This user is blocked"),
        ({"subject": "alice", "ended": "deactivated_at"}, "The identity provider deactivated this user"),
        ({"tool": "memory.wait", "scopes": []}, "memory.wait is pending"),
    ],
)
def test_what_is_odd_is_said(world: World, http: HttpClient, other: dict[str, Any], words: str) -> None:
    Client.objects.create(slug="asleep", name="Asleep", status="suspended")
    Scope.objects.create(name="memory:odd")
    odd = Scope.objects.create(name="memory:odd2")
    waits = Tool.objects.create(backend=world.backend, name="memory.wait", access="read")
    waits.scopes.add(odd)
    names = other.pop("scopes", ["memory:write"])
    if "subject" in other:
        other["subject"] = resolve(ISSUER, "alice")
        Subject.objects.update(**{other.pop("ended", "blocked_at"): timezone.now()})
    if "tool" in other:
        other["tool"] = Tool.objects.get(name=other["tool"]).pk
    assert words in preview(http, given(*names, **other)).content.decode()


def test_retired_tools_and_erased_users_are_errors_of_their_fields(world: World, http: HttpClient) -> None:
    capture = Tool.objects.get(name="memory.capture")
    page = preview(http, given("memory:write", tool=capture.pk))
    Tool.objects.update(status="retired")
    for response in (preview(http, given("memory:write", tool=capture.pk)), confirm(http, page)):
        assert "Select a valid choice" in response.content.decode()
    uid = resolve(ISSUER, "alice")
    with connections["owner"].cursor() as cursor:
        cursor.execute("UPDATE audit_subject SET erased_at = now()")
    connections["owner"].close()
    assert "This user was erased" in preview(http, given("memory:write", subject=uid)).content.decode()
    assert Grant.objects.count() == 1


@pytest.mark.parametrize(
    "query",
    [
        "client=%00&scope=%00&tool=%00/%00&subject=%00&tenant=%00&mode=%00", "client=" + "x" * 5000,
        "scope=%ff%fe&tool=inner", "tool=/&mode=dreaming&effect=root", "scope=" + "&scope=".join(["a"] * 300),
        "client=%ED%A0%80&tenant=%ED%A0%80",
    ],
)  # fmt: skip
def test_a_hostile_suggestion_suggests_nothing(world: World, http: HttpClient, query: str) -> None:
    for url in (ADD, ASK):
        assert http.get(f"{url}?{query}").status_code == 200


@pytest.mark.parametrize(
    "other",
    [
        {"client": "9" * 40}, {"client": "\x00"}, {"scopes": ["9" * 40, "-1", "\x00"]}, {"tool": "9" * 40},
        {"subject": "usr_\x00"}, {"subject": "\ud800"}, {"role": "\ud800"}, {"tenant": "\x00"}, {"reason": "\ud800"},
        {"ends": "on", "expires_at": "9999-12-31T23:59"}, {"ends": "on", "expires_at": "0001-01-01T00:00"},
        {"starts_at": "9999-12-31T23:59", "ends": "never"}, {"starts_at": "\x00"}, {"step": "\x00"}, {"ends": "-5"},
        {"modes": ["\x00"]},
    ],
)  # fmt: skip
def test_hostile_forms_are_errors_of_the_form(world: World, http: HttpClient, other: dict[str, Any]) -> None:
    body = urlencode(given("memory:write") | {"step": "confirm"} | other, doseq=True, errors="surrogatepass")
    for url in (ADD, ASK):
        answer = http.post(url, body, content_type="application/x-www-form-urlencoded")
        assert answer.status_code == 200
    assert Grant.objects.count() == 1 and not AccessRequest.objects.exists()


def test_a_user_is_found_first_and_led_back_to_the_sentence(world: World, http: HttpClient) -> None:
    text = http.get(f"{ADD}?client=claude&scope=memory:write").content.decode()
    assert "/admin/people/?next=%2Fadmin%2Fclients%2Fgrant%2Fadd%2F%3Fclient%3Dclaude%26scope%3Dmemory%3Awrite" in text
    assert "/admin/people/" not in member("bob", "clients.add_grant").get(ADD).content.decode()


def test_a_link_suggests_everything_that_a_grant_can_say(world: World, http: HttpClient) -> None:
    uid = resolve(ISSUER, "alice")
    query = f"client=claude&scope=memory:write&tool=inner/memory.capture&subject={uid}&tenant=acme&mode=background"
    text = http.get(f"{ADD}?{query}").content.decode()
    capture = Tool.objects.get(name="memory.capture")
    assert f'<option value="{capture.pk}" selected>memory.capture of Inner</option>' in text
    assert f'value="{uid}"' in text and 'value="acme"' in text and "<details open>" in text
    assert re.search(r'value="background"[^>]*checked', text)


# --- the list, and the history -------------------------------------------------------------------------------------


def test_the_list_is_chosen_by_state(world: World, http: HttpClient) -> None:
    soon = held(expires_at=timezone.now() + timedelta(days=3), tenant="soon-tenant")
    block = held(effect="deny", tenant="block-tenant")
    over = held(tenant="over-tenant")
    grants.revoke(over, actor=Actor("command:x", ""), reason="over")
    shown = {
        state: {grant.pk for grant in http.get(f"/admin/clients/grant/?state={state}").context["cl"].result_list}
        for state in ("active", "soon", "blocks", "ended", "all", "")
    }
    assert shown["soon"] == {soon.pk} and shown["blocks"] == {block.pk} and shown["ended"] == {over.pk}
    assert shown["active"] == shown[""] == {world.grant.pk, soon.pk, block.pk} and len(shown["all"]) == 4
    chips = {chip["words"]: chip["count"] for chip in http.get("/admin/clients/grant/").context["chips"]}
    assert chips == {"Active": 3, "End soon": 1, "Blocks": 1, "Revoked or expired": 1, "All": 4}
    assert http.get("/admin/clients/grant/?state=%00").status_code == 400


def test_the_history_says_who_when_and_why_from_the_log(world: World, http: HttpClient) -> None:
    made = grant(http, given("memory:write", reason="pilot with 40 users"), follow=True)
    number = Grant.objects.latest("pk").pk
    base = f"/admin/clients/grant/{number}"
    http.post(f"{base}/act/extend/", {"reason": "it works", "ends": "365"})
    http.post(f"{base}/act/revoke/", {"reason": "the pilot is over"})
    drained()
    page = http.get(f"{base}/change/")
    steps = page.context["history"].steps
    assert [step.what.split(" from ")[0] for step in steps] == ["Revoked", "Its end was moved", "Made"]
    assert [step.why for step in steps] == ["the pilot is over", "it works", "pilot with 40 users"]
    assert {step.who for step in steps} == {"Mara"} and page.context["history"].whole
    assert all(f"/admin/records/{step.record}/" in page.content.decode() for step in steps)
    assert made.status_code == 302 or made.status_code == 200
    blind = member("bob", "clients.view_grant").get(f"{base}/change/").content.decode()
    assert "You may not read records" in blind and "the pilot is over" not in blind


def test_the_history_is_found_after_the_outbox_was_cleared_and_its_reader_is_bounded(
    world: World, http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant(http, given("memory:write"))
    number = Grant.objects.latest("pk").pk
    for tenant in ("a", "b", "c"):
        grant(http, given("memory:write", tenant=tenant), anyway="on")
    drained()
    with connections["owner"].cursor() as cursor:
        cursor.execute("DELETE FROM audit_outbox WHERE record_index IS NOT NULL")
    connections["owner"].close()
    url = f"/admin/clients/grant/{number}/change/"
    assert [step.what for step in http.get(url).context["history"].steps] == ["Made"]
    monkeypatch.setattr("clients.grant_history.MOST", 1)
    assert not http.get(url).context["history"].whole


def test_revoking_shows_what_would_stop_and_extending_what_relies_on_it(world: World, http: HttpClient) -> None:
    world.verify()
    base = f"/admin/clients/grant/{world.grant.pk}/act"
    text = http.get(f"{base}/revoke/").content.decode()
    assert "What would stop" in text and "Claude can no longer call memory.recall" in text
    assert "would turn from allowed to refused" in text
    text = http.get(f"{base}/extend/").content.decode()
    assert "Claude can go on calling memory.recall" in text and "relies on it" in text
