"""Holds, rules and floors are what the log tells of them, however they were changed; where they are not, verification
finds it, and retention deletes nothing."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connections

from audit import holds, live_keeping
from audit.models import Hold, Outbox, RetentionRule
from audit.retention import changes, running
from tests.audit.retained import findings, past, there
from tests.audit.test_holds import WHY, staff
from tests.staff import drained

BEGIN, END = datetime(2025, 1, 1, 1, 2, 3, 456, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
RELEASED = "UPDATE audit_hold SET release_asked_by = 'staff:1', released_by = 'staff:2', released_at = now()"
TABLES = ("audit_hold", "audit_retentionrule", "audit_retentionfloor")


@pytest.fixture
def pia(db: None) -> Iterator[Any]:
    yield staff("pia", "audit.add_hold", "audit.release_hold", "audit.change_retentionrule")
    connections["owner"].close()


def found() -> list[str]:
    return [one.message for one in live_keeping.findings()]


def made(pia: Any) -> tuple[Hold, RetentionRule]:
    """A hold that covers all that one can, a rule, and a floor."""
    hold = holds.place(pia, client="claude", backend="inner", tool="memory.recall", since=BEGIN, until=END, **WHY)
    rule = changes.save_rule(pia, None, {"type": "decision", "sensitive": False, "days": 90}, "a basis", "a reason")
    changes.set_floors(pia, {"soc-2": "warn"}, "a reason")
    return hold, rule


def test_what_staff_do_and_what_psql_does_is_as_the_log_tells(pia: Any, owner_url: str) -> None:
    hold, rule = made(pia)
    ben = staff("ben", "audit.release_hold")
    assert found() == [], "on its way"
    drained()
    assert found() == [], "and there"
    holds.ask_release(pia, hold.pk, "over")
    holds.refuse_release(ben, hold.pk, "not yet")
    changes.save_rule(pia, rule.pk, {"days": 400}, "a basis", "longer")
    with psycopg.connect(owner_url, autocommit=True) as psql:
        psql.execute("INSERT INTO audit_retentionfloor VALUES ('pci-dss', 'refuse'), ('hipaa', 'off')")
        psql.execute("UPDATE audit_retentionrule SET tenant = 'acme'")
        psql.execute("INSERT INTO audit_hold (matter, reason, tenant, since, placed_by, placed_at, release_reason)"
                     " VALUES ('M', 'r', 'acme', now(), 'staff:1', now(), '')")  # fmt: skip
        psql.execute(RELEASED + " WHERE tenant IS NOT NULL")
    assert found() == []
    holds.ask_release(pia, hold.pk, "over")
    holds.release(ben, hold.pk)
    changes.remove_rule(pia, rule.pk, "a reason")
    changes.set_floors(pia, {"soc-2": "off"}, "a reason")
    drained()
    assert found() == []


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (RELEASED, "released, and the log tells otherwise"), ("DELETE FROM audit_hold", "is gone"),
        ("UPDATE audit_hold SET until = since + interval '1 us'", "does not cover"),
        ("UPDATE audit_hold SET tenant = 'nobody'", "does not cover"),
        ("UPDATE audit_hold SET id = id + 1", "is gone"),
        ("UPDATE audit_retentionrule SET days = 1", "retention rule"), ("DELETE FROM audit_retentionrule", "rule"),
        ("UPDATE audit_retentionrule SET sensitive = NULL", "retention rule"),
        ("INSERT INTO audit_retentionrule (days, basis, changed_by, changed_at) VALUES (1, 'x', 'x', now())", "rule"),
        ("UPDATE audit_retentionfloor SET mode = 'off'", "'soc-2'"), ("DELETE FROM audit_retentionfloor", "'soc-2'"),
    ],
)  # fmt: skip
def test_what_the_owner_does_with_the_triggers_off_is_found(pia: Any, owner_url: str, attack: str, words: str) -> None:
    made(pia)
    drained()
    with psycopg.connect(owner_url) as psql:
        for table in TABLES:
            psql.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        psql.execute(attack)
        for table in TABLES:
            psql.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")
    assert words in found()[0]


def test_a_release_under_a_made_up_entry_of_another_kind_is_found(pia: Any) -> None:
    """The serving role may make entries: one beside the change keeps the trigger quiet."""
    hold, _ = made(pia)
    with connections["default"].cursor() as cursor:
        cursor.execute(f"BEGIN; INSERT INTO audit_outbox (kind, xact, at, members, actor) VALUES"
                       f" ('hold', '', now(), '{json.dumps({'action': 'looked', 'hold': hold.pk})}', 'staff:1');"
                       f" {RELEASED}; COMMIT")  # fmt: skip
    assert found() == [f"legal hold {hold.pk} is released, and the log tells otherwise"]


def test_entries_of_any_shape_are_no_fault(pia: Any) -> None:
    for members in (
        {"action": "placed", "hold": "x"}, {"action": "placed", "hold": [1]}, {"action": {}}, {"action": "released"},
        {"action": "released", "hold": {}}, {"action": "row.update", "table": "audit_hold", "new": 3},
        {"action": "row.update", "table": ["audit_hold"], "new": {"id": {}}}, {"action": "row.delete", "old": "x"},
        {"action": "placed", "hold": 10**9, "since": 3}, {"action": "rule.added", "rule": True, "new": {}},
        {"action": "floor.set", "preset": 3, "new": "warn"}, {"action": "floor.set", "preset": "x" * 99, "new": []},
    ):  # fmt: skip
        for kind in ("hold", "retention"):
            Outbox.objects.create(kind=kind, members=members, private={}, at=BEGIN, actor="staff:1", xact="")
    assert found() == [f"legal hold {10**9} is gone, and the log does not tell why"]


def test_by_a_rule_that_the_log_does_not_tell_nothing_is_deleted(pia: Any, owner_url: str, tmp_path: Path) -> None:
    with past(tmp_path, 2025, 1, 10) as log:
        rule = changes.save_rule(pia, None, {"type": "decision", "days": 3650}, "a basis", "a reason")
        old = log.call(3)
        log.at(2025, 6, 1).call()
        with psycopg.connect(owner_url) as psql:
            psql.execute("ALTER TABLE audit_retentionrule DISABLE TRIGGER muniment_keeping_change")
            psql.execute("UPDATE audit_retentionrule SET days = 1")
            psql.execute("ALTER TABLE audit_retentionrule ENABLE TRIGGER muniment_keeping_change")
        run = log.retain()
        assert run.state == "failed" and f"retention rule {rule.pk} is not what the log tells" in run.words
        assert there(*old) == 3 and findings() == ["keeping-unexplained None"]
        changes.save_rule(pia, rule.pk, {"type": "decision", "days": 1}, "a basis", "now it is on record")
        assert log.retain().state == "done" and running.go_on(wait=0) is None
        assert log.retain().deleted + there(*old) >= 0 and there(*old) == 0 and findings() == []
