"""Users in the admin: shown by uid alone; blocked, unblocked and signed out with a reason."""

import re
from datetime import timedelta

import pytest
from django.contrib.admin.utils import quote
from django.db import connection
from django.test import Client as HttpClient
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from audit.models import Head, PublishedKey, Record, Subject
from audit.person_report import state
from audit.subjects import resolve
from tests.staff import administrator, drained, member, newest, statement
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


def page_of(uid: str) -> str:
    """The user's own page, as lists lead there."""
    return f"/admin/audit/subject/{quote(uid)}/change/"


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
        page_of(uid),
        f"/admin/audit/subject/{uid}/act/block/",
    ):
        text = http.get(url).content.decode()
        assert uid in text and "alice" not in text
    assert http.post(page_of(uid), {"issuer": "https://other/"}).status_code == 403


def test_only_those_who_may_change_users_can_block(world: World, uid: str) -> None:
    viewer = member("vera", "audit.view_subject")
    assert viewer.get(page_of(uid)).status_code == 200
    assert act(viewer, uid, "block") == 403
    assert Subject.objects.get().blocked_at is None


def test_the_list_says_who_was_active_when_and_leads_on(world: World, http: HttpClient, uid: str) -> None:
    resolve("https://other.example/", "dormant")
    text = http.get("/admin/audit/subject/").content.decode()
    assert f"/admin/timeline/user/{uid}/?window=1h" in text and "none in the last year" in text
    assert "/admin/people/" in text
    one = http.get(page_of(uid)).content.decode()
    assert f"/admin/timeline/user/{uid}/" in one and f"/admin/people/{uid}/report/" in one


def test_activity_is_read_by_who_may_read_records_only(world: World, uid: str) -> None:
    viewer = member("vera", "audit.view_subject")
    for url in ("/admin/audit/subject/", page_of(uid)):
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


def test_an_id_that_reads_like_an_escape_leads_to_its_own_page(world: World, http: HttpClient) -> None:
    """In addresses of Django's admin `_24` stands for a dollar sign."""
    uid, key = "usr_vFre3FQMJ6VM7_242f3C", "a_2BcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNO"
    Subject.objects.create(uid=uid, issuer="https://id.example/", blocked_at=timezone.now())
    PublishedKey.objects.create(key_id=key, use="log", public=b"k" * 32, not_before=timezone.now())
    for path, has in (("audit/subject/", uid), ("access/stops/", uid), ("log/", key)):
        page = http.get(f"/admin/{path}").content.decode()
        led = [link for link in re.findall(r'href="(/admin/audit/\w+/[^"/]+/change/)"', page) if has[-5:] in link]
        assert led, path
        for link in led:
            one = http.get(link)
            assert one.status_code == 200 and has in one.content.decode(), link
    assert "act/unblock/" in http.get(page_of(uid)).content.decode()
    assert act(http, uid, "unblock") == 302


def test_a_sign_out_needs_a_reason_a_post_and_the_permission(world: World, http: HttpClient, uid: str) -> None:
    viewer = member("vera", "audit.view_subject")
    for status in (act(http, uid, "sign-out", reason=" "), act(viewer, uid, "sign-out")):
        assert status in (200, 403)
    assert http.get(f"/admin/audit/subject/{uid}/act/sign-out/").status_code == 200
    assert Subject.objects.get().signed_out_at is None
    before = Head.objects.get().policy
    assert act(http, uid, "sign-out") == 302
    told = newest("staff")
    assert (told["action"], told["subject"], told["actor"]) == ("subject.sign_out", uid, "staff:1")
    assert Head.objects.get().policy == before, "a sign-out is no policy"
    ahead = timezone.now() + timedelta(seconds=50)
    Subject.objects.update(signed_out_at=ahead)
    assert act(http, uid, "sign-out") == 302 and Subject.objects.get().signed_out_at >= ahead, "none is taken back"
    drained()
    told_by = [statement(one)["actor"] for one in Record.objects.filter(type="staff", subject=uid)]
    assert told_by.count("staff:1") == 2


def test_how_access_ended_is_said_and_can_be_listed(world: World, http: HttpClient, uid: str) -> None:
    other = resolve("https://other.example/", "other")
    now = timezone.now()
    for column, value, words in (
        ("blocked_at", "blocked", "Blocked by staff"),
        ("deactivated_at", "deactivated", "Deactivated by the identity provider"),
        ("signed_out_at", "signed-out", "Signed out everywhere"),
    ):
        Subject.objects.filter(uid=uid).update(**{column: now})
        listed = http.get(f"/admin/audit/subject/?ended={value}").content.decode()
        assert uid in listed and other not in listed
        assert words in http.get(f"/admin/timeline/user/{uid}/").content.decode()
    said = state(Subject.objects.get(uid=uid))
    assert all(words in said for words in ("Blocked since", "Deactivated by", "Signed out everywhere on"))
    assert state(Subject.objects.get(uid=other)).startswith("Known since") and "Signed" not in state(
        Subject.objects.get(uid=other)
    )
