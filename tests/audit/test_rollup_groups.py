"""Several dimensions of the rollups at once: which combinations there were, how often, and since when."""

from datetime import timedelta

import pytest
from django.core.exceptions import PermissionDenied

from audit import rollups
from audit.viewer import Viewer
from tests.audit.filling import START, fill

ALL = Viewer("staff:1", "Mara", records=True)
DAY = timedelta(days=1)


def counted() -> None:
    while rollups.count():
        pass


def test_combinations_come_most_frequent_first_with_their_first_and_last_day(db: None) -> None:
    refused = {"decision": "deny", "reason": "not_granted"}
    fill([{"client": "a", "tool": "t1", "at": START, **refused}])
    fill([{"client": "b", "tool": "t1", "at": START + DAY, **refused}])
    fill([{"client": "a", "tool": "t1", "at": START + 2 * DAY, **refused}])
    fill([{"client": "a", "tool": "t2", "at": START + 3 * DAY}])
    counted()
    found = rollups.groups(ALL, ["client", "tool"], START, START + 9 * DAY, "1d", reason="not_granted")
    first = rollups.floor(START, "1d")
    assert found == [
        rollups.Group({"client": "a", "tool": "t1"}, 2, first, first + 2 * DAY),
        rollups.Group({"client": "b", "tool": "t1"}, 1, first + DAY, first + DAY),
    ]
    assert rollups.groups(ALL, ["client", "tool"], START, START + 9 * DAY, "1d", most=1, decision="deny") == found[:1]


def test_who_may_not_read_records_gets_no_combinations(db: None) -> None:
    with pytest.raises(PermissionDenied):
        rollups.groups(Viewer("staff:2", "Noor"), ["client"], START, START + DAY, "1d")
