"""The demo issuer as an authorization server: metadata, the code flow with PKCE, and what it refuses."""

import json
import re
import secrets
import time
from base64 import urlsafe_b64encode
from hashlib import sha256
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
import pytest
import redis
from django.test import Client
from mcp.shared.auth import OAuthMetadata

from clients import policyfile, policyfile_apply, policyfile_export
from governance import demo, demo_issuer

VERIFIER = secrets.token_urlsafe(48)
CHALLENGE = urlsafe_b64encode(sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
HERE = "http://127.0.0.1:33333/callback"
CIMD = "https://claude.ai/oauth/mcp-oauth-client-metadata"


@pytest.fixture
def http(db: None) -> Client:
    demo.load_policy()
    return Client()


def asking(**more: str) -> dict[str, str]:
    return {
        "response_type": "code", "client_id": "claude-app", "redirect_uri": HERE, "scope": "memory:read", "state": "s1",
        "code_challenge": CHALLENGE, "code_challenge_method": "S256", "login_hint": "alice",
        "resource": demo_issuer.AUDIENCE,
    } | more  # fmt: skip


def answered(http: Client, **more: str) -> dict[str, str]:
    """What the client's address is told."""
    response = http.get("/demo-issuer/authorize", asking(**more))
    assert response.status_code == 302, response.content
    where = urlsplit(response["Location"])
    assert f"{where.scheme}://{where.netloc}{where.path}" == more.get("redirect_uri", HERE)
    return {name: found[0] for name, found in parse_qs(where.query).items()}


def exchanged(http: Client, code: str, **more: str) -> tuple[int, dict[str, Any]]:
    form = {
        "grant_type": "authorization_code", "code": code, "client_id": "claude-app", "redirect_uri": HERE,
        "code_verifier": VERIFIER, "resource": demo_issuer.AUDIENCE,
    } | more  # fmt: skip
    response = http.post("/demo-issuer/token", urlencode(form), content_type="application/x-www-form-urlencoded")
    return response.status_code, json.loads(response.content)


@pytest.mark.parametrize(
    "path",
    [
        "/.well-known/oauth-authorization-server/demo-issuer",
        "/.well-known/openid-configuration/demo-issuer",
        "/demo-issuer/.well-known/openid-configuration",
        "/demo-issuer/.well-known/oauth-authorization-server",
    ],
)
def test_its_metadata_is_where_clients_look(http: Client, path: str) -> None:
    response = http.get(path)
    OAuthMetadata.model_validate_json(response.content)  # as the `mcp` package reads it
    found = response.json()
    assert found["issuer"] == demo_issuer.issuer() and found["code_challenge_methods_supported"] == ["S256"]
    assert "memory:read" in found["scopes_supported"]


def test_a_code_is_worth_one_token_for_who_was_named(http: Client) -> None:
    answer = answered(http)
    assert answer["state"] == "s1" and answer["iss"] == demo_issuer.issuer()
    status, body = exchanged(http, answer["code"])
    claims = jwt.decode(body["access_token"], options={"verify_signature": False})
    assert status == 200 and (claims["sub"], claims["client_id"]) == ("alice", "claude-app")
    assert (claims["aud"], claims["scope"]) == (demo_issuer.AUDIENCE, "memory:read")
    assert exchanged(http, answer["code"])[1]["error"] == "invalid_grant"


@pytest.mark.parametrize(("later", "status"), [(59, 200), (62, 400)])
def test_a_code_is_good_for_a_minute(http: Client, monkeypatch: pytest.MonkeyPatch, later: int, status: int) -> None:
    now = time.time()
    monkeypatch.setattr("django.core.signing.time.time", lambda: now)
    code = answered(http)["code"]
    monkeypatch.setattr("django.core.signing.time.time", lambda: now + later)
    assert exchanged(http, code)[0] == status


def test_a_code_that_cannot_be_known_to_be_unused_is_refused(http: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    code = answered(http)["code"]
    with monkeypatch.context() as patched:
        patched.setattr("governance.demo_authorization.store", lambda: redis.Redis.from_url("redis://127.0.0.1:1"))
        assert exchanged(http, code) == (
            503,
            {"error": "temporarily_unavailable", "error_description": "Redis is away"},
        )
    assert exchanged(http, code)[0] == 200


def test_the_policy_file_keeps_client_ids_that_are_urls(http: Client) -> None:
    file = policyfile.parse(policyfile_export.export())
    ids = {one.client_id for client in file.clients or [] for one in client.oauth_client_ids}
    assert {"claude-app", CIMD, "https://chatgpt.com/oauth/client.json"} <= ids
    assert policyfile_apply.apply(file, "again").changes == []


def test_a_client_id_may_be_a_url(http: Client) -> None:
    answer = answered(http, client_id=CIMD, redirect_uri="https://claude.ai/api/mcp/auth_callback")
    status, body = exchanged(
        http, answer["code"], client_id=CIMD, redirect_uri="https://claude.ai/api/mcp/auth_callback"
    )
    claims = jwt.decode(body["access_token"], options={"verify_signature": False})
    assert status == 200 and claims["client_id"] == CIMD


@pytest.mark.parametrize(
    "more",
    [
        {"code_verifier": "x" * 43},
        {"code_verifier": ""},
        {"client_id": "chatgpt-app"},
        {"redirect_uri": "http://127.0.0.1:33334/callback"},
        {"resource": "https://other.example"},
        {"code": "nonsense"},
    ],
    ids=lambda more: next(iter(more)) + (": none" if not next(iter(more.values())) else ""),
)
def test_a_code_is_worth_nothing_to_others(http: Client, more: dict[str, str]) -> None:
    code = answered(http)["code"]
    status, body = exchanged(http, more.pop("code", code), **more)
    assert status == 400 and body["error"] in ("invalid_grant", "invalid_target")


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example/callback", "http://127.0.0.1.evil.example:80/", "http://127.0.0.1/",
        "javascript:alert(1)",
        "http://127.0.0.1:1@evil.example/", "https://claude.ai.evil.example/api/mcp/auth_callback",
        "https://claude.ai/api/mcp/auth_callback/../x", "http://127.0.0.1:80/#fragment", "http://[::1", "",
        "http://127.0.0.1:80/a\r\nb", "http://127.0.0.1:80@evil.example/", "http://127.0.0.1:80\\@evil.example/",
        "https://claude.ai/api/mcp/auth_callback?x=1", "https://chatgpt.com/connector_platform_oauth_redirect",
        "inner://callback",
    ],
)  # fmt: skip
def test_no_code_goes_to_an_address_that_is_not_known(http: Client, address: str) -> None:
    response = http.get("/demo-issuer/authorize", asking(redirect_uri=address))
    assert response.status_code == 400 and "Location" not in response.headers


@pytest.mark.parametrize(
    ("client", "address", "status"),
    [
        ("claude-app", "https://claude.com/api/mcp/auth_callback", 302),
        ("chatgpt-app", "https://chatgpt.com/connector_platform_oauth_redirect", 302),
        ("https://chatgpt.com/oauth/abc/client.json", "https://chatgpt.com/connector/oauth/abc", 302),
        ("chatgpt-app", "https://claude.ai/api/mcp/auth_callback", 400),
        ("inner-ios-app", "https://claude.ai/api/mcp/auth_callback", 400),
        ("claude-app-2", "https://claude.ai/api/mcp/auth_callback", 400),
        ("https://claude.ai.evil.example/client", "https://claude.ai/api/mcp/auth_callback", 400),
        ("inner-ios-app", "http://[::1]:8123/?a=b", 302),
        ("https://other.example/client", "http://localhost:8123/callback", 302),
    ],
)
def test_a_published_callback_is_for_its_client_alone(http: Client, client: str, address: str, status: int) -> None:
    response = http.get("/demo-issuer/authorize", asking(client_id=client, redirect_uri=address))
    assert response.status_code == status


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge": ""}, "invalid_request"),
        ({"scope": "a\tb"}, "invalid_scope"),
        ({"resource": "https://other.example"}, "invalid_target"),
        ({"resource": "https://inner.example/\0"}, "invalid_target"),
        ({"resource": "ü" * 9}, "invalid_target"),
    ],
)
def test_what_it_refuses_it_tells_the_client(http: Client, more: dict[str, str], error: str) -> None:
    answer = answered(http, **more)
    assert answer["error"] == error and answer["state"] == "s1" and "code" not in answer


def test_who_is_not_named_is_asked(http: Client) -> None:
    response = http.get("/demo-issuer/authorize", asking(login_hint="", client_id="<script>"))
    assert response.status_code == 400 and b"script" not in response.content
    response = http.get("/demo-issuer/authorize", asking(login_hint=""))
    page = response.content.decode()
    assert response.status_code == 200 and "claude-app" in page and "login_hint=bob" in page
    assert "unsafe" not in response["Content-Security-Policy"] and "default-src" in response["Content-Security-Policy"]
    [link] = re.findall(r'href="([^"]*login_hint=bob[^"]*)"', page)
    assert answered(http, login_hint="bob").keys() == {"code", "iss", "state"}
    answer = http.get(f"/demo-issuer/authorize{unescape(link)}")
    code = parse_qs(urlsplit(answer["Location"]).query)["code"][0]
    token = exchanged(http, code)[1]["access_token"]
    assert jwt.decode(token, options={"verify_signature": False})["sub"] == "bob"


@pytest.mark.parametrize("hint", ["eve", "\0", "<script>"])
def test_nobody_is_whom_the_demo_does_not_know(http: Client, hint: str) -> None:
    response = http.get("/demo-issuer/authorize", asking(login_hint=hint, state="<script>", scope="<script>"))
    assert response.status_code == 200 and b"<script>" not in response.content and b"Location" not in response.headers
