"""`manage.py retention`: delete what is due by the retention rules, or (`--dry-run`) say what would go, and when."""

from argparse import ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error, connections
from django.utils import timezone

from audit.models import RetentionRun
from audit.retention import running, words
from audit.retention.deciding import holds, rules
from audit.retention.preview import preview

DRY_SECONDS = 600.0
MOST_WAIT = 3600


def seconds(text: str) -> int:
    """A number of seconds, of an hour at most."""
    if not (text.isascii() and text.isdecimal() and int(text) <= MOST_WAIT):
        raise ArgumentTypeError(f"a number of seconds from 0 to {MOST_WAIT:,}")
    return int(text)


class Command(BaseCommand):
    """Exit status: 0 when the run is done, and for a dry run; 1 when it waits or failed, with a line that says why; 2
    where it cannot be begun."""

    help = "Delete what is due by the retention rules. Needs a web process, the sealer, and DATABASE_OWNER_URL."

    def add_arguments(self, parser: CommandParser) -> None:
        """How far to go."""
        parser.add_argument("--dry-run", action="store_true", help="delete nothing: say what goes, and when")
        parser.add_argument(
            "--wait", type=seconds, default=60, metavar="SECONDS",
            help="how long to wait until what is to be deleted is sealed (default: 60)",
        )  # fmt: skip

    def handle(self, *args: Any, **options: Any) -> None:
        """Run, or preview."""
        try:
            if options["dry_run"]:
                self._preview()
                return
            if "owner" not in connections:
                raise CommandError(
                    "DATABASE_OWNER_URL is missing: only the tables' owner deletes records", returncode=2
                )
            run = running.run(wait=options["wait"])
        except running.Running:
            raise CommandError("another process is at it", returncode=2) from None
        except Error as error:
            raise CommandError(f"the database cannot be read ({type(error).__name__})", returncode=2) from None
        self._told(run)

    def _told(self, run: RetentionRun) -> None:
        said = f"{run.deleted:,} of {run.due:,} records that were due are deleted; {run.held:,} stay under a hold."
        self.stdout.write(said if run.due or run.held else "No record is due.")
        if run.words:
            self.stdout.write(run.words)
        if run.state != "done":
            raise CommandError(f"the run is not done: {run.state}", returncode=1)

    def _preview(self) -> None:
        now = timezone.now()
        if not rules():
            self.stdout.write("There is no retention rule: every record is kept.")
            return
        found = preview(now, DRY_SECONDS, most_months=1200)
        for line in found.lines:
            when = line.when(now.date())
            self.stdout.write(f"{when[0].upper()}{when[1:]}: {line.words} ({words.about(line.rule)}).")
        for month in found.uncounted:
            self.stdout.write(f"{words.month(month)} could not be counted in time.")
        if not found.lines and not found.uncounted:
            self.stdout.write("No rule fits a record that there is: every record is kept.")
        self.stdout.write(f"Legal holds in force: {len(holds()):,}.")
