"""The policy file (DESIGN.md section 4, Configuration as code): what it may say, strictly.

A member that is not known, or has the wrong type, refuses the whole file, by its path: a typo in a deny grant
must not become an allow. What a file leaves out of an entry has its default, but for `status`, `enabled` and
`description`, which are then left as they are, so that applying a file does not undo a kill switch.
"""

import re
from collections.abc import Hashable, Mapping
from datetime import UTC, date, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
import yaml
from msgspec import UNSET, Meta, UnsetType
from yaml.constructor import ConstructorError

from clients.jwks import ClaimRules
from clients.mapping import MAX_CLAIM, MAX_CLAIMS, problems
from tools.routes import MOST_PATTERN, MOST_TOOLS, check_pattern

MAX_BYTES = 1024 * 1024

Slug = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9-]{0,62}\Z")]
ScopeName = Annotated[str, Meta(pattern=r"\A[\x21\x23-\x5B\x5D-\x7E]{1,128}\Z")]
ToolName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_./:-]{1,128}\Z")]
Label = Annotated[str, Meta(min_length=1, max_length=120, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
Identifier = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"\A[^\x00-\x1f\x7f]*\Z")]
Claim = Annotated[str, Meta(min_length=1, max_length=120)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]  # a role or tenant, as tokens may name it
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
RATE = re.compile("[1-9][0-9]{0,9}/(second|minute|hour|day)")
Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")
Moment = Annotated[datetime, Meta(tz=True)]


class PolicyFileError(ValueError):
    """The file cannot be applied. `path` names the member (`grants[2].client`), empty for the file as a
    whole; `problem` says what is wrong."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path, self.problem = path, problem


class ClaimsEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Which claims of an issuer say what, where they are not the standard ones; what is left out is read as ever."""

    subject: Annotated[str, Meta(max_length=MAX_CLAIM)] = ""
    email: Annotated[str, Meta(max_length=MAX_CLAIM)] = ""
    scopes: Annotated[list[Claim], Meta(max_length=MAX_CLAIMS)] = []
    client_id: Annotated[list[Claim], Meta(max_length=MAX_CLAIMS)] = []


class BindingEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What the issuer's tokens must be bound to; null: nothing."""

    require: Literal["any", "dpop", "mtls"] | None = "any"
    dpop_nonce: bool = False


class IntrospectionEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How to ask an issuer about its opaque tokens. `secret_env` names a variable of the environment in which the file
    is applied; null: the secret that is stored stays."""

    endpoint: Annotated[str, Meta(max_length=500)]
    client_id: Identifier
    method: Literal["client_secret_basic", "client_secret_post"] = "client_secret_basic"
    secret_env: Annotated[str, Meta(pattern=r"\AMUNIMENT_INTROSPECTION_[A-Z0-9_]{1,64}\Z")] | None = None
    signed: bool = False
    cache_seconds: Annotated[int, Meta(ge=0, le=600)] = 60


class IssuerEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An Issuer, known by its name."""

    issuer: Identifier
    algorithms: Annotated[list[Algorithm], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["RS256", "ES256"]
    )
    jwks_uri: Annotated[str, Meta(max_length=500)] | None = None
    tenant_claim: Claim | None = None
    roles_claim: Claim | None = None
    claims: ClaimsEntry | None = None
    introspection: IntrospectionEntry | None = None
    binding: BindingEntry | UnsetType | None = UNSET
    leeway: Annotated[int, Meta(ge=0, le=300)] = 30
    max_lifetime: Annotated[int, Meta(ge=60, le=2**31 - 1)] = 86400
    allowed_networks: list[Annotated[str, Meta(max_length=49)]] = []
    enabled: bool | UnsetType = UNSET


class RouteEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A Route of a backend, known by its path and methods. `tools` must be there, so that a path that is closed is
    never an oversight."""

    path: Annotated[str, Meta(max_length=MOST_PATTERN)]
    tools: Annotated[list[ToolName], Meta(max_length=MOST_TOOLS)]
    methods: list[Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]] = []


class BackendEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A Backend, known by its slug. `issuers` null: it accepts every enabled issuer."""

    slug: Slug
    name: Label
    audiences: list[Identifier]
    assertion_audiences: list[Identifier] = []
    issuers: list[Identifier] | None = None
    may_search: bool = False
    enforces_mcp_name: bool = False
    routes: list[RouteEntry] = []
    enabled: bool | UnsetType = UNSET


class OAuthIdEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An id under which one issuer knows a client."""

    issuer: Identifier
    client_id: Identifier


class ClientEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A Client, known by its slug."""

    slug: Slug
    name: Label
    kind: Literal["mcp", "chatgpt", "mobile", "other"] = "mcp"
    oauth_client_ids: list[OAuthIdEntry] = []
    status: Literal["active", "suspended"] | UnsetType = UNSET


class ScopeEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A Scope, known by its name."""

    name: ScopeName
    implies: list[ScopeName] = []
    sensitive: bool = False
    pinned: bool = False
    description: Annotated[str, Meta(max_length=250)] | UnsetType = UNSET


class ToolEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A Tool, known by its backend and name. One that waits for approval is approved by being in the file."""

    backend: Slug
    name: ToolName
    access: Literal["read", "write", "destructive"]
    scopes: list[ScopeName]
    description: Annotated[str, Meta(max_length=2000)] | UnsetType = UNSET
    status: Literal["pending", "active", "suspended", "retired"] | UnsetType = UNSET


class SubjectEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A user as one issuer knows them."""

    issuer: Identifier
    sub: Identifier


class ToolRef(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A tool that a grant or a limit names."""

    backend: Slug
    name: ToolName


class GrantEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A Grant, known by everything but reason and dates. `client` must be there, so that "any client" (null)
    is never an oversight."""

    client: Slug | None
    reason: Annotated[str, Meta(min_length=1, max_length=500)]
    scopes: list[ScopeName] = []
    effect: Literal["allow", "flag", "deny"] = "allow"
    subject: SubjectEntry | None = None
    role: Name | None = None
    tenant: Name | None = None
    tool: ToolRef | None = None
    modes: list[Literal["interactive", "subagent", "background", "api"]] = []
    starts_at: Moment | None = None
    expires_at: Moment | None = None


class LimitEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A Limit, known by `per`, `client`, `tool`, `tenant` and `modes`."""

    per: Literal["subject", "subject_client", "client", "tool", "tenant"]
    rate: Annotated[str, Meta(max_length=40)]  # `60/minute`
    burst: Annotated[int, Meta(ge=1)] | None = None
    client: Slug | None = None
    tool: ToolRef | None = None
    tenant: Name | None = None
    modes: list[Literal["interactive", "subagent", "background", "api"]] = []
    on_outage: Literal["access", "deny", "allow"] = "access"
    reason: Annotated[str, Meta(min_length=1, max_length=500)] = "The policy file has it."


class PolicyFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A whole file. A section that is absent (UNSET) is not the file's business; an empty one says that there
    are none, which counts when what the file leaves out is pruned."""

    issuers: list[IssuerEntry] | UnsetType = UNSET
    backends: list[BackendEntry] | UnsetType = UNSET
    clients: list[ClientEntry] | UnsetType = UNSET
    scopes: list[ScopeEntry] | UnsetType = UNSET
    tools: list[ToolEntry] | UnsetType = UNSET
    grants: list[GrantEntry] | UnsetType = UNSET
    limits: list[LimitEntry] | UnsetType = UNSET


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, in which a key that is given twice is an error: the second would win silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise ConstructorError(None, None, f"{key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read(path: Path) -> PolicyFile:
    """Read and check a file of at most 1 MiB. Raises PolicyFileError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise PolicyFileError("", error.strerror or "cannot be read") from None
    except UnicodeDecodeError:
        raise PolicyFileError("", "is not UTF-8") from None
    if len(content) > MAX_BYTES:
        raise PolicyFileError("", f"is larger than {MAX_BYTES} bytes")
    return parse(text)


def parse(text: str) -> PolicyFile:
    """Check the text of a policy file. Raises PolicyFileError."""
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise PolicyFileError(where, error.problem or "is not YAML") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise PolicyFileError("", f"is not YAML: {str(error).splitlines()[0]}") from None
    try:
        file = msgspec.convert(_dated({} if document is None else document), PolicyFile)
    except msgspec.ValidationError as error:
        raise _located(str(error)) from None
    _check(file)
    return file


def _dated(document: Any) -> Any:
    """Plain dates, which YAML has, become midnight UTC."""
    grants = document.get("grants") if isinstance(document, dict) else None
    for grant in grants if isinstance(grants, list) else []:
        for name in ("starts_at", "expires_at"):
            if isinstance(grant, dict) and type(grant.get(name)) is date:
                grant[name] = datetime.combine(grant[name], datetime.min.time(), UTC)
    return document


def _located(message: str) -> PolicyFileError:
    """msgspec's message, with its path (`$.grants[0].client`) in front."""
    match = re.fullmatch(r"(.*?)(?: - at `\$\.?(.*)`)?", message, re.DOTALL)
    assert match is not None
    problem = match[1].replace("`", "'").replace("Object contains", "has").replace("Object missing", "misses")
    return PolicyFileError((match[2] or "").replace("[...]", "[]"), problem)


def _check(file: PolicyFile) -> None:
    """What types cannot say."""
    for position, limit in enumerate(file.limits or []):
        if not RATE.fullmatch(limit.rate):
            raise PolicyFileError(f"limits[{position}].rate", "must be calls and a period, such as 60/minute")
    for position, issuer in enumerate(file.issuers or []):
        _check_issuer(f"issuers[{position}]", issuer)
    for position, backend in enumerate(file.backends or []):
        _check_routes(f"backends[{position}].routes", backend.routes)
    _once("issuers", [entry.issuer for entry in file.issuers or []])
    _once("backends", [entry.slug for entry in file.backends or []])
    _once("clients", [entry.slug for entry in file.clients or []])
    _once("scopes", [entry.name for entry in file.scopes or []])
    _once("tools", [(entry.backend, entry.name) for entry in file.tools or []])
    pairs = [(i.issuer, i.client_id) for entry in file.clients or [] for i in entry.oauth_client_ids]
    _once("clients: oauth_client_ids", pairs)


def _check_issuer(path: str, entry: IssuerEntry) -> None:
    for name, url in (("issuer", entry.issuer), ("jwks_uri", entry.jwks_uri)):
        if url is not None and urlsplit(url).scheme not in ("https", "http"):
            raise PolicyFileError(f"{path}.{name}", "must be an http(s) URL")
    for position, network in enumerate(entry.allowed_networks):
        try:
            ip_network(network)
        except ValueError:
            raise PolicyFileError(f"{path}.allowed_networks[{position}]", "is not a network (CIDR)") from None
    if (claims := entry.claims) is not None:
        rules = ClaimRules(claims.subject, claims.email, tuple(claims.scopes), tuple(claims.client_id))
        for member, problem in problems(rules, entry.roles_claim).items():
            raise PolicyFileError(f"{path}.claims.{member}", problem)


def _check_routes(path: str, routes: list[RouteEntry]) -> None:
    for position, route in enumerate(routes):
        try:
            check_pattern(route.path)
        except ValueError as error:
            raise PolicyFileError(f"{path}[{position}].path", f"must be {error}") from None
    _once(path, [(*sorted(set(route.methods)), route.path) for route in routes])


def _once(section: str, keys: list[Any]) -> None:
    for position, key in enumerate(keys):
        if key in keys[:position]:
            words = " ".join(key) if isinstance(key, tuple) else key
            raise PolicyFileError(f"{section}[{position}]", f"{words} is given twice")


def find(known: Mapping[Key, Row], key: Key, path: str, kind: str) -> Row:
    """What an entry names. Raises PolicyFileError where there is none."""
    if key not in known:
        words = "/".join(key) if isinstance(key, tuple) else key
        raise PolicyFileError(path, f"there is no {kind} {words}")
    return known[key]
