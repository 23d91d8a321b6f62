"""After a restore: a backup that brings erased users back is noticed before anything is served, and mended."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import Error, connections
from django.utils import timezone

from audit import verification
from audit.erasure import asking, erasing, restoring
from audit.erasure.restoring import LineError
from audit.models import DataKey, Erasure, Outbox, Record, Subject
from governance.erasure_gate import AGAIN, LATER, Gate
from tests.audit.test_erasure import ALL, ASKED, CALL, KEYS, found
from tests.audit.test_holds import WHY, holds, staff
from tests.staff import drained
from tests.world import World, build, token

LINE = {"uid": "usr_abc", "at": "2026-01-01T00:00:00Z", "index": 3}


@pytest.fixture
def world(db: None) -> Any:
    yield build()
    connections["owner"].close()


@pytest.fixture
def uid(world: World) -> str:
    return str(world.verify(**CALL)["subject"]["uid"])


@pytest.fixture
def other(world: World) -> str:
    return str(world.verify(token=token("bob"), **CALL)["subject"]["uid"])


@pytest.fixture
def pia(world: World) -> Any:
    return staff("pia", "audit.add_erasure", "audit.add_hold")


Restore = Callable[..., None]


@pytest.fixture
def restore(uid: str, superuser_url: str) -> Restore:
    """Puts back what a backup has of the user, table by table, as it was before the erasure."""
    tables = {"audit_subject": ("uid", uid), "audit_datakey": ("holder", uid), "audit_record": ("subject", uid)}
    with psycopg.connect(superuser_url) as connection:
        rows = {
            table: connection.execute(f"SELECT * FROM {table} WHERE {column} = %s", [value]).fetchall()
            for table, (column, value) in tables.items()
        }

    def put_back(*names: str) -> None:
        with psycopg.connect(superuser_url) as connection:
            connection.execute("SET session_replication_role = replica")
            for table in names or tables:
                key = {"audit_record": "at"}.get(table, tables[table][0])
                described = connection.execute(f"SELECT * FROM {table} LIMIT 0").description
                place = [column.name for column in described or []].index(key)
                for row in rows[table]:
                    connection.execute(f"DELETE FROM {table} WHERE {key} = %s", [row[place]])
                    marks = ", ".join(["%s"] * len(row))
                    connection.execute(f"INSERT INTO {table} VALUES ({marks})", row)

    return put_back


@pytest.fixture
def erased(uid: str, other: str, pia: Any, restore: Restore) -> str:
    asking.ask(pia, uid, **ASKED)
    erasing.work()
    drained()
    assert found(uid) == set() and restoring.checked() == ""
    return uid


def run(*arguments: Any) -> str:
    out = io.StringIO()
    call_command("erasures", *arguments, stdout=out, stderr=io.StringIO())
    return out.getvalue()


def answer(gate: Gate, path: str = "/v1/verify") -> tuple[str, bytes]:
    said: list[str] = []
    body = b"".join(gate({"PATH_INFO": path}, lambda status, headers: said.append(status)))
    return said[0], body


def served(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
    start("200 OK", [])
    return [b"served"]


# --- noticed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tables", [(), ("audit_subject",), ("audit_datakey",), ("audit_record",)])
def test_whatever_was_put_back_of_an_erased_user_is_noticed_and_apply_mends_it(
    world: World, erased: str, other: str, restore: Restore, tables: tuple[str, ...]
) -> None:
    restore(*tables)
    assert found(erased)
    why = restoring.checked()
    assert "erasures apply" in why and "\n" not in why and erased not in why and "alice" not in why
    assert run("apply") == "1 erasure looked at, 1 user erased again.\n"
    assert found(erased) == set() and found(other) == ALL
    assert restoring.checked() == ""
    assert run("apply") == "1 erasure looked at, 0 users erased again.\n"
    drained()
    assert Record.objects.filter(type="erasure").count() == 2, "the log has it already"
    assert verification.verify().findings == []
    row = Erasure.objects.get()
    assert row.state == "erased" and row.hashes_gone_at and row.backups_until > timezone.now()


def test_the_worker_mends_it_by_itself(erased: str, restore: Restore) -> None:
    assert restoring.mend() == 0
    restore()
    assert restoring.mend() == 1 and found(erased) == set()


def test_each_migration_mends_it_before_anything_is_started(erased: str, restore: Restore) -> None:
    restore("audit_subject", "audit_datakey")
    call_command("migrate", database="owner", verbosity=0, interactive=False)
    assert found(erased) == set() and restoring.checked() == ""


def test_a_user_who_was_erased_and_returned_is_left_alone(world: World, erased: str) -> None:
    again = str(world.verify(**CALL)["subject"]["uid"])
    assert restoring.checked() == "" and run("apply").endswith("0 users erased again.\n")
    assert found(again) == ALL


def test_an_erasure_that_is_still_at_its_hashes_keeps_nobody_from_serving(
    uid: str, pia: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(erasing, "clear_hashes", lambda uid: (_ for _ in ()).throw(KeyboardInterrupt))
        asking.ask(pia, uid, **ASKED)
        with pytest.raises(KeyboardInterrupt):
            erasing.work()
    assert found(uid) == set(KEYS) and restoring.checked() == "", "before its record is in the log, too"
    drained()
    assert restoring.checked() == ""
    assert erasing.work() == 1 and found(uid) == set()


# --- the gate ---------------------------------------------------------------------------------------------------


def test_a_web_process_on_a_restored_database_serves_nothing_until_it_is_mended(erased: str, restore: Restore) -> None:
    restore("audit_datakey")
    gate = Gate(served)
    for path in ("/v1/verify", "/admin/", "/readyz", "/static/x"):
        status, body = answer(gate, path)
        assert status.startswith("503") and "erasures apply" in json.loads(body)["detail"]
    assert answer(gate, "/livez") == ("200 OK", b"served")
    assert answer(gate, "/metrics") == ("200 OK", b"served")
    run("apply")
    gate.looked_at = time.monotonic()  # however long that took
    assert answer(gate)[0].startswith("503"), "it looks once in two seconds"
    gate.looked_at -= AGAIN
    assert answer(gate) == ("200 OK", b"served")
    restore("audit_datakey")
    assert answer(gate) == ("200 OK", b"served"), "it looked a moment ago"


def test_a_restore_under_a_process_that_serves_closes_it_within_minutes_and_no_request_waits_for_the_look(
    erased: str, restore: Restore
) -> None:
    gate, ended = Gate(served), Event()

    def look() -> str:
        try:
            return restoring.checked()
        finally:
            ended.set()

    assert answer(gate) == ("200 OK", b"served")
    restore("audit_datakey")
    for away in (True, False):
        gate.look, gate.looked_at = (away_and_told(ended) if away else look), gate.looked_at - LATER - 1
        assert answer(gate) == ("200 OK", b"served"), "it is looked beside"
        assert ended.wait(30)
        ended.clear()
        assert away is gate.open or until(lambda: not gate.open), "a database that is away says nothing"
    assert answer(gate)[0].startswith("503")
    run("apply")
    gate.looked_at -= AGAIN
    assert answer(gate) == ("200 OK", b"served")


def away_and_told(ended: Event) -> Callable[[], str]:
    """A look at a database that is away."""

    def look() -> str:
        ended.set()
        raise Error("away")

    return look


def until(so: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether it is so within some seconds."""
    end = time.monotonic() + seconds
    while not so() and time.monotonic() < end:
        time.sleep(0.01)
    return so()


def test_a_database_that_is_away_keeps_it_closed_and_tells_nothing(db: None) -> None:
    def away() -> str:
        raise Error("could not connect with password hunter2")

    gate = Gate(served, away)
    status, body = answer(gate)
    assert status.startswith("503") and b"hunter2" not in body and b"cannot be reached" in body
    gate.look, gate.looked_at = restoring.checked, 0.0
    assert answer(gate) == ("200 OK", b"served")


def test_the_application_that_is_served_is_behind_the_gate() -> None:
    from governance.wsgi import application

    assert isinstance(application, Gate)


# --- the command ------------------------------------------------------------------------------------------------


def test_the_list_names_users_by_uid_alone_and_in_a_file_is_whole(erased: str, tmp_path: Path) -> None:
    index = Record.objects.filter(type="erasure").latest("at").index
    said = json.loads(run("list"))
    assert (said["uid"], said["index"]) == (erased, index) and set(said) == {"uid", "at", "index"}
    path = tmp_path / "erasures.jsonl"
    path.write_text("of yesterday")
    run("list", "--out", path)
    assert path.read_text() == run("list") and path.stat().st_mode & 0o077 == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["erasures.jsonl"]


def test_one_that_is_on_its_way_into_the_log_is_listed_too(uid: str, pia: Any) -> None:
    from governance import process

    drained()
    process.stop_recorder()
    asking.ask(pia, uid, **ASKED)
    erasing.work()
    assert json.loads(run("list"))["index"] is None


def test_a_backup_from_before_the_erasure_is_mended_from_the_list_and_that_is_recorded(
    world: World, uid: str, other: str, pia: Any, tmp_path: Path
) -> None:
    """The log of such a backup does not know of it."""
    path, hold = tmp_path / "erasures.jsonl", holds.place(pia, **WHY, subject=other)
    path.write_text("".join(json.dumps(LINE | {"uid": one}) + "\n" for one in (uid, uid, "usr_nobody")) + "\n")
    assert run("apply", "--from", path) == "2 erasures looked at, 1 user erased again.\n"
    assert found(uid) == set() and found(other) == ALL and hold.pk
    drained()
    told = json.loads(bytes(Record.objects.filter(type="erasure").get().statement))
    assert (told["action"], told["holder"], told["actor"]) == ("erased", uid, "system")
    assert run("apply", "--from", path) == "2 erasures looked at, 0 users erased again.\n"
    assert not Outbox.objects.filter(kind="erasure", record_index=None).exists()
    assert verification.verify().findings == []
    row = Erasure.objects.get()
    assert (row.state, row.asked_by) == ("erased", "system") and erasing.work() == 0


def test_one_that_was_only_asked_for_in_the_backup_is_erased_once(uid: str, pia: Any, tmp_path: Path) -> None:
    asking.ask(pia, uid, **ASKED)
    path = tmp_path / "erasures.jsonl"
    path.write_text(json.dumps(LINE | {"uid": uid}))
    run("apply", "--from", path)
    assert found(uid) == set() and Erasure.objects.get().state == "erased" and erasing.work() == 0
    drained()
    actions = [json.loads(bytes(r.statement))["action"] for r in Record.objects.filter(type="erasure").order_by("at")]
    assert actions == ["asked", "erased"]


@pytest.mark.parametrize(
    "line",
    [
        "alice@example.com", "[]", "5", "null", '"usr_a"', json.dumps({"uid": "usr_a"}), json.dumps(LINE | {"uid": 5}),
        json.dumps(LINE | {"uid": "alice"}), json.dumps(LINE | {"at": "yesterday"}),
        json.dumps(LINE | {"at": "2026-01-01T00:00:00"}), json.dumps(LINE | {"at": "9999-01-01T00:00:00Z"}),
        json.dumps(LINE | {"at": "0001-01-01T00:00:00Z"}), json.dumps(LINE | {"index": -1}), "[" * 100_000,
        json.dumps(LINE | {"index": "3"}), json.dumps(LINE | {"uid": "usr_a\n"}), json.dumps(LINE | {"at": 5}),
    ],
    ids=range(17),
)  # fmt: skip
def test_what_is_no_line_of_a_list_is_refused_by_its_number(line: str) -> None:
    with pytest.raises(LineError, match=r"\Aline 2 is not an erasure\Z"):
        list(restoring.parse([json.dumps(LINE), line]))


def test_a_list_with_such_a_line_is_refused_before_anything_is_done(uid: str, tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text(f"{json.dumps(LINE | {'uid': uid})}\nalice@example.com\n")
    with pytest.raises(CommandError) as error:
        run("apply", "--from", path)
    assert error.value.returncode == 2 and str(error.value) == "list: line 2 is not an erasure"
    assert found(uid) == ALL


def test_without_a_file_a_place_or_the_owner_it_says_so_in_one_line(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for arguments in (
        ("apply", "--from", tmp_path / "missing"), ("apply", "--from", tmp_path / "binary"),
        ("apply", "--from", tmp_path), ("list", "--out", tmp_path / "no" / "folder"),
        ("list", "--out", ""), ("list", "--out", "."),
    ):  # fmt: skip
        with pytest.raises(CommandError) as error:
            run(*arguments)
        assert error.value.returncode == 2 and "\n" not in str(error.value)
    from audit.management.commands import erasures

    monkeypatch.setattr(erasures, "connections", {"default": None})
    with pytest.raises(CommandError, match="DATABASE_OWNER_URL"):
        run("apply")


def test_an_empty_log_has_none(world: World) -> None:
    assert run("list") == "" and run("apply") == "0 erasures looked at, 0 users erased again.\n"
    assert not Subject.objects.filter(erased_at__isnull=False).exists() and not DataKey.objects.filter(holder="x")
