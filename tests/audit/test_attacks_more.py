"""More of what an administrator of the database can do: have a log forgotten, put rows where nobody looks, and leave
values that a check would trip over. Each is a finding, never a traceback."""

from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

import pytest

from audit import alerts, logtree, verification_runs
from audit.models import Anchoring, Checkpoint, Head, Log, Outbox, Record
from audit.record_check import verify_record
from governance import process
from muniment import bundle, merkle, statements
from muniment.examine import MOST_WAITING, Examiner
from muniment.findings import Finding
from muniment.keys import Trust
from tests import reset
from tests.audit import attacked, sealers
from tests.audit import attacked_bundles as bundles
from tests.audit.attacked import Made, Scene
from tests.audit.test_attacks import forged, swap_users
from tests.staff import drained

FORGET = ("DELETE FROM audit_checkpoint", "DELETE FROM audit_tile", "DELETE FROM audit_anchoring")
COPY = """INSERT INTO audit_record SELECT (jsonb_populate_record(r, jsonb_build_object(
    'at', r.at + interval '1 microsecond', 'id', gen_random_uuid(), 'index', -5))).*
    FROM audit_record r WHERE index = %(i)s"""


@pytest.fixture(scope="module")
def made(migrated: None, superuser_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    yield attacked.make(tmp_path_factory.mktemp("log"))
    reset.reset()


@pytest.fixture
def scene(made: Made, tmp_path: Path) -> Iterator[Scene]:
    with attacked.scene(made, tmp_path) as found:
        yield found


def codes(log: Scene, **more: object) -> set[str]:
    process.stop_recorder()
    return {found.code for found in log.found(**more)}


# --- a log that is forgotten, or made up ----------------------------------------------------------------------


@pytest.mark.parametrize("forget", ["DELETE FROM audit_log", "UPDATE audit_log SET origin = 'another/log'"])
@pytest.mark.parametrize("anchored", [True, False], ids=["anchor", "receipt"])
def test_a_log_that_is_cut_and_forgotten_contradicts_what_others_hold(
    scene: Scene, forget: str, anchored: bool
) -> None:
    if not anchored:
        attacked.settings.MUNIMENT_ANCHORS = []
        scene.given = [("a receipt", attacked.note_of(Head.objects.get().next))]
    scene.cut(scene.at["older"])
    scene.sql(*FORGET, forget)
    assert "rollback" in codes(scene)


def test_a_checkpoint_of_somebody_elses_log_is_not_passed_over(scene: Scene) -> None:
    other = attacked.checkpoints.Checkpoint("elsewhere.example/log", 1, bytes(32))
    scene.given = [("a file", attacked.checkpoints.sign(other, attacked.LOG_KEY))]
    assert codes(scene) == {"checkpoint-incomparable"}


def test_a_loss_that_only_the_database_tells_of_is_none(scene: Scene) -> None:
    """The outbox is in the database: whoever writes there has a record made that opens the next log."""
    log, kept = Log.objects.get(number=1), scene.at["late"]
    newest = logtree.newest(log)
    assert newest is not None
    tree = logtree.tree(log)
    members = {
        "action": "log.open", "log": 2, "origin": f"{log.origin}/2",
        "previous": {"log": 1, "origin": log.origin, "size": newest.size, "root": bytes(newest.root).hex()},
        "kept": {
            "first": 0, "size": kept, "root": tree.frontier(kept).root().hex(),
            "consistency": [one.hex() for one in tree.consistency(kept)],
        },
        "lost": [[kept, newest.size - kept]], "by": ["staff:1", "staff:2"],
    }  # fmt: skip
    scene.sql(
        "DELETE FROM audit_record WHERE index >= %(size)s",
        "DELETE FROM audit_batch WHERE first >= %(size)s",
        """UPDATE audit_head SET next = %(size)s, at = (SELECT max(at) FROM audit_record),
            batch = (SELECT digest FROM audit_batch ORDER BY first DESC LIMIT 1)""",
        size=kept,
    )
    said(members, "staff:1")
    scene.sql(
        "INSERT INTO audit_log (number, origin, start, opened_at) VALUES (2, %(origin)s, %(start)s, now())",
        origin=members["origin"], start=kept,
    )  # fmt: skip
    said({"action": "log.adopted", "log": 2, "first": kept, "size": 0, "root": merkle.EMPTY_ROOT.hex()})
    assert codes(scene) == {"seam-broken"}


def said(members: dict[str, object], actor: str = "system") -> None:
    """Have a notice recorded, as anybody can who writes to the database."""
    Outbox.objects.create(kind="notice", members=members, at="2026-01-01T00:00Z", actor=actor, xact="")
    drained()


def test_a_head_that_is_gone_is_a_log_that_was_cut_off(scene: Scene) -> None:
    scene.sql("DELETE FROM audit_head")
    assert codes(scene) >= {"cut-off", "record-inserted"}
    with scene.sealer() as sealer:
        sealers.halted(sealer, "cut-off")


def test_a_write_batch_at_the_end_of_all_numbers_stops_the_sealer(scene: Scene) -> None:
    scene.sql(
        """INSERT INTO audit_batch SELECT (jsonb_populate_record(b, '{"first": 9223372036854775807}')).*
            FROM audit_batch b WHERE first = %(i)s""",
        i=scene.at["alice"],
    )
    with scene.sealer() as sealer:
        sealers.halted(sealer, "cut-off")


# --- rows where nobody looks ----------------------------------------------------------------------------------


def test_a_row_before_the_beginning_of_the_log_was_inserted(scene: Scene) -> None:
    scene.sql(COPY, i=scene.at["alice"])
    assert codes(scene) == {"record-inserted"}


def test_a_row_without_an_index_was_inserted(scene: Scene) -> None:
    def undo() -> None:
        scene.sql(
            "DELETE FROM audit_record WHERE index IS NULL", "ALTER TABLE audit_record ALTER COLUMN index SET NOT NULL"
        )

    scene.stack.append(undo)
    scene.sql(
        "ALTER TABLE audit_record ALTER COLUMN index DROP NOT NULL", COPY.replace("-5", "NULL"), i=scene.at["alice"]
    )
    assert codes(scene) == {"record-inserted"}


# --- users and their details ----------------------------------------------------------------------------------


def test_users_are_swapped_whether_or_not_their_entries_say_that_they_were_erased(scene: Scene) -> None:
    swap_users(scene, keys_too=False)
    scene.sql("UPDATE audit_subject SET erased_at = now()")
    assert "subject-swapped" in codes(scene)


def test_details_are_not_hidden_under_a_key_that_was_destroyed_for_another(scene: Scene) -> None:
    uid = Record.objects.get(index=scene.at["bob"]).subject
    members = {"action": "erased", "holder": uid}
    Outbox.objects.create(kind="erasure", members=members, at="2026-01-01T00:00Z", actor="system", xact="")
    scene.seal()
    scene.sql(
        """UPDATE audit_subject SET identity_key = NULL, sub = NULL, email = NULL, email_key = NULL, erased_at = now()
            WHERE uid = %(uid)s""",
        "DELETE FROM audit_datakey WHERE holder = %(uid)s",
        uid=uid,
    )
    assert codes(scene) == set()
    scene.sql("UPDATE audit_record SET holder = %(uid)s WHERE index = %(i)s", uid=uid, i=scene.at["alice"])
    assert codes(scene) == {"disclosure-foreign"}


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        ("UPDATE audit_record SET disclosures = '\\x00' WHERE index = %(i)s", "disclosure-foreign"),
        ("UPDATE audit_datakey SET wrapped = ''", "subject-swapped"),
        ("UPDATE audit_subject SET sub = '\\x00'", "subject-swapped"),
    ],
    ids=["details", "key", "user"],
)
def test_what_is_too_short_to_be_protected_does_not_stop_the_check(scene: Scene, spoil: str, code: str) -> None:
    scene.sql(spoil, i=scene.at["alice"])
    assert code in codes(scene)
    verify_record(Record.objects.get(index=scene.at["alice"]))


# --- statements and batches that nobody signed ----------------------------------------------------------------


@pytest.mark.parametrize(
    "members",
    [
        {"type": "notice", "subject": ["x"], "_sd": ["x"]},
        {"type": "policy", "policy": {"version": "x"}, "part": 1, "parts": 1, "changes": []},
        {"type": "policy", "policy": {"version": 1}, "part": 1, "parts": 1,
         "changes": [{"table": None, "key": 1, "old": None, "new": {"id": 1}}]},
    ],
    ids=["subject", "version", "table"],
)  # fmt: skip
def test_a_strange_statement_does_not_stop_the_check(scene: Scene, members: dict[str, object]) -> None:
    index, _ = forged(scene)
    data = statements.encode({**members, "at": 1_900_000_000_000_000})
    scene.sql(
        "DELETE FROM audit_batch WHERE first = %(i)s",
        """UPDATE audit_record SET statement = %(data)b, leaf = %(leaf)b, disclosures = NULL, holder = NULL
            WHERE index = %(i)s""",
        i=index, data=data, leaf=merkle.leaf_hash(data),
    )  # fmt: skip
    assert "record-unsigned" in codes(scene)


@pytest.mark.parametrize("change", ["previous = '\\x00'", "size = 2147483647"])
def test_a_record_whose_write_batch_cannot_be_one_is_found(scene: Scene, change: str) -> None:
    scene.sql(f"UPDATE audit_batch SET {change} WHERE first = %(i)s", i=scene.at["alice"])
    record = Record.objects.get(index=scene.at["alice"])
    assert [found.code for found in verify_record(record)] == ["batch-unsigned"]


def test_a_tile_that_is_gone_from_before_is_found(scene: Scene) -> None:
    scene.sql("DELETE FROM audit_tile WHERE level = 0 AND index = 0")
    assert "tile-differs" in codes(scene, since=datetime.now(UTC) + timedelta(days=1))


# --- a check that begins in the middle ------------------------------------------------------------------------


def test_a_time_beside_a_checkpoint_does_not_make_the_check_begin_later(scene: Scene) -> None:
    since = Record.objects.get(index=scene.at["alice"]).at - timedelta(seconds=1)
    scene.edit(scene.at["late"], leaf=False, tool="memory.other")
    assert codes(scene, since=since) == {"record-changed"}
    scene.sql("UPDATE audit_checkpoint SET at = '2000-01-01'")
    assert codes(scene, since=since) == {"record-changed"}


@pytest.mark.parametrize("anchored", [True, False], ids=["anchor", "receipt"])
def test_a_fork_before_the_beginning_contradicts_what_others_hold(scene: Scene, anchored: bool) -> None:
    after = datetime.now(UTC) + timedelta(days=1)
    if not anchored:
        attacked.settings.MUNIMENT_ANCHORS = []
        scene.given = [("an auditor", attacked.note_of(scene.at["older"]))]
    assert codes(scene, since=after) == set()
    scene.edit(scene.at["alice"], leaf=True, tool="memory.other")
    scene.resign()
    assert codes(scene, since=after) == {"anchor-differs"}


# --- what tells people ----------------------------------------------------------------------------------------


def test_a_verification_that_cannot_be_finished_is_an_alert(scene: Scene) -> None:
    scene.sql("UPDATE audit_record SET at = 'infinity' WHERE index = %(i)s", i=scene.at["alice"])
    with pytest.raises(Exception, match="timestamp"):
        verification_runs.run_full()
    [alert] = [alert for alert in alerts.open_alerts() if alert.kind == "verification-failed"]
    assert "ended early" in alert.words


@pytest.mark.parametrize(
    "silence",
    ["UPDATE audit_anchoring SET at = '9999-12-31'", "UPDATE audit_anchorstate SET tried_at = '3000-01-01'"],
    ids=["took", "tried"],
)
def test_an_anchor_is_not_kept_silent_by_a_time_to_come(scene: Scene, silence: str) -> None:
    attacked._push(scene.folder)
    scene.sql(silence)
    scene.call()
    scene.seal()
    attacked._push(scene.folder)
    newest = Checkpoint.objects.latest("size").size
    assert Anchoring.objects.filter(size=newest).exists()


# --- bundles that take long -----------------------------------------------------------------------------------


def test_a_bundle_cannot_say_so_much_of_deletions_that_it_is_never_judged(scene: Scene) -> None:
    """Ten thousand gaps, and half a million ranges that retention is said to have deleted."""
    count = 20_000

    def fill(parts: bundles.Parts) -> None:
        parts[bundle.MANIFEST] |= {"first": 0, "last": count - 1}
        parts[bundle.MANIFEST]["segments"] = [{"log": 1, "first": 0, "last": count - 1, "path": []}]
        leaf = b64encode(bytes(32)).decode()
        parts[bundle.RECORDS] = [{"i": n, "leaf": leaf, **({"gone": True} if n % 2 else {})} for n in range(count)]
        parts[bundle.BATCHES] = parts[bundle.DISCLOSURES] = []
        ranges = [[7, n] for n in range(6000)]
        text = statements.encode({"type": "retention", "action": "deleted", "at": 1, "ranges": ranges}).decode()
        parts[bundle.CONTEXT] = [{"i": count + n, "log": 1, "statement": text, "path": []} for n in range(80)]

    made = bundles.changed(bundles.of(scene), fill)
    began = monotonic()
    found = bundles.verified(made, attacked.trust(), [])
    assert monotonic() - began < 30
    assert {"root-differs", "record-missing", "proof-broken"} <= {one.code for one in found.findings}


def test_decisions_from_a_version_without_a_record_are_not_all_kept() -> None:
    found: list[Finding] = []
    examiner = Examiner(Trust(), found.append)
    for number in range(500):
        said = {"type": "decision", "at": number, "policy": {"version": 9, "digest": f"{number}" * 1000}}
        examiner.context(number, statements.encode(said))
    waiting = examiner._pending[9]
    assert len(waiting) == MOST_WAITING and max(len(digest) for _, digest in waiting) <= 100
    examiner.finish()
    assert [one.code for one in found] == ["policy-version-missing"]
