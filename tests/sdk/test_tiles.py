"""Tiles: their addresses, the tree read back from them, and how they grow; judged by the tree computed whole."""

import random
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muniment import merkle, tiles
from muniment.tiles import WIDTH, Builder, TileMissing, Tree

LEAVES = [merkle.leaf_hash(b"record %d" % number) for number in range(70_000)]
Tiles = dict[tuple[int, int], bytes]


def built(size: int, portion: int = 10_000) -> tuple[Builder, Tiles]:
    """A builder and all its tiles, after `size` leaves in portions."""
    builder, found = Builder(), Tiles()
    for start in range(0, size, portion):
        found |= builder.extend(LEAVES[start : min(start + portion, size)])
    return builder, found


def reader(held: Mapping[tuple[int, int], bytes], read: list[tuple[int, int]] | None = None) -> Callable[..., bytes]:
    def tile(level: int, index: int) -> bytes:
        if read is not None:
            read.append((level, index))
        if (level, index) not in held:
            raise TileMissing(level, index)
        return held[level, index]

    return tile


BIG_BUILDER, BIG = built(70_000)
BIG_ROOT = merkle.root(LEAVES)


@pytest.mark.parametrize(
    ("level", "index", "width", "address"),
    [
        (0, 0, 256, "0/000"),
        (0, 999, 256, "0/999"),
        (0, 1000, 256, "0/x001/000"),
        (1, 1234, 17, "1/x001/234.p/17"),
        (2, 1234067, 256, "2/x001/x234/067"),
        (63, 5, 255, "63/005.p/255"),
    ],
)
def test_an_address_is_that_of_tlog_tiles_both_ways(level: int, index: int, width: int, address: str) -> None:
    assert tiles.path(level, index, width) == address
    assert tiles.parse(address) == (level, index, width)


@given(st.integers(0, 63), st.integers(0, 2**56), st.integers(1, 256))
def test_every_address_is_read_back(level: int, index: int, width: int) -> None:
    assert tiles.parse(tiles.path(level, index, width)) == (level, index, width)


NO_ADDRESSES = """
0 0/ 0/0 0/00 0/0000 00/000 64/000 -1/000 0/001/000 0/x001 0/x000/001 0/000.p/0 0/000.p/256 0/000.p/017 0/000.p/
0/000.p 0/000/ /0/000 0/٠٠٠ entries/000 0/../000
"""


@pytest.mark.parametrize("address", ["", "0/000\n", *NO_ADDRESSES.split()])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError):
        tiles.parse(address)


def test_an_endless_address_is_refused() -> None:
    with pytest.raises(ValueError):
        tiles.parse("0/" + "x001/" * 100_000 + "000")


@given(st.text(alphabet="0123x/.p", max_size=16))
def test_an_accepted_address_is_the_one_that_would_be_written(text: str) -> None:
    try:
        found = tiles.parse(text)
    except ValueError:
        return
    assert tiles.path(*found) == text


@pytest.mark.parametrize(("level", "index", "width"), [(64, 0, 1), (-1, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257)])
def test_a_tile_that_cannot_be_has_no_address(level: int, index: int, width: int) -> None:
    with pytest.raises(ValueError):
        tiles.path(level, index, width)


def test_a_tree_of_70000_leaves_has_the_tiles_that_the_specification_counts() -> None:
    widths = {place: len(tile) // 32 for place, tile in BIG.items()}
    assert [index for (level, index), width in widths.items() if level == 0 and width == WIDTH] == list(range(273))
    partial = {place: width for place, width in widths.items() if width < WIDTH}
    assert partial == {(0, 273): 112, (1, 1): 17, (2, 0): 1}
    assert widths[1, 0] == WIDTH
    assert len(widths) == 277
    assert built(256)[1] == {(0, 0): b"".join(LEAVES[:256]), (1, 0): merkle.root(LEAVES[:256])}


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 512, 513, 5000, 65_535, 65_536, 65_537, 70_000])
def test_a_builder_has_the_root_of_the_tree_however_its_leaves_came(size: int) -> None:
    generator, builder, found = random.Random(size), Builder(), Tiles()
    while builder.size < size:
        portion = LEAVES[builder.size : min(size, builder.size + generator.randint(1, 1 + size // 3))]
        found |= builder.extend(portion)
    whole, once = Builder(), built(size)[1]
    assert whole.extend(LEAVES[:size]) == once == found
    assert builder.edge == whole.edge
    assert builder.root() == Tree(size, reader(found)).root() == merkle.root(LEAVES[:size])
    assert Builder(size, builder.edge).root() == builder.root()


def test_only_changed_tiles_are_handed_out_each_a_longer_form_of_itself() -> None:
    builder, before = built(700)
    changed = builder.extend(LEAVES[700:710])
    assert set(changed) == {(0, 2)}
    assert changed[0, 2] == before[0, 2] + b"".join(LEAVES[700:710])
    assert set(builder.extend(LEAVES[710:768])) == {(0, 2), (1, 0)}
    assert builder.extend([]) == {}


@pytest.mark.parametrize(
    ("size", "edge"),
    [
        (0, {0: LEAVES[0]}),
        (1, None),
        (2, {0: LEAVES[0]}),
        (256, {0: b"".join(LEAVES[:256])}),
        (257, {0: LEAVES[0]}),
        (257, {0: LEAVES[0], 1: LEAVES[0], 2: LEAVES[0]}),
        (1, {0: LEAVES[0][:31]}),
        (1, {1: LEAVES[0]}),
        (-1, {}),
    ],
)
def test_an_edge_that_does_not_fit_the_size_is_refused(size: int, edge: dict[int, bytes] | None) -> None:
    with pytest.raises(ValueError):
        Builder(size, edge)


def test_an_edge_may_name_a_level_without_a_partial_tile() -> None:
    builder = built(256)[0]
    assert Builder(256, {0: b"", **builder.edge}).root() == builder.root()


def test_a_builder_refuses_a_leaf_of_another_length_and_adds_nothing() -> None:
    builder = built(300)[0]
    with pytest.raises(ValueError):
        builder.extend([LEAVES[0], b"short"])
    assert (builder.size, builder.root()) == (300, merkle.root(LEAVES[:300]))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 255, 256, 257, 600])
def test_paths_from_tiles_are_those_of_the_whole_tree(size: int) -> None:
    tree = Tree(size, reader(built(size)[1]))
    steps = range(size) if size < 20 else range(0, size, 41)
    for index in [*steps, size - 1]:
        assert tree.leaf(index) == LEAVES[index]
        assert tree.inclusion(index) == merkle.inclusion_path(LEAVES[:size], index)
        assert tree.consistency(index + 1) == merkle.consistency_path(LEAVES[:size], index + 1)
        assert tree.frontier(index).root() == merkle.root(LEAVES[:index])


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_tree_shows_leaves_prefixes_and_ranges_from_tiles_that_may_be_longer(data: st.DataObject) -> None:
    size = data.draw(st.one_of(st.integers(1, 2000), st.integers(65_000, 70_000)))
    tree, root = Tree(size, reader(BIG)), merkle.root(LEAVES[:size])
    index = data.draw(st.integers(0, size - 1))
    assert tree.root() == root
    assert merkle.verify_inclusion(LEAVES[index], index, size, tree.inclusion(index), root)
    first = data.draw(st.integers(1, size))
    assert merkle.verify_consistency(first, size, merkle.root(LEAVES[:first]), root, tree.consistency(first))
    count = data.draw(st.integers(1, size - index))
    leaves = tree.leaves(index, count)
    assert leaves == LEAVES[index : index + count]
    assert merkle.verify_range(index, leaves, count, size, tree.range(index, count), root)
    frontier = tree.frontier(first)
    frontier.extend(LEAVES[first:size])
    assert frontier.root() == root


def test_an_inclusion_proof_reads_few_tiles_and_each_but_once() -> None:
    read: list[tuple[int, int]] = []
    tree = Tree(70_000, reader(BIG, read))
    assert merkle.verify_inclusion(LEAVES[40_000], 40_000, 70_000, tree.inclusion(40_000), BIG_ROOT)
    assert len(read) == len(set(read)) <= 6
    before = len(read)
    tree.inclusion(40_001)
    assert len(read) == before


def test_a_long_walk_through_the_leaves_does_not_hold_every_tile() -> None:
    read: list[tuple[int, int]] = []
    tree = Tree(70_000, reader(BIG, read))
    assert [leaf for first in range(0, 70_000, 1000) for leaf in tree.leaves(first, 1000)] == LEAVES
    assert len(read) <= 2 * 274
    tree.leaf(0)
    assert read[-1] == (0, 0)


def test_a_missing_or_short_tile_is_named() -> None:
    short = BIG | {(1, 1): BIG[1, 1][:-1]}
    gone = {place: tile for place, tile in BIG.items() if place != (0, 273)}
    for held, place in ((short, (1, 1)), (gone, (0, 273))):
        with pytest.raises(TileMissing) as caught:
            Tree(70_000, reader(held)).root()
        assert (caught.value.level, caught.value.index) == place
        assert f"{place[0]}/{place[1]}" in str(caught.value)


def test_a_changed_tile_never_gives_a_proof_that_holds() -> None:
    index = 40_000
    changed = BIG | {(0, index // WIDTH): bytes(32 * WIDTH)}
    path = Tree(70_000, reader(changed)).inclusion(index)
    assert not merkle.verify_inclusion(LEAVES[index], index, 70_000, path, BIG_ROOT)


def test_what_is_outside_the_tree_cannot_be_asked() -> None:
    tree = Tree(7, reader(built(7)[1]))
    for ask in (
        lambda: tree.leaf(7),
        lambda: tree.leaf(-1),
        lambda: tree.leaves(5, 3),
        lambda: tree.leaves(5, -1),
        lambda: tree.inclusion(7),
        lambda: tree.inclusion(-1),
        lambda: tree.consistency(0),
        lambda: tree.consistency(8),
        lambda: tree.range(0, 0),
        lambda: tree.range(6, 2),
        lambda: tree.range(-1, 2),
        lambda: tree.frontier(8),
        lambda: tree.frontier(-1),
        lambda: Tree(-1, reader({})),
    ):
        with pytest.raises(ValueError):
            ask()
    assert tree.leaves(7, 0) == []
    assert Tree(0, reader({})).root() == merkle.EMPTY_ROOT
