"""The restore drill of docs/operate.md, with the tools that an operator has: a dump, an older copy in its place, what
the sealer and the verification say of it, and whoever was erased erased again."""

import base64
import io
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings as configured
from django.core.management import call_command

from audit import anchors
from audit.erasure import asking, erasing
from audit.models import DataKey, Head
from governance import process
from governance.embedded_postgres import binaries
from governance.settings import ALL_KEYS
from tests import forked
from tests.audit.sealers import sealed, sealing
from tests.audit.test_erasure import ASKED, CALL
from tests.audit.test_holds import staff
from tests.reset import reset
from tests.staff import drained
from tests.world import build, token


@dataclass
class Drill:
    """A database that was restored from an older copy, and what is kept elsewhere: the sealer's state and key, an
    anchor, and the list of erasures."""

    folder: Path
    url: str
    owner: str
    log_key: str
    erased: str
    other: str
    backed_up: int
    recorded: int

    def manage(self, *arguments: str, role: str = "manage", **more: str) -> tuple[int, str]:
        """Run a command of manage.py against the restored database; its exit status and what it said."""
        keys = {f"MUNIMENT_{name}" for name in ALL_KEYS}
        environment = {name: value for name, value in os.environ.items() if name not in keys}
        environment |= {"MUNIMENT_PROCESS": role, "DATABASE_URL": self.url, "DATABASE_OWNER_URL": self.owner}
        if role == "seal":
            environment |= {"MUNIMENT_LOG_KEY": self.log_key, "MUNIMENT_SEAL_STATE": str(self.folder / "seal")}
        else:
            wanted = [f"MUNIMENT_{name}" for name in ("DJANGO_SECRET", "KEY_ENCRYPTION_KEY", "PEPPER")]
            environment |= {name: os.environ[name] for name in wanted}
        done = forked.manage(*arguments, environment=environment | more)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    def asked(self, question: str, *values: object) -> object:
        """One value of the restored database."""
        with psycopg.connect(self.owner) as connection:
            row = connection.execute(question, values).fetchone()  # type: ignore[arg-type]
            return row and row[0]


def tool(name: str, *arguments: str) -> None:
    """One of PostgreSQL's programs."""
    done = subprocess.run([str(binaries() / name), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def drill(migrated: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    """Records, a backup, more records and an erasure, then the backup restored into a database of its own."""
    reset()
    folder = tmp_path_factory.mktemp("drill")
    (folder / "anchor").mkdir()
    owner_url = os.environ["DATABASE_OWNER_URL"]
    restored = f"restored_{secrets.token_hex(4)}"
    key = secrets.token_bytes(32)
    private = Ed25519PrivateKey.from_private_bytes(key)
    before, configured.MUNIMENT_ANCHORS = configured.MUNIMENT_ANCHORS, [(folder / "anchor").as_uri()]
    try:
        world = build()
        erased = world.verify(**CALL)["subject"]["uid"]
        other = world.verify(token=token("bob"), **CALL)["subject"]["uid"]
        with sealing(folder / "seal", private) as sealer:
            sealed(sealer)
            backed_up = Head.objects.get().next
            tool("pg_dump", "--format=custom", f"--file={folder / 'backup'}", owner_url)
            asking.ask(staff("pia", "audit.add_erasure", "audit.add_hold"), erased, **ASKED)
            erasing.work()
            drained()
            for _ in range(3):
                world.verify(token=token("bob"))
            sealed(sealer)
        anchors.push_all()
        call_command("erasures", "list", "--out", str(folder / "erasures.jsonl"), stderr=io.StringIO())
        assert not DataKey.objects.filter(holder=erased).exists()
        with psycopg.connect(owner_url, autocommit=True) as owner:
            owner.execute(f"CREATE DATABASE {restored}")
        urls = [
            urlunsplit(urlsplit(url)._replace(path=f"/{restored}")) for url in (os.environ["DATABASE_URL"], owner_url)
        ]
        tool("pg_restore", "--exit-on-error", f"--dbname={urls[1]}", str(folder / "backup"))
        yield Drill(folder, *urls, base64.b64encode(key).decode(), erased, other, backed_up, Head.objects.get().next)
    finally:
        configured.MUNIMENT_ANCHORS = before
        process.stop_recorder()
        with psycopg.connect(owner_url, autocommit=True) as owner:
            owner.execute(f"DROP DATABASE IF EXISTS {restored} WITH (FORCE)")


@pytest.mark.usefixtures("drill")
class TestDrill:
    def test_the_copy_is_whole_and_behind(self, drill: Drill) -> None:
        assert drill.asked("SELECT next FROM audit_head") == drill.backed_up < drill.recorded
        assert drill.asked("SELECT count(*) FROM audit_record") == drill.backed_up
        assert drill.asked("SELECT count(*) FROM pg_trigger WHERE tgname = 'muniment_policy_change'")

    def test_the_sealer_refuses_it_and_says_why(self, drill: Drill) -> None:
        code, words = drill.manage("seal", "--once", role="seal")
        told = f"rollback: the database has {drill.backed_up} records; {drill.recorded} were sealed"
        assert code == 1 and told in words
        code, words = drill.manage("seal", "--explain", role="seal")
        assert code == 0 and told.removeprefix("rollback: ") in words
        assert "An old backup was put back" in words and "`seal --close`" in words
        size = drill.asked("SELECT max(size) FROM audit_checkpoint")
        assert isinstance(size, int) and size <= drill.backed_up  # nothing new was signed over it

    def test_the_verification_finds_that_the_end_is_gone_by_what_the_anchor_holds(self, drill: Drill) -> None:
        code, words = drill.manage("verify_log", MUNIMENT_ANCHORS=(drill.folder / "anchor").as_uri())
        assert code == 1
        assert f"is of {drill.recorded} records; the log has {drill.backed_up}" in words
        code, words = drill.manage("status")
        assert code == 1 and "look alert      The verification of the log found something" in words

    def test_who_was_erased_is_there_again_until_the_list_that_was_kept_is_applied(self, drill: Drill) -> None:
        present = "SELECT count(*) FROM audit_datakey WHERE holder = %s"
        assert drill.asked(present, drill.erased) == 1
        code, words = drill.manage("erasures", "apply")
        assert (code, drill.asked(present, drill.erased)) == (0, 1)  # this copy knows of no erasure: it is older
        code, words = drill.manage("erasures", "apply", "--from", str(drill.folder / "erasures.jsonl"))
        assert code == 0 and "1 user erased again" in words
        assert drill.asked(present, drill.erased) == 0
        gone = "SELECT coalesce(sub, identity_key, email, email_key) IS NULL FROM audit_subject WHERE uid = %s"
        assert drill.asked(gone, drill.erased) is True
        assert drill.asked(present, drill.other) == 1
        assert drill.asked(gone, drill.other) is False
