"""The recipes for issuers and clients (docs/integrations): the policy of each document is applied as it stands there,
and tokens of the shape that it shows, signed by a real key, are decided; so are the nearest ones that must not pass."""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from clients import jwks, policyfile
from clients.models import Client, Grant, Issuer, KeySet, OAuthClientId
from clients.policyfile_apply import apply
from muniment import Muniment
from muniment.metadata import challenge
from tests.clients.keys import SigningKey, signing_key
from tests.world import ISSUER, World, build, token
from tools.credentials import issue
from tools.models import Backend

RECIPES = Path(__file__).resolve().parents[2] / "docs/integrations"
RESOURCE = "https://inner.example/mcp"
Changes = dict[str, Any]


def block(name: str, language: str) -> str:
    """The one fenced block of this language in a recipe."""
    [found] = re.findall(rf"^```{language}\n(.*?)^```", (RECIPES / f"{name}.md").read_text(), re.M | re.S)
    return str(found)


@dataclass
class Recipe:
    """An issuer as its recipe sets it up: the claims that it shows, and how a token with these is decided."""

    claims: dict[str, Any]
    key: SigningKey
    world: World

    def verify(self, typ: str | None = "JWT", **changes: Any) -> dict[str, Any]:
        """How a token is decided that has the claims of the recipe, at this time; a change to None leaves one out."""
        now, shown = int(time.time()), self.claims
        life = shown["exp"] - shown["iat"]
        times = {"iat": now - 5, "exp": now - 5 + life} | ({"nbf": now - 5} if "nbf" in shown else {})
        claims = {name: value for name, value in (shown | times | changes).items() if value is not None}
        signed = self.key.token(claims, {"alg": self.key.algorithm, "kid": self.key.kid, "typ": typ})
        return self.world.verify(token=signed)


def recipe(name: str) -> Recipe:
    """Apply the policy of a recipe; its issuer has a real key."""
    apply(policyfile.parse(block(name, "yaml")), f"{name}.md")
    key = signing_key("RS256")
    issuer = Issuer.objects.get()
    KeySet.objects.create(issuer=issuer, jwks=jwks.normalise({"keys": [key.jwk()]}), fetched_at=timezone.now())
    backend = Backend.objects.get()
    world = World(issue(backend), backend, Client.objects.get(), Grant.objects.get())
    return Recipe(json.loads(block(name, "json")), key, world)


def refused(good: Recipe, cases: list[tuple[str, Changes]]) -> None:
    for reason, changes in cases:
        answer = good.verify(**changes)
        assert (answer["decision"], answer["reason"]) == ("deny", reason), changes


@pytest.fixture
def nothing(db: None) -> None:
    """An empty database."""


def test_auth0(nothing: None) -> None:
    good = recipe("auth0")
    answer = good.verify()
    assert answer["reason"] == "granted" and answer["client"]["slug"] == "claude"
    assert answer["subject"] | {"uid": ""} == {
        "uid": "", "issuer": good.claims["iss"], "sub": "auth0|6574a1", "email": None, "tenant": "org_acme",
        "roles": ["clinician"],
    }  # fmt: skip
    rfc9068 = {"azp": None, "client_id": good.claims["azp"], "jti": "x1"}
    assert good.verify(typ="at+jwt", **rfc9068)["reason"] == "granted", "the RFC 9068 profile"
    assert good.verify(scope="openid", permissions=["memory:read"])["reason"] == "granted", "as the recipe warns"
    refused(
        good,
        [
            ("issuer_unknown", {"iss": good.claims["iss"].rstrip("/")}),
            ("audience_mismatch", {"aud": ["https://inner.eu.auth0.com/userinfo"]}),
            ("audience_mismatch", {"aud": RESOURCE + "/"}),
            ("token_invalid", {"exp": int(time.time()) + 30 * 86400}),
            ("client_unknown", {"azp": "another"}),
            ("insufficient_scope", {"scope": "openid"}),
            ("insufficient_scope", {"scope": "openid", "https://inner.example/roles": ["memory:read"]}),
        ],
    )
    opaque = good.world.verify(token="a" * 32)
    encrypted = good.world.verify(token="eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..aaaa.bbbb.cccc")
    assert opaque["reason"] == encrypted["reason"] == "token_malformed"


def test_okta(nothing: None) -> None:
    good = recipe("okta")
    answer = good.verify()
    assert answer["reason"] == "granted" and answer["subject"]["roles"] == ["Clinicians", "Everyone"]
    assert good.verify(typ=None)["reason"] == "granted", "without a typ in the header"
    refused(
        good,
        [
            ("issuer_unknown", {"iss": "https://inner.okta.com"}),
            ("issuer_unknown", {"iss": "https://inner.okta.com/oauth2/default"}),
            ("audience_mismatch", {"aud": "api://default"}),
            ("insufficient_scope", {"scp": ["openid"]}),
            ("insufficient_scope", {"scp": ["openid memory:read"]}),
            ("not_granted", {"groups": ["Everyone"]}),
            ("client_unknown", {"cid": "0oa9other"}),
            ("client_unknown", {"cid": None}),
        ],
    )
    other = good.verify(sub="alice@example.com")
    assert other["subject"]["uid"] != answer["subject"]["uid"], "who changes the login would be another user"


def test_entra(nothing: None) -> None:
    good = recipe("entra")
    answer = good.verify()
    assert answer["reason"] == "granted"
    assert (answer["subject"]["tenant"], answer["subject"]["roles"]) == (good.claims["tid"], ["Clinician"])
    assert answer["subject"]["email"] is None, "preferred_username is no address that anybody has verified"
    short = good.verify(scp="other.read")
    assert short["reason"] == "insufficient_scope"
    assert 'scope="https://inner.example/mcp/memory.read"' in short["www_authenticate"], "the long name"
    version_1 = {"azp": None, "appid": good.claims["azp"], "ver": "1.0", "aud": RESOURCE}
    tenant = good.claims["tid"]
    refused(
        good,
        [
            ("issuer_unknown", version_1 | {"iss": f"https://sts.windows.net/{tenant}/"}),
            ("issuer_unknown", {"iss": "https://login.microsoftonline.com/common/v2.0"}),
            ("issuer_unknown", {"iss": good.claims["iss"].replace(tenant, tenant[::-1])}),
            ("audience_mismatch", {"aud": "00000003-0000-0000-c000-000000000000"}),
            ("insufficient_scope", {"scp": None, "roles": ["memory.read", "https://inner.example/mcp/memory.read"]}),
            ("client_unknown", {"azp": tenant}),
        ],
    )


def test_keycloak(nothing: None) -> None:
    good = recipe("keycloak")
    answer = good.verify()
    assert answer["reason"] == "granted" and answer["subject"]["email"] == "alice@example.com"
    assert answer["subject"]["roles"] == ["clinician", "offline_access"]
    assert good.verify(aud=["account", RESOURCE])["reason"] == "granted"
    refused(
        good,
        [
            ("issuer_unknown", {"iss": "https://id.example/realms/other"}),
            ("audience_mismatch", {"aud": None}),
            ("audience_mismatch", {"aud": "account"}),
            ("token_invalid", {"typ": "ID", "aud": RESOURCE}),
            ("token_invalid", {"typ": "Refresh"}),
            ("insufficient_scope", {"scope": "openid"}),
            ("not_granted", {"realm_access": {"roles": ["offline_access"]}}),
            ("not_granted", {"realm_access": None, "resource_access": {"inner": {"roles": ["clinician"]}}}),
        ],
    )
    Issuer.objects.update(roles_claim="resource_access.inner.roles")
    client_role = {"realm_access": None, "resource_access": {"inner": {"roles": ["clinician"]}}}
    assert good.verify(**client_role)["reason"] == "granted"


def test_cognito(nothing: None) -> None:
    good = recipe("cognito")
    answer = good.verify()
    assert answer["reason"] == "granted" and answer["subject"]["roles"] == ["clinicians"]
    assert answer["subject"]["email"] is None
    assert good.verify(typ=None)["reason"] == "granted", "its header has no typ"
    assert good.verify(aud=RESOURCE)["reason"] == "granted", "of a client that asked for the resource"
    refused(
        good,
        [
            ("issuer_unknown", {"iss": good.claims["iss"].replace("Inner7xYz", "Other7xYz")}),
            ("audience_mismatch", {"aud": None}),
            ("token_invalid", {"token_use": "id"}),
            ("insufficient_scope", {"scope": "aws.cognito.signin.user.admin"}),
            ("insufficient_scope", {"scope": "memory:read"}),
            ("not_granted", {"cognito:groups": None}),
            ("client_unknown", {"client_id": "another"}),
        ],
    )


def test_firebase(nothing: None) -> None:
    good = recipe("firebase")
    answer = good.verify()
    assert answer["reason"] == "granted" and answer["client"]["slug"] == "ios"
    assert (answer["subject"]["tenant"], answer["subject"]["email"]) == ("acme-x7k2p", "alice@example.com")
    assert good.verify(email_verified=False)["subject"]["email"] is None
    refused(
        good,
        [
            ("issuer_unknown", {"iss": "https://accounts.google.com"}),
            ("audience_mismatch", {"aud": "other-project"}),
            ("insufficient_scope", {"scope": None}),
            ("not_granted", {"firebase": {"sign_in_provider": "password"}}),
            ("not_granted", {"firebase": {"tenant": "other"}}),
            ("token_invalid", {"scope": None, "nonce": "n"}),
        ],
    )


def test_workos(nothing: None) -> None:
    good = recipe("workos")
    answer = good.verify()
    assert answer["reason"] == "granted" and answer["subject"]["tenant"] == good.claims["org_id"]
    refused(
        good,
        [
            ("issuer_unknown", {"iss": "https://api.workos.com"}),
            ("audience_mismatch", {"aud": "client_01JP8BD0CZ401TDF9X54NT5ZEK"}),
            ("insufficient_scope", {"scope": "openid profile email offline_access"}),
            ("client_unknown", {"client_id": "https://claude.ai/oauth/mcp-oauth-client-metadata"}),
            ("not_granted", {"org_id": "org_other"}),
            ("not_granted", {"org_id": None}),
        ],
    )


@pytest.fixture
def world(db: None) -> World:
    found = build()
    Grant.objects.all().delete()
    OAuthClientId.objects.all().delete()
    return found


@pytest.mark.parametrize("name", ["claude", "chatgpt"])
def test_a_client_whose_ids_are_urls(world: World, name: str) -> None:
    apply(policyfile.parse(block(name, "yaml")), f"{name}.md")
    ids = list(OAuthClientId.objects.filter(issuer__issuer=ISSUER).values_list("oauth_id", flat=True))
    assert ids
    for url in ids:
        answer = world.verify(token=token(client=url))
        assert (answer["reason"], answer["client"]["slug"]) == ("granted", name)
        for other in (f"{url}/", f"{url}?x", url.upper(), url.replace("https", "http"), url.replace("://", "://x.")):
            assert world.verify(token=token(client=other))["reason"] == "client_unknown", other


def test_what_chatgpt_is_shown_is_the_challenge_of_the_answer(world: World) -> None:
    apply(policyfile.parse(block("chatgpt", "yaml")), "chatgpt.md")
    wanting = token(client="https://chatgpt.com/oauth/client.json", scope="memory:read")
    answer = world.verify("memory.capture", token=wanting)
    guard = Muniment("http://127.0.0.1:1", world.key, resource=RESOURCE)
    assert json.loads(block("chatgpt", "json")) == {
        "mcp/www_authenticate": [challenge(answer["www_authenticate"], guard)]
    }
    without = world.verify("memory.capture", token=token(client="https://chatgpt.com/oauth/client.json"))
    assert (without["reason"], without.get("www_authenticate")) == ("not_granted", None)


def test_each_reason_that_a_recipe_names_is_tried_here() -> None:
    source = Path(__file__).read_text()
    for name in ("auth0", "okta", "entra", "keycloak", "cognito", "firebase", "workos"):
        named = set(re.findall(r"^\| `(\w+)` \|", (RECIPES / f"{name}.md").read_text(), re.M)) - {"reason"}
        [body] = re.findall(rf"^def test_{name}\(.*?(?=^def |^@)", source, re.M | re.S)
        assert named and {reason for reason in named if f'"{reason}"' not in body} == set(), name
