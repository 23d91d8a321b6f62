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
from django.utils import timezone

from audit import bundling
from audit.bundling import Wanted
from audit.models import DataKey, Head, Log, Outbox, Record
from audit.sealing import Sealer
from muniment import bundle
from muniment.bundle import Bundle, RecordLine
from muniment.keys import Trust
from muniment.report import Report
from muniment.verify import verify_file
from muniment.verify_heads import Held
from tests.audit.sealers import altered, recorded, sealed, sealing
from tests.audit.trees import cosigned
from tests.staff import drained, newest
from tests.world import World, build, token

LOG_KEY = Ed25519PrivateKey.generate()


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
        from audit.models import Checkpoint
        from muniment import notes

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
        from muniment import checkpoints

        log = Log.objects.get()
        note = checkpoints.sign(checkpoints.Checkpoint(log.origin, 10_000, bytes(32)), LOG_KEY)
        with pytest.raises(bundling.Refused, match="rollback"):
            made(Wanted(scene.began, scene.ended, held=(Held.parse("mine", note),)))

    @staticmethod
    def note() -> str:
        from audit.models import Checkpoint

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
        from audit.protection import keyring

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
