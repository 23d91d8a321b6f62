"""Connections to Redis for what a call waits for: a short time, and once."""

from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

TIMEOUT: Final = 0.25  # seconds


def pool(url: str) -> redis.Redis:
    """A connection pool to the Redis of this URL (redis://, rediss:// or unix://). Nothing is tried twice: a command
    whose answer got lost may have been carried out."""
    return redis.Redis.from_url(
        url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, retry=Retry(NoBackoff(), 0)
    )
