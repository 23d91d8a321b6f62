"""decide(): each rule from both sides, their order, and what must hold for any policy."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.decision import (
    ClientPolicy,
    Decision,
    GrantPolicy,
    Policy,
    Question,
    SubjectState,
    ToolPolicy,
    decide,
    refuse,
)

NOW = 1_000_000.0
FREE = SubjectState()
CLIENT = ClientPolicy(1, "claude", "Claude", "active")
RECALL = ToolPolicy(1, "memory.recall", "read", "active", ("memory:read",), False)
CAPTURE = ToolPolicy(2, "memory.capture", "write", "active", ("memory:write",), True)
OPEN = ToolPolicy(3, "time.now", "read", "active", (), False)
ALLOW = GrantPolicy(1, "allow", 1, frozenset({"memory:read"}), None, None, None, None, frozenset(), None, None)
QUESTION = Question(
    backend_id=1, tool="memory.recall", issuer="i", client_id="c", subject="usr_a", tenant="acme",
    roles=frozenset({"member"}), token_scopes=("memory:read", "memory:write"), issued_at=NOW - 10,
)  # fmt: skip


def policy(*grants: GrantPolicy, client: ClientPolicy = CLIENT, tools: tuple[ToolPolicy, ...] = ()) -> Policy:
    by_client: dict[int | None, tuple[GrantPolicy, ...]] = {}
    for grant in grants:
        by_client[grant.client_id] = (*by_client.get(grant.client_id, ()), grant)
    return Policy(
        clients={("i", "c"): client},
        tools={(1, tool.name): tool for tool in (RECALL, CAPTURE, OPEN, *tools)},
        grants_of_client=by_client,
        implied={
            "memory:read": frozenset({"memory:read"}),
            "memory:write": frozenset({"memory:write", "memory:read"}),
        },
    )


def ask(*grants: GrantPolicy, state: SubjectState = FREE, client: ClientPolicy = CLIENT, **question: Any) -> Decision:
    return decide(policy(*grants, client=client), replace(QUESTION, **question), state, NOW, explain=True)


def test_a_granted_call_is_allowed() -> None:
    decision = ask(ALLOW)
    assert (decision.reason, decision.grants, decision.flagged) == ("granted", (1,), False)
    assert decision.checks
    assert all(check.passed for check in decision.checks)


def test_what_is_wrong_with_a_token_goes_on_from_the_sentence_of_its_reason() -> None:
    assert refuse("token_expired", "exp is in the past").explanation == "The token's time is over: exp is in the past."
    assert refuse("token_expired").explanation == "The token's time is over."
    assert refuse("issuer_unavailable", "Its keys are being fetched.").explanation.endswith(
        " could not be checked. Its keys are being fetched."
    )


def test_the_rule_that_decided_is_told_last() -> None:
    decision = ask(tool="memory.capture")
    assert decision.checks
    assert [check.passed for check in decision.checks] == [True] * 5 + [False]
    assert decision.checks[-1].rule == "grants"


@pytest.mark.parametrize("client_id", [None, "other"])
def test_a_client_id_that_nobody_registered_is_unknown(client_id: str | None) -> None:
    assert ask(ALLOW, client_id=client_id).reason == "client_unknown"


def test_the_same_client_id_of_another_issuer_is_unknown() -> None:
    assert ask(ALLOW, issuer="j").reason == "client_unknown"


def test_a_suspended_client_is_refused() -> None:
    assert ask(ALLOW, client=replace(CLIENT, status="suspended")).reason == "client_suspended"


def test_a_blocked_subject_is_refused() -> None:
    assert ask(ALLOW, state=SubjectState(blocked=True)).reason == "subject_blocked"


@pytest.mark.parametrize(
    ("issued_at", "reason"), [(NOW - 1, "token_expired"), (None, "token_expired"), (NOW + 1, "granted")]
)
def test_signing_out_everywhere_refuses_older_tokens(issued_at: float | None, reason: str) -> None:
    assert ask(ALLOW, state=SubjectState(signed_out_at=NOW), issued_at=issued_at).reason == reason


@pytest.mark.parametrize(
    ("asked", "tenant", "reason"),
    [("acme", "acme", "granted"), (None, "acme", "granted"), ("other", "acme", "tenant_mismatch"),
     ("acme", None, "tenant_mismatch"), ("Acme", "acme", "tenant_mismatch")],
)  # fmt: skip
def test_the_tenant_comes_from_the_token(asked: str | None, tenant: str | None, reason: str) -> None:
    assert ask(ALLOW, asked_tenant=asked, tenant=tenant).reason == reason


def test_a_tool_of_another_backend_is_unknown() -> None:
    assert ask(ALLOW, backend_id=2).reason == "tool_unknown"


@pytest.mark.parametrize("status", ["pending", "suspended", "retired"])
def test_a_tool_that_is_not_active_is_refused(status: str) -> None:
    tools = (replace(RECALL, status=status),)
    assert decide(policy(ALLOW, tools=tools), QUESTION, SubjectState(), NOW).reason == "tool_suspended"


@pytest.mark.parametrize(
    ("scopes", "reason"),
    [(("memory:read",), "granted"), (("memory:write",), "granted"), ((), "insufficient_scope"),
     (("memory:rea",), "insufficient_scope"), (("MEMORY:READ",), "insufficient_scope"), (("*",), "insufficient_scope")],
)  # fmt: skip
def test_the_token_must_cover_the_tools_scopes_with_implications(scopes: tuple[str, ...], reason: str) -> None:
    assert ask(ALLOW, token_scopes=scopes).reason == reason


def test_a_denial_lists_what_is_missing_and_all_that_is_required() -> None:
    decision = ask(ALLOW, tool="memory.capture", token_scopes=("memory:read",))
    assert (decision.reason, decision.missing, decision.required) == (
        "insufficient_scope", ("memory:write",), ("memory:write",),
    )  # fmt: skip


def test_without_a_grant_nothing_is_allowed() -> None:
    assert ask().reason == "not_granted"


def test_an_implied_scope_is_granted_with_the_one_that_implies_it_and_not_the_other_way() -> None:
    write = replace(ALLOW, scopes=frozenset({"memory:write"}))
    assert ask(write).reason == "granted"
    assert ask(ALLOW, tool="memory.capture").reason == "not_granted"


FITS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"client_id": None}, {}), ({"subject": "usr_a"}, {}), ({"role": "member"}, {}), ({"tenant": "acme"}, {}),
    ({"tool_id": 1}, {}), ({"modes": frozenset({"interactive"})}, {}), ({"starts_at": NOW}, {}),
    ({"expires_at": NOW + 1}, {}),
]  # fmt: skip
MISFITS: list[dict[str, Any]] = [
    {"client_id": 2}, {"subject": "usr_b"}, {"role": "admin"}, {"tenant": "other"}, {"tool_id": 2},
    {"modes": frozenset({"background"})}, {"starts_at": NOW + 1}, {"expires_at": NOW}, {"expires_at": NOW - 1},
]  # fmt: skip


@pytest.mark.parametrize(("narrowing", "question"), FITS)
def test_a_narrowed_grant_allows_what_it_fits(narrowing: dict[str, Any], question: dict[str, Any]) -> None:
    assert ask(replace(ALLOW, **narrowing), **question).reason == "granted"


@pytest.mark.parametrize("narrowing", MISFITS)
def test_a_narrowed_grant_allows_nothing_else(narrowing: dict[str, Any]) -> None:
    assert ask(replace(ALLOW, **narrowing)).reason == "not_granted"


def test_a_tenants_grant_is_no_grant_for_a_token_without_tenant() -> None:
    assert ask(replace(ALLOW, tenant="acme"), tenant=None).reason == "not_granted"


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_deny_grant_denies_only_what_it_fits(misfit: dict[str, Any]) -> None:
    deny = replace(ALLOW, id=9, effect="deny")
    assert ask(ALLOW, deny).reason == "grant_denied"
    assert ask(ALLOW, replace(deny, **misfit)).reason == "granted"


def test_a_deny_grant_for_another_scope_denies_nothing_and_one_without_scopes_denies_all() -> None:
    deny = replace(ALLOW, id=9, effect="deny", scopes=frozenset({"memory:write"}))
    assert ask(ALLOW, deny).reason == "granted"
    assert ask(ALLOW, replace(deny, scopes=frozenset())).reason == "grant_denied"


def test_deny_beats_flag_beats_allow() -> None:
    flag, deny = replace(ALLOW, id=8, effect="flag"), replace(ALLOW, id=9, effect="deny")
    assert (ask(ALLOW, flag).flagged, ask(ALLOW, flag).grants) == (True, (1, 8))
    assert ask(flag).reason == "granted"
    assert ask(ALLOW, flag, deny).reason == "grant_denied"


def test_a_tool_that_needs_no_scope_needs_a_grant_that_names_it() -> None:
    assert ask(ALLOW, tool="time.now").reason == "not_granted"
    assert ask(replace(ALLOW, tool_id=3, scopes=frozenset()), tool="time.now").reason == "granted"


@pytest.mark.parametrize(
    ("handed", "reason"),
    [(None, "granted"), (("memory:read",), "granted"), (("memory:write",), "granted"), ((), "delegation_exceeded"),
     (("other",), "delegation_exceeded")],
)  # fmt: skip
def test_an_agent_may_use_only_what_it_was_handed(handed: tuple[str, ...] | None, reason: str) -> None:
    assert ask(ALLOW, agent_scopes=handed).reason == reason


def test_being_handed_a_scope_grants_nothing() -> None:
    assert ask(agent_scopes=("memory:read",)).reason == "not_granted"


def test_the_rules_are_checked_in_the_tables_order() -> None:
    """Everything wrong at once, then mended one by one: the reasons come in the order of DESIGN.md section 5."""
    wrong: dict[str, Any] = {
        "client_id": "other", "asked_tenant": "x", "tool": "none", "token_scopes": (), "agent_scopes": (),
    }  # fmt: skip
    seen = [ask(state=SubjectState(blocked=True), **wrong).reason]
    wrong.pop("client_id")
    seen.append(ask(state=SubjectState(blocked=True), **wrong).reason)
    for member in ("asked_tenant", "tool", "token_scopes"):
        seen.append(ask(**wrong).reason)
        wrong.pop(member)
    seen += [ask(**wrong).reason, ask(ALLOW, **wrong).reason, ask(ALLOW).reason]
    assert seen == [
        "client_unknown", "subject_blocked", "tenant_mismatch", "tool_unknown", "insufficient_scope", "not_granted",
        "delegation_exceeded", "granted",
    ]  # fmt: skip


scopes = st.frozensets(st.sampled_from(["memory:read", "memory:write", "other"]))
grants = st.builds(
    GrantPolicy,
    id=st.integers(1, 99), effect=st.sampled_from(["allow", "flag", "deny"]), client_id=st.sampled_from([None, 1, 2]),
    scopes=scopes, subject=st.sampled_from([None, "usr_a", "usr_b"]), role=st.sampled_from([None, "member", "admin"]),
    tenant=st.sampled_from([None, "acme", "other"]), tool_id=st.sampled_from([None, 1, 2, 3]),
    modes=st.frozensets(st.sampled_from(["interactive", "background"])),
    starts_at=st.sampled_from([None, NOW - 5, NOW + 5]), expires_at=st.sampled_from([None, NOW - 1, NOW + 9]),
)  # fmt: skip
questions = st.builds(
    replace, st.just(QUESTION), tool=st.sampled_from(["memory.recall", "memory.capture", "time.now"]),
    token_scopes=scopes.map(lambda found: tuple(sorted(found))), mode=st.sampled_from(["interactive", "background"]),
    agent_scopes=st.one_of(st.none(), scopes.map(lambda found: tuple(sorted(found)))),
)  # fmt: skip


@given(st.lists(grants, max_size=6), questions)
def test_an_allow_has_a_grant_consent_and_no_block(found: list[GrantPolicy], question: Question) -> None:
    decision = decide(policy(*found), question, SubjectState(), NOW)
    if decision.allowed:
        by_id = {g.id for g in found if g.effect != "deny"}
        assert decision.grants
        assert set(decision.grants) <= by_id
        assert set(decision.required) <= set(decision.effective)


@given(st.lists(grants, max_size=6), questions, grants)
def test_a_deny_grant_more_never_allows_more(found: list[GrantPolicy], question: Question, extra: GrantPolicy) -> None:
    before = decide(policy(*found), question, SubjectState(), NOW).allowed
    after = decide(policy(*found, replace(extra, effect="deny")), question, SubjectState(), NOW).allowed
    assert before or not after


@given(st.lists(grants, max_size=6), questions, scopes)
def test_being_handed_less_never_allows_more(
    found: list[GrantPolicy], question: Question, handed: frozenset[str]
) -> None:
    wide = decide(policy(*found), replace(question, agent_scopes=None), SubjectState(), NOW)
    narrow = decide(policy(*found), replace(question, agent_scopes=tuple(handed)), SubjectState(), NOW)
    assert wide.allowed or not narrow.allowed
    assert set(narrow.effective) <= set(wide.effective)
