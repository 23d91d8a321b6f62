"""Encryption for each user: what is stored of a user is readable with that user's key only, in that row and field only.

AES-256-GCM with random nonces of 96 bits (NIST SP 800-38D): a user's key is good for 2^32 encryptions. Keys are
*derived* from a root key (HKDF-SHA-256, RFC 5869), or, with a store, random and *wrapped* under it: then deleting a
user's one row in the store makes all that was stored of that user unreadable, wherever copies are.
"""

from __future__ import annotations

import os
from base64 import b64decode, urlsafe_b64decode
from binascii import Error
from collections.abc import Sequence
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from muniment.errors import Misconfigured, MunimentError

VERSION = b"\x01"
KEY, NONCE, ID = 32, 12, 8  # bytes
_HEADER = len(VERSION) + ID + NONCE


class Undecryptable(MunimentError):
    """Not what this vault encrypted for this user, row and field: another's, altered, or under a key that is gone."""


class KeyStore(Protocol):
    """Where wrapped keys are kept, one for each user. It needs no secrecy, but what is deleted must be gone."""

    def get(self, uid: str) -> bytes | None:
        """The user's wrapped key."""

    def add(self, uid: str, wrapped: bytes) -> bytes:
        """Keep a key where there is none; the one that is kept then."""

    def replace(self, uid: str, wrapped: bytes) -> None:
        """Keep another wrapping of the same key."""

    def delete(self, uid: str) -> None:
        """Destroy it, for good."""


class Vault:
    """Encrypts and decrypts for users. `roots`: root keys of 32 bytes, raw or in base64, the newest first; older ones
    still decrypt. Raises Misconfigured for what is no key."""

    def __init__(self, roots: Sequence[bytes | str] | bytes | str, store: KeyStore | None = None) -> None:
        given = [roots] if isinstance(roots, bytes | str) else list(roots)
        if not given:
            raise Misconfigured("A vault needs a root key of 32 bytes.")
        self._roots = [_root(one) for one in given]
        self._store = store

    def encrypt(self, uid: str, row: str, plain: bytes | str, field: str = "") -> bytes:
        """The text or bytes, readable by `decrypt` with the same uid, row and field alone: 37 bytes longer."""
        key, nonce = self._keys(uid, make=True)[0], os.urandom(NONCE)
        data = plain.encode() if isinstance(plain, str) else plain
        return VERSION + _id(key) + nonce + AESGCM(key).encrypt(nonce, data, _bound("data", uid, row, field))

    def decrypt(self, uid: str, row: str, stored: bytes, field: str = "") -> bytes:
        """What was encrypted. Raises Undecryptable."""
        stored = bytes(stored)
        key = next((key for key in self._keys(uid) if _id(key) == stored[1 : 1 + ID]), None)
        if key is None or not stored.startswith(VERSION) or len(stored) < _HEADER:
            raise Undecryptable("It was not encrypted for this user with a key that is there.")
        return _open(key, stored[1 + ID : _HEADER], stored[_HEADER:], _bound("data", uid, row, field))

    def is_current(self, uid: str, stored: bytes) -> bool:
        """Whether it is encrypted under the newest key; else decrypt it and encrypt it again."""
        keys = self._keys(uid)
        return bool(keys) and bytes(stored)[1 : 1 + ID] == _id(keys[0])

    def subkey(self, uid: str, purpose: str) -> bytes:
        """32 bytes for another use, of this user and purpose alone."""
        return _derived(self._keys(uid, make=True)[0], "purpose", uid, purpose)

    def rewrap(self, uid: str) -> bool:
        """Wrap the user's key under the newest root key; whether it was under an older one."""
        wrapped = self._store.get(uid) if self._store else None
        if self._store is None or wrapped is None or wrapped[1 : 1 + ID] == _id(self._roots[0]):
            return False
        self._store.replace(uid, self._wrap(uid, self._unwrap(uid, wrapped)))
        return True

    def destroy(self, uid: str) -> None:
        """Make all that was encrypted for the user unreadable, for good. Only with a store: a derived key can be
        derived again."""
        if self._store is None:
            raise Misconfigured("Derived keys cannot be destroyed: give the vault a store.")
        self._store.delete(uid)

    def _keys(self, uid: str, make: bool = False) -> list[bytes]:
        """The user's keys, the newest first."""
        if self._store is None:
            return [_derived(root, "user", uid) for root in self._roots]
        wrapped = self._store.get(uid)
        if wrapped is None and make:
            wrapped = self._store.add(uid, self._wrap(uid, os.urandom(KEY)))
        return [] if wrapped is None else [self._unwrap(uid, bytes(wrapped))]

    def _wrap(self, uid: str, key: bytes) -> bytes:
        root, nonce = self._roots[0], os.urandom(NONCE)
        return VERSION + _id(root) + nonce + AESGCM(root).encrypt(nonce, key, _bound("key", uid))

    def _unwrap(self, uid: str, wrapped: bytes) -> bytes:
        root = next((root for root in self._roots if _id(root) == wrapped[1 : 1 + ID]), None)
        if root is None or not wrapped.startswith(VERSION):
            raise Undecryptable("The user's key is wrapped under a root key that is not there.")
        return _open(root, wrapped[1 + ID : _HEADER], wrapped[_HEADER:], _bound("key", uid))


def _open(key: bytes, nonce: bytes, data: bytes, bound: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(nonce, data, bound)
    except (InvalidTag, ValueError):
        raise Undecryptable("It was altered, or belongs to another user, row or field.") from None


def _bound(*parts: str) -> bytes:
    """Additional data: each part with its length before it, so that no two lists of parts read the same."""
    encoded = [part.encode() for part in ("muniment/vault/v1", *parts)]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


def _derived(key: bytes, *parts: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY, salt=None, info=_bound(*parts)).derive(key)


def _id(key: bytes) -> bytes:
    """Tells keys apart, and says nothing of them."""
    return sha256(_bound("id") + key).digest()[:ID]


def _root(given: bytes | str) -> bytes:
    try:
        text = given if isinstance(given, str) else ""
        key = (
            (urlsafe_b64decode if {"-", "_"} & set(text) else b64decode)(text + "=" * (-len(text) % 4))
            if text
            else given
        )
    except (Error, ValueError):
        key = b""
    if not isinstance(key, bytes) or len(key) != KEY:
        raise Misconfigured("A root key is 32 bytes, raw or in base64.")
    return key
