"""Kill switches: the very next call is refused, and after the resume it is allowed; only those may who may change what
is stopped; the log knows who and why; a line on every page says what is stopped."""

import re
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.admin.utils import quote
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.test import Client as HttpClient
from django.utils import timezone

from audit import details, rollups
from audit.admin_base import Refused
from audit.models import Head, Record, Subject
from audit.viewer import tenants_of, viewer_of
from clients.models import Client, Issuer
from governance import process, stops
from governance.stops_evidence import told
from tests.staff import administrator, drained, member, signed_in, statement
from tests.world import World, build, token
from tools.declarations import declare
from tools.models import ApprovedDefinition, Backend, Tool

URL = "/admin/access/stops/"
STOP, RESUME = f"{URL}stop/", f"{URL}resume/"
# Kind -> what names it in the world, what its next call is answered, and the permission to change it.
KINDS = {
    "client": ("claude", "client_suspended", "clients.change_client"),
    "backend": ("inner", None, "tools.change_backend"),
    "tool": ("inner/memory.recall", "tool_suspended", "tools.change_tool"),
    "issuer": ("https://id.example/", "issuer_unknown", "clients.change_issuer"),
    "user": ("", "subject_blocked", "audit.change_subject"),
}
VIEW = {kind: stops.SWITCHES[kind].view for kind in KINDS}


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


@pytest.fixture
def uid(world: World) -> str:
    return str(world.verify()["subject"]["uid"])


def what(kind: str, uid: str) -> dict[str, str]:
    """The members of a form that name it."""
    return {"kind": kind, "what": KINDS[kind][0] or uid}


def answer(world: World) -> tuple[int, str]:
    """Status and reason of the next call."""
    response = world.post("/v1/verify", {"token": token(), "tool": "memory.recall"})
    body = response.json()
    return response.status_code, body.get("reason", "")


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_call_is_refused_and_the_one_after_the_resume_allowed(
    world: World, http: HttpClient, uid: str, kind: str
) -> None:
    assert answer(world) == (200, "granted")
    assert http.get(STOP, what(kind, uid)).status_code == 200
    assert answer(world) == (200, "granted"), "a GET changed something"
    response = http.post(STOP, what(kind, uid) | {"reason": "an incident"})
    assert (response.status_code, response["Location"]) == (302, URL)
    reason = KINDS[kind][1]
    assert answer(world) == ((401, "") if reason is None else (200, reason))
    assert http.get(RESUME, what(kind, uid)).status_code == 200
    assert answer(world)[1] != "granted", "a GET changed something"
    assert http.post(RESUME, what(kind, uid) | {"reason": "it is over"}).status_code == 302
    assert answer(world) == (200, "granted")


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_has_who_and_why_and_the_page_says_so(world: World, http: HttpClient, uid: str, kind: str) -> None:
    http.post(STOP, what(kind, uid) | {"reason": "incident 12"})
    drained()
    record = Record.objects.filter(type="staff" if kind == "user" else "policy").latest("at")
    said = statement(record)
    assert said["actor"] == "staff:1" and "incident" not in bytes(record.statement).decode()
    assert details.opened(record, said).members["reason"] == "incident 12"
    text = " ".join(http.get(URL).content.decode().split())
    assert "by Mara." in text and "“incident 12”" in text and f"/admin/records/{record.id}/" in text
    assert "UTC</time>" in text


def test_what_is_on_its_way_into_the_log_is_known_too(world: World, http: HttpClient, uid: str) -> None:
    process.stop_recorder()
    for kind in ("client", "user"):
        http.post(STOP, what(kind, uid) | {"reason": f"incident with a {kind}"})
    user = get_user_model().objects.get()
    found = told(viewer_of(user), stops.now_stopped(user))
    assert {(stop.kind, one.who, one.reason, one.record) for stop, one in found.items()} == {
        ("client", "Mara", "incident with a client", None), ("user", "Mara", "incident with a user", None),
    }  # fmt: skip


def test_of_what_was_stopped_twice_the_newest_counts(world: World, http: HttpClient, uid: str) -> None:
    for reason in ("first", "second"):
        http.post(STOP, what("client", uid) | {"reason": reason})
        drained()
        if reason == "first":
            http.post(RESUME, what("client", uid) | {"reason": "over"})
    Client.objects.update(name="Claude the second")  # a newer change of the row, which stops nothing
    drained()
    text = http.get(URL).content.decode()
    assert "“second”" in text and "“first”" not in text


def test_what_psql_stopped_is_told_as_such(world: World, http: HttpClient) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE clients_client SET status = 'suspended'")
    drained()
    assert "by Somebody in the database as" in http.get(URL).content.decode()


def test_who_may_not_read_records_is_not_told_who_did_it(world: World, http: HttpClient, uid: str) -> None:
    http.post(STOP, what("client", uid) | {"reason": "incident 12"})
    drained()
    text = member("vera", "clients.view_client").get(URL).content.decode()
    assert "Claude" in text and "incident" not in text and "Mara" not in text and "/admin/records/" not in text


# --- who may ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_permission_it_is_forbidden_and_nothing_changes(
    world: World, http: HttpClient, uid: str, kind: str
) -> None:
    others = [permission for other, (_, _, permission) in KINDS.items() if other != kind]
    vera = member("vera", *VIEW.values(), *others)
    drained()
    version = Head.objects.get().policy
    assert vera.get(STOP, what(kind, uid)).status_code == 403
    assert vera.post(STOP, what(kind, uid) | {"reason": "r"}).status_code == 403
    user = get_user_model().objects.get(username="vera")
    with pytest.raises(PermissionDenied):
        stops.stop(user, ("staff:2", "Vera"), kind, what(kind, uid)["what"], "r")
    assert answer(world) == (200, "granted") and Head.objects.get().policy == version
    http.post(STOP, what(kind, uid) | {"reason": "r"})
    assert vera.post(RESUME, what(kind, uid) | {"reason": "r"}).status_code == 403
    with pytest.raises(PermissionDenied):
        stops.resume(user, ("staff:2", "Vera"), kind, what(kind, uid)["what"], "r")
    assert answer(world)[1] != "granted"
    assert f'name="kind" value="{kind}"' not in vera.get(URL).content.decode()
    assert f"{RESUME}?kind={kind}" not in vera.get(URL).content.decode()


@pytest.mark.parametrize("kind", KINDS)
def test_with_exactly_the_permission_it_is_done(world: World, uid: str, kind: str) -> None:
    vera = member("vera", VIEW[kind], KINDS[kind][2])
    assert vera.post(STOP, what(kind, uid) | {"reason": "r"}).status_code == 302
    assert answer(world)[1] != "granted"


def test_who_may_see_nothing_of_it_sees_no_page(world: World) -> None:
    assert member("vera", "clients.view_grant").get(URL).status_code == 403
    assert HttpClient().get(URL).status_code == 302


def test_csrf_is_checked(world: World, uid: str) -> None:
    http = HttpClient(enforce_csrf_checks=True)
    http.force_login(get_user_model().objects.create_superuser("mara", "", "correct horse battery"))
    assert http.post(STOP, what("client", uid) | {"reason": "r"}).status_code == 403
    assert answer(world) == (200, "granted")


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["", "   ", "x" * 501, "a\x07b", "a\x00b"])
def test_a_reason_is_needed(world: World, http: HttpClient, uid: str, reason: str) -> None:
    response = http.post(STOP, what("client", uid) | {"reason": reason})
    assert response.status_code == 200 and response.context["form"].errors["reason"]
    assert answer(world) == (200, "granted")


def test_a_reason_is_needed_where_the_change_is_made(world: World, http: HttpClient) -> None:
    with pytest.raises(Refused):
        stops.stop(get_user_model().objects.get(), ("staff:1", "Mara"), "client", "claude", " ")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stopped_already_is_said(world: World, http: HttpClient, uid: str, kind: str) -> None:
    http.post(STOP, what(kind, uid) | {"reason": "first"})
    version = Head.objects.get().policy
    response = http.post(STOP, what(kind, uid) | {"reason": "second"})
    assert "It is stopped already." in response.content.decode()
    assert Head.objects.get().policy == version
    assert http.get(STOP, what(kind, uid), follow=True).content.decode().count("It is stopped already.") == 1
    http.post(RESUME, what(kind, uid) | {"reason": "over"})
    assert "It is not stopped." in http.post(RESUME, what(kind, uid) | {"reason": "again"}).content.decode()


def test_of_two_who_stop_it_at_once_one_is_told_that_it_is_stopped_already(world: World, http: HttpClient) -> None:
    user, together, said = get_user_model().objects.get(), threading.Barrier(2), []
    drained()
    version = Head.objects.get().policy

    def one(name: str) -> None:
        together.wait()
        try:
            stops.stop(user, ("staff:1", name), "client", "claude", "an incident")
            said.append("stopped")
        except Refused as refused:
            said.append(str(refused))
        finally:
            connection.close()

    threads = [threading.Thread(target=one, args=(name,)) for name in ("Mara", "Noor")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == ["It is stopped already.", "stopped"]
    assert Head.objects.get().policy == version + 1


@pytest.mark.parametrize(
    "members",
    [
        {}, {"kind": "client"}, {"kind": "client", "what": "nobody"}, {"kind": "moon", "what": "claude"},
        {"kind": "tool", "what": "inner"}, {"kind": "tool", "what": "inner/none"}, {"kind": "tool", "what": "/"},
        {"kind": "client", "what": "\x00"}, {"kind": "user", "what": "alice@example.com"},
        {"kind": "user", "what": "usr_none"}, {"kind": "backend", "what": "x" * 9000}, {"kind": "issuer", "what": "1"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("url", [STOP, RESUME])
def test_what_is_not_there_is_an_error_on_the_page(
    world: World, http: HttpClient, url: str, members: dict[str, str]
) -> None:
    for response in (http.get(url, members), http.post(url, members | {"reason": "r"})):
        assert response.status_code == 400 and 'class="errornote"' in response.content.decode()
    assert answer(world) == (200, "granted")


def test_an_erased_user_cannot_be_stopped(world: World, http: HttpClient) -> None:
    Subject.objects.create(uid="usr_gone", issuer="https://id.example/", erased_at=timezone.now())
    response = http.post(STOP, {"kind": "user", "what": "usr_gone", "reason": "r"})
    assert "This user was erased" in response.content.decode()


@pytest.mark.parametrize("status", ["pending", "retired"])
def test_a_tool_that_nobody_can_call_is_not_stopped(world: World, http: HttpClient, status: str) -> None:
    Tool.objects.update(status=status)
    for url in (STOP, RESUME):
        text = http.post(url, {"kind": "tool", "what": "inner/memory.recall", "reason": "r"}).content.decode()
        assert f"It is {status}" in text
    assert set(Tool.objects.values_list("status", flat=True)) == {status}


def test_a_tool_that_changed_since_it_was_approved_waits_in_the_inbox_and_is_no_stop(
    world: World, http: HttpClient, uid: str
) -> None:
    tool = Tool.objects.get(name="memory.recall")
    content = {"name": tool.name, "description": "as it was", "access": "read", "scopes": [], "input_schema": None}
    now = timezone.now()
    kept = ApprovedDefinition.objects.create(tool=tool, content=content, at=now, changed_at=now)
    Tool.objects.filter(pk=tool.pk).update(status="suspended")
    assert "Nothing is stopped" in http.get(URL).content.decode() and "Stopped: " not in banner(http)
    response = http.post(RESUME, what("tool", uid) | {"reason": "r"})
    assert "decides in the inbox" in response.content.decode()
    # Decided there that it stays suspended: then it is stopped, but to resume it would be to approve what nobody read.
    ApprovedDefinition.objects.filter(pk=kept.pk).update(changed_at=None)
    assert "Stopped: tool memory.recall" in banner(http)
    response = http.post(RESUME, what("tool", uid) | {"reason": "r"})
    assert "Approve it as it is now" in response.content.decode()
    assert answer(world)[1] == "tool_suspended"


def test_to_stop_a_tool_that_changed_and_can_be_called_is_to_decide_on_it(
    world: World, http: HttpClient, uid: str
) -> None:
    tool = Tool.objects.get(name="memory.recall")
    now = timezone.now()
    kept = ApprovedDefinition.objects.create(tool=tool, content={}, at=now, changed_at=now)
    http.post(STOP, what("tool", uid) | {"reason": "r"})
    kept.refresh_from_db()
    assert kept.changed_at is None and "Stopped: tool memory.recall" in banner(http)


def test_a_change_while_a_tool_is_stopped_is_not_resumed_unread(world: World, http: HttpClient, uid: str) -> None:
    http.post(STOP, what("tool", uid) | {"reason": "r"})
    new = SimpleNamespace(
        name="memory.recall", access="destructive", scopes=[], description="wipes all", input_schema=None
    )
    declare(world.backend.pk, "inner", [new])
    response = http.post(RESUME, what("tool", uid) | {"reason": "r"})
    assert response.status_code == 200 and "decides in the inbox" in response.content.decode()
    assert answer(world)[1] == "tool_suspended"


def test_a_tool_that_nobody_ever_approved_is_approved_and_not_resumed(world: World, http: HttpClient, uid: str) -> None:
    Tool.objects.filter(name="memory.recall").update(status="suspended")
    response = http.post(RESUME, what("tool", uid) | {"reason": "r"})
    assert "Nobody ever approved it" in response.content.decode()
    assert answer(world)[1] == "tool_suspended"


# --- what it would hit -----------------------------------------------------------------------------------------


def test_before_stopping_it_says_what_that_hits(world: World, http: HttpClient, uid: str) -> None:
    world.verify()
    world.verify(tool="memory.capture")
    drained()
    rollups.count()
    for kind, calls, allowed, most in (
        ("client", 3, 2, "memory.recall (2), memory.capture (1)"), ("tool", 2, 2, "claude (2)"),
        ("backend", 3, 2, "memory.recall (2), memory.capture (1)"),
        ("user", 3, 2, "memory.recall (2), memory.capture (1)"),
    ):  # fmt: skip
        text = re.sub(r"<[^>]+>", "", http.get(STOP, what(kind, uid)).content.decode())
        assert f"there were {calls} calls, {allowed} of them allowed; most by the" in text, kind
        assert most in text, kind
    assert "no call of it" in http.get(STOP, {"kind": "user", "what": other(world)}).content.decode()


def other(world: World) -> str:
    """A user who never called."""
    return Subject.objects.create(uid="usr_quiet", issuer="https://id.example/").uid


def test_who_may_not_read_records_is_not_told_what_it_hits(world: World, uid: str) -> None:
    vera = member("vera", "clients.view_client", "clients.change_client")
    text = vera.get(STOP, what("client", uid)).content.decode()
    assert "24 hours" not in text and "Stop it now" in text


# --- the line on every page ------------------------------------------------------------------------------------


def banner(http: HttpClient, url: str = "/admin/clients/client/") -> str:
    """The line's words, or nothing."""
    found = re.search(r'<p class="stopped">(.*?)</p>', http.get(url).content.decode(), re.S)
    return re.sub(r"<[^>]+>", "", found[1]) if found else ""


def test_every_page_says_what_is_stopped_while_it_is(world: World, http: HttpClient, uid: str) -> None:
    pages = ["/admin/", "/admin/records/", "/admin/access/matrix/", "/admin/clients/grant/", "/admin/log/", STOP]
    assert all(banner(http, page) == "" for page in pages[:-1])
    http.post(STOP, what("client", uid) | {"reason": "r"})
    for page in pages[:-1]:
        assert banner(http, page) == "Stopped: client Claude. Nothing is allowed through it. Look"
    http.post(STOP, what("user", uid) | {"reason": "r"})
    short = f"{uid[:10]}…{uid[-3:]}"
    said = f"Stopped: client Claude, user {short}. Nothing is allowed through them. Look"
    assert banner(http) == said and said in banner(http, f"{STOP}?kind=backend&what=inner")
    for kind in ("client", "user"):
        http.post(RESUME, what(kind, uid) | {"reason": "r"})
    assert banner(http) == ""


def test_the_line_names_a_few_and_only_what_the_viewer_may_see(world: World, http: HttpClient) -> None:
    Subject.objects.bulk_create(
        Subject(uid=f"usr_{n:020}", issuer="https://id.example/", blocked_at=timezone.now()) for n in range(9)
    )
    Backend.objects.update(enabled=False)
    text = banner(http)
    assert text.startswith("Stopped: backend Inner, user usr_") and text.count("user usr_") == 3
    assert " and more. Nothing is allowed through them." in text
    seen = signed_in(get_user_model().objects.get(username=named("vera", "tools.view_backend")))
    assert banner(seen, "/admin/tools/backend/") == "Stopped: backend Inner. Nothing is allowed through it. Look"
    seen = signed_in(get_user_model().objects.get(username=named("otto", "clients.view_client")))
    assert banner(seen) == ""


def named(name: str, permission: str) -> str:
    """A member of staff with one permission."""
    member(name, permission)
    return name


def test_the_line_is_one_query_that_an_index_answers_among_many_users(
    world: World, http: HttpClient, django_assert_num_queries: Any
) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO audit_subject (uid, issuer, first_seen, blocked_at) SELECT 'usr_' || n, 'https://id.example/',"
            " now(), CASE WHEN n % 50000 = 0 THEN now() END FROM generate_series(1, 100000) n"
        )
        cursor.execute("ANALYZE audit_subject")
        cursor.execute("EXPLAIN " + stops.BANNER["user"] + " LIMIT 5")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "subject_blocked" in plan and "Seq Scan" not in plan
    user = get_user_model().objects.get()
    user.has_perm("x.y")
    tenants_of(user)  # asked once of each request's user, by whatever asks first
    with django_assert_num_queries(1):
        found = stops.banner(user)
    assert found is not None and sorted(found.named) == [("user", "usr_100000"), ("user", "usr_50000")]
    assert Issuer.objects.filter(enabled=True).exists()


class TestWhoTheIdentityProviderDeactivated:
    def test_is_shown_and_cannot_be_resumed_here(self, world: World, http: HttpClient, uid: str) -> None:
        Subject.objects.update(deactivated_at=timezone.now())
        text = http.get(URL).content.decode()
        assert "Deactivated by their identity provider" in text and quote(uid) in text and "Resume" not in text
        assert banner(http) == ""
        answer = http.post(RESUME, what("user", uid) | {"reason": "they asked"}, follow=True)
        assert "it alone can take that back" in answer.content.decode()
        assert Subject.objects.get().deactivated_at is not None and answer.status_code == 200
        actor = ("staff:1", "Mara")
        with pytest.raises(Refused, match="it alone can take that back"):
            stops.resume(get_user_model().objects.get(), actor, "user", uid, "they asked")

    def test_stays_refused_after_staff_resumed_what_they_stopped(
        self, world: World, http: HttpClient, uid: str
    ) -> None:
        Subject.objects.update(deactivated_at=timezone.now())
        http.post(STOP, what("user", uid) | {"reason": "an incident"})
        assert stops.AS_WELL in http.get(URL).content.decode()
        http.post(RESUME, what("user", uid) | {"reason": "it is over"})
        assert answer(world) == (200, "subject_blocked")

    def test_is_shown_to_those_who_see_users(self, world: World, uid: str) -> None:
        Subject.objects.update(deactivated_at=timezone.now())
        assert quote(uid) not in member("otto", "clients.view_client").get(URL).content.decode()


def test_before_a_user_is_stopped_signing_out_is_offered(world: World, http: HttpClient, uid: str) -> None:
    page = f"/admin/audit/subject/{uid}/act/sign-out/"
    assert page in http.get(STOP, what("user", uid)).content.decode()
    assert page not in http.get(STOP, what("client", uid)).content.decode()
    assert "signed out of every AI client" in http.get(page).content.decode()
