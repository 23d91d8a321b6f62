"""A real transmitter of security events on loopback that is polled (RFC 8936), for tests."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Transmitter:
    """What it holds and what it was told."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.held: dict[str, Any] = {}
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.errors: dict[str, Any] = {}
        self.before_ack: Callable[[], Any] | None = None  # called once, in the place of the first acknowledgement
        self.status = 200
        self.body: bytes | None = None  # instead of what it holds
        self.page = 20

    def answer(self, asked: dict[str, Any]) -> bytes:
        """RFC 8936 section 2.5."""
        self.asked.append(asked)
        if asked.get("ack") and self.before_ack is not None:
            hook, self.before_ack = self.before_ack, None
            hook()
            return b"{}"  # to nobody: it does not learn what was taken
        self.errors |= asked.get("setErrs", {})
        for name in [*asked.get("ack", []), *asked.get("setErrs", {})]:
            self.held.pop(name, None)
        if self.body is not None:
            return self.body
        most = min(asked["maxEvents"], self.page)
        sent = dict(list(self.held.items())[:most])
        return json.dumps({"sets": sent, "moreAvailable": len(self.held) > len(sent)}).encode()


@contextmanager
def running() -> Iterator[Transmitter]:
    """One on a free port of loopback, gone when the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.headers.append(dict(self.headers))
            body = found.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(found.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Transmitter(f"http://127.0.0.1:{server.server_port}/poll")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
