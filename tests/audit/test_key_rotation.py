"""Keys change: what the log introduced is trusted, what anybody only wrote into the database is not."""

import io
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from django.core.management import CommandError, call_command
from django.utils import timezone

from audit import keys, seams
from audit.batching import Signer
from audit.models import Checkpoint, Outbox, PublishedKey
from audit.recording import Recorder
from audit.seal_state import Refused, StateDir
from governance import process
from muniment.keys import introduce, thumbprint
from tests.audit.recorders import entry, receipts
from tests.audit.sealers import checkpoint, halted, recorded, sealed, sealing
from tests.staff import drained

OLD_LOG, NEW_LOG = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


@contextmanager
def writing(private: Ed25519PrivateKey) -> Iterator[None]:
    """A web process with another writer key writes some records, as it starts: its key published."""
    signer = Signer(private, keys.publish(private, "writer"))
    recorder = Recorder(process.connect, signer).start()
    try:
        receipts(recorder.record([entry() for _ in range(5)]))
        yield
    finally:
        recorder.stop()


def base64(private: Ed25519PrivateKey) -> str:
    return b64encode(keys.public_of(private)).decode()


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command("key", *arguments, stdout=out)
    return out.getvalue()


def test_a_writer_key_that_was_introduced_is_trusted(db: None, tmp_path: Path) -> None:
    new = Ed25519PrivateKey.generate()
    with sealing(tmp_path) as one:
        recorded(5)
        sealed(one)
        assert "is introduced" in run("announce", "writer", base64(new))
        drained()
        process.stop_recorder()
        with writing(new):
            state = sealed(one)
        assert set(state.writers) == {thumbprint(keys.public_of(new)), process.signer("WRITER_KEY", "writer").key_id}


def test_a_writer_key_that_nobody_introduced_is_not(db: None, tmp_path: Path) -> None:
    with sealing(tmp_path) as one:
        recorded(5)
        sealed(one)
        process.stop_recorder()
        with writing(Ed25519PrivateKey.generate()):
            halted(one, "batch-key-untrusted")


def test_an_entry_in_the_outbox_that_fakes_an_introduction_is_not_believed(db: None, tmp_path: Path) -> None:
    forger = Ed25519PrivateKey.generate()
    public = keys.public_of(forger)
    with sealing(tmp_path) as one:
        recorded(5)
        sealed(one)
        real = process.signer("WRITER_KEY", "writer").key_id
        for members in (
            introduce(forger, "writer", public),
            introduce(forger, "writer", public) | {"by": real},
            introduce(one.private, "writer", public),  # a log key introduces no writer
        ):
            Outbox.objects.create(kind="key", members=members, at=timezone.now(), actor="system", xact="")
        sealed(one)
        process.stop_recorder()
        with writing(forger):
            halted(one, "batch-key-untrusted")
        state = one.directory.read()
        assert state is not None and list(state.writers) == [real]


def test_a_key_that_is_lost_is_replaced_by_a_word_at_the_sealer(db: None, tmp_path: Path) -> None:
    new = Ed25519PrivateKey.generate()
    key_id = thumbprint(keys.public_of(new))
    directory = StateDir(tmp_path)
    with sealing(tmp_path) as one:
        recorded(5)
        with pytest.raises(Refused, match="published"):
            seams.accept(directory, key_id)
        sealed(one)
        process.stop_recorder()
        with writing(new):
            halted(one, "batch-key-untrusted")
            seams.accept(directory, key_id)
            state = sealed(one)
            assert key_id in state.writers
            drained()
            sealed(one)


def test_a_retired_writer_key_signs_nothing_more(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = Ed25519PrivateKey.generate()
    old = process.signer("WRITER_KEY", "writer").key_id
    with sealing(tmp_path) as one:
        recorded(5)
        with pytest.raises(CommandError, match="change to the new one first"):
            run("retire", old)
        run("announce", "writer", base64(new))
        drained()
        process.stop_recorder()
        monkeypatch.setitem(settings.MUNIMENT_KEYS, "WRITER_KEY", new.private_bytes_raw())
        process.signer.cache_clear()
        recorded(5)
        assert f"{old} is retired" in run("retire", old)
        drained()
        sealed(one)
        with pytest.raises(CommandError, match="retired since"):
            run("retire", old)
        process.stop_recorder()
        monkeypatch.undo()
        process.signer.cache_clear()
        recorded(5)
        halted(one, "batch-key-retired")


def announce_log_key(monkeypatch: pytest.MonkeyPatch, by: Ed25519PrivateKey, new: Ed25519PrivateKey) -> None:
    """As the sealer's account would, with the key of now."""
    monkeypatch.setitem(settings.MUNIMENT_KEYS, "LOG_KEY", by.private_bytes_raw())
    run("announce", "log", base64(new))
    monkeypatch.undo()
    drained()


def test_a_log_key_that_was_introduced_signs_on(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(5)
    with sealing(tmp_path, OLD_LOG) as one:
        sealed(one)
        announce_log_key(monkeypatch, OLD_LOG, NEW_LOG)
        sealed(one)
    recorded(5)
    with sealing(tmp_path, NEW_LOG) as two:
        sealed(two)
        assert checkpoint(two).size == Checkpoint.objects.latest("size").size
    with sealing(tmp_path / "anew", NEW_LOG) as three:
        three.start_from(Checkpoint.objects.latest("size").note)
        recorded(5)
        assert set(sealed(three).logs) == {thumbprint(keys.public_of(NEW_LOG))}


def test_a_log_key_that_nobody_introduced_is_refused(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(5)
    with sealing(tmp_path, OLD_LOG) as one:
        sealed(one)
        keys.publish(NEW_LOG, "log")
        announce_log_key(monkeypatch, Ed25519PrivateKey.generate(), NEW_LOG)
        sealed(one)
    before = Checkpoint.objects.count()
    with sealing(tmp_path, NEW_LOG) as two, pytest.raises(Refused, match="not introduced"):
        two.step()
    assert Checkpoint.objects.count() == before


def test_a_standby_with_its_own_folder_learns_the_new_log_key_on_the_way(
    db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(5)
    with sealing(tmp_path / "a", OLD_LOG) as one:
        sealed(one)
        note = Checkpoint.objects.latest("size").note
    with sealing(tmp_path / "b", OLD_LOG) as standby:
        standby.start_from(note)
        sealed(standby)
    with sealing(tmp_path / "a", OLD_LOG) as one:
        announce_log_key(monkeypatch, OLD_LOG, NEW_LOG)
        sealed(one)
    with sealing(tmp_path / "a", NEW_LOG) as one:
        recorded(5)
        sealed(one)
    with sealing(tmp_path / "b", NEW_LOG) as standby:
        recorded(5)
        assert set(sealed(standby).logs) == {thumbprint(keys.public_of(key)) for key in (OLD_LOG, NEW_LOG)}


def test_a_key_that_published_itself_first_can_be_introduced_after(db: None, tmp_path: Path) -> None:
    new = Ed25519PrivateKey.generate()
    with sealing(tmp_path) as one:
        recorded(5)
        keys.publish(new, "writer")
        run("announce", "writer", base64(new))
        drained()
        process.stop_recorder()
        with writing(new):
            sealed(one)


# --- the command --------------------------------------------------------------------------------------------


def test_keys_are_listed(db: None) -> None:
    recorded(1)
    [line] = [line for line in run("list").splitlines() if line.startswith("writer")]
    assert process.signer("WRITER_KEY", "writer").key_id in line


def test_a_new_key_is_a_file_for_its_owner_alone(db: None, tmp_path: Path) -> None:
    path = tmp_path / "writer_key"
    public, key_id = run("new", str(path)).split()
    assert path.stat().st_mode & 0o777 == 0o600 and len(path.read_text().strip()) == 44
    assert public not in path.read_text() and len(key_id) == 43
    with pytest.raises(CommandError, match="cannot be made") as caught:
        run("new", str(path))
    assert caught.value.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["announce", "writer", "nonsense"], "32 bytes"),
        (["announce", "writer", b64encode(b"short").decode()], "32 bytes"),
        (["announce", "log", base64(NEW_LOG)], "MUNIMENT_PROCESS=seal"),
        (["announce", "export", base64(NEW_LOG)], "MUNIMENT_PROCESS=worker"),
        (["retire", "unknown"], "no such key"),
        (["retire", "-begins-with-a-hyphen"], "no such key"),
    ],
)
def test_wrong_input_is_one_line(db: None, arguments: list[str], words: str) -> None:
    with pytest.raises(CommandError, match=words) as caught:
        run(*arguments)
    assert caught.value.returncode == 2 and "\n" not in str(caught.value)
    assert not PublishedKey.objects.filter(key_id=thumbprint(keys.public_of(NEW_LOG))).exists()


def test_a_key_of_another_use_or_ones_own_is_not_announced(db: None) -> None:
    recorded(1)
    own = Ed25519PrivateKey.from_private_bytes(settings.MUNIMENT_KEYS["WRITER_KEY"])
    with pytest.raises(CommandError, match="introduce itself"):
        run("announce", "writer", base64(own))
    with pytest.raises(CommandError, match="another use"):
        run("announce", "assertion", base64(own))
