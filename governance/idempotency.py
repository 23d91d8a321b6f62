"""Idempotency-Key: a retry gets the first answer, recorded once (DESIGN.md section 4).

Kept in Redis for ten minutes, per backend key; what is kept holds no identifiers of the user. Without Redis calls
are decided as if they carried no key: a second record is better than no service, and a log line says so.
"""

import hmac
import json
import logging
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import redis
from django.conf import settings

from audit.protection import keyed_hash

logger = logging.getLogger(__name__)

KEEP = 600  # seconds
IN_FLIGHT = 15  # seconds after which a call that never ended no longer blocks its retry
WAIT = 5.0  # seconds that a retry waits for the call in flight
REST = 5.0  # seconds without asking Redis, after it was away

# What an answer says about the user; filled in again from the token that the retry brings.
PERSONAL = ("subject", "assertion")

_away_until = 0.0


@cache
def store() -> redis.Redis:
    """The connection pool; short timeouts, because a call waits for it."""
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=0.25, socket_connect_timeout=0.25)


class OtherBody(Exception):
    """The key was used before with another body."""


class InFlight(Exception):
    """The first call has not ended yet."""


@dataclass(slots=True)
class Slot:
    """One key's place: `answer` is what was kept of the first call, None for the first call itself."""

    name: str
    body: str
    answer: dict[str, Any] | None = None

    def keep(self, answer: dict[str, Any]) -> None:
        """Keep the answer, without what it says about the user."""
        kept = {name: value for name, value in answer.items() if name not in PERSONAL}
        _try(lambda: store().set(self.name, json.dumps({"body": self.body, "answer": kept}), ex=KEEP))

    def release(self) -> None:
        """Nothing was answered: let the retry be the first call."""
        _try(lambda: store().delete(self.name))


def _try(action: Any) -> Any:
    """Run one command; None when Redis is away, which is then left alone for a while."""
    global _away_until
    if time.monotonic() < _away_until:
        return None
    try:
        return action()
    except redis.RedisError as error:
        _away_until = time.monotonic() + REST
        logger.error("idempotency keys are not honoured: Redis is away (%s)", type(error).__name__)
        return None


def claim(key_id: str, idempotency_key: str, body: bytes) -> Slot | None:
    """The slot of this key: claimed for the first call, or with the answer that was kept. None without Redis.
    Raises OtherBody or InFlight."""
    name = "idem:" + keyed_hash("idempotency", f"{key_id}\x00{idempotency_key}").hex()
    slot = Slot(name, keyed_hash("idempotency_body", body.hex()).hex())
    deadline = time.monotonic() + WAIT
    mark = json.dumps({"body": slot.body, "answer": None})
    while True:
        if _try(lambda: store().set(name, mark, nx=True, ex=IN_FLIGHT)):
            return slot
        kept = _try(lambda: store().get(name))
        if kept is None:
            if time.monotonic() < _away_until:
                return None
            continue  # it ended between the two commands
        found = json.loads(kept)
        if not hmac.compare_digest(found["body"], slot.body):
            raise OtherBody
        if found["answer"] is not None:
            slot.answer = found["answer"]
            return slot
        if time.monotonic() > deadline:
            raise InFlight
        time.sleep(0.02)
