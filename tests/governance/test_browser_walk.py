"""Every page of the admin with the demo's data, and with names that fit nowhere: nothing serious for axe, no violation
of the Content-Security-Policy, nothing that scrolls sideways on a phone, nothing loaded from elsewhere. With
MUNIMENT_SHOTS=<folder> a picture of each is left there."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.urls import reverse
from django.utils import timezone

from audit import rollups
from audit.models import Record, Sighting, Subject
from clients.models import Client, Grant
from governance import demo, navigation
from tests.audit.sealers import sealed, sealing
from tests.browser import PASSWORD, Visitor
from tests.world import World
from tools.models import Backend, Scope, Tool

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
LONG = "The assistant of the department for exceptionally long names of things, third edition, EMEA and beyond"


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """The demo's world and an administrator who may do everything; the login is that of the other tests."""
    # Playwright's synchronous API runs an event loop in this thread, which Django takes for asynchronous code.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    demo.key_file().unlink(missing_ok=True)
    demo.load()
    while rollups.count():
        pass
    get_user_model().objects.create_superuser("mara", "", PASSWORD, first_name="Mara")
    long_names()
    backend = Backend.objects.get(slug="inner")
    return World("", backend, Client.objects.get(slug="claude"), Grant.objects.order_by("pk")[0])


def long_names() -> None:
    """What staff and callers may choose to be as long as it may be."""
    client = Client.objects.create(slug="x" * 63, name=LONG)
    backend = Backend.objects.create(slug="y" * 63, name=LONG, audiences=["https://example.com/" + "a" * 200])
    scope = Scope.objects.create(name="scope:" + "z" * 110, description=LONG, sensitive=True)
    tool = Tool.objects.create(backend=backend, name="tool." + "t" * 110, access="read", status="active")
    tool.scopes.add(scope)
    ends = timezone.now() + timedelta(days=3)
    grant = Grant.objects.create(client=client, tool=tool, tenant="t" * 120, reason=LONG * 3, expires_at=ends)
    grant.scopes.add(scope)
    Sighting.objects.create(
        kind="client", source="https://" + "i" * 200, name="n" * 250, count=10**9, last_seen=timezone.now()
    )
    Sighting.objects.create(kind="tool", source=backend.slug, name="n" * 120, count=1, last_seen=timezone.now())


def pages() -> Iterator[tuple[str, str]]:
    """Name and path of every page that can be opened by its address."""
    yield "home", "/admin/"
    for label, route, _ in navigation.lines():
        yield re.sub(r"\W+", "-", label.lower()).strip("-"), reverse(route)
    for model, page in admin.site._registry.items():
        prefix = f"{model._meta.app_label}_{model._meta.model_name}"
        for number, one in enumerate(model._default_manager.order_by("-pk")[:2]):
            yield f"{prefix}-{number}", reverse(f"admin:{prefix}_change", args=[one.pk])
            for action in getattr(page, "can_act", ()) if number == 0 else ():
                yield f"{prefix}-{action.name}", reverse(f"admin:{prefix}_act", args=[one.pk, action.name])
    yield from details()


def details() -> Iterator[tuple[str, str]]:
    """Pages of one thing that is no model of the admin, and forms."""
    for name in ("clients_grant", "clients_client", "clients_issuer", "clients_review", "tools_tool", "tools_scope",
                 "tools_backend", "tools_backendkey", "auth_user"):  # fmt: skip
        yield f"{name}-add", reverse(f"admin:{name}_add")
    yield "ask", reverse("admin:access_ask")
    for decision in ("allow", "deny"):
        record = Record.objects.filter(type="decision", decision=decision).latest("at")
        yield f"record-{decision}", reverse("admin:record", args=[record.pk])
    for kind in ("policy", "outcome"):
        yield f"record-{kind}", reverse("admin:record", args=[Record.objects.filter(type=kind).latest("at").pk])
    user = Subject.objects.latest("first_seen")
    yield "timeline-user", reverse("admin:timeline", args=["user", user.pk])
    yield "timeline-client", reverse("admin:timeline", args=["client", "claude"])
    yield "timeline-tool", reverse("admin:timeline", args=["tool", "inner/memory.recall"])
    yield "person-report", reverse("admin:person_report", args=[user.pk])
    yield "home-30d", "/admin/?window=30d"
    yield "search-denied", reverse("admin:records") + "?window=30d&decision=deny"
    yield "search-empty", reverse("admin:records") + "?window=1h&client=nobody"
    yield "password", reverse("admin:password_change")
    yield "sign-in-again", reverse("admin:sign_in_again") + "?next=/admin/"


def test_every_page_is_fit_to_be_seen(world: World, visitor: Visitor, tmp_path: Path) -> None:
    asked: set[str] = set()
    visitor.page.on("request", lambda request: asked.add(request.url))
    visitor.sign_in()
    with sealing(tmp_path, page=512) as sealer:
        sealed(sealer)
        for name, path in pages():
            sealer.step()
            look(visitor, name, path)
    assert {"/".join(url.split("/")[:3]) for url in asked} == {visitor.url}
    assert visitor.complaints == []


def look(visitor: Visitor, name: str, path: str) -> None:
    """Open a page and take its picture; what is wrong with it is a complaint, so that the others are seen too."""
    visitor.go(path)
    if (headings := visitor.page.locator("h1").count()) != 1:
        visitor.complaints.append(f"{name}: {headings} headings")
    try:
        visitor.shot(name)
    except AssertionError as error:
        visitor.complaints.append(str(error))
