"""The log in the admin: its page, the line on every page, a record's proof; in each state that it can be in."""

import re
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client as HttpClient
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from audit import alerts, log_health, log_page, logtree, record_check
from audit.models import (
    Alert,
    Anchoring,
    AnchorState,
    Batch,
    Checkpoint,
    Head,
    Log,
    Record,
    SealerStatus,
    Verification,
)
from audit.seal_state import Halt
from audit.sealing import Sealer
from muniment import notes, proofs
from muniment.bundle import Bundle
from muniment.keys import Trust
from muniment.merkle import leaf_hash
from muniment.verify import verify
from tests.audit.sealers import altered, recorded, sealed, sealer
from tests.audit.trees import HandSealed
from tests.staff import administrator, drained, member
from tests.world import World, build

HOSTILE = '<script>alert("x")</script>'
PAGES = ("", "verify/", "proof/", "bundle/")


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


@pytest.fixture
def active(world: World, tmp_path: Path) -> Iterator[Sealer]:
    """A sealer that has not looked at the log yet."""
    made = sealer(tmp_path / "seal")
    yield made
    made.close()


def shown(response: Any) -> str:
    """A page's words, without its tags."""
    text = re.sub(r"<[^>]+>", "", response.content.decode())
    return re.sub(r"\s+", " ", unescape(text))


def log(http: HttpClient) -> str:
    response = http.get("/admin/log/")
    assert response.status_code == 200
    return shown(response)


def record_page(http: HttpClient, record: str | Record) -> str:
    return shown(http.get(f"/admin/records/{record.id if isinstance(record, Record) else record}/"))


def aged(at: Any, **ago: float) -> Any:
    return at - timedelta(**ago)


# --- states ------------------------------------------------------------------------------------------------------


def test_a_fresh_log_says_what_to_do_next(http: HttpClient) -> None:
    text = log(http)
    assert "No sealer has run yet. Start one: manage.py seal." in text
    assert "Set MUNIMENT_ANCHORS" in text and "cutting off the end of the log could not be noticed" in text
    assert "manage.py verify_log" in text and "No checkpoint yet" in text
    assert http.get("/admin/log/checkpoint/").status_code == 302, "there is none to download"


def test_a_sealed_log_is_sound_and_every_page_says_so(world: World, http: HttpClient, active: Sealer) -> None:
    world.verify()
    size = sealed(active).size
    text = log(http)
    assert f"{size} records are sealed, all that were written. The newest checkpoint was signed" in text
    assert "The sealer runs on" in text
    for url in ("/admin/", "/admin/records/", "/admin/log/", "/admin/clients/grant/", "/admin/audit/checkpoint/"):
        response = http.get(url)
        assert f"Log sound: {size} records sealed, " in shown(response), url
        assert response.context["pulse"].state == "sound"


def test_what_waits_is_late_after_a_moment(world: World, http: HttpClient, active: Sealer) -> None:
    size = sealed(active).size
    world.verify()
    pulse = log_health.pulse()
    assert (pulse.sealed, pulse.waiting, pulse.state) == (size, 1, "sound")
    assert "1 record waits to be sealed" in log(http)
    late = log_health.Pulse(**{f: getattr(pulse, f) for f in pulse.__slots__} | {"now": aged(pulse.now, seconds=-11)})
    assert late.state == "alarm" and late.words == "1 record not sealed in time"


def test_a_sealer_that_is_gone_is_said_before_anything_waits(http: HttpClient, active: Sealer) -> None:
    sealed(active)
    SealerStatus.objects.update(seen_at=aged(timezone.now(), minutes=5))
    assert "but the sealer was last seen 5 minutes ago" in shown(http.get("/admin/"))
    assert "Check that manage.py seal runs." in log(http)


def test_a_halted_sealer_is_loud_on_every_page_and_home_says_what_to_do(
    world: World, http: HttpClient, active: Sealer, superuser_url: str
) -> None:
    sealed(active)
    answer = world.verify()
    drained()
    altered(superuser_url, f"UPDATE audit_record SET statement = statement || ' ' WHERE id = '{answer['record']}'")
    with pytest.raises(Halt) as caught:
        active.step()
    active.tell(caught.value)
    assert "Sealing has stopped" in shown(http.get("/admin/clients/grant/"))
    for text in (shown(http.get("/admin/")), log(http)):
        assert "Sealing has stopped" in text and "What to do:" in text and "manage.py seal --explain" in text
        assert "The sealer has stopped, on" in text


def test_a_database_that_is_behind_what_was_sealed_is_an_alarm(
    http: HttpClient, active: Sealer, superuser_url: str
) -> None:
    recorded(3)
    size = sealed(active).size
    altered(superuser_url, f"UPDATE audit_head SET next = {size - 2}")
    assert "The database lacks 2 records that were sealed" in shown(http.get("/admin/records/"))
    assert "The newest 2 records that were sealed are gone from the database." in log(http)


def test_a_failing_anchor_is_told_in_its_own_words_and_these_are_escaped(
    world: World, http: HttpClient, active: Sealer
) -> None:
    sealed(active)
    world.verify()
    sealed(active)
    first, newest = Checkpoint.objects.earliest("size"), Checkpoint.objects.latest("size")
    now = timezone.now()
    held = {"log": 1, "size": first.size, "reached_at": now}
    AnchorState.objects.create(name="file:///mnt/a", kind="directory", tried_at=now, **held)
    AnchorState.objects.create(
        name=f"witness+https://{HOSTILE}", kind="witness", tried_at=now, failures=4, error=HOSTILE, **held
    )
    Anchoring.objects.create(
        anchor=f"witness+https://{HOSTILE}", log=1, size=first.size, at=now, cosignature=f"— {HOSTILE} AAAA"
    )
    alerts.raise_alert("anchor-failing", HOSTILE, HOSTILE)
    response = http.get("/admin/log/")
    text = response.content.decode()
    assert "<script>" not in text and "&lt;script&gt;" in text
    words = shown(response)
    assert (
        f"all but the newest {log_health.counted(newest.size - first.size, 'record')}," in words
        and "One cannot be reached." in words
    )
    assert "Failed 4 times in a row" in words and "tried again" in words
    assert "<script>" not in http.get("/admin/").content.decode()


def test_anchors_that_hold_it_all_are_counted(http: HttpClient, active: Sealer) -> None:
    size = sealed(active).size
    for name, holds in (("file:///mnt/a", size), ("syslog://log.example:514", size), ("mailto:*@b.example", None)):
        AnchorState.objects.create(
            name=name, kind=name.split(":")[0], log=holds and 1, size=holds, reached_at=holds and timezone.now()
        )
    text = log(http)
    assert "All that is sealed is anchored, at two of three places." in text and "Not tried yet" in text


def test_a_verification_leads_to_each_record_that_it_found(http: HttpClient, active: Sealer) -> None:
    recorded(2)
    sealed(active)
    record = Record.objects.earliest("index")
    found = [
        {"code": "record-changed", "index": record.index, "message": f"record {record.index}: {HOSTILE}"},
        {"code": "record-missing", "index": 10**9, "message": "record 1,000,000,000 is gone"},
        {"code": "of-the-future", "index": None, "message": "something else"},
    ]
    now = timezone.now()
    run = Verification.objects.create(kind="full", began_at=now, ended_at=now, records=2, findings=found, count=30)
    for url in ("/admin/log/", f"/admin/audit/verification/{run.pk}/change/"):
        response = http.get(url)
        text = response.content.decode()
        assert f'href="/admin/records/{record.id}/"' in text and "<script>alert" not in text
        words = shown(response)
        assert "A record was changed after it was sealed or signed." in words and "of-the-future" in words
        assert "(not in the database)" in words and "and 27 more" in words
    assert "found 30 faults" in shown(http.get("/admin/"))


def test_a_sample_in_order_does_not_hide_what_the_whole_log_showed() -> None:
    now = timezone.now()
    made = [
        Verification(kind=kind, began_at=now, ended_at=ended, count=count)
        for kind, ended, count in [("sample", None, 0), ("sample", now, 0), ("full", now, 3), ("full", now, 0)]
    ]
    assert log_health.telling_run(made) is made[2]
    assert log_health.telling_run([made[3], made[2]]) is made[3], "the whole log was in order since"
    assert log_health.telling_run(made[:2]) is made[1]
    assert log_health.telling_run(made[:1]) is None


def test_alerts_that_are_over_stay_on_the_page(http: HttpClient) -> None:
    alerts.raise_alert("sealing-late", "web 1", "12 records wait")
    alerts.clear("sealing-late")
    text = log(http)
    assert "Records wait too long to be sealed: web 1" in text and "12 records wait." in text
    assert log_health.pulse().alerts == ()
    Alert.objects.create(kind="of the future", words="x", raised_at=timezone.now(), seen_at=timezone.now())
    assert "of the future" in log(http)


def test_a_seam_is_told_in_words(world: World, http: HttpClient) -> None:
    first = HandSealed()
    recorded(4)
    first.seal()
    recorded(2)
    start = Head.objects.get().next
    recorded(3)
    second = HandSealed(number=2, start=start)
    second.seal()
    Log.objects.filter(number=1).update(closed_at=timezone.now())
    text = log(http)
    assert f"Log 1 was closed at {first.builder.size} records." in text
    assert f"Log 2 goes on from record {start}" in text and f"{second.builder.size} records in log 2 are sealed" in text
    adopted = Record.objects.get(index=start - 1)
    assert "Log 1 was closed before this record was sealed in it" in record_page(http, adopted)
    newest = Record.objects.get(index=start)
    assert f"Record {start} of {start + second.builder.size}." in record_page(http, newest)


# --- a record ----------------------------------------------------------------------------------------------------


def test_a_record_says_where_it_is_sealed_and_anchored(world: World, http: HttpClient, active: Sealer) -> None:
    answer = world.verify()
    assert "Not sealed yet: the sealer looks every second." in record_page(http, answer["record"])
    assert http.get(f"/admin/records/{answer['record']}/proof/").status_code == 302, "no proof yet"
    size = sealed(active).size
    text = record_page(http, answer["record"])
    index = answer["receipt"]["index"]
    assert re.search(rf"Record {index} of {size}\. Sealed at \d\d:\d\d:\d\d UTC, .* s after it was written\.", text)
    assert "Not anchored anywhere yet: until it is" in text
    for name in ("file:///mnt/a", "syslog://log.example:514"):
        AnchorState.objects.create(name=name, kind="directory", log=1, size=size, reached_at=timezone.now())
        Anchoring.objects.create(anchor=name, log=1, size=size, at=timezone.now())
    assert "Anchored at two places: the first at " in record_page(http, answer["record"])


def test_verifying_a_record_says_what_was_checked(world: World, http: HttpClient, active: Sealer) -> None:
    answer = world.verify()
    url = f"/admin/records/{answer['record']}/verify/"
    assert "So far everything holds" in shown(http.post(url))
    size = sealed(active).size
    response = http.post(url)
    assert response.status_code == 200
    assert f"the leaf leads to the signed root of {size} records." in shown(response)
    assert "Everything holds" not in record_page(http, answer["record"]), "it is said to whoever asks"


@pytest.mark.parametrize(
    "change",
    [
        "statement = convert_to(replace(convert_from(statement, 'UTF8'), 'allow', 'aIIow'), 'UTF8')",
        "statement = statement || ' ', leaf = sha256('\\x00'::bytea || statement || ' ')",
        "leaf = sha256('')",
    ],
)
def test_a_record_that_the_superuser_changed_says_so_when_it_is_opened(
    world: World, http: HttpClient, active: Sealer, superuser_url: str, change: str
) -> None:
    answer = world.verify()
    sealed(active)
    other = world.verify()
    sealed(active)
    altered(superuser_url, f"UPDATE audit_record SET {change} WHERE id = '{answer['record']}'")
    index = answer["receipt"]["index"]
    for response in (
        http.get(f"/admin/records/{answer['record']}/"), http.post(f"/admin/records/{answer['record']}/verify/")
    ):  # fmt: skip
        text = shown(response)
        assert f"Record {index} does not hold." in text and "record-changed" in text
        assert 'role="alert"' in response.content.decode() and "Everything holds" not in text
        assert response.context["pill"].words == "Does not hold"
    assert "does not hold" not in record_page(http, other["record"])


def test_a_changed_neighbour_in_the_same_batch_does_not_count_against_a_record(
    http: HttpClient, active: Sealer, superuser_url: str
) -> None:
    recorded(3)
    sealed(active)
    batch = Batch.objects.get(size=3)
    first, second = Record.objects.filter(index__gte=batch.first).order_by("index")[:2]
    altered(superuser_url, f"UPDATE audit_record SET leaf = sha256('') WHERE index = {first.index}")
    assert "does not hold" in record_page(http, first) and "does not hold" not in record_page(http, second)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("DELETE FROM audit_batch WHERE first = (SELECT max(first) FROM audit_batch)", "record-unsigned"),
        ("UPDATE audit_batch SET signature = sha256('') || sha256('')", "batch-unsigned"),
        ("UPDATE audit_batch SET root = sha256('')", "batch-root-differs"),
        ("DELETE FROM audit_publishedkey WHERE use = 'writer'", "batch-key-untrusted"),
        ("UPDATE audit_checkpoint SET note = replace(note, 'muniment.test', 'another.test')", "proof-broken"),
        ("UPDATE audit_tile SET hashes = sha256('') || substring(hashes FROM 33)", "proof-broken"),
    ],
)
def test_what_signs_a_record_is_checked_when_it_is_opened(
    http: HttpClient, active: Sealer, superuser_url: str, change: str, code: str
) -> None:
    recorded(1)
    sealed(active)
    recorded(1)
    sealed(active)
    record = Record.objects.latest("index")
    assert record_check.verify_record(record) == []
    altered(superuser_url, change)
    assert [finding.code for finding in record_check.verify_record(record)] == [code]
    assert code in record_page(http, record) and "does not hold." in record_page(http, record)


def test_the_proof_is_a_file_that_verifies_offline(world: World, http: HttpClient, active: Sealer) -> None:
    answer = world.verify()
    sealed(active)
    response = http.get(f"/admin/records/{answer['record']}/proof/")
    name = f'attachment; filename="muniment-record-{answer["receipt"]["index"]}.tlog-proof"'
    assert response["Content-Disposition"] == name
    key = notes.Key(active.origin, notes.ED25519, active.public)
    statement = bytes(Record.objects.get(id=answer["record"]).statement)
    assert proofs.verify(proofs.Proof.parse(response.content.decode()), leaf_hash(statement), [key]).size
    with pytest.raises(proofs.ProofError):
        proofs.verify(proofs.Proof.parse(response.content.decode()), leaf_hash(statement + b" "), [key])


def test_a_damaged_tree_is_said_and_not_crashed_on(
    world: World, http: HttpClient, active: Sealer, superuser_url: str
) -> None:
    answer = world.verify()
    sealed(active)
    altered(superuser_url, "DELETE FROM audit_tile")
    assert "does not hold" in record_page(http, answer["record"])
    response = http.get(f"/admin/records/{answer['record']}/proof/", follow=True)
    assert "the stored tree is damaged" in shown(response)
    assert log(http)


def test_the_newest_checkpoint_is_a_file(world: World, http: HttpClient, active: Sealer) -> None:
    size = sealed(active).size
    response = http.get("/admin/log/checkpoint/")
    assert response.content.decode() == logtree.with_cosignatures(Checkpoint.objects.latest("size"))
    assert response["Content-Disposition"] == f'attachment; filename="checkpoint-muniment.test-log-{size}.txt"'
    assert log_page.file_name(Checkpoint(size=7), 'a"\r\n/../b') == "checkpoint-a-..-b-7.txt"


# --- who, how, and how much --------------------------------------------------------------------------------------


def test_only_those_who_may_see_records_see_the_log_and_proofs(world: World, active: Sealer) -> None:
    record = world.verify()["record"]
    sealed(active)
    auditor, other = member("ada", "audit.view_record"), member("otto", "clients.view_grant")
    urls = ["/admin/log/", "/admin/log/checkpoint/", *(f"/admin/records/{record}/{part}" for part in PAGES)]
    for url in urls:
        method = "post" if url.endswith("verify/") else "get"
        assert getattr(auditor, method)(url).status_code == 200, url
        assert getattr(other, method)(url).status_code == 403, url
        assert getattr(HttpClient(), method)(url).status_code == 302, url
    seen = other.get("/admin/").content.decode()
    assert "Log sound" in seen and "/admin/log/" not in seen and "Health of the log" not in seen
    alerts.raise_alert("anchor-failing", "file:///mnt/a", "the directory does not exist")
    seen = other.get("/admin/").content.decode()
    assert "An anchor cannot be reached" in seen and "/mnt/a" not in seen


def test_verifying_is_a_post_with_a_token_and_the_rest_only_reads(world: World, http: HttpClient) -> None:
    record = world.verify()["record"]
    assert http.get(f"/admin/records/{record}/verify/").status_code == 405
    for url in ("/admin/log/", "/admin/log/checkpoint/", f"/admin/records/{record}/proof/"):
        for method in ("post", "put", "patch", "delete"):
            assert getattr(http, method)(url).status_code == 405, (url, method)
    strict = HttpClient(enforce_csrf_checks=True)
    strict.force_login(get_user_model().objects.get(username="mara"))
    assert strict.post(f"/admin/records/{record}/verify/").status_code == 403


def test_the_line_on_every_page_costs_two_queries_and_home_few(world: World, http: HttpClient, active: Sealer) -> None:
    recorded(50)
    sealed(active)
    for number in range(20):
        alerts.raise_alert("anchor-failing", f"anchor {number}", "away")
        AnchorState.objects.create(name=f"anchor {number}", kind="syslog", failures=5)
    with CaptureQueriesContext(connection) as captured:
        log_health.pulse()
    assert len(captured) == 2
    for url, most in (("/admin/", 44), ("/admin/log/", 26)):  # home's own baseline is in test_home.py
        http.get(url)
        with CaptureQueriesContext(connection) as captured:
            http.get(url)
        assert len(captured) <= most, [q["sql"][:80] for q in captured.captured_queries]
        assert not [q for q in captured.captured_queries if "COUNT(" in q["sql"] and "LIMIT" not in q["sql"]]


def test_the_bundle_of_a_record_is_verified_without_this_system(world: World, http: HttpClient, active: Sealer) -> None:
    world.verify()
    answer = world.verify()
    assert http.get(f"/admin/records/{answer['record']}/bundle/", follow=True).redirect_chain, "not sealed yet"
    sealed(active)
    response = http.get(f"/admin/records/{answer['record']}/bundle/")
    assert response["Content-Type"] == "application/zip"
    assert f'muniment-record-{answer["receipt"]["index"]}.zip"' in response["Content-Disposition"]
    with zipfile.ZipFile(BytesIO(response.content)) as files:
        assert not any(b"alice" in files.read(name) for name in files.namelist()), "no personal data"
    trust = Trust.parse(HttpClient().get("/v1/keys").content.decode())
    with Bundle(BytesIO(response.content)) as bundle:
        assert verify(bundle, trust).findings == []
