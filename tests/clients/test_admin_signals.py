"""System > Signal streams: made, changed, switched off and on by those who may; tokens go in or are shown once, and are
good for what they were given for alone."""

import re
from typing import Any

import pytest
from django.test import Client as HttpClient
from django.utils import timezone

from audit.models import Outbox, Record
from clients.models import Issuer, SignalStream
from clients.signals import credentials, polling
from tests import staff, world
from tests.clients.keys import fake_issuer
from tests.clients.test_sets import TRANSMITTER
from tests.governance.test_signals import AUDIENCE, KEY, event, push
from tests.staff import member
from tests.world import World

LIST = "/admin/clients/signalstream/"
VIEW = "clients.view_signalstream"
MAY = (VIEW, "clients.add_signalstream", "clients.change_signalstream", "clients.view_issuer")
WHY = {"change_reason": "our identity provider"}
POLL = {"delivery": "poll", "poll_endpoint": "https://ssf.example/poll", "new_token": "poll-token-7"}


@pytest.fixture
def made(db: None) -> World:
    return world.build()


@pytest.fixture
def http(made: World) -> HttpClient:
    return member("mara", *MAY)


def add(http: HttpClient, **members: Any) -> Any:
    given = {
        "name": "okta", "issuer": Issuer.objects.get().pk, "transmitter": TRANSMITTER, "audience": AUDIENCE,
        "delivery": "push", **WHY,
    }  # fmt: skip
    return http.post(f"{LIST}add/", given | members)


def change(http: HttpClient, **members: Any) -> Any:
    row = SignalStream.objects.get()
    given = {
        "transmitter": row.transmitter, "audience": row.audience, "delivery": row.delivery,
        "poll_endpoint": row.poll_endpoint or "", "jwks_uri": row.jwks_uri or "", **WHY,
    }  # fmt: skip
    return http.post(f"{LIST}{row.pk}/change/", given | members)


def shown(answer: Any) -> str:
    """The push token on a page, which nobody may keep."""
    assert answer.status_code == 200 and "no-store" in answer["Cache-Control"], answer
    [token] = re.findall(r"Bearer (ss_[A-Za-z0-9_-]{43})", answer.content.decode())
    return str(token)


def errors(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200
    return dict(answer.context["adminform"].form.errors)


def test_one_that_is_pushed_has_an_address_and_a_token_that_work(http: HttpClient) -> None:
    answer = add(http)
    secret = shown(answer)
    assert answer.context["address"].endswith("/v1/signals/okta")
    SignalStream.objects.update(jwks={"keys": [KEY.jwk()]}, keys_fetched_at=timezone.now())
    assert push(event(), secret).status_code == 202
    row = SignalStream.objects.get()
    for path in (LIST, f"{LIST}{row.pk}/change/"):
        page = http.get(path).content.decode()
        assert "okta" in page and secret[3:] not in page and bytes(row.digest or b"").hex() not in page


def test_one_that_is_polled_keeps_its_token_and_never_shows_it(http: HttpClient) -> None:
    assert add(http, **POLL).status_code == 302
    row = SignalStream.objects.get()
    assert credentials.poll_token(row) == "poll-token-7" and row.digest is None
    for path in (LIST, f"{LIST}{row.pk}/change/"):
        assert "poll-token-7" not in http.get(path).content.decode()
    assert change(http, audience="https://else.example").status_code == 302
    assert credentials.poll_token(SignalStream.objects.get()) == "poll-token-7"


def test_its_token_is_not_sent_elsewhere_than_it_was_given_for(http: HttpClient) -> None:
    add(http, **POLL)
    assert set(errors(change(http, poll_endpoint="https://evil.example/poll"))) == {"new_token"}
    assert SignalStream.objects.get().poll_endpoint == POLL["poll_endpoint"]
    assert change(http, poll_endpoint="https://new.example/poll", new_token="another").status_code == 302
    assert credentials.poll_token(SignalStream.objects.get()) == "another"


def test_keys_of_one_transmitter_are_not_anothers(http: HttpClient) -> None:
    add(http)
    for members in ({"transmitter": "https://else.example"}, {"jwks_uri": "https://else.example/jwks"}):
        SignalStream.objects.update(jwks={"keys": [KEY.jwk()]}, keys_fetched_at=timezone.now())
        assert change(http, **members).status_code == 302
        row = SignalStream.objects.get()
        assert row.jwks is None and row.keys_fetched_at is None
    SignalStream.objects.update(jwks={"keys": [KEY.jwk()]}, keys_fetched_at=timezone.now())
    change(http, audience="https://else.example")
    assert SignalStream.objects.get().jwks is not None


def test_another_delivery_ends_the_token_of_the_one_before(http: HttpClient) -> None:
    secret = shown(add(http))
    assert change(http, **POLL).status_code == 302
    assert SignalStream.objects.get().digest is None and push(event(), secret).status_code == 401
    new = shown(change(http, delivery="push"))
    row = SignalStream.objects.get()
    assert row.token is None and new != secret and push(event(), secret).status_code == 401


def test_another_push_token_ends_the_old_one(http: HttpClient) -> None:
    old, row = shown(add(http)), SignalStream.objects.get()
    SignalStream.objects.update(jwks={"keys": [KEY.jwk()]}, keys_fetched_at=timezone.now())
    assert http.get(f"{LIST}{row.pk}/act/token/").status_code == 200
    assert push(event("e1"), old).status_code == 202, "a GET changed something"
    new = shown(http.post(f"{LIST}{row.pk}/act/token/", {"reason": "it was mailed around"}))
    assert push(event("e2"), old).status_code == 401 and push(event("e2"), new).status_code == 202


def test_disabled_nothing_counts_until_it_is_enabled(http: HttpClient) -> None:
    secret, row = shown(add(http)), SignalStream.objects.get()
    SignalStream.objects.update(jwks={"keys": [KEY.jwk()]}, keys_fetched_at=timezone.now())
    assert http.post(f"{LIST}{row.pk}/act/disable/", {"reason": "an incident"}).status_code == 302
    assert push(event(), secret).status_code == 401
    assert http.post(f"{LIST}{row.pk}/act/enable/", {"reason": "it is over"}).status_code == 302
    assert push(event(), secret).status_code == 202


def test_keys_are_fetched_on_request_and_a_failure_is_shown(http: HttpClient, settings: Any) -> None:
    settings.MUNIMENT_DEMO = True
    with fake_issuer(KEY.jwk()) as server:
        add(http, jwks_uri=f"{server.url}/jwks")
        row = SignalStream.objects.get()
        assert http.post(f"{LIST}{row.pk}/act/keys/").status_code == 302
        server.status = 500
        answer = http.post(f"{LIST}{row.pk}/act/keys/")
    assert "the old ones stay: the server answered 500" in answer.content.decode()
    page = http.get(f"{LIST}{row.pk}/change/").content.decode()
    assert "1 in use" in page and "the server answered 500" in page and "nabled, with a problem" in page


@pytest.mark.parametrize(
    ("members", "wrong"),
    [
        ({"name": "logout"}, "name"),
        ({"name": "Not a slug"}, "name"),
        ({"transmitter": ""}, "transmitter"),
        ({"transmitter": "okta"}, "jwks_uri"),
        ({"audience": ""}, "audience"),
        ({"jwks_uri": "https://user:secret-7@ssf.example/jwks"}, "jwks_uri"),
        ({"jwks_uri": "http://ssf.example/jwks"}, "jwks_uri"),
        ({"jwks_uri": "javascript:alert(1)"}, "jwks_uri"),
        (POLL | {"poll_endpoint": "https://user:secret-7@ssf.example/"}, "poll_endpoint"),
        (POLL | {"poll_endpoint": ""}, "poll_endpoint"),
        (POLL | {"new_token": ""}, "new_token"),
        (POLL | {"new_token": "a\r\nX-Evil: 1"}, "new_token"),
        (POLL | {"new_token": "é"}, "new_token"),
        ({"new_token": "for nothing"}, "new_token"),
        ({"change_reason": ""}, "change_reason"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(
    http: HttpClient, settings: Any, members: dict[str, Any], wrong: str
) -> None:
    settings.MUNIMENT_DEMO = False
    assert wrong in errors(add(http, **members))
    assert not SignalStream.objects.exists()


def test_making_and_changing_it_is_recorded_without_the_tokens(http: HttpClient) -> None:
    secret = shown(add(http))[3:]
    change(http, **POLL)
    told = staff.newest("policy")
    [change_told] = [one for one in told["changes"] if one["table"] == "clients_signalstream"][:1]
    assert change_told["new"]["poll_endpoint"] == POLL["poll_endpoint"] and told["actor"].startswith("staff:")
    assert not {"digest", "token", "jwks", "error"} & change_told["new"].keys()
    for record in Record.objects.all():
        said = bytes(record.statement).decode()
        assert secret not in said and POLL["new_token"] not in said
    assert not [row for row in Outbox.objects.values_list() if secret in str(row) or POLL["new_token"] in str(row)]


@pytest.mark.parametrize("permissions", [(), (VIEW,)])
def test_who_may_not_changes_nothing(made: World, http: HttpClient, permissions: tuple[str, ...]) -> None:
    add(http, **POLL)
    before = SignalStream.objects.values().get()
    other = member("vera", *permissions)
    page = other.get(f"{LIST}{before['id']}/change/")
    assert page.status_code == (200 if permissions else 403)
    assert "new_token" not in page.content.decode()
    assert add(other, name="other").status_code == 403
    for path, given in (("change/", WHY), ("act/disable/", {"reason": "x"}), ("act/keys/", {}), ("act/token/", {})):
        assert other.post(f"{LIST}{before['id']}/{path}", given).status_code == 403, path
    assert SignalStream.objects.values().get() == before


def test_a_change_of_how_it_goes_is_no_policy(http: HttpClient) -> None:
    add(http, **POLL)
    staff.drained()
    before = Record.objects.filter(type="policy").count()
    SignalStream.objects.update(polled_at=timezone.now(), error="polling: away", received_at=timezone.now())
    polling.poll_due(3600)
    staff.drained()
    assert Record.objects.filter(type="policy").count() == before
