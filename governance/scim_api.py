"""/scim/v2/<connection>/: SCIM 2.0 (RFC 7644) for the identity providers that manage users here. Who calls is settled
here; what is answered, in `governance.scim_answers`, whose library is loaded at the first call, since most instances
have no such provider."""

from django.http import HttpRequest, HttpResponse, JsonResponse

from clients.models import ScimConnection
from clients.scim import tokens
from governance import metrics
from governance.api import too_many
from governance.budgets import budgets
from governance.problems import Problem, from_exception, method_not_allowed, not_authenticated

MEDIA = "application/scim+json"
ERROR = "urn:ietf:params:scim:api:messages:2.0:Error"


def error(status: int, detail: str, scim_type: str | None = None, **headers: str) -> HttpResponse:
    """An error as RFC 7644 section 3.12 has it. `headers` are named with underscores."""
    body: dict[str, object] = {"schemas": [ERROR], "status": str(status), "detail": detail}
    if scim_type:
        body["scimType"] = scim_type
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    metrics.refused(status)
    return JsonResponse(body, status=status, content_type=MEDIA, headers=named | {"Cache-Control": "no-store"})


def scim(request: HttpRequest, connection: str, rest: str = "") -> HttpResponse:
    """Answer a call of a provider, once its token is known; every error is one of SCIM."""
    try:
        known = caller(request, connection)
        from governance.scim_answers import answer

        return answer(request, known, rest.rstrip("/"))
    except tokens.SwitchedOff:
        return error(403, "This connection is disabled.")
    except Exception as found:
        problem = from_exception(found)
        if problem is None:
            raise
        return told(problem)


def caller(request: HttpRequest, name: str) -> ScimConnection:
    """The connection whose token was sent to its own address. Raises a 401 Problem after noting the failure, 429 when
    the failure budget of the source is used up, and SwitchedOff."""
    source = request.META.get("REMOTE_ADDR", "")
    spent = budgets.spent("", source)
    try:
        return tokens.connection(name, tokens.read(request.META.get("HTTP_AUTHORIZATION")), look=not spent)
    except tokens.NotAuthenticated:
        budgets.turned_away("", "scim_token")
        if spent:
            raise too_many() from None
        budgets.charge("", source)
        raise not_authenticated("token of this connection: Authorization: Bearer scim_...") from None


def told(problem: Problem) -> HttpResponse:
    """A problem of the platform, in SCIM's words."""
    answer = error(problem.status, problem.detail or problem.title)
    for name, value in problem.headers.items():
        answer.headers[name] = value
    return answer


def wrong_method(*allowed: str) -> HttpResponse:
    """405, with what the address offers."""
    return told(method_not_allowed(sorted(allowed)))
