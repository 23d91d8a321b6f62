"""The clients of the case, as they meet inner: an MCP client that finds its way to a token by itself (Claude, ChatGPT),
and an app that has one and calls REST (iOS)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import httpx2
from mcp.client.auth import OAuthClientProvider
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl

CALLBACK = "http://127.0.0.1:33333/callback"
PUBLIC: Literal["none"] = "none"  # a client without a secret (RFC 8414: token_endpoint_auth_method)


class Wallet:
    """What an MCP client keeps: its registration, and the token of its user."""

    def __init__(self, client_id: str) -> None:
        self.token: OAuthToken | None = None
        self.client = OAuthClientInformationFull(
            client_id=client_id, redirect_uris=[AnyUrl(CALLBACK)], token_endpoint_auth_method=PUBLIC
        )

    async def get_tokens(self) -> OAuthToken | None:
        """The token."""
        return self.token

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """A new token."""
        self.token = tokens

    async def get_client_info(self) -> OAuthClientInformationFull:
        """The registration, which was made beforehand."""
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Another registration."""
        self.client = client_info


class Browser:
    """The user's part of signing in: the page is opened, and the code comes back. The demo issuer asks who it is, which
    `user` answers."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.answer: dict[str, str] = {}

    async def open(self, url: str) -> None:
        """Follow the link, and keep where it leads to."""
        async with httpx2.AsyncClient() as client:
            response = await client.get(url, params=_query(url) | {"login_hint": self.user})
        self.answer = _query(response.headers["Location"])

    async def came_back(self) -> AuthorizationCodeResult:
        """The code."""
        if "code" not in self.answer:
            raise PermissionError(self.answer.get("error", "no code"))
        return AuthorizationCodeResult(
            code=self.answer["code"], state=self.answer.get("state"), iss=self.answer.get("iss")
        )


def _query(url: str) -> dict[str, str]:
    return {name: found[0] for name, found in parse_qs(urlsplit(url).query).items()}


@asynccontextmanager
async def mcp_client(
    server: str, client_id: str, user: str, scope: str | None = "memory:read", headers: dict[str, str] | None = None
) -> AsyncIterator[Client]:
    """An MCP client of a user, connected. It signs the user in when the server asks for that, and asks for more scopes
    when the server names them."""
    browser = Browser(user)
    metadata = OAuthClientMetadata(
        client_name=client_id, redirect_uris=[AnyUrl(CALLBACK)], scope=scope, token_endpoint_auth_method=PUBLIC
    )
    auth = OAuthClientProvider(server, metadata, Wallet(client_id), browser.open, browser.came_back)
    async with (
        httpx2.AsyncClient(auth=auth, headers=headers or {}, timeout=20) as http,
        Client(streamable_http_client(server, http_client=http)) as client,
    ):
        yield client


class App:
    """The iOS app: REST, with its user's token."""

    def __init__(self, url: str, token: str | None) -> None:
        headers = {"User-Agent": "Inner/1.0 (iOS)"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self.http = httpx2.Client(base_url=url, headers=headers, timeout=20)

    def capture(self, text: str, feeling: str = "") -> httpx2.Response:
        """POST /memories."""
        return self.http.post("/memories", json={"text": text, "feeling": feeling})

    def recall(self, query: str) -> httpx2.Response:
        """GET /memories?query=."""
        return self.http.get("/memories", params={"query": query})

    def forget(self, id: str) -> httpx2.Response:
        """DELETE /memories/{id}."""
        return self.http.delete(f"/memories/{id}")


def token(issuer: str, user: str, client_id: str, scope: str) -> str:
    """A token of the demo issuer, as the app gets one when its user signs in."""
    form = {"user": user, "client_id": client_id, "scope": scope}
    answer: dict[str, Any] = httpx2.post(f"{issuer}/token", data=form, timeout=20).json()
    return str(answer["access_token"])
