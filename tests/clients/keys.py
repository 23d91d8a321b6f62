"""Real keys, real tokens and a real authorization server on loopback, for tests."""

import base64
import functools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from clients import jwks
from clients.tokens import IssuerPolicy

ISSUER = "https://id.example/"
AUDIENCE = "https://inner.example/mcp"
NOW = 1_760_000_000.0
_SIGNERS = get_default_algorithms()
_CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


def b64(raw: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@dataclass(frozen=True)
class SigningKey:
    """A private key of a fake issuer and the algorithm it signs with."""

    algorithm: str
    private: Any
    kid: str | None

    def jwk(self, **changes: Any) -> dict[str, Any]:
        """The public JWK; `changes` replace members, None removes one."""
        members = _SIGNERS[self.algorithm].to_jwk(self.private.public_key(), as_dict=True)
        wanted = {name: members[name] for name in ("kty", "crv", "x", "y", "n", "e") if name in members}
        wanted |= {"kid": self.kid, "use": "sig", "alg": self.algorithm} | changes
        return {name: value for name, value in wanted.items() if value is not None}

    def sign(self, message: bytes) -> bytes:
        return _SIGNERS[self.algorithm].sign(message, self.private)

    def token(
        self,
        claims: Mapping[str, Any] | bytes | None = None,
        header: Mapping[str, Any] | bytes | None = None,
        **changes: Any,
    ) -> str:
        """A signed token. `claims` (or raw bytes) replaces the usual ones, `changes` amends them (None
        removes one); `header` amends the usual header (None removes), or is its raw bytes."""
        if not isinstance(header, bytes):
            usual = {"alg": self.algorithm, "typ": "at+jwt", "kid": self.kid}
            header = dump(usual | dict(header or {}))
        if not isinstance(claims, bytes):
            claims = dump((usual_claims() if claims is None else dict(claims)) | changes)
        signed = f"{b64(header)}.{b64(claims)}"
        return f"{signed}.{b64(self.sign(signed.encode()))}"


def dump(members: Mapping[str, Any]) -> bytes:
    """JSON without the members that are None."""
    return json.dumps({name: value for name, value in members.items() if value is not None}).encode()


def usual_claims(now: float = NOW) -> dict[str, Any]:
    """The claims of an ordinary access token (RFC 9068), issued now for five minutes."""
    return {
        "iss": ISSUER,
        "sub": "alice",
        "aud": AUDIENCE,
        "client_id": "claude-app",
        "scope": "memory:read",
        "iat": int(now),
        "exp": int(now) + 300,
        "jti": "t-1",
    }


@functools.cache
def signing_key(algorithm: str = "ES256", kid: str | None = "k1", number: int = 0, bits: int = 2048) -> SigningKey:
    """A key, the same one for the same arguments within a test run."""
    if algorithm in _CURVES:
        return SigningKey(algorithm, ec.generate_private_key(_CURVES[algorithm]), kid)
    if algorithm == "EdDSA":
        return SigningKey(algorithm, ed25519.Ed25519PrivateKey.generate(), kid)
    if algorithm == "Ed448":
        return SigningKey("EdDSA", ed448.Ed448PrivateKey.generate(), kid)
    return SigningKey(algorithm, rsa.generate_private_key(65537, bits), kid)


def policy(*published: Mapping[str, Any], **changes: Any) -> dict[str, IssuerPolicy]:
    """The issuers mapping of identify(): one issuer that published these JWKs."""
    usual: dict[str, Any] = {
        "id": 7,
        "issuer": ISSUER,
        "algorithms": jwks.SUPPORTED,
        "leeway": 30,
        "max_lifetime": 86400,
        "tenant_claim": None,
        "roles_claim": None,
        "keys": jwks.parse({"keys": list(published)}),
        "fetched": True,
    }
    issuer = IssuerPolicy(**usual | changes)
    return {issuer.issuer: issuer}


@dataclass
class FakeIssuer:
    """What the server answers; tests change it while it runs. `hits` counts requests by path."""

    url: str
    jwks: Any = None
    discovery: dict[str, Any] = field(default_factory=dict)  # amends the document; None removes a member
    metadata_path: str = "/.well-known/openid-configuration"
    released: threading.Event = field(default_factory=threading.Event)  # cleared, no answer begins until it is set
    delay: float = 0.0  # seconds before the answer begins
    drip: float = 0.0  # seconds between single bytes of the body
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # instead of every document
    hits: Counter[str] = field(default_factory=Counter)

    def answer(self, path: str) -> tuple[int, bytes]:
        self.hits[path] += 1
        if self.body is not None:
            return self.status, self.body
        if path == self.metadata_path:
            document = {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"} | self.discovery
            return self.status, dump(document)
        if path == "/jwks":
            return self.status, json.dumps(self.jwks or {"keys": []}).encode()
        return 404, b"{}"


@contextmanager
def fake_issuer(*published: Mapping[str, Any], ssl_context: Any = None) -> Iterator[FakeIssuer]:
    """A running issuer on a free port of 127.0.0.1, gone when the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.released.wait(30)
            time.sleep(issuer.delay)
            status, body = issuer.answer(self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **issuer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for piece in [body[i : i + 1] for i in range(len(body))] if issuer.drip else [body]:
                try:
                    self.wfile.write(piece)
                except OSError:
                    return  # the other side has had enough
                time.sleep(issuer.drip)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that hangs up or distrusts the certificate is what some tests want

    server = Server(("127.0.0.1", 0), Handler)
    scheme = "http"
    if ssl_context is not None:
        server.socket = ssl_context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "https"
    issuer = FakeIssuer(f"{scheme}://127.0.0.1:{server.server_port}", {"keys": list(published)})
    issuer.released.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
