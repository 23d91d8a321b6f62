"""Encryption for each user: what is stored of a user is readable with that user's key only, in that row and field only.

AES-256-GCM with random nonces of 96 bits, so that a user's key is good for 2^32 encryptions (NIST SP 800-38D section
8.3), which no person writes. Keys are *derived* from a root key (HKDF-SHA-256, RFC 5869), or, with a store, random and
*wrapped* under it: then deleting a user's one row in the store makes all that was stored of that user unreadable,
wherever copies are, but for copies of the store.

    stored  = version (1) || id of the user's key (8) || nonce (12) || ciphertext and tag (16 longer than the plaintext)
    wrapped = version (1) || id of the root key (8) || nonce (12) || the user's key, encrypted
"""

from __future__ import annotations

import os
from base64 import b64decode
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from muniment.errors import Misconfigured, MunimentError
from muniment.isolation import fetched, quoted

VERSION: Final = b"\x01"
KEY, NONCE, ID = 32, 12, 8  # bytes
_HEADER: Final = len(VERSION) + ID + NONCE
Row = str | int | UUID
"""What a row is known by; a number and a UUID are taken as they are written."""


class Undecryptable(MunimentError):
    """Not what this vault encrypted for this user, row and field: another's, altered, or under a key that is gone."""


class KeyStore(Protocol):
    """Where wrapped keys are kept, one for each user. It needs no secrecy, but what is deleted must be gone."""

    def get(self, uid: str) -> bytes | None:
        """The user's wrapped key."""

    def add(self, uid: str, wrapped: bytes) -> bytes:
        """Keep a key where there is none; the one that is kept then, which may be another's who was faster."""

    def replace(self, uid: str, old: bytes, new: bytes) -> bool:
        """Keep another wrapping of the same key, if the old one is still what is kept; whether it was. A key that was
        destroyed meanwhile must not come back."""

    def delete(self, uid: str) -> None:
        """Destroy it, for good."""


class UserVault:
    """One user's part of a vault, whose keys were read once: for the rows of one request, and not for longer, since
    it does not learn that the user's key was destroyed."""

    def __init__(self, uid: str, keys: Sequence[bytes]) -> None:
        self._uid, self._keys = uid, {_id(key): key for key in keys}

    def encrypt(self, row: Row, plain: bytes | str, field: str = "") -> bytes:
        """Readable by `decrypt` with the same row and field alone; 37 bytes longer. Raises ValueError for text that is
        no Unicode."""
        id, key = next(iter(self._keys.items()))
        nonce, data = os.urandom(NONCE), plain if isinstance(plain, bytes) else _utf8(plain)
        return VERSION + id + nonce + AESGCM(_content(key)).encrypt(nonce, data, self._bound(row, field))

    def decrypt(self, row: Row, stored: bytes | memoryview, field: str = "") -> bytes:
        """What was encrypted. Raises Undecryptable."""
        given = bytes(memoryview(stored))
        key = self._keys.get(given[1 : 1 + ID])
        if key is None or not given.startswith(VERSION):
            raise Undecryptable("It was not encrypted for this user with a key that is there.")
        return _open(_content(key), given, self._bound(row, field))

    def is_current(self, stored: bytes | memoryview) -> bool:
        """Whether it names the newest of the user's keys; else it wants `reencrypt`."""
        return bytes(memoryview(stored))[: 1 + ID] == VERSION + next(iter(self._keys), b"")

    def reencrypt(self, row: Row, stored: bytes | memoryview, field: str = "") -> bytes:
        """The same under the newest of the user's keys. Raises Undecryptable."""
        return self.encrypt(row, self.decrypt(row, stored, field), field)

    def subkey(self, purpose: str) -> bytes:
        """32 bytes for another use, of this user and purpose alone. A derived one changes with the newest root key, a
        wrapped one never."""
        return _derived(next(iter(self._keys.values())), "purpose", self._uid, purpose)

    def _bound(self, row: Row, field: str) -> bytes:
        if not isinstance(row, Row):
            raise TypeError("a row is known by a text, a number or a UUID")
        return _bound("data", self._uid, str(row), field)


class Vault:
    """Encrypts and decrypts for users. `roots`: root keys of 32 bytes, raw or in base64, the newest first; older ones
    still decrypt. Without a store users' keys are derived from them; with one they are random, and wrapped. Raises
    Misconfigured for what is no key."""

    def __init__(self, roots: Sequence[bytes | str] | bytes | str, store: KeyStore | None = None) -> None:
        given = [roots] if isinstance(roots, bytes | str) else list(roots)
        if not given:
            raise Misconfigured("A vault needs a root key of 32 bytes.")
        self._roots = [_root(one) for one in given]
        self._store = store

    @classmethod
    def from_environment(cls, store: KeyStore | None = None, name: str = "MUNIMENT_ROOT_KEYS") -> Vault:
        """With root keys in base64, the newest first and white space between, from a variable, or from the file that
        the variable with `_FILE` behind its name tells. Raises Misconfigured."""
        text, file = os.environ.get(name, ""), os.environ.get(f"{name}_FILE", "")
        if bool(text) == bool(file):
            raise Misconfigured(f"Either {name} or {name}_FILE must be set: root keys of 32 bytes in base64.")
        if file:
            with suppress(OSError, ValueError):
                text = Path(file).read_text("utf-8")
        if not text.strip():
            raise Misconfigured(f"The file that {name}_FILE names holds no root key that can be read.")
        return cls(text.split(), store)

    def user(self, uid: str) -> UserVault:
        """The part of one user, for several rows at once."""
        return UserVault(uid, self._keys(uid, make=True))

    def encrypt(self, uid: str, row: Row, plain: bytes | str, field: str = "") -> bytes:
        """The text or bytes, readable by `decrypt` with the same uid, row and field alone: 37 bytes longer."""
        return self.user(uid).encrypt(row, plain, field)

    def decrypt(self, uid: str, row: Row, stored: bytes | memoryview, field: str = "") -> bytes:
        """What was encrypted. Raises Undecryptable."""
        return UserVault(uid, self._keys(uid)).decrypt(row, stored, field)

    def is_current(self, uid: str, stored: bytes | memoryview) -> bool:
        """Whether it is encrypted under the newest key; else it wants `reencrypt`."""
        return UserVault(uid, self._keys(uid)).is_current(stored)

    def reencrypt(self, uid: str, row: Row, stored: bytes | memoryview, field: str = "") -> bytes:
        """The same under the user's newest key. Raises Undecryptable."""
        return UserVault(uid, self._keys(uid)).reencrypt(row, stored, field)

    def subkey(self, uid: str, purpose: str) -> bytes:
        """32 bytes for another use, of this user and purpose alone (see UserVault)."""
        return self.user(uid).subkey(purpose)

    def rewrap(self, uid: str) -> bool:
        """Wrap the user's key under the newest root key; whether it was under an older one. What is stored of the user
        stays as it is."""
        wrapped = self._store.get(uid) if self._store else None
        if self._store is None or wrapped is None or wrapped[1 : 1 + ID] == _id(self._roots[0]):
            return False
        return self._store.replace(uid, wrapped, self._wrap(uid, self._unwrap(uid, wrapped)))

    def destroy(self, uid: str) -> None:
        """Make all that was encrypted for the user unreadable, for good. Only with a store: a derived key can be
        derived again."""
        if self._store is None:
            raise Misconfigured("Derived keys cannot be destroyed: give the vault a store.")
        self._store.delete(uid)

    def _keys(self, uid: str, make: bool = False) -> list[bytes]:
        """The user's keys, the newest first."""
        if not uid:
            raise ValueError("nobody has no key: a uid is needed")
        if self._store is None:
            return [_derived(root, "user", uid) for root in self._roots]
        wrapped = self._store.get(uid)
        if wrapped is None and make:
            wrapped = self._store.add(uid, self._wrap(uid, os.urandom(KEY)))
        return [] if wrapped is None else [self._unwrap(uid, bytes(wrapped))]

    def _wrap(self, uid: str, key: bytes) -> bytes:
        root, nonce = self._roots[0], os.urandom(NONCE)
        wrapping = AESGCM(_derived(root, "wrapping"))
        return VERSION + _id(root) + nonce + wrapping.encrypt(nonce, key, _bound("key", uid))

    def _unwrap(self, uid: str, wrapped: bytes) -> bytes:
        root = next((root for root in self._roots if _id(root) == wrapped[1 : 1 + ID]), None)
        if root is None or not wrapped.startswith(VERSION):
            raise Undecryptable("The user's key is wrapped under a root key that is not there.")
        return _open(_derived(root, "wrapping"), wrapped, _bound("key", uid))


class PostgresKeys:
    """A KeyStore in a table of PostgreSQL: `CREATE TABLE user_keys (uid text PRIMARY KEY, wrapped bytea NOT NULL)`.

    `connection` is psycopg's (sync) or Django's, within `as_caller` where `policy_sql` protects the table: then nobody
    gets at another user's key. Made for one request; it keeps nothing. Raises ValueError for what is no table's name.
    """

    def __init__(self, connection: object, table: str = "user_keys") -> None:
        self._connection, self._table = connection, quoted(table).replace("%", "%%")

    def get(self, uid: str) -> bytes | None:
        """The user's wrapped key."""
        rows = fetched(self._connection, f"SELECT wrapped FROM {self._table} WHERE uid = %s", uid)  # noqa: S608
        return bytes(rows[0][0]) if rows else None

    def add(self, uid: str, wrapped: bytes) -> bytes:
        """Keep a key where there is none; the one that is kept then."""
        insert = f"INSERT INTO {self._table} (uid, wrapped) VALUES (%s, %s)"  # noqa: S608
        fetched(self._connection, f"{insert} ON CONFLICT DO NOTHING RETURNING uid", uid, wrapped)
        kept = self.get(uid)
        if kept is None:
            raise Undecryptable("The user's key was destroyed at this moment.")
        return kept

    def replace(self, uid: str, old: bytes, new: bytes) -> bool:
        """Keep another wrapping of the same key, if the old one is still what is kept; whether it was."""
        update = f"UPDATE {self._table} SET wrapped = %s WHERE uid = %s AND wrapped = %s RETURNING uid"  # noqa: S608
        return bool(fetched(self._connection, update, new, uid, old))

    def delete(self, uid: str) -> None:
        """Destroy it: in the table. What PostgreSQL keeps of old rows goes with the next VACUUM and the old WAL."""
        fetched(self._connection, f"DELETE FROM {self._table} WHERE uid = %s RETURNING uid", uid)  # noqa: S608


def _open(key: bytes, given: bytes, bound: bytes) -> bytes:
    with suppress(InvalidTag, ValueError):
        return AESGCM(key).decrypt(given[1 + ID : _HEADER], given[_HEADER:], bound)
    raise Undecryptable("It was altered, or belongs to another user, row or field.")


def _bound(*parts: str) -> bytes:
    """Additional data: each part with its length before it, so that no two lists of parts read the same."""
    encoded = [_utf8(part) for part in ("muniment/vault/v1", *parts)]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


def _utf8(text: str) -> bytes:
    with suppress(UnicodeEncodeError):
        return text.encode()
    # Not from within: that error holds the text.
    raise ValueError("a text has a lone surrogate, and is no Unicode")


def _derived(key: bytes, *parts: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY, salt=None, info=_bound(*parts)).derive(key)


def _content(key: bytes) -> bytes:
    """The key of what is stored: a user's key is for deriving only, so that no two uses share one."""
    return _derived(key, "content")


def _id(key: bytes) -> bytes:
    """Tells keys apart, and says nothing of them."""
    return sha256(_bound("id") + key).digest()[:ID]


def _root(given: bytes | str) -> bytes:
    key = given if isinstance(given, bytes) else b""
    if isinstance(given, str):
        text = given.strip().rstrip("=").replace("-", "+").replace("_", "/")
        with suppress(ValueError):
            key = b64decode(text + "=" * (-len(text) % 4), validate=True)
    if len(key) != KEY:
        raise Misconfigured("A root key is 32 bytes, raw or in base64.")
    return key
