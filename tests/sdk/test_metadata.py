"""The metadata of a protected resource (RFC 9728): made of the tools, found at its paths, named in each challenge."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muniment import Misconfigured, Muniment
from muniment.metadata import challenge, challenges, metadata_paths, metadata_url, protected_resource

RESOURCE = "https://inner.example/mcp"
OURS = 'resource_metadata="https://inner.example/.well-known/oauth-protected-resource/mcp"'


def guard(resource: str | None = RESOURCE, servers: tuple[str, ...] = ("https://id.example/",)) -> Muniment:
    return Muniment(
        "http://127.0.0.1:9", "mk_abcdefghijkl_secret", resource=resource, authorization_servers=servers
    )  # fmt: skip


def test_the_document_says_what_the_tools_need() -> None:
    made = guard()
    made.tool("memory.recall", scopes="memory:read")(lambda: None)
    made.tool("memory.capture", scopes=["memory:write", "memory:read"])(lambda: None)
    assert protected_resource(made, "Inner") == {
        "resource": RESOURCE,
        "authorization_servers": ["https://id.example/"],
        "scopes_supported": ["memory:read", "memory:write"],
        "bearer_methods_supported": ["header"],
        "resource_name": "Inner",
    }


def test_members_that_would_be_empty_are_left_out() -> None:
    # RFC 9728 section 3.2: parameters with zero elements must be omitted.
    assert protected_resource(guard(servers=())) == {
        "resource": RESOURCE, "bearer_methods_supported": ["header"], "resource_name": "inner.example",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("resource", "url", "paths"),
    [
        ("https://a.example", "https://a.example/.well-known/oauth-protected-resource", [""]),
        ("https://a.example/", "https://a.example/.well-known/oauth-protected-resource", [""]),
        ("https://a.example:8443/mcp", "https://a.example:8443/.well-known/oauth-protected-resource/mcp", ["/mcp", ""]),
        ("https://a.example/a/b/", "https://a.example/.well-known/oauth-protected-resource/a/b/",
         ["/a/b/", "/a/b", ""]),
        ("https://a.example/m?k=v", "https://a.example/.well-known/oauth-protected-resource/m?k=v", ["/m", ""]),
        ("http://[::1]:8000/mcp", "http://[::1]:8000/.well-known/oauth-protected-resource/mcp", ["/mcp", ""]),
    ],
)  # fmt: skip
def test_the_well_known_path_goes_between_host_and_path(resource: str, url: str, paths: list[str]) -> None:
    assert metadata_url(resource) == url
    assert metadata_paths(resource) == tuple(f"/.well-known/oauth-protected-resource{path}" for path in paths)


@pytest.mark.parametrize(
    "resource",
    ["", "inner.example/mcp", "ftp://a.example", "https://", "https:///mcp", "https://a.example/#x", "urn:a:b",
     "https://a.example#", 'https://a.example/"', "https://a.example/\r\nX: y", "https://u:p@a.example/",
     "https://a.example/ü", "https://[", "https://a.example:x/", "https://a.example/\\"],
)  # fmt: skip
def test_what_is_no_url_of_a_resource_is_refused(resource: str) -> None:
    for use in (lambda: metadata_url(resource), lambda: metadata_paths(resource)):
        with pytest.raises(Misconfigured):
            use()
    with pytest.raises(Misconfigured):
        protected_resource(guard(resource))


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        (None, f"Bearer {OURS}"),
        ("", f"Bearer {OURS}"),
        ("Bearer", f"Bearer {OURS}"),
        ('Bearer error="insufficient_scope", scope="a b"', f'Bearer error="insufficient_scope", scope="a b", {OURS}'),
        ('Bearer resource_metadata="https://evil.example/", error=x', f"Bearer error=x, {OURS}"),
        ('bearer RESOURCE_METADATA="https://evil.example/", Resource_Metadata=x', f"bearer {OURS}"),
        ('Bearer error_description="a, resource_metadata=\\"x\\", b"',
         f'Bearer error_description="a, resource_metadata=\\"x\\", b", {OURS}'),
        ('Basic realm="x", Bearer error="e"', f'Basic realm="x", Bearer error="e", {OURS}'),
        ('Negotiate YWJj==, DPoP algs="ES256"', f'Negotiate YWJj==, DPoP algs="ES256", {OURS}'),
        ("Bearer YWJj==", f"Bearer {OURS}"),
        ("Bearer a = b ,, c\t=\td,", f"Bearer a=b, c=d, {OURS}"),
    ],
)  # fmt: skip
def test_a_challenge_leads_to_our_own_metadata(given_value: str | None, expected: str) -> None:
    assert challenge(given_value, guard()) == expected


@pytest.mark.parametrize(
    "broken",
    ['Bearer error="open', 'Bearer error=, a="b"', "Bearer a=b c=d", "=", "Bearer\r\nSet-Cookie: a=b",
     'Bearer a="\x00"', 'Bearer a="b\r\nc"', "Bearer ü", "a=b, c=d", 'Bearer a="b\\', "Bearer " + "a=b, " * 5000],
)  # fmt: skip
def test_what_is_no_challenge_is_replaced_by_our_own(broken: str) -> None:
    assert challenges(broken) == []
    assert challenge(broken, guard()) == f"Bearer {OURS}"


def test_without_a_resource_the_challenge_stays_as_it_is() -> None:
    value = 'Bearer error="invalid_token", resource_metadata="https://a.example/x"'
    assert challenge(value, guard(resource=None)) == value
    with pytest.raises(Misconfigured, match="MUNIMENT_RESOURCE"):
        protected_resource(guard(resource=None))


@given(st.text(st.sampled_from('Bearer=",\\ \t\r\n\0aü'), max_size=60))
def test_whatever_is_given_one_line_comes_back_with_our_metadata_last(text: str) -> None:
    made = challenge(text, guard())
    assert not set(made) & set("\r\n\0")
    again = challenges(made)
    assert again, "what was made is itself well-formed"
    for one in again:
        if one.scheme.lower() == "bearer":
            assert one.parameters[-1][0] == "resource_metadata"


@pytest.mark.parametrize("long", ['"' * 8000, '\\"' * 4000, "a=" * 4000, "a " * 4000, '"\\' * 4000, "," * 8000])
def test_a_hostile_challenge_takes_no_time(long: str) -> None:
    started = time.process_time()
    challenge(f"Bearer {long}", guard())
    assert time.process_time() - started < 0.5
