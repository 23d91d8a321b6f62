"""A folder on an SSH server as a destination, against a real server on loopback: its key is pinned, nothing is
replaced, nothing half-written stays."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko
import pytest

from audit.destinations import DeliveryFailed, Differs, sftp
from tests.audit.delivering import SECRET, one, put


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What is to be delivered; larger than a chunk."""
    path = tmp_path / "calls-1-20261101T0000Z.csv"
    path.write_bytes(b"at,client,tool\n" * 50_000)
    return path


class _Ssh(paramiko.ServerInterface):
    def check_auth_password(self, username: str, password: str) -> int:
        good = (username, password) == ("muniment", SECRET)
        return paramiko.common.AUTH_SUCCESSFUL if good else paramiko.common.AUTH_FAILED

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.common.AUTH_SUCCESSFUL if key == USER_KEY else paramiko.common.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.common.OPEN_SUCCEEDED

    def get_allowed_auths(self, username: str) -> str:
        return "password,publickey"


class _Handle(paramiko.SFTPHandle):
    def __init__(self, file: Any) -> None:
        super().__init__()
        self.readfile = self.writefile = file

    def stat(self) -> Any:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))

    def write(self, offset: int, data: bytes) -> int:
        if _Folder.full:
            return paramiko.sftp.SFTP_FAILURE
        return super().write(offset, data)


class _Folder(paramiko.SFTPServerInterface):
    """A folder on disk, by SFTP; like OpenSSH's, its rename never replaces."""

    root = Path()
    full = False

    def _path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def list_folder(self, path: str) -> Any:
        try:
            entries = sorted(self._path(path).iterdir())
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)
        return [paramiko.SFTPAttributes.from_stat(entry.lstat(), entry.name) for entry in entries]

    def stat(self, path: str) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(self._path(path).stat())
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)

    lstat = stat

    def open(self, path: str, flags: int, attr: Any) -> Any:
        try:
            writes = flags & (os.O_WRONLY | os.O_RDWR)
            return _Handle(os.fdopen(os.open(self._path(path), flags, 0o600), "wb" if writes else "rb"))
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno)

    def rename(self, oldpath: str, newpath: str) -> int:
        if self._path(newpath).exists():
            return paramiko.sftp.SFTP_FAILURE
        self._path(oldpath).rename(self._path(newpath))
        return paramiko.sftp.SFTP_OK

    def remove(self, path: str) -> int:
        self._path(path).unlink()
        return paramiko.sftp.SFTP_OK


HOST_KEY, OTHER_KEY, USER_KEY = (paramiko.ECDSAKey.generate() for _ in range(3))


def line_of(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.get_base64()}"


@dataclass
class SshServer:
    """A running one: its port, its folder `in`, and the user names that came."""

    port: int
    folder: Path

    def entry(self, login: str = f"password: {SECRET}", key: paramiko.PKey = HOST_KEY, path: str = "/in") -> str:
        place = f"host: 127.0.0.1, port: {self.port}, username: muniment, path: {path}"
        return f"{{name: a, kind: sftp, {place}, host_key: {line_of(key)}, {login}}}"


@pytest.fixture
def ssh(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[SshServer]:
    """An SSH server on loopback; its transports and threads end with it."""
    caplog.set_level(logging.CRITICAL, "paramiko")
    root = tmp_path / "sftp"
    (root / "in").mkdir(parents=True)
    _Folder.root, _Folder.full = root, False
    listener = socket.create_server(("127.0.0.1", 0))
    transports: list[paramiko.Transport] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transports.append(transport)
            transport.add_server_key(HOST_KEY)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _Folder)
            try:
                transport.start_server(server=_Ssh())
            except (paramiko.SSHException, EOFError, OSError):  # whoever asked hung up
                transport.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield SshServer(listener.getsockname()[1], root / "in")
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)
    for transport in transports:
        transport.close()


def test_an_ssh_server_gets_the_file_once(ssh: SshServer, file: Path) -> None:
    chosen = one(ssh.entry())
    put(chosen, file)
    [found] = ssh.folder.iterdir()
    before = found.stat()
    assert (found.name, found.read_bytes()) == (file.name, file.read_bytes())
    put(chosen, file)
    assert found.stat().st_ino == before.st_ino
    assert len(list(ssh.folder.iterdir())) == 1


def test_an_ssh_server_takes_a_private_key(ssh: SshServer, file: Path, tmp_path: Path) -> None:
    USER_KEY.write_private_key_file(str(tmp_path / "key"))
    put(one(ssh.entry(f"private_key_file: {tmp_path}/key")), file)
    assert (ssh.folder / file.name).exists()
    OTHER_KEY.write_private_key_file(str(tmp_path / "other"))
    with pytest.raises(DeliveryFailed, match="refused the user name with this password or key"):
        put(one(ssh.entry(f"private_key_file: {tmp_path}/other")), file)


@pytest.mark.parametrize("other", [b"short", b"x" * 750_000], ids=["other-size", "same-size"])
def test_an_ssh_server_keeps_what_has_the_name_already(ssh: SshServer, file: Path, other: bytes) -> None:
    (ssh.folder / file.name).write_bytes(other)
    with pytest.raises(Differs):
        put(one(ssh.entry()), file)
    assert (ssh.folder / file.name).read_bytes() == other
    assert len(list(ssh.folder.iterdir())) == 1


def test_a_server_with_another_key_is_never_told_the_password(
    ssh: SshServer, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(_Ssh, "check_auth_password", lambda self, user, password: told.append(password))
    with pytest.raises(DeliveryFailed, match="another key than the one that is pinned"):
        put(one(ssh.entry(key=OTHER_KEY)), file)
    assert told == []
    # Of another type than the server has: none of its keys is known.
    ed25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMmPCLSA0Fgbvh8aCJ5zUQgVtWa3VSfLu0bAANVqZ8Sn"
    with pytest.raises(DeliveryFailed, match="another key than the one that is pinned"):
        put(one(ssh.entry().replace(line_of(HOST_KEY), ed25519)), file)
    assert told == []


def test_an_ssh_server_that_refuses_is_said_in_words(ssh: SshServer, file: Path) -> None:
    with pytest.raises(DeliveryFailed, match="refused the user name") as caught:
        put(one(ssh.entry("password: wr0ng-s3cret")), file)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(DeliveryFailed, match="the folder does not exist on the SSH server"):
        put(one(ssh.entry(path="/missing")), file)
    _Folder.full = True
    with pytest.raises(DeliveryFailed, match="refused to write the file; its disk may be full"):
        put(one(ssh.entry()), file)
    assert list(ssh.folder.iterdir()) == [], "nothing half-written"


def test_leftovers_on_an_ssh_server_go_after_a_day(ssh: SshServer, file: Path) -> None:
    old, young = ssh.folder / f".a.csv.{'0a' * 8}.part", ssh.folder / f".b.csv.{'0b' * 8}.part"
    other = ssh.folder / ".somebody-elses.part"
    for path in (old, young, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (time.time() - 90_000,) * 2)
    put(one(ssh.entry()), file)
    assert {path.name for path in ssh.folder.iterdir()} == {young.name, other.name, file.name}


def test_an_ssh_server_that_says_nothing_is_given_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp, "CONNECT_SECONDS", 0.5)
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        chosen = one(SshServer(silent.getsockname()[1], Path()).entry())
        start = time.monotonic()
        with pytest.raises(DeliveryFailed, match="SSH"):
            put(chosen, file)
        assert time.monotonic() - start < 10
