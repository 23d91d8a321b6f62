"""What is special of a format: bundles and packs that prove themselves, statements that are compared with their
columns, personal data that is opened for whom and as long as it may be."""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.utils import timezone

from audit import entries
from audit.exports import definitions
from audit.exports.definitions import Definition
from audit.keys import public_of
from audit.models import ExportRun, Head, Record
from audit.protection import keyring
from audit.sealing import Sealer
from governance import process
from muniment import exported
from muniment.keys import Trust, thumbprint
from tests.audit.exporting import AUDITOR, Desk, desk, staff, without
from tests.audit.recorders import receipts
from tests.audit.sealers import sealed, sealing
from tests.staff import drained
from tests.world import build

UID, OTHER = "usr_alice", "usr_bob"
PERSONAL = ("index", "user", "sub", "email", "ip", "resource", "statement")


def call(uid: str, sub: str, number: int) -> entries.Entry:
    """A call of a user, with protected details."""
    keyring.get(uid, create=True)
    said = {
        "type": "decision", "decision": "allow", "reason": "granted", "backend": "inner", "tool": "t",
        "client": "claude", "subject": uid,
    }  # fmt: skip
    private = {
        "sub": sub, "email": f"{sub}@example.com", "ip": "203.0.113.7", "request_id": f"req-{number}",
        "resource": {"type": "memory", "id": f"of-{sub}-{number}"},
    }  # fmt: skip
    return entries.entry(said, private, uid)


@pytest.fixture
def made(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Desk, Sealer]]:
    """Real records, with details of two users, and a real sealer."""
    (tmp_path / "exports").mkdir(mode=0o700)
    with desk(tmp_path / "exports", monkeypatch) as found, sealing(tmp_path / "seal") as sealer:
        receipts(process.recorder().record([call("usr_carl", "carl", n) for n in range(30)]))
        receipts(process.recorder().record([call((UID, OTHER)[n % 2], ("ann", "bob")[n % 2], n) for n in range(8)]))
        sealed(sealer)
        yield found, sealer


def run_of(
    made: tuple[Desk, Sealer], user: Any = None, since: datetime | None = None, **given: Any
) -> ExportRun:  # fmt: skip
    """One run over all of the log, or that from `since` on, done or failed."""
    found, sealer = made
    who = user or found.auditor
    run = definitions.ask(who, definitions.make(who, Definition("all", **{"query": "window=24h"} | given)))
    until = Head.objects.get().at + timedelta(microseconds=1)
    ExportRun.objects.filter(pk=run.pk).update(until=until, since=since or run.since)
    sealed(sealer)
    return found.worked(run)


def trust(made: tuple[Desk, Sealer]) -> Trust:
    one, two = public_of(made[0].key), made[1].public
    writer = public_of(process.signer("WRITER_KEY", "writer").private)
    return Trust(exports={thumbprint(one): one}, logs={thumbprint(two): two}, writers={thumbprint(writer): writer})


def findings(made: tuple[Desk, Sealer], run: ExportRun) -> tuple[list[str], exported.Facts]:
    report, facts = exported.verify(made[0].folder / f"{run.file}.manifest.json", trust(made))
    return [one.line for one in report.findings], facts


def lines(made: tuple[Desk, Sealer], run: ExportRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in made[0].path(run).read_bytes().splitlines()]


def test_statements_are_exact_and_are_compared_with_their_columns(made: tuple[Desk, Sealer]) -> None:
    columns = ("time", "index", "record", "kind", "decision", "reason", "user", "client", "tool", "backend", "tenant",
               "statement")  # fmt: skip
    run = run_of(made, format="jsonl", columns=columns)
    found, facts = findings(made, run)
    assert (run.state, found) == ("done", [])
    assert facts.statements == run.records > 38
    there = dict(Record.objects.values_list("index", "statement"))
    assert all(line["statement"].encode() == bytes(there[line["index"]]) for line in lines(made, run))


def test_a_bundle_is_verified_with_its_manifest_and_counted(made: tuple[Desk, Sealer]) -> None:
    world = build()
    drained()
    since = Head.objects.get().at
    answers = [world.verify(tool)["decision"] for tool in ("memory.recall", "memory.capture", "memory.recall")]
    run = run_of(made, since=since, format="bundle", query="window=24h&client=claude")
    assert (run.state, run.words) == ("done", "")
    assert run.counts == {"allow": 2, "deny": 1} == Counter(answers)
    found, facts = findings(made, run)
    assert found == []
    assert facts.bundle
    manifest = made[0].folder / f"{run.file}.manifest.json"
    members = json.loads(manifest.read_text()) | {"records": 2, "counts": {"allow": 2}}
    manifest.write_text(json.dumps(exported.sign(members, made[0].key)))
    assert [line.split(":")[0] for line in findings(made, run)[0]] == ["export-differs"]


def test_an_evidence_pack_is_a_run_like_others(made: tuple[Desk, Sealer]) -> None:
    run = run_of(made, format="evidence", frameworks=("soc2",))
    assert (run.state, run.words) == ("done", "")
    found, _ = findings(made, run)
    assert found == []


@pytest.fixture
def officer(made: tuple[Desk, Sealer], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(settings, "MUNIMENT_EXPORT_PERSONAL", True)
    return staff("pia", *AUDITOR, "audit.view_personal")


def personal(made: tuple[Desk, Sealer], officer: Any, **more: Any) -> ExportRun:
    return run_of(made, officer, format="jsonl", columns=PERSONAL, personal=True, reason="a request", **more)


def test_personal_data_is_in_a_file_of_who_may_see_it(made: tuple[Desk, Sealer], officer: Any) -> None:
    run = personal(made, officer, query=f"window=24h&subject={UID}")
    assert run.state == "done"
    shown = [(line["sub"], line["email"], line["ip"], line["resource"]) for line in lines(made, run)]
    assert shown == [("ann", "ann@example.com", "203.0.113.7", f"memory of-ann-{n}") for n in (0, 2, 4, 6)]
    found, _ = findings(made, run)
    assert found == []


def test_whose_right_to_see_it_is_gone_gets_nothing_rather_than_less(made: tuple[Desk, Sealer], officer: Any) -> None:
    export = definitions.make(
        officer, Definition("p", "jsonl", "window=24h", PERSONAL, personal=True, reason="a request")
    )
    run = definitions.ask(officer, export)
    without(officer, "audit.view_personal")
    run = made[0].worked(run)
    assert run.state == "failed"
    assert "personal data" in run.words
    assert list(made[0].folder.iterdir()) == []


def test_a_worker_without_the_key_makes_no_personal_file(
    made: tuple[Desk, Sealer], officer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = definitions.make(
        officer, Definition("p", "jsonl", "window=24h", PERSONAL, personal=True, reason="a request")
    )
    run = definitions.ask(officer, export)
    monkeypatch.delitem(settings.MUNIMENT_KEYS, "KEY_ENCRYPTION_KEY")
    run = made[0].worked(run)
    assert run.state == "failed"
    assert "MUNIMENT_EXPORT_PERSONAL" in run.words


def test_who_was_erased_is_in_no_file_that_is_made_afterwards(
    made: tuple[Desk, Sealer], officer: Any, superuser_url: str
) -> None:
    with psycopg.connect(superuser_url) as superuser:
        superuser.execute("SET session_replication_role = replica")
        superuser.execute("DELETE FROM audit_datakey WHERE holder = %s", [UID])
    run = personal(made, officer)
    data = made[0].path(run).read_bytes()
    assert run.state == "done"
    assert b'"ann"' not in data and b"ann@example.com" not in data and b'"bob"' in data
    assert b"bob@example.com" in data
    assert data.count(UID.encode()) >= 4  # the uid, which names nobody, is evidence


def test_an_export_without_personal_columns_has_none(made: tuple[Desk, Sealer]) -> None:
    run = run_of(made, format="jsonl", columns=definitions.COLUMNS)
    data = made[0].path(run).read_bytes()
    assert run.records > 38
    for secret in (b"@example.com", b"203.0.113.7", b"of-ann-0", b"of-carl-0", b"req-0"):
        assert secret not in data
    assert timezone.now() > run.until
