"""PostgreSQL is stopped during a run: tools that fail closed refuse, tools that fail open go on as nobody, and after it
is back each of their calls is on record, in order, once. The platform is granian on servers of its own."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import psycopg
import pytest

from muniment import Muniment, Unavailable, current_caller
from muniment.breaker import Breaker
from muniment.calls import NOBODY
from muniment.spool import File, files, prepared, told
from tests.audit import chain
from tests.governance.test_kill import Instance
from tests.governance.test_kill import instance as instance
from tests.live import until, web

pytestmark = pytest.mark.timeout(400)
USERS = ("user0", "user1")


def guarded(instance: Instance, port: int, spool: Path, fail: Any) -> Muniment:
    guard = Muniment(f"http://127.0.0.1:{port}", instance.key, timeout=20.0, spool=spool)
    guard.platform.breaker = Breaker(limit=1, pause=0.2, longest=0.5)  # so that the test need not wait
    guard.tool("memory.recall", scopes="memory:read", fail=fail)(current_caller)
    return guard


def hasty(guard: Muniment) -> None:
    """For an outage, so that the test need not wait; while there is none, an answer may take its time."""
    guard.platform._settings["timeout"] = httpx2.Timeout(2.0)
    guard.platform.close()


def ungoverned(instance: Instance) -> list[dict[str, Any]]:
    with psycopg.connect(instance.environment["DATABASE_OWNER_URL"]) as connection:
        query = "SELECT statement FROM audit_record WHERE type = 'ungoverned' ORDER BY index"
        return [json.loads(bytes(row[0])) for row in connection.execute(query)]


def test_postgres_is_stopped_during_a_run(instance: Instance, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with web(environment=instance.environment) as [server]:
        closed, opened = (guarded(instance, server.port, spool, fail) for fail in ("closed", "open"))
        seen: list[Any] = []
        tools = [guard._guarded(guard.tools["memory.recall"], current_caller) for guard in (closed, opened)]
        recall, show = tools

        def run(user: str, count: int) -> None:
            for number in range(count):
                with opened.request(instance.tokens[user], id=f"{user}-{number}"):
                    seen.append(show())

        run("user0", 2)
        assert [caller.sub for caller in seen] == ["user0"] * 2 and opened.flush(30)
        hasty(opened)
        hasty(closed)
        instance.postgres.stop()
        with closed.request(instance.tokens["user0"]), pytest.raises(Unavailable):
            recall()
        seen.clear()
        threads = [Thread(target=run, args=(user, 15)) for user in USERS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert seen == [None] * 30  # they went on, as nobody
        with closed.request(instance.tokens["user0"]), pytest.raises(Unavailable):
            recall()
        assert len(files(spool)) == 1
        instance.start_postgres()
        until(lambda: len(ungoverned(instance)) >= 30, 90)
        assert opened.flush(60) and not files(spool)

        def served() -> bool:
            with closed.request(instance.tokens["user0"]), suppress(Unavailable):
                return recall().sub == "user0"  # type: ignore[no-any-return]
            return False

        until(served, 60)
        opened.close()
        closed.close()
    found = ungoverned(instance)
    assert [one["sequence"] for one in found] == list(range(1, 31)) and len({one["spool"] for one in found}) == 1
    assert {one["tool"] for one in found} == {"memory.recall"} and all(one["claimed"] for one in found)
    assert {one["cause"] for one in found} <= {"status_503", "timeout", "breaker_open", "status_500"}
    assert chain.findings(instance.environment["DATABASE_OWNER_URL"]) == []


def test_what_a_killed_process_left_is_reported_by_the_next_one(instance: Instance, tmp_path: Path) -> None:
    spool = prepared(tmp_path / "spool")
    before = len(ungoverned(instance))
    child = os.fork()
    if child == 0:
        file = File.new(spool)
        for _ in range(3):
            file.append(told("memory.recall", NOBODY, "unreachable"))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    [left] = files(spool)
    with left.open("ab") as torn:
        torn.write(b'{"at":17')
    with web(environment=instance.environment) as [server]:
        guard = guarded(instance, server.port, spool, "open")
        with guard.request(instance.tokens["user0"]):
            guard._guarded(guard.tools["memory.recall"], current_caller)()
        until(lambda: len(ungoverned(instance)) == before + 3, 60)
        assert guard.flush(60) and not files(spool)
        guard.close()
