"""Holds, retention rules and floors that are changed past the application are on record: the database tells of them."""

from typing import Any

import psycopg
import pytest

from audit import holds, record_words
from audit.models import Hold, Outbox, RetentionRule
from audit.retention import changes
from tests.audit.test_holds import WHY, staff
from tests.staff import drained, newest

NEW_RULE = "INSERT INTO audit_retentionrule (days, basis, changed_by, changed_at) VALUES (1, 'x', 'staff:1', now())"
RELEASED = "UPDATE audit_hold SET release_asked_by = 'staff:1', released_by = 'staff:2', released_at = now()"


def told() -> list[tuple[str, str, str]]:
    """Kind, action and actor of what is in the outbox about keeping."""
    rows = Outbox.objects.filter(kind__in=["hold", "retention"]).order_by("id")
    return [(row.kind, (row.members or {})["action"], row.actor) for row in rows]


@pytest.fixture
def pia(db: None) -> Any:
    return staff("pia", "audit.add_hold", "audit.release_hold", "audit.change_retentionrule")


def test_what_psql_does_to_holds_rules_and_floors_is_on_record(pia: Any, owner_url: str) -> None:
    holds.place(pia, client="claude", **WHY)
    before = len(told())
    with psycopg.connect(owner_url, autocommit=True) as psql:
        psql.execute(RELEASED)
        psql.execute(NEW_RULE)
        psql.execute("UPDATE audit_retentionrule SET days = 2")
        psql.execute("UPDATE audit_retentionrule SET days = 2")  # as it was
        psql.execute("DELETE FROM audit_retentionrule")
        psql.execute("INSERT INTO audit_retentionfloor VALUES ('soc2', 'off')")
        role = f"database:{psql.info.user}"
    assert told()[before:] == [
        ("hold", "row.update", role), ("retention", "row.insert", role), ("retention", "row.update", role),
        ("retention", "row.delete", role), ("retention", "row.insert", role),
    ]  # fmt: skip
    drained()
    said = newest("hold")
    assert said["role"] == role.removeprefix("database:")
    assert (said["old"]["released_at"], said["new"]["released_by"]) == (None, "staff:2")
    assert WHY["reason"] not in str(said) and WHY["matter"] not in str(said), "what is free text stays out"


def test_what_staff_do_is_told_once_by_them(pia: Any) -> None:
    hold = holds.place(pia, client="claude", **WHY)
    holds.ask_release(pia, hold.pk, "the court has decided")
    rule = changes.save_rule(pia, None, {"type": "decision", "days": 90}, "no longer needed", "a policy")
    changes.remove_rule(pia, rule.pk, "not wanted")
    actor = f"staff:{pia.pk}"
    assert told() == [
        ("hold", "placed", actor), ("hold", "release.asked", actor), ("retention", "rule.added", actor),
        ("retention", "rule.removed", actor),
    ]  # fmt: skip


@pytest.mark.parametrize("model", [Hold, RetentionRule], ids=lambda model: model.__name__)
def test_nobody_empties_them_unseen(db: None, owner_url: str, model: Any) -> None:
    with psycopg.connect(owner_url) as psql, pytest.raises(psycopg.errors.InsufficientPrivilege):
        psql.execute(f"TRUNCATE {model._meta.db_table}")


@pytest.mark.parametrize(("table", "what"), [("audit_hold", "legal hold"), ("audit_retentionrule", "retention rule")])
def test_a_person_reads_that_it_was_done_past_the_pages(table: str, what: str) -> None:
    kind = "hold" if table == "audit_hold" else "retention"
    said = {"type": kind, "action": "row.delete", "table": table, "actor": "database:dba"}
    assert record_words.title(said, {}) == f"Somebody in the database as dba removed a {what}, past these pages"
    assert "dba" in record_words.title(said | {"table": [], "action": "row.{"}, {}), "whatever it holds"
