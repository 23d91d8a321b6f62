"""Definitions of exports: who may, what is wrong in words at its field, each change on record and in step with beat;
slots that are due, each once, whatever was lost."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import PermissionDenied, ValidationError
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from audit import destinations
from audit.destinations import DeliveryFailed
from audit.exports import definitions, due, queue
from audit.exports import runs as export_runs
from audit.exports.definitions import Definition
from audit.models import Destination, Export, ExportRun, Outbox
from tests.audit.exporting import AUDITOR, COLUMNS, Desk, desk, staff, told
from tests.audit.filling import START, fill
from tests.audit.test_search import mixed

DAY = timedelta(days=1)


@pytest.fixture
def made(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with desk(tmp_path, monkeypatch) as found:
        yield found


GOOD: dict[str, Any] = {"name": "All", "format": "csv", "columns": ("time", "user")}


def wrong(user: Any, **given: Any) -> dict[str, list[str]]:
    """The fields that are refused, with their words."""
    with pytest.raises(ValidationError) as caught:
        definitions.make(user, Definition(**GOOD | given))
    assert not Export.objects.exists()
    found: dict[str, list[str]] = caught.value.message_dict
    return found


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("name", {"name": " "}), ("name", {"name": "of ann@example.com"}), ("name", {"name": "a\nb"}),
        ("name", {"name": "x" * 121}), ("format", {"format": "xlsx", "columns": ()}),
        ("columns", {"columns": ()}), ("columns", {"columns": ("time", "password")}),
        ("columns", {"columns": ("time", "time")}), ("columns", {"format": "ocsf"}), ("columns", {"format": "bundle"}),
        ("columns", {"columns": ("time", "email"), "personal": True, "reason": "why"}),  # without the right
        ("columns", {"columns": ("time", "email")}),  # not said to be personal
        ("columns", {"personal": True, "reason": "why"}),
        ("query", {"query": "since=yesterday"}), ("query", {"query": "subject=ann@example.com"}),
        ("query", {"query": "since=2026-01-02&until=2026-01-01"}), ("query", {"query": "client=" + "x" * 300}),
        ("query", {"format": "bundle", "columns": (), "query": "decision=deny"}),
        ("query", {"format": "evidence", "columns": (), "query": "client=claude"}),
        ("frameworks", {"format": "evidence", "columns": (), "frameworks": ("nothing",)}),
        ("schedule", {"schedule": "0 0 31 2 *"}), ("schedule", {"schedule": "yearly"}),
        ("schedule", {"schedule": "61 * * * *"}), ("destination", {"destination": "nowhere"}),
        ("recipients", {"recipients": (12345,)}), ("reason", {"reason": "of ann@example.com"}),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_at_its_field(made: Desk, field: str, given: dict[str, Any]) -> None:
    found = wrong(made.auditor, **given)
    assert list(found) == [field]
    assert all(words.strip() for words in found[field])


def test_personal_data_takes_the_right_the_operator_and_a_reason(made: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    officer = staff("pia", *AUDITOR, "audit.view_personal")
    personal = {"columns": ("time", "sub"), "personal": True}
    assert "MUNIMENT_EXPORT_PERSONAL" in wrong(officer, **personal, reason="a request")["columns"][0]
    monkeypatch.setattr(settings, "MUNIMENT_EXPORT_PERSONAL", True)
    assert list(wrong(officer, **personal)) == ["reason"]
    assert definitions.make(officer, Definition(**GOOD | personal, reason="a request")).personal


def test_a_definition_is_on_record_without_its_free_text(made: Desk) -> None:
    export = made.export(name="Quarter", query="tenant=acme&client=claude&window=30d", schedule="daily")
    [record] = told("export.created")
    assert record["actor"] == f"staff:{made.auditor.pk}"
    assert (record["export"], record["schedule"], record["columns"]) == (export.pk, "daily", list(COLUMNS))
    public = json.dumps({name: value for name, value in record.items() if name != "private"})
    assert "Quarter" not in public
    assert "acme" not in public
    assert record["private"]["export_name"] == "Quarter"
    definitions.change(made.auditor, export, Definition(**GOOD | {"name": "Other"}))
    assert told("export.changed")[0]["changed"] == ["columns", "format", "name", "query", "schedule"]


def test_a_name_is_taken_once_for_each_owner(made: Desk) -> None:
    export = made.export()
    with pytest.raises(ValidationError) as caught:
        made.export()
    assert list(caught.value.message_dict) == ["name"]
    made.export(staff("bo", *AUDITOR))
    second = made.export(name="second")
    with pytest.raises(ValidationError):
        definitions.change(made.auditor, second, Definition(**GOOD | {"name": export.name}))


def test_only_the_owner_and_who_may_change_any_may_change(made: Desk) -> None:
    export = made.export(schedule="daily")
    run = made.run(export, START, START + DAY)
    other, administrator = staff("eve", *AUDITOR), staff("max", "audit.view_record", "audit.change_export")
    steps = [
        lambda who: definitions.change(who, export, Definition(**GOOD)), lambda who: definitions.disable(who, export),
        lambda who: definitions.enable(who, export), lambda who: definitions.ask(who, export),
        lambda who: definitions.cancel(who, run, export), lambda who: definitions.retry(who, run, export),
        lambda who: definitions.remove(who, export),
    ]  # fmt: skip
    for step in steps:
        with pytest.raises(PermissionDenied):
            step(other)
    before = Outbox.objects.count()
    for step in steps:
        step(administrator)
    assert Outbox.objects.count() > before
    with pytest.raises(PermissionDenied):
        definitions.make(staff("ann", "audit.view_record"), Definition(**GOOD))


def test_who_may_not_see_personal_data_changes_no_export_of_it(made: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MUNIMENT_EXPORT_PERSONAL", True)
    officer = staff("pia", *AUDITOR, "audit.view_personal")
    export = definitions.make(officer, Definition("p", "csv", columns=("time", "sub"), personal=True, reason="why"))
    administrator = staff("max", "audit.view_record", "audit.change_export")
    with pytest.raises(PermissionDenied):
        definitions.change(administrator, export, Definition(**GOOD))
    definitions.disable(administrator, export)


def test_beat_knows_of_each_schedule_what_the_export_says(made: Desk) -> None:
    export = made.export(schedule="30 2 * * 1-5")
    task = PeriodicTask.objects.get(name=f"export {export.pk}")
    assert (task.task, task.args, task.enabled) == ("audit.tasks.export_due", f"[{export.pk}]", True)
    assert task.crontab is not None
    assert (task.crontab.minute, task.crontab.hour, task.crontab.day_of_week) == ("30", "2", "1,2,3,4,5")
    assert str(task.crontab.timezone) == "UTC"
    made.export(name="same", schedule="30 2 * * 1,2,3,4,5")
    assert CrontabSchedule.objects.filter(minute="30").count() == 1
    definitions.disable(made.auditor, export)
    assert not PeriodicTask.objects.get(name=f"export {export.pk}").enabled
    definitions.change(made.auditor, export, Definition(**GOOD))
    assert not PeriodicTask.objects.filter(name=f"export {export.pk}").exists()
    definitions.change(made.auditor, export, Definition(**GOOD, schedule="hourly"))
    definitions.remove(made.auditor, export)
    assert not PeriodicTask.objects.filter(name=f"export {export.pk}").exists()


# --- what is due ------------------------------------------------------------------------------------------------------


def begun(made: Desk, schedule: str, at: datetime, **more: Any) -> Export:
    export = made.export(schedule=schedule, **more)
    Export.objects.filter(pk=export.pk).update(due_from=at)
    return export


def test_each_slot_is_made_once_and_covers_the_time_since_the_one_before(made: Desk) -> None:
    export = begun(made, "daily", START)
    now = START + 3 * DAY
    assert len(due.due(export.pk, now)) == 3
    assert due.due(export.pk, now) == []
    due.sweep(now)
    runs = list(ExportRun.objects.order_by("slot"))
    midnight = datetime(2026, 3, 3, tzinfo=UTC)
    assert [run.slot for run in runs] == [midnight, midnight + DAY, midnight + 2 * DAY]
    assert [(run.since, run.until) for run in runs] == [(run.slot - DAY, run.slot) for run in runs]
    assert runs[0].file == f"all-{export.pk}-20260303T0000Z.jsonl"
    assert [record["actor"] for record in told("export.run")] == ["system"] * 3


def test_what_was_missed_is_caught_up_in_bounded_steps(made: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(due, "MOST_AT_ONCE", 4)
    export = begun(made, "hourly", START)
    now = START + timedelta(hours=10)
    assert [len(due.due(export.pk, now)) for _ in range(4)] == [4, 4, 2, 0]
    assert ExportRun.objects.count() == 10


def test_one_export_that_was_spoiled_in_the_database_holds_up_no_other(made: Desk) -> None:
    spoiled, other = begun(made, "daily", START), begun(made, "daily", START, name="other")
    Export.objects.filter(pk=spoiled.pk).update(schedule="never")
    due.sweep(START + DAY)
    assert set(ExportRun.objects.values_list("export", flat=True)) == {other.pk}


def test_a_new_schedule_leaves_out_no_slot_of_the_one_before(made: Desk) -> None:
    export = begun(made, "daily", timezone.now() - 3 * DAY)
    definitions.change(made.auditor, export, Definition(**GOOD, schedule="monthly"))
    assert ExportRun.objects.count() == 3
    assert due.due(export.pk) == []


def test_a_paused_export_makes_no_runs_and_catches_up_when_it_goes_on(made: Desk) -> None:
    export = begun(made, "daily", timezone.now() - 3 * DAY)
    definitions.disable(made.auditor, export)
    assert due.due(export.pk) == []
    definitions.enable(made.auditor, export)
    assert ExportRun.objects.count() == 3


def test_the_sweeper_takes_up_what_nobody_works_on_and_leaves_the_rest(made: Desk) -> None:
    export, now = made.export(), timezone.now()
    runs = {
        name: made.run(export, START, START + n * DAY, **columns)
        for n, (name, columns) in enumerate([
            ("waiting", {}), ("stale", {"state": "running", "seen_at": now - due.STALE - DAY}),
            ("alive", {"state": "running", "seen_at": now}), ("later", {"retry_at": now + DAY}),
            ("done", {"state": "done"}), ("failed", {"state": "failed"}), ("cancelled", {"state": "cancelled"}),
            ("delivering", {"state": "delivering", "seen_at": now - DAY}),
        ], 1)
    }  # fmt: skip
    due.sweep(now)
    assert sorted(made.sent) == sorted(runs[name].pk for name in ("waiting", "stale", "delivering"))


def test_a_broker_that_is_away_is_no_fault_of_who_asks(
    made: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queue._sender.cache_clear()
    monkeypatch.undo()
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://:secret@127.0.0.1:1/0")
    try:
        queue.send([1])
    finally:
        queue._sender.cache_clear()
    assert "sweeper" in caplog.text
    assert "secret" not in caplog.text


def test_asked_twice_in_one_second_it_is_one_run(made: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    export = made.export(query="window=24h")
    now = datetime(2026, 3, 5, 12, 0, 0, 5, tzinfo=UTC)
    monkeypatch.setattr(timezone, "now", lambda: now)
    one, two = definitions.ask(made.auditor, export), definitions.ask(made.auditor, export)
    assert one.pk == two.pk
    assert len(told("export.run")) == 1
    assert one.slot.second == 1  # never that of a schedule's slot
    assert (one.since, one.until) == (now - DAY, now)
    assert one.file.endswith("-20260305T120001Z.jsonl")


def test_a_search_of_the_future_is_refused_in_words(made: Desk) -> None:
    export = made.export(query="since=2090-01-01&until=2090-01-02")
    with pytest.raises(ValidationError, match="yet to come"):
        definitions.ask(made.auditor, export)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Denials, ACME!", "denials-acme"), ("../../etc", "etc"), ("日本", "export"), ("x" * 120, "x" * 60)],
)
def test_a_file_is_called_after_export_and_slot(made: Desk, name: str, expected: str) -> None:
    export = made.export(name=name, format="ocsf")
    assert due.file_name(export, START) == f"{expected}-{export.pk}-20260302T0900Z.ocsf.jsonl"


# --- delivery ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def delivering(made: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A destination that is a directory, and a sealed log."""
    (made.folder / "there").mkdir()
    listed = f"- {{name: there, kind: directory, path: {made.folder / 'there'}}}"
    monkeypatch.setattr(settings, "MUNIMENT_DESTINATIONS", listed)
    destinations.publish()
    fill([*mixed(20), {"at": START + DAY}])
    made.seal()
    return made


def test_a_run_is_delivered_once_with_its_manifest(delivering: Desk) -> None:
    export = delivering.export(destination="there")
    run = delivering.worked(delivering.run(export, START - DAY, START + DAY))
    assert (run.state, run.words) == ("done", "")
    there = delivering.folder / "there"
    assert sorted(path.name for path in there.iterdir()) == [run.file, f"{run.file}.manifest.json"]
    assert (there / run.file).read_bytes() == delivering.path(run).read_bytes()
    assert len(told("export.delivered")) == 1
    assert Destination.objects.get().failures == 0


def test_a_worker_killed_before_it_noted_the_delivery_delivers_the_same_once(
    delivering: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = delivering.run(delivering.export(destination="there"), START - DAY, START + DAY)
    done = export_runs._done

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export_runs, "_done", killed)
    with pytest.raises(KeyboardInterrupt):
        export_runs.work(run.pk)
    monkeypatch.setattr(export_runs, "_done", done)
    assert delivering.worked(run).state == "done"
    assert len(list((delivering.folder / "there").iterdir())) == 2
    assert len(told("export.delivered")) == len(told("export.done")) == 1


def test_a_destination_that_fails_is_said_tried_again_and_loses_nothing(
    delivering: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = delivering.export(destination="there")
    run = delivering.run(export, START - DAY, START + DAY)
    with monkeypatch.context() as patch:

        def refuse(*_: Any) -> None:
            raise DeliveryFailed("the bucket cannot be reached")

        patch.setattr(destinations, "deliver", refuse)
        for _ in range(len(export_runs.DELAYS)):
            assert delivering.worked(run).state == "delivering"
            assert "the bucket cannot be reached" in run.words
        assert delivering.worked(run).state == "failed"
    assert delivering.path(run).exists()  # it is there for download
    export.refresh_from_db()
    assert export.failures == 1  # that the file was made ends no row of failures
    assert definitions.retry(delivering.auditor, run, export)
    assert delivering.worked(run).state == "done"
    assert (delivering.folder / "there" / run.file).exists()
    export.refresh_from_db()
    assert export.failures == 0


def test_what_was_kept_for_a_time_only_is_made_once_more_for_its_delivery(delivering: Desk) -> None:
    run = delivering.worked(delivering.run(delivering.export(destination="there"), START - DAY, START + DAY))
    for path in (delivering.folder, delivering.folder / "there"):
        (path / run.file).unlink()
    ExportRun.objects.filter(pk=run.pk).update(state="delivering")
    assert delivering.worked(run).state == "done"
    assert delivering.findings(run) == []
