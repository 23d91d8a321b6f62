"""DPoP proofs: that who sends a token has the key that the token is bound to (RFC 9449 section 4.3; pure).

A proof is a JWS that the client makes for each request, over its method and URL, the token and the time. Whether one
was used before is not said here: see `clients.replays`.
"""

import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Literal

from clients import jwks
from clients.claims import Refused
from clients.jwks import SUPPORTED, VerificationKey
from clients.tokens import Parts, take_apart
from clients.urls import comparable

LIFE: Final = 60  # seconds for which a proof is good
MAX_SKEW: Final = 60  # seconds by which clocks may differ, whatever the leeway of the issuer
MAX_PROOF: Final = 8192  # characters; an RSA key of 8192 bits and its signature fit
MAX_JTI: Final = 255  # characters
ALGORITHMS: Final = " ".join(sorted(SUPPORTED))  # for the challenge (RFC 9449 section 7.1)

# The members that a thumbprint is of, in their order (RFC 7638 section 3.2, RFC 8037 section 2).
_OF_THUMBPRINT: Final[Mapping[str, tuple[str, ...]]] = {
    "RSA": ("e", "kty", "n"), "EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x")
}  # fmt: skip
# The text of an instant in a claim is a number; more digits than these are no time.
_MAX_DATE: Final = 253_402_300_799

Error = Literal["invalid_dpop_proof", "invalid_token", "use_dpop_nonce"]


class WrongProof(Refused):
    """The proof does not hold. `error` is what the challenge says (RFC 9449 sections 7.1 and 9)."""

    def __init__(self, detail: str, error: Error = "invalid_dpop_proof") -> None:
        super().__init__("proof_invalid", detail)
        self.error: Error = error


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof that holds. `name` is what it is known by, once (section 11.1): the thumbprint of its key, and its `jti`.
    `until` is when it can be used no longer, whatever the leeway, in seconds since the epoch."""

    name: str
    until: float


@dataclass(frozen=True, slots=True)
class Asked:
    """What a proof must be of: the method and URL of the request that it came with, as its backend saw them, and the
    token, whose key has the thumbprint `key`. `skew` is by how many seconds clocks may differ; `nonces` are those that
    are good now, None where none is demanded."""

    method: str
    url: str
    token: str
    key: str
    skew: int
    nonces: Collection[str] | None = None


def check(proof: str, asked: Asked, now: float) -> Proof:
    """Section 4.3, all but whether the proof was used before; `now` is in seconds since the epoch. Raises WrongProof,
    and nothing else, whatever the proof."""
    try:
        parts = take_apart(proof, MAX_PROOF)
    except Refused:
        words = f"the proof is not one compact JWS of two JSON objects, of at most {MAX_PROOF} characters"
        raise WrongProof(words) from None
    algorithm = _algorithm(parts.header)
    key = _key(parts.header.get("jwk"), algorithm, asked.key)
    if not key.verify(algorithm, parts.signed, parts.signature):
        raise WrongProof("the signature of the proof does not hold")
    _request(parts, asked)
    jti, issued_at = _jti(parts.claims), _issued_at(parts.claims, asked.skew, now)
    # Last, so that who is told to use another nonce has done all else right.
    if asked.nonces is not None and not _is_one_of(parts.claims.get("nonce"), asked.nonces):
        raise WrongProof("the proof has no nonce that is good now", "use_dpop_nonce")
    # Whatever the skew is now: a proof that was used must be known as long as any setting would let it be used.
    return Proof(f"{asked.key} {jti}", issued_at + LIFE + MAX_SKEW)


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """The SHA-256 thumbprint of a sound public key (RFC 7638 section 3), base64url."""
    members = {name: jwk[name] for name in _OF_THUMBPRINT[jwk["kty"]]}
    return _digest(json.dumps(members, separators=(",", ":")))


def _digest(text: str) -> str:
    return urlsafe_b64encode(sha256(text.encode()).digest()).rstrip(b"=").decode()


def _algorithm(header: Mapping[str, Any]) -> str:
    """Points 4 and 5, and extensions that we would have to understand (as in `clients.tokens`)."""
    if header.get("typ") != "dpop+jwt":
        raise WrongProof("the proof is not of the type dpop+jwt")
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in SUPPORTED:
        raise WrongProof("the proof is not signed with an asymmetric algorithm that is supported")
    if not header.keys().isdisjoint({"crit", "b64", "enc"}):
        raise WrongProof("the header of the proof asks for an extension that is not supported")
    return algorithm


def _key(jwk: object, algorithm: str, wanted: str) -> VerificationKey:
    """Points 6 and 7, the key: public, of a sound strength, fitting the algorithm, and the token's (point 12). Which it
    is comes first, so that only who has learnt the token's key can make us verify signatures."""
    found = jwks.parse({"keys": [jwk]}, frozenset({algorithm}))
    if not found or not isinstance(jwk, dict):
        raise WrongProof("the proof has no public key (jwk) that fits its algorithm and is sound")
    if not hmac.compare_digest(thumbprint(jwk), wanted):
        raise WrongProof("the proof was made with another key than the token's", "invalid_token")
    return found[0]


def _request(parts: Parts, asked: Asked) -> None:
    """Points 8, 9 and 12: the proof is of this request and of this token."""
    claims = parts.claims
    if claims.get("htm") != asked.method:
        raise WrongProof("the proof is of another method (htm)")
    htu, url = claims.get("htu"), comparable(asked.url)
    if url is None:
        raise WrongProof("the backend did not say at which http(s) URL it was asked")
    if not isinstance(htu, str) or comparable(htu) != url:
        raise WrongProof("the proof is of another URL (htu)")
    if not _is_one_of(claims.get("ath"), (_digest(asked.token),)):
        raise WrongProof("the proof is of another token (ath)")


def _jti(claims: Mapping[str, Any]) -> str:
    jti = claims.get("jti")
    if not isinstance(jti, str) or not 0 < len(jti) <= MAX_JTI or not jti.isprintable():
        raise WrongProof(f"the proof has no name (jti) of 1 to {MAX_JTI} printable characters")
    return jti


def _issued_at(claims: Mapping[str, Any], skew: int, now: float) -> float:
    """Point 11, by our own clock."""
    iat = claims.get("iat")
    if isinstance(iat, bool) or not isinstance(iat, int | float) or not 0 <= iat <= _MAX_DATE:
        raise WrongProof("the proof does not say when it was made (iat)")
    if now >= iat + LIFE + skew:
        raise WrongProof("the proof is too old (iat)")
    if now < iat - skew:
        raise WrongProof("the proof was made in the future (iat)")
    return float(iat)


def _is_one_of(value: object, good: Collection[str]) -> bool:
    """Compared in constant time."""
    given = value.encode("utf-8", "replace") if isinstance(value, str) else b""
    return any(hmac.compare_digest(given, one.encode()) for one in good)
