"""An evidence pack tells of a period what the log has of it: every record that is no call in one part, figures that add
up, controls with their queries and their records; and is the same when it is made again."""

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import escape
from io import BytesIO, StringIO

import pytest
from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.utils import timezone

from audit.evidence import controls as evidence_controls
from audit.evidence import packing, reading, sections
from audit.evidence.packing import Refused
from audit.models import Record, Subject
from audit.viewer import Viewer
from muniment import packs
from tests.audit.evidence_scene import FORMULA, LONG, MARKUP, Scene, names, read, scene
from tests.audit.sealers import altered, sealed
from tests.staff import drained

Row = dict[str, str]


@pytest.fixture(scope="module")
def made(migrated: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("sealer")) as found:
        yield found


@pytest.fixture(scope="module")
def pack(made: Scene) -> bytes:
    return made.pack()[0]


def rows(pack: bytes, part: str) -> list[Row]:
    return list(csv.DictReader(StringIO(read(pack, f"records/{part}.csv"))))


def figures(pack: bytes, part: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = json.loads(read(pack, "figures.json"))["parts"][part]["figures"]
    return found


def test_each_record_that_is_no_call_is_in_exactly_one_part_and_calls_are_counted(made: Scene, pack: bytes) -> None:
    manifest = json.loads(read(pack, "manifest.json"))
    told = [
        json.loads(line)["index"]
        for section in sections.SECTIONS
        for line in read(pack, f"records/{section.slug}.jsonl").splitlines()
    ]
    within = Record.objects.filter(at__gte=made.since, at__lt=made.until)
    policies = within.filter(type="policy").values_list("index", flat=True)
    # A policy record may change a grant and something else at once: then both parts have it.
    once = sorted(set(told))
    assert set(told) - set(policies) and len(told) - len(once) <= len(policies)
    calls = within.filter(type__in=reading.CALLS)
    expected = set(within.values_list("index", flat=True)) - set(
        calls.exclude(decision="deny").values_list("index", flat=True)
    )
    assert set(once) == expected
    assert [manifest["first"], manifest["last"]] == [within.earliest("at").index, within.latest("at").index]
    assert sum(figures(pack, "calls")["Records"].values()) == within.count()
    assert figures(pack, "calls")["Calls of AI clients"] == {"refused": 2, "allowed": 1}
    assert [row["kind"] for row in rows(pack, "other")] == ["weather"]  # a type that no part knows


def test_grants_are_told_with_their_words_and_their_reasons(pack: bytes) -> None:
    told = {(row["done"], row["what"]): row for row in rows(pack, "grants")}
    made = [row for (done, _), row in told.items() if done == "made"]
    revoked = [row for (done, _), row in told.items() if done == "revoked"]
    assert len(made) == 4 and figures(pack, "grants")["What was done"]["made"] == 4
    assert ("scopes changed", "Grant 1, scopes changed: claude may use memory:read for everyone") in told
    assert any("for the role nurse, until " in row["what"] for row in made)
    assert LONG in [row["reason"] for row in revoked] and {row["name"] for row in revoked} == {"Mara"}
    assert figures(pack, "grants")["At the end of the period"] == {"grants in force": 1}


def test_a_review_tells_of_each_grant_what_became_of_it_and_its_note(pack: bytes) -> None:
    told = rows(pack, "access-reviews")
    assert figures(pack, "access-reviews") == {
        "Grants reviewed": {"revoked": 2, "kept": 1}, "What was done": {"begun": 1, "finished": 1},
    }  # fmt: skip
    kept = next(row for row in told if row["done"] == "kept")
    assert kept["reason"] == "note on 1" and kept["what"] == (
        "Grant 1, kept in the review of the client claude: claude may use memory:read for everyone"
    )
    assert {row["reason"] for row in told if row["done"] == "begun"} == {"yearly"}


@pytest.mark.parametrize(
    ("part", "done", "words", "reason"),
    [
        ("requests", "approved", "approved request 1 (client claude, scopes memory:read, ", "seen and agreed"),
        ("staff", "signed in", "signed in", ""),
        ("looks", "details looked at", "looked at protected details", ""),
        ("stops", "user blocked", "blocked user usr_", "asked by phone"),
        ("holds", "placed", "placed legal hold 1 (client claude)", "the lawsuit; matter: M-17"),
        ("holds", "released", "released legal hold 1", "it is settled; matter: M-17"),
        ("retention", "deleted", "5 records deleted by rule, from 0 to 8", ""),
        ("erasures", "refused", "could not have user usr_", "reference: DSR-9"),
        ("notices", "alert raised", "An alert was raised: sealing late", ""),
        ("keys", "published", "A new log key was published", ""),
        ("exports", "export done", "export 3", ""),
        ("denials", "not granted", "claude was refused memory.capture", "No grant lets claude use memory:write."),
    ],
)  # fmt: skip
def test_what_was_done_is_in_its_part_in_words_with_its_reason(
    pack: bytes, part: str, done: str, words: str, reason: str
) -> None:
    found = [row for row in rows(pack, part) if row["done"] == done and words in row["what"]]
    assert found and found[0]["reason"] == reason
    assert found[0]["link"] == f"{settings.MUNIMENT_URL}/admin/records/{found[0]['record']}/"


def test_figures_of_refusals_retention_and_verifications_add_up(pack: bytes) -> None:
    denied = figures(pack, "denials")
    assert denied["By reason"] == {"Not granted (not_granted)": 1, "Unknown tool (tool_unknown)": 1} and denied[
        "By client"
    ] == {"claude": 2}
    assert denied["By tool"] == {"inner: memory.capture": 1, "inner: memory.unheard_of": 1}
    assert figures(pack, "retention")["Records"] == {"deleted by rule": 5, "kept under a hold": 2}
    assert figures(pack, "verifications") == {
        "Verifications of the log": {"full, ended": 1, "sample, ended": 1, "not ended in the period": 1},
        "What they found": {"records looked at, over all runs": 49, "findings": 1},
    }
    assert [row["first finding"] for row in rows(pack, "verifications")] == [
        "", "record-changed: record 1 was changed", "",
    ]  # fmt: skip
    assert figures(pack, "anchoring")["Holds a state with all records of the period"] == {"mailbox": 1}
    assert figures(pack, "keys")["Keys in use at the end of the period"]["log"] == 1


def test_each_control_says_what_it_asks_its_query_its_figures_and_its_records(made: Scene, pack: bytes) -> None:
    index = read(pack, "index.html")
    pages = [name for name in names(pack) if name.startswith("controls/")]
    controls = [(f, c) for f in evidence_controls.FRAMEWORKS for c in f.controls]
    assert len(pages) == len(controls) == 8
    for framework, control in controls:
        name = f"controls/{framework.slug}-{control.slug}.html"
        page = read(pack, name)
        assert f'href="{name}"' in index and escape(control.asks) in page
        assert "Query:" in page and "/admin/records/?type=" in page and "since=" in page
        for slug in control.sections:
            assert f'id="{slug}"' in page
            if slug != "calls":
                assert f'href="../records/{slug}.csv"' in page
    assert "claude may use memory:read" in read(pack, "controls/soc2-cc6-3.html")


def test_only_the_frameworks_that_were_asked_for_are_in_it(made: Scene) -> None:
    pack, manifest = made.pack("hipaa")
    assert manifest["frameworks"] == ["hipaa"]
    assert [name for name in names(pack) if name.startswith("controls/")] == ["controls/hipaa-164-312-b.html"]
    with pytest.raises(Refused, match="no such framework: pci"):
        made.pack("pci")


def test_the_same_period_asked_for_at_the_same_time_gives_the_same_bytes_whatever_came_since(made: Scene) -> None:
    first, _ = made.pack()
    made.world.verify()
    sealed(made.sealer)
    assert made.pack()[0] == first
    assert made.pack(made_at=made.until + timedelta(seconds=1))[0] != first


def test_no_identifier_of_a_user_is_in_it(made: Scene, pack: bytes) -> None:
    whole = "".join(read(pack, name) for name in names(pack))
    assert any(uid in whole for uid in Subject.objects.values_list("uid", flat=True))
    for secret in ("alice", "bobadilla", "@example.com"):
        assert secret not in whole


def test_what_a_worker_without_the_key_encryption_key_cannot_open_is_said_to_be_protected(
    made: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(settings.MUNIMENT_KEYS, "KEY_ENCRYPTION_KEY")
    pack, _ = made.pack()
    reasons = {row["reason"] for row in rows(pack, "grants") + rows(pack, "holds")}
    assert reasons == {"", reading.PROTECTED} and "see the record in the admin" in reading.PROTECTED
    assert {row["name"] for row in rows(pack, "grants")} == {""}
    assert all(not json.loads(line)["disclosures"] for line in read(pack, "records/grants.jsonl").splitlines())


def test_a_period_without_a_record_says_so_and_invents_nothing(made: Scene) -> None:
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    pack, manifest = made.pack(since=long_ago, until=long_ago + timedelta(days=90))
    assert manifest["last"] == manifest["first"] - 1 and not any(manifest["counts"].values())
    index, page = read(pack, "index.html"), read(pack, "controls/soc2-cc6-1.html")
    assert index.count("No record of this period is about it") == 8 and "none in this period" in index
    assert "There is none in this period." in page and "In this period." not in index
    assert figures(pack, "calls")["Calls of AI clients"] == {"allowed": 0, "refused": 0}


def test_nobody_without_the_right_to_read_records_gets_one_and_tenants_bound_what_is_in_it(made: Scene) -> None:
    with pytest.raises(PermissionDenied):
        made.pack(viewer=Viewer("staff:9", "Nobody"))
    pack, manifest = made.pack(viewer=Viewer("staff:9", "Guest", records=True, tenants=frozenset({"acme"})))
    assert not any(n for part, n in manifest["counts"].items() if part not in ("verifications", "anchoring"))
    assert "Mara" not in "".join(read(pack, name) for name in names(pack))


@pytest.mark.parametrize(
    ("since", "until", "words"), [(0, 0, "must begin before"), (0, 3600, "not over yet")]
)  # fmt: skip
def test_a_period_that_cannot_be_is_refused(made: Scene, since: int, until: int, words: str) -> None:
    now = timezone.now()
    with pytest.raises(Refused, match=words):
        made.pack(since=now + timedelta(seconds=since), until=now + timedelta(seconds=until), made_at=now)


def test_a_pack_waits_for_what_is_not_sealed_and_is_made_once_it_is(made: Scene) -> None:
    made.world.verify()
    drained()
    asked = {"since": made.since, "until": timezone.now(), "made_at": timezone.now()}
    with pytest.raises(Refused) as refused:
        made.pack(**asked)
    assert refused.value.waits
    sealed(made.sealer)
    assert made.pack(**asked)[1]["last"] > 0


def test_whoever_stops_it_between_two_pages_stops_it(made: Scene) -> None:
    class Stop(Exception):
        pass

    def tick() -> None:
        raise Stop

    with pytest.raises(Stop):
        packing.write(BytesIO(), made.viewer, made.since, made.until, tick=tick)


def test_a_process_without_the_export_key_makes_none(made: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(settings.MUNIMENT_KEYS, "EXPORT_KEY")
    with pytest.raises(Refused, match="export key"):
        made.pack()


def test_many_records_of_a_kind_are_read_in_pages(made: Scene, pack: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PAGE", 2)
    monkeypatch.setattr(reading, "WINDOW", 3)
    again = made.pack()[0]
    for name in names(pack):
        assert read(again, name) == read(pack, name), name


def test_texts_of_people_are_shown_as_texts(pack: bytes) -> None:
    told = read(pack, "records/grants.csv")
    assert f"'{FORMULA}".replace('"', '""') in told and f',"{FORMULA[:6]}' not in told
    for name in names(pack):
        if name.endswith(".html"):
            page = read(pack, name)
            assert MARKUP not in page and "<script" not in page
    page = read(pack, "controls/soc2-cc6-3.html")
    assert "&lt;script&gt;" in page and LONG not in page and f"{LONG[:400]}…" in page


def test_a_record_that_was_changed_in_the_database_is_shown_as_one_that_does_not_hold(
    made: Scene, superuser_url: str
) -> None:
    change = (
        "UPDATE audit_record SET statement = convert_to(replace(convert_from(statement, 'UTF8'), '{}', '{}'), 'UTF8')"
    )
    where = " WHERE type = 'hold'"
    altered(superuser_url, change.format('"hold":1', '"hold":8') + where)
    try:
        pack, _ = made.pack()
    finally:
        altered(superuser_url, change.format('"hold":8', '"hold":1') + where)
    told = rows(pack, "holds")
    assert told and all("This record does not hold" in row["what"] for row in told)
    assert {row["reason"] for row in told} == {reading.STATES["broken"]}
    report, _ = packs.verify(BytesIO(pack), made.trust())
    assert {one.code for one in report.findings} == {"record-changed"}
