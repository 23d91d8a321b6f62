"""Which calls a fastmcp server asks for, whatever way they come to its tools: from clients over HTTP, stdio and in
memory, from its own tools, through servers that are mounted in it, while the platform is there and while it is away."""

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from django.db import connections
from django.utils import timezone
from fastmcp import Client, Context, FastMCP
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport
from fastmcp.server.middleware.caching import ResponseCachingMiddleware
from fastmcp.server.transforms.search import RegexSearchTransform

from audit.models import Record
from governance import process
from muniment import Muniment, current_caller
from muniment.adapters.fastmcp import guard_server, guarded_app
from muniment.errors import Denied
from tests import world as worlds
from tests.live import closed_port
from tests.reset import reset
from tests.sdk.outcomes import last_outcome
from tests.served import asgi, platform
from tests.world import World, token

HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
TOOLS = ("memory.above", "memory.bare", "memory.asks", "memory.fails", "notes_read", "notes_above", "call_tool")


def who() -> str:
    caller = current_caller()
    return caller.sub if caller else "nobody"


@pytest.fixture(scope="module")
def url(migrated: None) -> Iterator[str]:
    with platform() as found:
        yield found


@pytest.fixture(scope="module")
def world(url: str) -> Iterator[World]:
    reset()
    made = worlds.build()
    for name in TOOLS:
        made.backend.tools.create(name=name, access="read", status="active").scopes.add(made.grant.scopes.get())
    yield made
    process.stop_recorder()


@pytest.fixture
def guard(world: World, url: str) -> Iterator[Muniment]:
    with Muniment(url, world.key, resource="https://inner.example/mcp") as made:
        yield made


def make(guard: Muniment, **more: Any) -> FastMCP[Any]:
    """Tools with the guard below the server's decorator, above it, and without it."""
    server: FastMCP[Any] = FastMCP("inner", **more)

    @server.tool(name="memory.recall")
    @guard.tool("memory.recall", scopes="memory:read")
    def recall() -> str:
        return who()

    @guard.tool("memory.above", scopes="memory:read")
    @server.tool(name="memory.above")
    def above() -> str:
        return who()

    @server.tool(name="memory.capture")
    async def capture() -> str:
        raise AssertionError("nobody is granted its scope")

    server.tool(who, name="memory.bare")

    @server.tool(name="memory.fails")
    def fails() -> str:
        raise ValueError("of the tool")

    @server.tool(name="memory.asks")
    @guard.tool("memory.asks", scopes="memory:read")
    async def asks(tool: str, context: Context) -> str:
        result = await context.fastmcp.call_tool(tool, {})
        return f"{who()} asks: {result.content[0].text}"  # type: ignore[union-attr]

    return server


def records(kind: str = "decision") -> list[dict[str, Any]]:
    return [json.loads(bytes(row.statement)) for row in Record.objects.filter(type=kind).order_by("index")]


def decided(since: int = 0) -> list[tuple[str, str]]:
    return [(one["tool"], one["reason"]) for one in records()[since:]]


def ask(server: FastMCP[Any], guard: Muniment, tool: str, given: str | None, /, **arguments: Any) -> Any:
    """The result of one call in memory."""

    async def run() -> Any:
        with guard.request(given):
            async with Client(server) as client:
                return await client.call_tool_mcp(tool, arguments)

    guard_server(server, guard)
    return asyncio.run(run())


@contextmanager
def revoked(world: World) -> Iterator[None]:
    """While the grant is."""
    grants = type(world.grant).objects.filter(pk=world.grant.pk)

    def update(moment: datetime | None) -> None:
        with ThreadPoolExecutor(1) as pool:  # no event loop may be running where the database is asked
            pool.submit(grants.update, revoked_at=moment).result()
            pool.submit(connections.close_all).result()

    update(timezone.now())
    try:
        yield
    finally:
        update(None)


@pytest.mark.parametrize("tool", ["memory.recall", "memory.above", "memory.bare"])
def test_the_guards_decorator_is_below_the_servers_or_above_it_or_forgotten(guard: Muniment, tool: str) -> None:
    before = len(records())
    assert ask(make(guard), guard, tool, token()).content[0].text == "alice"
    assert decided(before) == [(tool, "granted")] and last_outcome(tool) == "ok"


@pytest.mark.parametrize("tool", ["memory.recall", "memory.above", "memory.bare", "memory.capture", "memory.unknown"])
@pytest.mark.parametrize("given", [None, "x", token(exp=1_700_000_000, iat=1_699_999_000), token(scope="other")])
def test_no_tool_runs_for_a_token_that_does_not_allow_it(guard: Muniment, tool: str, given: str | None) -> None:
    before = len(records())
    refused = ask(make(guard), guard, tool, given)
    assert refused.is_error and "alice" not in refused.content[0].text
    assert len(records()) == before + 1 and records()[-1]["decision"] == "deny"


def test_a_function_without_guard_that_fails_is_reported_so(guard: Muniment) -> None:
    assert ask(make(guard), guard, "memory.fails", token()).is_error
    assert last_outcome("memory.fails") == "error"


class TestAToolOfTheServerItself:
    """A tool that is called by another tool is asked for as if the client had called it."""

    @pytest.mark.parametrize("tool", ["memory.recall", "memory.above", "memory.bare"])
    def test_is_asked_for_once_and_runs_as_the_same_user(self, guard: Muniment, tool: str) -> None:
        before = len(records())
        assert ask(make(guard), guard, "memory.asks", token(), tool=tool).content[0].text == "alice asks: alice"
        assert decided(before) == [("memory.asks", "granted"), (tool, "granted")]
        assert last_outcome(tool) == "ok"

    def test_is_refused_where_the_user_may_not_call_it(self, guard: Muniment) -> None:
        before = len(records())
        refused = ask(make(guard), guard, "memory.asks", token(), tool="memory.capture")
        assert refused.is_error and decided(before)[-1][0] == "memory.capture"
        assert records()[-1]["decision"] == "deny" and last_outcome("memory.asks") == "error"

    def test_is_asked_for_though_its_result_is_kept(self, guard: Muniment, world: World) -> None:
        server = make(guard, middleware=[ResponseCachingMiddleware()])
        guard_server(server, guard)
        before = len(records())

        def called() -> str:
            async def run() -> Any:
                with guard.request(token(sub="carol")):
                    return await server.call_tool("memory.bare", {})

            return str(asyncio.run(run()).content[0].text)

        assert [called(), called()] == ["carol", "carol"]
        assert decided(before) == [("memory.bare", "granted")] * 2 and last_outcome("memory.bare") == "ok"
        with revoked(world), pytest.raises(Denied):
            called()

    def test_is_asked_for_when_a_search_calls_it(self, guard: Muniment) -> None:
        server = make(guard, transforms=[RegexSearchTransform()])
        before = len(records())
        found = ask(server, guard, "call_tool", token(), name="memory.bare", arguments={})
        assert found.content[0].text == "alice"
        assert decided(before) == [("call_tool", "granted"), ("memory.bare", "granted")]
        assert ask(server, guard, "call_tool", token(), name="memory.capture", arguments={}).is_error
        assert ask(server, guard, "call_tool", None, name="memory.bare", arguments={}).is_error


def test_in_memory_too_a_kept_result_is_its_users_alone(guard: Muniment) -> None:
    server = make(guard, middleware=[ResponseCachingMiddleware()])
    for sub in ("alice", "bob", "alice"):
        assert ask(server, guard, "memory.recall", token(sub=sub)).content[0].text == sub


@pytest.mark.parametrize("tool", ["notes_read", "notes_above"])
def test_a_tool_of_a_mounted_server_has_the_name_that_clients_call(guard: Muniment, tool: str) -> None:
    notes: FastMCP[Any] = FastMCP("notes")
    notes.tool(guard.tool("notes_read", scopes="memory:read")(who), name="read")
    guard.tool("notes_above", scopes="memory:read")(notes.tool(who, name="above"))
    server: FastMCP[Any] = FastMCP("inner")
    server.mount(notes, namespace="notes")
    before = len(records())
    assert ask(server, guard, tool, token()).content[0].text == "alice"
    assert decided(before) == [(tool, "granted")] and last_outcome(tool) == "ok"
    assert ask(server, guard, tool, None).is_error


def test_a_version_without_the_guard_runs_as_the_user_too(guard: Muniment) -> None:
    server: FastMCP[Any] = FastMCP("inner")
    server.tool(lambda: f"old: {who()}", name="memory.recall", version="1")
    server.tool(guard.tool("memory.recall", scopes="memory:read")(who), name="memory.recall", version="2")
    guard_server(server, guard)

    async def run() -> list[str]:
        with guard.request(token()):
            async with Client(server) as client:
                asked = [await client.call_tool("memory.recall", {}, version=version) for version in ("1", "2")]
        return [answer.content[0].text for answer in asked]  # type: ignore[union-attr]

    before = len(records())
    assert asyncio.run(run()) == ["old: alice", "alice"]
    assert decided(before) == [("memory.recall", "granted")] * 2


def test_access_that_ended_ends_with_the_next_call_of_a_session(guard: Muniment, world: World) -> None:
    async def run(server: str) -> tuple[str, str]:
        headers = {"Authorization": f"Bearer {token()}"}
        async with Client(StreamableHttpTransport(server, headers=headers)) as client:
            first = str((await client.call_tool("memory.recall", {})).data)
            with revoked(world), pytest.raises(Exception) as refused:  # whichever its client has for a 403
                await client.call_tool("memory.recall", {})
        return first, str(refused.value)

    with asgi(guarded_app(make(guard), guard), lifespan="on") as found:
        first, refused = asyncio.run(run(f"{found}/mcp"))
    assert first == "alice" and "grant" in refused and "Traceback" not in refused


class TestWithoutThePlatform:
    """It is away from the start, and the server serves all the same."""

    @pytest.fixture(scope="class")
    @classmethod
    def away(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx2.Client, Path]]:
        spool = tmp_path_factory.mktemp("away") / "spool"
        with closed_port() as port:
            yield from cls.served(Muniment(f"http://127.0.0.1:{port}", "mk_x", spool=spool), spool)

    @staticmethod
    def served(guard: Muniment, spool: Path) -> Iterator[tuple[httpx2.Client, Path]]:
        guard.aclose = partial(guard.aclose, 0.1)  # type: ignore[method-assign]  # there is nobody to report to
        server = make(guard, middleware=[ResponseCachingMiddleware()])
        server.tool(guard.tool("memory.open", scopes="memory:read", fail="open")(who), name="memory.open")
        guard.tool("memory.open.above", scopes="memory:read", fail="open")(server.tool(who, name="memory.open.above"))
        app = guarded_app(server, guard, json_response=True, stateless_http=True)
        headers = HEADERS | {"Authorization": f"Bearer {token()}"}
        with asgi(app, lifespan="on") as found, httpx2.Client(base_url=found, headers=headers, timeout=60) as http:
            yield http, spool

    def call(self, http: httpx2.Client, tool: str) -> httpx2.Response:
        params = {"name": tool, "arguments": {}}
        return http.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})

    @pytest.mark.parametrize("tool", ["memory.recall", "memory.above", "memory.bare"])
    def test_a_tool_that_fails_closed_is_a_503(self, away: tuple[httpx2.Client, Path], tool: str) -> None:
        refused = self.call(away[0], tool)
        assert refused.status_code == 503 and int(refused.headers["Retry-After"]) > 0

    @pytest.mark.parametrize("tool", ["memory.open", "memory.open.above"])
    def test_a_tool_that_fails_open_runs_as_nobody_and_is_written_down(
        self, away: tuple[httpx2.Client, Path], tool: str
    ) -> None:
        http, spool = away
        written = [0]
        for _ in range(3):  # from the second on, the result is one that the server kept
            assert self.call(http, tool).json()["result"]["content"][0]["text"] == "nobody"
            kept = b"".join(path.read_bytes() for path in spool.rglob("*") if path.is_file())
            written.append(kept.count(f'"{tool}"'.encode()))
        assert written == [written[1] * calls for calls in range(4)] and written[1] > 0


SERVER = """
import os
from fastmcp import FastMCP
from muniment import Muniment, current_caller
from muniment.adapters.fastmcp import guard_server
guard = Muniment()
server = FastMCP("inner")
@server.tool(name="memory.recall")
@guard.tool("memory.recall", scopes="memory:read")
def recall() -> str:
    return current_caller().sub
@server.tool(name="memory.capture")
def capture() -> str:
    return "written"
guard_server(server, guard)
with guard, guard.request(os.environ.get("TOKEN")):
    server.run("stdio", show_banner=False)
"""


def test_over_stdio_the_program_says_whose_token_it_is(world: World, url: str) -> None:
    more = {
        "MUNIMENT_URL": url,
        "MUNIMENT_KEY": world.key,
        "TOKEN": token(scope="memory:read"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }

    async def run() -> list[Any]:
        transport = StdioTransport(sys.executable, ["-c", SERVER], env=dict(os.environ) | more, keep_alive=False)
        async with Client(transport) as client:
            return [await client.call_tool_mcp(tool, {}) for tool in ("memory.recall", "memory.capture")]

    allowed, refused = asyncio.run(run())
    assert allowed.content[0].text == "alice" and last_outcome("memory.recall") == "ok"
    assert refused.is_error and 'error="insufficient_scope"' in refused.meta["mcp/www_authenticate"][0]
