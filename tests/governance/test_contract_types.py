"""No type that a request is read into crashes the process when it is freed, as a text with a pattern beside a list or
an object does in msgspec 0.22: `Annotated[str, Meta(pattern=...)] | list[str]`."""

from collections.abc import Iterator
from typing import Annotated

import msgspec
import pytest
from msgspec import Meta, inspect

from governance import authzen_contract

OURS = ("governance.", "clients.", "tools.", "audit.", "muniment.")
CONTAINERS = (inspect.CollectionType, inspect.DictType, inspect.TypedDictType)
Patterned = Annotated[str, Meta(pattern="^a")]


class Wrong(msgspec.Struct):
    """What must not be."""

    inside: list[dict[str, Patterned | list[str]]]


def structs() -> list[type[msgspec.Struct]]:
    """Every structure of ours that is loaded."""
    found, waiting = [], list(msgspec.Struct.__subclasses__())
    while waiting:
        waiting += (one := waiting.pop()).__subclasses__()
        found += [one] if one.__module__.startswith(OURS) else []
    return found


def unions(node: object, seen: set[int]) -> Iterator[inspect.UnionType]:
    """All unions in a type, at whatever depth."""
    if isinstance(node, (tuple, list)):
        for one in node:
            yield from unions(one, seen)
    elif isinstance(node, msgspec.Struct) and id(node) not in seen:
        seen.add(id(node))
        if isinstance(node, inspect.UnionType):
            yield node
        for name in node.__struct_fields__:
            yield from unions(getattr(node, name), seen)


def dangerous(kind: type[msgspec.Struct]) -> list[inspect.UnionType]:
    """The unions in it of a text with a pattern and something that holds others."""
    return [
        union
        for union in unions(inspect.type_info(kind), set())
        if any(isinstance(one, CONTAINERS) for one in union.types)
        and any(isinstance(one, inspect.StrType) and one.pattern for one in union.types)
    ]


def test_no_type_of_ours_is_one_that_crashes() -> None:
    assert dangerous(Wrong), "it would be found"
    import governance.urls  # noqa: F401 - loads all of them

    found = structs()
    assert authzen_contract.SubjectProperties in found and len(found) > 30
    assert {kind.__name__: unions for kind in found if (unions := dangerous(kind))} == {}


@pytest.mark.parametrize("member", ["role", "roles"])
@pytest.mark.parametrize(
    ("given", "fits"),
    [("nurse", True), (["nurse", "x"], True), ("a\0b", False), (["a\nb"], False), ("", False), ("x" * 256, False)],
)
def test_a_role_is_held_to_its_pattern_all_the_same(member: str, given: object, fits: bool) -> None:
    asked = {member: given}
    if fits:
        assert getattr(msgspec.convert(asked, authzen_contract.SubjectProperties), member) == given
    else:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(asked, authzen_contract.SubjectProperties)
