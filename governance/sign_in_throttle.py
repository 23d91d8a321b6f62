"""How often a password may be tried, for one account and from one address. Counted in Redis, for all processes; while
Redis is away, in each process for itself. Names and addresses are not kept, only keyed hashes of them.

An attempt is counted before the password is looked at, so that a hundred at once do not all come first. Who signs in
with the identity provider is not concerned: a stranger who fails here locks nobody out there."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from threading import Lock
from typing import Any, Final

import redis
from django.conf import settings
from django.http import HttpRequest

from audit.protection import keyed_hash
from governance.idempotency import store

logger = logging.getLogger(__name__)

WINDOW: Final = 900  # seconds
PER_ACCOUNT: Final = 10  # attempts in a window
PER_ADDRESS: Final = 50
STARTS_PER_ADDRESS: Final = 100  # of sign-ins at the identity provider
MOST_KEPT: Final = 10_000  # by a process, while Redis is away

_TAKE = """
    local count = redis.call('INCR', KEYS[1])
    if count == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
    return {count, redis.call('TTL', KEYS[1])}
"""
_GIVE_BACK = """
    if tonumber(redis.call('GET', KEYS[1]) or '0') > 0 then return redis.call('DECR', KEYS[1]) end
    return 0
"""
_here: dict[str, tuple[int, float]] = {}
_lock = Lock()


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try. `wait` is how many seconds there are still too many; 0: go on."""

    account: str
    address: str
    wait: int

    def succeeded(self) -> None:
        """The password was right: nothing counts against the account, nor this try against the address."""
        _with_redis(lambda: store().delete(self.account), lambda: _forget(self.account))
        _with_redis(lambda: store().eval(_GIVE_BACK, 1, self.address), lambda: _take_here(self.address, -1))


def attempt(account: str, address: str) -> Attempt:
    """Count one try of an account's password from an address (`address_of`)."""
    by_account, by_address = _name("account", account), _name("address", address)
    wait = _take(by_address, PER_ADDRESS)
    return Attempt(by_account, by_address, wait or _take(by_account, PER_ACCOUNT))


def start(address: str) -> int:
    """Count one way to the identity provider; seconds to wait if there were too many from this address, else 0."""
    return _take(_name("start", address), STARTS_PER_ADDRESS)


def address_of(request: HttpRequest) -> str:
    """Where a request comes from, as it is counted: an IPv4 address, or the /64 of an IPv6 one. Behind a proxy that
    is trusted (MUNIMENT_PROXY_TLS), what that proxy says."""
    said = request.META.get("HTTP_X_FORWARDED_FOR", "") if settings.SECURE_PROXY_SSL_HEADER else ""
    for text in (said.rpartition(",")[2].strip(), request.META.get("REMOTE_ADDR", "")):
        try:
            address = ip_address(text)
        except ValueError:
            continue
        if isinstance(address, IPv6Address):
            return str(address.ipv4_mapped or IPv6Address(int(address) >> 64 << 64))
        return str(address)
    return "unknown"


def clear() -> None:
    """Forget what this process counted."""
    with _lock:
        _here.clear()


def _name(kind: str, value: str) -> str:
    return f"muniment:sign-in:{kind}:{keyed_hash('sign-in', value)[:16].hex()}"


def _take(name: str, limit: int) -> int:
    """Count one; the seconds to wait where that is more than the limit."""
    counted: Any = _with_redis(lambda: store().eval(_TAKE, 1, name, WINDOW), lambda: _take_here(name, 1))
    count, left = int(counted[0]), int(counted[1])
    return max(left, 1) if count > limit else 0


def _with_redis(ask: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    try:
        return ask()
    except redis.RedisError as error:
        logger.warning("sign-ins are counted in this process alone: Redis is away (%s)", type(error).__name__)
        return otherwise()


def _take_here(name: str, step: int) -> tuple[int, int]:
    now = time.monotonic()
    with _lock:
        if len(_here) >= MOST_KEPT:
            for old in [key for key, (_, until) in _here.items() if until <= now] or list(_here)[: MOST_KEPT // 2]:
                del _here[old]
        count, until = _here.get(name, (0, 0.0))
        if until <= now:
            count, until = 0, now + WINDOW
        _here[name] = (max(0, count + step), until)
        return _here[name][0], int(until - now) + 1


def _forget(name: str) -> None:
    with _lock:
        _here.pop(name, None)
