"""Limits on calls: counted for each user however many agents fan out; denials on record; nothing is paid twice, and
what was not let through is given back."""

import time
from collections.abc import Sequence
from threading import Thread
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from audit.entries import Entry
from audit.models import Record, Subject
from audit.recording import Stale, Unavailable
from clients.buckets import Bucket, Counted
from clients.limits import counter
from clients.models import Client, Grant, Issuer, Limit, OAuthClientId
from governance import verification
from governance.process import recorder
from muniment import statements
from tests.audit import chain
from tests.staff import administrator, drained
from tests.world import ISSUER, World, build, token
from tools.models import Tool


@pytest.fixture
def world(db: None) -> World:
    return build()


def limit(**members: Any) -> Limit:
    """Of hours, so that no window ends meanwhile."""
    return Limit.objects.create(**{"per": "subject", "count": 2, "period": "hour", "reason": "test"} | members)


def reasons(world: World, *calls: dict[str, Any]) -> list[str]:
    return [world.verify(**call)["reason"] for call in calls]


def batch(world: World, *calls: dict[str, Any]) -> list[dict[str, Any]]:
    items = [{"token": token(), "tool": "memory.recall"} | call for call in calls]
    found: list[dict[str, Any]] = world.post("/v1/verify/batch", {"items": items}).json()["items"]
    return found


def test_a_user_has_so_many_calls_and_the_next_is_a_recorded_denial_that_says_when_to_come_back(world: World) -> None:
    held = limit()
    mine, theirs = token(), token("bob")
    assert reasons(world, *[{"token": mine}] * 2) == ["granted"] * 2
    answer = world.verify(token=mine)
    assert (answer["decision"], answer["reason"], answer["status"]) == ("deny", "rate_limited", 429)
    assert answer["remedy"] == "retry_later" and 3500 < answer["retry_after"] <= 3600
    assert answer["explanation"].endswith("Each user may call 2 times an hour.")
    assert answer["subject"]["sub"] == "alice" and "www_authenticate" not in answer
    record = Record.objects.get(id=answer["record"])
    said = statements.load(bytes(record.statement))
    assert (record.decision, record.reason, said["limits"]) == ("deny", "rate_limited", [held.pk])
    assert reasons(world, {"token": theirs}) == ["granted"], "another user has a budget of their own"
    allowed = statements.load(bytes(Record.objects.filter(decision="allow").first().statement))  # type: ignore[union-attr]
    assert "limits" not in allowed


def test_denials_do_not_consume(world: World) -> None:
    limit(count=1)
    assert reasons(world, *[{"tool": "memory.capture"}] * 5) == ["not_granted"] * 5
    assert reasons(world, *[{}] * 5) == ["granted"] + ["rate_limited"] * 4


def test_retry_after_is_exact(world: World) -> None:
    limit(count=1, period="second")
    answers, deadline = list[dict[str, Any]](), time.monotonic() + 30
    while not answers or answers[-1]["decision"] == "allow":  # on a slow machine the second may be over
        assert time.monotonic() < deadline
        answers.append(world.verify())
    assert answers[-1]["retry_after"] == 1
    time.sleep(answers[-1]["retry_after"])
    assert reasons(world, {}) == ["granted"]


def test_a_batch_is_counted_in_its_order_and_with_one_question(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(), limit(per="client", count=3)
    asked, take = [], verification.Purse.settle

    def settle(self: Any, judged: Any) -> None:
        asked.append(len(judged))
        take(self, judged)

    monkeypatch.setattr(verification.Purse, "settle", settle)
    alice, bob = {"token": token()}, {"token": token("bob")}
    found = batch(world, alice, {"tool": "memory.capture"}, alice, bob, alice, bob, {"token": None})
    assert [one["reason"] for one in found] == [
        "granted", "not_granted", "granted", "granted", "rate_limited", "rate_limited", "token_missing",
    ]  # fmt: skip
    assert asked == [7]
    assert "Each user may call" in found[4]["explanation"] and "Each client may call" in found[5]["explanation"]
    assert "Each client may call" in found[4]["explanation"], "both limits refused it"


def test_what_a_limit_names_it_is_of_and_nothing_else(world: World) -> None:
    other = Client.objects.create(slug="chatgpt", name="ChatGPT")
    OAuthClientId.objects.create(client=other, issuer=Issuer.objects.get(), oauth_id="chatgpt-app")
    Grant.objects.create(client=other, reason="r").scopes.set(world.grant.scopes.all())
    theirs = {"token": token(client="chatgpt-app")}
    held = limit(client=other, count=1)
    assert reasons(world, {}, {}, theirs, theirs) == ["granted", "granted", "granted", "rate_limited"]
    assert world.verify(**theirs)["explanation"].endswith("Each user, through ChatGPT, may call once an hour.")
    held.delete()
    held = limit(tool=Tool.objects.get(name="memory.capture"), count=1)
    assert reasons(world, {}, {}, theirs) == ["granted"] * 3
    held.delete()
    limit(tool=Tool.objects.get(name="memory.recall"), per="subject_client", count=1)
    assert reasons(world, {}, {}, theirs, theirs) == ["granted", "rate_limited"] * 2


def test_a_tool_is_counted_for_all_users_together(world: World) -> None:
    limit(per="tool", count=2)
    calls = [{"token": token(sub)} for sub in ("a", "b", "c")]
    assert reasons(world, *calls) == ["granted", "granted", "rate_limited"]
    assert world.verify(**calls[0])["explanation"].endswith("Each tool may be called 2 times an hour.")


def test_modes_that_a_limit_names_have_budgets_of_their_own_and_others_no_limit(world: World) -> None:
    limit(modes=["background", "subagent"], count=1)
    modes = ["background", "background", "subagent", "subagent", "interactive", "interactive"]
    wanted = ["granted", "rate_limited", "granted", "rate_limited", "granted", "granted"]
    assert reasons(world, *[{"agent": {"mode": mode}} for mode in modes]) == wanted


def test_saying_another_mode_evades_no_limit_that_names_none(world: World) -> None:
    limit(count=1)
    modes = ["interactive", "background", "subagent", "api"]
    assert reasons(world, *[{"agent": {"mode": m}} for m in modes]) == ["granted"] + ["rate_limited"] * 3


def test_each_tenant_has_a_budget_of_its_own_whoever_is_counted(world: World) -> None:
    Issuer.objects.update(tenant_claim="org")
    calls = [{"token": token(org=name)} for name in ("acme", "acme", "beta", "beta")] + [{}, {}]
    held = limit(count=1, per="client")
    assert reasons(world, *calls) == ["granted", "rate_limited"] * 3
    held.delete()
    held = limit(count=1, per="tenant")
    assert reasons(world, *calls) == ["granted", "rate_limited"] * 2 + ["granted"] * 2, "no tenant, nothing to count"
    held.delete()
    limit(count=1, tenant="beta")
    assert reasons(world, *calls) == ["granted", "granted", "granted", "rate_limited", "granted", "granted"]


def test_a_call_that_is_decided_again_pays_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(count=2)
    turns = iter(["stale", "stale"])

    class Moving:
        """The recorder, but that the policy has moved on twice."""

        def record(self, entries: Sequence[Entry]) -> list[Any]:
            return [Stale()] * len(entries) if next(turns, None) else recorder().record(entries)

    monkeypatch.setattr(verification, "recorder", Moving)
    assert [one["reason"] for one in batch(world, {}, {}, {})] == ["granted", "granted", "rate_limited"]


def test_one_that_is_refused_when_it_is_decided_again_gets_back_what_it_paid(world: World) -> None:
    limit(count=2)
    uid = world.verify()["subject"]["uid"]
    Subject.objects.filter(uid=uid).update(blocked_at=timezone.now())
    assert reasons(world, *[{}] * 3) == ["subject_blocked"] * 3
    Subject.objects.filter(uid=uid).update(blocked_at=None)
    assert reasons(world, {}, {}) == ["granted", "rate_limited"]


def test_what_could_not_be_recorded_gets_back_what_it_paid(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(count=1)

    class Broken:
        """A recorder that cannot write."""

        def record(self, entries: Sequence[Entry]) -> list[Any]:
            raise Unavailable("test")

    with monkeypatch.context() as broken:
        broken.setattr(verification, "recorder", Broken)
        assert world.post("/v1/verify", {"token": token(), "tool": "memory.recall"}).status_code == 503
    assert reasons(world, {}, {}) == ["granted", "rate_limited"]


def test_what_is_counted_is_what_was_allowed_however_policy_and_user_change_meanwhile(world: World) -> None:
    held, uid = limit(count=1000), world.verify()["subject"]["uid"]
    body, faults = {"token": token(), "tool": "memory.recall"}, list[BaseException]()
    decided: set[str] = set()

    def call() -> None:
        try:
            for turn in range(80):  # on until a change was met in between, and less than the limit in all
                if turn >= 15 and len(decided) > 1:
                    break
                answered = world.post("/v1/verify/batch", {"items": [body] * 3}).json()
                # A 503 has none: the policy kept changing.
                decided.update(one["decision"] for one in answered.get("items", []) if "decision" in one)
        except BaseException as error:
            faults.append(error)
        finally:
            connections.close_all()

    threads = [Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(10_000):
        if not any(thread.is_alive() for thread in threads):
            break
        Tool.objects.filter(name="memory.recall").update(status="active" if turn % 2 else "suspended")
        Subject.objects.filter(uid=uid).update(blocked_at=None if turn % 3 else timezone.now())
    for thread in threads:
        thread.join(30)
    assert not faults
    allowed = Record.objects.filter(type="decision", subject=uid, decision="allow").count()
    stored = counter.store().get(Bucket(held.pk, 1000, 3600, 1000, Counted(uid, None, None)).key)
    assert isinstance(stored, bytes) and int(stored.split()[2]) == allowed > 0
    others = set(Record.objects.filter(type="decision", decision="deny").values_list("reason", flat=True))
    assert others <= {"tool_suspended", "subject_blocked"} and others


def test_a_retry_with_the_same_key_gets_the_first_answer_and_pays_nothing(world: World) -> None:
    limit(count=2)
    body, same = {"token": token(), "tool": "memory.recall"}, {"Idempotency-Key": "k"}
    first = world.post("/v1/verify", body, **same).json()
    assert [world.post("/v1/verify", body, **same).json() for _ in range(3)] == [first] * 3
    assert reasons(world, {}, {}) == ["granted", "rate_limited"]


def test_a_retry_of_a_call_that_was_refused_is_decided_when_there_is_room_again(world: World) -> None:
    held = limit(count=1)
    world.verify()
    body, same = {"token": token(), "tool": "memory.recall"}, {"Idempotency-Key": "k"}
    assert world.post("/v1/verify", body, **same).json()["reason"] == "rate_limited"
    held.delete()
    assert world.post("/v1/verify", body, **same).json()["reason"] == "granted"


def test_a_limit_that_is_made_looser_does_so_at_once(world: World) -> None:
    held = limit(count=1, period="day")
    assert reasons(world, {}, {}) == ["granted", "rate_limited"]
    held.count = 5
    held.save()
    assert reasons(world, {}) == ["granted"]


def test_asking_without_a_call_takes_nothing_and_says_nothing_of_limits(world: World) -> None:
    limit(count=2)
    question = {
        "subject": {"type": "user", "id": "alice", "properties": {"issuer": ISSUER}},
        "action": {"name": "tools/call"}, "resource": {"type": "tool", "id": "memory.recall"},
        "context": {"agent": "claude-app"},
    }  # fmt: skip
    form = "token=" + token()
    kind, key = "application/x-www-form-urlencoded", {"Authorization": f"Bearer {world.key}"}
    assert reasons(world, {}) == ["granted"], "the user is known"
    for _ in range(3):
        assert world.post("/access/v1/evaluation", question).json()["decision"] is True
        looked = world.http.post("/v1/introspect", form, content_type=kind, headers=key)
        assert looked.json()["active"] is True
    assert reasons(world, {}, {}) == ["granted", "rate_limited"]
    assert world.post("/access/v1/evaluation", question).json()["decision"] is True


def test_the_log_is_whole_and_its_pages_say_which_limit(world: World, owner_url: str) -> None:
    held = limit(count=1)
    world.verify()
    denied = world.verify()
    drained()
    assert chain.findings(owner_url) == []
    http = administrator()
    page = http.get(f"/admin/records/{denied['record']}/").content.decode()
    assert f"Limit {held.pk} lets no more calls through for now." in page
    policy = Record.objects.filter(type="policy").latest("index")
    assert "added limit" in http.get(f"/admin/records/{policy.pk}/").content.decode()
