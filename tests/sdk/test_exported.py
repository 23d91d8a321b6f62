"""Manifests of exports: what holds, and every way in which file, manifest, keys and checkpoint can be wrong."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from muniment import exported
from muniment.keys import Trust
from tests.sdk.exports import START, Made, line, public_of
from tests.sdk.test_cli_verify import muniment


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path).write()


def edit(made: Made, change: Callable[[dict[str, Any]], Any], signed: bool = False) -> set[str]:
    """What is found once the manifest was changed; `signed`: by its own key."""
    members = json.loads(made.manifest.read_text())
    change(members)
    if signed:
        members = exported.sign({k: v for k, v in members.items() if k not in ("signature", "key_id")}, made.key)
    made.manifest.write_text(json.dumps(members))
    return made.found()


def test_what_was_exported_holds(made: Made) -> None:
    report, facts = exported.verify(made.manifest, made.trust)
    assert report.ok, report.findings
    assert (facts.records, facts.counts) == (31, {"allow": 21, "deny": 10})
    assert facts.read
    assert facts.statements == 31
    assert facts.sealed == 41


def test_without_keys_nothing_is_proved(made: Made) -> None:
    report, _ = exported.verify(made.manifest)
    assert [one.code for one in report.findings] == ["keys-untrusted"]


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_changed_byte_is_found(made: Made, place: int) -> None:
    path = made.folder / made.name
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert made.found() == {"export-changed"}


def test_a_dropped_or_added_line_is_found(made: Made) -> None:
    path = made.folder / made.name
    lines = path.read_bytes().splitlines(keepends=True)
    for changed in (lines[:-1], lines[1:], [*lines, lines[-1]], []):
        path.write_bytes(b"".join(changed))
        assert made.found() == {"export-changed"}


def test_a_file_that_is_gone_is_found(made: Made) -> None:
    (made.folder / made.name).unlink()
    assert made.found() == {"export-missing"}


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["counts"].update(allow=20, deny=11),
        lambda m: m.update(query="client=other"),
        lambda m: m["range"].update(first=9),
        lambda m: m["export"].update(name="others"),
        lambda m: m.update(more="unknown"),
        lambda m: m.pop("slot") and m.update(slot="2026-01-01T00:00:00Z"),
        lambda m: m.update(signature=m["signature"][:-4] + "AAA="),
        lambda m: m.update(signature="none"),
    ],
)  # fmt: skip
def test_a_manifest_that_was_changed_bears_no_signature(made: Made, change: Callable[[dict[str, Any]], Any]) -> None:
    assert "export-unsigned" in edit(made, change)


def test_another_key_is_not_trusted_even_under_the_trusted_name(made: Made) -> None:
    other = Ed25519PrivateKey.generate()
    members = json.loads(made.manifest.read_text())
    trusted = members["key_id"]
    forged = exported.sign({k: v for k, v in members.items() if k not in ("signature", "key_id")}, other)
    made.manifest.write_text(json.dumps(forged))
    assert made.found() == {"export-untrusted"}
    made.manifest.write_text(json.dumps(forged | {"key_id": trusted}))
    assert made.found() == {"export-unsigned"}


def test_a_key_for_another_use_is_not_an_export_key(made: Made) -> None:
    trust = made.trust
    held = Trust(writers=trust.exports, logs=trust.logs | trust.exports, assertions=trust.exports)
    assert made.found(held) == {"export-untrusted"}


def test_the_manifest_of_another_file_is_found(tmp_path: Path) -> None:
    made = Made(tmp_path).write()
    other = Made(tmp_path, first=41, last=50, key=made.key, log=made.log, name="all-7-20260202T0000Z.jsonl").write()
    swapped = made.manifest.read_text()
    made.manifest.write_text(other.manifest.read_text())
    assert made.found() == {"export-differs"}
    other.manifest.write_text(swapped)
    assert other.found() == {"export-differs"}
    (tmp_path / made.name).write_bytes((tmp_path / other.name).read_bytes())
    assert other.found() == {"export-differs", "export-changed"}


@pytest.mark.parametrize("name", ["../secret.jsonl", "/etc/passwd", "a/b", "", ".hidden", "x" * 300, "a\0b"])
def test_a_manifest_leads_to_no_other_folder(made: Made, name: str) -> None:
    assert edit(made, lambda m: m["file"].update(name=name), signed="\0" not in name) == {"export-malformed"}


def test_what_is_signed_but_not_so_is_found(made: Made) -> None:
    """The platform itself could be wrong, or whoever has its key."""
    wrong: list[Callable[[dict[str, Any]], Any]] = [
        lambda m: m.update(records=30),
        lambda m: m["counts"].update(allow=20),
        lambda m: m["counts"].update(allow=20, deny=11),
        lambda m: m["range"].update(first=11),
        lambda m: m["range"].update(last=39),
        lambda m: m["range"].update(since=m["range"]["until"], until="2030-01-01T00:00:00Z"),
        lambda m: m["range"].update(first=None),
        lambda m: m["log"].update(start=0, checkpoint=made.note(40)),
        lambda m: m["log"].update(origin="another.test/log"),
        lambda m: m.pop("log"),
    ]
    good = made.manifest.read_text()
    for number, change in enumerate(wrong):
        made.manifest.write_text(good)
        assert edit(made, change, signed=True) & {"export-differs", "checkpoint-untrusted"}, number


def test_the_checkpoint_must_be_the_logs_own(made: Made) -> None:
    trust = made.trust
    other = public_of(Ed25519PrivateKey.generate())
    assert made.found(Trust(exports=trust.exports, logs={"x": other})) == {"checkpoint-untrusted"}
    assert edit(made, lambda m: m["log"].update(checkpoint="no note"), signed=True) == {"checkpoint-unsigned"}


@pytest.mark.parametrize("member", ["id", "decision", "client", "subject", "type", "at"])
def test_a_column_that_is_not_what_its_statement_says_is_found(tmp_path: Path, member: str) -> None:
    column = {"id": "record", "subject": "user", "type": "kind", "at": "time"}.get(member, member)
    lines = [line(index) for index in range(10, 41)]
    lines[5][column] = lines[6][column] if column in ("time", "record") else "x"
    data = b"".join(json.dumps(one).encode() + b"\n" for one in lines)
    assert Made(tmp_path).write(data).found() == {"export-differs"}


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"[]\n", b"{}", b'{"index": 10}\n',
      b'{"index": "x"}\n' * 31, b"\xff\xfe\n" * 31, b"[" * 100_000 + b"\n"],
)  # fmt: skip
def test_a_signed_file_of_nonsense_is_a_finding_and_no_crash(tmp_path: Path, data: bytes) -> None:
    assert Made(tmp_path).write(data).found() == {"export-differs"}


def test_records_out_of_order_or_twice_are_found(tmp_path: Path) -> None:
    lines = [json.dumps(line(index)).encode() + b"\n" for index in range(10, 41)]
    lines[3], lines[4] = lines[4], lines[3]
    assert Made(tmp_path).write(b"".join(lines)).found() == {"export-differs"}
    lines[3] = lines[4]
    assert Made(tmp_path).write(b"".join(lines)).found() == {"export-differs"}


def table(rows: list[list[object]]) -> bytes:
    into = io.StringIO()
    csv.writer(into, quoting=csv.QUOTE_ALL).writerows(rows)
    return b"\xef\xbb\xbf" + into.getvalue().encode()


def test_csv_is_read_and_counted(tmp_path: Path) -> None:
    rows: list[list[object]] = [["time", "index", "decision"]]
    rows += [[line(index)["time"], index, line(index)["decision"]] for index in range(10, 41)]
    made, columns = Made(tmp_path, name="x.csv", type="csv"), ["time", "index", "decision"]
    made.write(table(rows), columns=columns)
    report, facts = exported.verify(made.manifest, made.trust)
    assert report.ok and facts.read, report.findings
    made.write(table([*rows[:-1], [*rows[-1][:2], "allow" if rows[-1][2] == "deny" else "deny"]]), columns=columns)
    assert made.found() == {"export-differs"}
    made.write(table([*rows, ["one cell"]]), columns=columns)
    assert made.found() == {"export-differs"}
    made.write(table(rows), columns=["time", "index"])
    assert [one.message for one in exported.verify(made.manifest, made.trust)[0].findings] == [
        "the file has other columns than the manifest says"
    ]


def test_ocsf_is_read_and_counted(tmp_path: Path) -> None:
    def event(index: int) -> bytes:
        ours = {"decision": line(index)["decision"]}
        return json.dumps({"metadata": {"sequence": index}, "unmapped": {"muniment": ours}}).encode() + b"\n"

    events = [event(index) for index in range(10, 41)]
    made = Made(tmp_path, name="x.ocsf.jsonl", type="ocsf").write(b"".join(events))
    assert made.found() == set()
    made.write(b"".join(events[:-1]) + b"{}\n")
    assert made.found() == {"export-differs"}


def test_an_empty_range_needs_no_checkpoint(tmp_path: Path) -> None:
    empty = {"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z", "first": None, "last": None}
    changes: dict[str, Any] = {"range": empty, "records": 0, "counts": {}, "log": None}
    made = Made(tmp_path).write(b"", **changes)
    assert made.found() == set()
    made.write(json.dumps(line(1)).encode() + b"\n", **changes)
    assert made.found() == {"export-differs"}


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=300), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["format", "type", "export", "range", "file", "name", "log", "x"]), inner, max_size=5),
).map(lambda value: json.dumps(value).encode())))  # fmt: skip
def test_no_manifest_makes_it_crash(made: Made, data: bytes) -> None:
    made.manifest.write_bytes(data)
    assert made.found() == {"export-malformed"}


def test_the_command_says_what_holds_and_ends_with_0(made: Made) -> None:
    (made.folder / "keys").write_text(made.vkeys)
    for given_file in (made.manifest, made.folder / made.name):
        ran = muniment("verify", given_file, "--trust", made.folder / "keys")
        assert (ran.status, ran.error) == (0, "")
        assert ran.lines[0] == "Everything holds."
        assert "31 records (21 allow, 10 deny)" in ran.out
    told = json.loads(muniment("verify", made.manifest, "--trust", made.folder / "keys", "--json").out)
    assert told["ok"] is True
    assert told["export"]["records"] == 31


def test_the_command_ends_with_1_for_a_finding_and_2_for_what_cannot_be_used(made: Made) -> None:
    (made.folder / "keys").write_text(made.vkeys)
    (made.folder / made.name).write_bytes(b"other")
    ran = muniment("verify", made.manifest, "--trust", made.folder / "keys")
    assert ran.status == 1
    assert ran.lines == [
        f"export-changed: {made.name} is not the file that was exported: it has 5 bytes, and the manifest is of"
        f" {len(Made(made.folder).write().folder.joinpath(made.name).read_bytes()):,}, or others"
    ]
    for arguments in (["--from", "2026-01-01"], ["--trust", made.folder / "nothing"]):
        ran = muniment("verify", made.manifest, *arguments)
        assert ran.status == 2
        assert len(ran.error.splitlines()) == 1
    ran = muniment("verify", made.folder / "gone.manifest.json")
    assert (ran.status, ran.error) == (2, "muniment: gone.manifest.json cannot be read: No such file or directory\n")


def test_what_is_signed_is_bound_to_exports(made: Made) -> None:
    members = made.members(b"")
    assert exported.message(members).startswith(b"muniment/export/v1\0{")
    assert exported.message(members | {"signature": "x"}) == exported.message(members)
    assert exported.message(members | {"records": START}) != exported.message(members)
