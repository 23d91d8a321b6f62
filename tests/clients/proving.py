"""A client that has a key, and makes DPoP proofs of it (RFC 9449 section 4.2), right or wrong; and one with a
certificate."""

import functools
import secrets
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from clients.dpop import thumbprint
from tests.clients.keys import SigningKey, b64, dump, signing_key

URL = "https://inner.example/mcp"


@dataclass(frozen=True)
class Holder:
    """One who has a key. `signs` is another key to sign with than the one that is shown."""

    key: SigningKey
    signs: SigningKey | None = None

    @property
    def jwk(self) -> dict[str, Any]:
        return self.key.jwk(kid=None, use=None, alg=None)

    @property
    def jkt(self) -> str:
        """What a token that is bound to the key has in its `cnf`."""
        return thumbprint(self.jwk)

    def proof(
        self, token: str, method: str = "POST", url: str = URL, header: dict[str, Any] | None = None,
        now: float | None = None, **changes: Any,
    ) -> str:  # fmt: skip
        """A proof for one request; `header` and `changes` amend header and claims (None removes a member)."""
        claims = {
            "jti": secrets.token_urlsafe(12), "htm": method, "htu": url,
            "iat": int(time.time() if now is None else now), "ath": b64(sha256(token.encode()).digest()),
        }  # fmt: skip
        head = {"typ": "dpop+jwt", "alg": self.key.algorithm, "jwk": self.jwk} | (header or {})
        signed = f"{b64(dump(head))}.{b64(dump(claims | changes))}"
        return f"{signed}.{b64((self.signs or self.key).sign(signed.encode()))}"

    def signing_with(self, other: SigningKey) -> "Holder":
        """One who shows a key that it has not."""
        return replace(self, signs=other)


@functools.cache
def certificate() -> str:
    """A client's certificate, signed by itself, as PEM; the same one within a test run."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client")])
    begin = datetime.now(UTC) - timedelta(hours=1)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(7).not_valid_before(begin).not_valid_after(begin + timedelta(days=1))
    return made.sign(key, SHA256()).public_bytes(Encoding.PEM).decode()


def in_hex(pem: str) -> str:
    """Its SHA-256 as Envoy and Caddy write it."""
    return x509.load_pem_x509_certificate(pem.encode()).fingerprint(SHA256()).hex()


def holder(algorithm: str = "ES256", number: int = 0, bits: int = 2048) -> Holder:
    """One with a key of its own; the same for the same arguments."""
    return Holder(signing_key(algorithm, "holder", number, bits))
