"""A time of which retention deleted records: every page, file and proof of it works, and says that it is not all."""

import zipfile
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connections
from django.utils import timezone

from audit.erasure import asking, erasing
from audit.models import PublishedKey, Record, RetentionRun, RetentionStep
from audit.retention import gone
from muniment import exported
from tests.audit.exporting import AUDITOR, desk, staff
from tests.audit.retained import OUTCOME, Past, findings, past, rule, there
from tests.audit.test_erasure import ASKED, CALL
from tests.staff import administrator

SAID = "Records of January 2025 to February 2025 were deleted by the rules of retention"
RANGE = "since=2025-01-01&until=2025-07-01"
DAYS = {"since": "2025-01-01", "until": "2025-07-01"}


@pytest.fixture
def log(db: None, tmp_path: Path) -> Iterator[Past]:
    with past(tmp_path, 2025, 1, 10) as made:
        yield made


@pytest.fixture
def left(log: Past) -> dict[str, str]:
    """What stands before and behind the gap, which has a call of January and its outcome of February; the one user of
    both was erased."""
    log.call(2, **CALL)
    [edge] = log.at(2025, 1, 31, 23, 59, 59).call(**CALL)
    log.at(2025, 2, 1, 0, 0, 1)
    assert log.world.post(f"/v1/records/{edge}/outcome", OUTCOME).status_code == 201
    [stays] = log.call(user="bob")
    [newest] = log.at(2025, 6, 1).call(outcome=True, **CALL)
    outcome = str(Record.objects.get(parent=edge).id)
    rule(125)
    assert log.retain(datetime(2025, 6, 6, tzinfo=UTC)).deleted == 4
    assert there(edge, outcome) == 0 and there(stays, newest) == 2
    uid = str(Record.objects.get(id=newest).subject)
    asking.ask(staff("pia", "audit.add_erasure"), uid, **ASKED)
    erasing.work()
    log.seal()
    return {"edge": edge, "outcome": outcome, "stays": stays, "newest": newest, "uid": uid}


def test_pages_over_a_gap_work_and_say_so(log: Past, left: dict[str, str]) -> None:
    http, uid = administrator(), left["uid"]
    http.raise_request_exception = False

    def text(url: str, status: int = 200, post: Any = None) -> str:
        answer = http.get(url) if post is None else http.post(url, post)
        body = b"".join(answer) if answer.streaming else answer.content  # type: ignore[arg-type]
        assert answer.status_code == status and b"alice" not in body.lower(), (url, answer.status_code)
        return body.decode(errors="replace")

    for page in ("", "proof/", "bundle/"):
        assert "only as long as they are retained" in text(f"/admin/records/{left['edge']}/{page}", 404)
        text(f"/admin/records/{left['newest']}/{page}")
    text(f"/admin/records/{left['outcome']}/verify/", 404, {})
    text(f"/admin/records/{left['newest']}/verify/", 200, {})
    text(f"/admin/records/{left['newest']}/details/", 200, {})
    assert SAID in text(f"/admin/records/?{RANGE}")
    assert SAID in text(f"/admin/records/?{RANGE}&tenant=nobody"), "also where nothing is found"
    assert "rules of retention" not in text("/admin/records/?since=2025-03-01&until=2025-07-01")
    assert SAID in text(f"/admin/people/{uid}/report/", 200, DAYS)
    assert text(f"/admin/people/{uid}/report/pdf/", 200, DAYS).startswith("%PDF")
    for page in (f"user/{uid}/", "client/claude/", "tool/inner/memory.recall/"):
        text(f"/admin/timeline/{page}")
    assert findings() == []


def test_files_over_a_gap_are_made_verify_and_say_so(
    log: Past, left: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "MUNIMENT_EXPORT_PERSONAL", True)
    folder = tmp_path / "exports"
    folder.mkdir(0o700)
    with desk(folder, monkeypatch) as made:
        owner, trust = staff("lea", *AUDITOR, "audit.view_personal"), made.trust
        trust.logs[log.sealer.key_id] = log.sealer.public
        trust.writers |= {one.key_id: bytes(one.public) for one in PublishedKey.objects.filter(use="writer")}
        for kind in ("jsonl", "csv", "parquet", "ocsf", "bundle", "evidence"):
            given: dict[str, Any] = {"columns": ("time", "index", "sub", "email"), "personal": True, "reason": "a test"}
            export = made.export(
                owner, name=kind, format=kind, **(given if kind in ("jsonl", "csv", "parquet") else {})
            )
            log.seal()
            run = made.run(export, datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 5, 1, tzinfo=UTC), file=f"x.{kind}")
            run = made.worked(run)
            assert run.state == "done", (kind, run.words)
            report, facts = exported.verify(folder / (run.file + exported.SUFFIX), trust)
            assert [one.line for one in report.findings] == [] and facts.deleted == ["2025-01", "2025-02"], kind
            assert "records of 2025-01, 2025-02 had been deleted by rule" in "\n".join(exported.words(report, facts))
            assert b"alice" not in made.path(run).read_bytes().lower()
        with zipfile.ZipFile(made.path(run)) as pack:
            assert "Records of 2025-01, 2025-02, by the rules of retention" in pack.read("index.html").decode()


def test_months_are_told_as_spans_and_to_the_microsecond(db: None) -> None:
    run = RetentionRun.objects.using("owner").create(state="done", began_at=timezone.now())
    deleted = {"2023-12": 1, "2024-01": 2, "2024-02": 1, "2024-04": 1, "2024-05": 0}
    for month, number in deleted.items():
        for _ in range(2):  # of two runs
            RetentionStep.objects.using("owner").create(
                run=run.pk, month=date.fromisoformat(f"{month}-01"), outbox=1, due=3, deleted=number
            )
    connections["owner"].close()
    begin, leap = datetime(2023, 1, 1, tzinfo=UTC), datetime(2024, 2, 29, 23, tzinfo=UTC)
    assert "Records of December 2023 to February 2024 and April 2024 were" in gone.words(begin, timezone.now())
    assert gone.months(leap, leap + timedelta(hours=1)) == [date(2024, 2, 1)]
    march = datetime(2024, 3, 1, tzinfo=UTC)
    assert gone.months(march, datetime(2024, 4, 1, tzinfo=UTC)) == [] == gone.months(march, march)
    assert gone.months(march - timedelta(microseconds=1), march) == [date(2024, 2, 1)]
    assert gone.months(march, datetime(2024, 4, 1, 0, 0, 0, 1, tzinfo=UTC)) == [date(2024, 4, 1)]
    assert gone.words(march, datetime(2024, 4, 1, tzinfo=UTC)) == ""
