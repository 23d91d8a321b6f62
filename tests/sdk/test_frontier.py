"""Trees that grow from their right edge, and proofs of ranges, against the tree that is computed whole."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muniment import merkle
from muniment.merkle import Frontier

LEAVES = [merkle.leaf_hash(b"record %d" % number) for number in range(20_000)]


def path_of(first: int, count: int, size: int) -> list[bytes]:
    """The largest subtrees outside the range, by the recursive definition of RFC 9162, 2.1.1."""

    def outside(start: int, end: int) -> Iterator[bytes]:
        if end <= first or start >= first + count:
            yield merkle.root(LEAVES[start:end])
        elif not (first <= start and end <= first + count):
            middle = start + (1 << (end - start - 1).bit_length() - 1)
            yield from outside(start, middle)
            yield from outside(middle, end)

    return list(outside(0, size))


def flipped(data: bytes) -> Iterator[bytes]:
    """The data with each of its bits changed in turn."""
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def test_the_root_of_a_frontier_is_that_of_the_tree_at_every_size_up_to_600() -> None:
    frontier = Frontier()
    for size in range(601):
        assert (frontier.size, frontier.root()) == (size, merkle.root(LEAVES[:size]))
        assert len(frontier.hashes) == size.bit_count()
        frontier.append(LEAVES[size])


@given(sizes=st.lists(st.integers(0, 3000), max_size=6))
@settings(deadline=None, max_examples=40)
def test_leaves_in_any_portions_give_the_same_frontier(sizes: list[int]) -> None:
    frontier, at = Frontier(), 0
    for size in sizes:
        frontier.extend(LEAVES[at : at + size])
        at += size
    whole = Frontier()
    whole.extend(LEAVES[:at])
    assert (frontier.size, frontier.hashes) == (whole.size, whole.hashes)
    assert frontier.root() == merkle.root(LEAVES[:at])


def test_a_copy_and_a_restored_frontier_grow_on_their_own() -> None:
    frontier = Frontier()
    frontier.extend(LEAVES[:11])
    copy, restored = frontier.copy(), Frontier(11, tuple(frontier.hashes))
    frontier.append(LEAVES[0])
    for other in (copy, restored):
        assert other.root() == merkle.root(LEAVES[:11])
        other.extend(LEAVES[11:20])
        assert other.root() == merkle.root(LEAVES[:20])


@pytest.mark.parametrize(
    ("size", "hashes"),
    [(0, [LEAVES[0]]), (1, []), (3, [LEAVES[0]]), (4, LEAVES[:2]), (1, [b"short"]), (1, [LEAVES[0] + b"\0"]), (-1, [])],
)
def test_hashes_that_are_no_edge_of_that_size_are_refused(size: int, hashes: list[bytes]) -> None:
    with pytest.raises(ValueError):
        Frontier(size, hashes)


def test_a_leaf_of_another_length_is_refused_and_adds_nothing() -> None:
    frontier = Frontier()
    frontier.extend(LEAVES[:5])
    for bad in ([*LEAVES[:2], b"short"], [b""]):
        with pytest.raises(ValueError):
            frontier.extend(bad)
    assert (frontier.size, frontier.root()) == (5, merkle.root(LEAVES[:5]))


def test_every_range_of_a_small_tree_holds_and_its_neighbours_do_not() -> None:
    for size in range(1, 20):
        root = merkle.root(LEAVES[:size])
        for first in range(size):
            for count in range(1, size - first + 1):
                path, leaves = path_of(first, count, size), LEAVES[first : first + count]
                assert merkle.verify_range(first, leaves, count, size, path, root)
                assert not merkle.verify_range(first + 1, leaves, count, size, path, root), "shifted"
                assert not merkle.verify_range(first - 1, leaves, count, size, path, root), "shifted"
                assert not merkle.verify_range(first, leaves[:-1], count - 1, size, path, root), "cut"
                assert not merkle.verify_range(first, leaves[1:], count - 1, size, path, root), "cut"
                assert not merkle.verify_range(first, leaves[:-1], count, size, path, root), "fewer than said"
                assert not merkle.verify_range(first, [*leaves, leaves[0]], count, size, path, root), "more than said"
                if count > 1:
                    assert not merkle.verify_range(first, leaves[::-1], count, size, path, root), "reordered"


@given(size=st.integers(1, 20_000), data=st.data())
@settings(deadline=None, max_examples=25)
def test_a_range_of_a_large_tree_is_verified_as_a_stream(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, size - 1))
    count = data.draw(st.integers(1, size - first))
    root, path = merkle.root(LEAVES[:size]), path_of(first, count, size)
    assert merkle.verify_range(first, iter(LEAVES[first : first + count]), count, size, path, root)
    position = data.draw(st.integers(0, count - 1))
    changed = LEAVES[first : first + count]
    changed[position] = merkle.leaf_hash(b"another")
    assert not merkle.verify_range(first, iter(changed), count, size, path, root)


def test_the_path_of_one_leaf_has_the_hashes_of_its_inclusion_path() -> None:
    for index in range(13):
        assert sorted(path_of(index, 1, 13)) == sorted(merkle.inclusion_path(LEAVES[:13], index))


@pytest.mark.parametrize(("first", "count", "size"), [(0, 1, 1), (0, 3, 7), (3, 2, 7), (5, 2, 7), (1, 6, 8)])
def test_every_changed_bit_of_a_range_proof_is_refused(first: int, count: int, size: int) -> None:
    root, path, leaves = merkle.root(LEAVES[:size]), path_of(first, count, size), LEAVES[first : first + count]
    assert not any(merkle.verify_range(first, leaves, count, size, path, bad) for bad in flipped(root))
    for step, entry in enumerate(path):
        for bad in flipped(entry):
            assert not merkle.verify_range(first, leaves, count, size, [*path[:step], bad, *path[step + 1 :]], root)
    for step, entry in enumerate(leaves):
        for bad in flipped(entry):
            assert not merkle.verify_range(first, [*leaves[:step], bad, *leaves[step + 1 :]], count, size, path, root)


@pytest.mark.parametrize(("first", "count", "size"), [(3, 2, 7), (5, 3, 11), (1, 1, 4)])
def test_a_range_path_of_another_shape_is_refused(first: int, count: int, size: int) -> None:
    root, path, leaves = merkle.root(LEAVES[:size]), path_of(first, count, size), LEAVES[first : first + count]
    shapes = [path[1:], path[:-1], [*path, root], [root, *path], path[::-1], [path[0] + b"\0", *path[1:]], []]
    for shape in shapes:
        assert not merkle.verify_range(first, leaves, count, size, shape, root)
    assert not merkle.verify_range(first, [leaf + b"\0" for leaf in leaves], count, size, path, root)


def test_an_empty_range_and_one_outside_the_tree_prove_nothing() -> None:
    root = merkle.root(LEAVES[:7])
    assert not merkle.verify_range(0, [], 0, 7, [root], root)
    assert not merkle.verify_range(7, [], 0, 7, [root], root)
    assert not merkle.verify_range(0, [], 0, 0, [], merkle.EMPTY_ROOT)
    assert not merkle.verify_range(6, LEAVES[6:8], 2, 7, path_of(6, 1, 7), root)
    assert not merkle.verify_range(-1, LEAVES[:1], 1, 7, path_of(0, 1, 7), root)


def test_endless_leaves_are_not_read_to_their_end() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield LEAVES[0]

    assert not merkle.verify_range(0, endless(), 5, 5, [], merkle.root(LEAVES[:5]))


def test_the_subtrees_after_a_range_follow_one_another_to_the_end() -> None:
    starts = merkle.starts_after(5, 23)
    assert starts == [5, 6, 8, 16]
    assert [end - start for start, end in pairwise([*starts, 23])] == [1, 2, 8, 7]
    assert merkle.starts_after(23, 23) == []
