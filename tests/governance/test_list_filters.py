"""The lists of the admin are filtered by what they offer alone: what a list does not show cannot be asked out of it."""

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client as HttpClient

from governance.roles import ADMINISTRATOR, AUDITOR
from tests.staff import signed_in
from tests.world import World, build


@pytest.fixture
def world(db: None) -> World:
    made = build()
    made.verify()
    User.objects.create_superuser("root", "root@example.com", "correct horse battery")
    return made


def holder(role: str) -> HttpClient:
    user = User.objects.create_user("walker", "", None, is_staff=True)
    user.groups.set(Group.objects.filter(name=role))
    return signed_in(user)


@pytest.mark.parametrize(
    ("role", "path"),
    [
        (ADMINISTRATOR, "auth/user/?password__startswith=pbkdf2"),
        (ADMINISTRATOR, "auth/user/?password__regex=^p"),
        (ADMINISTRATOR, "auth/user/?groups__name=x"),
        (ADMINISTRATOR, "governance/staffkey/?digest__isnull=0"),
        (ADMINISTRATOR, "tools/backendkey/?digest__isnull=0"),
        (AUDITOR, "audit/subject/?email_hash__isnull=0"),
        (AUDITOR, "audit/subject/?sub_hash__isnull=0"),
        (AUDITOR, "audit/outbox/?private__icontains=alice"),
        (AUDITOR, "audit/outbox/?private__reason__startswith=a"),
        (AUDITOR, "clients/grant/?subject__email_hash__isnull=0"),
    ],
)
def test_what_a_list_does_not_show_is_not_asked_out_of_it(world: World, role: str, path: str) -> None:
    answer = holder(role).get(f"/admin/{path}")
    assert answer.status_code == 400, path


def test_what_a_list_offers_filters_it(world: World) -> None:
    http = holder(ADMINISTRATOR)
    for path in (
        "auth/user/?is_active__exact=1&groups__id__exact=1", "tools/tool/?status__exact=active&backend__id__exact=1",
        "clients/grant/?effect__exact=allow&client__id__exact=1&state=all", "clients/accessrequest/?state=mine",
        "audit/sighting/?ignored_at__isempty=1", "audit/subject/?q=x&o=1&p=0",
    ):  # fmt: skip
        assert http.get(f"/admin/{path}").status_code == 200, path
