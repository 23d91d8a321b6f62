"""How the log is, in words: the line at the top of every page, the card on the home page, the log page's sentences.

All of it is what the database says. Whoever holds the database could make it say anything: the proof is a bundle that
is verified elsewhere, and the log page says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import connection
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit import alerts
from audit.models import Alert, AnchorState, Batch, Checkpoint, Log, SealerStatus, Verification
from audit.templatetags.muniment import ago, lapse, number_words, when
from muniment.findings import counted

LATE = 10.0
"""Seconds that a record may wait to be sealed; the sealer looks every second."""
SILENT = 60.0
"""Seconds without a sign of the sealer's life after which the admin says so."""
OVERDUE = timedelta(days=2)
"""After which a verification, due every night, is missed."""
RECENT = 100
"""Verifications that are looked at for the newest of the whole log: days of hourly samples."""
SCOPES = {"full": "the whole log", "since": "the newer part of the log", "sample": "a sample"}

# One row, by primary keys and the newest end of two indexes: every page of the admin asks it.
PULSE = """
    SELECT clock_timestamp(), head.next, log.number, log.start, point.size, point.at, waiting.at,
        sealer.state, sealer.seen_at
    FROM audit_head head
    LEFT JOIN LATERAL (SELECT number, start FROM audit_log ORDER BY number DESC LIMIT 1) log ON true
    LEFT JOIN LATERAL (SELECT size, at FROM audit_checkpoint WHERE audit_checkpoint.log = log.number
        ORDER BY size DESC LIMIT 1) point ON true
    LEFT JOIN LATERAL (SELECT at FROM audit_batch
        WHERE first >= COALESCE(log.start, 0) + COALESCE(point.size, 0) ORDER BY first LIMIT 1) waiting ON true
    LEFT JOIN audit_sealerstatus sealer ON true"""


def kind_of(alert: Alert) -> alerts.Kind:
    """What an alert means and what to do; one of a kind that this version does not know has only its words."""
    return alerts.KINDS.get(alert.kind, alerts.Kind(alert.kind, ""))


@dataclass(frozen=True, slots=True)
class Pulse:
    """What every page shows of the log. `recorded` and `sealed` count records; `waiting_at` is the time of the oldest
    write batch that is not sealed."""

    now: datetime
    recorded: int
    log: int | None
    start: int
    size: int | None
    sealed_at: datetime | None
    waiting_at: datetime | None
    sealer: str | None
    sealer_at: datetime | None
    alerts: tuple[Alert, ...]

    @property
    def sealed(self) -> int:
        """The index behind the newest sealed record."""
        return self.start + (self.size or 0)

    @property
    def waiting(self) -> int:
        """Records that are not sealed yet."""
        return max(0, self.recorded - self.sealed)

    @property
    def late(self) -> bool:
        """Whether a record waits longer than it may."""
        return self.waiting_at is not None and (self.now - self.waiting_at).total_seconds() > LATE

    @property
    def silent(self) -> bool:
        """Whether the sealer gave no sign of life lately."""
        return self.sealer_at is not None and (self.now - self.sealer_at).total_seconds() > SILENT

    @property
    def state(self) -> str:
        """`alarm`, `attention` or `sound`."""
        if self.alerts or self.late or self.sealer == "halted" or self.recorded < self.sealed:
            return "alarm"
        return "sound" if self.size is not None and self.sealer == "active" and not self.silent else "attention"

    @property
    def words(self) -> str:
        """The line at the top."""
        if self.alerts:
            more = f", and {counted(len(self.alerts) - 1, 'more alert')}" if self.alerts[1:] else ""
            return f"{kind_of(self.alerts[0]).title}{more}"
        if self.recorded < self.sealed:
            return f"The database lacks {counted(self.sealed - self.recorded, 'record')} that were sealed"
        if self.sealer == "halted":
            return "Sealing has stopped"
        if self.late:
            return f"{counted(self.waiting, 'record')} not sealed in time"
        if self.sealer == "closed":
            return "The log is closed"
        return self._calm()

    def _calm(self) -> str:
        if not self.recorded:
            return "Nothing has been recorded yet"
        if self.size is None or self.sealed_at is None:
            return f"Not sealed yet: {counted(self.recorded, 'record')}"
        if self.state == "attention":
            last = f"last seen {ago(self.sealer_at, self.now)}" if self.sealer_at else "not running"
            return f"{counted(self.size, 'record')} sealed, but the sealer was {last}"
        return f"Log sound: {counted(self.size, 'record')} sealed, {ago(self.sealed_at, self.now)}"


def pulse() -> Pulse:
    """The log's pulse: two queries by index, whatever the size of the log."""
    with connection.cursor() as cursor:
        cursor.execute(PULSE)
        now, recorded, log, start, size, sealed_at, waiting_at, sealer, sealer_at = cursor.fetchone()
    told = tuple(alerts.open_alerts())
    return Pulse(now, recorded, log, start or 0, size, sealed_at, waiting_at, sealer, sealer_at, told)


@dataclass(frozen=True, slots=True)
class Sentence:
    """One line of what is known: `state` is passed, stopped or unknown."""

    state: str
    words: SafeString | str

    @property
    def mark(self) -> str:
        """What the sign before it says, to those who do not see it."""
        return {"passed": "In order", "stopped": "Not in order", "unknown": "To note"}[self.state]


@dataclass(frozen=True, slots=True)
class Health:
    """The log's soundness. `delay` is the time in seconds from the writing of the newest sealed record to its sealing;
    `anchored` is the index behind the newest record that any anchor holds, `places` how many hold that one, and
    `unanchored_at` the time of the one after. `verified` is the run that tells most (see `telling_run`)."""

    pulse: Pulse
    newest: Checkpoint | None
    delay: float | None
    anchors: tuple[AnchorState, ...]
    anchored: int
    places: int
    unanchored_at: datetime | None
    sealer: SealerStatus | None
    verified: Verification | None

    @property
    def unanchored(self) -> int:
        """Sealed records that no anchor holds yet."""
        return max(0, self.pulse.sealed - self.anchored)

    @property
    def sentences(self) -> list[Sentence]:
        """What is known, the most important first, each with what to do where something is to be done."""
        return [self._sealed(), *self._waiting(), self._sealing(), self._anchored(), self._verified()]

    def _sealed(self) -> Sentence:
        p = self.pulse
        if p.recorded < p.sealed:
            gone = counted(p.sealed - p.recorded, "record")
            return Sentence("stopped", f"The newest {gone} that were sealed are gone from the database.")
        if not p.recorded:
            return Sentence("unknown", "Nothing has been recorded yet, so there is nothing to seal.")
        if self.newest is None:
            return Sentence("unknown", f"Nothing is sealed yet of {counted(p.recorded, 'record')}.")
        size = self.newest.size
        where = f" in log {p.log}" if p.log != 1 else ""
        sealed = f"{counted(size, 'record')}{where} {'is' if size == 1 else 'are'} sealed"
        whole = "" if p.waiting else ", all that were written"
        delay = "" if self.delay is None else f", {lapse(self.delay)} after the newest record in it was written"
        signed = when(self.newest.at, seconds=True)
        words = "{}{}. The newest checkpoint was signed {}{}."
        return Sentence("passed", format_html(words, sealed, whole, signed, delay))

    def _waiting(self) -> list[Sentence]:
        p = self.pulse
        if not p.waiting or p.waiting_at is None:
            return []
        verb = "waits" if p.waiting == 1 else "wait"
        words = format_html(
            "{} {} to be sealed, the oldest written {}.",
            counted(p.waiting, "record"), verb, when(p.waiting_at, seconds=True),
        )  # fmt: skip
        return [Sentence("stopped" if p.late else "unknown", words)]

    def _sealing(self) -> Sentence:
        if self.sealer is None:
            return Sentence("unknown", "No sealer has run yet. Start one: manage.py seal.")
        seen, host = when(self.sealer.seen_at, seconds=True), self.sealer.host or "a machine without a name"
        match self.sealer.state:
            case "halted":
                words = "The sealer has stopped, on {}, {}: {} Run manage.py seal --explain there."
                return Sentence("stopped", format_html(words, host, seen, ended(self.sealer.words)))
            case "closed":
                words = "The log was closed, {}. Two people open the next: manage.py seal --open."
                return Sentence("stopped", format_html(words, seen))
        if self.pulse.silent:
            words = "The sealer on {} was last seen {}. Check that manage.py seal runs."
            return Sentence("stopped", format_html(words, host, seen))
        return Sentence("passed", format_html("The sealer runs on {}, seen {}.", host, seen))

    def _anchored(self) -> Sentence:
        if not self.places:
            words = "Not anchored anywhere yet: until it is, cutting off the end of the log could not be noticed."
            todo = "Set MUNIMENT_ANCHORS to a place that the database's administrator cannot reach."
            tried = "No place has taken a checkpoint: see what each one says."
            return Sentence("stopped" if self.anchors else "unknown", f"{words} {tried if self.anchors else todo}")
        failing = sum(1 for anchor in self.anchors if anchor.failures)
        tail = f" {number_words(failing).capitalize()} cannot be reached." if failing else ""
        state = "stopped" if failing else "passed"
        where = number_words(self.places) + (f" of {number_words(len(self.anchors))}" if self.anchors[1:] else "")
        where = f"{where} place{'' if len(self.anchors) == 1 else 's'}"
        if not self.unanchored:
            return Sentence(state, f"All that is sealed is anchored, at {where}.{tail}")
        words = "Anchored at {}, all but the newest {}, the oldest of them written {}.{}"
        rest, since = counted(self.unanchored, "record"), when(self.unanchored_at, seconds=True)
        return Sentence(state, format_html(words, where, rest, since, tail))

    def _verified(self) -> Sentence:
        run = self.verified
        if run is None or run.ended_at is None:
            return Sentence("unknown", "Not verified yet. It is done every night; to do it now: manage.py verify_log.")
        what = format_html("The last verification, of {}, {}", SCOPES.get(run.kind, run.kind), when(run.ended_at))
        if run.count:
            return Sentence("stopped", format_html("{}, found {}.", what, counted(run.count, "fault")))
        words = format_html("{}, looked at {} and found nothing wrong.", what, counted(run.records, "record"))
        if self.pulse.now - run.ended_at > OVERDUE:
            todo = "Another is overdue: check that the worker and its schedule run."
            return Sentence("stopped", format_html("{} {}", words, todo))
        return Sentence("passed", words)


def ended(words: str) -> str:
    """Words of others as a sentence of ours."""
    words = words.strip()
    return words if words.endswith((".", "!", "?", "…")) or not words else f"{words}."


def written_at(index: int) -> datetime | None:
    """When the write batch of a record was written, by its index."""
    return Batch.objects.filter(first__lte=index).order_by("-first").values_list("at", flat=True).first()


def telling_run(newest_first: Sequence[Verification]) -> Verification | None:
    """Of the last verifications the one to speak of: the newest that found something, unless the whole log was found in
    order since; else the newest of the whole log; else the newest that ended. Samples alone clear nothing."""
    done = [run for run in newest_first if run.ended_at is not None]
    for run in done:
        if run.count or run.kind == "full":
            return run
    return done[0] if done else None


def health(known: Pulse | None = None) -> Health:
    """How the log is. A handful of queries by index; `known` is the pulse where the page has it already."""
    p = known or pulse()
    newest = Checkpoint.objects.filter(log=p.log).order_by("-size").first() if p.log is not None else None
    written = written_at(p.sealed - 1) if newest and p.sealed else None
    anchors = tuple(AnchorState.objects.order_by("name"))
    starts = dict(Log.objects.values_list("number", "start"))
    ends = [starts.get(a.log, 0) + a.size for a in anchors if a.size is not None and a.log is not None]
    anchored = max(ends, default=0)
    return Health(
        pulse=p,
        newest=newest,
        delay=max(0.0, (newest.at - written).total_seconds()) if newest and written else None,
        anchors=anchors,
        anchored=anchored,
        places=ends.count(anchored),
        unanchored_at=written_at(anchored) if anchored < p.sealed else None,
        sealer=SealerStatus.objects.first(),
        verified=telling_run(list(Verification.objects.order_by("-began_at")[:RECENT])),
    )
