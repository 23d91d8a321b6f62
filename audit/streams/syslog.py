"""A syslog server as a stream: lines of CEF in messages of RFC 5424, over UDP, TCP or TLS.

Syslog has no receipts. Over TCP and TLS what was sent counts as taken when the server read to the end, or kept the
connection quiet for a second; over UDP when it was sent at all. docs/siem.md says what that means.
"""

import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from audit import cef, webhooks
from audit.configured import ConfigError, Fields
from audit.streams.base import Item, Receiver, Undelivered
from audit.webhooks import AddressError

CONNECT_SECONDS = 5.0
SEND_SECONDS = 5.0
LINGER_SECONDS = 1.0
PORTS = {"syslog": 514, "syslog+tcp": 601, "syslog+tls": 6514}  # RFC 5426, RFC 3195, RFC 5425


class Syslog(Receiver):
    """`url`: `syslog://host:port` (UDP), `syslog+tcp://host:port` (RFC 6587, with the length in front), or
    `syslog+tls://host:port` (RFC 5425), with `ca` where the machine does not trust the server's certificate."""

    kind = "syslog"
    most = 500

    def __init__(self, name: str, scheme: str, host: str, port: int, context: ssl.SSLContext | None) -> None:
        super().__init__(name, f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
        self._datagrams, self._address, self._context = scheme == "syslog", (host, port), context

    @classmethod
    def parse(cls, name: str, given: Fields) -> "Syslog":
        """From an entry of MUNIMENT_STREAMS. Raises ConfigError."""
        url, trust = given.text("url"), given.text("ca", "")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ConfigError("url cannot be read") from None
        if "@" in parts.netloc:
            raise ConfigError("url must not have credentials in it")
        whole = parts.path in ("", "/") and not parts.query and not parts.fragment
        if parts.scheme not in PORTS or not host or not host.isascii() or " " in host or not whole:
            raise ConfigError("url must be syslog://host:port, syslog+tcp://host:port or syslog+tls://host:port")
        secure = parts.scheme == "syslog+tls"
        if trust and not secure:
            raise ConfigError("ca is for syslog+tls alone")
        try:
            context = webhooks.context(trust) if secure else None
        except AddressError as error:
            raise ConfigError(str(error)) from None
        return cls(name, parts.scheme, host, port or PORTS[parts.scheme], context)

    def send(self, items: Sequence[Item]) -> int:
        """All of them, up to `most`."""
        host = _host()
        messages = [cef.message(item.event, host) for item in items[: self.most]]
        try:
            if self._datagrams:
                self._send_datagrams(messages)
            else:
                self._send_stream(cef.framed(messages))
        except (OSError, UnicodeError) as error:
            raise Undelivered(webhooks.words_of(error)) from None
        return len(messages)

    def _send_datagrams(self, messages: Sequence[bytes]) -> None:
        host, port = self._address
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as datagrams:
            datagrams.settimeout(SEND_SECONDS)
            datagrams.connect(address)  # so that a machine which says that nobody listens is heard
            for message in messages:
                datagrams.send(message)

    def _send_stream(self, data: bytes) -> None:
        with socket.create_connection(self._address, CONNECT_SECONDS) as plain:
            plain.settimeout(SEND_SECONDS)
            if self._context is None:
                plain.sendall(data)
                plain.shutdown(socket.SHUT_WR)
                self._linger(plain)
                return
            with self._context.wrap_socket(plain, server_hostname=self._address[0]) as secure:
                secure.sendall(data)
                secure.settimeout(LINGER_SECONDS)
                # Our end of it is said; one that answers, or ends as it should, has read all.
                with suppress(TimeoutError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
                    secure.unwrap()

    @staticmethod
    def _linger(stream: socket.socket) -> None:
        stream.settimeout(LINGER_SECONDS)
        # A server that reads to the end closes, one that died resets; one that keeps quiet has it, we hope.
        with suppress(TimeoutError):
            stream.recv(1)


def _host() -> str:
    """This machine's name as syslog takes it (RFC 5424, 6.2.4)."""
    return "".join(c for c in socket.gethostname() if "!" <= c <= "~")[:255] or "-"
