"""Routes: which tools a path of a backend stands for, where a proxy in front of the backend asks before it lets a
request through. Pure.

A pattern is an absolute path of segments: `*` stands for exactly one segment, `**`, at the end, for any number of them.
What a path may look like is narrow (`segments_of`), since the proxy, this module and the backend must read it alike: a
path that one of them might read as another is refused, not repaired.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

# RFC 3986 pchar without percent-encoding and without `;`, which many servers cut off.
PATTERN_FORM = r"^(/|(/([A-Za-z0-9._~!$&'()+,=:@-]+|\*))+|(/([A-Za-z0-9._~!$&'()+,=:@-]+|\*))*/\*\*)$"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
MOST_PATH, MOST_PATTERN, MOST_TOOLS = 4096, 255, 50
_PATTERN = re.compile(PATTERN_FORM.replace("^", r"\A", 1)[:-1] + r"\Z")
_TOOL = re.compile(r"[A-Za-z0-9_./:-]{1,128}")
_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
# What RFC 3986 lets a path hold, without `;`: section 3.3 pchar and `/`.
_RAW = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,=:@/-]|%[0-9A-Fa-f]{2})*")
# Decoded, these are separators to somebody, or end a path, or begin another decoding.
_AMBIGUOUS = re.compile(r"[/\\;%?#\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Ambiguous(ValueError):
    """A request line that the proxy and the backend may read differently. The text says why, without the path."""


@dataclass(frozen=True, slots=True)
class Route:
    """A path pattern of a backend, and the tools that it stands for; no `methods`: any. Without tools it is closed."""

    pattern: str
    methods: frozenset[str]
    tools: tuple[str, ...]

    @classmethod
    def of(cls, pattern: str, methods: list[Any], tools: list[Any]) -> "Route":
        """A route from a row of the database. One with a tool that cannot be one is closed, and so is one whose
        methods are none, such as a list of lists."""
        known = all(isinstance(tool, str) and _TOOL.fullmatch(tool) for tool in tools) and len(tools) <= MOST_TOOLS
        plain = frozenset(method for method in methods if isinstance(method, str))
        return cls(pattern, plain, tuple(tools) if known and len(plain) == len(methods) else ())


class Routes:
    """All routes of one backend, to find the one of a request."""

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        by_pattern: dict[tuple[str, ...], list[Route]] = {}
        for route in routes:
            by_pattern.setdefault(pattern_segments(route.pattern), []).append(route)
        self._ordered = [
            (pattern, tuple(_folded(segment) for segment in pattern), found)
            for pattern, found in sorted(by_pattern.items(), key=lambda item: _specificity(item[0]))
        ]

    def find(self, method: str, path: tuple[str, ...]) -> Route | None:
        """The route of a request whose path has these segments; None where there is none, so that it is refused.

        The pattern that is the most specific decides: at the first place where two differ, a word goes before `*`,
        and `*` before `**`. A method that this pattern is not for does not fall through to a looser one. A path that
        differs from it in case alone, or in how its letters are composed, is refused: the backend may not care."""
        folded = tuple(_folded(segment) for segment in path)
        for pattern, folded_pattern, found in self._ordered:
            if _fits(folded_pattern, folded):
                return _of_method(method, found) if _fits(pattern, path) else None
        return None


def _of_method(method: str, found: list[Route]) -> Route | None:
    """The route that names the method, else the one for any; of several all tools are required."""
    fitting = [route for route in found if method in route.methods] or [r for r in found if not r.methods]
    if not fitting or not all(route.tools for route in fitting):
        return None
    tools = dict.fromkeys(tool for route in fitting for tool in route.tools)
    return Route(fitting[0].pattern, fitting[0].methods, tuple(tools))


def check_pattern(pattern: str) -> None:
    """Raise ValueError for what is no pattern: the message says what one is."""
    words = "a path such as /notes, /notes/* (one segment) or /notes/** (all below), of letters, digits and ._~-"
    if len(pattern) > MOST_PATTERN or not _PATTERN.match(pattern):
        raise ValueError(words)
    if any(_is_dots(segment) for segment in pattern_segments(pattern)):
        raise ValueError("a segment does not end in a dot")


def pattern_segments(pattern: str) -> tuple[str, ...]:
    """The segments of a pattern; of `/` none."""
    return tuple(segment for segment in pattern.split("/") if segment)


def method_of(text: str) -> str:
    """A method as it is (RFC 9110 section 9.1: methods are case-sensitive). Raises Ambiguous for one in small letters,
    which some servers raise."""
    if not _METHOD.fullmatch(text):
        raise Ambiguous("The method is not in capital letters.")
    return text


def segments_of(uri: str) -> tuple[str, ...]:
    """The decoded segments of a request target in origin form (RFC 9112 section 3.2.1), without its query and without
    one slash at the end. Raises Ambiguous for one that might be read in two ways."""
    raw, _, _ = uri.partition("?")
    if len(raw) > MOST_PATH or not _RAW.fullmatch(raw):
        raise Ambiguous("The path has characters that a path does not have, or is too long.")
    segments = raw[1:].removesuffix("/").split("/") if raw != "/" else []
    return tuple(_decoded(segment) for segment in segments)


def _decoded(segment: str) -> str:
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise Ambiguous("The path is not UTF-8.") from None
    if not text or _is_dots(text):
        raise Ambiguous("A segment of the path is empty, ends in a dot, or begins or ends with a space.")
    if _AMBIGUOUS.search(text) or _AMBIGUOUS.search(unicodedata.normalize("NFKC", text)):
        raise Ambiguous("The path has an encoded separator or control character.")
    return text


def _is_dots(segment: str) -> bool:
    """`.` and `..`, and what some file systems take for the name without its last dots, or its spaces."""
    return segment != segment.rstrip(". ") or segment.startswith(" ")


def _folded(segment: str) -> str:
    """The same for two segments that a careless backend takes for one."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", segment).casefold())


def _fits(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    if pattern and pattern[-1] == "**":
        pattern = pattern[:-1]
        path = path[: len(pattern)]
    return len(pattern) == len(path) and all(
        wanted in ("*", given) for wanted, given in zip(pattern, path, strict=True)
    )


def _specificity(pattern: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """What sorts the most specific pattern first."""
    return tuple({"*": 1, "**": 2}.get(segment, 0) for segment in pattern), pattern
