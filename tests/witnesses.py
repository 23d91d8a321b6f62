"""A small log with a key of its own, and real witness processes that know it."""

import http.client
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from muniment import checkpoints, merkle
from muniment.checkpoints import Checkpoint
from muniment.notes import ED25519, Key

PROGRAM = """
import argparse, sys
from muniment import witness
parser = argparse.ArgumentParser()
witness.add_arguments(parser)
sys.exit(witness.run(parser.parse_args()))
"""


@dataclass
class SmallLog:
    """A log of made-up leaves. `seed` makes another history of the same length."""

    origin: str = "log.test/one"
    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    seed: str = ""

    @property
    def key(self) -> Key:
        return Key(self.origin, ED25519, self.private.public_key().public_bytes_raw())

    def leaves(self, size: int) -> list[bytes]:
        return [sha256(f"{self.seed}{index}".encode()).digest() for index in range(size)]

    def note(self, size: int) -> str:
        return checkpoints.sign(Checkpoint(self.origin, size, merkle.root(self.leaves(size))), self.private)

    def request(self, old: int, size: int, proof: Sequence[bytes] | None = None) -> bytes:
        """An add-checkpoint request, with the right proof unless another one is given."""
        if proof is None:
            proof = merkle.consistency_path(self.leaves(size), old) if 0 < old < size else []
        lines = "".join(f"{b64encode(one).decode()}\n" for one in proof)
        return f"old {old}\n{lines}\n{self.note(size)}".encode()


@dataclass
class Running:
    """A witness process."""

    process: subprocess.Popen[str]
    key: Key
    address: str
    port: int

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str, str]:
        """Status, content type and text of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
        finally:
            connection.close()

    def add(self, body: bytes) -> tuple[int, str, str]:
        return self.ask("POST", "/add-checkpoint", body)

    def kill(self) -> str:
        """kill -9; what it had said on standard error."""
        self.process.kill()
        return self.process.communicate(timeout=30)[1]


def command(folder: Path, *logs: Key, name: str = "witness.test/w1", port: int = 0) -> list[str]:
    """The command line of a witness."""
    keys = [part for key in logs for part in ("--log", key.vkey)]
    listen = f"127.0.0.1:{port}"
    return [sys.executable, "-c", PROGRAM, "--state", str(folder), "--listen", listen, "--name", name, *keys]


@contextmanager
def running(folder: Path, *logs: Key, name: str = "witness.test/w1", port: int = 0) -> Iterator[Running]:
    """A witness process that serves; it is killed in the end."""
    process = subprocess.Popen(
        command(folder, *logs, name=name, port=port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        vkey, address = process.stdout.readline().strip(), process.stdout.readline().strip()
        assert address, process.communicate(timeout=30)[1]
        yield Running(process, Key.parse(vkey), address, int(address.rpartition(":")[2]))
    finally:
        if process.returncode is None:
            process.kill()
            process.communicate(timeout=30)
