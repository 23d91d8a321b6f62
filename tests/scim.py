"""A SCIM connection for tests, and an identity provider that calls it."""

import json
from dataclasses import dataclass, field
from typing import Any

from django.test import Client as HttpClient

from audit.outbox import acting
from clients.models import Issuer, ScimConnection
from clients.scim import tokens

USER = "urn:ietf:params:scim:schemas:core:2.0:User"
PATCH = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
MEDIA = "application/scim+json"


@dataclass
class Provider:
    """An identity provider with a connection of its own."""

    connection: ScimConnection
    token: str
    http: HttpClient = field(default_factory=HttpClient)

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """One call; `path` is below the connection's address."""
        data = body if isinstance(body, (bytes, str)) else json.dumps(body) if body is not None else ""
        return self.http.generic(
            method, f"/scim/v2/{self.connection.name}{path}", data, content_type=headers.pop("content_type", MEDIA),
            headers={"Authorization": f"Bearer {self.token}", **headers},
        )  # fmt: skip

    def add(self, name: str = "alice", /, **members: Any) -> Any:
        """POST a user whose userName and externalId are this name."""
        return self.call("POST", "/Users", {"schemas": [USER], "userName": name, "externalId": name} | members)

    def made(self, name: str = "alice", /, **members: Any) -> str:
        """The id of a user who was just made."""
        answer = self.add(name, **members)
        assert answer.status_code == 201, answer.content
        return str(answer.json()["id"])

    def patch(self, number: str, *operations: dict[str, Any]) -> Any:
        """PATCH a user."""
        return self.call("PATCH", f"/Users/{number}", {"schemas": [PATCH], "Operations": list(operations)})

    def set(self, number: str, /, **members: Any) -> Any:
        """PATCH attributes to these values."""
        return self.patch(number, {"op": "replace", "value": members})


def connect(name: str = "okta", attribute: str = "externalId", issuer: Issuer | None = None) -> Provider:
    """A connection of the world's issuer, and its token."""
    found = issuer or Issuer.objects.get()
    with acting("command:test"):
        connection = ScimConnection.objects.create(name=name, issuer=found, subject_attribute=attribute)
        token = tokens.renew(connection)
    return Provider(connection, token)


def problem(answer: Any) -> tuple[int, str | None]:
    """Status and scimType of an error, which is one of SCIM."""
    assert answer["Content-Type"] == MEDIA, answer.content
    body = answer.json()
    assert body["schemas"] == ["urn:ietf:params:scim:api:messages:2.0:Error"]
    assert body["status"] == str(answer.status_code) and body["detail"]
    return answer.status_code, body.get("scimType")
