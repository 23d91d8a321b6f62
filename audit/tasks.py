"""Celery tasks of the log: shims over plain functions."""

from celery import shared_task

from audit import maintenance


@shared_task
def make_partitions() -> None:
    """Hourly: the months that records will come into have their partition."""
    maintenance.make_partitions()


@shared_task
def clear_outbox() -> None:
    """Hourly: what the log has had for a week leaves the outbox."""
    maintenance.clear_outbox()
