"""Which keys of a key set may verify anything at all, and what of a set is stored."""

import json
from typing import Any

import pytest

from clients import jwks
from tests.clients.keys import b64, signing_key

RSA, EC, ED = signing_key("RS256", "r1"), signing_key("ES256", "e1"), signing_key("EdDSA", "d1")


def kids(*keys: Any, allowed: frozenset[str] = jwks.SUPPORTED) -> list[str | None]:
    return [key.kid for key in jwks.parse({"keys": list(keys)}, allowed)]


def test_usable_keys_are_kept_in_order_with_what_they_may_verify() -> None:
    keys = jwks.parse({"keys": [RSA.jwk(alg=None), EC.jwk(), ED.jwk(), RSA.jwk(kid=None)]})
    assert [key.kid for key in keys] == ["r1", "e1", "d1", None]
    assert keys[0].algorithms == {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
    assert [key.algorithms for key in keys[1:]] == [{"ES256"}, {"EdDSA"}, {"RS256"}]


@pytest.mark.parametrize("document", [{}, {"keys": None}, {"keys": {}}, {"keys": "x"}, {"keys": []}])
def test_a_document_without_keys_has_none(document: dict[str, Any]) -> None:
    assert jwks.parse(document) == ()


@pytest.mark.parametrize("document", [None, True, 5, 0.5, "keys", "{}", b"{}", [], ["keys"], [EC.jwk()], ("keys",)])
def test_what_is_no_object_has_no_keys(document: object) -> None:
    assert jwks.parse(document) == ()


@pytest.mark.parametrize(
    "junk",
    [
        None,
        5,
        "key",
        [],
        {},
        {"kty": "RSA"},
        {"kty": None},
        {"kty": {"a": 1}},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA"},
        {"kty": "EC", "crv": "P-256"},
        {"kty": "EC", "crv": ["P-256"]},
        {"kty": "OKP", "crv": "X25519", "x": "A" * 43},
    ],
)
def test_junk_spoils_no_set(junk: Any) -> None:
    assert kids(junk, EC.jwk(), junk) == ["e1"]


@pytest.mark.parametrize("member", ["d", "p", "q", "k"])
def test_a_published_private_key_is_not_used(member: str) -> None:
    assert kids(EC.jwk(**{member: "AAAA"}), RSA.jwk(**{member: "AAAA"})) == []


@pytest.mark.parametrize(("bits", "kept"), [(1024, False), (2047, False), (2048, True), (3072, True)])
def test_rsa_needs_2048_bits(bits: int, kept: bool) -> None:
    assert bool(kids(signing_key("RS256", "r", bits=bits).jwk())) is kept


def test_rsa_keys_that_cost_too_much_are_left_out() -> None:
    assert kids(RSA.jwk(n=b64(b"\xff" * 1025))) == []
    assert kids(RSA.jwk(n=b64(b"\xff" * 1024))) == ["r1"]
    assert kids(RSA.jwk(e=b64(b"\x01" + b"\0" * 4 + b"\x01"))) == []


@pytest.mark.parametrize("exponent", [b"\0", b"\x01", b"\x02", b"\x01\0\0"])
def test_rsa_exponents_that_are_even_or_one_are_left_out(exponent: bytes) -> None:
    assert kids(RSA.jwk(e=b64(exponent))) == []


def test_an_even_modulus_is_left_out() -> None:
    assert kids(RSA.jwk(n=b64(b"\xff" * 255 + b"\xfe"))) == []


@pytest.mark.parametrize("coordinate", ["", "AA", "A" * 43, "A" * 44, "=" * 43, "é" * 43, 5, None, ["A" * 43]])
@pytest.mark.parametrize("key", [EC, ED])
def test_a_point_that_is_not_on_the_curve_or_badly_spelt_is_left_out(key: Any, coordinate: Any) -> None:
    if key is ED and coordinate == "A" * 43:
        return  # any 32 bytes are an Ed25519 key
    assert kids(key.jwk() | {"x": coordinate}) == []


def test_a_coordinate_of_another_curve_or_with_padding_is_left_out() -> None:
    assert kids(EC.jwk(crv="P-384"), EC.jwk(crv="P-521"), EC.jwk(crv="secp256k1"), EC.jwk(crv="p-256")) == []
    assert kids(EC.jwk(x=EC.jwk()["x"] + "=")) == []
    assert kids(EC.jwk(y=EC.jwk()["x"])) == []


@pytest.mark.parametrize("kid", [5, ["e1"], {}, "a\0b", "\ud800", "a\nb", "x" * 256])
def test_a_key_with_an_odd_kid_is_left_out(kid: Any) -> None:
    assert kids(EC.jwk() | {"kid": kid}) == []
    assert kids(EC.jwk() | {"kid": None}) == []


def test_keys_that_serve_no_allowed_algorithm_are_left_out() -> None:
    assert kids(RSA.jwk(), EC.jwk(), ED.jwk(), allowed=frozenset({"ES256"})) == ["e1"]
    assert kids(RSA.jwk(alg=None), allowed=frozenset({"PS512"})) == ["r1"]
    assert kids(RSA.jwk(), allowed=frozenset({"HS256", "none"})) == []


def test_duplicate_kids_are_all_kept() -> None:
    assert kids(EC.jwk(kid="x"), RSA.jwk(kid="x"), EC.jwk(kid="x")) == ["x", "x", "x"]


def test_a_set_is_read_up_to_100_keys() -> None:
    many = [EC.jwk(kid=f"k{n}") for n in range(101)]
    assert len(jwks.parse({"keys": many})) == 100
    with pytest.raises(ValueError, match="more than 100"):
        jwks.normalise({"keys": many})


@pytest.mark.parametrize("algorithm", ["none", "HS256", "ES384", "RS256", "", "es256"])
def test_a_key_verifies_only_with_its_algorithms(algorithm: str) -> None:
    (key,) = jwks.parse({"keys": [EC.jwk()]})
    assert key.verify("ES256", b"message", EC.sign(b"message"))
    assert not key.verify(algorithm, b"message", EC.sign(b"message"))
    assert not key.verify("ES256", b"other", EC.sign(b"message"))


# What is stored


def test_order_and_decoration_do_not_change_a_set() -> None:
    plain = jwks.normalise({"keys": [RSA.jwk(), EC.jwk()]})
    decorated = RSA.jwk(x5c=["MIIB"], x5t="t", issuer="x", key_ops=["verify"], use=None, crv={"odd": "\0"})
    assert jwks.normalise({"keys": [EC.jwk(), decorated], "extra": 1}) == plain
    assert jwks.normalise({"keys": [RSA.jwk()]}) != plain
    assert jwks.normalise({"keys": [RSA.jwk(kid="r2"), EC.jwk()]}) != plain


def test_what_is_stored_verifies_the_same() -> None:
    keys = [RSA.jwk(), RSA.jwk(alg=None, kid=None), EC.jwk(), ED.jwk(), signing_key("Ed448").jwk()]
    stored = jwks.normalise({"keys": keys})
    assert sorted(map(repr, kids(*keys))) == sorted(map(repr, kids(*stored["keys"])))
    assert jwks.normalise(stored) == stored


def test_unusable_and_private_keys_are_not_stored() -> None:
    junk = [EC.jwk(d="AAAA"), {"kty": "oct", "k": "c2VjcmV0"}, {"kid": "\0"}, 5]
    assert jwks.normalise({"keys": [EC.jwk(), *junk]}) == jwks.normalise({"keys": [EC.jwk()]})
    assert "c2VjcmV0" not in json.dumps(jwks.normalise({"keys": junk}))


def test_an_empty_set_is_a_set_and_no_list_is_none() -> None:
    assert jwks.normalise({"keys": []}) == {"keys": []}
    documents: list[dict[str, Any]] = [{}, {"keys": None}, {"keys": {}}, {"error": "x"}]
    for document in documents:
        with pytest.raises(ValueError, match="no list of keys"):
            jwks.normalise(document)
