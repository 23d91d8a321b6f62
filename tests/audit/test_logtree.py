"""The sealed log as it is read from the database: which log, which checkpoint, and proofs that verify."""

from hashlib import sha256
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import logtree
from audit.models import Anchoring, Record
from muniment import merkle, notes, proofs
from muniment.tiles import TileMissing
from tests.audit.trees import HandSealed, cosigned

pytestmark = pytest.mark.usefixtures("db")


def leaves(count: int, first: int = 0) -> list[bytes]:
    return [sha256(b"%d" % index).digest() for index in range(first, first + count)]


def record(index: int, leaf: bytes = b"") -> Record:
    """A record as far as a proof needs one."""
    return Record(id=uuid4(), index=index, leaf=leaf)


def holds(proof: proofs.Proof, leaf: bytes, sealed: HandSealed) -> bool:
    """Whether the proof, as text, verifies for this leaf under the log's key."""
    try:
        proofs.verify(proofs.Proof.parse(proof.encode()), leaf, [sealed.key])
    except proofs.ProofError:
        return False
    return True


def test_before_the_first_checkpoint_there_is_nothing() -> None:
    assert logtree.current() is None and logtree.log_of(0) is None and logtree.newest() is None
    with pytest.raises(logtree.NotSealed):
        logtree.proof_of(record(0))
    sealed = HandSealed()
    assert logtree.current() == sealed.log and logtree.newest() is None
    with pytest.raises(logtree.NotSealed):
        logtree.tree(sealed.log)
    with pytest.raises(logtree.NotSealed):
        logtree.proof_of(record(0))


def test_the_newest_checkpoint_and_the_first_that_covers_a_leaf() -> None:
    sealed = HandSealed()
    first, second, third = (sealed.seal(leaves(3, start)) for start in (0, 3, 6))
    assert logtree.newest(sealed.log) == third
    assert [logtree.covering(sealed.log, leaf) for leaf in (0, 2, 3, 5, 6, 8, 9)] == [
        first, first, second, second, third, third, None,
    ]  # fmt: skip


def test_a_record_belongs_to_the_newest_log_that_starts_before_it() -> None:
    first, second = HandSealed(), HandSealed(number=2, start=10)
    assert [logtree.log_of(index) for index in (0, 9, 10, 99)] == [first.log, first.log, second.log, second.log]
    assert logtree.current() == second.log
    first.seal(leaves(8))
    second.seal(leaves(5))
    assert holds(logtree.proof_of(record(12)), leaves(5)[2], second)
    assert holds(logtree.proof_of(record(7)), leaves(8)[7], first)
    with pytest.raises(logtree.NotSealed):  # between what the first log kept and the start of the second
        logtree.proof_of(record(8))


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 700, 65_536 + 256 + 3])
def test_every_kind_of_leaf_is_proven_in_a_tree_of_any_size(size: int) -> None:
    sealed, grown = HandSealed(), leaves(size)
    sealed.seal(grown)
    for leaf in {0, 1, size // 2, (size - 1) // 256 * 256, size - 2, size - 1} & set(range(size)):
        proof = logtree.proof_of(record(leaf))
        assert holds(proof, grown[leaf], sealed)
        assert not holds(proof, sha256(b"another").digest(), sealed)


def test_a_record_behind_the_newest_checkpoint_has_no_proof() -> None:
    sealed = HandSealed()
    sealed.seal(leaves(4))
    assert logtree.proof_of(record(3))
    with pytest.raises(logtree.NotSealed):
        logtree.proof_of(record(4))


def test_a_proof_against_an_older_checkpoint_of_the_same_log() -> None:
    sealed = HandSealed()
    old = sealed.seal(leaves(5))
    sealed.seal(leaves(300, 5))
    proof = logtree.proof_of(record(4), old)
    assert proof.checkpoint == old.note
    assert holds(proof, leaves(5)[4], sealed)
    with pytest.raises(logtree.NotSealed):
        logtree.proof_of(record(5), old)
    other = HandSealed(number=2, start=400)
    with pytest.raises(logtree.NotSealed):
        logtree.proof_of(record(4), other.seal(leaves(9)))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_consistency_and_root_agree_with_the_whole_tree(data: Any) -> None:
    grown = leaves(1500)
    if (log := logtree.current()) is None:  # the database is emptied for the test, not for each example
        sealed = HandSealed()
        sealed.seal(grown)
        log = sealed.log
    size = data.draw(st.integers(1, 1500))
    first = data.draw(st.integers(1, size))
    tree = logtree.tree(log, size, [first - 1])
    assert tree.root() == merkle.root(grown[:size])
    roots = merkle.root(grown[:first]), merkle.root(grown[:size])
    assert merkle.verify_consistency(first, size, *roots, tree.consistency(first))


def test_a_proof_takes_the_same_few_queries_in_a_large_tree() -> None:
    sealed = HandSealed()
    sealed.seal(leaves(65_536 + 700))
    with CaptureQueriesContext(connection) as queries:
        logtree.proof_of(record(300))
    # log, anchorings, newest checkpoint, tiles, cosignatures
    assert len(queries) == 5


def test_missing_and_short_tiles_are_said_to_be_missing(superuser_url: str) -> None:
    import psycopg

    sealed = HandSealed()
    sealed.seal(leaves(600))
    with psycopg.connect(superuser_url, autocommit=True) as superuser:
        superuser.execute("SET session_replication_role = replica")
        superuser.execute("UPDATE audit_tile SET hashes = substr(hashes, 1, 64) WHERE level = 0 AND index = 2")
        superuser.execute("DELETE FROM audit_tile WHERE level = 0 AND index = 1")
    for leaf in (300, 590):
        with pytest.raises(TileMissing):
            logtree.proof_of(record(leaf))
    with pytest.raises(TileMissing):
        logtree.hashes(sealed.log, 0, 1)


def test_cosignatures_are_added_once_for_each_witness_and_hold() -> None:
    sealed, one, two = HandSealed(), Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    checkpoint = sealed.seal(leaves(3))
    assert logtree.with_cosignatures(checkpoint) == checkpoint.note
    cosigned(checkpoint, one, anchor="a")
    cosigned(checkpoint, one, two, anchor="b")
    cosigned(checkpoint, anchor="a directory")
    found = notes.Note.parse(logtree.with_cosignatures(checkpoint))
    assert len(found.signatures) == 3
    assert found.encode().startswith(checkpoint.note)
    for private in (one, two):
        key = notes.Key("witness.example", notes.COSIGNATURE, private.public_key().public_bytes_raw())
        assert notes.cosigned_at(found, key) == 1_700_000_000
    assert holds(logtree.proof_of(record(1)), leaves(3)[1], sealed)


@pytest.mark.parametrize("rubbish", ["x", "— ", "— a b", "\n\n", "— a.example AAAA\n\n— b c", "{}"])
def test_what_is_no_signature_line_is_left_out(rubbish: str) -> None:
    sealed = HandSealed()
    checkpoint = sealed.seal(leaves(3))
    anchoring = {"anchor": "w", "log": 1, "size": 3, "at": checkpoint.at, "cosignature": rubbish}
    Anchoring.objects.create(**anchoring)
    assert logtree.with_cosignatures(checkpoint) == checkpoint.note


def test_the_newest_cosigned_checkpoint_is_preferred_where_it_covers_the_leaf() -> None:
    sealed, witness = HandSealed(), Ed25519PrivateKey.generate()
    first, second, third = (sealed.seal(leaves(3, start)) for start in (0, 3, 6))
    cosigned(first, witness)
    cosigned(second, witness)
    cosigned(third, anchor="a directory")
    assert [logtree.telling(sealed.log, leaf) for leaf in (0, 5, 6, 8, 9)] == [second, second, third, third, None]


def test_an_old_cosignature_is_not_searched_for_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logtree, "RECENT", 2)
    sealed, witness = HandSealed(), Ed25519PrivateKey.generate()
    cosigned(sealed.seal(leaves(3)), witness)
    for start in (3, 6):
        newest = sealed.seal(leaves(3, start))
        cosigned(newest, anchor="a directory")
    assert logtree.telling(sealed.log, 0) == newest
