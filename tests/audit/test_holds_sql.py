"""What holds cover, as SQL: each criterion by itself, all of one hold together, and any hold of several."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection

from audit.holds_sql import covered_sql, covers_backend_day
from audit.models import Hold
from tests.audit.filling import START, fill

HOUR = timedelta(hours=1)


def covered(*holds: Hold) -> list[int]:
    """The indices that these holds cover; and nothing else is left, asked the other way."""
    sql, params = covered_sql(holds)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT index FROM audit_record WHERE {sql} ORDER BY index", params)
        found = [index for (index,) in cursor.fetchall()]
        cursor.execute(f"SELECT index FROM audit_record WHERE ({sql}) IS NOT TRUE ORDER BY index", params)
        rest = [index for (index,) in cursor.fetchall()]
    assert sorted(found + rest) == list(range(6))
    return found


@pytest.fixture
def records(db: None) -> None:
    fill(
        [
            {"subject": "usr_a", "tenant": "acme"},
            {"subject": "usr_b", "client": "ios", "tool": "memory.capture"},
            {"subject": "usr_a", "backend": "other", "client": "ios"},
            {"subject": None, "client": None, "tool": None, "backend": None, "type": "staff"},
            {"tenant": "o'brien", "tool": "x%s"},
            {"subject": "usr_a"},
        ],
        HOUR,
    )


CASES: list[tuple[dict[str, Any], list[int]]] = [
    ({"subject": "usr_a"}, [0, 2, 5]), ({"client": "ios"}, [1, 2]), ({"tool": "memory.capture"}, [1]),
    ({"backend": "other"}, [2]), ({"tenant": "acme"}, [0]), ({"tenant": "o'brien"}, [4]), ({"tool": "x%s"}, [4]),
    ({"since": START + 4 * HOUR}, [4, 5]), ({"until": START + 2 * HOUR}, [0, 1]),
    ({"since": START + HOUR, "until": START + 3 * HOUR}, [1, 2]),
    ({"subject": "usr_a", "client": "ios"}, [2]), ({"subject": "usr_a", "until": START + HOUR}, [0]),
    ({"client": "nobody"}, []), ({"client": "' OR true --"}, []),
]  # fmt: skip


def test_a_hold_covers_what_all_that_it_names_is_true_of(records: None) -> None:
    for named, expected in CASES:
        assert covered(Hold(**named)) == expected, named


def test_several_holds_cover_what_any_of_them_does_and_none_covers_nothing(records: None) -> None:
    assert covered(Hold(client="ios"), Hold(tenant="acme")) == [0, 1, 2]
    assert covered() == []


def test_a_hold_that_names_nothing_covers_all_rather_than_nothing(records: None) -> None:
    assert covered(Hold()) == [0, 1, 2, 3, 4, 5]


def test_what_holds_keep_of_callers_who_could_not_be_established() -> None:
    begin = datetime(2026, 3, 2, tzinfo=UTC)
    end = begin + timedelta(days=1)

    def kept(**named: Any) -> bool:
        return covers_backend_day([Hold(**named)], "inner", begin, end)

    assert kept(backend="inner") and kept(client="x") and kept(tenant="x", backend="inner") and kept()
    assert not kept(backend="other") and not kept(subject="usr_a") and not kept(subject="usr_a", backend="inner")
    assert kept(since=end - HOUR) and not kept(since=end) and kept(until=begin + HOUR) and not kept(until=begin)
    assert not covers_backend_day([], "inner", begin, end)
