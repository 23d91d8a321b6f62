"""A real authorization server's introspection endpoint on loopback (RFC 7662, RFC 9701), for tests."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from django.utils import timezone

from audit.protection import keyring, protect
from clients.models import Introspection, Issuer
from tests.clients.keys import SigningKey
from tests.world import AUDIENCE

SECRET = "s3cret: with %, + and ü"
CLIENT_ID = "https://muniment.example/?a=b c"


@dataclass
class Server:
    """What the server answers; tests change it while it runs. `forms` and `heads` are what it was sent."""

    url: str
    tokens: dict[str, dict[str, Any]] = field(default_factory=dict)
    key: SigningKey | None = None  # signs the answers
    header: dict[str, Any] = field(default_factory=dict)  # amends that of a signed answer
    around: dict[str, Any] = field(default_factory=dict)  # amends what is around the answer in a signed one
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # instead of every answer
    released: threading.Event = field(default_factory=threading.Event)  # cleared, no answer begins until it is set
    delay: float = 0.0  # seconds before an answer
    forms: list[dict[str, str]] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)

    def asked(self, token: str) -> int:
        """How often it was asked about a token."""
        return sum(form["token"] == token for form in list(self.forms))

    def answer(self, token: str) -> tuple[str, bytes]:
        """Media type and body."""
        said = self.tokens.get(token, {"active": False})
        if self.body is not None:
            return "application/json", self.body
        if self.key is None:
            return "application/json", json.dumps(said).encode()
        around = {"iss": self.url, "aud": CLIENT_ID, "iat": int(time.time()), "token_introspection": said} | self.around
        signed = self.key.token(around, {"typ": "token-introspection+jwt"} | self.header)
        return "application/token-introspection+jwt", signed.encode()


def active(**claims: Any) -> dict[str, Any]:
    """What is said of an active token of alice's; None takes a member away."""
    now = int(time.time())
    said = {
        "active": True, "sub": "alice", "aud": AUDIENCE, "client_id": "claude-app", "scope": "memory:read",
        "iat": now - 5, "exp": now + 300, "token_type": "Bearer",
    }  # fmt: skip
    return {name: value for name, value in (said | claims).items() if value is not None}


@contextmanager
def introspecting(**tokens: dict[str, Any]) -> Iterator[Server]:
    """A running server on a free port of 127.0.0.1, gone when the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = self.rfile.read(int(self.headers["Content-Length"])).decode("ascii")
            found.forms.append({name: one[0] for name, one in parse_qs(form, strict_parsing=True).items()})
            found.heads.append(dict(self.headers.items()))
            found.released.wait(30)
            time.sleep(found.delay)
            media_type, body = found.answer(found.forms[-1]["token"])
            self.send_response(found.status)
            for name, value in {
                "Content-Type": media_type, "Content-Length": str(len(body)), **found.headers
            }.items():  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:
                return  # the other side has had enough

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Listening(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that hangs up is what some tests want

    server = Listening(("127.0.0.1", 0), Handler)
    found = Server(f"http://127.0.0.1:{server.server_port}", dict(tokens))
    found.released.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def register(server: Server, secret: str | None = SECRET, issuer: dict[str, Any] | None = None, **how: Any) -> Issuer:
    """An issuer whose opaque tokens this server knows."""
    made = Issuer.objects.create(**{"issuer": server.url} | (issuer or {}))
    values: dict[str, Any] = {"endpoint": f"{server.url}/introspect", "client_id": CLIENT_ID}
    if secret is not None:
        holder = f"introspection:{made.pk}"
        key = keyring.get(holder, create=True)
        values |= {"secret": protect(key, secret.encode(), holder.encode()), "secret_set_at": timezone.now()}
    Introspection.objects.create(issuer=made, **values | how)
    return made
