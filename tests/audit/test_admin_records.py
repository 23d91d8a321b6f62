"""Evidence > Records: sentences, exact filters, paging by key, and that nobody changes a record by any URL."""

import json
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
from django.db import connection
from django.test import Client as HttpClient
from django.test.utils import CaptureQueriesContext

from audit import record_page, record_words, search, search_scan
from audit.models import Record
from audit.reasons import REASONS
from tests.staff import administrator, drained, member
from tests.world import World, build, token


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


def page(http: HttpClient, query: str = "", status: int = 200) -> Any:
    response = http.get(f"/admin/records/{query}")
    assert response.status_code == status
    return response


def titles(response: Any) -> list[str]:
    return [row.title for row in response.context["rows"]]


def test_the_list_speaks_in_sentences(world: World, http: HttpClient) -> None:
    world.verify()
    world.verify(tool="memory.capture")
    world.verify(token=None)
    assert titles(page(http, "?type=decision")) == [
        "An unidentified caller was refused memory.recall: no token",
        "Claude was refused memory.capture: not granted",
        "Claude was allowed memory.recall",
    ]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("decision=deny", 2), ("decision=allow", 1), ("reason=not_granted", 1), ("client=claude", 2),
        ("tool=memory.capture", 1), ("backend=inner&type=decision", 3), ("type=outcome", 0), ("flagged=1", 0),
        ("flagged=0&type=decision", 3), ("client=gone", 0), ("tool=never.declared", 0),
    ],
)  # fmt: skip
def test_each_filter_is_an_exact_match(world: World, http: HttpClient, query: str, found: int) -> None:
    world.verify()
    world.verify(tool="memory.capture")
    world.verify(token=None)
    assert len(titles(page(http, f"?window=1h&{query}"))) == found


def test_a_user_is_found_by_uid_and_never_by_e_mail(world: World, http: HttpClient) -> None:
    uid = world.verify()["subject"]["uid"]
    world.verify(token=token(sub="bob"))
    assert len(titles(page(http, f"?subject={uid}"))) == 1
    refused = page(http, "?subject=alice@example.com", status=400)
    assert b"must not be in a URL" in refused.content and "rows" not in refused.context


def walk(http: HttpClient, url: str, way: str) -> list[list[Any]]:
    """The pages from one on, as their records' ids in the order of the list."""
    found = []
    while url:
        context = http.get(url).context
        found.append([row.record.id for row in context["rows"]])
        url = getattr(context["paging"], way) or context["paging"].further
    return found


@pytest.mark.parametrize("sort", ["", "&sort=oldest"])
def test_pages_are_walked_both_ways_without_gap_or_repeat(
    world: World, http: HttpClient, monkeypatch: pytest.MonkeyPatch, sort: str
) -> None:
    monkeypatch.setattr(search, "PAGE", 3)
    for _ in range(8):
        world.verify()
    drained()
    expected = list(Record.objects.order_by("at" if sort else "-at").values_list("id", flat=True))
    start = f"/admin/records/?window=1h{sort}"
    down = walk(http, start, "next")
    assert [record for part in down for record in part] == expected
    last = http.get(start).context["paging"].last
    back = walk(http, last, "previous")
    assert back[0] == expected[-3:] and {i for part in back for i in part} == set(expected)
    assert http.get(last).context["paging"].first == f"/admin/records/?window=1h{sort}"
    assert not http.get(last).context["paging"].next


def test_the_list_never_reads_without_bounds_and_never_what_is_protected(world: World, http: HttpClient) -> None:
    world.verify()
    drained()
    for query in ("?window=1h", "?decision=allow&client=claude", "?before=4000000000000000", "?after=0&reason=granted"):
        with CaptureQueriesContext(connection) as captured:
            page(http, query)
        over_records = [q["sql"] for q in captured.captured_queries if "audit_record" in q["sql"]]
        assert 1 <= len(over_records) <= 4
        for sql in over_records:
            assert f"LIMIT {search_scan.BUDGET}" in sql or '"at" IN (' in sql or '"parent" IN (' in sql
            assert not re.search(r"\bOFFSET\b|LIKE|disclosures", sql)


@pytest.mark.parametrize(
    "query",
    [
        "?window=9y",
        "?before=x",
        "?after=-1",
        "?before=99999999999999999999",
        "?request_key=zz",
        "?since=yesterday",
        "?until=2026-01-01",
        "?since=2026-01-02&until=2026-01-01",
        "?since=9999-12-31T23:59:59-23:00",
        "?since=0001-01-01",
        "?flagged=2",
        "?client=a%00b",
        "?tenant=a%00b",
        "?tool=" + "x" * 300,
        "?sort=sideways",
        "?resource_key=" + "A" * 32,
        "?scope=a%0ab",
    ],
)
def test_nonsense_in_the_url_is_said_not_crashed_on(http: HttpClient, query: str) -> None:
    page(http, query, status=400)


def test_an_empty_list_says_what_to_do_next(http: HttpClient) -> None:
    drained()
    assert b"No record in this time" in page(http, "?since=2001-01-01&until=2001-01-02").content
    assert b"Clear the filters" in page(http, "?decision=deny").content


def test_a_record_says_how_it_was_decided_and_what_would_help(world: World, http: HttpClient) -> None:
    denied = world.verify(tool="memory.capture")["record"]
    response = http.get(f"/admin/records/{denied}/")
    text = response.content.decode()
    states = [step.state for step in response.context["steps"]]
    assert states == ["passed"] * 5 + ["stopped", "unknown"]
    assert "No grant lets Claude use memory:write." in text and "Staff decide" in text
    assert "/admin/clients/grant/add/?client=claude&amp;scope=memory%3Awrite" in text
    assert "protected detail" in text and "alice" not in text


def test_an_allowed_record_shows_its_outcome_and_its_place_in_the_log(world: World, http: HttpClient) -> None:
    answer = world.verify()
    world.post(f"/v1/records/{answer['record']}/outcome", {"status": "ok", "count": 3, "duration_ms": 1234})
    response = http.get(f"/admin/records/{answer['record']}/")
    text = response.content.decode()
    assert "ended well" in text and "touching 3 items" in text and "1,234 ms" in text
    receipt = response.context["receipt"]
    assert receipt["leaf_holds"] and receipt["batch"].first <= answer["receipt"]["index"]


def test_what_was_not_established_is_said_so(world: World, http: HttpClient) -> None:
    record = world.verify(token=token()[:-8] + "AAAAAAAA")["record"]
    text = http.get(f"/admin/records/{record}/").content.decode()
    assert text.count("not established") >= 4 and "id.example" not in text


def test_a_record_that_was_changed_raises_an_alarm(world: World, http: HttpClient) -> None:
    record = Record.objects.get(id=world.verify()["record"])
    record.statement = bytes(record.statement).replace(b"allow", b"aIIow")
    assert not record_page.receipt(record)["leaf_holds"]
    for statement in (b"\x00not a statement", b'{"type":"decision","reason":"rate_limited","limits":5}'):
        record.statement = statement
        shown = record_page.page(record, {})
        assert shown["title"] == record_page.UNREADABLE and record_page.row(record, {}).pill.kind == "deny"


def test_nobody_adds_changes_or_deletes_a_record_by_any_url(world: World, http: HttpClient) -> None:
    record = Record.objects.get(id=world.verify()["record"])
    drained()
    before = sorted((r.index, bytes(r.statement)) for r in Record.objects.all())
    pages = ["/admin/records/", f"/admin/records/{record.id}/", "/admin/records/find/"]
    stock = [
        f"/admin/audit/record/{tail}"
        for tail in ("", "add/", f"{record.id}/", f"{record.id}/change/", f"{record.id}/delete/")
    ]
    api = [f"/v1/records/{record.id}", "/v1/records"]
    for url in [*pages, *stock, *api]:
        for method in ("post", "put", "patch", "delete"):
            if (url, method) == ("/admin/records/find/", "post"):
                continue
            status = getattr(http, method)(url, {}, content_type="application/json").status_code
            assert status in (404, 405), (url, method, status)
    for url in stock:
        assert http.get(url).status_code == 404, url
    drained()
    assert sorted((r.index, bytes(r.statement)) for r in Record.objects.all()) == before


def test_records_are_shown_to_those_who_may_see_them(world: World) -> None:
    record = world.verify()["record"]
    auditor, other = member("ada", "audit.view_record"), member("otto", "clients.view_grant")
    for url in ("/admin/records/", f"/admin/records/{record}/"):
        assert auditor.get(url).status_code == 200
        assert other.get(url).status_code == 403
        assert HttpClient().get(url).status_code == 302
    assert other.post("/admin/records/find/", {"kind": "request_id", "value": "x"}).status_code == 403


def test_a_policy_record_shows_what_changed(world: World, http: HttpClient) -> None:
    http.post(f"/admin/clients/client/{world.client.pk}/act/suspend/", {"reason": "an incident"})
    drained()
    record = Record.objects.filter(type="policy").latest("at")
    response = http.get(f"/admin/records/{record.id}/")
    assert response.context["title"] == "Staff member 1 changed client claude"
    [(_, [change])] = response.context["changes"]
    assert (change.column, change.old, change.new) == ("status", "active", "suspended")
    assert "<bdi>an incident</bdi>" in response.content.decode()  # every auditor reads why


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_every_reason_has_its_steps(reason: str) -> None:
    allowed = reason == "granted"
    statement = {
        "type": "decision", "decision": "allow" if allowed else "deny", "reason": reason, "tool": "t", "client": "c",
        "subject": "usr_1", "issuer": "https://i", "backend": "b", "required": ["s"], "token_scopes": [], "grants": [1],
        "agent": {"mode": "interactive", "chain": [], "scopes": []},
    }  # fmt: skip
    steps = record_words.steps(statement, {"c": "Client"})
    assert [s.state for s in steps].count("stopped") == (0 if allowed else 1)
    assert steps[-1].state == ("passed" if allowed else "unknown")
    assert record_words.title(statement, {}) and record_words.why(statement, {})


@pytest.mark.parametrize("kind", ["decision", "outcome", "policy", "staff", "denials", "notice", "of the future"])
def test_a_statement_with_nothing_in_it_is_still_shown(kind: str) -> None:
    record = SimpleNamespace(
        statement=json.dumps({"type": kind}).encode(), leaf=bytes(32), index=0, id=None, at=None, parent=None
    )
    assert record_page.row(cast(Record, record), {}).title
    assert record_page.facts({"type": kind}, {}) is not None
