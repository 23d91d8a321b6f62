"""Backend keys: `mk_<key id>_<secret>`; only a peppered digest of the secret is kept, and shown never again."""

import hmac
import re
import secrets
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.db import transaction
from django.utils import timezone

from audit.protection import keyed_hash
from tools.models import Backend, BackendKey

KEY = re.compile(r"mk_([A-Za-z0-9]{12})_([A-Za-z0-9_-]{43})", re.ASCII)
# Compared against when there is no such key, so that a wrong key costs the same as an unknown one.
NOBODY = bytes(32)
TOUCH_EVERY = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Credential:
    """What a caller presented: the public key id, and the digest of the secret (32 bytes)."""

    key_id: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key as the snapshot holds it. Times are POSIX seconds."""

    key_id: str
    backend_id: int
    digest: bytes
    expires_at: float | None
    revoked: bool


def issue(backend: Backend, label: str = "", days: int | None = None) -> str:
    """Make a key and return it whole; this is the only time it exists in clear."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    key_id = "".join(secrets.choice(alphabet) for _ in range(12))
    secret = secrets.token_urlsafe(32)
    expires = timezone.now() + timedelta(days=days) if days else None
    BackendKey.objects.create(backend=backend, key_id=key_id, digest=_digest(secret), label=label, expires_at=expires)
    return f"mk_{key_id}_{secret}"


def _digest(secret: str) -> bytes:
    return keyed_hash("backend_key", secret)


def read(header: str | None) -> Credential | None:
    """The credential in an `Authorization: Bearer` header (RFC 6750 section 2.1), or None."""
    scheme, _, value = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not (match := KEY.fullmatch(value.strip(" "))):
        return None
    return Credential(match[1], _digest(match[2]))


def check(credential: Credential | None, known: KnownKey | None, now: float) -> bool:
    """Whether the credential is this key's and the key is good. Constant work: one comparison, always made."""
    presented = credential.digest if credential else bytes(32)
    same = hmac.compare_digest(presented, known.digest if known else NOBODY)
    return (
        same
        and credential is not None
        and known is not None
        and not known.revoked
        and (known.expires_at is None or now < known.expires_at)
    )


_touched: dict[str, float] = {}
_touching = threading.Lock()


def touch(key_id: str) -> None:
    """Note that a key was used, at most once a minute, in this process."""
    now = time.monotonic()
    if now - _touched.get(key_id, -TOUCH_EVERY) < TOUCH_EVERY:
        return
    with _touching:
        if now - _touched.get(key_id, -TOUCH_EVERY) < TOUCH_EVERY:
            return
        _touched[key_id] = now
    with transaction.atomic():
        # A key that somebody is changing is left alone: no call waits for an open transaction.
        key = BackendKey.objects.select_for_update(skip_locked=True).filter(key_id=key_id).first()
        if key is not None:
            key.last_used = datetime.now(UTC).replace(second=0, microsecond=0)
            key.save(update_fields=["last_used"])
