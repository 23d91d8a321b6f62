"""Bad input gets a problem document that names what is wrong, and nothing is recorded."""

import json
from typing import Any

import pytest

from audit.models import Record
from tests.world import World, build, token


@pytest.fixture
def world(db: None) -> World:
    return build()


def problem(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.content
    assert response.headers["Content-Type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert found["status"] == status
    return found


@pytest.mark.parametrize(
    "key",
    ["", "mk_", "mk_AAAAAAAAAAAA_" + "A" * 43, "mk_ä", "Basic x", "mk_" + "A" * 5000, "mk_AAAAAAAAAAAA_" + "A" * 44],
)
def test_a_wrong_backend_key_is_refused_without_saying_why(world: World, key: str) -> None:
    found = problem(world.post("/v1/verify", {"token": token(), "tool": "memory.recall"}, key=key), 401)
    assert "mk_" not in json.dumps(found).replace("Bearer mk_...", "")


def test_the_right_key_id_with_another_secret_is_refused(world: World) -> None:
    forged = world.key[:-4] + ("AAAA" if not world.key.endswith("AAAA") else "BBBB")
    problem(world.post("/v1/verify", {"token": token(), "tool": "memory.recall"}, key=forged), 401)


def test_a_revoked_key_ends_with_the_next_call_even_in_a_process_that_has_seen_it(world: World) -> None:
    from django.utils import timezone

    from tools.models import BackendKey

    assert world.verify()["decision"] == "allow"
    BackendKey.objects.update(revoked_at=timezone.now())
    problem(world.post("/v1/verify", {"token": token(), "tool": "memory.recall"}), 401)


def test_an_expired_key_is_refused(world: World) -> None:
    from django.utils import timezone

    from tools.models import BackendKey

    BackendKey.objects.update(expires_at=timezone.now())
    problem(world.post("/v1/verify", {"token": token(), "tool": "memory.recall"}), 401)


def test_a_key_that_is_good_again_works_at_once(world: World) -> None:
    from django.utils import timezone

    from tools.models import BackendKey

    BackendKey.objects.update(expires_at=timezone.now())
    problem(world.post("/v1/verify", {"token": token(), "tool": "memory.recall"}), 401)
    BackendKey.objects.update(expires_at=None)
    assert world.verify()["decision"] == "allow"


def test_a_key_made_a_moment_ago_works_at_once(world: World) -> None:
    from tools.credentials import issue

    world.verify()
    world.key = issue(world.backend)
    assert world.verify()["decision"] == "allow"


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "null", '"x"', "\x00", '{"token": "\\ud800", "tool": "t"}', "[" * 5000]
)
def test_what_is_no_json_object_is_a_400(world: World, body: str) -> None:
    problem(world.post("/v1/verify", body), 400)


def test_bytes_that_are_no_utf8_are_a_400(world: World) -> None:
    problem(world.post("/v1/verify", b'{"token": "\xff", "tool": "t"}'), 400)


WRONG = [
    ("tool", 5), ("tool", None), ("tool", ""), ("tool", "a b"), ("tool", "x" * 129), ("tool", "a\x00b"), ("token", 7),
    ("tenant", ""), ("tenant", "a\nb"), ("resource", {"type": "memory"}), ("resource", {"type": "m", "id": "a\x00"}),
    ("resource", {"type": "m", "id": 3}), ("agent", {"mode": "sleeping"}), ("agent", {"chain": ["a"] * 9}),
    ("agent", {"chain": ["a", 1]}), ("agent", {"scopes": ["a b"]}), ("request", {"id": "x" * 257}),
    ("request", {"ip": "not an address"}), ("request", {"id": 1.5}), ("arguments_digest", "md5"),
]  # fmt: skip


@pytest.mark.parametrize(("member", "value"), WRONG)
def test_a_wrong_member_is_named_and_its_value_is_not(world: World, member: str, value: Any) -> None:
    response = world.post("/v1/verify", {"token": token(), "tool": "memory.recall"} | {member: value})
    found = problem(response, 400)
    assert f"$.{member}" in found["detail"]
    assert not Record.objects.filter(type="decision").exists()


def test_a_missing_member_is_named(world: World) -> None:
    assert "tool" in problem(world.post("/v1/verify", {"token": token()}), 400)["detail"]


def test_unknown_members_are_ignored(world: World) -> None:
    assert world.verify(colour="blue", agent={"mode": "api", "mood": 3})["decision"] == "allow"


def test_a_body_over_256_kib_is_a_413(world: World) -> None:
    problem(world.post("/v1/verify", {"token": "x" * (256 * 1024), "tool": "t"}), 413)


def test_a_token_over_16_kib_is_a_recorded_denial(world: World) -> None:
    assert world.verify(token="x" * 17_000)["reason"] == "token_malformed"


def test_no_token_is_a_recorded_denial(world: World) -> None:
    answer = world.verify(token=None)
    assert (answer["reason"], answer["status"], answer["subject"]) == ("token_missing", 401, None)
    assert Record.objects.get(id=answer["record"]).decision == "deny"


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/verify/", "/v1/records/x/outcome"])
def test_an_unknown_path_is_a_problem_too(world: World, path: str) -> None:
    problem(world.post(path, {}), 404)


def test_another_method_is_a_405_that_names_the_right_one(world: World) -> None:
    response = world.http.get("/v1/verify")
    problem(response, 405)
    assert "POST" in response.headers["Allow"]


def test_one_wrong_item_does_not_spoil_the_batch_it_shares(world: World) -> None:
    good = {"token": token(), "tool": "memory.recall"}
    items: list[Any] = [good, good | {"tool": "a\x00"}, 3, good | {"tool": "memory.capture"}]
    answers = world.post("/v1/verify/batch", {"items": items}).json()["items"]
    assert [a.get("decision") or a["status"] for a in answers] == ["allow", 400, 400, "deny"]


@pytest.mark.parametrize("items", [[], [{"token": None, "tool": "t"}] * 101, "x", None])
def test_a_batch_has_one_to_a_hundred_items(world: World, items: Any) -> None:
    problem(world.post("/v1/verify/batch", {"items": items}), 400)


def test_when_the_log_cannot_be_written_nothing_is_answered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from audit.recording import Recorder, Unavailable

    def away(self: Recorder, entries: Any) -> Any:
        raise Unavailable("away")

    monkeypatch.setattr(Recorder, "record", away)
    response = world.post("/v1/verify", {"token": token(), "tool": "memory.recall"})
    assert "decision" not in problem(response, 503)
