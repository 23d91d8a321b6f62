"""The sealer reads what was recorded and signs it; whatever a crash cuts off, it goes on to the same root."""

import os
import secrets
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from django.utils import timezone

from audit import anchors
from audit.anchors.base import Submission
from audit.models import Checkpoint, Head, Log, Outbox, Record, SealerStatus, Tile
from audit.seal_state import LEAVES, STATE, Refused, State, StateDir
from audit.sealing import Sealer
from muniment import checkpoints, merkle
from muniment.tiles import Tree
from tests.audit import sealers
from tests.audit.sealers import checkpoint, recorded, sealed, sealing
from tests.live import ROOT
from tests.staff import drained

LOG_KEY = Ed25519PrivateKey.generate()


def leaves() -> list[bytes]:
    """The leaves that the records give, told apart from what the sealer computed."""
    statements = Record.objects.order_by("index").values_list("statement", flat=True)
    return [merkle.leaf_hash(bytes(statement)) for statement in statements]


def stored(level: int, index: int) -> bytes:
    return bytes(Tile.objects.get(log=1, level=level, index=index).hashes)


def is_whole(one: Sealer) -> None:
    """Checkpoint, tiles and files of a sealer say what the records say."""
    found, expected = checkpoint(one), leaves()
    assert found.root == merkle.root(expected[: found.size])
    assert one.directory.leaves(0, found.size) == expected[: found.size]
    tree = Tree(found.size, stored)
    assert tree.root() == found.root
    assert tree.leaves(0, found.size) == expected[: found.size]


def test_what_is_recorded_is_sealed(db: None, tmp_path: Path) -> None:
    with sealing(tmp_path) as one:
        assert one.step() == 0 and Checkpoint.objects.count() == 0, "there is nothing to sign"
        recorded(3)
        drained()  # the keys too, which might else come between the step and the look at the head
        assert one.step() == Head.objects.get().next >= 4
        assert Log.objects.get().origin == sealers.ORIGIN == checkpoint(one).origin
        is_whole(one)
        assert SealerStatus.objects.get().state == "active"
        assert one.step() == 0


def test_the_tree_grows_over_full_tiles_in_pages(db: None, tmp_path: Path) -> None:
    with sealing(tmp_path, page=100) as one:
        recorded(700, 50)
        sealed(one)
        is_whole(one)
        assert Checkpoint.objects.count() >= 7
        for size, root in Checkpoint.objects.values_list("size", "root"):
            assert bytes(root) == merkle.root(leaves()[:size]), "each page ends with a checkpoint that holds"
        recorded(300, 50)
        sealed(one)
        is_whole(one)


def test_another_sealer_goes_on_from_the_same_folder(db: None, tmp_path: Path) -> None:
    recorded(30)
    with sealing(tmp_path, LOG_KEY) as one:
        sealed(one)
    recorded(30)
    with sealing(tmp_path, LOG_KEY) as two:
        sealed(two)
        is_whole(two)


def test_only_the_owner_of_the_folder_may_look_into_it(db: None, tmp_path: Path) -> None:
    with sealing(tmp_path / "seal") as one:
        recorded(1)
        one.step()
        assert one.directory.path.stat().st_mode & 0o077 == 0
        assert all(path.stat().st_mode & 0o077 == 0 for path in one.directory.path.iterdir())


def test_a_state_comes_back_as_it_was_written(db: None, tmp_path: Path) -> None:
    with sealing(tmp_path) as one:
        recorded(300, 50)
        state = sealed(one)
        assert State.decode(state.encode()) == state


# --- crashes, in each gap of the order ----------------------------------------------------------------------


class Crash(Exception):
    """Stands for a kill."""


class _Crashing(Sealer):
    """Fails at one place of the order, once."""

    at = ""

    def _crash(self, place: str) -> None:
        if self.at == place:
            self.at = ""
            raise Crash

    def _append(self, state: Any, leaves: Any) -> None:
        self._crash("before the leaves")
        super()._append(state, leaves)
        self._crash("before the state")

    def _save(self, held: Any, state: Any) -> None:
        super()._save(held, state)
        self._crash("before the database")

    def _publish(self, state: Any, root: bytes, tiles: Any) -> None:
        super()._publish(state, root, tiles)
        self._crash("after the database")


@pytest.mark.parametrize(
    "place", ["before the leaves", "before the state", "before the database", "after the database"]
)
@pytest.mark.parametrize("more", [0, 290])
def test_after_a_crash_the_same_root_is_reached(db: None, tmp_path: Path, place: str, more: int) -> None:
    with sealing(tmp_path, LOG_KEY, _Crashing) as one:
        recorded(20)
        sealed(one)
        recorded(300, 50)
        one.at = place  # type: ignore[attr-defined]
        with pytest.raises(Crash):
            one.step()
    recorded(more, 50)
    with sealing(tmp_path, LOG_KEY) as two:
        sealed(two)
        is_whole(two)
    for size, root in Checkpoint.objects.values_list("size", "root"):
        assert bytes(root) == merkle.root(leaves()[:size])


def test_after_a_crash_the_very_same_sealer_goes_on(db: None, tmp_path: Path) -> None:
    with sealing(tmp_path, LOG_KEY, _Crashing) as one:
        for place in ("before the leaves", "before the state", "before the database", "after the database"):
            recorded(10)
            one.at = place  # type: ignore[attr-defined]
            with pytest.raises(Crash):
                one.step()
        sealed(one)
        is_whole(one)


def test_a_checkpoint_that_a_crash_kept_back_is_published_as_it_was_signed(db: None, tmp_path: Path) -> None:
    with sealing(tmp_path, LOG_KEY, _Crashing, page=1000) as one:
        recorded(400, 100)
        one.at = "before the database"  # type: ignore[attr-defined]
        with pytest.raises(Crash):
            one.step()
        kept = one.directory.read()
        assert kept is not None and Checkpoint.objects.count() == 0 and Tile.objects.count() == 0
    with sealing(tmp_path, LOG_KEY) as two:
        two.step()
        assert Checkpoint.objects.get(size=kept.size).note == kept.note
        is_whole(two)


def test_a_session_that_is_lost_changes_nothing(db: None, tmp_path: Path, superuser_url: str) -> None:
    with sealing(tmp_path, LOG_KEY) as one:
        recorded(10)
        one.step()
        recorded(10)
        assert one.session.connection is not None
        pid = one.session.connection.info.backend_pid
        sealers.altered(superuser_url, f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(psycopg.OperationalError):
            one.step()
        until(lambda: one.step() >= 10)  # the server may hold the lost session's lock for a moment
        sealed(one)
        is_whole(one)


def environment(folder: Path) -> dict[str, str]:
    """What a sealer of its own process is given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MUNIMENT_")}
    return kept | {
        "MUNIMENT_MODE": "demo", "MUNIMENT_PROCESS": "seal", "MUNIMENT_VAR": os.environ["MUNIMENT_VAR"],
        "MUNIMENT_SEAL_STATE": str(folder), "MUNIMENT_LOG_ORIGIN": sealers.ORIGIN,
        "MUNIMENT_LOG_KEY": b64encode(LOG_KEY.private_bytes_raw()).decode(),
        "DJANGO_SETTINGS_MODULE": "governance.settings",
    }  # fmt: skip


def command(folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """A real `manage.py seal`."""
    return subprocess.Popen(
        [sys.executable, "manage.py", "seal", *arguments], cwd=ROOT, env=environment(folder),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def until(done: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for it, or fail."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def test_killed_at_any_moment_it_reaches_the_same_root(db: None, tmp_path: Path) -> None:
    recorded(10)
    for _ in range(2):
        before = Checkpoint.objects.count()
        process = command(tmp_path)
        try:
            until(lambda before=before: Checkpoint.objects.count() > before)  # type: ignore[misc]
            for _ in range(secrets.randbelow(4)):
                recorded(300, 100)
            time.sleep(secrets.randbelow(800) / 1000)
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.communicate()
        recorded(20)
    with sealing(tmp_path, LOG_KEY) as one:
        until(lambda: one.step() > 0)  # the server may hold the killed one's lock for a moment
        sealed(one)
        is_whole(one)
    for size, root in Checkpoint.objects.values_list("size", "root"):
        assert bytes(root) == merkle.root(leaves()[:size])


def test_it_stops_when_it_is_told_to_and_waits_for_no_database(db: None, tmp_path: Path) -> None:
    recorded(10)
    process = command(tmp_path)
    try:
        until(lambda: Checkpoint.objects.exists())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


# --- starting without a state -------------------------------------------------------------------------------


def test_without_its_state_it_refuses_a_log_that_was_sealed(db: None, tmp_path: Path) -> None:
    recorded(10)
    with sealing(tmp_path / "one", LOG_KEY) as one:
        sealed(one)
    with sealing(tmp_path / "two", LOG_KEY) as two, pytest.raises(Refused, match="seal --from FILE"):
        two.step()
    assert not (tmp_path / "two" / STATE).exists()


def test_from_a_checkpoint_all_is_read_again(db: None, tmp_path: Path) -> None:
    with sealing(tmp_path / "one", LOG_KEY) as one:
        for _ in range(6):
            recorded(60, 20)
            sealed(one)
    anchored = Checkpoint.objects.order_by("size")[2]
    recorded(40)
    with sealing(tmp_path / "two", LOG_KEY) as two:
        two.start_from(anchored.note)
        sealed(two)
        is_whole(two)
        state = two.directory.read()
        assert state is not None and not state.must and len(state.writers) == 1


def test_from_a_checkpoint_that_the_database_lacks_too(db: None, tmp_path: Path, superuser_url: str) -> None:
    with sealing(tmp_path / "one", LOG_KEY) as one:
        recorded(400, 50)
        sealed(one)
        note = Checkpoint.objects.latest("size").note
    sealers.altered(superuser_url, "DELETE FROM audit_checkpoint WHERE size > 200", "DELETE FROM audit_tile")
    with sealing(tmp_path / "two", LOG_KEY) as two:
        two.start_from(note)
        sealed(two)
        assert Checkpoint.objects.filter(note=note).exists(), "it is published again"
        is_whole(two)


def test_from_a_checkpoint_that_the_records_do_not_lead_to_nothing_is_signed(db: None, tmp_path: Path) -> None:
    recorded(30)
    size = Head.objects.get().next
    other = checkpoints.Checkpoint(sealers.ORIGIN, size, merkle.leaf_hash(b"another history"))
    with sealing(tmp_path, LOG_KEY) as one:
        one.start_from(checkpoints.sign(other, LOG_KEY))
        sealers.halted(one, "fork")
        assert Checkpoint.objects.count() == 0
        longer = checkpoints.Checkpoint(sealers.ORIGIN, 1000, merkle.leaf_hash(b"a log that was longer"))
        one.start_from(checkpoints.sign(longer, LOG_KEY))
        sealers.halted(one, "rollback")
        assert Checkpoint.objects.count() == 0


@pytest.mark.parametrize("told", [True, False])
def test_what_retention_deleted_is_read_from_the_tree(db: None, tmp_path: Path, superuser_url: str, told: bool) -> None:
    with sealing(tmp_path / "one", LOG_KEY) as one:
        recorded(60, 20)
        sealed(one)
        ranges = [[5, 3], [8, 20 if told else 2]]
        members = {"action": "deleted", "ranges": ranges}
        Outbox.objects.create(kind="retention", members=members, at=timezone.now(), actor="system", xact="")
        drained()
        root = checkpoint(one).root if one.step() else b""
    sealers.altered(superuser_url, "DELETE FROM audit_record WHERE index BETWEEN 5 AND 27")
    with sealing(tmp_path / "two", LOG_KEY) as two:
        two.start_from(Checkpoint.objects.latest("size").note)
        if told:
            two.step()
            assert checkpoint(two).root == root
            recorded(10)
            sealed(two)
        else:
            recorded(10)
            assert sealers.halted(two, "record-missing").index == 5


def test_from_an_anchor_too_the_records_must_lead_to_what_it_holds(
    db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sealing(tmp_path / "one", LOG_KEY) as one:
        recorded(20)
        sealed(one)
    note = Checkpoint.objects.latest("size").note
    held = checkpoints.Checkpoint(sealers.ORIGIN, Head.objects.get().next + 500, merkle.leaf_hash(b"what was cut off"))
    folder = tmp_path / "anchor"
    folder.mkdir()
    monkeypatch.setattr(settings, "MUNIMENT_ANCHORS", [f"file://{folder}"])
    anchors.configured()[0].send(Submission(held, checkpoints.sign(held, LOG_KEY), 0, lambda first: []))
    with sealing(tmp_path / "two", LOG_KEY) as two:
        two.start_from(note)
        sealers.halted(two, "rollback")


def test_a_log_that_an_anchor_knows_does_not_begin_anew(
    db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "anchor"
    monkeypatch.setattr(settings, "MUNIMENT_ANCHORS", [f"file://{folder}"])
    with sealing(tmp_path / "seal", LOG_KEY) as one, pytest.raises(Refused, match="cannot be told"):
        one.step()
    folder.mkdir()
    held = checkpoints.Checkpoint(sealers.ORIGIN, 500, merkle.leaf_hash(b"an earlier database"))
    anchors.configured()[0].send(Submission(held, checkpoints.sign(held, LOG_KEY), 0, lambda first: []))
    with sealing(tmp_path / "seal", LOG_KEY) as one, pytest.raises(Refused, match="holds a checkpoint of this log"):
        one.step()


def test_a_checkpoint_of_another_key_starts_nothing(db: None, tmp_path: Path) -> None:
    given = checkpoints.Checkpoint(sealers.ORIGIN, 20, merkle.leaf_hash(b"x"))
    with sealing(tmp_path, LOG_KEY) as one:
        for note in (checkpoints.sign(given, Ed25519PrivateKey.generate()), "nonsense", ""):
            with pytest.raises(Refused, match="cannot be used"):
                one.start_from(note)
        one.step()
        with pytest.raises(Refused, match="without one"):
            one.start_from(checkpoints.sign(given, LOG_KEY))
    assert (tmp_path / STATE).exists() and not (tmp_path / LEAVES).exists()


def test_another_name_for_the_log_is_refused(db: None, tmp_path: Path) -> None:
    with sealing(tmp_path, LOG_KEY) as one:
        one.step()
        one.close()
        other = Sealer(one.session.connect, LOG_KEY, StateDir(tmp_path), "other.example/log")
        with pytest.raises(Refused, match="for ever"):
            other.step()
        other.close()
