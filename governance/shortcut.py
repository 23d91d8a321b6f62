"""Backends and operators' tools have no browser: their calls pass by what Django does for browsers."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.urls import Resolver404, resolve

# Where programs call. AuthZEN (Authorization API 1.0, section 10.1) and RFC 8615 fix the second and the last.
PREFIXES = ("/v1/", "/access/v1/", "/scim/v2/", "/.well-known/")
# What operators' tools ask, by whatever name or address they reach the process; the answers hold no name.
OPERATIONS = frozenset({"/livez", "/readyz", "/metrics"})


class ApiShortcut:
    """Middleware, just inside SecurityMiddleware: a call of a program goes straight to its view, without sessions,
    CSRF (no cookie authenticates it), messages and Content-Security-Policy, which cost as much as deciding does."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer a call of the API; pass on everything else, and what has no view."""
        if request.path_info.startswith(PREFIXES):
            request.get_host()  # raises DisallowedHost, which Django answers with 400
        elif request.path_info not in OPERATIONS:
            return self.get_response(request)
        try:
            match = resolve(request.path_info)
        except Resolver404:
            return self.get_response(request)
        request.resolver_match = match
        response: HttpResponse = match.func(request, *match.args, **match.kwargs)
        if hasattr(response, "render") and callable(response.render):
            response = response.render()
        # CommonMiddleware, which this passes by, would have said it; without it the connection can't be kept.
        response.headers["Content-Length"] = str(len(response.content))
        return response
