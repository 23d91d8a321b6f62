"""FastAPI: a tool as a dependency of endpoints, beside `muniment.adapters.asgi.MunimentMiddleware`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import Security
from fastapi.openapi.models import HTTPBearer, OpenIdConnect
from fastapi.openapi.models import SecurityBase as SecurityModel
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection

from muniment.adapters.asgi import KEY
from muniment.calls import Caller
from muniment.errors import Misconfigured
from muniment.guard import Muniment
from muniment.tools import Access, FailMode, Resource, tool_of

Dependency = Callable[..., AsyncIterator[Caller | None]]


def guarded(
    guard: Muniment,
    name: str,
    *,
    scopes: str | Sequence[str] = (),
    access: Access | None = None,
    fail: FailMode = "closed",
    description: str = "",
    resource: Callable[..., Resource | None] | None = None,
    assertion: str | None = None,
) -> Dependency:
    """A dependency: `caller: Caller = Depends(guarded(guard, "memory.recall", scopes="memory:read"))`.

    The tool is verified before the endpoint runs; the endpoint gets its verified caller, None only where a tool that
    fails open runs without the platform. The call ends when the response has been sent and its background tasks have
    run: all of them run as the caller. The arguments are those of `guard.tool`; `resource` is given the parameters of
    the path. One that is kept in a variable can be the dependency of several endpoints. Raises Misconfigured.
    """
    about: dict[str, Any] = {"description": description, "resource": resource, "assertion": assertion}
    tool = tool_of(name, scopes, access, fail=fail, **about)
    guard.add(tool)

    in_docs = Security(Shown(guard), scopes=list(tool.scopes))

    async def called(connection: HTTPConnection, shown: Any = in_docs) -> AsyncIterator[Caller | None]:
        if KEY not in connection.scope:
            raise Misconfigured("guarded() needs MunimentMiddleware in front of the application.")
        if connection.scope["type"] != "http":
            # It would be verified once, and stay open whatever is revoked meanwhile.
            raise Misconfigured("A WebSocket is not one call: guard what serves each message, with guard.tool.")
        with await guard.abegin(tool, connection.path_params) as call:
            yield call.caller

    return called


class Shown(SecurityBase):
    """Shows in OpenAPI, and so in /docs, where tokens come from; it checks nothing, the platform does. With one
    authorization server that is its OpenID configuration, which /docs can sign in with; else a bearer token."""

    def __init__(self, guard: Muniment) -> None:
        servers = guard.authorization_servers
        configuration = f"{servers[0].rstrip('/')}/.well-known/openid-configuration" if len(servers) == 1 else None
        self.model: SecurityModel = OpenIdConnect(openIdConnectUrl=configuration) if configuration else HTTPBearer()
        self.scheme_name = "User"

    async def __call__(self) -> None:
        """Nothing: FastAPI calls each dependency."""
