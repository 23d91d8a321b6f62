"""What a scrape asks the database: the log, its anchors, what waits, what hands it on, what holds it up.

Every query goes by an index or over a table of few rows, and is given two seconds. A part that cannot be asked is left
out and named by `muniment_scrape_failed`, so that its alarm is for the part and not for the whole scrape.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import islice

from django.db import Error, connection, transaction
from django.db.models import Count, Max, Min, Sum
from django_celery_beat.models import PeriodicTask
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from redis import RedisError

from audit import alerts
from audit.exports.schedules import ScheduleError, parse, slots
from audit.log_health import RECENT, Pulse, pulse, telling_run, written_at
from audit.models import (
    AnchorState,
    DeadLetter,
    Erasure,
    Export,
    ExportRun,
    Head,
    Hold,
    Outbox,
    RetentionRun,
    RollupState,
    Stream,
    Verification,
)
from audit.models.handing import OPEN
from governance.idempotency import store

logger = logging.getLogger(__name__)

SECONDS = 2  # for a query
MOST = 10_000  # that is counted
SEALER_STATES = ("active", "halted", "closed")
RETENTION_STATES = tuple(RetentionRun.STATES)

# The oldest snapshot that keeps old row versions from being cleared away, whoever holds it: a session, a prepared
# transaction, a replication slot. Of sessions of other roles the time is told only to a member of pg_read_all_stats.
XMIN = """
    SELECT coalesce((SELECT max(extract(epoch FROM clock_timestamp() - xact_start)) FROM pg_stat_activity
            WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()), 0)::float8,
        coalesce((SELECT max(age(held)) FROM (
            SELECT backend_xmin FROM pg_stat_activity WHERE pid <> pg_backend_pid()
            UNION ALL SELECT transaction FROM pg_prepared_xacts
            UNION ALL SELECT xmin FROM pg_replication_slots) AS found (held)), 0)::bigint"""

Part = Callable[[Pulse], Iterator[Metric]]


@contextmanager
def bounded() -> Iterator[None]:
    """A transaction in which no statement takes longer than SECONDS."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL statement_timeout = '{SECONDS}s'")
        yield


def gauge(name: str, help_text: str, value: float) -> Metric:
    """One figure."""
    return GaugeMetricFamily(f"muniment_{name}", help_text, value=value)


def gauges(name: str, help_text: str, label: str, values: Sequence[tuple[str, float]]) -> Metric:
    """A figure for each value of a label."""
    family = GaugeMetricFamily(f"muniment_{name}", help_text, labels=[label])
    for said, value in values:
        family.add_metric([said], value)
    return family


def age(now: datetime, then: datetime | None) -> float:
    """Seconds since then; 0 for never and for what is to come."""
    return 0.0 if then is None else max(0.0, (now - then).total_seconds())


def _log(p: Pulse) -> Iterator[Metric]:
    yield gauge("log_records", "Records in the log, the index behind the newest.", p.recorded)
    yield gauge("sealed_records", "The index behind the newest sealed record.", p.sealed)
    yield gauge("unsealed_records", "Records that are not sealed yet.", p.waiting)
    yield gauge("seal_delay_seconds", "Age of the oldest record that is not sealed.", age(p.now, p.waiting_at))
    yield gauge("sealer_seen_seconds", "Since the sealer's last sign of life.", age(p.now, p.sealer_at))
    states = [(state, float(p.sealer == state)) for state in SEALER_STATES]
    yield gauges("sealer_state", "1 for the state that the sealer is in.", "state", states)
    policy, drained = Head.objects.values_list("policy", "drained").get()
    yield gauge("policy_version", "Version of the policy.", policy)
    yield gauge("policy_unrecorded", "Versions of the policy that the log does not have yet.", policy - drained)


def _alerts(p: Pulse) -> Iterator[Metric]:
    kinds = sorted({*alerts.KINDS, *(alert.kind for alert in p.alerts)})
    found = [(kind, float(sum(alert.kind == kind for alert in p.alerts))) for kind in kinds]
    yield gauges("alerts_open", "Alerts that a person must look at.", "kind", found)


def _anchors(p: Pulse) -> Iterator[Metric]:
    delays, failures = [], []
    for anchor in AnchorState.objects.order_by("name"):
        end = anchor.size + p.start if anchor.size is not None and anchor.log == p.log else 0
        late = age(p.now, written_at(end)) if end < p.sealed else 0.0
        delays.append((anchor.name, late))
        failures.append((anchor.name, float(anchor.failures)))
    about = "Age of the oldest sealed record that the anchor does not hold."
    yield gauges("anchor_delay_seconds", about, "anchor", delays)
    yield gauges("anchor_failures", "Attempts that failed, in a row.", "anchor", failures)


def _outbox(p: Pulse) -> Iterator[Metric]:
    pending = Outbox.objects.filter(record_index=None)
    yield gauge("outbox_pending", f"Entries that no web process has recorded yet, {MOST} at most.",
                pending.values("id")[:MOST].count())  # fmt: skip
    oldest = pending.order_by("id").values_list("at", flat=True).first()
    yield gauge("outbox_delay_seconds", "Age of the oldest of them.", age(p.now, oldest))


def _verification(p: Pulse) -> Iterator[Metric]:
    run = telling_run(list(Verification.objects.order_by("-began_at")[:RECENT]))
    if run is not None:
        yield gauge("verification_findings", "What the last verification of the log found.", run.count)
        yield gauge("verification_age_seconds", "Since that verification ended.", age(p.now, run.ended_at))


def _exports(p: Pulse) -> Iterator[Metric]:
    due = list(ExportRun.objects.filter(state__in=OPEN).values_list("slot", flat=True))
    # A slot whose run was not made, because nobody makes them, is late as well.
    scheduled = Export.objects.filter(enabled=True, due_from__isnull=False).exclude(schedule="")
    for schedule, since in scheduled.values_list("schedule", "due_from")[:MOST]:
        if since is not None:
            due += _first(schedule, since, p.now)
    yield gauge("export_lag_seconds", "Age of the oldest export that is due and not done.",
                age(p.now, min(due, default=None)))  # fmt: skip
    failing = Export.objects.filter(enabled=True).aggregate(of=Sum("failures"))["of"] or 0
    yield gauge("export_failures", "Runs that failed, in a row, of all exports together.", failing)
    disabled = Export.objects.filter(enabled=False).exclude(words="").count()
    yield gauge("exports_disabled", "Exports that were disabled because they kept failing.", disabled)


def _first(schedule: str, since: datetime, now: datetime) -> list[datetime]:
    """The first slot that is due; none where the schedule cannot be read, which the export's page says."""
    try:
        return list(islice(slots(parse(schedule), since, now), 1))
    except ScheduleError:
        return []


def _streams(p: Pulse) -> Iterator[Metric]:
    found = list(Stream.objects.order_by("name"))
    behind = [(s.name, float(max(0, p.sealed - s.next))) for s in found]
    late = [(s.name, age(p.now, written_at(s.next)) if s.next < p.sealed else 0.0) for s in found]
    yield gauges("stream_lag_records", "Sealed records that the stream has not delivered.", "stream", behind)
    yield gauges("stream_lag_seconds", "Age of the oldest of them.", "stream", late)
    failures = [(s.name, float(s.failures)) for s in found]
    yield gauges("stream_failures", "Attempts that failed, in a row.", "stream", failures)
    dead = dict(DeadLetter.objects.filter(settled_at=None).values_list("stream").annotate(n=Count("id")))
    letters = [(s.name, float(dead.get(s.name, 0))) for s in found]
    yield gauges("stream_dead_letters", "Records that the receiver refused for good.", "stream", letters)


def _keeping(p: Pulse) -> Iterator[Metric]:
    run = RetentionRun.objects.order_by("-began_at").first()
    states = [(state, float(run is not None and run.state == state)) for state in RETENTION_STATES]
    yield gauges("retention_state", "1 for the state of the last retention run.", "state", states)
    if run is not None:
        yield gauge("retention_age_seconds", "Since the last retention run began.", age(p.now, run.began_at))
    yield gauge("holds_active", "Legal holds in force.", Hold.objects.filter(released_at=None).count())
    asked = Erasure.objects.filter(state="asked").aggregate(n=Count("id"), oldest=Min("asked_at"))
    yield gauge("erasures_asked", "Erasures that were asked for and are not done.", asked["n"])
    yield gauge("erasure_delay_seconds", "Age of the oldest of them.", age(p.now, asked["oldest"]))


def _schedule(p: Pulse) -> Iterator[Metric]:
    ticked = PeriodicTask.objects.aggregate(at=Max("last_run_at"))["at"]
    if ticked is not None:
        yield gauge("beat_tick_seconds", "Since beat last noted that it sent a task.", age(p.now, ticked))
    counted = RollupState.objects.values_list("next", flat=True).first() or 0
    yield gauge("uncounted_records", "Records that the worker has not counted yet.", max(0, p.recorded - counted))


def _xmin(p: Pulse) -> Iterator[Metric]:
    with connection.cursor() as cursor:
        cursor.execute(XMIN)
        seconds, xids = cursor.fetchone()
    yield gauge("backend_xmin_age_seconds", "Age of the oldest transaction that holds a snapshot.", seconds)
    yield gauge("backend_xmin_age_xids", "How many transactions back the oldest snapshot reaches.", xids)


def _redis(p: Pulse) -> Iterator[Metric]:
    try:
        works = bool(store().ping())
    except (RedisError, OSError):
        works = False
    yield gauge("redis_up", "Whether Redis answers.", works)


PARTS: dict[str, Part] = {
    "log": _log, "alerts": _alerts, "anchors": _anchors, "outbox": _outbox, "verification": _verification,
    "exports": _exports, "streams": _streams, "keeping": _keeping, "schedule": _schedule, "xmin": _xmin,
    "redis": _redis,
}  # fmt: skip


class DatabaseCollector:
    """A collector (prometheus_client) of all parts."""

    def collect(self) -> Iterator[Metric]:
        """The figures, as far as they can be had."""
        failed = dict.fromkeys(PARTS, 0.0)
        known = self._known()
        yield gauge("database_up", "Whether the database answers.", known is not None)
        for name, part in PARTS.items():
            found = self._of(part, known) if known is not None else None
            failed[name] = float(found is None)
            yield from found or ()
        yield gauges("scrape_failed", "1 for a part of this scrape that could not be asked.", "part", [*failed.items()])

    def _known(self) -> Pulse | None:
        try:
            with bounded():
                return pulse()
        except Error:
            return None

    def _of(self, part: Part, known: Pulse) -> list[Metric] | None:
        try:
            with bounded():
                return list(part(known))
        except Error as error:
            logger.warning("of a scrape the part %r could not be asked: %s", part.__name__, type(error).__name__)
            return None
