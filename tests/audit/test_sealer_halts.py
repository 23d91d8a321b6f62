"""What was done to the database stops the sealer before it signs; it goes on when the cause is gone."""

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit import alerts
from audit.models import Alert, Batch, Checkpoint, Head, Record, SealerStatus
from audit.seal_state import LEAVES, STATE, Halt
from audit.sealing import Sealer
from muniment import batches, checkpoints, merkle
from tests.audit.sealers import ORIGIN, altered, halted, recorded, sealed, sealing

OTHER = Ed25519PrivateKey.generate()


@pytest.fixture
def one(db: None, tmp_path: Path) -> Iterator[Sealer]:
    """A sealer that has sealed 40 records or so, in write batches of ten; 30 more wait."""
    with sealing(tmp_path) as made:
        recorded(40)
        sealed(made)
        recorded(30)
        yield made


def first_waiting(one: Sealer) -> int:
    state = one.directory.read()
    assert state is not None
    return state.next


def test_nothing_stops_it_when_nothing_was_done(one: Sealer) -> None:
    assert one.step() == 30


WAITING = {
    "a statement is changed": ("record-changed", "UPDATE audit_record SET statement = '{{}}' WHERE index = {n} + 3"),
    "a leaf is changed": ("column-differs", "UPDATE audit_record SET leaf = sha256('x') WHERE index = {n} + 3"),
    "statement and leaf are changed": (
        "batch-root-differs",
        "UPDATE audit_record SET statement = convert_to(replace(convert_from(statement, 'utf8'), 'allow', 'deny!'),"
        " 'utf8') WHERE index = {n} + 3;"
        " UPDATE audit_record SET leaf = sha256('\\x00' || statement) WHERE index = {n} + 3",
    ),
    "a record is taken out": ("record-missing", "DELETE FROM audit_record WHERE index = {n} + 3"),
    "the last record is taken out": ("record-missing", "DELETE FROM audit_record WHERE index = {n} + 29"),
    "a record is put in twice": (
        "record-inserted",
        "INSERT INTO audit_record (id, index, at, type, statement, leaf) SELECT id, index, at + '1 day',"
        " type, statement, leaf FROM audit_record WHERE index = {n} + 3",
    ),
    "a record is put in behind the head": (
        "record-inserted",
        "INSERT INTO audit_record (id, index, at, type, statement, leaf) SELECT gen_random_uuid(), {n} + 30,"
        " at + '1 day', type, statement, leaf FROM audit_record WHERE index = {n} + 3",
    ),
    "two records change places": (
        "record-backdated",
        "UPDATE audit_record SET index = 3 * {n} + 1000 - index WHERE index IN ({n} + 3, {n} + 4);"
        " UPDATE audit_record SET index = index - {n} - 993 WHERE index > 2 * {n} + 900",
    ),
    "a write batch is taken out": ("batch-missing", "DELETE FROM audit_batch WHERE first = {n} + 10"),
    "the last write batch is taken out": ("batch-missing", "DELETE FROM audit_batch WHERE first = {n} + 20"),
    "a signature is changed": (
        "batch-unsigned",
        "UPDATE audit_batch SET signature = set_byte(signature, 5, 255 - get_byte(signature, 5))"
        " WHERE first = {n} + 10",
    ),
    "a batch names another before it": (
        "batch-chain-broken",
        "UPDATE audit_batch SET previous = sha256('x') WHERE first = {n} + 10",
    ),
    "a batch's root is changed": ("batch-chain-broken", "UPDATE audit_batch SET root = sha256('x') WHERE first = {n}"),
    "the head names another batch": ("cut-off", "UPDATE audit_head SET batch = sha256('x')"),
    "the head is behind": ("record-inserted", "UPDATE audit_head SET next = next - 10"),
    "the head is behind and the records are gone": (
        "cut-off",
        "UPDATE audit_head SET next = next - 10; DELETE FROM audit_record WHERE index >= {n} + 20",
    ),
    "the head is before what was sealed": ("rollback", "UPDATE audit_head SET next = {n} - 1"),
    "the newest sealed batch is another": (
        "other-history",
        "UPDATE audit_batch SET digest = sha256('x')"
        " WHERE first = (SELECT max(first) FROM audit_batch WHERE first < {n})",
    ),
    "the newest sealed batch is gone": (
        "other-history",
        "DELETE FROM audit_batch WHERE first = (SELECT max(first) FROM audit_batch WHERE first < {n})",
    ),
    "the checkpoint's note is changed": ("checkpoint-untrusted", "UPDATE audit_checkpoint SET note = 'x'"),
    "a checkpoint is made up": (
        "checkpoint-untrusted",
        "INSERT INTO audit_checkpoint (log, size, root, note, key_id, at)"
        " SELECT log, {n} + 10, root, note, key_id, now() FROM audit_checkpoint ORDER BY size DESC LIMIT 1",
    ),
    "a tile is changed": ("tile-differs", "UPDATE audit_tile SET hashes = sha256('x') WHERE level = 0"),
    "the next log is made up": (
        "log-closed",
        "INSERT INTO audit_log (number, origin, start, opened_at) VALUES (2, 'other', 5, now())",
    ),
}


@pytest.mark.parametrize(("cause", "sql"), WAITING.values(), ids=WAITING.keys())
def test_it_signs_nothing_on_top_of_it(one: Sealer, superuser_url: str, cause: str, sql: str) -> None:
    n, signed = first_waiting(one), Checkpoint.objects.count()
    leaves = (one.directory.path / LEAVES).stat().st_size
    altered(superuser_url, *sql.format(n=n).split(";"))
    halted(one, cause)
    halted(one, cause)
    if cause not in ("checkpoint-untrusted", "tile-differs"):
        assert Checkpoint.objects.count() == signed
        assert (one.directory.path / LEAVES).stat().st_size == leaves


def signed_batch(first: int, count: int, private: Ed25519PrivateKey, previous: bytes) -> tuple[bytes, bytes, bytes]:
    """Root, digest and signature of a batch over these records as they are, by some key."""
    rows = Record.objects.filter(index__gte=first, index__lt=first + count).order_by("index")
    root = merkle.root([merkle.leaf_hash(bytes(s)) for s in rows.values_list("statement", flat=True)])
    message = batches.message(first, count, previous, root)
    return root, batches.digest(message), batches.sign(private, message)


def test_a_batch_by_a_key_that_the_log_does_not_introduce(one: Sealer, superuser_url: str) -> None:
    n = first_waiting(one)
    last = Batch.objects.get(first=n + 20)
    _, _, signature = signed_batch(n + 20, 10, OTHER, bytes(last.previous))
    altered(
        superuser_url, f"UPDATE audit_batch SET signature = '\\x{signature.hex()}', key_id = 'k' WHERE first = {n + 20}"
    )
    assert "no trusted key introduced" in halted(one, "batch-key-untrusted").words


def test_records_that_go_back_in_time(one: Sealer, superuser_url: str) -> None:
    from governance import process

    n = first_waiting(one)
    row = Record.objects.get(index=n + 29)
    said = json.loads(bytes(row.statement)) | {"at": 1_000_000}
    data = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    update = f"UPDATE audit_record SET statement = '\\x{data.hex()}', leaf = '\\x{merkle.leaf_hash(data).hex()}'"
    altered(superuser_url, f"{update} WHERE index = {n + 29}")
    batch = Batch.objects.get(first=n + 20)
    private = process.signer("WRITER_KEY", "writer").private
    root, digest, signature = signed_batch(n + 20, 10, private, bytes(batch.previous))
    altered(
        superuser_url,
        f"UPDATE audit_batch SET root = '\\x{root.hex()}', digest = '\\x{digest.hex()}',"
        f" signature = '\\x{signature.hex()}' WHERE first = {n + 20}",
        f"UPDATE audit_head SET batch = '\\x{digest.hex()}'",
    )
    assert halted(one, "record-backdated").index == n + 29


def test_a_checkpoint_that_our_key_signed_over_something_else_is_a_fork(one: Sealer) -> None:
    size = Head.objects.get().next
    other = checkpoints.Checkpoint(ORIGIN, size, merkle.leaf_hash(b"x"))
    note = checkpoints.sign(other, one.private)
    Checkpoint.objects.create(log=1, size=size, root=other.root, note=note, key_id="k", at="2026-01-01T00:00:00Z")
    halted(one, "fork")


def test_a_checkpoint_over_more_records_than_there_are_is_a_rollback(one: Sealer) -> None:
    other = checkpoints.Checkpoint(ORIGIN, 5000, merkle.leaf_hash(b"x"))
    note = checkpoints.sign(other, one.private)
    Checkpoint.objects.create(log=1, size=5000, root=other.root, note=note, key_id="k", at="2026-01-01T00:00:00Z")
    halted(one, "rollback")


def test_answered_calls_that_are_gone_stop_it_until_the_alert_is_over(one: Sealer) -> None:
    alerts.raise_alert("batch-missing", "batch 3", "gone")
    halted(one, "batch-missing")
    alerts.clear("batch-missing")
    assert one.step() >= 30


def test_files_that_were_changed_stop_it(one: Sealer) -> None:
    state = one.directory.path / STATE
    text = state.read_text()
    for wrong in ("", "{}", text.replace('"size": ', '"size": 1'), text.replace('"root": "', '"root": "AA')):
        state.write_text(wrong)
        halted(one, "state-broken")
    state.write_text(text)
    leaves = one.directory.path / LEAVES
    data = leaves.read_bytes()
    leaves.write_bytes(data[:-32])
    halted(one, "state-broken")
    leaves.write_bytes(data)
    assert one.step() == 30


def test_a_halt_is_told_and_over_when_its_cause_is(one: Sealer, superuser_url: str) -> None:
    n = first_waiting(one)
    saved = bytes(Record.objects.get(index=n + 3).statement)
    altered(superuser_url, f"UPDATE audit_record SET statement = '{{}}' WHERE index = {n + 3}")
    one.tell(halted(one, "record-changed"))
    one.tell(halted(one, "record-changed"))
    [alert] = Alert.objects.filter(kind="sealer-halted", cleared_at=None)
    assert alert.about == "record-changed" and f"record {n + 3}" in alert.words
    assert SealerStatus.objects.get().state == "halted"
    one.tell(Halt("rollback", "another cause now"))
    assert [a.about for a in alerts.open_alerts()] == ["rollback"]
    assert (one.directory.halted() or {})["cause"] == "rollback"
    altered(superuser_url, f"UPDATE audit_record SET statement = '\\x{saved.hex()}' WHERE index = {n + 3}")
    assert one.step() >= 30
    assert alerts.open_alerts() == [] and one.directory.halted() is None
    assert SealerStatus.objects.get().state == "active"


def test_it_looks_again_by_itself(one: Sealer, superuser_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from threading import Thread

    from tests.audit.test_sealing import until

    monkeypatch.setattr("audit.sealing.AGAIN", 0.2)
    altered(superuser_url, "UPDATE audit_head SET next = next - 10")
    thread = Thread(target=one.run)
    thread.start()
    try:
        until(lambda: SealerStatus.objects.filter(state="halted").exists())
        altered(superuser_url, "UPDATE audit_head SET next = next + 10")
        until(lambda: SealerStatus.objects.filter(state="active").exists())
    finally:
        one.stopping = True
        thread.join(60)
    assert not thread.is_alive() and alerts.open_alerts() == []


def test_a_database_that_is_away_is_waited_for(db: None, tmp_path: Path) -> None:
    calls = []

    def away() -> psycopg.Connection:
        calls.append(1)
        if len(calls) > 1:
            made.stopping = True
        raise psycopg.OperationalError("nobody there")

    with sealing(tmp_path) as made:
        made.session.connect = away
        made.run()
    assert len(calls) == 2
