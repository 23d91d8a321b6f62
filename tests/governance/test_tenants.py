"""Tenants of calls: the token's alone counts, and what is granted in one means nothing in another."""

from typing import Any
from urllib.parse import urlencode

import pytest

from audit import details
from audit.models import Record, SubjectTenant
from audit.protection import KeyRing
from clients import grants
from clients.grants import Actor
from clients.models import Grant, Issuer
from tests.staff import statement
from tests.world import World, build, token
from tools.models import Scope


@pytest.fixture
def world(db: None) -> World:
    """The issuer says the tenant in `org_id`, and roles in `roles`."""
    made = build()
    Issuer.objects.update(tenant_claim="org_id", roles_claim="roles")
    return made


def said(answer: dict[str, Any]) -> dict[str, Any]:
    """The statement of the record."""
    return statement(Record.objects.get(id=answer["record"]))


def test_a_call_for_another_tenant_than_the_tokens_is_refused(world: World) -> None:
    for claims, asked, reason in (
        ({"org_id": "acme"}, "acme", "granted"), ({"org_id": "acme"}, None, "granted"), ({}, None, "granted"),
        ({"org_id": "acme"}, "globex", "tenant_mismatch"), ({"org_id": "acme"}, "Acme", "tenant_mismatch"),
        ({}, "acme", "tenant_mismatch"), ({"org_id": None}, "acme", "tenant_mismatch"),
    ):  # fmt: skip
        answer = world.verify(token=token(**claims), tenant=asked)
        assert (answer["reason"], said(answer)["tenant"]) == (reason, claims.get("org_id"))
        assert answer["subject"]["tenant"] == claims.get("org_id")


def test_the_tenant_that_was_asked_for_is_on_record_as_a_protected_detail(world: World) -> None:
    answer = world.verify(token=token(org_id="acme"), tenant="globex")
    record = Record.objects.get(id=answer["record"])
    assert b"globex" not in bytes(record.statement) and record.tenant == "acme"
    assert details.opened(record, said(answer), KeyRing()).members["asked_tenant"] == "globex"


def test_without_a_tenant_claim_no_token_has_a_tenant_whatever_it_says(world: World) -> None:
    Issuer.objects.update(tenant_claim=None)
    Grant.objects.update(tenant="acme")
    claims = {"org_id": "acme", "tenant": "acme", "tid": "acme"}
    answer = world.verify(token=token(**claims))
    assert (answer["reason"], said(answer)["tenant"]) == ("not_granted", None)
    assert world.verify(token=token(**claims), tenant="acme")["reason"] == "tenant_mismatch"
    assert not SubjectTenant.objects.exists()


@pytest.mark.parametrize("odd", [0, True, [], ["acme"], {"id": "acme"}, "", " ", "a\x00", "a\u202eb", "x" * 256])
def test_a_tenant_of_an_odd_shape_refuses_the_token(shared: World, odd: Any) -> None:
    assert shared.verify(token=token(org_id=odd))["reason"] == "token_invalid"


@pytest.fixture(scope="module")
def shared(migrated: None) -> Any:
    """One world for tests that only call."""
    from governance import process
    from tests.reset import reset

    reset()
    made = build()
    Issuer.objects.update(tenant_claim="org_id")
    yield made
    process.stop_recorder()


def test_a_role_in_one_tenant_means_nothing_in_another(world: World) -> None:
    """Nor does a tenant without the role, or the role without a tenant."""
    Grant.objects.update(tenant="acme", role="admin")
    for claims, reason in (
        ({"org_id": "acme", "roles": ["admin"]}, "granted"), ({"org_id": "globex", "roles": ["admin"]}, "not_granted"),
        ({"org_id": "acme", "roles": ["member"]}, "not_granted"), ({"roles": ["admin"]}, "not_granted"),
        ({"org_id": "acme", "roles": ["globex:admin", "acme:admin"]}, "not_granted"),
    ):  # fmt: skip
        assert world.verify(token=token(**claims))["reason"] == reason, claims


def test_a_block_in_one_tenant_blocks_nobody_in_another(world: World) -> None:
    block = Grant.objects.create(effect="deny", tenant="globex", reason="under review")
    block.scopes.add(Scope.objects.get(name="memory:read"))
    reasons = [
        world.verify(token=token(**claims))["reason"] for claims in ({"org_id": "globex"}, {"org_id": "acme"}, {})
    ]
    assert reasons == ["grant_denied", "granted", "granted"]


@pytest.mark.parametrize("what", ["tenant", "role"])
def test_the_longest_name_that_a_token_may_have_can_be_blocked(world: World, what: str) -> None:
    longest = "x" * 255
    grants.create(actor=Actor("command:test", ""), reason="x", client=None, scopes=[], effect="deny", **{what: longest})
    claims = {"org_id": longest} if what == "tenant" else {"roles": [longest]}
    assert world.verify(token=token(**claims))["reason"] == "grant_denied"
    assert world.verify(token=token(**dict.fromkeys(claims, "x")))["reason"] == "granted"


def test_a_user_is_of_every_tenant_that_a_token_of_theirs_named(world: World) -> None:
    for tenant in ("acme", "globex", "acme", None):
        answer = world.verify(token=token(org_id=tenant))
    world.verify(token=token(org_id="third")[:-8] + "AAAAAAAA")
    of_user = SubjectTenant.objects.filter(subject=answer["subject"]["uid"])
    assert sorted(of_user.values_list("tenant", flat=True)) == ["acme", "globex"], "a forged token names none"
    looked_at = urlencode({"token": token(org_id="initech")})
    form, key = "application/x-www-form-urlencoded", {"Authorization": f"Bearer {world.key}"}
    assert world.http.post("/v1/introspect", looked_at, content_type=form, headers=key).json()["active"]
    assert of_user.filter(tenant="initech").exists(), "a token that is only looked at names one as well"
