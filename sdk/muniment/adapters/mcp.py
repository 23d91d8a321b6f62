"""The MCP Python SDK (`mcp` 2.x): every tool of a server is guarded, by its name, before the server sees the call.

`GuardedServer` is an `MCPServer` whose tools say their scopes; `guarded_app` is for a server that is there already.
Over HTTP a denial is a real 401 or 403 with the complete challenge, which is what makes clients sign in, or ask for
more scopes (MCP authorization, RFC 9728); elsewhere, and for ChatGPT, it is a result with the challenge in `_meta`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import MCPServer
from mcp.shared.inbound import MCP_METHOD_HEADER, MCP_NAME_HEADER, decode_header_value
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muniment.adapters.asgi import KEY, MunimentMiddleware, first, header, respond
from muniment.adapters.http import Answer
from muniment.calls import NOBODY, Agent, Decision, Incoming, Prepared, receiving, request_info
from muniment.errors import Denied, Throttled, Unavailable
from muniment.guard import Muniment
from muniment.metadata import challenge
from muniment.tools import Access, FailMode, Resource, Tool, as_scopes

F = TypeVar("F", bound=Callable[..., Any])
CALL = "tools/call"
PREPARED = "muniment.calls"  # in the ASGI scope: what came of each call of the body, by its JSON-RPC id
META_CHALLENGE = "mcp/www_authenticate"  # in a result's _meta: what ChatGPT opens its sign-in for
META_AGENT = "muniment/agent"  # in a call's _meta: the agents that it went through
CHATGPT = "openai-mcp"  # its User-Agent
MAX_BODY = 4 << 20  # bytes, as mcp has it
MAX_AGENTS, MAX_NAME = 8, 128


class GuardedServer(MCPServer[Any]):
    """An MCPServer behind a guard: `tool` takes `scopes`, and the app of `streamable_http_app` answers for them. More
    arguments are those of MCPServer; without `guard`, one is made of the environment (see `Muniment`)."""

    def __init__(self, name: str | None = None, *, guard: Muniment | None = None, **more: Any) -> None:
        super().__init__(name, **more)
        self.guard = guard or Muniment()
        self.middleware.append(Calls(self.guard))

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
    """The ASGI application of a server (streamable HTTP) with the guard in front: each call of a tool is verified, each
    request without a token is answered with the challenge, the metadata of RFC 9728 is served, tools are declared at
    start with the server's own schemas. `middleware`: arguments of `MunimentMiddleware`."""
    if not any(isinstance(one, Calls) for one in server.middleware):
        server.middleware.append(Calls(guard))
    app = MCPServer.streamable_http_app(server, streamable_http_path=streamable_http_path, **options)
    return MunimentMiddleware(Requests(app, guard, server, streamable_http_path), guard, **(middleware or {}))


@dataclass(frozen=True)
class Called:
    """One `tools/call` of a body."""

    id: Any
    tool: str
    arguments: dict[str, Any]
    agent: Agent


class Bad(Exception):
    """A body that is not to be passed on; the text says what is wrong with it."""


class Requests:
    """In front of the server, behind `MunimentMiddleware`: asks the platform for the calls that a body makes, while the
    answer can still be a 401 or a 403."""

    def __init__(self, app: ASGIApp, guard: Muniment, server: MCPServer[Any], path: str) -> None:
        self.app, self.guard, self.server, self.path = app, guard, server, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] == "lifespan":
            await describe(self.server, self.guard)
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path") or "") != self.path:
            await self.app(scope, receive, send)
            return
        given: Incoming = scope.get(KEY, NOBODY)
        if scope["method"] == "POST":
            try:
                body = await whole(receive)
                calls = calls_of(body)
                agree(scope, calls)
            except Bad as error:
                await respond(bad_request(str(error)), send)
                return
            scope[PREPARED] = await self._ask(scope, given, calls)
            receive = again(body, receive)
        if given.token is None and not scope.get(PREPARED):
            # Whatever the method: clients begin to sign in when they are told so. It is no call, and not on record.
            await respond(anonymous(self.guard), send)
            return
        await self.app(scope, receive, send)

    async def _ask(self, scope: Scope, given: Incoming, calls: Sequence[Called]) -> dict[Any, Prepared]:
        """What comes of each call. Raises what the first of them is refused with, where HTTP can say it."""
        in_result = CHATGPT in (first(header(scope, b"user-agent")) or "")
        found = {}
        for call in calls:
            prepared = await self.guard.aprepare(call.tool, told(given, scope, call), call.arguments)
            if isinstance(prepared.result, Unavailable):
                if self.guard.fail_mode(call.tool) != "open":
                    raise prepared.result
            elif not (in_result and prepared.result.remedy == "request_scope"):
                prepared.result.require()
            found[call.id] = prepared
        return found


def anonymous(guard: Muniment) -> Answer:
    """The answer to a request without a token: 401, with the way to the metadata, and no error code, since nothing was
    tried (RFC 6750 section 3). Its scopes are those of the tools that only read: enough to begin with, and clients ask
    for more when a tool needs it (MCP authorization, scope selection and step-up)."""
    scopes = sorted({scope for tool in list(guard.tools.values()) if tool.access == "read" for scope in tool.scopes})
    given = f'Bearer scope="{" ".join(scopes)}"' if scopes else None
    headers = {"WWW-Authenticate": challenge(given, guard), "Content-Type": "application/problem+json"}
    body = {"type": "about:blank", "title": "This server needs an access token.", "status": 401}
    return Answer(401, headers, json.dumps(body).encode())


async def whole(receive: Receive) -> bytes:
    """The body of a request. Raises Bad for one that is too long or broken off."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Bad("The body broke off.")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise Bad("The body is too long.")
        if not message.get("more_body"):
            return b"".join(parts)


def again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that brings the body once more, then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def calls_of(body: bytes) -> list[Called]:
    """The calls of tools in a JSON-RPC message, or in a batch of them. Raises Bad for what the server might read in
    another way: names that occur twice, or a call without a name."""
    try:
        found = json.loads(body, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise Bad("The body is not JSON, or has a name twice.") from None
    messages = found if isinstance(found, list) else [found]
    return [call_of(one) for one in messages if isinstance(one, dict) and one.get("method") == CALL]


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names occur once (RFC 8259 section 4 leaves open what more of them mean)."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError
    return made


def call_of(message: dict[str, Any]) -> Called:
    """One call. Raises Bad."""
    params = message.get("params")
    name = params.get("name") if isinstance(params, dict) else None
    if not isinstance(params, dict) or not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise Bad("A tools/call has a name of 1 to 128 characters.")
    arguments, identifier = params.get("arguments") or {}, message.get("id")
    if not isinstance(arguments, dict) or isinstance(identifier, bool) or not isinstance(identifier, str | int):
        raise Bad("A tools/call has an id, and arguments that are an object.")
    return Called(identifier, name, arguments, agent_of(params.get("_meta")))


def agent_of(meta: Any) -> Agent:
    """The agents that a call's `_meta` names: claims of the client, which only narrow. Raises Bad."""
    said = meta.get(META_AGENT) if isinstance(meta, dict) else None
    if said is None:
        return Agent()
    chain, scopes = (said.get("chain", []), said.get("scopes")) if isinstance(said, dict) else (None, None)
    mode = said.get("mode", "subagent") if isinstance(said, dict) else None
    if not (names(chain, MAX_AGENTS) and (scopes is None or names(scopes, 100))) or mode not in (
        "interactive", "subagent", "background", "api",
    ):  # fmt: skip
        raise Bad(f"_meta[{META_AGENT!r}] has a chain of names, and may have scopes and a mode.")
    return Agent(mode, tuple(chain or ()), None if scopes is None else tuple(scopes))


def names(value: Any, most: int) -> bool:
    """Whether it is a list of so many names at most, as the platform takes them."""
    return isinstance(value, list) and len(value) <= most and all(map(is_name, value))


def is_name(value: Any) -> bool:
    """Printable ASCII, with no space at an end."""
    plain = isinstance(value, str) and value.isascii() and value.isprintable() and value == value.strip()
    return plain and 0 < len(value) <= MAX_NAME


def agree(scope: Scope, calls: Sequence[Called]) -> None:
    """That `Mcp-Method` and `Mcp-Name`, where a request has them, are those of its body, whatever its protocol version:
    a proxy in front may have decided by them. Raises Bad."""
    methods, named = header(scope, MCP_METHOD_HEADER.encode()), header(scope, MCP_NAME_HEADER.encode())
    if len(methods) > 1 or len(named) > 1:
        raise Bad("Mcp-Method and Mcp-Name occur once.")
    if methods and calls and methods[0] != CALL:
        raise Bad("Mcp-Method is not that of the body.")
    if named and (calls or methods == [CALL]) and [decode_header_value(named[0])] != [call.tool for call in calls]:
        raise Bad("Mcp-Name is not the tool of the body.")


def told(given: Incoming, scope: Scope, call: Called) -> Incoming:
    """What is told of a call: the request's, with its own id, session and agents."""
    more = request_info(id=str(call.id), session_id=first(header(scope, b"mcp-session-id")))
    return replace(given, request={**more, **given.request}, agent=call.agent if call.agent != Agent() else given.agent)


def bad_request(words: str) -> Answer:
    """JSON-RPC 2.0 section 5.1, with the status that MCP asks for."""
    body = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": words}}
    return Answer(400, {"Content-Type": "application/json"}, json.dumps(body).encode())


async def describe(server: MCPServer[Any], guard: Muniment) -> None:
    """Take the server's schemas and descriptions into what is declared of its tools."""
    for listed in await server.list_tools():
        if (spec := guard.tools.get(listed.name)) is not None:
            spec.input_schema = spec.input_schema or listed.input_schema
            spec.description = spec.description or (listed.description or "")


class Calls:
    """Within the server (`MCPServer.middleware`): a tool runs as the caller of its own request, whichever task it runs
    in, and a denial that HTTP did not tell is a result."""

    def __init__(self, guard: Muniment) -> None:
        self.guard = guard

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Serve one message."""
        params = ctx.params or {}
        name = params.get("name")
        if ctx.method != CALL or not isinstance(name, str):
            return await call_next(ctx)
        arguments = params.get("arguments")
        try:
            given = await self._incoming(ctx, name, arguments if isinstance(arguments, dict) else {})
        except (Denied, Unavailable, Throttled) as error:
            return self._refusal(error)
        with receiving(given):
            if name in self.guard.tools:
                return await call_next(ctx)
            # Its decorator was forgotten: it is guarded all the same, by its name.
            with await self.guard.abegin(Tool(name, (), "write"), {}):
                return await call_next(ctx)

    async def _incoming(self, ctx: ServerRequestContext[Any, Any], name: str, arguments: dict[str, Any]) -> Incoming:
        """The request of this very message, and what came of its call. Raises what the call is refused with."""
        scope: Mapping[str, Any] = ctx.request.scope if ctx.request is not None else {}
        given: Incoming = scope.get(KEY, NOBODY)
        prepared = scope.get(PREPARED, {}).get(ctx.request_id)
        if prepared is None or prepared.tool != name:  # by another way than HTTP
            prepared = await self.guard.aprepare(name, given, arguments)
        if isinstance(prepared.result, Decision):
            prepared.result.require()
        elif self.guard.fail_mode(name) != "open":
            raise prepared.result
        return replace(given, prepared=prepared)

    def _refusal(self, error: Denied | Unavailable | Throttled) -> CallToolResult:
        meta = None
        if isinstance(error, Denied) and error.www_authenticate:
            meta = {META_CHALLENGE: [challenge(error.www_authenticate, self.guard)]}
        return CallToolResult(content=[TextContent(type="text", text=str(error))], is_error=True, _meta=meta)
