"""A bucket as an anchor, against a server that speaks S3: what was put there stays, and is read back."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import boto3
import pytest
from botocore.exceptions import ClientError

from audit import anchors
from audit.anchors.base import AnchorError
from audit.models import AnchorState, Outbox
from tests.audit.anchored import AnchoredLog, Clock, alerts, push, rewritten, rolled_back, sizes, state, stopped
from tests.audit.delivering import moto
from tests.audit.sealers import altered

FOLDER = "checkpoints/muniment.test_log/"
SECRET = "s3cretAccessKeyThatNobodyMaySee"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server."""
    with moto() as address:
        yield address


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[Any]:
    """A client; the bucket `evidence` has object lock and is the only anchor."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    client = boto3.client("s3", endpoint_url=server, region_name="us-east-1")
    client.create_bucket(Bucket="evidence", ObjectLockEnabledForBucket=True)
    settings.MUNIMENT_ANCHORS = [url(server)]
    yield client
    with urlopen(Request(f"{server}/moto-api/reset", method="POST"), timeout=60) as answer:
        assert answer.status == 200


def url(endpoint: str, days: int = 30, bucket: str = "evidence") -> str:
    return f"s3://{bucket}/checkpoints?endpoint={quote(endpoint, safe='')}&region=us-east-1&retain_days={days}"


@pytest.fixture
def log(db: None) -> AnchoredLog:
    return AnchoredLog()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return stopped(monkeypatch)


def keys(s3: Any, bucket: str = "evidence") -> list[str]:
    return [one["Key"] for one in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


def test_each_checkpoint_is_an_object_that_is_locked(log: AnchoredLog, s3: Any) -> None:
    notes = []
    for _ in range(3):
        notes.append(log.grow(2))
        push()
    assert sizes() == [2, 4, 6]
    assert [key.partition("-")[0] for key in keys(s3)] == [f"{FOLDER}{size:020}" for size in (2, 4, 6)]
    answer = s3.get_object(Bucket="evidence", Key=keys(s3)[0])
    assert answer["Body"].read().decode() == notes[0]
    assert answer["ObjectLockMode"] == "COMPLIANCE"
    assert answer["ObjectLockRetainUntilDate"] - datetime.now(UTC) > timedelta(days=29)
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.delete_object(Bucket="evidence", Key=keys(s3)[0], VersionId=answer["VersionId"])


def test_without_retention_a_bucket_without_lock_will_do(log: AnchoredLog, s3: Any, server: str, settings: Any) -> None:
    s3.create_bucket(Bucket="plain")
    settings.MUNIMENT_ANCHORS = [url(server, 0, "plain")]
    note = log.grow(3)
    push()
    assert list(anchors.held(log.log.origin)) == [(state().name, note)]


def test_all_are_read_back_largest_first(log: AnchoredLog, s3: Any) -> None:
    notes = []
    for _ in range(4):
        notes.append(log.grow(2))
        push()
    assert [note for _, note in anchors.held(log.log.origin)] == notes[::-1]
    assert [note for _, note in anchors.held(log.log.origin, 2)] == notes[:1:-1]
    assert list(anchors.held("another.log")) == []


def test_what_a_delete_marker_or_a_newer_version_hides_is_read_all_the_same(log: AnchoredLog, s3: Any) -> None:
    log.grow(2)
    push()
    note = log.grow(2)
    push()
    first, second = keys(s3)
    s3.put_object(Bucket="evidence", Key=first, Body=b"muniment.test/log\nforged")
    s3.delete_object(Bucket="evidence", Key=second)
    held = [note for _, note in anchors.held(log.log.origin)]
    assert held[0] == note
    assert len(held) == 3, "both versions of the first"


def decoy(s3: Any) -> None:
    """The test's server drops the first key after a marker, which S3 does not: let it drop this one."""
    s3.put_object(Bucket="evidence", Key=f"{FOLDER}{3:020}-", Body=b"")


def test_a_database_that_is_behind_the_bucket_is_an_alert(log: AnchoredLog, s3: Any, superuser_url: str) -> None:
    log.grow(3)
    log.grow(4)
    push()
    s3.delete_object(Bucket="evidence", Key=keys(s3)[0])
    decoy(s3)
    rolled_back(superuser_url, 3)
    push()
    assert alerts() == [("verification-failed", state().name)]
    assert "7 records, the database one of 3" in state().error


def test_a_fork_is_an_alert(log: AnchoredLog, s3: Any, superuser_url: str) -> None:
    log.grow(3)
    push()
    decoy(s3)
    rewritten(log, superuser_url, 3)
    push()
    assert alerts() == [("verification-failed", state().name)]
    assert "forked" in state().error
    assert len(keys(s3)) == 2, "the decoy and the first"


def test_killed_between_the_sending_and_the_row_it_leaves_one_version(
    log: AnchoredLog, s3: Any, superuser_url: str
) -> None:
    note = log.grow(3)
    push()
    altered(superuser_url, "DELETE FROM audit_anchoring")
    push()
    assert sizes() == [3]
    assert [found for _, found in anchors.held(log.log.origin)] == [note]


def test_a_bucket_that_is_away_and_then_there_again_gets_it(log: AnchoredLog, s3: Any, clock: Clock) -> None:
    s3.delete_bucket(Bucket="evidence")
    log.grow(3)
    for _ in range(3):
        push()
        clock.add(900)
    assert state().error == "the bucket's server refused: NoSuchBucket"
    assert alerts() == [("anchor-failing", state().name)]
    with pytest.raises(AnchorError, match="NoSuchBucket"):
        list(anchors.held(log.log.origin))
    s3.create_bucket(Bucket="evidence", ObjectLockEnabledForBucket=True)
    push()
    assert alerts() == []
    assert sizes() == [3]


@pytest.fixture
def rogue() -> Iterator[str]:
    """A server that repeats in its refusal all that it was told, and more."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<Error><Code>{SECRET[:8]} {self.headers['Authorization']}</Code></Error>".encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_no_secret_is_in_an_error_whatever_the_server_says(
    log: AnchoredLog, s3: Any, rogue: str, settings: Any, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    settings.MUNIMENT_ANCHORS = [url(rogue)]
    log.grow(3)
    for _ in range(3):
        push()
        clock.add(900)
    assert state().error == "the bucket's server refused: an error of its own"
    told = f"{list(Outbox.objects.values())}{list(AnchorState.objects.values())}{caplog.text}"
    for secret in (SECRET, SECRET[:8], "AKIDTEST", "Signature"):
        assert secret not in told


def test_without_credentials_it_says_so(log: AnchoredLog, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    log.grow(3)
    push()
    assert state().error == "the bucket cannot be reached (NoCredentialsError)"
