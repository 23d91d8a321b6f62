"""`fastmcp` 4.x: a server's tools are guarded by name before it sees the call, as those of `muniment.adapters.mcp` are.

`guarded_app` is the whole of it. Where a server has an `auth` of its own, or is served without `guarded_app`:
`MunimentTokenVerifier` says which tokens are good here, and `guarded_check` hides what a token has no scopes for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from fastmcp import FastMCP
from fastmcp.server.auth import AccessToken, AuthContext, TokenVerifier
from fastmcp.server.providers.base import Provider
from starlette.types import ASGIApp, Receive, Scope, Send

from muniment.adapters.asgi import MunimentMiddleware
from muniment.adapters.fastmcp_calls import ClientCalls, First, Last
from muniment.adapters.mcp_http import guard_endpoint
from muniment.guard import Muniment
from muniment.introspection import aintrospect


def guarded_app(
    server: FastMCP[Any],
    guard: Muniment,
    *,
    path: str = "/mcp",
    middleware: Mapping[str, Any] | None = None,
    **options: Any,
) -> MunimentMiddleware:
    """The ASGI application of a server (streamable HTTP) with the guard in front: each call of a tool is verified, all
    else needs a token that is good here, the metadata of RFC 9728 is served, tools are declared at start with the
    server's own schemas. `middleware`: arguments of `MunimentMiddleware`; `options`: those of `http_app`, whose
    `allowed_hosts` takes the host of the guard's `resource` in."""
    guard_server(server, guard)
    if guard.resource:
        options.setdefault("allowed_hosts", [urlsplit(guard.resource).hostname])
    app = server.http_app(path=path, transport="http", **options)
    guard_endpoint(app.routes, path, guard)
    return MunimentMiddleware(Described(app, server, guard), guard, **(middleware or {}))


def guard_server(server: FastMCP[Any], guard: Muniment) -> None:
    """Guard the calls of a server's tools, whichever way they come: HTTP, stdio, in memory, and from tools of the
    server itself. To be called when the server has all of its own middleware."""
    chain = server._mcp_server.middleware  # fastmcp's own middleware cannot answer with `_meta`
    if not any(isinstance(one, ClientCalls) for one in chain):
        chain.append(ClientCalls(guard))
        server.middleware.insert(0, First(guard))
        server.add_middleware(Last(guard))


class Described:
    """Takes the server's schemas and descriptions into what is declared of its tools, before they are declared."""

    def __init__(self, app: ASGIApp, server: FastMCP[Any], guard: Muniment) -> None:
        self.app, self.server, self.guard = app, server, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] == "lifespan":
            for listed in await Provider.list_tools(self.server):  # all of them, whatever their `auth` hides
                if (spec := self.guard.tools.get(listed.name)) is not None:
                    spec.describe(listed.description, listed.parameters)
        await self.app(scope, receive, send)


class MunimentTokenVerifier(TokenVerifier):
    """`auth` of a `FastMCP`, or the verifier of its `RemoteAuthProvider`: tokens that are good here, with the scopes
    that grants cover. It decides nothing of a tool, and nothing it lets through is a call on record. In an outage it
    raises Unavailable: no token is refused that may be good. More arguments are those of fastmcp's `TokenVerifier`."""

    def __init__(self, guard: Muniment, **more: Any) -> None:
        super().__init__(**more)
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


def guarded_check(guard: Muniment) -> Callable[[AuthContext], bool]:
    """An `AuthCheck` of fastmcp, for `AuthMiddleware` or a tool's `auth`: a tool is there for tokens that carry, and
    are granted, all of its scopes, and no tool that is not declared is there for anybody. Resources and prompts need a
    good token. It hides; whether a call may run is decided by the guard, with all else that the platform knows. A tool
    that is hidden is not asked for, so that no user is asked for more scopes."""

    def check(context: AuthContext) -> bool:
        if context.token is None or context.tool is None:
            return context.token is not None
        spec = guard.tools.get(context.tool.name)
        return spec is not None and set(spec.scopes) <= set(context.token.scopes)

    return check
