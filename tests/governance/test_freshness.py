"""What is revoked is over for the very next call: keys of backends, users, issuers' keys, at every endpoint."""

import contextlib
import json
import os
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jwt
import psycopg
import pytest
from django.utils import timezone

from audit import subjects
from audit.models import Head, Record
from audit.protection import keyring
from clients import keysets
from clients.models import Client, Issuer, KeySet, OAuthClientId
from tests.world import ISSUER, World, build, jwks, token
from tools import credentials
from tools.models import Backend, BackendKey, Tool


@pytest.fixture
def world(db: None) -> World:
    made = build()
    assert made.verify()["decision"] == "allow"  # the process has a snapshot, the token is known
    return made


def revoke_key() -> None:
    BackendKey.objects.update(revoked_at=timezone.now())


ENDS: dict[str, tuple[Callable[[], Any], str]] = {
    "grant": (lambda: psql("UPDATE clients_grant SET revoked_at = now()"), "not_granted"),
    "grant's scope": (lambda: psql("DELETE FROM clients_grant_scopes"), "not_granted"),
    "client suspended": (lambda: Client.objects.update(status="suspended"), "client_suspended"),
    "client id removed": (lambda: OAuthClientId.objects.all().delete(), "client_unknown"),
    "tool suspended": (lambda: Tool.objects.update(status="suspended"), "tool_suspended"),
    "issuer disabled": (lambda: Issuer.objects.update(enabled=False), "issuer_unknown"),
    "issuer's keys withdrawn": (lambda: KeySet.objects.update(jwks={"keys": []}), "token_invalid"),
    "issuer's algorithm": (lambda: Issuer.objects.update(algorithms=["ES256"]), "token_invalid"),
    "audience": (lambda: Backend.objects.update(audiences=["https://other"]), "audience_mismatch"),
    "issuer no more accepted": (lambda: Backend.objects.update(accepts_every_issuer=False), "issuer_unknown"),
}


def psql(statement: str) -> None:
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"]) as owner:
        owner.execute(statement)


@pytest.mark.parametrize("what", ENDS)
def test_a_known_token_is_refused_on_the_next_call(world: World, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keysets, "claim_and_refresh", lambda issuer: "unchanged")
    asked = token()
    assert world.verify(token=asked)["decision"] == "allow"
    change, reason = ENDS[what]
    change()
    answer = world.verify(token=asked)
    assert (answer["decision"], answer["reason"]) == ("deny", reason)
    assert answer["policy_version"] == Head.objects.get().policy


@pytest.mark.parametrize("end", [revoke_key, lambda: Backend.objects.update(enabled=False), BackendKey.objects.all])
def test_a_backend_that_is_no_more_let_in_is_told_nothing(world: World, end: Callable[[], Any]) -> None:
    ended = end()
    if hasattr(ended, "delete"):
        ended.delete()
    before = Record.objects.filter(type="decision").count()
    assert world.post("/v1/verify", {"token": token(), "tool": "memory.recall"}).status_code == 401
    assert Record.objects.filter(type="decision").count() == before


def test_an_outcome_by_a_revoked_key_is_refused(world: World) -> None:
    record = world.verify()["record"]
    revoke_key()
    assert world.post(f"/v1/records/{record}/outcome", {"status": "ok"}).status_code == 401
    assert not Record.objects.filter(type="outcome").exists()


def test_a_declaration_by_a_revoked_key_is_refused(world: World) -> None:
    revoke_key()
    declared = {"tools": [{"name": "memory.forget", "access": "destructive", "scopes": ["memory:write"]}]}
    response = world.http.put(
        "/v1/tools", json.dumps(declared), content_type="application/json",
        headers={"Authorization": f"Bearer {world.key}"},
    )  # fmt: skip
    assert response.status_code == 401
    assert not Tool.objects.filter(name="memory.forget").exists()


def test_a_kept_denial_is_not_repeated_to_a_revoked_key(world: World) -> None:
    body, once = {"token": None, "tool": "memory.recall"}, {"Idempotency-Key": "k1"}
    assert world.post("/v1/verify", body, **once).status_code == 200
    revoke_key()
    assert world.post("/v1/verify", body, **once).status_code == 401


@pytest.mark.parametrize(
    "end",
    [
        revoke_key,
        lambda: Backend.objects.update(enabled=False),
    ],
)
def test_a_backend_that_ends_while_keys_are_fetched_is_refused(
    world: World, end: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    KeySet.objects.update(jwks={"keys": []})

    def fetch(issuer: int) -> str:
        end()
        KeySet.objects.update(jwks=jwks())
        return "refreshed"

    monkeypatch.setattr(keysets, "claim_and_refresh", fetch)
    assert world.post("/v1/verify", {"token": token(), "tool": "memory.recall"}).status_code == 401


def test_another_secret_for_a_key_is_no_silent_change(world: World) -> None:
    before = Head.objects.get().policy
    try:
        psql("UPDATE tools_backendkey SET digest = decode(repeat('00', 32), 'hex')")
    except psycopg.Error:
        return  # refused: keys are replaced, never changed
    assert Head.objects.get().policy == before + 1
    assert world.post("/v1/verify", {"token": token(), "tool": "memory.recall"}).status_code == 401


def test_an_erased_user_whose_key_left_memory_is_met_as_a_new_one(world: World) -> None:
    uid = world.verify()["subject"]["uid"]
    psql(f"UPDATE audit_subject SET erased_at = now(), identity_key = NULL WHERE uid = '{uid}'")
    psql(f"DELETE FROM audit_datakey WHERE holder = '{uid}'")
    keyring.clear()
    world.http.raise_request_exception = False
    answer = world.verify()
    assert answer["decision"] == "allow" and answer["subject"]["uid"] != uid
    assert uid not in {known.uid for known in subjects._known.values()}


@pytest.mark.parametrize("date", ["infinity", "10000-01-01", "0044-03-15 BC"])
@pytest.mark.parametrize("column", ["clients_grant SET expires_at", "tools_backendkey SET expires_at"])
def test_a_date_by_psql_that_python_cannot_hold_stops_nobody(world: World, column: str, date: str) -> None:
    with contextlib.suppress(psycopg.Error):
        psql(f"UPDATE {column} = '{date}'")
    world.http.raise_request_exception = False
    assert world.post("/v1/verify", {"token": token(), "tool": "memory.recall"}).status_code in (200, 401)


def test_the_serving_role_cannot_make_up_policy_changes(world: World) -> None:
    before = Head.objects.get().policy
    with (
        psycopg.connect(os.environ["DATABASE_URL"]) as serving,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        serving.execute(
            "INSERT INTO audit_outbox (kind, xact, at, table_name, operation, row_key, new, actor)"
            " VALUES ('policy', '1', now(), 'clients_grant', 'insert', '99', '{\"id\": 99}', 'staff:1')"
        )
        serving.commit()
    assert Head.objects.get().policy == before


def test_an_open_transaction_on_keys_and_key_sets_blocks_no_call(world: World, owner_url: str) -> None:
    with psycopg.connect(owner_url) as owner:
        owner.execute("UPDATE tools_backendkey SET revoked_at = now()")
        owner.execute("UPDATE clients_keyset SET attempted_at = NULL")
        owner.execute("UPDATE audit_subject SET blocked_at = now()")
        credentials._touched.clear()
        took = [time.monotonic()]
        assert world.verify()["decision"] == "allow"
        took.append(time.monotonic())
        stranger = jwt.encode({"iss": ISSUER}, "x" * 64, algorithm="HS256", headers={"kid": "made-up"})
        assert world.verify(token=stranger)["decision"] == "deny"
        took.append(time.monotonic())
        assert world.verify(token=token(email="alice@other.example"))["decision"] == "allow"
        took.append(time.monotonic())
        assert all(after - before < 1.9 for before, after in pairwise(took)), "one waited for a lock, for 2 s"
        owner.rollback()


def test_a_large_declaration_holds_up_nobody_for_long(world: World) -> None:
    tools = [{"name": f"t{n}", "access": "read", "scopes": [f"s{n}.{k}" for k in range(10)]} for n in range(200)]
    begun = time.monotonic()
    body = json.dumps({"tools": tools})
    headers = {"Authorization": f"Bearer {world.key}"}
    response = world.http.put("/v1/tools", body, content_type="application/json", headers=headers)
    assert response.status_code == 200
    assert time.monotonic() - begun < 20
    assert world.verify()["decision"] == "allow"


def test_declaring_changes_all_the_time_is_refused(world: World) -> None:
    def declare(text: str) -> int:
        tool = {"name": "t", "access": "read", "scopes": ["memory:read"], "description": text}
        headers = {"Authorization": f"Bearer {world.key}"}
        body = json.dumps({"tools": [tool]})
        status: int = world.http.put("/v1/tools", body, content_type="application/json", headers=headers).status_code
        return status

    statuses = [declare(str(number)) for number in range(30)]
    assert statuses[:20] == [200] * 20
    assert 429 in statuses
