"""What ran without the platform is on disk before it runs, in a chain; nothing of it is lost, and nothing is put in."""

import os
import signal
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muniment import Misconfigured
from muniment.calls import Incoming
from muniment.cli import main
from muniment.spool import (
    File,
    SpoolDamaged,
    SpoolFailed,
    claimed,
    files,
    lines_of,
    prepared,
    told,
)
from tests.world import token

CALL = told("status.show", Incoming(None), "unreachable")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepared(tmp_path / "spool")


def filled(folder: Path, count: int) -> File:
    file = File.new(folder)
    for _ in range(count):
        file.append(CALL)
    return file


def test_lines_are_numbered_and_each_names_the_one_before(folder: Path) -> None:
    file = filled(folder, 3)
    lines, whole = lines_of(file.path.read_bytes(), file.spool)
    assert [line.sequence for line in lines] == [1, 2, 3] and whole == file.path.stat().st_size
    assert msgspec.json.decode(lines[2].data)["previous"] == lines[1].hash
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_a_token_is_never_in_it_only_what_it_claims(folder: Path) -> None:
    text = token(sub="alice")
    file = File.new(folder)
    file.append(told("status.show", Incoming(text, {"id": "r1", "user_agent": "a\x00b"}), "timeout"))
    data = file.path.read_text()
    assert text not in data and text.split(".")[2] not in data
    said = msgspec.json.decode(data)
    assert said["claimed"] == {"iss": "https://id.example/", "sub": "alice", "client_id": "claude-app"}
    assert said["cause"] == "timeout" and said["request"] == {"id": "r1", "user_agent": "a b"}


@pytest.mark.parametrize("text", [None, "", "x", "a.b.c", "a.e30.c", "a.W10.c", "é.é.é", "a." + "x" * 20_000 + ".c"])
def test_a_token_that_says_nothing_claims_nothing(text: str | None) -> None:
    assert claimed(text) is None


@given(st.dictionaries(st.sampled_from(["iss", "sub", "client_id", "azp"]), st.text() | st.integers() | st.none()))
def test_a_claim_is_plain_text_within_bounds(claims: dict[str, object]) -> None:
    payload = urlsafe_b64encode(msgspec.json.encode(claims)).decode().rstrip("=")
    found = claimed(f"e30.{payload}.x") or {}
    assert all(isinstance(one, str) and one.isprintable() and 0 < len(one) <= 255 for one in found.values())


def test_a_line_that_was_cut_off_by_a_crash_is_left_out_and_the_rest_holds(folder: Path) -> None:
    file = filled(folder, 3)
    whole = file.path.read_bytes()
    second = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    for end in (second, second + 1, len(whole) - 1):
        path = folder / f"{file.spool}.spool"
        file.close()
        path.write_bytes(whole[:end])
        adopted = File.adopt(path)
        assert adopted is not None and adopted.waiting == 2
        assert path.read_bytes() == whole[:second]
        adopted.close()


@given(place=st.integers(min_value=0), flip=st.integers(min_value=1, max_value=255))
def test_an_altered_byte_breaks_the_chain(tmp_path_factory: pytest.TempPathFactory, place: int, flip: int) -> None:
    file = filled(prepared(tmp_path_factory.mktemp("spool") / "s"), 3)
    data = bytearray(file.path.read_bytes())
    file.close()
    last = data.rindex(b"\n", 0, -1) + 1  # the last line is vouched for by the platform alone
    data[place % last] ^= flip
    try:
        lines, _ = lines_of(bytes(data), file.spool)
    except SpoolDamaged as error:
        assert error.sequence < 3
    else:
        assert len(lines) < 3


def test_a_line_taken_out_put_in_or_moved_breaks_the_chain(folder: Path) -> None:
    file = filled(folder, 3)
    one, two, three = file.path.read_bytes().splitlines(keepends=True)
    for wrong in (one + three, two + three, one + one + two + three, two + one + three, one + two + two):
        with pytest.raises(SpoolDamaged):
            lines_of(wrong, file.spool)
    with pytest.raises(SpoolDamaged):
        lines_of(one + two + three, "0" * 32)


def test_a_damaged_file_is_put_aside_and_not_deleted(folder: Path) -> None:
    file = filled(folder, 2)
    file.close()
    file.path.write_bytes(file.path.read_bytes().replace(b"unreachable", b"unreachabel", 1))
    with pytest.raises(SpoolDamaged):
        File.adopt(file.path)
    assert not files(folder) and file.path.with_suffix(".damaged").exists()


def test_a_file_of_a_living_process_is_left_alone(folder: Path) -> None:
    file = filled(folder, 1)
    assert File.adopt(file.path) is None
    file.close()
    assert File.adopt(file.path) is not None


def test_what_is_written_survives_kill_9(folder: Path) -> None:
    program = f"""
from pathlib import Path
from muniment.calls import Incoming
from muniment.spool import File, told
file = File.new(Path({str(folder)!r}))
while True:
    file.append(told("status.show", Incoming(None), "unreachable"))
    print(len(file._lines), flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        seen = 0
        deadline = time.monotonic() + 30
        while seen < 200 and time.monotonic() < deadline:
            seen = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        said = child.stdout.read().splitlines()
    told_of = int(said[-1]) if said else seen
    [path] = files(folder)
    adopted = File.adopt(path)
    assert adopted is not None and adopted.waiting >= told_of >= 200


def test_at_its_limit_and_on_a_full_disk_nothing_is_half_written(folder: Path) -> None:
    file = filled(folder, 2)
    size = file.path.stat().st_size
    with pytest.raises(SpoolFailed):
        file.append(CALL, limit=size + 10)
    code = f"""
import resource, signal
from pathlib import Path
from muniment.spool import File, SpoolFailed, told
from muniment.calls import Incoming
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = File.new(Path({str(folder)!r}))
file.append(told("a", Incoming(None), "timeout"))
size = file.path.stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, size + 20))
try:
    file.append(told("a", Incoming(None), "timeout"))
except SpoolFailed:
    assert file.path.stat().st_size == size, file.path.stat().st_size
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "refused\n"
    assert file.path.stat().st_size == size


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o777])
def test_a_folder_that_others_can_look_into_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    with pytest.raises(Misconfigured, match="0700"):
        prepared(tmp_path / "open")


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("")
    with pytest.raises(Misconfigured):
        prepared(tmp_path / "spool")


def test_a_link_among_the_files_is_not_followed(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"")
    link = folder / f"{'a' * 32}.spool"
    os.symlink(target, link)
    assert File.adopt(link) is None


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(["spool", *arguments])
    told = capsys.readouterr()
    return status, told.out + told.err


def test_the_command_lists_what_waits_and_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(folder), capsys=capsys) == (0, "Nothing waits.\n")
    file = filled(folder, 3)
    before = file.path.read_bytes()
    status, words = run(str(folder), capsys=capsys)
    assert status == 0 and f"{file.spool}.spool: 3 calls wait, since 20" in words
    assert file.path.read_bytes() == before


def test_the_command_tells_what_is_damaged_or_put_aside(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = filled(folder, 2)
    file.path.write_bytes(file.path.read_bytes().replace(b"unreachable", b"unreachabel", 1))
    (folder / f"{'b' * 32}.refused").write_bytes(b"")
    status, words = run(str(folder), capsys=capsys)
    assert status == 1 and "damaged after line 1" in words and "put aside" in words


@pytest.mark.parametrize("at", ["x", None, -1, 2**53 - 1])
def test_the_command_bears_a_time_that_is_none(folder: Path, capsys: pytest.CaptureFixture[str], at: object) -> None:
    file = File.new(folder)
    file.append(CALL | {"at": at})
    status, words = run(str(folder), capsys=capsys)
    assert status == 0 and "1 calls wait" in words


def test_the_command_says_in_a_line_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, words = run(str(tmp_path / "nowhere"), capsys=capsys)
    assert status == 2 and words.count("\n") == 1 and "cannot be read" in words
