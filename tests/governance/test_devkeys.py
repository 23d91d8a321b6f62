"""Development keys: made once, private, each process exactly its own."""

import base64
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from governance import devkeys


def test_keys_are_32_bytes_in_private_files_and_are_never_replaced(tmp_path: Path) -> None:
    directory = tmp_path / "var" / "keys"
    paths = devkeys.make(directory)
    first = {name: path.read_text() for name, path in paths.items()}
    assert devkeys.make(directory) == paths
    assert {name: path.read_text() for name, path in paths.items()} == first
    assert all(len(base64.b64decode(text, validate=True)) == 32 for text in first.values())
    assert len(set(first.values())) == len(first)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert sorted(path.name for path in directory.iterdir()) == sorted(name.lower() for name in first)


def test_each_process_gets_exactly_its_own(tmp_path: Path) -> None:
    assert set(devkeys.variables(tmp_path, "seal")) == {"MUNIMENT_LOG_KEY_FILE"}
    assert set(devkeys.variables(tmp_path, "worker")) == {"MUNIMENT_EXPORT_KEY_FILE"}
    assert devkeys.variables(tmp_path, "beat") == {}
    assert not any("LOG_KEY" in name for name in devkeys.variables(tmp_path, "web"))
    assert devkeys.variables(tmp_path, "web")["MUNIMENT_PEPPER_FILE"] == str(tmp_path / "pepper")
    with pytest.raises(KeyError):
        devkeys.variables(tmp_path, "other")


def test_starters_at_the_same_time_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        seen = set(pool.map(lambda _: devkeys.password(tmp_path / "keys", "redis"), range(64)))
    assert len(seen) == 1
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["redis"]


def test_keys_that_others_can_read_are_refused(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    paths = devkeys.make(directory)
    paths["PEPPER"].chmod(0o644)
    with pytest.raises(PermissionError, match="chmod 600"):
        devkeys.make(directory)
    paths["PEPPER"].chmod(0o600)
    directory.chmod(0o755)
    with pytest.raises(PermissionError, match="chmod 700"):
        devkeys.make(directory)


def test_the_command_prints_one_process_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert devkeys.main([str(tmp_path / "keys"), "worker"]) == 0
    assert capsys.readouterr().out == f"MUNIMENT_EXPORT_KEY_FILE={tmp_path}/keys/export_key\n"
    assert devkeys.main([]) == 2
