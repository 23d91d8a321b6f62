"""An identity assertion is believed for what the platform signed, for this audience, for a minute, and nothing else.

The assertions are the platform's own, and so are the keys, over a real HTTP server; forgeries have real signatures.
"""

import asyncio
import json
import re
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.conf import settings
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from audit.models import PublishedKey
from governance.process import signer
from muniment import Misconfigured, Unavailable, assertion_keys
from muniment.assertion import AssertedCaller, AssertionRefused, AssertionVerifier
from muniment.keys import thumbprint
from tests import world as worlds
from tests.served import served
from tests.world import World

AUDIENCE = "https://db.example"
PLATFORM = "https://muniment.example"
TYPE = "muniment-assertion+jwt"
OURS = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHERS = Ed25519PrivateKey.from_private_bytes(bytes(32))


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def row(key: Ed25519PrivateKey = OURS, **members: Any) -> dict[str, Any]:
    """A key as GET /v1/keys gives it."""
    raw = public(key)
    return {
        "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": thumbprint(raw), "use": "assertion",
        "x": urlsafe_b64encode(raw).rstrip(b"=").decode(), "not_before": "2026-01-01T00:00:00+00:00", "not_after": None,
    } | members  # fmt: skip


def assertion(key: Any = OURS, algorithm: str = "EdDSA", header: dict[str, Any] | None = None, **claims: Any) -> str:
    """An assertion as the platform makes it, but for what is given; a claim of `...` is left out."""
    now = int(time.time())
    said = {
        "iss": PLATFORM, "aud": AUDIENCE, "sub": "usr_1", "iat": now, "exp": now + 60, "jti": "r1", "client": "claude",
        "tool": "memory.recall", "scope": "memory:read memory:write",
    } | claims  # fmt: skip
    said = {name: value for name, value in said.items() if value is not ...}
    headers = {"typ": TYPE, "kid": row()["kid"]} | (header or {})
    return jwt.encode(said, key, algorithm=algorithm, headers=headers)


def resigned(head: bytes, payload: bytes, key: Ed25519PrivateKey = OURS) -> str:
    """A JWS of exactly these bytes, with a signature that holds."""
    signed = b".".join(urlsafe_b64encode(part).rstrip(b"=") for part in (head, payload))
    return (signed + b"." + urlsafe_b64encode(key.sign(signed)).rstrip(b"=")).decode()


@pytest.fixture(scope="module")
def verifier() -> AssertionVerifier:
    return AssertionVerifier({"keys": [row()]}, audience=AUDIENCE, issuer=PLATFORM)


class TestThePlatformsOwn:
    @pytest.fixture
    def world(self, db: None) -> World:
        return worlds.build()

    def test_a_service_further_down_learns_who_calls(self, world: World) -> None:
        from governance.wsgi import application

        answer = world.verify(assertion=AUDIENCE)
        with served(application) as url:
            verifier = AssertionVerifier(url, audience=AUDIENCE, issuer=settings.MUNIMENT_URL)
            caller = verifier.verify(answer["assertion"])
            assert asyncio.run(verifier.averify(answer["assertion"])) == caller
            elsewhere = AssertionVerifier(url, audience="https://other.example", issuer=settings.MUNIMENT_URL)
            with pytest.raises(AssertionRefused, match="audience"):
                elsewhere.verify(answer["assertion"])
            verifier.close()
        assert (caller.uid, caller.record) == (answer["subject"]["uid"], answer["record"])
        assert (caller.client, caller.tool, caller.scopes) == ("claude", "memory.recall", ("memory:read",))
        assert 0 < caller.expires_at - time.time() <= 60

    def test_the_writers_key_makes_no_assertion(self, world: World) -> None:
        world.verify(assertion=AUDIENCE)  # publishes both keys
        document = world.http.get("/v1/keys").json()
        verifier = AssertionVerifier(document, audience=AUDIENCE, issuer=PLATFORM)
        writer = signer("WRITER_KEY", "writer")
        assert writer.key_id in {key["kid"] for key in document["keys"]}
        for kid in (writer.key_id, PublishedKey.objects.get(use="assertion").key_id):
            with pytest.raises(AssertionRefused):
                verifier.verify(assertion(writer.private, header={"kid": kid}))

    def test_a_jose_library_finds_the_keys_for_assertions_and_no_others(self, world: World) -> None:
        from governance.wsgi import application

        answer = world.verify(assertion=AUDIENCE)
        with served(application) as url:
            found = jwt.PyJWKClient(f"{url}/v1/keys?use=assertion")
            key = found.get_signing_key_from_jwt(answer["assertion"])
            claims = jwt.decode(answer["assertion"], key, algorithms=["EdDSA"], audience=AUDIENCE)
            assert [one.key_id for one in found.get_signing_keys()] == [signer("ASSERTION_KEY", "assertion").key_id]
        assert claims["sub"] == answer["subject"]["uid"]
        PublishedKey.objects.filter(use="assertion").update(not_after=timezone.now())
        assert world.http.get("/v1/keys?use=assertion").json() == {"keys": []}
        assert {key["use"] for key in world.http.get("/v1/keys").json()["keys"]} == {"writer", "assertion"}

    def test_the_documented_services_accept_it_and_refuse_a_users_token(self, world: World, settings: Any) -> None:
        from governance.wsgi import application

        page = (Path(__file__).resolve().parents[2] / "docs/integrations/assertions.md").read_text()
        tool, service, library = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
        with served(application) as url:
            settings.MUNIMENT_URL = url
            found: dict[str, Any] = {}
            for snippet in (tool, service, library):
                exec(snippet.replace(PLATFORM, url).replace("mk_1_secret", world.key), found)
            with found["guard"].request(worlds.token()):
                shown = found["recall"]("sea")["Authorization"].removeprefix("Bearer ")
            found["guard"].close()
            assert found["who_calls"](f"Bearer {shown}") == found["claims"](shown)["sub"] != ""
            with pytest.raises(AssertionRefused):
                found["who_calls"](f"Bearer {worlds.token()}")
            with pytest.raises(jwt.PyJWTError):
                found["claims"](worlds.token())
            found["verifier"].close()

    @pytest.mark.parametrize("query", ["use=", "use=writer", "use=sig", "use=assertion&use=assertion", "use=%00"])
    def test_keys_of_another_use_are_not_given_to_a_jose_library(self, world: World, query: str) -> None:
        refused = world.http.get(f"/v1/keys?{query}")
        assert (refused.status_code, refused.json()["type"]) == (400, "urn:muniment:problem:invalid-parameter")

    def test_it_is_no_access_token(self, world: World) -> None:
        made = world.verify(assertion=AUDIENCE)["assertion"]
        answer = world.verify(token=made)
        assert (answer["decision"], answer["status"], answer["subject"]) == ("deny", 401, None)

    def test_a_users_token_is_no_assertion(self, world: World, verifier: AssertionVerifier) -> None:
        with pytest.raises(AssertionRefused):
            verifier.verify(worlds.token())


class TestOneThatHolds:
    def test_says_who_calls(self, verifier: AssertionVerifier) -> None:
        now = int(time.time())
        assert verifier.verify(assertion(iat=now, exp=now + 60)) == AssertedCaller(
            "usr_1", "claude", "memory.recall", ("memory:read", "memory:write"), "r1", PLATFORM, now + 60
        )

    @pytest.mark.parametrize(("issued", "expires"), [(-60, -2), (4, 64), (-59, 1), (0, 1)])
    def test_may_be_some_seconds_off(self, verifier: AssertionVerifier, issued: int, expires: int) -> None:
        now = int(time.time())
        assert verifier.verify(assertion(iat=now + issued, exp=now + expires)).uid == "usr_1"

    def test_may_be_without_scopes(self, verifier: AssertionVerifier) -> None:
        assert verifier.verify(assertion(scope="")).scopes == ()


HEAD = json.dumps({"typ": TYPE, "alg": "EdDSA", "kid": row()["kid"]}).encode()


def times(issued: int, expires: float) -> dict[str, float]:
    """The claims `iat` and `exp`, in seconds from now."""
    now = int(time.time())
    return {"iat": now + issued, "exp": now + expires}


def respelled(old: bytes, new: bytes) -> str:
    """An assertion whose signature holds, with one piece of its payload written in another way."""
    payload = urlsafe_b64decode(assertion().split(".")[1] + "==")
    assert old in payload
    return resigned(HEAD, payload.replace(old, new, 1))


# Made when they are shown, not when this file is read: they hold for a minute, and must not be refused for their age.
FORM, NO_ASSERTION, NO_KEY, SIGNATURE = "form", "and no assertion", "no key", "does not hold"
FORGED: dict[str, tuple[Callable[[], str], str]] = {
    "another key": (lambda: assertion(OTHERS), SIGNATURE),
    "another key under its own id": (lambda: assertion(OTHERS, header={"kid": row(OTHERS)["kid"]}), NO_KEY),
    "an id that is unknown": (lambda: assertion(header={"kid": "x"}), NO_KEY),
    "an id that is a path": (lambda: assertion(header={"kid": "../../dev/null"}), NO_KEY),
    "an id that is a number": (lambda: resigned(HEAD.replace(b'"kid": "', b'"kid": 1, "x": "'), b"{}"), NO_ASSERTION),
    "no algorithm": (lambda: assertion(None, "none"), FORM),
    "no algorithm, but a signature": (lambda: resigned(HEAD.replace(b"EdDSA", b"none"), b"{}"), NO_ASSERTION),
    "HMAC with the public key": (lambda: assertion(public(OURS), "HS256"), FORM),
    "HMAC as long as ours": (lambda: assertion(public(OURS) * 2, "HS512"), NO_ASSERTION),
    "RSA": (lambda: assertion(RSA, "RS256"), FORM),
    "typ of an access token": (lambda: assertion(header={"typ": "at+jwt"}), NO_ASSERTION),
    "typ in other letters": (lambda: assertion(header={"typ": TYPE.upper()}), NO_ASSERTION),
    "an extension": (lambda: assertion(header={"crit": ["b64"], "b64": True}), NO_ASSERTION),
    "a key of its own": (lambda: assertion(OTHERS, header={"jwk": row(OTHERS)}), NO_ASSERTION),
    "keys elsewhere": (lambda: assertion(header={"jku": "https://evil.example/keys"}), NO_ASSERTION),
    "another audience": (lambda: assertion(aud="https://db.example/"), "audience"),
    "several audiences": (lambda: assertion(aud=[AUDIENCE, "https://other.example"]), "lacks a claim"),
    "another issuer": (lambda: assertion(iss=PLATFORM + "/"), "issuer"),
    "expired": (lambda: assertion(**times(-50, -6)), "has expired"),
    "of the future": (lambda: assertion(**times(90, 120)), "future"),
    "for longer than a minute": (lambda: assertion(**times(0, 61)), "longer"),
    "for longer, to end now": (lambda: assertion(**times(-3600, 30)), "longer"),
    "backwards": (lambda: assertion(**times(0, -1)), "longer"),
    "no end": (lambda: assertion(exp=...), "until when"),
    "an end in words": (lambda: assertion(exp="2100"), "until when"),
    "an end with a fraction": (lambda: assertion(**times(0, 0.5)), "until when"),
    "an end that is true": (lambda: assertion(iat=0, exp=True), "until when"),
    "an end without end": (lambda: respelled(b'"exp":', b'"exp":Infinity,"x":'), "until when"),
    "an end of a thousand digits": (lambda: respelled(b'"exp":', b'"exp":' + b"9" * 1000), "longer"),
    "an end of more digits than Python reads": (lambda: respelled(b'"exp":', b'"exp":' + b"9" * 5000), FORM),
    "nobody": (lambda: assertion(sub=""), "lacks a claim"),
    "no subject": (lambda: assertion(sub=...), "lacks a claim"),
    "a subject that is a number": (lambda: respelled(b'"usr_1"', b"1"), "lacks a claim"),
    "two subjects": (lambda: respelled(b'"sub":', b'"sub":"usr_2","sub":'), FORM),
    "two subjects, one in escapes": (lambda: respelled(b'"sub":', b'"s\\u0075b":"usr_2","sub":'), FORM),
    "no record": (lambda: assertion(jti=...), "lacks a claim"),
    "no tool": (lambda: assertion(tool=...), "lacks a claim"),
    "no scopes": (lambda: assertion(scope=...), "lacks a claim"),
}


class TestAForgery:
    @pytest.mark.parametrize(("make", "why"), FORGED.values(), ids=FORGED.keys())
    def test_is_refused(self, verifier: AssertionVerifier, make: Callable[[], str], why: str) -> None:
        shown = make()
        with pytest.raises(AssertionRefused, match=why) as refused:
            verifier.verify(shown)
        assert refused.value.status == 401
        assert refused.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        assert refused.value.__cause__ is None
        with pytest.raises(AssertionRefused, match=why):
            asyncio.run(verifier.averify(shown))

    @pytest.mark.parametrize(
        "shown",
        [None, "", ".", "..", "a.b.c", "a" * 20_000, b"x.y.z", 5, assertion() + "=", " " + assertion(),
         assertion() + "\n", "é.é." + "A" * 86, assertion() + ".x"],
        ids=range(13),
    )  # fmt: skip
    def test_of_no_form_is_refused(self, verifier: AssertionVerifier, shown: Any) -> None:
        with pytest.raises(AssertionRefused, match=r"form|No assertion"):
            verifier.verify(shown)

    @pytest.mark.parametrize(
        "part",
        [b"", b"[]", b"null", b'{"a":1,"a":2}', b"[" * 9000, b'{"a":' * 2000, b"\xff", b"1" * 5000, b"\xef\xbb\xbf{}"],
    )
    def test_that_is_no_object_is_refused(self, verifier: AssertionVerifier, part: bytes) -> None:
        for shown in (resigned(HEAD, part), resigned(part, HEAD)):
            with pytest.raises(AssertionRefused, match=FORM):
                verifier.verify(shown)

    def test_in_another_spelling_is_refused(self, verifier: AssertionVerifier) -> None:
        shown = assertion()
        assert shown[-1] in "AQgw"  # the last four bits of 64 bytes in base64 mean nothing
        with pytest.raises(AssertionRefused):
            verifier.verify(shown[:-1] + chr(ord(shown[-1]) + 1))

    @given(st.data())
    def test_by_one_changed_character_is_refused(self, verifier: AssertionVerifier, data: st.DataObject) -> None:
        shown = assertion()
        place = data.draw(st.integers(0, len(shown) - 1))
        other = data.draw(st.sampled_from("ABab09-_.=").filter(lambda one: one != shown[place]))
        with pytest.raises(AssertionRefused):
            verifier.verify(shown[:place] + other + shown[place + 1 :])

    @given(st.text(max_size=60))
    def test_of_any_text_is_refused(self, verifier: AssertionVerifier, shown: str) -> None:
        # The same words for all: what hypothesis shows may be one of them, which it takes from our code.
        words = r"^(No assertion was shown|What was shown is not a signed JWT of an assertion's form)\.$"
        with pytest.raises(AssertionRefused, match=words):
            verifier.verify(shown)


class TestKeys:
    @pytest.mark.parametrize(
        "members",
        [
            {"use": "writer"}, {"use": "sig"}, {"use": None}, {"kid": "x"}, {"kty": "EC"}, {"crv": "Ed448"},
            {"alg": "ES256"}, {"x": row(OTHERS)["x"]}, {"x": None}, {"x": "AAAA"}, {"x": "é"}, {"not_before": "soon"},
            {"not_before": "2100-01-01T00:00:00+00:00"}, {"not_before": None}, {"not_before": "2026-01-01T00:00:00"},
            {"not_after": "2026-01-02T00:00:00+00:00"}, {"not_after": 0},
        ],
        ids=str,
    )  # fmt: skip
    def test_of_another_use_or_form_or_time_verify_nothing(self, members: dict[str, Any]) -> None:
        verifier = AssertionVerifier({"keys": [row() | members, row(OTHERS)]}, audience=AUDIENCE, issuer=PLATFORM)
        with pytest.raises(AssertionRefused, match="no key"):
            verifier.verify(assertion())

    @pytest.mark.parametrize("document", [{}, {"keys": {}}, {"keys": []}, {"keys": [1, None, row(use="log")]}])
    def test_that_are_none_are_told_at_the_start(self, document: dict[str, Any]) -> None:
        with pytest.raises(Misconfigured):
            AssertionVerifier(document, audience=AUDIENCE, issuer=PLATFORM)

    @pytest.mark.parametrize(
        "given",
        [{"keys": "ftp://x"}, {"keys": "muniment"}, {"keys": "https://x/?a"}, {"audience": ""}, {"issuer": ""}],
    )
    def test_need_a_url_an_audience_and_an_issuer(self, given: dict[str, str]) -> None:
        with pytest.raises(Misconfigured):
            AssertionVerifier(**({"keys": PLATFORM, "audience": AUDIENCE, "issuer": PLATFORM} | given))  # type: ignore[arg-type]

    def test_saved_need_the_issuer(self) -> None:
        with pytest.raises(Misconfigured):
            AssertionVerifier({"keys": [row()]}, audience=AUDIENCE)


@dataclass
class Keys:
    """A server of keys whose answers, and clock, a test sets."""

    url: str = ""
    status: str = "200 OK"
    body: bytes = field(default_factory=lambda: json.dumps({"keys": [row()]}).encode())
    asked: list[str] = field(default_factory=list)
    now: float = 1000.0

    def __call__(self, environ: dict[str, Any], start: Any) -> list[bytes]:
        self.asked.append(environ["PATH_INFO"])
        start(self.status, [("Content-Type", "application/json"), ("Location", "https://evil.example/")])
        return [self.body]

    def publish(self, *rows: dict[str, Any]) -> None:
        self.body = json.dumps({"keys": rows}).encode()


@pytest.fixture(scope="module")
def server() -> Iterator[Keys]:
    keys = Keys()
    with served(keys) as keys.url:
        yield keys


class TestFetchedKeys:
    @pytest.fixture
    def keys(self, server: Keys, monkeypatch: pytest.MonkeyPatch) -> Keys:
        fresh = Keys()
        server.status, server.body, server.asked, server.now = fresh.status, fresh.body, [], fresh.now
        monkeypatch.setattr(assertion_keys, "monotonic", lambda: server.now)
        return server

    @pytest.fixture
    def fetching(self, keys: Keys) -> Iterator[AssertionVerifier]:
        found = AssertionVerifier(keys.url + "/", audience=AUDIENCE, issuer=PLATFORM)
        yield found
        found.close()

    def test_are_asked_for_once_and_again_after_minutes(self, keys: Keys, fetching: AssertionVerifier) -> None:
        for _ in range(3):
            fetching.verify(assertion())
        assert asyncio.run(fetching.averify(assertion())).uid == "usr_1"
        assert keys.asked == ["/v1/keys"]
        keys.now += assertion_keys.FRESH
        fetching.verify(assertion())
        assert len(keys.asked) == 2

    def test_the_url_names_the_issuer_where_nothing_else_is_said(self, keys: Keys) -> None:
        verifier = AssertionVerifier(keys.url + "/", audience=AUDIENCE)
        assert verifier.verify(assertion(iss=keys.url)).issuer == keys.url

    def test_a_new_key_is_found_at_once_and_strangers_make_nobody_ask_more_than_once_a_minute(
        self, keys: Keys, fetching: AssertionVerifier
    ) -> None:
        new = assertion(OTHERS, header={"kid": row(OTHERS)["kid"]})
        fetching.verify(assertion())
        keys.publish(row(), row(OTHERS))
        keys.now += assertion_keys.PAUSE_AFTER_SET
        assert fetching.verify(new).uid == "usr_1"
        for number in range(20):
            with pytest.raises(AssertionRefused, match="no key"):
                fetching.verify(assertion(header={"kid": f"made-up-{number}"}))
        assert len(keys.asked) == 2
        fetching.verify(assertion())
        fetching.verify(new)

    def test_what_a_stranger_can_see_to_be_wrong_makes_nobody_ask(
        self, keys: Keys, fetching: AssertionVerifier
    ) -> None:
        for shown in (None, "x", assertion(aud="other"), assertion(iss="other"), assertion(header={"typ": "JWT"})):
            with pytest.raises(AssertionRefused):
                fetching.verify(shown)
        assert keys.asked == []

    def test_a_retired_key_is_refused_when_the_set_is_asked_for_again(
        self, keys: Keys, fetching: AssertionVerifier
    ) -> None:
        fetching.verify(assertion())
        keys.publish(row(not_after="2026-06-01T00:00:00+00:00"))
        keys.now += assertion_keys.FRESH
        with pytest.raises(AssertionRefused, match="no key"):
            fetching.verify(assertion())

    @pytest.mark.parametrize(
        ("status", "body", "cause"),
        [("503 Away", b"", "status_503"), ("302 Elsewhere", b"", "status_302"), ("200 OK", b"<html>", "no_key_set"),
         ("200 OK", b"[]", "no_key_set"), ("200 OK", b" " * (1 << 20) + b"{}", "no_key_set"),
         ("200 OK", b"[" * 100_000, "no_key_set")],
        ids=["away", "redirect", "a page", "a list", "too long", "too deep"],
    )  # fmt: skip
    def test_are_kept_through_an_outage_for_an_hour(
        self, keys: Keys, fetching: AssertionVerifier, status: str, body: bytes, cause: str
    ) -> None:
        fetching.verify(assertion())
        held = keys.body
        keys.status, keys.body = status, body
        keys.now += assertion_keys.FRESH
        fetching.verify(assertion())
        fetching.verify(assertion())
        assert len(keys.asked) == 2  # who was away is not asked again with each call
        keys.now += assertion_keys.STALE
        with pytest.raises(Unavailable) as away:
            fetching.verify(assertion())
        assert (away.value.cause, away.value.status) == (cause, 503)
        keys.status, keys.body = "200 OK", held
        with pytest.raises(Unavailable):
            fetching.verify(assertion())  # not yet
        keys.now += assertion_keys.PAUSE_AFTER_FAILURE
        assert fetching.verify(assertion()).uid == "usr_1"

    def test_threads_that_begin_together_ask_once(self, keys: Keys, fetching: AssertionVerifier) -> None:
        found: list[str] = []
        shown = assertion()
        threads = [threading.Thread(target=lambda: found.append(fetching.verify(shown).uid)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert found == ["usr_1"] * 8 and len(keys.asked) == 1

    def test_that_nobody_serves_are_an_outage(self, keys: Keys) -> None:
        verifier = AssertionVerifier("http://127.0.0.1:9", audience=AUDIENCE, issuer=PLATFORM, timeout=1.0)
        for _ in range(2):
            with pytest.raises(Unavailable) as away:
                verifier.verify(assertion())
            assert away.value.cause == "unreachable"
