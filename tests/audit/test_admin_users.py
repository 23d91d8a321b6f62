"""Users in the admin: shown by uid alone; blocked, unblocked and signed out with a reason."""

import pytest
from django.db import connection
from django.test import Client as HttpClient
from django.test.utils import CaptureQueriesContext

from audit.models import Subject
from audit.subjects import resolve
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


def test_the_list_says_who_was_active_when_and_leads_on(world: World, http: HttpClient, uid: str) -> None:
    resolve("https://other.example/", "dormant")
    text = http.get("/admin/audit/subject/").content.decode()
    assert f"/admin/timeline/user/{uid}/?window=1h" in text and "none in the last year" in text
    assert "/admin/people/" in text
    one = http.get(f"/admin/audit/subject/{uid}/change/").content.decode()
    assert f"/admin/timeline/user/{uid}/" in one and f"/admin/people/{uid}/report/" in one


def test_activity_is_read_by_who_may_read_records_only(world: World, uid: str) -> None:
    viewer = member("vera", "audit.view_subject")
    for url in ("/admin/audit/subject/", f"/admin/audit/subject/{uid}/change/"):
        text = viewer.get(url).content.decode()
        assert uid in text and "last activity" not in text.lower() and "/admin/timeline/" not in text


def test_the_list_asks_one_bounded_question_for_its_page(world: World, http: HttpClient, uid: str) -> None:
    for number in range(5):
        resolve("https://other.example/", f"user-{number}")
    with CaptureQueriesContext(connection) as captured:
        http.get("/admin/audit/subject/")
    over_records = [q["sql"] for q in captured.captured_queries if 'FROM "audit_record"' in q["sql"]]
    assert len(over_records) == 1 and "LIMIT 1" in over_records[0]


def test_a_user_is_searched_by_uid_and_an_address_is_sent_away(world: World, http: HttpClient, uid: str) -> None:
    other = resolve("https://other.example/", "other")
    text = http.get(f"/admin/audit/subject/?q={uid}").content.decode()
    assert uid in text and other not in text
    answer = http.get("/admin/audit/subject/?q=alice@example.com", follow=True)
    assert answer.redirect_chain == [("/admin/people/", 302)] and b"alice" not in answer.content
    for hostile in ("%00", "x" * 5000, "%ED%A0%80", "usr_%27--"):
        assert http.get(f"/admin/audit/subject/?q={hostile}").status_code in (200, 302)
