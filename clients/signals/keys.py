"""Transmitters' keys: from the stream's `jwks_uri`, or from the transmitter's configuration (SSF 1.0 section 7.2), kept
in the stream's row. A fetch is claimed there, so that all processes together make one at a time, and at most one each
cooldown for keys that nobody has."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_network
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from django.conf import settings
from django.db.models import Q
from django.db.models.functions import Now

from clients import jwks
from clients.fetching import FetchError, get_json
from clients.models import SignalStream
from clients.signals import sets
from clients.signals.sets import EventToken, KeyUnknown, Transmitter

logger = logging.getLogger(__name__)

REFRESH: Final = 300.0  # seconds after which keys are fetched again, so that withdrawn ones stop working
TIMEOUT: Final = 5.0  # seconds for configuration and keys together
MAX_ERROR: Final = 250
FAILED: Final = "its keys: "  # how an error begins that the next good fetch ends

Outcome = Literal["fetched", "failed", "too_soon"]


class KeysUnavailable(Exception):
    """The transmitter's keys cannot be had, so an event can be judged neither way: the transmitter sends it again."""


def verified(stream: SignalStream, token: str, now: float) -> EventToken:
    """Verify an event token of a stream, fetching keys where that may help. Raises SetRefused, or KeysUnavailable.

    Not to be called in a transaction, whose locks would last for as long as the transmitter likes."""
    fetched = fetch(stream, REFRESH) if _old(stream, REFRESH, now) else "too_soon"
    for _ in range(2):
        try:
            return sets.read(token, _transmitter(stream, time.time()), now)
        except KeyUnknown:
            # The set is of this very moment, so there is no such key. Else it may be one that is not known yet, and a
            # refusal would lose the event for ever.
            if fetched == "fetched":
                raise
        fetched = fetch(stream, settings.MUNIMENT_JWKS_COOLDOWN)
        if fetched != "fetched":
            break
    raise KeysUnavailable


def _transmitter(stream: SignalStream, now: float) -> Transmitter:
    stale = stream.jwks is None or _old(stream, settings.MUNIMENT_JWKS_MAX_STALE, now)
    return Transmitter(stream.transmitter, stream.audience, None if stale else jwks.parse(stream.jwks))


def _old(stream: SignalStream, seconds: float, now: float) -> bool:
    return stream.keys_fetched_at is None or now - stream.keys_fetched_at.timestamp() > seconds


def fetch(stream: SignalStream, cooldown: float | None = None) -> Outcome:
    """Fetch the keys of a stream's transmitter now; the row in memory is then as the database has it. "too_soon": by
    somebody else less than `cooldown` seconds ago; "failed": the keys that there are stay, and `error` says why."""
    mine = SignalStream.objects.filter(pk=stream.pk)
    outcome: Outcome = "too_soon"
    tried = Q(keys_attempted_at__gt=Now() - timedelta(seconds=cooldown)) if cooldown else Q(pk=None)
    if mine.exclude(tried).update(keys_attempted_at=Now()):
        try:
            kept, outcome = _fetched(stream), "fetched"
            mine.update(jwks=kept, keys_fetched_at=Now())
            mine.filter(error__startswith=FAILED).update(error="")
        except FetchError as error:
            outcome = "failed"
            logger.warning("the keys of signal stream %s could not be fetched: %s", stream.pk, error)
            mine.update(error=f"{FAILED}{error}"[:MAX_ERROR])
    stream.refresh_from_db(fields=["jwks", "keys_fetched_at", "keys_attempted_at", "error"])
    return outcome


def _fetched(stream: SignalStream) -> dict[str, Any]:
    """The transmitter's key set as it is kept. Raises FetchError."""
    deadline = time.monotonic() + TIMEOUT

    def get(url: str) -> dict[str, Any]:
        return get_json(url, timeout=deadline - time.monotonic(), **reach(stream))

    try:
        return jwks.normalise(get(stream.jwks_uri or _discovered(stream, get)))
    except ValueError as error:
        raise FetchError(str(error)) from None


def reach(stream: SignalStream) -> Any:
    """Which addresses a stream's transmitter may have: public ones, and those from which its issuer's keys may be
    fetched. Raises FetchError for a network that was mistyped."""
    try:
        networks = [ip_network(one, strict=False) for one in stream.issuer.allowed_networks]
    except ValueError as error:
        raise FetchError(str(error)) from None
    return {"allowed_networks": networks, "allow_loopback_http": settings.MUNIMENT_DEMO}


def _discovered(stream: SignalStream, get: Callable[[str], dict[str, Any]]) -> str:
    """SSF 1.0 section 7.2.1: the path of the transmitter's name comes after the well-known one. The document must name
    the very transmitter, else another's keys would pass for its own."""
    parts = urlsplit(stream.transmitter)
    path = parts.path.rstrip("/")
    document = get(f"{parts.scheme}://{parts.netloc}/.well-known/ssf-configuration{path}")
    if document.get("issuer") != stream.transmitter:
        raise FetchError("the configuration is of another transmitter")
    uri = document.get("jwks_uri")
    if not isinstance(uri, str):
        raise FetchError("the configuration names no jwks_uri")
    return uri
