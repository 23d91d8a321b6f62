"""The verification of the live log: what holds passes, what is given to it counts, and its runs are kept. The attacks
that it must find are in test_attacks.py."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connections
from django.test import Client as HttpClient

from audit import keys, verification, verification_runs
from audit.alerts import open_alerts
from audit.models import Checkpoint, Head, PublishedKey, Record, Verification
from audit.record_check import verify_record
from audit.sealing import Sealer
from muniment import checkpoints, notes
from muniment.keys import Trust, TrustError, thumbprint
from tests.audit.sealers import altered, sealed, sealing
from tests.staff import drained
from tests.world import World, build, token


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def sealer(world: World, tmp_path: Path) -> Iterator[Sealer]:
    with sealing(tmp_path / "seal") as made:
        for name in ("alice", "bob", "carol"):
            for _ in range(4):
                world.verify(token=token(name), request={"id": f"r-{name}", "ip": "203.0.113.7"})
        world.verify(token=None)
        sealed(made)
        yield made


def codes(report: verification.Report) -> list[tuple[str, int | None]]:
    return [(finding.code, finding.index) for finding in report.findings]


def own_keys(sealer: Sealer) -> Trust:
    writer = PublishedKey.objects.get(use="writer")
    return Trust(writers={writer.key_id: bytes(writer.public)}, logs={sealer.key_id: sealer.public})


def test_an_untouched_log_holds_and_every_record_was_looked_at(sealer: Sealer) -> None:
    report = verification.verify(trust=own_keys(sealer))
    assert report.findings == []
    assert report.records == report.size == Head.objects.get().next
    assert report.notes == []


def test_without_trusted_keys_those_of_the_logs_beginning_are_believed_and_that_is_said(sealer: Sealer) -> None:
    report = verification.verify()
    assert report.findings == []
    assert any("No trusted keys" in note for note in report.notes)


def test_what_is_not_sealed_yet_is_verified_by_its_write_batches(
    world: World, sealer: Sealer, superuser_url: str
) -> None:
    sealed_size = Head.objects.get().next
    world.verify()
    report = verification.verify()
    assert codes(report) == [] and report.records == report.size + 1
    altered(superuser_url, f"UPDATE audit_record SET statement = statement || ' ' WHERE index = {sealed_size}")
    assert ("batch-root-differs", sealed_size) in codes(verification.verify())


def test_keys_that_are_given_count_and_no_others(sealer: Sealer) -> None:
    stranger = keys.public_of(Ed25519PrivateKey.generate())
    trust = own_keys(sealer)
    trust.writers = {thumbprint(stranger): stranger}
    assert {code for code, _ in codes(verification.verify(trust=trust))} == {"batch-key-untrusted"}
    trust = own_keys(sealer)
    trust.logs = {thumbprint(stranger): stranger}
    assert {code for code, _ in codes(verification.verify(trust=trust))} == {"checkpoint-untrusted"}


def test_a_checkpoint_that_somebody_holds_must_be_of_this_log(world: World, sealer: Sealer) -> None:
    held = Checkpoint.objects.latest("size").note
    world.verify()
    sealed(sealer)
    assert codes(verification.verify(checkpoints=[("mine", held)])) == []
    origin, size = sealer.origin, Head.objects.get().next
    other = checkpoints.sign(checkpoints.Checkpoint(origin, 2, bytes(32)), sealer.private)
    assert codes(verification.verify(checkpoints=[("mine", other)])) == [("anchor-differs", 1)]
    fork = checkpoints.sign(checkpoints.Checkpoint(origin, size, bytes(32)), sealer.private)
    assert codes(verification.verify(checkpoints=[("mine", fork)])) == [("fork", size - 1)]
    longer = checkpoints.sign(checkpoints.Checkpoint(origin, size + 1, bytes(32)), sealer.private)
    assert codes(verification.verify(checkpoints=[("mine", longer)])) == [("rollback", size)]
    forged = checkpoints.sign(checkpoints.Checkpoint(origin, size + 1, bytes(32)), Ed25519PrivateKey.generate())
    assert codes(verification.verify(checkpoints=[("mine", forged)])) == [("checkpoint-untrusted", size)]


def test_since_looks_at_what_came_later_with_the_policy_of_the_time_before(
    world: World, sealer: Sealer, superuser_url: str
) -> None:
    moment, before = datetime.now(UTC), Head.objects.get().next
    world.verify()
    world.verify(token=token("dave"))
    sealed(sealer)
    report = verification.verify(since=moment)
    assert codes(report) == [] and report.records == Head.objects.get().next - before
    altered(
        superuser_url,
        f"UPDATE audit_record SET tool = 'x' WHERE index = {before + 1}",
        "UPDATE audit_record SET tool = 'x' WHERE index = 1",
    )
    assert codes(verification.verify(since=moment)) == [("column-differs", before + 1)]
    assert len(codes(verification.verify(since=moment - timedelta(days=9)))) == 2


def test_a_sample_finds_what_is_wrong_with_the_records_that_it_takes(sealer: Sealer, superuser_url: str) -> None:
    assert codes(verification_runs.sample(10_000)) == []
    size = Head.objects.get().next
    altered(
        superuser_url,
        f"UPDATE audit_record SET reason = 'x' WHERE index = {size - 3}",
        f"DELETE FROM audit_record WHERE index = {size - 5}",
    )
    assert codes(verification_runs.sample(10_000)) == [("record-missing", size - 5), ("column-differs", size - 3)]


def test_a_log_that_was_never_sealed_is_verified_by_its_batches(world: World) -> None:
    world.verify()
    report = verification.verify()
    assert codes(report) == [] and report.records > 0 and report.size == 0
    assert codes(verification_runs.sample(5)) == []


def test_an_empty_log_holds(db: None) -> None:
    assert verification.verify().findings == []


def test_a_run_is_kept_and_raises_an_alert_that_only_a_whole_run_ends(sealer: Sealer, superuser_url: str) -> None:
    altered(superuser_url, "UPDATE audit_record SET tool = 'x' WHERE index = 3")
    verification_runs.run_full()
    row = Verification.objects.get()
    assert (row.kind, row.count, row.findings[0]["code"], row.findings[0]["index"]) == ("full", 1, "column-differs", 3)
    assert row.ended_at and row.records
    assert [alert.kind for alert in open_alerts()] == ["verification-failed"]
    tool = json.loads(bytes(Record.objects.get(index=3).statement)).get("tool")
    altered(superuser_url, f"UPDATE audit_record SET tool = {f'$${tool}$$' if tool else 'NULL'} WHERE index = 3")
    verification_runs.run_sample()
    assert [alert.kind for alert in open_alerts()] == ["verification-failed"]
    verification_runs.run_full()
    assert open_alerts() == []
    drained()


def test_only_one_verification_runs_at_a_time(sealer: Sealer) -> None:
    with connections["owner"].cursor() as other:
        other.execute("SELECT pg_advisory_lock(%s)", [verification_runs.RUNNING])
        with pytest.raises(verification_runs.Busy):
            verification_runs.run("full", verification.verify)
        verification_runs.run_full()
        verification_runs.run_sample()
        other.execute("SELECT pg_advisory_unlock(%s)", [verification_runs.RUNNING])
    assert not Verification.objects.exists()
    verification_runs.run_sample()
    assert Verification.objects.get().kind == "sample"


def test_records_are_read_in_pages_whatever_the_size_of_the_log(sealer: Sealer, monkeypatch: Any) -> None:
    monkeypatch.setattr("audit.live_reading.AT_ONCE", 2)
    monkeypatch.setattr("audit.live_people.PAGE", 1)
    monkeypatch.setattr("audit.live_tree.PAGE", 1)
    assert verification.verify().findings == []


# --- the command ------------------------------------------------------------------------------------------------


def told(capsys: Any, *arguments: str) -> tuple[int, str]:
    """Exit status and output."""
    try:
        call_command("verify_log", *arguments)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    return status, capsys.readouterr().out


def test_the_command_says_that_everything_holds(sealer: Sealer, capsys: Any) -> None:
    status, out = told(capsys)
    assert status == 0 and "Everything holds" in out


def test_the_command_names_each_finding_in_a_line_and_ends_with_1(
    sealer: Sealer, superuser_url: str, capsys: Any
) -> None:
    altered(superuser_url, "DELETE FROM audit_record WHERE index = 7", "UPDATE audit_record SET tool='x' WHERE index=9")
    status, out = told(capsys)
    assert status == 1
    assert any(line.startswith("column-differs: record 9") for line in out.splitlines())
    assert any(line.startswith("record-missing: record 7 ") for line in out.splitlines())
    status, out = told(capsys, "--json")
    found = json.loads(out)
    assert status == 1 and not found["ok"] and {f["index"] for f in found["findings"]} >= {7, 9}
    status, out = told(capsys, "--sample", "100000")
    assert status == 1 and "record-missing: record 7 " in out


def test_the_command_takes_keys_and_checkpoints_from_files(sealer: Sealer, tmp_path: Path, capsys: Any) -> None:
    trust, note = tmp_path / "keys.json", tmp_path / "mine.checkpoint"
    trust.write_bytes(HttpClient().get("/v1/keys").content)
    note.write_text(Checkpoint.objects.latest("size").note)
    status, out = told(capsys, "--trust", str(trust), "--checkpoint", str(note), "--since", "2026-01-01")
    assert status == 0 and "No trusted keys" not in out


@pytest.mark.parametrize("arguments", [
    ["--trust", "gone"], ["--checkpoint", "gone"], ["--since", "yesterday"], ["--sample", "0"], ["--sample", "x"],
    ["--sample", "5", "--since", "2026-01-01"],
])  # fmt: skip
def test_what_cannot_be_used_is_one_line_and_2(
    db: None, arguments: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((CommandError, SystemExit)) as end:
        call_command("verify_log", *arguments)
    assert "\n" not in str(end.value)
    if isinstance(end.value, CommandError):
        assert getattr(end.value, "returncode", 2) in (1, 2)


def test_files_that_hold_no_keys_or_no_checkpoint_are_refused(sealer: Sealer, tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_text("no such thing\n")
    for option in ("--trust", "--checkpoint"):
        with pytest.raises(CommandError) as error:
            call_command("verify_log", option, str(junk))
        assert error.value.returncode == 2 and "\n" not in str(error.value)


def test_a_worker_without_keys_says_what_it_did_not_open(sealer: Sealer, settings: Any) -> None:
    settings.MUNIMENT_KEYS = {}
    report = verification.verify()
    assert report.findings == []
    assert any("not opened" in note for note in report.notes)


def test_the_nightly_run_trusts_the_keys_that_were_saved_at_the_beginning(
    sealer: Sealer, settings: Any, tmp_path: Path
) -> None:
    saved = tmp_path / "keys.json"
    saved.write_bytes(HttpClient().get("/v1/keys").content)
    settings.MUNIMENT_TRUST = str(saved)
    verification_runs.run_full()
    verification_runs.run_sample()
    assert [row.count for row in Verification.objects.all()] == [0, 0]
    stranger = keys.public_of(Ed25519PrivateKey.generate())
    lines = [notes.Key(f"x/{use}", notes.ED25519, stranger).vkey for use in ("log", "writer")]
    saved.write_text("\n".join(lines))
    verification_runs.run_full()
    found = Verification.objects.latest("id").findings
    assert {one["code"] for one in found} >= {"batch-key-untrusted", "checkpoint-untrusted"}
    saved.unlink()
    with pytest.raises(TrustError):
        verification_runs.run_full()
    assert [alert.kind for alert in open_alerts()] == ["verification-failed"]
    [finding] = verify_record(Record.objects.latest("index"))
    assert finding.code == "keys-untrusted"
