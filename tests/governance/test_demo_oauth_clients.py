"""The `mcp` package's own OAuth client finds its way from a guarded server to the demo issuer, to a token, and to more
scopes when a tool asks for them; everything over real connections. Its client ids are those of Claude and ChatGPT."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from mcp.client.auth import OAuthClientProvider
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthToken,
)

from audit import inbox as sightings
from audit.models import Record, Sighting
from clients import inbox
from clients.models import Client, OAuthClientId
from governance import demo
from muniment import Muniment
from muniment.metadata import challenge, metadata_paths, protected_resource
from tests.served import platform, served
from tests.staff import administrator
from tools.models import Backend

CLAUDE = "https://claude.ai/oauth/mcp-oauth-client-metadata"
CHATGPT = "https://chatgpt.com/oauth/client.json"
CALLBACKS = {
    CLAUDE: "https://claude.ai/api/mcp/auth_callback",
    CHATGPT: "https://chatgpt.com/connector_platform_oauth_redirect",
}


@dataclass
class Storage:
    """A client's memory; with a client id that was registered beforehand, or none."""

    client: OAuthClientInformationFull | None = None
    tokens: OAuthToken | None = None
    asked: list[dict[str, str]] = field(default_factory=list)  # what was authorized

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


@pytest.fixture
def resource(db: None, settings: Any) -> Iterator[str]:
    """The URL of a guarded server, whose tools are at ?tool=, beside the platform with the demo's policy."""
    with platform() as url:
        settings.MUNIMENT_URL = url
        demo.key_file().unlink(missing_ok=True)
        demo.load_policy()
        demo.publish_keys()
        guard = Muniment(url, demo.backend_key(), authorization_servers=[f"{url}/demo-issuer"])
        with guard, served(guarded(guard)) as here:
            guard.resource = f"{here}/mcp"
            Backend.objects.filter(slug="inner").update(audiences=[guard.resource])
            yield guard.resource


def guarded(guard: Muniment) -> Callable[..., list[bytes]]:
    """A server that answers what the platform decides of its callers' tokens."""

    def application(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] in metadata_paths(guard.resource or ""):
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(protected_resource(guard)).encode()]
        token = environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer ")
        decision = guard.verify(token or None, tool=parse_qs(environ["QUERY_STRING"])["tool"][0])
        headers = [("WWW-Authenticate", challenge(decision.www_authenticate, guard))] if not decision else []
        start(f"{decision.status} .", [("Content-Type", "text/plain"), *headers])
        return [decision.reason.encode()]

    return application


def provider(resource: str, client: str, user: str, storage: Storage) -> OAuthClientProvider:
    """The client of `mcp`, with a browser in which `user` is signed in."""
    callback = CALLBACKS.get(client, "http://127.0.0.1:33333/callback")
    answers: list[dict[str, list[str]]] = []

    async def browse(url: str) -> None:
        storage.asked.append({name: values[0] for name, values in parse_qs(urlsplit(url).query).items()})
        async with httpx2.AsyncClient() as browser:
            response = await browser.get(f"{url}&login_hint={user}")
        assert response.headers["Location"].startswith(f"{callback}?"), response.text
        answers.append(parse_qs(urlsplit(response.headers["Location"]).query))

    async def answered() -> AuthorizationCodeResult:
        found = answers.pop()
        return AuthorizationCodeResult(code=found["code"][0], state=found["state"][0], iss=found["iss"][0])

    metadata = OAuthClientMetadata.model_validate({"redirect_uris": [callback], "client_name": "A client"})
    url = client if client.startswith("https://") else None
    return OAuthClientProvider(resource, metadata, storage, browse, answered, client_metadata_url=url)


def called(resource: str, client: str, *tools: str, user: str = "alice", storage: Storage) -> list[tuple[int, str]]:
    """What the tools answer this client, called one after the other."""

    async def run() -> list[tuple[int, str]]:
        found = []
        async with httpx2.AsyncClient(auth=provider(resource, client, user, storage)) as http:
            for tool in tools:
                response = await http.get(resource, params={"tool": tool})
                found.append((response.status_code, response.text))
        return found

    return asyncio.run(run())


def test_a_client_whose_id_is_a_url_comes_to_a_token_and_then_to_more_scopes(resource: str) -> None:
    storage = Storage()
    answers = called(resource, CHATGPT, "memory.recall", "memory.capture", storage=storage)
    assert answers == [(200, "granted"), (200, "granted")]
    assert [set(asked["scope"].split()) for asked in storage.asked] == [
        {"memory:read"}, {"memory:read", "memory:write"},
    ]  # fmt: skip
    assert {(asked["client_id"], asked["resource"]) for asked in storage.asked} == {(CHATGPT, resource)}
    rows = Record.objects.filter(type="decision").order_by("index").values_list("client", "tool", "reason")
    assert list(rows) == [
        (None, "memory.recall", "token_missing"), ("chatgpt", "memory.recall", "granted"),
        ("chatgpt", "memory.capture", "insufficient_scope"), ("chatgpt", "memory.capture", "granted"),
    ]  # fmt: skip


def test_more_scopes_do_not_help_where_nothing_is_granted(resource: str) -> None:
    storage = Storage()
    answers = called(resource, CLAUDE, "memory.recall", "memory.capture", "memory.recall", storage=storage)
    assert answers == [(200, "granted"), (403, "not_granted"), (200, "granted")]
    assert len(storage.asked) == 2


def test_a_client_that_was_registered_beforehand_comes_to_a_token(resource: str) -> None:
    known = OAuthClientInformationFull.model_validate(
        {"client_id": "inner-ios-app", "redirect_uris": ["http://127.0.0.1:33333/callback"],
         "token_endpoint_auth_method": "none"}
    )  # fmt: skip
    storage = Storage(known)
    assert called(resource, "inner-ios-app", "memory.capture", user="bob", storage=storage) == [(200, "granted")]
    assert storage.tokens is not None and storage.tokens.scope == "memory:write"


def test_an_unknown_url_waits_in_the_inbox_until_it_is_attached(resource: str) -> None:
    stranger = "https://client.example/oauth/metadata.json"
    assert called(resource, stranger, "memory.recall", storage=Storage()) == [(403, "client_unknown")]
    sightings.flush()
    one = Sighting.objects.get(kind="client", name=stranger)
    http = administrator()
    assert stranger in http.get("/admin/inbox/").content.decode()
    staff = http.get("/admin/inbox/").wsgi_request.user
    inbox.attach(one.pk, Client.objects.get(slug="claude"), user=staff, reason="another way to reach Claude")
    assert called(resource, stranger, "memory.recall", storage=Storage()) == [(200, "granted")]
    number = OAuthClientId.objects.get(oauth_id=stranger).client_id
    assert stranger in http.get(f"/admin/clients/client/{number}/change/").content.decode()
