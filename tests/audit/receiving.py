"""Receivers of streams on loopback: a webhook that answers as it is told, and syslog servers over UDP, TCP and TLS."""

import base64
import hmac
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import yaml

from audit.models import Stream
from audit.streams import delivering

KEY = b"0123456789abcdef0123456789abcdef"
# However slow the machine is, one run of a test delivers all that there is.
delivering.RUN_SECONDS = 60.0
SECRET = "whsec_" + base64.b64encode(KEY).decode()
Answer = int | tuple[int, dict[str, str]]


@dataclass
class Delivery:
    """One request that a receiver got."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def events(self) -> list[dict[str, Any]]:
        """The CloudEvents in it."""
        found: list[dict[str, Any]] = json.loads(self.body)
        return found

    @property
    def indices(self) -> list[int]:
        """The indices of the records in it."""
        return [event["data"]["metadata"]["sequence"] for event in self.events]

    def signed_by(self, key: bytes) -> bool:
        """Whether one of its signatures is by this key, as Standard Webhooks says."""
        content = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        wanted = "v1," + base64.b64encode(hmac.digest(key, content, sha256)).decode()
        return wanted in self.headers["webhook-signature"].split(" ")


@dataclass
class Webhook:
    """A receiver. `answer` says what it answers to a delivery: 200 unless told otherwise."""

    url: str = ""
    got: list[Delivery] = field(default_factory=list)
    answer: Callable[[Delivery], Answer] = lambda _: 200

    @property
    def accepted(self) -> list[int]:
        """The indices of the records that it took, in the order in which they came."""
        return [index for one in self.got if one.headers["answered"] == "200" for index in one.indices]


@contextmanager
def webhook(context: ssl.SSLContext | None = None) -> Iterator[Webhook]:
    """A webhook over HTTP, or with a context over TLS."""
    found = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            one = Delivery(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            answer = found.answer(one)
            status, headers = answer if isinstance(answer, tuple) else (answer, {})
            one.headers["answered"] = str(status)
            found.got.append(one)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
            server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up is a test
        scheme, host = ("https", "localhost") if context else ("http", "127.0.0.1")
        found.url = f"{scheme}://{host}:{server.server_address[1]}/siem"
        thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join(30)


@dataclass
class Syslog:
    """A syslog server, and the messages that it got."""

    url: str
    got: list[bytes] = field(default_factory=list)

    def wait_for(self, count: int, seconds: float = 30) -> list[bytes]:
        """So many messages, once they are there."""
        until = time.monotonic() + seconds
        while len(self.got) < count and time.monotonic() < until:
            time.sleep(0.01)
        assert len(self.got) == count, self.got
        return self.got


@contextmanager
def syslog_udp() -> Iterator[Syslog]:
    """A server that takes datagrams (RFC 5426)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.05)
        stopped: list[bool] = []
        found = Syslog(f"syslog://127.0.0.1:{server.getsockname()[1]}")

        def work() -> None:
            while not stopped:
                with suppress(TimeoutError):
                    found.got.append(server.recv(65536))

        with _running(work, stopped):
            yield found


@contextmanager
def syslog_tcp(context: ssl.SSLContext | None = None) -> Iterator[Syslog]:
    """A server that reads frames with their length in front (RFC 6587), with a context over TLS (RFC 5425)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        kind, host = ("syslog+tls", "localhost") if context else ("syslog+tcp", "127.0.0.1")
        stopped: list[bool] = []
        found = Syslog(f"{kind}://{host}:{server.getsockname()[1]}")

        def work() -> None:
            while not stopped:
                with suppress(TimeoutError, ssl.SSLError, OSError):
                    connection, _ = server.accept()
                    connection.settimeout(30)
                    with context.wrap_socket(connection, server_side=True) if context else connection as stream:
                        found.got += list(frames(stream))

        with _running(work, stopped):
            yield found


def frames(stream: socket.socket) -> Iterator[bytes]:
    """The messages of a stream, to its end; one that is cut off is none."""
    with stream.makefile("rb") as file:
        while length := _length(file):
            message = file.read(length)
            if len(message) < length:
                return
            yield message


def _length(file: Any) -> int:
    digits = b""
    while (byte := file.read(1)) not in (b"", b" "):
        digits += byte
    return int(digits or b"0")


@contextmanager
def _running(work: Callable[[], None], stopped: list[bool]) -> Iterator[None]:
    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.append(True)
        thread.join(30)
        assert not thread.is_alive()


def configure(settings: Any, *entries: dict[str, Any]) -> None:
    """Have these streams configured, as the worker would: name `siem` unless they say otherwise."""
    listed = [{"name": "siem"} | entry for entry in entries]
    settings.MUNIMENT_STREAMS = yaml.safe_dump(listed)


def hook(receiver: Webhook, **more: Any) -> dict[str, Any]:
    """An entry for a webhook, from the first record on."""
    return {"kind": "webhook", "url": receiver.url, "secret": SECRET, "from": 0} | more


def run(name: str = "siem") -> Stream:
    """What the worker does each five seconds, for one stream; its row then."""
    delivering.publish()
    delivering.deliver(name)
    return Stream.objects.get(name=name)
