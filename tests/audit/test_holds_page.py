"""The pages of legal holds: placed with a reason, released by two, seen and changed by those who may."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.test import Client as HttpClient

from audit import holds
from audit.holds_page import waiting_for
from audit.models import Hold
from tests.audit.test_holds import WHY, staff
from tests.staff import newest, signed_in
from tests.world import World, build, token

LONG = "x" * 120


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def uid(world: World) -> str:
    return str(world.verify(token=token(org_id="acme"))["subject"]["uid"])


def of_role(name: str, role: str) -> Any:
    user = staff(name)
    user.groups.add(Group.objects.get(name=role))
    return user


@pytest.fixture
def pia(world: World) -> Any:
    return of_role("pia", "Privacy officer")


@pytest.fixture
def http(pia: Any) -> HttpClient:
    return signed_in(pia)


@pytest.fixture
def approver(world: World) -> Any:
    return of_role("ben", "Approver")


def errors(response: Any) -> dict[str, Any]:
    assert response.status_code == 200
    return dict(response.context["form"].errors)


def test_a_hold_is_placed_and_found_in_the_list(http: HttpClient, uid: str) -> None:
    assert "Nothing is held" in http.get("/admin/holds/").content.decode()
    days = {"since": "2026-01-01", "until": "2026-03-31"}
    given = {**WHY, **days, "subject": uid, "client": "claude", "backend": "inner", "tool": "memory.recall"}
    response = http.post("/admin/holds/add/", given)
    hold = Hold.objects.get()
    assert response.status_code == 302 and response["Location"] == f"/admin/holds/{hold.pk}/"
    assert (hold.since, hold.until) == (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC))
    assert (hold.subject, hold.client, hold.backend, hold.tool) == (uid, "claude", "inner", "memory.recall")
    page = http.get(f"/admin/holds/{hold.pk}/").content.decode()
    assert "31 March 2026" in page and "a complaint is before the court" in page and uid in page
    assert "client=claude&amp;tool=memory.recall&amp;backend=inner" in page
    assert "2026-17" in http.get("/admin/holds/").content.decode()
    assert newest("hold")["action"] == "placed"


WRONG: list[tuple[dict[str, str], str]] = [
    ({}, "__all__"), ({"client": "claude", "matter": ""}, "matter"),
    ({"client": "claude", "reason": " "}, "reason"),
    ({"client": "nobody"}, "client"), ({"tool": "memory.recall"}, "backend"), ({"tenant": "nobody"}, "tenant"),
    ({"backend": "inner", "tool": "no.such"}, "tool"), ({"subject": "alice@example.com"}, "subject"),
    ({"since": "2026-02-30"}, "since"), ({"since": "2026-02-02", "until": "2026-02-01"}, "until"),
    ({"client": "claude", "matter": "of a@b.example"}, "matter"), ({"client": "claude", "reason": "a@b"}, "reason"),
    ({"subject": "usr_\x00"}, "subject"), ({"tenant": "\x00"}, "tenant"), ({"tool": "\x7f"}, "tool"),
    ({"matter": "x" * 121, "client": "claude"}, "matter"),
    ({"until": "0001-01-01", "since": "0001-01-02"}, "until"),
]  # fmt: skip


def test_what_is_wrong_is_said_at_its_field(http: HttpClient) -> None:
    for given, field in WRONG:
        assert field in errors(http.post("/admin/holds/add/", WHY | given)), given
    assert not Hold.objects.exists()


def test_the_last_day_that_there_is_has_no_end(http: HttpClient) -> None:
    assert http.post("/admin/holds/add/", {**WHY, "client": "claude", "until": "9999-12-31"}).status_code == 302
    assert Hold.objects.get().until is None


def test_the_page_of_a_user_leads_to_the_form_with_the_uid_and_nothing_else_does(http: HttpClient, uid: str) -> None:
    assert f'value="{uid}"' in http.get(f"/admin/holds/add/?subject={uid}").content.decode()
    assert "alice" not in http.get("/admin/holds/add/?subject=alice@example.com").content.decode()


def test_one_asks_and_another_releases(http: HttpClient, pia: Any, approver: Any) -> None:
    hold, second = holds.place(pia, **WHY, client="claude"), signed_in(approver)
    url = f"/admin/holds/{hold.pk}/"
    assert errors(http.post(f"{url}ask/", {"reason": ""})) and not Hold.objects.get().release_asked_by
    assert http.post(f"{url}ask/", {"reason": "settled"}).status_code == 302
    assert (waiting_for(pia), waiting_for(approver)) == (0, 1)
    waits = [(one.what, one.more, one.url) for one in second.get("/admin/").context["waits"]]
    assert waits == [(f"{pia.get_username()} asks to release the legal hold {hold.matter}", "“settled”", url)]
    assert http.get("/admin/").context["waits"] == []
    assert "Release it</button>" not in http.get(url).content.decode()
    own = http.post(f"{url}decide/", {"decision": "release"})
    assert own.status_code == 200 and "second person" in own.content.decode() and holds.active()
    assert "Release it</button>" in second.get(url).content.decode()
    assert "Decide…" in second.get("/admin/holds/").content.decode()
    assert second.post(f"{url}decide/", {"decision": "release"}).status_code == 302 and not holds.active()
    assert newest("hold")["action"] == "released"
    assert "released it" in http.get(url).content.decode()
    again = second.post(f"{url}decide/", {"decision": "release"})
    assert "released already" in again.content.decode()


def test_a_refusal_says_why_and_leaves_the_hold(http: HttpClient, pia: Any, approver: Any) -> None:
    hold, second = holds.place(pia, **WHY, client="claude"), signed_in(approver)
    holds.ask_release(pia, hold.pk, "settled")
    url = f"/admin/holds/{hold.pk}/decide/"
    assert errors(second.post(url, {"decision": "refuse", "reason": ""}))
    assert "An address" in second.post(url, {"decision": "refuse", "reason": "a@b"}).content.decode()
    assert second.post(url, {"decision": "refuse", "reason": "it is not"}).status_code == 302
    assert holds.active()[0].release_asked_by is None


@pytest.mark.parametrize("role", ["Auditor", "Administrator", "Access manager"])
def test_who_may_only_look_changes_nothing_and_who_may_not_look_sees_nothing(world: World, pia: Any, role: str) -> None:
    hold = holds.place(pia, **WHY, client="claude")
    http = signed_in(of_role("eve", role))
    seen = 403 if role == "Access manager" else 200
    for path in ("/admin/holds/", f"/admin/holds/{hold.pk}/"):
        assert http.get(path).status_code == seen
    assert http.get("/admin/holds/add/").status_code == 403
    for path, data in (
        ("add/", {**WHY, "client": "claude"}), (f"{hold.pk}/ask/", {"reason": "x"}),
        (f"{hold.pk}/decide/", {"decision": "release"}),
    ):  # fmt: skip
        assert http.post(f"/admin/holds/{path}", data).status_code == 403
    assert Hold.objects.count() == 1 and not Hold.objects.get().release_asked_by


def test_nothing_changes_by_get_or_from_another_site(http: HttpClient, pia: Any) -> None:
    hold = holds.place(pia, **WHY, client="claude")
    assert http.get(f"/admin/holds/{hold.pk}/ask/").status_code == 405
    assert http.get(f"/admin/holds/{hold.pk}/decide/?decision=release").status_code == 405
    strict = HttpClient(enforce_csrf_checks=True)
    strict.force_login(pia)
    assert strict.post(f"/admin/holds/{hold.pk}/ask/", {"reason": "x"}).status_code == 403
    assert strict.post("/admin/holds/add/", {**WHY, "client": "claude"}).status_code == 403
    assert Hold.objects.count() == 1 and not Hold.objects.get().release_asked_by


def test_what_is_no_hold_is_not_found(http: HttpClient) -> None:
    for path in ("1/", f"{2**63}/", "x/", "-1/"):
        assert http.get(f"/admin/holds/{path}").status_code == 404
    assert http.post("/admin/holds/7/decide/", {"decision": "release"}).status_code == 404


def test_while_a_deletion_is_under_way_the_form_says_so(http: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db import connections

    from audit import guard

    monkeypatch.setattr(holds, "LOCK", "50ms")
    with guard.locked("owner"):
        said = errors(http.post("/admin/holds/add/", {**WHY, "client": "claude"}))
    connections["owner"].close()
    assert "try again" in str(said["__all__"]) and not Hold.objects.exists()


def test_names_that_are_long_or_are_no_names_are_text(http: HttpClient, pia: Any) -> None:
    Hold.objects.create(
        matter="<b>" + LONG[3:], reason="<script>" * 200, client="y" * 64, tenant="z" * 255, placed_by="staff:999",
        placed_at=datetime.now(UTC), release_asked_by="staff:x", release_asked_at=datetime.now(UTC),
    )  # fmt: skip
    for path in ("/admin/holds/", f"/admin/holds/{Hold.objects.get().pk}/"):
        text = http.get(path).content.decode()
        assert "<b>xx" not in text and "<script><script>" not in text and "Staff member 999" in text
