"""System > Staff and Roles: who may change whom, what is recorded of it, and that nobody makes themselves more."""

import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.db import connection
from django.test import Client as HttpClient

from audit.models import Outbox
from audit.record_words import title
from governance.models import StaffIdentity
from governance.roles import ADMINISTRATOR, APPROVER, AUDITOR, MANAGER, ROLES
from governance.staff_admin import StaffAdmin
from tests.staff import newest, readable, signed_in

PASSWORD = "correct horse battery"
LIST, ADD = "/admin/auth/user/", "/admin/auth/user/add/"


def holder(name: str, *roles: str, **more: Any) -> User:
    """A member of staff with these roles."""
    user = User.objects.create_user(
        name, f"{name}@example.com", PASSWORD, is_staff=True, first_name=name.title(), **more
    )
    user.groups.set(Group.objects.filter(name__in=roles))
    return user


@pytest.fixture
def adam(db: None) -> User:
    return holder("adam", ADMINISTRATOR)


@pytest.fixture
def http(adam: User) -> HttpClient:
    return signed_in(adam)


@pytest.fixture
def vera(adam: User) -> User:
    return holder("vera", AUDITOR)


@pytest.fixture
def root(db: None) -> User:
    return User.objects.create_superuser("root", "", PASSWORD)


def page(user: User, action: str = "") -> str:
    return f"/admin/auth/user/{user.pk}/{f'act/{action}' if action else 'change'}/"


def roles_of(user: User) -> list[str]:
    return sorted(user.groups.values_list("name", flat=True))


def act(http: HttpClient, user: User, action: str, **data: Any) -> Any:
    return http.post(page(user, action), {"reason": "asked for", **data})


def unchanged(before: dict[str, Any], user: User) -> bool:
    return User.objects.filter(pk=user.pk).values().get() == before


# --- what is shown ---------------------------------------------------------------------------------------------


def test_the_list_says_who_may_come_in_how_and_with_which_roles(http: HttpClient, vera: User) -> None:
    StaffIdentity.objects.create(user=vera, issuer="https://id.example", sub="secret-sub")
    text = http.get(LIST).content.decode()
    for words in (
        "Adam",
        "Vera",
        "Administrator",
        "Auditor",
        "with a local password",
        "at the identity provider",
        "Active",
    ):
        assert words in text
    assert "secret-sub" not in text and "secret-sub" not in http.get(page(vera)).content.decode()
    assert "vera@example.com" not in text


def test_the_list_takes_as_many_queries_for_many_as_for_few(
    http: HttpClient, vera: User, django_assert_max_num_queries: Any
) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    def count() -> int:
        with CaptureQueriesContext(connection) as queries:
            http.get(LIST)
        return len(queries)

    few = count()
    for number in range(8):
        holder(f"more{number}", AUDITOR, APPROVER)
    assert count() == few


def test_only_who_may_sees_the_staff(adam: User, vera: User) -> None:
    other = signed_in(vera)
    for url in (LIST, page(adam), page(adam, "deactivate"), ADD, "/admin/auth/group/"):
        assert other.get(url).status_code == 403, url
        assert other.post(url, {"reason": "x"}).status_code == 403, url


def test_the_page_of_roles_says_what_each_may_and_who_has_it(http: HttpClient, vera: User) -> None:
    text = http.get("/admin/auth/group/").content.decode()
    for name, (sentence, _) in ROLES.items():
        assert f"<h2>{name}</h2>" in text and sentence in text
    assert f'<a href="/admin/auth/user/{vera.pk}/change/">Vera</a>' in text
    assert "members of staff" in text and "schedules" in text
    group = Group.objects.get(name=AUDITOR)
    assert http.get(f"/admin/auth/group/{group.pk}/change/").status_code == 302
    for url in (
        f"/admin/auth/group/{group.pk}/change/",
        "/admin/auth/group/add/",
        f"/admin/auth/group/{group.pk}/delete/",
    ):
        http.post(url, {"name": "x", "permissions": []})
    assert Group.objects.get(pk=group.pk).name == AUDITOR and Group.objects.count() == len(ROLES)


def test_who_may_see_roles_but_not_the_staff_sees_how_many(adam: User, vera: User) -> None:
    nina = holder("nina")
    nina.user_permissions.add(Permission.objects.get(codename="view_group"))
    text = signed_in(nina).get("/admin/auth/group/").content.decode()
    assert "Vera" not in text and "1 person" in text


def test_schedules_are_for_reading(http: HttpClient) -> None:
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    every = IntervalSchedule.objects.create(every=5, period="minutes")
    task = PeriodicTask.objects.create(name="clear outbox", task="audit.tasks.clear_outbox", interval=every)
    assert "every 5 minutes" in http.get("/admin/django_celery_beat/periodictask/").content.decode()
    url = f"/admin/django_celery_beat/periodictask/{task.pk}/change/"
    assert http.get(url).status_code == 200 and http.post(url, {"task": "os.system"}).status_code == 403
    assert http.post("/admin/django_celery_beat/periodictask/", {"action": "run_tasks", "_selected_action": task.pk})
    for stock in ("crontabschedule", "intervalschedule", "solarschedule", "clockedschedule"):
        assert http.get(f"/admin/django_celery_beat/{stock}/").status_code == 404


# --- roles -----------------------------------------------------------------------------------------------------


def test_roles_are_changed_with_a_reason_and_told_by_name(http: HttpClient, adam: User, vera: User) -> None:
    form = http.get(page(vera, "roles")).content.decode()
    assert form.count("checked") == 1 and "Approver: The second pair of eyes" in form
    assert http.post(page(vera, "roles"), {"roles": [APPROVER]}).status_code == 200, "no reason"
    assert roles_of(vera) == [AUDITOR]
    assert act(http, vera, "roles", roles=[APPROVER, MANAGER]).status_code == 302
    assert roles_of(vera) == [MANAGER, APPROVER]
    kept = Outbox.objects.latest("id").private
    told = newest("staff")
    assert (told["action"], told["about"], told["actor"]) == ("staff.roles", f"staff:{vera.pk}", f"staff:{adam.pk}")
    assert (told["before"], told["after"]) == ([AUDITOR], [MANAGER, APPROVER])
    assert "asked for" not in str(told) and "Vera" not in str(told)
    assert title(told, {}) == (
        f"Staff member {adam.pk} changed the roles of staff member {vera.pk} from Auditor to Access manager, Approver"
    )
    assert kept == {"actor_name": "Adam", "about_name": "Vera", "reason": "asked for"}


def test_new_roles_count_from_the_next_page_on(http: HttpClient, vera: User) -> None:
    other = signed_in(vera)
    assert other.get("/admin/records/").status_code == 200
    act(http, vera, "roles", roles=[])
    assert other.get("/admin/records/").status_code == 403


@pytest.mark.parametrize("roles", [["Superuser"], ["Nonsense"], ["a\x00"], ["Auditor" * 1000], [""]])
def test_a_role_that_is_none_is_refused(http: HttpClient, vera: User, roles: list[str]) -> None:
    assert act(http, vera, "roles", roles=roles).status_code == 200
    assert roles_of(vera) == [AUDITOR]


def test_nobody_gives_themselves_a_role(http: HttpClient, adam: User) -> None:
    holder("ada", ADMINISTRATOR)
    response = act(http, adam, "roles", roles=[ADMINISTRATOR, "Privacy officer"])
    assert "Nobody gives themselves a role." in response.content.decode()
    assert roles_of(adam) == [ADMINISTRATOR]


def test_the_last_administrator_cannot_leave_and_the_one_before_can(http: HttpClient, adam: User) -> None:
    for action, data in (("roles", {"roles": []}), ("deactivate", {})):
        assert "You are the last one" in act(http, adam, action, **data).content.decode()
    assert roles_of(adam) == [ADMINISTRATOR] and User.objects.get(pk=adam.pk).is_active
    ada = holder("ada", ADMINISTRATOR, is_active=False)
    assert "You are the last one" in act(http, adam, "roles", roles=[]).content.decode(), (
        "one who is out does not count"
    )
    User.objects.filter(pk=ada.pk).update(is_active=True)
    assert act(http, adam, "roles", roles=[]).status_code == 302
    assert roles_of(adam) == []


def test_two_administrators_who_leave_at_once_do_not_both_go(db: None) -> None:
    from threading import Barrier, Thread

    from django.db import connection

    both = [holder("adam", ADMINISTRATOR), holder("ada", ADMINISTRATOR)]
    browsers, together = [signed_in(user) for user in both], Barrier(2)

    def leave(http: HttpClient, user: User) -> None:
        together.wait()
        act(http, user, "roles", roles=[])
        connection.close()

    threads = [Thread(target=leave, args=pair) for pair in zip(browsers, both, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert User.objects.filter(groups__name=ADMINISTRATOR).count() == 1


def test_roles_that_come_from_the_provider_are_changed_there(http: HttpClient, vera: User) -> None:
    StaffIdentity.objects.create(user=vera, issuer="https://id.example", sub="v")
    text = http.get(page(vera)).content.decode()
    assert "By their groups at the identity provider; changed there." in text
    assert "/act/roles/" not in text and "/act/password/" not in text and "/act/deactivate/" in text
    for action in ("roles", "password", "superuser"):
        act(http, vera, action, roles=[ADMINISTRATOR], password="another horse battery", again="another horse battery")
    vera.refresh_from_db()
    assert roles_of(vera) == [AUDITOR] and vera.check_password(PASSWORD)


# --- superusers ------------------------------------------------------------------------------------------------


def test_an_administrator_cannot_touch_a_superuser_or_make_one(http: HttpClient, root: User, vera: User) -> None:
    before = User.objects.filter(pk=root.pk).values().get()
    assert "/act/" not in http.get(page(root)).content.decode()
    data = {"roles": [AUDITOR], "password": "another horse battery", "again": "another horse battery"}
    for action in ("roles", "password", "deactivate", "reactivate", "superuser", "not-superuser"):
        assert act(http, root, action, **data).status_code == 403, action
    assert unchanged(before, root) and roles_of(root) == []
    assert act(http, vera, "superuser").status_code == 403
    for data in ({"is_superuser": "on"}, {"user_permissions": "1", "is_staff": "on"}):
        assert http.post(page(vera), {"username": "vera", **data}).status_code == 403
    vera.refresh_from_db()
    assert not vera.is_superuser and not vera.user_permissions.exists()


def test_a_superuser_makes_and_unmakes_one_and_it_is_told(root: User, vera: User) -> None:
    http = signed_in(root)
    assert act(http, vera, "superuser").status_code == 302
    assert Outbox.objects.latest("id").members["after"] == ["Superuser", AUDITOR]
    assert act(http, vera, "not-superuser").status_code == 302
    vera.refresh_from_db()
    assert not vera.is_superuser


def test_the_last_superuser_stays_where_nobody_else_could_look_after_the_staff(root: User) -> None:
    http = signed_in(root)
    assert "You are the last one" in act(http, root, "not-superuser").content.decode()
    assert "You are the last one" in act(http, root, "deactivate").content.decode()
    holder("ada", ADMINISTRATOR)
    assert act(http, root, "not-superuser").status_code == 302


# --- accounts --------------------------------------------------------------------------------------------------


def test_somebody_deactivated_is_out_at_once_and_can_come_back(http: HttpClient, vera: User) -> None:
    other = signed_in(vera)
    assert act(http, vera, "deactivate").status_code == 302
    assert newest("staff")["action"] == "staff.deactivate"
    assert other.get("/admin/").status_code == 302
    assert "Deactivated" in http.get(page(vera)).content.decode()
    assert act(http, vera, "reactivate").status_code == 302
    assert newest("staff")["action"] == "staff.reactivate"
    assert signed_in(vera).get("/admin/").status_code == 200


def test_a_password_that_is_set_ends_the_sessions_and_is_nowhere(http: HttpClient, vera: User) -> None:
    other, new = signed_in(vera), "another horse battery"
    assert "not the same" in act(http, vera, "password", password=new, again="x").content.decode()
    assert "too short" in act(http, vera, "password", password="x", again="x").content.decode()
    response = act(http, vera, "password", password="secret-shown", again="not the same")
    assert "secret-shown" not in response.content.decode()
    assert act(http, vera, "password", password=new, again=new).status_code == 302
    vera.refresh_from_db()
    assert vera.check_password(new) and other.get("/admin/").status_code == 302
    assert new not in str(Outbox.objects.values_list("members", "private"))


def test_ones_own_password_is_not_set_without_the_old_one(http: HttpClient, adam: User) -> None:
    new = "another horse battery"
    assert "asks for the old one" in act(http, adam, "password", password=new, again=new).content.decode()
    adam.refresh_from_db()
    assert adam.check_password(PASSWORD)


NEW = {
    "username": "nora", "first_name": "Nora", "last_name": "", "email": "", "password1": "another horse battery",
    "password2": "another horse battery", "roles": [AUDITOR], "reason": "new in the team",
}  # fmt: skip


def test_a_local_account_is_added_with_its_roles_and_told(http: HttpClient, adam: User) -> None:
    assert http.get(ADD).status_code == 200
    assert http.post(ADD, NEW).status_code == 302
    nora = User.objects.get(username="nora")
    assert (
        nora.is_staff
        and not nora.is_superuser
        and roles_of(nora) == [AUDITOR]
        and nora.check_password(NEW["password1"])
    )
    told = newest("staff")
    assert (told["action"], told["about"], told["roles"]) == ("staff.add", f"staff:{nora.pk}", [AUDITOR])
    assert "nora" not in readable(told).lower()


@pytest.mark.parametrize(
    "wrong",
    [{"reason": ""}, {"username": ""}, {"username": "adam"}, {"username": "ADAM"}, {"username": "a\x00"},
     {"username": "x" * 1000}, {"password1": "short", "password2": "short"}, {"password2": "x"},
     {"roles": ["Superuser"]}, {"email": "no address"}, {"first_name": "x" * 1000}],
)  # fmt: skip
def test_what_cannot_be_an_account_is_a_field_error(http: HttpClient, wrong: dict[str, Any]) -> None:
    assert http.post(ADD, NEW | wrong).status_code == 200
    assert User.objects.count() == 1


def test_what_the_form_does_not_ask_is_not_taken(http: HttpClient) -> None:
    extra = {"is_superuser": "on", "is_active": "", "user_permissions": "1", "groups": "1"}
    http.post(ADD, NEW | extra)
    nora = User.objects.get(username="nora")
    assert not nora.is_superuser and nora.is_active and not nora.user_permissions.exists()
    assert roles_of(nora) == [AUDITOR]


def test_without_local_passwords_nobody_is_added_and_none_is_set(http: HttpClient, vera: User, settings: Any) -> None:
    from governance import staff_oidc
    from tests.governance.idp import configure

    configure(settings, "https://id.example")
    settings.MUNIMENT_LOCAL_PASSWORDS = False
    adam = User.objects.get(username="adam")
    other = HttpClient()
    other.force_login(adam, backend=staff_oidc.STAFF_BACKEND)
    assert other.get(ADD).status_code == other.post(ADD, NEW).status_code == 403
    assert "/act/password/" not in other.get(page(vera)).content.decode()
    new = "another horse battery"
    act(other, vera, "password", password=new, again=new)
    vera.refresh_from_db()
    assert vera.check_password(PASSWORD)


@pytest.mark.parametrize("action", ["roles", "password", "superuser", "not-superuser", "deactivate", "reactivate"])
def test_nothing_is_done_on_get_or_without_a_csrf_token(root: User, vera: User, action: str) -> None:
    before = User.objects.filter(pk=vera.pk).values().get()
    signed_in(root).get(page(vera, action))
    strict = HttpClient(enforce_csrf_checks=True)
    strict.force_login(root)
    assert act(strict, vera, action, roles=[]).status_code == 403
    assert unchanged(before, vera) and roles_of(vera) == [AUDITOR]


@pytest.mark.parametrize("number", ["0", "999999", "99999999999999999999", "x", "%00", "-1", "_7E"])
def test_accounts_that_are_not_there_get_a_page(http: HttpClient, number: str) -> None:
    for url in (f"/admin/auth/user/{number}/change/", f"/admin/auth/user/{number}/act/roles/"):
        assert http.get(url).status_code in (302, 404)
        assert http.post(url, {"reason": "x"}).status_code in (302, 403, 404)


def test_a_right_that_is_lost_between_page_and_click_is_lost(
    http: HttpClient, adam: User, vera: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    from governance.staff_admin import StaffAdmin

    check: Callable[..., None] = StaffAdmin._check

    def becomes_superuser(self: Any, request: Any, user: User) -> None:
        user.is_superuser = True  # as if another superuser had raised them a moment ago, and the lock shows it
        check(self, request, user)

    monkeypatch.setattr(StaffAdmin, "_check", becomes_superuser)
    assert act(http, vera, "deactivate").status_code == 403
    vera.refresh_from_db()
    assert vera.is_active


def test_of_two_administrators_who_put_each_other_out_at_once_one_stays(adam: User) -> None:
    bert = holder("bert", ADMINISTRATOR)
    pairs = [(signed_in(adam), bert), (signed_in(bert), adam)]
    both_asked, statuses = threading.Barrier(2, timeout=20), list[int]()
    look = StaffAdmin._check

    def check(self: StaffAdmin, request: Any, user: User) -> None:
        both_asked.wait()  # each has been let in, and holds the row of the other
        look(self, request, user)

    def out(http: HttpClient, other: User) -> None:
        statuses.append(act(http, other, "deactivate").status_code)
        connection.close()

    with mock.patch.object(StaffAdmin, "_check", check):
        threads = [threading.Thread(target=out, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(statuses) == [302, 403]
    assert User.objects.filter(pk__in=[adam.pk, bert.pk], is_active=True).count() == 1


def test_who_lost_the_role_while_the_page_was_asked_changes_nobody(adam: User, vera: User, http: HttpClient) -> None:
    look = StaffAdmin._check

    def check(self: StaffAdmin, request: Any, user: User) -> None:
        adam.groups.clear()
        look(self, request, user)

    with mock.patch.object(StaffAdmin, "_check", check):
        assert act(http, vera, "roles", roles=[MANAGER]).status_code == 403
    assert roles_of(vera) == [AUDITOR]
