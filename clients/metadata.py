"""What is published about clients whose OAuth client id is a URL: fetched in the background, shown as unverified, and
approved by staff. Nothing is decided from it, and it never becomes a client's own name by itself.

No caller makes us fetch anything at once: a periodic run takes the ids of registered clients, and those that genuine
tokens of registered issuers named (the inbox), a few each time and for each host.
"""

import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db import connection, transaction
from django.db.models import Q
from django.utils import timezone

from audit.models import Sighting
from audit.staff_log import tell
from clients.client_documents import Published, digest_of, fetch, problem
from clients.fetching import FetchError
from clients.grants import Actor
from clients.models import ClientMetadata, Issuer, OAuthClientId

logger = logging.getLogger(__name__)

MOST: Final = 20  # fetched in one run
MOST_OF_HOST: Final = 4  # so that made-up ids turn nobody's host into a target
CONCURRENT: Final = 4
FRESH: Final = timedelta(days=1)
FIRST_RETRY: Final = timedelta(minutes=15)  # doubled with each failure, up to FRESH
MAX_ERROR: Final = 250  # characters, as in ClientMetadata.error


class MetadataError(ValueError):
    """It cannot be approved; the message is for the person who asked."""


def refresh() -> int:
    """Fetch what is due, and forget what nobody's client id is any more; how many documents were had. Nothing where
    MUNIMENT_CLIENT_METADATA is off.

    Raises RuntimeError inside a transaction, whose locks would last for as long as a stranger's server likes."""
    if connection.in_atomic_block:
        raise RuntimeError("documents are fetched outside transactions only")
    if not settings.MUNIMENT_CLIENT_METADATA:
        return 0
    wanted = _wanted()
    ClientMetadata.objects.exclude(url__in=wanted).delete()
    claimed = [row for url in _due(wanted, timezone.now()) if (row := _claim(url)) is not None]
    had = 0
    # Only the fetching is done in threads: each thread that touched the database would open a connection.
    with ThreadPoolExecutor(CONCURRENT, thread_name_prefix="clients") as pool:
        for row, found in zip(claimed, pool.map(_fetch, [row.url for row in claimed]), strict=True):
            had += _store(row, found)
    return had


def of(urls: Any) -> dict[str, ClientMetadata]:
    """What is known of these client ids, by id; without the logos' bytes."""
    found = ClientMetadata.objects.filter(url__in=list(urls)).exclude(attempted_at=None)
    return {row.url: row for row in found.defer("logo")}


def approve(number: int, digest: str, *, user: Any, reason: str) -> ClientMetadata:
    """Say that what is shown is true of the client; `digest` names what the person saw. Raises PermissionDenied, or
    MetadataError."""
    if not user.has_perm("clients.change_client"):
        raise PermissionDenied
    actor = Actor.of(user)
    with transaction.atomic():
        row = ClientMetadata.objects.select_for_update().defer("logo").filter(pk=number).first()
        if row is None or not row.digest:
            raise MetadataError("It is not published any more.")
        if row.digest != digest:
            raise MetadataError("What is published changed since the page was opened. Read what it is now.")
        if row.is_approved:
            raise MetadataError("Somebody approved it a moment ago.")
        row.approved_digest, row.approved_at, row.approved_by = digest, timezone.now(), actor.name
        row.save(update_fields=["approved_digest", "approved_at", "approved_by"])
        tell(actor.id, actor.name, "client.approve_metadata", {"reason": reason}, client_id=row.url, sha256=digest)
    return row


def _wanted() -> list[str]:
    """The client ids that are URLs: of registered clients, then of the inbox, the last seen first."""
    registered = OAuthClientId.objects.filter(oauth_id__startswith="http").order_by("pk")
    issuers = Issuer.objects.filter(enabled=True).values("issuer")
    seen = Sighting.objects.filter(kind="client", ignored_at=None, name__startswith="http", source__in=issuers)
    ids = [*registered.values_list("oauth_id", flat=True), *seen.order_by("-last_seen").values_list("name", flat=True)]
    return [url for url in dict.fromkeys(ids) if problem(url, settings.MUNIMENT_DEMO) is None]


def _due(wanted: list[str], now: datetime) -> list[str]:
    """What to fetch in this run."""
    known = {row.url: row for row in ClientMetadata.objects.defer("logo")}
    chosen: list[str] = []
    hosts: Counter[str] = Counter()
    for url in wanted:
        row = known.get(url) or ClientMetadata(url=url)
        if len(chosen) == MOST:
            break
        if _is_due(row, now) and hosts[row.host] < MOST_OF_HOST:
            hosts[row.host] += 1
            chosen.append(url)
    return chosen


def _is_due(row: ClientMetadata, now: datetime) -> bool:
    if row.attempted_at is None:
        return True
    if row.failures:
        wait = min(FRESH, FIRST_RETRY * 2 ** min(row.failures - 1, 10))
    else:
        # An attempt of which nothing came was a process's last.
        wait = FRESH if row.fetched_at and row.fetched_at >= row.attempted_at else FIRST_RETRY
    return bool(now - row.attempted_at >= wait)


def _claim(url: str) -> ClientMetadata | None:
    """The right to fetch one, which of two processes one has."""
    ClientMetadata.objects.bulk_create([ClientMetadata(url=url)], ignore_conflicts=True)
    row: ClientMetadata = ClientMetadata.objects.get(url=url)
    at = Q(attempted_at=row.attempted_at) if row.attempted_at else Q(attempted_at=None)
    return row if ClientMetadata.objects.filter(at, pk=row.pk).update(attempted_at=timezone.now()) else None


def _fetch(url: str) -> Published | FetchError:
    """Touches no database, so that it can run in any thread."""
    try:
        return fetch(url, settings.MUNIMENT_DEMO)
    except FetchError as error:
        return error
    except Exception:
        # A bug that one strange document can trigger must not stop the others.
        logger.exception("reading a client's document failed unexpectedly")
        return FetchError("fetching failed unexpectedly; the process's log says more")


def _store(row: ClientMetadata, found: Published | FetchError) -> bool:
    """Keep what was had; a failure keeps what we have."""
    kept = ClientMetadata.objects.filter(pk=row.pk)
    if isinstance(found, FetchError):
        kept.update(error=str(found)[:MAX_ERROR], failures=row.failures + 1)
        return False
    # A logo that cannot be had this time is still the one that was published.
    logo, kind = (row.logo, row.logo_type) if found.logo_unreachable else (found.logo, found.logo_type)
    digest = digest_of(found.name, found.uri, kind, bytes(logo) if logo is not None else None)
    kept.update(
        name=found.name, uri=found.uri, logo=logo, logo_type=kind, digest=digest, fetched_at=timezone.now(),
        failures=0, error=found.note[:MAX_ERROR],
    )  # fmt: skip
    return True
