"""Times the pages of the evidence, the home page and the matrix; says which indexes their statements use, how large
each index is, and the plan of the slowest statement."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from threading import Event, Thread

from django.conf import settings
from django.db import connection

from audit import rollups
from audit.models import Head, Rollup, RollupState
from bench import platform
from bench.lines import Line, Lines, next_of
from bench.visits import Answer, Asked, Inside, Statement, Visitor, indexes_of, plan, visitor

TARGET = 200.0  # milliseconds at the 95th percentile
SIZES = """SELECT c.relname, coalesce(sum(pg_relation_size(t.relid)), 0), pg_get_indexdef(c.oid)
    FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid, LATERAL pg_partition_tree(c.oid) t
    WHERE i.indrelid = 'audit_record'::regclass GROUP BY c.relname, c.oid ORDER BY 2 DESC"""
PARENTS = """SELECT c.relname, p.relname FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid
    JOIN pg_class p ON p.oid = h.inhparent WHERE p.relkind = 'I'"""
# Read by others than these pages, who need them.
OTHERS = {
    "audit_record_index": "the sealer, the checks, the rollups",
    "audit_record_parent": "the recorder, for each outcome",
    "audit_record_told": "bundles",
}  # fmt: skip


@dataclass(slots=True)
class Timed:
    """What was measured of a line; times in milliseconds."""

    line: Line
    times: list[float] = field(default_factory=list)
    slowest: tuple[float, Asked | None] = (0.0, None)
    fault: str = ""
    short: int = 0

    def at(self, part: float) -> float:
        """A percentile, by the nearest rank."""
        return sorted(self.times)[ceil(part * len(self.times)) - 1]


def measure(count: int, only: str) -> None:
    """Everything, printed."""
    count = max(20, count - count % 20)
    _count_rollups()
    _head()
    table: list[Timed] = []
    with counting(), platform.web(processes=1, threads=2, log=Path(settings.MUNIMENT_VAR) / "web.log"):
        browser = visitor()
        for line in Lines(count).all():
            if only in f"{line.group} {line.name}":
                table.append(_time(browser, line))
                _show(table[-1])
    _summary(table)
    _indexes(table)


@contextmanager
def counting() -> Iterator[None]:
    """What the worker does meanwhile: it counts the records that come, each 5 s."""
    stop = Event()

    def run() -> None:
        while not stop.wait(5):
            rollups.catch_up()
        connection.close()

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _count_rollups() -> None:
    """The pages take it that the worker has counted; that takes its time for a log that was filled at once."""
    start, counted = time.monotonic(), 0
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")  # as in the worker, which no page waits for
    while more := rollups.count():
        counted += more
        if counted % 1_000_000 < more:
            rate = counted / (time.monotonic() - start)
            print(f"  {counted:,} records counted into rollups, {rate:,.0f}/s", flush=True)
    if counted:
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE audit_rollup")


def _head() -> None:
    head, state = Head.objects.get(), RollupState.objects.get()
    with connection.cursor() as cursor:
        cursor.execute("SHOW shared_buffers")
        buffers = cursor.fetchone()[0]
        cursor.execute("SELECT pg_size_pretty(sum(pg_table_size(relid))), pg_size_pretty(sum(pg_indexes_size(relid)))"
                       " FROM pg_partition_tree('audit_record')")  # fmt: skip
        table, indexes = cursor.fetchone()
    print(f"{head.next:,} records ({table}, indexes {indexes}) up to {head.at:%Y-%m-%d %H:%M} UTC")
    print(f"shared_buffers {buffers}; ", end="")
    print(f"{Rollup.objects.count():,} rollups, {state.next:,} records counted")
    print("HTTP requests, one after the other, to one granian process with the real views and middleware; each line is")
    print("asked once to warm up, then twice, with values that are frequent, middling and rare\n")
    print(f"{'page':>9} {'':42} {'n':>4} {'p50 ms':>8} {'p95 ms':>8} {'max ms':>8}", flush=True)


def _time(browser: Visitor, line: Line) -> Timed:
    timed = Timed(line, fault=line.missing)
    if timed.fault:
        return timed
    asked = [found for one in line.asked if (found := _target(browser, timed, one))]
    for number in range(line.rounds + 1):
        for one in asked:
            answer = browser.ask(one)
            if answer.status not in (200, 302):
                timed.fault = f"answers {answer.status}"
                return timed
            if number:
                timed.times.append(answer.spent)
                timed.slowest = max(timed.slowest, (answer.spent, one), key=lambda pair: pair[0])
    if not asked:
        timed.fault = "no request has such a page"
    return timed


def _target(browser: Visitor, timed: Timed, asked: Asked) -> Asked | None:
    """The page to be timed, which the answer to the first request leads to; None where that has none."""
    if timed.line.step == "first":
        return asked
    answer = browser.ask(asked)
    if answer.status != 200:
        timed.fault = timed.fault or f"answers {answer.status}"
        return None
    path = _link(answer, timed.line.step, asked)
    timed.short += path is None
    return None if path is None else Asked(path, key=asked.key)


def _link(answer: Answer, step: str, asked: Asked) -> str | None:
    if asked.key:
        return next_of(answer.body)
    found = answer.links().get(step)
    return asked.path.partition("?")[0] + found if found and found.startswith("?") else found


def _show(timed: Timed) -> None:
    name = f"{timed.line.group:>9} {timed.line.name:42}"
    if timed.fault:
        print(f"{name} {'':4} {timed.fault}", flush=True)
        return
    late = "  > 200" if timed.at(0.95) > TARGET else ""
    figures = " ".join(f"{timed.at(part):>8.0f}" for part in (0.5, 0.95, 1))
    print(f"{name} {len(timed.times):>4} {figures}{late}", flush=True)


def _summary(table: list[Timed]) -> None:
    """How many lines are within the target, and the plan of the slowest statement of the slowest request."""
    measured = [timed for timed in table if timed.times and not timed.fault]
    late = [timed for timed in measured if timed.at(0.95) > TARGET]
    missing = [f"{timed.line.name} ({timed.fault})" for timed in table if timed.fault]
    print(f"\n{len(measured) - len(late)} of {len(measured)} lines within {TARGET:.0f} ms at p95", end="")
    print(f"; not measured: {', '.join(missing)}\n" if missing else "\n")
    if not measured:
        return
    worst = max(measured, key=lambda timed: timed.at(0.95))
    spent, asked = worst.slowest
    assert asked is not None
    print(f"the slowest: {worst.line.group}, {worst.line.name}: {spent:.0f} ms for {asked.path}")
    inside = Inside()
    inside.statements(asked)
    seen = inside.statements(asked)
    print(f"{len(seen)} statements, {sum(one.spent for one in seen):.0f} ms in all; the slowest of them:")
    if seen:
        print(_short(max(seen, key=lambda one: one.spent)))


def _short(statement: Statement) -> str:
    """Its plan, without the parts that were never reached."""
    kept, skipping = [], False
    for line in plan(statement, run=True):
        if "->" in line or not line.startswith("   "):
            skipping = "never executed" in line
        if not skipping:
            kept.append(f"    {line[:150]}")
    return "\n".join(kept)


def _indexes(table: list[Timed]) -> None:
    """Each index of the records, its size, and which lines' statements use it."""
    with connection.cursor() as cursor:
        cursor.execute(PARENTS)
        parents = dict(cursor.fetchall())
        cursor.execute(SIZES)
        sizes = cursor.fetchall()
    used: dict[str, list[str]] = defaultdict(list)
    for name, index in _uses(table, parents):
        if name not in used[index]:
            used[index].append(name)
    print(f"\n{'index of the records':>28} {'MB':>6}  used by")
    for name, size, _ in sizes:
        users = used.get(name, [])
        words = f"{len(users)} lines, such as {users[0]}" if users else "NO LINE OF THE TABLE"
        words += f"; {OTHERS[name]}" if name in OTHERS else ""
        print(f"{name:>28} {size / 2**20:>6.0f}  {words}")


def _uses(table: list[Timed], parents: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(line, index) of some requests of each line: the first, the middle, the last of its values."""
    inside = Inside()
    for timed in table:
        asked = timed.line.asked
        if timed.fault or not asked:
            continue
        for one in {asked[0], asked[len(asked) // 2], asked[-1]}:
            for statement in inside.statements(one):
                if "audit_record" in statement.sql:
                    for index in indexes_of(plan(statement, run=False), parents):
                        yield timed.line.name, index
