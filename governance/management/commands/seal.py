"""`manage.py seal`: the sealer, and what people do with it (DESIGN.md section 6, Sealing)."""

import signal
from getpass import getpass
from pathlib import Path
from typing import Any

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error

from audit import seal_words, seams
from audit.seal_session import Session
from audit.seal_state import Halt, Refused, StateBroken, StateDir
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
        parser.add_argument("--from", dest="note", type=Path, metavar="FILE", help=start)
        accept = "trust a writer key that no other could introduce (with =, for an id may begin with -)"
        what.add_argument("--accept", metavar="KEY_ID", help=accept)
        what.add_argument("--close", action="store_true", help="after a loss that nothing brings back: end this log")
        what.add_argument("--open", action="store_true", help="then: begin the next log")
        parser.add_argument("--by", metavar="USER", help="with --close and --open: a member of staff")
        parser.add_argument("--and", dest="second", metavar="USER", help="another one; each gives a password")
        parser.add_argument("--reason", help="with --close and --open: why; kept in the log, protected")
        parser.add_argument("--yes", action="store_true", help="with --accept: it is ours, and I am sure")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one of them."""
        directory = StateDir(settings.MUNIMENT_SEAL_STATE)
        others = [name for name in ("explain", "accept", "close", "open") if options[name]]
        try:
            if options["note"] and others:
                raise Refused(f"--from is for a start; it does not go with --{others[0]}")
            if options["explain"]:
                self.stdout.write(seal_words.explain(directory, connect))
            elif options["close"] or options["open"]:
                self._seam(directory, options)
            elif options["accept"]:
                self._accept(directory, options["accept"], options["yes"])
            else:
                self._seal(directory, options["note"], options["once"])
        except (Refused, StateBroken) as error:
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
        if not sure:
            raise Refused(f"from now on all that {key_id} signs is sealed; if the key is ours, say so with --yes")
        seams.accept(directory, key_id)
        self.stdout.write(f"writer key {key_id} is trusted")

    def _seam(self, directory: StateDir, options: dict[str, Any]) -> None:
        """Close the log or open the next one, by two people who each give their password."""
        names = [options["by"], options["second"]]
        if not all(names) or not options["reason"]:
            raise Refused("two people do this, and say why: --by USER --and USER --reason TEXT")
        try:
            people = [seams.person(name, getpass(f"Password of {name}: ")) for name in names]
        except EOFError:
            raise Refused("each of the two types a password, at a terminal") from None
        if options["close"]:
            state = seams.close(directory, people, options["reason"])
            self.stdout.write(f"log {state.log} is closed at {state.size:,} records; now: seal --open")
            return
        session = Session(connect)
        try:
            state = seams.open_next(directory, session, settings.MUNIMENT_LOG_ORIGIN, people, options["reason"])
        finally:
            session.close()
        self.stdout.write(f"log {state.log}, {state.origin}, begins at index {state.start:,}")


def read_note(path: Path) -> str:
    """The text of a checkpoint file. Refused where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MOST_NOTE + 1).decode()
    except (OSError, UnicodeDecodeError):
        raise Refused(f"{path.name} cannot be read as a checkpoint") from None
