"""What is an outage and what is not, and what a backend does in one. The platform of these tests is a real HTTP server
that answers as it is told."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from muniment import Denied, Misconfigured, Muniment, Refused, Throttled, Unavailable, current_caller
from muniment.background import CLOSE_SECONDS, Background, Job
from muniment.breaker import Breaker
from tests.served import served

KEY = "mk_abcdefghijkl_secret"
ALLOW = {
    "decision": "allow", "reason": "granted", "explanation": "Every check passed.", "flagged": False,
    "record": "019aa1b0-7f3c-7b5e-9d41-5c1f0a7e2b90", "policy_version": 1, "status": 200,
    "subject": {"uid": "usr_1", "issuer": "i", "sub": "alice", "email": None, "tenant": None, "roles": []},
    "client": {"slug": "claude", "name": "Claude"}, "tool": {"name": "memory.recall", "access": "read"},
    "scopes": {"required": [], "token": [], "granted": [], "effective": [], "missing": []}, "receipt": {},
}  # fmt: skip
DENY = ALLOW | {
    "decision": "deny", "reason": "issuer_unavailable", "explanation": "Its keys cannot be had.", "status": 503,
    "subject": None, "client": None, "tool": None, "remedy": "retry_later", "retry_after": 1,
}  # fmt: skip
Answer = tuple[str, dict[str, str], bytes]


def answered(status: str, body: Any = None, kind: str = "application/json", **headers: str) -> Answer:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return status, {"Content-Type": kind, **headers}, content


def problem(status: str, kind: str, **headers: str) -> Answer:
    number = int(status.split()[0])
    body = {"type": f"urn:muniment:problem:{kind}", "title": "T", "status": number}
    return answered(status, body, "application/problem+json", **headers)


@dataclass
class Fake:
    """Answers calls of verify with the next of `answers`, the last one again and again; keeps what it was asked."""

    answers: list[Answer | Callable[[], Answer]] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode()
        with self.lock:
            if environ["PATH_INFO"] != "/v1/verify":
                self.others.append(environ["PATH_INFO"])
                start("200 OK", [("Content-Type", "application/json")])
                return [b'{"tools": []}']
            self.asked.append({"key": environ.get("HTTP_IDEMPOTENCY_KEY", ""), "body": body})
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        status, headers, content = answer() if callable(answer) else answer
        start(status, [*headers.items(), ("Content-Length", str(len(content)))])
        return [content]


@pytest.fixture(scope="module")
def fake() -> Iterator[tuple[Fake, str]]:
    made = Fake()
    with served(made) as url:
        yield made, url


Setup = tuple[Fake, Muniment]


@pytest.fixture
def setup(fake: tuple[Fake, str], tmp_path: Path) -> Iterator[Setup]:
    made, url = fake
    made.answers, made.asked, made.others = [answered("200 OK", ALLOW)], [], []
    with Muniment(url, KEY, timeout=30) as guard:
        guard.platform.breaker = Breaker(limit=1000)
        yield made, guard


LATE = 2.0  # seconds


def late() -> Answer:
    time.sleep(LATE)
    return answered("200 OK", ALLOW)


def impatient(guard: Muniment, seconds: float = 0.3) -> None:
    """Answers that are not late come in time for the others, also on a machine that is busy."""
    guard.platform._settings["timeout"] = httpx2.Timeout(seconds, connect=30)


def test_one_retry_with_the_same_idempotency_key(setup: Setup) -> None:
    fake, guard = setup
    fake.answers = [problem("503 Service Unavailable", "unavailable"), answered("200 OK", ALLOW)]
    assert guard.verify("t", tool="memory.recall")
    first, second = fake.asked
    assert first == second and len(first["key"]) >= 16


def test_a_late_answer_is_asked_for_again_with_the_same_key(setup: Setup) -> None:
    fake, guard = setup
    fake.answers = [late, answered("200 OK", ALLOW)]
    impatient(guard, LATE * 3 / 4)
    assert guard.verify("t", tool="memory.recall")
    assert len(fake.asked) == 2 and fake.asked[0] == fake.asked[1]


def test_two_calls_have_two_keys(setup: Setup) -> None:
    fake, guard = setup
    guard.verify("t", tool="memory.recall")
    guard.verify("t", tool="memory.recall")
    assert fake.asked[0]["key"] != fake.asked[1]["key"]


OUTAGES = {
    "500": problem("500 Internal Server Error", "internal"),
    "502 of a proxy": answered("502 Bad Gateway", b"<html>", "text/html"),
    "503": problem("503 Service Unavailable", "unavailable"),
    "504": answered("504 Gateway Timeout", b""),
    "late": late,
    "in flight": problem("409 Conflict", "in-flight"),
}
REFUSALS: dict[str, tuple[Answer, type[Exception]]] = {
    "wrong key": (problem("401 Unauthorized", "not-authenticated"), Misconfigured),
    "throttled": (problem("429 Too Many Requests", "too-many-failures", **{"Retry-After": "7"}), Throttled),
    "invalid": (problem("400 Bad Request", "invalid-member"), Refused),
    "too large": (problem("413 Content Too Large", "body-too-large"), Refused),
    "reused key": (problem("422 Unprocessable Content", "idempotency-key-reused"), Refused),
    "redirect": (answered("302 Found", b"", Location="https://elsewhere.example/"), Refused),
    "404 of another server": (answered("404 Not Found", b"<html>", "text/html"), Refused),
    "a page": (answered("200 OK", b"<html>welcome</html>", "text/html"), Refused),
    "no UTF-8": (answered("200 OK", b'{"decision": "\xff"}'), Refused),
    "a list": (answered("200 OK", []), Refused),
    "an allow of nobody": (answered("200 OK", ALLOW | {"subject": None}), Refused),
    "an allow without a uid": (answered("200 OK", ALLOW | {"subject": ALLOW["subject"] | {"uid": ""}}), Refused),  # type: ignore[operator]
    "neither": (answered("200 OK", ALLOW | {"decision": "maybe"}), Refused),
    "a short one": (answered("200 OK", {"decision": "allow"}), Refused),
}


@pytest.mark.parametrize("name", OUTAGES)
def test_no_answer_and_a_5xx_are_outages(setup: Setup, name: str) -> None:
    fake, guard = setup
    fake.answers = [OUTAGES[name]]
    if name == "late":
        impatient(guard)
    with pytest.raises(Unavailable) as refused:
        guard.verify("t", tool="memory.recall")
    assert refused.value.status == 503 and "Retry-After" in refused.value.headers
    assert len(fake.asked) == 2


def test_nobody_listening_is_an_outage(closed_port: int) -> None:
    with Muniment(f"http://127.0.0.1:{closed_port}", KEY) as guard, pytest.raises(Unavailable) as refused:
        guard.verify("t", tool="memory.recall")
    assert refused.value.cause == "unreachable"


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("fail", ["closed", "open"])
def test_any_other_answer_is_no_outage_and_lets_nothing_through(
    setup: Setup, tmp_path: Path, name: str, fail: Any
) -> None:
    fake, _ = setup
    fake.answers, expected = [REFUSALS[name][0]], REFUSALS[name][1]
    ran = []
    with Muniment(fake_url(setup), KEY, timeout=30, spool=tmp_path / "spool") as guard:
        tool = guard.tool("memory.recall", scopes="memory:read", fail=fail)(lambda: ran.append(1))
        with guard.request("t"), pytest.raises(expected):
            tool()
    assert not ran and len(fake.asked) == 1


def fake_url(setup: Setup) -> str:
    return setup[1].platform.url


def test_a_denial_with_status_503_is_a_denial_and_an_open_tool_is_refused(setup: Setup, tmp_path: Path) -> None:
    fake, _ = setup
    fake.answers = [answered("200 OK", DENY)]
    ran = []
    with Muniment(fake_url(setup), KEY, spool=tmp_path / "spool") as guard:
        tool = guard.tool("memory.recall", scopes="memory:read", fail="open")(lambda: ran.append(1))
        with guard.request("t"), pytest.raises(Denied) as refused:
            tool()
    assert refused.value.status == 503 and refused.value.headers["Retry-After"] == "1"
    assert not ran and len(fake.asked) == 1


def test_in_an_outage_a_closed_tool_is_refused(setup: Setup) -> None:
    fake, guard = setup
    fake.answers = [OUTAGES["503"]]
    ran = []
    tool = guard.tool("memory.recall", scopes="memory:read")(lambda: ran.append(1))
    with guard.request("t"), pytest.raises(Unavailable):
        tool()
    assert not ran


def test_in_an_outage_an_open_tool_runs_as_nobody(setup: Setup, tmp_path: Path) -> None:
    fake, _ = setup
    fake.answers = [OUTAGES["503"]]
    with Muniment(fake_url(setup), KEY, spool=tmp_path / "spool") as guard:
        tool = guard.tool("status.show", scopes="status:read", fail="open")(current_caller)
        with guard.request("t"):
            assert tool() is None


def test_in_an_outage_an_open_tool_without_a_token_is_refused(setup: Setup, tmp_path: Path) -> None:
    fake, _ = setup
    fake.answers = [OUTAGES["503"]]
    ran = []
    with Muniment(fake_url(setup), KEY, spool=tmp_path / "spool") as guard:
        tool = guard.tool("status.show", scopes="status:read", fail="open")(lambda: ran.append(1))
        for text in (None, ""):
            with guard.request(text), pytest.raises(Unavailable):
                tool()
    assert not ran


def test_an_open_tool_without_a_spool_is_refused_at_once(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Misconfigured, match="spool"):
        setup[1].tool("status.show", scopes="status:read", fail="open")(lambda: None)


def test_async_calls_know_outages_and_retries_too(setup: Setup) -> None:
    fake, guard = setup

    async def all_of_them() -> None:
        fake.answers = [OUTAGES["503"], answered("200 OK", ALLOW)]
        assert await guard.averify("t", tool="memory.recall")
        assert fake.asked[0] == fake.asked[1]
        fake.answers = [REFUSALS["throttled"][0]]
        with pytest.raises(Throttled) as refused:
            await guard.averify("t", tool="memory.recall")
        assert refused.value.retry_after == 7
        await guard.platform.aclose()
        impatient(guard)
        fake.answers = [late]
        with pytest.raises(Unavailable):
            await guard.averify("t", tool="memory.recall")
        await guard.aclose()

    asyncio.run(all_of_them())


def test_a_cancelled_call_leaves_the_breaker_as_it_was(setup: Setup) -> None:
    fake, guard = setup
    guard.platform.breaker = Breaker(limit=1, pause=0.0)
    fake.answers = [OUTAGES["503"]]

    async def cancelled() -> None:
        with pytest.raises(Unavailable):
            await guard.averify("t", tool="memory.recall")
        fake.answers = [late, answered("200 OK", ALLOW)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(guard.averify("t", tool="memory.recall"), 0.1)
        fake.answers = [answered("200 OK", ALLOW)]
        assert await guard.averify("t", tool="memory.recall")
        await guard.aclose()

    asyncio.run(cancelled())


def test_two_event_loops_one_after_the_other_may_use_one_guard(setup: Setup) -> None:
    _, guard = setup
    for _ in range(2):
        assert asyncio.run(guard.averify("t", tool="memory.recall"))


# --- the breaker ------------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_after_outages_in_a_row_nobody_waits_any_more(setup: Setup) -> None:
    fake, guard = setup
    guard.platform.breaker = Breaker(limit=2, pause=60)
    fake.answers = [OUTAGES["503"]]
    for _ in range(2):
        with pytest.raises(Unavailable):
            guard.verify("t", tool="memory.recall")
    with pytest.raises(Unavailable) as refused:
        guard.verify("t", tool="memory.recall")
    assert refused.value.cause == "breaker_open" and 1 <= (refused.value.retry_after or 0) <= 60
    assert len(fake.asked) == 4


def test_one_call_tries_after_the_pause_and_an_answer_closes_it() -> None:
    clock = Clock()
    breaker = Breaker(limit=1, pause=1.0, longest=3.0, clock=clock)
    assert breaker.enter()
    breaker.failed()
    assert not breaker.enter()
    clock.now += 1
    assert breaker.enter() and not breaker.enter()
    breaker.failed()
    clock.now += 1
    assert not breaker.enter()  # twice as long now
    clock.now += 1
    assert breaker.enter()
    assert breaker.answered()
    assert breaker.enter() and breaker.enter()
    assert not breaker.answered()


def test_a_denial_keeps_the_breaker_closed(setup: Setup) -> None:
    fake, guard = setup
    guard.platform.breaker = Breaker(limit=1)
    fake.answers = [answered("200 OK", DENY)]
    for _ in range(3):
        assert guard.verify("t", tool="memory.recall").status == 503


# --- what is told in the background -----------------------------------------------------------------------


def test_reports_are_made_in_order_and_again_while_the_platform_is_away() -> None:
    done: list[int] = []
    failures = iter([Unavailable("unreachable"), Throttled(1), None, None])
    background = Background()

    def report(number: int) -> Callable[[], None]:
        def do() -> None:
            if (error := next(failures)) is not None:
                raise error
            done.append(number)

        return do

    background.add(Job("first", report(1)))
    background.add(Job("second", report(2)))
    assert background.wait(30)
    background.close()
    assert done == [1, 2]


def test_a_report_that_the_platform_refuses_holds_up_nothing(caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []
    background = Background()

    def refused() -> None:
        raise Refused("record-unknown", "No such record")

    background.add(Job("an outcome", refused))
    background.add(Job("broken", lambda: 1 // 0))
    background.add(Job("the next", lambda: done.append(1)))
    assert background.wait(30)
    background.close()
    assert done == [1] and "record-unknown" in caplog.text and "ZeroDivisionError" in caplog.text


def test_closing_gives_up_in_time(caplog: pytest.LogCaptureFixture) -> None:
    background = Background()

    def away() -> None:
        raise Unavailable("unreachable")

    background.add(Job("an outcome", away))
    started = time.monotonic()
    background.close(0.3)
    assert time.monotonic() - started < CLOSE_SECONDS and "were not made" in caplog.text
