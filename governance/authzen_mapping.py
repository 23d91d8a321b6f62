"""From what AuthZEN asks to what the policy knows: the user, and the tools (pure but for looking users up).

As COAZ, the AuthZEN profile for MCP, has it: `subject` is the user, `action` tools/call, `resource` the tool, and
`context.agent` the OAuth client. What is not of the type `tool` is a tool of the backend as well: `<type>.<action>`,
else one that has the action's name."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from audit import subjects
from audit.models import Subject
from governance.authzen_contract import AskedAction, AskedResource, AskedSubject, SubjectProperties
from governance.decision import ClientPolicy, Policy
from governance.snapshot import BackendPolicy

USER_TYPES = frozenset({"user", "identity"})  # the latter is COAZ's
TOOL, CALL = "tool", "tools/call"
TOOL_NAME = re.compile(r"[A-Za-z0-9_./:-]{1,128}")
UID = "usr_"
# Where no client is named: what holds whatever the client, which is what grants for any client say.
ANY_CLIENT = ClientPolicy(0, "", "any client", "active")


@dataclass(frozen=True, slots=True)
class Who:
    """The user who was named. `uid` is None for one whom nobody has met; `trouble` says why nobody could be
    established, empty where somebody was."""

    issuer: str | None = None
    uid: str | None = None
    trouble: str = ""


def who(backend: BackendPolicy, asked: AskedSubject) -> Who:
    """Whom the backend means. Nobody is made a user by being named."""
    if asked.type not in USER_TYPES:
        return Who(trouble="A user is of the type `user` or `identity`.")
    if asked.id.startswith(UID):
        return _by_uid(backend, asked.id)
    issuer, trouble = issuer_of(backend, asked.properties)
    return Who(trouble=trouble) if issuer is None else Who(issuer, subjects.known(issuer, asked.id))


def _by_uid(backend: BackendPolicy, uid: str) -> Who:
    """A uid says who it is: the issuer is that of the user. One whose issuer the backend does not accept is none of its
    users."""
    row = Subject.objects.filter(uid=uid, erased_at=None).values_list("issuer", flat=True).first()
    if row is None or row not in backend.issuers:
        return Who(trouble="The backend has no user with this uid.")
    return Who(row, uid)


def issuer_of(backend: BackendPolicy, said: SubjectProperties) -> tuple[str | None, str]:
    """The issuer that is meant, or None and why not."""
    named = said.issuer or said.iss
    if named is None and len(backend.issuers) == 1:
        return next(iter(backend.issuers)), ""
    if named is None:
        return None, "The backend accepts several issuers, and none was named, or it accepts none."
    if named not in backend.issuers:
        return None, "The issuer that was named is not one that the backend accepts."
    return named, ""


def roles_of(said: SubjectProperties) -> tuple[str, ...]:
    """The user's roles, as `role` and `roles` name them, one or several."""
    found: set[str] = set()
    for given in (said.role, said.roles):
        found.update([given] if isinstance(given, str) else given or ())
    return tuple(sorted(found))


def tools_of(policy: Policy, backend_id: int, action: AskedAction, resource: AskedResource) -> list[str]:
    """The names of the tools that are asked about, all of which must be allowed: the special cases of the tool that fit
    the question, else the tool itself. Empty for what can be no tool's name.

    A special case is a tool of its own, `<tool>:<property>:<value>`, where a property of the action or the resource, or
    the resource's `id`, has that value."""
    base = base_tool(policy, backend_id, action.name, resource.type, resource.id)
    if not TOOL_NAME.fullmatch(base):
        return []
    pairs = [*_pairs(action.properties), *_pairs(resource.properties), ("id", resource.id)]
    named = {f"{base}:{name}:{value}" for name, value in pairs}
    return sorted(name for name in named if (backend_id, name) in policy.tools) or [base]


def base_tool(policy: Policy, backend_id: int, action: str, kind: str, identifier: str) -> str:
    """The tool that an action with a resource is; it need not be there."""
    if kind == TOOL:
        return identifier if action == CALL else ""
    named = f"{kind}.{action}"
    known = (backend_id, named) in policy.tools or (backend_id, action) not in policy.tools
    return named if known else action


def _pairs(properties: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The properties that a special case can name: texts, whole numbers, and true or false."""
    for name, value in properties.items():
        match value:
            case bool():
                yield name, str(value).lower()
            case int() if abs(value) < 2**53:
                yield name, str(value)
            case str():
                yield name, value


def actions_with(policy: Policy, backend_id: int, kind: str) -> list[str]:
    """The actions that the backend's tools know for a type of resource, in order."""
    if kind == TOOL:
        return [CALL]
    found = {name.removeprefix(f"{kind}.").partition(":")[0] for name in _named(policy, backend_id, f"{kind}.")}
    return sorted(filter(None, found))


def resources_for(policy: Policy, backend_id: int, kind: str, action: str) -> list[str]:
    """The resources of a type that the policy names for an action, in order: tools, else those that have a special
    case by their id. What is not named in the policy is not known here."""
    if kind == TOOL:
        return sorted(_named(policy, backend_id, "")) if action == CALL else []
    start = f"{kind}.{action}:id:"
    return sorted(filter(None, (name.removeprefix(start) for name in _named(policy, backend_id, start))))


def _named(policy: Policy, backend_id: int, start: str) -> Iterator[str]:
    return (name for owner, name in policy.tools if owner == backend_id and name.startswith(start))
