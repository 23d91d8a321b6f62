"""What was asked without a token is on record, reads as a question, and is nowhere taken for a call."""

import re
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.test import Client as HttpClient
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import person_report, question_words, record_page, record_words, rollups, timeline_reading, verification
from audit.models import Record
from audit.person_report import Period
from audit.record_page import pill
from audit.timeline_reading import Who
from audit.viewer import Viewer
from governance import home_figures, stops_evidence
from tests.audit.sealers import sealed, sealing
from tests.governance.authzen import CALL, CAPTURE, CLAUDE, RECALL, ask, find, said, user
from tests.staff import administrator, drained
from tests.world import World, build
from tools.models import BackendMark, Tool

EVERYTHING = Viewer("staff:0", "ada", records=True, personal=True)


@pytest.fixture
def world(db: None) -> World:
    """Alice was allowed one call, and was then asked about: twice, and once searched for."""
    made = build()
    BackendMark.objects.create(backend=made.backend, mark="may_search")
    made.verify()
    return made


@pytest.fixture
def questions(world: World) -> list[dict[str, Any]]:
    """The answers: yes, no, and of a search."""
    searched = find(world, "resource", subject=user(), action=CALL, resource={"type": "tool"}, context=CLAUDE)
    return [ask(world), ask(world, resource=CAPTURE), searched["context"]]


@pytest.fixture
def uid(world: World) -> str:
    return str(Record.objects.get(type="decision").subject)


def text(http: HttpClient, url: str) -> str:
    """A page's text, without its tags."""
    response = http.get(url)
    assert response.status_code == 200
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", response.content.decode())).split())


class TestNoCall:
    def test_the_figures_count_calls_alone(self, questions: Any, uid: str) -> None:
        drained()
        rollups.catch_up()
        now = timezone.now() + timedelta(minutes=5)
        since = now - timedelta(hours=2)
        for filters in ({}, {"client": "claude"}, {"tool": "memory.recall", "backend": "inner"}):
            buckets = rollups.series(EVERYTHING, since, now, "5m", **filters)
            assert (sum(b.calls for b in buckets), sum(b.denied for b in buckets)) == (1, 0)
        assert sum(b.calls for b in rollups.series(EVERYTHING, since, now, "5m", type="evaluation")) == 3
        figures = home_figures.figures(EVERYTHING, "48h", now, {"claude": "Claude"})
        assert (figures.calls, figures.denied) == (1, 0)
        hits = stops_evidence._hits_of_user(EVERYTHING, uid, since, now)
        assert (hits.calls, hits.allowed) == (1, 1)

    def test_the_timeline_has_them_as_lines_and_not_as_calls(self, questions: Any, uid: str) -> None:
        now = timezone.now() + timedelta(minutes=5)
        looked = timeline_reading.look(EVERYTHING, Who("user", uid), now - timedelta(hours=1), now)
        assert [row.type for row, _ in looked.lines] == ["evaluation"] * 3 + ["decision"]
        assert [row.is_call for row, _ in looked.lines] == [False] * 3 + [True]

    def test_the_report_of_a_person_tells_them_and_counts_them_as_none(self, questions: Any, uid: str) -> None:
        today = datetime.now(UTC).date()
        report = person_report.gather(EVERYTHING, uid, Period(today - timedelta(days=1), today), {"claude": "Claude"})
        assert (report.counted.records, report.counted.calls, report.counted.denied) == (4, 1, 0)
        assert "allowed to use this person's data once" in report.sentence
        assert [line.sentence for line in report.lines if "asked" in line.sentence] == [
            f"inner asked whether {record_words.short_uid(uid)} may use memory.capture through Claude: no, not granted",
            f"inner asked whether {record_words.short_uid(uid)} may use memory.recall through Claude: yes",
            f"inner asked what {record_words.short_uid(uid)} may use through Claude",
        ]

    def test_a_log_with_them_holds(self, questions: Any, tmp_path: Path) -> None:
        with sealing(tmp_path / "seal") as sealer:
            drained()
            sealed(sealer)
            report = verification.verify()
        assert report.findings == [] and report.records == Record.objects.count()


class TestTheirPages:
    def test_a_question_reads_as_one(self, world: World, questions: Any, uid: str) -> None:
        http = administrator()
        page = text(http, f"/admin/records/{questions[0]['record']}/")
        short = record_words.short_uid(uid)
        assert f"inner asked whether {short} may use memory.recall through Claude: yes" in page
        assert "Asked: yes" in page and "No token was shown, so nobody was verified" in page
        assert "inner said that it is through Claude, an active client" in page
        assert "Whether the user consented was not asked" in page and "this is no call" in page
        for false in ("The token is genuine", "What happened then", "was allowed", "was told to answer"):
            assert false not in page
        page = text(http, f"/admin/records/{questions[1]['record']}/")
        assert "Asked: no" in page and "No grant lets Claude use memory:write." in page

    def test_a_search_reads_as_one(self, world: World, questions: Any, uid: str) -> None:
        http = administrator()
        page = text(http, f"/admin/records/{questions[2]['record']}/")
        assert f"inner asked what {record_words.short_uid(uid)} may use through Claude" in page
        assert "1 tool or resource found" in page and "Search without a token" in page
        assert "How it was decided" not in page
        found = find(world, "subject", subject={"type": "user"}, action=CALL, resource=RECALL, context=CLAUDE)
        page = text(http, f"/admin/records/{found['context']['record']}/")
        assert "inner asked which users may use memory.recall through Claude" in page and "1 user found" in page

    def test_the_lists_tell_them_from_calls(self, world: World, questions: Any, uid: str) -> None:
        http = administrator()
        for url in (
            "/admin/records/?type=evaluation",
            f"/admin/timeline/user/{uid}/",
            "/admin/timeline/client/claude/",
        ):
            page = text(http, url)
            assert "may use memory.recall through Claude: yes" in page and "Asked: no" in page
        assert "Asked:" not in text(http, "/admin/records/?type=decision")

    def test_who_was_named_is_shown_to_who_may_see_it_after_the_look_was_recorded(
        self, world: World, questions: Any
    ) -> None:
        http = administrator()
        url = f"/admin/records/{questions[0]['record']}/"
        assert "user alice" not in text(http, url)
        shown = " ".join(unescape(re.sub(r"<[^>]+>", " ", http.post(f"{url}details/").content.decode())).split())
        assert "Who was named user alice" in shown


class TestWords:
    """Of questions that the world above has not: from real records."""

    def test_what_was_not_said_does_not_read_as_said(self, world: World) -> None:
        Tool.objects.create(backend=world.backend, name="memory.recall:id:x", access="read", status="active")
        statement = said(ask(world, subject=user("nobody"), context={}))
        assert record_words.title(statement, {}) == (
            f"inner asked whether {question_words.NOBODY} may use memory.recall: no, not granted"
        )
        words = [step.words for step in record_words.steps(statement, {})]
        assert words[1] == "No client was named: only grants for any client count"
        statement = said(ask(world, context=CLAUDE | {"scopes": "memory:read"}))
        words = [step.words for step in record_words.steps(statement, {})]
        assert "inner said that the token carries memory:read" in words
        states = [step.state for step in record_words.steps(statement, {})]
        assert states == ["unknown", *["passed"] * (len(states) - 1)], "only the token is not shown to hold"
        statement = said(ask(world, subject=user("usr_nobody")))
        assert [step.state for step in record_words.steps(statement, {})] == ["stopped", "unknown"]
        assert pill(statement).words == "Asked: no"


def test_an_old_question_of_staff_reads_as_it_did() -> None:
    """The explainer's steps have nobody who asserts anything."""
    statement = {"type": "evaluation", "decision": "allow", "reason": "granted", "client": "claude", "subject": "usr_1"}
    words = dict(record_words.rules(statement, {"claude": "Claude"}))
    assert words["client"] == "It was issued to Claude, an active client"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
MEMBERS = (
    "decision", "reason", "search", "results", "looked", "tools", "asserted", "backend", "client", "subject", "tenant",
    "tool", "issuer", "token_scopes", "required", "effective", "grants", "roles", "agent", "policy", "flagged",
    "called_at", "cause", "spool", "sequence", "parent",
)  # fmt: skip


@settings(deadline=None)
@given(st.sampled_from(["evaluation", "introspection", "ungoverned"]), st.dictionaries(st.sampled_from(MEMBERS), JSON))
def test_whatever_somebody_wrote_over_what_is_no_call_is_shown_without_failing(
    kind: str, members: dict[str, Any]
) -> None:
    statement = {"type": kind, "asserted": True, **members}
    if record_page._well_formed(statement):  # else it is shown as unreadable
        assert isinstance(record_words.title(statement, {}), str) and isinstance(record_words.why(statement, {}), str)
        assert all(isinstance(step.words, str) for step in record_words.steps(statement, {}))
        assert all(isinstance(fact.name, str) for fact in record_page.facts(statement, {}))
        assert pill(statement).kind == "plain"
