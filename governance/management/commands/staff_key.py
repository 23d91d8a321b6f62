"""`manage.py staff_key create|list|revoke`: the keys with which tools of the staff read records."""

from argparse import ArgumentParser
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Q

from governance import staff_keys
from governance.models import StaffKey
from governance.staff_keys import MAX_DAYS
from tools.management.commands.backend_key import moment

ACTOR = "command:staff_key"


class Command(BaseCommand):
    """Exit status 2 where there is no such member of staff or key."""

    help = "Make, revoke and list the keys with which tools of the staff read records."

    def add_arguments(self, parser: CommandParser) -> None:
        """The three actions."""
        actions = parser.add_subparsers(dest="action", required=True, parser_class=ArgumentParser)
        create = actions.add_parser("create", help="make a key and print it, the only time that it is shown")
        create.add_argument("email", help="the owner: the e-mail address or user name of a member of staff")
        create.add_argument("--label", default="", help="where it is used, say")
        create.add_argument("--days", type=int, help="how long it is good; without: until it is revoked")
        actions.add_parser("list", help="show all keys, newest first, without secrets")
        revoke = actions.add_parser("revoke", help="end a key: no call with it is answered from now on")
        revoke.add_argument("key_id", help="the middle of sk_<key id>_<secret>, as `list` shows it")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one action."""
        match options["action"]:
            case "create":
                self.create(options["email"], options["label"], options["days"])
            case "list":
                self.list()
            case "revoke":
                self.revoke(options["key_id"])

    def create(self, email: str, label: str, days: int | None) -> None:
        """Only the key goes to standard output, so that a script can take it."""
        if days is not None and not 1 <= days <= MAX_DAYS:
            raise CommandError(f"--days must be 1 to {MAX_DAYS}", returncode=2)
        if len(label) > 120 or not label.isprintable():
            raise CommandError("--label must be printable and at most 120 characters", returncode=2)
        owner = self.owner(email)
        _, key = staff_keys.issue(owner, ACTOR, "", label=label, days=days)
        if not owner.has_perm("audit.view_record"):
            self.stderr.write("its owner has no role that reads records yet; until then it is answered 403")
        self.stdout.write(key)

    def list(self) -> None:
        """A header and a line for each key, with tabs between, times in UTC."""
        self.stdout.write("key id\towner\tlabel\tcreated\texpires\trevoked\tlast used")
        for key in StaffKey.objects.select_related("owner"):
            times = [key.created_at, key.expires_at, key.revoked_at, key.last_used]
            owner = key.owner.get_username()
            self.stdout.write("\t".join([key.key_id, owner, key.label or "-", *map(moment, times)]))

    def revoke(self, text: str) -> None:
        """A whole key is taken too, as it is what may be at hand; it is not printed."""
        key_id = text.split("_")[1] if text.startswith("sk_") and text.count("_") > 1 else text
        key = StaffKey.objects.filter(key_id=key_id).first() if key_id.isalnum() else None
        if key is None:
            raise CommandError("there is no key with this id", returncode=2)
        if not staff_keys.revoke(key, ACTOR, ""):
            raise CommandError(f"{key.key_id} was revoked already", returncode=2)
        self.stdout.write(f"revoked {key.key_id}")

    def owner(self, text: str) -> Any:
        """The member of staff, or the error, which repeats nothing that was given."""
        users = get_user_model().objects.filter(is_active=True, is_staff=True)
        found = list(users.filter(Q(email__iexact=text) | Q(username=text))[:2]) if "\0" not in text and text else []
        if not found:
            raise CommandError("there is no active member of staff with this e-mail address or user name", returncode=2)
        if len(found) > 1:
            raise CommandError("several members of staff have this e-mail address; give a user name", returncode=2)
        return found[0]
