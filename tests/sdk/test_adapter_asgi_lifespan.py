"""The ASGI middleware when a server starts and ends, in outages and faults, and with the hooks that it offers; driven
as a server drives it, in process."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette

from audit.models import Record
from governance import process
from muniment import Agent, Misconfigured, Muniment, Throttled, Unavailable
from muniment.adapters.asgi import MunimentMiddleware
from muniment.adapters.http import networks, source, trace_id
from tests import world as worlds
from tests.reset import reset
from tests.served import platform
from tests.world import World, token

WRONG = "mk_abcdefghijkl_" + "s3cret" * 8


@pytest.fixture(scope="module")
def url(migrated: None) -> Iterator[str]:
    with platform() as found:
        yield found


@pytest.fixture(scope="module")
def world(url: str) -> Iterator[World]:
    reset()
    yield worlds.build()
    process.stop_recorder()


async def lifespan(app: Any, *asked: str) -> list[dict[str, Any]]:
    """What an application sends in a lifespan in which it is asked for this."""
    messages, sent = [{"type": f"lifespan.{name}"} for name in asked], []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await asyncio.wait_for(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send), 60)
    return sent


async def raising(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("only HTTP")


async def silent(scope: Any, receive: Any, send: Any) -> None:
    return


async def listening(scope: Any, receive: Any, send: Any) -> None:
    await receive()


def starlette(events: list[str]) -> Starlette:
    @asynccontextmanager
    async def of_the_application(app: Starlette) -> AsyncIterator[None]:
        events.append("started")
        yield
        events.append("ended")

    return Starlette(lifespan=of_the_application)


@pytest.mark.parametrize("app", [raising, silent, listening])
def test_an_application_without_a_lifespan_gets_one(world: World, url: str, app: Any) -> None:
    guard = Muniment(url, world.key)
    guard.tool(f"memory.{app.__name__}", scopes="memory:read")(lambda: None)
    sent = asyncio.run(lifespan(MunimentMiddleware(app, guard), "startup", "shutdown"))
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert guard.declared == {f"memory.{app.__name__}": "pending"}


def test_a_server_does_not_start_with_a_key_that_is_refused(world: World, url: str) -> None:
    events: list[str] = []
    sent = asyncio.run(lifespan(MunimentMiddleware(starlette(events), Muniment(url, WRONG)), "startup"))
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "does not accept the backend key" in sent[0]["message"] and "s3cret" not in sent[0]["message"]
    assert events == ["started", "ended"], "the application was let down gently"


def test_an_application_that_fails_to_start_says_so_itself(world: World, url: str) -> None:
    @asynccontextmanager
    async def broken(app: Starlette) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    async def tried() -> None:
        with pytest.raises(RuntimeError, match="no database"):
            await lifespan(MunimentMiddleware(Starlette(lifespan=broken), guard), "startup")

    guard = Muniment(url, world.key)
    guard.tool("memory.never", scopes="memory:read")(lambda: None)
    asyncio.run(tried())
    assert guard.declared == {}


def test_a_server_starts_without_the_platform_and_declares_when_it_is_there(
    world: World, closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    guard = Muniment(f"http://127.0.0.1:{closed_port}", world.key)
    guard.tool("memory.later", scopes="memory:read")(lambda: None)
    events: list[str] = []

    async def started() -> None:
        app = MunimentMiddleware(starlette(events), guard)
        running = asyncio.ensure_future(lifespan(app, "startup"))
        while "the platform is away" not in caplog.text:
            await asyncio.sleep(0.01)
        assert events == ["started"] and not running.done()
        with platform(closed_port):
            for _ in range(1500):
                if guard.declared:
                    break
                await asyncio.sleep(0.02)
        running.cancel()
        await guard.aclose()

    asyncio.run(started())
    assert guard.declared == {"memory.later": "pending"}


async def get(app: Any, **headers: str) -> httpx2.Response:
    """A request to an application, in process."""
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False, client=("203.0.113.9", 5))
    async with httpx2.AsyncClient(transport=transport, base_url="http://inner") as client:
        return await client.get("/", headers=headers)


def calling(body: Callable[[], Awaitable[Any]]) -> Any:
    """An application that does only that."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await body()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    return app


def recalling(guard: Muniment) -> Any:
    @guard.tool("memory.recall", scopes="memory:read")
    async def recall() -> None: ...

    return calling(recall)


def test_an_outage_is_a_503_that_says_when_to_come_back(closed_port: int) -> None:
    guard = Muniment(f"http://127.0.0.1:{closed_port}", WRONG)

    async def asked() -> httpx2.Response:
        try:
            return await get(MunimentMiddleware(recalling(guard), guard), authorization=f"Bearer {token()}")
        finally:
            await guard.aclose(0)

    response = asyncio.run(asked())
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["type"] == "urn:muniment:problem:unavailable"
    assert "www-authenticate" not in response.headers


def test_a_fault_of_the_backend_is_a_500_that_says_nothing_and_is_logged(
    world: World, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    guard = Muniment(url, WRONG)

    async def asked() -> httpx2.Response:
        try:
            return await get(MunimentMiddleware(recalling(guard), guard), authorization=f"Bearer {token()}")
        finally:
            await guard.aclose()

    with caplog.at_level(logging.ERROR, "muniment"):
        response = asyncio.run(asked())
    assert response.status_code == 500
    assert response.json() == {"type": "about:blank", "title": "Internal Server Error", "status": 500}
    assert "does not accept the backend key" in caplog.text and "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("error", "status"),
    [(Throttled(7), 429), (Unavailable("timeout", 7), 503), (ExceptionGroup("", [Throttled(7)]), 429)],
    ids=["throttled", "unavailable", "in a group"],
)
def test_what_a_guarded_function_raises_is_the_answer(error: Exception, status: int) -> None:
    async def body() -> None:
        raise error

    response = asyncio.run(get(MunimentMiddleware(calling(body), Muniment("http://127.0.0.1:9", WRONG))))
    assert (response.status_code, response.headers["retry-after"]) == (status, "7")


def test_errors_of_others_pass() -> None:
    async def body() -> None:
        raise ExceptionGroup("", [Throttled(), ValueError("mine")])

    app = MunimentMiddleware(calling(body), Muniment("http://127.0.0.1:9", WRONG))
    response = asyncio.run(get(app))
    assert (response.status_code, response.content) == (500, b"")


def test_a_500_of_the_application_reaches_its_client_whole() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": [(b"x-own", b"1")]})
        for number in range(3):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": number < 2})

    response = asyncio.run(get(MunimentMiddleware(app, Muniment("http://127.0.0.1:9", WRONG))))
    assert (response.status_code, response.headers["x-own"], response.content) == (500, "1", b"012")


def test_hooks_say_through_whom_a_request_came(world: World, url: str) -> None:
    guard = Muniment(url, world.key)

    def agent(scope: Any) -> Agent | None:
        named = dict(scope["headers"]).get(b"x-agent")
        return Agent("subagent", (named.decode(),), ("memory:read",)) if named else None

    app = MunimentMiddleware(
        recalling(guard), guard, agent=agent, session=lambda scope: "s-1", tenant=lambda scope: "acme"
    )  # fmt: skip

    async def asked() -> list[int]:
        headers = {"authorization": f"Bearer {token()}"}
        try:
            return [(await get(app, **headers, **more)).status_code for more in ({"x-agent": "planner"}, {})]
        finally:
            await guard.aclose()

    # The token is of no tenant, and so not of this one.
    assert asyncio.run(asked()) == [403, 403]
    first, second = (
        json.loads(bytes(row.statement)) for row in Record.objects.filter(type="decision").order_by("index")
    )
    assert first["reason"] == second["reason"] == "tenant_mismatch"
    assert first["agent"] == {"mode": "subagent", "chain": ["planner"], "scopes": ["memory:read"]}
    assert second["agent"]["chain"] == []


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "expected"),
    [
        ("203.0.113.7", ["198.51.100.1"], [], "203.0.113.7"),
        ("203.0.113.7", ["198.51.100.1"], ["10.0.0.0/8"], "203.0.113.7"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1"], ["10.0.0.0/8"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6", "198.51.100.1, 10.0.0.2"], ["10.0.0.0/8"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.3", "10.0.0.2"], ["10.0.0.0/8"], "10.0.0.3"),
        ("10.0.0.1", ["198.51.100.1, unknown"], ["10.0.0.0/8"], "10.0.0.1"),
        ("10.0.0.1", [""], ["10.0.0.0/8"], "10.0.0.1"),
        ("10.0.0.1", [], ["10.0.0.1"], "10.0.0.1"),
        ("::ffff:10.0.0.1", ["[2001:db8::1]:443"], ["10.0.0.1"], "2001:db8::1"),
        ("10.0.0.1", ["198.51.100.1:8080"], ["10.0.0.1"], "198.51.100.1"),
        ("2001:db8::7", ["198.51.100.1"], ["2001:db8::/32", "10.0.0.0/8"], "198.51.100.1"),
        (None, ["198.51.100.1"], ["10.0.0.0/8"], None),
        ("", ["198.51.100.1"], ["0.0.0.0/0"], ""),
    ],
)  # fmt: skip
def test_only_a_trusted_proxy_says_where_a_request_comes_from(
    peer: str | None, forwarded: list[str], trusted: list[str], expected: str | None
) -> None:
    assert source(peer, forwarded, networks(trusted)) == expected


def test_what_is_no_network_is_told_at_once() -> None:
    with pytest.raises(Misconfigured, match=r"10\.0\.0\.0/8"):
        MunimentMiddleware(silent, Muniment("http://127.0.0.1:9", WRONG), trusted_proxies=["inner-proxy"])
    with pytest.raises(Misconfigured, match="URL"):
        MunimentMiddleware(silent, Muniment("http://127.0.0.1:9", WRONG, resource="inner.example"))


@pytest.mark.parametrize(
    "value",
    ["", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "00-" + "a" * 32 + "-" + "0" * 16 + "-01",
     "ff-" + "a" * 32 + "-00f067aa0ba902b7-01", "00-" + "A" * 32 + "-00f067aa0ba902b7-01", "a" * 32],
)  # fmt: skip
def test_a_trace_id_is_read_of_a_valid_header_alone(value: str) -> None:
    valid = "00-" + "a" * 32 + "-00f067aa0ba902b7-01"
    assert trace_id([value]) is None and trace_id([valid, valid]) is None
    assert trace_id([valid]) == trace_id([f"01{valid[2:]}-more"]) == "a" * 32
