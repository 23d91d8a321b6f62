"""From one log to the next, after a loss that nothing brings back (DESIGN.md section 6, Sealing).

Two members of staff close the log: nothing is sealed any more. Two open the next one. Its first record says what the
old one had sealed, how much of it is left, with the proof that this was its beginning, and what is lost; the records
between what is left and that first record are adopted as they are, with a word on what is wrong with them.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import islice
from typing import Any

import psycopg
from django.contrib.auth import authenticate
from django.utils import timezone

from audit import alerts
from audit.models import Batch, Log, Outbox, PublishedKey, Record, SealerStatus
from audit.seal_reading import log_origin, signer
from audit.seal_session import Session
from audit.seal_state import Refused, State, StateDir
from muniment import merkle
from muniment.examine import Entry, Examiner
from muniment.findings import Finding
from muniment.keys import Trust
from muniment.merkle import Frontier
from muniment.tiles import Tree

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
PIECE = 1024  # records at once
TILES_AT_ONCE = 256
MOST_FAULTS = 100
PATIENCE, NOTICED = 30.0, 3.0  # seconds
PERMISSION = "audit.change_log"


@dataclass(frozen=True, slots=True)
class Person:
    """A member of staff who may close and open logs, and showed it by a password."""

    actor: str
    name: str


def person(username: str, password: str) -> Person:
    """Refused, without a word of which it was, unless the password is right and the person may do this."""
    user: Any = authenticate(username=username, password=password)
    if user is None or not (user.is_active and user.is_staff and user.has_perm(PERMISSION)):
        raise Refused(f"{username}: the password is wrong, or this person may not close and open logs")
    return Person(f"staff:{user.pk}", user.get_full_name() or user.get_username())


def two(people: Sequence[Person]) -> list[str]:
    """Their ids. Refused where they are not two different ones."""
    actors = [one.actor for one in people]
    if len(set(actors)) != 2 or len(actors) != 2:
        raise Refused("it takes two different people")
    return actors


@contextmanager
def _ours(directory: StateDir) -> Iterator[None]:
    """The folder, when the sealer lets go of it between two pages. Refused when it does not."""
    until = time.monotonic() + PATIENCE
    while True:
        with directory.lock() as ours:
            if ours:
                yield
                return
        if time.monotonic() > until:
            raise Refused(f"another process is at work in {directory.path}")
        time.sleep(0.02)


def close(directory: StateDir, people: Sequence[Person], reason: str) -> State:
    """Close the log: its sealer signs nothing any more. Refused where there is nothing to close."""
    actors = two(people)
    with _ours(directory):
        state = directory.read()
        if state is None or not state.sealed:
            raise Refused("nothing is sealed yet, so there is no log to close")
        if state.size != state.sealed:
            raise Refused("the log is being read anew; it can be closed when that is done")
        if state.closed:
            raise Refused("the log is closed already")
        state = replace(state, closed=tuple(actors))
        directory.write(state)
    _notice({"action": "log.close", "log": state.log, "by": actors}, people, reason)
    return state


def accept(directory: StateDir, key_id: str) -> None:
    """Trust a published writer key that no other introduced, because the one before it is lost. Refused where there is
    no such key."""
    key = PublishedKey.objects.filter(key_id=key_id, use="writer").first()
    if key is None:
        raise Refused("no writer key of this id is published (manage.py key list)")
    with _ours(directory):
        state = directory.read()
        if state is None:
            raise Refused(f"no state in {directory.path}: the first writer key is trusted without this")
        if key_id in state.retired:
            raise Refused("this key was retired; give the web processes a new one")
        directory.write(replace(state, writers=state.writers | {key_id: bytes(key.public)}))
    _notice({"action": "key.accepted", "use": "writer", "key_id": key_id}, [], "")


def open_next(
    directory: StateDir, session: Session, origin: str, people: Sequence[Person], reason: str, wait: float = PATIENCE
) -> State:
    """Open the next log, and return its state, of which nothing is sealed yet. `origin` is that of log 1. Needs a web
    process, which writes the record that opens it, for at most `wait` seconds. Refused when it cannot be done; then it
    can be tried again."""
    actors = two(people)
    with _ours(directory):
        old = directory.read()
        if old is None or not old.closed:
            raise Refused("the log is not closed: seal --close comes first")
        _alone(session)
        kept = _kept(directory, session, old)
        _republish(directory, session, old)
        members = _opening(directory, old, kept, log_origin(origin, old.log + 1), actors)
        start = _recorded(members, people, reason, wait)
        state = _adopt(session, old, old.start + kept, start, members)
        Log.objects.get_or_create(
            number=state.log, defaults={"origin": state.origin, "start": start, "opened_at": timezone.now()}
        )
        Log.objects.filter(number=old.log, closed_at=None).update(closed_at=timezone.now())
        directory.next_log(state, old.log)
    alerts.clear("batch-missing")
    return state


def _alone(session: Session) -> None:
    """Refused unless the active sealer, if there is one, has stood still: it says so within a second or two."""
    until = time.monotonic() + NOTICED
    while not session.hold() and not SealerStatus.objects.filter(state="closed").exists():
        if time.monotonic() > until:
            raise Refused("a sealer with another state is active on this database")
        time.sleep(0.05)


# --- what is left ---------------------------------------------------------------------------------------------


def _kept(directory: StateDir, session: Session, old: State) -> int:
    """How many leaves of the old log, from its first, the database still gives."""
    excused = _excused(directory, old)
    for first in range(0, old.size, PIECE):
        count = min(PIECE, old.size - first)
        leaves = directory.leaves(first, count)
        low = old.start + first
        found = {index: merkle.leaf_hash(statement) for index, statement, _ in session.records(low, low + count)}
        for leaf, expected in enumerate(leaves, first):
            index = old.start + leaf
            gone = index not in found and any(at <= index < at + size for at, size in excused)
            if found.get(index) != expected and not gone:
                return leaf
    return old.size


def _excused(directory: StateDir, old: State) -> list[tuple[int, int]]:
    """What retention deleted, as far as records say so that were sealed and are as they were."""
    examiner = Examiner(Trust(), lambda finding: None, deep=False)
    rows = Record.objects.filter(type="retention", index__gte=old.start, index__lt=old.next).order_by("index")
    for index, statement in rows.values_list("index", "statement"):
        if [merkle.leaf_hash(bytes(statement))] == directory.leaves(index - old.start, 1):
            examiner.context(index, bytes(statement))
    return examiner.retained


def _republish(directory: StateDir, session: Session, old: State) -> None:
    """All tiles and the last checkpoint of the old log, as they were before the loss."""
    tiles = directory.tiles(old, 0)
    try:
        while group := dict(islice(tiles, TILES_AT_ONCE)):
            session.tiles(old.log, group)
    except psycopg.errors.InsufficientPrivilege:
        raise Refused("the database holds tiles of the closed log that are not ours; move them away first") from None
    if not session.republish(old, signer(old)):
        raise Refused("the database holds another last checkpoint of the log that is closed")


# --- the record that opens the next log -----------------------------------------------------------------------


def _opening(directory: StateDir, old: State, kept: int, origin: str, actors: list[str]) -> dict[str, Any]:
    """The members of the statement."""
    tree = Tree(old.size, lambda level, index: directory.tile(old, level, index))
    consistency = tree.consistency(kept) if 0 < kept < old.size else []
    root = tree.frontier(kept).root()
    lost = [[old.start + kept, old.size - kept]] if kept < old.size else []
    return {
        "action": "log.open", "log": old.log + 1, "origin": origin,
        "previous": {
            "log": old.log, "origin": old.origin, "size": old.size, "root": old.root.hex(),
            "checkpoint_sha256": sha256(old.note.encode()).hexdigest(),
        },
        "kept": {
            "first": 0, "size": kept, "root": root.hex(), "consistency": [one.hex() for one in consistency],
        },
        "lost": lost, "by": actors,
    }  # fmt: skip


def _notice(members: dict[str, Any], people: Sequence[Person], reason: str) -> Outbox:
    private = {"reason": reason, "names": [one.name for one in people]} if people else None
    actor = people[0].actor if people else "system"
    return Outbox.objects.create(
        kind="notice", members=members, private=private, at=timezone.now(), actor=actor, xact=""
    )


def _recorded(members: dict[str, Any], people: Sequence[Person], reason: str, wait: float) -> int:
    """Have the opening recorded; its index, at which the next log starts. One that an earlier try left is used."""
    found = Outbox.objects.filter(kind="notice", members=members).order_by("id").first()
    entry = found or _notice(members, people, reason)
    until = time.monotonic() + wait
    while entry.record_index is None:
        if time.monotonic() > until:
            raise Refused("no web process recorded the opening in time; start one, and run this again")
        time.sleep(0.05)
        entry.refresh_from_db()
    start = int(entry.record_index)
    if not Batch.objects.filter(first=start).exists():
        raise Refused(f"record {start:,}, which opens the log, does not begin a write batch; run this again")
    return start


# --- the records in between -----------------------------------------------------------------------------------


def _adopt(session: Session, old: State, first: int, start: int, opening: dict[str, Any]) -> State:
    """Look at the records from `first` to the next log's start, say what is wrong with them, and return the state
    that goes on behind them."""
    faults: list[Finding] = []
    trust = Trust(writers=dict(old.writers), logs=dict(old.logs), retired=set(old.retired))
    examiner = Examiner(trust, faults.append, deep=False)
    begin = Batch.objects.filter(first__lte=first).order_by("-first").first()
    examiner.next = begin.first if begin and first < begin.first + begin.size else first
    before = Batch.objects.filter(first__lt=examiner.next).order_by("-first").first()
    examiner.previous = bytes(before.digest) if before else bytes(32)
    frontier = Frontier()
    while examiner.next < start:
        at = examiner.next
        leaves = _examined(session, examiner, start, faults)
        frontier.extend(leaves[max(first - at, 0) :])
    notice = {
        "action": "log.adopted", "log": opening["log"], "first": first, "size": start - first,
        "root": frontier.root().hex(), "faults": [_fault(fault) for fault in faults[:MOST_FAULTS]],
    }  # fmt: skip
    if not Outbox.objects.filter(kind="notice", members=notice).exists():
        _notice(notice, [], "")
    last = Batch.objects.filter(first__lt=start).order_by("-first").first()
    return State(
        old.log + 1, opening["origin"], start, batch=last.first if last else None,
        digest=bytes(last.digest) if last else bytes(32), at=_time(start - 1) or examiner.at,
        writers=dict(trust.writers), logs=dict(trust.logs), retired=tuple(sorted(trust.retired)),
    )  # fmt: skip


def _examined(session: Session, examiner: Examiner, start: int, faults: list[Finding]) -> list[bytes]:
    """The next write batch, or the records up to it that have none; their leaf hashes."""
    at = examiner.next
    found = [batch for batch in session.batches(at, 1) if batch.first < start]
    batch = found[0] if found and found[0].first == at and at + found[0].size <= start else None
    end = at + batch.size if batch else min(found[0].first if found and found[0].first > at else start, at + PIECE)
    rows = {index: statement for index, statement, _ in session.records(at, end)}
    for index in range(at, end):
        if index not in rows:
            faults.append(Finding("record-missing", f"record {index:,} is gone", index))
    entries = [Entry(index, rows.get(index)) for index in range(at, end)]
    return examiner.batch(batch, entries) if batch else examiner.unsigned(entries)


def _time(index: int) -> int | None:
    at = Record.objects.filter(index=index).values_list("at", flat=True).first()
    return None if at is None else (at - EPOCH) // MICROSECOND


def _fault(fault: Finding) -> dict[str, Any]:
    return {"code": fault.code, "index": fault.index}
