"""Fourteen months of a log: what a rule ends goes; what a hold covers, and what others are judged by, stays; nothing is
found by the verification, in bundles neither, and the same done by hand is."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO, StringIO

import psycopg
import pytest
from django.core.management import call_command

from audit import bundling, rollups, verification, verification_runs
from audit.models import PublishedKey, Record
from audit.viewer import Viewer
from muniment.keys import Trust
from muniment.verify import verify_file
from tests.audit.retained import Past, findings, hold, past, rule, tables, there
from tests.reset import reset

MONTHS = [(2025 + m // 12, m % 12 + 1) for m in range(14)]  # January 2025 to February 2026
NOW = datetime(2026, 2, 20, 12, tzinfo=UTC)


class Year:
    """What was recorded in each month, by what it is."""

    def __init__(self, log: Past) -> None:
        self.log = log
        self.calls: list[list[str]] = []
        self.held: list[list[str]] = []
        self.refused: list[list[str]] = []


@pytest.fixture(scope="module")
def year(migrated: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Year]:
    reset()
    with past(tmp_path_factory.mktemp("year"), *MONTHS[0], 1) as log:
        made = Year(log)
        for month in MONTHS:
            made.calls.append(log.at(*month, 3, 9).call(5, outcome=True))
            made.held.append(log.at(*month, 12).call(1, user="held", outcome=True))
            made.refused.append(log.at(*month, 18).call(2, tool="memory.capture"))
            log.world.verify(token=None)
            log.seal()
        yield made
    reset()


def test_fourteen_months_are_retained_by_rule(year: Year, superuser_url: str) -> None:
    log = year.log
    rollups.catch_up()
    before = rollups.totals(Viewer("test", True, True), "decision", datetime(2025, 1, 1, tzinfo=UTC), NOW, "1w")
    user = str(Record.objects.get(id=year.held[0][0]).subject)
    hold(subject=user)
    rule(90, type="decision")
    rule(200, type="decision", client="claude", backend="inner")
    run = log.retain(NOW)
    assert (run.state, run.words) == ("done", "")
    for number, (at_year, at_month) in enumerate(MONTHS):
        calls, end = year.calls[number], NOW - timedelta(days=200)
        old = datetime(at_year, at_month, 3, 9, tzinfo=UTC) < end
        assert there(*calls) == (0 if old else 5), (at_year, at_month)
        assert there(*year.held[number]) == 1
        late = datetime(at_year, at_month, 18, tzinfo=UTC) < end
        assert there(*year.refused[number]) == (0 if late else 2)
    assert run.deleted == run.due and run.held == 2 * 7
    assert not Record.objects.filter(parent__in=[c for calls in year.calls[:6] for c in calls]).exists()
    assert Record.objects.filter(type__in=["policy", "key"]).count() > 5
    assert findings() == []
    assert verification_runs.sample(500).findings == []
    assert in_a_bundle(log, datetime(2025, 1, 1, tzinfo=UTC), NOW) == []
    assert log.retain(NOW).deleted == 0  # run again, nothing is left to do
    after = rollups.totals(Viewer("test", True, True), "decision", datetime(2025, 1, 1, tzinfo=UTC), NOW, "1w")
    assert after == before  # the charts keep their counts
    the_same_by_hand(year, superuser_url)


def in_a_bundle(log: Past, since: datetime, until: datetime) -> list[str]:
    """What `muniment verify` finds in a bundle of this time."""
    made = BytesIO()
    bundling.write(made, bundling.Wanted(since, until))
    writer = PublishedKey.objects.get(use="writer")
    trust = Trust(writers={writer.key_id: bytes(writer.public)}, logs={log.sealer.key_id: log.sealer.public})
    return [finding.code for finding in verify_file(made, trust, []).findings]


def the_same_by_hand(year: Year, superuser_url: str) -> None:
    """A table that somebody drops in psql is found."""
    [victim] = [name for name in tables() if name.endswith("202510")]
    first, last = span(superuser_url, victim)
    with psycopg.connect(superuser_url) as owner:
        owner.execute(f"ALTER TABLE audit_record DETACH PARTITION {victim}")
        owner.execute(f"DROP TABLE {victim}")
    found = verification.verify().findings
    missing = [finding for finding in found if finding.code == "record-missing"]
    assert missing and missing[0].index == first
    words = " ".join(finding.message for finding in missing)
    assert f"{first:,}" in words and f"{last:,}" in words
    with pytest.raises(SystemExit) as ended:
        call_command("verify_log", stdout=StringIO(), stderr=StringIO())
    assert ended.value.code == 1


def span(url: str, name: str) -> tuple[int, int]:
    """First and last index of a table."""
    with psycopg.connect(url) as owner:
        found = owner.execute(f"SELECT min(index), max(index) FROM {name}").fetchone()
        assert found is not None
        return found[0], found[1]
