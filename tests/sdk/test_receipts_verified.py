"""Kept receipts against the log: what the platform lost, changed or never wrote after it had answered is found, even
where it signed everything anew."""

import copy
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from muniment import batches, cli, merkle
from muniment.bundle import text_of
from muniment.keys import Trust, introduce, thumbprint
from muniment.receipts import Store, writer_keys
from muniment.report import Report
from muniment.verify_receipts import Facts, verify_receipts
from tests.sdk.bundles import NOON, Log, Parts, at, codes, public_of, verified
from tests.sdk.kept import answer, decided, keeping, lived, record_of, rewritten, text

LOG = lived()
ALL = LOG.parts(0, 40)


def judged(folder: Path, bundle: Parts | bytes | None = None, log: Log = LOG) -> tuple[Report, Facts]:
    """With the keys of the log as they were saved at its beginning."""
    keys = log.jwks().decode()
    packed = bundle.pack() if isinstance(bundle, Parts) else bundle
    return verify_receipts(folder, Trust.parse(keys), writer_keys(keys), None if packed is None else io.BytesIO(packed))


def found(report: Report) -> list[tuple[str, int | None]]:
    return [(one.code, one.index) for one in report.findings]


class TestByThemselves:
    def test_all_of_them_hold(self, tmp_path: Path) -> None:
        report, facts = judged(keeping(tmp_path, LOG, *range(3, 39)))
        assert report.ok
        assert (facts.receipts, facts.torn, facts.bundle) == (36, 0, None)
        assert (facts.since, facts.until) == (text_of(at(3) + 1000), text_of(at(38) + 1000))
        assert facts.writers == [thumbprint(public_of(LOG.writer))]

    def test_each_that_does_not_hold_is_named(self, tmp_path: Path) -> None:
        keeping(tmp_path, LOG, 3, 4, 5, 6, 7)
        [file] = tmp_path.iterdir()
        lines = file.read_text().splitlines()
        lines[1] = lines[1].replace('"index":4', '"index":5')
        lines[2] = "what}}}"
        lines[3] = lines[3].replace(thumbprint(public_of(LOG.writer)), "A" * 43)
        file.write_text("\n".join(lines[:-1]) + "\n" + lines[4][:100])
        report, facts = judged(tmp_path)
        assert codes(report) == ["receipt-malformed", "batch-key-untrusted"]
        assert [one.message.split(":")[0] for one in report.findings] == [
            f"line {number} of receipts-2026-11-18.jsonl" for number in (2, 3, 4)
        ]
        assert (facts.receipts, facts.torn) == (4, 1)

    def test_a_receipt_that_was_given_for_two_calls_is_found(self, tmp_path: Path) -> None:
        keeping(tmp_path, LOG, 4, 5, 5)  # the same answer twice is a retry
        assert judged(tmp_path)[0].ok
        Store(tmp_path, clock=lambda: at(6)).keep(answer(LOG, 5) | {"record": record_of(6)})
        report, _ = judged(tmp_path)
        assert found(report) == [("receipt-contradicted", 5)]
        assert "another call" in report.findings[0].message

    def test_two_histories_of_one_writer_are_found_without_a_bundle(self, tmp_path: Path) -> None:
        other = rewritten(LOG, _12={"decision": "allow"})
        keeping(tmp_path, LOG, 11, 12)
        keeping(tmp_path, other, 12)
        report, _ = judged(tmp_path)
        assert found(report) == [("receipt-contradicted", 12)]
        assert "two histories" in report.findings[0].message


class TestAgainstABundle:
    def test_what_was_answered_is_there(self, tmp_path: Path) -> None:
        report, facts = judged(keeping(tmp_path, LOG, *range(3, 39)), LOG.parts(12, 20))
        assert report.ok
        assert (facts.shown, facts.opened, facts.outside) == (12, 10, 24)
        assert facts.bundle is not None and facts.bundle.records == 12

    @pytest.mark.parametrize("index", [3, 13, 38])
    def test_a_record_that_was_changed_by_one_with_all_keys_is_found(self, tmp_path: Path, index: int) -> None:
        forged = rewritten(LOG, **{f"_{index}": {"subject": "usr_other"}})
        parts = forged.parts(0, 40)
        assert verified(parts, LOG.trust()).ok, "no signature gives it away"
        report, _ = judged(keeping(tmp_path, LOG, index, 3), parts)
        assert ("receipt-contradicted", index) in found(report)
        assert codes(report) == ["receipt-contradicted"]
        assert record_of(index) in report.findings[-1].message

    def test_a_batch_that_was_signed_twice_is_found_by_its_other_records(self, tmp_path: Path) -> None:
        forged = rewritten(LOG, _13={"decision": "deny"}).parts(0, 40)
        report, facts = judged(keeping(tmp_path, LOG, 4, 12, 30), forged)
        assert found(report) == [("receipt-contradicted", 12), ("receipt-contradicted", 30)], "the chain differs after"
        assert facts.shown == 1

    def test_a_record_that_was_taken_out_is_found(self, tmp_path: Path) -> None:
        gone = Log(LOG.writer, LOG.sealer)
        gone.write(gone.introduced(gone.writer, "writer"), gone.introduced(gone.sealer, "log"))
        gone.write(gone.policy(1))
        for first in range(3, 39, 3):
            gone.write(*(decided(gone, index) for index in range(first, first + 3) if index != 13))
        parts = gone.parts(0, 40)
        assert verified(parts, LOG.trust()).ok
        report, _ = judged(keeping(tmp_path, LOG, 13), parts)
        assert found(report) == [("receipt-contradicted", 13)]

    def test_a_log_that_was_cut_off_is_found_where_it_says_to_be_of_that_time(self, tmp_path: Path) -> None:
        short = rewritten(LOG, 30).parts(0, 2000)
        keeping(tmp_path, LOG, 20, 33, late=600)
        for made, expected in ((300, []), (2000, [("receipt-contradicted", 33)])):
            short.manifest.created_at = text_of(at(made))
            assert verified(short, LOG.trust()).ok
            report, facts = judged(tmp_path, short)
            assert found(report) == expected
            assert (facts.shown, facts.outside) == (1, 1)
        short.manifest.created_at = "never"
        assert found(judged(tmp_path, short)[0]) == expected

    def test_what_was_told_is_what_was_recorded(self, tmp_path: Path) -> None:
        for name, value in (("decision", "deny"), ("tool", {"name": "memory.forget"}), ("record", record_of(90))):
            folder = tmp_path / name
            Store(folder, clock=lambda: at(4)).keep(answer(LOG, 4) | {name: value})
            report, _ = judged(folder, ALL)
            assert found(report) == [("receipt-contradicted", 4)]
            assert judged(folder)[0].ok, "only an open record shows it"

    def test_what_retention_deleted_was_there(self, tmp_path: Path) -> None:
        log = lived()
        log.write({"type": "retention", "action": "deleted", "ranges": [[3, 3]]})
        parts = log.parts(0, 45)
        for line in parts.records[3:6]:
            line.statement, line.gone = None, True
        keeping(tmp_path, log, 4, 9)
        report, facts = judged(tmp_path, parts, log)
        assert report.ok
        assert (facts.shown, facts.opened, facts.deleted) == (2, 1, 1)

    @pytest.mark.parametrize("change", ["removed", "changed", "batch", "truncated", "none"])
    def test_a_bundle_that_does_not_hold_is_told_and_never_fails(self, tmp_path: Path, change: str) -> None:
        parts = copy.deepcopy(ALL)
        if change == "removed":
            del parts.records[13]
        elif change == "changed":
            parts.records[13].leaf = bytes(32)
        elif change == "batch":
            del parts.batches[5]
        packed = b"none" if change == "none" else parts.pack()
        report, _ = judged(keeping(tmp_path, LOG, 13, 14), packed[:-100] if change == "truncated" else packed)
        assert not report.ok
        assert ("receipt-contradicted" in codes(report)) == (change in ("removed", "changed", "batch"))

    def test_an_altered_receipt_accuses_nobody(self, tmp_path: Path) -> None:
        keeping(tmp_path, LOG, 13)
        [file] = tmp_path.iterdir()
        file.write_text(file.read_text().replace(text(LOG.leaves()[13]), text(LOG.leaves()[14])))
        report, facts = judged(tmp_path, ALL)
        assert codes(report) == ["receipt-broken"]
        assert facts.shown == 0


class TestKeysThatChange:
    @pytest.fixture
    def changed(self) -> tuple[Log, Ed25519PrivateKey]:
        """The writer introduces another, which retires it and goes on."""
        log, new = lived(), Ed25519PrivateKey.generate()
        log.write(log.introduced(new, "writer", by=log.writer))
        log.write({"type": "key", **introduce(new, "writer", public_of(log.writer), retired=True)}, key=new)
        log.write(*(decided(log, index) for index in range(41, 44)), key=new)
        return log, new

    def test_a_key_that_the_log_introduced_is_believed(
        self, tmp_path: Path, changed: tuple[Log, Ed25519PrivateKey]
    ) -> None:
        log, new = changed
        keeping(tmp_path, log, 5, 42)
        assert codes(judged(tmp_path, None, log)[0]) == ["batch-key-untrusted"]
        report, facts = judged(tmp_path, log.parts(0, 50), log)
        assert report.ok
        assert facts.writers == [thumbprint(public_of(one)) for one in (log.writer, new)]

    def test_a_key_that_a_bundle_only_holds_is_not(
        self, tmp_path: Path, changed: tuple[Log, Ed25519PrivateKey]
    ) -> None:
        log, _ = changed
        parts = log.parts(0, 50)
        parts.records[10].leaf = bytes(32)  # a bundle that does not hold teaches nothing
        report, _ = judged(keeping(tmp_path, log, 42), parts, log)
        assert "batch-key-untrusted" in codes(report)

    def test_a_key_that_was_retired_signs_nothing_more(
        self, tmp_path: Path, changed: tuple[Log, Ed25519PrivateKey]
    ) -> None:
        log, _ = changed
        leaf = merkle.leaf_hash(b"forged")
        signed = batches.message(60, 1, bytes(32), leaf)
        forged = answer(log, 5)
        forged["receipt"] |= {"index": 60, "leaf": text(leaf), "signature": text(batches.sign(log.writer, signed))}
        forged["receipt"]["batch"] = {
            "first": 60, "size": 1, "previous": text(bytes(32)), "root": text(leaf), "position": 0, "path": [],
        }  # fmt: skip
        Store(tmp_path, clock=lambda: at(60)).keep(forged)
        assert judged(tmp_path, None, log)[0].ok
        assert codes(judged(tmp_path, log.parts(0, 50), log)[0]) == ["batch-key-retired"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the command is given."""
    keeping(tmp_path / "kept", LOG, *range(3, 39))
    (tmp_path / "keys.json").write_bytes(LOG.jwks())
    (tmp_path / "bundle.zip").write_bytes(ALL.pack())
    forged = rewritten(LOG, _13={"decision": "deny"})
    (tmp_path / "forged.zip").write_bytes(forged.parts(0, 40).pack())
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "receipts-2026-11-18.jsonl").mkdir()
    return tmp_path


class TestTheCommand:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], str]:
        status = cli.main(["receipts", *map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err

    def test_what_holds_is_0_and_says_what_was_looked_at(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, lines, error = self.run(capsys, folder / "kept", "--trust", folder / "keys.json")
        assert (status, error) == (0, "")
        assert lines[0].startswith("36 receipts, kept from 2026-11-18T")
        assert "--bundle" in lines[-1]
        more = ("--trust", folder / "keys.json", "--bundle", folder / "bundle.zip")
        status, lines, error = self.run(capsys, folder / "kept", *more)
        assert (status, error) == (0, "")
        assert lines[-1].startswith("The bundle shows 36 records as answered, 36 of them open and 0 deleted")

    def test_each_finding_is_one_line_and_1(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        status, lines, _ = self.run(
            capsys, folder / "kept", "--trust", folder / "keys.json", "--bundle", folder / "forged.zip"
        )
        assert status == 1
        contradicted = [line for line in lines if line.startswith("receipt-contradicted: line ")]
        assert len(contradicted) == 27, "of the batch that was signed anew, and of all after it"
        assert not any("every one holds" in line for line in lines)

    def test_json_is_for_machines(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name, ok in (("bundle.zip", True), ("forged.zip", False)):
            more = ("--trust", folder / "keys.json", "--bundle", folder / name, "--json")
            status, lines, _ = self.run(capsys, folder / "kept", *more)
            said: dict[str, Any] = json.loads("\n".join(lines))
            assert (status, said["ok"], said["count"]) == ((0, True, 0) if ok else (1, False, 27))
            assert said["report"]["receipts"] == 36
            assert said["report"]["bundle"]["records"] == 39
        assert {(one["code"]) for one in said["findings"]} == {"receipt-contradicted"}

    @pytest.mark.parametrize(
        "arguments",
        [("none", "--trust", "keys.json"), ("empty", "--trust", "keys.json"), ("keys.json", "--trust", "keys.json"),
         ("kept", "--trust", "none"), ("kept", "--trust", "bundle.zip"), ("kept", "--trust", "log.txt"),
         ("kept", "--trust", "keys.json", "--bundle", "none"), ("kept", "--trust", "keys.json", "--bundle", "empty")],
    )  # fmt: skip
    def test_what_cannot_be_used_is_2_and_says_why(
        self, folder: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
    ) -> None:
        document = json.loads(LOG.jwks())
        (folder / "log.txt").write_text(json.dumps({"keys": document["keys"][1:]}))
        given = [one if one.startswith("--") else folder / one for one in arguments]
        status, lines, error = self.run(capsys, *given)
        assert (status, lines) == (2, [])
        assert error.startswith("muniment: ") and error.count("\n") == 1
        assert str(folder) not in error

    def test_trust_must_be_given(self, folder: Path) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(["receipts", str(folder / "kept")])
        assert ended.value.code == 2

    def test_what_is_no_file_is_a_finding(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        status, lines, _ = self.run(capsys, folder / "odd", "--trust", folder / "keys.json")
        assert (status, lines[0]) == (1, "receipt-malformed: receipts-2026-11-18.jsonl is not a file")

    def test_an_auditor_needs_nothing_of_the_platform_and_no_network(self, folder: Path) -> None:
        code = (
            "import sys; from muniment.cli import main; status = main(sys.argv[1:]); foreign = {'django', 'psycopg',"
            "'httpx2', 'governance', 'audit', 'socket'}; print(foreign & set(sys.modules)); sys.exit(status)"
        )
        run = [sys.executable, "-I", "-c", code, "receipts", folder / "kept", "--trust", folder / "keys.json"]
        done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "set()")


def test_thousands_of_receipts_take_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    line = json.dumps(
        {"at": text_of(NOON), "record": record_of(4), "decision": "allow", "tool": "memory.recall",
         "receipt": answer(LOG, 4)["receipt"]}
    )  # fmt: skip
    (tmp_path / "receipts-2026-11-18.jsonl").write_text(f"{line}\n" * 3_000)
    tracemalloc.start()
    try:
        report, facts = judged(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.ok and facts.receipts == 3_000
    assert peak < 3_000 * 300 + 200_000, "bytes"
