"""Bundles of a real log: made by the command, verified by the installed `muniment`, which knows nothing of the
platform; what was changed in the database shows."""

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.core.management import CommandError, call_command
from django.utils import timezone

from audit import bundling
from audit.bundling import Wanted
from audit.models import Batch, Checkpoint, DataKey, Head, Log, Outbox, Record
from audit.protection import keyring
from audit.sealing import Sealer
from muniment import bundle, checkpoints, notes
from muniment.bundle import Bundle, RecordLine
from muniment.keys import Trust
from muniment.report import Report
from muniment.verify import verify_file
from muniment.verify_heads import Held
from tests.audit.sealers import altered, recorded, sealed, sealing
from tests.audit.test_seams import boundary, open_next, put_back
from tests.audit.trees import cosigned
from tests.staff import drained, newest
from tests.world import World, build, token

LOG_KEY = Ed25519PrivateKey.generate()
REQUEST = {"type": "request"}  # decided from no policy


@dataclass
class Scene:
    """A sealed log with decisions of two users."""

    world: World
    sealer: Sealer
    began: datetime
    ended: datetime

    def trust(self) -> Trust:
        """The keys as the platform publishes them."""
        return Trust.parse(self.world.http.get("/v1/keys").content.decode())


@pytest.fixture
def scene(db: None, tmp_path: Path) -> Iterator[Scene]:
    world = build()
    drained()
    first = Record.objects.latest("at").at + timedelta(microseconds=1)
    for sub in ("alice", "bob", "alice"):
        world.verify(token=token(sub))
    world.verify("memory.capture", token=token("bob"))
    record = world.verify(token=token("alice"))["record"]
    outcome = world.post(f"/v1/records/{record}/outcome", {"status": "ok", "resources": [{"type": "m", "id": "7"}]})
    assert outcome.status_code == 201
    ended = Record.objects.latest("at").at + timedelta(microseconds=1)
    world.verify(token=token("bob"))
    with sealing(tmp_path / "seal", LOG_KEY) as sealer:
        sealed(sealer)
        yield Scene(world, sealer, first, ended)


def made(wanted: Wanted) -> io.BytesIO:
    file = io.BytesIO()
    bundling.write(file, wanted)
    return file


def verified(
    scene: Scene, wanted: Wanted, *held: Held, since: datetime | None = None, until: datetime | None = None
) -> Report:
    times = [None if at is None else (at - bundle.EPOCH) // timedelta(microseconds=1) for at in (since, until)]
    return verify_file(made(wanted), scene.trust(), held, *times)


def codes(report: Report) -> list[str]:
    return [one.code for one in report.findings]


def opened(file: io.BytesIO) -> list[dict[str, Any]]:
    with Bundle(file) as found:
        return [json.loads(line.data) for line in found.lines(bundle.RECORDS, RecordLine) if line.data]


def uid(sub: str) -> str:
    alice = Record.objects.filter(type="decision").order_by("index").values_list("subject", flat=True)
    return str(alice[0 if sub == "alice" else 1])


class TestAnUntouchedLog:
    def test_a_bundle_of_a_range_verifies(self, scene: Scene) -> None:
        report = verified(scene, Wanted(scene.began, scene.ended))
        assert not report.findings
        facts = report.facts
        assert (facts.allowed, facts.denied, facts.matching) == (4, 1, 6)
        assert not facts.until_end
        assert facts.records < Head.objects.get().next

    def test_the_whole_log_verifies(self, scene: Scene) -> None:
        report = verified(scene, Wanted(datetime(2020, 1, 1, tzinfo=UTC), timezone.now()))
        assert not report.findings
        assert (report.facts.first, report.facts.last) == (0, Head.objects.get().next - 1)
        assert report.facts.until_end
        assert not report.facts.closed

    def test_a_bundle_of_one_record_verifies(self, scene: Scene) -> None:
        for record in Record.objects.all():
            file = io.BytesIO()
            bundling.write_record(file, record)
            assert not verify_file(file, scene.trust()).findings
            assert str(record.id) in {said["id"] for said in opened(file)}

    def test_only_what_was_asked_for_is_open_with_outcomes_neighbours_and_what_judges(self, scene: Scene) -> None:
        wanted = Wanted(scene.began, scene.ended, subject=uid("alice"))
        report = verified(scene, wanted)
        assert not report.findings
        assert (report.facts.matching, report.facts.closed) == (4, 2)
        others = [said for said in opened(made(wanted)) if said.get("subject") not in (None, uid("alice"))]
        assert len(others) <= 1, "the neighbour behind the range"

    def test_a_client_that_nobody_used_has_nothing_open(self, scene: Scene) -> None:
        report = verified(scene, Wanted(scene.began, scene.ended, client="nobody"))
        assert not report.findings
        assert not report.facts.matching

    def test_a_cosigned_checkpoint_is_preferred_and_its_witness_counted(self, scene: Scene) -> None:
        witness = Ed25519PrivateKey.generate()
        row = Checkpoint.objects.latest("size")
        cosigned(row, witness)
        recorded(30)
        sealed(scene.sealer)
        trust = scene.trust()
        key = notes.Key("witness.example", notes.COSIGNATURE, witness.public_key().public_bytes_raw())
        trust.witnesses[key.vkey] = key
        facts = verify_file(made(Wanted(scene.began, scene.ended)), trust).facts
        assert [one.size for one in facts.logs] == [row.size]
        assert [(one.witness, one.size) for one in facts.cosigned] == [("witness.example", row.size)]

    def test_a_policy_whose_record_is_still_to_come_is_no_fault(self, scene: Scene) -> None:
        """The range then reaches to the end of what is sealed, so that nothing can have been left out."""
        for reason in ("one", "two", "three"):
            scene.world.grant.reason = reason
            scene.world.grant.save()
            record = Record.objects.get(id=scene.world.verify()["record"])
            scene.sealer.step()
            file = io.BytesIO()
            bundling.write_record(file, record)
            report = verify_file(file, scene.trust())
            assert not report.findings

    def test_what_is_not_sealed_yet_is_refused(self, scene: Scene) -> None:
        recorded(1)
        with pytest.raises(bundling.Refused, match="not sealed yet"):
            made(Wanted(scene.began, timezone.now()))


class TestCheckpointsThatSomebodyHolds:
    def test_a_bundle_made_with_it_can_be_compared(self, scene: Scene) -> None:
        note = self.note()
        recorded(20)
        sealed(scene.sealer)
        held = Held.parse("mine", note)
        wanted = Wanted(scene.began, scene.ended, held=(held,))
        assert not verified(scene, wanted, held).findings
        assert codes(verified(scene, Wanted(scene.began, scene.ended), held)) == ["checkpoint-incomparable"]

    def test_a_log_that_is_shorter_than_it_is_refused(self, scene: Scene) -> None:
        log = Log.objects.get()
        note = checkpoints.sign(checkpoints.Checkpoint(log.origin, 10_000, bytes(32)), LOG_KEY)
        with pytest.raises(bundling.Refused, match="rollback"):
            made(Wanted(scene.began, scene.ended, held=(Held.parse("mine", note),)))

    @staticmethod
    def note() -> str:
        return Checkpoint.objects.latest("size").note


class TestProtectedDetails:
    def test_they_are_shown_on_demand_and_that_is_recorded_first(self, scene: Scene) -> None:
        wanted = Wanted(scene.began, scene.ended, subject=uid("alice"), disclose=True, reason="audit 7")
        file = made(wanted)
        report = verify_file(file, scene.trust())
        assert not report.findings
        assert report.facts.disclosed == 4
        with zipfile.ZipFile(file) as archive:
            text = archive.read(bundle.DISCLOSURES)
        assert text.count(b"\n") == 4
        said = newest("staff")
        assert said["action"] == "bundle.disclosed"
        assert said["disclosed"] == 4
        assert "audit 7" not in json.dumps(said)

    def test_without_a_reason_it_is_refused(self, scene: Scene) -> None:
        with pytest.raises(bundling.Refused, match="say why"):
            Wanted(scene.began, scene.ended, disclose=True)

    def test_a_stripped_one_is_missing_and_a_swapped_one_too(self, scene: Scene, superuser_url: str) -> None:
        one, two = Record.objects.filter(type="decision", subject=uid("alice")).order_by("index")[:2]
        altered(
            superuser_url,
            f"UPDATE audit_record SET disclosures = NULL WHERE index = {one.index}",
            "UPDATE audit_record SET disclosures ="
            f" (SELECT disclosures FROM audit_record WHERE index = {one.index + 1}) WHERE index = {two.index}",
        )
        wanted = Wanted(scene.began, scene.ended, disclose=True, reason="audit 7")
        report = verified(scene, wanted)
        assert [(f.code, f.index) for f in report.findings] == [
            ("disclosure-missing", one.index), ("disclosure-missing", two.index)
        ]  # fmt: skip

    def test_a_key_that_is_gone_without_an_erasure_record_is_found(self, scene: Scene, superuser_url: str) -> None:
        altered(superuser_url, f"DELETE FROM audit_datakey WHERE holder = '{uid('alice')}'")
        keyring.clear()
        wanted = Wanted(scene.began, scene.ended, disclose=True, reason="audit 7")
        assert codes(verified(scene, wanted)) == ["key-destroyed"]
        assert not DataKey.objects.filter(holder=uid("alice")).exists()


class TestWhatWasChangedInTheDatabase:
    def test_one_letter_of_a_record_shows_even_where_it_was_not_asked_for(
        self, scene: Scene, superuser_url: str
    ) -> None:
        record = Record.objects.filter(type="decision", subject=uid("bob")).earliest("index")
        altered(
            superuser_url,
            "UPDATE audit_record SET statement ="
            " convert_to(replace(convert_from(statement, 'UTF8'), 'recall', 'recalk'), 'UTF8')"
            f" WHERE index = {record.index}",
        )
        for wanted in (Wanted(scene.began, scene.ended), Wanted(scene.began, scene.ended, subject=uid("alice"))):
            report = verified(scene, wanted)
            assert [(f.code, f.index) for f in report.findings] == [("record-changed", record.index)]

    def test_a_deleted_record_without_a_retention_record_is_missing(self, scene: Scene, superuser_url: str) -> None:
        record = Record.objects.filter(type="decision").order_by("index")[1]
        altered(superuser_url, f"DELETE FROM audit_record WHERE index = {record.index}")
        report = verified(scene, Wanted(scene.began, scene.ended))
        assert [(f.code, f.index) for f in report.findings] == [("record-missing", record.index)]

    def test_one_that_a_retention_record_accounts_for_is_not(self, scene: Scene, superuser_url: str) -> None:
        record = Record.objects.filter(type="decision").order_by("index")[1]
        said = {"type": "retention", "action": "deleted", "ranges": [[record.index, 1]]}
        members = {name: value for name, value in said.items() if name != "type"}
        Outbox.objects.create(kind="retention", members=members, at=timezone.now(), actor="system", xact="")
        sealed(scene.sealer)
        altered(superuser_url, f"DELETE FROM audit_record WHERE index = {record.index}")
        report = verified(scene, Wanted(scene.began, scene.ended))
        assert not report.findings
        assert report.facts.deleted == 1

    def test_a_statement_that_is_no_text_any_more_shows(self, scene: Scene, superuser_url: str) -> None:
        record = Record.objects.filter(type="decision").earliest("index")
        altered(superuser_url, rf"UPDATE audit_record SET statement = '\xff00' WHERE index = {record.index}")
        assert codes(verified(scene, Wanted(scene.began, scene.ended))) == ["record-changed"]

    def test_tiles_that_are_gone_are_said_in_one_line(self, scene: Scene, superuser_url: str) -> None:
        altered(superuser_url, "DELETE FROM audit_tile")
        with pytest.raises(bundling.Refused, match="cannot be read"):
            made(Wanted(scene.began, scene.ended))


class TestAfterALoss:
    """Log 1 lost its end and was closed; log 2 took over what was recorded between."""

    @pytest.fixture
    def trust(self, db: None, tmp_path: Path, superuser_url: str) -> Iterator[Trust]:
        world = build()
        with sealing(tmp_path, LOG_KEY, page=100) as one:
            recorded(60, 20, said=REQUEST)
            sealed(one)
            left = boundary(40)
            recorded(60, 20, said=REQUEST)
            sealed(one)
            put_back(superuser_url, left)
            recorded(20, 10, said=REQUEST)
            open_next(one)
            recorded(30, 10, said=REQUEST)
            sealed(one)
            yield Trust.parse(world.http.get("/v1/keys").content.decode())

    @staticmethod
    def around(first: int, last: int) -> Wanted:
        low, high = Record.objects.get(index=first).at, Record.objects.get(index=last).at
        return Wanted(low, high + timedelta(microseconds=1))

    def test_everything_verifies_across_the_seam(self, trust: Trust) -> None:
        start = Log.objects.get(number=2).start
        report = verify_file(made(self.around(1, start + 20)), trust)
        assert not report.findings
        assert [one.origin for one in report.facts.logs] == [log.origin for log in Log.objects.order_by("number")]

    @pytest.mark.parametrize("place", ["before", "adopted", "after", "across"])
    def test_ranges_on_either_side_verify(self, trust: Trust, place: str) -> None:
        start = Log.objects.get(number=2).start
        ends = {"before": (3, 5), "adopted": (start - 5, start - 3), "after": (start + 15, start + 17),
                "across": (start - 2, start + 2)}  # fmt: skip
        report = verify_file(made(self.around(*ends[place])), trust)
        assert not report.findings

    def test_the_closed_logs_checkpoint_leads_on_and_one_it_never_signed_does_not(self, trust: Trust) -> None:
        row = Checkpoint.objects.filter(log=1).latest("size")
        origin = Log.objects.get(number=1).origin
        forged = checkpoints.sign(checkpoints.Checkpoint(origin, row.size, bytes(32)), LOG_KEY)
        for note, expected in ((row.note, []), (forged, ["fork"])):
            held = Held.parse("mine", note)
            start = Log.objects.get(number=2).start
            wanted = self.around(start - 5, start + 5)
            file = made(Wanted(wanted.since, wanted.until, held=(held,)))
            assert codes(verify_file(file, trust, [held])) == expected

    def test_an_adopted_record_that_is_changed_later_shows(self, trust: Trust, superuser_url: str) -> None:
        index = Log.objects.get(number=2).start - 3
        altered(
            superuser_url,
            "UPDATE audit_record SET statement = convert_to(replace(convert_from(statement, 'UTF8'), 'recall',"
            f" 'recalk'), 'UTF8') WHERE index = {index}",
        )
        found = codes(verify_file(made(self.around(index, index)), trust))
        assert found == ["batch-root-differs", "seam-broken"]


class TestTheCommand:
    @staticmethod
    def run(*arguments: object) -> tuple[int, str]:
        out = io.StringIO()
        try:
            call_command("bundle", *map(str, arguments), stdout=out)
        except CommandError as error:
            return error.returncode, str(error)
        return 0, out.getvalue()

    def test_it_writes_a_bundle_for_its_owner_alone(self, scene: Scene, tmp_path: Path) -> None:
        out = tmp_path / "out.zip"
        times = ("--from", scene.began.isoformat(), "--to", scene.ended.isoformat())
        status, words = self.run(*times, "--subject", uid("alice"), out)
        assert (status, "8 open" in words or "open" in words) == (0, True)
        assert out.stat().st_mode & 0o777 == 0o600
        with out.open("rb") as file:
            assert not verify_file(file, scene.trust()).findings
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zip", "seal"]
        with zipfile.ZipFile(out) as archive:
            page = archive.read(bundle.README).decode()
        assert uid("alice") in page
        assert "{" not in page
        assert max(map(len, page.splitlines())) <= 120

    def test_it_compares_with_a_checkpoint_that_the_auditor_keeps(self, scene: Scene, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text(Checkpoint.objects.earliest("size").note)
        times = ("--from", scene.began.isoformat(), "--to", scene.ended.isoformat())
        assert self.run(*times, "--checkpoint", tmp_path / "mine.txt", tmp_path / "out.zip")[0] == 0
        held = Held.parse("mine.txt", (tmp_path / "mine.txt").read_text())
        with (tmp_path / "out.zip").open("rb") as file:
            assert verify_file(file, scene.trust(), [held]).facts.compared == 1

    def test_disclosing_needs_a_reason(self, scene: Scene, tmp_path: Path) -> None:
        times = ("--from", scene.began.isoformat(), "--to", scene.ended.isoformat())
        assert self.run(*times, "--disclose", tmp_path / "out.zip")[0] == 2
        assert self.run(*times, "--disclose", "--reason", "audit 7", tmp_path / "out.zip")[0] == 0
        assert Outbox.objects.filter(kind="staff").count() == 1

    @pytest.mark.parametrize(
        "arguments",
        [("--from", "yesterday", "--to", "2026-01-01"), ("--from", "2026-01-02", "--to", "2026-01-01"),
         ("--from", "2026-01-01", "--to", "9998-01-01"), ("--from", "2026-01-01T00:00:00", "--to", "2026-01-02"),
         ("--from", "2026-01-01", "--to", "2026-01-02", "--checkpoint", "/does/not/exist"),
         ("--from", "2026-01-01", "--to", "2026-01-02", "--checkpoint", "/etc/hostname")],
    )  # fmt: skip
    def test_bad_input_is_2_in_one_line_and_writes_nothing(
        self, scene: Scene, tmp_path: Path, arguments: tuple[str, ...]
    ) -> None:
        status, words = self.run(*arguments, tmp_path / "out.zip")
        assert status == 2
        assert "\n" not in words
        assert not (tmp_path / "out.zip").exists()

    def test_a_place_that_cannot_be_written_is_2(self, scene: Scene, tmp_path: Path) -> None:
        times = ("--from", scene.began.isoformat(), "--to", scene.ended.isoformat())
        assert self.run(*times, tmp_path / "no" / "out.zip")[0] == 2

    def test_what_is_not_sealed_yet_is_1_and_writes_nothing(self, scene: Scene, tmp_path: Path) -> None:
        recorded(1)
        until = timezone.now().isoformat()
        status, words = self.run("--from", scene.began.isoformat(), "--to", until, tmp_path / "out.zip")
        assert (status, "not sealed yet" in words) == (1, True)
        assert [path.name for path in tmp_path.iterdir()] == ["seal"]

    def test_an_empty_log_is_1(self, db: None, tmp_path: Path) -> None:
        assert not Batch.objects.exists()
        status, words = self.run("--from", "2026-01-01", "--to", "2026-01-02", tmp_path / "out.zip")
        assert (status, words) == (1, "nothing is sealed yet")
