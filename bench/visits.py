"""Requests to a real web process, as a browser of a member of staff sends them, one after the other; and the same
requests in this process, to see the statements that they are made of."""

import http.client
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from typing import Any

from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.test import Client

from audit import recent_sign_in
from bench.platform import PORT

LINK = re.compile(r'<a\b[^>]*\brel="(next|prev|last|first)"[^>]*>')
HREF = re.compile(r'\bhref="([^"]+)"')
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: a path with its query, or a form that is posted to it; `key` is a staff key, for the API."""

    path: str
    form: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Its status, how long it took in milliseconds, and its text."""

    status: int
    spent: float
    body: str

    def links(self) -> dict[str, str]:
        """The pages beside it, by what they are to it: next, prev, last, first."""
        found = {}
        for tag in LINK.finditer(self.body):
            if href := HREF.search(tag[0]):
                found[tag[1]] = unescape(href[1])
        return found


class Visitor:
    """A signed-in browser over one kept connection."""

    def __init__(self, cookies: dict[str, str]) -> None:
        self.cookies = cookies
        self._http = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)

    def ask(self, asked: Asked) -> Answer:
        """Send it, take the answer whole; redirects are not followed."""
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        if asked.key:
            headers = {"Authorization": f"Bearer {asked.key}"}
        if asked.form is not None:
            headers |= {"Content-Type": FORM, "X-CSRFToken": self.cookies["csrftoken"]}
        start = time.perf_counter()
        self._http.request("POST" if asked.form is not None else "GET", asked.path, asked.form, headers)
        answer = self._http.getresponse()
        body = answer.read()
        return Answer(answer.status, 1000 * (time.perf_counter() - start), body.decode("utf-8", "replace"))


def visitor() -> Visitor:
    """The bench's member of staff, who may see everything, signed in a moment ago."""
    client = _client()
    cookies = {name: morsel.value for name, morsel in client.cookies.items()}
    return Visitor(cookies | {"csrftoken": "b" * 32})


def _client() -> Client:
    client = Client()
    client.force_login(get_user_model().objects.get(username="bench"))
    session = client.session
    session[recent_sign_in.SIGNED_IN_AT] = int(time.time())
    session.save()
    return client


@dataclass(slots=True)
class Statement:
    """One statement that a request ran: its SQL, its values, its milliseconds, and what was set for its transaction."""

    sql: str
    values: Any
    spent: float
    settings: str


@dataclass(slots=True)
class Watch:
    """Notes the reading statements that run while it is used as an execute wrapper."""

    seen: list[Statement] = field(default_factory=list)
    settings: str = ""

    def __call__(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        begins = sql.lstrip(" (\n").upper()
        if not connection.in_atomic_block:
            self.settings = ""
        if begins.startswith("SET LOCAL"):
            self.settings = sql
        start = time.perf_counter()
        try:
            return execute(sql, params, many, context)
        finally:
            if begins.startswith(("SELECT", "WITH")):
                self.seen.append(Statement(sql, params, 1000 * (time.perf_counter() - start), self.settings))


@contextmanager
def watched() -> Iterator[Watch]:
    """What this process's default connection is asked."""
    watch = Watch()
    with connection.execute_wrapper(watch):
        yield watch


class Inside:
    """The same requests without a server, for their statements."""

    def __init__(self) -> None:
        self.client = _client()

    def statements(self, asked: Asked) -> list[Statement]:
        """The reading statements of one request."""
        headers = {"Authorization": f"Bearer {asked.key}"} if asked.key else {}
        with watched() as watch:
            if asked.form is None:
                self.client.get(asked.path, headers=headers)
            else:
                self.client.post(asked.path, asked.form, content_type=FORM)
        return watch.seen


def plan(statement: Statement, *, run: bool) -> list[str]:
    """The plan's lines; with `run` as EXPLAIN (ANALYZE, BUFFERS) has it."""
    how = "EXPLAIN (ANALYZE, BUFFERS)" if run else "EXPLAIN"
    with transaction.atomic(), connection.cursor() as cursor:
        if statement.settings:
            cursor.execute(statement.settings)
        cursor.execute(f"{how} {statement.sql}", statement.values)
        return [line for (line,) in cursor.fetchall()]


def indexes_of(lines: Iterable[str], parents: dict[str, str]) -> set[str]:
    """The indexes that a plan uses, by the name that the partitioned table's index has."""
    used = (re.findall(r"(?:Index Scan|Index Only Scan)(?: Backward)? using (\S+)|Bitmap Index Scan on (\S+)", line)
            for line in lines)  # fmt: skip
    names = {name for found in used for pair in found for name in pair if name}
    return {parents.get(name, name) for name in names}
