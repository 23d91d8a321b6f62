"""Back-channel logout (OpenID Connect Back-Channel Logout 1.0): what is a logout token of an issuer refuses the user's
older tokens at the next call; everything else is refused in the words of section 2.8."""

import time
from datetime import timedelta
from typing import Any

import jwt
import pytest
from django.test import Client as HttpClient
from django.utils import timezone

from audit.models import Head, Record, Subject
from clients.models import ClaimMapping, Issuer, KeySet
from clients.signals.logout import EVENT
from governance import signals_api
from governance.budgets import Budgets
from governance.snapshot import snapshots
from tests.clients.keys import fake_issuer, signing_key
from tests.staff import newest
from tests.world import _PRIVATE, ISSUER, World, build, token

URL = "/v1/signals/logout"
EVENTS = {EVENT: {}}


@pytest.fixture
def world(db: None) -> World:
    return build()


def logout(key: Any = _PRIVATE, header: dict[str, Any] | None = None, **changes: Any) -> str:
    """A signed logout token of now; None removes a claim."""
    now = int(time.time())
    usual = {
        "iss": ISSUER, "aud": "claude-app", "iat": now, "exp": now + 120, "jti": "l1", "sub": "alice",
        "events": EVENTS,
    }  # fmt: skip
    claims = {name: value for name, value in (usual | changes).items() if value is not None}
    return jwt.encode(claims, key, algorithm="RS256", headers={"kid": "k1", "typ": "logout+jwt"} | (header or {}))


FORM = {"content_type": "application/x-www-form-urlencoded"}


def post(given: str) -> Any:
    return HttpClient().post(URL, f"logout_token={given}", **FORM)


def refused(given: str) -> str:
    """The words of a refusal."""
    response = post(given)
    assert response.status_code == 400 and response.headers["Cache-Control"] == "no-store"
    assert response.headers["Content-Type"] == "application/json"
    assert set(response.json()) == {"error", "error_description"} and response.json()["error"] == "invalid_request"
    assert not Subject.objects.exclude(signed_out_at=None).exists()
    return str(response.json()["error_description"])


class TestALogout:
    def test_refuses_older_tokens_at_the_next_call_and_no_newer_ones(self, world: World) -> None:
        uid = world.verify()["subject"]["uid"]
        before = Head.objects.get().policy
        response = post(logout(sid="s-9"))
        assert (response.status_code, response.content, response.headers["Cache-Control"]) == (200, b"", "no-store")
        assert world.verify()["reason"] == "token_expired"
        assert world.verify(token=token(iat=int(time.time()) + 1))["decision"] == "allow"
        assert world.verify(token=token("bob"))["decision"] == "allow"
        assert Head.objects.get().policy == before
        said = newest("signal")
        assert (said["action"], said["subject"]) == ("subject.sign_out", uid)
        assert said["actor"] == f"issuer:{Issuer.objects.get().pk}"

    def test_of_who_never_called_refuses_a_token_from_before(self, world: World) -> None:
        old = token("carol")
        assert post(logout(sub="carol")).status_code == 200
        assert world.verify(token=old)["reason"] == "token_expired"

    @pytest.mark.parametrize(
        ("header", "changes"),
        [
            ({"typ": None}, {}),
            ({"typ": "JWT"}, {}),
            ({"typ": "application/logout+JWT"}, {}),
            ({}, {"aud": ["other", "claude-app"]}),
            ({}, {"exp": None}),
            ({}, {"events": {EVENT: {}, "https://other.example": {}}}),
        ],
    )
    def test_is_taken_in_every_form_that_the_standard_allows(
        self, world: World, header: dict[str, Any], changes: dict[str, Any]
    ) -> None:
        assert post(logout(header=header, **changes)).status_code == 200

    def test_sent_again_does_nothing_more_also_after_the_user_came_back(self, world: World) -> None:
        world.verify()
        given = logout(iat=int(time.time()) - 30)
        assert post(given).status_code == 200
        out, back = Subject.objects.get().signed_out_at, token(iat=int(time.time()) - 20)
        assert world.verify(token=back)["decision"] == "allow"
        assert post(given).status_code == 200
        assert Subject.objects.get().signed_out_at == out and world.verify(token=back)["decision"] == "allow"
        newest("signal")
        assert Record.objects.filter(type="signal").count() == 1

    def test_by_a_clock_that_is_ahead_refuses_what_that_clock_dated_before_it(self, world: World) -> None:
        now = int(time.time())
        ahead, later = token(iat=now + 20), token(iat=now + 26)
        assert world.verify(token=ahead)["decision"] == "allow"
        assert post(logout(iat=now + 25)).status_code == 200
        assert world.verify(token=ahead)["reason"] == "token_expired"
        assert world.verify(token=later)["decision"] == "allow"

    def test_names_users_by_the_claim_by_which_the_issuer_knows_them(self, world: World) -> None:
        ClaimMapping.objects.create(issuer=Issuer.objects.get(), subject_claim="oid")
        assert refused(logout()) == "oid is missing: Muniment knows users, and no sessions (sid)"
        assert world.verify(token=token(oid="o-1"))["decision"] == "allow"
        assert post(logout(oid="o-1")).status_code == 200
        assert world.verify(token=token(oid="o-1"))["reason"] == "token_expired"
        ClaimMapping.objects.update(subject_claim="ext.id")  # a path, as in tokens
        assert world.verify(token=token(ext={"id": "o-2"}))["decision"] == "allow"
        assert post(logout(ext={"id": "o-2"})).status_code == 200
        assert world.verify(token=token(ext={"id": "o-2"}))["reason"] == "token_expired"


class TestIsRefused:
    @pytest.mark.parametrize(
        "changes",
        [
            {"iss": "https://else.example/"},
            {"iss": None},
            {"aud": "chatgpt-app"},
            {"aud": None},
            {"aud": [7, {}]},
            {"iat": None},
            {"iat": int(time.time()) + 10_000_000},
            {"exp": 5},
            {"exp": "soon"},
            {"exp": None, "iat": 5},
            {"jti": None},
            {"events": None},
            {"events": {}},
            {"events": [EVENT]},
            {"events": {EVENT: None}},
            {"events": {"https://schemas.openid.net/secevent/caep/event-type/session-revoked": {}}},
            {"nonce": "n"},
            {"sub": None, "sid": "s"},
            {"sub": ""},
            {"sub": 7},
            {"sub": "a\u202eb"},
            {"sub": "a" * 256},
        ],
    )
    def test_what_does_not_say_what_it_must(self, world: World, changes: dict[str, Any]) -> None:
        world.verify()
        words = refused(logout(**changes))
        assert words and "alice" not in words and "chatgpt" not in words

    @pytest.mark.parametrize("kind", ["at+jwt", "secevent+jwt", "application/at+jwt", 7])
    def test_a_token_of_another_type(self, world: World, kind: Any) -> None:
        key = signing_key("RS256", "k1")
        KeySet.objects.update(jwks={"keys": [key.jwk()]})
        claims = {
            "iss": ISSUER, "aud": "claude-app", "iat": int(time.time()), "jti": "l1", "sub": "alice", "events": EVENTS,
        }  # fmt: skip
        assert refused(key.token(claims, {"typ": kind})) == "typ is not that of a logout token"
        assert post(key.token(claims, {"typ": "logout+jwt"})).status_code == 200

    def test_an_access_token_and_an_id_token(self, world: World) -> None:
        assert refused(token()) == "typ is not that of a logout token"
        identity = {"iss": ISSUER, "aud": "claude-app", "sub": "alice", "exp": int(time.time()) + 60, "nonce": "n"}
        assert "back-channel" in refused(jwt.encode(identity, _PRIVATE, algorithm="RS256", headers={"kid": "k1"}))

    def test_one_that_the_issuer_did_not_sign(self, world: World) -> None:
        assert refused(logout(signing_key("RS256", "k1", 3).private)) == "the signature does not hold"
        head, body, _ = logout().split(".")
        assert refused(f"{head}.{body}.") == "the signature does not hold"

    def test_one_of_an_issuer_that_was_disabled(self, world: World) -> None:
        Issuer.objects.update(enabled=False)
        assert "iss" in refused(logout())

    @pytest.mark.parametrize("text", ["", "x", "a.b.c", "%00", "A" * 20_000])
    def test_what_is_no_token(self, world: World, text: str) -> None:
        assert refused(text)

    def test_another_content_type_two_tokens_and_another_method(self, world: World) -> None:
        given = logout()
        assert (
            HttpClient().post(URL, f'{{"logout_token": "{given}"}}', content_type="application/json").status_code == 400
        )
        assert post(f"{given}&logout_token={given}").status_code == 400
        assert post("x" * 300_000).status_code == 413
        assert HttpClient().get(URL).status_code == 405
        assert not Subject.objects.exclude(signed_out_at=None).exists()

    def test_beyond_the_budget_of_its_source(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(signals_api, "budgets", Budgets(rate=0.001, burst=3))
        assert [post("x").status_code for _ in range(5)] == [400, 400, 400, 429, 429]
        forged = logout(signing_key("RS256", "k1", number=3).private)
        assert post(forged).status_code == 429 and world.verify()["decision"] == "allow"
        assert post(logout()).status_code == 200  # what is wrong keeps no genuine one out
        assert world.verify()["reason"] == "token_expired" and post("x").status_code == 429


def test_keys_are_fetched_for_one_that_is_new_and_an_outage_is_no_refusal(world: World, settings: Any) -> None:
    settings.MUNIMENT_DEMO, settings.MUNIMENT_JWKS_COOLDOWN = True, 0
    new = signing_key("RS256", "k9")
    with fake_issuer(new.jwk()) as server:
        Issuer.objects.update(jwks_uri=f"{server.url}/jwks")
        server.status = 500
        given = logout(new.private, {"kid": "k9"})
        assert post(given).status_code == 503
        server.status = 200
        assert post(given).status_code == 200
        strange = logout(signing_key("RS256", "k7").private, {"kid": "k7"})
        assert post(strange).json()["error_description"] == "the issuer has published no such key"
        settings.MUNIMENT_JWKS_COOLDOWN = 600
        assert post(strange).status_code == 503, "it was looked for a moment ago, and may be there since"
    KeySet.objects.update(fetched_at=timezone.now() - timedelta(days=2))
    snapshots.clear()
    assert post(given).status_code == 503
