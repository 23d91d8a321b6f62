"""A folder on an SSH server as a destination (SFTP). The server's key is pinned: another one is never talked to."""

import errno
import posixpath
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex
from typing import Any

from audit.configured import ConfigError, Fields
from audit.destinations.base import (
    CONNECT_SECONDS,
    LEFTOVER,
    SILENT_SECONDS,
    DeliveryFailed,
    Destination,
    Differs,
    Sending,
    chunks,
    same,
)

LEFTOVER_SECONDS = 24 * 3600.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Sftp(Destination):
    """`host`, `port`, `username`, `path`; `host_key`: lines as in known_hosts; `password` or `private_key_file`
    (an OpenSSH private key; `private_key_password` where it has one). No agent, no keys of the account, no
    keyboard."""

    kind = "sftp"

    def __init__(self, name: str, host: str, port: int, path: str, host_keys: list[Any], **login: Any) -> None:
        shown = f"[{host}]" if ":" in host else host
        super().__init__(name, f"sftp://{shown}{'' if port == 22 else f':{port}'}{path}")
        self._host, self._port, self._path, self._host_keys, self._login = host, port, path, host_keys, login

    @classmethod
    def parse(cls, name: str, given: Fields) -> "Sftp":
        """From an entry of MUNIMENT_DESTINATIONS. Raises ConfigError."""
        host, port, path = given.text("host"), given.number("port", 22, 1, 65535), given.text("path")
        if not host.isascii() or not host.replace("-", "").replace(".", "").replace(":", "").isalnum():
            raise ConfigError("host must be a host's name or address")
        if not path.startswith("/") or ".." in path.split("/"):
            raise ConfigError("path must be an absolute one")
        login = {"username": given.text("username"), "password": given.secret("password", "")}
        key_file, key_password = given.text("private_key_file", ""), given.secret("private_key_password", "")
        if bool(login["password"]) == bool(key_file):
            raise ConfigError("either password (or password_file) or private_key_file is needed")
        if key_file:
            login = {"username": login["username"], "pkey": _private(key_file, key_password)}
        return cls(name, host, port, posixpath.normpath(path), _pinned(given.lines("host_key")), **login)

    def put(self, sending: Sending) -> None:
        """A temporary file, renamed when it is whole; SFTP's rename does not replace (the server may, so it is looked
        before)."""
        from paramiko.ssh_exception import SSHException

        try:
            with self._connected() as folder:
                self._put(folder, sending)
        except TimeoutError:
            raise DeliveryFailed("the SSH server did not answer in time") from None
        except (SSHException, EOFError) as error:
            raise DeliveryFailed(_words(error)) from None
        except OSError as error:
            raise DeliveryFailed(_os_words(error)) from None

    def _put(self, folder: Any, sending: Sending) -> None:
        target = posixpath.join(self._path, sending.name)
        if _is_there(folder, target, sending):
            return
        self._sweep(folder)
        fresh = posixpath.join(self._path, f".{sending.name}.{token_hex(8)}.part")
        try:
            with sending.open() as source:
                folder.putfo(source, fresh, callback=sending.check_time)
            if not _is_there(folder, target, sending):
                _rename(folder, fresh, target, sending)
                fresh = ""
        finally:
            if fresh:
                with suppress(Exception):
                    folder.remove(fresh)

    def _sweep(self, folder: Any) -> None:
        """What a worker that was killed left there more than a day ago. Finds out besides whether the folder exists."""
        for one in folder.listdir_attr(self._path):
            if LEFTOVER.fullmatch(one.filename) and time.time() - (one.st_mtime or time.time()) > LEFTOVER_SECONDS:
                with suppress(OSError):
                    folder.remove(posixpath.join(self._path, one.filename))

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        # Imported here: of all processes only the worker needs it.
        import paramiko

        client = paramiko.SSHClient()
        named = self._host if self._port == 22 else f"[{self._host}]:{self._port}"
        for key in self._host_keys:
            client.get_host_keys().add(named, key.get_name(), key)
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        try:
            client.connect(
                self._host, self._port, allow_agent=False, look_for_keys=False, timeout=CONNECT_SECONDS,
                banner_timeout=CONNECT_SECONDS, auth_timeout=CONNECT_SECONDS, channel_timeout=CONNECT_SECONDS,
                **self._login,
            )  # fmt: skip
            with client.open_sftp() as folder:
                folder.get_channel().settimeout(SILENT_SECONDS)
                yield folder
        finally:
            client.close()


def _is_there(folder: Any, target: str, sending: Sending) -> bool:
    """Whether the very file has the name: read back. Raises Differs for anything else that has it."""
    try:
        state = folder.stat(target)
    except FileNotFoundError:
        return False
    if state.st_size != sending.size:
        raise Differs(sending.name)
    with folder.open(target, "rb") as file:
        file.prefetch(sending.size, max_concurrent_requests=64)  # of 32 KiB: memory stays flat
        if not same(sending, chunks(file)):
            raise Differs(sending.name)
    return True


def _rename(folder: Any, fresh: str, target: str, sending: Sending) -> None:
    try:
        folder.rename(fresh, target)
    except OSError:  # SFTP says "failure" and no more where the name is taken
        if not _is_there(folder, target, sending):
            raise


def _pinned(lines: list[str]) -> list[Any]:
    """The keys that the server may have. A line is of known_hosts, or only type and key. Raises ConfigError."""
    from paramiko.hostkeys import HostKeyEntry, InvalidHostKey

    found = []
    for line in lines:
        fields = line.split()
        line = " ".join(fields if len(fields) > 2 and not fields[1].startswith("AAAA") else ["any", *fields])
        try:
            entry = HostKeyEntry.from_line(line)
        except (InvalidHostKey, ValueError, Exception):  # whatever a made-up key makes the library raise
            entry = None
        if entry is None or line.startswith("@"):
            raise ConfigError("host_key must be lines of known_hosts, as ssh-keyscan prints them")
        found.append(entry.key)
    return found


def _private(path: str, password: str) -> Any:
    """Raises ConfigError, which quotes nothing of the file."""
    import paramiko

    try:
        return paramiko.PKey.from_path(path, password or None)
    except OSError as error:
        raise ConfigError(f"private_key_file cannot be read: {error.strerror}") from None
    except Exception:  # paramiko's, cryptography's, and ValueErrors of many kinds
        raise ConfigError("private_key_file is not a private key that can be opened") from None


def _words(error: Exception) -> str:
    from paramiko.ssh_exception import AuthenticationException, BadHostKeyException, NoValidConnectionsError

    if isinstance(error, BadHostKeyException):
        return "the SSH server has another key than the one that is pinned: somebody may be in between"
    if isinstance(error, AuthenticationException):
        return "the SSH server refused the user name with this password or key"
    if isinstance(error, NoValidConnectionsError):
        return "the SSH server cannot be reached"
    if "not found in known_hosts" in str(error):
        return "the SSH server has another key than the one that is pinned: somebody may be in between"
    return f"the SSH connection failed ({type(error).__name__})"


def _os_words(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "the SSH server's name cannot be resolved"
    if isinstance(error, FileNotFoundError):
        return "the folder does not exist on the SSH server"
    if isinstance(error, PermissionError):
        return "the user may not write to the folder on the SSH server"
    # SFTP (draft-ietf-secsh-filexfer-02) has no code for a full disk: a server says it in words, if at all.
    if error.errno in _FULL or "space" in str(error).lower() or "quota" in str(error).lower():
        return "there is no space left on the SSH server"
    if isinstance(error, ConnectionError) or error.errno:
        return f"the SSH server cannot be reached: {error.strerror or type(error).__name__}"
    return "the SSH server refused to write the file; its disk may be full, or the folder read-only"
