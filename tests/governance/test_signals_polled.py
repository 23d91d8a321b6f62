"""Polling of a real transmitter on loopback (RFC 8936): what is taken is acknowledged afterwards, what is refused is
told so, and an outage, or a death between effect and acknowledgement, loses and repeats nothing."""

import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connections
from django.utils import timezone

from audit.alone import alone
from audit.models import Outbox, Subject
from clients.fetching import FetchError
from clients.models import SignalReceipt, SignalStream
from clients.signals import applying, credentials, polling
from tests.governance.test_signals import ALICE, OTHER, event, made
from tests.transmitter import Transmitter, running
from tests.world import World, build

TOKEN = "poll-token-7"


@pytest.fixture
def transmitter() -> Iterator[Transmitter]:
    with running() as found:
        yield found


@pytest.fixture
def world(db: None, settings: Any) -> World:
    settings.MUNIMENT_DEMO = True
    return build()


@pytest.fixture
def stream(world: World, transmitter: Transmitter) -> SignalStream:
    made(delivery="poll", poll_endpoint=transmitter.url)
    found = SignalStream.objects.select_related("issuer").get()
    credentials.keep(found, TOKEN)
    found.save()
    return found


def received() -> int:
    """How many events are, or will be, on record."""
    return Outbox.objects.filter(kind="signal", members__action="signal.received").count()


def test_what_is_held_is_taken_then_acknowledged(world: World, stream: SignalStream, transmitter: Transmitter) -> None:
    world.verify()
    transmitter.held = {"e1": event("e1")}
    assert polling.poll(stream) == 1
    assert [asked.get("ack") for asked in transmitter.asked] == [[], ["e1"]] and transmitter.held == {}
    assert transmitter.asked[0] == {"maxEvents": 20, "returnImmediately": True, "ack": []}
    assert {head["Authorization"] for head in transmitter.headers} == {f"Bearer {TOKEN}"}
    assert world.verify()["reason"] == "token_expired"


def test_more_than_fits_an_answer_comes_in_several(stream: SignalStream, transmitter: Transmitter) -> None:
    transmitter.page = 2
    transmitter.held = {f"e{n}": event(f"e{n}", sub_id=ALICE | {"sub": f"u{n}"}) for n in range(5)}
    assert polling.poll(stream) == 5
    assert transmitter.held == {} and Subject.objects.exclude(signed_out_at=None).count() == 5


def test_one_without_end_keeps_no_turn_for_ever(
    stream: SignalStream, transmitter: Transmitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "ROUNDS", 3)
    transmitter.page = 1
    transmitter.held = {f"e{n}": event(f"e{n}") for n in range(9)}
    assert polling.poll(stream) == 2
    assert [asked["maxEvents"] for asked in transmitter.asked] == [20, 20, 0]
    assert "e0" not in transmitter.held and "e1" not in transmitter.held, "the last exchange only acknowledges"


def test_a_slow_one_keeps_no_turn_for_ever_either(
    stream: SignalStream, transmitter: Transmitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "TURN", -1.0)
    transmitter.page = 1
    transmitter.held = {f"e{n}": event(f"e{n}") for n in range(9)}
    assert [polling.poll(stream), polling.poll(stream)] == [1, 1]
    assert [asked["maxEvents"] for asked in transmitter.asked] == [20, 0, 20, 0] and len(transmitter.held) == 7


def test_what_is_refused_is_told_and_does_not_stop_the_others(
    world: World, stream: SignalStream, transmitter: Transmitter
) -> None:
    transmitter.held = {
        "bad": event("bad", key=OTHER), "odd": 7, "renamed": event("other"), "good": event("good"), "x" * 300: "y",
    }  # fmt: skip
    assert polling.poll(stream) == 1
    assert {name: one["err"] for name, one in transmitter.errors.items()} == {
        "bad": "invalid_key", "odd": "invalid_request", "renamed": "invalid_request",
    }  # fmt: skip
    assert received() == 1 and SignalReceipt.objects.count() == 1


def test_a_death_between_effect_and_acknowledgement_repeats_nothing(
    world: World, stream: SignalStream, transmitter: Transmitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is gone once the effect has committed: the event comes again, and is only acknowledged."""

    class Killed(BaseException):
        pass

    real = applying.take

    def take_and_die(*given: Any) -> Any:
        real(*given)
        raise Killed

    transmitter.held = {"e1": event("e1")}
    with monkeypatch.context() as patch:
        patch.setattr(applying, "take", take_and_die)
        with pytest.raises(Killed):
            polling.poll(stream)
    assert received() == 1 and "e1" in transmitter.held
    out = Subject.objects.get().signed_out_at
    assert polling.poll(stream) == 1
    assert received() == 1 and transmitter.held == {} and Subject.objects.get().signed_out_at == out


def test_what_could_not_be_committed_is_not_acknowledged(
    world: World, stream: SignalStream, transmitter: Transmitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise OperationalError("the database is away")

    transmitter.held = {"e1": event("e1")}
    with monkeypatch.context() as patch:
        patch.setattr(applying, "_record", broken)
        with pytest.raises(OperationalError):
            polling.poll(stream)
    assert transmitter.held and not SignalReceipt.objects.exists()
    assert not Subject.objects.exclude(signed_out_at=None).exists()
    assert polling.poll(stream) == 1 and transmitter.held == {}


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (500, b"{}", "the server answered 500"),
        (401, b"{}", "the server answered 401"),
        (200, b"[]", "the answer is of no use"),
        (200, b'{"sets": []}', "the answer has no sets"),
        (200, json.dumps({"sets": {str(n): "x" for n in range(21)}}).encode(), "more than were asked for"),
    ],
)
def test_an_outage_is_shown_and_waited_out_and_over_at_the_next_good_poll(
    world: World, stream: SignalStream, transmitter: Transmitter, status: int, body: bytes, words: str
) -> None:
    transmitter.status, transmitter.body = status, body
    assert polling.poll_due(5.0)
    shown = SignalStream.objects.get().error
    assert shown.startswith("polling: ") and words in shown and TOKEN not in shown
    asked = len(transmitter.asked)
    SignalStream.objects.update(polled_at=timezone.now() - timedelta(seconds=10))
    polling.poll_due(5.0)
    assert len(transmitter.asked) == asked, "it waits longer after a failure"
    transmitter.status, transmitter.body = 200, None
    SignalStream.objects.update(polled_at=timezone.now() - timedelta(seconds=61))
    polling.poll_due(5.0)
    assert SignalStream.objects.get().error == ""


def test_a_place_that_is_not_allowed_is_not_asked(stream: SignalStream, settings: Any) -> None:
    settings.MUNIMENT_DEMO = False
    with pytest.raises(FetchError):
        polling.poll(stream)


def test_it_is_polled_once_each_interval_whoever_asks(
    world: World, stream: SignalStream, transmitter: Transmitter
) -> None:
    def work() -> None:
        polling.poll_due(60.0)
        connections.close_all()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(transmitter.asked) == 1


def test_while_another_process_is_at_it_nobody_else_is(stream: SignalStream, transmitter: Transmitter) -> None:
    held, done = threading.Event(), threading.Event()

    def other() -> None:
        with alone(polling.LOCK, stream.pk):
            held.set()
            done.wait(30)
        connections.close_all()

    thread = threading.Thread(target=other)
    thread.start()
    assert held.wait(30)
    assert polling.poll(stream) is None and transmitter.asked == []
    done.set()
    thread.join(30)


def test_what_is_disabled_or_pushed_is_not_polled(stream: SignalStream, transmitter: Transmitter) -> None:
    SignalStream.objects.update(enabled=False)
    assert polling.poll_due(5.0) is False
    SignalStream.objects.update(enabled=True, delivery="push")
    assert polling.poll_due(5.0) is False and transmitter.asked == []


def test_the_thread_polls_once_its_process_serves_and_ends_when_told(
    world: World, stream: SignalStream, transmitter: Transmitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "IDLE", 0.02)
    transmitter.held = {"e1": event("e1")}
    serves, ended = threading.Event(), threading.Event()
    thread = polling.begin(serves.is_set, ended)
    time.sleep(0.1)
    assert transmitter.asked == []
    serves.set()
    until = time.monotonic() + 30
    while transmitter.held and time.monotonic() < until:
        time.sleep(0.02)
    ended.set()
    thread.join(30)
    assert transmitter.held == {} and not thread.is_alive()
