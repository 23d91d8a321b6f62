"""Celery tasks of the log: shims over plain functions."""

from celery import shared_task

from audit import anchors, maintenance


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
