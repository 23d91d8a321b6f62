"""Which route a request's path and method find, and which paths are refused because they can be read in two ways."""

from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.routes import Ambiguous, Route, Routes, check_pattern, method_of, segments_of


def routes(**tools: str) -> Routes:
    """Routes from `pattern=tool`, or `pattern_METHOD=tool`."""
    return Routes(Route(pattern, frozenset(), (tool,)) for pattern, tool in tools.items())


def found(those: Routes, path: str, method: str = "GET") -> str | None:
    route = those.find(method, segments_of(path))
    return None if route is None else " ".join(route.tools)


THOSE = routes(**{
    "/": "root", "/notes": "list", "/notes/*": "one", "/notes/export": "export", "/notes/*/share": "share",
    "/files/**": "files", "/files/*/secret": "secret",
})  # fmt: skip


@pytest.mark.parametrize(
    ("path", "tool"),
    [
        ("/", "root"), ("/?x=/notes", "root"), ("/notes", "list"), ("/notes/", "list"), ("/notes/7", "one"),
        ("/notes/7?as=export", "one"), ("/notes/%37", "one"), ("/notes/export", "export"),
        ("/notes/export/", "export"), ("/notes/e%78port", "export"), ("/notes/7/share", "share"),
        ("/notes/caf%C3%A9", "one"), ("/files", "files"), ("/files/a/b/c", "files"), ("/files/a/secret", "secret"),
        ("/files/a/secret/x", "files"), ("/notes/7/other", None), ("/other", None), ("/note", None),
    ],
)  # fmt: skip
def test_the_most_specific_pattern_decides(path: str, tool: str | None) -> None:
    assert found(THOSE, path) == tool


@pytest.mark.parametrize(
    "path",
    [
        "", "notes", "*", "http://inner.example/notes", "//notes", "/notes//7", "/notes/7//", "/./notes", "/notes/..",
        "/notes/%2e%2e/files", "/notes/.", "/notes/%2E", "/notes/7%2Fshare", "/notes/7%5cshare", "/notes\\7",
        "/notes/export;v=1", "/notes/export%3b", "/notes/export%3Fa", "/notes/export%23", "/notes/export#x",
        "/notes/export%00", "/notes/export\0", "/notes/%0d%0a", "/notes/%2565xport", "/notes/%25", "/notes/%",
        "/notes/%2", "/notes/%zz", "/notes/caf\u00e9", "/notes/%E9", "/notes/%c0%af", "/notes/%ED%A0%80",
        "/notes/export.", "/notes/export%20", "/notes/...", "/notes/%EF%BC%8F", "/notes/%E2%80%A8", "/notes/ 7",
        "/notes/7\n", "/notes/|", "/notes/<x>", "/notes/\"", "/" + "a" * 4096,
    ],
)  # fmt: skip
def test_a_path_that_can_be_read_in_two_ways_is_refused(path: str) -> None:
    with pytest.raises(Ambiguous) as refused:
        segments_of(path)
    assert not path.strip("/") or path not in str(refused.value)


@pytest.mark.parametrize(
    "path", ["/notes/Export", "/notes/EXPORT/", "/notes/%EF%BD%85xport", "/Files/a/secret", "/files/a/\u017fecret"]
)
def test_a_path_that_a_careless_backend_takes_for_a_stricter_route_is_refused(path: str) -> None:
    those = routes(**{"/**": "loose", "/notes/export": "export", "/files/*/secret": "secret"})
    assert found(those, "/notes/exports") == "loose"
    assert found(those, path.replace("\u017f", "%C5%BF")) is None


def test_a_method_that_the_pattern_is_not_for_does_not_fall_through() -> None:
    those = Routes([
        Route("/notes/*", frozenset(), ("any",)), Route("/notes/export", frozenset({"GET", "HEAD"}), ("export",)),
        Route("/mcp", frozenset({"POST"}), ("capture",)), Route("/mcp", frozenset(), ("recall",)),
    ])  # fmt: skip
    assert found(those, "/notes/export", "HEAD") == "export" and found(those, "/notes/export", "POST") is None
    assert found(those, "/mcp", "POST") == "capture" and found(those, "/mcp", "DELETE") == "recall"


def test_of_routes_that_fit_alike_all_tools_are_required_and_a_closed_one_closes() -> None:
    pair = [Route("/mcp", frozenset({"POST"}), ("b", "a")), Route("/mcp", frozenset({"POST", "GET"}), ("c", "a"))]
    assert found(Routes(pair), "/mcp", "POST") == "b a c" and found(Routes(pair), "/mcp") == "c a"
    closed = Routes([*pair, Route("/mcp", frozenset({"GET"}), ()), Route("/**", frozenset(), ("loose",))])
    assert found(closed, "/mcp") is None and found(closed, "/mcp", "POST") == "b a c"


def test_a_row_that_names_what_is_no_tool_is_closed() -> None:
    for tools in (["a", None], ["a", "b c"], [["a"]], ["a\n"], ["t"] * 51):
        assert Route.of("/x", [], tools).tools == ()
    assert Route.of("/x", ["GET"], ["a", "b"]) == Route("/x", frozenset({"GET"}), ("a", "b"))


@pytest.mark.parametrize(
    "pattern", ["", "notes", "//", "/notes/", "/a//b", "/**/a", "/a*", "/../a", "/a.", "/a;b", "/%61", "/a b",
                "/\u00e9", "/a\n", "/***", "/" + "a" * 255]
)  # fmt: skip
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError):
        check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern", ["/", "/**", "/*", "/mcp", "/v1/notes/*/share", "/notes/**", "/x:verb", "/.well-known/a"]
)
def test_patterns(pattern: str) -> None:
    check_pattern(pattern)


@pytest.mark.parametrize("method", ["", "get", "GET ", "GET\n", "G\u00c9T", "GET,POST", "1GET", "A" * 33])
def test_a_method_is_in_capital_letters(method: str) -> None:
    with pytest.raises(Ambiguous):
        method_of(method)
    assert method_of("GET") == "GET" and method_of("M-SEARCH") == "M-SEARCH"


LETTERS = [
    st.sampled_from([c, c.upper(), f"%{ord(c):02x}", f"%{ord(c.upper()):02X}", f"%25{ord(c):x}"]) for c in "export"
]
EDGE = st.sampled_from(["", "", "/", "//", ".", "/.", "./", "%2f", ";a", "%3Ba", "?a", "#a", "%20", "%00", "\\", "%5c"])


@settings(max_examples=400, deadline=None, database=None)
@given(EDGE, st.tuples(*LETTERS).map("".join), EDGE)
def test_whatever_is_sent_a_careless_backend_does_not_reach_the_strict_path_by_the_loose_route(
    before: str, word: str, after: str
) -> None:
    """It decodes twice, folds case, cuts off parameters, dots and spaces, and joins slashes."""
    those = routes(**{"/x/**": "loose", "/x/export": "strict"})
    try:
        tool = found(those, f"/x/{before}{word}{after}")
    except Ambiguous:
        return
    seen = unquote(unquote(f"{before}{word}{after}".partition("?")[0])).casefold()
    seen = seen.replace("\\", "/").partition(";")[0].partition("#")[0].lstrip("/ ").rstrip("/. ")
    assert seen != "export" or tool != "loose"


@pytest.mark.parametrize(
    ("methods", "tools"),
    [([["GET"]], ["a"]), ([None], ["a"]), ([], [["a"]]), ([], [None]), ([], ["a b"]), ([], ["a"] * 51)],
)
def test_a_row_that_cannot_be_a_route_is_closed(methods: list[Any], tools: list[Any]) -> None:
    assert found(Routes([Route.of("/x", methods, tools)]), "/x") is None
