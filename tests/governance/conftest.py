"""The application on a port, and a browser that visits it. A test's module brings the `world`."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.servers.basehttp import ThreadedWSGIServer
from django.core.wsgi import get_wsgi_application
from django.db import connections
from django.test.testcases import QuietWSGIRequestHandler

from tests.browser import CHROMIUM, Visitor, launched
from tests.world import World


@pytest.fixture
def server(world: World) -> Iterator[str]:
    """The whole application on a port of loopback."""
    httpd = ThreadedWSGIServer(("127.0.0.1", 0), QuietWSGIRequestHandler)
    httpd.daemon_threads = False  # so that server_close waits for them, and they close their connections
    httpd.set_app(get_wsgi_application())
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join(timeout=10)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser itself, which takes longer to start than many a test does."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with pytest.MonkeyPatch.context() as patch, playwright.sync_playwright() as started:
        # Playwright's synchronous API runs an event loop in this thread, which Django takes for asynchronous code.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        browser = launched(started)
        yield browser
        browser.close()
        # To Django this event loop is a place of its own, with connections of its own.
        connections.close_all()


@pytest.fixture
def visitor(server: str, chromium: Any) -> Iterator[Visitor]:
    """One who has never been here."""
    made = Visitor(chromium, server)
    yield made
    made.page.context.close()
