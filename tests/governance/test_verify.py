"""POST /v1/verify, end to end in one process: real keys, real database, real recorder."""

import time
from datetime import timedelta

import psycopg
import pytest
from django.utils import timezone

from audit.models import Record, Subject
from audit.protection import keyring
from muniment import statements
from tests.world import World, build, token


@pytest.fixture
def world(db: None) -> World:
    return build()


def test_a_granted_call_is_allowed_and_recorded(world: World) -> None:
    answer = world.verify()
    assert (answer["decision"], answer["reason"], answer["status"]) == ("allow", "granted", 200)
    record = Record.objects.get(id=answer["record"])
    assert (record.client, record.tool, record.subject) == (
        "claude",
        "memory.recall",
        answer["subject"]["uid"],
    )


def test_a_revoked_grant_denies_the_very_next_call(world: World) -> None:
    assert world.verify()["decision"] == "allow"
    world.grant.delete()
    answer = world.verify()
    assert (answer["decision"], answer["reason"], answer["status"]) == ("deny", "not_granted", 403)


def test_a_forged_token_is_a_recorded_denial(world: World) -> None:
    forged = token()[:-8] + "AAAAAAAA"
    answer = world.verify(token=forged)
    assert (answer["decision"], answer["reason"], answer["status"]) == ("deny", "token_invalid", 401)
    assert Record.objects.get(id=answer["record"]).subject is None


@pytest.mark.parametrize("remembered", [True, False])
def test_an_erased_user_who_returns_is_a_new_one(world: World, owner_url: str, remembered: bool) -> None:
    before = world.verify()["subject"]["uid"]
    with psycopg.connect(owner_url, autocommit=True) as owner:
        owner.execute(
            "UPDATE audit_subject SET identity_key = NULL, sub = NULL, email = NULL, email_key = NULL,"
            " erased_at = now()"
        )
        owner.execute("DELETE FROM audit_datakey WHERE holder = %s", [before])
    if not remembered:
        keyring.clear()
    answer = world.verify()
    assert answer["decision"] == "allow"
    assert answer["subject"]["uid"] != before


def test_a_blocked_user_is_refused_at_the_next_call_and_served_again_later(world: World) -> None:
    version = world.verify()["policy_version"]
    Subject.objects.update(blocked_at=timezone.now())
    answer = world.verify()
    assert (answer["reason"], answer["status"], answer["remedy"]) == ("subject_blocked", 403, "none")
    assert answer["policy_version"] == version
    Subject.objects.update(blocked_at=None)
    assert world.verify()["decision"] == "allow"


def test_signing_a_user_out_refuses_older_tokens_alone(world: World) -> None:
    old = token(iat=int(time.time()) - 100)
    assert world.verify(token=old)["decision"] == "allow"
    Subject.objects.update(signed_out_at=timezone.now() - timedelta(seconds=50))
    assert world.verify(token=old)["reason"] == "token_expired"
    assert world.verify(token=token())["decision"] == "allow"


def test_the_statement_names_nobody(world: World) -> None:
    answer = world.verify(
        request={
            "id": "req-77",
            "ip": "203.0.113.9",
            "user_agent": "agent/1",
            "session_id": "session-1",
            "trace_id": "trace-1",
        },
        resource={"type": "memory", "id": "m-55"},
    )
    record = Record.objects.get(id=answer["record"])
    for secret in ("alice", "req-77", "203.0.113.9", "agent/1", "session-1", "trace-1", "m-55"):
        assert secret.encode() not in bytes(record.statement) + bytes(record.disclosures or b"")
    assert statements.decode(bytes(record.statement))["subject"] == answer["subject"]["uid"]


def test_agents_are_recorded_in_their_order(world: World) -> None:
    chained = token(act={"sub": "reader", "act": {"sub": "planner"}})
    answer = world.verify(token=chained, agent={"mode": "subagent", "chain": ["outer"], "scopes": ["memory:read"]})
    agent = statements.decode(bytes(Record.objects.get(id=answer["record"]).statement))["agent"]
    assert agent == {"mode": "subagent", "chain": ["outer", "planner", "reader"], "scopes": ["memory:read"]}
    narrowed = world.verify(agent={"mode": "subagent", "scopes": []})
    assert narrowed["reason"] == "delegation_exceeded"
