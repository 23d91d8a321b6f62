"""Every address of the admin, found from its url patterns, with arguments that lead somewhere in a world that was
called."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.contrib import admin
from django.db import connection, models
from django.urls import URLPattern, URLResolver
from django.urls.resolvers import RoutePattern
from django.utils import timezone

from audit.models import Record, Sighting, Subject
from tests.staff import drained
from tests.world import World, build

PART = re.compile(r"<(?:(\w+):)?(\w+)>")
# What addresses outside of the models' own pages take, besides `record` and `uid`.
USUAL = {"kind": "client", "name": "claude", "app_label": "clients", "content_type_id": "1"}
BY_KIND = {"int": "1", "uuid": "018f0000-0000-7000-8000-000000000000"}


@dataclass(frozen=True)
class Address:
    """One address: the name of its pattern, the model whose page it is (None: of none), and a path."""

    name: str
    model: type[models.Model] | None
    path: str

    @property
    def verb(self) -> str:
        """`changelist`, `add`, `change`, `delete`, `history`, `act` for a page of a model, else its name."""
        prefix = "" if self.model is None else f"{self.model._meta.app_label}_{self.model._meta.model_name}_"
        return self.name.removeprefix(prefix)


def called() -> World:
    """The usual world, where a call was allowed, one refused, and a client seen that nobody registered."""
    made = build()
    made.verify()
    made.verify(tool="nope")
    drained()
    Sighting.objects.get_or_create(
        kind="client", source="https://id.example/", name="stranger", defaults={"last_seen": timezone.now()}
    )
    return made


def addresses() -> list[Address]:
    """All of them, each once for each action where it takes one; of a world that was called."""
    record, user = Record.objects.filter(type="decision")[0], Subject.objects.all()[0]
    known = {"record": str(record.id), "uid": user.uid}
    found = [*_below(admin.site.get_urls(), "/admin/", known)]
    return [*{address.path: address for address in found}.values()]


def _below(patterns: list[Any], prefix: str, known: dict[str, str]) -> Iterator[Address]:
    for pattern in patterns:
        if not isinstance(pattern.pattern, RoutePattern):  # the two that Django writes as regular expressions
            yield Address(
                pattern.name or "catch_all", None, f"{prefix}{'clients' if pattern.name else 'nothing/here'}/"
            )
            continue
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _below(pattern.url_patterns, route, known)
        elif isinstance(pattern, URLPattern):
            yield from _filled(pattern.name or "", route, known)


def _filled(name: str, route: str, known: dict[str, str]) -> Iterator[Address]:
    model = next((m for m in admin.site._registry if route.startswith(_home(m))), None)
    one = None if model is None else model._default_manager.order_by("pk").first()
    values = USUAL | known | ({} if one is None else {"object_id": str(one.pk)})
    names: list[str] = []
    if model is not None and "<slug:action>" in route:
        names = [action.name for action in getattr(admin.site._registry[model], "can_act", ())]
    for action in names or ["x"]:
        filled = values | {"action": action}
        yield Address(name, model, PART.sub(lambda m, v=filled: v.get(m[2]) or BY_KIND.get(m[1] or "str", "x"), route))  # type: ignore[misc]


def _home(model: type[models.Model]) -> str:
    return f"/admin/{model._meta.app_label}/{model._meta.model_name}/"


def contents() -> dict[str, str]:
    """A digest of each table: what a row says, in no order."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
            " AND NOT relispartition"
        )
        tables = sorted(name for (name,) in cursor.fetchall())
        found = {}
        for table in tables:
            cursor.execute(f'SELECT count(*), md5(string_agg(t::text, chr(10) ORDER BY t::text)) FROM "{table}" t')
            found[table] = str(cursor.fetchone())
    return found
