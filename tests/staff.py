"""Members of staff for tests of the admin, and waiting for the log to have what they did."""

import json
import time
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client as HttpClient

from audit.models import Head, Outbox, Record
from governance.process import recorder


def administrator(name: str = "mara") -> HttpClient:
    """A superuser's browser."""
    user = get_user_model().objects.create_superuser(name, "", "correct horse battery", first_name=name.capitalize())
    return signed_in(user)


def member(name: str, *permissions: str) -> HttpClient:
    """The browser of a member of staff with these permissions (`app.codename`)."""
    user = get_user_model().objects.create_user(name, "", "correct horse battery", is_staff=True)
    for permission in permissions:
        app, codename = permission.split(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    return signed_in(user)


def signed_in(user: Any) -> HttpClient:
    """A browser that is signed in as the user."""
    http = HttpClient()
    http.force_login(user)
    return http


def drained(seconds: float = 30.0) -> None:
    """Wait until everything in the outbox is in the log."""
    recorder()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        head = Head.objects.get()
        if head.drained == head.policy and not Outbox.objects.filter(record_index=None).exists():
            return
        time.sleep(0.02)
    raise AssertionError("the outbox was not drained in time")


def statement(record: Record) -> dict[str, Any]:
    """A record's statement."""
    found: dict[str, Any] = json.loads(bytes(record.statement))
    return found


def readable(said: dict[str, Any]) -> str:
    """A statement as text, but for its digests: those are random, and three letters of a name may stand in one."""
    return str(said | {"_sd": []})


def newest(kind: str) -> dict[str, Any]:
    """The statement of the newest record of a type, once the outbox is drained."""
    drained()
    return statement(Record.objects.filter(type=kind).latest("at"))
