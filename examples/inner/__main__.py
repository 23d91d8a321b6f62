"""`make inner`: the memory service beside a platform that `make run` started.

    python -m examples.inner

It gets a PostgreSQL of its own (under MUNIMENT_VAR), its tools and grants are added to the demo's policy, and it serves
until Ctrl-C. Exit status: 0 after Ctrl-C, 1 when something does not run, 2 when something must be done first.
"""

import http.client
import os
import secrets
import subprocess
import sys
from base64 import b64encode
from contextlib import ExitStack
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

import uvicorn

from examples.inner import database
from governance import devkeys, embedded
from governance.embedded_process import EmbeddedError

ROOT = Path(__file__).resolve().parents[2]
POLICY = Path(__file__).with_name("policy.yaml")
HELLO = """
Inner runs at {url}, guarded by {platform}.

  MCP (streamable HTTP), for Claude and ChatGPT   {resource}
  REST, for the iOS app                           {url}/memories
  Who may call, and with which scopes             {metadata}

Walk through it as Claude, ChatGPT and the iOS app, in another shell:

.venv/bin/python -m examples.inner.story

Ctrl-C stops it."""


class NotReady(Exception):
    """Something must be done first; the text says what."""


def port() -> int:
    """INNER_PORT, or ten above the platform's."""
    return int(os.environ.get("INNER_PORT") or int(os.environ.get("MUNIMENT_PORT") or 8000) + 10)


def resource() -> str:
    """The URL by which clients know the MCP server, and the audience of their tokens."""
    return f"http://127.0.0.1:{port()}/mcp"


def platform_url() -> str:
    """MUNIMENT_URL, or where `make run` serves."""
    return os.environ.get("MUNIMENT_URL") or f"http://127.0.0.1:{os.environ.get('MUNIMENT_PORT') or 8000}"


def is_ready(url: str) -> bool:
    """Whether the platform answers."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def manage(*arguments: str) -> str:
    """A command of manage.py, which joins the running instance; what it printed. NotReady with its one line."""
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        raise NotReady(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"{arguments[0]} failed")
    return done.stdout.strip()


def prepare_policy(folder: Path) -> str:
    """Add tools and grants to the policy, which is done once; the backend key, which is kept."""
    policy = folder / "policy.yaml"
    policy.write_text(Template(POLICY.read_text()).substitute(resource=resource()))
    manage("policy", "apply", str(policy))
    path = folder / "keys" / "backend_key"
    if path.exists() and path.read_text().split("_")[1] in manage("backend_key", "list", "inner"):
        return path.read_text()
    path.unlink(missing_ok=True)
    return devkeys.read_or_make(path, lambda: manage("backend_key", "create", "inner", "--label", "make inner"))


def new_root_key() -> str:
    """The key that wraps the users' keys: 32 bytes, base64."""
    return b64encode(secrets.token_bytes(32)).decode()


def settle(folder: Path, cleanup: ExitStack) -> None:
    """Everything that the server reads from its environment; what is set already is left so."""
    if not is_ready(platform_url()):
        raise NotReady(f"Muniment does not run at {platform_url()}: start it with `make run` in another shell")
    devkeys.private_directory(folder / "keys")
    if "MUNIMENT_KEY" not in os.environ:
        os.environ["MUNIMENT_KEY"] = prepare_policy(folder)
    if "INNER_DATABASE_URL" not in os.environ:
        servers = cleanup.enter_context(embedded.start(folder, redis=False))
        os.environ["INNER_DATABASE_URL"] = database.prepare(servers.superuser_url, folder / "keys")
    os.environ.setdefault("MUNIMENT_URL", platform_url())
    os.environ.setdefault("MUNIMENT_RESOURCE", resource())
    os.environ.setdefault("MUNIMENT_AUTHORIZATION_SERVERS", f"{platform_url()}/demo-issuer")
    os.environ.setdefault("MUNIMENT_SPOOL", str(folder / "spool"))
    os.environ.setdefault("INNER_ROOT_KEY", devkeys.read_or_make(folder / "keys" / "root", new_root_key))


def main() -> int:
    """Settle, serve, stop."""
    try:
        with ExitStack() as cleanup:
            settle(embedded.make_var(Path(os.environ.get("MUNIMENT_VAR") or "var").resolve() / "inner"), cleanup)
            from examples.inner.server import app  # reads what was settled

            url, metadata = f"http://127.0.0.1:{port()}", "/.well-known/oauth-protected-resource/mcp"
            told = {"url": url, "platform": platform_url(), "resource": resource(), "metadata": url + metadata}
            sys.stdout.write(HELLO.format(**told).lstrip() + "\n")
            sys.stdout.flush()
            uvicorn.run(app, host="127.0.0.1", port=port(), log_level="warning", timeout_graceful_shutdown=5)
    except NotReady as error:
        sys.stderr.write(f"inner: {error}\n")
        return 2
    except (EmbeddedError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"inner: {error}\n")
        return 1
    except KeyboardInterrupt:
        pass
    sys.stdout.write("stopped\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
