"""Backend keys: `mk_<key id>_<secret>`; only a peppered digest of the secret is kept, and shown never again. Keys of
another kind (governance.staff_keys) are made, read and compared by the same functions, under their own name."""

import hmac
import re
import secrets
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from django.db import transaction
from django.db.models import Model
from django.utils import timezone

from audit.protection import keyed_hash
from tools.models import Backend, BackendKey


def form(prefix: str) -> re.Pattern[str]:
    """The form of a key: its prefix, a public id of 12 characters, a secret of 256 bits."""
    return re.compile(prefix + r"_([A-Za-z0-9]{12})_([A-Za-z0-9_-]{43})", re.ASCII)


KEY, KIND = form("mk"), "backend_key"
# Compared against when there is no such key, so that a wrong key costs the same as an unknown one.
NOBODY = bytes(32)
TOUCH_EVERY = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Credential:
    """What a caller presented: the public key id, and the digest of the secret (32 bytes)."""

    key_id: str
    digest: bytes


class Kept(Protocol):
    """What must be known of a key to check a credential against it. `expires_at` is in POSIX seconds."""

    @property
    def digest(self) -> bytes:
        """HMAC-SHA-256 of its secret."""

    @property
    def expires_at(self) -> float | None:
        """None: never."""

    @property
    def revoked(self) -> bool:
        """For good."""


@dataclass(frozen=True, slots=True)
class Known:
    """A key by what `check` asks of it. `digest` is 32 bytes, `expires_at` in POSIX seconds (None: never)."""

    digest: bytes
    expires_at: float | None = None
    revoked: bool = False


class Seen:
    """Keys that were good in this process a while ago, by what names them; `most` of them at most. While wrong keys
    pour in, only these are looked up."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._digests: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> Known | None:
        """What a credential must fit to be the key that was good."""
        digest = self._digests.get(name)
        return None if digest is None else Known(digest)

    def add(self, name: str, digest: bytes) -> None:
        """Remember a key that was good just now by its digest (32 bytes)."""
        with self._lock:
            if len(self._digests) >= self.most:
                self._digests.clear()
            self._digests[name] = digest

    def clear(self) -> None:
        """Remember none."""
        with self._lock:
            self._digests.clear()


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
    key_id, secret = fresh()
    expires = timezone.now() + timedelta(days=days) if days else None
    digest = digest_of(KIND, secret)
    BackendKey.objects.create(backend=backend, key_id=key_id, digest=digest, label=label, expires_at=expires)
    return f"mk_{key_id}_{secret}"


def fresh() -> tuple[str, str]:
    """A new key's public id and its secret."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return "".join(secrets.choice(alphabet) for _ in range(12)), secrets.token_urlsafe(32)


def digest_of(kind: str, secret: str) -> bytes:
    """What is kept of a secret, 32 bytes; `kind` keeps a key of one kind from being good as another."""
    return keyed_hash(kind, secret)


def read(header: str | None, form: re.Pattern[str] = KEY, kind: str = KIND) -> Credential | None:
    """The credential in an `Authorization: Bearer` header (RFC 6750 section 2.1), or None; of a backend, unless another
    form and kind of key is asked for."""
    scheme, _, value = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not (match := form.fullmatch(value.strip(" "))):
        return None
    return Credential(match[1], digest_of(kind, match[2]))


def check(credential: Credential | None, known: Kept | None, now: float) -> bool:
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


_touched: dict[tuple[type[Model], str], float] = {}
_touching = threading.Lock()


def touch(key: str, model: type[Model] = BackendKey, column: str = "key_id") -> None:
    """Note that a key was used, at most once a minute, in this process. `model` is where it is kept, and `column` what
    it is known by there."""
    now, known = time.monotonic(), (model, key)
    if now - _touched.get(known, -TOUCH_EVERY) < TOUCH_EVERY:
        return
    with _touching:
        if now - _touched.get(known, -TOUCH_EVERY) < TOUCH_EVERY:
            return
        _touched[known] = now
    with transaction.atomic():
        # A key that somebody is changing is left alone: no call waits for an open transaction.
        free = model._default_manager.select_for_update(skip_locked=True, of=("self",))
        row: Any = free.filter(**{column: key}).first()
        if row is not None:
            row.last_used = datetime.now(UTC).replace(second=0, microsecond=0)
            row.save(update_fields=["last_used"])
