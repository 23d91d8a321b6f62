"""The users whom identity providers manage: kept, found, changed and let go; and what that does to their access.

A resource is of one subject, the one whose tokens have the mapped attribute as their `sub`. What it says of the person
is protected under that subject's data key, so that an erasure takes it. `deactivated_at` of the subject is all that it
moves: a block by staff is theirs. Locks are taken in the order of an erasure: subjects, by uid, before resources."""

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils import timezone
from scim2_models import (
    ConflictException,
    InvalidValueException,
    NotFoundException,
    PreconditionFailedException,
    UniquenessException,
)

from audit import subjects
from audit.models import Outbox, Subject
from audit.outbox import acting
from audit.protection import KeyDestroyed, KeyRing, keyed_hash, keyring, protect, reveal
from clients.models import ScimConnection, ScimUser
from clients.scim import resources
from clients.scim.queries import Query
from clients.scim.resources import User

ATTEMPTS: Final = 5
TAKEN: Final = {
    "scim_user_name_once": "Another user has this userName.",
    "scim_external_id_once": "Another user has this externalId.",
    "scim_subject_once": "This person is managed by another resource or connection already.",
}
AT_ONCE: Final = "The user is changed by others at the same time; nothing was changed."
Edit = Callable[[User, bool], User]


@dataclass(frozen=True, slots=True)
class Stored:
    """A resource: its row, and what it says of the person."""

    row: ScimUser
    user: User


def create(connection: ScimConnection, user: User) -> Stored:
    """Manage another user. Raises SCIMException: 400 without the mapped attribute, 409 for one who is managed."""
    _free(connection, user)
    uid = _subject(connection, user)
    row = ScimUser(connection=connection, subject_id=uid, active=bool(user.active), modified_at=timezone.now())
    with _acting(connection):
        [subject] = _lock([uid])
        _fill(row, user)
        _save(row)
        _settle(subject, was=None, now=row.active)
        _tell(connection, "created", uid, row)
    return Stored(row, user)


def one(connection: ScimConnection, number: str) -> Stored:
    """A user of this connection. Raises NotFoundException, also for another connection's."""
    row = _rows(connection).filter(pk__in=_ids(number)).first()
    user = _open(row, KeyRing()) if row is not None else None
    if row is None or user is None:
        raise NotFoundException(detail="There is no such user.")
    return Stored(row, user)


def page(connection: ScimConnection, query: Query) -> tuple[int, list[Stored]]:
    """How many users match, and those of one page, in the order in which they came."""
    found = _rows(connection)
    for name, value in query.terms:
        match name:
            case "id":
                found = found.filter(pk__in=_ids(value))
            case "userName":
                found = found.filter(user_name_key=_key(connection, name, value))
            case _:
                found = found.filter(external_id_key=_key(connection, name, value))
    total = found.count()
    rows = list(found.order_by("created_at", "id")[query.start : query.start + query.count] if total else ())
    ring = KeyRing.of(row.subject_id for row in rows)
    opened = ((row, _open(row, ring)) for row in rows)
    return total, [Stored(row, user) for row, user in opened if user is not None]


def change(connection: ScimConnection, number: str, edit: Edit, wanted: Callable[[str], bool]) -> Stored:
    """Change a user by PUT or PATCH; `edit` makes the new one of the old one and of whether they are active, `wanted`
    says whether this version may be changed. Nothing is recorded where nothing changes, but a user who is not active
    is deactivated in any case. Raises SCIMException."""
    for _ in range(ATTEMPTS):
        stored = one(connection, number)
        if not wanted(version(stored.row)):
            raise PreconditionFailedException(detail="The user has another version by now.")
        after = edit(stored.user.model_copy(deep=True), stored.row.active)
        done = _change(connection, stored, after)
        if done is not None:
            return done
    raise ConflictException(detail=AT_ONCE)


def remove(connection: ScimConnection, number: str, wanted: Callable[[str], bool]) -> None:
    """Let go of a user, who is deactivated thereby. Raises SCIMException."""
    for _ in range(ATTEMPTS):
        row = one(connection, number).row
        if not wanted(version(row)):
            raise PreconditionFailedException(detail="The user has another version by now.")
        with _acting(connection):
            [subject] = _lock([row.subject_id])
            if (held := _held(row)) is None:
                continue
            _settle(subject, was=held.active, now=False)
            _tell(connection, "deleted", subject.uid, held)
            held.delete()
            return
    raise ConflictException(detail=AT_ONCE)


def version(row: ScimUser) -> str:
    """The version of a resource, as a weak entity tag (RFC 9110 section 8.8.3)."""
    return f'W/"{row.version}"'


def _change(connection: ScimConnection, stored: Stored, after: User) -> Stored | None:
    """In one transaction, or None where somebody else changed the user meanwhile."""
    row, before = stored.row, stored.user
    moved = _sub(connection, before) != _sub(connection, after)
    if moved:
        _free(connection, after, row)
    uid = _subject(connection, after) if moved else row.subject_id
    active = row.active if after.active is None else after.active
    changed = resources.changes(before, after)
    with _acting(connection):
        locked = {subject.uid: subject for subject in _lock({row.subject_id, uid})}
        held = _held(row)
        if held is None:
            return None
        _settle(locked[uid], was=None if moved else held.active, now=active)
        if moved:  # nobody is known to the provider by the old `sub` any more
            _settle(locked[row.subject_id], was=held.active, now=False)
        if changed or active != held.active:
            held.subject_id, held.active, held.version = uid, active, held.version + 1
            held.modified_at = timezone.now()
            _fill(held, after)
            _save(held)
            more = {"from": row.subject_id} if moved else {}
            _tell(connection, "moved" if moved else "updated", uid, held, changed=changed, **more)
    return Stored(held, after)


def _acting(connection: ScimConnection) -> Any:
    return acting(f"scim:{connection.name}")


def _rows(connection: ScimConnection) -> QuerySet[ScimUser]:
    return ScimUser.objects.filter(connection=connection)


def _held(row: ScimUser) -> ScimUser | None:
    """The row as it was read, locked; None where it is another by now."""
    same = ScimUser.objects.filter(pk=row.pk, version=row.version, subject=row.subject_id)
    return same.select_for_update(of=("self",)).first()


def _lock(uids: Iterable[str]) -> list[Subject]:
    """The subjects, locked by uid. Raises ConflictException where one of them was erased a moment ago."""
    wanted = set(uids)
    found = list(Subject.objects.select_for_update().filter(uid__in=wanted, erased_at=None).order_by("uid"))
    if len(found) != len(wanted):
        raise ConflictException(detail=AT_ONCE)
    return found


def _settle(subject: Subject, was: bool | None, now: bool) -> None:
    """Let the subject's access follow: what is not active is deactivated, and who becomes active is so again. One who
    stays active is left as they are, since somebody else may have deactivated them since."""
    wanted = subject.deactivated_at
    if not now:
        wanted = subject.deactivated_at or timezone.now()
    elif was is not True:
        wanted = None
    if wanted != subject.deactivated_at:
        subject.deactivated_at = wanted
        subject.save(update_fields=["deactivated_at"])


def _tell(connection: ScimConnection, action: str, uid: str, row: ScimUser, **more: Any) -> None:
    """Have it recorded; nothing here names a person."""
    members = {"action": f"scim.{action}", "connection": connection.name, "subject": uid, "resource": str(row.pk)}
    Outbox.objects.create(
        kind="signal", members=members | more, private={}, at=timezone.now(), actor=f"scim:{connection.name}", xact=""
    )


def _ids(number: str) -> list[uuid.UUID]:
    """The id of a resource, which is compared to the letter; none for what is no id of ours."""
    try:
        found = uuid.UUID(number)
    except ValueError:
        return []
    return [found] if str(found) == number else []


def _sub(connection: ScimConnection, user: User) -> str:
    """The `sub` of the person's tokens. Raises InvalidValueException where the attribute is not there."""
    name = connection.subject_attribute
    found = user.user_name if name == "userName" else user.external_id
    if not found:
        raise InvalidValueException(detail=f"{name} is required: it is what the person's tokens have as their sub.")
    return found


def _subject(connection: ScimConnection, user: User) -> str:
    """The uid of the person, who is made known if nobody met them. Outside of any transaction: what a process
    remembers of a subject must not be undone."""
    issuer, sub = connection.issuer.issuer, _sub(connection, user)
    uid = subjects.known(issuer, sub, remembered=False)
    if uid is not None:
        return uid
    if (stale := subjects.known(issuer, sub)) is not None:  # erased meanwhile, in another process
        subjects.forget(stale)
    return subjects.resolve(issuer, sub, resources.address(user))


def _key(connection: ScimConnection, name: str, value: str) -> bytes:
    """How a name is found: a keyed hash, which is another one in every connection."""
    return keyed_hash(f"scim_{name}", f"{connection.pk}\x00{value}")


def _keys(connection: ScimConnection, user: User) -> tuple[bytes, bytes | None]:
    name = _key(connection, "userName", resources.comparable("userName", user.user_name or ""))
    if user.external_id is None:
        return name, None
    return name, _key(connection, "externalId", resources.comparable("externalId", user.external_id))


def _free(connection: ScimConnection, user: User, row: ScimUser | None = None) -> None:
    """Raises UniquenessException where the user, or their names, are taken, before a subject is made; that they are
    free to the end the database sees to."""
    name, external = _keys(connection, user)
    others = _rows(connection).exclude(pk=row.pk) if row is not None else _rows(connection)
    uid = subjects.known(connection.issuer.issuer, _sub(connection, user), remembered=False)
    if others.filter(user_name_key=name).exists():
        raise UniquenessException(detail=TAKEN["scim_user_name_once"])
    if external is not None and others.filter(external_id_key=external).exists():
        raise UniquenessException(detail=TAKEN["scim_external_id_once"])
    managed = ScimUser.objects.filter(subject=uid)
    if uid is not None and (managed if row is None else managed.exclude(pk=row.pk)).exists():
        raise UniquenessException(detail=TAKEN["scim_subject_once"])


def _fill(row: ScimUser, user: User) -> None:
    """What is kept of the person, under the key of their subject, whose row is locked: the key is not gone."""
    row.user_name_key, row.external_id_key = _keys(row.connection, user)
    cipher = keyring.get(row.subject_id)
    row.content = protect(cipher, resources.content(user), str(row.pk).encode())


def _save(row: ScimUser) -> None:
    """Raises UniquenessException for what somebody else took a moment ago."""
    try:
        with transaction.atomic():
            row.save(force_insert=row._state.adding)
    except IntegrityError as error:
        name = getattr(getattr(error.__cause__, "diag", None), "constraint_name", None) or ""
        raise UniquenessException(detail=TAKEN.get(name, AT_ONCE)) from None


def _open(row: ScimUser, ring: KeyRing) -> User | None:
    """What a resource says of the person; None where that cannot be read any more."""
    try:
        user = resources.restored(reveal(ring.get(row.subject_id), bytes(row.content), str(row.pk).encode()))
    except (KeyDestroyed, InvalidTag):
        return None
    user.id = str(row.pk)
    return user
