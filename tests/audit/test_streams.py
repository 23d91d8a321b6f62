"""Streams: every sealed record once at least, in order, whatever the receiver and the worker do in between."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection

from audit import tasks
from audit.models import Alert, DeadLetter, Outbox, Record, Stream
from audit.streams import delivering
from audit.streams.reading import ConfigError
from governance.celery import app as celery
from tests.audit import receiving
from tests.audit.anchored import Clock, alerts, stopped
from tests.audit.filling import fill
from tests.audit.ocsf_rules import faults
from tests.audit.receiving import KEY, Delivery, Webhook, configure, hook, run
from tests.audit.trees import HandSealed
from tests.live import until


@pytest.fixture
def log(db: None) -> HandSealed:
    return HandSealed()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return stopped(monkeypatch)


@pytest.fixture
def siem(settings: Any) -> Iterator[Webhook]:
    """A webhook that is configured, from the first record on."""
    with receiving.webhook() as found:
        configure(settings, hook(found))
        yield found


def grow(log: HandSealed, count: int, **more: Any) -> list[Record]:
    """So many records, sealed."""
    made = fill([more] * count)
    log.seal()
    return made


def refusing(bad: set[int], status: int = 422) -> Any:
    """An answer to what has one of these records in it; 200 to all else."""
    return lambda delivery: status if bad & set(delivery.indices) else 200


def test_every_sealed_record_comes_once_and_in_order(log: HandSealed, siem: Webhook) -> None:
    grow(log, 250)
    fill([{}] * 5)  # not sealed: not yet evidence
    row = run()
    assert siem.accepted == list(range(250))
    assert [len(one.events) for one in siem.got] == [100, 100, 50]
    assert (row.next, row.sent, row.skipped, row.failures, row.error) == (250, 250, 0, 0, "")
    run()
    assert len(siem.got) == 3
    log.seal()
    assert run().next == 255
    assert siem.accepted == list(range(255))


def test_a_batch_is_cloud_events_that_carry_ocsf_and_is_signed(log: HandSealed, siem: Webhook) -> None:
    [record] = grow(log, 1, subject="usr_alice")
    run()
    [one] = siem.got
    assert one.path == "/siem"
    assert one.headers["content-type"].startswith("application/cloudevents-batch+json")
    assert one.signed_by(KEY)
    assert not one.signed_by(KEY[::-1])
    assert abs(int(one.headers["webhook-timestamp"]) - datetime.now(UTC).timestamp()) < 60
    [event] = one.events
    data = event.pop("data")
    assert event == {
        "specversion": "1.0", "id": str(record.id), "source": log.log.origin, "type": "org.muniment.record.decision",
        "subject": "usr_alice", "time": record.at.isoformat().replace("+00:00", "Z"), "sequence": f"{0:020}",
        "datacontenttype": "application/json", "dataschema": "https://schema.ocsf.io/1.5.0/classes/api_activity",
    }  # fmt: skip
    assert faults(data) == []
    assert data["metadata"]["uid"] == str(record.id)


def test_a_batch_that_is_sent_again_has_the_same_id(log: HandSealed, siem: Webhook, clock: Clock) -> None:
    grow(log, 3)
    siem.answer = lambda _: 503
    run()
    siem.answer = lambda _: 200
    clock.add(2)
    run()
    assert [one.headers["answered"] for one in siem.got] == ["503", "200"]
    assert siem.got[0].headers["webhook-id"] == siem.got[1].headers["webhook-id"]
    assert siem.got[0].body == siem.got[1].body


def test_a_batch_stays_below_its_bytes(log: HandSealed, siem: Webhook) -> None:
    fill([{"type": "policy", "actor": "staff:1", "changes": [{"op": "insert", "new": "x" * 60_000}]}] * 9)
    log.seal()
    run()
    assert siem.accepted == list(range(9))
    assert len(siem.got) > 1
    assert max(len(one.body) for one in siem.got) <= 256 * 1024


def test_a_new_stream_starts_at_what_is_sealed_or_where_it_is_told(log: HandSealed, settings: Any) -> None:
    grow(log, 10)
    with receiving.webhook() as siem:
        configure(settings, hook(siem, **{"from": None}), hook(siem, name="old", **{"from": 4}))
        assert (run().next, run("old").next) == (10, 10)
        assert siem.accepted == [4, 5, 6, 7, 8, 9]
        grow(log, 1)
        run()
        assert siem.accepted[-1] == 10


def test_a_filter_leaves_others_out_and_the_cursor_goes_on(log: HandSealed, settings: Any) -> None:
    fill([{"decision": "deny" if n % 10 == 3 else "allow", "tenant": "acme" if n < 200 else None} for n in range(250)])
    log.seal()
    with receiving.webhook() as siem:
        configure(settings, hook(siem, filter={"decision": "deny", "tenant": ["acme", "other"], "flagged": False}))
        row = run()
    assert siem.accepted == list(range(3, 200, 10))
    assert (row.next, row.sent, row.skipped) == (250, 20, 0)


def test_what_retention_deleted_is_passed_over_and_counted(log: HandSealed, siem: Webhook, superuser_url: str) -> None:
    grow(log, 130)
    with psycopg.connect(superuser_url) as superuser:
        superuser.execute("SET session_replication_role = replica")
        superuser.execute("DELETE FROM audit_record WHERE index < 20 OR index BETWEEN 50 AND 119 OR index = 129")
    row = run()
    assert siem.accepted == [*range(20, 50), *range(120, 129)]
    assert (row.next, row.sent, row.skipped) == (130, 39, 91)


@pytest.mark.parametrize("status", [401, 403, 404, 410, 418, 301, 307, 429, 500, 503])
def test_a_receiver_that_may_take_it_later_is_waited_for(
    log: HandSealed, siem: Webhook, clock: Clock, status: int
) -> None:
    grow(log, 3)
    siem.answer = lambda _: (status, {"Location": siem.url + "/elsewhere"})
    row = run()
    assert (row.next, row.failures, len(siem.got)) == (0, 1, 1)
    assert str(status) in row.error or "redirects" in row.error
    assert not DeadLetter.objects.exists()
    run()
    assert len(siem.got) == 1  # it is left alone for a second
    clock.add(1)
    siem.answer = lambda _: 204
    row = run()
    assert (row.next, row.failures, row.error, row.failing_since, row.retry_at) == (3, 0, "", None, None)


def test_the_pause_doubles_up_to_ten_minutes(log: HandSealed, siem: Webhook, clock: Clock) -> None:
    grow(log, 1)
    siem.answer = lambda _: 500
    waits = []
    for _ in range(12):
        row = run()
        assert row.retry_at is not None
        waits.append((row.retry_at - clock.now).total_seconds())
        clock.now = row.retry_at
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("120", 120), ("999999999999", 3600), ("soon", 1), ("-5", 1), ("", 1), ("Wed, 21 Oct 2015 07:28:00 GMT", 1),
     ("Fri, 31 Dec 9999 23:59:59 GMT", 3600)],
)  # fmt: skip
def test_retry_after_is_heeded_within_an_hour(
    log: HandSealed, siem: Webhook, clock: Clock, value: str, seconds: int
) -> None:
    grow(log, 1)
    siem.answer = lambda _: (429, {"Retry-After": value})
    row = run()
    assert row.retry_at == clock.now + timedelta(seconds=seconds)


def test_a_time_that_somebody_put_far_off_silences_nobody(log: HandSealed, siem: Webhook) -> None:
    grow(log, 1)
    delivering.publish()
    Stream.objects.update(retry_at=datetime(9000, 1, 1, tzinfo=UTC))
    assert run().next == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_one_record_that_is_refused_becomes_a_dead_letter_and_the_others_go_on(
    log: HandSealed, siem: Webhook, status: int
) -> None:
    grow(log, 120)
    siem.answer = refusing({57, 58, 119}, status)
    row = run()
    assert siem.accepted == [n for n in range(120) if n not in (57, 58, 119)]
    assert (row.next, row.sent) == (120, 117)
    letters = list(DeadLetter.objects.order_by("index"))
    assert [letter.index for letter in letters] == [57, 58, 119]
    assert letters[0].record == Record.objects.get(index=57).id
    assert f"({status})" in letters[0].words
    assert len(siem.got) < 50


def test_a_receiver_that_refuses_everything_is_waited_for(log: HandSealed, siem: Webhook, clock: Clock) -> None:
    grow(log, 100)
    siem.answer = lambda _: 400
    row = run()
    assert DeadLetter.objects.count() == delivering.MAX_REFUSED == row.next
    assert "no more are passed over" in row.error
    for _ in range(3):
        clock.add(700)
        row = run()
    assert row.next == delivering.MAX_REFUSED
    siem.answer = lambda _: 200
    clock.add(700)
    row = run()
    assert (row.next, row.error) == (100, "")
    assert siem.accepted == list(range(delivering.MAX_REFUSED, 100))


def test_a_dead_letter_is_sent_again_when_somebody_asks(log: HandSealed, siem: Webhook) -> None:
    grow(log, 6)
    siem.answer = refusing({1, 2, 4})
    run()
    DeadLetter.objects.exclude(index=4).update(asked_at=datetime.now(UTC))
    siem.answer = refusing({2, 4})
    row = run()
    assert siem.accepted == [0, 3, 5, 1]
    assert row.sent == 4
    taken, refused, left = DeadLetter.objects.order_by("index")
    assert taken.settled_at is not None
    assert (refused.settled_at, refused.retries, refused.asked_at) == (None, 1, None)
    assert (left.settled_at, left.retries) == (None, 0)
    run()
    assert siem.accepted == [0, 3, 5, 1]


def test_a_dead_letter_whose_record_is_gone_is_settled(log: HandSealed, siem: Webhook, superuser_url: str) -> None:
    grow(log, 2)
    siem.answer = refusing({0})
    run()
    with psycopg.connect(superuser_url) as superuser:
        superuser.execute("SET session_replication_role = replica")
        superuser.execute("DELETE FROM audit_record")
    DeadLetter.objects.update(asked_at=datetime.now(UTC))
    run()
    [letter] = DeadLetter.objects.all()
    assert letter.settled_at is not None
    assert "no longer in the database" in letter.words


def test_a_paused_stream_sends_nothing(log: HandSealed, siem: Webhook) -> None:
    grow(log, 3)
    delivering.publish()
    Stream.objects.update(paused_at=datetime.now(UTC))
    assert run().next == 0
    assert siem.got == []
    Stream.objects.update(paused_at=None)
    assert run().next == 3


def test_who_fails_for_fifteen_minutes_is_an_alert_until_it_is_over(
    log: HandSealed, siem: Webhook, clock: Clock
) -> None:
    grow(log, 1)
    siem.answer = lambda _: 500
    run()
    clock.add(14 * 60)
    run()
    assert alerts() == []
    clock.add(2 * 60)
    run()
    assert alerts() == [("stream-stuck", "siem")]
    assert "the receiver answered 500" in Alert.objects.get().words
    siem.answer = lambda _: 200
    clock.add(600)
    run()
    delivering.publish()
    assert alerts() == []
    told = list(Outbox.objects.order_by("id").values_list("members__action", flat=True))
    assert told == ["stream.started", "alert.raised", "alert.cleared"]


def test_an_alert_is_over_when_its_stream_is_paused_or_gone(
    log: HandSealed, siem: Webhook, clock: Clock, settings: Any
) -> None:
    grow(log, 1)
    siem.answer = lambda _: 500
    for change in ({"paused_at": clock.now}, None):
        run()
        clock.add(16 * 60)
        delivering.publish()
        assert alerts() == [("stream-stuck", "siem")]
        if change:
            Stream.objects.update(**change)
        else:
            settings.MUNIMENT_STREAMS = ""
        delivering.publish()
        assert alerts() == []
        Stream.objects.update(paused_at=None, retry_at=None)


def test_only_one_worker_brings_a_stream_its_records(log: HandSealed, siem: Webhook, owner_url: str) -> None:
    grow(log, 3)
    delivering.publish()
    with psycopg.connect(owner_url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s, hashtext('siem'))", [delivering.LOCK])
        assert run().next == 0
        assert siem.got == []
        other.execute("SELECT pg_advisory_unlock_all()")  # the end of a connection is noticed some time later
    assert run().next == 3
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s", [delivering.LOCK])
        assert cursor.fetchone() == (0,)


def test_a_cursor_that_another_worker_moved_is_not_moved_back(log: HandSealed, siem: Webhook) -> None:
    grow(log, 150)

    def meanwhile(delivery: Delivery) -> int:
        with psycopg.connect(os.environ["DATABASE_OWNER_URL"]) as other:
            other.execute("UPDATE audit_stream SET next = 140")
        return 200

    siem.answer = meanwhile
    row = run()
    assert (row.next, row.sent) == (140, 0)
    siem.answer = lambda _: 200
    assert run().next == 150


KILLED = """
import os, signal, sys
import django
django.setup()
from audit.streams import delivering
from audit.streams.webhook import Webhook
send = Webhook.send
def once(self, items):
    count = send(self, items)
    if items[0].index >= 100:
        os.kill(os.getpid(), signal.SIGKILL)
    return count
Webhook.send = once
delivering.publish()
delivering.deliver("siem")
"""


def test_a_worker_killed_between_sending_and_its_cursor_repeats_and_never_skips(
    log: HandSealed, siem: Webhook, settings: Any
) -> None:
    grow(log, 250)
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "governance.settings", "MUNIMENT_PROCESS": "worker",
        "MUNIMENT_EXPORT_KEY": os.environ["MUNIMENT_WRITER_KEY"], "MUNIMENT_STREAMS": settings.MUNIMENT_STREAMS,
    }  # fmt: skip
    for name in ("DJANGO_SECRET", "WRITER_KEY", "ASSERTION_KEY", "KEY_ENCRYPTION_KEY", "PEPPER"):
        environment.pop(f"MUNIMENT_{name}")
    ended = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, timeout=180)
    assert ended.returncode == -9, ended.stderr.decode()[-2000:]
    assert Stream.objects.get().next == 100
    assert siem.accepted == list(range(200))
    until(lambda: run().next == 250, 30)  # the lock goes with the process, once the server has noticed its end
    assert siem.accepted == [*range(200), *range(100, 250)]
    assert list(dict.fromkeys(siem.accepted)) == list(range(250))


def test_a_stream_whose_row_is_configured_anew_goes_on_where_it_was(
    log: HandSealed, siem: Webhook, settings: Any
) -> None:
    grow(log, 5)
    run()
    grow(log, 2)
    with receiving.webhook() as other:
        configure(settings, hook(other))
        row = run()
        assert (row.next, row.place) == (7, f"{other.url.rpartition('/')[0]}/…"), "the path may be a secret"
        assert other.accepted == [5, 6]
        delivering.publish()
    told = [(row.actor, row.members) for row in Outbox.objects.order_by("id")]
    assert [(who, said["action"], said["place"]) for who, said in told] == [
        ("system", "stream.started", f"{siem.url.rpartition('/')[0]}/…"), ("system", "stream.moved", row.place)
    ]  # fmt: skip


def test_an_error_of_ours_is_told_without_what_it_says(
    log: HandSealed, siem: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(log, 1)

    def broken(*_: Any) -> bytes:
        raise RuntimeError("secret words")

    monkeypatch.setattr("audit.streams.webhook.cloud_event", broken)
    assert run().error == "it failed (RuntimeError)"


def test_nothing_is_done_for_a_name_that_is_not_configured(log: HandSealed, siem: Webhook) -> None:
    delivering.deliver("nobody")
    assert siem.got == []


def test_nothing_waits_where_nothing_is_sealed(db: None, siem: Webhook) -> None:
    assert run().next == 0
    fill([{}])
    assert run().next == 0
    assert siem.got == []


def test_a_configuration_that_cannot_be_read_stops_nothing_else(db: None, settings: Any) -> None:
    settings.MUNIMENT_STREAMS = "- {name: siem, kind: pigeon}"
    with pytest.raises(ConfigError, match="entry 1: kind must be one of webhook, syslog"):
        delivering.publish()


def test_the_tasks_of_the_worker_deliver_each_stream(log: HandSealed, settings: Any) -> None:
    grow(log, 3)
    with receiving.webhook() as one, receiving.webhook() as other:
        configure(settings, hook(one), hook(other, name="other"))
        celery.conf.task_always_eager = True
        try:
            tasks.stream_records()
        finally:
            celery.conf.task_always_eager = False
        assert one.accepted == other.accepted == [0, 1, 2]
    schedule = {entry["task"]: entry for entry in settings.CELERY_BEAT_SCHEDULE.values()}
    assert schedule["audit.tasks.stream_records"]["schedule"] == 5.0
