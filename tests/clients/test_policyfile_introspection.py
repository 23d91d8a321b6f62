"""Introspection in a policy file: its secret stands beside the file, never in it, and a backend has one to ask."""

import os
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from audit.protection import KeyRing, reveal
from clients.models import Introspection
from clients.policyfile import PolicyFileError, parse
from clients.policyfile_apply import apply, diff
from clients.policyfile_export import export
from tests.staff import newest

ID, NAME = "https://id.example/", "MUNIMENT_INTROSPECTION_ID"
SECRET = "s3cret %& ü"
ASKED = f"{{endpoint: 'https://id.example/ask', client_id: muniment, secret_env: {NAME}}}"
pytestmark = pytest.mark.usefixtures("db", "secret")


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, SECRET)


def file(introspection: str = ASKED, issuer: str = ID) -> str:
    return f"issuers: [{{issuer: '{issuer}', introspection: {introspection}}}]"


def changes(introspection: str = ASKED) -> list[str]:
    return [str(change) for change in apply(parse(file(introspection)), "test.yaml").changes]


def refused(text: str) -> str:
    with pytest.raises(PolicyFileError) as error:
        apply(parse(text), "test.yaml")
    assert SECRET not in str(error.value)
    return str(error.value)


def opened() -> str:
    row = Introspection.objects.get()
    holder = f"introspection:{row.issuer_id}"
    return reveal(KeyRing().get(holder), bytes(row.secret or b""), holder.encode()).decode()


def test_it_is_created_changed_and_removed_and_a_second_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert changes() == [
        f"create issuer {ID}",
        f"update issuer {ID}: introspection: endpoint, method, client_id, signed, cache_seconds, secret",
    ]
    assert opened() == SECRET and changes() == []
    told = str(newest("policy"))
    assert "clients_introspection" in told and "secret_set_at" in told and SECRET not in told
    monkeypatch.setenv(NAME, "another")
    assert changes() == [f"update issuer {ID}: introspection: secret"] and opened() == "another"
    assert changes(ASKED[:-1] + ", cache_seconds: 0}") == [f"update issuer {ID}: introspection: cache_seconds"]
    assert changes("null") == [f"update issuer {ID}: is no longer asked about opaque tokens"]
    assert not Introspection.objects.exists() and changes("null") == []


def test_what_is_exported_holds_no_secret_and_is_applied_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    changes(ASKED[:-1] + ", method: client_secret_post, signed: true, cache_seconds: 5}")
    text = export()
    assert "https://id.example/ask" in text and "client_secret_post" in text
    assert "secret_env" not in text and SECRET not in text
    monkeypatch.delenv(NAME)
    assert apply(parse(text), "test.yaml").changes == [] and opened() == SECRET


def test_diff_shows_it_and_leaves_it() -> None:
    found = diff(parse(file()), "test.yaml")
    assert "introspection" in str(found.changes[-1]) and not Introspection.objects.exists()
    assert changes()[-1].endswith("secret") and opened() == SECRET  # a key that was rolled back is not remembered


def test_the_secret_may_be_in_a_file_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(NAME)
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "secret"))
    assert "No such file" in refused(file())
    (tmp_path / "secret").write_bytes(b"\xff")
    assert "no text" in refused(file())
    (tmp_path / "secret").write_text("x" * 5000)
    assert "1 to 1000" in refused(file())
    (tmp_path / "secret").write_text(f" {SECRET}\n")
    assert changes() and opened() == SECRET


@pytest.mark.parametrize(
    ("introspection", "words"),
    [
        ("{endpoint: 'https://id.example/ask', client_id: m}", "introspection.secret_env: must name the variable"),
        (ASKED.replace(NAME, f"{NAME}_2"), f"{NAME}_2 (or {NAME}_2_FILE) is not set"),
        (ASKED.replace(NAME, "MUNIMENT_PEPPER"), "secret_env"),
        (ASKED.replace(NAME, "MUNIMENT_INTROSPECTION_"), "secret_env"),
        (ASKED.replace("secret_env", "secret"), "introspection"),
        (ASKED.replace("https://id.example/ask", "https://me:pw@id.example/"), "introspection.endpoint"),
        (ASKED.replace("https://id.example/ask", "file:///etc/passwd"), "introspection.endpoint"),
        (ASKED[:-1] + ", cache_seconds: 601}", "cache_seconds"),
        (ASKED[:-1] + ", method: none}", "method"),
    ],
)
def test_what_cannot_be_meant_refuses_the_file(introspection: str, words: str) -> None:
    assert words in refused(file(introspection)) and not Introspection.objects.exists()


@pytest.mark.parametrize(
    "change", [("id.example/ask", "evil.example/ask"), ("client_id: muniment", "client_id: another")]
)
def test_a_stored_secret_is_not_sent_elsewhere(change: tuple[str, str]) -> None:
    changes()
    moved = ASKED.replace(f", secret_env: {NAME}", "").replace(*change)
    assert "elsewhere" in refused(file(moved))
    assert changes(ASKED.replace(*change)) != []


def test_a_secret_that_cannot_be_printed_is_refused_and_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "a\x07b")
    assert "can be printed" in refused(file())


def test_a_backend_that_would_have_two_to_ask_refuses_the_file_with_exit_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = ASKED.replace("id.example", "b.example")
    both = f"{file()[:-1]}, {{issuer: 'https://b.example/', introspection: {second}}}]"
    backend = "\nbackends: [{slug: inner, name: Inner, audiences: ['https://inner.example']%s}]"
    path = tmp_path / "policy.yaml"
    path.write_text(both + backend % "")
    with pytest.raises(CommandError) as error:
        call_command("policy", "apply", str(path))
    assert error.value.returncode == 2 and "The backend inner would accept" in str(error.value)
    assert "https://b.example/ and https://id.example/" in str(error.value)
    assert not Introspection.objects.exists()
    for fine in (f", issuers: ['{ID}']", ", enabled: false"):
        apply(parse(both + backend % fine), "test.yaml")
    assert "The backend inner would accept" in refused(both + backend % ", enabled: true")
    apply(parse(both.replace("b.example/',", "b.example/', enabled: false,") + backend % ", enabled: true"), "x.yaml")
    assert os.environ[NAME] == SECRET
