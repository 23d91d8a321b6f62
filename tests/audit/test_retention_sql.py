"""The rules as SQL say of every record what they say in Python; and statements cannot pretend to be sensitive."""

import random
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from audit.batching import uuid7
from audit.holds_sql import covered_sql
from audit.models import Hold, Record
from audit.retention.rules import KEPT, TYPES, Facts, Rule, counts
from audit.retention.sql import Question, Window
from muniment import statements
from tests.audit.filling import START, fill

NOW = START + timedelta(days=100)
ALL = Window(START - timedelta(days=400), NOW, 0, 2**62)
CALLS = ("decision", "evaluation", "introspection")


def canonical(statement: dict[str, Any]) -> bytes:
    """As the recorder writes it: what is null is left out."""
    return statements.encode({name: value for name, value in statement.items() if value is not None})


def put(entries: list[dict[str, Any]]) -> list[Record]:
    """Records with canonical statements."""
    return fill(entries, encode=canonical)


def ruled(rules: list[Rule], holds: list[Hold] | None = None) -> dict[int, int | None]:
    """Index -> id of the rule that counts, as SQL says it."""
    asked = Question(rules, NOW, covered_sql(holds or []))
    sql, params = asked._found(ALL)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT index, rule FROM ({sql}) AS found", params)
        return {index: asked.order[place - 1].id if place else None for index, place in cursor.fetchall()}


def due(rules: list[Rule], now: datetime = NOW, holds: list[Hold] | None = None) -> tuple[list[int], int]:
    """The indices that are due and not held, and how many are held."""
    asked = Question(rules, now, covered_sql(holds or []))
    with connection.cursor() as cursor:
        cursor.execute(*asked.ranges(ALL))
        rows = cursor.fetchall()
    assert rows[-1][0] is None
    return [i for first, size, _ in rows[:-1] for i in range(first, first + size)], rows[-1][1]


def test_for_every_record_sql_chooses_the_rule_that_python_chooses(db: None) -> None:
    chance = random.Random(6)
    names = [None, "a", "b"]
    entries = [
        {"type": chance.choice([*TYPES, *KEPT]), "backend": chance.choice(names), "client": chance.choice(names),
         "tenant": chance.choice(names), "sensitive": chance.choice([True, False])}
        for _ in range(400)
    ]  # fmt: skip
    put(entries)
    for _ in range(12):
        rules = [
            Rule(number, chance.randint(1, 500), chance.choice([None, *TYPES]), chance.choice(names),
                 chance.choice(names), chance.choice(names), chance.choice([None, True, False]))
            for number in range(chance.randint(1, 6))
        ]  # fmt: skip
        found = ruled(rules)
        for index, entry in enumerate(entries):
            call = entry["type"] in CALLS
            facts = Facts(**(entry | {"sensitive": entry["sensitive"] if call else None}))  # type: ignore[arg-type]
            expected = counts(rules, facts)
            assert found.get(index) == (expected.id if expected else None), (entry, rules)


def test_only_a_member_of_the_statement_makes_a_call_sensitive(db: None) -> None:
    put([
        {"sensitive": True}, {"sensitive": False}, {"sensitive": None},
        {"reason": '"sensitive":true', "sensitive": False}, {"reason": ',"sensitive":true,"', "sensitive": False},
        {"reason": "sensitive\":true", "sensitive": None},
    ])  # fmt: skip
    found = ruled([Rule(1, 30, sensitive=True), Rule(2, 20, sensitive=False)])
    assert found == {0: 1, 1: 2, 2: 2, 3: 2, 4: 2, 5: 2}


def test_an_outcome_goes_with_its_call_by_the_rule_of_its_call(db: None) -> None:
    late = timedelta(hours=5)
    calls = put([{"sensitive": True}, {"sensitive": False}])
    put([
        {"type": "outcome", "parent": calls[0].id, "at": START + late, "sensitive": None},
        {"type": "outcome", "parent": calls[1].id, "sensitive": None},
    ])  # fmt: skip
    rules = [Rule(1, 90, type="decision", sensitive=True), Rule(2, 10, type="decision", sensitive=False)]
    assert ruled(rules) == {0: 1, 1: 2, 2: 1, 3: 2}
    # Not before its call, and not after it although it came hours later.
    assert due(rules, calls[1].at + timedelta(days=10)) == ([], 0)
    assert due(rules, calls[1].at + timedelta(days=10, milliseconds=2)) == ([1, 3], 0)
    assert due(rules, calls[0].at + timedelta(days=90, milliseconds=2)) == ([0, 1, 2, 3], 0)


def test_an_outcome_whose_call_is_gone_is_kept_as_long_as_the_call_could_have_been(db: None) -> None:
    put([{"type": "outcome", "parent": uuid7(START), "sensitive": None}])
    yes, no = Rule(1, 90, type="decision", sensitive=True), Rule(2, 10, type="decision", sensitive=False)
    assert ruled([yes, no]) == {0: 1} and ruled([yes]) == {0: 1} and ruled([no]) == {0: 2}


def test_ranges_leave_out_what_is_held_and_what_is_kept_for_ever(db: None) -> None:
    put([{"client": "ios"} if n in (2, 5) else {"type": "policy"} if n == 7 else {} for n in range(10)])
    assert due([Rule(1, 30)]) == ([0, 1, 2, 3, 4, 5, 6, 8, 9], 0)
    assert due([Rule(1, 30)], holds=[Hold(client="ios")]) == ([0, 1, 3, 4, 6, 8, 9], 2)
    assert due([Rule(1, 300)]) == ([], 0) and due([]) == ([], 0)


def test_two_records_of_one_index_do_not_make_a_range_reach_further(db: None) -> None:
    put([{} for _ in range(6)])
    copy = Record.objects.get(index=2)
    copy.id, copy.at = uuid7(START - timedelta(days=1)), START - timedelta(days=1)
    copy.save(force_insert=True)
    held = [Hold(since=START + timedelta(seconds=3), until=START + timedelta(seconds=4))]
    assert due([Rule(1, 30)], holds=held) == ([0, 1, 2, 4, 5], 1)
