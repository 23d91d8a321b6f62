"""Settings refuse to start half-configured: keys, modes, databases; each with one line that says what."""

import base64
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured

from governance import checks, settings, supervisor_plan
from governance.environment import Environment
from tests import forked

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
    return forked.manage(*arguments, environment=given)


# Ours have all this tag; the others are looked at once, below.
def refused(**environment: str | None) -> str:
    done = manage("check", "--tag=security", **environment)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "s3cret-pw" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line]
    return line


def test_production_settings_start() -> None:
    command = [
        sys.executable,
        "manage.py",
        "check",
        "--deploy",
    ]  # an interpreter of its own; the others are forks of one
    done = subprocess.run(command, cwd=ROOT, env=BASE, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_refusal_is_one_line_that_names_the_variable() -> None:
    assert "MUNIMENT_PEPPER" in refused(MUNIMENT_PEPPER=None)
    assert "DATABASE_URL" in refused(DATABASE_URL="sqlite:///x.db")
    assert "REDIS_URL" in refused(REDIS_URL=None)
    assert "MUNIMENT_MODE" in refused(MUNIMENT_MODE="debug")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MUNIMENT_EXPORT_DAYS", "many"),
        ("MUNIMENT_ANCHOR_INTERVAL", "1 minute"),
        ("MUNIMENT_EXPORT_PERSONAL", "maybe"),
        ("MUNIMENT_LOG_LEVEL", "loud"),
        ("REDIS_URL", "127.0.0.1:6379"),
        ("DATABASE_URL", "postgresql://muniment:s3cret-pw@[::1/muniment"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_one_line_that_does_not_show_it(variable: str, value: str) -> None:
    line = refused(**{variable: value})
    assert variable in line
    assert value not in line


def test_a_secret_file_that_is_no_text_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "pepper").write_bytes(b"\xff\xfe\x00")
    line = refused(MUNIMENT_PEPPER=None, MUNIMENT_PEPPER_FILE=str(tmp_path / "pepper"))
    assert "MUNIMENT_PEPPER_FILE" in line


def test_numbers_and_switches_are_read_as_they_are_written(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MUNIMENT_EXPORT_DAYS", "7")
    environment.setenv("MUNIMENT_EXPORT_PERSONAL", "on")
    environment.setenv("MUNIMENT_PROXY_TLS", "0")
    read = Environment()
    assert settings.days("MUNIMENT_EXPORT_DAYS", 30) == 7
    assert (read.bool("MUNIMENT_EXPORT_PERSONAL", False), read.bool("MUNIMENT_PROXY_TLS", True)) == (True, False)
    assert read.int("MUNIMENT_NOT_SET", 5) == 5


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
        "check", "--tag=security", "--deploy", MUNIMENT_HOSTS=None, MUNIMENT_URL="http://muniment.example",
        MUNIMENT_JWKS_MAX_STALE="9999999", MUNIMENT_JWKS_COOLDOWN="600", DATABASE_OWNER_URL=BASE["DATABASE_URL"],
    ).stderr  # fmt: skip
    for number in ("E003", "E004", "E005", "W001", "W003", "W004", "W005"):
        assert f"muniment.{number}" in found
    clean = manage("check", "--tag=security", "--deploy", MUNIMENT_PROXY_TLS="1", MUNIMENT_ANCHORS="file:///anchor")
    assert "muniment." not in clean.stderr + clean.stdout


@pytest.mark.parametrize("process", ["worker", "beat", "seal", "manage"])
def test_the_client_secret_of_staff_is_for_web_processes_alone(
    environment: pytest.MonkeyPatch, process: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("s3cret-pw\n")
    environment.setenv("MUNIMENT_OIDC_CLIENT_SECRET_FILE", str(tmp_path / "secret"))
    environment.setattr(settings, "MUNIMENT_OIDC_ISSUER", "https://id.example")
    assert settings.oidc_secret("web") == "s3cret-pw"
    with pytest.raises(ImproperlyConfigured, match="MUNIMENT_OIDC_CLIENT_SECRET") as refusal:
        settings.oidc_secret(process)
    assert "s3cret-pw" not in str(refusal.value)
    environment.delenv("MUNIMENT_OIDC_CLIENT_SECRET_FILE")
    assert settings.oidc_secret(process) == ""
    with pytest.raises(ImproperlyConfigured, match="MUNIMENT_OIDC_CLIENT_SECRET"):
        settings.oidc_secret("web")


def test_the_supervisor_hands_the_client_secret_to_web_alone() -> None:
    plan, urls = supervisor_plan.read_plan({}), supervisor_plan.Urls("postgresql://d", "postgresql://o", "redis://r")
    given = {"MUNIMENT_OIDC_CLIENT_SECRET": "s", "MUNIMENT_OIDC_CLIENT_SECRET_FILE": "/s", "MUNIMENT_OIDC_ISSUER": "i"}
    for process in ("web", "worker", "beat", "seal", "manage"):
        found = supervisor_plan.environment_for(process, plan, urls, given, owner=False)
        assert found["MUNIMENT_OIDC_ISSUER"] == "i"
        assert ("MUNIMENT_OIDC_CLIENT_SECRET" in found, "MUNIMENT_OIDC_CLIENT_SECRET_FILE" in found) == (
            process == "web", process == "web",
        )  # fmt: skip


@pytest.mark.parametrize("roles", ["admins", "a=superuser", "=auditor", "s3cret-pw=nonsense"])
def test_groups_that_map_to_nothing_stop_the_start(roles: str) -> None:
    assert "MUNIMENT_OIDC_ROLES" in refused(MUNIMENT_OIDC_ROLES=roles)


def test_a_provider_that_is_half_configured_or_not_https_stops_the_start() -> None:
    found = manage("check", "--tag=security", MUNIMENT_OIDC_ADMIN_GROUP=None, MUNIMENT_OIDC_ISSUER="http://id.example")
    assert found.returncode != 0 and "MUNIMENT_OIDC_ADMIN_GROUP" in found.stderr
    assert "muniment.E007" in found.stderr and "muniment.E008" in found.stderr
    assert (
        manage("check", "--tag=security", MUNIMENT_OIDC_ADMIN_GROUP=None, MUNIMENT_OIDC_ROLES="a=auditor").returncode
        == 0
    )


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[CheckMessage]]:
    """What is found of a provider of which this is another than in production."""
    whole = {"ISSUER": BASE["MUNIMENT_OIDC_ISSUER"], "CLIENT_ID": "muniment", "ROLES": {"admins": "Administrator"}}

    def look(**other: object) -> list[CheckMessage]:
        for name, value in (whole | other).items():
            monkeypatch.setattr(django_settings, f"MUNIMENT_OIDC_{name}", value)
        monkeypatch.setattr(django_settings, "MUNIMENT_DEMO", False)
        return list(checks.provider_is_whole(None))

    return look


@pytest.mark.parametrize("missing", ["ISSUER", "CLIENT_ID", "ROLES"])
def test_a_part_of_the_provider_that_is_missing_is_named(
    provider: Callable[..., list[CheckMessage]], missing: str
) -> None:
    assert provider() == []
    [found] = provider(**{missing: ""})
    assert found.id == "muniment.E007" and f"MUNIMENT_OIDC_{missing}" in str(found.hint)


@pytest.mark.parametrize(
    "issuer", ["http://id.example", "http://127.0.0.1:9", "id.example", "https://u@id.example", "https://id.example/#x"]
)
def test_the_issuer_of_staff_is_an_https_address(provider: Callable[..., list[CheckMessage]], issuer: str) -> None:
    assert [found.id for found in provider(ISSUER=issuer)] == ["muniment.E008"]


def test_how_staff_sign_in_is_checked_before_it_is_deployed() -> None:
    none = dict.fromkeys(("MUNIMENT_OIDC_ISSUER", "MUNIMENT_OIDC_CLIENT_ID", "MUNIMENT_OIDC_ADMIN_GROUP"))
    assert "muniment.E009" in manage("check", "--tag=security", "--deploy", **none).stderr
    found = manage(
        "check", "--tag=security", "--deploy", **none, MUNIMENT_LOCAL_PASSWORDS="1", MUNIMENT_SESSION_IDLE="99999"
    ).stderr
    assert "muniment.E009" not in found and "muniment.W006" in found and "muniment.W007" in found


def test_cookies_in_production_are_for_this_host_alone() -> None:
    names = ("SESSION_COOKIE_NAME", "CSRF_COOKIE_NAME", "SESSION_COOKIE_SECURE")
    code = f"from django.conf import settings as s; print({', '.join(f's.{name}' for name in names)})"
    shown = manage("shell", "--no-imports", "-c", code).stdout.split()
    assert shown == ["__Host-muniment", "__Host-muniment-csrf", "True"]


def test_an_anchor_that_cannot_be_stops_the_start_and_is_not_shown() -> None:
    found = manage("check", "--tag=security", MUNIMENT_ANCHORS="file:///fine s3://id:s3cret-pw@bucket/x").stderr
    assert "muniment.E006" in found
    assert "entry 2" in found
    assert "s3cret-pw" not in found


@pytest.mark.parametrize("url", ["nonsense", "smtp://", "smtp://u:s3cret-pw@host:port", "https://host"])
def test_a_mail_server_that_cannot_be_is_named_and_not_shown(url: str) -> None:
    assert "MUNIMENT_EMAIL_URL" in refused(MUNIMENT_EMAIL_URL=url)
    assert settings.mail_server("smtp+tls://u:pw@mail.example:587")["EMAIL_USE_TLS"] is True


def test_demo_mode_takes_no_public_name_and_is_not_deployed() -> None:
    found = manage("check", "--tag=security", "--deploy", MUNIMENT_MODE="demo")
    assert found.returncode != 0
    assert "muniment.E001" in found.stderr
    assert "muniment.E002" in found.stderr


@pytest.mark.parametrize(
    ("name", "value", "is_refused"),
    [
        ("MUNIMENT_URL", "http://127.0.0.1:8000", False),
        ("MUNIMENT_URL", "http://localhost:8000/", False),
        ("MUNIMENT_URL", "http://[::1]:8000", False),
        ("MUNIMENT_URL", "http://127.0.0.1.muniment.example", True),
        ("MUNIMENT_URL", "http://127.0.0.1@muniment.example", True),
        ("MUNIMENT_URL", "https://muniment.example", True),
        ("MUNIMENT_URL", "muniment.example", True),
        ("MUNIMENT_HOSTS", "127.0.0.1", True),
    ],
)
def test_demo_mode_starts_in_the_shell_of_a_backend_that_uses_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, is_refused: bool
) -> None:
    monkeypatch.delenv("MUNIMENT_URL", raising=False)
    monkeypatch.delenv("MUNIMENT_HOSTS", raising=False)
    monkeypatch.setenv(name, value)
    assert [found.id for found in checks.mode_is_whole(None)] == (["muniment.E001"] if is_refused else [])
