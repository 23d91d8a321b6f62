"""The MCP Python SDK (`mcp` 2.x): every tool of a server is guarded, by its name, before the server sees the call.

`GuardedServer` is an `MCPServer` whose tools say their scopes; `guarded_app` is for a server that is there already.
Over HTTP a denial is a real 401 or 403 with the complete challenge (see `mcp_http`); elsewhere, and for ChatGPT, it is
a result with the challenge in `_meta`. `MunimentTokenVerifier` is for servers that have nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlsplit

from mcp.server.auth.provider import AccessToken
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from starlette.types import ASGIApp, Receive, Scope, Send

from muniment.adapters.asgi import KEY, MunimentMiddleware
from muniment.adapters.mcp_http import guard_endpoint, prepared_of
from muniment.adapters.mcp_messages import CALL, Bad, agent_of, joined
from muniment.background import logger
from muniment.calls import NOBODY, Decision, Incoming, Prepared, incoming, receiving
from muniment.errors import Denied, MunimentError, Throttled, Unavailable
from muniment.guard import Muniment
from muniment.introspection import aintrospect
from muniment.metadata import challenge
from muniment.redaction import redact
from muniment.tools import GUARDS, Access, FailMode, Resource, Tool, as_scopes

F = TypeVar("F", bound=Callable[..., Any])
META_CHALLENGE: Final = "mcp/www_authenticate"  # in a result's _meta: what ChatGPT opens its sign-in for


class GuardedServer(MCPServer[Any]):
    """An MCPServer behind a guard: `tool` takes `scopes`, and the app of `streamable_http_app` answers for them. More
    arguments are those of MCPServer; without `guard`, one is made of the environment (see `Muniment`)."""

    def __init__(self, name: str | None = None, *, guard: Muniment | None = None, **more: Any) -> None:
        super().__init__(name, **more)
        self.guard = guard or Muniment()
        self.middleware.append(Calls(self.guard, self))

    def tool(  # type: ignore[override]  # the same, and what the guard needs
        self,
        name: str | None = None,
        *,
        scopes: str | Sequence[str] = (),
        access: Access | None = None,
        fail: FailMode = "closed",
        resource: Callable[..., Resource | None] | None = None,
        assertion: str | None = None,
        **more: Any,
    ) -> Callable[[F], F]:
        """`MCPServer.tool` and `Muniment.tool` in one. Clients are told of the access as annotations, and of the scopes
        in `_meta` (`securitySchemes`)."""

        def decorate(function: F) -> F:
            guarded = self.guard.tool(
                name, scopes=scopes, access=access, fail=fail, resource=resource, assertion=assertion,
                description=more.get("description"),
            )(function)  # fmt: skip
            spec = self.guard.tools[name or function.__name__]
            more.setdefault("annotations", annotations_of(spec))
            schemes = {"securitySchemes": [{"type": "oauth2", "scopes": list(as_scopes(scopes))}]}
            more["meta"] = schemes | (more.get("meta") or {})
            self.add_tool(guarded, name=name, **more)
            return cast(F, guarded)

        return decorate

    def streamable_http_app(self, **options: Any) -> Any:
        """The guarded ASGI application. `options`: those of MCPServer, and of `guarded_app`."""
        return guarded_app(self, self.guard, **options)


def annotations_of(tool: Tool) -> ToolAnnotations:
    """What clients are told of a tool's access."""
    return ToolAnnotations(read_only_hint=tool.access == "read", destructive_hint=tool.access == "destructive")


def guarded_app(
    server: MCPServer[Any],
    guard: Muniment,
    *,
    streamable_http_path: str = "/mcp",
    middleware: Mapping[str, Any] | None = None,
    **options: Any,
) -> MunimentMiddleware:
    """The ASGI application of a server (streamable HTTP) with the guard in front: each call of a tool is verified, all
    else needs a token that is good here, the metadata of RFC 9728 is served, tools are declared at start with the
    server's own schemas. `middleware`: arguments of `MunimentMiddleware`; `options`: those of `streamable_http_app`,
    whose `transport_security` takes the host of the guard's `resource` in."""
    if not any(isinstance(one, Calls) for one in server.middleware):
        server.middleware.append(Calls(guard, server))
    if guard.resource and not options.keys() & {"transport_security", "host"}:
        options["transport_security"] = hosts(guard.resource)
    app = MCPServer.streamable_http_app(server, streamable_http_path=streamable_http_path, **options)
    guard_endpoint(app.routes, streamable_http_path, guard)
    return MunimentMiddleware(Described(app, server, guard), guard, **(middleware or {}))


def hosts(resource: str) -> TransportSecuritySettings:
    """Against DNS rebinding: the Host and Origin headers that are served, which are those of the resource and of this
    machine."""
    url = urlsplit(resource)
    here = ["127.0.0.1", "localhost", "[::1]"]
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=[url.netloc, f"{url.hostname}:*", *here, *(f"{host}:*" for host in here)],
        allowed_origins=[f"{url.scheme}://{url.netloc}", *(f"http://{host}:*" for host in here)],
    )


class Described:
    """Takes the server's schemas and descriptions into what is declared of its tools, before they are declared."""

    def __init__(self, app: ASGIApp, server: MCPServer[Any], guard: Muniment) -> None:
        self.app, self.server, self.guard = app, server, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] == "lifespan":
            for listed in await self.server.list_tools():
                if (spec := self.guard.tools.get(listed.name)) is not None:
                    spec.describe(listed.description, listed.input_schema)
        await self.app(scope, receive, send)


class Failed(Exception):
    """A tool's result says that it failed; the result has been kept."""


class Calls:
    """Within the server (`middleware` of mcp): a message is served with the token of its own request, whichever task it
    runs in, and a denial that HTTP did not tell is a result."""

    def __init__(self, guard: Muniment, server: MCPServer[Any] | None = None) -> None:
        self.guard, self._server = guard, server

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Serve one message."""
        scope: Mapping[str, Any] | None = ctx.request.scope if ctx.request is not None else None
        # Without a request (stdio, in memory) the server runs where `guard.request(...)` may have been entered. With
        # one the context of its task may be that of another request, and is not looked at.
        given: Incoming = incoming() if scope is None else scope.get(KEY, NOBODY)
        params = ctx.params or {}
        if ctx.method != CALL or not isinstance(params.get("name"), str):
            with receiving(given):
                return await call_next(ctx)
        try:
            given = await self._asked(given, scope or {}, ctx.request_id, params)
        except (MunimentError, Bad) as error:
            return self._refusal(error)
        with receiving(given):
            return await self._called(ctx, call_next, params["name"], given.prepared)

    async def _asked(self, given: Incoming, scope: Mapping[str, Any], id: Any, params: Mapping[str, Any]) -> Incoming:
        """What came in with this very call, and what came of asking for it. Raises what it is refused with."""
        name, arguments = params["name"], params.get("arguments")
        prepared = prepared_of(scope, id, name)
        if prepared is None:  # by another way than the guarded endpoint
            given = replace(given, agent=joined(given.agent, agent_of(params.get("_meta"))))
            prepared = await self.guard.aprepare(name, given, arguments if isinstance(arguments, dict) else {})
        if isinstance(prepared.result, Decision):
            prepared.result.require()
        elif self.guard.fail_mode(name) != "open":
            raise prepared.result
        return replace(given, prepared=prepared)

    async def _called(
        self, ctx: ServerRequestContext[Any, Any], call_next: CallNext, name: str, prepared: Prepared | None
    ) -> HandlerResult:
        """Run the tool, within its guarded function or, where its decorator was forgotten or stands above the server's,
        as the caller all the same."""
        result: HandlerResult = None
        ran = False
        try:
            if self._is_guarded(name):
                result = await call_next(ctx)
                ran = not failed(result)
                return result
            with await self.guard.abegin(self.guard.tools.get(name) or Tool(name, (), "write"), {}):
                result = await call_next(ctx)
                if failed(result):
                    raise Failed
        except Failed:
            pass
        finally:
            if prepared is not None and not prepared.used:
                self._untaken(name, prepared, ran)
        return result

    def _is_guarded(self, name: str) -> bool:
        """Whether the function that the server has under this name takes the call itself."""
        manager = getattr(self._server, "_tool_manager", None)  # there is no public way to a tool's function
        if manager is None:
            return name in self.guard.tools
        return getattr(getattr(manager.get_tool(name), "fn", None), GUARDS, None) == name

    def _untaken(self, name: str, prepared: Prepared, ran: bool) -> None:
        """The guarded function was not reached: the server refused the arguments, or answered by itself."""
        self.guard.settle(prepared, "ok" if ran else "error")

    def _refusal(self, error: MunimentError | Bad) -> CallToolResult:
        """What a model is told: one sentence, and for its client the challenge."""
        meta = None
        if isinstance(error, Denied) and error.www_authenticate:
            meta = {META_CHALLENGE: [challenge(error.www_authenticate, self.guard)]}
        words = str(error)
        if not isinstance(error, Denied | Unavailable | Throttled | Bad):
            logger.error("a call was refused by a fault of the backend: %s", redact(words))
            words = "The tool cannot be called: its server is not set up as it must be."
        return CallToolResult(content=[TextContent(type="text", text=words)], is_error=True, _meta=meta)


def failed(result: HandlerResult) -> bool:
    """Whether a result says that the tool failed."""
    return bool(result.get("isError") if isinstance(result, dict) else getattr(result, "is_error", False))


class MunimentTokenVerifier:
    """`token_verifier` of an `MCPServer` (mcp's `TokenVerifier`): tokens that are good here, with the scopes that
    grants cover. It decides nothing of a tool, and nothing it lets through is a call on record. In an outage it raises
    Unavailable: no token is refused that may be good."""

    def __init__(self, guard: Muniment) -> None:
        self.guard = guard

    async def verify_token(self, token: str) -> AccessToken | None:
        """What a token is good for (RFC 7662)."""
        shown = await aintrospect(self.guard, token)
        if shown is None:
            return None
        return AccessToken(
            token=token, client_id=shown.client_id, scopes=list(shown.scopes), expires_at=shown.expires_at,
            resource=shown.audience, subject=shown.sub, claims=dict(shown.answer),
        )  # fmt: skip
