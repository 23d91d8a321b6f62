"""Bundles: an honest one verifies; each thing that can be done to one has its finding; what is none is said."""

import io
import random
import struct
import tracemalloc
import zipfile
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from muniment import bundle, checkpoints, disclosures, merkle, notes, verify
from muniment.bundle import BatchLine, CheckpointLine, DisclosureLine, RecordLine, text_of, time_of
from muniment.keys import Trust, introduce
from tests.sdk.bundles import ORIGIN, Log, Parts, at, codes, held, public_of, verified

LOG = Log.lived()
SINCE, UNTIL = 10, 30  # records 8 and 30 are neighbours; the range is 7 to 30
WITNESS = Ed25519PrivateKey.generate()
WITNESS_KEY = notes.Key("witness.example", notes.COSIGNATURE, public_of(WITNESS))


def parts(**options: Any) -> Parts:
    return LOG.parts(SINCE, UNTIL, **options)


def said(line: RecordLine) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(line.data or b"{}")
    return found


def change(line: RecordLine) -> None:
    """One letter of what is open."""
    assert line.statement
    line.statement = line.statement.replace("allow", "allaw")


def reseal(found: Parts, size: int | None = None) -> None:
    """Make the path of the range fit what it holds now, as far as that can be had."""
    manifest = found.manifest
    tree = LOG.tree(size)
    segment = manifest.segments[0]
    segment.first, segment.last = manifest.first, manifest.last
    segment.path = tree.range(segment.first, segment.last - segment.first + 1)


def narrow(found: Parts, first: int, last: int) -> None:
    """Show less, and let everything fit."""
    found.records = [line for line in found.records if first <= line.i <= last]
    found.batches = [line for line in found.batches if first <= line.first <= last]
    found.disclosures = [line for line in found.disclosures if first <= line.i <= last]
    found.manifest.first, found.manifest.last = first, last
    reseal(found)


class TestWhatHolds:
    def test_a_range_in_the_middle(self) -> None:
        report = verified(parts(earlier=(8, 21), roots=(9,)), LOG.trust(), since=SINCE, until=UNTIL)
        assert not report.findings
        facts = report.facts
        assert (facts.first, facts.last, facts.records, facts.opened, facts.closed) == (7, 30, 24, 22, 2)
        assert (facts.allowed, facts.denied) == (15, 4)
        assert [(one.size, one.root) for one in facts.logs] == [(40, LOG.tree().root().hex())]
        assert not facts.until_end

    @pytest.mark.parametrize(("since", "until"), [(0, 40), (0, 5), (38, 60), (19, 20), (1, 2)])
    def test_every_end_of_the_log(self, since: int, until: int) -> None:
        report = verified(LOG.parts(since, until), LOG.trust(), since=since, until=until)
        assert not report.findings
        assert report.facts.until_end == (until >= 40)

    def test_one_user_with_details(self) -> None:
        report = verified(parts(subject="usr_a", disclose=True), LOG.trust())
        assert not report.findings
        assert report.facts.disclosed == report.facts.matching == 8

    def test_an_older_tree(self) -> None:
        assert not verified(parts(size=35), LOG.trust()).findings

    def test_a_smaller_range_than_the_bundle_was_made_for(self) -> None:
        assert not verified(parts(), LOG.trust(), since=15, until=16).findings

    def test_keys_that_the_log_introduced(self) -> None:
        log, other = Log.lived(), Ed25519PrivateKey.generate()
        log.write(log.introduced(other, "writer", by=log.writer), log.introduced(other, "log", by=log.sealer))
        log.write(log.decision(2, "usr_a"), key=other)
        trust = log.trust()
        log.sealer = other
        assert not verified(log.parts(5, 43), trust).findings
        assert not verified(log.parts(42, 43), trust).findings, "introduced outside of the range"

    def test_details_that_an_erasure_record_accounts_for(self) -> None:
        log = Log.lived()
        log.write({"type": "erasure", "action": "erased", "holder": "usr_b"})
        found = log.parts(SINCE, UNTIL, disclose=True)
        for number, line in enumerate(found.disclosures):
            if said(next(one for one in found.records if one.i == line.i))["subject"] == "usr_b":
                found.disclosures[number] = DisclosureLine(line.i, gone=True)
        report = verified(found, log.trust())
        assert not report.findings
        assert report.facts.unreadable == 11
        found.context = [line for line in found.context if '"erasure"' not in line.statement]
        assert codes(verified(found, log.trust())) == ["key-destroyed"]

    def test_records_that_a_retention_record_accounts_for(self) -> None:
        log = Log.lived()
        log.write({"type": "retention", "action": "deleted", "ranges": [[0, 2], [2, 12]]})
        found = log.parts(SINCE, UNTIL)
        for line in found.records:
            if line.i < 14:
                line.statement, line.gone = None, True
        report = verified(found, log.trust())
        assert not report.findings, "deleted from the beginning to within the range, so that nothing was before it"
        assert report.facts.deleted == 7
        found.context = [line for line in found.context if '"retention"' not in line.statement]
        assert codes(verified(found, log.trust())) == ["range-narrowed", "record-missing"]

    def test_gaps_between_records_that_stay_as_many_as_a_verifier_remembers(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a rule for one tenant leaves: a gap for each stretch of its records."""
        log = Log.lived()
        log.write({"type": "retention", "action": "deleted", "ranges": [[20, 1], [22, 1]]})
        found = log.parts(SINCE, UNTIL)
        for line in found.records:
            if line.i in (20, 22):
                line.statement, line.gone = None, True
        assert codes(verified(found, log.trust())) == [] and verify.MOST_RANGES >= 600_000
        monkeypatch.setattr(verify, "MOST_RANGES", 1)
        assert "bundle-malformed" in codes(verified(found, log.trust()))


class TestRecords:
    def test_an_edited_statement(self) -> None:
        found = parts()
        change(found.records[6])
        report = verified(found, LOG.trust())
        assert [(one.code, one.index) for one in report.findings] == [("record-changed", 13)]

    def test_an_edited_leaf(self) -> None:
        found = parts()
        found.records[6].leaf = bytes(32)
        report = verified(found, LOG.trust())
        assert [(one.code, one.index) for one in report.findings] == [("tile-differs", 13)]

    def test_an_edited_leaf_of_a_closed_record(self) -> None:
        found = parts()
        assert found.records[0].statement is None
        found.records[0].leaf = bytes(31) + b"\1"
        assert codes(verified(found, LOG.trust())) == ["batch-root-differs", "root-differs"]

    def test_both_edited(self) -> None:
        found = parts()
        line = found.records[6]
        change(line)
        line.leaf = merkle.leaf_hash(line.data or b"")
        assert codes(verified(found, LOG.trust())) == ["batch-root-differs", "root-differs"]

    def test_both_and_the_batch_signed_by_another_key(self) -> None:
        log = Log.lived()
        log.writer = Ed25519PrivateKey.generate()
        log.write(log.decision(2, "usr_a"))
        found = log.parts(SINCE, 41)
        trust = Trust(writers=LOG.trust().writers, logs=log.trust().logs)
        assert "batch-key-untrusted" in codes(verified(found, trust))

    def test_a_record_that_is_left_out(self) -> None:
        found = parts()
        del found.records[6]
        assert codes(verified(found, LOG.trust())) == ["bundle-truncated"]

    def test_a_record_that_is_left_out_and_those_behind_it_moved_up(self) -> None:
        found = parts()
        del found.records[6]
        for line in found.records[6:]:
            line.i -= 1
        found.manifest.last -= 1
        reseal(found)
        del found.batches[-1]
        assert "batch-root-differs" in codes(verified(found, LOG.trust()))

    def test_two_lines_that_change_places(self) -> None:
        found = parts()
        found.records[6], found.records[7] = found.records[7], found.records[6]
        assert codes(verified(found, LOG.trust())) == ["bundle-truncated"]

    def test_two_records_that_change_places(self) -> None:
        found = parts()
        one, two = found.records[6], found.records[7]
        one.statement, two.statement = two.statement, one.statement
        assert [one.code for one in verified(found, LOG.trust()).findings[:2]] == ["record-changed", "record-changed"]
        one.leaf, two.leaf = two.leaf, one.leaf
        assert codes(verified(found, LOG.trust()))[-1] == "root-differs"

    def test_a_record_that_is_put_in(self) -> None:
        found = parts()
        found.records.insert(6, found.records[6])
        assert codes(verified(found, LOG.trust())) == ["bundle-malformed"]

    def test_the_last_lines_cut_off(self) -> None:
        found = parts()
        del found.records[-3:]
        assert codes(verified(found, LOG.trust())) == ["bundle-truncated"]

    def test_the_last_lines_cut_off_while_the_manifest_is_that_of_the_whole(self) -> None:
        whole, found = parts(), parts()
        whole.pack()
        del found.records[-3:]
        data = replaced(whole.pack(), bundle.RECORDS, member(found.pack(), bundle.RECORDS))
        report = verified(data, LOG.trust())
        assert codes(report) == ["bundle-truncated"]
        assert "21 of 24 lines" in report.findings[0].message

    def test_a_batch_that_is_left_out(self) -> None:
        found = parts()
        del found.batches[1]
        assert codes(verified(found, LOG.trust())) == ["batch-missing", "record-unsigned", "batch-chain-broken"]

    def test_all_batches_left_out(self) -> None:
        found = parts()
        found.batches = []
        assert codes(verified(found, LOG.trust())) == ["batch-missing", "record-unsigned"]

    def test_a_forged_batch(self) -> None:
        found = parts()
        found.batches[1].signature = bytes(64)
        assert codes(verified(found, LOG.trust())) == ["batch-unsigned"]

    def test_a_record_opened_with_other_bytes_than_text(self) -> None:
        found = parts()
        found.records[6].statement, found.records[6].statement_base64 = None, b"\xff"
        assert codes(verified(found, LOG.trust())) == ["record-changed"]


class TestTheRange:
    def test_narrowed_at_the_end(self) -> None:
        found = parts()
        narrow(found, 7, 27)
        assert codes(verified(found, LOG.trust())) == ["range-narrowed"]

    def test_narrowed_at_the_beginning(self) -> None:
        found = parts()
        narrow(found, 11, 30)
        assert codes(verified(found, LOG.trust())) == ["range-narrowed"]

    def test_a_bundle_made_for_less_than_was_asked_for(self) -> None:
        found = LOG.parts(SINCE, 25)
        assert not verified(found, LOG.trust()).findings
        assert codes(verified(found, LOG.trust(), since=SINCE, until=UNTIL)) == ["range-narrowed"]
        assert codes(verified(found, LOG.trust(), since=SINCE - 5, until=25)) == ["range-narrowed"]

    def test_neighbours_that_are_closed(self) -> None:
        found = parts()
        for line in (*found.records[:3], *found.records[-1:]):
            line.statement = None
        assert [one.code for one in verified(found, LOG.trust()).findings] == ["range-narrowed"] * 2

    def test_a_beginning_that_is_not_the_logs(self) -> None:
        found = LOG.parts(0, UNTIL)
        narrow(found, 2, 30)
        assert "range-narrowed" in codes(verified(found, LOG.trust(), since=0))

    def test_parts_that_do_not_cover_it(self) -> None:
        found = parts()
        found.manifest.segments[0].last -= 1
        assert codes(verified(found, LOG.trust())) == ["root-differs", "seam-broken"]
        found.manifest.segments = []
        assert codes(verified(found, LOG.trust())) == ["seam-broken"]

    def test_a_claimed_range_without_end(self) -> None:
        found = parts()
        found.manifest.last = found.manifest.segments[0].last = 2**52
        assert "bundle-truncated" in codes(verified(found, LOG.trust()))


class TestKeys:
    def test_without_trust_nothing_is_proved(self) -> None:
        report = verified(parts(), None)
        assert codes(report) == ["keys-untrusted"]
        assert "curl" in report.findings[0].message
        assert len(report.facts.fingerprints) == 2

    def test_with_half_of_the_keys_nothing_is_proved(self) -> None:
        assert codes(verified(parts(), Trust(logs=LOG.trust().logs))) == ["keys-untrusted"]
        assert codes(verified(parts(), Trust(writers=LOG.trust().writers))) == ["keys-untrusted"]

    def test_a_whole_log_under_other_keys(self) -> None:
        forged = Log.lived()
        found = codes(verified(forged.parts(SINCE, UNTIL), LOG.trust()))
        # What nobody trusted signed is not heeded: not the policy that it tells of either.
        assert {"batch-key-untrusted", "checkpoint-untrusted"} <= set(found)
        assert codes(verified(forged.parts(SINCE, UNTIL), None)) == ["keys-untrusted"]

    def test_keys_replaced_inside_change_nothing(self) -> None:
        found = parts()
        found.keys = Log.lived().jwks()
        assert not verified(found, LOG.trust()).findings
        assert {"keys-untrusted", "batch-key-untrusted", "checkpoint-untrusted"} <= set(codes(verified(found, None)))

    @pytest.mark.parametrize("keys", [b"", b"{", b"\xff", b'{"keys": 7}'])
    def test_keys_that_are_none(self, keys: bytes) -> None:
        found = parts()
        found.keys = keys
        assert not verified(found, LOG.trust()).findings
        assert "keys-untrusted" in codes(verified(found, None))

    def test_a_checkpoint_by_a_log_key_that_was_retired_before(self) -> None:
        log, other = Log.lived(), Ed25519PrivateKey.generate()
        log.write(log.introduced(other, "log", by=log.sealer))
        log.write({"type": "key", **introduce(other, "log", public_of(log.sealer), retired=True)})
        log.write(log.decision(2, "usr_a"))
        assert codes(verified(log.parts(SINCE, UNTIL), log.trust())) == ["checkpoint-untrusted"]
        trust = log.trust()
        log.sealer = other
        assert not verified(log.parts(SINCE, UNTIL), trust).findings


class TestPolicy:
    def test_a_policy_record_left_out_of_the_context(self) -> None:
        found = LOG.parts(22, UNTIL)
        found.context = [line for line in found.context if line.i != 2]
        assert codes(verified(found, LOG.trust())) == ["policy-malformed", "policy-unexplained"]

    def test_all_of_them_left_out(self) -> None:
        found = LOG.parts(22, UNTIL)
        found.context = [line for line in found.context if '"policy","' not in line.statement]
        found.context = [line for line in found.context if '"type":"policy"' not in line.statement]
        assert codes(verified(found, LOG.trust())) == ["policy-version-missing"]

    def test_one_that_is_made_up(self) -> None:
        found = LOG.parts(22, UNTIL)
        line = next(line for line in found.context if line.i == 2)
        line.statement = line.statement.replace("insert", "update")
        assert codes(verified(found, LOG.trust()))[:2] == ["proof-broken", "batch-root-differs"]

    def test_one_that_no_writer_signed_is_not_heeded_though_it_is_in_the_tree(self) -> None:
        """As whoever has the log key alone could have it: the tree is the sealer's word, the record is a writer's."""
        said = {"type": "retention", "action": "deleted", "ranges": [[20, 1]]}
        log = Log.lived()
        log.write(said, key=Ed25519PrivateKey.generate())
        found = log.parts(SINCE, UNTIL)
        line = next(line for line in found.records if line.i == 20)
        line.statement, line.gone = None, True
        assert {"batch-key-untrusted", "record-missing"} <= set(codes(verified(found, log.trust())))
        unsigned = next(line for line in found.context if "retention" in line.statement)
        unsigned.batch = None
        assert {"record-unsigned", "record-missing"} <= set(codes(verified(found, log.trust())))

    def test_one_of_the_range_that_is_closed(self) -> None:
        found = parts()
        next(line for line in found.records if line.i == 19).statement = None
        assert codes(verified(found, LOG.trust())) == ["policy-version-missing"]

    def test_context_out_of_order_or_from_the_range(self) -> None:
        found = parts()
        found.context.reverse()
        assert codes(verified(found, LOG.trust())) == ["bundle-malformed"]
        found = LOG.parts(22, UNTIL)
        found.context[-1].i = 24
        assert "bundle-malformed" in codes(verified(found, LOG.trust()))


class TestDetails:
    def test_a_stripped_one(self) -> None:
        found = parts(disclose=True)
        found.disclosures[3].disclosures.pop()
        report = verified(found, LOG.trust())
        assert [(one.code, one.index) for one in report.findings] == [
            ("disclosure-missing", found.disclosures[3].i)
        ]  # fmt: skip

    def test_all_of_one_record_stripped(self) -> None:
        found = parts(disclose=True)
        gone = found.disclosures.pop(3)
        report = verified(found, LOG.trust())
        assert [(one.code, one.index) for one in report.findings] == [("disclosure-missing", gone.i)]

    def test_two_that_change_places(self) -> None:
        found = parts(disclose=True)
        one, two = found.disclosures[3], found.disclosures[4]
        one.disclosures, two.disclosures = two.disclosures, one.disclosures
        assert codes(verified(found, LOG.trust())) == ["disclosure-foreign", "disclosure-missing"]

    def test_one_that_is_made_up_or_repeated_or_none(self) -> None:
        for text in (disclosures.make("email", "other@x.example").text, "!", "é", ""):
            found = parts(disclose=True)
            found.disclosures[3].disclosures[0] = text
            assert codes(verified(found, LOG.trust())) == ["disclosure-foreign", "disclosure-missing"]
        found = parts(disclose=True)
        found.disclosures[3].disclosures[0] = found.disclosures[3].disclosures[1]
        assert codes(verified(found, LOG.trust())) == ["disclosure-foreign", "disclosure-missing"]

    def test_of_a_closed_record_or_outside_of_the_range(self) -> None:
        found = parts(disclose=True)
        line = next(one for one in found.records if one.i == found.disclosures[3].i)
        line.statement = None
        assert codes(verified(found, LOG.trust())) == ["disclosure-foreign"]
        found = parts(disclose=True)
        found.disclosures.append(DisclosureLine(39, found.disclosures[3].disclosures))
        assert codes(verified(found, LOG.trust())) == ["disclosure-foreign"]

    def test_out_of_order(self) -> None:
        found = parts(disclose=True)
        found.disclosures.reverse()
        assert "bundle-malformed" in codes(verified(found, LOG.trust()))

    def test_a_key_destroyed_without_a_record_of_it(self) -> None:
        found = parts(disclose=True)
        found.disclosures[3] = DisclosureLine(found.disclosures[3].i, gone=True)
        assert codes(verified(found, LOG.trust())) == ["key-destroyed"]


class TestCheckpoints:
    def test_one_that_is_held_leads_on(self) -> None:
        for size in (1, 8, 9, 32, 40):
            note = LOG.checkpoint(size)
            report = verified(parts(roots=(size,)), LOG.trust(), held(note))
            assert not report.findings
            assert report.facts.compared == 1

    def test_one_that_the_bundle_has_no_proof_for(self) -> None:
        report = verified(parts(), LOG.trust(), held(LOG.checkpoint(9)))
        assert codes(report) == ["checkpoint-incomparable"]
        assert "--checkpoint" in report.findings[0].message

    def test_one_of_another_log(self) -> None:
        key = Ed25519PrivateKey.generate()
        note = checkpoints.sign(checkpoints.Checkpoint("other/log", 1, bytes(32)), key)
        assert codes(verified(parts(), LOG.trust(), held(note))) == ["checkpoint-incomparable"]

    def test_an_older_tree_than_the_one_that_is_held(self) -> None:
        found = parts(size=35)
        assert codes(verified(found, LOG.trust(), held(LOG.checkpoint(40)))) == ["rollback"]

    @pytest.mark.parametrize("size", [32, 33, 40])
    def test_a_fork_by_who_stole_the_log_key(self, size: int) -> None:
        honest = LOG.checkpoint(size)
        fork = Log(LOG.writer, LOG.sealer)
        fork.statements, fork.batches = LOG.statements[:30], []
        fork.batches = [line for line in LOG.batches if line.first < 30]
        fork.details = LOG.details
        for _ in range(10):
            fork.write(fork.decision(2, "usr_c"))
        found = fork.parts(SINCE, 29, roots=(size,))
        assert not verified(found, LOG.trust()).findings, "alone it cannot be told"
        assert codes(verified(found, LOG.trust(), held(honest))) == ["fork"]
        found.checkpoints.append(
            CheckpointLine(1, size, LOG.tree(size).root(), honest, fork.tree().consistency(size))
        )  # fmt: skip
        assert codes(verified(found, LOG.trust())) == ["fork"], "both are in the bundle"

    def test_one_that_no_trusted_key_signed(self) -> None:
        note = LOG.checkpoint(9, Ed25519PrivateKey.generate())
        assert codes(verified(parts(roots=(9,)), LOG.trust(), held(note))) == ["checkpoint-untrusted"]

    def test_one_whose_signature_does_not_hold(self) -> None:
        found = parts()
        good = notes.Note.parse(found.checkpoints[0].note or "")
        forged = notes.Signature(ORIGIN, good.signatures[0].key_id, bytes(64))
        found.checkpoints[0].note = notes.Note(good.text, (forged,)).encode()
        assert codes(verified(found, LOG.trust())) == ["checkpoint-unsigned"]

    def test_one_signed_for_another_tree(self) -> None:
        found = parts()
        found.checkpoints[0].note = LOG.checkpoint(35)
        assert codes(verified(found, LOG.trust())) == ["checkpoint-unsigned"]

    def test_one_that_is_no_note(self) -> None:
        found = parts()
        found.checkpoints[0].note = "no note"
        assert codes(verified(found, LOG.trust())) == ["checkpoint-unsigned"]

    def test_none_at_all(self) -> None:
        found = parts()
        found.checkpoints = []
        assert codes(verified(found, LOG.trust())) == ["bundle-truncated"]
        found.checkpoints = [CheckpointLine(1, 40, LOG.tree().root())]
        assert codes(verified(found, LOG.trust())) == ["bundle-truncated"], "a root that nobody signed"

    def test_an_earlier_one_whose_path_is_broken(self) -> None:
        found = parts(earlier=(9,))
        found.checkpoints[1].path[0] = bytes(32)
        assert codes(verified(found, LOG.trust())) == ["proof-broken"]

    def test_cosignatures_of_trusted_witnesses_count(self) -> None:
        found = parts(earlier=(21,))
        for line in found.checkpoints:
            line.note = cosigned(line.note or "")
        report = verified(found, LOG.trust(WITNESS_KEY))
        assert not report.findings
        assert [(one.witness, one.size, one.at) for one in report.facts.cosigned] == [
            ("witness.example", 40, 1_800_000_000)
        ]
        assert not verified(found, LOG.trust()).facts.cosigned, "a witness that nobody trusts"

    def test_a_forged_cosignature(self) -> None:
        found = parts()
        note = notes.Note.parse(found.checkpoints[0].note or "")
        forged = notes.Signature("witness.example", WITNESS_KEY.id, (1_800_000_000).to_bytes(8, "big") + bytes(64))
        found.checkpoints[0].note = notes.Note(note.text, (*note.signatures, forged)).encode()
        report = verified(found, LOG.trust(WITNESS_KEY))
        assert codes(report) == ["checkpoint-unsigned"]
        assert not report.facts.cosigned


def cosigned(note: str) -> str:
    """The note with a cosignature."""
    found = notes.Note.parse(note)
    return notes.Note(
        found.text, (*found.signatures, notes.cosign(found.text, "witness.example", WITNESS, 1_800_000_000))
    ).encode()


def member(data: bytes, name: str) -> bytes:
    """A file of the archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(name)


def replaced(data: bytes, name: str, content: bytes | None) -> bytes:
    """The archive with another file of this name, or without it."""
    return archive([(n, content if n == name else c) for n, c in files(data) if n != name or content is not None])


def files(data: bytes) -> list[tuple[str, bytes]]:
    """All of them."""
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        return [(name, found.read(name)) for name in found.namelist()]


def archive(members: list[tuple[str, Any]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A ZIP of these."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, content in members:
            made.writestr(name, content)
    return file.getvalue()


class TestWhatIsNoBundle:
    DATA = LOG.parts(SINCE, UNTIL, disclose=True, earlier=(9,)).pack()

    @pytest.mark.parametrize("data", [b"", b"P", b"hello", b"\0" * 100_000, b"PK\x05\x06" + bytes(18)])
    def test_something_else(self, data: bytes) -> None:
        assert codes(verified(data, LOG.trust()))[0] in ("bundle-malformed", "bundle-truncated")

    def test_cut_off_anywhere(self) -> None:
        for end in range(2, len(self.DATA) - 1, 97):
            assert codes(verified(self.DATA[:end], LOG.trust())) == ["bundle-truncated"]

    @pytest.mark.parametrize("name", [*bundle.FILES, bundle.MANIFEST])
    def test_a_missing_file(self, name: str) -> None:
        assert codes(verified(replaced(self.DATA, name, None), LOG.trust()))[0] == "bundle-truncated"

    @pytest.mark.parametrize("name", [*bundle.FILES, bundle.MANIFEST])
    def test_a_file_that_was_changed_on_the_way(self, name: str) -> None:
        found = codes(verified(replaced(self.DATA, name, member(self.DATA, name)[:-3] + b"}]\n"), LOG.trust()))
        assert found[0] in ("bundle-malformed", "bundle-truncated")

    def test_a_file_twice_or_of_another_name(self) -> None:
        with pytest.warns(UserWarning, match="Duplicate"):
            twice = archive([*files(self.DATA), (bundle.KEYS, b"{}")])
        assert codes(verified(twice, LOG.trust())) == ["bundle-malformed"]
        for name in ("../../etc/passwd", "/tmp/x", "records.jsonl/", "a" * 60_000):
            assert codes(verified(archive([*files(self.DATA), (name, b"")]), LOG.trust())) == ["bundle-malformed"]

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_unusual_packing(self, method: int) -> None:
        assert codes(verified(archive(files(self.DATA), method), LOG.trust())) == ["bundle-malformed"]

    def test_a_bomb(self) -> None:
        for name in (bundle.MANIFEST, bundle.RECORDS, bundle.KEYS):
            data = replaced(self.DATA, name, bytes(40 << 20))
            tracemalloc.start()
            found = codes(verified(data, LOG.trust()))
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert found == ["bundle-malformed"]
            assert most < 8 << 20

    def test_a_directory_without_end(self) -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as made:
            for number in range(40_000):
                made.writestr(f"{number:060}", b"")
        assert codes(verified(file.getvalue(), LOG.trust()))[0] in ("bundle-malformed", "bundle-truncated")

    def test_a_line_without_end(self) -> None:
        noise = random.Random(7).randbytes(600_000).hex().encode()
        data = replaced(self.DATA, bundle.RECORDS, b'{"i":7,"leaf":"' + noise)
        assert codes(verified(data, LOG.trust())) == ["bundle-truncated", "bundle-malformed"]

    @pytest.mark.parametrize(
        "line",
        [b"", b"7", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"i":-1,"leaf":""}', b'{"i":1e400,"leaf":7}',
         b'{"i":7,"leaf":"AAAA"}', b'{"i":"7"}', b'{"i":99999999999999999999,"leaf":""}',
         b'{"i":7,"leaf":"' + b"A" * 43 + b'=","statement":"\\ud800"}'],
    )  # fmt: skip
    @pytest.mark.parametrize("name", bundle.FILES)
    def test_a_line_that_is_none(self, name: str, line: bytes) -> None:
        data = replaced(self.DATA, name, line + b"\n")
        assert codes(verified(data, LOG.trust()))[0] in ("bundle-malformed", "bundle-truncated")

    @pytest.mark.parametrize(
        "change",
        [{"format": "muniment/bundle/v2"}, {"asked": {"from": "yesterday", "to": "today"}}, {"logs": []},
         {"segments": []}, {"first": 31}, {"first": -1}, {"files": {}}, {"counts": 7},
         {"asked": {"from": "9999-99-99", "to": "2026-01-01"}},
         {"logs": [{"log": 2, "origin": "x", "start": 0, "size": 40}]},
         {"logs": [{"log": 1, "origin": ORIGIN, "start": 0, "size": 40}] * 2},
         {"logs": [{"log": 1, "origin": "a\nb", "start": 0, "size": 40}]},
         {"logs": [{"log": 1, "origin": ORIGIN, "start": 9, "size": 40}]},
         {"segments": [{"log": 9, "first": 7, "last": 30, "path": []}]},
         {"segments": [{"log": 1, "first": 7, "last": 30, "path": []}] * 2}],
    )  # fmt: skip
    def test_a_manifest_that_says_something_else(self, change: dict[str, Any]) -> None:
        manifest = msgspec.json.decode(member(self.DATA, bundle.MANIFEST)) | change
        data = replaced(self.DATA, bundle.MANIFEST, msgspec.json.encode(manifest))
        assert verified(data, LOG.trust()).findings

    @given(st.data())
    @settings(max_examples=300, deadline=None)
    def test_no_byte_of_a_bundle_makes_it_stumble(self, data: st.DataObject) -> None:
        found = bytearray(self.DATA)
        for _ in range(data.draw(st.integers(1, 4))):
            found[data.draw(st.integers(0, len(found) - 1))] = data.draw(st.integers(0, 255))
        verified(bytes(found), LOG.trust())

    @given(st.sampled_from([*bundle.FILES, bundle.MANIFEST]), st.binary(max_size=300), st.integers(0, 10_000))
    @settings(max_examples=300, deadline=None)
    def test_no_junk_in_a_file_makes_it_stumble(self, name: str, junk: bytes, place: int) -> None:
        content = member(self.DATA, name)
        place %= len(content)
        data = replaced(self.DATA, name, content[:place] + junk + content[place + len(junk) :])
        verified(data, LOG.trust())

    @given(st.binary(max_size=400))
    @settings(max_examples=200, deadline=None)
    def test_junk_is_no_bundle(self, junk: bytes) -> None:
        assert codes(verified(junk, LOG.trust()))[0] in ("bundle-malformed", "bundle-truncated")
        assert codes(verified(b"PK\3\4" + junk, LOG.trust()))[0] in ("bundle-malformed", "bundle-truncated")

    def test_a_directory_that_claims_to_be_huge(self) -> None:
        end = self.DATA.rindex(b"PK\5\6")
        fields = list(struct.unpack("<4s4H2LH", self.DATA[end : end + 22]))
        fields[5] = 0x7FFFFFFF
        data = self.DATA[:end] + struct.pack("<4s4H2LH", *fields)
        assert codes(verified(data, LOG.trust())) == ["bundle-truncated"]


def test_memory_does_not_grow_with_the_range() -> None:
    found = []
    for count in (500, 4000):
        log = Log.lived()
        for _ in range(count // 50):
            log.write(*(log.decision(2, "usr_a") for _ in range(50)))
        data, trust = log.parts(3, 40 + count, disclose=True).pack(), log.trust()
        tracemalloc.start()
        assert not verified(data, trust).findings
        found.append(tracemalloc.get_traced_memory()[1] - len(data))
        tracemalloc.stop()
    assert found[1] < found[0] * 1.5 + (1 << 20)


@pytest.mark.parametrize(
    ("text", "micros"),
    [("1970-01-01T00:00:00Z", 0), ("1970-01-02", 86_400_000_000), ("1970-01-01T01:00+01:00", 0),
     ("1970-01-01T00:00:00.000001Z", 1), ("2026-11-18T11:06:50Z", at(10))],
)  # fmt: skip
def test_times_are_read(text: str, micros: int) -> None:
    assert time_of(text) == micros
    assert time_of(text_of(micros)) == micros


@pytest.mark.parametrize(
    "text", ["", "now", "2026-13-01", "2026-11-24T10:00:00", "2026-11-24 10:00:00Z", "0000-01-01",
             "2026-11-24T25:00Z", "٢٠٢٦-11-24", "2026-11-24T10:00:00.0000001Z"],
)  # fmt: skip
def test_times_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time"):
        time_of(text)


def test_a_batch_line_that_can_be_none_is_refused() -> None:
    found = parts()
    one = found.batches[0]
    found.batches[0] = BatchLine(one.first, 2**52, one.previous, one.root, one.signature, one.key_id)
    assert codes(verified(found, LOG.trust())) == ["bundle-malformed"]
