"""Runs of exports: every record of their time once, in each format, below the sealed size; on after a kill; never two
workers; with the owner's rights of now; failures in words, retried and counted."""

import csv
import errno
import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from django.db import connection, connections
from pyarrow import parquet

from audit import search_pages
from audit.exports import claims, definitions, due, files, making, reading, runs
from audit.exports.definitions import Definition
from audit.models import Export, ExportRun, Head, Record
from tests.audit.exporting import COLUMNS, Desk, desk, told, without
from tests.audit.filling import START, fill
from tests.audit.test_search import mixed

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
END = START + HOUR


@pytest.fixture
def made(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    (tmp_path / "exports").mkdir(mode=0o700)
    with desk(tmp_path / "exports", monkeypatch) as found:
        yield found


@pytest.fixture
def filled(made: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """240 records within minutes, all sealed, and one after it."""
    monkeypatch.setattr(search_pages, "PAGE", 20)
    fill([*mixed(240), {"at": END}])
    made.seal()
    return made


def indices(path: Path) -> list[int]:
    return [json.loads(line)["index"] for line in path.read_bytes().splitlines()]


def expected(**filters: Any) -> list[int]:
    found = Record.objects.filter(at__gte=START - DAY, at__lt=END, **filters).order_by("index")
    return list(found.values_list("index", flat=True))


# --- what is in a file ------------------------------------------------------------------------------------------------


def test_a_run_has_every_record_of_its_time_once_and_verifies(filled: Desk) -> None:
    run = filled.worked(filled.run(filled.export(), START - DAY, END))
    assert (run.state, run.words) == ("done", "")
    assert indices(filled.path(run)) == expected()
    assert run.records == 240
    assert sum(run.counts.values()) == 240
    assert filled.findings(run) == []
    assert json.loads(run.manifest) == json.loads((filled.folder / f"{run.file}.manifest.json").read_text())
    assert filled.leftovers() == set()
    assert filled.path(run).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("query", "filters"),
    [
        ("client=claude&decision=deny", {"client": "claude", "decision": "deny"}),
        ("client=-", {"client": None}), ("tenant=acme&flagged=1", {"tenant": "acme", "flagged": True}),
        ("client=nobody", {"client": "nobody"}),
    ],
)  # fmt: skip
def test_a_run_has_what_its_search_matches(filled: Desk, query: str, filters: dict[str, Any]) -> None:
    run = filled.worked(filled.run(filled.export(query=query), START - DAY, END))
    assert indices(filled.path(run)) == expected(**filters)
    assert filled.findings(run) == []


def test_csv_is_neutral_and_complete(filled: Desk) -> None:
    fill([{"at": END + HOUR, "tool": "=cmd|x", "tenant": "\t+1", "client": 'a,"b"\n'}])
    filled.seal()
    export = filled.export(format="csv", columns=("index", "flagged", "tool", "tenant", "client", "decision"))
    run = filled.worked(filled.run(export, START - DAY, START + DAY))
    data = filled.path(run).read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    rows = list(csv.reader(data.decode("utf-8-sig").splitlines(keepends=True)))
    assert rows[0] == ["index", "flagged", "tool", "tenant", "client", "decision"]
    assert rows[-1] == [str(Head.objects.get().next - 1), "false", "'=cmd|x", "'\t+1", 'a,"b"\n', "allow"]
    assert len(rows) == run.records + 1 == 243
    assert filled.findings(run) == []


def test_parquet_has_types_and_row_groups(filled: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.exports.formats.parquet.GROUP", 80)
    run = filled.worked(filled.run(filled.export(format="parquet", columns=(*COLUMNS, "flagged")), START - DAY, END))
    table = parquet.read_table(filled.path(run))
    assert table.column("index").to_pylist() == expected()
    assert table.column("time").to_pylist()[0] == Record.objects.get(index=0).at
    assert str(table.schema.field("flagged").type) == "bool"
    assert parquet.ParquetFile(filled.path(run)).num_row_groups == 3
    assert filled.findings(run) == []


def test_ocsf_events_are_lines_that_count(filled: Desk) -> None:
    run = filled.worked(filled.run(filled.export(format="ocsf"), START - DAY, END))
    events = [json.loads(line) for line in filled.path(run).read_bytes().splitlines()]
    assert [event["metadata"]["sequence"] for event in events] == expected()
    assert {event["class_uid"] for event in events} == {6003}
    assert filled.findings(run) == []


def test_outcomes_stand_beside_the_calls_that_they_are_of(made: Desk) -> None:
    calls = fill([{}, {"decision": "deny", "reason": "not_granted"}, {}])
    said = {"status": "ok", "count": 3, "duration_ms": 12}
    outcome = {"type": "outcome", "decision": None}
    fill([outcome | {"parent": calls[0].id, "outcome": said}])
    fill([outcome | {"parent": calls[2].id, "outcome": {"status": 7, "count": "x"}}])
    made.seal()
    fill([outcome | {"parent": calls[0].id, "outcome": {"status": "late"}}])
    export = made.export(columns=("index", "outcome", "items touched", "milliseconds"))
    run = made.worked(made.run(export, START - DAY, calls[2].at + timedelta(microseconds=1)))
    lines = [json.loads(line) for line in made.path(run).read_bytes().splitlines()]
    assert [line["outcome"] for line in lines] == ["ok", None, None]
    assert [line["items_touched"] for line in lines] == [3, None, None]
    assert [line["milliseconds"] for line in lines] == [12, None, None]


def test_an_empty_time_is_an_empty_file_that_verifies(filled: Desk) -> None:
    run = filled.worked(filled.run(filled.export(), START - 3 * DAY, START - 2 * DAY))
    assert (run.state, run.records) == ("done", 0)
    assert filled.path(run).read_bytes() == b""
    assert filled.findings(run) == []
    csv_run = filled.worked(filled.run(filled.export(format="csv", name="c"), START - 3 * DAY, START - 2 * DAY))
    assert filled.findings(csv_run) == []


def test_a_file_that_is_changed_is_found_and_so_is_another_key(filled: Desk) -> None:
    run = filled.worked(filled.run(filled.export(), START - DAY, END))
    path = filled.path(run)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"claude", b"Claude", 1))
    assert [line.split(":")[0] for line in filled.findings(run)] == ["export-changed"]
    path.write_bytes(b"".join(data.splitlines(keepends=True)[1:]))
    assert [line.split(":")[0] for line in filled.findings(run)] == ["export-changed"]
    path.write_bytes(data)
    filled.key = Ed25519PrivateKey.generate()
    assert [line.split(":")[0] for line in filled.findings(run)] == ["export-untrusted"]


# --- when it may be made ----------------------------------------------------------------------------------------------


def test_it_waits_for_the_sealer_and_then_has_all(made: Desk) -> None:
    fill(mixed(40))
    made.seal()
    fill([*mixed(10), {"at": END}])
    run = made.worked(made.run(made.export(), START - DAY, END))
    assert (run.state, run.words) == ("waiting", runs.NOT_SEALED)
    assert not made.path(run).exists()
    made.seal()
    assert made.worked(run).state == "done"
    assert indices(made.path(run)) == expected()


def test_it_waits_until_its_time_is_over(made: Desk) -> None:
    fill(mixed(5))
    made.seal()
    until = datetime.now(UTC) + timedelta(seconds=30)
    run = made.run(made.export(), START - DAY, until)
    assert runs.work(run.pk) == runs.SOON
    assert made.worked(run).words == runs.NOT_OVER
    fill([{"at": until}])  # as soon as the log has gone on, nothing earlier can come
    made.seal()
    assert made.worked(run).state == "done"
    assert run.records == 5


def test_a_writer_that_began_before_the_end_is_waited_for(made: Desk, owner_url: str) -> None:
    fill(mixed(3))
    until = datetime.now(UTC) - HOUR
    assert reading.is_complete(until)
    with connections["owner"].cursor() as cursor:
        connections["owner"].set_autocommit(False)
        cursor.execute("SELECT 1 FROM audit_head FOR UPDATE")
        assert not reading.is_complete(until)
        connections["owner"].rollback()
        connections["owner"].set_autocommit(True)
    assert reading.is_complete(until)
    assert not reading.is_complete(datetime.now(UTC) - reading.GRACE + timedelta(seconds=3))


# --- on after a kill --------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As if the process were gone: nothing of ours catches it."""


@pytest.mark.parametrize("format", ["jsonl", "csv", "ocsf", "parquet"])
def test_a_run_that_is_killed_anywhere_goes_on_and_has_each_record_once(
    filled: Desk, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr(making, "SAVED_RECORDS", 40)
    whole = filled.worked(filled.run(filled.export(format=format, name="whole"), START - DAY, END))
    run = filled.run(filled.export(format=format), START - DAY, END)
    pages = search_pages._read

    def killing(after: int) -> Any:
        left = [after]

        def read(*given: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return pages(*given)

        return read

    for after in (0, 3, 5, 1):
        monkeypatch.setattr(search_pages, "_read", killing(after))
        with pytest.raises(Killed):
            runs.work(run.pk)
        run.refresh_from_db()
        assert run.state == "running"
        assert not filled.path(run).exists()
    monkeypatch.setattr(search_pages, "_read", pages)
    with files.opened(run, run.offset) as file:  # what was written after the last save is cut off
        file.write(b"half a line")
    assert filled.worked(run).state == "done"
    assert filled.path(run).read_bytes() == filled.path(whole).read_bytes()
    assert run.counts == whole.counts
    assert filled.findings(run) == []


def test_text_goes_on_from_what_was_saved_and_begins_anew_where_that_is_gone(
    filled: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "SAVED_RECORDS", 40)
    run = filled.run(filled.export(), START - DAY, END)
    claim_save, reached = claims.Claim.save, []

    def save(self: claims.Claim, **fields: Any) -> None:
        claim_save(self, **fields)
        reached.append(fields.get("next"))
        if fields.get("records", 0) >= 120:
            raise Killed

    monkeypatch.setattr(claims.Claim, "save", save)
    with pytest.raises(Killed):
        runs.work(run.pk)
    monkeypatch.setattr(claims.Claim, "save", claim_save)
    run.refresh_from_db()
    assert (run.next, run.records) == (120, 120)
    read: list[int] = []
    pages = search_pages._read
    monkeypatch.setattr(search_pages, "_read", lambda s, given: read.append(given["first"]) or pages(s, given))
    (filled.folder / f".{run.pk}.part").unlink()
    assert filled.worked(run).state == "done"
    assert read[0] == 0
    assert indices(filled.path(run)) == expected()


def test_a_run_goes_on_as_its_export_was_when_it_was_begun(filled: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "SAVED_RECORDS", 40)
    export = filled.export(query=f"since={START:%Y-%m-%d}&until={END:%Y-%m-%dT%H:%M}")
    run = definitions.ask(filled.auditor, export)
    pages, left = search_pages._read, [5]

    def killing(*given: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return pages(*given)

    monkeypatch.setattr(search_pages, "_read", killing)
    with pytest.raises(Killed):
        runs.work(run.pk)
    monkeypatch.setattr(search_pages, "_read", pages)
    definitions.change(filled.auditor, export, Definition("all", "csv", "client=claude", ("index",)))
    assert filled.worked(run).state == "done"
    assert run.file.endswith(".jsonl")
    assert indices(filled.path(run)) == expected()
    assert filled.findings(run) == []
    assert json.loads(run.manifest)["columns"] == list(COLUMNS)


def test_killed_between_the_file_and_its_row_it_is_made_once_more(
    filled: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = filled.run(filled.export(), START - DAY, END)
    publish = files.publish

    def killed(*given: Any) -> None:
        publish(*given)
        raise Killed

    monkeypatch.setattr(files, "publish", killed)
    with pytest.raises(Killed):
        runs.work(run.pk)
    assert told("export.done") == []
    monkeypatch.setattr(files, "publish", publish)
    assert filled.worked(run).state == "done"
    assert indices(filled.path(run)) == expected()
    assert len(told("export.done")) == 1
    assert filled.findings(run) == []


def test_a_run_whose_worker_dies_again_and_again_fails_in_the_end(
    filled: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = filled.run(filled.export(format="parquet"), START - DAY, END)

    def killed(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(search_pages, "_read", killed)
    for _ in range(runs.MOST_INTERRUPTED + 1):
        with pytest.raises(Killed):
            runs.work(run.pk)
    assert filled.worked(run).state == "failed"
    assert "10 times" in run.words


def test_two_workers_never_make_one_run_at_once(filled: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    run = filled.run(filled.export(), START - DAY, END)
    inside, go_on = threading.Event(), threading.Event()
    pages = search_pages._read

    def slow(*given: Any) -> Any:
        inside.set()
        assert go_on.wait(20)
        return pages(*given)

    def other() -> None:
        runs.work(run.pk)
        connection.close()

    monkeypatch.setattr(search_pages, "_read", slow)
    first = threading.Thread(target=other)
    first.start()
    assert inside.wait(20)
    runs.work(run.pk)  # comes back at once
    run.refresh_from_db()
    assert (run.state, run.attempts) == ("running", 1)
    go_on.set()
    first.join(20)
    run.refresh_from_db()
    assert (run.state, run.attempts) == ("done", 1)
    assert indices(filled.path(run)) == expected()


def test_a_worker_that_lost_its_run_changes_nothing_any_more(filled: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    run = filled.run(filled.export(), START - DAY, END)
    monkeypatch.setattr(making, "CHECKED_SECONDS", -1.0)
    pages = search_pages._read

    def overtaken(*given: Any) -> Any:
        ExportRun.objects.filter(pk=run.pk).update(attempts=99)
        return pages(*given)

    monkeypatch.setattr(search_pages, "_read", overtaken)
    assert filled.worked(run).state == "running"
    assert not filled.path(run).exists()
    assert told("export.done") == []


# --- with whose rights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("permission", "words"), [("audit.view_record", "no longer export"), ("audit.add_export", "no longer export")]
)
def test_rights_are_those_of_the_run_not_of_the_definition(filled: Desk, permission: str, words: str) -> None:
    export = filled.export()
    without(filled.auditor, permission)
    run = filled.worked(filled.run(export, START - DAY, END))
    assert run.state == "failed"
    assert words in run.words
    assert not filled.path(run).exists()
    assert told("export.failed")[0]["cause"] == "refused"


@pytest.mark.parametrize("change", [{"is_active": False}, {"is_staff": False}])
def test_who_left_the_staff_exports_nothing(filled: Desk, change: dict[str, bool]) -> None:
    export = filled.export()
    type(filled.auditor).objects.filter(pk=filled.auditor.pk).update(**change)
    assert "no longer on the staff" in filled.worked(filled.run(export, START - DAY, END)).words
    filled.auditor.delete()
    assert "no longer on the staff" in filled.worked(filled.run(export, START - DAY, END + HOUR)).words


def test_rights_that_are_taken_away_while_it_runs_stop_it(filled: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "ASKED_AGAIN", -1.0)
    pages = search_pages._read

    def taken(statement: str, given: Any) -> Any:
        if given["first"] == 80:
            without(filled.auditor, "audit.view_record")
        return pages(statement, given)

    monkeypatch.setattr(search_pages, "_read", taken)
    run = filled.worked(filled.run(filled.export(), START - DAY, END))
    assert run.state == "failed"
    assert run.records <= 100
    assert filled.leftovers() == set()


# --- stopped, failed, retried -----------------------------------------------------------------------------------------


def test_a_run_is_cancelled_between_pages(filled: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "CHECKED_SECONDS", -1.0)
    export = filled.export()
    run = filled.run(export, START - DAY, END)
    pages = search_pages._read

    def asked(statement: str, given: Any) -> Any:
        if given["first"] == 80:
            assert definitions.cancel(filled.auditor, run, export)
        return pages(statement, given)

    monkeypatch.setattr(search_pages, "_read", asked)
    assert filled.worked(run).state == "cancelled"
    assert run.records < 240
    assert filled.leftovers() == set()
    [record] = told("export.cancelled")
    assert (record["actor"], record["run"]) == (f"staff:{filled.auditor.pk}", run.pk)
    assert not definitions.cancel(filled.auditor, run, export)
    monkeypatch.setattr(search_pages, "_read", pages)
    assert definitions.retry(filled.auditor, run, export)
    assert filled.worked(run).state == "done"
    assert indices(filled.path(run)) == expected()


def full(*_: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_and_tried_again_and_nothing_half_is_seen(
    filled: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = filled.run(filled.export(), START - DAY, END)
    with monkeypatch.context() as patch:
        patch.setattr(files, "synced", full)
        assert filled.worked(run).state == "waiting"
    assert "no space left" in run.words
    assert "tried again" in run.words
    assert run.retry_at is not None
    assert not filled.path(run).exists()
    assert Export.objects.get().failures == 0
    due.sweep()
    assert filled.sent == []  # not before its time
    runs.work(run.pk)  # nor for a message that came late
    assert ExportRun.objects.get().attempts == 1 + 1
    assert ExportRun.objects.get().tries == 1
    due.sweep(run.retry_at)
    assert filled.sent == [run.pk]
    assert filled.worked(run).state == "done"
    assert run.words == ""
    assert indices(filled.path(run)) == expected()


def test_a_disk_that_stays_full_fails_and_five_such_runs_disable_the_export(
    filled: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = filled.export(schedule="daily")
    monkeypatch.setattr(files, "synced", full)
    for number in range(runs.MOST_FAILURES):
        run = filled.run(export, START - DAY, END + number * DAY)
        for _ in range(len(runs.DELAYS)):
            assert filled.worked(run).state == "waiting"
        assert filled.worked(run).state == "failed"
        export.refresh_from_db()
        assert export.failures == number + 1
        assert export.enabled == (number < runs.MOST_FAILURES - 1)
    assert "5 runs in a row" in export.words
    assert len(told("export.failed")) == 5
    assert told("export.disabled")[0]["owner"] == f"staff:{filled.auditor.pk}"
    assert filled.leftovers() == set()


def test_a_folder_that_cannot_be_used_is_said_without_its_path(filled: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (filled.folder / "file").write_text("")
    monkeypatch.setattr(settings, "MUNIMENT_EXPORTS", filled.folder / "file")
    run = filled.worked(filled.run(filled.export(), START - DAY, END))
    assert run.state == "waiting"
    assert "folder of exports" in run.words
    assert str(filled.folder) not in run.words


def test_what_is_not_foreseen_is_named_and_tried_again(filled: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> None:
        raise KeyError("a secret of somebody")

    monkeypatch.setattr(making, "make", wrong)
    run = filled.worked(filled.run(filled.export(), START - DAY, END))
    assert run.state == "waiting"
    assert "KeyError" in run.words
    assert "secret" not in run.words


def test_without_an_export_key_nothing_is_made(filled: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(settings.MUNIMENT_KEYS, "EXPORT_KEY")
    run = filled.worked(filled.run(filled.export(), START - DAY, END))
    assert run.state == "failed"
    assert "export key" in run.words
    assert not filled.path(run).exists()


def test_a_deleted_export_makes_no_more_files(filled: Desk) -> None:
    export = filled.export()
    run = filled.run(export, START - DAY, END)
    definitions.remove(filled.auditor, export)
    assert filled.worked(run).state == "cancelled"
    assert not filled.path(run).exists()


# --- the record of it -------------------------------------------------------------------------------------------------


def test_a_run_is_on_record_with_who_asked_for_it(filled: Desk) -> None:
    run = definitions.ask(filled.auditor, filled.export(query=f"since={START:%Y-%m-%d}&until={END:%Y-%m-%dT%H:%M}"))
    assert filled.sent == [run.pk]
    assert filled.worked(run).state == "done"
    for action in ("export.run", "export.done"):
        [record] = told(action)
        assert record["actor"] == f"staff:{filled.auditor.pk}"
        assert (record["run"], record["owner"]) == (run.pk, f"staff:{filled.auditor.pk}")
    assert told("export.done")[0]["sha256"] == run.sha256
    assert run.records == 240


def test_no_transaction_is_open_while_pages_become_lines(filled: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    each = making._Pages._add

    def add(self: Any, file: Any, data: bytes) -> None:
        seen.add(connection.connection.info.transaction_status.name)
        each(self, file, data)

    monkeypatch.setattr(making._Pages, "_add", add)
    filled.worked(filled.run(filled.export(), START - DAY, END))
    assert seen == {"IDLE"}
