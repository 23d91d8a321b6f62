"""Users in the admin: shown by uid alone; blocked, unblocked and signed out with a reason."""

import pytest
from django.test import Client as HttpClient

from audit.models import Subject
from tests.staff import administrator, member, newest
from tests.world import World, build


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def uid(world: World) -> str:
    return str(world.verify()["subject"]["uid"])


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


def act(http: HttpClient, uid: str, action: str, reason: str = "an incident") -> int:
    return http.post(f"/admin/audit/subject/{uid}/act/{action}/", {"reason": reason}).status_code


def test_a_user_is_blocked_and_unblocked_with_a_reason(world: World, http: HttpClient, uid: str) -> None:
    assert act(http, uid, "block") == 302
    assert world.verify()["reason"] == "subject_blocked"
    told = newest("staff")
    assert (told["action"], told["subject"], told["actor"]) == ("subject.block", uid, "staff:1")
    assert len(told["_sd"]) == 2  # the name and the reason, protected
    assert act(http, uid, "unblock") == 302
    assert world.verify()["decision"] == "allow"


def test_signing_out_everywhere_refuses_older_tokens(world: World, http: HttpClient, uid: str) -> None:
    assert act(http, uid, "sign-out") == 302
    assert world.verify()["reason"] == "token_expired"


def test_nothing_happens_without_a_reason_or_by_get(world: World, http: HttpClient, uid: str) -> None:
    assert act(http, uid, "block", reason="  ") == 200
    assert http.get(f"/admin/audit/subject/{uid}/act/block/").status_code == 200
    assert Subject.objects.get().blocked_at is None


def test_identifiers_are_not_shown(world: World, http: HttpClient, uid: str) -> None:
    for url in (
        "/admin/audit/subject/",
        f"/admin/audit/subject/{uid}/change/",
        f"/admin/audit/subject/{uid}/act/block/",
    ):
        text = http.get(url).content.decode()
        assert uid in text and "alice" not in text
    assert http.post(f"/admin/audit/subject/{uid}/change/", {"issuer": "https://other/"}).status_code == 403


def test_only_those_who_may_change_users_can_block(world: World, uid: str) -> None:
    viewer = member("vera", "audit.view_subject")
    assert viewer.get(f"/admin/audit/subject/{uid}/change/").status_code == 200
    assert act(viewer, uid, "block") == 403
    assert Subject.objects.get().blocked_at is None
