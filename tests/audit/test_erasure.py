"""Erasing a user: asked for, refused under a hold, done in steps that can be killed; what goes and what stays."""

import threading
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.core.exceptions import PermissionDenied
from django.db import OperationalError, connections
from django.utils import timezone

from audit import details, entries, guard, holds, record_check, subjects, verification
from audit.erasure import asking, erasing
from audit.erasure.asking import ErasureError
from audit.models import DataKey, Erasure, Export, ExportRun, Outbox, Record, Subject
from audit.protection import keyring
from audit.record_page import read
from governance.process import recorder
from tests.audit import chain
from tests.audit.test_holds import WHY, staff
from tests.live import until
from tests.staff import drained, newest
from tests.world import ISSUER, World, build, token

ASKED = {"reference": "DSR-2026-041", "reason": "the person asked for it by letter"}
KEYS = ("request_key", "trace_key", "session_key", "resource_key")
CALL = {
    "request": {"id": "r-1", "trace_id": "t-1", "session_id": "s-1", "ip": "203.0.113.7"},
    "resource": {"type": "memory", "id": "m-1"},
}


@pytest.fixture
def world(db: None) -> Any:
    yield build()
    connections["owner"].close()


@pytest.fixture
def uid(world: World) -> str:
    """Alice, with a call, its outcome, and one that was refused."""
    answer = world.verify(**CALL)
    outcome = {"status": "ok", "resources": [{"type": "memory", "id": "m-1"}]}
    assert world.post(f"/v1/records/{answer['record']}/outcome", outcome).status_code == 201
    world.verify(tool="memory.capture", **CALL)
    return str(answer["subject"]["uid"])


@pytest.fixture
def other(world: World) -> str:
    return str(world.verify(token=token("bob"), **CALL)["subject"]["uid"])


@pytest.fixture
def pia(world: World) -> Any:
    return staff("pia", "audit.add_erasure", "audit.view_erasure", "audit.add_hold", "audit.release_hold")


def found(uid: str) -> set[str]:
    """What is left in the database by which a user could be known or found."""
    user = Subject.objects.get(uid=uid)
    left = {name for name in asking.IDENTIFIERS if getattr(user, name) is not None}
    left |= {"key"} if DataKey.objects.filter(holder=uid).exists() else set()
    for key in KEYS:
        left |= {key} if Record.objects.filter(subject=uid, **{f"{key}__isnull": False}).exists() else set()
    return left


ALL = {*asking.IDENTIFIERS, "key", *KEYS}


def test_what_is_asked_for_is_recorded_done_and_recorded(world: World, uid: str, other: str, pia: Any) -> None:
    before = {record.index: bytes(record.statement) for record in Record.objects.all()}
    made = asking.ask(pia, uid, **ASKED)
    told = newest("erasure")
    assert (told["action"], told["subject"], told["erasure"]) == ("asked", uid, made.pk)
    assert found(uid) == ALL, "it is only asked for"
    assert erasing.work() == 1
    assert found(uid) == set() and found(other) == ALL
    told = newest("erasure")
    assert (told["action"], told["holder"], told["subject"], told["erasure"]) == ("erased", uid, uid, made.pk)
    assert (told["actor"], told["records"], told["protected"]) == (f"staff:{pia.pk}", 4, 3), (
        "of the user three, and one of the asking"
    )
    record = Record.objects.filter(type="erasure").latest("at")
    assert details.opened(record, read(record)).members == ASKED
    made.refresh_from_db()
    assert made.state == "erased" and made.hashes_gone_at and made.erased_at
    assert made.backups_until == made.erased_at + timedelta(days=35)
    assert all(bytes(Record.objects.get(index=index).statement) == data for index, data in before.items())
    assert chain.findings(chain_url()) == []
    assert verification.verify().findings == []
    assert erasing.work() == 0


def chain_url() -> str:
    import os

    return os.environ["DATABASE_OWNER_URL"]


def test_a_returning_user_is_a_new_one_and_stays_so(world: World, uid: str, pia: Any) -> None:
    asking.ask(pia, uid, **ASKED)
    erasing.work()
    again = world.verify(**CALL)
    assert again["decision"] == "allow" and again["subject"]["uid"] not in (uid, None)
    assert world.verify()["subject"]["uid"] == again["subject"]["uid"]
    assert found(uid) == set() and found(again["subject"]["uid"]) == ALL


def test_a_block_of_the_erased_user_is_not_one_of_the_new_one(world: World, uid: str, pia: Any) -> None:
    Subject.objects.filter(uid=uid).update(blocked_at=timezone.now(), signed_out_at=timezone.now())
    asking.ask(pia, uid, **ASKED)
    erasing.work()
    assert world.verify()["decision"] == "allow"


# --- another process -------------------------------------------------------------------------------------------


@pytest.fixture
def remembering(world: World, uid: str, pia: Any) -> tuple[str, str]:
    """Alice was erased by another process: this one still remembers her, and her key. Her uid, and a call of hers that
    has no outcome yet."""
    call = str(world.verify(**CALL)["record"])
    key, known = keyring.get(uid), dict(subjects._known)
    asking.ask(pia, uid, **ASKED)
    erasing.work()
    keyring._keys[uid] = key
    subjects._known.update(known)
    return uid, call


def test_a_process_that_still_has_the_key_meets_a_new_user_and_reads_nothing(
    world: World, remembering: tuple[str, str]
) -> None:
    uid, _ = remembering
    record = Record.objects.filter(subject=uid, type="decision").latest("at")
    assert details.opened(record, read(record)).state == "forgotten"
    assert world.verify(**CALL)["subject"]["uid"] != uid
    assert found(uid) == set()


def test_what_comes_late_of_an_erased_user_keeps_nothing_of_them(world: World, remembering: tuple[str, str]) -> None:
    uid, call = remembering
    late = {"status": "ok", "count": 3, "resources": [{"type": "memory", "id": "m-9"}]}
    assert world.post(f"/v1/records/{call}/outcome", late).status_code == 201
    record = Record.objects.get(type="outcome", parent=call)
    assert record.subject == uid and record.holder is None and record.disclosures is None
    assert read(record)["outcome"]["count"] == 3 and found(uid) == set()
    assert verification.verify().findings == []


@pytest.mark.parametrize("before", [True, False])
def test_what_a_backend_claimed_of_an_erased_user_is_not_found_by_its_ids(
    world: World, uid: str, pia: Any, before: bool
) -> None:
    """It is under a key of the backend's day, not the user's, which opens it still."""

    def claim() -> None:
        line = {"type": "ungoverned", "subject": uid, "backend": "inner"}
        claimed = entries.entry(line, {"request_id": "late", "ip": "203.0.113.7"}, "backend:inner:2026-01-01")
        [result] = recorder().record([claimed])
        assert Record.objects.get(id=result.id).holder

    if before:
        claim()
    asking.ask(pia, uid, **ASKED)
    erasing.work()
    if not before:
        claim()
    drained()
    assert found(uid) == set() and verification.verify().findings == []


def test_an_address_that_a_token_brings_is_not_stored_for_one_who_is_being_erased(
    world: World, uid: str, pia: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry was found a moment before; the erasure comes between."""
    key, cipher, reading = subjects.identity_key(ISSUER, "alice"), keyring.get(uid), subjects.read
    between: list[bool] = []

    def read_then_erased(user: Subject, column: str, ring: Any = None) -> str | None:
        said = reading(user, column, ring)
        if not between:
            between.append(True)
            asking.ask(pia, uid, **ASKED)
            erasing.work()
            keyring._keys[uid] = cipher
        return said

    monkeypatch.setattr(subjects, "read", read_then_erased)
    subjects._find(key, "new@example.com")
    assert between and found(uid) == set()


# --- holds ------------------------------------------------------------------------------------------------------


def test_under_a_hold_it_is_refused_at_once_with_its_matter_and_may_be_asked_for_again(
    uid: str, pia: Any, world: World
) -> None:
    hold, ben = holds.place(pia, **WHY, client="claude"), staff("ben", "audit.release_hold")
    made = asking.ask(pia, uid, **ASKED)
    assert (made.state, made.holds) == ("refused", [hold.pk]) and "2026-17" in made.words
    told = newest("erasure")
    assert (told["action"], told["holds"], told["subject"]) == ("refused", [hold.pk], uid)
    assert b"2026-17" not in b"".join(bytes(r.statement) for r in Record.objects.filter(type="erasure"))
    assert erasing.work() == 0 and found(uid) == ALL
    holds.ask_release(pia, hold.pk, "over")
    holds.release(ben, hold.pk)
    asking.ask(pia, uid, **ASKED)
    erasing.work()
    assert found(uid) == set()


def test_a_hold_that_comes_after_the_asking_still_refuses_it(uid: str, pia: Any) -> None:
    made = asking.ask(pia, uid, **ASKED)
    hold = holds.place(pia, **WHY, subject=uid)
    assert erasing.work() == 1
    made.refresh_from_db()
    assert (made.state, made.holds) == ("refused", [hold.pk]) and found(uid) == ALL
    assert newest("erasure")["action"] == "refused"


def test_that_it_was_asked_for_is_no_record_that_a_hold_on_what_comes_keeps(uid: str, pia: Any) -> None:
    holds.place(pia, **WHY, since=timezone.now())
    made = asking.ask(pia, uid, **ASKED)
    assert made.state == "asked"
    drained()
    erasing.work()
    made.refresh_from_db()
    assert made.state == "erased" and found(uid) == set()


def test_a_hold_and_an_erasure_at_once_are_one_after_the_other(uid: str, pia: Any) -> None:
    """Whoever is first: no hold is placed on a user that it finds whole and who is erased a moment later."""
    made = asking.ask(pia, uid, **ASKED)
    placed: list[bool] = []

    def place() -> None:
        holds.place(pia, **WHY, subject=uid)
        placed.append(Subject.objects.get(uid=uid).erased_at is None)
        connections.close_all()

    thread = threading.Thread(target=place)
    thread.start()
    erasing.work()
    thread.join(30)
    made.refresh_from_db()
    assert made.state in ("refused", "erased")
    assert not (made.state == "erased" and placed == [True] and made.holds)
    assert found(uid) == (ALL if made.state == "refused" else set())


# --- who and what -----------------------------------------------------------------------------------------------


def test_who_may_not_erase_does_not_and_who_may_not_any_more_neither(uid: str, pia: Any) -> None:
    with pytest.raises(PermissionDenied):
        asking.ask(staff("eve", "audit.view_erasure", "audit.view_personal"), uid, **ASKED)
    made = asking.ask(pia, uid, **ASKED)
    pia.user_permissions.clear()
    assert erasing.work() == 1
    made.refresh_from_db()
    assert made.state == "refused" and "may not erase" in made.words and found(uid) == ALL


def test_the_texts_that_stay_do_not_name_the_user(uid: str, pia: Any) -> None:
    named = ("for ALICE, as asked", "alice@example.com", "about bob@example.com", f"user {uid}")
    for field in ("reference", "reason"):
        for text in ("", " ", "a\x00", "x" * 2001, *named):
            with pytest.raises(ErasureError) as error:
                asking.ask(pia, uid, **{**ASKED, field: text})
            assert error.value.field == field, text
    assert not Erasure.objects.exists() and not Outbox.objects.filter(kind="erasure").exists()


def test_a_word_that_only_begins_like_the_user_is_fine(uid: str, pia: Any) -> None:
    assert asking.ask(pia, uid, "DSR-1", "malice and alices").state == "asked"


def test_nobody_is_erased_twice_and_nobody_who_is_not_there(uid: str, pia: Any) -> None:
    with pytest.raises(ErasureError, match="no such user"):
        asking.ask(pia, "usr_nobody", **ASKED)
    asking.ask(pia, uid, **ASKED)
    with pytest.raises(ErasureError, match="already"):
        asking.ask(pia, uid, **ASKED)
    erasing.work()
    with pytest.raises(ErasureError, match="already"):
        asking.ask(pia, uid, **ASKED)
    assert Erasure.objects.count() == 1


# --- killed, and again ------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As if the process had gone."""


@pytest.mark.parametrize("step", ["destroy", "tell", "clear_hashes", "second batch", "flag"])
def test_killed_at_any_step_it_is_done_by_the_next_run_and_recorded_once(
    world: World, uid: str, pia: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    made = asking.ask(pia, uid, **ASKED)
    monkeypatch.setattr(erasing, "BATCH", 1)
    with monkeypatch.context() as patch:
        if step == "second batch":
            calls, real = iter(range(9)), guard.locked
            patch.setattr(
                guard, "locked", lambda *a, **k: real(*a, **k) if next(calls) < 2 else (_ for _ in ()).throw(Killed)
            )
        else:
            where, name = (erasing.of_exports, "flag") if step == "flag" else (erasing, step)

            def killed(*_: Any, **__: Any) -> None:
                raise Killed

            patch.setattr(where, name, killed)
        with pytest.raises(Killed):
            erasing.work()
    connections["owner"].close()
    assert found(uid) == (ALL if step in ("destroy", "tell") else {*KEYS} & found(uid))
    assert erasing.work() == 1
    drained()
    assert found(uid) == set()
    assert Record.objects.filter(type="erasure").count() == 2, "asked and erased"
    made.refresh_from_db()
    assert made.state == "erased" and made.hashes_gone_at
    assert verification.verify().findings == []


def test_while_a_deletion_holds_the_guard_it_waits_and_says_so(
    uid: str, pia: Any, owner_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = asking.ask(pia, uid, **ASKED)
    with psycopg.connect(owner_url) as owner, monkeypatch.context() as patch:
        patch.setattr(erasing, "LOCK", "200ms")
        owner.execute("SELECT 1 FROM audit_guard FOR UPDATE")
        assert erasing.work() == 0
    made.refresh_from_db()
    assert made.state == "asked" and "tried again" in made.words
    assert erasing.work() == 1 and found(uid) == set()


WAITS_FOR_US = "SELECT 1 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"


def test_a_look_that_is_under_way_does_not_make_calls_wait(world: World, uid: str, pia: Any, owner_url: str) -> None:
    """Somebody holds the user's row: the head is not held meanwhile."""
    asking.ask(pia, uid, **ASKED)
    with psycopg.connect(owner_url) as owner:
        owner.execute("SELECT 1 FROM audit_subject WHERE uid = %s FOR UPDATE", [uid])
        thread = threading.Thread(target=lambda: (erasing.work(), connections.close_all()))
        thread.start()
        until(lambda: owner.execute(WAITS_FOR_US).fetchone() is not None, 30)
        world.verify(token=token("bob"))
        assert thread.is_alive(), "it waits still"
    thread.join(30)
    assert found(uid) == set()


def test_one_that_cannot_be_done_says_so_and_holds_up_no_other(uid: str, other: str, pia: Any) -> None:
    """A row that somebody put there: as if the hashes were all that is left to do, of a user who was not erased."""
    now = timezone.now()
    forged = Erasure.objects.create(
        subject=other, state="erased", asked_by="staff:1", asked_at=now - timedelta(days=1), erased_at=now
    )
    asking.ask(pia, uid, **ASKED)
    assert erasing.work() == 1 and found(uid) == set() and found(other) == ALL
    forged.refresh_from_db()
    assert "ended early" in forged.words and other not in forged.words


# --- what is left of it elsewhere -------------------------------------------------------------------------------


def test_it_is_complete_when_the_last_backup_has_expired(uid: str, pia: Any) -> None:
    made = asking.ask(pia, uid, **ASKED)
    erasing.work()
    assert erasing.work() == 0
    Erasure.objects.using("owner").update(backups_until=timezone.now() - timedelta(seconds=1))
    assert erasing.work() == 1 and erasing.work() == 0
    made.refresh_from_db()
    assert made.state == "complete"


def test_files_of_exports_that_hold_the_user_are_flagged_and_no_others(
    uid: str, other: str, pia: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, last = timezone.now(), Record.objects.latest("index").index
    export = Export.objects.create(name="all", owner="staff:1", format="jsonl", created_at=now, personal=True)
    mine = Export.objects.create(
        name="bob", owner="staff:1", format="jsonl", created_at=now, personal=True, query=f"subject={uid}&window=30d"
    )  # which was of the other user when its run was made

    def run(export: Export, **more: Any) -> int:
        slot = now + timedelta(seconds=ExportRun.objects.count())
        given = {"state": "done", "personal": True, "first": 0, "last": last, "next": last + 1, "file": "x.jsonl"}
        times = {"since": now - timedelta(days=1), "until": now + timedelta(days=1), "created_at": now, "slot": slot}
        return ExportRun.objects.create(export=export.pk, owner="staff:1", **(given | times | more)).pk

    was, odd = {"definition": {"query": f"subject={other}"}}, {"definition": {"query": 3}}
    flagged = {
        run(export), run(export, state="running"), run(export, removed_at=now, delivered_at=now),
        run(export, state="failed"), run(export, **odd),
        # How far it is was saved a moment ago: more may be written.
        run(export, state="running", next=0),
    }  # fmt: skip
    spared = {
        run(export, personal=False), run(mine, **was), run(export, removed_at=now), run(export, first=None, last=None),
        run(export, state="cancelled"), run(export, first=last + 1), run(export, until=now - timedelta(hours=1)),
    }  # fmt: skip
    monkeypatch.setattr(erasing.of_exports, "MOST", 2)  # all are marked, not the newest alone
    asking.ask(pia, uid, **ASKED)
    erasing.work()
    assert set(ExportRun.objects.filter(erased_since=[uid]).values_list("pk", flat=True)) == flagged
    assert set(ExportRun.objects.filter(erased_since=[]).values_list("pk", flat=True)) == spared
    assert erasing.of_exports.flag(uid, "owner") == 0, "once is enough"


# --- what verification says -------------------------------------------------------------------------------------


def of(record: Record) -> list[Any]:
    """What the check of this record alone finds."""
    return record_check.verify_record(record)


def test_hashes_that_are_gone_of_one_who_was_not_erased_are_found(uid: str, other: str, pia: Any) -> None:
    asking.ask(pia, uid, **ASKED)
    erasing.work()
    drained()
    assert verification.verify().findings == []
    with connections["owner"].cursor() as cursor:
        cursor.execute("ALTER TABLE audit_record DISABLE TRIGGER muniment_append_only")
        cursor.execute("UPDATE audit_record SET request_key = NULL WHERE subject = %s", [other])
        cursor.execute("ALTER TABLE audit_record ENABLE TRIGGER muniment_append_only")
    assert [finding.code for finding in verification.verify().findings] == ["column-differs"]
    codes = {one: [f.code for f in of(one)] for one in Record.objects.filter(type="decision")}
    assert {one.subject for one, found in codes.items() if found} == {other}, "one record by itself says so, too"


def test_an_erasure_while_a_verification_runs_is_no_finding(
    uid: str, other: str, pia: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking.ask(pia, uid, **ASKED)
    drained()
    walk = verification._Run._walk

    def erased_meanwhile(run: Any, begin: int) -> None:
        run.people._ring.get(uid)  # as if half of the records had been looked at
        erasing.work()
        walk(run, begin)

    monkeypatch.setattr(verification._Run, "_walk", erased_meanwhile)
    assert verification.verify().findings == []
    monkeypatch.undo()
    assert verification.verify().findings == []


def test_a_key_that_somebody_destroyed_by_hand_is_found(uid: str, other: str, pia: Any) -> None:
    drained()
    DataKey.objects.using("owner").filter(holder=other).delete()
    assert "key-destroyed" in [finding.code for finding in verification.verify().findings]


CHANGES = [
    "request_key = '\\x01'", "request_key = NULL", "request_key = session_key, session_key = request_key",
    "request_key = NULL, trace_key = NULL, session_key = NULL, resource_key = NULL, disclosures = NULL",
    "request_key = NULL, trace_key = NULL, session_key = NULL, resource_key = NULL, at = at + interval '1 us'",
    "disclosures = NULL",
]  # fmt: skip


def test_in_maintenance_the_hashes_may_go_all_at_once_and_nothing_else_may(
    uid: str, pia: Any, owner_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "clear_hashes", lambda uid: 0)
    asking.ask(pia, uid, **ASKED)
    erasing.work()
    with psycopg.connect(owner_url, autocommit=True) as owner:
        owner.execute("SET muniment.maintenance = 'on'")
        for change in CHANGES:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                owner.execute(f"UPDATE audit_record SET {change} WHERE subject = %s AND type = 'decision'", [uid])
        gone = ", ".join(f"{key} = NULL" for key in KEYS)
        assert owner.execute(f"UPDATE audit_record SET {gone} WHERE subject = %s", [uid]).rowcount >= 3


def test_the_hashes_of_one_who_was_not_erased_stay_in_maintenance_as_well(uid: str, pia: Any, owner_url: str) -> None:
    with psycopg.connect(owner_url, autocommit=True) as owner:
        owner.execute("SET muniment.maintenance = 'on'")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            owner.execute(f"UPDATE audit_record SET {', '.join(f'{key} = NULL' for key in KEYS)}")


def test_nobody_else_takes_hashes_nor_keys_nor_identifiers_away(uid: str, pia: Any, superuser_url: str) -> None:
    Subject.objects.using("owner").filter(uid=uid).update(erased_at=timezone.now())
    gone = ", ".join(f"{key} = NULL" for key in KEYS)
    with psycopg.connect(superuser_url, autocommit=True) as superuser:
        superuser.execute("SET muniment.maintenance = 'on'")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            superuser.execute(f"UPDATE audit_record SET {gone}")
    for statement in (
        f"UPDATE audit_record SET {gone}", "DELETE FROM audit_datakey", "UPDATE audit_subject SET sub = NULL",
        "UPDATE audit_erasure SET state = 'erased'", "DELETE FROM audit_erasure",
    ):  # fmt: skip
        with pytest.raises(Exception, match="permission denied"), connections["default"].cursor() as cursor:
            cursor.execute(statement)


def test_a_database_that_is_away_leaves_it_to_the_next_run(uid: str, pia: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asking.ask(pia, uid, **ASKED)

    def away(*_: Any) -> None:
        raise OperationalError("away")

    with monkeypatch.context() as patch:
        patch.setattr(erasing, "destroy", away)
        assert erasing.work() == 0
    assert erasing.work() == 1 and found(uid) == set()
