"""The pages of erasures: what is said before, what is asked for, how it does; and that no page names the user after."""

import time
from typing import Any

import pytest
from django.db import connections
from django.test import Client as HttpClient
from django.utils import timezone

from audit import holds
from audit.erasure import asking, erasing
from audit.models import Erasure, Export, ExportRun, Record, Subject
from audit.recent_sign_in import SIGNED_IN_AT
from tests.audit.test_erasure import ASKED, CALL
from tests.audit.test_holds import WHY, staff
from tests.audit.test_holds_page import of_role
from tests.staff import drained, newest, signed_in
from tests.world import World, build, token


@pytest.fixture
def world(db: None) -> Any:
    yield build()
    connections["owner"].close()


@pytest.fixture
def uid(world: World) -> str:
    return str(world.verify(**CALL)["subject"]["uid"])


@pytest.fixture
def pia(world: World) -> Any:
    return of_role("pia", "Privacy officer")


def fresh(http: HttpClient, seconds: int = 0) -> HttpClient:
    """With a session that signed in so many seconds ago."""
    session = http.session
    session[SIGNED_IN_AT] = int(time.time()) - seconds
    session.save()
    return http


@pytest.fixture
def http(pia: Any) -> HttpClient:
    return fresh(signed_in(pia))


def form(uid: str, **more: str) -> dict[str, str]:
    return {**ASKED, "confirm": uid, **more}


def test_the_page_says_what_goes_and_what_stays_and_names_nobody(http: HttpClient, uid: str) -> None:
    for path in (f"/admin/timeline/user/{uid}/", f"/admin/audit/subject/{uid}/change/"):
        assert f"/admin/people/{uid}/erase/" in http.get(path).content.decode()
    text = http.get(f"/admin/people/{uid}/erase/").content.decode()
    assert "and the e-mail address" in text and "35 days" in text and uid in text
    assert "alice" not in text and Erasure.objects.count() == 0


@pytest.mark.parametrize("column", ["blocked_at", "deactivated_at", "signed_out_at", None])
def test_of_who_may_not_call_the_page_says_that_erased_they_may(http: HttpClient, uid: str, column: str | None) -> None:
    if column:
        Subject.objects.update(**{column: timezone.now()})
    assert ("would not stay so" in http.get(f"/admin/people/{uid}/erase/").content.decode()) == (column is not None)


def test_it_is_asked_for_done_by_the_worker_and_shown_all_the_way(http: HttpClient, uid: str) -> None:
    response = http.post(f"/admin/people/{uid}/erase/", form(uid))
    made = Erasure.objects.get()
    url = f"/admin/erasures/{made.pk}/"
    assert response.status_code == 302 and response["Location"] == url and made.state == "asked"
    assert "Waiting" in http.get(url).content.decode() and "Waiting" in http.get("/admin/erasures/").content.decode()
    again = http.get(f"/admin/people/{uid}/erase/", follow=True).content.decode()
    assert "asked for already" in again
    erasing.work()
    text = http.get(url).content.decode()
    assert "Identifiers and key destroyed" in text and "may still hold" in text
    assert "DSR-2026-041" in http.get("/admin/erasures/").content.decode()
    assert newest("erasure")["action"] == "erased"
    again = http.post(f"/admin/people/{uid}/erase/", form(uid), follow=True).content.decode()
    assert "erased already" in again and Erasure.objects.count() == 1


WRONG: list[tuple[dict[str, str], str]] = [
    ({"confirm": "usr_other"}, "confirm"), ({"confirm": ""}, "confirm"), ({"reason": ""}, "reason"),
    ({"reference": ""}, "reference"), ({"reference": "x" * 121}, "reference"), ({"reason": "for Alice"}, "reason"),
    ({"reference": "alice@example.com"}, "reference"), ({"reference": "\x00"}, "reference"),
]  # fmt: skip


def test_what_is_wrong_is_said_at_its_field(http: HttpClient, uid: str) -> None:
    for given, field in WRONG:
        response = http.post(f"/admin/people/{uid}/erase/", form(uid, **given))
        assert response.status_code == 200 and field in response.context["form"].errors, given
    assert not Erasure.objects.exists()


def test_who_signed_in_long_ago_shows_again_who_they_are(http: HttpClient, uid: str) -> None:
    url = f"/admin/people/{uid}/erase/"
    fresh(http, 601)
    assert "Show who you are" in http.get(url).content.decode()
    response = http.post(url, form(uid))
    assert response.status_code == 302 and "sign" in response["Location"] and not Erasure.objects.exists()


@pytest.mark.parametrize("role", ["Auditor", "Administrator", "Access manager", "Approver"])
def test_others_do_not_erase_and_see_erasures_as_their_role_says(world: World, uid: str, role: str) -> None:
    http = fresh(signed_in(of_role("eve", role)))
    assert http.get(f"/admin/people/{uid}/erase/").status_code == 403
    assert http.post(f"/admin/people/{uid}/erase/", form(uid)).status_code == 403
    assert http.get("/admin/erasures/").status_code == (200 if role in ("Auditor", "Administrator") else 403)
    assert f"/people/{uid}/erase/" not in http.get(f"/admin/timeline/user/{uid}/").content.decode()
    assert not Erasure.objects.exists()


def test_nothing_is_asked_from_another_site_and_nobody_unknown_is_erased(pia: Any, uid: str, http: HttpClient) -> None:
    strict = HttpClient(enforce_csrf_checks=True)
    strict.force_login(pia)
    assert fresh(strict).post(f"/admin/people/{uid}/erase/", form(uid)).status_code == 403
    for path in ("people/usr_nobody/erase/", "people/alice/erase/", "erasures/9/", f"erasures/{2**63}/"):
        assert http.get(f"/admin/{path}").status_code == 404
    assert not Erasure.objects.exists()


def test_under_a_hold_the_page_says_so_and_the_refusal_is_kept(http: HttpClient, pia: Any, uid: str) -> None:
    holds.place(pia, **WHY, client="claude")
    url = f"/admin/people/{uid}/erase/"
    text = http.get(url).content.decode()
    assert "A legal hold forbids it" in text and "2026-17" in text
    text = http.post(url, form(uid), follow=True).content.decode()
    assert "Refused: the legal hold of matter 2026-17 covers" in text
    assert Erasure.objects.get().state == "refused" and erasing.work() == 0
    assert "Ask again…" in text and http.get(url).status_code == 200


def test_an_erasure_that_nobody_does_says_that_the_worker_does_not_run(http: HttpClient, pia: Any, uid: str) -> None:
    made = asking.ask(pia, uid, **ASKED)
    Erasure.objects.using("owner").filter(pk=made.pk).update(asked_at=timezone.now() - timezone.timedelta(minutes=3))
    assert "check that the worker runs" in http.get(f"/admin/erasures/{made.pk}/").content.decode()


def test_files_that_hold_the_user_are_named_before_and_after(http: HttpClient, pia: Any, uid: str) -> None:
    drained()
    now, last = timezone.now(), Record.objects.latest("index").index
    export = Export.objects.create(name="all", owner="staff:1", format="jsonl", created_at=now, personal=True)
    ExportRun.objects.create(
        export=export.pk, owner="staff:1", slot=now, since=now - timezone.timedelta(days=1), created_at=now, first=0,
        until=now + timezone.timedelta(days=1), state="done", personal=True, last=last, file="all-2026.jsonl",
    )  # fmt: skip
    assert "all-2026.jsonl" in http.get(f"/admin/people/{uid}/erase/").content.decode()
    made = asking.ask(pia, uid, **ASKED)
    erasing.work()
    assert "all-2026.jsonl" in http.get(f"/admin/erasures/{made.pk}/").content.decode()


def test_afterwards_no_page_names_the_user_and_each_says_that_they_were_erased(
    world: World, http: HttpClient, pia: Any, uid: str
) -> None:
    call = Record.objects.filter(subject=uid).latest("at")
    other = world.verify(token=token("bob"), **CALL)["subject"]["uid"]
    pages = {
        f"/admin/timeline/user/{uid}/": "Erased", f"/admin/audit/subject/{uid}/change/": "Erased",
        "/admin/audit/subject/": "Erased", f"/admin/records/{call.id}/": "", "/admin/records/": "",
        f"/admin/people/{uid}/report/": "", "/admin/": "", "/admin/erasures/": "Erased", "/admin/holds/": "",
        f"/admin/records/?subject={uid}&window=24h": "",
    }  # fmt: skip
    asking.ask(pia, uid, **ASKED)
    erasing.work()
    drained()
    for path, words in pages.items():
        text = http.get(path).content.decode()
        assert words in text and "alice" not in text, path
    looks = {
        f"/admin/timeline/user/{uid}/": ({}, "nobody can tell"),
        f"/admin/records/{call.id}/details/": ({}, "forgotten"),
        "/admin/records/users/": ({}, ""), "/admin/people/": ({"person": "alice@example.com"}, "Nobody is known"),
        f"/admin/people/{uid}/report/": ({"since": "2026-01-01", "until": "2030-01-01"}, "was erased on"),
    }  # fmt: skip
    for path, (data, words) in looks.items():
        response = http.post(path, data)
        text = response.content.decode()
        shown = text.replace('value="alice@example.com"', "")  # what was typed, back to who typed it
        assert response.status_code == 200 and "alice" not in shown, path
        assert words.lower() in text.lower(), path
    assert "bob@example.com" in http.post(f"/admin/timeline/user/{other}/").content.decode(), "the others can be seen"


def test_the_log_says_in_words_what_was_done(world: World, http: HttpClient, pia: Any, uid: str) -> None:
    hold = holds.place(pia, **WHY, subject=uid)
    asking.ask(pia, uid, **ASKED)
    holds.ask_release(pia, hold.pk, "over")
    holds.release(staff("ben", "audit.release_hold"), hold.pk)
    asking.ask(pia, uid, **ASKED)
    erasing.work()
    drained()
    kinds = "".join(
        http.get(f"/admin/records/?type={kind}&window=24h").content.decode() for kind in ("hold", "erasure")
    )
    for words in (
        "placed legal hold", "asked to release legal hold", "released legal hold", "as staff member",
        "asked to erase user", "could not have user", "erased user",
    ):  # fmt: skip
        assert words in kinds, words
    page = http.get(f"/admin/timeline/user/{uid}/").content.decode()
    assert "erased user" in page and "placed legal hold" in page
    report = http.post(f"/admin/people/{uid}/report/", {"since": "2026-01-01", "until": "2030-01-01"}).content.decode()
    assert "asked to erase user" in report and "legal hold" not in report, "which may not be for the person to know"
