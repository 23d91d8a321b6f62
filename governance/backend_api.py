"""What backends and verifiers need besides verify: declaring tools, and the public keys."""

import base64
from typing import Any
from urllib.parse import urlsplit

import msgspec
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from rest_framework.request import Request
from rest_framework.views import APIView

from audit.models import PublishedKey
from governance import schema
from governance.api import BackendView, decode, invalid_parameter, json_response, values
from governance.budgets import Budgets
from governance.contract import Declaration
from governance.problems import Problem
from muniment.notes import ED25519, Key
from tools import declarations

_declaration = msgspec.json.Decoder(Declaration)
# Each change raises the policy version, after which every process loads the policy anew.
changes = Budgets(rate=0.5, burst=20)


class ToolsView(BackendView):
    """PUT /v1/tools: a backend declares its tools."""

    @schema.declare
    def put(self, request: HttpRequest) -> HttpResponse:
        """Idempotent. New tools wait for approval by staff."""
        backend = self.backend(request)
        if changes.spent(backend.slug, "tools"):
            raise Problem(
                429, "too-many-changes", "Too many changes", "Tools are declared at start, not all the time.",
                headers={"Retry-After": "2"},
            )  # fmt: skip
        declared = decode(_declaration, request.body)
        try:
            results = declarations.declare(backend.id, backend.slug, declared.tools)
        except declarations.DeclarationError as error:
            raise Problem(400, "invalid-declaration", "The declaration is not valid", str(error)) from None
        if any(result.change != "unchanged" for result in results):
            changes.charge(backend.slug, "tools")
        return json_response({"tools": [{"name": r.name, "status": r.status, "change": r.change} for r in results]})


class KeysView(APIView):
    """GET /v1/keys: the public keys, for ever, so that old evidence verifies."""

    authentication_classes: list[Any] = []
    permission_classes: list[Any] = []

    @schema.keys
    def get(self, request: Request) -> HttpResponse:
        """A JWKS (RFC 7517, RFC 8037) in which each key also has its use, validity and C2SP vkey.

        With `use=assertion` one as JOSE libraries expect it: of the keys that sign assertions now, and of no others,
        since to such a library a key is a key.
        """
        keys, asked = PublishedKey.objects.order_by("not_before", "key_id"), values(request, "use")
        if asked == ["assertion"]:
            return json_response({"keys": [_jose(key) for key in keys.filter(use="assertion", not_after=None)]})
        if asked:
            raise invalid_parameter("use", "`assertion`, or leave it out")
        return json_response({"keys": [_jwk(key) for key in keys]})


def _jose(key: PublishedKey) -> dict[str, str]:
    """The members of RFC 7517 section 4 alone, with the `use` that it knows for signatures."""
    public = base64.urlsafe_b64encode(bytes(key.public)).rstrip(b"=").decode()
    return {"kty": "OKP", "crv": "Ed25519", "x": public, "kid": key.key_id, "alg": "EdDSA", "use": "sig"}


def _jwk(key: PublishedKey) -> dict[str, Any]:
    return {
        **_jose(key),
        "use": key.use,
        "vkey": Key(_name(key.use), ED25519, bytes(key.public)).vkey,
        "not_before": key.not_before.isoformat(),
        "not_after": key.not_after.isoformat() if key.not_after else None,
    }


def _name(use: str) -> str:
    """The key's name in its vkey. A log's key has the log's origin for its name (C2SP tlog-checkpoint)."""
    if use == "log":
        return str(settings.MUNIMENT_LOG_ORIGIN)
    return f"{urlsplit(settings.MUNIMENT_URL).netloc or 'muniment'}/{use}"
