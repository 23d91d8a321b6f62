"""A log with everything that is no call in it - questions, searches, token checks, ungoverned calls - is whole: for the
platform, for a bundle, and for `muniment verify`; and what is only said of somebody is nowhere shown as verified."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from audit import bundling, person_report, records_csv, verification
from audit.bundling import Wanted
from audit.models import Record
from audit.person_report import Period
from audit.viewer import Viewer
from muniment.calls import Agent, Incoming
from muniment.keys import Trust
from muniment.spool import File, prepared, told
from muniment.verify import verify_file
from tests import world as worlds
from tests.audit.sealers import sealed, sealing
from tests.governance.authzen import CALL, CAPTURE, CLAUDE, RECALL, ask, find, user
from tests.staff import administrator, drained
from tests.world import World, token
from tools.models import BackendMark

FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def world(db: None, tmp_path: Path) -> World:
    """Alice called once. Since then others spoke of her, and of somebody whom nobody knows."""
    made = worlds.build()
    BackendMark.objects.create(backend=made.backend, mark="may_search")
    made.verify()
    for resource in (RECALL, CAPTURE):
        ask(made, resource=resource)
    ask(made, subject=user("usr_nobody"))
    find(made, "subject", subject={"type": "user"}, action=CALL, resource=RECALL, context=CLAUDE)
    key = {"Authorization": f"Bearer {made.key}"}
    for text in (token(), token(sub="bob", client="other"), "nonsense"):
        made.http.post("/v1/introspect", f"token={text}", content_type=FORM, headers=key)
    file = File.new(prepared(tmp_path / "spool"))
    for text in (token(), token(sub="stranger"), None):
        file.append(told("memory.recall", Incoming(text, {"id": "r"}, Agent(chain=("planner",))), "unreachable"))
    entries = [line.data.decode() for line in file._lines]
    assert made.post("/v1/ungoverned", {"spool": file.spool, "entries": entries}).status_code == 200
    file.close()
    return made


@pytest.fixture
def at_rest(world: World, tmp_path: Path) -> Iterator[World]:
    with sealing(tmp_path / "seal") as sealer:
        drained()
        sealed(sealer)
        yield world


def test_the_log_and_its_bundles_hold(at_rest: World) -> None:
    kinds = set(Record.objects.values_list("type", flat=True))
    assert kinds >= {"decision", "evaluation", "introspection", "ungoverned"}
    report = verification.verify()
    assert report.findings == [] and report.records == Record.objects.count()
    trust = Trust.parse(at_rest.http.get("/v1/keys").content.decode())
    alice = Record.objects.get(type="decision").subject
    for more in ({}, {"subject": alice}, {"disclose": True, "reason": "audit"}):
        file = io.BytesIO()
        bundling.write(file, Wanted(timezone.now() - timedelta(hours=1), timezone.now(), **more))
        found = verify_file(file, trust)
        assert found.findings == []
        assert (found.facts.allowed, found.facts.denied) == (1, 0), "one call was decided"
        assert found.facts.unreadable == 0 and bool(found.facts.disclosed) is bool(more.get("disclose"))


def test_each_record_has_a_bundle_and_a_page_of_its_own(at_rest: World) -> None:
    trust, http = Trust.parse(at_rest.http.get("/v1/keys").content.decode()), administrator()
    for record in Record.objects.filter(type__in=["evaluation", "introspection", "ungoverned"]):
        file = io.BytesIO()
        bundling.write_record(file, record)
        assert verify_file(file, trust).findings == []
        page = http.get(f"/admin/records/{record.id}/").content.decode()
        assert "The token is genuine" not in page and "alice" not in page


def test_lists_say_on_whose_word_it_is_that_user(world: World) -> None:
    http = administrator()
    for kind, words in [("evaluation", "as the backend says"), ("ungoverned", "as claimed"), ("decision", "")]:
        page = http.get(f"/admin/records/?type={kind}").content.decode()
        assert ("as the backend says" in page, "as claimed" in page) == (
            kind == "evaluation",
            kind == "ungoverned",
        ), words
    rows = list(csv.DictReader(io.StringIO(records_csv.write(list(Record.objects.all())).decode("utf-8-sig"))))
    told = {row["kind"]: row["user known by"] for row in rows if row["user"]}
    assert told == {
        "decision": "token", "introspection": "token", "evaluation": "as the backend says", "ungoverned": "as claimed",
    }  # fmt: skip
    assert {row["user known by"] for row in rows if not row["user"]} == {""}


def test_a_persons_report_counts_no_word_of_a_backend_as_a_call(world: World) -> None:
    [uid] = Record.objects.filter(type="decision").values_list("subject", flat=True)
    today = timezone.now().date()
    viewer = Viewer("staff:0", "ada", records=True, personal=True)
    report = person_report.gather(viewer, str(uid), Period(today - timedelta(days=1), today), {"claude": "Claude"})
    assert report.counted.calls == 1 and "once" in report.sentence
    kinds = Counter(line.decided.words for line in report.lines)
    assert kinds == {"Allowed": 1, "Asked: yes": 1, "Asked: no": 1, "Token active": 1, "Ungoverned call": 1}
    assert any("on its word alone" in limit for limit in report.limits)
