"""Backend keys, scopes and tools in the admin."""

import re
from collections.abc import Callable
from html import unescape
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection
from django.test import Client as HttpClient
from django.utils import timezone

from clients.models import AccessRequest, Review
from clients.policyfile import parse
from clients.policyfile_apply import apply
from tests.staff import administrator, drained, member, newest
from tests.world import World, build
from tools.admin import scopes as scopes_admin
from tools.admin import tools as tools_admin
from tools.declarations import declare
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
    monkeypatch.setattr(scopes_admin, "_reaches", lambda *_: False)
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


def test_a_scope_that_staff_asked_for_or_reviewed_is_not_removed(world: World, http: HttpClient) -> None:
    asked, reviewed = Scope.objects.create(name="asked"), Scope.objects.create(name="reviewed")
    wish = AccessRequest.objects.create(effect="deny", days=9, asked_by="staff:7", lapses_at=timezone.now(), reason="r")
    wish.scopes.add(asked)
    review = Review.objects.create(scope=reviewed, started_by="staff:7", started_by_name="x", reason="r")
    for scope in (asked, reviewed):
        response = http.post(f"/admin/tools/scope/{scope.pk}/act/remove/", {"reason": "x"})
        assert response.status_code == 200 and "uses it" in response.content.decode()
    assert list(wish.scopes.all()) == [asked] and Review.objects.get() == review
    apply(parse("scopes: [{name: 'memory:read'}]"), "x", prune=True)
    assert Scope.objects.filter(name__in=["asked", "reviewed"]).count() == 2


def tool_form(tool: Tool, *scopes: str) -> dict[str, Any]:
    needed = [Scope.objects.get(name=name).pk for name in scopes]
    return {"description": "d", "access": tool.access, "scopes": needed, "change_reason": "less is enough"}


@pytest.mark.parametrize("sensitive", ["memory:write", "memory:read"])
def test_who_grants_does_not_take_what_is_sensitive_off_a_tool(world: World, sensitive: str) -> None:
    Scope.objects.filter(name=sensitive).update(sensitive=True)  # itself, or implied by it
    tool = Tool.objects.get(name="memory.capture")
    url = f"/admin/tools/tool/{tool.pk}/change/"
    manager = member("mike", "tools.view_tool", "tools.change_tool", "clients.add_grant")
    response = manager.post(url, tool_form(tool))
    assert response.status_code == 200 and "only who may change scopes" in response.content.decode()
    assert [scope.name for scope in tool.scopes.all()] == ["memory:write"]
    assert manager.post(url, tool_form(tool, "memory:write")).status_code == 302, "the rest can be edited"
    other = member("olga", "tools.view_tool", "tools.change_tool", "tools.change_scope")
    assert other.post(url, tool_form(tool)).status_code == 302 and not tool.scopes.exists()


def test_what_is_not_sensitive_may_be_taken_off_a_tool(world: World) -> None:
    tool = Tool.objects.get(name="memory.capture")
    manager = member("mike", "tools.view_tool", "tools.change_tool")
    assert manager.post(f"/admin/tools/tool/{tool.pk}/change/", tool_form(tool)).status_code == 302
    assert not tool.scopes.exists()


@pytest.mark.parametrize("name", ["", "with space", 'quo"te', "a\x00b", "memory:read", "x" * 129])
def test_a_wrong_scope_is_a_form_error(world: World, http: HttpClient, name: str) -> None:
    response = http.post("/admin/tools/scope/add/", {"name": name, "change_reason": "x"})
    assert response.status_code == 200 and Scope.objects.count() == 2


def hidden(page: str) -> dict[str, str]:
    """What the form of an action carries of what its page shows."""
    return dict(re.findall(r'name="(definition)" value="([0-9a-f]{64})"', page))


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
        page = http.get(f"{base}/{action}/").content.decode()
        assert http.post(f"{base}/{action}/", {"reason": "because"} | hidden(page)).status_code == 302
        assert world.verify(tool="memory.list")["reason"] == expected, action
    drained()


def test_a_tool_that_exists_is_a_form_error(world: World, http: HttpClient) -> None:
    data = {"backend": world.backend.pk, "name": "memory.recall", "access": "read", "change_reason": "x"}
    assert http.post("/admin/tools/tool/add/", data).status_code == 200
    assert http.post("/admin/tools/tool/add/", data | {"name": "a b"}).status_code == 200
    assert http.post("/admin/tools/tool/add/", data | {"name": "new", "access": "all"}).status_code == 200
    assert Tool.objects.count() == 2


# What is approved is what was read

HARMLESS = {
    "name": "notes.tidy",
    "access": "read",
    "scopes": ["memory:read"],
    "description": "Counts <b>notes</b>",
    "input_schema": {"type": "object", "properties": {"in": {"maxLength": 5}}},
}


def declared(world: World, **changes: Any) -> Tool:
    """The tool, as its backend declares it by now."""
    declare(world.backend.pk, world.backend.slug, [SimpleNamespace(**HARMLESS | changes)])
    return Tool.objects.get(name="notes.tidy")


def url(tool: Tool) -> str:
    return f"/admin/tools/tool/{tool.pk}/act/approve/"


CHANGES = [
    {"access": "destructive"},
    {"scopes": ["memory:read", "memory:write"]},
    {"scopes": []},
    {"description": "Counts"},
    {"input_schema": None},
    {"input_schema": {"type": "object", "properties": {"in": {"maxLength": 6}}}},
    {"access": "destructive", "scopes": ["memory:write"], "description": "Deletes notes"},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_a_tool_that_was_declared_anew_meanwhile_is_not_approved(
    world: World, http: HttpClient, changes: dict[str, Any]
) -> None:
    tool = declared(world)
    seen = hidden(http.get(url(tool)).content.decode())
    declared(world, **changes)
    response = http.post(url(tool), {"reason": "looks harmless"} | seen)
    page = response.content.decode()
    assert response.status_code == 200 and "The tool changed since the page was opened" in page
    assert Tool.objects.get(pk=tool.pk).status == "pending"
    assert "looks harmless" in page and hidden(page) != seen
    assert http.post(url(tool), {"reason": "read again"} | hidden(page)).status_code == 302
    assert Tool.objects.get(pk=tool.pk).status == "active"


def by_staff_access(tool: Tool) -> None:
    Tool.objects.filter(pk=tool.pk).update(access="destructive")


def by_staff_scopes(tool: Tool) -> None:
    tool.scopes.set(Scope.objects.filter(name="memory:write"))


@pytest.mark.parametrize("edit", [by_staff_access, by_staff_scopes])
def test_a_tool_that_staff_edited_meanwhile_is_not_approved(
    world: World, http: HttpClient, edit: Callable[[Tool], None]
) -> None:
    tool = declared(world)
    seen = hidden(http.get(url(tool)).content.decode())
    edit(tool)
    response = http.post(url(tool), {"reason": "x"} | seen)
    assert response.status_code == 200 and "changed since the page was opened" in response.content.decode()
    assert Tool.objects.get(pk=tool.pk).status == "pending"


def test_a_change_in_the_moment_of_approval_is_seen_under_the_lock(
    world: World, http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = declared(world)
    seen = hidden(http.get(url(tool)).content.decode())
    do = tools_admin.ToolAdmin._do

    def late(*given: Any) -> str:
        declared(world, access="destructive", description="Deletes everything")
        return do(*given)

    monkeypatch.setattr(tools_admin.ToolAdmin, "_do", late)
    page = http.post(url(tool), {"reason": "x"} | seen).content.decode()
    assert "changed since the page was opened" in page and "Deletes everything" in page
    assert Tool.objects.get(pk=tool.pk).status == "pending"


@pytest.mark.parametrize("sent", [{}, {"definition": ""}, {"definition": "0" * 64}, {"definition": "é\x00"}])
def test_nothing_is_approved_unseen(world: World, http: HttpClient, sent: dict[str, str]) -> None:
    tool = declared(world)
    assert http.post(url(tool), {"reason": "x"} | sent).status_code == 200
    assert Tool.objects.get(pk=tool.pk).status == "pending"


def test_what_is_approved_is_shown(world: World, http: HttpClient) -> None:
    tool = declared(world, access="destructive", description="Counts <b>notes</b> \u202eyltsenoh\u200b")
    page = http.get(url(tool)).content.decode()
    assert "Counts &lt;b&gt;notes&lt;/b&gt; \\u202eyltsenoh\\u200b" in page
    for shown in ("<dd>destructive</dd>", "<dd>memory:read</dd>", "<dt>Input schema</dt>"):
        assert shown in page
    for text in (page, http.get(f"/admin/tools/tool/{tool.pk}/change/").content.decode()):
        [schema] = re.findall(r"<pre[^>]*>(.*?)</pre>", text, re.DOTALL)
        assert '\n  "properties": {\n    "in": {\n      "maxLength": 5' in unescape(schema)
        assert "Counts &lt;b&gt;notes" in text and "destructive" in text and "memory:read" in text


def test_a_schema_is_no_markup(world: World, http: HttpClient) -> None:
    tool = declared(world, input_schema={"</pre><script>": "\u202e"})
    for page in (url(tool), f"/admin/tools/tool/{tool.pk}/change/"):
        text = http.get(page).content.decode()
        assert "&lt;/pre&gt;&lt;script&gt;" in text and "</pre><script>" not in text and "\u202e" not in text


def test_viewers_of_a_tool_see_what_it_is(world: World) -> None:
    tool = declared(world)
    text = member("vera", "tools.view_tool").get(f"/admin/tools/tool/{tool.pk}/change/").content.decode()
    for shown in ("Counts &lt;b&gt;notes", "maxLength", "memory:read", "read"):
        assert shown in text
    assert "none declared" not in text
