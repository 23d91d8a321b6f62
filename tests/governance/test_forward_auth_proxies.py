"""A real nginx and a real Caddy, set up as docs/integrations say, before a real backend, ask a real web process."""

import http.client
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from audit.models import Record
from clients.models import Issuer, IssuerBinding, KeySet
from tests.clients.proving import holder
from tests.live import Web, free_port, until, web
from tests.reset import reset
from tests.world import World, build, token
from tools.models import BackendMark, Route

DOCS = Path(__file__).resolve().parents[2] / "docs/integrations"
NGINX = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr error; %s
events { worker_connections 64; }
http {
    access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u;
    scgi_temp_path s; include server.conf;
}
"""
CADDY = "{\n\tadmin off\n\tauto_https off\n}\n"
OUTAGE = {"nginx": 500, "caddy": 502}  # what each makes of a platform that does not answer
ADDRESSES = {
    "nginx": {"listen 8080;": "listen 127.0.0.1:{port};", "Host muniment.example;": "Host 127.0.0.1;"},
    "caddy": {"inner.example {": "http://127.0.0.1:{port} {{", "Host muniment.example": "Host 127.0.0.1"},
}


def program(name: str) -> str | None:
    """Where it is, if it is installed; Debian has some of them where only root looks."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")


class Inner(BaseHTTPRequestHandler):
    """A backend that says what it was asked."""

    seen: list[tuple[str, str, list[tuple[str, str]]]] = []

    def answer(self) -> None:
        """200, and the body back."""
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.seen.append((self.command, self.path, self.headers.items()))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@dataclass
class Stage:
    """A proxy of a `kind` at `port`, what stands behind it, and where it writes what goes wrong."""

    kind: str
    port: int
    world: World
    web: Web
    log: Path

    def call(
        self, path: str, method: str = "GET", bearer: str | None = "", body: bytes = b"", headers: Any = ()
    ) -> tuple[int, dict[str, str], bytes]:  # fmt: skip
        """One request of a client, its headers as they are; the backend's memory is emptied before it."""
        Inner.seen.clear()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            sent = [("Accept", "*/*"), ("User-Agent", "Example/1"), ("Content-Length", str(len(body))), *headers]
            if bearer is not None:
                sent.append(("Authorization", f"Bearer {bearer or token()}"))
            for name, value in sent:
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, {n.lower(): v for n, v in response.getheaders()}, response.read()
        finally:
            connection.close()


def configuration(kind: str, port: int, inner: int, platform: int) -> str:
    """What the document has, with the addresses of the test."""
    [block] = re.findall(rf"^```{kind}\n(.*?)^```$", (DOCS / f"{kind}.md").read_text(), re.S | re.M)
    for given, here in ADDRESSES[kind].items():
        assert block.count(given) == 1, given
        block = block.replace(given, here.format(port=port))
    assert "127.0.0.1:9000" in block and "127.0.0.1:8000" in block
    return str(block).replace("127.0.0.1:9000", f"127.0.0.1:{inner}").replace("127.0.0.1:8000", f"127.0.0.1:{platform}")


def command(kind: str, folder: Path, block: str, key: str) -> list[str]:
    """Write the files of a proxy; how it is started."""
    found = program(kind)
    assert found is not None
    if kind == "caddy":
        (folder / "Caddyfile").write_text(CADDY + block)
        return [found, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    (folder / "server.conf").write_text(block)
    (folder / "muniment-key.conf").write_text(f"proxy_set_header X-Muniment-Key {key};\n")
    (folder / "nginx.conf").write_text(NGINX % ("user root;" if folder.owner() == "root" else ""))
    return [found, "-e", "stderr", "-p", str(folder), "-c", "nginx.conf"]


@contextmanager
def proxy(kind: str, port: int, folder: Path, block: str, key: str) -> Iterator[Path]:
    """The proxy while it runs; the path of its log."""
    environment = os.environ | {"MUNIMENT_KEY": key, "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(command(kind, folder, block, key), env=environment, stdout=log, stderr=log)
    try:
        until(lambda: listening(port) or running.poll() is not None, 60)
        assert running.poll() is None, (folder / "log").read_text()
        yield folder / "log"
    finally:
        running.terminate()
        running.wait(30)


@contextmanager
def inner() -> Iterator[int]:
    """The backend's port, while it runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Inner)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def stage(
    request: pytest.FixtureRequest, migrated: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:  # fmt: skip
    """Everything, started once for each proxy."""
    kind: str = request.param
    if program(kind) is None:
        pytest.skip(f"there is no {kind} (Debian: apt-get install nginx-light caddy)")
    reset()
    world, port = build(), free_port()
    for path, tools in [("/mcp", ["memory.recall", "memory.capture"]), ("/memories/*", ["memory.recall"]),
                        ("/memories/secret", ["memory.capture"])]:  # fmt: skip
        Route.objects.create(backend=world.backend, path=path, tools=tools)
    with inner() as behind, web(workers=1) as [server]:
        block = configuration(kind, port, behind, server.port)
        with proxy(kind, port, tmp_path_factory.mktemp(kind), block, world.key) as log:
            yield Stage(kind, port, world, server, log)


def listening(port: int) -> bool:
    """Whether somebody answers there."""
    try:
        http.client.HTTPConnection("127.0.0.1", port, timeout=1).connect()
    except OSError:
        return False
    return True


def test_an_allowed_request_reaches_the_backend_with_who_it_is(stage: Stage) -> None:
    forged = [("X-Muniment-Uid", "usr_forged"), ("x-muniment-tenant", "forged"), ("X-Muniment-Tool", "a"),
              ("X_Muniment_Uid", "usr_forged"), ("X-Muniment-Key", "mk_forged"), ("X-Muniment-Assertion", "forged"),
              ("X-Muniment-Proxy", "envoy")]  # fmt: skip
    status, headers, body = stage.call("/memories/7?q=caf%C3%A9", "POST", body=b"hello", headers=forged)
    assert (status, body) == (200, b"hello")
    [(method, path, seen)] = Inner.seen
    assert (method, path) == ("POST", "/memories/7?q=caf%C3%A9")
    record = Record.objects.filter(type="decision").latest("index")
    told = {name.lower(): value for name, value in seen if "muniment" in name.lower() and value}
    assert told == {
        "x-muniment-uid": record.subject, "x-muniment-client": "claude", "x-muniment-tool": "memory.recall",
        "x-muniment-scopes": "memory:read", "x-muniment-record": str(record.pk),
    }  # fmt: skip
    sent = json.dumps(seen)
    assert stage.world.key not in sent and "forged" not in sent and "eyJhbGci" not in sent
    assert not any("muniment" in name for name in headers)


def test_without_a_token_the_client_is_told_where_to_sign_in(stage: Stage) -> None:
    status, headers, _ = stage.call("/mcp", "POST", bearer=None, body=b"{}")
    assert status == 401 and not Inner.seen
    assert headers["www-authenticate"] == (
        'Bearer scope="memory:read memory:write", '
        'resource_metadata="https://inner.example/.well-known/oauth-protected-resource/mcp"'
    )
    status, _, _ = stage.call("/.well-known/oauth-protected-resource/mcp", bearer=None)
    assert status == 200 and Inner.seen[0][1] == "/.well-known/oauth-protected-resource/mcp"


def test_a_denial_reaches_the_client_with_its_challenge(stage: Stage) -> None:
    status, headers, _ = stage.call("/memories/secret", bearer=token(scope="memory:read"))
    assert status == 403 and not Inner.seen
    assert 'error="insufficient_scope"' in headers["www-authenticate"] and "memory:write" in headers["www-authenticate"]
    status, headers, _ = stage.call("/memories/secret")
    assert status == 403 and "www-authenticate" not in headers and not Inner.seen


def test_a_bound_token_is_served_with_its_proof_once_and_nonces_reach_the_client(stage: Stage) -> None:
    alice = holder()
    text = token(cnf={"jkt": alice.jkt})

    def call(**claims: Any) -> tuple[int, Any]:
        proof = alice.proof(text, "GET", "https://inner.example/memories/7", **claims)
        headers = [("Authorization", f"DPoP {text}"), ("DPoP", proof)]
        return stage.call("/memories/7?q=1", bearer=None, headers=headers)[:2]

    assert [call(jti="once")[0], call(jti="once")[0]] == [200, 401]
    assert not Inner.seen
    assert stage.call("/memories/7", bearer=text)[0] == 401 and not Inner.seen
    binding = IssuerBinding.objects.create(issuer=Issuer.objects.get(), require="", dpop_nonce=True)
    try:
        status, headers = call()
        assert status == 401 and 'DPoP error="use_dpop_nonce"' in headers["www-authenticate"]
        assert call(nonce=headers["dpop-nonce"])[0] == 200
    finally:
        binding.delete()


@pytest.mark.parametrize(
    "path", ["/", "/memories", "/memories/Secret", "/memories//secret", "/memories/./secret", "/memories/x/../secret",
             "/memories/%2e%2e/memories/secret", "/memories/%73ecret", "/memories/secret%2f", "/memories/secret;x",
             "/mcp/../memories/7", "/.well-known/oauth-protected-resource/mcp/../../../memories/secret", "//memories/7",
             "/memories/x%00", "/muniment", "/.well-known/oauth-protected-resource/%6dcp/x"]
)  # fmt: skip
def test_no_other_path_reaches_the_backend(stage: Stage, path: str) -> None:
    status, _, _ = stage.call(path)
    assert status in (400, 403, 404) and not Inner.seen


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-Original-URI", "/memories/7"), ("X_Original_URI", "/memories/7"), ("X-Original_URI", "/memories/7"),
     ("X-Forwarded-Uri", "/memories/7"), ("X_Forwarded_Uri", "/memories/7"), ("X-Forwarded_Uri", "/memories/7"),
     ("X_FORWARDED_URI", "/memories/7"), ("X-Original-URL", "/memories/7"), ("X_Muniment_Proxy", "traefik"),
     ("X-Muniment-Proxy", "traefik"), ("X-Original-Method", "GET"), ("X-Muniment-Status", "200")],
)  # fmt: skip
def test_a_client_does_not_choose_the_route_by_a_header(stage: Stage, name: str, value: str) -> None:
    status, _, _ = stage.call("/memories/secret", headers=[(name, value), ("X-Forwarded-Method", "GET")])
    assert status == 403 and not Inner.seen
    # nginx does not pass it on; of Caddy, which does, it is refused.
    status, _, _ = stage.call("/memories/7", headers=[("X-Original-URL", "/memories/secret")])
    assert status == {"nginx": 200, "caddy": 403}[stage.kind] and "secret" not in json.dumps(Inner.seen)


def test_the_tool_that_an_mcp_client_names(stage: Stage) -> None:
    mcp = [("Mcp-Protocol-Version", "2026-07-28"), ("Mcp-Method", "tools/call"), ("Mcp-Name", "memory.recall")]
    assert stage.call("/mcp", "POST", headers=mcp)[0] == 403
    mark = BackendMark.objects.create(backend=stage.world.backend, mark="enforces_mcp_name")
    try:
        assert stage.call("/mcp", "POST", headers=mcp)[0] == 200
        # Two of one name: what the backend gets is one of them, and that is what was asked about.
        assert stage.call("/mcp", "POST", headers=[*mcp, ("Mcp-Name", "memory.capture")])[0] in (200, 403)
        names = [value for _, _, seen in Inner.seen for name, value in seen if name.lower() == "mcp-name"]
        assert names in ([], ["memory.recall"])
        assert stage.call("/mcp", "POST", headers=[*mcp[:2], ("Mcp_Name", "memory.recall")])[0] == 403
    finally:
        mark.delete()


def test_an_outage_of_the_issuer_is_no_denial_to_the_client(stage: Stage) -> None:
    fetched = KeySet.objects.get().fetched_at
    KeySet.objects.update(fetched_at=None)
    Route.objects.create(backend=stage.world.backend, path="/other", tools=[])  # the policy is loaded anew
    try:
        status, headers, _ = stage.call("/memories/7", bearer=token("bob"))
        assert (status, headers["retry-after"]) == (503, "1") and not Inner.seen
    finally:
        KeySet.objects.update(fetched_at=fetched)
        Route.objects.filter(path="/other").delete()


def test_a_revoked_key_and_a_stopped_platform_let_nothing_through(stage: Stage) -> None:
    """Last: it stops the platform."""
    assert stage.call("/memories/7")[0] == 200
    Route.objects.filter(path="/memories/*").delete()
    assert stage.call("/memories/7")[0] == 403 and not Inner.seen
    stage.world.backend.keys.update(revoked_at="2026-01-01T00:00:00Z")
    status, headers, _ = stage.call("/mcp", "POST", bearer=None)
    assert status == 403 and "www-authenticate" not in headers and not Inner.seen
    stage.web.kill()
    assert stage.call("/mcp", "POST")[0] == OUTAGE[stage.kind] and not Inner.seen
    log = stage.log.read_text()
    assert stage.world.key not in log and "eyJhbGci" not in log
