"""`muniment verify` accepts an evidence pack, and finds whatever was changed in it, by somebody without the export key
and by somebody who has it."""

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from muniment import bundle, cli, disclosures, exported, merkle, packs
from muniment.keys import Trust
from tests.audit.evidence_scene import EXPORT_KEY, scene

Files = dict[str, bytes]
MANIFEST = packs.MANIFEST


@dataclass
class Made:
    """A pack, one of less, the keys to trust, and the keys as the platform publishes them."""

    pack: bytes
    other: bytes
    trust: Trust
    keys: str


@pytest.fixture(scope="module")
def made(migrated: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with scene(tmp_path_factory.mktemp("sealer")) as found:
        pack, other = found.pack()[0], found.pack("hipaa")[0]
        keys = found.world.http.get("/v1/keys").content.decode()
        yield Made(pack, other, Trust.parse(keys), keys)


def unpacked(pack: bytes) -> Files:
    with ZipFile(BytesIO(pack)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(files: Files) -> bytes:
    file = BytesIO()
    with ZipFile(file, "w", ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def signed(files: Files, key: Ed25519PrivateKey = EXPORT_KEY, **members: Any) -> bytes:
    """Files with a manifest that fits them, signed anew."""
    told = json.loads(files[MANIFEST]) | members
    told["files"] = {
        name: {"sha256": sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in files.items()
        if name != MANIFEST
    }
    return packed(files | {MANIFEST: json.dumps(exported.sign(told, key)).encode()})


def found_in(pack: bytes, trust: Trust | None, **period: int) -> set[str]:
    report, _ = packs.verify(BytesIO(pack), trust, **period)
    return {one.code for one in report.findings}


def test_a_pack_holds_as_it_was_made(made: Made) -> None:
    report, facts = packs.verify(BytesIO(made.pack), made.trust)
    assert report.ok and facts.key and facts.sealed and facts.origin == "muniment.test/log"
    assert facts.files == len(unpacked(made.pack)) - 1 and facts.records > 20 and facts.disclosed > 10
    assert found_in(signed(unpacked(made.pack)), made.trust) == set()


def test_each_file_that_was_changed_taken_out_or_put_in_is_found(made: Made) -> None:
    files = unpacked(made.pack)
    for name, data in files.items():
        if name != MANIFEST:
            assert found_in(packed(files | {name: data + b" "}), made.trust) == {"export-changed"}, name
            assert found_in(packed({n: d for n, d in files.items() if n != name}), made.trust) == {"export-missing"}
    assert found_in(packed(files | {"extra.html": b""}), made.trust) == {"export-differs"}


def test_a_manifest_that_was_changed_or_is_of_another_pack_is_found(made: Made) -> None:
    files = unpacked(made.pack)
    told = json.loads(files[MANIFEST])
    for member, value in (("until", "2027-01-01T00:00:00.000000Z"), ("made_for", "staff:9"), ("first", 1)):
        changed = json.dumps(told | {member: value}).encode()
        assert "export-unsigned" in found_in(packed(files | {MANIFEST: changed}), made.trust), member
    assert "export-changed" in found_in(packed(files | {MANIFEST: unpacked(made.other)[MANIFEST]}), made.trust)


def test_another_key_is_not_trusted_and_no_key_proves_nothing(made: Made) -> None:
    foreign = signed(unpacked(made.pack), Ed25519PrivateKey.generate())
    assert found_in(foreign, made.trust) == {"export-untrusted"}
    assert found_in(made.pack, None) == {"keys-untrusted"}
    assert found_in(made.pack, Trust(exports=made.trust.exports)) == {"checkpoint-untrusted"}
    log_key_alone = Trust(exports=made.trust.logs, logs=made.trust.logs)
    assert found_in(made.pack, log_key_alone) == {"export-untrusted"}


def line_of(files: Files, part: str, number: int = -1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files[f"records/{part}.jsonl"].splitlines()[number])
    return found


def changed(files: Files, part: str, change: Callable[[dict[str, Any]], None], number: int = -1) -> Files:
    """The files with one record of a part changed."""
    lines = [json.loads(line) for line in files[f"records/{part}.jsonl"].splitlines()]
    change(lines[number])
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return files | {f"records/{part}.jsonl": data}


def lie(line: dict[str, Any]) -> None:
    line["statement"] = line["statement"].replace('"hold":1', '"hold":2')


def lie_well(line: dict[str, Any]) -> None:
    lie(line)
    line["leaf"] = merkle.leaf_hash(line["statement"].encode()).hex()
    line["id"] = "01900000-0000-7000-8000-000000000000"


def other_reason(line: dict[str, Any]) -> None:
    line["disclosures"] = [disclosures.make("reason", "another reason").text]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lie, "record-changed"),
        (lie_well, "export-differs"),
        (other_reason, "disclosure-foreign"),
        (lambda line: line.update(at="2020-01-01T00:00:00Z"), "export-differs"),
        (lambda line: line.update(index=10**9), "export-differs"),
        (lambda line: line.update(statement="{}", leaf=merkle.leaf_hash(b"{}").hex()), "export-differs"),
        (lambda line: line.update(statement="x", leaf=merkle.leaf_hash(b"x").hex()), "record-malformed"),
        (lambda line: line.pop("leaf"), "export-malformed"),
        (lambda line: line.update(leaf="00"), "export-malformed"),
    ],
)  # fmt: skip
def test_whoever_has_the_export_key_cannot_make_a_record_say_something_else_unseen(
    made: Made, change: Callable[[dict[str, Any]], None], code: str
) -> None:
    assert code in found_in(signed(changed(unpacked(made.pack), "holds", change)), made.trust)


def test_counts_checkpoint_and_period_must_fit_what_is_there(made: Made) -> None:
    files = unpacked(made.pack)
    dropped = files | {"records/holds.jsonl": b"".join(files["records/holds.jsonl"].splitlines(True)[1:])}
    assert found_in(signed(dropped), made.trust) == {"export-differs"}
    assert found_in(signed(files, counts={"nothing": 3}), made.trust) == {"export-differs"}
    assert found_in(signed(files, checkpoint=None), made.trust) == {"export-differs"}
    assert found_in(signed(files, last=10**9), made.trust) == {"export-differs"}
    assert found_in(signed(files, checkpoint="none"), made.trust) == {"checkpoint-unsigned", "export-differs"}
    assert found_in(signed(files, since="never"), made.trust) == {"export-malformed"}
    began = bundle.time_of(json.loads(files[MANIFEST])["since"])
    assert found_in(made.pack, made.trust, since=began) == set()
    assert found_in(made.pack, made.trust, since=began - 1) == {"range-narrowed"}


@pytest.mark.parametrize(
    "hostile",
    [
        {MANIFEST: b"{}"}, {MANIFEST: b"[" * 100_000}, {MANIFEST: b"\xff"}, {"../up.html": b"x"}, {"/etc/x.html": b"x"},
        {"records/a/b.csv": b"x"}, {"bomb.html": b"0" * (1 << 25)}, {"UPPER.HTML": b""},
    ],
)  # fmt: skip
def test_an_archive_that_is_none_of_ours_is_refused_in_one_line(made: Made, hostile: Files) -> None:
    report, _ = packs.verify(BytesIO(packed(unpacked(made.pack) | hostile)), made.trust)
    assert [one.code for one in report.findings] == ["export-malformed"] and "\n" not in report.findings[0].message


def test_a_pack_that_was_cut_or_of_which_bits_fell_over_never_holds(made: Made) -> None:
    for cut in (0, 10, len(made.pack) // 2, len(made.pack) - 1):
        assert found_in(made.pack[:cut], made.trust)
    for place in range(50, len(made.pack), len(made.pack) // 40):
        flipped = bytearray(made.pack)
        flipped[place] ^= 0xFF
        if unpacked_or_none(bytes(flipped)) != unpacked(made.pack):
            assert found_in(bytes(flipped), made.trust), place


def unpacked_or_none(pack: bytes) -> Files | None:
    try:
        return unpacked(pack)
    except Exception:  # whatever zipfile makes of it
        return None


def test_the_command_verifies_a_pack(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack, keys = tmp_path / "pack.zip", tmp_path / "keys.json"
    pack.write_bytes(made.pack)
    keys.write_text(made.keys)
    assert cli.main(["verify", str(pack), "--trust", str(keys)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Everything holds") and "Signed by export key" in told
    assert cli.main(["verify", str(pack), "--trust", str(keys), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pack"]["made_for"].startswith("staff:")
    pack.write_bytes(packed(unpacked(made.pack) | {"index.html": b"<h1>All is well</h1>"}))
    assert cli.main(["verify", str(pack), "--trust", str(keys)]) == 1
    assert "index.html is not the file" in capsys.readouterr().out
    assert cli.main(["verify", str(pack), "--checkpoint", str(keys)]) == 2
    # As it is downloaded, with the manifest of its export beside it.
    pack.with_name(f"{pack.name}.manifest.json").write_text("{}")
    period = ("--from", "2000-01-01", "--to", "2000-01-02")
    capsys.readouterr()
    assert cli.main(["verify", str(pack), "--trust", str(keys), *period]) == 1
    assert "range-narrowed" in capsys.readouterr().out
    assert cli.main(["verify", str(pack), "--from", "2027-01-02", "--to", "2027-01-01"]) == 2


def test_a_pack_that_was_delivered_as_an_export_is_verified_with_its_own_manifest_too(
    made: Made, tmp_path: Path
) -> None:
    def delivered(pack: bytes) -> set[str]:
        told: dict[str, Any] = {
            "format": exported.FORMAT, "type": "evidence", "export": {"id": 1, "name": "audit"},
            "slot": "2026-01-01T00:00Z", "query": "",
            "columns": [], "personal": False, "records": 0, "counts": {}, "made_at": "now", "log": None,
            "range": {"since": "2026-01-01T00:00:00Z", "until": "2026-02-01T00:00:00Z", "first": None, "last": None},
            "file": {"name": "pack.zip", "bytes": len(pack), "sha256": sha256(pack).hexdigest()},
        }  # fmt: skip
        (tmp_path / "pack.zip").write_bytes(pack)
        manifest = tmp_path / "pack.zip.manifest.json"
        manifest.write_text(json.dumps(exported.sign(told, EXPORT_KEY)))
        return {one.code for one in exported.verify(manifest, made.trust)[0].findings}

    assert delivered(made.pack) == set()
    assert delivered(packed(unpacked(made.pack) | {"index.html": b"changed"})) == {"export-changed"}


def test_a_record_whose_bytes_are_no_text_is_shown_and_found(made: Made) -> None:
    def broken(line: dict[str, Any]) -> None:
        del line["statement"]
        line["statement_base64"] = b64encode(b"\xff").decode()

    assert found_in(signed(changed(unpacked(made.pack), "holds", broken)), made.trust) == {"record-changed"}
