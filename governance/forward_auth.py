"""GET /v1/forward-auth: a proxy asks, before it lets a request through, whether its caller may use the route's tools.
For nginx `auth_request`, Caddy and Traefik `forward_auth`, Envoy `ext_authz` over HTTP.

forward_auth -> forward_auth_request (what is asked) -> api.decided (as for /v1/verify) -> forward_auth_answer
"""

import time
from typing import Any

from django.http import HttpRequest, HttpResponse

from audit.recording import Unavailable
from clients.replays import request_name
from governance import forward_auth_answer, metrics, schema
from governance.api import BackendView, decided
from governance.budgets import budgets
from governance.contract import Call, Resource
from governance.forward_auth_request import Asked, asked, bearer, info, mcp_tool, proof, proxy_of
from governance.problems import Problem, from_exception
from governance.snapshot import BackendPolicy, Snapshot, snapshots
from governance.verification import ATTEMPTS, NotAuthenticated, PolicyMoved, authenticate
from tools.credentials import Credential
from tools.routes import Ambiguous

MOST_PATH = 256  # characters of a path in a record


class ForwardAuthView(BackendView):
    """Any method, since Envoy sends the original one. No body is read."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Ask; a known error is an answer by which the proxy refuses."""
        proxy = proxy_of(request).name
        began = time.perf_counter()
        try:
            found, required, audience = self.get(request)
        except Exception as error:
            problem = from_exception(error)
            metrics.refused(problem.status if problem else 500)
            if problem is None:
                raise
            return forward_auth_answer.failed(proxy, problem)
        finally:
            metrics.timers["forward_auth"].observe(time.perf_counter() - began)
        return forward_auth_answer.of(proxy, found, required, audience)

    def presented(self, request: HttpRequest) -> str | None:
        """The proxy's key has a header of its own: `Authorization` is the user's."""
        return f"Bearer {request.META.get('HTTP_X_MUNIMENT_KEY', '')}"

    @schema.forward_auth
    def get(self, request: HttpRequest) -> forward_auth_answer.Found:
        """Each tool of the route is decided and recorded. Raises a Problem."""
        credential = self.credential(request)
        name = request_name()
        for _ in range(ATTEMPTS):
            try:
                return decided_route(request, credential, name)
            except PolicyMoved:  # the route is another since: it is looked up anew, and nothing was answered
                snapshots.at_head()
            except NotAuthenticated:  # the key was revoked since
                raise forward_auth_answer.not_known() from None
        raise Unavailable("the policy kept changing")


def decided_route(request: HttpRequest, credential: Credential, name: str) -> forward_auth_answer.Found:
    """The answers for the tools of the route, all the scopes that they need, and the backend's audience. `name` is that
    of the request, whose one proof serves all tools. Raises a
    Problem, NotAuthenticated, and PolicyMoved when the route is another by the time of recording."""
    snapshot, backend = authenticate(credential)
    question, tools = routed(request, snapshot, backend)
    # Without a token nobody is established, whichever the tool: one record is enough.
    asked_for = tools if bearer(request) else tools[:1]
    calls = [_call(request, question, tool, backend.first_audience) for tool in asked_for]
    found: list[dict[str, Any]] = []
    for one in decided(credential, calls, request, lambda now: tools_of(request, question, now) == tools, name):
        if isinstance(one, Problem):
            raise one
        found.append(one)
    known = [snapshot.policy.tools.get((backend.id, tool)) for tool in tools]
    required = dict.fromkeys(scope for tool in known if tool for scope in tool.scopes)
    return found, list(required), backend.first_audience


def routed(request: HttpRequest, snapshot: Snapshot, backend: BackendPolicy) -> tuple[Asked, tuple[str, ...]]:
    """What is asked, and the tools that it takes. Raises a 403 Problem where there is no route, and for a proxy that is
    not set up; how many, by backend, is in the `denials` records."""
    try:
        question = asked(request)
    except Ambiguous as error:
        budgets.turned_away(backend.slug, "path_ambiguous")
        raise Problem(403, "path-ambiguous", "The path is ambiguous", str(error)) from None
    except Problem:
        budgets.turned_away(backend.slug, "proxy_misconfigured")
        raise
    if tools := tools_of(request, question, backend):
        return question, tools
    newest = snapshots.at_head()
    if newest is not snapshot and tools_of(request, question, newest.backends.get(backend.id)):
        raise PolicyMoved
    budgets.turned_away(backend.slug, "no_route")
    raise Problem(403, "no-route", "No route", "No tool is served at this path with this method.")


def tools_of(request: HttpRequest, question: Asked, backend: BackendPolicy | None) -> tuple[str, ...]:
    """The tools of the route; only the one that the request names, where the backend makes sure that it does."""
    route = backend.routes.find(question.method, question.path) if backend else None
    if backend is None or route is None:
        return ()
    # A tool is called by POST alone: of another request the backend compares nothing.
    named = backend.enforces_mcp_name and question.method == "POST"
    one = mcp_tool(request, route.tools) if named else None
    return (one,) if one else route.tools


def _call(request: HttpRequest, question: Asked, tool: str, audience: str) -> Call:
    path = "/" + "/".join(question.path)
    resource = Resource("path", path if len(path) <= MOST_PATH else f"{path[: MOST_PATH - 1]}…")
    return Call(
        bearer(request), tool, resource=resource, request=info(request), assertion=question.assertion,
        dpop=proof(request, question, audience), mtls=question.certificate,
    )  # fmt: skip
