"""Handing runs of exports to the worker. A message that is lost loses nothing: the sweeper finds each open run."""

import logging
from collections.abc import Iterable
from functools import cache

from celery import Celery
from django.db import transaction
from kombu.exceptions import OperationalError

logger = logging.getLogger(__name__)

EXPIRES = 300  # seconds; by then the sweeper has sent another
BATCH = 500
# Who asks does not wait for a broker that is away.
HASTY = {"max_retries": 1, "interval_start": 0, "socket_connect_timeout": 2, "socket_timeout": 5}


@cache
def _sender() -> Celery:
    """An application that only sends, in whatever process this is."""
    sender = Celery("muniment", set_as_current=False)
    sender.config_from_object("django.conf:settings", namespace="CELERY")
    return sender


def send(numbers: Iterable[int], after: float = 0.0) -> None:
    """Have these runs worked on, once the transaction has committed; `after`: in so many seconds."""
    found = list(numbers)[:BATCH]
    if found:
        transaction.on_commit(lambda: _send(found, after))


def _send(numbers: list[int], after: float) -> None:
    try:
        with _sender().connection_for_write(transport_options=HASTY) as connection:
            for number in numbers:
                _sender().send_task(
                    "audit.tasks.export_run", [number], connection=connection, countdown=after or None,
                    expires=EXPIRES, retry=False,
                )  # fmt: skip
    except (OperationalError, OSError) as error:
        logger.warning("the broker took no message (%s): the sweeper sends it again", type(error).__name__)
