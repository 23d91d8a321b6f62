"""The tree and its proofs, against foreign vectors, the RFC's own recursive definitions, and changed bits."""

from base64 import b64decode
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muniment import merkle

Load = Callable[[str], list[dict[str, Any]]]
LEAVES = [merkle.leaf_hash(b"record %d" % number) for number in range(130)]


def test_all_98_foreign_inclusion_vectors_are_judged_as_their_makers_say(vectors: Load) -> None:
    cases = vectors("rfc6962/inclusion.json")
    wrong = [
        case["name"]
        for case in cases
        if case["wantErr"]
        is merkle.verify_inclusion(
            b64decode(case["leafHash"] or ""),
            case["leafIdx"],
            case["treeSize"],
            [b64decode(entry) for entry in case["proof"] or []],
            b64decode(case["root"] or ""),
        )
    ]
    assert (len(cases), wrong) == (98, [])
    assert {case["wantErr"] for case in cases} == {True, False}


def test_all_98_foreign_consistency_vectors_are_judged_as_their_makers_say(vectors: Load) -> None:
    cases = vectors("rfc6962/consistency.json")
    wrong = [
        case["name"]
        for case in cases
        if case["wantErr"]
        is merkle.verify_consistency(
            case["size1"],
            case["size2"],
            b64decode(case["root1"] or ""),
            b64decode(case["root2"] or ""),
            [b64decode(entry) for entry in case["proof"] or []],
        )
    ]
    assert (len(cases), wrong) == (98, [])
    assert {case["wantErr"] for case in cases} == {True, False}


# The definitions of RFC 9162, word for word: recursive, slow, and written without a look at the module.


def split(size: int) -> int:
    power = 1
    while power * 2 < size:
        power *= 2
    return power


def rfc_root(leaves: list[bytes]) -> bytes:
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return sha256(b"\x01" + rfc_root(leaves[:k]) + rfc_root(leaves[k:])).digest()


def rfc_path(index: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if index < k:
        return [*rfc_path(index, leaves[:k]), rfc_root(leaves[k:])]
    return [*rfc_path(index - k, leaves[k:]), rfc_root(leaves[:k])]


def rfc_subproof(first: int, leaves: list[bytes], complete: bool) -> list[bytes]:
    if first == len(leaves):
        return [] if complete else [rfc_root(leaves)]
    k = split(len(leaves))
    if first <= k:
        return [*rfc_subproof(first, leaves[:k], complete), rfc_root(leaves[k:])]
    return [*rfc_subproof(first - k, leaves[k:], False), rfc_root(leaves[:k])]


def flipped(data: bytes) -> Iterator[bytes]:
    """The data with each of its bits changed in turn."""
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def test_leaf_and_node_hashes_are_those_of_the_rfc_and_never_the_same() -> None:
    assert merkle.leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert merkle.leaf_hash(b"ab") == sha256(b"\x00ab").digest()
    assert merkle.node_hash(LEAVES[0], LEAVES[1]) == sha256(b"\x01" + LEAVES[0] + LEAVES[1]).digest()
    assert merkle.node_hash(LEAVES[0], LEAVES[1]) != merkle.leaf_hash(LEAVES[0] + LEAVES[1])


@pytest.mark.parametrize("size", [*range(34), 63, 64, 65, 127, 128, 129])
def test_roots_and_paths_are_those_of_the_recursive_definition(size: int) -> None:
    leaves = LEAVES[:size]
    root, paths = merkle.paths(leaves)
    assert root == merkle.root(leaves) == rfc_root(leaves)
    assert paths == [rfc_path(index, leaves) for index in range(size)]
    assert paths == [merkle.inclusion_path(leaves, index) for index in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 31, 32, 33, 64, 100])
def test_consistency_paths_are_those_of_the_recursive_definition(size: int) -> None:
    leaves = LEAVES[:size]
    for first in range(1, size + 1):
        assert merkle.consistency_path(leaves, first) == rfc_subproof(first, leaves, True), first


@given(size=st.integers(1, 130), data=st.data())
@settings(deadline=None, max_examples=60)
def test_every_leaf_is_included_at_its_index_and_at_no_other(size: int, data: st.DataObject) -> None:
    root, paths = merkle.paths(LEAVES[:size])
    index = data.draw(st.integers(0, size - 1))
    for claimed in range(-1, size + 2):
        included = merkle.verify_inclusion(LEAVES[index], claimed, size, paths[index], root)
        assert included is (claimed == index)


def test_every_prefix_is_consistent_with_every_longer_tree() -> None:
    roots = [merkle.root(LEAVES[:size]) for size in range(49)]
    for second in range(1, 49):
        for first in range(1, second + 1):
            path = merkle.consistency_path(LEAVES[:second], first)
            assert merkle.verify_consistency(first, second, roots[first], roots[second], path)


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_every_changed_bit_of_an_inclusion_proof_is_refused(size: int) -> None:
    root, paths = merkle.paths(LEAVES[:size])
    for index, path in enumerate(paths):
        leaf = LEAVES[index]
        assert not any(merkle.verify_inclusion(bad, index, size, path, root) for bad in flipped(leaf))
        assert not any(merkle.verify_inclusion(leaf, index, size, path, bad) for bad in flipped(root))
        for step, entry in enumerate(path):
            for bad in flipped(entry):
                changed = [*path[:step], bad, *path[step + 1 :]]
                assert not merkle.verify_inclusion(leaf, index, size, changed, root)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (3, 7), (4, 7), (6, 8), (7, 7)])
def test_every_changed_bit_of_a_consistency_proof_is_refused(first: int, second: int) -> None:
    old, new = merkle.root(LEAVES[:first]), merkle.root(LEAVES[:second])
    path = merkle.consistency_path(LEAVES[:second], first)
    assert not any(merkle.verify_consistency(first, second, bad, new, path) for bad in flipped(old))
    assert not any(merkle.verify_consistency(first, second, old, bad, path) for bad in flipped(new))
    for step, entry in enumerate(path):
        for bad in flipped(entry):
            changed = [*path[:step], bad, *path[step + 1 :]]
            assert not merkle.verify_consistency(first, second, old, new, changed)


@given(
    size=st.integers(2, 40),
    data=st.data(),
    fault=st.sampled_from(["shorter", "longer", "swapped", "stretched"]),
)
@settings(deadline=None, max_examples=150)
def test_a_path_of_another_shape_is_refused(size: int, data: st.DataObject, fault: str) -> None:
    index = data.draw(st.integers(0, size - 1))
    root, paths = merkle.paths(LEAVES[:size])
    first = data.draw(st.integers(1, size - 1))
    consistency = merkle.consistency_path(LEAVES[:size], first)
    for path in (paths[index], consistency):
        if fault == "shorter":
            path.pop()
        elif fault == "longer":
            path.append(root)
        elif fault == "stretched":
            path[0] += b"\0"
        else:
            path.reverse()
    unchanged = fault == "swapped" and len(paths[index]) < 2
    assert merkle.verify_inclusion(LEAVES[index], index, size, paths[index], root) is unchanged
    unchanged = fault == "swapped" and len(consistency) < 2
    old = merkle.root(LEAVES[:first])
    assert merkle.verify_consistency(first, size, old, root, consistency) is unchanged


def test_a_shorter_tree_is_not_an_extension_and_nothing_follows_from_the_empty_tree() -> None:
    old, new = merkle.root(LEAVES[:3]), merkle.root(LEAVES[:7])
    path = merkle.consistency_path(LEAVES[:7], 3)
    assert not merkle.verify_consistency(7, 3, new, old, path)
    assert not merkle.verify_consistency(0, 7, merkle.EMPTY_ROOT, new, [])
    assert not merkle.verify_consistency(-1, 7, old, new, path)
    assert not merkle.verify_consistency(3, 3, old, old, [old])


def test_proofs_outside_the_tree_cannot_be_made() -> None:
    for index in (-1, 3):
        with pytest.raises(ValueError):
            merkle.inclusion_path(LEAVES[:3], index)
    for first in (0, 4):
        with pytest.raises(ValueError):
            merkle.consistency_path(LEAVES[:3], first)


def test_paths_share_no_list_so_that_one_receipt_cannot_change_another() -> None:
    _, paths = merkle.paths(LEAVES[:7])
    assert len({id(path) for path in paths}) == 7
