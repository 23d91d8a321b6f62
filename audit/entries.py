"""What is handed to the recorder: one entry becomes one record."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from audit.protection import keyed_hash, keyring
from muniment import disclosures

# Private members that can be searched for exactly, through a keyed hash in a column of their own.
LOOKUPS = {"request_id": "request_key", "trace_id": "trace_key", "session_id": "session_key"}


def lookup(kind: str, value: str) -> bytes:
    """The searchable column's value: 16 bytes are enough to tell ids apart, and half the index."""
    return keyed_hash(kind, value)[:16]


def call_columns(statement: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """What the columns `mode` and `scopes` of a record repeat of its statement: a call's agent mode, and the scopes
    that it needed, with spaces between. None where it has none; never raises, whatever the statement holds."""
    agent, required = statement.get("agent"), statement.get("required")
    mode = agent.get("mode") if isinstance(agent, dict) else None
    scopes = " ".join(map(str, required)) if isinstance(required, list) and required else None
    return (mode if isinstance(mode, str) and len(mode) <= 11 else None), scopes


@dataclass(slots=True)
class Entry:
    """One record to be. `statement` lacks what only the recording transaction knows: id, at and _sd.

    `version` is the policy version that it was decided under (None: not a decision); `subject_state` is what the
    decision assumed of the subject, to be checked by the recording transaction; `parent` marks an outcome, or
    a line of a backend's spool, of which only the first counts; `after` is the line before: its `parent` and its
    hash, without which on record this one is not recorded.
    """

    statement: dict[str, Any]
    private: list[disclosures.Disclosure] = field(default_factory=list)
    holder: str | None = None
    cipher: AESGCM | None = None
    lookups: dict[str, bytes] = field(default_factory=dict)
    version: int | None = None
    subject: str | None = None
    subject_state: tuple[bool, datetime | None, bool] | None = None
    parent: UUID | None = None
    after: tuple[UUID, str] | None = None
    outbox: list[int] = field(default_factory=list)
    established: bool = False

    @property
    def keeps_of(self) -> str | None:
        """The uid of the user by whose ids the record could be found, or under whose key it protects something."""
        uid = self.subject or self.statement.get("subject")
        return uid if isinstance(uid, str) and (self.lookups or self.holder == uid) else self.subject

    def forget(self) -> None:
        """Its user was erased since it was made: what happened stays, and nothing of the user."""
        self.lookups = {}
        if (self.holder or "").startswith("usr_"):
            self.private, self.holder, self.cipher = [], None, None


def entry(statement: dict[str, Any], private: dict[str, Any], holder: str, **more: Any) -> Entry:
    """An entry whose private members (None left out) are protected under the holder's key."""
    given = {name: value for name, value in private.items() if value is not None}
    lookups = {column: lookup(name, given[name]) for name, column in LOOKUPS.items() if name in given}
    if resource := given.get("resource"):
        lookups["resource_key"] = lookup("resource", f"{resource['type']}\x00{resource['id']}")
    if not given:
        return Entry(statement=statement, **more)
    return Entry(
        statement=statement,
        private=disclosures.make_all(given),
        holder=holder,
        cipher=keyring.get(holder, create=not holder.startswith("usr_")),
        lookups=lookups,
        **more,
    )


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where the log has a record: what its write batch commits to (DESIGN.md section 4). Byte strings are raw."""

    id: UUID
    at: datetime
    index: int
    leaf: bytes
    first: int
    size: int
    previous: bytes
    root: bytes
    position: int
    path: list[bytes]
    signature: bytes
    key_id: str
