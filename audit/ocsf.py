"""Records as events of the Open Cybersecurity Schema Framework (OCSF 1.5.0), class API Activity (6003). Pure.

What a record holds beside its statement is never in an event: who a user is, where a call came from and what it
touched stay protected. A user is the uid alone. docs/siem.md says where each member comes from.
"""

from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any
from uuid import UUID

import msgspec

from audit.reasons import REASONS

VERSION = "1.5.0"
CLASS, CATEGORY = 6003, 6
SCHEMA = f"https://schema.ocsf.io/{VERSION}/classes/api_activity"
ROW = ("id", "index", "at", "leaf", "statement")
"""The columns of `line`'s row, in their order."""

UNKNOWN, CREATE, READ, UPDATE, DELETE, OTHER = 0, 1, 2, 3, 4, 99
ACTIVITIES = {UNKNOWN: "Unknown", CREATE: "Create", READ: "Read", UPDATE: "Update", DELETE: "Delete", OTHER: "Other"}
SEVERITIES = {1: "Informational", 2: "Low", 3: "Medium", 4: "High"}
STATUSES = {UNKNOWN: "Unknown", 1: "Success", 2: "Failure"}
# What a tool does to data. One that writes may create as well as change: which, its declaration does not say.
ACCESS = {"read": READ, "write": UPDATE, "destructive": DELETE}
# What happened at a tool, as against what was done to Muniment itself.
CALLS = frozenset({"decision", "evaluation", "introspection", "outcome", "ungoverned", "denials"})
# What was asked, where nothing was called.
QUESTIONS = {"evaluation": "Evaluate", "introspection": "Introspect"}
# By the last word of an action, where it says plainly what was done.
VERBS = {
    "add": CREATE, "added": CREATE, "ask": CREATE, "asked": CREATE, "created": CREATE, "make": CREATE,
    "placed": CREATE, "published": CREATE, "start": CREATE,
    "csv": READ, "downloaded": READ, "lookup": READ, "report": READ, "view": READ,
    "changed": UPDATE, "password": UPDATE, "roles": UPDATE, "set": UPDATE,
    "deleted": DELETE, "erased": DELETE, "removed": DELETE, "revoke": DELETE, "retired": DELETE,
}  # fmt: skip
OPERATIONS = {"insert": CREATE, "update": UPDATE, "delete": DELETE}
ALARMING = frozenset({"alert.raised", "limits.unavailable", "log.close", "outbox.unfit"})
PRODUCT = {"name": "Muniment", "vendor_name": "Muniment", "version": version("muniment")}
# What the event says elsewhere, or what only a verifier needs.
_SAID = frozenset({"v", "id", "at", "type", "_sd"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def event(columns: Mapping[str, Any], statement: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The event of one record. `columns`: its `id`, `index`, `at` and `leaf`; `origin`: the name of its log."""
    return _event(columns["id"], columns["index"], columns["at"], columns["leaf"], statement, origin)


def line(row: tuple[UUID, int, datetime, bytes, bytes], origin: str) -> bytes:
    """The event of one row of ROW as JSON, without a line end; what exports and streams write."""
    record, index, at, leaf, statement = row
    return _encode(_event(record, index, at, leaf, read(statement), origin))


def read(statement: bytes | memoryview) -> dict[str, Any]:
    """The members of a statement; none where the bytes are no JSON object any more, which only somebody with the
    database can have brought about: the event then has the record's place and leaf alone."""
    try:
        said = _decode(statement)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {}
    return said if type(said) is dict else {}


def _event(record: UUID, index: int, at: datetime, leaf: bytes, said: Mapping[str, Any], origin: str) -> dict[str, Any]:
    kind = _text(said, "type") or "unreadable"
    call = kind in CALLS
    activity, name = _activity(kind, said)
    status = _status(kind, said)
    severity = _severity(kind, said)
    metadata = {
        "version": VERSION, "product": PRODUCT, "uid": str(record), "sequence": index, "log_name": origin,
        "log_provider": "Muniment", "original_time": at.isoformat(), "event_code": kind,
    }  # fmt: skip
    made: dict[str, Any] = {
        "class_uid": CLASS, "class_name": "API Activity", "category_uid": CATEGORY,
        "category_name": "Application Activity", "activity_id": activity, "activity_name": name,
        "type_uid": CLASS * 100 + activity, "type_name": f"API Activity: {ACTIVITIES[activity]}",
        "time": (at - _EPOCH) // _MILLISECOND, "severity_id": severity, "severity": SEVERITIES[severity],
        "status_id": status, "status": STATUSES[status], "metadata": metadata,
        "actor": _caller(said) if call else _staff(said), "api": _api(kind, said, call),
        "src_endpoint": {"svc_name": (_text(said, "client") if call else None) or ("unknown" if call else "muniment")},
    }  # fmt: skip
    if tenant := _text(said, "tenant"):
        metadata["tenant_uid"] = tenant
    if parent := _text(said, "parent"):
        metadata["correlation_uid"] = parent
    _decided(kind, said, made, metadata)
    if not call and (user := _text(said, "subject")):
        made["resources"] = [{"type": "user", "uid": user}]
    made["unmapped"] = {"muniment": _unmapped(kind, said, b64encode(leaf).decode())}
    return made


def _activity(kind: str, said: Mapping[str, Any]) -> tuple[int, str]:
    """What was done: `activity_id`, and its name."""
    if kind in QUESTIONS:
        return OTHER, QUESTIONS[kind]
    if kind in CALLS:
        found = ACCESS.get(_text(said, "access") or "", UNKNOWN)
    elif kind == "policy":
        changes = said.get("changes")
        found = _one([_text(c, "op") for c in changes if type(c) is dict]) if type(changes) is list else OTHER
    else:
        action = _text(said, "action") or kind
        found = VERBS.get(action.rpartition(".")[2], OTHER)
        if found == OTHER:
            return OTHER, action
    return found, ACTIVITIES[found]


def _one(operations: list[str | None]) -> int:
    """What all of the changes of a policy record are; Other where they differ."""
    kinds = {OPERATIONS.get(one or "", OTHER) for one in operations}
    return kinds.pop() if len(kinds) == 1 else OTHER


def _status(kind: str, said: Mapping[str, Any]) -> int:
    """Whether it came about: `status_id`."""
    match kind:
        case "decision" | "evaluation":
            return {"allow": 1, "deny": 2}.get(_text(said, "decision") or "", UNKNOWN)
        case "denials":
            return 2
        case "outcome":
            outcome = said.get("outcome")
            return {"ok": 1, "error": 2}.get((_text(outcome, "status") if type(outcome) is dict else "") or "", 0)
        case "ungoverned" | "introspection" | "unreadable":
            return UNKNOWN
    return 2 if (_text(said, "action") or "").endswith(("failed", "refused", "reject")) else 1


def _severity(kind: str, said: Mapping[str, Any]) -> int:
    """How much it matters at first sight: `severity_id`."""
    if kind == "decision":
        if said.get("decision") == "deny":
            return 3 if said.get("sensitive") is True else 2
        return 2 if said.get("flagged") is True else 1
    if kind in ("denials", "ungoverned"):
        return 3
    if kind == "unreadable" or said.get("action") in ALARMING:
        return 4
    return 1


def _caller(said: Mapping[str, Any]) -> dict[str, Any]:
    """Who called: the user by uid, the client, and the issuer who vouches for both."""
    actor: dict[str, Any] = {}
    if user := _text(said, "subject"):
        actor["user"] = {"uid": user, "type_id": 1, "type": "User"}
    client, application = _text(said, "client"), _text(said, "client_id")
    if client or application:
        actor["app_name"] = client or application
    if application:
        actor["app_uid"] = application
    if issuer := _text(said, "issuer"):
        actor["idp"] = {"uid": issuer}
    # One of them is required, and who was not established has none.
    return actor if "user" in actor or "app_name" in actor else actor | {"app_name": "unknown"}


def _staff(said: Mapping[str, Any]) -> dict[str, Any]:
    """Who did something to Muniment: `staff:5`, `database:role`, `system`, ..."""
    who = _text(said, "actor") or "system"
    match who.partition(":")[0]:
        case "staff":
            return {"user": {"uid": who, "type_id": 2, "type": "Admin"}}
        case "database":
            return {"user": {"uid": who, "type_id": 4, "type": "Service"}}
    return {"app_name": who}


def _api(kind: str, said: Mapping[str, Any], call: bool) -> dict[str, Any]:
    """Which operation of which service."""
    operation = _text(said, "tool") if call else _text(said, "action")
    backend = _text(said, "backend") if call else None
    return {
        "operation": operation or (f"{kind}.change" if kind == "policy" else kind),
        "service": {"name": backend or "Muniment"},
    }


def _decided(kind: str, said: Mapping[str, Any], made: dict[str, Any], metadata: dict[str, Any]) -> None:
    """What the decision was, as the profile Security Control has it, and why; and for people, in a line."""
    decision, reason = _text(said, "decision"), _text(said, "reason")
    if reason:
        made["status_code"] = reason
        made["status_detail"] = REASONS[reason].title if reason in REASONS else reason
    if kind == "denials":
        counts = said.get("counts")
        made["count"] = sum(n for n in counts.values() if type(n) is int) if type(counts) is dict else 1
    if kind in ("decision", "evaluation") and decision in ("allow", "deny"):
        allowed = decision == "allow"
        made["action_id"], made["action"] = (1, "Allowed") if allowed else (2, "Denied")
        made["disposition_id"], made["disposition"] = (1, "Allowed") if allowed else (2, "Blocked")
        if said.get("flagged") is True:
            made["is_alert"] = True
        metadata["profiles"] = ["security_control"]
        policy = said.get("policy")
        if type(policy) is dict:
            made["policy"] = {"name": "Muniment", "version": str(policy.get("version"))}
    who, what = made["src_endpoint"]["svc_name"], made["api"]["operation"]
    words = f"{decision}, {reason}" if decision else made["status"]
    made["message"] = f"{kind}: {what}, {who} at {made['api']['service']['name']}: {words}"


def _unmapped(kind: str, said: Mapping[str, Any], leaf: str) -> dict[str, Any]:
    """What OCSF has no place for. Of a call what a rule may ask for; of all else, whatever its statement has."""
    if kind not in CALLS:
        return {"type": kind, "leaf": leaf} | {name: value for name, value in said.items() if name not in _SAID}
    get = said.get
    agent, policy = get("agent"), get("policy")
    found: dict[str, Any] = {
        "type": kind, "leaf": leaf, "decision": get("decision"), "reason": get("reason"), "flagged": get("flagged"),
        "sensitive": get("sensitive"), "scopes": get("required"), "grants": get("grants"),
        "limits": get("limits"), "bound": get("bound"),
        "mode": agent.get("mode") if type(agent) is dict else None,
        "policy_version": policy.get("version") if type(policy) is dict else None,
        "outcome": get("outcome"), "counts": get("counts"), "cause": get("cause"),
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def _text(members: Mapping[str, Any], name: str) -> str | None:
    """A member that is text; None for whatever else a changed statement may hold there."""
    value = members.get(name)
    return value if type(value) is str else None
