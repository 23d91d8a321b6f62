"""Evidence > Audit search: filters as chips, ids through keyed hashes, how much there is and when, who the users are,
saved searches, pages as files."""

import csv
import re
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib.auth import get_user_model
from django.db import DatabaseError
from django.test import Client as HttpClient
from django.utils import timezone

from audit import records_csv, records_summary, rollups, search_scan
from audit.models import Outbox, Record, SavedSearch, Subject
from audit.recent_sign_in import SIGNED_IN_AT
from tests.audit.filling import START, fill
from tests.staff import administrator, drained, member, newest
from tests.world import World, build, token

LIST = "/admin/records/"
SPAN = "since=2026-03-01&until=2026-04-01"


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def ada(db: None) -> HttpClient:
    """An auditor."""
    return member("ada", "audit.view_record", "audit.export_record")


@pytest.fixture
def pia(db: None) -> HttpClient:
    """A privacy officer."""
    return member("pia", "audit.view_record", "audit.view_personal")


def page(http: HttpClient, query: str = "", status: int = 200) -> Any:
    response = http.get(f"{LIST}?{query}")
    assert response.status_code == status, query
    return response


def found(http: HttpClient, query: str) -> int:
    return len(page(http, query).context["rows"])


def text_of(response: Any) -> str:
    """The words that a reader sees."""
    bare = re.sub(r"<script.*?</script>|<[^>]+>", " ", response.content.decode(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", bare)


def signed_in(http: HttpClient, ago: timedelta = timedelta(0)) -> HttpClient:
    """A browser whose holder signed in so long ago."""
    session = http.session
    session[SIGNED_IN_AT] = int((timezone.now() - ago).timestamp())
    session.save()
    return http


def test_each_of_the_newer_filters_is_an_exact_match(ada: HttpClient) -> None:
    fill([
        {"agent": {"mode": "background"}, "tenant": "acme"}, {"required": ["memory:read", "memory:write"]},
        {"client": None, "subject": None, "decision": "deny", "reason": "token_invalid"},
    ])  # fmt: skip
    for query, number in {
        "mode=background": 1, "mode=api": 0, "tenant=acme": 1, "tenant=acm": 0, "tenant=-": 2, "scope=memory:write": 1,
        "scope=memory:read": 3, "scope=memory": 0, "client=-": 1, "client=-&decision=allow": 0,
        "mode=background&tenant=acme&scope=memory:read&client=claude": 1,
    }.items():  # fmt: skip
        assert found(ada, f"{SPAN}&{query}") == number, query


def test_a_range_of_ones_own_is_in_utc_and_excludes_its_end(ada: HttpClient) -> None:
    fill([{} for _ in range(5)], timedelta(hours=1))  # 9:00 to 13:00
    assert found(ada, "since=2026-03-02T10:00&until=2026-03-02T12:00") == 2
    assert found(ada, "since=2026-03-02T12:00:00%2B02:00&until=2026-03-02T12:00:00Z") == 2
    assert found(ada, "since=2026-03-02T10:00:01Z&until=2026-03-02T12:00:01") == 2
    context = page(ada, "since=2026-03-02T12:00:00%2B02:00&until=2026-03-02T12:00:00Z").context
    assert context["time_words"] == "2 Mar 2026, 10:00 to 12:00" and 'value="2026-03-02T10:00:00"' in str(
        context["form"]["since"]
    )
    assert found(ada, "since=2026-03-02T10:00") == 4, "up to now"


def test_a_filter_that_is_set_is_a_chip_that_takes_it_away(ada: HttpClient) -> None:
    response = page(ada, f"{SPAN}&client=claude&flagged=0&subject=usr_a&trace_key={'ab' * 16}&before=5")
    chips = response.context["chips"]
    assert [(c.label, c.value) for c in chips] == [
        ("User", "usr_a"), ("Client", "claude"), ("Review", "not flagged"), ("Trace", "one, by its keyed hash"),
    ]  # fmt: skip
    without = parse_qs(urlsplit(chips[1].without).query)
    assert without == {
        "since": ["2026-03-01"], "until": ["2026-04-01"], "subject": ["usr_a"], "flagged": ["0"],
        "trace_key": ["ab" * 16],
    }  # fmt: skip
    assert text_of(response).count("Remove the filter") == 4


@pytest.mark.parametrize(
    ("sent", "asked", "key"),
    [
        ({"request": {"id": "r-1"}}, {"kind": "request_id", "value": "r-1"}, "request_key"),
        ({"request": {"trace_id": "t ö"}}, {"kind": "trace_id", "value": " t ö "}, "trace_key"),
        ({"request": {"session_id": "s@e.example"}}, {"kind": "session_id", "value": "s@e.example"}, "session_key"),
        (
            {"resource": {"type": "memory", "id": "m_1"}}, {"resource_type": "memory", "resource_id": "m_1"},
            "resource_key",
        ),
    ],
)  # fmt: skip
def test_ids_are_found_through_their_keyed_hash_and_are_in_no_url(
    world: World, ada: HttpClient, sent: dict[str, Any], asked: dict[str, str], key: str
) -> None:
    world.verify(**sent)
    world.verify()
    answer = ada.post(f"{LIST}find/?window=24h&client=claude", asked)
    assert answer.status_code == 302 and re.search(rf"{key}=[0-9a-f]{{32}}", answer["Location"])
    assert "client=claude" in answer["Location"] and "window=1y" in answer["Location"], "combined with what was set"
    assert not any(
        value.strip() in answer["Location"] for name, value in asked.items() if name in ("value", "resource_id")
    )
    assert len(ada.get(answer["Location"]).context["rows"]) == 1


@pytest.mark.parametrize(
    "asked",
    [
        {}, {"kind": "request_id", "value": ""}, {"kind": "subject", "value": "x"},
        {"kind": "trace_id", "value": "a\x00b"}, {"kind": "trace_id", "value": "x" * 257},
        {"resource_type": "memory", "resource_id": ""}, {"resource_type": "a\x00b", "resource_id": "1"},
    ],
)  # fmt: skip
def test_an_id_that_cannot_be_is_refused_on_the_page(ada: HttpClient, asked: dict[str, str]) -> None:
    answer = ada.post(f"{LIST}find/?window=24h", asked)
    assert answer.status_code == 400 and answer.context["open"]
    assert b'class="bad" role="alert"' in answer.content


def test_a_person_is_looked_up_on_their_page_which_leads_back_here(world: World, ada: HttpClient) -> None:
    uid = world.verify()["subject"]["uid"]
    response = page(ada, "window=24h&decision=allow&subject=usr_x")
    back = response.context["next"]
    assert back == "/admin/records/?window=24h&decision=allow"
    answer = ada.post("/admin/people/", {"person": "alice@example.com", "next": back})
    assert answer["Location"] == f"{back}&subject={uid}"


def test_counts_come_from_the_rollups_where_these_know_all_filters(
    ada: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_summary, "CAP", 20)
    denied = {"decision": "deny", "reason": "not_granted"}
    fill(
        [{"tenant": ("acme", None)[n % 2], **(denied if n % 10 == 0 else {})} for n in range(60)], timedelta(minutes=10)
    )
    records = page(ada, f"{SPAN}&tenant=acme").context["summary"]
    assert (records.count, records.note) == ("20+ records", "Counted from the records themselves.")
    rollups.catch_up()
    counts = page(ada, f"{SPAN}&tenant=acme").context["summary"]
    assert counts.count == "20+ records" and counts.note.startswith(
        "From the counts that are kept of all records, up to"
    )
    assert sum(b.calls for b in counts.chart.buckets) == 30 and sum(b.denied for b in counts.chart.buckets) == 6
    assert page(ada, f"{SPAN}&decision=deny").context["summary"].count == "6 records"
    assert page(ada, f"{SPAN}&decision=deny&type=decision").context["summary"].count == "6 calls"
    user = page(ada, f"{SPAN}&subject=usr_alice&decision=deny").context["summary"]
    assert (user.count, user.note) == ("6 records", "Counted from the records themselves.")
    assert page(ada, f"{SPAN}&client=gone").context["summary"].count == "No record"


def test_a_chart_of_very_many_says_that_it_is_of_the_newest(ada: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_summary, "NEWEST", 55)
    monkeypatch.setattr(records_summary, "CAP", 10)
    made = fill([{} for _ in range(70)], timedelta(hours=2))
    summary = page(ada, f"{SPAN}&subject=usr_alice").context["summary"]
    assert summary.count == "10+ records" and sum(b.calls for b in summary.chart.buckets) == 55
    at = made[15].at
    assert summary.note == f"The chart is of the newest 55, back to {at.day} {at:%b}, {at:%H:%M} UTC."


def test_a_bar_leads_to_the_records_of_its_time(ada: HttpClient) -> None:
    fill([{} for _ in range(30)], timedelta(hours=7))
    for query in (SPAN, f"{SPAN}&subject=usr_alice"):
        rollups.catch_up()
        summary = page(ada, query).context["summary"]
        bars = [(bar.bucket.calls, url) for bar, url in summary.bars if bar.bucket.calls]
        assert len(bars) >= 9
        for calls, url in bars[:12]:
            assert len(ada.get(url).context["rows"]) == calls


@pytest.mark.parametrize(
    ("span", "width"),
    [
        (timedelta(minutes=5), "5m"), (timedelta(hours=1), "5m"), (timedelta(days=1), "30m"), (timedelta(days=7), "3h"),
        (timedelta(days=30), "12h"), (timedelta(days=366), "1w"), (timedelta(days=45_000), "200w"),
    ],
)  # fmt: skip
def test_no_window_is_drawn_with_too_many_bars(span: timedelta, width: str) -> None:
    units = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "w": timedelta(weeks=1)}
    bars = records_summary.choose(START, START + span, counted=True)
    assert bars.width == int(width[:-1]) * units[width[-1]]
    assert span / records_summary.choose(START, START + span, counted=False).width < records_summary.MOST_BARS


def test_a_search_that_looked_as_far_as_it_may_says_so_and_goes_on(
    ada: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_scan, "BUDGET", 10)
    made = fill([{"agent": {"mode": "api" if n == 3 else "background"}} for n in range(25)])
    first = page(ada, f"{SPAN}&mode=api")
    assert "Looked back to 2 Mar 2026, 09:00:15" in text_of(first) and "nothing found so far" in text_of(first)
    assert first.context["summary"].count == "No record yet"
    second = ada.get(first.context["paging"].further)
    third = ada.get(second.context["paging"].further)
    assert [row.record.at for row in third.context["rows"]] == [made[3].at]
    up = page(ada, f"{SPAN}&mode=api&sort=oldest&after=0")
    assert "Looked up to" in text_of(up) and [r.record.at for r in up.context["rows"]] == [made[3].at]
    assert ada.get(up.context["paging"].further).status_code == 200


def test_a_line_says_what_came_of_the_call_and_leads_to_all_that_it_names(world: World, ada: HttpClient) -> None:
    answer = world.verify()
    world.post(f"/v1/records/{answer['record']}/outcome", {"status": "error", "count": 3, "duration_ms": 1234})
    [row] = page(ada, "window=1h&type=decision").context["rows"]
    assert row.happened == "ended in an error, 3 items touched, 1,234 ms" and row.why == "By grant 1"
    uid = answer["subject"]["uid"]
    assert (row.user_url, row.client_url) == (f"/admin/timeline/user/{uid}/", "/admin/timeline/client/claude/")
    assert row.tool_url == "/admin/timeline/tool/inner/memory.recall/"
    for url in (row.user_url, row.client_url, row.tool_url):
        assert ada.get(url).status_code == 200


def test_who_the_users_are_is_shown_to_those_who_may_and_the_look_is_recorded_first(
    world: World, pia: HttpClient
) -> None:
    uid = world.verify()["subject"]["uid"]
    gone = world.verify(token=token(sub="bob"))["subject"]["uid"]
    drained()
    assert "alice" not in page(pia, "window=1h").content.decode()
    Subject.objects.using("owner").filter(uid=gone).update(erased_at=timezone.now())
    answer = pia.post(f"{LIST}users/?window=1h&type=decision")
    assert answer.status_code == 200 and answer["Cache-Control"].startswith("no-store")
    text = text_of(answer)
    assert "alice@example.com" in text and "bob@example.com" not in text and "not known any more" in text
    assert "is recorded" in text
    told = newest("staff")
    assert (told["action"], told["about"]) == ("personal.view", "search") and "alice" not in str(told)
    # It is found again under each of them: on their timelines, and in what they are told was done.
    for one in (uid, gone):
        assert Record.objects.filter(type="staff", subject=one).count() == 1
        assert "looked at protected details" in text_of(pia.get(f"/admin/timeline/user/{one}/"))


def test_a_look_that_cannot_be_recorded_shows_nobody(world: World, pia: HttpClient) -> None:
    world.verify()
    with mock.patch("audit.records_view.tell", side_effect=DatabaseError):
        answer = pia.post(f"{LIST}users/?window=1h", follow=True)
    assert "alice" not in answer.content.decode() and "could not be recorded" in text_of(answer)


def test_who_may_not_see_personal_data_is_offered_no_look_and_refused_one(world: World, ada: HttpClient) -> None:
    world.verify()
    assert "Show who these users are" not in text_of(page(ada, "window=1h"))
    assert ada.post(f"{LIST}users/?window=1h").status_code == 403
    drained()
    assert not Record.objects.filter(type="staff", statement__contains=b"personal.view").exists()
    assert member("otto", "audit.view_personal").post(f"{LIST}users/?window=1h").status_code == 403


def test_nothing_is_done_by_get_or_without_the_token_of_the_form(world: World, pia: HttpClient) -> None:
    for part in ("users", "csv", "save", "find", "saved/1/delete"):
        assert pia.get(f"{LIST}{part}/").status_code == 405
    strict = HttpClient(enforce_csrf_checks=True)
    strict.force_login(get_user_model().objects.get(username="pia"))
    for part in ("users", "csv", "save", "find", "saved/1/delete"):
        assert strict.post(f"{LIST}{part}/").status_code == 403


def test_a_page_is_taken_out_as_a_file_without_personal_data(world: World, ada: HttpClient) -> None:
    answer = world.verify()
    world.post(f"/v1/records/{answer['record']}/outcome", {"status": "ok", "count": 3, "duration_ms": 12})
    world.verify(tool="memory.capture")
    drained()
    made = signed_in(ada).post(f"{LIST}csv/?window=1h&type=decision")
    assert made.status_code == 200 and made["Content-Type"] == "text/csv; charset=utf-8"
    assert made["Cache-Control"].startswith("no-store") and "attachment" in made["Content-Disposition"]
    head, *rows = csv.reader(StringIO(made.content.decode("utf-8-sig")))
    assert tuple(head) == records_csv.COLUMNS and len(rows) == 2
    told = dict(zip(head, rows[1], strict=True))
    assert told["record"] == answer["record"] and told["decision"] == "allow" and told["outcome"] == "ok"
    assert told["items touched"] == "3" and datetime.fromisoformat(told["time"]).tzinfo == UTC
    assert b"alice" not in made.content
    said = newest("staff")
    assert (said["action"], said["count"]) == ("records.csv", 2)


def test_a_file_takes_the_right_and_a_recent_sign_in(world: World, ada: HttpClient, pia: HttpClient) -> None:
    assert pia.post(f"{LIST}csv/?window=1h").status_code == 403
    assert "as CSV" not in text_of(page(pia, "window=1h"))
    answer = signed_in(ada, timedelta(hours=1)).post(f"{LIST}csv/?window=1h&client=claude")
    assert answer.status_code == 302 and answer["Location"].startswith(
        "/admin/sign-in/again/?next=%2Fadmin%2Frecords%2F"
    )
    drained()
    assert not Outbox.objects.filter(members__action="records.csv").exists()
    with mock.patch("audit.records_view.tell", side_effect=DatabaseError):
        unrecorded = signed_in(ada).post(f"{LIST}csv/?window=1h")
    assert unrecorded.status_code == 302 and unrecorded["Location"].startswith(LIST)


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@SUM(A1)", "'@SUM(A1)"), ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"), ("  =1", "'  =1"),
        ("\u200b=1", "'\u200b=1"), ("\x00\x0b\u3000-1", "'\x00\x0b\u3000-1"), ("\u200b\u3000a=1", "\u200b\u3000a=1"),
        ("＝1", "'＝1"), ("a=1", "a=1"), ('x","=1', 'x","=1'), (None, ""), (True, "true"), (7, "7"),
    ],
)  # fmt: skip
def test_no_cell_is_a_formula(value: Any, cell: str) -> None:
    assert records_csv.cell(value) == cell


def test_a_file_of_hostile_names_has_its_columns(ada: HttpClient) -> None:
    fill([{"tenant": '=HYPERLINK("http://evil")', "tool": "a,b\n=1", "client": "\u202ex"}])
    made = signed_in(ada).post(f"{LIST}csv/?{SPAN}")
    _, row = csv.reader(StringIO(made.content.decode("utf-8-sig"), newline=""))
    assert len(row) == len(records_csv.COLUMNS)
    assert not any(value.startswith(("=", "+", "-", "@")) for value in row)


def test_a_search_is_saved_opened_and_deleted_by_its_owner(ada: HttpClient, pia: HttpClient) -> None:
    answer = ada.post(f"{LIST}save/?window=7d&client=claude&before=5&x=1", {"name": "Claude lately", "shared": "on"})
    assert answer.status_code == 302 and answer["Location"] == f"{LIST}?window=7d&client=claude"
    ada.post(f"{LIST}save/?window=24h", {"name": "mine alone"})
    saved = {one.name: one for one in page(ada).context["saved"]}
    assert set(saved) == {"Claude lately", "mine alone"} and saved["Claude lately"].url == answer["Location"]
    [seen] = page(pia).context["saved"]
    assert seen.name == "Claude lately" and not seen.own
    assert pia.get(seen.url).status_code == 200
    assert pia.post(f"{LIST}saved/{seen.id}/delete/").status_code == 404
    assert ada.post(f"{LIST}saved/{seen.id}/delete/").status_code == 302
    assert [s.name for s in SavedSearch.objects.all()] == ["mine alone"]
    assert ada.post(f"{LIST}saved/{2**70}/delete/").status_code == 404


@pytest.mark.parametrize(
    ("query", "name", "words"),
    [
        ("window=7d", "", "needs a name"), ("window=7d", "alice@example.com", "e-mail address"),
        ("window=7d", "taken", "already"), ("subject=alice@example.com", "fine", "mistake"),
        ("window=7d", "a\x00b", "cannot be printed"), ("window=7d", "x" * 121, "120 characters"),
        ("tenant=" + "%C3%A4" * 255 + "&client=" + "%C3%A4" * 255, "long", "longer than"),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_kept_says_why(ada: HttpClient, query: str, name: str, words: str) -> None:
    ada.post(f"{LIST}save/?window=1h", {"name": "taken"})
    answer = ada.post(f"{LIST}save/?{query}", {"name": name})
    assert answer.status_code == 400 and words in text_of(answer)
    assert [s.name for s in SavedSearch.objects.all()] == ["taken"]


def test_saved_searches_have_a_limit(ada: HttpClient) -> None:
    owner = f"staff:{get_user_model().objects.get(username='ada').pk}"
    SavedSearch.objects.bulk_create(SavedSearch(owner=owner, name=f"n{n}", query="window=1h") for n in range(100))
    answer = ada.post(f"{LIST}save/?window=1h", {"name": "one more"})
    assert answer.status_code == 400 and "100 saved searches are the most" in text_of(answer)


def test_what_is_chosen_stays_chosen_even_where_it_is_no_longer_known(world: World, ada: HttpClient) -> None:
    form = page(ada, 'window=1h&client=claude&tool=<gone>&reason=not_granted&mode="').context["form"]
    assert '<option value="claude" selected>Claude</option>' in str(form["client"])
    assert '<option value="&lt;gone&gt;" selected>&lt;gone&gt;</option>' in str(form["tool"])
    assert '<option value="not_granted" selected>Not granted</option>' in str(form["reason"])
    assert '<option value="&quot;" selected>&quot;</option>' in str(form["mode"])
    assert '<option value="" selected>any</option>' in str(form["scope"])
    assert form["client"].id_for_label and f'id="{form["client"].id_for_label}"' in str(form["client"])


def test_hostile_names_are_shown_as_text(ada: HttpClient) -> None:
    fill([{"client": "<script>alert(1)</script>", "tenant": "<b>", "tool": '"><i>', "subject": "usr_<u>"}])
    text = page(ada, SPAN).content.decode()
    assert "<script>alert" not in text and '"><i>' not in text and "usr_<u>" not in text


def test_every_page_of_it_answers_an_administrator(world: World) -> None:
    http = administrator()
    world.verify()
    drained()
    for query in ("", "window=1y", "sort=oldest", "type=policy&window=1y", "type=decision&flagged=0&reason=granted"):
        assert page(http, query).context["rows"]
