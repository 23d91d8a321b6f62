"""`manage.py bundle`: a range of the log with all that proves it, as a file for an auditor (docs/proof.md)."""

import os
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error
from django.utils import timezone

from audit.bundling import Refused, Wanted, write
from muniment.bundle import EPOCH, time_of
from muniment.checkpoints import CheckpointError
from muniment.verify_heads import Held

MOST_NOTE = 65_536  # bytes of a checkpoint file


class Command(BaseCommand):
    """Exit status: 0; 1 where the bundle cannot be made now (part of the range is not sealed yet, the log is shorter
    than a checkpoint that is held); 2 where the input is wrong. Nothing is written then."""

    help = "Write a bundle: the records of a range with all that proves them, for `muniment verify`."

    def add_arguments(self, parser: CommandParser) -> None:
        """The range, what to open, and the file."""
        parser.add_argument("out", type=Path, metavar="OUT.zip")
        parser.add_argument("--from", dest="since", required=True, metavar="TIME", help="ISO 8601, e.g. 2026-11-01")
        parser.add_argument(
            "--to", dest="until", required=True, metavar="TIME", help="to before this, and not in future"
        )
        parser.add_argument("--subject", metavar="UID", help="open only records about this user")
        parser.add_argument("--client", metavar="SLUG", help="open only records of this client")
        parser.add_argument(
            "--checkpoint", type=Path, action="append", default=[], metavar="FILE", help="one that the auditor keeps"
        )
        parser.add_argument("--disclose", action="store_true", help="with the protected details, which is recorded")
        parser.add_argument("--reason", default="", help="why they are disclosed")

    def handle(self, *args: Any, **options: Any) -> None:
        """Write it beside its place, then move it there."""
        out: Path = options["out"]
        try:
            wanted = Wanted(
                _time("--from", options["since"]), _time("--to", options["until"]), options["subject"],
                options["client"], tuple(_held(path) for path in options["checkpoint"]), options["disclose"],
                options["reason"],
            )  # fmt: skip
            if wanted.until > timezone.now():
                raise Refused("--to lies in the future: nobody can say yet what is recorded until then", 2)
            manifest = _written(out, wanted)
        except Refused as error:
            raise CommandError(str(error), returncode=error.status) from None
        except OSError as error:
            raise CommandError(f"{out.name} cannot be written: {error.strerror}", returncode=2) from None
        except Error as error:
            raise CommandError(f"the database cannot be asked ({type(error).__name__})", returncode=1) from None
        counts = manifest.counts
        self.stdout.write(
            f"{out.name}: records {manifest.first:,} to {manifest.last:,}, {counts['opened']:,} open, "
            f"{counts['closed']:,} closed, details of {counts['disclosed']:,}"
        )


def _written(out: Path, wanted: Wanted) -> Any:
    number, name = tempfile.mkstemp(prefix=".bundle-", dir=out.parent)  # for its owner alone
    try:
        with os.fdopen(number, "w+b") as file:
            manifest = write(file, wanted)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(out)
    except BaseException:
        Path(name).unlink()
        raise
    return manifest


def _time(option: str, text: str) -> datetime:
    try:
        return EPOCH + timedelta(microseconds=time_of(text))
    except (ValueError, OverflowError) as error:
        raise Refused(f"{option}: {error}", 2) from None


def _held(path: Path) -> Held:
    try:
        with path.open("rb") as file:
            return Held.parse(path.name, file.read(MOST_NOTE + 1).decode())
    except OSError as error:
        raise Refused(f"{path.name} cannot be read: {error.strerror}", 2) from None
    except (CheckpointError, UnicodeDecodeError):
        raise Refused(f"{path.name} is not a checkpoint", 2) from None
