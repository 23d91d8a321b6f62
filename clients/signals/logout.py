"""OpenID Connect Back-Channel Logout 1.0: what a logout token must be (pure), and what it does.

The issuer signs it with the keys and the clock of its access tokens. So the moment of the logout is its `iat`, exactly,
and the same token, sent again, signs nobody out a second time.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from audit import subjects
from audit.models import Subject
from audit.outbox import acting
from clients.claims import configured
from clients.jwks import IssuerPolicy
from clients.signals.applying import ATTEMPTS, Vanished
from clients.signals.sets import LEEWAY, MAX_TEXT, seconds
from clients.tokens import Refused, check_signature, take_apart

EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"
MAX_AGE: Final = 600  # seconds that a token without `exp` counts
# Section 2.4: logout+jwt is recommended; what is left out, or JWT, is what came before.
_TYPES: Final = frozenset({"jwt", "logout+jwt", "application/logout+jwt"})


class LogoutRefused(Exception):
    """The token signs nobody out; the message says why in plain words, and holds nothing of it."""


@dataclass(frozen=True, slots=True)
class Logout:
    """A verified logout: of whom, at which issuer, and when (seconds since the epoch)."""

    issuer: IssuerPolicy
    sub: str
    at: float


def read(token: str, issuers: Mapping[str, IssuerPolicy], clients: Collection[tuple[str, str]], now: float) -> Logout:
    """Verify a logout token (section 2.6). `issuers` are the enabled ones by their exact names; `clients` the pairs of
    issuer and OAuth client id that are registered; `now` is seconds since the epoch. Raises LogoutRefused, and
    clients.tokens.UnknownKey when fetching the issuer's keys might help."""
    try:
        parts = take_apart(token)
    except Refused as refused:
        raise LogoutRefused(refused.detail or "there is no token") from None
    kind, claims = parts.header.get("typ", "JWT"), parts.claims
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise LogoutRefused("typ is not that of a logout token")
    name = claims.get("iss")
    issuer = issuers.get(name) if isinstance(name, str) else None
    if issuer is None:
        raise LogoutRefused("iss is not an issuer that is accepted here")
    _refuse_other_kinds(claims)
    try:
        check_signature(parts, issuer)
    except Refused as refused:
        if type(refused) is not Refused:  # UnknownKey
            raise
        raise LogoutRefused(refused.detail) from None
    _about_us(claims, issuer, clients)
    return Logout(issuer, _sub(claims, issuer), _issued_at(claims, issuer, now))


def _refuse_other_kinds(claims: Mapping[str, Any]) -> None:
    """Section 2.4: the event makes it a logout token; a nonce would make it an ID token."""
    events = claims.get("events")
    if not isinstance(events, dict) or not isinstance(events.get(EVENT), dict):
        raise LogoutRefused("events does not hold a back-channel logout")
    if "nonce" in claims:
        raise LogoutRefused("a logout token must not have a nonce")


def _about_us(claims: Mapping[str, Any], issuer: IssuerPolicy, clients: Collection[tuple[str, str]]) -> None:
    named = claims.get("aud")
    listed = [named] if isinstance(named, str) else named
    if not isinstance(listed, list) or not any(
        isinstance(one, str) and (issuer.issuer, one) in clients for one in listed
    ):
        raise LogoutRefused("aud names no client that is registered for this issuer")
    jti = claims.get("jti")
    if not isinstance(jti, str) or not jti:
        raise LogoutRefused("jti is missing")


def _issued_at(claims: Mapping[str, Any], issuer: IssuerPolicy, now: float) -> float:
    leeway = max(LEEWAY, issuer.leeway)
    issued_at = seconds(claims.get("iat"))
    if issued_at is None or issued_at > now + leeway:
        raise LogoutRefused("iat is missing, no time, or in the future")
    expires_at = seconds(claims["exp"]) if "exp" in claims else issued_at + MAX_AGE
    if expires_at is None or now >= expires_at + leeway:
        raise LogoutRefused("exp is no time, or in the past; without exp, iat is too long ago")
    return issued_at  # by the clock that dates the tokens, also where that is ahead of ours


def _sub(claims: Mapping[str, Any], issuer: IssuerPolicy) -> str:
    """Who signs out, by the claim that says who the issuer's users are. A session alone (`sid`) is nobody here: no
    sessions are known."""
    name = issuer.claims.subject or "sub"
    sub = configured(claims, name)
    if sub is None:
        raise LogoutRefused(f"{name} is missing: Muniment knows users, and no sessions (sid)")
    if not isinstance(sub, str) or not sub.isprintable() or not sub.strip() or len(sub) > MAX_TEXT:
        raise LogoutRefused(f"{name} is not a printable string of 1 to {MAX_TEXT} characters")
    return sub


def sign_out(logout: Logout) -> bool:
    """Refuse the user's tokens that were issued up to the logout; whether that is new. Once it returns, it is
    committed, and recorded with the change. One who never called is met now. Raises Vanished, or what the database
    raises: then nothing was done."""
    moment = datetime.fromtimestamp(logout.at, UTC)
    for _ in range(ATTEMPTS):
        uid = subjects.resolve(logout.issuer.issuer, logout.sub)
        with acting(f"issuer:{logout.issuer.id}", logout.issuer.issuer, "back-channel logout"):
            user = Subject.objects.select_for_update().filter(uid=uid, erased_at=None).first()
            if user is None:
                subjects.forget(uid)
                continue
            if user.signed_out_at is not None and user.signed_out_at >= moment:
                return False
            user.signed_out_at = moment
            user.save(update_fields=["signed_out_at"])
            return True
    raise Vanished
