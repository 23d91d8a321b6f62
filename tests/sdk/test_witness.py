"""A witness cosigns only what goes on from what it cosigned before, and forgets nothing, however it ends."""

import os
import random
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import pytest

from muniment import notes
from muniment.checkpoints import Checkpoint
from muniment.notes import Note
from muniment.witness import MAX_BODY, MAX_CONNECTIONS, Witness, WitnessError
from tests.witnesses import Running, SmallLog, command, running

NOW = 1_800_000_000


@pytest.fixture
def log() -> SmallLog:
    return SmallLog()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def witness(log: SmallLog, said: list[str], tmp_path: Path) -> Iterator[Witness]:
    witness = Witness(tmp_path / "state", "witness.test/w1", [log.key], said.append, lambda: NOW)
    yield witness
    witness.close()


@pytest.fixture
def served(log: SmallLog, tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path / "state", log.key) as served:
        yield served


def again(folder: Path, log: SmallLog, name: str = "witness.test/w1") -> Witness:
    return Witness(folder, name, [log.key], clock=lambda: NOW)


class TestItsJudgement:
    def test_a_log_that_grows_is_cosigned_each_time(self, log: SmallLog, witness: Witness) -> None:
        for old, size in [(0, 1), (1, 2), (2, 7), (7, 7), (7, 8), (8, 300)]:
            answer = witness.add(log.request(old, size))
            assert answer.status == 200, answer
            note = Note.parse(log.note(size) + answer.text)
            assert notes.cosigned_at(note, witness.key) == NOW
        kept = witness.newest(log.origin)
        assert kept is not None
        assert Checkpoint.parse(Note.parse(kept).text).size == 300

    def test_another_old_size_is_told_the_right_one(self, log: SmallLog, witness: Witness) -> None:
        assert witness.add(log.request(3, 7))[:2] == (409, "0\n")
        witness.add(log.request(0, 7))
        for old, size in [(0, 9), (6, 9), (8, 9), (0, 5), (5, 5)]:
            assert witness.add(log.request(old, size)) == (409, "7\n", "text/x.tlog.size")
        assert witness.add(log.request(7, 9)).status == 200

    def test_a_log_that_is_not_known_is_not_found(self, witness: Witness) -> None:
        assert witness.add(SmallLog("log.test/other").request(0, 1)).status == 404

    def test_a_foreign_signature_is_forbidden_and_ignored_beside_the_right_one(
        self, log: SmallLog, witness: Witness
    ) -> None:
        assert witness.add(SmallLog().request(0, 1)).status == 403
        both = log.request(0, 1) + SmallLog().note(1).partition("\n\n")[2].encode()
        assert witness.add(both).status == 200
        kept = witness.newest(log.origin)
        assert kept and len(Note.parse(kept).signatures) == 2, "the log's, the witness's"

    def test_an_old_size_above_the_checkpoints_is_a_bad_request(self, log: SmallLog, witness: Witness) -> None:
        witness.add(log.request(0, 7))
        assert witness.add(log.request(7, 5)).status == 400

    def test_a_proof_that_does_not_hold_is_unprocessable(
        self, log: SmallLog, witness: Witness, said: list[str]
    ) -> None:
        assert witness.add(log.request(0, 7, [bytes(32)])).status == 422, "from nothing nothing is proven"
        witness.add(log.request(0, 7))
        rewritten = SmallLog(private=log.private, seed="another history ")
        for request in [log.request(7, 9, []), log.request(7, 9, [bytes(32)] * 4), rewritten.request(7, 9)]:
            assert witness.add(request).status == 422
        assert witness.add(log.request(7, 7, [bytes(32)])).status == 422
        assert said
        assert witness.add(log.request(7, 9)).status == 200

    def test_a_fork_is_refused_and_both_notes_are_kept(
        self, log: SmallLog, witness: Witness, said: list[str], tmp_path: Path
    ) -> None:
        witness.add(log.request(0, 7))
        fork = SmallLog(private=log.private, seed="another history ")
        for old in (7, 0, 7):
            answer = witness.add(fork.request(old, 7))
            assert (answer.status, answer.content_type) == (409, "text/plain; charset=utf-8")
        kept = [Note.parse(path.read_text()) for path in (tmp_path / "state" / "evidence").iterdir()]
        assert {note.text for note in kept} == {Note.parse(log.note(7)).text, Note.parse(fork.note(7)).text}
        assert all(notes.verify(note, log.key) for note in kept)
        assert "FORK" in said[0]
        assert witness.newest(log.origin) and log.note(7) in str(witness.newest(log.origin))

    def test_during_a_rotation_either_key_will_do(self, log: SmallLog, tmp_path: Path) -> None:
        rotated = SmallLog()
        witness = Witness(tmp_path / "two", "witness.test/w1", [log.key, rotated.key])
        assert witness.add(log.request(0, 3)).status == 200
        assert witness.add(rotated.request(3, 4)).status == 200
        witness.close()
        witness = Witness(tmp_path / "two", "witness.test/w1", [rotated.key])
        assert witness.add(log.request(4, 5)).status == 403
        assert witness.add(rotated.request(4, 5)).status == 200
        witness.close()

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"\xff\xfe",
            b"old 0\n",
            b"old 00\n\n",
            b"old -1\n\n",
            b"old " + b"9" * 30 + b"\n\n",
            b"old 0\n\nnot a note\n",
            b"old 0\nAAAA\n\n",
            b"old 0\n" + b"!" * 44 + b"\n\n",
        ],
    )
    def test_what_cannot_be_read_is_a_bad_request(self, log: SmallLog, witness: Witness, body: bytes) -> None:
        assert witness.add(body).status == 400
        if body.endswith(b"\n\n"):
            assert witness.add(body + log.note(1).encode()).status == 400

    def test_a_proof_has_63_lines_at_most(self, log: SmallLog, witness: Witness) -> None:
        witness.add(log.request(0, 1))
        assert witness.add(log.request(1, 2, [bytes(32)] * 63)).status == 422
        assert witness.add(log.request(1, 2, [bytes(32)] * 64)).status == 400


class TestItsFolder:
    def test_a_restart_keeps_key_and_checkpoints(self, log: SmallLog, witness: Witness, tmp_path: Path) -> None:
        witness.add(log.request(0, 7))
        newest = witness.newest(log.origin)
        witness.close()
        restarted = again(tmp_path / "state", log)
        assert restarted.key == witness.key
        assert restarted.newest(log.origin) == newest
        assert restarted.add(log.request(0, 9))[:2] == (409, "7\n")
        restarted.close()

    def test_nobody_else_can_read_its_key(self, witness: Witness, tmp_path: Path) -> None:
        assert stat.S_IMODE((tmp_path / "state" / "key").stat().st_mode) == 0o600

    def test_two_witnesses_do_not_share_a_folder(self, log: SmallLog, witness: Witness, tmp_path: Path) -> None:
        with pytest.raises(WitnessError, match="another witness"):
            again(tmp_path / "state", log)

    def test_it_keeps_its_name(self, log: SmallLog, witness: Witness, tmp_path: Path) -> None:
        witness.close()
        with pytest.raises(WitnessError, match="another name"):
            again(tmp_path / "state", log, "witness.test/w2")

    def test_it_does_not_start_from_what_it_did_not_leave(
        self, log: SmallLog, witness: Witness, tmp_path: Path
    ) -> None:
        witness.add(log.request(0, 7))
        witness.close()
        [path] = (tmp_path / "state" / "checkpoints").iterdir()
        for other in [log.note(3), "", path.read_text().replace("\n7\n", "\n6\n")]:
            path.write_text(other)
            with pytest.raises(WitnessError, match="not as the witness left it"):
                again(tmp_path / "state", log)

    def test_a_half_written_file_is_not_taken_for_one(self, log: SmallLog, witness: Witness, tmp_path: Path) -> None:
        witness.add(log.request(0, 7))
        witness.close()
        [path] = (tmp_path / "state" / "checkpoints").iterdir()
        path.with_suffix(".new").write_text("half a no")
        restarted = again(tmp_path / "state", log)
        assert restarted.add(log.request(7, 9)).status == 200
        restarted.close()

    def test_what_could_not_be_kept_was_not_cosigned(self, log: SmallLog, witness: Witness, tmp_path: Path) -> None:
        witness.add(log.request(0, 7))
        folder = tmp_path / "state" / "checkpoints"
        folder.rename(tmp_path / "away")
        with pytest.raises(OSError):
            witness.add(log.request(7, 9))
        (tmp_path / "away").rename(folder)
        assert witness.add(log.request(0, 9))[:2] == (409, "7\n")

    def test_of_requests_at_once_one_wins(self, log: SmallLog, witness: Witness) -> None:
        witness.add(log.request(0, 7))
        requests = [log.request(7, size) for size in range(8, 40)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(witness.add, requests))
        assert sorted(answer.status for answer in answers) == [200] + [409] * 31


class TestTheProcess:
    def test_it_serves_and_says_its_key(self, log: SmallLog, served: Running) -> None:
        assert served.key.algorithm == notes.COSIGNATURE
        status, _, text = served.add(log.request(0, 7))
        assert status == 200
        assert abs((notes.cosigned_at(Note.parse(log.note(7) + text), served.key) or 0) - time.time()) < 60
        assert served.add(log.request(0, 9)) == (409, "text/x.tlog.size", "7\n")
        status, _, newest = served.ask("GET", f"/checkpoint?origin={log.origin}")
        assert (status, newest) == (200, log.note(7) + text)

    @pytest.mark.parametrize("path", ["/checkpoint", "/checkpoint?origin=other", "/", "/key", "/../state/key"])
    def test_it_shows_nothing_else(self, served: Running, path: str) -> None:
        assert served.ask("GET", path)[0] == 404

    def test_what_is_too_large_or_unbounded_is_not_read(self, log: SmallLog, served: Running) -> None:
        assert served.add(b"x" * (MAX_BODY + 1))[0] == 413
        assert served.ask("POST", "/other", b"")[0] == 404
        with socket.create_connection(("127.0.0.1", served.port), 10) as connection:
            connection.sendall(
                b"POST /add-checkpoint HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            )
            assert b" 411 " in connection.recv(4096)
        assert served.add(log.request(0, 1))[0] == 200

    def test_connections_above_the_bound_are_turned_away_until_others_end(self, log: SmallLog, served: Running) -> None:
        idle = [socket.create_connection(("127.0.0.1", served.port), 10) for _ in range(MAX_CONNECTIONS)]
        with pytest.raises(OSError):
            for _ in range(50):
                served.add(log.request(0, 1))
        for connection in idle:
            connection.close()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                assert served.add(log.request(0, 1))[0] == 200
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("it does not serve again")

    def test_a_fork_is_said_aloud(self, log: SmallLog, served: Running, tmp_path: Path) -> None:
        served.add(log.request(0, 7))
        assert served.add(SmallLog(private=log.private, seed="x").request(7, 7))[0] == 409
        assert "FORK" in served.kill()
        assert len(os.listdir(tmp_path / "state" / "evidence")) == 2

    def test_killed_at_any_moment_it_never_cosigns_two_histories(self, log: SmallLog, tmp_path: Path) -> None:
        answered = 0
        for _ in range(6):
            with running(tmp_path / "state", log.key) as served, ThreadPoolExecutor(1) as pool:
                status, _, newest = served.ask("GET", f"/checkpoint?origin={log.origin}")
                size = Checkpoint.parse(Note.parse(newest).text).size if status == 200 else 0
                assert size >= answered, "an answered checkpoint is gone"

                def grow(served: Running = served, size: int = size) -> int:
                    for target in range(size + 1, size + 500):
                        try:
                            assert served.add(log.request(target - 1, target))[0] == 200
                        except (OSError, HTTPException):
                            return target - 1
                    return size + 499

                grown = pool.submit(grow)
                time.sleep(random.uniform(0.02, 0.2))
                served.process.kill()
                answered = grown.result(60)
        assert answered > 0

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"name": "a+b"}, "name"),
            ({"port": 70000}, "--listen"),
            ({"vkey": "nonsense"}, "--log"),
        ],
    )
    def test_what_cannot_be_is_said_in_one_line(
        self, log: SmallLog, tmp_path: Path, change: dict[str, str | int], words: str
    ) -> None:
        arguments = command(tmp_path / "x", log.key, name=str(change.get("name", "w")), port=int(change.get("port", 0)))
        if "vkey" in change:
            arguments[-1] = str(change["vkey"])
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=30)
        assert done.returncode == 2
        [line] = done.stderr.splitlines()
        assert words in line
