"""Django and Django REST framework, guarded: a project of its own in a process of its own, by WSGI and by ASGI, with
the real platform behind it."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from audit.models import Record
from governance import process
from tests import world as worlds
from tests.clients.proving import holder
from tests.reset import reset
from tests.sdk.outcomes import last_outcome
from tests.served import platform
from tests.world import World, token

ROOT = Path(__file__).resolve().parents[2]
METADATA = "https://inner.example/.well-known/oauth-protected-resource/api"
ACTIVE = ("memory.recall.async", "memory.count", "memory.view", "memory.list")


@pytest.fixture(scope="module")
def world(migrated: None) -> Iterator[World]:
    reset()
    made = worlds.build()
    for name in ACTIVE:
        made.backend.tools.create(name=name, access="read", status="active").scopes.add(made.grant.scopes.get())
    forget = made.backend.tools.create(name="memory.forget", access="write", status="active")
    forget.scopes.add(*made.backend.tools.get(name="memory.capture").scopes.all())
    yield made
    process.stop_recorder()


@pytest.fixture(scope="module")
def urls(world: World) -> Iterator[dict[str, str]]:
    """The project's URLs."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'sdk'}"}
    with (
        platform() as url,
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests/sdk/django_backend.py"), url, world.key],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        ) as child,
    ):  # fmt: skip
        assert child.stdout and child.stdin and child.stderr
        try:
            line = child.stdout.readline().split()
            assert len(line) == 2, child.stderr.read()
            yield dict(zip(("wsgi", "asgi"), line, strict=True))
            child.stdin.close()
            assert child.wait(60) == 0
            assert token().split(".")[1][:40] not in child.stderr.read()
        finally:
            child.kill()


@pytest.fixture(scope="module", params=["wsgi", "asgi"])
def http(urls: dict[str, str], request: pytest.FixtureRequest) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=urls[request.param], trust_env=False, timeout=30) as client:
        yield client


def bearer(sub: str = "alice", **claims: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(sub=sub, **claims)}"}


def refused(response: httpx2.Response, status: int, reason: str) -> str:
    """Of a response that must be this refusal, the challenge."""
    assert (response.status_code, response.json()["reason"]) == (status, reason), response.text
    assert response.headers["content-type"] == "application/problem+json"
    challenge: str = response.headers["www-authenticate"]
    assert challenge.endswith(f'resource_metadata="{METADATA}"')
    return challenge


def test_a_decorated_view_runs_as_the_user_of_the_request(http: httpx2.Client) -> None:
    assert http.get("/recall", headers=bearer("bob")).json()["user"] == "bob"
    assert http.get("/recall/async", headers=bearer("ann")).json() == {"user": "ann"}


def test_a_denial_in_a_view_is_its_answer(http: httpx2.Client) -> None:
    assert 'scope="memory:write"' in refused(
        http.get("/capture", headers=bearer(scope="memory:read")), 403, "insufficient_scope"
    )
    refused(http.get("/recall/async"), 401, "token_missing")
    refused(http.get("/recall", params={"access_token": token()}), 401, "token_missing")
    refused(http.get("/recall", headers={"Authorization": f"Basic {token()}"}), 401, "token_missing")


@pytest.mark.parametrize(
    "values",
    [["Bearer {}", "Bearer {}"], ["Bearer {}", "Basic YTpi"], ["Bearer {}", ""], ["Bearer"], ["Bearer ü{}"],
     ["Bearer {},"], ["Bearer a b"], ["Bearer {}" + "A" * 20_000]],
    ids=lambda values: "|".join(values)[:30],
)  # fmt: skip
def test_what_is_no_one_token_is_malformed(http: httpx2.Client, values: list[str]) -> None:
    connection = HTTPConnection(urlsplit(str(http.base_url)).netloc, timeout=10)
    connection.putrequest("GET", "/recall")
    for value in values:
        connection.putheader("Authorization", value.replace("{}", token()).encode("latin-1"))
    connection.endheaders()
    response = connection.getresponse()
    body = json.loads(response.read())
    connection.close()
    assert (response.status, body["reason"]) == (401, "token_malformed")


def test_a_bound_token_is_served_with_its_proof_once(http: httpx2.Client) -> None:
    alice = holder()
    text = token(cnf={"jkt": alice.jkt})
    url = "https://inner.example/recall"
    headers = {"Authorization": f"DPoP {text}", "DPoP": alice.proof(text, "GET", url)}
    assert http.get("/recall?pause=0", headers=headers).json()["user"] == "alice"
    assert refused(http.get("/recall", headers=headers), 401, "proof_invalid").startswith("DPoP ")
    refused(http.get("/recall", headers=bearer(cnf={"jkt": alice.jkt})), 401, "proof_required")
    twice = [("Authorization", f"DPoP {text}"), *[("DPoP", alice.proof(text, "GET", url)) for _ in range(2)]]
    refused(http.get("/recall", headers=twice), 401, "proof_invalid")


def test_the_scheme_is_read_in_any_case(http: httpx2.Client) -> None:
    assert http.get("/recall", headers={"Authorization": f"bEARER  {token()}"}).json()["user"] == "alice"


def test_an_error_of_the_application_stays_its_own(http: httpx2.Client) -> None:
    response = http.get("/broken", headers=bearer())
    assert response.status_code == 500 and response.headers["content-type"].startswith("text/html")
    assert http.get("/nowhere", headers=bearer()).status_code == 404


def test_what_is_streamed_runs_as_nobody(http: httpx2.Client) -> None:
    assert http.get("/stream", headers=bearer()).text == "None None"


def test_users_at_the_same_time_and_one_after_another_never_mix(http: httpx2.Client) -> None:
    async def all_of_them() -> list[Any]:
        async with httpx2.AsyncClient(base_url=str(http.base_url), trust_env=False, timeout=30) as client:

            async def one(number: int) -> Any:
                path = ["/recall", "/recall/async", "/memories/m", "/actions/"][number % 4]
                response = await client.get(path, headers=bearer(f"user{number}") if number % 5 else {})
                return response.json().get("user", response.status_code)

            return await asyncio.gather(*(one(number) for number in range(30)))

    assert asyncio.run(all_of_them()) == [f"user{number}" if number % 5 else 401 for number in range(30)]
    found = [http.get("/recall", headers=headers).json().get("user") for headers in (bearer("ann"), {}, bearer("ben"))]
    assert found == ["ann", None, "ben"]


def test_what_is_recorded_of_a_request_comes_from_its_headers(http: httpx2.Client) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = bearer() | {
        "X-Request-ID": "req-1", "traceparent": f"00-{trace}-00f067aa0ba902b7-01", "User-Agent": "Example/1",
        "X-Forwarded-For": "10.9.9.9, 203.0.113.7", "X_Forwarded_For": "198.51.100.9", "X-Agent": "planner",
    }  # fmt: skip
    assert http.get("/recall", headers=headers).json()["request"] == {
        "id": "req-1", "trace_id": trace, "ip": "203.0.113.7", "user_agent": "Example/1",
    }  # fmt: skip
    statement = json.loads(bytes(Record.objects.filter(type="decision").latest("index").statement))
    assert statement["agent"]["chain"] == ["planner"]


def test_the_metadata_is_served_at_both_paths(http: httpx2.Client) -> None:
    for path in ("/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/api"):
        response = http.get(path)
        assert response.json() == {
            "resource": "https://inner.example/api", "authorization_servers": ["https://id.example/"],
            "scopes_supported": ["memory:read", "memory:write"], "bearer_methods_supported": ["header"],
            "resource_name": "Inner",
        }  # fmt: skip
        assert response.headers["access-control-allow-origin"] == "*"
        assert http.head(path).content == b"" and http.options(path).status_code == 204


def test_tools_are_declared_after_the_first_request(http: httpx2.Client, world: World) -> None:
    http.get("/nowhere")
    deadline = time.monotonic() + 30
    while world.backend.tools.get(name="memory.capture").description != "Keep a memory.":
        assert time.monotonic() < deadline, "never declared"
        time.sleep(0.02)


def test_the_database_is_asked_as_the_caller(http: httpx2.Client) -> None:
    assert http.get("/count", headers=bearer()).json() == {"same": True}


def test_a_view_of_drf_knows_its_verified_user(http: httpx2.Client) -> None:
    answer = http.get("/memories/m_1", headers=bearer("bob")).json()
    assert answer.pop("uid").startswith("usr_")
    assert answer == {"user": "bob", "in": True, "staff": False, "same": True}
    answer = http.get("/function", headers=bearer("bob")).json()
    assert answer["user"] == "bob" and answer["uid"].startswith("usr_")
    assert last_outcome("memory.view") == "ok"


def test_one_request_to_a_view_of_drf_is_one_call(http: httpx2.Client) -> None:
    before = Record.objects.filter(type="decision").count()
    # The browsable API asks the permissions of each method, to draw its forms.
    page = http.get("/memories/m_1", headers=bearer() | {"Accept": "text/html"})
    assert page.status_code == 200 and "alice" in page.text and page.headers["content-type"].startswith("text/html")
    assert Record.objects.filter(type="decision").count() == before + 1


def test_a_denial_in_drf_keeps_its_status_and_challenge(http: httpx2.Client) -> None:
    assert 'scope="memory:write"' in refused(
        http.get("/actions/forget/", headers=bearer(scope="memory:read")), 403, "insufficient_scope"
    )
    refused(http.get("/memories/m_1"), 401, "token_missing")
    refused(http.get("/actions/", headers={"Authorization": "Bearer a.b.c"}), 401, "token_malformed")


def test_a_handler_of_drf_that_fails_is_reported_as_one(http: httpx2.Client) -> None:
    assert http.put("/memories/m_1", headers=bearer()).status_code == 500
    assert last_outcome("memory.view") == "error"


def test_a_method_that_a_view_has_not_is_refused_before_anybody_is_asked(http: httpx2.Client) -> None:
    before = Record.objects.filter(type="decision").count()
    assert http.delete("/memories/m_1", headers=bearer()).status_code == 405
    assert Record.objects.filter(type="decision").count() == before


def test_a_view_of_drf_without_a_tool_has_nobody(http: httpx2.Client) -> None:
    response = http.get("/actions/other/", headers=bearer())
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == f'Bearer resource_metadata="{METADATA}"'


def test_the_decorator_guards_a_method_of_a_view_set(http: httpx2.Client) -> None:
    assert http.get("/actions/", headers=bearer("bob")).json() == {"user": "bob", "anonymous": True}
