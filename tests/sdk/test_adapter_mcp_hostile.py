"""Hostile requests to a guarded MCP server, outages of the platform, and what other ways there are to reach a tool."""

import asyncio
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client.client import Client
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import MCPServer
from mcp.shared.inbound import encode_header_value
from pydantic import AnyHttpUrl
from starlette.routing import Route

from audit.models import Record
from governance import process
from muniment import Agent, Misconfigured, Muniment, current_caller
from muniment.adapters.mcp import GuardedServer, MunimentTokenVerifier, guarded_app
from muniment.adapters.mcp_http import MAX_BODY, PREPARED, guard_endpoint, prepared_of
from muniment.calls import Prepared
from muniment.errors import Refused, Unavailable
from muniment.introspection import introspect, shown
from tests import world as worlds
from tests.reset import reset
from tests.served import asgi, platform
from tests.world import World, token

RESOURCE = "https://inner.example/mcp"
HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
ran: list[str] = []


def tools(server: Any) -> None:
    @server.tool("memory.recall", scopes="memory:read", resource=lambda query: ("memory", query))
    def recall(query: str) -> str:
        ran.append("memory.recall")
        caller = current_caller()
        return caller.sub if caller else "nobody"

    @server.tool("memory.capture", scopes="memory:write")
    def capture(query: str) -> str:
        ran.append("memory.capture")
        return "captured"


@pytest.fixture(scope="module")
def url(migrated: None) -> Iterator[str]:
    with platform() as found:
        yield found


@pytest.fixture(scope="module")
def world(url: str) -> Iterator[World]:
    reset()
    yield worlds.build()
    process.stop_recorder()


@pytest.fixture(scope="module")
def guard(world: World, url: str) -> Muniment:
    return Muniment(url, world.key, resource=RESOURCE, authorization_servers=["https://id.example/"])


@pytest.fixture(scope="module")
def http(guard: Muniment) -> Iterator[httpx2.Client]:
    """A server that keeps no sessions, so that a POST is all there is."""
    server = GuardedServer("inner", guard=guard, log_level="ERROR")
    tools(server)
    app = server.streamable_http_app(stateless_http=True, json_response=True)
    with asgi(app, lifespan="on") as found, httpx2.Client(base_url=found, headers=HEADERS, trust_env=False) as client:
        yield client


def bearer(**claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(**claims)}"}


def call(tool: Any = "memory.recall", id: Any = 1, **more: Any) -> dict[str, Any]:
    params = {"name": tool, "arguments": {"query": "sea"}} | more
    return {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}


def count() -> int:
    return Record.objects.filter(type__in=("decision", "introspection")).count()


def text(response: httpx2.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["result"]["content"][0]["text"])


def test_a_stateless_server_is_guarded_too(http: httpx2.Client) -> None:
    assert text(http.post("/mcp", json=call(), headers=bearer())) == "alice"
    assert http.post("/mcp", json=call("memory.capture"), headers=bearer(scope="memory:read")).status_code == 403


def test_a_call_is_a_call_however_it_is_written(http: httpx2.Client) -> None:
    """Its method and name in escapes, in pieces: it is decided as what the server reads."""
    plain = json.dumps(call("memory.capture"))
    escaped = plain.replace("tools/call", "t\\u006fols\\/call").replace("memory.capture", "memory\\u002ecapture")
    assert json.loads(escaped) == json.loads(plain) and escaped != plain
    headers, done = bearer(scope="memory:read"), len(ran)
    for content in (escaped.encode(), iter([plain[:20].encode(), plain[20:].encode()])):
        response = http.post("/mcp", content=content, headers=headers)
        assert response.json()["error"]["data"]["reason"] == "insufficient_scope" and response.status_code == 403
    assert len(ran) == done


HOSTILE = {
    "empty": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"method": "tools/call\xff"}',
    "nested without end": b"[" * 100_000,
    "a number that ends no more": b'{"id": ' + b"9" * 5000 + b"}",
    "a text": b'"tools/call"',
    "a batch": json.dumps([call(), call("memory.capture")]).encode(),
    "an empty batch": b"[]",
    "two names": b'{"jsonrpc":"2.0","id":1,"method":"tools/call",'
    b'"params":{"name":"memory.recall","name":"memory.capture","arguments":{"query":"x"}}}',
    "two names, one of them written otherwise": b'{"jsonrpc":"2.0","id":1,"method":"tools/call",'
    b'"params":{"name":"memory.recall","n\\u0061me":"memory.capture","arguments":{"query":"x"}}}',
    "two methods": b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call",'
    b'"params":{"name":"memory.capture","arguments":{"query":"x"}}}',
    "two params": b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"memory.recall"},'
    b'"params":{"name":"memory.capture","arguments":{"query":"x"}}}',
    "two arguments of a name": b'{"jsonrpc":"2.0","id":1,"method":"tools/call",'
    b'"params":{"name":"memory.recall","arguments":{"query":"x","query":"y"}}}',
    "no params": json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call"}).encode(),
    "params that are a list": json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": [1]}).encode(),
    "no id": json.dumps({k: v for k, v in call().items() if k != "id"}).encode(),
    "an id of null": json.dumps(call(id=None)).encode(),
    "an id that is a list": json.dumps(call(id=[1])).encode(),
    "an id that is true": json.dumps(call(id=True)).encode(),
    "an id with a fraction": json.dumps(call(id=1.5)).encode(),
    "an id of 1.0": json.dumps(call(id=1.0)).encode(),
    "a method that is a list": json.dumps(call() | {"method": ["tools/call"]}).encode(),
    "arguments that are a list": json.dumps(call(arguments=[1])).encode(),
    "a body without end": b" " * (MAX_BODY + 1),
} | {
    f"the name {name!r}"[:40]: json.dumps(call(name)).encode()
    for name in (
        None, 1, ["memory.recall"], {}, "", " ", "memory.recall ", "memory.recall\n", "mémory", "\ud800", "x" * 129,
    )
}  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_what_may_be_read_in_two_ways_is_asked_of_nobody_and_runs_nothing(http: httpx2.Client, body: bytes) -> None:
    before, done = count(), len(ran)
    response = http.post("/mcp", content=body, headers=bearer())
    assert response.status_code == 400 and "error" in response.json()
    assert (count(), len(ran)) == (before, done)


@pytest.mark.parametrize("charset", ["utf-16", "utf-32", "utf-8-sig"])
def test_another_encoding_is_read_as_the_server_reads_it_or_by_nobody(http: httpx2.Client, charset: str) -> None:
    done = len(ran)
    response = http.post("/mcp", content=json.dumps(call("memory.capture")).encode(charset), headers=bearer())
    assert response.status_code in (400, 403) and len(ran) == done


def test_bodies_at_the_edge_reach_the_server_as_they_are(http: httpx2.Client) -> None:
    padded = json.dumps(call()).encode() + b" " * 1_000_000
    assert text(http.post("/mcp", content=padded, headers=bearer())) == "alice"
    strange = json.dumps(call(id="\x00 " + "x" * 300)).encode()
    assert text(http.post("/mcp", content=strange, headers=bearer())) == "alice"
    assert text(http.post("/mcp", json=call(id=-(2**60)), headers=bearer())) == "alice"


@pytest.mark.parametrize("query", ["x" * 300, "a\x00b", "\ud800", "", " "])
def test_arguments_that_the_platform_does_not_take_do_not_spoil_the_call(http: httpx2.Client, query: str) -> None:
    content = json.dumps(call(arguments={"query": query})).encode()
    response = http.post("/mcp", content=content, headers=bearer())
    assert response.status_code in (200, 400) and (query == "\ud800" or text(response) == "alice")


MISMATCHES = {
    "another tool": {"Mcp-Method": "tools/call", "Mcp-Name": "memory.capture"},
    "another tool alone": {"Mcp-Name": "memory.capture"},
    "another tool, encoded": {"Mcp-Name": encode_header_value("mémory")},
    "a broken encoding": {"Mcp-Name": "=?base64?!?="},
    "another method": {"Mcp-Method": "ping"},
    "the name in other letters": {"Mcp-Name": "Memory.Recall"},
}


@pytest.mark.parametrize("given", MISMATCHES.values(), ids=MISMATCHES)
def test_headers_that_say_something_else_than_the_body_are_refused(http: httpx2.Client, given: dict[str, str]) -> None:
    before, done = count(), len(ran)
    response = http.post("/mcp", json=call(), headers=bearer() | given)
    assert response.status_code == 400 and response.json()["error"]["code"] == -32020
    assert (count(), len(ran)) == (before, done)


def test_headers_that_occur_twice_are_refused(http: httpx2.Client) -> None:
    for name, value in (("Mcp-Name", "memory.recall"), ("Mcp-Method", "tools/call")):
        pairs = [*bearer().items(), (name, value), (name, value)]
        assert http.post("/mcp", json=call(), headers=pairs).status_code == 400


def test_headers_are_compared_in_messages_that_are_no_calls_too(http: httpx2.Client) -> None:
    listing = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    for given in ({"Mcp-Method": "tools/call"}, {"Mcp-Name": "memory.recall"}):
        assert http.post("/mcp", json=listing, headers=bearer() | given).status_code == 400
    read = {"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": "memory://1"}}
    assert http.post("/mcp", json=read, headers=bearer() | {"Mcp-Name": "memory://2"}).status_code == 400


def test_headers_that_agree_pass(http: httpx2.Client) -> None:
    for name in ("memory.recall", "=?base64?bWVtb3J5LnJlY2FsbA==?="):
        given = bearer() | {"Mcp-Method": "tools/call", "Mcp-Name": name}
        assert text(http.post("/mcp", json=call(), headers=given)) == "alice"


@pytest.mark.parametrize("path", ["/mcp%0A", "/mcp/", "//mcp", "/mcp;x", "/MCP", "/./mcp", "/x/../mcp"])
def test_no_spelling_of_the_path_goes_around_the_guard(http: httpx2.Client, path: str) -> None:
    host = http.base_url.host
    request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).encode()
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Accept: application/json, text/event-stream",
             "Content-Type: application/json", f"Content-Length: {len(request)}", "Connection: close"]  # fmt: skip
    with socket.create_connection((host, http.base_url.port), timeout=10) as peer:
        peer.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + request)
        status = int(peer.makefile("rb").readline().split()[1])
    assert status in (307, 401, 404)


def test_the_host_and_origin_of_others_are_refused(http: httpx2.Client) -> None:
    for given, status in (
        ({"Host": "inner.example"}, 200), ({"Host": "evil.example"}, 421), ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "https://inner.example"}, 200),
    ):  # fmt: skip
        assert http.post("/mcp", json=call(), headers=bearer() | given).status_code == status


def test_a_server_without_the_endpoint_is_not_served_unguarded(guard: Muniment) -> None:
    async def other() -> None: ...

    with pytest.raises(Misconfigured, match="no endpoint of its own at /mcp"):
        guard_endpoint([Route("/other", other)], "/mcp", guard)


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        spool: Path = tmp_path_factory.mktemp("spool")
        guard = Muniment(url, "mk_x_y", resource=RESOURCE, spool=spool, timeout=1)
        server = GuardedServer("inner", guard=guard, log_level="ERROR")
        tools(server)

        @server.tool("memory.open", scopes="memory:read", fail="open")
        def open_tool() -> str:
            return "somebody" if current_caller() else "nobody"

        app = server.streamable_http_app(json_response=True)
        with asgi(app, lifespan="on") as found, httpx2.Client(base_url=found, headers=HEADERS, timeout=30) as client:
            yield client
            assert guard.background.wait(0.01) is False  # the declaration still waits
            guard.background._jobs.clear()


class TestWhileThePlatformIsAway:
    """Closed tools answer 503, open ones run as nobody and are kept for later."""

    def test_a_closed_tool_is_a_503_with_retry_after(self, away: httpx2.Client) -> None:
        done = len(ran)
        response = away.post("/mcp", json=call(), headers=bearer())
        assert response.status_code == 503 and int(response.headers["Retry-After"]) >= 1
        assert "verified at the moment" in response.json()["error"]["message"] and len(ran) == done

    def test_an_open_tool_runs_as_nobody_in_a_session(self, away: httpx2.Client) -> None:
        about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        begin = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about}
        opened = away.post("/mcp", json=begin, headers=bearer())
        assert opened.status_code == 200
        headers = bearer() | {"Mcp-Session-Id": opened.headers["mcp-session-id"]}
        away.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=headers)
        assert text(away.post("/mcp", json=call("memory.open", arguments={}), headers=headers)) == "nobody"

    @pytest.mark.parametrize("method", ["resources/read", "prompts/get", "completion/complete", "subscriptions/listen"])
    def test_what_has_something_of_a_users_does_not_fail_open(self, away: httpx2.Client, method: str) -> None:
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"uri": "memory://1"}}
        for verb, body in (("POST", message), ("GET", None)):
            response = away.request(verb, "/mcp", json=body, headers={"Authorization": "Bearer made.up.token"})
            assert response.status_code == 503 and int(response.headers["Retry-After"]) >= 1

    def test_nobody_gets_in_without_a_token_even_then(self, away: httpx2.Client) -> None:
        assert away.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).status_code == 401
        for given in ({}, {"Authorization": "Bearer a b"}):
            response = away.post("/mcp", json=call("memory.open", arguments={}), headers=given)
            assert response.status_code == 503 and "Retry-After" in response.headers


class TestTheTokenVerifier:
    """For mcp's own `auth`: it says which tokens are good here."""

    def test_a_good_token_is_told_with_what_grants_cover(self, guard: Muniment) -> None:
        found = asyncio.run(self.verify(guard, token()))
        assert found is not None and found.scopes == ["memory:read"] and found.subject == "alice"
        assert found.client_id == "claude-app" and found.resource == RESOURCE
        assert found.claims["iss"] == "https://id.example/" and found.claims["uid"].startswith("usr_")

    @pytest.mark.parametrize("given", ["", "x", "a.b.c", token(exp=1_700_000_000, iat=1_699_999_000), "é" * 20_000])
    def test_another_is_none(self, guard: Muniment, given: str) -> None:
        assert asyncio.run(self.verify(guard, given)) is None and introspect(guard, given) is None

    def test_an_outage_is_no_refusal(self, guard: Muniment) -> None:
        with Muniment("http://127.0.0.1:1", "mk_x_y", timeout=1) as away, pytest.raises(Unavailable):
            introspect(away, token())

    def test_it_serves_mcps_own_auth_and_the_session_is_its_users(self, guard: Muniment) -> None:
        auth = AuthSettings(
            issuer_url=AnyHttpUrl("https://id.example/"), resource_server_url=AnyHttpUrl(RESOURCE),
            required_scopes=["memory:read"], validate_token_resource=True,
        )  # fmt: skip
        server = MCPServer("inner", auth=auth, token_verifier=MunimentTokenVerifier(guard), log_level="ERROR")
        server.add_tool(lambda query: "told", name="memory.recall")
        with asgi(guarded_app(server, guard, stateless_http=True, json_response=True), lifespan="on") as found:
            post = httpx2.Client(base_url=found, headers=HEADERS, trust_env=False, timeout=30).post
            assert text(post("/mcp", json=call(), headers=bearer())) == "told"
            listing = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
            before = Record.objects.filter(type="introspection").count()
            assert post("/mcp", json=listing, headers=bearer()).status_code == 200
            assert Record.objects.filter(type="introspection").count() == before + 1  # not looked at twice
            assert post("/mcp", json=listing, headers=bearer(scope="other")).status_code == 403
            assert post("/mcp", json=listing, headers={"Authorization": "Bearer x"}).status_code == 401

    def test_in_an_outage_mcps_own_auth_answers_503(self) -> None:
        auth = AuthSettings(
            issuer_url=AnyHttpUrl("https://id.example/"),
            resource_server_url=AnyHttpUrl(RESOURCE),
            validate_token_resource=True,
        )
        away = Muniment("http://127.0.0.1:1", "mk_x_y", resource=RESOURCE, timeout=1)
        server = MCPServer("inner", auth=auth, token_verifier=MunimentTokenVerifier(away), log_level="ERROR")
        app = guarded_app(server, away, stateless_http=True, json_response=True)

        async def post() -> httpx2.Response:
            transport = httpx2.ASGITransport(app)
            async with httpx2.AsyncClient(transport=transport, base_url="https://inner.example") as client:
                try:
                    return await client.post("/mcp", json=call(), headers=HEADERS | bearer())
                finally:
                    await away.aclose()

        response = asyncio.run(post())
        assert response.status_code == 503 and int(response.headers["Retry-After"]) >= 1

    @staticmethod
    async def verify(guard: Muniment, given: str) -> Any:
        try:
            return await MunimentTokenVerifier(guard).verify_token(given)
        finally:
            await guard.platform.aclose()

    @pytest.mark.parametrize("answer", [
        {}, {"active": 1}, {"active": True}, {"active": "true"},
        {"active": True, "uid": "", "iss": "i", "sub": "s", "client_id": "c", "aud": "a", "exp": 1},
        {"active": True, "uid": "u", "iss": "i", "sub": "s", "client_id": "c", "aud": ["a"], "exp": 1},
        {"active": True, "uid": "u", "iss": "i", "sub": "s", "client_id": "c", "aud": "a", "exp": "1"},
        {"active": True, "uid": "u", "iss": "i", "sub": "s", "client_id": "c", "aud": "a", "exp": 1, "scope": ["x"]},
    ])  # fmt: skip
    def test_what_is_no_answer_is_refused(self, answer: dict[str, Any]) -> None:
        with pytest.raises(Refused):
            shown(answer)


def test_a_server_that_is_reached_around_its_endpoint_refuses(guard: Muniment) -> None:
    server = GuardedServer("other", guard=Muniment("http://127.0.0.1:1", "mk_x_y"), log_level="ERROR")
    server.guard = guard
    server.middleware[-1].guard = guard  # type: ignore[attr-defined]
    server.add_tool(lambda: "told", name="memory.bare")
    app = MCPServer.streamable_http_app(server, stateless_http=True, json_response=True)
    with asgi(app, lifespan="on") as found:
        response = httpx2.post(f"{found}/mcp", json=call("memory.bare", arguments={}), headers=HEADERS | bearer())
    assert response.json()["result"]["isError"]


def test_a_call_has_no_more_than_the_backend_says_whatever_it_claims(guard: Muniment) -> None:
    server = MCPServer("inner", log_level="ERROR")
    server.add_tool(lambda: "told", name="memory.recall")
    guarded_app(server, guard)

    async def run(agent: Agent) -> Any:
        with guard.request(token(), agent=agent):
            async with Client(server, mode="legacy") as client:
                said = {"chain": ["planner"], "scopes": ["memory:read"], "mode": "interactive"}
                return await client.call_tool("memory.recall", {}, meta={"muniment/agent": said})

    assert asyncio.run(run(Agent("background", ("scheduler",)))).content[0].text == "told"
    last = json.loads(bytes(Record.objects.filter(type="decision").latest("index").statement))
    assert (last["agent"]["chain"], last["agent"]["mode"]) == (["scheduler", "planner"], "background")
    refused = asyncio.run(run(Agent("subagent", ("scheduler",), ())))
    assert refused.is_error and refused.meta is None  # no other token would help
    many = asyncio.run(run(Agent("subagent", ("a",) * 8)))
    assert many.is_error and "too many agents" in many.content[0].text


def test_in_memory_the_client_sees_the_words_of_a_denial(guard: Muniment) -> None:
    server = MCPServer("inner", log_level="ERROR")
    server.add_tool(lambda: "told", name="memory.capture")
    guarded_app(server, guard)

    async def run() -> Any:
        with guard.request(token(scope="memory:read")):
            async with Client(server) as client:
                return await client.call_tool("memory.capture", {})

    result = asyncio.run(run())
    assert result.is_error and result.meta is not None
    [challenge] = result.meta["mcp/www_authenticate"]
    assert 'scope="memory:write"' in challenge and "ey" not in result.content[0].text


def test_what_came_of_one_call_serves_no_other_and_once_only() -> None:
    prepared = Prepared("memory.recall", Unavailable("timeout"))
    scope = {PREPARED: (1, prepared)}
    for id, tool in (("1", "memory.recall"), (True, "memory.recall"), (1.0, "memory.recall"), (2, "memory.recall"),
                     (None, "memory.recall"), (1, "memory.capture")):  # fmt: skip
        assert prepared_of(scope, id, tool) is None
    assert prepared_of({}, None, "memory.recall") is None
    assert prepared_of(scope, 1, "memory.recall") is prepared
    assert prepared.take("memory.capture") is None and prepared.take("memory.recall") is prepared.result
    assert prepared.take("memory.recall") is None and prepared_of(scope, 1, "memory.recall") is None


def test_calls_with_one_id_at_the_same_time_are_each_decided_by_themselves(http: httpx2.Client) -> None:
    """Allowed and denied ones, of two users, all with the id 1."""

    def one(number: int) -> tuple[int, str]:
        user, tool = f"user{number % 2}", ("memory.recall", "memory.capture")[number % 3 == 0]
        response = http.post("/mcp", json=call(tool), headers=bearer(sub=user, scope="memory:read"))
        return response.status_code, text(response) if response.status_code == 200 else ""

    done = ran.count("memory.capture")
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(one, range(12)))
    assert found == [(403, "") if number % 3 == 0 else (200, f"user{number % 2}") for number in range(12)]
    assert ran.count("memory.capture") == done
