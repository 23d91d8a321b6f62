"""`manage.py seal`: the sealer, and what people do with it (DESIGN.md section 6, Sealing)."""

import signal
from pathlib import Path
from typing import Any

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error

from audit import seal_words
from audit.seal_state import Halt, Refused, StateDir
from audit.sealing import Sealer
from governance.process import connect

MOST_NOTE = 65_536  # bytes of a checkpoint file


class Command(BaseCommand):
    """Exit status: 0; 1 where sealing stopped (`--once`); 2 where it must not start or the input is wrong."""

    help = "Seal the log: check what was recorded, and sign checkpoints. Runs until it is stopped."

    def add_arguments(self, parser: CommandParser) -> None:
        """At most one of these; none: run for ever."""
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--once", action="store_true", help="seal what there is, then end")
        what.add_argument("--explain", action="store_true", help="say how far it is, what stopped it and what to do")
        start = "start without a state: read all again, up to this checkpoint (a file from an anchor)"
        what.add_argument("--from", dest="note", type=Path, metavar="FILE", help=start)
        what.add_argument("--accept", metavar="KEY_ID", help="trust a writer key that no other could introduce")
        parser.add_argument("--yes", action="store_true", help="with --accept: it is ours, and I am sure")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one of them."""
        directory = StateDir(settings.MUNIMENT_SEAL_STATE)
        try:
            if options["explain"]:
                self.stdout.write(seal_words.explain(directory, connect))
            elif options["accept"]:
                self._accept(directory, options["accept"], options["yes"])
            else:
                self._seal(directory, options["note"], options["once"])
        except Refused as error:
            raise CommandError(" ".join(str(error).split()), returncode=2) from None
        except OSError as error:
            raise CommandError(f"{directory.path}: {error.strerror}", returncode=2) from None
        except (psycopg.Error, Error) as error:
            raise CommandError(f"the database cannot be asked ({type(error).__name__})", returncode=1) from None

    def _seal(self, directory: StateDir, note: Path | None, once: bool) -> None:
        if "LOG_KEY" not in settings.MUNIMENT_KEYS:
            raise Refused("sealing needs the log key: run it with MUNIMENT_PROCESS=seal")
        private = Ed25519PrivateKey.from_private_bytes(settings.MUNIMENT_KEYS["LOG_KEY"])
        sealer = Sealer(connect, private, directory, settings.MUNIMENT_LOG_ORIGIN)
        try:
            if note is not None:
                sealer.start_from(read_note(note))
            if once:
                self._once(sealer)
                return

            def stop(number: int, frame: object) -> None:
                sealer.stopping = True

            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, stop)
            sealer.run()
        finally:
            sealer.close()

    def _once(self, sealer: Sealer) -> None:
        try:
            count = sealer.step()
        except Halt as halt:
            sealer.tell(halt)
            raise CommandError(f"sealing has stopped: {halt}", returncode=1) from None
        self.stdout.write(f"sealed {count} records" if sealer.active else "another sealer is active")

    def _accept(self, directory: StateDir, key_id: str, sure: bool) -> None:
        raise Refused("not yet")


def read_note(path: Path) -> str:
    """The text of a checkpoint file. Refused where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MOST_NOTE + 1).decode()
    except (OSError, UnicodeDecodeError):
        raise Refused(f"{path.name} cannot be read as a checkpoint") from None
