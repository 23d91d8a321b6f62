"""The explainer: says what a real call is answered, rule by rule in the order of `decide()`, which one decided, which
grants took part and what would help; bad questions are field errors."""

from typing import Any

import pytest
from django.test import Client as HttpClient
from django.utils import timezone

from audit import record_words
from audit.models import Outbox, Record, Subject
from clients import grants
from clients.grants import Actor
from clients.models import Client, Grant, Issuer, Limit, OAuthClientId
from governance import explainer
from tests.staff import administrator, drained, member, statement
from tests.world import World, build, token
from tools.models import Backend, Scope, Tool

URL = "/admin/access/explain/"
MARA = Actor("staff:1", "Mara")


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


@pytest.fixture
def uid(world: World) -> str:
    return str(world.verify()["subject"]["uid"])


def ask(http: HttpClient, tool: str = "memory.capture", **members: Any) -> Any:
    """The context of a question's page."""
    response = http.get(URL, {"client": "claude", "tool": f"inner/{tool}"} | members)
    assert response.status_code == 200, response.context["form"].errors
    return response.context


def states(context: Any) -> list[str]:
    return [step.state for step in context["answer"].steps]


def words(context: Any) -> list[str]:
    return [step.words for step in context["answer"].steps]


def test_yes_in_one_sentence_with_every_rule_and_the_grant(world: World, http: HttpClient) -> None:
    context = ask(http, "memory.recall")
    assert context["answer"].sentence == "Yes: Claude may use memory.recall for somebody."
    assert states(context) == ["given", "passed", "passed", "passed", "passed", "passed"]
    assert words(context)[0].startswith("Taken as given: the token is genuine.")
    assert words(context)[-1] == f"Claude is granted it, by grant {world.grant.pk}"
    assert [line.sentence for line in context["decided"]] == ["Claude may use memory:read for everyone"]
    assert context["help"] is None
    text = http.get(URL, {"client": "claude", "tool": "inner/memory.recall"}).content.decode()
    assert f"/admin/clients/grant/{world.grant.pk}/change/" in text
    assert f'As of policy version <span class="num">{context["version"]}' in text


def test_no_with_the_rule_that_decided_and_those_that_were_not_checked(world: World, http: HttpClient) -> None:
    context = ask(http, handed="memory:read")
    assert context["answer"].sentence == "No: no grant lets Claude use memory:write."
    assert states(context) == ["given", "passed", "passed", "passed", "passed", "stopped", "unknown"]
    assert words(context)[-1] == "Not checked: whether the agent was handed them"
    assert context["help"].buttons[0][0] == "Grant memory:write…"
    assert context["help"].buttons[0][1] == "/admin/clients/grant/add/?client=claude&scope=memory%3Awrite"


def test_who_may_not_grant_is_led_to_asking(world: World) -> None:
    context = ask(member("vera", "clients.view_grant"))
    (label, url), *_ = context["help"].buttons
    assert label == "Ask for memory:write…" and url.startswith("/admin/access/ask/?client=claude&scope=memory%3Awrite")


# What is done to the world, what is asked, what the same call carries, the reason, the rule that stops it.
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str]] = {
    "client suspended": (lambda w: Client.objects.update(status="suspended"), {}, {}, "client_suspended"),
    "client without id": (lambda w: OAuthClientId.objects.all().delete(), {}, {}, "client_unknown"),
    "user blocked": (lambda w: Subject.objects.update(blocked_at=timezone.now()), {}, {}, "subject_blocked"),
    "tool pending": (lambda w: Tool.objects.update(status="pending"), {}, {}, "tool_suspended"),
    "tool retired": (lambda w: Tool.objects.update(status="retired"), {}, {}, "tool_suspended"),
    "no consent": (lambda w: None, {"scopes": "profile"}, {"scope": "profile"}, "insufficient_scope"),
    "no scope at all": (lambda w: None, {"token": "these"}, {"scope": ""}, "insufficient_scope"),
    "not handed": (lambda w: None, {"handed": "profile"}, {"agent": {"scopes": ["profile"]}}, "delegation_exceeded"),
    "blocked in a mode": (
        lambda w: grants.create(
            actor=MARA, reason="r", client=None, scopes=[], effect="deny", modes=["background"]
        ),
        {"mode": "background"}, {"agent": {"mode": "background"}}, "grant_denied",
    ),
    "revoked": (lambda w: Grant.objects.update(revoked_at=timezone.now()), {}, {}, "not_granted"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_says_what_the_call_is_answered_in_the_words_of_its_record(
    world: World, http: HttpClient, uid: str, case: str
) -> None:
    change, asked, carried, reason = CASES[case]
    change(world)
    said = world.verify(token=token(scope=carried.get("scope", "memory:read")), agent=carried.get("agent", {}))
    context = ask(http, "memory.recall", subject=uid, **asked)
    answer = context["answer"]
    assert (said["reason"], answer.reason, answer.allowed) == (reason, reason, False)
    assert answer.sentence.startswith("No: ")
    drained()
    record = statement(Record.objects.get(id=said["record"]))
    steps = record_words.steps(record, {"claude": "Claude"})
    known = [step.words for step in steps if step.state == "passed"][1:]  # without the token's own rules
    assert [step.words for step in answer.steps if step.state == "passed"] == known
    (stopped,) = [step.words for step in answer.steps if step.state == "stopped"]
    assert stopped.startswith(next(step.words for step in steps if step.state == "stopped"))
    assert context["help"].words


def test_the_order_of_the_rules_is_that_of_the_decision(world: World, http: HttpClient, uid: str) -> None:
    Issuer.objects.update(tenant_claim="org_id")
    context = ask(http, "memory.recall", subject=uid, tenant="acme", handed="memory:read")
    assert [check.rule for check in context["answer"].decision.checks] == list(explainer.RULES)
    Client.objects.update(status="suspended")
    context = ask(http, "memory.recall", subject=uid, tenant="acme", handed="memory:read")
    assert states(context) == ["given", "stopped", *["unknown"] * 6]
    assert words(context)[1] == "The AI client is suspended. Claude is suspended."


@pytest.mark.parametrize("what", ["backend", "issuer", "user"])
def test_what_stops_every_call_before_the_rules_is_said(world: World, http: HttpClient, uid: str, what: str) -> None:
    match what:
        case "backend":
            Backend.objects.update(enabled=False)
        case "issuer":
            Issuer.objects.update(enabled=False)
        case _:  # known to another issuer, at which this client has no OAuth client id
            uid = Subject.objects.create(uid="usr_elsewhere", issuer="https://other.example/").uid
    context = ask(http, "memory.recall", subject=uid)
    assert not context["answer"].allowed and states(context)[0] == "stopped"
    assert set(states(context)[1:]) == {"unknown"}
    assert context["help"].buttons and context["pill"].words.startswith("Denied: ")
    if what != "user":
        assert world.post("/v1/verify", {"token": token(), "tool": "memory.recall"}).json().get("decision") != "allow"


def test_a_block_is_named_and_what_would_allow_it_without_the_block(world: World, http: HttpClient) -> None:
    read = Scope.objects.get(name="memory:read")
    block = grants.create(actor=MARA, reason="incident", client=world.client, scopes=[read], effect="deny")
    context = ask(http, "memory.recall")
    assert context["answer"].sentence == f"No: grant {block.pk} forbids it."
    assert [line.grant.pk for line in context["decided"]] == [block.pk]
    assert [line.grant.pk for line in context["outweighed"]] == [world.grant.pk]
    assert context["help"].buttons == [(f"Look at grant {block.pk}", f"/admin/clients/grant/{block.pk}/change/")]


def test_grants_that_come_close_are_shown_and_others_are_not(world: World, http: HttpClient) -> None:
    write, other = Scope.objects.get(name="memory:write"), Scope.objects.create(name="other")
    near = grants.create(actor=MARA, reason="r", client=world.client, scopes=[write], role="editor")
    gone = grants.create(actor=MARA, reason="r", client=world.client, scopes=[write], tenant="acme")
    grants.revoke(gone, actor=MARA, reason="r")
    grants.create(actor=MARA, reason="r", client=world.client, scopes=[other])
    context = ask(http)
    assert [line.grant.pk for line in context["near"]] == [near.pk]
    context = ask(http, role="editor")
    assert context["answer"].allowed and context["near"] == []
    assert context["answer"].sentence == "Yes: Claude may use memory.capture for somebody with the role editor."


def test_a_flag_is_said(world: World, http: HttpClient) -> None:
    write = Scope.objects.get(name="memory:write")
    grants.create(actor=MARA, reason="r", client=world.client, scopes=[write], effect="flag")
    context = ask(http)
    assert context["answer"].sentence.endswith(", and each call is marked for review.")
    assert context["pill"].words == "Allowed, flagged"


def test_for_one_user_their_own_grant_counts(world: World, http: HttpClient, uid: str) -> None:
    write = Scope.objects.get(name="memory:write")
    user = Subject.objects.get(uid=uid)
    grants.create(actor=MARA, reason="r", client=world.client, scopes=[write], subject=user)
    assert ask(http, subject=uid)["answer"].allowed and not ask(http)["answer"].allowed
    short = record_words.short_uid(uid)
    assert ask(http, subject=uid)["title"] == f"Can user {short} use memory.capture from Claude?"


@pytest.mark.parametrize(
    "members",
    [
        {"client": "nobody"}, {"client": ""}, {"client": "\x00"}, {"tool": "inner/none"}, {"tool": "none"},
        {"tool": "x" * 5000}, {"tool": "inner/memory.recall\x00"}, {"subject": "alice@example.com"},
        {"subject": "usr_nobody"}, {"subject": "usr_\x00"}, {"subject": "x" * 5000}, {"mode": "loud"},
        {"scopes": 'a"b'}, {"scopes": " ".join(f"s{n}" for n in range(101))}, {"scopes": "\x00"},
        {"handed": "ä"}, {"tenant": "t" * 300}, {"role": "\x00"}, {"role": "r" * 300}, {"token": "some"},
    ],
)  # fmt: skip
def test_a_bad_question_is_a_field_error(world: World, http: HttpClient, members: dict[str, str]) -> None:
    response = http.get(URL, {"client": "claude", "tool": "inner/memory.recall"} | members)
    assert response.status_code == 400
    assert set(response.context["form"].errors) == set(members) and "answer" not in response.context
    assert 'class="errorlist"' in response.content.decode()


def test_an_address_is_not_repeated_and_a_user_is_found_by_a_post(world: World, http: HttpClient) -> None:
    text = http.get(URL).content.decode()
    assert "The question" in text and 'href="/admin/people/"' in text


def test_only_those_who_may_see_grants_and_nothing_is_changed_or_recorded(world: World, http: HttpClient) -> None:
    assert member("vera", "clients.view_client").get(URL).status_code == 403
    assert HttpClient().get(URL).status_code == 302
    assert http.post(URL, {"client": "claude", "tool": "inner/memory.recall"}).status_code == 405
    drained()
    before = Record.objects.count(), Outbox.objects.count()
    ask(http)
    drained()
    assert (Record.objects.count(), Outbox.objects.count()) == before


def test_who_may_not_look_at_users_cannot_ask_about_one(world: World, uid: str) -> None:
    vera = member("vera", "clients.view_grant")
    response = vera.get(URL, {"client": "claude", "tool": "inner/memory.recall", "subject": uid})
    assert response.status_code == 400 and "subject" in response.context["form"].errors


def test_many_tools_are_completed_by_the_browser_instead_of_listed(world: World, http: HttpClient) -> None:
    Tool.objects.bulk_create(
        Tool(backend=world.backend, name=f"t{n}", access="read", status="active") for n in range(80)
    )
    text = http.get(URL).content.decode()
    assert '<datalist id="tools">' in text and '<option value="inner/t79">' in text
    assert ask(http, "t79")["answer"].reason == "not_granted"


def test_the_limits_that_a_call_counts_against_are_told_and_not_looked_at(world: World, http: HttpClient) -> None:
    limit = Limit.objects.create(per="subject", count=1, period="hour", reason="r")
    Limit.objects.create(per="subject", count=1, period="hour", modes=["background"], reason="r")
    told = f"Taken as given: limit {limit.pk} is not used up. Each user may call once an hour"
    for _ in range(2):
        context = ask(http, "memory.recall")
        assert context["answer"].allowed and words(context)[-1] == told
        world.verify()
    assert not any("limit" in line for line in words(ask(http))), "what is refused counts against none"
