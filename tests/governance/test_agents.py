"""Agents: who a call went through is on record in order, whatever came of it and however many call at once; an agent
can use less than the user and never more; grants tell agent modes apart."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connections
from django.test import Client as HttpClient
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from audit.models import Record, Subject
from clients.models import Grant, Issuer, Limit
from governance.decision import GrantPolicy, Policy, Question, SubjectState, decide
from muniment.calls import Agent
from tests.governance.test_decision import CAPTURE, CLIENT, NOW, OPEN, QUESTION, RECALL, grants
from tests.staff import signed_in, statement
from tests.world import World, build, token
from tools.models import Scope

ACT = {"sub": "reader", "act": {"sub": "planner"}}  # RFC 8693 section 4.1: the current actor is outermost
SAID = {"mode": "subagent", "chain": ["app", "router"]}
WHOLE = ["app", "router", "planner", "reader"]


@pytest.fixture
def world(db: None) -> World:
    return build()


def recorded(answer: dict[str, Any]) -> dict[str, Any]:
    """What the record says of agents."""
    agent: dict[str, Any] = statement(Record.objects.get(id=answer["record"]))["agent"]
    return agent


# --- the chain, on record --------------------------------------------------------------------------------------


def test_the_reported_chain_and_then_the_tokens_is_on_record_each_outermost_first(world: World) -> None:
    answer = world.verify(token=token(act=ACT), agent=SAID | {"scopes": ["memory:read"]})
    assert (answer["reason"], recorded(answer)) == (
        "granted", {"mode": "subagent", "chain": WHOLE, "scopes": ["memory:read"]},
    )  # fmt: skip
    alone = world.verify(token=token(act=ACT))
    assert recorded(alone) == {"mode": "interactive", "chain": ["planner", "reader"], "scopes": None}
    assert recorded(world.verify(agent=SAID))["chain"] == ["app", "router"]


def test_a_direct_call_has_no_chain(world: World) -> None:
    for more in ({}, {"agent": {}}, {"agent": {"chain": []}}, {"token": token(act=None)}):
        assert recorded(world.verify(**more)) == {"mode": "interactive", "chain": [], "scopes": None}


def test_a_token_that_says_who_may_act_was_not_acted_with(world: World) -> None:
    """RFC 8693 section 4.4: `may_act` is for who exchanges the token."""
    answer = world.verify(token=token(may_act={"sub": "planner"}))
    assert (answer["reason"], recorded(answer)["chain"]) == ("granted", [])


def test_every_denial_has_the_chain(world: World) -> None:
    read = Scope.objects.get(name="memory:read")
    block = Grant.objects.create(effect="deny", tenant=None, role=None, reason="r", modes=["api"])
    block.scopes.add(read)
    tried: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("client_unknown", {"client": "stranger"}, {}),
        ("tenant_mismatch", {}, {"tenant": "globex"}),
        ("tool_unknown", {}, {"tool": "nope"}),
        ("insufficient_scope", {"scope": "other"}, {}),
        ("not_granted", {}, {"tool": "memory.capture"}),
        ("grant_denied", {}, {"agent": SAID | {"mode": "api"}}),
        ("delegation_exceeded", {}, {"agent": SAID | {"scopes": []}}),
    ]
    for reason, claims, call in tried:
        answer = world.verify(**{"token": token(act=ACT, **claims), "agent": SAID} | call)
        assert (answer["reason"], recorded(answer)["chain"]) == (reason, WHOLE)
    Subject.objects.update(blocked_at=timezone.now())
    answer = world.verify(token=token(act=ACT), agent=SAID)
    assert (answer["reason"], recorded(answer)["chain"]) == ("subject_blocked", WHOLE)


def test_who_calls_too_often_is_on_record_with_every_agent(world: World) -> None:
    Limit.objects.create(per="subject", count=1, period="day", reason="r")
    answers = [world.verify(token=token(act={"sub": f"agent {turn}"}), agent=SAID) for turn in range(3)]
    assert [answer["reason"] for answer in answers] == ["granted", "rate_limited", "rate_limited"]
    assert [recorded(answer)["chain"] for answer in answers] == [[*SAID["chain"], f"agent {turn}"] for turn in range(3)]


def test_of_a_token_that_is_refused_nothing_is_believed_but_what_was_reported_stays(world: World) -> None:
    forged = token(act=ACT)
    forged = forged[:-8] + ("AAAAAAAA" if forged[-8:] != "AAAAAAAA" else "BBBBBBBB")
    for reason, refused in (
        ("token_missing", None), ("token_malformed", "opaque"), ("token_invalid", forged),
        ("audience_mismatch", token(act=ACT, aud="https://other.example")),
        ("token_expired", token(act=ACT, exp=1_000)), ("token_invalid", token(act=chain_of(9))),
    ):  # fmt: skip
        answer = world.verify(token=refused, agent=SAID)
        assert (answer["reason"], recorded(answer)["chain"]) == (reason, ["app", "router"])


def chain_of(depth: int) -> dict[str, Any]:
    """An `act` chain of so many actors, a1 being the one who acts now."""
    act: dict[str, Any] = {"sub": f"a{depth}"}
    for number in range(depth - 1, 0, -1):
        act = {"sub": f"a{number}", "act": act}
    return act


def test_eight_reported_and_eight_in_the_token_are_sixteen(world: World) -> None:
    reported = [f"r{number}" for number in range(8)]
    answer = world.verify(token=token(act=chain_of(8)), agent={"chain": reported})
    assert recorded(answer)["chain"] == [*reported, *(f"a{number}" for number in range(8, 0, -1))]
    deeper = world.post("/v1/verify", {"token": token(), "tool": "memory.recall", "agent": {"chain": [*reported, "r"]}})
    assert deeper.status_code == 400


def test_the_longest_chains_fit_into_a_record_beside_all_else(world: World) -> None:
    Issuer.objects.update(roles_claim="roles")
    act: dict[str, Any] = {"sub": "a" * 255}
    for _ in range(7):
        act = {"sub": "a" * 255, "act": act}
    longest = token(act=act, roles=[f"{number:03}{'r' * 250}" for number in range(35)])
    assert 15_000 < len(longest) <= 16_384
    handed = ["memory:read", *(f"{number:03}{'s' * 125}" for number in range(99))]
    said = {"chain": [f"{number}{'c' * 127}" for number in range(8)], "scopes": handed}
    answer = world.verify(token=longest, agent=said)
    assert answer["reason"] == "granted" and len(recorded(answer)["chain"]) == 16


@pytest.mark.parametrize("odd", [
    False, 0, "reader", [], [ACT], {}, {"act": ACT}, {"iss": "https://id.example/"}, {"sub": ""}, {"sub": " "},
    {"sub": 1}, {"sub": ["reader"]}, {"sub": "a\u202eb"}, {"sub": "a\x00"}, {"sub": "x" * 256},
    {"sub": None, "client_id": None}, {"sub": "reader", "act": []}, {"sub": "reader", "act": {"sub": {}}},
    {"client_id": {"sub": "reader"}},
])  # fmt: skip
def test_an_act_claim_of_an_odd_shape_refuses_the_token_and_is_on_record_as_nothing(odd: Any, shared: World) -> None:
    answer = shared.verify(token=token(act=odd), agent={"chain": ["app"]})
    assert (answer["status"], answer["reason"], recorded(answer)["chain"]) == (401, "token_invalid", ["app"])


@pytest.fixture(scope="module")
def shared(migrated: None) -> Any:
    """One world for tests that only call."""
    from governance import process
    from tests.reset import reset

    reset()
    yield build()
    process.stop_recorder()


def test_an_actor_is_named_by_its_sub_or_else_by_its_client_id(world: World) -> None:
    act = {"client_id": "reader", "sub": None, "act": {"sub": "planner", "client_id": "other", "iss": "https://x/"}}
    assert recorded(world.verify(token=token(act=act)))["chain"] == ["planner", "reader"]


def test_parallel_chains_stay_apart(world: World) -> None:
    world.verify()

    def call(number: int) -> list[tuple[str, list[str]]]:
        mine, made = replace(world, http=HttpClient()), []
        try:
            for turn in range(3):
                act = {"sub": f"reader-{number}-{turn}", "act": {"sub": f"planner-{number}"}}
                said = {"mode": "subagent", "chain": [f"app-{number}", f"turn-{turn}"]}
                answer = mine.verify(token=token(act=act), agent=said)
                made.append((answer["record"], [*said["chain"], f"planner-{number}", f"reader-{number}-{turn}"]))
        finally:
            connections.close_all()
        return made

    with ThreadPoolExecutor(16) as pool:
        expected = dict(pair for made in pool.map(call, range(16)) for pair in made)
    records = Record.objects.filter(id__in=list(expected))
    found = {str(record.id): statement(record)["agent"]["chain"] for record in records}
    assert found == expected and len(found) == 48


# --- less, and never more --------------------------------------------------------------------------------------

NAMES = ["memory:read", "memory:write", "memory:admin", "other"]
names = st.frozensets(st.sampled_from(NAMES)).map(lambda found: tuple(sorted(found)))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Any grants, and any implications: each scope may imply what stands before it, and all that this implies."""
    implied: dict[str, frozenset[str]] = {}
    for number, name in enumerate(NAMES):
        chosen = draw(st.frozensets(st.sampled_from(NAMES[:number]))) if number else frozenset()
        implied[name] = frozenset({name}).union(*(implied[other] for other in chosen))
    found: list[GrantPolicy] = draw(st.lists(grants, max_size=6))
    scopes = draw(st.lists(st.frozensets(st.sampled_from(NAMES)), min_size=6, max_size=6))
    by_client: dict[int | None, tuple[GrantPolicy, ...]] = {}
    for grant, given_scopes in zip(found, scopes, strict=False):
        by_client[grant.client_id] = (*by_client.get(grant.client_id, ()), replace(grant, scopes=given_scopes))
    return Policy({("i", "c"): CLIENT}, {(1, t.name): t for t in (RECALL, CAPTURE, OPEN)}, by_client, implied)


calls = st.builds(
    replace, st.just(QUESTION), tool=st.sampled_from([RECALL.name, CAPTURE.name, OPEN.name]), token_scopes=names,
    mode=st.sampled_from(["interactive", "background"]),
)  # fmt: skip


@given(policies(), calls, st.lists(st.one_of(st.none(), names), max_size=4))
def test_however_often_work_is_handed_on_what_can_be_used_only_shrinks(
    policy: Policy, call: Question, handed: list[tuple[str, ...] | None]
) -> None:
    agent = Agent(call.mode)  # type: ignore[arg-type]
    before = decide(policy, call, SubjectState(), NOW)
    for number, scopes in enumerate(handed):
        agent = agent.delegate(f"agent-{number}", scopes, agent.mode)
        after = decide(policy, replace(call, agent_scopes=agent.scopes), SubjectState(), NOW)
        assert set(after.effective) <= set(before.effective)
        assert before.allowed or not after.allowed
        before = after


@given(policies(), calls)
def test_who_was_handed_nothing_can_use_nothing_that_needs_a_scope(policy: Policy, call: Question) -> None:
    decision = decide(policy, replace(call, agent_scopes=()), SubjectState(), NOW)
    assert not (decision.allowed and decision.required)
    assert not decision.effective or decision.reason not in ("granted", "delegation_exceeded")


def test_who_an_agent_is_decides_nothing(world: World) -> None:
    """RFC 8693 section 4.1: prior actors are informational. A name opens nothing and closes nothing."""
    for tool, reason in (("memory.recall", "granted"), ("memory.capture", "not_granted")):
        answers = [
            world.verify(tool=tool, token=token(act=act), agent={"chain": chain})
            for act, chain in ((None, []), (ACT, ["admin"]), ({"sub": "staff:1"}, ["claude"]))
        ]
        assert [answer["reason"] for answer in answers] == [reason] * 3


# --- modes -----------------------------------------------------------------------------------------------------


def test_background_agents_may_not_write(world: World) -> None:
    world.grant.scopes.add(Scope.objects.get(name="memory:write"))
    block = Grant.objects.create(effect="deny", modes=["background"], reason="background agents may not write")
    block.scopes.add(Scope.objects.get(name="memory:write"))
    for mode in ("interactive", "subagent", "api"):
        assert world.verify(tool="memory.capture", agent={"mode": mode})["reason"] == "granted"
    answer = world.verify(tool="memory.capture", agent={"mode": "background"})
    assert (answer["reason"], answer["remedy"]) == ("grant_denied", "ask_administrator")
    assert world.verify(tool="memory.recall", agent={"mode": "background"})["reason"] == "granted", "reading is not it"


def test_a_grant_for_some_modes_is_none_for_the_others(world: World) -> None:
    Grant.objects.update(modes=["interactive", "api"])
    reasons = {mode: world.verify(agent={"mode": mode})["reason"] for mode in ("interactive", "api", "subagent")}
    assert reasons == {"interactive": "granted", "api": "granted", "subagent": "not_granted"}
    assert world.verify()["reason"] == "granted", "a call that says no mode is interactive"


# --- the page of the record ------------------------------------------------------------------------------------


def test_the_page_of_a_record_says_the_mode_and_the_chain(world: World) -> None:
    http = signed_in(get_user_model().objects.create_superuser("mara", "", None))
    by = world.verify(token=token(act={"sub": "b → c"}), agent={"mode": "background", "chain": ["digest", "a"]})
    page = http.get(f"/admin/records/{by['record']}/").content.decode()
    assert "background, through digest → a → “b → c”" in page
    direct = http.get(f"/admin/records/{world.verify()['record']}/").content.decode()
    assert ", through" not in direct and "<dd>interactive" in direct.replace("\n", "").replace("  ", "")
