"""What the supervisor runs and what each process is given: decided here, run in supervisor.py."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from governance import devkeys
from governance.embedded_redis import broker_url

URLS = ("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL")
MARK = "MUNIMENT_SUPERVISED"
WEB_ALONE = ("MUNIMENT_OIDC_CLIENT_SECRET", "MUNIMENT_METRICS_TOKEN")
# With credentials of other places: the worker's. Each process refuses to start with what is not its own.
WORKER_ALONE = ("MUNIMENT_DESTINATIONS", "MUNIMENT_STREAMS", "MUNIMENT_NOTIFY_WEBHOOK")


class PlanError(Exception):
    """The environment asks for something that cannot be; the text says what to change."""


@dataclass(frozen=True)
class Plan:
    """Where one instance lives and which servers it is to use; a URL that is None is to be embedded."""

    var: Path
    port: int
    web_processes: int
    database_url: str | None
    owner_url: str | None
    redis_url: str | None


@dataclass(frozen=True)
class Urls:
    """The servers that are used, ours or the operator's."""

    database: str
    owner: str
    redis: str


def read_plan(environment: Mapping[str, str]) -> Plan:
    """Read MUNIMENT_PORT, MUNIMENT_VAR, MUNIMENT_WEB_PROCESSES and the URLs. PlanError for what cannot be."""
    if environment.get("MUNIMENT_MODE", "demo") != "demo":
        raise PlanError("`make run` is for development (MUNIMENT_MODE=demo); production runs one unit per process")
    urls = {name: _value_or_file(environment, name) for name in URLS}
    if bool(urls["DATABASE_URL"]) != bool(urls["DATABASE_OWNER_URL"]):
        raise PlanError(
            "set both DATABASE_URL (the restricted role that serves) and DATABASE_OWNER_URL (the role that "
            "owns the tables), or neither, to have a PostgreSQL of our own"
        )
    return Plan(
        var=Path(environment.get("MUNIMENT_VAR") or "var").resolve(),
        port=_number(environment, "MUNIMENT_PORT", 8000, 65535),
        web_processes=_number(environment, "MUNIMENT_WEB_PROCESSES", 2, 64),
        database_url=urls["DATABASE_URL"],
        owner_url=urls["DATABASE_OWNER_URL"],
        redis_url=urls["REDIS_URL"],
    )


def _value_or_file(environment: Mapping[str, str], name: str) -> str | None:
    if value := environment.get(name):
        return value
    if not (path := environment.get(f"{name}_FILE")):
        return None
    try:
        return Path(path).read_text().strip() or None
    except OSError as error:
        raise PlanError(f"{name}_FILE cannot be read: {error.strerror}") from None


def _number(environment: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = environment.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= most):
        raise PlanError(f"{name} must be a number from 1 to {most}")
    return int(text)


def environment_for(
    process: str, plan: Plan, urls: Urls, inherited: Mapping[str, str], *, owner: bool
) -> dict[str, str]:
    """The environment of one process: its own keys and no others (DESIGN.md section 6, Keys).

    Only what makes or drops tables is given the owner's URL.
    """
    kept = {name: value for name, value in inherited.items() if not _is_secret(name, process)}
    given = {
        "MUNIMENT_MODE": "demo",
        "MUNIMENT_PROCESS": process,
        "MUNIMENT_PORT": str(plan.port),
        "MUNIMENT_VAR": str(plan.var),
        "DATABASE_URL": urls.database,
        "REDIS_URL": urls.redis,
        "CELERY_BROKER_URL": inherited.get("CELERY_BROKER_URL") or broker_url(urls.redis),
        "PYTHONUNBUFFERED": "1",
        MARK: str(plan.var),
    }
    if owner:
        given["DATABASE_OWNER_URL"] = urls.owner
    if not _value_or_file(inherited, "MUNIMENT_ANCHORS"):
        # Beside the database it shows what an anchor is, and protects nothing: a real one is somewhere else.
        given["MUNIMENT_ANCHORS"] = (plan.var / "anchor").as_uri()
    personal = inherited.get("MUNIMENT_EXPORT_PERSONAL", "").lower() in ("true", "on", "ok", "y", "yes", "1")
    return kept | given | devkeys.variables(plan.var / "keys", process, personal=personal)


def _is_secret(name: str, process: str) -> bool:
    base = name.removesuffix("_FILE")
    if base in WEB_ALONE:
        return process != "web"
    if base in WORKER_ALONE:
        return process != "worker"
    return base in URLS or base.removeprefix("MUNIMENT_") in devkeys.NAMES


def instance_lines(plan: Plan, urls: Urls) -> str:
    """The text of ``instance.env``, with which manage.py in a second shell joins this instance."""
    given = environment_for("manage", plan, urls, {}, owner=True)
    for name in (MARK, "MUNIMENT_PROCESS", "PYTHONUNBUFFERED"):  # such a command is not ours to stop
        del given[name]
    return "".join(f"{name}={value}\n" for name, value in given.items())


def web_command(plan: Plan) -> list[str]:
    """granian, WSGI; a worker that fails is started again, and granian gives up on a crash loop."""
    return [
        *(sys.executable, "-m", "granian", "--interface", "wsgi", "governance.wsgi:application"),
        *("--host", "127.0.0.1", "--port", str(plan.port), "--no-ws"),
        *("--workers", str(plan.web_processes), "--blocking-threads", "16"),
        *("--respawn-failed-workers", "--workers-kill-timeout", "10"),
    ]


def worker_command() -> list[str]:
    """The Celery worker: one task at a time is enough for development."""
    return [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "governance",
        "worker",
        "--concurrency",
        "1",
        "--loglevel",
        "INFO",
    ]


def seal_command() -> list[str]:
    """The sealer."""
    return manage_command("seal")


def beat_command(plan: Plan) -> list[str]:
    """Celery beat; the schedule is in the database, the file only remembers the last run where it is not."""
    schedule = str(plan.var / "celerybeat-schedule")
    return [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "governance",
        "beat",
        "--schedule",
        schedule,
        "--pidfile",
        "",
    ]


def manage_command(*arguments: str) -> list[str]:
    """One command of manage.py."""
    return [sys.executable, "manage.py", *arguments]
