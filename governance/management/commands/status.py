"""`manage.py status`: how everything is, on one screen."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error

from governance.status import LOOK, lines
from muniment.findings import counted


class Command(BaseCommand):
    """Exit status: 0 where nothing needs a person; 1 where something does, or the database cannot be asked."""

    help = "Say how the log, the background work and what hands it on are. Exit status 1: something needs a person."

    def handle(self, *args: Any, **options: Any) -> None:
        """Print it."""
        try:
            found = lines()
        except Error as error:
            words = f"the database cannot be asked ({type(error).__name__}): nothing is decided, recorded or sealed"
            raise CommandError(words, returncode=1) from None
        self.stdout.write("\n".join(str(line) for line in found))
        if needs := sum(line.state == LOOK for line in found):
            raise CommandError(f"{counted(needs, 'line')} above {'needs' if needs == 1 else 'need'} a person",
                               returncode=1)  # fmt: skip
