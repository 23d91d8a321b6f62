"""Failure budgets: a flood is answered 429 and counted once a second; it fills no log and stops no user."""

import json
import time
from types import SimpleNamespace

import pytest
from django.utils import timezone

from audit.models import Record, Subject
from clients.models import KeySet
from governance import verification
from governance.budgets import Budgets, budgets
from tests.live import until
from tests.world import World, build, jwks, token


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(budgets, "burst", 20)
    monkeypatch.setattr(budgets, "rate", 0.01)  # however slow the machine, nothing comes back in between
    return build()


def status(world: World, text: str, ip: str = "203.0.113.7") -> int:
    body = {"token": text, "tool": "memory.recall", "request": {"ip": ip}}
    found: int = world.post("/v1/verify", body).status_code
    return found


def denials() -> list[dict[str, int]]:
    records = Record.objects.filter(type="denials").order_by("at")
    return [json.loads(bytes(record.statement))["counts"] for record in records]


def test_beyond_the_budget_failures_are_answered_429_and_not_recorded_one_by_one(world: World) -> None:
    seen = [status(world, "x.y.z") for _ in range(40)]
    assert seen[:20] == [200] * 20
    assert 429 in seen[20:]
    assert Record.objects.filter(type="decision").count() == seen.count(200)


def test_what_was_turned_away_is_counted_in_a_denials_record(world: World) -> None:
    begun = time.monotonic()
    seen = [status(world, "x.y.z") for _ in range(40)]
    until(lambda: sum(count["over_budget"] for count in denials()) >= seen.count(429), 30)
    took = time.monotonic() - begun
    assert sum(count["over_budget"] for count in denials()) == seen.count(429)
    assert len(denials()) <= 2 + took, "one a second"


def test_a_user_whose_token_was_verified_is_served_through_the_flood(world: World) -> None:
    good = token()
    assert status(world, good) == 200
    while status(world, "x.y.z") != 429:
        pass
    assert status(world, good) == 200


@pytest.mark.parametrize("how", ["expired", "signed out"])
def test_who_has_a_token_that_was_good_once_floods_nothing_with_it(
    world: World, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = token()
    assert world.verify(token=short)["decision"] == "allow"
    if how == "expired":
        monkeypatch.setattr(verification, "time", SimpleNamespace(time=lambda: time.time() + 700))
    else:
        Subject.objects.update(signed_out_at=timezone.now())
    seen = [status(world, short) for _ in range(40)]
    assert seen[:20] == [200] * 20 and 429 in seen[20:]
    assert Record.objects.filter(type="decision").count() == seen.count(200) + 1


def test_another_source_has_a_budget_of_its_own(world: World) -> None:
    while status(world, "x.y.z") != 429:
        pass
    assert status(world, "x.y.z", ip="198.51.100.1") == 200


def test_made_up_sources_do_not_multiply_the_budget_without_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "rate", 0.001)
    monkeypatch.setattr(budgets, "burst", 3)
    statuses = [status(world, "x.y.z", ip=f"198.51.100.{n}") for n in range(40)]
    assert statuses == [200] * 30 + [429] * 10


def test_the_budget_comes_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    while status(world, "x.y.z") != 429:
        pass
    monkeypatch.setattr(budgets, "rate", 5)
    time.sleep(0.5)
    assert status(world, "x.y.z") == 200


def test_wrong_backend_keys_have_a_budget_too(world: World) -> None:
    body = {"token": None, "tool": "memory.recall"}
    statuses = [world.post("/v1/verify", body, key="mk_wrong").status_code for _ in range(30)]
    assert statuses[:20] == [401] * 20
    assert statuses[-1] == 429


def test_levels_never_exceed_the_burst_nor_fall_below_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("governance.budgets.time", SimpleNamespace(monotonic=lambda: now[0]))
    found = Budgets(rate=1000, burst=3)
    found.charge("b", "s", failures=100)
    assert found.spent("b", "s")
    now[0] += 0.05
    for _ in range(3):
        assert not found.spent("b", "s")
        found.charge("b", "s")
    assert found.spent("b", "s")


def test_a_right_key_is_served_whatever_wrong_ones_its_source_sends(world: World) -> None:
    body = {"token": None, "tool": "memory.recall"}
    while world.post("/v1/verify", body, key="mk_wrong").status_code != 429:
        pass
    assert status(world, token()) == 200


def test_in_a_batch_only_what_is_beyond_the_budget_is_turned_away(world: World) -> None:
    while status(world, "x.y.z") != 429:
        pass
    good = {"token": token(), "tool": "memory.recall", "request": {"ip": "198.51.100.9"}}
    bad = {"token": "x.y.z", "tool": "memory.recall", "request": {"ip": "203.0.113.7"}}
    answers = world.post("/v1/verify/batch", {"items": [bad, good]}).json()["items"]
    assert [one["status"] for one in answers] == [429, 200]


def test_an_outage_of_the_issuer_is_nobodys_failure(world: World) -> None:
    KeySet.objects.update(fetched_at=None, jwks=None, attempted_at=timezone.now(), finished_at=timezone.now())
    assert {status(world, token(sub=f"u{n}")) for n in range(25)} == {200}
    KeySet.objects.update(fetched_at=timezone.now(), jwks=jwks())
    assert world.verify()["decision"] == "allow"
