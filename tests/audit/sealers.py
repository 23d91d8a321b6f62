"""Sealers of one's own over the test database: a random log key, a state folder that goes away with the test."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings

from audit.models import Checkpoint, Head
from audit.seal_reading import log_origin
from audit.seal_state import Halt, State, StateDir
from audit.sealing import Sealer
from governance.process import connect, recorder
from muniment import checkpoints, notes
from tests.audit.recorders import entry, receipts
from tests.staff import drained

ORIGIN = settings.MUNIMENT_LOG_ORIGIN


def sealer(
    folder: Path, private: Ed25519PrivateKey | None = None, kind: type[Sealer] = Sealer, page: int = 64
) -> Sealer:
    """A sealer with its state in this folder; close it, or the next one stands by."""
    return kind(connect, private or Ed25519PrivateKey.generate(), StateDir(folder), ORIGIN, page)


@contextmanager
def sealing(
    folder: Path, private: Ed25519PrivateKey | None = None, kind: type[Sealer] = Sealer, page: int = 64
) -> Iterator[Sealer]:
    """The same, closed in the end."""
    made = sealer(folder, private, kind, page)
    try:
        yield made
    finally:
        made.close()


def recorded(count: int = 1, at_once: int = 10, **more: object) -> None:
    """Put decisions into the log, in write batches of about `at_once`."""
    for start in range(0, count, at_once):
        receipts(recorder().record([entry(**more) for _ in range(min(at_once, count - start))]))  # type: ignore[arg-type]


def sealed(found: Sealer) -> State:
    """Seal all, the sealer's own key record too; the state then."""
    found.step()
    drained()
    found.step()
    state = found.directory.read()
    assert state is not None and state.size == state.sealed == Head.objects.get().next - state.start
    return state


def checkpoint(found: Sealer, log: int = 1) -> checkpoints.Checkpoint:
    """The newest checkpoint of the database, which this sealer's key signed."""
    row = Checkpoint.objects.filter(log=log).latest("size")
    key = notes.Key(log_origin(ORIGIN, log), notes.ED25519, found.public)
    read = checkpoints.read(row.note, [key])
    assert (read.size, read.root) == (row.size, bytes(row.root))
    return read


def altered(superuser_url: str, *statements: str) -> None:
    """Change the database as one who passes by all of its rules."""
    with psycopg.connect(superuser_url) as superuser:
        superuser.execute("SET session_replication_role = replica")
        for statement in statements:
            superuser.execute(statement)


def halted(found: Sealer, cause: str) -> Halt:
    """The halt with which the next step ends."""
    with pytest.raises(Halt) as caught:
        found.step()
    assert caught.value.cause == cause, caught.value
    return caught.value
