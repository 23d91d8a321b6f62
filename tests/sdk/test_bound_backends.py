"""Backends take bound tokens (RFC 9449, RFC 8705): what came with a request is sent on by each adapter, and what its
client must know comes back. ASGI, FastAPI, MCP and fastmcp, served, with the real platform behind them."""

import ssl
from base64 import b64encode
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import httpx2
import pytest
from fastapi import Depends, FastAPI
from fastmcp import FastMCP

from audit.models import Record
from clients.models import Issuer, IssuerBinding
from governance import process
from muniment import Caller, Denied, Dpop, Muniment, current_caller
from muniment.adapters import fastmcp as fastmcps
from muniment.adapters.asgi import MunimentMiddleware
from muniment.adapters.fastapi import guarded
from muniment.adapters.http import proof, thumbprint
from muniment.adapters.mcp import GuardedServer
from muniment.calls import NO_PROOF
from tests import world as worlds
from tests.clients.proving import Holder, certificate, holder, in_hex
from tests.reset import reset
from tests.served import asgi, platform
from tests.world import World, token

ORIGIN = "https://inner.example"
MCP = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
ALICE, MALLORY = holder(), holder(number=1)


PEM = certificate()


@pytest.fixture(scope="module")
def url(migrated: None) -> Iterator[str]:
    with platform() as found:
        yield found


@pytest.fixture(scope="module")
def world(url: str) -> Iterator[World]:
    reset()
    made = worlds.build()
    tool = made.backend.tools.create(name="memory.recall.deep", access="read", status="active")
    tool.scopes.add(made.grant.scopes.get())
    yield made
    process.stop_recorder()


def guard_of(world: World, url: str, resource: str | None) -> Muniment:
    return Muniment(url, world.key, resource=resource, authorization_servers=["https://id.example/"])


@pytest.fixture(scope="module")
def api(world: World, url: str) -> Iterator[httpx2.Client]:
    """FastAPI behind the ASGI middleware, which a proxy tells of the client's certificate."""
    guard, app = guard_of(world, url, f"{ORIGIN}/api"), FastAPI()

    def presented(scope: Any) -> str | None:
        return thumbprint(dict(scope["headers"]).get(b"x-client-cert", b"").decode())

    app.add_middleware(MunimentMiddleware, guard=guard, certificate=presented)
    deep = guard.tool("memory.recall.deep", scopes="memory:read")(lambda: current_caller())

    @app.get("/recall/{what}")
    async def recall(caller: Annotated[Caller, Depends(guarded(guard, "memory.recall", scopes="memory:read"))]) -> Any:
        within = deep()
        return {"user": caller.sub, "within": within.sub if within else None}

    with asgi(app) as found, httpx2.Client(base_url=found, trust_env=False, timeout=30) as client:
        yield client


def mcp_server(guard: Muniment) -> Any:
    server = GuardedServer("inner", guard=guard, log_level="ERROR")

    @server.tool("memory.recall", scopes="memory:read")
    def recall(query: str) -> str:
        caller = current_caller()
        return caller.sub if caller else "nobody"

    return server.streamable_http_app(stateless_http=True, json_response=True)


def fastmcp_server(guard: Muniment) -> Any:
    server: FastMCP[Any] = FastMCP("inner")

    @server.tool(name="memory.recall")
    @guard.tool("memory.recall", scopes="memory:read")
    def recall(query: str) -> str:
        caller = current_caller()
        return caller.sub if caller else "nobody"

    return fastmcps.guarded_app(server, guard, stateless_http=True, json_response=True)


@pytest.fixture(scope="module", params=[mcp_server, fastmcp_server])
def mcp(world: World, url: str, request: pytest.FixtureRequest) -> Iterator[httpx2.Client]:
    app = request.param(guard_of(world, url, f"{ORIGIN}/mcp"))
    with asgi(app, lifespan="on") as found, httpx2.Client(base_url=found, headers=MCP, trust_env=False) as client:
        yield client


@pytest.fixture
def nonces(world: World) -> Iterator[None]:
    """The issuer demands nonces, for one test."""
    made = IssuerBinding.objects.create(issuer=Issuer.objects.get(), require="", dpop_nonce=True)
    yield
    made.delete()


def bound(**claims: Any) -> str:
    return token(**{"cnf": {"jkt": ALICE.jkt}} | claims)


def sent(text: str, path: str, method: str = "GET", who: Holder = ALICE, **changes: Any) -> dict[str, str]:
    """The headers of a request with its proof."""
    shown = who.proof(text, method, f"{ORIGIN}{path}", **changes)
    return {"Authorization": f"DPoP {text}", "DPoP": shown}


def refused(response: httpx2.Response, reason: str) -> str:
    """Of a 401 for this reason, the challenge."""
    document = response.json()
    found = document.get("error", {}).get("data", document)
    assert (response.status_code, found.get("reason", found["type"].rpartition(":")[2])) == (401, reason), response.text
    assert bound()[:30] not in response.text and ALICE.jkt not in response.text
    return str(response.headers["WWW-Authenticate"])


def call(tool: str = "memory.recall") -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": {"query": "sea"}}}


LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}


class TestRequests:
    def test_a_request_with_its_proof_is_served_and_all_calls_in_it_share_the_proof(self, api: httpx2.Client) -> None:
        text = bound()
        response = api.get("/recall/a%20b?q=1", headers=sent(text, "/recall/a%20b"))
        assert response.json() == {"user": "alice", "within": "alice"}, response.text

    def test_the_proof_serves_no_second_request(self, api: httpx2.Client) -> None:
        text = bound()
        headers = sent(text, "/recall/a")
        assert api.get("/recall/a", headers=headers).status_code == 200
        assert 'error="invalid_dpop_proof"' in refused(api.get("/recall/a", headers=headers), "proof_invalid")

    def test_a_bound_token_is_no_bearer_token_whatever_is_beside_it(self, api: httpx2.Client) -> None:
        text = bound()
        good = sent(text, "/recall/a")
        for headers in (
            {"Authorization": f"Bearer {text}"},
            good | {"Authorization": f"Bearer {text}"},
            {"Authorization": good["Authorization"]},
        ):
            challenge = refused(api.get("/recall/a", headers=headers), "proof_required")
            assert challenge.startswith("DPoP ") and 'algs="ES256 ' in challenge
            assert challenge.endswith(f'resource_metadata="{ORIGIN}/.well-known/oauth-protected-resource/api"')
        assert api.get("/recall/a", headers=good).status_code == 200

    @pytest.mark.parametrize(
        "changes",
        [{"who": MALLORY}, {"htu": f"{ORIGIN}/recall/b"}, {"htm": "POST"}, {"ath": "x"}, {"iat": 1}],
        ids=["key", "url", "method", "token", "time"],
    )
    def test_a_wrong_proof_is_refused(self, api: httpx2.Client, changes: dict[str, Any]) -> None:
        text = bound()
        assert refused(api.get("/recall/a", headers=sent(text, "/recall/a", **changes)), "proof_invalid")

    def test_a_proof_for_the_host_that_the_client_names_is_none_for_the_backends_own(self, api: httpx2.Client) -> None:
        text = bound()
        headers = sent(text, "/recall/a", htu="https://evil.example/recall/a") | {"Host": "evil.example"}
        refused(api.get("/recall/a", headers=headers), "proof_invalid")

    @pytest.mark.parametrize("proofs", [2, 0], ids=["two headers", "nonsense"])
    def test_what_is_no_one_proof_is_refused_and_on_record(self, api: httpx2.Client, proofs: int) -> None:
        text = bound()
        connection = HTTPConnection(urlsplit(str(api.base_url)).netloc, timeout=10)
        connection.putrequest("GET", "/recall/a")
        connection.putheader("Authorization", f"DPoP {text}")
        good = sent(text, "/recall/a")["DPoP"].encode()
        for value in [good, good] if proofs else [b"\xff\x01 " + b"x" * 9000]:
            connection.putheader("DPoP", value)
        connection.endheaders()
        assert connection.getresponse().status in (400, 401)  # the server itself may refuse a control character
        connection.close()
        if proofs:
            assert Record.objects.filter(type="decision").order_by("-index")[0].reason == "proof_invalid"

    def test_a_client_is_given_a_nonce_and_goes_on(self, api: httpx2.Client, nonces: None) -> None:
        text = bound()
        first = api.get("/recall/a", headers=sent(text, "/recall/a"))
        assert 'DPoP error="use_dpop_nonce"' in refused(first, "proof_invalid")
        headers = sent(text, "/recall/a", nonce=first.headers["DPoP-Nonce"])
        assert api.get("/recall/a", headers=headers).status_code == 200

    def test_tokens_that_are_not_bound_are_served_as_ever(self, api: httpx2.Client) -> None:
        assert api.get("/recall/a", headers={"Authorization": f"Bearer {token()}"}).status_code == 200
        text = token()
        assert api.get("/recall/a", headers=sent(text, "/recall/a", who=MALLORY)).status_code == 200

    def test_the_certificate_of_the_connection_is_sent_on(self, api: httpx2.Client) -> None:
        mine = thumbprint(PEM)
        text = token(cnf={"x5t#S256": mine})
        bearer = {"Authorization": f"Bearer {text}"}
        assert api.get("/recall/a", headers=bearer | {"X-Client-Cert": quote(PEM)}).status_code == 200
        refused(api.get("/recall/a", headers=bearer | {"X-Client-Cert": "00" * 32}), "proof_invalid")
        refused(api.get("/recall/a", headers=bearer | {"X-Client-Cert": "no certificate"}), "proof_required")
        refused(api.get("/recall/a", headers=bearer), "proof_required")


class TestMcp:
    def test_a_call_is_served_with_its_proof_once(self, mcp: httpx2.Client) -> None:
        text = bound()
        headers = sent(text, "/mcp", "POST")
        response = mcp.post("/mcp", json=call(), headers=headers)
        assert response.json()["result"]["content"][0]["text"] == "alice", response.text
        refused(mcp.post("/mcp", json=call(), headers=headers), "proof_invalid")
        refused(mcp.post("/mcp", json=call(), headers={"Authorization": f"Bearer {text}"}), "proof_required")

    def test_what_is_no_call_needs_a_proof_each_time_as_well(self, mcp: httpx2.Client) -> None:
        text = bound()
        for _ in range(2):
            assert mcp.post("/mcp", json=LIST, headers=sent(text, "/mcp", "POST")).status_code == 200
        headers = sent(text, "/mcp", "POST")
        assert mcp.post("/mcp", json=LIST, headers=headers).status_code == 200
        challenge = refused(mcp.post("/mcp", json=LIST, headers=headers), "proof-invalid")
        assert challenge.startswith('DPoP error="invalid_dpop_proof"') and "resource_metadata=" in challenge
        # A thief who has the token and no key: neither as a bearer token, nor with a proof of another key.
        for stolen in ({"Authorization": f"Bearer {text}"}, {"Authorization": f"DPoP {text}"}):
            assert mcp.post("/mcp", json=LIST, headers=stolen).status_code == 401
        wrong = mcp.post("/mcp", json=LIST, headers=sent(text, "/mcp", "POST", MALLORY))
        assert 'error="invalid_token"' in refused(wrong, "proof-invalid")

    def test_a_client_is_given_a_nonce_before_its_first_call(self, mcp: httpx2.Client, nonces: None) -> None:
        text = bound()
        first = mcp.post("/mcp", json=LIST, headers=sent(text, "/mcp", "POST"))
        assert 'error="use_dpop_nonce"' in refused(first, "proof-invalid")
        headers = sent(text, "/mcp", "POST", nonce=first.headers["DPoP-Nonce"])
        assert mcp.post("/mcp", json=LIST, headers=headers).status_code == 200


def test_a_backend_without_an_adapter_says_what_came_with_a_request(world: World, url: str) -> None:
    text, where = bound(), f"{ORIGIN}/anywhere"
    with guard_of(world, url, None) as guard:
        recall = guard.tool("memory.recall", scopes="memory:read")(lambda: current_caller())
        proved = Dpop(ALICE.proof(text, "POST", where), "POST", f"{where}?q=1")
        with guard.request(text, dpop=proved):
            assert [caller.sub for caller in (recall(), recall()) if caller] == ["alice", "alice"]
        with guard.request(text, dpop=Dpop(proved.proof, "POST", where)), pytest.raises(Denied) as refused:
            recall()
        assert refused.value.reason == "proof_invalid" and refused.value.headers["WWW-Authenticate"].startswith("DPoP ")
        decision = guard.verify(text, "memory.recall")
        assert decision.reason == "proof_required" and decision.dpop_nonce is None
        certified = token(cnf={"x5t#S256": thumbprint(PEM)})
        assert guard.verify(certified, "memory.recall", certificate=thumbprint(PEM))
        assert not guard.verify(certified, "memory.recall")


class TestForms:
    def test_a_certificate_is_known_in_every_form_that_proxies_send(self) -> None:
        der = ssl.PEM_cert_to_DER_cert(PEM)
        forms = [PEM, quote(PEM), der, f":{b64encode(der).decode()}:", in_hex(PEM)]
        assert len({thumbprint(form) for form in forms}) == 1 and len(thumbprint(PEM) or "") == 43

    @pytest.mark.parametrize("none", [None, "", b"", "x", ":***:", "-----BEGIN CERTIFICATE-----", "ab" * 31])
    def test_what_is_none_is_none(self, none: Any) -> None:
        assert thumbprint(none) is None

    def test_a_proof_is_taken_with_its_own_scheme_alone(self) -> None:
        assert proof(["DPoP x"], ["p"], "GET", "u") is not None and proof(["dpop  x"], ["p"], "GET", "u") is not None
        for headers in ([], ["Bearer x"], ["DPoPx y"], ["DPoP x", "DPoP x"]):
            assert proof(headers, ["p"], "GET", "u") is None
        assert proof(["DPoP x"], [], "GET", "u") is None

    def test_whatever_a_client_sends_can_be_sent_on(self) -> None:
        for text in ("a b", "ü", "\x00", "x" * 9000, ""):
            body = Dpop(text, "M-SEARCH" * 9, "https://h/ü\n" + "a" * 4000 + "?token=secret").body()
            assert body["proof"] in (NO_PROOF, "a b", "") and len(body["method"]) == 32 and len(body["url"]) == 2048
            assert "secret" not in str(body) and "\n" not in body["url"]
        assert "secret" not in repr(Dpop("secret", "GET", "https://h/?secret", "secret"))
