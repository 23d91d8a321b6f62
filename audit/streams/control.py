"""How streams do, for pages; and what staff may do about them: pause one, let it go on, and have dead letters sent
again or let go. Each is a change of a row, that the worker heeds, and a record."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet, Value
from django.db.models.functions import Concat
from django.utils import timezone

from audit.log_health import written_at
from audit.models import DeadLetter, Stream
from audit.staff_log import tell
from audit.streams.delivering import sealed_end

GONE = timedelta(minutes=10)
"""Without a sign of its configuration for so long, a stream is nobody's any more, or no worker runs."""
MOST_LETTERS = 1000  # that are counted


class StreamError(Exception):
    """It cannot be done; the message is for the person who asked."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How one stream does: `state` is sending, waiting, failing, paused or gone; `lag` counts the sealed records that
    it has not got, `since` is when the oldest of them was written; `letters` counts open dead letters."""

    stream: Stream
    state: str
    lag: int
    since: datetime | None
    letters: int

    def seconds(self, now: datetime) -> float:
        """How far it is behind in time; 0 where it has all."""
        return max(0.0, (now - self.since).total_seconds()) if self.since else 0.0


def standings() -> list[Standing]:
    """How each stream does, by name. A few queries by index for each."""
    end, now = sealed_end(), timezone.now()
    return [standing(stream, end, now) for stream in Stream.objects.order_by("name")]


def standing(stream: Stream, end: int, now: datetime) -> Standing:
    """How one stream does, where `end` is the index behind the newest sealed record."""
    lag = max(0, end - stream.next)
    letters = len(open_letters(stream.name)[:MOST_LETTERS].values_list("pk"))
    return Standing(stream, _state(stream, lag, now), lag, written_at(stream.next) if lag else None, letters)


def _state(stream: Stream, lag: int, now: datetime) -> str:
    if now - stream.seen_at > GONE:
        return "gone"
    if stream.paused_at is not None:
        return "paused"
    if stream.failures:
        return "failing"
    return "sending" if stream.sent_at is not None or stream.tried_at is not None else "waiting"


def open_letters(name: str) -> QuerySet[DeadLetter]:
    """Dead letters of a stream that are neither taken nor let go, in their order."""
    return DeadLetter.objects.filter(stream=name, settled_at=None).order_by("index")


def pause(user: Any, name: str, reason: str) -> None:
    """Have a stream send nothing until it is resumed. Nothing is lost: it goes on where it was. Raises
    PermissionDenied, StreamError."""
    who = _may(user)
    with transaction.atomic():
        stream = _locked(name)
        if stream.paused_at is not None:
            raise StreamError("It is paused already.")
        stream.paused_at = timezone.now()
        stream.save(update_fields=["paused_at"])
        tell(*who, "stream.paused", {"reason": reason}, stream=name, next=stream.next)


def resume(user: Any, name: str) -> None:
    """Let a paused stream go on where it was. Raises as `pause`."""
    who = _may(user)
    with transaction.atomic():
        stream = _locked(name)
        if stream.paused_at is None:
            raise StreamError("It is not paused.")
        stream.paused_at = stream.retry_at = stream.failing_since = None
        stream.save(update_fields=["paused_at", "retry_at", "failing_since"])
        tell(*who, "stream.resumed", stream=name, next=stream.next)


def send_again(user: Any, name: str, letter: int | None) -> int:
    """Have one dead letter, or all that are open (None), sent again with the worker's next run; how many. Raises as
    `pause`."""
    who = _may(user)
    with transaction.atomic():
        _locked(name)
        found = _letters(name, letter).filter(asked_at=None)
        records = _told(found)
        count = found.update(asked_at=timezone.now())
        if not count:
            raise StreamError("It is asked for already, or was settled meanwhile.")
        tell(*who, "stream.retried", stream=name, count=count, indices=records)
    return count


def let_go(user: Any, name: str, letter: int) -> None:
    """Never send a dead letter: the receiver will not have that record. Raises as `pause`."""
    who = _may(user)
    with transaction.atomic():
        _locked(name)
        found = _letters(name, letter)
        records = _told(found)
        if not found.update(settled_at=timezone.now(), asked_at=None, words=Concat(Value("let go: "), "words")):
            raise StreamError("It was settled meanwhile.")
        tell(*who, "stream.skipped", stream=name, count=1, indices=records)


def _letters(name: str, letter: int | None) -> QuerySet[DeadLetter]:
    found = open_letters(name)
    return found if letter is None else found.filter(pk=letter)


def _told(found: QuerySet[DeadLetter]) -> Sequence[int]:
    """The indices of the first of them, as a record names them."""
    return list(found.values_list("index", flat=True)[:100])


def _locked(name: str) -> Stream:
    stream = Stream.objects.select_for_update().filter(name=name).first()
    if stream is None:
        raise StreamError("There is no such stream.")
    return stream


def _may(user: Any) -> tuple[str, str]:
    """Who acts, as the log names staff and as people do. Raises PermissionDenied for who may not."""
    if not (user.is_active and user.is_staff and user.has_perm("audit.change_stream")):
        raise PermissionDenied
    return f"staff:{user.pk}", (user.get_full_name() or user.get_username())[:150]
