"""/v1/forward-auth: a proxy is answered by who calls, decided and recorded as by verify, or refused."""

import json
from typing import Any
from urllib.parse import unquote

import jwt
import pytest
from django.test import RequestFactory

from audit.models import Record
from clients.models import Client, Grant, Issuer, KeySet, Limit
from governance.budgets import Budgets
from governance.forward_auth_answer import NOBODY
from governance.forward_auth_request import info
from governance.verification import verify
from tests.staff import statement
from tests.world import World, build, token
from tools.models import BackendKey, BackendMark, Route, Tool

PATH = "/v1/forward-auth"
RECALL, CAPTURE = "memory.recall", "memory.capture"
MCP = {"Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": RECALL}


@pytest.fixture
def world(db: None) -> World:
    made = build()
    for path, methods, tools in [
        ("/mcp", [], [RECALL, CAPTURE]), ("/memories", ["GET"], [RECALL]), ("/memories", ["POST"], [CAPTURE]),
        ("/memories/*", ["GET"], [RECALL]), ("/memories/secret", [], [CAPTURE]), ("/closed/**", [], []),
        ("/ghost", [], ["memory.ghost"]),
    ]:  # fmt: skip
        Route.objects.create(backend=made.backend, path=path, methods=methods, tools=tools)
    return made


def ask(world: World, uri: str = "/memories/7", method: str = "GET", bearer: str | None = None, **more: str) -> Any:
    """As nginx asks; headers of `more` with `_` for `-`, and an empty one is left out."""
    headers = {
        "X-Muniment-Proxy": "nginx", "X-Muniment-Key": world.key, "X-Original-Method": method, "X-Original-URI": uri,
        "Authorization": f"Bearer {token() if bearer is None else bearer}",
    } | {name.replace("_", "-"): value for name, value in more.items()}  # fmt: skip
    return world.http.get(PATH, headers={name: value for name, value in headers.items() if value})


def granted(world: World, *scopes: str) -> None:
    for name in scopes:
        world.grant.scopes.add(Tool.objects.get(name=name).scopes.get())


def test_an_allowed_request_is_answered_with_who_it_is_and_recorded(world: World) -> None:
    response = ask(world, "/memories/7?q=x", X_Real_IP="203.0.113.7", X_Request_Id="r1", Mcp_Session_Id="s1")
    assert (response.status_code, response.content) == (200, b"")
    record = Record.objects.get(type="decision")
    said = statement(record)
    assert (said["tool"], said["decision"], said["reason"]) == (RECALL, "allow", "granted")
    expected = {
        "Uid": said["subject"], "Client": "claude", "Tool": RECALL, "Scopes": "memory:read", "Record": str(record.pk),
        "Tenant": "", "Assertion": "", "Status": "200",
    }  # fmt: skip
    assert {name: response.headers[f"X-Muniment-{name}"] for name in expected} == expected
    assert response.headers["Cache-Control"] == "no-store"


def test_it_decides_as_verify_does(world: World) -> None:
    answer = world.verify()
    response = ask(world)
    first, second = (statement(record) for record in Record.objects.filter(type="decision").order_by("index"))
    moving = ("id", "at", "token", "_sd")
    assert {k: v for k, v in first.items() if k not in moving} == {k: v for k, v in second.items() if k not in moving}
    assert answer["subject"]["uid"] == response.headers["X-Muniment-Uid"]


def test_a_denial_is_403_with_the_challenge_and_names_nobody(world: World) -> None:
    response = ask(world, "/memories", "POST", token(scope="memory:read"))
    assert response.status_code == 403
    assert response.headers["WWW-Authenticate"] == (
        'Bearer error="insufficient_scope", error_description="The user\'s token does not carry the scopes that the'
        ' tool needs.", scope="memory:write", '
        'resource_metadata="https://inner.example/.well-known/oauth-protected-resource/mcp"'
    )
    assert {name: response.headers[name] for name in NOBODY} == NOBODY
    body = json.loads(response.content)
    assert (body["type"], body["reason"]) == ("urn:muniment:problem:denied", "insufficient_scope")
    assert Record.objects.get(type="decision").reason == "insufficient_scope"


def test_without_a_token_it_is_401_with_all_scopes_of_the_route_and_one_record(world: World) -> None:
    for authorization in ("", "Basic YTpi", "Bearer ", "bearer"):
        response = ask(world, "/mcp", "POST", Authorization=authorization)
        assert response.status_code == 401
        assert 'scope="memory:read memory:write"' in response.headers["WWW-Authenticate"]
        assert "error=" not in response.headers["WWW-Authenticate"]
    assert [r.reason for r in Record.objects.filter(type="decision")] == ["token_missing"] * 4


def test_a_denial_that_no_scope_helps_has_no_challenge(world: World) -> None:
    response = ask(world, "/memories", "POST")  # consented to, not granted by staff
    assert response.status_code == 403 and "WWW-Authenticate" not in response.headers
    assert json.loads(response.content)["reason"] == "not_granted"


class TestSeveralTools:
    def test_the_scopes_of_all_are_required_and_each_is_recorded(self, world: World) -> None:
        response = ask(world, "/mcp", "POST")
        assert response.status_code == 403 and json.loads(response.content)["reason"] == "not_granted"
        assert sorted(Record.objects.filter(type="decision").values_list("tool", "decision")) == [
            (CAPTURE, "deny"), (RECALL, "allow"),
        ]  # fmt: skip

    def test_all_allowed_name_all(self, world: World) -> None:
        granted(world, CAPTURE)
        response = ask(world, "/mcp", "POST", X_Muniment_Proxy="nginx; assertion=https://db.example")
        assert response.status_code == 200
        assert response.headers["X-Muniment-Tool"] == f"{RECALL} {CAPTURE}"
        records = response.headers["X-Muniment-Record"].split(" ")
        assert [Record.objects.get(pk=record).tool for record in records] == [RECALL, CAPTURE]
        assert response.headers["X-Muniment-Assertion"] == ""  # of one tool, or of none

    def test_the_scopes_are_those_that_all_have_in_common(self, world: World) -> None:
        tool = Tool.objects.get(name=CAPTURE)
        alone = Grant.objects.create(client=world.client, tool=tool, reason="r")
        alone.scopes.add(tool.scopes.get())
        response = ask(world, "/mcp", "POST")
        assert (response.status_code, response.headers["X-Muniment-Scopes"]) == (200, "memory:read")

    def test_the_challenge_has_the_scopes_of_all(self, world: World) -> None:
        granted(world, CAPTURE)
        response = ask(world, "/mcp", "POST", token(scope="memory:read"))
        assert 'scope="memory:read memory:write"' in response.headers["WWW-Authenticate"]

    def test_what_scopes_do_not_help_is_told_first(self, world: World) -> None:
        Tool.objects.filter(name=CAPTURE).update(status="suspended")
        response = ask(world, "/mcp", "POST", token(scope="other:scope"))
        assert json.loads(response.content)["reason"] == "tool_suspended"
        assert "WWW-Authenticate" not in response.headers


class TestMcpName:
    def test_it_says_nothing_unless_the_backend_is_declared_to_enforce_it(self, world: World) -> None:
        assert ask(world, "/mcp", "POST", **MCP).status_code == 403
        BackendMark.objects.create(backend=world.backend, mark="enforces_mcp_name")
        response = ask(world, "/mcp", "POST", X_Muniment_Proxy="nginx; assertion=https://db.example", **MCP)
        assert (response.status_code, response.headers["X-Muniment-Tool"]) == (200, RECALL)
        claims = jwt.decode(response.headers["X-Muniment-Assertion"], options={"verify_signature": False})
        assert (claims["aud"], claims["tool"]) == ("https://db.example", RECALL)
        assert claims["jti"] == response.headers["X-Muniment-Record"]

    @pytest.mark.parametrize(
        "wrong",
        [
            {"Mcp-Name": ""}, {"Mcp-Name": "memory.other"}, {"Mcp-Name": f"{RECALL},{CAPTURE}"},
            {"Mcp-Name": "Memory.Recall"}, {"Mcp-Name": "=?base64?bWVtb3J5LnJlY2FsbA==?="}, {"Mcp-Method": ""},
            {"Mcp-Method": "tools/list"}, {"Mcp-Method": "tools/call,tools/call"}, {"Mcp-Protocol-Version": ""},
            {"Mcp-Protocol-Version": "2025-11-25"}, {"Mcp-Protocol-Version": "2025-11-25,2026-07-28"},
            {"Mcp-Protocol-Version": "DRAFT-2026"}, {"Mcp-Protocol-Version": "zzzz-zz-zz"},
        ],
    )  # fmt: skip
    def test_anything_else_takes_all_tools(self, world: World, wrong: dict[str, str]) -> None:
        BackendMark.objects.create(backend=world.backend, mark="enforces_mcp_name")
        assert ask(world, "/mcp", "POST", **MCP | wrong).status_code == 403

    @pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
    def test_a_tool_is_called_by_post_alone(self, world: World, method: str) -> None:
        BackendMark.objects.create(backend=world.backend, mark="enforces_mcp_name")
        assert ask(world, "/mcp", method, **MCP).status_code == 403

    def test_it_names_no_tool_of_another_route(self, world: World) -> None:
        BackendMark.objects.create(backend=world.backend, mark="enforces_mcp_name")
        response = ask(world, "/memories/secret", "POST", **MCP)
        assert response.status_code == 403 and Record.objects.get(type="decision").tool == CAPTURE


class TestRoutes:
    @pytest.mark.parametrize(
        ("uri", "method"),
        [("/", "GET"), ("/closed/x", "GET"), ("/memories/7", "POST"), ("/memories", "DELETE"), ("/mcp/x", "POST"),
         ("/memories/7/x", "GET"), ("/memories/Secret", "GET")],
    )  # fmt: skip
    def test_what_no_route_is_for_is_refused_and_counted(
        self, world: World, uri: str, method: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        budgets = Budgets(1000, 1000)
        budgets._told_at = -9
        monkeypatch.setattr("governance.forward_auth.budgets", budgets)
        response = ask(world, uri, method)
        assert response.status_code == 403 and json.loads(response.content)["type"].endswith(":no-route")
        assert "WWW-Authenticate" not in response.headers and not Record.objects.filter(type="decision").exists()
        [entry] = budgets.denials()
        assert entry.statement["counts"] == {"no_route": 1} and entry.statement["backend"] == "inner"

    @pytest.mark.parametrize(
        "uri", ["/memories/../closed/x", "//memories", "/memories/%2e%2e/x", "/memories/secret%2f", "/memories%00",
                "/memories/secret;a", "/memories/7%0d%0a", "http://inner.example/memories", "memories",
                "/memories/%252e"]
    )  # fmt: skip
    def test_a_path_that_can_be_read_in_two_ways_is_refused(self, world: World, uri: str) -> None:
        response = ask(world, uri)
        assert response.status_code == 403 and json.loads(response.content)["type"].endswith(":path-ambiguous")
        assert uri.strip("/") not in response.content.decode()

    def test_a_tool_that_there_is_not_is_refused_and_recorded(self, world: World) -> None:
        assert ask(world, "/ghost").status_code == 403
        assert Record.objects.get(type="decision").reason == "tool_unknown"

    def test_a_route_of_another_backend_is_none(self, world: World) -> None:
        other = type(world.backend).objects.create(slug="other", name="Other", audiences=["https://other.example"])
        Route.objects.create(backend=other, path="/elsewhere", tools=[RECALL])
        assert ask(world, "/elsewhere").status_code == 403

    def test_a_route_that_is_made_is_there_for_the_next_request(self, world: World) -> None:
        assert ask(world, "/new").status_code == 403
        Route.objects.create(backend=world.backend, path="/new", tools=[RECALL])
        assert ask(world, "/new").status_code == 200
        Route.objects.filter(path="/new").update(tools=[CAPTURE])
        assert ask(world, "/new").status_code == 403
        Route.objects.filter(path="/new").delete()
        assert json.loads(ask(world, "/new").content)["type"].endswith(":no-route")

    def test_a_route_that_changes_while_it_is_decided_is_looked_up_anew(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert ask(world).status_code == 200
        changes = iter([1])

        def late(*given: Any) -> Any:
            if next(changes, None):  # after the route was found, before anything is recorded
                Route.objects.filter(path="/memories/*").update(tools=[CAPTURE])
            return verify(*given)

        monkeypatch.setattr("governance.api.verify", late)
        assert ask(world).status_code == 403
        assert [r.tool for r in Record.objects.filter(type="decision").order_by("index")] == [RECALL, CAPTURE]


class TestTheProxy:
    @pytest.mark.parametrize("key", ["", "mk_AAAAAAAAAAAA_" + "a" * 43, "Bearer x", "é"])
    def test_one_without_a_good_key_is_refused_without_sending_anybody_to_sign_in(self, world: World, key: str) -> None:
        response = ask(world, X_Muniment_Key=key)
        assert response.status_code == 403 and "WWW-Authenticate" not in response.headers
        assert json.loads(response.content)["type"].endswith(":proxy-not-authenticated")
        assert not Record.objects.filter(type="decision").exists()
        assert {name: response.headers[name] for name in NOBODY} == NOBODY

    def test_a_key_is_taken_from_its_own_header_alone(self, world: World) -> None:
        assert ask(world, X_Muniment_Key="", Authorization=f"Bearer {world.key}").status_code == 403
        url = f"{PATH}?key={world.key}&X-Muniment-Key={world.key}"
        assert world.http.get(url, headers={"X-Muniment-Proxy": "nginx"}).status_code == 403

    def test_a_revoked_key_ends_at_once(self, world: World) -> None:
        assert ask(world).status_code == 200
        BackendKey.objects.update(revoked_at="2026-01-01T00:00:00Z")
        assert ask(world).status_code == 403

    @pytest.mark.parametrize(
        "proxy",
        ["", "apache", "nginx,nginx", "nginx, envoy", "nginx; assertion", "nginx; x=y", "NGINX", "nginx; assertion="],
    )
    def test_one_that_does_not_say_what_it_is_is_refused(self, world: World, proxy: str) -> None:
        response = ask(world, X_Muniment_Proxy=proxy)
        assert response.status_code == 403 and json.loads(response.content)["type"].endswith(":proxy-misconfigured")

    def test_one_that_passes_on_all_headers_of_the_client_is_refused_and_counted(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It would also pass on X_Original_URI, which WSGI takes for X-Original-URI."""
        budgets = Budgets(1000, 1000)
        budgets._told_at = -9
        monkeypatch.setattr("governance.forward_auth.budgets", budgets)
        response = ask(world, Accept="*/*")
        assert response.status_code == 403 and "passes on all" in json.loads(response.content)["detail"]
        [entry] = budgets.denials()
        assert entry.statement["counts"] == {"proxy_misconfigured": 1}

    @pytest.mark.parametrize("name", ["X-Original-Method", "X-Original-URI"])
    def test_one_that_does_not_say_what_is_asked_is_refused(self, world: World, name: str) -> None:
        forwarded = {"X-Forwarded-Method": "GET", "X-Forwarded-Uri": "/memories/7"}  # another kind's are not read
        response = ask(world, **{name: ""} | forwarded)
        assert response.status_code == 403 and json.loads(response.content)["type"].endswith(":proxy-misconfigured")

    @pytest.mark.parametrize(
        ("name", "value"),
        [("X-Forwarded-Uri", "/memories/secret"), ("X-Forwarded-Method", "POST"),
         ("X-Original-URL", "/memories/secret"), ("X-Rewrite-URL", "/memories/secret"),
         ("X-HTTP-Method-Override", "DELETE"), ("X-Method-Override", "DELETE")],
    )  # fmt: skip
    def test_headers_that_contradict_each_other_are_refused(self, world: World, name: str, value: str) -> None:
        response = ask(world, **{name: value})
        assert response.status_code == 403 and json.loads(response.content)["type"].endswith(":path-ambiguous")
        assert ask(world, X_Forwarded_Uri="/memories/7", X_Forwarded_Method="GET").status_code == 200

    def test_an_audience_that_is_not_registered_gets_no_assertion(self, world: World) -> None:
        response = ask(world, X_Muniment_Proxy='nginx; assertion="https://elsewhere.example"')
        assert (response.status_code, response.headers["X-Muniment-Assertion"]) == (200, "")


@pytest.mark.parametrize(
    ("sent", "ip"),
    [({"X-Real-IP": "203.0.113.7"}, "203.0.113.7"), ({"X-Forwarded-For": "192.0.2.1, 203.0.113.7"}, "203.0.113.7"),
     ({"X-Real-IP": "2001:DB8::1"}, "2001:db8::1"), ({"X-Real-IP": "fe80::1%eth0"}, None), ({"X-Real-IP": "x"}, None),
     ({}, None)],
)  # fmt: skip
def test_what_is_recorded_of_where_it_came_from(sent: dict[str, str], ip: str | None) -> None:
    more = {"User-Agent": "Example/1", "X-Request-Id": "r1", "Traceparent": "00-ab", "Mcp-Session-Id": "s" * 257}
    found = info(RequestFactory().get(PATH, headers=sent | more))
    assert (found.ip, found.user_agent, found.id, found.trace_id) == (ip, "Example/1", "r1", "00-ab")
    assert found.session_id is None  # longer than a record holds


class TestStatuses:
    @pytest.mark.parametrize(("proxy", "status"), [("nginx", 403), ("envoy", 403), ("caddy", 503), ("traefik", 503)])
    def test_an_outage_of_the_issuer_is_a_denial_to_each(self, world: World, proxy: str, status: int) -> None:
        KeySet.objects.update(fetched_at=None)
        where = forwarded("/memories/7") if proxy in ("caddy", "traefik") else {}
        response = envoy(world, "/memories/7") if proxy == "envoy" else ask(world, X_Muniment_Proxy=proxy, **where)
        assert response.status_code == status
        assert (response.headers["X-Muniment-Status"], response.headers["Retry-After"]) == ("503", "1")

    def test_a_failure_budget_that_is_spent(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        budgets = Budgets(0.001, 1)
        monkeypatch.setattr("governance.api.budgets", budgets)
        assert ask(world, bearer="x").status_code == 401
        response = ask(world, bearer="x")
        assert (response.status_code, response.headers["X-Muniment-Status"]) == (403, "429")
        response = ask(world, bearer="x", X_Muniment_Proxy="caddy", **forwarded("/memories/7"))
        assert (response.status_code, response.headers["Retry-After"]) == (429, "1")

    def test_a_limit_that_is_used_up_says_when_to_come_back(self, world: World) -> None:
        Limit.objects.create(per="subject", count=2, period="hour", reason="r")
        Limit.objects.create(per="subject", count=1, period="day", tool=Tool.objects.get(name=CAPTURE), reason="r")
        granted(world, CAPTURE)
        where = forwarded("/mcp", "POST")
        assert ask(world, X_Muniment_Proxy="caddy", **where).status_code == 200
        response = ask(world, X_Muniment_Proxy="caddy", **where)
        assert response.status_code == 429 and int(response.headers["Retry-After"]) > 86_000, "the longest of the waits"
        response = ask(world)
        assert (response.status_code, response.headers["X-Muniment-Status"]) == (403, "429")
        assert 3_000 < int(response.headers["Retry-After"]) <= 3_600
        Tool.objects.filter(name=CAPTURE).update(status="suspended")
        assert json.loads(ask(world, X_Muniment_Proxy="caddy", **where).content)["reason"] == "tool_suspended"


def forwarded(uri: str, method: str = "GET") -> dict[str, str]:
    return {"X-Original-Method": "", "X-Original-URI": "", "X-Forwarded-Method": method, "X-Forwarded-Uri": uri}


def envoy(world: World, uri: str, method: str = "GET", prefix: str = PATH, **more: str) -> Any:
    """As Envoy asks: the original path after the prefix, with the original method and no body."""
    headers = {
        "X-Muniment-Proxy": "envoy", "X-Muniment-Key": world.key, "X-Original-URI": uri,
        "Authorization": f"Bearer {token()}",
    } | more  # fmt: skip
    headers = {name: value for name, value in headers.items() if value}
    return world.http.generic(method, f"{prefix}{uri}", headers=headers)


class TestEnvoy:
    def test_the_method_and_the_path_are_those_of_the_request(self, world: World) -> None:
        assert envoy(world, "/memories/7?q=1").status_code == 200
        assert envoy(world, "/memories/caf%C3%A9").status_code == 200
        assert envoy(world, "/memories", "POST").status_code == 403
        assert Record.objects.filter(type="decision").order_by("-index")[0].tool == CAPTURE
        assert envoy(world, "/memories/7", "PROPFIND").status_code == 403

    @pytest.mark.parametrize(
        ("uri", "header"),
        [("/memories/7", ""), ("/memories/secret", "/memories/7"), ("/memories/7", "/memories/secret"),
         ("/memories/7/", "/memories/7"), ("/memories%2F7", "/memories/7%2F"), ("", "/memories/7")],
    )  # fmt: skip
    def test_a_header_that_is_not_the_path_is_refused(self, world: World, uri: str, header: str) -> None:
        assert envoy(world, uri, **{"X-Original-URI": header}).status_code == 403

    def test_an_encoded_slash_is_seen_though_the_server_decodes_it(self, world: World) -> None:
        """Decoded, it is another path, with another route."""
        Route.objects.create(backend=world.backend, path="/memories/*/public", tools=[RECALL])
        assert envoy(world, "/memories/x/public").status_code == 200
        response = envoy(world, "/memories/x%2Fpublic")
        assert response.status_code == 403 and json.loads(response.content)["type"].endswith(":path-ambiguous")

    def test_a_path_that_is_named_like_ours_is_a_path(self, world: World) -> None:
        for uri in ("/v1/forward-auth/memories/7", "/nginx", "/\n"):
            assert envoy(world, uri).status_code == 403


@pytest.mark.parametrize("tenant", ["acme", "Straße 7\u2028", "a,b"])
def test_header_values_are_plain_ascii(world: World, tenant: str) -> None:
    Issuer.objects.update(tenant_claim="org")
    response = ask(world, bearer=token(org=tenant))
    if response.status_code == 200:
        value = response.headers["X-Muniment-Tenant"]
        assert value.isascii() and value.isprintable() and unquote(value) == tenant
    else:
        assert response.status_code == 401  # no tenant that a token may have
    assert all(value.isascii() and value.isprintable() for value in response.headers.values())


def test_an_inner_error_is_never_an_allow(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("governance.forward_auth.routed", broken)
    world.http.raise_request_exception = False
    assert ask(world).status_code == 500


def test_no_token_and_no_key_is_in_an_answer(world: World) -> None:
    for response in (ask(world), ask(world, "/memories", "POST"), ask(world, bearer="abc.def.ghi"), ask(world, "/x")):
        text = response.content.decode() + str(dict(response.headers))
        assert world.key not in text and "eyJhbGci" not in text and "abc.def" not in text


def test_a_suspended_client_is_stopped_at_the_next_request(world: World) -> None:
    assert ask(world).status_code == 200
    Client.objects.update(status="suspended")
    assert ask(world).status_code == 403
