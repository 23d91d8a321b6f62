"""Requests: one asks, another decides, never oneself; time-boxed; two at once make one grant; every step recorded."""

from collections.abc import Callable
from datetime import timedelta
from threading import Thread
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from django.core.exceptions import PermissionDenied
from django.db import connections, transaction
from django.utils import timezone

from audit import details
from audit.models import Head, Outbox, Record, Subject
from audit.subjects import resolve
from clients import grants, proposals, requests
from clients.grants import Actor, GrantError, NeedsApproval, PolicyMoved, SecondPerson
from clients.models import AccessRequest, Client, Grant
from clients.proposals import Proposal
from clients.tasks import lapse_requests
from tests import world
from tests.staff import drained, newest, statement
from tests.world import World
from tools.models import Scope, Tool


@pytest.fixture
def made(db: None) -> World:
    """memory:write is sensitive, and memory:all implies it."""
    built = world.build()
    Scope.objects.filter(name="memory:write").update(sensitive=True)
    Scope.objects.create(name="memory:all").implies.add(scope("memory:write"))
    return built


def scope(name: str) -> Scope:
    return Scope.objects.get(name=name)


def person(name: str, *permissions: str, **more: Any) -> Any:
    user = get_user_model().objects.create_user(name, "", "correct horse battery", is_staff=True, **more)
    for permission in permissions:
        app, codename = permission.split(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    return user


def mara() -> Any:
    """Grants, and decides."""
    return person("mara", "clients.add_grant", "clients.change_grant", grants.DECIDE, first_name="Mara")


def anna() -> Any:
    """Decides."""
    return person("anna", grants.DECIDE, first_name="Anna")


def wanted(*names: str, **other: Any) -> Proposal:
    """Claude may use these scopes for 30 days."""
    members: dict[str, Any] = {
        "kind": "grant", "effect": "allow", "client": Client.objects.get(slug="claude"),
        "scopes": tuple(scope(name) for name in names or ["memory:write"]), "days": 30,
        "expires_at": timezone.now() + timedelta(days=30),
    } | other  # fmt: skip
    return Proposal(**members)


def create(actor: Any, *names: str, **other: Any) -> Grant:
    return grants.create(
        actor=actor, reason="trial", client=Client.objects.get(), scopes=[scope(name) for name in names], **other
    )


def at_once(first: Callable[[], object], second: Callable[[], object]) -> list[str]:
    """Run the second while the first, done, has not committed; what became of each."""
    outcomes: list[str] = []

    def other() -> None:
        try:
            second()
            outcomes.append("done")
        except (GrantError, PermissionDenied) as error:
            outcomes.append(str(error) or "forbidden")
        finally:
            connections.close_all()

    thread = Thread(target=other)
    with transaction.atomic():
        first()
        outcomes.append("done")
        thread.start()
        thread.join(0.4)
        assert thread.is_alive(), "the second waits for the first"
    thread.join(30)
    return outcomes


# --- a sensitive scope takes a second person -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["memory:write", "memory:all"])
@pytest.mark.parametrize("effect", ["allow", "flag"])
def test_staff_cannot_grant_a_sensitive_scope_by_themselves(made: World, name: str, effect: str) -> None:
    with pytest.raises(NeedsApproval, match="memory:write is sensitive") as refused:
        create(Actor.of(mara()), name, effect=effect)
    assert refused.value.scopes == ["memory:write"]
    assert Grant.objects.count() == 1 and made.verify("memory.capture")["reason"] == "not_granted"


def test_a_superuser_neither_and_psql_words_for_an_actor_do_not_help(made: World) -> None:
    root = get_user_model().objects.create_superuser("root", "", "correct horse battery")
    for actor in (Actor.of(root), Actor("backend:inner", ""), Actor("", ""), Actor("Command:x", "")):
        with pytest.raises(NeedsApproval):
            create(actor, "memory:write")


def test_what_is_not_sensitive_or_blocks_or_is_the_operators_needs_nobody(made: World) -> None:
    staff = Actor.of(mara())
    create(staff, "memory:read", tenant="acme")
    create(staff, "memory:write", effect="deny", tenant="acme")
    create(Actor("command:policy_apply", "deploy"), "memory:write", role="doctor")
    assert Grant.objects.count() == 4


def test_a_longer_life_takes_a_second_person_too_and_an_end_does_not(made: World) -> None:
    soon = timezone.now() + timedelta(days=5)
    grant = create(Actor("command:policy_apply", ""), "memory:write", expires_at=soon)
    staff = Actor.of(mara())
    for later in (soon + timedelta(days=1), None):
        with pytest.raises(NeedsApproval):
            grants.extend(grant, actor=staff, reason="more", expires_at=later)
    grants.extend(grant, actor=staff, reason="less", expires_at=soon - timedelta(days=1))
    grants.revoke(grant, actor=staff, reason="over")
    assert Grant.objects.get(pk=grant.pk).revoked_at is not None


# --- from asking to the grant ----------------------------------------------------------------------------------------


def test_an_approval_allows_the_very_next_call_and_says_who_and_why(made: World) -> None:
    asker, approver = mara(), anna()
    asked = requests.ask(asker, wanted(), "pilot with 40 users")
    assert made.verify("memory.capture")["reason"] == "not_granted", "asking changes nothing"
    done = requests.approve(asked.pk, approver, answer="fine for a month")
    assert made.verify("memory.capture")["reason"] == "granted"
    grant = Grant.objects.get(pk=done.grant_id)
    assert (grant.reason, grant.created_by) == ("pilot with 40 users", "Anna")
    assert grant.expires_at and timedelta(days=29) < grant.expires_at - timezone.now() <= timedelta(days=30)
    row = Outbox.objects.filter(table_name="clients_grant").latest("id")
    assert row.actor == f"staff:{approver.pk}"
    drained()
    told = [statement(r) for r in Record.objects.filter(type="request").order_by("at")]
    assert [one["action"] for one in told] == ["request.ask", "request.approve"]
    assert [one["actor"] for one in told] == [f"staff:{asker.pk}", f"staff:{approver.pk}"]
    for one in told:
        assert (one["request"], one["client"], one["scopes"]) == (asked.pk, "claude", ["memory:write"])
        assert "pilot" not in str(one) and "Anna" not in str(one) and "month" not in str(one)
    assert told[1]["grant"] == grant.pk


def test_the_policy_record_names_the_request(made: World) -> None:
    asked = requests.ask(mara(), wanted(), "pilot")
    requests.approve(asked.pk, anna())
    drained()
    record = Record.objects.filter(type="policy").latest("at")
    told = details.opened(record, statement(record)).members
    assert (told["reason"], told["actor_name"]) == (f"Request {asked.pk}: pilot", "Anna")


def test_a_longer_life_is_asked_for_and_approved(made: World) -> None:
    soon = timezone.now() + timedelta(days=2)
    grant = create(Actor("command:policy_apply", ""), "memory:write", expires_at=soon)
    later = timezone.now() + timedelta(days=90)
    asked = requests.ask(mara(), proposals.to_extend(grant, later, 90), "it works well")
    requests.approve(asked.pk, anna())
    grant.refresh_from_db()
    assert grant.expires_at and abs(grant.expires_at - later) < timedelta(minutes=1)
    assert AccessRequest.objects.get().grant_id == grant.pk and Grant.objects.count() == 2


def test_a_rejection_says_why_and_grants_nothing(made: World) -> None:
    asked = requests.ask(mara(), wanted(), "pilot")
    approver = anna()
    with pytest.raises(GrantError, match="reason is needed"):
        requests.reject(asked.pk, approver, answer="  ")
    requests.reject(asked.pk, approver, answer="not before the review")
    asked.refresh_from_db()
    assert (asked.status, asked.answer, asked.decided_by_name) == ("rejected", "not before the review", "Anna")
    for again in (requests.approve, lambda *given: requests.reject(*given, answer="no")):
        with pytest.raises(GrantError, match="was rejected by Anna already"):
            again(asked.pk, approver)
    assert made.verify("memory.capture")["reason"] == "not_granted"


def test_who_asked_may_withdraw_and_nobody_else(made: World) -> None:
    asker, approver = mara(), anna()
    asked = requests.ask(asker, wanted(), "pilot")
    with pytest.raises(PermissionDenied):
        requests.withdraw(asked.pk, approver)
    requests.withdraw(asked.pk, asker)
    with pytest.raises(GrantError, match="was withdrawn"):
        requests.approve(asked.pk, approver)


def test_every_member_of_staff_may_ask_and_nobody_else(made: World) -> None:
    requests.ask(person("nora"), wanted(), "I need it")
    outsider = get_user_model().objects.create_user("olaf", "", "correct horse battery")
    gone = person("gert")
    get_user_model().objects.filter(pk=gone.pk).update(is_active=False)
    for user in (outsider, gone):
        with pytest.raises(PermissionDenied):
            requests.ask(user, wanted("memory:all"), "me too")


# --- never oneself ---------------------------------------------------------------------------------------------------


def test_nobody_decides_on_their_own_request_a_superuser_neither(made: World) -> None:
    root = get_user_model().objects.create_superuser("root", "", "correct horse battery")
    for asker in (mara(), root):
        asked = requests.ask(asker, wanted(role=asker.username), "for me")
        with pytest.raises(GrantError, match="You asked for this yourself"):
            requests.approve(asked.pk, asker)
        with pytest.raises(GrantError, match="You asked for this yourself"):
            requests.reject(asked.pk, asker, answer="no")
    assert AccessRequest.objects.filter(status="waiting").count() == 2


@pytest.mark.parametrize("own", ["withdrawn", "rejected", "lapsed"])
def test_who_asked_for_the_same_of_late_does_not_approve_it_for_another(made: World, own: str) -> None:
    asker, accomplice = mara(), person("bob")
    first = requests.ask(asker, wanted(), "please")
    AccessRequest.objects.filter(pk=first.pk).update(status=own)
    second = requests.ask(accomplice, wanted(), "as Mara says")
    with pytest.raises(GrantError, match=f"You asked for the same in request {first.pk}"):
        requests.approve(second.pk, asker)
    requests.approve(second.pk, anna())


def test_what_they_asked_for_long_ago_or_differently_is_no_hindrance(made: World) -> None:
    asker = mara()
    first = requests.ask(asker, wanted(), "please")
    long_ago = timezone.now() - timedelta(days=60)
    AccessRequest.objects.filter(pk=first.pk).update(asked_at=long_ago, lapses_at=long_ago + timedelta(days=14))
    requests.ask(asker, wanted(tenant="acme"), "elsewhere")
    second = requests.ask(person("bob"), wanted(), "please")
    requests.approve(second.pk, asker)


def test_only_who_may_decide_decides(made: World) -> None:
    asked = requests.ask(mara(), wanted(), "pilot")
    manager = person("mia", "clients.add_grant", "clients.change_grant")
    outside = person("otto", grants.DECIDE)
    get_user_model().objects.filter(pk=outside.pk).update(is_staff=False)
    for user in (manager, outside):
        with pytest.raises(PermissionDenied):
            requests.approve(asked.pk, user)
    assert AccessRequest.objects.get().status == "waiting"


def test_a_second_person_exists_only_within_the_transaction_that_decides(made: World) -> None:
    asked = requests.ask(mara(), wanted(), "pilot")
    with pytest.raises(RuntimeError):
        SecondPerson(asked.pk, anna())


# --- what is approved is what was asked for, or shorter --------------------------------------------------------------


def test_an_approver_may_shorten_and_not_lengthen(made: World) -> None:
    approver = anna()
    asked = requests.ask(mara(), wanted(), "pilot")
    with pytest.raises(GrantError, match="not later"):
        requests.approve(asked.pk, approver, expires_at=timezone.now() + timedelta(days=31))
    sooner = timezone.now() + timedelta(days=7)
    requests.approve(asked.pk, approver, expires_at=sooner)
    assert Grant.objects.latest("pk").expires_at == sooner


@pytest.mark.parametrize(
    "other",
    [
        {"scopes": ["memory:all"]}, {"client": None}, {"tenant": "acme"}, {"effect": "flag"}, {"modes": ["api"]},
        {"starts_at": timezone.now() + timedelta(days=1)},
    ],
)  # fmt: skip
def test_an_approval_is_of_nothing_else(made: World, other: dict[str, Any]) -> None:
    asked = requests.ask(mara(), wanted(), "pilot")
    approver = anna()
    members = wanted().members() | {"expires_at": timezone.now() + timedelta(days=3)} | other
    if "scopes" in other:
        members["scopes"] = [scope(name) for name in other["scopes"]]
    with pytest.raises(GrantError, match="not what was asked for"), transaction.atomic():
        approval = SecondPerson(asked.pk, approver)
        grants.create(actor=approval.actor, reason="x", approval=approval, **members)
    with pytest.raises(GrantError, match="Somebody else approved"), transaction.atomic():
        grants.create(
            actor=Actor("staff:99", "x"), reason="x", approval=SecondPerson(asked.pk, approver), **wanted().members()
        )
    with pytest.raises(GrantError, match="not what was asked for"), transaction.atomic():
        approval = SecondPerson(asked.pk, approver)
        later = timezone.now() + timedelta(days=3)
        grants.extend(made.grant, actor=approval.actor, reason="x", expires_at=later, approval=approval)
    assert Grant.objects.count() == 1


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"days": None, "expires_at": None}, "until when"),
        ({"days": 0}, "at least a day"),
        ({"days": 10**6}, "at least a day"),
        ({"days": None, "expires_at": timezone.now() - timedelta(days=1)}, "in the past"),
        ({"scopes": ()}, "at least one scope"),
        ({"role": "x" * 300}, "at most 255"),
        ({"tenant": "a\x00b"}, "printable"),
        ({"modes": ("robot",)}, "Agent modes"),
    ],
)
def test_nonsense_cannot_be_asked_for(made: World, other: dict[str, Any], words: str) -> None:
    with pytest.raises(GrantError, match=words):
        requests.ask(mara(), wanted(**other), "pilot")
    with pytest.raises(GrantError, match="reason"):
        requests.ask(anna(), wanted(), " ")
    assert not AccessRequest.objects.exists()


def test_what_is_asked_for_is_told_whole_in_the_log(made: World) -> None:
    many = Scope.objects.bulk_create(Scope(name=f"{number:0128}") for number in range(201))
    with pytest.raises(GrantError, match="at most 200"):
        requests.ask(mara(), wanted(scopes=tuple(many)), "pilot")
    requests.ask(anna(), wanted(scopes=tuple(many[:200])), "pilot")
    told = newest("request")
    assert told["action"] == "request.ask" and told["scopes"] == [one.name for one in many[:200]]


def test_the_same_is_not_asked_for_twice_at_once(made: World) -> None:
    requests.ask(mara(), wanted(), "pilot")
    with pytest.raises(GrantError, match="asks for this already") as refused:
        requests.ask(anna(), wanted(), "pilot")
    assert refused.value.request == AccessRequest.objects.get().pk
    requests.ask(person("bob"), wanted(tenant="acme"), "pilot")


def test_nobody_fills_the_list_alone(made: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MOST_WAITING", 2)
    asker = mara()
    for tenant in ("a", "b"):
        requests.ask(asker, wanted(tenant=tenant), "pilot")
    with pytest.raises(GrantError, match="wait already"):
        requests.ask(asker, wanted(tenant="c"), "pilot")
    requests.ask(anna(), wanted(tenant="c"), "pilot")


def test_what_is_active_already_or_lasts_longer_is_not_asked_for(made: World) -> None:
    with pytest.raises(GrantError, match="says the same"):
        requests.ask(mara(), wanted("memory:read"), "pilot")
    with pytest.raises(GrantError, match="does not end before"):
        requests.ask(anna(), proposals.to_extend(made.grant, timezone.now() + timedelta(days=1), 1), "longer")


# --- lapsing ---------------------------------------------------------------------------------------------------------


def test_a_request_that_nobody_decides_lapses_at_once_and_is_marked_and_recorded(made: World) -> None:
    approver = anna()
    asked = requests.ask(mara(), wanted(), "pilot")
    assert timedelta(days=13) < asked.lapses_at - timezone.now() <= timedelta(days=14)
    assert lapse_requests() == 0 and requests.state(asked) == "waiting" and requests.waiting_for(approver) == 1
    AccessRequest.objects.update(lapses_at=timezone.now() - timedelta(seconds=1))
    asked.refresh_from_db()
    assert requests.state(asked) == "lapsed" and requests.waiting_for(approver) == 0
    with pytest.raises(GrantError, match="has lapsed"):
        requests.approve(asked.pk, approver)
    assert lapse_requests() == 1 and lapse_requests() == 0
    assert AccessRequest.objects.get().status == "lapsed"
    drained()
    told = statement(Record.objects.filter(type="request").latest("at"))
    assert (told["action"], told["actor"], told["request"]) == ("request.lapse", "system", asked.pk)
    requests.ask(person("bob"), wanted(), "again")


# --- at once ---------------------------------------------------------------------------------------------------------


def test_two_approvers_at_once_make_one_grant(made: World) -> None:
    asked = requests.ask(mara(), wanted(), "pilot")
    first, second = anna(), person("ben", grants.DECIDE)
    outcomes = at_once(lambda: requests.approve(asked.pk, first), lambda: requests.approve(asked.pk, second))
    assert outcomes == ["done", f"Request {asked.pk} was approved by Anna already."]
    assert Grant.objects.filter(scopes__name="memory:write").count() == 1
    assert AccessRequest.objects.get().decided_by_name == "Anna"


def test_who_withdraws_while_another_approves_is_told_which_came_first(made: World) -> None:
    asker, approver = mara(), anna()
    asked = requests.ask(asker, wanted(), "pilot")
    outcomes = at_once(lambda: requests.withdraw(asked.pk, asker), lambda: requests.approve(asked.pk, approver))
    assert outcomes == ["done", f"Request {asked.pk} was withdrawn by Mara already."]
    assert Grant.objects.count() == 1


def test_what_lapses_while_somebody_decides_is_not_granted(made: World) -> None:
    approver = anna()
    asked = requests.ask(mara(), wanted(), "pilot")
    late = {"lapses_at": timezone.now() - timedelta(seconds=1)}
    outcomes = at_once(
        lambda: AccessRequest.objects.filter(pk=asked.pk).update(**late), lambda: requests.approve(asked.pk, approver)
    )
    assert outcomes[0] == "done" and "has lapsed" in outcomes[1]
    assert Grant.objects.count() == 1


def test_a_role_that_is_taken_away_while_they_wait_counts(made: World) -> None:
    asked = requests.ask(mara(), wanted(), "pilot")
    approver = person("ada")
    group = Group.objects.get(name="Approver")
    approver.groups.add(group)
    assert approver.has_perm(grants.DECIDE), "known to be allowed, and remembered"

    def taken() -> None:
        AccessRequest.objects.select_for_update().get(pk=asked.pk)
        get_user_model().objects.get(pk=approver.pk).groups.clear()

    assert at_once(taken, lambda: requests.approve(asked.pk, approver)) == ["done", "forbidden"]
    assert Grant.objects.count() == 1


def test_two_who_ask_for_the_same_at_once_ask_once(made: World) -> None:
    first, second = mara(), anna()
    outcomes = at_once(lambda: requests.ask(first, wanted(), "a"), lambda: requests.ask(second, wanted(), "b"))
    assert outcomes[0] == "done" and "asks for this already" in outcomes[1]
    assert AccessRequest.objects.count() == 1


# --- what changed meanwhile ------------------------------------------------------------------------------------------


def test_what_was_retired_suspended_or_erased_meanwhile_is_not_approved(made: World) -> None:
    approver, asker = anna(), mara()
    capture = Tool.objects.get(name="memory.capture")
    subject = Subject.objects.get(uid=resolve(world.ISSUER, "alice"))
    asked = requests.ask(asker, wanted(tool=capture, subject=subject), "pilot")
    for change, back, words in [
        (lambda: Tool.objects.update(status="retired"), lambda: Tool.objects.update(status="active"), "retired"),
        (lambda: Tool.objects.update(status="suspended"), lambda: Tool.objects.update(status="active"), "suspended"),
        (lambda: Client.objects.update(status="suspended"), lambda: Client.objects.update(status="active"), "suspend"),
    ]:
        change()
        with pytest.raises(GrantError, match=words):
            requests.approve(asked.pk, approver)
        back()
    requests.approve(asked.pk, approver)
    assert made.verify("memory.capture")["reason"] == "granted"


def test_what_became_sensitive_meanwhile_is_approved_as_such(made: World) -> None:
    Scope.objects.update(sensitive=False)
    approver = anna()
    asked = requests.ask(mara(), wanted(), "pilot")
    Scope.objects.filter(name="memory:write").update(sensitive=True)
    requests.approve(asked.pk, approver)
    assert made.verify("memory.capture")["reason"] == "granted"


def test_what_somebody_granted_or_blocked_meanwhile_is_not_approved(made: World) -> None:
    approver = anna()
    asked = requests.ask(mara(), wanted(), "pilot")
    operator = Actor("command:policy_apply", "")
    granted = create(operator, "memory:write")
    with pytest.raises(GrantError, match=f"Grant {granted.pk} says the same"):
        requests.approve(asked.pk, approver)
    grants.revoke(granted, actor=operator, reason="over")
    block = create(operator, "memory:write", "memory:read", effect="deny")
    with pytest.raises(GrantError, match=f"Block {block.pk} forbids this to everybody"):
        requests.approve(asked.pk, approver)
    grants.revoke(block, actor=operator, reason="over")
    requests.approve(asked.pk, approver)


def test_a_grant_that_was_revoked_or_lasts_longer_meanwhile_is_not_extended(made: World) -> None:
    approver, asker, operator = anna(), mara(), Actor("command:policy_apply", "")
    soon = timezone.now() + timedelta(days=2)
    grant = create(operator, "memory:write", expires_at=soon)
    asked = requests.ask(asker, proposals.to_extend(grant, timezone.now() + timedelta(days=30), 30), "more")
    grants.extend(grant, actor=operator, reason="much more", expires_at=None)
    with pytest.raises(GrantError, match="does not end before"):
        requests.approve(asked.pk, approver)
    grants.revoke(grant, actor=operator, reason="over")
    with pytest.raises(GrantError, match="revoked"):
        requests.approve(asked.pk, approver)
    assert made.verify("memory.capture")["reason"] == "not_granted"


def test_what_waits_for_whom(made: World) -> None:
    asker, approver, bystander = mara(), anna(), person("bob")
    requests.ask(asker, wanted(), "pilot")
    requests.ask(bystander, wanted(tenant="acme"), "pilot")
    assert [requests.waiting_for(user) for user in (asker, approver, bystander)] == [1, 2, 0]


def test_an_approval_holds_for_the_policy_that_was_looked_at(made: World) -> None:
    version = Head.objects.get().policy
    asked = requests.ask(mara(), wanted(), "pilot")
    assert Head.objects.get().policy == version, "a wish is no policy"
    create(Actor("command:x", ""), "memory:write", tenant="acme", effect="deny")
    approver = anna()
    with pytest.raises(PolicyMoved):
        requests.approve(asked.pk, approver, version=version)
    asked.refresh_from_db()
    assert asked.status == "waiting" and Grant.objects.count() == 2
    requests.approve(asked.pk, approver, version=version + 1)
