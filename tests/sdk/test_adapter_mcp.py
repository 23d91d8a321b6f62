"""An MCP server behind the guard: the real `mcp` package on both sides, uvicorn between them, the real platform."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver import MCPServer
from mcp.shared.exceptions import MCPError

from audit.models import Record
from governance import process
from muniment import Muniment, current_caller
from muniment.adapters.mcp import GuardedServer, guarded_app
from muniment.calls import incoming
from tests import world as worlds
from tests.reset import reset
from tests.sdk.outcomes import last_outcome
from tests.served import asgi, platform
from tests.world import World, token

RESOURCE = "https://inner.example/mcp"
METADATA = "https://inner.example/.well-known/oauth-protected-resource/mcp"
READ = f'Bearer scope="memory:read", resource_metadata="{METADATA}"'
MODERN = "2026-07-28"


def who() -> str:
    caller = current_caller()
    return caller.sub if caller else "nobody"


def make(guard: Muniment) -> GuardedServer:
    server = GuardedServer("inner", guard=guard, log_level="ERROR")

    @server.tool("memory.recall", scopes="memory:read")
    async def recall(query: str, pause: float = 0) -> list[str]:
        """Find memories."""
        await asyncio.sleep(pause)
        return [f"{who()}: {query}"]

    @server.tool("memory.recall.sync", scopes="memory:read")
    def recall_sync(query: str) -> str:
        return f"{who()}: {query}"

    @server.tool("memory.capture", scopes="memory:write")
    def capture(text: str) -> str:
        return who()

    def fails() -> str:
        raise ValueError("of the tool")

    server.tool("memory.fails", scopes="memory:read")(fails)

    async def bare() -> str:
        return who()

    server.add_tool(bare, name="memory.bare")
    server.add_tool(bare, name="memory.unknown")
    server.add_tool(fails, name="memory.bare.fails")

    @server.tool("memory.agents", scopes="memory:read")
    def agents() -> str:
        caller = current_caller()
        return ",".join(caller.agents) if caller else "nobody"

    @server.resource("memory://about")
    def about() -> str:
        return f"nothing of {who()}'s, told with {'a' if incoming().token else 'no'} token"

    return server


@pytest.fixture(scope="module")
def url(migrated: None) -> Iterator[str]:
    with platform() as found:
        yield found


@pytest.fixture(scope="module")
def world(url: str) -> Iterator[World]:
    reset()
    made = worlds.build()
    for name in ("memory.recall.sync", "memory.fails", "memory.bare", "memory.bare.fails", "memory.agents"):
        tool = made.backend.tools.create(name=name, access="read", status="active")
        tool.scopes.add(made.grant.scopes.get())
    yield made
    process.stop_recorder()


@pytest.fixture(scope="module")
def guard(world: World, url: str) -> Muniment:
    return Muniment(url, world.key, resource=RESOURCE, authorization_servers=["https://id.example/"])


@pytest.fixture(scope="module")
def server(guard: Muniment) -> Iterator[str]:
    """The server's URL."""
    with asgi(make(guard).streamable_http_app(), lifespan="on", proxy_headers=False) as found:
        yield f"{found}/mcp"


@pytest.fixture(scope="module")
def http(server: str) -> Iterator[httpx2.Client]:
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    with httpx2.Client(base_url=server.removesuffix("/mcp"), headers=headers, trust_env=False, timeout=30) as client:
        yield client


def bearer(sub: str = "alice", **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(sub=sub, **claims)}"}


def body(method: str, id: Any = 1, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params}


def call(tool: str, id: Any = 1, meta: Any = None, **arguments: Any) -> dict[str, Any]:
    return body("tools/call", id, name=tool, arguments=arguments, **({"_meta": meta} if meta else {}))


def initialize() -> dict[str, Any]:
    about = {"name": "test", "version": "1"}
    return body("initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo=about)


def opened(http: httpx2.Client, headers: dict[str, str]) -> dict[str, str]:
    """A session's headers, without the token."""
    response = http.post("/mcp", json=initialize(), headers=headers)
    assert response.status_code == 200, response.text
    session = {"Mcp-Session-Id": response.headers["mcp-session-id"]}
    ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert http.post("/mcp", json=ready, headers=headers | session).status_code == 202
    return session


def result(response: httpx2.Response) -> Any:
    """The result of an answer, which comes as an event."""
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    return json.loads(lines[-1] if lines else response.text)["result"]


def text(response: httpx2.Response) -> str:
    return str(result(response)["content"][0]["text"])


def statements(kind: str = "decision", **having: Any) -> list[dict[str, Any]]:
    rows = Record.objects.filter(type=kind).order_by("index")
    found = [json.loads(bytes(row.statement)) for row in rows]
    return [one for one in found if having.items() <= one.items()]


def count(kind: str = "decision") -> int:
    return Record.objects.filter(type=kind).count()


@asynccontextmanager
async def client(server: str, user: str = "alice", mode: Any = "auto", **claims: Any) -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers=bearer(user, **claims), timeout=20, trust_env=False) as http,
        Client(streamable_http_client(server, http_client=http), mode=mode) as found,
    ):
        yield found


@pytest.mark.parametrize("mode", ["legacy", MODERN])
@pytest.mark.parametrize("tool", ["memory.recall", "memory.recall.sync", "memory.bare"])
def test_a_tool_runs_as_the_user_of_the_request_verified_once(server: str, mode: str, tool: str) -> None:
    async def run() -> str:
        async with client(server, mode=mode) as found:
            answer = await found.call_tool(tool, {} if tool == "memory.bare" else {"query": "sea"})
            assert not answer.is_error
            return str(answer.content[0].text)

    before = count()
    assert asyncio.run(run()) in ("alice: sea", "alice")
    assert count() == before + 1
    assert last_outcome(tool) == "ok"


def test_what_is_listed_says_access_and_scopes(server: str) -> None:
    async def run() -> Any:
        async with client(server) as found:
            return {tool.name: tool for tool in (await found.list_tools()).tools}

    listed = asyncio.run(run())
    recall, capture = listed["memory.recall"], listed["memory.capture"]
    assert recall.annotations.read_only_hint and not capture.annotations.read_only_hint
    assert recall.meta["securitySchemes"] == [{"type": "oauth2", "scopes": ["memory:read"]}]


def test_the_servers_schema_and_description_are_declared(server: str, world: World) -> None:
    tool = world.backend.tools.get(name="memory.recall")
    assert tool.input_schema["required"] == ["query"] and tool.description == "Find memories."


@pytest.mark.parametrize("mode", ["legacy", MODERN])
def test_a_missing_scope_is_a_403_with_all_scopes_of_the_tool(server: str, mode: str) -> None:
    seen: list[httpx2.Response] = []

    async def run() -> None:
        async def keep(response: httpx2.Response) -> None:
            seen.append(response)

        async with (
            httpx2.AsyncClient(
                timeout=30, headers=bearer(scope="memory:read"), event_hooks={"response": [keep]}
            ) as http,
            Client(streamable_http_client(server, http_client=http), mode=mode) as found,
        ):
            with pytest.raises(MCPError, match="does not carry the scopes"):
                await found.call_tool("memory.capture", {"text": "x"})

    asyncio.run(run())
    [refused] = [response for response in seen if response.status_code == 403]
    challenge = refused.headers["WWW-Authenticate"]
    assert 'error="insufficient_scope"' in challenge and 'scope="memory:write"' in challenge
    assert challenge.count("resource_metadata=") == 1 and f'resource_metadata="{METADATA}"' in challenge


@pytest.mark.parametrize("method", ["initialize", "tools/list", "ping", "server/discover", "nonsense"])
def test_without_a_token_every_method_is_answered_with_the_way_to_one(http: httpx2.Client, method: str) -> None:
    before = count(), count("introspection")
    response = http.post("/mcp", json=body(method))
    assert response.status_code == 401 and response.headers["WWW-Authenticate"] == READ
    assert (count(), count("introspection")) == before  # it is no call


@pytest.mark.parametrize("verb", ["GET", "DELETE", "HEAD", "OPTIONS", "PUT"])
def test_without_a_token_no_other_verb_gets_in(http: httpx2.Client, verb: str) -> None:
    assert http.request(verb, "/mcp").status_code == 401


def test_a_call_without_a_token_is_refused_and_on_record(http: httpx2.Client) -> None:
    before = len(statements(reason="token_missing"))
    response = http.post("/mcp", json=call("memory.recall", query="sea"))
    assert response.status_code == 401 and f'resource_metadata="{METADATA}"' in response.headers["WWW-Authenticate"]
    assert len(statements(reason="token_missing")) == before + 1


BAD_TOKENS = {
    "expired": {"exp": 1_700_000_000, "iat": 1_699_999_000},
    "of another audience": {"aud": "https://other.example/"},
    "of another issuer": {"iss": "https://evil.example/"},
    "of an unknown client": {"client_id": "stranger"},
}


@pytest.mark.parametrize("claims", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_a_token_that_is_not_good_here_opens_nothing(http: httpx2.Client, claims: dict[str, Any]) -> None:
    headers = bearer(**claims)
    for message in (initialize(), body("tools/list"), body("resources/read", uri="memory://about"), body("ping")):
        response = http.post("/mcp", json=message, headers=headers)
        assert response.status_code == 401 and 'error="invalid_token"' in response.headers["WWW-Authenticate"]
    assert http.get("/mcp", headers=headers).status_code == 401
    refused = http.post("/mcp", json=call("memory.recall", query="sea"), headers=headers)
    assert refused.status_code == (403 if "client_id" in claims else 401)


def test_what_is_no_token_is_refused_whatever_is_asked(http: httpx2.Client) -> None:
    for given in ("Bearer a b", "Bearer", "Bearer ey.x.y", "bearer x" * 3000):
        for message in (initialize(), call("memory.recall", query="sea")):
            assert http.post("/mcp", json=message, headers={"Authorization": given}).status_code == 401
    assert http.post(f"/mcp?access_token={token()}", json=call("memory.recall", query="sea")).status_code == 401


def test_a_resource_needs_a_token_that_is_good_now(http: httpx2.Client, world: World) -> None:
    headers = bearer("eve")
    session = opened(http, headers)
    read = body("resources/read", uri="memory://about")
    told = result(http.post("/mcp", json=read, headers=headers | session))["contents"][0]["text"]
    assert told == "nothing of nobody's, told with a token"
    type(world.client).objects.filter(pk=world.client.pk).update(status="suspended")
    try:
        assert http.post("/mcp", json=read, headers=headers | session).status_code == 401
        assert http.post("/mcp", json=body("ping"), headers=headers | session).status_code == 401
    finally:
        type(world.client).objects.filter(pk=world.client.pk).update(status="active")


def test_lists_and_pings_do_not_ask_the_platform_each_time(http: httpx2.Client) -> None:
    headers = bearer("frugal")
    session = opened(http, headers)
    before = count("introspection"), count()
    for _ in range(3):
        for method in ("tools/list", "ping"):
            result(http.post("/mcp", json=body(method), headers=headers | session))
    assert (count("introspection"), count()) == before
    assert statements("introspection")[-1]["tool"] is None


class TestASession:
    """It carries no identity: each call has its own token, and all of them are of the user who opened it."""

    def test_is_closed_to_the_token_of_another_user(self, http: httpx2.Client) -> None:
        session = opened(http, bearer("alice"))
        for message in (call("memory.recall", query="sea"), body("tools/list"), body("ping")):
            assert http.post("/mcp", json=message, headers=bearer("bob") | session).status_code == 404
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        assert http.post("/mcp", json=cancel, headers=bearer("bob") | session).status_code == 404
        assert http.get("/mcp", headers=bearer("bob") | session).status_code == 404
        assert http.delete("/mcp", headers=bearer("bob") | session).status_code == 404
        assert last_outcome("memory.recall") == "error"  # it was allowed, and did not run
        mine = http.post("/mcp", json=call("memory.recall", query="sea"), headers=bearer("alice") | session)
        assert text(mine) == "alice: sea"

    def test_goes_on_with_a_new_token_of_its_user(self, http: httpx2.Client) -> None:
        session = opened(http, bearer("alice"))
        for number in range(2):
            headers = bearer("alice", jti=f"refreshed-{number}") | session
            assert text(http.post("/mcp", json=call("memory.recall", query="sea"), headers=headers)) == "alice: sea"
            assert http.post("/mcp", json=body("ping"), headers=headers).status_code == 200

    def test_mixes_up_no_calls_that_are_made_at_the_same_time(self, http: httpx2.Client) -> None:
        headers = dict(http.headers) | bearer() | opened(http, bearer())

        async def one(client: httpx2.AsyncClient, name: str) -> str:
            message = call("memory.agents", name, meta={"muniment/agent": {"chain": [name]}})
            return text(await client.post("/mcp", json=message))

        async def run() -> list[str]:
            async with httpx2.AsyncClient(
                base_url=str(http.base_url), headers=headers, trust_env=False, timeout=30
            ) as client:
                return await asyncio.gather(*(one(client, f"agent{number}") for number in range(8)))

        assert asyncio.run(run()) == [f"agent{number}" for number in range(8)]

    def test_ends_no_earlier_than_its_access(self, http: httpx2.Client, world: World) -> None:
        headers = bearer()
        session = opened(http, headers)
        recall = call("memory.recall", query="sea")
        assert text(http.post("/mcp", json=recall, headers=headers | session)) == "alice: sea"
        type(world.grant).objects.filter(pk=world.grant.pk).update(starts_at="2100-01-01T00:00Z")
        try:
            revoked = http.post("/mcp", json=recall, headers=headers | session)
            assert (revoked.status_code, revoked.json()["error"]["data"]["reason"]) == (403, "not_granted")
            assert "WWW-Authenticate" not in revoked.headers  # signing in again would not help
        finally:
            type(world.grant).objects.filter(pk=world.grant.pk).update(starts_at=None)
        assert text(http.post("/mcp", json=recall, headers=headers | session)) == "alice: sea"


@pytest.mark.parametrize("mode", ["legacy", MODERN])
def test_calls_of_users_at_the_same_time_never_mix(server: str, mode: str) -> None:
    async def one(user: str) -> list[str]:
        async with client(server, user, mode=mode) as found:
            asked: list[Any] = [None] * 6

            async def ask(number: int) -> None:
                tool = "memory.recall" if number % 2 else "memory.recall.sync"
                pause = {"pause": 0.02} if number % 2 else {}
                asked[number] = await found.call_tool(tool, {"query": str(number), **pause})

            async with anyio.create_task_group() as group:
                for number in range(6):
                    group.start_soon(ask, number)
            return [answer.content[0].text for answer in asked]

    async def run() -> list[list[str]]:
        return await asyncio.gather(*(one(f"user{number}") for number in range(3)))

    found = asyncio.run(run())
    assert found == [[f"user{user}: {number}" for number in range(6)] for user in range(3)]


def test_a_tool_whose_decorator_was_forgotten_is_guarded_by_its_name(http: httpx2.Client) -> None:
    headers = bearer()
    session = opened(http, headers)
    refused = http.post("/mcp", json=call("memory.unknown"), headers=headers | session)
    assert (refused.status_code, refused.json()["error"]["data"]["reason"]) == (403, "tool_unknown")
    assert text(http.post("/mcp", json=call("memory.bare"), headers=headers | session)) == "alice"


def test_the_decorators_may_stand_in_either_order(guard: Muniment) -> None:
    server = MCPServer("inner", log_level="ERROR")
    with Muniment(guard.platform.url, "mk_x_y") as other:
        other.platform = guard.platform

        @other.tool("memory.recall", scopes="memory:read")
        @server.tool("memory.recall")
        def recall() -> str:
            return who()

        guarded_app(server, other)

        async def run() -> Any:
            with other.request(token()):
                async with Client(server) as found:
                    return await found.call_tool("memory.recall", {})

        assert asyncio.run(run()).content[0].text == "alice"
        assert other.flush(30)
    assert last_outcome("memory.recall") == "ok"


def test_a_tool_that_fails_is_reported_so(http: httpx2.Client) -> None:
    headers = bearer()
    session = opened(http, headers)
    for tool in ("memory.fails", "memory.bare.fails"):
        failed = result(http.post("/mcp", json=call(tool), headers=headers | session))
        assert failed["isError"] and last_outcome(tool) == "error"
    wrong = result(http.post("/mcp", json=call("memory.recall", wrong=1), headers=headers | session))
    assert wrong["isError"] and last_outcome("memory.recall") == "error"  # allowed, and the server refused it


class TestChatGpt:
    """It signs its user in when a result says so (`_meta`), and not when a 403 does."""

    headers = {"User-Agent": "openai-mcp/1.0.0 (ChatGPT)"}

    def test_is_told_of_a_missing_scope_in_the_result(self, http: httpx2.Client) -> None:
        headers = self.headers | bearer(scope="memory:read")
        session = opened(http, headers)
        refused = result(http.post("/mcp", json=call("memory.capture", text="x"), headers=headers | session))
        [challenge] = refused["_meta"]["mcp/www_authenticate"]
        assert refused["isError"] and 'error="insufficient_scope"' in challenge and 'scope="memory:write"' in challenge
        assert f'resource_metadata="{METADATA}"' in challenge
        words = refused["content"][0]["text"]
        assert words == "The user's token does not carry the scopes that the tool needs. Missing: memory:write."
        assert statements(tool="memory.capture")[-1]["reason"] == "insufficient_scope"

    def test_is_refused_in_http_where_only_a_new_token_or_nothing_helps(self, http: httpx2.Client) -> None:
        headers = self.headers | bearer(exp=1_700_000_000, iat=1_699_999_000)
        assert http.post("/mcp", json=call("memory.recall", query="x"), headers=headers).status_code == 401
        headers = self.headers | bearer()
        refused = http.post("/mcp", json=call("memory.capture", text="x"), headers=headers)
        assert (refused.status_code, refused.json()["error"]["data"]["reason"]) == (403, "not_granted")


class TestDelegation:
    """`_meta` may name the agents that a call went through: claims, which only narrow."""

    def ask(self, http: httpx2.Client, agent: Any) -> httpx2.Response:
        headers = bearer()
        session = opened(http, headers)
        message = call("memory.recall", meta={"muniment/agent": agent}, query="sea")
        return http.post("/mcp", json=message, headers=headers | session)

    def test_agents_and_what_they_were_handed_are_carried_along(self, http: httpx2.Client) -> None:
        said = {"chain": ["planner", "reader"], "scopes": ["memory:read"], "mode": "background"}
        assert text(self.ask(http, said)) == "alice: sea"
        agent = statements(tool="memory.recall")[-1]["agent"]
        assert (agent["mode"], agent["chain"]) == ("background", ["planner", "reader"])

    def test_an_agent_that_was_handed_less_is_refused(self, http: httpx2.Client) -> None:
        refused = self.ask(http, {"chain": ["planner"], "scopes": []})
        assert (refused.status_code, refused.json()["error"]["data"]["reason"]) == (403, "delegation_exceeded")

    @pytest.mark.parametrize("said", [
        "planner", [], {"chain": "planner"}, {"chain": [1]}, {"chain": ["x"] * 9}, {"chain": ["x" * 129]},
        {"chain": ["a\nb"]}, {"chain": ["ä"]}, {"chain": ["a "]}, {"chain": [""]}, {"chain": ["a"], "mode": "root"},
        {"chain": ["a"], "mode": ["api"]}, {"scopes": "memory:read"}, {"scopes": ["a b"]}, {"scopes": ["x"] * 101},
        {"chian": ["a"]},
    ])  # fmt: skip
    def test_a_wrong_one_is_an_invalid_parameter(self, http: httpx2.Client, said: Any) -> None:
        before = count()
        message = call("memory.recall", meta={"muniment/agent": said}, query="sea")
        refused = http.post("/mcp", json=message, headers=bearer())
        assert refused.status_code == 400 and refused.json()["error"]["code"] == -32602
        assert count() == before


def test_what_is_recorded_of_a_request(http: httpx2.Client, guard: Muniment) -> None:
    asked: list[Any] = []
    prepare = guard.aprepare

    async def kept(tool: str, given: Any, arguments: Any = None) -> Any:
        asked.append(dict(given.request))
        return await prepare(tool, given, arguments)

    guard.aprepare = kept  # type: ignore[method-assign]
    try:
        more = {
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "User-Agent": "Claude/1.0",
            "X-Forwarded-For": "198.51.100.7",
        }  # fmt: skip
        headers = bearer() | more
        session = opened(http, headers)
        assert text(http.post("/mcp", json=call("memory.recall", "id-7", query="x"), headers=headers | session))
        http.post("/mcp", json=call("memory.recall", 7, query="x"), headers=headers | session | {"X-Request-ID": "r-1"})
    finally:
        del guard.aprepare  # type: ignore[attr-defined]
    first, second = asked
    assert first == {
        "id": "id-7", "session_id": session["Mcp-Session-Id"], "ip": "127.0.0.1", "user_agent": "Claude/1.0",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    }  # fmt: skip
    assert second["id"] == "r-1"


def test_in_memory_and_stdio_a_call_has_the_token_that_the_program_says_or_none(guard: Muniment) -> None:
    server = MCPServer("inner", log_level="ERROR")
    server.add_tool(lambda: who(), name="memory.bare")
    guarded_app(server, guard)

    async def run(given: str | None) -> Any:
        if given is None:
            async with Client(server) as found:
                return await found.call_tool("memory.bare", {})
        with guard.request(given):
            async with Client(server, mode="legacy") as found:
                return await found.call_tool("memory.bare", {}, meta={"muniment/agent": {"chain": ["planner"]}})

    refused = asyncio.run(run(None))
    assert refused.is_error and "token" in refused.content[0].text.lower()
    assert refused.meta["mcp/www_authenticate"][0].startswith("Bearer")
    assert asyncio.run(run(token())).content[0].text == "alice"
    assert statements(tool="memory.bare")[-1]["agent"]["chain"] == ["planner"]
