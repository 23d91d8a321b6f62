"""POST /v1/verify, end to end in one process: real keys, real database, real recorder."""

import pytest

from audit.models import Record
from tests.world import World, build, token


@pytest.fixture
def world(db: None) -> World:
    return build()


def test_a_granted_call_is_allowed_and_recorded(world: World) -> None:
    answer = world.verify()
    assert (answer["decision"], answer["reason"], answer["status"]) == ("allow", "granted", 200)
    record = Record.objects.get(id=answer["record"])
    assert (record.client, record.tool, record.subject) == (
        "claude",
        "memory.recall",
        answer["subject"]["uid"],
    )


def test_a_revoked_grant_denies_the_very_next_call(world: World) -> None:
    assert world.verify()["decision"] == "allow"
    world.grant.delete()
    answer = world.verify()
    assert (answer["decision"], answer["reason"], answer["status"]) == ("deny", "not_granted", 403)


def test_a_forged_token_is_a_recorded_denial(world: World) -> None:
    forged = token()[:-8] + "AAAAAAAA"
    answer = world.verify(token=forged)
    assert (answer["decision"], answer["reason"], answer["status"]) == ("deny", "token_invalid", 401)
    assert Record.objects.get(id=answer["record"]).subject is None
