"""What an issuer answers about a token is believed only where it can be, and read as a token is."""

import json
from typing import Any

import pytest

from clients.claims import Identity, Refused
from clients.introspection_answers import PLAIN, SIGNED, BadAnswer, UnknownSigner, claims_of, identity_of
from clients.jwks import IntrospectionPolicy, IssuerPolicy
from tests.clients.keys import AUDIENCE, ISSUER, NOW, SigningKey, dump, policy, signing_key

KEY, OTHER = signing_key("ES256", "k1"), signing_key("ES256", "k2", number=1)
FORGED = SigningKey("ES256", OTHER.private, "k1")
HOW = IntrospectionPolicy(f"{ISSUER}introspect", "client_secret_basic", "muniment", b"", "introspection:7", False, 60)
SIGNS = IntrospectionPolicy(f"{ISSUER}introspect", "client_secret_basic", "muniment", b"", "introspection:7", True, 60)
SAID = {"active": True, "sub": "alice", "aud": AUDIENCE, "scope": "memory:read", "client_id": "claude-app"}
LIFE = {"iat": int(NOW) - 5, "exp": int(NOW) + 300}
JKT = "A" * 43  # a thumbprint


def issuer(how: IntrospectionPolicy = HOW, **changes: Any) -> IssuerPolicy:
    return policy(KEY.jwk(), introspection=how, **changes)[ISSUER]


def plain(body: bytes, media_type: str = PLAIN) -> dict[str, Any] | None:
    return claims_of(media_type, body, issuer(), HOW, NOW)


def signed(key: SigningKey = KEY, typ: str | None = "token-introspection+jwt", **changes: Any) -> bytes:
    around = {"iss": ISSUER, "aud": "muniment", "iat": int(NOW), "token_introspection": SAID | LIFE} | changes
    return key.token(around, {"typ": typ}).encode()


def told(body: bytes, media_type: str = SIGNED) -> dict[str, Any] | None:
    return claims_of(media_type, body, issuer(SIGNS), SIGNS, NOW)


def read(how: IntrospectionPolicy = HOW, **changes: Any) -> Identity:
    claims = {name: value for name, value in (SAID | LIFE | changes).items() if value is not None}
    return identity_of(claims, issuer(how), frozenset({AUDIENCE}), NOW, NOW)


def test_an_active_token_has_its_claims_and_one_that_is_not_has_none() -> None:
    assert plain(dump(SAID)) == {name: value for name, value in SAID.items() if name != "active"}
    assert plain(b'{"active": false, "sub": "alice"}') is None


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"true", b"{", b"{}", b'{"active": "true"}', b'{"active": 1}', b'{"active": null}',
        b'{"active": false, "active": true}', b'{"Active": true}', b'\xff', b'{"active": true, "exp": NaN}',
        b'{"active": true, "a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    ],
    ids=lambda body: repr(body[:30]),
)  # fmt: skip
def test_an_answer_that_does_not_plainly_say_yes_or_no_says_nothing(body: bytes) -> None:
    with pytest.raises(BadAnswer):
        plain(body)


@pytest.mark.parametrize("media_type", ["", "text/html", SIGNED, "application/jwt"])
def test_an_answer_of_another_type_says_nothing(media_type: str) -> None:
    with pytest.raises(BadAnswer):
        plain(dump(SAID), media_type)


def test_a_signed_answer_is_believed() -> None:
    found = told(signed())
    assert found is not None and found["sub"] == "alice"
    assert told(signed(aud=["somebody", "muniment"])) is not None
    assert told(signed(typ="application/token-introspection+JWT")) is not None
    assert told(signed(token_introspection={"active": False})) is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (signed(FORGED), "signature does not hold"),
        (signed(typ="JWT"), "another type"),
        (signed(typ="at+jwt"), "another type"),
        (signed(typ=None), "another type"),
        (signed(iss="https://evil.example/"), "another issuer"),
        (signed(aud="somebody"), "somebody else"),
        (signed(aud=["somebody"]), "somebody else"),
        (signed(aud=None), "somebody else"),
        (signed(aud={"muniment": 1}), "somebody else"),
        (signed(iat=None), "when it was made"),
        (signed(iat=True), "when it was made"),
        (signed(iat="1760000000"), "when it was made"),
        (signed(iat=int(NOW) - 91), "not made now"),
        (signed(iat=int(NOW) + 31), "not made now"),
        (signed(token_introspection=None), "no token_introspection"),
        (signed(token_introspection=[SAID]), "no token_introspection"),
        (signed(token_introspection=json.dumps(SAID)), "no token_introspection"),
        (signed(token_introspection={}), "does not say"),
        (signed(token_introspection=None, active=True, sub="alice"), "no token_introspection"),  # not nested
        (KEY.token(SAID | LIFE | {"iss": ISSUER}).encode(), "another type"),  # an access token of the issuer's
        (dump(SAID), "cannot be believed"),
        (b"\xff.\xff.\xff", "no JWT"),
        (b"", "cannot be believed"),
    ],
)
def test_a_signed_answer_with_one_thing_wrong_is_not_believed(body: bytes, words: str) -> None:
    with pytest.raises(BadAnswer, match=words):
        told(body)


@pytest.mark.parametrize("algorithm", ["none", "HS256", "ES384"])
def test_a_signed_answer_by_another_algorithm_is_not_believed(algorithm: str) -> None:
    around = {"iss": ISSUER, "aud": "muniment", "iat": int(NOW), "token_introspection": SAID}
    body = KEY.token(around, {"typ": "token-introspection+jwt", "alg": algorithm}).encode()
    unsigned = body.rpartition(b".")[0] + b"."
    for one in (body, unsigned):
        with pytest.raises(BadAnswer):
            told(one)


def test_a_signed_answer_by_a_key_that_we_have_not_is_an_outage_and_says_that_fetching_may_help() -> None:
    with pytest.raises(UnknownSigner) as refused:
        told(signed(OTHER))
    assert refused.value.reason == "issuer_unavailable"


def test_an_unsigned_answer_where_signed_ones_are_taken_is_not_believed() -> None:
    for media_type in (PLAIN, "application/jwt", ""):
        with pytest.raises(BadAnswer, match="not signed"):
            told(dump(SAID), media_type)
    with pytest.raises(BadAnswer):
        plain(signed(), SIGNED)


def test_the_claims_are_read_as_those_of_a_token() -> None:
    identity = read(act={"sub": "planner"}, email="alice@example.com", jti="t-9")
    assert (identity.issuer, identity.sub, identity.client_id) == (ISSUER, "alice", "claude-app")
    assert (identity.scopes, identity.actors, identity.jti) == (("memory:read",), ("planner",), "t-9")
    assert (identity.issued_at, identity.expires_at) == (int(NOW) - 5, int(NOW) + 300)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"aud": None}, "audience_mismatch"), ({"aud": "https://other.example"}, "audience_mismatch"),
        ({"sub": None}, "token_invalid"), ({"sub": "a\nb"}, "token_invalid"), ({"sub": 7}, "token_invalid"),
        ({"iss": "https://evil.example/"}, "issuer_unknown"), ({"iss": 7}, "issuer_unknown"),
        ({"exp": int(NOW) - 31}, "token_expired"), ({"exp": "1"}, "token_invalid"), ({"exp": 1e300}, "token_invalid"),
        ({"nbf": int(NOW) + 60}, "token_invalid"), ({"exp": int(NOW) + 100_000}, "token_invalid"),
        ({"token_type": "refresh_token"}, "token_invalid"), ({"token_use": "refresh_token"}, "token_invalid"),
        ({"typ": "Refresh"}, "token_invalid"), ({"token_use": "id"}, "token_invalid"),
        ({"token_type": "urn:ietf:params:oauth:token-type:refresh_token"}, "token_invalid"),
        ({"token_type": ["Bearer"]}, "token_invalid"), ({"at_hash": "x"}, "token_invalid"),
        ({"events": {}}, "token_invalid"), ({"scope": 7}, "token_invalid"),
        ({"iat": int(NOW) - 86_401, "exp": None}, "token_invalid"),  # has lived for too long
        ({"token_type": "DPoP"}, "proof_required"),  # to which key is not said
        ({"token_type": "dpop", "cnf": {"x5t#S256": JKT}}, "proof_required"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_claims_refuses_the_token(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused) as refused:
        read(**changes)
    assert refused.value.reason == reason


def test_scopes_and_roles_are_as_many_as_a_token_can_carry() -> None:
    """More would not fit into a record, and what cannot be recorded is an outage to the backend."""
    fits = " ".join(f"scope-{number:03}" for number in range(500))
    assert len(read(scope=fits).scopes) == 500
    for scope in (
        " ".join(f"{number:03}{'x' * 200}" for number in range(300)),
        " ".join(f"s{n:09}" for n in range(999)),
    ):
        with pytest.raises(Refused) as refused:
            read(scope=scope)
        assert refused.value.reason == "token_invalid"


@pytest.mark.parametrize("kind", ["Bearer", "DPoP", "bearer", "access_token", "N_A"])
def test_the_types_of_access_tokens_pass(kind: str) -> None:
    assert read(token_type=kind, cnf={"jkt": JKT}).sub == "alice"


@pytest.mark.parametrize(
    ("exp", "bound", "good_for"), [(300, 60, 60), (20, 60, 20), (300, 0, 0), (None, 60, 60), (None, 0, 0)]
)
def test_an_answer_is_good_for_no_longer_than_exp_and_the_bound(exp: int | None, bound: int, good_for: int) -> None:
    how = IntrospectionPolicy("", "", "", b"", "", False, bound)
    identity = read(how, exp=None if exp is None else int(NOW) + exp)
    assert identity.good_until == NOW + good_for
    assert identity.expires_at == NOW + (max(1, bound) if exp is None else exp)
