"""Which proofs were used: each is good for one request (RFC 9449 section 11.1), whichever process it comes to.

Redis keeps, for as long as a proof could be used again, who used it; what is kept there is a keyed hash, of which
nothing can be read. While Redis is away no proof can be told from one that was used, so none is accepted.
"""

import hmac
import logging
import secrets
import time
from collections.abc import Sequence
from functools import cache
from math import ceil
from typing import Final

import redis
from django.conf import settings

from audit.protection import keyed_hash
from clients import impatient
from clients.dpop import Proof

logger = logging.getLogger(__name__)

REST: Final = 1.0  # seconds without asking Redis, after it was away
MARGIN: Final = 30  # seconds by which the clocks of web processes may differ

_away_until = 0.0


class Away(Exception):
    """It cannot be told which proofs were used."""


@cache
def store() -> redis.Redis:
    """The connection pool."""
    return impatient.pool(settings.REDIS_URL)


def request_name(*parts: str) -> str:
    """The name of one request, by what tells it from all others; without parts, of one that is like no other."""
    return keyed_hash("dpop_request", "\x00".join(parts)).hex()[:32] if parts else secrets.token_hex(16)


def use(proofs: Sequence[tuple[Proof, str]], now: float) -> list[bool]:
    """Use proofs, each for the request of this name; for each whether it is that request's: False for one that another
    request used. The same request may use its proof again, since a call may be decided again. All in one exchange.
    Raises Away."""
    global _away_until
    if not proofs:
        return []
    if time.monotonic() < _away_until:
        raise Away
    try:
        with store().pipeline(transaction=False) as pipeline:
            for proof, request in proofs:
                key = "dpop:" + keyed_hash("dpop_proof", proof.name).hex()
                seconds = max(1, ceil(proof.until - now)) + MARGIN
                pipeline.set(key, request, nx=True, ex=seconds)
                pipeline.get(key)
            found = pipeline.execute()
    except redis.RedisError as error:
        _away_until = time.monotonic() + REST
        logger.error("proofs of possession are refused: Redis is away (%s)", type(error).__name__)
        raise Away from None
    return [
        kept is not None and hmac.compare_digest(kept, request.encode())
        for kept, (_, request) in zip(found[1::2], proofs, strict=True)
    ]
