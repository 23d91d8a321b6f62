"""System > SCIM: a connection is made with a token that is shown once, switched off and on, and given another token, by
those who may; and what a user's page says of who manages them."""

import re
import time
from typing import Any

import pytest
from django.test import Client as HttpClient

from audit.models import Outbox, Record, Subject
from audit.recent_sign_in import SIGNED_IN_AT
from clients.models import Issuer, ScimConnection, ScimUser
from tests import scim, staff, world
from tests.scim import Provider
from tests.staff import member
from tests.world import World

LIST = "/admin/clients/scimconnection/"
MAY = ("clients.view_scimconnection", "clients.add_scimconnection", "clients.change_scimconnection",
       "clients.view_issuer")  # fmt: skip
WHY = {"change_reason": "a provider"}


@pytest.fixture
def made(db: None) -> World:
    return world.build()


@pytest.fixture
def http(made: World) -> HttpClient:
    return recent(member("mara", *MAY))


def recent(http: HttpClient, ago: int = 0) -> HttpClient:
    """The browser of somebody who showed so many seconds ago who they are."""
    session = http.session
    session[SIGNED_IN_AT] = int(time.time()) - ago
    session.save()
    return http


def shown(answer: Any) -> str:
    """The token on a page, which nobody may keep."""
    assert answer.status_code == 200 and "no-store" in answer["Cache-Control"]
    [token] = re.findall(r"scim_\d+_[A-Za-z0-9_-]{43}", answer.content.decode())
    return str(token)


def add(http: HttpClient, **members: Any) -> Any:
    given = {"name": "okta", "issuer": Issuer.objects.get().pk, "subject_attribute": "externalId", **WHY}
    return http.post(f"{LIST}add/", given | members)


def test_one_is_made_with_an_address_and_a_token_that_work(http: HttpClient) -> None:
    answer = add(http)
    token, row = shown(answer), ScimConnection.objects.get()
    assert answer.context["address"].endswith("/scim/v2/okta") and answer.context["address"] in answer.content.decode()
    provider = Provider(row, token)
    assert provider.add().status_code == 201
    for path in (LIST, f"{LIST}{row.pk}/change/"):
        page = http.get(path).content.decode()
        assert "okta" in page and token.split("_", 2)[2] not in page and bytes(row.digest or b"").hex() not in page
    assert '<td class="field-managed">1 user</td>' in http.get(LIST).content.decode()


def test_making_it_is_recorded_without_the_token(http: HttpClient) -> None:
    secret = shown(add(http)).split("_", 2)[2]
    told = staff.newest("policy")
    [change] = [one for one in told["changes"] if one["table"] == "clients_scimconnection" and one["op"] == "insert"]
    assert change["new"]["name"] == "okta" and "digest" not in change["new"] and told["actor"].startswith("staff:")
    for record in Record.objects.all():
        assert secret not in bytes(record.statement).decode()
    assert not [row for row in Outbox.objects.values_list() if secret in str(row)]


def test_another_token_ends_the_old_one(http: HttpClient) -> None:
    old, row = shown(add(http)), ScimConnection.objects.get()
    new = shown(http.post(f"{LIST}{row.pk}/act/token/", {"reason": "it was mailed around"}))
    assert old != new
    assert Provider(row, old).call("GET", "/Users").status_code == 401
    assert Provider(row, new).call("GET", "/Users").status_code == 200
    assert new not in http.get(LIST).content.decode(), "it is in no message"


def test_a_token_is_for_who_has_just_shown_who_they_are(http: HttpClient) -> None:
    provider = scim.connect("entra")
    act = f"{LIST}{provider.connection.pk}/act/"
    recent(http, ago=3600)
    for answer in (add(http), http.get(f"{LIST}add/"), http.post(f"{act}token/", {"reason": "x"})):
        assert answer.status_code == 302 and "/admin/sign-in/again/" in answer["Location"]
    assert ScimConnection.objects.count() == 1 and provider.call("GET", "/Users").status_code == 200
    # To switch one off in an emergency takes no more than the right to.
    assert http.post(f"{act}disable/", {"reason": "x"})["Location"] == f"{LIST}{provider.connection.pk}/change/"
    assert provider.call("GET", "/Users").status_code == 403


def test_it_is_switched_off_and_on(http: HttpClient) -> None:
    provider = scim.connect()
    act = f"{LIST}{provider.connection.pk}/act/"
    assert http.post(f"{act}disable/", {"reason": "a leak"}).status_code == 302
    assert provider.call("GET", "/Users").status_code == 403
    assert http.post(f"{act}enable/", {"reason": "over"}).status_code == 302
    assert provider.call("GET", "/Users").status_code == 200
    assert http.get(f"{act}token/").status_code == 200, "asking changes nothing"
    assert provider.call("GET", "/Users").status_code == 200


def test_the_users_of_a_provider_that_was_given_up_are_let_go(made: World, http: HttpClient) -> None:
    old, new = scim.connect("old"), scim.connect("new")
    old.made("alice")
    old.made("bob", active=False)
    act = f"{LIST}{old.connection.pk}/act/"
    assert new.add("bob").status_code == 409
    http.post(f"{act}release/", {"reason": "x"})
    assert ScimUser.objects.count() == 2, "not while it is in use"
    http.post(f"{act}disable/", {"reason": "we moved"})
    assert http.post(f"{act}release/", {"reason": "we moved"}).status_code == 302
    assert not ScimUser.objects.exists()
    told = staff.newest("staff")
    assert (told["action"], told["connection"], told["count"]) == ("scim.released", "old", 2)
    assert Subject.objects.exclude(deactivated_at=None).count() == 1, "access stays as it was"
    assert new.add("bob").status_code == 201 and not Subject.objects.exclude(deactivated_at=None).exists()


def test_what_cannot_be_is_a_field_error(http: HttpClient) -> None:
    for field, value in (
        ("name", "No!"),
        ("name", ""),
        ("issuer", 99),
        ("subject_attribute", "id"),
        ("change_reason", ""),
    ):
        answer = add(http, **{field: value})
        assert answer.status_code == 200 and list(answer.context["adminform"].form.errors) == [field]
    assert not ScimConnection.objects.exists()


def test_a_name_is_there_once(http: HttpClient) -> None:
    shown(add(http))
    assert add(http).context["adminform"].form.errors["name"] and ScimConnection.objects.count() == 1


def test_who_may_only_look_changes_nothing(made: World) -> None:
    provider = scim.connect()
    http, nobody = member("vera", "clients.view_scimconnection"), member("noor")
    page = f"{LIST}{provider.connection.pk}"
    assert http.get(LIST).status_code == http.get(f"{page}/change/").status_code == 200
    for action in ("token", "disable", "enable"):
        assert http.post(f"{page}/act/{action}/", {"reason": "x"}).status_code == 403
    assert add(http).status_code == nobody.get(LIST).status_code == 403
    assert http.post(f"{page}/change/", {"name": "x", **WHY}).status_code == 403
    assert provider.call("GET", "/Users").status_code == 200


def test_a_users_page_says_who_manages_them_and_since_when_they_are_deactivated(made: World) -> None:
    made.verify()
    http = member("olga", "audit.view_record", "audit.view_subject")
    uid, provider = Subject.objects.get().uid, scim.connect()
    path = f"/admin/timeline/user/{uid}/"
    assert "Managed by" not in http.get(path).content.decode()
    number = provider.made()
    page = http.get(path).content.decode()
    assert "Managed by the SCIM connection okta" in page and "Deactivated" not in page
    provider.set(number, active=False)
    assert "Deactivated by the identity provider" in http.get(path).content.decode()
    for page in (http.get("/admin/audit/subject/"), http.get(f"/admin/audit/subject/{uid}/change/")):
        assert '<span class="pill deny">Deactivated</span>' in page.content.decode()
    titles = http.get(f"/admin/records/?subject={uid}&type=signal&window=24h").content.decode()
    assert "SCIM connection okta deactivated user" in titles
