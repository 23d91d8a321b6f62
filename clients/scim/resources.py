"""What a user is to SCIM (RFC 7643 section 4.1), and how one is read, replaced, patched and written (pure).

Of what the schema offers we keep what tells who somebody is and whether they may call: everything else that a provider
sends, passwords, telephone numbers and addresses first, is read over and never stored."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Final

from pydantic import ValidationError
from scim2_models import (
    URN,
    Attribute,
    ComplexAttribute,
    Context,
    Error,
    InvalidSyntaxException,
    InvalidValueException,
    Name,
    PatchOp,
    Required,
    Resource,
    ResourceType,
    ResponseParameters,
    Schema,
    SCIMException,
    ScimPolicy,
    ServiceProviderConfig,
    Uniqueness,
    default_comparison_key,
)
from scim2_models.path import Path

from clients.strictjson import parse_object

MAX_BODY: Final = 64 * 1024  # bytes of a request, and of what is kept of a user
MAX_DEPTH: Final = 16
MAX_NAME: Final = 255  # characters of userName and externalId, as of a token's `sub`
MAX_OPERATIONS: Final = 50
MAX_VALUES: Final = 50  # of an attribute that has several: each operation of a patch looks at all of them
MAX_NAMES: Final = 2048  # characters of the names of attributes that an answer is to have
MAX_PAGE: Final = 100
# What providers are known to send besides, and in other ways than the letter of the standard.
POLICY: Final = ScimPolicy(
    unknown=ScimPolicy.Unknown.ignore,
    remove_value_as_filter=ScimPolicy.RemoveValue.apply,
    unmatched_path_filter=ScimPolicy.UnmatchedPathFilter.create,
)

EXTERNAL_ID: Final = Attribute.model_validate({
    "name": "externalId", "type": "string", "multiValued": False, "required": True, "caseExact": True,
    "mutability": "readWrite", "returned": "default", "uniqueness": "server",
    "description": "What the person's tokens have as their sub.",
})  # fmt: skip


class Email(ComplexAttribute):
    """An e-mail address (RFC 7643 section 4.1.2), taken as the provider has it: a person whose address we would not
    understand must be deactivated all the same."""

    value: str | None = None
    display: str | None = None
    type: str | None = None
    primary: bool | None = None


class User(Resource[Any]):
    """A user, with the attributes that are kept."""

    __schema__ = URN("urn:ietf:params:scim:schemas:core:2.0:User")

    user_name: Annotated[str | None, Uniqueness.server, Required.true] = None
    name: Name | None = None
    display_name: str | None = None
    emails: list[Email] | None = None
    active: bool | None = None


def read_body(body: bytes) -> dict[str, Any]:
    """A request's body. Raises SCIMException (400 invalidSyntax) for what is not one JSON object that can be read in
    one way only, is nested too deeply, or holds text that no identifier has."""
    try:
        read = parse_object(body)
        _check(read)
    except ValueError as error:
        raise InvalidSyntaxException(detail=f"The body cannot be taken: {error}.") from None
    return read


def _check(read: object) -> None:
    """Raises ValueError, in words. Names of members are the same whatever their case (RFC 7643 section 2.1), so that
    two that differ in it alone are one member twice."""
    waiting: list[tuple[object, int]] = [(read, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            if len({name.lower() for name in value}) != len(value):
                raise ValueError("it has a duplicate member")
            waiting += [(one, depth + 1) for pair in value.items() for one in pair]
        elif isinstance(value, list):
            waiting += [(one, depth + 1) for one in value]
        elif isinstance(value, str) and not fits(value):
            raise ValueError("it holds a character that is none")


def fits(text: str) -> bool:
    """Whether it can be kept and hashed: no NUL, no half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= one <= "\udfff" for one in text)


def _taken(read: Callable[[], Any]) -> Any:
    """What was read under our policy. Raises SCIMException with the first thing that is wrong."""
    try:
        with POLICY:
            return read()
    except ValidationError as error:
        found = Error.from_validation_error(error.errors(include_url=False, include_input=False)[0])
        raise SCIMException.from_error(found) from None


def created(body: Mapping[str, Any]) -> User:
    """The user that a POST asks for (RFC 7644 section 3.3); active unless it says otherwise."""
    user = _taken(lambda: User.model_validate(body, scim_ctx=Context.RESOURCE_CREATION_REQUEST))
    if user.active is None:
        user.active = True
    return checked(user)


def replaced(body: Mapping[str, Any]) -> Callable[[User, bool], User]:
    """What a PUT makes of a user (RFC 7644 section 3.5.1): of `active`, which ends access, nothing where it is not
    told, so that nobody gets access back by being left out."""
    read = _taken(lambda: User.model_validate(body, scim_ctx=Context.RESOURCE_REPLACEMENT_REQUEST))

    def replace(_: User, active: bool) -> User:
        user = read.model_copy(deep=True)
        user.active = active if user.active is None else user.active
        return checked(user)

    return replace


def patched(body: Mapping[str, Any]) -> Callable[[User, bool], User]:
    """What a PATCH makes of a user (RFC 7644 section 3.5.2)."""
    operations = next((value for name, value in body.items() if name.lower() == "operations"), None)
    if isinstance(operations, list) and len(operations) > MAX_OPERATIONS:
        raise InvalidValueException(detail=f"At most {MAX_OPERATIONS} operations at once.")
    patch = _taken(lambda: PatchOp[User].model_validate(body, scim_ctx=Context.RESOURCE_PATCH_REQUEST))

    def change(user: User, _: bool) -> User:
        after = user.model_copy(deep=True)
        for operation in patch.operations or []:  # one by one: what one adds, those behind it have to look at
            single = patch.model_copy(update={"operations": [operation]})
            _taken(partial(single.patch, after))
            checked(after)
        return after

    return change


def checked(user: User) -> User:
    """The user, if we can keep them. Raises InvalidValueException."""
    for name, value in (("userName", user.user_name), ("externalId", user.external_id)):
        if value is not None and not (0 < len(value) <= MAX_NAME and value.isprintable()):
            raise InvalidValueException(detail=f"{name} is 1 to {MAX_NAME} printable characters.")
    if max(len(user.emails or []), len(user.schemas or [])) > MAX_VALUES:
        raise InvalidValueException(detail=f"An attribute has at most {MAX_VALUES} values.")
    text = _text(user)
    if not fits(text):
        raise InvalidValueException(detail="A value holds a character that is none.")
    if len(text.encode()) > MAX_BODY:
        raise InvalidValueException(detail=f"A user is at most {MAX_BODY // 1024} KiB.")
    return user


def content(user: User) -> bytes:
    """What is kept of a user, as JSON: without what the platform itself says of the resource."""
    return _text(user).encode()


def _text(user: User) -> str:
    kept = user.model_dump(exclude={"schemas", "id", "meta"})
    return json.dumps(kept, ensure_ascii=False, sort_keys=True)


def restored(data: bytes) -> User:
    """The user that was kept."""
    with POLICY:
        return User.model_validate(json.loads(data))


def changes(before: User, after: User) -> list[str]:
    """The names of the attributes that differ."""
    was, now = json.loads(content(before)), json.loads(content(after))
    return sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))


def address(user: User) -> str | None:
    """The e-mail address by which staff may look for the user: the primary one, or else the first."""
    found = [one for one in user.emails or [] if one.value and "@" in one.value and len(one.value) <= 254]
    found.sort(key=lambda one: not one.primary)
    return found[0].value if found else None


def comparable(attribute: str, value: str) -> str:
    """In which form values of an attribute are compared: userName without its case, externalId with it (RFC 7643
    sections 3.1 and 4.1.1)."""
    binding = Path[User](attribute).resolve()
    assert binding is not None
    return default_comparison_key(binding, value)


def written(user: User, context: Context, wanted: ResponseParameters[User] | None = None) -> dict[str, Any]:
    """A user as it is answered; of its attributes those that were asked for (RFC 7644 section 3.9)."""
    return user.model_dump(scim_ctx=context, response_parameters=wanted)


def parameters(given: Mapping[str, Any]) -> ResponseParameters[User]:
    """Which attributes an answer is to have. Raises SCIMException for what cannot be read."""
    asked = {name: given[name] for name in ("attributes", "excludedAttributes") if name in given}
    if any(len(json.dumps(names)) > MAX_NAMES for names in asked.values()):
        raise InvalidValueException(detail=f"Names of attributes are at most {MAX_NAMES} characters together.")
    return _taken(lambda: ResponseParameters[User].model_validate(asked))


def discovery(subject_attribute: str) -> dict[str, list[Resource[Any]] | Resource[Any]]:
    """What a client of a connection by this attribute can find out (RFC 7644 section 4): what there is, and nothing
    else. Where externalId is required the schema says so, as RFC 7643 section 3.1 lets it."""
    schemas = [model.to_schema() for model in (User, ServiceProviderConfig, ResourceType, Schema)]
    if subject_attribute == "externalId":
        schemas[0].attributes = [EXTERNAL_ID, *(schemas[0].attributes or [])]
    return {
        "ServiceProviderConfig": _config(),
        "ResourceTypes": [ResourceType.from_resource(User)],
        "Schemas": list(schemas),
    }


def _config() -> ServiceProviderConfig:
    no = {"supported": False}
    scheme = {
        "type": "oauthbearertoken", "name": "Bearer token", "primary": True,
        "description": "The token of the connection, in the Authorization header (RFC 6750).",
    }  # fmt: skip
    return ServiceProviderConfig.model_validate({
        "patch": {"supported": True}, "bulk": {**no, "maxOperations": 0, "maxPayloadSize": 0},
        "filter": {"supported": True, "maxResults": MAX_PAGE}, "changePassword": no, "sort": no,
        "etag": {"supported": True}, "authenticationSchemes": [scheme],
        "pagination": {
            "cursor": False, "index": True, "defaultPaginationMethod": "index", "defaultPageSize": MAX_PAGE,
            "maxPageSize": MAX_PAGE,
        },
    })  # fmt: skip
