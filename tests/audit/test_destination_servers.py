"""Destinations on servers: S3 and HTTPS, each against a real server on loopback, and against hostile ones."""

import socket
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
from cryptography import x509

from audit.destinations import DeliveryFailed, Destination, Differs, base, https, s3
from audit.destinations.base import Sending
from tests.audit.delivering import SECRET, http_server, moto, one, put
from tests.clients.test_fetching import certificate, serving


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What is to be delivered; larger than a chunk."""
    path = tmp_path / "calls-1-20261101T0000Z.csv"
    path.write_bytes(b"at,client,tool\n" * 50_000)
    return path


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of an S3 server."""
    with moto() as address:
        yield address


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket `evidence`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    options = {"aws_access_key_id": "id", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    resource = boto3.resource("s3", endpoint_url=s3_server, **options)
    yield resource.create_bucket(Bucket="evidence")
    with urlopen(Request(f"{s3_server}/moto-api/reset", method="POST"), timeout=60) as answer:
        assert answer.status == 200


def s3_at(server: str, name: str = "evidence", **more: str) -> Destination:
    given = {"endpoint": server, "region": "us-east-1", "access_key": "id", "secret_key": SECRET, **more}
    return one(f"{{name: a, kind: s3, bucket: {name}, {', '.join(f'{k}: {v!r}' for k, v in given.items())}}}")


def test_a_bucket_gets_the_file_once(bucket: Any, s3_server: str, file: Path) -> None:
    chosen = s3_at(s3_server, prefix="a/b")
    put(chosen, file)
    [found] = bucket.objects.all()
    first = found.last_modified
    assert (found.key, found.get()["Body"].read()) == (f"a/b/{file.name}", file.read_bytes())
    put(chosen, file)
    [again] = bucket.objects.all()
    assert again.last_modified == first


@pytest.mark.parametrize("other", [b"short", b"x" * 750_000], ids=["other-size", "same-size"])
def test_a_bucket_keeps_what_has_the_name_already(bucket: Any, s3_server: str, file: Path, other: bytes) -> None:
    bucket.put_object(Key=file.name, Body=other)
    with pytest.raises(Differs):
        put(s3_at(s3_server), file)
    assert bucket.Object(file.name).get()["Body"].read() == other


def test_what_is_put_into_a_bucket_between_the_look_and_the_upload_is_kept(
    bucket: Any, s3_server: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = s3.Bucket._is_there
    looks: list[bool] = []

    def look(self: s3.Bucket, storage: Any, sending: Sending) -> bool:
        found = real(self, storage, sending)
        if not looks:
            bucket.put_object(Key=file.name, Body=b"faster")
        looks.append(found)
        return found

    monkeypatch.setattr(s3.Bucket, "_is_there", look)
    with pytest.raises(Differs):
        put(s3_at(s3_server), file)
    assert bucket.Object(file.name).get()["Body"].read() == b"faster"


def test_a_large_file_goes_into_a_bucket_in_parts(bucket: Any, s3_server: str, tmp_path: Path) -> None:
    large = tmp_path / "large.csv"
    with large.open("wb") as file:
        file.truncate(9 * 1024 * 1024)
    put(s3_at(s3_server), large)
    put(s3_at(s3_server), large)
    assert bucket.Object(large.name).content_length == 9 * 1024 * 1024
    assert bucket.Object(large.name).e_tag.rstrip('"').endswith("-2"), "two parts"


def test_a_bucket_that_is_not_there_is_named(bucket: Any, s3_server: str, file: Path) -> None:
    with pytest.raises(DeliveryFailed, match=r"^there is no such bucket$"):
        put(s3_at(s3_server, "missing"), file)


def test_a_server_that_is_not_there_is_said_soon(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(DeliveryFailed, match="cannot be reached"):
        put(s3_at(f"http://127.0.0.1:{port}"), file)
    assert time.monotonic() - start < 15


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("AccessDenied", 403, "may not write to the bucket"),
        ("InvalidAccessKeyId", 403, "the credentials are not known there"),
        ("SignatureDoesNotMatch", 403, "the credentials are wrong"),
        ("QuotaExceeded", 409, "no space left"),
        (f"Odd{SECRET} x", 400, "an error of its own"),
    ],
    ids=["denied", "unknown", "wrong", "full", "odd"],
)
def test_what_a_bucket_refuses_is_said_in_words_and_nothing_is_quoted(
    file: Path, code: str, status: int, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http_server() as server:
        body = f"<Error><Code>{code}</Code><Message>{SECRET}</Message></Error>".encode()
        server.answers = {"HEAD": (404, b""), "PUT": (status, body)}
        with pytest.raises(DeliveryFailed, match=words) as caught:
            put(s3_at(server.url), file)
    assert SECRET not in f"{caught.value}{caplog.text}"


def test_a_bucket_whose_server_knows_no_conditions_gets_the_file_all_the_same(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http_server() as server:
        server.conditional = False
        put(s3_at(server.url), file)
        assert [body for path, body in server.stored.items() if path.endswith(file.name)] == [file.read_bytes()]


def https_at(url: str, login: str = f"token: {SECRET}") -> Destination:
    return one(f"{{name: a, kind: https, url: '{url}/in', {login}}}")


def test_an_http_server_gets_the_file_once_with_its_digest_and_a_condition(file: Path) -> None:
    with http_server() as server:
        for _ in range(2):
            put(https_at(server.url), file)
        assert server.stored == {f"/in/{file.name}": file.read_bytes()}
        assert [method for method, _, _ in server.asked] == ["GET", "PUT", "GET"]
        headers = server.asked[1][2]
        assert headers["If-None-Match"] == "*"
        assert headers["Repr-Digest"].startswith("sha-256=:")
        assert headers["Authorization"] == f"Bearer {SECRET}"


def test_an_http_server_may_ask_for_a_password(file: Path) -> None:
    with http_server() as server:
        put(https_at(server.url, "username: u, password: p"), file)
        assert {headers["Authorization"] for _, _, headers in server.asked} == {"Basic dTpw"}


@pytest.mark.parametrize("other", [b"short", b"x" * 750_000, b"x" * 750_001], ids=["short", "same-size", "longer"])
def test_an_http_server_keeps_what_has_the_name_already(file: Path, other: bytes) -> None:
    with http_server() as server:
        server.stored[f"/in/{file.name}"] = other
        with pytest.raises(Differs):
            put(https_at(server.url), file)
        assert server.stored == {f"/in/{file.name}": other}


def test_a_letter_box_that_shows_nothing_takes_the_file_and_refuses_the_next(file: Path) -> None:
    with http_server() as server:
        server.answers = {"GET": (405, b"")}
        put(https_at(server.url), file)
        with pytest.raises(DeliveryFailed, match="the name is taken, and shows nothing"):
            put(https_at(server.url), file)


@pytest.mark.parametrize(
    ("method", "status", "words"),
    [
        ("GET", 302, "redirects, which is not followed"),
        ("PUT", 307, "redirects, which is not followed"),
        ("GET", 401, "refused the credentials"),
        ("PUT", 403, "may not do this"),
        ("PUT", 404, "no such address"),
        ("PUT", 507, "no space left"),
        ("PUT", 500, "the server answered 500"),
    ],
)
def test_what_an_http_server_refuses_is_said_in_words(
    file: Path, method: str, status: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with http_server() as server:
        server.answers = {method: (status, SECRET.encode())}
        with pytest.raises(DeliveryFailed, match=words) as caught:
            put(https_at(server.url), file)
        assert all(path.startswith("/in/") for _, path, _ in server.asked), "no redirect was followed"
    assert SECRET not in f"{caught.value}{caplog.text}"


def test_a_certificate_that_is_not_trusted_is_not_talked_to(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = certificate(tmp_path, x509.IPAddress(IPv4Address("127.0.0.1")))
    with http_server(serving(path)) as server:
        with pytest.raises(DeliveryFailed, match="certificate is not one that this machine trusts"):
            put(https_at(server.url), file)
        assert server.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        put(https_at(server.url), file)
        assert len(server.stored) == 1


def test_an_http_server_that_takes_nothing_more_is_given_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "SILENT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(DeliveryFailed, match="did not answer in time"):
            put(https_at(f"http://127.0.0.1:{silent.getsockname()[1]}"), file)
        assert time.monotonic() - start < 20


def test_an_answer_that_drips_is_cut_off_when_the_time_is_over(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "FILE_SECONDS", 0.5)
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 750000\r\n\r\n")
            while not stop.wait(0.1):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    start = time.monotonic()
    try:
        with pytest.raises(DeliveryFailed):
            put(https_at(f"http://127.0.0.1:{listener.getsockname()[1]}"), file)
        assert time.monotonic() - start < 20, "it would drip for hours"
    finally:
        stop.set()
        thread.join(5)
        listener.close()
