"""The OpenAPI description of the endpoints by which access ends, in the manner of `governance.schema`. Two standards
prescribe what they take and answer: RFC 8935, and OpenID Connect Back-Channel Logout 1.0."""

from typing import Any

from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema

from governance.schema import PUBLIC, View, _object, _responses, _text

PUSHER: list[Any] = [{"pushToken": []}]
_stream = OpenApiParameter("stream", str, OpenApiParameter.PATH, description="The stream's name.")


def push(view: View) -> View:
    """POST /v1/signals/{stream}."""
    refused = _object(err=_text, description=_text) | {"required": ["err", "description"]}
    refusals: dict[Any, Any] = {(status, "application/json"): OpenApiResponse(refused) for status in (400, 401)}
    taken = OpenApiResponse(None, "Taken: it has its effect on every call that begins from now on.")
    return extend_schema(
        operation_id="push_event",
        tags=["signals"],
        auth=PUSHER,
        parameters=[_stream],
        request={"application/secevent+jwt": _text},
        responses={202: taken, **refusals} | _responses({}, 413, 429, 503),
    )(view)


def logout(view: View) -> View:
    """POST /v1/signals/logout."""
    refused = _object(error=_text, error_description=_text) | {"required": ["error"]}
    return extend_schema(
        operation_id="logout",
        tags=["signals"],
        auth=PUBLIC,
        request={"application/x-www-form-urlencoded": _object(logout_token=_text) | {"required": ["logout_token"]}},
        responses={
            200: OpenApiResponse(None, "The user's tokens up to the logout are refused from now on."),
            (400, "application/json"): OpenApiResponse(refused),
        } | _responses({}, 413, 429, 503),
    )(view)  # fmt: skip
