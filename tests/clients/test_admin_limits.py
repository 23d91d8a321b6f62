"""The pages of limits: made, changed and deleted by who may, with a reason; a sentence in words; who is near which."""

from typing import Any

import pytest
from django.test import Client as HttpClient
from django.urls import reverse
from django.utils import timezone

from audit.models import SubjectTenant
from clients import limit_writing, limits
from clients.grants import Actor
from clients.limit_words import sentence, sentence_of
from clients.limit_writing import LimitError
from clients.models import Issuer, Limit
from governance.models import StaffTenant
from tests.staff import administrator, member
from tests.world import World, build, token
from tools.models import Tool

MANAGER = ("clients.view_limit", "clients.add_limit", "clients.change_limit", "clients.delete_limit")
LIST, ADD = "/admin/clients/limit/", "/admin/clients/limit/add/"


@pytest.fixture
def world(db: None) -> World:
    return build()


def form(**members: Any) -> dict[str, Any]:
    return {
        "per": "subject", "count": "60", "period": "minute", "burst": "", "client": "", "tool": "", "tenant": "",
        "on_outage": "access", "change_reason": "nobody reads faster",
    } | members  # fmt: skip


def stored(**members: Any) -> Limit:
    return Limit.objects.create(**{"per": "subject", "count": 2, "period": "hour", "reason": "test"} | members)


def page(http: HttpClient, path: str) -> str:
    response = http.get(path)
    assert response.status_code == 200
    return str(response.content.decode())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("Each user may call 60 times a minute", {}),
        ("Each user, through Claude, may call 60 times a minute, at most 10 at once",
         {"client": "Claude", "burst": 10}),
        ("Each user may call memory.recall once an hour", {"tool": "memory.recall", "count": 1, "period": "hour"}),
        ("Each user, through each client, may call 60 times a minute", {"per": "subject_client"}),
        ("Each client may call 60 times a second", {"per": "client", "period": "second"}),
        ("Claude may call 60 times a minute", {"per": "client", "client": "Claude"}),
        ("Each tool may be called 60 times a minute", {"per": "tool"}),
        ("The tool x may be called through Claude 60 times a day",
         {"per": "tool", "tool": "x", "client": "Claude", "period": "day"}),
        ("Each tenant may call in background mode 1,000 times a minute",
         {"per": "tenant", "modes": ["background"], "count": 1000}),
        ("Each user may call in tenant acme and in each of the modes api and background 60 times a minute",
         {"tenant": "acme", "modes": ["background", "api"]}),
    ],
)  # fmt: skip
def test_a_limit_is_a_sentence(words: str, parts: dict[str, Any]) -> None:
    assert sentence_of(**{"per": "subject", "count": 60, "period": "minute"} | parts) == words


def test_a_limit_is_made_with_a_reason_and_the_next_call_counts(world: World) -> None:
    http = member("mara", *MANAGER)
    assert "This field is required" in http.post(ADD, form(change_reason="")).content.decode()
    assert http.post(ADD, form(count="1", modes=["background", "interactive"])).status_code == 302
    made = Limit.objects.get()
    assert (made.count, made.modes, made.tenant, made.reason) == (
        1, ["background", "interactive"], None, "nobody reads faster",
    )  # fmt: skip
    assert made.created_by == "mara"
    assert [world.verify()["reason"] for _ in range(2)] == ["granted", "rate_limited"]
    assert sentence(made) in page(http, LIST)
    record = member("rene", "audit.view_record", *MANAGER).get(f"/admin/records/{world.verify()['record']}/")
    assert f'<a href="{LIST}{made.pk}/change/">limit {made.pk}</a>' in record.content.decode()


def test_what_cannot_be_is_said_at_its_field(world: World) -> None:
    http = member("mara", *MANAGER)
    stored(count=60, period="minute")
    wrong = [
        form(burst="61", tenant="a"), form(count="0"), form(count="1000000001"), form(per="planet"),
        form(tenant="a\x01"), form(tenant="x" * 256), form(modes=["asleep"]), form(), form(client="999"),
        form(count="1e9"),
    ]  # fmt: skip
    for sent in wrong:
        response = http.post(ADD, sent)
        assert response.status_code == 200 and "errornote" in response.content.decode(), sent
    said = http.post(ADD, form()).content.decode()
    assert "counts the same already (Each user may call 60 times a minute)" in said
    said = http.post(ADD, form(change_reason="")).content.decode()
    assert "already exists" not in said, "what is wrong otherwise comes first, and not in the words of the database"
    assert Limit.objects.count() == 1


def test_its_rate_changes_and_what_it_counts_does_not(world: World) -> None:
    http, held = member("mara", *MANAGER), stored(tenant="acme")
    url = f"{LIST}{held.pk}/change/"
    assert http.post(url, form(count="5", period="day", burst="2", tenant="other", per="client")).status_code == 302
    held.refresh_from_db()
    assert (held.count, held.period, held.burst, held.tenant, held.per) == (5, "day", 2, "acme", "subject")
    shown = page(http, url)
    assert "acme" in shown and "any client" in shown and "every mode, counted together" in shown
    assert f"limit {held.pk}" in shown and f"limit {held.pk}" in page(http, LIST), "records name it by its number"
    assert "errornote" in http.post(url, form(count="1", burst="2")).content.decode()


def test_it_is_deleted_by_post_with_a_reason(world: World) -> None:
    http, held = member("mara", *MANAGER), stored(count=1)
    url = f"{LIST}{held.pk}/act/delete/"
    assert "reason" in page(http, url) and http.post(url, {"reason": ""}).status_code == 200
    assert Limit.objects.exists()
    assert http.post(url, {"reason": "not needed"})["Location"] == LIST
    assert not Limit.objects.exists()


def test_who_may_only_look_changes_nothing(world: World) -> None:
    held = stored()
    looker = member("vera", "clients.view_limit")
    assert "Delete" not in page(looker, f"{LIST}{held.pk}/change/")
    assert looker.post(ADD, form(per="client")).status_code == 403
    assert looker.post(f"{LIST}{held.pk}/change/", form(count="9")).status_code == 403
    assert looker.post(f"{LIST}{held.pk}/act/delete/", {"reason": "r"}).status_code == 403
    assert member("nobody").get(LIST).status_code == 403
    assert Limit.objects.get().count == 2


def test_the_writer_asks_by_itself_whether_staff_may(world: World) -> None:
    from django.contrib.auth import get_user_model
    from django.core.exceptions import PermissionDenied

    held = stored()
    member("vera", "clients.view_limit")
    vera = Actor.of(get_user_model().objects.get(username="vera"))
    for act in (
        lambda who: limit_writing.create(Limit(per="tool", count=1, period="day"), actor=who, reason="r"),
        lambda who: limit_writing.change(held, actor=who, reason="r"),
        lambda who: limit_writing.delete(held, actor=who, reason="r"),
    ):
        for who in (vera, Actor("staff:0", "n"), Actor("staff:x", "n"), Actor("signals:1", "n"), Actor("", "")):
            with pytest.raises(PermissionDenied):
                act(who)
    with pytest.raises(LimitError):
        limit_writing.change(held, actor=Actor("command:policy", "p"), reason=" ")


def test_who_is_near_is_shown_with_how_far_and_nobody_by_name(world: World) -> None:
    http = administrator()
    held = stored(count=5)
    near, over = token("near"), token("over")
    uids = {}
    for text, times in ((near, 4), (over, 6), (token("free"), 3)):
        for _ in range(times):
            answer = world.verify(token=text)
        uids[answer["subject"]["sub"]] = answer["subject"]["uid"]
    text = page(http, f"{LIST}{held.pk}/change/")
    assert text.index(uids["over"]) < text.index(uids["near"]) and uids["free"] not in text
    assert "4 of 5" in text and "5 of 5" in text and "near@example" not in text
    assert reverse("admin:timeline", args=["user", uids["near"]]) in text
    assert "?window=7d&amp;reason=rate_limited" in text
    assert "Too many calls" in page(http, "/admin/records/?window=7d&reason=rate_limited")
    assert "1 at the limit, 1 near it" in page(http, LIST)
    assert "Each user may call 5 times an hour" in page(http, "/admin/")


def test_who_is_confined_to_tenants_sees_theirs_alone(world: World) -> None:
    Issuer.objects.update(tenant_claim="org")
    shared, foreign = stored(count=1, per="client"), stored(count=1, tenant="beta")
    uids = {}
    for name in ("acme", "beta"):
        world.verify(token=token(name, org=name))
        uids[name] = world.verify(token=token(name, org=name))["subject"]["uid"]
    assert SubjectTenant.objects.count() == 2
    from django.contrib.auth import get_user_model

    http = member("ada", *MANAGER, "audit.view_record")
    StaffTenant.objects.create(user=get_user_model().objects.get(username="ada"), tenant="acme")
    text = page(http, f"{LIST}{shared.pk}/change/")
    assert "tenant acme" in text and "beta" not in text
    assert "beta" not in page(http, LIST) and "beta" not in page(http, "/admin/")
    assert http.get(f"{LIST}{foreign.pk}/change/").status_code == 302, "there is none for them"
    assert http.post(ADD, form(tenant="acme")).status_code == 403, "they lose the right to write limits"


def test_pages_say_so_when_calls_cannot_be_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    held, http = stored(), administrator()
    monkeypatch.setattr(limits.counter, "_away", True)
    assert "Calls cannot be counted now" in page(http, f"{LIST}{held.pk}/change/")
    assert "Calls are not counted" in page(http, LIST)
    page(http, "/admin/")


def test_what_another_put_into_redis_breaks_no_page(world: World) -> None:
    from clients.buckets import Bucket, Counted

    held, http, store = stored(), administrator(), limits.counter.store()
    key = Bucket(held.pk, 2, 3600, 2, Counted("", None, None)).near_key
    moment = timezone.now().timestamp() * 1e6 * 2
    members = [
        b"\xff\x00",
        b"[]",
        b"{}",
        b'["<script>",null,null]',
        b'["usr_x",5,null]',
        b'["usr_/../x",null,null]',
        b"7",
    ]
    store.zadd(key, dict.fromkeys(members, moment))
    store.set(f"{key[:-1]}:" + '["<script>",null,null]', f"{int(moment)} {int(timezone.now().timestamp() * 1e6)} 2")
    text = page(http, f"{LIST}{held.pk}/change/")
    assert "<script>," not in text and "&lt;script&gt;" in text
    store.set(key, "x")
    page(http, f"{LIST}{held.pk}/change/")
    assert not limits.counter.away


def test_a_tool_and_a_client_are_named(world: World) -> None:
    held = stored(per="tool", count=1)
    world.verify()
    assert Tool.objects.get(name="memory.recall").name in page(administrator(), f"{LIST}{held.pk}/change/")
