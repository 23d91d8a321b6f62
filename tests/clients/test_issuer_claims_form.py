"""An issuer's mapping of claims on its page, and the presets that a new one begins with."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from django.test import Client as HttpClient

from audit.subjects import resolve
from clients.claims import Identity, read_parsed_claims
from clients.jwks import SUPPORTED, IssuerPolicy
from clients.models import ALGORITHMS, ClaimMapping, Issuer
from clients.presets import PRESETS
from tests.staff import administrator, member, newest
from tests.world import ISSUER, World, build, token

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


def url() -> str:
    return f"/admin/clients/issuer/{Issuer.objects.get(issuer=ISSUER).pk}/change/"


def form(http: HttpClient, at: str | None = None, **changes: Any) -> Any:
    """What the page's form holds, with changes, sent; `mapping-0-...` is written `map_...`."""
    page = http.get(at or url()).context
    data: dict[str, Any] = {}
    for bound in page["adminform"].form:
        data[bound.name] = bound.field.prepare_value(bound.value()) if hasattr(bound.field, "check") else bound.value()
    for wrapped in page["inline_admin_formsets"]:
        data |= {bound.html_name: bound.value() for bound in wrapped.formset.management_form}
        for one in wrapped.formset.forms:
            data |= {b.html_name: b.field.prepare_value(b.value()) for b in one if b.name != "confirmed"}
    data |= {"change_reason": "as the provider says"}
    data |= {name.replace("map_", "mapping-0-"): value for name, value in changes.items()}
    return http.post(
        at or url(), {name: value for name, value in data.items() if value is not None and value is not False}
    )


def test_a_mapping_is_saved_with_the_issuer_and_decides_the_next_call(world: World, http: HttpClient) -> None:
    assert world.verify()["reason"] == "granted"
    answer = form(http, map_scope_claims="can\naccess.can", map_email_claim="mail")
    assert answer.status_code == 302
    mapping = ClaimMapping.objects.get()
    assert (mapping.scope_claims, mapping.email_claim, mapping.subject_claim) == (["can", "access.can"], "mail", "")
    told = newest("policy")
    assert told["actor"].startswith("staff:")
    assert [change["table"] for change in told["changes"]] == ["clients_claimmapping"]
    assert world.verify()["reason"] == "insufficient_scope"
    allowed = world.verify(token=token(can=["memory:read"], mail="al@example.com"))
    assert (allowed["reason"], allowed["subject"]["email"]) == ("granted", "al@example.com")
    assert form(http).status_code == 302, "saved again as it is"
    assert ClaimMapping.objects.get().scope_claims == ["can", "access.can"]


def test_an_empty_mapping_is_none(world: World, http: HttpClient) -> None:
    assert form(http).status_code == 302
    assert not ClaimMapping.objects.exists()


def test_another_subject_claim_needs_to_be_confirmed_once_there_are_users(world: World, http: HttpClient) -> None:
    assert form(http, map_subject_claim="uid").status_code == 302, "nobody is known yet"
    resolve(ISSUER, "alice", None, None)
    refused = form(http, map_subject_claim="oid")
    assert refused.status_code == 200 and "every user of the issuer a new one" in refused.content.decode()
    assert ClaimMapping.objects.get().subject_claim == "uid"
    assert form(http, map_subject_claim="oid", map_confirmed="on").status_code == 302
    assert ClaimMapping.objects.get().subject_claim == "oid"
    gone = form(http, map_DELETE="on")
    assert gone.status_code == 200 and ClaimMapping.objects.exists(), "without a mapping it is sub again"
    assert form(http, map_email_claim="mail").status_code == 302, "another claim needs no word"
    assert form(http, map_DELETE="on", map_confirmed="on").status_code == 302
    assert not ClaimMapping.objects.exists()
    assert form(http, map_subject_claim="sub").status_code == 302, "sub is what it was"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"map_subject_claim": "aud"}, "does not say who the user is"),
        ({"map_scope_claims": "groups", "roles_claim": "groups"}, "a role is never a scope"),
        ({"map_scope_claims": "\n".join("abcdefghijk")}, "At most 10 claims"),
        ({"map_client_id_claims": "x" * 121}, "at most 120"),
        ({"map_email_claim": "a\u202eb"}, "is printable"),
        ({"map_email_claim": "a\x00b"}, "Null characters"),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_a_form_error(
    world: World, http: HttpClient, changes: dict[str, Any], words: str
) -> None:
    answer = form(http, **changes)
    assert answer.status_code == 200 and words in answer.content.decode()
    assert not ClaimMapping.objects.exists()


def test_the_permission_is_the_issuer_s(world: World) -> None:
    seeing = member("ann", "clients.view_issuer")
    assert "Subject claim" not in seeing.get(url()).content.decode()  # no form that nobody would take
    ClaimMapping.objects.create(issuer=Issuer.objects.get(), subject_claim="oid")
    assert "Subject claim" in seeing.get(url()).content.decode()
    assert seeing.post(url(), {}).status_code == 403
    changing = member("ben", "clients.view_issuer", "clients.change_issuer")
    assert form(changing, map_email_claim="mail").status_code == 302
    assert ClaimMapping.objects.get().email_claim == "mail"


# Presets


def test_a_preset_fills_the_form_and_what_is_saved_is_what_was_sent(world: World, http: HttpClient) -> None:
    plain = http.get("/admin/clients/issuer/add/").content.decode()
    assert all(f"?preset={slug}" in plain for slug in PRESETS)
    at = "/admin/clients/issuer/add/?preset=entra"
    assert form(http, at, issuer="https://login.microsoftonline.com/t/v2.0").status_code == 302
    made = Issuer.objects.get(issuer__contains="microsoft")
    assert (made.tenant_claim, made.roles_claim, made.algorithms) == ("tid", "roles", ["RS256"])
    assert made.mapping.subject_claim == "oid"
    assert form(http, at, issuer="https://plain.example/", map_subject_claim="").status_code == 302
    assert not hasattr(Issuer.objects.get(issuer="https://plain.example/"), "mapping")


def test_a_preset_that_is_none_and_other_members_of_the_url_fill_nothing(world: World, http: HttpClient) -> None:
    odd = http.get("/admin/clients/issuer/add/?preset=%00zz<i>&roles_claim=zz-chosen-by-a-link&algorithms=EdDSA")
    assert odd.status_code == 200
    text = odd.content.decode()
    assert "zz-chosen-by-a-link" not in text and "zz<i>" not in text


# What a token of each provider is read as: user, client, scopes, roles, tenant, e-mail.
READ: dict[str, tuple[Any, ...]] = {
    "auth0": ("auth0|6574a1", "kX2hPq7claude", ("memory:read", "openid"), (), "org_acme", None),
    "okta": ("00u8alice77", "0oa8claude77", ("memory:read", "openid"), ("Clinicians", "Everyone"), None, None),
    "entra": (
        "690222be-ff1a-4d56-abd1-7e4f7d38e474", "7c7f0e5a-0b1f-4c0e-8f3b-1d1a4c1a0d11", ("memory.read",),
        ("Clinician",), "72f988bf-86f1-41af-91ab-2d7cd011db47", None,
    ),
    "keycloak": (
        "f3b1c0de-6d6e-4a0e-9b0a-6a4b1f0c2d11", "claude-app", ("memory:read", "openid"),
        ("clinician", "offline_access"), None, "alice@example.com",
    ),
    "cognito": (
        "a1b2c3d4-5678-90ab-cdef-1234567890ab", "4claude7q8r9s0t1u2v3w4x5y6", ("inner/memory:read", "openid"),
        ("clinicians",), None, None,
    ),
    "firebase": ("Qk3Zp0alice77", "inner-prod", ("memory:read",), (), "acme-x7k2p", "alice@example.com"),
    "workos": (
        "user_01JQ0E27VT3MH79RY0FVA4QBP9", "client_01JP8BD0CZ401TDF9X54NT5ZEK", ("memory:read", "openid"), (),
        "org_01HRDMC6CM357W30QMHMQ96Q0S", None,
    ),
}  # fmt: skip


def sample(slug: str) -> dict[str, Any]:
    """The claims that the provider's page shows."""
    [found] = re.findall(r"^```json\n(.*?)^```", (ROOT / PRESETS[slug].recipe).read_text(), re.M | re.S)
    claims: dict[str, Any] = json.loads(found)
    return claims


def read(slug: str, **changes: Any) -> Identity:
    preset, claims = PRESETS[slug], sample(slug) | changes
    audience = claims["aud"] if isinstance(claims["aud"], str) else claims["aud"][0]
    issuer = IssuerPolicy(
        1, claims["iss"], SUPPORTED, 30, 86400, preset.tenant_claim, preset.roles_claim, (), True, preset.claims
    )
    return read_parsed_claims(claims, issuer, frozenset({audience}), claims["iat"] + 5)


@pytest.mark.parametrize("slug", list(PRESETS))
def test_a_preset_reads_the_tokens_of_its_provider(slug: str) -> None:
    found = read(slug)
    assert (found.sub, found.client_id, found.scopes, found.roles, found.tenant, found.email) == READ[slug]


@pytest.mark.parametrize("slug", list(PRESETS))
def test_the_form_of_an_issuer_is_that_of_its_sample(slug: str) -> None:
    preset = PRESETS[slug]
    pattern = re.sub(r"<[^>]+>", "[^/]+", preset.issuer_form.replace(".", r"\."))
    assert re.fullmatch(pattern, sample(slug)["iss"]), preset.issuer_form
    assert preset.notes and set(preset.algorithms) <= set(ALGORITHMS)


def test_okta_and_entra_users_stay_who_they_are() -> None:
    assert read("okta", sub="alice@example.com").sub == read("okta", sub="alice@new.example").sub
    assert read("entra", sub="pairwise-1").sub == read("entra", sub="pairwise-2").sub
