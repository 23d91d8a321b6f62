"""Limits while Redis is away: stopped, hung and full for real. Each limit says what becomes of its calls; nobody waits;
the outage is on record and shown, and ends by itself."""

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from audit.models import Alert, Record
from clients import impatient, limits
from clients.limits import ALERT, counter
from clients.models import Limit
from governance import limiting
from governance.embedded_redis import binary
from muniment import statements
from tests.live import until
from tests.staff import administrator
from tests.world import World, build, token
from tools.models import Tool


class Server:
    """A Redis of its own, that can be stopped, hung and started again."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mlim"))
        self.socket = self.folder / "redis.sock"
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}?db=0"

    def start(self) -> None:
        command = [
            str(binary()),
            "--port",
            "0",
            "--unixsocket",
            str(self.socket),
            "--save",
            "",
            "--dir",
            str(self.folder),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        client = redis.Redis.from_url(self.url)

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

        until(answers, 20)
        client.close()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.socket.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def one() -> Iterator[Server]:
    made = Server()
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


@pytest.fixture
def server(one: Server) -> Iterator[Server]:
    """It runs, and is empty."""
    if one.process.poll() is not None:
        one.start()
    with redis.Redis.from_url(one.url) as client:
        client.flushall()
    yield one
    one.process.send_signal(signal.SIGCONT)


@pytest.fixture
def world(db: None, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(counter, "url", lambda: server.url)
    monkeypatch.setattr(limits, "LOOK", 0.05)
    counter.forget()
    yield build()
    counter.forget()


def limit(**members: Any) -> Limit:
    return Limit.objects.create(**{"per": "subject", "count": 2, "period": "hour", "reason": "test"} | members)


def reasons(world: World, count: int) -> list[str]:
    return [world.verify()["reason"] for _ in range(count)]


def noticed(action: str) -> list[dict[str, Any]]:
    records = Record.objects.filter(type="notice").order_by("index")
    found = [statements.load(bytes(record.statement)) for record in records]
    return [said for said in found if said["action"] == action]


def test_each_limit_says_what_becomes_of_its_calls(world: World, server: Server) -> None:
    held = limit()
    server.stop()
    assert reasons(world, 5) == ["granted"] * 5, "reading is let through"
    Tool.objects.filter(name="memory.recall").update(access="destructive")
    answer = world.verify()
    assert (answer["reason"], answer["status"], answer["retry_after"]) == ("rate_limited", 429, 1)
    assert "Calls cannot be counted at the moment. Each user may call 2 times an hour." in answer["explanation"]
    Limit.objects.update(on_outage="allow")
    assert reasons(world, 1) == ["granted"]
    Tool.objects.filter(name="memory.recall").update(access="read")
    Limit.objects.update(on_outage="deny")
    assert reasons(world, 1) == ["rate_limited"]
    limit(per="client", on_outage="allow")
    assert reasons(world, 1) == ["rate_limited"], "one that refuses is enough"
    said = statements.load(bytes(Record.objects.filter(reason="rate_limited").latest("index").statement))
    assert said["limits"] == [held.pk]


def test_calls_that_no_limit_is_of_do_not_notice(world: World, server: Server) -> None:
    limit(tool=Tool.objects.get(name="memory.capture"), on_outage="deny")
    server.stop()
    assert reasons(world, 3) == ["granted"] * 3 and not counter.away


def test_an_outage_is_on_record_with_how_many_and_ends_by_itself(world: World, server: Server) -> None:
    limit(), limit(per="client", tenant=None, tool=Tool.objects.get(name="memory.recall"), count=100)
    assert reasons(world, 1) == ["granted"]
    server.stop()
    assert reasons(world, 3) == ["granted"] * 3
    Limit.objects.filter(per="subject").update(on_outage="deny")
    assert reasons(world, 2) == ["rate_limited"] * 2
    until(lambda: len(noticed("limits.unavailable")) == 1, 20)
    until(lambda: Alert.objects.filter(kind=ALERT, cleared_at=None).exists(), 20)
    assert "Calls cannot be counted against limits" in administrator().get("/admin/").content.decode()
    server.start()
    until(lambda: not counter.away, 20)
    until(lambda: len(noticed("limits.available")) == 1, 20)
    [said] = noticed("limits.available")
    assert (said["uncounted"], said["refused"]) == (3, 2)
    until(lambda: not Alert.objects.filter(kind=ALERT, cleared_at=None).exists(), 20)
    assert reasons(world, 3) == ["granted", "granted", "rate_limited"], "counts begin anew: it was emptied"


def test_calls_that_end_after_the_outage_did_are_told_too(world: World) -> None:
    assert limiting.outage.notices() == []
    limiting.outage.met([True, False, False])
    [told] = limiting.outage.notices()
    assert (told.statement["action"], told.statement["uncounted"], told.statement["refused"]) == (
        "limits.available", 2, 1,
    )  # fmt: skip
    assert limiting.outage.notices() == []


def test_nobody_waits_for_a_redis_that_hangs(world: World, server: Server) -> None:
    limit()
    assert reasons(world, 1) == ["granted"]
    server.process.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    assert reasons(world, 1) == ["granted"] and counter.away
    assert time.monotonic() - begun >= impatient.TIMEOUT, "the first waits until the time is over"
    asked: list[object] = []
    store = counter.store()
    store.connection_pool.get_connection = lambda *_, **__: asked.append(0)  # type: ignore[method-assign,assignment]
    counter._stopping.set()  # so that only calls could ask
    if counter._looking is not None:
        counter._looking.join(20)
    asked.clear()
    assert reasons(world, 20) == ["granted"] * 20 and asked == []


def test_a_redis_that_takes_no_writes_is_away_until_it_does(world: World, server: Server) -> None:
    limit(count=1)
    admin = redis.Redis.from_url(server.url)
    admin.config_set("maxmemory", "1")
    assert reasons(world, 3) == ["granted"] * 3 and counter.away
    time.sleep(0.3)
    assert counter.away, "that it answers is not enough"
    admin.config_set("maxmemory", "0")
    until(lambda: not counter.away, 20)
    assert reasons(world, 2) == ["granted", "rate_limited"]
    admin.close()


def test_a_batch_is_answered_whole(world: World, server: Server) -> None:
    limit(on_outage="deny")
    server.stop()
    items = [{"token": token(), "tool": "memory.recall"}, {"token": None, "tool": "memory.recall"}] * 20
    found = world.post("/v1/verify/batch", {"items": items}).json()["items"]
    assert [one["reason"] for one in found] == ["rate_limited", "token_missing"] * 20


def test_an_alert_that_a_killed_process_left_ends_when_one_starts(world: World) -> None:
    from audit import alerts

    alerts.raise_alert(ALERT, "", "left behind")
    counter.begin()
    assert not Alert.objects.filter(cleared_at=None).exists()
