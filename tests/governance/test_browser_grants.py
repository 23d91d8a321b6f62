"""Granting, asking and approving in a real browser: the sentence, what it would change, the second person, the very
next call, the history."""

import time
from datetime import timedelta

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.test import Client as HttpClient
from django.utils import timezone

from audit.recent_sign_in import SIGNED_IN_AT
from clients import grants
from clients.grants import Actor
from clients.models import AccessRequest, Client, Grant, OAuthClientId
from governance.roles import APPROVER, MANAGER
from tests.browser import Visitor
from tests.staff import drained, signed_in
from tests.world import World, build, token
from tools.models import Scope, Tool

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
OPERATOR = Actor("command:test", "policy file")


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """Writing is sensitive; nothing is written while no user is present."""
    # Playwright's synchronous API runs an event loop in this thread, which Django takes for asynchronous code.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    made = build()
    Scope.objects.filter(name="memory:write").update(sensitive=True)
    chatgpt = Client.objects.create(slug="chatgpt", name="ChatGPT", kind="chatgpt")
    OAuthClientId.objects.create(client=chatgpt, issuer_id=1, oauth_id="chatgpt-app")
    forget = Tool.objects.create(backend=made.backend, name="memory.forget", access="destructive", status="active")
    forget.scopes.add(Scope.objects.create(name="memory:forget", description="Forget what was captured"))
    write = Scope.objects.get(name="memory:write")
    grants.create(
        actor=OPERATOR, reason="Nothing is written while no user is present", client=None, scopes=[write],
        effect="deny", modes=["background"],
    )  # fmt: skip
    soon = timezone.now() + timedelta(days=6)
    grants.create(actor=OPERATOR, reason="trial", client=chatgpt, scopes=[write], effect="flag", expires_at=soon)
    return made


def enter(visitor: Visitor, name: str, role: str) -> None:
    """As a member of staff with this role, who has just signed in."""
    user, new = get_user_model().objects.get_or_create(
        username=name, defaults={"is_staff": True, "first_name": name.capitalize()}
    )
    if new:
        user.groups.add(Group.objects.get(name=role))
    http: HttpClient = signed_in(user)
    session = http.session
    session[SIGNED_IN_AT] = int(time.time())
    session.save()
    cookie = http.cookies[settings.SESSION_COOKIE_NAME].value
    visitor.page.context.clear_cookies()
    visitor.page.context.add_cookies([{"name": settings.SESSION_COOKIE_NAME, "value": cookie, "url": visitor.url}])


def calls(world: World) -> None:
    """What Claude tries: recalling, which it may, and capturing, which it may not."""
    for number in range(24):
        world.verify(token=token(sub=f"user{number % 7}"))
        world.verify("memory.capture", token=token(sub=f"user{number % 5}"))
    for _ in range(6):
        world.verify("memory.capture", token=token(sub="user1"), agent={"mode": "background"})
        world.verify("memory.capture", token=token(sub="user3", client="chatgpt-app"))


def test_asked_approved_allowed_and_what_it_would_change_in_sight(world: World, visitor: Visitor) -> None:
    calls(world)
    page = visitor.page
    enter(visitor, "mara", MANAGER)
    visitor.go("/admin/clients/grant/add/?client=claude&scope=memory:write")
    assert page.get_by_label("memory:write").is_checked()
    visitor.shot("grant-form")
    page.get_by_label("because").fill("pilot with 40 users")
    visitor.follow(page.get_by_role("button", name="See what would change"))
    assert page.get_by_text("24 calls would turn from refused to allowed, of 5 users").is_visible()
    visitor.shot("grant-preview-sensitive")
    visitor.follow(page.get_by_role("button", name="Ask for it"))
    assert page.get_by_text("Nothing changes before a second person approves it").is_visible()
    visitor.shot("request-own")
    assert world.verify("memory.capture")["reason"] == "not_granted"

    enter(visitor, "anna", APPROVER)
    visitor.go("/admin/clients/accessrequest/")
    visitor.shot("requests")
    visitor.follow(page.get_by_role("link", name="Claude may use memory:write for everyone"))
    visitor.shot("request")
    visitor.follow(page.get_by_role("button", name="Reject"))
    assert page.get_by_text("Say why, for who asked.").is_visible()
    visitor.shot("request-error")
    page.get_by_label("Why").fill("fine for a month")
    page.get_by_label("in 30 days").check()
    visitor.follow(page.get_by_role("button", name="Approve"))
    assert world.verify("memory.capture")["decision"] == "allow"
    drained()
    visitor.go(f"/admin/clients/grant/{Grant.objects.latest('pk').pk}/change/")
    assert page.get_by_text("Made by Anna").is_visible()
    visitor.shot("grant")
    visitor.go(f"/admin/clients/accessrequest/{AccessRequest.objects.get().pk}/change/")
    visitor.shot("request-approved")
    visitor.go("/admin/clients/accessrequest/")
    visitor.shot("requests-empty")
    assert visitor.complaints == []


def test_granted_at_once_extended_and_revoked_with_what_relies_on_it(world: World, visitor: Visitor) -> None:
    calls(world)
    page = visitor.page
    enter(visitor, "mara", MANAGER)
    visitor.go("/admin/clients/grant/add/?client=claude&scope=memory:read&tenant=acme&mode=api")
    page.get_by_label("because").fill("trial in one tenant")
    visitor.follow(page.get_by_role("button", name="See what would change"))
    visitor.shot("grant-preview-odd")
    visitor.follow(page.get_by_role("button", name="Grant"))
    assert page.get_by_text("tick the box").is_visible()
    visitor.follow(page.get_by_role("button", name="Change the sentence"))
    visitor.shot("grant-form-narrowed")
    page.get_by_label("only in the tenant").fill("")
    page.get_by_label("api").uncheck()
    visitor.follow(page.get_by_role("button", name="See what would change"))
    assert page.get_by_text("says the same and is active").is_visible()
    visitor.shot("grant-form-duplicate")
    page.get_by_label("memory:read").first.uncheck()
    page.get_by_label("memory:forget").check()
    visitor.follow(page.get_by_role("button", name="See what would change"))
    visitor.shot("grant-preview")
    visitor.follow(page.get_by_role("button", name="Grant"))
    assert page.get_by_role("heading", name="Claude may use memory:forget for everyone").is_visible()
    assert world.verify("memory.forget", token=token(scope="memory:forget"))["decision"] == "allow"

    visitor.go("/admin/clients/grant/")
    visitor.shot("grants")
    visitor.follow(page.get_by_role("link", name="End soon"))
    visitor.shot("grants-soon")
    visitor.follow(page.get_by_role("link", name="ChatGPT may use memory:write"))
    visitor.follow(page.get_by_role("link", name="Extend…"))
    visitor.shot("grant-extend-sensitive")
    page.get_by_label("Reason").fill("it works")
    visitor.follow(page.get_by_role("button", name="Ask for it"))
    assert AccessRequest.objects.get().extends is not None
    visitor.go(f"/admin/clients/grant/{world.grant.pk}/change/")
    visitor.follow(page.get_by_role("link", name="Revoke…"))
    assert page.get_by_text("Claude can no longer call memory.recall").is_visible()
    visitor.shot("grant-revoke")
    page.get_by_label("Reason").fill("the pilot is over")
    visitor.follow(page.get_by_role("button", name="Revoke"))
    assert world.verify()["reason"] == "not_granted"
    visitor.go("/admin/access/ask/")
    visitor.shot("ask-form")
    assert visitor.complaints == []
