"""Celery tasks of the log: shims over plain functions."""

from celery import shared_task

from audit import anchors, destinations, maintenance, rollups, verification_runs
from audit.erasure import erasing, restoring
from audit.exports import due as exports_due
from audit.exports import mail, queue, runs, store
from audit.retention import running
from audit.streams import delivering


@shared_task
def make_partitions() -> None:
    """Hourly: the months that records will come into have their partition."""
    maintenance.make_partitions()


@shared_task(ignore_result=True)
def erase_users() -> None:
    """Every ten seconds: who was asked to be erased is, and what is left of that to do is done."""
    erasing.work()


@shared_task(ignore_result=True)
def hold_erasures() -> None:
    """Hourly: what a restore brought back of erased users goes again."""
    restoring.mend()


@shared_task
def clear_outbox() -> None:
    """Hourly: what the log has had for a week leaves the outbox."""
    maintenance.clear_outbox()


@shared_task
def retain() -> None:
    """Nightly: what is due by the retention rules is deleted."""
    running.nightly()


@shared_task
def retain_further() -> None:
    """Every five minutes: a run of retention that waits, or that failed, is gone on with."""
    running.further()


@shared_task
def push_anchors() -> None:
    """Each MUNIMENT_ANCHOR_INTERVAL: the newest checkpoint goes to the anchors that do not have it."""
    anchors.push_all()


@shared_task
def verify_sample() -> None:
    """Hourly: a thousand records, taken at random, are verified."""
    verification_runs.run_sample()


@shared_task
def verify_all() -> None:
    """Nightly: the whole log is verified."""
    verification_runs.run_full()


@shared_task(ignore_result=True)
def count_records() -> None:
    """Every five seconds: new records are counted, for charts."""
    rollups.catch_up()


@shared_task
def publish_destinations() -> None:
    """Each minute: the table says which destinations the worker has configured."""
    destinations.publish()


@shared_task
def mail_exports() -> None:
    """Each minute: who is to be told of a run that is done is told."""
    mail.send_due()


@shared_task
def sweep_exports() -> None:
    """Daily: kept files of exports whose time is over are deleted."""
    store.sweep()


@shared_task(ignore_result=True)
def stream_records() -> None:
    """Every five seconds: each stream gets a task of its own, so that one whose receiver hangs holds up no other."""
    for name in delivering.publish():
        stream_deliver.apply_async((name,), expires=5.0)


@shared_task(ignore_result=True)
def stream_deliver(name: str) -> None:
    """What one stream has not got is brought to it, for a few seconds."""
    delivering.deliver(name)


@shared_task(ignore_result=True)
def export_due(export: int) -> None:
    """When the schedule of an export says so: the runs that are due of it are made."""
    exports_due.due(export)


@shared_task(ignore_result=True)
def export_sweep() -> None:
    """Each minute: what is due of every export, and runs that nobody works on."""
    exports_due.sweep()


@shared_task(ignore_result=True, time_limit=24 * 3600)
def export_run(run: int) -> None:
    """A run of an export is taken as far as it goes now; one that only waits for the log is looked at again soon."""
    if after := runs.work(run):
        queue.send([run], after)
