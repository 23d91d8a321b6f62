"""Two spellings of one URL compare alike, and no two URLs do (RFC 3986 section 6.2)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.urls import comparable

PLAIN = "https://inner.example/a/b"
SEGMENT = st.text(st.characters(codec="ascii", categories=("L", "N"), include_characters="-._~%/ ;@:"), max_size=6)
PATHS = st.lists(SEGMENT, max_size=5)


def encoded(segment: str, every: bool) -> str:
    """A segment in a URL: what needs it is percent-encoded, or everything is."""
    return "".join(c if c.isalnum() and not every else f"%{ord(c):02x}" for c in segment)


@pytest.mark.parametrize(
    "spelling",
    [
        "HTTPS://inner.example/a/b", "https://INNER.Example/a/b", "https://inner.example:443/a/b",
        "https://inner.example:/a/b", "https://inner.example/%61/b", "https://inner.example/./a/x/../b",
        "https://inner.example/a/%2e/b", "https://inner.example/../a/b", "https://inner.example/a/b?x=1",
        "https://inner.example/a/b#f", "https://inner.example/a/b?x#f?y", "https://%69nner.example/a/b",
        "https://inner.example:0443/a/b",
    ],
)  # fmt: skip
def test_spellings_of_one_url_are_alike(spelling: str) -> None:
    assert comparable(spelling) == comparable(PLAIN) == PLAIN


@pytest.mark.parametrize(
    "other",
    [
        "http://inner.example/a/b", "https://inner.example:444/a/b", "https://inner.example./a/b",
        "https://inner.example/a/b/", "https://inner.example/A/b", "https://inner.example/a%2Fb",
        "https://inner.example/a//b", "https://inner.example/", "https://inner.example.evil/a/b",
        "https://inner.example/a/b/..", "https://inner.example/a/b%3Fx", "https://inner.example/a;/b",
    ],
)  # fmt: skip
def test_other_urls_are_not(other: str) -> None:
    assert comparable(other) not in (None, PLAIN)


@pytest.mark.parametrize(
    "none",
    [
        "", "/a/b", "inner.example/a/b", "//inner.example/a/b", "ftp://inner.example/a/b", "https:inner.example/a/b",
        "https:///a/b", "https://user@inner.example/a/b", "https://user:pw@inner.example/a/b",
        "https://inner.example:x/a/b", "https://inner.example:0/a/b", "https://inner.example/%zz", "https://[::1/a",
        "https://inner.example/a b", "https://inner.example\\@evil.example/a/b", "https://inner.example/\u00e4",
        " https://inner.example/a/b", "https://inner.example/a/b\n", "javascript:alert(1)",
        "https://inner.example%40evil/a" + "a" * 2048, "https://a:1:2/",
    ],
)  # fmt: skip
def test_what_is_no_url_of_a_server_is_none(none: str) -> None:
    assert comparable(none) is None


def test_an_empty_path_is_the_root() -> None:
    assert comparable("https://h") == comparable("https://h/") == comparable("https://h?q") == "https://h/"
    assert comparable("http://[::1]:80/x") == comparable("http://[::1]/x") == "http://[::1]/x"


@settings(max_examples=60, deadline=None)
@given(PATHS, st.text(alphabet="abc=&/?", max_size=6))
def test_what_is_comparable_stays_so_and_neither_query_nor_encoding_of_plain_letters_matters(
    segments: list[str], query: str
) -> None:
    path = "/".join(encoded(one, every=False) for one in segments)
    found = comparable(f"https://h/{path}")
    assert found is not None
    assert comparable(found) == found
    assert comparable(f"https://h/{path}?{query}#{query}") == found
    assert comparable("https://h/" + "/".join(encoded(one, every=True) for one in segments)) == found


@settings(max_examples=60, deadline=None)
@given(PATHS, PATHS)
def test_paths_that_differ_after_decoding_are_never_alike(one: list[str], other: list[str]) -> None:
    """Segments with a slash, a dot or a percent sign in them are as different as any; dots alone are navigation."""
    kept = [[s for s in path if s not in ("", ".", "..")] for path in (one, other)]
    urls = [comparable("https://h/" + "/".join(encoded(s, every=False) for s in path)) for path in kept]
    assert (urls[0] == urls[1]) is (kept[0] == kept[1])
