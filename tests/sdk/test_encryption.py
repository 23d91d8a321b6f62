"""What is encrypted for a user, a row and a field is readable so and in no other way."""

import base64
import hashlib
import hmac
import os
import struct
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from muniment import Misconfigured
from muniment.encryption import Undecryptable, Vault

ROOT = bytes(range(32))


class Store(dict[str, bytes]):
    """Wrapped keys in memory."""

    def add(self, uid: str, wrapped: bytes) -> bytes:
        return self.setdefault(uid, wrapped)

    def replace(self, uid: str, old: bytes, new: bytes) -> bool:
        if self.get(uid) != old:
            return False
        self[uid] = new
        return True

    def delete(self, uid: str) -> None:
        self.pop(uid, None)


@pytest.fixture(params=["derived", "wrapped"])
def vault(request: pytest.FixtureRequest) -> Vault:
    return Vault(ROOT, Store() if request.param == "wrapped" else None)


words = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)


@given(uid=words.filter(bool), row=words, field=words, plain=st.binary(max_size=200))
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


class TestOneUsersPart:
    def test_reads_the_store_once_and_is_the_same(self) -> None:
        asked: list[str] = []

        class Counted(Store):
            def get(self, uid: str, default: bytes | None = None) -> bytes | None:  # type: ignore[override]
                asked.append(uid)
                return super().get(uid, default)

        vault = Vault(ROOT, Counted())
        stored = vault.encrypt("usr_a", 1, "x", "text")
        asked.clear()
        one = vault.user("usr_a")
        for _ in range(3):
            assert one.decrypt(1, stored, "text") == b"x"
        assert one.subkey("p") == vault.subkey("usr_a", "p") and vault.decrypt("usr_a", 1, one.encrypt(1, "y")) == b"y"
        assert asked[:1] == ["usr_a"] and len(asked) == 3

    def test_reads_nothing_of_another_user(self, vault: Vault) -> None:
        of_a, b = vault.encrypt("usr_a", 1, "x"), vault.user("usr_b")
        with pytest.raises(Undecryptable):
            b.decrypt(1, of_a)


class TestRows:
    def test_are_known_by_texts_numbers_and_uuids(self, vault: Vault) -> None:
        uuid = UUID("018f0000-0000-7000-8000-000000000000")
        for row in (7, uuid):
            stored = vault.encrypt("usr_a", row, "x")
            assert vault.decrypt("usr_a", str(row), stored) == vault.decrypt("usr_a", row, stored) == b"x"

    @pytest.mark.parametrize("row", [None, b"1", 1.0, ("a",)])
    def test_are_known_by_nothing_else(self, vault: Vault, row: object) -> None:
        with pytest.raises(TypeError):
            vault.encrypt("usr_a", row, "x")  # type: ignore[arg-type]

    def test_are_read_from_what_drivers_give(self, vault: Vault) -> None:
        stored = vault.encrypt("usr_a", 1, "x")
        assert vault.decrypt("usr_a", 1, memoryview(stored)) == b"x" and vault.is_current("usr_a", memoryview(stored))
        for other in (None, 5, "text"):
            with pytest.raises(TypeError):
                vault.decrypt("usr_a", 1, other)  # type: ignore[arg-type]


def test_nobody_has_no_key(vault: Vault) -> None:
    for call in (lambda: vault.encrypt("", 1, "x"), lambda: vault.subkey("", "p"), lambda: vault.user("")):
        with pytest.raises(ValueError, match="uid"):
            call()


@pytest.mark.parametrize("given", [("usr_\ud800", "1", "x"), ("usr_a", "\ud800", "x"), ("usr_a", "1", "secret\ud800")])
def test_what_is_no_unicode_is_refused_by_an_error_without_it(vault: Vault, given: tuple[str, str, str]) -> None:
    with pytest.raises(ValueError, match="surrogate") as refused:
        vault.encrypt(*given)
    assert "secret" not in str(refused.value) and refused.value.__context__ is None


@pytest.mark.parametrize("change", ["version", "tag", "nonce", "id", "cut", "empty"])
def test_a_wrapped_key_that_was_altered_opens_nothing(change: str) -> None:
    store = Store()
    vault = Vault(ROOT, store)
    stored = vault.encrypt("usr_a", "1", "x")
    kept = store["usr_a"]
    place = {"version": 0, "id": 3, "nonce": 12, "tag": -1}.get(change)
    flipped = b"" if place is None else bytes([kept[place] ^ 1])
    store["usr_a"] = {"cut": kept[:-1], "empty": b""}.get(change) if place is None else (  # type: ignore[assignment]
        kept[:place] + flipped + kept[len(kept) + place + 1 if place < 0 else place + 1 :]
    )  # fmt: skip
    for call in (lambda: vault.decrypt("usr_a", "1", stored), lambda: vault.encrypt("usr_a", "1", "y")):
        with pytest.raises(Undecryptable):
            call()


def test_a_key_that_is_destroyed_while_it_is_wrapped_again_does_not_come_back() -> None:
    class Slow(Store):
        def replace(self, uid: str, old: bytes, new: bytes) -> bool:
            self.pop(uid)  # somebody else destroys it now
            return super().replace(uid, old, new)

    store = Slow()
    Vault(ROOT, store).encrypt("usr_a", "1", "x")
    assert not Vault([os.urandom(32), ROOT], store).rewrap("usr_a") and store == {}


def test_two_who_encrypt_a_first_time_at_once_use_one_key() -> None:
    store = Store()
    first, second = Vault(ROOT, store), Vault(ROOT, store)
    key = store.add
    with pytest.MonkeyPatch.context() as patch:
        # The other one adds its key between our look and our adding.
        patch.setattr(
            store, "add", lambda uid, wrapped: (patch.undo(), second.encrypt(uid, "2", "y"), key(uid, wrapped))[2]
        )
        stored = first.encrypt("usr_a", "1", "x")
    assert second.decrypt("usr_a", "1", stored) == b"x" and len(store) == 1


def test_reencrypting_brings_what_is_stored_under_the_newest_key() -> None:
    old, new = ROOT, os.urandom(32)
    stored = Vault(old).encrypt("usr_a", 1, "x", "text")
    again = Vault([new, old]).reencrypt("usr_a", 1, stored, "text")
    assert Vault(new).decrypt("usr_a", 1, again, "text") == b"x"
    with pytest.raises(Undecryptable):
        Vault([new, old]).reencrypt("usr_a", 2, stored, "text")
    # A new key goes to the end first, so that every process can read with it before one writes with it.
    assert Vault([old, new]).decrypt("usr_a", 1, again, "text") == b"x"


def test_wrapped_subkeys_outlive_a_new_root_key_and_derived_ones_do_not() -> None:
    store, new = Store(), os.urandom(32)
    assert Vault(ROOT, store).subkey("usr_a", "p") == Vault([new, ROOT], store).subkey("usr_a", "p")
    assert Vault(ROOT).subkey("usr_a", "p") != Vault([new, ROOT]).subkey("usr_a", "p")


class TestTheEnvironment:
    def test_gives_root_keys_the_newest_first(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        new = os.urandom(32)
        keys = "\n".join(base64.b64encode(key).decode() for key in (new, ROOT)) + "\n"
        monkeypatch.setenv("MUNIMENT_ROOT_KEYS", keys)
        vault = Vault.from_environment()
        assert Vault(new).decrypt("usr_a", 1, vault.encrypt("usr_a", 1, "x")) == b"x"
        assert vault.decrypt("usr_a", 1, Vault(ROOT).encrypt("usr_a", 1, "x")) == b"x"
        monkeypatch.delenv("MUNIMENT_ROOT_KEYS")
        (tmp_path / "keys").write_text(keys)
        monkeypatch.setenv("INNER_KEYS_FILE", str(tmp_path / "keys"))
        store = Store()
        assert Vault.from_environment(store, "INNER_KEYS").encrypt("usr_a", 1, "x") and "usr_a" in store

    @pytest.mark.parametrize("text", ["", " ", "secret", "AAAA", base64.b64encode(bytes(33)).decode()])
    def test_without_a_key_is_told_without_what_was_there(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        monkeypatch.setenv("MUNIMENT_ROOT_KEYS", text)
        with pytest.raises(Misconfigured) as refused:
            Vault.from_environment()
        assert not text.strip() or text not in str(refused.value)
        assert refused.value.__context__ is None

    def test_with_two_sources_or_a_file_that_is_none_is_told(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "empty").write_bytes(b"\n")
        (tmp_path / "binary").write_bytes(b"\xff")
        for name in ("none", "empty", "binary", ""):
            monkeypatch.setenv("MUNIMENT_ROOT_KEYS_FILE", str(tmp_path / name))
            with pytest.raises(Misconfigured, match="_FILE"):
                Vault.from_environment()
        monkeypatch.setenv("MUNIMENT_ROOT_KEYS", base64.b64encode(ROOT).decode())
        with pytest.raises(Misconfigured, match="Either"):
            Vault.from_environment()


def test_nothing_shows_a_key(vault: Vault) -> None:
    for shown in (repr(vault), repr(vault.user("usr_a")), str(vault)):
        assert "\\x" not in shown and base64.b64encode(ROOT).decode()[:8] not in shown


# --- the format, computed by other means ------------------------------------------------------------------------------


def bound(*parts: str) -> bytes:
    return b"".join(struct.pack(">I", len(part.encode())) + part.encode() for part in ("muniment/vault/v1", *parts))


def hkdf(key: bytes, info: bytes) -> bytes:
    """RFC 5869 for 32 bytes without a salt: extract, and the first block of expand."""
    return hmac.digest(hmac.digest(bytes(32), key, "sha256"), info + b"\x01", "sha256")


def sealed(key: bytes, content: bytes, nonce: bytes, plain: bytes, additional: bytes) -> bytes:
    id = hashlib.sha256(bound("id") + key).digest()[:8]
    return b"\x01" + id + nonce + AESGCM(content).encrypt(nonce, plain, additional)


def test_the_format_is_the_documented_one() -> None:
    nonce = bytes(range(12))
    derived = hkdf(ROOT, bound("user", "usr_é"))
    stored = sealed(derived, hkdf(derived, bound("content")), nonce, b"plain", bound("data", "usr_é", "1", "text"))
    assert Vault(ROOT).decrypt("usr_é", 1, stored, "text") == b"plain"
    assert Vault(ROOT).subkey("usr_é", "p") == hkdf(derived, bound("purpose", "usr_é", "p"))
    own = bytes(range(32, 64))
    store = Store(usr_a=sealed(ROOT, hkdf(ROOT, bound("wrapping")), nonce, own, bound("key", "usr_a")))
    stored = sealed(own, hkdf(own, bound("content")), nonce, b"plain", bound("data", "usr_a", "1", ""))
    assert Vault(ROOT, store).decrypt("usr_a", "1", stored) == b"plain"


KNOWN = "AX09qdtP3tk+FufdQ7K7d53KEWlbm3Yq2X2IpHCo01apJ1Gf/+Dm6avXl74CD28Ajdba3fAQ4z2DsCc="
