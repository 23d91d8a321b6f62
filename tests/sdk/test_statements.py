"""The canonical form, judged by `rfc8785` and foreign vectors; everything outside the profile is refused."""

import enum
import json
from collections.abc import Callable
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given, settings
from hypothesis import strategies as st

from muniment import statements
from muniment.statements import StatementError

Load = Callable[[str], list[dict[str, Any]]]
LIMIT = 2**53 - 1

names = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=8)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
scalars = st.none() | st.booleans() | st.integers(-LIMIT, LIMIT) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
odd_scalars = (
    scalars
    | st.integers()
    | st.floats()
    | st.binary(max_size=3)
    | st.text(max_size=3)
    | st.sampled_from(["\0", "\\u0000", "\ud800", "é\udfff", LIMIT + 1, -LIMIT - 1, (), frozenset(), object()])
)
odd_names = names | st.sampled_from(["é", "\0", "\ud800", "\\u0000"]) | st.integers() | st.none()
odd_values = st.recursive(
    odd_scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_names, inner, max_size=3),
    max_leaves=6,
)


class Colour(enum.StrEnum):
    RED = "red"


def nested(depth: int, kind: type) -> object:
    value: object = kind()
    for _ in range(depth - 1):
        value = {"a": value} if kind is dict else [value]
    return value


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("arrays", True),
        ("unicode", True),
        ("french", False),  # names that are not ASCII
        ("weird", False),
        ("structures", False),  # floats
        ("values", False),
    ],
)
def test_foreign_vectors_are_encoded_as_their_makers_say_or_are_outside_the_profile(
    vectors: Load, name: str, fits: bool
) -> None:
    case = next(case for case in vectors("jcs/rfc8785.json") if case["name"] == name)
    value, expected = json.loads(case["input"]), bytes.fromhex(case["output_hex"])
    assert rfc8785.dumps(value) == expected, "the judge itself"
    if fits:
        assert statements.encode({"case": value}) == b'{"case":' + expected + b"}"
    else:
        with pytest.raises(StatementError):
            statements.encode({"case": value})


def test_every_foreign_vector_is_used(vectors: Load) -> None:
    found = {case["name"] for case in vectors("jcs/rfc8785.json")}
    assert found == {"arrays", "unicode", "french", "weird", "structures", "values"}


@given(st.dictionaries(names, values, max_size=6))
@settings(deadline=None, max_examples=300)
@example({"z": '\x7f\x1f\b\t\n\f\r/"\\\u2028é😀', "A": 1, "a": -1, "_": None, "": LIMIT, "\x01": -LIMIT})
@example({"text": "a backslash before \\u0000 is only text"})
def test_what_is_in_the_profile_is_encoded_as_the_judge_does_and_comes_back(
    statement: dict[str, object],
) -> None:
    data = statements.encode(statement)
    assert data == rfc8785.dumps(statement)  # type: ignore[arg-type]
    assert statements.decode(data) == statement
    assert statements.dump(statement) == data


@given(st.dictionaries(odd_names, odd_values, max_size=4))
@settings(deadline=None, max_examples=400)
def test_the_quick_way_accepts_nothing_that_the_full_check_refuses(statement: dict[Any, object]) -> None:
    try:
        statements.check(statement)
    except StatementError:
        with pytest.raises(StatementError):
            statements.encode(statement)
    else:
        assert statements.encode(statement) == rfc8785.dumps(statement)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1.0, "statement.a.b[1] has the type float"),
        (float("nan"), "statement.a.b[1] has the type float"),
        (LIMIT + 1, "statement.a.b[1] is an integer beyond"),
        (-LIMIT - 1, "statement.a.b[1] is an integer beyond"),
        ("x\0", "statement.a.b[1] holds a NUL"),
        ("x\ud800", "statement.a.b[1] holds a lone surrogate"),
        ({"é": 1}, "statement.a.b[1] has a member whose name is not ASCII"),
        ({"\0": 1}, "statement.a.b[1] has a member whose name is not ASCII"),
        ({1: 1}, "statement.a.b[1] has a member whose name is not ASCII"),
        ({Colour.RED: 1}, "statement.a.b[1] has a member whose name is not ASCII"),
        ((), "statement.a.b[1] has the type tuple"),
        (b"", "statement.a.b[1] has the type bytes"),
        (Colour.RED, "statement.a.b[1] has the type Colour"),
    ],
)
def test_what_is_outside_the_profile_is_refused_and_the_member_named(value: object, said: str) -> None:
    with pytest.raises(StatementError) as caught:
        statements.encode({"a": {"b": [None, value]}})
    assert str(caught.value).startswith(said)
    with pytest.raises(StatementError):
        statements.encode({"a": value})


@pytest.mark.parametrize("secret", ["canary\0", "canary\ud800", "canary" + "x" * 70_000])
def test_no_error_nor_what_it_is_chained_to_holds_a_value(secret: str) -> None:
    for statement in ({"a": secret}, {"a": [secret]}, {"a": {secret: "canary"}}):
        with pytest.raises(StatementError) as caught:
            statements.encode(statement)  # type: ignore[arg-type]
        assert "canary" not in repr(caught.value)
        assert caught.value.__context__ is None and caught.value.__cause__ is None


def test_nesting_ends_at_sixteen_either_way() -> None:
    for kind in (dict, list):
        statements.encode({"a": nested(15, kind)})
        with pytest.raises(StatementError, match="nested deeper than 16"):
            statements.encode({"a": nested(16, kind)})
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(StatementError, match="nested deeper"):
        statements.encode({"a": endless})


def test_the_limit_is_the_encoded_size_and_just_under_64_kib() -> None:
    longest = "x" * (statements.MAX_BYTES - len('{"a":""}'))
    fits: dict[str, object] = {"a": longest}
    assert len(statements.encode(fits)) == statements.MAX_BYTES == 64 * 1024 - 1
    assert statements.decode(statements.encode(fits)) == fits
    for text in (longest + "x", "\x01" * 12_000, "é" * 33_000):
        with pytest.raises(StatementError, match="longer than"):
            statements.encode({"a": text})


@pytest.mark.parametrize("value", [None, [], "text", 1, True])
def test_a_statement_is_an_object(value: Any) -> None:
    with pytest.raises(StatementError, match="not an object"):
        statements.encode(value)
    with pytest.raises(StatementError, match="not an object"):
        statements.decode(json.dumps(value).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"a":1,"a":1}',
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b'{"b":1,"a":1}',
        b'{"a": 1}',
        b' {"a":1}',
        b'{"a":1}\n',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":1.0}',
        b'{"a":1e2}',
        b'{"a":-0}',
        b'{"a":9007199254740992}',
        b'{"a":1' + b"0" * 400 + b"}",
        b'{"a":NaN}',
        b'{"a":"\\u0041"}',
        b'{"a":"\\/"}',
        b'{"a":"\\u001F"}',
        b'{"a":"\\u0000"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\xff"}',
        b'{"a":"\\u00e9"}',
        '{"é":1}'.encode(),
        b'{"a":' + b"[" * 20 + b"]" * 20 + b"}",
        b"[" * 60_000,
        b'{"a":"' + b"x" * 70_000 + b'"}',
    ],
)
def test_bytes_that_encode_would_not_have_made_are_refused(data: bytes) -> None:
    with pytest.raises(StatementError) as caught:
        statements.decode(data)
    assert caught.value.__context__ is None


@given(st.binary(max_size=40) | values.map(lambda value: json.dumps({"a": value}).encode()))
@settings(deadline=None, max_examples=300)
def test_decode_gives_back_the_very_bytes_or_refuses(data: bytes) -> None:
    try:
        statement = statements.decode(data)
    except StatementError:
        return
    assert statements.encode(statement) == data == rfc8785.dumps(statement)  # type: ignore[arg-type]
