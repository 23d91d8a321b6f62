"""What an issuer's tokens must be bound to: on its page, and in a policy file."""

from typing import Any

import pytest
from django.test import Client as HttpClient

from clients import policyfile_export
from clients.models import Issuer, IssuerBinding
from clients.policyfile import PolicyFileError, parse
from clients.policyfile_apply import apply
from tests.clients.test_issuer_claims_form import form, url
from tests.staff import administrator, member, newest
from tests.world import ISSUER, World, build

FILE = f'issuers: [{{issuer: "{ISSUER}", algorithms: [RS256], tenant_claim: null, roles_claim: null'


@pytest.fixture
def world(db: None) -> World:
    return build()


def lines(binding: str) -> list[str]:
    """What a policy file with this member of the issuer changes."""
    return [str(change) for change in apply(parse(f"{FILE}{binding}}}]"), "test.yaml", False).changes]


def test_it_is_set_on_the_issuers_page_and_holds_at_the_next_call(world: World) -> None:
    http = administrator()
    assert world.verify()["reason"] == "granted"
    assert form(http, **{"binding-0-require": "dpop", "binding-0-dpop_nonce": "on"}).status_code == 302
    told = newest("policy")
    assert told["actor"].startswith("staff:")
    assert [change["table"] for change in told["changes"]] == ["clients_issuerbinding"]
    assert world.verify()["reason"] == "proof_required"
    assert form(http).status_code == 302, "saved again as it is"
    assert IssuerBinding.objects.get().dpop_nonce
    assert form(http, **{"binding-0-DELETE": "on"}).status_code == 302
    assert world.verify()["reason"] == "granted"


def test_each_choice_is_a_change_of_an_issuer_that_demands_nothing(world: World) -> None:
    http = administrator()
    for require in ("any", "dpop", "mtls"):
        assert '<option value="" selected>not demanded</option>' in http.get(url()).content.decode()
        assert form(http, **{"binding-0-require": require}).status_code == 302
        assert IssuerBinding.objects.get().require == require
        IssuerBinding.objects.all().delete()


def test_a_page_that_says_nothing_of_it_sets_nothing(world: World) -> None:
    assert form(administrator()).status_code == 302
    assert not IssuerBinding.objects.exists()


def test_a_wrong_one_is_a_form_error(world: World) -> None:
    assert form(administrator(), **{"binding-0-require": "toaster"}).status_code == 200
    assert not IssuerBinding.objects.exists()


def test_who_may_not_change_issuers_sees_it_and_changes_nothing(world: World) -> None:
    IssuerBinding.objects.create(issuer=Issuer.objects.get(), require="mtls")
    http: HttpClient = member("rita", "clients.view_issuer")
    page = http.get(url())
    assert page.status_code == 200 and "to a certificate (mTLS)" in page.content.decode()
    data: dict[str, Any] = {"binding-TOTAL_FORMS": 1, "binding-INITIAL_FORMS": 1, "binding-0-require": ""}
    assert http.post(url(), data).status_code == 403
    assert IssuerBinding.objects.get().require == "mtls"


def test_a_policy_file_sets_it_keeps_it_and_takes_it_away(world: World) -> None:
    words = f"update issuer {ISSUER}:"
    assert lines(", binding: {require: dpop, dpop_nonce: true}") == [
        f"{words} its tokens must be bound by DPoP, with nonces"
    ]
    assert lines(", binding: {require: dpop, dpop_nonce: true}") == []
    assert lines("") == [] and IssuerBinding.objects.get().require == "dpop", "a file that says nothing of it"
    exported = policyfile_export.export()
    assert "dpop_nonce: true" in exported and apply(parse(exported), "x", False).changes == []
    assert lines(", binding: {}") == [f"{words} its tokens must be bound"]
    assert lines(", binding: {require: null, dpop_nonce: true}") == [
        f"{words} its tokens need not be bound, with nonces"
    ]
    assert lines(", binding: null") == [f"{words} its tokens need not be bound"]
    assert not IssuerBinding.objects.exists() and lines(", binding: null") == []


@pytest.mark.parametrize("binding", ["dpop", "{require: tls}", "{demand: dpop}", "{dpop_nonce: 1}"])
def test_a_policy_file_that_says_it_wrongly_is_refused(binding: str) -> None:
    with pytest.raises(PolicyFileError, match=r"issuers\[0\]\.binding"):
        parse(f"{FILE}, binding: {binding}}}]")
