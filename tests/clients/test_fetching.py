"""A GET that goes nowhere it should not, takes no longer and reads no more than it may."""

import datetime
import json
import socket
import ssl
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from clients import fetching
from clients.fetching import FetchError, get_json
from tests.clients.keys import FakeIssuer, fake_issuer

LOOPBACK = ip_network("127.0.0.0/8")


def get(server: FakeIssuer, path: str = "/jwks", **options: Any) -> dict[str, Any]:
    return get_json(server.url + path, **{"allow_loopback_http": True} | options)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The addresses that were connected to."""
    made: list[Any] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        made.append(address)
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return made


@pytest.fixture
def resolving(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Make names resolve to the first of these answers, then to the next; returns the names asked for."""

    def answers(*rounds: list[str]) -> list[str]:
        asked: list[str] = []

        def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
            asked.append(host)
            addresses = rounds[min(len(asked), len(rounds)) - 1]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

        monkeypatch.setattr(fetching.socket, "getaddrinfo", getaddrinfo)
        return asked

    return answers


def test_a_document_is_fetched_with_its_query() -> None:
    with fake_issuer() as server:
        assert get(server) == {"keys": []}
        server.body = b'{"a": "\xc3\xa9"}'
        assert get(server, "/x/y?z=1") == {"a": "é"}
        assert server.hits["/x/y?z=1"] == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://id.example/jwks",
        "ftp://id.example/",
        "file:///etc/passwd",
        "//id.example/",
        "id.example",
        "",
        "https://",
        "https:///jwks",
        "https://user@id.example/",
        "https://user:pw@id.example/",
        "https://@id.example/",
        "https://id.example:99999/",
        "https://id.example:x/",
        "https://id.example:0/",
        "https://[::1/",
        "https://id.example/#x",
        "https://id.example/a b",
        "https://id.example/\r\nX: y",
        "https://id.example/\tx",
        "https://id.ex\u00e4mple/",
        " https://id.example/",
        "https://id.example\\@evil.example/",
        "https://[fe80::1%25eth0]/",
        "https://id%2eexample/",
        "https://id.example/" + "x" * 2048,
    ],
)
def test_a_url_that_is_not_plain_https_is_refused_before_anything_is_resolved(
    url: str, resolving: Callable[..., list[str]], connections: list[Any]
) -> None:
    asked = resolving(["93.184.216.34"])
    with pytest.raises(FetchError, match="URL"):
        get_json(url)
    assert asked == connections == []


NOT_PUBLIC = """
    127.0.0.1 127.9.9.9 0.0.0.0 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 192.0.0.192
    192.0.2.1 198.18.0.1 198.51.100.1 203.0.113.1 192.88.99.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255
    :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 fe80::1 fc00::1 fd12::1 fec0::1 ff02::1 2001:db8::1
    3fff::1 64:ff9b::10.0.0.1 64:ff9b::127.0.0.1 64:ff9b:1::1 2002:7f00:1:: 2002:a00:1:: 2001::1 100::1
    5f00::1 4000::1
"""


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_an_address_that_is_not_public_is_refused_and_not_connected_to(
    address: str, resolving: Callable[..., list[str]], connections: list[Any]
) -> None:
    resolving([address])
    with pytest.raises(FetchError, match="not allowed"):
        get_json("https://keys.example/jwks")
    assert connections == []


@pytest.mark.parametrize(
    "address",
    ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::1"],
)
def test_a_public_address_is_allowed(address: str) -> None:
    target = fetching._target("https://keys.example/", allow_http=False)
    assert fetching._permitted(ip_address(address), target, (), False)


def test_one_address_that_is_not_public_spoils_the_name(
    resolving: Callable[..., list[str]], connections: list[Any]
) -> None:
    resolving(["93.184.216.34", "10.0.0.1"])
    with pytest.raises(FetchError, match="not allowed"):
        get_json("https://keys.example/jwks")
    assert connections == []


def test_a_private_address_is_allowed_where_staff_list_its_network() -> None:
    target = fetching._target("https://keys.example/", allow_http=False)
    inside, outside = IPv4Address("10.1.2.3"), IPv4Address("10.2.2.3")
    for address in (inside, IPv6Address("::ffff:10.1.2.3")):
        assert fetching._permitted(address, target, [ip_network("fd00::/8"), ip_network("10.1.0.0/16")], False)
    assert not fetching._permitted(outside, target, [ip_network("10.1.0.0/16")], False)
    assert fetching._permitted(IPv6Address("fd00::1"), target, [ip_network("fd00::/8")], False)


@pytest.mark.parametrize("host", ["127.1", "0x7f000001", "2130706433", "0177.0.0.1", "localhost", "[::ffff:7f00:1]"])
def test_a_loopback_address_in_disguise_is_still_loopback(host: str, connections: list[Any]) -> None:
    with pytest.raises(FetchError, match=r"not allowed|cannot be resolved"):
        get_json(f"https://{host}/jwks")
    assert connections == []


def test_http_is_for_loopback_in_development_only(resolving: Callable[..., list[str]], connections: list[Any]) -> None:
    with fake_issuer() as server:
        with pytest.raises(FetchError, match="not https"):
            get_json(server.url + "/jwks", allowed_networks=[LOOPBACK])
        assert connections == []
        for address in ("93.184.216.34", "10.0.0.1"):
            resolving([address])
            with pytest.raises(FetchError, match="not allowed"):
                get_json(
                    "http://keys.example/jwks",
                    allow_loopback_http=True,
                    allowed_networks=[ip_network("10.0.0.0/8")],
                )
        assert connections == []


def test_the_name_is_resolved_once_and_the_connection_pinned(
    resolving: Callable[..., list[str]], connections: list[Any]
) -> None:
    with fake_issuer() as server:
        port = server.url.rsplit(":", 1)[1]
        asked = resolving(["127.0.0.1"], ["10.0.0.1"])
        assert get_json(f"http://rebind.example:{port}/jwks", allow_loopback_http=True) == {"keys": []}
        assert asked == ["rebind.example"]
        assert connections == [("127.0.0.1", int(port))]


def test_the_next_address_is_tried_when_the_first_takes_no_connection(
    resolving: Callable[..., list[str]], connections: list[Any]
) -> None:
    with fake_issuer() as server:
        port = int(server.url.rsplit(":", 1)[1])
        resolving(["127.0.0.99", "127.0.0.1"])
        assert get_json(f"http://keys.example:{port}/jwks", allow_loopback_http=True) == {"keys": []}
        assert connections == [("127.0.0.99", port), ("127.0.0.1", port)]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 300, 304])
def test_a_redirect_is_an_error_and_not_followed(status: int) -> None:
    with fake_issuer() as server, fake_issuer() as other:
        server.status, server.headers = status, {"Location": other.url + "/jwks"}
        with pytest.raises(FetchError, match="redirects"):
            get(server)
        assert sum(other.hits.values()) == 0


@pytest.mark.parametrize("status", [201, 204, 400, 401, 404, 429, 500, 503])
def test_only_a_200_is_an_answer(status: int) -> None:
    with fake_issuer() as server:
        server.status = status
        with pytest.raises(FetchError, match=f"answered {status}"):
            get(server)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b'"x"',
        b"{",
        b"<html>",
        b"\xff\xfe",
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b'{"keys":[{"kid":"a","kid":"b"}]}',
        b"[" * 100_000,
        b'{"a":' * 5_000,
    ],
)
def test_what_is_no_json_object_without_duplicates_is_refused(body: bytes) -> None:
    with fake_issuer() as server:
        server.body = body
        with pytest.raises(FetchError, match="of no use"):
            get(server)


def test_an_answer_is_read_up_to_its_limit() -> None:
    with fake_issuer() as server:
        server.body = json.dumps({"a": "x" * 991}).encode()
        assert len(server.body) == 1000
        assert get(server, max_bytes=1000)
        with pytest.raises(FetchError, match="more than 999 bytes"):
            get(server, max_bytes=999)
        server.body = b" " * 3_000_000
        with pytest.raises(FetchError, match="more than 262144 bytes"):
            get(server)


def test_headers_are_read_up_to_their_limit() -> None:
    with fake_issuer() as server:
        server.headers = {f"X-{n}": "y" * 1000 for n in range(80)}
        with pytest.raises(FetchError, match=r"too large|exchange failed"):
            get(server, max_bytes=1000)


def test_a_compressed_answer_is_refused() -> None:
    with fake_issuer() as server:
        server.headers = {"Content-Encoding": "gzip"}
        with pytest.raises(FetchError, match="compressed"):
            get(server)


@pytest.mark.parametrize("trouble", [{"delay": 10.0}, {"drip": 0.05}])
def test_one_deadline_covers_a_silent_and_a_dripping_server(trouble: dict[str, float]) -> None:
    with fake_issuer() as server:
        server.body = b'{"a": "%s"}' % (b"x" * 200)
        for name, value in trouble.items():
            setattr(server, name, value)
        start = time.monotonic()
        with pytest.raises(FetchError, match="in time"):
            get(server, timeout=0.4)
        assert time.monotonic() - start < 8


def test_a_name_server_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        time.sleep(10)
        return []

    monkeypatch.setattr(fetching.socket, "getaddrinfo", getaddrinfo)
    start = time.monotonic()
    with pytest.raises(FetchError, match="not resolved in time"):
        get_json("https://keys.example/", timeout=0.2)
    assert time.monotonic() - start < 8


def test_a_name_that_does_not_resolve_and_a_port_nobody_listens_on_are_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(FetchError, match="exchange failed"):
            get_json(url, allow_loopback_http=True)

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(fetching.socket, "getaddrinfo", getaddrinfo)
    for url in ("https://keys.example/", "https://" + "a" * 70 + ".example/", "https://a..example/"):
        with pytest.raises(FetchError, match="cannot be resolved"):
            get_json(url)


def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_issuer() as server, fake_issuer() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert get(server) == {"keys": []}
        assert sum(proxy.hits.values()) == 0


# TLS


def certificate(folder: Path, *names: x509.GeneralName) -> Path:
    """A self-signed certificate and its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(list(names)), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = folder / "server.pem"
    path.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()) + built.public_bytes(pem))
    return path


def serving(path: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def test_tls_checks_the_name_while_the_connection_goes_to_the_pinned_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resolving: Callable[..., list[str]]
) -> None:
    path = certificate(tmp_path, x509.DNSName("keys.example"))
    context = serving(path)
    named: list[str | None] = []
    context.sni_callback = lambda connection, name, _: named.append(name)
    with fake_issuer(ssl_context=context) as server:
        port = server.url.rsplit(":", 1)[1]
        resolving(["127.0.0.1"])
        with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED"):
            get_json(f"https://keys.example:{port}/jwks", allowed_networks=[LOOPBACK])
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        assert get_json(f"https://keys.example:{port}/jwks", allowed_networks=[LOOPBACK]) == {"keys": []}
        with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED"):
            get_json(f"https://other.example:{port}/jwks", allowed_networks=[LOOPBACK])
        assert named == ["keys.example", "keys.example", "other.example"]


def test_tls_to_an_address_checks_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = certificate(tmp_path, x509.IPAddress(IPv4Address("127.0.0.1")))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with fake_issuer(ssl_context=serving(path)) as server:
        assert get_json(server.url + "/jwks", allowed_networks=[LOOPBACK]) == {"keys": []}
        with pytest.raises(FetchError, match="not allowed"):
            get_json(server.url + "/jwks")


def test_a_tls_handshake_that_never_ends_is_cut_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(FetchError, match="in time"):
            get_json(f"https://127.0.0.1:{silent.getsockname()[1]}/", allowed_networks=[LOOPBACK], timeout=0.3)
        assert time.monotonic() - start < 8


def test_an_error_quotes_nothing_of_the_answer() -> None:
    with fake_issuer() as server:
        for body in (b"s3cret", b'{"s3cret":1,"s3cret":2}', b'["s3cret"]'):
            server.body = body
            with pytest.raises(FetchError) as caught:
                get(server)
            assert "s3cret" not in str(caught.value)
