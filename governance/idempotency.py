"""Idempotency-Key: a retry gets the first answer, recorded once (DESIGN.md section 4).

Kept in Redis for ten minutes, per backend key; what is kept holds no identifiers of the user. Without Redis calls
are decided as if they carried no key: a second record is better than no service, and a log line says so.

Redis is not believed: a slot's value carries a MAC over its name and content, so that what we did not write there
(another version's shape included) is no slot. It is taken away, and the call is decided.
"""

import hmac
import json
import logging
import secrets
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import redis
from django.conf import settings

from audit.protection import keyed_hash
from clients import impatient

logger = logging.getLogger(__name__)

KEEP = 600  # seconds
IN_FLIGHT = 15  # seconds after which a call that never ended no longer blocks its retry
WAIT = 5.0  # seconds that a retry waits for the call in flight
REST = 5.0  # seconds without asking Redis, after it was away

# What an answer says about the user; filled in again from the token that the retry brings.
PERSONAL = ("subject", "assertion")

# Change a value, or take it away, only while it is the very value that this call put there or found: a call that
# took so long that its claim ran out must not touch the claim of the next. A value that cannot be read at all
# (of another type than string) is nobody's.
_REPLACE = """
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
    return 1
"""
_REMOVE = """
    if redis.call('TYPE', KEYS[1]).ok == 'string' and redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    return redis.call('DEL', KEYS[1])
"""

_away_until = 0.0


@cache
def store() -> redis.Redis:
    """The connection pool."""
    return impatient.pool(settings.REDIS_URL)


class OtherBody(Exception):
    """The key was used before with another body."""


class InFlight(Exception):
    """The first call has not ended yet."""


@dataclass(slots=True)
class Slot:
    """One key's place: `answer` is what was kept of the first call, None for the first call itself. `value` is what
    this call put into Redis or found there; while that is there, the place is this call's to change."""

    name: str
    body: str
    value: bytes = b""
    answer: dict[str, Any] | None = None

    def keep(self, answer: dict[str, Any]) -> None:
        """Keep the answer, without what it says about the user; nothing, if the place is another call's by now."""
        kept = {name: value for name, value in answer.items() if name not in PERSONAL}
        text = _sealed(self.name, {"body": self.body, "answer": kept})
        if _try(lambda: store().eval(_REPLACE, 1, self.name, self.value, text, KEEP)):
            self.value = text

    def release(self) -> None:
        """Nothing was answered: let the retry be the first call, unless another call has the place by now."""
        _try(lambda: store().eval(_REMOVE, 1, self.name, self.value))


def _mac(name: str, content: bytes) -> bytes:
    return keyed_hash("idempotency_slot", f"{name}\x00{content.hex()}").hex().encode()


def _sealed(name: str, content: dict[str, Any]) -> bytes:
    """A slot's value: MAC in hex, a space, JSON."""
    text = json.dumps(content).encode()
    return _mac(name, text) + b" " + text


def _opened(name: str, value: bytes) -> dict[str, Any] | None:
    """What a slot holds; None for a value that we did not put there."""
    mac, _, text = value.partition(b" ")
    if not hmac.compare_digest(mac, _mac(name, text)):
        return None
    content: dict[str, Any] = json.loads(text)
    return content


def _read(name: str) -> bytes | None:
    """The value in Redis; empty for one that is no string."""
    try:
        found: Any = store().get(name)
    except redis.ResponseError as error:
        if str(error).startswith("WRONGTYPE"):
            return b""
        raise
    return None if found is None else bytes(found)


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
    slot.value = _sealed(name, {"body": slot.body, "answer": None, "owner": secrets.token_hex(16)})
    deadline = time.monotonic() + WAIT
    while True:
        if _try(lambda: store().set(name, slot.value, nx=True, ex=IN_FLIGHT)):
            return slot
        value = _try(lambda: _read(name))
        if value is None and time.monotonic() < _away_until:
            return None
        if value is not None and _settled(slot, value):
            return slot
        if time.monotonic() > deadline:
            raise InFlight
        if value is not None:  # without one it ended between the two commands
            time.sleep(0.02)


def _settled(slot: Slot, value: bytes) -> bool:
    """Whether the slot's answer is there, and then takes it. Raises OtherBody. Removes what is no slot's value."""
    found = _opened(slot.name, value)
    if found is None:
        logger.error("an idempotency slot held what Muniment did not put there; it is taken away")
        _try(lambda: store().eval(_REMOVE, 1, slot.name, value))
        return False
    if not hmac.compare_digest(found["body"], slot.body):
        raise OtherBody
    if found["answer"] is None:
        return False
    slot.answer, slot.value = found["answer"], value
    return True
