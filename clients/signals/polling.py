"""Polling of transmitters (RFC 8936), by one web process at a time: only these can meet users and open the tokens with
which we poll. An event is acknowledged once its effect has committed; one that comes again is taken once."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Event, Thread
from typing import Any, Final

from django.conf import settings
from django.db import Error, connections
from django.db.models import Q
from django.db.models.functions import Now

from audit.alone import alone
from clients.fetching import JSON, FetchError, post
from clients.models import SignalStream
from clients.signals import applying, credentials, keys
from clients.signals.sets import MAX_SET, MAX_TEXT, SetRefused
from clients.strictjson import parse_object

logger = logging.getLogger(__name__)

LOCK: Final = 0x6D756E73  # a class of advisory locks
AT_ONCE: Final = 20  # events of one answer
# Answers in one turn, and seconds, so that a transmitter without end, or a slow one, keeps no other waiting.
ROUNDS: Final = 20
TURN: Final = 20.0
TIMEOUT: Final = 10.0  # seconds for one exchange
BACKOFF: Final = 60.0  # seconds after a poll that failed
IDLE: Final = 30.0  # seconds between looks while there is nothing to poll
MAX_ERROR: Final = 250
FAILED: Final = "polling: "  # how an error begins that the next good poll ends


@dataclass(slots=True)
class Turn:
    """What is to be told the transmitter at the next exchange: what was taken, and what was refused and why."""

    ack: list[str] = field(default_factory=list)
    errors: dict[str, dict[str, str]] = field(default_factory=dict)
    taken: int = 0


def poll(stream: SignalStream) -> int | None:
    """Ask a stream's transmitter until it has nothing more to say; how many events were taken. None while another
    process is at it. Raises FetchError when the transmitter cannot be asked; what it was not told is told next time."""
    with alone(LOCK, stream.pk) as mine:
        if not mine:
            return None
        turn, until = Turn(), time.monotonic() + TURN
        for number in range(ROUNDS):
            last = number == ROUNDS - 1 or (number > 0 and time.monotonic() > until)  # which asks for nothing more
            sets, more = _exchange(stream, turn, 0 if last else AT_ONCE)
            for name, token in sets.items():
                _take(stream, name, token, turn)
            if last or not (turn.ack or turn.errors or (more and sets)):
                break
        return turn.taken


def _exchange(stream: SignalStream, turn: Turn, most: int) -> tuple[dict[str, Any], bool]:
    """One request (section 2.4) and its answer (2.5): the event tokens by their names, and whether there are more.
    Raises FetchError; what was to be told stays in the turn then."""
    asked: dict[str, Any] = {"maxEvents": most, "returnImmediately": True, "ack": turn.ack}
    if turn.errors:
        asked["setErrs"] = turn.errors
    token = credentials.poll_token(stream)
    answer = post(
        stream.poll_endpoint or "",
        json.dumps(asked).encode(),
        JSON,
        authorization=None if token is None else f"Bearer {token}",
        timeout=TIMEOUT,
        max_bytes=AT_ONCE * MAX_SET + 64 * 1024,
        **keys.reach(stream),
    )
    turn.ack, turn.errors = [], {}
    try:
        said = parse_object(answer.body)
    except ValueError as error:
        raise FetchError(f"the answer is of no use: {error}") from None
    sets = said.get("sets", {})
    if not isinstance(sets, dict) or len(sets) > AT_ONCE:
        raise FetchError("the answer has no sets, or more than were asked for")
    return (sets if most else {}), said.get("moreAvailable") is True


def _take(stream: SignalStream, name: str, token: Any, turn: Turn) -> None:
    """Verify and apply one event, and note what to tell of it. One that can't be judged now is told nothing of, so
    that it comes again."""
    if not name or len(name) > MAX_TEXT:
        return  # no jti that could be told of
    try:
        if not isinstance(token, str):
            raise SetRefused("invalid_request", "the event token is no text")
        event = keys.verified(stream, token, time.time())
        if event.jti != name:
            raise SetRefused("invalid_request", "jti is another than the name under which it was sent")
        applying.take(stream, event, time.time())
        turn.ack.append(name)
        turn.taken += 1
    except SetRefused as refused:
        turn.errors[name] = {"err": refused.code, "description": refused.detail}
        note_refused(stream, refused)
    except (keys.KeysUnavailable, applying.Vanished):
        logger.warning("an event of signal stream %s can't be judged now", stream.pk)


def note_refused(stream: SignalStream, refused: SetRefused) -> None:
    """Show at the stream that an event was refused, and why."""
    words = f"an event was refused ({refused.code}): {refused.detail}"[:MAX_ERROR]
    SignalStream.objects.filter(pk=stream.pk).update(error=words)


def poll_due(interval: float) -> bool:
    """Poll each enabled stream whose turn it is; whether there is any stream to poll at all."""
    polled = SignalStream.objects.filter(enabled=True, delivery="poll")
    for stream in polled.select_related("issuer"):
        wait = BACKOFF if stream.error.startswith(FAILED) else interval
        due = Q(polled_at=None) | Q(polled_at__lt=Now() - timedelta(seconds=wait))
        # The claim of this turn: of two processes one has it.
        if polled.filter(due, pk=stream.pk).update(polled_at=Now()):
            _poll_noting(stream)
    return polled.exists()


def _poll_noting(stream: SignalStream) -> None:
    mine = SignalStream.objects.filter(pk=stream.pk)
    try:
        poll(stream)
        mine.filter(error__startswith=FAILED).update(error="")
    except FetchError as error:
        logger.warning("signal stream %s could not be polled: %s", stream.pk, error)
        mine.update(error=f"{FAILED}{error}"[:MAX_ERROR])
    except Error:
        raise
    except Exception:
        # What one strange transmitter can trigger must not stop the others.
        logger.exception("polling signal stream %s failed unexpectedly", stream.pk)
        mine.update(error=f"{FAILED}it failed unexpectedly; the process's log says more")


def begin(may: Callable[[], bool], ended: Event | None = None) -> Thread:
    """Poll from now on, in a thread of this process, whenever `may` says that the process serves."""
    ended = ended or Event()

    def work() -> None:
        while not ended.is_set():
            wait = IDLE
            try:
                if may() and poll_due(settings.MUNIMENT_SIGNAL_POLL_SECONDS):
                    wait = settings.MUNIMENT_SIGNAL_POLL_SECONDS
                else:
                    connections.close_all()  # most instances have no stream, and so need no connection for them
            except Error:  # /readyz says that the database is away
                connections.close_all()
            except Exception:
                logger.exception("polling for signals failed unexpectedly")
            ended.wait(wait)
        connections.close_all()

    thread = Thread(target=work, name="signals", daemon=True)
    thread.start()
    return thread
