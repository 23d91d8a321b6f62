"""`manage.py demo_load`: the demo's policy, login, backend key and history, once."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError


class Command(BaseCommand):
    """Writes records, so it runs as a web process, and before there is one."""

    help = "Load the demo's data, once. Demo mode only, with MUNIMENT_PROCESS=web."

    def handle(self, *args: Any, **options: Any) -> None:
        """Exit status 2 where it may not run."""
        if not settings.MUNIMENT_DEMO:
            raise CommandError("demo data is for demo mode (MUNIMENT_MODE=demo) only", returncode=2)
        if settings.MUNIMENT_PROCESS != "web":
            raise CommandError("it writes records: run it with MUNIMENT_PROCESS=web", returncode=2)
        from governance import demo  # refuses to be imported elsewhere

        self.stdout.write(demo.load())
