"""Exports of staff who are confined to tenants: their own, with the records of the tenants that they see when it is
made and when it is taken; another's export is not there."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.test import Client as HttpClient

from audit import destinations, search_pages
from audit.erasure import of_exports
from audit.exports import definitions, downloads, making, rights, runs
from audit.exports.definitions import Definition
from audit.models import Destination, Export, ExportRun
from muniment import exported
from tests.audit.exporting import AUDITOR, COLUMNS, Desk, desk, staff
from tests.audit.filling import START, fill
from tests.audit.test_export_runs import DAY, END
from tests.governance.confined import confine
from tests.staff import signed_in

OWN = 20  # of 60
GIVEN: dict[str, Any] = {"name": "mine", "format": "csv", "columns": list(COLUMNS), "schedule": "", "crontab": "",
                         "destination": "", "reason": ""}  # fmt: skip


@pytest.fixture
def filled(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """60 records, a third each of acme, of globex and of no tenant, all sealed; the auditor sees acme alone."""
    (tmp_path / "exports").mkdir(mode=0o700)
    monkeypatch.setattr(search_pages, "PAGE", 20)
    with desk(tmp_path / "exports", monkeypatch) as found:
        tenants = ["acme", "globex", None]
        each = [{"tenant": one, "subject": f"usr_{one}", "disclosures": b"protected"} for one in tenants]
        fill([*(each[n % 3] for n in range(60)), {"at": END}])
        found.seal()
        confine(found.auditor, "acme")
        found.auditor = type(found.auditor).objects.get(pk=found.auditor.pk)
        yield found


@pytest.fixture
def http(filled: Desk) -> HttpClient:
    return signed_in(filled.auditor)


def made(filled: Desk, **given: Any) -> ExportRun:
    run = filled.run(filled.export(**given), START - DAY, END)
    return filled.worked(run)


def again(filled: Desk, *tenants: str) -> None:
    """The auditor sees other tenants from now on."""
    confine(filled.auditor, *tenants)
    filled.auditor = type(filled.auditor).objects.get(pk=filled.auditor.pk)


def users(filled: Desk, run: ExportRun) -> set[str]:
    return {json.loads(line)["user"] for line in filled.path(run).read_text().splitlines()}


# --- what is in a file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet", "ocsf"])
def test_a_file_has_the_records_of_their_tenants_alone_and_says_so(filled: Desk, format: str) -> None:
    run = made(filled, format=format)
    assert (run.state, run.records, run.words) == ("done", OWN, "")
    assert b"usr_globex" not in filled.path(run).read_bytes() and b"usr_None" not in filled.path(run).read_bytes()
    assert filled.findings(run) == []
    manifest = filled.folder / (run.file + exported.SUFFIX)
    assert json.loads(manifest.read_text())["tenants"] == ["acme"]
    words = " ".join(exported.words(*exported.verify(manifest, filled.trust)))
    assert "sees the records of these tenants alone: 'acme'." in words


def test_a_search_for_another_tenant_makes_an_empty_file(filled: Desk) -> None:
    run = made(filled, query="window=30d&tenant=globex")
    assert (run.state, run.records, filled.path(run).read_text()) == ("done", 0, "")


def test_the_tenants_of_when_it_is_made_count_not_those_of_when_it_was_defined(filled: Desk) -> None:
    again(filled)
    run = filled.run(filled.export(), START - DAY, END)
    again(filled, "globex")
    assert filled.worked(run).state == "done" and users(filled, run) == {"usr_globex"}
    again(filled)
    assert made(filled, name="free").records == 60


def test_a_run_whose_owner_is_confined_in_the_midst_of_it_makes_no_file(
    filled: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    again(filled)
    monkeypatch.setattr(making, "ASKED_AGAIN", 0.0)
    run, pages = filled.run(filled.export(), START - DAY, END), search_pages._read

    def confined(statement: str, given: Any) -> Any:
        if given["first"] == 20:
            confine(filled.auditor, "acme")
        return pages(statement, given)

    monkeypatch.setattr(search_pages, "_read", confined)
    assert (filled.worked(run).state, run.words) == ("failed", making.NARROWED)
    assert not filled.path(run).exists() and filled.leftovers() == set()
    assert definitions.retry(filled.auditor, run, Export.objects.get())
    assert filled.worked(run).state == "done" and users(filled, run) == {"usr_acme"}


@pytest.mark.parametrize("change", [("acme",), ()])
def test_a_run_that_was_interrupted_is_made_anew_where_its_owner_sees_others_by_then(
    filled: Desk, monkeypatch: pytest.MonkeyPatch, change: tuple[str, ...]
) -> None:
    again(filled, *({"acme", "globex"} - set(change)) if change else ("acme",))
    monkeypatch.setattr(making, "SAVED_RECORDS", 1)
    run, pages = filled.run(filled.export(), START - DAY, END), search_pages._read

    def full(statement: str, given: Any) -> Any:
        if given["first"] == 40:
            raise OSError(28, "No space left on device")
        return pages(statement, given)

    with monkeypatch.context() as patch:
        patch.setattr(search_pages, "_read", full)
        assert filled.worked(run).state == "waiting" and run.offset > 0
    again(filled, *change)
    assert filled.worked(run).state == "done"
    assert users(filled, run) == ({"usr_acme"} if change else {"usr_acme", "usr_globex", "usr_None"})


def test_what_was_made_with_more_is_not_delivered_for_who_sees_less(
    filled: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise destinations.DeliveryFailed("it is away")

    again(filled)
    monkeypatch.setattr(destinations, "deliver", away)
    run = filled.run(filled.export(), START - DAY, END, destination="lake")
    assert filled.worked(run).state == "delivering"
    again(filled, "acme")
    monkeypatch.setattr(destinations, "deliver", lambda *_: pytest.fail("it was delivered"))
    assert (filled.worked(run).state, run.words) == ("failed", making.NARROWED)


@pytest.mark.parametrize("format", sorted(rights.WHOLE))
def test_what_shows_all_of_the_log_is_refused_where_it_is_defined_and_where_it_is_made(
    filled: Desk, format: str
) -> None:
    with pytest.raises(ValidationError, match="all of the log"):
        filled.export(format=format)
    again(filled)
    run = filled.run(filled.export(format=format), START - DAY, END)
    again(filled, "acme")
    assert filled.worked(run).state == "failed" and "some tenants alone" in run.words
    assert not filled.path(run).exists()


def test_no_destination_and_nobody_else_is_told(filled: Desk, http: HttpClient) -> None:
    Destination.objects.create(name="lake-of-globex", kind="directory", place="/lake", seen_at=START)
    other = staff("olga", *AUDITOR)
    type(other).objects.update(email="some@example.com")
    for wrong in ({"destination": "lake-of-globex"}, {"recipients": (other.pk,)}):
        with pytest.raises(ValidationError):
            filled.export(**wrong)
    assert filled.export(recipients=(filled.auditor.pk,)).recipients == [filled.auditor.pk]
    page = http.get("/admin/exports/add/")
    offered = {name: [value for value, _ in page.context["form"].fields[name].choices]
               for name in ("format", "destination", "recipients")}  # fmt: skip
    assert offered == {"format": ["jsonl", "csv", "parquet", "ocsf"], "destination": [""],
                       "recipients": [filled.auditor.pk]}  # fmt: skip
    assert "lake-of-globex" not in page.content.decode() and "Olga" not in page.content.decode()
    answer = http.post("/admin/exports/add/", GIVEN | {"format": "bundle", "destination": "lake-of-globex"})
    assert answer.status_code == 400 and {"format", "destination"} <= answer.context["form"].errors.keys()


# --- who sees and takes what -----------------------------------------------------------------------------------


def test_anothers_export_is_not_there(filled: Desk, http: HttpClient) -> None:
    olga = staff("olga", *AUDITOR)
    run = made(filled)  # one's own
    export = definitions.make(olga, Definition("of globex", "jsonl", columns=COLUMNS))
    other = filled.worked(filled.run(export, START - DAY, END))
    assert other.state == "done"
    gets = ["exports/{e}/", "exports/{e}/edit/", "exports/{e}/delete/", "exports/runs/{r}/",
            "exports/runs/{r}/progress/", "exports/mailed/{r}/"]  # fmt: skip
    posts = ["exports/{e}/run/", "exports/{e}/pause/", "exports/{e}/resume/", "exports/{e}/delete/",
             "exports/{e}/edit/", "exports/runs/{r}/cancel/", "exports/runs/{r}/retry/",
             "exports/runs/{r}/download/"]  # fmt: skip
    for numbers in ({"e": export.pk, "r": other.pk}, {"e": 999, "r": 999}):
        assert {http.get("/admin/" + path.format(**numbers)).status_code for path in gets} == {404}
        assert {http.post("/admin/" + path.format(**numbers), GIVEN).status_code for path in posts} == {404}
    stolen = downloads.link(filled.auditor, other)
    assert http.get(stolen).status_code == 404
    page = http.get("/admin/exports/").content.decode()
    assert "of globex" not in page and export.owner not in page
    assert http.get(f"/admin/exports/runs/{run.pk}/").status_code == 200
    free = signed_in(olga)
    assert "of globex" in free.get("/admin/exports/").content.decode(), "else it could not fail"
    assert free.get(f"/admin/exports/runs/{run.pk}/").status_code == 200


def test_a_file_that_was_made_with_more_is_not_there_for_who_sees_less_by_now(filled: Desk, http: HttpClient) -> None:
    again(filled)
    run = made(filled)
    page, taken = f"/admin/exports/runs/{run.pk}/", downloads.link(filled.auditor, run)
    assert http.get(page).status_code == 200 and downloads.may_take(filled.auditor, run)
    again(filled, "acme")
    assert not downloads.may_take(filled.auditor, run)
    assert http.get(page).status_code == http.get(taken).status_code == 404
    listed = http.get(f"/admin/exports/{run.export}/")
    assert listed.status_code == 200 and listed.context["runs"] == []
    shown = http.get("/admin/exports/").content.decode().split("<main")[1].split("</main")[0]
    assert not re.search(r"\b60\b", shown)
    own = made(filled, name="own")
    again(filled, "acme", "globex")
    assert downloads.may_take(filled.auditor, own) and http.get(downloads.link(filled.auditor, own)).status_code == 200
    again(filled, "globex")
    assert not downloads.may_take(filled.auditor, own)


def test_a_recipient_who_is_confined_is_told_of_nothing_of_others(filled: Desk) -> None:
    bound, free = staff("bound", *AUDITOR), staff("free", *AUDITOR)
    confine(bound, "acme")
    again(filled)
    run = made(filled)
    assert downloads.may_take(free, run) and not downloads.may_take(type(bound).objects.get(pk=bound.pk), run)


def test_an_erasure_marks_the_files_that_hold_the_user_and_no_others(filled: Desk) -> None:
    run = made(filled)
    holding = {uid: of_exports._holds(run, uid, "default") for uid in ("usr_acme", "usr_globex")}
    assert holding == {"usr_acme": True, "usr_globex": False}
    again(filled)
    assert of_exports._holds(made(filled, name="free"), "usr_globex", "default")


def test_a_run_that_waits_is_seen_by_its_owner_whatever_they_see(filled: Desk, http: HttpClient) -> None:
    run = filled.run(filled.export(), START - DAY, END)
    assert http.get(f"/admin/exports/runs/{run.pk}/").status_code == 200
    assert runs.work(run.pk) is None
