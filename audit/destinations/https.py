"""An HTTPS address as a destination: each file is PUT below it (RFC 9110 section 9.3.4)."""

import http.client
import ssl
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socket import SHUT_RDWR, gaierror, socket
from threading import Timer
from time import monotonic
from urllib.parse import urlsplit

from audit.configured import ConfigError, Fields
from audit.destinations.base import (
    CONNECT_SECONDS,
    SILENT_SECONDS,
    DeliveryFailed,
    Destination,
    Differs,
    Sending,
    chunks,
    is_loopback,
    same,
)

MAX_URL = 1024
_WORDS = {
    401: "the server refused the credentials (401)",
    403: "the credentials may not do this there (403)",
    404: "there is no such address on the server (404)",
    405: "the server takes no files at this address (405)",
    409: "the server refused the file: the folder does not exist, or something else is at work there (409)",
    411: "the server does not take the file in this way (411)",
    413: "the file is larger than the server takes (413)",
    429: "the server is asked too often (429)",
    507: "the server has no space left (507)",
}


class Https(Destination):
    """`url`: https (http for this machine only), without a query; `token`, or `username` and `password`. Redirects are
    not followed, proxies not used, certificates always checked."""

    kind = "https"

    def __init__(self, name: str, secure: bool, host: str, port: int | None, prefix: str, authorization: str) -> None:
        shown = f"{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}"
        super().__init__(name, f"{'https' if secure else 'http'}://{shown}{prefix}/")
        self._secure, self._host, self._port, self._prefix = secure, host, port, prefix
        self._authorization = authorization

    @classmethod
    def parse(cls, name: str, given: Fields) -> "Https":
        """From an entry of MUNIMENT_DESTINATIONS. Raises ConfigError."""
        url, authorization = given.text("url"), _authorization(given)
        if not url.isascii() or " " in url or "\\" in url or len(url) > MAX_URL:
            raise ConfigError("url has characters that a URL may not have, or is too long")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ConfigError("url cannot be read") from None
        if "@" in parts.netloc:
            raise ConfigError("url must not have credentials in it")
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
            raise ConfigError("url must be https, or http on this machine")
        if not host or "?" in url or "#" in url or ".." in parts.path.split("/"):
            raise ConfigError("url must be a host and a path, without a query")
        return cls(name, parts.scheme == "https", host, port, parts.path.rstrip("/"), authorization)

    def put(self, sending: Sending) -> None:
        """GET first, since not every server knows `If-None-Match: *`; then PUT with it."""
        if self._is_there(sending):
            return
        status = self._send(sending)
        if status == 412:  # it was put there meanwhile
            if not self._is_there(sending):
                raise DeliveryFailed("the server says that the name is taken, and shows nothing there (412)")
        elif status not in (200, 201, 202, 204):
            raise DeliveryFailed(_refusal(status))

    def _is_there(self, sending: Sending) -> bool:
        """Whether the very file is at its address. Raises Differs for anything else that is."""
        with self._exchange("GET", sending) as answer:
            if answer.status in (404, 410):
                return False
            if answer.status in (405, 501):  # a letter box, which shows nothing: the condition of the PUT must do
                return False
            if answer.status != 200:
                raise DeliveryFailed(_refusal(answer.status))
            if answer.getheader("Content-Encoding", "identity").lower() != "identity":
                raise DeliveryFailed("the server answers in an encoding that was not asked for")
            if answer.length not in (None, sending.size) or not same(sending, chunks(answer)):
                raise Differs(sending.name)
            return True

    def _send(self, sending: Sending) -> int:
        digest = b64encode(bytes.fromhex(sending.sha256)).decode("ascii")
        headers = {
            "Content-Type": "application/octet-stream", "Content-Length": str(sending.size), "If-None-Match": "*",
            "Repr-Digest": f"sha-256=:{digest}:",  # RFC 9530
        }  # fmt: skip
        with self._exchange("PUT", sending, headers) as answer:
            return answer.status

    @contextmanager
    def _exchange(
        self, method: str, sending: Sending, headers: dict[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """One request and its answer, in the time that is left. Raises DeliveryFailed."""
        connection = self._connection()
        stop: Timer | None = None
        try:
            connection.connect()
            connection.sock.settimeout(SILENT_SECONDS)
            # However slowly it drips, in either direction.
            stop = Timer(max(0.1, sending.until - monotonic()), _cut, [connection.sock])
            stop.daemon = True
            stop.start()
            common = {
                "Authorization": self._authorization, "User-Agent": "muniment", "Accept-Encoding": "identity",
                "Connection": "close",
            }  # fmt: skip
            yield _asked(connection, method, f"{self._prefix}/{sending.name}", sending, common | (headers or {}))
        except (OSError, http.client.HTTPException, ValueError) as error:
            sending.check_time()
            raise DeliveryFailed(_unreachable(error)) from None
        finally:
            if stop:
                stop.cancel()
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_SECONDS)
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return http.client.HTTPSConnection(self._host, self._port, timeout=CONNECT_SECONDS, context=context)


def _asked(
    connection: http.client.HTTPConnection, method: str, path: str, sending: Sending, headers: dict[str, str]
) -> http.client.HTTPResponse:
    if method == "GET":
        connection.request(method, path, headers=headers)
        return connection.getresponse()
    with sending.open() as source:
        try:
            connection.request(method, path, body=source, headers=headers)
        except (BrokenPipeError, ConnectionResetError):
            # A server that refuses before it has read all; what it says is worth more than "broken pipe".
            with suppress(OSError, http.client.HTTPException):
                return connection.getresponse()
            raise
    return connection.getresponse()


def _authorization(given: Fields) -> str:
    """The value of the header. Raises ConfigError."""
    token, password = given.secret("token", ""), given.secret("password", "")
    username = given.text("username", "")
    if bool(token) == bool(username) or bool(username) != bool(password):
        raise ConfigError("either token, or username and password, is needed")
    if token:
        if not token.isascii() or " " in token:
            raise ConfigError("token has characters that a token may not have")
        return f"Bearer {token}"  # RFC 6750 section 2.1
    if ":" in username:
        raise ConfigError("username has a colon")
    return "Basic " + b64encode(f"{username}:{password}".encode()).decode("ascii")  # RFC 7617


def _refusal(status: int) -> str:
    if 300 <= status < 400:
        return "the server redirects, which is not followed; configure the address that it redirects to"
    return _WORDS.get(status, f"the server answered {status}")


def _unreachable(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the server did not answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "the server's certificate is not one that this machine trusts"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or 'the connection broke'}"
    if isinstance(error, gaierror):
        return "the server's name cannot be resolved"
    return f"the server cannot be reached: {getattr(error, 'strerror', None) or type(error).__name__}"


def _cut(connection: socket) -> None:
    with suppress(OSError):
        connection.shutdown(SHUT_RDWR)
