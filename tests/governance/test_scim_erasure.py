"""What an identity provider tells of a person is nowhere in clear, and goes with the person: an erasure takes it in the
transaction that destroys the key."""

import logging
from typing import Any

import psycopg
import pytest
from django.db import connections
from scim2_models import ConflictException

from audit import subjects
from audit.erasure import asking, erasing
from audit.models import Subject
from audit.subjects import Known
from clients.models import ScimUser
from clients.scim import resources, store
from tests import scim, world
from tests.audit.test_erasure import ASKED
from tests.audit.test_erasure_dump import dump, forms
from tests.audit.test_holds import staff
from tests.scim import USER, Provider
from tests.staff import drained
from tests.world import ISSUER, World, token

NAME, EXTERNAL, GIVEN, EMAIL = "zq-Alice.9133", "zq-ext-9133", "Zqmarguerite", "zq.alice@corp-9133.local"


@pytest.fixture
def made(db: None) -> Any:
    yield world.build()
    connections["owner"].close()


@pytest.fixture
def okta(made: World) -> Provider:
    return scim.connect()


def manage(okta: Provider) -> str:
    members = {"externalId": EXTERNAL, "name": {"givenName": GIVEN}, "emails": [{"value": EMAIL, "primary": True}]}
    return str(okta.call("POST", "/Users", {"schemas": [USER], "userName": NAME, **members}).json()["id"])


def erase(uid: str) -> None:
    asking.ask(staff("pia", "audit.add_erasure", "audit.view_erasure"), uid, **ASKED)
    assert erasing.work() == 1


def test_nothing_of_a_person_stands_in_the_database_or_in_the_log_in_clear(
    made: World, okta: Provider, owner_url: str, caplog: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    number = manage(okta)
    okta.set(number, displayName=f"{GIVEN} L.", active=False)
    okta.call("POST", "/.search", {"filter": f'userName eq "{NAME}"'})
    okta.call("PATCH", f"/Users/{number}", f'{{"Operations": "{NAME}"}}')
    okta.call("POST", "/Users", {"schemas": [USER], "userName": NAME, "externalId": EXTERNAL})
    drained()
    data = dump(owner_url) + caplog.text.encode()
    assert number.encode() in data and GIVEN in okta.call("GET", f"/Users/{number}").content.decode()
    for one in (NAME, EXTERNAL, GIVEN, EMAIL, okta.token):
        assert not [form for form in forms(one) if form in data], one


def test_an_erasure_takes_the_resource_and_the_provider_may_make_a_new_one(
    made: World, okta: Provider, owner_url: str
) -> None:
    number, uid = manage(okta), Subject.objects.get().uid
    row = ScimUser.objects.get()
    hashes = [bytes(row.user_name_key).hex().encode(), bytes(row.external_id_key or b"").hex().encode()]
    other = okta.made("bob")
    erase(uid)
    assert not ScimUser.objects.filter(pk=number).exists() and ScimUser.objects.filter(pk=other).exists()
    after = dump(owner_url)
    assert not any(one in after for one in hashes)
    assert okta.call("GET", f"/Users/{number}").status_code == 404
    assert okta.call("PUT", f"/Users/{number}", {"schemas": [USER], "userName": NAME}).status_code == 404
    # Another process may remember the one who is gone.
    subjects._known[ISSUER, EXTERNAL] = Known(uid, None)
    assert manage(okta) != number
    new = Subject.objects.exclude(uid=uid).get(uid=ScimUser.objects.exclude(pk=other).get().subject_id)
    assert made.verify(token=token(EXTERNAL))["subject"]["uid"] == new.uid and new.erased_at is None


def test_a_change_that_meets_an_erasure_keeps_nothing(made: World, okta: Provider) -> None:
    number, uid = manage(okta), Subject.objects.get().uid

    def edit(user: resources.User, _: bool) -> resources.User:
        erase(uid)
        user.display_name = "x"
        return user

    with pytest.raises(ConflictException):
        store.change(okta.connection, number, edit, lambda _: True)
    assert not ScimUser.objects.exists()


def test_whoever_erases_takes_the_resource(made: World, okta: Provider, owner_url: str) -> None:
    manage(okta)
    with psycopg.connect(owner_url) as owner:
        owner.execute("UPDATE audit_subject SET first_seen = now()")
        assert ScimUser.objects.exists()
    with psycopg.connect(owner_url) as owner:
        owner.execute("UPDATE audit_subject SET erased_at = now()")
    assert not ScimUser.objects.exists()
