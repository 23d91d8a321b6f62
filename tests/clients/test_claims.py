"""Rows 5-8: what the claims of a verified token must be, and what is read from them."""

import json
from typing import Any

import pytest

from clients.claims import Identity, Refused, read_claims
from clients.jwks import IssuerPolicy
from tests.clients.keys import AUDIENCE, ISSUER, NOW, policy, usual_claims

ABSENT = object()


def issuer(**changes: Any) -> IssuerPolicy:
    return policy(**changes)[ISSUER]


def payload(changes: dict[str, Any]) -> bytes:
    claims = usual_claims() | changes
    return json.dumps({name: value for name, value in claims.items() if value is not ABSENT}).encode()


def read(audiences: frozenset[str] | None = None, policy: IssuerPolicy | None = None, **changes: Any) -> Identity:
    accepted = frozenset({AUDIENCE}) if audiences is None else audiences
    return read_claims(payload(changes), policy or issuer(), accepted, NOW)


def refusal(audiences: frozenset[str] | None = None, policy: IssuerPolicy | None = None, **changes: Any) -> str:
    with pytest.raises(Refused) as caught:
        read(audiences, policy, **changes)
    return caught.value.reason


def test_the_payload_is_an_object_without_duplicates() -> None:
    for bad in (b"null", b"[]", b"{", b'{"iss":1,"iss":1}', b"\xff"):
        with pytest.raises(Refused, match="token_malformed"):
            read_claims(bad, issuer(), frozenset({AUDIENCE}), NOW)


def test_the_issuer_is_the_one_whose_key_verified_the_token() -> None:
    assert refusal(iss="https://other.example/") == "issuer_unknown"
    assert refusal(iss=ABSENT) == "issuer_unknown"


# Row 5


@pytest.mark.parametrize("aud", [AUDIENCE, [AUDIENCE], ["https://other.example", AUDIENCE], [AUDIENCE, ""]])
def test_an_audience_is_a_string_or_a_member_of_an_array(aud: Any) -> None:
    expected = (aud,) if isinstance(aud, str) else tuple(aud)
    assert read(aud=aud).audience == expected


@pytest.mark.parametrize(
    "aud",
    [
        ABSENT,
        None,
        "",
        [],
        [""],
        "https://other.example",
        ["https://other.example"],
        5,
        True,
        {AUDIENCE: 1},
        [AUDIENCE, 5],
        [[AUDIENCE]],
        [None],
        AUDIENCE + "/",
        AUDIENCE.upper(),
        AUDIENCE + " ",
        f"{AUDIENCE} other",
        AUDIENCE[:-1],
    ],
)
def test_any_other_audience_is_a_mismatch(aud: Any) -> None:
    assert refusal(aud=aud) == "audience_mismatch"


@pytest.mark.parametrize("aud", ["", [""], [], ["", ""]])
def test_an_empty_audience_matches_nothing_even_where_one_is_configured(aud: Any) -> None:
    assert refusal(frozenset({""}), aud=aud) == "audience_mismatch"
    assert refusal(frozenset({"", AUDIENCE}), aud=aud) == "audience_mismatch"
    assert read(frozenset({"", AUDIENCE})).audience == (AUDIENCE,)


def test_a_backend_without_audiences_accepts_no_token() -> None:
    assert refusal(frozenset()) == "audience_mismatch"


def test_audiences_beside_ours_are_bounded() -> None:
    assert len(read(aud=[AUDIENCE, *(f"https://a{n}.example" for n in range(99))]).audience) == 100
    assert refusal(aud=[AUDIENCE, *(f"https://a{n}.example" for n in range(100))]) == "token_invalid"
    assert refusal(aud=[AUDIENCE, "a\0b"]) == "token_invalid"


# Row 6


@pytest.mark.parametrize(
    "exp",
    [ABSENT, None, "1760000300", "", [1760000300], {}, True, False, -1, -1e300, 1e300, 10**400, 253402300800],
)
def test_an_expiry_that_is_no_sound_number_is_refused(exp: Any) -> None:
    assert refusal(exp=exp) == "token_invalid"


@pytest.mark.parametrize("text", [b"1e999", b"-1e999", b"1e308"])
def test_an_expiry_beyond_any_number_is_refused(text: bytes) -> None:
    body = payload({"exp": ABSENT})[:-1] + b', "exp": ' + text + b"}"
    with pytest.raises(Refused, match="token_invalid"):
        read_claims(body, issuer(), frozenset({AUDIENCE}), NOW)


@pytest.mark.parametrize(("exp", "seconds"), [(NOW + 10.75, 10), (int(NOW) + 10, 10), (NOW + 10.0, 10)])
def test_an_expiry_may_have_a_fraction(exp: float, seconds: int) -> None:
    expires = read(exp=exp).expires_at
    assert expires == int(NOW) + seconds
    assert type(expires) is int


def test_a_token_expires_at_exp_plus_leeway() -> None:
    assert read(exp=NOW - 29.9).expires_at == int(NOW) - 30
    assert refusal(exp=NOW - 30) == "token_expired"
    assert refusal(exp=0) == "token_expired"
    assert refusal(policy=issuer(leeway=0), exp=NOW) == "token_expired"
    assert read(policy=issuer(leeway=0), exp=NOW + 0.5)


@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_a_token_from_the_future_is_refused_beyond_the_leeway(claim: str) -> None:
    assert read(None, None, **{claim: NOW + 30})
    assert refusal(None, None, **{claim: NOW + 30.5}) == "token_invalid"
    assert refusal(None, issuer(leeway=0), **{claim: NOW + 1}) == "token_invalid"


@pytest.mark.parametrize("claim", ["nbf", "iat"])
@pytest.mark.parametrize("value", ["1760000000", None, True, [], {}, -1, 1e300, 10**400])
def test_nbf_and_iat_are_numbers_where_given(claim: str, value: Any) -> None:
    assert refusal(None, None, **{claim: value}) == "token_invalid"
    assert read(None, None, **{claim: ABSENT})


def test_a_lifetime_beyond_the_maximum_is_refused() -> None:
    hour = issuer(max_lifetime=3600)
    assert read(policy=hour, exp=NOW + 3600)
    assert refusal(policy=hour, exp=NOW + 3601) == "token_invalid"
    assert refusal(policy=hour, iat=NOW - 3000, exp=NOW + 601) == "token_invalid"
    assert read(policy=hour, iat=NOW - 3000, exp=NOW + 600)


def test_without_iat_the_lifetime_counts_from_now() -> None:
    hour = issuer(max_lifetime=3600)
    identity = read(policy=hour, iat=ABSENT, exp=NOW + 3600)
    assert identity.issued_at is None
    assert refusal(policy=hour, iat=ABSENT, exp=NOW + 3601) == "token_invalid"


# Row 7


@pytest.mark.parametrize("sub", ["alice", "auth0|65f0", "a", "x" * 255, "ali ce", "Zoë", "愛", "00u1$%'\"\\<>;--"])
def test_a_subject_is_taken_as_it_is(sub: str) -> None:
    assert read(sub=sub).sub == sub


@pytest.mark.parametrize(
    "sub",
    [
        ABSENT,
        None,
        "",
        " ",
        "   ",
        "\t",
        "\u3000",
        5,
        1.5,
        True,
        ["alice"],
        {"sub": "alice"},
        "x" * 256,
        "a\0b",
        "alice\n",
        "a\tb",
        "\x7f",
        "\x85",
        "\ud800",
        "a\udfffb",
        "a\u200bb",
        "\u202eecila",
        "\ufeffalice",
        "a\u2028b",
    ],
)
def test_any_other_subject_is_refused(sub: Any) -> None:
    assert refusal(sub=sub) == "token_invalid"


# Row 8


@pytest.mark.parametrize("cnf", [{"jkt": "x"}, {"x5t#S256": "x"}, {}, None, "x", []])
def test_a_bound_token_is_refused_while_no_proof_can_be_checked(cnf: Any) -> None:
    assert refusal(cnf=cnf) == "proof_required"


def test_earlier_rows_give_the_reason_first() -> None:
    assert refusal(aud="x", exp=0, sub="", cnf={}) == "audience_mismatch"
    assert refusal(exp=0, sub="", cnf={}) == "token_expired"
    assert refusal(sub="", cnf={}) == "token_invalid"


# Scopes


@pytest.mark.parametrize(
    ("given", "scopes"),
    [
        ({"scope": "b a"}, ("a", "b")),
        ({"scope": ["b", "a"]}, ("a", "b")),
        ({"scp": "b a"}, ("a", "b")),
        ({"scp": ["b", "a", "b"]}, ("a", "b")),
        ({"permissions": ["a"]}, ("a",)),
        ({"permissions": "a b"}, ("a", "b")),
        ({"scope": "a", "scp": ["b"], "permissions": ["c"]}, ("a", "b", "c")),
        ({"scope": "  a   a b "}, ("a", "b")),
        ({"scope": ""}, ()),
        ({"scope": []}, ()),
        ({"scope": None}, ()),
        ({"scope": ABSENT}, ()),
        ({"roles": ["a"], "scope": ABSENT}, ()),
        ({"scope": "memory:read Memory:Read"}, ("Memory:Read", "memory:read")),
    ],
)
def test_scopes_come_from_scope_scp_and_permissions(given: dict[str, Any], scopes: tuple[str, ...]) -> None:
    assert read(None, None, **{"scope": ABSENT} | given).scopes == scopes


@pytest.mark.parametrize("mark", ["\t", "\n", "\r\n", "\v", "\f", "\u00a0", "\u2003", "\0", ",", ";", "+"])
def test_only_a_space_separates_scopes(mark: str) -> None:
    scopes = read(scope=f"memory:write{mark}memory:read other").scopes
    assert "memory:read" not in scopes
    assert "memory:write" not in scopes
    assert "other" in scopes


def test_a_member_of_a_scope_array_is_one_name() -> None:
    assert read(scope=["memory:read memory:write", "other"]).scopes == ("other",)


@pytest.mark.parametrize("name", ['"a"', "a\\b", "é", "\ud800", "a\0", "x" * 256])
def test_what_can_be_no_scope_is_left_out(name: str) -> None:
    assert read(scope=[name, "memory:read"]).scopes == ("memory:read",)


@pytest.mark.parametrize("claim", ["scope", "scp", "permissions"])
@pytest.mark.parametrize("value", [5, True, {"a": 1}, [5], ["a", None], [["a"]]])
def test_scopes_of_another_type_refuse_the_token(claim: str, value: Any) -> None:
    assert refusal(None, None, **{claim: value}) == "token_invalid"


def test_scopes_are_bounded() -> None:
    assert len(read(scope=[f"s{n}" for n in range(1000)]).scopes) == 1000
    assert refusal(scope=[f"s{n}" for n in range(1001)]) == "token_invalid"


# Client, tenant, roles, e-mail, actors


@pytest.mark.parametrize(
    ("given", "client_id"),
    [
        ({"client_id": "c", "azp": "a", "cid": "x"}, "c"),
        ({"azp": "a", "cid": "x", "appid": "y"}, "a"),
        ({"cid": "x"}, "x"),
        ({"appid": "y"}, "y"),
        ({"client_id": None, "azp": "a"}, "a"),
        ({}, None),
    ],
)
def test_the_client_id_is_client_id_else_azp_else_the_vendors_own(given: dict[str, Any], client_id: str | None) -> None:
    assert read(None, None, **{"client_id": ABSENT} | given).client_id == client_id


@pytest.mark.parametrize("claim", ["client_id", "jti"])
@pytest.mark.parametrize("value", ["", " ", 5, True, ["c"], {}, "a\0b", "\ud800", "x" * 256])
def test_an_odd_client_id_or_jti_refuses_the_token(claim: str, value: Any) -> None:
    assert refusal(None, None, **{claim: value}) == "token_invalid"


def test_tenant_and_roles_are_read_only_where_staff_named_the_claims() -> None:
    claims: dict[str, Any] = {"org_id": "acme", "roles": ["editor"]}
    assert (read(**claims).tenant, read(**claims).roles) == (None, ())
    named = read(policy=issuer(tenant_claim="org_id", roles_claim="roles"), **claims)
    assert (named.tenant, named.roles) == ("acme", ("editor",))


@pytest.mark.parametrize(
    ("claim", "claims", "roles"),
    [
        ("roles", {"roles": ["b", "a", "b"]}, ("a", "b")),
        ("roles", {"roles": "team lead"}, ("team lead",)),
        ("roles", {"roles": None}, ()),
        ("roles", {}, ()),
        ("realm_access.roles", {"realm_access": {"roles": ["user"]}}, ("user",)),
        ("realm_access.roles", {"realm_access": ["user"]}, ()),
        ("https://example.com/roles", {"https://example.com/roles": ["r"]}, ("r",)),
        ("a.b", {"a.b": ["exact"], "a": {"b": ["path"]}}, ("exact",)),
    ],
)
def test_roles_are_one_or_an_array_by_name_or_path(claim: str, claims: dict[str, Any], roles: tuple[str, ...]) -> None:
    assert read(policy=issuer(roles_claim=claim), **claims).roles == roles


@pytest.mark.parametrize("value", [5, True, {}, [5], ["a", None], "", ["a\nb"], ["\ud800"], [["a"]]])
def test_an_odd_roles_claim_refuses_the_token_rather_than_escaping_a_block(value: Any) -> None:
    assert refusal(policy=issuer(roles_claim="roles"), roles=value) == "token_invalid"
    assert read(roles=value)


@pytest.mark.parametrize("value", [5, True, {}, ["acme"], "", " ", "a\0", "\ud800", "x" * 256])
def test_an_odd_tenant_claim_refuses_the_token(value: Any) -> None:
    assert refusal(policy=issuer(tenant_claim="org_id"), org_id=value) == "token_invalid"


@pytest.mark.parametrize("verified", [ABSENT, True, "true"])
def test_an_email_is_read(verified: Any) -> None:
    assert read(email="alice@example.com", email_verified=verified).email == "alice@example.com"


@pytest.mark.parametrize("verified", [False, "false", None, 0, [], "yes"])
def test_an_email_that_is_not_verified_is_left_out(verified: Any) -> None:
    assert read(email="alice@example.com", email_verified=verified).email is None


@pytest.mark.parametrize("email", [ABSENT, None, 5, "", ["a@b.c"], "a\nb@c.d", "\ud800@b.c", "x" * 321])
def test_an_odd_email_is_left_out(email: Any) -> None:
    assert read(email=email).email is None


def chain(*names: str) -> dict[str, Any]:
    act: dict[str, Any] = {}
    for name in reversed(names):
        act = {"sub": name, **({"act": act} if act else {})}
    return act


def test_actors_are_read_from_the_current_one_inwards() -> None:
    assert read(act=chain("reader", "planner")).actors == ("reader", "planner")
    assert read(act={"client_id": "agent"}).actors == ("agent",)
    assert read().actors == ()


def test_eight_actors_are_read_and_nine_refused() -> None:
    names = [f"a{n}" for n in range(9)]
    assert read(act=chain(*names[:8])).actors == tuple(names[:8])
    assert refusal(act=chain(*names)) == "token_invalid"


@pytest.mark.parametrize(
    "act",
    [
        "agent",
        5,
        [],
        [{"sub": "a"}],
        {},
        {"iss": "x"},
        {"sub": 5},
        {"sub": "a\0"},
        {"sub": "a", "act": "b"},
        {"sub": "a", "act": {}},
    ],
)
def test_an_odd_actor_chain_is_refused(act: Any) -> None:
    assert refusal(act=act) == "token_invalid"
