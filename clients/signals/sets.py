"""Security Event Tokens: one compact JWS in, one verified event out (pure; RFC 8417, OpenID Shared Signals 1.0).

An event token says what happened and lets nobody in, and an access or ID token is no event: the two are told apart by
`typ`, which an event token must have, and by `events`, which the others must not (RFC 8725 section 3.12). No expiry is
asked for (RFC 8417 section 2.2): what keeps an old one from counting again is its `jti`, for as long as that is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from clients.jwks import SUPPORTED, IssuerPolicy, VerificationKey
from clients.tokens import Parts, Refused, UnknownKey, check_signature, take_apart

# RFC 8935 section 2.4, which RFC 8936 uses too.
Code = Literal[
    "invalid_request", "invalid_key", "invalid_issuer", "invalid_audience", "authentication_failed", "access_denied"
]

MAX_SET: Final = 64 * 1024  # characters
MAX_TEXT: Final = 255
LEEWAY: Final = 60  # seconds that the transmitter's clock may be ahead
MAX_AGE: Final = 28 * 24 * 3600  # seconds; receipts are kept for longer, so that no event counts twice
_TYPES: Final = frozenset({"secevent+jwt", "application/secevent+jwt"})


class SetRefused(Exception):
    """The token is no event that counts. `code` is for the transmitter (RFC 8935 section 2.4); `detail` says in plain
    words what is wrong, and holds nothing of the token."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(code, detail)
        self.code: Code = code
        self.detail = detail


class KeyUnknown(SetRefused):
    """No key that we have of the transmitter could have signed it: fetch the keys and try again."""


@dataclass(frozen=True, slots=True)
class Transmitter:
    """Who may send what to whom: `issuer` is what `iss` must be, `audience` what `aud` must name. `keys` are None while
    none could ever be had, or those that we have are too old."""

    issuer: str
    audience: str
    keys: tuple[VerificationKey, ...] | None


@dataclass(frozen=True, slots=True)
class EventToken:
    """A verified event token: the URI of its one event, the event's own members, and the `sub_id` beside it (RFC 9493),
    None where it has none. Times are seconds since the epoch."""

    jti: str
    issued_at: float
    event: str
    payload: Mapping[str, Any]
    sub_id: Any
    happened_at: Any  # `toe`, as it is


def read(token: str, transmitter: Transmitter, now: float) -> EventToken:
    """Verify an event token and read it. `now` is seconds since the epoch. Raises SetRefused, and nothing else,
    whatever the token: KeyUnknown when fetching the transmitter's keys might help."""
    try:
        parts = take_apart(token, MAX_SET)
    except Refused as refused:
        raise SetRefused("invalid_request", refused.detail or "it is empty") from None
    kind = parts.header.get("typ")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise SetRefused("invalid_request", "typ is not secevent+jwt")
    if parts.claims.get("iss") != transmitter.issuer:
        raise SetRefused("invalid_issuer", "iss is not the transmitter of this stream")
    _signed(parts, transmitter)
    return _claims(parts.claims, transmitter.audience, now)


def _signed(parts: Parts, transmitter: Transmitter) -> None:
    """That one of the transmitter's keys signed it, by an algorithm with two keys (RFC 7518; never `none` or HMAC)."""
    keys = transmitter.keys
    policy = IssuerPolicy(0, transmitter.issuer, SUPPORTED, LEEWAY, 0, None, None, keys or (), keys is not None)
    try:
        check_signature(parts, policy)
    except UnknownKey as unknown:
        raise KeyUnknown("invalid_key", unknown.detail) from None
    except Refused as refused:
        raise SetRefused("invalid_key", refused.detail) from None


def _claims(claims: Mapping[str, Any], audience: str, now: float) -> EventToken:
    named = claims.get("aud")
    listed = [named] if isinstance(named, str) else named
    if not isinstance(listed, list) or audience not in listed:
        raise SetRefused("invalid_audience", "aud does not name this stream's audience")
    jti = claims.get("jti")
    if not isinstance(jti, str) or not jti.isprintable() or not 1 <= len(jti) <= MAX_TEXT:
        raise SetRefused("invalid_request", f"jti is not a printable string of 1 to {MAX_TEXT} characters")
    events = claims.get("events")
    if not isinstance(events, dict) or len(events) != 1:
        raise SetRefused("invalid_request", "events is not an object with exactly one event")
    [(event, payload)] = events.items()
    if not isinstance(payload, dict) or not event.isprintable() or not 1 <= len(event) <= MAX_TEXT:
        raise SetRefused("invalid_request", "the event is not an object under a URI")
    issued_at = _issued_at(claims, now)
    return EventToken(jti, issued_at, event, payload, claims.get("sub_id"), claims.get("toe"))


def _issued_at(claims: Mapping[str, Any], now: float) -> float:
    issued_at = seconds(claims.get("iat"))
    if issued_at is None or issued_at > now + LEEWAY:
        raise SetRefused("invalid_request", "iat is missing, no time, or in the future")
    if issued_at < now - MAX_AGE:
        raise SetRefused("invalid_request", f"iat is more than {MAX_AGE // 86_400} days ago")
    if "exp" in claims and ((expires_at := seconds(claims["exp"])) is None or now >= expires_at + LEEWAY):
        raise SetRefused("invalid_request", "exp is no time, or in the past")
    return issued_at


def seconds(value: Any) -> float | None:
    """A NumericDate (RFC 7519 section 2) before the year 10000; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 253_402_300_799:
        return None
    return float(value)
