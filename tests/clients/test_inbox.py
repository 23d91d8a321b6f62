"""The inbox: unknown clients and undeclared tools are attached, added or ignored in one step, by those who may."""

import threading
import time
from typing import Any

import pytest
from django.db import connections
from django.test import Client as HttpClient
from django.utils import timezone

from audit.models import Sighting
from clients import inbox
from clients.models import Client, Issuer, OAuthClientId
from tests.staff import administrator, member, newest
from tests.world import ISSUER, World, build, token
from tools.models import ApprovedDefinition, Scope, Tool

BETA = "claude-desktop-beta"


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


def seen(kind: str = "client", name: str = BETA, source: str = ISSUER, count: int = 17) -> Sighting:
    return Sighting.objects.create(kind=kind, name=name, source=source, count=count, last_seen=timezone.now())


def undeclared(name: str = "memory.forget") -> Sighting:
    return seen("tool", name, "inner", 4)


def url(one: Sighting, what: str) -> str:
    return f"/admin/inbox/{one.pk}/{what}/"


def page(http: HttpClient, query: str = "") -> str:
    response = http.get(f"/admin/inbox/{query}")
    assert response.status_code == 200
    return str(response.content.decode())


# What waits


def test_a_refused_call_lands_in_the_inbox_and_attaching_its_client_allows_the_next(
    world: World, http: HttpClient
) -> None:
    beta = token(client=BETA)
    assert world.verify(token=beta)["reason"] == "client_unknown"
    until = time.monotonic() + 30
    while not Sighting.objects.exists() and time.monotonic() < until:
        time.sleep(0.1)
    one = Sighting.objects.get()
    assert f"Unknown client {BETA}: 1 call since" in page(http) and inbox.waiting_count() == 1
    sent = {"client": world.client.pk, "reason": "It is the beta of Claude's own desktop app."}
    assert http.get(url(one, "attach")).status_code == 200 and not OAuthClientId.objects.filter(oauth_id=BETA).exists()
    assert http.post(url(one, "attach"), sent).status_code == 302
    assert world.verify(token=beta)["decision"] == "allow"
    assert not Sighting.objects.exists() and inbox.waiting_count() == 0 and BETA not in page(http)
    told = newest("policy")
    assert told["actor"] == "staff:1"
    assert [(c["table"], c["op"]) for c in told["changes"]] == [("clients_oauthclientid", "insert")]


def test_the_page_says_what_waits_in_sentences(world: World, http: HttpClient) -> None:
    assert "Nothing waits" in page(http)
    seen(), undeclared()
    Tool.objects.create(backend=world.backend, name="memory.list", access="destructive")
    text = page(http)
    for words in (
        f"Unknown client {BETA}: 17 calls since", "Undeclared tool memory.forget of Inner: 4 calls since",
        "Inner declared memory.list", "a grant that names it", "all refused",
    ):  # fmt: skip
        assert words in text, words


def test_what_became_known_in_another_way_does_not_wait(world: World) -> None:
    seen(name="claude-app"), seen("tool", "memory.recall", "inner")
    assert inbox.waiting_count() == 0 and inbox.waiting_items(5) == []


def test_the_same_name_elsewhere_is_another(world: World) -> None:
    seen(name="claude-app", source="https://other.example/"), seen("tool", "memory.recall", "other")
    assert inbox.waiting_count() == 2


def test_the_newest_few_are_told_with_where_to_decide(world: World) -> None:
    one = seen(count=1_204)
    Tool.objects.create(backend=world.backend, name="memory.a", access="read")
    [first, last] = inbox.waiting_items(5)
    assert first.sentence.startswith(f"Unknown client {BETA}: 1,204 calls since ")
    assert first.url == f"/admin/inbox/#client-{one.pk}"
    assert (last.kind, last.sentence) == (
        "pending",
        "memory.a of Inner was declared: refused until somebody approves it",
    )
    Tool.objects.create(backend=world.backend, name="memory.b", access="read")
    assert inbox.waiting_items(1)[0].sentence == "2 declared tools wait for approval, memory.b of Inner among them"
    assert inbox.waiting_items(0) == []


def test_much_is_counted_no_further_than_shown_and_found_by_a_part_of_its_name(world: World, http: HttpClient) -> None:
    now = timezone.now()
    Sighting.objects.bulk_create(
        Sighting(kind="client", source=ISSUER, name=f"made-up-{number}", last_seen=now) for number in range(150)
    )
    assert inbox.waiting_count() == 100
    text = page(http)
    assert text.count("Unknown client made-up-") == 100 and "The 100 that were seen last" in text
    assert page(http, "?q=UP-149").count("Unknown client made-up-149") == 1
    assert "No unknown name has" in page(http, "?q=nobody")
    for wrong in ("a%00b", "x" * 300):
        assert http.get(f"/admin/inbox/?q={wrong}").status_code == 400


def test_a_name_is_text_and_nothing_hides_in_it(world: World, http: HttpClient) -> None:
    seen(name="<script>\u202ex")
    assert "&lt;script&gt;\\u202ex" in page(http) and "<script>" not in page(http)


@pytest.mark.parametrize(
    ("days", "words"), [(0, "since 10:04"), (1, "since Saturday"), (6, "since Monday"), (7, "since 31 May"),
                        (200, "since 19 Nov 2025")]
)  # fmt: skip
def test_since_when_is_said_as_people_say_it(days: int, words: str) -> None:
    now = timezone.datetime(2026, 6, 7, 12, 0, tzinfo=timezone.get_default_timezone())
    assert inbox.since_words(now.replace(hour=10, minute=4) - timezone.timedelta(days=days), now) == words


# Deciding


def test_a_new_client_has_the_id_and_what_it_was_given(world: World, http: HttpClient) -> None:
    one = seen()
    form = http.get(url(one, "client")).content.decode()
    assert f'value="{BETA}"' in form
    sent = {"name": "Claude Desktop", "slug": "claude-desktop", "kind": "mcp", "status": "active", "reason": "pilot"}
    assert http.post(url(one, "client"), sent | {"slug": "claude"}).status_code == 200
    assert http.post(url(one, "client"), sent).status_code == 302
    client = Client.objects.get(slug="claude-desktop")
    assert (client.status, client.oauth_client_ids.get().oauth_id) == ("active", BETA)
    assert world.verify(token=token(client=BETA))["reason"] == "not_granted"
    assert {c["table"] for c in newest("policy")["changes"]} == {"clients_client", "clients_oauthclientid"}


def test_a_suspended_new_client_is_known_and_refused(world: World, http: HttpClient) -> None:
    sent = {"name": "X", "slug": "x", "kind": "other", "status": "suspended", "reason": "to be looked at"}
    assert http.post(url(seen(), "client"), sent).status_code == 302
    assert world.verify(token=token(client=BETA))["reason"] == "client_suspended"


def test_an_undeclared_tool_is_added_with_what_it_needs(world: World, http: HttpClient) -> None:
    one = undeclared()
    sent: dict[str, Any] = {"access": "destructive", "scopes": [Scope.objects.get(name="memory:read").pk],
                            "status": "active", "reason": "reviewed with the team"}  # fmt: skip
    assert http.post(url(one, "tool"), sent).status_code == 302
    assert world.verify("memory.forget")["decision"] == "allow"
    assert ApprovedDefinition.objects.get().content["access"] == "destructive" and inbox.waiting_count() == 0
    other = undeclared("memory.other")
    assert http.post(url(other, "tool"), sent | {"status": "suspended"}).status_code == 302
    assert world.verify("memory.other")["reason"] == "tool_suspended" and ApprovedDefinition.objects.count() == 1


def test_what_is_ignored_is_out_of_sight_counted_on_and_can_be_put_back(world: World, http: HttpClient) -> None:
    one = seen()
    assert http.post(url(one, "ignore"), {"reason": "somebody's experiment"}).status_code == 302
    told = newest("staff")
    assert (told["action"], told["client_id"], told["issuer"]) == ("inbox.ignore_client", BETA, ISSUER)
    assert "experiment" not in str(told) and len(told["_sd"]) == 2
    assert inbox.waiting_count() == 0 and BETA not in page(http) and "1 is ignored" in page(http)
    assert BETA in page(http, "?show=ignored")
    Sighting.objects.update(count=18)
    assert http.post(url(one, "ignore"), {"reason": "again"}).status_code == 302  # no step that makes sense any more
    assert http.post(url(one, "heed"), {"reason": "it is real"}).status_code == 302
    assert newest("staff")["action"] == "inbox.heed_client" and inbox.waiting_count() == 1


@pytest.mark.parametrize(
    ("what", "sent"),
    [
        ("attach", {"client": ""}), ("attach", {"client": "999999"}), ("attach", {"client": "x\x00"}),
        ("attach", {"client": "1", "reason": " "}), ("client", {"slug": "No Slug"}), ("client", {"slug": "a\x00"}),
        ("client", {"name": ""}), ("client", {"kind": "toaster"}), ("client", {"status": "on"}),
        ("client", {"status": ""}), ("ignore", {"reason": ""}), ("ignore", {"reason": "a\x00b"}),
        ("ignore", {"reason": "x" * 501}),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_form_error(world: World, http: HttpClient, what: str, sent: dict[str, str]) -> None:
    good = {"name": "X", "slug": "x", "kind": "mcp", "status": "active", "reason": "r"}
    one = seen()
    response = http.post(url(one, what), good | sent)
    assert response.status_code == 200 and "errorlist" in response.content.decode()
    assert Sighting.objects.get().ignored_at is None and OAuthClientId.objects.count() == 1


@pytest.mark.parametrize("sent", [{"access": "all"}, {"access": ""}, {"scopes": ["999999"]}, {"scopes": ["x"]},
                                  {"status": ""}, {"description": "x" * 2001}])  # fmt: skip
def test_a_wrong_tool_is_a_form_error(world: World, http: HttpClient, sent: dict[str, Any]) -> None:
    one = undeclared()
    response = http.post(url(one, "tool"), {"access": "read", "status": "active", "reason": "r"} | sent)
    assert response.status_code == 200 and "errorlist" in response.content.decode() and Tool.objects.count() == 2


def test_only_an_id_of_an_issuer_that_we_know_can_be_attached(world: World, http: HttpClient) -> None:
    one = seen(source="https://evil.example/")
    for what, sent in (("attach", {"client": world.client.pk}), ("client", {"name": "X", "slug": "x", "kind": "mcp"})):
        assert "Its issuer is not registered" in http.get(url(one, what)).content.decode()
        response = http.post(url(one, what), sent | {"status": "active", "reason": "r"})
        assert response.status_code == 200 and "Its issuer is not registered" in response.content.decode()
    assert Client.objects.count() == OAuthClientId.objects.count() == 1


def test_an_id_that_somebody_attached_a_moment_ago_is_a_field_error(
    world: World, http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = seen(), Client.objects.create(slug="other", name="Other")
    attach = inbox.attach

    def late(*given: Any, **more: Any) -> Any:
        OAuthClientId.objects.create(client=other, issuer=Issuer.objects.get(), oauth_id=BETA)
        return attach(*given, **more)

    monkeypatch.setattr(inbox, "attach", late)
    text = http.post(url(one, "attach"), {"client": world.client.pk, "reason": "r"}).content.decode()
    assert "Somebody attached it a moment ago: it is Other&#x27;s." in text and "field-client" in text
    assert OAuthClientId.objects.get(oauth_id=BETA).client == other


def test_of_two_who_attach_at_once_one_is_told_who_was_faster(world: World) -> None:
    one, others = seen(), [Client.objects.create(slug=f"c{n}", name=f"C{n}") for n in range(4)]
    from django.contrib.auth import get_user_model

    user = get_user_model().objects.create_superuser("mara", "", "correct horse battery")
    said: list[str] = []
    barrier = threading.Barrier(4)

    def attach(client: Client) -> None:
        barrier.wait()
        try:
            inbox.attach(one.pk, client, user=user, reason="race")
            said.append("done")
        except inbox.InboxError as error:
            said.append(str(error))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=attach, args=(client,)) for client in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(said)[-1] == "done" and said.count("done") == 1 and len(said) == 4
    assert all("a moment ago" in words for words in said if words != "done")
    assert OAuthClientId.objects.filter(oauth_id=BETA).count() == 1


def test_a_tool_that_its_backend_declared_a_moment_ago_is_an_error(
    world: World, http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, add = undeclared(), inbox.add_tool

    def late(*given: Any, **more: Any) -> Any:
        Tool.objects.create(backend=world.backend, name="memory.forget", access="destructive")
        return add(*given, **more)

    monkeypatch.setattr(inbox, "add_tool", late)
    response = http.post(url(one, "tool"), {"access": "read", "status": "active", "reason": "r"})
    assert response.status_code == 200 and "a moment ago" in response.content.decode()
    assert Tool.objects.get(name="memory.forget").status == "pending"


# Who may


RIGHTS = {
    "attach": "clients.change_client", "client": "clients.add_client", "tool": "tools.add_tool",
    "ignore": "audit.change_sighting", "heed": "audit.change_sighting",
}  # fmt: skip


@pytest.mark.parametrize("what", RIGHTS)
def test_each_decision_takes_its_own_right_in_the_view_and_where_it_is_made(world: World, what: str) -> None:
    client, tool = seen(), undeclared()
    others = set(RIGHTS.values()) - {RIGHTS[what]}
    viewer = member("vera", "audit.view_sighting", *others)
    one = tool if what == "tool" else client
    sent = {"client": world.client.pk, "name": "X", "slug": "x", "kind": "mcp", "status": "active", "access": "read",
            "reason": "r"}  # fmt: skip
    assert viewer.get(url(one, what)).status_code == viewer.post(url(one, what), sent).status_code == 403
    assert f"/{what}/" not in page(viewer)
    from django.contrib.auth import get_user_model
    from django.core.exceptions import PermissionDenied

    user = get_user_model().objects.get(username="vera")
    calls = {
        "attach": lambda: inbox.attach(client.pk, world.client, user=user, reason="r"),
        "client": lambda: inbox.make_client(
            client.pk, slug="x", name="X", kind="mcp", status="active", user=user, reason="r"
        ),
        "tool": lambda: inbox.add_tool(
            tool.pk, access="read", scopes=[], status="active", description="", user=user, reason="r"
        ),
        "ignore": lambda: inbox.ignore(client.pk, user=user, reason="r"),
        "heed": lambda: inbox.heed(client.pk, user=user, reason="r"),
    }
    with pytest.raises(PermissionDenied):
        calls[what]()
    assert Sighting.objects.filter(ignored_at=None).count() == 2


def test_who_may_not_see_the_inbox_sees_nothing_of_it(world: World) -> None:
    one = seen()
    nobody = member("otto", "audit.change_sighting")
    assert nobody.get("/admin/inbox/").status_code == nobody.get(url(one, "ignore")).status_code == 403
    assert nobody.post(url(one, "ignore"), {"reason": "r"}).status_code == 403
    assert HttpClient().get("/admin/inbox/").status_code == 302


def test_who_may_not_see_tools_sees_none_here(world: World) -> None:
    Tool.objects.create(backend=world.backend, name="memory.list", access="read")
    assert "memory.list" not in page(member("vera", "audit.view_sighting"))
    assert "memory.list" in page(member("walt", "audit.view_sighting", "tools.view_tool"))


@pytest.mark.parametrize("path", ["0/attach/", "99999999999999999999999/attach/", "1/nothing/", "1/tool/", "x/attach/"])
def test_what_is_not_there_is_said_kindly(world: World, http: HttpClient, path: str) -> None:
    seen()
    for response in (http.get(f"/admin/inbox/{path}"), http.post(f"/admin/inbox/{path}", {"reason": "r"})):
        assert response.status_code in (302, 404)
    assert http.put("/admin/inbox/1/attach/").status_code == 405
    assert http.post("/admin/inbox/").status_code == 405


def test_the_old_list_is_only_for_looking(world: World, http: HttpClient) -> None:
    one = seen()
    text = http.get("/admin/audit/sighting/").content.decode()
    assert BETA in text and "/admin/inbox/" in text
    assert http.post(f"/admin/audit/sighting/{one.pk}/change/", {"name": "x"}).status_code == 403
    assert http.post("/admin/audit/sighting/add/", {}).status_code == 403
