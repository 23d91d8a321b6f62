"""`manage.py backend_key`: made once and shown once, revoked at once, listed without secrets."""

import re

import pytest
from django.core.management import CommandError, call_command

from audit.models import Outbox
from tests import world
from tests.world import World
from tools.models import BackendKey


@pytest.fixture
def made(db: None) -> World:
    return world.build()


def test_create_prints_the_key_alone_and_keeps_no_secret(made: World, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("backend_key", "create", "inner", "--label", "blue", "--days", "30")
    key = capsys.readouterr().out
    match = re.fullmatch(r"mk_([A-Za-z0-9]{12})_([A-Za-z0-9_-]{43})\n", key)
    assert match
    answer = made.post("/v1/verify", {"token": world.token(), "tool": "memory.recall"}, key=key.strip())
    assert answer.status_code == 200 and answer.json()["decision"] == "allow"
    row = BackendKey.objects.get(key_id=match[1])
    assert match[2].encode() not in bytes(row.digest) and row.label == "blue"
    assert row.expires_at is not None and (row.expires_at - row.created_at).days in (29, 30)
    entry = Outbox.objects.filter(table_name="tools_backendkey").order_by("id").last()
    assert entry is not None and entry.actor == "command:backend_key"
    assert match[2] not in str(entry.new)


def test_revoke_ends_a_key_at_the_next_call(made: World, capsys: pytest.CaptureFixture[str]) -> None:
    key_id = made.key.split("_")[1]
    assert made.verify()["decision"] == "allow"
    call_command("backend_key", "revoke", key_id)
    assert capsys.readouterr().out == f"revoked {key_id}\n"
    assert made.post("/v1/verify", {"token": world.token(), "tool": "memory.recall"}).status_code == 401
    with pytest.raises(CommandError, match="revoked already") as again:
        call_command("backend_key", "revoke", key_id)
    assert again.value.returncode == 2


def test_a_whole_key_can_be_revoked_and_is_not_printed(made: World, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("backend_key", "revoke", made.key)
    assert made.key.split("_", 2)[2] not in capsys.readouterr().out
    assert BackendKey.objects.get().revoked_at is not None


def test_list_shows_when_but_never_what(made: World, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("backend_key", "list", "inner")
    head, line = capsys.readouterr().out.splitlines()
    assert head.split("\t")[0] == "key id"
    assert line.split("\t")[0] == made.key.split("_")[1]
    assert line.count("\t") == head.count("\t")
    assert made.key.split("_", 2)[2] not in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "outer"], "no backend outer"),
        (["list", "outer"], "no backend outer"),
        (["revoke", "nope"], "no key with this id"),
        (["create", "inner", "--days", "0"], "--days"),
        (["create", "inner", "--label", "a\nb"], "--label"),
    ],
)
def test_errors_are_one_line_and_exit_status_2(made: World, arguments: list[str], words: str) -> None:
    with pytest.raises(CommandError, match=words) as error:
        call_command("backend_key", *arguments)
    assert error.value.returncode == 2 and "\n" not in str(error.value)
    assert BackendKey.objects.count() == 1
