"""One careful HTTP exchange, for documents at addresses that somebody else may have chosen (RFC 9700, SSRF).

The name is resolved once; every address it has is judged before any is connected to; the connection goes to
that very address, while SNI, certificate check and Host keep the name. So a name that resolves differently
the second time gains nothing. No redirects, no proxies, no cookies, no credentials; one deadline for
everything.

Certificates are checked against the system's store (`SSL_CERT_FILE` names another one).
"""

import http.client
import io
import queue
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, NamedTuple, TypedDict, Unpack, cast
from urllib.parse import urlencode, urlsplit

from clients.strictjson import parse_object

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL: Final = 2048
MAX_HEAD: Final = 32 * 1024  # bytes of status line and headers
MAX_ADDRESSES: Final = 8
JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"

# Not told apart by `is_global` of Python 3.11: protocol assignments (RFC 6890), 6to4 relays (RFC 7526), IPv6
# documentation (RFC 9637). Of IPv6 only 2000::/3 is handed out at all.
_NOT_PUBLIC: Final[tuple[Network, ...]] = (
    IPv4Network("192.0.0.0/24"),
    IPv4Network("192.88.99.0/24"),
    IPv6Network("3fff::/20"),
)
_IPV6_UNICAST: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits


class FetchError(Exception):
    """The document could not be had; the message says why in plain words and quotes nothing of the answer. `status` is
    that of the answer, None where none began."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Answer(NamedTuple):
    """A 200: its media type in lower case and without parameters (empty where it has none), and its body."""

    media_type: str
    body: bytes


class Options(TypedDict, total=False):
    """What an exchange may do. Every address of the host must be public or in `allowed_networks`. `allow_loopback_http`
    (development only) admits loopback addresses, and plain http to them. `timeout`: seconds for all of it, name
    resolution included (5); `max_bytes`: of the body (262,144)."""

    allowed_networks: Sequence[Network]
    allow_loopback_http: bool
    timeout: float
    max_bytes: int


class _Target(NamedTuple):
    secure: bool
    host: str  # without brackets
    port: int
    authority: str  # as in Host
    path: str


def get_json(url: str, **options: Unpack[Options]) -> dict[str, Any]:
    """The JSON object at an https URL. Raises FetchError for everything that is not a 200 with one JSON object without
    duplicate members."""
    return _object(get(url, JSON, **options))


def post_form(
    url: str, fields: Mapping[str, str], *, authorization: str | None = None, **options: Unpack[Options]
) -> dict[str, Any]:
    """The JSON object that a form is answered with. `authorization` is the value of that header. Raises FetchError,
    which quotes nothing of the form either."""
    return _object(post(url, urlencode(fields).encode("ascii"), FORM, authorization=authorization, **options))


def get(url: str, accept: str, **options: Unpack[Options]) -> Answer:
    """What is at an https URL. Raises FetchError for everything but a 200."""
    return _ask(url, f"Accept: {accept}\r\n", None, options)


def post(
    url: str,
    body: bytes,
    content_type: str,
    *,
    accept: str = JSON,
    authorization: str | None = None,
    **options: Unpack[Options],
) -> Answer:
    """What a body is answered with. Raises FetchError, which quotes nothing of the body either."""
    head = f"Accept: {accept}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    if authorization is not None:
        if not authorization.isascii() or not authorization.isprintable():
            raise FetchError("the authorization has characters that a header may not have")
        head += f"Authorization: {authorization}\r\n"
    return _ask(url, head, body, options)


def _object(answer: Answer) -> dict[str, Any]:
    try:
        return parse_object(answer.body)
    except ValueError as error:
        raise FetchError(f"the answer is of no use: {error}", 200) from None


def _ask(url: str, head: str, body: bytes | None, options: Options) -> Answer:
    """GET, or POST where there is a body; `head` holds the headers that tell the two apart."""
    deadline = time.monotonic() + options.get("timeout", 5.0)
    loopback_http = options.get("allow_loopback_http", False)
    target = _target(url, allow_http=loopback_http)
    addresses = _resolve(target, deadline)
    for address in addresses:
        if not _permitted(address, target, options.get("allowed_networks", ()), loopback_http):
            raise FetchError("the host has an address in a network that is not allowed")
    try:
        with closing(_connect(target, addresses, deadline)) as connection:
            return _exchange(connection, target, head, body, deadline, options.get("max_bytes", 262_144))
    except TimeoutError:
        raise FetchError("the server did not answer in time") from None
    except ssl.SSLError as error:
        raise FetchError(f"TLS failed: {error.reason or 'the connection broke'}") from None
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"the exchange failed ({type(error).__name__})") from None
    except ValueError as error:  # of http.client, for a length that is none
        raise FetchError(f"the answer is of no use: {type(error).__name__}") from None


def _target(url: str, *, allow_http: bool) -> _Target:
    # urlsplit drops tabs and line ends silently, so they are refused before it sees them.
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url or len(url) > MAX_URL:
        raise FetchError(f"the URL has characters that a URL may not have, or more than {MAX_URL}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise FetchError("the URL cannot be read") from None
    if parts.scheme != "https" and not (allow_http and parts.scheme == "http"):
        raise FetchError("the URL is not https")
    if "@" in parts.netloc:
        raise FetchError("the URL holds a user name")
    if not host or "%" in parts.netloc or port == 0 or parts.fragment:
        raise FetchError("the URL has no usable host or port, or has a fragment")
    secure = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Target(secure, host, port or (443 if secure else 80), parts.netloc, path)


def _resolve(target: _Target, deadline: float) -> list[Address]:
    """All addresses of the host, asked for once."""
    answers: queue.SimpleQueue[list[Address] | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            answers.put([ip_address(entry[4][0]) for entry in found])
        except (OSError, ValueError):  # UnicodeError, of names that IDNA refuses, is a ValueError
            answers.put(None)

    # getaddrinfo has no timeout of its own: a thread that outlives our patience ends with the resolver's.
    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        addresses = answers.get(timeout=_left(deadline))
    except (queue.Empty, TimeoutError):
        raise FetchError("the host name was not resolved in time") from None
    if not addresses:
        raise FetchError("the host name cannot be resolved")
    return list(dict.fromkeys(addresses))


def _permitted(address: Address, target: _Target, allowed: Sequence[Network], loopback_allowed: bool) -> bool:
    address = _unwrapped(address)
    if loopback_allowed and address.is_loopback:
        return True
    if not target.secure:
        return False
    return any(address in network for network in allowed) or _is_public(address)


def _unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it stands for one."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _IPV6_UNICAST:
        return False
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


def _connect(target: _Target, addresses: Sequence[Address], deadline: float) -> socket.socket:
    """Connected to the first of the judged addresses that takes the connection, TLS done."""
    failure: OSError = TimeoutError()
    for address in addresses[:MAX_ADDRESSES]:
        try:
            plain = _connected(address, target.port, deadline)
        except OSError as error:
            failure = error
            continue
        return _secured(plain, target) if target.secure else plain
    raise failure


def _connected(address: Address, port: int, deadline: float) -> socket.socket:
    # Not socket.create_connection(), which would resolve once more.
    plain = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        plain.settimeout(_left(deadline))
        plain.connect((str(address), port))
    except BaseException:
        plain.close()
        raise
    return plain


def _secured(plain: socket.socket, target: _Target) -> socket.socket:
    try:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # The handshake shares what is left of the time: the ssl module takes the timeout for all of it.
        return context.wrap_socket(plain, server_hostname=target.host)
    except BaseException:
        plain.close()
        raise


def _exchange(
    connection: socket.socket, target: _Target, head: str, body: bytes | None, deadline: float, max_bytes: int
) -> Answer:
    """Ask, and read a 200."""
    method = "GET" if body is None else "POST"
    connection.settimeout(_left(deadline))
    connection.sendall(
        f"{method} {target.path} HTTP/1.1\r\nHost: {target.authority}\r\n{head}"
        "Accept-Encoding: identity\r\nUser-Agent: muniment\r\nConnection: close\r\n\r\n".encode("ascii")
        + (body or b"")
    )
    # HTTPResponse wants no more of a socket than makefile().
    reader = cast(socket.socket, _Reader(connection, deadline, max_bytes + MAX_HEAD))
    with http.client.HTTPResponse(reader, method=method) as response:
        response.begin()
        if 300 <= response.status < 400:
            raise FetchError("the server redirects, which is not followed", response.status)
        if response.status != 200:
            raise FetchError(f"the server answered {response.status}", response.status)
        if response.getheader("Content-Encoding", "identity").lower() != "identity":
            raise FetchError("the answer is compressed", 200)
        content, left = response.read(max_bytes + 1), response.length
        media_type = response.getheader("Content-Type", "").partition(";")[0].strip().lower()
    if len(content) > max_bytes:
        raise FetchError(f"the answer has more than {max_bytes} bytes", 200)
    if left:
        raise FetchError("the answer ends before its length", 200)
    return Answer(media_type, content)


class _Reader(io.RawIOBase):
    """A socket's incoming bytes until a deadline and up to a number of bytes, however slowly they drip."""

    def __init__(self, connection: socket.socket, deadline: float, limit: int) -> None:
        self._connection, self._deadline, self._limit = connection, deadline, limit

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(_left(self._deadline))
        count = self._connection.recv_into(buffer)
        self._limit -= count
        if self._limit < 0:
            raise FetchError("the answer is too large")
        return count


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
