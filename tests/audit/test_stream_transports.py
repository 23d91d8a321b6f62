"""How streams reach their receivers: TLS that is verified, bounded time, syslog over three transports; and how they are
written in the configuration, where no error says a secret."""

import base64
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import yaml
from cryptography import x509

from audit import webhooks
from audit.models import Outbox, Stream
from audit.streams import reading
from audit.streams.reading import ConfigError
from audit.webhooks import Address, AddressError, Unreachable
from governance import checks
from tests.audit import receiving
from tests.audit.filling import fill
from tests.audit.receiving import KEY, SECRET, Syslog, configure, hook, run
from tests.audit.test_cef import SYSLOG
from tests.audit.trees import HandSealed
from tests.clients.test_fetching import certificate, serving
from tests.live import closed_port


@pytest.fixture
def log(db: None) -> HandSealed:
    """With three sealed records."""
    made = HandSealed()
    fill([{}] * 3)
    made.seal()
    return made


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    return certificate(tmp_path, x509.DNSName("localhost"))


def test_a_webhook_over_tls_is_trusted_by_its_certificate_alone(log: HandSealed, settings: Any, pem: Path) -> None:
    with receiving.webhook(serving(pem)) as siem:
        configure(settings, hook(siem))
        assert "not one that this machine trusts" in run().error
        assert siem.got == []
        Stream.objects.update(retry_at=None)
        configure(settings, hook(siem, ca=str(pem)))
        assert run().next == 3
        assert siem.accepted == [0, 1, 2]


def test_a_certificate_of_another_name_is_not_trusted(log: HandSealed, settings: Any, tmp_path: Path) -> None:
    other = certificate(tmp_path, x509.DNSName("siem.example"))
    with receiving.webhook(serving(other)) as siem:
        configure(settings, hook(siem, ca=str(other)))
        assert "not one that this machine trusts" in run().error
        assert siem.got == []


def test_secrets_go_into_headers_and_nowhere_else(log: HandSealed, settings: Any, tmp_path: Path) -> None:
    previous = b"p" * 32
    (tmp_path / "secret").write_text(SECRET + "\n")
    old = "whsec_" + base64.b64encode(previous).decode()
    with receiving.webhook() as siem:
        entry = hook(siem, url=siem.url + "?token=hidden", secret_file=str(tmp_path / "secret"), previous_secret=old,
                     authorization="Splunk 1234")  # fmt: skip
        del entry["secret"]
        configure(settings, entry)
        row = run()
    [one] = siem.got
    assert one.headers["authorization"] == "Splunk 1234"
    assert one.path == "/siem?token=hidden"
    assert one.signed_by(KEY)
    assert one.signed_by(previous)
    assert row.place == f"{siem.url.rpartition('/')[0]}/…", "the path may be a secret"
    [receiver] = reading.parse(settings.MUNIMENT_STREAMS)
    for secret in ("hidden", "whsec", "Splunk", base64.b64encode(KEY).decode()):
        assert secret not in repr(receiver) + repr(vars(row))


def test_a_redirect_is_not_followed(log: HandSealed, settings: Any) -> None:
    with receiving.webhook() as siem, receiving.webhook() as elsewhere:
        siem.answer = lambda _: (308, {"Location": elsewhere.url})
        configure(settings, hook(siem))
        assert "redirects" in run().error
        assert elsewhere.got == []


@contextmanager
def server(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that talks to one client as it likes; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(30)

        def work() -> None:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(30)
                with suppress(OSError):
                    talk(connection)

        thread = Thread(target=work, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
    thread.join(40)
    assert not thread.is_alive()


def _drip(connection: socket.socket) -> None:
    connection.recv(65536)
    for _ in range(1000):
        connection.sendall(b"H")
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        (lambda c: c.recv(1), "cannot be reached|did not answer"),
        (lambda c: (c.recv(65536), c.sendall(b"SSH-2.0-hello\r\n\r\n")), "not HTTP"),
        (lambda c: (c.recv(65536), c.sendall(b"HTTP/1.1 999999 x\r\n\r\n")), "not HTTP"),
        (lambda c: (c.recv(65536), c.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500)), "not HTTP"),
        (lambda c: (c.recv(65536), c.sendall(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000)), "not HTTP"),
        (_drip, "in time|cannot be reached|not HTTP"),
    ],
    ids=["hangs up", "other protocol", "no status", "many headers", "long header", "drips"],
)
def test_what_is_no_answer_is_a_failure_in_bounded_time(
    monkeypatch: pytest.MonkeyPatch, talk: Callable[[socket.socket], None], words: str
) -> None:
    monkeypatch.setattr(webhooks, "TOTAL_SECONDS", 0.5 if talk is _drip else 20)
    began = time.monotonic()
    with server(talk) as port, pytest.raises(Unreachable, match=words):
        Address(f"http://127.0.0.1:{port}/").post(b"[]", {})
    assert time.monotonic() - began < 25


def test_who_refuses_before_all_is_read_is_heard() -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    with server(talk) as port:
        assert Address(f"http://127.0.0.1:{port}/").post(b"x" * 3_000_000, {}).status == 413


def test_nobody_listening_is_said_so(log: HandSealed, settings: Any) -> None:
    with closed_port() as port:
        for number, (url, more) in enumerate([
            (f"http://127.0.0.1:{port}/", {"kind": "webhook", "secret": SECRET}),
            (f"syslog+tcp://127.0.0.1:{port}", {"kind": "syslog"}),
            (f"syslog+tls://localhost:{port}", {"kind": "syslog"}),
        ]):  # fmt: skip
            configure(settings, {"name": f"s{number}", "url": url, "from": 0, **more})
            row = run(f"s{number}")
            assert row.error == "the receiver cannot be reached: Connection refused"
            assert row.next == 0


# --- syslog ---------------------------------------------------------------------------------------------------


def syslog(found: Syslog, **more: Any) -> dict[str, Any]:
    return {"kind": "syslog", "url": found.url, "from": 0} | more


def test_syslog_gets_each_record_by_each_transport(log: HandSealed, settings: Any, pem: Path) -> None:
    with receiving.syslog_udp() as udp, receiving.syslog_tcp() as tcp, receiving.syslog_tcp(serving(pem)) as tls:
        configure(settings, syslog(udp, name="udp"), syslog(tcp, name="tcp"), syslog(tls, name="tls", ca=str(pem)))
        for name, found in [("udp", udp), ("tcp", tcp), ("tls", tls)]:
            row = run(name)
            assert (row.next, row.sent, row.error) == (3, 3, "")
            messages = found.wait_for(3)
            heads = [SYSLOG.fullmatch(message) for message in messages]
            assert all(head and head[7].startswith(b"CEF:0|Muniment|Muniment|") for head in heads)
            assert [b" cn1=%d " % n in message for n, message in enumerate(messages)] == [True] * 3


def test_syslog_over_tls_verifies_the_server(log: HandSealed, settings: Any, pem: Path) -> None:
    with receiving.syslog_tcp(serving(pem)) as tls:
        configure(settings, syslog(tls))
        assert "not one that this machine trusts" in run().error
        assert tls.got == []


def test_a_server_that_dies_before_it_has_read_gets_them_again(
    log: HandSealed, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.streams.syslog.LINGER_SECONDS", 30)

    def reset(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        said = select.poll()
        said.register(connection, select.POLLRDHUP)
        said.poll(30_000)  # all is said, and nobody reads it

    with server(reset) as port:
        configure(settings, {"kind": "syslog", "url": f"syslog+tcp://127.0.0.1:{port}", "from": 0})
        row = run()
    assert (row.next, row.failures) == (0, 1)
    assert "reset" in row.error


def test_a_server_that_keeps_quiet_has_it(log: HandSealed, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.streams.syslog.LINGER_SECONDS", 0.05)
    sent = Event()
    with server(lambda _: sent.wait(30)) as port:
        configure(settings, {"kind": "syslog", "url": f"syslog+tcp://127.0.0.1:{port}", "from": 0})
        row = run()
        sent.set()
    assert row.next == 3


# --- the configuration ----------------------------------------------------------------------------------------

GOOD = {"name": "siem", "kind": "webhook", "url": "https://siem.example/hook", "secret": SECRET}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "pigeon"}, "kind must be one of"), ({"name": "SIEM"}, "name must be lower-case"),
        ({"name": None}, "name is missing"), ({"url": None}, "url is missing"),
        ({"secret": None}, "secret .*is missing"),
        ({"url": "http://siem.example/"}, "must be https"), ({"url": "https://a:b@siem.example/"}, "credentials"),
        ({"url": "https://siem.example/#x"}, "host and a path"), ({"url": "https://"}, "host and a path"),
        ({"url": "https://siem.example:99999/"}, "cannot be read"), ({"url": "https://s.example/a b"}, "characters"),
        ({"url": "file:///etc/passwd"}, "must be https"), ({"secret": "hunter2"}, "secret must be whsec_"),
        ({"secret": "whsec_" + base64.b64encode(b"short").decode()}, "24 to 64 bytes"),
        ({"previous_secret": "hunter2"}, "secret must be whsec_"), ({"ca": "/nowhere.pem"}, "ca names no file"),
        ({"secret_file": "/nowhere"}, "not both"), ({"from": -1}, "from must be"), ({"from": "0"}, "from must be"),
        ({"from": True}, "from must be"), ({"filter": {}}, "filter must be"),
        ({"filter": {"sub": "a"}}, "filter must be"),
        ({"filter": {"tenant": 5}}, "tenant of filter"), ({"filter": {"tenant": []}}, "tenant of filter"),
        ({"filter": {"flagged": "yes"}}, "true or false"), ({"filter": ["deny"]}, "filter must be"),
        ({"hunter2": 1}, "unknown key"), ({"token": "hunter2"}, "token is not something"),
        ({"authorization": "h\u00fcnter2"}, "authorization has characters"),
        ({"kind": "syslog", "secret": None}, "url must be syslog"),
        ({"kind": "syslog", "secret": None, "url": "syslog://"}, "url must be syslog"),
        ({"kind": "syslog", "secret": None, "url": "syslog://h/path"}, "url must be syslog"),
        ({"kind": "syslog", "secret": None, "url": "syslog://u:hunter2@h"}, "credentials"),
        ({"kind": "syslog", "url": "syslog://h"}, "secret is not something"),
        ({"kind": "syslog", "secret": None, "url": "syslog+tcp://h", "ca": "/x"}, "ca is for syslog"),
        ({"url": f"https://{'x' * 400}.example/"}, "address is too long"),
    ],
    ids=str,
)  # fmt: skip
def test_an_entry_that_cannot_be_is_named_by_its_number_and_without_its_secret(
    change: dict[str, Any], words: str
) -> None:
    entry = {name: value for name, value in (GOOD | change).items() if value is not None}
    with pytest.raises(ConfigError, match=f"^entry 2: .*{words}") as caught:
        reading.parse(yaml.safe_dump([GOOD | {"name": "first"}, entry]))
    assert "hunter2" not in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not YAML"), ("name: siem", "must be a list"), ("- 5", "entry 1: it must be a mapping"),
        ("- &a {name: x}\n- *a", "not YAML"), ("- {name: a, name: b}", "gives a key twice"),
        ("!!python/object/apply:os.system ['true']", "not YAML"), ("# " + "x" * 300_000, "larger than"),
        (yaml.safe_dump([GOOD, dict(GOOD)]), "entry 2: there is another one"), ("\x00", "not YAML"),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_a_text_that_is_no_list_of_streams_is_said_so(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        reading.parse(text)


def test_nothing_configured_is_nothing() -> None:
    assert reading.parse("") == reading.parse("# none yet") == []


def test_the_system_check_says_what_is_wrong(settings: Any) -> None:
    settings.MUNIMENT_STREAMS = yaml.safe_dump([GOOD | {"secret": "hunter2"}])
    [found] = checks.streams_can_be(None)
    assert found.id == "muniment.E011"
    assert "entry 1: secret must be whsec_" in found.msg
    assert "hunter2" not in found.msg
    settings.MUNIMENT_STREAMS = yaml.safe_dump([GOOD])
    assert checks.streams_can_be(None) == []


def test_a_signature_is_what_the_standard_says() -> None:
    # The example of the Standard Webhooks specification's own libraries.
    key = webhooks.key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = webhooks.signed([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_an_address_that_cannot_be_does_not_repeat_itself() -> None:
    for url in ("https://hunter2@h/", "https://h\u00e4/hunter2", "https://[::1/hunter2", "ftp://hunter2/"):
        with pytest.raises(AddressError) as caught:
            Address(url)
        assert "hunter2" not in str(caught.value)


def test_that_a_stream_begins_is_on_record_and_what_it_delivers_is_not(log: HandSealed, settings: Any) -> None:
    with receiving.webhook() as siem:
        configure(settings, hook(siem))
        for _ in range(2):
            fill([{}])
            log.seal()
            run()
    # Else each delivery would make another one.
    assert [row.members["action"] for row in Outbox.objects.all()] == ["stream.started"]
