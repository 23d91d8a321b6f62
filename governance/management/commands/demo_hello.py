"""`manage.py demo_hello`: what a newcomer needs to see; holds a token, so it belongs on a screen, not in a log."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    """The addresses, the login, and a call to paste."""

    help = "Print the demo's addresses, login and a call to paste. Demo mode only."

    def handle(self, *args: Any, **options: Any) -> None:
        """Exit status 2 where it may not run, or nothing was loaded."""
        if not settings.MUNIMENT_DEMO:
            raise CommandError("this is for demo mode (MUNIMENT_MODE=demo) only", returncode=2)
        from governance import demo  # refuses to be imported elsewhere

        if not demo.key_file().exists():
            raise CommandError("there is no demo data yet: run demo_load first", returncode=2)
        self.stdout.write(demo.hello())
