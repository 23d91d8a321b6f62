"""A witness as an anchor: against our own, in a process of its own, and against servers that mean harm."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.anchors.witness import MAX_ANSWER
from audit.models import Anchoring, AnchorState
from muniment import notes
from muniment.notes import COSIGNATURE, Key, Note
from tests.audit.anchored import AnchoredLog, Clock, alerts, push, rewritten, rolled_back, sizes, state, stopped
from tests.audit.sealers import altered
from tests.witnesses import Running, running

FORGET = ("DELETE FROM audit_anchoring", "DELETE FROM audit_anchorstate")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return stopped(monkeypatch)


@pytest.fixture
def log(db: None, clock: Clock) -> AnchoredLog:
    return AnchoredLog()


@pytest.fixture
def witness(log: AnchoredLog, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A witness that knows the log and is the only anchor; however busy the machine is, it is waited for."""
    monkeypatch.setattr("audit.anchors.witness.SECONDS", 60.0)
    with running(tmp_path / "witness", log.key) as witness:
        settings.MUNIMENT_ANCHORS = [url(witness.port, witness.key)]
        yield witness


def url(port: int, key: Key, path: str = "") -> str:
    return f"witness+http://127.0.0.1:{port}{path}?key={quote(key.vkey, safe='')}"


def cosignature(size: int) -> str:
    return Anchoring.objects.get(size=size).cosignature


class TestOurOwn:
    def test_each_checkpoint_is_cosigned_as_the_log_grows(self, log: AnchoredLog, witness: Running) -> None:
        for count in (1, 1, 5, 300, 70_000):
            note = log.grow(count)
            push()
            assert state().error == ""
            cosigned = Note.parse(note + cosignature(log.builder.size))
            assert abs((notes.cosigned_at(cosigned, witness.key) or 0) - time.time()) < 60
        assert sizes() == [1, 2, 7, 307, 70_307]
        assert witness.ask("GET", f"/checkpoint?origin={log.log.origin}")[2] == cosigned.encode()

    def test_one_that_has_seen_more_than_we_remember_is_asked_again_from_there(
        self, log: AnchoredLog, witness: Running, superuser_url: str
    ) -> None:
        log.grow(3)
        push()
        altered(superuser_url, *FORGET)
        log.grow(4)
        push()
        assert (sizes(), state().failures) == ([7], 0)

    def test_killed_between_the_sending_and_the_row_it_cosigns_once_more(
        self, log: AnchoredLog, witness: Running, superuser_url: str
    ) -> None:
        log.grow(3)
        push()
        altered(superuser_url, *FORGET)
        push()
        assert sizes() == [3]
        assert cosignature(3)

    def test_one_that_was_away_goes_on_where_it_was(
        self, log: AnchoredLog, witness: Running, clock: Clock, tmp_path: Path
    ) -> None:
        log.grow(3)
        push()
        witness.kill()
        log.grow(4)
        for _ in range(3):
            push()
            clock.add(900)
        assert state().error == "the witness cannot be reached: Connection refused"
        assert alerts() == [("anchor-failing", state().name)]
        log.grow(5)
        with running(tmp_path / "witness", log.key, port=witness.port):
            push()
        assert alerts() == []
        assert sizes() == [3, 12]

    def test_one_that_holds_more_than_the_database_is_an_alert(
        self, log: AnchoredLog, witness: Running, superuser_url: str
    ) -> None:
        log.grow(3)
        log.grow(4)
        push()
        rolled_back(superuser_url, 3)
        push()
        assert alerts() == [("verification-failed", state().name)]
        assert "7 records, the database one of 3" in state().error

    @pytest.mark.parametrize(("size", "word"), [(7, "forked"), (9, "rewritten")])
    def test_a_history_that_was_rewritten_is_not_cosigned_and_is_an_alert(
        self, log: AnchoredLog, witness: Running, superuser_url: str, tmp_path: Path, size: int, word: str
    ) -> None:
        log.grow(7)
        push()
        rewritten(log, superuser_url, size)
        push()
        assert alerts() == [("verification-failed", state().name)]
        assert word in state().error
        assert sizes() == []
        assert len(list((tmp_path / "witness" / "evidence").iterdir())) == (2 if size == 7 else 0)

    def test_tiles_that_are_gone_are_said_to_be(self, log: AnchoredLog, witness: Running, superuser_url: str) -> None:
        log.grow(3)
        push()
        log.grow(4)
        altered(superuser_url, "DELETE FROM audit_tile")
        push()
        assert "tiles" in state().error
        assert alerts() == []

    @pytest.mark.parametrize(("origin", "words"), [("muniment.test/log", "403"), ("other.test/log", "404")])
    def test_one_that_does_not_know_the_key_or_the_log_says_so(
        self, log: AnchoredLog, tmp_path: Path, settings: Any, origin: str, words: str
    ) -> None:
        key = Key(origin, notes.ED25519, Ed25519PrivateKey.generate().public_key().public_bytes_raw())
        log.grow(3)
        with running(tmp_path / "witness", key) as witness:
            settings.MUNIMENT_ANCHORS = [url(witness.port, witness.key)]
            push()
        assert words in state().error

    def test_a_cosignature_by_another_key_is_not_believed(
        self, log: AnchoredLog, witness: Running, settings: Any
    ) -> None:
        other = Key(witness.key.name, COSIGNATURE, Ed25519PrivateKey.generate().public_key().public_bytes_raw())
        settings.MUNIMENT_ANCHORS = [url(witness.port, other)]
        log.grow(3)
        push()
        assert "not a cosignature by the key" in state().error
        assert sizes() == []


Answering = Callable[[BaseHTTPRequestHandler, bytes], None]


@contextmanager
def rogue(answer: Answering) -> Iterator[int]:
    """A server that answers a POST as it is told."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                answer(self, body)
            except OSError:  # the client had enough
                self.close_connection = True

        def do_GET(self) -> None:
            raise AssertionError("nobody asked for this")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


def said(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


class TestOthers:
    private = Ed25519PrivateKey.generate()
    key = Key("rogue.test/w", COSIGNATURE, private.public_key().public_bytes_raw())

    def asked(self, log: AnchoredLog, settings: Any, answer: Answering) -> str:
        """The error after one attempt."""
        log.grow(3)
        with rogue(answer) as port:
            settings.MUNIMENT_ANCHORS = [url(port, self.key, "/some/prefix")]
            push()
        return state().error

    def test_its_right_cosignature_among_others_is_the_one_that_is_kept(self, log: AnchoredLog, settings: Any) -> None:
        paths = []

        def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
            paths.append(handler.path)
            text = body.decode().partition("\n\n")[2].partition("\n\n")[0] + "\n"
            lines = [
                notes.cosign(text, "other.test", Ed25519PrivateKey.generate(), 5),
                notes.cosign(text, self.key.name, self.private, 1_800_000_000),
            ]
            said(handler, 200, "".join(f"{one.line}\n" for one in lines).encode())

        assert self.asked(log, settings, answer) == ""
        assert paths == ["/some/prefix/add-checkpoint"]
        [line] = cosignature(3).splitlines()
        assert line.startswith("— rogue.test/w ")

    def test_a_cosignature_of_something_else_is_not_believed(self, log: AnchoredLog, settings: Any) -> None:
        line = notes.cosign("muniment.test/log\n9\nx\n", self.key.name, self.private, 5).line

        def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
            said(handler, 200, f"{line}\n".encode())

        assert "not a cosignature by the key" in self.asked(log, settings, answer)
        assert sizes() == []

    @pytest.mark.parametrize(
        ("status", "body", "content_type", "words"),
        [
            (200, b"", "text/plain", "no cosignature"),
            (200, b"\xff\xfe", "text/plain", "UnicodeDecodeError"),
            (200, "— x AAAA\n".encode() * 200, "text/plain", "no cosignature"),
            (409, b"nonsense", "text/x.tlog.size", "a size that is none"),
            (409, b"0" * 60_000, "text/x.tlog.size", "a size that is none"),
            (409, b"2\n", "text/x.tlog.size; charset=utf-8", "cosigned something else"),
            (500, b"s3cret", "text/plain", "answered 500"),
            (404, b"s3cret", "text/plain", "404"),
            (200, b"x" * (MAX_ANSWER + 1), "text/plain", "more than"),
        ],
    )
    def test_answers_of_no_use_are_failures(
        self, log: AnchoredLog, settings: Any, status: int, body: bytes, content_type: str, words: str
    ) -> None:
        error = self.asked(log, settings, lambda handler, _: said(handler, status, body, Content_Type=content_type))
        assert words in error
        assert "s3cret" not in error
        assert alerts() == []

    def test_a_redirect_is_not_followed(self, log: AnchoredLog, settings: Any) -> None:
        asked: list[bytes] = []

        def elsewhere(handler: BaseHTTPRequestHandler, body: bytes) -> None:
            asked.append(body)
            said(handler, 200, b"")

        with rogue(elsewhere) as other:
            where = f"http://127.0.0.1:{other}/add-checkpoint"
            for status in (302, 307, 308):
                AnchorState.objects.all().delete()
                error = self.asked(log, settings, lambda handler, _, s=status: said(handler, s, b"", Location=where))  # type: ignore[misc]
                assert error == "the witness redirects, which is not followed"
        assert asked == []

    def test_an_answer_that_drips_is_cut_off(
        self, log: AnchoredLog, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("audit.anchors.witness.SECONDS", 2.0)

        def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", "60000")
            handler.end_headers()
            for _ in range(400):
                handler.wfile.write(b"x")
                time.sleep(0.1)

        began = time.monotonic()
        assert self.asked(log, settings, answer)
        assert time.monotonic() - began < 20, "of 40"
        assert state().failures == 1

    def test_a_server_that_says_nothing_is_left(
        self, log: AnchoredLog, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("audit.anchors.witness.SECONDS", 2.0)
        error = self.asked(log, settings, lambda handler, _: handler.rfile.read(1) and None)  # until we hang up
        assert error == "the witness did not answer in time"
