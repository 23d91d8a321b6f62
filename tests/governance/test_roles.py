"""Roles against every address of the admin: each sees what it may, nobody without a role sees anything, nothing changes
on GET, and nobody at all adds, changes or removes a record."""

import importlib
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Group, User
from django.test import Client as HttpClient
from django.urls import NoReverseMatch, reverse

from audit.models import Head, Record
from governance import role_mapping, roles
from governance.models import StaffKey
from governance.navigation import NAVIGATION
from governance.roles import ADMINISTRATOR, APPROVER, AUDITOR, MANAGER, PRIVACY, ROLES
from tests.governance.walking import addresses, called, contents
from tests.staff import drained, signed_in
from tests.test_docs import section, text
from tests.world import World

pytestmark = pytest.mark.timeout(300)
ANSWERS = {200, 302, 400, 403, 404, 405, 422}
# What somebody on the staff without any role may open: how they come, go and see that there is nothing for them.
OPEN = {"index", "login", "logout", "password_change", "password_change_done", "jsi18n", "sign_in_again", "oidc_start",
        "oidc_callback"}  # fmt: skip
# Everybody on the staff may ask for a grant, sees what became of it, what reason codes mean, and what they are told of.
ASKING = {"access_ask", "clients_accessrequest_changelist", "reasons", "notifications"}
# And what tells nothing of anybody: where an address that is none, or only a redirect, is answered so.
NOTHING = {302, 403, 404, 405}
# Of these everybody with this permission has their own.
OWN: dict[Any, str] = {StaffKey: "audit.view_record"}
LOGGED = ("audit_outbox", "audit_record", "audit_batch", "audit_head", "audit_datakey", "audit_publishedkey")
PASSING = ("django_session", "audit_sighting", "audit_rollup")


@pytest.fixture
def world(db: None) -> World:
    """With one of most things."""
    made = called()
    victim = User.objects.create_user("victim", "", None, is_staff=True)
    StaffKey.objects.create(owner=victim, key_id="k", digest=b"x" * 32)
    return made


def holder(*names: str, **more: Any) -> HttpClient:
    """The browser of somebody with these roles."""
    user = User.objects.create_user(
        "-".join(names).replace(" ", "").lower() or "nobody", "", None, is_staff=True, **more
    )
    user.groups.set(Group.objects.filter(name__in=names))
    return signed_in(user)


def test_the_walk_finds_the_pages(world: World) -> None:
    found = addresses()
    names = {address.name for address in found}
    assert (
        len(found) > 120
        and {"records", "record", "log", "clients_grant_add", "auth_user_act", "sign_in_again"} <= names
    )
    assert not [address for address in found if "<" in address.path]


@pytest.mark.parametrize("role", ROLES)
def test_each_role_opens_what_it_may_and_nothing_else(world: World, role: str) -> None:
    http, may = holder(role), set(ROLES[role][1])
    wrong = []
    for address in addresses():
        status = http.get(address.path).status_code if address.name != "logout" else 405
        if status not in ANSWERS:
            wrong.append((address.path, status))
        if address.model is not None and address.verb in ("changelist", "change", "add"):
            model = f"{address.model._meta.app_label}.{{}}_{address.model._meta.model_name}"
            verbs = ("add",) if address.verb == "add" else ("view", "change")
            allowed = any(model.format(verb) in may for verb in verbs) or OWN.get(address.model) in may
            if not allowed and status in (200, 400):
                wrong.append((address.path, status, "without the permission"))
            if allowed and status == 403 and address.verb != "add":
                wrong.append((address.path, status, "with the permission"))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("role", ROLES)
def test_the_navigation_leads_where_the_role_may_go_and_nowhere_else(world: World, role: str) -> None:
    http, may = holder(role), set(ROLES[role][1])
    home = http.get("/admin/").content.decode()
    for _, lines in NAVIGATION:
        for label, route, permission in lines:
            try:
                url = reverse(route)
            except NoReverseMatch:
                continue
            allowed = permission is None or permission in may
            assert (f'href="{url}"' in home) is allowed or not allowed, label
            assert http.get(url).status_code == (200 if allowed else 403), label


@pytest.mark.parametrize("who", ["staff without a role", "nobody"])
def test_without_a_role_nothing_is_seen(world: World, who: str) -> None:
    http = holder() if who.startswith("staff") else HttpClient()
    seen = []
    for address in addresses():
        if address.name in OPEN | (ASKING if who.startswith("staff") else set()):
            continue
        for status in (http.get(address.path).status_code, http.post(address.path, {"reason": "x"}).status_code):
            if status not in NOTHING:
                seen.append((address.path, status))
    assert not seen, "\n".join(map(str, seen))


def test_nothing_changes_on_get(world: World) -> None:
    user = User.objects.create_superuser("root", "", None)
    http = signed_in(user)
    drained()
    before, version, records = contents(), Head.objects.get().policy, Record.objects.count()
    kinds = list(Record.objects.order_by("index").values_list("type", flat=True))
    for address in addresses():
        assert http.get(address.path).status_code in ANSWERS, address.path
    drained()
    after = contents()
    changed = [table for table in before if before[table] != after[table]]
    assert [table for table in changed if not table.startswith(LOGGED + PASSING)] == []
    assert Head.objects.get().policy == version
    # That somebody looked is recorded; nothing else is.
    assert set(Record.objects.order_by("index").values_list("type", flat=True)[records:]) <= {"staff"}
    assert list(Record.objects.order_by("index").values_list("type", flat=True)[:records]) == kinds


@pytest.mark.parametrize("role", [*ROLES, "superuser"])
def test_nobody_adds_changes_or_removes_a_record(world: World, role: str) -> None:
    user = User.objects.create_user("walker", "", None, is_staff=True, is_superuser=role == "superuser")
    user.groups.set(Group.objects.filter(name=role))
    kept = list(Record.objects.order_by("index").values())
    record = kept[0]
    form = {"reason": "x", "post": "yes", "action": "delete_selected", "_selected_action": str(record["id"]),
            "statement": "{}", "decision": "allow", "_save": "Save"}  # fmt: skip
    stock = [
        f"/admin/audit/record/{tail}" for tail in ("", "add/", f"{record['id']}/change/", f"{record['id']}/delete/")
    ]
    http = HttpClient()
    # The superuser may do all that a role may; of the rest each role tries another part.
    roles_of_all = [*ROLES, "superuser"]
    part = slice(None) if role == "superuser" else slice(roles_of_all.index(role), None, len(ROLES))
    for path in [*stock, *[address.path for address in addresses()][part]]:
        http.force_login(user)
        status = http.post(path, form).status_code
        assert status in ANSWERS | {201, 429}, (path, status)
        if path in stock:
            assert status == 404, path
        User.objects.filter(pk=user.pk).update(is_active=True)
    drained()
    assert list(Record.objects.filter(index__lt=len(kept)).order_by("index").values()) == kept
    assert {"decision", "outcome", "evaluation", "denials"}.isdisjoint(
        Record.objects.filter(index__gte=len(kept)).values_list("type", flat=True)
    )


# --- what the roles are ----------------------------------------------------------------------------------------


def test_roles_are_made_by_migration_with_exactly_their_permissions(migrated: None) -> None:
    for name, (_, permissions) in ROLES.items():
        held = Group.objects.get(name=name).permissions.values_list("content_type__app_label", "codename")
        assert {f"{app}.{codename}" for app, codename in held} == set(permissions), name


def test_making_them_again_takes_away_what_was_added_by_hand(db: None) -> None:
    from django.contrib.auth.models import Permission

    group = Group.objects.get(name=AUDITOR)
    group.permissions.add(Permission.objects.get(codename="add_grant"))
    roles.make(apps, "default")
    assert not group.permissions.filter(codename="add_grant").exists()
    assert importlib.import_module("governance.migrations.0004_roles").make


DELETED = ("tools.delete_scope", "clients.delete_limit")  # what is policy, and in the log for ever


def test_no_role_has_what_makes_it_more_than_it_says() -> None:
    for name, (_, permissions) in ROLES.items():
        for permission in permissions:
            app, codename = permission.split(".")
            assert not (codename.startswith("delete_") and permission not in DELETED), (name, permission)
            assert app not in ("sessions", "contenttypes", "admin"), (name, permission)
            assert codename not in ("add_record", "change_record", "change_log", "add_outbox"), (name, permission)
    assert [n for n, (_, p) in ROLES.items() if "audit.view_personal" in p] == [PRIVACY]
    assert [n for n, (_, p) in ROLES.items() if "clients.decide_accessrequest" in p] == [APPROVER]
    assert [n for n, (_, p) in ROLES.items() if "clients.add_grant" in p] == [MANAGER]
    assert [n for n, (_, p) in ROLES.items() if "auth.change_user" in p] == [ADMINISTRATOR]


def test_the_documents_say_the_roles_in_the_same_words() -> None:
    table = [row for row in rows_of_roles() if len(row) == 3]
    assert table == [[name, f"`{slug}`", ROLES[name][0]] for slug, name in role_mapping.BY_SLUG.items()]


def rows_of_roles() -> list[list[str]]:
    """The table of roles of the configuration page, whose first column is no code."""
    lines = section(text("docs/configuration.md"), "Staff").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in cells if row[0] in ROLES]


# --- groups to roles -------------------------------------------------------------------------------------------


def test_groups_are_read_as_they_are_written() -> None:
    mapping = role_mapping.parse("a=auditor, b=approver,a=approver,cn%3Dx%2Cdc%3Dy=auditor", "the admins, all")
    assert mapping == {
        "a": {AUDITOR, APPROVER}, "b": {APPROVER}, "cn=x,dc=y": {AUDITOR}, "the admins, all": {ADMINISTRATOR}
    }  # fmt: skip
    assert role_mapping.roles_of(["a", "b", "c", "A"], mapping) == {AUDITOR, APPROVER}
    assert role_mapping.roles_of([], mapping) == role_mapping.roles_of(["x"], {}) == frozenset()


@pytest.mark.parametrize(
    "wrong", ["a", "a=", "=auditor", "a=Auditor", "a=superuser", "a=auditor;b=approver", "a=auditor=x"]
)
def test_what_maps_to_no_role_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"role is one of|group=role"):
        role_mapping.parse(wrong)
