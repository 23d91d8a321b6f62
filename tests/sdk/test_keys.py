"""Keys: ids, introductions, whom a document trusts, and what the log's own records may add to that."""

import json
from base64 import b64encode, urlsafe_b64encode
from itertools import count
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from muniment import keys, notes
from muniment.keys import Trust, TrustError, introduce, introduction_holds, thumbprint
from muniment.notes import COSIGNATURE, ED25519, Key

PRIVATES = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(4)]
PUBLICS = [private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw) for private in PRIVATES]
IDS = [thumbprint(public) for public in PUBLICS]
WRONG: list[object] = [None, 5, "other", [], {}, True, "\ud800"]


def statement(signer: int, use: str, public: int, retired: bool = False) -> dict[str, Any]:
    """A `key` statement as the log has it."""
    return {"v": 1, "type": "key", "at": 5, **introduce(PRIVATES[signer], use, PUBLICS[public], retired)}


def jwk(public: bytes, use: str = "writer", **changes: Any) -> dict[str, object]:
    """A key as GET /v1/keys writes it."""
    x = urlsafe_b64encode(public).rstrip(b"=").decode()
    return {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": x,
        "kid": thumbprint(public),
        "alg": "EdDSA",
        "use": use,
        "vkey": Key(f"host.example/{use}", ED25519, public).vkey,
        "not_before": "2026-01-01T00:00:00+00:00",
        "not_after": None,
        **changes,
    }


def document(*members: dict[str, object]) -> str:
    return json.dumps({"keys": members})


def test_the_thumbprint_is_that_of_rfc_8037() -> None:
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    assert thumbprint(public) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_an_introduction_has_its_members_and_holds_for_its_signer_alone() -> None:
    members = introduce(PRIVATES[0], "writer", PUBLICS[1])
    assert set(members) == {"action", "use", "key_id", "public", "by", "signature"}
    assert (members["action"], members["key_id"], members["by"]) == ("key.published", IDS[1], IDS[0])
    assert introduce(PRIVATES[0], "writer", PUBLICS[1], retired=True)["action"] == "key.retired"
    assert introduction_holds(members, PUBLICS[0])
    assert not introduction_holds(members, PUBLICS[1])
    assert not introduction_holds(members, b"short")
    assert not introduction_holds({**members, "by": IDS[1]}, PUBLICS[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"action": "key.retired"},
        {"action": "key.other"},
        {"use": "log"},
        {"use": "other"},
        {"key_id": IDS[2]},
        {"by": IDS[2]},
        {"public": b64encode(PUBLICS[2]).decode()},
        {"public": b64encode(PUBLICS[2]).decode(), "key_id": IDS[2]},
        {"public": b64encode(PUBLICS[1][1:]).decode()},
        {"public": "?"},
        {"signature": b64encode(bytes(64)).decode()},
        {"signature": ""},
        {"signature": "\ud800"},
        {"use": 5},
        {"use": ["writer"]},
        {"signature": None},
    ],
)
def test_an_introduction_with_anything_changed_does_not_hold(changes: dict[str, object]) -> None:
    assert not introduction_holds({**introduce(PRIVATES[0], "writer", PUBLICS[1]), **changes}, PUBLICS[0])


def test_an_introduction_without_a_member_does_not_hold() -> None:
    members = introduce(PRIVATES[0], "writer", PUBLICS[1])
    for name in members:
        assert not introduction_holds({key: value for key, value in members.items() if key != name}, PUBLICS[0])


def test_every_changed_bit_of_a_signature_is_refused() -> None:
    members = introduce(PRIVATES[0], "writer", PUBLICS[1])
    signature = notes.from_base64(str(members["signature"]))
    for bit in range(len(signature) * 8):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        assert not introduction_holds({**members, "signature": b64encode(changed).decode()}, PUBLICS[0])


def test_a_use_or_key_that_cannot_be_is_not_introduced() -> None:
    for use, public in (("other", PUBLICS[0]), ("writer", b"short")):
        with pytest.raises(ValueError):
            introduce(PRIVATES[0], use, public)


def test_a_saved_answer_of_the_keys_page_is_read_by_use() -> None:
    uses = dict(zip(keys.USES, PUBLICS, strict=True))
    trust = Trust.parse("\n " + document(*(jwk(public, use) for use, public in uses.items())))
    held = [trust.writers, trust.logs, trust.exports, trust.assertions]
    assert held == [{key_id: public} for key_id, public in zip(IDS, PUBLICS, strict=True)]
    assert (trust.witnesses, trust.retired) == ({}, set())


def test_a_key_whose_validity_ended_is_still_trusted_for_what_it_signed() -> None:
    trust = Trust.parse(document(jwk(PUBLICS[0], not_after="2026-02-01T00:00:00+00:00")))
    assert (set(trust.writers), trust.retired) == ({IDS[0]}, set())


@pytest.mark.parametrize(
    "changes",
    [
        {"kid": IDS[1]},
        {"kid": None},
        {"kty": "EC"},
        {"crv": "X25519"},
        {"x": None},
        {"x": ""},
        {"x": "\u00e9"},
        {"x": b64encode(PUBLICS[0]).decode()},
        {"x": urlsafe_b64encode(PUBLICS[0][1:]).rstrip(b"=").decode()},
        {"use": "other"},
        {"use": None},
        {"use": ["writer"]},
        {"use": "witness"},
    ],
)
def test_a_jwk_that_is_not_one_of_ours_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(TrustError, match="key 2"):
        Trust.parse(document(jwk(PUBLICS[1]), jwk(PUBLICS[0], **changes)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n# only a comment\n",
        "{",
        "{}",
        '{"keys": {}}',
        '{"keys": []}',
        '{"keys": [5]}',
        '{"keys": [' + "[" * 50_000,
        '{"\ud800": 1}',
        "[]",
        "no key",
        "\ud800",
        "#" * (keys.MAX_BYTES + 1),
    ],
    ids=count(),
)
def test_what_is_no_document_of_keys_is_refused(text: str) -> None:
    with pytest.raises(TrustError):
        Trust.parse(text)


def test_lines_of_keys_are_read_by_the_end_of_their_names() -> None:
    witness = Key("witness.example/log", COSIGNATURE, PUBLICS[3])
    names = ["h.example/writer", "h.example/log", "h.example/log/2", "h.example:8000/export", "h/x/assertion"]
    lines = [Key(name, ED25519, PUBLICS[number % 4]).vkey for number, name in enumerate(names)]
    trust = Trust.parse("# ours\n\n" + "\r\n".join([*lines, f"  {witness.vkey}  "]) + "\n")
    assert trust.writers == {IDS[0]: PUBLICS[0]}
    assert trust.logs == {IDS[1]: PUBLICS[1], IDS[2]: PUBLICS[2]}
    assert trust.exports == {IDS[3]: PUBLICS[3]}
    assert trust.assertions == {IDS[0]: PUBLICS[0]}
    assert trust.witnesses == {witness.vkey: witness}


@pytest.mark.parametrize(
    "name", ["h.example", "writer", "h.example/logs", "h/writer/2", "h/log/x", "h/log/", "2", "h/2"]
)
def test_a_name_that_tells_no_use_is_refused(name: str) -> None:
    good = Key("h.example/writer", ED25519, PUBLICS[1]).vkey
    with pytest.raises(TrustError, match="line 2"):
        Trust.parse(f"{good}\n{Key(name, ED25519, PUBLICS[0]).vkey}\n")


def test_a_broken_line_is_named_by_its_number_and_not_repeated() -> None:
    with pytest.raises(TrustError, match="line 3") as caught:
        Trust.parse(f"# x\n\nhunter2 {Key('h/writer', ED25519, PUBLICS[1]).vkey}\n")
    assert "hunter2" not in str(caught.value)


@given(st.text(max_size=80) | st.builds('{{"keys": [{}]}}'.format, st.text(max_size=60)))
def test_no_text_breaks_the_reader(text: str) -> None:
    with pytest.raises(TrustError):
        Trust.parse(text)


def test_log_keys_carry_the_origin_as_their_name() -> None:
    trust = Trust(logs={IDS[0]: PUBLICS[0], IDS[1]: PUBLICS[1]})
    assert trust.log_keys("h.example/log/2") == [Key("h.example/log/2", ED25519, public) for public in PUBLICS[:2]]
    assert trust.log_keys("no key name") == []


def test_a_key_introduced_by_a_trusted_key_of_its_use_is_trusted_and_may_introduce_another() -> None:
    for use in keys.USES:
        trust = Trust.parse(document(jwk(PUBLICS[0], use)))
        assert not trust.learn(statement(1, use, 2)), "before the one that introduces it"
        assert trust.learn(statement(0, use, 1))
        assert not trust.learn(statement(0, use, 1)), "nothing new"
        assert trust.learn(statement(1, use, 2))
        held = [trust.writers, trust.logs, trust.exports, trust.assertions][keys.USES.index(use)]
        assert held == dict(zip(IDS[:3], PUBLICS[:3], strict=True))


def test_a_stranger_a_key_of_another_use_or_the_key_itself_brings_no_trust() -> None:
    trust = Trust(writers={IDS[0]: PUBLICS[0]}, logs={IDS[3]: PUBLICS[3]})
    before = trust.copy()
    assert not trust.learn(statement(1, "writer", 1)), "introduces itself"
    assert not trust.learn(statement(1, "writer", 2)), "by a stranger"
    assert not trust.learn(statement(0, "log", 1)), "by a writer, for the log"
    assert not trust.learn(statement(3, "writer", 1)), "by the log, for a writer"
    assert not trust.learn({**statement(1, "writer", 1), "by": IDS[0]}), "in another's name"
    assert trust == before


def test_a_changed_or_malformed_statement_teaches_nothing() -> None:
    trust = Trust(writers={IDS[0]: PUBLICS[0]})
    good = statement(0, "writer", 1)
    for name in ("type", "action", "use", "key_id", "public", "by", "signature"):
        for wrong in WRONG:
            assert not trust.learn({**good, name: wrong})
        assert not trust.learn({member: value for member, value in good.items() if member != name})
    assert not trust.learn({})
    assert trust == Trust(writers={IDS[0]: PUBLICS[0]})
    assert trust.learn({**good, "more": 1})


def test_a_retired_key_is_kept_for_what_it_signed_and_introduces_nobody() -> None:
    trust = Trust(writers=dict(zip(IDS[:2], PUBLICS[:2], strict=True)))
    assert trust.learn(statement(1, "writer", 0, retired=True))
    assert not trust.learn(statement(1, "writer", 0, retired=True)), "nothing new"
    assert (trust.retired, trust.writers[IDS[0]]) == ({IDS[0]}, PUBLICS[0])
    assert not trust.learn(statement(0, "writer", 2)), "a retired key introduces nobody"
    assert not trust.learn(statement(0, "writer", 1, retired=True)), "and retires nobody"
    assert not trust.learn(statement(1, "writer", 0)), "and does not come back"
    assert trust.retired == {IDS[0]}
    assert trust.learn(statement(1, "writer", 1, retired=True)), "a key may retire itself"


def test_a_stranger_retires_nobody() -> None:
    trust = Trust(writers={IDS[0]: PUBLICS[0]})
    assert not trust.learn(statement(1, "writer", 0, retired=True))
    assert not trust.learn({**statement(0, "writer", 1), "action": "key.retired"}), "a publication turned around"
    assert trust.retired == set()


def test_a_copy_learns_on_its_own() -> None:
    trust = Trust(writers={IDS[0]: PUBLICS[0]}, logs={IDS[0]: PUBLICS[0]})
    copy = trust.copy()
    assert copy == trust
    copy.learn(statement(0, "writer", 1))
    copy.learn(statement(0, "log", 2))
    copy.learn(statement(0, "writer", 0, retired=True))
    assert trust == Trust(writers={IDS[0]: PUBLICS[0]}, logs={IDS[0]: PUBLICS[0]})
    assert (len(copy.writers), len(copy.logs), copy.retired) == (2, 2, {IDS[0]})
