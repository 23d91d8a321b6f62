"""Logs: one line for each event, and nothing in it that must not leave, whatever was put into it."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.conf import settings as configured
from django.test import Client as HttpClient

from governance import logs
from tests.world import token

ROOT = Path(__file__).resolve().parents[2]
SECRET = "k3Jx8vQ2pLm9Zr5T"
Log = Callable[..., str]


@pytest.fixture(params=["json", "text"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def log(form: str) -> Iterator[Log]:
    """What a call of a logger of its own writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines("web") if form == "json" else logs.TextLines("web"))
    logger = logging.Logger("a.logger")
    logger.addHandler(handler)

    def write(*arguments: object, **more: object) -> str:
        stream.seek(0)
        stream.truncate()
        logger.error(*arguments, **more)  # type: ignore[arg-type]
        return stream.getvalue()

    yield write
    handler.close()


SAID = {  # what is logged, and what of it must not be there
    "a token": (f"token {token()} was refused", token()[4:40]),
    "a bearer": ("Authorization: Bearer abc.def-ghi_jkl", "abc.def-ghi_jkl"),
    "a header as Python shows it": ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "dXNlcjpwYXNz"),
    "a header of a proxy": ("proxy-authorization=DPoP abcdefghijkl", "abcdefghijkl"),
    "an opaque token alone": ("bearer 8xLOxBtZp8kkkk", "8xLOxBtZp8kkkk"),
    "a backend's key": ("key mk_AbCd1234_secretsecretsecret", "secretsecret"),
    "a staff key": ("sk_AbCd1234_secretsecretsecret was used", "secretsecret"),
    "the push token of a stream": ("ss_AbCd1234secretsecretsecret was used", "secretsecret"),
    "a URL with a password": ("cannot reach postgresql://muniment:hunter2hunter2@db/muniment", "hunter2"),
    "a URL with a user": ("sftp://AKIAIOSFODNN7EXAMPLE@host/x", "AKIAIOSFODNN7EXAMPLE"),
    "a DSN": ("host=db user=muniment password=hunter2hunter2 port=5", "hunter2"),
    "a DSN in quotes": ("password='hunter2 with a space' port=5", "with a space"),
    "an address": ("no such user: alice.smith+x@example.com!", "alice.smith"),
    "an address in a URL": ("/admin/?q=alice.smith%40example.com", "alice.smith"),
    "a sub": ('{"sub": "auth0|64f0aaaa", "aud": 1}', "64f0aaaa"),
    "a sub with quotes in it": ('{"sub": "auth0\\"|64f0aaaa", "aud": 1}', "64f0aaaa"),
    "a sub as a keyword": ("resolve(iss='x', sub='auth0|64f0aaaa')", "64f0aaaa"),
    "a cookie": ("Cookie: __Host-muniment=abcdefabcdef; x=1", "abcdefabcdef"),
    "a key": ("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----", "MIIEvQIBADANBg"),
    "half a key": ("-----BEGIN RSA PRIVATE KEY-----\nMIIEvQIBADANBg", "MIIEvQIBADANBg"),
    "a query string": ("GET /cb?code=1&access_token=ya29abcdefgh&x=2", "ya29abcdefgh"),
}


class TestWhatMustNotLeave:
    @pytest.mark.parametrize("what", SAID)
    def test_it_is_not_in_the_line(self, log: Log, what: str) -> None:
        said, hidden = SAID[what]
        assert hidden in said
        assert hidden not in log(said) and logs.HIDDEN in log(said)
        assert hidden not in log("%s", said)
        assert hidden not in log({"deep": [said]})

    @pytest.mark.parametrize("what", SAID)
    def test_nor_in_the_trace_of_an_exception(self, log: Log, what: str) -> None:
        said, hidden = SAID[what]
        try:
            try:
                raise ValueError(said)
            except ValueError as error:
                raise RuntimeError("outer") from error
        except RuntimeError:
            written = log("failed", exc_info=True)
        assert "RuntimeError: outer" in written
        assert hidden not in written

    def test_secrets_that_the_process_was_given_are_known(self, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(logs, "_known", set())
        monkeypatch.setattr(logs, "_known_pattern", None)
        logs.hide(SECRET)
        logs.hide("redis://:p%C3%A4ssw0rd-x@host:1/0 smtp://u:other-secret@mail")
        logs.hide("postgresql://muniment:comma,in-it-7@a:1,b:2/x")
        logs.hide("short")
        logs.hide(
            "- {kind: s3, endpoint: 'https://s3.example', access_key_id: x, secret_access_key: wJalrXUtnFEMI7K7MDENG}"
        )
        logs.hide("https://hooks.example/x whsec_MfKQ9r8GKYqrTwjU")
        logs.hide(None)
        written = log("one %s, two pässw0rd-x, three p%%C3%%A4ssw0rd-x, four other-secret, short", f"x{SECRET}y")
        for secret in (SECRET, "pässw0rd", "p%C3%A4ssw0rd", "other-secret"):
            assert secret not in written
        for secret in ("wJalrXUtnFEMI7K7MDENG", "whsec_MfKQ9r8GKYqrTwjU", "comma,in-it-7"):
            assert secret not in log(f"refused: {secret}")
        assert "short" in written and "three" in written

    def test_the_settings_hand_over_what_they_read(self) -> None:
        password = str(configured.DATABASES["default"]["PASSWORD"])
        assert len(password) >= logs.SHORTEST_SECRET
        assert password not in logs.redacted(f"FATAL: {password} is wrong")

    def test_what_says_nothing_of_anybody_stays(self, log: Log) -> None:
        for said in (
            "batch at 12 had committed", "stream siem: the receiver answers 503", "usr_Ab3dE at memory:read, 3 of 4",
            "https://id.example/keys could not be fetched", "the token is missing", "no authorization was given",
        ):  # fmt: skip
            assert said in log(said)

    def test_words_without_end_are_cut_and_cost_no_time(self, log: Log) -> None:
        for hostile in ("a@" * 500_000, "eyJ" + "a." * 500_000, "password=" * 200_000, "'\"\\" * 400_000, "x" * 10**6):
            assert len(log(hostile)) < 4 * logs.MOST_MESSAGE


class TestLines:
    FORGERY = '\n{"level": "INFO", "message": "all is well"}\r\n2026-01-01 INFO forged\u2028x\x85y\x0bz\x1b[2Jq\x00'

    def test_nobody_can_forge_one(self, log: Log) -> None:
        for written in (log(f"name {self.FORGERY}"), log("name %r %s", self.FORGERY, self.FORGERY)):
            assert written.endswith("\n")
            assert len(written.splitlines()) == 1
            assert "\x1b" not in written and "\x00" not in written

    def test_not_by_an_exception_either(self, log: Log, form: str) -> None:
        try:
            raise ValueError(self.FORGERY)
        except ValueError:
            written = log("failed", exc_info=True)
        lines = written.splitlines()
        assert len(lines) == 1 if form == "json" else all(line.startswith("  | ") for line in lines[1:])

    def test_a_message_that_cannot_be_put_together_is_no_loss(self, log: Log) -> None:
        class Broken:
            def __str__(self) -> str:
                raise RuntimeError(SECRET)

        for written in (log("%s and %s", SECRET), log("%s", Broken()), log(Broken())):
            assert SECRET not in written
            assert "cannot be put together" in written

    def test_lone_surrogates_are_written(self, log: Log) -> None:
        assert "\\ud800" in log("half a character: \ud800")


class TestJson:
    @pytest.fixture
    def form(self) -> str:
        return "json"

    def test_it_has_what_a_collector_needs(self, log: Log) -> None:
        said = json.loads(log("%d of %d", 1, 2))
        assert said.keys() == {"ts", "level", "logger", "process", "pid", "message"}
        assert (said["level"], said["logger"], said["process"], said["message"]) == (
            "ERROR", "a.logger", "web", "1 of 2",
        )  # fmt: skip
        assert said["ts"].endswith("Z") and len(said["ts"]) == len("2026-01-01T00:00:00.000000Z")

    def test_a_trace_is_a_member_of_the_same_line(self, log: Log) -> None:
        try:
            raise LookupError("nothing there")
        except LookupError:
            said = json.loads(log("failed", exc_info=True))
        assert said["message"] == "failed"
        assert said["trace"].splitlines()[-1] == "LookupError: nothing there"

    def test_lines_of_one_request_share_an_id_that_is_ours(self, log: Log) -> None:
        ids: list[str | None] = []

        def view(request: object) -> str:
            ids.extend(json.loads(log("x")).get("request") for _ in range(2))
            return "answered"

        middleware = logs.Numbered(view)
        assert middleware(None) == middleware(None) == "answered"
        assert ids[0] == ids[1] != ids[2] == ids[3]
        assert all(ids) and "request" not in json.loads(log("outside"))


def test_an_error_of_a_page_is_one_line_with_its_request_and_without_its_query(
    db: None, form: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines("web"))
    logger = logging.getLogger("django.request")
    logger.addHandler(handler)

    def broken(*_: object) -> None:
        raise RuntimeError("somebody@example.com")

    monkeypatch.setattr("governance.metrics_view.refusal", broken)
    try:
        http = HttpClient(raise_request_exception=False)
        assert http.get("/metrics?email=alice@example.com&code=s3cr3t").status_code == 500
    finally:
        logger.removeHandler(handler)
    [line] = stream.getvalue().splitlines()
    said = json.loads(line)
    assert said["message"] == "Internal Server Error: /metrics" and said["request"]
    assert "alice" not in line and "s3cr3t" not in line and "somebody" not in line


def test_production_writes_json_and_the_demo_text() -> None:
    from tests.governance.test_settings import manage

    found = manage("shell", "-c", "import logging; logging.getLogger('x').warning('said'); 1/0")
    lines = [line for line in found.stderr.splitlines() if line.startswith("{")]
    assert json.loads(lines[0])["message"] == "said"
    refused = manage("check", MUNIMENT_LOG_FORMAT="xml")
    assert refused.returncode != 0 and "MUNIMENT_LOG_FORMAT" in refused.stderr and "Traceback" not in refused.stderr


def test_a_celery_worker_writes_its_log_the_same_way() -> None:
    code = (
        "import logging; from governance.celery import app; import django; django.setup();"
        "app.log.setup(); logging.getLogger('celery.worker').warning('taken up');"
        "logging.getLogger('kombu').warning('redis://:hunter2hunter2@h/0')"
    )
    import os

    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "governance.settings", "MUNIMENT_LOG_FORMAT": "json"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["message"] for line in said] == ["taken up", f"redis://{logs.HIDDEN}h/0"]
    assert said[0]["logger"] == "celery.worker"
