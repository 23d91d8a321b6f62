"""WSGI and ASGI applications behind a real HTTP server on a free loopback port, in this process: for tests of those who
call them. (What is about processes and their death uses `tests.live`.)"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from django.core.wsgi import get_wsgi_application
from django.db import connections
from werkzeug.serving import WSGIRequestHandler, make_server

Application = Callable[..., Any]


class Handler(WSGIRequestHandler):
    """Keeps connections, as production does, and lets go of the database's with them."""

    protocol_version = "HTTP/1.1"

    def log(self, *_: Any, **__: Any) -> None:
        """Not in the tests' output."""

    def handle(self) -> None:
        """All requests of one connection, in a thread of its own."""
        try:
            super().handle()
        finally:
            connections.close_all()


@contextmanager
def served(application: Application, port: int = 0) -> Iterator[str]:
    """A WSGI application's URL, while it is served."""
    server = make_server("127.0.0.1", port, application, threaded=True, request_handler=Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@contextmanager
def platform(port: int = 0) -> Iterator[str]:
    """The platform's URL; it decides and records in the tests' database."""
    from governance.erasure_gate import Gate

    with served(Gate(get_wsgi_application()), port) as url:
        yield url


@contextmanager
def asgi(application: Application, port: int = 0, **settings: Any) -> Iterator[str]:
    """An ASGI application's URL, while uvicorn serves it."""
    config = uvicorn.Config(application, host="127.0.0.1", port=port, log_level="warning", **settings)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the ASGI server ended"
        assert time.monotonic() < deadline, "the ASGI server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
