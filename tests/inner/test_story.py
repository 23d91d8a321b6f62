"""The case, end to end: Claude and ChatGPT over MCP with the real client, the iOS app over REST, one guard in front of
all three; and every call found in the audit search, with its proof."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from audit import search
from audit.models import Record
from audit.search import Query
from audit.viewer import Viewer
from clients import grants
from clients.grants import Actor
from clients.models import Client, Grant
from examples.inner.surfaces import App, mcp_client, token
from governance import demo_issuer
from muniment import notes, proofs
from tests.audit.sealers import ORIGIN, sealed, sealing
from tests.inner.house import House, house
from tools.models import Scope

CLAUDE, CHATGPT, IOS = "claude-app", "chatgpt-app", "inner-ios-app"
AUDITOR = Viewer("staff:1", "auditor", records=True)
STAFF = Actor("staff:1", "Ada")


@pytest.fixture
def inner(db: None, superuser_url: str, tmp_path: Path) -> Iterator[House]:
    with house(superuser_url, tmp_path) as found:
        yield found


def calls(**filters: Any) -> list[dict[str, Any]]:
    """What the audit search finds, the oldest first."""
    now = datetime.now(UTC)
    query = Query(now - timedelta(hours=1), now + timedelta(hours=1), {"type": "decision", **filters}, oldest=True)
    return [json.loads(bytes(row.statement)) for row in reversed(search.find(AUDITOR, query).records)]


def told(found: dict[str, Any]) -> tuple[Any, ...]:
    return found["client"], found["tool"], found["decision"], found["reason"]


def app(inner: House, user: str, scope: str) -> App:
    return App(inner.url, token(inner.issuer, user, IOS, scope))


async def texts(client: Any, query: str) -> list[str]:
    result = await client.call_tool("memory.recall", {"query": query})
    assert not result.is_error, result.content
    return [memory["text"] for memory in result.structured_content["result"]]


async def captured(inner: House) -> str:
    """Alice signs in through Claude, with the scopes to read; to capture, Claude asks her for more."""
    async with mcp_client(inner.mcp, CLAUDE, "alice") as claude:
        assert await texts(claude, "grief") == []
        kept = await claude.call_tool("memory.capture", {"text": "I cried at the funeral", "feeling": "sad"})
        await claude.call_tool("memory.capture", {"text": "We laughed at the wedding"})
    async with mcp_client(inner.mcp, CHATGPT, "alice") as chatgpt:
        assert (await texts(chatgpt, "who was mourned?"))[0] == "I cried at the funeral"
        assert (await texts(chatgpt, "a happy celebration"))[0] == "We laughed at the wedding"
    return str(kept.structured_content["id"])


async def as_bob(inner: House, id: str) -> None:
    """By no client and no argument does bob's token reach what is alice's."""
    async with mcp_client(inner.mcp, CLAUDE, "bob", "memory:read memory:forget") as claude:
        for query in ("grief", "alice", "", "' OR uid <> '", "%", id):
            assert await texts(claude, query) == []
        refused = await claude.call_tool("memory.forget", {"id": id})
        assert refused.is_error and refused.content[0].text.endswith("there is no such memory")


def test_the_story(inner: House, tmp_path: Path) -> None:
    id = asyncio.run(captured(inner))
    asyncio.run(as_bob(inner, id))
    alice, bob = app(inner, "alice", "memory:read memory:forget"), app(inner, "bob", "memory:read memory:forget")
    assert bob.recall("grief").json() == {"memories": []} and bob.forget(id).status_code == 404
    assert alice.recall("grief").json()["memories"][0]["text"] == "I cried at the funeral"
    strangers(inner)
    refused_by_staff(alice)
    assert alice.forget(id).status_code == 204 and alice.forget(id).status_code == 404
    assert "I cried at the funeral" not in alice.recall("grief").text
    assert inner.module.server.guard.flush(20)
    on_record(inner, tmp_path)


def strangers(inner: House) -> None:
    nobody = App(inner.url, None).recall("grief")
    assert nobody.status_code == 401 and "resource_metadata=" in nobody.headers["WWW-Authenticate"]
    expired = demo_issuer.mint("alice", "inner-ios", "memory:read", lifetime=-60)
    old = App(inner.url, expired).recall("grief")
    assert old.status_code == 401 and 'error="invalid_token"' in old.headers["WWW-Authenticate"]
    narrow = app(inner, "alice", "memory:read").capture("x")
    assert narrow.status_code == 403 and 'scope="memory:write"' in narrow.headers["WWW-Authenticate"]


def refused_by_staff(alice: App) -> None:
    """A block, and a grant that is revoked: the very next call is refused."""
    client = Client.objects.get(slug="inner-ios")
    block = Grant.objects.create(client=client, effect="deny", reason="looked into")
    block.scopes.set([Scope.objects.get(name="memory:read")])
    forbidden = alice.recall("grief")
    assert (forbidden.status_code, forbidden.json()["reason"]) == (403, "grant_denied")
    grants.revoke(block, actor=STAFF, reason="cleared up")
    assert alice.recall("grief").status_code == 200
    held = Grant.objects.get(client=client, scopes__name="memory:write", effect="allow", tool=None)
    grants.revoke(held, actor=STAFF, reason="the app is recalled")
    revoked = alice.recall("grief")
    assert (revoked.status_code, revoked.json()["reason"]) == (403, "not_granted")
    restored = Grant.objects.create(client=client, reason="back")
    restored.scopes.set([Scope.objects.get(name="memory:read")])


def on_record(inner: House, folder: Path) -> None:
    """Every call, as it was: client, user, tool, scopes, outcome; and each with a proof that holds."""
    found = calls()
    uids = {one["subject"] for one in found if one["subject"]}
    assert len(uids) == 2
    assert [told(one) for one in calls(client="claude")][:3] == [
        ("claude", "memory.recall", "allow", "granted"),
        ("claude", "memory.capture", "deny", "insufficient_scope"),
        ("claude", "memory.capture", "allow", "granted"),
    ]
    reasons = {one["reason"] for one in found}
    assert reasons == {
        "granted", "insufficient_scope", "token_missing", "token_expired", "grant_denied", "not_granted",
    }  # fmt: skip
    by_chatgpt = calls(client="chatgpt")
    assert [told(one) for one in by_chatgpt] == [("chatgpt", "memory.recall", "allow", "granted")] * 2
    assert all(one["required"] == ["memory:read"] and one["subject"] in uids for one in by_chatgpt)
    allowed = Record.objects.filter(type="decision", decision="allow")
    outcomes = search.outcomes_of(list(allowed))
    assert set(outcomes) == {row.id for row in allowed}
    failed = [json.loads(bytes(row.statement))["outcome"]["status"] for row in outcomes.values()]
    assert failed.count("error") == 3 and failed.count("ok") == len(failed) - 3  # what was not theirs to forget
    (folder / "sealer").mkdir()
    with sealing(folder / "sealer") as sealer:
        sealed(sealer)
        public = sealer.private.public_key().public_bytes_raw()
    keys = [notes.Key(ORIGIN, notes.ED25519, public)]
    for row in Record.objects.filter(type="decision"):
        answer = httpx2.get(
            f"{inner.platform}/v1/log/proof/inclusion", params={"record": str(row.id)},
            headers={"Authorization": f"Bearer {inner.key}"},
        )  # fmt: skip
        proof = proofs.Proof.parse(answer.json()["tlog_proof"])
        proofs.verify(proof, bytes(row.leaf), keys)


class TestAStolenTable:
    """Who has the tables, or the connection, and not the keys."""

    def test_tells_nothing_of_what_was_captured(self, inner: House, superuser_url: str) -> None:
        for user in ("alice", "bob"):
            app(inner, user, "memory:write").capture("I cried at the funeral", "sad")
        url = superuser_url.replace(superuser_url.split("?")[0].rpartition("/")[2], "inner", 1)
        with psycopg.connect(url) as thief:
            rows = thief.execute("SELECT m.*, k.wrapped FROM memories m JOIN user_keys k USING (uid)").fetchall()
        dump = repr(rows)
        assert len(rows) == 2 and "cried" not in dump and "funeral" not in dump and "alice" not in dump
        (_, _, _, one, its_meaning, _), (_, _, _, other, other_meaning, _) = rows
        assert bytes(one) != bytes(other) and its_meaning != other_meaning  # the same words

    def test_shows_nothing_to_inners_own_role_without_a_caller(self, inner: House) -> None:
        app(inner, "alice", "memory:write").capture("I cried at the funeral")
        with psycopg.connect(inner.database) as connection:
            assert connection.execute("SELECT count(*) FROM memories").fetchone() == (0,)
            assert connection.execute("SELECT count(*) FROM user_keys").fetchone() == (0,)


class TestTheApp:
    """REST, as an app meets it when it is wrong."""

    @pytest.mark.parametrize("body", [b"", b"[]", b'{"text": 1}', b'{"text": "  "}', b"{" * 9000, b"x" * 70_000])
    def test_a_bad_body_is_a_problem(self, inner: House, body: bytes) -> None:
        http = app(inner, "alice", "memory:write").http
        response = http.post("/memories", content=body)
        assert response.status_code == 400 and response.headers["Content-Type"] == "application/problem+json"

    @pytest.mark.parametrize("id", ["x", "00000000-0000-0000-0000-000000000000", "%00", "'"])
    def test_what_is_not_there_is_404(self, inner: House, id: str) -> None:
        assert app(inner, "alice", "memory:forget").forget(id).status_code == 404
