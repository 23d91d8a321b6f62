"""Requests in the admin: whoever may not grant asks, a second person decides with what it would change in sight, and
who asked sees why."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.test import Client as HttpClient
from django.utils import timezone

from audit.recent_sign_in import SIGNED_IN_AT
from audit.record_words import title
from clients import grants
from clients.grants import Actor
from clients.models import AccessRequest, Client, Grant
from tests.granting import ADD, ASK, ask, confirm, given, grant, hidden, preview
from tests.staff import administrator, drained, member, newest, signed_in
from tests.world import World, build
from tools.models import Scope, Tool

LIST = "/admin/clients/accessrequest/"


@pytest.fixture
def world(db: None) -> World:
    built = build()
    Scope.objects.filter(name="memory:write").update(sensitive=True)
    return built


def manager(name: str = "mia") -> HttpClient:
    """Grants, sees records, and decides as well."""
    permissions = ("clients.add_grant", "clients.change_grant", "clients.view_grant", "clients.view_accessrequest")
    return member(name, *permissions, grants.DECIDE, "audit.view_record")


def approver(name: str = "anna", recent: bool = True) -> HttpClient:
    """Has the role, and has just signed in, or long ago."""
    user = get_user_model().objects.create_user(name, "", "correct horse battery", is_staff=True)
    user.groups.add(Group.objects.get(name="Approver"))
    http = signed_in(user)
    signed(http, recent)
    return http


def signed(http: HttpClient, recent: bool) -> None:
    session = http.session
    session[SIGNED_IN_AT] = int(timezone.now().timestamp()) - (0 if recent else 3600)
    session.save()


def page_of(http: HttpClient, asked: AccessRequest) -> Any:
    return http.get(f"{LIST}{asked.pk}/change/")


def decide(http: HttpClient, asked: AccessRequest, decision: str, page: Any = None, **other: Any) -> Any:
    """The decision, from the page of the request."""
    seen = hidden(page or page_of(http, asked)).get("seen", [""])
    data = {"seen": seen, "decision": decision, "ends": "asked", "answer": ""} | other
    return http.post(f"{LIST}{asked.pk}/decide/", data)


def asked_for(http: HttpClient, *scopes: str, **other: Any) -> AccessRequest:
    response = ask(http, given(*scopes or ["memory:write"], **other), anyway="on")
    assert response.status_code == 302, response.content.decode()
    return AccessRequest.objects.latest("pk")


def test_who_grants_a_sensitive_scope_is_led_to_ask_with_the_form_kept(world: World) -> None:
    http = manager()
    page = preview(http, given("memory:write", tenant="acme"))
    text = page.content.decode()
    assert "A second person approves it:" in text and f'action="{ASK}"' in text and "Ask for it</button>" in text
    assert "What would change in tenant acme" in text and "Claude may call memory.capture" in text
    refused = confirm(http, page)
    assert refused.status_code == 200 and Grant.objects.count() == 1, "granting all the same shows it again"
    response = confirm(http, page, ASK)
    asked = AccessRequest.objects.get()
    assert response["Location"] == f"{LIST}{asked.pk}/change/"
    assert (asked.tenant, asked.days, asked.reason, asked.status) == ("acme", 90, "pilot with 40 users", "waiting")
    assert world.verify("memory.capture")["reason"] == "not_granted"


def test_what_a_second_person_approves_is_for_a_limited_time(world: World) -> None:
    text = preview(manager(), given("memory:write", ends="never")).content.decode()
    assert "A request is for a limited time: choose an end." in text
    assert "Select a valid choice" in preview(manager("max"), given("memory:read", ends="never"), ASK).content.decode()


def test_the_whole_way_from_asking_to_the_next_call(world: World) -> None:
    world.verify("memory.capture")
    nora = member("nora")
    asked = asked_for(nora)
    told = page_of(nora, asked).content.decode()
    assert "You ask, because" in told and "Withdraw it" in told and "Approve</button>" not in told
    anna = approver()
    assert "Requests" in anna.get("/admin/").content.decode()
    page = page_of(anna, asked)
    text = page.content.decode()
    assert "nora asks" in text and "Claude may call memory.capture" in text and "from refused to allowed" in text
    response = decide(anna, asked, "approve", page, answer="fine")
    made = Grant.objects.latest("pk")
    assert (response.status_code, response["Location"]) == (302, f"/admin/clients/grant/{made.pk}/change/")
    assert world.verify("memory.capture")["reason"] == "granted"
    told = page_of(nora, asked).content.decode()
    assert "Approved by anna" in told and "because “fine”" in told
    assert f"Request {asked.pk}</a> by nora, approved by anna" in anna.get(response["Location"]).content.decode()
    recorded = newest("request")
    assert title(recorded, {}) == f"Staff member {recorded['actor'][6:]} approved request {asked.pk}"


def test_who_asked_sees_why_it_was_rejected_and_a_reason_is_needed(world: World) -> None:
    nora, anna = member("nora"), approver(recent=False)
    asked = asked_for(nora)
    assert "Say why, for who asked." in decide(anna, asked, "reject").content.decode()
    assert decide(anna, asked, "reject", answer="not before the review").status_code == 302
    told = page_of(nora, asked).content.decode()
    assert "Rejected by anna" in told and "not before the review" in told
    assert decide(anna, asked, "approve").status_code == 200 and Grant.objects.count() == 1


def test_an_approver_shortens_and_does_not_lengthen(world: World) -> None:
    anna = approver()
    asked = asked_for(member("nora"), ends="30")
    choices = re.findall(r'name="ends" value="(\w+)"', page_of(anna, asked).content.decode())
    assert choices == ["asked", "7", "on"], "nothing that is later than what was asked for"
    later = (timezone.now() + timedelta(days=31)).strftime("%Y-%m-%dT%H:%M")
    assert "not later" in decide(anna, asked, "approve", ends="on", expires_at=later).content.decode()
    assert decide(anna, asked, "approve", ends="90").status_code == 200
    assert decide(anna, asked, "approve", ends="on").status_code == 200
    assert Grant.objects.count() == 1
    assert decide(anna, asked, "approve", ends="7").status_code == 302
    ends = Grant.objects.latest("pk").expires_at
    assert ends and ends - timezone.now() < timedelta(days=7)


# --- never oneself, and only who may ---------------------------------------------------------------------------------


@pytest.mark.parametrize("who", [administrator, manager])
def test_nobody_approves_their_own_by_its_url_a_superuser_neither(world: World, who: Any) -> None:
    http = who("mia")
    signed(http, True)
    asked = asked_for(http)
    page = page_of(http, asked)
    assert "Approve</button>" not in page.content.decode()
    for decision in ("approve", "reject"):
        answer = decide(http, asked, decision, page, answer="why not").content.decode()
        assert "You asked for this yourself: a second person decides." in answer
    asked.refresh_from_db()
    assert asked.status == "waiting" and Grant.objects.count() == 1
    other = approver()
    assert decide(other, asked, "approve").status_code == 302


def test_only_who_may_decide_decides_also_when_the_role_goes_between_page_and_click(world: World) -> None:
    asked = asked_for(member("nora"))
    bystander = member("bob", "clients.view_accessrequest", "clients.add_grant")
    assert "Approve</button>" not in page_of(bystander, asked).content.decode()
    assert decide(bystander, asked, "approve").status_code == 403
    anna = approver()
    page = page_of(anna, asked)
    user = get_user_model().objects.get(username="anna")
    user.groups.set([Group.objects.get(name="Auditor")])
    assert decide(anna, asked, "approve", page).status_code == 403
    assert Grant.objects.count() == 1


def test_nothing_changes_by_get_nor_from_elsewhere(world: World) -> None:
    nora, anna = member("nora"), approver()
    asked = asked_for(nora)
    for http, step in ((anna, "decide"), (nora, "withdraw")):
        assert http.get(f"{LIST}{asked.pk}/{step}/").status_code == 405
        strict = HttpClient(enforce_csrf_checks=True)
        strict.cookies = http.cookies
        assert strict.post(f"{LIST}{asked.pk}/{step}/", {"decision": "approve", "ends": "asked"}).status_code == 403
    assert anna.post(f"{LIST}{asked.pk}/change/", {"status": "approved"}).status_code == 403
    assert anna.post(f"{LIST}{asked.pk}/delete/", {"post": "yes"}).status_code == 403
    assert anna.get(f"{LIST}add/").status_code == 403
    asked.refresh_from_db()
    assert asked.status == "waiting"
    assert HttpClient().get(ASK).status_code == 302, "to the sign-in"


def test_only_who_asked_withdraws(world: World) -> None:
    nora, anna = member("nora"), approver()
    asked = asked_for(nora)
    assert anna.post(f"{LIST}{asked.pk}/withdraw/").status_code == 403
    assert nora.post(f"{LIST}{asked.pk}/withdraw/").status_code == 302
    asked.refresh_from_db()
    assert asked.status == "withdrawn"
    assert "was withdrawn" in nora.post(f"{LIST}{asked.pk}/withdraw/", follow=True).content.decode()


def test_everybody_sees_their_own_and_others_only_who_may(world: World) -> None:
    nora, olga = member("nora"), member("olga")
    first, second = asked_for(nora), asked_for(olga, tenant="acme")
    assert page_of(nora, second).status_code == 302, "to the home page: there is none for them"
    assert [one.pk for one in nora.get(f"{LIST}?state=all").context["cl"].result_list] == [first.pk]
    assert nora.post(f"{LIST}{second.pk}/withdraw/").status_code == 404
    both = {one.pk for one in approver().get(LIST).context["cl"].result_list}
    assert both == {first.pk, second.pk}
    assert [one.pk for one in olga.get(f"{LIST}?state=mine").context["cl"].result_list] == [second.pk]


# --- a recent sign-in ------------------------------------------------------------------------------------------------


def test_an_approver_of_a_sensitive_scope_shows_again_who_they_are_and_repeats_only_the_click(world: World) -> None:
    anna = approver(recent=False)
    asked = asked_for(member("nora"))
    response = decide(anna, asked, "approve", answer="fine", ends="30")
    assert response.status_code == 302 and response["Location"].startswith("/admin/sign-in/again/?next=")
    assert Grant.objects.count() == 1
    signed(anna, True)
    page = page_of(anna, asked)
    text = page.content.decode()
    assert "fine</textarea>" in text and re.search(r'value="30"[^>]*checked', text)
    assert decide(anna, asked, "approve", page, answer="fine", ends="30").status_code == 302
    assert Grant.objects.count() == 2
    assert "fine</textarea>" not in page_of(anna, asked).content.decode()


def test_neither_asking_nor_rejecting_nor_what_is_not_sensitive_needs_one(world: World) -> None:
    anna = approver(recent=False)
    asked = asked_for(member("nora"), "memory:read", tenant="acme")
    assert decide(anna, asked, "approve").status_code == 302 and Grant.objects.count() == 2


def test_what_became_sensitive_between_page_and_click_needs_one(world: World) -> None:
    Scope.objects.update(sensitive=False)
    anna = approver(recent=False)
    asked = asked_for(member("nora"))
    page = page_of(anna, asked)
    Scope.objects.filter(name="memory:write").update(sensitive=True)
    assert "/sign-in/again/" in decide(anna, asked, "approve", page)["Location"]
    assert Grant.objects.count() == 1


# --- what changed between page and click -----------------------------------------------------------------------------


def test_a_policy_that_changed_since_the_page_shows_the_page_again(world: World) -> None:
    anna = approver()
    asked = asked_for(member("nora"))
    page = page_of(anna, asked)
    grants.create(
        actor=Actor("command:x", ""), reason="x", client=None, scopes=[Scope.objects.get(name="memory:write")],
        effect="deny", modes=["background"],
    )  # fmt: skip
    again = decide(anna, asked, "approve", page)
    assert again.status_code == 200 and "The policy changed since you looked" in again.content.decode()
    assert Grant.objects.filter(effect="allow").count() == 1
    assert decide(anna, asked, "approve", again).status_code == 302
    assert decide(anna, asked, "approve", page).status_code == 200, "approved already"


@pytest.mark.parametrize(("what", "words"), [("tool", "memory.capture is retired"), ("client", "Claude is suspended")])
def test_what_is_out_of_use_by_now_is_said_and_not_approved(world: World, what: str, words: str) -> None:
    anna = approver()
    asked = asked_for(member("nora"), tool=Tool.objects.get(name="memory.capture").pk)
    page = page_of(anna, asked)
    if what == "tool":
        Tool.objects.update(status="retired")
    else:
        Client.objects.update(status="suspended")
    again = decide(anna, asked, "approve", page)
    assert words in again.content.decode()
    assert words in decide(anna, asked, "approve", again).content.decode()
    assert Grant.objects.count() == 1


def test_a_request_that_lapsed_between_page_and_click_is_not_approved(world: World) -> None:
    nora, anna = member("nora"), approver()
    asked = asked_for(nora)
    page = page_of(anna, asked)
    AccessRequest.objects.update(lapses_at=timezone.now() - timedelta(seconds=1))
    assert "has lapsed" in decide(anna, asked, "approve", page).content.decode()
    text = page_of(nora, asked).content.decode()
    assert (
        "Nobody decided in time." in text and f"{ASK}?client=claude&amp;effect=allow&amp;scope=memory%3Awrite" in text
    )
    assert [one.pk for one in anna.get(f"{LIST}?state=lapsed").context["cl"].result_list] == [asked.pk]
    assert not anna.get(LIST).context["cl"].result_list and Grant.objects.count() == 1


# --- a longer life ---------------------------------------------------------------------------------------------------


def held(days: int = 3) -> Grant:
    return grants.create(
        actor=Actor("command:x", ""), reason="x", client=Client.objects.get(),
        scopes=[Scope.objects.get(name="memory:write")], expires_at=timezone.now() + timedelta(days=days),
    )  # fmt: skip


def test_a_longer_life_of_a_sensitive_grant_is_asked_for_in_the_same_dialog(world: World) -> None:
    made, http = held(), manager()
    url = f"/admin/clients/grant/{made.pk}/act/extend/"
    text = http.get(url).content.decode()
    assert "A second person approves a later end:" in text and f'formaction="{ASK}"' in text
    refused = http.post(url, {"ends": "90", "reason": "it works"}).content.decode()
    assert "memory:write is sensitive" in refused and "it works</textarea>" in refused
    response = http.post(ASK, {"extends": made.pk, "ends": "90", "reason": "it works"})
    asked = AccessRequest.objects.get()
    assert response["Location"] == f"{LIST}{asked.pk}/change/" and asked.extends_id == made.pk
    anna = approver()
    assert f"/admin/clients/grant/{made.pk}/change/" in page_of(anna, asked).content.decode()
    assert decide(anna, asked, "approve").status_code == 302
    made.refresh_from_db()
    assert made.expires_at and made.expires_at - timezone.now() > timedelta(days=89)


def test_a_sooner_end_needs_nobody(world: World) -> None:
    made = held(200)
    url = f"/admin/clients/grant/{made.pk}/act/extend/"
    assert manager().post(url, {"ends": "90", "reason": "less"}).status_code == 302
    made.refresh_from_db()
    assert made.expires_at and made.expires_at - timezone.now() < timedelta(days=91)


def test_who_may_not_extend_asks_from_the_page_of_the_grant(world: World) -> None:
    made, nora = held(), member("nora", "clients.view_grant")
    text = nora.get(f"/admin/clients/grant/{made.pk}/change/").content.decode()
    assert f"{ASK}?extends={made.pk}" in text
    text = nora.get(f"{ASK}?extends={made.pk}").content.decode()
    assert "a second person decides" in text and "Claude can go on calling memory.capture" in text
    for other, words in [({"ends": "never"}, "Select a valid choice"), ({"reason": ""}, "required"),
                         ({"ends": "on", "expires_at": "2020-01-01T00:00"}, "in the past")]:  # fmt: skip
        answer = nora.post(ASK, {"extends": made.pk, "ends": "90", "reason": "more"} | other)
        assert words in answer.content.decode()
    for hostile in ("", "x", "9" * 30, "-1", "²", "0", "%00"):
        assert nora.get(f"{ASK}?extends={hostile}").status_code == 404
    assert not AccessRequest.objects.exists()


def test_a_duplicate_request_leads_to_the_one_that_waits(world: World) -> None:
    first = asked_for(member("nora"))
    text = ask(member("olga"), given("memory:write")).content.decode()
    assert f"Request {first.pk} asks for this already" in text and f"{LIST}{first.pk}/change/" in text


def test_what_is_not_sensitive_is_still_granted_directly(world: World) -> None:
    assert grant(manager(), given("memory:read", tenant="acme"), anyway="on").status_code == 302
    assert Grant.objects.count() == 2
    drained()


@pytest.mark.parametrize("number", ["0", "9" * 30, "9223372036854775808"])
def test_a_number_that_is_no_request_is_not_found(world: World, number: str) -> None:
    http = administrator()
    assert http.get(f"{LIST}{number}/change/").status_code == 302
    for step in ("decide", "withdraw"):
        assert http.post(f"{LIST}{number}/{step}/", {"decision": "approve"}).status_code == 404
    assert http.get(f"{ADD}?client=claude").status_code == 200
