"""Which tokens an issuer is asked about, and that no answer, whatever it is, is more than a refusal."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.claims import Identity
from clients.introspection_answers import PLAIN, SIGNED, BadAnswer, claims_of, identity_of
from clients.jwks import IntrospectionPolicy, IssuerPolicy
from clients.tokens import AskIssuer, Refused, identify
from tests.clients.keys import AUDIENCE, ISSUER, NOW, b64, policy, signing_key

KEY = signing_key("ES256", "k1")
HOW = IntrospectionPolicy(f"{ISSUER}introspect", "client_secret_basic", "muniment", b"", "introspection:7", False, 60)
SIGNS = IntrospectionPolicy(f"{ISSUER}introspect", "client_secret_basic", "muniment", b"", "introspection:7", True, 60)
ASKED, WITHOUT_KEYS = policy(KEY.jwk(), introspection=HOW), policy(introspection=HOW, fetched=False)
SECOND = policy(issuer="https://second.example/", introspection=HOW, id=8)
PLAINLY = policy(KEY.jwk(), issuer="https://third.example/", id=9)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = ("iss", "sub", "aud", "exp", "nbf", "iat", "scope", "client_id", "cnf", "act", "token_type", "typ", "email")


def asked(token: str, issuers: dict[str, IssuerPolicy] = ASKED) -> str | None:
    """The issuer to ask about a token, None where nobody is asked."""
    try:
        identify(token, issuers, frozenset({AUDIENCE}), NOW)
    except AskIssuer as ask:
        return ask.issuer.issuer
    except Refused:
        pass
    return None


@pytest.mark.parametrize("token", ["x", "abc.def", "v4.public.eyJzdWIi", "1/a+b~c_d-e", "a==", "x" * 16_384])
def test_what_may_be_an_opaque_token_is_asked_about(token: str) -> None:
    assert asked(token) == ISSUER and asked(token, ASKED | PLAINLY) == ISSUER
    assert asked(token, ASKED | SECOND) is asked(token, PLAINLY) is asked(token, {}) is None


@pytest.mark.parametrize(
    "token",
    [
        "", "=", "a=b", "a b", "a\n", "ü", "\ud800", "x" * (16 * 1024 + 1),
        f"{b64(b'{}')}", f"{b64(b'{}')}.x", f"x.{b64(b'{}')}", f"x.x.x.x.{b64(b'{}')}", f"{b64(b'{}')}==.x.x",
        KEY.token() + "=", KEY.token()[5:], KEY.token() + ".x",
        KEY.token(header=b'{"alg": "ES256", "alg": "ES256"}'),
    ],
    ids=lambda token: repr(token[:12]),
)  # fmt: skip
def test_what_is_none_or_may_be_the_jwt_of_another_is_shown_to_nobody(token: str) -> None:
    assert asked(token) is None


def test_a_jwt_is_asked_about_where_its_own_issuer_has_no_keys() -> None:
    assert asked(KEY.token(), WITHOUT_KEYS) == ISSUER
    assert asked(KEY.token(), WITHOUT_KEYS | SECOND) == ISSUER  # it names whom to ask
    assert asked(KEY.token(iss="https://third.example/"), WITHOUT_KEYS | PLAINLY) is None
    assert asked(KEY.token(), ASKED) is None
    for other in ({"at_hash": "x"}, {"events": {}}, {"typ": "Refresh"}):
        assert asked(KEY.token(**other), WITHOUT_KEYS) is None


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60) | st.from_regex(r"\A[A-Za-z0-9._~+/-]{1,60}={0,2}\Z"))
def test_any_text_is_refused_or_asked_about(token: str) -> None:
    with pytest.raises(Refused):
        identify(token, ASKED, frozenset({AUDIENCE}), NOW)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()), st.sampled_from([PLAIN, SIGNED]))
def test_any_bytes_are_an_answer_or_none(body: bytes, media_type: str) -> None:
    how = SIGNS if media_type == SIGNED else HOW
    try:
        found = claims_of(media_type, body, policy(KEY.jwk(), introspection=how)[ISSUER], how, NOW)
    except BadAnswer as bad:
        assert len(str(bad)) < 250
    else:
        assert media_type == PLAIN and json.loads(body)["active"] is (found is not None)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), JSON))
def test_any_claims_are_an_identity_or_a_refusal(claims: dict[str, Any]) -> None:
    usual = {"sub": "alice", "aud": AUDIENCE}
    try:
        found = identity_of(usual | claims, ASKED[ISSUER], frozenset({AUDIENCE}), NOW, NOW)
    except Refused:
        return
    assert isinstance(found, Identity) and found.good_until is not None and found.good_until <= NOW + 60
