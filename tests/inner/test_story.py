"""The case, end to end: Claude and ChatGPT over MCP with the real client, the iOS app over REST, one guard."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.inner.surfaces import App, mcp_client, token
from tests.inner.house import House, house


@pytest.fixture
def inner(db: None, superuser_url: str, tmp_path: Path) -> Iterator[House]:
    with house(superuser_url, tmp_path) as found:
        yield found


def test_first(inner: House) -> None:
    app = App(inner.url, None)
    r = app.recall("x")
    print(r.status_code, r.headers, r.text)
    app = App(inner.url, token(inner.issuer, "alice", "inner-ios", "memory:write memory:forget"))
    r = app.capture("We laughed all night at the wedding", "joy")
    print(r.status_code, r.text)
    r = app.recall("happiness")
    print(r.status_code, r.text)

    async def claude() -> None:
        async with mcp_client(inner.mcp, "claude-app", "alice") as client:
            print(await client.list_tools())
            print(await client.call_tool("memory.recall", {"query": "happiness"}))
            print(await client.call_tool("memory.capture", {"text": "I cried", "feeling": "grief"}))

    asyncio.run(claude())
    assert 0
