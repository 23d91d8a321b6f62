"""Disclosures of object members in the form of RFC 9901 (SD-JWT), section 4.2.

A statement holds only salted digests of personal data (`_sd`); whoever is shown a disclosure can check that
it belongs to the statement, and without it the digest says nothing. Values keep to the profile of
`statements`, so that the same value always has the same JSON.
"""

from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from os import urandom
from typing import TypeAlias

import msgspec

from muniment import statements

# Any value of the statements' profile. The check is made at run time: as a type it would be invariant, and
# refuse the dict[str, str] that callers have.
JSON: TypeAlias = object

SALT_BYTES = 16
_RESERVED = frozenset({"_sd", "..."})  # RFC 9901, 4.2.1
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_", b"+/")


class DisclosureError(ValueError):
    """Not a disclosure, or one that cannot be made. Never tells the value."""


@dataclass(frozen=True, slots=True)
class Disclosure:
    """One member that a statement commits to: `text` is what is handed over, `digest` what `_sd` holds.

    `text` and `value` stay out of the representation, so that no log shows personal data by accident.
    """

    text: str = field(repr=False)
    digest: str
    name: str
    value: JSON = field(repr=False)


def make(name: str, value: JSON, salt: bytes | None = None) -> Disclosure:
    """A disclosure of one member, with a random salt of 128 bits unless one is given (for test vectors).

    Raises DisclosureError for a reserved or non-ASCII name, a value outside the profile of statements, or a
    salt that is shorter than 128 bits.
    """
    if salt is None:
        salt = urandom(SALT_BYTES)
    elif len(salt) < SALT_BYTES:
        raise DisclosureError("the salt is shorter than 128 bits")
    _check({name: value})
    return _make(name, value, salt)


def make_all(pairs: Mapping[str, JSON]) -> list[Disclosure]:
    """A disclosure of each member, in the order given, all salts from one call to the system's generator."""
    _check(dict(pairs))
    salts = urandom(SALT_BYTES * len(pairs))
    return [
        _make(name, value, salts[start : start + SALT_BYTES])
        for start, (name, value) in zip(range(0, len(salts), SALT_BYTES), pairs.items(), strict=True)
    ]


def digests(disclosures: Sequence[Disclosure]) -> list[str]:
    """What goes into `_sd`: sorted, so that the order tells nothing of the members (RFC 9901, 4.2.4.1)."""
    return sorted(disclosure.digest for disclosure in disclosures)


def parse(text: str) -> Disclosure:
    """The disclosure in this text, if it is exactly one that `make` could have written.

    Stricter than RFC 9901, which leaves white space and escapes open: two readers can then never see
    different values (duplicate members, number forms). Raises DisclosureError otherwise.
    """
    parts = _load(_decode(text))
    if type(parts) is not list or len(parts) != 3:
        raise DisclosureError("the disclosure is not an array of salt, name and value")
    salt, name, value = parts
    if type(salt) is not str or type(name) is not str:
        raise DisclosureError("the salt or the name of the disclosure is not text")
    made = make(name, value, _decode(salt))
    if made.text != text:
        raise DisclosureError("the disclosure is not in canonical form")
    return made


def matches(statement: Mapping[str, object], text: str) -> bool:
    """Whether the statement commits to this disclosure: its digest is in the statement's `_sd`.

    Takes the text as it is (any disclosure of RFC 9901, 4.2.3), so that it can judge before `parse` does.
    """
    committed = statement.get("_sd")
    return type(committed) is list and text.isascii() and _digest(text.encode("ascii")) in committed


def pack(disclosures: Sequence[Disclosure]) -> bytes:
    """The disclosures of one record as they are stored (and encrypted): a JSON array of their texts."""
    return msgspec.json.encode([disclosure.text for disclosure in disclosures])


def unpack(data: bytes) -> list[Disclosure]:
    """The disclosures that `pack` wrote, in its order. Raises DisclosureError on anything else."""
    texts = _load(data)
    if type(texts) is not list or not all(type(text) is str for text in texts):
        raise DisclosureError("not an array of disclosures")
    return [parse(text) for text in texts]


def _make(name: str, value: JSON, salt: bytes) -> Disclosure:
    text = _encode(statements.dump([_encode(salt).decode("ascii"), name, value]))
    return Disclosure(text.decode("ascii"), _digest(text), name, value)


def _check(pairs: dict[str, JSON]) -> None:
    if not _RESERVED.isdisjoint(pairs):
        raise DisclosureError("the name of the disclosure is reserved")
    try:
        statements.check(pairs, "disclosure")
    except statements.StatementError as error:
        what = str(error)
    else:
        return
    raise DisclosureError(f"the {what}")


def _load(data: bytes) -> object:
    try:
        return statements.load(data)
    except statements.StatementError:
        pass
    raise DisclosureError("the disclosure is not JSON")


def _digest(text: bytes) -> str:
    """base64url of the SHA-256 of the disclosure's own text (RFC 9901, 4.2.3)."""
    return _encode(sha256(text).digest()).decode("ascii")


def _encode(data: bytes) -> bytes:
    """base64url without padding (RFC 7515, 2)."""
    return b2a_base64(data, newline=False).rstrip(b"=").translate(_TO_URL)


def _decode(text: str) -> bytes:
    """Strict base64url without padding: one text for each value, so no white space and no stray bits."""
    try:
        data = a2b_base64(text.encode("ascii").translate(_FROM_URL) + b"=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        data = None
    if data is None or _encode(data) != text.encode("ascii"):
        raise DisclosureError("the disclosure is not base64url without padding")
    return data
