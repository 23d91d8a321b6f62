"""The connection is lost around the COMMIT: the batch is in the log once or not at all, and callers are told which."""

import os
from collections.abc import Iterator
from itertools import product
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from audit import recording
from audit.entries import Receipt
from audit.faults import Stale
from audit.models import Head, Outbox, Record
from audit.recording import Recorder
from governance import process
from tests.audit import chain
from tests.audit.proxy import WAYS, Relay
from tests.audit.recorders import at_once, entry, receipts, running
from tests.live import until
from tests.world import World, build

LANDS = {"request lost": False, "answer lost": True, "answered late": True, "request held back, then lost": False}


@pytest.fixture
def relay(db: None) -> Iterator[Relay]:
    with Relay() as made:
        yield made


@pytest.fixture(autouse=True)
def whole_log(db: None) -> Iterator[None]:
    """After each test the log adds up."""
    yield
    assert chain.findings(os.environ["DATABASE_OWNER_URL"]) == []


@pytest.mark.parametrize("way", WAYS)
def test_a_lost_commit_is_there_once_or_not_at_all_and_the_caller_knows(relay: Relay, way: str) -> None:
    with running(relay.connect, timeout=30) as recorder:
        receipts(recorder.record([entry("before")]))
        relay.plan = [way]
        results = recorder.record([entry("struck"), entry("struck")])
        receipts(recorder.record([entry("after")]))
    struck = {record.id: record for record in Record.objects.filter(tool="struck")}
    if LANDS[way]:
        assert {receipt.id for receipt in receipts(results)} == set(struck)
        for receipt in receipts(results):
            assert (struck[receipt.id].index, bytes(struck[receipt.id].leaf)) == (receipt.index, receipt.leaf)
    else:
        assert not struck
        assert all(isinstance(result, Stale) for result in results)


@pytest.mark.parametrize("ways", list(product(WAYS[:2], WAYS[:2])))
def test_commits_lost_one_after_the_other(relay: Relay, ways: tuple[str, str]) -> None:
    with running(relay.connect, timeout=30) as recorder:
        receipts(recorder.record([entry()]))
        relay.plan = list(ways)
        told = [recorder.record([entry(f"call{number}")])[0] for number in range(3)]
    recorded = set(Record.objects.values_list("tool", flat=True))
    for number, result in enumerate(told):
        assert (f"call{number}" in recorded) == isinstance(result, Receipt)
    assert isinstance(told[2], Receipt)


def test_the_look_for_a_lost_batch_may_itself_be_cut_off(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    landed = recording.landed

    def look(connection: psycopg.Connection, batch: Any) -> bool:
        looks.append(batch.first)
        if len(looks) < 3:
            connection.close()
        return landed(connection, batch)

    monkeypatch.setattr(recording, "landed", look)
    with running(relay.connect, timeout=30) as recorder:
        receipts(recorder.record([entry()]))
        relay.plan = ["answer lost"]
        receipts(recorder.record([entry("struck")]))
    assert looks == [1, 1, 1]


def test_others_may_have_written_before_a_lost_batch_is_looked_for(relay: Relay) -> None:
    """Two recorders in turn: the place of a batch that did not land is another's by the time of the look."""
    with running(relay.connect, timeout=30) as struck, running() as other:
        receipts(struck.record([entry()]))
        for way in ("request lost", "answer lost", "request lost"):
            relay.plan = [way]
            calls = [lambda: struck.record([entry("struck")])] + [lambda: other.record([entry("other")])] * 5
            results = at_once(calls)
            assert isinstance(results[0][0], Receipt) == LANDS[way]
            for result in results[1:]:
                receipts(result)
    assert Record.objects.filter(tool="struck").count() == 1
    assert Record.objects.filter(tool="other").count() == 15


@pytest.mark.parametrize("way", WAYS)
def test_a_lost_drain_is_drained_once(relay: Relay, way: str) -> None:
    for action in ("first", "second"):
        told = {"kind": "staff", "xact": "0", "at": "2026-01-01T00:00Z", "actor": "staff:1"}
        Outbox.objects.create(**told, members={"action": action})
    relay.plan = [way]
    with running(relay.connect, timeout=30) as recorder:
        until(lambda: not Outbox.objects.filter(record_index=None).exists(), 30)
        receipts(recorder.record([entry()]))
    assert Record.objects.filter(type="staff").count() == 2
    assert sorted(Outbox.objects.values_list("record_index", flat=True)) == [0, 1]


def test_callers_beside_a_drain_that_was_lost_get_their_answer(relay: Relay) -> None:
    """Settling what the outbox's batch came to must not fail those who wait for theirs."""
    with running(relay.connect, timeout=30) as recorder:
        receipts(recorder.record([entry()]))
        for number in range(4):
            relay.plan = ["answer lost"]
            Outbox.objects.create(kind="staff", xact="0", at="2026-01-01T00:00Z", actor="staff:1")
            until(lambda: not relay.plan, 30)
            for results in at_once([lambda: recorder.record([entry(f"call{number}")])] * 8):  # noqa: B023
                receipts(results)
    assert Record.objects.filter(type="staff").count() == 4


@pytest.mark.parametrize("way", WAYS)
def test_verify_answers_as_if_nothing_had_been_lost(relay: Relay, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "connect", relay.connect)
    world: World = build()
    world.verify()
    until(lambda: (head := Head.objects.get()).drained == head.policy, 30)
    relay.plan = [way]
    answer = world.verify(request={"id": "struck"})
    assert answer["decision"] == "allow"
    recorder: Recorder = process.recorder()
    assert recorder.thread.is_alive()
    key = Record.objects.get(id=answer["record"]).request_key
    assert Record.objects.filter(request_key=key).count() == 1


@pytest.mark.parametrize("way", WAYS)
def test_no_line_of_a_spool_overtakes_one_whose_batch_was_lost(
    relay: Relay, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "MAX_BATCH", 3)
    names = [uuid4() for _ in range(6)]
    lines = [
        entry(f"line{place}", parent=name, after=(names[place - 1], f"hash{place - 1}") if place else None)
        for place, name in enumerate(names)
    ]
    for place, line in enumerate(lines):
        line.statement |= {"type": "ungoverned", "parent": str(names[place]), "line": f"hash{place}"}
    with running(relay.connect, timeout=30) as recorder:
        receipts(recorder.record([entry("before")]))
        relay.plan = [way]
        results = recorder.record(lines)
    there = list(Record.objects.filter(type="ungoverned").order_by("index").values_list("tool", flat=True))
    assert there == [line.statement["tool"] for line in lines][: 6 if LANDS[way] else 0]
    assert len(there) == sum(isinstance(result, Receipt) for result in results)


@pytest.mark.parametrize("really", [True, False])
def test_a_commit_that_raises_is_looked_up(db: None, monkeypatch: pytest.MonkeyPatch, really: bool) -> None:
    """The error comes from the client library, the connection still being up."""
    struck: list[bool] = []

    class Flaky(psycopg.Connection):
        def commit(self) -> None:
            if struck:
                struck.pop()
                if really:
                    super().commit()
                raise psycopg.OperationalError("who knows")
            super().commit()

    with running(lambda: Flaky.connect(os.environ["DATABASE_URL"]), timeout=30) as recorder:
        receipts(recorder.record([entry()]))
        struck.append(True)
        [result] = recorder.record([entry("struck")])
    assert isinstance(result, Receipt if really else Stale)
    assert Record.objects.filter(tool="struck").count() == int(really)
