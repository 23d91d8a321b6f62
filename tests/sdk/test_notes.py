"""Signed notes and cosignatures: vectors of others, what is refused, and that no input breaks the parser."""

from base64 import b64decode, b64encode
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from muniment import notes
from muniment.notes import COSIGNATURE, ED25519, Key, Note, NoteError, Signature

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = PRIVATE.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
TEXT = "log.example/log\n3\nsome text\n"
KEY, WITNESS = Key("log.example/log", ED25519, PUBLIC), Key("witness.example/w", COSIGNATURE, PUBLIC)
AT = 1_795_500_000

# golang.org/x/mod, sumdb/note: its example of a signed note, with the signer's key.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_SEED = b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
PETER_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
)

# C2SP signed-note: its example of a key and a signature.
FOO = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
FOO_NOTE = """This is an example message.

— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=
"""

# A checkpoint of a public log, cosigned by public witnesses.
ARCHE = "arche2025h1.staging.ct.transparency.dev+ba2f06c0+AU0vHmlGCS/PdN8b2OaGmKprLI8HKM+dJ472xgFYh15f"
REMORA = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2"
STAGEMOLE = "witness.stagemole.eu+67f7aea0+BEqSG3yu9YrmcM3BHvQYTxwFj3uSWakQepafafpUqklv"
PUBLIC_NOTE = """arche2025h1.staging.ct.transparency.dev
1432088532
U7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=

— arche2025h1.staging.ct.transparency.dev zTM8sQAAAZ5W0WdjBAMARjBEAiBjW5IQf9pvsYLfQFX6hoGREPMHbdQ3urbllzalApkptQIgIpwtEroeW2BXaHAI4kJXFbon5Ch9MNL5zRNZ55lvGt0=
— arche2025h1.staging.ct.transparency.dev ui8GwCF1+kWqZrxGdhj4aX3gcw7XUlXQQabg/27lefwhUkzbC3NygNI75MdhL1bfTW9g8Ei59RA23oHP7Ry1k3ZFWwQ=
— remora.n621.de 2net5wAAAABqEiEgPlfF3V06o0Y+fHM+J5J9s27wgxxcOVSpZ/2g/KSiXCg9DEZI+aVCIobWX9sXTynk5XeU/zZ0WBxtqB0DrAWfBw==
— witness.stagemole.eu Z/euoAAAAABqEiEgw0i+7g2ENfDAWHmtRzCfKTHSDwYDJA2NmKeGi9Y8FtEyOUvVr+AJmIY/2TUFucgKi7lI7cUiOvKFYe/TmN9DAg==
"""  # noqa: E501


def noted(*signatures: Signature, text: str = TEXT) -> Note:
    return Note(text, signatures)


def test_the_note_of_go_is_read_verified_and_made_byte_for_byte() -> None:
    whole = f"{PETER_TEXT}\n{PETER_LINE}\n"
    note, key = Note.parse(whole), Key.parse(PETER)
    assert (note.text, key.name, key.algorithm, key.id.hex()) == (PETER_TEXT, "PeterNeumann", ED25519, "c74f20a3")
    assert notes.verify(note, key)
    assert not notes.verify(replace(note, text=PETER_TEXT.replace("answer", "Answer")), key)
    private = Ed25519PrivateKey.from_private_bytes(PETER_SEED)
    assert noted(notes.sign(PETER_TEXT, "PeterNeumann", private), text=PETER_TEXT).encode() == whole


def test_the_example_of_the_specification_verifies() -> None:
    key, note = Key.parse(FOO), Note.parse(FOO_NOTE)
    assert notes.verify(note, key)
    assert key.vkey == FOO
    assert note.encode() == FOO_NOTE


def test_a_public_logs_checkpoint_and_its_cosignatures_verify_and_unknown_signatures_are_ignored() -> None:
    note = Note.parse(PUBLIC_NOTE)
    assert notes.verify(note, Key.parse(ARCHE))
    for vkey in (REMORA, STAGEMOLE):
        assert notes.verify(note, Key.parse(vkey))
        assert notes.cosigned_at(note, Key.parse(vkey)) == 0x6A122120
    changed = replace(note, text=note.text.replace("1432088532", "1432088533"))
    assert not any(notes.verify(changed, Key.parse(vkey)) for vkey in (ARCHE, REMORA, STAGEMOLE))
    assert note.encode() == PUBLIC_NOTE


def test_the_ids_of_keys_tell_name_and_algorithm_apart() -> None:
    keys = [KEY, replace(KEY, algorithm=COSIGNATURE), replace(KEY, name="log.example/log/2")]
    assert len({key.id for key in keys}) == 3
    for key in keys:
        assert Key.parse(key.vkey) == key


def test_a_cosignature_is_of_its_time_and_text_and_no_plain_signature() -> None:
    note = noted(notes.sign(TEXT, KEY.name, PRIVATE), notes.cosign(TEXT, WITNESS.name, PRIVATE, AT))
    assert Note.parse(note.encode()) == note
    assert notes.verify(note, KEY)
    assert notes.verify(note, WITNESS)
    assert (notes.cosigned_at(note, WITNESS), notes.cosigned_at(note, KEY)) == (AT, None)
    cosignature = note.signatures[1]
    assert cosignature.data[:8] == AT.to_bytes(8, "big")
    later = replace(cosignature, data=(AT + 1).to_bytes(8, "big") + cosignature.data[8:])
    assert notes.cosigned_at(noted(later), WITNESS) is None
    assert notes.cosigned_at(replace(note, text=TEXT + "more\n"), WITNESS) is None
    plain = replace(WITNESS, algorithm=ED25519)
    assert not notes.verify(noted(replace(cosignature, key_id=plain.id)), plain)


def test_the_latest_of_several_cosignatures_counts_and_one_bad_one_spoils_them() -> None:
    first, second = (notes.cosign(TEXT, WITNESS.name, PRIVATE, AT + seconds) for seconds in (0, 9))
    assert notes.cosigned_at(noted(second, first), WITNESS) == AT + 9
    assert notes.cosigned_at(noted(second, replace(first, data=first.data[:-1] + b"\0")), WITNESS) is None


@pytest.mark.parametrize("at", [0, -1, 2**63])
def test_a_cosignature_of_an_impossible_time_is_neither_made_nor_believed(at: int) -> None:
    with pytest.raises(NoteError):
        notes.cosign(TEXT, WITNESS.name, PRIVATE, at)
    if at >= 0:
        data = at.to_bytes(8, "big") + PRIVATE.sign(f"cosignature/v1\ntime {at}\n{TEXT}".encode())
        assert not notes.verify(noted(Signature(WITNESS.name, WITNESS.id, data)), WITNESS)


def test_a_key_fails_when_any_signature_of_its_name_and_id_fails() -> None:
    good = notes.sign(TEXT, KEY.name, PRIVATE)
    bad = replace(good, data=bytes(64))
    assert notes.verify(noted(good, good), KEY)
    for signatures in ([good, bad], [bad, good], [bad], [], [replace(good, data=b"short")]):
        assert not notes.verify(noted(*signatures), KEY)
    foreign = [replace(bad, key_id=b"\0\0\0\0"), replace(bad, name="other.example")]
    assert notes.verify(noted(*foreign, good), KEY), "of others, with the name or the id alone"


def test_every_changed_bit_of_a_signature_is_refused() -> None:
    for signature, key in (
        (notes.sign(TEXT, KEY.name, PRIVATE), KEY),
        (notes.cosign(TEXT, WITNESS.name, PRIVATE, AT), WITNESS),
    ):
        for bit in range(len(signature.data) * 8):
            changed = bytearray(signature.data)
            changed[bit // 8] ^= 1 << bit % 8
            assert not notes.verify(noted(replace(signature, data=bytes(changed))), key)


LINE = notes.sign(TEXT, KEY.name, PRIVATE).line


def test_the_text_may_hold_empty_lines_and_ends_at_the_last_one() -> None:
    assert Note.parse(f"one\n\ntwo\n\n\n{LINE}\n").text == "one\n\ntwo\n\n"
    assert Note.parse(f"\n\n{LINE}\n").text == "\n"


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n",
        "\n\n",
        TEXT,
        f"{TEXT}\n",
        f"{TEXT}\n{LINE}",
        f"{TEXT}{LINE}\n",
        f"{TEXT}\n{LINE}\n\n",
        f"{TEXT}\n{LINE}\nno signature\n",
        f"{TEXT}\r\n{LINE}\n",
        f"\t{TEXT}\n{LINE}\n",
        f"\0{TEXT}\n{LINE}\n",
        f"\ud800{TEXT}\n{LINE}\n",
        f"{TEXT}\n{LINE}\r\n",
        f"{TEXT}\n {LINE}\n",
        f"{TEXT}\n{LINE} \n",
        f"{TEXT}\n{LINE.replace('— ', '- ')}\n",
        f"{TEXT}\n{LINE.replace('— ', '—')}\n",
        f"{TEXT}\n{LINE.replace('— ', '—  ')}\n",
        f"{TEXT}\n{LINE.replace('log.', 'l+g.')}\n",
        f"{TEXT}\n— a\u00a0b {LINE.split()[-1]}\n",
        f"{TEXT}\n{LINE}=\n",
        f"{TEXT}\n{LINE[:-1]}\n",
        f"{TEXT}\n— name AAAA\n",
        f"{TEXT}\n— name AAAAAA==\n",
        f"{TEXT}\n— name AAAAAAB=\n",
        f"{TEXT}\n— name AAAA-AA=\n",
        f"{TEXT}\n— name \n",
        f"{TEXT}\n— name\n",
        f"{TEXT}\n— \n",
    ],
)
def test_what_is_no_note_is_refused(note: str) -> None:
    with pytest.raises(NoteError):
        Note.parse(note)


def test_a_note_is_bounded_in_bytes_and_signatures() -> None:
    def sized(count: int, signatures: int = 1) -> str:
        lines = f"{LINE}\n" * signatures
        return "x" * (count - len(f"\n\n{lines}".encode())) + f"\n\n{lines}"

    assert len(Note.parse(sized(notes.MAX_BYTES)).text) > 60_000
    assert len(Note.parse(sized(40_000, notes.MAX_SIGNATURES)).signatures) == notes.MAX_SIGNATURES
    for note in (sized(notes.MAX_BYTES + 1), sized(40_000, notes.MAX_SIGNATURES + 1), "é" * 40_000 + f"\n\n{LINE}\n"):
        with pytest.raises(NoteError):
            Note.parse(note)


@given(st.text(alphabet="— \nab+=\u0085\u2028", max_size=60) | st.text(max_size=60))
def test_a_note_is_read_back_as_it_was_written_or_refused(text: str) -> None:
    for candidate in (text, f"{text}\n\n{LINE}\n"):
        try:
            note = Note.parse(candidate)
        except NoteError:
            continue
        assert note.encode() == candidate
        notes.verify(note, KEY)


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "+",
        "++",
        "name",
        PETER[1:],
        PETER[:-1],
        PETER + "=",
        PETER + "\n",
        PETER.replace("c74f20a3", "C74F20A3"),
        PETER.replace("c74f20a3", "c74f20a"),
        PETER.replace("c74f20a3", "c74f20a4"),
        PETER.replace("Peter", "Peter "),
        PETER.replace("PeterNeumann", ""),
        PETER.replace("+ARpc", "+BRpc"),
        "\ud800" + PETER,
        "PeterNeumann+c74f20a3+",
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
    ],
)
def test_what_is_no_key_is_refused(vkey: str) -> None:
    with pytest.raises(NoteError):
        Key.parse(vkey)


def test_a_part_of_a_key_is_no_key() -> None:
    for start in range(len(PETER)):
        for end in range(start + 1, len(PETER) + 1):
            if end - start < len(PETER):
                with pytest.raises(NoteError):
                    Key.parse(PETER[start:end])


@given(st.text(max_size=80) | st.builds("a+{}+{}".format, st.just("00000000"), st.text(max_size=60)))
def test_no_text_breaks_the_reading_of_keys(text: str) -> None:
    try:
        key = Key.parse(text)
    except NoteError:
        return
    assert key.vkey == text


@pytest.mark.parametrize("text", ["", "no newline", "a\tb\n", "a\r\n", "\ud800\n"])
def test_a_text_that_no_note_can_hold_is_not_signed(text: str) -> None:
    with pytest.raises(NoteError):
        notes.sign(text, KEY.name, PRIVATE)
    with pytest.raises(NoteError):
        notes.cosign(text, KEY.name, PRIVATE, AT)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u2003b", "a\x01b", "\ud800"])
def test_a_name_that_no_key_can_have_is_not_signed_with(name: str) -> None:
    with pytest.raises(NoteError):
        notes.sign(TEXT, name, PRIVATE)
    with pytest.raises(NoteError):
        Key(name, ED25519, PUBLIC)


def test_a_key_of_another_kind_is_refused() -> None:
    for algorithm, public in ((2, PUBLIC), (6, PUBLIC), (ED25519, PUBLIC[1:]), (COSIGNATURE, PUBLIC + b"\0")):
        with pytest.raises(NoteError):
            Key("a.example", algorithm, public)


def test_an_error_never_repeats_what_was_given() -> None:
    for given_text in ("hunter2", f"hunter2\n\n— hunter2 {b64encode(b'x').decode()}\n"):
        with pytest.raises(NoteError) as caught:
            Note.parse(given_text)
        assert "hunter2" not in str(caught.value)
