"""Records as OCSF events: what the schema asks, what a SIEM's rules ask, and nothing about a person."""

import json
import time
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from audit import ocsf
from audit.models import Record
from audit.reasons import REASONS
from audit.record_words import TYPES
from muniment import merkle
from tests import world
from tests.audit.ocsf_rules import faults
from tests.staff import drained

ID = UUID("019a0000-0000-7000-8000-000000000001")
AT = datetime(2026, 3, 2, 9, 0, 0, 123456, tzinfo=UTC)
COLUMNS: dict[str, Any] = {"id": ID, "index": 7, "at": AT, "leaf": b"\x01" * 32}
CALL: dict[str, Any] = {
    "type": "decision", "backend": "inner", "client": "claude", "client_id": "claude-app", "tenant": "acme",
    "issuer": "https://id.example/", "subject": "usr_1", "tool": "memory.recall", "decision": "allow",
    "reason": "granted", "policy": {"version": 42, "digest": "00"}, "required": ["memory:read"], "grants": [3],
    "agent": {"mode": "interactive", "chain": ["planner"], "scopes": None}, "access": "read", "sensitive": False,
    "flagged": False, "parent": None,
}  # fmt: skip
STATEMENTS: dict[str, dict[str, Any]] = {
    "allow": CALL,
    "deny": CALL | {"decision": "deny", "reason": "not_granted", "access": "write"},
    "nobody": {"type": "decision", "backend": "inner", "tool": "x", "decision": "deny", "reason": "token_missing",
               "client": None, "client_id": None, "issuer": None, "subject": None, "tenant": None, "access": None},
    "evaluation": CALL | {"type": "evaluation", "asserted": True},
    "introspection": {"type": "introspection", "backend": "inner", "subject": "usr_1", "active": True},
    "outcome": {"type": "outcome", "parent": str(ID), "backend": "inner", "client": "claude", "subject": "usr_1",
                "tool": "memory.recall", "tenant": None, "outcome": {"status": "error", "count": 2, "duration_ms": 5}},
    "ungoverned": {"type": "ungoverned", "claimed": True, "backend": "inner", "tool": "t", "cause": "timeout",
                   "client": None, "subject": None, "issuer": None},
    "denials": {"type": "denials", "backend": "inner", "counts": {"over_budget": 40, "token_invalid": 2}},
    "policy": {"type": "policy", "policy": {"version": 43, "digest": None}, "actor": "staff:5", "role": "serving",
               "changes": [{"table": "clients_grant", "op": "insert", "key": "9", "old": None, "new": {}}]},
    "staff": {"type": "staff", "action": "personal.view", "actor": "staff:5", "subject": "usr_1", "role": "serving"},
    "retention": {"type": "retention", "action": "deleted", "actor": "system", "ranges": [[0, 10]], "held": 1},
    "erasure": {"type": "erasure", "action": "erased", "actor": "staff:5", "subject": "usr_1", "holder": "usr_1"},
    "notice": {"type": "notice", "action": "alert.raised", "alert": "sealer-halted", "actor": "system"},
    "key": {"type": "key", "action": "key.published", "use": "writer", "actor": "system"},
    "unheard-of": {"type": "tomorrow", "actor": "database:somebody"},
    "gone": {},
}  # fmt: skip


def event(**members: Any) -> dict[str, Any]:
    return ocsf.event(COLUMNS, CALL | members, "muniment.test/log")


@pytest.mark.parametrize("kind", STATEMENTS)
def test_each_type_of_record_is_an_event_that_the_schema_allows(kind: str) -> None:
    statement = STATEMENTS[kind]
    made = ocsf.event(COLUMNS, statement, "muniment.test/log")
    assert faults(made) == []
    row = (ID, 7, AT, b"\x01" * 32, json.dumps(statement).encode())
    assert json.loads(ocsf.line(row, "muniment.test/log")) == made


def test_every_type_that_the_platform_knows_is_an_event() -> None:
    for kind in sorted(TYPES):
        assert faults(ocsf.event(COLUMNS, {"type": kind}, "o")) == []


def test_the_rules_find_what_is_wrong() -> None:
    for broken, fault in [
        ({"activity_id": 5}, "activity_id is 5"), ({"src_endpoint": {}}, "src_endpoint has none"),
        ({"type_uid": 600301}, "type_uid is not"), ({"time": "now"}, "time is no int"), ({"user": 1}, "no member user"),
        ({"severity": "High"}, "severity is 'High'"), ({"actor": {"user": {"name": ""}}}, "actor.user has none"),
    ]:  # fmt: skip
        assert any(one.startswith(fault) for one in faults(event() | broken)), broken
    assert "event lacks api" in faults({name: value for name, value in event().items() if name != "api"})


def test_a_call_says_who_did_what_where_and_what_was_decided() -> None:
    made = event()
    assert made["actor"] == {
        "user": {"uid": "usr_1", "type_id": 1, "type": "User"}, "app_name": "claude", "app_uid": "claude-app",
        "idp": {"uid": "https://id.example/"},
    }  # fmt: skip
    assert made["api"] == {"operation": "memory.recall", "service": {"name": "inner"}}
    assert (made["time"], made["metadata"]["original_time"]) == (1772442000123, "2026-03-02T09:00:00.123456+00:00")
    assert made["metadata"]["uid"] == str(ID)
    assert made["metadata"]["sequence"] == 7
    assert made["metadata"]["log_name"] == "muniment.test/log"
    assert made["metadata"]["tenant_uid"] == "acme"
    assert (made["status_id"], made["action_id"], made["disposition_id"]) == (1, 1, 1)
    assert made["policy"]["version"] == "42"
    said = made["unmapped"]["muniment"]
    assert said["leaf"] == "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
    assert (said["reason"], said["policy_version"], said["scopes"], said["mode"]) == (
        "granted", 42, ["memory:read"], "interactive",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("access", "activity"), [("read", 2), ("write", 3), ("destructive", 4), (None, 0), ("strange", 0)]
)
def test_the_activity_is_what_the_tool_does_to_data(access: str | None, activity: int) -> None:
    assert event(access=access)["activity_id"] == activity
    assert event(access=access)["type_uid"] == 600300 + activity


def test_a_denial_fails_and_is_blocked_and_its_reason_is_there() -> None:
    for reason in sorted(REASONS):
        made = event(decision="deny", reason=reason)
        assert (made["status_id"], made["action_id"], made["disposition_id"]) == (2, 2, 2)
        assert (made["status_code"], made["status_detail"]) == (reason, REASONS[reason].title)
    assert event(decision="deny", reason="of_tomorrow")["status_detail"] == "of_tomorrow"


def test_what_matters_more_is_more_severe() -> None:
    assert event()["severity_id"] == 1
    assert "is_alert" not in event()
    assert event(flagged=True)["severity_id"] == 2
    assert event(flagged=True)["is_alert"] is True
    assert event(decision="deny")["severity_id"] == 2
    assert event(decision="deny", sensitive=True)["severity_id"] == 3
    assert ocsf.event(COLUMNS, STATEMENTS["denials"], "o")["count"] == 42
    assert ocsf.event(COLUMNS, STATEMENTS["notice"], "o")["severity_id"] == 4


def test_what_staff_do_is_an_api_of_muniment_itself() -> None:
    made = ocsf.event(COLUMNS, STATEMENTS["staff"], "o")
    assert made["api"] == {"operation": "personal.view", "service": {"name": "Muniment"}}
    assert made["actor"] == {"user": {"uid": "staff:5", "type_id": 2, "type": "Admin"}}
    assert made["resources"] == [{"type": "user", "uid": "usr_1"}]
    assert made["activity_id"] == 2
    change = ocsf.event(COLUMNS, STATEMENTS["policy"], "o")
    assert (change["activity_id"], change["api"]["operation"]) == (1, "policy.change")
    assert change["unmapped"]["muniment"]["changes"][0]["table"] == "clients_grant"
    mixed = STATEMENTS["policy"]["changes"] + [{"op": "delete"}]
    assert ocsf.event(COLUMNS, STATEMENTS["policy"] | {"changes": mixed}, "o")["activity_id"] == 99
    refused = ocsf.event(COLUMNS, {"type": "erasure", "action": "refused", "actor": "system"}, "o")
    assert refused["status_id"] == 2


@pytest.mark.parametrize(
    "statement",
    [b"", b"\xff", b"[1]", b"null", b'{"type": ["x"], "decision": {}, "policy": 4, "agent": [], "changes": {"a": 1}}',
     b'{"type": "policy", "changes": [1, null]}', b'{"type": "denials", "counts": {"a": "b"}}', b'{"type": "\\ud800"}',
     b'{"type": "decision", "reason": "\\u0000", "subject": 5, "outcome": "x", "actor": 3}', b"[" * 5000,
     b'{"type": "outcome", "outcome": []}', b'{"type": "decision", "required": {"a": {}}, "grants": "x"}'],
)  # fmt: skip
def test_a_changed_statement_makes_an_event_all_the_same(statement: bytes) -> None:
    made = json.loads(ocsf.line((ID, 7, AT, b"\x01" * 32, statement), "o"))
    assert faults(made) == []
    assert made["metadata"]["uid"] == str(ID)


def test_a_real_call_leaves_nothing_about_the_person_in_its_event(db: None) -> None:
    inner = world.build()
    request = {
        "id": "request-77", "trace_id": "trace-77", "session_id": "session-77", "ip": "203.0.113.7",
        "user_agent": "Agent-77",
    }  # fmt: skip
    answer = inner.verify(resource={"type": "memory", "id": "secret-77"}, request=request)
    inner.verify(tool="memory.capture", request=request)
    inner.post(f"/v1/records/{answer['record']}/outcome",
               {"status": "ok", "resources": [{"type": "memory", "id": "secret-77"}], "count": 1})  # fmt: skip
    drained()
    rows = list(Record.objects.order_by("index").values_list(*ocsf.ROW))
    kinds, everything = set(), b""
    for row in rows:
        line = ocsf.line(row, "muniment.test/log")
        assert faults(json.loads(line)) == []
        assert merkle.leaf_hash(bytes(row[4])) == bytes(row[3])
        kinds.add(json.loads(line)["metadata"]["event_code"])
        everything += line
    assert {"decision", "outcome", "policy"} <= kinds
    assert answer["subject"]["uid"].encode() in everything
    for personal in ("alice", "203.0.113.7", "Agent-77", "request-77", "trace-77", "session-77", "secret-77", '"_sd'):
        assert personal.encode() not in everything, personal


def test_events_are_made_fast_enough_for_an_export() -> None:
    row = (ID, 7, AT, b"\x01" * 32, json.dumps(CALL).encode())
    count, best = 3000, 0.0
    for _ in range(5):
        began = time.process_time()
        for _ in range(count):
            ocsf.line(row, "muniment.test/log")
        best = max(best, count / (time.process_time() - began))
    assert best > 20_000, best  # some 100,000 in truth: a slow machine under load must pass as well
