"""Disclosures: the form of RFC 9901, fresh salts, strict reading, and nothing told in passing."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muniment import disclosures
from muniment.disclosures import DisclosureError

SALT = bytes(range(16))
PAIRS: dict[str, object] = {
    "sub": "auth0|1",
    "email": "é@example.org",
    "resource": {"type": "memory", "id": "m_1"},
}

# RFC 9901, 4.2.1 and 4.2.3: a disclosure and its digest.
RFC_TEXT = "WyJfMjZiYzRMVC1hYzZxMktJNmNCVzVlcyIsICJmYW1pbHlfbmFtZSIsICJNw7ZiaXVzIl0"
RFC_DIGEST = "X9yH0Ajrdm1Oij4tWso9UzzKJvPoDxwmuEcO3XAdRC0"

names = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=8).filter(
    lambda name: name not in ("_sd", "...")  # reserved, and tested as such below
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


def text_of(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def test_the_example_of_the_rfc_matches_by_its_digest() -> None:
    assert disclosures.matches({"_sd": ["other", RFC_DIGEST]}, RFC_TEXT)
    assert not disclosures.matches({"_sd": ["other"]}, RFC_TEXT)


@given(names, values)
@settings(deadline=None)
def test_text_and_digest_are_what_the_rfc_says(name: str, value: object) -> None:
    made = disclosures.make(name, value, SALT)
    data = urlsafe_b64decode(made.text + "=" * (-len(made.text) % 4))
    assert json.loads(data) == ["AAECAwQFBgcICQoLDA0ODw", name, value]
    assert "=" not in made.text
    assert made.digest == text_of(sha256(made.text.encode("ascii")).digest())
    assert (made.name, made.value) == (name, value)


@given(st.dictionaries(names, values, max_size=6))
@settings(deadline=None)
def test_what_is_packed_comes_back_and_matches_its_statement(pairs: dict[str, object]) -> None:
    made = disclosures.make_all(pairs)
    statement = {"_sd": disclosures.digests(made)}
    assert [(one.name, one.value) for one in made] == list(pairs.items())
    assert statement["_sd"] == sorted(one.digest for one in made)
    assert disclosures.unpack(disclosures.pack(made)) == made
    assert all(disclosures.parse(one.text) == one for one in made)
    assert all(disclosures.matches(statement, one.text) for one in made)


def test_every_salt_is_fresh_so_that_equal_values_have_unequal_digests() -> None:
    made = [disclosures.make("sub", "alice") for _ in range(50)]
    for _ in range(50):
        made += disclosures.make_all({"sub": "alice", "email": "alice"})
    salts = {json.loads(urlsafe_b64decode(one.text + "=="))[0] for one in made}
    assert len(salts) == len({one.digest for one in made}) == 150
    assert all(len(urlsafe_b64decode(salt + "==")) == 16 for salt in salts)


def test_a_disclosure_of_another_record_or_with_any_changed_character_does_not_match() -> None:
    made = disclosures.make("sub", "alice")
    statement = {"_sd": [made.digest]}
    assert not disclosures.matches(statement, disclosures.make("sub", "alice").text)
    for position, character in enumerate(made.text):
        changed = made.text[:position] + ("A" if character != "A" else "B") + made.text[position + 1 :]
        assert not disclosures.matches(statement, changed)
    for other in ({}, {"_sd": None}, {"_sd": made.digest}, {"_sd": {made.digest: 1}}, {"sd": [made.digest]}):
        assert not disclosures.matches(other, made.text)
    assert not disclosures.matches(statement, "é\ud800")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b"{}",
        b"[]",
        b'["AAECAwQFBgcICQoLDA0ODw","sub"]',
        b'["AAECAwQFBgcICQoLDA0ODw","sub","x","y"]',
        b'["AAECAwQFBgcICQoLDA0ODw",1,"x"]',
        b'[1,"sub","x"]',
        b'["AAECAwQFBgcICQoLDA0O","sub","x"]',  # 120 bits of salt
        b'["AAECAwQFBgcICQoLDA0ODx","sub","x"]',  # stray bits after the salt
        b'["AAECAwQFBgcICQoLDA0ODw==","sub","x"]',
        b'["AAECAwQFBgcICQoLDA0OD!","sub","x"]',
        b'["AAECAwQFBgcICQoLDA0ODw","_sd","x"]',
        b'["AAECAwQFBgcICQoLDA0ODw","...","x"]',
        b'["AAECAwQFBgcICQoLDA0ODw", "sub","x"]',
        b'["AAECAwQFBgcICQoLDA0ODw","sub","\\u0078"]',
        b'["AAECAwQFBgcICQoLDA0ODw","sub","\\u0000"]',
        b'["AAECAwQFBgcICQoLDA0ODw","sub",1.5]',
        b'["AAECAwQFBgcICQoLDA0ODw","sub",{"a":1,"a":2}]',
        b'["AAECAwQFBgcICQoLDA0ODw","sub",{"b":1,"a":2}]',
        b'["AAECAwQFBgcICQoLDA0ODw","sub","x"]\n',
        b"[" * 5_000,
    ],
)
def test_what_make_would_not_have_written_is_refused(data: bytes) -> None:
    with pytest.raises(DisclosureError):
        disclosures.parse(text_of(data))
    with pytest.raises(DisclosureError):
        disclosures.unpack(json.dumps([text_of(data)]).encode())


def test_only_plain_base64url_is_read() -> None:
    text = disclosures.make("sub", "??>>~~", SALT).text
    assert disclosures.parse(text).value == "??>>~~"
    standard = text.replace("-", "+").replace("_", "/")
    for bad in (
        text + "=",
        text + "\n",
        " " + text,
        text[:4] + "\n" + text[4:],
        text + "A",
        text + "é",
        text[:-1],
    ):
        with pytest.raises(DisclosureError):
            disclosures.parse(bad)
    assert standard != text
    with pytest.raises(DisclosureError):
        disclosures.parse(standard)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"[null]", b'"text"', b"[", b"\xff", b'[["a"]]'])
def test_unpack_refuses_what_is_not_an_array_of_disclosures(data: bytes) -> None:
    with pytest.raises(DisclosureError):
        disclosures.unpack(data)


@pytest.mark.parametrize("name", ["_sd", "...", "é", "a\0"])
def test_reserved_and_odd_names_are_refused(name: str) -> None:
    with pytest.raises(DisclosureError):
        disclosures.make(name, "x")
    with pytest.raises(DisclosureError):
        disclosures.make_all({"sub": "x", name: "y"})


@pytest.mark.parametrize("value", ["canary\0", "canary\ud800", ["canary", 1.5], {"a": b"canary"}, {"canary\0": 1}])
def test_a_hostile_value_is_refused_by_name_and_never_told(value: object) -> None:
    with pytest.raises(DisclosureError, match=r"the disclosure\.user_agent") as caught:
        disclosures.make_all({"sub": "x", "user_agent": value})
    assert "canary" not in repr(caught.value)
    assert caught.value.__context__ is None and caught.value.__cause__ is None
    with pytest.raises(DisclosureError):
        disclosures.make("user_agent", value)


def test_a_short_salt_is_refused() -> None:
    with pytest.raises(DisclosureError):
        disclosures.make("sub", "x", bytes(15))


def test_the_representation_shows_no_value() -> None:
    made = disclosures.make("email", "alice@example.org")
    assert "alice" not in repr(made) and made.text not in repr(made) and made.digest in repr(made)
    with pytest.raises(AttributeError):
        made.name = "other"  # type: ignore[misc]


def test_an_empty_record_has_no_disclosures() -> None:
    assert disclosures.make_all({}) == [] and disclosures.digests([]) == []
    assert disclosures.pack([]) == b"[]" and disclosures.unpack(b"[]") == []
