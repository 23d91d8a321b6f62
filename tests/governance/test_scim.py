"""SCIM: who is deactivated at the identity provider is refused at the next call, and a block by staff stays theirs;
what providers send, and the errors that they get."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from audit import verification
from audit.models import Outbox, PublishedKey, Record, Subject
from audit.outbox import acting
from clients.models import ClaimMapping, Issuer, ScimConnection, ScimUser
from clients.scim import tokens
from governance import scim_api
from governance.budgets import Budgets
from muniment.keys import Trust
from tests import scim, staff, world
from tests.live import until
from tests.scim import USER, Provider, problem
from tests.world import ISSUER, World, token

ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"


@pytest.fixture
def made(db: None) -> World:
    return world.build()


@pytest.fixture
def okta(made: World) -> Provider:
    return scim.connect()


def decided(made: World, sub: str = "alice") -> tuple[str, str]:
    answer = made.verify(token=token(sub))
    return answer["decision"], answer["reason"]


def signals() -> list[tuple[str, str]]:
    """What was recorded of signals, in order: action and actor."""
    staff.drained()
    found = [staff.statement(record) for record in Record.objects.filter(type="signal").order_by("index")]
    return [(one["action"], one["actor"]) for one in found]


def together(okta: Provider, calls: list[tuple[Callable[[Provider, Any], int], Any]]) -> list[int]:
    """What calls are answered that a provider makes at the same time, sorted."""
    gate = threading.Barrier(len(calls))

    def call(made: tuple[Callable[[Provider, Any], int], Any]) -> int:
        try:
            gate.wait(30)
            return made[0](Provider(okta.connection, okta.token), made[1])
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(calls)) as pool:
        return sorted(pool.map(call, calls))


class TestAccess:
    def test_who_is_deactivated_is_refused_at_the_next_call_and_reactivated_allowed(
        self, made: World, okta: Provider
    ) -> None:
        assert decided(made) == ("allow", "granted")
        before = made.verify(token=token())["policy_version"]
        number = okta.made()
        assert decided(made) == ("allow", "granted")
        assert okta.set(number, active=False).json()["active"] is False
        assert decided(made) == ("deny", "subject_blocked")
        assert decided(made, "bob") == ("allow", "granted")
        assert okta.set(number, active=True).json()["active"] is True
        assert decided(made) == ("allow", "granted")
        assert made.verify(token=token())["policy_version"] == before
        assert signals() == [
            ("scim.created", "scim:okta"), ("subject.deactivate", "scim:okta"), ("scim.updated", "scim:okta"),
            ("subject.reactivate", "scim:okta"), ("scim.updated", "scim:okta"),
        ]  # fmt: skip

    def test_an_allow_that_was_kept_for_a_retry_is_not_given_again(self, made: World, okta: Provider) -> None:
        body = {"token": token(), "tool": "memory.recall"}

        def retry() -> str:
            return str(made.post("/v1/verify", body, **{"Idempotency-Key": "once"}).json()["reason"])

        number = okta.made()
        assert [retry(), retry()] == ["granted", "granted"]
        okta.set(number, active=False)
        assert retry() == "subject_blocked"

    def test_no_call_that_starts_after_the_answer_is_allowed(self, made: World, okta: Provider) -> None:
        number, bearer = okta.made(), token()
        answered, calls = float("inf"), list[tuple[float, str]]()
        over = threading.Event()

        def call() -> None:
            try:
                while not over.is_set():
                    began = time.monotonic()
                    body = World(made.key, made.backend, made.client, made.grant).verify(token=bearer)
                    calls.append((began, body["decision"]))
            finally:
                connections.close_all()

        with ThreadPoolExecutor(3) as pool:
            running = [pool.submit(call) for _ in range(3)]
            try:
                until(lambda: len(calls) > 5, 30)
                assert okta.set(number, active=False).status_code == 200
                answered, before = time.monotonic(), len(calls)
                until(lambda: len(calls) > before + 10, 30)
            finally:
                over.set()
            for one in running:
                one.result(30)
        later = {decision for began, decision in calls if began > answered}
        assert later == {"deny"} and {decision for _, decision in calls} == {"allow", "deny"}

    def test_who_never_called_is_known_and_refused_before_the_first_call(self, made: World, okta: Provider) -> None:
        okta.made("carol", active=False, emails=[{"value": "carol@corp.local", "primary": True}])
        assert decided(made, "carol") == ("deny", "subject_blocked")

    def test_a_block_by_staff_is_theirs(self, made: World, okta: Provider) -> None:
        number = okta.made()
        with acting("staff:1"):
            Subject.objects.update(blocked_at=timezone.now())
        okta.set(number, active=False)
        okta.set(number, active=True)
        assert decided(made) == ("deny", "subject_blocked")
        subject = Subject.objects.get()
        assert subject.blocked_at is not None and subject.deactivated_at is None

    def test_who_is_deleted_is_deactivated_and_made_again_is_active(self, made: World, okta: Provider) -> None:
        number = okta.made()
        assert okta.call("DELETE", f"/Users/{number}").status_code == 204
        assert decided(made) == ("deny", "subject_blocked")
        assert problem(okta.call("GET", f"/Users/{number}")) == (404, None)
        assert problem(okta.call("DELETE", f"/Users/{number}")) == (404, None)
        assert problem(okta.call("PUT", f"/Users/{number}", {"schemas": [USER], "userName": "alice"})) == (404, None)
        assert okta.made() != number
        assert decided(made) == ("allow", "granted")

    def test_a_change_of_something_else_gives_nobody_access_back(self, made: World, okta: Provider) -> None:
        number = okta.made()
        with acting("signals:events"):
            Subject.objects.update(deactivated_at=timezone.now())
        okta.set(number, displayName="A. Liddell", active=True)
        assert decided(made) == ("deny", "subject_blocked")
        # One that leaves `active` out does not either.
        okta.set(number, active=False)
        replaced = okta.call("PUT", f"/Users/{number}", {"schemas": [USER], "userName": "alice", "externalId": "alice"})
        assert replaced.json()["active"] is False
        okta.patch(number, {"op": "remove", "path": "active"})
        okta.set(number, active=None)
        assert decided(made) == ("deny", "subject_blocked")
        okta.set(number, active=True)
        assert decided(made) == ("allow", "granted")

    def test_who_gets_another_sub_keeps_access_under_it_alone(self, made: World, okta: Provider) -> None:
        number = okta.made()
        old = ScimUser.objects.get().subject_id
        assert okta.set(number, externalId="alice.2").status_code == 200
        assert decided(made) == ("deny", "subject_blocked") and decided(made, "alice.2") == ("allow", "granted")
        new = ScimUser.objects.get().subject_id
        staff.drained()
        told = staff.newest("signal")
        assert (told["action"], told["from"], told["subject"]) == ("scim.moved", old, new)
        # Moved and deactivated at once: neither sub works.
        okta.set(number, externalId="alice.3", active="False")
        for sub in ("alice", "alice.2", "alice.3"):
            assert decided(made, sub) == ("deny", "subject_blocked")

    def test_one_person_is_managed_once(self, made: World, okta: Provider) -> None:
        number, other = okta.made(), scim.connect("entra")
        assert problem(other.add()) == (409, "uniqueness")
        mine = other.made("bob")
        assert problem(other.set(mine, externalId="alice")) == (409, "uniqueness")
        assert okta.call("DELETE", f"/Users/{number}").status_code == 204
        assert other.set(mine, externalId="alice").status_code == 200

    def test_the_attribute_that_is_the_sub_is_needed(self, made: World, okta: Provider) -> None:
        assert problem(okta.call("POST", "/Users", {"schemas": [USER], "userName": "x"})) == (400, "invalidValue")
        number = okta.made()
        assert problem(okta.patch(number, {"op": "remove", "path": "externalId"})) == (400, "invalidValue")
        by_name = scim.connect("byname", "userName")
        by_name.made("dora", externalId="something else")
        by_name.set(ScimUser.objects.get(connection=by_name.connection).pk, active=False)
        assert decided(made, "dora") == ("deny", "subject_blocked")


class TestUsers:
    def test_what_is_kept_comes_back_and_what_is_not_kept_does_not(self, okta: Provider) -> None:
        sent = {
            "name": {"givenName": "Alice", "familyName": "Liddell"}, "displayName": "Alice", "active": True,
            "emails": [{"value": "a@corp.local", "type": "work", "primary": True}], "password": "sesame",
            "phoneNumbers": [{"value": "+44 1"}], "nickName": "Al",
            ENTERPRISE: {"department": "tea"},
        }  # fmt: skip
        answer = okta.add(**sent)
        body = answer.json()
        assert answer.status_code == 201 and answer["Location"] == body["meta"]["location"]
        assert body["meta"]["created"] == body["meta"]["lastModified"], "nobody is changed before there is one"
        assert body["meta"]["location"].endswith(f"/scim/v2/okta/Users/{body['id']}")
        assert answer["ETag"] == body["meta"]["version"] == 'W/"1"' and body["meta"]["resourceType"] == "User"
        kept = ("name", "displayName", "active", "emails")
        assert {name: body[name] for name in kept} == {name: sent[name] for name in kept}
        assert not {"password", "phoneNumbers", "nickName"} & set(body) and "tea" not in answer.content.decode()
        assert okta.call("GET", f"/Users/{body['id']}").json() == body

    def test_what_entra_sends_is_understood(self, made: World, okta: Provider) -> None:
        number = okta.made()
        answer = okta.patch(
            number,
            {"op": "Add", "path": 'emails[type eq "work"].value', "value": "a@x.example"},
            {"op": "Replace", "path": "name.familyName", "value": "Liddell"},
            {
                "op": "Add",
                "path": f"{ENTERPRISE}:department",
                "value": "x",
            },
            {"op": "Replace", "path": "active", "value": "False"},
        )
        body = answer.json()
        assert body["emails"] == [{"value": "a@x.example", "type": "work"}] and body["name"] == {
            "familyName": "Liddell"
        }
        assert body["active"] is False and decided(made) == ("deny", "subject_blocked")
        assert okta.patch(number, {"op": "Replace", "value": {"active": "True"}}).json()["active"] is True
        assert okta.call("PATCH", f"/Users/{number}", {"schemas": [scim.PATCH], "operations": [
            {"OP": "replace", "Path": "ACTIVE", "Value": "false"}]}).json()["active"] is False  # fmt: skip

    def test_users_are_found_by_name_without_its_case_and_by_id_with_it(self, okta: Provider) -> None:
        number = okta.made("Alice@Corp.example")

        def found(text: str) -> list[str]:
            answer = okta.http.get("/scim/v2/okta/Users", {"filter": text},
                                   headers={"Authorization": f"Bearer {okta.token}"})  # fmt: skip
            body = answer.json()
            posted = okta.call("POST", "/Users/.search", {"filter": text}).json()
            assert body == posted == okta.call("POST", "/.search", {"filter": text}).json()
            assert body["totalResults"] == len(body["Resources"]) == body["itemsPerPage"]
            return [user["id"] for user in body["Resources"]]

        for text in (
            'userName eq "alice@CORP.example"', 'USERNAME Eq "Alice@Corp.example"', f'id eq "{number}"',
            'externalId eq "Alice@Corp.example"', f'{USER}:userName eq "alice@corp.example"',
            f'(userName eq "alice@corp.example") and (id eq "{number}" and externalId eq "Alice@Corp.example")',
        ):  # fmt: skip
            assert found(text) == [number], text
        for text in (
            'externalId eq "alice@corp.example"', 'id eq "nope"', f'id eq "{number.upper()}"', 'userName eq "bob"',
            f'id eq "{number}" and userName eq "bob"', 'userName eq "x\' OR 1=1 --"', 'userName eq ""',
        ):  # fmt: skip
            assert found(text) == [], text

    def test_pages_are_bounded_and_in_order(self, okta: Provider) -> None:
        made = [okta.made(f"u{number}") for number in range(5)]

        def page(query: str) -> tuple[list[str], int, int]:
            body = okta.call("GET", f"/Users?{query}").json()
            return [one["id"] for one in body["Resources"]], body["totalResults"], body["startIndex"]

        assert page("") == (made, 5, 1)
        assert page("startIndex=2&count=2") == (made[1:3], 5, 2)
        assert page("startIndex=5&count=10") == (made[4:], 5, 5)
        assert page("startIndex=-3&count=100000") == (made, 5, 1)
        assert page("count=0") == page("count=-1") == ([], 5, 1)
        assert page(f"startIndex={10**30}")[:2] == ([], 5)
        assert problem(okta.call("GET", "/Users?count=many")) == (400, "invalidValue")
        assert problem(okta.call("GET", "/Users?count=1&count=2")) == (400, "invalidValue")

    def test_attributes_are_chosen(self, okta: Provider) -> None:
        number = okta.made(displayName="Alice")
        assert set(okta.call("GET", f"/Users/{number}?attributes=displayName").json()) == {
            "schemas",
            "id",
            "displayName",
        }
        assert (
            "displayName" not in okta.call("GET", "/Users?excludedAttributes=displayName,meta").json()["Resources"][0]
        )
        assert okta.call("GET", "/Users?attributes=a&excludedAttributes=b").status_code == 400

    def test_a_version_that_is_not_the_newest_changes_nothing(self, okta: Provider) -> None:
        number = okta.made()
        assert okta.call("GET", f"/Users/{number}", **{"If-None-Match": 'W/"1"'}).status_code == 304
        body = {"schemas": [USER], "userName": "alice", "externalId": "alice", "displayName": "x"}
        assert okta.call("PUT", f"/Users/{number}", body, **{"If-Match": 'W/"1"'})["ETag"] == 'W/"2"'
        for method in ("PUT", "DELETE"):
            assert problem(okta.call(method, f"/Users/{number}", body, **{"If-Match": 'W/"1"'})) == (412, None)
        assert okta.call("PUT", f"/Users/{number}", body, **{"If-Match": "*"})["ETag"] == 'W/"2"'  # nothing changed
        assert signals() == [("scim.created", "scim:okta"), ("scim.updated", "scim:okta")]

    def test_of_two_who_are_made_at_once_one_is(self, okta: Provider) -> None:
        def add(provider: Provider, name: str) -> int:
            return int(provider.add(name).status_code)

        answers = together(okta, [(add, "alice")] * 4)
        assert sorted(answers) == [201, 409, 409, 409] and ScimUser.objects.count() == Subject.objects.count() == 1

    def test_changes_at_once_are_all_kept(self, okta: Provider) -> None:
        number = okta.made()
        changes = [{"displayName": "A"}, {"name": {"givenName": "A"}}, {"emails": [{"value": "a@x.example"}]}]

        def change(provider: Provider, members: dict[str, Any]) -> int:
            return int(provider.set(number, **members).status_code)

        assert together(okta, [(change, members) for members in changes]) == [200, 200, 200]
        body = okta.call("GET", f"/Users/{number}").json()
        assert all(body[name] == value for members in changes for name, value in members.items())
        assert body["meta"]["version"] == 'W/"4"'

    def test_another_connections_user_is_not_there(self, okta: Provider) -> None:
        number, other = okta.made(), scim.connect("entra")
        for method, body in (("GET", None), ("DELETE", None), ("PUT", {"schemas": [USER], "userName": "x"}),
                             ("PATCH", {"schemas": [scim.PATCH], "Operations": [
                                 {"op": "replace", "path": "active", "value": False}]})):  # fmt: skip
            assert problem(other.call(method, f"/Users/{number}", body)) == (404, None)
        assert other.call("GET", "/Users").json()["totalResults"] == 0
        assert Subject.objects.get().deactivated_at is None

    def test_a_person_whose_key_is_gone_is_not_there(self, okta: Provider) -> None:
        number = okta.made()
        row = ScimUser.objects.get()
        ScimUser.objects.filter(pk=row.pk).update(content=bytes(row.content)[:-1] + b"\0")
        assert problem(okta.call("GET", f"/Users/{number}")) == (404, None)
        assert okta.call("GET", "/Users").json()["Resources"] == []


class TestWhoCalls:
    def test_no_token_but_the_connections_own_opens_it(self, made: World, okta: Provider) -> None:
        other = scim.connect("entra")
        mine = okta.token
        for wrong in ("", "x", mine[:-1], mine[:-1] + ("A" if mine[-1] != "A" else "B"), other.token, made.key,
                      mine.replace(f"_{okta.connection.pk}_", f"_{other.connection.pk}_")):  # fmt: skip
            okta.token = wrong
            answer = okta.call("GET", "/Users")
            assert problem(answer) == (401, None) and answer["WWW-Authenticate"] == "Bearer"
        okta.token = mine
        okta.connection.name = "nobody"
        assert problem(okta.call("GET", "/Users")) == (401, None)
        okta.connection.name = "okta"
        assert okta.call("GET", "/Users").status_code == 200

    def test_a_new_token_ends_the_old_one_and_a_connection_can_be_switched_off(self, okta: Provider) -> None:
        old = okta.token
        assert okta.call("GET", "/Users").status_code == 200
        connection = ScimConnection.objects.get()
        assert connection.last_used is not None and connection.last_used.second == 0
        with acting("staff:1"):
            okta.token = tokens.renew(connection)
        assert okta.call("GET", "/Users").status_code == 200
        with acting("staff:1"):
            ScimConnection.objects.update(enabled=False)
        assert problem(okta.call("GET", "/Users")) == (403, None)
        okta.token = old
        assert problem(okta.call("GET", "/Users")) == (401, None)

    def test_wrong_tokens_use_up_a_budget_and_a_known_one_goes_on(
        self, okta: Provider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert okta.call("GET", "/Users").status_code == 200
        monkeypatch.setattr(scim_api, "budgets", Budgets(rate=0.001, burst=2))
        good, okta.token = okta.token, "scim_1_" + "A" * 43
        assert [okta.call("GET", "/Users").status_code for _ in range(4)] == [401, 401, 429, 429]
        okta.token = good
        assert okta.call("GET", "/Users").status_code == 200


def test_signals_say_which_connection_and_whom_and_nothing_personal(made: World, okta: Provider) -> None:
    number = okta.made("zq-alice-77", displayName="Marguerite")
    okta.set(number, displayName="Gretchen", active=False)
    okta.call("DELETE", f"/Users/{number}")
    staff.drained()
    uid = Subject.objects.get(issuer=ISSUER).uid
    told = [staff.statement(record) for record in Record.objects.filter(type="signal").order_by("index")]
    assert [one["action"] for one in told] == [
        "scim.created", "subject.deactivate", "scim.updated", "scim.deleted"
    ]  # fmt: skip
    assert {one["subject"] for one in told} == {uid}
    updated = told[2]
    assert (updated["connection"], updated["resource"], updated["changed"]) == (
        "okta",
        number,
        ["active", "displayName"],
    )
    text = json.dumps(told)
    assert not any(name in text for name in ("zq-alice", "Marguerite", "Gretchen"))
    assert not Outbox.objects.filter(kind="signal", record_index=None).exists()
    writer = PublishedKey.objects.get(use="writer")
    assert verification.verify(trust=Trust(writers={writer.key_id: bytes(writer.public)}, logs={})).findings == []


def test_users_are_those_of_the_claim_that_the_issuers_mapping_takes(made: World, okta: Provider) -> None:
    with acting("staff:1"):
        ClaimMapping.objects.create(issuer=okta.connection.issuer, subject_claim="oid")
    okta.made("6907-22be", active=False)
    answers = [made.verify(token=token("pairwise", oid=oid))["reason"] for oid in ("6907-22be", "another")]
    assert answers == ["subject_blocked", "granted"]


def test_an_issuer_that_is_disabled_still_ends_access(made: World, okta: Provider) -> None:
    number = okta.made()
    with acting("staff:1"):
        Issuer.objects.update(enabled=False)
    assert okta.set(number, active=False).status_code == 200
    assert Subject.objects.get().deactivated_at is not None
