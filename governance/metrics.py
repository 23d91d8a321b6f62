"""What web processes count of their calls, for Prometheus: on the way of a call this costs some millionths of a second.

Label values are ours alone (a decision, a reason, a type, an endpoint, a status), never what a caller sends: so there
are never more series than are listed here. What the database knows is asked at a scrape: `metrics_database`.
"""

import logging
from collections import Counter as Tally
from collections.abc import Iterable

from django.conf import settings
from prometheus_client import Counter, Gauge, Histogram

from audit.batching import Batch
from audit.entries import Entry
from audit.reasons import REASONS
from governance.metrics_slots import count_in

logger = logging.getLogger(__name__)

CALL_TYPES = ("decision", "evaluation", "introspection")
TYPES = (
    "decision", "evaluation", "denials", "outcome", "policy", "request", "review", "staff", "signal", "notice",
    "retention", "hold", "erasure", "key", "ungoverned", "introspection",
)  # fmt: skip
ENDPOINTS = ("verify", "verify_sealed", "batch", "introspect", "authzen", "forward_auth", "outcome", "other")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TURNED_AWAY = ("backend_key", "over_budget")
OTHER = "other"
# The places of three columns in a row of a batch (audit.batching.COLUMNS).
TYPE, DECISION, REASON = 3, 4, 5

slots = count_in(settings.MUNIMENT_VAR / "metrics") if settings.MUNIMENT_PROCESS == "web" else None
CALLS = Counter("muniment_calls", "Calls that were decided and recorded.", ("type", "decision", "reason"))
RECORDS = Counter("muniment_records", "Records that this instance's web processes wrote.", ("type",))
AWAY = Counter("muniment_turned_away", "Calls answered without a record of their own.", ("reason",))
REFUSED = Counter("muniment_refused", "Calls of the API that were answered with a problem.", ("status",))
TOOK = Histogram("muniment_call_seconds", "From the call's arrival to its answer.", ("endpoint",), buckets=SECONDS)
QUEUED = Gauge(
    "muniment_queue_length", "Entries waiting for the recorder, in the fullest web process.",
    multiprocess_mode="livemax",
)  # fmt: skip
CAPACITY = Gauge("muniment_queue_capacity", "Entries that a web process's queue holds.", multiprocess_mode="livemax")
timers = {endpoint: TOOK.labels(endpoint) for endpoint in ENDPOINTS}


def written(batch: Batch) -> None:
    """A batch has committed: count its records. Never raises; the recorder calls it."""
    try:
        kinds = Tally((row[TYPE], row[DECISION], row[REASON]) for row in batch.rows)
        for (kind, decision, reason), count in kinds.items():
            named = kind if kind in TYPES else OTHER
            RECORDS.labels(named).inc(count)
            if kind in CALL_TYPES:
                CALLS.labels(named, decision, reason if reason in REASONS else OTHER).inc(count)
    except Exception as error:
        logger.warning("records were not counted: %s", type(error).__name__)


def turned_away(denials: Iterable[Entry]) -> None:
    """Count what `denials` entries say was turned away."""
    for denial in denials:
        for reason, count in denial.statement["counts"].items():
            AWAY.labels(reason if reason in TURNED_AWAY else OTHER).inc(count)


def refused(status: int) -> None:
    """Count a call that was answered with this status as a problem."""
    REFUSED.labels(str(status)).inc()


def queue(length: int, capacity: int) -> None:
    """Note how full the recorder's queue is."""
    QUEUED.set(length)
    CAPACITY.set(capacity)
