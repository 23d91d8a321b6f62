"""Who the users are: found by keyed hash, identifiers protected under the subject's own data key."""

import secrets
from dataclasses import dataclass, field
from datetime import datetime

from cryptography.exceptions import InvalidTag
from django.db import transaction

from audit.models import Subject, SubjectTenant
from audit.protection import MAX_CACHED, KeyDestroyed, KeyRing, keyed_hash, keyring, protect, reveal


@dataclass(frozen=True, slots=True)
class Known:
    """A subject that this process has seen: its uid, the e-mail address that is stored for it, and the tenants."""

    uid: str
    email: str | None
    tenants: set[str] = field(default_factory=set)


_known: dict[tuple[str, str], Known] = {}


def identity_key(issuer: str, sub: str) -> bytes:
    """How a caller is found: a keyed hash of `iss` and `sub`, 32 bytes."""
    return keyed_hash("identity", f"{issuer}\x00{sub}")


def email_key(email: str) -> bytes:
    """How an e-mail address is found, whatever its case."""
    return keyed_hash("email", email.strip().lower())


def resolve(issuer: str, sub: str, email: str | None = None, tenant: str | None = None) -> str:
    """The uid of this user, made at the first call. The e-mail address, when a token brings another, is stored
    anew; the tenant is noted. A new subject raises no policy version."""
    known = _known.get((issuer, sub))
    if known is None or (email is not None and email != known.email):
        key = identity_key(issuer, sub)
        known = _find(key, email) or _create(key, issuer, sub, email)
        if len(_known) >= MAX_CACHED:
            _known.clear()
        _known[issuer, sub] = known
    if tenant is not None and tenant not in known.tenants:
        SubjectTenant.objects.bulk_create([SubjectTenant(subject=known.uid, tenant=tenant)], ignore_conflicts=True)
        known.tenants.add(tenant)
    return known.uid


def known(issuer: str, sub: str, remembered: bool = True) -> str | None:
    """The uid of a user who was met before. Nobody is made: for who is only said to be somebody. What this process
    remembers may be of one who was erased meanwhile: `remembered` off asks the database."""
    if remembered and (found := _known.get((issuer, sub))) is not None:
        return found.uid
    return Subject.objects.filter(identity_key=identity_key(issuer, sub)).values_list("uid", flat=True).first()


def _find(key: bytes, email: str | None) -> Known | None:
    subject = Subject.objects.filter(identity_key=key).first()
    if subject is None:
        return None
    stored = read(subject, "email")
    if email is not None and email != stored:
        with transaction.atomic():
            # Somebody may be changing this user; then the address is stored at a later call. One who was erased a
            # moment ago has no such key any more, and must not get an address again.
            free = Subject.objects.select_for_update(skip_locked=True).filter(identity_key=key).first()
            if free is not None:
                free.email = protect(keyring.get(free.uid), email.encode(), bound(free.uid, "email"))
                free.email_key = email_key(email)
                free.save(update_fields=["email", "email_key"])
                stored = email
    return Known(subject.uid, stored)


def _create(key: bytes, issuer: str, sub: str, email: str | None) -> Known:
    uid = f"usr_{secrets.token_urlsafe(15)}"
    try:
        with transaction.atomic():
            winner = _insert(uid, key, issuer, sub, email)
    except BaseException:
        keyring.forget(uid)  # the database does not have it
        raise
    return Known(winner, email)


def _insert(uid: str, key: bytes, issuer: str, sub: str, email: str | None) -> str:
    """Make the subject, or find the one that another process made first; then its row counts and our key is never
    used."""
    cipher = keyring.get(uid, create=True)
    subject = Subject(
        uid=uid,
        issuer=issuer,
        identity_key=key,
        sub=protect(cipher, sub.encode(), bound(uid, "sub")),
        email=protect(cipher, email.encode(), bound(uid, "email")) if email else None,
        email_key=email_key(email) if email else None,
    )
    Subject.objects.bulk_create([subject], ignore_conflicts=True)
    return Subject.objects.values_list("uid", flat=True).get(identity_key=key)


def bound(uid: str, column: str) -> bytes:
    """What a protected identifier is bound to (AAD)."""
    return f"{uid}/{column}".encode()


def read(subject: Subject, column: str, ring: KeyRing | None = None) -> str | None:
    """A protected identifier (`sub` or `email`) in clear; None where there is none, or it can no longer be read.
    Only for viewers who may see personal data.

    The key is asked of the database, since another process may have destroyed it. `ring` serves a reader of many, and
    must not outlive the request."""
    protected = getattr(subject, column)
    if protected is None:
        return None
    try:
        key = (ring or KeyRing()).get(subject.uid)
        return reveal(key, bytes(protected), bound(subject.uid, column)).decode()
    except (KeyDestroyed, InvalidTag):
        return None


def find_by_email(email: str) -> list[str]:
    """The uids known under an e-mail address."""
    return list(Subject.objects.filter(email_key=email_key(email)).values_list("uid", flat=True)[:100])


def find_by_sub(sub: str) -> list[str]:
    """The uids that any issuer knows under this `sub`."""
    issuers = Subject.objects.order_by().values_list("issuer", flat=True).distinct()
    keys = [identity_key(issuer, sub) for issuer in issuers]
    return list(Subject.objects.filter(identity_key__in=keys).values_list("uid", flat=True))


def state(uid: str) -> tuple[bool, datetime | None, bool]:
    """What ends this subject's access: (blocked, by staff or by the identity provider; signed out at; gone)."""
    known = Subject.objects.filter(uid=uid)
    row = known.values_list("blocked_at", "deactivated_at", "signed_out_at", "erased_at").first()
    if row is None:
        return False, None, True
    blocked, deactivated, out, erased = row
    return blocked is not None or deactivated is not None, out, erased is not None


def forget(uid: str) -> None:
    """Drop what this process remembers of a subject."""
    keyring.forget(uid)
    for key, known in list(_known.items()):
        if known.uid == uid:
            _known.pop(key, None)


def clear() -> None:
    """Drop all that this process remembers."""
    _known.clear()
    keyring.clear()
