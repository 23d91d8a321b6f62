"""A year of records for the bench of the search: statements of the right shape and size, protected details that open,
look-up hashes that are found; skewed as traffic is, by day and night, weekdays, client, tool and user."""

import hmac
import secrets
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from random import Random
from typing import Any
from uuid import UUID

from django.conf import settings

from audit.batching import EPOCH, uuid7
from audit.entries import call_columns
from audit.protection import keyring, protect
from bench.population import ISSUER, MODES, STAFF, Called, Person, Population, Skewed
from muniment import disclosures, merkle, statements

MONTHS = 12
HOURS = 366 * 24
MICROSECOND = timedelta(microseconds=1)
HOUR = 3_600_000_000  # microseconds
DENIED, OUTCOMES, FLAGGED, TOLD, RESOURCES, TRACED = 0.05, 0.3, 0.012, 0.0006, 0.3, 0.5
# How often each reason comes among the denials; the frequent ones and the rare ones of the table of timings.
REASONS = {
    "insufficient_scope": 30, "not_granted": 27, "token_expired": 16, "client_unknown": 7, "grant_denied": 6,
    "token_invalid": 4, "rate_limited": 3, "token_missing": 2, "tool_unknown": 2, "audience_mismatch": 1,
    "client_suspended": 0.8, "delegation_exceeded": 0.6, "tenant_mismatch": 0.3, "subject_blocked": 0.2,
    "proof_required": 0.1,
}  # fmt: skip
NOBODY = {"token_expired", "token_invalid", "token_missing", "audience_mismatch", "proof_required"}
TOLD_KINDS = (("staff", 50), ("policy", 30), ("denials", 15), ("request", 4), ("review", 1))
ACTIONS = ("sign_in", "sign_out", "person.lookup", "record.personal", "export")
AGENTS = ("Client/1.0 (MCP)", "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5)", "python-httpx2/1.0")

Row = tuple[Any, ...]


@dataclass(slots=True)
class Allowed:
    """A call that an outcome is to come of."""

    id: UUID
    person: Person
    client: str
    tool: Called


@dataclass(slots=True)
class History:
    """Records in the order of the log, each with its row for the columns of `audit.batching.COLUMNS`."""

    population: Population
    end: datetime
    count: int
    first: int
    policy: dict[str, Any]
    random: Random = field(default_factory=lambda: Random(5))
    waiting: deque[Allowed] = field(default_factory=deque)
    at: int = 0
    laws: tuple[Skewed, ...] = ()

    def __post_init__(self) -> None:
        """The laws of chance of people, tools and clients."""
        crowd = self.population
        found = ((crowd.people, 0.8), (crowd.tools, 1.0), (range(len(crowd.clients)), 1.0))
        self.laws = tuple(Skewed(items, exponent, self.random) for items, exponent in found)

    def rows(self) -> Iterator[list[Row]]:
        """All of them, an hour at a time."""
        end = (self.end - EPOCH) // MICROSECOND
        index = self.first
        for hour, records in enumerate(self._hours()):
            low = end - (HOURS - hour) * HOUR
            times = sorted(self.random.randrange(low, low + HOUR) for _ in range(records))
            made = []
            for at, chosen in zip(times, self._choices(records), strict=True):
                self.at = max(at, self.at + 1)  # rising, and never twice the same
                made.append(self._one(index, EPOCH + self.at * MICROSECOND, *chosen))
                index += 1
            yield made

    def _hours(self) -> list[int]:
        """How many records each hour has: by day more than by night, on workdays more than on Sundays, in the
        last month nearly twice as many as in the first."""
        weights = []
        for hour in range(HOURS):
            at = self.end - timedelta(hours=HOURS - hour)
            daily = 0.25 + max(0.0, 1 - ((at.hour - 14) / 8) ** 2)
            weights.append(daily * (0.35 if at.weekday() > 4 else 1) * (1 + hour / HOURS))
        total, placed, passed, found = sum(weights), 0, 0.0, []
        for weight in weights:
            passed += weight
            found.append(round(self.count * passed / total) - placed)
            placed += found[-1]
        return found

    def _choices(self, count: int) -> Iterator[tuple[Any, ...]]:
        people, tools, clients = self.laws
        chances = (self.random.random() for _ in range(count))
        names, weights = zip(*MODES, strict=True)
        whys = self.random.choices(list(REASONS), list(REASONS.values()), k=count)
        return zip(
            chances, people.many(count), tools.many(count), clients.many(count),
            self.random.choices(names, weights, k=count), whys, strict=True,
        )  # fmt: skip

    def _one(self, index: int, at: datetime, chance: float, person: Person, tool: Called, *more: Any) -> Row:
        if chance < TOLD:
            return self._told(index, at)
        if self.waiting:
            return self._outcome(index, at, self.waiting.popleft())
        return self._call(index, at, person, tool, *more)

    def _call(self, index: int, at: datetime, person: Person, tool: Called, other: int, mode: str, why: str) -> Row:
        roll = self.random.random
        denied = roll() < DENIED
        reason = why if denied else "granted"
        client = self.population.clients[person.home if roll() < 0.8 else other]
        known = not (denied and reason in NOBODY)
        slug = client.slug if known and reason != "client_unknown" else None
        allowed = ["memory:read", *tool.scopes]
        statement: dict[str, Any] = {
            "type": "decision", "backend": tool.backend, "client": slug,
            "client_id": client.oauth_id if known else None, "issuer": ISSUER if known else None,
            "subject": person.uid if known else None, "tenant": person.tenant if known else None,
            "tool": tool.name, "decision": "deny" if denied else "allow", "reason": reason,
            "policy": self.policy, "required": list(tool.scopes),
            "token_scopes": allowed if known else [], "effective": [] if denied else allowed,
            "grants": [] if denied else [1 + index % 90], "roles": ["member"] if known and index % 3 == 0 else [],
            "agent": {"mode": mode, "chain": ["planner", "reader"] if mode == "subagent" else [], "scopes": None},
            "access": tool.access, "sensitive": tool.sensitive, "flagged": not denied and roll() < FLAGGED,
            "token": secrets.token_hex(32) if reason != "token_missing" else None, "parent": None,
        }  # fmt: skip
        holder = person.uid if known else f"backend:{tool.backend}:{at:%Y-%m-%d}"
        private, lookups = self._private(index, person if known else None, tool)
        cipher = person.cipher if known else cipher_of(holder)
        row = _row(index, at, statement, private, lookups, holder, cipher)
        if not denied and roll() < OUTCOMES:
            self.waiting.append(Allowed(row[0], person, client.slug, tool))
        return row

    def _private(self, index: int, person: Person | None, tool: Called) -> tuple[dict[str, Any], dict[str, bytes]]:
        """What is protected, and the hashes by which it is found again: ids that anybody can compute."""
        given = {"sub": person.sub, "email": person.email} if person else {}
        given |= {"request_id": f"req_{index:012x}"}
        given |= {"session_id": f"ses_{index // 40:08x}"}
        given |= {"ip": f"203.0.113.{index % 250}", "user_agent": AGENTS[index % 3]}
        lookups = {"request_key": _lookup("request_id", given["request_id"])}
        lookups["session_key"] = _lookup("session_id", given["session_id"])
        if self.random.random() < TRACED:
            given["trace_id"] = f"{index // 3:032x}"
            lookups["trace_key"] = _lookup("trace_id", given["trace_id"])
        if self.random.random() < RESOURCES:
            kind, number = tool.name.partition(".")[0], f"r_{self.random.randrange(1_000_000):06d}"
            given["resource"] = {"type": kind, "id": number}
            lookups["resource_key"] = _lookup("resource", f"{kind}\x00{number}")
        return given, lookups

    def _outcome(self, index: int, at: datetime, call: Allowed) -> Row:
        failed = self.random.random() < 0.03
        statement = {
            "type": "outcome", "parent": str(call.id), "backend": call.tool.backend, "client": call.client,
            "subject": call.person.uid, "tenant": call.person.tenant, "tool": call.tool.name,
            "outcome": {"status": "error" if failed else "ok", "count": index % 7, "duration_ms": 8 + index % 400},
        }  # fmt: skip
        return _row(index, at, statement, {}, {}, None, None, call.id)

    def _told(self, index: int, at: datetime) -> Row:
        """What staff did, a change of policy, a flood."""
        kinds, weights = zip(*TOLD_KINDS, strict=True)
        kind, staff = self.random.choices(kinds, weights)[0], f"staff:{1 + index % STAFF}"
        statement: dict[str, Any] = {"type": kind, "actor": staff, "role": "muniment"}
        match kind:
            case "denials":
                statement = {"type": kind, "backend": "backend-1", "decision": "deny",
                             "counts": {"over_budget": 1 + index % 900}}  # fmt: skip
            case "policy":
                grant = {"id": index % 90, "effect": "allow", "client_id": 1 + index % 20, "expires_at": None}
                change = {"table": "clients_grant", "op": "insert", "key": str(index % 90), "old": None, "new": grant}
                statement |= {"policy": {"version": 1 + index // 5000, "digest": None}, "changes": [change]}
                statement |= {"part": 1, "parts": 1}
            case _:
                statement["action"] = ACTIONS[index % len(ACTIONS)] if kind == "staff" else f"{kind}.made"
        private = {} if kind == "denials" else {"actor_name": f"Staff {index % STAFF}", "reason": "quarterly review"}
        return _row(
            index, at, statement, private, {}, staff if private else None, cipher_of(staff) if private else None
        )


def _lookup(kind: str, value: str) -> bytes:
    """As audit.entries.lookup, without asking the settings ten million times."""
    return hmac.digest(_pepper(), kind.encode() + b"\x00" + value.encode(), "sha256")[:16]


@cache
def _pepper() -> bytes:
    return bytes(settings.MUNIMENT_KEYS["PEPPER"])


@cache
def cipher_of(holder: str) -> Any:
    """The key of a holder who is no user."""
    return keyring.get(holder, create=True)


def _row(
    index: int, at: datetime, statement: dict[str, Any], private: dict[str, Any], lookups: dict[str, bytes],
    holder: str | None, cipher: Any, parent: UUID | None = None,
) -> Row:  # fmt: skip
    """As audit.batching makes it."""
    record = uuid7(at)
    kept = disclosures.make_all(private)
    statement |= {"v": statements.VERSION, "id": str(record), "at": (at - EPOCH) // MICROSECOND}
    statement["_sd"] = disclosures.digests(kept)
    data = statements.encode(statement)
    leaf = merkle.leaf_hash(data)
    get, found = statement.get, lookups.get
    return (
        record, index, at, get("type"), get("decision"), get("reason"), bool(get("flagged")), get("backend"),
        get("client"), get("subject"), get("tenant"), get("tool"), parent, found("request_key"), found("trace_key"),
        found("session_key"), found("resource_key"), holder, data, leaf,
        protect(cipher, disclosures.pack(kept), leaf) if cipher else None, *call_columns(statement),
    )  # fmt: skip


def now() -> datetime:
    """When the history ends: a minute ago."""
    return datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=1)
