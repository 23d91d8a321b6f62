"""Django: a middleware, for WSGI and ASGI. For Django REST framework see `muniment.adapters.drf`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.encoding import escape_uri_path
from django.utils.module_loading import import_string

from muniment.adapters.http import (
    Answer,
    Metadata,
    bearer,
    networks,
    proof,
    refusal,
    source,
    the_refusal,
    trace_id,
    url_of,
)
from muniment.background import Job
from muniment.calls import Agent, Incoming, receiving, request_info
from muniment.guard import Muniment

Get = Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]


def configured_guard() -> Muniment:
    """The guard that the setting MUNIMENT_GUARD names. Raises ImproperlyConfigured."""
    guard = _named("MUNIMENT_GUARD")
    if not isinstance(guard, Muniment):
        raise ImproperlyConfigured('MUNIMENT_GUARD must be the dotted path of a Muniment: "inner.guard.guard".')
    return guard


def _named(setting: str) -> Any:
    """What a setting is, or is the dotted path of."""
    found = getattr(settings, setting, None)
    return import_string(found) if isinstance(found, str) else found


class MunimentMiddleware:
    """Guarded functions that are called while a request is served are called with the token of its Authorization
    header: `@guard.tool` on a view, sync or async, or on what it calls. What they raise in a view becomes the answer;
    the metadata of RFC 9728 is served; tools are declared after the first request, when all views are known. Put it
    first in MIDDLEWARE.

    Settings: MUNIMENT_GUARD; and optionally MUNIMENT_AGENT, MUNIMENT_SESSION and MUNIMENT_TENANT, functions (or their
    dotted paths) that make of a request the agents that it came through, a session id and the tenant of the call;
    MUNIMENT_TRUSTED_PROXIES, the addresses and networks whose X-Forwarded-For is believed; MUNIMENT_NAME, what people
    call the backend; for tokens that are bound MUNIMENT_CALLED_URL, which makes of a request the URL that its client
    called, where it is not the path at the origin of the guard's `resource`, and MUNIMENT_CERTIFICATE, which gives the
    client's certificate as `muniment.adapters.http.thumbprint` does. Raises ImproperlyConfigured and Misconfigured.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Get) -> None:
        self._get_response = get_response
        self.guard = configured_guard()
        self._agent: Callable[[HttpRequest], Agent | None] | None = _named("MUNIMENT_AGENT")
        self._session: Callable[[HttpRequest], str | None] | None = _named("MUNIMENT_SESSION")
        self._tenant: Callable[[HttpRequest], str | None] | None = _named("MUNIMENT_TENANT")
        self._url: Callable[[HttpRequest], str] = _named("MUNIMENT_CALLED_URL") or self._url_of
        self._certificate: Callable[[HttpRequest], str | None] | None = _named("MUNIMENT_CERTIFICATE")
        self._trusted = networks(getattr(settings, "MUNIMENT_TRUSTED_PROXIES", ()))
        self._metadata = Metadata(self.guard, getattr(settings, "MUNIMENT_NAME", None))
        self._declared = False
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """Serve a request; awaitable where the next one is."""
        if iscoroutinefunction(self):
            return self._aserve(request)
        if (own := self._own(request)) is not None:
            return own
        with receiving(self.incoming(request)):
            response = self._get_response(request)
        self._declare()
        return response

    async def _aserve(self, request: HttpRequest) -> Any:
        if (own := self._own(request)) is not None:
            return own
        with receiving(self.incoming(request)):
            response = await self._get_response(request)  # type: ignore[misc]
        self._declare()
        return response

    def _own(self, request: HttpRequest) -> HttpResponse | None:
        found = self._metadata.answer(request.method or "", request.path, request.path_info)
        return None if found is None else responded(found)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """The answer where a view raised a refusal; None leaves any other error to Django."""
        refused = the_refusal(exception)
        return None if refused is None else responded(refusal(refused, self.guard))

    def incoming(self, request: HttpRequest) -> Incoming:
        """What came in with a request. Servers join several headers of one name by commas, which no token has."""
        authorization, proofs = _header(request, "AUTHORIZATION"), _header(request, "DPOP")
        return Incoming(
            bearer(authorization),
            request_info(
                id=request.META.get("HTTP_X_REQUEST_ID"),
                trace_id=trace_id(_header(request, "TRACEPARENT")),
                session_id=self._session(request) if self._session else None,
                ip=source(request.META.get("REMOTE_ADDR"), _header(request, "X_FORWARDED_FOR"), self._trusted),
                user_agent=request.META.get("HTTP_USER_AGENT"),
            ),
            (self._agent(request) if self._agent else None) or Agent(),
            self._tenant(request) if self._tenant else None,
            dpop=proof(authorization, proofs, request.method or "", self._url(request)) if proofs else None,
            certificate=self._certificate(request) if self._certificate else None,
        )

    def _url_of(self, request: HttpRequest) -> str:
        """Without its query, which no proof is of."""
        return url_of(
            self.guard, request.scheme or "", request.META.get("HTTP_HOST", ""), escape_uri_path(request.path)
        )

    def _declare(self) -> None:
        if not self._declared:
            self._declared = True
            self.guard.background.add(Job("declaring tools", self.guard.start), once=True)


def _header(request: HttpRequest, name: str) -> list[str]:
    value = request.META.get(f"HTTP_{name}")
    return [] if value is None else [value]


def responded(answer: Answer) -> HttpResponse:
    """An answer as Django's."""
    response = HttpResponse(answer.body, status=answer.status, headers=answer.headers)
    if answer.status != 204:
        response["Content-Length"] = str(len(answer.body))
    return response
