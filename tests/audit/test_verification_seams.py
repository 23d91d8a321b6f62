"""The verification follows a log that was closed and opened again: what was lost is accounted for, nothing else is."""

from typing import Any

import pytest

from audit import verification
from audit.models import Checkpoint, Head, Log
from muniment.findings import Finding
from tests.audit.sealers import altered, recorded, sealed
from tests.audit.test_seams import Loss, halted, loss, open_next  # noqa: F401 - a fixture


def findings(**options: Any) -> list[Finding]:
    """What is found, but for the policy: these decisions were made from none."""
    return [one for one in verification.verify(**options).findings if one.code != "policy-unexplained"]


@pytest.fixture
def reopened(loss: Loss) -> Loss:  # noqa: F811
    """A log whose end was lost, with records of the time in between, and its successor, sealed."""
    halted(loss.sealer, "rollback")
    recorded(40, 20)
    open_next(loss.sealer)
    recorded(60, 20)
    sealed(loss.sealer)
    return loss


def test_both_logs_hold_across_the_seam_and_the_report_says_what_was_lost(reopened: Loss) -> None:
    assert findings() == []
    report = verification.verify()
    assert report.records == Head.objects.get().next
    [told] = [note for note in report.notes if "closed" in note]
    assert f"{reopened.size - reopened.left:,} records" in told


def test_checkpoints_of_the_closed_log_still_count(reopened: Loss) -> None:
    last = Checkpoint.objects.filter(log=1).latest("size").note
    first = Checkpoint.objects.filter(log=1).earliest("size").note
    assert findings(checkpoints=[("mine", last), ("mine too", first)]) == []


def test_before_the_next_log_is_opened_the_loss_is_found(loss: Loss) -> None:  # noqa: F811
    note = (loss.sealer.directory.read() or pytest.fail("no state")).note
    codes = {one.code for one in findings(checkpoints=[("the sealer", note)])}
    assert "rollback" in codes


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        ("UPDATE audit_record SET statement = statement || ' ' WHERE index = 5", "record-changed"),
        ("DELETE FROM audit_record WHERE index = 5", "record-missing"),
        ("UPDATE audit_record SET statement = statement || ' ' WHERE index = {adopted}", "batch-root-differs"),
        ("DELETE FROM audit_record WHERE index = {adopted}", "record-missing"),
        ("UPDATE audit_record SET statement = statement || ' ' WHERE index = {start}", "seam-broken"),
        ("UPDATE audit_log SET start = start - 1 WHERE number = 2", "seam-broken"),
        ("UPDATE audit_tile SET hashes = decode(repeat('00', octet_length(hashes)), 'hex')"
         " WHERE log = 1 AND level = 0 AND index = 0", "tile-differs"),
        ("DELETE FROM audit_tile WHERE log = 1 AND level = 0 AND index > 0", "seam-broken"),
        ("DELETE FROM audit_log WHERE number = 2", "cut-off"),
    ],
    ids=["kept changed", "kept gone", "adopted changed", "adopted gone", "opening changed", "start moved",
         "old tile changed", "old tiles gone", "log 2 gone"],
)  # fmt: skip
def test_what_is_changed_on_either_side_is_found(reopened: Loss, attack: str, code: str) -> None:
    start = Log.objects.get(number=2).start
    altered(reopened.superuser, attack.format(adopted=start - 3, start=start))
    assert code in {one.code for one in findings()}
