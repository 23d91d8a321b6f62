"""The platform's keys for assertions: read from a key set, fetched when they are needed, kept for a while.

A set is asked for again after 5 minutes, and for a key that is not in it at most once a minute, whatever strangers
show. While the platform is away the last set serves for an hour: a key that is retired in that time is believed so
long, and no longer.
"""

from __future__ import annotations

import json
import threading
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Any, Final

import httpx2

from muniment import __version__, forks
from muniment.errors import Unavailable
from muniment.keys import MAX_BYTES, thumbprint

FRESH: Final = 300.0  # seconds; then a set is asked for again
STALE: Final = 3600.0  # seconds; then a set that could not be had again serves no more
PAUSE_AFTER_SET: Final = 60.0  # seconds before an unknown key is asked for again
PAUSE_AFTER_FAILURE: Final = 5.0  # seconds
_FETCH: Final = 10.0  # seconds, of one answer as a whole


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """An Ed25519 key for assertions, 32 bytes; from when and until when (None: still) it signs, as POSIX times."""

    public: bytes
    not_before: float
    not_after: float | None

    def valid(self, now: float, leeway: float) -> bool:
        """Whether it is in use. A retired key is refused at once, since it may be retired for being stolen."""
        return self.not_before <= now + leeway and (self.not_after is None or now < self.not_after)


class KeySource:
    """The keys at a URL. Threads may share one."""

    def __init__(self, url: str, timeout: float, http: Mapping[str, Any]) -> None:
        self.url = url
        self._keys: Mapping[str, PublishedKey] = {}
        self._fetched: float | None = None
        self._next = float("-inf")  # when the platform may be asked again
        self._fault = ""  # why it gave no keys when it was asked last
        self._lock = threading.Lock()
        self._client: httpx2.Client | None = None
        self._settings: dict[str, Any] = {
            "timeout": httpx2.Timeout(timeout, connect=min(timeout, 2.0)),
            "headers": {"Accept": "application/json", "User-Agent": f"muniment/{__version__}"},
            "follow_redirects": False,  # whoever answers elsewhere is not the platform
            "trust_env": False,
            **http,
        }
        forks.remember(self)

    def after_fork(self) -> None:
        """In a child: the connection stays with the parent."""
        self._lock, self._client = threading.Lock(), None

    def held(self, kid: str) -> Mapping[str, PublishedKey] | None:
        """The keys that are known, if nothing needs to be fetched for this one."""
        age = self._age()
        if age < FRESH and (kid in self._keys or monotonic() < self._next):
            return self._keys
        return None

    def keys(self, kid: str) -> Mapping[str, PublishedKey]:
        """The keys by their ids, fetched if that is due. Raises Unavailable where there are none that may serve."""
        if (held := self.held(kid)) is not None:
            return held
        forks.notice()
        # Who has the key goes on with it while another thread asks; who has not waits for the answer.
        if self._lock.acquire(blocking=kid not in self._keys or self._age() >= STALE):
            try:
                if self.held(kid) is None and monotonic() >= self._next:
                    self._refresh()
            finally:
                self._lock.release()
        if self._age() >= STALE:
            raise Unavailable(self._fault)
        return self._keys

    def close(self) -> None:
        """End the connections; a later call makes new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _age(self) -> float:
        return float("inf") if self._fetched is None else monotonic() - self._fetched

    def _refresh(self) -> None:
        """Ask once, and note when to ask again."""
        try:
            found = published(json.loads(self._answer().decode("utf-8")))
        except httpx2.TimeoutException:
            self._failed("timeout")
        except httpx2.HTTPError:
            self._failed("unreachable")
        except _NoKeySet as error:
            self._failed(str(error))
        except (ValueError, RecursionError):
            self._failed("no_key_set")
        else:
            # The keys before their age: a thread that sees the new age must not see the old keys.
            self._keys, self._fetched = found, monotonic()
            self._next = monotonic() + PAUSE_AFTER_SET

    def _failed(self, cause: str) -> None:
        self._fault, self._next = cause, monotonic() + PAUSE_AFTER_FAILURE

    def _answer(self) -> bytes:
        if self._client is None:
            self._client = httpx2.Client(**self._settings)
        latest = monotonic() + _FETCH
        data = b""
        with self._client.stream("GET", self.url) as response:
            if response.status_code != 200:
                raise _NoKeySet(f"status_{response.status_code}")
            for chunk in response.iter_bytes(65_536):
                data += chunk
                if len(data) > MAX_BYTES or monotonic() > latest:
                    raise _NoKeySet("no_key_set")
        return data


class _NoKeySet(Exception):
    """What answered gave no key set; why, as a cause of an outage."""


def published(document: object) -> dict[str, PublishedKey]:
    """The keys for assertions in an answer of `GET /v1/keys`, by id. Keys of other uses sign other things, and are left
    out, and so is what cannot be read. Raises ValueError for what is no key set (RFC 7517 section 5)."""
    rows = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(rows, list):
        raise ValueError("no key set")
    found = {}
    for row in rows:
        if isinstance(row, Mapping) and row.get("use") == "assertion" and (key := _key(row)) is not None:
            found[thumbprint(key.public)] = key
    return found


def _key(row: Mapping[str, Any]) -> PublishedKey | None:
    """A key whose id is the thumbprint of its bytes (RFC 7638), so that no set can give it another's name."""
    if (row.get("kty"), row.get("crv"), row.get("alg")) != ("OKP", "Ed25519", "EdDSA"):
        return None
    try:
        public = urlsafe_b64decode(row["x"] + "=")
        key = PublishedKey(
            public, _moment(row["not_before"]), None if row["not_after"] is None else _moment(row["not_after"])
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return key if len(public) == 32 and thumbprint(public) == row.get("kid") else None


def _moment(text: str) -> float:
    """RFC 3339, as POSIX time. Raises ValueError without an offset: it would be read as the time of this machine."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("no offset from UTC")
    return at.timestamp()
