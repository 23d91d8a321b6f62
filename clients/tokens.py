"""Who the caller is: one compact JWS in, one Identity out (pure; rows 1-7 of the decision table).

Nothing that the token says of itself is believed before the signature holds, but for `iss`, which chooses the
issuer, and `kid`, which chooses among that issuer's keys. `jku`, `jwk`, `x5u` and `x5c` are never read. RFC
8725 is the list of attacks that this file answers.
"""

import json
import re
from base64 import b64decode
from binascii import a2b_base64
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from clients.claims import SCOPE_CLAIMS, Identity, Refused, read_parsed_claims
from clients.jwks import SUPPORTED, IssuerPolicy, VerificationKey
from clients.strictjson import parse_object

__all__ = [
    "AskIssuer",
    "Identity",
    "IssuerPolicy",
    "Parts",
    "Refused",
    "UnknownKey",
    "algorithm_of",
    "check_signature",
    "identify",
    "refuse_other_kinds",
    "take_apart",
]

MAX_TOKEN: Final = 16 * 1024  # characters
MAX_PARTS: Final = 5  # of a JWE (RFC 7516 section 3.1)

# The signature may be empty here, so that an unsecured token is refused for its algorithm, not for its form.
_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")
# RFC 6750 section 2.1: what any access token may be made of.
_BEARER: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
# What Muniment itself gives out (tools.credentials, clients.signals, clients.scim), whole or nearly so.
_OURS: Final = re.compile(r"(?:mk|sk)_[A-Za-z0-9]{12}_[A-Za-z0-9_-]{20}|(?:ss|scim_[0-9]{1,18})_[A-Za-z0-9_-]{40}")
# What the last of 1, 2 or 3 characters left over may be.
_LAST: Final = {1: "", 2: "AQgw", 3: "AEIMQUYcgkosw048"}
# RFC 9068 section 2.1; media types are compared without regard to case (RFC 7515 section 4.1.9).
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_HASHES: Final = frozenset({"at_hash", "c_hash", "s_hash"})
_OTHER_KINDS: Final = frozenset({"id", "refresh", "offline", "logout"})


class UnknownKey(Refused):
    """No key that we have of this issuer could have made the token, or we have no usable set at all: fetch
    the keys and try again (`keysets.claim_and_refresh`), else answer with the refusal."""

    def __init__(self, issuer: IssuerPolicy) -> None:
        if issuer.fetched:
            super().__init__("token_invalid", "the issuer has published no such key")
        else:
            super().__init__("issuer_unavailable", "the issuer's keys could not be fetched")
        self.issuer_id = issuer.id
        self.issuer = issuer.issuer


class AskIssuer(Refused):
    """Only the issuer can say whose token this is (RFC 7662): ask it (`introspected.identify`), else answer with the
    refusal."""

    def __init__(self, issuer: IssuerPolicy) -> None:
        super().__init__("issuer_unavailable", "the issuer was not asked about the token")
        self.issuer = issuer


class Parts(NamedTuple):
    """A compact JWS, decoded: `signed` is what the `signature` is over. Nothing of it is verified."""

    header: dict[str, Any]
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


def identify(token: str | None, issuers: Mapping[str, IssuerPolicy], audiences: frozenset[str], now: float) -> Identity:
    """Verify a token and read who it speaks of.

    `issuers` are those that are enabled and that the backend accepts, by their exact name; `audiences` are
    the backend's; `now` is seconds since the epoch. Raises Refused, and nothing else, whatever the token:
    UnknownKey when fetching the issuer's keys might help, AskIssuer when it must be asked itself.
    """
    try:
        parts = take_apart(token)
    except Refused:
        if (issuer := _issuer_of_opaque(token, issuers)) is None:
            raise
        raise AskIssuer(issuer) from None
    issuer = _issuer(parts.claims, issuers)
    refuse_other_kinds(parts.header, parts.claims)
    if issuer.introspection is not None and not issuer.keys:
        raise AskIssuer(issuer)
    check_signature(parts, issuer)
    return read_parsed_claims(parts.claims, issuer, audiences, now)


def _issuer_of_opaque(token: str | None, issuers: Mapping[str, IssuerPolicy]) -> IssuerPolicy | None:
    """The issuer to ask about what is no JWS: an opaque token names none, so there must be exactly one that is set to
    introspection. What looks like a JWS or JWE is none: it may be of another issuer, to which alone it may be shown;
    and a key of ours that came by mistake is nobody else's to see."""
    asked = [issuer for issuer in issuers.values() if issuer.introspection is not None]
    if len(asked) != 1 or not isinstance(token, str) or len(token) > MAX_TOKEN or not _BEARER.fullmatch(token):
        return None
    if _OURS.match(token):
        return None
    return None if any(map(_is_object, token.split(".", MAX_PARTS)[:MAX_PARTS])) else asked[0]


def _is_object(part: str) -> bool:
    """Whether this is a JSON object in base64 of either alphabet, padded or not: a header or payload, also of a token
    that was damaged elsewhere."""
    plain = part.rstrip("=").replace("+", "-").replace("/", "_")
    try:
        return isinstance(json.loads(b64decode(plain + "=" * (-len(plain) % 4), b"-_")), dict)
    except (ValueError, RecursionError):
        return False


def check_signature(parts: Parts, issuer: IssuerPolicy) -> None:
    """Row 4: one of the issuer's keys made the signature, with an algorithm that the issuer may use. Raises Refused;
    UnknownKey when fetching the issuer's keys might help."""
    algorithm = algorithm_of(parts.header, issuer)
    keys = _candidates(parts.header, algorithm, issuer)
    if not any(key.verify(algorithm, parts.signed, parts.signature) for key in keys):
        raise Refused("token_invalid", "the signature does not hold")


def take_apart(token: str | None, most: int = MAX_TOKEN) -> Parts:
    """Row 1: the parts of a compact JWS with a JSON payload, of at most so many characters; raises Refused. The text
    is taken as it is: nothing is stripped, so one token has one SHA-256."""
    if token is None or token == "":
        raise Refused("token_missing", "")
    if not isinstance(token, str) or len(token) > most:
        raise Refused("token_malformed", f"the token is not a text of at most {most} characters")
    match = _COMPACT.fullmatch(token)
    if match is None:
        raise Refused("token_malformed", "the token is not three base64url parts joined by dots")
    signed, signature = token[: match.end(2)].encode("ascii"), _decode(match[3], "signature")
    return Parts(_json(match[1], "header"), _json(match[2], "payload"), signed, signature)


def _json(part: str, name: str) -> dict[str, Any]:
    try:
        return parse_object(_decode(part, name))
    except ValueError as error:
        raise Refused("token_malformed", f"{name}: {error}") from None


def _decode(part: str, name: str) -> bytes:
    """base64url without padding (RFC 7515 section 2) of characters that are known to be legal."""
    left = len(part) % 4
    # The last character's unused bits must be zero (RFC 4648 section 3.5), else one token had many spellings.
    if left and part[-1] not in _LAST[left]:
        raise Refused("token_malformed", f"{name}: not base64url")
    return a2b_base64(part.replace("-", "+").replace("_", "/") + "==="[: -left % 4])


def _issuer(claims: Mapping[str, Any], issuers: Mapping[str, IssuerPolicy]) -> IssuerPolicy:
    """Rows 2 and 3. Names are compared as strings (RFC 7519 section 4.1.1), case and slashes included."""
    name = claims.get("iss")
    issuer = issuers.get(name) if isinstance(name, str) else None
    if issuer is None:
        raise Refused("issuer_unknown", "iss is not an issuer that this backend accepts")
    if not issuer.fetched and issuer.introspection is None:
        raise UnknownKey(issuer)
    return issuer


def algorithm_of(header: Mapping[str, Any], issuer: IssuerPolicy) -> str:
    """Row 4, the header. The issuer's list decides, not the token: no `none`, no HS256 with a public key."""
    algorithm = header.get("alg")
    if not isinstance(algorithm, str):
        raise Refused("token_malformed", "header: alg is missing or no string")
    if algorithm not in issuer.algorithms or algorithm not in SUPPORTED:
        raise Refused("token_invalid", "the algorithm is not allowed for this issuer")
    # RFC 7515 section 4.1.11: an empty list is illegal, and we understand no extension that it could name.
    # `b64` (RFC 7797) changes what is signed; `enc` marks an encrypted token (RFC 7516 section 9).
    if not header.keys().isdisjoint({"crit", "b64", "enc"}):
        raise Refused("token_invalid", "the header asks for an extension that is not supported")
    return algorithm


def refuse_other_kinds(header: Mapping[str, Any], claims: Mapping[str, Any]) -> None:
    """Row 4, what kind of token: the same issuer signs ID, logout and refresh tokens with the same keys, and
    none of them says that a client may call us (RFC 8725 section 3.12).

    Told by what the others have and access tokens of Auth0, Okta, Entra and Keycloak have not:
    a hash of the token or code beside it (OIDC Core section 3.3.2.11); `events` (RFC 8417,
    back-channel logout); Keycloak's own `typ` claim, "Bearer" or "DPoP" in access tokens, and Cognito's `token_use`,
    "access" in them. A `nonce` alone is not enough, since Keycloak before 25 copied it into access tokens, but
    those always carry `scope`, and an ID token carries no scopes of any form. An ID token without all of these
    is stopped by its audience, which is a client. What staff map to other claims changes nothing of this.
    """
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise Refused("token_invalid", "typ is not that of an access token")
    if "events" in claims:
        raise Refused("token_invalid", "a logout or event token is not an access token")
    own_kinds = (claims.get("typ"), claims.get("token_use"))
    if any(isinstance(own, str) and own.lower() in _OTHER_KINDS for own in own_kinds):
        raise Refused("token_invalid", "an ID, refresh or logout token is not an access token")
    bare = kind.lower() == "jwt" and claims.keys().isdisjoint(("client_id", *SCOPE_CLAIMS))
    if not _HASHES.isdisjoint(claims) or ("nonce" in claims and bare):
        raise Refused("token_invalid", "an ID token is not an access token")


def _candidates(header: Mapping[str, Any], algorithm: str, issuer: IssuerPolicy) -> list[VerificationKey]:
    """Row 4, the keys that may have made the signature: those of the `kid`, else all that fit.

    `kid`s are not always unique (RFC 7517 section 4.5), so there may be several.
    """
    if "kid" not in header:
        fitting = [key for key in issuer.keys if algorithm in key.algorithms]
        if not fitting:
            raise UnknownKey(issuer)
        return fitting
    if not isinstance(header["kid"], str):
        raise Refused("token_invalid", "header: kid is no string")
    named = [key for key in issuer.keys if key.kid == header["kid"]]
    if not named:
        raise UnknownKey(issuer)
    return named
