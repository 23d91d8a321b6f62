"""Destinations: where the files of exports are delivered to (DESIGN.md section 6).

They are configured by the operator in MUNIMENT_DESTINATIONS, which the worker alone has; what of them may be known is
in the table `Destination`, from which the admin offers them.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from audit import models
from audit.configured import ConfigError
from audit.destinations.base import DeliveryFailed, Destination, Differs, Sending
from audit.destinations.reading import parse

__all__ = ["ConfigError", "DeliveryFailed", "Destination", "Differs", "configured", "deliver", "parse", "publish"]

logger = logging.getLogger(__name__)


def configured() -> list[Destination]:
    """The destinations of MUNIMENT_DESTINATIONS. Raises ConfigError; the system check muniment.E010 says so at the
    start."""
    return parse(settings.MUNIMENT_DESTINATIONS)


def publish() -> int:
    """Have the table list what is configured here and nothing else; how many that are. By the worker, which alone
    knows. Raises ConfigError."""
    found, now = configured(), timezone.now()
    with transaction.atomic():
        models.Destination.objects.exclude(name__in=[one.name for one in found]).delete()
        for one in found:
            is_new = {"kind": one.kind, "place": one.place, "seen_at": now}
            row, made = models.Destination.objects.select_for_update().get_or_create(name=one.name, defaults=is_new)
            if not made and (row.kind, row.place) != (one.kind, one.place):
                # Another place under the same name has no history here.
                row.delete()
                models.Destination.objects.create(name=one.name, **is_new)
        models.Destination.objects.update(seen_at=now)
    return len(found)


def deliver(destination: str, files: Sequence[Path]) -> None:
    """Put files to a destination in their order (a manifest after its file), each whole or not at all, and note how it
    went. To run twice does no harm: what is there with the same SHA-256 is left. Raises DeliveryFailed, in words for
    people, and Differs where something else has the name of one."""
    try:
        chosen = _named(destination)
        for path in files:
            _put(chosen, Sending.of(path))
    except DeliveryFailed as error:
        logger.warning("destination %s: %s", destination, error)
        _note(destination, str(error))
        raise
    _note(destination, "")


def _named(name: str) -> Destination:
    try:
        found = [one for one in configured() if one.name == name]
    except ConfigError as error:
        raise DeliveryFailed(f"MUNIMENT_DESTINATIONS of the worker cannot be read: {error}") from None
    if not found:
        raise DeliveryFailed(f"no destination named {name} is configured in the worker any more")
    return found[0]


def _put(chosen: Destination, sending: Sending) -> None:
    try:
        chosen.put(sending)
    except DeliveryFailed:
        raise
    except Exception as error:  # a mistake of ours or of a library; what it says may hold a secret
        logger.error("destination %s: %s", chosen.name, type(error).__name__)
        raise DeliveryFailed(f"it failed ({type(error).__name__})") from None


def _note(name: str, error: str) -> None:
    """Note an attempt in the table; a destination that is not published yet has no row, and needs none."""
    now = timezone.now()
    rows = models.Destination.objects.filter(name=name)
    if error:
        rows.update(tried_at=now, failures=F("failures") + 1, error=error)
    else:
        rows.update(tried_at=now, reached_at=now, failures=0, error="")
