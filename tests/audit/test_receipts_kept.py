"""What a backend keeps of the platform's own answers, verified with the platform's own keys and bundles."""

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.utils import timezone

from audit import bundling
from audit.bundling import Wanted
from audit.keys import public_of
from muniment import Muniment
from muniment.keys import Trust
from muniment.notes import ED25519, Key
from muniment.receipts import ReceiptError, Store, check, writer_keys
from muniment.report import Report
from muniment.verify_receipts import Facts, verify_receipts
from tests import world as worlds
from tests.audit.sealers import altered, sealed, sealing
from tests.served import platform, served
from tests.staff import drained
from tests.world import World, token

LOG_KEY = Ed25519PrivateKey.generate()


@pytest.fixture(scope="module")
def url(migrated: None) -> Iterator[str]:
    with platform() as found:
        yield found


@pytest.fixture
def world(db: None) -> World:
    found = worlds.build()
    drained()
    return found


def keys_of(world: World) -> str:
    return str(world.http.get("/v1/keys").content.decode())


def judged(folder: Path, keys: str, bundle: io.BytesIO | None = None) -> tuple[Report, Facts]:
    return verify_receipts(folder, Trust.parse(keys), writer_keys(keys), bundle)


def whole() -> io.BytesIO:
    """A bundle of all that is sealed."""
    file = io.BytesIO()
    bundling.write(file, Wanted(datetime(2020, 1, 1, tzinfo=UTC), timezone.now()))
    return file


@pytest.fixture
def bundle(world: World, tmp_path: Path) -> io.BytesIO:
    """Calls whose receipts are in the folder `kept`, and then a bundle of the whole log."""
    store = Store(tmp_path / "kept")
    for sub in ("alice", "bob"):
        store.keep(world.verify(token=token(sub)))
    store.keep(world.verify("memory.capture"))
    store.keep(world.verify("memory.unknown"))
    store.keep(world.verify(token=None))
    items = [{"token": token(sub), "tool": "memory.recall"} for sub in ("alice", "bob", "carol")]
    for answer in world.post("/v1/verify/batch", {"items": items}).json()["items"]:
        store.keep(answer)
    with sealing(tmp_path / "seal", LOG_KEY) as sealer:
        sealed(sealer)
    return whole()


def test_what_the_platform_answers_holds_alone_and_against_its_log(
    world: World, bundle: io.BytesIO, tmp_path: Path
) -> None:
    report, facts = judged(tmp_path / "kept", keys_of(world))
    assert not report.findings
    assert facts.receipts == 8
    report, facts = judged(tmp_path / "kept", keys_of(world), bundle)
    assert not report.findings
    assert (facts.shown, facts.opened, facts.outside) == (8, 8, 0)
    assert not any(word in next((tmp_path / "kept").iterdir()).read_text() for word in ("alice", "eyJ", "usr_"))


@pytest.mark.parametrize("attack", ["changed", "removed"])
def test_what_was_done_to_a_record_in_the_database_is_found(
    world: World, bundle: io.BytesIO, tmp_path: Path, superuser_url: str, attack: str
) -> None:
    kept = list(Store(tmp_path / "kept"))[1]
    flip = "convert_to(replace(convert_from(statement, 'UTF8'), '\"allow\"', '\"deny\"'), 'UTF8')"
    change = f"UPDATE audit_record SET statement = {flip}" if attack == "changed" else "DELETE FROM audit_record"
    altered(superuser_url, f"{change} WHERE id = '{kept.record}'")
    report, facts = judged(tmp_path / "kept", keys_of(world), whole())
    found = {one.code: one for one in report.findings}
    if attack == "changed":  # the hash in the tree is still that of the receipt; what the record says is not
        assert found.keys() == {"record-changed", "receipt-contradicted"}
        said = found["receipt-contradicted"]
        assert str(kept.record) in said.message and "decision" in said.message
        assert said.index == kept.receipt["index"]
    else:
        assert found.keys() == {"record-missing"}
        assert (facts.shown, facts.deleted) == (8, 1)


def test_the_keys_of_another_platform_prove_nothing(bundle: io.BytesIO, tmp_path: Path) -> None:
    other = Key("muniment.example/writer", ED25519, public_of(Ed25519PrivateKey.generate()))
    report, _ = judged(tmp_path / "kept", other.vkey)
    assert [one.code for one in report.findings] == ["batch-key-untrusted"] * 8


def test_a_key_that_was_retired_before_is_found_by_its_validity(
    world: World, bundle: io.BytesIO, tmp_path: Path
) -> None:
    document = json.loads(keys_of(world))
    [writer] = [jwk for jwk in document["keys"] if jwk["use"] == "writer"]
    assert writer["not_after"] is None
    writer["not_after"] = timezone.now().isoformat()
    assert judged(tmp_path / "kept", json.dumps(document))[0].ok
    writer["not_after"] = (timezone.now() - timedelta(hours=1)).isoformat()
    report, _ = judged(tmp_path / "kept", json.dumps(document))
    assert [one.code for one in report.findings] == ["receipt-untimely"] * 8


def test_a_guard_keeps_the_receipt_of_every_answer(url: str, world: World, tmp_path: Path) -> None:
    with Muniment(url, world.key, receipts=tmp_path / "kept") as guard:
        allowed, denied = guard.verify(token(), "memory.recall"), guard.verify(None, "memory.recall")
    kept = list(Store(tmp_path / "kept"))
    assert [(str(one.record), one.decision) for one in kept] == [(allowed.record, "allow"), (denied.record, "deny")]
    keys = writer_keys(keys_of(world))
    assert all(check(one.receipt, keys, one.at) for one in kept)


def test_a_guard_that_keeps_receipts_takes_no_answer_without_one(world: World, tmp_path: Path) -> None:
    answer = world.verify()
    del answer["receipt"]["signature"]

    def application(environ: dict[str, Any], start: Any) -> list[bytes]:
        start("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]

    kept = tmp_path / "kept"
    with served(application) as url, Muniment(url, world.key, receipts=kept) as guard, pytest.raises(ReceiptError):
        guard.verify(token(), "memory.recall")
    assert list(Store(kept)) == []
