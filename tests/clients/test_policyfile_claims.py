"""The claims of a policy file's issuers: applied, shown by diff, exported, and refused where they cannot be meant."""

import pytest

from audit.subjects import resolve
from clients.models import ClaimMapping, Issuer
from clients.policyfile import PolicyFileError, parse
from clients.policyfile_apply import Result, apply, diff
from clients.policyfile_export import export
from tests.staff import newest

ID = "https://id.example/"
MAPPED = "{subject: oid, email: mail, scopes: [can, access.can], client_id: [app]}"


def file(claims: str) -> str:
    return f"issuers: [{{issuer: '{ID}', roles_claim: roles, claims: {claims}}}]"


def applied(claims: str) -> Result:
    return apply(parse(file(claims)), "test.yaml")


def changes(claims: str) -> list[str]:
    return [str(change) for change in applied(claims).changes]


def test_claims_are_created_changed_and_removed_and_a_second_time_changes_nothing(db: None) -> None:
    made = changes(MAPPED)
    assert made == [
        f"create issuer {ID}",
        f"update issuer {ID}: claims: subject_claim, email_claim, scope_claims, client_id_claims",
    ]
    assert changes(MAPPED) == []
    mapping = ClaimMapping.objects.get()
    assert (mapping.subject_claim, mapping.email_claim) == ("oid", "mail")
    assert (mapping.scope_claims, mapping.client_id_claims) == (["can", "access.can"], ["app"])
    assert newest("policy")["actor"] == "command:policy"
    assert changes("{subject: oid, scopes: [can]}") == [
        f"update issuer {ID}: claims: email_claim, scope_claims, client_id_claims"
    ]
    assert changes("null") == [f"update issuer {ID}: no longer maps claims"]
    assert not ClaimMapping.objects.exists() and changes("null") == []


def test_diff_shows_claims_and_leaves_them(db: None) -> None:
    applied("null")
    found = diff(parse(file("{email: mail}")), "test.yaml")
    assert [str(change) for change in found.changes] == [
        f"update issuer {ID}: claims: subject_claim, email_claim, scope_claims, client_id_claims"
    ]
    assert not ClaimMapping.objects.exists()


def test_what_is_exported_is_applied_without_a_change(db: None) -> None:
    applied(MAPPED)
    text = export()
    assert "subject: oid" in text
    assert apply(parse(text), "test.yaml").changes == []
    Issuer.objects.get().mapping.delete()
    assert "claims" not in export()


def test_who_applies_it_is_told_that_users_become_others(db: None) -> None:
    assert applied("{subject: sub}").notices == [], "there are none yet"
    resolve(ID, "alice", None, None)
    assert applied("{subject: ''}").notices == [], "the same claim"
    [told] = applied("{subject: oid}").notices
    assert "known by oid and no longer by sub" in told and "new user" in told
    [told] = applied("null").notices
    assert "known by sub and no longer by oid" in told


@pytest.mark.parametrize(
    ("claims", "path"),
    [
        ("{subject: aud}", "claims.subject"),
        ("{subject: client_id}", "claims.subject"),
        ("{email: ' mail'}", "claims.email"),
        ("{scopes: [can, roles]}", "claims.scopes"),
        ("{scopes: ['']}", "claims.scopes"),
        ("{scopes: can}", "claims.scopes"),
        ("{client_id: ['a\tb']}", "claims.client_id"),
        ("{subject: 5}", "claims.subject"),
        ("{sub: oid}", "claims"),
        ("{client_id: [a, b, c, d, e, f, g, h, i, j, k]}", "claims.client_id"),
        (f"{{email: {'m' * 121}}}", "claims.email"),
    ],
)
def test_claims_that_cannot_be_meant_refuse_the_file(db: None, claims: str, path: str) -> None:
    with pytest.raises(PolicyFileError) as caught:
        applied(claims)
    assert path in str(caught.value) and not Issuer.objects.exists()
