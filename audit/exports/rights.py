"""What staff who are confined to tenants see of exports: their own, and of those the runs that hold nothing of others.
A run notes the tenants that it is made with, since its owner may see others by the time that it is looked at."""

from typing import Any

from audit.models import Export, ExportRun
from audit.viewer import tenants_of

MADE_WITH = "tenants"  # in a run's definition: a list; None for all; not there before it is begun
WHOLE = frozenset({"bundle", "evidence"})  # formats that show all of the log

Tenants = frozenset[str] | None


def noted(tenants: Tenants) -> list[str] | None:
    """Tenants as a run's definition has them."""
    return None if tenants is None else sorted(tenants)


def within(run: ExportRun, tenants: Tenants) -> bool:
    """Whether all that was read for a run may be seen by somebody with these tenants."""
    if tenants is None:
        return True
    made_with = run.definition.get(MADE_WITH)
    return isinstance(made_with, list) and tenants.issuperset(made_with)


def may_see(user: Any, export: Export | ExportRun) -> bool:
    """Whether somebody may see an export, or a run, at all."""
    tenants = tenants_of(user)
    if tenants is None:
        return True
    if export.owner != f"staff:{user.pk}":
        return False
    if isinstance(export, Export) or not (export.records or export.sha256 or export.counts):
        return True
    return within(export, tenants)
