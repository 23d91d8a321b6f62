"""Nothing is served from a database that was restored to a state in which erased users are there again."""

import json
import logging
import time
from collections.abc import Callable, Iterable
from threading import Lock, Thread
from typing import Any

from django.db import Error, connection

from audit.erasure.restoring import checked

logger = logging.getLogger(__name__)

OPEN = ("/livez", "/metrics")  # they read nothing of anybody
AGAIN = 2.0  # seconds between two looks while it is closed
LATER = 300.0  # and while it is open: a database may be restored under a process that runs
AWAY = "Whether users who were erased are there again could not be looked at: the database cannot be reached."
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Gate:
    """A WSGI application (PEP 3333) around another: until a look at the database found that every erasure of the log
    holds, each request but for those of `OPEN` is answered with 503. From then on it costs a comparison, and a look
    beside the requests every five minutes."""

    def __init__(self, application: Application, look: Callable[[], str] = checked) -> None:
        self.application, self.look = application, look
        self.open, self.why, self.looked_at = False, "", float("-inf")
        self.looking = Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer, or refuse to."""
        if self.open and time.monotonic() - self.looked_at > LATER:
            self._look_later()
        if self.open or environ.get("PATH_INFO") in OPEN or self.opens():
            return self.application(environ, start_response)
        members = {"type": "urn:muniment:problem:unavailable", "title": "Unavailable", "status": 503}
        body = json.dumps(members | {"detail": self.why}).encode()
        headers = [("Content-Type", "application/problem+json"), ("Content-Length", str(len(body))),
                   ("Retry-After", "5"), ("Cache-Control", "no-store")]  # fmt: skip
        start_response("503 Service Unavailable", headers)
        return [body]

    def opens(self) -> bool:
        """Whether it is open. While it is not: look, at most once in two seconds, one thread at a time."""
        with self.looking:
            if self.open or time.monotonic() - self.looked_at < AGAIN:
                return self.open
            try:
                why = self.look()
            except Error:
                why = AWAY
            finally:
                connection.close()  # it is of no request, and would outlive this one
            if why and why != self.why:
                logger.error("%s", why)
            self.why, self.open, self.looked_at = why, not why, time.monotonic()
            return self.open

    def _look_later(self) -> None:
        """Begin a look that no request waits for, unless one has begun."""
        with self.looking:
            if not self.open or time.monotonic() - self.looked_at <= LATER:
                return
            self.looked_at = time.monotonic()
        Thread(target=self._closes, name="erasure gate", daemon=True).start()

    def _closes(self) -> None:
        """Close it where erased users are there again. A database that is away, or slow, says nothing of that."""
        try:
            why = self.look()
        except Error:
            return
        finally:
            connection.close()
        if why:
            logger.error("%s", why)
            with self.looking:
                self.why, self.open = why, False
