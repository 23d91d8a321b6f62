"""Proofs in one text (C2SP tlog-proof): read back, and refused for every change."""

from base64 import b64encode
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from muniment import checkpoints, merkle, proofs
from muniment.checkpoints import Checkpoint
from muniment.notes import ED25519, Key
from muniment.proofs import Proof, ProofError

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
PUBLIC = PRIVATE.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
ORIGIN = "log.example/log"
KEY = Key(ORIGIN, ED25519, PUBLIC)
LEAVES = [merkle.leaf_hash(b"record %d" % number) for number in range(70)]


def proof_of(index: int, size: int, extra: bytes | None = None) -> Proof:
    note = checkpoints.sign(Checkpoint(ORIGIN, size, merkle.root(LEAVES[:size])), PRIVATE)
    return Proof(index, tuple(merkle.inclusion_path(LEAVES[:size], index)), note, extra)


PROOF = proof_of(2, 7)
TEXT = PROOF.encode()
HASH = b64encode(LEAVES[0]).decode()


def test_the_text_has_the_lines_of_the_specification() -> None:
    lines = proof_of(2, 7, b"more").encode().split("\n")
    path = [b64encode(entry).decode() for entry in PROOF.path]
    assert lines[:3] == ["c2sp.org/tlog-proof@v1", "extra bW9yZQ==", "index 2"]
    assert lines[3:7] == [*path, ""]
    assert "\n".join(lines[7:]) == PROOF.checkpoint
    assert TEXT.split("\n")[1] == "index 2"


@given(size=st.integers(1, 70), data=st.data(), extra=st.none() | st.binary(max_size=40))
@settings(deadline=None, max_examples=50)
def test_every_proof_is_read_back_and_holds_for_its_leaf_alone(
    size: int, data: st.DataObject, extra: bytes | None
) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = proof_of(index, size, extra)
    assert Proof.parse(proof.encode()) == proof
    assert proofs.verify(proof, LEAVES[index], [KEY]) == Checkpoint(ORIGIN, size, merkle.root(LEAVES[:size]))
    with pytest.raises(ProofError):
        proofs.verify(proof, LEAVES[index - 1] if size > 1 else merkle.leaf_hash(b""), [KEY])


def test_every_change_of_a_proof_is_refused() -> None:
    """Every character replaced, dropped or doubled: the text is no proof any more, or one that does not hold."""
    for position, character in enumerate(TEXT):
        for other in {chr(ord(character) ^ 1), "", character * 2} - {character}:
            with pytest.raises(ProofError):
                proofs.verify(Proof.parse(TEXT[:position] + other + TEXT[position + 1 :]), LEAVES[2], [KEY])


def test_every_changed_bit_of_leaf_or_path_is_refused() -> None:
    for bit in range(256):
        flip = (1 << bit).to_bytes(32, "big")

        def changed(data: bytes, flip: bytes = flip) -> bytes:
            return bytes(one ^ other for one, other in zip(data, flip, strict=True))

        with pytest.raises(ProofError):
            proofs.verify(PROOF, changed(LEAVES[2]), [KEY])
        for step, entry in enumerate(PROOF.path):
            path = (*PROOF.path[:step], changed(entry), *PROOF.path[step + 1 :])
            with pytest.raises(ProofError):
                proofs.verify(replace(PROOF, path=path), LEAVES[2], [KEY])


@pytest.mark.parametrize(
    "wrong",
    [
        replace(PROOF, index=7),
        replace(PROOF, index=3),
        replace(PROOF, index=-1),
        replace(PROOF, path=PROOF.path[:-1]),
        replace(PROOF, path=(*PROOF.path, LEAVES[0])),
        replace(PROOF, checkpoint=proof_of(2, 6).checkpoint),
        replace(PROOF, checkpoint=PROOF.checkpoint.replace("\n7\n", "\n8\n")),
        replace(PROOF, checkpoint="nothing"),
    ],
)
def test_a_proof_that_does_not_hold_says_so(wrong: Proof) -> None:
    with pytest.raises(ProofError):
        proofs.verify(wrong, LEAVES[2], [KEY])


def test_a_proof_holds_only_for_a_trusted_log() -> None:
    other = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    for keys in ([], [Key(ORIGIN, ED25519, other)], [Key("other.example/log", ED25519, PUBLIC)]):
        with pytest.raises(ProofError, match="trusted"):
            proofs.verify(PROOF, LEAVES[2], keys)


def test_the_leaf_is_a_hash_not_the_statement() -> None:
    with pytest.raises(ProofError):
        proofs.verify(PROOF, b"record 2", [KEY])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        TEXT.replace("@v1", "@v2"),
        TEXT.replace("index 2\n", ""),
        TEXT.replace("index 2", "index 02"),
        TEXT.replace("index 2", "index -2"),
        TEXT.replace("index 2", "index 2 "),
        TEXT.replace("index 2", "index ٢"),
        TEXT.replace("index 2", "index " + "9" * 5000),
        TEXT.replace("index 2", "index 2\nindex 2"),
        TEXT.replace("index 2", "index 2\nextra AA=="),
        TEXT.replace("index 2", "extra AA==\nextra AA==\nindex 2"),
        TEXT.replace("index 2", "extra AB==\nindex 2"),
        TEXT.replace("index 2", "extra\nindex 2"),
        TEXT.replace("index 2", "index 2\nAAAA"),
        TEXT.replace("index 2", "index 2\r"),
        TEXT.replace("index 2", "index 2" + f"\n{HASH}" * 64),
        TEXT.replace("index 2", f"extra {b64encode(bytes(proofs.MAX_EXTRA + 1)).decode()}\nindex 2"),
        TEXT.replace("\n\n", "\n"),
        TEXT[: TEXT.index("\n\n")],
        TEXT[: TEXT.index("\n\n") + 2],
        "\n" + TEXT,
        TEXT + "x" * 1_000_000,
    ],
    ids=range(23),
)
def test_what_is_no_proof_is_refused(text: str) -> None:
    with pytest.raises(ProofError):
        Proof.parse(text)


@given(st.text(max_size=80) | st.builds("c2sp.org/tlog-proof@v1\n{}\n\n{}".format, st.text(max_size=40), st.text()))
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        proof = Proof.parse(text)
    except ProofError:
        return
    assert proof.encode() == text
    with pytest.raises(ProofError):
        proofs.verify(proof, LEAVES[2], [KEY])


def test_the_most_that_is_allowed_is_read_back() -> None:
    proof = replace(PROOF, path=(LEAVES[0],) * proofs.MAX_PATH, extra=bytes(proofs.MAX_EXTRA))
    assert Proof.parse(proof.encode()) == proof
