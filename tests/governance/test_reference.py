"""The API's reference page, and the words and examples of the OpenAPI description that it is made of."""

import json
import re
from typing import Any

import msgspec
import pytest
from django.test import Client as HttpClient

from governance import contract, reference, schema_examples, schema_words
from tests.staff import administrator
from tests.world import World, build, token

REQUESTS = {"verify": contract.Call, "report_outcome": contract.Outcome, "declare_tools": contract.Declaration}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """What /v1/schema serves."""
    found: dict[str, Any] = json.loads(HttpClient().get("/v1/schema", headers={"Accept": "application/json"}).content)
    return found


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["operationId"]: one for path in document["paths"].values() for one in path.values()}


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]  # type: ignore[no-any-return]
    return schema


class TestThePage:
    def test_everybody_may_read_it_and_it_has_every_operation(self, db: None, document: dict[str, Any]) -> None:
        response = HttpClient().get("/reference")
        assert response.status_code == 200
        text = response.content.decode()
        for path, methods in document["paths"].items():
            assert f'<span class="mono">{path}</span>' in text, path
            for one in methods.values():
                assert f'id="{one["operationId"]}"' in text and f'href="#{one["operationId"]}"' in text
        for name in document["components"]["schemas"]:
            assert f'id="type-{name}"' in text

    def test_every_link_within_it_leads_somewhere(self, db: None) -> None:
        text = HttpClient().get("/reference").content.decode()
        targets, ids = set(re.findall(r'href="#([^"]+)"', text)), re.findall(r'\bid="([^"]+)"', text)
        assert targets <= set(ids) and len(ids) == len(set(ids))

    def test_it_loads_nothing_from_elsewhere_and_keeps_to_the_policy(self, db: None) -> None:
        response = HttpClient().get("/reference")
        text = response.content.decode()
        assert re.findall(r'(?:src|href)="(?:https?:)?//', text) == []
        assert "<script>" not in text and "style=" not in text and "<style" not in text
        assert "script-src 'self'" in response.headers["Content-Security-Policy"]

    def test_staff_see_their_navigation_and_others_none(self, db: None) -> None:
        assert '<nav class="side"' in administrator().get("/reference").content.decode()
        assert '<nav class="side"' not in HttpClient().get("/reference").content.decode()

    def test_nothing_else_than_reading(self, db: None) -> None:
        assert HttpClient().post("/reference").status_code == 405


class TestTheWords:
    def test_every_operation_and_tag_has_its_words(self, document: dict[str, Any]) -> None:
        found = operations(document)
        assert {name for name, one in found.items() if one["summary"] == name} == set()
        assert set(schema_words.SUMMARIES) <= set(found), "words for what there is not"
        assert {one["tags"][0] for one in found.values()} <= {tag["name"] for tag in document["tags"]}

    def test_the_words_are_of_members_that_there_are(self, document: dict[str, Any]) -> None:
        for name, words in schema_words.MEMBERS.items():
            there = {one.name for one in reference.members(document["components"]["schemas"][name])}
            assert set(words) <= there, name

    def test_introspection_tells_each_member_by_which_a_proof_is_sent(self, document: dict[str, Any]) -> None:
        form = operations(document)["introspect"]["requestBody"]["content"]["application/x-www-form-urlencoded"]
        taken = {f"dpop_{one.name}" for one in msgspec.structs.fields(contract.Dpop)} | {"x5t#S256"}
        told = {name: one["description"] for name, one in form["schema"]["properties"].items() if name in taken}
        assert set(told) == taken and all(told.values())

    def test_who_may_send_signals_is_told(self, document: dict[str, Any]) -> None:
        found = operations(document)
        assert found["push_event"]["security"] == [{"pushToken": []}] and found["logout"]["security"] == [{}]
        assert set(found["push_event"]["responses"]) == {"202", "400", "401", "413", "429", "503"}

    def test_members_say_what_they_are_held_to(self, document: dict[str, Any]) -> None:
        found = {one.name: one for one in reference.members(document["components"]["schemas"]["Call"])}
        assert found["tool"].required and found["tool"].bounds == ["1 to 128 characters"]
        assert found["token"].required and found["token"].type == reference.Type("text", nullable=True)
        assert not found["tenant"].required and found["agent"].type.ref == "Agent"
        agent = {one.name: one for one in reference.members(document["components"]["schemas"]["Agent"])}
        assert agent["chain"].type == reference.Type("text", many=True)
        assert agent["chain"].bounds == ["at most 8 of them", "1 to 128 characters each"]
        assert agent["mode"].bounds == ["`interactive` if left out"]


class TestTheExamples:
    @pytest.mark.parametrize("name", REQUESTS)
    def test_a_request_is_one_that_is_taken(self, name: str) -> None:
        for example in schema_examples.EXAMPLES[name]["request"].values():
            made = msgspec.json.decode(msgspec.json.encode(example), type=REQUESTS[name])
            assert set(example) <= set(msgspec.to_builtins(made))

    def test_an_answer_has_the_members_of_its_type(self, document: dict[str, Any]) -> None:
        for name, examples in schema_examples.EXAMPLES.items():
            for status, found in examples.items():
                if status == "request":
                    continue
                [content] = operations(document)[name]["responses"][status]["content"].values()
                for value in found.values():
                    fits(document, content["schema"], value)

    def test_real_answers_have_the_members_of_the_examples(self, db: None) -> None:
        world: World = build()
        allow = world.verify()
        assert set(allow) == set(schema_examples.ALLOW)
        deny = world.verify(tool="memory.capture", token=token(scope="memory:read"))
        assert set(deny) == set(schema_examples.DENY)
        for part in ("receipt", "subject", "scopes"):
            assert set(allow[part]) == set(schema_examples.ALLOW[part])


def fits(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """The value's members are those of the schema, and those that are required are there."""
    schema = resolved(document, schema)
    for part in schema.get("allOf", []):
        part = resolved(document, part)
        assert set(part.get("required", [])) <= set(value)
    if "oneOf" in schema or "allOf" in schema:
        return
    if "items" in schema:
        for one in value:
            fits(document, schema["items"], one)
    if "properties" in schema and value is not None:
        assert set(value) <= set(schema["properties"]) and set(schema.get("required", [])) <= set(value)
        for name, one in value.items():
            fits(document, schema["properties"][name], one)
