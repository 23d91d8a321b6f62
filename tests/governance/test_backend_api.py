"""Outcomes, declarations, keys, the description, health, assertions."""

import base64
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.utils import timezone

from audit import alerts
from audit.models import Head, PublishedKey, Record
from muniment import batches
from tests.audit.sealers import sealed, sealing
from tests.world import World, build, token
from tools.credentials import issue
from tools.models import Backend, BackendKey, Tool


@pytest.fixture
def world(db: None) -> World:
    return build()


def outcome(world: World, record: str, **members: Any) -> Any:
    return world.post(f"/v1/records/{record}/outcome", {"status": "ok"} | members)


def test_the_outcome_of_an_allowed_call_is_its_own_record(world: World) -> None:
    allowed = world.verify()
    touched = [{"type": "memory", "id": "m_123"}]
    response = outcome(world, allowed["record"], resources=touched, count=1, duration_ms=12)
    assert response.status_code == 201
    record = Record.objects.get(id=response.json()["record"])
    statement = json.loads(bytes(record.statement))
    assert (statement["type"], statement["parent"]) == ("outcome", allowed["record"])
    assert statement["outcome"] == {"status": "ok", "count": 1, "duration_ms": 12}
    assert (record.subject, record.client) == (allowed["subject"]["uid"], "claude")
    assert b"m_123" not in bytes(record.statement)


def test_only_the_first_outcome_counts(world: World) -> None:
    record = world.verify()["record"]
    first, second = outcome(world, record), outcome(world, record, status="error")
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json() == first.json() | {"first": False}
    assert Record.objects.filter(type="outcome").count() == 1


def test_a_denied_call_has_no_outcome(world: World) -> None:
    assert outcome(world, world.verify("memory.capture")["record"]).status_code == 409


def test_another_backends_record_and_none_are_answered_alike(world: World) -> None:
    record = world.verify()["record"]
    other = Backend.objects.create(slug="other", name="Other", audiences=["x"])
    world.key = issue(other)
    foreign, none = outcome(world, record), outcome(world, "00000000-0000-7000-8000-000000000000")
    assert (foreign.status_code, none.status_code) == (404, 404)
    assert foreign.content == none.content


@pytest.mark.parametrize("members", [{"status": "maybe"}, {"count": -1}, {"count": 1.5}, {"duration_ms": "1"}])
def test_a_wrong_outcome_is_a_400(world: World, members: dict[str, Any]) -> None:
    assert outcome(world, world.verify()["record"], **members).status_code == 400


def declare(world: World, *tools: dict[str, Any]) -> Any:
    return world.http.put(
        "/v1/tools", json.dumps({"tools": tools}), content_type="application/json",
        headers={"Authorization": f"Bearer {world.key}"},
    )  # fmt: skip


FORGET = {"name": "memory.forget", "access": "destructive", "scopes": ["memory:delete"], "description": "Forget."}


def test_a_declared_tool_waits_for_approval(world: World) -> None:
    assert declare(world, FORGET).json()["tools"] == [
        {"name": "memory.forget", "status": "pending", "change": "created"}
    ]
    assert world.verify("memory.forget")["reason"] == "tool_suspended"
    Tool.objects.filter(name="memory.forget").update(status="active")
    assert world.verify("memory.forget")["reason"] == "insufficient_scope"


def test_a_key_revoked_a_moment_ago_declares_nothing(world: World) -> None:
    world.verify()
    BackendKey.objects.update(revoked_at=timezone.now())
    assert declare(world, FORGET).status_code == 401
    assert not Tool.objects.filter(name="memory.forget").exists()


def test_declaring_again_changes_nothing(world: World) -> None:
    declare(world, FORGET)
    version = Head.objects.get().policy
    assert declare(world, FORGET).json()["tools"][0]["change"] == "unchanged"
    assert Head.objects.get().policy == version


@pytest.mark.parametrize("change", [{"scopes": []}, {"scopes": ["memory:read"]}, {"access": "read"}])
def test_a_change_of_what_a_tool_may_do_suspends_it(world: World, change: dict[str, Any]) -> None:
    declare(world, FORGET)
    Tool.objects.filter(name="memory.forget").update(status="active")
    declare(world, FORGET | change)
    assert Tool.objects.get(name="memory.forget").status == "suspended"


def test_a_change_of_words_does_not(world: World) -> None:
    declare(world, FORGET)
    Tool.objects.filter(name="memory.forget").update(status="active")
    assert declare(world, FORGET | {"description": "Forgets."}).json()["tools"][0]["change"] == "changed"
    assert Tool.objects.get(name="memory.forget").status == "active"


def test_a_backend_declares_only_its_own_tools(world: World) -> None:
    world.key = issue(Backend.objects.create(slug="other", name="Other", audiences=["x"]))
    declare(world, FORGET)
    assert Tool.objects.get(name="memory.forget").backend.slug == "other"
    assert Tool.objects.get(name="memory.recall").backend.slug == "inner"


@pytest.mark.parametrize(
    "tools",
    [[FORGET, FORGET], [FORGET | {"name": "a b"}], [FORGET | {"scopes": ["a b"]}], [FORGET | {"access": "all"}],
     [FORGET | {"input_schema": {"x": "y" * 40_000}}], [FORGET | {"input_schema": {"x": "\x00"}}], ["x"]],
)  # fmt: skip
def test_a_wrong_declaration_is_a_400_and_changes_nothing(world: World, tools: list[Any]) -> None:
    assert declare(world, *tools).status_code == 400
    assert not Tool.objects.filter(name="memory.forget").exists()


def test_the_receipt_verifies_with_the_published_writer_key(world: World) -> None:
    answer = world.verify()
    keys = {key["kid"]: key for key in world.http.get("/v1/keys").json()["keys"]}
    key = keys[answer["receipt"]["key"]]
    public = base64.urlsafe_b64decode(key["x"] + "=")
    statement = bytes(Record.objects.get(id=answer["record"]).statement)
    assert key["use"] == "writer"
    assert batches.verify_receipt(answer["receipt"], statement, public)
    assert not batches.verify_receipt(answer["receipt"], statement + b" ", public)


def test_an_assertion_is_signed_for_a_registered_audience_alone(world: World) -> None:
    answer = world.verify(assertion="https://db.example")
    public = Ed25519PublicKey.from_public_bytes(bytes(PublishedKey.objects.get(use="assertion").public))
    claims = jwt.decode(answer["assertion"], public, algorithms=["EdDSA"], audience="https://db.example")
    assert jwt.get_unverified_header(answer["assertion"])["typ"] == "muniment-assertion+jwt"
    assert (claims["sub"], claims["jti"]) == (answer["subject"]["uid"], answer["record"])
    assert claims["exp"] - claims["iat"] <= 60
    assert world.verify(assertion="https://evil.example").get("assertion") is None
    assert "assertion" not in world.verify("memory.capture", assertion="https://db.example")


def test_verify_never_accepts_an_assertion(world: World) -> None:
    made = world.verify(assertion="https://db.example")["assertion"]
    assert world.verify(token=made)["status"] == 401


def test_a_challenge_lists_all_scopes_of_the_operation(world: World) -> None:
    capture = Tool.objects.get(name="memory.capture")
    capture.scopes.add(*capture.backend.tools.get(name="memory.recall").scopes.all())
    answer = world.verify("memory.capture", token=token(scope="memory:read"))
    assert answer["reason"] == "insufficient_scope"
    assert 'scope="memory:read memory:write"' in answer["www_authenticate"]
    assert 'error="insufficient_scope"' in answer["www_authenticate"]
    assert "https://inner.example/.well-known/oauth-protected-resource/mcp" in answer["www_authenticate"]


def test_no_challenge_where_signing_in_again_would_not_help(world: World) -> None:
    assert "www_authenticate" not in world.verify("memory.capture")


def test_the_description_is_openapi_3_1_and_names_every_path(world: World) -> None:
    found = world.http.get("/v1/schema", headers={"Accept": "application/json"}).json()
    assert found["openapi"] == "3.1.0"
    paths = {"/v1/verify", "/v1/verify/batch", "/v1/records/{record}/outcome", "/v1/tools", "/v1/keys"}
    assert paths <= set(found["paths"])
    assert {"Call", "Answer", "Outcome", "Declaration", "Problem"} <= set(found["components"]["schemas"])


def test_health(world: World) -> None:
    assert world.http.get("/livez").status_code == 200
    ready = world.http.get("/readyz")
    assert (ready.status_code, ready.json()["database"]) == (200, "ok")


def test_readiness_names_a_log_that_is_not_sealed_and_calls_are_verified_all_the_same(
    world: World, tmp_path: Path
) -> None:
    assert world.http.get("/readyz").json()["log"] == "away"
    with sealing(tmp_path) as sealer:
        world.verify()
        sealed(sealer)
        assert world.http.get("/readyz").json() | {"redis": "ok"} == {
            "status": "ok", "database": "ok", "recorder": "ok", "policy": "ok", "redis": "ok", "log": "ok",
        }  # fmt: skip
    alerts.raise_alert("batch-missing", "x", "gone")
    ready = world.http.get("/readyz")
    assert (ready.status_code, ready.json()["status"], ready.json()["log"]) == (200, "ok", "away")
