"""Answered batches that are taken out of the database before they are sealed, by a superuser who leaves a log that is
whole in itself: the process that answered for them has them in its journal, and says so."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from django.db import connection
from django.utils import timezone

from audit import alerts, batching, journal_watch, keys
from audit.journal import Journal, read
from audit.journal_watch import Watch
from audit.models import Alert, Batch, Log, PublishedKey, Record
from audit.recording import Recorder
from governance import process
from tests.audit import chain
from tests.audit.recorders import entry, receipts, running
from tests.audit.sealers import sealed, sealer
from tests.audit.trees import ORIGIN, HandSealed
from tests.live import Load, until, web
from tests.world import build, token

CUT = """
    SET session_replication_role = replica;
    DELETE FROM audit_record WHERE index >= (SELECT max(first) FROM audit_batch);
    UPDATE audit_head SET next = b.first, batch = b.previous, at = (SELECT coalesce(max(at), 'epoch') FROM audit_record)
        FROM (SELECT first, previous FROM audit_batch ORDER BY first DESC LIMIT 1) b;
    DELETE FROM audit_batch WHERE first = (SELECT max(first) FROM audit_batch);
"""
"""Takes the newest batch out, and sets the head back, so that nothing in the database remembers it."""


class Answering:
    """One web process, as far as the log sees it: a recorder, its journal, and the watch over it."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder)
        self.shift = 0.0  # seconds by which its clock is ahead
        self.stopped: float | None = None  # where its clock stands still
        self.watch = Watch(self.journal, ORIGIN, lambda: (self.stopped or time.time()) + self.shift)
        self.recorder = Recorder(process.connect, process.signer("WRITER_KEY", "writer"), journal=self.journal).start()

    def answer(self, times: int = 1) -> int:
        """Answer calls, each with a batch of its own; the index of the last one."""
        return [receipts(self.recorder.record([entry()]))[0].index for _ in range(times)][-1]

    def noted(self) -> int:
        """How many batches are in the file."""
        return len(read(self.journal.folder / f"{self.journal.slot}.log"))

    def end(self) -> None:
        """However it ends, its slot is free and its file stays."""
        self.recorder.stop()
        self.watch.stop()


@pytest.fixture
def ending() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def folder(db: None, tmp_path: Path) -> Path:
    process.stop_recorder()
    return tmp_path / "batches"


@pytest.fixture
def one(folder: Path, ending: ExitStack) -> Answering:
    made = Answering(folder)
    ending.callback(made.end)
    quiet()
    return made


@pytest.fixture
def other(one: Answering, folder: Path, ending: ExitStack) -> Answering:
    made = Answering(folder)
    ending.callback(made.end)
    return made


@pytest.fixture
def superuser(superuser_url: str, db: None) -> Iterator[psycopg.Connection]:
    with psycopg.connect(superuser_url, autocommit=True) as made:
        yield made


def quiet() -> None:
    """Until the outbox is empty, so that the newest batch is the one that the test makes."""
    until(lambda: not connection_has("SELECT 1 FROM audit_outbox WHERE record_index IS NULL"), 30)


def connection_has(query: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone() is not None


def missing() -> list[str]:
    """What is said to be missing."""
    return [alert.about for alert in alerts.open_alerts() if alert.kind == "batch-missing"]


def whole() -> None:
    """Nothing in the database gives the attack away."""
    assert chain.findings(os.environ["DATABASE_OWNER_URL"]) == []


# --- attacks --------------------------------------------------------------------------------------------------


def test_the_newest_batch_is_taken_out(one: Answering, other: Answering, superuser: psycopg.Connection) -> None:
    one.answer(3)
    taken = other.answer()
    superuser.execute(CUT)
    whole()
    one.watch.look()
    assert missing() == []
    other.watch.look()
    assert missing() == [f"batch {taken}"]
    [alert] = alerts.open_alerts()
    assert f"wrote 1 record in one write batch, from index {taken} on" in alert.words


def test_the_newest_of_one_process_is_taken_out_and_another_writes_in_its_place(
    one: Answering, other: Answering, superuser: psycopg.Connection
) -> None:
    one.answer(2)
    taken = other.answer()
    superuser.execute(CUT)
    assert one.answer(5) == taken + 4
    quiet()
    whole()
    one.watch.look()
    assert missing() == []
    other.watch.look()
    assert missing() == [f"batch {taken}"]


def test_the_newest_of_all_are_taken_out_and_the_same_process_goes_on(
    one: Answering, superuser: psycopg.Connection
) -> None:
    first = one.answer(4) - 2
    for _ in range(3):
        superuser.execute(CUT)
    one.answer(5)
    whole()
    one.watch.look()
    assert missing() == [f"batch {first}"]
    [alert] = alerts.open_alerts()
    assert f"wrote 3 records in 3 write batches, from index {first} on" in alert.words


def test_a_restart_forgets_nothing(
    one: Answering, folder: Path, superuser: psycopg.Connection, ending: ExitStack
) -> None:
    taken = one.answer(2)
    one.end()
    superuser.execute(CUT)
    again = Answering(folder)
    ending.callback(again.end)
    again.watch.look()
    assert missing() == [f"batch {taken}"]


def test_what_a_process_that_is_gone_answered_is_missed_by_another(
    one: Answering, other: Answering, superuser: psycopg.Connection
) -> None:
    taken = other.answer()
    other.end()
    superuser.execute(CUT)
    one.watch.look()
    assert missing() == [f"batch {taken}"]


def test_a_refused_batch_is_put_in_the_place_of_one_that_was_answered(
    one: Answering, superuser: psycopg.Connection
) -> None:
    """Its bytes are the writer's own, with a signature that holds; it was rolled back, and nobody was answered."""
    one.answer()
    key = process.signer("WRITER_KEY", "writer")
    with process.connect() as writer:
        begun = batching.lock(writer)
        refused, _ = batching.build(begun, [entry("refused")], key, begun.now)
        writer.rollback()
        assert refused is not None
        taken = one.answer()
        assert taken == refused.first
        superuser.execute(CUT)
        batching.lock(writer)
        batching.finish(writer, refused)
    whole()
    one.watch.look()
    assert missing() == [f"batch {taken}"]


def test_a_batch_is_taken_out_after_it_was_sealed_and_before_anybody_looked(
    one: Answering, superuser: psycopg.Connection, tmp_path: Path
) -> None:
    taken = one.answer(2)
    found = sealer(tmp_path / "seal")
    found.step()
    superuser.execute("SET session_replication_role = replica")
    superuser.execute("DELETE FROM audit_batch WHERE first = %s", [taken])
    one.watch.look()
    found.close()
    assert missing() == [f"batch {taken}"]


def test_the_alert_lasts_and_is_said_once(one: Answering, superuser: psycopg.Connection) -> None:
    one.answer(2)
    superuser.execute(CUT)
    for _ in range(3):
        one.watch.look()
    assert len(missing()) == 1
    quiet()
    assert Record.objects.filter(type="notice").count() == 1
    assert one.noted() >= 2


def test_a_batch_that_is_there_again_ends_the_alert(one: Answering, superuser: psycopg.Connection) -> None:
    taken = one.answer()
    superuser.execute("SET session_replication_role = replica")
    superuser.execute("CREATE TEMPORARY TABLE kept AS SELECT * FROM audit_batch WHERE first = %s", [taken])
    superuser.execute("DELETE FROM audit_batch WHERE first = %s", [taken])
    one.watch.look()
    assert missing() == [f"batch {taken}"]
    superuser.execute("INSERT INTO audit_batch SELECT * FROM kept")
    one.watch.look()
    assert missing() == []


# --- an untouched log -----------------------------------------------------------------------------------------


def test_an_untouched_log_raises_nothing_and_the_file_empties_once_all_is_sealed(
    one: Answering, other: Answering, tmp_path: Path
) -> None:
    found = sealer(tmp_path / "seal")
    for _ in range(3):
        one.answer(3)
        other.answer(2)
        one.watch.look()
        other.watch.look()
        assert one.noted() and other.noted()
        found.step()
    quiet()
    found.step()
    for each in (one, other):
        each.watch.look()
        each.watch.look()
        assert each.noted() == 0
    found.close()
    assert alerts.open_alerts() == []


def test_what_is_not_sealed_yet_stays(one: Answering, tmp_path: Path) -> None:
    found = sealer(tmp_path / "seal")
    one.answer(2)
    found.step()
    quiet()
    found.step()
    one.answer(1)
    one.watch.look()
    found.close()
    assert len(one.watch.entries) == 1


def test_of_very_many_the_newest_are_kept(one: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_watch, "MOST", 5)
    newest = one.answer(12)
    one.watch.look()
    assert [found.first for found in one.watch.entries.values()] == list(range(newest - 4, newest + 1))


def test_an_aborted_batch_is_missed_by_nobody(one: Answering) -> None:
    key = process.signer("WRITER_KEY", "writer")
    with process.connect() as writer:
        begun = batching.lock(writer)
        batching.build(begun, [entry("refused")], key, begun.now)
        writer.rollback()
    one.answer()
    one.watch.look()
    assert missing() == []


def test_a_database_that_is_away_is_no_alarm(one: Answering, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one.answer(2)
    with monkeypatch.context() as away:
        away.setitem(connection.settings_dict, "HOST", str(tmp_path))
        connection.close()
        one.shift = 60
        one.watch.look()
        assert one.watch.away
    one.watch.look()
    assert not one.watch.away
    assert alerts.open_alerts() == []  # late neither: nobody could have sealed
    one.shift += 11
    one.watch.look()
    assert [alert.kind for alert in alerts.open_alerts()] == ["sealing-late"]


# --- late -----------------------------------------------------------------------------------------------------


@pytest.fixture
def recently(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said by some process is not over for a minute, so that a test has the time to look."""
    monkeypatch.setattr(journal_watch, "QUIET", timedelta(seconds=60))


def test_without_a_sealer_it_is_late_after_ten_seconds_and_no_more_once_sealed(
    one: Answering, tmp_path: Path, recently: None
) -> None:
    one.answer()
    one.stopped, one.shift = time.time(), 9
    one.watch.look()
    assert alerts.open_alerts() == []
    one.shift = 11
    one.watch.look()
    [alert] = alerts.open_alerts()
    assert (alert.kind, alert.about) == ("sealing-late", one.watch.host)
    found = sealer(tmp_path / "seal")
    sealed(found)
    quiet()
    found.step()
    found.close()
    one.watch.look()
    assert alerts.open_alerts(), "another process may have said so a moment ago"
    Alert.objects.update(seen_at=timezone.now() - journal_watch.QUIET - timedelta(seconds=0.1))
    one.watch.look()
    assert alerts.open_alerts() == []


def test_one_process_does_not_end_what_another_says(one: Answering, other: Answering, recently: None) -> None:
    other.answer()
    other.shift = 11
    for _ in range(3):
        other.watch.look()
        one.watch.look()
        assert [alert.kind for alert in alerts.open_alerts()] == ["sealing-late"]


def test_a_journal_that_cannot_be_written_is_said_and_over_when_it_can(db: None, tmp_path: Path) -> None:
    blocked = tmp_path / "batches"
    blocked.write_text("")
    journal = Journal(blocked)
    watch = Watch(journal, ORIGIN)
    with running(journal=journal) as recorder:
        receipts(recorder.record([entry()]))
        watch.look()
        assert [alert.kind for alert in alerts.open_alerts()] == ["journal-failing"]
        blocked.unlink()
        watch.look()
        Alert.objects.update(seen_at=timezone.now() - timedelta(seconds=5))
        watch.look()
    watch.stop()
    assert alerts.open_alerts() == []
    assert read(blocked / "1.log")


# --- whose checkpoints are believed ---------------------------------------------------------------------------


def test_a_checkpoint_by_a_key_that_was_published_later_is_not_believed(one: Answering) -> None:
    true = HandSealed()
    keys.publish(true.private, "log")
    one.answer()
    quiet()
    true.seal()
    one.watch.look()
    assert not one.watch.entries
    one.answer()
    forger = Ed25519PrivateKey.generate()
    PublishedKey.objects.create(key_id="forged", use="log", public=keys.public_of(forger))
    private, true.private = true.private, forger
    true.seal()
    one.watch.look()
    assert one.watch.entries, "not sealed, whatever the database says"
    true.private = private
    one.answer()
    true.seal()
    one.watch.look()
    assert not one.watch.entries


def test_a_checkpoint_of_an_unpublished_key_is_not_believed(one: Answering) -> None:
    one.answer()
    HandSealed().seal()
    one.watch.look()
    assert one.watch.entries


def test_a_key_that_the_log_key_introduced_is_believed(one: Answering) -> None:
    log = HandSealed()
    keys.publish(log.private, "log")
    one.answer()
    quiet()
    log.seal()
    one.watch.look()
    assert not one.watch.entries
    following = Ed25519PrivateKey.generate()
    keys.announce(log.private, "log", keys.public_of(following))
    log.private = following
    one.answer()
    quiet()
    log.seal()
    one.watch.look()
    assert not one.watch.entries


def test_a_row_that_says_where_a_log_starts_seals_nothing(one: Answering, superuser: psycopg.Connection) -> None:
    log = HandSealed()
    keys.publish(log.private, "log")
    one.answer()
    quiet()
    log.seal()
    one.watch.look()
    one.answer()
    superuser.execute("SET session_replication_role = replica; UPDATE audit_log SET start = 1000000")
    Log.objects.create(number=2, origin="x", start=2_000_000, opened_at=timezone.now())
    superuser.execute(
        "INSERT INTO audit_checkpoint (log, size, root, note, key_id, at)"
        " SELECT 2, size, root, note, key_id, at FROM audit_checkpoint"
    )
    one.watch.look()
    assert one.watch.entries


# --- after a loss ---------------------------------------------------------------------------------------------


def lose_and_open(one: Answering, superuser: psycopg.Connection, told: bool) -> tuple[int, HandSealed]:
    """Answered batches are lost; the next log is opened, by people who were told of the loss or not."""
    log = HandSealed()
    keys.publish(log.private, "log")
    one.answer(2)
    quiet()
    log.seal()
    one.watch.look()
    taken = one.answer()
    superuser.execute(CUT)
    if told:
        one.watch.look()
        quiet()
        assert missing() == [f"batch {taken}"]
    time.sleep(0.01)
    following = HandSealed(2, one.answer() + 1, log.private)
    one.answer()
    return taken, following


def test_the_next_log_ends_what_it_was_opened_for(one: Answering, folder: Path, superuser: psycopg.Connection) -> None:
    taken, following = lose_and_open(one, superuser, told=True)
    alerts.clear("batch-missing")  # as whoever opens it does
    one.watch.look()
    assert missing() == [], "raised again before the new log's first checkpoint"
    assert len(one.watch.entries) >= 3
    quiet()
    following.seal()
    one.watch.look()
    one.watch.look()
    assert missing() == []
    assert one.noted() == 0
    assert [lost.first for lost in read(folder / "lost-1.log")] == [taken]


def test_what_nobody_knew_when_the_next_log_was_opened_is_said(
    one: Answering, folder: Path, superuser: psycopg.Connection
) -> None:
    taken, following = lose_and_open(one, superuser, told=False)
    following.seal()
    one.watch.look()
    assert missing() == [f"batch {taken}"]
    assert not read(folder / "lost-1.log")


def test_an_alert_that_somebody_ends_without_the_next_log_is_raised_again(
    one: Answering, superuser: psycopg.Connection
) -> None:
    taken = one.answer()
    superuser.execute(CUT)
    one.watch.look()
    alerts.clear("batch-missing")
    one.watch.look()
    assert missing() == [f"batch {taken}"]


def test_while_sealing_has_stopped_nothing_is_let_go(one: Answering) -> None:
    """After a loss, the newest checkpoint may have had others at these indices."""
    log = HandSealed()
    keys.publish(log.private, "log")
    one.answer()
    quiet()
    log.seal()
    alerts.raise_alert("sealer-halted", "rollback", "the log is shorter than it was")
    one.watch.look()
    assert one.watch.entries
    alerts.clear("sealer-halted")
    quiet()
    log.seal()
    one.watch.look()
    assert not one.watch.entries


# --- real web processes ---------------------------------------------------------------------------------------


def test_killed_web_processes_leave_their_files_and_those_after_them_miss_what_is_gone(
    db: None, superuser: psycopg.Connection
) -> None:
    world = build()
    folder = settings.MUNIMENT_VAR / "batches"

    def both_wrote() -> bool:
        return sum(1 for path in folder.glob("?.log") if path.stat().st_size) == 2

    loads: list[Load] = []

    def called(times: int) -> None:
        loads.append(stack.enter_context(Load([server.port], world.key, {"alice": token()}, threads=4)))
        loads[-1].wait_for(times)

    with web(workers=2) as [server]:
        deadline = time.monotonic() + 60
        # All connections of a load are one worker's, where the other is still starting: then others come.
        while not both_wrote():
            assert time.monotonic() < deadline, "one worker has it all"
            with ExitStack() as stack:
                called(20)
        with ExitStack() as stack:
            called(100)
            server.kill()
        noted = [found for path in folder.glob("?.log") for found in read(path)]
        assert {(found.first, found.digest) for found in noted} <= {
            (batch.first, bytes(batch.digest)) for batch in Batch.objects.all()
        }
        told = {answer.body["receipt"]["batch"]["first"] for load in loads for answer in load.answers}
        assert told <= {found.first for found in noted}
        taken = max(noted)
        # One that committed at the very moment of the kill is in no file: nobody was answered.
        while Batch.objects.filter(first__gte=taken.first).exists():
            superuser.execute(CUT)
        server.restart()
        until(lambda: missing() == [f"batch {taken.first}"], 60)
