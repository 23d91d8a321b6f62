"""Problem documents (RFC 9457): how every error of the API itself is answered."""

from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from rest_framework import exceptions

from audit.recording import QueueFull, Unavailable
from governance.shortcut import PREFIXES


class Problem(Exception):
    """An error of the call. `kind` names it in `type`; `detail` says what to do; never a secret in either."""

    def __init__(self, status: int, kind: str, title: str, detail: str = "", **more: Any) -> None:
        super().__init__(kind)
        self.status, self.kind, self.title, self.detail = status, kind, title, detail
        self.headers: dict[str, str] = more.pop("headers", {})
        self.more = more

    def document(self) -> dict[str, Any]:
        """The members of the problem document."""
        about = {"type": f"urn:muniment:problem:{self.kind}", "title": self.title, "status": self.status}
        return about | ({"detail": self.detail} if self.detail else {}) | self.more

    def response(self) -> JsonResponse:
        """As an answer."""
        return JsonResponse(
            self.document(), status=self.status, content_type="application/problem+json", headers=self.headers
        )


def not_authenticated(wanted: str = "backend key: Authorization: Bearer mk_...") -> Problem:
    """A missing, unknown, wrong, expired or revoked key: which of these is not said. `wanted` names what to send."""
    return Problem(
        401, "not-authenticated", "Not authenticated", f"Send a valid {wanted}",
        headers={"WWW-Authenticate": "Bearer"},
    )  # fmt: skip


def method_not_allowed(allowed: list[str]) -> Problem:
    """Another method than the path offers."""
    headers = {"Allow": ", ".join(allowed)}
    return Problem(405, "method-not-allowed", "Method not allowed", f"Use {headers['Allow']}.", headers=headers)


def overloaded(detail: str) -> Problem:
    """The platform itself cannot answer; a caller fails closed."""
    return Problem(503, "unavailable", "Unavailable", detail, headers={"Retry-After": "1"})


def from_exception(error: Exception) -> Problem | None:
    """The problem that tells a known error; None for an unknown one."""
    match error:
        case Problem():
            return error
        case QueueFull():
            return overloaded("More calls are waiting to be recorded than this process can hold.")
        case Unavailable():
            return overloaded("The log cannot be written at the moment, so nothing is answered.")
        case OperationalError() | InterfaceError():
            return overloaded("The database cannot be reached at the moment, so nothing is answered.")
        case RequestDataTooBig():
            limit = settings.MUNIMENT_MAX_BODY // 1024
            return Problem(413, "body-too-large", "Body too large", f"At most {limit} KiB.")
        case exceptions.APIException():
            return Problem(error.status_code, str(error.default_code), error.__class__.__name__, str(error.detail))
    return None


def handle(error: Exception, context: dict[str, Any]) -> HttpResponse | None:
    """DRF's exception handler."""
    problem = from_exception(error)
    return problem.response() if problem else None


def is_api(request: HttpRequest) -> bool:
    """Whether a call is one of a program, which gets problem documents."""
    return request.path.startswith(PREFIXES)


def not_found() -> Problem:
    """A path of the API at which there is nothing."""
    return Problem(404, "not-found", "Not found", "There is nothing at this path.")


def internal() -> Problem:
    """What nobody expected: no detail leaves; it is in the log."""
    return Problem(500, "internal", "Internal error", "It has been logged.")


def bad_request() -> Problem:
    """What Django itself refuses to read."""
    return Problem(400, "bad-request", "Bad request", "It cannot be read.")
