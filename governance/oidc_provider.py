"""The staff's identity provider, as it is asked: discovery (OpenID Connect Discovery 1.0), its keys, and the exchange
of a code for tokens. It is the operator's choice, so its addresses may be private ones; what it answers is bounded in
size and time, redirects are not followed, and what it says of itself must fit the issuer that is configured."""

import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from threading import BoundedSemaphore, Lock
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote_plus, urlsplit

from django.conf import settings

from clients import fetching, jwks
from clients.jwks import VerificationKey

TIMEOUT: Final = 5.0  # seconds for one exchange, all of it
MAX_BYTES: Final = 256 * 1024
KEEP: Final = 3600.0  # seconds that discovery and keys are used without asking again
REST: Final = 10.0  # seconds without asking again, after a failure, and between fetches for the sake of an unknown key
WELL_KNOWN: Final = "/.well-known/openid-configuration"
ANYWHERE: Final = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))

# Of the threads of a process, which serve backends too, no more than these wait for a provider that is slow.
WAITERS: Final = 4
_turns = BoundedSemaphore(WAITERS)

T = TypeVar("T")


class ProviderError(Exception):
    """The provider cannot be used; the message says why in plain words and quotes nothing of its answers."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """What discovery says, as far as it is used. `basic`: the client's secret goes into the Authorization header
    (client_secret_basic), else into the form. `names_itself`: its answers carry `iss` (RFC 9207)."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    basic: bool
    names_itself: bool


@contextmanager
def turn() -> Iterator[None]:
    """One of the few threads that may wait for the provider. Raises ProviderError where others wait already."""
    if not _turns.acquire(blocking=False):
        raise ProviderError("too many wait for it already")
    try:
        yield
    finally:
        _turns.release()


class Kept(Generic[T]):
    """What `fetch` brought, for KEEP seconds; a failure is remembered for REST, so that a provider that is down holds
    up one request at a time and not every one. Threads may share it."""

    def __init__(self, fetch: Callable[[], T]) -> None:
        self._fetch, self._lock = fetch, Lock()
        self._found: T | None = None
        self._at = self._tried = -KEEP - REST
        self._failure = ""

    def _good(self, anew: bool) -> T | None:
        """What is kept and may still be used."""
        since = self._tried if anew else self._at
        return self._found if time.monotonic() - since < (REST if anew else KEEP) else None

    def get(self, anew: bool = False) -> T:
        """What is kept, or fetched now; `anew`: fetched, if it was not a moment ago. Raises ProviderError."""
        if (kept := self._good(anew)) is not None:
            return kept
        with turn(), self._lock:
            if (kept := self._good(anew)) is not None:  # another thread was faster
                return kept
            now = time.monotonic()
            if now - self._tried < REST and self._failure:
                raise ProviderError(self._failure)
            self._tried = now
            try:
                self._found, self._failure = self._fetch(), ""
            except ProviderError as error:
                self._failure = str(error)
                raise
            self._at = self._tried = time.monotonic()
            return self._found


class Provider:
    """One issuer."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self._metadata = Kept(self._discover)
        self._keys = Kept(self._fetch_keys)

    def metadata(self) -> Metadata:
        """What it says of itself. Raises ProviderError."""
        return self._metadata.get()

    def keys(self, anew: bool = False) -> tuple[VerificationKey, ...]:
        """The keys that it signs with. Raises ProviderError."""
        return self._keys.get(anew)

    def exchange(self, form: Mapping[str, str], client_id: str, secret: str) -> dict[str, Any]:
        """What the token endpoint answers to a form (RFC 6749 section 4.1.3). Raises ProviderError."""
        about, fields, authorization = self.metadata(), {**form, "client_id": client_id}, None
        if about.basic:  # both are form-encoded first: RFC 6749 section 2.3.1
            pair = f"{quote_plus(client_id)}:{quote_plus(secret)}".encode("ascii")
            authorization = f"Basic {b64encode(pair).decode()}"
        else:
            fields["client_secret"] = secret
        try:
            with turn():
                return fetching.post_form(about.token_endpoint, fields, authorization=authorization, **limits())
        except fetching.FetchError as error:
            raise ProviderError(f"token endpoint: {error}") from None

    def _discover(self) -> Metadata:
        document = get(self.issuer.rstrip("/") + WELL_KNOWN, "discovery")
        if document.get("issuer") != self.issuer:
            raise ProviderError("discovery: the issuer in it is another one")
        # Section 3: where it says nothing, it takes client_secret_basic.
        ways = document.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        if not isinstance(ways, list) or not {"client_secret_basic", "client_secret_post"} & {str(way) for way in ways}:
            raise ProviderError("discovery: the provider takes no client secret")
        return Metadata(
            endpoint(document, "authorization_endpoint"), endpoint(document, "token_endpoint"),
            endpoint(document, "jwks_uri"), "client_secret_basic" in ways,
            document.get("authorization_response_iss_parameter_supported") is True,
        )  # fmt: skip

    def _fetch_keys(self) -> tuple[VerificationKey, ...]:
        found = jwks.parse(get(self.metadata().jwks_uri, "keys"))
        if not found:
            raise ProviderError("keys: the provider has published none that can be used")
        return found


def limits() -> dict[str, Any]:
    """How it is asked: http only on loopback, and only in demo mode."""
    return {
        "allowed_networks": ANYWHERE, "allow_loopback_http": settings.MUNIMENT_DEMO, "timeout": TIMEOUT,
        "max_bytes": MAX_BYTES,
    }  # fmt: skip


def get(url: str, what: str) -> dict[str, Any]:
    """A JSON object of the provider's. Raises ProviderError."""
    try:
        return fetching.get_json(url, **limits())
    except fetching.FetchError as error:
        raise ProviderError(f"{what}: {error}") from None


def endpoint(document: Mapping[str, Any], name: str) -> str:
    """An address from discovery, fit to be asked or to send somebody to. Raises ProviderError."""
    url = document.get(name)
    if not isinstance(url, str) or not is_address(url, loopback_http=settings.MUNIMENT_DEMO):
        raise ProviderError(f"discovery: {name} is no https address")
    return url


def is_address(url: str, *, loopback_http: bool) -> bool:
    """Whether it is an https URL of printable ASCII with a host, without user, fragment and blanks; or, where that is
    allowed, an http one of this machine."""
    if not url.isascii() or not url.isprintable() or set(' "<>\\^`{|}') & set(url) or len(url) > fetching.MAX_URL:
        return False
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or port == 0 or parts.fragment or "@" in parts.netloc:
        return False
    return parts.scheme == "https" or (loopback_http and parts.scheme == "http" and is_loopback(host))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name."""
    return host in ("localhost", "127.0.0.1", "::1")


@lru_cache(maxsize=4)
def provider(issuer: str) -> Provider:
    """The one for an issuer, with what is known of it in this process."""
    return Provider(issuer)
