"""What goes and when, on the page and by `manage.py retention`; and what that command says and ends with."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connections

from audit.management.commands import retention as command
from audit.models import RetentionRun
from audit.retention import preview as retention_preview
from audit.retention import running
from audit.retention.preview import Line, preview
from audit.retention.rules import Rule
from tests.audit.retained import Past, hold, past, rule, there

NOW = datetime(2026, 3, 15, 10, tzinfo=UTC)


@pytest.fixture
def log(db: None, tmp_path: Path) -> Iterator[Past]:
    with past(tmp_path, 2026, 1, 5) as made:
        made.call(4)
        made.call(1, user="held")
        made.at(2026, 2, 10).call(3)
        made.at(2026, 3, 14).call(2)
        yield made


def told(*arguments: str) -> str:
    out = StringIO()
    call_command("retention", *arguments, stdout=out, stderr=out)
    return out.getvalue()


def lines(now: datetime = NOW, **more: Any) -> list[str]:
    return [f"{line.when(now.date())}: {line.words}" for line in preview(now, **more).lines]


def test_each_month_is_counted_by_the_rule_that_counts(log: Past) -> None:
    assert lines() == []
    rule(28, type="decision")
    assert lines() == [
        "with the next run: 5 records of January 2026 go",
        "each day until 29 March 2026: 3 records of February 2026 go",
        "from 29 March 2026 to 29 April 2026: 2 records of March 2026 go",
    ]
    rule(59, type="decision", client="claude")
    assert lines()[0] == "each day until 1 April 2026: 5 records of January 2026 go"


def test_what_is_held_is_counted_as_staying(log: Past) -> None:
    from audit.models import Record

    rule(28, type="decision")
    hold(subject=str(Record.objects.filter(type="decision").order_by("index")[4].subject))
    assert lines()[0] == "with the next run: 4 records of January 2026 go; 1 stays under a hold"


def test_large_numbers_and_those_that_were_not_counted_to_the_end() -> None:
    made = Line(date(2026, 1, 1), Rule(1, 28), 1_215_442, 12_001, date(2026, 1, 29), date(2026, 3, 1))
    assert made.words == "1,203,441 records of January 2026 go; 12,001 stay under a hold"
    capped = Line(date(2026, 1, 1), Rule(1, 28), 20_000, 0, date(2026, 1, 29), date(2026, 3, 1), more=True)
    assert capped.words == "at least 20,000 records of January 2026 go"
    one = Line(date(2026, 1, 1), Rule(1, 28), 1, 0, date(2026, 1, 29), date(2026, 3, 1))
    assert one.words == "1 record of January 2026 goes"
    held = Line(date(2026, 1, 1), Rule(1, 28), 6, 6, date(2026, 1, 29), date(2026, 3, 1))
    assert held.words == "nothing goes of January 2026; 6 records stay under a hold"


def test_counting_is_bounded(log: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    rule(28, type="decision")
    monkeypatch.setattr(retention_preview, "MOST", 5)
    assert lines()[0] == "with the next run: at least 5 records of January 2026 go"
    monkeypatch.undo()
    found = preview(NOW, seconds=0.0)
    assert found.lines == [] and found.uncounted == [date(2026, 1, 1), date(2026, 2, 1), date(2026, 3, 1)]
    assert len(preview(NOW, most_months=1).lines) == 1


def test_a_month_that_takes_too_long_is_counted_in_part_or_left_out(log: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    rule(28, type="decision")
    slow = {retention_preview.MOST}

    def count(asked: Any, window: Any, most: int, seconds: float) -> list[Any]:
        with connections["default"].cursor() as cursor:
            cursor.execute("SET statement_timeout = '200ms'")
            try:
                cursor.execute("SELECT pg_sleep(%s)", [5 if most in slow else 0])
            finally:
                cursor.execute("RESET statement_timeout")
        return [(1, most, 0)]

    monkeypatch.setattr(retention_preview, "_count", count)
    assert lines()[0] == "with the next run: at least 20,000 records of January 2026 go"
    slow.add(retention_preview.FEW)
    assert preview(NOW).uncounted[0] == date(2026, 1, 1)


def test_the_command_says_what_would_go_and_deletes_nothing(log: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told("--dry-run") == "There is no retention rule: every record is kept.\n"
    rule(28, type="decision")
    said = told("--dry-run")
    assert "5 records of January 2026 go (calls with their outcomes)." in said and "Legal holds in force: 0." in said
    assert not RetentionRun.objects.exists() and there(*log.calls) == 10


def test_the_command_runs_it_and_its_status_says_how_it_ended(log: Past) -> None:
    rule(28, type="decision")
    log.seal()
    with pytest.raises(CommandError) as ended:
        told("--wait", "0")
    assert ended.value.returncode == 1 and "waiting" in str(ended.value)
    log.seal()
    said = told("--wait", "0")
    assert said == "8 of 8 records that were due are deleted; 0 stay under a hold.\n"
    assert there(*log.calls) == 2
    assert told("--wait", "0") == "No record is due.\n"


def test_wrong_input_is_one_line_and_status_2(log: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["--wait", "-1"], ["--wait", "3601"], ["--wait", "x"], ["--wait", "²"], ["--until", "x"]):
        with pytest.raises((CommandError, SystemExit)) as ended:
            call_command("retention", *arguments)
        assert getattr(ended.value, "returncode", getattr(ended.value, "code", None)) in (1, 2), arguments

    def taken(**more: Any) -> None:
        raise running.Running

    monkeypatch.setattr(command.running, "run", taken)
    with pytest.raises(CommandError) as refused:
        told()
    assert refused.value.returncode == 2 and "another process" in str(refused.value)
