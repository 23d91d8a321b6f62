"""The same three tools over REST, for the iOS app."""

import json
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from examples.inner.memories import NotFound, as_json

MAX_BODY = 64 * 1024
Tool = Callable[..., Any]


def problem(status: int, title: str) -> Response:
    """RFC 9457."""
    return JSONResponse({"title": title, "status": status}, status, media_type="application/problem+json")


def routes(capture: Tool, recall: Tool, forget: Tool) -> list[Route]:
    """POST and GET /memories, DELETE /memories/{id}."""

    async def collection(request: Request) -> Response:
        try:
            if request.method == "GET":
                found = await run_in_threadpool(recall, request.query_params.get("query", ""))
                return JSONResponse({"memories": [as_json(memory) for memory in found]})
            body = await request.body()
            told = json.loads(body) if len(body) <= MAX_BODY else None
            if not isinstance(told, dict) or not isinstance(told.get("text"), str):
                return problem(400, "The body is a JSON object with a text")
            return JSONResponse(
                as_json(await run_in_threadpool(capture, told["text"], str(told.get("feeling", "")))), 201
            )
        except ValueError as error:
            return problem(400, str(error))

    async def item(request: Request) -> Response:
        try:
            await run_in_threadpool(forget, request.path_params["id"])
        except NotFound as error:
            return problem(404, str(error))
        return Response(status_code=204)

    return [
        Route("/memories", collection, methods=["GET", "POST"]),
        Route("/memories/{id}", item, methods=["DELETE"]),
    ]
