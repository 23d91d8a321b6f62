"""Who has signed in at the staff's identity provider: its ID token, checked and read (pure; OpenID Connect Core
section 3.1.3.7, RFC 8725). Nothing of the token gets into an error."""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from clients.claims import Refused
from clients.jwks import SUPPORTED, VerificationKey
from clients.tokens import Parts, take_apart
from governance import tenant_names

LEEWAY: Final = 30  # seconds that the provider's clock may be off
MAX_TEXT: Final = 255  # characters of `sub` (section 2) and of a group's name
MAX_AUDIENCES: Final = 20
MAX_GROUPS: Final = 2_000
MAX_DATE: Final = 253_402_300_799  # the last second of the year 9999


class BadToken(Exception):
    """The token establishes nobody; the message says in plain words what is wrong with it."""


class UnknownKey(BadToken):
    """No key that we have could have made it: fetch the keys and try again."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a token must say. `auth_since` (POSIX seconds): the person must have shown who they are after that, and
    the token must say when they did. `tenants_claim`: what says which tenants they are confined to; empty for none."""

    issuer: str
    client_id: str
    nonce: str
    groups_claim: str
    auth_since: float | None = None
    tenants_claim: str = ""


@dataclass(frozen=True, slots=True)
class Person:
    """What a verified token says of a member of staff. Texts can be printed, and stored; empty where it says
    nothing of use. `groups` are the provider's own names. `tenants` are those that they are confined to, None for
    every one; empty where the token should say and does not."""

    sub: str
    given_name: str
    family_name: str
    email: str
    groups: frozenset[str]
    tenants: frozenset[str] | None = None


def read(token: object, keys: Sequence[VerificationKey], expected: Expected, now: float) -> Person:
    """Verify an ID token and read it; `now` is POSIX seconds. Raises BadToken, and nothing else, whatever the token;
    UnknownKey when fetching the keys might help."""
    if not isinstance(token, str):
        raise BadToken("there is no ID token")
    try:
        parts = take_apart(token)
    except Refused as error:
        raise BadToken(error.detail) from None
    _check_signature(parts, keys)
    _check_parties(parts.claims, expected)
    _check_times(parts.claims, expected, now)
    return _person(parts.claims, expected)


def _check_signature(parts: Parts, keys: Sequence[VerificationKey]) -> None:
    """By one of the provider's keys, with an algorithm that can only be an asymmetric one."""
    header = parts.header
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or algorithm not in SUPPORTED:
        raise BadToken("the algorithm is not one that is accepted")
    if not header.keys().isdisjoint({"crit", "b64", "enc"}):
        raise BadToken("the header asks for an extension that is not supported")
    if not isinstance(kind, str) or kind.lower() != "jwt":  # no access or logout token (RFC 8725 section 3.11)
        raise BadToken("the token is of another type")
    if kid is not None and not isinstance(kid, str):
        raise BadToken("the key's id is no text")
    # A set may name its keys or not (Core section 10.1); a key without a name may be the one that is named.
    fitting = [key for key in keys if algorithm in key.algorithms and (kid is None or key.kid in (kid, None))]
    if not fitting:
        raise UnknownKey("the provider has published no such key")
    if not any(key.verify(algorithm, parts.signed, parts.signature) for key in fitting):
        raise BadToken("the signature does not hold")


def _check_parties(claims: Mapping[str, Any], expected: Expected) -> None:
    """By whom, for whom, and in answer to which question of ours."""
    if claims.get("iss") != expected.issuer:
        raise BadToken("it is of another issuer")
    audience = claims.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience
    if not isinstance(audiences, list) or len(audiences) > MAX_AUDIENCES or expected.client_id not in audiences:
        raise BadToken("it is for somebody else")
    if not all(isinstance(one, str) for one in audiences):
        raise BadToken("its audience is no text")
    party = claims.get("azp", expected.client_id if len(audiences) == 1 else None)
    if party != expected.client_id:
        raise BadToken("it was given to somebody else")
    nonce = claims.get("nonce")
    if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode("utf-8", "replace"), expected.nonce.encode()):
        raise BadToken("it does not answer this sign-in")


def _check_times(claims: Mapping[str, Any], expected: Expected, now: float) -> None:
    if now >= _date(claims, "exp") + LEEWAY:
        raise BadToken("it has expired")
    if _date(claims, "iat") > now + LEEWAY or ("nbf" in claims and _date(claims, "nbf") > now + LEEWAY):
        raise BadToken("it is of the future")
    if expected.auth_since is not None:
        at = _date(claims, "auth_time")
        if not expected.auth_since - LEEWAY <= at <= now + LEEWAY:
            raise BadToken("the person did not sign in anew")


def _date(claims: Mapping[str, Any], name: str) -> int:
    """A required date, in whole seconds: a NumericDate may be a fraction (RFC 7519 section 2), and no provider's is."""
    value = claims.get(name)
    if type(value) is not int or not 0 <= value <= MAX_DATE:
        raise BadToken(f"{name} is missing or no date")
    return value


def _person(claims: Mapping[str, Any], expected: Expected) -> Person:
    sub = _text(claims.get("sub"), MAX_TEXT)
    if not sub:
        raise BadToken("sub is missing or no text that can be kept")
    given, family = _text(claims.get("given_name"), 150), _text(claims.get("family_name"), 150)
    if not given and not family:
        given = _text(claims.get("name"), 150)
    groups, claim = _groups(claims.get(expected.groups_claim)), expected.tenants_claim
    tenants = tenant_names.claimed(claims.get(claim)) if claim else None
    return Person(sub, given, family, _text(claims.get("email"), 254), groups, tenants)


def _text(value: object, longest: int) -> str:
    """A text as it is, or nothing: what cannot be printed (a NUL, a lone surrogate) is not kept."""
    return value if isinstance(value, str) and len(value) <= longest and value.isprintable() else ""


def _groups(value: object) -> frozenset[str]:
    """A list of names, or one name. Too many are none: a cut list would take roles by chance."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or len(listed) > MAX_GROUPS:
        return frozenset()
    return frozenset(name for name in listed if isinstance(name, str) and 0 < len(name) <= MAX_TEXT)
