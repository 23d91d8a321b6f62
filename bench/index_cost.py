"""What the indexes of the search cost the write path: the same recorder, the same entries, with and without them, by
turns, in a scratch database on a durable server.

    python -m bench.index_cost
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audit.entries import Entry

RECORDS, AT_ONCE, CALLERS, TURNS = 40_960, 256, 8, 7
# Not of the search: the key, the sealer's, and the one by which the recorder finds the outcome of a call.
KEPT = ("audit_record_pkey", "audit_record_index", "audit_record_parent")
INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'audit_record' AND NOT indexname = ANY(%s)"


def measure() -> None:
    """In a process of its own, since this one's settings name another database."""
    root = Path(__file__).resolve().parent.parent
    print("\nwhat the indexes of the search cost the write path", flush=True)
    subprocess.run([sys.executable, "-m", "bench.index_cost"], cwd=root, env=_environment(), check=False, timeout=1800)


def _environment() -> dict[str, str]:

    return {name: value for name, value in os.environ.items() if not name.startswith(("DATABASE_", "REDIS_"))}


def main() -> None:
    """Write by turns, print the ratio of the medians."""
    from bench import platform

    with platform.servers():
        from governance import process
        from tests.world import build

        world = build()
        _write(_entries(world, 2))  # the server and the tables are warm
        names = _indexes()
        rates: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(TURNS):
            for indexed in (True, False):
                _switch(names, indexed)
                rates[indexed].append(_write(_entries(world, RECORDS // AT_ONCE)))
        process.stop_recorder()
    plain, indexed_rate = median(rates[False]), median(rates[True])
    print(f"{indexed_rate:>12.0f} records/s with the {len(names)} indexes of the search, {plain:.0f}/s without:"
          f" {indexed_rate / plain:.2f} (medians of {TURNS} turns of {RECORDS} records)")  # fmt: skip
    for indexed in (True, False):
        print(f"{'with' if indexed else 'without':>12}: {', '.join(f'{rate:.0f}' for rate in rates[indexed])}")


def _indexes() -> list[tuple[str, str]]:
    from django.db import connections

    with connections["owner"].cursor() as cursor:
        cursor.execute(INDEXES, [list(KEPT)])
        found: list[tuple[str, str]] = cursor.fetchall()
    return found


def _switch(indexes: list[tuple[str, str]], indexed: bool) -> None:
    """Make them or drop them, as the owner; on every partition."""
    from django.db import connections

    with connections["owner"].cursor() as cursor:
        for name, definition in indexes:
            cursor.execute(f'DROP INDEX IF EXISTS "{name}"')
            if indexed:
                cursor.execute(definition.replace(" ON ONLY ", " ON "))
        cursor.execute("ANALYZE audit_record")


def _write(lots: list[list["Entry"]]) -> float:
    """Hand them over, by several callers at once; records a second."""
    from governance.process import recorder

    recorder().record(lots.pop())
    count, start = sum(map(len, lots)), time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        results = list(pool.map(recorder().record, lots))
    spent = time.perf_counter() - start
    faults = [result for found in results for result in found if isinstance(result, Exception)]
    if faults:
        raise SystemExit(f"{len(faults)} records were not written, the first: {faults[0]!r}")
    return count / spent


def _entries(world: Any, lots: int) -> list[list["Entry"]]:
    """Decisions with everything that an index is over: users, ids of three kinds, resources."""
    from governance.contract import Call, RequestInfo, Resource
    from governance.verification import authenticate, judge, to_entry
    from tests.world import token
    from tools import credentials

    snapshot, backend = authenticate(credentials.read(f"Bearer {world.key}"))
    tokens = [token(sub=f"user-{number}") for number in range(500)]

    def one(number: int) -> "Entry":
        info = RequestInfo(id=f"r{number}", trace_id=f"t{number // 3}", session_id=f"s{number // 40}")
        touched = Resource(type="memory", id=f"m{number % 5000}")
        call = Call(token=tokens[number % 500], tool="memory.recall", request=info, resource=touched)
        return to_entry(judge(snapshot, backend, call))

    return [[one(lot * AT_ONCE + number) for number in range(AT_ONCE)] for lot in range(lots)]


if __name__ == "__main__":
    main()
