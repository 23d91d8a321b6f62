"""What staff do becomes a record: who and what in the statement, names and reasons protected beside it."""

import pytest

from audit import staff_log
from audit.models import DataKey, Outbox, Record
from tests.staff import drained, newest


def test_what_was_told_is_recorded_with_its_actor_and_without_names(db: None) -> None:
    staff_log.tell("staff:7", "Łukasz Ελένη", "person.lookup", by="email", found=1, subject="usr_x", left_out=None)
    said = newest("staff")
    assert (said["actor"], said["action"], said["by"], said["found"]) == ("staff:7", "person.lookup", "email", 1)
    assert said["subject"] == "usr_x" and "left_out" not in said
    record = Record.objects.get(type="staff")
    assert (record.subject, record.holder) == ("usr_x", "staff:7")
    assert DataKey.objects.filter(holder="staff:7").exists()
    assert "Łukasz" not in bytes(record.statement).decode() and len(said["_sd"]) == 1
    assert Outbox.objects.get(kind="staff").private is None, "cleared once it is in the log"


@pytest.mark.parametrize("kind", ["request", "review"])
def test_requests_and_reviews_are_records_of_their_own_type(db: None, kind: str) -> None:
    staff_log.tell("staff:7", "Mara", "made", {"reason": "pilot"}, kind=kind, number=3)
    said = newest(kind)
    assert (said["type"], said["action"], said["number"]) == (kind, "made", 3)
    assert len(said["_sd"]) == 2 and "pilot" not in str(said)


@pytest.mark.parametrize("kind", ["decision", "policy", "outcome", "notice", "anything"])
def test_staff_cannot_make_up_records_of_another_type(db: None, kind: str) -> None:
    with pytest.raises(ValueError, match="not a kind"):
        staff_log.tell("staff:7", "Mara", "made", kind=kind)
    drained()
    assert not Record.objects.exclude(type="key").exists()
