"""The columns `mode` and `scopes` repeat the statement: written with each call, filled in for older records, and a
record that says otherwise is found."""

from importlib import import_module
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.entries import call_columns
from audit.live_records import differing
from audit.models import Record
from tests.staff import statement
from tests.world import World, build

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
