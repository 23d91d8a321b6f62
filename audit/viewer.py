"""Who looks: what a member of staff may see of the evidence. Every read of records takes one (DESIGN.md section 7)."""

from dataclasses import dataclass
from typing import Any

from django.core.exceptions import PermissionDenied


@dataclass(frozen=True, slots=True)
class Viewer:
    """A member of staff, as the log names them (`staff:<id>`), and what they may see. `tenants` None: every one."""

    actor: str
    name: str
    records: bool = False
    personal: bool = False
    export: bool = False
    tenants: frozenset[str] | None = None


def viewer_of(user: Any) -> Viewer:
    """What a signed-in user may see, asked of their permissions now."""
    return Viewer(
        actor=f"staff:{user.pk}",
        name=(user.get_full_name() or user.get_username())[:150],
        records=user.has_perm("audit.view_record"),
        personal=user.has_perm("audit.view_personal"),
        export=user.has_perm("audit.export_record"),
    )


def check(viewer: Viewer) -> None:
    """Whether they may read records at all: asked where records are read, not only where a page is shown. Raises
    PermissionDenied."""
    if not viewer.records:
        raise PermissionDenied
