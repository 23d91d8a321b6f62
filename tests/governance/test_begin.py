"""A web process records what waits in the outbox from its start on, before anybody calls it."""

from collections.abc import Iterator
from threading import Event

import pytest
from django.db import OperationalError

from audit.models import Outbox
from audit.outbox import acting
from governance import process
from tests.live import until
from tests.world import World, build
from tools.models import Scope


@pytest.fixture
def world(db: None) -> Iterator[World]:
    made = build()
    process.stop_recorder()
    yield made
    process.stop_recorder()


def waits() -> bool:
    return Outbox.objects.filter(record_index=None).exists()


def change() -> None:
    with acting("command:test", "test"):
        Scope.objects.create(name="memory:forget")


def test_what_waits_is_recorded_without_a_call(world: World) -> None:
    change()
    assert waits()
    process.begin(lambda: True).join(10)
    until(lambda: not waits(), 10)


def test_nothing_is_recorded_while_erasures_must_be_done_again(world: World) -> None:
    change()
    closed, asked, ended = [True], [], Event()

    def may() -> bool:
        asked.append(1)
        return not closed[0]

    thread = process.begin(may, 0.01, ended)
    until(lambda: len(asked) > 20, 10)
    assert thread.is_alive() and waits()
    closed[0] = False
    thread.join(10)
    until(lambda: not waits(), 10)


@pytest.mark.parametrize("failure", [OperationalError("away"), OSError("no space")])
def test_it_is_tried_again_until_the_database_answers(
    world: World, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    change()
    real, failing = process.start_recorder, [failure, failure]

    def start() -> object:
        if failing:
            raise failing.pop()
        return real()

    monkeypatch.setattr(process, "start_recorder", start)
    process.begin(lambda: True, 0.01).join(10)
    assert failing == []
    until(lambda: not waits(), 10)


def test_it_ends_when_it_is_told_to(world: World) -> None:
    ended = Event()
    thread = process.begin(lambda: False, 30, ended)
    ended.set()
    thread.join(5)
    assert not thread.is_alive()
