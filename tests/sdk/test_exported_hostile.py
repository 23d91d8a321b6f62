"""Exports and packs that were made to hurt whoever verifies them: memory, time, other files and the library of a format
are out of their reach."""

import io
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import pyarrow
import pytest
from pyarrow import parquet

from muniment import export_contents, exported, packs
from tests.sdk.exports import Made


def peak(made: Made) -> float:
    """MiB that a verification takes at most; that it finds something is not its end."""
    tracemalloc.start()
    try:
        assert made.found() == {"export-differs"}
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("piece", [b"1,", b'"a\n",'], ids=["one line", "many lines"])
def test_a_row_of_csv_without_end_takes_no_memory(
    tmp_path: Path, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_contents, "MAX_LINE", 1 << 16)
    made = Made(tmp_path, name="x.csv", type="csv").write(b"index,decision\n" + piece * 1_000_000)
    assert peak(made) < 8


def test_decisions_without_end_take_no_memory_and_are_counted(tmp_path: Path) -> None:
    lines = b"".join(b'{"index":%d,"decision":"%0200d"}\n' % (n, n) for n in range(20_000))
    made = Made(tmp_path).write(lines)
    assert peak(made) < 5
    assert any("20,000 records" in one.message for one in exported.verify(made.manifest, made.trust)[0].findings)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    made = Made(tmp_path).write()
    path = tmp_path / made.name
    path.unlink()
    {"pipe": os.mkfifo, "device": lambda p: p.symlink_to("/dev/zero"), "folder": Path.mkdir}[kind](path)
    assert made.found() == {"export-missing"}


def test_a_manifest_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    made = Made(tmp_path).write()
    made.manifest.unlink()
    os.mkfifo(made.manifest)
    with pytest.raises(OSError, match="not a file"):
        exported.verify(made.manifest, made.trust)


def test_a_file_that_is_longer_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path).write()
    with (tmp_path / made.name).open("r+b") as file:
        file.truncate(2**40)  # sparse
    [finding] = exported.verify(made.manifest, made.trust)[0].findings
    assert finding.code == "export-changed"
    assert "bytes or more" in finding.message


def of_parquet(folder: Path, **columns: Any) -> Made:
    """A Parquet file of these columns, with a manifest that names them."""
    into = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), into)
    return Made(folder, name="x.parquet", type="parquet").write(into.getvalue(), columns=list(columns))


def test_parquet_is_read_only_where_somebody_trusted_has_signed_it(tmp_path: Path) -> None:
    made = of_parquet(
        tmp_path, index=list(range(10, 41)), decision=["deny" if n % 3 == 0 else "allow" for n in range(10, 41)]
    )
    assert exported.verify(made.manifest, made.trust)[1].read
    assert made.found() == set()
    stranger = Made(tmp_path / "other").trust
    stranger.logs.update(made.trust.logs)
    report, facts = exported.verify(made.manifest, stranger)
    assert [one.code for one in report.findings] == ["export-untrusted"]
    assert not facts.read


@pytest.mark.parametrize(
    "columns",
    [
        {"index": [1], "decision": ["allow"], "time": [3]}, {"index": [[1]], "decision": [["allow"]]},
        {"index": [1], "time": pyarrow.array([2**62], pyarrow.timestamp("us"))}, {"index": ["x"], "decision": [b"y"]},
    ],
    ids=["times", "lists", "far", "texts"],
)  # fmt: skip
def test_parquet_of_other_types_is_no_crash(tmp_path: Path, columns: dict[str, Any]) -> None:
    assert of_parquet(tmp_path, **columns).found() == {"export-differs"}


def test_a_pack_whose_files_share_their_bytes_is_not_unpacked(tmp_path: Path) -> None:
    """The archive's directory names one part many times (D. Fifield, A better zip bomb, 2019)."""
    into = io.BytesIO()
    with ZipFile(into, "w", ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps({"format": packs.FORMAT}))
        archive.writestr("records/a.csv", b"0" * 10_000_000)
        where = archive.getinfo("records/a.csv")
        for number in range(100):
            copy = ZipInfo(f"records/a{number}.csv")
            for name in ("header_offset", "compress_size", "file_size", "CRC", "compress_type"):
                setattr(copy, name, getattr(where, name))
            archive.filelist.append(copy)
    report, _ = packs.verify(into)
    assert [one.message for one in report.findings] == ["its files claim more than the archive has"]
