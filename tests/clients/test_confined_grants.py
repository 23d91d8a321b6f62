"""Staff who are confined to tenants: which grants and requests they see, ask about and write."""

from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.test import Client as HttpClient
from django.utils import timezone

from audit import subjects
from audit.models import Subject
from clients import grants, proposals, requests, tenants
from clients.grants import Actor
from clients.models import AccessRequest, Grant
from governance.explainer import MOST_SHOWN
from governance.models import StaffTenant
from tests.granting import ADD, ASK, ask, confirm, given, grant, preview
from tests.staff import member
from tests.world import ISSUER, World, build
from tools.models import Scope

MARK = "zzglobexzz"  # in whatever is the other tenant's
POWERS = ("clients.view_grant", "clients.add_grant", "clients.change_grant", "clients.view_accessrequest",
          "clients.decide_accessrequest", "audit.view_subject", "audit.view_record")  # fmt: skip
LIST, REQUESTS = "/admin/clients/grant/", "/admin/clients/accessrequest/"
MARA = Actor("command:test", "")


class Scene:
    """A world with tenants acme and globex, each with a user, a grant and a request, and a grant for both."""

    def __init__(self) -> None:
        self.world: World = build()
        read, write = Scope.objects.get(name="memory:read"), Scope.objects.get(name="memory:write")
        self.alice = Subject.objects.get(uid=subjects.resolve(ISSUER, "alice", None, "acme"))
        self.gus = Subject.objects.get(uid=subjects.resolve(ISSUER, "gus", None, "globex"))
        client, soon = self.world.client, timezone.now() + timedelta(days=3)
        make: dict[str, Any] = {"actor": MARA, "client": client, "expires_at": soon}
        self.ours = grants.create(scopes=[write], tenant="acme", reason="theirs to see", **make)
        self.other = grants.create(scopes=[write], tenant="globex", reason=MARK, role=MARK, **make)
        self.of_gus = grants.create(scopes=[write], subject=self.gus, reason=MARK, **make)
        self.of_alice = grants.create(scopes=[read], subject=self.alice, reason="for one of them", **make)
        self.asker = get_user_model().objects.create_user("asker", "", None, is_staff=True, first_name="Asker")
        self.asked = {name: self.ask(name) for name in ("acme", "globex")}
        self.http: HttpClient = member("amir", *POWERS)
        self.user = get_user_model().objects.get(username="amir")

    def ask(self, tenant: str) -> AccessRequest:
        """A request of somebody else, for a tenant."""
        wanted = proposals.Proposal(
            "grant", "allow", self.world.client, (Scope.objects.get(name="memory:write"),), tenant=tenant, days=30,
            role="clerk" if tenant == "acme" else f"{MARK}clerk",
        )  # fmt: skip
        return requests.ask(self.asker, wanted, "for the desk" if tenant == "acme" else MARK)

    def confine(self, *names: str) -> None:
        """From the next request on."""
        StaffTenant.objects.filter(user=self.user).delete()
        StaffTenant.objects.bulk_create([StaffTenant(user=self.user, tenant=name) for name in names])

    def fresh(self) -> Any:
        """The member of staff, as a request would have them."""
        return get_user_model().objects.get(pk=self.user.pk)


@pytest.fixture
def scene(db: None) -> Scene:
    return Scene()


def test_the_list_has_the_grants_of_their_tenants_and_those_for_everyone(scene: Scene) -> None:
    assert MARK in scene.http.get(LIST).content.decode(), "who is not confined sees all"
    scene.confine("acme")
    page = scene.http.get(LIST)
    text = page.content.decode()
    seen = {one.pk for one in page.context["cl"].result_list}
    assert seen == {scene.world.grant.pk, scene.ours.pk, scene.of_alice.pk}
    assert MARK not in text and "globex" not in text and scene.gus.pk not in text
    assert {chip["words"]: chip["count"] for chip in page.context["chips"]}["All"] == 3
    scene.confine("acme", "globex")
    assert MARK in scene.http.get(LIST).content.decode(), "on the next request"


def said(page: Any, pk: int) -> list[str]:
    """Where it led, and what was said there, whatever the number."""
    return [
        *(url for url, _ in page.redirect_chain),
        *(str(one).replace(str(pk), "N") for one in page.context["messages"]),
    ]


def test_a_grant_of_another_tenant_is_not_there_and_one_of_no_tenant_is_only_looked_at(scene: Scene) -> None:
    scene.confine("acme")
    for one in (scene.other, scene.of_gus):
        base = f"{LIST}{one.pk}/"
        known, unknown = (said(scene.http.get(f"{LIST}{pk}/change/", follow=True), pk) for pk in (one.pk, 99_999))
        assert known == unknown
        for verb in ("extend", "revoke"):
            assert scene.http.get(f"{base}act/{verb}/").status_code == 404
            assert scene.http.post(f"{base}act/{verb}/", {"reason": "x", "ends": "30"}).status_code == 404
        assert scene.http.get(f"{ASK}?extends={one.pk}").status_code == 404
    for one in (scene.world.grant, scene.of_alice):
        page = scene.http.get(f"{LIST}{one.pk}/change/")
        text = page.content.decode()
        assert page.status_code == 200 and "/act/" not in text and "extends=" not in text
        assert "only who sees them all can change it" in text
        for verb in ("extend", "revoke"):
            assert scene.http.post(f"{LIST}{one.pk}/act/{verb}/", {"reason": "x", "ends": "30"}).status_code == 403
        assert scene.http.get(f"{ASK}?extends={one.pk}").status_code == 403
    assert not Grant.objects.exclude(revoked_at=None).exists()


def test_their_own_grants_are_extended_and_revoked(scene: Scene) -> None:
    scene.confine("acme")
    base = f"{LIST}{scene.ours.pk}/act/"
    assert scene.http.post(f"{base}extend/", {"reason": "works", "ends": "90"}).status_code == 302
    ended = Grant.objects.get(pk=scene.ours.pk).expires_at
    assert ended is not None and ended > timezone.now() + timedelta(days=80)
    assert scene.http.post(f"{base}revoke/", {"reason": "over"}).status_code == 302
    assert Grant.objects.get(pk=scene.ours.pk).revoked_at is not None


def test_they_grant_in_their_tenants_alone(scene: Scene) -> None:
    scene.confine("acme", "acme two")
    form = scene.http.get(f"{ADD}?tenant=acme+two").content.decode()
    assert '<option value="acme two" selected>' in form and "<details open>" in form and "globex" not in form
    assert '<option value="">choose a tenant</option>' in scene.http.get(f"{ADD}?tenant=globex").content.decode()
    for wrong in ("globex", "", "acme "):
        page = preview(scene.http, given("memory:read", tenant=wrong))
        assert page.context["form"].errors["tenant"], wrong
    page = preview(scene.http, given("memory:read", tenant="acme"))
    assert confirm(scene.http, page, tenant="globex").status_code == 200, "what was seen is for another tenant"
    assert confirm(scene.http, page, anyway="on").status_code == 302
    made = Grant.objects.latest("created_at")
    assert made.tenant == "acme"
    assert not Grant.objects.filter(tenant="globex").exclude(pk=scene.other.pk).exists()


def test_a_user_of_another_tenant_is_nobody_in_the_form(scene: Scene, owner_url: str) -> None:
    scene.confine("acme")
    with psycopg.connect(owner_url, autocommit=True) as owner:
        owner.execute("UPDATE audit_subject SET erased_at = now() WHERE uid = %s", [scene.gus.pk])
    for uid in (scene.gus.pk, "usr_nobody"):
        page = preview(scene.http, given("memory:read", tenant="acme", subject=uid))
        assert page.context["form"].errors["subject"] == ["There is no user with this uid."]
    wanted = given("memory:read", tenant="acme", subject=scene.alice.pk)
    assert grant(scene.http, wanted, anyway="on").status_code == 302


def test_the_writer_refuses_what_the_form_would_not_have_let_through(scene: Scene) -> None:
    scene.confine("acme")
    actor, read = Actor.of(scene.user), Scope.objects.get(name="memory:read")
    make: dict[str, Any] = {"actor": actor, "reason": "r", "client": scene.world.client, "scopes": [read]}
    for more in ({"tenant": "globex"}, {"tenant": None}, {"tenant": ""}, {"tenant": "acme", "subject": scene.gus}):
        with pytest.raises(PermissionDenied):
            grants.create(**make, **more)  # type: ignore[arg-type]
    for one in (scene.other, scene.of_gus, scene.of_alice, scene.world.grant):
        with pytest.raises(PermissionDenied):
            grants.revoke(one, actor=actor, reason="r")
        with pytest.raises(PermissionDenied):
            grants.extend(one, actor=actor, reason="r", expires_at=None)
    assert grants.create(**make, tenant="acme").tenant == "acme"
    scene.confine()
    assert grants.create(**make, tenant="globex").tenant == "globex", "who is confined no more"


def test_requests_are_seen_asked_and_decided_in_their_tenants(scene: Scene) -> None:
    assert requests.waiting_for(scene.fresh()) == 2
    scene.confine("acme")
    text = scene.http.get(REQUESTS).content.decode()
    assert "for the desk" in text and MARK not in text and requests.waiting_for(scene.fresh()) == 1
    other = scene.asked["globex"].pk
    assert scene.http.get(f"{REQUESTS}{other}/change/").status_code == 302
    answer = {"answer": "no", "ends": "asked", "decision": "reject"}
    assert scene.http.post(f"{REQUESTS}{other}/decide/", answer).status_code == 404
    for decide in (requests.approve, requests.reject):
        with pytest.raises(PermissionDenied):
            decide(other, scene.user, answer="no")
    assert AccessRequest.objects.get(pk=other).status == "waiting"
    assert scene.http.post(f"{REQUESTS}{scene.asked['acme'].pk}/decide/", answer).status_code == 302
    assert AccessRequest.objects.get(pk=scene.asked["acme"].pk).status == "rejected"
    page = preview(scene.http, given("memory:read", tenant="globex"), ASK)
    assert page.context["form"].errors["tenant"]
    wanted = proposals.Proposal("grant", "allow", scene.world.client, (), tenant="globex", days=3)
    with pytest.raises(PermissionDenied):
        requests.ask(scene.user, wanted, "r")
    assert ask(scene.http, given("memory:read", tenant="acme"), anyway="on").status_code == 302


def test_a_request_for_a_tenant_that_was_theirs_is_not_shown_to_who_asked(scene: Scene) -> None:
    mine = requests.ask(scene.user, proposals.Proposal(
        "grant", "allow", scene.world.client, (Scope.objects.get(name="memory:read"),), tenant="globex", days=3,
    ), "r")  # fmt: skip
    assert scene.http.get(f"{REQUESTS}{mine.pk}/change/").status_code == 200
    scene.confine("acme")
    assert scene.http.get(f"{REQUESTS}{mine.pk}/change/").status_code == 302
    assert scene.http.post(f"{REQUESTS}{mine.pk}/withdraw/").status_code == 404


def test_the_matrix_and_can_they_are_asked_of_their_tenants_and_users(scene: Scene) -> None:
    scene.confine("acme")
    for url in ("/admin/access/matrix/?", "/admin/access/explain/?client=claude&tool=inner/memory.capture&"):
        for wrong in (f"tenant={MARK}", "tenant=globex"):
            assert scene.http.get(url + wrong).status_code == 400
        for uid in (scene.gus.pk, "usr_nobody"):
            page = scene.http.get(f"{url}subject={uid}")
            assert page.status_code == 400
            assert page.context["form"].errors["subject"] == ["There is no user with this uid."]
        assert scene.http.get(f"{url}tenant=acme&subject={scene.alice.pk}").status_code == 200
    asked = "/admin/access/explain/?client=claude&tool=inner/memory.capture"
    answer = scene.http.get(f"{asked}&mode=background").context
    assert answer["asked"].tenant == "acme" and answer["answer"].allowed, "of the one tenant that they see"
    scene.confine("acme", "third")
    page = scene.http.get(asked)
    near = {line.grant.pk for line in page.context["near"]}
    assert near == {scene.ours.pk}, "neither another tenant's grant nor one for another tenant's user"
    for turn in range(MOST_SHOWN):  # which do not end, and so come before theirs
        made = Grant.objects.create(client=scene.world.client, tenant="globex", role=f"{turn}", reason=MARK)
        made.scopes.set(scene.ours.scopes.all())
    assert {line.grant.pk for line in scene.http.get(asked).context["near"]} == near, "whatever others have"
    assert MARK not in page.content.decode()


def test_home_tells_of_what_ends_and_waits_in_their_tenants(scene: Scene) -> None:
    from governance import home_waiting

    now = timezone.now()
    assert len(home_waiting.ending(scene.fresh(), now)) == 4 and len(home_waiting.waits(scene.fresh())) == 2
    scene.confine("acme")
    assert [one.sentence for one in home_waiting.ending(scene.fresh(), now)] == [
        "Claude may use memory:write in tenant acme"
    ]
    assert [wait.what for wait in home_waiting.waits(scene.fresh())] == [
        "Asker asks: Claude may use memory:write for the role clerk in tenant acme"
    ]


def test_what_is_theirs_in_words() -> None:
    both = frozenset({"acme", "globex"})
    assert tenants.may_write(None, Grant(tenant=None)) and tenants.may_write(both, Grant(tenant="acme"))
    assert not tenants.may_write(both, Grant(tenant=None)) and not tenants.may_write(both, Grant(tenant="Acme"))
    assert not tenants.may_write(frozenset(), Grant(tenant="acme"))
