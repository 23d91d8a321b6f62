"""What Traefik and Envoy send, made from the configurations of docs/integrations, and replayed to the platform."""

import http.client
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from audit.models import Record
from governance import process
from tests import served
from tests.reset import reset
from tests.world import World, build, token
from tools.models import Route

DOCS = Path(__file__).resolve().parents[2] / "docs/integrations"
Headers = dict[str, str]
# What every client sends, and what one sends that wants another route, or to be somebody else.
CLIENT = {
    "Host": "inner.example", "Accept": "*/*", "User-Agent": "Example/1", "Cookie": "a=b",
    "X_Forwarded_Uri": "/memories/7", "X-Forwarded-Uri": "/memories/7", "X-Forwarded-Method": "GET",
    "X_Original_URI": "/memories/7", "X-Original-URI": "/memories/7", "X-Original-Method": "GET",
    "X-Muniment-Proxy": "nginx", "X_Muniment_Proxy": "nginx", "X-Muniment-Key": "mk_forged", "X-Real-IP": "192.0.2.1",
}  # fmt: skip


def blocks(name: str) -> list[Any]:
    """The YAML of a document."""
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", (DOCS / name).read_text(), re.S)]


def named(headers: Headers, name: str) -> str | None:
    """A header, whatever its case."""
    return next((value for known, value in headers.items() if known.lower() == name.lower()), None)


def without(headers: Headers, name: str) -> Headers:
    """The others."""
    return {known: value for known, value in headers.items() if known.lower() != name.lower()}


def traefik(method: str, uri: str, client: Headers, key: str) -> tuple[str, str, Headers]:
    """The request of Traefik's ForwardAuth: GET of its address, with the headers that are listed, as the middleware
    before it left them, and X-Forwarded-* of its own."""
    [document] = blocks("traefik.md")
    middlewares = document["http"]["middlewares"]
    for name, value in middlewares["muniment-key"]["headers"]["customRequestHeaders"].items():
        client = without(client, name) | ({name: value.replace("mk_...", key)} if value else {})
    auth = middlewares["muniment"]["forwardAuth"]
    assert auth["trustForwardHeader"] is False
    sent = {name: value for name in auth["authRequestHeaders"] if (value := named(client, name)) is not None}
    sent |= {
        "X-Forwarded-For": "203.0.113.7", "X-Forwarded-Method": method, "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "inner.example", "X-Forwarded-Uri": uri, "Accept-Encoding": "gzip",
    }  # fmt: skip
    return "GET", urlsplit(auth["address"]).path, sent


def envoy(method: str, uri: str, client: Headers, key: str) -> tuple[str, str, Headers]:
    """The request of Envoy's ext_authz: the original method and the prefixed path, with Host, Content-Length: 0,
    Authorization, what is allowed of the client's headers as the filter before it left them, and what is added."""
    filters, manager = blocks("envoy.md")
    [mutation, authorization, _] = filters["http_filters"]
    refused = manager["path_with_escaped_slashes_action"], manager["common_http_protocol_options"]
    assert refused == ("REJECT_REQUEST", {"headers_with_underscores_action": "REJECT_REQUEST"})
    for one in mutation["typed_config"]["mutations"]["request_mutations"]:
        if "remove" in one:
            client = without(client, one["remove"])
            continue
        header = one["append"]["header"]
        assert (header["value"], one["append"]["append_action"]) == ("%REQ(:PATH)%", "OVERWRITE_IF_EXISTS_OR_ADD")
        client = without(client, header["key"]) | {header["key"]: uri}
    config = authorization["typed_config"]
    allowed = ["host", "authorization", *(pattern["exact"] for pattern in config["allowed_headers"]["patterns"])]
    sent = {name: value for name in allowed if (value := named(client, name)) is not None} | {"content-length": "0"}
    service = config["http_service"]
    for added in service["authorization_request"]["headers_to_add"]:
        sent = without(sent, added["key"]) | {added["key"]: added["value"].replace("mk_...", key)}
    assert config["failure_mode_allow"] is False
    return method, service["path_prefix"] + uri, sent


PROXIES = {"traefik": traefik, "envoy": envoy}


@pytest.fixture(scope="module")
def stage(migrated: None) -> Iterator[tuple[str, World]]:
    """The platform's URL, and a world with routes."""
    reset()
    world = build()
    for path, tools in [("/mcp", ["memory.recall", "memory.capture"]), ("/memories/*", ["memory.recall"]),
                        ("/memories/secret", ["memory.capture"])]:  # fmt: skip
        Route.objects.create(backend=world.backend, path=path, tools=tools)
    with served.platform() as url:
        yield url, world
    process.stop_recorder()


def replay(
    stage: tuple[str, World], kind: str, uri: str, method: str = "GET", **more: str
) -> tuple[int, Headers]:  # fmt: skip
    """Send what the proxy would send for a client's request."""
    url, world = stage
    verb, path, headers = PROXIES[kind](method, uri, CLIENT | {"Authorization": f"Bearer {token()}"} | more, world.key)
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    try:
        connection.putrequest(verb, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {**without(headers, "host"), "Host": "127.0.0.1"}.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}
    finally:
        connection.close()


@pytest.mark.parametrize("kind", PROXIES)
def test_a_request_is_answered_by_its_path_whatever_the_client_says(stage: tuple[str, World], kind: str) -> None:
    status, headers = replay(stage, kind, "/memories/8?q=%2F")
    assert (status, headers["x-muniment-tool"], headers["x-muniment-client"]) == (200, "memory.recall", "claude")
    assert headers["x-muniment-record"] == str(Record.objects.filter(type="decision").latest("index").pk)
    for uri in ("/memories/secret", "/memories/%73ecret"):
        status, headers = replay(stage, kind, uri)
        assert status == 403 and headers["x-muniment-uid"] == ""
        assert Record.objects.filter(type="decision").latest("index").tool == "memory.capture"
    for uri in ("/memories/x%2Fy", "/memories//7", "/memories/../memories/7", "/memories/Secret", "/"):
        assert replay(stage, kind, uri)[0] == 403
    assert replay(stage, kind, "/memories/7", "DELETE")[0] == 200  # the route is for any method


@pytest.mark.parametrize("kind", PROXIES)
def test_the_client_gets_the_challenge(stage: tuple[str, World], kind: str) -> None:
    status, headers = replay(stage, kind, "/mcp", "POST", Authorization="Basic YTpi")
    assert status == 401 and 'scope="memory:read memory:write"' in headers["www-authenticate"]
    assert replay(stage, kind, "/mcp", "POST")[0] == 403


def test_a_traefik_without_a_list_of_headers_is_refused(stage: tuple[str, World], monkeypatch: Any) -> None:
    """As every Traefik that is set up as its documentation begins: all headers of the client are passed on."""
    document = (DOCS / "traefik.md").read_text()
    every = "".join(f"          - {name}\n" for name in CLIENT if name != "Host")
    listed = re.sub(r"(authRequestHeaders:\n)(?:          - .*\n)+", rf"\1{every}          - Authorization\n", document)
    assert listed != document
    monkeypatch.setattr(Path, "read_text", lambda _: listed)
    status, headers = replay(stage, "traefik", "/memories/7")
    assert status == 403 and "www-authenticate" not in headers
