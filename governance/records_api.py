"""GET /v1/records and /v1/records/{id}: audit search for the tools of auditors. What a staff key's owner may read, and
never personal data: what is protected in a record is not opened here, and no query names a person but by uid."""

import base64
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode

from audit import search
from audit.batching import EPOCH
from audit.entries import lookup
from audit.models import Record
from audit.records_form import ABSENT, NONE
from audit.search import Page, Query
from audit.viewer import Viewer
from governance import schema, staff_keys
from governance.answers import text
from governance.api import BackendView, invalid_parameter, json_response, parameter, too_many, values
from governance.budgets import budgets
from governance.problems import Problem, not_authenticated
from muniment import statements

AHEAD = timedelta(minutes=5)  # the log's clock is the database's, and may be ahead of ours
MICROSECOND = timedelta(microseconds=1)
CODE, NAME = re.compile(r"[a-z][a-z_]{0,39}"), re.compile(r"[^\x00-\x1f\x7f]{1,255}")
MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
HASH, ANY_ID = re.compile(r"[0-9a-f]{32}"), re.compile(r"[^\x00-\x1f\x7f]{1,256}")
WINDOW, LIMIT = re.compile("|".join(search.WINDOWS)), re.compile(r"[1-9][0-9]?", re.ASCII)
CURSOR = re.compile(r"[A-Za-z0-9_-]{1,40}", re.ASCII)
PLACE = re.compile(r"([on])([0-9]{1,16})", re.ASCII)
Parameters = Mapping[str, tuple[re.Pattern[str], str]]
# Each filter's form, and the words for what is not of it.
FILTERS: Parameters = {
    "type": (CODE, "the type of a record, such as `decision`"),
    "decision": (re.compile("allow|deny"), "`allow` or `deny`"),
    "reason": (CODE, "a reason code"),
    "client": (NAME, "a client's slug"),
    "tool": (NAME, "a tool's name"),
    "backend": (NAME, "a backend's slug"),
    "scope": (NAME, "the name of one scope"),
    "tenant": (NAME, "a tenant"),
    "mode": (re.compile("interactive|subagent|background|api"), "an agent mode"),
    "flagged": (re.compile("true|false"), "`true` or `false`"),
    "subject": (re.compile(r"usr_[A-Za-z0-9_-]{1,36}", re.ASCII), "a uid, usr_...; never an e-mail address or a sub"),
}
# Found through their keyed hashes. Ids of requests and traces name no person; of the others the hash alone is taken,
# as the URL of the same search in the admin has it.
LOOKUPS: Parameters = {
    "request_id": (ANY_ID, "the id of a request"),
    "trace_id": (ANY_ID, "the id of a trace"),
    "session_key": (HASH, "the keyed hash of a session's id, 32 hex digits"),
    "resource_key": (HASH, "the keyed hash of a resource, 32 hex digits"),
}
TIMES = ("window", "since", "until")
KNOWN = {*FILTERS, *LOOKUPS, *TIMES, "limit", "cursor"}
# The words of the API, where the columns' are others.
COLUMNS = {"scope": "scopes"}


class StaffView(BackendView):
    """A view for tools of the staff."""

    METHODS = frozenset({"GET", "HEAD"})

    def viewer(self, request: HttpRequest) -> Viewer:
        """Who looks. Raises a 401 Problem after noting the failure, 429 when the failure budget of the source is used
        up, 403 for an owner who may not read records."""
        credential = staff_keys.read(request.META.get("HTTP_AUTHORIZATION"))
        source = request.META.get("REMOTE_ADDR", "")
        spent = budgets.spent("", source)
        try:
            viewer = staff_keys.viewer(credential, look=not spent)
        except staff_keys.NotAuthenticated:
            budgets.turned_away("", "staff_key")
            if spent:
                raise too_many() from None
            budgets.charge("", source)
            raise not_authenticated("staff key: Authorization: Bearer sk_...") from None
        if not viewer.records:
            raise Problem(403, "not-permitted", "Not permitted", "The owner of this key may not read records.")
        return viewer


class RecordsView(StaffView):
    """GET /v1/records: a page of a search, newest first."""

    @schema.records
    def get(self, request: HttpRequest) -> HttpResponse:
        """What matches all filters in the time window, and where the pages beside it are."""
        viewer = self.viewer(request)
        given = parameters(request)
        query, limit = query_of(given), int(given.get("limit") or search.PAGE)
        page = shortened(search.find(viewer, query), limit, newest=query.after is not None)
        return json_response({
            "items": [item(record) for record in page.records],
            "since": moment(query.since),
            "until": moment(query.until),
            "reached": None if page.reached is None else moment(page.reached),
            "next": beside(given, query, page, "o"),
            "previous": beside(given, query, page, "n"),
        })  # fmt: skip


class RecordView(StaffView):
    """GET /v1/records/{id}: one record."""

    @schema.record
    def get(self, request: HttpRequest, record: UUID) -> HttpResponse:
        """The record, and the id of its outcome, if one was reported. What the viewer may not see is answered like what
        is not there."""
        found = search.one(self.viewer(request), record)
        if found is None:
            raise Problem(404, "record-unknown", "No such record", "There is no record with this id for this key.")
        outcome = search.outcome_of(found) if found.decision == "allow" else None
        return json_response(item(found) | {"outcome": None if outcome is None else str(outcome.id)})


def parameters(request: HttpRequest) -> dict[str, str]:
    """The query's parameters, each known, given once and of its form; a misspelled filter must not pass for one that
    was heeded. Raises a 400 Problem."""
    values(request, "")  # more parameters than Django takes
    for name in request.GET:
        if name not in KNOWN:
            raise invalid_parameter(name[:40] if name.isprintable() else "?", "there is no such parameter")
    forms: dict[str, tuple[re.Pattern[str], str]] = {
        **FILTERS, **LOOKUPS,
        "window": (WINDOW, f"one of {', '.join(search.WINDOWS)}"),
        "since": (MOMENT, "a time as RFC 3339 has it, with its offset"),
        "until": (MOMENT, "a time as RFC 3339 has it, with its offset"),
        "limit": (LIMIT, f"1 to {search.PAGE}"),
        "cursor": (CURSOR, "a cursor, as `next` or `previous` had it"),
    }  # fmt: skip
    return {name: parameter(request, name, *forms[name]) for name in forms if name in request.GET}


def query_of(given: Mapping[str, str]) -> Query:
    """What to find. Raises a 400 Problem for values that do not go together."""
    since, until = window(given)
    if int(given.get("limit", 1)) > search.PAGE:
        raise invalid_parameter("limit", f"1 to {search.PAGE}")
    filters: dict[str, Any] = {COLUMNS.get(name, name): given[name] for name in FILTERS if name in given}
    filters |= {name: None for name in ABSENT if filters.get(name) == NONE}
    if "flagged" in filters:
        filters["flagged"] = filters["flagged"] == "true"
    lookups = {f"{name[:-3]}_key": lookup(name, given[name]) for name in ("request_id", "trace_id") if name in given}
    lookups |= {name: bytes.fromhex(given[name]) for name in ("session_key", "resource_key") if name in given}
    query = Query(since=since, until=until, filters=filters, lookups=lookups)
    if "cursor" not in given:
        return query
    direction, at = place(given["cursor"])
    return replace(query, before=at) if direction == "o" else replace(query, after=at)


def window(given: Mapping[str, str]) -> tuple[datetime, datetime]:
    """The time window, which is always on: as given, or up to now. Raises a 400 Problem."""
    if "window" in given and ("since" in given or "until" in given):
        raise invalid_parameter("window", "leave it out where `since` or `until` is given")
    if "until" in given and "since" not in given:
        raise invalid_parameter("since", "it is needed where `until` is given")
    now = timezone.now()
    until = time_of(given, "until") if "until" in given else now + AHEAD
    if "since" not in given:
        return now - search.WINDOWS[given.get("window", search.DEFAULT_WINDOW)], until
    since = time_of(given, "since")
    if since >= until:
        raise invalid_parameter("since", "it must be before `until`, or before now")
    return since, until


def time_of(given: Mapping[str, str], name: str) -> datetime:
    """A time in UTC. Raises a 400 Problem for one that is in no calendar."""
    try:
        return datetime.fromisoformat(given[name].upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise invalid_parameter(name, "there is no such time") from None


def shortened(page: Page, limit: int, newest: bool) -> Page:
    """The part of a page that lies next to its cursor: the newest records, or the oldest when paging to newer ones."""
    if len(page.records) <= limit:
        return page
    if newest:
        return Page(page.records[-limit:], older=page.older, newer=True)
    return Page(page.records[:limit], older=True, newer=page.newer)


def beside(given: Mapping[str, str], query: Query, page: Page, direction: str) -> str | None:
    """The address of the page with older (`o`) or newer (`n`) records, which stays the same page: its window is given
    by times. None where there is none."""
    at = page.before if direction == "o" else page.after
    if at is None and not page.records:  # beyond the last one: back to where the cursor was
        if direction == "n" and page.newer and query.before:
            at = query.before - MICROSECOND
        elif direction == "o" and page.older and query.after:
            at = query.after + MICROSECOND
    if at is None:
        return None
    kept = {name: value for name, value in given.items() if name not in (*TIMES, "cursor")}
    kept |= {"since": moment(query.since), "until": moment(query.until), "cursor": cursor(direction, at)}
    return f"{reverse('api_records')}?{urlencode(kept)}"


def cursor(direction: str, at: datetime) -> str:
    """Where a page begins, and which way it goes: opaque to who gets it."""
    return base64.urlsafe_b64encode(f"{direction}{(at - EPOCH) // MICROSECOND}".encode()).decode().rstrip("=")


def place(cursor: str) -> tuple[str, datetime]:
    """What a cursor says. Raises a 400 Problem for one that we did not make."""
    try:
        found = PLACE.fullmatch(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode())
        if found:
            return found[1], EPOCH + int(found[2]) * MICROSECOND
    except (ValueError, OverflowError):
        pass
    raise invalid_parameter("cursor", "a cursor, as `next` or `previous` had it")


def moment(at: datetime) -> str:
    """RFC 3339, in UTC, with microseconds."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def item(record: Record) -> dict[str, Any]:
    """A record as it is answered: the statement is the very bytes that were hashed, null where somebody has made them
    something that is no JSON."""
    data = bytes(record.statement)
    try:
        statements.load(data)
    except statements.StatementError:
        statement = None
    else:
        statement = msgspec.Raw(data)
    return {
        "id": str(record.id), "index": record.index, "at": moment(record.at), "leaf": text(bytes(record.leaf)),
        "statement": statement,
    }  # fmt: skip
