"""After a real loss two people close the log and open the next; everything that is left is accounted for."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit import alerts, seams
from audit.models import Alert, Batch, Checkpoint, Head, Log, Outbox, Record, SealerStatus, Tile
from audit.seal_session import Session
from audit.seal_state import Refused
from audit.sealing import Sealer
from audit.seams import Person
from governance import process
from governance.process import connect, recorder
from muniment import merkle
from muniment.tiles import Tree
from tests.audit.sealers import ORIGIN, altered, checkpoint, halted, recorded, sealed, sealing
from tests.staff import drained, statement

LOG_KEY = Ed25519PrivateKey.generate()
MARA, NILS = Person("staff:1", "Mara"), Person("staff:2", "Nils")


@dataclass
class Loss:
    """A sealed log of which the database lost the end."""

    sealer: Sealer
    superuser: str
    size: int  # what was sealed
    left: int  # what the database has still
    leaves: list[bytes]  # of all that was sealed


def put_back(superuser: str, left: int) -> None:
    """As an old copy of the database: what came after the first `left` records is gone everywhere."""
    process.stop_recorder()
    altered(
        superuser,
        f"UPDATE audit_head SET next = {left}, at = (SELECT at FROM audit_record WHERE index = {left - 1}),"
        f" batch = (SELECT digest FROM audit_batch WHERE first + size = {left})",
        f"DELETE FROM audit_record WHERE index >= {left}",
        f"DELETE FROM audit_batch WHERE first >= {left}",
        f"DELETE FROM audit_checkpoint WHERE size > {left}",
        "DELETE FROM audit_outbox WHERE record_index IS NULL",
        f"DELETE FROM audit_tile WHERE level > 0 OR (index + 1) * 256 > {left}",
    )


def boundary(at_least: int) -> int:
    """Where a write batch ends."""
    found = Batch.objects.filter(first__gte=at_least).order_by("first").first()
    assert found is not None
    return int(found.first)


@pytest.fixture
def loss(db: None, tmp_path: Path, superuser_url: str) -> Iterator[Loss]:
    with sealing(tmp_path, LOG_KEY, page=100) as one:
        recorded(200, 20)
        sealed(one)
        left = boundary(150)
        recorded(160, 20)
        size = sealed(one).size
        leaves = one.directory.leaves(0, size)
        put_back(superuser_url, left)
        yield Loss(one, superuser_url, size, left, leaves)


def open_next(one: Sealer) -> Any:
    """Close and open by two people; the state of the next log."""
    recorder()
    seams.close(one.directory, [MARA, NILS], "the failover of Tuesday")
    session = Session(connect)
    try:
        one.step()
        return seams.open_next(one.directory, session, ORIGIN, [MARA, NILS], "the failover of Tuesday", 60)
    finally:
        session.close()


def opening(log: int = 2) -> dict[str, Any]:
    record = Record.objects.get(index=Log.objects.get(number=log).start)
    return statement(record)


def notice(action: str) -> dict[str, Any]:
    drained()
    [found] = [s for s in map(statement, Record.objects.filter(type="notice")) if s.get("action") == action]
    return found


def test_a_loss_stops_the_sealer_for_good(loss: Loss) -> None:
    halted(loss.sealer, "rollback")
    recorded(loss.size - loss.left + 50, 50)
    halted(loss.sealer, "other-history")


def test_what_is_left_and_what_is_lost_is_said_and_proved(loss: Loss) -> None:
    halted(loss.sealer, "rollback")
    note = loss.sealer.directory.read().note  # type: ignore[union-attr]
    state = open_next(loss.sealer)
    said = opening()
    root = merkle.root(loss.leaves)
    assert (said["log"], said["origin"], said["by"]) == (2, f"{ORIGIN}/2", ["staff:1", "staff:2"])
    assert said["previous"] == {
        "log": 1, "origin": ORIGIN, "size": loss.size, "root": root.hex(),
        "checkpoint_sha256": sha256(note.encode()).hexdigest(),
    }  # fmt: skip
    kept = said["kept"]
    assert (kept["first"], kept["size"]) == (0, loss.left)
    proof = [bytes.fromhex(one) for one in kept["consistency"]]
    assert merkle.verify_consistency(loss.left, loss.size, bytes.fromhex(kept["root"]), root, proof)
    assert said["lost"] == [[loss.left, loss.size - loss.left]]
    assert "Mara" not in str(said) and "failover" not in str(said)
    assert (state.log, state.start, state.size) == (2, Log.objects.get(number=2).start, 0)
    assert Batch.objects.filter(first=state.start).exists(), "the log starts with a whole write batch"


def test_the_closed_log_is_whole_in_the_database_again(loss: Loss) -> None:
    open_next(loss.sealer)
    row = Checkpoint.objects.filter(log=1).latest("size")
    assert (row.size, bytes(row.root)) == (loss.size, merkle.root(loss.leaves))
    tree = Tree(loss.size, lambda level, index: bytes(Tile.objects.get(log=1, level=level, index=index).hashes))
    assert tree.root() == bytes(row.root) and tree.leaves(0, loss.size) == loss.leaves
    assert Log.objects.get(number=1).closed_at and not Log.objects.get(number=2).closed_at
    assert loss.sealer.directory.leaves(0, loss.size, "leaves.1") == loss.leaves


def test_the_next_log_is_sealed_and_the_records_between_are_adopted(loss: Loss) -> None:
    halted(loss.sealer, "rollback")
    recorded(40, 20)  # calls go on while people decide
    between = Head.objects.get().next
    state = open_next(loss.sealer)
    recorded(300, 50)
    sealed(loss.sealer)
    found = checkpoint(loss.sealer, 2)
    rows = Record.objects.filter(index__gte=state.start).order_by("index")
    leaves = [merkle.leaf_hash(bytes(s)) for s in rows.values_list("statement", flat=True)]
    assert found.root == merkle.root(leaves[: found.size]) and found.size == Head.objects.get().next - state.start
    tree = Tree(found.size, lambda level, index: bytes(Tile.objects.get(log=2, level=level, index=index).hashes))
    assert tree.root() == found.root
    adopted = notice("log.adopted")
    rows = Record.objects.filter(index__gte=loss.left, index__lt=state.start).order_by("index")
    leaves = [merkle.leaf_hash(bytes(s)) for s in rows.values_list("statement", flat=True)]
    assert len(leaves) >= between - loss.left >= 40
    assert adopted["root"] == merkle.root(leaves).hex()
    assert (adopted["log"], adopted["first"], adopted["size"]) == (2, loss.left, state.start - loss.left)
    assert adopted["faults"] == []
    assert alerts.open_alerts() == [] and SealerStatus.objects.get().state == "active"


def test_what_is_wrong_with_an_adopted_record_is_said(loss: Loss) -> None:
    recorded(40, 20)
    process.stop_recorder()
    at = loss.left + 25
    altered(
        loss.superuser,
        f"UPDATE audit_record SET statement = '{{}}' WHERE index = {at}",
        f"DELETE FROM audit_record WHERE index = {at + 3}",
    )
    open_next(loss.sealer)
    faults = notice("log.adopted")["faults"]
    assert {"code": "record-missing", "index": at + 3} in faults
    assert {"code": "record-malformed", "index": at} in faults
    sealed(loss.sealer)


def test_a_lost_middle_keeps_what_came_before_it(loss: Loss) -> None:
    altered(loss.superuser, "DELETE FROM audit_record WHERE index = 100")
    open_next(loss.sealer)
    said = opening()
    assert said["kept"]["size"] == 100 and said["lost"] == [[100, loss.size - 100]]
    assert {"code": "record-missing", "index": 100} in notice("log.adopted")["faults"]


def test_where_only_unsealed_records_were_lost_all_is_kept(db: None, tmp_path: Path) -> None:
    with sealing(tmp_path, LOG_KEY) as one:
        recorded(30)
        size = sealed(one).size
        alerts.raise_alert("batch-missing", "batch 30", "answered, and gone")
        halted(one, "batch-missing")
        open_next(one)
        said = opening()
        assert (said["kept"]["size"], said["kept"]["consistency"], said["lost"]) == (size, [], [])
        assert not Alert.objects.filter(kind="batch-missing", cleared_at=None).exists()
        sealed(one)


def test_a_second_loss_closes_the_second_log(loss: Loss) -> None:
    start = open_next(loss.sealer).start
    recorded(60, 20)
    sealed(loss.sealer)
    recorded(60, 20)
    size = sealed(loss.sealer).size
    left = boundary(start + 40)
    process.stop_recorder()
    altered(
        loss.superuser,
        f"UPDATE audit_head SET next = {left}, batch = (SELECT digest FROM audit_batch WHERE first + size = {left})",
        f"DELETE FROM audit_record WHERE index >= {left}",
        f"DELETE FROM audit_batch WHERE first >= {left}",
        f"DELETE FROM audit_checkpoint WHERE log = 2 AND size > {left - start}",
        "DELETE FROM audit_tile WHERE log = 2",
    )
    halted(loss.sealer, "rollback")
    state = open_next(loss.sealer)
    said = opening(3)
    assert said["previous"]["size"] == size and said["kept"]["size"] == left - start
    assert said["lost"] == [[left, size - (left - start)]] and state.origin == f"{ORIGIN}/3"
    recorded(20)
    sealed(loss.sealer)
    assert checkpoint(loss.sealer, 3).size


def test_a_closed_log_is_not_sealed(db: None, tmp_path: Path) -> None:
    with sealing(tmp_path, LOG_KEY) as one:
        recorded(10)
        sealed(one)
        before = Checkpoint.objects.count()
        seams.close(one.directory, [MARA, NILS], "a loss")
        recorded(10)
        assert one.step() == 0 and Checkpoint.objects.count() == before
        assert SealerStatus.objects.get().state == "closed"
        with pytest.raises(Refused, match="closed already"):
            seams.close(one.directory, [MARA, NILS], "again")


def test_it_takes_two(db: None, tmp_path: Path) -> None:
    with sealing(tmp_path, LOG_KEY) as one:
        with pytest.raises(Refused, match="nothing is sealed"):
            seams.close(one.directory, [MARA, NILS], "too early")
        recorded(10)
        sealed(one)
        for people in ([MARA], [MARA, MARA], []):
            with pytest.raises(Refused, match="two different people"):
                seams.close(one.directory, people, "alone")
        session = Session(connect)
        with pytest.raises(Refused, match="not closed"):
            seams.open_next(one.directory, session, ORIGIN, [MARA, NILS], "not closed")
        session.close()


def test_without_a_web_process_it_can_be_tried_again(db: None, tmp_path: Path) -> None:
    with sealing(tmp_path, LOG_KEY) as one:
        recorded(10)
        sealed(one)
        seams.close(one.directory, [MARA, NILS], "a loss")
        one.step()
        process.stop_recorder()
        session = Session(connect)
        with pytest.raises(Refused, match="no web process"):
            seams.open_next(one.directory, session, ORIGIN, [MARA, NILS], "a loss", 0.1)
        recorder()
        seams.open_next(one.directory, session, ORIGIN, [MARA, NILS], "a loss", 60)
        session.close()
        assert Outbox.objects.filter(members__action="log.open").count() == 1
        sealed(one)


def test_another_active_sealer_is_not_passed_by(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "NOTICED", 0.3)
    with sealing(tmp_path, LOG_KEY) as one, sealing(tmp_path / "copy", LOG_KEY) as other:
        recorded(10)
        sealed(one)
        note = Checkpoint.objects.latest("size").note
        one.close()
        other.start_from(note)
        sealed(other)
        seams.close(one.directory, [MARA, NILS], "a loss")
        session = Session(connect)
        with pytest.raises(Refused, match="another state is active"):
            seams.open_next(one.directory, session, ORIGIN, [MARA, NILS], "a loss", 1)
        session.close()
