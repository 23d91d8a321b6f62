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
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import httpx2
import msgspec

from muniment import __version__
from muniment.breaker import Breaker
from muniment.errors import Misconfigured, MunimentError, Refused, Throttled, Unavailable

RETRIES = 1
PAUSE = (0.05, 0.15)  # seconds before the retry
MAX_ANSWER = 4 << 20  # bytes
_json = msgspec.json.Decoder()
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the platform. `once` makes a retry safe (Idempotency-Key); `kind` is the content type."""

    method: str
    path: str
    body: bytes = field(repr=False)
    once: str | None = field(default_factory=lambda: secrets.token_urlsafe(16))
    kind: str = "application/json"


def request(method: str, path: str, body: Any) -> Request:
    """A request with a JSON body. Raises Refused for a body that is no JSON or no Unicode."""
    try:
        return Request(method, path, _encode(body))
    except (TypeError, ValueError, OverflowError):
        raise Refused("invalid-json", "The call cannot be written as JSON") from None


class Platform:
    """The platform at `url`, called with a backend key. Threads and event loops may share one; `close` (or `aclose`)
    ends its connections. `timeout` is in seconds for each attempt, connecting included."""

    def __init__(self, url: str, key: str, timeout: float = 5.0, breaker: Breaker | None = None, **client: Any) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise Misconfigured("The URL of the platform must be an http(s) URL without a query.")
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

    def __repr__(self) -> str:
        return f"Platform({self.url!r})"

    # --- sync ---------------------------------------------------------------------------------------------

    def send(self, made: Request) -> dict[str, Any]:
        """The answer's JSON object. Raises Unavailable (an outage), Throttled, Refused or Misconfigured."""
        self._enter()
        try:
            found = self._attempts(made)
        except BaseException as error:
            raise self._ended(error) from None
        self.breaker.answered()
        return found

    def _attempts(self, made: Request) -> dict[str, Any]:
        for attempt in range(RETRIES + 1):
            try:
                return read(self._sync().request(made.method, made.path, content=made.body, headers=_headers(made)))
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
        self._enter()
        try:
            found = await self._aattempts(made)
        except BaseException as error:
            raise self._ended(error) from None
        self.breaker.answered()
        return found

    async def _aattempts(self, made: Request) -> dict[str, Any]:
        for attempt in range(RETRIES + 1):
            try:
                headers = _headers(made)
                return read(await self._async().request(made.method, made.path, content=made.body, headers=headers))
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

    def _enter(self) -> None:
        if not self.breaker.enter():
            raise Unavailable("breaker_open", self.breaker.wait)

    def _ended(self, error: BaseException) -> BaseException:
        """Tell the breaker, and name the error without anything of the request."""
        match error:
            case httpx2.TimeoutException():
                self.breaker.failed()
                return Unavailable("timeout")
            case httpx2.TransportError():
                self.breaker.failed()
                return Unavailable("unreachable")
            case Unavailable():
                self.breaker.failed()
                return error
            case MunimentError():
                self.breaker.answered()
                return error
        self.breaker.left()
        return error


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
