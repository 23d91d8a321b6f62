"""What SCIM's addresses answer (RFC 7644 section 3.2) to a connection that is known. See `governance.scim_api`."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from django.core.exceptions import SuspiciousOperation
from django.http import HttpRequest, HttpResponse
from scim2_models import (
    Context,
    InvalidValueException,
    ListResponse,
    Meta,
    NotFoundException,
    NotImplementedException,
    PayloadTooLargeException,
    Resource,
    SCIMException,
)

from clients.models import ScimConnection
from clients.scim import queries, resources, store, tokens
from clients.scim.resources import User
from clients.scim.store import Stored
from governance.scim_api import MEDIA, error, wrong_method

LIST = str(ListResponse.__schema__)
JSON = {MEDIA, "application/json"}
LONGEST = 400  # characters of an error's words
Handler = Callable[[HttpRequest, ScimConnection, str], HttpResponse]


def answer(request: HttpRequest, connection: ScimConnection, rest: str) -> HttpResponse:
    """Answer the call of an address below the connection's own."""
    try:
        for pattern, methods in ROUTES:
            if found := re.fullmatch(pattern, rest):
                method = "GET" if request.method == "HEAD" else request.method or ""
                handler = methods.get(method)
                return handler(request, connection, found[1]) if handler else wrong_method(*methods)
        raise NotFoundException(detail="There is nothing at this address.")
    except SCIMException as refused:
        said = refused.to_error()
        return error(said.status or 400, (said.detail or "It cannot be done.")[:LONGEST], said.scim_type)


def list_users(request: HttpRequest, connection: ScimConnection, _: str) -> HttpResponse:
    """GET /Users, with a filter and a page."""
    return _found(connection, given(request))


def search(request: HttpRequest, connection: ScimConnection, _: str) -> HttpResponse:
    """POST /.search: the same, with what is looked for in the body and in no address (RFC 7644 section 3.4.3)."""
    return _found(connection, _body(request))


def add(request: HttpRequest, connection: ScimConnection, _: str) -> HttpResponse:
    """POST /Users."""
    wanted = resources.parameters(given(request))
    stored = store.create(connection, resources.created(_body(request)))
    body = resources.written(_with_meta(connection, stored), Context.RESOURCE_CREATION_RESPONSE, wanted)
    return _json(body, 201, Location=_location(connection, stored), ETag=store.version(stored.row))


def read(request: HttpRequest, connection: ScimConnection, number: str) -> HttpResponse:
    """GET /Users/{id}; 304 to who has this version."""
    stored = store.one(connection, number)
    tags = request.META.get("HTTP_IF_NONE_MATCH")
    if tags is not None and _matches(tags, store.version(stored.row)):
        return HttpResponse(status=304, headers={"ETag": store.version(stored.row), "Cache-Control": "no-store"})
    return _one(request, connection, stored, Context.RESOURCE_QUERY_RESPONSE)


def replace(request: HttpRequest, connection: ScimConnection, number: str) -> HttpResponse:
    """PUT /Users/{id}."""
    stored = store.change(connection, number, resources.replaced(_body(request)), _condition(request))
    return _one(request, connection, stored, Context.RESOURCE_REPLACEMENT_RESPONSE)


def patch(request: HttpRequest, connection: ScimConnection, number: str) -> HttpResponse:
    """PATCH /Users/{id}."""
    stored = store.change(connection, number, resources.patched(_body(request)), _condition(request))
    return _one(request, connection, stored, Context.RESOURCE_PATCH_RESPONSE)


def remove(request: HttpRequest, connection: ScimConnection, number: str) -> HttpResponse:
    """DELETE /Users/{id}."""
    store.remove(connection, number, _condition(request))
    return HttpResponse(status=204, headers={"Cache-Control": "no-store"})


def discover(request: HttpRequest, connection: ScimConnection, path: str) -> HttpResponse:
    """GET /ServiceProviderConfig, /ResourceTypes, /Schemas and each one of the last two (RFC 7644 section 4)."""
    if "filter" in given(request):
        return error(403, "What can be found out is not filtered.")
    name, _, key = path.partition("/")
    found = resources.discovery(connection.subject_attribute)[name]
    if not isinstance(found, list):
        return _json(_described(connection, found, name))
    written = [_described(connection, one, f"{name}/{one.id}") for one in found]
    if not key:
        number = len(written)
        about = {"schemas": [LIST], "totalResults": number, "startIndex": 1, "itemsPerPage": number}
        return _json(about | {"Resources": written})
    for one in written:
        if one["id"].lower() == key.lower():
            return _json(one)
    raise NotFoundException(detail="There is no such description.")


def missing(request: HttpRequest, connection: ScimConnection, path: str) -> HttpResponse:
    """What the standard has and we have not (RFC 7644 sections 3.7 and 3.11)."""
    raise NotImplementedException(detail=f"/{path} is not offered.")


ROUTES: list[tuple[str, Mapping[str, Handler]]] = [
    ("(Users)", {"GET": list_users, "POST": add}),
    (r"((?:Users/)?\.search)", {"POST": search}),
    ("Users/([^/]{1,64})", {"GET": read, "PUT": replace, "PATCH": patch, "DELETE": remove}),
    ("(ServiceProviderConfig|ResourceTypes(?:/[^/]{1,200})?|Schemas(?:/[^/]{1,200})?)", {"GET": discover}),
    ("(Bulk|Me)", dict.fromkeys(("GET", "POST", "PUT", "PATCH", "DELETE"), missing)),
]


def given(request: HttpRequest) -> dict[str, str]:
    """The parameters of the address, each once. Raises SCIMException."""
    try:
        found = request.GET
    except SuspiciousOperation:
        raise InvalidValueException(detail="There are too many parameters.") from None
    if any(len(found.getlist(name)) > 1 for name in found):
        raise InvalidValueException(detail="A parameter is given twice.")
    return {name: found[name] for name in found}


def _found(connection: ScimConnection, asked: Mapping[str, Any]) -> HttpResponse:
    query = queries.read(asked)
    total, page = store.page(connection, query)
    users = [_with_meta(connection, stored) for stored in page]
    whole = ListResponse[User](
        total_results=total, start_index=query.start + 1, items_per_page=len(users), resources=users
    )
    body = whole.model_dump(scim_ctx=Context.RESOURCE_QUERY_RESPONSE, response_parameters=query.wanted)
    return _json({"Resources": [], **body})  # providers look for it also where nothing was found


def _one(request: HttpRequest, connection: ScimConnection, stored: Stored, context: Context) -> HttpResponse:
    wanted = resources.parameters(given(request))
    return _json(resources.written(_with_meta(connection, stored), context, wanted), ETag=store.version(stored.row))


def _body(request: HttpRequest) -> dict[str, Any]:
    """What was sent. Raises SCIMException."""
    kind = (request.META.get("CONTENT_TYPE") or MEDIA).partition(";")[0].strip().lower()
    if kind not in JSON:
        raise _unsupported()
    if len(request.body) > resources.MAX_BODY:
        raise PayloadTooLargeException(detail=f"At most {resources.MAX_BODY // 1024} KiB.")
    return resources.read_body(request.body)


def _unsupported() -> SCIMException:
    found = SCIMException(detail=f"Send {MEDIA}.")
    found.status = 415
    return found


def _condition(request: HttpRequest) -> Callable[[str], bool]:
    """Whether a version may be changed, by If-Match (RFC 9110 section 13.1.1; weakly, as RFC 7644 section 3.14 has
    it)."""
    tags = request.META.get("HTTP_IF_MATCH")
    return lambda version: tags is None or _matches(tags, version)


def _matches(tags: str, version: str) -> bool:
    named = [tag.strip().removeprefix("W/") for tag in tags.split(",")]
    return named == ["*"] or version.removeprefix("W/") in named


def _location(connection: ScimConnection, stored: Stored) -> str:
    return f"{tokens.address(connection)}/Users/{stored.row.pk}"


def _with_meta(connection: ScimConnection, stored: Stored) -> User:
    row, user = stored.row, stored.user.model_copy()
    user.id = str(row.pk)
    user.meta = Meta(
        resource_type="User", created=row.created_at,
        last_modified=max(row.created_at, row.modified_at),  # when it is made, the first is taken last
        location=_location(connection, stored), version=store.version(row),
    )  # fmt: skip
    return user


def _described(connection: ScimConnection, found: Resource[Any], path: str) -> dict[str, Any]:
    kind = type(found).__name__
    found.meta = Meta(resource_type=kind, location=f"{tokens.address(connection)}/{path}")
    return found.model_dump(scim_ctx=Context.RESOURCE_QUERY_RESPONSE)


def _json(body: Any, status: int = 200, **headers: str) -> HttpResponse:
    answer = HttpResponse(msgspec.json.encode(body), status=status, content_type=MEDIA, headers=headers)
    answer.headers["Cache-Control"] = "no-store"
    return answer
