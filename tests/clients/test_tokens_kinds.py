"""Row 4: an access token, and nothing else that the same issuer signs with the same keys."""

from typing import Any

import pytest

from clients.tokens import Refused, identify
from tests.clients.keys import AUDIENCE, ISSUER, NOW, policy, signing_key

KEY = signing_key("RS256")
ISSUERS = policy(KEY.jwk())
LIFE = {"iss": ISSUER, "sub": "alice", "aud": AUDIENCE, "iat": int(NOW), "exp": int(NOW) + 300}


def accepts(header: dict[str, Any], claims: dict[str, Any]) -> bool:
    return identify(KEY.token(LIFE | claims, header), ISSUERS, frozenset({AUDIENCE}), NOW).sub == "alice"


def refusal(header: dict[str, Any], claims: dict[str, Any]) -> str:
    with pytest.raises(Refused) as caught:
        identify(KEY.token(LIFE | claims, header), ISSUERS, frozenset({AUDIENCE}), NOW)
    return caught.value.reason


@pytest.mark.parametrize("typ", [None, "JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "Application/AT+JWT"])
def test_the_types_of_access_tokens_are_accepted_in_any_case(typ: str | None) -> None:
    assert accepts({"typ": typ}, {})


@pytest.mark.parametrize(
    "typ",
    [
        "logout+jwt",
        "id+jwt",
        "dpop+jwt",
        "secevent+jwt",
        "muniment-assertion+jwt",
        "rt+jwt",
        "JWE",
        "",
        " JWT",
        "JWT ",
        "at+jwt;x=1",
        ["at+jwt"],
        5,
        True,
        "JOSE",
        "\u0130d",
    ],
)
def test_every_other_type_is_refused(typ: object) -> None:
    assert refusal({"typ": typ}, {"client_id": "c", "scope": "memory:read"}) == "token_invalid"


# Shapes of real access tokens, as their issuers document and send them (values replaced).
ACCESS_TOKENS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "auth0": (
        {"typ": "JWT"},
        {
            "azp": "claude-app",
            "scope": "openid memory:read",
            "permissions": ["memory:read"],
            "aud": [AUDIENCE, "https://tenant.auth0.example/userinfo"],
            "gty": "password",
        },
    ),
    "auth0 rfc 9068": ({"typ": "at+jwt"}, {"client_id": "claude-app", "scope": "memory:read", "jti": "j"}),
    "okta": (
        {"typ": None},
        {
            "ver": 1,
            "jti": "AT.x",
            "cid": "claude-app",
            "uid": "00u1",
            "scp": ["memory:read"],
            "auth_time": int(NOW) - 60,
        },
    ),
    "entra v1": (
        {"typ": "JWT", "x5t": "x"},
        {
            "appid": "claude-app",
            "appidacr": "1",
            "scp": "memory.read",
            "tid": "t",
            "oid": "o",
            "uti": "u",
            "ver": "1.0",
            "nbf": int(NOW),
        },
    ),
    "entra v2": (
        {"typ": "JWT"},
        {
            "azp": "claude-app",
            "azpacr": "1",
            "scp": "memory.read",
            "tid": "t",
            "ver": "2.0",
            "aio": "a",
            "rh": "r",
            "nbf": int(NOW),
        },
    ),
    "entra app-only": ({"typ": "JWT"}, {"azp": "claude-app", "roles": ["Memory.Read.All"], "idtyp": "app"}),
    "keycloak": (
        {"typ": "JWT"},
        {
            "typ": "Bearer",
            "azp": "claude-app",
            "scope": "openid email",
            "sid": "s",
            "acr": "1",
            "realm_access": {"roles": ["user"]},
            "session_state": "s",
        },
    ),
    "keycloak before 25": (
        {"typ": "JWT"},
        {"typ": "Bearer", "azp": "claude-app", "nonce": "n", "scope": "openid"},
    ),
    "keycloak at+jwt with nonce": ({"typ": "at+jwt"}, {"typ": "Bearer", "azp": "claude-app", "nonce": "n"}),
}

OTHER_TOKENS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "auth0 id": ({"typ": "JWT"}, {"nonce": "n", "sid": "s", "name": "Alice"}),
    "okta id": ({"typ": None}, {"ver": 1, "jti": "ID.x", "amr": ["pwd"], "idp": "00o1", "at_hash": "h"}),
    "entra id": ({"typ": "JWT"}, {"nonce": "n", "rh": "r", "tid": "t", "ver": "2.0"}),
    "keycloak id": ({"typ": "JWT"}, {"typ": "ID", "azp": "claude-app", "at_hash": "h", "sid": "s"}),
    "keycloak id without hash": ({"typ": "JWT"}, {"typ": "ID", "azp": "claude-app", "nonce": "n"}),
    "keycloak refresh": ({"typ": "JWT"}, {"typ": "Refresh", "azp": "claude-app", "scope": "openid"}),
    "keycloak offline": ({"typ": "JWT"}, {"typ": "Offline", "azp": "claude-app", "scope": "openid"}),
    "hybrid flow id": ({"typ": "JWT"}, {"c_hash": "h", "nonce": "n", "azp": "claude-app"}),
    "fapi id": ({"typ": "JWT"}, {"s_hash": "h", "scope": "memory:read"}),
    "id dressed as access": ({"typ": "at+jwt"}, {"at_hash": "h", "client_id": "c", "scope": "memory:read"}),
    "null hash": ({"typ": "JWT"}, {"at_hash": "", "scope": "memory:read"}),
    "logout": (
        {"typ": "JWT"},
        {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}, "sid": "s"},
    ),
    "logout typed": (
        {"typ": "logout+jwt"},
        {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}},
    ),
    "security event": (
        {"typ": "JWT"},
        {"events": {"https://schemas.openid.net/secevent/x": {}}, "scope": "memory:read"},
    ),
}


@pytest.mark.parametrize("name", ACCESS_TOKENS)
def test_access_tokens_of_the_common_issuers_are_accepted(name: str) -> None:
    assert accepts(*ACCESS_TOKENS[name])


@pytest.mark.parametrize("name", OTHER_TOKENS)
def test_id_refresh_and_logout_tokens_are_refused(name: str) -> None:
    assert refusal(*OTHER_TOKENS[name]) == "token_invalid"


def test_an_id_token_without_any_mark_is_stopped_by_its_audience() -> None:
    assert refusal({"typ": "JWT"}, {"aud": "claude-app", "name": "Alice"}) == "audience_mismatch"
