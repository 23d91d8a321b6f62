"""`make run`, for real: the whole instance is started, looked at, killed in parts. What is left when the supervisor
itself is killed, and after Ctrl-C, is in test_newcomer.py."""

import contextlib
import http.client
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from governance import devkeys, embedded
from governance.supervisor import Supervisor
from governance.supervisor_plan import MARK, PlanError, Urls, environment_for, instance_lines, read_plan
from tests.live import free_port

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(600)  # each starts a whole instance, on a small machine perhaps twice

UP = "Ctrl-C stops it."
URLS = Urls(database="postgresql://d", owner="postgresql://o", redis="redis://r")


class Run:
    """One supervisor in a process of its own, with its output in a file; or another program, such as `make inner`'s."""

    def __init__(self, var: Path, port: int, module: str = "governance.supervisor", **variables: str) -> None:
        self.var, self.port = var, port
        self.output = var.parent / f"{var.name}.{module}.{port}.output"
        given = {"MUNIMENT_VAR": str(var), "MUNIMENT_PORT": str(port), "MUNIMENT_WEB_PROCESSES": "1"}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=ROOT,
                env=newcomers_environment() | given | variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, text: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)

    def get(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()


def newcomers_environment() -> dict[str, str]:
    """Our environment without what the test suite set for itself."""
    ours = ("MUNIMENT_", "DJANGO_", "DATABASE_", "REDIS_", "CELERY_")
    return {name: text for name, text in os.environ.items() if not name.startswith(ours)}


def marked(var: Path) -> dict[int, str]:
    """Pid and command line of each process of this instance: by our mark, or by the folder that it serves."""
    found = {}
    for proc in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not proc.name.isdecimal():
                continue
            words = (proc / "cmdline").read_bytes().split(b"\0")
            ours = any(os.fsencode(var / name) in words for name in ("postgres", "redis"))
            if ours or f"{MARK}={var}".encode() in (proc / "environ").read_bytes().split(b"\0"):
                found[int(proc.name)] = b" ".join(words).decode()
    return found


def pid_of(var: Path, words: str) -> int:
    """The leader among the processes whose command line holds ``words``: the one that started first."""
    return min(pid for pid, line in marked(var).items() if words in line)


@pytest.fixture(scope="module")
def var(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: each test but the first finds the data, as a second `make run` does."""
    return tmp_path_factory.mktemp("instance") / "var"


@pytest.fixture(scope="module")
def started() -> Iterator[list[Run]]:
    """Every instance of these tests; what is left of them is stopped in the end."""
    runs: list[Run] = []
    yield runs
    for run in runs:
        if run.process.poll() is None:
            run.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(60)
        run.process.kill()
        run.process.wait()


@pytest.fixture
def run(var: Path, started: list[Run]) -> Run:
    """A whole instance that is up: the one of the test before, or another where that one was ended."""
    if not started or started[-1].process.poll() is not None:
        started.append(Run(var, free_port()))
    started[-1].wait_for(UP)
    return started[-1]


# --- the whole --------------------------------------------------------------------------------------------


def test_it_starts_serves_and_tells_how(run: Run) -> None:
    assert (run.get("/livez"), run.get("/readyz")) == (200, 200)
    for needed in (f"http://127.0.0.1:{run.port}/admin/", "/reference", "/v1/verify", "mk_"):
        assert needed in run.said
    lines = " ".join(marked(run.var).values())
    for name in ("granian", "worker", "beat", "manage.py seal", "postgres", "redis-server"):
        assert name in lines
    for file in (run.var / "instance.env", *run.var.glob("log/*"), *run.var.glob("keys/*")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    token = re.search(r"eyJ[\w.-]+", run.said)
    assert token is not None
    assert not any(token.group().encode() in log.read_bytes() for log in run.var.glob("log/*"))
    joined = subprocess.run(
        [sys.executable, "manage.py", "check", "--database", "default"],
        cwd=ROOT,
        env=newcomers_environment() | {"MUNIMENT_VAR": str(run.var)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert joined.returncode == 0, joined.stderr


def test_a_second_one_on_the_same_folder_or_port_is_refused_and_harms_nothing(run: Run) -> None:
    same_folder = Run(run.var, free_port())
    assert same_folder.process.wait(90) == 1
    assert same_folder.said == f"muniment: Muniment already runs in {run.var}; MUNIMENT_VAR moves this one\n"
    same_port = Run(run.var.with_name("other"), run.port)
    assert same_port.process.wait(90) == 1
    assert f"port {run.port} on 127.0.0.1 is taken" in same_port.said and "MUNIMENT_PORT" in same_port.said
    assert marked(run.var.with_name("other")) == {}
    assert not (run.var.with_name("other") / "postgres").exists()
    assert run.get("/readyz") == 200


def test_a_failed_web_worker_is_started_again(run: Run) -> None:
    leader = pid_of(run.var, "-m granian")
    time.sleep(6)  # granian takes two failures within 5.5 s for a crash loop
    workers = [pid for pid in children(leader) if "granian" in marked(run.var).get(pid, "")]
    os.kill(workers[-1], signal.SIGKILL)
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if run.get("/readyz") == 200:
                break
        assert time.monotonic() < deadline, "no worker came back"
        time.sleep(0.1)
    assert run.process.poll() is None


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("bin/postgres -D", "postgres"),
        pytest.param("-m granian", "web", marks=pytest.mark.soak),
        pytest.param("celery -A governance worker", "worker", marks=pytest.mark.soak),
    ],
)
def test_when_a_process_dies_it_says_which_and_stops_all(run: Run, words: str, name: str) -> None:
    os.kill(pid_of(run.var, words), signal.SIGKILL)
    assert run.process.wait(120) == 1
    assert f"muniment: {name} died (killed by SIGKILL); " in run.said
    assert f"{run.var}/log/{name}.log" in run.said
    assert marked(run.var) == {}


def children(parent: int) -> list[int]:
    found = []
    for proc in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if proc.name.isdecimal() and (proc / "stat").read_text().rpartition(")")[2].split()[1] == str(parent):
                found.append(int(proc.name))
    return sorted(found)


# --- refusals, which start nothing ------------------------------------------------------------------------


def test_a_taken_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        run = Run(tmp_path / "var", taken.getsockname()[1])
        assert run.process.wait(90) == 1
    assert f"port {run.port} on 127.0.0.1 is taken by another program; MUNIMENT_PORT" in run.said
    assert not (run.var / "postgres").exists()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"DATABASE_URL": "postgresql://x"}, "DATABASE_OWNER_URL"),
        ({"DATABASE_OWNER_URL": "postgresql://x"}, "DATABASE_URL"),
        ({"MUNIMENT_PORT": "http"}, "MUNIMENT_PORT must be a number"),
        ({"MUNIMENT_PORT": "70000"}, "MUNIMENT_PORT must be a number"),
        ({"MUNIMENT_WEB_PROCESSES": "0"}, "MUNIMENT_WEB_PROCESSES must be a number"),
        ({"MUNIMENT_MODE": "production"}, "development"),
    ],
)
def test_a_wrong_environment_is_refused(tmp_path: Path, variables: dict[str, str], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        read_plan({"MUNIMENT_VAR": str(tmp_path / "var")} | variables)


def test_a_wrong_environment_exits_2(tmp_path: Path) -> None:
    run = Run(tmp_path / "var", free_port(), DATABASE_URL="postgresql://u:secret@127.0.0.1:9/d")
    assert run.process.wait(90) == 2
    assert "DATABASE_OWNER_URL" in run.said and "secret" not in run.said
    assert not run.var.exists()


# --- who is given what ------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["web", "worker", "beat", "seal", "manage"])
def test_each_process_is_given_its_own_keys_and_no_others(tmp_path: Path, process: str) -> None:
    plan = read_plan({"MUNIMENT_VAR": str(tmp_path)})
    inherited = {f"MUNIMENT_{name}": "foreign" for name in devkeys.NAMES} | {"MUNIMENT_LOG_KEY_FILE": "/x"}
    inherited |= {"DATABASE_OWNER_URL": "postgresql://foreign", "PATH": "/usr/bin"}
    given = environment_for(process, plan, URLS, inherited, owner=False)
    assert "foreign" not in " ".join(given.values()) and "DATABASE_OWNER_URL" not in given
    keys = {name for name in given if name.removeprefix("MUNIMENT_").removesuffix("_FILE") in devkeys.NAMES}
    assert keys == set(devkeys.variables(tmp_path / "keys", process))
    assert (given["MUNIMENT_PROCESS"], given["PATH"]) == (process, "/usr/bin")


def test_the_operators_servers_are_used_where_they_are_given(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://file\n")
    plan = read_plan({"DATABASE_URL": "a", "DATABASE_OWNER_URL": "b", "REDIS_URL_FILE": str(tmp_path / "url")})
    assert (plan.database_url, plan.owner_url, plan.redis_url) == ("a", "b", "redis://file")


def test_a_second_shell_joins_as_manage_and_is_not_ours_to_stop(tmp_path: Path) -> None:
    lines = instance_lines(read_plan({"MUNIMENT_VAR": str(tmp_path)}), URLS)
    given = dict(line.split("=", 1) for line in lines.splitlines())
    assert given["DATABASE_OWNER_URL"] == "postgresql://o" and given["MUNIMENT_MODE"] == "demo"
    assert MARK not in given and "MUNIMENT_WRITER_KEY_FILE" not in given and "MUNIMENT_PEPPER_FILE" in given


def test_of_servers_only_those_start_that_no_operator_gave(tmp_path: Path) -> None:
    given = {"DATABASE_URL": URLS.database, "DATABASE_OWNER_URL": URLS.owner, "REDIS_URL": URLS.redis}
    supervisor = Supervisor(read_plan({"MUNIMENT_VAR": str(tmp_path / "var")} | given))
    with contextlib.ExitStack() as cleanup:
        assert supervisor._start_servers(cleanup) == URLS
        assert supervisor.servers is None and not (tmp_path / "var").exists()


@pytest.mark.soak
def test_operators_servers_mean_none_of_ours(tmp_path: Path) -> None:
    with embedded.start(tmp_path / "theirs", durable=False) as theirs:
        run = Run(
            tmp_path / "var",
            free_port(),
            DATABASE_URL=theirs.database_url,
            DATABASE_OWNER_URL=theirs.owner_url,
            REDIS_URL=theirs.redis_url,
        )
        try:
            run.wait_for(UP)
            assert not (run.var / "postgres").exists() and not (run.var / "redis").exists()
        finally:
            run.process.send_signal(signal.SIGTERM)
            assert run.process.wait(60) == 0
        assert theirs.ended() == []
