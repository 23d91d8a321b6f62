"""The pages of exports: what is offered and to whom, what the form refuses and in which words, one export with its
runs, a run with its progress, and evidence packs."""

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.test import Client as HttpClient
from django.utils import timezone

from audit.evidence import page as evidence_page
from audit.exports import definitions
from audit.exports import words as export_words
from audit.models import Destination, Export, ExportRun
from tests.audit.exporting import AUDITOR, Desk, desk, staff, told, without
from tests.audit.filling import fill
from tests.staff import signed_in

READS = ("audit.view_record", "audit.view_export")
PERSONAL = ("audit.view_personal",)


@pytest.fixture
def table(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with desk(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def http(table: Desk) -> HttpClient:
    return signed_in(table.auditor)


def form(**given: Any) -> dict[str, Any]:
    """What the form sends for a plain export."""
    return {"name": "Denials", "format": "csv", "columns": ["time", "index", "decision"], "schedule": "", "crontab": "",
            "destination": "", "reason": ""} | given  # fmt: skip


def errors(answer: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: list(messages) for name, messages in answer.context["form"].errors.items()}
    return found


def text(answer: Any) -> str:
    return re.sub(r"\s+", " ", answer.content.decode())


def done(table: Desk, **given: Any) -> ExportRun:
    """A run that is made, of three records."""
    records = fill([{}, {"decision": "deny", "reason": "not_granted"}, {}])
    table.seal()
    run = table.run(table.export(**given), records[0].at, records[-1].at + timedelta(seconds=1))
    found = table.worked(run)
    assert found.state == "done", found.words
    return found


# The list


def test_an_empty_list_says_what_to_do(http: HttpClient) -> None:
    page = text(http.get("/admin/exports/"))
    assert "No export yet." in page and 'href="/admin/records/"' in page and 'href="/admin/exports/add/"' in page


def test_the_list_says_of_each_what_it_is_when_it_comes_and_how_it_went(table: Desk, http: HttpClient) -> None:
    run = done(table, name="Nightly", schedule="0 2 * * *")
    Export.objects.filter(pk=run.export).update(failures=3)
    page = text(http.get("/admin/exports/"))
    assert "Nightly" in page and "Every day at 02:00 UTC" in page and "JSON Lines; yours" in page
    assert "Done" in page and "failed 3 times in a row" in page and "next </span>" in page
    assert "of Ada" in text(signed_in(staff("ben", *READS)).get("/admin/exports/"))


def test_what_is_under_way_is_above_with_its_progress(table: Desk, http: HttpClient) -> None:
    now = timezone.now()
    table.run(table.export(name="Slow"), now - timedelta(hours=1), now, state="running", first=0, last=99, next=25,
              seen_at=now)  # fmt: skip
    page = text(http.get("/admin/exports/"))
    assert "Under way" in page and '<progress max="100" value="25"' in page


def test_evidence_packs_are_not_among_the_exports(table: Desk, http: HttpClient) -> None:
    table.export(name="A pack", format="evidence")
    assert "A pack" not in text(http.get("/admin/exports/")) and "A pack" in text(http.get("/admin/packs/"))


@pytest.mark.parametrize("path", ["/admin/exports/", "/admin/packs/"])
def test_who_may_not_see_exports_sees_none(table: Desk, path: str) -> None:
    assert signed_in(staff("eve", "audit.view_record", "audit.add_export")).get(path).status_code == 403


def test_who_may_only_look_is_offered_nothing_to_do(table: Desk) -> None:
    export, http = table.export(schedule="daily"), signed_in(staff("ben", *READS))
    assert "New export" not in text(http.get("/admin/exports/"))
    page = text(http.get(f"/admin/exports/{export.pk}/"))
    assert "Run now" not in page and "Delete…" not in page and "Every day at 00:00 UTC" in page
    assert http.get("/admin/exports/add/").status_code == 403
    for what in ("run", "pause", "resume", "delete", "edit"):
        assert http.post(f"/admin/exports/{export.pk}/{what}/", form()).status_code == 403, what
    export.refresh_from_db()
    assert export.enabled and not ExportRun.objects.exists() and not told("export.deleted")


# From a search to an export


def test_a_search_leads_to_the_form_which_says_it_in_words(http: HttpClient) -> None:
    page = text(http.get("/admin/records/?window=30d&decision=deny"))
    assert 'href="/admin/exports/add/?window=30d&amp;decision=deny"' in page or "decision=deny&amp;window=30d" in page
    page = text(http.get("/admin/exports/add/?window=30d&decision=deny"))
    assert "Decision: <strong><bdi>denied</bdi></strong>" in page and "last 30 days" in page


def test_who_may_not_export_is_not_led_there(table: Desk) -> None:
    assert "/admin/exports/add/" not in text(signed_in(staff("ben", *READS)).get("/admin/records/"))


def test_an_export_without_a_schedule_is_made_and_runs_at_once(table: Desk, http: HttpClient) -> None:
    answer = http.post("/admin/exports/add/?window=30d&decision=deny", form())
    export, run = Export.objects.get(), ExportRun.objects.get()
    assert (answer.status_code, answer["Location"]) == (302, f"/admin/exports/runs/{run.pk}/")
    assert export.query == "window=30d&decision=deny" or export.query == "decision=deny&window=30d"
    assert (export.owner, export.columns) == (f"staff:{table.auditor.pk}", ["time", "index", "decision"])
    assert run.until - run.since == timedelta(days=30) or abs((run.until - run.since).days - 30) <= 1
    assert [one["actor"] for one in told("export.created")] == [export.owner] and len(told("export.run")) == 1


def test_one_with_a_schedule_waits_for_it(http: HttpClient) -> None:
    answer = http.post("/admin/exports/add/", form(schedule="daily"))
    export = Export.objects.get()
    assert answer["Location"] == f"/admin/exports/{export.pk}/" and not ExportRun.objects.exists()
    page = text(http.get(answer["Location"]))
    assert "Every day at 00:00 UTC" in page and page.count(", 00:00") >= 3 and "each run: the day before it" in page


def test_a_crontab_is_taken_and_its_next_times_are_shown_before_it_is_saved(http: HttpClient) -> None:
    answer = http.post("/admin/exports/add/", form(name="", crontab="30 2 * * *", look="1"))
    page = text(answer)
    assert answer.status_code == 200 and page.count(", 02:30") == 3 and not Export.objects.exists()
    assert "An export needs a name" not in page
    assert re.search(r'value="crontab"[^>]*checked', page)
    http.post("/admin/exports/add/", form(schedule="crontab", crontab=" 30  2 * * * "))
    assert Export.objects.get().schedule == "30 2 * * *"


NO_SCHEDULES = [
    ("0 0 31 2 *", "never comes"), ("61 * * * *", "outside of 0 to 59"), ("every day", "five fields"),
    ("", "five fields"), ("0 0 1 * 1", "not both"), ("daily", "five fields"), ("0 0 * * * *", "five fields"),
]  # fmt: skip


def test_a_schedule_that_is_none_or_never_comes_is_an_error_of_its_field(http: HttpClient) -> None:
    for crontab, words in NO_SCHEDULES:
        for more in ({}, {"look": "1"}):
            answer = http.post("/admin/exports/add/", form(schedule="crontab", crontab=crontab, **more))
            assert list(errors(answer)) == ["crontab"] and words in errors(answer)["crontab"][0], (crontab, more)
    assert not Export.objects.exists()


MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"name": ""}, "name", "needs a name"),
    ({"name": "of bob@example.com"}, "name", "e-mail address"),
    ({"name": "x" * 121}, "name", "120"),
    ({"name": "a\x00b"}, "name", "null characters|cannot be printed"),
    ({"columns": []}, "columns", "at least one column"),
    ({"columns": ["time", "password"]}, "columns", "not one of the available"),
    ({"format": "xml"}, "format", "not one of the available"),
    ({"format": ""}, "format", "Choose a format"),
    ({"format": "evidence"}, "format", "not one of the available"),
    ({"destination": "nowhere"}, "destination", "not one of the available"),
    ({"schedule": "yearly"}, "schedule", "not one of the available"),
    ({"recipients": ["99999"]}, "recipients", "not one of the available"),
    ({"recipients": ["x"]}, "recipients", "not one of the available|Enter a valid"),
]


def test_each_mistake_is_told_at_its_field(http: HttpClient) -> None:
    for given, field, words in MISTAKES:
        answer = http.post("/admin/exports/add/", form(**given))
        assert answer.status_code == 400 and field in errors(answer), (given, errors(answer))
        assert re.search(words, " ".join(errors(answer)[field])), (given, errors(answer))
    assert not Export.objects.exists()


def test_a_search_with_a_mistake_is_not_exported(http: HttpClient) -> None:
    answer = http.post("/admin/exports/add/?subject=bob@example.com", form())
    assert answer.status_code == 400 and "A user is searched by uid" in text(answer) and not Export.objects.exists()


def test_a_proof_bundle_says_which_filters_it_cannot_have(http: HttpClient) -> None:
    answer = http.post("/admin/exports/add/?decision=deny", form(format="bundle", columns=[]))
    assert answer.status_code == 400 and "take the other filters away" in text(answer) and not Export.objects.exists()
    assert http.post("/admin/exports/add/?client=claude", form(format="bundle")).status_code == 302
    assert Export.objects.get().columns == []


def test_two_of_one_name_are_told_apart_at_the_name(http: HttpClient) -> None:
    http.post("/admin/exports/add/", form(schedule="daily"))
    assert "already" in errors(http.post("/admin/exports/add/", form()))["name"][0]
    assert Export.objects.count() == 1


def test_a_destination_is_offered_with_its_place_and_its_last_error(table: Desk, http: HttpClient) -> None:
    now = timezone.now()
    Destination.objects.create(name="lake", kind="s3", place="s3://lake/audit", seen_at=now, reached_at=now)
    Destination.objects.create(name="tape", kind="sftp", place="tape.example", seen_at=now, failures=2,
                               error="Nobody listens <there>.")  # fmt: skip
    page = text(http.get("/admin/exports/add/"))
    assert "lake: s3://lake/audit" in page and "failing: Nobody listens &lt;there&gt;." in page
    assert http.post("/admin/exports/add/", form(schedule="daily", destination="lake")).status_code == 302
    assert Export.objects.get().destination == "lake"


def test_where_there_is_no_destination_the_form_says_who_sets_one_up(http: HttpClient) -> None:
    assert "MUNIMENT_DESTINATIONS" in text(http.get("/admin/exports/add/"))


def test_only_staff_with_an_address_who_may_see_exports_can_be_told(table: Desk, http: HttpClient) -> None:
    told_of = staff("ben", *READS)
    for name in ("gone", "blind", "mute"):
        user = staff(name, *(READS if name != "blind" else ()))
        get_user_model().objects.filter(pk=user.pk).update(
            email="" if name == "mute" else f"{name}@example.com", is_active=name != "gone"
        )
    get_user_model().objects.filter(pk=told_of.pk).update(email="ben@example.com")
    page = text(http.get("/admin/exports/add/"))
    assert "Ben" in page and not {"Gone", "Blind", "Mute"} & set(re.findall(r"\w+", page)) and "@example" not in page
    http.post("/admin/exports/add/", form(schedule="daily", recipients=[str(told_of.pk)]))
    export = Export.objects.get()
    assert export.recipients == [told_of.pk] and "Ben" in text(http.get(f"/admin/exports/{export.pk}/"))


# Personal data


def test_columns_of_personal_data_are_for_who_may_see_it_where_the_worker_can(
    table: Desk, http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "MUNIMENT_EXPORT_PERSONAL", True)
    personal = form(columns=["time", "email"], reason="a request of the authority", schedule="daily")
    page = text(http.get("/admin/exports/add/"))
    assert 'value="email"' not in page and "only who may see personal data" in page
    assert "columns" in errors(http.post("/admin/exports/add/", personal))
    officer = signed_in(staff("pia", *AUDITOR, *PERSONAL))
    assert 'value="email"' in text(officer.get("/admin/exports/add/"))
    assert list(errors(officer.post("/admin/exports/add/", personal | {"reason": " "}))) == ["reason"]
    assert list(errors(officer.post("/admin/exports/add/", personal | {"reason": "of bob@example.com"}))) == ["reason"]
    assert officer.post("/admin/exports/add/", personal).status_code == 302
    export = Export.objects.get()
    assert export.personal and export.reason == "a request of the authority"
    page = text(http.get(f"/admin/exports/{export.pk}/"))
    assert "a request of the authority" in page


def test_where_the_worker_cannot_open_personal_data_nobody_is_offered_it(table: Desk) -> None:
    officer = signed_in(staff("pia", *AUDITOR, *PERSONAL))
    page = text(officer.get("/admin/exports/add/"))
    assert 'value="email"' not in page and "MUNIMENT_EXPORT_PERSONAL" in page


def test_who_may_not_see_personal_data_cannot_change_an_export_with_it(
    table: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "MUNIMENT_EXPORT_PERSONAL", True)
    officer = staff("pia", *AUDITOR, *PERSONAL)
    export = table.export(officer, name="p", columns=("email",), personal=True, reason="x", schedule="daily")
    boss = signed_in(staff("max", *READS, "audit.change_export"))
    assert "Change…" not in text(boss.get(f"/admin/exports/{export.pk}/"))
    assert boss.post(f"/admin/exports/{export.pk}/edit/", form()).status_code == 403
    without(officer, "audit.view_personal")
    assert signed_in(officer).get(f"/admin/exports/{export.pk}/edit/").status_code == 403


# One export


def test_it_is_changed_with_the_search_that_it_has_or_another(table: Desk, http: HttpClient) -> None:
    export = table.export(name="a", query="window=7d&client=claude", schedule="daily")
    page = text(http.get(f"/admin/exports/{export.pk}/edit/"))
    assert "Client: <strong><bdi>claude</bdi></strong>" in page and re.search(r'value="daily"[^>]*checked', page)
    http.post(f"/admin/exports/{export.pk}/edit/", form(name="b", schedule="weekly"))
    export.refresh_from_db()
    assert (export.name, export.schedule, export.format) == ("b", "weekly", "csv") and "client=claude" in export.query
    http.post(f"/admin/exports/{export.pk}/edit/?window=7d&tool=memory.recall", form(name="b", schedule="weekly"))
    export.refresh_from_db()
    assert "tool=memory.recall" in export.query and "client" not in export.query
    assert len(told("export.changed")) == 2


def test_it_is_paused_resumed_run_and_deleted_each_by_post_and_on_record(table: Desk, http: HttpClient) -> None:
    export = table.export(schedule="daily")
    here = f"/admin/exports/{export.pk}"
    for what in ("run", "pause", "resume"):
        assert http.get(f"{here}/{what}/").status_code == 405
    http.post(f"{here}/pause/")
    assert "Resume" in text(http.get(f"{here}/")) and "Paused" in text(http.get("/admin/exports/"))
    http.post(f"{here}/resume/")
    assert "Pause" in text(http.get(f"{here}/"))
    answer = http.post(f"{here}/run/")
    run = ExportRun.objects.get()
    assert answer["Location"] == f"/admin/exports/runs/{run.pk}/" and table.sent == [run.pk]
    assert "Leave it as it is" in text(http.get(f"{here}/delete/")) and Export.objects.exists()
    assert http.post(f"{here}/delete/")["Location"] == "/admin/exports/" and not Export.objects.exists()
    for action in ("disabled", "enabled", "run", "deleted"):
        assert len(told(f"export.{action}")) == 1, action
    assert http.get(f"/admin/exports/runs/{run.pk}/").status_code == 200
    assert "was deleted" in text(http.get(f"/admin/exports/runs/{run.pk}/"))


def test_an_export_of_somebody_else_takes_the_right_to_change_any(table: Desk) -> None:
    export = table.export(schedule="daily")
    other, boss = signed_in(staff("ben", *AUDITOR)), signed_in(staff("max", *READS, "audit.change_export"))
    assert other.post(f"/admin/exports/{export.pk}/pause/").status_code == 403
    assert boss.post(f"/admin/exports/{export.pk}/pause/").status_code == 302
    export.refresh_from_db()
    assert not export.enabled


def test_every_post_takes_a_token_of_the_session(table: Desk) -> None:
    export, http = table.export(schedule="daily"), HttpClient(enforce_csrf_checks=True)
    http.force_login(table.auditor)
    for path in ("add", f"{export.pk}/run", f"{export.pk}/pause", f"{export.pk}/delete", f"{export.pk}/edit"):
        assert http.post(f"/admin/exports/{path}/", form(name="x")).status_code == 403, path
    assert http.post("/admin/packs/", {"period": "month", "frameworks": "soc2"}).status_code == 403
    assert Export.objects.count() == 1 and not ExportRun.objects.exists()


def test_one_that_was_disabled_says_why(table: Desk, http: HttpClient) -> None:
    export = table.export(schedule="daily")
    Export.objects.filter(pk=export.pk).update(enabled=False, words="5 runs in a row have failed: no space.")
    page = text(http.get(f"/admin/exports/{export.pk}/"))
    assert "Disabled" in page and "5 runs in a row have failed: no space." in page


def test_a_destination_that_is_gone_is_told_on_the_page(table: Desk, http: HttpClient) -> None:
    Destination.objects.create(name="lake", kind="s3", place="s3://lake", seen_at=timezone.now())
    export = table.export(destination="lake")
    Destination.objects.all().delete()
    assert "not set up any more" in text(http.get(f"/admin/exports/{export.pk}/"))


def test_runs_are_paged_by_their_slots(table: Desk, http: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.exports.page.MOST_RUNS", 2)
    export, start = table.export(), datetime(2026, 3, 1, tzinfo=UTC)
    for number in range(3):
        table.run(export, start + timedelta(days=number), start + timedelta(days=number + 1))
    page = text(http.get(f"/admin/exports/{export.pk}/"))
    assert "3 Mar 2026" in page and "2 Mar 2026" in page and "1 Mar 2026</a>" not in page
    older = re.findall(r'href="(\?before=\d+)"', page)[0]
    assert "1 Mar 2026</a>" in text(http.get(f"/admin/exports/{export.pk}/{older}"))
    for hostile in ("x", "-1", "9" * 30, "%00", "99999999999"):
        assert http.get(f"/admin/exports/{export.pk}/?before={hostile}").status_code == 200


def test_what_there_is_not_is_not_found(http: HttpClient) -> None:
    for number in ("0", "9" * 30, "77"):
        for path in ("{}/", "{}/edit/", "{}/delete/", "runs/{}/", "runs/{}/progress/"):
            assert http.get(f"/admin/exports/{path.format(number)}").status_code == 404, path
        for path in ("exports/{}/run/", "exports/runs/{}/cancel/", "exports/runs/{}/retry/"):
            assert http.post(f"/admin/{path.format(number)}").status_code == 404, path


# A run


def test_a_run_that_is_done_has_its_file_its_sums_and_how_to_verify_it(table: Desk, http: HttpClient) -> None:
    run = done(table, format="csv")
    page = text(http.get(f"/admin/exports/runs/{run.pk}/"))
    assert run.sha256 in page and run.file in page and "2 allowed, 1 denied" in page and "3 records" in page
    assert f"muniment verify {run.file}.manifest.json --trust keys.json" in page
    assert "exports.js" not in page and "Download the manifest" in page


def test_its_progress_is_a_fragment_that_says_its_state(table: Desk, http: HttpClient) -> None:
    now = timezone.now()
    run = table.run(table.export(), now - timedelta(hours=1), now, state="running", first=10, last=1009, next=260,
                    records=7, seen_at=now)  # fmt: skip
    answer = http.get(f"/admin/exports/runs/{run.pk}/progress/")
    assert answer["X-Run-State"] == "running" and "no-store" in answer["Cache-Control"]
    assert "250 of 1,000 looked through (25 %); 7 records in the file so far." in text(answer)
    assert '<progress max="1000" value="250"' in text(answer) and "<html" not in text(answer)
    page = text(http.get(f"/admin/exports/runs/{run.pk}/"))
    assert "exports.js" in page and "Look again" in page and "How to verify" not in page
    assert signed_in(staff("eve")).get(f"/admin/exports/runs/{run.pk}/progress/").status_code == 403


def test_a_run_is_cancelled_and_tried_again_by_who_may(table: Desk, http: HttpClient) -> None:
    now = timezone.now()
    run = table.run(table.export(), now - timedelta(hours=1), now)
    here, ben = f"/admin/exports/runs/{run.pk}", signed_in(staff("ben", *READS))
    for what in ("cancel", "retry"):
        assert ben.post(f"{here}/{what}/").status_code == 403 and http.get(f"{here}/{what}/").status_code == 405
    http.post(f"{here}/cancel/")
    assert table.worked(run).state == "cancelled"
    assert "Try again now" in text(http.get(f"{here}/")) and "Try again now" not in text(ben.get(f"{here}/"))
    assert "over already" in text(http.post(f"{here}/cancel/", follow=True))
    http.post(f"{here}/retry/")
    run.refresh_from_db()
    assert (run.state, run.cancel) == ("waiting", False)
    assert "nothing to try again" in text(http.post(f"{here}/retry/", follow=True))


def test_a_failed_run_says_why_and_nothing_of_it_is_markup(table: Desk, http: HttpClient) -> None:
    now = timezone.now()
    run = table.run(table.export(name="<i>x</i>"), now - timedelta(hours=1), now, state="failed",
                    words="<script>no space</script>")  # fmt: skip
    for path in (f"exports/runs/{run.pk}/", f"exports/{run.export}/", "exports/"):
        page = http.get(f"/admin/{path}").content.decode()
        assert "<script>no" not in page and "<i>x" not in page
    assert "It could not be made." in text(http.get(f"/admin/exports/runs/{run.pk}/"))


def test_a_file_that_holds_who_was_erased_since_says_so(table: Desk, http: HttpClient) -> None:
    run = done(table)
    ExportRun.objects.filter(pk=run.pk).update(erased_since=["usr_" + "a" * 20])
    page = text(http.get(f"/admin/exports/runs/{run.pk}/"))
    assert "made before usr_aaaaaa…aaa was erased" in page
    assert "/download/" not in page and "Run the export again" in page
    assert "a user erased since" in text(http.get(f"/admin/exports/{run.export}/"))


def test_the_file_is_only_offered_to_who_may_take_it(table: Desk, http: HttpClient) -> None:
    run = done(table)
    looker = signed_in(staff("ben", *READS))
    assert "/download/" in text(http.get(f"/admin/exports/runs/{run.pk}/"))
    page = text(looker.get(f"/admin/exports/runs/{run.pk}/"))
    assert "/download/" not in page and "the right to take records out" in page
    ExportRun.objects.filter(pk=run.pk).update(removed_at=timezone.now())
    assert "/download/" not in text(http.get(f"/admin/exports/runs/{run.pk}/"))


def test_a_run_that_was_cancelled_while_it_was_delivered_offers_no_file(table: Desk, http: HttpClient) -> None:
    run = done(table)
    for state, words in (("cancelled", "its file is not kept"), ("waiting", "It is being made again")):
        ExportRun.objects.filter(pk=run.pk).update(state=state)
        page = text(http.get(f"/admin/exports/runs/{run.pk}/"))
        assert words in page and "/download/" not in page, state
    ExportRun.objects.filter(pk=run.pk).update(state="delivering", destination="lake")
    page = text(http.get(f"/admin/exports/runs/{run.pk}/"))
    assert "/download/" in page and "being delivered to lake" in page and "not yet, to <bdi>lake</bdi>" in page


def test_a_run_whose_worker_went_silent_is_called_interrupted(table: Desk) -> None:
    now = timezone.now()
    run = table.run(table.export(), now - timedelta(hours=1), now, state="running", seen_at=now - timedelta(minutes=2))
    assert export_words.state(run, now).words == "Interrupted"
    assert export_words.state(run, now - timedelta(minutes=2)).words == "Running"


# Evidence packs


def test_a_pack_is_made_with_one_click_and_runs(table: Desk, http: HttpClient) -> None:
    answer = http.post("/admin/packs/", {"period": "month", "frameworks": ["hipaa", "soc2"]})
    export, run = Export.objects.get(), ExportRun.objects.get()
    assert answer["Location"] == f"/admin/exports/runs/{run.pk}/"
    assert (export.format, export.frameworks, export.schedule) == ("evidence", ["soc2", "hipaa"], "")
    first = timezone.now().astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    assert run.until == first and run.since == (first - timedelta(days=1)).replace(day=1)
    http.post("/admin/packs/", {"period": "month", "frameworks": ["soc2"]})
    names = sorted(Export.objects.values_list("name", flat=True))
    assert names[1] == f"{names[0]} (2)" and names[0].startswith("Evidence pack, ")
    page = text(http.get("/admin/packs/"))
    assert names[0] in page and "SOC 2" in page and "Waiting" in page
    page = text(http.get(f"/admin/exports/{export.pk}/"))
    assert "Change…" not in page and "HIPAA" in page


def test_the_pages_of_a_pack_are_where_packs_are_in_the_navigation(table: Desk, http: HttpClient) -> None:
    marked = re.compile(r'aria-current="page">([^<]*)')
    pack, export = table.export(name="A pack", format="evidence", columns=[]), table.export(name="An export")
    for one, label in ((pack, "Evidence packs"), (export, "Exports")):
        run = definitions.ask(table.auditor, one)
        for path in (f"{one.pk}/", f"{one.pk}/delete/", f"runs/{run.pk}/"):
            assert marked.findall(text(http.get(f"/admin/exports/{path}"))) == [label]


def test_a_pack_is_made_downloaded_and_says_how_to_verify_it(table: Desk, http: HttpClient) -> None:
    fill([{}, {}])
    table.seal()
    http.post("/admin/packs/", {"period": "own", "since": "2026-03-01", "until": "2026-03-05", "frameworks": "soc2"})
    run = table.worked(ExportRun.objects.get())
    assert run.state == "done", run.words
    assert f"muniment verify {run.file} --trust" in text(http.get(f"/admin/exports/runs/{run.pk}/"))
    assert "Download…" in text(http.get("/admin/packs/"))


NO_PACKS: list[tuple[dict[str, Any], str, str]] = [
    ({"period": "own"}, "since", "from which day"),
    ({"period": "own", "since": "2026-01-01"}, "until", "to which"),
    ({"period": "own", "since": "2026-02-01", "until": "2026-01-01"}, "until", "before it begins"),
    ({"period": "own", "since": "2026-01-01", "until": "2090-01-01"}, "until", "must be over"),
    ({"period": "own", "since": "1999-01-01", "until": "2026-01-01"}, "until", "before it begins"),
    ({"period": "own", "since": "2001-01-01", "until": "2026-01-01"}, "until", "ten years"),
    ({"period": "own", "since": "31/31", "until": "\x00"}, "since", "valid date"),
    ({"period": "decade"}, "period", "not one of"),
    ({"frameworks": []}, "frameworks", "at least one"),
    ({"frameworks": ["iso9001"]}, "frameworks", "not one of"),
]


def test_a_pack_that_cannot_be_is_refused_at_its_field(http: HttpClient) -> None:
    for given, field, words in NO_PACKS:
        answer = http.post("/admin/packs/", {"period": "month", "frameworks": ["soc2"]} | given)
        assert answer.status_code == 400 and words in errors(answer)[field][0], (given, errors(answer))
    assert not Export.objects.exists()


def test_who_may_not_make_exports_makes_no_pack(table: Desk) -> None:
    http = signed_in(staff("ben", *READS))
    assert "Make the pack" not in text(http.get("/admin/packs/"))
    assert http.post("/admin/packs/", {"period": "month", "frameworks": ["soc2"]}).status_code == 403
    assert not Export.objects.exists()


def test_periods_before_a_day_are_whole_and_over() -> None:
    assert evidence_page.quarter_before(date(2026, 1, 5)) == (date(2025, 10, 1), date(2025, 12, 31))
    assert evidence_page.quarter_before(date(2026, 12, 31)) == (date(2026, 7, 1), date(2026, 9, 30))
    assert evidence_page.month_before(date(2026, 3, 31)) == (date(2026, 2, 1), date(2026, 2, 28))
    assert evidence_page.year_before(date(2026, 1, 1)) == (date(2025, 1, 1), date(2025, 12, 31))
    assert evidence_page.days_words(date(2025, 10, 1), date(2025, 12, 31)) == "Oct to Dec 2025"
    assert evidence_page.days_words(date(2025, 11, 1), date(2026, 1, 31)) == "Nov 2025 to Jan 2026"
    assert evidence_page.days_words(date(2026, 2, 1), date(2026, 2, 28)) == "February 2026"
    assert evidence_page.days_words(date(2025, 1, 1), date(2025, 12, 31)) == "2025"
    assert evidence_page.days_words(date(2026, 2, 3), date(2026, 2, 3)) == "3 Feb 2026"


# In words


def test_schedules_sizes_and_spans_in_words() -> None:
    assert export_words.schedule_words("") == "When somebody runs it"
    assert export_words.schedule_words("0 4 * * 1") == "Every Monday at 04:00 UTC"
    assert [export_words.size(n) for n in (None, 0, 1, 999, 1_000, 4_200_000, 3 * 10**9)] == [
        "—", "0 bytes", "1 byte", "999 bytes", "1.0 kB", "4.2 MB", "3.0 GB"
    ]  # fmt: skip
    at = datetime(2026, 11, 25, tzinfo=UTC)
    assert export_words.span(at, at + timedelta(days=1)) == "25 Nov 2026"
    assert export_words.span(at.replace(hour=10), at.replace(hour=11)) == "25 Nov 2026, 10:00 to 11:00"
    assert export_words.span(at, at + timedelta(days=2)) == "25 Nov 2026 to 26 Nov 2026"
    assert export_words.span(at, at + timedelta(hours=30)) == "25 Nov 2026, 00:00 to 26 Nov 2026, 06:00"
    assert export_words.next_times("0 0 31 2 *", at) == [] and export_words.next_times("x", at) == []


def test_columns_and_counts_are_called_what_people_call_them(table: Desk, http: HttpClient) -> None:
    export = table.export(columns=["time", "user known by"])
    assert "<dd>Time, User known by</dd>" in text(http.get(f"/admin/exports/{export.pk}/"))
    assert export_words.counts_words({"allow": 1, "deny": 2, "none": 3}) == "1 allowed, 2 denied, 3 without a decision"
    assert export_words.counts_words({"none": 3}) == "" == export_words.counts_words({})


def test_progress_never_says_more_than_all_nor_less_than_nothing() -> None:
    run = ExportRun(first=10, last=19, next=50, state="running")
    assert (export_words.progress(run).done, export_words.progress(run).percent) == (10, 100)
    run.next = 3
    assert export_words.progress(run).percent == 0
    run.first, run.last, run.next = 10, 9, 10
    assert export_words.progress(run).percent == 0
    run.first = None
    assert export_words.progress(run).of is None


def test_what_may_be_done_is_asked_of_the_rights_of_now(table: Desk, http: HttpClient) -> None:
    export = table.export(schedule="daily")
    without(table.auditor, "audit.add_export")
    fresh = get_user_model().objects.get(pk=table.auditor.pk)
    assert not definitions.may_change(fresh, export)
    assert signed_in(fresh).post(f"/admin/exports/{export.pk}/run/").status_code == 403


HOSTILE = [
    "subject=%00", "client=%00", "since=%00", "window=%00", "type=" + "x" * 5000, "%ED%A0%80=1", "since=2026-01-01",
    "since=9999-12-31T23:59:59Z&until=0001-01-01", "before=%00", "tenant=%ED%A0%80", "request_key=zz", "look=1",
    "since=2026-02-01&until=2026-01-01", "name=x&csrfmiddlewaretoken=y",
]  # fmt: skip


def test_hostile_searches_and_forms_are_never_a_failure(table: Desk, http: HttpClient) -> None:
    export, run = table.export(schedule="daily"), table.run(table.export(name="b"), timezone.now(), timezone.now())
    http.raise_request_exception = False
    junk = {
        "format": "\x00", "columns": ["\x00"] * 300, "crontab": "٣ * * * *", "schedule": "crontab", "reason": "\x00",
        "destination": "x" * 9000, "recipients": ["9" * 40, "-1", "\x00"],
    }  # fmt: skip
    broken, edit = [], f"exports/{export.pk}/edit/"
    for path in ("exports/", f"exports/{export.pk}/", "packs/", f"exports/runs/{run.pk}/"):  # they take no search
        broken += [path] if http.get(f"/admin/{path}?{'&'.join(HOSTILE)}").status_code >= 500 else []
    for number, query in enumerate(HOSTILE):
        given = {**junk, "name": "x" if query.startswith("look") else "a\x00"}
        for path in ("exports/add/", edit) if number % 3 == 0 else ("exports/add/",):
            url = f"/admin/{path}?{query}"
            broken += [url] if http.get(url).status_code >= 500 or http.post(url, given).status_code >= 500 else []
    assert not broken and Export.objects.count() == 2


def test_the_form_asks_as_much_of_the_database_whoever_is_on_the_staff(
    table: Desk, http: HttpClient, django_assert_max_num_queries: Any
) -> None:
    http.get("/admin/exports/add/")
    for number in range(20):
        user = staff(f"s{number}", *READS)
        get_user_model().objects.filter(pk=user.pk).update(email=f"s{number}@example.com")
    with django_assert_max_num_queries(35):
        assert "S19" in text(http.get("/admin/exports/add/"))


def test_the_list_asks_as_much_of_the_database_however_many_exports_there_are(
    table: Desk, http: HttpClient, django_assert_max_num_queries: Any
) -> None:
    now = timezone.now()
    for number in range(15):
        table.run(table.export(name=f"e{number}", schedule="daily"), now - timedelta(days=1), now)
    with django_assert_max_num_queries(35):
        assert "e14" in text(http.get("/admin/exports/"))
