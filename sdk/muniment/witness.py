"""`muniment witness`: a small witness (C2SP tlog-witness) that cosigns checkpoints, for one's own logs.

A witness remembers the newest checkpoint of each log that it knows and cosigns the next one only when that is
proven to hold everything that the one before held. Run by somebody other than the log's operator, it makes a log
that was cut off or rewritten visible. It serves plain HTTP; where others than its own machine are to reach it, a
proxy that ends TLS stands in front.

Its folder: `key` (its private key, mode 0600), `checkpoints/` (the newest of each log, cosigned), `evidence/` (both
notes of each fork). What was answered is on disk before the answer; it may be killed at any moment.
"""

import argparse
import fcntl
import os
import re
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET6, SHUT_RDWR, socket
from socketserver import TCPServer
from threading import BoundedSemaphore, Lock, Timer
from typing import IO, Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from muniment import merkle, notes
from muniment.checkpoints import Checkpoint, CheckpointError
from muniment.notes import Key, Note, NoteError

MAX_BODY = 64 * 1024  # bytes of a request
MAX_PROOF = 63  # lines (tlog-witness)
MAX_CONNECTIONS = 32
MAX_EVIDENCE = 100  # files; a log that forks is to be looked at long before
IDLE_SECONDS = 10.0
CONNECTION_SECONDS = 60.0  # of one connection, however slowly it drips
SIZE_TYPE = "text/x.tlog.size"

_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})")
_PRIVATE = "PRIVATE+KEY+"  # as golang.org/x/mod/sumdb/note writes signer keys


class WitnessError(Exception):
    """The witness cannot start; the text says why, in plain words."""


class Answer(NamedTuple):
    """What a request is answered with."""

    status: int
    text: str
    content_type: str = "text/plain; charset=utf-8"


class _Request(NamedTuple):
    old: int
    proof: list[bytes]
    note: Note
    checkpoint: Checkpoint


class Witness:
    """The newest cosigned checkpoint of each log, in a folder that no other process uses at the same time.

    `logs`: the keys that checkpoints are signed with; a key's name is the origin of its log, several keys of one
    name serve during a rotation. `say` is told, in one line, what a person should know. Raises WitnessError.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        logs: Iterable[Key],
        say: Callable[[str], object] = lambda line: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._say, self._clock = folder, say, clock
        self._logs: dict[str, list[Key]] = {}
        for key in logs:
            if key.algorithm != notes.ED25519:
                raise WitnessError("a log's key must be an Ed25519 key (signature type 1)")
            self._logs.setdefault(key.name, []).append(key)
        self._turn = Lock()
        try:
            for part in (folder, folder / "checkpoints", folder / "evidence"):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _locked(folder / "lock")
            self._private = _private_key(folder / "key", name)
            self.key = Key(name, notes.COSIGNATURE, _public(self._private))
            self._newest = {origin: note for origin in self._logs if (note := self._kept(origin))}
        except OSError as error:
            raise WitnessError(f"the folder of the witness cannot be used: {error.strerror}") from None
        except NoteError as error:
            raise WitnessError(f"the name of the witness cannot be: {error}") from None

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

    def newest(self, origin: str) -> str | None:
        """The newest checkpoint of a log, with this witness's cosignature; None before there was one."""
        note = self._newest.get(origin)
        return note.encode() if note else None

    def add(self, body: bytes) -> Answer:
        """add-checkpoint: cosign a checkpoint that goes on from the newest one (tlog-witness, add-checkpoint).

        200 with the cosignature; 400 for what cannot be read; 403 not signed by a key of that log; 404 for a log
        that is not known; 409 with this witness's size, or without when the roots of one size differ; 422 for a
        proof that does not hold. Raises OSError when the checkpoint could not be kept; then nothing was cosigned.
        """
        try:
            request = _read(body)
        except (NoteError, CheckpointError, _Malformed) as error:
            return Answer(400, f"{error}\n")
        origin = request.checkpoint.origin
        keys = [key for key in self._logs.get(origin, ()) if notes.verify(request.note, key)]
        if origin not in self._logs:
            return Answer(404, "this witness does not know the log\n")
        if not keys:
            return Answer(403, "the checkpoint is not signed by a key of this log\n")
        if request.old > request.checkpoint.size:
            return Answer(400, "the old size is above the checkpoint's size\n")
        signatures = [found for key in keys for found in notes.signatures_of(request.note, key)]
        signed = Note(request.note.text, tuple(signatures))
        with self._turn:  # looking at the newest and putting the next in its place are one step
            return self._judged(request, signed)

    def _judged(self, request: _Request, signed: Note) -> Answer:
        given = request.checkpoint
        newest = self._newest.get(given.origin)
        known = Checkpoint.parse(newest.text) if newest else Checkpoint(given.origin, 0, merkle.EMPTY_ROOT)
        if given.size == known.size and given.root != known.root:
            self._fork(signed, newest)
            return Answer(409, "this witness has another root for this size\n")
        if request.old != known.size:
            return Answer(409, f"{known.size}\n", SIZE_TYPE)
        if known.size == 0:
            holds = not request.proof
        else:
            holds = merkle.verify_consistency(known.size, given.size, known.root, given.root, request.proof)
        if not holds:
            self._say(f"refused: the proof for size {given.size} of {given.origin} does not hold")
            return Answer(422, "the consistency proof does not hold\n")
        cosignature = notes.cosign(signed.text, self.key.name, self._private, int(self._clock()))
        cosigned = Note(signed.text, (*signed.signatures, cosignature))
        _replace(self._path(given.origin), cosigned.encode())
        self._newest[given.origin] = cosigned
        return Answer(200, f"{cosignature.line}\n")

    def _fork(self, signed: Note, newest: Note | None) -> None:
        """Keep both notes: together they prove that the log's key signed two roots for one size."""
        evidence = self._folder / "evidence"
        self._say("FORK: the log signed two roots for one size; both notes are kept in the folder `evidence`")
        for note in (newest, signed):
            if note is None:
                continue
            path = evidence / f"{sha256(note.text.encode()).hexdigest()[:32]}.checkpoint"
            if not path.exists() and len(list(evidence.iterdir())) < MAX_EVIDENCE:
                _replace(path, note.encode())

    def _path(self, origin: str) -> Path:
        return self._folder / "checkpoints" / f"{sha256(origin.encode()).hexdigest()[:32]}.checkpoint"

    def _kept(self, origin: str) -> Note | None:
        """The newest checkpoint as this witness left it. What it did not cosign itself stops the start."""
        try:
            note = Note.parse(self._path(origin).read_text("utf-8"))
            if notes.verify(note, self.key) and Checkpoint.parse(note.text).origin == origin:
                return note
        except FileNotFoundError:
            return None
        except ValueError:
            pass
        raise WitnessError("a checkpoint in the folder of the witness is not as the witness left it")


class _Malformed(ValueError):
    """Not an add-checkpoint request."""


def _read(body: bytes) -> _Request:
    """The parts of an add-checkpoint request. Raises _Malformed, NoteError or CheckpointError."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise _Malformed("the request is not UTF-8") from None
    head, found, rest = text.partition("\n\n")
    first, *lines = head.split("\n")
    old = _OLD.fullmatch(first)
    if not found or old is None:
        raise _Malformed("the request has no old size, or no empty line before the checkpoint")
    if len(lines) > MAX_PROOF:
        raise _Malformed(f"the proof has more than {MAX_PROOF} lines")
    proof = [notes.from_base64(line) for line in lines]
    if any(len(one) != merkle.HASH_BYTES for one in proof):
        raise _Malformed("a line of the proof is not a hash")
    note = Note.parse(rest)
    return _Request(int(old[1]), proof, note, Checkpoint.parse(note.text))


def _locked(path: Path) -> IO[str]:
    """Held until it is closed or the process ends, however it ends."""
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise WitnessError("another witness is running on this folder") from None
    return lock


def _private_key(path: Path, name: str) -> Ed25519PrivateKey:
    """The witness's own key, made at its first start. Raises WitnessError for another name's, or no key."""
    if not path.exists():
        private = Ed25519PrivateKey.generate()
        key = Key(name, notes.COSIGNATURE, _public(private))
        typed = bytes([notes.COSIGNATURE]) + private.private_bytes_raw()
        _replace(path, f"{_PRIVATE}{name}+{key.id.hex()}+{b64encode(typed).decode('ascii')}\n")
        return private
    text = path.read_text("utf-8").strip()
    parts = text.removeprefix(_PRIVATE).split("+", 2)
    if text.startswith(_PRIVATE) and len(parts) == 3 and parts[0] != name:
        raise WitnessError("the folder belongs to a witness of another name: a witness keeps its name for ever")
    try:
        typed = notes.from_base64(parts[-1])
        private = Ed25519PrivateKey.from_private_bytes(typed[1:])
        if typed[0] == notes.COSIGNATURE and Key(name, typed[0], _public(private)).id.hex() == parts[1]:
            return private
    except (ValueError, IndexError):
        pass
    raise WitnessError("the key file of the witness is damaged")


def _public(private: Ed25519PrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _replace(path: Path, text: str) -> None:
    """Put a file (mode 0600) in place, whole or not at all, and on disk when this returns."""
    fresh = path.with_suffix(".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Server(ThreadingHTTPServer):
    """HTTP/1.1 on one address, for a bounded number of connections; port 0 takes a free one."""

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS
    block_on_close = False

    def __init__(self, address: tuple[str, int], witness: Witness) -> None:
        self.witness = witness
        self._slots = BoundedSemaphore(MAX_CONNECTIONS)
        if ":" in address[0]:
            self.address_family = AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the name look-up of HTTPServer."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for it, or the door when too many are at work."""
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, for a bounded time."""
        end = Timer(CONNECTION_SECONDS, _cut, [request])
        end.daemon = True
        end.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is nobody's business; anything else is told in one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError | HTTPException):
            _say(f"a request failed ({type(error).__name__})")


def _cut(connection: socket) -> None:
    with suppress(OSError):
        connection.shutdown(SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "muniment-witness", ""
    timeout = IDLE_SECONDS

    def do_POST(self) -> None:
        """add-checkpoint."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal() and len(length) < 10) or "Transfer-Encoding" in self.headers:
            self._close(Answer(411, "the length of the request is missing\n"))
        elif int(length) > MAX_BODY:
            self._close(Answer(413, f"a request has at most {MAX_BODY} bytes\n"))
        elif len(body := self.rfile.read(int(length))) != int(length):
            self._close(Answer(400, "the request ends early\n"))
        elif urlsplit(self.path).path != "/add-checkpoint":
            self._answer(Answer(404, "there is only /add-checkpoint and /checkpoint\n"))
        else:
            self._answer(self._added(body))

    def do_GET(self) -> None:
        """The newest cosigned checkpoint of `origin`."""
        parts = urlsplit(self.path)
        origins = parse_qs(parts.query, max_num_fields=10).get("origin", [""]) if len(parts.query) < 4096 else [""]
        note = self.server.witness.newest(origins[0]) if parts.path == "/checkpoint" else None
        self._answer(Answer(200, note) if note else Answer(404, "there is no such checkpoint\n"))

    def _added(self, body: bytes) -> Answer:
        try:
            return self.server.witness.add(body)
        except OSError as error:
            _say(f"a checkpoint could not be kept: {error.strerror}")
            return Answer(500, "the checkpoint could not be kept\n")

    def _close(self, answer: Answer) -> None:
        self.close_connection = True
        self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        body = answer.text.encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: who asks, and how, is not noted down."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `muniment witness`."""
    parser.add_argument("--state", required=True, type=Path, metavar="DIR", help="its folder; made when missing")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="where to serve; port 0: a free one")
    parser.add_argument("--name", required=True, help="its name for ever: a URL without the scheme, by custom")
    parser.add_argument(
        "--log", required=True, action="append", metavar="VKEY", help="key of a log (its name is the log's origin)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped. The key to configure is the first line of standard output, the address the second.
    2 for what cannot be, with a line that says why on standard error."""
    try:
        witness = Witness(arguments.state, arguments.name, _log_keys(arguments.log), _say)
        server = Server(_address(arguments.listen), witness)
    except WitnessError as error:
        _say(str(error))
        return 2
    except OSError as error:
        _say(f"cannot listen there: {error.strerror}")
        return 2
    host = f"[{server.server_name}]" if ":" in server.server_name else server.server_name
    sys.stdout.write(f"{witness.key.vkey}\nhttp://{host}:{server.server_port}\n")
    sys.stdout.flush()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        witness.close()
    return 0


def _log_keys(texts: Sequence[str]) -> list[Key]:
    try:
        return [Key.parse(text) for text in texts]
    except NoteError as error:
        raise WitnessError(f"--log: {error}") from None


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise WitnessError("--listen must be HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _say(line: str) -> None:
    sys.stderr.write(f"muniment witness: {line}\n")
    sys.stderr.flush()
