"""`manage.py verify_log`: verify the live log, recomputing everything from the records."""

import json
import sys
import time
from argparse import ArgumentTypeError
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error

from audit import verification
from audit.trusting import given
from audit.verification import Report
from audit.verification_runs import Busy, run, sample
from muniment.checkpoints import CheckpointError
from muniment.findings import counted
from muniment.keys import Trust, TrustError

WIDTH = 30
EVERY = 10.0  # seconds between lines where there is no terminal


def moment(text: str) -> datetime:
    """An ISO 8601 time; without a zone it is UTC."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"not a time like 2026-03-01T10:00:00Z: {text[:40]!r}") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def count(text: str) -> int:
    """A number of records."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 10_000_000):
        raise ArgumentTypeError("a number from 1 to 10,000,000")
    return int(text)


class Progress:
    """A bar on a terminal, else a line now and then; on standard error."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.at = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self.at < (0.1 if self.terminal else EVERY) and done < total:
            return
        self.at = time.monotonic()
        share = done / total if total else 1.0
        if self.terminal:
            bar = "#" * int(share * WIDTH)
            sys.stderr.write(f"\r[{bar:<{WIDTH}}] {done:,} of {total:,} records" + ("\n" if done >= total else ""))
        elif done < total:
            sys.stderr.write(f"{done:,} of {total:,} records\n")
        sys.stderr.flush()


class Command(BaseCommand):
    """Exit status: 0 when everything holds; 1 with a line for each finding; 2 where the input is wrong."""

    help = "Verify the log: every record, write batch, hash and checkpoint, recomputed from the records."

    def add_arguments(self, parser: CommandParser) -> None:
        """What to look at, and whom to trust."""
        parser.add_argument("--since", type=moment, metavar="TIME", help="only what was sealed since (ISO 8601)")
        parser.add_argument("--sample", type=count, metavar="N", help="only so many records, taken at random")
        parser.add_argument("--trust", type=Path, metavar="FILE", help="keys to trust: a saved /v1/keys, or vkeys")
        parser.add_argument(
            "--checkpoint", type=Path, metavar="FILE", action="append", default=[],
            help="a checkpoint to hold against the log; may be given again",
        )  # fmt: skip
        parser.add_argument("--json", action="store_true", help="the report as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Verify, tell, and end with the status that says it."""
        if options["sample"] and (options["since"] or options["trust"] or options["checkpoint"]):
            raise CommandError("--sample goes with none of the others", returncode=2)
        began = time.monotonic()
        try:
            report = self._look(options)
        except (TrustError, CheckpointError) as error:
            raise CommandError(str(error), returncode=2) from None
        except Busy:
            raise CommandError("another verification is running; wait for it", returncode=2) from None
        except Error as error:
            raise CommandError(f"the database cannot be read ({type(error).__name__})", returncode=2) from None
        self._tell(report, time.monotonic() - began, options["json"])
        if report.count:
            sys.exit(1)

    def _look(self, options: dict[str, Any]) -> Report:
        if options["sample"]:
            return run("sample", lambda: sample(options["sample"]))
        trust = Trust.parse(_text(options["trust"])) if options["trust"] else given()
        held = [(path.name, _text(path)) for path in options["checkpoint"]]
        kind = "since" if options["since"] else "full"
        return run(kind, lambda: verification.verify(options["since"], trust, held, Progress()))

    def _tell(self, report: Report, seconds: float, as_json: bool) -> None:
        if as_json:
            findings = [{"code": f.code, "index": f.index, "message": f.message} for f in report.findings]
            whole = {"ok": not report.count, "count": report.count, "findings": findings, "records": report.records,
                     "sealed": report.size, "notes": report.notes}  # fmt: skip
            self.stdout.write(json.dumps(whole))
            return
        for finding in report.findings:
            self.stdout.write(finding.line)
        if report.count > len(report.findings):
            self.stdout.write(f"and {report.count - len(report.findings):,} more")
        for note in report.notes:
            self.stdout.write(note)
        verdict = "Everything holds" if not report.count else counted(report.count, "finding")
        self.stdout.write(
            f"{verdict}: {report.records:,} records looked at in {seconds:.1f} s, {report.size:,} sealed."
        )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text"
        raise CommandError(f"{path.name} cannot be read: {why}", returncode=2) from None
