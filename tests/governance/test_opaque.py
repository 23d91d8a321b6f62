"""Opaque tokens from end to end: what their issuer says of them decides, at every endpoint that takes a token."""

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from django.db import connection
from django.utils import timezone

from audit.models import Record
from audit.protection import token_digest
from clients import introspected
from clients.introspected import desk
from clients.models import Grant, Introspection, Issuer, IssuerBinding, KeySet, OAuthClientId
from governance.budgets import budgets
from tests.clients.introspecting import SECRET, Server, active, introspecting, register
from tests.clients.keys import SigningKey, fake_issuer, signing_key
from tests.clients.proving import URL, holder
from tests.staff import drained, statement
from tests.world import World, build, jwks, token
from tools.models import Route

TOKEN = "op_" + "Zx8~" * 8
HOLDER = holder()
KEY, NEW = signing_key("ES256", "k1"), signing_key("ES256", "k2", number=1)


@pytest.fixture
def server() -> Iterator[Server]:
    desk.clear()
    with introspecting() as found:
        found.tokens[TOKEN] = active()
        yield found
    desk.clear()


@pytest.fixture
def world(db: None) -> World:
    return build()


def accept(world: World, server: Server, **how: Any) -> Issuer:
    """The small world accepts this server's tokens too."""
    issuer = register(server, **how)
    OAuthClientId.objects.create(client=world.client, issuer=issuer, oauth_id="claude-app")
    return issuer


def reason(world: World, text: str = TOKEN) -> str:
    return str(world.verify(token=text)["reason"])


def signing(server: Server, issuer: Issuer, *published: SigningKey) -> None:
    server.key = published[0]
    keys = {"keys": [one.jwk() for one in published]}
    KeySet.objects.update_or_create(issuer=issuer, defaults={"jwks": keys, "fetched_at": timezone.now()})


class TestVerify:
    def test_an_active_token_is_decided_like_any_other(self, world: World, server: Server) -> None:
        accept(world, server)
        answer = world.verify(token=TOKEN)
        assert (answer["decision"], answer["reason"]) == ("allow", "granted")
        assert (answer["subject"]["issuer"], answer["subject"]["sub"]) == (server.url, "alice")
        assert answer["scopes"]["token"] == ["memory:read"] and answer["client"]["slug"] == "claude"
        said = statement(Record.objects.get(id=answer["record"]))
        assert said["token"] == token_digest(TOKEN).hex() and said["issuer"] == server.url

    def test_what_its_issuer_says_decides(self, world: World, server: Server) -> None:
        accept(world, server)
        cases: list[tuple[dict[str, Any], str, int]] = [
            ({"active": False}, "token_invalid", 401),
            ({"aud": "https://other.example"}, "audience_mismatch", 401),
            ({"aud": None}, "audience_mismatch", 401),
            ({"exp": 1}, "token_expired", 401),
            ({"sub": None}, "token_invalid", 401),
            ({"iss": "https://id.example/"}, "issuer_unknown", 401),  # of an issuer that is known, and was not asked
            ({"token_type": "refresh_token"}, "token_invalid", 401),
            ({"client_id": "somebody"}, "client_unknown", 403),
            ({"scope": "other"}, "insufficient_scope", 403),
        ]
        for number, (changes, code, status) in enumerate(cases):
            server.tokens[f"t{number}"] = active(**changes)
            answer = world.verify(token=f"t{number}")
            assert (answer["decision"], answer["reason"], answer["status"]) == ("deny", code, status), changes

    def test_an_expiry_that_is_no_date_refuses_the_token(self, world: World, server: Server) -> None:
        accept(world, server)
        for number, exp in enumerate(("1" + "0" * 400, "-1" + "0" * 400, "1e999")):
            server.body = json.dumps(active(exp=0)).replace('"exp": 0', f'"exp": {exp}').encode()
            assert [reason(world, f"t{number}"), reason(world, f"t{number}")] == ["token_invalid"] * 2

    def test_an_outage_is_a_503_that_a_retry_may_help_and_no_failure_of_the_caller(
        self, world: World, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        charged: list[Any] = []
        monkeypatch.setattr(budgets, "charge", lambda *given: charged.append(given))
        accept(world, server)
        server.status = 500
        answer = world.verify(token=TOKEN)
        assert (answer["reason"], answer["status"], answer["remedy"]) == ("issuer_unavailable", 503, "retry_later")
        assert answer["retry_after"] >= 1 and "www_authenticate" not in answer and charged == []

    def test_a_network_that_was_mistyped_is_an_outage_that_the_issuers_page_tells(
        self, world: World, server: Server
    ) -> None:
        issuer = accept(world, server)
        Issuer.objects.filter(pk=issuer.pk).update(allowed_networks=["10.0.0.0/8", "ten"])
        assert reason(world) == "issuer_unavailable" and server.forms == []
        assert "ten" in Introspection.objects.get().error

    def test_a_token_is_asked_about_once_while_the_policy_changes_and_is_decided_by_the_newest(
        self, world: World, server: Server
    ) -> None:
        accept(world, server)
        assert [reason(world), reason(world)] == ["granted", "granted"]
        Grant.objects.update(revoked_at=timezone.now())
        assert reason(world) == "not_granted" and server.asked(TOKEN) == 1

    def test_a_token_that_is_revoked_is_refused_after_the_bound(self, world: World, server: Server) -> None:
        accept(world, server, cache_seconds=1)
        assert reason(world) == "granted"
        server.tokens[TOKEN] = {"active": False}
        deadline = time.monotonic() + 30
        while (found := reason(world)) == "granted":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert found == "token_invalid"

    def test_a_batch_asks_about_each_token_once(self, world: World, server: Server) -> None:
        accept(world, server)
        items = [{"token": one, "tool": "memory.recall"} for one in (TOKEN, "junk", TOKEN, token(), TOKEN)]
        answers = world.post("/v1/verify/batch", {"items": items}).json()["items"]
        assert [one["reason"] for one in answers] == ["granted", "token_invalid", "granted", "granted", "granted"]
        assert (server.asked(TOKEN), server.asked("junk"), len(server.forms)) == (1, 1, 2)

    def test_a_batch_does_not_wait_for_a_slow_issuer_as_often_as_it_has_tokens(
        self, world: World, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(introspected, "PATIENCE", 1.0)
        accept(world, server)
        assert reason(world) == "granted"
        server.delay = 0.6
        items = [{"token": one, "tool": "memory.recall"} for one in ("a", "b", "c", "d", TOKEN)]
        answers = world.post("/v1/verify/batch", {"items": items}).json()["items"]
        found = [one["reason"] for one in answers]
        assert found[0] == "token_invalid" and found[2:] == ["issuer_unavailable"] * 2 + ["granted"]

    def test_a_user_who_was_signed_out_needs_a_token_of_later(self, world: World, server: Server) -> None:
        accept(world, server)
        uid = world.verify(token=TOKEN)["subject"]["uid"]
        with connection.cursor() as cursor:
            cursor.execute("UPDATE audit_subject SET signed_out_at = now() WHERE uid = %s", [uid])
        assert reason(world) == "token_expired"
        server.tokens["none"] = active(iat=None)
        assert reason(world, "none") == "token_expired"  # it does not say when it was issued


class TestWhichTokens:
    def test_what_is_no_access_token_at_all_is_shown_to_nobody(self, world: World, server: Server) -> None:
        accept(world, server)
        for text in (
            "a b", "a\n", "ü", "a=b", "=", "\x00", "x" * (16 * 1024 + 1), 'a"b', "a,b", f"Bearer {TOKEN}",
            "e30.e30.e30.e30.e30",  # begins like a JWE, and may be of another issuer
            f"{token()}=", token().replace(".", "..", 1), token().replace("e", "+", 1) + "/",
        ):  # fmt: skip
            assert reason(world, text) == "token_malformed" and server.forms == [], text

    def test_a_key_of_our_own_that_came_as_a_token_is_shown_to_nobody(self, world: World, server: Server) -> None:
        accept(world, server)
        staff, pushing, scim = f"sk_{'a1' * 6}_{'b' * 43}", f"ss_{'-' * 43}", f"scim_7_{'_' * 43}"
        for text in (world.key, world.key[:-1], f"{world.key}=", staff, pushing, scim):
            assert reason(world, text) == "token_malformed" and server.forms == [], text
        for text in ("mk_" + "a" * 43, "sk_live_" + "a" * 43, "ss_short", "xmk" + world.key[2:]):
            assert reason(world, text) == "token_invalid" and server.asked(text) == 1, text  # not of their form

    def test_what_may_be_an_opaque_token_is_asked_about(self, world: World, server: Server) -> None:
        accept(world, server)
        for text in ("x", "v4.public.eyJzdWIi", "a.b", "ya29.a0Af_~+/-", "x" * (16 * 1024), "a=="):
            assert reason(world, text) == "token_invalid" and server.asked(text) == 1, text

    def test_a_backend_without_an_issuer_to_ask_takes_none(self, world: World) -> None:
        assert reason(world) == "token_malformed"

    def test_a_backend_with_two_issuers_to_ask_asks_neither(self, world: World, server: Server) -> None:
        accept(world, server)
        second = Issuer.objects.create(issuer="https://second.example/")
        Introspection.objects.create(issuer=second, endpoint=f"{server.url}/x", client_id="x")
        assert reason(world) == "token_malformed" and server.forms == []
        Issuer.objects.filter(pk=second.pk).update(enabled=False)
        assert reason(world) == "granted"

    def test_a_jwt_of_an_issuer_with_keys_is_checked_by_them_and_one_of_an_issuer_without_is_asked_about(
        self, world: World, server: Server
    ) -> None:
        issuer = accept(world, server)
        own, others = token(iss=server.url), token()
        server.tokens[own] = active()
        assert reason(world, own) == "granted" and server.asked(own) == 1
        assert reason(world, others) == "granted" and server.asked(others) == 0
        server.tokens[own] = {"active": False}
        KeySet.objects.update_or_create(issuer=issuer, defaults={"jwks": jwks(), "fetched_at": timezone.now()})
        assert reason(world, own) == "granted" and server.asked(own) == 1

    def test_an_id_token_of_an_issuer_without_keys_is_not_even_asked_about(self, world: World, server: Server) -> None:
        accept(world, server)
        assert reason(world, token(iss=server.url, at_hash="x")) == "token_invalid" and server.forms == []


class TestSignedAnswers:
    def test_it_is_believed_and_one_by_another_key_is_an_outage(self, world: World, server: Server) -> None:
        signing(server, accept(world, server, signed=True, cache_seconds=0), KEY)
        assert reason(world) == "granted"
        server.key = SigningKey("ES256", NEW.private, "k1")
        assert reason(world) == "issuer_unavailable"
        assert "signature does not hold" in Introspection.objects.get().error
        server.key = None
        assert reason(world) == "issuer_unavailable"

    def test_keys_that_are_too_old_believe_nothing(self, world: World, server: Server, settings: Any) -> None:
        issuer = accept(world, server, signed=True)
        signing(server, issuer, KEY)
        KeySet.objects.filter(issuer=issuer).update(fetched_at=timezone.now() - timedelta(days=30))
        assert reason(world) == "issuer_unavailable"

    def test_without_signed_answers_old_keys_do_not_matter(self, world: World, server: Server) -> None:
        issuer = accept(world, server)
        signing(server, issuer, KEY)
        server.key = None
        KeySet.objects.filter(issuer=issuer).update(fetched_at=timezone.now() - timedelta(days=30))
        assert reason(world) == "granted"

    def test_a_new_key_is_fetched_at_the_first_answer_that_it_signs(self, world: World, server: Server) -> None:
        with fake_issuer(KEY.jwk(), NEW.jwk()) as published:
            issuer = accept(world, server, signed=True, issuer={"jwks_uri": f"{published.url}/jwks"})
            signing(server, issuer, KEY)
            server.key = NEW
            assert reason(world) == "granted" and published.hits["/jwks"] == 1


class TestBoundTokens:
    def test_what_the_issuer_says_that_a_token_is_bound_to_must_be_proved(self, world: World, server: Server) -> None:
        accept(world, server)
        server.tokens[TOKEN] = active(cnf={"jkt": HOLDER.jkt}, token_type="DPoP")
        thumbprint = "A" * 43
        server.tokens["mtls"] = active(cnf={"x5t#S256": thumbprint})

        def proved(text: str) -> str:
            dpop = {"proof": HOLDER.proof(text), "method": "POST", "url": URL}
            return str(world.verify(token=TOKEN, dpop=dpop)["reason"])

        assert (reason(world), proved(TOKEN), proved("another")) == ("proof_required", "granted", "proof_invalid")
        certified = [world.verify(token="mtls", mtls={"x5t#S256": one})["reason"] for one in (thumbprint, "B" * 43)]
        assert certified == ["granted", "proof_invalid"] and server.asked("mtls") == 1

    def test_an_issuer_that_must_bind_its_tokens_must_bind_opaque_ones_too(self, world: World, server: Server) -> None:
        IssuerBinding.objects.create(issuer=accept(world, server), require="dpop")
        assert reason(world) == "proof_required"


class TestTheOtherEndpoints:
    def test_introspection_tells_of_an_opaque_token(self, world: World, server: Server) -> None:
        accept(world, server)
        headers = {"Authorization": f"Bearer {world.key}"}

        def told(text: str) -> Any:
            form = urlencode({"token": text})
            return world.http.post(
                "/v1/introspect", form, content_type="application/x-www-form-urlencoded", headers=headers
            )

        found = told(TOKEN).json()
        assert found["active"] and (found["sub"], found["iss"], found["scope"]) == ("alice", server.url, "memory:read")
        assert told("junk").json() == {"active": False}
        server.status = 503
        assert told("other").status_code == 503  # an outage does not say that a token is inactive

    def test_a_proxy_is_answered_by_an_opaque_token(self, world: World, server: Server) -> None:
        accept(world, server)
        Route.objects.create(backend=world.backend, path="/m", methods=[], tools=["memory.recall"])

        def asked(text: str) -> Any:
            return world.http.get("/v1/forward-auth", headers={
                "X-Muniment-Proxy": "nginx", "X-Muniment-Key": world.key, "X-Original-Method": "GET",
                "X-Original-URI": "/m", "Authorization": f"Bearer {text}",
            })  # fmt: skip

        assert (asked(TOKEN).status_code, asked("junk").status_code) == (200, 401)
        server.status = 503
        refused = asked("other")  # nginx knows no more than yes and two kinds of no
        assert (refused.status_code, refused.headers["X-Muniment-Status"]) == (403, "503")


def test_no_token_and_no_secret_is_in_any_record(world: World, server: Server) -> None:
    accept(world, server)
    world.verify(token=TOKEN)
    server.status, server.body = 500, TOKEN.encode()
    world.verify(token=TOKEN + "2")
    drained()
    with connection.cursor() as cursor:
        cursor.execute("SELECT r::text, convert_from(statement, 'UTF8') FROM audit_record r")
        kept = "".join(part for row in cursor.fetchall() for part in row)
    assert "clients_introspection" in kept and "secret_set_at" in kept and token_digest(TOKEN).hex() in kept
    hidden = (TOKEN, SECRET, json.dumps(SECRET)[1:-1])
    assert not any(form in kept for one in hidden for form in (one, one.encode().hex()))
