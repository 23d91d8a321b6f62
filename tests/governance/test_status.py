"""`manage.py status`: in order, to be noted, or for a person; and what it exits with."""

import io
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from audit import alerts
from audit.models import DeadLetter, Erasure, Export, ExportRun, Outbox, RetentionRun, Stream
from clients.models import Introspection, Issuer, SignalStream
from governance import status
from tests.audit.sealers import sealed, sealing
from tests.world import World, build


@pytest.fixture
def world(db: None) -> World:
    return build()


def printed() -> tuple[str, int]:
    """What it prints, and its exit status."""
    out = io.StringIO()
    try:
        call_command("status", stdout=out)
    except CommandError as error:
        return out.getvalue() + str(error), error.returncode
    return out.getvalue(), 0


def found(part: str) -> list[tuple[str, str]]:
    return [(line.state, line.words) for line in status.lines() if line.part == part]


def beat(at: timedelta) -> None:
    every = IntervalSchedule.objects.create(every=1, period="hours")
    PeriodicTask.objects.create(name="x", task="x", interval=every, last_run_at=timezone.now() - at)


def test_all_in_order_is_one_screen_and_exit_status_0(world: World, tmp_path: Path) -> None:
    beat(timedelta(minutes=1))
    with sealing(tmp_path) as sealer:
        world.verify()
        sealed(sealer)
        text, code = printed()
    assert code == 0, text
    assert len(text.splitlines()) <= 24
    assert all(line.startswith(("ok ", "note ")) and "<" not in line for line in text.splitlines())
    assert "sealed" in text and "None is open." in text


def test_an_alert_needs_a_person_and_says_what_to_do(world: World) -> None:
    alerts.raise_alert("sealing-late", "web 1", "3 records\nwait")
    text, code = printed()
    assert code == 1
    [line] = [line for line in text.splitlines() if "alert" in line]
    assert line.startswith("look alert") and "3 records wait" in line and "Check that the sealer runs." in line
    assert "a person" in text.splitlines()[-1]


def test_beat_that_is_silent_is_seen(db: None) -> None:
    assert found("schedule")[0][0] == status.NOTE
    beat(timedelta(minutes=11))
    assert found("schedule")[0][0] == status.LOOK


def test_an_outbox_that_nobody_takes_up_is_seen(db: None) -> None:
    assert found("outbox") == []
    old = timezone.now() - timedelta(minutes=2)
    Outbox.objects.create(kind="notice", members={}, at=old, actor="system", xact="")
    assert found("outbox")[0][0] == status.LOOK


def test_exports_that_fail_are_late_or_were_disabled_are_named(db: None) -> None:
    now = timezone.now()
    assert found("exports") == [(status.OK, "None was made yet. None is scheduled.")]
    Export.objects.create(name="daily", owner="staff:1", format="csv", schedule="daily", created_at=now, failures=2)
    Export.objects.create(name="gone", owner="staff:1", format="csv", created_at=now, enabled=False, words="five")
    ExportRun.objects.create(
        export=1, owner="staff:1", slot=now - timedelta(hours=3), since=now, until=now, created_at=now
    )
    words = [words for state, words in found("exports") if state == status.LOOK]
    assert words[0].startswith("1 export disabled") and words[1] == "daily failed 2 times in a row."
    assert words[2].startswith("1 run due for more than")
    assert "Next due" in found("exports")[-1][1]


def test_streams_say_how_far_behind_they_are(db: None) -> None:
    now = timezone.now()
    about = {"kind": "webhook", "place": "h", "next": 0, "seen_at": now}
    Stream.objects.create(name="a", **about)
    Stream.objects.create(name="b", **about, failing_since=now - timedelta(hours=1), error="it answers 503")
    Stream.objects.create(name="c", **about, paused_at=now)
    Stream.objects.create(name="d", **about)
    DeadLetter.objects.create(stream="d", index=1, record="0" * 32, words="no", at=now)
    assert [state for state, _ in found("stream")] == [status.OK, status.LOOK, status.NOTE, status.LOOK]
    assert "it answers 503" in found("stream")[1][1]


def test_signals_that_cannot_be_had_need_a_person_and_an_event_that_was_refused_is_noted(world: World) -> None:
    assert found("signals") == []
    issuer = Issuer.objects.get()
    about = {"issuer": issuer, "transmitter": "t", "audience": "a", "delivery": "poll", "poll_endpoint": "https://t/p"}
    for name, error in (("a", ""), ("b", "polling: it answers 503"), ("c", "an event was refused (invalid_key): no")):
        SignalStream.objects.create(name=name, error=error, **about)
    SignalStream.objects.create(name="off", error="polling: it answers 503", enabled=False, **about)
    assert found("signals") == [
        (status.LOOK, "b: polling: it answers 503."),
        (status.NOTE, "c: an event was refused (invalid_key): no."),
        (status.OK, "1 stream without a problem; no event came yet."),
    ]


@pytest.mark.parametrize(("minutes", "expected"), [(1, status.LOOK), (60, status.NOTE)])
def test_an_issuer_that_did_not_answer_about_tokens_is_named(world: World, minutes: int, expected: str) -> None:
    asked = Introspection.objects.create(issuer=Issuer.objects.get(), endpoint="https://i/", client_id="m")
    assert found("issuer") == []
    asked.error, asked.failed_at = "it answers 503", timezone.now() - timedelta(minutes=minutes)
    asked.save()
    [(state, words)] = found("issuer")
    assert state == expected and words.endswith("it answers 503.") and words.startswith(asked.issuer.issuer)


@pytest.mark.parametrize(
    ("state", "age", "over", "expected"),
    [("done", 1, True, status.OK), ("failed", 1, True, status.LOOK), ("waiting", 1, False, status.NOTE),
     ("deleting", 60, False, status.LOOK), ("done", 60, True, status.LOOK)],
)  # fmt: skip
def test_retention_says_how_its_last_run_went(db: None, state: str, age: int, over: bool, expected: str) -> None:
    now = timezone.now()
    began, ended = now - timedelta(hours=age), now if over else None
    RetentionRun.objects.using("owner").create(state=state, began_at=began, ended_at=ended, words="why")
    [(found_state, words)] = found("retention")
    assert found_state == expected
    assert ("why" in words) == (state in ("failed", "waiting", "deleting"))


def test_an_erasure_that_is_not_done_is_seen(db: None) -> None:
    about = {"state": "asked", "reference": "1", "reason": "-", "asked_by": "staff:1"}
    Erasure.objects.create(subject="usr_1", asked_at=timezone.now(), **about)
    assert found("erasure")[0][0] == status.NOTE
    Erasure.objects.create(subject="usr_2", asked_at=timezone.now() - timedelta(hours=1), **about)
    assert found("erasure")[0][0] == status.LOOK


def test_without_the_database_it_says_so_in_one_line(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise OperationalError("host=db password=secret")

    monkeypatch.setattr(status, "health", away)
    text, code = printed()
    assert code == 1 and len(text.splitlines()) == 1 and "secret" not in text
