"""Checkpoints leave the house: to each anchor once, whatever the others do, and never one that is not ours."""

import asyncio
import email
import socket
import socketserver
import stat
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from email import policy
from email.message import EmailMessage
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit import anchors
from audit.anchors import ConfigError, pushing
from audit.anchors.base import Anchor, AnchorError, Submission
from audit.models import AnchorState, Checkpoint, Outbox, PublishedKey
from muniment.notes import COSIGNATURE, Key, Note
from tests.audit.anchored import AnchoredLog, Clock, alerts, push, rewritten, rolled_back, sizes, state, stopped
from tests.audit.sealers import altered
from tests.live import free_port, until

# A fixed key: it stands in the names of tests, which must be the same in every process.
WITNESS = Key("w", COSIGNATURE, Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw())
VKEY = WITNESS.vkey.replace("+", "%2B")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return stopped(monkeypatch)


@pytest.fixture
def log(db: None, clock: Clock) -> AnchoredLog:
    return AnchoredLog()


@pytest.fixture
def place(tmp_path: Path, settings: Any) -> Path:
    """A directory that is the only anchor."""
    place = tmp_path / "place"
    place.mkdir()
    settings.MUNIMENT_ANCHORS = [f"file://{place}"]
    return place


class TestEntries:
    @pytest.mark.parametrize(
        ("url", "name"),
        [
            ("file:///srv/anchor", "file:///srv/anchor"),
            ("s3://bucket/a/b?region=eu-central-1&retain_days=400", "s3://bucket/a/b"),
            ("s3://bucket?endpoint=https%3A%2F%2Fminio.example%3A9000", "s3://bucket at minio.example:9000"),
            ("syslog://logs.example", "syslog://logs.example:514"),
            ("syslog+tcp://[::1]:6601", "syslog+tcp://::1:6601"),
            ("syslog:///dev/log", "syslog:///dev/log"),
            ("mailto:x@b.example,y@a.example?every=60", "mailto:*@a.example,*@b.example"),
            (f"witness+https://w.example/one?key={VKEY}", "witness+https://w.example/one"),
            (f"witness+http://127.0.0.1:8080?key={VKEY}", "witness+http://127.0.0.1:8080"),
        ],
    )
    def test_each_kind_is_named_by_kind_and_place(self, url: str, name: str) -> None:
        [anchor] = anchors.parse([url])
        assert anchor.name == name

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://s3cret",
            "s3cret",
            "file://s3cret/x",
            "file:///",
            "file:///a/../b",
            "file:///s3cret?x=1",
            "s3://id:s3cret@bucket/x",
            "s3://bucket?secret=s3cret",
            "s3://bucket?retain_days=-1",
            "s3://bucket?retain_days=1&retain_days=2",
            "s3://bucket?endpoint=http://s3cret.example",
            "s3://bucket?endpoint=https://id:s3cret@x",
            "s3://bucket?endpoint=https://x:s3cret",
            "syslog://id:s3cret@host",
            "syslog://host:s3cret",
            "syslog+tcp:///dev/log",
            "mailto:s3cret",
            "mailto:a@b.example,%0as3cret@x",
            "mailto:a@b.example?every=s3cret",
            "witness+https://w.example?key=s3cret",
            "witness+https://w.example",
            f"witness+http://w.example?key={VKEY}",
            f"witness+https://id:s3cret@w.example?key={VKEY}",
            f"witness+https://w.example/?key={VKEY.replace('w%2B', 'v%2B')}",
            f"witness+https://w.example:s3cret/?key={VKEY}",
            f"witness+https://w.example/%0d?key={VKEY}",
            "file:///" + "x" * 3000,
        ],
    )
    def test_what_cannot_be_is_refused_by_its_number_alone(self, url: str) -> None:
        with pytest.raises(ConfigError, match=r"^entry 2: ") as refusal:
            anchors.parse(["file:///fine", url])
        assert "s3cret" not in str(refusal.value)

    def test_the_same_place_twice_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="entry 2"):
            anchors.parse(["s3://bucket/x?retain_days=1", "s3://bucket/x"])


class TestADirectory:
    def test_it_gets_each_checkpoint_in_a_file_that_nobody_writes_again(self, log: AnchoredLog, place: Path) -> None:
        notes = [log.grow(3), ""]
        push()
        notes[1] = log.grow(4)
        push()
        files = sorted((place / "muniment.test_log").iterdir())
        assert [path.read_text() for path in files] == notes
        assert [path.name.partition("-")[0] for path in files] == ["00000000000000000003", "00000000000000000007"]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o444}
        assert sizes() == [3, 7]

    def test_it_is_read_back_largest_first(self, log: AnchoredLog, place: Path) -> None:
        notes = []
        for _ in range(3):
            notes.append(log.grow(2))
            push()
        (place / "muniment.test_log" / "other").write_text("not ours")
        (place / "muniment.test_log" / f"{9:020}-x.checkpoint").write_text("another.origin\n")
        name = f"file://{place}"
        assert list(anchors.held(log.log.origin)) == [(name, note) for note in reversed(notes)]
        assert list(anchors.held(log.log.origin, 2)) == [(name, notes[2]), (name, notes[1])]
        assert list(anchors.held("another.log")) == []

    def test_the_others_are_read_when_one_cannot_be(self, log: AnchoredLog, place: Path, settings: Any) -> None:
        note = log.grow(1)
        push()
        settings.MUNIMENT_ANCHORS = [f"file://{place}/none", f"file://{place}"]
        found = anchors.held(log.log.origin)
        assert next(found) == (f"file://{place}", note)
        with pytest.raises(AnchorError, match="none: the directory does not exist"):
            next(found)

    def test_a_missing_one_is_not_made(self, log: AnchoredLog, place: Path) -> None:
        log.grow(1)
        place.rmdir()
        push()
        assert not place.exists()
        assert (state().failures, state().error) == (1, "the directory does not exist")


class TestARound:
    def test_an_unchanged_checkpoint_is_not_sent_again(self, log: AnchoredLog, place: Path, clock: Clock) -> None:
        log.grow(1)
        push()
        tried = state().tried_at
        clock.add(3600)
        push()
        assert state().tried_at == tried
        assert sizes() == [1]

    def test_without_a_checkpoint_nothing_happens(self, log: AnchoredLog, place: Path) -> None:
        push()
        assert state().tried_at is None
        assert list(place.iterdir()) == []

    def test_without_an_anchor_nothing_happens(self, log: AnchoredLog, settings: Any) -> None:
        settings.MUNIMENT_ANCHORS = []
        log.grow(1)
        push()
        assert not AnchorState.objects.exists()

    def test_killed_between_the_sending_and_the_row_it_ends_the_same(
        self, log: AnchoredLog, place: Path, superuser_url: str
    ) -> None:
        log.grow(1)
        push()
        [file] = (place / "muniment.test_log").iterdir()
        written = file.stat()
        altered(superuser_url, "DELETE FROM audit_anchoring", "DELETE FROM audit_anchorstate")
        push()
        assert sizes() == [1]
        assert state().size == 1
        assert [file] == list((place / "muniment.test_log").iterdir())
        assert file.stat() == written

    def test_a_failing_one_holds_up_no_other(
        self, log: AnchoredLog, place: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pushing, "ROUND_SECONDS", 4.0)  # enough for those who answer
        end = Event()

        class Hanging(Anchor):
            kind = "hanging"

            def send(self, submission: Submission) -> str:
                end.wait(30)
                return ""

        class Broken(Anchor):
            kind = "broken"

            def send(self, submission: Submission) -> str:
                raise RuntimeError("a secret")

        log.grow(1)
        pushing.push([Hanging("hanging"), Broken("broken"), *anchors.configured()])
        end.set()
        assert sizes() == [1]
        errors = dict(AnchorState.objects.values_list("kind", "error"))
        assert errors == {"hanging": "it did not answer in time", "broken": "it failed (RuntimeError)", "directory": ""}

    def test_after_three_failures_in_a_row_somebody_is_told_and_after_a_success_it_is_over(
        self, log: AnchoredLog, place: Path, clock: Clock
    ) -> None:
        log.grow(1)
        place.rmdir()
        for expected in ([], [], [("anchor-failing", f"file://{place}")]):
            push()
            assert alerts() == expected
            clock.add(900)
        place.mkdir()
        push()
        assert alerts() == []
        assert (state().failures, state().error, state().size) == (0, "", 1)
        actions = [row["action"] for row in Outbox.objects.filter(kind="notice").values_list("members", flat=True)]
        assert actions == ["alert.raised", "alert.cleared"]

    def test_a_failing_one_is_left_alone_for_longer_and_longer_up_to_a_quarter_of_an_hour(
        self, log: AnchoredLog, place: Path, clock: Clock
    ) -> None:
        log.grow(1)
        place.rmdir()
        began, tries = clock.now, []
        for _ in range(60):
            before = AnchorState.objects.filter(failures__gt=0).values_list("failures", flat=True).first() or 0
            push()
            if state().failures > before:
                tries.append(int((clock.now - began).total_seconds() / 60))
            clock.add(60)
        assert tries == [0, 1, 3, 7, 15, 30, 45]

    def test_one_that_is_configured_no_longer_is_forgotten_and_its_anchorings_are_not(
        self, log: AnchoredLog, place: Path, settings: Any, clock: Clock
    ) -> None:
        log.grow(1)
        push()
        settings.MUNIMENT_ANCHORS = [f"file://{place}/none"]
        for _ in range(3):
            push()
            clock.add(900)
        assert len(alerts()) == 1
        settings.MUNIMENT_ANCHORS = []
        push()
        assert alerts() == []
        assert not AnchorState.objects.exists()
        assert sizes() == [1]


class TestWhatIsNotSent:
    def test_a_checkpoint_that_no_published_key_signed(self, log: AnchoredLog, place: Path) -> None:
        log.private = Ed25519PrivateKey.generate()
        log.grow(1)
        push()
        assert alerts() == [("verification-failed", "newest checkpoint")]
        assert list(place.iterdir()) == []
        PublishedKey.objects.create(key_id="published after all", use="log", public=log.key.public)
        push()
        assert alerts() == []
        assert sizes() == [1]

    def test_a_checkpoint_whose_row_differs_from_its_note(
        self, log: AnchoredLog, place: Path, superuser_url: str
    ) -> None:
        log.grow(1)
        altered(superuser_url, "UPDATE audit_checkpoint SET size = 2")
        push()
        assert alerts() == [("verification-failed", "newest checkpoint")]
        assert list(place.iterdir()) == []

    def test_a_checkpoint_smaller_than_what_the_anchor_holds(
        self, log: AnchoredLog, place: Path, superuser_url: str
    ) -> None:
        log.grow(3)
        log.grow(4)
        push()
        rolled_back(superuser_url, 3)
        push()
        assert alerts() == [("verification-failed", f"file://{place}")]
        assert "the log was cut" in state().error
        assert len(list((place / "muniment.test_log").iterdir())) == 1

    def test_a_checkpoint_smaller_than_what_the_anchor_is_known_to_have_taken(
        self, log: AnchoredLog, place: Path, superuser_url: str
    ) -> None:
        log.grow(3)
        push()
        log.grow(4)
        push()
        altered(superuser_url, "DELETE FROM audit_checkpoint WHERE size = 7")
        push()
        assert alerts() == [("verification-failed", f"file://{place}")]

    def test_another_root_for_a_size_that_the_anchor_holds(
        self, log: AnchoredLog, place: Path, superuser_url: str
    ) -> None:
        log.grow(3)
        push()
        again = rewritten(log, superuser_url, 3)
        push()
        assert alerts() == [("verification-failed", f"file://{place}")]
        assert "forked" in state().error
        again.grow(1)
        assert [Note.parse(note).text.split("\n")[1] for _, note in anchors.held(log.log.origin)] == ["3"]

    def test_it_is_no_finding_that_another_worker_was_faster(
        self, log: AnchoredLog, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log.grow(3)
        [directory] = anchors.configured()

        class Slow(Anchor):
            kind = "directory"

            def send(self, submission: Submission) -> str:
                log.grow(4)
                pushing.push([directory])
                return directory.send(submission)

        pushing.push([Slow(directory.name)])
        assert alerts() == []
        assert (state().size, state().failures) == (7, 0)
        assert Checkpoint.objects.count() == 2


@contextmanager
def udp() -> Iterator[tuple[str, socket.socket]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        yield f"syslog://127.0.0.1:{server.getsockname()[1]}", server


class TestSyslog:
    def checked(self, message: bytes, note: str) -> None:
        text = message.decode()
        assert " muniment-checkpoint origin=muniment.test/log size=3 root=" in text
        assert "\n" not in text
        assert b64decode(text.partition(" note=")[2]).decode() == note

    def test_a_datagram_has_the_whole_note_on_one_line(self, log: AnchoredLog, settings: Any) -> None:
        note = log.grow(3)
        with udp() as (url, server):
            settings.MUNIMENT_ANCHORS = [url]
            push()
            message = server.recv(65536)
        assert message.startswith(b"<109>1 20")
        self.checked(message, note)
        assert sizes() == [3]

    def test_a_stream_has_its_length_in_front_and_a_server_that_comes_back_gets_it(
        self, log: AnchoredLog, settings: Any, clock: Clock
    ) -> None:
        note = log.grow(3)
        received: list[bytes] = []

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                received.append(self.rfile.read())

        with socketserver.TCPServer(("127.0.0.1", 0), Handler, bind_and_activate=False) as server:
            server.allow_reuse_address = True
            server.server_bind()
            settings.MUNIMENT_ANCHORS = [f"syslog+tcp://127.0.0.1:{server.server_address[1]}"]
            push()
            assert state().error == "the syslog server cannot be reached: Connection refused"
            server.server_activate()
            thread = Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            clock.add(60)
            push()
            until(lambda: bool(received), 30)  # it may have hung up before anybody took its call
            server.shutdown()
            thread.join()
        length, _, message = received[0].partition(b" ")
        assert int(length) == len(message)
        self.checked(message, note)
        assert (state().size, state().failures) == (3, 0)

    def test_the_local_socket_takes_the_plain_form(self, log: AnchoredLog, settings: Any, tmp_path: Path) -> None:
        note = log.grow(3)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(str(tmp_path / "log"))
            server.settimeout(5)
            settings.MUNIMENT_ANCHORS = [f"syslog://{tmp_path}/log"]
            push()
            message = server.recv(65536)
        assert message.startswith(b"<109>muniment: muniment-checkpoint ")
        self.checked(message, note)


class Mailbox:
    """What an SMTP server got."""

    def __init__(self) -> None:
        self.mails: list[Any] = []
        self.refuses = False

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        await asyncio.sleep(0)
        if self.refuses:
            return "552 no room for s3cret@b.example"
        self.mails.append(envelope)
        return "250 OK"


@pytest.fixture
def mailbox(settings: Any) -> Iterator[Mailbox]:
    mailbox = Mailbox()
    port = free_port()
    controller = Controller(mailbox, hostname="127.0.0.1", port=port, ready_timeout=30)
    controller.start()
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT, settings.EMAIL_TIMEOUT = "127.0.0.1", port, 30
    settings.MUNIMENT_ANCHORS = ["mailto:s3cret@b.example"]
    yield mailbox
    controller.stop()


class TestMail:
    def test_a_mail_says_what_it_is_and_has_the_note(self, log: AnchoredLog, mailbox: Mailbox) -> None:
        note = log.grow(3)
        push()
        [envelope] = mailbox.mails
        mail = email.message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        assert mail["Subject"] == "Checkpoint of muniment.test/log: 3 records"
        text = mail.get_content().replace("\r\n", "\n")
        assert text.split("-----\n")[1] == note
        assert (envelope.rcpt_tos, sizes()) == (["s3cret@b.example"], [3])

    def test_there_is_at_most_one_mail_an_hour(self, log: AnchoredLog, mailbox: Mailbox, clock: Clock) -> None:
        for _ in range(13):
            log.grow(1)
            push()
            clock.add(600)
        assert len(mailbox.mails) == 3
        assert sizes() == [1, 7, 13]

    def test_a_refusal_shows_nobodys_address(self, log: AnchoredLog, mailbox: Mailbox, clock: Clock) -> None:
        mailbox.refuses = True
        log.grow(3)
        for _ in range(3):
            push()
            clock.add(900)
        assert state().error == "the mail server refused the mail (552)"
        assert alerts() == [("anchor-failing", "mailto:*@b.example")]
        told = f"{list(Outbox.objects.values())}{list(AnchorState.objects.values())}"
        assert "s3cret" not in told
        mailbox.refuses = False
        push()
        assert alerts() == []

    def test_a_server_that_is_away_is_said_to_be(self, log: AnchoredLog, mailbox: Mailbox, settings: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            settings.EMAIL_PORT = free.getsockname()[1]
        log.grow(3)
        began = time.monotonic()
        push()
        assert state().error == "the mail server cannot be reached: Connection refused"
        assert time.monotonic() - began < 5
