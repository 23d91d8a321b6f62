"""The demo: loaded once by real calls, a printed call that works, and an issuer that production refuses."""

import http.client
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlencode
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from django.contrib.auth import authenticate, get_user_model
from django.core.management import CommandError, call_command
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.test import Client as HttpClient

from audit.models import Batch, Head, Outbox, Record, Sighting
from clients import keysets
from clients.models import Client, Grant, Issuer, KeySet
from governance import demo, demo_issuer
from governance.demo_history import DAYS
from tools.models import BackendKey

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def loaded(db: None) -> str:
    demo.key_file().unlink(missing_ok=True)
    return demo.load()


def verify(key: str, token: str, tool: str = "memory.recall") -> dict[str, Any]:
    response = HttpClient().post(
        "/v1/verify", json.dumps({"token": token, "tool": tool}), content_type="application/json",
        headers={"Authorization": f"Bearer {key}"},
    )  # fmt: skip
    assert response.status_code == 200, response.content
    answer: dict[str, Any] = response.json()
    return answer


def test_the_history_is_a_few_hundred_real_calls_of_every_kind(db: None) -> None:
    started = time.monotonic()
    demo.key_file().unlink(missing_ok=True)
    said = demo.load()
    assert time.monotonic() - started < 60, "aimed at 10 s; a test machine may be busy"
    calls = Record.objects.filter(type="decision")
    assert 250 <= calls.count() <= 450 and str(calls.count()) in said
    reasons = Counter(calls.values_list("reason", flat=True))
    assert reasons.keys() >= {
        "granted", "not_granted", "insufficient_scope", "grant_denied", "token_expired", "token_invalid",
        "token_missing", "client_unknown", "tool_unknown", "audience_mismatch",
    }  # fmt: skip
    assert calls.filter(flagged=True, decision="allow").exists()
    assert Record.objects.filter(type="outcome").count() > 50
    assert set(calls.exclude(client=None).values_list("client", flat=True)) == {"chatgpt", "claude", "inner-ios"}
    others = Counter(Record.objects.values_list("type", flat=True))
    assert (others["evaluation"], others["introspection"], others["ungoverned"]) == (5, 2, 3)
    assert {(s.kind, s.name) for s in Sighting.objects.all()} == {("client", "cursor-dev"), ("tool", "memory.export")}


def test_the_log_of_it_is_whole_and_in_the_past(loaded: str) -> None:
    rows = list(Record.objects.order_by("index").values_list("index", "at", "type"))
    assert [index for index, _, _ in rows] == list(range(len(rows))) and Head.objects.get().next == len(rows)
    kinds = [kind for _, _, kind in rows[:4]]
    assert kinds == ["key", *["policy"] * 3], "key and policy are on record before the first call"
    assert [at for _, at, _ in rows] == sorted(at for _, at, _ in rows)
    now = datetime.now(UTC)
    assert timedelta(days=DAYS - 1) < now - rows[0][1] < timedelta(days=DAYS, minutes=5)
    assert rows[-1][1] < now
    assert len({at.date() for _, at, _ in rows}) >= DAYS
    assert sum(Batch.objects.values_list("size", flat=True)) == len(rows)
    assert {grant.created_at.date() for grant in Grant.objects.all()} == {rows[0][1].date()}
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM audit_record_default")
        assert cursor.fetchone() == (0,)


def test_loaded_again_nothing_comes_back_that_was_deleted(loaded: str) -> None:
    key = demo.key_file().read_text()
    Grant.objects.all().delete()
    Client.objects.filter(slug="chatgpt").delete()
    get_user_model().objects.all().delete()
    before = Record.objects.count(), Head.objects.get().policy
    assert demo.load() == "the demo data is there already"
    assert (Record.objects.count(), Head.objects.get().policy) == before
    assert not Grant.objects.exists() and not get_user_model().objects.exists()
    assert demo.key_file().read_text() == key


def test_a_load_that_was_killed_before_the_history_is_finished_by_the_next(db: None) -> None:
    demo.load_policy()
    assert "calls of the past" in demo.load()
    assert authenticate(username=demo.LOGIN, password="muniment-demo-admin") is not None


def test_the_printed_call_answers_allow(loaded: str, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("demo_hello")
    printed = capsys.readouterr().out
    [command] = re.findall(r"^curl .*\\\n.*$", printed, re.MULTILINE)
    words = shlex.split(command.replace("\\\n", " "))
    key = next(word for word in words if word.startswith("Authorization: Bearer ")).split()[-1]
    body = json.loads(words[words.index("-d") + 1])
    answer = verify(key, body["token"], body["tool"])
    assert (answer["decision"], answer["reason"], answer["client"]["slug"]) == ("allow", "granted", "claude")
    assert answer["subject"]["email"] == "alice@example.com"
    assert "admin, auditor, access-manager, approver, privacy-officer, administrator;\n" in printed
    assert "/reference" in printed


def test_each_role_has_a_login_with_that_role_alone(loaded: str) -> None:
    for name, role in demo.LOGINS.items():
        user: Any = authenticate(username=name, password=f"muniment-demo-{name}")
        assert user is not None and user.is_staff and user.is_superuser is (name == "admin")
        assert [group.name for group in user.groups.all()] == ([role] if role else [])
    users = get_user_model().objects
    assert demo.logins().startswith("admin, auditor, ")
    users.filter(username="admin").delete()
    other = users.get(username="auditor")
    other.set_password("a password of my own")
    other.save()
    assert demo.logins().startswith("access-manager, approver, "), "what no longer holds is not printed"
    users.all().delete()
    assert "removed" in demo.logins()


def test_demo_token_prints_a_token_and_nothing_else(loaded: str, capsys: pytest.CaptureFixture[str]) -> None:
    key = demo.key_file().read_text()

    def token(*arguments: str) -> str:
        call_command("demo_token", *arguments)
        printed = capsys.readouterr().out
        assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", printed, re.ASCII)
        return printed.strip()

    wide = "memory:read memory:write"
    answer = verify(key, token("--user", "bob", "--client", "chatgpt", "--scope", wide), "memory.capture")
    assert answer["flagged"] and answer["subject"]["sub"] == "bob"
    assert verify(key, token("--scope", wide), "memory.capture")["reason"] == "not_granted"
    assert verify(key, token("--client", "stranger"))["reason"] == "client_unknown"
    assert verify(key, token("--audience", "https://other.example"))["reason"] == "audience_mismatch"
    assert verify(key, token("--lifetime", "-60"))["reason"] == "token_expired"
    assert verify(key, token("--tenant", "acme", "--role", "doctor"))["subject"] | {"uid": ""} == {
        "uid": "", "issuer": demo_issuer.issuer(), "sub": "alice", "email": "alice@example.com",
        "tenant": "acme", "roles": ["doctor"],
    }  # fmt: skip


def test_another_port_is_another_issuer_and_the_key_is_kept(loaded: str, settings: Any) -> None:
    settings.MUNIMENT_URL = "http://127.0.0.1:9999"
    demo.load()
    assert Issuer.objects.get().issuer == "http://127.0.0.1:9999/demo-issuer"
    token = demo_issuer.mint("alice", "claude", "memory:read")
    assert verify(demo.key_file().read_text(), token)["reason"] == "granted"
    assert Outbox.objects.order_by("id").last().actor == "command:demo_load"  # type: ignore[union-attr]


def test_a_key_that_no_longer_works_is_replaced(loaded: str) -> None:
    old = demo.key_file().read_text()
    BackendKey.objects.update(revoked_at=datetime.now(UTC))
    demo.load()
    new = demo.key_file().read_text()
    assert new != old and demo.works(new) and not demo.works(old)
    assert demo.key_file().stat().st_mode & 0o777 == 0o600


# --- the issuer, as a stranger meets it ----------------------------------------------------------------------


class Quiet(WSGIRequestHandler):
    """Without a line on stderr for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def served(db: None, settings: Any) -> Iterator[int]:
    """The whole platform on a loopback port, under the name that the issuer then has."""
    with make_server("127.0.0.1", 0, get_wsgi_application(), handler_class=Quiet) as server:
        settings.MUNIMENT_URL = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join(10)


def post_form(port: int, host: str = "", **form: str) -> tuple[int, dict[str, Any]]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = {"Content-Type": "application/x-www-form-urlencoded"} | ({"Host": host} if host else {})
        client.request("POST", "/demo-issuer/token", urlencode(form), headers)
        response = client.getresponse()
        body = response.read()
        return response.status, json.loads(body) if response.status != 400 or b"{" in body[:1] else {}
    finally:
        client.close()


def test_its_keys_are_found_by_discovery_and_its_tokens_are_accepted(served: int) -> None:
    demo.load_policy()
    key = demo.backend_key()
    issuer = Issuer.objects.get()
    assert not KeySet.objects.exists()
    assert keysets.refresh(issuer.pk), "by discovery"
    before = KeySet.objects.get().jwks, Head.objects.get().policy
    assert before[0]["keys"][0]["n"] == demo_issuer.key_set()["keys"][0]["n"]
    demo.publish_keys()
    assert (KeySet.objects.get().jwks, Head.objects.get().policy) == before, "it stores what fetching brings"
    status, answer = post_form(served, user="bob", client_id="claude", scope="memory:read")
    assert status == 200 and answer["token_type"] == "Bearer"
    verified = verify(key, answer["access_token"])
    assert verified["reason"] == "granted" and verified["subject"]["sub"] == "bob"


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"user": "eve", "client_id": "claude"}, "invalid_grant"),
        ({"user": "bob"}, "invalid_request"),
        ({"user": "bob", "client_id": "a b"}, "invalid_request"),
        ({"user": "bob", "client_id": "claude", "scope": "a\tb"}, "invalid_scope"),
    ],
)
def test_the_token_endpoint_says_what_is_wrong(served: int, form: dict[str, str], error: str) -> None:
    status, answer = post_form(served, **form)
    assert (status, answer["error"]) == (400, error)


def test_the_token_endpoint_does_not_answer_under_a_rebound_name(served: int) -> None:
    assert post_form(served, host="evil.example", user="bob", client_id="claude") == (400, {})


# --- production ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["demo_load", "demo_hello", "demo_token"])
def test_the_commands_refuse_outside_demo_mode(db: None, settings: Any, command: str) -> None:
    settings.MUNIMENT_DEMO = False
    with pytest.raises(CommandError, match="demo mode") as error:
        call_command(command)
    assert error.value.returncode == 2


def test_demo_load_refuses_in_a_process_that_cannot_write_records(db: None, settings: Any) -> None:
    settings.MUNIMENT_PROCESS = "manage"
    with pytest.raises(CommandError, match="MUNIMENT_PROCESS=web"):
        call_command("demo_load")


def test_production_has_no_demo_issuer(migrated: None) -> None:
    code = """
import django
django.setup()
from django.core.exceptions import ImproperlyConfigured
from django.urls import Resolver404, resolve
try:
    resolve("/demo-issuer/token")
except Resolver404:
    print("no path")
for name in ("governance.demo_issuer", "governance.demo"):
    try:
        __import__(name)
    except ImproperlyConfigured as error:
        print(error)
"""
    environment = (
        os.environ
        | {"DJANGO_SETTINGS_MODULE": "governance.settings"}
        | {"MUNIMENT_MODE": "production", "MUNIMENT_HOSTS": "muniment.example"}
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    first, *errors = run.stdout.splitlines()
    assert first == "no path"
    assert len(errors) == 2 and all("demo mode only" in line for line in errors)
