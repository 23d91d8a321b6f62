"""The attack table: what an administrator of the database, with triggers disabled, and thieves of keys can do to the
log, carried out on a real one, and the finding that names each. And what must stay valid."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit import alerts, batching, keys, maintenance, seams, subjects
from audit.models import Batch, Checkpoint, DataKey, Head, Outbox, PublishedKey, Record, Subject
from audit.protection import keyring, protect
from audit.seal_session import Session
from audit.seams import Person
from governance import process
from governance.snapshot import snapshots
from muniment import bundle, checkpoints, merkle
from muniment.findings import Finding
from tests import reset
from tests.audit import attacked, sealers
from tests.audit import attacked_bundles as bundles
from tests.audit.attacked import LOG_KEY, Made, Scene
from tests.audit.recorders import entry
from tests.governance.test_missing_batches import CUT, Answering
from tests.staff import drained
from tests.world import ISSUER

VERIFY, SEALER, JOURNAL = "manage.py verify_log", "the sealer, which stops", "the web process's journal"
BUNDLE = "muniment verify"
EVIL = "https://evil.example/"


@pytest.fixture(scope="module")
def made(migrated: None, superuser_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    yield attacked.make(tmp_path_factory.mktemp("log"))
    reset.reset()


@pytest.fixture
def scene(made: Made, tmp_path: Path) -> Iterator[Scene]:
    with attacked.scene(made, tmp_path) as found:
        yield found


@dataclass(frozen=True)
class Attack:
    """`carry_out` returns the index of the record that the finding must name; None where it is about none."""

    name: str
    finding: str
    carry_out: Callable[[Scene], int | None]
    detector: str = VERIFY


ATTACKS: list[Attack] = []
Carry = Callable[[Scene], int | None]


def attack(name: str, finding: str, detector: str = VERIFY) -> Callable[[Carry], Carry]:
    def register(carry_out: Carry) -> Carry:
        ATTACKS.append(Attack(name, finding, carry_out, detector))
        return carry_out

    return register


# --- records --------------------------------------------------------------------------------------------------


@attack("edit a column", "column-differs")
def _(log: Scene) -> int:
    log.sql("UPDATE audit_record SET tool = 'memory.other' WHERE index = %(index)s", index=log.at["alice"])
    return log.at["alice"]


@attack("edit a column by which a call is found", "column-differs")
def _(log: Scene) -> int:
    log.sql("UPDATE audit_record SET request_key = NULL WHERE index = %(index)s", index=log.at["alice"])
    return log.at["alice"]


@attack("edit the mode of a call, by which it is found", "column-differs")
def _(log: Scene) -> int:
    log.sql("UPDATE audit_record SET mode = 'background' WHERE index = %(index)s", index=log.at["alice"])
    return log.at["alice"]


@attack("edit the scopes of a call, by which it is found", "column-differs")
def _(log: Scene) -> int:
    log.sql("UPDATE audit_record SET scopes = NULL WHERE index = %(index)s", index=log.at["alice"])
    return log.at["alice"]


@attack("edit the statement", "record-changed")
def _(log: Scene) -> int:
    log.edit(log.at["alice"], leaf=False, tool="memory.other")
    return log.at["alice"]


@attack("edit column, statement and leaf", "record-changed")
def _(log: Scene) -> int:
    log.sql("UPDATE audit_record SET tool = 'memory.other' WHERE index = %(index)s", index=log.at["alice"])
    log.edit(log.at["alice"], leaf=True, tool="memory.other")
    return log.at["alice"]


@attack("edit column, statement, leaf and every tile", "batch-root-differs")
def _(log: Scene) -> int:
    log.sql("UPDATE audit_record SET tool = 'memory.other' WHERE index = %(index)s", index=log.at["alice"])
    log.edit(log.at["alice"], leaf=True, tool="memory.other")
    log.retile()
    return log.at["alice"]


@attack("edit all of it with the stolen writer key", "root-differs")
def _(log: Scene) -> int:
    log.edit(log.at["late"], leaf=True, reason="other")
    log.rechain(log.at["late"])
    log.retile()
    return Head.objects.get().next - 1


@attack("edit all of it with the stolen writer and log keys", "fork")
def _(log: Scene) -> int:
    log.edit(log.at["late"], leaf=True, reason="other")
    log.rechain(log.at["late"])
    log.resign()
    return Head.objects.get().next - 1


@attack("edit a hash in a tile", "tile-differs")
def _(log: Scene) -> int:
    index = log.at["alice"]
    log.sql(
        "UPDATE audit_tile SET hashes = overlay(hashes PLACING %(zero)b FROM %(at)s) WHERE level = 0 AND index = 0",
        zero=bytes(32), at=index * 32 + 1,
    )  # fmt: skip
    return index


@attack("strip a field", "record-changed")
def _(log: Scene) -> int:
    log.edit(log.at["alice"], leaf=True, client=None)
    log.sql("UPDATE audit_record SET client = NULL WHERE index = %(index)s", index=log.at["alice"])
    return log.at["alice"]


@attack("strip the protected details", "disclosure-missing")
def _(log: Scene) -> int:
    log.sql("UPDATE audit_record SET disclosures = NULL, holder = NULL WHERE index = %(i)s", i=log.at["alice"])
    return log.at["alice"]


@attack("swap the protected details of two calls of one user", "disclosure-foreign")
def _(log: Scene) -> int:
    log.sql(
        """UPDATE audit_record r SET disclosures = o.disclosures FROM audit_record o
            WHERE (r.index, o.index) IN ((%(a)s, %(b)s), (%(b)s, %(a)s))""",
        a=log.at["alice"], b=log.at["again"],
    )  # fmt: skip
    return log.at["again"]


@attack("delete a row", "record-missing")
def _(log: Scene) -> int:
    log.sql("DELETE FROM audit_record WHERE index = %(index)s", index=log.at["bob"])
    return log.at["bob"]


@attack("delete a row with its write batch", "record-missing")
def _(log: Scene) -> int:
    log.sql("DELETE FROM audit_record WHERE index = %(i)s", "DELETE FROM audit_batch WHERE first = %(i)s",
            i=log.at["bob"])  # fmt: skip
    return log.at["bob"]


@attack("take a write batch out of the chain", "batch-chain-broken")
def _(log: Scene) -> int:
    log.sql("DELETE FROM audit_batch WHERE first = %(i)s", i=log.at["bob"])
    return Batch.objects.filter(first__gt=log.at["bob"]).earliest("first").first


@attack("swap two rows", "record-moved")
def _(log: Scene) -> int:
    a, b = log.at["alice"], log.at["bob"]
    log.sql("UPDATE audit_record SET index = %(a)s + %(b)s - index WHERE index IN (%(a)s, %(b)s)", a=a, b=b)
    return b


@attack("swap two rows, with their times", "record-moved")
def _(log: Scene) -> int:
    a, b = log.at["alice"], log.at["bob"]
    log.sql(
        """UPDATE audit_record r SET statement = o.statement, leaf = o.leaf, disclosures = o.disclosures,
            holder = o.holder, subject = o.subject FROM audit_record o
            WHERE (r.index, o.index) IN ((%(a)s, %(b)s), (%(b)s, %(a)s))""",
        a=a, b=b,
    )  # fmt: skip
    return a


@attack("back-date a row", "column-differs")
def _(log: Scene) -> int:
    log.sql("UPDATE audit_record SET at = at - interval '1 day' WHERE index = %(i)s", i=log.at["alice"])
    return log.at["alice"]


@attack("back-date a row and its statement", "record-changed")
def _(log: Scene) -> int:
    index = log.at["alice"]
    log.edit(index, leaf=True, at=log.said(index)["at"] - 86_400_000_000)
    log.sql("UPDATE audit_record SET at = at - interval '1 day' WHERE index = %(i)s", i=index)
    return index


# --- rows that nobody wrote -----------------------------------------------------------------------------------


def forged(log: Scene, signer: batching.Signer | None = None, back: int = 0) -> tuple[int, batching.Batch]:
    """A write batch of one record at the end, signed by whom ever, `back` microseconds before its time."""
    with process.connect() as connection:
        begun = batching.lock(connection)
        key = signer or process.signer("WRITER_KEY", "writer")
        at = begun.at + (1 - back) * batching.MICROSECOND
        batch, [fault] = batching.build(begun, [entry(said={"type": "notice"})], key, at)
        assert batch is not None and fault is None
        batching.finish(connection, batch)
    return batch.first, batch


@attack("insert a row without a batch", "record-unsigned")
def _(log: Scene) -> int:
    index, _ = forged(log)
    log.sql("DELETE FROM audit_batch WHERE first = %(i)s", i=index)
    return index


@attack("insert a row beside a sealed one", "record-inserted")
def _(log: Scene) -> int:
    log.sql(
        """INSERT INTO audit_record SELECT (jsonb_populate_record(r, jsonb_build_object('at',
            r.at + interval '1 microsecond', 'id', gen_random_uuid()))).* FROM audit_record r WHERE index = %(i)s""",
        i=log.at["alice"],
    )
    return log.at["alice"]


@attack("insert a row behind the end of the log", "record-inserted")
def _(log: Scene) -> int:
    index, _ = forged(log)
    log.sql("DELETE FROM audit_batch WHERE first = %(i)s",
            "UPDATE audit_head SET next = %(i)s, batch = (SELECT digest FROM audit_batch ORDER BY first DESC LIMIT 1)",
            i=index)  # fmt: skip
    return index


@attack("insert a row with a batch signed by another key", "batch-key-untrusted")
def _(log: Scene) -> int:
    private = Ed25519PrivateKey.generate()
    return forged(log, batching.Signer(private, keys.publish(private, "writer")))[0]


@attack("insert a row with a batch that only claims the writer's key", "batch-unsigned")
def _(log: Scene) -> int:
    return forged(log, batching.Signer(Ed25519PrivateKey.generate(), process.signer("WRITER_KEY", "writer").key_id))[0]


@attack("insert a row with a replayed batch", "batch-unsigned")
def _(log: Scene) -> int:
    index, _ = forged(log)
    old = log.at["alice"]
    log.sql(
        """UPDATE audit_record r SET statement = o.statement, leaf = o.leaf FROM audit_record o
            WHERE r.index = %(i)s AND o.index = %(old)s""",
        """UPDATE audit_batch b SET previous = o.previous, root = o.root, digest = o.digest, signature = o.signature
            FROM audit_batch o WHERE b.first = %(i)s AND o.first = %(old)s""",
        "UPDATE audit_head SET batch = (SELECT digest FROM audit_batch WHERE first = %(i)s)",
        i=index, old=old,
    )  # fmt: skip
    return index


@attack("sign a batch with a key that was retired", "batch-key-retired")
def _(log: Scene) -> int:
    old, new = process.signer("WRITER_KEY", "writer"), Ed25519PrivateKey.generate()
    keys.announce(old.private, "writer", keys.public_of(new))
    drained()
    keys.retire(new, PublishedKey.objects.get(key_id=old.key_id))
    drained()
    process.stop_recorder()
    return forged(log, old)[0]


@attack("back-date a row with the stolen writer key", "record-backdated")
def _(log: Scene) -> int:
    return forged(log, back=86_400_000_000)[0]


@attack("back-date a row with the stolen writer key, before it is sealed", "record-backdated", SEALER)
def _(log: Scene) -> int:
    return forged(log, back=86_400_000_000)[0]


@attack("change a row before it is sealed", "batch-root-differs", SEALER)
def _(log: Scene) -> int:
    index = log.call()
    log.edit(index, leaf=True, tool="memory.other")
    return index


@attack("change a row before it is sealed, without a sealer", "batch-root-differs")
def _(log: Scene) -> int:
    index = log.call()
    log.edit(index, leaf=True, tool="memory.other")
    return index


@attack("insert a row without a batch", "batch-missing", SEALER)
def _(log: Scene) -> int:
    index, _ = forged(log)
    log.sql("DELETE FROM audit_batch WHERE first = %(i)s", i=index)
    return index


# --- the end of the log, and its checkpoints ------------------------------------------------------------------


@attack("delete the tail and rebuild everything: caught by an anchor", "rollback")
def _(log: Scene) -> int:
    log.cut(log.at["older"])
    return log.at["older"]


@attack("delete the tail and rebuild everything, no anchor: caught by a receipt", "rollback")
def _(log: Scene) -> int:
    log.given = [("a receipt", attacked.note_of(Head.objects.get().next))]
    attacked.settings.MUNIMENT_ANCHORS = []
    log.cut(log.at["older"])
    return log.at["older"]


@attack("delete the tail, and write another with stolen keys", "anchor-differs")
def _(log: Scene) -> int:
    end = Head.objects.get().next
    log.cut(log.at["older"])
    while Head.objects.get().next <= end:
        log.call("mallory")
    process.stop_recorder()
    log.resign()
    return end - 1


@attack("delete the tail, but not what was sealed", "cut-off")
def _(log: Scene) -> int:
    checkpoint = log.at["older"]
    log.sql(
        "DELETE FROM audit_record WHERE index >= %(i)s",
        "DELETE FROM audit_batch WHERE first >= %(i)s",
        """UPDATE audit_head SET next = %(i)s, at = (SELECT max(at) FROM audit_record),
            batch = (SELECT digest FROM audit_batch ORDER BY first DESC LIMIT 1)""",
        i=checkpoint,
    )
    return checkpoint


@attack("replay an old checkpoint as the newest", "rollback")
def _(log: Scene) -> int:
    log.sql("DELETE FROM audit_checkpoint WHERE size > %(i)s", i=log.at["older"])
    log.retile(log.at["older"])
    return log.at["older"]


@attack("replay an old checkpoint in the place of the newest", "checkpoint-unsigned")
def _(log: Scene) -> int:
    newest = Checkpoint.objects.latest("size").size
    old = Checkpoint.objects.get(size=log.at["older"])
    log.sql("UPDATE audit_checkpoint SET note = %(note)s, root = %(root)b WHERE size = %(size)s",
            note=old.note, root=bytes(old.root), size=newest)  # fmt: skip
    return newest - 1


@attack("sign a checkpoint with a key of one's own", "checkpoint-untrusted")
def _(log: Scene) -> int:
    newest = Checkpoint.objects.latest("size")
    private = Ed25519PrivateKey.generate()
    keys.publish(private, "log")
    drained()
    process.stop_recorder()
    note = checkpoints.sign(checkpoints.Checkpoint(sealers.ORIGIN, newest.size, bytes(newest.root)), private)
    log.sql("UPDATE audit_checkpoint SET note = %(note)s WHERE size = %(size)s", note=note, size=newest.size)
    return newest.size - 1


@attack("fork with a stolen log key: another root shown to somebody", "fork")
def _(log: Scene) -> int:
    size = Checkpoint.objects.latest("size").size
    other = checkpoints.Checkpoint(sealers.ORIGIN, size, merkle.leaf_hash(b"another history"))
    log.given = [("an auditor", checkpoints.sign(other, LOG_KEY))]
    return size - 1


@attack("fork with a stolen log key: another root in the database", "fork")
def _(log: Scene) -> int:
    newest = Checkpoint.objects.latest("size")
    other = checkpoints.Checkpoint(sealers.ORIGIN, newest.size, merkle.leaf_hash(b"another history"))
    log.sql("UPDATE audit_checkpoint SET note = %(note)s, root = %(root)b WHERE size = %(size)s",
            note=checkpoints.sign(other, LOG_KEY), root=other.root, size=newest.size)  # fmt: skip
    return newest.size - 1


@attack("fork with a stolen log key: another root in the database", "fork", SEALER)
def _(log: Scene) -> None:
    newest = Checkpoint.objects.latest("size")
    other = checkpoints.Checkpoint(sealers.ORIGIN, newest.size, merkle.leaf_hash(b"another history"))
    log.sql("UPDATE audit_checkpoint SET note = %(note)s, root = %(root)b WHERE size = %(size)s",
            note=checkpoints.sign(other, LOG_KEY), root=other.root, size=newest.size)  # fmt: skip


@attack("restore an old backup", "rollback", SEALER)
def _(log: Scene) -> None:
    attacked.load(log.made.backup)


@attack("restore an old backup, without a sealer", "rollback")
def _(log: Scene) -> int:
    attacked.load(log.made.backup)
    return log.at["backup"]


@attack("restore an old backup and go on writing", "other-history", SEALER)
def _(log: Scene) -> int:
    end = Head.objects.get().next
    attacked.load(log.made.backup)
    while Head.objects.get().next <= end:
        log.call()
    return Batch.objects.filter(first__lt=end).latest("first").first


# --- months, users, keys --------------------------------------------------------------------------------------


@attack("drop a month without a retention record", "record-missing")
def _(log: Scene) -> int:
    log.sql("DROP TABLE audit_record_202509")
    return log.at["dropped from"]


@attack("remove a user's key without an erasure record", "key-destroyed")
def _(log: Scene) -> int:
    uid = Record.objects.get(index=log.at["bob"]).subject
    log.sql("DELETE FROM audit_datakey WHERE holder = %(uid)s", uid=uid)
    return log.at["bob"]


def swap_users(log: Scene, keys_too: bool) -> int:
    """Alice's entry is found as Carol's and Carol's as Alice's; with their data keys, or without."""
    uids = [Record.objects.get(index=log.at[name]).subject for name in ("alice", "carol")]
    columns = ("identity_key", "sub", "email", "email_key")
    held = list(Subject.objects.filter(uid__in=uids).order_by("uid").values("uid", *columns))
    log.sql("UPDATE audit_subject SET identity_key = NULL WHERE uid = ANY(%(uids)s)", uids=uids)  # it is unique
    for row, other in zip(held, reversed(held), strict=True):
        values = {column: bytes(other[column]) for column in columns}
        log.sql(
            """UPDATE audit_subject SET identity_key = %(identity_key)b, sub = %(sub)b, email = %(email)b,
                email_key = %(email_key)b WHERE uid = %(uid)s""",
            uid=row["uid"], **values,
        )  # fmt: skip
    if keys_too:
        log.sql(
            """UPDATE audit_datakey r SET wrapped = o.wrapped FROM audit_datakey o
                WHERE r.holder = ANY(%(uids)s) AND o.holder = ANY(%(uids)s) AND r.holder <> o.holder""",
            uids=uids,
        )
    return log.at["carol"]


@attack("swap two users", "subject-swapped")
def _(log: Scene) -> int:
    return swap_users(log, keys_too=False)


@attack("swap two users with their keys", "subject-swapped")
def _(log: Scene) -> int:
    return swap_users(log, keys_too=True)


@attack("swap two users with all of the application's keys", "subject-swapped")
def _(log: Scene) -> int:
    uids = [Record.objects.get(index=log.at[name]).subject or "" for name in ("alice", "carol")]
    log.sql("UPDATE audit_subject SET identity_key = NULL WHERE uid = ANY(%(uids)s)", uids=uids)
    for uid, sub in zip(uids, ("carol", "alice"), strict=True):
        log.sql(
            "UPDATE audit_subject SET identity_key = %(key)b, sub = %(sub)b WHERE uid = %(uid)s",
            uid=uid, key=subjects.identity_key(ISSUER, sub),
            sub=protect(keyring.get(uid), sub.encode(), subjects.bound(uid, "sub")),
        )  # fmt: skip
    return log.at["carol"]


# --- policy ---------------------------------------------------------------------------------------------------


def slip_in(log: Scene, version: int = 0) -> None:
    """An issuer that the log does not know of: like ours, under another name."""
    log.sql(
        """INSERT INTO clients_issuer SELECT (jsonb_populate_record(i, '{"id": 900, "issuer": "https://evil.example/"}')).*
            FROM clients_issuer i LIMIT 1""",
        """INSERT INTO clients_keyset SELECT (jsonb_populate_record(k, '{"id": 900, "issuer_id": 900}')).*
            FROM clients_keyset k LIMIT 1""",
        """INSERT INTO clients_oauthclientid SELECT (jsonb_populate_record(c, '{"id": 900, "issuer_id": 900}')).*
            FROM clients_oauthclientid c LIMIT 1""",
        "UPDATE audit_head SET policy = policy + %(version)s, drained = drained + %(version)s",
        version=version,
    )
    snapshots.clear()


def slip_out(log: Scene, version: int = 0) -> None:
    log.sql(
        *(f"DELETE FROM {table} WHERE id = 900" for table in ("clients_oauthclientid", "clients_keyset",
                                                              "clients_issuer")),
        "UPDATE audit_head SET policy = policy + %(version)s, drained = drained + %(version)s",
        version=version,
    )  # fmt: skip
    snapshots.clear()


@attack("insert an issuer with triggers disabled, have its token allowed, remove it", "policy-unexplained")
def _(log: Scene) -> int:
    slip_in(log)
    index = log.call("mallory", iss=EVIL)
    slip_out(log)
    return index


@attack("insert an issuer, have its token allowed, remove it, each with a version", "policy-version-missing")
def _(log: Scene) -> int:
    slip_in(log, version=1)
    index = log.call("mallory", iss=EVIL)
    slip_out(log, version=1)
    return index


@attack("insert an issuer with triggers disabled, and leave it there", "policy-unexplained")
def _(log: Scene) -> None:
    slip_in(log)


@attack("delete a policy record", "record-missing")
def _(log: Scene) -> int:
    index = Record.objects.filter(type="policy").latest("at").index
    log.sql("DELETE FROM audit_record WHERE index = %(i)s", i=index)
    return index


# --- what was answered, and is taken out before it is sealed --------------------------------------------------


def answering(log: Scene, count: int = 1) -> list[Answering]:
    """Web processes with a journal, each with an answered batch of its own, then the newest again."""
    drained()
    process.stop_recorder()
    found = [Answering(log.folder / "batches") for _ in range(count)]
    log.stack += [one.end for one in found]
    return found


def missed(watching: Answering) -> None:
    watching.watch.look()


@attack("take out the newest answered batch of one process", "batch-missing", JOURNAL)
def _(log: Scene) -> None:
    one, other = answering(log, 2)
    one.answer(2)
    other.answer()
    log.sql(*CUT.strip().rstrip(";").split(";"))
    one.answer()
    missed(other)


@attack("take out the newest answered batches of all, and go on writing", "batch-missing", JOURNAL)
def _(log: Scene) -> None:
    [one] = answering(log)
    one.answer(4)
    for _ in range(3):
        log.sql(*CUT.strip().rstrip(";").split(";"))
    one.answer(5)
    missed(one)


@attack("take out the newest answered batches, and restart", "batch-missing", JOURNAL)
def _(log: Scene) -> None:
    [one] = answering(log)
    one.answer(2)
    one.end()
    log.sql(*CUT.strip().rstrip(";").split(";"))
    [again] = answering(log)
    missed(again)


@attack("put a refused batch in a committed one's place", "batch-missing", JOURNAL)
def _(log: Scene) -> None:
    [one] = answering(log)
    key = process.signer("WRITER_KEY", "writer")
    with process.connect() as writer:
        begun = batching.lock(writer)
        refused, _ = batching.build(begun, [entry("refused")], key, begun.now)
        writer.rollback()
        assert refused is not None and one.answer() == refused.first
        log.sql(*CUT.strip().rstrip(";").split(";"))
        batching.lock(writer)
        batching.finish(writer, refused)
    missed(one)


@attack("take out the newest answered batch", "batch-missing", SEALER)
def _(log: Scene) -> None:
    [one] = answering(log)
    one.answer()
    log.sql(*CUT.strip().rstrip(";").split(";"))
    missed(one)


# --- bundles --------------------------------------------------------------------------------------------------


def line_of(parts: bundles.Parts, index: int) -> dict[str, Any]:
    """The record's line in a bundle."""
    [line] = [line for line in parts[bundle.RECORDS] if line["i"] == index]
    return line


@attack("cut a bundle off", "bundle-truncated", BUNDLE)
def _(log: Scene) -> None:
    log.bundle = bundles.of(log)[:-400]


@attack("take records out of a bundle, without its manifest", "bundle-truncated", BUNDLE)
def _(log: Scene) -> None:
    def cut(parts: bundles.Parts) -> None:
        del parts[bundle.RECORDS][-1]

    log.bundle = bundles.changed(bundles.of(log), cut)


@attack("take the last records out of a bundle, and put its manifest right", "root-differs", BUNDLE)
def _(log: Scene) -> None:
    def cut(parts: bundles.Parts) -> None:
        del parts[bundle.RECORDS][-1]
        last = parts[bundle.RECORDS][-1]["i"]
        manifest = parts[bundle.MANIFEST]
        manifest["last"] = manifest["segments"][-1]["last"] = last
        parts[bundle.BATCHES] = [one for one in parts[bundle.BATCHES] if one["first"] + one["size"] - 1 <= last]

    log.bundle = bundles.changed(bundles.of(log), cut)


@attack("narrow the range of a bundle", "range-narrowed", BUNDLE)
def _(log: Scene) -> None:
    log.asked = (log.time("alice"), log.time("late"))
    log.bundle = bundles.of(log, "alice", "bob")


@attack("narrow the range of a bundle, which claims the whole", "range-narrowed", BUNDLE)
def _(log: Scene) -> None:
    def claim(parts: bundles.Parts) -> None:
        parts[bundle.MANIFEST]["asked"]["to"] = log.time("late")

    log.bundle = bundles.changed(bundles.of(log, "alice", "bob"), claim)


@attack("change a record in a bundle", "record-changed", BUNDLE)
def _(log: Scene) -> int:
    def change(parts: bundles.Parts) -> None:
        line = line_of(parts, log.at["alice"])
        line["statement"] = line["statement"].replace("memory.recall", "memory.wrong")

    log.bundle = bundles.changed(bundles.of(log), change)
    return log.at["alice"]


@attack("change one letter of a record in the database, then make a bundle", "record-changed", BUNDLE)
def _(log: Scene) -> int:
    log.edit(log.at["alice"], leaf=False, tool="memory.recalL")
    log.bundle = bundles.of(log)
    return log.at["alice"]


@attack("replace the keys inside a bundle", "checkpoint-untrusted", BUNDLE)
def _(log: Scene) -> None:
    log.bundle = bundles.changed(bundles.of(log), bundles.with_other_keys)


@attack("replace the keys inside a bundle: its write batches", "batch-key-untrusted", BUNDLE)
def _(log: Scene) -> None:
    log.bundle = bundles.changed(bundles.of(log), bundles.with_other_keys)


@attack("replace the keys inside a bundle, for an auditor without keys", "keys-untrusted", BUNDLE)
def _(log: Scene) -> None:
    log.bundle, log.trust = bundles.changed(bundles.of(log), bundles.with_other_keys), None


@attack("cut the tail off, then make a bundle", "rollback", BUNDLE)
def _(log: Scene) -> None:
    log.given = [("a receipt", attacked.note_of(Head.objects.get().next))]
    log.cut(log.at["older"])
    log.bundle = bundles.of(log)


# --- the table ------------------------------------------------------------------------------------------------


def detected(one: Attack, scene: Scene, index: int | None) -> str:
    """What the detector says of the attack; AssertionError when it says nothing, or something else."""
    if one.detector == SEALER:
        with scene.sealer() as sealer:
            halt = sealers.halted(sealer, one.finding)
        assert index is None or halt.index == index
        return f"{halt.cause}: {halt.words}"
    if one.detector == JOURNAL:
        [alert] = [alert for alert in alerts.open_alerts() if alert.kind == one.finding]
        return f"{alert.kind}: {alert.words}"
    found = (
        bundles.verified(scene.bundle, scene.trust, scene.given, *scene.asked).findings
        if scene.bundle
        else scene.found()
    )
    named = [finding for finding in found if finding.code == one.finding and index in (None, finding.index)]
    assert named, [(finding.index, finding.line) for finding in found]
    return named[0].line


@pytest.mark.parametrize("one", ATTACKS, ids=lambda one: f"{one.name} ({one.detector.split(',')[0].split('/')[0]})")
def test_the_attack_is_detected(scene: Scene, one: Attack, record_property: Callable[[str, object], None]) -> None:
    index = one.carry_out(scene)
    process.stop_recorder()
    line = detected(one, scene, index).replace(f"file://{scene.folder}/anchor", "the anchor")
    record_property("attack", one.name)
    record_property("detector", one.detector)
    record_property("finding", line)


def nothing(found: list[Finding]) -> None:
    assert not found, [(finding.index, finding.line) for finding in found]


# --- what must stay valid -------------------------------------------------------------------------------------


@pytest.fixture
def valid(scene: Scene, record_property: Callable[[str, object], None]) -> Iterator[Callable[[str], None]]:
    """Call it with a name: nothing is found, and the table says so."""

    def judge(name: str) -> None:
        process.stop_recorder()
        nothing(scene.found())
        record_property("attack", name)
        record_property("detector", VERIFY)
        record_property("finding", "nothing, as it must be")

    yield judge


def test_an_untouched_log_is_valid(scene: Scene, valid: Callable[[str], None]) -> None:
    scene.given = [("an auditor", attacked.note_of(scene.at["older"]))]
    valid("none: an untouched log")


def test_a_log_that_goes_on_after_a_restart_is_valid(scene: Scene, valid: Callable[[str], None]) -> None:
    for _ in range(2):
        scene.call()
        process.stop_recorder()
        scene.seal()
    scene.call()
    valid("none: web processes and sealer restarted")


def test_new_keys_are_valid(scene: Scene, valid: Callable[[str], None]) -> None:
    old = process.signer("WRITER_KEY", "writer")
    writer, log_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    keys.announce(old.private, "writer", keys.public_of(writer))
    keys.announce(LOG_KEY, "log", keys.public_of(log_key))
    scene.seal()
    process.stop_recorder()
    forged(scene, batching.Signer(writer, keys.thumbprint(keys.public_of(writer))))
    keys.retire(writer, PublishedKey.objects.get(key_id=old.key_id))
    with attacked.process_signer(writer):
        drained()
        scene.seal(log_key)
        keys.retire(log_key, PublishedKey.objects.get(key_id=keys.thumbprint(keys.public_of(LOG_KEY))))
        drained()
        scene.seal(log_key)
    valid("none: a new writer key and a new log key, the old ones retired")


def test_moving_records_between_partitions_is_valid(scene: Scene, valid: Callable[[str], None]) -> None:
    scene.sql(
        "ALTER TABLE audit_record DETACH PARTITION audit_record_202509",
        "INSERT INTO audit_record_default SELECT * FROM audit_record_202509",
        "DROP TABLE audit_record_202509",
    )
    nothing(scene.found())
    assert maintenance.make_partition(attacked.DROPPED.date())
    valid("none: records moved between partitions")


def test_a_month_that_a_retention_record_accounts_for_may_be_gone(scene: Scene, valid: Callable[[str], None]) -> None:
    first, end = scene.at["dropped from"], scene.at["dropped to"]
    members = {"action": "deleted", "ranges": [[first, end - first]]}
    Outbox.objects.create(kind="retention", members=members, at="2026-01-01T00:00Z", actor="system", xact="")
    scene.seal()
    scene.sql("DROP TABLE audit_record_202509")
    valid("none: a month dropped with its retention record")


def test_a_key_that_an_erasure_record_accounts_for_may_be_gone(scene: Scene, valid: Callable[[str], None]) -> None:
    uid = Record.objects.get(index=scene.at["bob"]).subject
    members = {"action": "erased", "holder": uid}
    Outbox.objects.create(kind="erasure", members=members, at="2026-01-01T00:00Z", actor="system", xact="")
    scene.seal()
    scene.sql(
        """UPDATE audit_subject SET identity_key = NULL, sub = NULL, email = NULL, email_key = NULL, erased_at = now()
            WHERE uid = %(uid)s""",
        "DELETE FROM audit_datakey WHERE holder = %(uid)s",
        uid=uid,
    )
    assert not DataKey.objects.filter(holder=uid).exists()
    valid("none: a user erased with an erasure record")


def test_a_log_that_two_people_opened_after_a_loss_is_valid(scene: Scene, valid: Callable[[str], None]) -> None:
    attacked.load(scene.made.backup)
    people = [Person("staff:1", "Mara"), Person("staff:2", "Nils")]
    with scene.sealer() as sealer:
        sealers.halted(sealer, "rollback")
        process.recorder()
        seams.close(sealer.directory, people, "the failover of Tuesday")
        sealer.close()
        session = Session(process.connect)
        seams.open_next(sealer.directory, session, sealers.ORIGIN, people, "the failover of Tuesday", 10)
        session.close()
        for _ in range(2):
            sealer.step()
            drained()
        scene.call()
        sealer.step()
    valid("none: a loss, after which two people closed the log and opened the next")


def test_a_bundle_of_an_untouched_log_is_valid(scene: Scene, record_property: Callable[[str, object], None]) -> None:
    given = [("an auditor", attacked.note_of(scene.at["older"]))]
    asked = (scene.time("alice"), scene.time("again"))
    nothing(bundles.verified(bundles.of(scene), attacked.trust(), [], *asked).findings)
    nothing(bundles.verified(bundles.of(scene, "alice", "late"), attacked.trust(), []).findings)
    nothing(bundles.verified(bundles.changed(bundles.of(scene), lambda parts: None), attacked.trust(), []).findings)
    made = bundles.of(scene, held=given)
    nothing(bundles.verified(made, attacked.trust(), given).findings)
    record_property("attack", "none: a bundle of an untouched log")
    record_property("detector", BUNDLE)
    record_property("finding", "nothing, as it must be")


def test_without_an_anchor_or_a_receipt_a_cut_is_seen_by_the_sealer_alone(scene: Scene) -> None:
    """Stated honestly in the documents: the database alone cannot tell."""
    attacked.settings.MUNIMENT_ANCHORS = []
    scene.cut(scene.at["older"])
    nothing(scene.found())
    with scene.sealer() as sealer:
        sealers.halted(sealer, "rollback")
