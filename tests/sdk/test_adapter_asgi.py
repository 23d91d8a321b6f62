"""The ASGI middleware in front of a Starlette application, served by uvicorn, with the real platform behind it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from governance import process
from muniment import Muniment, current_caller
from muniment.adapters.asgi import MunimentMiddleware
from muniment.calls import incoming
from tests import world as worlds
from tests.reset import reset
from tests.served import asgi, platform
from tests.world import World, token

RESOURCE = "https://inner.example/mcp"
METADATA = "https://inner.example/.well-known/oauth-protected-resource/mcp"
WELL_KNOWN = "/.well-known/oauth-protected-resource"
events: list[str] = []


def who() -> str | None:
    caller = current_caller()
    return caller.sub if caller else None


def application(guard: Muniment) -> Starlette:
    @guard.tool("memory.recall", scopes="memory:read")
    async def recall(pause: float = 0) -> str | None:
        await asyncio.sleep(pause)
        return who()

    @guard.tool("memory.recall.sync", scopes="memory:read")
    def recall_sync() -> str | None:
        return who()

    @guard.tool("memory.capture", scopes="memory:write")
    async def capture() -> None: ...

    async def recalled(request: Request) -> Response:
        user = await recall(float(request.query_params.get("pause", 0)))
        return JSONResponse({"user": user, "after": who(), "request": dict(incoming().request)})

    async def threaded(request: Request) -> Response:
        return JSONResponse({"user": await run_in_threadpool(recall_sync)})

    async def captured(request: Request) -> Response:
        await capture()
        return Response()

    async def streamed(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"begun "
            yield str(await recall()).encode()
            await capture()

        return StreamingResponse(parts())

    async def broken(request: Request) -> Response:
        await recall()
        raise RuntimeError("of the application")

    async def socket(websocket: WebSocket) -> None:
        if "early" in websocket.query_params:
            await recall()
        await websocket.accept()
        await websocket.send_text(str(await recall()))
        await capture()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        events.append("started")
        yield {"of": "the application"}
        events.append("ended")

    routes = [
        Route("/recall", recalled, methods=["GET", "POST"]), Route("/threaded", threaded), Route("/capture", captured),
        Route("/stream", streamed), Route("/broken", broken), WebSocketRoute("/socket", socket),
        Mount("/mounted", Starlette(routes=[Route("/capture", captured)])),
    ]  # fmt: skip
    return Starlette(routes=routes, lifespan=lifespan)


@pytest.fixture(scope="module")
def url(migrated: None) -> Iterator[str]:
    with platform() as found:
        yield found


@pytest.fixture(scope="module")
def world(url: str) -> Iterator[World]:
    reset()
    made = worlds.build()
    made.backend.tools.create(name="memory.recall.sync", access="read", status="active").scopes.add(
        made.grant.scopes.get()
    )
    yield made
    process.stop_recorder()


@pytest.fixture(scope="module")
def backend(world: World, url: str) -> Iterator[str]:
    """The guarded application's URL. The middleware is outside of all that Starlette does."""
    guard = Muniment(url, world.key, resource=RESOURCE, authorization_servers=["https://id.example/"])
    app = application(guard)
    guard.tool("memory.export", scopes="memory:read")(lambda: None)
    events.clear()
    with asgi(
        MunimentMiddleware(app, guard, name="Inner", trusted_proxies=["127.0.0.1"]), lifespan="on", proxy_headers=False
    ) as found:
        yield found
    assert events == ["started", "ended"]


@pytest.fixture(scope="module")
def http(backend: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=backend, trust_env=False, timeout=30) as client:
        yield client


def bearer(sub: str = "alice", **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(sub=sub, **claims)}"}


def test_a_guarded_function_runs_as_the_user_of_the_request(http: httpx2.Client) -> None:
    assert http.get("/recall", headers=bearer()).json() | {"request": 0} == {
        "user": "alice",
        "after": None,
        "request": 0,
    }
    assert http.get("/threaded", headers=bearer("bob")).json() == {"user": "bob"}


@pytest.mark.parametrize("scheme", ["bearer ", "BEARER ", "BeArEr   "])
def test_the_scheme_is_read_in_any_case(http: httpx2.Client, scheme: str) -> None:
    assert http.get("/recall", headers={"Authorization": scheme + token()}).json()["user"] == "alice"


def refused(response: httpx2.Response, status: int, reason: str) -> str:
    """Of a response that must be this refusal, the challenge."""
    assert (response.status_code, response.json()["reason"]) == (status, reason), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    return response.headers["www-authenticate"]


@pytest.mark.parametrize(
    "values",
    [["Bearer"], ["Bearer "], ["Bearer a b"], ["Bearer {}, Bearer {}"], ["Bearer {}", "Bearer {}"], ["Bearer {};x"],
     ["Bearer {}", "Basic YTpi"], ["Bearer {}", ""], ["Bearer ü{}"], ["Bearer \xff"], ["Bearer <{}>"],
     ["Bearer\t{}x y"], ["Bearer {}" + "A" * 20_000]],
    ids=lambda values: "|".join(values)[:30],
)  # fmt: skip
def test_what_is_no_one_token_is_malformed(backend: str, values: list[str]) -> None:
    status, headers, body = raw(backend, [value.replace("{}", token()).encode("latin-1") for value in values])
    assert (status, json.loads(body)["reason"]) == (401, "token_malformed")
    assert headers["www-authenticate"].startswith("Bearer error=") and METADATA in headers["www-authenticate"]


def raw(url: str, values: list[bytes], **headers: bytes) -> tuple[int, Any, bytes]:
    """GET /recall with Authorization and other headers that no decent client sends."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=10)
    try:
        connection.putrequest("GET", "/recall")
        for value in values:
            connection.putheader("aUTHORIZATION", value)
        for name, content in headers.items():
            connection.putheader(name, content)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_a_token_elsewhere_is_not_taken(http: httpx2.Client) -> None:
    secret = token()
    for response in (
        http.get("/recall"),
        http.get("/recall", params={"access_token": secret, "token": secret}),
        http.post("/recall", data={"access_token": secret}),
        http.get("/recall", headers={"Authorization": "Basic YTpi"}),
        http.get("/recall", headers={"Authorization": f"Digest {secret}"}),
        http.get("/recall", headers={"X-Authorization": f"Bearer {secret}", "Proxy-Authorization": f"Bearer {secret}"}),
        http.get("/recall", headers={"Cookie": f"token={secret}; Authorization=Bearer {secret}"}),
    ):
        challenge = refused(response, 401, "token_missing")
        assert f'resource_metadata="{METADATA}"' in challenge and "error=" not in challenge
        assert secret not in response.text


@pytest.mark.parametrize("path", ["/capture", "/mounted/capture"])
def test_a_missing_scope_is_challenged_also_from_a_mounted_application(http: httpx2.Client, path: str) -> None:
    # What is mounted has an error middleware of its own, which sends a 500 before we hear of it.
    challenge = refused(http.get(path, headers=bearer(scope="memory:read")), 403, "insufficient_scope")
    assert 'error="insufficient_scope"' in challenge and 'scope="memory:write"' in challenge
    assert challenge.endswith(f'resource_metadata="{METADATA}"')


def test_an_error_of_the_application_stays_its_own(http: httpx2.Client) -> None:
    assert http.get("/nowhere", headers=bearer()).status_code == 404
    # uvicorn closes the connection after an exception that reaches it.
    response = http.get("/broken", headers=bearer() | {"Connection": "close"})
    assert (response.status_code, response.text) == (500, "Internal Server Error")


def test_a_refusal_in_the_middle_of_a_stream_breaks_it_off(http: httpx2.Client) -> None:
    read = b""
    with pytest.raises(httpx2.TransportError), http.stream("GET", "/stream", headers=bearer()) as response:
        assert response.status_code == 200
        for part in response.iter_bytes():
            read += part
    assert read == b"begun alice"


def test_users_at_the_same_time_and_one_after_another_never_mix(http: httpx2.Client) -> None:
    async def all_of_them() -> list[Any]:
        async with httpx2.AsyncClient(base_url=str(http.base_url), trust_env=False, timeout=30) as client:

            async def one(number: int) -> Any:
                headers = bearer(f"user{number}") if number % 5 else {}
                path = "/recall?pause=0.01" if number % 2 else "/threaded"
                response = await client.get(path, headers=headers)
                return response.json().get("user", response.status_code)

            return await asyncio.gather(*(one(number) for number in range(40)))

    assert asyncio.run(all_of_them()) == [f"user{number}" if number % 5 else 401 for number in range(40)]
    found = [http.get("/recall", headers=headers).json().get("user") for headers in (bearer("ann"), {}, bearer("ben"))]
    assert found == ["ann", None, "ben"]


def test_what_is_recorded_of_a_request_comes_from_its_headers(http: httpx2.Client) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = bearer() | {
        "X-Request-ID": "req-1", "traceparent": f"00-{trace}-00f067aa0ba902b7-01", "User-Agent": "Example/1",
        "X-Forwarded-For": "10.9.9.9, 203.0.113.7, 127.0.0.1",
    }  # fmt: skip
    assert http.get("/recall", headers=headers).json()["request"] == {
        "id": "req-1", "trace_id": trace, "ip": "203.0.113.7", "user_agent": "Example/1",
    }  # fmt: skip


def test_hostile_headers_do_not_spoil_a_call(backend: str) -> None:
    hostile = {
        "X-Request-ID": b"\xff\t" * 400, "traceparent": b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        "X-Forwarded-For": b'unknown, "_hidden"', "User-Agent": b"\xc3\x28" * 900,
    }  # fmt: skip
    status, _, body = raw(backend, [bearer()["Authorization"].encode()], **hostile)
    answer = json.loads(body)
    assert (status, answer["user"]) == (200, "alice")
    assert answer["request"]["ip"] == "127.0.0.1" and "trace_id" not in answer["request"]
    assert len(answer["request"]["id"]) <= 256 and len(answer["request"]["user_agent"]) <= 1024


@pytest.mark.parametrize("path", [f"{WELL_KNOWN}/mcp", WELL_KNOWN, f"{WELL_KNOWN}?x=y"])
def test_the_metadata_is_served_at_both_paths(http: httpx2.Client, path: str) -> None:
    response = http.get(path, headers={"Origin": "https://client.example"})
    assert response.json() == {
        "resource": RESOURCE, "authorization_servers": ["https://id.example/"],
        "scopes_supported": ["memory:read", "memory:write"], "bearer_methods_supported": ["header"],
        "resource_name": "Inner",
    }  # fmt: skip
    assert response.headers["access-control-allow-origin"] == "*" and "max-age" in response.headers["cache-control"]
    head = http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == response.headers["content-length"]


def test_the_metadata_is_for_browsers_too_and_only_to_be_read(http: httpx2.Client) -> None:
    asked = {"Origin": "https://client.example", "Access-Control-Request-Headers": "mcp-protocol-version"}
    preflight = http.options(WELL_KNOWN, headers=asked)
    assert (preflight.status_code, preflight.headers["access-control-allow-headers"]) == (204, "*")
    assert http.post(WELL_KNOWN).status_code == 405
    assert http.get(f"{WELL_KNOWN}/other").status_code == 404


def test_tools_are_declared_when_the_server_starts(world: World, backend: str) -> None:
    assert world.backend.tools.get(name="memory.export").status == "pending"


def test_a_socket_is_served_with_the_token_of_its_handshake(backend: str) -> None:
    address = backend.replace("http", "ws") + "/socket"
    with connect(address, additional_headers=bearer(), proxy=None) as socket:
        assert socket.recv(timeout=10) == "alice"
        with pytest.raises(ConnectionClosedError) as closed:
            socket.recv(timeout=10)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "not_granted")
    with pytest.raises(InvalidStatus) as status:
        connect(f"{address}?early=1", proxy=None)
    assert status.value.response.status_code == 401
    assert METADATA in status.value.response.headers["WWW-Authenticate"]
    with pytest.raises(InvalidStatus) as status:
        connect(f"{address}?early=1&access_token={token()}", subprotocols=["bearer"], proxy=None)  # type: ignore[list-item]
    assert status.value.response.status_code == 401
