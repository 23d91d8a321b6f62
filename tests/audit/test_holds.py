"""Legal holds: what may be held, that one person places and two release, that each change is recorded, and whom a hold
keeps from being erased."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, OperationalError, connection, connections, transaction
from django.utils import timezone

from audit import details, guard, holds
from audit.holds import HoldError
from audit.models import Hold, Record
from audit.record_page import read
from tests.staff import drained, newest
from tests.world import World, build, token

WHY = {"matter": "2026-17", "reason": "a complaint is before the court"}


def staff(name: str, *permissions: str) -> Any:
    user = get_user_model().objects.create_user(name, "", "correct horse battery", is_staff=True)
    for permission in permissions:
        app, codename = permission.split(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    return user


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def uid(world: World) -> str:
    return str(world.verify()["subject"]["uid"])


@pytest.fixture
def pia(db: None) -> Any:
    return staff("pia", "audit.add_hold", "audit.release_hold")


@pytest.fixture
def ben(db: None) -> Any:
    return staff("ben", "audit.release_hold")


def said(action: str) -> dict[str, Any]:
    found = newest("hold")
    assert found["action"] == action
    return found


def test_placing_is_recorded_with_what_it_covers_and_matter_and_reason_are_protected(pia: Any, uid: str) -> None:
    since = datetime(2026, 1, 1, tzinfo=UTC)
    hold = holds.place(pia, **WHY, subject=uid, backend="inner", tool="memory.recall", since=since)
    told = said("placed")
    assert (told["actor"], told["hold"], told["subject"]) == (f"staff:{pia.pk}", hold.pk, uid)
    assert (told["backend"], told["tool"], told["since"]) == ("inner", "memory.recall", "2026-01-01T00:00:00Z")
    record = Record.objects.get(type="hold")
    assert b"2026-17" not in bytes(record.statement) and b"court" not in bytes(record.statement)
    assert details.opened(record, read(record)).members == {**WHY, "actor_name": "pia"}
    assert record.subject == uid and holds.active() == [hold]


def refused(pia: Any, **given: Any) -> str | None:
    """The field that a hold is refused for."""
    with pytest.raises(HoldError) as error:
        holds.place(pia, **{**WHY, **given})
    assert not Hold.objects.exists()
    return error.value.field


def test_what_cannot_be_held_is_refused_and_nothing_is_kept(pia: Any) -> None:
    day = datetime(2026, 2, 1, tzinfo=UTC)
    for criteria, field in (
        ({}, None), ({"client": "", "subject": None}, None), ({"subject": "alice"}, "subject"),
        ({"subject": "usr_nobody"}, "subject"), ({"tool": "memory.recall"}, "backend"),
        ({"since": day, "until": day}, "until"), ({"client": "x" * 65}, "client"), ({"client": "a\x00b"}, "client"),
    ):  # fmt: skip
        assert refused(pia, **criteria) == field, criteria


def test_texts_name_nobody_and_can_be_printed(pia: Any) -> None:
    for field in ("matter", "reason"):
        for text in ("", "  ", "about alice@example.com", "a\x00b", "x" * 2001):
            assert refused(pia, **{field: text}, client="claude") == field, (field, text)


def test_who_may_not_place_does_not_and_who_left_the_staff_neither(pia: Any, ben: Any) -> None:
    with pytest.raises(PermissionDenied):
        holds.place(ben, **WHY, client="claude")
    pia.is_active = False
    with pytest.raises(PermissionDenied):
        holds.place(pia, **WHY, client="claude")
    assert not Hold.objects.exists()


def test_releasing_takes_two(pia: Any, ben: Any) -> None:
    hold = holds.place(pia, **WHY, client="claude")
    with pytest.raises(HoldError, match="Nobody asks"):
        holds.release(ben, hold.pk)
    holds.ask_release(pia, hold.pk, "the case was settled")
    assert said("release.asked")["hold"] == hold.pk and holds.active() == [hold], "it stays in force until then"
    with pytest.raises(HoldError, match="second person"):
        holds.release(pia, hold.pk)
    with pytest.raises(HoldError, match="second person"):
        holds.refuse_release(pia, hold.pk, "no")
    with pytest.raises(HoldError, match="already"):
        holds.ask_release(ben, hold.pk, "me too")
    holds.release(ben, hold.pk)
    told = said("released")
    assert (told["actor"], told["about"]) == (f"staff:{ben.pk}", f"staff:{pia.pk}")
    record = Record.objects.filter(type="hold").latest("at")
    assert details.opened(record, read(record)).members["reason"] == "the case was settled"
    assert holds.active() == []
    with pytest.raises(HoldError, match="already"):
        holds.release(ben, hold.pk)


def test_a_refused_release_leaves_the_hold_in_force_and_may_be_asked_for_again(pia: Any, ben: Any) -> None:
    hold = holds.place(pia, **WHY, client="claude")
    holds.ask_release(ben, hold.pk, "is over")
    holds.refuse_release(pia, hold.pk, "it is not over")
    assert said("release.refused")["about"] == f"staff:{ben.pk}" and holds.active() == [hold]
    holds.ask_release(pia, hold.pk, "now it is")
    holds.release(ben, hold.pk)
    assert not holds.active()


def test_who_may_not_release_neither_asks_nor_releases_nor_refuses(pia: Any, ben: Any) -> None:
    hold, eve = holds.place(pia, **WHY, client="claude"), staff("eve", "audit.view_hold")
    with pytest.raises(PermissionDenied):
        holds.ask_release(eve, hold.pk, "please")
    holds.ask_release(ben, hold.pk, "is over")
    with pytest.raises(PermissionDenied):
        holds.release(staff("ann", "audit.add_hold"), hold.pk)
    with pytest.raises(PermissionDenied):
        holds.refuse_release(eve, hold.pk, "no")
    assert holds.active() == [hold]


def test_one_person_cannot_release_in_the_database_either_nor_narrow_a_hold(pia: Any) -> None:
    hold = holds.place(pia, **WHY, client="claude")
    one = {"release_asked_by": "staff:1", "released_by": "staff:1", "released_at": timezone.now()}
    with pytest.raises(IntegrityError), transaction.atomic():
        Hold.objects.filter(pk=hold.pk).update(**one)
    for change in ("UPDATE audit_hold SET client = 'x'", "DELETE FROM audit_hold"):
        with pytest.raises(Exception, match="permission denied"), transaction.atomic():
            connection.cursor().execute(change)
    assert holds.active() == [hold]


def test_two_who_release_at_once_release_once(pia: Any, ben: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "LOCK", "20s")  # each waits for those before it
    hold = holds.place(pia, **WHY, client="claude")
    holds.ask_release(pia, hold.pk, "is over")
    results: list[str] = []

    def release() -> None:
        try:
            holds.release(ben, hold.pk)
            results.append("released")
        except HoldError as error:
            results.append(str(error))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=release) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    drained()
    assert sorted(results) == ["This hold was released already."] * 3 + ["released"]
    assert Record.objects.filter(type="hold").count() == 3


def test_a_hold_waits_for_the_step_that_is_under_way_and_gives_up_in_time(
    pia: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds, "LOCK", "100ms")
    with guard.locked("owner"), pytest.raises(OperationalError):
        holds.place(pia, **WHY, client="claude")
    connections["owner"].close()
    assert not Hold.objects.exists()


# --- whom a hold keeps from being erased ----------------------------------------------------------------------

COVERED: list[dict[str, Any]] = [
    {"subject": "own"}, {"client": "claude"}, {"backend": "inner"}, {"backend": "inner", "tool": "memory.recall"},
    {"since": "before"}, {"since": "before", "until": "after"}, {"subject": "own", "client": "claude"},
]  # fmt: skip
FREE: list[dict[str, Any]] = [
    {"subject": "other"}, {"client": "chatgpt"}, {"backend": "inner", "tool": "memory.capture"},
    {"backend": "other", "tool": "memory.recall"}, {"tenant": "acme"}, {"until": "before"}, {"since": "after"},
    {"subject": "own", "client": "chatgpt"}, {"client": "claude", "since": "after"},
]  # fmt: skip


def test_a_hold_covers_a_user_with_a_record_that_fits_all_of_it(world: World, pia: Any, uid: str) -> None:
    other, now = world.verify(token=token("bob"), tool="memory.capture")["subject"]["uid"], timezone.now()
    meant = {"own": uid, "other": other, "before": now - timedelta(days=1), "after": now + timedelta(days=1)}

    def placed(criteria: dict[str, Any]) -> Hold:
        return holds.place(pia, **WHY, **{name: meant.get(value, value) for name, value in criteria.items()})

    for criteria in FREE:
        placed(criteria)
        assert holds.covering_subject(uid) == [], criteria
    drained()
    assert holds.covering_subject(uid) == [], "a hold does not cover the record that tells of it"
    covering = [placed(criteria) for criteria in COVERED]
    assert holds.covering_subject(uid) == covering == holds.covering_subject(uid, "owner")
    connections["owner"].close()


def test_a_user_without_records_is_held_by_uid_alone(pia: Any, uid: str, world: World) -> None:
    from audit.subjects import resolve

    quiet = resolve("https://id.example/", "quiet")
    holds.place(pia, **WHY, client="claude")
    assert holds.covering_subject(quiet) == []
    hold = holds.place(pia, **WHY, subject=quiet)
    assert holds.covering_subject(quiet) == [hold]


def test_a_released_hold_covers_nobody(pia: Any, ben: Any, uid: str) -> None:
    hold = holds.place(pia, **WHY, subject=uid)
    holds.ask_release(pia, hold.pk, "over")
    assert holds.covering_subject(uid) == [hold]
    holds.release(ben, hold.pk)
    assert holds.covering_subject(uid) == []


def test_a_look_that_takes_too_long_counts_as_a_hold_and_spoils_nothing(pia: Any, uid: str) -> None:
    hold = holds.place(pia, **WHY, client="chatgpt")
    with connections["owner"].cursor() as cursor, transaction.atomic("owner"):
        cursor.execute("LOCK TABLE audit_record IN ACCESS EXCLUSIVE MODE")
        with transaction.atomic():
            assert holds.covering_subject(uid, seconds=0.05) == [hold]
            assert Hold.objects.count() == 1
    connections["owner"].close()
