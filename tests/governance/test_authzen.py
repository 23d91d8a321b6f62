"""POST /access/v1/evaluation and /evaluations: decided as a call is, from what a backend says of a user."""

import json
import re
import shlex
import time
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.utils import timezone

from audit import details, inbox
from audit.models import Record, Sighting, Subject
from audit.protection import keyring
from clients.models import AcceptedIssuer, Client, Grant, Issuer, OAuthClientId
from governance.budgets import budgets
from governance.process import recorder
from tests.audit import chain
from tests.governance.authzen import (
    CALL,
    CAPTURE,
    CLAUDE,
    EVALUATION,
    EVALUATIONS,
    RECALL,
    ask,
    ask_many,
    question,
    said,
    user,
)
from tests.live import until
from tests.staff import drained
from tests.test_docs import text
from tests.world import ISSUER, World, build, token
from tools.models import BackendKey, BackendMark, Scope, Tool


@pytest.fixture
def world(db: None) -> World:
    return build()


def met(world: World, name: str = "alice") -> str:
    """The uid of a user who was met in a verified call."""
    return str(world.verify(token=token(name))["subject"]["uid"])


class TestWho:
    def test_a_user_whom_nobody_has_met_is_decided_as_anybody_and_not_made_one(self, world: World) -> None:
        found = ask(world)
        assert (found["decision"], found["reason"]) == (True, "granted")
        assert not Subject.objects.exists()
        record = Record.objects.get(id=found["record"])
        assert (record.type, record.subject, record.client, record.tool) == (
            "evaluation", None, "claude", "memory.recall",
        )  # fmt: skip
        assert said(found)["asserted"] is True and "token" not in said(found)
        assert record.holder is not None and record.holder.startswith("backend:inner:")

    def test_who_was_met_is_recorded_by_uid_and_named_only_in_what_is_protected(self, world: World) -> None:
        uid = met(world)
        for name in ("alice", uid):
            found = ask(world, subject=user(name, ip_address="203.0.113.9"))
            record = Record.objects.get(id=found["record"])
            assert (found["decision"], record.subject, record.holder) == (True, uid, uid)
            for secret in (b"alice", b"203.0.113.9"):
                assert secret not in bytes(record.statement) + bytes(record.disclosures or b"")
            opened = details.opened(record, said(found))
            assert opened.members == {"named": {"type": "user", "id": name}, "ip": "203.0.113.9"}
        assert Subject.objects.count() == 1

    def test_a_blocked_user_is_refused_at_the_next_question(self, world: World) -> None:
        uid = met(world)
        assert ask(world)["decision"] is True
        Subject.objects.update(blocked_at=timezone.now())
        for name in ("alice", uid):
            assert ask(world, subject=user(name))["reason"] == "subject_blocked"
        Subject.objects.update(blocked_at=None)
        assert ask(world)["decision"] is True

    def test_who_was_signed_out_everywhere_needs_a_newer_token(self, world: World) -> None:
        met(world)
        Subject.objects.update(signed_out_at=timezone.now() - timedelta(seconds=50))
        found = ask(world)
        assert found["reason"] == "token_expired" and "`iat`" in found["explanation"]
        assert ask(world, subject=user(iat=time.time() - 100))["reason"] == "token_expired"
        assert ask(world, subject=user(iat=time.time() - 10))["decision"] is True

    @pytest.mark.parametrize("named", [user("usr_nobody"), {"type": "robot", "id": "alice"}])
    def test_who_cannot_be_established_is_refused_and_kept_out_of_the_statement(self, world: World, named: Any) -> None:
        found = ask(world, subject=named)
        assert (found["decision"], found["reason"], found["remedy"]) == (False, "subject_unknown", "none")
        record = Record.objects.get(id=found["record"])
        assert record.subject is None and named["id"].encode() not in bytes(record.statement)
        named = {"type": named["type"], "id": named["id"]}
        assert details.opened(record, said(found)).members == {"named": named, "named_client": "claude-app"}

    @pytest.mark.parametrize("remembered", [True, False])
    @pytest.mark.parametrize("by_uid", [True, False])
    def test_an_erased_user_is_nobody(self, world: World, owner_url: str, remembered: bool, by_uid: bool) -> None:
        uid = met(world)
        subject = user(uid if by_uid else "alice")
        assert said(ask(world, subject=subject))["subject"] == uid
        with psycopg.connect(owner_url, autocommit=True) as owner:
            owner.execute(
                "UPDATE audit_subject SET identity_key = NULL, sub = NULL, email = NULL, email_key = NULL,"
                " erased_at = now()"
            )
            owner.execute("DELETE FROM audit_datakey WHERE holder = %s", [uid])
        if not remembered:
            keyring.clear()
        found = ask(world, subject=subject)
        assert said(found)["subject"] is None
        assert found["reason"] == ("subject_unknown" if by_uid else "granted")

    def test_where_the_backend_accepts_several_issuers_one_is_named(self, world: World) -> None:
        other = Issuer.objects.create(issuer="https://other.example/", algorithms=["RS256"])
        assert ask(world)["reason"] == "subject_unknown"
        for member in ("issuer", "iss"):
            found = ask(world, subject=user(**{member: ISSUER}))
            assert (found["decision"], said(found)["issuer"]) == (True, ISSUER)
        assert ask(world, subject=user(issuer=other.issuer))["reason"] == "client_unknown", (
            "claude-app is not its client"
        )
        found = ask(world, subject=user(issuer="https://evil.example/"))
        assert found["reason"] == "subject_unknown" and said(found)["issuer"] is None
        opened = details.opened(Record.objects.get(id=found["record"]), said(found))
        assert opened.members["named_issuer"] == "https://evil.example/"

    def test_a_user_of_an_issuer_that_the_backend_does_not_accept_is_none_of_its_users(self, world: World) -> None:
        uid = met(world)
        other = Issuer.objects.create(issuer="https://other.example/", algorithms=["RS256"])
        AcceptedIssuer.objects.create(backend=world.backend, issuer=other)
        world.backend.accepts_every_issuer = False
        world.backend.save()
        assert ask(world, subject=user(uid))["reason"] == "subject_unknown"


class TestWhat:
    def test_the_policy_decides_as_for_a_call(self, world: World) -> None:
        assert ask(world, resource=CAPTURE)["reason"] == "not_granted"
        Grant.objects.create(client=world.client, effect="deny", reason="stop").scopes.add(
            Scope.objects.get(name="memory:read")
        )
        found = ask(world)
        assert (found["reason"], found["remedy"]) == ("grant_denied", "ask_administrator")

    def test_a_revoked_grant_refuses_the_very_next_question(self, world: World) -> None:
        assert ask(world)["decision"] is True
        world.grant.delete()
        assert ask(world)["reason"] == "not_granted"

    def test_without_a_client_those_grants_count_that_are_for_any(self, world: World) -> None:
        found = ask(world, context={})
        assert (found["reason"], said(found)["client"]) == ("not_granted", None)
        Grant.objects.create(client=None, reason="all").scopes.add(Scope.objects.get(name="memory:read"))
        found = ask(world, context={})
        assert (found["decision"], said(found)["client"], said(found)["client_id"]) == (True, None, None)

    def test_an_unknown_client_is_refused_and_is_no_sign_that_an_issuer_knows_it(self, world: World) -> None:
        found = ask(world, context={"agent": "cursor-app"})
        assert found["reason"] == "client_unknown" and said(found)["client_id"] is None
        assert not inbox._counts and not Sighting.objects.exists()
        Client.objects.update(status="suspended")
        assert ask(world)["reason"] == "client_suspended"

    def test_an_unknown_tool_is_refused_and_waits_in_the_inbox(self, world: World) -> None:
        assert ask(world, resource={"type": "tool", "id": "memory.burn"})["reason"] == "tool_unknown"
        inbox.flush(last=True)  # or the recorder does, at this moment
        until(Sighting.objects.filter(kind="tool", source="inner", name="memory.burn").exists, 5)
        found = ask(world, action={"name": "tools/list"})
        assert found["reason"] == "tool_unknown" and said(found)["tool"] is None
        Tool.objects.update(status="suspended")
        assert ask(world)["reason"] == "tool_suspended"

    def test_consent_is_looked_at_where_scopes_are_given(self, world: World) -> None:
        assert said(ask(world))["token_scopes"] is None
        for scopes in (["memory:read"], "memory:read", "openid memory:write"):
            assert ask(world, context=CLAUDE | {"scopes": scopes})["decision"] is True
        for scopes in ([], "", "openid", "memory:read\tmemory:write"):
            assert ask(world, context=CLAUDE | {"scopes": scopes})["reason"] == "insufficient_scope"

    def test_what_the_agent_was_handed_only_narrows(self, world: World) -> None:
        handed = CLAUDE | {"agent_scopes": ["memory:read"], "agent_mode": "subagent"}
        found = ask(world, context=handed)
        assert found["decision"] is True and said(found)["agent"]["mode"] == "subagent"
        assert ask(world, context=handed | {"agent_scopes": []})["reason"] == "delegation_exceeded"
        assert ask(world, resource=CAPTURE, context=handed | {"agent_scopes": ["memory:write"]})["decision"] is False

    @pytest.mark.parametrize("given", [{"role": "nurse"}, {"roles": ["x", "nurse"]}, {"role": "x", "roles": "nurse"}])
    def test_roles_are_as_the_backend_says(self, world: World, given: Any) -> None:
        Grant.objects.update(role="nurse")
        assert ask(world)["reason"] == "not_granted"
        found = ask(world, subject=user(**given))
        assert found["decision"] is True and "nurse" in said(found)["roles"]

    def test_the_tenant_is_as_the_backend_says(self, world: World) -> None:
        Grant.objects.update(tenant="acme")
        assert ask(world, subject=user(tenant="other"))["reason"] == "not_granted"
        assert ask(world, subject=user(tenant="acme"))["decision"] is True

    def test_a_grant_for_a_user_is_for_that_user(self, world: World) -> None:
        Grant.objects.update(subject=met(world))
        assert ask(world)["decision"] is True
        assert ask(world, subject=user("bob"))["reason"] == "not_granted"


class TestOtherResources:
    def test_an_action_with_a_resource_is_a_tool_and_the_resource_is_protected(self, world: World) -> None:
        memory = {"type": "memory", "id": "m-55"}
        found = ask(world, action={"name": "recall"}, resource=memory)
        record = Record.objects.get(id=found["record"])
        assert (found["decision"], record.tool) == (True, "memory.recall")
        assert b"m-55" not in bytes(record.statement) and record.resource_key is not None
        assert details.opened(record, said(found)).members["resource"] == memory
        assert ask(world, action={"name": "capture"}, resource=memory)["reason"] == "not_granted"

    def test_an_action_that_is_named_as_a_tool_is_that_tool(self, world: World) -> None:
        found = ask(world, action={"name": "memory.recall"}, resource={"type": "person", "id": "p-1"})
        assert (found["decision"], said(found)["tool"]) == (True, "memory.recall")
        found = ask(world, action={"name": "no such"}, resource={"type": "person", "id": "p-1"})
        assert (found["reason"], said(found)["tool"]) == ("tool_unknown", None)

    def test_special_cases_are_decided_in_place_of_the_tool_and_all_that_fit_must_be_allowed(
        self, world: World
    ) -> None:
        def case(name: str, scope: str, **more: Any) -> None:
            made = Tool.objects.create(
                backend=world.backend, name=f"memory.recall:{name}", access="read", status="active", **more
            )
            made.scopes.add(Scope.objects.get(name=scope))

        case("locked:true", "memory:write")
        case("id:m-1", "memory:read")
        recall = {"action": {"name": "recall"}}
        memory = {"type": "memory", "id": "m-1"}
        assert said(found := ask(world, **recall, resource=memory))["tool"] == "memory.recall:id:m-1"
        assert found["decision"] is True
        locked = memory | {"properties": {"locked": True, "size": 1.5, "of": {"a": 1}}}
        found = ask(world, **recall, resource=locked)
        assert (found["reason"], said(found)["tool"]) == ("not_granted", "memory.recall:locked:true")
        assert said(found)["tools"] == ["memory.recall:id:m-1", "memory.recall:locked:true"]
        assert ask(world, **recall, resource=locked | {"properties": {"locked": False}})["decision"] is True
        assert ask(world, resource=RECALL | {"properties": {"locked": True}})["decision"] is False, "of tools as well"
        Tool.objects.filter(name="memory.recall:id:m-1").update(status="pending")
        assert ask(world, **recall, resource=memory)["reason"] == "tool_suspended"


class TestSeveral:
    ITEMS = ({"resource": RECALL}, {"resource": CAPTURE}, {"resource": RECALL})
    ONE = question()
    FROM = {"subject": user(), "action": CALL, "context": CLAUDE}

    @pytest.mark.parametrize(
        ("semantic", "expected"),
        [
            ("execute_all", [True, False, True]),
            ("deny_on_first_deny", [True, False]),
            ("permit_on_first_permit", [True]),
        ],
    )
    def test_as_many_are_answered_and_recorded_as_the_semantic_says(
        self, world: World, owner_url: str, semantic: str, expected: list[bool]
    ) -> None:
        found = ask_many(world, *self.ITEMS, semantic=semantic, **self.FROM)
        assert [one["decision"] for one in found] == expected
        records = [one["context"]["record"] for one in found]
        assert list(map(str, Record.objects.filter(type="evaluation").order_by("at").values_list("id", flat=True))) == (
            records
        )
        indices = [Record.objects.get(id=one).index for one in records]
        assert indices == list(range(indices[0], indices[0] + len(indices))), "recorded together, in their order"
        drained()
        assert chain.findings(owner_url) == []

    def test_one_that_is_not_valid_is_a_denial_with_what_is_wrong_and_spoils_no_other(self, world: World) -> None:
        wrong = [{"resource": {"type": "tool"}}, {"subject": {"type": "user", "id": 7}}, {"action": None}, 5, "x", []]
        found = ask_many(world, *wrong, {}, **self.FROM | {"resource": RECALL})
        assert [one["decision"] for one in found] == [True, *[False] * 5, True]
        assert found[1]["context"] == {
            "error": {"status": 400, "message": "Expected `str`, got `int` - at `$.subject.id`"}
        }
        assert Record.objects.filter(type="evaluation").count() == 2
        found = ask_many(world, {}, 5, {}, semantic="deny_on_first_deny", **self.FROM | {"resource": RECALL})
        assert [one["decision"] for one in found] == [True, False]

    def test_an_item_replaces_a_default_as_a_whole(self, world: World) -> None:
        Grant.objects.update(role="nurse")
        default = self.FROM | {"subject": user(role="nurse"), "resource": RECALL}
        own = {"subject": {"id": "bob"}}
        assert [one["decision"] for one in ask_many(world, {}, own, **default)] == [True, False]

    @pytest.mark.parametrize(
        "members",
        [
            {"evaluations": [ONE] * 101}, {"evaluations": {"0": ONE}}, {"evaluations": 0}, {"evaluations": ""},
            {"evaluations": [ONE], "options": {"evaluations_semantic": "any"}}, {"evaluations": [ONE], "subject": "x"},
        ],
        ids=range(6),
    )  # fmt: skip
    def test_what_is_wrong_with_the_whole_is_a_400(self, world: World, members: Any) -> None:
        assert world.post(EVALUATIONS, members).status_code == 400
        assert not Record.objects.filter(type="evaluation").exists()

    def test_where_the_semantic_ends_is_found_anew_when_a_user_turns_out_to_be_blocked(self, world: World) -> None:
        met(world), met(world, "bob")
        Subject.objects.filter(uid=met(world)).update(blocked_at=timezone.now())
        items = [{}, {"subject": user("bob")}, {"subject": user("carol")}]
        found = ask_many(world, *items, semantic="permit_on_first_permit", **self.FROM | {"resource": RECALL})
        assert [one["decision"] for one in found] == [False, True]
        assert found[0]["context"]["reason"] == "subject_blocked"


class TestTheEdge:
    def test_nothing_is_answered_that_is_not_recorded(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recorder(), "capacity", 1)
        assert world.post(EVALUATION, question()).status_code == 503, "the room that is left is for verified calls"
        assert world.verify()["decision"] == "allow"
        assert not Record.objects.filter(type="evaluation").exists()

    def test_only_a_good_key_may_ask(self, world: World) -> None:
        for key in ("", "mk_x_y", world.key[:-1]):
            response = world.post(EVALUATION, question(), key=key, **{"X-Request-ID": "r-1"})
            assert (response.status_code, response.headers["X-Request-ID"]) == (401, "r-1")
        BackendKey.objects.update(revoked_at=timezone.now())
        assert world.post(EVALUATION, question()).status_code == 401

    def test_the_id_of_the_request_is_in_the_record_and_a_strange_one_is_not_echoed(self, world: World) -> None:
        response = world.post(EVALUATION, question(), **{"X-Request-ID": "req-7"})
        record = Record.objects.get(id=response.json()["context"]["record"])
        assert record.request_key is not None and b"req-7" not in bytes(record.statement)
        for strange in ("x" * 257, "a\tb", "é", ""):
            response = world.post(EVALUATION, question(), **{"X-Request-ID": strange})
            assert response.status_code == 200 and "X-Request-ID" not in response.headers

    def test_naming_users_who_are_none_draws_on_a_budget(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(budgets, "burst", 3)
        monkeypatch.setattr(budgets, "rate", 0)
        seen = [world.post(EVALUATION, question(subject=user("usr_guess"))).status_code for _ in range(5)]
        assert seen == [200, 200, 200, 429, 429]
        assert world.post(EVALUATIONS, {"evaluations": [question()]}).status_code == 429
        assert world.verify()["decision"] == "allow", "calls have a budget of their own"

    def test_forged_tokens_do_not_stop_questions(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(budgets, "burst", 3)
        monkeypatch.setattr(budgets, "rate", 0)
        forged = [world.post("/v1/verify", {"token": "x.y.z", "tool": "memory.recall"}).status_code for _ in range(4)]
        assert forged[-1] == 429
        assert ask(world)["decision"] is True

    def test_other_methods_and_paths(self, world: World) -> None:
        for path in (EVALUATION, EVALUATIONS, "/access/v1/search/subject"):
            response = world.http.get(path)
            assert (response.status_code, response.headers["Allow"]) == (405, "POST")
            assert world.http.put(path, "{}", content_type="application/json").status_code == 405
        response = world.post("/access/v1/nothing", {})
        assert (response.status_code, response.headers["Content-Type"]) == (404, "application/problem+json")

    @pytest.mark.parametrize(
        "body",
        [
            question(subject=user("a\x00b")), question(subject=user("a\nb")), question(subject=user("x" * 257)),
            question(subject=user("")), question(subject=user(roles=["x"] * 51)), question(subject=user(iat=-1)),
            question(subject=user(issuer=["https://id.example/"])), question(subject=user(ip_address="over there")),
            question(context={"agent": {"id": "claude-app"}}), question(context={"agent": ""}), question(context=[]),
            question(context={"agent_mode": "SECRET"}), question(context={"scopes": [5]}),
            question(resource=RECALL | {"properties": {str(n): n for n in range(101)}}),
            question(resource=RECALL | {"properties": {"x": "y" * 17_000}}), question(resource=[]),
            json.dumps(question(subject=user("\ud800"))), '{"subject": ' + "[" * 5000, "[]", "null", "5", b"\xff\xfe",
            json.dumps(question(subject=user(iat=7))).replace("7", "1e999"),
            json.dumps(question(subject=user(iat=7))).replace("7", "NaN"),
        ],
        ids=range(24),
    )  # fmt: skip
    def test_hostile_input_is_a_400_that_does_not_repeat_it(self, world: World, body: Any) -> None:
        for path in (EVALUATION, EVALUATIONS):
            response = world.post(path, body)
            assert response.status_code == 400, response.content
            assert response.headers["Content-Type"] == "application/problem+json"
            for secret in (b"SECRET", b"over there", b"claude-app", b"yyyy"):
                assert secret not in response.content
        assert not Record.objects.filter(type="evaluation").exists()

    @pytest.mark.parametrize("depth", [50, 400, 700, 900, 990, 1100, 3000])
    def test_a_body_however_deep_is_answered(self, world: World, depth: int) -> None:
        deep = json.dumps(question(resource=RECALL | {"properties": {"x": 1}})).replace(
            "1}", "[" * depth + "]" * depth + "}"
        )
        for path in (EVALUATION, EVALUATIONS):
            assert world.post(path, deep).status_code in (200, 400)
        items = f'{{"evaluations": [{deep}, {json.dumps(question())}]}}'
        response = world.post(EVALUATIONS, items)
        assert response.status_code == 400 or [one["decision"] for one in response.json()["evaluations"]][1] is True

    @pytest.mark.parametrize("digits", [20, 400, 5000])
    def test_numbers_however_long_are_answered(self, world: World, digits: int) -> None:
        for body in (question(subject=user(iat=7)), question(resource=RECALL | {"properties": {"n": 7}})):
            assert world.post(EVALUATION, json.dumps(body).replace("7", "7" * digits)).status_code in (200, 400)

    def test_strange_properties_are_no_special_case_and_do_no_harm(self, world: World) -> None:
        strange = {
            "a b": "c d", "": "", "n": None, "f": 1.5, "l": [1], "d": {"x": {}}, "é": "é", "big": 10**30, "neg": -1,
            "sql": "'; DROP TABLE x; --", "\u202e": "\U0010ffff",
        }  # fmt: skip
        found = ask(world, resource=RECALL | {"properties": strange}, action=CALL | {"properties": strange})
        assert (found["decision"], said(found)["tool"]) == (True, "memory.recall")

    def test_the_longest_question_fits_a_record(self, world: World) -> None:
        subject = user("é" * 256, roles=["ü" * 200] * 20, tenant="t" * 255)
        context = CLAUDE | {"scopes": ["memory:read"] + [f"s{n}" + "x" * 60 for n in range(60)]}
        found = ask(world, subject=subject, context=context, resource=RECALL)
        assert found["decision"] is True

    def test_a_body_that_is_too_large_is_a_413(self, world: World) -> None:
        body = question(padding="x" * settings.MUNIMENT_MAX_BODY)
        assert world.post(EVALUATION, body).status_code == 413

    def test_an_outcome_cannot_be_reported_to_a_question(self, world: World) -> None:
        found = ask(world)
        assert world.post(f"/v1/records/{found['record']}/outcome", {"status": "ok"}).status_code == 404


def test_a_client_is_known_at_the_issuer_of_the_user_alone(db: None) -> None:
    world = build()
    other = Issuer.objects.create(issuer="https://other.example/", algorithms=["RS256"])
    evil = Client.objects.create(slug="evil", name="Evil")
    OAuthClientId.objects.create(client=evil, issuer=other, oauth_id="claude-app")
    found = ask(world, subject=user(issuer=other.issuer))
    assert (found["reason"], said(found)["client"]) == ("not_granted", "evil")
    assert ask(world, subject=user(issuer=ISSUER))["decision"] is True


def test_the_calls_that_the_documents_show_are_answered(world: World) -> None:
    """Each fenced curl, sent as it stands."""
    BackendMark.objects.create(backend=world.backend, mark="may_search")
    met(world)
    shown = re.findall(r"^```bash\n(curl .*?)^```", text("docs/integrations/authzen.md"), re.M | re.S)
    assert len(shown) == 4
    for command in shown:
        given = shlex.split(command.replace("$MUNIMENT_KEY", world.key).replace("\\\n", " "))
        path = given[2].removeprefix("$MUNIMENT_URL")
        headers = dict(given[n + 1].split(": ", 1) for n, word in enumerate(given) if word == "-H")
        if "-d" in given:
            body = given[given.index("-d") + 1]
            response = world.http.post(path, body, content_type=headers.pop("Content-Type"), headers=headers)
        else:
            response = world.http.get(path)
        assert response.status_code == 200, response.content
        found = response.json()
        assert found.get("decision", True) is True and found.get("results") in (
            None, [{"type": "tool", "id": "memory.recall"}],
        )  # fmt: skip
