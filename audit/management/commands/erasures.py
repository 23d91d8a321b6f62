"""`manage.py erasures`: which users were erased, and erasing them again after a restore."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error, OperationalError, connections

from audit.erasure import restoring
from audit.erasure.restoring import Erased, LineError
from muniment.findings import counted


class Command(BaseCommand):
    """Exit status: 0 when it is done; 2 with one line where it cannot be."""

    help = "List the erasures that the log holds, or apply them again after a restore."

    def add_arguments(self, parser: CommandParser) -> None:
        """What to do."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="list|apply")
        listing = actions.add_parser("list", help="each erasure as a line of JSON: uid, at, index of its record")
        listing.add_argument(
            "--out", type=Path, metavar="FILE", help="into this file, which is replaced when it is whole"
        )
        applying = actions.add_parser(
            "apply", help="erase again whoever was erased and is there; needs the owner's URL"
        )
        applying.add_argument("--from", type=Path, metavar="FILE", dest="source", help="those of a list, too")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it."""
        does: dict[str, Callable[[dict[str, Any]], None]] = {"list": self._list, "apply": self._apply}
        try:
            does[options["action"]](options)
        except OperationalError as error:
            words = f"the database is away or busy ({type(error).__name__}); nothing is lost, run it again"
            raise CommandError(words, returncode=2) from None
        except Error as error:
            words = f"the database refuses it ({type(error).__name__}); is it migrated?"
            raise CommandError(words, returncode=2) from None

    def _list(self, options: dict[str, Any]) -> None:
        lines = [f"{one.line()}\n" for one in restoring.on_record()]
        if options["out"] is None:
            self.stdout.write("".join(lines), ending="")
            return
        path: Path = options["out"]
        if not path.name:
            raise CommandError("--out must name a file", returncode=2)
        draft = path.with_name(f".{path.name}.new")
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError as error:
            raise CommandError(f"{path.name} cannot be written: {error.strerror}", returncode=2) from None
        self.stderr.write(f"{counted(len(lines), 'erasure')} listed.")

    def _apply(self, options: dict[str, Any]) -> None:
        if "owner" not in connections:
            raise CommandError("it needs DATABASE_OWNER_URL: what serves may delete no keys", returncode=2)
        given = _read(options["source"]) if options["source"] else []  # read to its end before anything is done
        ours = list(restoring.on_record("owner"))
        total, mended = restoring.apply(ours, recorded=True)
        known = {one.uid for one in ours}
        more, again = restoring.apply([one for one in given if one.uid not in known], recorded=False)
        self.stdout.write(
            f"{counted(total + more, 'erasure')} looked at, {counted(mended + again, 'user')} erased again."
        )


def _read(path: Path) -> list[Erased]:
    try:
        return list(restoring.parse(path.read_text().splitlines()))
    except LineError as error:
        raise CommandError(f"{path.name}: {error}", returncode=2) from None
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text"
        raise CommandError(f"{path.name} cannot be read: {why}", returncode=2) from None
