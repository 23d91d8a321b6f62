"""Access reviews: a frozen population, each grant kept or revoked with a note, evidence at the end."""

import re
import threading
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db import connections
from django.test import Client as HttpClient
from django.utils import timezone

from audit.models import Outbox, Record
from audit.viewer import Viewer
from clients import grants, review_evidence, reviews
from clients.grants import Actor
from clients.models import Client, Grant, Review, ReviewItem
from clients.reviews import ReviewError
from tests.staff import administrator, drained, member, statement
from tests.world import World, build
from tools.models import Scope, Tool

READER = Viewer("staff:1", "Mara", records=True)


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


@pytest.fixture
def mara(http: HttpClient) -> Any:
    return get_user_model().objects.get(username="mara")


def grant(effect: str = "allow", *scopes: str, **more: Any) -> Grant:
    made = Grant.objects.create(effect=effect, reason="pilot", **more)
    made.scopes.set(Scope.objects.filter(name__in=scopes))
    return made


@pytest.fixture
def review(world: World, mara: Any) -> Review:
    """Of Claude: its own grant, one for any client, and one more of its own."""
    grant("deny", "memory:write", modes=["background"])
    grant("flag", "memory:write", client=world.client)
    grant("allow", "memory:read", client=Client.objects.create(slug="other", name="Other"))
    return reviews.start(client=world.client, scope=None, user=mara, reason="quarterly")


def items(review: Review) -> list[ReviewItem]:
    return list(review.items.order_by("grant_id"))


def url(review: Review, what: str = "change") -> str:
    return f"/admin/clients/review/{review.pk}/{what}/"


def page(http: HttpClient, review: Review) -> str:
    return str(http.get(url(review)).content.decode())


# What is reviewed


def test_a_review_of_a_client_has_its_grants_and_those_for_any_with_their_sentences(review: Review) -> None:
    assert [item.sentence for item in items(review)] == [
        "Claude may use memory:read for everyone",
        "No client may use memory:write in background mode",
        "Claude may use memory:write for everyone, each call marked for review",
    ]


def test_a_review_of_a_scope_has_all_that_covers_it_and_the_blocks_that_forbid_it(world: World, mara: Any) -> None:
    recall = Tool.objects.get(name="memory.recall")
    covers = [
        world.grant, grant("allow", "memory:write", client=world.client), grant("deny", "memory:read"), grant("deny"),
        grant("flag", "memory:read", "memory:write", tool=recall),
    ]  # fmt: skip
    grant("deny", "memory:write")  # which forbids what needs memory:write, not memory:read
    grant("allow", client=world.client, tool=recall)  # a tool without scopes
    grant("allow", "memory:read", revoked_at=timezone.now())
    grant("allow", "memory:read", expires_at=timezone.now() - timedelta(seconds=1))
    made = reviews.start(client=None, scope=Scope.objects.get(name="memory:read"), user=mara, reason="r")
    assert [item.grant_id for item in items(made)] == [one.pk for one in covers]


def test_what_is_granted_later_is_not_in_it_and_nothing_can_be_added(
    world: World, http: HttpClient, review: Review
) -> None:
    later = grant("allow", "memory:write", client=world.client)
    assert later.pk not in {item.grant_id for item in items(review)}
    other = ReviewItem.objects.create(review=Review.objects.create(client=world.client, reason="r"), grant=later)
    sent = {"item": [other.pk], "decision": "keep", "note": "n"}
    assert "not in this review" in http.post(url(review, "decide"), sent).content.decode()
    for what in ("change", "delete"):
        assert http.post(url(review, what), {"client": "", "post": "yes"}).status_code == 403
    assert len(items(review)) == 3 and not ReviewItem.objects.filter(decision="keep").exists()


def test_of_one_thing_there_is_one_open_review_and_none_of_nothing(world: World, http: HttpClient, mara: Any) -> None:
    reviews.start(client=world.client, scope=None, user=mara, reason="r")
    empty = Scope.objects.create(name="spare")
    for sent, words in (
        ({"client": world.client.pk}, "is open already"), ({"scope": empty.pk}, "nothing to review"),
        ({}, "Choose a client or a scope"), ({"client": world.client.pk, "scope": empty.pk}, "not both"),
        ({"client": "x\x00"}, "Null characters"), ({"client": "x"}, "valid choice"),
        ({"client": world.client.pk, "reason": " "}, "required"),
        ({"client": world.client.pk, "reason": "a\x00"}, "Null characters"),
    ):  # fmt: skip
        response = http.post("/admin/clients/review/add/", {"reason": "r"} | sent)
        assert response.status_code == 200 and words in response.content.decode(), words
    assert Review.objects.count() == 1


def test_two_who_start_the_same_review_start_one(world: World, mara: Any) -> None:
    said = at_once([lambda: reviews.start(client=world.client, scope=None, user=mara, reason="r") for _ in range(4)])
    assert said.count("done") == 1 and Review.objects.count() == 1 and ReviewItem.objects.count() == 1


def test_a_suggestion_shows_what_would_be_reviewed(world: World, http: HttpClient) -> None:
    for query in ("client=claude", "scope=memory:read"):
        text = http.get(f"/admin/clients/review/add/?{query}").content.decode()
        assert "Claude may use memory:read for everyone" in text
    for query in ("client=nobody", "client=%00", "scope=" + "x" * 300, ""):
        assert "would be reviewed" not in http.get(f"/admin/clients/review/add/?{query}").content.decode()


# Deciding


def test_from_start_to_evidence(world: World, http: HttpClient, review: Review) -> None:
    own, block, flag = items(review)
    assert "0 of 3 grants decided" in page(http, review)
    assert world.verify("memory.capture")["flagged"] is True
    response = http.post(url(review, "decide"), {"item": [flag.pk], "decision": "revoke", "note": "pilot over"})
    assert response.status_code == 302
    assert world.verify("memory.capture")["reason"] == "not_granted"
    http.post(url(review, "decide"), {"item": [own.pk], "decision": "keep", "note": "needed daily"})
    assert "2 of 3 grants decided: 1 kept, 1 revoked" in page(http, review)
    assert http.post(url(review, "finish"), follow=True).content.decode().count("is not decided yet") == 1
    grants.revoke(block.grant, actor=Actor("staff:9", "Otto"), reason="elsewhere")
    text = page(http, review)
    assert "3 grants: 1 kept, 1 revoked, 1 gone meanwhile" in text and "Revoked elsewhere" in text
    assert http.post(url(review, "finish")).status_code == 302
    drained()
    told = [statement(record) for record in Record.objects.filter(type="review").order_by("at")]
    start, finish = told
    assert (start["action"], start["grants"]) == ("review.start", [item.grant_id for item in (own, block, flag)])
    assert finish | {"kept": [own.grant_id], "revoked": [flag.grant_id], "gone": [block.grant_id]} == finish
    assert (finish["review"], finish["of"], finish["reviewed"], finish["client"]) == (
        review.pk, "client", "claude", "claude",
    )  # fmt: skip
    assert (finish["actor"], finish["part"], finish["parts"]) == ("staff:1", 1, 1)
    assert "needed daily" not in str(told) and len(finish["_sd"]) == 3  # the name, the reason, the notes
    text = page(http, review)
    for record in Record.objects.filter(type="review"):
        assert f"/admin/records/{record.id}/" in text
    assert "3 grants: 1 kept, 1 revoked, 1 gone by then" in text and "pilot over" in text
    assert Record.objects.filter(client="claude", type="review").count() == 2


def test_what_was_finished_stays_as_it_was(world: World, http: HttpClient, review: Review, mara: Any) -> None:
    everything = [item.pk for item in items(review)]
    reviews.decide(review.pk, everything, "keep", "all needed", user=mara)
    reviews.finish(review.pk, user=mara)
    before = Outbox.objects.filter(kind="review").count()
    sent = {"item": everything[:1], "decision": "revoke", "note": "n"}
    assert "finished this review" in http.post(url(review, "decide"), sent).content.decode()
    assert "finished this review" in http.post(url(review, "finish"), follow=True).content.decode()
    assert Outbox.objects.filter(kind="review").count() == before
    Grant.objects.update(expires_at=timezone.now() - timedelta(days=1))
    assert "3 grants: 3 kept" in page(http, Review.objects.get())


def test_what_expired_meanwhile_is_gone_and_what_was_extended_is_open_again(
    http: HttpClient, review: Review, mara: Any
) -> None:
    item = items(review)[0]
    Grant.objects.filter(pk=item.grant_id).update(expires_at=timezone.now() - timedelta(seconds=1))
    assert "1 gone meanwhile" in page(http, review) and "Expired" in page(http, review)
    with pytest.raises(ReviewError, match="is over already"):
        reviews.decide(review.pk, [item.pk], "keep", "n", user=mara)
    Grant.objects.update(expires_at=None)
    assert reviews.progress(review).left == 3


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"note": " "}, "required"), ({"note": "a\x00"}, "Null characters"), ({"note": "x" * 501}, "at most 500"),
        ({"item": []}, "Tick the grants"), ({"item": ["x", "-1", "9" * 30]}, "Tick the grants"),
        ({"item": ["999999"]}, "not in this review"), ({"decision": "delete"}, "Choose whether"),
        ({"decision": ""}, "Choose whether"),
    ],
)  # fmt: skip
def test_a_wrong_decision_is_said_and_changes_nothing(
    http: HttpClient, review: Review, sent: dict[str, Any], words: str
) -> None:
    one = items(review)[1]
    response = http.post(url(review, "decide"), {"item": [one.pk], "decision": "keep", "note": "n"} | sent)
    assert response.status_code == 200 and words in response.content.decode()
    assert not ReviewItem.objects.exclude(decision="").exists()
    if sent.keys() == {"note"}:
        assert re.search(rf'value="{one.pk}" id="item-{one.pk}" checked', response.content.decode())


def test_of_several_all_are_decided_or_none(world: World, review: Review, mara: Any) -> None:
    first, second, third = items(review)
    reviews.decide(review.pk, [second.pk], "keep", "n", user=mara)
    with pytest.raises(ReviewError, match=r"Mara kept grant \d+ a moment ago"):
        reviews.decide(review.pk, [first.pk, second.pk, third.pk], "revoke", "n", user=mara)
    assert [item.decision for item in items(review)] == ["", "keep", ""]
    assert not Grant.objects.exclude(revoked_at=None).exists()


def at_once(calls: list[Any]) -> list[str]:
    """What each of these says, made at the same moment in threads of their own."""
    said: list[str] = []
    barrier = threading.Barrier(len(calls))

    def run(call: Any) -> None:
        barrier.wait()
        try:
            call()
            said.append("done")
        except ReviewError as error:
            said.append(str(error))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(said) == len(calls)
    return said


def test_of_two_reviewers_of_one_grant_the_first_decides(review: Review, mara: Any) -> None:
    one = items(review)[0]
    said = at_once([
        lambda decision=decision: reviews.decide(review.pk, [one.pk], decision, decision, user=mara)
        for decision in ("keep", "revoke", "keep", "revoke")
    ])  # fmt: skip
    assert said.count("done") == 1 and sum("a moment ago" in words for words in said) == 3
    one.refresh_from_db()
    assert one.note == one.decision
    assert (Grant.objects.get(pk=one.grant_id).revoked_at is not None) == (one.decision == "revoke")


def test_a_large_review_is_told_in_parts(world: World, mara: Any) -> None:
    made = Grant.objects.bulk_create(
        Grant(client=world.client, reason="r", role=f"role-{number}") for number in range(1_100)
    )
    review = reviews.start(client=world.client, scope=None, user=mara, reason="r")
    everything = list(review.items.values_list("pk", flat=True))
    reviews.decide(review.pk, everything, "keep", "ü" * 400, user=mara)
    reviews.finish(review.pk, user=mara)
    drained(30)
    told = [statement(record) for record in Record.objects.filter(type="review").order_by("at")]
    wanted = [world.grant.pk, *(one.pk for one in made)]
    assert [one for part in told for one in part.get("grants", [])] == wanted
    parts = [part for part in told if part["action"] == "review.finish"]
    assert [one for part in parts for one in part["kept"]] == wanted
    assert [part["part"] for part in parts] == list(range(1, parts[0]["parts"] + 1)) and len(parts) > 2
    assert len(review_evidence.records_of(READER, Review.objects.get()).finish) == len(parts)
    assert not Record.objects.filter(type="notice").exists()


# Who may


def test_reviewing_takes_the_right_to_and_revoking_the_right_to_change_grants_too(world: World, review: Review) -> None:
    one, other, _ = items(review)
    viewer, reviewer = member("vera", "clients.view_review"), member(
        "rita", "clients.view_review", "clients.change_review"
    )  # fmt: skip
    keep = {"item": [one.pk], "decision": "keep", "note": "n"}
    assert viewer.get(url(review)).status_code == 200 and "decision" not in page(viewer, review).split("<main")[1]
    assert viewer.post(url(review, "decide"), keep).status_code == 403
    assert viewer.post(url(review, "finish")).status_code == 403
    assert viewer.post("/admin/clients/review/add/", {"client": world.client.pk, "reason": "r"}).status_code == 403
    revoke = {"item": [other.pk], "decision": "revoke", "note": "n"}
    assert reviewer.post(url(review, "decide"), revoke).status_code == 403
    assert "Revoke the ticked" not in page(reviewer, review)
    assert reviewer.post(url(review, "decide"), keep).status_code == 302
    assert member("otto").get(url(review)).status_code == 403
    assert member("olga").get("/admin/clients/review/").status_code == 403
    assert Grant.objects.filter(revoked_at=None).count() == 4


def test_rights_are_asked_again_where_the_change_is_made(world: World, review: Review) -> None:
    member("rita", "clients.change_review"), member("vera", "clients.view_review")
    people = get_user_model().objects
    one = items(review)[0].pk
    rita, vera = people.get(username="rita"), people.get(username="vera")
    for call in (
        lambda: reviews.decide(review.pk, [one], "revoke", "n", user=rita),
        lambda: reviews.decide(review.pk, [one], "keep", "n", user=vera),
        lambda: reviews.finish(review.pk, user=vera),
        lambda: reviews.start(client=world.client, scope=None, user=rita, reason="r"),
    ):
        with pytest.raises(PermissionDenied):
            call()


@pytest.mark.parametrize("path", ["0/decide/", "99999999999999999999999/finish/", "0/change/"])
def test_a_review_that_is_not_there_is_said_kindly(http: HttpClient, path: str) -> None:
    assert http.get(f"/admin/clients/review/{path}").status_code in (302, 405)
    assert http.post(f"/admin/clients/review/{path}").status_code in (302, 404)


def test_nothing_changes_on_get(http: HttpClient, review: Review) -> None:
    for what in ("decide", "finish"):
        assert http.get(url(review, what)).status_code == 405
    assert "checked" in http.get(url(review) + "?all=1").content.decode()
    assert not ReviewItem.objects.exclude(decision="").exists()


# What helps to decide


def test_how_much_a_grant_was_relied_on_is_counted_in_the_newest_calls(
    world: World, http: HttpClient, review: Review, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        world.verify()
    own, _, flag = (item.grant_id for item in items(review))  # the third covers what the first does
    found = review_evidence.usage(READER, review, timezone.now())
    assert (found.calls, found.looked, found.all) == ({own: 3, flag: 3}, 3, True)
    assert "of all 3 calls of Claude within the last 30 days" in page(http, review)
    monkeypatch.setattr(review_evidence, "MOST_CALLS", 2)
    found = review_evidence.usage(READER, review, timezone.now())
    assert (found.calls, found.all) == ({own: 2, flag: 2}, False)
    with pytest.raises(PermissionDenied):
        review_evidence.usage(Viewer("staff:2", "Vera"), review, timezone.now())
    assert "within the last 30 days" not in page(member("vera", "clients.view_review"), review)


def test_clients_that_nobody_reviewed_for_90_days_are_due(world: World, http: HttpClient, mara: Any) -> None:
    Client.objects.create(slug="idle", name="Idle")  # without grants there is nothing to review
    now = timezone.now()

    def listed() -> str:
        return str(http.get("/admin/clients/review/").content.decode())

    assert [(one.client.slug, one.grants, one.reviewed) for one in reviews.overdue(now)] == [("claude", 1, None)]
    assert "Claude was never reviewed" in listed()
    review = reviews.start(client=world.client, scope=None, user=mara, reason="r")
    assert reviews.overdue(now) == [] and "0 of 1 grant decided" in listed()
    reviews.decide(review.pk, [items(review)[0].pk], "keep", "n", user=mara)
    reviews.finish(review.pk, user=mara)
    assert reviews.overdue(now) == [] and "1 grant: 1 kept" in listed()
    Review.objects.update(finished_at=now - timedelta(days=121))
    assert reviews.overdue(now)[0].client == world.client and "No review of Claude for 121 days" in listed()
    Client.objects.update(status="suspended")
    assert reviews.overdue(now) == []
