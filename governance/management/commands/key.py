"""`manage.py key`: the keys that Muniment signs with: list them, make one, introduce and retire one in the log."""

import os
import secrets
from argparse import ArgumentParser
from base64 import b64encode
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error

from audit import keys
from audit.models import PublishedKey
from muniment import notes
from muniment.keys import USES, thumbprint

# Which process has the key of a use: an introduction is signed by the key that is trusted so far.
SIGNERS = {
    "writer": ("web", "WRITER_KEY"),
    "assertion": ("web", "ASSERTION_KEY"),
    "log": ("seal", "LOG_KEY"),
    "export": ("worker", "EXPORT_KEY"),
}


class Command(BaseCommand):
    """Exit status: 0; 2 where the input is wrong or this process has not the key that must sign."""

    help = "List the keys that Muniment signs with, make a new one, and introduce or retire one in the log."

    def add_arguments(self, parser: CommandParser) -> None:
        """The four actions."""
        actions = parser.add_subparsers(dest="action", required=True, parser_class=ArgumentParser)
        actions.add_parser("list", help="the published keys")
        announce = actions.add_parser("announce", help="introduce a new key, signed by this process's key of that use")
        announce.add_argument("use", choices=USES)
        announce.add_argument("public", metavar="PUBLIC", help="the new public key, 32 bytes in base64")
        ended = "nothing new may be signed with this key; what it signed stays valid"
        # An id may begin with a hyphen, and is no option then.
        retire = actions.add_parser("retire", help=ended, prefix_chars="+", add_help=False)
        retire.add_argument("key_id", metavar="KEY_ID")
        new = actions.add_parser("new", help="make a key, as a file that its owner alone can read")
        new.add_argument("file", type=Path)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one action."""
        try:
            if options["action"] == "list":
                self._list()
            elif options["action"] == "announce":
                self._announce(options["use"], options["public"])
            elif options["action"] == "retire":
                self._retire(options["key_id"])
            else:
                self._new(options["file"])
        except Error as error:
            raise CommandError(f"the database cannot be asked ({type(error).__name__})", returncode=1) from None

    def _list(self) -> None:
        for key in PublishedKey.objects.order_by("use", "not_before"):
            until = f", retired {key.not_after:%Y-%m-%d %H:%M}" if key.not_after else ""
            public = b64encode(bytes(key.public)).decode()
            self.stdout.write(f"{key.use:<9} {key.key_id} {public} since {key.not_before:%Y-%m-%d %H:%M}{until}")

    def _announce(self, use: str, text: str) -> None:
        try:
            public = notes.from_base64(text)
        except notes.NoteError:
            public = b""
        if len(public) != 32:
            raise refused("the public key must be 32 bytes in base64")
        signer, key_id = self._signer(use), thumbprint(public)
        held = PublishedKey.objects.filter(key_id=key_id).first()
        if held is not None and (held.use != use or held.not_after):
            raise refused(f"{key_id} is published for another use, or retired")
        if public == keys.public_of(signer):
            raise refused("it is the key that this process signs with; it cannot introduce itself")
        keys.announce(signer, use, public)
        self.stdout.write(f"{use} key {key_id} is introduced; use it once that record is sealed")

    def _retire(self, key_id: str) -> None:
        key = PublishedKey.objects.filter(key_id=key_id).first()
        if key is None:
            raise refused("no such key is published (manage.py key list)")
        if key.not_after:
            raise refused(f"it is retired since {key.not_after:%Y-%m-%d %H:%M}")
        signer = self._signer(key.use)
        if bytes(key.public) == keys.public_of(signer):
            raise refused("it is the key that this process signs with; change to the new one first")
        keys.retire(signer, key)
        self.stdout.write(f"{key.use} key {key_id} is retired")

    def _signer(self, use: str) -> Ed25519PrivateKey:
        process, name = SIGNERS[use]
        if name not in settings.MUNIMENT_KEYS:
            raise refused(f"the {use} key must sign this: run it with MUNIMENT_PROCESS={process} and its keys")
        return Ed25519PrivateKey.from_private_bytes(settings.MUNIMENT_KEYS[name])

    def _new(self, path: Path) -> None:
        private = secrets.token_bytes(32)
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(b64encode(private).decode() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise refused(f"{path.name} cannot be made: {error.strerror}") from None
        public = keys.public_of(Ed25519PrivateKey.from_private_bytes(private))
        self.stdout.write(f"{b64encode(public).decode()}\n{thumbprint(public)}")


def refused(words: str) -> CommandError:
    """One line, exit status 2."""
    return CommandError(words, returncode=2)
