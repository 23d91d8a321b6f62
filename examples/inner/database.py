"""Inner's own database: two roles, neither a superuser, the tables, and row-level security on both."""

import secrets
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from examples.inner.embedding import DIMENSIONS
from governance import devkeys
from muniment.isolation import policy_sql

OWNER, SERVING, NAME = "inner_owner", "inner", "inner"
# No column says in clear what a memory is about: `content` is encrypted for its user, `meaning` turned by their key.
TABLES = f"""
CREATE TABLE IF NOT EXISTS memories (
    uid text NOT NULL,
    id uuid NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    content bytea NOT NULL,
    meaning vector({DIMENSIONS}) NOT NULL,
    PRIMARY KEY (uid, id)
);
CREATE TABLE IF NOT EXISTS user_keys (uid text PRIMARY KEY, wrapped bytea NOT NULL);
GRANT SELECT, INSERT, DELETE ON memories TO {SERVING};
GRANT SELECT, INSERT, UPDATE, DELETE ON user_keys TO {SERVING};
"""


def prepare(superuser_url: str, keys: Path) -> str:
    """Make roles, database and tables where they are missing; the URL of the serving role. The passwords are kept in
    `keys`, a private folder."""
    passwords = {
        role: devkeys.read_or_make(keys / role, lambda: secrets.token_urlsafe(24)) for role in (OWNER, SERVING)
    }
    with psycopg.connect(superuser_url, autocommit=True) as connection:
        for role, password in passwords.items():
            _role(connection, role, password)
        with suppress(psycopg.errors.DuplicateDatabase):
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(NAME), sql.Identifier(OWNER))
            )
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(NAME)))
        connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(*map(sql.Identifier, (NAME, SERVING))))
    with psycopg.connect(_url(superuser_url), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    with psycopg.connect(_url(superuser_url, OWNER, passwords[OWNER])) as connection:
        connection.execute(TABLES)
        for table in ("memories", "user_keys"):
            for statement in policy_sql(table):
                connection.execute(statement)
    return _url(superuser_url, SERVING, passwords[SERVING])


def _role(connection: psycopg.Connection, role: str, password: str) -> None:
    name = sql.Identifier(role)
    with suppress(psycopg.errors.DuplicateObject):
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS").format(name))
    verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    connection.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, sql.Literal(verifier)))


def _url(url: str, role: str | None = None, password: str = "") -> str:
    """The URL of inner's database for a role; without one, for the same as before."""
    parts = urlsplit(url)
    place = parts.netloc if role is None else f"{role}:{password}@"
    return urlunsplit(parts._replace(netloc=place, path=f"/{NAME}"))
