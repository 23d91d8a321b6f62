"""What is good at one door is tried at all others: keys and tokens of every kind, and calls after access ended, at each
endpoint that decides."""

import json
import secrets
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from django.test import Client as HttpClient
from django.utils import timezone

from audit.models import Outbox, Record, Subject
from clients.models import Issuer, SignalStream
from clients.signals import credentials
from governance import signals_api
from tests.clients.proving import holder
from tests.governance import authzen, test_logout, test_signals
from tests.scim import USER, Provider, connect
from tests.world import AUDIENCE, ISSUER, World, build, jwks, token
from tools.models import Route

FORM = "application/x-www-form-urlencoded"
EVENTS = {test_signals.REVOKED: {}}
Ending = Callable[[World], int]


@pytest.fixture
def world(db: None) -> World:
    signals_api._good.clear()
    made = build()
    Route.objects.create(backend=made.backend, path="/memories", methods=["GET"], tools=["memory.recall"])
    return made


def call(world: World, key: str | None, **members: Any) -> str:
    """The reason of one call; under a key, of the same one each time."""
    more = {"Idempotency-Key": key} if key else {}
    found: str = world.post("/v1/verify", {"tool": "memory.recall"} | members, **more).json()["reason"]
    return found


def batch(world: World, text: str) -> str:
    items = [{"token": text, "tool": "memory.recall"}] * 2
    [one, two] = world.post("/v1/verify/batch", {"items": items}).json()["items"]
    assert one["reason"] == two["reason"]
    return str(one["reason"])


def forwarded(world: World, text: str) -> str:
    headers = {
        "X-Muniment-Proxy": "nginx", "X-Muniment-Key": world.key, "X-Original-Method": "GET",
        "X-Original-URI": "/memories", "Authorization": f"Bearer {text}",
    }  # fmt: skip
    answer = world.http.get("/v1/forward-auth", headers=headers)
    return "granted" if answer.status_code == 200 else str(json.loads(answer.content)["reason"])


def active(world: World, text: str) -> bool:
    key = {"Authorization": f"Bearer {world.key}"}
    answer = world.http.post("/v1/introspect", urlencode({"token": text}), content_type=FORM, headers=key)
    return bool(answer.json()["active"])


def everywhere(world: World, key: str, text: str) -> set[Any]:
    """What each endpoint says of alice's token, the call that is sent again under this key included."""
    asserted = authzen.ask(world, subject=authzen.user("alice", issuer=ISSUER, iat=int(time.time()) - 30))
    return {
        call(world, key, token=text), call(world, None, token=text), batch(world, text), forwarded(world, text),
        asserted["reason"], "granted" if active(world, text) else "inactive",
    }  # fmt: skip


def by_event(world: World) -> int:
    status: int = test_signals.push(test_signals.event(), test_signals.made()).status_code
    return status


def by_logout(world: World) -> int:
    status: int = test_logout.post(test_logout.logout()).status_code
    return status


def by_scim(world: World) -> int:
    provider = connect()
    return int(provider.set(provider.made("alice"), active=False).status_code)


def by_scim_from_the_start(world: World) -> int:
    return int(connect().add("alice", active=False).status_code)


@pytest.mark.parametrize(
    ("end", "status", "reason"),
    [
        (by_event, 202, "token_expired"), (by_logout, 200, "token_expired"), (by_scim, 200, "subject_blocked"),
        (by_scim_from_the_start, 201, "subject_blocked"),
    ],
)  # fmt: skip
def test_access_that_ended_ended_everywhere(world: World, end: Ending, status: int, reason: str) -> None:
    key, text = secrets.token_hex(8), token()
    assert everywhere(world, key, text) == {"granted"}
    assert end(world) == status
    assert everywhere(world, key, text) == {reason, "inactive"}


def test_what_ends_access_gives_none_back(world: World) -> None:
    """An older event, an older logout and a provider that says "active" leave a later sign-out and a block."""
    world.verify()
    out = timezone.now() - timedelta(seconds=1)
    Subject.objects.update(signed_out_at=out, blocked_at=out)
    before = int(out.timestamp()) - 100
    pushed = test_signals.push(test_signals.event(payload={"event_timestamp": before}), test_signals.made())
    provider = connect()
    assert (pushed.status_code, provider.add("alice", active=True).status_code) == (202, 201)
    assert test_logout.post(test_logout.logout(iat=before)).status_code == 200
    found = Subject.objects.get()
    assert (found.signed_out_at, found.blocked_at, found.deactivated_at) == (out, out, None)


def signed(typ: str | None, **claims: Any) -> str:
    """A token of the issuer that names everything that any kind of token has to name."""
    now = int(time.time())
    usual = {
        "iss": ISSUER, "aud": [AUDIENCE, "claude-app", test_signals.AUDIENCE], "sub": "alice", "iat": now,
        "exp": now + 120, "jti": "j1", "client_id": "claude-app", "scope": "memory:read", "sub_id": test_signals.ALICE,
    }  # fmt: skip
    return test_logout.logout(header={"typ": typ}, **usual | {"events": None} | claims)


LOGOUT = {"events": {test_logout.EVENT: {}}}
BOTH = {"events": {test_logout.EVENT: {}, test_signals.REVOKED: {}}}
KINDS = {
    "event": ("secevent+jwt", {"events": EVENTS}), "logout": ("logout+jwt", LOGOUT), "access": ("at+jwt", {}),
    "id": ("JWT", {"nonce": "n", "scope": None, "client_id": None}), "answer": ("token-introspection+jwt", {}),
    "assertion": ("muniment-assertion+jwt", {}), "proof": ("dpop+jwt", {}), "event as JWT": ("JWT", {"events": EVENTS}),
    "event and logout": ("JWT", BOTH | {"nonce": "n"}), "logout as event": ("secevent+jwt", LOGOUT),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_of_one_kind_is_good_for_its_own_door_alone(world: World, kind: str) -> None:
    """All are signed with one key, by one issuer that is also the transmitter."""
    stream = SignalStream(
        name="okta", issuer=Issuer.objects.get(), transmitter=ISSUER, audience=test_signals.AUDIENCE, jwks=jwks(),
        keys_fetched_at=timezone.now(),
    )  # fmt: skip
    push = credentials.fresh(stream)
    stream.save()
    text = signed(KINDS[kind][0], **KINDS[kind][1])
    doors = {
        "access": call(world, None, token=text) == "granted",
        "logout": test_logout.post(text).status_code == 200,
        "event": test_signals.push(text, push).status_code == 202,
    }
    assert {door for door, opened in doors.items() if opened} == ({kind} & set(doors)) | (
        {"event"} if kind == "logout as event" else set()  # it is one, of a kind that is not known
    )
    ended = Subject.objects.exclude(signed_out_at=None).exists()
    assert ended == (kind in ("event", "logout"))


def test_a_key_opens_the_door_that_it_was_made_for_alone(world: World) -> None:
    provider, pushing = connect(), test_signals.made()
    keys = {"backend": world.key, "scim": provider.token, "stream": pushing, "user": token()}
    for name, key in keys.items():
        bearer = {"Authorization": f"Bearer {key}"}
        http = HttpClient()
        found = {
            "backend": world.post("/v1/verify", {"token": token("bob"), "tool": "memory.recall"}, key=key).status_code,
            "introspection": http.post(
                "/v1/introspect", urlencode({"token": token("bob"), "client_secret": key}), content_type=FORM
            ).status_code,
            "records": http.get("/v1/records", headers=bearer).status_code,
            "scim": Provider(provider.connection, key).call("GET", "/Users").status_code,
            "stream": test_signals.push(test_signals.event(), key).status_code,
        }
        opened = {door for door, status in found.items() if status < 400}
        assert opened == {"backend": {"backend", "introspection"}, "scim": {"scim"}, "stream": {"stream"}}.get(
            name, set()
        ), (name, found)
        # As a user's token none of them is anybody.
        assert name == "user" or call(world, None, token=key) == "token_malformed"


def test_no_key_of_any_kind_is_on_record_or_waits_for_it(world: World) -> None:
    provider, pushing = connect(), test_signals.made()
    for key in (world.key, provider.token, pushing):
        world.post("/v1/verify", {"token": key, "tool": "memory.recall", "request": {"id": "r1"}})
        test_signals.push(test_signals.event(jti=key, payload={"reason_admin": key}), pushing)
        provider.call("POST", "/Users", {"schemas": [USER], "userName": key, "externalId": key})
    kept = [bytes(row) for row in Record.objects.values_list("statement", flat=True)]
    waiting = [json.dumps([row.members, row.actor]).encode() for row in Outbox.objects.all()]
    for key in (world.key, provider.token, pushing):
        assert not any(key[-40:].encode() in text for text in [*kept, *waiting])


def test_a_proof_of_possession_is_no_token_and_makes_none_of_its_own_key(world: World) -> None:
    mallory = holder(number=1)
    stolen = token(cnf={"jkt": holder().jkt})
    proof = mallory.proof(stolen, iss=ISSUER, aud=AUDIENCE, sub="alice", client_id="claude-app", exp=9e9)
    assert call(world, None, token=proof) == "token_invalid"
    shown = {"proof": proof, "method": "POST", "url": "https://inner.example/mcp"}
    assert call(world, None, token=stolen, dpop=shown) == "proof_invalid"
    assert call(world, None, token=stolen, mtls={"x5t#S256": holder().jkt}) == "proof_required"
