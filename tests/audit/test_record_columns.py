"""The columns `mode` and `scopes` repeat the statement: written with each call, filled in for older records, and a
record that says otherwise is found."""

import secrets
from datetime import timedelta
from importlib import import_module
from typing import Any

import psycopg
import pytest
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import search
from audit.entries import call_columns
from audit.live_records import differing
from audit.models import Record
from audit.viewer import Viewer
from tests.staff import statement
from tests.world import World, build
from tools.models import Scope, Tool

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
FILL = import_module("audit.migrations.0007_record_search").FILL


@pytest.fixture
def world(db: None) -> World:
    return build()


def test_a_call_has_its_mode_and_the_scopes_that_it_needed(world: World) -> None:
    world.verify(agent={"mode": "background"})
    record = Record.objects.get(type="decision")
    assert (record.mode, record.scopes) == ("background", "memory:read")
    assert differing(record, statement(record)) == []


def test_a_call_of_a_tool_that_needs_as_many_scopes_as_it_may_is_recorded_and_found_by_each(world: World) -> None:
    # Random, so that an index that compresses them has no room all the same.
    names = [secrets.token_hex(64) for _ in range(50)]
    tool = Tool.objects.create(backend=world.backend, name="memory.all", access="read", status="active")
    tool.scopes.set(Scope.objects.bulk_create(Scope(name=name) for name in names))
    assert world.verify(tool="memory.all")["reason"] == "insufficient_scope"
    assert world.verify()["reason"] == "granted"
    [record] = Record.objects.filter(tool="memory.all")
    assert set((record.scopes or "").split()) == set(names) and differing(record, statement(record)) == []
    viewer, now = Viewer("staff:1", "Mara", records=True), timezone.now()
    for scope, found in (*((name, [record.id]) for name in names), (names[0][:-1], []), ("memory:write", [])):
        query = search.Query(now - timedelta(hours=1), now + timedelta(hours=1), {"scopes": scope})
        assert [one.id for one in search.find(viewer, query).records] == found, scope


def test_what_is_no_call_has_neither(world: World) -> None:
    assert call_columns({"type": "policy"}) == (None, None)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["agent", "required", "type"]), JSON))
def test_whatever_a_statement_holds_is_read_without_failing(said: dict[str, Any]) -> None:
    mode, scopes = call_columns(said)
    assert mode is None or len(mode) <= 11
    assert scopes is None or isinstance(scopes, str)


def test_records_from_before_get_both_from_their_statements(world: World, superuser_url: str, owner_url: str) -> None:
    world.verify(agent={"mode": "subagent"})
    world.verify(tool="nope")
    world.verify()
    broken = Record.objects.filter(type="decision").latest("at")
    with psycopg.connect(superuser_url) as superuser:
        superuser.execute("SET session_replication_role = replica")
        superuser.execute("UPDATE audit_record SET mode = NULL, scopes = NULL")
        superuser.execute("UPDATE audit_record SET statement = '\\x00ff' WHERE at = %s", [broken.at])
    with psycopg.connect(owner_url) as owner:
        owner.execute(FILL)
    found = Record.objects.filter(type="decision").order_by("at").values_list("mode", "scopes")
    assert list(found) == [("subagent", "memory:read"), ("interactive", None), (None, None)]
    with psycopg.connect(owner_url) as owner, pytest.raises(psycopg.errors.InsufficientPrivilege):
        owner.execute("UPDATE audit_record SET mode = 'api'")
