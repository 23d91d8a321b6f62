"""Settings refuse to start half-configured: keys, modes, databases; each with one line that says what."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from governance import settings

ROOT = Path(__file__).resolve().parents[2]
KEY = base64.b64encode(bytes(32)).decode()
BASE = {
    "PATH": os.environ["PATH"],
    "MUNIMENT_MODE": "production",
    "MUNIMENT_HOSTS": "muniment.example",
    "DATABASE_URL": "postgresql://muniment:s3cret-pw@127.0.0.1:9/muniment",
    "REDIS_URL": "redis://127.0.0.1:9/0",
    "MUNIMENT_DJANGO_SECRET": KEY,
    "MUNIMENT_KEY_ENCRYPTION_KEY": KEY,
    "MUNIMENT_PEPPER": KEY,
    "MUNIMENT_OIDC_ISSUER": "https://id.example",
    "MUNIMENT_OIDC_CLIENT_ID": "muniment",
    "MUNIMENT_OIDC_ADMIN_GROUP": "admins",
}


def manage(*arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in (BASE | environment).items() if value is not None}
    return subprocess.run(
        [sys.executable, "manage.py", *arguments], cwd=ROOT, env=given, capture_output=True, text=True, timeout=60
    )


def refused(**environment: str | None) -> str:
    done = manage("check", **environment)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "s3cret-pw" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line]
    return line


def test_production_settings_start() -> None:
    assert manage("check", "--deploy").returncode == 0


def test_a_refusal_is_one_line_that_names_the_variable() -> None:
    assert "MUNIMENT_PEPPER" in refused(MUNIMENT_PEPPER=None)
    assert "DATABASE_URL" in refused(DATABASE_URL="sqlite:///x.db")
    assert "REDIS_URL" in refused(REDIS_URL=None)
    assert "MUNIMENT_MODE" in refused(MUNIMENT_MODE="debug")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The production environment, in this process."""
    for name in list(os.environ):
        if name.startswith(("MUNIMENT_", "DATABASE_")):
            monkeypatch.delenv(name)
    for name, value in BASE.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize("name", ["DJANGO_SECRET", "KEY_ENCRYPTION_KEY", "PEPPER"])
def test_a_missing_key_is_named(environment: pytest.MonkeyPatch, name: str) -> None:
    assert set(settings.read_keys("manage")) == {"DJANGO_SECRET", "KEY_ENCRYPTION_KEY", "PEPPER"}
    environment.delenv(f"MUNIMENT_{name}")
    with pytest.raises(ImproperlyConfigured, match=f"MUNIMENT_{name}"):
        settings.read_keys("manage")


@pytest.mark.parametrize("value", ["short", base64.b64encode(bytes(16)).decode(), "%%%"])
def test_a_key_that_is_no_32_bytes_is_named_and_not_shown(environment: pytest.MonkeyPatch, value: str) -> None:
    environment.setenv("MUNIMENT_PEPPER", value)
    with pytest.raises(ImproperlyConfigured, match="MUNIMENT_PEPPER") as refusal:
        settings.read_keys("manage")
    assert value not in str(refusal.value)


@pytest.mark.parametrize("process", ["web", "worker", "beat", "seal", "manage"])
def test_a_process_refuses_a_key_that_is_not_its_own(environment: pytest.MonkeyPatch, process: str) -> None:
    own = settings.KEYS_OF_PROCESS[process]
    for name in settings.ALL_KEYS:
        environment.delenv(f"MUNIMENT_{name}", raising=False)
    for name in own:
        environment.setenv(f"MUNIMENT_{name}", KEY)
    assert set(settings.read_keys(process)) == own
    for foreign in settings.ALL_KEYS - own:
        environment.setenv(f"MUNIMENT_{foreign}", KEY)
        with pytest.raises(ImproperlyConfigured, match=f"MUNIMENT_{foreign}"):
            settings.read_keys(process)
        environment.delenv(f"MUNIMENT_{foreign}")


def test_an_unknown_process_is_refused(environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImproperlyConfigured, match="MUNIMENT_PROCESS"):
        settings.read_keys("everything")


def test_a_key_may_come_from_a_file(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pepper").write_text(KEY + "\n")
    environment.delenv("MUNIMENT_PEPPER")
    environment.setenv("MUNIMENT_PEPPER_FILE", str(tmp_path / "pepper"))
    assert settings.read_keys("manage")["PEPPER"] == bytes(32)
    environment.setenv("MUNIMENT_PEPPER_FILE", str(tmp_path / "none"))
    with pytest.raises(ImproperlyConfigured, match="MUNIMENT_PEPPER_FILE"):
        settings.read_keys("manage")


@pytest.mark.parametrize("url", ["", "sqlite:///x.db", "mysql://x/y", "nonsense"])
def test_postgresql_is_the_only_database(environment: pytest.MonkeyPatch, url: str) -> None:
    environment.setenv("DATABASE_URL", url)
    with pytest.raises(ImproperlyConfigured, match="DATABASE_URL"):
        settings.database("DATABASE_URL")


def test_what_is_dangerous_in_production_is_a_numbered_finding() -> None:
    found = manage(
        "check", "--deploy", MUNIMENT_HOSTS=None, MUNIMENT_URL="http://muniment.example",
        MUNIMENT_JWKS_MAX_STALE="9999999", MUNIMENT_JWKS_COOLDOWN="600", DATABASE_OWNER_URL=BASE["DATABASE_URL"],
    ).stderr  # fmt: skip
    for number in ("E003", "E004", "E005", "W001", "W003", "W004", "W005"):
        assert f"muniment.{number}" in found
    clean = manage("check", "--deploy", MUNIMENT_PROXY_TLS="1", MUNIMENT_ANCHORS="file:///anchor")
    assert "muniment." not in clean.stderr + clean.stdout


def test_an_anchor_that_cannot_be_stops_the_start_and_is_not_shown() -> None:
    found = manage("check", MUNIMENT_ANCHORS="file:///fine s3://id:s3cret-pw@bucket/x").stderr
    assert "muniment.E006" in found
    assert "entry 2" in found
    assert "s3cret-pw" not in found


@pytest.mark.parametrize("url", ["nonsense", "smtp://", "smtp://u:s3cret-pw@host:port", "https://host"])
def test_a_mail_server_that_cannot_be_is_named_and_not_shown(url: str) -> None:
    assert "MUNIMENT_EMAIL_URL" in refused(MUNIMENT_EMAIL_URL=url)
    assert settings.mail_server("smtp+tls://u:pw@mail.example:587")["EMAIL_USE_TLS"] is True


def test_demo_mode_takes_no_public_name_and_is_not_deployed() -> None:
    found = manage("check", "--deploy", MUNIMENT_MODE="demo")
    assert found.returncode != 0
    assert "muniment.E001" in found.stderr
    assert "muniment.E002" in found.stderr
