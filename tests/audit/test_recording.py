"""The recorder: order, group commit, refusals, a bounded queue, and a writer thread that nothing ends."""

import os
import time
from base64 import urlsafe_b64decode
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from audit import batching, outbox, recording, subjects
from audit.entries import Receipt
from audit.faults import AlreadyRecorded, QueueFull, Stale, SubjectChanged, Unavailable
from audit.models import Batch, Head, Record, Subject
from governance import process
from muniment import batches
from muniment.keys import thumbprint
from tests.audit import chain
from tests.audit.recorders import at_once, entry, receipts, running, version
from tests.live import until
from tests.world import World, build

OPEN = (False, None, False)


@pytest.fixture
def world(db: None) -> World:
    return build()


def sound() -> None:
    """The whole log adds up."""
    assert chain.findings(os.environ["DATABASE_OWNER_URL"]) == []


def test_entries_of_many_callers_share_batches_and_keep_their_order(db: None) -> None:
    with running() as recorder:
        calls = [lambda n=n: recorder.record([entry(f"t{n}.{i}") for i in range(5)]) for n in range(40)]
        found = at_once(calls)
    for number, results in enumerate(found):
        indices = [receipt.index for receipt in receipts(results)]
        assert indices == sorted(indices)
        tools = Record.objects.filter(index__in=indices).order_by("index").values_list("tool", flat=True)
        assert list(tools) == [f"t{number}.{i}" for i in range(5)]
    assert Record.objects.count() == Head.objects.get().next == 200
    assert Batch.objects.count() < 40
    sound()


def test_a_receipt_holds_under_the_published_key(world: World) -> None:
    answer = world.verify()
    jwk = next(key for key in world.http.get("/v1/keys").json()["keys"] if key["use"] == "writer")
    public = urlsafe_b64decode(jwk["x"] + "=")
    assert jwk["kid"] == answer["receipt"]["key"] == thumbprint(public)
    statement = bytes(Record.objects.get(id=answer["record"]).statement)
    assert batches.verify_receipt(answer["receipt"], statement, public)
    assert not batches.verify_receipt(answer["receipt"], statement + b" ", public)


def test_no_entries_are_no_wait(db: None) -> None:
    with running() as recorder:
        assert recorder.record([]) == []


def test_of_two_policy_versions_in_the_queue_only_the_heads_is_recorded(world: World) -> None:
    now = version()
    with running() as recorder:
        results = recorder.record([entry(version=now - 1), entry(version=now), entry(version=None)])
        assert isinstance(results[0], Stale)
        receipts(results[1:])
        older = recorder.record([entry(version=now - 1), entry(version=None)])
        assert isinstance(older[0], Stale) and isinstance(older[1], Receipt)
        newer = recorder.record([entry(version=now + 1), entry(version=None)])
        assert isinstance(newer[0], Stale) and isinstance(newer[1], Receipt)
    sound()


def test_a_subject_that_changed_is_refused_with_its_state(db: None) -> None:
    uid = subjects.resolve("https://id.example/", "alice")
    with running() as recorder:
        receipts(recorder.record([entry(subject=uid, subject_state=OPEN)]))
        Subject.objects.filter(uid=uid).update(blocked_at=datetime.now(UTC))
        refused, other, unknown = recorder.record(
            [entry(subject=uid, subject_state=OPEN), entry(), entry(subject="usr_x", subject_state=OPEN)]
        )
    assert isinstance(refused, SubjectChanged) and refused.state == (True, None, False)
    assert isinstance(other, Receipt)
    assert isinstance(unknown, SubjectChanged) and unknown.state == (False, None, True)


def test_the_first_outcome_counts_also_within_one_batch(db: None) -> None:
    call = uuid4()

    def outcome() -> Any:
        return entry(said={"type": "outcome", "parent": str(call)}, parent=call)

    with running() as recorder:
        first, second = recorder.record([outcome(), outcome()])
        assert isinstance(first, Receipt)
        assert isinstance(second, Stale)  # the first one has no id yet: ask again
        [third] = recorder.record([outcome()])
    assert isinstance(third, AlreadyRecorded) and third.record == first.id
    assert Record.objects.filter(parent=call).count() == 1


class Gate:
    """A way to the database that is closed until it is opened."""

    def __init__(self) -> None:
        self.asked, self.opened = Event(), Event()

    def connect(self) -> psycopg.Connection:
        self.asked.set()
        assert self.opened.wait(60)
        return process.connect()


def test_a_full_queue_refuses_and_keeps_room_for_established_callers(db: None) -> None:
    gate = Gate()
    with running(gate.connect, capacity=8, timeout=60) as recorder:
        assert gate.asked.wait(30)  # the writer takes nothing from the queue meanwhile
        waiting = later([lambda: recorder.record([entry() for _ in range(6)])])
        until(lambda: len(recorder.queue) == 6, 30)
        with pytest.raises(QueueFull):
            recorder.record([entry()])  # three quarters are taken: the rest is for established callers
        with pytest.raises(QueueFull):
            recorder.record([entry(established=True), entry()])
        waiting += later([lambda: recorder.record([entry(established=True), entry(established=True)])])
        until(lambda: len(recorder.queue) == 8, 30)
        with pytest.raises(QueueFull):
            recorder.record([entry(established=True)])
        gate.opened.set()
        for future in waiting:
            receipts(future.result(60))
    assert Record.objects.count() == 8


def later(calls: list[Any]) -> list[Any]:
    """Calls in threads of their own, as futures."""
    pool = ThreadPoolExecutor(len(calls))
    futures = [pool.submit(call) for call in calls]
    pool.shutdown(wait=False)
    return futures


def test_a_full_queue_is_answered_503(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.verify()
    monkeypatch.setattr(process.recorder(), "capacity", 0)
    response = world.post("/v1/verify", {"token": None, "tool": "memory.recall"})
    assert response.status_code == 503 and response["Content-Type"] == "application/problem+json"


def test_what_a_caller_gave_up_is_not_written_later(db: None) -> None:
    gate = Gate()
    with running(gate.connect, timeout=0.3) as recorder:
        assert gate.asked.wait(30)
        with pytest.raises(Unavailable):
            recorder.record([entry("given.up"), entry("given.up")])
        gate.opened.set()
        recorder.timeout = 30
        receipts(recorder.record([entry("kept")]))
    assert list(Record.objects.values_list("tool", flat=True)) == ["kept"]


def test_the_writer_outlives_every_kind_of_error(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    failing: list[Exception] = []

    def periodic() -> list:
        if failing:
            raise failing.pop()
        return []

    def connect() -> psycopg.Connection:
        if failing:
            raise failing.pop()
        return process.connect()

    errors = [ValueError(), KeyError("x"), psycopg.OperationalError(), psycopg.InterfaceError(), MemoryError()]
    with running(connect, periodic=periodic) as recorder:
        for error in errors:
            failing.append(error)
            until(lambda: not failing, 30)
            receipts(recorder.record([entry()]))
            connection = recorder.connection
            assert connection is not None
            failing.append(error)  # from here on it may give its connection up by itself
            connection.close()
            [result] = recorder.record([entry()])
            assert isinstance(result, Receipt | Unavailable)
            failing.clear()
            receipts(recorder.record([entry()]))
    sound()


def test_a_database_that_was_away_for_a_moment_costs_no_answer(db: None) -> None:
    away = [True]

    def connect() -> psycopg.Connection:
        if away:
            raise psycopg.OperationalError("away")
        return process.connect()

    with running(connect, timeout=30) as recorder:
        waiting = later([lambda: recorder.record([entry(), entry()]) for _ in range(4)])
        time.sleep(0.5)
        away.clear()
        for future in waiting:
            receipts(future.result(60))
    assert Record.objects.count() == 8
    sound()


def test_what_the_database_refuses_fails_alone(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that passes our own checks, and not PostgreSQL's."""
    monkeypatch.setitem(batching.LIMITS, "tool", 100_000)
    with running() as recorder:
        entries = [entry("x" * 2000 if number == 13 else f"t{number}") for number in range(20)]
        results = recorder.record(entries)
        receipts(recorder.record([entry("after")]))
    assert isinstance(results[13], Unavailable)
    receipts(results[:13] + results[14:])
    assert Record.objects.count() == 20
    sound()


@pytest.mark.parametrize(
    "hostile",
    [{"holder": "\ud800"}, {"holder": "a\0b"}, {"holder": 5}, {"parent": "no uuid"}, {"subject": "a\0b"},
     {"subject": "\ud800"}, {"lookups": {"request_key": "text"}}, {"holder": "x" * 500}],
)  # fmt: skip
def test_what_cannot_even_be_sent_fails_alone(db: None, hostile: dict[str, Any]) -> None:
    with running() as recorder:
        entries = [entry(f"t{number}") for number in range(20)]
        entries[13] = entry(**{"subject_state": OPEN} | hostile)
        results = recorder.record(entries)
        receipts(recorder.record([entry("after")]))
    assert isinstance(results[13], Exception)
    receipts(results[:13] + results[14:])
    assert Record.objects.count() == 20
    sound()


def test_a_user_with_an_odd_date_fails_alone(db: None, owner_url: str) -> None:
    """What nobody can enter but by psql: signed out for ever."""
    uid, other = subjects.resolve("https://id.example/", "alice"), subjects.resolve("https://id.example/", "bob")
    odd = "UPDATE audit_subject SET signed_out_at = 'infinity' WHERE uid = %s"
    with psycopg.connect(owner_url, autocommit=True) as owner:
        with pytest.raises(psycopg.errors.CheckViolation):
            owner.execute(odd, [uid])
        owner.execute("ALTER TABLE audit_subject DROP CONSTRAINT subject_signed_out_at")
        try:
            owner.execute(odd, [uid])
            with running() as recorder:
                results = recorder.record([entry(subject=who, subject_state=OPEN) for who in (other, uid, other)])
        finally:
            owner.execute("UPDATE audit_subject SET signed_out_at = NULL")
            owner.execute(
                "ALTER TABLE audit_subject ADD CONSTRAINT subject_signed_out_at CHECK (signed_out_at IS NULL OR"
                " signed_out_at BETWEEN '1970-01-01 00:00+00' AND '9999-01-01 00:00+00')"
            )
    assert isinstance(results[1], Exception)
    receipts([results[0], results[2]])


def test_a_value_longer_than_its_column_fails_alone(db: None) -> None:
    with running() as recorder:
        entries = [entry(said={"tenant": "x" * 300 if number == 3 else "t"}) for number in range(20)]
        results = recorder.record(entries)
    assert isinstance(results[3], Exception) and "tenant" in str(results[3]) and "xx" not in str(results[3])
    receipts(results[:3] + results[4:])
    assert Batch.objects.count() == 1


def test_the_limits_are_those_of_the_columns(db: None, owner_url: str) -> None:
    with psycopg.connect(owner_url) as connection:
        columns = dict(
            connection.execute(
                "SELECT column_name::text, character_maximum_length FROM information_schema.columns"
                " WHERE table_name = 'audit_record' AND data_type = 'character varying'"
            ).fetchall()
        )
    assert columns == batching.LIMITS | {"holder": 120, "mode": 11}


def test_entries_beyond_one_batch_are_all_answered(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the largest batch, with one in it that the database refuses: every position gets its own result."""
    monkeypatch.setitem(batching.LIMITS, "tool", 100_000)
    monkeypatch.setattr(recording, "MAX_BATCH", 8)
    with running() as recorder:
        results = recorder.record([entry("x" * 2000 if number == 2 else "t") for number in range(20)])
    assert len(results) == 20
    assert [number for number, result in enumerate(results) if not isinstance(result, Receipt)] == [2]


def test_stopping_writes_what_is_queued_and_then_refuses(db: None) -> None:
    with running() as recorder:
        waiting = later([lambda: recorder.record([entry()]) for _ in range(20)])
        recorder.stop()
        for future in waiting:
            try:
                receipts(future.result(60))
            except Unavailable:
                continue
        with pytest.raises(Unavailable):
            recorder.record([entry()])
    sound()


def test_a_drain_that_fails_does_not_touch_callers(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def fail(*_: Any) -> bool:
        tries.append(time.monotonic())
        raise RuntimeError("policy version 7 is not in the outbox")

    monkeypatch.setattr(outbox, "waiting", fail)
    started = time.monotonic()  # it tries from its start to its end, which may each take a moment
    with running() as recorder:
        for _ in range(100):
            receipts(recorder.record([entry()]))
    took = time.monotonic() - started
    assert 1 <= len(tries) <= took / recording.DRAIN_EVERY + 3


def test_what_comes_up_by_itself_survives_a_lost_connection(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    brought = [[entry("counted")]]
    lose = [True]
    finish = batching.finish

    def losing(connection: psycopg.Connection, batch: batching.Batch) -> None:
        if lose:
            lose.clear()
            connection.close()
            raise psycopg.OperationalError("lost")
        finish(connection, batch)

    monkeypatch.setattr(recording, "finish", losing)
    with running(periodic=lambda: brought.pop() if brought else []):
        until(lambda: Record.objects.filter(tool="counted").exists(), 30)
        time.sleep(0.6)
    assert Record.objects.filter(tool="counted").count() == 1
    sound()


def test_record_time_rises_whatever_the_clock_does(db: None) -> None:
    start = datetime(2026, 3, 1, tzinfo=UTC)
    times = [start, start - timedelta(days=3), start, start + timedelta(seconds=1), start - timedelta(days=900)]
    with running(clock=lambda: times[0]) as recorder:
        found = []
        while True:
            found += receipts(recorder.record([entry(), entry()]))
            if len(times) == 1:
                break
            times.pop(0)
    at = [receipt.at for receipt in found]
    assert at == sorted(set(at)) and at[0] == start
    sound()


def test_two_recorders_make_one_chain(db: None) -> None:
    with running() as first, running() as second:
        calls = [lambda r=r: r.record([entry(), entry()]) for r in (first, second) for _ in range(30)]
        for results in at_once(calls):
            receipts(results)
    assert Head.objects.get().next == 120
    sound()
