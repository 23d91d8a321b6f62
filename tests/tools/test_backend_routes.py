"""A backend's marks and routes: policy like any other, in the policy file, on the backend's page."""

import re
from pathlib import Path

import psycopg
import pytest
from django.db import connection

from audit.models import Head
from clients.policyfile import PolicyFileError, parse
from clients.policyfile_apply import apply, diff
from clients.policyfile_export import export
from governance.snapshot import snapshots
from muniment.policy import Replay
from tests.staff import administrator, drained, member, newest
from tests.world import World, build
from tools.models import Backend, BackendMark, Route
from tools.routes import segments_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
HEAD = 'backends: [{slug: inner, name: Inner, audiences: ["https://inner.example/mcp"], assertion_audiences: ["https://db.example"]'
FILE = (
    HEAD
    + """, may_search: true, enforces_mcp_name: true, routes: [
  {path: "/notes/*", methods: [POST, GET], tools: [memory.recall]},
  {path: /mcp, tools: [memory.recall, memory.capture]}, {path: /internal/**, tools: []}]}]
"""
)


@pytest.fixture
def world(db: None) -> World:
    return build()


def psql(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def tools(path: str, method: str = "GET") -> tuple[str, ...] | None:
    """What the newest snapshot says of a path."""
    backend = next(iter(snapshots.at_head().backends.values()))
    route = backend.routes.find(method, segments_of(path))
    return None if route is None else route.tools


@pytest.mark.parametrize("table", ["tools_route", "tools_backendmark"])
def test_a_change_by_psql_raises_the_version_becomes_a_record_and_is_what_is_decided_by(
    world: World, table: str
) -> None:
    assert tools("/mcp") is None
    before = Head.objects.get().policy
    if table == "tools_route":
        psql(
            "INSERT INTO tools_route (backend_id, path, methods, tools) "
            f"VALUES ({world.backend.pk}, '/mcp', '{{}}', '{{memory.recall}}')"
        )
    else:
        psql(f"INSERT INTO tools_backendmark (backend_id, mark) VALUES ({world.backend.pk}, 'may_search')")
    assert Head.objects.get().policy == before + 1
    world.verify()  # a web process records
    told = newest("policy")
    assert [(c["table"], c["op"]) for c in told["changes"]] == [(table, "insert")]
    [backend] = snapshots.at_head().backends.values()
    assert backend.may_search == (table == "tools_backendmark") and not backend.enforces_mcp_name
    assert tools("/mcp") == (("memory.recall",) if table == "tools_route" else None)
    psql(f"DELETE FROM {table}")
    assert Head.objects.get().policy == before + 2 and tools("/mcp") is None
    assert not next(iter(snapshots.at_head().backends.values())).may_search


def test_the_log_explains_the_policy_with_marks_and_routes(world: World) -> None:
    apply(parse(FILE), "test.yaml")
    world.verify()
    drained()
    from audit.models import Record
    from tests.staff import statement

    replay = Replay()
    for record in Record.objects.filter(type="policy").order_by("index"):
        replay.apply(statement(record))
    assert (replay.version, replay.digest()) == (snapshots.at_head().version, snapshots.at_head().digest)


@pytest.mark.parametrize("table", ["tools_route", "tools_backendmark"])
def test_truncate_is_refused_even_to_the_superuser(world: World, superuser_url: str, table: str) -> None:
    with psycopg.connect(superuser_url) as superuser, pytest.raises(psycopg.errors.InsufficientPrivilege):
        superuser.execute(f"TRUNCATE {table}")


@pytest.mark.parametrize(
    "values", ["'notes', '{}', '{}'", "'/a//b', '{}', '{}'", "'', '{}', '{}'", "'/**/a', '{}', '{}'",
               "'/a', '{get}', '{}'", "'/a', '{NULL}', '{}'", "'/a', '{{GET}}', '{}'", "'/a', '{{GET},{POST}}', '{}'",
               "'/a', '{}', '{NULL}'", "'/a', '{}', '{{a,b},{c,d}}'", f"'/a', '{{}}', '{{{','.join(['t'] * 51)}}}'"]
)  # fmt: skip
def test_what_is_no_route_is_refused_by_the_database(world: World, values: str) -> None:
    with pytest.raises(Exception, match="route_"):
        psql(f"INSERT INTO tools_route (backend_id, path, methods, tools) VALUES ({world.backend.pk}, {values})")


def test_a_tool_by_psql_that_cannot_be_one_closes_the_route(world: World) -> None:
    Route.objects.create(backend=world.backend, path="/**", tools=["memory.recall"])
    assert tools("/x") == ("memory.recall",)
    psql("UPDATE tools_route SET tools = '{memory.recall, \"a b\"}'")
    assert tools("/x") is None


def test_a_policy_file_makes_changes_and_takes_away(world: World) -> None:
    told = [str(change) for change in apply(parse(FILE), "test.yaml").changes]
    assert told == [
        "update backend inner: may_search", "update backend inner: enforces_mcp_name",
        "update backend inner: GET POST /notes/* is memory.recall",
        "update backend inner: /mcp is memory.recall memory.capture",
        "update backend inner: /internal/** is closed",
    ]  # fmt: skip
    assert tools("/mcp") == ("memory.recall", "memory.capture") and tools("/internal/x") is None
    assert apply(parse(FILE), "test.yaml").changes == [] and diff(parse(export()), "x").changes == []
    assert "may_search: true" in export() and "path: /internal/**\n    tools: []" in export()
    apply(parse(FILE.replace("[memory.recall, memory.capture]", "[memory.recall]")), "x")
    assert tools("/mcp") == ("memory.recall",)
    assert apply(parse("tools: []"), "x").changes == [] and Route.objects.count() == 3  # not this file's business
    told = [str(change) for change in apply(parse(HEAD + "}]"), "x").changes]
    assert len(told) == 5 and "update backend inner: no longer has the route /mcp" in told
    assert not Route.objects.exists() and not BackendMark.objects.exists()
    assert "routes" not in export() and "may_search" not in export()


def test_a_policy_file_says_where_a_route_is_wrong(world: World) -> None:
    for route, problem in [
        ("{path: notes, tools: []}", "backends[0].routes[0].path: must be a path such as"),
        ("{path: /a}", "backends[].routes[0]: has missing required field 'tools'".replace("has missing", "misses")),
        ("{path: /a, tools: [], methods: [get]}", "Invalid enum value 'get'"),
        ("{path: /a, tools: [a b]}", "routes[0].tools[0]"),
        ("{path: /a, tools: [], method: GET}", "unknown field"),
        ("{path: /a, tools: []}, {path: /a, tools: [x]}", "backends[0].routes[1]: /a is given twice"),
    ]:
        with pytest.raises(PolicyFileError) as refused:
            parse(HEAD + f", routes: [{route}]}}]")
        assert problem in str(refused.value) or problem.split(":")[-1].strip() in str(refused.value), str(refused.value)


@pytest.mark.parametrize("page", ["configuration.md", "integrations/forward-auth.md"])
def test_the_routes_that_the_documents_show_are_taken(world: World, page: str) -> None:
    [shown] = re.findall(r"```yaml\n(backends:.*?)```", (DOCS / page).read_text(), re.S)
    result = apply(parse(shown), page)
    assert result.notices == [] and Route.objects.count() == 3
    assert tools("/mcp", "POST") == ("memory.capture", "memory.recall")


def test_a_route_to_a_tool_that_there_is_not_is_said(world: World) -> None:
    found = apply(parse(HEAD + ", routes: [{path: /a, tools: [memory.forget, memory.recall]}]}]"), "x")
    assert found.notices == ["a route of inner names memory.forget, which it does not offer: that is refused"]


def test_staff_edit_them_on_the_page_of_the_backend(world: World) -> None:
    http = administrator()
    url = f"/admin/tools/backend/{world.backend.pk}/change/"
    form = {
        "slug": "inner", "name": "Inner", "audiences": "https://inner.example/mcp", "accepts_every_issuer": "on",
        "assertion_audiences": "https://db.example", "enforces_mcp_name": "on", "change_reason": "a proxy in front",
        "accepted_issuers-TOTAL_FORMS": "0", "accepted_issuers-INITIAL_FORMS": "0",
        "routes-TOTAL_FORMS": "1", "routes-INITIAL_FORMS": "0", "routes-0-path": "/mcp",
        "routes-0-methods": "POST\nGET", "routes-0-tools": "memory.recall\nmemory.capture",
    }  # fmt: skip
    for name, wrong in [
        ("path", "mcp"),
        ("methods", "get"),
        ("tools", "a b"),
        ("tools", "\n".join("abc" + str(n) for n in range(51))),
    ]:
        assert http.post(url, form | {f"routes-0-{name}": wrong}).status_code == 200
    assert not Route.objects.exists()
    assert http.post(url, form).status_code == 302
    route = Route.objects.get()
    assert (route.path, route.methods, route.tools) == ("/mcp", ["GET", "POST"], ["memory.recall", "memory.capture"])
    told = newest("policy")
    assert {(c["table"], c["op"]) for c in told["changes"]} == {
        ("tools_route", "insert"),
        ("tools_backendmark", "insert"),
    }
    assert told["actor"] == "staff:1"
    page = http.get(url).content.decode()
    assert 'id="id_enforces_mcp_name" checked' in page and "memory.recall\nmemory.capture" in page
    gone = form | {"routes-INITIAL_FORMS": "1", "routes-0-id": str(route.pk), "routes-0-DELETE": "on"}
    gone |= {"routes-0-backend": str(world.backend.pk)}
    assert http.post(url, {k: v for k, v in gone.items() if k != "enforces_mcp_name"}).status_code == 302
    assert not Route.objects.exists() and not BackendMark.objects.exists()


def test_who_may_only_look_sees_them_and_changes_nothing(world: World) -> None:
    Route.objects.create(backend=world.backend, path="/mcp", tools=["memory.recall"])
    BackendMark.objects.create(backend=world.backend, mark="may_search")
    http = member("vera", "tools.view_backend")
    url = f"/admin/tools/backend/{world.backend.pk}/change/"
    page = http.get(url).content.decode()
    assert "/mcp" in page and "memory.recall" in page and "May search" in page and "change_reason" not in page
    assert http.post(url, {"change_reason": "x"}).status_code == 403
    assert Backend.objects.get().routes.count() == 1
