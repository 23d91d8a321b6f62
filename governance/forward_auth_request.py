"""What a proxy asks at /v1/forward-auth: which request it holds, and whose. Read so that a client cannot choose.

A proxy sets `X-Muniment-Proxy` to what it is, which says where the original request stands:

| proxy | method | path |
|---|---|---|
| nginx | `X-Original-Method` | `X-Original-URI` |
| caddy, traefik | `X-Forwarded-Method` | `X-Forwarded-Uri` |
| envoy | the method of this request | `X-Original-URI`, and after the prefix of this path |

Of the client's headers a proxy may pass on those that it was told to, and no others. WSGI cannot tell `X_Original_Uri`
from `X-Original-URI` (RFC 3875 section 4.1.18), so with all of them a client could set what the proxy sets. Every
client sends `Accept`: where it arrives, the proxy passes on too much, and nothing is decided.
"""

import re
import ssl
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from django.http import HttpRequest

from governance.contract import ClientCertificate, Dpop, RequestInfo
from governance.problems import Problem
from tools.routes import Ambiguous, method_of, segments_of

PREFIX = "/v1/forward-auth"
METHODS = (
    "HTTP_X_ORIGINAL_METHOD", "HTTP_X_FORWARDED_METHOD", "HTTP_X_HTTP_METHOD_OVERRIDE", "HTTP_X_HTTP_METHOD",
    "HTTP_X_METHOD_OVERRIDE",
)  # fmt: skip
PATHS = ("HTTP_X_ORIGINAL_URI", "HTTP_X_FORWARDED_URI", "HTTP_X_ORIGINAL_URL", "HTTP_X_REWRITE_URL")
ORIGINAL, FORWARDED = (METHODS[0], PATHS[0]), (METHODS[1], PATHS[1])
PROXIES = {"nginx": ORIGINAL, "caddy": FORWARDED, "traefik": FORWARDED, "envoy": ("REQUEST_METHOD", PATHS[0])}
# What Caddy leaves in place of the fingerprint where the client showed no certificate.
CADDY_NONE = "{http.request.tls.client.fingerprint}"
_HEX = re.compile(r"[0-9A-Fa-f]{64}")
MOST_AUDIENCE, MOST_AGENT, MOST_ID = 256, 1024, 256
# The first revision of MCP in which a server compares these headers with the body.
HEADERS_SINCE = "2026-07-28"


@dataclass(frozen=True, slots=True)
class Asked:
    """The request that a proxy holds: its method, the decoded segments of its path, the audience of the identity
    assertion that is wanted, path and query as they came, and the client's certificate."""

    method: str
    path: tuple[str, ...]
    assertion: str | None
    uri: str
    certificate: ClientCertificate | None


class Proxy(NamedTuple):
    """Which proxy asks (None if it does not say), the audience after `; assertion=`, and the client's certificate after
    `; certificate=`, as the proxy writes it: all in the one header that every proxy sets itself."""

    name: str | None
    audience: str | None
    certificate: str


def proxy_of(request: HttpRequest) -> Proxy:
    """What X-Muniment-Proxy says."""
    name, *more = (part.strip(" ") for part in request.META.get("HTTP_X_MUNIMENT_PROXY", "").split(";"))
    said = {label: value.strip('"') for label, _, value in (part.partition("=") for part in more)}
    audience = said.get("assertion")
    known = (
        len(said) == len(more)
        and said.keys() <= {"assertion", "certificate"}
        and (audience is None or (0 < len(audience) <= MOST_AUDIENCE and audience.isprintable()))
    )
    return Proxy(name if known and name in PROXIES else None, audience, said.get("certificate", ""))


def asked(request: HttpRequest) -> Asked:
    """What the proxy asks. Raises a 403 Problem for a proxy that is not set up as it must be, and Ambiguous for a
    request that can be read in two ways."""
    proxy, audience, presented = proxy_of(request)
    if proxy is None:
        raise misconfigured("X-Muniment-Proxy must be nginx, caddy, traefik or envoy, once.")
    if "HTTP_ACCEPT" in request.META:
        raise misconfigured("The proxy passes on all headers of the client. It must pass on only those listed for it.")
    method_in, path_in = PROXIES[proxy]
    method, uri = request.META.get(method_in, ""), request.META.get(path_in, "")
    if not method or not uri:
        raise misconfigured("The proxy does not send the original method and path.")
    if proxy == "envoy" and not _is_after_prefix(request, uri):
        raise misconfigured("The path after /v1/forward-auth is not that of X-Original-URI.")
    _agree(request, METHODS, method)
    _agree(request, PATHS, uri)
    return Asked(method_of(method), segments_of(uri), audience, uri, certificate(presented))


def misconfigured(detail: str) -> Problem:
    """The proxy is not set up as it must be: nothing of it can be trusted."""
    return Problem(403, "proxy-misconfigured", "The proxy is not set up", detail)


def _agree(request: HttpRequest, names: tuple[str, ...], value: str) -> None:
    """Refuse a request that says twice, and differently, what it is: a backend may believe the other."""
    if any(request.META.get(name, value) != value for name in names):
        raise Ambiguous("Two headers name different requests.")


def _is_after_prefix(request: HttpRequest, uri: str) -> bool:
    """Whether Envoy's path, which the server decoded, is that of the header, which it did not."""
    return request.path_info == PREFIX + unquote(uri.partition("?")[0])


def mcp_tool(request: HttpRequest, tools: tuple[str, ...]) -> str | None:
    """The tool that the headers of an MCP call name (revision 2026-07-28, Streamable HTTP), if it is one of these. In
    an older revision a server does not look at them, and so they say nothing."""
    version = request.META.get("HTTP_MCP_PROTOCOL_VERSION", "")
    if len(version) != len(HEADERS_SINCE) or version < HEADERS_SINCE or not version.replace("-", "").isdigit():
        return None
    name = request.META.get("HTTP_MCP_NAME")
    return name if request.META.get("HTTP_MCP_METHOD") == "tools/call" and name in tools else None


def bearer(request: HttpRequest) -> str | None:
    """The user's token, as the client sent it (RFC 6750 section 2.1, RFC 9449 section 7.1); None where it sent none."""
    scheme, token = _credentials(request)
    return token or None if scheme in ("bearer", "dpop") else None


def _credentials(request: HttpRequest) -> tuple[str, str]:
    scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
    return scheme.lower(), token.strip(" ")


def proof(request: HttpRequest, question: Asked, audience: str) -> Dpop | None:
    """The DPoP proof that came with a token of that scheme (RFC 9449 section 7.1). The origin of the URL that it must
    be of is that of the backend's audience, never a Host header, which the client chooses. Several headers, which a
    server joins by commas, are a proof that does not hold."""
    header = request.META.get("HTTP_DPOP")
    if header is None or _credentials(request)[0] != "dpop":
        return None
    origin = urlsplit(audience)
    return Dpop(header, question.method, f"{origin.scheme}://{origin.netloc}{question.uri}")


def certificate(presented: str) -> ClientCertificate | None:
    """The client's certificate, as PEM that is percent-encoded (nginx, Traefik) or as its SHA-256 in hex (Caddy,
    Envoy); None where the client has none. Raises a 403 Problem for what is neither."""
    if not presented or presented == CADDY_NONE:
        return None
    try:
        if _HEX.fullmatch(presented):
            digest = bytes.fromhex(presented)
        else:
            digest = sha256(ssl.PEM_cert_to_DER_cert(unquote(presented))).digest()
    except ValueError:
        raise misconfigured("The client's certificate is neither PEM, percent-encoded, nor a SHA-256 in hex.") from None
    return ClientCertificate(urlsafe_b64encode(digest).rstrip(b"=").decode())


def info(request: HttpRequest) -> RequestInfo:
    """Ids of the request and where it came from, as far as the proxy says and they fit."""
    said = request.META.get
    address = said("HTTP_X_REAL_IP") or said("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2]
    return RequestInfo(
        id=_text(said("HTTP_X_REQUEST_ID"), MOST_ID),
        trace_id=_text(said("HTTP_TRACEPARENT"), MOST_ID),
        session_id=_text(said("HTTP_MCP_SESSION_ID"), MOST_ID),
        ip=_address(address.strip(" ")),
        user_agent=_text(said("HTTP_USER_AGENT"), MOST_AGENT),
    )


def _text(value: str | None, most: int) -> str | None:
    return value if value and len(value) <= most and value.isprintable() else None


def _address(value: str) -> str | None:
    try:
        return str(ip_address(value)) if "%" not in value else None
    except ValueError:
        return None
