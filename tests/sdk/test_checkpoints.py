"""Checkpoints: what is one, who may sign it, and what spoils it."""

from base64 import b64encode
from contextlib import suppress
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from muniment import checkpoints, merkle, notes
from muniment.checkpoints import Checkpoint, CheckpointError, CheckpointUntrusted
from muniment.notes import COSIGNATURE, ED25519, Key, Note

PRIVATE, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
PUBLIC, OTHER_PUBLIC = (key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw) for key in (PRIVATE, OTHER))
ORIGIN = "log.example/log"
KEY, OTHER_KEY = Key(ORIGIN, ED25519, PUBLIC), Key(ORIGIN, ED25519, OTHER_PUBLIC)
ROOT = merkle.leaf_hash(b"root")
CHECKPOINT = Checkpoint(ORIGIN, 7, ROOT)
B64 = b64encode(ROOT).decode()


def test_the_text_is_that_of_the_specification() -> None:
    text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    checkpoint = Checkpoint.parse(text)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20_852_163)
    assert checkpoint.root.hex().startswith("0ac5186a9186")
    assert checkpoint.text == text


@given(st.integers(0, checkpoints.MAX_SIZE), st.binary(min_size=32, max_size=32))
def test_every_checkpoint_is_read_back(size: int, root: bytes) -> None:
    checkpoint = Checkpoint(ORIGIN, size, root if size else merkle.EMPTY_ROOT)
    assert Checkpoint.parse(checkpoint.text) == checkpoint
    assert checkpoints.read(checkpoints.sign(checkpoint, PRIVATE), [KEY]) == checkpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n\n",
        f"{ORIGIN}\n7\n{B64}",
        f"{ORIGIN}\n7\n",
        f"{ORIGIN}\n7\n{B64}\nextension\n",
        f"{ORIGIN}\n7\n{B64}\n\n",
        f"\n7\n{B64}\n",
        f"a\tb\n7\n{B64}\n",
        f"{ORIGIN}\n07\n{B64}\n",
        f"{ORIGIN}\n+7\n{B64}\n",
        f"{ORIGIN}\n-7\n{B64}\n",
        f"{ORIGIN}\n 7\n{B64}\n",
        f"{ORIGIN}\n7 \n{B64}\n",
        f"{ORIGIN}\n7_0\n{B64}\n",
        f"{ORIGIN}\n٧\n{B64}\n",
        f"{ORIGIN}\n{2**63}\n{B64}\n",
        f"{ORIGIN}\n{'9' * 5000}\n{B64}\n",
        f"{ORIGIN}\n\n{B64}\n",
        f"{ORIGIN}\n0\n{B64}\n",
        f"{ORIGIN}\n7\n{B64[:-1]}\n",
        f"{ORIGIN}\n7\n{B64}=\n",
        f"{ORIGIN}\n7\n{b64encode(ROOT[1:]).decode()}\n",
        f"{ORIGIN}\n7\n{B64[:-2]}{chr(ord(B64[-2]) + 1)}=\n",
        f"{ORIGIN}\n7\n{B64.replace('=', '')}\n",
        f"{ORIGIN}\n7\n{ROOT.hex()}\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError):
        Checkpoint.parse(text)


@given(st.text(max_size=60) | st.builds("{}\n{}\n{}\n".format, st.text(max_size=9), st.text(max_size=9), st.just(B64)))
def test_no_text_breaks_the_reader(text: str) -> None:
    with suppress(CheckpointError):
        assert Checkpoint.parse(text).text == text
    with pytest.raises(CheckpointError):
        checkpoints.read(text, [KEY])


@pytest.mark.parametrize(
    ("origin", "size", "root"),
    [("", 7, ROOT), ("a\nb", 7, ROOT), (ORIGIN, -1, ROOT), (ORIGIN, 2**63, ROOT), (ORIGIN, 7, b""), (ORIGIN, 0, ROOT)],
)
def test_a_checkpoint_that_cannot_be_is_not_made(origin: str, size: int, root: bytes) -> None:
    with pytest.raises(CheckpointError):
        Checkpoint(origin, size, root)


@pytest.mark.parametrize("origin", ["a b", "a+b", "\ud800"])
def test_an_origin_that_is_no_key_name_cannot_sign(origin: str) -> None:
    with pytest.raises(CheckpointError):
        checkpoints.sign(Checkpoint(origin, 7, ROOT), PRIVATE)


def test_the_signed_note_is_the_same_each_time_and_names_the_origin_as_its_key() -> None:
    note = checkpoints.sign(CHECKPOINT, PRIVATE)
    assert note == checkpoints.sign(CHECKPOINT, PRIVATE)
    assert note.startswith(CHECKPOINT.text + f"\n— {ORIGIN} ")
    assert notes.verify(Note.parse(note), KEY)


def test_any_of_the_given_keys_may_have_signed_and_others_are_ignored() -> None:
    note = Note.parse(checkpoints.sign(CHECKPOINT, PRIVATE))
    witness = notes.cosign(note.text, "witness.example/w", OTHER, 1)
    stranger = notes.sign(note.text, "stranger.example", OTHER)
    crowd = replace(note, signatures=(witness, stranger, *note.signatures)).encode()
    assert checkpoints.read(crowd, [OTHER_KEY, KEY]) == CHECKPOINT
    assert checkpoints.read(crowd, iter([KEY])) == CHECKPOINT


def test_a_checkpoint_without_a_trusted_signature_is_not_believed() -> None:
    note = checkpoints.sign(CHECKPOINT, PRIVATE)
    of_other_name = Key("log.example/log/2", ED25519, PUBLIC)
    for keys in ([], [OTHER_KEY], [of_other_name], [Key(ORIGIN, COSIGNATURE, PUBLIC)]):
        with pytest.raises(CheckpointUntrusted):
            checkpoints.read(note, keys)


def test_a_witness_of_the_logs_name_does_not_sign_for_the_log() -> None:
    text = CHECKPOINT.text
    note = Note(text, (notes.cosign(text, ORIGIN, PRIVATE, 5),)).encode()
    with pytest.raises(CheckpointUntrusted):
        checkpoints.read(note, [Key(ORIGIN, COSIGNATURE, PUBLIC), KEY])


def test_a_signature_by_a_trusted_key_over_another_origin_is_not_believed() -> None:
    text = replace(CHECKPOINT, origin="other.example/log").text
    note = Note(text, (notes.sign(text, ORIGIN, PRIVATE),)).encode()
    for name in (ORIGIN, "other.example/log"):
        with pytest.raises(CheckpointUntrusted):
            checkpoints.read(note, [Key(name, ED25519, PUBLIC)])


def test_one_bad_signature_by_a_trusted_key_spoils_the_note() -> None:
    note = Note.parse(checkpoints.sign(CHECKPOINT, PRIVATE))
    bad = notes.Signature(ORIGIN, OTHER_KEY.id, bytes(64))
    spoilt = replace(note, signatures=(*note.signatures, bad)).encode()
    assert checkpoints.read(spoilt, [KEY]) == CHECKPOINT, "the other key is not known"
    with pytest.raises(CheckpointError, match="does not hold"):
        checkpoints.read(spoilt, [KEY, OTHER_KEY])


def test_every_change_of_a_signed_checkpoint_is_refused() -> None:
    note = checkpoints.sign(CHECKPOINT, PRIVATE)
    for position, character in enumerate(note):
        for other in {chr(ord(character) ^ 1), "", character * 2} - {character}:
            with pytest.raises(CheckpointError):
                checkpoints.read(note[:position] + other + note[position + 1 :], [KEY])
