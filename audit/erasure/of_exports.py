"""Files of exports that hold an erased user's protected details. They were made before and cannot be taken back; so
they are named, and whoever has them is to be told (GDPR Art. 17(2) and 19). Exports made later have nothing to leave
out: the key is gone."""

from typing import Any
from urllib.parse import parse_qsl

from django.db.models import CharField, F, Func, Q, QuerySet, Value

from audit.exports import rights
from audit.models import ExportRun, Record
from audit.records_form import ABSENT, FILTERS, NONE

MOST = 1000  # runs that the page looks at, the newest; in one page of those that are marked
# Equal to a column of the record; the others make a search narrower still, which is not looked at.
EXACT = frozenset({"client", "tool", "backend", "tenant", "decision", "reason", "mode", "type", "subject"})


def runs(using: str = "default") -> QuerySet[ExportRun]:
    """The runs with personal data that have begun, of which a file is kept or was handed over, the newest first."""
    begun = ExportRun.objects.using(using).filter(personal=True, first__isnull=False)
    there = begun.exclude(state="cancelled").filter(Q(removed_at=None) | Q(delivered_at__isnull=False))
    return there.order_by("-pk")


def holding(uid: str, using: str = "default") -> list[ExportRun]:
    """Those of the newest MOST whose range and search cover a record of the user with protected details. A record that
    retention has deleted by then tells nothing any more."""
    return [run for run in runs(using)[:MOST] if _holds(run, uid, using)]


def flag(uid: str, using: str) -> int:
    """Mark all of them as holding a user who was erased since; how many were marked anew. Once more it goes on, and
    marks nothing twice."""
    marked, below = 0, 2**63 - 1
    while page := list(runs(using).filter(pk__lt=below)[:MOST]):
        for run in page:
            if uid not in run.erased_since and _holds(run, uid, using):
                marked += _mark(run, uid, using)
        below = page[-1].pk
    return marked


def _mark(run: ExportRun, uid: str, using: str) -> int:
    fresh = ExportRun.objects.using(using).filter(pk=run.pk).exclude(erased_since__contains=[uid])
    return fresh.update(erased_since=Func(F("erased_since"), Value(uid, CharField()), function="array_append"))


def _holds(run: ExportRun, uid: str, using: str) -> bool:
    """By the search as it was when the run was begun: the export may have another by now. Without one, all counts; and
    so does all of the range while it is written, since how far that is was saved a moment ago."""
    records = Record.objects.using(using).filter(
        subject=uid, at__gte=run.since, at__lt=run.until, index__gte=run.first, index__lte=run.last,
        disclosures__isnull=False,
    )  # fmt: skip
    query, tenants = run.definition.get("query"), run.definition.get(rights.MADE_WITH)
    if isinstance(tenants, list):
        records = records.filter(tenant__in=tenants)
    return records.filter(**conditions(query if isinstance(query, str) else "")).exists()


def conditions(query: str) -> dict[str, Any]:
    """The exact filters of a saved search, by column; what cannot be told from it narrows nothing."""
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query):
        if name not in FILTERS or name not in EXACT or "\x00" in value:
            continue
        if value == NONE and name in ABSENT:
            found[f"{name}__isnull"] = True
        else:
            found[name] = value
    return found
