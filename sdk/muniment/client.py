"""HTTP to the platform, sync and async: connections that are kept, timeouts, one retry, a circuit breaker.

What counts as an outage is decided here and only here: no answer, or a 5xx of the platform itself. A denial, with
whatever status it asks the backend to give, is an answer.
"""

import asyncio
import random
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import httpx2
import msgspec

from muniment import __version__, forks
from muniment.breaker import Breaker
from muniment.errors import Misconfigured, Refused, Throttled, Unavailable

RETRIES = 1
PAUSE = (0.05, 0.15)  # seconds before the retry
MAX_ANSWER = 4 << 20  # bytes
# What the platform reads (DESIGN: POST /v1/verify). It hangs up on more, which would look as if it were away: what a
# user sends must not be able to do that.
MAX_BODY = 256 << 10  # bytes
_json = msgspec.json.Decoder()
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the platform. `once` makes a retry safe (Idempotency-Key); `kind` is the content type. `of`: a
    call; a look at a token, which an outage of its issuer lets fail as well; or a report in the background, which the
    breaker does not hold up. Only calls that fail open the breaker: neither a stranger's token nor a report that fails
    again and again must look like an outage to others."""

    method: str
    path: str
    body: bytes = field(repr=False)
    once: str | None = field(default_factory=lambda: secrets.token_urlsafe(16))
    kind: str = "application/json"
    of: Literal["call", "look", "report"] = "call"


def request(method: str, path: str, body: Any, of: Literal["call", "report"] = "call") -> Request:
    """A request with a JSON body. Raises Refused for a body that is no JSON or no Unicode, or too large."""
    try:
        made = Request(method, path, _encode(body), of=of)
    except (TypeError, ValueError, OverflowError, RecursionError):
        made = None
    if made is None:
        raise Refused("invalid-json", "The call cannot be written as JSON")
    if len(made.body) > MAX_BODY:
        raise Refused("body-too-large", f"The call is larger than {MAX_BODY >> 10} KiB")
    return made


class Platform:
    """The platform at `url`, called with a backend key. Threads and event loops may share one; `close` (or `aclose`)
    ends its connections. `timeout` is in seconds for each attempt, connecting included."""

    def __init__(self, url: str, key: str, timeout: float = 5.0, breaker: Breaker | None = None, **client: Any) -> None:
        if not usable(url):
            raise Misconfigured("The URL of the platform must be an http(s) URL without a user or a query.")
        if not (key.startswith("mk_") and key.isascii() and key.isprintable()) or " " in key:
            raise Misconfigured("The backend key must be of the form mk_<key id>_<secret>.")
        self.url = url.rstrip("/")
        self.breaker = breaker or Breaker()
        self._lock = threading.Lock()
        self._settings: dict[str, Any] = {
            "base_url": self.url,
            "timeout": httpx2.Timeout(timeout, connect=min(timeout, 2.0)),
            "headers": {
                "Authorization": f"Bearer {key}",
                "Accept": "application/json",
                "User-Agent": f"muniment/{__version__}",
            },
            "follow_redirects": False,  # the key is for this host alone
            "trust_env": False,  # a proxy of the environment must not see tokens
        } | client
        self._client: httpx2.Client | None = None
        # Connections belong to the event loop that made them.
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncClient] = WeakKeyDictionary()
        forks.remember(self)

    def after_fork(self) -> None:
        """In a child: connections stay with the parent. Two processes on one would read each other's answers."""
        self._lock, self._client, self._clients = threading.Lock(), None, WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"Platform({self.url!r})"

    # --- sync ---------------------------------------------------------------------------------------------

    def send(self, made: Request) -> dict[str, Any]:
        """The answer's JSON object. Raises Unavailable (an outage), Throttled, Refused or Misconfigured."""
        self._enter(made)
        try:
            found = self._attempts(made)
        except BaseException as error:
            failure = self._ended(error, made)
        else:
            self.breaker.answered()
            return found
        # Not from within: the HTTP client's error holds the request, and with it the key and the token.
        try:
            raise failure
        finally:
            del failure

    def _attempts(self, made: Request) -> dict[str, Any]:
        for attempt in range(RETRIES + 1):
            try:
                return read(self._sync().request(made.method, made.path, content=made.body, headers=_headers(made)))
            except httpx2.PoolTimeout:
                raise
            except (httpx2.TransportError, Unavailable):
                if attempt == RETRIES or made.once is None:
                    raise
                time.sleep(_pause())
        raise AssertionError("unreachable")

    def _sync(self) -> httpx2.Client:
        with self._lock:
            if self._client is None:
                self._client = httpx2.Client(**self._settings)
            return self._client

    def close(self) -> None:
        """End the connections of the sync calls; a later call makes new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    # --- async --------------------------------------------------------------------------------------------

    async def asend(self, made: Request) -> dict[str, Any]:
        """`send`, for an event loop."""
        self._enter(made)
        try:
            found = await self._aattempts(made)
        except BaseException as error:
            failure = self._ended(error, made)
        else:
            self.breaker.answered()
            return found
        try:
            raise failure
        finally:
            del failure

    async def _aattempts(self, made: Request) -> dict[str, Any]:
        for attempt in range(RETRIES + 1):
            try:
                headers = _headers(made)
                return read(await self._async().request(made.method, made.path, content=made.body, headers=headers))
            except httpx2.PoolTimeout:
                raise
            except (httpx2.TransportError, Unavailable):
                if attempt == RETRIES or made.once is None:
                    raise
                await asyncio.sleep(_pause())
        raise AssertionError("unreachable")

    def _async(self) -> httpx2.AsyncClient:
        loop = asyncio.get_running_loop()
        with self._lock:
            client = self._clients.get(loop)
            if client is None:
                # A client refers to its loop, so that one that nobody closed would stay for ever, with its connections.
                for ended in [other for other in self._clients if other.is_closed()]:
                    del self._clients[ended]
                client = self._clients[loop] = httpx2.AsyncClient(**self._settings)
            return client

    async def aclose(self) -> None:
        """End the connections of this event loop, and those of the sync calls."""
        with self._lock:
            client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()
        self.close()

    # --- both ---------------------------------------------------------------------------------------------

    def _enter(self, made: Request) -> None:
        forks.notice()
        if made.of != "report" and not self.breaker.enter():
            raise Unavailable("breaker_open", self.breaker.wait)

    def _ended(self, error: BaseException, made: Request) -> BaseException:
        """Tell the breaker, and name the error without anything of the request."""
        match error:
            case httpx2.PoolTimeout():  # we did not ask: many calls at once must not open a tool
                named: BaseException = Throttled(words="Too many calls at once; try again in a moment.")
            case httpx2.TimeoutException():
                named = Unavailable("timeout")
            case httpx2.TransportError():
                named = Unavailable("unreachable")
            case httpx2.HTTPError():  # an answer that cannot be read
                named = Refused("not-the-platform", "What answers at the URL is not Muniment")
            case _:
                named = error
        if made.of == "report":
            return named
        if made.of == "call" and isinstance(named, Unavailable):
            self.breaker.failed()
        elif isinstance(named, Refused | Misconfigured) or isinstance(error, Throttled):
            self.breaker.answered()
        else:
            self.breaker.left()
        return named


def usable(url: str) -> bool:
    """Whether it can be the URL of a platform: a user and password in it would be in logs."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return fine and "@" not in parts.netloc and not parts.query and not parts.fragment


def _headers(made: Request) -> dict[str, str]:
    return {"Content-Type": made.kind} | ({} if made.once is None else {"Idempotency-Key": made.once})


def _pause() -> float:
    return random.uniform(*PAUSE)  # noqa: S311  # spreads retries, hides nothing


def read(response: httpx2.Response) -> dict[str, Any]:
    """The JSON object of an answer of the platform; its refusals and outages as errors."""
    status = response.status_code
    if status >= 500:
        raise Unavailable(f"status_{status}", _retry_after(response))
    document = _object(response)
    if 200 <= status < 300:
        if document is None:
            raise Refused("not-the-platform", "What answers at the URL is not Muniment")
        return document
    return _refused(status, document or {}, response)


def _refused(status: int, document: Mapping[str, Any], response: httpx2.Response) -> dict[str, Any]:
    kind = str(document.get("type", "")).removeprefix("urn:muniment:problem:")
    if status == 401:
        raise Misconfigured("The platform does not accept the backend key.")
    if status == 429:
        raise Throttled(_retry_after(response))
    if status == 409 and kind == "in-flight":
        # Our own first attempt, of which we know no answer: it may be recorded, and must not be taken for a refusal.
        raise Unavailable("in_flight", _retry_after(response))
    if not kind:
        raise Refused(f"status-{status}", "What answers at the URL is not Muniment")
    raise Refused(kind, str(document.get("title", "Refused"))[:200], str(document.get("detail", ""))[:500])


def _object(response: httpx2.Response) -> dict[str, Any] | None:
    if len(response.content) > MAX_ANSWER:
        return None
    try:
        found = _json.decode(response.content)
    except (ValueError, RecursionError):  # msgspec.DecodeError is a ValueError
        return None
    return found if isinstance(found, dict) else None


def _retry_after(response: httpx2.Response) -> int | None:
    """RFC 9110 section 10.2.3, the form in seconds."""
    text = response.headers.get("Retry-After", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else None
