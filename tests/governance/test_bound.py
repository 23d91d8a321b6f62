"""Bound tokens through the API: a token that is bound comes with its proof, each proof serves one request, and what an
issuer must bind is bound (RFC 9449, RFC 8705)."""

import json
import time
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Any

import psycopg
import pytest
import redis

from audit.models import Record, Subject
from audit.protection import keyring
from audit.record_words import rules
from clients import replays
from clients.models import Issuer, IssuerBinding
from governance import possession
from governance.budgets import budgets
from tests.clients.proving import URL, Holder, holder
from tests.staff import statement
from tests.world import World, build, token

ALICE, MALLORY = holder(), holder(number=1)
THUMBPRINT = urlsafe_b64encode(sha256(b"certificate").digest()).rstrip(b"=").decode()
OTHER = urlsafe_b64encode(sha256(b"another").digest()).rstrip(b"=").decode()


@pytest.fixture
def world(db: None) -> World:
    return build()


def bound(**claims: Any) -> str:
    """Alice's token, bound to her key."""
    return token(**{"cnf": {"jkt": ALICE.jkt}} | claims)


def dpop(text: str, who: Holder = ALICE, **changes: Any) -> dict[str, Any]:
    """The member `dpop` of a call with this token."""
    asked = {name: changes.pop(name) for name in ("request",) if name in changes}
    return {"proof": who.proof(text, **changes), "method": "POST", "url": URL} | asked


def bind(**how: Any) -> None:
    """What the issuer's tokens must be bound to, from now on."""
    IssuerBinding.objects.update_or_create(issuer=Issuer.objects.get(), defaults=how)


def told(answer: dict[str, Any]) -> tuple[str, int, str]:
    return answer["reason"], answer["status"], answer["remedy"]


def test_a_bound_token_with_its_proof_is_as_good_as_any(world: World) -> None:
    text = bound()
    answer = world.verify(token=text, dpop=dpop(text))
    assert answer["decision"] == "allow" and answer["subject"]["sub"] == "alice"
    assert "dpop_nonce" not in answer
    again = world.verify(token=text, dpop=dpop(text))  # the token is known now, the proof is another
    assert again["decision"] == "allow"


def test_the_record_says_to_what_the_token_was_bound_and_never_to_which(world: World) -> None:
    text = token(cnf={"jkt": ALICE.jkt, "x5t#S256": THUMBPRINT})
    world.verify(token=text, dpop=dpop(text), mtls={"x5t#S256": THUMBPRINT})
    world.verify()
    bound_one, plain = (statement(record) for record in Record.objects.filter(type="decision").order_by("index"))
    assert bound_one["bound"] == ["key", "certificate"] and "bound" not in plain
    for secret in (ALICE.jkt, THUMBPRINT):
        assert secret not in json.dumps(bound_one)
    first, *_ = rules(bound_one, {})
    assert first[1].endswith("in its time; the proof of its key and of its certificate came with it")
    assert rules(plain, {})[0][1].endswith("in its time")


def test_without_its_proof_it_is_refused_known_or_not(world: World) -> None:
    text = bound()
    for _ in range(2):
        answer = world.verify(token=text)
        assert told(answer) == ("proof_required", 401, "reauthenticate")
        assert answer["subject"] is None and answer["client"] is None
        assert answer["www_authenticate"].startswith('DPoP error="invalid_dpop_proof", ')
        assert 'algs="ES256 ' in answer["www_authenticate"] and 'scope="memory:read"' in answer["www_authenticate"]
        assert "resource_metadata=" in answer["www_authenticate"]
        assert world.verify(token=text, dpop=dpop(text))["decision"] == "allow"


WRONG: dict[str, Any] = {
    "no proof at all": {"proof": "?"},
    "two proofs": {"proof": "a.b.c, a.b.c"},
    "another type": {"header": {"typ": "JWT"}},
    "no signature": {"header": {"alg": "none"}},
    "a shared secret": {"header": {"alg": "HS256"}},
    "a private key": {"header": {"jwk": ALICE.jwk | {"d": "c2VjcmV0"}}},
    "another key": {"who": MALLORY},
    "a key that is not had": {"who": ALICE.signing_with(MALLORY.key)},
    "another method": {"htm": "GET"},
    "another url": {"htu": "https://evil.example/mcp"},
    "another token": {"ath": urlsafe_b64encode(sha256(b"x").digest()).rstrip(b"=").decode()},
    "no token": {"ath": None},
    "no name": {"jti": None},
    "no time": {"iat": None},
    "too old": {"now": 0.0},
    "in the future": {"now": 9e9},
}


def test_every_wrong_proof_is_refused_and_recorded(world: World) -> None:
    text = bound()
    for name, how in WRONG.items():
        given = {"proof": how["proof"], "method": "POST", "url": URL} if "proof" in how else dpop(text, **how)
        answer = world.verify(token=text, dpop=given)
        assert told(answer) == ("proof_invalid", 401, "reauthenticate"), name
        error = "invalid_token" if name == "another key" else "invalid_dpop_proof"
        assert answer["www_authenticate"].startswith(f'DPoP error="{error}", '), name
    kept = Record.objects.filter(type="decision").order_by("index")
    assert [one.reason for one in kept] == ["proof_invalid"] * len(WRONG)
    for one in kept:
        said = bytes(one.statement).decode()
        assert json.loads(said)["subject"] is None and json.loads(said)["client_id"] is None
        for secret in (ALICE.jkt, MALLORY.jkt, ALICE.jwk["x"], "jwk", "alice"):
            assert secret not in said


def test_a_later_denial_is_challenged_by_the_scheme_that_the_client_speaks(world: World) -> None:
    text = bound(scope="memory:read")
    answer = world.verify("memory.capture", token=text, dpop=dpop(text))
    assert answer["reason"] == "insufficient_scope"
    assert answer["www_authenticate"].startswith('DPoP error="insufficient_scope", ')
    assert 'scope="memory:write"' in answer["www_authenticate"] and "algs=" in answer["www_authenticate"]
    text = token(exp=1, iat=0)
    assert world.verify(token=text, dpop=dpop(text))["www_authenticate"].startswith('DPoP error="invalid_token"')


def test_a_proof_serves_one_request(world: World) -> None:
    text = bound()
    proof = dpop(text)
    assert world.verify(token=text, dpop=proof)["decision"] == "allow"
    again = world.verify(token=text, dpop=proof)
    assert told(again) == ("proof_invalid", 401, "reauthenticate") and "used before" in again["explanation"]
    # Not even for a call that is denied by a later rule, or of another tool.
    assert world.verify("memory.capture", token=text, dpop=proof)["reason"] == "proof_invalid"
    assert world.verify(token=text, dpop=dpop(text))["decision"] == "allow"


def test_calls_that_serve_the_same_request_share_its_proof(world: World) -> None:
    text, name = bound(), "request-of-alice-1"
    proof = dpop(text, request=name)
    assert world.verify(token=text, dpop=proof)["decision"] == "allow"
    assert world.verify(token=text, dpop=proof)["decision"] == "allow"
    assert world.verify(token=text, dpop=proof | {"request": "request-of-alice-2"})["reason"] == "proof_invalid"
    assert world.verify(token=text, dpop=proof | {"request": None})["reason"] == "proof_invalid"


def test_the_name_of_a_request_is_bounded(world: World) -> None:
    text = bound()
    for name in ("short", "x" * 65, "with a space in it"):
        assert (
            world.post("/v1/verify", {"token": text, "tool": "t", "dpop": dpop(text, request=name)}).status_code == 400
        )


def test_in_a_batch_the_second_use_is_a_replay(world: World) -> None:
    text = bound()
    proof, other = dpop(text), dpop(text)
    call = {"token": text, "tool": "memory.recall"}
    items = [
        call | {"dpop": proof},
        call | {"dpop": proof},
        call | {"dpop": other},
        call,
        {"token": token(), "tool": "memory.recall"},
    ]
    found = world.post("/v1/verify/batch", {"items": items}).json()["items"]
    assert [one["reason"] for one in found] == ["granted", "proof_invalid", "granted", "proof_required", "granted"]


def test_an_idempotent_retry_is_no_replay(world: World) -> None:
    text = bound()
    body = {"token": text, "tool": "memory.recall", "dpop": dpop(text)}
    first, second = (world.post("/v1/verify", body, **{"Idempotency-Key": "k1"}).json() for _ in range(2))
    assert first["decision"] == "allow" and first == second
    assert Record.objects.filter(type="decision").count() == 1
    assert world.post("/v1/verify", body, **{"Idempotency-Key": "k2"}).json()["reason"] == "proof_invalid"
    assert world.post("/v1/verify", body).json()["reason"] == "proof_invalid"


def test_a_retry_whose_first_answer_was_lost_may_use_the_proof_again(world: World) -> None:
    """The policy moved on since, so that the call is decided anew under the same Idempotency-Key."""
    text = bound()
    body = {"token": text, "tool": "memory.recall", "dpop": dpop(text)}
    first = world.post("/v1/verify", body, **{"Idempotency-Key": "k1"}).json()
    world.grant.delete()
    second = world.post("/v1/verify", body, **{"Idempotency-Key": "k1"}).json()
    assert (first["reason"], second["reason"]) == ("granted", "not_granted")


def test_a_call_that_is_decided_again_uses_its_proof_once(world: World) -> None:
    """The recorder refuses what was decided of a user who was blocked a moment ago: the call is judged once more."""
    text = bound()
    assert world.verify(token=text, dpop=dpop(text))["decision"] == "allow"
    Subject.objects.update(blocked_at="2026-01-01T00:00:00Z")
    assert world.verify(token=text, dpop=dpop(text))["reason"] == "subject_blocked"
    Subject.objects.update(blocked_at=None)
    world.grant.save()
    assert world.verify(token=text, dpop=dpop(text))["decision"] == "allow"


def test_without_redis_no_proof_is_accepted_and_others_are_served(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = bound()
    nobody = redis.Redis.from_url("redis://127.0.0.1:1/0", socket_connect_timeout=0.2)
    monkeypatch.setattr(replays, "store", lambda: nobody)
    monkeypatch.setattr(replays, "_away_until", 0.0)
    body = {"token": text, "tool": "memory.recall", "dpop": dpop(text)}
    answer = world.post("/v1/verify", body, **{"Idempotency-Key": "k1"}).json()
    assert told(answer) == ("proof_unavailable", 503, "retry_later") and answer["retry_after"] == 1
    assert answer["subject"] is None and "www_authenticate" not in answer
    assert world.verify(token=text, dpop=dpop(text, htm="GET"))["reason"] == "proof_invalid"
    assert world.verify()["decision"] == "allow"
    found = list(Record.objects.filter(type="decision").order_by("index").values_list("reason", flat=True))
    assert found == ["proof_unavailable", "proof_invalid", "granted"]
    # It is back: the retry is decided, by the proof that nobody could use.
    monkeypatch.undo()
    assert world.post("/v1/verify", body, **{"Idempotency-Key": "k1"}).json()["decision"] == "allow"


def test_what_redis_keeps_tells_nothing_and_ends(world: World) -> None:
    text = bound()
    world.verify(token=text, dpop=dpop(text, jti="a-name-of-alice"))
    keys = list(replays.store().scan_iter("dpop:*", count=1000))
    values = [replays.store().get(key) for key in keys]
    assert keys and all(0 < replays.store().ttl(key) <= 60 + 60 + replays.MARGIN + 1 for key in keys)
    for one in (*keys, *values):
        assert b"alice" not in one and ALICE.jkt.encode() not in one


class TestBinding:
    def test_what_an_issuer_demands_holds(self, world: World) -> None:
        key, certificate = {"jkt": ALICE.jkt}, {"x5t#S256": THUMBPRINT}
        how = {"none": None, "key": key, "certificate": certificate, "both": key | certificate}
        good = {
            "any": ("key", "certificate", "both"), "dpop": ("key", "both"), "mtls": ("certificate", "both"),
            "": tuple(how),
        }  # fmt: skip
        for require, fine in good.items():
            bind(require=require)
            scheme = "Bearer" if require == "mtls" else "DPoP"
            for name, cnf in how.items():
                text = token(**({"cnf": cnf} if cnf else {}))
                answer = world.verify(token=text, dpop=dpop(text), mtls={"x5t#S256": THUMBPRINT})
                assert answer["reason"] == ("granted" if name in fine else "proof_required"), (require, name)
                if name not in fine:
                    # What came with a proof is of a client that understands the scheme.
                    assert answer["www_authenticate"].startswith('DPoP error="invalid_token"')
                    bare = world.verify(token=text)["www_authenticate"]
                    assert bare.startswith(f'{scheme} error="invalid_token"'), (require, name)

    def test_a_client_without_a_token_is_told_what_it_needs(self, world: World) -> None:
        assert world.verify(token=None)["www_authenticate"].startswith("Bearer ")
        bind(require="dpop")
        assert world.verify(token=None)["www_authenticate"].startswith('DPoP scope="memory:read", ')

    def test_a_proof_beside_a_token_that_is_not_bound_is_not_looked_at(self, world: World) -> None:
        text = token()
        proof = dpop(text, MALLORY, htm="GET")
        assert [world.verify(token=text, dpop=proof)["reason"] for _ in range(2)] == ["granted", "granted"]


class TestCertificates:
    def test_the_certificate_is_the_tokens(self, world: World) -> None:
        text = token(cnf={"x5t#S256": THUMBPRINT})
        for mtls, reason in ((None, "proof_required"), ({"x5t#S256": OTHER}, "proof_invalid")):
            answer = world.verify(token=text, mtls=mtls)
            assert answer["reason"] == reason and answer["www_authenticate"].startswith('Bearer error="invalid_token"')
        assert world.verify(token=text, mtls={"x5t#S256": THUMBPRINT})["reason"] == "granted"

    def test_a_token_that_is_bound_to_both_needs_both(self, world: World) -> None:
        text = token(cnf={"x5t#S256": THUMBPRINT, "jkt": ALICE.jkt})
        certificate = {"x5t#S256": THUMBPRINT}
        assert world.verify(token=text, mtls=certificate)["reason"] == "proof_required"
        assert world.verify(token=text, dpop=dpop(text))["reason"] == "proof_required"
        assert world.verify(token=text, dpop=dpop(text), mtls={"x5t#S256": OTHER})["reason"] == "proof_invalid"
        assert world.verify(token=text, dpop=dpop(text), mtls=certificate)["decision"] == "allow"

    def test_what_is_no_thumbprint_is_a_400(self, world: World) -> None:
        for mtls in ({}, {"x5t#S256": "short"}, {"x5t#S256": "/" * 43}, "x", {"x5t#S256": 7}):
            assert world.post("/v1/verify", {"token": token(), "tool": "t", "mtls": mtls}).status_code == 400, mtls


class TestNonces:
    def test_a_client_gets_one_and_goes_on_with_it(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(possession, "NONCE_SECONDS", 10**9)  # no other one is given out in between
        bind(require="", dpop_nonce=True)
        text = bound()
        first = world.verify(token=text, dpop=dpop(text))
        assert first["reason"] == "proof_invalid"
        assert first["www_authenticate"].startswith('DPoP error="use_dpop_nonce", ')
        nonce = first["dpop_nonce"]
        second = world.verify(token=text, dpop=dpop(text, nonce=nonce))
        assert second["decision"] == "allow" and second["dpop_nonce"] == nonce
        # One nonce is good for many proofs, each once.
        proof = dpop(text, nonce=nonce)
        assert world.verify(token=text, dpop=proof)["decision"] == "allow"
        replayed = world.verify(token=text, dpop=proof)
        assert replayed["reason"] == "proof_invalid" and replayed["dpop_nonce"] == nonce
        assert world.verify(token=text)["dpop_nonce"] == nonce
        assert "dpop_nonce" not in world.verify()  # a token that is not bound to a key

    def test_it_is_good_for_its_time_and_the_next_and_for_its_backend_alone(self) -> None:
        now = 1_760_000_040.0
        step = possession.NONCE_SECONDS
        nonce = possession.good_nonces(1, now)[0]
        assert nonce in possession.good_nonces(1, now + step) and nonce in possession.good_nonces(1, now - step)
        assert nonce not in possession.good_nonces(1, now + 2 * step)
        assert nonce not in possession.good_nonces(2, now)
        assert len({one for at in range(5) for one in possession.good_nonces(1, now + at * step)}) == 7

    def test_one_of_another_backend_or_of_nobody_is_refused(self, world: World) -> None:
        bind(require="", dpop_nonce=True)
        text = bound()
        for nonce in ("", "x" * 24, possession.good_nonces(world.backend.pk + 1, time.time())[0]):
            answer = world.verify(token=text, dpop=dpop(text, nonce=nonce))
            assert 'error="use_dpop_nonce"' in answer["www_authenticate"]


def test_a_binding_that_staff_set_holds_from_the_next_call_on(world: World) -> None:
    assert world.verify()["decision"] == "allow"
    bind(require="any")
    assert world.verify()["reason"] == "proof_required"
    IssuerBinding.objects.all().delete()
    assert world.verify()["decision"] == "allow"


def test_a_stolen_token_without_its_key_has_no_more_room_than_any_failure(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "burst", 10)
    monkeypatch.setattr(budgets, "rate", 1)
    text = bound()
    assert world.verify(token=text, dpop=dpop(text))["decision"] == "allow", "it is known now"
    body = {"token": text, "tool": "memory.recall", "request": {"ip": "203.0.113.9"}}
    assert 429 in [world.post("/v1/verify", body).status_code for _ in range(20)]
    assert world.verify(token=text, dpop=dpop(text))["decision"] == "allow", "from elsewhere its user is served"


def test_an_erased_user_who_returns_uses_one_proof(world: World, owner_url: str) -> None:
    """The key that protects the user's details is gone when the record is made: the call is judged once more."""
    text = bound()
    uid = world.verify(token=text, dpop=dpop(text))["subject"]["uid"]
    with psycopg.connect(owner_url, autocommit=True) as owner:
        owner.execute("DELETE FROM audit_datakey WHERE holder = %s", [uid])
        gone = "identity_key = NULL, sub = NULL, email = NULL, email_key = NULL, erased_at = now()"
        owner.execute(f"UPDATE audit_subject SET {gone}")
    keyring.clear()
    answer = world.verify(token=text, dpop=dpop(text))
    assert answer["decision"] == "allow" and answer["subject"]["uid"] != uid
