"""Daily slots with a real worker and a real beat over a moved clock, while the worker is killed, Redis restarted and
the sealer late: a file for each, every record in one of them exactly once, each proven by `muniment verify`."""

import base64
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from audit.exports import definitions
from audit.exports.definitions import Definition
from audit.keys import public_of
from audit.models import Export, ExportRun, Record
from audit.sealing import Sealer
from governance import embedded, embedded_redis, process
from governance.embedded_process import Process, last_lines, launch, stop_group
from governance.embedded_redis import Redis
from muniment import cli, notes
from tests.audit.exporting import AUDITOR, staff
from tests.audit.recorders import entry, receipts
from tests.audit.sealers import ORIGIN, sealing
from tests.live import ROOT, until
from tests.sdk.test_cli_verify import muniment

DAY = timedelta(days=1)
COLUMNS = ("time", "index", "record", "kind", "decision", "user", "client", "tool", "statement")


@dataclass(frozen=True)
class Troubles:
    """How many days there are, and on which the worker is killed, Redis restarted and nothing sealed."""

    slots: int
    killed: set[int]
    restarted: int
    unsealed: range


FEW, MANY = Troubles(8, {2}, 6, range(3, 5)), Troubles(30, {5, 13, 21}, 17, range(9, 12))


@dataclass
class Clock:
    """The moved time, for the recorder of this process and, by a file, for the worker."""

    file: Path
    now: datetime

    def __call__(self) -> datetime:
        return self.now

    def move(self, to: datetime) -> None:
        """Never back."""
        self.now = to
        draft = self.file.with_suffix(".draft")
        draft.write_text(to.isoformat())
        draft.replace(self.file)


@dataclass
class Works:
    """Redis, worker and beat: started, killed, restarted, and all stopped in the end."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    running: dict[str, Process] = field(default_factory=dict)
    redis: Redis | None = None

    def __enter__(self) -> "Works":
        self.servers = embedded.start(self.folder / "var", postgres=False)
        self.redis = self.servers.redis
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MUNIMENT_")}
        kept |= {name: os.environ[name] for name in ("MUNIMENT_MODE", "MUNIMENT_LOG_ORIGIN")}
        self.key = Ed25519PrivateKey.generate()
        self.environment = kept | {
            "MUNIMENT_PROCESS": "worker", "MUNIMENT_VAR": str(self.folder),
            "CELERY_BROKER_URL": self.servers.broker_url,
            "MUNIMENT_EXPORT_KEY": base64.b64encode(self.key.private_bytes_raw()).decode(),
        }  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        for running in self.running.values():
            stop_group(running, 5)
        if self.redis is not None and self.redis is not self.servers.redis:
            self.redis.stop()
        self.servers.stop()

    def start(self, name: str, command: list[str], **more: str) -> None:
        """A process of ours in a group of its own."""
        log = self.folder / f"{name}.log"
        given = {name: value for name, value in (self.environment | more).items() if value}
        self.running[name] = launch(
            [sys.executable, "-m", *command], log=log, account=None, death_signal=SIGKILL, environment=given, cwd=ROOT
        )

    def worker(self) -> None:
        clock = str(self.folder / "clock")
        self.start("worker", ["tests.audit.moved_worker", clock, "worker", "--concurrency", "1", "--loglevel", "INFO"])

    def beat(self) -> None:
        more = {"MUNIMENT_PROCESS": "beat", "MUNIMENT_EXPORT_KEY": ""}
        schedule = str(self.folder / "beat")
        self.start("beat", ["celery", "-A", "governance", "beat", "--schedule", schedule, "--pidfile", ""], **more)

    def kill(self, name: str) -> None:
        """kill -9 of all of its processes at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.running[name].pid, SIGKILL)
        self.running[name].wait(30)

    def restart_redis(self) -> None:
        """Ended, away for a moment, and started again at the same place."""
        old = self.redis
        assert old is not None
        old.process.send_signal(SIGTERM)
        old.process.wait(30)
        time.sleep(0.5)
        var, sockets = self.folder / "var", old.socket.parent
        account = embedded._account(var, sockets, postgres=False, redis=True)
        self.redis = embedded_redis.start(var, sockets, old.password, account=account)

    def said(self) -> str:
        """The ends of their logs, for a failure."""
        return "\n".join(last_lines(self.folder / f"{name}.log", 30) for name in self.running)


@contextmanager
def works() -> Iterator[Works]:
    with tempfile.TemporaryDirectory(prefix="muniment-slots-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with Works(folder) as started:
            yield started


def sweeping(seconds: int) -> None:
    """Have beat send the sweeper more often than each minute."""
    every, _ = IntervalSchedule.objects.get_or_create(every=seconds, period=IntervalSchedule.SECONDS)
    PeriodicTask.objects.create(name="sweep soon", task="audit.tasks.export_sweep", interval=every)


def one_day(clock: Clock, midnight: datetime, sealer: Sealer | None) -> None:
    """Records over a day, with the first and the last microsecond of it."""
    for at in (midnight, *(midnight + hour * timedelta(hours=1) for hour in range(1, 24, 4)), midnight + DAY):
        if at == midnight + DAY:
            at -= timedelta(microseconds=1)
        clock.move(max(clock.now, at))
        receipts(process.recorder().record([entry(tool=f"t{at:%H}") for _ in range(1 if at.hour % 23 == 0 else 9)]))
    clock.move(midnight + DAY + timedelta(seconds=1))
    if sealer is not None:
        sealer.step()


def in_the_midst() -> bool:
    """Whether a run is half written."""
    return ExportRun.objects.filter(state="running", offset__gt=0, records__gt=0).exists()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("troubles", [FEW, pytest.param(MANY, marks=pytest.mark.soak)], ids=["few", "many"])
def test_slots_have_every_record_once_whatever_dies(db: None, tmp_path: Path, troubles: Troubles) -> None:
    first = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - (troubles.slots + 1) * DAY
    with works() as started, sealing(tmp_path / "seal") as sealer:
        clock = Clock(started.folder / "clock", first)
        clock.move(first)
        process.start_recorder(clock)
        export = definitions.make(
            staff("ada", *AUDITOR), Definition("daily", "jsonl", columns=COLUMNS, schedule="daily")
        )
        Export.objects.update(due_from=first)
        sweeping(1)
        started.worker()
        started.beat()
        killed, held = 0, clock.file.with_suffix(".held")
        for day in range(troubles.slots):
            if day in troubles.killed:
                held.touch()
            one_day(clock, first + day * DAY, None if day in troubles.unsealed else sealer)
            if day in troubles.killed:
                until(in_the_midst, 100)
                started.kill("worker")
                killed += in_the_midst()
                held.unlink()
                started.worker()
            if day == troubles.restarted:
                started.restart_redis()
        until(lambda: (sealer.step() or 0) >= 0 and finished(export, troubles.slots), 100)
        assert killed == len(troubles.killed), started.said()
        proven(started, sealer, first, troubles.slots)


@pytest.mark.soak
def test_beat_makes_the_slot_of_a_minute_in_real_time(db: None, tmp_path: Path) -> None:
    with works() as started, sealing(tmp_path / "seal") as sealer:
        process.recorder()
        export = definitions.make(
            staff("ada", *AUDITOR), Definition("now", "jsonl", columns=COLUMNS, schedule="* * * * *")
        )
        started.start("worker", ["celery", "-A", "governance", "worker", "--concurrency", "1"])
        started.beat()
        done = ExportRun.objects.filter(export=export.pk, state="done")
        until(lambda: (sealer.step() or 0) >= 0 and done.exists(), 150)
        run = done.get()
        assert run.ended_at is not None
        assert run.slot <= run.created_at < run.slot + timedelta(seconds=30), "not by the sweeper of each minute"
        assert "Sending due task export" in (started.folder / "beat.log").read_text()


def finished(export: Export, slots: int) -> bool:
    """Whether all slots are done."""
    time.sleep(0.1)
    return ExportRun.objects.filter(export=export.pk, state="done").count() == slots


def proven(started: Works, sealer: Sealer, first: datetime, slots: int) -> None:
    """A file for each slot; together every record of those days, none twice; each verifies."""
    folder, trust = started.folder / "exports", started.folder / "trust"
    keys = {"muniment.test/export": public_of(started.key), ORIGIN: sealer.public}
    trust.write_text("".join(f"{notes.Key(name, notes.ED25519, key).vkey}\n" for name, key in keys.items()))
    files = sorted(path for path in folder.iterdir() if path.suffix == ".jsonl")
    ends = [f"{first + day * DAY:%Y%m%dT0000Z}" for day in range(1, slots + 1)]
    assert [path.stem.rpartition("-")[2] for path in files] == ends
    found = [json.loads(line)["index"] for path in files for line in path.read_bytes().splitlines()]
    there = Record.objects.filter(at__gte=first, at__lt=first + slots * DAY).order_by("index")
    assert found == list(there.values_list("index", flat=True))
    assert len(found) > slots * 40
    for path in files:
        assert cli.main(["verify", str(path) + ".manifest.json", "--trust", str(trust), "--json"]) == 0
    assert muniment("verify", f"{files[7]}.manifest.json", "--trust", trust).lines[0] == "Everything holds."
    assert {path.name for path in folder.iterdir() if path.name.startswith(".")} == set()
