"""OpenID AuthZEN Authorization API 1.0: what a policy enforcement point asks, and how it is answered.

The point authenticates with a backend's key. Users are named and not verified, so that every answer is recorded as an
evaluation, never as a call (`governance.authzen_evaluation`)."""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from rest_framework.request import Request
from rest_framework.views import APIView

from audit.reasons import REASONS
from governance import authzen_contract as contract
from governance import authzen_schema as schema
from governance.api import ENUM_VALUE, BackendView, decode, json_response, too_many
from governance.authzen_contract import ActionSearch, Evaluation, Evaluations, ResourceSearch, SubjectSearch
from governance.authzen_evaluation import Asker, Found, Verdict, allowed, evaluate
from governance.authzen_search import permitted, search
from governance.budgets import budgets
from governance.problems import Problem, not_authenticated
from governance.verification import NotAuthenticated, authenticate
from tools.credentials import Credential

PATHS = {
    "access_evaluation_endpoint": "/access/v1/evaluation",
    "access_evaluations_endpoint": "/access/v1/evaluations",
    "search_subject_endpoint": "/access/v1/search/subject",
    "search_resource_endpoint": "/access/v1/search/resource",
    "search_action_endpoint": "/access/v1/search/action",
}
REQUEST_ID = "X-Request-ID"
MAX_REQUEST_ID = 256
MAX_QUESTION = 16 * 1024  # bytes of one question, as of a token: what of it is in a statement has to fit there
T = TypeVar("T")
_object = msgspec.json.Decoder(dict[str, Any])


class AuthzenView(BackendView):
    """What all of AuthZEN's endpoints have in common (section 10.1): the content type, and the request's id."""

    endpoint = "authzen"
    METHODS = frozenset({"POST"})

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """As for every backend; the request's id goes back with whatever is answered."""
        response = super().dispatch(request, *args, **kwargs)
        if (given := request_id(request)) is not None:
            response.headers[REQUEST_ID] = given
        return response

    def answered(self, request: HttpRequest, work: Callable[[Asker, bytes], HttpResponse]) -> HttpResponse:
        """Answer a body of the right type for a backend whose failures are not too many. Raises a Problem."""
        asker = Asker(self.credential(request), request_id(request))
        if (request.content_type or "").lower() != "application/json":
            raise Problem(400, "invalid-content-type", "Not JSON", "Send `Content-Type: application/json`.")
        try:
            self.within_budget(request, asker.credential)
            return work(asker, request.body)
        except NotAuthenticated:  # the key was revoked meanwhile
            raise not_authenticated() from None

    def within_budget(self, request: HttpRequest, credential: Credential) -> None:
        """Raises a 429 Problem where this backend, or this source, has named too many users who are none."""
        _, backend = authenticate(credential)
        if budgets.spent(*account(request, backend.slug)):
            budgets.turned_away(backend.slug, "over_budget")
            raise too_many()


def request_id(request: HttpRequest) -> str | None:
    """The caller's id of the request; None for none, and for one that is too long or not printable ASCII."""
    given = request.META.get("HTTP_X_REQUEST_ID", "")
    return given if 0 < len(given) <= MAX_REQUEST_ID and given.isascii() and given.isprintable() else None


def account(request: HttpRequest, backend: str) -> tuple[str, str]:
    """Whose budget of failures it is: one of its own, so that forged tokens, which anybody can send to a backend, do
    not stop the backend's own questions."""
    return f"{backend} authzen", request.META.get("REMOTE_ADDR", "")


def charge(request: HttpRequest, found: list[Found]) -> None:
    """Draw on the budget for users who could not be established."""
    failed = [one for one in found if isinstance(one, Verdict) and REASONS[one.decision.reason].status == 401]
    if failed:
        budgets.charge(*account(request, failed[0].backend.slug), len(failed))


def question(item: Any, kind: type[T]) -> T:
    """One question. Raises a 400 Problem that says what is wrong, never with a value."""
    found = converted(item, kind)
    if len(msgspec.json.encode(found)) > MAX_QUESTION:
        raise Problem(400, "question-too-large", "Question too large", f"At most {MAX_QUESTION // 1024} KiB each.")
    return found


def converted(item: Any, kind: type[T]) -> T:
    """What was read of a body as its type. Raises a 400 Problem that names what is wrong, never its value."""
    try:
        return msgspec.convert(item, kind)
    except msgspec.ValidationError as error:
        told = ENUM_VALUE.sub("Invalid enum value", str(error))
        raise Problem(400, "invalid-member", "A member of the body is not valid", told) from None


class EvaluationView(AuthzenView):
    """POST /access/v1/evaluation: one question."""

    @schema.evaluation
    def post(self, request: HttpRequest) -> HttpResponse:
        """May this user do this? A denial is a 200 with `"decision": false`."""
        return self.answered(request, lambda asker, body: one(request, asker, decode(_object, body)))


def one(request: HttpRequest, asker: Asker, asked: Any) -> HttpResponse:
    """The answer to a single question."""
    found = evaluate(asker, [question(asked, Evaluation)])
    charge(request, found)
    if isinstance(found[0], Problem):
        raise found[0]
    return json_response(answer(found[0]))


class EvaluationsView(AuthzenView):
    """POST /access/v1/evaluations: up to 100 questions."""

    @schema.evaluations
    def post(self, request: HttpRequest) -> HttpResponse:
        """Answered in order, as far as the semantic wants; one that is not valid is `"decision": false`. Without items
        it is a single question."""
        return self.answered(request, lambda asker, body: several(request, asker, decode(_object, body)))


def several(request: HttpRequest, asker: Asker, asked: Any) -> HttpResponse:
    """The answers to the items of a batch."""
    if asked.get("evaluations") in (None, []):
        return one(request, asker, asked)
    batch = converted(asked, Evaluations)
    found = evaluate(asker, [item_of(batch, item) for item in batch.evaluations], batch.options.evaluations_semantic)
    charge(request, found)
    return json_response({"evaluations": [answer(each) for each in found]})


def item_of(batch: Evaluations, item: Any) -> Evaluation | Problem:
    """One item, with the defaults; a Problem for one that is none."""
    if not isinstance(item, dict):
        return Problem(400, "invalid-member", "A member of the body is not valid", "An evaluation is an object.")
    try:
        return question(contract.merged(batch, item), Evaluation)
    except Problem as problem:
        return problem


def answer(found: Found) -> dict[str, Any]:
    """A decision as it is answered (section 6.2): with its reason and its record, or with what was wrong."""
    if isinstance(found, Problem):
        return {"decision": False, "context": {"error": {"status": found.status, "message": found.detail}}}
    decision, receipt = found.decision, found.receipt
    assert receipt is not None, "nothing is answered that is not recorded"
    context = {
        "reason": decision.reason, "explanation": decision.explanation, "flagged": decision.flagged,
        "record": str(receipt.id), "policy_version": found.snapshot.version,
    }  # fmt: skip
    if not decision.allowed:
        context["remedy"] = REASONS[decision.reason].remedy
    return {"decision": allowed(found), "context": context}


class SearchView(AuthzenView):
    """What the three searches have in common."""

    def searched(self, request: HttpRequest, kind: type[Any]) -> HttpResponse:
        """A page of what is found."""

        def work(asker: Asker, body: bytes) -> HttpResponse:
            permitted(asker.credential)  # said before what is asked is read
            page, receipt, snapshot = search(asker, question(decode(_object, body), kind))
            return json_response({
                "page": {"next_token": page.token, "count": len(page.results)},
                "context": {"record": str(receipt.id), "policy_version": snapshot.version},
                "results": page.results,
            })  # fmt: skip

        return self.answered(request, work)


class SubjectSearchView(SearchView):
    """POST /access/v1/search/subject."""

    @schema.search_subject
    def post(self, request: HttpRequest) -> HttpResponse:
        """Which of the known users may do this?"""
        return self.searched(request, SubjectSearch)


class ResourceSearchView(SearchView):
    """POST /access/v1/search/resource."""

    @schema.search_resource
    def post(self, request: HttpRequest) -> HttpResponse:
        """Which tools, or resources that the policy names, may this user use?"""
        return self.searched(request, ResourceSearch)


class ActionSearchView(SearchView):
    """POST /access/v1/search/action."""

    @schema.search_action
    def post(self, request: HttpRequest) -> HttpResponse:
        """What may this user do with this?"""
        return self.searched(request, ActionSearch)


class MetadataView(APIView):
    """GET /.well-known/authzen-configuration (section 9)."""

    authentication_classes: list[Any] = []
    permission_classes: list[Any] = []

    @schema.metadata
    def get(self, request: Request) -> HttpResponse:
        """Where everything is, for everybody."""
        base = settings.MUNIMENT_URL.rstrip("/")
        return json_response({"policy_decision_point": base} | {name: base + path for name, path in PATHS.items()})
