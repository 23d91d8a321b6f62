"""The names of the tenants that a member of staff may be confined to (pure)."""

from collections.abc import Iterable
from typing import Final

MOST: Final = 40  # of one member of staff; a search follows the index of each
MOST_BYTES: Final = 16_000  # of all names together, so that a record holds those of before and after
LONGEST: Final = 255  # characters of one, as tokens may name it
EVERY: Final = "*"  # in the identity provider's claim: not confined


def check(names: Iterable[str]) -> list[str]:
    """The names, each once and in order. Raises ValueError, in words, for what no member of staff can have."""
    found = sorted(set(names))
    if any(not name or len(name) > LONGEST or not name.isprintable() for name in found):
        raise ValueError(f"The name of a tenant is printable and at most {LONGEST} characters long.")
    if len(found) > MOST or sum(len(name.encode()) for name in found) > MOST_BYTES:
        raise ValueError(f"{MOST} tenants are the most, and {MOST_BYTES:,} bytes of names.")
    return found


def claimed(value: object) -> frozenset[str] | None:
    """What a claim of the identity provider's says: a list of names, or one name; `*` alone is every tenant (None). Of
    what cannot be, or is one name too many, none: a cut list would be another, and no list is no word for all."""
    listed = [value] if isinstance(value, str) else value
    if listed == [EVERY]:
        return None
    if not isinstance(listed, list) or not all(isinstance(name, str) and name != EVERY for name in listed):
        return frozenset()
    try:
        return frozenset(check(listed))
    except ValueError:
        return frozenset()
