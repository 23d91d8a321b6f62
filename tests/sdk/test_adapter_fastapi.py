"""FastAPI with guarded endpoints: by a dependency, and by the decorator; served by uvicorn, the platform behind it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from governance import process
from muniment import Caller, Misconfigured, Muniment, current_caller, touched
from muniment.adapters.asgi import MunimentMiddleware
from muniment.adapters.fastapi import guarded
from tests import world as worlds
from tests.live import until
from tests.reset import reset
from tests.sdk.outcomes import last_outcome
from tests.served import asgi, platform
from tests.world import World, token

RESOURCE = "https://inner.example/api"
seen: list[tuple[str, str | None]] = []


class Memory(BaseModel):
    """A body."""

    text: str


def who() -> str | None:
    caller = current_caller()
    return caller.sub if caller else None


def see(where: str) -> None:
    seen.append((where, who()))


async def passing(request: Request, call_next: Any) -> Any:
    return await call_next(request)


def application(guard: Muniment) -> FastAPI:
    app = FastAPI()
    # Each runs what is inside of it in a task of its own.
    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    app.add_middleware(MunimentMiddleware, guard=guard)
    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    reading = guarded(guard, "memory.recall", scopes="memory:read", resource=lambda memory_id: ("memory", memory_id))
    Reader = Annotated[Caller, Depends(reading)]

    @app.get("/memories/{memory_id}")
    async def memory(memory_id: str, caller: Reader, pause: float = 0) -> dict[str, Any]:
        await asyncio.sleep(pause)
        touched("memory", memory_id)
        return {"caller": caller.sub, "current": who(), "scopes": caller.scopes}

    @app.get("/threaded/{memory_id}")
    def threaded(memory_id: str, caller: Reader) -> dict[str, Any]:
        touched("memory", memory_id)
        return {"caller": caller.sub, "current": who()}

    @app.post("/memories", dependencies=[Depends(guarded(guard, "memory.capture", scopes="memory:write"))])
    async def capture(memory: Memory) -> None: ...

    @app.get("/stream/{memory_id}")
    async def stream(memory_id: str, caller: Reader, tasks: BackgroundTasks) -> StreamingResponse:
        tasks.add_task(see, "task of the dependency")

        def parts() -> Iterator[str]:
            yield f"{who()} "
            yield f"{who()}"

        return StreamingResponse(parts(), background=tasks)

    @app.get("/endless/{memory_id}")
    async def endless(memory_id: str, caller: Reader) -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            try:
                while True:
                    yield f"{who()} "
                    await asyncio.sleep(0.005)
            finally:
                see("end of a stream")

        return StreamingResponse(parts())

    @app.get("/task/{memory_id}")
    async def task(memory_id: str, caller: Reader) -> dict[str, Any]:
        async def later() -> None:
            await asyncio.sleep(0.05)
            see("task of the body")

        app.state.task = asyncio.create_task(later())
        return {}

    @app.get("/fails/{memory_id}")
    async def fails(memory_id: str, caller: Reader) -> None:
        raise HTTPException(404, "no such memory")

    @app.get("/number/{memory_id}")
    async def number(memory_id: int, caller: Reader) -> None: ...

    @app.get("/decorated")
    @guard.tool("memory.list", scopes="memory:read")
    async def decorated(tasks: BackgroundTasks, limit: int = 3) -> dict[str, Any]:
        """List memories."""
        tasks.add_task(see, "task of the decorated")
        return {"current": who(), "limit": limit}

    @app.get("/decorated/threaded")
    @guard.tool("memory.list.sync", scopes="memory:read")
    def decorated_sync(limit: int = 3) -> dict[str, Any]:
        return {"current": who(), "thread": threading.current_thread() is not threading.main_thread()}

    @app.get("/decorated/stream")
    @guard.tool("memory.list.stream", scopes="memory:read")
    async def decorated_stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            yield f"{who()}"

        return StreamingResponse(parts())

    @app.websocket("/socket/{memory_id}")
    async def socket(websocket: WebSocket, memory_id: str, caller: Reader) -> None:
        await websocket.accept()

    return app


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    reset()
    made = worlds.build()
    for name in ("memory.list", "memory.list.sync", "memory.list.stream"):
        tool = made.backend.tools.create(name=name, access="read", status="active")
        tool.scopes.add(made.grant.scopes.get())
    yield made
    process.stop_recorder()


@pytest.fixture(scope="module")
def guard(migrated: None, request: pytest.FixtureRequest) -> Iterator[Muniment]:
    with platform() as url:
        world = request.getfixturevalue("world")
        yield Muniment(
            url, world.key, timeout=30, resource=RESOURCE, authorization_servers=["https://id.example/"]
        )  # fmt: skip


@pytest.fixture(scope="module")
def http(guard: Muniment) -> Iterator[httpx2.Client]:
    with (
        asgi(application(guard), lifespan="on") as url,
        httpx2.Client(base_url=url, trust_env=False, timeout=30) as client,
    ):
        yield client


def bearer(sub: str = "alice", **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(sub=sub, **claims)}"}


@pytest.mark.parametrize("path", ["/memories/m_1", "/threaded/m_1"])
def test_an_endpoint_gets_the_verified_caller(http: httpx2.Client, path: str) -> None:
    answer = http.get(path, headers=bearer("bob")).json()
    assert (answer["caller"], answer["current"]) == ("bob", "bob")
    assert last_outcome("memory.recall") == "ok"


def test_a_denial_is_answered_before_the_endpoint_runs(http: httpx2.Client) -> None:
    response = http.post("/memories", json={"text": "sea"}, headers=bearer(scope="memory:read"))
    assert (response.status_code, response.json()["reason"]) == (403, "insufficient_scope")
    challenge = response.headers["www-authenticate"]
    assert 'scope="memory:write"' in challenge
    assert challenge.endswith('resource_metadata="https://inner.example/.well-known/oauth-protected-resource/api"')
    assert http.get("/memories/m_1").status_code == 401
    metadata = http.get("/.well-known/oauth-protected-resource/api").json()
    assert metadata["scopes_supported"] == ["memory:read", "memory:write"]


@pytest.mark.parametrize(("path", "status"), [("/fails/m_1", 404), ("/number/m_1", 422)])
def test_an_endpoint_that_fails_is_reported_as_one(http: httpx2.Client, path: str, status: int) -> None:
    assert http.get(path, headers=bearer()).status_code == status
    assert last_outcome("memory.recall") == "error"


def test_a_decorated_endpoint_is_guarded_in_its_thread_and_keeps_its_parameters(http: httpx2.Client) -> None:
    assert http.get("/decorated?limit=9", headers=bearer("bob")).json() == {"current": "bob", "limit": 9}
    assert http.get("/decorated?limit=x", headers=bearer()).status_code == 422
    assert http.get("/decorated/threaded", headers=bearer("bob")).json() == {"current": "bob", "thread": True}
    assert http.get("/decorated").status_code == http.get("/decorated/threaded").status_code == 401


def test_with_the_dependency_what_is_streamed_and_done_afterwards_runs_as_the_caller(http: httpx2.Client) -> None:
    seen.clear()
    assert http.get("/stream/m_1", headers=bearer("bob")).text == "bob bob"
    assert last_outcome("memory.recall") == "ok"
    assert users_seen("task of the dependency") == ["bob"]


def test_with_the_decorator_what_is_streamed_and_done_afterwards_runs_as_nobody(http: httpx2.Client) -> None:
    seen.clear()
    assert http.get("/decorated", headers=bearer("bob")).json()["current"] == "bob"
    assert http.get("/decorated/stream", headers=bearer("bob")).text == "None"
    assert users_seen("task of the decorated") == [None]


def test_a_client_that_goes_away_ends_the_call(http: httpx2.Client) -> None:
    seen.clear()
    with http.stream("GET", "/endless/m_1", headers=bearer("bob")) as response:
        assert next(response.iter_text()).startswith("bob ")
    assert users_seen("end of a stream") == ["bob"]
    assert last_outcome("memory.recall") == "ok", "Starlette ends such a response without an error"
    assert http.get("/decorated", headers=bearer("ann")).json()["current"] == "ann"


def test_a_task_that_the_body_starts_keeps_the_caller(http: httpx2.Client) -> None:
    seen.clear()
    assert http.get("/task/m_1", headers=bearer("bob")).status_code == 200
    assert http.get("/memories/m_1", headers=bearer("ann")).json()["current"] == "ann"
    assert users_seen("task of the body") == ["bob"]


def users_seen(where: str) -> list[str | None]:
    """Who was seen there, once somebody was; a task of an earlier test may still be seen elsewhere."""
    until(lambda: any(place == where for place, _ in list(seen)), 30)
    return [user for place, user in list(seen) if place == where]


def test_users_at_the_same_time_never_mix(http: httpx2.Client) -> None:
    async def all_of_them() -> list[Any]:
        async with httpx2.AsyncClient(base_url=str(http.base_url), trust_env=False, timeout=30) as client:

            async def one(number: int) -> Any:
                paths = ["/memories/m?pause=0.01", "/threaded/m", "/decorated", "/decorated/threaded"]
                response = await client.get(paths[number % 4], headers=bearer(f"user{number}") if number % 5 else {})
                return response.json().get("current", response.status_code)

            return await asyncio.gather(*(one(number) for number in range(40)))

    assert asyncio.run(all_of_them()) == [f"user{number}" if number % 5 else 401 for number in range(40)]


def test_openapi_says_what_each_endpoint_needs(http: httpx2.Client) -> None:
    schema = http.get("/openapi.json").json()
    assert schema["components"]["securitySchemes"] == {
        "User": {
            "type": "openIdConnect",
            "openIdConnectUrl": "https://id.example/.well-known/openid-configuration",
        }
    }
    assert schema["paths"]["/memories"]["post"]["security"] == [{"User": ["memory:write"]}]
    operation = schema["paths"]["/memories/{memory_id}"]["get"]
    assert operation["security"] == [{"User": ["memory:read"]}]
    assert [parameter["name"] for parameter in operation["parameters"]] == ["memory_id", "pause"]
    assert http.get("/docs").status_code == 200


def test_a_socket_is_not_one_call(http: httpx2.Client, caplog: pytest.LogCaptureFixture) -> None:
    address = str(http.base_url).replace("http", "ws") + "/socket/m_1"
    with pytest.raises(InvalidStatus) as refused:
        connect(address, additional_headers=bearer(), proxy=None)
    assert refused.value.response.status_code == 500
    assert "not one call" in caplog.text


def test_without_the_middleware_nothing_runs(guard: Muniment) -> None:
    app = FastAPI()

    app.get("/", dependencies=[Depends(guarded(guard, "memory.bare", scopes="memory:read"))])(lambda: None)

    async def asked() -> None:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://inner") as client:
            await client.get("/", headers=bearer())

    with pytest.raises(Misconfigured, match="MunimentMiddleware"):
        asyncio.run(asked())


def test_with_several_servers_the_scheme_is_a_bearer_token() -> None:
    servers = ["https://a.example", "https://b.example"]
    guard = Muniment("http://127.0.0.1:9", "mk_abcdefghijkl_secret", authorization_servers=servers)
    app = FastAPI()
    app.get("/", dependencies=[Depends(guarded(guard, "memory.recall", scopes="memory:read"))])(lambda: None)
    schema = app.openapi()
    assert schema["components"]["securitySchemes"] == {"User": {"type": "http", "scheme": "bearer"}}
