"""Coming in and going in a real browser: through a provider's own page and back, again, out; the pages of staff and
roles. Without one violation of the Content-Security-Policy."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Group, User

from governance import oidc_provider
from tests.browser import PASSWORD, Visitor
from tests.governance.idp import Idp, configure, running
from tests.world import World, build

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """A small world, a superuser, and somebody for each role."""
    # Playwright's synchronous API runs an event loop in this thread, which Django takes for asynchronous code.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    made = build()
    User.objects.create_superuser("mara", "", PASSWORD, first_name="Mara")
    for group in Group.objects.all():
        user = User.objects.create_user(f"one-{group.pk}", "", None, is_staff=True, first_name=f"Demo {group.name}")
        user.groups.add(group)
    return made


@pytest.fixture
def idp(world: World, settings: Any) -> Iterator[Idp]:
    """A provider with an administrator, and somebody who has no role."""
    oidc_provider.provider.cache_clear()
    with running() as made:
        configure(settings, made.issuer)
        settings.MUNIMENT_OIDC_NAME = "Example ID"
        made.people["ada"] = {"groups": ["admins", "compliance"], "given_name": "Ada", "family_name": "Byron"}
        made.people["nobody"] = {"groups": []}
        yield made


def test_staff_come_in_through_the_provider_again_and_out(world: World, visitor: Visitor, idp: Idp) -> None:
    page = visitor.page
    visitor.go("/admin/sign-in/again/")
    assert page.url.startswith(f"{visitor.url}/admin/login/")
    visitor.shot("sign-in")
    visitor.follow(page.get_by_role("link", name="Sign in with Example ID"))
    assert page.url.startswith(f"{idp.issuer}/authorize")
    visitor.follow(page.get_by_role("button", name="nobody"))
    assert page.get_by_role("alert").inner_text().startswith("None of your groups")
    visitor.shot("sign-in-refused")

    visitor.follow(page.get_by_role("link", name="Sign in with Example ID"))
    visitor.follow(page.get_by_role("button", name="ada"))
    assert page.url == f"{visitor.url}/admin/sign-in/again/", "where they wanted to go at first"
    visitor.shot("sign-in-again-provider")
    visitor.follow(page.get_by_role("link", name="Sign in again with Example ID"))
    assert "prompt=login" in page.url and "max_age=0" in page.url
    visitor.follow(page.get_by_role("button", name="ada"))
    assert page.url == f"{visitor.url}/admin/"

    ada = User.objects.get(first_name="Ada")
    visitor.go("/admin/auth/user/")
    visitor.shot("staff")
    visitor.go(f"/admin/auth/user/{ada.pk}/change/")
    assert page.get_by_text("By their groups at the identity provider").is_visible()
    visitor.shot("staff-one-provider")
    visitor.go("/admin/auth/group/")
    visitor.shot("roles")
    visitor.follow(page.get_by_role("button", name="Sign out"))
    visitor.go("/admin/login/")
    assert page.get_by_role("heading", name="Muniment").is_visible()
    assert visitor.complaints == []


def test_local_accounts_are_added_changed_and_asked_again(world: World, visitor: Visitor) -> None:
    page = visitor.page
    visitor.go("/admin/login/")
    page.get_by_label("Username").fill("mara")
    page.get_by_label("Password").fill("wrong")
    visitor.follow(page.get_by_role("button", name="Sign in"))
    assert "wrong" in page.get_by_role("alert").inner_text()
    visitor.shot("sign-in-wrong")
    visitor.sign_in()
    visitor.go("/admin/sign-in/again/?next=/admin/auth/user/")
    visitor.shot("sign-in-again")
    page.get_by_label("Password").fill(PASSWORD)
    visitor.follow(page.get_by_role("button", name="Go on"))
    assert page.url == f"{visitor.url}/admin/auth/user/"

    visitor.follow(page.get_by_role("link", name="Add member of staff…"))
    visitor.shot("staff-add")
    for label, text in (("Username", "nora"), ("First name", "Nora"), ("Reason", "new in the team")):
        page.get_by_label(label, exact=True).fill(text)
    page.get_by_label("Password", exact=True).fill("another horse battery")
    page.get_by_label("Password confirmation").fill("another horse battery")
    page.get_by_label("Auditor:").check()
    visitor.follow(page.get_by_role("button", name="Save", exact=True))
    nora = User.objects.get(username="nora")
    visitor.go(f"/admin/auth/user/{nora.pk}/change/")
    visitor.shot("staff-one")
    visitor.follow(page.get_by_role("link", name="Change roles"))
    assert page.get_by_label("Auditor:").is_checked()
    visitor.shot("staff-roles")
    page.get_by_label("Approver:").check()
    page.get_by_label("Reason").fill("second pair of eyes")
    visitor.follow(page.get_by_role("button", name="Change roles"))
    assert page.get_by_text("Nora has new roles.").is_visible()
    visitor.go(f"/admin/auth/user/{nora.pk}/act/password/")
    visitor.shot("staff-password")
    visitor.go(f"/admin/auth/user/{nora.pk}/act/deactivate/")
    visitor.shot("staff-deactivate")
    visitor.go("/admin/password_change/")
    visitor.shot("password-change")
    visitor.go("/admin/django_celery_beat/periodictask/")
    visitor.shot("schedules")
    assert visitor.complaints == []
