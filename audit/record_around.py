"""Where a record's page leads: to everything that the record involves. Every link is by uid, slug or keyed hash."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.http import urlencode

from audit import search
from audit.models import Record
from audit.viewer import Viewer
from muniment import statements

NEAR = timedelta(hours=1)  # a policy record is drained into the log after decisions may have used it
BEFORE, AFTER = 5, 50  # policy records that are looked at on either side of a decision
SAME = {"request_key": "request", "trace_key": "trace", "session_key": "session"}


@dataclass(frozen=True, slots=True)
class Link:
    """What is there, in words, and where."""

    words: str
    url: str


def link(words: str, route: str, *args: Any, query: Mapping[str, Any] | None = None) -> list[Link]:
    """One link, or none where this site has no such page. Members of the query that are None are left out."""
    try:
        url = reverse(route, args=args)
    except NoReverseMatch:
        return []
    given = {name: value for name, value in (query or {}).items() if value is not None}
    return [Link(words, f"{url}?{urlencode(given, doseq=True)}" if given else url)]


def window_of(at: datetime) -> str | None:
    """The shortest preset of the search that reaches back to a time; None where none does."""
    passed = timezone.now() - at
    return next((name for name, span in search.WINDOWS.items() if passed < span - timedelta(minutes=5)), None)


def around(viewer: Viewer, record: Record, statement: Mapping[str, Any], client: str | None) -> list[Link]:
    """What a record leads to; `client` is the name that staff know its client by."""
    window = window_of(record.at)
    query = {"window": window} if window else {}
    found: list[Link] = []
    if record.subject:
        found += link("Everything of this user", "admin:timeline", "user", record.subject, query=query)
    if record.client:
        found += link(f"Everything through {client}", "admin:timeline", "client", record.client, query=query)
    if record.tool and record.backend:
        name = f"{record.backend}/{record.tool}"
        found += link(f"All calls of {record.tool}", "admin:timeline", "tool", name, query=query)
    found += same(record, window)
    version = (statement.get("policy") or {}).get("version")
    if record.type in ("decision", "evaluation", "introspection") and isinstance(version, int):
        if policy := policy_record(viewer, version, record.at):
            found += link(f"What made policy version {version}", "admin:record", policy.id)
        found += explain(statement)
    return found + of_staff(statement)


def same(record: Record, window: str | None) -> list[Link]:
    """Other records of the same request, trace or session, and of the same resource, through their keyed hashes."""
    if window is None:
        return []
    found = []
    for column, what in {**SAME, "resource_key": "resource"}.items():
        if (key := getattr(record, column)) is not None:
            query = {"window": window, column: bytes(key).hex()}
            found += link(f"All records of the same {what}", "admin:records", query=query)
    return found


def explain(statement: Mapping[str, Any]) -> list[Link]:
    """The same question, asked of the policy as it is now."""
    get = statement.get
    if not (get("client") and get("tool") and get("backend")):
        return []
    query = {
        "client": get("client"), "tool": f"{get('backend')}/{get('tool')}", "subject": get("subject"),
        "scopes": get("token_scopes") or None, "mode": (get("agent") or {}).get("mode"), "tenant": get("tenant"),
        "role": get("roles") or None,
    }  # fmt: skip
    return link("What would be decided now?", "admin:access_explain", query=query)


# Members of a statement by which it names what has a page of its own.
PAGES = {
    "record": ("The record that was looked at", "admin:record"),
    "request": ("The request", "admin:clients_accessrequest_change"),
    "review": ("The access review", "admin:clients_review_change"),
    "grant": ("The grant", "admin:clients_grant_change"),
}  # fmt: skip


def of_staff(statement: Mapping[str, Any]) -> list[Link]:
    """What staff acted on."""
    named = [(PAGES[name], statement.get(name)) for name in PAGES]
    return [one for (words, route), key in named if isinstance(key, (str, int)) for one in link(words, route, key)]


def policy_record(viewer: Viewer, version: int, at: datetime) -> Record | None:
    """The record of a policy version, looked for around a decision that was made under it. At most 55 records are
    read; None where it is not among them, and for who is confined to tenants, of which no policy is."""
    if viewer.tenants is not None:
        return None
    before = search.visible(viewer, at - search.WINDOWS["1y"], at).filter(type="policy").order_by("-at")[:BEFORE]
    after = search.visible(viewer, at, at + NEAR).filter(type="policy").order_by("at")[:AFTER]
    return next((record for records in (before, after) for record in records if version_of(record) == version), None)


def version_of(record: Record) -> int | None:
    """The policy version that a record speaks of."""
    try:
        said = statements.load(bytes(record.statement))
    except statements.StatementError:
        return None
    policy = said.get("policy") if isinstance(said, dict) else None
    version = policy.get("version") if isinstance(policy, dict) else None
    return version if isinstance(version, int) else None
