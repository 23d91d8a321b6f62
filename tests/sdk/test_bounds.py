"""What strangers send along with a call never spoils it: the SDK sends only what the platform's contract takes."""

from typing import Any

import msgspec
import pytest

from governance import contract
from muniment.calls import Agent, Incoming, request_info, sendable_tenant
from muniment.guard import _call
from muniment.tools import Tool, ToolCall, touched

HOSTILE = [
    "",
    " ",
    "x" * 5000,
    "a\x00b",
    "\x7f",
    "\ud800",
    "a\nb",
    "ä",
    "\U0001f600" * 200,
    "\u2028",
    "1",
    "a b",
    "a/b:c_d.e-f",
]


def taken(kind: Any, body: Any) -> bool:
    """Whether the platform takes it."""
    try:
        msgspec.json.decode(msgspec.json.encode(body), type=kind)
    except (msgspec.ValidationError, UnicodeEncodeError):
        return False
    return True


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_whatever_a_request_holds_the_call_is_taken(text: str) -> None:
    tool = Tool("t", (), "read", resource=lambda kind, id: (kind, id))
    for about in (tool.about({"kind": "memory", "id": text}), tool.about({"kind": text, "id": "1"})):
        info = request_info(id=text, trace_id=text, session_id=text, ip=text, user_agent=text)
        call, _ = _call(text, "t", tenant=text, resource=about, request=info)
        assert msgspec.json.decode(call.body, type=contract.Call).tool == "t"


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_a_tenant_that_none_can_be_stays_one_that_nobody_is_of(text: str) -> None:
    """Left out, or cut to one that there is, it would let in whom it was to keep out."""
    sent = sendable_tenant(text)
    assert sent == text if taken(contract.Text, text) else sent not in (None, "", text[:256]) and "\ufffd" in sent


def test_a_call_without_a_tenant_has_none() -> None:
    assert sendable_tenant(None) is None and b"tenant" not in _call("x", "t", tenant=None)[0].body


def test_a_resource_is_told_where_it_can_be() -> None:
    tool = Tool("t", (), "read", resource=lambda id: ("memory", id))
    assert tool.about({"id": 7}) == {"type": "memory", "id": "7"}
    assert [tool.about({"id": id}) for id in ("", "x" * 257, "a\tb", "\ud800")] == [None] * 4
    assert Tool("t", (), "read", resource=lambda id: id.missing).about({"id": "7"}) is None
    assert Tool("t", (), "read", resource=lambda id: None).about({"id": "7"}) is None


def test_one_id_that_cannot_be_told_does_not_cost_the_outcome(caplog: pytest.LogCaptureFixture) -> None:
    told: list[dict[str, Any]] = []
    with ToolCall(None, told.append):
        touched("memory", "7")
        for text in HOSTILE:
            touched("memory", text)
            touched(text, "8")
    assert taken(contract.Outcome, told[0])
    assert {"type": "memory", "id": "7"} in told[0]["resources"]
    assert "is not reported" in caplog.text and "xxx" not in caplog.text


def names(text: str) -> dict[str, Any]:
    return {"chain": (text,)}


def scopes(text: str) -> dict[str, Any]:
    return {"scopes": (text,)}


MORE: list[dict[str, Any]] = [
    {}, {"chain": ("a",) * 8}, {"chain": ("a",) * 9}, {"chain": ("x" * 128,)}, {"chain": ("x" * 129,)},
    {"chain": ("a ",)}, {"scopes": ()}, {"scopes": ("a",) * 100}, {"scopes": ("a",) * 101}, {"scopes": ('"',)},
    {"mode": "api"}, {"mode": "root"},
]  # fmt: skip


@pytest.mark.parametrize("said", [make(text) for text in HOSTILE for make in (names, scopes)] + MORE, ids=str)
def test_an_agent_is_one_that_the_platform_takes_or_none(said: dict[str, Any]) -> None:
    try:
        made = Agent(**said)
    except ValueError:
        assert not taken(contract.Agent, said)
    else:
        assert taken(contract.Agent, made.body())


def test_an_agent_that_hands_on_without_end_is_stopped() -> None:
    agent = Agent()
    for number in range(8):
        agent = agent.delegate(f"agent-{number}", None, "subagent")
    with pytest.raises(ValueError, match="8 agents"):
        agent.delegate("one more", None, "subagent")


def test_what_a_client_claims_narrows_what_the_backend_says_and_never_widens_it() -> None:
    ours = Agent("background", ("scheduler",), ("memory:read",))
    assert ours.joined(Agent()) == ours
    assert ours.joined(Agent("interactive", ("planner",), ("memory:read", "memory:write"))) == Agent(
        "background", ("scheduler", "planner"), ("memory:read",)
    )
    assert ours.joined(Agent("subagent", ("planner",))).scopes == ("memory:read",)
    assert ours.joined(Agent("subagent", ("planner",), ())).scopes == ()
    claimed = Agent("subagent", ("planner",), ("memory:read",))
    assert Agent().joined(claimed) == claimed
    with pytest.raises(ValueError, match="8 agents"):
        ours.joined(Agent(chain=("a",) * 8))


def test_nothing_of_a_request_is_in_its_repr() -> None:
    assert "secret" not in repr(Incoming("secret", {"id": "secret"}))
