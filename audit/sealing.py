"""The sealer: reads what the writers committed, checks it, grows the tree and signs checkpoints (DESIGN.md section 6,
Sealing).

In this order: verify, the leaves to the disk, the state to the disk, then tiles and checkpoint to the database in one
transaction. So whatever a crash cuts off, nothing is signed that the state does not know, and the same checkpoint is
published again. What does not hold is a `Halt`: the sealer signs nothing on top of it.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.db import Error, close_old_connections

from audit import alerts, anchors, keys
from audit.anchors import AnchorError
from audit.models import Log
from audit.seal_reading import Page, check, examine, halt, log_origin, signer, unaccounted
from audit.seal_session import Session
from audit.seal_state import Halt, Mark, Passing, Refused, State, StateBroken, StateDir
from muniment import checkpoints
from muniment.checkpoints import Checkpoint, CheckpointError
from muniment.examine import Examiner
from muniment.keys import Trust, thumbprint
from muniment.tiles import Builder

logger = logging.getLogger(__name__)

PAGE = 16_384  # records between two checkpoints of a backlog
EVERY, AGAIN, ALIVE = 1.0, 5.0, 5.0  # seconds: between steps, after a halt, between signs of life
TICK = 0.1
TILES_AT_ONCE = 256
ANCHORED = 20  # newest checkpoints of each anchor


@dataclass(slots=True)
class _Held:
    """The state as it was read, and what grows from it in memory."""

    mark: Mark | None
    state: State
    builder: Builder
    examiner: Examiner


class Sealer:
    """One sealer. Of several on one database only one is active: it holds a lock of its session, and its folder for
    each page. `step` does what there is to do; `run` does so for ever."""

    def __init__(
        self,
        connect: Callable[[], psycopg.Connection],
        private: Ed25519PrivateKey,
        directory: StateDir,
        origin: str,
        page: int = PAGE,
    ) -> None:
        self.session, self.private, self.directory, self.origin = Session(connect), private, directory, origin
        self.public = keys.public_of(private)
        self.key_id = thumbprint(self.public)
        self.page = page
        self.stopping = False  # set it, from a signal handler say, and `run` returns
        self.active = False
        self.host = f"{socket.gethostname()} (process {os.getpid()})"
        self._held: _Held | None = None
        self._trouble: bool | None = None  # whether halted; None: not known yet
        self._seen, self._said = 0.0, ""

    def step(self) -> int:
        """Seal what there is; how many records. 0 also where another sealer is active (`active` tells). Raises Halt,
        Refused, and psycopg's or Django's errors when the database is away."""
        sealed = 0
        while count := self._turn():
            sealed += count
            if self.stopping:
                break
        return sealed

    def run(self) -> None:
        """Step each second until `stopping` is set. Raises Refused alone: a Halt is told and looked at again, and a
        database that is away is waited for."""
        away = False
        while not self.stopping:
            pause = EVERY
            try:
                close_old_connections()
                self.step()
                away = False
            except Halt as found:
                self.tell(found)
                pause = AGAIN
            except (psycopg.DataError, psycopg.ProgrammingError, psycopg.IntegrityError) as error:
                words = f"the log's tables are not as they must be ({type(error).__name__})"
                self.tell(Halt("database-differs", words))
                pause = AGAIN
            except (psycopg.Error, Error) as error:
                if not away:
                    logger.warning("the database is away (%s); trying again each second", type(error).__name__)
                away = True
                self.session.close()
            until = time.monotonic() + pause
            while not self.stopping and time.monotonic() < until:
                time.sleep(TICK)

    def close(self) -> None:
        """Give up the database; another sealer takes over."""
        self.session.give_up()
        self._held = None

    # --- what people see ----------------------------------------------------------------------------------

    def tell(self, halt: Halt) -> None:
        """Log a halt, raise its alert, say it in the status and in the folder."""
        logger.error("sealing has stopped: %s", halt)
        self._trouble = True
        self.directory.halt({"cause": halt.cause, "words": halt.words, "index": halt.index, "at": int(time.time())})
        try:
            for alert in alerts.open_alerts():
                if alert.kind == "sealer-halted" and alert.about != halt.cause:
                    alerts.clear("sealer-halted", alert.about)
            alerts.raise_alert("sealer-halted", halt.cause, halt.words)
            self.session.status("halted", f"{halt.cause}: {halt.words}", self.host)
        except (psycopg.Error, Error) as error:
            logger.warning("the halt could not be told: %s", type(error).__name__)

    def _well(self, state: str = "active", words: str = "") -> None:
        """All is as it should be: end the alert, and give a sign of life now and then."""
        if self._trouble is not False:
            alerts.clear("sealer-halted")
            self.directory.halt(None)
            if self._trouble:
                logger.info("sealing goes on")
        if self._trouble is not False or state != self._said or time.monotonic() - self._seen > ALIVE:
            self.session.status(state, words, self.host)
            self._seen, self._said = time.monotonic(), state
        self._trouble = False

    # --- one page -----------------------------------------------------------------------------------------

    def _turn(self) -> int:
        self.active = self.session.hold()
        if not self.active:
            return 0
        with self.directory.lock() as ours:
            if not ours:  # somebody closes the log just now, say
                return 0
            try:
                count = self._page()
                self._well(*(("closed", "the log is closed") if self._held and self._held.state.closed else ()))
                return count
            except BaseException as error:
                self._held = None  # what memory holds may be ahead of the files
                if isinstance(error, StateBroken):
                    raise Halt("state-broken", str(error)) from None
                raise

    def _page(self) -> int:
        held = self._load()
        state = held.state
        if state.closed:
            return 0
        look = self.session.look(state)
        check(state, look)
        newest = self.session.newest(state.log)
        goal = self._goal(held, newest)
        state = held.state
        if goal is None:
            self._entitled(state)
            self._republish(state, newest)
        upto = look.next if goal is None else state.start + goal
        if upto > look.next:
            if newest is not None and newest.size == goal:
                self._verified(state, newest)  # says so, if nobody trusted signed it
            raise Halt("rollback", f"a checkpoint was signed over {goal:,} records; the log has {look.next:,}")
        if upto == state.next:
            return 0
        found = self._read(held, upto, newest)
        self._keep(held, found, signing=goal is None)
        return len(found.leaves)

    def _keep(self, held: _Held, found: Page, signing: bool) -> None:
        """Leaves, state, database: in this order."""
        state = self._advanced(held, found, signing)
        self._append(held.state, found.leaves)
        self._save(held, state)
        if signing:
            self._publish(state, state.root, found.tiles)

    def _read(self, held: _Held, upto: int, newest: Passing | None) -> Page:
        """Examine the next page, comparing with each checkpoint on the way."""
        state = held.state
        if not state.writers:  # the key of the first write batch is trusted on first use
            held.examiner.meet(self.session.published("writer"))
        sizes = {passing.size: passing for passing in state.must}
        if newest is not None and newest.size > state.size:
            between = self.session.between(state.log, state.size, min(newest.size, state.size + 2 * self.page))
            sizes |= {passing.size: passing for passing in between}
        return examine(self.session, state, held.builder, held.examiner, min(upto, state.next + self.page), sizes, upto)

    def _advanced(self, held: _Held, found: Page, signing: bool) -> State:
        """The state after a page."""
        state, examiner = held.state, held.examiner
        trust, size = examiner.trust, held.builder.size
        reading = bool(found.gaps or state.gaps or state.must)
        new = replace(
            state, size=size, root=held.builder.root(), edge=dict(held.builder.edge), batch=found.batch,
            digest=found.digest, at=examiner.at, writers=dict(trust.writers), logs=dict(trust.logs),
            retired=tuple(sorted(trust.retired)), must=tuple(p for p in state.must if p.size > size),
            gaps=state.gaps + tuple(found.gaps), retained=tuple(examiner.retained) if reading else (),
        )  # fmt: skip
        for passing, root in found.passed:
            if passing.root != root:
                self._compare(new, passing, root)
            elif self._is_signed(new, passing):  # else by a key of the time before this one was introduced
                new = replace(new, sealed=passing.size, note=passing.note)
        if not signing:
            return new
        if gap := unaccounted(new):
            raise Halt("record-missing", f"{gap[1]:,} records from {gap[0]:,} on are gone, and no retention record"
                       " accounts for them", gap[0])  # fmt: skip
        note = checkpoints.sign(Checkpoint(state.origin, size, new.root), self.private)
        return replace(new, sealed=size, note=note, gaps=(), retained=())

    def _append(self, state: State, leaves: Sequence[bytes]) -> None:
        self.directory.append(state.size, leaves)

    def _save(self, held: _Held, state: State) -> None:
        self.directory.write(state)
        held.state, held.mark = state, self.directory.mark()

    def _publish(self, state: State, root: bytes, tiles: dict[tuple[int, int], bytes]) -> None:
        try:
            same = self.session.publish(state, root, tiles, signer(state), self.host)
        except psycopg.errors.InsufficientPrivilege:
            raise Halt("tile-differs", "the database holds a tile of the tree that is not ours") from None
        if not same:
            raise Halt("fork", f"the database holds another checkpoint of {state.sealed:,} records")
        self._seen = time.monotonic()

    def _republish(self, state: State, newest: Passing | None) -> None:
        """The state's checkpoint, where a crash kept it back; it must be the newest of the database."""
        there = newest.size if newest else 0
        if newest and there == state.sealed and newest.note != state.note:
            self._verified(state, newest)  # says so, if nobody trusted signed it
            raise Halt("fork", f"another root was signed for the first {there:,} records")
        if there >= state.sealed:
            return
        logger.warning("publishing the checkpoint of %d records again", state.sealed)
        tiles = self.directory.tiles(state, there)
        try:
            while group := dict(islice(tiles, TILES_AT_ONCE)):
                self.session.tiles(state.log, group)
        except psycopg.errors.InsufficientPrivilege:
            raise Halt("tile-differs", "the database holds a tile of the tree that is not ours") from None
        self._publish(state, self._sealed(state).root, {})

    # --- the state ----------------------------------------------------------------------------------------

    def _load(self) -> _Held:
        """The state, read anew when another process wrote it."""
        mark = self.directory.mark()
        if self._held is not None and mark is not None and self._held.mark == mark:
            return self._held
        state = self.directory.read()
        if state is None:
            state = self._genesis()
        if state.origin != (wrong := log_origin(self.origin, state.log)):
            raise Refused(f"the log's name is {state.origin} for ever; MUNIMENT_LOG_ORIGIN makes it {wrong}")
        try:
            builder = Builder(state.size, state.edge)
        except ValueError:
            raise StateBroken("state.json does not hold the tree's edge") from None
        if builder.root() != state.root:
            raise StateBroken("state.json does not hold the tree's edge")
        if state.size:
            self.directory.leaves(state.size - 1, 1)
        self._held = _Held(self.directory.mark(), state, builder, self._examiner(state))
        return self._held

    def _examiner(self, state: State) -> Examiner:
        trust = Trust(writers=dict(state.writers), logs=dict(state.logs), retired=set(state.retired))
        examiner = Examiner(trust, halt, first_use=state.next == 0, deep=False)
        examiner.next, examiner.previous, examiner.at = state.next, state.digest, state.at
        examiner.retained = list(state.retained)
        return examiner

    def _genesis(self) -> State:
        """The state of a log that was never sealed: with an own key, which nobody had to introduce."""
        if self.session.has_checkpoints():
            raise Refused(f"{self.directory.path} holds no state, but the log was sealed before: start it from an"
                          " anchored checkpoint: seal --from FILE")  # fmt: skip
        try:
            for name, _ in anchors.held(self.origin, 1):
                raise Refused(f"{self.directory.path} holds no state, and neither does the database, but {name} holds a"
                              " checkpoint of this log: get both back, or give the log another name")  # fmt: skip
        except AnchorError as error:
            raise Refused(f"whether this log was sealed before cannot be told: {error}") from None
        state = State(1, self.origin, 0, logs={self.key_id: self.public})
        self.directory.write(state)
        keys.publish(self.private, "log")
        return state

    def start_from(self, note: str) -> None:
        """Begin without a state: all records are read again, and must lead to this checkpoint and to every one of
        the database before anything is signed. Raises Refused."""
        if not self.session.hold():
            raise Refused("another sealer is active on this database; stop it first")
        if Log.objects.filter(number__gt=1).exists():
            raise Refused("--from reads the first log, and another was opened here: put back a copy of the state")
        with self.directory.lock() as ours:
            state = self.directory.read() if ours else None
            if not ours or (state is not None and not state.must):
                raise Refused(f"{self.directory.path} holds the state of a sealer: --from is for a start without one")
            try:
                given = checkpoints.read(note, Trust(logs={self.key_id: self.public}).log_keys(self.origin))
            except CheckpointError as error:
                raise Refused(f"the checkpoint cannot be used with this log key and origin: {error}") from None
            state = State(1, self.origin, 0, logs={self.key_id: self.public})
            must = {given.size: Passing(given.size, given.root, note)} if given.size else {}
            self.directory.write(replace(state, must=tuple({**self._anchored(state), **must}.values())))
        keys.publish(self.private, "log")

    def _anchored(self, state: State) -> dict[int, Passing]:
        """What anchors hold that our key signed: the records must lead there, too."""
        found = {}
        try:
            for _, note in anchors.held(state.origin, ANCHORED):
                with suppress(CheckpointError):  # by an earlier key, perhaps
                    read = checkpoints.read(note, Trust(logs=state.logs).log_keys(state.origin))
                    found[read.size] = Passing(read.size, read.root, note)
        except AnchorError as error:
            logger.warning("%s", error)
        return found

    def _entitled(self, state: State) -> None:
        """Our key must be one that the log introduced, and did not retire."""
        if self.key_id not in state.logs or self.key_id in state.retired:
            raise Refused(f"the log key {self.key_id} was not introduced in the log, or was retired there: with the key"
                          " before it, run `manage.py key announce log PUBLIC`, wait until that is sealed, then start"
                          " with the new one")  # fmt: skip

    def _sealed(self, state: State) -> Checkpoint:
        try:
            return checkpoints.read(state.note, Trust(logs=state.logs).log_keys(state.origin))
        except CheckpointError as error:
            raise StateBroken(f"the checkpoint in state.json: {error}") from None

    # --- checkpoints of others: our own, made with another copy of the state -------------------------------

    def _goal(self, held: _Held, newest: Passing | None) -> int | None:
        """The size up to which records are only read again, because it was signed already; None when there is none."""
        state = held.state
        if newest is not None and newest.size > state.sealed:
            if newest.size <= state.size:
                self._compare(state, newest, self.directory.root(newest.size))
                held.state = state = replace(state, sealed=newest.size, note=newest.note)
            elif newest not in state.must and self._is_signed(state, newest):
                held.state = state = replace(state, must=(*state.must, newest))
        sizes = [passing.size for passing in state.must if passing.size > state.size]
        if newest is not None and newest.size > state.size:
            sizes.append(newest.size)
        return max(sizes, default=None)

    def _compare(self, state: State, passing: Passing, root: bytes) -> None:
        """A stored checkpoint against the root that the records give at its size."""
        if self._verified(state, passing).root != root or passing.root != root:
            words = f"the records do not give the root that was signed for the first {passing.size:,} of them"
            raise Halt("fork", words)

    def _verified(self, state: State, passing: Passing) -> Checkpoint:
        """A stored checkpoint, which a trusted log key must have signed."""
        try:
            read = checkpoints.read(passing.note, Trust(logs=state.logs).log_keys(state.origin))
        except CheckpointError as error:
            raise Halt("checkpoint-untrusted", f"the checkpoint of {passing.size:,} records: {error}") from None
        if read.size != passing.size:
            raise Halt("checkpoint-untrusted", f"the checkpoint of {passing.size:,} records is of another size")
        return read

    def _is_signed(self, state: State, passing: Passing) -> bool:
        try:
            self._verified(state, passing)
        except Halt:  # perhaps by a key that the records up to it introduce; judged when they are read
            return False
        return True
