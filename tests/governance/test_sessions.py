"""Sessions of staff: how they begin, when they end, what passwords can be tried, what is recorded of it."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import Client as HttpClient

from audit.models import Outbox, Record
from audit.record_words import title
from governance import idempotency, sign_in_throttle
from governance.failed_sign_ins import ONE_BY_ONE, failures
from governance.tasks import clear_sessions
from tests.staff import drained, newest, readable, signed_in, statement

LOGIN, AGAIN, PASSWORD = "/admin/login/", "/admin/sign-in/again/", "correct horse battery"


@pytest.fixture
def vera(db: None) -> User:
    return User.objects.create_user("vera", "", PASSWORD, is_staff=True, first_name="Vera")


@pytest.fixture
def http(vera: User) -> HttpClient:
    return HttpClient()


class Clock:
    """Time that a test moves on."""

    def __init__(self) -> None:
        self.now = time.time()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in ("governance.staff_sessions", "audit.recent_sign_in"):
        monkeypatch.setattr(f"{module}.time.time", lambda: made.now)
    return made


def enter(http: HttpClient, name: str = "vera", password: str = PASSWORD, query: str = "", **headers: Any) -> Any:
    return http.post(f"{LOGIN}{query}", {"username": name, "password": password}, **headers)


def is_inside(http: HttpClient) -> bool:
    return http.get("/admin/clients/grant/").status_code != 302


# --- beginning and ending --------------------------------------------------------------------------------------


def test_a_password_signs_in_and_both_ends_are_recorded(http: HttpClient, vera: User) -> None:
    assert enter(http, query="?next=/admin/records/")["Location"] == "/admin/records/"
    told = newest("staff")
    assert (told["action"], told["how"], told["actor"]) == ("staff.sign_in", "password", f"staff:{vera.pk}")
    assert "vera" not in readable(told).lower()
    assert http.get("/admin/logout/").status_code == 405 and is_inside(http), "no link signs anybody out"
    assert http.post("/admin/logout/").status_code == 200
    assert not is_inside(http)
    told = newest("staff")
    assert (told["action"], told["actor"]) == ("staff.sign_out", f"staff:{vera.pk}")


def test_signing_in_leaves_nothing_of_the_session_before(http: HttpClient, vera: User) -> None:
    signed_in(User.objects.create_user("otto", "", PASSWORD, is_staff=True))
    session = http.session
    session["left"] = "over"
    session.save()
    before = http.cookies["sessionid"].value
    enter(http)
    first = http.cookies["sessionid"].value
    assert first != before and "left" not in http.session
    enter(http)
    assert http.cookies["sessionid"].value != first, "the same person again: a new key too"
    assert not Session.objects.filter(session_key__in=[before, first]).exists()


def test_the_cookie_is_for_this_site_and_not_for_scripts(http: HttpClient, settings: Any) -> None:
    settings.SESSION_COOKIE_SECURE = True
    enter(http)
    cookie = http.cookies["sessionid"]
    assert cookie["httponly"] and cookie["secure"] and cookie["samesite"] == "Lax"
    assert cookie["max-age"] == 12 * 3600


@pytest.mark.parametrize(("idle", "stays"), [(1799, True), (1800, False)])
def test_a_session_ends_after_half_an_hour_without_activity(
    http: HttpClient, clock: Clock, idle: int, stays: bool
) -> None:
    enter(http)
    clock.now += idle
    assert is_inside(http) is stays
    if not stays:
        assert "You were signed out after 30 minutes without activity." in http.get(LOGIN).content.decode()
        assert not Session.objects.exists()


def test_activity_keeps_a_session_for_twelve_hours_and_no_longer(http: HttpClient, clock: Clock) -> None:
    enter(http)
    began = clock.now
    while clock.now - began < 12 * 3600 - 1500:
        clock.now += 1500
        assert is_inside(http)
    clock.now = began + 12 * 3600
    assert not is_inside(http)
    assert "You were signed out after 12 hours." in http.get(LOGIN).content.decode()


def test_how_long_is_a_setting(http: HttpClient, clock: Clock, settings: Any) -> None:
    settings.MUNIMENT_SESSION_IDLE = 100
    enter(http)
    clock.now += 99
    assert is_inside(http)
    clock.now += 100
    assert not is_inside(http)


def test_activity_is_written_once_a_minute(http: HttpClient, clock: Clock) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    enter(http)

    def writes() -> int:
        with CaptureQueriesContext(connection) as queries:
            http.get("/admin/clients/grant/")
        return sum(query["sql"].startswith(("UPDATE", "INSERT", "DELETE")) for query in queries)

    assert writes() == 0
    clock.now += 61
    assert (writes(), writes()) == (1, 0)


@pytest.mark.parametrize("key", ["muniment_started_at", "muniment_seen_at"])
@pytest.mark.parametrize("value", [None, "x", True, 10**12])
def test_a_session_that_does_not_say_when_it_began_has_ended(http: HttpClient, key: str, value: Any) -> None:
    enter(http)
    session = http.session
    session[key] = value
    session.save()
    if (key, value) != ("muniment_seen_at", 10**12):  # a clock that was set back ends no session
        assert not is_inside(http)


def test_a_deactivated_member_of_staff_is_out_at_once_and_stays_out(http: HttpClient, vera: User) -> None:
    enter(http)
    User.objects.update(is_active=False)
    assert not is_inside(http)
    User.objects.update(is_active=True)
    assert not is_inside(http), "the session is gone, not asleep"
    assert not Session.objects.exists()


def test_a_new_password_ends_the_other_sessions(http: HttpClient, vera: User) -> None:
    enter(http)
    enter(other := HttpClient())
    new = {"new_password1": "another horse battery", "new_password2": "another horse battery"}
    response = http.post("/admin/password_change/", {"old_password": PASSWORD, **new})
    assert response.status_code == 302 and is_inside(http) and not is_inside(other)
    told = newest("staff")
    assert told | {"id": "", "at": "", "_sd": "", "role": "", "v": 1} == {
        "type": "staff", "action": "staff.password", "about": f"staff:{vera.pk}", "actor": f"staff:{vera.pk}",
        "id": "", "at": "", "_sd": "", "role": "", "v": 1,
    }  # fmt: skip


def test_sessions_that_have_ended_leave_the_database(http: HttpClient) -> None:
    from datetime import timedelta

    from django.utils import timezone

    enter(http)
    enter(HttpClient())
    old = Session.objects.first()
    assert old is not None
    Session.objects.filter(pk=old.pk).update(expire_date=timezone.now() - timedelta(seconds=1))
    clear_sessions()
    assert Session.objects.count() == 1


# --- failing ---------------------------------------------------------------------------------------------------


def test_a_failed_sign_in_is_recorded_without_what_was_typed(http: HttpClient, vera: User) -> None:
    assert "The name or the password is wrong" in enter(http, "vera", "hunter2-was-typed").content.decode()
    assert "The name or the password is wrong" in enter(http, "my-secret-typed-as-name", "x").content.decode()
    drained()
    records = Record.objects.filter(type="staff").order_by("index")
    first, second = (statement(record) for record in records)
    assert {first["action"], second["action"]} == {"staff.sign_in_failed"} and first["actor"] == "system"
    assert first["about"] == f"staff:{vera.pk}" and "about" not in second
    kept = str([*Outbox.objects.values_list("members", "private"), first, second])
    assert "hunter2" not in kept and "my-secret" not in kept and "vera" not in kept


def test_many_failures_are_counted_instead_of_recorded_one_by_one(
    http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(ONE_BY_ONE + 7):
        enter(http, f"nobody{number}")
    assert Outbox.objects.filter(members__action="staff.sign_in_failed").count() == ONE_BY_ONE
    assert failures.counted() == [], "not before the minute is over"
    monkeypatch.setattr(failures, "_since", time.monotonic() - 61)
    drained()
    until = time.monotonic() + 30
    while time.monotonic() < until and not Record.objects.filter(type="staff").count() > ONE_BY_ONE:
        time.sleep(0.1)
    told = [statement(record) for record in Record.objects.filter(type="staff")]
    [counted] = [one for one in told if one["action"] == "staff.sign_ins_failed"]
    assert counted["count"] == 7 and title(counted, {}) == "Muniment refused 7 sign-ins"


def test_an_account_whose_password_was_guessed_too_often_is_asked_to_wait(http: HttpClient) -> None:
    for _ in range(sign_in_throttle.PER_ACCOUNT):
        assert enter(http, "vera", "wrong").status_code == 200
    response = enter(http)
    assert response.status_code == 429 and 0 < int(response["Retry-After"]) <= sign_in_throttle.WINDOW
    assert "Too many attempts failed. Try again in 15 minutes." in response.content.decode()
    assert enter(http, "nobody", "wrong").status_code == 200, "another name is not concerned"
    for _ in range(sign_in_throttle.PER_ACCOUNT):
        enter(http, "nobody", "wrong")
    assert enter(http, "nobody", "wrong").status_code == 429, "an account that is not there behaves the same"


def test_an_address_that_guesses_many_names_is_asked_to_wait_and_others_are_not(
    http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sign_in_throttle, "PER_ADDRESS", 5)
    for number in range(5):
        enter(http, f"name{number}", "wrong", REMOTE_ADDR="203.0.113.7")
    assert enter(http, REMOTE_ADDR="203.0.113.7").status_code == 429
    assert enter(http, REMOTE_ADDR="203.0.113.8").status_code == 302


def test_a_good_password_counts_against_nobody(http: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_in_throttle, "PER_ADDRESS", 3)
    for _ in range(6):
        enter(http, "vera", "wrong", REMOTE_ADDR="203.0.113.9") if _ == 0 else None
        assert enter(http, REMOTE_ADDR="203.0.113.9").status_code == 302


@pytest.mark.parametrize(
    ("remote", "said", "proxy", "counted"),
    [
        ("203.0.113.7", "198.51.100.1", False, "203.0.113.7"),
        ("10.0.0.1", "198.51.100.9, 198.51.100.1", True, "198.51.100.1"),
        ("10.0.0.1", "nonsense", True, "10.0.0.1"),
        ("10.0.0.1", "", True, "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "", False, "2001:db8:1:2::"),
        ("::ffff:203.0.113.7", "", False, "203.0.113.7"),
        ("", "", False, "unknown"),
    ],
)
def test_the_address_is_the_callers_or_what_a_trusted_proxy_says(
    settings: Any, rf: Any, remote: str, said: str, proxy: bool, counted: str
) -> None:
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if proxy else None
    request = rf.get("/", REMOTE_ADDR=remote, HTTP_X_FORWARDED_FOR=said)
    assert sign_in_throttle.address_of(request) == counted


@pytest.fixture
def no_redis(db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import redis

    away = redis.Redis.from_url("redis://127.0.0.1:9/0", socket_timeout=0.1, socket_connect_timeout=0.1)
    monkeypatch.setattr(sign_in_throttle, "store", lambda: away)
    yield
    idempotency.store().ping()


def test_without_redis_each_process_counts_for_itself(no_redis: None, http: HttpClient) -> None:
    for _ in range(sign_in_throttle.PER_ACCOUNT):
        assert enter(http, "vera", "wrong").status_code == 200
    assert enter(http).status_code == 429
    sign_in_throttle.clear()
    assert enter(http).status_code == 302


def test_what_a_process_counts_without_redis_is_bounded(no_redis: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_in_throttle, "MOST_KEPT", 20)
    for number in range(100):
        sign_in_throttle._take_here(f"name{number}", 1)
    assert len(sign_in_throttle._here) <= 20


@pytest.mark.parametrize("name", ["", "a\x00b", "x" * 10_000, "\ufffd", "ve ra", "' OR 1=1 --"])
@pytest.mark.parametrize("password", ["", "a\x00b", "x" * 10_000])
def test_hostile_names_and_passwords_get_a_page(http: HttpClient, name: str, password: str) -> None:
    assert enter(http, name, password).status_code == 200
    assert not is_inside(http)


def test_a_good_password_of_somebody_who_is_not_staff_opens_nothing(http: HttpClient) -> None:
    User.objects.create_user("guest", "", PASSWORD)
    assert "The name or the password is wrong" in enter(http, "guest").content.decode()
    assert not is_inside(http)


def test_where_local_passwords_are_off_none_is_taken(http: HttpClient, settings: Any) -> None:
    enter(http)
    settings.MUNIMENT_LOCAL_PASSWORDS = False
    assert not is_inside(http), "sessions that began with one are over"
    page = http.get(LOGIN).content.decode()
    assert 'name="password"' not in page and "Nobody can sign in" in page
    assert enter(http).status_code == 403
    assert not is_inside(http)
    assert http.get("/admin/password_change/").status_code == 302


def test_the_door_needs_a_csrf_token(vera: User) -> None:
    assert enter(HttpClient(enforce_csrf_checks=True)).status_code == 403


@pytest.mark.parametrize(
    "goal", ["https://evil.example/", "//evil.example/", "/\\evil.example", "x" * 3000, "\x00", "", "relative"]
)
def test_the_way_on_stays_on_this_site(http: HttpClient, goal: str) -> None:
    response = http.post(LOGIN, {"username": "vera", "password": PASSWORD, "next": goal})
    assert response["Location"] == "/admin/"


# --- again -----------------------------------------------------------------------------------------------------


def test_every_sign_in_is_recent_and_not_for_long(http: HttpClient, clock: Clock, vera: User, rf: Any) -> None:
    from audit import recent_sign_in

    for browser in (http, signed_in(vera)):
        enter(browser) if browser is http else None
        request = rf.get("/")
        request.session = browser.session
        assert recent_sign_in.is_recent(request)
    clock.now += 600
    assert not recent_sign_in.is_recent(request)


def test_ones_own_password_shows_again_who_one_is(http: HttpClient, clock: Clock, vera: User) -> None:
    enter(http)
    clock.now += 900
    page = http.get(f"{AGAIN}?next=/admin/records/").content.decode()
    assert 'type="password"' in page and 'value="/admin/records/"' in page
    before = http.cookies["sessionid"].value
    wrong = http.post(AGAIN, {"password": "wrong", "next": "/admin/records/"})
    assert "That is not your password." in wrong.content.decode()
    assert http.session["muniment_signed_in_at"] < clock.now - 800
    told = Outbox.objects.latest("id").members
    assert (told["action"], told["reason"], told["about"]) == ("staff.sign_in_failed", "again", f"staff:{vera.pk}")
    right = http.post(AGAIN, {"password": PASSWORD, "next": "/admin/records/"})
    assert right["Location"] == "/admin/records/" and http.session["muniment_signed_in_at"] == int(clock.now)
    assert http.cookies["sessionid"].value != before
    assert newest("staff")["action"] == "staff.sign_in_again"


def test_again_takes_ones_own_password_and_not_somebody_elses(http: HttpClient) -> None:
    User.objects.create_superuser("root", "", "battery staple horse")
    enter(http)
    assert http.post(AGAIN, {"password": "battery staple horse"}).status_code == 200


@pytest.mark.parametrize(
    "goal", ["https://evil.example/", "//evil.example/", "\x00", "x" * 3000, "javascript:alert(1)"]
)
def test_again_leads_nowhere_else(http: HttpClient, goal: str) -> None:
    enter(http)
    assert http.post(AGAIN, {"password": PASSWORD, "next": goal})["Location"] == "/admin/"
    assert "evil" not in http.get(AGAIN, {"next": goal}).content.decode()


@pytest.mark.parametrize("where", [AGAIN, "/admin/password_change/"])
def test_who_has_the_session_cannot_guess_the_password_there_either(http: HttpClient, where: str) -> None:
    enter(http)
    new = {"new_password1": "another horse battery", "new_password2": "another horse battery"}
    for _ in range(sign_in_throttle.PER_ACCOUNT):
        assert http.post(where, {"password": "wrong", "old_password": "wrong", **new}).status_code == 200
    response = http.post(where, {"password": PASSWORD, "old_password": PASSWORD, **new})
    assert response.status_code == 429 and "Too many attempts" in response.content.decode()


def test_again_is_for_those_who_are_signed_in(http: HttpClient) -> None:
    assert http.get(AGAIN).status_code == http.post(AGAIN, {"password": PASSWORD}).status_code == 302
    assert not is_inside(http)
