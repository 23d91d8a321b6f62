"""A run of retention: what is due goes, what is not stays, and the log accounts for every gap."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from audit import alerts, retention, retention_deciding, retention_deleting
from audit.models import Outbox, Record, RetentionRule, RetentionRun, RetentionStep
from muniment import statements
from tests.audit.retained import Past, findings, gaps, hold, past, rule, tables, there
from tests.audit.test_partitions import drop_months


@pytest.fixture
def log(db: None, owner_url: str, tmp_path: Path) -> Iterator[Past]:
    with psycopg.connect(owner_url, autocommit=True) as owner:
        drop_months(owner)
    with past(tmp_path, 2025, 1, 10) as made:
        yield made
    with psycopg.connect(owner_url, autocommit=True) as owner:
        drop_months(owner)


def said(kind: str, action: str) -> list[dict[str, object]]:
    """The statements of a type and action."""
    found = [statements.decode(bytes(r.statement)) for r in Record.objects.filter(type=kind).order_by("index")]
    return [statement for statement in found if statement.get("action") == action]


def test_what_is_due_goes_once_that_is_sealed_and_the_log_still_verifies(log: Past) -> None:
    old = log.at(2025, 1, 10).call(6, outcome=True)
    young = log.at(2025, 3, 1).call(4)
    rule(30)
    log.seal()
    run = retention.run(log.now, wait=0)
    assert run.state == "waiting" and there(*old) == 6
    log.seal()
    run = retention.go_on(wait=0) or run
    assert (run.state, run.due, run.deleted, run.held, run.words) == ("done", 12, 12, 0, "")
    assert there(*old) == 0 and there(*young) == 4 and gaps() == 12
    [told] = said("retention", "deleted")
    assert sum(size for _, size in told["ranges"]) == 12 and told["month"] == "2025-01"  # type: ignore[attr-defined]
    assert findings() == []


def test_without_a_rule_nothing_is_deleted(log: Past) -> None:
    old = log.call(3)
    log.at(2026, 1, 1).call()
    assert log.retain().state == "done" and there(*old) == 3
    rule(30, backend="another")
    assert log.retain().state == "done" and there(*old) == 3
