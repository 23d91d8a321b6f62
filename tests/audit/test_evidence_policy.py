"""Grants, as a pack replays them from policy records: told in words, counted, and never a fault whatever is in them."""

from datetime import UTC, datetime
from typing import Any

import pytest

from audit.evidence.policy import Grants, time_of

NOW = datetime(2026, 6, 1, tzinfo=UTC)
PLAIN = {
    "id": 1,
    "effect": "allow",
    "client_id": 7,
    "tool_id": None,
    "modes": [],
    "revoked_at": None,
    "expires_at": None,
}


def change(table: str, key: int, op: str = "insert", **new: Any) -> dict[str, Any]:
    return {"table": table, "op": op, "key": str(key), "old": None, "new": {"id": key, **new} if new else None}


def replayed(*changes: dict[str, Any]) -> Grants:
    found = Grants()
    named = [change("clients_client", 7, slug="claude"), change("tools_scope", 5, name="memory:read"),
             change("tools_tool", 3, name="memory.recall")]  # fmt: skip
    found.take({"type": "policy", "changes": [*named, *changes]})
    return found


def grant(**more: Any) -> dict[str, Any]:
    return change("clients_grant", 1, **PLAIN | more)


READ = change("clients_grant_scopes", 9, grant_id=1, scope_id=5)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "claude may use memory:read for everyone"),
        ({"client_id": None}, "any client may use memory:read for everyone"),
        ({"effect": "deny"}, "claude must not use memory:read for everyone"),
        ({"effect": "deny", "client_id": None}, "no client may use memory:read for everyone"),
        ({"effect": "flag"}, "claude may use memory:read for everyone, each call marked for review"),
        ({"tool_id": 3, "role": "nurse", "tenant": "acme"},
         "claude may use memory:read in the tool memory.recall for the role nurse in tenant acme"),
        ({"modes": ["background"], "expires_at": "2027-01-31T00:00:00+00:00"},
         "claude may use memory:read in background mode, until 2027-01-31"),
        ({"subject_id": "usr_abcdefghijklmnop"}, "claude may use memory:read for user usr_abcdef…nop"),
        ({"client_id": 99}, "number 99 may use memory:read for everyone"),
    ],
)  # fmt: skip
def test_a_grant_is_told_in_words(more: dict[str, Any], words: str) -> None:
    assert replayed(grant(**more), READ).sentence(1) == words


def test_scopes_that_were_taken_away_and_grants_that_are_gone_are_not_told() -> None:
    assert (
        replayed(grant(), READ, change("clients_grant_scopes", 9, "delete"))
        .sentence(1)
        .startswith("claude may use any")
    )
    gone = replayed(grant(), READ, change("clients_grant", 1, "delete"))
    assert "not on record" in gone.sentence(1) and gone.in_force(NOW) == 0


@pytest.mark.parametrize(
    ("more", "number"),
    [
        ({}, 1), ({"revoked_at": "2026-05-01T00:00:00+00:00"}, 0), ({"revoked_at": "2026-07-01T00:00:00+00:00"}, 1),
        ({"expires_at": "2026-06-01T00:00:00+00:00"}, 0), ({"expires_at": "2026-06-01T00:00:01+00:00"}, 1),
        ({"starts_at": "2026-06-02T00:00:00+00:00"}, 0), ({"starts_at": "2026-06-01T00:00:00+00:00"}, 1),
    ],
)  # fmt: skip
def test_only_what_is_neither_revoked_nor_over_nor_yet_to_begin_is_in_force(more: dict[str, Any], number: int) -> None:
    assert replayed(grant(**more)).in_force(NOW) == number


@pytest.mark.parametrize(
    "value", [None, [], {}, "", "x", 0, -1, True, 10**15, [[1]], "9999-99-99", "10000-01-01T00:00Z"]
)
def test_no_value_that_a_forged_record_may_hold_is_a_fault(value: Any) -> None:
    columns = dict.fromkeys(("client_id", "tool_id", "modes", "effect", "role", "tenant", "subject_id"), value)
    times = dict.fromkeys(("revoked_at", "expires_at", "starts_at"), value)
    found = replayed(
        grant(**columns, **times), change("clients_grant_scopes", 9, grant_id=value, scope_id=value),
        {"table": value, "op": value, "key": value, "old": None, "new": None}, change("clients_client", 8, slug=value),
        {}, change("clients_grant_scopes", 10, "delete"),
    )  # fmt: skip
    assert isinstance(found.sentence(1), str) and found.in_force(NOW) in (0, 1)
    assert time_of(value) is None
