"""How everything is, on one screen, for an operator at a shell: `manage.py status`.

A line is in order (ok), is to be noted (note), or needs a person (look). What the log's page and its alerts say is said
here in the same words."""

import html
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Max
from django.utils.html import strip_tags
from django_celery_beat.models import PeriodicTask
from redis import RedisError

from audit.exports.schedules import ScheduleError, following, parse
from audit.log_health import Pulse, ended, health, kind_of
from audit.models import DeadLetter, Erasure, Export, ExportRun, Head, Hold, Outbox, RetentionRun, RollupState, Stream
from audit.models.handing import OPEN
from audit.templatetags.muniment import ago, lapse
from clients.models import Introspection, SignalStream
from clients.signals import keys, polling
from governance import staff_tenants
from governance.idempotency import store
from muniment.findings import counted

OK, NOTE, LOOK = "ok", "note", "look"
STATES = {"passed": OK, "unknown": NOTE, "stopped": LOOK}

# Beat notes in the database each three minutes what it sent.
BEAT_SILENT = timedelta(minutes=10)
# Web processes take up the outbox four times a second, the worker counts each five seconds.
OUTBOX_LATE = timedelta(seconds=30)
UNCOUNTED = 10_000
ERASURE_LATE = timedelta(minutes=15)
EXPORT_LATE = timedelta(hours=2)
STREAM_LATE = timedelta(minutes=15)
RETENTION_LATE = timedelta(days=2)
# An issuer is asked only when an opaque token comes: an older failure may be over.
ASKED_LATELY = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Line:
    """One line: `state` is ok, note or look; `part` is what it is about."""

    state: str
    part: str
    words: str

    def __str__(self) -> str:
        return f"{self.state:<5}{self.part:<11}{self.words}"


Part = Callable[[Pulse], Iterator[Line]]


def lines() -> list[Line]:
    """Everything, the log first. Raises django.db.Error where the database cannot be asked."""
    found = health()
    told = [Line(STATES[s.state], "log", plain(s.words)) for s in found.sentences]
    for part in (
        _alerts,
        _outbox,
        _schedule,
        _staff,
        _exports,
        _streams,
        _signals,
        _issuers,
        _retention,
        _erasures,
        _redis,
    ):
        told += part(found.pulse)
    return told


def plain(words: str) -> str:
    """What is written for pages, for a shell: without tags, on one line."""
    return " ".join(html.unescape(strip_tags(words)).split())


def _alerts(p: Pulse) -> Iterator[Line]:
    for alert in p.alerts:
        kind = kind_of(alert)
        about = f" ({alert.about})" if alert.about else ""
        said = f"{kind.title}{about}, since {alert.raised_at:%Y-%m-%d %H:%M}: {ended(alert.words)} {kind.remedy}"
        yield Line(LOOK, "alert", plain(said))
    if not p.alerts:
        yield Line(OK, "alerts", "None is open.")


def _outbox(p: Pulse) -> Iterator[Line]:
    policy, drained = Head.objects.values_list("policy", "drained").get()
    oldest = Outbox.objects.filter(record_index=None).order_by("id").values_list("at", flat=True).first()
    if oldest is not None and p.now - oldest > OUTBOX_LATE:
        words = f"Something waits to be recorded since {ago(oldest, p.now)}. Check that a web process runs."
        yield Line(LOOK, "outbox", words)
        return
    yield Line(OK, "policy", f"Version {policy:,}{'' if drained == policy else f', recorded up to {drained:,}'}.")


def _schedule(p: Pulse) -> Iterator[Line]:
    ticked = PeriodicTask.objects.aggregate(at=Max("last_run_at"))["at"]
    if ticked is None:
        yield Line(NOTE, "schedule", "Beat has not sent anything yet.")
    elif p.now - ticked > BEAT_SILENT:
        yield Line(LOOK, "schedule", f"Beat last sent something {ago(ticked, p.now)}. Check that it runs.")
    else:
        yield Line(OK, "schedule", f"Beat runs, seen {ago(ticked, p.now)}.")
    behind = p.recorded - (RollupState.objects.values_list("next", flat=True).first() or 0)
    if behind > UNCOUNTED:
        words = f"{counted(behind, 'record')} not counted yet. Check that the worker runs, and what it is busy with."
        yield Line(LOOK, "worker", words)


def _staff(p: Pulse) -> Iterator[Line]:
    for number in staff_tenants.contradictions():
        words = f"Staff {number} is a superuser and confined to tenants, which cannot be: they cannot sign in."
        yield Line(LOOK, "staff", words)


def _exports(p: Pulse) -> Iterator[Line]:
    disabled = Export.objects.filter(enabled=False).exclude(words="").count()
    if disabled:
        yield Line(LOOK, "exports", f"{counted(disabled, 'export')} disabled after failing again and again.")
    for export in Export.objects.filter(enabled=True, failures__gt=0).order_by("-failures")[:5]:
        yield Line(LOOK, "exports", f"{plain(export.name)} failed {counted(export.failures, 'time')} in a row.")
    late = ExportRun.objects.filter(state__in=OPEN, slot__lt=p.now - EXPORT_LATE).count()
    if late:
        yield Line(LOOK, "exports", f"{counted(late, 'run')} due for more than {lapse(EXPORT_LATE.total_seconds())}.")
    yield Line(OK, "exports", " ".join(_export_times(p.now)))


def _export_times(now: datetime) -> Iterator[str]:
    last = ExportRun.objects.filter(state="done").aggregate(at=Max("ended_at"))["at"]
    yield f"Last done {ago(last, now)}." if last else "None was made yet."
    following_slots = []
    for schedule in Export.objects.filter(enabled=True).exclude(schedule="").values_list("schedule", flat=True):
        try:
            following_slots.append(following(parse(schedule), now))
        except ScheduleError:
            continue
    yield f"Next due {min(following_slots):%Y-%m-%d %H:%M} UTC." if following_slots else "None is scheduled."


def _streams(p: Pulse) -> Iterator[Line]:
    refused = set(DeadLetter.objects.filter(settled_at=None).values_list("stream", flat=True).distinct()[:50])
    for stream in Stream.objects.order_by("name"):
        behind = max(0, p.sealed - stream.next)
        said = f"{stream.name}: {counted(behind, 'record')} behind"
        if stream.paused_at:
            yield Line(NOTE, "stream", f"{said}, paused {ago(stream.paused_at, p.now)}.")
        elif stream.failing_since and p.now - stream.failing_since > STREAM_LATE:
            yield Line(
                LOOK, "stream", plain(f"{said}, failing since {ago(stream.failing_since, p.now)}: {stream.error}")
            )
        elif stream.name in refused:
            yield Line(LOOK, "stream", f"{said}; its receiver refused records for good (dead letters).")
        else:
            yield Line(OK, "stream", f"{said}.")


def _signals(p: Pulse) -> Iterator[Line]:
    """Streams of security events: what has been revoked elsewhere is not known here while one cannot be had."""
    enabled = SignalStream.objects.filter(enabled=True).order_by("name")
    for stream in enabled.exclude(error=""):
        lost = stream.error.startswith((polling.FAILED, keys.FAILED))
        yield Line(LOOK if lost else NOTE, "signals", plain(f"{stream.name}: {ended(stream.error)}"))
    if (working := enabled.filter(error="").count()) > 0:
        newest = enabled.aggregate(at=Max("received_at"))["at"]
        came = f"the newest event came {ago(newest, p.now)}" if newest else "no event came yet"
        yield Line(OK, "signals", f"{counted(working, 'stream')} without a problem; {came}.")


def _issuers(p: Pulse) -> Iterator[Line]:
    for asked in Introspection.objects.filter(issuer__enabled=True).exclude(error="").select_related("issuer"):
        lately = asked.failed_at is not None and p.now - asked.failed_at < ASKED_LATELY
        when = f" ({ago(asked.failed_at, p.now)})" if asked.failed_at else ""
        words = f"{asked.issuer.issuer} did not answer about a token{when}: {ended(asked.error)}"
        yield Line(LOOK if lately else NOTE, "issuer", plain(words))


def _retention(p: Pulse) -> Iterator[Line]:
    run = RetentionRun.objects.order_by("-began_at").first()
    held = Hold.objects.filter(released_at=None).count()
    holds = f" {counted(held, 'legal hold')} in force." if held else ""
    if run is None:
        yield Line(OK, "retention", f"No run yet.{holds}")
        return
    began = f"The last run began {ago(run.began_at, p.now)}"
    if run.state == "failed":
        yield Line(LOOK, "retention", plain(f"{began} and failed: {ended(run.words)}{holds}"))
    elif run.ended_at is None:
        state = LOOK if p.now - run.began_at > RETENTION_LATE else NOTE
        yield Line(state, "retention", plain(f"{began} and is {run.state}. {run.words}{holds}"))
    elif p.now - run.began_at > RETENTION_LATE:
        yield Line(LOOK, "retention", f"{began}; another is overdue.{holds}")
    else:
        left = settings.CELERY_BEAT_SCHEDULE["retention"]["schedule"].remaining_estimate(p.now)
        due = p.now + left + timedelta(seconds=1)  # it is a moment less by when it is told
        yield Line(OK, "retention", f"{began}, {run.deleted:,} deleted. Next {due:%Y-%m-%d %H:%M} UTC.{holds}")


def _erasures(p: Pulse) -> Iterator[Line]:
    oldest = Erasure.objects.filter(state="asked").order_by("asked_at").values_list("asked_at", flat=True).first()
    if oldest is not None:
        state = LOOK if p.now - oldest > ERASURE_LATE else NOTE
        yield Line(
            state, "erasure", f"One was asked for {ago(oldest, p.now)} and is not done. Check that the worker runs."
        )


def _redis(p: Pulse) -> Iterator[Line]:
    try:
        store().ping()
        yield Line(OK, "redis", "It answers.")
    except (RedisError, OSError):
        words = (
            "It does not answer: no background work, limits are not counted, tokens that are bound to a key are"
            " refused, and retries of calls are decided anew."
        )
        yield Line(LOOK, "redis", words)
