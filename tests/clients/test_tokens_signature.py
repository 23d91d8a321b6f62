"""Row 4: which algorithm, which key, and does the signature hold (RFC 8725 section 3, RFC 7515, RFC 7517)."""

import hashlib
import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from clients import jwks
from clients.tokens import IssuerPolicy, Refused, UnknownKey, identify
from tests.clients.keys import AUDIENCE, ISSUER, NOW, SigningKey, b64, dump, policy, signing_key, usual_claims

AUDIENCES = frozenset({AUDIENCE})
RSA, EC = signing_key("RS256", "r1"), signing_key("ES256", "e1")


def accepts(token: str, issuers: dict[str, IssuerPolicy]) -> bool:
    return identify(token, issuers, AUDIENCES, NOW).sub == "alice"


def refused(token: str, issuers: dict[str, IssuerPolicy]) -> Refused:
    with pytest.raises(Refused) as caught:
        identify(token, issuers, AUDIENCES, NOW)
    assert caught.value.reason == "token_invalid"
    return caught.value


def like(key: SigningKey, algorithm: str, kid: str | None = "k1") -> SigningKey:
    """The same private key, used with another algorithm."""
    return SigningKey(algorithm, key.private, kid)


@pytest.mark.parametrize("algorithm", [*sorted(jwks.SUPPORTED), "Ed448"])
def test_each_supported_algorithm_verifies_and_refuses_a_changed_token(algorithm: str) -> None:
    key = signing_key(algorithm)
    issuers = policy(key.jwk())
    token = key.token()
    assert accepts(token, issuers)
    head, payload, signature = token.split(".")
    other = b64(dump(usual_claims() | {"sub": "bob"}))
    refused(f"{head}.{other}.{signature}", issuers)
    refused(f"{head}.{payload}.{'A' * 8}", issuers)
    refused(f"{head}.{payload}.", issuers)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "none ", ""])
@pytest.mark.parametrize("listed", [jwks.SUPPORTED, jwks.SUPPORTED | {"none", "None", "NONE", "nOnE", "none ", ""}])
def test_alg_none_is_refused_in_any_case_even_where_the_issuer_lists_it(algorithm: str, listed: frozenset[str]) -> None:
    head, payload, signature = EC.token(header={"alg": algorithm}).split(".")
    issuers = policy(EC.jwk(), algorithms=listed)
    refused(f"{head}.{payload}.", issuers)
    refused(f"{head}.{payload}.{signature}", issuers)
    assert accepts(EC.token(), issuers)


@pytest.mark.parametrize("listed", [jwks.SUPPORTED, jwks.SUPPORTED | {"HS256"}])
def test_hs256_with_the_public_key_as_secret_is_refused(listed: frozenset[str]) -> None:
    public = RSA.private.public_key()
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    secrets = [public.public_bytes(form, spki) for form in (serialization.Encoding.PEM, serialization.Encoding.DER)]
    secrets += [dump(RSA.jwk()), RSA.jwk()["n"].encode(), b""]
    signed = f"{b64(dump({'alg': 'HS256', 'kid': 'r1'}))}.{b64(dump(usual_claims()))}"
    for secret in secrets:
        mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
        refused(f"{signed}.{b64(mac)}", policy(RSA.jwk(), algorithms=listed))


def test_a_symmetric_key_in_the_key_set_verifies_nothing() -> None:
    secret = b"k" * 32
    signed = f"{b64(dump({'alg': 'HS256', 'kid': 'o1'}))}.{b64(dump(usual_claims()))}"
    token = f"{signed}.{b64(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"
    oct_key = {"kty": "oct", "kid": "o1", "k": b64(secret)}
    refused(token, policy(oct_key, algorithms=jwks.SUPPORTED | {"HS256"}))
    refused(token, policy(oct_key | {"alg": "HS256"}, RSA.jwk()))


def test_an_embedded_key_is_not_used() -> None:
    attacker = signing_key("ES256", "e1", number=1)
    refused(attacker.token(header={"jwk": attacker.jwk()}), policy(EC.jwk()))
    assert accepts(EC.token(header={"jwk": attacker.jwk()}), policy(EC.jwk()))


@pytest.mark.parametrize("member", ["jku", "x5u"])
def test_addresses_in_the_header_are_ignored(member: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> Any:
        raise AssertionError("verifying a token opened a connection")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    attacker = signing_key("ES256", "e1", number=1)
    header = {member: "https://attacker.example/keys"}
    refused(attacker.token(header=header), policy(EC.jwk()))
    assert accepts(EC.token(header=header), policy(EC.jwk()))


@pytest.mark.parametrize("bits", [1024, 2040])
def test_an_rsa_key_under_2048_bits_verifies_nothing(bits: int) -> None:
    weak = signing_key("RS256", "r1", bits=bits)
    assert isinstance(refused(weak.token(), policy(weak.jwk())), UnknownKey)
    assert accepts(RSA.token(), policy(weak.jwk(), RSA.jwk()))


@pytest.mark.parametrize(
    "misfit",
    [
        {"use": "enc"},
        {"use": ""},
        {"use": ["sig"]},
        {"key_ops": ["sign"]},
        {"key_ops": []},
        {"key_ops": "verify"},
        {"key_ops": ["encrypt", "wrapKey"]},
        {"alg": "RS512"},
        {"alg": "PS256"},
        {"alg": "RSA-OAEP"},
        {"alg": "ES256"},
        {"alg": ["RS256"]},
        {"kty": "EC"},
        {"kty": "rsa"},
        {"kty": ["RSA"]},
    ],
)
def test_a_key_for_something_else_verifies_nothing(misfit: dict[str, Any]) -> None:
    refused(RSA.token(), policy(RSA.jwk(**misfit)))


@pytest.mark.parametrize(
    "fit",
    [{}, {"use": None}, {"alg": None}, {"key_ops": ["verify"]}, {"key_ops": ["sign", "verify"], "use": None}],
)
def test_a_key_that_says_less_or_the_right_thing_verifies(fit: dict[str, Any]) -> None:
    assert accepts(RSA.token(), policy(RSA.jwk(**fit)))


@pytest.mark.parametrize("kid", ["r1", None])
def test_ps_and_rs_are_not_mixed_where_the_key_says_which(kid: str | None) -> None:
    ps = like(RSA, "PS256", kid)
    refused(ps.token(), policy(RSA.jwk(alg="RS256")))
    refused(like(RSA, "RS256", kid).token(), policy(RSA.jwk(alg="PS256")))
    assert accepts(ps.token(), policy(RSA.jwk(alg="PS256")))
    assert accepts(ps.token(), policy(RSA.jwk(alg=None)))
    # The header names one, the signature is the other.
    refused(ps.token(header={"alg": "RS256"}), policy(RSA.jwk(alg=None)))


def test_an_algorithm_that_the_issuer_may_not_use_is_refused() -> None:
    assert accepts(RSA.token(), policy(RSA.jwk(), algorithms=frozenset({"RS256"})))
    error = refused(RSA.token(), policy(RSA.jwk(), algorithms=frozenset({"ES256"})))
    assert not isinstance(error, UnknownKey)  # no fetch could help
    refused(like(RSA, "RS512").token(), policy(RSA.jwk(alg=None, kid="k1"), algorithms=frozenset({"RS256"})))
    refused(RSA.token(), policy(RSA.jwk(), algorithms=frozenset()))
    refused(RSA.token(header={"alg": "rs256"}), policy(RSA.jwk()))


@pytest.mark.parametrize(("algorithm", "other"), [("ES256", "ES384"), ("ES384", "ES512"), ("ES512", "ES256")])
def test_an_ecdsa_algorithm_takes_only_its_own_curve(algorithm: str, other: str) -> None:
    key = signing_key(algorithm, "c1")
    published = key.jwk(alg=None)
    assert accepts(key.token(), policy(published))
    refused(like(key, other, "c1").token(), policy(published))
    refused(like(key, other, None).token(), policy(published))
    refused(key.token(header={"alg": other}), policy(published))


def test_an_ecdsa_signature_in_der_or_of_zeros_is_refused() -> None:
    head, payload, _ = EC.token().split(".")
    raw = EC.sign(f"{head}.{payload}".encode())
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    for forged in (der, bytes(64), raw[:32] + bytes(32), raw + b"\0", raw[:63], b"\xff" * 64):
        refused(f"{head}.{payload}.{b64(forged)}", policy(EC.jwk()))
    assert accepts(f"{head}.{payload}.{b64(raw)}", policy(EC.jwk()))


def test_an_ed25519_key_is_not_an_x25519_or_ec_key() -> None:
    key = signing_key("EdDSA", "d1")
    assert accepts(key.token(), policy(key.jwk()))
    refused(key.token(), policy(key.jwk(crv="X25519")))
    refused(key.token(), policy(key.jwk(crv="Ed448")))
    refused(key.token(), policy(key.jwk(kty="EC")))
    refused(key.token(), policy(EC.jwk(kid="d1")))


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], "exp", None, {}, ["http://example.com/x"], [1]])
def test_crit_known_unknown_or_empty_is_refused(crit: object) -> None:
    header = json.dumps({"alg": "ES256", "kid": "e1", "crit": crit}).encode()
    refused(EC.token(header=header), policy(EC.jwk()))
    refused(EC.token(header={"crit": ["b64"], "b64": False}), policy(EC.jwk()))
    refused(EC.token(header={"b64": False}), policy(EC.jwk()))


def test_duplicate_kids_are_all_tried() -> None:
    first, second, third = (signing_key("ES256", "same", number=n) for n in (10, 11, 12))
    issuers = policy(first.jwk(), RSA.jwk(kid="same"), second.jwk())
    assert accepts(first.token(), issuers)
    assert accepts(second.token(), issuers)
    assert accepts(like(RSA, "RS256", "same").token(), issuers)
    assert not isinstance(refused(third.token(), issuers), UnknownKey)


def test_without_a_kid_the_only_key_is_used() -> None:
    token = EC.token(header={"kid": None})
    assert accepts(token, policy(EC.jwk()))
    assert accepts(token, policy(EC.jwk(kid=None)))
    refused(signing_key("ES256", None, number=13).token(), policy(EC.jwk()))


def test_without_a_kid_all_keys_that_fit_are_tried() -> None:
    keys = [signing_key("ES256", f"n{n}", number=20 + n) for n in range(4)]
    issuers = policy(RSA.jwk(), *(key.jwk() for key in keys))
    for key in keys:
        assert accepts(key.token(header={"kid": None}), issuers)
    error = refused(signing_key("ES256", None, number=13).token(), issuers)
    assert not isinstance(error, UnknownKey)


def test_without_a_kid_and_without_a_key_that_fits_the_keys_may_be_new() -> None:
    assert isinstance(refused(EC.token(header={"kid": None}), policy(RSA.jwk())), UnknownKey)


def test_an_unknown_kid_says_whose_keys_to_fetch() -> None:
    error = refused(EC.token(header={"kid": "new"}), policy(EC.jwk()))
    assert isinstance(error, UnknownKey)
    assert (error.issuer_id, error.issuer) == (7, ISSUER)
    assert isinstance(refused(EC.token(header={"kid": ""}), policy(EC.jwk())), UnknownKey)
    assert isinstance(refused(EC.token(header={"kid": "E1"}), policy(EC.jwk())), UnknownKey)


def test_a_withdrawn_key_or_an_empty_set_verifies_nothing() -> None:
    assert isinstance(refused(EC.token(), policy()), UnknownKey)
    assert isinstance(refused(EC.token(), policy(RSA.jwk())), UnknownKey)


def test_a_known_kid_with_a_wrong_signature_is_a_forgery_and_fetches_nothing() -> None:
    forged = signing_key("ES256", "e1", number=1)
    assert not isinstance(refused(forged.token(), policy(EC.jwk())), UnknownKey)


@pytest.mark.parametrize("kid", [5, True, ["e1"], {"kid": "e1"}])
def test_a_kid_that_is_no_string_is_refused(kid: object) -> None:
    assert not isinstance(refused(EC.token(header={"kid": kid}), policy(EC.jwk())), UnknownKey)
