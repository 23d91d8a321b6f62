"""Statements: the canonical JSON that is hashed, a profile of RFC 8785.

The profile: an object; member names are ASCII text; values are text, integers within +-(2**53 - 1), true,
false, null, arrays and objects, nested at most 16 deep; no floats, no NUL, no lone surrogates; under 64 KiB.
Within it, RFC 8785 needs nothing but sorted names (UTF-8 and UTF-16 order agree on ASCII) and minimal
escapes, so that an independent implementation is a few lines in any language. Tests judge by `rfc8785`.
"""

import re

import msgspec

VERSION = 1
MAX_BYTES = 65_535
MAX_DEPTH = 16
MAX_INTEGER = 2**53 - 1

_SURROGATE = re.compile("[\ud800-\udfff]")
_TEXT = frozenset({str})
_SHOWN_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder()


class StatementError(ValueError):
    """A statement outside the profile. Names the member, never its value, which may be personal."""


class _Fault(Exception):
    """What is wrong, and the steps to it, gathered while the exception travels outwards."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.steps: list[str | int] = []


def encode(statement: dict[str, object]) -> bytes:
    """The canonical bytes of a statement (RFC 8785 within the profile above), at most MAX_BYTES.

    Raises StatementError that names the offending member. Types are exact: an enum member or another
    subclass of `str` or `int` is refused, because what it would become is not certain.
    """
    if type(statement) is not dict:
        raise StatementError("the statement is not an object")
    data = _encode_plain(statement)
    if data is None:
        check(statement)
        data = _encoder.encode(statement)
    if len(data) > MAX_BYTES:
        raise StatementError(f"the statement is longer than {MAX_BYTES} bytes")
    return data


def decode(data: bytes) -> dict[str, object]:
    """The statement of these bytes, if they are exactly what `encode` makes of it.

    Raises StatementError otherwise: not JSON, not an object, outside the profile, duplicate members, white
    space, another order, other escapes or number forms. `encode(decode(data)) == data` always holds.
    """
    if len(data) > MAX_BYTES:
        raise StatementError(f"the statement is longer than {MAX_BYTES} bytes")
    statement = load(data)
    if type(statement) is not dict:
        raise StatementError("the statement is not an object")
    # One comparison refuses all that JSON lets vary; a duplicate member shows as bytes that are missing.
    if encode(statement) != data:
        raise StatementError("the statement is not in canonical form")
    return statement


def check(value: object, name: str = "statement") -> None:
    """Raises StatementError, which names the member, unless the value is within the profile (size apart)."""
    try:
        _check(value, 0)
    except _Fault as caught:
        fault = caught
    else:
        return
    # Raised outside of the handler, so that no chained exception keeps the value within reach of a log.
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in reversed(fault.steps))
    raise StatementError(f"{name}{path} {fault}")


def dump(value: object) -> bytes:
    """Canonical JSON of a value that `check` has accepted."""
    return _encoder.encode(value)


def load(data: bytes) -> object:
    """Any JSON. Raises StatementError, without a word of the input, when it is not JSON."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass
    raise StatementError("not JSON in UTF-8")


def _encode_plain(statement: dict[str, object]) -> bytes | None:
    """The canonical bytes of a common, all-ASCII statement; None where only `check` can tell.

    One pass over the types and one over the bytes: half the time of `check`, which stays the judge.
    """
    if not _is_plain(statement, 1):
        return None
    try:
        data = _encoder.encode(statement)
    except UnicodeEncodeError:  # a lone surrogate; `check` will say where
        return None
    # A NUL is always written so; the same six bytes after a backslash are harmless, and left to `check`.
    return data if data.isascii() and b"\\u0000" not in data else None


def _is_plain(members: dict[str, object], depth: int) -> bool:
    """Whether these are values of the profile, text unseen: scalars, arrays of text, such objects again."""
    if not _TEXT.issuperset(map(type, members)):
        return False
    for value in members.values():
        kind = type(value)
        if kind is str or kind is bool or value is None:
            continue
        if kind is list:
            plain = _TEXT.issuperset(map(type, value))  # type: ignore[call-overload]
        elif kind is int:
            plain = -MAX_INTEGER <= value <= MAX_INTEGER  # type: ignore[operator]
        else:
            plain = kind is dict and depth < MAX_DEPTH - 1 and _is_plain(value, depth + 1)  # type: ignore[arg-type]
        if not plain:
            return False
    return True


def _check(value: object, depth: int) -> None:
    kind = type(value)
    if kind is str:
        _check_text(value)  # type: ignore[arg-type]
    elif kind is int:
        if not -MAX_INTEGER <= value <= MAX_INTEGER:  # type: ignore[operator]
            raise _Fault("is an integer beyond 2**53 - 1")
    elif kind is dict:
        _check_object(value, depth + 1)  # type: ignore[arg-type]
    elif kind is list:
        _check_array(value, depth + 1)  # type: ignore[arg-type]
    elif value is not None and kind is not bool:
        raise _Fault(f"has the type {kind.__name__}, which is outside the profile")


def _check_text(value: str) -> None:
    if "\0" in value:
        raise _Fault("holds a NUL")
    if not value.isascii() and _SURROGATE.search(value):
        raise _Fault("holds a lone surrogate")


def _check_object(members: dict[object, object], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _Fault(f"is nested deeper than {MAX_DEPTH}")
    for name, value in members.items():
        if type(name) is not str or not name.isascii() or "\0" in name:
            raise _Fault("has a member whose name is not ASCII text")
        try:
            _check(value, depth)
        except _Fault as fault:
            # A name is ours, not a caller's; should it ever be one, nothing odd reaches a log.
            fault.steps.append(name if _SHOWN_NAME.fullmatch(name) else "(member)")
            raise


def _check_array(items: list[object], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _Fault(f"is nested deeper than {MAX_DEPTH}")
    for position, value in enumerate(items):
        try:
            _check(value, depth)
        except _Fault as fault:
            fault.steps.append(position)
            raise
