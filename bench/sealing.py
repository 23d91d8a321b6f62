"""Records sealed against records written, what a record takes on the disk, and how fast the whole log is verified."""

import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tests.world import World, token

if TYPE_CHECKING:
    from audit.entries import Entry

RECORDS, AT_ONCE, CALLERS = 40_960, 256, 8
ALONE = """
import sys
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", *sys.argv[1:]])
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
sys.exit(sys.stderr.write(peak.split()[1] + "\\n") and 0)
"""
STORED = """SELECT (SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('audit_record')),
    pg_total_relation_size('audit_batch'),
    pg_total_relation_size('audit_tile') + pg_total_relation_size('audit_checkpoint'),
    (SELECT avg(octet_length(statement)) FROM audit_record), (SELECT next FROM audit_head)"""


def measure(world: World) -> None:
    """In this process: write, seal all that was written so far, verify all of it."""
    from governance import process

    written = _write(world)
    process.stop_recorder()
    _seal(written)
    _stored()
    _verify()


def _write(world: World) -> float:
    """Decisions with their protected details, as many callers at once hand them over; records a second."""
    from governance.process import recorder

    lots = _entries(world)
    recorder().record(lots.pop())
    count, start = sum(map(len, lots)), time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        results = list(pool.map(recorder().record, lots))
    spent = time.perf_counter() - start
    faults = [result for found in results for result in found if isinstance(result, Exception)]
    if faults:
        raise SystemExit(f"{len(faults)} records were not written, the first: {faults[0]!r}")
    return count / spent


def _entries(world: World) -> list[list["Entry"]]:
    from governance.contract import Call, RequestInfo
    from governance.verification import authenticate, judge, to_entry
    from tools import credentials

    snapshot, backend = authenticate(credentials.read(f"Bearer {world.key}"))
    tokens = [token(sub=f"user-{number}") for number in range(1000)]

    def one(number: int) -> "Entry":
        call = Call(token=tokens[number % 1000], tool="memory.recall", request=RequestInfo(id=f"s{number}"))
        return to_entry(judge(snapshot, backend, call))

    return [[one(lot + number) for number in range(AT_ONCE)] for lot in range(0, RECORDS, AT_ONCE)]


def _seal(written: float) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from django.conf import settings

    from audit.seal_state import StateDir
    from audit.sealing import Sealer
    from governance.process import connect

    with tempfile.TemporaryDirectory(prefix="muniment-seal-") as folder:
        origin = settings.MUNIMENT_LOG_ORIGIN
        sealer = Sealer(connect, Ed25519PrivateKey.generate(), StateDir(Path(folder)), origin)
        start = time.perf_counter()
        count = sealer.step()
        rate = count / (time.perf_counter() - start)
        sealer.close()
    print("records sealed against records written (target >= 10)")
    print(f"{rate:>12.0f}/s of {count} against {written:.0f}/s of {RECORDS}: {rate / written:.1f}\n")


def _stored() -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(STORED)
        records, batches, tree, statement, count = (float(value) for value in cursor.fetchone())
    print(f"bytes a record, indexes included, over {count:.0f} records")
    print(f"{(records + batches + tree) / count:>12.0f}: {records / count:.0f} in its row ({statement:.0f} of them its"
          f" statement), {batches / count:.0f} of its write batch, {tree / count:.0f} of the tree\n")  # fmt: skip


def _verify() -> None:
    """Speed in this process; memory of a process of its own, against one that looks at one record."""
    from audit import verification

    start = time.perf_counter()
    report = verification.verify()
    spent = time.perf_counter() - start
    if report.count:
        raise SystemExit(f"{report.count} findings, the first: {report.findings[0].line}")
    whole, one = _peak(), _peak("--sample", "1")
    print("verify_log: everything recomputed from the records, protected details opened")
    print(f"{report.records / spent:>12.0f} records/s, {report.records} in {spent:.1f} s; peak memory {whole:.0f} MB,"
          f" {whole - one:.0f} of them more than for one record\n")  # fmt: skip


def _peak(*arguments: str) -> float:
    """The most memory, in MB, that one run of the command took: what it says of itself, since what the parent is told
    counts the parent's own memory, of before the exec."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", ALONE, "verify_log", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False, timeout=600)
    if done.returncode:
        raise SystemExit(f"verify_log ended with {done.returncode}:\n{done.stderr[-500:]}")
    return int(done.stderr.split()[-1]) / 1024
