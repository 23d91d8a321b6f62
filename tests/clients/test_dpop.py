"""DPoP proofs (RFC 9449 section 4.3): which hold, and every way to get one wrong. Pure: no server, no database."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import get_default_algorithms

from clients.dpop import LIFE, MAX_JTI, MAX_PROOF, MAX_SKEW, Asked, Proof, WrongProof, check, thumbprint
from tests.clients.keys import NOW, b64, dump
from tests.clients.proving import URL, Holder, holder

TOKEN = "eyJ.of.alice"
ALICE, MALLORY = holder(), holder(number=1)
SKEW = 30
WEAK = get_default_algorithms()


def asked(**changes: Any) -> Asked:
    usual: dict[str, Any] = {"method": "POST", "url": URL, "token": TOKEN, "key": ALICE.jkt, "skew": SKEW}
    return Asked(**usual | changes)


def proof(who: Holder = ALICE, **changes: Any) -> str:
    return who.proof(TOKEN, **{"now": NOW} | changes)


def refusal(text: str, now: float = NOW, **changes: Any) -> WrongProof:
    with pytest.raises(WrongProof) as found:
        check(text, asked(**changes), now)
    return found.value


@pytest.mark.parametrize("algorithm", ["ES256", "ES384", "ES512", "EdDSA", "Ed448", "RS256", "PS256"])
def test_a_proof_of_the_tokens_key_holds_whatever_its_algorithm(algorithm: str) -> None:
    who = holder(algorithm)
    assert check(proof(who), asked(key=who.jkt), NOW).name.startswith(who.jkt)


def test_the_thumbprint_is_that_of_rfc_7638() -> None:
    """The key and the thumbprint of its section 3.1, and those of RFC 9449 (sections 4.1 and 6.1)."""
    modulus = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3okn"
        "jhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qM"
        "QvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJz"
        "KnqDKgw"
    )
    rsa = {"kty": "RSA", "n": modulus, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"}
    assert thumbprint(rsa) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    ec = {
        "kty": "EC", "crv": "P-256", "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
        "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
    }  # fmt: skip
    assert thumbprint(ec) == "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"


def test_a_proof_is_known_by_its_key_and_its_name() -> None:
    once = check(proof(jti="one"), asked(), NOW)
    assert (
        once == check(proof(jti="one", iat=int(NOW)), asked(), NOW) == Proof(f"{ALICE.jkt} one", NOW + LIFE + MAX_SKEW)
    )
    assert once.name != check(proof(jti="two"), asked(), NOW).name
    assert once.name != check(proof(MALLORY, jti="one"), asked(key=MALLORY.jkt), NOW).name


WRONG = [
    ("", "compact JWS"),
    ("not a proof", "compact JWS"),
    (proof() + ", " + proof(), "compact JWS"),  # two headers, as a server joins them
    (f"{b64(b'[]')}.{b64(b'{}')}.{b64(b'x')}", "compact JWS"),
    (f'{b64(b"{")}.{b64(b"{}")}.{b64(b"x")}', "compact JWS"),
    (proof() + "=", "compact JWS"),
    (" " + proof(), "compact JWS"),
    (proof(pad="x" * MAX_PROOF), "at most 8192"),
    (proof(header={"typ": None}), "dpop+jwt"),
    (proof(header={"typ": "JWT"}), "dpop+jwt"),
    (proof(header={"typ": "at+jwt"}), "dpop+jwt"),
    (proof(header={"typ": ["dpop+jwt"]}), "dpop+jwt"),
    (proof(header={"alg": "none"}), "asymmetric"),
    (proof(header={"alg": "HS256"}), "asymmetric"),
    (proof(header={"alg": None}), "asymmetric"),
    (proof(header={"alg": 7}), "asymmetric"),
    (proof(header={"crit": ["b64"], "b64": False}), "extension"),
    (proof(header={"jwk": None}), "no public key"),
    (proof(header={"jwk": "x"}), "no public key"),
    (proof(header={"jwk": {}}), "no public key"),
    (proof(header={"jwk": {"kty": "oct", "k": "c2VjcmV0"}}), "no public key"),
    (proof(header={"jwk": ALICE.jwk | {"d": "c2VjcmV0"}}), "no public key"),
    (proof(header={"jwk": ALICE.jwk | {"use": "enc"}}), "no public key"),
    (proof(header={"jwk": ALICE.jwk | {"y": ALICE.jwk["x"]}}), "no public key"),
    (proof(header={"alg": "RS256"}), "no public key"),
    (proof(MALLORY), "another key"),
    (proof(header={"jwk": MALLORY.jwk}), "another key"),
    (proof(ALICE.signing_with(MALLORY.key)), "signature"),
    (proof()[:-4] + "AAAA", "signature"),
    (proof(htm=None), "method"),
    (proof(htm="GET"), "method"),
    (proof(htm="post"), "method"),
    (proof(htm=["POST"]), "method"),
    (proof(htu=None), "URL"),
    (proof(htu=7), "URL"),
    (proof(htu="https://evil.example/mcp"), "URL"),
    (proof(htu="http://inner.example/mcp"), "URL"),
    (proof(htu=URL + "/other"), "URL"),
    (proof(htu="/mcp"), "URL"),
    (proof(ath=None), "another token"),
    (proof(ath=""), "another token"),
    (ALICE.proof("eyJ.of.bob", now=NOW), "another token"),
    (proof(ath="\ud800"), "another token"),
    (proof(jti=None), "jti"),
    (proof(jti=""), "jti"),
    (proof(jti=7), "jti"),
    (proof(jti="x" * (MAX_JTI + 1)), "jti"),
    (proof(jti="a\x00b"), "jti"),
    (proof(iat=None), "when it was made"),
    (proof(iat=True), "when it was made"),
    (proof(iat=str(int(NOW))), "when it was made"),
    (proof(iat=-1), "when it was made"),
    (proof(iat=10**300), "when it was made"),
    (proof(now=NOW - LIFE - SKEW), "too old"),
    (proof(now=NOW + SKEW + 1), "in the future"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(WRONG)))  # proofs are others in each run
def test_a_wrong_proof_is_refused_and_says_why(number: int) -> None:
    text, words = WRONG[number]
    found = refusal(text)
    assert found.reason == "proof_invalid" and words in found.detail
    assert found.error == ("invalid_token" if words == "another key" else "invalid_dpop_proof")
    # Nothing of what was sent is in the words.
    for secret in (ALICE.jkt, MALLORY.jkt, TOKEN, "evil.example"):
        assert secret not in found.detail


def test_a_header_or_payload_that_two_readers_may_read_differently_is_refused() -> None:
    head, _, signature = proof().split(".")
    twice = base64.urlsafe_b64decode(head + "==")[:-1] + b',"typ":"dpop+jwt"}'
    assert "compact JWS" in refusal(f"{b64(twice)}.{b64(b'{}')}.{signature}").detail
    assert "compact JWS" in refusal(".".join([head, b64(b'{"htm":"POST","htm":"GET"}'), signature])).detail


def test_a_weak_rsa_key_is_no_key() -> None:
    weak = holder("RS256", bits=1024)
    assert "no public key" in refusal(proof(weak), key=weak.jkt).detail


def test_the_key_of_an_rsa_proof_is_not_taken_for_a_secret() -> None:
    """HS256 with the public key as its secret (RFC 8725 section 2.1)."""
    who = holder("RS256")
    claims = json.loads(base64.urlsafe_b64decode(proof(who).split(".")[1] + "=="))
    signed = f"{b64(dump({'typ': 'dpop+jwt', 'alg': 'HS256', 'jwk': who.jwk}))}.{b64(dump(claims))}"
    mac = WEAK["HS256"].sign(signed.encode(), json.dumps(who.jwk).encode())
    assert "asymmetric" in refusal(f"{signed}.{b64(mac)}", key=who.jkt).detail


def test_the_window_is_that_of_the_proof_and_of_the_clocks() -> None:
    for at in (-LIFE - SKEW + 1, 0, SKEW):
        assert check(proof(now=NOW + at), asked(), NOW)
    assert "too old" in refusal(proof(now=NOW - LIFE), skew=0).detail
    assert "future" in refusal(proof(now=NOW + 1), skew=0).detail
    assert check(proof(iat=NOW - 0.5), asked(skew=0), NOW)


def test_a_spelling_of_the_url_and_its_query_do_not_matter() -> None:
    assert check(proof(url="HTTPS://inner.example:443/%6dcp"), asked(url=URL + "?session=1"), NOW)


def test_a_backend_that_does_not_know_its_url_is_told_so() -> None:
    assert "the backend did not say" in refusal(proof(), url="/mcp").detail


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=5,
)  # fmt: skip
HEADER, CLAIMS = ("typ", "alg", "jwk", "crit", "kid", "nonce"), ("jti", "htm", "htu", "iat", "ath", "nonce", "exp")


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(HEADER), JSON, max_size=2),
    st.dictionaries(st.sampled_from([*ALICE.jwk, "d", "use", "key_ops", "alg"]), JSON, max_size=2),
    st.dictionaries(st.sampled_from(CLAIMS), JSON, max_size=2),
)
def test_whatever_stands_in_a_proof_it_is_refused_or_holds(
    header: dict[str, Any], jwk: dict[str, Any], claims: dict[str, Any]
) -> None:
    text = proof(header={"jwk": ALICE.jwk | jwk} | header, **claims)
    try:
        found = check(text, asked(nonces=("n1",)), NOW)
    except WrongProof:
        return
    assert found.name.startswith(f"{ALICE.jkt} ") and claims.get("nonce") == "n1"


class TestNonces:
    def test_a_good_one_is_enough(self) -> None:
        assert check(proof(nonce="n2"), asked(nonces=("n1", "n2")), NOW)

    @pytest.mark.parametrize("nonce", [None, "", "n3", 7, ["n1"]])
    def test_any_other_is_told_to_use_a_new_one(self, nonce: Any) -> None:
        found = refusal(proof(nonce=nonce), nonces=("n1", "n2"))
        assert (found.reason, found.error) == ("proof_invalid", "use_dpop_nonce")

    def test_only_who_did_all_else_right_is_told_to_try_again(self) -> None:
        assert refusal(proof(htm="GET"), nonces=("n1",)).error == "invalid_dpop_proof"
        assert refusal(proof(ALICE.signing_with(MALLORY.key)), nonces=("n1",)).error == "invalid_dpop_proof"

    def test_one_that_is_not_demanded_is_not_looked_at(self) -> None:
        assert check(proof(nonce="whatever"), asked(), NOW)


def test_a_key_that_says_another_use_of_itself_is_not_the_clients() -> None:
    assert "no public key" in refusal(proof(header={"jwk": ALICE.jwk | {"key_ops": ["sign"]}})).detail
