"""A real log to attack: users, grants, decisions, outcomes and their protected details, sealed and anchored. It is made
once; each attack gets it as it was, from a copy of every table."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from psycopg import sql

from audit import anchors, maintenance, verification
from audit.keys import public_of
from audit.models import Batch, Checkpoint, Head, Log, Record
from audit.sealing import Sealer
from governance import process
from muniment import batches, checkpoints, merkle, statements
from muniment.findings import Finding
from muniment.keys import Trust, thumbprint
from muniment.tiles import Builder
from tests import reset
from tests.audit import sealers
from tests.staff import drained
from tests.world import World, build, token

LOG_KEY = Ed25519PrivateKey.generate()
# The month of the policy and the keys, and one of decisions alone, which retention may drop.
BEGAN, DROPPED = datetime(2025, 8, 10, tzinfo=UTC), datetime(2025, 9, 10, tzinfo=UTC)
KEPT = ("auth_permission", "django_content_type", "django_migrations")
TABLES = """SELECT c.relname, c.oid FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
    AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname <> ALL(%s) ORDER BY 1"""
SEQUENCES = "SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'"


def connect() -> psycopg.Connection:
    """The database as a superuser, with triggers disabled."""
    assert reset.superuser_url is not None
    connection = psycopg.connect(reset.superuser_url, autocommit=True)
    connection.execute("SET session_replication_role = replica")
    return connection


def dump() -> dict[str, bytes]:
    """Every table as it is now."""
    found = {}
    with connect() as superuser:
        for name, _ in superuser.execute(TABLES, [list(KEPT)]).fetchall():
            copy = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT (FORMAT binary)").format(sql.Identifier(name))
            with superuser.cursor().copy(copy) as rows:
                found[name] = b"".join(bytes(part) for part in rows)
    return found


def load(tables: dict[str, bytes]) -> None:
    """Put every table back."""
    process.stop_recorder()
    for month in (BEGAN, DROPPED):
        maintenance.make_partition(month.date())
    with connect() as superuser, superuser.transaction():
        for name, rows in tables.items():
            table = sql.Identifier(name)
            superuser.execute(sql.SQL("DELETE FROM {}").format(table))
            with superuser.cursor().copy(sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(table)) as copy:
                copy.write(rows)
        for (name,) in superuser.execute(SEQUENCES).fetchall():
            superuser.execute("SELECT setval(quote_ident(%s)::regclass, 100000)", [name])
    reset._forget()


@dataclass
class Made:
    """What the scene is made anew from. `at` names records of the log by what they are."""

    tables: dict[str, bytes]
    backup: dict[str, bytes]  # of an earlier time
    folder: Path
    key: str
    world: World
    at: dict[str, int]


def make(folder: Path) -> Made:
    """Record, seal and anchor the log, in an empty database."""
    reset.reset()
    for month in (BEGAN, DROPPED):
        maintenance.make_partition(month.date())
    world = build()
    at: dict[str, int] = {}
    with sealers.sealing(folder / "state", LOG_KEY) as sealer:
        _month(world, BEGAN, "began", at)
        sealers.sealed(sealer)
        _month(world, DROPPED, "dropped", at)
        sealer.step()
        at["backup"] = Head.objects.get().next
        backup = dump()
        _today(world, at)
        drained()
        sealer.step()
        at["older"] = Head.objects.get().next
        _push(folder)
        _call(world, "alice", "late", at)
        _call(world, "bob", "last", at)
        drained()
        sealer.step()
        _push(folder)
    process.stop_recorder()
    return Made(dump(), backup, folder, world.key, world, at)


def _push(folder: Path) -> None:
    (folder / "anchor").mkdir(exist_ok=True)
    settings.MUNIMENT_ANCHORS = [f"file://{folder / 'anchor'}"]
    anchors.push_all()
    settings.MUNIMENT_ANCHORS = []


def _month(world: World, when: datetime, name: str, at: dict[str, int]) -> None:
    """Calls of another month."""
    process.stop_recorder()
    process.start_recorder(clock=lambda: when)
    at[f"{name} from"] = Head.objects.get().next
    for number in range(5):
        _call(world, "alice", f"{name} {number}", at)
    drained()
    at[f"{name} to"] = Head.objects.get().next


def _today(world: World, at: dict[str, int]) -> None:
    process.stop_recorder()
    process.start_recorder()
    for user in ("alice", "bob", "carol"):
        _call(world, user, user, at)
    _call(world, "alice", "again", at)
    world.verify("memory.capture", token=token("bob"))  # denied
    answer = world.verify(token=token("carol"), request={"id": "carol-2"})
    outcome = {"status": "ok", "resources": [{"type": "memory", "id": "m-1"}], "count": 1}
    assert world.post(f"/v1/records/{answer['record']}/outcome", outcome).status_code == 201
    for start in range(0, 300, 100):
        items = [{"token": token(f"user-{n % 7}"), "tool": "memory.recall"} for n in range(start, start + 100)]
        assert world.post("/v1/verify/batch", {"items": items}).status_code == 200


def _call(world: World, user: str, name: str, at: dict[str, int]) -> None:
    """One allowed call, in a write batch of its own, with details of every kind."""
    drained()
    request = {"id": f"r-{name}", "trace_id": f"t-{name}", "session_id": f"s-{user}", "ip": "203.0.113.7"}
    answer = world.verify(token=token(user), request=request, resource={"type": "memory", "id": f"m-{name}"})
    assert answer["decision"] == "allow" and answer["receipt"]["batch"]["size"] == 1
    at[name] = answer["receipt"]["index"]


@dataclass
class Scene:
    """The log of one attack, to be changed as one likes."""

    made: Made
    folder: Path
    at: dict[str, int]
    given: list[tuple[str, str]] = field(default_factory=list)  # checkpoints that the auditor holds
    stack: list[Callable[[], None]] = field(default_factory=list)
    # What the auditor has: a bundle, the keys that he trusts, and the time that he asked for.
    bundle: bytes = b""
    trust: Trust | None = None
    asked: tuple[str | None, str | None] = (None, None)

    @property
    def world(self) -> World:
        return self.made.world

    # --- changing the database ----------------------------------------------------------------------------

    def sql(self, *texts: Any, **values: Any) -> None:
        """Statements of a superuser with triggers disabled, in one transaction."""
        with connect() as superuser, superuser.transaction():
            for text in texts:
                superuser.execute(text, values)

    def time(self, name: str) -> str:
        """When a record was written, as a bundle says it."""
        return Record.objects.get(index=self.at[name]).at.isoformat().replace("+00:00", "Z")

    def said(self, index: int) -> dict[str, Any]:
        """A record's statement."""
        return statements.decode(bytes(Record.objects.get(index=index).statement))

    def rewrite(self, index: int, **members: Any) -> bytes:
        """The bytes of a statement with other members; None takes one away."""
        said = {name: value for name, value in (self.said(index) | members).items() if value is not None}
        return statements.encode(said)

    def edit(self, index: int, leaf: bool, **members: Any) -> None:
        """Change a statement, and the leaf beside it."""
        data = self.rewrite(index, **members)
        self.sql("UPDATE audit_record SET statement = %(data)b WHERE index = %(index)s", data=data, index=index)
        if leaf:
            found = merkle.leaf_hash(data)
            self.sql("UPDATE audit_record SET leaf = %(leaf)b WHERE index = %(index)s", leaf=found, index=index)

    def cut(self, size: int) -> None:
        """Only the first `size` records are left, with their batches, and a head that knows no others."""
        self.sql(
            "DELETE FROM audit_record WHERE index >= %(size)s",
            "DELETE FROM audit_batch WHERE first >= %(size)s",
            "DELETE FROM audit_checkpoint WHERE size > %(size)s",
            "DELETE FROM audit_anchoring WHERE size > %(size)s",
            """UPDATE audit_head SET next = %(size)s, at = (SELECT max(at) FROM audit_record),
                batch = (SELECT digest FROM audit_batch ORDER BY first DESC LIMIT 1)""",
            size=size,
        )
        self.retile(size)

    def retile(self, size: int | None = None) -> Builder:
        """Tiles as the records give them now."""
        leaves = [bytes(leaf) for leaf in Record.objects.order_by("index").values_list("leaf", flat=True)]
        builder = Builder()
        tiles = builder.extend(leaves[:size])
        self.sql("DELETE FROM audit_tile")
        for (level, index), hashes in tiles.items():
            self.sql(
                "INSERT INTO audit_tile (log, level, index, hashes) VALUES (1, %(level)s, %(index)s, %(hashes)b)",
                level=level, index=index, hashes=hashes,
            )  # fmt: skip
        return builder

    def resign(self, size: int | None = None) -> str:
        """Tiles, and the newest checkpoint, with the stolen log key; the note."""
        builder = self.retile(size)
        root, origin = builder.root(), Log.objects.get(number=1).origin
        note = checkpoints.sign(checkpoints.Checkpoint(origin, builder.size, root), LOG_KEY)
        self.sql(
            "DELETE FROM audit_checkpoint WHERE size >= %(size)s",
            """INSERT INTO audit_checkpoint (log, size, root, note, key_id, at)
                VALUES (1, %(size)s, %(root)b, %(note)s, 'stolen', now())""",
            size=builder.size, root=root, note=note,
        )  # fmt: skip
        return note

    def rechain(self, index: int) -> None:
        """Write batches from the one of this record on, signed anew with the stolen writer key."""
        signer = process.signer("WRITER_KEY", "writer")
        first = Batch.objects.filter(first__lte=index).latest("first").first
        previous = Batch.objects.filter(first__lt=first).latest("first").digest
        for batch in Batch.objects.filter(first__gte=first).order_by("first"):
            rows = Record.objects.filter(index__gte=batch.first, index__lt=batch.first + batch.size)
            root = merkle.root([bytes(leaf) for leaf in rows.order_by("index").values_list("leaf", flat=True)])
            message = batches.message(batch.first, batch.size, bytes(previous), root)
            previous_, previous = previous, batches.digest(message)
            self.sql(
                """UPDATE audit_batch SET previous = %(previous)b, root = %(root)b, digest = %(digest)b,
                    signature = %(signature)b, key_id = %(key)s WHERE first = %(first)s""",
                previous=bytes(previous_), root=root, digest=previous, first=batch.first, key=signer.key_id,
                signature=batches.sign(signer.private, message),
            )  # fmt: skip
        self.sql("UPDATE audit_head SET batch = %(digest)b", digest=bytes(previous))

    # --- going on -----------------------------------------------------------------------------------------

    def call(self, user: str = "alice", **members: Any) -> int:
        """One more call, in a write batch of its own; its index."""
        drained()
        answer = self.world.verify(token=token(user, **members))
        assert answer["decision"] == "allow", answer["reason"]
        return int(answer["receipt"]["index"])

    @contextmanager
    def sealer(self, private: Ed25519PrivateKey = LOG_KEY) -> Iterator[Sealer]:
        """A sealer with the state that belongs to the log."""
        with sealers.sealing(self.folder / "state", private) as one:
            yield one

    def seal(self, private: Ed25519PrivateKey = LOG_KEY) -> None:
        """Seal all there is."""
        drained()
        with self.sealer(private) as one:
            one.step()

    # --- looking ------------------------------------------------------------------------------------------

    def found(self, **more: Any) -> list[Finding]:
        """What `verify_log` finds."""
        return verification.verify(checkpoints=self.given, **more).findings


@contextmanager
def scene(made: Made, folder: Path, anchored: bool = True) -> Iterator[Scene]:
    """The log as it was made, with its sealer's state and its anchor, all to be spoilt."""
    load(made.tables)
    shutil.copytree(made.folder / "state", folder / "state")
    shutil.copytree(made.folder / "anchor", folder / "anchor")
    settings.MUNIMENT_ANCHORS = [f"file://{folder / 'anchor'}"] if anchored else []
    found = Scene(made, folder, made.at, trust=trust())
    try:
        yield found
    finally:
        for undo in reversed(found.stack):
            undo()
        process.stop_recorder()
        settings.MUNIMENT_ANCHORS = []


def trust() -> Trust:
    """The keys of this log, as an auditor got them elsewhere."""
    writer, log = public_of(process.signer("WRITER_KEY", "writer").private), public_of(LOG_KEY)
    return Trust(writers={thumbprint(writer): writer}, logs={thumbprint(log): log})


@contextmanager
def process_signer(private: Ed25519PrivateKey) -> Iterator[None]:
    """This process has another writer key, as after a rotation and a restart."""
    process.stop_recorder()
    held = settings.MUNIMENT_KEYS["WRITER_KEY"]
    settings.MUNIMENT_KEYS["WRITER_KEY"] = private.private_bytes_raw()
    process.signer.cache_clear()
    try:
        yield
    finally:
        process.stop_recorder()
        settings.MUNIMENT_KEYS["WRITER_KEY"] = held
        process.signer.cache_clear()


def note_of(size: int) -> str:
    """The stored checkpoint of a size, as somebody may hold it in a receipt."""
    return Checkpoint.objects.get(log=1, size=size).note
