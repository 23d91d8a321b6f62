"""A run of retention that is killed, wherever it is, goes on where it was; and no call waits while it deletes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.db import connections
from django.utils import timezone

from audit import maintenance
from audit.models import Record, RetentionRun, RetentionStep
from audit.retention import deleting, running
from tests.audit.retained import Past, findings, hold, past, rule, there


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def log(db: None, tmp_path: Path) -> Iterator[Past]:
    with past(tmp_path, 2025, 1, 10) as made:
        yield made


@contextmanager
def killed_at(statement: int) -> Iterator[None]:
    """At its n-th statement as the tables' owner it is killed: the connection is lost, and what was not committed."""
    left = [statement]

    def count(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        left[0] -= 1
        if left[0] <= 0:
            raise Killed
        return execute(sql, params, many, context)

    owner = connections["owner"]
    owner.ensure_connection()
    session = owner.connection.info.backend_pid
    with owner.execute_wrapper(count):
        try:
            yield
        except Killed:
            if owner.connection is not None:
                owner.connection.close()
            owner.in_atomic_block = False
            owner.savepoint_ids, owner.needs_rollback, owner.atomic_blocks = [], False, []
    owner.close()
    wait_for(lambda: not there_is(session))  # until then it holds the lock of the run


def there_is(session: int) -> bool:
    """Whether the server still has this session: it ends a moment after its connection."""
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [session])
        return bool(cursor.fetchone()[0])


def test_killed_at_each_statement_in_turn_it_ends_as_if_it_never_was(
    log: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleting, "BATCH", 3)
    gone = log.at(2025, 2, 3).call(12)  # nearly all of a month: a new table
    gone += log.at(2025, 3, 3).call(7)  # less of one: in batches
    held = log.call(2, user="held")
    rest = log.at(2025, 3, 28).call(9)
    log.at(2025, 4, 10).call()
    hold(subject=str(Record.objects.get(id=held[0]).subject))
    rule(30)
    log.seal()
    kills = 0
    for number in range(2, 200):
        with killed_at(number):
            run = running.run(log.now, wait=0)
            if run.state == "done":
                break
            if run.state == "waiting":
                log.seal()
            continue
        kills += 1
        if number % 10 == 0:
            log.seal()
            assert findings() == []
    assert kills > 20 and RetentionRun.objects.count() == 1
    run = RetentionRun.objects.get()
    assert (run.state, run.deleted, run.due, run.held) == ("done", 19, 19, 2)
    assert sum(RetentionStep.objects.values_list("deleted", flat=True)) == 19
    assert there(*gone) == 0 and there(*held) == 2 and there(*rest) == 9
    log.seal()
    assert findings() == []


def environment() -> dict[str, str]:
    """That of `manage.py` beside the web process that this test is."""
    foreign = ("MUNIMENT_WRITER_KEY", "MUNIMENT_ASSERTION_KEY")
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return kept | {"MUNIMENT_PROCESS": "manage", "DJANGO_SETTINGS_MODULE": "governance.settings"}


def test_a_command_that_is_killed_while_it_waits_for_the_guard_leaves_a_run_that_goes_on(
    log: Past, owner_url: str
) -> None:
    old = log.at(2025, 2, 3).call(8)
    log.at(2025, 6, 1).call()
    rule(10)
    log.seal()
    assert running.run(log.now, wait=0).state == "waiting"
    log.seal()
    connections["owner"].close()
    with psycopg.connect(owner_url) as other:
        other.execute("SELECT 1 FROM audit_guard FOR UPDATE")
        command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "retention", "--wait", "60"]
        child = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            wait_for(lambda: RetentionRun.objects.get().state == "deleting" or child.poll() is not None)
        finally:
            child.send_signal(signal.SIGKILL)
            said = child.communicate(timeout=20)[0].decode()
        assert child.returncode == -signal.SIGKILL, said
        assert there(*old) == 8
    wait_for(lambda: free(owner_url))
    run = running.go_on(wait=0)
    assert run is not None and (run.state, run.deleted) == ("done", 8)
    assert findings() == []


def wait_for(come: Callable[[], bool], seconds: float = 30.0) -> None:
    """Until it has come."""
    until = time.monotonic() + seconds
    while not come():
        assert time.monotonic() < until
        time.sleep(0.01)


def free(owner_url: str) -> bool:
    """Whether nobody is at retention any more."""
    with psycopg.connect(owner_url) as owner:
        found = owner.execute("SELECT pg_try_advisory_xact_lock(%s)", [running.RUNNING]).fetchone()
        return bool(found and found[0])


ROWS = """INSERT INTO audit_record
        (id, index, at, type, decision, reason, backend, client, subject, tool, statement, leaf)
    SELECT gen_random_uuid(), 1000000 + n, %s::timestamptz + n * interval '1 second', 'decision', 'allow', 'granted',
        'inner', CASE WHEN n %% 100 = 0 THEN 'ios' ELSE 'claude' END, 'usr_' || n %% 50, 'memory.recall',
        convert_to(repeat('x', 600), 'UTF8'), sha256(n::text::bytea) FROM generate_series(1, %s) n"""


@pytest.mark.parametrize("kept", [20_000, 0], ids=["a new table", "in batches"])
def test_no_call_waits_while_a_month_is_deleted(
    log: Past, owner_url: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleting, "KEPT_MOST", kept)
    count, month = 20_000, date(2025, 3, 1)
    maintenance.make_partition(month)
    with psycopg.connect(owner_url) as owner:
        owner.execute(ROWS, [datetime(2025, 3, 2, tzinfo=UTC), count])
    log.at(2025, 9, 1).call(5)
    hold(client="ios")
    run = RetentionRun.objects.using("owner").create(state="deleting", began_at=timezone.now())
    step = RetentionStep.objects.using("owner").create(
        run=run.pk, month=month, outbox=0, ranges=[[1_000_001, count]], due=count
    )
    waits = called_meanwhile(log, lambda: deleting.delete(month, [step], time.monotonic() + 60))
    assert Record.objects.filter(index__gt=1_000_000).count() == count // 100  # those under the hold
    step.refresh_from_db()
    assert step.deleted == count - count // 100 and step.done_at is not None
    # On a machine that is busy all takes longer; none of them took most of the time.
    assert len(waits) > 5 and max(waits) < max(0.5, sum(waits) / 4), max(waits)


def called_meanwhile(log: Past, do: Callable[[], object]) -> list[float]:
    """How long calls with an outcome took, one after the other, while something is done."""
    waits: list[float] = []
    over = threading.Event()

    def calls() -> None:
        while not over.is_set():
            began = time.monotonic()
            log.call(outcome=True)
            waits.append(time.monotonic() - began)
        connections.close_all()

    thread = threading.Thread(target=calls)
    thread.start()
    try:
        wait_for(lambda: len(waits) > 2)
        do()
    finally:
        time.sleep(0.2)
        over.set()
        thread.join()
    return waits
