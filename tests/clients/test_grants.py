"""Grants: one writer; who and why are on record; no two active ones are the same; revoked is for good."""

from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from audit.models import Head, Outbox, Subject
from audit.subjects import resolve
from clients import grants
from clients.grants import Actor, GrantError, PolicyMoved
from clients.models import Client, Grant
from tests import world
from tests.world import World
from tools.models import Scope, Tool

STAFF = Actor("staff:7", "carol")


@pytest.fixture
def made(db: None) -> World:
    return world.build()


def scope(name: str) -> Scope:
    return Scope.objects.get(name=name)


def create(**members: Any) -> Grant:
    given: dict[str, Any] = {"actor": STAFF, "reason": "trial", "client": Client.objects.get(), "scopes": []}
    return grants.create(**given | members)


def test_a_grant_says_who_and_why_in_the_outbox_in_one_version(made: World) -> None:
    before = Outbox.objects.count()
    grant = create(scopes=[scope("memory:write")], reason="  trial of\nwriting ")
    rows = list(Outbox.objects.order_by("id")[before:])
    assert {row.table_name for row in rows} == {"clients_grant", "clients_grant_scopes"}
    assert len({row.version for row in rows}) == 1
    assert {row.actor for row in rows} == {"staff:7"}
    assert all(row.private == {"actor_name": "carol", "reason": "trial of\nwriting"} for row in rows)
    assert grant.reason == "trial of\nwriting" and grant.created_by == "carol"


def test_a_grant_allows_and_its_revocation_denies_the_very_next_call(made: World) -> None:
    assert made.verify("memory.capture")["reason"] == "not_granted"
    grant = create(scopes=[scope("memory:write")])
    assert made.verify("memory.capture")["reason"] == "granted"
    grants.revoke(grant, actor=STAFF, reason="over")
    assert made.verify("memory.capture")["reason"] == "not_granted"
    assert Grant.objects.get(pk=grant.pk).revoked_at is not None


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"reason": "another"},
        {"expires_at": datetime(2999, 1, 1, tzinfo=UTC)},
        {"starts_at": datetime(2990, 1, 1, tzinfo=UTC)},
    ],
)
def test_the_same_grant_but_for_reason_and_dates_is_refused(made: World, more: dict[str, Any]) -> None:
    create(scopes=[scope("memory:write")], tenant="acme", modes=["api", "subagent"])
    with pytest.raises(GrantError, match="already says this"):
        create(scopes=[scope("memory:write")], tenant="acme", modes=["subagent", "api", "api"], **more)
    assert Grant.objects.count() == 2


@pytest.mark.parametrize(
    "other",
    [
        {"effect": "flag"}, {"client": None}, {"role": "doctor"}, {"tenant": "acme"}, {"modes": ["api"]},
        {"tool": "memory.recall"}, {"subject": "alice"}, {"scopes": ["memory:read", "memory:write"]},
    ],
)  # fmt: skip
def test_a_grant_that_differs_in_anything_else_is_another_grant(made: World, other: dict[str, Any]) -> None:
    create(scopes=[scope("memory:write")])
    if "tool" in other:
        other = {"tool": Tool.objects.get(name=other["tool"])}
    if "subject" in other:
        other = {"subject": Subject.objects.get(uid=resolve(world.ISSUER, "alice"))}
    if "scopes" in other:
        other = {"scopes": [scope(name) for name in other["scopes"]]}
    create(**{"scopes": [scope("memory:write")]} | other)
    assert Grant.objects.count() == 3


def test_a_revoked_or_expired_grant_does_not_stand_in_the_way(made: World) -> None:
    first = create(scopes=[scope("memory:write")])
    grants.revoke(first, actor=STAFF, reason="over")
    second = create(scopes=[scope("memory:write")])
    Grant.objects.filter(pk=second.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    third = create(scopes=[scope("memory:write")])
    assert len({first.pk, second.pk, third.pk}) == 3
    with pytest.raises(GrantError, match=f"Grant {third.pk} already"):
        grants.extend(second, actor=STAFF, reason="again", expires_at=None)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "at least one scope"),
        ({"effect": "flag"}, "at least one scope"),
        ({"effect": "permit", "scopes": ["memory:write"]}, "effect"),
        ({"reason": " \n", "scopes": ["memory:write"]}, "reason is needed"),
        ({"reason": "x" * 501, "scopes": ["memory:write"]}, "longer than"),
        ({"reason": "a\x00b", "scopes": ["memory:write"]}, "cannot be printed"),
        ({"modes": ["robot"], "scopes": ["memory:write"]}, "Agent modes"),
        ({"role": "x" * 256, "scopes": ["memory:write"]}, "role"),
        ({"tenant": "  ", "scopes": ["memory:write"]}, "tenant"),
        ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC), "scopes": ["memory:write"]}, "in the past"),
        ({"expires_at": datetime(2999, 1, 1), "scopes": ["memory:write"]}, "time zone"),
        (
            {"starts_at": datetime(2999, 1, 2, tzinfo=UTC), "expires_at": datetime(2999, 1, 1, tzinfo=UTC),
             "scopes": ["memory:write"]}, "before it starts",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_words(made: World, members: dict[str, Any], words: str) -> None:
    if "scopes" in members:
        members = members | {"scopes": [scope(name) for name in members["scopes"]]}
    with pytest.raises(GrantError, match=words):
        create(**members)
    assert Grant.objects.count() == 1


def test_a_grant_may_name_a_tool_instead_of_scopes_and_a_deny_may_name_nothing(made: World) -> None:
    assert create(tool=Tool.objects.get(name="memory.recall")).scopes.count() == 0
    assert create(effect="deny").scopes.count() == 0
    assert made.verify()["reason"] == "grant_denied"


def test_extending_moves_the_end_and_brings_an_expired_grant_back(made: World) -> None:
    Grant.objects.update(expires_at=timezone.now() - timedelta(hours=1))
    assert made.verify()["reason"] == "not_granted"
    later = timezone.now() + timedelta(days=1)
    grants.extend(made.grant, actor=STAFF, reason="one more day", expires_at=later)
    assert made.grant.expires_at == later
    assert made.verify()["reason"] == "granted"
    row = Outbox.objects.filter(table_name="clients_grant").order_by("id").last()
    assert row is not None and row.actor == "staff:7" and row.operation == "update"


def test_a_revoked_grant_stays_revoked(made: World) -> None:
    grants.revoke(made.grant, actor=STAFF, reason="over")
    for again in (
        lambda: grants.revoke(made.grant, actor=STAFF, reason="over"),
        lambda: grants.extend(made.grant, actor=STAFF, reason="no", expires_at=None),
    ):
        with pytest.raises(GrantError, match="revoked already"):
            again()


def test_two_who_make_the_same_grant_at_once_make_one(made: World) -> None:
    outcomes: list[str] = []

    def second() -> None:
        try:
            create(scopes=[scope("memory:write")])
            outcomes.append("made")
        except GrantError:
            outcomes.append("refused")
        finally:
            connections.close_all()

    other = Thread(target=second)
    with transaction.atomic():
        create(scopes=[scope("memory:write")])
        other.start()
        other.join(0.5)
        assert other.is_alive() and not connection.needs_rollback, "the second waits for the first"
    other.join(30)
    assert outcomes == ["refused"]
    assert Grant.objects.filter(scopes__name="memory:write").count() == 1


def test_what_was_seen_under_another_policy_is_not_saved(made: World) -> None:
    version = Head.objects.get().policy
    create(scopes=[scope("memory:write")])
    with pytest.raises(PolicyMoved), transaction.atomic():
        create(scopes=[scope("memory:write")], tenant="acme")
        grants.only_at(version)
    assert Grant.objects.count() == 2 and Head.objects.get().policy == version + 1
    with transaction.atomic():
        create(scopes=[scope("memory:write")], tenant="acme")
        grants.only_at(version + 1)
    assert Head.objects.get().policy == version + 2
    assert made.verify("memory.capture")["reason"] == "granted"


def test_a_change_that_commits_while_another_is_saved_is_noticed(made: World) -> None:
    version = Head.objects.get().policy
    outcomes: list[str] = []

    def second() -> None:
        try:
            with transaction.atomic():
                create(scopes=[scope("memory:write")], tenant="b")
                grants.only_at(version)
            outcomes.append("made")
        except PolicyMoved:
            outcomes.append("moved")
        finally:
            connections.close_all()

    other = Thread(target=second)
    with transaction.atomic():
        create(scopes=[scope("memory:write")], tenant="a")
        grants.only_at(version)  # holds the head
        other.start()
        other.join(0.5)
        assert other.is_alive(), "the second waits for the first"
    other.join(30)
    assert outcomes == ["moved"] and Grant.objects.count() == 2
