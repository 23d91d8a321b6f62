"""A fastmcp server behind the guard: its own clients, over HTTP and in memory, and the real platform."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastmcp import Client, FastMCP
from fastmcp.client.transports import StreamableHttpTransport
from fastmcp.exceptions import ToolError
from fastmcp.server.auth import RemoteAuthProvider
from fastmcp.server.middleware import AuthMiddleware
from fastmcp.server.middleware.caching import ResponseCachingMiddleware
from mcp.shared.exceptions import MCPError
from pydantic import AnyHttpUrl

from audit.models import Record
from governance import process
from muniment import Muniment, current_caller
from muniment.adapters.fastmcp import MunimentTokenVerifier, guard_server, guarded_app, guarded_check
from tests import world as worlds
from tests.reset import reset
from tests.sdk.outcomes import last_outcome
from tests.served import asgi, platform
from tests.world import World, token

RESOURCE = "https://inner.example/mcp"
METADATA = "https://inner.example/.well-known/oauth-protected-resource/mcp"
HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


def who() -> str:
    caller = current_caller()
    return caller.sub if caller else "nobody"


def make(guard: Muniment, **more: Any) -> FastMCP[Any]:
    """Fastmcp's decorator above, the guard's below it."""
    server: FastMCP[Any] = FastMCP("inner", **more)

    @server.tool(name="memory.recall")
    @guard.tool("memory.recall", scopes="memory:read")
    async def recall(query: str, pause: float = 0) -> str:
        """Find memories."""
        await asyncio.sleep(pause)
        return f"{who()}: {query}"

    @server.tool(name="memory.recall.sync")
    @guard.tool("memory.recall.sync", scopes="memory:read")
    def recall_sync(query: str) -> str:
        return f"{who()}: {query}"

    @server.tool(name="memory.capture", auth=guarded_check(guard) if more else None)
    @guard.tool("memory.capture", scopes="memory:write")
    def capture(text: str) -> str:
        return who()

    server.tool(who, name="memory.bare")
    server.resource("memory://about")(lambda: "of nobody")
    return server


@pytest.fixture(scope="module")
def url(migrated: None) -> Iterator[str]:
    with platform() as found:
        yield found


@pytest.fixture(scope="module")
def world(url: str) -> Iterator[World]:
    reset()
    made = worlds.build()
    for name in ("memory.recall.sync", "memory.bare"):
        made.backend.tools.create(name=name, access="read", status="active").scopes.add(made.grant.scopes.get())
    yield made
    process.stop_recorder()


def new_guard(world: World, url: str) -> Muniment:
    return Muniment(url, world.key, resource=RESOURCE, authorization_servers=["https://id.example/"])


@pytest.fixture(scope="module")
def server(world: World, url: str) -> Iterator[str]:
    guard = new_guard(world, url)
    with asgi(guarded_app(make(guard), guard), lifespan="on") as found:
        yield f"{found}/mcp"


def bearer(**claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(**claims)}"}


def client(server: str, **claims: Any) -> Client[Any]:
    return Client(StreamableHttpTransport(server, headers=bearer(**claims)))


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


def count(kind: str = "decision") -> int:
    return Record.objects.filter(type=kind).count()


@pytest.mark.parametrize("tool", ["memory.recall", "memory.recall.sync", "memory.bare"])
def test_a_tool_runs_as_the_user_of_the_request_verified_once(server: str, tool: str) -> None:
    async def run() -> str:
        async with client(server) as found:
            arguments = {} if tool == "memory.bare" else {"query": "sea"}
            return str((await found.call_tool(tool, arguments)).data)

    before = count()
    assert asyncio.run(run()) in ("alice: sea", "alice")
    assert count() == before + 1 and last_outcome(tool) == "ok"


def test_calls_of_users_at_the_same_time_never_mix(server: str) -> None:
    async def one(user: str) -> list[str]:
        async with client(server, sub=user) as found:
            asked = [found.call_tool("memory.recall", {"query": str(number), "pause": 0.02}) for number in range(4)]
            return [answer.data for answer in await asyncio.gather(*asked)]

    async def run() -> list[list[str]]:
        return await asyncio.gather(*(one(f"user{number}") for number in range(3)))

    assert asyncio.run(run()) == [[f"user{user}: {number}" for number in range(4)] for user in range(3)]


def test_a_missing_scope_is_a_403_and_its_words_reach_the_client(server: str) -> None:
    refused = httpx2.post(
        server, json=call("memory.capture", text="x"), headers=HEADERS | bearer(scope="memory:read")
    )  # fmt: skip
    challenge = refused.headers["WWW-Authenticate"]
    assert refused.status_code == 403 and 'scope="memory:write"' in challenge
    assert f'resource_metadata="{METADATA}"' in challenge

    async def run() -> None:
        async with client(server, scope="memory:read") as found:
            await found.call_tool("memory.capture", {"text": "x"})

    with pytest.raises((MCPError, ToolError), match="does not carry the scopes"):
        asyncio.run(run())


def test_the_servers_schema_and_description_are_declared(server: str, world: World) -> None:
    tool = world.backend.tools.get(name="memory.recall")
    assert tool.input_schema["required"] == ["query"] and tool.description == "Find memories."


def test_nothing_is_there_without_a_good_token(server: str) -> None:
    listing = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    for message in (listing, call("memory.recall", query="x")):
        assert httpx2.post(server, json=message, headers=HEADERS).status_code == 401
        expired = bearer(exp=1_700_000_000, iat=1_699_999_000)
        assert httpx2.post(server, json=message, headers=HEADERS | expired).status_code == 401
    assert httpx2.get(server, headers=HEADERS | {"Authorization": "Bearer x"}).status_code == 401
    root = server.removesuffix("/mcp")
    metadata = httpx2.get(f"{root}/.well-known/oauth-protected-resource/mcp").json()
    assert metadata["scopes_supported"] == ["memory:read", "memory:write"]


def test_two_names_in_one_object_run_nothing(server: str) -> None:
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"memory.recall","name":"memory.capture"}}'
    before = count()
    assert httpx2.post(server, content=body, headers=HEADERS | bearer()).status_code == 400
    assert count() == before


def test_chatgpt_is_told_of_a_missing_scope_in_the_result(server: str) -> None:
    async def run() -> Any:
        headers = bearer(scope="memory:read") | {"User-Agent": "openai-mcp/1.0.0"}
        async with Client(StreamableHttpTransport(server, headers=headers)) as found:
            return await found.call_tool_mcp("memory.capture", {"text": "x"})

    result = asyncio.run(run())
    [challenge] = result.meta["mcp/www_authenticate"]
    assert result.is_error and 'scope="memory:write"' in challenge and METADATA in challenge


def test_what_the_server_keeps_of_one_user_is_not_given_to_another(world: World, url: str) -> None:
    guard = new_guard(world, url)
    app = guarded_app(
        make(guard, middleware=[ResponseCachingMiddleware()]), guard, json_response=True, stateless_http=True
    )

    def asked(http: httpx2.Client, sub: str) -> str:
        headers = HEADERS | bearer(sub=sub)
        answer = http.post("/mcp", json=call("memory.recall", query="sea"), headers=headers)
        return str(answer.json()["result"]["content"][0]["text"])

    with asgi(app, lifespan="on") as found, httpx2.Client(base_url=found, trust_env=False, timeout=30) as http:
        assert [asked(http, sub) for sub in ("alice", "bob", "alice")] == ["alice: sea", "bob: sea", "alice: sea"]


def test_tools_are_hidden_without_an_auth_of_fastmcps(world: World, url: str) -> None:
    guard = new_guard(world, url)
    server = make(guard, middleware=[AuthMiddleware(auth=guarded_check(guard))])

    async def run(found: str) -> list[set[str]]:
        shown = []
        for scope in ("memory:read", "other"):
            async with client(found, scope=scope) as asked:
                shown.append({tool.name for tool in await asked.list_tools()})
        return shown

    with asgi(guarded_app(server, guard), lifespan="on") as found:
        assert asyncio.run(run(f"{found}/mcp")) == [{"memory.recall", "memory.recall.sync"}, set()]


class TestInMemory:
    """Without HTTP the program says whose token it is."""

    def run(self, guard: Muniment, given: str | None, tool: str = "memory.recall") -> Any:
        server = make(guard)
        guard_server(server, guard)

        async def run() -> Any:
            with guard.request(given):
                async with Client(server) as found:
                    arguments = {"text": "x"} if tool == "memory.capture" else {"query": "sea"}
                    return await found.call_tool_mcp(tool, arguments)

        return asyncio.run(run())

    def test_a_tool_runs_as_the_user_of_that_token(self, world: World, url: str) -> None:
        assert self.run(new_guard(world, url), token()).content[0].text == "alice: sea"

    def test_without_one_it_is_refused_with_the_challenge(self, world: World, url: str) -> None:
        refused = self.run(new_guard(world, url), None)
        assert refused.is_error and refused.meta["mcp/www_authenticate"][0].startswith("Bearer")

    def test_a_denial_is_told_in_one_sentence(self, world: World, url: str) -> None:
        refused = self.run(new_guard(world, url), token(scope="memory:read"), "memory.capture")
        assert refused.is_error and "Missing: memory:write" in refused.content[0].text
        assert "Traceback" not in json.dumps(refused.model_dump(mode="json"))

    def test_a_server_called_from_within_is_guarded_by_the_decorator(self, world: World, url: str) -> None:
        guard = new_guard(world, url)
        server = make(guard)

        async def run(given: str | None) -> Any:
            with guard.request(given):
                return await server.call_tool("memory.recall", {"query": "sea"})

        assert asyncio.run(run(token())).content[0].text == "alice: sea"
        with pytest.raises(Exception, match="token"):
            asyncio.run(run(None))


class TestFastmcpsOwnAuth:
    """A server with an `auth` of its own, which looks at tokens by the platform, and hides tools by their scopes."""

    @pytest.fixture(scope="class")
    @classmethod
    def own(cls, world: World, url: str) -> Iterator[str]:
        guard = new_guard(world, url)
        auth = RemoteAuthProvider(
            MunimentTokenVerifier(guard), [AnyHttpUrl("https://id.example/")], "https://inner.example"
        )
        server = make(guard, auth=auth, middleware=[AuthMiddleware(auth=guarded_check(guard))])
        with asgi(guarded_app(server, guard), lifespan="on") as found:
            yield f"{found}/mcp"

    def names(self, own: str, **claims: Any) -> set[str]:
        async def run() -> set[str]:
            async with client(own, **claims) as found:
                return {tool.name for tool in await found.list_tools()}

        return asyncio.run(run())

    def test_tools_are_there_for_those_who_may_use_them(self, own: str) -> None:
        assert self.names(own) == {"memory.recall", "memory.recall.sync"}
        assert self.names(own, scope="other") == set()

    def test_implied_and_granted_scopes_count(self, own: str, world: World) -> None:
        assert self.names(own, scope="memory:write") == {"memory.recall", "memory.recall.sync"}  # implies memory:read
        write = world.grant.scopes.model.objects.get(name="memory:write")
        world.grant.scopes.add(write)
        try:
            assert "memory.capture" in self.names(own)
        finally:
            world.grant.scopes.remove(write)

    def test_a_hidden_tools_schema_is_declared_all_the_same(self, own: str, world: World) -> None:
        assert world.backend.tools.get(name="memory.capture").input_schema["required"] == ["text"]

    def test_a_call_is_decided_by_the_guard(self, own: str) -> None:
        async def run() -> str:
            async with client(own) as found:
                return str((await found.call_tool("memory.recall", {"query": "sea"})).data)

        before = count()
        assert asyncio.run(run()) == "alice: sea" and count() == before + 1
        refused = httpx2.post(own, json=call("memory.capture", text="x"), headers=HEADERS | bearer())
        assert refused.status_code == 403

    def test_a_token_is_looked_at_once_for_a_request(self, own: str) -> None:
        before = count("introspection")
        listing = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        assert httpx2.post(own, json=listing, headers=HEADERS | bearer()).status_code != 401
        assert count("introspection") == before + 1

    @pytest.mark.parametrize("given", ["x", token(exp=1_700_000_000, iat=1_699_999_000), token(aud="https://other/")])
    def test_another_token_gets_in_nowhere(self, own: str, given: str) -> None:
        listing = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        for message in (listing, call("memory.recall", query="x")):
            headers = HEADERS | {"Authorization": f"Bearer {given}"}
            assert httpx2.post(own, json=message, headers=headers).status_code == 401
