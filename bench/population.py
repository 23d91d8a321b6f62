"""Whom the bench of the search is filled with: a policy as large as the access matrix must bear, and the users, with
real data keys and real look-up hashes, so that a search by e-mail address goes the way that it always goes."""

import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from random import Random
from typing import Any

import psycopg
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings
from django.contrib.auth import get_user_model

from audit import subjects
from audit.outbox import acting
from audit.protection import protect
from clients.models import Client, Grant, Issuer, KeySet, OAuthClientId
from tests.world import jwks
from tools.models import Backend, Scope, Tool

ISSUER = "https://id.example/"
# The matrix is measured with 50 clients and 500 tools; of these, 20 and 200 are those that the traffic comes from.
CLIENTS, TOOLS = 50, 500
CALLING, CALLED, BACKENDS, SCOPES = 20, 200, 5, 40
TENANTS = (("acme", 60), ("globex", 30), ("initech", 10))
IN_A_TENANT = 0.4
MODES = (("interactive", 80), ("subagent", 11), ("background", 7), ("api", 2))
NOUNS = ("memory", "calendar", "mail", "files", "ledger", "ticket", "contact", "photo", "note", "invoice")
VERBS = ("recall", "capture", "search", "list", "read", "update", "share", "export", "summarise", "archive")
STAFF = 8


class Skewed:
    """Choices with the weights of a Zipf law: the k-th most frequent comes with 1 / k**exponent (Zipf 1949)."""

    def __init__(self, items: Sequence[Any], exponent: float, random: Random) -> None:
        self.items, self._random = items, random
        self._weights = list(accumulate(1 / rank**exponent for rank in range(1, len(items) + 1)))

    def many(self, count: int) -> list[Any]:
        """Some of them, independent of each other."""
        return self._random.choices(self.items, cum_weights=self._weights, k=count)


@dataclass(frozen=True, slots=True)
class Caller:
    """A client, as a statement names it."""

    slug: str
    oauth_id: str


@dataclass(frozen=True, slots=True)
class Called:
    """A tool, as a statement names it."""

    name: str
    backend: str
    access: str
    scopes: tuple[str, ...]
    sensitive: bool


@dataclass(slots=True)
class Person:
    """A user: what is protected is made once, and used for each record of theirs."""

    uid: str
    sub: str
    email: str
    tenant: str | None
    home: int
    cipher: AESGCM


@dataclass(slots=True)
class Population:
    """All that records are made from. Sequences are in the order of frequency, the most frequent first."""

    clients: list[Caller]
    tools: list[Called]
    people: list[Person]


def make(count: int, owner_url: str) -> Population:
    """Write policy, staff and `count` users into an empty database; the same each time but for keys and uids."""
    random = Random(4)
    clients, tools = _policy(random)
    get_user_model().objects.create_superuser("bench", "", secrets.token_urlsafe(16), first_name="Bench")
    return Population(clients, tools, _people(random, count, owner_url))


def _policy(random: Random) -> tuple[list[Caller], list[Called]]:
    with acting("command:bench", "bench"):
        issuer = Issuer.objects.create(issuer=ISSUER, algorithms=["RS256"])
        KeySet.objects.create(issuer=issuer, jwks=jwks())
        backends = [
            Backend.objects.create(slug=f"backend-{n}", name=f"Backend {n}", audiences=[f"https://b{n}.example/"])
            for n in range(1, BACKENDS + 1)
        ]
        scopes = [_scope(number) for number in range(SCOPES)]
        tools = [_tool(random, number, backends, scopes) for number in range(TOOLS)]
        callers = [_client(number, issuer) for number in range(CLIENTS)]
        for client, _ in callers:
            _grants(random, client, scopes)
    return [caller for _, caller in callers[:CALLING]], tools[:CALLED]


def _scope(number: int) -> Scope:
    noun = NOUNS[number % len(NOUNS)] + (str(number // 20 + 1) if number >= 20 else "")
    name = f"{noun}:{'write' if number // 10 % 2 else 'read'}"
    return Scope.objects.create(name=name, sensitive=number % 13 == 0)


def _tool(random: Random, number: int, backends: list[Backend], scopes: list[Scope]) -> Called:
    backend = backends[min(random.randrange(8), BACKENDS - 1)]
    noun, verb = NOUNS[number % len(NOUNS)], VERBS[number // len(NOUNS) % len(VERBS)]
    name = f"{noun}.{verb}" + (f"_{number // 100 + 1}" if number >= 100 else "")
    needed = random.sample(scopes, 1 + (random.random() < 0.2))
    access = "write" if any(scope.name.endswith("write") for scope in needed) else "read"
    tool = Tool.objects.create(backend=backend, name=name, access=access, status="active")
    tool.scopes.add(*needed)
    names = tuple(sorted(scope.name for scope in needed))
    return Called(name, backend.slug, access, names, any(scope.sensitive for scope in needed))


def _client(number: int, issuer: Issuer) -> tuple[Client, Caller]:
    client = Client.objects.create(slug=f"client-{number + 1}", name=f"Client {number + 1}")
    OAuthClientId.objects.create(client=client, issuer=issuer, oauth_id=f"{client.slug}-app")
    return client, Caller(client.slug, f"{client.slug}-app")


def _grants(random: Random, client: Client, scopes: list[Scope]) -> None:
    """A wide grant, a flagging one for some, a block for a few, and some that end soon."""
    grant = Grant.objects.create(client=client, reason="launch review")
    grant.scopes.add(*random.sample(scopes, 12))
    if random.random() < 0.4:
        flagging = Grant.objects.create(client=client, effect="flag", reason="under review")
        flagging.scopes.add(*random.sample(scopes, 4))
    if random.random() < 0.2:
        block = Grant.objects.create(client=client, effect="deny", reason="not in background", modes=["background"])
        block.scopes.add(*random.sample(scopes, 3))


def _people(random: Random, count: int, owner_url: str) -> list[Person]:
    """Users and their data keys, by COPY."""
    wrapping = AESGCM(settings.MUNIMENT_KEYS["KEY_ENCRYPTION_KEY"])
    names, weights = [name for name, _ in TENANTS], [weight for _, weight in TENANTS]
    homes = Skewed(range(CALLING), 1.0, random).many(count)
    people: list[Person] = []
    with psycopg.connect(owner_url) as connection:
        keys: list[tuple[str, bytes]] = []
        for number, home in enumerate(homes):
            uid, key = f"usr_{secrets.token_urlsafe(15)}", os.urandom(32)
            tenant = random.choices(names, weights)[0] if random.random() < IN_A_TENANT else None
            person = Person(uid, f"sub-{number:06d}", f"user{number}@example.com", tenant, home, AESGCM(key))
            people.append(person)
            keys.append((uid, protect(wrapping, key, uid.encode())))
        _copy(connection, "audit_datakey (holder, wrapped, created_at)", [(*key, NEWBORN) for key in keys])
        columns = "audit_subject (uid, issuer, identity_key, sub, email, email_key, first_seen)"
        _copy(connection, columns, map(_row, people))
    return people


NEWBORN = datetime.fromisoformat("2020-01-01T00:00:00+00:00")


def _row(person: Person) -> tuple[object, ...]:
    """A row of audit_subject, as audit.subjects would make it."""
    uid, cipher = person.uid, person.cipher
    return (
        uid, ISSUER, subjects.identity_key(ISSUER, person.sub),
        protect(cipher, person.sub.encode(), subjects.bound(uid, "sub")),
        protect(cipher, person.email.encode(), subjects.bound(uid, "email")),
        subjects.email_key(person.email), NEWBORN,
    )  # fmt: skip


def _copy(connection: psycopg.Connection, into: str, rows: Iterable[tuple[object, ...]]) -> None:
    with connection.cursor().copy(f"COPY {into} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
