"""Retention of one month of a million records: deciding what is due, dropping the month, and what calls notice of it.
`python -m bench retention [RECORDS]` measures this alone."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from bench import platform

if TYPE_CHECKING:
    from tests.world import World

RECORDS, TARGET = 1_000_000, 2.0  # seconds, DESIGN.md section 8
HELD = 80  # one of so many is under a hold
CALLS = 100  # before it begins
MONTH, FIRST = date(2024, 1, 1), 10_000_000
FILL = """INSERT INTO audit_record (id, index, at, type, decision, reason, backend, client, subject, tool, mode,
        scopes, request_key, trace_key, holder, statement, leaf, disclosures)
    SELECT gen_random_uuid(), %s + n, %s::timestamptz + n * interval '2 seconds', 'decision', 'allow', 'granted',
        'inner', CASE WHEN n %% %s = 0 THEN 'held' ELSE 'claude' END, 'usr_' || md5((n %% 5000)::text), 'memory.recall',
        'interactive', 'memory:read', substring(sha256(n::text::bytea) FOR 16), sha256(n::text::bytea),
        'usr_' || md5((n %% 5000)::text), convert_to(repeat(md5(n::text), 19), 'UTF8'), sha256(n::text::bytea),
        convert_to(repeat(md5(n::text), 6), 'UTF8')
    FROM generate_series(%s, %s) n"""


def main(arguments: list[str]) -> None:
    """This alone, with a database of its own."""
    with platform.servers():
        from tests.world import build

        measure(build(), int(arguments[0]) if arguments else RECORDS)


def measure(world: "World", records: int = RECORDS) -> None:
    """Fill a month, decide what of it is due under a rule and a hold, and drop it while calls are made."""
    from audit.models import Hold, RetentionRule, RetentionRun, RetentionStep
    from audit.retention.deleting import delete

    _fill(records)
    now = datetime.now(UTC)
    RetentionRule.objects.create(days=30, basis="bench", changed_by="staff:1", changed_at=now)
    Hold.objects.create(matter="bench", reason="bench", client="held", placed_by="staff:1", placed_at=now)
    began = time.perf_counter()
    ranges = _due(records)
    decided = time.perf_counter() - began
    run = RetentionRun.objects.using("owner").create(state="deleting", began_at=now)
    due = sum(size for _, size in ranges)
    dropped, longest, usual = _while_calling(world, lambda: delete(MONTH, [
        RetentionStep.objects.using("owner").create(run=run.pk, month=MONTH, outbox=0, ranges=ranges, due=due)
    ], time.monotonic() + 600))  # fmt: skip
    print(f"\nretention of a month of {records:,} records, {due:,} of them due, {records - due:,} under a hold")
    print(f"  deciding              {decided:6.2f} s")
    print(f"  dropping the month    {dropped:6.2f} s   target {TARGET:g} s, ratio {dropped / TARGET:.2f}")
    print(f"  longest call meanwhile {longest * 1000:4.0f} ms  (without it {usual * 1000:.0f} ms)")


def _fill(records: int) -> None:
    from django.db import connections

    from audit.maintenance import make_partition

    make_partition(MONTH)
    low = datetime(MONTH.year, MONTH.month, 1, tzinfo=UTC)
    with connections["owner"].cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
        for start in range(0, records, 100_000):
            cursor.execute(FILL, [FIRST, low, HELD, start, min(start + 100_000, records) - 1])
        cursor.execute("VACUUM ANALYZE audit_record")
        cursor.execute("RESET statement_timeout")


def _due(records: int) -> list[tuple[int, int]]:
    """What is due, page by page, as a run asks for it; without the tree, which this log does not have."""
    from audit.retention import deciding
    from audit.retention.sql import Window

    asked, found = deciding.question(datetime.now(UTC)), deciding.Decided()
    for start in range(0, records, deciding.PAGE):
        window = Window(*deciding.bounds(MONTH), FIRST + start, FIRST + min(start + deciding.PAGE, records))
        deciding._take(found, asked, deciding._ask(asked, window))
    return found.ranges


def _while_calling(world: "World", do: Callable[[], object]) -> tuple[float, float, float]:
    """How long it takes, and the longest call while it does and before."""
    from django.db import connections

    from governance import process

    waits: list[tuple[float, float]] = []
    over = threading.Event()

    def calls() -> None:
        while not over.is_set():
            began = time.perf_counter()
            world.verify()
            waits.append((began, time.perf_counter() - began))
        connections.close_all()

    thread = threading.Thread(target=calls)
    thread.start()
    while len(waits) < CALLS and thread.is_alive():
        time.sleep(0.05)
    start = time.perf_counter()
    do()
    spent = time.perf_counter() - start
    over.set()
    thread.join()
    process.stop_recorder()
    meanwhile = [wait for at, wait in waits if start <= at + wait and at <= start + spent]
    return spent, max(meanwhile), max(wait for at, wait in waits[CALLS // 2 :] if at + wait < start)
