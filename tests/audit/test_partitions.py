"""Months of records: the default partition catches what has none, and loses nothing when the month is made."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from threading import Event
from uuid import UUID, uuid4

import psycopg
import pytest
from django.db import OperationalError
from hypothesis import given
from hypothesis import strategies as st

from audit import maintenance, search
from audit.batching import uuid7
from audit.maintenance import make_partition, make_partitions, months
from audit.models import Record
from tests.audit import chain
from tests.audit.recorders import at_once, entry, receipts, running
from tests.live import until


def drop_months(owner: psycopg.Connection) -> None:
    """Take away the months that other tests made; the default partition stays."""
    found = owner.execute("SELECT relid::regclass::text FROM pg_partition_tree('audit_record') WHERE level = 1")
    for (name,) in found.fetchall():
        if name != "audit_record_default":
            owner.execute(f"DROP TABLE {name}")


@pytest.fixture(autouse=True)
def no_months(db: None, owner_url: str) -> Iterator[None]:
    with psycopg.connect(owner_url, autocommit=True) as owner:
        drop_months(owner)
        yield
        assert chain.findings(owner_url) == []


def partitions() -> dict[str, int]:
    """Records in each partition that has some."""
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"]) as owner:
        return dict(owner.execute("SELECT tableoid::regclass::text, count(*) FROM audit_record GROUP BY 1").fetchall())


def fill(*moments: datetime) -> list[UUID]:
    """A record at each moment, in this order."""
    times = list(moments)
    found = []
    with running(clock=lambda: times[0]) as recorder:
        while times:
            found += [receipt.id for receipt in receipts(recorder.record([entry(str(times[0].date()))]))]
            times.pop(0) if len(times) > 1 else times.clear() if len(found) == len(moments) else None
    return found


def test_rows_move_into_their_month_when_it_is_made(db: None, owner_url: str) -> None:
    edge = datetime(2026, 3, 1, tzinfo=UTC)
    moments = [edge - timedelta(microseconds=1), edge, datetime(2026, 3, 31, 23, 59, 59, 999999, tzinfo=UTC)]
    ids = fill(*moments, datetime(2026, 4, 1, tzinfo=UTC))
    before = chain.records(owner_url)
    assert partitions() == {"audit_record_default": 4}
    assert make_partition(date(2026, 3, 17))
    assert partitions() == {"audit_record_default": 2, "audit_record_202603": 2}
    assert not make_partition(date(2026, 3, 1))
    assert make_partition(date(2026, 2, 1)) and make_partition(date(2026, 4, 1))
    assert partitions() == {"audit_record_202602": 1, "audit_record_202603": 2, "audit_record_202604": 1}
    assert chain.records(owner_url) == before
    for record in ids:
        assert (found := search.by_id(record)) is not None and found.id == record


def test_new_records_go_into_their_month_and_are_found_by_id(db: None) -> None:
    assert make_partitions(date(2026, 11, 30)) == [
        date(2026, 11, 1),
        date(2026, 12, 1),
        date(2027, 1, 1),
        date(2027, 2, 1),
    ]
    ids = fill(
        *(datetime(year, month, 15, tzinfo=UTC) for year, month in ((2026, 11), (2026, 12), (2027, 1), (2027, 9)))
    )
    assert partitions() == {f"audit_record_{name}": 1 for name in ("202611", "202612", "202701", "default")}
    assert make_partitions(date(2026, 11, 1)) == []
    assert [found.id for record in ids if (found := search.by_id(record))] == ids
    assert search.by_id(uuid4()) is None and search.by_id(UUID(int=2**128 - 1)) is None


def test_a_look_up_by_id_reads_one_partition(db: None, owner_url: str) -> None:
    make_partitions(date(2026, 1, 1))
    [record] = fill(datetime(2026, 2, 15, tzinfo=UTC))
    at = search.time_of(record)
    window = [at - timedelta(milliseconds=1), at + timedelta(milliseconds=2), record]
    with psycopg.connect(owner_url) as owner:
        plan = owner.execute("EXPLAIN SELECT 1 FROM audit_record WHERE at >= %s AND at < %s AND id = %s", window)
        text = "\n".join(line for (line,) in plan.fetchall())
    assert "audit_record_202602" in text and "audit_record_202601" not in text and "default" not in text


def test_a_month_is_made_while_records_are_written(db: None, owner_url: str) -> None:
    """Into the very month that is being written to; no call fails, nor waits for long."""
    done = Event()
    waits: list[float] = []

    def write() -> int:
        count = 0
        while not done.is_set():
            started = time.monotonic()
            receipts(recorder.record([entry(), entry()]))
            waits.append(time.monotonic() - started)
            count += 2
        return count

    def make() -> None:
        try:
            until(lambda: len(waits) > 10, 30)
            for month in months(datetime.now(UTC).date(), 4):
                assert make_partition(month)
            before = len(waits)
            until(lambda: len(waits) > before + 10, 30)
        finally:
            done.set()

    with running() as recorder:
        *counts, made = at_once([write, write, write, make])
    assert made is None
    assert Record.objects.count() == sum(counts) > 20
    assert list(partitions()) == [f"audit_record_{datetime.now(UTC):%Y%m}"]
    assert max(waits) < 10


def test_a_lock_that_cannot_be_had_is_asked_for_briefly_and_again(
    db: None, owner_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "ATTEMPTS", 3)
    with psycopg.connect(owner_url) as reader:
        reader.execute("LOCK TABLE audit_record_default IN SHARE MODE")
        started = time.monotonic()
        with pytest.raises(OperationalError):
            make_partition(date(2026, 6, 1))
        assert 0.5 < time.monotonic() - started < 30
        reader.rollback()
    assert make_partition(date(2026, 6, 1))


def test_each_partition_is_guarded_as_the_table_is(db: None, owner_url: str) -> None:
    make_partition(date(2026, 7, 1))
    with psycopg.connect(owner_url) as owner:
        found = owner.execute(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'audit_record_202607'::regclass AND tgenabled = 'O'"
        ).fetchall()
        indexes = owner.execute(
            "SELECT relid::regclass::text, count(*) FROM pg_partition_tree('audit_record') t"
            " JOIN pg_index i ON i.indrelid = t.relid AND i.indisvalid GROUP BY 1"
        ).fetchall()
    assert {name for (name,) in found} == {"muniment_append_only", "muniment_no_truncate"}
    assert len({count for _, count in indexes}) == 1


@given(st.dates(date(1970, 1, 1), date(9000, 1, 1)), st.integers(0, 40))
def test_months_are_consecutive_first_days(start: date, count: int) -> None:
    found = months(start, count)
    assert len(found) == count and all(month.day == 1 for month in found)
    if found:
        assert (found[0].year, found[0].month) == (start.year, start.month)
    for earlier, later in pairwise(found):
        assert (later.year * 12 + later.month) - (earlier.year * 12 + earlier.month) == 1


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)))
def test_an_id_holds_its_time(at: datetime) -> None:
    made = uuid7(at)
    assert made.version == 7 and made.variant == "specified in RFC 4122"
    # The window in which search.by_id looks; floating point is a little off in far centuries.
    assert timedelta(milliseconds=-1) <= at - search.time_of(made) < timedelta(milliseconds=2)
