"""Key sets are fetched once for all, kept through outages, and a change reaches the policy version."""

import os
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.conf import settings as configured
from django.db import connection, transaction
from django.utils import timezone

from clients import jwks, keysets, tasks
from clients.fetching import FetchError
from clients.models import Issuer, KeySet
from clients.tokens import UnknownKey, identify
from tests.clients.keys import AUDIENCE, NOW, FakeIssuer, fake_issuer, policy, signing_key
from tests.live import until

KEY, NEW = signing_key("ES256", "k1"), signing_key("ES256", "k2", number=1)
METADATA = "/.well-known/openid-configuration"
pytestmark = pytest.mark.usefixtures("db", "demo")


@pytest.fixture
def demo(settings: Any) -> None:
    """Loopback issuers are for development only."""
    settings.MUNIMENT_DEMO = True


def stored(issuer: Issuer) -> KeySet:
    return KeySet.objects.get(issuer=issuer)


def keys(issuer: Issuer) -> tuple[jwks.VerificationKey, ...]:
    document = stored(issuer).jwks
    assert document is not None
    return jwks.parse(document)


def register(server: FakeIssuer, **changes: Any) -> Issuer:
    return Issuer.objects.create(**{"issuer": server.url} | changes)


def version() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT policy FROM audit_head")
        return int(cursor.fetchone()[0])


def age(issuer: Issuer, seconds: float) -> None:
    """Let the last attempt have been so long ago."""
    long_ago = timezone.now() - timedelta(seconds=seconds)
    KeySet.objects.filter(issuer=issuer).update(attempted_at=long_ago, finished_at=long_ago)


def in_threads(count: int, work: Callable[[], Any]) -> list[Any]:
    results: list[Any] = []
    start = threading.Barrier(count)

    def run() -> None:
        try:
            start.wait(10)
            results.append(work())
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == count
    return results


def test_keys_are_found_by_discovery_and_verify_a_token() -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)
        assert keysets.refresh(issuer.pk) is True
        key_set = stored(issuer)
        assert (key_set.error, server.hits) == ("", {METADATA: 1, "/jwks": 1})
        assert key_set.attempted_at is not None
        assert key_set.fetched_at is not None
        assert key_set.finished_at is not None
        assert key_set.attempted_at <= key_set.fetched_at == key_set.finished_at
        issuers = policy(issuer=server.url, keys=keys(issuer))
        assert identify(KEY.token(iss=server.url), issuers, frozenset({AUDIENCE}), NOW).sub == "alice"


def test_a_set_jwks_uri_needs_no_discovery() -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server, issuer="https://elsewhere.example/", jwks_uri=server.url + "/jwks")
        assert keysets.refresh(issuer.pk) is True
        assert server.hits == {"/jwks": 1}


@pytest.mark.parametrize(
    ("path", "metadata"),
    [
        ("", "/.well-known/oauth-authorization-server"),
        ("/", "/.well-known/openid-configuration"),
        ("/realms/a", "/realms/a/.well-known/openid-configuration"),
        ("/realms/a", "/.well-known/oauth-authorization-server/realms/a"),
        ("/realms/a/", "/.well-known/oauth-authorization-server/realms/a"),
    ],
)
def test_both_kinds_of_discovery_are_tried(path: str, metadata: str) -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server, issuer=server.url + path)
        server.metadata_path, server.discovery = metadata, {"issuer": server.url + path}
        assert keysets.refresh(issuer.pk) is True


@pytest.mark.parametrize("claimed", ["https://other.example", None, "", 5, "{url}/", "{url} "])
def test_a_discovery_document_of_another_issuer_is_refused(claimed: Any) -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)
        server.discovery = {"issuer": claimed.format(url=server.url) if isinstance(claimed, str) else claimed}
        assert keysets.refresh(issuer.pk) is False
        assert "of another issuer" in stored(issuer).error
        assert stored(issuer).jwks is None
        assert server.hits["/jwks"] == 0


@pytest.mark.parametrize("uri", [None, 5, ["x"], "", "file:///etc/passwd", "http://10.0.0.1/jwks", "https://10.0.0.1/"])
def test_a_discovered_address_is_judged_like_any_other(uri: Any) -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)
        server.discovery = {"jwks_uri": uri}
        assert keysets.refresh(issuer.pk) is False
        assert stored(issuer).error
        assert stored(issuer).jwks is None


def test_loopback_and_http_are_refused_outside_development(settings: Any) -> None:
    settings.MUNIMENT_DEMO = False
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)
        assert keysets.refresh(issuer.pk) is False
        assert "not https" in stored(issuer).error
        issuer = register(server, issuer="https://x.example", jwks_uri="https://127.0.0.1:1/jwks")
        assert keysets.refresh(issuer.pk) is False
        assert "not allowed" in stored(issuer).error
        assert sum(server.hits.values()) == 0


def test_a_private_network_that_staff_list_is_allowed(settings: Any) -> None:
    settings.MUNIMENT_DEMO = False
    issuer = Issuer.objects.create(
        issuer="https://x.example", jwks_uri="https://127.0.0.1:1/jwks", allowed_networks=["127.0.0.1/8"]
    )
    assert keysets.refresh(issuer.pk) is False
    assert "ConnectionRefused" in stored(issuer).error


def test_a_network_that_staff_mistyped_is_an_error_and_no_crash() -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server, allowed_networks=["10.0.0.0/99"])
        assert keysets.refresh(issuer.pk) is False
        assert stored(issuer).error


def test_a_changed_set_raises_the_policy_version_once_and_an_unchanged_one_does_not() -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)
        assert keysets.refresh(issuer.pk) is True
        before = version()
        fetched_at = stored(issuer).fetched_at
        server.jwks = {"keys": [KEY.jwk(x5c=["new"], key_ops=["verify"])]}
        assert keysets.refresh(issuer.pk) is False
        assert version() == before
        now = stored(issuer).fetched_at
        assert now is not None
        assert fetched_at is not None
        assert now > fetched_at
        server.jwks = {"keys": [KEY.jwk(), NEW.jwk()]}
        assert keysets.refresh(issuer.pk) is True
        assert version() == before + 1
        server.jwks = {"keys": [NEW.jwk(), KEY.jwk()]}
        assert keysets.refresh(issuer.pk) is False
        assert version() == before + 1


def test_an_empty_set_is_a_change_and_withdraws_every_key() -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)
        keysets.refresh(issuer.pk)
        before = version()
        server.jwks = {"keys": []}
        assert keysets.refresh(issuer.pk) is True
        assert version() == before + 1
        assert stored(issuer).jwks == {"keys": []}
        issuers = policy(issuer=server.url, keys=keys(issuer))
        with pytest.raises(UnknownKey):
            identify(KEY.token(iss=server.url), issuers, frozenset({AUDIENCE}), NOW)


def down(server: FakeIssuer) -> None:
    server.status = 503


def redirecting(server: FakeIssuer) -> None:
    server.status, server.headers = 302, {"Location": server.url + "/jwks"}


def oversized(server: FakeIssuer) -> None:
    server.body = b'{"keys": []' + b" " * 300_000 + b"}"


def no_key_set(server: FakeIssuer) -> None:
    server.jwks = {"error": "s3cret"}


def too_many_keys(server: FakeIssuer) -> None:
    server.jwks = {"keys": [KEY.jwk()] * 101}


def ambiguous(server: FakeIssuer) -> None:
    server.body = b'{"keys": [], "keys": []}'


def slow(server: FakeIssuer) -> None:
    server.delay = 2.0


@pytest.mark.parametrize("trouble", [down, redirecting, oversized, no_key_set, too_many_keys, ambiguous, slow])
def test_a_failure_keeps_the_keys_and_says_why(
    trouble: Callable[[FakeIssuer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)
        keysets.refresh(issuer.pk)
        before, kept = version(), stored(issuer)
        trouble(server)
        with monkeypatch.context() as impatient:
            impatient.setattr(keysets, "TIMEOUT", 1.5)
            assert keysets.refresh(issuer.pk) is False
        after = stored(issuer)
        assert (after.jwks, after.fetched_at, version()) == (kept.jwks, kept.fetched_at, before)
        assert after.error
        assert "s3cret" not in after.error
        assert after.finished_at is not None
        assert after.attempted_at is not None
        assert after.finished_at >= after.attempted_at
        server.status, server.headers, server.body, server.delay = 200, {}, None, 0.0
        server.jwks = {"keys": [KEY.jwk()]}
        keysets.refresh(issuer.pk)
        assert stored(issuer).error == ""


def test_a_fetch_inside_a_transaction_is_refused() -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)
        for call in (
            lambda: keysets.refresh(issuer.pk),
            lambda: keysets.claim_and_refresh(issuer.pk),
            keysets.refresh_all,
        ):
            with transaction.atomic(), pytest.raises(RuntimeError):
                call()
        assert sum(server.hits.values()) == 0


def test_a_disabled_or_unknown_issuer_is_not_fetched() -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server, enabled=False)
        assert keysets.refresh(issuer.pk) is False
        assert keysets.claim_and_refresh(issuer.pk) == "too_soon"
        assert keysets.refresh(999_999) is False
        assert keysets.claim_and_refresh(999_999) == "too_soon"
        assert keysets.refresh_all() == 0
        assert sum(server.hits.values()) == 0


# On an unknown kid


def test_the_outcomes_of_a_claimed_fetch() -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)
        assert keysets.claim_and_refresh(issuer.pk) == "refreshed"
        assert keysets.claim_and_refresh(issuer.pk) == "too_soon"
        age(issuer, 25)
        assert keysets.claim_and_refresh(issuer.pk) == "too_soon"
        age(issuer, 31)
        assert keysets.claim_and_refresh(issuer.pk) == "unchanged"
        age(issuer, 31)
        server.status = 500
        assert keysets.claim_and_refresh(issuer.pk) == "failed"
        assert keysets.claim_and_refresh(issuer.pk) == "too_soon"


def test_a_storm_of_made_up_keys_makes_one_fetch_and_a_rotation_is_seen_after_the_cooldown() -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)
        outcomes = [keysets.claim_and_refresh(issuer.pk) for _ in range(200)]
        assert (outcomes.count("refreshed"), outcomes.count("too_soon")) == (1, 199)
        assert server.hits["/jwks"] == 1
        server.jwks = {"keys": [NEW.jwk()]}
        assert keysets.claim_and_refresh(issuer.pk) == "too_soon"
        age(issuer, configured.MUNIMENT_JWKS_COOLDOWN + 1)
        assert keysets.claim_and_refresh(issuer.pk) == "refreshed"
        assert [key.kid for key in keys(issuer)] == ["k2"]


def test_many_callers_at_once_make_one_fetch_and_the_others_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keysets, "TIMEOUT", 30.0)  # the others may take long until each had its turn
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)
        server.released.clear()
        answered: list[str] = []

        def call() -> str:
            outcome = keysets.claim_and_refresh(issuer.pk)
            answered.append(outcome)
            if len(answered) == 7:  # all but the one who fetches: only now may the issuer answer
                server.released.set()
            return outcome

        outcomes = in_threads(8, call)
        assert (outcomes.count("refreshed"), outcomes.count("busy")) == (1, 7)
        assert answered[-1] == "refreshed"
        assert server.hits["/jwks"] == 1


@pytest.mark.parametrize("tried", ["never", "long ago"])
def test_while_another_takes_the_claim_it_is_busy_not_too_soon(tried: str) -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)
        KeySet.objects.create(issuer=issuer)
        if tried == "long ago":
            age(issuer, 3600)
        with psycopg.connect(os.environ["DATABASE_URL"]) as other:
            other.execute("UPDATE clients_keyset SET attempted_at = now() WHERE issuer_id = %s", [issuer.pk])
            assert keysets.claim_and_refresh(issuer.pk) == "busy"
        assert keysets.claim_and_refresh(issuer.pk) == "busy"
        assert sum(server.hits.values()) == 0


def test_while_staff_hold_the_row_of_a_set_just_fetched_it_is_too_soon() -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)
        assert keysets.claim_and_refresh(issuer.pk) == "refreshed"
        with psycopg.connect(os.environ["DATABASE_URL"]) as other:
            other.execute("SELECT id FROM clients_keyset WHERE issuer_id = %s FOR UPDATE", [issuer.pk])
            assert keysets.claim_and_refresh(issuer.pk) == "too_soon"


def test_a_fetch_whose_process_died_is_not_waited_for() -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)

        def attempted(seconds: float, finished: datetime | None) -> None:
            KeySet.objects.update_or_create(
                issuer=issuer,
                defaults={
                    "attempted_at": timezone.now() - timedelta(seconds=seconds),
                    "finished_at": finished,
                },
            )

        attempted(5, None)
        assert keysets.claim_and_refresh(issuer.pk) == "busy"
        attempted(5, timezone.now() - timedelta(seconds=60))
        assert keysets.claim_and_refresh(issuer.pk) == "busy"
        attempted(12, None)
        assert keysets.claim_and_refresh(issuer.pk) == "too_soon"
        attempted(31, None)
        assert keysets.claim_and_refresh(issuer.pk) == "refreshed"


def test_nobody_holds_a_lock_while_a_fetch_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keysets, "TIMEOUT", 60.0)
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)
        server.released.clear()

        def fetch() -> None:
            keysets.refresh(issuer.pk)
            connection.close()

        thread = threading.Thread(target=fetch)
        thread.start()
        until(lambda: server_is_asked(issuer), 30)
        Issuer.objects.filter(pk=issuer.pk).update(leeway=31)
        KeySet.objects.filter(issuer=issuer).update(error="x")
        assert stored(issuer).jwks is None, "the updates waited for the fetch"
        server.released.set()
        thread.join(30)
        assert stored(issuer).jwks is not None


def server_is_asked(issuer: Issuer) -> bool:
    return KeySet.objects.filter(issuer=issuer, attempted_at__isnull=False).exists()


def test_an_older_fetch_does_not_overwrite_a_newer_one() -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)
        old = keysets._claim(issuer.pk, None)
        assert old is not None
        withdrawn = keysets._fetch(issuer)
        server.jwks = {"keys": [NEW.jwk()]}
        assert keysets.refresh(issuer.pk) is True
        keysets._store(old, withdrawn)
        keysets._store(old, FetchError("late"))
        assert [key.kid for key in keys(issuer)] == ["k2"]
        assert stored(issuer).error == ""


# In the background


def test_all_enabled_issuers_are_refreshed_whatever_happens_to_one() -> None:
    with fake_issuer(KEY.jwk()) as first, fake_issuer() as broken, fake_issuer(NEW.jwk()) as third:
        broken.status = 500
        issuers = [register(one) for one in (first, broken, third)]
        assert keysets.refresh_all() == 2
        assert [bool(stored(issuer).error) for issuer in issuers] == [False, True, False]
        first.jwks = {"keys": []}
        assert tasks.refresh_key_sets() == 1
        assert stored(issuers[0]).jwks == {"keys": []}
        assert tasks.refresh_key_sets() == 0


def test_slow_issuers_are_fetched_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keysets, "TIMEOUT", 30.0)
    with fake_issuer(KEY.jwk()) as server:
        server.released = threading.Barrier(6)  # type: ignore[assignment]  # none is answered before all have asked
        for number in range(6):
            register(server, issuer=f"https://i{number}.example", jwks_uri=server.url + "/jwks")
        assert keysets.refresh_all() == 6


def test_an_unexpected_error_with_one_issuer_is_logged_and_stored(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with fake_issuer(KEY.jwk()) as server:
        issuer = register(server)

        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(keysets, "get_json", broken)
        assert keysets.refresh(issuer.pk) is False
        assert "unexpectedly" in stored(issuer).error
        assert "ZeroDivisionError" in caplog.text
