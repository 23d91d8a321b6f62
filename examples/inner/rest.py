"""The same three tools over REST, for the iOS app."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from mcp.server.mcpserver import MCPServer
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from examples.inner.memories import NotFound

MAX_BODY = 64 * 1024
Tool = Callable[..., Any]


def problem(status: int, title: str) -> Response:
    """RFC 9457."""
    return JSONResponse({"title": title, "status": status}, status, media_type="application/problem+json")


def add_routes(server: MCPServer[Any], capture: Tool, recall: Tool, forget: Tool) -> None:
    """POST and GET /memories, DELETE /memories/{id}, beside a server's MCP endpoint."""

    @server.custom_route("/memories", methods=["GET", "POST"])
    async def collection(request: Request) -> Response:
        try:
            if request.method == "GET":
                found = await run_in_threadpool(recall, request.query_params.get("query", ""))
                return JSONResponse({"memories": [asdict(memory) for memory in found]})
            body = await request.body()
            told = json.loads(body) if len(body) <= MAX_BODY else None
            if not isinstance(told, dict) or not isinstance(told.get("text"), str):
                return problem(400, "The body is a JSON object with a text")
            kept = await run_in_threadpool(capture, told["text"], str(told.get("feeling", "")))
        except ValueError as error:
            return problem(400, str(error))
        return JSONResponse(asdict(kept), 201)

    @server.custom_route("/memories/{id}", methods=["DELETE"])
    async def item(request: Request) -> Response:
        try:
            await run_in_threadpool(forget, request.path_params["id"])
        except NotFound as error:
            return problem(404, str(error))
        return Response(status_code=204)
