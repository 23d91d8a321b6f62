"""`manage.py backend_key create|revoke|list`: the keys with which backends call."""

from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from audit.outbox import acting
from tools import credentials
from tools.models import Backend, BackendKey

ACTOR = "command:backend_key"
MAX_DAYS = 3650


class Command(BaseCommand):
    """Exit status 2 where there is no such backend or key."""

    help = "Make, revoke and list the keys of a backend."

    def add_arguments(self, parser: CommandParser) -> None:
        """The three actions."""
        actions = parser.add_subparsers(dest="action", required=True, parser_class=ArgumentParser)
        create = actions.add_parser("create", help="make a key and print it, the only time that it is shown")
        create.add_argument("slug", help="the backend")
        create.add_argument("--label", default="", help="where it is used, say")
        create.add_argument("--days", type=int, help="how long it is good; without: until it is revoked")
        revoke = actions.add_parser("revoke", help="end a key: no call with it is answered from now on")
        revoke.add_argument("key_id", help="the middle of mk_<key id>_<secret>, as `list` shows it")
        listing = actions.add_parser("list", help="show the keys of a backend, newest first, without secrets")
        listing.add_argument("slug", help="the backend")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one action."""
        match options["action"]:
            case "create":
                self.create(options["slug"], options["label"], options["days"])
            case "revoke":
                self.revoke(options["key_id"])
            case "list":
                self.list(options["slug"])

    def create(self, slug: str, label: str, days: int | None) -> None:
        """Only the key goes to standard output, so that a script can take it."""
        if days is not None and not 1 <= days <= MAX_DAYS:
            raise CommandError(f"--days must be 1 to {MAX_DAYS}", returncode=2)
        if len(label) > 120 or not label.isprintable():
            raise CommandError("--label must be printable and at most 120 characters", returncode=2)
        backend = self.backend(slug)
        with acting(ACTOR, "backend_key create"):
            key = credentials.issue(backend, label, days)
        self.stdout.write(key)

    def revoke(self, text: str) -> None:
        """A whole key is taken too, as it is what may be at hand; it is not printed."""
        key_id = text.split("_")[1] if text.startswith("mk_") and text.count("_") else text
        with acting(ACTOR, "backend_key revoke"):
            key = BackendKey.objects.select_for_update().filter(key_id=key_id).first()
            if key is None:
                raise CommandError("there is no key with this id", returncode=2)
            if key.revoked_at is not None:
                raise CommandError(f"{key.key_id} was revoked already", returncode=2)
            key.revoked_at = timezone.now()
            key.save(update_fields=["revoked_at"])
        self.stdout.write(f"revoked {key.key_id}")

    def list(self, slug: str) -> None:
        """A header and a line for each key, with tabs between, times in UTC."""
        self.stdout.write("key id\tlabel\tcreated\texpires\trevoked\tlast used")
        for key in self.backend(slug).keys.all():
            times = [key.created_at, key.expires_at, key.revoked_at, key.last_used]
            self.stdout.write("\t".join([key.key_id, key.label or "-", *map(moment, times)]))

    def backend(self, slug: str) -> Backend:
        """The backend, or the error."""
        found = Backend.objects.filter(slug=slug).first()
        if found is None:
            raise CommandError(f"there is no backend {slug}", returncode=2)
        return found


def moment(at: datetime | None) -> str:
    """A time to the minute."""
    return "-" if at is None else f"{at:%Y-%m-%d %H:%M}"
