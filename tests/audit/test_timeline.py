"""Timelines: what is unusual (pure), the figures, and the pages of a user, a client and a tool."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client as HttpClient
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from audit import rollups, timeline, timeline_reading
from audit.models import Outbox
from audit.timeline import Earlier, Mark, Seen, Totals
from audit.viewer import Viewer
from tests.staff import drained, member, newest
from tests.world import World, build, token

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
ADA = Viewer("staff:1", "Ada", records=True)
OLD = Earlier(
    {"client": frozenset({"claude"}), "tool": frozenset({"inner/recall"}), "mode": frozenset({"interactive"})},
    NOON - timedelta(days=1), 7,
)  # fmt: skip


def call(seconds: float, **members: Any) -> Seen:
    usual = {"client": "claude", "tool": "inner/recall", "mode": "interactive"}
    return Seen(NOON + timedelta(seconds=seconds), **{**usual, **members})


def told(rows: Sequence[Seen], earlier: Earlier = OLD, kind: str = "user") -> list[tuple[float, str]]:
    found = timeline.marks(kind, rows, earlier, {"claude": "Claude", "chatgpt": "ChatGPT"})
    return [((at - NOON).total_seconds(), mark.words) for at, marks in sorted(found.items()) for mark in marks]


# --- what is unusual ------------------------------------------------------------------------------------------


def test_the_usual_is_not_marked() -> None:
    assert told([call(n * 600, decision="deny" if n % 3 else "allow") for n in range(20)]) == []


def test_the_first_use_of_a_client_tool_and_mode_is_marked_once() -> None:
    rows = [call(0), call(60, client="chatgpt"), call(120, client="chatgpt", tool="inner/forget", mode="background")]
    assert told([*rows, call(180, client="chatgpt", tool="inner/forget", mode="background")]) == [
        (60, "the first call through ChatGPT"),
        (120, "the first call of forget"),
        (120, "the first call in background mode"),
    ]


def test_the_very_first_call_is_told_as_that_alone() -> None:
    assert told([call(0), call(60)], Earlier()) == [(0, "the first call of this user")]


def test_where_the_look_was_bounded_the_mark_says_so() -> None:
    cut = Earlier(OLD.values, OLD.newest, 4000, whole=False)
    assert told([call(0, client="chatgpt")], cut) == [
        (0, "the first call through ChatGPT among the 4,001 newest that were looked at")
    ]


@pytest.mark.parametrize(("kind", "marked"), [("user", True), ("client", False), ("tool", True)])
def test_a_timeline_does_not_mark_what_it_is_of(kind: str, marked: bool) -> None:
    rows = [call(0, client="chatgpt")]
    assert bool(told(rows, kind=kind)) == marked


def test_five_refusals_in_a_row_are_a_run_and_four_are_not() -> None:
    refused = [call(n * 600, decision="deny") for n in range(5)]
    assert told(refused[:4]) == []
    assert told([*refused, call(3600)]) == [(2400, "5 refusals in a row")]
    assert told([*refused[:4], call(2000), *refused[4:]]) == []


def test_a_burst_is_many_more_than_usual_within_a_minute() -> None:
    quiet = [call(-n * 3600) for n in range(1, 8)]
    burst = [call(n * 4) for n in range(12)]
    assert told([*quiet, *burst]) == [(44, "a burst: 12 calls within a minute, usually 1")]
    assert told([*quiet, *burst[:9]]) == []
    busy = [call(-h * 3600 + n * 6) for h in range(1, 8) for n in range(9)]
    assert told([*busy, *burst]) == [], "twelve a minute are usual where there are nine a minute"


def test_a_burst_across_two_minutes_is_one() -> None:
    quiet = [call(-n * 3600) for n in range(1, 8)]
    assert [words for _, words in told([*quiet, *(call(30 + n * 5) for n in range(12))])] == [
        "a burst: 12 calls within a minute, usually 1"
    ]


def test_with_nothing_to_compare_with_only_many_are_a_burst() -> None:
    assert told([call(n) for n in range(29)]) == []
    assert told([call(n) for n in range(31)]) == [(30, "a burst: 31 calls within a minute")]


def test_two_bursts_are_two_marks() -> None:
    rows = [call(h * 3600 + n) for h in (1, 2) for n in range(15)] + [call(-n * 3600) for n in range(1, 8)]
    assert [words[:7] for _, words in told(rows)] == ["a burst", "a burst"]


def test_a_call_after_a_month_of_silence_is_marked() -> None:
    month = 30 * 86400
    assert told([call(0), call(month - 1)]) == []
    assert told([call(0), call(month)]) == [(month, "the first call after 30 days without any")]
    before = Earlier(OLD.values, NOON - timedelta(days=45), 3)
    assert told([call(0)], before) == [(0, "the first call after 45 days without any")]


def test_what_is_no_call_is_neither_marked_nor_breaks_a_run() -> None:
    rows = [call(n * 600, decision="deny") for n in range(5)]
    between = [call(n * 600 + 1, type="staff", decision=None, client="chatgpt") for n in range(5)]
    assert told([*rows, *between]) == [(2400, "5 refusals in a row")]


seen = st.builds(
    call,
    st.integers(0, 40 * 86400),
    decision=st.sampled_from(["allow", "deny"]),
    client=st.sampled_from(["claude", "chatgpt", None]),
    tool=st.sampled_from(["inner/recall", "inner/forget"]),
    mode=st.sampled_from(["interactive", "background", None]),
    type=st.sampled_from(["decision", "evaluation", "outcome", "staff"]),
)


@given(st.lists(seen, max_size=60), st.randoms())
def test_marks_do_not_depend_on_the_order_and_are_of_calls(rows: list[Seen], random: Any) -> None:
    rows = list({row.at: row for row in rows}.values())
    found = timeline.marks("user", rows, OLD, {})
    shuffled = rows[:]
    random.shuffle(shuffled)
    assert timeline.marks("user", shuffled, OLD, {}) == found
    assert set(found) <= {row.at for row in rows if row.is_call}
    news = [mark.words for marks in found.values() for mark in marks if mark.kind == "new"]
    assert len(news) == len(set(news)), "each thing is new once"


@given(st.lists(st.booleans(), max_size=40))
def test_runs_are_exactly_the_stretches_of_five_and_more(denied: list[bool]) -> None:
    rows = [call(n * 600, decision="deny" if bad else "allow") for n, bad in enumerate(denied)]
    stretches = [len(one) for one in "".join("x" if bad else " " for bad in denied).split()]
    assert [mark.words for _, mark in timeline.runs(rows)] == [
        f"{length} refusals in a row" for length in stretches if length >= 5
    ]


# --- shares and the sentence ----------------------------------------------------------------------------------


def test_shares_add_up_and_the_rest_is_summed() -> None:
    counts = [(f"c{n}", 10 - n) for n in range(9)]
    found = timeline.divided(counts, sum(n for _, n in counts), "client", {"c0": "First"})
    assert (found[0].words, found[-1].words, len(found)) == ("First", "others", timeline.SHARES)
    assert sum(share.count for share in found) == found[0].whole


def test_a_share_of_something_is_seen_and_of_nothing_is_not() -> None:
    allowed, denied = timeline.decisions(9999, 0, 1)
    assert denied.percent == 0.5 and allowed.percent == 100.0
    assert [s.percent for s in timeline.decisions(0, 0, 0)] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("totals", "words"),
    [
        (Totals(42, 3, ["Claude", "ChatGPT"], []),
         "The data of this user was touched 42 times in the last 30 days, through Claude and ChatGPT; 3 calls were"
         " refused."),
        (Totals(1, 1, ["Claude"], []), "The data of this user was touched once in the last 30 days, through Claude;"
         " 1 call was refused."),
        (Totals(0, 2, [], []), "The data of this user was never touched in the last 30 days; 2 calls were refused."),
        (Totals(0, 0, [], []), "Nothing happened with the data of this user in the last 30 days."),
        (Totals(999, 1, ["A", "B", "C", "D"], [], 1000),
         "The data of this user was touched 999 times in the newest 1,000 records of the last 30 days, through A, B"
         " and 2 more; 1 call was refused."),
    ],
)  # fmt: skip
def test_the_sentence(totals: Totals, words: str) -> None:
    assert timeline.sentence("user", "this user", totals, "30 days") == words


# --- the pages ------------------------------------------------------------------------------------------------


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def ada(world: World) -> HttpClient:
    return member("ada", "audit.view_record")


def some(world: World) -> str:
    """Three allowed calls, one of them with an outcome, and a refused one."""
    uid = world.verify()["subject"]["uid"]
    world.verify()
    world.verify(tool="memory.capture")
    record = world.verify()["record"]
    world.post(f"/v1/records/{record}/outcome", {"status": "ok", "count": 3, "duration_ms": 12})
    return str(uid)


def page(http: HttpClient, kind: str, name: str, query: str = "", status: int = 200) -> Any:
    answer = http.get(f"/admin/timeline/{kind}/{name}/{query}")
    assert answer.status_code == status
    return answer


def titles(answer: Any) -> list[str]:
    return [line.row.title for _, lines in answer.context["days"] for line in lines]


def test_a_users_timeline_by_uid(world: World, ada: HttpClient) -> None:
    uid = some(world)
    world.verify(token=token(sub="bob"))
    answer = page(ada, "user", uid, "?window=1h")
    assert answer.context["sentence"] == (
        "The data of this user was touched 3 times in the last hour, through Claude; 1 call was refused."
    )
    assert titles(answer) == [
        "Claude was allowed memory.recall", "Claude was refused memory.capture: not granted",
        "Claude was allowed memory.recall", "Claude was allowed memory.recall",
    ]  # fmt: skip
    text = answer.content.decode()
    assert "3 items touched, 12 ms" in text and "The first call of this user" in text
    assert "alice" not in text and uid in text
    assert f"/admin/records/?window=1h&amp;subject={uid}&amp;decision=deny" in text


def test_a_clients_and_a_tools_timeline_count_by_rollups(world: World, ada: HttpClient) -> None:
    some(world)
    drained()
    assert "Nothing is counted yet" in page(ada, "client", "claude").content.decode()
    rollups.count()
    client = page(ada, "client", "claude", "?window=1h")
    assert client.context["sentence"] == (
        "Claude was let in 3 times in the last hour, to use memory.recall; 1 call was refused."
    )
    tool = page(ada, "tool", "inner/memory.recall", "?window=1h")
    assert tool.context["sentence"] == (
        "memory.recall was used 3 times in the last hour, through Claude; no call was refused."
    )
    assert len(titles(client)) == 4 and len(titles(tool)) == 3


def test_another_backends_tool_of_the_same_name_is_another_tool(world: World, ada: HttpClient) -> None:
    some(world)
    assert titles(page(ada, "tool", "other/memory.recall")) == []


def test_pages_are_walked_both_ways(world: World, ada: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline_reading, "PAGE", 3)
    uid = some(world)
    for _ in range(6):
        world.verify()
    url, seen = f"/admin/timeline/user/{uid}/?window=1h", []
    for _ in range(4):
        answer = ada.get(url)
        seen.append([line.row.record.id for _, lines in answer.context["days"] for line in lines])
        if answer.context["older"] is None:
            break
        url = answer.context["older"]
    assert [len(one) for one in seen] == [3, 3, 3, 1] and len({i for one in seen for i in one}) == 10
    back = [line.row.record.id for _, lines in ada.get(answer.context["newer"]).context["days"] for line in lines]
    assert back == seen[2]
    assert ada.get(answer.context["newest"]).context["newer"] is None


def test_a_page_that_the_bound_cuts_goes_on_where_it_ended(
    world: World, ada: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline_reading.look, "__defaults__", (4, False))
    uid = some(world)
    for _ in range(6):
        world.verify()
    answer = page(ada, "user", uid, "?window=1h")
    assert "in the newest 4 records of the last hour" in answer.context["sentence"]
    found = titles(answer)
    while url := answer.context["older"]:
        answer = ada.get(url)
        assert 0 < len(titles(answer)) <= 4
        found += titles(answer)
    assert len(found) == 10


def test_every_read_is_bounded(world: World, ada: HttpClient) -> None:
    uid = some(world)
    drained()
    rollups.count()
    for kind, name in (("user", uid), ("client", "claude"), ("tool", "inner/memory.recall")):
        with CaptureQueriesContext(connection) as captured:
            page(ada, kind, name, "?window=1y")
        statements = [q["sql"] for q in captured.captured_queries if 'FROM "audit_record"' in q["sql"]]
        assert statements
        for sql in statements:
            assert "LIMIT" in sql or " IN (" in sql, sql
            assert re.search(r'"audit_record"."at" >=?', sql) and not re.search(r"\bCOUNT\s*\(|\bOFFSET\b|LIKE", sql)


def test_who_it_is_is_shown_by_post_alone_and_recorded(world: World) -> None:
    uid, pia = some(world), member("pia", "audit.view_record", "audit.view_personal")
    url = f"/admin/timeline/user/{uid}/"
    text = pia.get(url).content.decode()
    assert "Show who this is" in text and "alice" not in text
    assert not Outbox.objects.filter(members__action="personal.view").exists()
    answer = pia.post(url)
    assert "alice@example.com" in answer.content.decode() and "no-store" in answer["Cache-Control"]
    assert (newest("staff")["action"], newest("staff")["subject"]) == ("personal.view", uid)


def test_who_it_is_takes_the_right_to_see_it(world: World, ada: HttpClient) -> None:
    uid = some(world)
    text = page(ada, "user", uid).content.decode()
    assert "Privacy officers can open them" in text
    assert ada.post(f"/admin/timeline/user/{uid}/").status_code == 403
    assert member("pat", "audit.view_personal").post(f"/admin/timeline/user/{uid}/").status_code == 403
    assert (
        member("pia", "audit.view_record", "audit.view_personal").post("/admin/timeline/client/claude/").status_code
        == 405
    )
    assert not Outbox.objects.filter(members__action="personal.view").exists()


def test_looks_of_staff_stand_apart(world: World, ada: HttpClient) -> None:
    uid = some(world)
    member("pia", "audit.view_record", "audit.view_personal").post(f"/admin/timeline/user/{uid}/")
    drained()
    answer = page(ada, "user", uid)
    assert len(titles(answer)) == 4
    assert [row.title for row in answer.context["staff"]] == [
        f"Staff member 2 looked at protected details of {uid[:10]}…{uid[-3:]}"
    ]


def test_only_who_may_change_users_is_offered_to(world: World, ada: HttpClient) -> None:
    uid = some(world)
    assert "Block…" not in page(ada, "user", uid).content.decode()
    otto = member("otto", "audit.view_record", "audit.view_subject", "audit.change_subject")
    assert f"/admin/audit/subject/{uid}/act/block/" in page(otto, "user", uid).content.decode()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("user", "alice@example.com"), ("user", "usr_"), ("staff", "1"), ("client", "a/b"), ("client", "x" * 65),
        ("tool", "memory.recall"), ("tool", "inner/"), ("tool", "inner/" + "x" * 129), ("client", "a%00b"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_name_has_no_timeline(ada: HttpClient, kind: str, name: str) -> None:
    page(ada, kind, name, status=404)


def test_what_nobody_has_heard_of_is_an_empty_timeline(ada: HttpClient) -> None:
    assert "No user with this uid is known" in page(ada, "user", "usr_gone").content.decode()
    assert "Nothing happened through this client" in page(ada, "client", "gone").content.decode()
    assert titles(page(ada, "tool", "inner/never.declared")) == []


@pytest.mark.parametrize("query", ["?window=9y", "?before=x", "?after=-1", "?before=99999999999999999999"])
def test_nonsense_in_the_url_leads_to_the_timeline(ada: HttpClient, query: str) -> None:
    answer = page(ada, "client", "claude", query, status=302)
    assert answer["Location"] == "/admin/timeline/client/claude/"


def test_only_those_who_may_see_records_see_timelines(world: World) -> None:
    assert member("otto", "audit.view_personal").get("/admin/timeline/client/claude/").status_code == 403
    assert HttpClient().get("/admin/timeline/client/claude/").status_code == 302


def test_a_run_is_told_on_the_page_where_it_ends(
    world: World, ada: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline_reading, "PAGE", 3)
    uid = world.verify()["subject"]["uid"]
    for _ in range(6):
        world.verify(tool="memory.capture")
    first = page(ada, "user", uid, "?window=1h")
    run = Mark("run", "6 refusals in a row")
    lines = [line for _, of in first.context["days"] for line in of]
    assert run in lines[0].marks
    second = ada.get(first.context["older"])
    assert not any(run.kind == m.kind for _, of in second.context["days"] for line in of for m in line.marks)
