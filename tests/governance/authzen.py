"""Asking by AuthZEN in the small world of `tests.world`."""

from typing import Any

from audit.models import Record
from tests.staff import statement
from tests.world import World

EVALUATION, EVALUATIONS = "/access/v1/evaluation", "/access/v1/evaluations"
RECALL, CAPTURE = ({"type": "tool", "id": name} for name in ("memory.recall", "memory.capture"))
CALL = {"name": "tools/call"}
CLAUDE = {"agent": "claude-app"}


def user(name: str = "alice", **properties: Any) -> dict[str, Any]:
    return {"type": "user", "id": name, "properties": properties}


def question(**members: Any) -> dict[str, Any]:
    """May alice recall through Claude? And otherwise as the members say."""
    return {"subject": user(), "action": CALL, "resource": RECALL, "context": CLAUDE} | members


def ask(world: World, **members: Any) -> dict[str, Any]:
    """The context of an answer, with the decision in it."""
    response = world.post(EVALUATION, question(**members))
    assert response.status_code == 200, response.content
    found = response.json()
    return {"decision": found["decision"]} | found["context"]


def ask_many(world: World, *items: Any, semantic: str = "execute_all", **members: Any) -> list[Any]:
    body = {"evaluations": list(items), "options": {"evaluations_semantic": semantic}, **members}
    response = world.post(EVALUATIONS, body)
    assert response.status_code == 200, response.content
    found: list[Any] = response.json()["evaluations"]
    return found


def find(world: World, kind: str, **members: Any) -> dict[str, Any]:
    """What a search answers."""
    response = world.post(f"/access/v1/search/{kind}", members)
    assert response.status_code == 200, response.content
    found: dict[str, Any] = response.json()
    return found


def ids(found: dict[str, Any]) -> list[str]:
    return [one.get("id") or one["name"] for one in found["results"]]


def said(answer: dict[str, Any]) -> dict[str, Any]:
    """The statement of the record that an answer names."""
    return statement(Record.objects.get(id=answer["record"]))
