"""For operators: is the process alive, and can it do its work?"""

from collections.abc import Callable

from django.db import Error, connection
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_safe
from redis import RedisError

from audit.log_health import pulse
from governance.idempotency import store
from governance.process import recorder
from governance.snapshot import snapshots


def _database() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT policy FROM audit_head")
        if cursor.fetchone() is None:
            raise Error("the head row is missing")


def _recorder() -> None:
    if not recorder().thread.is_alive():
        raise RuntimeError("the recorder has stopped")


def _policy() -> None:
    snapshots.at_head()


def _redis() -> None:
    store().ping()


def _log() -> None:
    if pulse().state != "sound":
        raise RuntimeError("the log has an alert, or is not sealed")


# Redis is needed by the workers and for idempotency keys, not for deciding and recording; the log may
# have an alert or no sealer, which the admin tells more of, and calls are recorded all the same.
NEEDED: dict[str, Callable[[], None]] = {"database": _database, "recorder": _recorder, "policy": _policy}
WANTED: dict[str, Callable[[], None]] = {"redis": _redis, "log": _log}


def _works(check: Callable[[], None]) -> bool:
    try:
        check()
    except (Error, RedisError, RuntimeError, OSError):
        return False
    return True


@require_safe
def livez(request: HttpRequest) -> JsonResponse:
    """The process answers."""
    return JsonResponse({"status": "ok"})


@require_safe
def readyz(request: HttpRequest) -> JsonResponse:
    """200 when calls can be verified, else 503; says which part does not work, and no more."""
    needed = {name: _works(check) for name, check in NEEDED.items()}
    parts = needed | {name: _works(check) for name, check in WANTED.items()}
    words = {name: "ok" if works else "away" for name, works in parts.items()}
    return JsonResponse({"status": "ok" if all(needed.values()) else "unavailable", **words},
                        status=200 if all(needed.values()) else 503)  # fmt: skip
