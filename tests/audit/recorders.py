"""Recorders of one's own, and entries for them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg

from audit.entries import Entry, Receipt
from audit.models import Head
from audit.recording import Recorder, Result
from governance import process


def entry(tool: str = "memory.recall", version: int | None = None, **more: Any) -> Entry:
    """A small decision; `version` None: bound to no policy version."""
    statement = {"type": "decision", "decision": "allow", "reason": "granted", "backend": "inner", "tool": tool}
    statement |= {"policy": {"version": version or 0, "digest": None}}
    return Entry(statement=statement | more.pop("said", {}), version=version, **more)


@contextmanager
def running(connect: Callable[[], psycopg.Connection] = process.connect, **options: Any) -> Iterator[Recorder]:
    """A recorder with the process's key; it is stopped in the end."""
    recorder = Recorder(connect, process.signer("WRITER_KEY", "writer"), **options).start()
    try:
        yield recorder
    finally:
        recorder.stop()
        assert not recorder.thread.is_alive()


def receipts(results: list[Result]) -> list[Receipt]:
    """All of them, which must be receipts."""
    for result in results:
        assert isinstance(result, Receipt), result
    return results  # type: ignore[return-value]


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Each call in a thread of its own; what they returned, or raised."""

    def run(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def version() -> int:
    """The policy version of the head."""
    return Head.objects.get().policy
