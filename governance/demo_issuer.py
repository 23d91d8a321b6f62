"""The demo's own issuer: its name, its key, and tokens for anybody who asks (`governance/demo_authorization.py` has its
code flow, `governance/demo_urls.py` serves both). Never in production: importing this module there stops the process.

Its name has the port in it, as its discovery document must be found under it (OpenID Connect Discovery 1.0,
section 4.3); an instance that moves to another port is another issuer, and `demo_load` tells the database.
"""

import json
import re
import secrets
import time
from base64 import urlsafe_b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import JsonResponse

from governance import devkeys

if not settings.MUNIMENT_DEMO:
    raise ImproperlyConfigured("The demo issuer gives tokens to anybody: it exists in demo mode only.")

SUFFIX = "/demo-issuer"
AUDIENCE = "https://inner.example/mcp"
USERS = ("alice", "bob")
# Of each client that the demo knows, the OAuth client id under which the demo issuer knows it.
CLIENT_IDS = {"chatgpt": "chatgpt-app", "claude": "claude-app", "inner-ios": "inner-ios-app"}
LIFETIME = 8 * 3600  # seconds
MAX_LIFETIME = 24 * 3600
_CLIENT = re.compile(r"[A-Za-z0-9._-]{1,100}|https://[A-Za-z0-9._~:/%-]{1,240}")
_SCOPES = re.compile(r"[\x20\x21\x23-\x5b\x5d-\x7e]{0,1000}")  # RFC 6749 section 3.3


def issuer() -> str:
    """The issuer's name, where its discovery document is."""
    return f"{settings.MUNIMENT_URL}{SUFFIX}"


@cache
def private_key() -> rsa.RSAPrivateKey:
    """Its signing key, made once for each instance."""
    directory = Path(settings.MUNIMENT_VAR) / "keys"
    devkeys.private_directory(directory)
    pem = devkeys.read_or_make(directory / "demo_issuer.pem", _new_key)
    key = load_pem_private_key(pem.encode(), password=None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def _new_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@cache
def key_set() -> dict[str, Any]:
    """Its JWKS (RFC 7517); the key's id is its thumbprint (RFC 7638)."""
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private_key().public_key()))
    members = {"e": public["e"], "kty": "RSA", "n": public["n"]}
    thumbprint = sha256(json.dumps(members, separators=(",", ":"), sort_keys=True).encode()).digest()
    kid = urlsafe_b64encode(thumbprint).rstrip(b"=").decode()
    return {"keys": [members | {"use": "sig", "alg": "RS256", "kid": kid}]}


def mint(user: str, client: str, scope: str, *, lifetime: int = LIFETIME, **claims: Any) -> str:
    """An access token (RFC 9068) for a demo user. `client` is a demo client's slug or any OAuth client id;
    `claims` replace those made here."""
    now = int(time.time())
    payload = {
        "iss": issuer(),
        "aud": AUDIENCE,
        "sub": user,
        "email": f"{user}@example.com",
        "client_id": CLIENT_IDS.get(client, client),
        "scope": scope,
        "iat": now,
        "exp": now + lifetime,
        "jti": secrets.token_urlsafe(12),
    }
    headers = {"kid": key_set()["keys"][0]["kid"], "typ": "at+jwt"}
    return jwt.encode(payload | claims, private_key(), algorithm="RS256", headers=headers)


def is_client_id(text: str) -> bool:
    """A client's slug, or an OAuth client id, which may be a URL (OAuth Client ID Metadata Document)."""
    return bool(_CLIENT.fullmatch(text))


def is_scope(text: str) -> bool:
    """RFC 6749 section 3.3, or nothing."""
    return bool(_SCOPES.fullmatch(text))


def granted(user: str, client: str, scope: str, **claims: Any) -> JsonResponse:
    """RFC 6749 section 5.1."""
    answer = {"access_token": mint(user, client, scope, **claims), "token_type": "Bearer", "expires_in": LIFETIME}
    return JsonResponse(answer | {"scope": scope}, headers={"Cache-Control": "no-store"})


def error(code: str, description: str, status: int = 400) -> JsonResponse:
    """RFC 6749 section 5.2."""
    answer = {"error": code, "error_description": description}
    return JsonResponse(answer, status=status, headers={"Cache-Control": "no-store"})
