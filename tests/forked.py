"""`python manage.py ...` for tests that run it in many environments: each run is a fork of one process that has loaded
libraries already, none of ours and none that reads settings. They are half of what a start takes."""

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 60  # for one run
LIBRARIES = (
    "celery.app.base", "celery.schedules", "cron_descriptor", "cryptography.hazmat.primitives.asymmetric.ed25519",
    "cryptography.hazmat.primitives.ciphers.aead", "django.contrib.admin", "django.core.management",
    "django.core.servers.basehttp", "django.db.backends.postgresql.base", "django.db.migrations.executor",
    "django.db.models", "django.template.defaulttags", "django.test", "django.urls", "django.views.static", "environ",
    "jinja2", "jwt", "kombu.entity", "msgspec", "psycopg", "pygments.formatters", "redis", "requests", "uritemplate",
    "whitenoise.base", "yaml",
)  # fmt: skip


def manage(*arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """One run in this environment: its status and what it said."""
    helper = _helper()
    assert helper.stdin is not None and helper.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder, name) for name in ("out", "err")]
        asked = {"arguments": arguments, "environment": dict(environment), "said": [str(path) for path in said]}
        helper.stdin.write(json.dumps(asked) + "\n")
        helper.stdin.flush()
        status = int(helper.stdout.readline())
        return subprocess.CompletedProcess(arguments, status, *(path.read_text() for path in said))


@cache
def _helper() -> "subprocess.Popen[str]":
    kept = {"PATH": os.environ["PATH"]}
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.forked"],
        cwd=ROOT,
        env=kept,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def end() -> None:
        assert started.stdin is not None
        started.stdin.close()
        started.wait(10)

    atexit.register(end)
    return started


def _run(arguments: list[str], environment: dict[str, str], said: list[str]) -> None:
    """In the child: be `python manage.py`."""
    signal.alarm(SECONDS)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = ["manage.py", *arguments], str(ROOT)
    runpy.run_path("manage.py", run_name="__main__")


def main() -> None:
    """Runs until nobody asks any more."""
    for library in LIBRARIES:
        import_module(library)
    zones = [ZoneInfo(name) for name in available_timezones()]  # a model of Celery beat reads them all
    assert zones
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(**json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
