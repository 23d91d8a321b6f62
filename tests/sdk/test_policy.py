"""The policy replayed from its records: what adds up, and what does not."""

from typing import Any

import pytest

from muniment.policy import PolicyFault, Replay, digest_of

Change = dict[str, Any]


def change(key: int, old: Any, new: Any, table: str = "clients_grant") -> Change:
    return {"table": table, "op": "update", "key": str(key), "old": old, "new": new}


def said(version: int, *changes: Change, part: int = 1, parts: int = 1) -> dict[str, Any]:
    policy = {"version": version, "digest": None}
    return {"type": "policy", "policy": policy, "part": part, "parts": parts, "changes": list(changes)}


def grant(key: int, **more: Any) -> dict[str, Any]:
    return {"id": key, "effect": "allow"} | more


@pytest.fixture
def replay() -> Replay:
    found = Replay()
    found.apply(said(1, change(1, None, grant(1)), change(2, None, grant(2))))
    return found


def test_the_digest_is_that_of_the_tables_whatever_the_order_of_their_rows(replay: Replay) -> None:
    assert replay.version == 1
    assert replay.digest() == digest_of({"clients_grant": [grant(2), grant(1)]})
    assert replay.digest() != digest_of({"clients_grant": [grant(1)]})


def test_a_row_can_change_and_go_and_a_table_without_rows_counts_as_none(replay: Replay) -> None:
    replay.apply(said(2, change(1, grant(1), grant(1, effect="deny"))))
    assert replay.digest() == digest_of({"clients_grant": [grant(1, effect="deny"), grant(2)]})
    replay.apply(said(3, change(1, grant(1, effect="deny"), None), change(2, grant(2), None)))
    assert replay.digest() == digest_of({}) == digest_of({"clients_grant": []})


def test_a_version_in_parts_counts_only_when_its_last_part_came(replay: Replay) -> None:
    replay.apply(said(2, change(3, None, grant(3)), part=1, parts=2))
    assert replay.version == 1
    replay.apply(said(2, change(4, None, grant(4)), part=2, parts=2))
    assert replay.version == 2
    assert replay.digest() == digest_of({"clients_grant": [grant(n) for n in (1, 2, 3, 4)]})


@pytest.mark.parametrize(
    "wrong",
    [
        said(3, change(1, grant(1), None)),
        said(1, change(1, grant(1), None)),
        said(2, change(1, grant(1), None), part=2, parts=2),
        said(2, change(1, grant(7), None)),
        said(2, change(9, grant(9), None)),
        said(2, change(1, None, grant(1))),
        said(2, {"table": "clients_grant"}),
        said(2, change(1, grant(1), "text")),
        said(2, change(1, grant(1), {"no": "id"})),
        {"type": "policy", "policy": {"version": 2}},
        {"type": "policy", "policy": None, "part": 1, "parts": 1, "changes": []},
        said(2) | {"changes": 7},
    ],
    ids=["version left out", "version again", "part left out", "other old value", "unknown row", "row that is there",
         "no change", "not a row", "no id", "no changes", "no version", "changes are none"],
)  # fmt: skip
def test_what_does_not_follow_is_refused_without_its_values(replay: Replay, wrong: dict[str, Any]) -> None:
    with pytest.raises(PolicyFault) as fault:
        replay.apply(wrong)
    assert "allow" not in str(fault.value)


def test_after_a_row_too_large_for_a_record_nothing_is_claimed_of_the_digest(replay: Replay) -> None:
    replay.apply(said(2, {"table": "clients_grant", "op": "update", "key": "1", "old_sha256": "a", "new_sha256": "b"}))
    assert replay.version == 2
    assert replay.digest() is None
    replay.apply(said(3, change(1, grant(5), None)))  # what its old value was is not known any more
    assert replay.digest() is None
