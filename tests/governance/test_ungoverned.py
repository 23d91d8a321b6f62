"""POST /v1/ungoverned: what a backend let through while we were away; in order, once, and never as a call."""

import json
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import psycopg
import pytest

from audit import details, record_page, rollups, search
from audit.models import Record, Subject
from muniment.calls import Agent, Incoming
from muniment.spool import File, Line, prepared, told
from muniment.statements import dump
from tests import world as worlds
from tests.audit import chain
from tests.world import World, token
from tools.credentials import issue
from tools.models import Backend


@pytest.fixture
def world(db: None) -> World:
    return worlds.build()


@pytest.fixture
def file(tmp_path: Path) -> File:
    return filled(tmp_path, 5)


def filled(folder: Path, count: int, text: str | None = "alice") -> File:
    file = File.new(prepared(folder / "spool"))
    for number in range(count):
        given = Incoming(token(sub=text) if text else None, {"id": f"r{number}"}, Agent(chain=("planner",)))
        file.append(told("status.show", given, "unreachable"))
    return file


def report(world: World, file: File, lines: list[Line] | None = None, key: str | None = None, **more: Any) -> Any:
    lines = list(file._lines) if lines is None else lines
    body = {"spool": file.spool, "entries": [line.data.decode() for line in lines]} | more
    return world.post("/v1/ungoverned", body, key)


def statements() -> list[dict[str, Any]]:
    return [json.loads(bytes(row.statement)) for row in Record.objects.filter(type="ungoverned").order_by("index")]


class TestOnce:
    def test_each_line_is_one_record_in_order(self, world: World, file: File) -> None:
        answer = report(world, file)
        assert (answer.status_code, answer.json()) == (200, {"spool": file.spool, "taken": 5, "recorded": 5})
        said = statements()
        assert [one["sequence"] for one in said] == [1, 2, 3, 4, 5]
        assert [one["line"] for one in said] == [line.hash for line in file._lines]
        assert {(one["tool"], one["cause"], one["claimed"]) for one in said} == {("status.show", "unreachable", True)}
        assert said[0]["agent"] == {"chain": ["planner"]}

    def test_a_repeated_report_records_nothing_again(self, world: World, file: File) -> None:
        report(world, file, file._lines[:3])
        assert report(world, file).json()["recorded"] == 2
        assert report(world, file).json()["recorded"] == 0
        assert [one["sequence"] for one in statements()] == [1, 2, 3, 4, 5]

    def test_two_who_report_at_once_record_each_line_once(self, world: World, tmp_path: Path) -> None:
        file = filled(tmp_path, 40)
        answers: list[Any] = []

        def one() -> None:
            from django.db import connections

            answers.append(report(world, file))
            connections.close_all()

        threads = [Thread(target=one) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert {answer.status_code for answer in answers} == {200}
        assert sum(answer.json()["recorded"] for answer in answers) == 40
        assert sorted(one["sequence"] for one in statements()) == list(range(1, 41))

    def test_another_backend_has_spools_of_its_own(self, world: World, file: File) -> None:
        other = issue(Backend.objects.create(slug="other", name="Other", audiences=["https://other.example"]))
        assert report(world, file).json()["recorded"] == 5
        assert report(world, file, key=other).json()["recorded"] == 5
        assert [one["backend"] for one in statements()] == ["inner"] * 5 + ["other"] * 5


class TestTheChain:
    def test_a_gap_is_told_with_what_is_missing(self, world: World, file: File) -> None:
        answer = report(world, file, file._lines[2:])
        assert answer.status_code == 409 and answer.json()["type"].endswith("spool-gap")
        assert "Line 2" in answer.json()["detail"] and not statements()

    @pytest.mark.parametrize("order", [[0, 2, 1], [0, 0, 1], [1, 0], [0, 1, 3]])
    def test_lines_that_do_not_follow_one_another_are_refused(self, world: World, file: File, order: list[int]) -> None:
        assert report(world, file, [file._lines[place] for place in order]).status_code == 409
        assert not statements()

    def test_an_altered_line_breaks_the_one_after_it(self, world: World, file: File) -> None:
        altered = Line(1, file._lines[0].data.replace(b"status.show", b"status.hide"))
        assert report(world, file, [altered, *file._lines[1:]]).status_code == 409

    def test_another_history_of_the_same_spool_is_refused(self, world: World, file: File) -> None:
        assert report(world, file, file._lines[:1]).status_code == 200
        altered = Line(1, file._lines[0].data.replace(b"status.show", b"status.hide"))
        answer = report(world, file, [altered])
        assert answer.status_code == 409 and answer.json()["type"].endswith("spool-broken")
        assert len(statements()) == 1

    def test_lines_of_another_spool_are_refused(self, world: World, file: File) -> None:
        assert report(world, file, spool="0" * 32).status_code == 409

    def test_of_two_histories_that_come_at_once_one_is_on_record_and_nothing_of_the_other_after_it_parts(
        self, world: World, tmp_path: Path
    ) -> None:
        """A copied spool: all of both would be in one write batch."""
        one = filled(tmp_path, 6)
        texts = [line.data for line in one._lines]
        other = [Line(1, texts[0])]
        for number in range(1, 6):
            said = json.loads(texts[number]) | {"previous": other[-1].hash, "tool": "status.hide"}
            other.append(Line(number + 1, dump(said)))
        answers: list[int] = []

        def send(lines: list[Line]) -> None:
            from django.db import connections

            answers.append(report(world, one, lines).status_code)
            connections.close_all()

        threads = [Thread(target=send, args=[lines]) for lines in (list(one._lines), other) * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(answers) == [200] * 3 + [409] * 3
        said = statements()
        assert [line["sequence"] for line in said] == [1, 2, 3, 4, 5, 6]
        assert all(after["previous"] == before["line"] for before, after in pairwise(said))

    @pytest.mark.parametrize("scrawl", [b"scrawl", b"[]", b"{}", b'{"line":5}', b"\xff"])
    def test_a_record_that_somebody_changed_stops_its_own_spool_and_nobody_else(
        self, world: World, file: File, superuser_url: str, scrawl: bytes
    ) -> None:
        report(world, file, file._lines[:2])
        with psycopg.connect(superuser_url) as superuser:
            superuser.execute("SET session_replication_role = replica")
            superuser.execute("UPDATE audit_record SET statement = %s WHERE type = 'ungoverned'", [scrawl])
        answer = report(world, file)
        assert answer.status_code == 409 and answer.json()["type"].endswith("spool-broken")
        assert world.verify()["decision"] == "allow"


class TestBadInput:
    @pytest.mark.parametrize(
        "more",
        [
            {"spool": "x"}, {"spool": "A" * 32}, {"entries": []}, {"entries": ["x"]}, {"entries": ["{}"]},
            {"entries": [1]}, {"entries": ["[]"]}, {"entries": ['{"a":1}'] * 101}, {"entries": ["{" + "x" * 20_000]},
            {"entries": ["{" * 5000]},
        ],
    )  # fmt: skip
    def test_is_a_400_that_repeats_nothing(self, world: World, file: File, more: dict[str, Any]) -> None:
        answer = report(world, file, **more)
        assert answer.status_code == 400 and answer["Content-Type"] == "application/problem+json"
        assert not statements()

    @pytest.mark.parametrize(
        ("member", "value"),
        [("sequence", 0), ("sequence", 2**60), ("at", -1), ("tool", "a b"), ("cause", "A!"), ("token", "x"),
         ("claimed", {"sub": "x" * 300}), ("request", {"ip": "x"}), ("agent", ["a"] * 9), ("previous", "x")],
    )  # fmt: skip
    def test_each_member_has_bounds(self, world: World, file: File, member: str, value: Any) -> None:
        line = json.loads(file._lines[0].data) | {member: value}
        assert report(world, file, entries=[json.dumps(line)]).status_code == 400

    def test_without_a_key_nothing_is_taken(self, world: World, file: File) -> None:
        assert report(world, file, key="mk_wrong").status_code == 401
        assert not statements()


class TestWhoIsClaimed:
    def test_a_known_user_is_named_but_nobody_is_made_one(self, world: World, file: File, tmp_path: Path) -> None:
        report(world, file)
        assert {one["subject"] for one in statements()} == {None} and not Subject.objects.exists()
        uid = world.verify()["subject"]["uid"]
        report(world, filled(tmp_path / "more", 1))
        assert [one["subject"] for one in statements()][-1] == uid and statements()[-1]["client"] == "claude"

    def test_who_is_known_by_a_uid_is_named_by_that_alone(self, world: World, file: File, tmp_path: Path) -> None:
        """What is under the backend's key would name the user when the user's own key is destroyed."""
        told = []
        for number in range(2):
            report(world, filled(tmp_path / str(number), 1))
            row = Record.objects.filter(type="ungoverned").latest("at")
            told.append(details.opened(row, record_page.read(row), details.KeyRing()).members.get("claimed_sub"))
            world.verify()
        assert told == ["alice", None]

    def test_a_forged_issuer_claims_nothing(self, world: World, tmp_path: Path) -> None:
        file = File.new(prepared(tmp_path / "spool"))
        file.append(told("status.show", Incoming(token(iss="https://evil.example/")), "timeout"))
        report(world, file)
        [said] = statements()
        assert (said["issuer"], said["subject"], said["client"]) == (None, None, None)

    def test_it_is_no_call_and_reads_as_what_it_is(self, world: World, file: File) -> None:
        report(world, file)
        row = Record.objects.filter(type="ungoverned").first()
        assert row is not None
        line = record_page.row(row, {})
        assert "while Muniment was away" in line.title and "claimed, not verified" in line.why
        assert line.pill.kind == "plain"
        page = record_page.page(row, {})
        assert page["parent_url"] is None and not page["is_call"]
        assert "by the backend's clock" in str(page["facts"])
        assert search.by_id(row.id) == row and rollups.CALLS != "ungoverned"

    @pytest.mark.parametrize(
        ("days", "words"), [(0, "clock"), (-1, "cannot be right"), (3, "3 days before"), (20_000, "days before it was")]
    )
    def test_a_time_that_is_far_from_ours_is_kept_and_marked(
        self, world: World, tmp_path: Path, days: int, words: str
    ) -> None:
        file = File.new(prepared(tmp_path / "spool"))
        said = told("status.show", Incoming(None), "timeout")
        file.append(said | {"at": max(0, said["at"] - days * 86_400_000_000)})
        assert report(world, file).status_code == 200
        row = Record.objects.filter(type="ungoverned").get()
        [fact] = [fact for fact in record_page.page(row, {})["facts"] if fact.name == "Called at"]
        assert words in str(fact.value) and (days != 0 or str(fact.value).endswith("by the backend's clock"))

    def test_the_claims_are_protected_and_not_in_the_statement(self, world: World, file: File) -> None:
        report(world, file)
        for row in Record.objects.filter(type="ungoverned"):
            assert b"alice" not in bytes(row.statement)
            assert b"alice" not in bytes(row.disclosures)


def test_the_log_that_has_them_is_whole(world: World, file: File, owner_url: str) -> None:
    world.verify()
    report(world, file)
    assert chain.findings(owner_url) == []
