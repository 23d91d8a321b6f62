"""OAuth 2.0 Protected Resource Metadata (RFC 9728) of a backend, from the declarations of its tools, and the challenge
that leads clients to it. Pure: no network, no files."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from muniment.errors import Misconfigured

if TYPE_CHECKING:
    from muniment.guard import Muniment

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"
MAX_CHALLENGE: Final = 8192  # characters; a longer one is none of the platform's
_URL = re.compile(r"[\x21\x23-\x5b\x5d\x5f\x61-\x7a\x7e]+")  # characters that a URL may have (RFC 3986), and ' ( ) [ ]
# RFC 9110 sections 5.6.2, 5.6.4 and 11.2.
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_PARAMETER = rf"({_NAME})[ \t]*=[ \t]*({_NAME}|{_QUOTED})"
_ELEMENT = re.compile(rf"((?:{_QUOTED}|[^\",\r\n\0])*)(,|\Z)")
_NEXT = re.compile(_PARAMETER)
_FIRST = re.compile(rf"({_NAME})(?: +{_PARAMETER})?")
_TOKEN68 = re.compile(rf"({_NAME}) +([0-9A-Za-z._~+/-]+=*)")
_BY_TOKEN = frozenset({"bearer", "dpop"})  # the schemes that RFC 9728 section 5.1 is about


class Challenge(NamedTuple):
    """One challenge of a WWW-Authenticate header (RFC 9110 section 11.3): its scheme, the token68 that it has instead
    of parameters, and these as (name, value as it is written)."""

    scheme: str
    token68: str | None
    parameters: list[tuple[str, str]]

    def __str__(self) -> str:
        written = self.token68 or ", ".join(f"{name}={value}" for name, value in self.parameters)
        return f"{self.scheme} {written}" if written else self.scheme


def protected_resource(guard: Muniment, name: str | None = None) -> dict[str, Any]:
    """The metadata document (RFC 9728 section 2): the resource, who gives tokens for it, and all scopes of its tools.
    `name` is what people call it; without one, its host. Raises Misconfigured where the guard has no `resource`."""
    resource = resource_of(guard)
    document: dict[str, Any] = {"resource": resource}
    if guard.authorization_servers:
        document["authorization_servers"] = list(guard.authorization_servers)
    # A copy: tools may be added while this is read.
    if scopes := sorted({scope for tool in list(guard.tools.values()) for scope in tool.scopes}):
        document["scopes_supported"] = scopes
    return document | {
        "bearer_methods_supported": ["header"],
        "resource_name": name or urlsplit(resource).hostname,
    }


def resource_of(guard: Muniment) -> str:
    """The guard's `resource`. Raises Misconfigured where there is none, or where it is no http(s) URL, or has a
    fragment (RFC 9728 section 1.2)."""
    if not guard.resource:
        raise Misconfigured("The backend's own URL is not known: resource=, or MUNIMENT_RESOURCE.")
    return _checked(guard.resource)


def _checked(resource: str) -> str:
    try:
        url = urlsplit(resource)
        fine = url.scheme in ("https", "http") and bool(url.hostname) and "@" not in url.netloc and url.port != 0
    except ValueError:
        fine = False
    if not fine or "#" in resource or not _URL.fullmatch(resource):
        raise Misconfigured("The backend's own URL must be an http(s) URL without a fragment: resource=.")
    return resource


def metadata_paths(resource: str) -> tuple[str, ...]:
    """The paths at which the metadata of this resource is looked for, as they are written in a URL: the one of RFC
    9728 section 3.1, the same without a slash at the end, and that of the host. Raises Misconfigured."""
    path = urlsplit(_checked(resource)).path
    found = WELL_KNOWN + ("" if path == "/" else path)
    return tuple(dict.fromkeys((found, found.rstrip("/"), WELL_KNOWN)))


def metadata_url(resource: str) -> str:
    """The URL of the metadata (RFC 9728 section 3.1): between host and path, with the query. Raises Misconfigured."""
    url = urlsplit(_checked(resource))
    return f"{url.scheme}://{url.netloc}{metadata_paths(resource)[0]}" + (f"?{url.query}" if url.query else "")


def challenge(www_authenticate: str | None, guard: Muniment) -> str:
    """A WWW-Authenticate value with our own `resource_metadata` (RFC 9728 section 5.1), whatever the one that is given
    names; all else of it stays. None, and what is no such value, becomes a plain `Bearer`. Where the guard has no
    `resource` nothing is added. Raises Misconfigured for a `resource` that is no URL."""
    found = challenges(www_authenticate or "") or [Challenge("Bearer", None, [])]
    if guard.resource:
        found = [_led(one, metadata_url(guard.resource)) for one in found]
    return ", ".join(map(str, found))


def _led(given: Challenge, url: str) -> Challenge:
    if given.scheme.lower() not in _BY_TOKEN:
        return given
    others = [pair for pair in given.parameters if pair[0].lower() != "resource_metadata"]
    return Challenge(given.scheme, None, [*others, ("resource_metadata", f'"{url}"')])


def challenges(value: str) -> list[Challenge]:
    """The challenges of a WWW-Authenticate value (RFC 9110 section 11.6.1); none where it is not well-formed."""
    found: list[Challenge] = []
    for element in _elements(value):
        if found and not found[-1].token68 and (more := _NEXT.fullmatch(element)):
            found[-1].parameters.append((more[1], more[2]))
        elif first := _FIRST.fullmatch(element):
            found.append(Challenge(first[1], None, [(first[2], first[3])] if first[2] else []))
        elif other := _TOKEN68.fullmatch(element):
            found.append(Challenge(other[1], other[2], []))
        else:
            return []
    return found


def _elements(value: str) -> list[str]:
    """What stands between the commas that are not in a quoted string; something that is no element where it ends in
    the middle of one."""
    found, at = [], 0
    while at < len(value) and len(value) <= MAX_CHALLENGE:
        match = _ELEMENT.match(value, at)
        if match is None:
            return ["="]
        found.append(match[1].strip(" \t"))
        at = match.end()
    return [element for element in found if element]
