"""Whom a token speaks of: its claims, checked and read (pure; rows 5-8 of the decision table).

Called only with a payload whose signature has been verified. A claim that we use and that has the wrong type
refuses the token: to ignore it could drop the tenant or role that a deny grant names.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from clients.bound import Bound, bound_to
from clients.jwks import ClaimRules, IssuerPolicy
from clients.strictjson import parse_object

Reason = Literal[
    "token_missing",
    "token_malformed",
    "issuer_unknown",
    "issuer_unavailable",
    "token_invalid",
    "audience_mismatch",
    "token_expired",
    "proof_required",
    "proof_invalid",
    "proof_unavailable",
]

MAX_TEXT: Final = 255  # characters of `sub` (OIDC Core section 2) and of every other identifier
MAX_EMAIL: Final = 320
MAX_NAMES: Final = 1000  # scopes, or roles, of one token
MAX_AUDIENCES: Final = 100
MAX_ACTORS: Final = 8
MAX_DATE: Final = 253_402_300_799  # the last second of the year 9999

# RFC 9068 section 2.2 has `client_id`, OIDC `azp`; Okta's access tokens have only `cid`, Entra's v1 only
# `appid`.
CLIENT_ID_CLAIMS: Final = ("client_id", "azp", "cid", "appid")
SCOPE_CLAIMS: Final = ("scope", "scp", "permissions")
_SCOPE_TOKEN: Final = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]+")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a verified token says. Times are whole seconds since the epoch; names are sorted and unique.

    `actors` is the `act` chain (RFC 8693 section 4.1), the current actor first.
    """

    issuer: str
    sub: str
    client_id: str | None
    scopes: tuple[str, ...]
    tenant: str | None
    roles: tuple[str, ...]
    email: str | None
    actors: tuple[str, ...]
    issued_at: int | None
    expires_at: int
    jti: str | None
    audience: tuple[str, ...]
    # Of a token that its issuer was asked about: until when that may be used, in seconds since the epoch.
    good_until: float | None = None
    # What its sender must prove to have: checked for each call (row 8), which reading claims cannot do.
    bound: Bound | None = None


class Refused(Exception):
    """The token does not establish anybody. `reason` is a reason code of the decision table; `detail` says in
    plain words what is wrong and holds nothing of the token."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail


def read_claims(payload: bytes, issuer: IssuerPolicy, audiences: frozenset[str], now: float) -> Identity:
    """Check and read the claims of a verified payload; `now` is seconds since the epoch. Raises Refused."""
    try:
        claims = parse_object(payload)
    except ValueError as error:
        raise Refused("token_malformed", f"payload: {error}") from None
    return read_parsed_claims(claims, issuer, audiences, now)


def read_parsed_claims(
    claims: Mapping[str, Any], issuer: IssuerPolicy, audiences: frozenset[str], now: float
) -> Identity:
    """`read_claims` for a payload that was parsed already. Raises Refused."""
    if claims.get("iss") != issuer.issuer:
        raise Refused("issuer_unknown", "the token is of another issuer")
    audience = _audience(claims, audiences)
    issued_at, expires_at = _times(claims, issuer, now)
    sub = _subject(claims, issuer.claims)
    bound = _bound(claims)
    return Identity(
        issuer=issuer.issuer,
        sub=sub,
        client_id=_client_id(claims, issuer.claims),
        scopes=_scopes(claims, issuer.claims),
        tenant=_tenant(claims, issuer.tenant_claim),
        roles=_roles(claims, issuer.roles_claim),
        email=_email(claims, issuer.claims),
        actors=tuple(_actors(claims)),
        issued_at=issued_at,
        expires_at=expires_at,
        jti=_text(claims, "jti"),
        audience=audience,
        bound=bound,
    )


def _audience(claims: Mapping[str, Any], audiences: frozenset[str]) -> tuple[str, ...]:
    """Row 5: a string or an array of strings (RFC 7519 section 4.1.3), one of which is the backend's."""
    claimed = claims.get("aud")
    if isinstance(claimed, str):
        claimed = [claimed]
    if not isinstance(claimed, list) or not all(isinstance(one, str) for one in claimed):
        raise Refused("audience_mismatch", "aud is missing or neither a string nor an array of strings")
    # An empty audience names nobody, even where a backend was set up with one by mistake.
    if not any(one and one in audiences for one in claimed):
        raise Refused("audience_mismatch", "aud does not name this backend")
    if len(claimed) > MAX_AUDIENCES or not all(one.isprintable() for one in claimed):
        raise Refused("token_invalid", "aud has unprintable characters or too many members")
    return tuple(claimed)


def _times(claims: Mapping[str, Any], issuer: IssuerPolicy, now: float) -> tuple[int | None, int]:
    """Row 6: (issued at, expires at)."""
    exp, nbf, iat = (_date(claims, name) for name in ("exp", "nbf", "iat"))
    if exp is None:
        raise Refused("token_invalid", "exp is missing")
    if now >= exp + issuer.leeway:
        raise Refused("token_expired", "exp is in the past")
    if nbf is not None and now < nbf - issuer.leeway:
        raise Refused("token_invalid", "nbf is in the future")
    if iat is not None and now < iat - issuer.leeway:
        raise Refused("token_invalid", "iat is in the future")
    if exp - (now if iat is None else iat) > issuer.max_lifetime:
        raise Refused("token_invalid", "the lifetime is longer than this issuer's tokens may have")
    return (None if iat is None else int(iat)), int(exp)


def _date(claims: Mapping[str, Any], name: str) -> int | float | None:
    """A NumericDate (RFC 7519 section 2: a number, fractions allowed); None where the claim is absent."""
    if name not in claims:
        return None
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_DATE:
        raise Refused("token_invalid", f"{name} is not a number of seconds between 1970 and 9999")
    return value


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    """An optional identifier; null counts as absent."""
    value = claims.get(name)
    return None if value is None else _identifier(value, name)


def _bound(claims: Mapping[str, Any]) -> Bound | None:
    """Row 8, what a proof must be of. What we cannot check is a proof that is missing, whatever came with the token."""
    if "cnf" not in claims:
        return None
    try:
        return bound_to(claims["cnf"])
    except ValueError as error:
        raise Refused("proof_required", str(error)) from None


def _identifier(value: object, name: str) -> str:
    # isprintable() also excludes lone surrogates, invisible and direction-changing characters.
    if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_TEXT or not value.strip():
        raise Refused("token_invalid", f"{name} is not a printable string of 1 to {MAX_TEXT} characters")
    return value


def _subject(claims: Mapping[str, Any], rules: ClaimRules) -> str:
    """Row 7: who the user is. Where staff named another claim than `sub`, a token may do without `sub`, but one that
    has it has a sound one."""
    sub = _text(claims, "sub")
    if rules.subject:
        value = configured(claims, rules.subject)
        address = rules.subject == (rules.email or "email")
        if not _vouched(claims, rules.subject) or (address and not _vouched(claims, "email")):
            raise Refused("token_invalid", "the subject claim is one that the issuer has not verified")
        sub = None if value is None else _identifier(value, "the subject claim")
    if sub is None:
        raise Refused("token_invalid", f"{'the subject claim' if rules.subject else 'sub'} is missing")
    return sub


def _vouched(claims: Mapping[str, Any], claim: str) -> bool:
    """Whether the issuer does not say, in a claim of its own beside this one, that anybody may have typed it: who types
    another's address or number must not become them."""
    return configured(claims, f"{claim}_verified") in (None, True, "true")


def _client_id(claims: Mapping[str, Any], rules: ClaimRules) -> str | None:
    """The first of the claims that the token has."""
    for name in rules.client_id or CLIENT_ID_CLAIMS:
        if (value := configured(claims, name)) is not None:
            return _identifier(value, name)
    return None


def _scopes(claims: Mapping[str, Any], rules: ClaimRules) -> tuple[str, ...]:
    """All scopes of the token. A string is split on spaces only; the members of an array are not split."""
    names = [name for claim in rules.scopes or SCOPE_CLAIMS for name in _names(configured(claims, claim), claim)]
    # What is no scope-token (RFC 6749 section 3.3) can be no scope of ours: a tab does not separate two. To
    # leave it out only takes rights away.
    legal = {name for name in names if len(name) <= MAX_TEXT and _SCOPE_TOKEN.fullmatch(name)}
    if len(legal) > MAX_NAMES:
        raise Refused("token_invalid", f"the token has more than {MAX_NAMES} scopes")
    return tuple(sorted(legal))


def _names(value: object, claim: str) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return value.split(" ")
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    raise Refused("token_invalid", f"{claim} is neither a string nor an array of strings")


def _tenant(claims: Mapping[str, Any], claim: str | None) -> str | None:
    value = configured(claims, claim)
    return None if value is None else _identifier(value, "the tenant claim")


def _roles(claims: Mapping[str, Any], claim: str | None) -> tuple[str, ...]:
    """A role is one string or an array of them; a string is one role, whatever spaces it holds."""
    value = configured(claims, claim)
    if value is None:
        return ()
    listed = value if isinstance(value, list) else [value]
    roles = {_identifier(one, "a member of the roles claim") for one in listed}
    if len(roles) > MAX_NAMES:
        raise Refused("token_invalid", f"the token has more than {MAX_NAMES} roles")
    return tuple(sorted(roles))


def configured(claims: Mapping[str, Any], claim: str | None) -> object:
    """The claim that staff named: a member of that exact name ("https://example.com/roles"), else a path of
    members joined by dots ("realm_access.roles", Keycloak's); None where it is absent or null."""
    if not claim:
        return None
    if claim in claims:
        return claims[claim]
    value: object = claims
    for member in claim.split("."):
        value = value.get(member) if isinstance(value, Mapping) else None
    return value


def _email(claims: Mapping[str, Any], rules: ClaimRules) -> str | None:
    """The e-mail address, for showing only, so an odd one is left out and refuses nothing; but a claim that staff named
    and that is no string is a mistake of theirs, which they are to see.

    One that the issuer says is not verified is left out too: anybody may have typed it (OIDC Core section
    5.7), and a backend that looks people up by address would take the typist for its owner.
    """
    value = configured(claims, rules.email or "email")
    if rules.email and not isinstance(value, str | None):
        raise Refused("token_invalid", "the e-mail claim is not a string")
    if not isinstance(value, str) or not value.isprintable() or not 3 <= len(value) <= MAX_EMAIL:
        return None
    # Amazon Cognito sends the string. A claim of another name may have its own word beside it.
    verified = claims.get("email_verified", True) in (True, "true")
    verified = verified and (not rules.email or _vouched(claims, rules.email))
    return value if verified else None


def _actors(claims: Mapping[str, Any]) -> Iterator[str]:
    act = claims.get("act")
    for _ in range(MAX_ACTORS):
        if act is None:
            return
        if not isinstance(act, dict):
            raise Refused("token_invalid", "act is not an object")
        name = _text(act, "sub") or _text(act, "client_id")
        if name is None:
            raise Refused("token_invalid", "act names no actor")
        yield name
        act = act.get("act")
    if act is not None:
        raise Refused("token_invalid", f"act is nested more than {MAX_ACTORS} deep")


Reader = Callable[[Mapping[str, Any], IssuerPolicy, frozenset[str], float], Any]
# What is read of a token, one by one: where staff try claims, each part shows its own refusal. The functions are those
# of `read_parsed_claims`.
PARTS: Final[Mapping[str, Reader]] = {
    "audience": lambda claims, issuer, audiences, now: _audience(claims, audiences),
    "times": lambda claims, issuer, audiences, now: _times(claims, issuer, now),
    "user": lambda claims, issuer, audiences, now: _subject(claims, issuer.claims),
    "bound": lambda claims, issuer, audiences, now: _bound(claims),
    "client_id": lambda claims, issuer, audiences, now: _client_id(claims, issuer.claims),
    "scopes": lambda claims, issuer, audiences, now: _scopes(claims, issuer.claims),
    "tenant": lambda claims, issuer, audiences, now: _tenant(claims, issuer.tenant_claim),
    "roles": lambda claims, issuer, audiences, now: _roles(claims, issuer.roles_claim),
    "email": lambda claims, issuer, audiences, now: _email(claims, issuer.claims),
    "actors": lambda claims, issuer, audiences, now: tuple(_actors(claims)),
    "jti": lambda claims, issuer, audiences, now: _text(claims, "jti"),
}
