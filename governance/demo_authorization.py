"""The demo issuer's authorization code flow (RFC 6749 section 4.1, with PKCE, RFC 7636): enough of an authorization
server that real OAuth clients find their way from a guarded server to a token, and to more scopes.

It signs nobody in: whoever asks is alice or bob, as `login_hint` or a click says, and consents to everything. So
there is no form and nothing to protect from being sent by another site: a GET changes nothing, and its code, worth a
demo token, goes to this machine or to the client's own address, for whoever has the verifier. What a client's metadata
document (of a client id that is a URL) says is not fetched, since the demo contacts nobody; an address off this machine
must be one that Claude and ChatGPT publish.
"""

import re
import secrets
from base64 import urlsafe_b64encode
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode, urlsplit

import redis
from django.conf import settings
from django.core import signing
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from governance import demo_issuer
from governance.idempotency import store
from tools.models import Backend, Scope

CODE_LIFE = 60  # seconds
_SALT = "muniment.demo-issuer.code"
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")  # of S256, RFC 7636 section 4.2
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_LOOPBACK = re.compile(r"http://(?:127\.0\.0\.1|localhost|\[::1\]):[1-9][0-9]{0,4}(?:[/?][\x21-\x7e]{0,400})?")
# Whose codes are sent off this machine, and where to.
_CALLBACKS = (
    (
        re.compile(r"claude-app|https://claude\.(?:ai|com)/.*"),
        re.compile(r"https://claude\.(?:ai|com)/api/mcp/auth_callback"),
    ),
    (
        re.compile(r"chatgpt-app|https://chatgpt\.com/.*"),
        re.compile(r"https://chatgpt\.com/(?:connector_platform_oauth_redirect|connector/oauth/[A-Za-z0-9_-]{1,100})"),
    ),
)
_RESOURCE = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks for."""

    client: str
    redirect_uri: str
    scope: str
    challenge: str
    resource: str


def metadata() -> dict[str, Any]:
    """RFC 8414 section 2, and OpenID Connect Discovery 1.0 section 3."""
    issuer = demo_issuer.issuer()
    return {
        "issuer": issuer,
        "jwks_uri": f"{issuer}/jwks",
        "authorization_endpoint": f"{issuer}/authorize",
        "token_endpoint": f"{issuer}/token",
        "response_types_supported": ["code"],
        "grant_types_supported": ["authorization_code"],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["none"],
        "scopes_supported": list(Scope.objects.order_by("name").values_list("name", flat=True)),
        "client_id_metadata_document_supported": True,
        "authorization_response_iss_parameter_supported": True,
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "service_documentation": f"{settings.MUNIMENT_URL}/reference",
    }


@require_GET
def authorize(request: HttpRequest) -> HttpResponse:
    """RFC 6749 section 4.1.1. An unknown client or address is answered here; everything else there, with `iss` (RFC
    9207)."""
    given = request.GET
    client, target = given.get("client_id", ""), given.get("redirect_uri", "")
    if not demo_issuer.is_client_id(client) or not is_redirect_uri(target, client):
        return HttpResponseBadRequest(
            "client_id or redirect_uri is not one that the demo issuer knows.\n", "text/plain"
        )
    asked = Asked(
        client, target, given.get("scope", ""), given.get("code_challenge", ""),
        given.get("resource") or demo_issuer.AUDIENCE,
    )  # fmt: skip
    if error := fault(asked, given.get("response_type", ""), given.get("code_challenge_method", "")):
        return back(asked, given.get("state"), error=error)
    user = given.get("login_hint", "")
    if user not in demo_issuer.USERS:
        query = {name: value for name, value in given.items() if name != "login_hint"}
        users = {name: f"?{urlencode(query | {'login_hint': name})}" for name in demo_issuer.USERS}
        return render(request, "demo_authorize.html", {"client": client, "scopes": asked.scope.split(), "users": users})
    code = signing.dumps(asdict(asked) | {"user": user, "id": secrets.token_urlsafe(12)}, salt=_SALT, compress=True)
    return back(asked, given.get("state"), code=code)


def is_redirect_uri(text: str, client: str) -> bool:
    """Whether this client's codes may be sent there: to this machine, or to its published callback."""
    if _LOOPBACK.fullmatch(text):
        return "#" not in text  # RFC 6749 section 3.1.2
    return any(whose.fullmatch(client) and where.fullmatch(text) for whose, where in _CALLBACKS)


def fault(asked: Asked, kind: str, method: str) -> str:
    """The error code of what cannot be answered with a code (RFC 6749 section 4.1.2.1, RFC 8707 section 2)."""
    if kind != "code":
        return "unsupported_response_type"
    if method != "S256" or not _CHALLENGE.fullmatch(asked.challenge):
        return "invalid_request"
    if not demo_issuer.is_scope(asked.scope):
        return "invalid_scope"
    return "" if is_audience(asked.resource) else "invalid_target"


def is_audience(resource: str) -> bool:
    """Whether a backend of the instance has this audience."""
    known = Backend.objects.filter(enabled=True, audiences__contains=[resource])
    return bool(_RESOURCE.fullmatch(resource)) and known.exists()


def back(asked: Asked, state: str | None, **answer: str) -> HttpResponse:
    """To the client's address, with the answer."""
    query = answer | {"iss": demo_issuer.issuer()} | ({"state": state} if state else {})
    separator = "&" if urlsplit(asked.redirect_uri).query else "?"
    return HttpResponseRedirect(
        f"{asked.redirect_uri}{separator}{urlencode(query)}", headers={"Cache-Control": "no-store"}
    )


def exchange(request: HttpRequest) -> JsonResponse:
    """RFC 6749 section 4.1.3: a code and its verifier for a token, once."""
    form = request.POST
    try:
        found = signing.loads(form.get("code", ""), salt=_SALT, max_age=CODE_LIFE)
    except signing.BadSignature:
        return demo_issuer.error("invalid_grant", "the code is not one of ours, or is older than a minute")
    user, identifier = found.pop("user"), found.pop("id")
    asked, verifier = Asked(**found), form.get("code_verifier", "")
    if form.get("client_id") != asked.client or form.get("redirect_uri") != asked.redirect_uri:
        return demo_issuer.error("invalid_grant", "the code was for another client or address")
    digest = urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    if not _VERIFIER.fullmatch(verifier) or not secrets.compare_digest(digest, asked.challenge):
        return demo_issuer.error("invalid_grant", "code_verifier is not that of the code")
    if form.get("resource", asked.resource) != asked.resource:
        return demo_issuer.error("invalid_target", "the code was for another resource")
    return _once(identifier) or demo_issuer.granted(user, asked.client, asked.scope, aud=asked.resource)


def _once(identifier: str) -> JsonResponse | None:
    """The error for a code that was used before, in whichever process. What cannot be known is refused."""
    try:
        first = store().set(f"muniment:demo-issuer:{identifier}", "used", nx=True, ex=CODE_LIFE * 2)
    except redis.RedisError:
        return demo_issuer.error("temporarily_unavailable", "Redis is away", 503)
    return None if first else demo_issuer.error("invalid_grant", "the code was used before")
