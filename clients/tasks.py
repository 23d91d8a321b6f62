"""Celery's names for what runs in the background."""

from celery import shared_task

from clients import keysets, metadata, requests
from clients.signals import receipts


@shared_task(ignore_result=True)
def refresh_key_sets() -> int:
    """Every five minutes: so long, at most, does a key that its issuer withdrew go on working."""
    return keysets.refresh_all()


@shared_task(ignore_result=True)
def refresh_client_metadata() -> int:
    """Every five minutes: what is published about clients whose id is a URL, a few at a time."""
    return metadata.refresh()


@shared_task(ignore_result=True)
def lapse_requests() -> int:
    """Hourly: requests that nobody decided in time are marked as lapsed."""
    return requests.lapse()


@shared_task(ignore_result=True)
def forget_receipts() -> int:
    """Daily: receipts of events that are too old to be taken again."""
    return receipts.forget()
