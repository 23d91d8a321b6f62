"""The platform goes, and comes back, while an MCP server has users: what ran without it is on record afterwards."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from audit.models import Record
from governance import process
from muniment import Muniment, current_caller
from muniment.adapters.mcp import GuardedServer
from tests import world as worlds
from tests.reset import reset
from tests.served import asgi, platform
from tests.world import World, token

HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
SECONDS = 60


@pytest.fixture
def world(migrated: None) -> Iterator[World]:
    reset()
    yield worlds.build()
    process.stop_recorder()


def call(tool: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": {}}}


def opened(http: httpx2.Client) -> dict[str, str]:
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    response = http.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about})
    assert response.status_code == 200
    session = {"Mcp-Session-Id": response.headers["mcp-session-id"]}
    http.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=session)
    return session


def ungoverned() -> list[str]:
    rows = Record.objects.filter(type="ungoverned").order_by("index")
    return [json.loads(bytes(row.statement))["tool"] for row in rows]


def test_an_open_tool_goes_on_and_is_reported_and_sessions_of_nobody_end(
    world: World, closed_port: int, tmp_path: Path
) -> None:
    world.backend.tools.create(name="memory.prompts", access="read", status="active").scopes.add(
        world.grant.scopes.get()
    )
    guard = Muniment(f"http://127.0.0.1:{closed_port}", world.key, spool=tmp_path / "spool", timeout=30)
    server = GuardedServer("inner", guard=guard, log_level="ERROR")

    @server.tool("memory.prompts", scopes="memory:read", fail="open")
    def prompts() -> str:
        caller = current_caller()
        return caller.sub if caller else "nobody"

    def text(response: httpx2.Response) -> str:
        assert response.status_code == 200, response.text
        return str(response.json()["result"]["content"][0]["text"])

    app = server.streamable_http_app(json_response=True)
    headers = HEADERS | {"Authorization": f"Bearer {token()}"}
    with (
        asgi(app, lifespan="on") as url,
        httpx2.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as http,
    ):
        with platform(closed_port):
            mine = opened(http)
            assert text(http.post("/mcp", json=call("memory.prompts"), headers=mine)) == "alice"
        # Its user is known, and goes on in the same session; a new session is nobody's.
        assert text(http.post("/mcp", json=call("memory.prompts"), headers=mine)) == "nobody"
        stranger = {"Authorization": f"Bearer {token(sub='bob')}"}
        assert http.post("/mcp", json=call("memory.prompts"), headers=mine | stranger).status_code == 404
        http.headers["Authorization"] = stranger["Authorization"]
        nobodys = opened(http)
        assert text(http.post("/mcp", json=call("memory.prompts"), headers=nobodys)) == "nobody"
        with platform(closed_port):
            deadline = time.monotonic() + SECONDS
            while (status := http.post("/mcp", json=call("memory.prompts"), headers=nobodys).status_code) == 200:
                assert time.monotonic() < deadline  # the breaker may be open for a moment
                time.sleep(0.1)
            assert status == 404
            assert text(http.post("/mcp", json=call("memory.prompts"), headers=opened(http))) == "bob"
            while len(ungoverned()) < 2:
                assert time.monotonic() < deadline, ungoverned()
                time.sleep(0.05)
            assert guard.flush(SECONDS)
    assert set(ungoverned()) == {"memory.prompts"}
