"""Celery tasks of the log: shims over plain functions."""

from celery import shared_task

from audit import anchors, maintenance, rollups, verification_runs


@shared_task
def make_partitions() -> None:
    """Hourly: the months that records will come into have their partition."""
    maintenance.make_partitions()


@shared_task
def clear_outbox() -> None:
    """Hourly: what the log has had for a week leaves the outbox."""
    maintenance.clear_outbox()


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
