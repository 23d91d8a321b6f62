"""What a newcomer does after `make run`: the printed call, a revoke in the admin, the very next call, a forged
token, the record list, an end without warning, `make run` again, Inner beside it, Ctrl-C."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest

from tests.docs.markdown import shown
from tests.governance.test_supervisor import ROOT, UP, Run, marked, newcomers_environment
from tests.live import free_port

pytestmark = pytest.mark.timeout(900)


def printed_call(said: str) -> tuple[str, dict[str, str], dict[str, Any]]:
    """URL, headers and body of the curl command that was printed, read as a shell would."""
    command = re.search(r"^ *curl .*?(?<!\\)$", said, re.MULTILINE | re.DOTALL)
    assert command, said
    words = shlex.split(command[0].replace("\\\n", " "))
    headers = dict(words[i + 1].split(": ", 1) for i, word in enumerate(words) if word == "-H")
    [url] = [word for word in words if word.startswith("http")]
    return url, headers, json.loads(words[words.index("-d") + 1])


def call(url: str, headers: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
    """POST it, and read the answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as response:
        answer: dict[str, Any] = json.loads(response.read())
    return answer


class Staff:
    """A browser without script: cookies, forms, CSRF."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def get(self, path: str) -> str:
        with self.opener.open(self.base + path, timeout=20) as response:
            return str(response.read().decode())

    def post(self, path: str, **fields: str) -> str:
        """Fill in the form at this path and send it."""
        found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.get(path))
        assert found
        data = urllib.parse.urlencode(fields | {"csrfmiddlewaretoken": found[1]}).encode()
        request = urllib.request.Request(self.base + path, data, {"Referer": self.base + path})
        with self.opener.open(request, timeout=20) as response:
            return str(response.read().decode())


def log_in(run: Run) -> Staff:
    """With the first of the logins that were printed, and its password."""
    login = re.search(r"Sign in as  (\w+), [^;]*;\s+the password is (\S*)NAME(\S*), such as ", run.said)
    assert login, run.said
    staff = Staff(f"http://127.0.0.1:{run.port}")
    staff.post("/admin/login/?next=/admin/", username=login[1], password=f"{login[2]}{login[1]}{login[3]}")
    return staff


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "var"


@pytest.fixture
def runs(place: Path) -> Iterator[list[Run]]:
    started: list[Run] = []
    yield started
    for run in started:
        if run.process.poll() is None:
            run.process.send_signal(signal.SIGINT)
            run.process.wait(120)


def start(runs: list[Run], place: Path, port: int) -> Run:
    runs.append(Run(place, port))
    runs[-1].wait_for(UP)
    return runs[-1]


def test_from_the_printed_call_to_the_revoked_grant_and_back_again(runs: list[Run], place: Path) -> None:
    port = free_port()
    run = start(runs, place, port)
    url, headers, body = printed_call(run.said)

    allowed = call(url, headers, body)
    assert (allowed["decision"], allowed["reason"]) == ("allow", "granted")
    assert allowed["record"]

    staff = log_in(run)
    grants = staff.get("/admin/clients/grant/")
    number = next(
        found
        for found in sorted(set(re.findall(r"/admin/clients/grant/(\d+)/", grants)))
        if re.search(
            r"Claude\s+may use\s+memory:read",
            re.sub(r"<[^>]+>", "", staff.get(f"/admin/clients/grant/{found}/change/")),
        )
    )
    staff.post(f"/admin/clients/grant/{number}/act/revoke/", reason="the newcomer's trial", _act="1")

    denied = call(url, headers, body)
    assert (denied["decision"], denied["reason"], denied["status"]) == ("deny", "not_granted", 403)

    head, payload, signature = body["token"].split(".")
    other = ("A" if signature[0] != "A" else "B") + signature[1:]
    forged = call(url, headers, body | {"token": f"{head}.{payload}.{other}"})
    assert (forged["decision"], forged["reason"], forged["status"]) == ("deny", "token_invalid", 401)

    for answer in (allowed, denied, forged):
        assert answer["record"] in staff.get(f"/admin/records/{answer['record']}/")
    listed = staff.get("/admin/records/")
    for answer in (allowed, denied, forged):
        assert answer["record"] in listed

    run.process.kill()
    run.process.wait()
    again = start(runs, place, port)  # at once: it ends what is left
    assert call(*printed_call(again.said))["reason"] == "not_granted", "the data are still there"
    assert allowed["record"] in log_in(again).get(f"/admin/records/{allowed['record']}/")
    walk_through_inner(runs, again)
    leaves_nothing(again)


def leaves_nothing(run: Run) -> None:
    """Ctrl-C ends every process of either start, and the port is free."""
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(120) == 0
    assert marked(run.var) == {}
    assert not (run.var / "instance.env").exists()
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind(("127.0.0.1", run.port))


def walk_through_inner(runs: list[Run], beside: Run) -> None:
    """`make inner`, the story that it offers, as docs/inner.md shows it, and Ctrl-C."""
    assert shown("inner.md", "bash") == ["make inner\n", ".venv/bin/python -m examples.inner.story\n"]
    where = {"INNER_PORT": str(free_port())}
    inner = Run(beside.var, beside.port, "examples.inner", **where)
    runs.append(inner)
    inner.wait_for("Ctrl-C stops it.")
    environment = newcomers_environment() | where
    environment |= {"MUNIMENT_VAR": str(beside.var), "MUNIMENT_PORT": str(beside.port)}
    told = subprocess.run(
        [sys.executable, "-m", "examples.inner.story"], env=environment, cwd=ROOT, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    [excerpt] = shown("inner.md", "text")
    assert [line for line in excerpt.splitlines() if line not in told.stdout.splitlines()] == []
    assert "steps up: memory:write" in told.stdout and "forbidden by a block" in told.stdout
    inner.process.send_signal(signal.SIGINT)
    assert inner.process.wait(120) == 0, inner.said
    assert marked(beside.var / "inner") == {}


def test_inner_says_in_a_line_that_the_platform_must_run_first(tmp_path: Path) -> None:
    run = Run(tmp_path / "var", free_port(), "examples.inner")
    assert run.process.wait(120) == 2
    assert run.said.startswith("inner: Muniment does not run at") and run.said.count("\n") == 1
