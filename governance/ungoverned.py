"""POST /v1/ungoverned: what a backend let through while we were away, reported afterwards; in order, and once.

A report is lines of the backend's spool, as they stand there. Each becomes a record of the type `ungoverned`: its user
is claimed by a token that nobody verified, it is never a call, and never grants anything. A line is known by backend,
spool and sequence, of which a name is made that the recorder takes once (as it takes one outcome of a call), whoever
reports it and however often. Its place in the chain is checked against the lines before it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec
from django.http import HttpRequest, HttpResponse

from audit import subjects
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
from muniment import statements
from tools.credentials import Credential

NOTHING = "0" * 64  # before the first line
_report = msgspec.json.Decoder(Report)
_line = msgspec.json.Decoder(SpoolLine)


@dataclass(frozen=True, slots=True)
class Place:
    """A line at its place: the name by which it is taken once, and the SHA-256 of its bytes."""

    line: SpoolLine
    name: UUID
    hash: str


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
    """Record the lines that are not yet; how many there were. Raises a Problem, NotAuthenticated, or Unavailable."""
    for _ in range(ATTEMPTS):
        snapshot, backend = authenticate(credential)
        places = chained(backend.slug, report, lines)
        fresh = [place for place in places if not known(place)]
        results = recorder().record([to_entry(snapshot, backend, place) for place in fresh])
        if not any(isinstance(result, Stale) for result in results):
            if any(not isinstance(result, Receipt | AlreadyRecorded) for result in results):
                raise Unavailable("a line could not be written")
            return sum(isinstance(result, Receipt) for result in results)
        snapshots.at_head()
    raise Unavailable("the policy kept changing")


def chained(backend: str, report: Report, lines: list[SpoolLine]) -> list[Place]:
    """The lines at their places. Raises a 409 Problem where they do not follow one another, and what is on record."""
    places: list[Place] = []
    before = _before(backend, report.spool, lines[0].sequence)
    for line, text in zip(lines, report.entries, strict=True):
        sequence = lines[0].sequence + len(places)
        if (line.spool, line.sequence, line.previous) != (report.spool, sequence, before):
            raise _broken(sequence)
        before = sha256(text.encode()).hexdigest()
        places.append(Place(line, name_of(backend, report.spool, sequence), before))
    return places


def _before(backend: str, spool: str, sequence: int) -> str:
    """The hash of the line before, which must be on record."""
    if sequence == 1:
        return NOTHING
    found = _on_record(name_of(backend, spool, sequence - 1))
    if found is None:
        detail = f"Line {sequence - 1} of this spool is not on record: report it first."
        raise Problem(409, "spool-gap", "A line is missing", detail)
    return found


def known(place: Place) -> bool:
    """Whether the line is on record. Raises a 409 Problem where another one is at its place."""
    found = _on_record(place.name)
    if found is not None and found != place.hash:
        raise _broken(place.line.sequence)
    return found is not None


def _on_record(name: UUID) -> str | None:
    row = Record.objects.filter(parent=name, type="ungoverned").only("statement").first()
    said: Any = None if row is None else statements.load(bytes(row.statement))
    return None if said is None else str(said["line"])


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
    statement: dict[str, Any] = {
        "type": "ungoverned",
        "claimed": True,
        "backend": backend.slug,
        "tool": line.tool,
        "called_at": line.at,
        "cause": line.cause,
        "issuer": issuer,
        "subject": subjects.known(issuer, claims.sub) if issuer and claims.sub else None,
        "client": client.slug if client else None,
        "token": line.token,
        "agent": {"chain": line.agent},
        "spool": line.spool,
        "sequence": line.sequence,
        "line": place.hash,
        "parent": str(place.name),
    }
    info = line.request
    private = {
        "claimed_issuer": claims.iss, "claimed_sub": claims.sub, "claimed_client": claims.client_id,
        "request_id": info.id, "trace_id": info.trace_id, "session_id": info.session_id, "ip": info.ip,
        "user_agent": info.user_agent or None,
    }  # fmt: skip
    holder = f"backend:{backend.slug}:{datetime.now(UTC):%Y-%m-%d}"
    return entry(statement, private, holder, version=snapshot.version, parent=place.name)
