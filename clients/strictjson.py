"""JSON that can be read in one way only (pure).

Two readers of one text must not see two different tokens, so what RFC 8259 leaves open is refused here:
duplicate member names (section 4, and RFC 7515 section 4), NaN and Infinity, any encoding but UTF-8, a byte
order mark.
"""

import json
from typing import Any, NoReturn


def parse_object(data: bytes) -> dict[str, Any]:
    """Read one JSON object.

    Raises ValueError, in plain words and without a piece of the input, for anything else: no UTF-8, no JSON,
    another type than an object, a duplicate member at any depth, a number beyond Python's limits, or nesting
    deeper than the interpreter's stack.
    """
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except _Duplicate:
        raise ValueError("the JSON has a duplicate member") from None
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("the text is not UTF-8") from None
    except ValueError:
        # The messages of json quote nothing, but those of int() may: they are not passed on.
        raise ValueError("the text is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError("the JSON is not an object")
    return value


class _Duplicate(ValueError):
    """A member name occurred twice in one object."""


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # The names arrive decoded, so "iss" and "\u0069ss" are the same name here.
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Duplicate
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_constant=_no_constant)
