"""Personal data under a person's key (DESIGN.md section 6): data keys wrapped by a key outside the database,
AES-256-GCM with random nonces (NIST SP 800-38D), and keyed hashes by which an exact value is found again."""

import hmac
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from threading import Lock

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings

from audit.models import DataKey

NONCE = 12
MAX_CACHED = 20_000


class KeyDestroyed(Exception):
    """The holder's data key is gone: what it protected can no longer be read."""


@cache
def _wrapping_key() -> AESGCM:
    return AESGCM(settings.MUNIMENT_KEYS["KEY_ENCRYPTION_KEY"])


def protect(key: AESGCM, plain: bytes, bound_to: bytes) -> bytes:
    """Nonce (12 bytes) and ciphertext; `bound_to` is the AAD without which it does not open."""
    nonce = os.urandom(NONCE)
    return nonce + key.encrypt(nonce, plain, bound_to)


def reveal(key: AESGCM, protected: bytes, bound_to: bytes) -> bytes:
    """The plain bytes. Raises cryptography.exceptions.InvalidTag when anything was changed or swapped."""
    if len(protected) < NONCE:
        raise InvalidTag
    return key.decrypt(protected[:NONCE], protected[NONCE:], bound_to)


def keyed_hash(kind: str, value: str) -> bytes:
    """HMAC-SHA-256 under the pepper, 32 bytes; `kind` keeps equal values of different kinds apart."""
    return hmac.digest(settings.MUNIMENT_KEYS["PEPPER"], kind.encode() + b"\x00" + value.encode(), "sha256")


def token_digest(token: str) -> bytes:
    """SHA-256 of a token's characters: how a token is named without being kept. Never raises."""
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


class KeyRing:
    """Data keys, unwrapped once, bounded. The ring of the process (`keyring`) is for recording alone: a destroyed key
    is forgotten by `forget`, and that it is used no longer elsewhere is checked by the recording transaction, which
    reads the subject's state. Whoever reads what is protected has a ring of their own, as long as one request."""

    def __init__(self) -> None:
        self._keys: dict[str, AESGCM] = {}
        self._lock = Lock()

    @classmethod
    def of(cls, holders: Iterable[str]) -> "KeyRing":
        """A new ring with the keys of these holders that the database has now, read in one query."""
        made = cls()
        for holder, wrapped in DataKey.objects.filter(holder__in=set(holders)).values_list("holder", "wrapped"):
            with suppress(InvalidTag):  # another's key, which `get` will say as well
                made._keys[holder] = AESGCM(reveal(_wrapping_key(), bytes(wrapped), holder.encode()))
        return made

    def get(self, holder: str, create: bool = False) -> AESGCM:
        """The holder's key. Raises KeyDestroyed when there is none and none may be made."""
        if key := self._keys.get(holder):
            return key
        row = DataKey.objects.filter(holder=holder).values_list("wrapped", flat=True).first()
        if row is None:
            if not create:
                raise KeyDestroyed(holder)
            DataKey.objects.bulk_create(
                [DataKey(holder=holder, wrapped=protect(_wrapping_key(), os.urandom(32), holder.encode()))],
                ignore_conflicts=True,
            )
            row = DataKey.objects.values_list("wrapped", flat=True).get(holder=holder)
        key = AESGCM(reveal(_wrapping_key(), bytes(row), holder.encode()))
        with self._lock:
            if len(self._keys) >= MAX_CACHED:
                self._keys.clear()
            self._keys[holder] = key
        return key

    def forget(self, holder: str) -> None:
        """Drop a key from memory."""
        self._keys.pop(holder, None)

    def clear(self) -> None:
        """Drop all."""
        self._keys.clear()


keyring = KeyRing()
