"""Who looks: what a member of staff may see of the evidence. Every read of records takes one (DESIGN.md section 7)."""

from dataclasses import dataclass
from typing import Any

from django.core.exceptions import PermissionDenied

# The types of records that are shown to who is confined to tenants, where they are of those: calls, and what is asked
# for. A legal hold names the tenant that it is on, and is not for its staff to know.
OF_TENANTS = ("decision", "evaluation", "outcome", "request")
KNOWN = "_muniment_tenants"  # where a user object remembers its answer, as it remembers its permissions


@dataclass(frozen=True, slots=True)
class Viewer:
    """A member of staff, as the log names them (`staff:<id>`), and what they may see. `tenants` None: every one, and
    what belongs to none; of some, the records of OF_TENANTS."""

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
        tenants=tenants_of(user),
    )


def tenants_of(user: Any) -> frozenset[str] | None:
    """The tenants that a member of staff is confined to; None for one who is not. Asked of the database once for each
    user object, of which each request has its own. Somebody who is not signed in is confined to nothing at all."""
    if not user.is_authenticated:
        return frozenset()
    if not hasattr(user, KNOWN):
        setattr(user, KNOWN, frozenset(user.tenants.values_list("tenant", flat=True)) or None)
    found: frozenset[str] | None = getattr(user, KNOWN)
    return found


def hides(viewer: Viewer, kind: str, tenant: str | None) -> bool:
    """Whether a record of this type and tenant is not shown to them, since they are confined to tenants."""
    return viewer.tenants is not None and (tenant not in viewer.tenants or kind not in OF_TENANTS)


def check(viewer: Viewer) -> None:
    """Whether they may read records at all: asked where records are read, not only where a page is shown. Raises
    PermissionDenied."""
    if not viewer.records:
        raise PermissionDenied


def check_whole(user: Any) -> None:
    """For what tells of the platform as a whole, or cannot be told by tenants. Raises PermissionDenied for who is
    confined to some."""
    if tenants_of(user) is not None:
        raise PermissionDenied
