"""Memories: kept, found and forgotten for one user at a time.

Two walls stand between users, and neither asks which client calls: every transaction is one of the verified user, to
whom the database shows nobody else's rows (row-level security), and what a memory says is encrypted under that user's
own key.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from mcp.server.mcpserver.exceptions import ToolError
from psycopg import Connection
from psycopg_pool import ConnectionPool

from examples.inner.embedding import Embedding, as_text, embed, keyed
from muniment import current_caller, touched
from muniment.encryption import PostgresKeys, UserVault, Vault
from muniment.isolation import as_caller

MAX_TEXT = 8_000  # characters
MAX_FOUND = 50
FIND = "SELECT id, at, content FROM memories ORDER BY meaning <=> %s::vector LIMIT %s"
KEEP = "INSERT INTO memories (id, content, meaning) VALUES (%s, %s, %s::vector) RETURNING at"


class NotFound(ToolError):
    """The user has no such memory. As a ToolError its words, and no more, reach the AI client."""


@dataclass(frozen=True)
class Memory:
    """An experience, as its user told it. `at` is ISO 8601."""

    id: str
    at: str
    text: str
    feeling: str


@dataclass(frozen=True)
class Desk:
    """One transaction of the verified user."""

    connection: Connection
    vault: UserVault
    embedding: Embedding

    def meaning(self, text: str) -> str:
        """What a text is about, turned by the user's key, as pgvector reads it."""
        return as_text(keyed(self.vault.subkey("meaning"), self.embedding(text)))


class Memories:
    """The store, over a pool of connections of the serving role. `root` is the key that wraps the users' keys;
    `embedding` makes a text a vector: put a real model there."""

    def __init__(self, pool: ConnectionPool, root: str, embedding: Embedding = embed) -> None:
        Vault(root)  # what is no key is told at the start
        self.pool, self.root, self.embedding = pool, root, embedding

    @contextmanager
    def _desk(self) -> Iterator[Desk]:
        caller = current_caller()
        if caller is None:
            raise PermissionError("memories are those of a verified user")
        with self.pool.connection() as connection, as_caller(connection):
            vault = Vault(self.root, PostgresKeys(connection)).user(caller.uid)
            yield Desk(connection, vault, self.embedding)

    def capture(self, text: str, feeling: str = "") -> Memory:
        """Keep an experience. ValueError for one that is empty or too long."""
        if not text.strip() or len(text) + len(feeling) > MAX_TEXT:
            raise ValueError(f"a memory has 1 to {MAX_TEXT} characters")
        id = uuid4()
        with self._desk() as desk:
            content = desk.vault.encrypt(id, json.dumps({"text": text, "feeling": feeling}))
            row = desk.connection.execute(KEEP, (id, content, desk.meaning(f"{text} {feeling}"))).fetchone()
        touched("memory", str(id))
        return Memory(str(id), _iso(row), text, feeling)

    def recall(self, query: str, limit: int = 5) -> list[Memory]:
        """The memories that are most about the query, the nearest first."""
        with self._desk() as desk:
            rows = desk.connection.execute(FIND, (desk.meaning(query), max(1, min(limit, MAX_FOUND)))).fetchall()
            found = [self._read(desk, *row) for row in rows]
        for memory in found:
            touched("memory", memory.id)
        return found

    def _read(self, desk: Desk, id: UUID, at: datetime, content: bytes) -> Memory:
        told = json.loads(desk.vault.decrypt(id, content))
        return Memory(str(id), at.isoformat(), told["text"], told["feeling"])

    def forget(self, id: str) -> None:
        """Forget a memory, for ever. NotFound where the user has none with this id, whoever else may."""
        try:
            known = UUID(id)
        except ValueError:
            raise NotFound("there is no such memory") from None
        with self._desk() as desk:
            if desk.connection.execute("DELETE FROM memories WHERE id = %s", (known,)).rowcount == 0:
                raise NotFound("there is no such memory")
        touched("memory", id)


def _iso(row: tuple[datetime] | None) -> str:
    assert row is not None  # what was inserted is returned
    return row[0].isoformat()
