"""The identity assertion, verified: a service further down learns who calls, and needs neither the user's token nor a
key of the platform.

An assertion (DESIGN: `POST /v1/verify` with `assertion`) is a JWT (RFC 7519) signed with EdDSA (RFC 8037), for one
audience, for at most 60 seconds. It may be shown more than once in that time; who must not serve a call twice keeps
each `record` for 65 seconds.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from muniment.assertion_keys import KeySource, PublishedKey, published
from muniment.client import usable
from muniment.errors import Misconfigured, MunimentError

TYPE: Final = "muniment-assertion+jwt"
LIFE: Final = 60  # seconds, at most, from `iat` to `exp`
LEEWAY: Final = 5  # seconds that two clocks may differ
MAX_LENGTH: Final = 16_384  # characters
_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{86})")
_HEADER: Final = frozenset({"typ", "alg", "kid"})
_TEXTS: Final = ("iss", "aud", "sub", "jti", "client", "tool", "scope")


class AssertionRefused(MunimentError):
    """What was shown is no assertion that holds here and now. The text says why, and nothing of what was shown."""

    status = 401

    @property
    def headers(self) -> dict[str, str]:
        """`WWW-Authenticate` (RFC 6750 section 3)."""
        return {"WWW-Authenticate": 'Bearer error="invalid_token"'}


@dataclass(frozen=True, slots=True)
class AssertedCaller:
    """The verified user of a call, as the platform told it: by which client and tool, with which effective scopes.
    `record` is the decision in the log, `issuer` the platform, `expires_at` seconds since the epoch."""

    uid: str
    client: str
    tool: str
    scopes: tuple[str, ...]
    record: str
    issuer: str
    expires_at: int


class AssertionVerifier:
    """Verifies assertions for one audience, which is registered for the backend that asks for them.

    `keys` is the platform's URL, whose `/v1/keys` is fetched and kept, or a saved answer of it (a JWKS, RFC 7517).
    `issuer` is the platform's name in assertions, its MUNIMENT_URL; by default the URL that is given. `timeout` is in
    seconds; more arguments go to the HTTP client (`verify=`, `proxy=`). Threads and event loops may share one. Raises
    Misconfigured.
    """

    def __init__(
        self,
        keys: str | Mapping[str, Any],
        *,
        audience: str,
        issuer: str | None = None,
        timeout: float = 5.0,
        **http: Any,
    ) -> None:
        if isinstance(keys, str):
            if not usable(keys):
                raise Misconfigured("The URL of the platform must be an http(s) URL without a user or a query.")
            issuer = keys.rstrip("/") if issuer is None else issuer
            self._source: KeySource | None = KeySource(keys.rstrip("/") + "/v1/keys", timeout, http)
            self._pinned: Mapping[str, PublishedKey] = {}
        else:
            self._source, self._pinned = None, _pinned(keys)
        if not audience or not issuer:
            raise Misconfigured("An audience is needed, and with saved keys the issuer: the platform's MUNIMENT_URL.")
        self.audience, self.issuer = audience, issuer

    def __repr__(self) -> str:
        return f"AssertionVerifier(audience={self.audience!r}, issuer={self.issuer!r})"

    def verify(self, assertion: str | None) -> AssertedCaller:
        """Who calls. Raises AssertionRefused; Unavailable where the platform's keys are needed and cannot be had."""
        shown = _take_apart(assertion)
        self._check(shown, time.time())
        if self._source is None:
            return self._verified(shown, self._pinned)
        return self._verified(shown, self._source.keys(shown.kid))

    async def averify(self, assertion: str | None) -> AssertedCaller:
        """`verify`, for an event loop: keys are fetched in a thread, once in minutes."""
        shown = _take_apart(assertion)
        self._check(shown, time.time())
        if self._source is None:
            return self._verified(shown, self._pinned)
        held = self._source.held(shown.kid)
        if held is None:
            held = await asyncio.to_thread(self._source.keys, shown.kid)
        return self._verified(shown, held)

    def close(self) -> None:
        """End the connections; a later call makes new ones."""
        if self._source is not None:
            self._source.close()

    def _check(self, shown: _Shown, now: float) -> None:
        """Claims that need no key: a forgery that fails here makes nobody fetch anything."""
        claims = shown.claims
        if claims["iss"] != self.issuer:
            raise AssertionRefused("The assertion is of another issuer.")
        if claims["aud"] != self.audience:
            raise AssertionRefused("The assertion is for another audience.")
        issued, expires = claims["iat"], claims["exp"]
        if not 0 < expires - issued <= LIFE:
            raise AssertionRefused("The assertion holds for longer than an assertion may.")
        if issued > now + LEEWAY:
            raise AssertionRefused("The assertion is of the future.")
        if expires <= now - LEEWAY:
            raise AssertionRefused("The assertion has expired.")

    def _verified(self, shown: _Shown, keys: Mapping[str, PublishedKey]) -> AssertedCaller:
        key = keys.get(shown.kid)
        if key is None or not key.valid(time.time(), LEEWAY):
            raise AssertionRefused("The assertion is signed with no key that is published for assertions.")
        try:
            Ed25519PublicKey.from_public_bytes(key.public).verify(shown.signature, shown.signed)
        except InvalidSignature:
            raise AssertionRefused("The signature of the assertion does not hold.") from None
        claims = shown.claims
        return AssertedCaller(
            uid=claims["sub"],
            client=claims["client"],
            tool=claims["tool"],
            scopes=tuple(claims["scope"].split()),
            record=claims["jti"],
            issuer=claims["iss"],
            expires_at=claims["exp"],
        )


@dataclass(frozen=True, slots=True)
class _Shown:
    """A compact JWS (RFC 7515 section 7.1), of an assertion's form. Nothing of it is verified."""

    kid: str
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


def _take_apart(assertion: str | None) -> _Shown:
    """Raises AssertionRefused for what has not the form of an assertion, the header included: a header that names
    another algorithm, a key of its own or an extension is not read any further (RFC 8725)."""
    if not isinstance(assertion, str) or not assertion:
        raise AssertionRefused("No assertion was shown.")
    match = _COMPACT.fullmatch(assertion) if len(assertion) <= MAX_LENGTH else None
    if match is None:
        raise AssertionRefused("What was shown is not a signed JWT of an assertion's form.")
    header, claims = _object(match[1]), _object(match[2])
    if header.keys() != _HEADER or header["typ"] != TYPE or header["alg"] != "EdDSA" or type(header["kid"]) is not str:
        raise AssertionRefused("What was shown is a JWT, and no assertion.")
    if any(type(claims.get(name)) is not str for name in _TEXTS) or not claims["sub"]:
        raise AssertionRefused("The assertion lacks a claim.")
    if any(type(claims.get(name)) is not int for name in ("iat", "exp")):
        raise AssertionRefused("The assertion says not from when and until when it holds.")
    return _Shown(header["kid"], claims, assertion[: match.end(2)].encode("ascii"), _bytes(match[3]))


def _object(part: str) -> dict[str, Any]:
    """A JSON object in base64url, without a member twice: two readers could each take another one."""
    try:
        found = json.loads(_bytes(part).decode("utf-8"), object_pairs_hook=_members)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise AssertionRefused("What was shown is not a signed JWT of an assertion's form.")
    return found


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member twice")
    return found


def _bytes(part: str) -> bytes:
    """base64url without padding (RFC 7515 section 2), in its one spelling (RFC 4648 section 3.5)."""
    try:
        found = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        found = b""
    if urlsafe_b64encode(found).rstrip(b"=").decode("ascii") != part:
        raise AssertionRefused("What was shown is not a signed JWT of an assertion's form.")
    return found


def _pinned(document: Mapping[str, Any]) -> dict[str, PublishedKey]:
    try:
        found = published(document)
    except ValueError:
        found = {}
    if not found:
        raise Misconfigured("The saved key set holds no key for assertions: save an answer of GET /v1/keys.")
    return found
