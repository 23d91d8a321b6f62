"""Where an issuer's claims are not the standard ones: staff say which claim says what, and a token that does not keep
to that is refused."""

from typing import Any

import pytest

from clients.claims import Identity, Refused, read_parsed_claims
from clients.jwks import ClaimRules
from clients.tokens import identify
from tests.clients.keys import AUDIENCE, ISSUER, NOW, policy, signing_key, usual_claims

WRONG_TEXTS: list[Any] = ["", "   ", 5, True, ["alice"], {"a": 1}, "a" * 256, "al\u202eice", "al\x00ice", "\ud800"]


def read(rules: ClaimRules, /, roles_claim: str | None = None, **claims: Any) -> Identity:
    """The usual claims with these (None: without that one), read by the rules."""
    issuer = policy(claims=rules, roles_claim=roles_claim)[ISSUER]
    changed = {name: value for name, value in (usual_claims() | claims).items() if value is not None}
    return read_parsed_claims(changed, issuer, frozenset({AUDIENCE}), NOW)


def refusal(rules: ClaimRules, /, **claims: Any) -> tuple[str, str]:
    with pytest.raises(Refused) as caught:
        read(rules, **claims)
    return caught.value.reason, caught.value.detail


# Who the user is

OID = ClaimRules(subject="oid")


def test_the_user_is_who_the_named_claim_says() -> None:
    assert read(OID, oid="690222be").sub == "690222be"
    assert read(OID, oid="690222be", sub=None).sub == "690222be", "sub is not needed then"
    assert read(ClaimRules(subject="user.id"), user={"id": "u1"}).sub == "u1"
    assert read(ClaimRules(subject="https://inner.example/id"), **{"https://inner.example/id": "u1"}).sub == "u1"
    assert read(ClaimRules(subject="user.id"), **{"user.id": "exact", "user": {"id": "path"}}).sub == "exact"
    assert read(ClaimRules(), oid="690222be").sub == "alice", "unless nobody named it"


def test_a_token_without_the_named_claim_speaks_of_nobody() -> None:
    """It must not fall back on `sub`, which may be chosen by another party."""
    assert refusal(OID) == ("token_invalid", "the subject claim is missing")
    assert refusal(ClaimRules(subject="user.id"), user={"name": "u1"})[0] == "token_invalid"
    assert refusal(ClaimRules(subject="user.id"), user="u1")[0] == "token_invalid"


@pytest.mark.parametrize("wrong", WRONG_TEXTS)
def test_the_named_claim_keeps_the_rules_of_sub_and_so_does_sub(wrong: Any) -> None:
    assert refusal(OID, oid=wrong)[0] == "token_invalid"
    assert refusal(OID, oid="690222be", sub=wrong)[0] == "token_invalid"


@pytest.mark.parametrize("said", [False, "false", 0, "", {}])
def test_what_anybody_may_have_typed_makes_nobody_another(said: Any) -> None:
    by_address, by_phone = ClaimRules(subject="email"), ClaimRules(subject="phone_number")
    own = ClaimRules(subject="https://inner.example/email", email="https://inner.example/email")
    wrong = ("token_invalid", "the subject claim is one that the issuer has not verified")
    victim = {"email": "victim@example.com", "https://inner.example/email": "victim@example.com"}
    assert refusal(by_address, **victim, email_verified=said) == wrong
    assert refusal(by_phone, phone_number="+12065550100", phone_number_verified=said) == wrong
    assert refusal(own, **victim, **{"https://inner.example/email_verified": said}) == wrong
    assert refusal(own, **victim, email_verified=said) == wrong
    assert refusal(ClaimRules(subject="u.mail"), u={"mail": "victim@example.com", "mail_verified": said}) == wrong
    for good in ({}, {"email_verified": True}, {"email_verified": "true"}):
        assert read(by_address, email="bob@example.com", **good).sub == "bob@example.com"
    assert read(OID, oid="o-1", email_verified=said).sub == "o-1", "by other claims it does not matter"


# E-mail

MAIL = ClaimRules(email="https://inner.example/email")


def mapped(value: Any, **claims: Any) -> dict[str, Any]:
    return {"https://inner.example/email": value} | claims


def test_the_address_is_what_the_named_claim_says_and_no_other() -> None:
    assert read(MAIL, **mapped("alice@example.com", email="mallory@example.com")).email == "alice@example.com"
    assert read(MAIL, email="mallory@example.com").email is None
    assert read(MAIL, **mapped("x")).email is None, "an odd text is left out, as ever"


def test_an_address_that_is_not_verified_is_left_out_whatever_its_name() -> None:
    for word in (False, "false", 0, None):
        claims = mapped("alice@example.com") | ({} if word is None else {"email_verified": word})
        assert read(MAIL, **claims).email == (None if word is not None else "alice@example.com")
    for word in (False, "no", 0):
        own = {"https://inner.example/email_verified": word}
        assert read(MAIL, **mapped("alice@example.com"), **own).email is None
    assert read(MAIL, **mapped("a@b.example"), **{"https://inner.example/email_verified": True}).email == "a@b.example"


@pytest.mark.parametrize("wrong", [5, ["alice@example.com"], {"a": 1}, True])
def test_a_named_address_that_is_no_text_is_a_mistake_that_is_seen(wrong: Any) -> None:
    assert refusal(MAIL, **mapped(wrong)) == ("token_invalid", "the e-mail claim is not a string")
    assert read(ClaimRules(), email=wrong).email is None, "which the standard one is not"


# Scopes


def test_named_scopes_replace_the_standard_ones() -> None:
    rules = ClaimRules(scopes=("https://inner.example/scopes", "access.can"))
    claims: dict[str, Any] = {"https://inner.example/scopes": "memory:read", "access": {"can": ["memory:write"]}}
    assert read(rules, **claims, scope="other", permissions=["more"]).scopes == ("memory:read", "memory:write")
    assert read(rules).scopes == (), "and are none where the token has none of them"


@pytest.mark.parametrize("wrong", [5, {"memory:read": True}, ["memory:read", 5], [["memory:read"]], True])
def test_named_scopes_of_a_wrong_type_refuse_the_token(wrong: Any) -> None:
    assert refusal(ClaimRules(scopes=("can",)), can=wrong)[0] == "token_invalid"
    assert read(ClaimRules(scopes=("can",)), scp={"not": "read"}).scopes == (), "one that is not named is not read"


def test_a_role_is_no_scope_though_it_is_beside_them() -> None:
    found = read(ClaimRules(scopes=("can",)), "roles", can="memory:read", roles=["memory:write"])
    assert (found.scopes, found.roles) == (("memory:read",), ("memory:write",))


# The client


def test_the_client_is_the_first_of_the_named_claims_that_the_token_has() -> None:
    rules = ClaimRules(client_id=("app.id", "aud"))
    assert read(rules, app={"id": "ios"}).client_id == "ios"
    assert read(rules).client_id == AUDIENCE
    assert read(ClaimRules(client_id=("app",))).client_id is None, "client_id is not asked where another is named"


@pytest.mark.parametrize("wrong", WRONG_TEXTS)
def test_a_named_client_of_a_wrong_form_refuses_the_token(wrong: Any) -> None:
    assert refusal(ClaimRules(client_id=("app", "azp")), app=wrong, azp="ios")[0] == "token_invalid"


# The kind of token stays what it is, whatever is mapped

EVERYTHING = ClaimRules(subject="sub", email="email", scopes=("groups",), client_id=("aud",))
ID_TOKENS: list[dict[str, Any]] = [
    {"nonce": "n", "groups": ["memory:read"]},
    {"at_hash": "h", "groups": ["memory:read"]},
    {"c_hash": "h", "scope": "memory:read"},
    {"typ": "ID", "groups": ["memory:read"]},
    {"token_use": "id", "groups": ["memory:read"]},
    {"events": {}, "groups": ["memory:read"]},
]


@pytest.mark.parametrize("claims", ID_TOKENS, ids=lambda claims: str(next(iter(claims))))
def test_no_mapping_lets_an_id_token_pass(claims: dict[str, Any]) -> None:
    key = signing_key("ES256")
    issuers = policy(key.jwk(), claims=EVERYTHING)
    bare = {"client_id": None, "scope": None}
    signed = key.token(None, {"typ": "JWT"}, **bare | claims)
    with pytest.raises(Refused) as caught:
        identify(signed, issuers, frozenset({AUDIENCE}), NOW)
    assert caught.value.reason == "token_invalid"
    known = bare | {"groups": ["memory:read"]}
    passing = identify(key.token(None, {"typ": "JWT"}, **known), issuers, frozenset({AUDIENCE}), NOW)
    assert (passing.scopes, passing.client_id) == (("memory:read",), AUDIENCE)
