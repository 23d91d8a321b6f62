"""POST /v1/ungoverned: what a backend let through while we were away, reported afterwards; in order, and once.

A report is lines of the backend's spool, as they stand there. Each becomes a record of the type `ungoverned`: its user
is claimed by a token that nobody verified, it is never a call, and never grants anything. A line is known by backend,
spool and sequence, of which a name is made that the recorder takes once (as it takes one outcome of a call), whoever
reports it and however often; and it takes a line only after the one whose hash the line names.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec
from django.http import HttpRequest, HttpResponse

from audit import subjects
from audit.batching import line_of
from audit.entries import Entry, Receipt, entry
from audit.models import Record
from audit.recording import AlreadyRecorded, Stale, Unavailable
from governance import schema
from governance.api import BackendView, decode, json_response
from governance.contract import Claimed, Report, SpoolLine
from governance.problems import Problem, not_authenticated
from governance.process import recorder
from governance.snapshot import BackendPolicy, Snapshot, snapshots
from governance.verification import ATTEMPTS, NotAuthenticated, authenticate
from tools.credentials import Credential

NOTHING = "0" * 64  # before the first line
_report = msgspec.json.Decoder(Report)
_line = msgspec.json.Decoder(SpoolLine)


@dataclass(frozen=True, slots=True)
class Place:
    """A line at its place: the name by which it is taken once, the SHA-256 of its bytes, and, but for the first one of
    a spool, name and hash of the line before."""

    line: SpoolLine
    name: UUID
    hash: str
    after: tuple[UUID, str] | None


class UngovernedView(BackendView):
    """What ran without us."""

    METHODS = frozenset({"POST"})

    @schema.ungoverned
    def post(self, request: HttpRequest) -> HttpResponse:
        """200 when all of it is on record, from now on or since an earlier report."""
        credential = self.credential(request)
        report = decode(_report, request.body)
        lines = [decode(_line, text.encode()) for text in report.entries]
        try:
            recorded = take(credential, report, lines)
        except NotAuthenticated:  # the key was revoked meanwhile
            raise not_authenticated() from None
        return json_response({"spool": report.spool, "taken": lines[-1].sequence, "recorded": recorded})


def take(credential: Credential, report: Report, lines: list[SpoolLine]) -> int:
    """Record the lines that are not yet; how many there were. Raises a Problem, NotAuthenticated, or Unavailable.

    That a line is recorded once, and after the one before it, is held by the transaction that records it
    (`Entry.parent` and `Entry.after`). Where it recorded anything but all of them somebody else was faster, or a commit
    was lost: then we look again, and at what is on record there as well, which may be another history of the same
    spool."""
    recorded = 0
    for _ in range(ATTEMPTS):
        snapshot, backend = authenticate(credential)
        waiting = fresh(chained(backend.slug, report, lines))
        results = recorder().record([to_entry(snapshot, backend, place) for place in waiting])
        if any(not isinstance(result, Receipt | Stale | AlreadyRecorded) for result in results):
            raise Unavailable("a line could not be written")
        taken = sum(isinstance(result, Receipt) for result in results)
        recorded += taken
        if taken == len(waiting):
            return recorded
        snapshots.at_head()
    raise Unavailable("the policy kept changing")


def chained(backend: str, report: Report, lines: list[SpoolLine]) -> list[Place]:
    """The lines at their places. Raises a 409 Problem where they do not follow one another."""
    places: list[Place] = []
    first, before = lines[0].sequence, lines[0].previous if lines[0].sequence > 1 else NOTHING
    for sequence, (line, text) in enumerate(zip(lines, report.entries, strict=True), start=first):
        if (line.spool, line.sequence, line.previous) != (report.spool, sequence, before):
            raise _broken(sequence)
        after = (name_of(backend, report.spool, sequence - 1), before) if sequence > 1 else None
        before = sha256(text.encode()).hexdigest()
        places.append(Place(line, name_of(backend, report.spool, sequence), before, after))
    return places


def fresh(places: list[Place]) -> list[Place]:
    """Those that are not on record. Raises a 409 Problem where another one is at the place of one of them, or where the
    line before them is not on record."""
    asked = [place.name for place in places] + [place.after[0] for place in places[:1] if place.after]
    found = on_record(asked)
    if (after := places[0].after) is not None:
        sequence = places[0].line.sequence
        if after[0] not in found:
            detail = f"Line {sequence - 1} of this spool is not on record: report it first."
            raise Problem(409, "spool-gap", "A line is missing", detail)
        if found[after[0]] != after[1]:
            raise _broken(sequence)
    for place in places:
        if found.get(place.name, place.hash) != place.hash:
            raise _broken(place.line.sequence)
    return [place for place in places if place.name not in found]


def on_record(names: list[UUID]) -> dict[UUID, str]:
    """The hashes of those lines that are on record, by name."""
    rows = Record.objects.filter(parent__in=names, type="ungoverned").values_list("parent", "statement")
    return {name: line_of(statement) for name, statement in rows if name is not None}


def _broken(sequence: int) -> Problem:
    detail = f"Line {sequence} does not follow the line before it, or another one is on record at its place."
    return Problem(409, "spool-broken", "The spool's chain does not hold", detail)


def name_of(backend: str, spool: str, sequence: int) -> UUID:
    """The name of a line, made of its place (RFC 9562 section 5.8)."""
    digest = int.from_bytes(sha256(f"muniment/ungoverned/{backend}/{spool}/{sequence}".encode()).digest()[:16], "big")
    return UUID(int=digest & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62)


def to_entry(snapshot: Snapshot, backend: BackendPolicy, place: Place) -> Entry:
    """The record of a line. What is claimed is protected under the backend's key of the day: not under a user's, whom
    nobody has verified."""
    line, claims = place.line, place.line.claimed or Claimed()
    issuer = claims.iss if claims.iss in backend.issuers else None
    client = snapshot.policy.clients.get((issuer or "", claims.client_id or ""))
    subject = subjects.known(issuer, claims.sub, remembered=False) if issuer and claims.sub else None
    statement: dict[str, Any] = {
        "type": "ungoverned",
        "claimed": True,
        "backend": backend.slug,
        "tool": line.tool,
        "called_at": line.at,
        "cause": line.cause,
        "issuer": issuer,
        "subject": subject,
        "client": client.slug if client else None,
        "token": line.token,
        "agent": {"chain": line.agent},
        "spool": line.spool,
        "sequence": line.sequence,
        "previous": line.previous,
        "line": place.hash,
        "parent": str(place.name),
    }
    info = line.request
    private = {
        # Of a user who is known the uid is enough: it names nobody any more when the user's own key is destroyed.
        "claimed_sub": None if subject else claims.sub,
        "claimed_issuer": claims.iss, "claimed_client": claims.client_id,
        "request_id": info.id, "trace_id": info.trace_id, "session_id": info.session_id, "ip": info.ip,
        "user_agent": info.user_agent or None,
    }  # fmt: skip
    holder = f"backend:{backend.slug}:{datetime.now(UTC):%Y-%m-%d}"
    return entry(statement, private, holder, version=snapshot.version, parent=place.name, after=place.after)
