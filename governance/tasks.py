"""Background tasks of governance: shims over plain functions."""

from importlib import import_module

from celery import shared_task
from django.conf import settings

from governance import notifications, notifications_sending


@shared_task
def clear_sessions() -> None:
    """Sessions that have ended leave the database."""
    import_module(settings.SESSION_ENGINE).SessionStore.clear_expired()


@shared_task(ignore_result=True)
def notify() -> None:
    """Each minute: what somebody should look at is found, and told."""
    notifications.refresh()
    notifications_sending.send_due()
