"""The demo issuer, as it is served: its metadata, its key, its authorization endpoint, its tokens."""

from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from governance import demo_authorization, demo_issuer
from governance.demo_issuer import USERS, error, granted, is_client_id, is_scope


@require_GET
def discovery(request: HttpRequest) -> JsonResponse:
    """Where everything is."""
    return JsonResponse(demo_authorization.metadata())


@require_GET
def jwks(request: HttpRequest) -> JsonResponse:
    """Its public key."""
    return JsonResponse(demo_issuer.key_set())


@csrf_exempt
@require_POST
def token(request: HttpRequest) -> JsonResponse:
    """A code for a token; or a form of `user`, `client_id` and `scope`, as RFC 6749 section 4.4 but for the user, who
    is simply believed. Another site's page can send the form, but cannot read what comes back."""
    if request.POST.get("grant_type") == "authorization_code":
        return demo_authorization.exchange(request)
    user, client = request.POST.get("user", ""), request.POST.get("client_id", "")
    scope = request.POST.get("scope", "")
    if user not in USERS:
        return error("invalid_grant", f"the demo's users are {' and '.join(USERS)}")
    if not is_client_id(client):
        return error("invalid_request", "client_id must be a client's slug or an OAuth client id")
    if not is_scope(scope):
        return error("invalid_scope", "scope must be scope names with spaces between")
    return granted(user, client, scope)


SUFFIX = demo_issuer.SUFFIX.removeprefix("/")
urlpatterns = [
    path(f"{SUFFIX}/.well-known/openid-configuration", discovery),
    path(f"{SUFFIX}/.well-known/oauth-authorization-server", discovery),
    # RFC 8414 section 3.1: of an issuer with a path, the well-known part comes first.
    path(f".well-known/oauth-authorization-server/{SUFFIX}", discovery),
    path(f".well-known/openid-configuration/{SUFFIX}", discovery),
    path(f"{SUFFIX}/jwks", jwks),
    path(f"{SUFFIX}/authorize", demo_authorization.authorize),
    path(f"{SUFFIX}/token", token),
]
