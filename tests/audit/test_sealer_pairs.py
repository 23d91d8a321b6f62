"""Of several sealers one is active; the next one takes over, and no two roots are signed for one size."""

from contextlib import closing
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.models import Checkpoint, Record
from audit.seal_state import StateDir
from audit.sealing import Sealer
from governance.process import connect
from muniment import merkle
from tests.audit.sealers import ORIGIN, altered, checkpoint, halted, recorded, sealed, sealing
from tests.audit.test_sealing import command, is_whole, until

LOG_KEY = Ed25519PrivateKey.generate()


def roots_hold() -> None:
    """Each checkpoint's root is that of the records."""
    statements = Record.objects.order_by("index").values_list("statement", flat=True)
    leaves = [merkle.leaf_hash(bytes(statement)) for statement in statements]
    for size, root in Checkpoint.objects.values_list("size", "root"):
        assert bytes(root) == merkle.root(leaves[:size])


def test_the_second_one_stands_by_and_takes_over(db: None, tmp_path: Path) -> None:
    with sealing(tmp_path, LOG_KEY) as one, sealing(tmp_path, LOG_KEY) as two:
        recorded(10)
        assert one.step() > 0
        recorded(10)
        assert two.step() == 0 and not two.active
        one.close()
        until(lambda: two.step() >= 10)
        assert two.active
        assert one.step() == 0 and not one.active
        sealed(two)
        is_whole(two)


def test_two_with_folders_of_their_own_take_turns(db: None, tmp_path: Path) -> None:
    recorded(10)
    with sealing(tmp_path / "two", LOG_KEY) as two:
        two.step()
    with sealing(tmp_path / "one", LOG_KEY) as one:
        one.start_from(Checkpoint.objects.latest("size").note)
    for turn in range(6):
        recorded(60, 20)
        with sealing(tmp_path / ("one", "two")[turn % 2], LOG_KEY) as active:
            sealed(active)
            is_whole(active)
    roots_hold()


def test_one_that_was_left_behind_reads_the_records_again_and_finds_a_fork(
    db: None, tmp_path: Path, superuser_url: str
) -> None:
    recorded(10)
    with sealing(tmp_path / "old", LOG_KEY) as old:
        sealed(old)
    copy = StateDir(tmp_path / "new")
    copy.path.mkdir()
    for path in old.directory.path.iterdir():
        (copy.path / path.name).write_bytes(path.read_bytes())
    recorded(40, 20)
    with sealing(tmp_path / "new", LOG_KEY) as new:
        sealed(new)
    size, root = Checkpoint.objects.latest("size").size, Checkpoint.objects.latest("size").root
    altered(superuser_url, f"UPDATE audit_checkpoint SET root = sha256('x') WHERE size = {size}")
    with sealing(tmp_path / "old", LOG_KEY) as old:
        halted(old, "fork")
        altered(superuser_url, f"UPDATE audit_checkpoint SET root = '\\x{bytes(root).hex()}' WHERE size = {size}")
        recorded(5)
        sealed(old)
        is_whole(old)


def test_a_copy_of_the_state_never_signs_another_history(db: None, tmp_path: Path, superuser_url: str) -> None:
    recorded(10)
    with sealing(tmp_path / "one", LOG_KEY) as one:
        sealed(one)
        at = checkpoint(one).size
        recorded(20)
        sealed(one)
    # The database administrator takes back what was sealed; other records come in its place.
    from governance import process

    process.stop_recorder()
    first = f"(SELECT digest FROM audit_batch WHERE first + size = {at})"
    altered(
        superuser_url,
        f"DELETE FROM audit_record WHERE index >= {at}",
        f"UPDATE audit_head SET next = {at}, batch = {first}",
        f"DELETE FROM audit_batch WHERE first >= {at}",
    )
    recorded(30)
    with sealing(tmp_path / "one", LOG_KEY) as again:
        assert halted(again, "other-history").words


def test_two_processes_on_one_folder_never_disagree(db: None, tmp_path: Path) -> None:
    recorded(5)
    processes = [command(tmp_path), command(tmp_path)]
    try:
        until(lambda: Checkpoint.objects.exists())
        for _ in range(3):
            recorded(100, 50)
        newest = Record.objects.count()
        until(lambda: Checkpoint.objects.filter(size__gte=newest).exists())
        active = processes[0]
        active.kill()
        active.wait()
        recorded(100, 50)
        newest = Record.objects.count()
        until(lambda: Checkpoint.objects.filter(size__gte=newest).exists())
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    roots_hold()


def test_while_somebody_holds_the_folder_nothing_is_sealed(db: None, tmp_path: Path) -> None:
    with sealing(tmp_path, LOG_KEY) as one:
        recorded(5)
        with one.directory.lock() as ours:
            assert ours and one.step() == 0
        assert one.step() > 0


def test_a_sealer_of_another_log_name_is_another_log(db: None, tmp_path: Path) -> None:
    with closing(Sealer(connect, LOG_KEY, StateDir(tmp_path), f"{ORIGIN}x")) as one:
        recorded(3)
        one.step()
        assert Checkpoint.objects.latest("size").note.startswith(f"{ORIGIN}x\n")
