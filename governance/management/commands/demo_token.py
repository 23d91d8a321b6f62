"""`manage.py demo_token`: a token of the demo issuer, and nothing else, on standard output."""

import re
from argparse import ArgumentTypeError
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

MAX_LIFETIME = 86400  # what the demo's policy allows


def client_id(text: str) -> str:
    """A client's slug, or an OAuth client id, which need not be known."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", text):
        raise ArgumentTypeError("must be a client's slug or an OAuth client id")
    return text


def seconds(text: str) -> int:
    """A lifetime; a negative one makes a token that has expired."""
    if not re.fullmatch(r"-?\d{1,6}", text) or int(text) > MAX_LIFETIME:
        raise ArgumentTypeError(f"must be a number of seconds, at most {MAX_LIFETIME}")
    return int(text)


class Command(BaseCommand):
    """For trying things: nothing is checked but that the user is a demo user."""

    help = "Print an access token of the demo issuer. Demo mode only."

    def add_arguments(self, parser: CommandParser) -> None:
        """Whose token, through which client, with which scopes, for whom."""
        parser.add_argument("--user", default="alice", choices=["alice", "bob"])
        parser.add_argument(
            "--client", default="claude", type=client_id, help="chatgpt, claude, inner-ios or any OAuth client id"
        )
        parser.add_argument("--scope", default="memory:read", help="scope names with spaces between")
        parser.add_argument("--audience", help="the token's `aud`; by default the demo backend's")
        parser.add_argument("--lifetime", type=seconds, default=8 * 3600, help="seconds; negative: expired")
        parser.add_argument("--tenant", help="the token's org_id")
        parser.add_argument("--role", action="append", dest="roles", help="may be given more than once")

    def handle(self, *args: Any, **options: Any) -> None:
        """Exit status 2 where it may not run."""
        if not settings.MUNIMENT_DEMO:
            raise CommandError("the demo issuer exists in demo mode (MUNIMENT_MODE=demo) only", returncode=2)
        from governance import demo_issuer  # refuses to be imported elsewhere

        optional = {"aud": options["audience"], "org_id": options["tenant"], "roles": options["roles"]}
        claims = {name: value for name, value in optional.items() if value}
        self.stdout.write(
            demo_issuer.mint(
                options["user"], options["client"], options["scope"], lifetime=options["lifetime"], **claims
            )
        )
