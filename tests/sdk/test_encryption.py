"""What is encrypted for a user, a row and a field is readable so and in no other way."""

import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muniment import Misconfigured
from muniment.encryption import Undecryptable, Vault

ROOT = bytes(range(32))


class Store(dict[str, bytes]):
    """Wrapped keys in memory."""

    def add(self, uid: str, wrapped: bytes) -> bytes:
        return self.setdefault(uid, wrapped)

    def replace(self, uid: str, wrapped: bytes) -> None:
        self[uid] = wrapped

    def delete(self, uid: str) -> None:
        self.pop(uid, None)


@pytest.fixture(params=["derived", "wrapped"])
def vault(request: pytest.FixtureRequest) -> Vault:
    return Vault(ROOT, Store() if request.param == "wrapped" else None)


words = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)


@given(uid=words, row=words, field=words, plain=st.binary(max_size=200))
def test_it_comes_back(uid: str, row: str, field: str, plain: bytes) -> None:
    for vault in (Vault(ROOT), Vault(ROOT, Store())):
        stored = vault.encrypt(uid, row, plain, field)
        assert vault.decrypt(uid, row, stored, field) == plain
        assert len(stored) == len(plain) + 37 and (len(plain) < 4 or plain not in stored)


@given(place=st.integers(min_value=0, max_value=50), flip=st.integers(min_value=1, max_value=255))
def test_an_altered_byte_anywhere_is_found(place: int, flip: int) -> None:
    vault = Vault(ROOT)
    stored = bytearray(vault.encrypt("usr_a", "1", b"fourteen bytes"))
    stored[place] ^= flip
    with pytest.raises(Undecryptable):
        vault.decrypt("usr_a", "1", bytes(stored))


@pytest.mark.parametrize("other", [("usr_b", "1", "text"), ("usr_a", "2", "text"), ("usr_a", "1", "title"),
                                   ("usr_a", "1t", "ext"), ("usr_a1", "", "text")])  # fmt: skip
def test_moved_to_another_user_row_or_field_it_cannot_be_read(vault: Vault, other: tuple[str, str, str]) -> None:
    stored = vault.encrypt("usr_a", "1", "secret", "text")
    vault.encrypt("usr_b", "1", "so that this user has a key")
    uid, row, field = other
    with pytest.raises(Undecryptable):
        vault.decrypt(uid, row, stored, field)


@pytest.mark.parametrize("stored", [b"", b"\x01", b"\x02" + bytes(60), bytes(60), b"\x01" + bytes(21)])
def test_what_was_never_encrypted_is_refused_by_its_own_error(vault: Vault, stored: bytes) -> None:
    with pytest.raises(Undecryptable) as refused:
        vault.decrypt("usr_a", "1", stored)
    assert refused.value.__cause__ is None


def test_the_same_text_is_never_stored_the_same_way_twice(vault: Vault) -> None:
    assert vault.encrypt("usr_a", "1", "x") != vault.encrypt("usr_a", "1", "x")


def test_another_root_key_reads_nothing() -> None:
    stored = Vault(ROOT).encrypt("usr_a", "1", "x")
    with pytest.raises(Undecryptable):
        Vault(os.urandom(32)).decrypt("usr_a", "1", stored)
    store = Store()
    stored = Vault(ROOT, store).encrypt("usr_a", "1", "x")
    with pytest.raises(Undecryptable):
        Vault(os.urandom(32), store).decrypt("usr_a", "1", stored)


def test_derived_keys_rotate_by_encrypting_again() -> None:
    old, new = ROOT, os.urandom(32)
    stored = Vault(old).encrypt("usr_a", "1", "x")
    both = Vault([new, old])
    assert both.decrypt("usr_a", "1", stored) == b"x" and not both.is_current("usr_a", stored)
    again = both.encrypt("usr_a", "1", both.decrypt("usr_a", "1", stored))
    assert both.is_current("usr_a", again) and Vault(new).decrypt("usr_a", "1", again) == b"x"


def test_wrapped_keys_rotate_by_wrapping_again_and_data_stays_as_it_is() -> None:
    store, new = Store(), os.urandom(32)
    stored = Vault(ROOT, store).encrypt("usr_a", "1", "x")
    both = Vault([new, ROOT], store)
    assert both.rewrap("usr_a") and not both.rewrap("usr_a") and not both.rewrap("usr_nobody")
    assert Vault(new, store).decrypt("usr_a", "1", stored) == b"x"


def test_a_destroyed_key_takes_everything_of_the_user_with_it_and_nothing_else() -> None:
    vault = Vault(ROOT, Store())
    of_a, of_b = vault.encrypt("usr_a", "1", "x"), vault.encrypt("usr_b", "1", "y")
    vault.destroy("usr_a")
    with pytest.raises(Undecryptable):
        vault.decrypt("usr_a", "1", of_a)
    vault.encrypt("usr_a", "2", "a new beginning")
    with pytest.raises(Undecryptable):
        vault.decrypt("usr_a", "1", of_a)
    assert vault.decrypt("usr_b", "1", of_b) == b"y"
    with pytest.raises(Misconfigured):
        Vault(ROOT).destroy("usr_a")


def test_a_wrapped_key_that_is_moved_to_another_user_opens_nothing() -> None:
    store = Store()
    vault = Vault(ROOT, store)
    stored = vault.encrypt("usr_a", "1", "x")
    store["usr_b"] = store["usr_a"]
    with pytest.raises(Undecryptable):
        vault.decrypt("usr_b", "1", stored)


def test_subkeys_are_of_one_user_and_purpose(vault: Vault) -> None:
    keys = {vault.subkey(uid, purpose) for uid in ("usr_a", "usr_b") for purpose in ("one", "two")}
    assert len(keys) == 4 and vault.subkey("usr_a", "one") in keys and all(len(key) == 32 for key in keys)


def test_what_was_stored_by_this_version_stays_readable() -> None:
    stored = base64.b64decode(KNOWN)
    assert Vault(ROOT).decrypt("usr_known", "row 1", stored, "text") == b"kept since version 0.1"


@pytest.mark.parametrize("root", [b"", b"short", "not base64!", "YWJj", [], [ROOT, b"x"]])
def test_what_is_no_root_key_is_refused(root: bytes | str | list[bytes]) -> None:
    with pytest.raises(Misconfigured):
        Vault(root)


@pytest.mark.parametrize("root", [base64.b64encode(ROOT).decode(), base64.urlsafe_b64encode(b"\xfb" * 32).decode()])
def test_a_root_key_may_be_base64_of_either_kind(root: str) -> None:
    vault = Vault(root.rstrip("="))
    assert vault.decrypt("usr_a", "1", vault.encrypt("usr_a", "1", "x")) == b"x"


KNOWN = "AX09qdtP3tk+fF1aQO4HPUmVGcXxAzenMpDaK2YdNEe+6CrJuHd9g/7ftxb6ML0xbTRa5yLmvJrCrTY="
