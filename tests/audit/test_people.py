"""Finding a person: by e-mail, sub or uid, through keyed hashes, to a uid; recorded, bounded, and never in a URL."""

import re
from typing import Any

import pytest
from django.db import connections
from django.test import Client as HttpClient
from django.utils import timezone

from audit import people
from audit.models import Outbox, Record, Subject
from audit.people_view import safe, where
from audit.subjects import resolve
from audit.viewer import Viewer
from tests.staff import drained, member, newest, statement
from tests.world import ISSUER, World, build

ADA = Viewer("staff:1", "Ada", records=True)


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def uid(world: World) -> str:
    return str(world.verify()["subject"]["uid"])


@pytest.fixture
def ada(world: World) -> HttpClient:
    return member("ada", "audit.view_record")


def find(http: HttpClient, person: str, **more: str) -> Any:
    return http.post("/admin/people/", {"person": person, **more})


@pytest.mark.parametrize(
    ("term", "by"), [("alice@example.com", "email"), (" ALICE@Example.com ", "email"), ("alice", "sub"), ("", "uid")]
)
def test_a_user_is_found_by_what_is_known_of_them(ada: HttpClient, uid: str, term: str, by: str) -> None:
    answer = find(ada, term or uid)
    assert (answer.status_code, answer["Location"]) == (302, f"/admin/timeline/user/{uid}/")
    told = newest("staff")
    assert (told["action"], told["by"], told["found"], told["subject"]) == ("person.lookup", by, 1, uid)


def test_what_was_typed_is_in_no_url_and_not_in_the_log(ada: HttpClient, uid: str) -> None:
    answer = find(ada, "alice@example.com")
    nobody = find(ada, "bob@example.com")
    assert "alice@" not in answer["Location"] and nobody.status_code == 200
    assert not Outbox.objects.filter(private__icontains="bob@").exists()
    drained()
    told = [r for r in Record.objects.filter(type="staff") if statement(r)["action"] == "person.lookup"]
    assert [len(statement(r)["_sd"]) for r in told] == [1, 1]  # the name of who looked, and nothing else
    assert not any(b"@" in bytes(r.statement) for r in told)


def test_nobody_found_is_said_and_recorded(ada: HttpClient, uid: str) -> None:
    text = find(ada, "nobody@example.com").content.decode()
    assert "Nobody is known by that" in text and uid not in text
    told = newest("staff")
    assert (told["by"], told["found"], "subject" in told) == ("email", 0, False)


def test_the_same_person_at_two_issuers_is_shown_as_two_users(ada: HttpClient, uid: str) -> None:
    other = resolve("https://other.example/", "alice", "alice@example.com")
    for term in ("alice@example.com", "alice"):
        text = find(ada, term).content.decode()
        assert "Known by 2 issuers" in text
        assert f"/admin/timeline/user/{uid}/" in text and f"/admin/timeline/user/{other}/" in text
    drained()
    told = [statement(record) for record in Record.objects.filter(type="staff").order_by("index")]
    assert [one["found"] for one in told] == [2] * 4
    # Each of them finds the look-up again under their own uid.
    for one in (uid, other):
        assert Record.objects.filter(type="staff", subject=one).count() == 2


def test_a_look_up_that_shows_many_counts_as_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        resolve(f"https://{number}.example/", "dora", "dora@example.com")
    monkeypatch.setattr(people, "MOST", 2)
    assert [len(people.look_up(ADA, "dora").uids) for _ in range(2)] == [3, 3]
    with pytest.raises(people.TooMany):
        people.look_up(ADA, "dora")


def test_other_acts_do_not_push_look_ups_out_of_sight(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "MOST", 1)
    people.look_up(ADA, "x")
    Outbox.objects.bulk_create(
        Outbox(
            kind="staff", members={"action": "personal.view"}, private={}, at=timezone.now(), actor=ADA.actor, xact=""
        )
        for _ in range(4000)
    )
    with pytest.raises(people.TooMany):
        people.look_up(ADA, "x")


def test_a_sub_that_looks_like_an_address_is_found(ada: HttpClient, world: World) -> None:
    uid = resolve(ISSUER, "carol@corp.example")
    assert find(ada, "carol@corp.example")["Location"].endswith(f"/{uid}/")
    assert newest("staff")["by"] == "sub"


def test_a_look_up_takes_the_right_to_read_records_only(world: World, uid: str) -> None:
    otto = member("otto", "audit.view_personal", "audit.view_subject")
    assert find(otto, uid).status_code == 403 and otto.get("/admin/people/").status_code == 403
    assert HttpClient().get("/admin/people/").status_code == 302
    with pytest.raises(people.PermissionDenied):  # asked again where it is done
        people.look_up(Viewer("staff:9", "Otto", personal=True), uid)
    assert not Outbox.objects.filter(members__action="person.lookup").exists()


def test_get_asks_and_looks_nothing_up(ada: HttpClient, uid: str) -> None:
    text = ada.get("/admin/people/?person=alice@example.com").content.decode()
    assert "Whom do you want to know about?" in text and "alice" not in text
    assert not Outbox.objects.filter(members__action="person.lookup").exists()


@pytest.mark.parametrize(
    "term", ["", "   ", "x" * 321, "a\x00b", "a\ud800b".encode("utf-8", "surrogatepass"), "a\x07b"]
)
def test_nonsense_is_a_field_error(ada: HttpClient, term: Any) -> None:
    answer = ada.post("/admin/people/", {"person": term})
    # Half a character does not survive the form's own decoding: it is then looked for, and not found.
    assert answer.status_code == (200 if isinstance(term, bytes) else 400)
    assert not re.search(r"Traceback|Server Error", answer.content.decode())


def test_nobody_makes_more_look_ups_than_the_bound(ada: HttpClient, uid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "MOST", 3)
    assert [find(ada, "alice").status_code for _ in range(5)] == [302, 302, 302, 429, 429]
    text = find(ada, "alice").content.decode()
    assert "Wait a minute" in text and uid not in text
    assert find(member("otto", "audit.view_record"), "alice").status_code == 302
    drained()
    assert find(ada, "alice").status_code == 429, "what is drained counts still"


def test_look_ups_of_the_minute_before_count_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "MOST", 1)
    people.look_up(ADA, "x")
    with pytest.raises(people.TooMany):
        people.look_up(ADA, "x")
    with connections["owner"].cursor() as cursor:
        cursor.execute("UPDATE audit_outbox SET at = at - interval '61 seconds'")
    connections["owner"].close()
    assert people.look_up(ADA, "x").uids == []


def test_a_look_up_leads_back_to_the_page_it_came_from(ada: HttpClient, uid: str) -> None:
    back = "/admin/records/?window=24h&decision=deny&subject=usr_old&before=5"
    assert find(ada, "alice", next=back)["Location"] == f"/admin/records/?window=24h&decision=deny&subject={uid}"
    assert f'value="{back.replace("&", "&amp;")}"' in ada.get("/admin/people/", {"next": back}).content.decode()


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/admin/records/", "//evil.example/admin/records/", "javascript:alert(1)", "/admin/logout/",
        "/admin/auth/user/", "\\\\evil", "/admin/records/../logout/", "http://[/admin/records/", "/admin/records",
    ],
)  # fmt: skip
def test_only_pages_of_this_site_that_take_a_user_are_gone_back_to(ada: HttpClient, uid: str, target: str) -> None:
    assert safe(target) == ""
    assert find(ada, "alice", next=target)["Location"] == f"/admin/timeline/user/{uid}/"


def test_an_address_in_the_page_that_it_came_from_is_left_behind(world: World) -> None:
    assert where("usr_1", "/admin/records/?q=a%40b.example&window=1h") == "/admin/records/?window=1h&subject=usr_1"


def test_an_erased_user_is_found_by_uid_alone(ada: HttpClient, uid: str) -> None:
    with connections["owner"].cursor() as cursor:
        cursor.execute(
            "UPDATE audit_subject SET identity_key = NULL, sub = NULL, email = NULL, email_key = NULL,"
            " erased_at = now()"
        )
    connections["owner"].close()
    assert find(ada, "alice@example.com").status_code == 200
    assert find(ada, uid)["Location"].endswith(f"/{uid}/")
    assert Subject.objects.get().erased_at
