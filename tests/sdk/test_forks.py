"""What a fork leaves the child: no connection of the parent's, no lock that somebody holds, no file of its spool.

Servers fork after they imported the application (gunicorn with `preload`, Celery): two processes that share one
connection read each other's answers, and a call would be decided by another user's.
"""

import ctypes
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from muniment import Muniment
from muniment.assertion_keys import KeySource
from muniment.background import Job
from muniment.calls import NOBODY
from muniment.spool import File, prepared, told
from tests.sdk.test_outages import ALLOW, KEY
from tests.served import asgi

SECONDS = 60
KEPT = httpx2.Limits(keepalive_expiry=SECONDS)


class Platform:
    """Answers each verify call with an allow of the user that its token names, over connections that are kept, and
    notes the client's port."""

    def __init__(self) -> None:
        self.ports: list[int] = []

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        assert scope["type"] == "http"
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.ports.append(scope["client"][1])
        name = json.loads(body).get("token") if body else None
        answer: dict[str, Any] = {"tools": [], "keys": []}
        if name:
            answer = ALLOW | {"subject": {**ALLOW["subject"], "uid": name}}  # type: ignore[dict-item]
        content = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[Platform, str]]:
    platform = Platform()
    with asgi(platform, lifespan="off", timeout_keep_alive=SECONDS) as url:
        yield platform, url


def untold() -> int:
    """A fork that Python is not told of, as uWSGI makes it. While another thread wants Python's lock, which nobody
    hands on in the child, such a child hangs, whatever it runs: the server of this file must be idle again, and when it
    wakes now and then, it waits."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        time.sleep(0.3)
        child: int = ctypes.PyDLL(None).fork()
    finally:
        sys.setswitchinterval(interval)
    return child


def in_child(check: Callable[[], None], fork: Callable[[], int] = os.fork) -> None:
    """Run a check in a forked child; it fails where the check fails or does not end."""
    child = fork()
    if child == 0:
        code = 1
        try:
            check()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the child hung")


@pytest.mark.parametrize("fork", [os.fork, untold])
def test_parent_and_child_never_use_one_connection(asked: tuple[Platform, str], fork: Callable[[], int]) -> None:
    platform, url = asked
    with Muniment(url, KEY, timeout=30, limits=KEPT) as guard:
        assert guard.verify("parent", tool="memory.recall").require().uid == "parent"
        parent = platform.ports[-1]

        def check() -> None:
            assert guard.verify("child", tool="memory.recall").require().uid == "child"

        in_child(check, fork)
        assert platform.ports[-1] != parent
        assert guard.verify("parent", tool="memory.recall").require().uid == "parent"
        assert platform.ports[-1] == parent  # the child did not end it


def test_keys_for_assertions_are_fetched_over_a_connection_of_the_childs_own(asked: tuple[Platform, str]) -> None:
    platform, url = asked
    source = KeySource(f"{url}/v1/keys", 30.0, {})
    assert source.keys("k") == {}
    parent = platform.ports[-1]

    def check() -> None:
        source._next = float("-inf")
        assert source.keys("k") == {}

    in_child(check)
    assert platform.ports[-1] != parent
    source.close()


def test_locks_that_another_thread_held_do_not_stop_the_child(asked: tuple[Platform, str], tmp_path: Path) -> None:
    _, url = asked
    with Muniment(url, KEY, timeout=30, spool=tmp_path / "spool") as guard:
        spool, platform = guard._spool, guard.platform
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            with guard.background._lock, spool._lock, spool._reporting, platform._lock, platform.breaker._lock:
                held.set()
                release.wait(SECONDS)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(SECONDS)

        def check() -> None:
            assert guard.verify("child", tool="memory.recall")
            spool.began("memory.recall", NOBODY, "timeout", lambda: None)
            assert spool.report() == 1
            done: list[int] = []
            guard.background.add(Job("noting", lambda: done.append(1)))
            assert guard.flush(30) and done == [1]
            guard.close()

        try:
            in_child(check)
        finally:
            release.set()
            thread.join()


def test_what_waited_is_the_parents_to_tell(asked: tuple[Platform, str], tmp_path: Path) -> None:
    _, url = asked
    told_of = tmp_path / "told"
    hold = threading.Event()
    with Muniment(url, KEY) as guard:
        guard.background.add(Job("waiting", lambda: hold.wait(SECONDS)))
        guard.background.add(Job("telling", lambda: told_of.open("a").write(f"{os.getpid()}\n")))

        def check() -> None:
            guard.background.add(Job("its own", lambda: None))
            assert guard.flush(30)
            guard.close()

        in_child(check)
        hold.set()
        assert guard.flush(30)
    assert told_of.read_text() == f"{os.getpid()}\n"


def test_a_child_does_not_keep_the_parents_spool_locked(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "spool")
    file = File.new(folder)
    file.append(told("memory.recall", NOBODY, "timeout"))
    (read, write), (there, is_there) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.write(is_there, b"!")
        os.read(read, 1)  # lives for as long as the parent says
        os._exit(0)
    try:
        os.read(there, 1)
        file.close()  # as when the parent ends
        adopted = File.adopt(file.path)
        assert adopted is not None and adopted.waiting == 1
        adopted.close()
    finally:
        for descriptor in (read, write, there, is_there):
            os.close(descriptor)
        os.waitpid(child, 0)


def test_an_outage_in_the_child_is_written_to_a_file_of_its_own(tmp_path: Path) -> None:
    with Muniment("http://127.0.0.1:9", KEY, spool=tmp_path / "spool", timeout=0.5) as guard:
        show = guard.tool("status.show", fail="open")(lambda: 1)
        with guard.request("parent"):
            show()

        def check() -> None:
            with guard.request("child"):
                show()
            guard.background.close(0)

        in_child(check)
        guard.background.close(0)
    assert len(list((tmp_path / "spool").glob("*.spool"))) == 2


def test_what_a_worker_left_is_found_by_the_one_that_is_forked_after_it(tmp_path: Path) -> None:
    """As in gunicorn with `preload`: the parent imports the guard and calls no tool."""
    with Muniment("http://127.0.0.1:9", KEY, spool=tmp_path / "spool") as guard:
        assert not guard._spool.due()

        def check() -> None:
            file = File.new(tmp_path / "spool")
            file.append(told("memory.recall", NOBODY, "timeout"))
            assert guard._spool.due()

        in_child(check)
        seen: list[Path] = []

        def adopts() -> None:
            assert guard._spool.due()
            seen.extend(file.path for file in guard._spool._left())
            assert len(seen) == 1

        in_child(adopts)
        assert not guard._spool.due()
