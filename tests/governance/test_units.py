"""What production runs from: systemd units that are accepted, give each process its own secrets and no other's, and a
script that makes the database's roles."""

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from governance import devkeys, supervisor_plan
from governance.embedded_postgres import binaries
from governance.settings import KEYS_OF_PROCESS
from tests import forked
from tests.governance.test_settings import BASE

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
TARGET = ROOT / "deploy/systemd/muniment.target"
HOME = "/usr/lib/muniment"
ANALYZE = shutil.which("systemd-analyze")
WORST_EXPOSURE = 25  # tenths; 0 is best, 100 worst
NAMES = {"owner": "units_owner", "serving": "units_serving", "database": "units_db"}


def settings_of(unit: Path) -> list[tuple[str, str]]:
    """The assignments of a unit file, in order; a line that ends in a backslash goes on."""
    text = re.sub(r"\\\n\s*", " ", unit.read_text())
    found = [line.partition("=") for line in text.splitlines() if line and line[0] not in "#["]
    return [(name, value) for name, _, value in found]


def environment_of(unit: Path, credentials: Path) -> dict[str, str]:
    """What the unit's process sees: its Environment=, with the folder of credentials."""
    pairs = [
        pair.partition("=")
        for name, value in settings_of(unit)
        if name == "Environment"
        for pair in value.replace("%d", str(credentials)).split()
    ]
    return {name: value for name, _, value in pairs}


def credentials_of(unit: Path) -> set[str]:
    """The secrets that the unit loads."""
    return {value.partition(":")[0] for name, value in settings_of(unit) if name == "LoadCredential"}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all credentials, as an operator fills it."""
    folder = tmp_path_factory.mktemp("credentials")
    devkeys.make(folder)
    told = {
        "database_url": BASE["DATABASE_URL"], "database_owner_url": "postgresql://muniment_owner:x@127.0.0.1:9/muniment",
        "redis_url": BASE["REDIS_URL"], "oidc_client_secret": "a-client-secret", "metrics_token": "a-token-of-metrics",
        "anchors": "syslog:///dev/log", "email_url": "smtp+tls://u:p@mail.example:587",
    }  # fmt: skip
    for name, value in told.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def name_of(unit: Path) -> str:
    return unit.stem.removeprefix("muniment-")


def test_there_is_a_unit_for_every_process() -> None:
    assert {name_of(unit) for unit in UNITS} == {*KEYS_OF_PROCESS, "migrate"} - {"manage"}
    wanted = next(value for name, value in settings_of(TARGET) if name == "Wants").split()
    assert set(wanted) == {unit.name for unit in UNITS}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units as they would be on this machine: programs where they are, users that exist."""
    folder = tmp_path_factory.mktemp("units")
    for unit in (*UNITS, TARGET):
        text = unit.read_text().replace(HOME, str(ROOT))
        (folder / unit.name).write_text(re.sub(r"^(User|Group)=.*", r"\1=daemon", text, flags=re.M))
    return folder


@pytest.fixture(scope="module")
def made(superuser_url: str) -> Iterator[dict[str, str]]:
    """The roles and the database that the script makes, with passwords; the URL of each role."""
    parts = urlsplit(superuser_url)
    maintenance = urlunsplit(parts._replace(path="/postgres"))
    try:
        for _ in range(2):  # the second time changes nothing
            run_script(maintenance)
        with psycopg.connect(maintenance, autocommit=True) as superuser:
            for role in ("owner", "serving"):
                name = sql.Identifier(NAMES[role])
                superuser.execute(sql.SQL("ALTER ROLE {} PASSWORD 'secret'").format(name))
        found = parts._replace(path=f"/{NAMES['database']}")
        host = parts.netloc.rpartition("@")[2]
        yield {role: urlunsplit(found._replace(netloc=f"{NAMES[role]}:secret@{host}")) for role in ("owner", "serving")}
    finally:
        with psycopg.connect(maintenance, autocommit=True) as superuser:
            superuser.execute(f"DROP DATABASE IF EXISTS {NAMES['database']} WITH (FORCE)")
            for role in ("owner", "serving"):
                superuser.execute(f"DROP ROLE IF EXISTS {NAMES[role]}")


def run_script(url: str) -> None:
    given = [part for name, value in NAMES.items() for part in ("-v", f"{name}={value}")]
    script = ROOT / "deploy/restricted_roles.sql"
    command = [str(binaries() / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", *given, "-f", str(script), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze on this machine")
class TestSystemd:
    def test_it_accepts_every_unit_without_a_word(self, installed: Path) -> None:
        command = [str(ANALYZE), "verify", "--man=no", "--generators=no", *sorted(map(str, installed.iterdir()))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        words = [line for line in done.stderr.splitlines() if str(installed) in line or "muniment" in line]
        assert (done.returncode, words) == (0, [])

    def test_it_would_say_what_is_wrong(self, installed: Path, tmp_path: Path) -> None:
        wrong = tmp_path / "muniment-web.service"
        wrong.write_text((installed / wrong.name).read_text().replace("ProtectHome=yes", "ProtectHomme=perhaps"))
        command = [str(ANALYZE), "verify", "--man=no", "--generators=no", str(wrong)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert "ProtectHomme" in done.stderr

    def test_no_process_is_more_exposed_than_it_must_be(self, installed: Path) -> None:
        for unit in UNITS:
            command = [str(ANALYZE), "security", "--offline=true", "--no-pager", f"--threshold={WORST_EXPOSURE}"]
            done = subprocess.run([*command, str(installed / unit.name)], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.parametrize("unit", UNITS, ids=name_of)
class TestEachUnit:
    def test_its_process_starts_with_what_it_is_given(self, unit: Path, secrets: Path, tmp_path: Path) -> None:
        own = tmp_path / "own"
        own.mkdir()
        for name in credentials_of(unit):
            shutil.copy(secrets / name, own / name)
        plain = {k: v for k, v in BASE.items() if k in ("PATH", "MUNIMENT_HOSTS") or k.startswith("MUNIMENT_OIDC")}
        environment = plain | environment_of(unit, own) | {"MUNIMENT_VAR": str(tmp_path / "var")}
        done = forked.manage("check", "--tag=security", environment=environment)
        assert done.returncode == 0, done.stderr

    def test_every_secret_is_a_credential_and_none_is_in_the_unit(self, unit: Path, secrets: Path) -> None:
        environment = environment_of(unit, Path("/d"))
        files = {Path(value).name for name, value in environment.items() if name.endswith("_FILE")}
        assert files == credentials_of(unit)
        assert all((secrets / name).exists() for name in files)
        keys = {name.lower() for name in KEYS_OF_PROCESS[environment["MUNIMENT_PROCESS"]]}
        assert {name for name in files if name.upper() in devkeys.NAMES} == keys

    def test_the_owner_of_the_tables_is_the_workers_alone(self, unit: Path, secrets: Path) -> None:
        assert ("database_owner_url" in credentials_of(unit)) == (name_of(unit) in ("worker", "migrate"))

    def test_what_it_runs_is_what_the_supervisor_runs(self, unit: Path, secrets: Path) -> None:
        plan = supervisor_plan.Plan(Path("/var/lib/muniment"), 8000, 2, None, None, None)
        commands = {
            "web": supervisor_plan.web_command(plan), "seal": supervisor_plan.seal_command(),
            "worker": supervisor_plan.worker_command(), "beat": supervisor_plan.beat_command(plan),
        }  # fmt: skip
        if (name := name_of(unit)) == "migrate":
            commands["migrate"] = supervisor_plan.manage_command("migrate", "--database", "owner", "--no-input")
        started, *_ = [value.split() for key, value in settings_of(unit) if key == "ExecStart"]
        assert started[0] == f"{HOME}/.venv/bin/python"
        differing = {"--concurrency", "1", "--pidfile", ""}  # of the worker; written in one word for systemd
        assert [word for word in commands[name][1:] if word not in started and word not in differing] == []


def test_a_key_of_another_process_stops_the_start(secrets: Path, tmp_path: Path) -> None:
    [web] = [unit for unit in UNITS if name_of(unit) == "web"]
    environment = environment_of(web, secrets) | {"MUNIMENT_LOG_KEY_FILE": str(secrets / "log_key")}
    environment |= {"PATH": os.environ["PATH"], "MUNIMENT_VAR": str(tmp_path)}
    done = forked.manage("check", "--tag=security", environment=environment)
    assert done.returncode != 0 and "MUNIMENT_LOG_KEY" in done.stderr


class TestRoles:
    def test_they_are_no_more_than_they_must_be(self, made: dict[str, str]) -> None:
        with psycopg.connect(made["owner"]) as owner:
            rights = owner.execute(
                "SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls, rolcanlogin"
                " FROM pg_roles WHERE rolname LIKE 'units%'"
            ).fetchall()
            assert rights == [(False, True)] * 2
            owns = owner.execute("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()")
            assert owns.fetchone() == (NAMES["owner"],)

    @pytest.mark.parametrize(
        "statement", ["CREATE TABLE mine (x int)", "CREATE TEMPORARY TABLE mine (x int)", "CREATE SCHEMA mine",
                      "SET ROLE units_owner", "CREATE ROLE mine", "CREATE DATABASE mine", "COPY (SELECT 1) TO '/x'"]
    )  # fmt: skip
    def test_the_serving_role_makes_nothing(self, made: dict[str, str], statement: str) -> None:
        with psycopg.connect(made["serving"], autocommit=True) as serving, pytest.raises(psycopg.Error) as refused:
            serving.execute(statement)
        assert refused.value.sqlstate == "42501"  # insufficient_privilege

    def test_the_platform_runs_with_them(self, made: dict[str, str], secrets: Path, tmp_path: Path) -> None:
        environment = BASE | {
            "DATABASE_URL": made["serving"], "DATABASE_OWNER_URL": made["owner"], "MUNIMENT_VAR": str(tmp_path),
        }  # fmt: skip
        done = forked.manage(
            "migrate", "--database", "owner", "--no-input", "--verbosity", "0", environment=environment
        )
        assert done.returncode == 0, done.stderr
        with psycopg.connect(made["serving"], autocommit=True) as serving:
            assert serving.execute("SELECT policy FROM audit_head").fetchone() is not None
            for forbidden in ("DELETE FROM audit_record", "TRUNCATE audit_batch", "UPDATE audit_head SET policy = 0",
                              "ALTER TABLE audit_record DISABLE TRIGGER ALL", "DELETE FROM audit_datakey"):  # fmt: skip
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    serving.execute(forbidden)
            # Needed to tell how old the snapshots of other roles are.
            row = serving.execute("SELECT pg_has_role(current_user, 'pg_read_all_stats', 'usage')").fetchone()
            assert row == (True,)


@pytest.fixture(scope="module")
def units(installed: Path, secrets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units with the paths of this machine, run by whoever runs the tests, since the interpreter may be theirs."""
    folder = tmp_path_factory.mktemp("etc")
    kept = [f"{k}={v}" for k, v in BASE.items() if k.startswith(("MUNIMENT_OIDC", "MUNIMENT_HOSTS"))]
    (folder / "muniment.env").write_text("\n".join(["# no secrets", "", "MUNIMENT_PROXY_TLS='true'", *kept]))
    for unit in UNITS:
        text = (installed / unit.name).read_text().replace("/etc/muniment/credentials", str(secrets))
        text = text.replace("/etc/muniment/muniment.env", str(folder / "muniment.env"))
        text = re.sub(r"/var/lib/muniment\S*", "/nowhere", text).replace("User=daemon", "User=root")
        (folder / unit.name).write_text(text)
    return folder


def manage_as(units: Path, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [python, str(ROOT / "deploy/manage_as.py"), *arguments]
    given = {"PATH": os.environ["PATH"], "MUNIMENT_UNITS": str(units)}
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
class TestManageAsAUnit:
    """deploy/manage_as.py: how an operator runs manage.py."""

    def test_a_command_has_what_the_unit_and_its_drop_ins_give(self, units: Path, tmp_path: Path) -> None:
        done = manage_as(units, "check", "--deploy")
        assert (done.returncode, done.stderr) == (0, "")
        shutil.copytree(units, tmp_path, dirs_exist_ok=True)
        (tmp_path / "streams").write_text("[{name: x, kind: carrier-pigeon}]")
        dropped = tmp_path / "muniment-migrate.service.d"
        dropped.mkdir()
        given = f"LoadCredential=streams:{tmp_path}/streams\nEnvironment=MUNIMENT_STREAMS_FILE=%d/streams\n"
        (dropped / "streams.conf").write_text(f"[Service]\n{given}")
        own = ("MUNIMENT_LOCAL_PASSWORDS=true", "MUNIMENT_INTROSPECTION_ID2_FILE=/nowhere")
        found = manage_as(tmp_path, *own, "check", "--deploy")
        assert found.returncode == 1 and "muniment.E011" in found.stderr and "muniment.W006" in found.stderr

    @pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs an interpreter that other users can run")
    def test_it_is_the_units_user_alone_and_the_credentials_are_gone_with_it(self, units: Path) -> None:
        asked = (
            "import os, pathlib as p; print(os.getresuid(), os.getgroups(), p.Path(os.environ['MUNIMENT_LOG_KEY_FILE'])"
        )
        asked += ".read_text(), [k for k in os.environ if k.startswith('MUNIMENT_') and 'KEY' in k])"
        daemon = pwd.getpwnam("daemon").pw_uid
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o755)
            (folder / "manage.py").write_text(asked)
            text = (units / "muniment-seal.service").read_text().replace("User=root", "User=daemon")
            (folder / "muniment-seal.service").write_text(text.replace(f"={ROOT}\n", f"={folder}\n"))
            done = manage_as(folder, "--unit=seal", "x", python="/usr/bin/python3")
        key = (units / "muniment-seal.service").read_text().split("LoadCredential=log_key:")[1].split()[0]
        said = f"{(daemon,) * 3} [] {Path(key).read_text()} ['MUNIMENT_LOG_KEY_FILE']"
        assert done.stdout.split() == said.split(), done.stderr
        assert list(Path("/run/muniment-manage").iterdir()) == []

    @pytest.mark.parametrize("arguments", [(), ("--unit=nope", "status"), ("--unit=../web", "status"), ("--unit=web",)])
    def test_what_it_cannot_run_is_refused_in_one_line(self, units: Path, arguments: tuple[str, ...]) -> None:
        done = manage_as(units, *arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert done.stderr.startswith("muniment: ")

    def test_a_credential_that_is_missing_is_named(self, units: Path, tmp_path: Path) -> None:
        text = re.sub(r"(LoadCredential=pepper:).*", r"\1/no/pepper", (units / "muniment-web.service").read_text())
        (tmp_path / "muniment-web.service").write_text(text)
        done = manage_as(tmp_path, "--unit=web", "check")
        assert (done.returncode, done.stderr) == (2, "muniment: /no/pepper cannot be read: No such file or directory\n")
