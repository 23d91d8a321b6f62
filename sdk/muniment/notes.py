"""Signed notes and cosignatures (C2SP signed-note, tlog-cosignature), with Ed25519 keys only.

A note is text that ends with a newline, an empty line, and signature lines. The text means nothing before a
signature by a trusted key was verified: see `verify`, `cosigned_at` and `checkpoints.read`.
"""

import re
from base64 import b64decode, b64encode
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ED25519 = 1
COSIGNATURE = 4
"""Signature types (signed-note, "Signature types"): over the text, and a witness's over time and text."""

MAX_BYTES = 65_536
MAX_SIGNATURES = 100

_ALGORITHMS = frozenset({ED25519, COSIGNATURE})
_ID_BYTES = 4
_TIME_BYTES = 8
_MARK = "— "  # em dash, space
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f]")  # below U+0020, but for newline
_KEY_ID = re.compile("[0-9a-f]{8}")


class NoteError(ValueError):
    """Not a note, a key or a signature as C2SP writes them. Never repeats the input."""


@dataclass(frozen=True, slots=True)
class Key:
    """A verifier key: `algorithm` is ED25519 or COSIGNATURE, `public` the raw key of 32 bytes.

    Raises NoteError for a name, algorithm or length that cannot be.
    """

    name: str
    algorithm: int
    public: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)
        if self.algorithm not in _ALGORITHMS or len(self.public) != 32:
            raise NoteError("the key is not an Ed25519 key of a known signature type")

    @property
    def id(self) -> bytes:
        """The 4 bytes that stand in this key's signatures (signed-note, "Signatures")."""
        typed = bytes([self.algorithm]) + self.public
        return sha256(self.name.encode() + b"\n" + typed).digest()[:_ID_BYTES]

    @property
    def vkey(self) -> str:
        """The key as text: name, id in hexadecimal, base64 of algorithm and key, joined by `+`."""
        typed = bytes([self.algorithm]) + self.public
        return f"{self.name}+{self.id.hex()}+{b64encode(typed).decode('ascii')}"

    @classmethod
    def parse(cls, vkey: str) -> "Key":
        """The key of this text, if it is exactly what `vkey` writes. Raises NoteError."""
        parts = vkey.split("+", 2)  # base64 may hold a plus, a name and an id may not
        if len(parts) != 3 or not _KEY_ID.fullmatch(parts[1]):
            raise NoteError("the key is not name+id+key")
        typed = from_base64(parts[2])
        key = cls(parts[0], typed[0] if typed else 0, typed[1:])
        if key.id.hex() != parts[1]:
            raise NoteError("the key's id is not that of its name and key")
        return key


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line. `data` is what follows the 4 bytes of the key id, for a cosignature its time first."""

    name: str
    key_id: bytes
    data: bytes

    @property
    def line(self) -> str:
        """The line as it stands in a note, without its newline."""
        return f"{_MARK}{self.name} {b64encode(self.key_id + self.data).decode('ascii')}"


@dataclass(frozen=True, slots=True)
class Note:
    """A text and its signatures, none of them verified."""

    text: str
    signatures: tuple[Signature, ...]

    def encode(self) -> str:
        """The note as C2SP writes it."""
        return self.text + "\n" + "".join(f"{signature.line}\n" for signature in self.signatures)

    @classmethod
    def parse(cls, note: str) -> "Note":
        """The note of this text: at most MAX_BYTES in UTF-8, 1 to MAX_SIGNATURES signatures. Raises NoteError."""
        if len(note) > MAX_BYTES or len(_utf8(note)) > MAX_BYTES:
            raise NoteError(f"the note is longer than {MAX_BYTES} bytes")
        if _CONTROL.search(note):
            raise NoteError("the note holds a control character")
        end = note.rfind("\n\n")  # the text may hold empty lines, the signatures may not
        if end < 0 or not note.endswith("\n"):
            raise NoteError("the note has no signatures after an empty line")
        lines = note[end + 2 :].split("\n")[:-1]
        if not 1 <= len(lines) <= MAX_SIGNATURES:
            raise NoteError(f"the note has not 1 to {MAX_SIGNATURES} signatures")
        return cls(note[: end + 1], tuple(map(_signature, lines)))


def sign(text: str, name: str, private: Ed25519PrivateKey) -> Signature:
    """The signature of a note's text, which ends with a newline. Raises NoteError for a text or name that cannot be."""
    _check_text(text)
    return Signature(name, Key(name, ED25519, _public(private)).id, private.sign(text.encode()))


def cosign(text: str, name: str, private: Ed25519PrivateKey, at: int) -> Signature:
    """A witness's signature of a checkpoint's text at `at` (unix seconds, > 0); cosignature/v1 of tlog-cosignature.

    Raises NoteError for a text, name or time that cannot be.
    """
    _check_text(text)
    if not 0 < at < 2**63:
        raise NoteError("the time of the cosignature is out of range")
    data = at.to_bytes(_TIME_BYTES, "big") + private.sign(_cosigned(text, at))
    return Signature(name, Key(name, COSIGNATURE, _public(private)).id, data)


def verify(note: Note, key: Key) -> bool:
    """Whether the key signed the note: it has signatures by this key's name and id, and every one of them holds.

    Signatures by other keys are ignored, as signed-note demands. Never raises.
    """
    found = signatures_of(note, key)
    return bool(found) and all(_holds(note.text, signature.data, key) for signature in found)


def cosigned_at(note: Note, key: Key) -> int | None:
    """When the witness cosigned the note, unix seconds; the latest time if several. None if `verify` is False."""
    if key.algorithm != COSIGNATURE or not verify(note, key):
        return None
    return max(_time(signature.data) for signature in signatures_of(note, key))


def signatures_of(note: Note, key: Key) -> list[Signature]:
    """The signatures that claim to be by this key, none of them verified."""
    key_id = key.id
    return [found for found in note.signatures if found.name == key.name and found.key_id == key_id]


def from_base64(text: str) -> bytes:
    """Standard base64 in its one canonical form (RFC 4648, 4). Raises NoteError."""
    try:
        data = b64decode(text, validate=True)
    except ValueError:
        data = None
    if data is None or b64encode(data).decode("ascii") != text:
        raise NoteError("not canonical base64")
    return data


def _holds(text: str, data: bytes, key: Key) -> bool:
    try:
        message = text.encode()
        if key.algorithm == COSIGNATURE:
            at = _time(data)
            if not 0 < at < 2**63:
                return False
            message, data = _cosigned(text, at), data[_TIME_BYTES:]
        Ed25519PublicKey.from_public_bytes(key.public).verify(data, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _cosigned(text: str, at: int) -> bytes:
    return f"cosignature/v1\ntime {at}\n{text}".encode()


def _time(data: bytes) -> int:
    return int.from_bytes(data[:_TIME_BYTES], "big")


def _signature(line: str) -> Signature:
    name, space, text = line.removeprefix(_MARK).partition(" ")
    if not line.startswith(_MARK) or not space:
        raise NoteError("a line of the note is not a signature")
    _check_name(name)
    data = from_base64(text)
    if len(data) <= _ID_BYTES:
        raise NoteError("a signature of the note is too short")
    return Signature(name, data[:_ID_BYTES], data[_ID_BYTES:])


def _check_name(name: str) -> None:
    """Not empty, no Unicode spaces, no plus (signed-note, "Format"), and fit to stand in a note."""
    if not name or "+" in name or any(map(str.isspace, name)) or _CONTROL.search(name):
        raise NoteError("the key name is empty or holds a space, a plus or a control character")
    _utf8(name)


def _check_text(text: str) -> None:
    if not text.endswith("\n") or _CONTROL.search(text):
        raise NoteError("the text of a note ends with a newline and holds no other control character")
    _utf8(text)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        pass
    raise NoteError("a lone surrogate cannot be written in UTF-8")


def _public(private: Ed25519PrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
