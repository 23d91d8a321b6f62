"""Reading all matches by index: every one once, in the order of the log, whatever the page's size."""

from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.db import connection

from audit import search, search_pages
from audit.models import Head
from audit.search import Query
from audit.viewer import Viewer
from tests.audit.filling import START, fill
from tests.audit.test_search import ALL, COMBINATIONS, DAY, KEY, expected, mixed


@pytest.fixture
def filled(db: None) -> int:
    fill(mixed(600))
    return Head.objects.get().next


def read(viewer: Viewer = ALL, first: int = 0, upto: int = 10_000, **more: Any) -> list[Any]:
    found = []
    query = Query(**{"since": START - DAY, "until": START + DAY} | more)
    for _, rows in search.pages(viewer, query, first, upto, ["at", "id::text"]):
        found += rows
    return found


def test_all_matches_come_once_and_in_the_order_of_the_log(filled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_pages, "PAGE", 7)
    for filters, lookups in COMBINATIONS:
        found = read(filters=filters, lookups=lookups, upto=filled)
        assert [row[2] for row in found] == sorted(expected(filters, lookups)), filters
        assert [row[0] for row in found] == sorted(row[0] for row in found)


def test_a_page_tells_where_the_next_one_starts_even_where_nothing_matches(filled: int) -> None:
    query = Query(START - DAY, START + DAY, {"client": "nobody"})
    assert list(search.pages(ALL, query, 3, filled)) == [(filled, [])]
    assert list(search.pages(ALL, query, filled, filled)) == []


def test_the_window_is_half_open_and_so_is_the_range(filled: int) -> None:
    at = [row[2] for row in read(upto=filled)]
    assert [row[2] for row in read(since=at[5], until=at[9])] == at[5:9]
    assert [row[0] for row in read(first=5, upto=9)] == [5, 6, 7, 8]


def test_a_viewer_of_some_tenants_reads_those_alone(filled: int) -> None:
    some = Viewer("staff:2", "Eve", records=True, tenants=frozenset({"acme"}))
    calls = [row for kind in ("decision", "outcome") for row in read(filters={"tenant": "acme", "type": kind})]
    assert sorted(read(some)) == sorted(calls) != [], "and nothing that staff did"
    assert read(Viewer("staff:3", "Bob", records=True, tenants=frozenset())) == []


def test_who_may_not_read_is_refused_before_the_first_page(filled: int) -> None:
    with pytest.raises(PermissionDenied):
        search.pages(Viewer("staff:4", "Kim"), Query(START, START + DAY), 0, 1)
    with pytest.raises(ValueError, match="not a filter"):
        search.pages(ALL, Query(START, START + DAY, {"statement": "x"}), 0, 1)
    with pytest.raises(ValueError, match="not a filter"):
        search.pages(ALL, Query(START, START + DAY, {}, {"holder": KEY}), 0, 1)


def test_no_transaction_stays_open_between_pages(filled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_pages, "PAGE", 50)
    for _ in search.pages(ALL, Query(START - DAY, START + DAY), 0, filled):
        status = connection.connection.info.transaction_status
        assert status.name == "IDLE"
