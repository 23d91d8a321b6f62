"""Streams in the admin: how far each is and why one waits; pausing one and sending letters again, each on record."""

from collections.abc import Iterator
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.test import Client as HttpClient
from django.utils import timezone

from audit.models import Batch, DeadLetter, Outbox, Record, Stream
from audit.record_words import title
from audit.streams import control
from audit.streams import page as streams_page
from audit.streams.control import StreamError
from tests.audit import receiving
from tests.audit.filling import fill
from tests.audit.receiving import Webhook, configure, hook, run
from tests.audit.trees import HandSealed
from tests.staff import member, newest

HOSTILE = '<script>alert("x")</script>'


@pytest.fixture
def log(db: None) -> HandSealed:
    """With ten sealed records."""
    made = HandSealed()
    fill([{}] * 10)
    made.seal()
    return made


@pytest.fixture
def siem(log: HandSealed, settings: Any) -> Iterator[Webhook]:
    with receiving.webhook() as found:
        configure(settings, hook(found))
        yield found


@pytest.fixture
def operator(log: HandSealed) -> HttpClient:
    return member("olga", "audit.view_stream", "audit.change_stream", "audit.view_record")


@pytest.fixture
def auditor(log: HandSealed) -> HttpClient:
    return member("noor", "audit.view_stream", "audit.view_record")


def page(http: HttpClient, path: str = "") -> str:
    answer = http.get(f"/admin/streams/{path}")
    assert answer.status_code == 200, answer.content
    return unescape(answer.content.decode())


def post(http: HttpClient, path: str, **data: str) -> Any:
    return http.post(f"/admin/streams/siem/{path}/", data, follow=True)


def test_the_page_says_how_far_each_stream_is_and_what_it_said(siem: Webhook, auditor: HttpClient) -> None:
    assert "No record is streamed anywhere" in page(auditor)
    siem.answer = lambda _: 503
    run()
    text = page(auditor)
    assert "Failing" in text
    assert "the receiver answered 503" in text
    assert "10 records" in text
    assert f"{siem.url.rpartition('/')[0]}/…" in text
    assert siem.url not in text, "the path of a webhook may be its secret"
    siem.answer = lambda _: 200
    Stream.objects.update(retry_at=None)
    run()
    text = page(auditor)
    assert "Delivering" in text
    assert "answered 503" not in text
    assert "up to date: it has every record that is sealed" in page(auditor, "siem/")


def test_the_log_page_has_lag_and_last_error_of_each_stream(siem: Webhook, auditor: HttpClient) -> None:
    assert "Streams" not in auditor.get("/admin/log/").content.decode().partition("<h2>Anchors</h2>")[2]
    siem.answer = lambda _: 401
    run()
    text = unescape(auditor.get("/admin/log/").content.decode())
    assert "the receiver does not accept the signature or the authorization (401)" in text
    assert "10 records" in text


def test_a_stream_that_no_worker_has_any_more_says_so(siem: Webhook, auditor: HttpClient) -> None:
    run()
    Stream.objects.update(seen_at=timezone.now() - timedelta(hours=1))
    assert "Not configured" in page(auditor)
    assert "check that a worker runs" in page(auditor, "siem/")


def test_pausing_takes_a_reason_and_is_on_record(siem: Webhook, operator: HttpClient) -> None:
    run()
    assert "This field is required" in post(operator, "pause").content.decode()
    assert Stream.objects.get().paused_at is None
    post(operator, "pause", reason="the SIEM is moved")
    assert Stream.objects.get().paused_at is not None
    said = newest("staff")
    assert (said["action"], said["stream"], said["next"]) == ("stream.paused", "siem", 10)
    assert title(said, {}).endswith("paused stream siem")
    assert "moved" not in str(said)
    assert "It is paused already." in post(operator, "pause", reason="again").content.decode()
    post(operator, "resume")
    assert Stream.objects.get().paused_at is None
    assert newest("staff")["action"] == "stream.resumed"
    assert "It is not paused." in post(operator, "resume").content.decode()
    assert Record.objects.filter(type="staff").count() == 3  # with its beginning


def letters(siem: Webhook, *indices: int) -> list[DeadLetter]:
    siem.answer = lambda delivery: 422 if set(indices) & set(delivery.indices) else 200
    run()
    found = list(DeadLetter.objects.order_by("index"))
    assert [letter.index for letter in found] == list(indices)
    return found


def test_dead_letters_are_listed_sent_again_and_let_go(siem: Webhook, operator: HttpClient) -> None:
    first, second, third = letters(siem, 2, 5, 7)
    text = page(operator, "siem/")
    assert "the receiver cannot work with what it gets (422)" in text.lower()
    assert f"/admin/records/{first.record}/" in text
    assert "3 dead letters" in page(operator)
    post(operator, "letters", again=str(first.pk))
    said = newest("staff")
    assert (said["action"], said["count"], said["indices"]) == ("stream.retried", 1, [2])
    assert "asked for already" in post(operator, "letters", again=str(first.pk)).content.decode()
    post(operator, "letters", letgo=str(second.pk))
    assert newest("staff")["action"] == "stream.skipped"
    siem.answer = lambda _: 200
    run()
    assert siem.accepted[-1] == 2
    post(operator, "letters", again="all")
    run()
    assert siem.accepted[-1] == 7
    assert 5 not in siem.accepted
    text = page(operator, "siem/")
    assert "<h2>Dead letters" not in text
    assert "let go: the receiver cannot work" in text.lower()
    assert third.record


@pytest.mark.parametrize("number", ["", "x", "0", "99999999999999999999", "9223372036854775807", "-1", "\u0661"])
def test_a_dead_letter_that_is_none_is_no_error_of_ours(siem: Webhook, operator: HttpClient, number: str) -> None:
    letters(siem, 3)
    for what in ("again", "letgo"):
        assert post(operator, "letters", **{what: number}).status_code in (200, 404)
    assert DeadLetter.objects.filter(settled_at=None, asked_at=None).count() == 1


def test_only_who_may_change_streams_can(siem: Webhook, auditor: HttpClient) -> None:
    [letter] = letters(siem, 3)
    text = page(auditor, "siem/")
    assert "Send again" not in text
    assert 'action="/admin/streams/' not in text
    for path, data in [("pause", {"reason": "x"}), ("pause", {}), ("resume", {}), ("letters", {"again": "all"}),
                       ("letters", {"letgo": str(letter.pk)})]:  # fmt: skip
        assert auditor.post(f"/admin/streams/siem/{path}/", data).status_code == 403
    nobody = member("nils", "audit.view_record")
    for path in ("", "siem/"):
        assert nobody.get(f"/admin/streams/{path}").status_code == 403
    assert nobody.get("/admin/log/").status_code == 200
    assert not Outbox.objects.filter(kind="staff", actor__startswith="staff:").exists()


def test_the_permission_is_asked_again_where_the_change_is_made(siem: Webhook, auditor: HttpClient) -> None:
    run()
    noor = get_user_model().objects.get(username="noor")
    with pytest.raises(PermissionDenied):
        control.pause(noor, "siem", "x")
    noor.is_superuser = True
    noor.is_active = False
    with pytest.raises(PermissionDenied):
        control.send_again(noor, "siem", None)


def test_changes_are_post_and_need_the_token(siem: Webhook, operator: HttpClient) -> None:
    run()
    for path in ("pause", "resume", "letters"):
        assert operator.get(f"/admin/streams/siem/{path}/").status_code == 405
    strict = HttpClient(enforce_csrf_checks=True)
    strict.cookies = operator.cookies
    assert strict.post("/admin/streams/siem/pause/", {"reason": "x"}).status_code == 403
    assert Stream.objects.get().paused_at is None


def test_a_stream_that_is_none_is_not_found(siem: Webhook, operator: HttpClient) -> None:
    assert operator.get("/admin/streams/nobody/").status_code == 404
    answer = operator.post("/admin/streams/nobody/pause/", {"reason": "x"})
    assert answer.status_code == 302
    with pytest.raises(StreamError, match="no such stream"):
        control.resume(get_user_model().objects.get(username="olga"), "nobody")


def test_what_is_stored_cannot_become_markup(siem: Webhook, operator: HttpClient) -> None:
    letters(siem, 3)
    Stream.objects.update(place=HOSTILE, error=HOSTILE, failures=3, tried_at=timezone.now(), kind="<b>")
    DeadLetter.objects.update(words=HOSTILE)
    for path in ("/admin/streams/", "/admin/streams/siem/", "/admin/log/"):
        content = operator.get(path).content.decode()
        assert "<script>alert" not in content
        assert "<b>" not in content


def test_the_lag_is_counted_in_records_and_time(siem: Webhook, log: HandSealed) -> None:
    run()
    [found] = control.standings()
    assert (found.state, found.lag, found.since) == ("sending", 0, None)
    assert found.seconds(timezone.now()) == 0
    fill([{}] * 4)
    [found] = control.standings()
    assert found.lag == 0  # what is not sealed is nothing to send yet
    log.seal()
    written = timezone.now() - timedelta(minutes=5)
    Batch.objects.create(first=10, size=4, previous=b"", root=b"", digest=b"", signature=b"", key_id="", at=written)
    [found] = control.standings()
    assert (found.lag, found.since) == (4, written)
    assert 300 <= found.seconds(timezone.now()) < 330
    assert streams_page.line(found).behind == "4 records, 5 minutes behind"
