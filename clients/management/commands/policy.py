"""`manage.py policy apply|diff|export`: configuration as code (DESIGN.md section 4)."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from clients import policyfile, policyfile_apply, policyfile_export
from clients.policyfile import PolicyFileError
from muniment.findings import counted

PRUNE = (
    "end what a section of the file leaves out: grants are revoked, tools retired, clients suspended, backends"
    " and issuers disabled, limits deleted, scopes deleted where nothing names them; sections that are not in the file"
    " stay"
)


class Command(BaseCommand):
    """Exit status: 0, or for `diff` 1 where there is something to change; 2 where the file is wrong."""

    help = "Apply a policy file, show what applying it would change, or write the policy as one."

    def add_arguments(self, parser: CommandParser) -> None:
        """The three actions."""
        actions = parser.add_subparsers(dest="action", required=True, parser_class=ArgumentParser)
        apply = actions.add_parser("apply", help="create and update what the file names, in one transaction")
        diff = actions.add_parser("diff", help="show what apply would change; exit status 1 where anything")
        for action in (apply, diff):
            action.add_argument("file", type=Path)
            action.add_argument("--prune", action="store_true", help=PRUNE)
        export = actions.add_parser("export", help="write the policy as a file, to standard output")
        export.add_argument("--subjects", action="store_true", help="also grants that name a user: personal data")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one action."""
        if options["action"] == "export":
            self.stdout.write(policyfile_export.export(options["subjects"]), ending="")
            return
        path: Path = options["file"]
        keep = options["action"] == "apply"
        try:
            run = policyfile_apply.apply if keep else policyfile_apply.diff
            result = run(policyfile.read(path), path.name, options["prune"])
        except PolicyFileError as error:
            raise CommandError(" ".join(f"{path}: {error}".split()), returncode=2) from None
        for change in result.changes:
            self.stdout.write(str(change))
        for notice in result.notices:
            self.stderr.write(notice)
        if keep:
            self.stdout.write(counted(len(result.changes), "change") if result.changes else "nothing to change")
        elif result.changes:
            raise SystemExit(1)
