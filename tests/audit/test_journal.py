"""The journal of a web process: every batch that committed is in its file before anyone is answered, and stays there,
however the process ends, until somebody has looked after it."""

import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread

import pytest

from audit.journal import SLACK, Entry, Journal, read
from audit.models import Batch, Outbox
from tests.audit.proxy import Relay
from tests.audit.recorders import at_once, entry, receipts, running
from tests.live import ROOT, until

# A process that holds a slot, writes what it is told, says so, and waits.
HOLDER = """
import sys, time
from pathlib import Path
from audit.journal import Journal
journal = Journal(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    journal.append(number * 10, 10, bytes([number % 256]) * 32, 1_800_000_000_000 + number)
print(journal.slot, flush=True)
time.sleep(60)
"""
# A process whose files may not grow beyond 1,000 bytes, then may again.
FULL = """
import resource, sys
from pathlib import Path
from audit.journal import Journal, read
journal = Journal(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for number in range(30):
    journal.append(number * 10, 10, bytes([number]) * 32, 1)
file = Path(sys.argv[1]) / "1.log"
cut = len(read(file))
taken = journal.take()
journal.keep(taken)
print(cut, len(taken), bool(journal.failing))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append(300, 10, bytes(32), 1)
journal.keep(taken)
print(len(read(file)), bool(journal.failing))
"""


ZEROS = b"00" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "batches"


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    made = Journal(folder)
    yield made
    made.close()


def one(number: int, size: int = 10) -> Entry:
    return Entry(number * 10, size, sha256(b"%d" % number).digest(), 1_800_000_000_000 + number)


def held(folder: Path, count: int) -> "subprocess.Popen[str]":
    """A process that holds a slot with so many entries."""
    command = [sys.executable, "-c", HOLDER, str(folder), str(count)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


# --- what the recorder writes ---------------------------------------------------------------------------------


def test_a_batch_is_in_the_file_when_its_caller_is_answered(db: None, journal: Journal, folder: Path) -> None:
    with running(journal=journal) as recorder:
        for number in range(1, 4):
            [receipt] = receipts(recorder.record([entry()]))
            noted = read(folder / "1.log")
            assert len(noted) == number
            batch = Batch.objects.get(first=receipt.index)
            assert noted[-1][:3] == (batch.first, batch.size, bytes(batch.digest))


def test_the_batches_of_many_callers_and_of_the_outbox_are_all_noted(db: None, journal: Journal, folder: Path) -> None:
    Outbox.objects.create(kind="staff", xact="0", at="2026-01-01T00:00Z", actor="staff:1")
    with running(journal=journal) as recorder:
        for results in at_once([lambda: recorder.record([entry(), entry()])] * 8):
            receipts(results)
        until(lambda: not Outbox.objects.filter(record_index=None).exists(), 30)
    noted = {found[:3] for found in read(folder / "1.log")}
    assert noted == {(batch.first, batch.size, bytes(batch.digest)) for batch in Batch.objects.all()}


@pytest.mark.parametrize(("way", "noted"), [("answer lost", 2), ("request lost", 1)])
def test_a_lost_commit_is_noted_if_it_landed(db: None, journal: Journal, folder: Path, way: str, noted: int) -> None:
    with Relay() as relay, running(relay.connect, timeout=30, journal=journal) as recorder:
        receipts(recorder.record([entry()]))
        relay.plan = [way]
        recorder.record([entry("struck")])
    assert [found.first for found in read(folder / "1.log")] == list(range(noted))


def test_without_a_journal_that_can_be_written_callers_are_answered(db: None, tmp_path: Path) -> None:
    blocked = tmp_path / "batches"
    blocked.write_text("a file stands where the folder should")
    journal = Journal(blocked)
    with running(journal=journal) as recorder:
        receipts(recorder.record([entry()]))
        assert journal.failing
        blocked.unlink()
        taken = journal.take()
        journal.keep(taken)
        receipts(recorder.record([entry()]))
    assert not journal.failing
    assert [found.first for found in read(blocked / "1.log")] == [0, 1]
    journal.close()


# --- the file -------------------------------------------------------------------------------------------------


def test_nobody_else_may_read_it(journal: Journal, folder: Path) -> None:
    journal.append(*one(1))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_each_journal_has_a_slot_of_its_own_and_a_free_one_is_taken_with_what_is_in_it(folder: Path) -> None:
    first, second = Journal(folder), Journal(folder)
    assert (first.slot, second.slot) == (1, 2)
    first.append(*one(1))
    first.close()
    third = Journal(folder)
    assert (third.slot, third.take()) == (1, [one(1)])
    second.close()
    third.close()


def test_a_line_that_was_cut_off_is_left_out_and_the_next_one_is_whole(folder: Path) -> None:
    before = Journal(folder)
    before.append(*one(1))
    before.append(*one(2))
    before.close()
    path = folder / "1.log"
    path.write_bytes(path.read_bytes()[:-20])
    after = Journal(folder)
    after.append(*one(3))
    assert read(path) == [one(1), one(3)] == after.take()
    after.close()


@pytest.mark.parametrize(
    "line", [b"", b"1", b"1 2 3 4", b"-1 1 " + ZEROS + b" 1", b"0 0 " + ZEROS + b" 1", b"\0" * 80, b"\xff" * 9]
)
def test_what_is_no_entry_is_left_out(folder: Path, line: bytes) -> None:
    folder.mkdir()
    (folder / "1.log").write_bytes(line + b"\n" + one(1).line)
    journal = Journal(folder)
    assert journal.take() == [one(1)]
    journal.close()


def test_what_is_done_leaves_the_file(journal: Journal, folder: Path) -> None:
    for number in range(SLACK + 20):
        journal.append(*one(number))
    entries = journal.take()
    journal.keep(entries)
    assert read(folder / "1.log") == entries
    journal.keep(entries[-3:])
    assert read(folder / "1.log") == entries[-3:]
    journal.keep([])
    assert (folder / "1.log").read_bytes() == b""


def test_what_is_noted_while_the_file_is_written_anew_is_not_lost(journal: Journal, folder: Path) -> None:
    stop = Event()
    noted = 0

    def note() -> None:
        nonlocal noted
        while not stop.is_set():
            journal.append(*one(noted))
            noted += 1
            time.sleep(0.0002)

    thread = Thread(target=note)
    thread.start()
    kept: list[Entry] = []
    for turn in range(30):
        kept += journal.take()
        assert set(kept) <= set(read(folder / "1.log"))
        journal.keep(kept)
        if turn % 10 == 5:
            kept = kept[-5:]
    stop.set()
    thread.join()
    kept += journal.take()
    assert kept[-1] == one(noted - 1)
    assert set(kept) <= set(read(folder / "1.log"))


def test_a_full_disk_stops_nobody_and_nothing_is_forgotten(folder: Path) -> None:
    command = [sys.executable, "-c", FULL, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    full, again = done.stdout.split("\n")[:2]
    cut, taken, failing = full.split()
    assert 0 < int(cut) < 30 and (taken, failing) == ("30", "True")
    assert again == "31 False"
    assert done.stderr.count("cannot be written") == 1


def test_a_folder_that_was_deleted_is_made_again_with_all_that_is_kept(journal: Journal, folder: Path) -> None:
    journal.append(*one(1))
    kept = journal.take()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    journal.append(*one(2))
    journal.keep(kept)
    assert read(folder / "1.log") == [one(1), one(2)]
    assert not journal.failing


# --- other processes ------------------------------------------------------------------------------------------


def test_what_a_killed_process_left_is_taken_over_once_it_is_gone(journal: Journal, folder: Path) -> None:
    other = held(folder, 3)
    assert other.stdout is not None and other.stdout.readline() == "2\n"
    journal.take_over()
    assert journal.take() == []
    other.send_signal(signal.SIGKILL)
    other.wait(30)
    other.stdout.close()
    left = read(folder / "2.log")
    assert len(left) == 3
    journal.take_over()
    assert journal.take() == left
    assert read(folder / "1.log") == left
    assert (folder / "2.log").stat().st_size == 0


def test_what_is_put_by_is_taken_over_by_nobody(journal: Journal, folder: Path) -> None:
    assert journal.put_by(1, [one(1)])
    assert journal.put_by(1, [one(2)])
    assert read(folder / "lost-1.log") == [one(1), one(2)]
    journal.take_over()
    assert journal.take() == []


def test_a_closed_journal_writes_no_more(folder: Path) -> None:
    before = Journal(folder)
    before.close()
    after = Journal(folder)
    before.append(*one(1))
    before.keep([one(1)])
    assert after.slot == 1
    assert (folder / "1.log").read_bytes() == b""
    assert after.take() == []
    after.close()
