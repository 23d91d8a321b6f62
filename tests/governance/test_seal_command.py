"""`manage.py seal` for people: it ends with a clear line, explains itself, and lets two people close and open a log."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.management import CommandError, call_command

from audit import alerts, keys, seams
from audit.models import Checkpoint, Head, Log
from audit.seal_state import Refused, StateDir
from muniment.keys import thumbprint
from tests.audit.sealers import altered, recorded
from tests.audit.test_sealing import LOG_KEY, command, environment, until
from tests.live import ROOT
from tests.staff import drained

PASSWORD = "correct horse battery"


@pytest.fixture
def folder(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the state is; this process has the log key, too, as the sealer's would alone."""
    monkeypatch.setattr(settings, "MUNIMENT_SEAL_STATE", tmp_path / "seal")
    monkeypatch.setitem(settings.MUNIMENT_KEYS, "LOG_KEY", LOG_KEY.private_bytes_raw())
    yield tmp_path / "seal"


def seal(*arguments: str) -> str:
    out = io.StringIO()
    call_command("seal", *arguments, stdout=out)
    return out.getvalue()


def refused(*arguments: str, status: int = 2) -> str:
    """The one line with which it ends."""
    with pytest.raises(CommandError) as caught:
        seal(*arguments)
    assert caught.value.returncode == status and "\n" not in str(caught.value), caught.value
    return str(caught.value)


def staff(name: str, *permissions: str, **more: Any) -> Any:
    user = get_user_model().objects.create_user(name, "", PASSWORD, **({"is_staff": True} | more))
    for codename in permissions:
        user.user_permissions.add(Permission.objects.get(codename=codename))
    return user


def test_once_seals_what_there_is(folder: Path) -> None:
    recorded(10)
    assert seal("--once").strip() == f"sealed {Checkpoint.objects.latest('size').size} records"


def test_once_ends_with_the_words_of_what_stopped_it(folder: Path, superuser_url: str) -> None:
    recorded(10)
    seal("--once")
    drained()  # or the record of the new key is written beyond the head that is set back
    altered(superuser_url, "UPDATE audit_head SET next = 2")
    assert "rollback: the database has 2 records" in refused("--once", status=1)
    assert [alert.about for alert in alerts.open_alerts()] == ["rollback"]


def test_a_real_command_ends_with_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("nonsense")
    process = command(folder, "--from", str(tmp_path / "note"))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and output.count(b"\n") == 1, output
    assert b"the checkpoint cannot be used" in output


def test_without_the_log_key_it_seals_nothing_but_explains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(settings.MUNIMENT_KEYS, "LOG_KEY")
    for arguments in ([], ["--once"]):
        assert "MUNIMENT_PROCESS=seal" in refused(*arguments)
    assert "no sealer has run" in seal("--explain")


def test_a_file_that_is_no_checkpoint_starts_nothing(folder: Path, tmp_path: Path) -> None:
    assert "cannot be read" in refused("--from", str(tmp_path / "none"), "--once")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    assert "cannot be read" in refused("--from", str(tmp_path / "bytes"), "--once")


def test_without_its_state_it_says_what_it_needs(folder: Path, tmp_path: Path) -> None:
    recorded(10)
    seal("--once")
    note = tmp_path / "note"
    note.write_text(Checkpoint.objects.latest("size").note)
    folder.rename(tmp_path / "lost")
    assert "seal --from FILE" in refused("--once")
    recorded(10)
    assert "sealed" in seal("--from", str(note), "--once")


def test_two_of_what_it_can_do_are_not_done_at_once(folder: Path) -> None:
    with pytest.raises(CommandError, match="not allowed with"):
        seal("--once", "--explain")
    assert "does not go with --close" in refused("--from", "file", "--close", *TWO)


# --- explaining ---------------------------------------------------------------------------------------------


def test_it_explains_how_far_it_is(folder: Path) -> None:
    recorded(10)
    seal("--once")
    said = seal("--explain")
    newest = Checkpoint.objects.latest("size")
    for words in (
        f"{newest.size} records are sealed",
        bytes(newest.root).hex(),
        "No sealer is active",
        "Nothing stopped",
    ):
        assert words in said


def test_it_explains_what_stopped_it_and_what_to_do(folder: Path, superuser_url: str) -> None:
    recorded(10)
    seal("--once")
    recorded(10)
    first = Checkpoint.objects.latest("size").size
    altered(superuser_url, f"UPDATE audit_record SET statement = '{{}}' WHERE index = {first + 2}")
    refused("--once", status=1)
    said = seal("--explain")
    for words in ("record-changed", f"record {first + 2}", "changed", "Do: ", "verify_log"):
        assert words in said


def test_it_explains_without_keys_and_without_the_database(folder: Path) -> None:
    recorded(10)
    seal("--once")
    given = {name: value for name, value in environment(folder).items() if name != "MUNIMENT_LOG_KEY"}
    given |= {"MUNIMENT_PROCESS": "manage", "DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none"}
    for name in ("DJANGO_SECRET", "KEY_ENCRYPTION_KEY", "PEPPER"):
        given[f"MUNIMENT_{name}"] = os.environ[f"MUNIMENT_{name}"]
    done = subprocess.run(
        [sys.executable, "manage.py", "seal", "--explain"], cwd=ROOT, env=given,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "records are sealed" in done.stdout and "The database cannot be asked" in done.stdout


def test_it_says_who_is_active(folder: Path) -> None:
    recorded(10)
    process = command(folder)
    try:
        until(lambda: Checkpoint.objects.exists())
        until(lambda: f"(process {process.pid})" in seal("--explain"))
        assert seal("--once").strip() == "another sealer is active"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


# --- what people decide -------------------------------------------------------------------------------------


def test_a_key_is_accepted_only_by_somebody_who_is_sure(folder: Path) -> None:
    recorded(1)
    seal("--once")
    new = Ed25519PrivateKey.generate()
    key_id = thumbprint(keys.public_of(new))
    assert "published" in refused(f"--accept={key_id}", "--yes")
    keys.publish(new, "writer")
    assert "--yes" in refused(f"--accept={key_id}")
    assert "is trusted" in seal(f"--accept={key_id}", "--yes")
    state = StateDir(folder).read()
    assert state is not None and key_id in state.writers


def passwords(monkeypatch: pytest.MonkeyPatch, **known: str) -> None:
    """What the two type when they are asked."""
    path = "governance.management.commands.seal.getpass"
    monkeypatch.setattr(path, lambda prompt: known[prompt.removeprefix("Password of ").removesuffix(": ")])


TWO = ("--by", "mara", "--and", "nils", "--reason", "the failover of Tuesday")


def test_where_nobody_can_type_a_password_it_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("governance.management.commands.seal.getpass", nobody)
    assert "password" in refused("--close", *TWO)


def test_two_members_of_staff_close_and_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staff("mara", is_superuser=True)
    staff("nils", "change_log")
    passwords(monkeypatch, mara=PASSWORD, nils=PASSWORD)
    recorded(10)
    seal("--once")
    assert "is closed" in seal("--close", *TWO)
    drained()
    assert "begins at index" in seal("--open", *TWO)
    assert "The log is closed" not in seal("--explain")
    recorded(10)
    drained()  # what is told of the opening is in it then, too
    seal("--once")
    assert (
        Checkpoint.objects.filter(log=2).latest("size").size
        == Head.objects.get().next - Log.objects.get(number=2).start
    )


def test_nobody_closes_a_log_alone_or_without_the_right(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staff("mara", is_superuser=True)
    staff("no_right")
    staff("no_staff", is_staff=False, is_superuser=True)
    recorded(10)
    seal("--once")
    passwords(monkeypatch, mara=PASSWORD, no_right=PASSWORD)
    assert "two different people" in refused("--close", "--by", "mara", "--and", "mara", "--reason", "x")
    assert "no_right: the password is wrong, or" in refused(
        "--close", "--by", "mara", "--and", "no_right", "--reason", "x"
    )
    for name, password in (("no_staff", PASSWORD), ("mara", "guessed"), ("nobody", PASSWORD)):
        with pytest.raises(Refused, match="password is wrong, or"):
            seams.person(name, password)
    for arguments in (["--by", "mara"], ["--by", "mara", "--and", "nils"], []):
        assert "--reason TEXT" in refused("--close", *arguments)
    state = StateDir(folder).read()
    assert state is not None and not state.closed


def test_the_database_away_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> psycopg.Connection:
        raise psycopg.OperationalError("nobody there")

    monkeypatch.setattr("governance.management.commands.seal.connect", away)
    assert "the database cannot be asked" in refused("--once", status=1)
