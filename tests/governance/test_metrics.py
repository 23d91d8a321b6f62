"""GET /metrics: what is told, to whom, and that what cannot be asked costs no more than itself."""

import multiprocessing
import os
import re
import time
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connection
from django.test import Client as HttpClient
from django.utils import timezone
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as families

from audit import alerts
from audit.models import (
    AnchorState,
    DeadLetter,
    Erasure,
    Export,
    ExportRun,
    Outbox,
    RetentionRun,
    Stream,
)
from governance import metrics, metrics_database, metrics_slots, metrics_view
from governance.metrics_slots import Slots
from governance.process import recorder
from tests.live import Load, until, web
from tests.world import World, build, token

TOKEN = "scrape-me-if-you-can"
Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def world(db: None) -> World:
    return build()


def read(text: str) -> Figures:
    """Every sample, by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families(text)
        for sample in family.samples
    }


def scraped() -> Figures:
    response = HttpClient(headers={"host": "127.0.0.1:8000"}).get("/metrics")
    assert response.status_code == 200, response.content
    return read(response.content.decode())


def one(figures: Figures, name: str, **labels: str) -> float:
    return figures.get((f"muniment_{name}", frozenset(labels.items())), 0.0)


def grown(before: Figures, name: str, by: float, **labels: str) -> None:
    """A counter has grown by so much: the recorder counts a moment after the answer."""
    until(lambda: one(scraped(), name, **labels) - one(before, name, **labels) == by, 30)


class TestCalls:
    def test_every_call_is_counted_by_decision_and_reason(self, world: World) -> None:
        before = scraped()
        for _ in range(3):
            world.verify()
        world.verify("memory.capture")
        world.verify(token=token()[:-8] + "AAAAAAAA")
        grown(before, "calls_total", 3, type="decision", decision="allow", reason="granted")
        grown(before, "calls_total", 1, type="decision", decision="deny", reason="not_granted")
        grown(before, "calls_total", 1, type="decision", decision="deny", reason="token_invalid")
        grown(before, "records_total", 5, type="decision")

    def test_the_time_of_a_call_falls_into_the_buckets_of_its_endpoint(self, world: World) -> None:
        before = scraped()
        world.verify()
        world.post("/v1/verify/batch", {"items": [{"token": token(), "tool": "memory.recall"}] * 4})
        after = scraped()
        for endpoint in ("verify", "batch"):
            count = [one(f, "call_seconds_count", endpoint=endpoint) for f in (before, after)]
            assert count[1] - count[0] == 1
            bucket = [one(f, "call_seconds_bucket", endpoint=endpoint, le="+Inf") for f in (before, after)]
            assert bucket[1] - bucket[0] == 1
        took = [one(f, "call_seconds_sum", endpoint="verify") for f in (before, after)]
        assert 0 < took[1] - took[0] < 10

    def test_what_is_answered_with_a_problem_is_counted_by_its_status(self, world: World) -> None:
        before = scraped()
        assert world.post("/v1/verify", b"{").status_code == 400
        assert world.post("/v1/verify", {}, key="mk_none_such").status_code == 401
        grown(before, "refused_total", 1, status="400")
        grown(before, "refused_total", 1, status="401")

    def test_what_was_turned_away_is_counted(self, world: World) -> None:
        before = scraped()
        recorder()
        assert world.post("/v1/verify", {}, key="mk_none_such").status_code == 401
        grown(before, "turned_away_total", 1, reason="backend_key")

    def test_no_label_holds_what_a_caller_sent(self, world: World) -> None:
        world.verify("tool.of.my.own-choice", request={"id": "request-of-mine"})
        world.verify(token=token(client="client-of-mine", sub="mallory"))
        text = HttpClient(headers={"host": "localhost"}).get("/metrics").content.decode()
        for sent in ("own-choice", "of-mine", "mallory", "claude", "memory"):
            assert sent not in text

    def test_the_queue_tells_its_length_and_its_room(self, world: World) -> None:
        recorder()
        until(lambda: one(scraped(), "queue_capacity") == recorder().capacity, 30)
        assert one(scraped(), "queue_length") < recorder().capacity
        assert one(scraped(), "web_processes") >= 1

    def test_counting_costs_a_call_a_few_millionths_of_a_second(self, world: World) -> None:
        row = [None, 0, None, "decision", "allow", "granted"]

        class Written:
            rows = [row]

        rounds, best = 2_000, float("inf")
        for _ in range(10):  # the best of them: others are at work on this machine
            began = time.thread_time()
            for _ in range(rounds):
                metrics.timers["other"].observe(0.004)
                metrics.written(Written())  # type: ignore[arg-type]
            best = min(best, (time.thread_time() - began) / rounds)
        assert best < 15e-6  # 4.5 on an idle core of a small machine; a batch has several calls as a rule


class TestTheDatabase:
    def test_the_log_and_what_waits_in_it(self, world: World) -> None:
        world.verify()
        found = scraped()
        assert one(found, "database_up") == 1
        assert one(found, "log_records") >= 1
        assert one(found, "unsealed_records") == one(found, "log_records") - one(found, "sealed_records")
        assert one(found, "seal_delay_seconds") >= 0
        assert one(found, "policy_version") >= 1
        assert one(found, "redis_up") == 1
        assert [v for (name, _), v in found.items() if name == "muniment_scrape_failed" and v] == []

    def test_an_alert_that_is_open_is_counted_and_the_others_are_nought(self, world: World) -> None:
        assert one(scraped(), "alerts_open", kind="sealing-late") == 0
        alerts.raise_alert("sealing-late", "", "words")
        found = scraped()
        assert one(found, "alerts_open", kind="sealing-late") == 1
        assert one(found, "alerts_open", kind="anchor-failing") == 0
        assert ("muniment_alerts_open", frozenset({("kind", "batch-missing")})) in found

    def test_what_waits_in_the_outbox(self, db: None) -> None:
        old = timezone.now() - timedelta(minutes=2)
        Outbox.objects.create(kind="notice", members={"action": "x"}, at=old, actor="system", xact="")
        found = scraped()
        assert one(found, "outbox_pending") == 1
        assert 119 < one(found, "outbox_delay_seconds") < 180

    def test_an_anchor_that_holds_nothing_is_late_by_the_oldest_sealed_record(self, world: World) -> None:
        AnchorState.objects.create(name="file:///a", kind="file", failures=4)
        found = scraped()
        assert one(found, "anchor_failures", anchor="file:///a") == 4
        assert one(found, "anchor_delay_seconds", anchor="file:///a") == 0  # nothing is sealed

    def test_exports_streams_retention_and_erasures(self, db: None) -> None:
        now = timezone.now()
        export = Export.objects.create(name="daily", owner="staff:1", format="jsonl", created_at=now, failures=3)
        Export.objects.create(name="broken", owner="staff:1", format="csv", created_at=now, enabled=False, words="five")
        ExportRun.objects.create(
            export=export.id, owner="staff:1", slot=now - timedelta(hours=2), since=now, until=now, created_at=now
        )
        Stream.objects.create(name="siem", kind="webhook", place="host", next=0, seen_at=now, failures=2)
        DeadLetter.objects.create(stream="siem", index=1, record="0" * 32, words="no", at=now)
        RetentionRun.objects.using("owner").create(state="failed", began_at=now - timedelta(hours=1))
        Erasure.objects.create(
            subject="usr_1", state="asked", reference="1", reason="-", asked_by="staff:1",
            asked_at=now - timedelta(minutes=10),
        )  # fmt: skip
        found = scraped()
        assert 7199 < one(found, "export_lag_seconds") < 7300
        assert (one(found, "export_failures"), one(found, "exports_disabled")) == (3, 1)
        assert (one(found, "stream_failures", stream="siem"), one(found, "stream_dead_letters", stream="siem")) == (
            2,
            1,
        )
        assert (one(found, "retention_state", state="failed"), one(found, "retention_state", state="done")) == (1, 0)
        assert 3599 < one(found, "retention_age_seconds") < 3700
        assert one(found, "erasures_asked") == 1 and 599 < one(found, "erasure_delay_seconds") < 700

    def test_a_snapshot_that_stays_open_is_seen_with_its_age(self, db: None) -> None:
        before = scraped()
        with psycopg.connect(os.environ["DATABASE_URL"]) as held:
            held.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            held.execute("SELECT count(*) FROM audit_head")
            for _ in range(5):
                Outbox.objects.create(kind="notice", members={}, at=timezone.now(), actor="system", xact="")
            time.sleep(0.3)
            found = scraped()
            assert one(found, "backend_xmin_age_seconds") >= 0.3
            assert one(found, "backend_xmin_age_xids") >= 5
        assert one(before, "backend_xmin_age_seconds") >= 0

    def test_without_the_database_the_counts_of_the_processes_still_come(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.verify()

        def away() -> None:
            raise OperationalError("away")

        monkeypatch.setattr(metrics_database, "pulse", away)
        found = scraped()
        assert one(found, "database_up") == 0
        assert one(found, "records_total", type="decision") >= 1
        assert one(found, "scrape_failed", part="log") == 1
        assert ("muniment_log_records", frozenset()) not in found

    def test_a_part_that_fails_is_named_and_takes_no_other_with_it(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def slow(known: object) -> Iterator[metrics_database.Metric]:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(60)")
            yield metrics_database.gauge("never", "", 0)

        monkeypatch.setattr(metrics_database, "SECONDS", 1.0)
        monkeypatch.setitem(metrics_database.PARTS, "outbox", slow)
        began = time.monotonic()
        found = scraped()
        assert time.monotonic() - began < 30
        assert one(found, "scrape_failed", part="outbox") == 1
        assert one(found, "scrape_failed", part="xmin") == 0
        assert one(found, "database_up") == 1 and one(found, "policy_version") >= 1


class TestWhoMay:
    @pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:8000"])
    def test_this_machine_may_without_a_token(self, db: None, host: str) -> None:
        assert HttpClient(headers={"host": host}).get("/metrics").status_code == 200

    @pytest.mark.parametrize("address", ["::1", "::ffff:127.0.0.1"])
    def test_by_ipv6_as_well(self, db: None, address: str) -> None:
        http = HttpClient(headers={"host": "[::1]:8000"}, REMOTE_ADDR=address)
        assert http.get("/metrics").status_code == 200

    @pytest.mark.parametrize("address", ["192.0.2.1", "::2", "", "127.0.0.1.example", "10.0.0.1"])
    def test_another_machine_may_not(self, db: None, address: str) -> None:
        response = HttpClient(headers={"host": "127.0.0.1"}, REMOTE_ADDR=address).get("/metrics")
        assert response.status_code == 403
        assert b"muniment_" not in response.content

    @pytest.mark.parametrize("name", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "Via", "X-Forwarded-Proto"])
    def test_nobody_may_through_a_proxy(self, db: None, name: str) -> None:
        response = HttpClient(headers={"host": "127.0.0.1", name: "127.0.0.1"}).get("/metrics")
        assert response.status_code == 403

    @pytest.mark.parametrize("host", ["muniment.example", "127.0.0.1.example", "localhost.example", "", "["])
    def test_nor_by_a_public_name(self, db: None, host: str) -> None:
        assert HttpClient(headers={"host": host}).get("/metrics").status_code == 403

    def test_a_token_opens_it_from_anywhere_and_nothing_else_does(
        self, db: None, settings: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings.MUNIMENT_METRICS_TOKEN = TOKEN
        far = HttpClient(headers={"host": "muniment.example", "x-forwarded-for": "192.0.2.1"}, REMOTE_ADDR="192.0.2.9")
        assert far.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        for wrong in (
            "",
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            "Bearer",
            f"Basic {TOKEN}",
            "Bearer \xff\xfe",
            TOKEN,
        ):
            response = far.get("/metrics", headers={"authorization": wrong})
            assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer"), wrong
            assert TOKEN.encode() not in response.content
        # With a token, being on this machine is not enough.
        assert HttpClient(headers={"host": "127.0.0.1"}).get("/metrics").status_code == 401
        assert TOKEN not in caplog.text

    def test_in_production_probes_reach_it_by_address_and_without_tls_and_nothing_else_does(
        self, db: None, settings: Any
    ) -> None:
        settings.SECURE_SSL_REDIRECT, settings.ALLOWED_HOSTS = True, ["muniment.example"]
        http = HttpClient(headers={"host": "127.0.0.1:8000"})
        for path in ("/livez", "/readyz", "/metrics"):
            assert http.get(path).status_code == 200, path
        assert http.get("/v1/keys").status_code == 400
        assert http.get("/v1/keys", secure=True).status_code == 400
        public = HttpClient(headers={"host": "muniment.example"})
        assert public.get("/v1/keys").status_code == 301
        assert public.get("/metrics").status_code == 403

    def test_only_reading_is_allowed(self, db: None) -> None:
        assert HttpClient(headers={"host": "127.0.0.1"}).post("/metrics").status_code == 405


class TestFormats:
    def test_text_for_those_who_ask_for_nothing(self, world: World) -> None:
        response = HttpClient(headers={"host": "127.0.0.1"}).get("/metrics")
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert response.headers["Cache-Control"] == "no-store"
        seen: set[str] = set()
        for family in families(response.content.decode()):
            assert family.name not in seen, "the same family twice"
            seen.add(family.name)
            assert family.name.startswith("muniment_") and family.documentation
        assert {"muniment_calls", "muniment_call_seconds", "muniment_seal_delay_seconds"} <= seen

    def test_openmetrics_for_those_who_ask_for_it(self, world: World) -> None:
        world.verify()
        accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
        response = HttpClient(headers={"host": "127.0.0.1"}).get("/metrics", headers={"accept": accept})
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        found = {family.name for family in open_families(response.content.decode())}
        assert {"muniment_calls", "muniment_policy_version"} <= found


class TestSlots:
    def test_two_processes_have_two_slots_and_the_next_one_takes_the_first_that_is_free(self, tmp_path: Path) -> None:
        first, second = Slots(tmp_path), Slots(tmp_path)
        assert (first.number(), second.number(), first.number()) == (1, 2, 1)
        os.close(first.held[1])  # type: ignore[index]
        assert Slots(tmp_path).number() == 1

    def test_a_child_takes_a_slot_of_its_own_and_leaves_the_parents(self, tmp_path: Path) -> None:
        slots = Slots(tmp_path)
        assert slots.number() == 1
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:  # pragma: no cover - the child
            try:
                os.write(write_end, str(slots.number()).encode())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert os.read(read_end, 10) == b"2"
        os.close(read_end)
        os.close(write_end)
        assert slots.live() == [1]

    def test_gauges_of_the_dead_go_and_their_counters_stay(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("fork")
        for value in (3, 4):
            child = context.Process(target=counting, args=(tmp_path, value))
            child.start()
            child.join(30)
            assert child.exitcode == 0
        slots = Slots(tmp_path)
        assert slots.live() == []
        assert not list(tmp_path.glob("gauge_live*"))
        found = {m.name: m for m in metrics_view.MultiProcessCollector.merge(slots.files())}
        assert [s.value for s in found["kept"].samples] == [7.0]
        assert "room" not in found

    def test_a_file_that_cannot_be_read_is_made_anew_and_one_of_a_living_process_is_left_out(
        self, tmp_path: Path
    ) -> None:
        child = multiprocessing.get_context("fork").Process(target=counting, args=(tmp_path, 5))
        child.start()
        child.join(30)
        broken = b"\xff\x00\x00\x00\x00\x00\x00\x00\x7f\xff\xff\x7f" + b"\xfe" * 4000
        (tmp_path / "counter_2.db").write_bytes(broken)
        found, unreadable = metrics_view._merged(Slots(tmp_path).files())
        assert unreadable == 1
        assert [s.value for m in found if m.name == "kept" for s in m.samples] == [5.0]
        (tmp_path / "counter_1.db").write_bytes(broken)
        slots = Slots(tmp_path)
        assert slots.number() == 1
        assert metrics_slots.readable(tmp_path / "counter_1.db")

    def test_where_there_is_no_room_the_process_counts_by_itself(self, tmp_path: Path) -> None:
        (tmp_path / "metrics").write_text("a file, where a folder should be")
        before = metrics_slots.values.ValueClass
        assert metrics_slots.count_in(tmp_path / "metrics") is None
        assert metrics_slots.values.ValueClass is before

    def test_files_have_their_room_on_the_disk_before_they_are_mapped(self, tmp_path: Path) -> None:
        Slots(tmp_path).number()
        for path in tmp_path.glob("*.db"):
            assert path.stat().st_blocks * 512 >= metrics_slots.FILE_BYTES
            assert path.stat().st_mode & 0o077 == 0


def test_the_document_has_exactly_the_metrics_that_there_are(world: World) -> None:
    world.verify()
    document = (Path(__file__).resolve().parents[2] / "docs/operate.md").read_text()
    table = document.partition("## Metrics")[2].partition("## Alarms")[0]
    listed = [row for row in table.splitlines() if row.startswith("| `muniment_")]
    documented = {name for row in listed for name in re.findall(r"`(muniment_\w+)`", row.split("|")[1])}
    response = HttpClient(headers={"host": "127.0.0.1"}).get("/metrics")
    served = {family.name for family in families(response.content.decode())}
    documented = {name.removesuffix("_total") for name in documented}
    sometimes = {"verification_findings", "verification_age_seconds", "retention_age_seconds", "turned_away", "refused",
                 "beat_tick_seconds"}  # fmt: skip
    told_when_there_is = {f"muniment_{name}" for name in sometimes}
    assert documented | told_when_there_is == served | told_when_there_is
    alarms = document.partition("## Alarms")[2].partition("## Logs")[0]
    named = re.findall(r"muniment_[a-z_]+[a-z](?=[ {\[`])", alarms)
    assert len(named) > 20 and {name.removesuffix("_total").removesuffix("_bucket") for name in named} <= documented


def counting(folder: Path, value: int) -> None:
    """A process that counts and says how much room it has, then ends."""
    metrics_slots.count_in(folder)
    counter = metrics.Counter("kept", "-", registry=None)
    room = metrics.Gauge("room", "-", registry=None, multiprocess_mode="livemax")
    counter.inc(value)
    room.set(9)


def test_a_scrape_tells_of_all_web_processes_whichever_answers_it(world: World, tmp_path: Path) -> None:
    with web(workers=2, MUNIMENT_VAR=str(tmp_path)) as [server]:
        with Load([server.port], world.key, {"alice": token()}, threads=8) as load:
            load.wait_for(60)
        answered = len(load.answers)

        def told() -> tuple[float, float]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as response:
                    found = read(response.read().decode())
            except OSError:  # the one that was killed
                return 0, 0
            calls = one(found, "calls_total", type="decision", decision="allow", reason="granted")
            return one(found, "web_processes"), calls

        until(lambda: told() == (2, answered), 60)
        assert {told() for _ in range(6)} == {(2, answered)}
        server.kill_worker()
        until(lambda: told() == (2, answered), 60)  # another in its place; what the dead one counted is not lost
    assert len(list((tmp_path / "metrics").glob("counter_*.db"))) <= 3
