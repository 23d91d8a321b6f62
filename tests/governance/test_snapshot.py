"""The snapshot: what a warm call costs in queries, when it is loaded anew, and what its digest names."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import authenticate
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from audit.models import Head
from clients.models import KeySet
from governance.snapshot import load, snapshots
from tests.world import World, build, token


@pytest.fixture
def world(db: None) -> World:
    return build()


@contextmanager
def queries(expected: int) -> Iterator[None]:
    with CaptureQueriesContext(connection) as captured:
        yield
    assert len(captured) == expected, [query["sql"] for query in captured]


def test_a_users_next_call_asks_the_database_nothing_but_to_record_it(world: World) -> None:
    """The baseline of the hot path: the recorder's own connection alone is used."""
    text = token()
    world.verify(token=text)
    with queries(0):
        world.verify(token=text)


def test_the_digest_names_the_content_and_not_the_version(world: World) -> None:
    before = load()
    world.grant.reason = "other words"
    world.grant.save()
    assert load().version == before.version, "a reason is no policy"
    world.grant.revoked_at = timezone.now()
    world.grant.save()
    after = load()
    assert (after.version, after.digest == before.digest) == (before.version + 1, False)
    world.grant.revoked_at = None
    world.grant.save()
    assert (load().version, load().digest) == (before.version + 2, before.digest)


def test_an_empty_key_set_reaches_every_process_with_the_policy_version(world: World) -> None:
    assert world.verify()["decision"] == "allow"
    KeySet.objects.update(jwks={"keys": []}, attempted_at=timezone.now(), finished_at=timezone.now())
    assert world.verify()["reason"] == "token_invalid"


def test_that_keys_were_fetched_again_raises_no_version(world: World) -> None:
    version = Head.objects.get().policy
    KeySet.objects.update(fetched_at=timezone.now())
    assert Head.objects.get().policy == version


def test_keys_that_are_too_old_are_an_outage_even_for_a_token_seen_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = token()
    assert world.verify(token=text)["decision"] == "allow"
    KeySet.objects.update(fetched_at=timezone.now() - timedelta(hours=25), attempted_at=timezone.now())
    snapshots.current().keys_fetched.clear()
    monkeypatch.setattr(snapshots, "_looked_at", 0.0)
    answer = world.verify(token=text)
    assert (answer["reason"], answer["status"], answer["remedy"]) == ("issuer_unavailable", 503, "retry_later")


def test_a_disabled_backend_a_disabled_issuer_and_an_issuer_not_accepted(world: World) -> None:
    assert world.verify()["decision"] == "allow"
    world.backend.accepts_every_issuer = False
    world.backend.save()
    assert world.verify()["reason"] == "issuer_unknown"
    world.backend.accepts_every_issuer = True
    world.backend.save()
    assert world.verify()["decision"] == "allow"
    KeySet.objects.get().issuer.__class__.objects.update(enabled=False)
    assert world.verify()["reason"] == "issuer_unknown"
    world.backend.enabled = False
    world.backend.save()
    assert world.post("/v1/verify", {"token": None, "tool": "x"}).status_code == 401


def test_an_issuer_without_tls_is_believed_in_the_demo_alone(world: World, settings: Any) -> None:
    KeySet.objects.get().issuer.__class__.objects.update(issuer="http://127.0.0.1:8000/demo-issuer")
    text = token(iss="http://127.0.0.1:8000/demo-issuer")
    assert world.verify(token=text)["decision"] == "allow"
    settings.MUNIMENT_DEMO = False
    snapshots.clear()
    assert world.verify(token=text)["reason"] == "issuer_unknown"


def test_a_demo_password_is_worthless_in_production(world: World, settings: Any) -> None:
    staff = User.objects.create_user("officer", password="muniment-demo-admin")
    assert authenticate(username="officer", password="muniment-demo-admin") == staff
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.PBKDF2PasswordHasher"]
    assert authenticate(username="officer", password="muniment-demo-admin") is None
