"""What an issuer says of a token that it was asked about (RFC 7662; signed: RFC 9701), checked and read (pure).

An issuer that answers, and answers wrongly, says nothing of the token: that is a BadAnswer, an outage, and never a
denial of the token itself.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from clients.claims import MAX_DATE, Identity, read_parsed_claims
from clients.jwks import IntrospectionPolicy, IssuerPolicy
from clients.strictjson import parse_object
from clients.tokens import Refused, UnknownKey, check_signature, refuse_other_kinds, take_apart

PLAIN: Final = "application/json"
SIGNED: Final = "application/token-introspection+jwt"
MAX_ANSWER: Final = 64 * 1024  # bytes
MAX_NAMED: Final = 12 * 1024  # bytes of scopes and roles: what the longest token can carry, so that a record has room
MAX_AGE: Final = 60  # seconds since a signed answer was made, besides the issuer's leeway

# An issuer tells of its other tokens too (RFC 7662 section 2.1), and some by one of these members only. None of them
# says that a client may call us.
_KINDS: Final = ("token_type", "token_use", "typ")
_OTHERS: Final = frozenset({"refresh", "refresh_token", "offline", "id", "id_token", "logout", "logout_token"})


class BadAnswer(Exception):
    """The answer is not one that can be believed; the message says why in plain words and quotes nothing of it."""


class UnknownSigner(UnknownKey):
    """A signed answer names a key that we have not: fetch the issuer's keys and ask again, else it is an outage."""

    def __init__(self, issuer: IssuerPolicy) -> None:
        super().__init__(issuer)
        self.reason = "issuer_unavailable"
        self.detail = "the issuer signs its answers with a key that it has not published"


def claims_of(
    media_type: str, body: bytes, issuer: IssuerPolicy, how: IntrospectionPolicy, now: float
) -> dict[str, Any] | None:
    """What the issuer says of an active token; None for one that is not active (RFC 7662 section 2.2). `now` is seconds
    since the epoch. Raises BadAnswer, and UnknownSigner."""
    said = _signed(media_type, body, issuer, how, now) if how.signed else _plain(media_type, body)
    active = said.get("active")
    if not isinstance(active, bool):
        raise BadAnswer("the answer does not say whether the token is active")
    return {name: value for name, value in said.items() if name != "active"} if active else None


def identity_of(
    claims: Mapping[str, Any], issuer: IssuerPolicy, audiences: frozenset[str], now: float, asked_at: float
) -> Identity:
    """Whom an active token speaks of, by the rules for every token (rows 4 to 8). Without `exp` it is good for as long
    as the answer; without `iss` it is of the issuer that was asked. Raises Refused."""
    how = issuer.introspection
    bound = 0 if how is None else how.cache_seconds
    _refuse_other_tokens(claims)
    usual = {"iss": issuer.issuer, "exp": min(int(asked_at) + max(1, bound), MAX_DATE)}
    identity = read_parsed_claims(usual | dict(claims), issuer, audiences, now)
    key = identity.bound.key if identity.bound else None
    if key is None and str(claims.get("token_type")).lower() == "dpop":
        raise Refused("proof_required", "the token is bound to a key (DPoP), and the issuer does not say to which")
    if len(json.dumps([identity.scopes, identity.roles], ensure_ascii=False).encode()) > MAX_NAMED:
        raise Refused("token_invalid", f"its scopes and roles are more than {MAX_NAMED} bytes")
    return replace(identity, good_until=min(identity.expires_at, asked_at + bound))


def _refuse_other_tokens(claims: Mapping[str, Any]) -> None:
    refuse_other_kinds({}, claims)
    for name in _KINDS:
        kind = claims.get(name, "")
        # Also as a URI (RFC 8693 section 3), of which the last part counts.
        if not isinstance(kind, str) or kind.lower().rpartition(":")[2] in _OTHERS:
            raise Refused("token_invalid", "an ID, refresh or logout token is not an access token")


def _plain(media_type: str, body: bytes) -> dict[str, Any]:
    if media_type != PLAIN:
        raise BadAnswer("the answer is not application/json")
    try:
        return parse_object(body)
    except ValueError as error:
        raise BadAnswer(f"the answer is of no use: {error}") from None


def _signed(
    media_type: str, body: bytes, issuer: IssuerPolicy, how: IntrospectionPolicy, now: float
) -> dict[str, Any]:  # fmt: skip
    """RFC 9701 section 5: a JWT of this type, by this issuer, for us, made now, whose `token_introspection` is the
    answer. Without the `typ`, any other token of the issuer could be shown as an answer (section 8.1)."""
    if media_type != SIGNED:
        raise BadAnswer("the answer is not signed")
    try:
        parts = take_apart(body.decode("ascii"), MAX_ANSWER)
        kind = parts.header.get("typ")
        if not isinstance(kind, str) or kind.lower().removeprefix("application/") != "token-introspection+jwt":
            raise BadAnswer("the signed answer is of another type")
        check_signature(parts, issuer)
    except UnknownKey:
        raise UnknownSigner(issuer) from None
    except UnicodeDecodeError:
        raise BadAnswer("the signed answer is no JWT") from None
    except Refused as refusal:
        raise BadAnswer(f"the signed answer cannot be believed: {refusal.detail}") from None
    return _told(parts.claims, issuer, how, now)


def _told(claims: Mapping[str, Any], issuer: IssuerPolicy, how: IntrospectionPolicy, now: float) -> dict[str, Any]:
    if claims.get("iss") != issuer.issuer:
        raise BadAnswer("the signed answer is of another issuer")
    audience = claims.get("aud")
    if how.client_id not in (audience if isinstance(audience, list) else [audience]):
        raise BadAnswer("the signed answer is for somebody else")
    made = claims.get("iat")
    if isinstance(made, bool) or not isinstance(made, int | float):
        raise BadAnswer("the signed answer does not say when it was made")
    if not now - issuer.leeway - MAX_AGE <= made <= now + issuer.leeway:
        raise BadAnswer("the signed answer was not made now")
    said = claims.get("token_introspection")
    if not isinstance(said, dict):
        raise BadAnswer("the signed answer holds no token_introspection")
    return said
