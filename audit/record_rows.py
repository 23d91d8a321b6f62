"""The lines of the audit search: a record as it is scanned, with what came of it and, for those who may, who it was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from django.urls import reverse
from django.utils.text import capfirst

from audit import record_page, record_words, search, subjects
from audit.models import Record, Subject
from audit.protection import KeyRing
from audit.record_page import Pill
from audit.timeline_view import outcome_words


@dataclass(frozen=True, slots=True)
class Line:
    """One line. `happened` is what came of the call, `who` who the user is, both empty where that is not known or not
    shown; `by` on whose word it is the user, empty where a token was verified. URLs are empty where there is nothing to
    lead to."""

    record: Record
    title: str
    why: str
    pill: Pill
    is_call: bool
    user: str
    user_url: str
    who: str
    by: str
    client: str
    client_url: str
    tool: str
    tool_url: str
    happened: str


def lines(records: Sequence[Record], clients: Mapping[str, str], who: Mapping[str, str]) -> list[Line]:
    """The lines of a page. `clients` says what clients are called, `who` who its users are (uid -> e-mail address or
    sub), as far as the viewer may see it."""
    outcomes = search.outcomes_of(records)
    return [_line(record, clients, who, outcomes.get(record.id)) for record in records]


def _line(record: Record, clients: Mapping[str, str], who: Mapping[str, str], outcome: Record | None) -> Line:
    row = record_page.row(record, clients)
    is_call = record.type == "decision"
    happened = outcome_words(outcome)
    # What is no call has no columns of its own: its sentence says it all.
    why = capfirst(row.why) if is_call else row.title
    if not is_call and row.why:
        happened = row.why
    user = record.subject or ""
    tool = f"{record.backend}/{record.tool}" if record.backend and record.tool else ""
    return Line(
        record, row.title, why or row.title, row.pill, is_call,
        record_words.short_uid(user) if user else "", _timeline("user", user), who.get(user, ""),
        record_words.UNVERIFIED.get(record.type, "") if user else "",
        clients.get(record.client or "", record.client or ""), _timeline("client", record.client or ""),
        record.tool or "", _timeline("tool", tool), happened,
    )  # fmt: skip


def _timeline(kind: str, name: str) -> str:
    return reverse("admin:timeline", args=[kind, name]) if name else ""


def who_are(uids: Sequence[str]) -> dict[str, str]:
    """Who these users are: uid -> e-mail address, else their issuer's sub. Only for viewers who may see personal data,
    and who had the look recorded before. One who was erased stays unnamed."""
    found: dict[str, str] = {}
    ring = KeyRing.of(uids)
    for subject in Subject.objects.filter(uid__in=set(uids), erased_at=None):
        if said := subjects.read(subject, "email", ring) or subjects.read(subject, "sub", ring):
            found[subject.uid] = said
    return found
