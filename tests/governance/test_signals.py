"""Security events by push: what is taken ends the user's older tokens at the next call, once, without a version of the
policy, and on record; what is not is refused in the words of RFC 8935."""

import time
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.test import Client as HttpClient
from django.utils import timezone

from audit import subjects
from audit.models import Head, Outbox, Record, Subject
from audit.protection import keyring
from audit.record_words import short_uid, title
from clients.models import Issuer, SignalReceipt, SignalStream
from clients.signals import credentials, receipts
from governance import signals_api
from governance.budgets import Budgets
from tests.clients.keys import fake_issuer, signing_key
from tests.clients.test_sets import CAEP, RISC, SSF, TRANSMITTER
from tests.staff import drained, statement
from tests.world import ISSUER, World, build, token

KEY, OTHER = signing_key("ES256", "t1"), signing_key("ES256", "t1", 1)
AUDIENCE = "https://muniment.example/v1/signals/okta"
URL = "/v1/signals/okta"
ALICE = {"format": "iss_sub", "iss": ISSUER, "sub": "alice"}
REVOKED = CAEP + "session-revoked"


@pytest.fixture
def world(db: None) -> World:
    signals_api._good.clear()
    return build()


@pytest.fixture
def secret(world: World) -> str:
    """The push token of a stream whose keys are known."""
    return made()


def made(name: str = "okta", **more: Any) -> str:
    """A stream about the world's issuer; its push token."""
    stream = SignalStream(
        name=name, issuer=Issuer.objects.get(), transmitter=TRANSMITTER, audience=AUDIENCE,
        jwks={"keys": [KEY.jwk()]}, keys_fetched_at=timezone.now(), **more,
    )  # fmt: skip
    fresh = credentials.fresh(stream)
    stream.save()
    return fresh


def event(jti: str = "e1", uri: str = REVOKED, payload: dict[str, Any] | None = None, **changes: Any) -> str:
    """A signed event of now."""
    key, header = changes.pop("key", KEY), {"typ": "secevent+jwt"} | changes.pop("header", {})
    usual = {
        "iss": TRANSMITTER, "aud": AUDIENCE, "iat": int(time.time()), "jti": jti, "sub_id": ALICE,
        "events": {uri: payload or {}},
    }  # fmt: skip
    return str(key.token({k: v for k, v in (usual | changes).items() if v is not None}, header))


def push(body: str | bytes, secret: str | None, url: str = URL, **headers: str) -> Any:
    given = {"Authorization": f"Bearer {secret}"} if secret is not None else {}
    kind = headers.pop("kind", "application/secevent+jwt")
    return HttpClient().post(url, body, content_type=kind, headers=given | headers)


def refusal(response: Any) -> str:
    """The code of a refusal, which is as RFC 8935 section 2.3 has it."""
    assert response.headers["Content-Type"] == "application/json" and response.headers["Content-Language"] == "en"
    assert set(response.json()) == {"err", "description"} and response.headers["Cache-Control"] == "no-store"
    return f"{response.status_code} {response.json()['err']}"


def told() -> list[dict[str, Any]]:
    """The statements of all signals, in order."""
    drained()
    return [statement(record) for record in Record.objects.filter(type="signal").order_by("index")]


class TestASessionIsRevoked:
    def test_the_next_call_is_refused_and_a_newer_token_allowed(self, world: World, secret: str) -> None:
        assert world.verify()["decision"] == "allow"
        before = Head.objects.get().policy
        response = push(event(), secret)
        assert (response.status_code, response.content) == (202, b"")
        answer = world.verify()
        assert (answer["decision"], answer["reason"]) == ("deny", "token_expired")
        assert world.verify(token=token(iat=int(time.time()) + 1))["decision"] == "allow"
        assert world.verify(token=token("bob"))["decision"] == "allow"
        assert Head.objects.get().policy == before, "a sign-out is no policy"

    def test_it_is_on_record_twice_by_what_was_said_and_by_what_it_did(self, world: World, secret: str) -> None:
        uid = world.verify()["subject"]["uid"]
        at = int(time.time()) - 3
        push(
            event("the-very-jti", payload={"event_timestamp": at, "reason_admin": {"en": "Mallory has the laptop"}}),
            secret,
        )
        done, received = sorted(told(), key=lambda said: said["action"], reverse=True)
        assert (done["action"], done["subject"], done["actor"]) == ("subject.sign_out", uid, "signals:okta")
        assert (received["action"], received["actor"], received["stream"]) == (
            "signal.received",
            "signals:okta",
            "okta",
        )
        assert (received["event"], received["effect"], received["users"]) == ("session-revoked", "signed_out", 1)
        assert (received["subject"], received["moment"]) == (uid, at)
        everything = b"".join(bytes(record.statement) for record in Record.objects.all())
        for private in (b"Mallory", b"the-very-jti", b"alice"):
            assert private not in everything
        assert Subject.objects.get(uid=uid).signed_out_at.timestamp() == at  # type: ignore[union-attr]

    def test_who_never_called_is_refused_with_a_token_from_before(self, world: World, secret: str) -> None:
        old = token("carol")
        assert push(event(sub_id=ALICE | {"sub": "carol"}), secret).status_code == 202
        assert world.verify(token=old)["reason"] == "token_expired"
        assert world.verify(token=token("carol", iat=int(time.time()) + 1))["decision"] == "allow"

    def test_by_address_all_users_of_that_issuer_who_have_it(self, world: World, secret: str) -> None:
        other = Issuer.objects.create(issuer="https://else.example/")
        uids = {world.verify(token=token(sub, email="Ann@example.com"))["subject"]["uid"] for sub in ("a1", "a2")}
        subjects.resolve(other.issuer, "a1", "ann@example.com")
        world.verify(token=token("b"))
        assert push(event(sub_id={"format": "email", "email": "ann@EXAMPLE.com"}), secret).status_code == 202
        assert set(Subject.objects.exclude(signed_out_at=None).values_list("uid", flat=True)) == uids
        received = [said for said in told() if said["action"] == "signal.received"]
        assert received[0]["users"] == 2 and "subject" not in received[0]

    def test_an_older_event_takes_nothing_back(self, world: World, secret: str) -> None:
        uid = world.verify()["subject"]["uid"]
        now = int(time.time())
        push(event("e1", payload={"event_timestamp": now - 5}), secret)
        push(event("e2", payload={"event_timestamp": now - 500}), secret)
        assert Subject.objects.get(uid=uid).signed_out_at.timestamp() == now - 5  # type: ignore[union-attr]
        assert [said["effect"] for said in told() if said["action"] == "signal.received"] == ["signed_out", "already"]

    def test_who_was_erased_and_comes_again_is_another(self, world: World, secret: str, owner_url: str) -> None:
        uid = world.verify()["subject"]["uid"]
        with psycopg.connect(owner_url) as owner:  # what erasing leaves, while this process remembers the user
            owner.execute("UPDATE audit_subject SET erased_at = now(), identity_key = NULL")
        assert push(event(), secret).status_code == 202
        assert Subject.objects.get(uid=uid).signed_out_at is None
        assert Subject.objects.get(erased_at=None).signed_out_at is not None

    @pytest.mark.parametrize("uri", [RISC + "account-disabled", CAEP + "token-claims-change"])
    def test_others_that_end_access_do_the_same(self, world: World, secret: str, uri: str) -> None:
        world.verify()
        assert push(event(uri=uri), secret).status_code == 202
        assert world.verify()["reason"] == "token_expired"


class TestAnEventCountsOnce:
    def test_sent_again_it_is_taken_and_does_nothing(self, world: World, secret: str) -> None:
        uid = world.verify()["subject"]["uid"]
        assert push(event(), secret).status_code == 202
        out = Subject.objects.get(uid=uid).signed_out_at
        assert push(event(), secret).status_code == 202
        assert Subject.objects.get(uid=uid).signed_out_at == out
        assert len(told()) == 2 and SignalReceipt.objects.count() == 1

    def test_another_streams_event_of_the_same_name_is_another(self, world: World, secret: str) -> None:
        second = made("entra")
        push(event(), secret)
        push(event(), second, "/v1/signals/entra")
        assert SignalReceipt.objects.count() == 2

    def test_receipts_are_forgotten_later_than_events_are_taken(self, world: World, secret: str) -> None:
        push(event(), secret)
        SignalReceipt.objects.update(at=timezone.now() - receipts.KEPT / 35 * 29)
        assert receipts.forget() == 0
        SignalReceipt.objects.update(at=timezone.now() - receipts.KEPT)
        assert receipts.forget() == 1


class TestWhatHasNoEffectIsNotMadeToLookSo:
    @pytest.mark.parametrize(
        ("changes", "effect", "why"),
        [
            ({"uri": CAEP + "device-compliance-change"}, "none", "event_unknown"),
            ({"uri": SSF + "stream-updated", "payload": {"status": "paused"}}, "none", "stream"),
            ({"uri": SSF + "verification", "payload": {"state": "x7"}}, "verified", None),
            ({"sub_id": {"format": "opaque", "id": "7"}}, "none", "subject_unsupported"),
            ({"sub_id": {"format": "email", "email": "nobody@example.com"}}, "none", "user_unknown"),
        ],
    )
    def test_it_is_taken_and_on_record_with_why(
        self, world: World, secret: str, changes: dict[str, Any], effect: str, why: str | None
    ) -> None:
        world.verify()
        assert push(event(**changes), secret).status_code == 202
        [said] = told()
        assert (said["effect"], said.get("why"), said["users"]) == (effect, why, 0)
        assert world.verify()["decision"] == "allow"
        stream = SignalStream.objects.get()
        assert stream.received_at and (stream.verified_at is not None) == (effect == "verified")

    def test_an_event_uri_is_free_text_and_so_protected(self, world: World, secret: str) -> None:
        push(event(uri="https://x.example/alice@example.com"), secret)
        assert told()[0]["event"] == "unknown"
        assert b"alice" not in bytes(Record.objects.get(type="signal").statement)


class TestWhoIsRefused:
    @pytest.mark.parametrize("given", [None, "", "ss_", "mk_x", "ss_" + "A" * 43, "ss_" + "é" * 43])
    def test_without_the_streams_own_token(self, world: World, secret: str, given: str | None) -> None:
        if given is not None and not given.isascii():
            given = given.encode().decode("latin-1")
        response = push(event(), given)
        assert refusal(response) == "401 authentication_failed"
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert not SignalReceipt.objects.exists() and not Outbox.objects.filter(kind="signal").exists()

    def test_with_another_streams_a_backends_or_an_older_token(self, world: World, secret: str) -> None:
        second = made("entra")
        for wrong in (second, world.key):
            assert refusal(push(event(), wrong)) == "401 authentication_failed"
        stream = SignalStream.objects.get(name="okta")
        credentials.fresh(stream)
        stream.save()
        assert refusal(push(event(), secret)) == "401 authentication_failed"

    def test_at_a_stream_that_is_disabled_polled_without_a_token_or_not_there(self, world: World, secret: str) -> None:
        assert push(event(), secret).status_code == 202
        for change in (
            {"enabled": False},
            {"delivery": "poll", "poll_endpoint": "https://x.example/"},
            {"digest": None, "token_set_at": timezone.now()},
        ):
            SignalStream.objects.update(**change)
            assert refusal(push(event("e2"), secret)) == "401 authentication_failed"
            SignalStream.objects.update(enabled=True, delivery="push")
        assert refusal(push(event(), secret, "/v1/signals/none")) == "401 authentication_failed"
        assert push(event(), secret, "/v1/signals/%00").status_code == 404

    def test_beyond_its_budget_but_for_a_token_that_was_good_before(
        self, world: World, secret: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(signals_api, "budgets", Budgets(rate=0.001, burst=3))
        assert push(event(), secret).status_code == 202
        codes = [push(event(), "ss_" + "A" * 43).status_code for _ in range(5)]
        assert codes == [401, 401, 401, 429, 429]
        assert push(event("e2"), secret).status_code == 202
        signals_api._good.clear()
        assert push(event("e3"), secret).status_code == 429


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"key": OTHER}, "400 invalid_key"),
            ({"iss": "https://evil.example"}, "400 invalid_issuer"),
            ({"aud": "https://else.example"}, "400 invalid_audience"),
            ({"sub_id": None}, "400 invalid_request"),
            ({"header": {"typ": "at+jwt"}}, "400 invalid_request"),
            ({"sub_id": ALICE | {"iss": "https://else.example/"}}, "400 access_denied"),
        ],
    )
    def test_an_event_that_is_not_the_transmitters_or_not_whole(
        self, world: World, secret: str, changes: dict[str, Any], code: str
    ) -> None:
        world.verify()
        assert refusal(push(event(**changes), secret)) == code
        assert world.verify()["decision"] == "allow" and not SignalReceipt.objects.exists()
        assert code.split()[1] in SignalStream.objects.get().error
        assert push(event(), secret).status_code == 202
        assert SignalStream.objects.get().error == ""

    def test_an_access_token_of_the_users_own_issuer(self, world: World, secret: str) -> None:
        assert refusal(push(token(), secret)) == "400 invalid_request"

    def test_another_content_type_or_body(self, world: World, secret: str) -> None:
        assert refusal(push(event(), secret, kind="application/json")) == "400 invalid_request"
        assert refusal(push(b"\xff\xfe", secret)) == "400 invalid_request"
        assert refusal(push(b"", secret)) == "400 invalid_request"
        assert push("a" * (64 * 1024 + 1), secret).status_code == 413
        assert push("a" * (300 * 1024), secret).status_code == 413
        assert HttpClient().get(URL).status_code == 405

    def test_an_event_is_no_access_token(self, world: World, secret: str) -> None:
        signed = event(iss=ISSUER, aud="https://inner.example/mcp")
        assert world.verify(token=signed)["reason"] == "token_invalid"


class TestTheTransmittersKeys:
    def stream(self, url: str, **more: Any) -> str:
        secret = made(**more)
        SignalStream.objects.update(jwks=None, keys_fetched_at=None, **({"transmitter": url} if url else {}))
        return secret

    def test_are_found_by_its_configuration_and_again_when_they_rotate(self, world: World, settings: Any) -> None:
        settings.MUNIMENT_DEMO, settings.MUNIMENT_JWKS_COOLDOWN = True, 0
        with fake_issuer(KEY.jwk()) as transmitter:
            transmitter.metadata_path = "/.well-known/ssf-configuration"
            secret = self.stream(transmitter.url)
            assert push(event("e1", iss=transmitter.url), secret).status_code == 202
            new = signing_key("ES256", "t2", 2)
            transmitter.jwks = {"keys": [new.jwk()]}
            assert push(event("e2", iss=transmitter.url, key=new), secret).status_code == 202
            # The old key was withdrawn.
            assert refusal(push(event("e3", iss=transmitter.url), secret)) == "400 invalid_key"

    def test_of_a_configuration_of_somebody_else_are_not_taken(self, world: World, settings: Any) -> None:
        settings.MUNIMENT_DEMO = True
        with fake_issuer(KEY.jwk()) as transmitter:
            transmitter.metadata_path = "/.well-known/ssf-configuration"
            transmitter.discovery = {"issuer": "https://evil.example"}
            secret = self.stream(transmitter.url)
            assert push(event(iss=transmitter.url), secret).status_code == 503
            assert "another transmitter" in SignalStream.objects.get().error

    def test_that_cannot_be_had_make_the_transmitter_send_again(self, world: World, settings: Any) -> None:
        settings.MUNIMENT_DEMO, settings.MUNIMENT_JWKS_COOLDOWN = True, 0
        with fake_issuer(KEY.jwk()) as transmitter:
            secret = self.stream("", jwks_uri=f"{transmitter.url}/jwks")
            transmitter.status = 500
            response = push(event(), secret)
            assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
            assert SignalStream.objects.get().error == "its keys: the server answered 500"
            transmitter.status = 200
            assert push(event(), secret).status_code == 202
            assert SignalStream.objects.get().error == ""

    def test_that_are_too_old_are_not_believed(self, world: World, secret: str, settings: Any) -> None:
        settings.MUNIMENT_JWKS_COOLDOWN = 0
        SignalStream.objects.update(keys_fetched_at=timezone.now() - timedelta(days=2))
        assert push(event(), secret).status_code == 503  # the transmitter's name leads nowhere
        assert not SignalReceipt.objects.exists()


def test_what_is_kept_of_the_token_is_a_digest(world: World, secret: str) -> None:
    stream = SignalStream.objects.get()
    assert secret.encode() not in bytes(stream.digest) and secret not in repr(stream.__dict__)
    drained()
    assert all(secret[3:].encode() not in bytes(record.statement) for record in Record.objects.all())
    credentials.keep(stream, "poll-secret")
    assert b"poll-secret" not in bytes(stream.token) and credentials.poll_token(stream) == "poll-secret"
    keyring.clear()
    assert credentials.poll_token(SignalStream(pk=stream.pk, token=bytes(stream.token)[:-1])) is None


def test_what_it_did_reads_as_a_sentence(world: World, secret: str) -> None:
    uid = world.verify()["subject"]["uid"]
    push(event("e1"), secret)
    push(event("e2", payload={"event_timestamp": 5}), secret)
    push(event("e3", uri=SSF + "verification"), secret)
    push(event("e4", uri="https://x.example/{alice}"), secret)
    push(event("e5", sub_id={"format": "email", "email": "nobody@example.com"}), secret)
    user = short_uid(uid)
    titles = {title(said, {}) for said in told()}
    assert titles == {
        f"Signal stream okta signed user {user} out everywhere",
        f"Signal stream okta reported session-revoked: user {user} is signed out everywhere",
        f"Signal stream okta reported session-revoked: user {user} was signed out after that already",
        "Signal stream okta reported verification: the stream works",
        "Signal stream okta reported unknown: nothing was done, since such events are not known here",
        "Signal stream okta reported session-revoked: nothing was done, since no user of the issuer has that address",
    }
