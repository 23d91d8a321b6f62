"""The endpoint of an MCP server over HTTP, guarded: what `mcp` and `fastmcp` servers have in common.

A call of a tool is decided before the server sees it, while the answer can still be a 401 or a 403 with the complete
challenge: that is what makes clients sign in, or ask for more scopes (MCP authorization). All else needs a token that
is good here, and a session is its user's alone.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp_types.jsonrpc import INTERNAL_ERROR, INVALID_REQUEST
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from muniment.adapters.asgi import KEY, first, header, respond
from muniment.adapters.http import MALFORMED, Answer, refusal
from muniment.adapters.mcp_messages import HEADERS, Bad, Message, agree, joined, message_of
from muniment.calls import NOBODY, Decision, Incoming, Prepared, request_info
from muniment.errors import Misconfigured, MunimentError, Unavailable
from muniment.guard import Muniment
from muniment.introspection import Shown, aintrospect
from muniment.metadata import challenge

PREPARED: Final = "muniment.call"  # in the ASGI scope: (JSON-RPC id, what came of asking for the call of the body)
CHATGPT: Final = "openai-mcp"  # its User-Agent
MAX_BODY: Final = 4 << 20  # bytes, as mcp has it
MAX_KNOWN: Final = 10_000  # tokens
LISTED_SECONDS: Final = 30.0  # for so long a token that was good may open sessions and see lists
# What has nothing of a user's: a token that was good a moment ago is enough. With all else it is looked at each time.
LISTS: Final = frozenset({
    "initialize", "server/discover", "tools/list", "resources/list", "resources/templates/list", "prompts/list",
    "logging/setLevel",
})  # fmt: skip
SESSION: Final = b"mcp-session-id"


def guard_endpoint(routes: Iterable[BaseRoute], path: str, guard: Muniment) -> None:
    """Put the guard around the route of a server's endpoint: whatever way a request is spelled that reaches it, it
    comes through here. Raises Misconfigured where there is no such route."""
    found = [route for route in routes if isinstance(route, Route) and route.path == path]
    if len(found) != 1:
        raise Misconfigured(f"The server has no endpoint of its own at {path}.")
    found[0].app = Endpoint(found[0].app, guard)


@dataclass(slots=True)
class Known:
    """Whose a token is, and until when (seconds of the monotonic clock) it passes for one that is good."""

    uid: str
    scopes: tuple[str, ...]
    good_until: float


class Tokens:
    """The tokens of late, by their digest: whose they are never changes."""

    def __init__(self, guard: Muniment) -> None:
        self._guard = guard
        self._known: OrderedDict[bytes, Known] = OrderedDict()

    async def look(self, given: Incoming, method: str | None) -> Known | None:
        """Whose a token is that comes with a message; None for one that is not good here. Raises what `aintrospect`
        does. One that comes with a DPoP proof is looked at each time: that it was good a moment ago says nothing of
        who sends it now."""
        known = None if given.dpop else self.of(given)
        if known is not None and (_only_passes(method) or (method in LISTS and time.monotonic() < known.good_until)):
            return known
        shown = await aintrospect(self._guard, given.token or "", given)
        if shown is None:
            self._known.pop(_presented(given), None)
            return None
        return self.note(given, shown.uid, shown.scopes, _seconds(shown))

    def of(self, given: Incoming) -> Known | None:
        """Whose a token is, where that is known already."""
        return self._known.get(_presented(given))

    def note(self, given: Incoming, uid: str, scopes: tuple[str, ...], good_for: float = 0.0) -> Known:
        """Remember whose a token is."""
        made = self._known[_presented(given)] = Known(uid, scopes, time.monotonic() + good_for)
        self._known.move_to_end(_presented(given))
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return made


def _presented(given: Incoming) -> bytes:
    """A token, and what it came with: what was found of one that came with a proof, or by a connection with this
    certificate, is not true of the same token without."""
    return sha256(repr((given.token, given.certificate, given.dpop is not None)).encode("utf-8", "replace")).digest()


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "replace")).digest()


def _seconds(shown: Shown) -> float:
    left = LISTED_SECONDS if shown.expires_at is None else shown.expires_at - time.time()
    return max(0.0, min(left, LISTED_SECONDS))


def _only_passes(method: str | None) -> bool:
    """What tells its sender nothing, and does something to the session at most: that is its user's alone."""
    return method is None or method == "ping" or method.startswith("notifications/")


class Endpoint:
    """In front of a server's endpoint, behind `MunimentMiddleware`."""

    def __init__(self, app: ASGIApp, guard: Muniment) -> None:
        self.app, self.guard = app, guard
        self._tokens = Tokens(guard)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        prepared: Prepared | None = None
        message = Message("GET", None) if scope["method"] == "GET" else Message(None, None)
        try:
            if scope["method"] == "POST":
                body = await whole(receive)
                message = message_of(body)
                agree(message, *(header(scope, name) for name in HEADERS))
                receive = again(body, receive)
            refused, prepared = await self._admit(scope, message)
        except Bad as error:
            refused = error.answer
        except MunimentError as error:
            refused = in_words(refusal(error, self.guard), message)
        if refused is not None:
            await respond(refused, send, head=scope["method"] == "HEAD")
            return
        try:
            await self.app(scope, receive, send)
        finally:
            if prepared is not None:
                self.guard.settle(prepared)

    async def _admit(self, scope: Scope, message: Message) -> tuple[Answer | None, Prepared | None]:
        """Leave in the scope what the server needs to know, or give the answer. Raises MunimentError."""
        given: Incoming = scope.get(KEY, NOBODY)
        if message.is_call:
            prepared = await self._prepare(scope, given, message)
            scope[PREPARED] = (message.id, prepared)
            return None, prepared
        if given.token is None:
            return in_words(unauthorized(self.guard), message), None
        if isinstance(scope.get("user"), AuthenticatedUser):  # a verifier of the server's own looked at it
            return None, None
        try:
            known = await self._tokens.look(given, message.method)
        except Unavailable:
            fails_open = any(tool.fail == "open" for tool in list(self.guard.tools.values()))
            if not (fails_open and (_only_passes(message.method) or message.method in LISTS)):
                raise  # what has something of a user's, a resource or the stream of a session, does not fail open
            return None, None  # so that tools that fail open are reached
        if known is None:
            return in_words(unauthorized(self.guard, "invalid_token"), message), None
        become(scope, known)
        return None, None

    async def _prepare(self, scope: Scope, given: Incoming, message: Message) -> Prepared:
        """What came of asking for a call. Raises what it is refused with, where HTTP is to say it."""
        name = message.name or ""
        prepared = await self.guard.aprepare(name, told(given, scope, message), message.arguments)
        if isinstance(prepared.result, Unavailable):
            if self.guard.fail_mode(name) != "open" or given.token in (None, MALFORMED):
                raise prepared.result  # of what comes without a token it is certain that it would be denied
        elif not (prepared.result.remedy == "request_scope" and wants_result(scope)):
            prepared.result.require()
        if given.token is not None and (known := self._caller(given, prepared.result)) is not None:
            become(scope, known)
        return prepared

    def _caller(self, given: Incoming, result: Decision | Unavailable) -> Known | None:
        """Whose the token of a call is."""
        if isinstance(result, Unavailable):
            return self._tokens.of(given)
        uid = (result.answer.get("subject") or {}).get("uid")
        return self._tokens.note(given, uid, result.effective) if isinstance(uid, str) else None


def wants_result(scope: Scope) -> bool:
    """Whether the client is ChatGPT: it asks for more scopes when a result says so, not when a 403 does."""
    return CHATGPT in (first(header(scope, b"user-agent")) or "")


def become(scope: Scope, known: Known) -> None:
    """Tell the server whose the request is: a session can then be used by the user alone who opened it, whichever of
    the user's tokens comes (mcp answers 404 to others). What a middleware of the server's own has said stays: what it
    turns away, we must not let in. In place of the token there is its digest: nobody can send it, and what a server
    keeps for each token (fastmcp's cache of results) is kept apart by it."""
    if "user" in scope:
        return
    kept_by = _digest(scope[KEY].token or "").hex()
    user = AccessToken(token=kept_by, client_id=known.uid, subject=known.uid, scopes=list(known.scopes))
    scope["user"] = AuthenticatedUser(user)


def told(given: Incoming, scope: Scope, message: Message) -> Incoming:
    """What is told of a call: the request's, with its own id, session and agents. Raises Bad."""
    more = request_info(id=str(message.id), session_id=first(header(scope, SESSION)))
    agent = joined(given.agent, message.agent, message.id)
    return replace(given, request={**more, **given.request}, agent=agent)


def in_words(refused: Answer, message: Message) -> Answer:
    """A problem document as a JSON-RPC error: MCP clients show its sentence, and nothing of any other body."""
    document = json.loads(refused.body)
    error = {
        "code": INTERNAL_ERROR if refused.status >= 500 else INVALID_REQUEST,
        "message": document["title"],
        "data": document,
    }
    body = json.dumps({"jsonrpc": "2.0", "id": message.id, "error": error}, separators=(",", ":"))
    return Answer(refused.status, refused.headers | {"Content-Type": "application/json"}, body.encode())


def unauthorized(guard: Muniment, error: str | None = None) -> Answer:
    """401 with the way to the metadata; without a token there is no error code, since nothing was tried (RFC 6750
    section 3). Its scopes are those of the tools that only read: enough to begin with, and clients ask for more when a
    tool needs it (MCP authorization: scope selection, step-up). No call, and on record only as a look at the token."""
    scopes = sorted({scope for tool in list(guard.tools.values()) if tool.access == "read" for scope in tool.scopes})
    parts = [f'error="{error}"'] if error else []
    parts += [f'scope="{" ".join(scopes)}"'] if scopes else []
    headers = {
        "WWW-Authenticate": challenge(f"Bearer {', '.join(parts)}" if parts else None, guard),
        "Content-Type": "application/problem+json",
        "Cache-Control": "no-store",
    }
    title = "The access token is not good for this server." if error else "This server needs an access token."
    return Answer(401, headers, json.dumps({"type": "about:blank", "title": title, "status": 401}).encode())


async def whole(receive: Receive) -> bytes:
    """The body of a request. Raises Bad for one that is too long or broken off."""
    parts: list[bytes] = []
    size = 0
    while True:
        event = await receive()
        if event["type"] != "http.request":
            raise Bad("The body broke off.")
        parts.append(event.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise Bad("The body is too long.")
        if not event.get("more_body"):
            return b"".join(parts)


def again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that brings the body once more, then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Event:
        return waiting.pop() if waiting else await receive()

    return replayed


def prepared_of(scope: Mapping[str, Any], id: Any, tool: str) -> Prepared | None:
    """What came of asking for this very call, where the endpoint did."""
    asked, prepared = scope.get(PREPARED, (None, None))
    same = type(asked) is type(id) and asked == id and prepared is not None
    return prepared if same and prepared.tool == tool and not prepared.used else None
