"""POST /v1/records/{record}/outcome: what happened after an allow; appended as its own record, by the owning
backend only, and the first one counts."""

from typing import Any
from uuid import UUID

import msgspec
from django.http import HttpRequest, HttpResponse

from audit import search
from audit.entries import Entry, entry
from audit.models import Record
from audit.protection import KeyDestroyed
from audit.recording import AlreadyRecorded, Stale, Unavailable
from governance import schema
from governance.api import BackendView, decode, json_response
from governance.contract import Outcome
from governance.problems import Problem, not_authenticated
from governance.process import recorder
from governance.snapshot import snapshots
from governance.verification import ATTEMPTS, NotAuthenticated, authenticate
from tools.credentials import Credential

_outcome = msgspec.json.Decoder(Outcome)


class OutcomeView(BackendView):
    """What an allowed call came to."""

    endpoint = "outcome"

    @schema.outcome
    def post(self, request: HttpRequest, record: UUID) -> HttpResponse:
        """201 when it was recorded, 200 with the first one when there is one already."""
        credential = self.credential(request)
        outcome = decode(_outcome, request.body)
        found, first = append(credential, record, outcome)
        return json_response({"record": str(found), "parent": str(record), "first": first}, 201 if first else 200)


def append(credential: Credential, call: UUID, outcome: Outcome) -> tuple[UUID, bool]:
    """Record the outcome; returns the id of the outcome that counts, and whether it is this one."""
    for _ in range(ATTEMPTS):
        try:
            snapshot, backend = authenticate(credential)
        except NotAuthenticated:
            raise not_authenticated() from None
        parent = search.by_id(call)
        # Another backend's record is answered like none: its existence is none of the caller's business.
        if parent is None or parent.type != "decision" or parent.backend != backend.slug:
            raise Problem(404, "record-unknown", "No such record", "This backend has no decision with this id.")
        if parent.decision != "allow":
            raise Problem(409, "not-allowed", "The call was denied", "Only an allowed call has an outcome.")
        [result] = recorder().record([_entry(parent, outcome, snapshot.version)])
        match result:
            case AlreadyRecorded():
                return result.record, False
            case Stale():
                snapshots.at_head()
            case Exception():
                raise Unavailable("the outcome could not be written") from result
            case _:
                return result.id, True
    raise Unavailable("the policy kept changing")


def _entry(parent: Record, outcome: Outcome, version: int) -> Entry:
    statement: dict[str, Any] = {
        "type": "outcome",
        "parent": str(parent.id),
        "backend": parent.backend,
        "client": parent.client,
        "subject": parent.subject,
        "tenant": parent.tenant,
        "tool": parent.tool,
        "outcome": {"status": outcome.status, "count": outcome.count, "duration_ms": outcome.duration_ms},
    }
    private = {"resources": [{"type": r.type, "id": r.id} for r in outcome.resources] or None}
    bound = {"version": version, "parent": parent.id, "established": True}
    try:
        return entry(statement, private, parent.subject or "system", **bound)
    except KeyDestroyed:  # the user was erased since: the outcome stays, what it touched is not kept
        return entry(statement, {}, "system", **bound)
