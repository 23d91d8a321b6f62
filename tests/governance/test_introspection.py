"""POST /v1/introspect (RFC 7662): what it says, to whom, and what is on record of it. Two verifiers of others are run
against it as they are: fastmcp's, and one that does what the example of the MCP Python SDK does."""

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
from django.utils import timezone
from fastmcp.server.auth.providers.introspection import IntrospectionTokenVerifier
from mcp.server.auth.provider import AccessToken
from mcp.shared.auth_utils import check_resource_allowed, resource_url_from_server_url

from audit import record_page
from audit.models import Record, Subject
from clients.models import Client, Grant, KeySet
from governance.budgets import budgets
from tests import world as worlds
from tests.served import platform
from tests.world import AUDIENCE, World, token
from tools.models import Backend, Scope


@pytest.fixture
def world(db: None) -> World:
    return worlds.build()


def ask(world: World, text: str | None = None, **headers: str) -> Any:
    form = urlencode({"token": token() if text is None else text, "token_type_hint": "access_token"})
    return world.http.post(
        "/v1/introspect", form, content_type="application/x-www-form-urlencoded",
        headers={"Authorization": f"Bearer {world.key}", **headers},
    )  # fmt: skip


def told(world: World, text: str | None = None) -> dict[str, Any]:
    response = ask(world, text)
    assert response.status_code == 200, response.content
    assert response.headers["Cache-Control"] == "no-store"
    found: dict[str, Any] = response.json()
    return found


def statements() -> list[dict[str, Any]]:
    rows = Record.objects.filter(type="introspection").order_by("index")
    return [json.loads(bytes(row.statement)) for row in rows]


INACTIVE = {"active": False}


class TestTheAnswer:
    def test_an_active_token_is_told_with_the_scopes_that_grants_cover(self, world: World) -> None:
        found = told(world, token(jti="j1", act={"sub": "planner", "act": {"sub": "reader"}}))
        assert found == {
            "active": True, "scope": "memory:read", "client_id": "claude-app", "token_type": "Bearer",
            "exp": found["exp"], "iat": found["iat"], "sub": "alice", "aud": AUDIENCE, "iss": worlds.ISSUER,
            "jti": "j1", "act": {"sub": "planner", "act": {"sub": "reader"}}, "uid": found["uid"],
        }  # fmt: skip
        assert found["uid"] == world.verify()["subject"]["uid"] and found["exp"] > time.time()

    def test_of_many_audiences_the_one_that_is_the_backends_is_told(self, world: World) -> None:
        assert told(world, token(aud=["https://other.example", AUDIENCE]))["aud"] == AUDIENCE

    @pytest.mark.parametrize(
        "text",
        ["", "x", "a.b.c", "\x00", "😀", "x" * 40_000, ".." * 50],
        ids=["empty", "x", "dots", "nul", "emoji", "long", "many dots"],
    )
    def test_what_is_no_token_is_not_active_and_no_error(self, world: World, text: str) -> None:
        response = ask(world, text)
        assert (response.status_code, response.json()) == (200, INACTIVE) if text else response.status_code == 400

    @pytest.mark.parametrize(
        ("reason", "claims"),
        [
            ("audience_mismatch", {"aud": "https://other.example"}),
            ("token_expired", {"iat": 1_000_000_000, "exp": 1_000_000_600}),
            ("issuer_unknown", {"iss": "https://elsewhere.example/"}),
            ("client_unknown", {"client_id": "nobody-app"}),
            ("proof_required", {"cnf": {"jkt": "x"}}),
        ],
    )
    def test_what_would_establish_nobody_is_not_active_and_nothing_else_is_told(
        self, world: World, reason: str, claims: dict[str, Any]
    ) -> None:
        assert told(world, token(**claims)) == INACTIVE
        assert [one["reason"] for one in statements()] == [reason]

    def test_a_suspended_client_and_a_blocked_user_end_it(self, world: World) -> None:
        text = token()
        assert told(world, text)["active"]
        Client.objects.update(status="suspended")
        assert told(world, text) == INACTIVE
        Client.objects.update(status="active")
        assert told(world, text)["active"]
        Subject.objects.update(blocked_at=timezone.now())
        assert told(world, text) == INACTIVE
        assert [one["reason"] for one in statements()][1::2] == ["client_suspended", "subject_blocked"]

    def test_another_backends_key_does_not_see_the_token(self, world: World) -> None:
        from tools.credentials import issue

        other = issue(Backend.objects.create(slug="other", name="Other", audiences=["https://other.example"]))
        assert ask(world, Authorization=f"Bearer {other}").json() == INACTIVE

    def test_keys_that_cannot_be_had_are_an_outage_and_not_an_inactive_token(self, world: World) -> None:
        KeySet.objects.update(jwks=None, fetched_at=None)
        response = ask(world)
        assert response.status_code == 503 and response["Content-Type"] == "application/problem+json"
        assert "Retry-After" in response.headers


class TestTheScopes:
    def test_a_grant_for_one_tool_alone_gives_none(self, world: World) -> None:
        Grant.objects.update(tool=world.backend.tools.get(name="memory.recall"))
        assert told(world)["scope"] == ""

    def test_what_a_scope_implies_is_told_too(self, world: World) -> None:
        world.grant.scopes.set([Scope.objects.get(name="memory:write")])
        assert told(world)["scope"] == "memory:read memory:write"
        assert told(world, token(scope="memory:read"))["scope"] == "memory:read"

    def test_a_deny_grant_takes_its_scopes_away(self, world: World) -> None:
        world.grant.scopes.set([Scope.objects.get(name="memory:write")])
        deny = Grant.objects.create(effect="deny", reason="not for now")
        deny.scopes.set([Scope.objects.get(name="memory:write")])
        assert told(world)["scope"] == "memory:read"

    def test_a_deny_grant_of_everything_ends_it(self, world: World) -> None:
        deny = Grant.objects.create(effect="deny", reason="not for now")
        assert told(world) == INACTIVE
        deny.tool = world.backend.tools.get(name="memory.capture")
        deny.save()
        assert told(world)["active"]


class TestWhoAsks:
    def test_the_key_may_be_a_bearer_token_a_basic_password_or_in_the_form(self, world: World) -> None:
        basic = base64.b64encode(f"any-name:{world.key}".encode()).decode()
        assert ask(world, Authorization=f"Basic {basic}").json()["active"]
        form = {"token": token(), "client_id": "any-name", "client_secret": world.key}
        kind = "application/x-www-form-urlencoded"
        assert world.http.post("/v1/introspect", urlencode(form), content_type=kind).json()["active"]

    @pytest.mark.parametrize(
        "header", ["Bearer mk_x", "Basic !!", "Basic " + base64.b64encode(b"nocolon").decode(), ""]
    )
    def test_without_a_good_key_nothing_is_told(self, world: World, header: str) -> None:
        response = ask(world, Authorization=header)
        assert response.status_code == 401 and not statements()

    def test_a_form_that_is_too_large_or_has_too_many_members(self, world: World) -> None:
        response = ask(world, "x" * 300_000)
        assert (response.status_code, response.json()["type"]) == (413, "urn:muniment:problem:body-too-large")
        many = "&".join(f"a{n}=1" for n in range(1500))
        form = "application/x-www-form-urlencoded"
        response = world.http.post("/v1/introspect", many, content_type=form)
        assert (response.status_code, response.json()["type"]) == (400, "urn:muniment:problem:invalid-form")

    def test_json_and_two_tokens_are_refused(self, world: World) -> None:
        assert world.post("/v1/introspect", {"token": token()}).status_code == 400
        kind = "application/x-www-form-urlencoded"
        headers = {"Authorization": f"Bearer {world.key}"}
        assert (
            world.http.post("/v1/introspect", "token=a&token=b", content_type=kind, headers=headers).status_code == 400
        )
        many = "&".join(f"a{number}=1" for number in range(2000))
        assert world.http.post("/v1/introspect", many, content_type=kind, headers=headers).status_code == 400
        assert world.http.get("/v1/introspect", headers=headers).status_code == 405

    def test_a_flood_of_bad_tokens_is_turned_away(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(budgets, "burst", 3)
        monkeypatch.setattr(budgets, "rate", 0.001)
        assert [ask(world, "a.b.c").status_code for _ in range(5)] == [200, 200, 200, 429, 429]


class TestTheRecord:
    def test_it_is_a_token_check_and_no_call(self, world: World) -> None:
        found = told(world)
        [said] = statements()
        assert said["subject"] == found["uid"] and said["tool"] is None and said["effective"] == ["memory:read"]
        assert not Record.objects.filter(type="decision").exists()

    def test_it_reads_well(self, world: World) -> None:
        told(world)
        told(world, "a.b.c")
        active, refused = (
            record_page.row(row, {}) for row in Record.objects.filter(type="introspection").order_by("index")
        )
        assert "checked a token of" in active.title and active.why == "active, for memory:read"
        assert "a token of nobody known" in refused.title and refused.pill.words == "Token refused"


# --- verifiers of others, as they are ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(migrated: None) -> Iterator[str]:
    with platform() as found:
        yield f"{found}/v1/introspect"


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_fastmcps_verifier_works_unchanged(world: World, url: str, method: Any) -> None:
    verifier = IntrospectionTokenVerifier(
        introspection_url=url, client_id="inner", client_secret=world.key, client_auth_method=method,
        required_scopes=["memory:read"], audience=AUDIENCE,
    )  # fmt: skip

    async def both() -> tuple[Any, Any]:
        return await verifier.verify_token(token()), await verifier.verify_token(token(aud="https://other.example"))

    found, other = asyncio.run(both())
    assert other is None
    assert (found.client_id, found.subject, found.scopes) == ("claude-app", "alice", ["memory:read"])
    assert found.claims["iss"] == worlds.ISSUER


class ExampleVerifier:
    """What the MCP Python SDK's example of an introspecting verifier sends and reads; it is in no package, so that it
    is written here anew. It knows no authentication: the key is in its endpoint's URL, as a password."""

    def __init__(self, endpoint: str, server: str) -> None:
        assert endpoint.startswith(("https://", "http://localhost", "http://127.0.0.1"))
        self.endpoint, self.resource = endpoint, resource_url_from_server_url(server)

    async def verify_token(self, text: str) -> AccessToken | None:
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        async with httpx2.AsyncClient() as client:
            response = await client.post(self.endpoint, data={"token": text}, headers=kind)
        answer = response.json() if response.status_code == 200 else {}
        audience = answer.get("aud")
        if not answer.get("active") or not check_resource_allowed(self.resource, audience):
            return None
        return AccessToken(
            token=text, client_id=answer.get("client_id", "unknown"), scopes=answer.get("scope", "").split(),
            expires_at=answer.get("exp"), resource=audience, subject=answer.get("sub"), claims=answer,
        )  # fmt: skip


def test_a_verifier_like_the_example_of_the_mcp_sdk_works_unchanged(world: World, url: str) -> None:
    # Its check of the URL wants the loopback address first, which may as well be the name of the client.
    verifier = ExampleVerifier(url.replace("http://", f"http://127.0.0.1:{world.key}@"), AUDIENCE)

    async def both() -> tuple[Any, Any]:
        return await verifier.verify_token(token()), await verifier.verify_token("a.b.c")

    found, nobody = asyncio.run(both())
    assert nobody is None
    assert (found.client_id, found.resource, found.scopes) == ("claude-app", AUDIENCE, ["memory:read"])
    assert found.expires_at > time.time()
