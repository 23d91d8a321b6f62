"""Webhooks: signed as Standard Webhooks (1.0) says, sent over verified TLS, in bounded time, without redirects.

Nothing here says what is sent. Errors are words for people, without the address or a secret.
"""

import base64
import binascii
import hmac
import http.client
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from hashlib import sha256
from socket import SHUT_RDWR, gaierror, socket
from threading import Timer
from urllib.parse import urlsplit

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 10.0
"""What one exchange may take, however slowly the receiver answers."""
MAX_URL = 1024
SECRET_PREFIX = "whsec_"  # noqa: S105 (it says what follows)
MIN_SECRET, MAX_SECRET = 24, 64  # bytes
MAX_RETRY_AFTER = 3600.0  # seconds
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class AddressError(ValueError):
    """An address or a secret that cannot be. Never repeats it."""


class Unreachable(Exception):
    """There was no answer. In words for people."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the receiver said; `retry_after` in seconds, where it gave that."""

    status: int
    retry_after: float | None = None

    @property
    def accepted(self) -> bool:
        """Whether it has taken what was sent."""
        return 200 <= self.status < 300


def key_of(secret: str) -> bytes:
    """The key of a secret as Standard Webhooks has it: `whsec_` and 24 to 64 bytes in base64. Raises AddressError."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not MIN_SECRET <= len(key) <= MAX_SECRET:
        raise AddressError(f"must be {SECRET_PREFIX} and {MIN_SECRET} to {MAX_SECRET} bytes in base64")
    return key


def signed(keys: Sequence[bytes], message: str, at: int, body: bytes) -> dict[str, str]:
    """The headers that say what is sent and by whom: an id that stays when it is sent again, seconds since 1970, and a
    signature by each key."""
    content = f"{message}.{at}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(key, content, sha256)).decode("ascii") for key in keys]
    return {
        "webhook-id": message,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{one}" for one in signatures),
    }


class Address:
    """Where a webhook goes: an https URL, or an http one of this machine. `place` says of it no more than
    the host: its path or query may hold a secret. `trust`: the file with the certificates that are believed instead of
    the machine's."""

    def __init__(self, url: str, trust: str = "") -> None:
        """Raises AddressError."""
        if not url.isascii() or not url.isprintable() or " " in url or "\\" in url or len(url) > MAX_URL:
            raise AddressError("url has characters that a URL may not have, or is too long")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise AddressError("url cannot be read") from None
        if "@" in parts.netloc:
            raise AddressError("url must not have credentials in it")
        if parts.scheme != "https" and not (parts.scheme == "http" and host in LOOPBACK):
            raise AddressError("url must be https, or http on this machine")
        if not host or parts.fragment:
            raise AddressError("url must be a host and a path")
        self._host, self._port, self._context = host, port, context(trust) if parts.scheme == "https" else None
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        shown = f"{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}"
        self.place = f"{parts.scheme}://{shown}/{'…' if self._path != '/' else ''}"

    def post(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send it. Raises Unreachable."""
        connection = self._connection()
        stop: Timer | None = None
        try:
            connection.connect()
            stop = Timer(TOTAL_SECONDS, _cut, [connection.sock])
            stop.daemon = True
            stop.start()
            common = {"User-Agent": "muniment", "Accept-Encoding": "identity", "Connection": "close"}
            with _asked(connection, self._path, body, common | dict(headers)) as answer:
                return Answer(answer.status, _retry_after(answer.getheader("Retry-After")))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(words_of(error)) from None
        finally:
            if stop:
                stop.cancel()
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_SECONDS)
        return http.client.HTTPSConnection(self._host, self._port, timeout=CONNECT_SECONDS, context=self._context)


@lru_cache(maxsize=64)  # to read a machine's certificates takes long
def context(trust: str = "") -> ssl.SSLContext:
    """TLS 1.2 or newer, the server's certificate verified: against the machine's, or those in the file `trust`, both
    as they were when first asked for. Raises AddressError where that has none."""
    try:
        made = ssl.create_default_context(cafile=trust or None)
    except (OSError, ValueError):
        raise AddressError("ca names no file with certificates in PEM") from None
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    return made


def words_of(error: Exception) -> str:
    """Why a server cannot be reached, in words without a secret."""
    if isinstance(error, TimeoutError):
        return "the receiver did not answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "the receiver's certificate is not one that this machine trusts"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or 'the connection broke'}"
    if isinstance(error, gaierror):
        return "the receiver's name cannot be resolved"
    if isinstance(error, http.client.HTTPException):
        return "the receiver did not answer, or what it answers is not HTTP"
    return f"the receiver cannot be reached: {getattr(error, 'strerror', None) or type(error).__name__}"


def _asked(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]
) -> http.client.HTTPResponse:
    try:
        connection.request("POST", path, body, headers)
    except (BrokenPipeError, ConnectionResetError):
        # A receiver that refuses before it has read all; what it says is worth more than "broken pipe".
        with suppress(OSError, http.client.HTTPException):
            return connection.getresponse()
        raise
    return connection.getresponse()


def _retry_after(value: str | None) -> float | None:
    """Seconds (RFC 9110, 10.2.3), from their number or from a date; None for what is neither."""
    text = (value or "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text[:10]), MAX_RETRY_AFTER)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - time.time()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def now() -> int:
    """Seconds since 1970."""
    return int(datetime.now(UTC).timestamp())


def _cut(connection: socket) -> None:
    with suppress(OSError):
        connection.shutdown(SHUT_RDWR)
