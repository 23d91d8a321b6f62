"""The keys that an issuer publishes: read a JSON Web Key Set and judge each key in it (pure).

A key that cannot be trusted to verify is left out rather than spoiling its set (RFC 7517 section 5); which of
the remaining keys fits a token is decided when the token is verified.
"""

import json
import re
from binascii import Error as Base64Error
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import AllowedPublicKeys, get_default_algorithms
from jwt.utils import base64url_decode

MAX_KEYS: Final = 100
MIN_RSA_BITS: Final = 2048  # RFC 7518 section 3.3
MAX_RSA_BITS: Final = 8192  # a larger one costs milliseconds for each token, forged ones included
MAX_NAME: Final = 255  # characters of a `kid`

# What a key of this type and curve can verify (RFC 7518 section 3.1, RFC 8037 section 3.1). Symmetric keys
# ("oct") are not here on purpose: whoever can verify with one can forge with it.
_ABILITIES: Final[Mapping[tuple[str, str | None], frozenset[str]]] = {
    ("RSA", None): frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    ("EC", "P-256"): frozenset({"ES256"}),
    ("EC", "P-384"): frozenset({"ES384"}),
    ("EC", "P-521"): frozenset({"ES512"}),
    ("OKP", "Ed25519"): frozenset({"EdDSA"}),
    ("OKP", "Ed448"): frozenset({"EdDSA"}),
}
SUPPORTED: Final[frozenset[str]] = frozenset().union(*_ABILITIES.values())

_CURVES: Final[Mapping[str, ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()
}  # fmt: skip
_VERIFIERS: Final = {name: how for name, how in get_default_algorithms().items() if name in SUPPORTED}
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+")
_PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_PUBLIC_MEMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "RSA": ("kty", "kid", "alg", "n", "e"),
    "EC": ("kty", "kid", "alg", "crv", "x", "y"),
    "OKP": ("kty", "kid", "alg", "crv", "x"),
}


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """One public key, parsed once, with the algorithms that it may verify (at least one)."""

    kid: str | None
    algorithms: frozenset[str]
    public_key: AllowedPublicKeys

    def verify(self, algorithm: str, message: bytes, signature: bytes) -> bool:
        """Whether `signature` (JWS form, RFC 7518 section 3) over `message` is this key's. Never raises."""
        if algorithm not in self.algorithms:
            return False
        try:
            return _VERIFIERS[algorithm].verify(message, self.public_key, signature)
        except (ValueError, TypeError, OverflowError, UnsupportedAlgorithm):
            return False


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """Which claims say what, where an issuer's are not the standard ones; empty: those of `clients.claims`."""

    subject: str = ""
    email: str = ""
    scopes: tuple[str, ...] = ()
    client_id: tuple[str, ...] = ()


STANDARD_CLAIMS: Final = ClaimRules()


@dataclass(frozen=True, slots=True)
class IntrospectionPolicy:
    """How to ask an issuer about its opaque tokens. `secret` is still protected; `holder` names the key that opens
    it."""

    endpoint: str
    method: str
    client_id: str
    secret: bytes | None = field(repr=False)
    holder: str
    signed: bool
    cache_seconds: int
    allowed_networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IssuerPolicy:
    """What deciding about a token needs to know of its issuer.

    `leeway` and `max_lifetime` are seconds. `fetched` is False while no key set could ever be had, or the one
    we have is older than the bound: then the token can be judged neither way (row 3, `issuer_unavailable`).
    """

    id: int
    issuer: str
    algorithms: frozenset[str]
    leeway: int
    max_lifetime: int
    tenant_claim: str | None
    roles_claim: str | None
    keys: tuple[VerificationKey, ...]
    fetched: bool
    claims: ClaimRules = STANDARD_CLAIMS
    introspection: IntrospectionPolicy | None = None
    # What its tokens must be bound to: "" (nothing), any, dpop or mtls.
    require_binding: str = ""
    dpop_nonce: bool = False


def parse(document: object, allowed: frozenset[str] = SUPPORTED) -> tuple[VerificationKey, ...]:
    """The usable keys of a JWKS, in its order; duplicates of a `kid` are all kept. Never raises: what is no JSON
    object, or has no list of keys, has no usable keys, so that one spoilt row stops no other issuer.

    Of the first MAX_KEYS entries it leaves out those that are no public signature key that we know, that are
    too weak, that say they are for something else, or that serve none of the `allowed` algorithms.
    """
    listed = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(listed, list):
        return ()
    keys = (_parse_key(entry) for entry in listed[:MAX_KEYS])
    return tuple(key for key in keys if key is not None and key.algorithms & allowed)


def normalise(document: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a JWKS worth storing: what its usable keys are, in an order of our own.

    So a set that an issuer merely reorders, or whose certificates alone are new, is not a changed set, and a
    private key that an issuer published by mistake does not get into our database. Raises ValueError when
    the document is no JWKS (RFC 7517 section 5) or has more than MAX_KEYS keys.
    """
    listed = document.get("keys")
    if not isinstance(listed, list):
        raise ValueError("the key set has no list of keys")
    if len(listed) > MAX_KEYS:
        raise ValueError(f"the key set has more than {MAX_KEYS} keys")
    kept = [
        {name: entry[name] for name in _PUBLIC_MEMBERS[entry["kty"]] if name in entry}
        for entry in listed
        if _parse_key(entry) is not None
    ]
    return {"keys": sorted(kept, key=lambda entry: json.dumps(entry, sort_keys=True))}


def _parse_key(entry: object) -> VerificationKey | None:
    """The key, or None when it is not one that we may verify with."""
    if not isinstance(entry, dict) or not _is_for_verifying(entry):
        return None
    algorithms = _algorithms(entry)
    if not algorithms:
        return None
    try:
        return VerificationKey(entry.get("kid"), algorithms, _public_key(entry))
    except (KeyError, ValueError, TypeError, OverflowError, Base64Error, UnsupportedAlgorithm):
        return None


def _is_for_verifying(entry: Mapping[str, Any]) -> bool:
    if not _PRIVATE_MEMBERS.isdisjoint(entry):
        return False  # a published private key is everybody's key
    kid = entry.get("kid", "")
    if not isinstance(kid, str) or len(kid) > MAX_NAME or not kid.isprintable():
        return False
    if "use" in entry and entry["use"] != "sig":
        return False
    operations = entry.get("key_ops", ["verify"])
    return isinstance(operations, list) and "verify" in operations


def _algorithms(entry: Mapping[str, Any]) -> frozenset[str]:
    kty, crv = entry.get("kty"), entry.get("crv")
    if kty == "RSA":
        crv = None
    if not isinstance(kty, str) or not isinstance(crv, str | None):
        return frozenset()
    able = _ABILITIES.get((kty, crv), frozenset())
    if "alg" not in entry:
        return able
    return able & {entry["alg"]} if isinstance(entry["alg"], str) else frozenset()


def _public_key(entry: Mapping[str, Any]) -> AllowedPublicKeys:
    """The key object; raises KeyError, TypeError or ValueError when the numbers are no sound public key."""
    if entry["kty"] == "RSA":
        return _rsa_key(_octets(entry["n"]), _octets(entry["e"]))
    if entry["kty"] == "EC":
        return _ec_key(_CURVES[entry["crv"]], _octets(entry["x"]), _octets(entry["y"]))
    if entry["crv"] == "Ed25519":
        return ed25519.Ed25519PublicKey.from_public_bytes(_octets(entry["x"]))
    return ed448.Ed448PublicKey.from_public_bytes(_octets(entry["x"]))


def _octets(text: str) -> bytes:
    if _BASE64URL.fullmatch(text) is None:
        raise ValueError("not base64url without padding")  # RFC 7515 section 2
    return base64url_decode(text)


def _rsa_key(modulus: bytes, exponent: bytes) -> rsa.RSAPublicKey:
    n, e = int.from_bytes(modulus, "big"), int.from_bytes(exponent, "big")
    if not MIN_RSA_BITS <= n.bit_length() <= MAX_RSA_BITS or n % 2 == 0:
        raise ValueError("the RSA modulus is too short, too long or even")
    if not 3 <= e < 2**32 or e % 2 == 0:
        raise ValueError("the RSA exponent is not an odd number of at most 32 bits")
    return rsa.RSAPublicNumbers(e, n).public_key()


def _ec_key(curve: ec.EllipticCurve, x: bytes, y: bytes) -> ec.EllipticCurvePublicKey:
    if len(x) != len(y) or len(x) != (curve.key_size + 7) // 8:  # RFC 7518 section 6.2.1.2
        raise ValueError("the coordinates have another length than the curve's")
    numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve)
    return numbers.public_key()  # refuses a point that is not on the curve
