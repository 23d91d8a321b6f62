"""ASGI: a middleware for Starlette, FastAPI and everything else that speaks it, with no need of any of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import quote

from muniment.adapters.http import (
    Answer,
    Metadata,
    bearer,
    networks,
    proof,
    refusal,
    source,
    the_refusal,
    trace_id,
    url_of,
)
from muniment.background import Job, logger
from muniment.calls import Agent, Incoming, receiving, request_info
from muniment.errors import MunimentError, Throttled, Unavailable
from muniment.guard import Muniment

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

KEY = "muniment"  # in the scope: the Incoming of the request
POLICY_VIOLATION, SERVER_ERROR, TRY_AGAIN_LATER = 1008, 1011, 1013  # RFC 6455 section 7.4.1, and its registry


class MunimentMiddleware:
    """Guarded functions that are called while `app` serves a request are called with the token of its Authorization
    header. What they raise becomes the answer, if none has begun; the metadata of RFC 9728 is served; tools are
    declared when the server starts (see `Lifespan`).

    `agent`, `session` and `tenant` make of a request's ASGI scope the agents that it came through, a session id and the
    tenant of the call; believe a header of it only from whom you trust. `trusted_proxies` are the addresses and
    networks whose X-Forwarded-For is believed; none by default. `name` is what people call the backend. Raises
    Misconfigured.

    For tokens that are bound: `url` makes of a scope the URL that the client called, where it is not the path at the
    origin of the guard's `resource`; `certificate` gives the client's certificate as `http.thumbprint` does.
    """

    def __init__(
        self,
        app: App,
        guard: Muniment,
        *,
        agent: Callable[[Scope], Agent | None] | None = None,
        session: Callable[[Scope], str | None] | None = None,
        tenant: Callable[[Scope], str | None] | None = None,
        trusted_proxies: Iterable[str] = (),
        name: str | None = None,
        url: Callable[[Scope], str] | None = None,
        certificate: Callable[[Scope], str | None] | None = None,
    ) -> None:
        self.app, self.guard = app, guard
        self._url, self._certificate = url or self._url_of, certificate
        self._agent, self._session, self._tenant = agent, session, tenant
        self._trusted = networks(trusted_proxies)
        self._metadata = Metadata(guard, name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        match scope["type"]:
            case "lifespan":
                await Lifespan(self.app, self.guard).run(scope, receive, send)
            case "http" if found := self._metadata.answer(scope["method"], *_paths(scope)):
                await respond(found, send, head=scope["method"] == "HEAD")
            case "http":
                await self._serve(Http(send, self.guard, scope["method"] == "HEAD"), scope, receive)
            case "websocket":
                await self._serve(WebSocket(send, self.guard, scope), scope, receive)
            case _:
                await self.app(scope, receive, send)

    async def _serve(self, answering: Http | WebSocket, scope: Scope, receive: Receive) -> None:
        try:
            given = self.incoming(scope)
            with receiving(given):
                scope[KEY] = given
                await self.app(scope, receive, answering.send)
        except Exception as error:
            refused = the_refusal(error)
            if refused is None or not await answering.refuse(refused):
                await answering.release()
                raise
        await answering.release()

    def incoming(self, scope: Scope) -> Incoming:
        """What came in with a request or with the handshake of a WebSocket."""
        peer = (scope.get("client") or (None,))[0]
        authorization, proofs = header(scope, b"authorization"), header(scope, b"dpop")
        return Incoming(
            bearer(authorization),
            request_info(
                id=first(header(scope, b"x-request-id")),
                trace_id=trace_id(header(scope, b"traceparent")),
                session_id=self._session(scope) if self._session else None,
                ip=source(peer, header(scope, b"x-forwarded-for"), self._trusted),
                user_agent=first(header(scope, b"user-agent")),
            ),
            (self._agent(scope) if self._agent else None) or Agent(),
            self._tenant(scope) if self._tenant else None,
            dpop=proof(authorization, proofs, scope.get("method", "GET"), self._url(scope)) if proofs else None,
            certificate=self._certificate(scope) if self._certificate else None,
        )

    def _url_of(self, scope: Scope) -> str:
        """Without its query, which no proof is of; a WebSocket is asked for by HTTP (RFC 6455 section 4.1)."""
        named: str = scope.get("scheme", "http")
        scheme = {"ws": "http", "wss": "https"}.get(named, named)
        raw = scope.get("raw_path")
        path = raw.decode("latin-1") if raw else quote(scope["path"])
        return url_of(self.guard, scheme, first(header(scope, b"host")) or "", path)


def header(scope: Scope, name: bytes) -> list[str]:
    """All values of a header; `name` in lower case."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def first(values: list[str]) -> str | None:
    """The first value, if there is one."""
    return values[0] if values else None


def _paths(scope: Scope) -> tuple[str, str]:
    """The path as it is, and below where the application is mounted."""
    return scope["path"], scope["path"].removeprefix(scope.get("root_path") or "")


async def respond(answer: Answer, send: Send, head: bool = False, kind: str = "http.response") -> None:
    """Send an answer; that to HEAD without its body."""
    headers = answer.headers if answer.status == 204 else answer.headers | {"Content-Length": str(len(answer.body))}
    raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": f"{kind}.start", "status": answer.status, "headers": raw})
    await send({"type": f"{kind}.body", "body": b"" if head else answer.body})


class Http:
    """The answer to one HTTP request. A whole 500 is held back until the application has returned: frameworks send one
    for any exception that they do not know, before they pass the exception on."""

    def __init__(self, send: Send, guard: Muniment, head: bool) -> None:
        self._send, self._guard, self._head = send, guard, head
        self._held: list[Message] = []
        self._begun = False

    async def send(self, message: Message) -> None:
        """The `send` of the application."""
        first = message["type"] == "http.response.start" and message["status"] == 500 and not self._begun
        last = message["type"] == "http.response.body" and not message.get("more_body") and len(self._held) == 1
        if first or last:
            self._held.append(message)
        else:
            await self.release()
            self._begun = True
            await self._send(message)

    async def release(self) -> None:
        """Send what was held back."""
        held, self._held = self._held, []
        for message in held:
            self._begun = True
            await self._send(message)

    async def refuse(self, error: MunimentError) -> bool:
        """Answer with a refusal; False where an answer has begun."""
        if self._begun:
            return False
        self._held, self._begun = [], True
        await respond(refusal(error, self._guard), self._send, self._head)
        return True


class WebSocket:
    """What is sent over one WebSocket. A refusal before it is accepted is the HTTP answer to the handshake, where the
    server can send one; after that the socket is closed, and the reason is the code of the denial."""

    def __init__(self, send: Send, guard: Muniment, scope: Scope) -> None:
        self._send, self._guard = send, guard
        self._answers = "websocket.http.response" in (scope.get("extensions") or {})
        self._accepted = self._closed = False

    async def send(self, message: Message) -> None:
        """The `send` of the application."""
        self._accepted |= message["type"] == "websocket.accept"
        self._closed |= message["type"] in ("websocket.close", "websocket.http.response.start")
        await self._send(message)

    async def release(self) -> None:
        """Nothing is held back."""

    async def refuse(self, error: MunimentError) -> bool:
        """Answer or close with a refusal; False where the socket is closed."""
        if self._closed:
            return False
        self._closed = True
        answer = refusal(error, self._guard)
        if self._answers and not self._accepted:
            await respond(answer, self._send, kind="websocket.http.response")
        else:
            reason = str(getattr(error, "reason", ""))[:100]
            await self._send({"type": "websocket.close", "code": _code(error), "reason": reason})
        return True


def _code(error: MunimentError) -> int:
    if error.status in (429, 503):
        return TRY_AGAIN_LATER
    return POLICY_VIOLATION if error.status < 500 else SERVER_ERROR


class Lifespan:
    """Start and end of a server. When the application has started, the tools are declared: where the platform is away
    that goes on in the background; where it refuses them or the key, the server does not start. When the application
    has ended, what waits is reported and connections are closed. An application without a lifespan of its own is given
    one."""

    def __init__(self, app: App, guard: Muniment) -> None:
        self._app, self._guard = app, guard
        self._asked = self._answered = False
        self._failed: str | None = None

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the lifespan scope."""

        async def received() -> Message:
            if self._failed is not None:  # the application has started, and the server must not
                return {"type": "lifespan.shutdown"}
            message = await receive()
            self._asked = True
            return message

        async def sent(message: Message) -> None:
            await self._sent(message, send)

        try:
            await self._app(scope, received, sent)
        except Exception:
            if self._answered:
                raise
        if not self._answered:
            await self._alone(receive, send)

    async def _sent(self, message: Message, send: Send) -> None:
        self._answered = True
        match message["type"]:
            case "lifespan.startup.complete":
                self._failed = await self._declare()
                if self._failed is None:
                    await send(message)
            case "lifespan.shutdown.complete" | "lifespan.shutdown.failed":
                await self._guard.aclose()
                failed = {"type": "lifespan.startup.failed", "message": self._failed}
                await send(message if self._failed is None else failed)
            case _:
                await send(message)

    async def _alone(self, receive: Receive, send: Send) -> None:
        """The lifespan of an application that has none (ASGI: it raises, or returns, without a word)."""
        if not self._asked:
            await receive()
        await self._sent({"type": "lifespan.startup.complete"}, send)
        if self._failed is None:
            await receive()
        await self._sent({"type": "lifespan.shutdown.complete"}, send)

    async def _declare(self) -> str | None:
        """Declare the tools; what keeps the server from starting, in words."""
        try:
            await self._guard.astart()
        except (Unavailable, Throttled):
            logger.warning("the platform is away: tools are declared as soon as it answers")
            self._guard.background.add(Job("declaring tools", self._guard.declare), once=True)
        except MunimentError as error:
            return f"The tools cannot be declared: {error}"
        return None
