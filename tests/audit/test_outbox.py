"""The outbox: whoever changes the policy, psql included, every version reaches the log once, in order, and holds
nothing that it must not."""

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Any

import psycopg
import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from audit import outbox
from audit.models import Head, Outbox, Record
from audit.outbox import acting
from audit.protection import keyring, reveal
from clients.models import Client, Grant, Issuer, KeySet, OAuthClientId
from muniment import disclosures, statements
from tests.audit import chain
from tests.audit.recorders import entry, receipts, running, version
from tests.live import until
from tests.world import World, build, jwks, token
from tools.models import Scope, Tool


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def superuser(world: World, superuser_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(superuser_url, autocommit=True) as made:
        yield made


def drain() -> list[dict[str, Any]]:
    """Let a recorder drain all that waits; the policy statements, by index. The log must add up afterwards."""
    with running():
        until(lambda: (head := Head.objects.get()).drained == head.policy and not waiting(), 20)
    url = os.environ["DATABASE_OWNER_URL"]
    assert chain.findings(url) == []
    log = chain.records(url)
    history = chain.replay(log)
    assert max(history) == version()
    assert chain.digest(history[version()]) == digest_now()
    return [record.said for record in log if record.columns["type"] == "policy"]


def waiting() -> bool:
    return Outbox.objects.filter(record_index=None).exists()


def digest_now() -> str:
    """The digest of the tables as they are."""
    from governance.snapshot import load

    return load().digest


def told(record: Record) -> dict[str, Any]:
    """A record's protected disclosures."""
    assert record.holder and record.disclosures
    packed = reveal(keyring.get(record.holder), bytes(record.disclosures), bytes(record.leaf))
    return {one.name: one.value for one in disclosures.unpack(packed)}


def policy(number: int) -> list[Record]:
    """The records of a policy version."""
    found = Record.objects.filter(type="policy").order_by("index")
    return [r for r in found if statements.decode(bytes(r.statement))["policy"]["version"] == number]  # type: ignore[index]


def test_each_role_is_named_when_it_changes_policy_by_psql(
    world: World, superuser: psycopg.Connection, owner_url: str
) -> None:
    update = "UPDATE clients_grant SET revoked_at = now() + %s * interval '1 s' WHERE id = %s"
    superuser.execute(update, [1, world.grant.pk])
    for number, url in enumerate((owner_url, os.environ["DATABASE_URL"])):
        with psycopg.connect(url) as role:
            role.execute(update, [number + 2, world.grant.pk])
    last = [statement["actor"] for statement in drain()][-3:]
    assert last == ["database:postgres", "database:muniment_owner", "database:muniment"]


def test_staff_are_named_and_their_words_protected(world: World) -> None:
    with acting("staff:7", "Sam Staff", "Ticket 4711: no longer needed"):
        Grant.objects.filter(pk=world.grant.pk).update(revoked_at=timezone.now())
    [statement] = drain()[-1:]
    assert statement["actor"] == "staff:7"
    [record] = policy(version())
    assert record.holder == "staff:7"
    assert told(record) == {"actor_name": "Sam Staff", "reason": "Ticket 4711: no longer needed"}
    assert b"Sam" not in bytes(record.statement) and b"4711" not in bytes(record.statement)
    assert not Outbox.objects.exclude(private=None).exists()


def test_a_version_for_each_transaction_whatever_the_number_of_rows(world: World) -> None:
    before = version()
    with transaction.atomic():
        client = Client.objects.create(slug="chatgpt", name="ChatGPT")
        grant = Grant.objects.create(client=client, reason="all of it")
        grant.scopes.set(Scope.objects.all())
        Tool.objects.update(status="suspended")
    assert version() == before + 1
    [statement] = [s for s in drain() if s["policy"]["version"] == before + 1]
    tables = [change["table"] for change in statement["changes"]]
    assert tables.count("clients_grant_scopes") == 2 and tables.count("tools_tool") == 2
    assert {"clients_client", "clients_grant"} <= set(tables)


def test_what_was_rolled_back_raises_no_version(world: World, owner_url: str) -> None:
    before = version()
    with psycopg.connect(owner_url) as staff:
        staff.execute("DELETE FROM clients_grant_scopes")
        staff.rollback()
        with staff.transaction(force_rollback=True):
            staff.execute("UPDATE clients_client SET status = 'suspended'")
    assert version() == before
    with psycopg.connect(owner_url) as staff:
        staff.execute("UPDATE clients_client SET kind = 'other'")
        with staff.transaction(force_rollback=True):
            staff.execute("UPDATE clients_client SET status = 'suspended'")
    assert version() == before + 1
    [change] = drain()[-1]["changes"]
    assert (change["new"]["kind"], change["new"]["status"]) == ("other", "active")


def test_a_change_of_nothing_raises_no_version(world: World) -> None:
    before = version()
    world.grant.save()
    Client.objects.update(slug="claude")
    KeySet.objects.update(attempted_at=timezone.now(), error="away")
    assert version() == before


def test_relations_and_cascades_count(world: World) -> None:
    before = version()
    scope = Scope.objects.get(name="memory:read")
    world.grant.scopes.remove(scope)
    world.grant.scopes.add(scope)
    Scope.objects.get(name="memory:write").implies.clear()
    assert version() == before + 3
    OAuthClientId.objects.all().delete()
    with transaction.atomic():
        world.client.delete()  # its grant goes with it, and the grant's scopes
    removed = [(change["table"], change["op"]) for change in drain()[-1]["changes"]]
    assert {("clients_client", "delete"), ("clients_grant", "delete"), ("clients_grant_scopes", "delete")} == set(
        removed
    )


def test_truncate_of_policy_and_outbox_is_refused_even_to_the_superuser(
    world: World, superuser: psycopg.Connection
) -> None:
    for table in ("clients_grant CASCADE", "tools_tool CASCADE", "clients_keyset", "tools_backendkey", "audit_outbox"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            superuser.execute(f"TRUNCATE {table}")


def test_two_recorders_drain_at_once_exactly_once_in_order(world: World) -> None:
    stop = Event()

    def change() -> None:
        for number in range(60):
            Grant.objects.filter(pk=world.grant.pk).update(role=f"role{number}")
            Outbox.objects.create(
                kind="staff", xact="0", at=datetime.now(UTC), actor="staff:1", members={"action": f"look{number}"}
            )
        stop.set()
        connection.close()

    with running() as first, running() as second:
        thread = Thread(target=change)
        thread.start()
        while not stop.is_set():
            for recorder in (first, second):
                recorder.drained_at = 0.0
                receipts(recorder.record([entry()]))
        thread.join()
    assert len(drain()) == version()
    looks = [r.said["action"] for r in chain.records(os.environ["DATABASE_URL"]) if r.columns["type"] == "staff"]
    assert sorted(looks) == sorted(f"look{number}" for number in range(60))
    assert len(set(Outbox.objects.filter(kind="staff").values_list("record_index", flat=True))) == 60


def test_a_change_of_two_thousand_rows_is_told_in_parts(world: World) -> None:
    before = version()
    Client.objects.bulk_create([Client(slug=f"c{number}", name=f"Client {number}") for number in range(2000)])
    assert version() == before + 1
    parts = [statement for statement in drain() if statement["policy"]["version"] == before + 1]
    assert len(parts) > 1
    assert [part["part"] for part in parts] == list(range(1, len(parts) + 1))
    assert {part["parts"] for part in parts} == {len(parts)}
    slugs = [change["new"]["slug"] for part in parts for change in part["changes"]]
    assert slugs == [f"c{number}" for number in range(2000)]


def test_a_row_too_large_for_a_statement_is_named_by_digests(world: World) -> None:
    before = version()
    networks = [f"10.{number // 250}.{number % 250}.0/24" for number in range(6000)]
    Issuer.objects.update(allowed_networks=networks)
    with running():
        until(lambda: not waiting(), 30)
    [record] = policy(before + 1)
    [change] = statements.decode(bytes(record.statement))["changes"]  # type: ignore[misc]
    assert set(change) == {"table", "op", "key", "old_sha256", "new_sha256"}  # type: ignore[call-overload]
    Issuer.objects.update(allowed_networks=[])
    with running() as recorder:
        until(lambda: not waiting(), 30)
        receipts(recorder.record([entry()]))


def test_reasons_of_several_grants_in_one_transaction_are_all_kept(world: World, owner_url: str) -> None:
    with psycopg.connect(owner_url) as staff:
        staff.execute("UPDATE clients_client SET kind = 'other'")  # has no reason of its own
        for reason in ("for the pilot", "for support"):
            staff.execute(
                "INSERT INTO clients_grant (effect, client_id, modes, reason, created_at, created_by)"
                " VALUES ('allow', %s, '{}', %s, now(), '')",
                [world.client.pk, reason],
            )
    drain()
    [record] = policy(version())
    why = told(record)
    assert why["reason"] == "for the pilot"
    assert sorted(why["reasons"].values()) == ["for support", "for the pilot"]


def test_two_actors_in_one_transaction_are_told_apart(world: World, owner_url: str) -> None:
    with psycopg.connect(owner_url) as staff:
        for number in (1, 2):
            outbox.attribute(staff.cursor(), f"staff:{number}", f"Person {number}", f"reason {number}")
            staff.execute("UPDATE clients_client SET kind = %s", [("mcp", "chatgpt", "mobile")[number]])
    drain()
    records = policy(version())
    assert [(record.holder, told(record)["actor_name"]) for record in records] == [
        ("staff:1", "Person 1"), ("staff:2", "Person 2"),
    ]  # fmt: skip


def test_no_secret_is_in_outbox_or_statements(world: World, superuser: psycopg.Connection) -> None:
    world.verify(request={"id": "r", "ip": "203.0.113.7"})
    KeySet.objects.update(jwks=jwks() | {"note": "a secret note of the set"})
    Grant.objects.create(client=world.client, reason="a private reason")
    forbidden = [world.key, world.key.split("_", 2)[2], token().split(".")[2], "secret note", "private reason"]
    forbidden += ["alice", "203.0.113.7"]
    rows = superuser.execute(
        "SELECT digest FROM tools_backendkey UNION ALL SELECT wrapped FROM audit_datakey"
        " UNION ALL SELECT identity_key FROM audit_subject UNION ALL SELECT email_key FROM audit_subject"
        " UNION ALL SELECT sub FROM audit_subject"
    ).fetchall()
    forbidden += [form for (value,) in rows for form in spellings(bytes(value))]
    assert len(rows) >= 5
    drain()
    kept = [row for (row,) in superuser.execute("SELECT to_jsonb(o)::text FROM audit_outbox o")]
    kept += [record.statement.decode() for record in chain.records(os.environ["DATABASE_OWNER_URL"])]
    for text in kept:
        for secret in forbidden:
            assert secret not in text


def spellings(value: bytes) -> list[str]:
    """A byte string as hex and base64, as it would be seen in a text."""
    from base64 import b64encode, urlsafe_b64encode

    return [value.hex(), b64encode(value).decode().rstrip("="), urlsafe_b64encode(value).decode().rstrip("=")]


def test_an_entry_that_cannot_be_a_statement_does_not_hold_up_the_rest(world: World) -> None:
    hostile: list[Any] = [
        {"x": 1.5}, {"x": 2**60}, {"x": "y" * 70_000}, {"subject": "s" * 200}, {"decision": "allow" * 3},
        json.loads('{"a":' * 30 + "1" + "}" * 30), {"é": 1}, {"type": "decision"}, {"_sd": 5, "id": "mine"},
    ]  # fmt: skip
    for members in hostile:
        Outbox.objects.create(
            kind="staff", xact="0", at=datetime.now(UTC), actor="staff:1", members=members, private={"x": 0.5}
        )
    Outbox.objects.create(kind="staff", xact="0", at=datetime.now(UTC), actor="staff:1", members={"action": "last"})
    drain()
    log = chain.records(os.environ["DATABASE_URL"])
    unfit = [record.said for record in log if record.columns["type"] == "notice"]
    assert len(unfit) == len(hostile)
    assert {one["action"] for one in unfit} == {"outbox.unfit"}
    assert [r.said["action"] for r in log if r.columns["type"] == "staff"] == ["last"]


@pytest.mark.parametrize("kind", ["decision", "evaluation", "outcome", "denials"])
def test_decisions_cannot_be_written_through_the_outbox(world: World, kind: str) -> None:
    forged = {"decision": "allow", "reason": "granted", "backend": "inner", "client": "claude"}
    Outbox.objects.create(kind=kind, xact="0", at=datetime.now(UTC), actor="database:muniment", members=forged)
    drain()
    assert not Record.objects.filter(type=kind).exists()
    [notice] = Record.objects.filter(type="notice")
    assert statements.decode(bytes(notice.statement))["kind"] == kind
    assert notice.decision is None


def test_a_version_that_is_missing_from_the_outbox_stops_no_call(world: World, superuser: psycopg.Connection) -> None:
    with running():
        until(lambda: not waiting(), 30)
    superuser.execute("UPDATE audit_head SET policy = policy + 1")  # a version that nothing explains
    Client.objects.update(kind="other")
    started = time.monotonic()
    for _ in range(20):
        assert world.verify()["decision"] == "allow"
    assert time.monotonic() - started < 30
    assert Head.objects.get().drained == version() - 2


def test_a_long_actor_or_a_cycle_of_scopes_leaves_nothing_behind(world: World) -> None:
    before = version()
    with pytest.raises(Exception, match="character varying"), acting("staff:" + "7" * 200):
        Client.objects.update(kind="other")
    read, write = Scope.objects.get(name="memory:read"), Scope.objects.get(name="memory:write")
    with pytest.raises(IntegrityError):
        read.implies.add(write)
    assert version() == before
    drain()
