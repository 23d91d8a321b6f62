"""The certification scenario of OpenID AuthZEN Authorization API 1.0 (openid/authzen, certification/), by its sections,
with the policy that docs/integrations/authzen.md shows for it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client as HttpClient
from django.test import override_settings

from clients.policyfile import parse
from clients.policyfile_apply import apply
from governance import process
from tests.reset import reset
from tests.test_docs import blocks, text
from tools.credentials import issue
from tools.models import Backend

EVALUATION, EVALUATIONS = "/access/v1/evaluation", "/access/v1/evaluations"
SEARCH = "/access/v1/search/"
URL = "https://pdp.example"
ALICE, BOB = {"type": "user", "id": "alice"}, {"type": "user", "id": "bob"}
ADMIN = BOB | {"properties": {"role": "admin"}}
READ, WRITE = {"name": "read"}, {"name": "write"}
SOFT, HARD = ({"name": "delete", "properties": {"soft": soft}} for soft in (True, False))
ONE, TWO = {"type": "record", "id": "record-1"}, {"type": "record", "id": "record-2"}
ACTIVE, ARCHIVED = ONE | {"properties": {"status": "active"}}, TWO | {"properties": {"status": "archived"}}
QUESTION = {"subject": ALICE, "action": READ, "resource": ONE}
WHO = {"subject": {"type": "user"}, "action": READ, "resource": ONE}


class Harness:
    """A policy enforcement point with a backend's key."""

    def __init__(self, key: str) -> None:
        self.key, self.http = key, HttpClient()

    def send(self, path: str, body: Any, content_type: str = "application/json", **headers: str) -> Any:
        data = body if isinstance(body, str) else json.dumps(body)
        given = {"Authorization": f"Bearer {self.key}", **headers}
        return self.http.post(path, data, content_type=content_type, headers=given)

    def answer(self, path: str, body: Any) -> Any:
        """The body of a 200."""
        response = self.send(path, body)
        assert response.status_code == 200, response.content
        assert response.headers["Content-Type"] == "application/json"
        return response.json()

    def decision(self, body: Any) -> bool:
        found = self.answer(EVALUATION, body)
        assert isinstance(found["decision"], bool) and isinstance(found["context"], dict)
        return bool(found["decision"])

    def decisions(self, body: Any) -> list[bool]:
        found = self.answer(EVALUATIONS, body)
        assert "decision" not in found
        assert all(isinstance(one["decision"], bool) for one in found["evaluations"])
        return [one["decision"] for one in found["evaluations"]]

    def results(self, kind: str, body: Any) -> list[dict[str, str]]:
        found = self.answer(SEARCH + kind, body)
        assert isinstance(found["page"]["next_token"], str)
        results: list[dict[str, str]] = found["results"]
        return results


@pytest.fixture(scope="module")
def pdp(migrated: None) -> Iterator[Harness]:
    """The policy of the documents, applied."""
    reset()
    [policy] = blocks(text("docs/integrations/authzen.md"), "yaml")
    apply(parse(policy), "authzen.md")
    with override_settings(MUNIMENT_AUTHZEN_SUBJECTS="sub", MUNIMENT_URL=URL):
        yield Harness(issue(Backend.objects.get()))
    process.stop_recorder()


class TestBasic:
    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ({"subject": ALICE, "action": READ, "resource": ONE}, True),
            ({"subject": ALICE, "action": WRITE, "resource": ONE}, True),
            ({"subject": BOB, "action": READ, "resource": ONE}, True),
            ({"subject": BOB, "action": WRITE, "resource": ONE}, False),
            ({"subject": ALICE, "action": WRITE, "resource": ARCHIVED}, False),
            ({"subject": ADMIN, "action": WRITE, "resource": ARCHIVED}, True),
            ({"subject": ALICE, "action": SOFT, "resource": ONE}, True),
            ({"subject": ALICE, "action": HARD, "resource": ONE}, False),
        ],
        ids=[f"1.4 rule {n}" for n in range(1, 9)],
    )
    def test_1_4_the_decisions_of_the_fixture(self, pdp: Harness, body: Any, expected: bool) -> None:
        assert pdp.decision(body) is expected
        with_context = body | {"context": {"time": "2025-06-27T18:03-07:00", "ip": "192.168.1.1"}}
        assert pdp.decision(with_context) is expected, "2.2.3: the context changes nothing"

    def test_2_2_4_it_is_the_property_that_decides_and_not_the_identifier(self, pdp: Harness) -> None:
        assert pdp.decision({"subject": ALICE, "action": WRITE, "resource": ACTIVE}) is True
        resource = ONE | {"properties": {"status": "archived"}}
        assert pdp.decision({"subject": ALICE, "action": WRITE, "resource": resource}) is False
        carol = {"type": "user", "id": "carol"}
        assert pdp.decision({"subject": carol, "action": WRITE, "resource": ARCHIVED}) is False
        carol_as_admin = carol | {"properties": {"role": "admin"}}
        assert pdp.decision({"subject": carol_as_admin, "action": WRITE, "resource": ARCHIVED}) is True

    def test_2_2_8_and_2_2_9_what_is_not_known_is_ignored(self, pdp: Harness) -> None:
        body = {
            "subject": ALICE | {"properties": {"department": "Sales", "role": "manager"}},
            "action": READ | {"properties": {"method": "GET"}},
            "resource": ONE | {"properties": {"status": "active", "owner": "bob"}},
        }
        assert pdp.decision(body) is True
        assert pdp.decision(QUESTION | {"foo": "bar", "futureField": {"nested": True}}) is True

    @pytest.mark.parametrize(
        "body",
        [
            *({name: value for name, value in QUESTION.items() if name != left_out} for left_out in QUESTION),
            QUESTION | {"subject": {"id": "alice"}}, QUESTION | {"subject": {"type": "user"}},
            QUESTION | {"action": {}}, QUESTION | {"resource": {"id": "record-1"}},
            QUESTION | {"resource": {"type": "record"}}, QUESTION | {"subject": "alice"},
            QUESTION | {"action": {"name": 123}}, "{not json", "",
        ],
        ids=str,
    )  # fmt: skip
    def test_2_4_what_is_wrong_is_a_400(self, pdp: Harness, body: Any) -> None:
        for path in (EVALUATION, EVALUATIONS):
            assert pdp.send(path, body).status_code == 400

    @pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
    def test_2_4_3_another_content_type_is_a_400(self, pdp: Harness, content_type: str) -> None:
        for path in (EVALUATION, EVALUATIONS, f"{SEARCH}subject"):
            assert pdp.send(path, json.dumps(QUESTION), content_type).status_code == 400
        assert pdp.send(EVALUATION, QUESTION, "application/json; charset=utf-8").status_code == 200

    def test_2_5_the_id_of_the_request_comes_back(self, pdp: Harness) -> None:
        for path, body in (
            (EVALUATION, QUESTION),
            (EVALUATIONS, QUESTION),
            (f"{SEARCH}subject", WHO),
            (EVALUATION, ""),
        ):
            assert pdp.send(path, body, **{"X-Request-ID": "bfe9eb29-ab87"}).headers["X-Request-ID"] == "bfe9eb29-ab87"
        assert pdp.send(EVALUATION, QUESTION).status_code == 200

    def test_2_6_the_same_question_has_the_same_answer(self, pdp: Harness) -> None:
        assert {pdp.decision(QUESTION) for _ in range(3)} == {True}


class TestBatch:
    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ({"subject": BOB, "resource": ONE, "evaluations": [{"action": READ}, {"action": WRITE}]}, [True, False]),
            (
                {"subject": ALICE, "action": WRITE, "evaluations": [{"resource": ACTIVE}, {"resource": ARCHIVED}]},
                [True, False],
            ),
            (
                {"action": WRITE, "resource": ARCHIVED, "evaluations": [{"subject": ALICE}, {"subject": ADMIN}]},
                [False, True],
            ),
            (
                {"evaluations": [QUESTION, {"subject": BOB, "action": WRITE, "resource": ONE}]},
                [True, False],
            ),
            (
                {
                    "subject": ALICE, "action": WRITE, "resource": {"type": "record"},
                    "evaluations": [
                        {"resource": {"id": "record-1", "properties": {"status": "active"}}}, {"resource": ARCHIVED},
                    ],
                },
                [True, False],
            ),
            ({"subject": ALICE, "action": READ, "evaluations": [{"resource": ONE}, {}]}, [True, False]),
        ],
        ids=["3.2.2", "3.2.3", "3.2.4", "3.2.5", "3.2.7", "3.4.1"],
    )  # fmt: skip
    def test_3_the_decisions_of_the_fixture_in_their_order(self, pdp: Harness, body: Any, expected: list[bool]) -> None:
        assert pdp.decisions(body) == expected

    def test_3_2_1_and_3_2_6_as_many_answers_as_questions(self, pdp: Harness) -> None:
        body = {"subject": ALICE, "action": READ, "context": {"time": "2025-06-27T18:03-07:00"}}
        own = {"time": "2025-06-27T19:00-07:00", "source": "batch-override"}
        items = [{"resource": ONE}, {"resource": TWO, "context": own}]
        assert len(pdp.decisions(body | {"evaluations": items})) == 2

    def test_3_4_2_and_3_4_3_without_items_it_is_a_single_question(self, pdp: Harness) -> None:
        for body in (QUESTION, QUESTION | {"evaluations": []}):
            found = pdp.answer(EVALUATIONS, body)
            assert found["decision"] is True and "evaluations" not in found


class TestSearch:
    def test_4_2_subjects(self, pdp: Harness) -> None:
        found = pdp.results("subject", WHO)
        assert ALICE in found and BOB in found and {one["type"] for one in found} == {"user"}
        assert pdp.results("subject", WHO | {"context": {"time": "2025-06-27T18:03-07:00"}}) == found
        found = pdp.results("subject", WHO | {"action": WRITE, "resource": ARCHIVED})
        assert BOB in found and ALICE not in found

    def test_4_3_resources(self, pdp: Harness) -> None:
        wish = {"subject": ALICE, "action": READ, "resource": {"type": "record"}}
        assert pdp.results("resource", wish) == [ONE]
        found = pdp.results("resource", wish | {"subject": ADMIN, "action": WRITE})
        assert found == [TWO]

    def test_4_4_actions(self, pdp: Harness) -> None:
        wish = {"subject": ALICE, "resource": ONE}
        assert {"name": "read"} in (found := pdp.results("action", wish)) and {"name": "write"} in found
        assert pdp.results("action", wish | {"context": {"time": "2025-06-27T18:03-07:00"}}) == found
        assert {"name": "write"} in pdp.results("action", {"subject": ADMIN, "resource": ARCHIVED})

    def test_4_5_pages(self, pdp: Harness) -> None:
        first = pdp.answer(f"{SEARCH}subject", WHO | {"page": {"limit": 1}})
        assert len(first["results"]) == 1 and first["page"]["next_token"]
        rest = pdp.answer(f"{SEARCH}subject", WHO | {"page": {"token": first["page"]["next_token"]}})
        assert rest["page"]["next_token"] == ""
        assert sorted(one["id"] for one in first["results"] + rest["results"]) == ["alice", "bob"]

    def test_4_6_what_is_not_known_finds_nothing(self, pdp: Harness) -> None:
        nobody = {"type": "user", "id": "nonexistent-user"}
        assert pdp.results("action", {"subject": nobody, "resource": ONE}) == []
        assert pdp.results("subject", WHO | {"subject": {"type": "spaceship"}}) == []
        for kind, body in (("subject", WHO), ("action", {"subject": ALICE})):
            assert pdp.results(kind, body | {"resource": {"type": "spaceship", "id": "record-1"}}) == []
        assert pdp.results("resource", {"subject": ALICE, "action": READ, "resource": {"type": "spaceship"}}) == []

    @pytest.mark.parametrize(
        ("kind", "body"),
        [
            ("subject", {"subject": {"type": "user"}, "resource": ONE}),
            ("resource", {"action": READ, "resource": {"type": "record"}}),
            ("action", {"subject": ALICE}),
            ("subject", WHO | {"resource": {"type": "record"}}),
            ("resource", {"subject": {"type": "user"}, "action": READ, "resource": {"type": "record"}}),
        ],
    )
    def test_4_7_what_is_missing_is_a_400(self, pdp: Harness, kind: str, body: Any) -> None:
        assert pdp.send(SEARCH + kind, body).status_code == 400


class TestDiscovery:
    def test_6_the_metadata(self, pdp: Harness) -> None:
        response = HttpClient().get("/.well-known/authzen-configuration")
        assert response.status_code == 200 and response.headers["Content-Type"] == "application/json"
        found = response.json()
        assert found.pop("policy_decision_point") == URL == settings.MUNIMENT_URL
        assert set(found.values()) == {
            f"{URL}{path}"
            for path in (EVALUATION, EVALUATIONS, *(SEARCH + kind for kind in ("subject", "resource", "action")))
        }
        for url in found.values():
            assert pdp.send(url.removeprefix(URL), "{}").status_code == 400, "there is somebody there"


def test_the_documents_name_this_file() -> None:
    assert re.search(rf"`tests/governance/{re.escape(Path(__file__).name)}`", text("docs/integrations/authzen.md"))
