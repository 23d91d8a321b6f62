"""Receipts: one holds whole or not at all; a folder keeps them through crashes, threads and processes, and keeps
nobody's name."""

import copy
import json
import multiprocessing
import os
import resource
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from muniment import Misconfigured, MunimentError, notes
from muniment.keys import TrustError, thumbprint
from muniment.receipts import SKEW, ReceiptError, Store, WriterKey, check, kept_lines, writer_keys
from tests.sdk.bundles import NOON, at, public_of
from tests.sdk.kept import answer, lived, record_of, text

LOG = lived()
KEYS = writer_keys(LOG.jwks().decode())
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ANSWER = answer(LOG, 13)
RECEIPT: dict[str, Any] = ANSWER["receipt"]
MEMBERS = [*(name for name in RECEIPT if name != "batch"), *RECEIPT["batch"]]
DAY = 86_400_000_000


def key(private: Ed25519PrivateKey, *span: int | None) -> WriterKey:
    return WriterKey(thumbprint(public_of(private)), public_of(private), *span)


def changed(member: str, value: object) -> dict[str, Any]:
    """The receipt with another value of one member."""
    receipt = copy.deepcopy(RECEIPT)
    (receipt if member in receipt else receipt["batch"])[member] = value
    return receipt


def refused(receipt: object, *keys: WriterKey, at: int | None = None) -> str:
    """The code with which it is refused."""
    with pytest.raises(ReceiptError) as caught:
        check(receipt, keys or KEYS, at)
    assert isinstance(caught.value, MunimentError) and "\n" not in str(caught.value)
    return caught.value.code


class TestCheck:
    @pytest.mark.parametrize("index", range(3, 39))
    def test_every_answer_of_a_writer_holds(self, index: int) -> None:
        found = check(answer(LOG, index)["receipt"], KEYS, at(index))
        assert (found.index, found.leaf) == (index, LOG.leaves()[index])

    @pytest.mark.parametrize("member", MEMBERS)
    def test_a_changed_member_breaks_it(self, member: str) -> None:
        others = answer(LOG, 29)["receipt"]
        other = (others if member in others else others["batch"])[member]
        if member == "key":
            assert refused(changed("key", thumbprint(public_of(OTHER)))) == "batch-key-untrusted"
        elif other == (RECEIPT | RECEIPT["batch"])[member]:  # the same size of batch
            assert refused(changed("size", 4)) == "receipt-broken"
        else:
            assert refused(changed(member, other)) in ("receipt-broken", "receipt-malformed")

    @pytest.mark.parametrize("member", ["leaf", "signature", "previous", "root", "path"])
    def test_one_bit_breaks_it(self, member: str) -> None:
        value = (RECEIPT | RECEIPT["batch"])[member]
        data = bytearray(notes.from_base64(value[0] if member == "path" else value))
        for bit in range(0, len(data) * 8, 7):
            wrong = bytearray(data)
            wrong[bit // 8] ^= 1 << bit % 8
            new = text(bytes(wrong))
            assert refused(changed(member, [new, *value[1:]] if member == "path" else new)) == "receipt-broken"

    def test_a_place_moved_with_its_index_breaks_it(self) -> None:
        receipt = changed("position", RECEIPT["batch"]["position"] + 1)
        receipt["index"] += 1
        assert refused(receipt) == "receipt-broken"
        moved = changed("first", RECEIPT["batch"]["first"] + 10)
        moved["index"] += 10
        assert refused(moved) == "receipt-broken", "the signature covers where the batch stands"

    def test_only_a_writer_that_is_trusted_can_have_signed_it(self) -> None:
        assert refused(RECEIPT, key(OTHER)) == "batch-key-untrusted"
        impostor = WriterKey(RECEIPT["key"], public_of(OTHER))
        assert refused(RECEIPT, impostor) == "receipt-broken"
        assert check(RECEIPT, [key(OTHER), *KEYS])

    def test_an_answer_that_does_not_name_its_key_is_tried_with_all(self) -> None:
        unnamed = changed("key", None)
        assert check(unnamed, [key(OTHER), *KEYS])
        assert refused(unnamed, key(OTHER)) == "receipt-broken"

    def test_the_key_of_a_log_signs_no_receipt(self) -> None:
        with pytest.raises(TrustError, match="no key of a writer"):
            writer_keys(notes.Key("muniment.test/log", notes.ED25519, public_of(LOG.writer)).vkey)

    @pytest.mark.parametrize(
        ("span", "holds"),
        [
            ((None, None), True),
            ((NOON, None), True),
            ((NOON + SKEW, NOON + DAY), True),
            ((NOON + SKEW + 1, None), False),
            ((NOON - DAY, NOON - SKEW), True),
            ((NOON - DAY, NOON - SKEW - 1), False),
        ],
    )
    def test_a_key_signs_while_it_is_valid(self, span: tuple[int | None, int | None], holds: bool) -> None:
        found = key(LOG.writer, *span)
        assert check(RECEIPT, [found]), "without a time, only whose it is counts"
        if holds:
            assert check(RECEIPT, [found], NOON)
        else:
            assert refused(RECEIPT, found, at=NOON) == "receipt-untimely"

    def test_the_validity_is_that_of_the_saved_keys(self) -> None:
        document = json.loads(LOG.jwks())
        document["keys"][0] |= {"not_before": "2026-01-01T00:00:00+00:00", "not_after": "2026-02-01T00:00:00.5+00:00"}
        [found] = writer_keys(json.dumps(document))
        assert (found.not_before, found.not_after) == (1_767_225_600_000_000, 1_769_904_000_500_000)
        assert refused(RECEIPT, found, at=NOON) == "receipt-untimely"
        for wrong in (5, "soon", True, ["2026-01-01"], ""):
            document["keys"][0]["not_after"] = wrong
            with pytest.raises(TrustError, match="valid"):
                writer_keys(json.dumps(document))

    @pytest.mark.parametrize("member", MEMBERS)
    @pytest.mark.parametrize(
        "value",
        [None, True, 1.0, -1, 2**53, 2**400, "", "x" * 45, "é" * 44, "A" * 43 + "B=", "AA==\n", [], {}, b"x" * 32,
         ["A" * 44], [5], ["x"] * 100_000, "A" * 1_000_000],
    )  # fmt: skip
    def test_no_shape_but_its_own_is_read(self, member: str, value: object) -> None:
        if (member, value) == ("key", None):  # an answer may leave it out
            assert check(changed(member, value), KEYS)
            return
        code = refused(changed(member, value))
        assert code == "receipt-malformed" or (code, member, value) in (
            ("batch-key-untrusted", "key", value), ("receipt-broken", "path", []),
        )  # fmt: skip

    @pytest.mark.parametrize("member", [*MEMBERS, "batch"])
    def test_a_member_left_out_is_found(self, member: str) -> None:
        receipt = copy.deepcopy(RECEIPT)
        (receipt if member in receipt else receipt["batch"]).pop(member)
        if member == "key":
            assert check(receipt, KEYS)
        else:
            assert refused(receipt) == "receipt-malformed"

    def test_members_that_it_does_not_know_are_ignored(self) -> None:
        assert check(changed("root", RECEIPT["batch"]["root"]) | {"new": 1}, KEYS)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*MEMBERS, "batch", "x"]), inner),
        )
    )
    @settings(max_examples=150, deadline=None)
    def test_whatever_is_given_is_refused_and_never_fails(self, value: Any) -> None:
        refused(value, at=NOON)
        refused(RECEIPT | {"batch": value}, at=NOON)
        known = {name: one for name, one in value.items() if name in MEMBERS} if isinstance(value, dict) else {}
        if known.keys() - {"key"}:
            batch = {name: one for name, one in known.items() if name in RECEIPT["batch"]}
            refused({**RECEIPT, **known, "batch": RECEIPT["batch"] | batch}, at=NOON)

    @given(st.sampled_from(MEMBERS), st.integers(-(2**70), 2**70) | st.text(max_size=100) | st.binary(max_size=80))
    @settings(max_examples=150, deadline=None)
    def test_no_other_value_of_a_member_holds(self, member: str, value: Any) -> None:
        for one in (value, text(value) if isinstance(value, bytes) else value):
            if one != (RECEIPT | RECEIPT["batch"])[member]:
                refused(changed(member, one))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "kept", clock=lambda: NOON)


def files(store: Store) -> list[Path]:
    return sorted(store.folder.iterdir())


def many(folder: Path, count: int) -> None:
    for number in range(count):
        Store(folder, clock=lambda: NOON).keep(ANSWER | {"record": record_of(number)})


class TestStore:
    def test_what_is_kept_holds_and_is_in_order(self, store: Store) -> None:
        for index in range(3, 12):
            store.keep(answer(LOG, index))
        kept = list(store)
        assert [one.receipt for one in kept] == [answer(LOG, index)["receipt"] for index in range(3, 12)]
        assert [str(one.record) for one in kept] == [record_of(index) for index in range(3, 12)]
        assert {one.decision for one in kept} == {"allow", "deny"}
        assert {(one.at, one.tool) for one in kept} == {(NOON, "memory.recall")}
        assert all(check(one.receipt, KEYS, one.at) for one in kept)

    def test_no_token_and_nobody_is_in_it(self, store: Store) -> None:
        hostile = copy.deepcopy(ANSWER) | {"assertion": "eyJ.secret.x", "token": "eyJ.other.x"}
        hostile["receipt"] |= {"email": "alice@x.example", "token": "eyJ.third.x"}
        hostile["receipt"]["batch"]["sub"] = "alice"
        store.keep(hostile)
        [file] = files(store)
        assert not any(word in file.read_text() for word in ("alice", "eyJ", "usr_", "email", "sub"))
        assert set(json.loads(file.read_text())) == {"at", "record", "decision", "tool", "receipt"}

    def test_a_denial_of_a_tool_that_is_not_known_is_kept(self, store: Store) -> None:
        store.keep(ANSWER | {"decision": "deny", "tool": None})
        assert [(one.decision, one.tool) for one in store] == [("deny", None)]

    @pytest.mark.parametrize(
        "wrong",
        [{"receipt": {}}, {"receipt": None}, {"receipt": [1]}, {"record": "x"}, {"record": 5}, {"record": None},
         {"decision": "maybe"}, {"decision": None}, {"tool": {}}, {"tool": 5}, {"tool": {"name": 5}},
         {"tool": {"name": ""}}, {"tool": {"name": "x" * 5000}}, {"tool": {"name": "\ud800"}}],
    )  # fmt: skip
    def test_an_answer_without_a_receipt_is_not_kept(self, store: Store, wrong: dict[str, Any]) -> None:
        with pytest.raises(ReceiptError):
            store.keep(ANSWER | wrong)
        with pytest.raises(ReceiptError):
            store.keep({name: value for name, value in ANSWER.items() if name not in wrong} | {"receipt": {}})
        assert files(store) == []

    def test_it_is_private(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            store = Store(tmp_path / "a" / "kept", clock=lambda: NOON, sync=True)
            store.keep(ANSWER)
        finally:
            os.umask(before)
        assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
        assert [stat.S_IMODE(file.stat().st_mode) for file in files(store)] == [0o600]

    @pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
    def test_a_folder_that_others_write_is_refused(self, tmp_path: Path, mode: int) -> None:
        tmp_path.chmod(mode)
        with pytest.raises(Misconfigured, match="by others"):
            Store(tmp_path)
        tmp_path.chmod(0o700)

    def test_a_place_that_is_no_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for path in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(Misconfigured):
                Store(path)

    def test_a_day_has_a_file(self, tmp_path: Path) -> None:
        now = [NOON]
        store = Store(tmp_path, clock=lambda: now[0])
        for now[0] in (NOON + DAY, NOON, NOON + 2 * DAY, NOON + DAY):
            store.keep(ANSWER)
        assert [file.name for file in files(store)] == [f"receipts-2026-11-{day}.jsonl" for day in (18, 19, 20)]
        assert [one.at for one in store] == [NOON, NOON + DAY, NOON + DAY, NOON + 2 * DAY]

    def test_a_line_that_was_cut_off_takes_no_other_with_it(self, store: Store) -> None:
        store.keep(ANSWER)
        [file] = files(store)
        whole = file.read_bytes()
        for cut in range(len(whole)):
            file.write_bytes(whole + whole[:cut])
            found = [line.torn for line in kept_lines(store.folder)]
            expected = [False, True] if 0 < cut < len(whole) - 1 else [False] * (2 if cut else 1)
            assert found == expected, cut
            if cut % 97 == 0:
                store.keep(ANSWER)
                assert [line.torn for line in kept_lines(store.folder)] == [*expected, False]
                assert all(check(one.receipt, KEYS) for one in store)

    @pytest.mark.parametrize(
        "line",
        [b"{}}}", b'"x}}}', b"\xff}}}", b"[" * 9000 + b"}}}", b"x" * 100_000, b"{" * 9_000_000,
         b'{"at":5,"record":"x","decision":"allow","tool":null,"receipt":{"a":{"b":{}}}'],
    )  # fmt: skip
    def test_a_line_that_is_none_is_found_and_named(self, store: Store, line: bytes) -> None:
        store.keep(ANSWER)
        [file] = files(store)
        file.write_bytes(line + b"\n" + file.read_bytes())
        first, second = kept_lines(store.folder)
        assert (first.number, first.torn, second.number, second.torn) == (1, False, 2, False)
        assert first.place == "line 1 of receipts-2026-11-18.jsonl"
        with pytest.raises(ReceiptError) as caught:
            list(store)
        assert caught.value.code == "receipt-malformed"

    def test_other_files_are_left_alone_and_what_is_no_file_is_found(self, store: Store) -> None:
        store.keep(ANSWER)
        (store.folder / "notes.txt").write_text("mine")
        (store.folder / "receipts-2026-11-18.jsonl.gz").write_bytes(b"x")
        assert len(list(store)) == 1
        os.mkfifo(store.folder / "receipts-2026-11-17.jsonl")
        with pytest.raises(ReceiptError, match="not a file"):
            list(store)

    def test_a_link_in_the_way_is_not_followed(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "victim").write_text("")
        (store.folder / "receipts-2026-11-18.jsonl").symlink_to(tmp_path / "victim")
        with pytest.raises(Misconfigured):
            store.keep(ANSWER)
        assert (tmp_path / "victim").read_text() == ""

    def test_a_full_disk_is_told(self, store: Store) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            for words in ("No space left", "too large"):  # part of it is written, then nothing
                with pytest.raises(Misconfigured, match=words):
                    store.keep(ANSWER)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        store.keep(ANSWER)
        assert [line.torn for line in kept_lines(store.folder)] == [True, False]

    def test_processes_and_threads_share_a_folder(self, store: Store) -> None:
        spawn = multiprocessing.get_context("fork")
        processes = [spawn.Process(target=many, args=(store.folder, 200)) for _ in range(3)]
        for process in processes:
            process.start()
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(store.keep, [ANSWER] * 200))
        for process in processes:
            process.join(100)
        assert [process.exitcode for process in processes] == [0, 0, 0]
        assert len(list(store)) == 800
        assert all(one.receipt == RECEIPT for one in store)
