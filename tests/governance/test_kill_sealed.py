"""kill -9 of the sealer, of a web worker, of the web process, of PostgreSQL and of all of them, at random moments under
load: every checkpoint that was ever published is a prefix of the next, every call that was answered is in the tree, and
no process misses a batch of its own."""

import base64
import http.client
import logging
import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.keys import public_of
from governance.embedded_process import Process, exited, last_lines, launch, stop_group
from governance.supervisor_plan import seal_command
from muniment import checkpoints, notes
from muniment.merkle import Frontier
from tests.audit import chain
from tests.governance.test_kill import WEB_KEYS, Instance
from tests.governance.test_kill import instance as instance
from tests.live import ROOT, Load, Web, until, web

logger = logging.getLogger(__name__)

ORIGIN = "muniment.test/log"
# Granian gives up on a worker that dies twice within five seconds.
BETWEEN_WORKERS = 6.0


class Sealing:
    """`manage.py seal` on an instance, with a log key of its own."""

    def __init__(self, instance: Instance) -> None:
        var = Path(instance.environment["MUNIMENT_VAR"])
        kept = var / "log-key"  # one for all tests of this instance: the state is that key's
        if not kept.exists():
            kept.write_bytes(secrets.token_bytes(32))
        private = kept.read_bytes()
        self.public = public_of(Ed25519PrivateKey.from_private_bytes(private))
        foreign = {"DATABASE_OWNER_URL", *(f"MUNIMENT_{name}" for name in WEB_KEYS)}
        self.environment = {name: value for name, value in instance.environment.items() if name not in foreign}
        self.environment |= {
            "MUNIMENT_PROCESS": "seal", "MUNIMENT_LOG_KEY": base64.b64encode(private).decode(),
            "MUNIMENT_LOG_ORIGIN": ORIGIN, "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        self.log = var / "seal.log"
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        self.process: Process = launch(
            seal_command(), log=self.log, account=None, death_signal=signal.SIGKILL, environment=self.environment,
            cwd=ROOT,
        )  # fmt: skip

    def kill(self) -> None:
        """kill -9."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        """Stop it as an operator would."""
        stop_group(self.process, 5)


class Published:
    """Keeps every checkpoint that anybody could have read, from the endpoint and from the table, while it is there."""

    def __init__(self, instance: Instance, server: Web) -> None:
        self.url, self.port, self.key = instance.environment["DATABASE_OWNER_URL"], server.port, instance.key
        self.served: set[str] = set()
        self.stored: set[str] = set()
        self.stopping = Event()
        self.threads = [Thread(target=self._ask), Thread(target=self._read)]

    def __enter__(self) -> "Published":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(20)

    def _ask(self) -> None:
        while not self.stopping.wait(0.1):
            with suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/v1/log/checkpoint", headers={"Authorization": f"Bearer {self.key}"})
                response = connection.getresponse()
                text = response.read().decode()
                connection.close()
                if response.status == 200:
                    self.served.add(text)

    def _read(self) -> None:
        while not self.stopping.is_set():
            with suppress(psycopg.Error), psycopg.connect(self.url, autocommit=True, connect_timeout=5) as connection:
                while not self.stopping.wait(0.05):
                    newest = "SELECT note FROM audit_checkpoint ORDER BY size DESC LIMIT 5"
                    self.stored |= {note for (note,) in connection.execute(newest).fetchall()}
            self.stopping.wait(0.05)


def one(instance: Instance, query: str) -> object:
    """One value, as the owner of the tables."""
    with psycopg.connect(instance.environment["DATABASE_OWNER_URL"], connect_timeout=5) as connection:
        row = connection.execute(query).fetchone()
    return row and row[0]


def sealed_size(instance: Instance) -> int:
    """How many records the newest checkpoint covers."""
    return int(str(one(instance, "SELECT coalesce(max(size), 0) FROM audit_checkpoint")))


def all_sealed(instance: Instance) -> bool:
    """Whether the newest checkpoint covers every record."""
    waits = "SELECT next - (SELECT coalesce(max(size), 0) FROM audit_checkpoint) FROM audit_head"
    undrained = "SELECT count(*) FROM audit_outbox WHERE record_index IS NULL"
    return one(instance, waits) == 0 and one(instance, undrained) == 0


def strikes(instance: Instance, server: Web, sealing: Sealing, chance: random.Random) -> dict[str, Callable[[], None]]:
    """What may be killed, by name."""
    struck, sealed = [0.0], [sealed_size(instance)]

    def worker() -> None:
        time.sleep(max(0.0, struck[0] + BETWEEN_WORKERS - time.monotonic()))
        until(lambda: len(server.alive()) == 2, 30)
        server.kill_worker()
        struck[0] = time.monotonic()

    def sealer() -> None:
        until(lambda: sealed_size(instance) > sealed[0], 60)  # not while it still starts
        time.sleep(chance.uniform(0.0, 1.2))
        sealing.kill()
        sealed[0] = sealed_size(instance)
        sealing.start()

    def whole_web() -> None:
        server.kill()
        server.restart()
        struck[0] = 0.0

    def postgres() -> None:
        instance.kill_postgres()
        instance.start_postgres()

    def all_at_once() -> None:
        instance.kill_postgres()
        sealing.kill()
        server.kill()
        instance.start_postgres()
        sealing.start()
        whole_web()

    return {"sealer": sealer, "worker": worker, "web": whole_web, "postgres": postgres, "all": all_at_once}


def plan(kills: int, chance: random.Random) -> list[str]:
    """Names of what to kill, in a random order: the sealer most, and each at least once."""
    cycle = ["sealer", "postgres", "web", "worker", "all", "sealer", "sealer", "postgres", "sealer", "sealer"]
    names = [cycle[number % len(cycle)] for number in range(kills)]
    chance.shuffle(names)
    return names


def kill_and_check(instance: Instance, kills: int) -> None:
    seed = secrets.randbits(32)
    logger.warning("seed %d", seed)  # shown where it fails
    chance = random.Random(seed)
    environment = instance.environment | {"MUNIMENT_LOG_ORIGIN": ORIGIN}
    with web(environment=environment) as [server], sealer_of(instance) as own:
        may = strikes(instance, server, own, chance)
        with Published(instance, server) as published:
            with instance.load(server) as load:
                load.wait_for(50)
                for name in plan(kills, chance):
                    time.sleep(chance.uniform(0.0, 1.5))
                    struck = time.monotonic()
                    may[name]()
                    until(lambda: len(load.since(struck)) >= 20, 60)  # noqa: B023
                    assert exited(own.process) is None, last_lines(own.log)
            until(lambda: all_sealed(instance), 60)
            with suppress(AssertionError):  # what keeps them is said below
                until(lambda: not journals(instance), 15)
            assert journals(instance) == {}, (alerts_of(instance), last_lines(own.log))
        judge(instance, load, published, own.public)


@contextmanager
def sealer_of(instance: Instance) -> Iterator[Sealing]:
    """The sealer of an instance, stopped in the end."""
    sealing = Sealing(instance)
    try:
        yield sealing
    finally:
        sealing.stop()


def journals(instance: Instance) -> dict[str, str]:
    """The files of journals that still have something in them, by name."""
    folder = Path(instance.environment["MUNIMENT_VAR"]) / "batches"
    return {path.name: text for path in folder.glob("*.log") if (text := path.read_text())}


def alerts_of(instance: Instance) -> list[tuple[str, ...]]:
    """Every alert that was raised: kind, about, words."""
    with psycopg.connect(instance.environment["DATABASE_OWNER_URL"]) as connection:
        return connection.execute("SELECT kind, about, words FROM audit_alert ORDER BY id").fetchall()


def judge(instance: Instance, load: Load, published: Published, public: bytes) -> None:
    """The log is whole, the answers are in it, and each checkpoint is a prefix of it."""
    assert not load.faults
    assert set(load.refused) <= {503}
    instance.answers += [answer.body for answer in load.answers]
    instance.check()
    url = instance.environment["DATABASE_OWNER_URL"]
    with psycopg.connect(url) as connection:
        published.stored |= {note for (note,) in connection.execute("SELECT note FROM audit_checkpoint").fetchall()}
    roots = signed_roots(published.served | published.stored, public)
    leaves = [record.leaf for record in chain.records(url)]
    assert max(roots) == len(leaves), "not all is sealed"
    assert prefixes(roots, leaves) == []
    assert all(answer["receipt"]["index"] < max(roots) for answer in instance.answers)
    raised = alerts_of(instance)
    assert {kind for kind, _, _ in raised} <= {"sealing-late"}, raised
    assert published.served


def signed_roots(texts: set[str], public: bytes) -> dict[int, bytes]:
    """The root by size; each signed by the log's key, and never two for one size."""
    roots: dict[int, bytes] = {}
    for text in texts:
        found = checkpoints.read(text, [notes.Key(ORIGIN, notes.ED25519, public)])
        assert roots.setdefault(found.size, found.root) == found.root, f"two roots for {found.size} records"
    return roots


def prefixes(roots: dict[int, bytes], leaves: list[bytes]) -> list[int]:
    """The sizes at which the records do not give the root that was signed."""
    frontier, wrong = Frontier(), []
    for size in sorted(roots):
        frontier.extend(leaves[frontier.size : size])
        if frontier.root() != roots[size]:
            wrong.append(size)
    return wrong


@pytest.mark.timeout(240)
def test_a_kill_of_each_leaves_one_growing_tree_with_every_answer_in_it(instance: Instance) -> None:
    kill_and_check(instance, 5)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_kills(instance: Instance) -> None:
    kill_and_check(instance, 100)


def test_the_check_itself_notices_a_root_that_is_not_the_records() -> None:
    leaves = [bytes([number]) * 32 for number in range(9)]
    frontier = Frontier()
    frontier.extend(leaves[:5])
    good = frontier.root()
    assert prefixes({5: good}, leaves) == []
    assert prefixes({5: good, 7: good}, leaves) == [7]
    assert prefixes({5: good}, leaves[1:]) == [5]
