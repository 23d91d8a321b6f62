"""What would be read of a token, tried with its claims alone (pure): the bench of an issuer's claim mapping.

Each part is read by the function that reads it of a token in a call, and for itself, so that all that is wrong is
shown at once. The signature is not looked at, and not kept: what is pasted here proves nothing.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from clients.bound import Bound
from clients.claims import CLIENT_ID_CLAIMS, PARTS, SCOPE_CLAIMS, Refused
from clients.jwks import IssuerPolicy
from clients.strictjson import parse_object
from clients.tokens import algorithm_of, refuse_other_kinds, take_apart

MAX_TEXT: Final = 64 * 1024  # characters of what may be pasted: claims with line ends are longer than in a token
_SCHEME: Final = re.compile(r"(?:authorization:\s*)?(?:bearer|dpop)\s+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Finding:
    """One part of a token: what is read of it (`values`, each a text), where it is from or what it means (`note`), or
    the reason code and the words with which it refuses the token."""

    part: str
    label: str
    values: tuple[str, ...] = ()
    note: str = ""
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """What was read, in the order of the decision's checks. Where the text is no token and no claims, only why."""

    findings: tuple[Finding, ...]

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """What refuses the token; the first is what a call would be answered with."""
        return tuple(one for one in self.findings if one.reason)

    def values(self, part: str) -> tuple[str, ...]:
        """What was read of a part; nothing where it refuses."""
        return next((one.values for one in self.findings if one.part == part), ())

    def marked(self, part: str, **changes: Any) -> "Trial":
        """With something more said of a part."""
        return Trial(tuple(replace(one, **changes) if one.part == part else one for one in self.findings))


def without_signature(text: str) -> str:
    """What was pasted, tidied: a token without its scheme, its line breaks and its signature; claims as they are."""
    text = text.strip()
    if text.startswith("{"):
        return text
    token = "".join(_SCHEME.sub("", text, count=1).split())
    header, dot, rest = token.partition(".")
    payload, second, _ = rest.partition(".")
    return f"{header}{dot}{payload}{second}"


def tried(text: str, issuer: IssuerPolicy, audiences: frozenset[str], accepted: bool, now: float) -> Trial:
    """Read a token without its signature, or the JSON of its claims, as one of `issuer` at a backend with these
    audiences, which accepts the issuer or does not; `now` is in seconds since the epoch. Never raises for a text."""
    try:
        header, claims = _parts(text)
    except Refused as refused:
        return Trial((Finding("form", "Form", reason=refused.reason, detail=refused.detail),))
    return Trial(
        (
            _issuer(claims, issuer, accepted),
            *_kind(header, claims, issuer),
            *(_part(part, claims, issuer, audiences, now) for part in PARTS),
        )
    )


def _parts(text: str) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    if not text.startswith("{"):
        parts = take_apart(text)
        return parts.header, parts.claims
    try:
        return None, parse_object(text.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise Refused("token_malformed", str(error)) from None


def _issuer(claims: Mapping[str, Any], issuer: IssuerPolicy, accepted: bool) -> Finding:
    found = Finding("issuer", "Issuer")
    if claims.get("iss") != issuer.issuer:
        words = "iss is not this issuer; it is compared as a string, slashes and case included"
        return replace(found, reason="issuer_unknown", detail=words)
    if not accepted:
        return replace(found, reason="issuer_unknown", detail="the backend does not accept it, or it is disabled")
    return replace(found, values=(issuer.issuer,))


def _kind(header: dict[str, Any] | None, claims: Mapping[str, Any], issuer: IssuerPolicy) -> list[Finding]:
    """Of claims alone, whose header is not there, the kind is told as if that said JWT."""
    kind = Finding("kind", "Kind of token")
    try:
        refuse_other_kinds(header or {}, claims)
        kind = replace(kind, values=("access token",), note="" if header else "as if its header said JWT")
    except Refused as refused:
        kind = replace(kind, reason=refused.reason, detail=refused.detail)
    if header is None:
        return [kind]
    signed = Finding("algorithm", "Signed with")
    try:
        return [kind, replace(signed, values=(algorithm_of(header, issuer),), note="the signature is not checked here")]
    except Refused as refused:
        return [kind, replace(signed, reason=refused.reason, detail=refused.detail)]


def _part(
    part: str, claims: Mapping[str, Any], issuer: IssuerPolicy, audiences: frozenset[str], now: float
) -> Finding:  # fmt: skip
    found = Finding(part, LABELS[part])
    try:
        value = PARTS[part](claims, issuer, audiences, now)
    except Refused as refused:
        return replace(found, reason=refused.reason, detail=refused.detail)
    if part == "bound" and (missing := _unbound(value, issuer.require_binding)):
        return replace(found, reason="proof_required", detail=missing)
    shown = SHOWN.get(part, _texts)(value)
    source = SOURCES[part](issuer) if part in SOURCES else ""
    return replace(found, values=shown, note=source)


def _unbound(bound: Bound | None, demanded: str) -> str | None:
    fine = {
        "any": bound is not None,
        "dpop": bound is not None and bound.key is not None,
        "mtls": bound is not None and bound.certificate is not None,
    }.get(demanded, True)
    return None if fine else "the issuer's tokens must be bound, and this one is not, or not to what is demanded"


def _texts(value: Any) -> tuple[str, ...]:
    return () if value is None else value if isinstance(value, tuple) else (value,)


def _moments(times: tuple[int | None, int]) -> tuple[str, ...]:
    words = [None if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC" for at in times]
    return (*((f"issued {words[0]}",) if words[0] else ()), f"expires {words[1]}")


def _binding(bound: Bound | None) -> tuple[str, ...]:
    if bound is None:
        return ()
    return (
        *(("to a key: a call needs its DPoP proof",) if bound.key else ()),
        *(("to a certificate: the backend must report its thumbprint",) if bound.certificate else ()),
    )


LABELS: Final = {
    "audience": "Audience", "times": "Times", "user": "User", "bound": "Bound", "client_id": "Client id",
    "scopes": "Scopes", "tenant": "Tenant", "roles": "Roles", "email": "E-mail", "actors": "Agents", "jti": "Token id",
}  # fmt: skip
SHOWN: Final[Mapping[str, Callable[[Any], tuple[str, ...]]]] = {"times": _moments, "bound": _binding}
SOURCES: Final[Mapping[str, Callable[[IssuerPolicy], str]]] = {
    "user": lambda issuer: f"from {issuer.claims.subject or 'sub'}",
    "client_id": lambda issuer: f"the first of {', '.join(issuer.claims.client_id or CLIENT_ID_CLAIMS)}",
    "scopes": lambda issuer: f"from {', '.join(issuer.claims.scopes or SCOPE_CLAIMS)}",
    "tenant": lambda issuer: f"from {issuer.tenant_claim}" if issuer.tenant_claim else "no claim is named",
    "roles": lambda issuer: f"from {issuer.roles_claim}" if issuer.roles_claim else "no claim is named",
    "email": lambda issuer: f"from {issuer.claims.email or 'email'}",
}
