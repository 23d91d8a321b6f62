"""The OpenAPI description of the AuthZEN endpoints, in the manner of `governance.schema`."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema

from governance.schema import PUBLIC, View, _count, _object, _responses, _text, ref

DECISION: dict[str, Any] = {
    "type": "object",
    "required": ["decision"],
    "properties": {
        "decision": {"type": "boolean"},
        "context": _object(
            reason=_text, explanation=_text, flagged={"type": "boolean"}, record=_text, policy_version=_count,
            remedy=_text, error=_object(status=_count, message=_text),
        ),
    },
}  # fmt: skip
FOUND = _object(
    page=_object(next_token=_text, count=_count),
    context=_object(record=_text, policy_version=_count),
    results={"type": "array", "items": _object(type=_text, id=_text, name=_text)},
)
_id = OpenApiParameter(
    "X-Request-ID", str, OpenApiParameter.HEADER, description="Comes back with the answer, and is in the record."
)
_errors = (400, 401, 413, 429, 503)


def _asked(name: str, body: str, answer: Any, *errors: int) -> Any:
    return extend_schema(
        operation_id=name,
        tags=["authzen"],
        request={"application/json": ref(body)},
        parameters=[_id],
        responses=_responses({200: answer}, *errors),
    )


def evaluation(view: View) -> View:
    """POST /access/v1/evaluation."""
    return _asked("evaluation", "Evaluation", DECISION, *_errors)(view)


def evaluations(view: View) -> View:
    """POST /access/v1/evaluations."""
    answers = _object(evaluations={"type": "array", "items": DECISION})
    return _asked("evaluations", "Evaluations", answers, *_errors)(view)


def search_subject(view: View) -> View:
    """POST /access/v1/search/subject."""
    return _asked("search_subject", "SubjectSearch", FOUND, 403, *_errors)(view)


def search_resource(view: View) -> View:
    """POST /access/v1/search/resource."""
    return _asked("search_resource", "ResourceSearch", FOUND, 403, *_errors)(view)


def search_action(view: View) -> View:
    """POST /access/v1/search/action."""
    return _asked("search_action", "ActionSearch", FOUND, 403, *_errors)(view)


def metadata(view: View) -> View:
    """GET /.well-known/authzen-configuration."""
    names = (
        "policy_decision_point", "access_evaluation_endpoint", "access_evaluations_endpoint",
        "search_subject_endpoint", "search_resource_endpoint", "search_action_endpoint",
    )  # fmt: skip
    body = _object(**dict.fromkeys(names, _text))
    return extend_schema(
        operation_id="authzen_configuration", tags=["authzen"], auth=PUBLIC,
        responses={(200, "application/json"): body},
    )(view)  # fmt: skip
