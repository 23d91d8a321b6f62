"""What somebody should look at is told once while it lasts, to those who can act, in words that name nobody."""

import json
import os
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
import pytest
from django.contrib.auth import get_user_model
from django.core import mail
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import Client as HttpClient
from django.utils import timezone

from audit import rollups, webhooks
from audit.alerts import clear, raise_alert
from audit.models import Export, ExportRun, Outbox, SealerStatus
from clients.models import AccessRequest, Client, Grant
from governance import notifications, notifications_sending, tasks
from governance.models import Notification, NotificationChoice, NotificationDelivery
from governance.notifications import KINDS, kinds_for, refresh
from governance.notifications_finding import denials, unusual
from governance.notifications_sending import TRIES, ConfigError, send_due, webhook
from tests.audit.filling import fill
from tests.staff import member

pytestmark = pytest.mark.usefixtures("db")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(autouse=True)
def no_webhook(settings: Any) -> None:
    settings.MUNIMENT_NOTIFY_WEBHOOK = ""


def somebody(name: str, *permissions: str) -> Any:
    """A member of staff with a mailbox."""
    member(name, *permissions)
    user = get_user_model().objects.get(username=name)
    user.email = f"{name}@staff.example"
    user.save()
    return user


def tell(now: datetime | None = None) -> list[list[str]]:
    """One round; to whom mails went."""
    before = len(mail.outbox)
    refresh(now)
    send_due(now)
    return [found.to for found in mail.outbox[before:]]


def grant(days: float, **more: Any) -> Grant:
    client = Client.objects.get_or_create(slug="claude", defaults={"name": "Anna's Claude"})[0]
    ends = timezone.now() + timedelta(days=days)
    return Grant.objects.create(client=client, reason="for Anna Example", expires_at=ends, **more)


def asked(by: int) -> AccessRequest:
    now = timezone.now()
    return AccessRequest.objects.create(
        client=Client.objects.get_or_create(slug="claude", defaults={"name": "Claude"})[0], reason="for Anna Example",
        days=3, asked_by=f"staff:{by}", asked_by_name="Ben Example", lapses_at=now + timedelta(days=14),
    )  # fmt: skip


def failed(owner: int, **more: Any) -> ExportRun:
    now = timezone.now()
    given = {"export": 7, "state": "failed", "words": "s3cret words of a server", "ended_at": now} | more
    return ExportRun.objects.create(owner=f"staff:{owner}", slot=now, since=now, until=now, created_at=now, **given)


class TestWhatIsTold:
    def test_a_request_goes_to_those_who_may_decide_it_but_not_to_who_asked(self) -> None:
        ben = somebody("ben", "clients.decide_accessrequest")
        somebody("petra", "clients.decide_accessrequest")
        somebody("olaf", "clients.view_grant")
        made = asked(ben.pk)
        assert tell() == [["petra@staff.example"]]
        assert f"Request {made.pk} waits for a decision" in mail.outbox[0].body
        assert f"/admin/clients/accessrequest/{made.pk}/change/" in mail.outbox[0].body
        assert tell() == [], "it is told once"

    def test_a_grant_is_told_of_a_week_and_a_day_before_its_end(self) -> None:
        somebody("mara", "clients.change_grant")
        found = grant(8)
        now = timezone.now()
        assert tell(now) == []
        assert len(tell(now + timedelta(days=1, hours=1))) == 1
        assert tell(now + timedelta(days=3)) == []
        assert len(tell(now + timedelta(days=7, hours=1))) == 1
        assert tell(now + timedelta(days=9)) == []
        assert [one.over_at is not None for one in Notification.objects.all()] == [True, True]
        assert f"The grant {found.pk} ends at" in mail.outbox[0].body

    def test_one_that_is_extended_is_told_of_again_for_its_new_end(self) -> None:
        somebody("mara", "clients.change_grant")
        found = grant(3)
        assert len(tell()) == 1
        found.expires_at += timedelta(days=2)  # type: ignore[operator]
        found.save()
        assert len(tell()) == 1

    def test_grants_that_never_end_or_are_revoked_are_not_told_of(self) -> None:
        somebody("mara", "clients.change_grant")
        found = grant(3)
        found.revoked_at = timezone.now()
        found.save()
        Grant.objects.create(reason="for ever")
        assert tell() == []

    def test_a_failed_export_goes_to_its_owner_and_to_those_who_may_change_any(self) -> None:
        anna = somebody("anna", "audit.add_export")
        somebody("adam", "audit.change_export")
        somebody("ben", "audit.add_export")
        failed(anna.pk)
        failed(anna.pk, ended_at=timezone.now() - timedelta(days=2), export=8)
        assert tell() == [["anna@staff.example"], ["adam@staff.example"]]
        assert all("s3cret" not in found.body for found in mail.outbox)

    def test_an_export_that_was_disabled_is_told_of_and_one_that_somebody_paused_is_not(self) -> None:
        anna = somebody("anna", "audit.add_export")
        given = {"owner": f"staff:{anna.pk}", "format": "csv", "created_at": timezone.now(), "enabled": False}
        off = Export.objects.create(name="Anna's", words="5 runs in a row have failed", **given)
        Export.objects.create(name="paused", words="", **given)
        assert tell() == [["anna@staff.example"]]
        assert f"Export {off.pk} is disabled" in mail.outbox[0].body
        assert "Anna's" not in mail.outbox[0].body

    def test_alerts_are_told_with_what_to_do_and_never_with_what_they_quote(self) -> None:
        somebody("adam", "audit.view_alert")
        raise_alert("verification-failed", "s3cret.example", "the s3cret disagrees")
        raise_alert("sealer-halted", "fork", "s3cret")
        raise_alert("anchor-failing", "s3://bucket", "s3cret")
        assert len(tell()) == 1, "what is found at once is one mail"
        assert mail.outbox[0].subject == "Muniment: 3 things need a look"
        assert "Read the findings; keep the database." in mail.outbox[0].body
        assert "s3cret" not in mail.outbox[0].body
        assert set(Notification.objects.values_list("kind", flat=True)) == {"verification", "sealer", "log"}

    def test_what_comes_and_goes_is_not_told_again_within_an_hour(self) -> None:
        somebody("adam", "audit.view_alert")
        now = timezone.now()
        for minute in range(5):
            raise_alert("anchor-failing", "there", "away")
            told = tell(now + timedelta(minutes=2 * minute))
            assert len(told) == (1 if minute == 0 else 0)
            clear("anchor-failing")
            tell(now + timedelta(minutes=2 * minute + 1))
        raise_alert("anchor-failing", "there", "away")
        assert len(tell(now + timedelta(hours=2))) == 1

    def test_a_sealer_of_which_nothing_is_heard_is_told_of(self) -> None:
        somebody("adam", "audit.view_alert")
        SealerStatus.objects.create(state="active", seen_at=timezone.now())
        assert tell() == []
        SealerStatus.objects.update(seen_at=timezone.now() - timedelta(minutes=2))
        assert len(tell()) == 1
        assert "No sign of the sealer. It was last seen at" in mail.outbox[0].body


class TestDenials:
    @pytest.mark.parametrize(
        ("number", "before", "told"),
        [
            (49, [0] * 7, False),
            (50, [0] * 7, True),
            (300, [100] * 7, False),
            (301, [100] * 7, True),
            (301, [302, *[0] * 6], False),
            (50, [], True),
        ],
    )
    def test_they_are_unusual_beside_the_same_hour_of_the_days_before(
        self, number: int, before: list[int], told: bool
    ) -> None:
        assert (unusual(number, before) is not None) is told

    def test_a_burst_is_told_once_with_its_figures_and_the_search_that_finds_it(self) -> None:
        somebody("mara", "clients.change_client")
        hour = datetime(2026, 3, 20, 10, tzinfo=UTC)
        usual = [{"decision": "deny", "reason": "not_granted", "at": hour - timedelta(days=d)} for d in range(7, 0, -1)]
        fill(usual)
        fill([{"decision": "deny", "reason": "not_granted", "at": hour + timedelta(seconds=n)} for n in range(60)])
        rollups.catch_up()
        now = hour + timedelta(minutes=20)
        assert len(tell(now)) == 1
        assert tell(now + timedelta(minutes=40)) == [], "the same hour, now over"
        assert (
            "In the hour from 2026-03-20 10:00 UTC 60 calls were denied. In the same hour of the 7 days before it was 1"
            " on average, 1 at most."
        ) in mail.outbox[0].body
        assert "decision=deny" in mail.outbox[0].body
        assert list(denials(hour + timedelta(hours=2, minutes=1))) == []

    def test_calls_that_were_allowed_are_none(self) -> None:
        hour = datetime(2026, 3, 20, 10, tzinfo=UTC)
        fill([{"at": hour + timedelta(seconds=n)} for n in range(60)])
        rollups.catch_up()
        assert list(denials(hour + timedelta(minutes=20))) == []


class TestWhoIsTold:
    def test_the_workers_task_finds_and_tells(self) -> None:
        somebody("mara", "clients.change_grant")
        grant(3)
        tasks.notify()
        tasks.notify()
        assert len(mail.outbox) == 1

    def test_nobody_is_told_of_a_kind_that_they_do_not_want(self) -> None:
        mara = somebody("mara", "clients.change_grant")
        notifications.choose(mara, [])
        grant(3)
        assert tell() == []
        assert NotificationChoice.objects.get().off == ["grant"]

    def test_who_lost_the_right_before_the_mail_went_out_is_not_told(self) -> None:
        mara, nora = (somebody(name, "clients.change_grant") for name in ("mara", "nora"))
        grant(3)
        refresh()
        mara.user_permissions.clear()
        nora.is_active = False
        nora.save()
        send_due()
        assert mail.outbox == []
        assert NotificationDelivery.objects.filter(given_up_at=None).count() == 0

    def test_no_mail_names_anybody_or_quotes_what_somebody_typed(self) -> None:
        ben = somebody("ben", "clients.decide_accessrequest", "clients.change_grant", "audit.change_export")
        grant(3)
        asked(ben.pk + 1)
        failed(ben.pk + 1)
        assert len(tell()) == 1
        text = mail.outbox[0].subject + mail.outbox[0].body
        for word in ("Anna", "Ben", "Example", "s3cret", "Claude"):
            assert word not in text

    def test_each_kind_has_somebody_among_the_roles_who_is_told(self) -> None:
        from governance.roles import ROLES

        for kind in KINDS.values():
            assert any(set(kind.permissions) & set(permissions) for _, permissions in ROLES.values())


class TestBringing:
    def test_a_mail_server_that_is_away_is_tried_ever_more_rarely_and_given_up_in_the_end(self, settings: Any) -> None:
        somebody("mara", "clients.change_grant")
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 1
        grant(6)
        now = timezone.now()
        refresh(now)
        waits = []
        for _ in range(TRIES):
            assert send_due(now) == 0
            row = NotificationDelivery.objects.get()
            waits.append((row.next_at - now).total_seconds() / 60)
            assert send_due(now + timedelta(seconds=30)) == 0
            assert NotificationDelivery.objects.get().tries == row.tries, "not yet"
            now = row.next_at
        assert waits == [1, 2, 4, 8, 16, 32, 64, 120, 120, 120, 120, 120]
        assert row.given_up_at is not None
        assert row.error == "the mail server cannot be reached: Connection refused"

    def test_a_repeat_is_the_same_mail(self) -> None:
        somebody("mara", "clients.change_grant")
        grant(3)
        grant(2)
        tell()
        NotificationDelivery.objects.update(done_at=None)  # as if the worker had been killed before it wrote that
        tell()
        first, second = mail.outbox
        assert first.extra_headers["Message-ID"] == second.extra_headers["Message-ID"]
        assert first.body == second.body

    def test_two_workers_tell_of_a_thing_once(self) -> None:
        somebody("mara", "clients.change_grant")
        grant(3)
        refresh()
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as other:
            other.execute("SELECT pg_advisory_lock(%s, 0)", [notifications_sending.LOCK])
            assert send_due() == 0
            other.execute("SELECT pg_advisory_unlock_all()")
            assert send_due() == 1
        assert refresh() == 0

    def test_what_is_over_before_it_could_be_told_is_not_told(self) -> None:
        somebody("adam", "audit.view_alert")
        raise_alert("anchor-failing", "there", "away")
        refresh()
        clear("anchor-failing")
        assert tell() == []
        assert "over before it could be told" in NotificationDelivery.objects.get().error

    def test_what_is_long_over_is_forgotten(self) -> None:
        somebody("mara", "clients.change_grant")
        grant(3)
        now = timezone.now()
        tell(now)
        tell(now + timedelta(days=4))
        assert Notification.objects.count() == 1
        refresh(now + timedelta(days=95))
        assert Notification.objects.count() == NotificationDelivery.objects.count() == 0


class Receiver:
    """A webhook's receiver on loopback: what it got, and what it answers."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 204
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join(5)
        self.server.server_close()


@pytest.fixture
def receiver(settings: Any) -> Iterator[Receiver]:
    found = Receiver()
    settings.MUNIMENT_NOTIFY_WEBHOOK = f"{found.url} {SECRET}"
    yield found
    found.stop()


class TestTheWebhook:
    def test_it_gets_each_thing_once_signed_as_standard_webhooks_says(self, receiver: Receiver) -> None:
        found = grant(3)
        tell()
        tell()
        [(headers, body)] = receiver.got
        key = webhooks.key_of(SECRET)
        again = webhooks.signed([key], headers["webhook-id"], int(headers["webhook-timestamp"]), body)
        assert headers["webhook-signature"] == again["webhook-signature"]
        said = json.loads(body)
        assert said["type"] == "notification.grant"
        assert said["data"]["title"] == "A grant ends soon"
        assert said["data"]["url"].endswith(f"/admin/clients/grant/{found.pk}/change/")
        assert "Anna" not in body.decode()

    def test_one_that_fails_gets_it_again_under_the_same_id(self, receiver: Receiver) -> None:
        receiver.status = 503
        grant(3)
        now = timezone.now()
        tell(now)
        assert NotificationDelivery.objects.get().error == "the receiver answered 503"
        receiver.status = 200
        tell(now + timedelta(minutes=2))
        assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
        assert NotificationDelivery.objects.get().done_at is not None

    def test_one_try_stands_for_all_where_the_place_is_away(
        self, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried: list[bytes] = []

        def away(self: Any, body: bytes, headers: Any) -> None:
            tried.append(body)
            raise webhooks.Unreachable("the receiver did not answer in time")

        monkeypatch.setattr(webhooks.Address, "post", away)
        settings.MUNIMENT_NOTIFY_WEBHOOK = f"http://127.0.0.1:1/ {SECRET}"
        somebody("mara", "clients.change_grant")
        for days in (2, 3, 4):
            grant(days)
        assert len(tell()) == 1, "a place that is away holds up no other"
        assert len(tried) == 1
        waiting = NotificationDelivery.objects.filter(to="webhook")
        assert set(waiting.values_list("tries", "error")) == {(1, "the receiver did not answer in time")}

    def test_what_one_receiver_does_not_take_holds_up_nothing_else(self, receiver: Receiver) -> None:
        receiver.status = 422
        grant(2)
        grant(3)
        tell()
        assert len(receiver.got) == 2

    def test_a_mailbox_that_is_away_does_not_hold_it_up(self, receiver: Receiver, settings: Any) -> None:
        somebody("mara", "clients.change_grant")
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 1
        grant(3)
        tell()
        assert len(receiver.got) == 1

    @pytest.mark.parametrize(
        "given",
        [
            "https://h.example/s3cret",
            f"http://s3cret.example {SECRET}",
            f"https://u:s3cret@h.example {SECRET}",
            "https://h.example whsec_s3cret",
            "https://h.example s3cret",
            f"https://h.example {SECRET} s3cret",
        ],
    )
    def test_one_that_is_written_wrong_is_said_by_the_system_check_without_what_it_holds(
        self, given: str, settings: Any
    ) -> None:
        settings.MUNIMENT_NOTIFY_WEBHOOK = given
        with pytest.raises(ConfigError) as refusal:
            webhook()
        with pytest.raises(SystemCheckError, match=r"muniment\.E012") as found:
            call_command("check", tags=["security"], verbosity=0)
        assert "s3cret" not in f"{refusal.value}{found.value}".replace("whsec_ and", "")
        grant(3)
        tell()
        assert "s3cret" not in NotificationDelivery.objects.get().error


class TestThePage:
    def test_it_shows_the_kinds_that_ones_rights_allow_and_keeps_the_choice(self) -> None:
        http = member("mara", "clients.change_grant", "clients.decide_accessrequest")
        page = http.get("/admin/notifications/").content.decode()
        assert re.findall(r'name="kinds" value="(\w+)" checked', page) == ["request", "grant"]
        assert "has no e-mail address" in page
        assert http.post("/admin/notifications/", {"kinds": ["grant"]}).status_code == 302
        page = http.get("/admin/notifications/").content.decode()
        assert re.findall(r'name="kinds" value="(\w+)" checked', page) == ["grant"]
        assert Outbox.objects.latest("id").members == {"action": "staff.notifications", "off": ["request"]}

    def test_what_one_may_not_be_told_of_cannot_be_chosen(self) -> None:
        http = member("mara", "clients.change_grant")
        assert http.post("/admin/notifications/", {"kinds": ["verification"]}).status_code == 400
        assert NotificationChoice.objects.count() == 0

    def test_a_choice_about_a_role_that_one_lost_is_not_forgotten(self) -> None:
        mara = somebody("mara", "clients.change_grant")
        NotificationChoice.objects.create(user=mara, off=["sealer"])
        notifications.choose(mara, [])
        assert NotificationChoice.objects.get().off == ["grant", "sealer"]

    def test_it_says_what_was_told_and_what_became_of_it(self) -> None:
        mara = somebody("mara", "clients.change_grant")
        found = grant(3)
        tell()
        http = HttpClient()
        http.force_login(mara)
        page = http.get("/admin/notifications/").content.decode()
        assert f"The grant {found.pk} ends at" in page
        assert "E-mail to you: sent." in page
        assert "Webhook" not in page

    def test_of_exports_others_are_not_shown(self) -> None:
        anna, ben = (somebody(name, "audit.add_export") for name in ("anna", "ben"))
        failed(anna.pk)
        tell()
        for user, seen in ((anna, True), (ben, False)):
            http = HttpClient()
            http.force_login(user)
            assert (b"The run of export 7" in http.get("/admin/notifications/").content) is seen
        assert list(kinds_for(ben)) == ["export"]

    def test_a_choice_needs_a_token_against_forgery_and_a_session(self) -> None:
        http = member("mara", "clients.change_grant")
        strict = HttpClient(enforce_csrf_checks=True)
        strict.cookies = http.cookies
        assert strict.post("/admin/notifications/", {}).status_code == 403
        assert HttpClient().post("/admin/notifications/", {}).status_code == 302
        assert NotificationChoice.objects.count() == 0

    def test_somebody_without_any_right_is_told_that_there_is_nothing(self) -> None:
        page = member("olaf").get("/admin/notifications/").content
        assert b"nothing that your roles let you act on" in page
