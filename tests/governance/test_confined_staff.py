"""Who confines a member of staff to tenants, what is recorded of it, and what the identity provider may say of it."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import Client as HttpClient

from audit.models import Outbox
from audit.record_words import title
from governance import oidc_provider, staff_oidc, staff_roles, staff_tenants
from governance.id_token import Person
from governance.models import StaffTenant
from governance.roles import ADMINISTRATOR, AUDITOR
from governance.tenant_names import MOST, MOST_BYTES, check, claimed
from tests.governance import idp as provider
from tests.governance.confined import ACME, GLOBEX, account, confine
from tests.governance.test_staff_oidc import come, said
from tests.staff import newest, signed_in

ADD = "/admin/auth/user/add/"


@pytest.fixture
def adam(db: None) -> User:
    found: User = account("adam", ADMINISTRATOR)
    return found


@pytest.fixture
def http(adam: User) -> HttpClient:
    return signed_in(adam)


@pytest.fixture
def vera(adam: User) -> User:
    found: User = account("vera", AUDITOR)
    return found


def act(http: HttpClient, user: User, lines: str, action: str = "tenants", reason: str = "works for acme") -> Any:
    """POST what the form of the tenants would."""
    return http.post(f"/admin/auth/user/{user.pk}/act/{action}/", {"tenants": lines, "reason": reason})


def of(user: User) -> list[str]:
    return sorted(StaffTenant.objects.filter(user=user).values_list("tenant", flat=True))


# --- on the page of staff --------------------------------------------------------------------------------------


def test_an_administrator_confines_and_frees_and_both_are_recorded(http: HttpClient, vera: User) -> None:
    assert act(http, vera, f" {GLOBEX}\n{ACME} \n\n{ACME}").status_code == 302
    assert of(vera) == [ACME, GLOBEX]
    page = http.get(f"/admin/auth/user/{vera.pk}/change/").content.decode()
    assert f"the tenants {ACME}, {GLOBEX} alone" in page
    assert "2 tenants only" in http.get("/admin/auth/user/").content.decode()
    said = newest("staff")
    assert (said["action"], said["about"], said["before"], said["after"]) == (
        "staff.tenants", f"staff:{vera.pk}", [], [ACME, GLOBEX],
    )  # fmt: skip
    assert title(said, {}).endswith(f"is confined to from — to {ACME}, {GLOBEX}") and "works for" not in str(said)
    assert act(http, vera, "").status_code == 302
    assert of(vera) == [] and newest("staff")["after"] == []


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("t" * 256, "at most 255"), ("a\x07b", "printable"), ("\n".join(f"t{n}" for n in range(MOST + 1)), "the most"),
        ("\n".join(f"{n:02}" + "é" * 253 for n in range(32)), "bytes"), ("", "every tenant now"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_at_the_form(http: HttpClient, vera: User, lines: str, words: str) -> None:
    answer = act(http, vera, lines)
    assert answer.status_code == 200 and words in answer.content.decode()
    assert of(vera) == [] and not Outbox.objects.filter(members__action="staff.tenants").exists()


def test_a_reason_is_needed_and_nothing_changes_by_looking(http: HttpClient, vera: User) -> None:
    assert act(http, vera, ACME, reason="").status_code == 200
    assert http.get(f"/admin/auth/user/{vera.pk}/act/tenants/", {"tenants": ACME, "reason": "x"}).status_code == 200
    assert of(vera) == []


def test_nobody_confines_themselves_or_who_is_a_superuser_and_nobody_confined_becomes_one(
    http: HttpClient, adam: User, vera: User
) -> None:
    root = User.objects.create_superuser("root", "", "correct horse battery")
    above = signed_in(root)
    assert "Ask another administrator" in act(http, adam, ACME).content.decode()
    assert act(http, root, ACME).status_code == 403
    assert act(above, root, ACME).status_code == 302, "it is not offered of a superuser"
    act(http, vera, ACME)
    assert "cannot be confined" in act(above, vera, "", "superuser").content.decode()
    vera.refresh_from_db()
    assert of(root) == of(adam) == [] and not vera.is_superuser


def test_who_is_confined_administers_nobody(http: HttpClient, adam: User, vera: User) -> None:
    bound = account("bound", ADMINISTRATOR, ACME)
    browser = signed_in(bound)
    for action in ("tenants", "roles", "deactivate"):
        assert act(browser, vera, GLOBEX, action).status_code == 403
    assert browser.get("/admin/auth/user/").status_code == 403 and browser.get(ADD).status_code == 403
    with transaction.atomic():
        assert not staff_roles.others_can_administer(adam), "a confined administrator is not one who is left"
    assert "last one" in act(http, adam, "", "deactivate").content.decode()


def test_somebody_new_is_confined_from_the_beginning(http: HttpClient) -> None:
    given = {"username": "nora", "password1": "correct horse battery", "password2": "correct horse battery",
             "roles": [AUDITOR], "tenants": ACME, "reason": "works for acme"}  # fmt: skip
    assert http.post(ADD, given).status_code == 302
    nora = User.objects.get(username="nora")
    assert of(nora) == [ACME] and newest("staff")["tenants"] == [ACME]
    assert http.post(ADD, given | {"username": "olga", "tenants": "t" * 256}).status_code == 200
    assert not User.objects.filter(username="olga").exists()


# --- as the identity provider says -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (["b", "a", "a"], {"a", "b"}), ("a", {"a"}), ("*", None), (["*"], None), ([], set()), (None, set()),
        (["*", "a"], set()), (["a", 1], set()), ({"a": 1}, set()), (7, set()), (True, set()), ([""], set()),
        ([["a"]], set()), (["a\x00"], set()), (["t" * 256], set()), ([f"t{n}" for n in range(MOST + 1)], set()),
        ("", set()), ("* ", {"* "}),
    ],
)  # fmt: skip
def test_a_claim_says_some_tenants_every_one_or_none(value: Any, found: set[str] | None) -> None:
    assert claimed(value) == found


def test_as_many_names_as_somebody_can_have_are_kept_as_they_are() -> None:
    most = [f"{n:02}" + "t" * 253 for n in range(MOST)]
    assert check(reversed(most)) == most and len("".join(most)) <= MOST_BYTES


def person(tenants: frozenset[str] | None) -> Person:
    return Person("u-1", "Ada", "Byron", "ada@example.com", frozenset({"compliance"}), tenants)


@pytest.fixture
def claim(db: None, settings: Any) -> None:
    settings.MUNIMENT_OIDC_ISSUER, settings.MUNIMENT_OIDC_TENANTS_CLAIM = "https://id.example", "tenants"
    settings.MUNIMENT_OIDC_ROLES = {"compliance": frozenset({AUDITOR})}


def test_tenants_follow_the_claim_of_each_sign_in_and_each_change_is_recorded(claim: None) -> None:
    user = staff_oidc.admit(person(frozenset({ACME})))
    assert of(user) == [ACME]
    staff_oidc.admit(person(frozenset({GLOBEX})))
    assert of(user) == [GLOBEX]
    staff_oidc.admit(person(None))
    assert of(user) == []
    told = Outbox.objects.filter(members__action="staff.tenants").order_by("id")
    changes = [(one.members["before"], one.members["after"], one.members["how"], one.actor) for one in told]
    assert changes == [
        ([], [ACME], "oidc", "system"), ([ACME], [GLOBEX], "oidc", "system"), ([GLOBEX], [], "oidc", "system"),
    ]  # fmt: skip


def test_who_has_lost_every_tenant_loses_every_role_rather_than_see_all(claim: None) -> None:
    with pytest.raises(staff_oidc.Refused, match="no tenant"):
        staff_oidc.admit(person(frozenset()))
    assert not User.objects.exists()
    user = staff_oidc.admit(person(frozenset({ACME})))
    with pytest.raises(staff_oidc.Refused) as refused:
        staff_oidc.admit(person(frozenset()))
    assert refused.value.reason == "no_tenant"
    user = User.objects.get(pk=user.pk)
    assert (of(user), user.is_staff, user.get_all_permissions()) == ([ACME], False, set())


def test_without_the_claim_configured_an_administrator_says_it(
    claim: None, adam: User, http: HttpClient, settings: Any
) -> None:
    user = staff_oidc.admit(person(frozenset({ACME})))
    assert "As the identity provider says" in http.get(f"/admin/auth/user/{user.pk}/change/").content.decode()
    act(http, user, GLOBEX)
    assert of(user) == [ACME]
    settings.MUNIMENT_OIDC_TENANTS_CLAIM = ""
    act(http, user, GLOBEX)
    staff_oidc.admit(person(None))
    assert of(user) == [GLOBEX], "a sign-in that says nothing frees nobody"


def test_the_claim_is_read_of_the_signed_token(db: None, settings: Any) -> None:
    oidc_provider.provider.cache_clear()
    with provider.running() as idp:
        provider.configure(settings, idp.issuer)
        settings.MUNIMENT_OIDC_TENANTS_CLAIM = "https://claims.example/tenants"
        idp.people["u-1"] = {"groups": ["compliance"], "https://claims.example/tenants": [ACME], "tenants": ["*"]}
        http = HttpClient()
        assert come(http, idp)["Location"] == "/admin/"
        assert of(User.objects.get()) == [ACME] and http.get("/admin/log/").status_code == 403
        del idp.people["u-1"]["https://claims.example/tenants"]
        other = HttpClient()
        assert "which tenants are yours" in said(other, come(other, idp))
        assert http.get("/admin/").status_code == 302, "the session that was open shows nothing any more"


def test_what_a_user_object_remembers_of_its_tenants_ends_with_a_change(adam: User, vera: User) -> None:
    confine(vera, ACME)
    assert not User.objects.get(pk=vera.pk).has_perm("audit.view_hold")
    held = User.objects.get(pk=vera.pk)
    assert not held.has_perm("audit.view_hold")
    staff_tenants.give(held, [])
    assert User.objects.get(pk=vera.pk).has_perm("audit.view_hold")
