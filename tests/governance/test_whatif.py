"""What the decision would be: the same answer as a real call gets, and as it would get after a change."""

from dataclasses import replace

import pytest
from django.utils import timezone

from audit.models import Subject
from governance import whatif
from governance.decision import SubjectState
from governance.snapshot import Snapshot, snapshots
from tests.world import World, build


@pytest.fixture
def world(db: None) -> World:
    return build()


def now(world: World) -> Snapshot:
    return snapshots.at_head()


@pytest.mark.parametrize("tool", ["memory.recall", "memory.capture", "memory.nothing"])
def test_it_answers_as_a_call_is_answered(world: World, tool: str) -> None:
    said = world.verify(tool=tool)
    found = whatif.answer(now(world).policy, world.client.pk, world.backend.pk, tool)
    assert (found.allowed, found.reason) == (said["decision"] == "allow", said["reason"])


def test_a_blocked_user_is_refused_as_in_a_call(world: World) -> None:
    uid = world.verify()["subject"]["uid"]
    Subject.objects.filter(uid=uid).update(blocked_at=timezone.now())
    state = SubjectState(blocked=True)
    found = whatif.answer(
        now(world).policy, world.client.pk, world.backend.pk, "memory.recall", subject=uid, state=state
    )
    assert found.reason == world.verify()["reason"] == "subject_blocked"


def test_a_client_without_an_oauth_client_id_is_unknown(world: World) -> None:
    world.client.oauth_client_ids.all().delete()
    found = whatif.answer(now(world).policy, world.client.pk, world.backend.pk, "memory.recall")
    assert found.reason == "client_unknown"


def test_scopes_that_the_token_lacks_are_missed(world: World) -> None:
    policy = now(world).policy
    ask = lambda scopes: whatif.answer(policy, world.client.pk, world.backend.pk, "memory.recall", scopes=scopes)  # noqa: E731
    assert ask([]).reason == "insufficient_scope"
    assert ask(["memory:write"]).allowed, "it implies memory:read"


def test_a_grant_that_is_not_made_yet_turns_the_answer_and_leaves_the_policy_alone(world: World) -> None:
    policy = now(world).policy
    like = policy.grants_of_client[world.client.pk][0]
    ask = lambda p: whatif.answer(p, world.client.pk, world.backend.pk, "memory.capture").reason  # noqa: E731
    assert ask(policy) == "not_granted"
    assert ask(whatif.with_grant(policy, replace(like, id=0, scopes=frozenset({"memory:write"})))) == "granted"
    assert ask(whatif.with_grant(policy, replace(like, id=0, scopes=frozenset(), effect="deny"))) == "grant_denied"
    assert ask(policy) == "not_granted"


def test_a_grant_is_put_in_the_place_of_itself_and_can_be_left_out(world: World) -> None:
    policy = now(world).policy
    ask = lambda p: whatif.answer(p, world.client.pk, world.backend.pk, "memory.recall").reason  # noqa: E731
    ended = replace(policy.grants_of_client[world.client.pk][0], expires_at=1.0)
    assert ask(policy) == "granted"
    assert ask(whatif.with_grant(policy, ended)) == "not_granted"
    assert ask(whatif.without_grant(policy, world.grant.pk)) == "not_granted"
