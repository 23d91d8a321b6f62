"""What the adapters for HTTP have in common, whatever the framework: the token of a request, what is recorded of it,
and what its caller is answered where a tool did not run."""

from __future__ import annotations

import json
import re
import ssl
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from muniment.background import logger
from muniment.calls import NO_PROOF, Dpop
from muniment.errors import Denied, Misconfigured, MunimentError, Throttled, Unavailable, Unproved
from muniment.guard import Muniment
from muniment.metadata import challenge, metadata_paths, protected_resource
from muniment.redaction import redact

# Sent in place of a token that was not sent as one. No token can be this: the attempt is on record as malformed.
MALFORMED: Final = "?"
METADATA_SECONDS: Final = 300  # for so long may a cache keep the metadata; tools change when a backend is deployed
_BEARER: Final = re.compile(r"(?:bearer|dpop)(?:(?=[ \t]) *(.*))?", re.I | re.S)
_DPOP: Final = re.compile(r"dpop(?![^ \t])", re.I)
_B64TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 section 2.1
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_HEX: Final = re.compile(r"[0-9A-Fa-f]{64}")
_PORT: Final = re.compile(r"\[([^\]]*)\](?::\d+)?|([\d.]+):\d+")

Network = IPv4Network | IPv6Network


def bearer(values: Sequence[str]) -> str | None:
    """The token of the Authorization headers of a request (RFC 6750 section 2.1, RFC 9449 section 7.1; the scheme in
    any case, RFC 9110 section 11.1). None where there is none, or another scheme; MALFORMED for several headers, and
    for what is no token. A token in a query or in a body (RFC 6750 sections 2.2 and 2.3) is never looked for: these end
    up in logs."""
    if len(values) != 1:
        return MALFORMED if values else None
    found = _BEARER.fullmatch(values[0].strip(" \t"))
    if found is None:
        return None
    return found[1] if found[1] and _B64TOKEN.fullmatch(found[1]) else MALFORMED


def proof(authorization: Sequence[str], proofs: Sequence[str], method: str, url: str) -> Dpop | None:
    """The DPoP proof of a request, whose headers these are, at this URL (RFC 9449 section 7.1): None where the token is
    of another scheme, since one that is bound must not pass for a bearer token, and where there is no proof. Several
    headers are a proof that does not hold (section 4.3)."""
    if len(authorization) != 1 or not proofs or not _DPOP.match(authorization[0].strip(" \t")):
        return None
    return Dpop(proofs[0] if len(proofs) == 1 else NO_PROOF, method, url)


def url_of(guard: Muniment, scheme: str, host: str, path: str) -> str:
    """The URL of a request as its client knows it, by its path as it was sent. Its origin is that of the guard's
    `resource`, since the client chooses the Host header; only without one it is what the request says."""
    if guard.resource:
        origin = urlsplit(guard.resource)
        scheme, host = origin.scheme, origin.netloc
    return f"{scheme}://{host}{path}"


def thumbprint(certificate: str | bytes | None) -> str | None:
    """The SHA-256 of a client's certificate in base64url (RFC 8705 section 3.1), of whichever form a proxy or server
    has it in: PEM, also percent-encoded; DER; base64 between colons (RFC 9440); or its SHA-256 in hex. None where there
    is none, or nothing that can be read. Believe a header of it only from your own proxy."""
    if not certificate:
        return None
    try:
        if isinstance(certificate, str) and _HEX.fullmatch(certificate):
            digest = bytes.fromhex(certificate)
        else:
            digest = sha256(certificate if isinstance(certificate, bytes) else _der(certificate)).digest()
    except ValueError:
        return None
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


def _der(text: str) -> bytes:
    if text.startswith(":") and text.endswith(":"):
        return b64decode(text[1:-1], validate=True)
    return ssl.PEM_cert_to_DER_cert(unquote(text))


def trace_id(values: Sequence[str]) -> str | None:
    """The trace id of a `traceparent` header (W3C Trace Context section 3.2); None where it is not valid."""
    found = _TRACEPARENT.fullmatch(values[0].strip(" \t")) if len(values) == 1 else None
    return found[1] if found else None


def networks(trusted: Iterable[str]) -> tuple[Network, ...]:
    """Addresses and networks (CIDR) of proxies. Raises Misconfigured."""
    try:
        return tuple(ip_network(name) for name in trusted)
    except ValueError:
        raise Misconfigured("A trusted proxy must be an address or a network, such as 10.0.0.0/8.") from None


def source(peer: str | None, forwarded: Sequence[str], trusted: Sequence[Network]) -> str | None:
    """Where a request came from: the peer, or, where this is a trusted proxy, the last address of X-Forwarded-For that
    is none. Each proxy adds at the end, so that what stands before an untrusted address is that one's word."""
    found = _address(peer)
    if found is None:
        return peer
    chain = [part for value in forwarded for part in value.split(",")]
    while chain and any(found in network for network in trusted):
        if (before := _address(chain.pop())) is None:
            break
        found = before
    return str(found)


def _address(text: str | None) -> IPv4Address | IPv6Address | None:
    text = (text or "").strip(" \t")
    if with_port := _PORT.fullmatch(text):
        text = with_port[1] or with_port[2] or ""
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer that a framework has yet to send."""

    status: int
    headers: dict[str, str]
    body: bytes = b""


def refusal(error: MunimentError, guard: Muniment) -> Answer:
    """What the caller of a tool is answered that did not run: a problem document (RFC 9457) with the error's status and
    headers, the challenge with our own `resource_metadata`. A fault of the backend is a 500 that says nothing more; it
    is logged."""
    headers = error.headers | {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
    status = error.status if 400 <= error.status <= 599 else 500
    if isinstance(error, Denied):
        document = error.document
        if error.www_authenticate or status == 401:  # RFC 9110 section 15.5.2
            headers["WWW-Authenticate"] = challenge(error.www_authenticate, guard)
    elif isinstance(error, Unproved):
        document = {"type": "urn:muniment:problem:proof-invalid", "title": str(error), "status": status}
        headers["WWW-Authenticate"] = challenge(headers["WWW-Authenticate"], guard)
    elif isinstance(error, Unavailable | Throttled):
        kind = "unavailable" if isinstance(error, Unavailable) else "throttled"
        document = {"type": f"urn:muniment:problem:{kind}", "title": str(error), "status": status}
    else:
        logger.error("a call was refused by a fault of the backend: %s", redact(str(error)))
        document = {"type": "about:blank", "title": "Internal Server Error", "status": status}
    return Answer(status, headers, _dump(document))


def the_refusal(error: BaseException) -> MunimentError | None:
    """The refusal that an exception is, also where a task group wrapped it; None for any other."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, MunimentError) else None


class Metadata:
    """Serves the metadata of the backend (RFC 9728) at its well-known paths, for browsers of any origin as well. With
    a guard that has no `resource` there is nothing to serve. Raises Misconfigured for one that is no URL."""

    def __init__(self, guard: Muniment, name: str | None = None) -> None:
        self._guard, self._name = guard, name
        self._paths = {unquote(path) for path in metadata_paths(guard.resource)} if guard.resource else set()

    def answer(self, method: str, *paths: str) -> Answer | None:
        """The answer to a request with one of these decoded paths; None where it is for somebody else."""
        if self._paths.isdisjoint(paths):
            return None
        open_to_all = {"Access-Control-Allow-Origin": "*"}
        if method == "OPTIONS":  # a browser asks first if the request has a header such as MCP-Protocol-Version
            more = {"Access-Control-Allow-Methods": "GET, HEAD", "Access-Control-Allow-Headers": "*"}
            return Answer(204, open_to_all | more | {"Access-Control-Max-Age": "86400"})
        if method not in ("GET", "HEAD"):
            return Answer(405, {"Allow": "GET, HEAD, OPTIONS"})
        kept = {"Content-Type": "application/json", "Cache-Control": f"public, max-age={METADATA_SECONDS}"}
        return Answer(200, open_to_all | kept, _dump(protected_resource(self._guard, self._name)))


def _dump(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
