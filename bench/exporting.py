"""Records a second and peak memory of each format of exports, by the runner itself, each in a process of its own.
`python -m bench export [RECORDS]` (a million) measures this alone; `make bench` does with fewer."""

import base64
import os
import secrets
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import platform

if TYPE_CHECKING:
    from audit.models import ExportRun

RECORDS, FEW, PEOPLE = 1_000_000, 100_000, 1_000
TARGET = 50_000  # records/s, DESIGN.md section 8
PART = 10  # the memory for a tenth of the records is what that for all of them is held against
PLAIN = (
    "time",
    "index",
    "record",
    "kind",
    "decision",
    "reason",
    "flagged",
    "user",
    "client",
    "tool",
    "backend",
    "tenant",
)
ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> None:
    """This alone, with a database of its own."""
    records = int(arguments[0]) if arguments else RECORDS
    with platform.servers(), tempfile.TemporaryDirectory(prefix="muniment-exports-") as folder:
        from bench import filling

        filling.fill(os.environ["DATABASE_OWNER_URL"], records, PEOPLE, lambda words: None)
        print(f"exports of {records:,} records (target >= {TARGET:,} records/s, memory flat)")
        print(f"{'format':>22} {'records/s':>10} {'ratio':>6} {'MB file':>8} {'MB peak':>8} {'of a tenth':>10}")
        worker = _worker(folder)
        for name, format, columns in _kinds():
            few, all_of_it = (_measured(name, format, columns, part, worker) for part in (PART, 1))
            rate, peak = all_of_it["records"] / all_of_it["seconds"], all_of_it["peak"]
            size = all_of_it["bytes"] / 1e6
            print(f"{name:>22} {rate:>10,.0f} {rate / TARGET:>6.2f} {size:>8,.0f} {peak:>8.0f} {few['peak']:>10.0f}")
        print()


def _kinds() -> list[tuple[str, str, tuple[str, ...]]]:
    from audit.exports.columns import COLUMNS, DEFAULT

    return [
        ("jsonl", "jsonl", PLAIN), ("jsonl with outcomes", "jsonl", DEFAULT),
        ("jsonl with statements", "jsonl", COLUMNS),
        ("csv", "csv", PLAIN), ("csv with outcomes", "csv", DEFAULT), ("parquet", "parquet", DEFAULT),
        ("ocsf", "ocsf", ()), ("bundle", "bundle", ()),
    ]  # fmt: skip


def _worker(folder: str) -> dict[str, str]:
    """What a worker process is given: no key of the web's."""
    given = {name: value for name, value in os.environ.items() if not _is_key(name)}
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    return given | {"MUNIMENT_PROCESS": "worker", "MUNIMENT_EXPORTS": folder, "MUNIMENT_EXPORT_KEY": key}


def _is_key(name: str) -> bool:
    return name.removeprefix("MUNIMENT_") in platform.KEYS


def _measured(name: str, format: str, columns: tuple[str, ...], part: int, worker: dict[str, str]) -> dict[str, float]:
    """One run, over the newest records of a tenth or all of the log."""
    run = _run(f"{name} {part}", format, columns, part)
    command = [sys.executable, "-m", "bench.exporting", str(run.pk)]
    done = subprocess.run(command, env=worker, capture_output=True, text=True, cwd=ROOT, check=False, timeout=3600)
    if done.returncode:
        raise SystemExit(f"the export as {name} ended with {done.returncode}:\n{done.stderr[-1000:]}")
    seconds, peak = map(float, done.stdout.split()[-2:])
    run.refresh_from_db()
    if run.state != "done":
        raise SystemExit(f"the export as {name} is {run.state}: {run.words}")
    (Path(worker["MUNIMENT_EXPORTS"]) / run.file).unlink()
    looked = (run.last or 0) - (run.first or 0) + 1
    return {"records": looked, "seconds": seconds, "peak": peak, "bytes": float(run.bytes or 0)}


def _run(name: str, format: str, columns: tuple[str, ...], part: int) -> "ExportRun":
    from django.contrib.auth import get_user_model

    from audit.exports import definitions, due
    from audit.exports.definitions import Definition
    from audit.models import ExportRun, Head, Record

    head = Head.objects.get()
    since = Record.objects.get(index=head.next - head.next // part).at
    user = get_user_model().objects.get(username="bench")
    export = definitions.make(user, Definition(name, format, columns=columns))
    slot = datetime.now(UTC).replace(microsecond=0)
    return ExportRun.objects.create(
        export=export.pk, owner=export.owner, slot=slot, since=since, until=head.at + timedelta(microseconds=1),
        created_at=slot, file=due.file_name(export, slot),
    )  # fmt: skip


def work(run: int) -> None:
    """In the worker process: one run; prints its seconds and the most memory, in MB, that the process took."""
    import django

    django.setup()
    from audit.exports import runs

    start = time.perf_counter()
    if runs.work(run):
        raise SystemExit("the run only waits")
    spent = time.perf_counter() - start
    peak: Any = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(spent, int(peak.split()[1]) / 1024)


if __name__ == "__main__":
    work(int(sys.argv[1]))
