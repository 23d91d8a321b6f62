"""The daily keys of callers that could not be established: destroyed when they are old enough, told first, and no
finding; under a hold they stay."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from audit.models import DataKey, Record, RetentionStep
from audit.protection import keyring
from audit.retention import daily_keys, running
from muniment import statements
from tests.audit.retained import Past, findings, hold, past, released, rule


def later(days: int = 40) -> datetime:
    """When a key of today is old enough."""
    return datetime.now(UTC) + timedelta(days=days)


@pytest.fixture
def log(db: None, tmp_path: Path) -> Iterator[Past]:
    with past(tmp_path, 2026, 1, 1) as made:
        made.now = datetime.now(UTC)
        made.world.verify(token="not.a.token", request={"ip": "203.0.113.9"})
        made.call()
        yield made


def daily() -> list[str]:
    """The holders of daily keys."""
    return sorted(DataKey.objects.filter(holder__startswith="backend:").values_list("holder", flat=True))


def made(day: str, backend: str = "other") -> str:
    """A daily key of another day."""
    holder = f"backend:{backend}:{day}"
    keyring.get(holder, create=True)
    return holder


def test_old_daily_keys_are_destroyed_after_the_log_was_told_and_nothing_is_found(log: Past) -> None:
    [holder] = daily()
    young = made(f"{later().date()}")
    log.seal()
    run = running.run(later(), wait=0)
    assert run.state == "waiting" and holder in daily()
    log.seal()
    run = running.go_on(wait=0) or run
    assert run.state == "done" and daily() == [young]
    told = statements.decode(bytes(Record.objects.get(type="retention").statement))
    assert (told["action"], told["holders"], told["count"], told["days"]) == ("keys.destroyed", [holder], 1, 30)
    assert Record.objects.filter(holder=holder).exists()  # what was recorded stays; it cannot be read
    keyring.clear()
    assert findings() == []


def test_a_daily_key_that_somebody_else_destroyed_is_found(log: Past) -> None:
    [holder] = daily()
    log.seal()
    DataKey.objects.using("owner").filter(holder=holder).delete()
    keyring.clear()
    assert [found.split()[0] for found in findings()] == ["key-destroyed"]


def test_a_key_that_is_young_stays(log: Past) -> None:
    before = daily()
    assert log.retain(later(29)).state == "done"
    assert daily() == before and not RetentionStep.objects.exists()


def test_a_hold_of_the_backend_or_the_time_keeps_its_daily_keys_until_it_is_released(log: Past) -> None:
    [ours] = daily()
    others = made("2020-05-05")
    placed = [
        hold(backend="inner"),
        hold(since=datetime(2020, 5, 6, tzinfo=UTC), until=datetime(2020, 5, 7, tzinfo=UTC)),
    ]
    hold(subject="usr_nobody")
    assert log.retain(later()).state == "done" and daily() == sorted([ours, others])
    for one in placed:
        released(one)
    assert log.retain(later()).state == "done" and daily() == []
    assert findings() == []


def test_a_hold_that_is_placed_after_the_log_was_told_keeps_the_key(log: Past) -> None:
    before = daily()
    log.seal()
    running.run(later(), wait=0)
    log.seal()
    hold(backend="inner")
    run = running.go_on(wait=0)
    assert run is not None and run.state == "done" and daily() == before


def test_keys_of_users_staff_and_the_system_and_strange_names_are_left_alone(log: Past) -> None:
    for holder in ("backend:x:2020-13-40", "backend:2020-01-01", "backend:x:2020-01-01:y", "staff:1", "system"):
        keyring.get(holder, create=True)
    before = set(DataKey.objects.exclude(holder__in=daily()).values_list("holder", flat=True))
    assert log.retain(later()).state == "done"
    assert before <= set(DataKey.objects.values_list("holder", flat=True))
    assert [holder for holder in daily() if "inner" in holder] == []


def test_many_keys_are_told_in_records_that_fit(log: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daily_keys, "PAGE", 7)
    for number in range(20):
        made(f"2020-01-{number + 1:02}", "b" * 63 + "-")
    longest = [f"backend:{'b' * 64}:2020-01-01"] * daily_keys.MOST_HOLDERS
    members = {"action": "keys.destroyed", "holders": longest, "type": "retention", "actor": "system"}
    assert len(statements.dump(members)) < 48_000
    assert len(daily_keys.due(later())) == 21


def test_rules_and_keys_go_in_one_run(log: Past) -> None:
    rule(10)
    log.now = later()
    log.call()
    run = log.retain(later())
    assert run.state == "done" and run.deleted > 0 and daily() == []
    assert findings() == []
