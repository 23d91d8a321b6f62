"""Calls within a `fastmcp` server: those of its clients, and those that it makes of its own tools.

The calls of clients are asked for by `muniment.adapters.mcp.Calls`, which can still answer with a challenge. From there
a call goes through the middleware of the server and of those that are mounted in it, and only then it is known which
function it reaches: one that is guarded takes what came of asking, any other is begun here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from hashlib import sha256
from typing import Any, Literal

from fastmcp import FastMCP
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.server.middleware.authorization import _requested_version
from fastmcp.server.providers.fastmcp_provider import FastMCPProviderTool
from fastmcp.tools.base import Tool as ServerTool
from fastmcp.tools.base import ToolResult
from fastmcp.utilities.versions import VersionSpec
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.context import CallNext as WireNext
from mcp.server.context import HandlerResult, ServerRequestContext
from mcp_types import CallToolRequestParams

from muniment.adapters.mcp import Calls
from muniment.calls import Decision, Prepared, incoming, receiving
from muniment.errors import Unavailable
from muniment.guard import Muniment
from muniment.tools import GUARDS, Tool

Context = MiddlewareContext[CallToolRequestParams]
Next = CallNext[CallToolRequestParams, ToolResult]
_asked: ContextVar[str | None] = ContextVar("muniment_asked", default=None)


class ClientCalls(Calls):
    """`Calls`, and what is reached behind it knows that the call was asked for, and whose it is: over HTTP the request
    says so, and what the server keeps for each user (results, above all) is kept apart in memory as well."""

    async def _called(
        self, ctx: ServerRequestContext[Any, Any], call_next: WireNext, name: str, prepared: Prepared | None
    ) -> HandlerResult:
        user = None if ctx.request is not None or prepared is None else user_of(incoming().token, prepared.result)
        reset = auth_context_var.set(user) if user else None
        try:
            with _asking(name):
                return await super()._called(ctx, call_next, name, prepared)
        finally:
            if reset is not None:
                auth_context_var.reset(reset)

    def _untaken(self, name: str, prepared: Prepared, ran: bool) -> None:
        """No function was reached: the server refused the arguments, or answered of what it keeps."""
        settle(self.guard, prepared, "ok" if ran else "error")


class First(Middleware):
    """Before all other middleware: a call that nobody asked for, since the server makes it itself
    (`Context.fastmcp.call_tool`, the `call_tool` of a search), is asked for as every other."""

    def __init__(self, guard: Muniment) -> None:
        self.guard = guard

    async def on_call_tool(self, context: Context, call_next: Next) -> ToolResult:
        """Serve one call. Raises what the decorator raises."""
        name = context.message.name
        if _asked.get() == name:
            return await call_next(context)
        given = incoming()
        prepared = await self.guard.aprepare(name, given, context.message.arguments)
        if isinstance(prepared.result, Decision):
            prepared.result.require()
        elif self.guard.fail_mode(name) != "open":
            raise prepared.result
        with receiving(replace(given, prepared=prepared)), _asking(name):
            status: Literal["ok", "error"] = "error"
            try:
                result = await call_next(context)
                status = "error" if result.is_error else "ok"
                return result
            finally:
                settle(self.guard, prepared, status)


class Last(Middleware):
    """Before the tool runs: a function that is not guarded (the decorator was forgotten, or is above the server's) runs
    as the caller, and its outcome is reported, all the same."""

    def __init__(self, guard: Muniment) -> None:
        self.guard = guard

    async def on_call_tool(self, context: Context, call_next: Next) -> ToolResult:
        """Run one call. Raises what the decorator raises."""
        name = context.message.name
        given = incoming()
        begun = _asked.get() == name and name not in self.guard.tools and given.prepared and given.prepared.used
        if begun or await self._guarded(context, name):
            with _asking(None):
                return await call_next(context)
        tool = self.guard.tools.get(name) or Tool(name, (), "write")
        call = await self.guard.abegin(tool, context.message.arguments or {})
        try:
            with call, _asking(None):
                result = await call_next(context)
                if result.is_error:
                    raise _FailedError(result)
        except _FailedError as failed:
            return failed.result
        return result

    async def _guarded(self, context: Context, name: str) -> bool:
        """Whether the function that a call reaches takes it, or asks for it, itself."""
        if name not in self.guard.tools or context.fastmcp_context is None:
            return False
        version = _requested_version(context.message.meta)
        tool = await reached(context.fastmcp_context.fastmcp, name, version)
        while tool is not None:
            if getattr(getattr(tool, "fn", None), GUARDS, None) == name:
                return True
            tool = getattr(tool, "parent_tool", None)
        return False


def settle(guard: Muniment, prepared: Prepared, status: Literal["ok", "error"]) -> None:
    """What came of a call that no function took, since a middleware answered it: without the platform it is written
    down as every other. Raises Unavailable where it cannot be."""
    tool = guard.tools.get(prepared.tool)
    if tool is None or prepared.used or status == "error" or not isinstance(prepared.result, Unavailable):
        guard.settle(prepared, status)
    else:
        with guard.begin(tool, {}):
            pass


class _FailedError(Exception):
    """A tool's result says that it failed."""

    def __init__(self, result: ToolResult) -> None:
        super().__init__()
        self.result = result


@contextmanager
def _asking(name: str | None) -> Iterator[None]:
    reset = _asked.set(name)
    try:
        yield
    finally:
        _asked.reset(reset)


async def reached(server: FastMCP[Any], name: str, version: VersionSpec | None) -> ServerTool | None:
    """The tool that a call of this name reaches, in a server or in one that is mounted in it."""
    tool = await server.get_tool(name, version)
    while isinstance(tool, FastMCPProviderTool) and tool._original_name:
        exact = VersionSpec(eq=tool.version) if tool.version else None
        tool = await tool._server.get_tool(tool._original_name, exact)
    return tool


def user_of(token: str | None, result: Decision | Unavailable) -> AuthenticatedUser | None:
    """Whose an allowed call is, as fastmcp asks for it."""
    if token is None or not isinstance(result, Decision) or result.caller is None:
        return None
    uid = result.caller.uid
    kept_by = sha256(token.encode("utf-8", "replace")).hexdigest()  # see mcp_http.become
    return AuthenticatedUser(AccessToken(token=kept_by, client_id=uid, subject=uid, scopes=list(result.effective)))
