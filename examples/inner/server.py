"""Inner's server: three tools over MCP for Claude and ChatGPT, and the same three over REST for the iOS app."""

import os

from psycopg_pool import ConnectionPool

from examples.inner import rest
from examples.inner.memories import Memories, Memory
from muniment.adapters.mcp import GuardedServer

ABOUT = "Keeps what moved its user, and finds it again when it matters."
server = GuardedServer("inner", instructions=ABOUT, log_level="WARNING")
memories = Memories(ConnectionPool(os.environ["INNER_DATABASE_URL"], open=True), os.environ["INNER_ROOT_KEY"])


@server.tool("memory.capture", scopes="memory:write")
def capture(text: str, feeling: str = "") -> Memory:
    """Keep an emotionally significant experience, in the user's own words."""
    return memories.capture(text, feeling)


@server.tool("memory.recall", scopes="memory:read")
def recall(query: str, limit: int = 5) -> list[Memory]:
    """Find the experiences that fit what is talked about, the nearest first."""
    return memories.recall(query, limit)


@server.tool("memory.forget", scopes="memory:forget", access="destructive")
def forget(id: str) -> None:
    """Forget one experience, for ever."""
    memories.forget(id)


rest.add_routes(server, capture, recall, forget)
app = server.streamable_http_app()
