"""Issuers' key sets: fetched outside any transaction, stored where the policy snapshot reads them.

A fetch is claimed in the database, so that all processes together make one at a time and, for unknown keys,
at most one each cooldown. A fetched set is stored by one UPDATE, and only when it changed; the triggers on
policy tables then raise the policy version, which carries it to every process.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from django.conf import settings
from django.db import connection
from django.db.models import F, Q
from django.db.models.functions import Now

from clients import jwks
from clients.fetching import FetchError, get_json
from clients.models import Issuer, KeySet

logger = logging.getLogger(__name__)

Outcome = Literal["refreshed", "unchanged", "failed", "busy", "too_soon"]
Stored = Literal["refreshed", "unchanged", "failed"]

TIMEOUT: Final = 5.0  # seconds for discovery and keys together
BUSY: Final = 10  # seconds after which a fetch that never finished counts as dead with its process
CONCURRENT: Final = 8  # fetches at once when all issuers are refreshed
MAX_ERROR: Final = 250  # characters, as in KeySet.error

CLAIM: Final = """
    UPDATE clients_keyset SET attempted_at = clock_timestamp()
    WHERE id = (SELECT id FROM clients_keyset WHERE issuer_id = %(issuer)s FOR UPDATE SKIP LOCKED)
      AND (%(seconds)s::float8 IS NULL OR attempted_at IS NULL
           OR attempted_at < clock_timestamp() - make_interval(secs => %(seconds)s::float8))
    RETURNING attempted_at
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to fetch one issuer's keys. `at` is the database's time of it; a later claim ends it."""

    issuer: Issuer
    at: datetime


def last_attempt_failed(issuer_id: int) -> bool:
    """Whether the newest fetch of this issuer's keys ended in an error: an outage, not a forgery."""
    return KeySet.objects.filter(issuer_id=issuer_id).exclude(error="").exists()


def refresh(issuer_id: int) -> bool:
    """Fetch an enabled issuer's keys now; True when the set changed. A failure keeps the keys that we have.

    Raises RuntimeError inside a transaction, whose locks would last for as long as a stranger's server likes.
    """
    _outside_transactions()
    claim = _claim(issuer_id, None)
    return claim is not None and _store(claim, _fetch(claim.issuer)) == "refreshed"


def claim_and_refresh(issuer_id: int) -> Outcome:
    """Fetch an issuer's keys because a token named one that we have not.

    "refreshed": the set changed; "unchanged"; "failed"; "busy": somebody's fetch is under way, or about to be, and
    may bring it; "too_soon": the last attempt was less than MUNIMENT_JWKS_COOLDOWN seconds ago (or the issuer is
    disabled). So made-up `kid`s cause no storm, and a key that is really new is found within that time.
    """
    _outside_transactions()
    claim = _claim(issuer_id, settings.MUNIMENT_JWKS_COOLDOWN)
    if claim is not None:
        return _store(claim, _fetch(claim.issuer))
    unfinished = Q(finished_at=None) | Q(finished_at__lt=F("attempted_at"))
    under_way = unfinished & Q(attempted_at__gt=Now() - timedelta(seconds=BUSY))
    # The claim of a set that nobody tried lately is refused only while somebody else holds its row: to claim it.
    tried = Q(attempted_at__gt=Now() - timedelta(seconds=settings.MUNIMENT_JWKS_COOLDOWN))
    known = KeySet.objects.filter(issuer_id=issuer_id, issuer__enabled=True)
    return "busy" if known.filter(under_way | ~tried).exists() else "too_soon"


def refresh_all() -> int:
    """Fetch the keys of every enabled issuer, several at once; how many sets changed. One issuer's failure,
    of whatever kind, does not keep the others from being refreshed."""
    _outside_transactions()
    issuer_ids = list(Issuer.objects.filter(enabled=True).values_list("id", flat=True))
    changed = 0
    # Only the fetching is done in threads: each thread that touched the database would open a connection.
    with ThreadPoolExecutor(CONCURRENT, thread_name_prefix="keys") as pool:
        for start in range(0, len(issuer_ids), CONCURRENT):
            claims = [claim for one in issuer_ids[start : start + CONCURRENT] if (claim := _claim(one, None))]
            for claim, fetched in zip(claims, pool.map(_fetch, [c.issuer for c in claims]), strict=True):
                changed += _store(claim, fetched) == "refreshed"
    return changed


def discover(issuer: Issuer, get: Callable[[str], dict[str, Any]]) -> str:
    """The issuer's `jwks_uri`: the one that staff set, else by OpenID Connect Discovery (section 4), else by
    RFC 8414 (section 3.1). Raises FetchError.

    The document must name the very issuer (RFC 8414 section 3.3), else another's keys would pass for its own.
    """
    if issuer.jwks_uri:
        return issuer.jwks_uri
    failures = []
    for url in _discovery_urls(issuer.issuer):
        try:
            return _jwks_uri(get(url), issuer.issuer)
        except FetchError as error:
            failures.append(str(error))
    raise FetchError("discovery by OpenID Connect: {}; by RFC 8414: {}".format(*failures))


def _discovery_urls(issuer: str) -> tuple[str, str]:
    base = issuer.rstrip("/")
    parts = urlsplit(base)
    origin = f"{parts.scheme}://{parts.netloc}"
    return (
        f"{base}/.well-known/openid-configuration",
        f"{origin}/.well-known/oauth-authorization-server{parts.path}",
    )


def _jwks_uri(document: dict[str, Any], issuer: str) -> str:
    if document.get("issuer") != issuer:
        raise FetchError("the discovery document is of another issuer")
    uri = document.get("jwks_uri")
    if not isinstance(uri, str):
        raise FetchError("the discovery document names no jwks_uri")
    return uri


def _fetch(issuer: Issuer) -> dict[str, Any] | FetchError:
    """The issuer's key set as we store it. Touches no database, so that it can run in any thread."""
    deadline = time.monotonic() + TIMEOUT

    def get(url: str) -> dict[str, Any]:
        return get_json(
            url,
            allowed_networks=[ip_network(one, strict=False) for one in issuer.allowed_networks],
            allow_loopback_http=settings.MUNIMENT_DEMO,
            timeout=deadline - time.monotonic(),
        )

    try:
        return jwks.normalise(get(discover(issuer, get)))
    except FetchError as error:
        return error
    except ValueError as error:  # of normalise(), or of a network that staff mistyped
        return FetchError(str(error))
    except Exception:
        # A bug that one strange server can trigger must not stop the keys of the others.
        logger.exception("fetching the keys of issuer %s failed unexpectedly", issuer.pk)
        return FetchError("fetching failed unexpectedly; the process's log says more")


def _claim(issuer_id: int, cooldown: float | None) -> Claim | None:
    """The right to fetch, taken in one atomic UPDATE; None where the issuer is disabled or was tried less
    than `cooldown` seconds ago, or its row is held: of two that ask at once, neither waits for the other."""
    issuer = Issuer.objects.filter(pk=issuer_id, enabled=True).first()
    if issuer is None:
        return None
    for _ in range(2):
        with connection.cursor() as cursor:
            cursor.execute(CLAIM, {"issuer": issuer_id, "seconds": cooldown})
            row = cursor.fetchone()
        if row is not None:
            return Claim(issuer, row[0])
        if KeySet.objects.filter(issuer_id=issuer_id).exists():
            break
        KeySet.objects.bulk_create([KeySet(issuer=issuer)], ignore_conflicts=True)
    return None


def _store(claim: Claim, fetched: dict[str, Any] | FetchError) -> Stored:
    """Keep what was fetched, unless somebody claimed a later fetch: what that one brings is newer."""
    mine = KeySet.objects.filter(issuer_id=claim.issuer.pk, attempted_at=claim.at)
    if isinstance(fetched, FetchError):
        logger.warning("the keys of issuer %s could not be fetched: %s", claim.issuer.pk, fetched)
        mine.update(error=str(fetched)[:MAX_ERROR], finished_at=Now())
        return "failed"
    success: dict[str, Any] = {"fetched_at": Now(), "finished_at": Now(), "error": ""}
    if mine.exclude(jwks=fetched).update(jwks=fetched, **success):
        logger.info("issuer %s has a new key set of %s keys", claim.issuer.pk, len(fetched["keys"]))
        return "refreshed"
    mine.update(**success)
    return "unchanged"


def _outside_transactions() -> None:
    if connection.in_atomic_block:
        raise RuntimeError("keys are fetched outside transactions only")
