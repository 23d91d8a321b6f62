"""A witness as an anchor (C2SP tlog-witness): it cosigns a checkpoint once it has seen the proof that the log only
grew since the last one that it cosigned."""

import http.client
import re
import ssl
from base64 import b64encode
from contextlib import suppress
from socket import SHUT_RDWR, socket
from threading import Timer
from typing import NamedTuple
from urllib.parse import SplitResult

from audit.anchors.base import (
    SECONDS,
    Anchor,
    AnchorError,
    ConfigError,
    Disagreement,
    Submission,
    ahead,
    check_parts,
    is_loopback,
    options,
    path_of,
)
from muniment import notes
from muniment.notes import COSIGNATURE, Key, Note, NoteError

MAX_ANSWER = 64 * 1024  # bytes
SIZE_TYPE = "text/x.tlog.size"
MAX_PATH = 512
_SIZE = re.compile(r"(0|[1-9][0-9]{0,18})\n?")


class _Answer(NamedTuple):
    status: int
    content_type: str
    text: str


class WitnessAnchor(Anchor):
    """`witness+https://host/prefix?key=VKEY` (`witness+http` for this machine only). A cosignature is believed only
    after it was verified with that key. Redirects are not followed, proxies not used."""

    kind = "witness"

    def __init__(self, secure: bool, host: str, port: int | None, prefix: str, key: Key) -> None:
        place = f"{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}{prefix}"
        super().__init__(f"witness+{'https' if secure else 'http'}://{place}")
        self._secure, self._host, self._port, self._prefix, self._key = secure, host, port, prefix, key

    @classmethod
    def parse(cls, parts: SplitResult) -> "WitnessAnchor":
        """From an entry of MUNIMENT_ANCHORS. Raises ConfigError."""
        check_parts(parts)
        given = options(parts, "key")
        try:
            # A plus in a query is a space to some; a key has none, so either way of writing it is meant as one.
            key = Key.parse(given.get("key", "").replace(" ", "+"))
            host, port = parts.hostname, parts.port
        except NoteError as error:
            raise ConfigError(f"its key must be the witness's verifier key, percent-encoded: {error}") from None
        except ValueError:
            raise ConfigError("its port cannot be one") from None
        secure = parts.scheme == "witness+https"
        if not secure and not is_loopback(host):
            raise ConfigError("a witness on another machine must be reached by witness+https")
        if not host or key.algorithm != COSIGNATURE:
            raise ConfigError("it has no host, or its key is not one that cosigns (signature type 4)")
        prefix = parts.path.rstrip("/")
        if path_of(parts).rstrip("/") != prefix or not prefix.isascii() or " " in prefix or len(prefix) > MAX_PATH:
            raise ConfigError("its path must be plain ASCII")
        return cls(secure, host, port, prefix, key)

    def send(self, submission: Submission) -> str:
        """The witness's verified cosignature lines. When it has seen another size than we remember, it is asked once
        more from there."""
        size = submission.checkpoint.size
        old = submission.taken if submission.taken <= size else 0
        answer = self._post(submission, old)
        if answer.status == 409 and answer.content_type == SIZE_TYPE:
            found = _SIZE.fullmatch(answer.text)
            if not found:
                raise AnchorError("the witness answered a size that is none")
            if int(found[1]) > size:
                raise ahead(int(found[1]), size)
            answer = self._post(submission, int(found[1]))
        if answer.status == 200:
            return self._verified(submission, answer.text)
        if answer.status == 409 and (answer.content_type != SIZE_TYPE or answer.text.strip() == str(size)):
            raise Disagreement("the witness holds another root for this size: the log has forked", size)
        if answer.status == 422:
            raise Disagreement("the log does not go on from what the witness cosigned before: it was rewritten")
        if 300 <= answer.status < 400:
            raise AnchorError("the witness redirects, which is not followed")
        raise AnchorError(REFUSALS.get(answer.status, f"the witness answered {answer.status}"))

    def _verified(self, submission: Submission, text: str) -> str:
        try:
            note = Note.parse(submission.note.partition("\n\n")[0] + "\n\n" + text)
        except NoteError as error:
            raise AnchorError(f"the witness's answer is no cosignature: {error}") from None
        if notes.cosigned_at(note, self._key) is None:
            raise AnchorError("the witness's answer is not a cosignature by the key that it should have")
        return "".join(f"{found.line}\n" for found in notes.signatures_of(note, self._key))

    def _post(self, submission: Submission, old: int) -> _Answer:
        proof = submission.consistency(old) if 0 < old < submission.checkpoint.size else []
        lines = "".join(f"{b64encode(one).decode('ascii')}\n" for one in proof)
        connection = self._connection()
        try:
            connection.connect()
            return self._exchange(connection, f"old {old}\n{lines}\n{submission.note}".encode())
        except TimeoutError:
            raise AnchorError("the witness did not answer in time") from None
        except ssl.SSLError as error:
            raise AnchorError(f"TLS failed: {error.reason or 'the connection broke'}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            words = getattr(error, "strerror", None) or type(error).__name__
            raise AnchorError(f"the witness cannot be reached: {words}") from None
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection(self._host, self._port, timeout=SECONDS / 4)
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return http.client.HTTPSConnection(self._host, self._port, timeout=SECONDS / 4, context=context)

    def _exchange(self, connection: http.client.HTTPConnection, body: bytes) -> _Answer:
        stop = Timer(SECONDS / 2, _cut, [connection.sock])  # however slowly the answer drips
        stop.daemon = True
        stop.start()
        try:
            headers = {"Content-Type": "text/plain; charset=utf-8", "User-Agent": "muniment", "Connection": "close"}
            connection.request("POST", f"{self._prefix}/add-checkpoint", body, headers)
            with connection.getresponse() as response:
                text = response.read(MAX_ANSWER + 1)
                if len(text) > MAX_ANSWER:
                    raise AnchorError(f"the witness answered more than {MAX_ANSWER} bytes")
                content_type = response.getheader("Content-Type", "").partition(";")[0].strip()
                return _Answer(response.status, content_type, text.decode("utf-8"))
        finally:
            stop.cancel()


REFUSALS = {
    403: "the witness does not know the key that signed the checkpoint (403)",
    404: "the witness does not know this log (404)",
    409: "the witness cosigned something else at the same time (409)",
}


def _cut(connection: socket) -> None:
    with suppress(OSError):
        connection.shutdown(SHUT_RDWR)
