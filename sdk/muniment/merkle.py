"""The Merkle tree of RFC 9162, section 2.1, with SHA-256.

Hashes are 32 bytes. `leaves` are leaf hashes already (see `leaf_hash`), in log order. Proofs are lists of
hashes from the bottom of the tree to its top, as RFC 9162 orders them.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import islice

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()
_CHUNK = 4096  # leaves of a stream that are hashed at a time


def leaf_hash(data: bytes) -> bytes:
    """The hash of one entry: SHA-256(0x00 || data) (RFC 9162, 2.1.1)."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node: SHA-256(0x01 || left || right) (RFC 9162, 2.1.1)."""
    return sha256(b"\x01" + left + right).digest()


def levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """Every node, computed once: the leaves first, the root (alone) last; no level for an empty tree.

    Level k holds ceil(n / 2**k) nodes. A last node without a sibling moves up unchanged, which gives the
    tree of RFC 9162, 2.1.1 (split at the largest power of two below n) from the bottom.
    """
    if not leaves:
        return []
    level = list(leaves)
    tree = [level]
    while len(level) > 1:
        above = [
            sha256(b"\x01" + left + right).digest()  # node_hash, inlined: a third of the time of a batch
            for left, right in zip(level[::2], level[1::2], strict=False)
        ]
        if len(level) % 2:
            above.append(level[-1])
        tree.append(above)
        level = above
    return tree


def root(leaves: Sequence[bytes]) -> bytes:
    """The Merkle tree hash (RFC 9162, 2.1.1); SHA-256 of nothing for the empty tree."""
    return levels(leaves)[-1][0] if leaves else EMPTY_ROOT


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The proof that leaf `index` is in the tree (RFC 9162, 2.1.3.1).

    Raises ValueError when there is no such leaf. For all leaves of one batch `paths` is far cheaper.
    """
    if not 0 <= index < len(leaves):
        raise ValueError("index is outside the tree")
    return _climb(levels(leaves), 0, index)


def paths(leaves: Sequence[bytes]) -> tuple[bytes, list[list[bytes]]]:
    """The root and the inclusion path of every leaf, each node computed once.

    Works downwards: a child's path is its sibling followed by its parent's path.
    """
    if not leaves:
        return EMPTY_ROOT, []
    tree = levels(leaves)
    found: list[list[bytes]] = [[]]
    for level in reversed(tree[:-1]):
        above, found = found, []
        for parent, left, right in zip(above, level[::2], level[1::2], strict=False):
            found.append([right, *parent])
            found.append([left, *parent])
        if len(level) % 2:
            found.append(above[-1])
    return tree[-1][0], found


def consistency_path(leaves: Sequence[bytes], first: int) -> list[bytes]:
    """The proof that the tree of the first `first` leaves is a prefix of this one (RFC 9162, 2.1.4.1).

    Empty when `first` is the whole tree. Raises ValueError unless 1 <= first <= len(leaves): the RFC
    defines no proof from the empty tree, of which every tree is an extension.
    """
    if not 1 <= first <= len(leaves):
        raise ValueError("first is outside the tree")
    if first == len(leaves):
        return []
    height, node = 0, first - 1
    while node & 1:  # up to the largest complete subtree that ends where the first tree ends
        height, node = height + 1, node >> 1
    tree = levels(leaves)
    # When the first tree is that very subtree (a power of two), the verifier has its hash: the first root.
    start = [tree[height][node]] if node else []
    return start + _climb(tree, height, node)


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether `path` leads from `leaf` at `index` to the `root` of a tree of `size` leaves.

    RFC 9162, 2.1.3.2. Never raises on values of the right type; wrong lengths and ranges are False.
    """
    if not 0 <= index < size or not _are_hashes(leaf, root, *path):
        return False
    node, last, found = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return False
        if node & 1 or node == last:
            found = node_hash(sibling, found)
            while not node & 1 and node:  # a node without a sibling moved up unchanged
                node, last = node >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and found == root


def verify_consistency(
    first_size: int, second_size: int, first_root: bytes, second_root: bytes, path: Sequence[bytes]
) -> bool:
    """Whether `path` shows that the second tree begins with the first one (RFC 9162, 2.1.4.2).

    Equal sizes need equal roots and an empty path. A first size of 0 is False: it would prove nothing, and
    whoever starts from nothing has no first root to hold on to. Never raises on values of the right type.
    """
    if not 1 <= first_size <= second_size:
        return False
    if first_size == second_size:  # nothing is hashed, so that the roots need only be the same
        return not path and first_root == second_root
    if not path or not _are_hashes(first_root, second_root, *path):
        return False
    # Step 2 of the RFC: a first tree of 2**k leaves is itself the first node of the path.
    hashes = [first_root, *path] if first_size & (first_size - 1) == 0 else list(path)
    node, last = first_size - 1, second_size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    first, second = hashes[0], hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and first == first_root and second == second_root


def verify_range(
    first: int, leaves: Iterable[bytes], count: int, size: int, path: Sequence[bytes], root: bytes
) -> bool:
    """Whether these are leaves [first, first + count) of the tree of `size` leaves with this `root`.

    `path`: the hashes of the largest subtrees (RFC 9162, 2.1.1) wholly outside the range, left to right; for
    one leaf these are the hashes of its inclusion path. The leaves are read once, in O(log n) memory. An empty
    range is False: it would prove nothing. Never raises on values of the right type.
    """
    end = first + count
    if not 0 <= first < end <= size or not _are_hashes(root, *path):
        return False
    before = first.bit_count()
    if len(path) != before + len(starts_after(end, size)):
        return False
    edge = Frontier(first, path[:before])
    stream = iter(leaves)
    while chunk := list(islice(stream, _CHUNK)):
        if edge.size + len(chunk) > end or not _are_hashes(*chunk):
            return False
        edge.extend(chunk)
    if edge.size != end:
        return False
    hashes, at = edge.hashes, end
    for found in path[before:]:
        bit = at & -at  # the new subtree is the right sibling of the smallest one so far
        while at & bit:
            found = node_hash(hashes.pop(), found)
            at, bit = at - bit, bit << 1
        hashes.append(found)
        at += bit
    return fold(hashes) == root


def starts_after(end: int, size: int) -> list[int]:
    """Where the largest subtrees of a tree of `size` leaves begin that hold only leaves from `end` (> 0) on.

    Each reaches to where the next one begins, the last one to `size`.
    """
    starts = []
    while end < size:
        starts.append(end)
        end += end & -end
    return starts


def fold(hashes: Sequence[bytes]) -> bytes:
    """The root over subtrees of falling size, at least one: the smallest two are joined first."""
    found = hashes[-1]
    for left in reversed(hashes[:-1]):
        found = node_hash(left, found)
    return found


class Frontier:
    """The right edge of a growing tree: all that is needed to add leaves and to know the root.

    `hashes` holds the roots of the complete subtrees that the leaves divide into, largest (leftmost) first:
    one for each bit that is set in `size`.
    """

    __slots__ = ("hashes", "size")

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """Raises ValueError unless there is one hash of 32 bytes for each bit of a `size` >= 0."""
        if size < 0 or len(hashes) != size.bit_count() or not _are_hashes(*hashes):
            raise ValueError("the hashes are not the edge of a tree of this size")
        self.size = size
        self.hashes = list(hashes)

    def append(self, leaf: bytes) -> None:
        """Add one leaf. Raises ValueError unless it is 32 bytes."""
        self.extend((leaf,))

    def extend(self, leaves: Sequence[bytes]) -> None:
        """Add leaves, level by level. Raises ValueError, and adds none, unless each is 32 bytes."""
        if not _are_hashes(*leaves):
            raise ValueError("a leaf is not 32 bytes")
        level, before, kept = list(leaves), self.size, []
        while level:
            if before & 1:  # a subtree of this height still waits for its right sibling
                level.insert(0, self.hashes.pop())
            if len(level) % 2:
                kept.append(level[-1])
            level = [
                sha256(b"\x01" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)
            ]
            before >>= 1
        self.hashes += reversed(kept)
        self.size += len(leaves)

    def root(self) -> bytes:
        """The root of the tree so far (RFC 9162, 2.1.1)."""
        return fold(self.hashes) if self.hashes else EMPTY_ROOT

    def copy(self) -> "Frontier":
        """Another frontier of the same leaves, which grows on its own."""
        return Frontier(self.size, self.hashes)


def _climb(tree: list[list[bytes]], height: int, node: int) -> list[bytes]:
    """The siblings on the way from a node to the root; a node that moved up unchanged has none."""
    path = []
    for level in tree[height:-1]:
        if (node ^ 1) < len(level):
            path.append(level[node ^ 1])
        node >>= 1
    return path


def _are_hashes(*hashes: bytes) -> bool:
    return {HASH_BYTES}.issuperset(map(len, hashes))
