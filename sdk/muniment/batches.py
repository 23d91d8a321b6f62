"""Write batches: what a writer signs when it commits records, and the receipt that a caller gets for one.

The batches of all writers form one chain, because each names the digest of the one before it.
"""

from collections.abc import Mapping
from hashlib import sha256
from struct import Struct

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from muniment import merkle
from muniment.notes import from_base64

GENESIS = bytes(32)
"""What the first batch of a log names as the batch before it."""

MAX_PATH = 32
"""Hashes in a path: a batch counts its records in 32 bits."""

_DOMAIN = b"muniment/batch/v1\x00"
_FIELDS = Struct(">QI32s32s")


def message(first: int, size: int, previous: bytes, root: bytes) -> bytes:
    """What is signed: domain || u64 first index || u32 size || previous digest || Merkle root, big endian.

    The domain keeps a batch's signature from being taken for another kind of signature by the same key.
    Raises ValueError on an empty batch, one that reaches beyond 64 bits, or a hash that is not 32 bytes.
    """
    if not 1 <= size < 2**32 or not 0 <= first <= 2**64 - size:
        raise ValueError("the batch's first index or size is out of range")
    if len(previous) != merkle.HASH_BYTES or len(root) != merkle.HASH_BYTES:
        raise ValueError("the batch's previous digest or root is not 32 bytes")
    return _DOMAIN + _FIELDS.pack(first, size, previous, root)


def digest(message: bytes) -> bytes:
    """What the next batch names as previous: SHA-256 of the message."""
    return sha256(message).digest()


def sign(private: Ed25519PrivateKey, message: bytes) -> bytes:
    """The writer's signature, 64 bytes (RFC 8032, Ed25519)."""
    return private.sign(message)


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the raw public key (32 bytes) made this signature. A key or signature of another length: no."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def verify_receipt(receipt: Mapping[str, object], statement: bytes | None, public: bytes) -> bool:
    """Whether the receipt of an answer (API, `receipt`) holds under the writer's public key.

    Checked: the leaf is the statement's, where one is given; the path leads from the leaf at its position to
    the batch's root; the signature covers the batch; `index` is `first` + `position`. Never raises: what is
    missing, of another type or not plain base64 is False. Members that it does not know are ignored.
    """
    batch = receipt.get("batch")
    if not isinstance(batch, Mapping):
        return False
    try:
        leaf, signature = _bytes(receipt.get("leaf")), _bytes(receipt.get("signature"))
        previous, root = _bytes(batch.get("previous")), _bytes(batch.get("root"))
        path = _path(batch.get("path"))
        first, size = _count(batch.get("first")), _count(batch.get("size"))
        index, position = _count(receipt.get("index")), _count(batch.get("position"))
        signed = message(first, size, previous, root)
    except ValueError:
        return False
    return (
        (statement is None or leaf == merkle.leaf_hash(statement))
        and index == first + position
        and merkle.verify_inclusion(leaf, position, size, path, root)
        and verify(public, signed, signature)
    )


def _bytes(value: object) -> bytes:
    if type(value) is not str:
        raise ValueError("not text")
    return from_base64(value)


def _path(value: object) -> list[bytes]:
    if type(value) is not list or len(value) > MAX_PATH:
        raise ValueError("not a path")
    return [_bytes(entry) for entry in value]


def _count(value: object) -> int:
    if type(value) is not int or value < 0:  # exact: True is no index
        raise ValueError("not a count")
    return value
