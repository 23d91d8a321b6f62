"""Whatever comes in, identify() answers with an Identity or a Refused; a changed token is never accepted."""

import base64
import dataclasses
import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.claims import Reason, Refused
from clients.tokens import Identity, identify
from tests.clients.keys import AUDIENCE, NOW, b64, policy, signing_key, usual_claims

KEYS = [signing_key("RS256", "r"), signing_key("ES256", "e"), signing_key("EdDSA", "d")]
ISSUERS = policy(*(key.jwk() for key in KEYS), tenant_claim="org_id", roles_claim="a.b")
AUDIENCES = frozenset({AUDIENCE})
TOKENS = [key.token(org_id="acme", act={"sub": "agent"}) for key in KEYS]
PATIENT = settings(deadline=None)  # a busy machine is no failure
THOROUGH = settings(PATIENT, max_examples=300)
REASONS = frozenset(get_args(Reason))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
CLAIMS = [
    *usual_claims(),
    "nbf",
    "azp",
    "scp",
    "permissions",
    "org_id",
    "a",
    "a.b",
    "email",
    "email_verified",
    "act",
    "cnf",
    "nonce",
    "typ",
    "events",
    "at_hash",
]
HEADER = ["alg", "typ", "kid", "crit", "jwk", "jku", "b64", "enc", "x5c"]


def outcome(token: Any) -> Identity | Refused:
    try:
        return identify(token, ISSUERS, AUDIENCES, NOW)
    except Refused as refused:
        assert refused.reason in REASONS
        assert refused.detail or refused.reason == "token_missing"  # whose sentence says it all
        return refused


def storable(identity: Identity) -> bool:
    """Everything in it is UTF-8 text or a number, free of NUL: it can be hashed, stored and sent."""
    text = json.dumps(dataclasses.asdict(identity), ensure_ascii=False, allow_nan=False)
    return b"\\u0000" not in text.encode()


@PATIENT
@given(st.text() | st.binary() | st.none() | st.integers())
def test_any_input_is_refused(token: Any) -> None:
    assert isinstance(outcome(token), Refused)


@PATIENT
@given(st.binary(max_size=40), st.binary(max_size=200), st.binary(max_size=80))
def test_any_three_parts_are_refused(header: bytes, payload: bytes, signature: bytes) -> None:
    assert isinstance(outcome(f"{b64(header)}.{b64(payload)}.{b64(signature)}"), Refused)


@PATIENT
@given(st.sampled_from(TOKENS), st.integers(0, 2000), st.characters(max_codepoint=0x17F))
def test_a_token_with_any_character_changed_is_refused(token: str, at: int, character: str) -> None:
    at %= len(token)
    changed = token[:at] + character + token[at + 1 :]
    assert isinstance(outcome(changed), Refused) is (changed != token)


@PATIENT
@given(st.sampled_from(TOKENS), st.integers(0, 2000), st.integers(0, 200), st.text("AQgw._-=\n", max_size=5))
def test_a_token_cut_or_stretched_anywhere_is_refused(token: str, at: int, length: int, put: str) -> None:
    at %= len(token)
    changed = token[:at] + put + token[at + length :]
    assert isinstance(outcome(changed), Refused) is (changed != token)


@PATIENT
@given(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))
def test_parts_of_different_tokens_do_not_mix(header: int, payload: int, signature: int) -> None:
    parts = [TOKENS[which].split(".")[place] for place, which in enumerate((header, payload, signature))]
    assert isinstance(outcome(".".join(parts)), Identity) is (
        header == payload == signature or ".".join(parts) in TOKENS
    )


@THOROUGH
@given(st.dictionaries(st.sampled_from(CLAIMS) | st.text(max_size=8), JSON, max_size=5))
def test_any_claims_rightly_signed_are_read_or_refused(changes: dict[str, Any]) -> None:
    payload = json.dumps(usual_claims() | changes).encode()
    result = outcome(KEYS[1].token(payload))
    assert isinstance(result, Refused) or storable(result)


@THOROUGH
@given(st.dictionaries(st.sampled_from(HEADER) | st.text(max_size=8), JSON, max_size=4))
def test_any_header_rightly_signed_is_read_or_refused(changes: dict[str, Any]) -> None:
    header = json.dumps({"alg": "ES256", "kid": "e"} | changes).encode()
    result = outcome(KEYS[1].token(None, header))
    assert isinstance(result, Refused) or storable(result)


@PATIENT
@given(st.binary(max_size=120))
def test_any_bytes_as_payload_rightly_signed_are_refused(payload: bytes) -> None:
    assert isinstance(outcome(KEYS[1].token(payload)), Refused)


@pytest.mark.parametrize("token", TOKENS)
def test_each_bit_of_the_signature_counts(token: str) -> None:
    head, payload, signature = token.split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    for bit in range(0, len(raw) * 8, 7):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << (bit % 8)
        assert isinstance(outcome(f"{head}.{payload}.{b64(bytes(flipped))}"), Refused)
