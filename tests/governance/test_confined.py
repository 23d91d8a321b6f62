"""Staff who are confined to tenants: which permissions they keep, and that the evidence of other tenants is on none of
their pages, by no name, number or difference from what is not there at all."""

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from io import BytesIO
from typing import Any
from zipfile import ZipFile

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.test import Client as HttpClient
from django.urls import reverse

from audit import holds, rollups, search
from audit.models import Outbox, Record, Subject
from audit.record_words import short_uid
from audit.staff_log import tell
from audit.viewer import tenants_of, viewer_of
from governance import staff_keys, status
from governance.confined import KEPT, WHOLE
from governance.models import StaffTenant
from governance.navigation import lines
from governance.roles import ADMINISTRATOR, APPROVER, AUDITOR, MANAGER, PRIVACY, ROLES
from tests.governance.confined import ACME, CALLS, GLOBEX, Scene, account, build_scene, confine, staff
from tests.staff import drained, signed_in

NOBODY, NO_RECORD = "usr_nobodynobodynobody", "018f0000-0000-7000-8000-00000000dead"
OURS = CALLS[ACME] + 1  # sam's one
EVERY = sum(CALLS.values()) + 3


@pytest.fixture(scope="module")
def scene(migrated: None) -> Iterator[Scene]:
    """One for all: what a test changes, it puts back."""
    from governance import process
    from tests.reset import reset

    reset()
    yield build_scene()
    process.stop_recorder()


@pytest.fixture(scope="module")
def http(scene: Scene) -> dict[str, HttpClient]:
    """A browser for each role, confined to acme; and a free auditor's."""
    found = {role: staff(role, ACME) for role in ROLES}
    return found | {"free": staff(AUDITOR)}


def text(response: Any) -> str:
    """A page without what differs each time."""
    body = re.sub(r'name="csrfmiddlewaretoken" value="[^"]*"|nonce="[^"]*"', "", response.content.decode())
    body = re.sub(r'<div role="status"><ul class="messagelist">.*?</ul></div>', "", body)  # of the page before
    return " ".join(re.sub(r"\d\d:\d\d:\d\d(\.\d+)?|[\d.]+ (ms|seconds)", "", body).split())


# --- permissions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_of_a_role_only_what_is_made_for_tenants_is_left(scene: Scene, role: str) -> None:
    name = f"kept-{role}"
    user = account(name, role, ACME)
    granted = set(ROLES[role][1])
    assert user.get_all_permissions() == granted & KEPT
    assert {one for one in granted if user.has_perm(one)} == granted & KEPT
    confine(user)
    assert get_user_model().objects.get(pk=user.pk).get_all_permissions() == granted


def test_a_permission_of_ones_own_is_taken_away_like_that_of_a_role(scene: Scene) -> None:
    user = account("own", AUDITOR, ACME)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_hold", "change_client", "view_tool"]))
    fresh = get_user_model().objects.get(pk=user.pk)
    assert not fresh.has_perms(["audit.view_hold"]) and not fresh.has_perm("clients.change_client")
    assert fresh.has_perm("tools.view_tool") and fresh.has_module_perms("tools") and not fresh.has_module_perms("auth")


def test_what_is_kept_is_known_and_changes_nothing_that_all_tenants_share() -> None:
    known = {permission for _, permissions in ROLES.values() for permission in permissions}
    assert known >= KEPT
    writes = {one for one in KEPT if ".view_" not in one}
    assert writes == {
        "audit.export_record", "audit.change_subject", "audit.add_export", "clients.add_grant", "clients.change_grant",
        "clients.decide_accessrequest",
    }  # fmt: skip


def test_who_has_a_permission_is_asked_without_those_whose_confinement_takes_it_away(scene: Scene) -> None:
    backend = "governance.staff_passwords.PasswordBackend"
    bound = account("bound-admin", ADMINISTRATOR, ACME)
    for permission, among in (("audit.view_alert", False), ("audit.view_record", True)):
        assert User.objects.with_perm(permission, backend=backend).filter(pk=bound.pk).exists() is among


def test_a_superuser_whom_somebody_confined_past_the_pages_is_nobody(scene: Scene) -> None:
    root = User.objects.create_superuser("bound-root", "", "correct horse battery")
    browser = signed_in(root)
    assert browser.get("/admin/").status_code == 200
    StaffTenant.objects.create(user=root, tenant=ACME)
    assert browser.get("/admin/").status_code == 302
    assert not HttpClient().login(username="bound-root", password="correct horse battery")
    assert any(one.part == "staff" and f"Staff {root.pk}" in one.words for one in status.lines())
    confine(root)
    assert HttpClient().login(username="bound-root", password="correct horse battery")
    assert not any(one.part == "staff" for one in status.lines())


def test_who_is_not_signed_in_sees_no_tenant_at_all() -> None:
    assert tenants_of(AnonymousUser()) == frozenset()
    assert viewer_of.__module__ == "audit.viewer"


def test_the_navigation_leads_where_they_may_go_and_nowhere_else(scene: Scene, http: dict[str, HttpClient]) -> None:
    for role in ROLES:
        rail = http[role].get("/admin/password_change/").content.decode().split("</nav>")[0]
        listed = {route: f'href="{reverse(route)}"' in rail for _, route, _ in lines()}
        assert not any(listed[route] for route in WHOLE), role
        if role == ADMINISTRATOR:  # who has most of what is taken away
            assert sum(listed.values()) > 10
            for route in (route for route, there in listed.items() if there):
                assert http[role].get(reverse(route)).status_code in (200, 302), route


CLOSED = (
    "/admin/log/", "/admin/log/checkpoint/", "/admin/packs/", "/admin/retention/", "/admin/holds/", "/admin/erasures/",
    "/admin/streams/", "/admin/inbox/", "/admin/clients/review/", "/admin/clients/issuer/", "/admin/clients/keyset/",
    "/admin/tools/backend/", "/admin/tools/backendkey/", "/admin/auth/user/", "/admin/auth/group/",
    "/admin/audit/outbox/", "/admin/audit/publishedkey/", "/admin/audit/checkpoint/", "/admin/audit/alert/",
    "/admin/audit/verification/", "/admin/audit/sighting/", "/admin/django_celery_beat/periodictask/",
)  # fmt: skip


def test_what_tells_of_the_platform_is_closed(scene: Scene, http: dict[str, HttpClient]) -> None:
    found = {path: http[ADMINISTRATOR].get(path).status_code for path in CLOSED}  # who has most of it else
    assert found == dict.fromkeys(CLOSED, 403)
    for path in ("/admin/log/", "/admin/holds/", "/admin/auth/user/"):
        assert "some tenants alone" in http[AUDITOR].get(path).content.decode()
    assert "some tenants" not in http[AUDITOR].get("/admin/clients/grant/add/").content.decode(), "a role would help"
    assert http["free"].get("/admin/log/").status_code == 200, "else it could not fail"


# --- what pages say --------------------------------------------------------------------------------------------

PAGES = (
    "/admin/", "/admin/?window=30d", "/admin/records/?window=24h", "/admin/records/?window=24h&sort=oldest",
    "/admin/records/?window=24h&type=outcome", "/admin/records/?window=1y&decision=deny", "/admin/audit/subject/",
    "/admin/timeline/client/claude/", "/admin/timeline/tool/inner/memory.recall/", "/admin/exports/", "/admin/reasons/",
    "/admin/notifications/", "/admin/access/stops/", "/admin/exports/add/", "/admin/people/",
)  # fmt: skip


def test_no_page_has_anything_of_the_other_tenant(scene: Scene, http: dict[str, HttpClient]) -> None:
    told: dict[str, int] = {}
    for path in PAGES:
        free = http["free"].get(path)
        told[path] = len(scene.found(free.content.decode()))
        answer = http[AUDITOR].get(path)
        assert answer.status_code == 200, path
        assert scene.found(answer.content.decode()) == [], path
    assert sum(number > 0 for number in told.values()) >= 8, told


def test_the_records_that_they_see_are_theirs(scene: Scene, http: dict[str, HttpClient]) -> None:
    page = http[AUDITOR].get("/admin/records/?window=24h&type=decision").content.decode()
    assert all(record in page for record in scene.records[ACME]) and scene.records[None][0] not in page
    assert f"{OURS} calls" in page and f"{EVERY} calls" not in page
    assert f"{EVERY} calls" in http["free"].get("/admin/records/?window=24h&type=decision").content.decode()


def test_figures_count_their_calls_alone(scene: Scene, http: dict[str, HttpClient]) -> None:
    for browser, number, denied in ((http[AUDITOR], OURS, 1), (http["free"], EVERY, 9)):
        home = browser.get("/admin/").context
        assert (home["figures"].calls, home["figures"].denied) == (number, denied)
        assert sum(bucket.calls for bucket in home["figures"].chart.buckets) == number
        assert {one.calls for one in home["newcomers"] if one.kind == "client"} == {number}
        reasons = browser.get("/admin/reasons/").context["parts"][1][1]
        assert sum(one.calls or 0 for one in reasons) == denied
        client = browser.get("/admin/timeline/client/claude/").context["figures"]
        assert (client.totals.allowed, client.totals.denied) == (number - denied, denied)


def test_home_says_nothing_of_the_log(scene: Scene, http: dict[str, HttpClient]) -> None:
    page = http[AUDITOR].get("/admin/")
    assert "Health of the log" not in page.content.decode()
    assert not any(page.context.get(name) for name in ("head", "newest", "undrained", "pulse", "health", "notices"))
    assert f"who sees <bdi>{ACME}</bdi> alone" in page.content.decode()
    free = http["free"].get("/admin/").content.decode()
    assert "Health of the log" in free and "who sees" not in free


BY_USER = ("/admin/timeline/user/{}/", "/admin/records/?window=24h&subject={}", "/admin/people/{}/report/",
           "/admin/audit/subject/{}/change/", "/admin/audit/subject/?q={}",
           "/admin/access/stops/stop/?kind=user&what={}", "/admin/audit/subject/{}/act/block/")  # fmt: skip
BY_RECORD = ("/admin/records/{}/", "/admin/records/{}/proof/", "/admin/records/{}/bundle/")


def test_a_user_of_another_tenant_is_like_one_who_is_not_there(scene: Scene, http: dict[str, HttpClient]) -> None:
    for path in BY_USER:
        pair = [(http[MANAGER].get(path.format(uid)), uid) for uid in (scene.uids["gwen"], NOBODY)]
        gwen, nobody = [
            (answer.status_code, text(answer).replace(uid, "UID").replace(short_uid(uid), "UID"))
            for answer, uid in pair
        ]
        assert gwen == nobody, path
    page = http["free"].get(BY_USER[0].format(scene.uids["gwen"])).content.decode()
    assert scene.found(page), "else it could not fail"


def test_a_record_of_another_tenant_is_like_one_that_is_not_there(scene: Scene, http: dict[str, HttpClient]) -> None:
    for path in BY_RECORD:
        other = http[PRIVACY].get(path.format(scene.records[GLOBEX][0]))
        missing = http[PRIVACY].get(path.format(NO_RECORD))
        assert other.status_code == missing.status_code == 404, path
        assert text(other).replace(scene.records[GLOBEX][0], NO_RECORD) == text(missing), path
    for path in ("/admin/records/{}/verify/", "/admin/records/{}/details/"):
        assert http[PRIVACY].post(path.format(scene.records[GLOBEX][0])).status_code == 404
        assert http[PRIVACY].post(path.format(scene.records[None][0])).status_code == 404
    assert http[AUDITOR].get(BY_RECORD[0].format(scene.records[ACME][0])).status_code == 200


def test_what_belongs_to_no_tenant_is_nobodys_who_is_confined(scene: Scene, http: dict[str, HttpClient]) -> None:
    tell("staff:1", "Mara", "person.lookup", by="email", found=0)
    drained()
    for kind in ("policy", "staff"):
        page = http[AUDITOR].get(f"/admin/records/?window=1y&type={kind}")
        assert "No record" in page.content.decode()
        record = Record.objects.filter(type=kind).latest("at")
        assert [http[who].get(f"/admin/records/{record.id}/").status_code for who in (AUDITOR, "free")] == [404, 200]


# --- people ----------------------------------------------------------------------------------------------------


def test_nobody_of_another_tenant_is_found_by_address_sub_or_uid(scene: Scene, http: dict[str, HttpClient]) -> None:
    def look(term: str, browser: HttpClient = http[AUDITOR]) -> Any:
        return browser.post("/admin/people/", {"person": term})

    for known, unknown in ((f"gwen@{GLOBEX}.example", "gwen@nowhere.example"), ("gwen", "nogwen"),
                           (scene.uids["gwen"], NOBODY)):  # fmt: skip
        pair = [text(look(term)).replace(term, "TERM") for term in (known, unknown)]
        assert pair[0] == pair[1], known
        told = list(Outbox.objects.filter(members__action="person.lookup").order_by("-id")[:2])
        assert [(one.members["found"], "subject" in one.members) for one in told] == [(0, False)] * 2
        assert look(known, http["free"]).status_code == 302, "else it could not fail"
    for known in (f"alice@{ACME}.example", "alice", scene.uids["alice"], "sam"):
        assert look(known).status_code == 302


def test_personal_data_is_shown_of_their_users_and_calls_alone(scene: Scene, http: dict[str, HttpClient]) -> None:
    page = http[PRIVACY].post("/admin/records/users/?window=24h").content.decode()
    assert f"alice@{ACME}.example" in page and scene.found(page) == []
    details = http[PRIVACY].post(f"/admin/records/{scene.records[ACME][0]}/details/").content.decode()
    assert f"request-{ACME}" in details
    for uid, known in ((scene.uids["alice"], True), (scene.uids["gwen"], False), (NOBODY, False)):
        page = http[PRIVACY].post(f"/admin/timeline/user/{uid}/").content.decode()
        assert ("@" in re.sub(r"<nav.*?</nav>", "", page, flags=re.DOTALL)) is known, uid
        assert scene.found(page.replace(uid, "")) == []


def test_a_report_on_a_user_of_both_tenants_tells_of_theirs(scene: Scene, http: dict[str, HttpClient]) -> None:
    path = f"/admin/people/{scene.uids['sam']}/report/"
    form = dict(re.findall(r'name="(since|until)" value="([^"]+)"', http[PRIVACY].get(path).content.decode()))
    page = http[PRIVACY].post(path, form)
    assert page.status_code == 200 and page.context["report"].counted.calls == 1
    assert scene.found(page.content.decode()) == []
    assert (
        f"these tenants alone: {ACME}" in page.content.decode() and "Nobody on the staff" not in page.content.decode()
    )
    assert http[PRIVACY].post(f"/admin/people/{scene.uids['gwen']}/report/", form).status_code == 404


def test_a_user_is_changed_by_who_sees_all_of_their_tenants(scene: Scene, http: dict[str, HttpClient]) -> None:
    def block(name: str, browser: HttpClient) -> Any:
        return browser.post(f"/admin/audit/subject/{scene.uids[name]}/act/block/", {"reason": "lost phone"})

    def blocked() -> set[str]:
        return set(Subject.objects.filter(blocked_at__isnull=False).values_list("uid", flat=True))

    for name in ("sam", "gwen", "nemo"):
        block(name, http[MANAGER])
        stop = {"kind": "user", "what": scene.uids[name], "reason": "lost phone"}
        assert http[MANAGER].post("/admin/access/stops/stop/", stop).status_code in (400, 403)
    assert blocked() == set()
    assert "Block" not in http[MANAGER].get(f"/admin/timeline/user/{scene.uids['sam']}/").content.decode()
    try:
        block("alice", http[MANAGER])
        assert blocked() == {scene.uids["alice"]}
        block("sam", staff(MANAGER, ACME, GLOBEX))
        assert blocked() == {scene.uids["alice"], scene.uids["sam"]}
        Subject.objects.filter(uid=scene.uids["gwen"]).update(blocked_at="2026-01-01T00:00:00Z")
        page = http[MANAGER].get("/admin/access/stops/")
        assert {line.stop.row: line.may for line in page.context["lines"]} == {
            scene.uids["alice"]: True, scene.uids["sam"]: False,
        }  # fmt: skip
        banner = http[AUDITOR].get("/admin/people/").context["stopped"]
        assert len(banner.named) == 2 and not banner.more
    finally:
        Subject.objects.update(blocked_at=None)
        drained()


def test_what_is_stopped_of_what_all_share_is_not_told(scene: Scene, http: dict[str, HttpClient]) -> None:
    type(scene.world.client).objects.update(status="suspended")
    try:
        assert http["free"].get("/admin/people/").context["stopped"].named == [("client", "Claude")]
        assert http[MANAGER].get("/admin/people/").context["stopped"] is None
        response = http[MANAGER].get("/admin/access/stops/")
        assert "Nothing is stopped" not in response.content.decode(), "for something is, which is not theirs to see"
        page = response.context
        assert page["lines"] == [] and [one.switch.kind for one in page["choosers"]] == ["user"]
        answer = http[MANAGER].post("/admin/access/stops/resume/", {"kind": "client", "what": "claude", "reason": "x"})
        assert answer.status_code == 400
    finally:
        type(scene.world.client).objects.update(status="active")


# --- searches and the API --------------------------------------------------------------------------------------


def test_searches_of_others_are_not_theirs_to_see(scene: Scene, http: dict[str, HttpClient]) -> None:
    query = scene.made[GLOBEX, "search"].query
    assert scene.made[GLOBEX, "search"].name in http["free"].get("/admin/records/").content.decode()
    page = http[AUDITOR].get(f"/admin/records/?{query}")
    assert page.status_code == 200 and page.context["rows"] == []
    assert scene.found(page.content.decode().replace(GLOBEX, "")) == []


def test_a_page_as_a_file_has_their_records_alone(scene: Scene, http: dict[str, HttpClient]) -> None:
    answer = http[AUDITOR].post("/admin/records/csv/?window=24h")
    assert answer.status_code == 200 and answer["Content-Type"].startswith("text/csv")
    assert scene.found(answer.content.decode()) == []
    assert answer.content.decode().count(scene.uids["alice"]) >= CALLS[ACME]


def test_a_staff_key_reads_what_its_owner_may_see_now(scene: Scene) -> None:
    owner = account("key-owner", AUDITOR, ACME)
    _, key = staff_keys.issue(owner, f"staff:{owner.pk}", "Key Owner")

    def ask(path: str) -> Any:
        return HttpClient().get(path, headers={"Authorization": f"Bearer {key}"})

    found = ask("/v1/records?window=24h").content.decode()
    assert len(json.loads(found)["items"]) == OURS + 3 and scene.found(found) == []  # three outcomes
    other, missing = (ask(f"/v1/records/{one}") for one in (scene.records[GLOBEX][0], NO_RECORD))
    assert (other.status_code, other.json()) == (missing.status_code, missing.json())
    uids = [ask(f"/v1/records?window=24h&subject={uid}").json() for uid in (scene.uids["gwen"], NOBODY)]
    assert [one["items"] for one in uids] == [[], []] and uids[0].keys() == uids[1].keys()
    confine(owner)
    assert len(ask("/v1/records?window=24h&limit=50").json()["items"]) == 50
    confine(owner, GLOBEX)
    assert ask(f"/v1/records/{scene.records[GLOBEX][0]}").status_code == 200
    assert ask(f"/v1/records/{scene.records[ACME][0]}").status_code == 404


def test_confinement_counts_from_the_next_request_on(scene: Scene) -> None:
    user = account("moved", AUDITOR)
    browser, path = signed_in(user), f"/admin/records/{scene.records[GLOBEX][0]}/"
    for tenants, record, log in (((), 200, 200), ((ACME,), 404, 403), ((GLOBEX,), 200, 403), ((), 200, 200)):
        confine(user, *tenants)
        assert (browser.get(path).status_code, browser.get("/admin/log/").status_code) == (record, log), tenants


def test_notifications_of_requests_come_to_the_approvers_of_their_tenant(scene: Scene) -> None:
    from governance import notifications

    people = {name: account(f"mail-{name}", APPROVER, *tenants, email=f"{name}@example.com")
              for name, tenants in (("acme", (ACME,)), ("globex", (GLOBEX,)), ("free", ()))}  # fmt: skip
    notifications.refresh()
    told = {
        name: set(
            notifications.Notification.objects.filter(kind="request", deliveries__to=f"staff:{user.pk}").values_list(
                "about", flat=True
            )
        )
        for name, user in people.items()
    }
    asked = {tenant: f"request {scene.made[tenant, 'request'].pk}" for tenant in (ACME, GLOBEX, None)}
    fresh = told["free"]  # some were told of before this test
    assert told["acme"] == fresh & {asked[ACME]} and told["globex"] == fresh & {asked[GLOBEX]}


def test_a_bundle_has_all_policy_so_that_the_proof_alone_is_for_them(scene: Scene, http: dict[str, HttpClient]) -> None:
    page, proof, bundle = (path.format(scene.records[ACME][-1]) for path in BY_RECORD)
    with ZipFile(BytesIO(http["free"].get(bundle).content)) as files:
        assert any(scene.found(files.read(name).decode()) for name in files.namelist())
    assert http[AUDITOR].get(bundle).status_code == 403
    told = http[AUDITOR].get(proof)
    assert told["Content-Type"].startswith("text/plain") and not scene.found(told.content.decode())
    for who, offered in ((AUDITOR, False), ("free", True)):
        shown = http[who].get(page).content.decode()
        assert proof in shown and (bundle in shown) == offered


def test_a_legal_hold_on_their_tenant_is_not_theirs_to_know(scene: Scene, http: dict[str, HttpClient]) -> None:
    holds.place(account("holder", PRIVACY), "the matter", "the reason", tenant=ACME, subject=scene.uids["alice"])
    drained()
    record = Record.objects.get(type="hold", tenant=ACME)
    for where in (
        "",
        "&type=hold",
        f"&tenant={ACME}",
        f"&subject={record.subject}",
        f"&type=hold&subject={record.subject}",
    ):
        pages = [http[who].get(f"/admin/records/?window=1h{where}").content.decode() for who in (AUDITOR, "free")]
        assert [str(record.pk) in page for page in pages] == [False, True], where
    assert http[AUDITOR].get(f"/admin/records/{record.pk}/").status_code == 404
    assert str(record.pk) not in http[AUDITOR].post("/admin/records/csv/?window=1h").content.decode()
    assert str(record.pk) not in http[AUDITOR].get(f"/admin/timeline/user/{record.subject}/").content.decode()
    assert list(search.visible(viewer_of(account("looker", AUDITOR, ACME)), record.at, record.at + timedelta(1))) == []
    rollups.catch_up()
    spans = rollups.floor(record.at, "1h"), record.at + timedelta(hours=1), "1h"
    for kind in ("hold", None):
        every, theirs = (
            sum(one.calls for one in rollups.series(viewer_of(user), *spans, tenant=ACME, type=kind))
            for user in (account(f"counter {kind}", AUDITOR), account(f"counter of acme {kind}", AUDITOR, ACME))
        )
        assert every == theirs + 1, "nor is it counted"


def test_who_is_confined_by_now_is_not_told_of_what_was_sent_to_them_before(
    scene: Scene, mailoutbox: list[Any]
) -> None:
    from governance import notifications, notifications_sending

    was_free = account("was-free", APPROVER, email="was-free@example.com")
    asked = {tenant: f"Request {scene.made[tenant, 'request'].pk} " for tenant in (ACME, GLOBEX, None)}
    notifications.Notification.objects.all().delete()
    notifications.refresh()
    browser = signed_in(was_free)
    assert all(words in browser.get("/admin/notifications/").content.decode() for words in asked.values())
    confine(was_free, ACME)
    page = browser.get("/admin/notifications/").content.decode()
    assert {tenant for tenant, words in asked.items() if words in page} == {ACME}
    notifications_sending.send_due()
    [mail] = [one for one in mailoutbox if one.to == ["was-free@example.com"]]
    assert {tenant for tenant, words in asked.items() if words in mail.body} == {ACME}
