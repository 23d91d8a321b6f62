"""What a run may hand over, asked again where it is made and where it is delivered: its owner's rights, what it was
begun as, and nobody who was erased meanwhile."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from audit import destinations, search_pages
from audit.destinations import DeliveryFailed
from audit.exports import definitions, files, runs, store
from audit.exports.claims import Lost
from audit.models import ExportRun
from tests.audit.exporting import AUDITOR, COLUMNS, Desk, desk, staff, told, without
from tests.audit.filling import START, fill
from tests.audit.test_export_runs import DAY, END, expected, indices
from tests.audit.test_search import mixed

UID = "usr_" + "a" * 20


@pytest.fixture
def filled(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """60 records within minutes, all sealed, and one after it."""
    (tmp_path / "exports").mkdir(mode=0o700)
    monkeypatch.setattr(search_pages, "PAGE", 20)
    with desk(tmp_path / "exports", monkeypatch) as found:
        fill([*mixed(60), {"at": END}])
        found.seal()
        yield found


def officer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Somebody who may see personal data, where exports may hold it."""
    monkeypatch.setattr(settings, "MUNIMENT_EXPORT_PERSONAL", True)
    return staff("petra", *AUDITOR, "audit.view_personal")


def personal(desk: Desk, user: Any, **more: Any) -> ExportRun:
    """A run with personal data, waiting."""
    given = {"name": "who", "columns": ("index", "email"), "personal": True, "reason": "asked by law"}
    return desk.run(desk.export(user, **given), START - DAY, END, **more)


class Letterbox:
    """A destination that is away, or takes what comes."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.away = False

    def deliver(self, destination: str, paths: list[Path]) -> None:
        if self.away:
            raise DeliveryFailed("it is away")
        self.got += [path.read_bytes() for path in paths]


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> Letterbox:
    found = Letterbox()
    monkeypatch.setattr(destinations, "deliver", found.deliver)
    return found


def test_who_lost_their_rights_before_a_file_could_be_delivered_delivers_nothing(filled: Desk, box: Letterbox) -> None:
    run = filled.run(filled.export(), START - DAY, END, destination="lake")
    box.away = True
    assert filled.worked(run).state == "delivering"
    without(filled.auditor, "audit.add_export")
    box.away = False
    assert filled.worked(run).state == "failed"
    assert "no longer export" in run.words
    assert box.got == []


def test_what_is_to_be_delivered_is_on_record_with_where_to_before_it_goes(filled: Desk, box: Letterbox) -> None:
    run = filled.run(filled.export(), START - DAY, END, destination="lake")
    box.away = True
    filled.worked(run)
    [record] = told("export.done")
    assert (record["destination"], record["sha256"]) == ("lake", run.sha256)
    assert told("export.delivered") == []


@pytest.mark.parametrize("allowed", [True, False])
def test_columns_of_personal_data_in_a_run_that_is_none_of_that_make_no_file(
    filled: Desk, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    owner = officer(monkeypatch) if allowed else filled.auditor
    run = filled.run(filled.export(owner), START - DAY, END)
    ExportRun.objects.filter(pk=run.pk).update(definition={"columns": ["index", "email"]})  # past the pages
    assert filled.worked(run).state == "failed"
    assert "not begun as" in run.words
    assert not filled.path(run).exists()


def test_a_run_in_which_somebody_is_erased_is_made_anew(filled: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = officer(monkeypatch)
    monkeypatch.setitem(settings.MUNIMENT_KEYS, "KEY_ENCRYPTION_KEY", os.urandom(32))
    run, pages = personal(filled, owner), search_pages._read
    read: list[int] = []

    def erased(statement: str, given: Any) -> Any:
        read.append(given["first"])
        if given["first"] == 40 and read.count(40) == 1:
            ExportRun.objects.filter(pk=run.pk).update(erased_since=[UID])
        return pages(statement, given)

    monkeypatch.setattr(search_pages, "_read", erased)
    assert (filled.worked(run).state, run.words) == ("waiting", runs.ERASED)
    assert not filled.path(run).exists()
    assert filled.worked(run).state == "done"
    assert read.count(0) == 2, "nothing of the first attempt is in the file"
    assert run.erased_since == []
    assert indices(filled.path(run)) == expected()
    assert filled.findings(run) == []


def test_a_file_that_waits_to_be_delivered_is_made_anew_where_it_holds_who_was_erased(
    filled: Desk, box: Letterbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = officer(monkeypatch)
    monkeypatch.setitem(settings.MUNIMENT_KEYS, "KEY_ENCRYPTION_KEY", os.urandom(32))
    run = personal(filled, owner, destination="lake")
    box.away = True
    assert filled.worked(run).state == "delivering"
    store.path(run.file).write_bytes(b"who was erased")
    ExportRun.objects.filter(pk=run.pk).update(erased_since=[UID])
    box.away = False
    assert filled.worked(run).state == "done"
    assert box.got[0] == filled.path(run).read_bytes() != b"who was erased"


def test_a_worker_that_hangs_with_a_file_open_is_not_written_over(filled: Desk) -> None:
    run = filled.run(filled.export(), START - DAY, END)
    with files.opened(run, 0) as other:
        with pytest.raises(Lost), files.opened(run, 0):
            pass
        other.write(b"of the one that hung")
        assert filled.worked(run).state in ("waiting", "running")
        assert not filled.path(run).exists()
    assert filled.worked(run).state == "done"
    assert indices(filled.path(run)) == expected()


class TestOfSomebodyElse:
    def test_who_may_not_read_records_changes_no_search_that_runs_with_anothers_rights(self, filled: Desk) -> None:
        export, operator = filled.export(), staff("otto", "audit.view_export", "audit.change_export")
        given = definitions.Definition("all", "jsonl", columns=COLUMNS, query="client=claude")
        with pytest.raises(definitions.PermissionDenied):
            definitions.change(operator, export, given)
        definitions.disable(operator, export)
        reader = staff("rosa", "audit.view_export", "audit.change_export", "audit.view_record")
        assert definitions.change(reader, export, given).owner == f"staff:{filled.auditor.pk}"

    def test_who_may_not_see_personal_data_has_no_file_with_it_made(
        self, filled: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        owner = officer(monkeypatch)
        export = type(filled.export()).objects.get(pk=personal(filled, owner).export)
        operator = staff("otto", "audit.view_export", "audit.change_export", "audit.view_record")
        with pytest.raises(definitions.PermissionDenied):
            definitions.ask(operator, export)
        definitions.disable(operator, export)
        assert definitions.ask(owner, export).personal

    def test_what_became_personal_meanwhile_is_changed_by_nobody_who_may_not_see_that(
        self, filled: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        owner = officer(monkeypatch)
        export, stale = filled.export(owner), None
        stale = type(export).objects.get(pk=export.pk)
        given = definitions.Definition("all", "jsonl", columns=("index", "email"), personal=True, reason="law")
        definitions.change(owner, export, given)
        rosa = staff("rosa", "audit.view_export", "audit.change_export", "audit.view_record")
        with pytest.raises(definitions.PermissionDenied):
            definitions.change(rosa, stale, definitions.Definition("all", "jsonl", columns=COLUMNS))
        stale.refresh_from_db()
        assert stale.personal
