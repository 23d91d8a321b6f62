"""A platform to measure: embedded servers, an empty database, web processes, a thousand users."""

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from governance import embedded

PORT = int(os.environ.get("MUNIMENT_BENCH_PORT", "8765"))
USERS = 1000
KEYS = ("DJANGO_SECRET", "WRITER_KEY", "ASSERTION_KEY", "KEY_ENCRYPTION_KEY", "PEPPER")


@contextmanager
def servers() -> Iterator[None]:
    """PostgreSQL (durable) and Redis in a folder of their own, and this process set up as a web process."""
    with tempfile.TemporaryDirectory(prefix="muniment-bench-") as folder:
        Path(folder).chmod(0o711)
        with embedded.start(Path(folder) / "var") as running:
            os.environ |= {
                "MUNIMENT_MODE": "demo",
                "MUNIMENT_PROCESS": "web",
                "MUNIMENT_VAR": folder,
                "MUNIMENT_PORT": str(PORT),
                "DATABASE_URL": running.database_url,
                "DATABASE_OWNER_URL": running.owner_url,
                "REDIS_URL": running.redis_url,
                "DJANGO_SETTINGS_MODULE": "bench.settings",
            }
            for name in KEYS:
                os.environ[f"MUNIMENT_{name}"] = base64.b64encode(secrets.token_bytes(32)).decode()
            import django

            django.setup()
            from django.core.management import call_command

            call_command("migrate", database="owner", verbosity=0)
            from audit.maintenance import make_partitions

            make_partitions()
            yield


@contextmanager
def web(processes: int = 2, threads: int = 16, log: Path | None = None) -> Iterator[None]:
    """The web processes, stopped at the end; what they say goes to `log`, where one is given."""
    command = [
        sys.executable, "-m", "granian", "--interface", "wsgi", "bench.wsgi:application", "--host", "127.0.0.1",
        "--port", str(PORT), "--no-ws", "--workers", str(processes), "--blocking-threads", str(threads),
    ]  # fmt: skip
    with ExitStack() as opened:
        told = opened.enter_context(log.open("ab")) if log else None
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=told)
    try:
        _wait(process)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _wait(process: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise SystemExit(f"the web process ended with {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the web process was not ready in 30 s")


def load(requests: list[dict[str, Any]], connections: int, seconds: float) -> dict[str, Any]:
    """One load, from a process of its own; fails when a request did."""
    lines = "\n".join(json.dumps(request) for request in requests)
    command = [sys.executable, "-m", "bench.load", str(PORT), str(connections), str(seconds)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, timeout=seconds + 60)
    outcome: dict[str, Any] = json.loads(done.stdout)
    if outcome["faults"]:
        raise SystemExit(f"{outcome['faults']} requests failed, the first: {outcome['fault']}")
    return outcome
