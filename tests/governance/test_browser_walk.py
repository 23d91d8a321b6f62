"""Every page of the admin with the demo's data, and with names that fit nowhere: nothing serious for axe, no violation
of the Content-Security-Policy, nothing that scrolls sideways on a phone, nothing loaded from elsewhere. With
MUNIMENT_SHOTS=<folder> a picture of each is left there."""

import re
from collections.abc import Iterator
from datetime import timedelta
from itertools import chain
from pathlib import Path

import pytest
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.urls import reverse
from django.utils import timezone

from audit import rollups
from audit.models import DeadLetter, Record, Sighting, Stream, Subject
from clients import requests, reviews
from clients.buckets import MICROSECONDS, Bucket, Counted
from clients.limits import counter
from clients.models import (
    ClaimMapping,
    Client,
    ClientMetadata,
    Grant,
    Introspection,
    Issuer,
    IssuerBinding,
    Limit,
    OAuthClientId,
    ScimConnection,
    SignalStream,
)
from clients.proposals import Proposal
from governance import demo, navigation
from tests.audit.sealers import sealed, sealing
from tests.browser import PASSWORD, Visitor
from tests.governance import keeping_scene
from tests.world import World
from tools.models import Backend, Route, Scope, Tool

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
LONG = "The assistant of the department for exceptionally long names of things, third edition, EMEA and beyond"


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """An empty world, in which the browser's server can run; each test fills it as it needs."""
    # Playwright's synchronous API runs an event loop in this thread, which Django takes for asynchronous code.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    get_user_model().objects.create_superuser("mara", "", PASSWORD, first_name="Mara")
    return World("", Backend(), Client(), Grant())


def load_demo() -> None:
    """What the demo has, counted, with a request that waits and a review under way."""
    demo.key_file().unlink(missing_ok=True)
    demo.load()
    while rollups.count():
        pass
    users = get_user_model().objects
    noor = users.create_user("noor", "", PASSWORD, first_name="Noor", is_staff=True)
    claude, capture = Client.objects.get(slug="claude"), Scope.objects.get(name="memory:write")
    requests.ask(noor, Proposal("grant", "allow", claude, (capture,), days=30), "pilot with 40 users")
    mara = users.get(username="mara")
    reviews.start(client=Client.objects.get(slug="chatgpt"), scope=None, user=mara, reason="yearly review")
    stream("siem", place="https://siem.example/muniment", error="the receiver cannot be reached: Connection refused")
    published("https://claude.ai/oauth/mcp-oauth-client-metadata", "Claude")
    Subject.objects.filter(pk=Subject.objects.latest("pk").pk).update(deactivated_at=timezone.now())


def published(url: str, name: str, **more: str) -> None:
    """What a client's host says of it, which nobody approved yet."""
    ClientMetadata.objects.create(url=url, name=name, digest="a" * 64, fetched_at=timezone.now(), **more)


def stream(name: str, **more: str) -> None:
    """A stream that is failing, with a dead letter."""
    now, refused = timezone.now(), Record.objects.order_by("index")[0]
    Stream.objects.create(
        name=name, kind="webhook", next=9, sent=8, failures=3, seen_at=now, sent_at=now, tried_at=now, **more
    )
    words = "the receiver cannot work with what it gets (422)"
    DeadLetter.objects.create(stream=name, index=refused.index, record=refused.pk, words=words, at=now)


def long_names() -> None:
    """What staff and callers may choose to be as long as it may be, and stopped, so that every page tells of it."""
    client = Client.objects.create(slug="x" * 63, name=LONG)
    OAuthClientId.objects.create(client=client, issuer=Issuer.objects.get(), oauth_id="x" * 120)
    other = Client.objects.create(slug="z" * 63, name="z" * 120, status="suspended")
    url = "https://" + "h" * 60 + ".example/" + "c" * 170
    published(url, "z" * 120, uri="https://" + "u" * 480, error="e" * 240)
    OAuthClientId.objects.create(client=other, issuer=Issuer.objects.get(), oauth_id=url)
    backend = Backend.objects.create(slug="y" * 63, name=LONG, audiences=["https://example.com/" + "a" * 200])
    Route.objects.create(backend=backend, path=f"/{'r' * 250}/**", tools=["tool." + "t" * 110])
    scope = Scope.objects.create(name="scope:" + "z" * 110, description=LONG, sensitive=True)
    tool = Tool.objects.create(backend=backend, name="tool." + "t" * 110, access="read", status="active")
    tool.scopes.add(scope)
    ends = timezone.now() + timedelta(days=3)
    grant = Grant.objects.create(client=client, tool=tool, tenant="t" * 120, reason=LONG * 3, expires_at=ends)
    grant.scopes.add(scope)
    limit = Limit.objects.create(
        per="subject_client", count=10**9, period="day", client=client, tool=tool, tenant="t" * 120, reason=LONG * 3
    )
    counted = Counted("usr_" + "u" * 22 + " " + "x" * 63, "t" * 120, None)
    many = 10**9 * 4 // 5  # four fifths
    bucket = Bucket(limit.pk, limit.count, 86_400, limit.count, counted)
    now = int(timezone.now().timestamp() * MICROSECONDS)
    counter.store().set(bucket.key, f"{now} {now} {many}")
    counter.store().zadd(bucket.near_key, {counted.member: now + bucket.period})
    source, seen = "https://" + "i" * 200, timezone.now()
    Sighting.objects.create(kind="client", source=source, name="n" * 250, count=10**9, last_seen=seen)
    Sighting.objects.create(kind="tool", source=backend.slug, name="n" * 120, count=1, last_seen=seen)
    issuer_parts(Issuer.objects.get())
    ScimConnection.objects.create(name="x" * 63, issuer=Issuer.objects.get())
    SignalStream.objects.create(
        name="y" * 63,
        issuer=Issuer.objects.get(),
        transmitter="https://" + "t" * 240,
        audience="a" * 250,
        error="e" * 240,
    )
    stream("s" * 64, place="https://" + "h" * 240, error="e" * 240)


def issuer_parts(issuer: Issuer) -> None:
    """All that its page can hold."""
    ClaimMapping.objects.create(issuer=issuer, subject_claim="s" * 120, scope_claims=["c" * 120] * 2)
    Introspection.objects.create(
        issuer=issuer, endpoint="https://" + "e" * 240, client_id="c" * 250, error="e" * 240, failed_at=timezone.now()
    )
    IssuerBinding.objects.create(issuer=issuer, require="dpop")


def of_navigation() -> Iterator[tuple[str, str]]:
    """Name and path of home and of each line of the navigation; the reference is the same whatever there is, and as
    long as ten pages (see test_browser_home.py)."""
    yield "home", "/admin/"
    for label, route, _ in navigation.lines():
        if route == "reference":
            continue
        yield re.sub(r"\W+", "-", label.lower()).strip("-"), reverse(route)


def of_models(acts: int | None = None) -> Iterator[tuple[str, str]]:
    """The newest of each model of the admin, and what can be done to it, or the first of that: the pages are alike."""
    for model, page in admin.site._registry.items():
        prefix = f"{model._meta.app_label}_{model._meta.model_name}"
        one = model._default_manager.order_by("-pk").first()
        if one is not None:
            yield prefix, reverse(f"admin:{prefix}_change", args=[one.pk])
            for action in getattr(page, "can_act", ())[:acts]:
                yield f"{prefix}-{action.name}", reverse(f"admin:{prefix}_act", args=[one.pk, action.name])


def of_streams() -> Iterator[tuple[str, str]]:
    """Each stream's own page."""
    for number, name in enumerate(Stream.objects.values_list("name", flat=True), 1):
        yield f"stream-{number}", reverse("admin:stream", args=[name])


def of_evidence() -> Iterator[tuple[str, str]]:
    """Pages of records and people, and searches."""
    for decision in ("allow", "deny"):
        record = Record.objects.filter(type="decision", decision=decision).latest("at")
        yield f"record-{decision}", reverse("admin:record", args=[record.pk])
    for kind in ("policy", "outcome", "introspection", "ungoverned"):
        yield f"record-{kind}", reverse("admin:record", args=[Record.objects.filter(type=kind).latest("at").pk])
    search = Record.objects.filter(type="evaluation", decision=None).latest("at")
    yield "record-search", reverse("admin:record", args=[search.pk])
    asked = Record.objects.filter(type="evaluation", decision="deny").latest("at")
    yield "record-asked-no", reverse("admin:record", args=[asked.pk])
    yield "search-ungoverned", reverse("admin:records") + "?window=30d&type=ungoverned"
    yield "sightings", reverse("admin:audit_sighting_changelist")
    user = Subject.objects.latest("first_seen")
    yield "timeline-user", reverse("admin:timeline", args=["user", user.pk])
    yield "timeline-client", reverse("admin:timeline", args=["client", "claude"])
    yield "timeline-tool", reverse("admin:timeline", args=["tool", "inner/memory.recall"])
    yield "report-ask", reverse("admin:person_report", args=[user.pk])
    yield "home-30d", "/admin/?window=30d"
    yield "search-denied", reverse("admin:records") + "?window=30d&decision=deny"
    yield "search-nothing", reverse("admin:records") + "?window=1h&client=nobody"
    yield "matrix-user", f"{reverse('admin:access_matrix')}?subject={user.pk}"
    question = f"client=claude&tool=inner/memory.capture&subject={user.pk}"
    yield "explained", f"{reverse('admin:access_explain')}?{question}"


def of_forms() -> Iterator[tuple[str, str]]:
    """Forms that make something, and those about oneself: seen once, with the longest that they may offer."""
    for name in ("clients_grant", "clients_limit", "clients_client", "clients_issuer", "clients_review",
                 "clients_scimconnection", "clients_signalstream", "tools_tool", "tools_scope", "tools_backend",
                 "tools_backendkey", "governance_staffkey", "auth_user"):  # fmt: skip
        yield f"{name.partition('_')[2]}-add", reverse(f"admin:{name}_add")
    yield "issuer-preset", reverse("admin:clients_issuer_add") + "?preset=entra"
    yield "issuer-claims", reverse("admin:clients_issuer_claims", args=[Issuer.objects.latest("pk").pk])
    shown = ClientMetadata.objects.latest("pk")
    yield "client-published-approve", reverse("admin:client_published_approve", args=[shown.pk])
    known = OAuthClientId.objects.get(oauth_id=shown.url)
    yield "client-published", reverse("admin:clients_client_change", args=[known.client_id])
    suggestion = "?client=claude&scope=memory:write"
    yield "grant-suggested", reverse("admin:clients_grant_add") + suggestion
    yield "ask", reverse("admin:access_ask") + suggestion
    yield "retention-add", reverse("admin:retention_add")
    yield "retention-floors", reverse("admin:retention_floors")
    yield "password", reverse("admin:password_change")
    yield "sign-in-again", reverse("admin:sign_in_again") + "?next=/admin/"


def walk(visitor: Visitor, folder: Path, prefix: str, pages: Iterator[tuple[str, str]]) -> None:
    """Open every page and look at it; what is wrong with one is a complaint, so that the others are seen too."""
    asked: set[str] = set()
    visitor.page.on("request", lambda request: asked.add(request.url))
    with sealing(folder, page=512) as sealer:
        sealed(sealer)
        for name, path in pages:
            sealer.step()
            visitor.go(path)
            if (headings := visitor.page.locator("h1").count()) != 1:
                visitor.complaints.append(f"{name}: {headings} headings")
            try:
                visitor.shot(f"{prefix}{name}")
            except AssertionError as error:
                visitor.complaints.append(str(error))
    assert {"/".join(url.split("/")[:3]) for url in asked} == {visitor.url}
    assert visitor.complaints == []


def test_every_page_is_fit_to_be_seen_with_the_demos_data(world: World, visitor: Visitor, tmp_path: Path) -> None:
    load_demo()
    keeping_scene.make()
    visitor.sign_in()
    pages = chain(of_navigation(), of_evidence(), keeping_scene.pages(), of_streams(), of_models(1))
    walk(visitor, tmp_path, "", pages)


def test_every_page_is_fit_to_be_seen_with_names_that_fit_nowhere(
    world: World, visitor: Visitor, tmp_path: Path
) -> None:
    load_demo()
    long_names()
    keeping_scene.make(LONG)
    visitor.sign_in()
    pages = chain(of_navigation(), keeping_scene.pages(), of_streams(), of_models(), of_forms())
    walk(visitor, tmp_path, "long-", pages)


def test_every_page_is_fit_to_be_seen_with_nothing_in_it(world: World, visitor: Visitor, tmp_path: Path) -> None:
    visitor.sign_in()
    walk(visitor, tmp_path, "none-", of_navigation())
