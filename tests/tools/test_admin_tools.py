"""Backend keys, scopes and tools in the admin."""

import re
from typing import Any

import pytest
from django.db import connection
from django.test import Client as HttpClient

from tests.staff import administrator, drained, member, newest
from tests.world import World, build
from tools import admin as tools_admin
from tools.models import BackendKey, Scope, Tool


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


def test_a_key_is_shown_whole_exactly_once(world: World, http: HttpClient) -> None:
    data = {"backend": world.backend.pk, "label": "second", "lasts": "90", "change_reason": "rotation"}
    response = http.post("/admin/tools/backendkey/add/", data)
    [secret] = re.findall(r"mk_[A-Za-z0-9]{12}_[A-Za-z0-9_-]{43}", response.content.decode())
    assert "no-store" in response["Cache-Control"]
    assert world.post("/v1/verify", {"token": None, "tool": "t"}, key=secret).status_code == 200
    key = BackendKey.objects.get(label="second")
    assert key.expires_at is not None
    tail = secret.split("_", 2)[2]
    for url in ("", f"{key.pk}/change/", f"{key.pk}/act/revoke/"):
        text = http.get(f"/admin/tools/backendkey/{url}").content.decode()
        assert key.key_id in text and tail not in text and bytes(key.digest).hex() not in text
    assert tail not in str(http.cookies) and tail not in str(dict(http.session.items()))
    told = newest("policy")
    assert told["actor"] == "staff:1" and tail not in str(told)


def test_a_revoked_key_is_refused_at_the_next_call(world: World, http: HttpClient) -> None:
    key = BackendKey.objects.get()
    assert http.get(f"/admin/tools/backendkey/{key.pk}/act/revoke/").status_code == 200
    assert world.post("/v1/verify", {"token": None, "tool": "t"}).status_code == 200
    assert http.post(f"/admin/tools/backendkey/{key.pk}/act/revoke/", {"reason": "leaked"}).status_code == 302
    assert world.post("/v1/verify", {"token": None, "tool": "t"}).status_code == 401


def test_a_key_is_not_edited_and_not_deleted(world: World, http: HttpClient) -> None:
    key = BackendKey.objects.get()
    assert http.post(f"/admin/tools/backendkey/{key.pk}/change/", {"label": "x"}).status_code == 403
    assert http.post(f"/admin/tools/backendkey/{key.pk}/delete/", {"post": "yes"}).status_code == 403
    viewer = member("vera", "tools.view_backendkey")
    assert viewer.post(f"/admin/tools/backendkey/{key.pk}/act/revoke/", {"reason": "x"}).status_code == 403
    assert viewer.post("/admin/tools/backendkey/add/", {}).status_code == 403
    assert BackendKey.objects.get().revoked_at is None


def scope_form(scope: Scope, *implied: Scope) -> dict[str, Any]:
    return {"description": "", "implies": [s.pk for s in implied], "change_reason": "tidy"} | (
        {} if scope.pk else {"name": scope.name}
    )


def test_a_cycle_of_scopes_is_a_form_error(world: World, http: HttpClient) -> None:
    read, write = Scope.objects.get(name="memory:read"), Scope.objects.get(name="memory:write")
    for implied in (write, read):  # through another, and itself
        response = http.post(f"/admin/tools/scope/{read.pk}/change/", scope_form(read, implied))
        assert response.status_code == 200 and "cycle" in response.content.decode()
    assert not read.implies.exists()


def test_a_cycle_that_only_the_database_sees_is_a_form_error(
    world: World, http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools_admin, "_reaches", lambda *_: False)
    read, write = Scope.objects.get(name="memory:read"), Scope.objects.get(name="memory:write")
    response = http.post(f"/admin/tools/scope/{read.pk}/change/", scope_form(read, write))
    assert response.status_code == 200 and "would form a cycle" in response.content.decode()
    assert not read.implies.exists() and not connection.in_atomic_block


def test_a_scope_is_removed_only_while_nothing_uses_it(world: World, http: HttpClient) -> None:
    used, free = Scope.objects.get(name="memory:read"), Scope.objects.create(name="spare")
    response = http.post(f"/admin/tools/scope/{used.pk}/act/remove/", {"reason": "x"})
    assert response.status_code == 200 and "uses it" in response.content.decode()
    response = http.post(f"/admin/tools/scope/{free.pk}/act/remove/", {"reason": "unused"})
    assert (response.status_code, response["Location"]) == (302, "/admin/tools/scope/")
    assert not Scope.objects.filter(name="spare").exists()
    changer = member("carl", "tools.view_scope", "tools.change_scope")
    assert changer.post(f"/admin/tools/scope/{used.pk}/act/remove/", {"reason": "x"}).status_code == 403


@pytest.mark.parametrize("name", ["", "with space", 'quo"te', "a\x00b", "memory:read", "x" * 129])
def test_a_wrong_scope_is_a_form_error(world: World, http: HttpClient, name: str) -> None:
    response = http.post("/admin/tools/scope/add/", {"name": name, "change_reason": "x"})
    assert response.status_code == 200 and Scope.objects.count() == 2


def test_a_tool_is_approved_suspended_and_retired_with_a_reason(world: World, http: HttpClient) -> None:
    tool = Tool.objects.create(backend=world.backend, name="memory.list", access="read")
    tool.scopes.set(Scope.objects.filter(name="memory:read"))
    base = f"/admin/tools/tool/{tool.pk}/act"
    assert world.verify(tool="memory.list")["reason"] == "tool_suspended"
    assert http.post(f"{base}/approve/", {"reason": ""}).status_code == 200
    for action, expected in (
        ("approve", "granted"),
        ("suspend", "tool_suspended"),
        ("approve", "granted"),
        ("retire", "tool_suspended"),
    ):
        assert http.post(f"{base}/{action}/", {"reason": "because"}).status_code == 302
        assert world.verify(tool="memory.list")["reason"] == expected, action
    drained()


def test_a_tool_that_exists_is_a_form_error(world: World, http: HttpClient) -> None:
    data = {"backend": world.backend.pk, "name": "memory.recall", "access": "read", "change_reason": "x"}
    assert http.post("/admin/tools/tool/add/", data).status_code == 200
    assert http.post("/admin/tools/tool/add/", data | {"name": "a b"}).status_code == 200
    assert http.post("/admin/tools/tool/add/", data | {"name": "new", "access": "all"}).status_code == 200
    assert Tool.objects.count() == 2
