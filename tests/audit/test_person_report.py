"""Everything the AI did with one person's data: counted without looking, shown and recorded by POST, as a page and a
PDF that prints every name."""

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError, connections
from django.test import Client as HttpClient
from django.urls import reverse
from reportlab.platypus import Paragraph

from audit import person_report, person_report_pdf, person_report_view, recent_sign_in
from audit.models import Outbox, Record
from audit.person_report import Counted, Line, Period, Report
from audit.record_page import Pill
from audit.viewer import Viewer
from tests.audit.sealers import sealed, sealing
from tests.staff import drained, member, newest
from tests.world import World, build, token

PRIVACY = ("audit.view_record", "audit.view_personal", "audit.export_record")
PIA = Viewer("staff:1", "Pia", records=True, personal=True)


def today() -> date:
    return datetime.now(UTC).date()  # as it is now: a run may go on past midnight


def year() -> Period:
    return Period(today() - timedelta(days=365), today())


def days() -> dict[str, str]:
    return {"since": year().since.isoformat(), "until": year().until.isoformat()}


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def uid(world: World) -> str:
    """Łukasz, of whom three calls are in the log: one with an outcome, one refused; and one of somebody else."""
    person = {"sub": "lukasz-7", "email": "łukasz@example.com"}
    answer = world.verify(token=token(**person), request={"ip": "203.0.113.9", "user_agent": "Claude-User/1.0"})
    touched = {"status": "ok", "count": 2, "resources": [{"type": "memory", "id": f"m_{n}"} for n in (41, 42)]}
    world.post(f"/v1/records/{answer['record']}/outcome", touched)
    world.verify(token=token(**person), tool="memory.capture", resource={"type": "memory", "id": "m_9"})
    world.verify(token=token(sub="bob-of-sales"))
    world.verify(token=token(**person | {"email": "old@example.com"}))
    return str(answer["subject"]["uid"])


def pia(name: str = "pia", recent: bool = True) -> HttpClient:
    http = member(name, *PRIVACY)
    session = http.session
    session.pop(recent_sign_in.SIGNED_IN_AT, None)
    if recent:
        session[recent_sign_in.SIGNED_IN_AT] = int(datetime.now(UTC).timestamp())
    session.save()
    return http


def url(uid: str, tail: str = "") -> str:
    return f"/admin/people/{uid}/report/{tail}"


# --- the page -------------------------------------------------------------------------------------------------


def test_get_counts_and_shows_nothing_personal(world: World, uid: str) -> None:
    text = pia().get(url(uid)).content.decode()
    assert "4 records: 3 calls, of which 1 was refused" in text
    assert "ukasz" not in text and "203.0.113.9" not in text and "m_41" not in text
    assert not Outbox.objects.filter(members__action="person.report").exists()


def test_post_shows_everything_and_is_recorded(world: World, uid: str) -> None:
    answer = pia().post(url(uid), days())
    text = answer.content.decode()
    assert "no-store" in answer["Cache-Control"]
    for words in (
        "łukasz@example.com", "lukasz-7", "old@example.com", "Claude was allowed memory.recall",
        "memory m_41\nmemory m_42",
        "Claude was refused memory.capture: not granted", "memory m_9", "203.0.113.9", "Claude-User/1.0",
        "AI clients were allowed to use this person&#x27;s data twice; 1 call was refused.",
    ):  # fmt: skip
        assert words in text, words
    assert "bob-of-sales" not in text
    told = newest("staff")
    assert (told["action"], told["subject"], told["count"], told["form"]) == ("person.report", uid, 4, "page")
    assert (told["since"], told["until"]) == (days()["since"], days()["until"])
    assert b"ukasz" not in repr(told).encode()


def test_the_next_report_tells_who_looked(world: World, uid: str) -> None:
    http = pia()
    http.post(url(uid), days())
    drained()
    report = person_report.gather(PIA, uid, year(), {})
    assert [sentence for _, sentence in report.looks] == [
        f"Staff member 1 made a report of all that was done with the data of user {uid[:10]}…{uid[-3:]}"
    ]
    assert report.counted.looks == 1 and "1 act of staff" in http.get(url(uid)).content.decode()


def test_without_the_right_there_is_the_count_alone(world: World, uid: str) -> None:
    ada = member("ada", "audit.view_record", "audit.export_record")
    text = ada.get(url(uid)).content.decode()
    assert "a privacy officer can make it" in text and "Show the report" not in text
    assert ada.post(url(uid), days()).status_code == 403 and ada.post(url(uid, "pdf/"), days()).status_code == 403
    otto = member("otto", "audit.view_personal", "audit.export_record")
    assert otto.get(url(uid)).status_code == otto.post(url(uid), days()).status_code == 403
    with pytest.raises(PermissionDenied):  # asked again where it is read
        person_report.gather(Viewer("staff:9", "Ada", records=True), uid, year(), {})
    with pytest.raises(PermissionDenied):
        person_report.gather(Viewer("staff:9", "Ada", personal=True), uid, year(), {})
    assert not Outbox.objects.filter(members__action="person.report").exists()


def test_what_cannot_be_told_is_not_shown(world: World, uid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **more: Any) -> None:
        raise DatabaseError("no")

    monkeypatch.setattr(person_report_view, "tell", refuse)
    for tail in ("", "pdf/"):
        answer = pia(f"pia{tail[:3]}").post(url(uid, tail), days())
        assert answer.status_code == 302 and answer["Location"].startswith(url(uid))


@pytest.mark.parametrize(
    "days",
    [
        {}, {"since": "", "until": ""}, {"since": "x", "until": "2026-01-01"},
        {"since": "2026-02-02", "until": "2026-01-01"},
        {"since": "1600-01-01", "until": "2026-01-01"}, {"since": "9999-12-31", "until": "9999-12-31"},
        {"since": "2001-01-01", "until": "2026-01-01"}, {"since": "2026-01-01\x00", "until": "2026-01-02"},
    ],
)  # fmt: skip
def test_a_period_that_is_none_is_a_field_error(world: World, uid: str, days: dict[str, str]) -> None:
    http = pia()
    for tail in ("", "pdf/"):
        answer = http.post(url(uid, tail), days)
        assert answer.status_code == 400 and answer.context["form"].errors
    assert http.get(url(uid), days).status_code in (200, 400)


@pytest.mark.parametrize("name", ["usr_nobody", "alice@example.com", "usr_" + "x" * 60])
def test_nobody_has_no_report(world: World, uid: str, name: str) -> None:
    assert pia().get(url(name)).status_code == 404


def test_the_period_bounds_what_is_told(world: World, uid: str) -> None:
    before = Period(today() - timedelta(days=9), today() - timedelta(days=2))
    report = person_report.gather(PIA, uid, before, {})
    assert (report.counted.records, report.lines, report.proof) == (0, [], [])
    assert "no call for this person is in the log" in report.sentence


def test_more_than_one_report_takes_is_said(world: World, uid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(person_report, "MOST", 2)
    report = person_report.gather(PIA, uid, year(), {})
    assert (report.counted.records, report.counted.reach) == (2, today())
    assert "There are more records than the 2" in report.limits[0]
    text = pia().get(url(uid)).content.decode()
    assert "More than 2 records" in text


def test_an_outcome_stands_with_its_call_and_alone_without_it(
    world: World, uid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = person_report.gather(PIA, uid, year(), {"claude": "Claude"}).lines
    assert [line.sentence for line in lines] == [
        "Claude was allowed memory.recall", "Claude was refused memory.capture: not granted",
        "Claude was allowed memory.recall",
    ]  # fmt: skip
    assert "memory.recall for Claude ended well, 2 items" in lines[2].said
    monkeypatch.setattr(person_report, "MOST", 3)  # the newest three: the first call is not among them
    alone = person_report.gather(PIA, uid, year(), {"claude": "Claude"}).lines
    assert alone[2].sentence == "memory.recall for Claude ended well, 2 items"
    assert ("What was touched", "memory m_41\nmemory m_42") in alone[2].kept


def test_a_record_of_somebody_else_tells_nothing_of_them_whatever_its_column_says(world: World, uid: str) -> None:
    answer = world.verify(token=token(sub="bob-of-sales"), request={"ip": "203.0.113.77"})
    bob, other = Record.objects.get(id=answer["record"]), Record.objects.filter(subject=uid, decision="allow")[0]
    world.post(f"/v1/records/{bob.id}/outcome", {"status": "ok", "resources": [{"type": "memory", "id": "m_of_bob"}]})
    with connections["owner"].cursor() as cursor:
        cursor.execute("ALTER TABLE audit_record DISABLE TRIGGER muniment_append_only")
        cursor.execute("UPDATE audit_record SET subject = %s WHERE at = %s", [uid, bob.at])
        cursor.execute("UPDATE audit_record SET parent = NULL WHERE parent = %s", [other.id])
        cursor.execute("UPDATE audit_record SET parent = %s WHERE parent = %s", [other.id, bob.id])
        cursor.execute("ALTER TABLE audit_record ENABLE TRIGGER muniment_append_only")
    connections["owner"].close()
    report = person_report.gather(PIA, uid, year(), {})
    assert not any(word in str(report) for word in ("bob-of-sales", "m_of_bob", "203.0.113.77"))
    assert sum("does not open" in line.fault for line in report.lines) == 1


def test_what_was_forgotten_is_said_so(world: World, uid: str) -> None:
    with connections["owner"].cursor() as cursor:
        cursor.execute("DELETE FROM audit_datakey WHERE holder = %s", [uid])
        cursor.execute("UPDATE audit_subject SET erased_at = now(), sub = NULL, email = NULL WHERE uid = %s", [uid])
    connections["owner"].close()
    report = person_report.gather(PIA, uid, year(), {})
    assert all("forgotten" in line.fault and not line.kept for line in report.lines)
    assert "was erased on" in report.state and not any("@" in value for _, value in report.who)


# --- the PDF --------------------------------------------------------------------------------------------------


def test_the_pdf_is_recorded_and_kept_nowhere(world: World, uid: str) -> None:
    answer = pia().post(url(uid, "pdf/"), days())
    assert answer.status_code == 200 and answer["Content-Type"] == "application/pdf"
    assert answer.content.startswith(b"%PDF-") and answer["Cache-Control"].startswith("no-store")
    assert re.search(rf'filename="muniment-report-{uid}-[\d-]+\.pdf"', answer["Content-Disposition"])
    assert (newest("staff")["action"], newest("staff")["form"]) == ("person.report", "pdf")


def test_the_pdf_asks_who_did_not_sign_in_lately(world: World, uid: str) -> None:
    answer = pia(recent=False).post(url(uid, "pdf/"), days())
    back = quote(f"{url(uid)}?since={days()['since']}&until={days()['until']}", safe="")
    assert (answer.status_code, answer["Location"]) == (302, f"{reverse('admin:sign_in_again')}?next={back}")
    assert not Outbox.objects.filter(members__action="person.report").exists()


def test_the_pdf_takes_the_right_to_take_out_records(world: World, uid: str) -> None:
    http = member("pat", "audit.view_record", "audit.view_personal")
    assert http.post(url(uid, "pdf/"), days()).status_code == 403
    assert pia().get(url(uid, "pdf/")).status_code == 405


def report(**members: Any) -> Report:
    line = Line(datetime(2026, 11, 23, 10, tzinfo=UTC), "Claude was allowed memory.recall", Pill("allow", "Allowed"),
                ["by grant 3"], [("From address", "203.0.113.9")])  # fmt: skip
    usual: dict[str, Any] = {
        "uid": "usr_1", "period": Period(date(2026, 1, 1), date(2026, 11, 23)),
        "made": datetime(2026, 11, 24, tzinfo=UTC),
        "who": [("E-mail address", "łukasz@example.com")], "state": "Known.", "sentence": "Once.",
        "parts": [("By client", [("Claude", 1)])], "lines": [line], "looks": [], "proof": ["Proven."], "limits": [],
        "counted": Counted(1, 1, 0, 0, None),
    }  # fmt: skip
    return Report(**usual | members)


def told(one: Report) -> str:
    return "\n".join(f.getPlainText() for f in person_report_pdf.story(one) if isinstance(f, Paragraph))


@pytest.mark.parametrize("name", ["Łukasz Żółć", "Ελένη Παπαδοπούλου", "Олена", "Nguyễn Thị Hồng", "José", "<b>&amp;"])
def test_names_print_as_they_are(name: str) -> None:
    one = report(who=[("Name", name)])
    assert name in told(one) and "[U+" not in told(one)
    assert person_report_pdf.render(one).startswith(b"%PDF-")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("李雷", "[U+674E][U+96F7]"), ("a\u202eb", "a[U+202E]b"), ("x\u200by", "x[U+200B]y"), ("\ue000", "[U+E000]")],
)
def test_what_the_font_lacks_is_a_code_point_and_said(text: str, shown: str) -> None:
    found = told(report(who=[("Name", text)]))
    assert shown in found and person_report_pdf.LACKING in found


def test_what_is_written_from_right_to_left_is_said() -> None:
    found = told(report(who=[("Name", "דוד")]))
    assert "דוד" in found and person_report_pdf.BACKWARDS in found
    assert person_report_pdf.BACKWARDS not in told(report()) and person_report_pdf.LACKING not in told(report())


def test_a_decomposed_name_is_composed() -> None:
    assert "José" in told(report(who=[("Name", "Jose\u0301")]))


def test_each_page_has_its_number_and_both_fonts_are_in_the_file() -> None:
    made = person_report_pdf.render(report(lines=[report().lines[0]] * 200))
    assert len(re.findall(rb"/Type /Page\b", made)) > 3
    assert len(re.findall(rb"/FontFile2", made)) == 2


def test_what_does_not_fit_a_line_or_a_page_still_prints() -> None:
    line = report().lines[0]
    wide = Line(line.at, "x" * 5000, line.decided, ["y" * 20000], [("What was touched", "memory m\n" * 400)], "")
    assert person_report_pdf.render(report(lines=[wide])).startswith(b"%PDF-")


def test_the_checkpoint_that_covers_it_is_told(world: World, uid: str, tmp_path: Path) -> None:
    assert "no signed checkpoint yet" in " ".join(person_report.gather(PIA, uid, year(), {}).proof)
    with sealing(tmp_path) as sealer:
        sealed(sealer)
    said = " ".join(person_report.gather(PIA, uid, year(), {}).proof)
    assert re.search(r"its checkpoint of [\d,]+ records, signed on .* has the root hash [0-9a-f]{64}", said)
    world.verify(token=token(sub="lukasz-7", email="łukasz@example.com"))
    assert "1 record of this report came after that checkpoint" in " ".join(
        person_report.gather(PIA, uid, year(), {}).proof
    )
