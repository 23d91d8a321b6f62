"""A syslog server as an anchor: a line for each checkpoint, with the whole note in base64."""

import os
import socket
from base64 import b64encode
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import SplitResult

from audit.anchors.base import (
    SECONDS,
    Anchor,
    AnchorError,
    ConfigError,
    Submission,
    check_parts,
    options,
    path_of,
)

PRIORITY = 13 * 8 + 5  # facility "log audit", severity "notice" (RFC 5424, 6.2.1)
LINGER_SECONDS = 1.0


class Syslog(Anchor):
    """`syslog://host:port` (UDP: what is lost is not noticed), `syslog+tcp://host:port` (RFC 6587, 3.4.1: with the
    length in front), or `syslog:///dev/log`. It cannot be read back; whoever keeps it can: see `line`."""

    kind = "syslog"

    def __init__(self, name: str, address: tuple[str, int] | str, tcp: bool) -> None:
        super().__init__(name)
        self._address, self._tcp = address, tcp

    @classmethod
    def parse(cls, parts: SplitResult) -> "Syslog":
        """From an entry of MUNIMENT_ANCHORS. Raises ConfigError."""
        check_parts(parts)
        options(parts)
        tcp = parts.scheme == "syslog+tcp"
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ConfigError("its port cannot be one") from None
        if not parts.netloc and not tcp and (path := path_of(parts)).startswith("/") and path != "/":
            return cls(f"syslog://{path}", path, tcp)
        if not host or not host.isprintable() or parts.path not in ("", "/"):
            raise ConfigError("it must be syslog://host:port, syslog+tcp://host:port or syslog:///path/of/socket")
        port = port or (601 if tcp else 514)  # RFC 3195 and RFC 5426
        return cls(f"{parts.scheme}://{host}:{port}", (host, port), tcp)

    def send(self, submission: Submission) -> str:
        """Send the line."""
        try:
            if isinstance(self._address, str):
                self._local(f"<{PRIORITY}>muniment: {line(submission)}".encode())
            elif self._tcp:
                self._stream(_rfc5424(submission))
            else:
                self._datagram(_rfc5424(submission))
        except TimeoutError:
            raise AnchorError("the syslog server did not answer in time") from None
        except (OSError, UnicodeError) as error:
            raise AnchorError(f"the syslog server cannot be reached: {_words(error)}") from None
        return ""

    def _local(self, message: bytes) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as local:
            local.settimeout(SECONDS / 2)
            local.connect(str(self._address))
            local.send(message)

    def _datagram(self, message: bytes) -> None:
        assert isinstance(self._address, tuple)
        host, port = self._address
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as datagrams:
            datagrams.settimeout(SECONDS / 2)
            datagrams.sendto(message, address)

    def _stream(self, message: bytes) -> None:
        assert isinstance(self._address, tuple)
        with socket.create_connection(self._address, SECONDS / 2) as stream:
            stream.sendall(f"{len(message)} ".encode() + message)
            stream.shutdown(socket.SHUT_WR)
            stream.settimeout(LINGER_SECONDS)
            # A server that reads to the end closes, one that died resets; one that keeps quiet has it, we hope.
            with suppress(TimeoutError):
                stream.recv(1)


def line(submission: Submission) -> str:
    """`muniment-checkpoint`, what it is of in words, and the note: `base64 -d` of what follows `note=` gives it back
    byte for byte."""
    found = submission.checkpoint
    note = b64encode(submission.note.encode()).decode("ascii")
    return f"muniment-checkpoint origin={found.origin} size={found.size} root={found.root.hex()} note={note}"


def _rfc5424(submission: Submission) -> bytes:
    """The message with the header of RFC 5424, section 6."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    host = socket.gethostname().encode("ascii", "ignore").decode().replace(" ", "")[:255] or "-"
    return f"<{PRIORITY}>1 {at} {host} muniment {os.getpid()} checkpoint - {line(submission)}".encode()


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or type(error).__name__)
