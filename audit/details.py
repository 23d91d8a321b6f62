"""What a record protects (DESIGN.md section 6), opened for whoever may see it: the disclosures beside the statement,
each compared with what the statement commits to.

What staff did is readable by everybody who may read records. What is of a user is not: whoever shows that must have
the right to see personal data, and must have had the look recorded first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from django.conf import settings

from audit.models import Record
from audit.protection import KeyDestroyed, KeyRing, reveal
from audit.record_words import column_words, value_words
from muniment import disclosures, merkle
from muniment.disclosures import DisclosureError

USER = "usr_"  # how uids begin
# What staff and the platform itself did: their own reasons and names.
OF_STAFF = frozenset({"policy", "staff", "request", "review", "key", "notice", "retention", "hold", "erasure"})
# Members that say something of a user, wherever they stand.
PERSONAL = frozenset({
    "sub", "email", "request_id", "trace_id", "session_id", "ip", "user_agent", "resource", "resources",
    "arguments_digest", "asked_tenant", "named", "named_issuer", "named_client", "claimed_issuer", "claimed_sub",
    "claimed_client",
})  # fmt: skip
LABELS = {
    "sub": "Identifier at the issuer (sub)", "email": "E-mail address", "request_id": "Request id",
    "trace_id": "Trace id", "session_id": "Session id", "ip": "From address", "user_agent": "Program (user agent)",
    "resource": "What was asked for", "resources": "What was touched", "arguments_digest": "Digest of the arguments",
    "asked_tenant": "Tenant that was asked for", "actor_name": "Name", "reason": "Reason", "reasons": "Reasons",
    "note": "Note", "answer": "Answer", "named": "Who was named", "named_issuer": "Issuer that was named",
    "named_client": "Client that was named", "claimed_issuer": "Issuer, as claimed", "claimed_sub": "User, as claimed",
    "claimed_client": "Client, as claimed",
}  # fmt: skip
IDS = frozenset({
    "sub", "request_id", "trace_id", "session_id", "ip", "arguments_digest", "resource", "resources",
    "named", "named_issuer", "named_client",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Detail:
    """One protected member, in words. `mono`: it is an id rather than a text."""

    name: str
    label: str
    value: str
    mono: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """What became of opening a record's details. `state` is none (the statement commits to none), open, forgotten (the
    key was destroyed), gone (they are not there any more) or broken (they are not those that were committed to)."""

    state: str
    members: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def shown(self, personal: bool | None = None) -> list[Detail]:
        """The members in words, in the order of `LABELS`: those of a user, those that are not, or (None) all."""
        order = {name: place for place, name in enumerate(LABELS)}
        names = sorted(self.members, key=lambda name: (order.get(name, len(order)), name))
        return [
            Detail(name, LABELS.get(name) or column_words(name).capitalize(), words(self.members[name]), name in IDS)
            for name in names
            if personal is None or (name in PERSONAL) == personal
        ]


def words(value: Any) -> str:
    """A value for people: resources as `memory m_123`, one a line."""
    match value:
        case {"type": kind, "id": number, **rest} if not rest:
            return f"{kind} {number}"
        case [*several] if several and all(isinstance(one, dict) for one in several):
            return "\n".join(words(one) for one in several)
        case {**members}:
            return "\n".join(f"{name}: {value_words(one)}" for name, one in members.items())
    return value_words(value)


def of_staff(record: Record, statement: Mapping[str, Any]) -> bool:
    """Whether the details are under a key of staff or of the platform, in a record of what those did."""
    holder = record.holder or ""
    return statement.get("type") in OF_STAFF and (holder == "system" or holder.startswith("staff:"))


def opened(record: Record, statement: Mapping[str, Any], ring: KeyRing | None = None) -> Opened:
    """Open a record's details. Never raises for what a record may hold.

    `ring` serves a reader of many records. It must not outlive the request: a key that was destroyed since by another
    process would still be in it."""
    committed = statement.get("_sd") or []
    if not committed:
        return Opened("none")
    if record.disclosures is None or record.holder is None:
        return Opened("gone")
    if merkle.leaf_hash(bytes(record.statement)) != bytes(record.leaf) or not _own(record.holder, statement):
        return Opened("broken")
    if "KEY_ENCRYPTION_KEY" not in settings.MUNIMENT_KEYS:
        return Opened("gone")
    try:
        key = (ring or KeyRing()).get(record.holder)
        found = disclosures.unpack(reveal(key, bytes(record.disclosures), bytes(record.leaf)))
    except KeyDestroyed:
        return Opened("forgotten")
    except (InvalidTag, DisclosureError):
        return Opened("broken")
    if not isinstance(committed, list) or disclosures.digests(found) != sorted(map(str, committed)):
        return Opened("broken")
    return Opened("open", {one.name: one.value for one in found})


def _own(holder: str, statement: Mapping[str, Any]) -> bool:
    """A user's key may only protect that user's own records."""
    return holder == statement.get("subject") or not holder.startswith(USER)
