"""Putting files to destinations, and servers on loopback that keep them: S3 and HTTP."""

import logging
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import JSONFileLoader
from moto.server import ThreadedMotoServer

from audit import destinations
from audit.destinations import Destination
from audit.destinations.base import Sending

SECRET = "s3cretThatNobodyMaySee"


def one(entry: str) -> Destination:
    """The destination that an entry says."""
    [found] = destinations.parse(f"- {entry}")
    return found


@contextmanager
def moto() -> Iterator[str]:
    """The address of an S3 server. Meanwhile boto3 reads what it knows of S3 once, not with each client."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    read = cache(JSONFileLoader().load_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", lambda _, path: read(path))
        yield f"http://{host}:{port}"
    server.stop()


def put(chosen: Destination, file: Path) -> None:
    chosen.put(Sending.of(file))


@dataclass
class HttpServer:
    """A running one: what it stored, what it was asked, and what it is to answer instead."""

    url: str = ""
    stored: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    conditional: bool = True


@contextmanager
def http_server(context: ssl.SSLContext | None = None) -> Iterator[HttpServer]:
    """A server that keeps what is PUT, on the condition that is asked for."""
    state = HttpServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.asked.append((self.command, self.path, dict(self.headers.items())))
            status, answer = state.answers.get(self.command) or self._usual(body)
            self.send_response(status)
            for name, value in {"Location": "/elsewhere"}.items() if 300 <= status < 400 else ():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)

        def _usual(self, body: bytes) -> tuple[int, bytes]:
            path = self.path.partition("?")[0]
            if self.command in ("GET", "HEAD"):
                return (200, state.stored[path]) if path in state.stored else (404, b"")
            if self.headers.get("If-None-Match") and not state.conditional:
                return 501, b"<Error><Code>NotImplemented</Code></Error>"
            if self.headers.get("If-None-Match") == "*" and path in state.stored:
                return 412, b""
            state.stored[path] = body
            return 201, b""

        do_GET = do_HEAD = do_PUT = _handle

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        state.url = f"{'https' if context else 'http'}://127.0.0.1:{server.server_address[1]}"
        try:
            yield state
        finally:
            server.shutdown()
            thread.join(5)
