"""Staff keys: `sk_<key id>_<secret>`, with which a tool of a member of staff reads records. A key is nobody by itself:
it has its owner's roles as they are when it is used, and ends with its owner's account."""

from datetime import timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from audit.staff_log import tell
from audit.viewer import Viewer, viewer_of
from governance.models import StaffKey
from tools import credentials
from tools.credentials import Credential, Known, Seen

KEY, KIND = credentials.form("sk"), "staff_key"
MAX_DAYS = 3650
MAX_SEEN = 10_000


class NotAuthenticated(Exception):
    """The key is missing, unknown, wrong, expired or revoked, or its owner is no longer on the staff."""


_seen = Seen(MAX_SEEN)  # by their key ids


def issue(
    owner: Any, actor: str, name: str, *, label: str = "", days: int | None = None, reason: str = ""
) -> tuple[StaffKey, str]:
    """Make a key for a member of staff, and have that recorded as done by `actor`, whom people know as `name`.

    Returns the row and the whole key: this is the only time that it exists in clear."""
    key_id, secret = credentials.fresh()
    with transaction.atomic():
        made = StaffKey.objects.create(
            owner=owner, key_id=key_id, digest=credentials.digest_of(KIND, secret), label=label,
            expires_at=timezone.now() + timedelta(days=days) if days else None,
        )  # fmt: skip
        told = {"label": label or None, "reason": reason or None}
        tell(actor, name, "staff_key.make", told, key=key_id, owner=f"staff:{owner.pk}")
    return made, f"sk_{key_id}_{secret}"


def revoke(key: StaffKey, actor: str, name: str, reason: str = "") -> bool:
    """End a key for good, and have that recorded; False where it was ended already."""
    with transaction.atomic():
        held = StaffKey.objects.select_for_update(of=("self",)).get(pk=key.pk)
        if held.revoked_at is not None:
            return False
        held.revoked_at = timezone.now()
        held.save(update_fields=["revoked_at"])
        owner = f"staff:{held.owner_id}"
        tell(actor, name, "staff_key.revoke", {"reason": reason or None}, key=held.key_id, owner=owner)
    return True


def read(header: str | None) -> Credential | None:
    """The staff key in an `Authorization: Bearer` header, or None; a backend's key is none."""
    return credentials.read(header, KEY, KIND)


def viewer(credential: Credential | None, look: bool = True) -> Viewer:
    """Who looks with this key, and what they may see now. With `look` off only a key that was good in this process
    before is looked up. Raises NotAuthenticated; constant work but for the look-up by the public id."""
    row = None
    if credential is not None and (look or credentials.check(credential, _seen.get(credential.key_id), 0)):
        row = StaffKey.objects.select_related("owner").filter(key_id=credential.key_id).first()
    known = None if row is None else _known(row)
    good = credentials.check(credential, known, timezone.now().timestamp())
    if not good or row is None or not (row.owner.is_active and row.owner.is_staff):
        raise NotAuthenticated
    _seen.add(row.key_id, bytes(row.digest))
    credentials.touch(row.key_id, StaffKey)
    return viewer_of(row.owner)


def _known(row: StaffKey) -> Known:
    ends = None if row.expires_at is None else row.expires_at.timestamp()
    return Known(bytes(row.digest), ends, row.revoked_at is not None)
