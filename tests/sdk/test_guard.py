"""A guarded tool: verified before its body, run as the verified caller, reported afterwards. The platform is real, over
HTTP."""

import asyncio
import inspect
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from audit.models import Record
from clients.models import Limit
from muniment import Denied, Misconfigured, Muniment, current_caller, touched
from muniment.adapters.http import refusal
from muniment.receipts import ReceiptError
from tests import world as worlds
from tests.served import platform
from tests.world import World, token


@pytest.fixture(scope="module")
def url(migrated: None) -> Iterator[str]:
    with platform() as found:
        yield found


@pytest.fixture
def world(db: None) -> World:
    return worlds.build()


@pytest.fixture
def guard(world: World, url: str) -> Iterator[Muniment]:
    with Muniment(url, world.key, timeout=30) as found:
        yield found


def statements(kind: str) -> list[dict[str, Any]]:
    import json

    return [json.loads(bytes(row.statement)) for row in Record.objects.filter(type=kind).order_by("index")]


def test_a_decision_says_who_calls(guard: Muniment) -> None:
    decision = guard.verify(token(), tool="memory.recall")
    caller = decision.require()
    assert decision and decision.allowed
    assert caller.uid.startswith("usr_") and caller.sub == "alice" and caller.client == "claude"
    assert caller.scopes == ("memory:read",) and caller.record == decision.record


def test_a_limit_that_is_used_up_is_a_429_with_when_to_come_back(guard: Muniment) -> None:
    Limit.objects.create(per="subject", count=1, period="hour", reason="r")
    assert guard.verify(token(), tool="memory.recall").allowed
    with pytest.raises(Denied) as refused:
        guard.verify(token(), tool="memory.recall").require()
    answer = refusal(refused.value, guard)
    assert answer.status == 429 and 3_500 < int(answer.headers["Retry-After"]) <= 3_600
    assert refused.value.reason == "rate_limited" and "WWW-Authenticate" not in answer.headers
    assert b"Each user may call once an hour" in answer.body


def test_a_denial_is_false_and_carries_what_the_backend_answers(guard: Muniment) -> None:
    decision = guard.verify(token(scope="memory:read"), tool="memory.capture")
    assert not decision and decision.caller is None
    with pytest.raises(Denied) as refused:
        decision.require()
    denied = refused.value
    assert (denied.status, denied.reason, denied.remedy) == (403, "insufficient_scope", "request_scope")
    assert 'scope="memory:write"' in denied.headers["WWW-Authenticate"]
    assert denied.missing == ("memory:write",) and denied.document["record"] == decision.record


def test_the_body_runs_as_the_verified_caller_and_is_reported(guard: Muniment) -> None:
    @guard.tool("memory.recall", scopes="memory:read")
    def recall(query: str) -> list[str]:
        """Find memories."""
        caller = current_caller()
        assert caller is not None
        touched("memory", "m_1")
        return [f"{caller.sub}: {query}"]

    with guard.request(token(), id="req-1", ip="203.0.113.7", user_agent="Example\n/1"):
        assert recall("sea") == ["alice: sea"]
    assert current_caller() is None
    assert guard.flush(30)
    [decision], [outcome] = statements("decision"), statements("outcome")
    assert outcome["parent"] == decision["id"] and outcome["outcome"]["status"] == "ok"
    assert outcome["outcome"]["count"] == 1


def test_an_async_body_runs_as_the_verified_caller_too(guard: Muniment) -> None:
    @guard.tool("memory.recall", scopes="memory:read")
    async def recall(query: str) -> list[str]:
        await asyncio.sleep(0)
        caller = current_caller()
        assert caller is not None
        return [f"{caller.sub}: {query}"]

    async def one(user: str) -> list[str]:
        with guard.request(token(sub=user)):
            return await recall("sea")

    async def all_of_them() -> list[list[str]]:
        try:
            return await asyncio.gather(*(one(f"user{number}") for number in range(8)))
        finally:
            await guard.platform.aclose()

    assert asyncio.run(all_of_them()) == [[f"user{number}: sea"] for number in range(8)]


def test_without_a_token_nothing_runs_and_the_attempt_is_on_record(guard: Muniment) -> None:
    ran = []

    @guard.tool("memory.recall", scopes="memory:read")
    def recall() -> None:
        ran.append(1)

    with pytest.raises(Denied) as refused:
        recall()
    assert refused.value.reason == "token_missing" and refused.value.status == 401
    assert not ran and [s["reason"] for s in statements("decision")] == ["token_missing"]


def test_an_error_of_the_body_is_its_own_and_is_reported_as_one(guard: Muniment) -> None:
    @guard.tool("memory.recall", scopes="memory:read")
    def recall() -> None:
        raise KeyError("nothing there")

    with guard.request(token()), pytest.raises(KeyError, match="nothing there"):
        recall()
    assert guard.flush(30)
    assert [s["outcome"]["status"] for s in statements("outcome")] == ["error"]


def test_tools_are_declared_at_start(guard: Muniment, world: World) -> None:
    @guard.tool("memory.forget", scopes="memory:write", access="destructive")
    def forget(id: str) -> None:
        """Forget one memory.

        For ever.
        """

    assert guard.start() == {"memory.forget": "pending"}
    tool = world.backend.tools.get(name="memory.forget")
    assert (tool.access, tool.description) == ("destructive", "Forget one memory.")
    assert [scope.name for scope in tool.scopes.all()] == ["memory:write"]


def test_the_first_call_declares_the_tools_in_the_background(guard: Muniment, world: World) -> None:
    guard.tool("memory.export", scopes="memory:read")(lambda: None)
    recall = guard.tool("memory.recall", scopes="memory:read")(lambda: None)
    with guard.request(token()):
        recall()
    assert guard.flush(30)
    assert world.backend.tools.get(name="memory.export").status == "pending"


def test_a_guarded_function_keeps_its_name_signature_and_words(guard: Muniment) -> None:
    @guard.tool("memory.recall", scopes="memory:read")
    def recall(query: str, limit: int = 5) -> list[str]:
        """Find memories."""
        return []

    assert recall.__name__ == "recall" and recall.__doc__ == "Find memories."
    assert list(inspect.signature(recall).parameters) == ["query", "limit"]


def test_delegation_narrows_and_is_on_record(guard: Muniment) -> None:
    @guard.tool("memory.recall", scopes="memory:read")
    def recall() -> tuple[str, ...]:
        caller = current_caller()
        assert caller is not None
        return caller.agents

    with guard.request(token()), guard.delegate("planner", "memory:read"), guard.delegate("reader"):
        assert recall() == ("planner", "reader")
    planner, reader = guard.delegate("planner", "memory:write"), guard.delegate("reader", "memory:read")
    # The planner was not handed memory:read by that name: nothing widens.
    with guard.request(token()), planner, reader, pytest.raises(Denied) as refused:
        recall()
    assert refused.value.reason == "delegation_exceeded"
    first, second = statements("decision")
    assert first["agent"] == {"mode": "subagent", "chain": ["planner", "reader"], "scopes": ["memory:read"]}
    assert second["agent"]["scopes"] == []


def test_a_nested_request_does_not_inherit_the_outer_caller(guard: Muniment) -> None:
    @guard.tool("memory.recall", scopes="memory:read")
    def recall() -> None:
        with guard.request(None):
            assert current_caller() is None

    with guard.request(token()):
        recall()


def test_receipts_are_kept_and_checked_on_request(world: World, url: str, tmp_path: Path) -> None:
    with Muniment(url, world.key, receipts=tmp_path / "receipts") as guard:
        decision = guard.verify(token(), tool="memory.recall")
        trust = httpx2.get(f"{url}/v1/keys").text  # as somebody saved it once
        guard.verify(None, tool="memory.recall")
        guard.check_receipt(decision, trust)
        other = guard.verify(token(sub="bob"), tool="memory.recall")
        forged = {**other.answer["receipt"], "leaf": decision.answer["receipt"]["leaf"]}
        with pytest.raises(ReceiptError):
            guard.check_receipt(replace(other, answer={**other.answer, "receipt": forged}), trust)
    kept = "".join(path.read_text() for path in sorted((tmp_path / "receipts").iterdir()) if path.is_file())
    assert kept.count(decision.record) == 1 and kept.count('"deny"') == 1
    assert "alice" not in kept and decision.require().uid not in kept


@pytest.mark.parametrize(
    "hostile",
    ["x" * 100_000, "naïve.tök.en", "\ud800.a.b", "a b c", "ey\x00.b.c", "..", ""],
    ids=["long", "unicode", "surrogate", "spaces", "nul", "dots", "empty"],
)
def test_a_hostile_token_is_a_denial_like_any_other(guard: Muniment, hostile: str) -> None:
    decision = guard.verify(hostile, tool="memory.recall")
    assert (decision.status, decision.reason) in ((401, "token_malformed"), (401, "token_missing"))


def test_a_hostile_header_does_not_spoil_the_call(guard: Muniment) -> None:
    recall = guard.tool("memory.recall", scopes="memory:read")(lambda: "ok")
    with guard.request(token(), id="\x00\n" * 500, ip="not an address", user_agent="\udcff" + "x" * 5000):
        assert recall() == "ok"


def test_a_wrong_key_is_a_fault_of_the_backend_and_names_no_secret(world: World, url: str) -> None:
    wrong = "mk_abcdefghijkl_" + "s3cret" * 8
    with Muniment(url, wrong) as guard, pytest.raises(Misconfigured) as refused:
        guard.verify(token(), tool="memory.recall")
    assert "s3cret" not in f"{refused.value!r}{refused.value}{guard!r}{guard.platform!r}"


@pytest.mark.parametrize("key", ["", "sk_a_b", "mk_a b", "mk_\n"])
def test_what_is_no_key_is_told_at_once(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUNIMENT_KEY", raising=False)
    with pytest.raises(Misconfigured):
        Muniment("http://127.0.0.1:9", key)


def test_url_and_key_come_from_the_environment(world: World, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUNIMENT_URL", url)
    monkeypatch.setenv("MUNIMENT_KEY", world.key)
    with Muniment() as guard:
        assert guard.verify(token(), tool="memory.recall")


def test_a_generator_is_refused_when_it_is_decorated(guard: Muniment) -> None:
    def stream() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="generator"):
        guard.tool("memory.recall", scopes="memory:read")(stream)


def test_two_tools_of_one_name_are_refused(guard: Muniment) -> None:
    guard.tool("memory.recall", scopes="memory:read")(lambda: None)
    with pytest.raises(Misconfigured, match="twice"):
        guard.tool("memory.recall", scopes="memory:read")(lambda: None)


@pytest.mark.parametrize(
    "wrong", [{"name": "a b"}, {"name": ""}, {"scopes": ["a b"]}, {"access": "some"}, {"fail": "maybe"}], ids=str
)
def test_a_tool_that_the_platform_would_refuse_is_refused_when_it_is_defined(guard: Muniment, wrong: Any) -> None:
    def recall() -> None: ...

    recall.__name__ = wrong.get("name", "recall")
    with pytest.raises(Misconfigured):
        guard.tool(**{"scopes": "memory:read"} | wrong)(recall)
    assert not guard.tools


def test_no_token_is_in_a_log_or_a_repr(guard: Muniment, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = token()
    with guard.request(secret) as given:
        decision = guard.verify(secret, tool="memory.recall")
        assert secret not in repr(given) and secret not in repr(decision)
    signature = secret.rsplit(".", 1)[1]
    assert signature not in caplog.text and guard.platform._settings["headers"]["Authorization"] not in caplog.text
