"""Receipts of events: kept for longer than an event is taken (sets.MAX_AGE), so that none counts twice."""

from datetime import timedelta
from typing import Final

from django.utils import timezone

from clients.models import SignalReceipt

KEPT: Final = timedelta(days=35)


def forget() -> int:
    """Drop the receipts that are of no use any more; how many."""
    return SignalReceipt.objects.filter(at__lt=timezone.now() - KEPT).delete()[0]
