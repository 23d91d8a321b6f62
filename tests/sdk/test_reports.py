"""What is told to the platform arrives, once, whatever happens to those who tell it; and telling it harms no call."""

import asyncio
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from muniment import Muniment, Refused, Throttled, Unavailable, client, touched
from muniment.background import Background, Job
from muniment.breaker import Breaker
from muniment.calls import NOBODY, Incoming, request_info
from muniment.introspection import introspect
from muniment.open_calls import LOOK, OpenCalls
from muniment.spool import File, files, prepared, told
from tests.sdk.test_outages import ALLOW, KEY, Answer, answered, problem
from tests.served import served

TAKEN = answered("200 OK", {"taken": 1})
AWAY = problem("503 Service Unavailable", "unavailable")


class Platform:
    """Allows each call; answers other paths with what `answers` says for the end of their name."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, Any]] = []
        self.going = threading.Event()
        self.going.set()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        path = environ["PATH_INFO"]
        self.asked.append((path, body))
        self.going.wait(60)
        allow = answered("200 OK", ALLOW) if path == "/v1/verify" else answered("200 OK", {"tools": []})
        waiting = self.answers.get(path.rsplit("/", 1)[-1], [allow])
        status, headers, content = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        start(status, [*headers.items(), ("Content-Length", str(len(content)))])
        return [content]

    def told(self) -> list[str]:
        """The lines of the spool that were reported."""
        return [line for path, body in self.asked if path == "/v1/ungoverned" for line in json.loads(body)["entries"]]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Platform, str]]:
    made = Platform()
    with served(made) as url:
        yield made, url


@pytest.fixture
def platform(server: tuple[Platform, str]) -> Platform:
    server[0].answers, server[0].asked = {}, []
    return server[0]


@pytest.fixture
def guard(server: tuple[Platform, str], platform: Platform, tmp_path: Path) -> Iterator[Muniment]:
    with Muniment(server[1], KEY, timeout=30, spool=tmp_path / "spool") as made:
        yield made
        platform.answers = {}


def left(folder: Path, count: int, given: Incoming = NOBODY) -> str:
    """A file that a process left that is no more."""
    file = File.new(prepared(folder))
    for _ in range(count):
        file.append(told("memory.recall", given, "timeout"))
    file.close()
    return file.spool


# --- the spool --------------------------------------------------------------------------------------------


def test_files_of_several_dead_processes_are_all_reported_although_the_first_report_fails(
    platform: Platform, guard: Muniment, tmp_path: Path
) -> None:
    spools = {left(tmp_path / "spool", 1) for _ in range(3)}
    platform.answers["ungoverned"] = [AWAY]
    with pytest.raises(Unavailable):
        guard._spool.report()
    for path in files(tmp_path / "spool"):  # none of them stays locked
        adopted = File.adopt(path)
        assert adopted is not None
        adopted.close()
    platform.asked, platform.answers["ungoverned"] = [], [TAKEN]
    assert guard._spool.report() == 3 and not files(tmp_path / "spool")
    assert {json.loads(line)["spool"] for line in platform.told()} == spools


def test_lines_that_are_long_are_reported_in_bodies_that_the_platform_reads(
    platform: Platform, guard: Muniment, tmp_path: Path
) -> None:
    quotes = request_info(id='"' * 256, session_id='"' * 256, trace_id='"' * 256, user_agent='"' * 1024)
    left(tmp_path / "spool", 120, Incoming("t", quotes))
    assert guard._spool.report() == 120
    assert len(platform.told()) == 120 and all(len(body) <= client.MAX_BODY for _, body in platform.asked)


@pytest.mark.parametrize(
    "answer",
    [
        answered("404 Not Found", b"<html>", "text/html"),
        answered("200 OK", b"<html>", "text/html"),
        problem("413 Content Too Large", "body-too-large"),
        problem("409 Conflict", "spool-gap"),
    ],
)
def test_a_page_of_a_proxy_or_a_lost_line_does_not_put_a_file_aside(
    platform: Platform, guard: Muniment, tmp_path: Path, answer: Answer
) -> None:
    left(tmp_path / "spool", 2)
    platform.answers["ungoverned"] = [answer, TAKEN]
    with pytest.raises(Refused):
        guard._spool.report()
    assert len(files(tmp_path / "spool")) == 1 and guard._spool.waiting
    assert guard._spool.report() == 2


def test_what_the_platform_will_never_take_is_put_aside_and_kept(
    platform: Platform, guard: Muniment, tmp_path: Path
) -> None:
    spool = left(tmp_path / "spool", 2)
    platform.answers["ungoverned"] = [problem("409 Conflict", "spool-broken")]
    guard._spool.report()
    assert (tmp_path / "spool" / f"{spool}.refused").exists()


def test_what_the_platform_lost_is_reported_from_the_beginning(
    platform: Platform, guard: Muniment, tmp_path: Path
) -> None:
    spool = guard._spool
    spool.began("memory.recall", NOBODY, "timeout", lambda: None)
    own = spool._own
    own.taken(own._lines[:1])
    own.append(told("memory.recall", NOBODY, "timeout"))
    platform.answers["ungoverned"] = [problem("409 Conflict", "spool-gap"), TAKEN]
    with pytest.raises(Refused):
        spool.report()
    platform.asked = []
    assert spool.report() == 2
    assert [json.loads(line)["sequence"] for line in platform.told()] == [1, 2]


def test_what_a_dead_process_left_is_found_by_one_that_noticed_no_outage(
    platform: Platform, guard: Muniment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert guard.verify("t", tool="memory.recall") and not guard._spool.due()
    left(tmp_path / "spool", 2)
    assert guard.verify("t", tool="memory.recall") and guard.flush(30)
    assert len(files(tmp_path / "spool")) == 1  # it does not look with every call
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + LOOK)
    assert guard.verify("t", tool="memory.recall") and guard.flush(30)
    assert not files(tmp_path / "spool") and len(platform.told()) == 2


def test_a_platform_that_refuses_reports_is_not_asked_with_every_call(
    platform: Platform, guard: Muniment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("muniment.open_calls.AGAIN", 600.0)
    left(tmp_path / "spool", 1)
    guard._spool.waiting = True
    platform.answers["ungoverned"] = [answered("404 Not Found", b"<html>", "text/html")]
    for _ in range(5):
        assert guard.verify("t", tool="memory.recall") and guard.flush(30)
    assert [path for path, _ in platform.asked].count("/v1/ungoverned") == 1
    assert len(files(tmp_path / "spool")) == 1 and guard._spool.waiting


def test_a_strangers_agents_and_headers_do_not_keep_a_line_from_being_taken() -> None:
    raw = {"id": "a\x00b\ud800", "user_agent": "x" * 5000, "ip": "no address", "unknown": "x"}
    line = told("memory.recall", Incoming("t", raw), "timeout")
    assert line["request"] == {"id": "a b", "user_agent": "x" * 1024}


def test_no_other_process_takes_a_file_before_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared(tmp_path / "spool")
    import fcntl

    real, seen = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        seen.append(files(folder))  # what another process would see at this moment
        real(descriptor, operation)

    monkeypatch.setattr("muniment.spool.fcntl.flock", flock)
    file = File.new(folder)
    assert seen == [[]] and files(folder) == [file.path]
    file.close()


def test_an_open_call_does_not_hold_up_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = threading.Event()

    def began(*_: Any) -> Callable[[Any], None]:
        assert slow.wait(30)  # a disk that takes its time
        return lambda outcome: None

    monkeypatch.setattr(OpenCalls, "began", began)

    async def two() -> None:
        guard = Muniment("http://127.0.0.1:9", KEY, timeout=0.5, spool=tmp_path / "spool")

        async def body() -> int:
            return 1

        show = guard.tool("status.show", fail="open")(body)
        with guard.request("t"):
            task = asyncio.create_task(show())
        for _ in range(50):
            await asyncio.sleep(0.01)  # the loop goes on
        assert not task.done()
        slow.set()
        assert await task == 1
        guard.background.close(0)

    asyncio.run(asyncio.wait_for(two(), 60))


# --- the breaker, and what is no outage -------------------------------------------------------------------


def test_a_report_that_fails_again_and_again_is_no_outage_of_calls(platform: Platform, guard: Muniment) -> None:
    guard.platform.breaker = Breaker(limit=2, pause=60)
    platform.answers["outcome"] = [problem("500 Internal Server Error", "internal")]
    recall = guard.tool("memory.recall", scopes="memory:read")(lambda: 1)
    with guard.request("t"):
        recall()
        deadline = time.monotonic() + 30
        while len([path for path, _ in platform.asked if path.endswith("/outcome")]) < 6:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert recall() == 1


def test_an_issuer_that_is_away_is_no_outage_of_calls(platform: Platform, guard: Muniment) -> None:
    guard.platform.breaker = Breaker(limit=1, pause=60)
    platform.answers["introspect"] = [AWAY]
    for _ in range(3):
        with pytest.raises(Unavailable):
            introspect(guard, "a token of an issuer whose keys cannot be had")
    assert guard.verify("t", tool="memory.recall")


def test_reports_are_made_although_the_breaker_is_open(platform: Platform, guard: Muniment) -> None:
    guard.platform.breaker = Breaker(limit=1, pause=60)
    platform.answers["verify"] = [AWAY]
    with pytest.raises(Unavailable):
        guard.verify("t", tool="memory.recall")
    guard._report("019aa1b0-7f3c-7b5e-9d41-5c1f0a7e2b90", {"status": "ok"})
    assert guard.flush(30)
    assert platform.asked[-1][0].endswith("/outcome")


def test_more_calls_at_once_than_connections_open_no_tool(
    server: tuple[Platform, str], platform: Platform, tmp_path: Path
) -> None:
    import httpx2

    platform.going.clear()
    ran: list[int] = []
    limits = httpx2.Limits(max_connections=1)
    with Muniment(server[1], KEY, spool=tmp_path / "spool", limits=limits) as guard:
        guard.platform._settings["timeout"] = httpx2.Timeout(60, pool=0.1)
        show = guard.tool("status.show", fail="open")(lambda: ran.append(1))
        first = threading.Thread(target=guard.verify, args=("t", "memory.recall"))
        first.start()
        while not platform.asked:
            time.sleep(0.005)
        guard._declaring = True
        try:
            with guard.request("t"), pytest.raises(Throttled):
                show()
        finally:
            platform.going.set()
        first.join(30)
    assert not ran


def test_a_body_that_the_platform_would_not_read_is_refused_and_opens_no_tool(guard: Muniment) -> None:
    ran: list[int] = []
    show = guard.tool("status.show", fail="open", resource=lambda id: ("status", id))(lambda id: ran.append(1))
    with guard.request("t"), pytest.raises(Refused, match="not-a-decision"):  # an allow of memory.recall
        show("x" * 5_000_000)
    with pytest.raises(Refused, match="body-too-large"):
        guard.verify("t", tool="status.show", resource=("status", "x" * 5_000_000))
    assert not ran


def test_an_answer_that_cannot_be_read_is_refused_and_opens_no_tool(platform: Platform, guard: Muniment) -> None:
    platform.answers["verify"] = [("200 OK", {"Content-Encoding": "gzip"}, b"no gzip")]
    with pytest.raises(Refused):
        guard.verify("t", tool="memory.recall")


def test_an_allow_of_another_tool_is_none(guard: Muniment) -> None:
    with pytest.raises(Refused):
        guard.verify("t", tool="memory.forget")


def test_what_a_failure_hangs_on_holds_no_key_and_no_token() -> None:
    guard = Muniment("http://127.0.0.1:9", KEY, timeout=0.5)
    with pytest.raises(Unavailable) as sync:
        guard.verify("eyJhbGciOiJub25lIn0.e30.", tool="memory.recall")
    with pytest.raises(Unavailable) as later:
        asyncio.run(guard.averify("eyJhbGciOiJub25lIn0.e30.", tool="memory.recall"))
    assert sync.value.__context__ is None and later.value.__context__ is None


@pytest.mark.parametrize("url", ["https://user:secret@muniment.example", "http://[::1", "http://host:99999", "http://"])
def test_a_url_with_a_password_or_without_a_host_is_refused_and_not_repeated(url: str) -> None:
    from muniment import Misconfigured

    with pytest.raises(Misconfigured) as refused:
        Muniment(url, KEY)
    assert "secret" not in str(refused.value)


# --- the background ---------------------------------------------------------------------------------------


def test_what_comes_while_a_report_is_under_way_is_reported_too() -> None:
    begun, go, told_of = threading.Event(), threading.Event(), []
    waiting = ["first"]
    background = Background()

    def report() -> None:
        taken = list(waiting)
        begun.set()
        assert go.wait(30)
        told_of.extend(one for one in taken if one not in told_of)

    background.add(Job("reporting", report), once=True)
    assert begun.wait(30)
    waiting.append("second")
    for _ in range(3):
        background.add(Job("reporting", report), once=True)
    go.set()
    assert background.wait(30) and told_of == ["first", "second"]
    background.close()


def test_an_outcome_that_cannot_be_told_does_not_fail_the_call(
    guard: Muniment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @guard.tool("memory.recall", scopes="memory:read")
    def recall() -> int:
        touched("memory", "m_1")
        monkeypatch.setattr(guard.background, "_thread", None)
        monkeypatch.setattr(threading.Thread, "start", broken)
        return 1

    def broken(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with guard.request("t"):
        assert recall() == 1
    monkeypatch.undo()
    assert "can't start new thread" in caplog.text
    guard.background.add(Job("the next one", lambda: None))  # and the next one finds a thread again
    assert guard.flush(30)


def test_many_guards_end_with_their_process_in_the_time_of_one() -> None:
    code = """
import atexit
import time
atexit.register(lambda: print(time.monotonic() - began))  # the first that is registered is the last that is run
from muniment import background
from muniment.background import Background, Job
from muniment.errors import Unavailable
background.CLOSE_SECONDS = 0.5
def away():
    raise Unavailable("unreachable")
for _ in range(20):
    Background().add(Job("telling", away))
began = time.monotonic()
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=100, capture_output=True, check=True)
    assert float(done.stdout) < 8, done.stderr  # of each alone: 20 times 0.5


# --- what would run after its call, and loops that are no more --------------------------------------------


def test_what_would_run_after_its_call_is_refused_also_where_it_hides(guard: Muniment) -> None:
    ran: list[int] = []

    async def body() -> None:
        ran.append(1)

    hidden: list[Callable[[], Any]] = [lambda: body(), lambda: (ran.append(1) for _ in range(1))]
    for function in hidden:
        guard.tools.clear()
        with guard.request("t"), pytest.raises(TypeError, match="after the call"):
            guard.tool("memory.recall")(function)()
    assert not ran


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_connections_of_event_loops_that_ended_do_not_pile_up(guard: Muniment) -> None:
    for _ in range(6):
        assert asyncio.run(guard.averify("t", tool="memory.recall"))
    gc.collect()
    assert len(guard.platform._clients) <= 2
