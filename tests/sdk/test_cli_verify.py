"""`muniment verify`, as an auditor runs it: in a process of its own, with nothing of the platform, no server and no
network."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from muniment.bundle import text_of
from tests.sdk.bundles import Log, at

LOG = Log.lived()
# Isolated (-I) and without what is installed beside it: only the package and what it names as its dependencies.
RUN = """
import sys
from muniment.cli import main
status = main(sys.argv[1:])
foreign = {"django", "psycopg", "redis", "celery", "rest_framework", "governance", "audit", "socket"} & set(sys.modules)
assert not foreign, foreign
sys.exit(status)
"""


@dataclass
class Ran:
    """How it ended."""

    status: int
    out: str
    error: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def muniment(*arguments: object) -> Ran:
    """Run it."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", RUN, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle, the keys as the platform gives them, and a checkpoint."""
    (tmp_path / "bundle.zip").write_bytes(LOG.parts(10, 30, roots=(9,)).pack())
    (tmp_path / "keys.json").write_bytes(LOG.jwks())
    (tmp_path / "mine.txt").write_text(LOG.checkpoint(9))
    return tmp_path


def test_what_holds_is_0_and_a_short_report(folder: Path) -> None:
    ran = muniment(
        "verify", folder / "bundle.zip", "--trust", folder / "keys.json", "--checkpoint", folder / "mine.txt",
        "--from", text_of(at(10)), "--to", text_of(at(30)),
    )  # fmt: skip
    assert (ran.status, ran.error) == (0, "")
    assert ran.lines[0].startswith("Everything holds")
    assert "Records 7 to 30: 22 open, 2 closed." in ran.lines
    assert any("15 allowed, 4 denied" in line for line in ran.lines)
    assert any(line.startswith("Sealed: 40 records of muniment.test/log") for line in ran.lines)
    assert "It leads on from 1 checkpoint that you hold." in ran.lines
    assert len(ran.lines) < 12


def test_each_finding_is_one_line_and_1(folder: Path) -> None:
    found = LOG.parts(10, 30)
    for line in found.records[5:8]:
        line.statement = (line.statement or "").replace("decision", "decisiom")
    (folder / "bundle.zip").write_bytes(found.pack())
    ran = muniment("verify", folder / "bundle.zip", "--trust", folder / "keys.json")
    assert ran.status == 1
    assert [line.split(":")[0] for line in ran.lines] == ["record-changed"] * 3
    assert "record 12" in ran.lines[0]


def test_very_many_findings_are_counted(folder: Path) -> None:
    log = Log.lived()
    log.write(*(log.decision(2, "usr_a") for _ in range(1200)))
    found = log.parts(39, 2000)
    for line in found.records:
        line.statement = (line.statement or "").replace("decision", "decisiom")
    (folder / "bundle.zip").write_bytes(found.pack())
    (folder / "keys.json").write_bytes(log.jwks())
    ran = muniment("verify", folder / "bundle.zip", "--trust", folder / "keys.json")
    assert ran.status == 1
    assert len(ran.lines) == 1001
    assert ran.lines[-1].endswith("more findings")


def test_without_keys_it_says_how_to_get_them(folder: Path) -> None:
    ran = muniment("verify", folder / "bundle.zip")
    assert ran.status == 1
    assert ran.lines[0].startswith("keys-untrusted")
    assert "curl" in ran.lines[0]
    assert sum(line.startswith("key in the bundle") for line in ran.lines) == 2
    assert not any(line.startswith("Everything holds") for line in ran.lines)


@pytest.mark.parametrize("keys", [True, False])
def test_json_is_for_machines(folder: Path, keys: bool) -> None:
    ran = muniment("verify", folder / "bundle.zip", "--json", *(["--trust", folder / "keys.json"] if keys else []))
    said: dict[str, Any] = json.loads(ran.out)
    assert ran.status == (0 if keys else 1)
    assert said["ok"] is keys
    assert [one["code"] for one in said["findings"]] == ([] if keys else ["keys-untrusted"])
    assert said["report"]["records"] == 24


@pytest.mark.parametrize(
    "arguments",
    [(), ("verify",), ("verify", "none.zip"), ("verify", "."), ("verify", "bundle.zip", "--trust", "none"),
     ("verify", "bundle.zip", "--trust", "mine.txt"), ("verify", "bundle.zip", "--trust", "bundle.zip"),
     ("verify", "bundle.zip", "--checkpoint", "keys.json"), ("verify", "bundle.zip", "--checkpoint", "bundle.zip"),
     ("verify", "bundle.zip", "--from", "yesterday"), ("verify", "bundle.zip", "--to", "2026-99-01"),
     ("verify", "bundle.zip", "--from", "2026-11-02", "--to", "2026-11-01"), ("verify", "bundle.zip", "--no-such"),
     ("forge",)],
)  # fmt: skip
def test_what_cannot_be_used_is_2_and_says_why(folder: Path, arguments: tuple[str, ...]) -> None:
    names = {"bundle.zip", "keys.json", "mine.txt", "none.zip", "none", "."}
    ran = muniment(*(folder / one if one in names else one for one in arguments))
    assert ran.status == 2
    assert ran.out == ""
    assert "Traceback" not in ran.error
    assert ran.error.strip()


def test_what_is_no_bundle_is_a_finding(folder: Path) -> None:
    (folder / "bundle.zip").write_bytes(b"hello")
    ran = muniment("verify", folder / "bundle.zip", "--trust", folder / "keys.json")
    assert (ran.status, ran.lines) == (1, ["bundle-malformed: it is not a ZIP archive"])


def test_nothing_in_a_bundle_speaks_to_the_terminal(folder: Path) -> None:
    found = LOG.parts(10, 30)
    found.manifest.asked.client = found.batches[0].key_id = found.manifest.logs[0].origin = "\x1b[2J\x9b\nall is well é"
    (folder / "bundle.zip").write_bytes(found.pack())
    for keys in ((), ("--trust", folder / "keys.json")):
        ran = muniment("verify", folder / "bundle.zip", *keys)
        assert ran.status == 1
        assert all(32 <= ord(one) < 127 for line in ran.lines for one in line)
        assert not any(line.startswith("all is well") for line in ran.lines)


def test_the_module_is_the_command(folder: Path) -> None:
    run = [sys.executable, "-I", "-m", "muniment.cli", "verify", folder / "bundle.zip"]
    assert subprocess.run(run, capture_output=True, timeout=60, check=False).returncode == 1


def test_a_reader_that_has_seen_enough_is_no_fault(folder: Path) -> None:
    run = [sys.executable, "-I", "-m", "muniment.cli", "verify", folder / "bundle.zip", "--trust", folder / "keys.json"]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(run, stdout=pipe, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_vkeys_with_a_witness_are_trusted_too(folder: Path) -> None:
    from muniment import notes
    from tests.sdk.bundles import public_of

    lines = [notes.Key(f"muniment.test/{use}", notes.ED25519, public_of(key)).vkey
             for use, key in (("log", LOG.sealer), ("writer", LOG.writer))]  # fmt: skip
    (folder / "keys.txt").write_text("# the platform\n" + "\n".join(lines) + "\n")
    ran = muniment("verify", folder / "bundle.zip", "--trust", folder / "keys.txt")
    assert ran.status == 0


def test_the_command_is_installed_by_its_package() -> None:
    text = (Path(__file__).resolve().parents[2] / "sdk" / "pyproject.toml").read_text()
    assert 'muniment = "muniment.cli:main"' in text


def test_a_bundle_of_many_records_takes_little_memory_and_time(tmp_path: Path) -> None:
    log = Log.lived()
    for _ in range(60):
        log.write(*(log.decision(2, "usr_a") for _ in range(300)))
    (tmp_path / "bundle.zip").write_bytes(log.parts(5, 18_040).pack())
    (tmp_path / "keys.json").write_bytes(log.jwks())
    # Its own peak (VmHWM); what getrusage says begins with that of the process that started it.
    peak = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    code = RUN.replace("sys.exit(status)", peak)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, "verify", tmp_path / "bundle.zip", "--trust", tmp_path / "keys.json"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "Everything holds" in done.stdout
    assert int(done.stdout.splitlines()[-1]) < 100_000, "kilobytes"
    assert time.monotonic() - began < 60
