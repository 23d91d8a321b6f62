"""The navigation: by task, only what the viewer may see, with what waits, and where one is."""

import re
import time

import pytest
from django.test import Client as HttpClient
from django.urls import reverse

from audit import inbox
from audit.models import Sighting
from governance import navigation
from tests.staff import administrator, member
from tests.world import World, build, token


@pytest.fixture
def world(db: None) -> World:
    return build()


def seen() -> None:
    """Wait for the inbox to have what was named: a process writes its counts now and then."""
    inbox.flush()
    until = time.monotonic() + 30
    while not Sighting.objects.exists() and time.monotonic() < until:
        time.sleep(0.05)


def labels(http: HttpClient, path: str = "/admin/") -> list[str]:
    return [link.label for _, links in http.get(path).context["navigation"] for link in links]


def test_every_line_leads_to_a_page(world: World) -> None:
    http = administrator()
    for label, route, _ in navigation.lines():
        assert http.get(reverse(route)).status_code == 200, label


def test_an_administrator_has_every_line_in_its_order(world: World) -> None:
    assert labels(administrator()) == [label for label, _, _ in navigation.lines()]


def test_each_sees_only_what_they_may(world: World) -> None:
    assert labels(member("noor")) == [label for label, _, permission in navigation.lines() if permission is None]
    found = labels(member("vera", "clients.view_grant"))
    assert {"Grants", "Access matrix", "Can they?"} <= set(found)
    assert not {"Audit search", "Inbox", "Backend keys", "Staff"} & set(found)


def test_a_line_that_is_shown_can_be_opened(world: World) -> None:
    for label, route, permission in navigation.lines():
        if permission is not None:
            name = re.sub(r"\W", "", label).lower()
            assert member(name, permission).get(reverse(route)).status_code == 200, label
            assert member(f"no{name}").get(reverse(route)).status_code == 403, label


def test_what_waits_is_counted_for_those_who_see_it(world: World) -> None:
    world.verify(token=token(client="cursor"))
    seen()
    text = administrator().get("/admin/").content.decode()
    assert '<span class="n">1<span class="unseen"> waiting</span></span>' in text
    assert '<span class="n">' not in member("noor", "clients.view_grant").get("/admin/").content.decode()


def test_where_one_is_is_marked_and_named(world: World) -> None:
    http = administrator()
    for path, label in {
        "/admin/": "Home", "/admin/clients/grant/": "Grants", "/admin/clients/grant/add/": "Grants",
        "/admin/records/": "Audit search", "/reference": "API reference",
        f"/admin/tools/backend/{world.backend.pk}/change/": "Backends",
        "/admin/timeline/client/claude/": "Clients", "/admin/timeline/tool/inner/memory.recall/": "Tools",
    }.items():  # fmt: skip
        text = http.get(path).content.decode()
        assert len(re.findall('aria-current="page"', text)) == 1, path
        assert re.search(rf'aria-current="page">{re.escape(label)}', text), path
        assert f'Menu<span class="quiet"> · {label}</span>' in text


def test_counts_beyond_what_is_shown_are_capped() -> None:
    assert [navigation.capped(n) for n in (0, 7, 99, 100)] == ["", "7", "99", "99+"]
