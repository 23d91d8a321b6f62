"""Files of exports that hold an erased user's protected details. They were made before and cannot be taken back; so
they are named, and whoever has them is to be told (GDPR Art. 17(2) and 19). Exports made later have nothing to leave
out: the key is gone."""

from typing import Any
from urllib.parse import parse_qsl

from django.db.models import CharField, F, Func, Q, Value

from audit.models import Export, ExportRun, Record
from audit.records_form import ABSENT, FILTERS, NONE

MOST = 1000  # runs that are looked at, the newest
# Equal to a column of the record; the others make a search narrower still, which is not looked at.
EXACT = frozenset({"client", "tool", "backend", "tenant", "decision", "reason", "mode", "type", "subject"})


def runs(using: str = "default") -> list[ExportRun]:
    """The newest runs with personal data that have begun, of which a file is kept or was handed over."""
    begun = ExportRun.objects.using(using).filter(personal=True, first__isnull=False)
    there = begun.exclude(state="cancelled").filter(Q(removed_at=None) | Q(delivered_at__isnull=False))
    return list(there.order_by("-created_at")[:MOST])


def holding(uid: str, using: str = "default") -> list[ExportRun]:
    """Those of them whose range and search cover a record of the user with protected details."""
    found = runs(using)
    exports = Export.objects.using(using).filter(pk__in={run.export for run in found})
    queries = dict(exports.values_list("pk", "query"))
    return [run for run in found if _holds(run, queries.get(run.export, ""), uid, using)]


def flag(uid: str, using: str) -> int:
    """Mark them as holding a user who was erased since; how many were marked anew."""
    marked = 0
    for run in holding(uid, using):
        fresh = ExportRun.objects.using(using).filter(pk=run.pk).exclude(erased_since__contains=[uid])
        marked += fresh.update(erased_since=Func(F("erased_since"), Value(uid, CharField()), function="array_append"))
    return marked


def _holds(run: ExportRun, query: str, uid: str, using: str) -> bool:
    written = Q(index__lt=run.next) if run.state == "running" and run.next is not None else Q(index__lte=run.last)
    records = Record.objects.using(using).filter(
        written, subject=uid, at__gte=run.since, at__lt=run.until, index__gte=run.first, disclosures__isnull=False
    )
    return records.filter(**conditions(query)).exists()


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
