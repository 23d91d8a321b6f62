"""One hostile member never spoils the batch it shares; the API names it and queues nothing."""

import json
import os
from typing import Any

import pytest

from audit.entries import Receipt, entry
from audit.models import Batch, Record
from clients.models import Issuer
from governance import process
from muniment import disclosures, statements
from tests.audit import chain
from tests.audit.recorders import entry as plain
from tests.audit.recorders import receipts, running
from tests.world import World, build, token


def deep(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = {"a": value}
    return value


HOSTILE = {
    "NUL": "a\0b",
    "lone surrogate": "a\ud800b",
    "float": 1.5,
    "not a number": float("nan"),
    "huge integer": 2**53,
    "1 MB": "x" * 1_000_000,
    "deep": deep(40),
    "very deep": deep(5_000),
    "bytes": b"x",
    "odd name": {"\0": 1},
    "set": {1, 2},
    "string subclass": type("Text", (str,), {})("x"),
}


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.mark.parametrize("name", HOSTILE)
def test_one_of_twenty_fails_alone(db: None, name: str) -> None:
    with running() as recorder:
        entries = [plain(f"t{number}") for number in range(20)]
        entries[7].statement["roles"] = [HOSTILE[name]]
        results = recorder.record(entries)
        receipts(recorder.record([plain("after")]))
        assert recorder.thread.is_alive()
    assert isinstance(results[7], Exception) and not isinstance(results[7], Receipt)
    assert "xxx" not in str(results[7])
    receipts(results[:7] + results[8:])
    assert list(Batch.objects.order_by("first").values_list("size", flat=True)) == [19, 1]
    assert chain.findings(os.environ["DATABASE_OWNER_URL"]) == []


@pytest.mark.parametrize("value", ["x" * 500, 5, ["x"], {"a": "b"}, True])
def test_what_does_not_fit_its_column_fails_alone(db: None, value: Any) -> None:
    columns = ["type", "reason", "backend", "client", "subject", "tenant", "tool", "decision"]
    with running() as recorder:
        results = recorder.record([plain(), *(plain(said={column: value}) for column in columns), plain()])
    for column, result in zip(columns, results[1:-1], strict=True):
        assert isinstance(result, statements.StatementError) and column in str(result)
    receipts([results[0], results[-1]])


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "1 MB"])
def test_hostile_private_values_are_refused_before_queueing(name: str) -> None:
    with pytest.raises((disclosures.DisclosureError, UnicodeError)) as caught:
        entry({"type": "staff"}, {"search": HOSTILE[name]}, "system")
    assert "xxx" not in str(caught.value)


TEXT = [b'"a\\u0000b"', b'"a\\ud800b"', b"1.5", b'"' + b"x" * 3000 + b'"', b"[]", b'{"a":' * 50 + b"1" + b"}" * 50]
MEMBERS = ["tool", "tenant", "request.id", "request.trace_id", "request.session_id", "request.ip", "resource.id",
           "resource.type", "agent.mode", "agent.chain", "agent.scopes", "arguments_digest", "assertion"]  # fmt: skip


def body(member: str, value: bytes) -> bytes:
    """A call in which this member has this value, which need not be JSON that Python would write."""
    path = member.split(".")
    if member in ("agent.chain", "agent.scopes"):
        value = b"[" + value + b"]"
    content: dict[str, Any] = {"token": token(), "tool": "memory.recall"}
    if path[0] == "resource":
        content["resource"] = {"type": "memory", "id": "m"}
    place = content
    for step in path[:-1]:
        place = place.setdefault(step, {})
    place[path[-1]] = "HERE"
    return json.dumps(content).encode().replace(b'"HERE"', value)


@pytest.mark.parametrize("member", MEMBERS)
def test_the_api_names_a_hostile_member_and_queues_nothing(world: World, member: str) -> None:
    world.verify()
    process.recorder().signer = None  # type: ignore[assignment]  # nothing could be recorded
    for value in TEXT:
        response = world.post("/v1/verify", body(member, value))
        assert response.status_code == 400, (value[:20], response.content)
        problem = response.json()
        if problem["type"].endswith("invalid-member"):
            assert member.split(".")[0] in problem["detail"], (value[:20], problem)
        else:
            assert value.startswith(b'"a\\ud800'), "only what is no JSON text at all may go unnamed"
        assert "xxx" not in response.content.decode() and "a\\u0000b" not in response.content.decode()
    assert not process.recorder().queue
    assert Record.objects.filter(type="decision").count() == 1


@pytest.mark.parametrize("value", TEXT)
def test_in_a_batch_only_the_hostile_item_has_a_problem(world: World, value: bytes) -> None:
    good = json.dumps({"token": token(), "tool": "memory.recall"}).encode()
    items = [good] * 20
    items[11] = body("request.id", value)
    response = world.post("/v1/verify/batch", b'{"items": [' + b", ".join(items) + b"]}")
    assert response.status_code == 200, response.content
    answers = response.json()["items"]
    assert answers[11]["status"] == 400 and answers[11]["type"].startswith("urn:muniment:problem:")
    assert [answer["decision"] for answer in answers[:11] + answers[12:]] == ["allow"] * 19
    assert Record.objects.filter(type="decision").count() == 19


HOSTILE_TOKENS = ["", " ", "a.b.c", "x" * 20_000, "\t", "ey" * 3000, "é.é.é", token() + ".", "." * 100]


def test_hostile_tokens_are_recorded_denials_beside_good_calls(world: World) -> None:
    items = [{"token": bad, "tool": "memory.recall"} for bad in HOSTILE_TOKENS]
    items.append({"token": token(), "tool": "memory.recall"})
    answers = world.post("/v1/verify/batch", {"items": items}).json()["items"]
    assert [answer["decision"] for answer in answers] == ["deny"] * len(HOSTILE_TOKENS) + ["allow"]
    assert {answer["status"] for answer in answers[:-1]} == {401}
    assert Record.objects.filter(type="decision").count() == len(items)


@pytest.mark.parametrize(("length", "reason"), [(255, "granted"), (256, "token_invalid")])
def test_a_tenant_of_any_length_is_recorded_or_refused_by_itself(world: World, length: int, reason: str) -> None:
    Issuer.objects.update(tenant_claim="org")
    items = [{"token": token(org="o" * (length if n == 3 else 20)), "tool": "memory.recall"} for n in range(6)]
    answers = world.post("/v1/verify/batch", {"items": items}).json()["items"]
    assert [answer["reason"] for answer in answers] == ["granted"] * 3 + [reason] + ["granted"] * 2
    assert Record.objects.filter(type="decision").count() == 6
