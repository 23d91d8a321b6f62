"""A small world for tests: one issuer with real keys behind a real JWKS endpoint, clients, a backend, grants."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from django.test import Client as HttpClient
from django.utils import timezone

from clients.models import Client, Grant, Issuer, KeySet, OAuthClientId
from tools.credentials import issue
from tools.models import Backend, Scope, Tool

ISSUER = "https://id.example/"
AUDIENCE = "https://inner.example/mcp"
_PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def jwks() -> dict[str, Any]:
    """The issuer's key set."""
    key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(_PRIVATE.public_key()))
    return {"keys": [key | {"kid": "k1", "use": "sig", "alg": "RS256"}]}


def token(
    sub: str = "alice", client: str = "claude-app", scope: str = "memory:read memory:write", **claims: Any
) -> str:
    """A real access token."""
    now = int(time.time())
    payload = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": sub, "client_id": client, "scope": scope, "iat": now - 30,
        "exp": now + 600, "email": f"{sub}@example.com",
    }  # fmt: skip
    return jwt.encode(payload | claims, _PRIVATE, algorithm="RS256", headers={"kid": "k1", "typ": "at+jwt"})


@dataclass
class World:
    """What `build` made, and how to call verify in it."""

    key: str
    backend: Backend
    client: Client
    grant: Grant
    http: HttpClient = field(default_factory=HttpClient)

    def post(self, path: str, body: Any, key: str | None = None, **headers: str) -> Any:
        """POST JSON as the backend."""
        data = body if isinstance(body, (bytes, str)) else json.dumps(body)
        return self.http.post(
            path, data, content_type="application/json",
            headers={"Authorization": f"Bearer {self.key if key is None else key}", **headers},
        )  # fmt: skip

    def verify(self, tool: str = "memory.recall", **members: Any) -> dict[str, Any]:
        """One verify call that is answered with 200."""
        response = self.post("/v1/verify", {"token": token(), "tool": tool} | members)
        assert response.status_code == 200, response.content
        answer: dict[str, Any] = response.json()
        return answer


def build() -> World:
    """Claude may read; memory.capture needs a scope that nobody is granted."""
    issuer = Issuer.objects.create(issuer=ISSUER, algorithms=["RS256"])
    KeySet.objects.create(issuer=issuer, jwks=jwks(), fetched_at=timezone.now())
    backend = Backend.objects.create(
        slug="inner", name="Inner", audiences=[AUDIENCE], assertion_audiences=["https://db.example"]
    )
    read, write = Scope.objects.create(name="memory:read"), Scope.objects.create(name="memory:write")
    write.implies.add(read)
    recall = Tool.objects.create(backend=backend, name="memory.recall", access="read", status="active")
    capture = Tool.objects.create(backend=backend, name="memory.capture", access="write", status="active")
    recall.scopes.add(read)
    capture.scopes.add(write)
    client = Client.objects.create(slug="claude", name="Claude")
    OAuthClientId.objects.create(client=client, issuer=issuer, oauth_id="claude-app")
    grant = Grant.objects.create(client=client, reason="launch review")
    grant.scopes.add(read)
    return World(issue(backend), backend, client, grant)
