"""Recorders of one's own, and entries for them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings

from audit import keys
from audit.batching import Signer
from audit.entries import Entry, Receipt
from audit.models import Head, PublishedKey
from audit.recording import Recorder, Result
from governance import process
from muniment.keys import thumbprint


def entry(tool: str = "memory.recall", version: int | None = None, **more: Any) -> Entry:
    """A small decision; `version` None: bound to no policy version."""
    statement = {"type": "decision", "decision": "allow", "reason": "granted", "backend": "inner", "tool": tool}
    statement |= {"policy": {"version": version or 0, "digest": None}}
    return Entry(statement=statement | more.pop("said", {}), version=version, **more)


def signer() -> Signer:
    """The process's writer key, published without the `key` record that the process itself would leave in the outbox:
    these tests count what is recorded."""
    private = Ed25519PrivateKey.from_private_bytes(settings.MUNIMENT_KEYS["WRITER_KEY"])
    public = keys.public_of(private)
    PublishedKey.objects.get_or_create(key_id=thumbprint(public), defaults={"use": "writer", "public": public})
    return Signer(private, thumbprint(public))


@contextmanager
def running(connect: Callable[[], psycopg.Connection] = process.connect, **options: Any) -> Iterator[Recorder]:
    """A recorder with the process's key; it is stopped in the end. A batch may take its time."""
    options.setdefault("timeout", 30.0)
    recorder = Recorder(connect, signer(), **options).start()
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
