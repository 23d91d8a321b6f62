"""Write batches: the bytes that are signed, the chain, and a receipt that holds whole or not at all."""

import copy
from base64 import b64decode, b64encode
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from muniment import batches, merkle

# RFC 8032, 7.1, TEST 1: a public example key, so that the signature below can be made by anybody.
KEY = Ed25519PrivateKey.from_private_bytes(
    bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
)
PUBLIC = KEY.public_key().public_bytes_raw()
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
STATEMENTS = [b'{"record":%d}' % number for number in range(7)]
FIRST = 1230
FIELDS = ("leaf", "signature", "previous", "root")
COUNTS = ("index", "first", "size", "position")

Receipt = dict[str, Any]


def text(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def make_receipt(position: int, statements: list[bytes] = STATEMENTS, first: int = FIRST) -> Receipt:
    leaves = [merkle.leaf_hash(statement) for statement in statements]
    root, paths = merkle.paths(leaves)
    message = batches.message(first, len(leaves), batches.GENESIS, root)
    return {
        "index": first + position,
        "leaf": text(leaves[position]),
        "signature": text(batches.sign(KEY, message)),
        "batch": {
            "first": first,
            "size": len(leaves),
            "previous": text(batches.GENESIS),
            "root": text(root),
            "position": position,
            "path": [text(entry) for entry in paths[position]],
        },
    }


def home(receipt: Receipt, member: str) -> Receipt:
    """The object of the receipt that holds this member."""
    found: Receipt = receipt if member in receipt else receipt["batch"]
    return found


def holds(receipt: Receipt, statement: bytes | None = STATEMENTS[4], public: bytes = PUBLIC) -> bool:
    return batches.verify_receipt(receipt, statement, public)


def test_the_message_is_these_bytes() -> None:
    previous, root = bytes(range(32)), bytes(range(32, 64))
    message = batches.message(0x0102030405060708, 0x0A0B0C0D, previous, root)
    assert message == b"muniment/batch/v1\x00\x01\x02\x03\x04\x05\x06\x07\x08\x0a\x0b\x0c\x0d" + bytes(range(64))
    assert batches.digest(message) == sha256(message).digest()
    assert batches.GENESIS == b"\0" * 32


@pytest.mark.parametrize(
    ("first", "size", "previous", "root"),
    [
        (-1, 1, 32, 32),
        (2**64, 1, 32, 32),
        (2**64 - 1, 2, 32, 32),
        (0, 0, 32, 32),
        (0, -1, 32, 32),
        (0, 2**32, 32, 32),
        (0, 1, 31, 32),
        (0, 1, 33, 32),
        (0, 1, 32, 0),
        (0, 1, 31, 33),
    ],
)
def test_no_message_is_made_of_values_out_of_range(first: int, size: int, previous: int, root: int) -> None:
    with pytest.raises(ValueError):
        batches.message(first, size, bytes(previous), bytes(root))


def test_the_largest_values_fit() -> None:
    assert len(batches.message(2**64 - 1, 1, bytes(32), bytes(32))) == 18 + 8 + 4 + 64
    assert len(batches.message(0, 2**32 - 1, bytes(32), bytes(32))) == 18 + 8 + 4 + 64


def test_a_signature_holds_for_its_message_and_key_alone() -> None:
    message = batches.message(0, 1, batches.GENESIS, bytes(32))
    signature = batches.sign(KEY, message)
    assert batches.verify(PUBLIC, message, signature)
    assert not batches.verify(OTHER, message, signature)
    assert not batches.verify(PUBLIC, message[18:], KEY.sign(message)), "without its domain"
    for bit in range(len(signature) * 8):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        assert not batches.verify(PUBLIC, message, bytes(changed))
    for public, wrong in (
        (b"", signature),
        (PUBLIC[:31], signature),
        (PUBLIC, b""),
        (PUBLIC, signature + b"\0"),
    ):
        assert not batches.verify(public, message, wrong)


def test_a_batch_taken_out_breaks_the_next_one() -> None:
    one = batches.message(0, 3, batches.GENESIS, merkle.root([merkle.leaf_hash(b"1")]))
    two = batches.message(3, 2, batches.digest(one), merkle.root([merkle.leaf_hash(b"2")]))
    three = batches.message(5, 1, batches.digest(two), merkle.root([merkle.leaf_hash(b"3")]))
    forged = batches.message(5, 1, batches.digest(one), merkle.root([merkle.leaf_hash(b"3")]))
    assert not batches.verify(PUBLIC, forged, batches.sign(KEY, three))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_every_record_of_a_batch_has_a_receipt_that_holds(size: int) -> None:
    for position in range(size):
        receipt = make_receipt(position, STATEMENTS[:size])
        assert holds(receipt, STATEMENTS[position])
        assert holds(receipt, None)
        assert not holds(receipt, STATEMENTS[position] + b" ")
        assert not holds(receipt, b"")
        assert not holds(receipt, STATEMENTS[position], OTHER)
        assert not holds(receipt, STATEMENTS[position], b"")


def test_members_of_a_later_version_are_no_obstacle() -> None:
    receipt = make_receipt(4)
    assert holds(receipt | {"later": 1, "batch": receipt["batch"] | {"later": None}})


@pytest.mark.parametrize("member", FIELDS)
def test_every_changed_bit_of_a_receipt_is_refused(member: str) -> None:
    receipt = make_receipt(4)
    right = b64decode(home(receipt, member)[member])
    for bit in range(len(right) * 8):
        changed = bytearray(right)
        changed[bit // 8] ^= 1 << bit % 8
        home(receipt, member)[member] = text(bytes(changed))
        assert not holds(receipt) and not holds(receipt, None)


def test_every_changed_bit_of_a_receipts_path_is_refused() -> None:
    receipt = make_receipt(4)
    for step, entry in enumerate(receipt["batch"]["path"]):
        for bit in range(256):
            changed = bytearray(b64decode(entry))
            changed[bit // 8] ^= 1 << bit % 8
            damaged = copy.deepcopy(receipt)
            damaged["batch"]["path"][step] = text(bytes(changed))
            assert not holds(damaged, None)


@pytest.mark.parametrize("member", COUNTS)
def test_a_changed_count_is_refused(member: str) -> None:
    right = home(make_receipt(4), member)[member]
    for change in (-(2**64), -7, -4, -1, 1, 3, 7, 2**32, 2**64):
        receipt = make_receipt(4)
        home(receipt, member)[member] = right + change
        assert not holds(receipt, None)


def test_a_receipt_moved_along_the_log_or_to_another_place_in_the_batch_is_refused() -> None:
    receipt = make_receipt(4)
    receipt["index"] += 8
    receipt["batch"]["first"] += 8
    assert not holds(receipt)
    receipt = make_receipt(4)
    receipt["index"] += 1
    receipt["batch"]["position"] += 1
    assert not holds(receipt)


ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.0,
    4.0,
    "",
    "A",
    "é",
    "\ud800",
    "AA==",
    "AB==",
    b"",
    [],
    [None],
    {},
    [["A"]],
]


@pytest.mark.parametrize("member", [*FIELDS, *COUNTS, "path", "batch"])
def test_a_malformed_member_is_a_refusal_and_never_an_exception(member: str) -> None:
    for odd in ODD:
        receipt = make_receipt(4)
        home(receipt, member)[member] = odd
        assert not holds(receipt, None), odd
    receipt = make_receipt(4)
    del home(receipt, member)[member]
    assert not holds(receipt, None)


def test_true_is_not_a_count() -> None:
    receipt = make_receipt(1, first=0)
    assert holds(receipt, STATEMENTS[1])
    for member in ("index", "position"):
        damaged = copy.deepcopy(receipt)
        home(damaged, member)[member] = True
        assert not holds(damaged, STATEMENTS[1])


@pytest.mark.parametrize("member", FIELDS)
def test_only_one_spelling_of_base64_is_read(member: str) -> None:
    right = home(make_receipt(4), member)[member]
    digits, padding = right.rstrip("="), "=" * right.count("=")
    stray = digits[:-1] + chr(ord(digits[-1]) + 1) + padding  # decodes to the same bytes
    assert b64decode(stray) == b64decode(right)
    for wrong in (
        stray,
        right + "\n",
        " " + right,
        digits,
        right + "=",
        right[:4] + "\n" + right[4:],
        right + "AAAA",
    ):
        receipt = make_receipt(4)
        home(receipt, member)[member] = wrong
        assert not holds(receipt, None)


def test_a_path_of_another_shape_is_refused() -> None:
    right = make_receipt(4)["batch"]["path"]
    for wrong in (
        right[:-1],
        right[1:],
        right[::-1],
        right + right[:1],
        right * 20,
        [*right[:-1], right[-1][:-4]],
    ):
        receipt = make_receipt(4)
        receipt["batch"]["path"] = wrong
        assert not holds(receipt, None)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=8)
        | st.sampled_from([text(bytes(32))]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*FIELDS, *COUNTS, "path", "batch"]), inner, max_size=8)
        ),
    )
)
@settings(deadline=None)
def test_no_json_makes_the_verifier_raise_or_agree(value: Any) -> None:
    assert not batches.verify_receipt(value if isinstance(value, dict) else {"batch": value}, None, PUBLIC)
