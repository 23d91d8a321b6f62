"""What may be asked by OpenID AuthZEN Authorization API 1.0, and within which bounds (its sections 5 to 8).

Unknown members are ignored (section 10.1.1); a known one that is wrong is a ValidationError that names it, never its
value. What an object's `properties` and the context may hold is free, but for the members that are named here."""

import secrets
from base64 import b64decode, urlsafe_b64encode
from hashlib import sha256
from typing import Annotated, Any, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Meta

from audit.protection import keyed_hash
from governance.contract import Address, Mode, ScopeName, Text

Kind = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
# As in tokens (clients.claims).
Name = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
Names = Annotated[list[Name], Meta(max_length=50)]
# Not Name | Names: msgspec 0.22 frees a type that is a text with a pattern or a list the wrong way round, so that one
# process in four crashed at its end. The pattern is asked for afterwards.
NameOrNames = Annotated[str, Meta(min_length=1, max_length=255)] | Names
Scopes = Annotated[list[ScopeName], Meta(max_length=100)]
ScopeText = Annotated[str, Meta(max_length=4096)]  # as in a token (RFC 6749 section 3.3)
Properties = Annotated[dict[str, Any], Meta(max_length=100)]
Semantic = Literal["execute_all", "deny_on_first_deny", "permit_on_first_permit"]
MAX_ITEMS = 100
NONCE = 12  # bytes
# The members of an entity that an item of a batch gets from the defaults even if it has the entity itself.
REQUIRED = {"subject": ("type", "id"), "action": ("name",), "resource": ("type", "id"), "context": ()}


class SubjectProperties(msgspec.Struct):
    """What the asking backend says of the user. `iat` is when the user's token was issued, in POSIX seconds."""

    issuer: Name | None = None
    iss: Name | None = None
    tenant: Name | None = None
    role: NameOrNames | None = None
    roles: NameOrNames | None = None
    iat: Annotated[float, Meta(ge=0, le=253_402_300_799)] | None = None
    ip_address: Address | None = None

    def __post_init__(self) -> None:
        for given in (self.role, self.roles):
            if isinstance(given, str):
                msgspec.convert(given, Name)


class AskedSubject(msgspec.Struct):
    """The user: by uid, or as the issuer knows them (`sub`)."""

    type: Kind
    id: Text
    properties: SubjectProperties = msgspec.field(default_factory=SubjectProperties)


class SearchedSubject(msgspec.Struct):
    """Users who are looked for; an `id` is ignored (section 8.4.1)."""

    type: Kind
    properties: SubjectProperties = msgspec.field(default_factory=SubjectProperties)


class AskedAction(msgspec.Struct):
    """What the user wants to do."""

    name: Kind
    properties: Properties = {}


class AskedResource(msgspec.Struct):
    """What with."""

    type: Kind
    id: Text
    properties: Properties = {}


class SearchedResource(msgspec.Struct):
    """Resources that are looked for; an `id` is ignored (section 8.5.1)."""

    type: Kind
    properties: Properties = {}


class AskedContext(msgspec.Struct):
    """Through what the user asks. `agent` is the OAuth client id (as COAZ-MCP has it); `scopes` are the token's, and
    left out they are not looked at."""

    agent: Name | None = None
    agent_mode: Mode = "interactive"
    agent_scopes: Scopes | None = None
    scopes: Scopes | ScopeText | None = None


class Evaluation(msgspec.Struct):
    """One question (section 6.1)."""

    subject: AskedSubject
    action: AskedAction
    resource: AskedResource
    context: AskedContext = msgspec.field(default_factory=AskedContext)


class Options(msgspec.Struct):
    """How a batch is gone through."""

    evaluations_semantic: Semantic = "execute_all"


class Evaluations(msgspec.Struct):
    """Several questions, and what they have in common (section 7.1). The items are read one by one, so that a wrong
    one does not spoil the others."""

    subject: dict[str, Any] | None = None
    action: dict[str, Any] | None = None
    resource: dict[str, Any] | None = None
    context: dict[str, Any] | None = None
    evaluations: Annotated[list[Any], Meta(max_length=MAX_ITEMS)] = []
    options: Options = msgspec.field(default_factory=Options)


class PageWish(msgspec.Struct):
    """Which part of what is found: at most `limit`, after the page that gave the `token`."""

    token: Annotated[str, Meta(max_length=1024)] = ""
    limit: Annotated[int, Meta(ge=0)] | None = None


class SubjectSearch(msgspec.Struct):
    """Who may do this (section 8.4)."""

    subject: SearchedSubject
    action: AskedAction
    resource: AskedResource
    context: AskedContext = msgspec.field(default_factory=AskedContext)
    page: PageWish = msgspec.field(default_factory=PageWish)


class ResourceSearch(msgspec.Struct):
    """With what the user may do this (section 8.5)."""

    subject: AskedSubject
    action: AskedAction
    resource: SearchedResource
    context: AskedContext = msgspec.field(default_factory=AskedContext)
    page: PageWish = msgspec.field(default_factory=PageWish)


class ActionSearch(msgspec.Struct):
    """What the user may do with this (section 8.6)."""

    subject: AskedSubject
    resource: AskedResource
    context: AskedContext = msgspec.field(default_factory=AskedContext)
    page: PageWish = msgspec.field(default_factory=PageWish)


Search = SubjectSearch | ResourceSearch | ActionSearch
TYPES = (Evaluation, Evaluations, SubjectSearch, ResourceSearch, ActionSearch)


def merged(request: Evaluations, item: dict[str, Any]) -> dict[str, Any]:
    """An item with the defaults for what it leaves out (section 7.1.1): whole entities, and of an entity that it has
    the members that are required."""
    found = {}
    for name, required in REQUIRED.items():
        default = getattr(request, name)
        if name not in item:
            if default is not None:
                found[name] = default
        elif isinstance(given := item[name], dict) and default is not None:
            found[name] = {member: default[member] for member in required if member in default} | given
        else:
            found[name] = given
    return found


def bound(backend: str, asked: Search) -> bytes:
    """What a page's token holds for: this question of this backend, in whatever pages."""
    said = msgspec.json.encode(msgspec.structs.replace(asked, page=PageWish()), order="sorted")
    return sha256(f"{backend} {type(asked).__name__} ".encode() + said).digest()


def page_token(question: bytes, after: str) -> str:
    """The token that leads to what comes after a name, of a user or a tool, and does not tell it."""
    nonce = secrets.token_bytes(NONCE)
    return urlsafe_b64encode(nonce + _cipher().encrypt(nonce, after.encode(), question)).decode()


def page_after(question: bytes, token: str) -> str | None:
    """The name after which a page begins; None for a token that was not given to this question."""
    try:
        data = b64decode(token, altchars=b"-_", validate=True)
        return _cipher().decrypt(data[:NONCE], data[NONCE:], question).decode()
    except (InvalidTag, ValueError):
        return None


def _cipher() -> AESGCM:
    return AESGCM(keyed_hash("authzen-page", ""))
