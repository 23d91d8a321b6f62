"""The examination of records and write batches: what holds passes in silence, each fault has its finding."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from muniment import batches, merkle, statements
from muniment.examine import UNKNOWN, Batch, Entry, Examiner
from muniment.findings import CODES, Finding
from muniment.keys import Trust, introduce, thumbprint
from muniment.policy import digest_of

Statement = dict[str, Any]


def public_of(private: Ed25519PrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


class Log:
    """A log in memory: what a writer would have committed."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.batches: list[Batch] = []
        self.statements: list[bytes] = []

    def write(self, *said: Statement, key: Ed25519PrivateKey | None = None) -> Batch:
        first, key = len(self.statements), key or self.key
        made = [statements.encode({"v": 1, "at": 1000 + first + n} | one) for n, one in enumerate(said)]
        root = merkle.root([merkle.leaf_hash(data) for data in made])
        previous = self.batches[-1].digest if self.batches else batches.GENESIS
        message = batches.message(first, len(made), previous, root)
        signature = batches.sign(key, message)
        digest, key_id = batches.digest(message), thumbprint(public_of(key))
        self.batches.append(Batch(first, len(made), previous, root, digest, signature, key_id))
        self.statements += made
        return self.batches[-1]

    def entries(self, batch: Batch) -> list[Entry]:
        span = range(batch.first, batch.first + batch.size)
        return [Entry(i, self.statements[i], merkle.leaf_hash(self.statements[i])) for i in span]

    def trust(self) -> Trust:
        found = Trust()
        found.writers[thumbprint(public_of(self.key))] = public_of(self.key)
        return found

    def examine(
        self, change: Callable[[list[tuple[Batch, list[Entry]]]], Any] | None = None, **options: Any
    ) -> tuple[list[Finding], list[bytes], Examiner]:
        """Every batch, changed before it is looked at; the findings, the leaves, the examiner."""
        found: list[Finding] = []
        examiner = Examiner(options.pop("trust", self.trust()), found.append, **options)
        fed = [(batch, self.entries(batch)) for batch in self.batches]
        if change:
            change(fed)
        leaves = [leaf for batch, entries in fed for leaf in examiner.batch(batch, entries)]
        examiner.finish()
        return found, leaves, examiner


def decision(version: int, tables: dict[str, list[Any]] | None = None, **more: Any) -> Statement:
    policy = {"version": version, "digest": digest_of(tables or {})}
    return {"type": "decision", "decision": "allow", "policy": policy} | more


def policy(version: int, **more: Any) -> Statement:
    row = {"id": version}
    change = {"table": "clients_grant", "op": "insert", "key": str(version), "old": None, "new": row}
    return {"type": "policy", "policy": {"version": version, "digest": None}, "part": 1, "parts": 1,
            "changes": [change]} | more  # fmt: skip


def rows(*ids: int) -> dict[str, list[Any]]:
    return {"clients_grant": [{"id": number} for number in ids]}


@pytest.fixture
def log() -> Log:
    made = Log()
    made.write(decision(0))
    made.write(policy(1), decision(1, rows(1)))
    made.write(decision(1, rows(1)), decision(2, rows(1, 2)), policy(2))
    made.write(decision(2, rows(1, 2)), {"type": "of a later version", "anything": [1, None]})
    return made


def codes(found: list[Finding]) -> list[tuple[str, int | None]]:
    return [(finding.code, finding.index) for finding in found]


@pytest.mark.parametrize("deep", [True, False])
def test_an_untouched_log_is_found_whole(log: Log, deep: bool) -> None:
    found, leaves, examiner = log.examine(deep=deep)
    assert found == []
    assert leaves == [merkle.leaf_hash(data) for data in log.statements]
    assert (examiner.next, examiner.previous, examiner.at) == (8, log.batches[-1].digest, 1007)


def test_a_log_can_be_examined_from_a_batch_in_its_middle(log: Log) -> None:
    found: list[Finding] = []
    examiner = Examiner(log.trust(), found.append, deep=False)
    examiner.next, examiner.previous = 3, None
    for batch in log.batches[2:]:
        examiner.batch(batch, log.entries(batch))
    assert found == []


def edit(index: int, fed: list[tuple[Batch, list[Entry]]], **more: Any) -> None:
    for _, entries in fed:
        for position, entry in enumerate(entries):
            if entry.index == index:
                entries[position] = replace(entry, **more)


def changed(log: Log, index: int) -> bytes:
    return log.statements[index].replace(b"allow", b"allof")


def test_a_changed_record_is_named_and_the_tree_keeps_what_was_sealed(log: Log) -> None:
    found, leaves, _ = log.examine(lambda fed: edit(3, fed, statement=changed(log, 3)))
    assert codes(found) == [("record-changed", 3)]
    assert leaves[3] == merkle.leaf_hash(log.statements[3])


def test_a_record_changed_along_with_its_leaf_does_not_fit_its_batch(log: Log) -> None:
    forged = changed(log, 3)
    found, _, _ = log.examine(lambda fed: edit(3, fed, statement=forged, sealed=merkle.leaf_hash(forged)))
    assert codes(found) == [("batch-root-differs", 3)]
    found, _, _ = log.examine(lambda fed: edit(3, fed, statement=forged, sealed=None))
    assert codes(found) == [("batch-root-differs", 3)]


def test_a_changed_tile_is_told_from_a_changed_record_by_the_writers_signature(log: Log) -> None:
    found, leaves, _ = log.examine(lambda fed: edit(3, fed, sealed=bytes(32)))
    assert codes(found) == [("tile-differs", 3)]
    assert leaves[3] == merkle.leaf_hash(log.statements[3])


def test_a_record_that_is_gone_leaves_its_sealed_hash_or_the_unknown_one(log: Log) -> None:
    found, leaves, _ = log.examine(lambda fed: edit(4, fed, statement=None))
    assert (found, leaves[4]) == ([], merkle.leaf_hash(log.statements[4]))  # whether that is allowed, its caller tells
    found, leaves, _ = log.examine(lambda fed: edit(7, fed, statement=None, sealed=None))
    assert leaves[7] == UNKNOWN


@pytest.mark.parametrize(
    "junk", [b"", b"[]", b"{}", b'{"type":7,"at":"x"}', b"\xff", b'{"at":9999,"type":"x" }', b'{"at":1.5,"type":"x"}']
)
def test_bytes_that_are_no_statement_are_malformed(junk: bytes) -> None:
    made = Log()
    made.write({"type": "x"})
    made.statements[0] = junk
    root = merkle.root([merkle.leaf_hash(junk)])
    message = batches.message(0, 1, batches.GENESIS, root)
    signed = Batch(0, 1, batches.GENESIS, root, batches.digest(message), batches.sign(made.key, message),
                   made.batches[0].key_id)  # fmt: skip
    made.batches = [signed]
    found, _, _ = made.examine()
    assert codes(found) == [("record-malformed", 0)]


def test_a_record_must_be_later_than_the_one_before_it_even_when_it_is_signed() -> None:
    made = Log()
    made.write({"type": "x", "at": 50}, {"type": "x", "at": 50}, {"type": "x", "at": 51}, {"type": "x", "at": 7})
    for deep in (True, False):
        found, _, _ = made.examine(deep=deep)
        assert codes(found) == [("record-backdated", 1), ("record-backdated", 3)]


BATCH_FAULTS: dict[str, tuple[Callable[[Batch], Batch], list[str]]] = {
    "another signature": (lambda b: replace(b, signature=bytes(64)), ["batch-unsigned"]),
    "another key's name": (lambda b: replace(b, key_id="nobody"), ["batch-key-untrusted"]),
    "another digest": (lambda b: replace(b, digest=bytes(32)), ["batch-chain-broken", "batch-chain-broken"]),
    "another batch before": (lambda b: replace(b, previous=bytes(32)),
                             ["batch-chain-broken", "batch-chain-broken", "batch-unsigned"]),
    "another root": (lambda b: replace(b, root=bytes(32)),
                     ["batch-chain-broken", "batch-unsigned", "batch-root-differs"]),
}  # fmt: skip


@pytest.mark.parametrize("what", BATCH_FAULTS)
def test_every_member_of_a_batch_counts(log: Log, what: str) -> None:
    change, expected = BATCH_FAULTS[what]

    def at(fed: list[tuple[Batch, list[Entry]]]) -> None:
        fed[1] = (change(fed[1][0]), fed[1][1])

    found, _, _ = log.examine(at)
    assert sorted(code for code, _ in codes(found)) == sorted(expected)


def test_a_batch_taken_out_is_missing(log: Log) -> None:
    found, _, _ = log.examine(lambda fed: fed.pop(2), deep=False)
    assert codes(found) == [("batch-missing", 6)]


def test_a_batch_replayed_at_another_place_is_not_signed_for_it(log: Log) -> None:
    copy = replace(log.batches[0], first=8, previous=log.batches[-1].digest)
    log.statements.append(log.statements[0].replace(b'"at":1000', b'"at":9000'))
    log.batches.append(copy)
    found, _, _ = log.examine(deep=False)
    assert {code for code, index in codes(found) if index == 8} >= {"batch-unsigned", "batch-root-differs"}


def test_entries_that_are_not_the_batchs_are_the_callers_mistake(log: Log) -> None:
    examiner = Examiner(log.trust(), lambda _: None)
    with pytest.raises(ValueError):
        examiner.batch(log.batches[1], log.entries(log.batches[0]))


def test_records_without_a_batch_are_named_one_by_one(log: Log) -> None:
    found: list[Finding] = []
    examiner = Examiner(log.trust(), found.append, deep=False)
    examiner.unsigned([Entry(0, log.statements[0]), Entry(1, log.statements[1])])
    assert codes(found) == [("record-unsigned", 0), ("record-unsigned", 1)]
    assert examiner.next == 2


# --- keys -------------------------------------------------------------------------------------------------------


def introduced(by: Ed25519PrivateKey, key: Ed25519PrivateKey, **options: Any) -> Statement:
    return {"type": "key"} | introduce(by, "writer", public_of(key), **options)


def test_a_writer_key_is_good_from_its_introduction_by_a_trusted_one(log: Log) -> None:
    new, newer = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    log.write(introduced(log.key, new))
    log.write(introduced(new, newer), key=new)
    log.write({"type": "x"}, key=newer)
    for deep in (True, False):
        assert log.examine(deep=deep)[0] == []


def test_a_key_that_introduces_itself_or_is_introduced_by_a_stranger_is_not_good(log: Log) -> None:
    new, stranger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    log.write(introduced(new, new), introduced(stranger, new), introduced(log.key, new) | {"use": "log"})
    log.write({"type": "x"}, key=new)
    found, _, _ = log.examine()
    assert codes(found) == [("batch-key-untrusted", 11)]


def test_what_a_retired_key_signs_later_is_found_and_what_it_signed_before_is_not(log: Log) -> None:
    new = Ed25519PrivateKey.generate()
    log.write(introduced(log.key, new))
    log.write(introduced(new, log.key, retired=True), key=new)
    log.write({"type": "x"}, key=log.key)
    found, _, _ = log.examine()
    assert codes(found) == [("batch-key-retired", 10)]


def test_the_first_key_is_trusted_on_first_use_only_where_that_is_asked_for(log: Log) -> None:
    published = {thumbprint(public_of(log.key)): public_of(log.key)}
    for first_use, expected in ((True, 0), (False, 4)):
        found: list[Finding] = []
        examiner = Examiner(Trust(), found.append, first_use=first_use)
        examiner.meet(published)
        for batch in log.batches:
            examiner.batch(batch, log.entries(batch))
        assert [code for code, _ in codes(found)] == ["batch-key-untrusted"] * expected


# --- policy -----------------------------------------------------------------------------------------------------


def test_a_decision_from_a_policy_that_no_record_gives_is_found(log: Log) -> None:
    log.write(decision(2, rows(1, 2, 3)))
    assert codes(log.examine()[0]) == [("policy-unexplained", 8)]


def test_a_decision_may_come_before_the_record_of_its_version_but_must_fit_it(log: Log) -> None:
    log.write(decision(3, rows(1, 2, 3)), decision(3, rows(1)), policy(3))
    assert codes(log.examine()[0]) == [("policy-unexplained", 9)]


def test_a_version_without_a_record_is_missing_unless_it_may_still_come(log: Log) -> None:
    log.write(decision(3, rows(1, 2, 3)))
    found, _, examiner = log.examine()
    assert codes(found) == [("policy-version-missing", 8)]
    del found[:]
    examiner.finish(pending_from=3)
    assert found == []
    examiner.finish(pending_from=4)
    assert codes(found) == [("policy-version-missing", 8)]


def test_a_version_that_should_have_come_long_ago_is_missing(log: Log) -> None:
    log.write(decision(3, rows(1, 2, 3)), {"type": "x", "at": 5000})
    found, _, examiner = log.examine()
    for patience, expected in ((5000, []), (100, [("policy-version-missing", 8)])):
        del found[:]
        examiner.finish(pending_from=3, patience=patience)
        assert codes(found) == expected


@pytest.mark.parametrize("said", [decision(1, rows(1)), decision(0)])
def test_a_decision_from_an_older_policy_is_found(log: Log, said: Statement) -> None:
    log.write(said)
    assert codes(log.examine()[0]) == [("policy-version-falls", 8)]


def test_a_policy_record_that_does_not_follow_is_found(log: Log) -> None:
    log.write(policy(4))
    assert codes(log.examine()[0]) == [("policy-malformed", 8)]


@pytest.mark.parametrize("value", [None, 7, {}, {"version": "1"}])
def test_a_decision_that_names_no_policy_is_found(log: Log, value: Any) -> None:
    log.write({"type": "decision", "policy": value})
    assert codes(log.examine()[0]) == [("policy-unexplained", 8)]


# --- what records account for -----------------------------------------------------------------------------------


def test_deletions_and_erasures_are_noted_and_junk_in_them_is_not(log: Log) -> None:
    log.write(
        {"type": "retention", "action": "deleted", "ranges": [[0, 2], [5, 1], [1], "x", [-1, 2], [True, 1]]},
        {"type": "retention", "action": "planned", "ranges": [[0, 99]]},
        {"type": "retention", "action": "keys.destroyed", "holders": ["backend:inner:2026-01-02", "usr_3", 7]},
        {"type": "retention", "action": "keys.destroyed", "holders": "backend:x"},
        {"type": "erasure", "action": "erased", "holder": "usr_1"},
        {"type": "erasure", "action": "erased", "holder": 7},
        {"type": "erasure", "action": "refused", "holder": "usr_2"},
        {"type": "notice", "action": "log.open", "log": 2},
        {"type": "notice", "action": "else"},
    )
    found, _, examiner = log.examine()
    assert found == []
    assert examiner.retained == [(0, 2), (5, 1)]
    assert examiner.erased == {"usr_1", "backend:inner:2026-01-02"}  # a user's key goes by erasure alone
    assert [(index, said["log"]) for index, said in examiner.notices] == [(15, 2)]


def test_a_finding_has_a_code_of_the_registry() -> None:
    with pytest.raises(ValueError):
        Finding("made-up", "x")
    assert all(words.endswith(".") for words in CODES.values())
