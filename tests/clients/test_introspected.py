"""Asking an issuer about a token: how it is asked, how often, and what is made of its silence."""

import base64
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote_plus

import pytest
from django.db import connection

from clients import introspected
from clients.claims import Identity, Refused
from clients.introspected import desk
from clients.jwks import IssuerPolicy
from clients.models import Introspection, Issuer
from governance.snapshot import snapshots
from tests.clients.introspecting import CLIENT_ID, SECRET, Server, active, introspecting, register
from tests.world import AUDIENCE
from tools.models import Backend

TOKEN = "op_4Zx.~+/w=="
pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def server() -> Iterator[Server]:
    desk.clear()
    with introspecting() as found:
        found.tokens[TOKEN] = active()
        yield found
    desk.clear()


def known(server: Server, **how: Any) -> IssuerPolicy:
    """The issuer, registered, as a snapshot of the policy has it."""
    register(server, **how)
    Backend.objects.create(slug="inner", name="Inner", audiences=[AUDIENCE])
    [backend] = snapshots.at_head().backends.values()
    return backend.issuers[server.url]


def ask(issuer: IssuerPolicy, token: str = TOKEN, now: float | None = None, version: int = 1) -> Identity:
    digest = hashlib.sha256(token.encode()).digest()
    now = time.time() if now is None else now
    return introspected.identify(token, digest, issuer, frozenset({AUDIENCE}), now, version)


def refusal(issuer: IssuerPolicy, token: str = TOKEN, **more: Any) -> str:
    with pytest.raises(Refused) as refused:
        ask(issuer, token, **more)
    return refused.value.reason


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What each of the threads found, or why it was refused, in their order."""
    found: list[Any] = [None] * count
    start = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            start.wait(10)
            found[number] = work(number)
        except Refused as refused:
            found[number] = refused.reason
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def answering_when(server: Server, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the issuer answer only when so many threads have come to the desk, however long that takes."""
    begin, came = desk.begin, list[int]()

    def counted(*given: Any) -> Any:
        try:
            return begin(*given)
        finally:
            came.append(1)
            if len(came) >= count:
                server.released.set()

    server.released.clear()
    monkeypatch.setattr(introspected, "TIMEOUT", 30.0)
    monkeypatch.setattr(desk, "begin", counted)


def noted() -> Introspection:
    return Introspection.objects.get()


class TestTheQuestion:
    def test_it_is_a_form_with_the_token_and_our_credentials_in_the_header(self, server: Server) -> None:
        assert ask(known(server)).sub == "alice"
        assert server.forms == [{"token": TOKEN, "token_type_hint": "access_token"}]
        scheme, _, encoded = server.heads[0]["Authorization"].partition(" ")
        name, _, secret = base64.b64decode(encoded).decode("ascii").partition(":")
        # RFC 6749 section 2.3.1: form-encoded, else a colon in the id would end it.
        assert (scheme, unquote_plus(name), unquote_plus(secret)) == ("Basic", CLIENT_ID, SECRET)
        assert server.heads[0]["Accept"] == "application/json"

    def test_the_credentials_are_in_the_form_where_the_issuer_wants_them_there(self, server: Server) -> None:
        ask(known(server, method="client_secret_post"))
        credentials = {"client_id": CLIENT_ID, "client_secret": SECRET}
        assert server.forms == [{"token": TOKEN, "token_type_hint": "access_token"} | credentials]
        assert "Authorization" not in server.heads[0]

    def test_without_a_secret_that_opens_nothing_is_asked(self, server: Server) -> None:
        issuer = known(server, secret=None)
        assert refusal(issuer) == "issuer_unavailable"
        assert server.forms == [] and "no secret" in noted().error

    def test_a_secret_that_was_moved_from_another_issuer_does_not_open(self, server: Server) -> None:
        first = known(server)
        other = Issuer.objects.create(issuer="https://other.example/")
        moved = Introspection.objects.get()
        Introspection.objects.create(
            issuer=other, endpoint=moved.endpoint, client_id=CLIENT_ID,
            secret=moved.secret, secret_set_at=moved.secret_set_at,
        )  # fmt: skip
        [backend] = snapshots.at_head().backends.values()
        assert refusal(backend.issuers["https://other.example/"]) == "issuer_unavailable"
        assert server.forms == [] and ask(first).sub == "alice"

    def test_no_private_address_is_asked_in_production(self, server: Server, settings: Any) -> None:
        known(server)
        port = server.url.rpartition(":")[2]
        for endpoint in (f"https://127.0.0.1:{port}/x", "https://10.0.0.1/x", f"http://127.0.0.1:{port}"):
            desk.clear()
            Introspection.objects.update(endpoint=endpoint)
            [backend] = snapshots.at_head().backends.values()
            settings.MUNIMENT_DEMO = False
            assert refusal(backend.issuers[server.url]) == "issuer_unavailable"
            settings.MUNIMENT_DEMO = True
            assert server.forms == [] and ("not allowed" in noted().error or "not https" in noted().error)


class TestTheAnswer:
    def test_it_is_used_again_until_the_bound_and_no_longer(self, server: Server) -> None:
        issuer, now = known(server, cache_seconds=60), time.time()
        for later in (0, 30, 58):
            assert ask(issuer, now=now + later).good_until == pytest.approx(now + 60, abs=5)
        assert server.asked(TOKEN) == 1
        server.tokens[TOKEN] = {"active": False}
        assert refusal(issuer, now=now + 66) == "token_invalid" and server.asked(TOKEN) == 2

    def test_it_is_used_again_until_exp_and_no_longer(self, server: Server) -> None:
        now = int(time.time())
        server.tokens[TOKEN] = active(exp=now + 20)
        issuer = known(server, cache_seconds=600)
        assert ask(issuer, now=now + 19).good_until == now + 20
        server.tokens[TOKEN] = {"active": False}
        assert refusal(issuer, now=now + 20) == "token_invalid" and server.asked(TOKEN) == 2

    def test_with_a_bound_of_nothing_it_is_asked_for_each_time(self, server: Server) -> None:
        issuer = known(server, cache_seconds=0)
        ask(issuer), ask(issuer)
        server.tokens[TOKEN] = {"active": False}
        assert refusal(issuer) == "token_invalid" and server.asked(TOKEN) == 3

    def test_that_a_token_is_not_active_is_kept_for_seconds(self, server: Server) -> None:
        issuer, now = known(server, cache_seconds=60), time.time()
        assert refusal(issuer, "junk", now=now) == refusal(issuer, "junk", now=now + 2) == "token_invalid"
        assert server.asked("junk") == 1
        server.tokens["junk"] = active()
        assert ask(issuer, "junk", now=now + 30).sub == "alice"

    def test_tokens_that_are_made_up_push_out_no_others(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(introspected, "MAX_NEGATIVE", 2)
        monkeypatch.setattr(introspected, "NEGATIVE", 60)
        issuer = known(server)
        ask(issuer)
        for number in range(4):
            refusal(issuer, f"junk{number}")
        assert ask(issuer).sub == "alice" and server.asked(TOKEN) == 1
        refusal(issuer, "junk3"), refusal(issuer, "junk0")
        assert (server.asked("junk3"), server.asked("junk0")) == (1, 2)

    def test_other_credentials_ask_anew(self, server: Server) -> None:
        ask(known(server))
        Introspection.objects.update(client_id="another")
        [backend] = snapshots.at_head().backends.values()
        ask(backend.issuers[server.url])
        assert server.asked(TOKEN) == 2


class TestManyAtOnce:
    def test_threads_with_the_same_token_wait_for_one_question(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        issuer = known(server)
        answering_when(server, 16, monkeypatch)
        found = in_threads(16, lambda _: ask(issuer).sub)
        assert found == ["alice"] * 16 and server.asked(TOKEN) == 1

    def test_they_all_hear_of_an_outage(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        issuer = known(server, cache_seconds=0)
        server.status = 500
        answering_when(server, 8, monkeypatch)
        assert in_threads(8, lambda _: ask(issuer)) == ["issuer_unavailable"] * 8
        assert server.asked(TOKEN) == 1

    def test_a_slow_issuer_has_no_more_than_some_of_the_threads(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(introspected, "CONCURRENT", 3)
        issuer = known(server)
        answering_when(server, 8, monkeypatch)
        for number in range(8):
            server.tokens[f"t{number}"] = active()
        found = in_threads(8, lambda number: ask(issuer, f"t{number}").sub)
        assert sorted(found) == ["alice"] * 3 + ["issuer_unavailable"] * 5 and len(server.forms) == 3
        assert ask(issuer, "t0").sub == ask(issuer, "t1").sub == ask(issuer, "t7").sub == "alice"


class TestOutages:
    def test_whatever_is_not_an_answer_is_an_outage(self, server: Server) -> None:
        issuer = known(server)
        server.headers = {"Location": f"{server.url}/elsewhere"}
        for status in (400, 401, 403, 404, 429, 500, 502, 503, 204, 302, 307):
            desk.clear()
            server.status = status
            asked = len(server.forms)
            assert refusal(issuer) == "issuer_unavailable", status
            assert len(server.forms) == asked + 1  # a redirect is not followed
            assert str(status) in noted().error or "redirects" in noted().error, status

    def test_an_answer_of_no_use_is_an_outage(self, server: Server) -> None:
        issuer = known(server)
        for body in (b"", b"no", b'{"active": "yes"}', b'{"active": true, "x": "' + b"a" * 70_000 + b'"}'):
            desk.clear()
            server.body = body
            assert refusal(issuer) == "issuer_unavailable" and noted().error, body[:20]

    def test_one_that_was_not_there_is_left_alone_and_then_tried_by_one_call(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(introspected, "TIMEOUT", 1.0)
        monkeypatch.setattr(introspected, "PAUSE", 60.0)
        issuer = known(server)
        server.released.clear()
        assert refusal(issuer) == refusal(issuer) == refusal(issuer, "other") == "issuer_unavailable"
        assert len(server.forms) == 1
        desk._lines[issuer.id].until = time.monotonic()  # a minute later
        monkeypatch.setattr(introspected, "TIMEOUT", 30.0)
        server.released.set()
        assert ask(issuer).sub == "alice" and len(server.forms) == 2

    def test_what_one_token_causes_keeps_nobody_else_out(self, server: Server) -> None:
        issuer = known(server)
        server.status = 500
        assert refusal(issuer, "odd") == "issuer_unavailable"
        server.status = 200
        assert ask(issuer).sub == "alice"

    def test_a_fresh_answer_is_used_all_the_same(self, server: Server) -> None:
        issuer = known(server)
        ask(issuer)
        server.status = 503
        assert ask(issuer).sub == "alice" and refusal(issuer, "other") == "issuer_unavailable"

    def test_staff_see_that_it_fails_and_that_it_does_not_any_more(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(introspected, "CHANGED", 0.0)
        issuer = known(server)
        version = snapshots.at_head().version
        server.status = 401
        refusal(issuer)
        assert "does not accept our client id" in noted().error and noted().failed_at and not noted().answered_at
        server.status = 200
        ask(issuer)
        assert noted().error == "" and noted().answered_at
        assert snapshots.at_head().version == version  # how asking goes is no policy


def test_neither_token_nor_secret_is_in_a_log_an_error_or_the_database(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = known(server)
    said = []
    with caplog.at_level(logging.DEBUG):
        ask(issuer)
        for status, body in ((401, None), (200, TOKEN.encode()), (200, SECRET.encode()), (302, None)):
            desk.clear()
            server.status, server.body = status, body
            with pytest.raises(Refused) as refused:
                ask(issuer)
            said += [repr(refused.value), str(refused.value.__context__), noted().error]
    told = caplog.text + "".join(said) + repr(issuer)
    assert "failed: the server answered 401" in caplog.text
    basic = server.heads[0]["Authorization"].partition(" ")[2]
    assert not any(secret in told for secret in (TOKEN, SECRET, basic))
    with connection.cursor() as cursor:
        cursor.execute("SELECT t::text FROM clients_introspection t")
        [row] = cursor.fetchone()
    assert SECRET not in row and SECRET.encode().hex() not in row and TOKEN not in row
