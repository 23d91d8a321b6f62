"""The tree in tiles of 256 hashes (C2SP tlog-tiles): their addresses, proofs from them, and how they grow.

Hash `i` of level `l` is the root of the leaves [i * 256**l, (i + 1) * 256**l); it exists once these are all
there, and stands in tile `i // 256`. A last, partial tile is a prefix of what it will be.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

from muniment import merkle
from muniment.merkle import HASH_BYTES, Frontier

WIDTH = 256
HEIGHT = 8  # 2**8 == WIDTH: a tile is a subtree of this height
MAX_LEVEL = 63

_TILE_BYTES = WIDTH * HASH_BYTES
_CACHED = 64  # tiles that a Tree holds: half a megabyte
_PATH = re.compile(r"(0|[1-9][0-9]?)/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")
_MAX_PATH = 64


class TileMissing(LookupError):
    """A tile that is not there, or shorter than the tree demands. `level` and `index` say which."""

    def __init__(self, level: int, index: int) -> None:
        super().__init__(f"tile {level}/{index} is missing or too short")
        self.level = level
        self.index = index


def path(level: int, index: int, width: int = WIDTH) -> str:
    """The address of a tile below `tile/`: "0/x001/234", or "0/x001/234.p/17" for one of 17 hashes.

    Raises ValueError for a level outside 0-63, a negative index, or a width outside 1-256.
    """
    if not 0 <= level <= MAX_LEVEL or index < 0 or not 1 <= width <= WIDTH:
        raise ValueError("no tile has this level, index or width")
    digits = str(index)
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[start : start + 3] for start in range(0, len(digits), 3)]
    partial = f".p/{width}" if width < WIDTH else ""
    return f"{level}/{'/'.join([*(f'x{group}' for group in groups[:-1]), groups[-1]])}{partial}"


def parse(text: str) -> tuple[int, int, int]:
    """(level, index, width) of an address, if it is exactly what `path` writes. Raises ValueError."""
    found = _PATH.fullmatch(text) if len(text) <= _MAX_PATH else None
    if found is not None:
        level, index = int(found[1]), int(found[2].replace("x", "").replace("/", ""))
        width = int(found[3] or WIDTH)
        if level <= MAX_LEVEL and width <= WIDTH and path(level, index, width) == text:
            return level, index, width
    raise ValueError("not the address of a tile")


class Tree:
    """The tree of the first `size` leaves, read from tiles: only from those that an answer needs.

    `read(level, index)` gives a tile's bytes, a partial or longer one as it is; where it has none it raises
    TileMissing, or gives too few. It holds the tiles that it read last, for its own lifetime.
    """

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        if size < 0:
            raise ValueError("a tree has no negative size")
        self.size = size
        self._read = read
        self._tiles: dict[tuple[int, int], bytes] = {}

    def leaf(self, index: int) -> bytes:
        """The hash of one leaf. Raises ValueError outside the tree, TileMissing."""
        return self.leaves(index, 1)[0]

    def leaves(self, first: int, count: int) -> list[bytes]:
        """The hashes of leaves [first, first + count). Raises ValueError outside the tree, TileMissing."""
        if not 0 <= first <= first + count <= self.size:
            raise ValueError("the range is outside the tree")
        return self._hashes(0, first, first + count)

    def root(self) -> bytes:
        """The tree's root (RFC 9162, 2.1.1). Raises TileMissing."""
        return self.frontier(self.size).root()

    def inclusion(self, index: int) -> list[bytes]:
        """The proof that leaf `index` is in the tree (RFC 9162, 2.1.3.1). Raises ValueError, TileMissing."""
        if not 0 <= index < self.size:
            raise ValueError("index is outside the tree")
        return self._climb(0, index)

    def consistency(self, first: int) -> list[bytes]:
        """The proof that the tree of the first `first` leaves, at least one, is a prefix (RFC 9162, 2.1.4.1).

        Raises ValueError outside the tree, TileMissing.
        """
        if not 1 <= first <= self.size:
            raise ValueError("first is outside the tree")
        if first == self.size:
            return []
        height, node = 0, first - 1
        while node & 1:  # as in merkle.consistency_path
            height, node = height + 1, node >> 1
        start = [self._node(height, node)] if node else []
        return start + self._climb(height, node)

    def range(self, first: int, count: int) -> list[bytes]:
        """The path with which `merkle.verify_range` shows leaves [first, first + count), at least one.

        Raises ValueError outside the tree, TileMissing.
        """
        end = first + count
        if not 0 <= first < end <= self.size:
            raise ValueError("the range is empty or outside the tree")
        starts = merkle.starts_after(end, self.size)
        after = [self._node((start & -start).bit_length() - 1, start // (start & -start)) for start in starts]
        return [*self.frontier(first).hashes, *after]

    def frontier(self, size: int) -> Frontier:
        """The right edge of the first `size` leaves. Raises ValueError outside the tree, TileMissing."""
        if not 0 <= size <= self.size:
            raise ValueError("the size is outside the tree")
        heights = [height for height in range(size.bit_length() - 1, -1, -1) if size >> height & 1]
        return Frontier(size, [self._node(height, (size >> height) - 1) for height in heights])

    def _climb(self, height: int, node: int) -> list[bytes]:
        """The siblings on the way from a node to the root; a node without one moves up unchanged."""
        path = []
        while (nodes := -(-self.size >> height)) > 1:
            if (node ^ 1) < nodes:
                path.append(self._node(height, node ^ 1))
            height, node = height + 1, node >> 1
        return path

    def _node(self, height: int, node: int) -> bytes:
        """The root of leaves [node * 2**height, (node + 1) * 2**height), as many of them as the tree has."""
        start = node << height
        if start + (1 << height) <= self.size:
            level, within = divmod(height, HEIGHT)
            return merkle.root(self._hashes(level, node << within, (node + 1) << within))
        rest, parts = self.size - start, []  # the last node of its height: complete subtrees of falling size
        while rest:
            below = rest.bit_length() - 1
            parts.append(self._node(below, start >> below))
            start, rest = start + (1 << below), rest - (1 << below)
        return merkle.fold(parts)

    def _hashes(self, level: int, first: int, end: int) -> list[bytes]:
        found = []
        for index in range(first // WIDTH, -(-end // WIDTH)):
            base = index * WIDTH
            low, high = max(first - base, 0), min(end - base, WIDTH)
            tile = self._tile(level, index, high)
            found += [tile[at : at + HASH_BYTES] for at in range(low * HASH_BYTES, high * HASH_BYTES, HASH_BYTES)]
        return found

    def _tile(self, level: int, index: int, width: int) -> bytes:
        """A tile of at least `width` hashes."""
        tile = self._tiles.get((level, index), b"")
        if len(tile) < width * HASH_BYTES:
            tile = self._read(level, index)
            if len(tile) < width * HASH_BYTES:
                raise TileMissing(level, index)
            if len(self._tiles) >= _CACHED:
                del self._tiles[next(iter(self._tiles))]
            self._tiles[level, index] = tile
        return tile


class Builder:
    """The tiles of a growing tree. Holds only the last, partial tile of each level: `edge`, level -> its hashes."""

    def __init__(self, size: int = 0, edge: Mapping[int, bytes] | None = None) -> None:
        """Raises ValueError unless `edge` is what a tree of `size` leaves has: no level more, none less."""
        self.size = size
        self.edge = {level: tile for level, tile in (edge or {}).items() if tile}
        if size < 0 or {level: len(tile) for level, tile in self.edge.items()} != _edge_bytes(size):
            raise ValueError("the tiles are not the edge of a tree of this size")

    def extend(self, leaves: Sequence[bytes]) -> dict[tuple[int, int], bytes]:
        """Add leaves. Returns each tile that changed, (level, index) -> its whole content so far.

        Raises ValueError, and adds none, unless each leaf is 32 bytes.
        """
        if not {HASH_BYTES}.issuperset(map(len, leaves)):
            raise ValueError("a leaf is not 32 bytes")
        changed: dict[tuple[int, int], bytes] = {}
        level, before, fresh = 0, self.size, leaves
        while fresh:  # the hashes that this level gets
            data = self.edge.pop(level, b"") + b"".join(fresh)
            above = []
            for index, start in enumerate(range(0, len(data), _TILE_BYTES), before // WIDTH):
                tile = data[start : start + _TILE_BYTES]
                changed[level, index] = tile
                if len(tile) == _TILE_BYTES:
                    above.append(_root_of_full(tile))
                else:
                    self.edge[level] = tile
            level, before, fresh = level + 1, before // WIDTH, above
        self.size += len(leaves)
        return changed

    def root(self) -> bytes:
        """The root of the tree so far (RFC 9162, 2.1.1)."""
        rest: list[bytes] = []  # the root of what no hash of this level covers yet, if there is such
        for level in sorted(self.edge):
            tile = self.edge[level]
            rest = [merkle.root([*(tile[at : at + HASH_BYTES] for at in range(0, len(tile), HASH_BYTES)), *rest])]
        return rest[0] if rest else merkle.EMPTY_ROOT


def _edge_bytes(size: int) -> dict[int, int]:
    """How many bytes the partial tile of each level holds; a level without one is left out."""
    found, level = {}, 0
    while size:
        if size % WIDTH:
            found[level] = size % WIDTH * HASH_BYTES
        level, size = level + 1, size // WIDTH
    return found


def _root_of_full(tile: bytes) -> bytes:
    """The root of 256 hashes: two neighbours lie side by side, so that a node is one slice."""
    while len(tile) > HASH_BYTES:
        pair = 2 * HASH_BYTES
        tile = b"".join([sha256(b"\x01" + tile[at : at + pair]).digest() for at in range(0, len(tile), pair)])
    return tile
