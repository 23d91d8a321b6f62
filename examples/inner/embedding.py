"""Texts as vectors, so that memories are found by what they are about.

The one here is small, local and good enough to show how it works: words, parts of words, and a few dozen words for
feelings, hashed into a vector. A real model takes its place as any function from text to `DIMENSIONS` numbers.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

DIMENSIONS = 256
ROUNDS = 3
Vector = list[float]
Embedding = Callable[[str], Vector]

FEELINGS = {
    "sorrow": "sad sorrow grief grieve mourn cry cried tears funeral loss lost miss died death lonely alone",
    "joy": "joy happy happiness glad delight laugh laughed smile celebrate wedding birthday proud won",
    "fear": "fear afraid scared anxious anxiety panic worry worried nervous dread exam hospital",
    "anger": "anger angry furious rage shout shouted argue argued quarrel fight unfair betrayed",
    "love": "love loved tender hug hugged kiss together friend friendship partner daughter son mother father",
    "calm": "calm quiet peace peaceful rest sea beach forest mountain walk silence breathe",
    "shame": "shame ashamed guilt guilty embarrassed regret sorry apologise apology forgive",
    "hope": "hope hopeful begin began new future plan dream dreamed birth born",
}
_CONCEPTS = {word: name for name, words in FEELINGS.items() for word in words.split()}
_WORD = re.compile(r"[^\W\d_]+")
_ENDINGS = ("ing", "ed", "ly", "es", "s")


def embed(text: str) -> Vector:
    """A unit vector; texts that share words, stems or feelings point the same way. Zero for a text without words."""
    vector = [0.0] * DIMENSIONS
    for name, weight in _features(text):
        digest = int.from_bytes(blake2b(name.encode(), digest_size=8).digest())
        vector[digest % DIMENSIONS] += weight if digest >> 63 else -weight
    length = math.sqrt(sum(part * part for part in vector))
    return [part / length for part in vector] if length else vector


def _features(text: str) -> Iterable[tuple[str, float]]:
    for word in _WORD.findall(text.casefold()):
        stem = next((word[: -len(end)] for end in _ENDINGS if word.endswith(end) and len(word) - len(end) > 2), word)
        yield f"stem {stem}", 1.0
        if concept := _CONCEPTS.get(word) or _CONCEPTS.get(stem):
            yield f"feeling {concept}", 1.5
        for start in range(len(word) - 3):
            yield f"part {word[start : start + 4]}", 0.3


def keyed(key: bytes, vector: Sequence[float]) -> Vector:
    """The vector turned by a rotation that only the key (32 bytes) knows. Angles between vectors of one key stay, so
    that a database can compare them; what they are about can't be read from it without the key. (Who knows the texts
    of many of a user's vectors could work the rotation out; it hides them from who has only the table.)"""
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()
    turned = list(vector)
    for _ in range(ROUNDS):
        noise = stream.update(bytes(8 * DIMENSIONS))
        words = [int.from_bytes(noise[at : at + 8]) for at in range(0, len(noise), 8)]
        # In an order, and with signs, that the key says; then each number is spread over all places.
        order = sorted(range(DIMENSIONS), key=words.__getitem__)
        turned = _spread([turned[place] if words[place] & 1 else -turned[place] for place in order])
    return turned


def _spread(vector: Vector) -> Vector:
    """The Walsh-Hadamard transform, which is a rotation; its length is a power of two."""
    step = 1
    while step < len(vector):
        for start in range(0, len(vector), 2 * step):
            for at in range(start, start + step):
                vector[at], vector[at + step] = vector[at] + vector[at + step], vector[at] - vector[at + step]
        step *= 2
    scale = 1 / math.sqrt(len(vector))
    return [part * scale for part in vector]


def as_text(vector: Sequence[float]) -> str:
    """As pgvector reads it."""
    return f"[{','.join(f'{part:.6g}' for part in vector)}]"
