"""Taking the file of an export: by its link, in one's own session, with the rights of now, and on record first."""

import email
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiosmtpd.controller import Controller
from django.contrib.auth import get_user_model
from django.core import mail, signing
from django.db import DatabaseError, connection
from django.test import Client as HttpClient
from django.urls import reverse
from django.utils import timezone

from audit import tasks
from audit.exports import downloads
from audit.exports import mail as export_mail
from audit.exports import store as export_store
from audit.exports.mail import MailFailed
from audit.exports.store import StoreFailed
from audit.models import Export, ExportRun, Outbox
from audit.recent_sign_in import SIGNED_IN_AT
from tests.live import free_port
from tests.staff import member

AUDITOR = ("audit.view_record", "audit.export_record", "audit.view_export")
CONTENT = b"at,client\n2026-11-01,claude\n"


@pytest.fixture
def store(tmp_path: Path, settings: Any, db: None) -> Path:
    """The folder of exports, of this test alone."""
    settings.MUNIMENT_EXPORTS = tmp_path / "exports"
    return export_store.folder()


def kept(owner: str = "staff:0", **more: Any) -> ExportRun:
    """A run that is done, with its file and manifest where they belong."""
    now = timezone.now()
    export = Export.objects.create(
        name=f"calls {owner} {Export.objects.count()}", owner=owner, format="csv", columns=["at"], created_at=now,
        recipients=more.pop("recipients", []),
    )  # fmt: skip
    slot = datetime(2026, 11, 1, tzinfo=UTC)
    given = {
        "state": "done", "since": slot - timedelta(days=1), "until": slot, "records": 1, "bytes": len(CONTENT),
        "sha256": sha256(CONTENT).hexdigest(), "created_at": now, "ended_at": now, "manifest": '{"a": 1}',
        "file": f"calls-{export.pk}-20261101T0000Z.csv",
    } | more  # fmt: skip
    run = ExportRun.objects.create(export=export.pk, owner=owner, slot=slot, **given)
    if run.file:
        export_store.path(run.file).write_bytes(CONTENT)
        export_store.path(run.file + export_store.MANIFEST).write_text(run.manifest)
    return run


def user_of(http: HttpClient) -> Any:
    return get_user_model().objects.get(pk=http.session["_auth_user_id"])


def recent(http: HttpClient) -> HttpClient:
    """Somebody who has just shown who they are."""
    session = http.session
    session[SIGNED_IN_AT] = int(time.time())
    session.save()
    return http


def asked(http: HttpClient, run: ExportRun, **data: str) -> Any:
    return http.post(f"/admin/exports/runs/{run.pk}/download/", data)


def told(action: str = "export.downloaded") -> list[dict[str, Any]]:
    return [row.members for row in Outbox.objects.order_by("id") if (row.members or {}).get("action") == action]


def forged(**changed: Any) -> str:
    """A link that is signed as ours are, and says something else."""
    said = {"run": 1, "staff": 1, "until": int(time.time()) + 60, "manifest": False} | changed
    return f"/admin/exports/download/{signing.Signer(salt=downloads.SALT).sign_object(said)}/"


@dataclass
class MailServer:
    """A running one: its port, whose mails it refuses or is too busy for, and what it took."""

    refusing: str
    busy: str
    port: int = 0
    got: list[tuple[list[str], Any]] = field(default_factory=list)

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address.startswith(self.refusing):
            return "550 no such mailbox"
        if self.busy and address.startswith(self.busy):
            return "450 later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.got.append((envelope.rcpt_tos, email.message_from_bytes(envelope.content)))
        return "250 OK"


@contextmanager
def mail_server(refusing: str, busy: str) -> Iterator[MailServer]:
    """A mail server on loopback."""
    found = MailServer(refusing, busy)
    found.port = free_port()
    controller = Controller(found, "127.0.0.1", found.port, ready_timeout=30)
    controller.start()
    try:
        yield found
    finally:
        controller.stop()


class TestALink:
    def test_it_gives_the_file_to_be_saved_and_the_download_is_on_record(self, store: Path) -> None:
        http, run = recent(member("anna", *AUDITOR)), kept()
        answer = http.get(asked(http, run)["Location"])
        assert answer.status_code == 200
        assert b"".join(answer.streaming_content) == CONTENT
        assert answer["Content-Disposition"] == f'attachment; filename="{run.file}"'
        assert answer["Content-Length"] == str(len(CONTENT))
        assert answer["X-Content-Type-Options"] == "nosniff"
        assert "no-store" in answer["Cache-Control"]
        [found] = told()
        assert (found["run"], found["export"], found["sha256"], found["personal"]) == (
            run.pk, run.export, run.sha256, False,
        )  # fmt: skip

    def test_it_gives_the_manifest_where_that_was_asked_for(self, store: Path) -> None:
        http, run = recent(member("anna", *AUDITOR)), kept()
        answer = http.get(asked(http, run, what="manifest")["Location"])
        assert b"".join(answer.streaming_content) == b'{"a": 1}'
        assert answer["Content-Disposition"].endswith('.manifest.json"')
        assert told()[0]["file"] == "manifest"

    def test_each_download_is_a_record(self, store: Path) -> None:
        http, run = recent(member("anna", *AUDITOR)), kept()
        where = asked(http, run)["Location"]
        for _ in range(3):
            http.get(where).close()
        assert len(told()) == 3

    def test_it_is_of_no_use_to_somebody_else(self, store: Path) -> None:
        anna, ben = (recent(member(name, *AUDITOR)) for name in ("anna", "ben"))
        where = asked(anna, kept())["Location"]
        assert ben.get(where).status_code == 404
        assert HttpClient().get(where).status_code == 302, "to the door"
        assert told() == []

    def test_it_is_over_after_a_quarter_of_an_hour(self, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        http, run = recent(member("anna", *AUDITOR)), kept()
        real, began = time.time, time.time()
        where = asked(http, run)["Location"]
        monkeypatch.setattr(downloads.time, "time", lambda: began + 899)
        assert http.get(where).status_code == 200
        monkeypatch.setattr(downloads.time, "time", lambda: real() + 901)
        answer = http.get(where)
        assert answer.status_code == 410
        assert b"The link is over" in answer.content
        assert len(told()) == 1

    def test_rights_are_those_of_now(self, store: Path) -> None:
        http, run = recent(member("anna", *AUDITOR)), kept()
        where = asked(http, run)["Location"]
        user_of(http).user_permissions.clear()
        assert http.get(where).status_code == 403
        assert told() == []

    @pytest.mark.parametrize("ending", ["", "x", "%00", "é"], ids=["cut", "longer", "nul", "accent"])
    def test_what_is_no_link_of_ours_is_nothing(self, store: Path, ending: str) -> None:
        http = recent(member("anna", *AUDITOR))
        where = asked(http, kept())["Location"].rstrip("/")
        assert http.get((where[:-3] if not ending else where + ending) + "/").status_code == 404
        assert http.get(f"/admin/exports/download/{'x' * 3000}/").status_code == 404

    def test_a_link_that_leads_nowhere_is_no_error_of_the_server(self, store: Path) -> None:
        http = recent(member("anna", *AUDITOR))
        me = user_of(http).pk
        for run in (-1, 0, 10**6, 2**64):
            assert http.get(forged(run=run, staff=me)).status_code == 404

    def test_a_head_request_takes_nothing(self, store: Path) -> None:
        http, run = recent(member("anna", *AUDITOR)), kept()
        assert http.head(asked(http, run)["Location"]).status_code == 405
        assert told() == []


class TestWhoMayTake:
    def test_who_may_take_records_out_may_take_any_and_others_their_own_alone(self, store: Path) -> None:
        anna = recent(member("anna", "audit.view_record", "audit.add_export"))
        own, other = kept(f"staff:{user_of(anna).pk}"), kept("staff:999")
        assert asked(anna, own).status_code == 302
        assert asked(anna, other).status_code == 403
        assert asked(recent(member("ben", *AUDITOR)), other).status_code == 302

    def test_personal_data_takes_the_right_to_see_it(self, store: Path) -> None:
        run = kept(personal=True)
        assert asked(recent(member("anna", *AUDITOR)), run).status_code == 403
        assert asked(recent(member("petra", *AUDITOR, "audit.view_personal")), run).status_code == 302

    def test_who_may_not_read_records_takes_nothing(self, store: Path) -> None:
        assert asked(recent(member("anna", "audit.export_record", "audit.add_export")), kept()).status_code == 403

    def test_it_is_asked_again_who_they_are(self, store: Path) -> None:
        http, run = member("anna", *AUDITOR), kept()
        session = http.session
        session[SIGNED_IN_AT] = int(time.time()) - 3600
        session.save()
        answer = asked(http, run)
        assert answer.status_code == 302
        assert answer["Location"].startswith(reverse("admin:sign_in_again"))
        assert quote(downloads.page_of(run), safe="") in answer["Location"]

    def test_a_link_is_made_by_post_with_a_token_against_forgery(self, store: Path) -> None:
        http, run = recent(member("anna", *AUDITOR)), kept()
        assert http.get(f"/admin/exports/runs/{run.pk}/download/").status_code == 405
        strict = HttpClient(enforce_csrf_checks=True)
        strict.cookies = http.cookies
        assert asked(strict, run).status_code == 403


class TestWhatIsNotThere:
    def test_a_file_that_this_server_does_not_have_is_a_page_in_words(self, store: Path) -> None:
        http, run = recent(member("anna", *AUDITOR)), kept()
        export_store.path(run.file).unlink()
        answer = http.get(asked(http, run)["Location"])
        assert answer.status_code == 404
        assert b"The file is not on this server" in answer.content
        assert told() == []

    def test_a_file_that_was_deleted_says_when(self, store: Path) -> None:
        run = kept(removed_at=datetime(2026, 11, 3, tzinfo=UTC))
        http = recent(member("anna", *AUDITOR))
        assert b"deleted on 3 November 2026" in http.get(asked(http, run)["Location"]).content

    def test_a_file_that_holds_who_was_erased_since_is_neither_handed_out_nor_kept(self, store: Path) -> None:
        http, run, other = recent(member("anna", *AUDITOR)), kept(), kept()
        where = asked(http, run)["Location"]
        ExportRun.objects.filter(pk=run.pk).update(erased_since=["usr_" + "a" * 20])
        answer = http.get(where)
        assert answer.status_code == 404
        assert b"before a user was erased" in answer.content
        assert told() == []
        assert export_store.sweep() == 1
        assert not export_store.path(run.file).exists()
        assert export_store.path(other.file).exists()

    def test_what_is_not_as_it_was_made_is_not_handed_out(self, store: Path) -> None:
        http, run = recent(member("anna", *AUDITOR)), kept()
        export_store.path(run.file).write_bytes(CONTENT + b"x")
        assert b"not what was made" in http.get(asked(http, run)["Location"]).content
        export_store.path(run.file).unlink()
        export_store.path(run.file).symlink_to("/etc/passwd")
        assert http.get(asked(http, run)["Location"]).status_code == 404

    @pytest.mark.parametrize("name", ["../settings.py", "/etc/passwd", ".1.part", ""])
    def test_a_name_that_leads_elsewhere_opens_nothing(self, store: Path, name: str) -> None:
        run = kept()
        ExportRun.objects.filter(pk=run.pk).update(file=name)
        run.refresh_from_db()
        with pytest.raises(StoreFailed, match=r"not made yet|not the name of a file"):
            export_store.open_kept(run)

    def test_what_cannot_be_recorded_is_not_handed_out(self, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*_: Any, **__: Any) -> None:
            raise DatabaseError

        http, run = recent(member("anna", *AUDITOR)), kept()
        where = asked(http, run)["Location"]
        monkeypatch.setattr(downloads, "tell", fails)
        answer = http.get(where)
        assert answer.status_code == 302
        assert CONTENT not in answer.content


class TestKeeping:
    def test_files_go_when_their_time_is_over_and_the_run_says_so(self, store: Path, settings: Any) -> None:
        settings.MUNIMENT_EXPORT_DAYS = 30
        now = timezone.now()
        young, old = kept(ended_at=now - timedelta(days=29)), kept(ended_at=now - timedelta(days=31))
        busy = kept(ended_at=now - timedelta(days=40), state="delivering")
        assert export_store.sweep() == 1
        for run, there in ((young, True), (old, False), (busy, True)):
            run.refresh_from_db()
            assert (
                export_store.path(run.file).exists(),
                export_store.path(run.file + export_store.MANIFEST).exists(),
            ) == (there, there)
            assert (run.removed_at is None) == there
        assert export_store.sweep() == 0

    def test_what_a_killed_worker_left_goes_once_its_run_is_over(self, store: Path) -> None:
        over, open_ = kept(), kept(state="running", file="")
        left = [store / f".{run.pk}.{kind}" for run in (over, open_) for kind in ("part", "manifest")]
        for path in left:
            path.touch()
        export_store.sweep()
        assert all(path.exists() for path in left), "perhaps somebody still writes it"
        for path in left:
            os.utime(path, (time.time() - 4000,) * 2)
        export_store.sweep()
        assert [path.exists() for path in left] == [False, False, True, True]

    def test_a_file_that_no_run_has_goes_after_its_time(self, store: Path) -> None:
        strange, run = store / "strange-9-20261101T0000Z.csv", kept()
        strange.touch()
        export_store.sweep()
        assert strange.exists()
        for path in (strange, export_store.path(run.file)):
            os.utime(path, (time.time() - 31 * 86400,) * 2)
        export_store.sweep()
        assert not strange.exists()
        assert export_store.path(run.file).exists()

    def test_a_full_disk_is_known_before_anything_is_written(self, store: Path) -> None:
        export_store.check_space(1000)
        with pytest.raises(StoreFailed, match="no space left where exports are kept"):
            export_store.check_space(2**60)


class TestTheMail:
    def test_it_goes_to_each_recipient_once_with_a_link_and_no_data(self, store: Path) -> None:
        anna, ben = (user_of(member(name, *AUDITOR)) for name in ("anna", "ben"))
        for user in (anna, ben):
            user.email = f"{user.username}@staff.example"
            user.save()
        run = kept(recipients=[anna.pk, ben.pk])
        assert export_mail.send_due() == 1
        assert export_mail.send_due() == 0
        assert [found.to for found in mail.outbox] == [["anna@staff.example"], ["ben@staff.example"]]
        assert f"/admin/exports/mailed/{run.pk}/" in mail.outbox[0].body
        assert "claude" not in mail.outbox[0].body
        assert "calls" not in mail.outbox[0].subject + str(mail.outbox[0].body), "a name is free text of somebody's"
        [found] = told("export.mailed")
        assert (found["mailed"], found["skipped"]) == (2, 0)

    def test_the_workers_tasks_mail_and_sweep(self, store: Path) -> None:
        anna = user_of(member("anna", *AUDITOR))
        anna.email = "anna@staff.example"
        anna.save()
        kept(recipients=[anna.pk])
        old = kept(ended_at=timezone.now() - timedelta(days=40))
        tasks.mail_exports()
        tasks.sweep_exports()
        assert len(mail.outbox) == 1
        assert not export_store.path(old.file).exists()

    def test_a_repeat_is_the_same_mail(self, store: Path) -> None:
        anna = user_of(member("anna", *AUDITOR))
        anna.email = "anna@staff.example"
        anna.save()
        run = kept(recipients=[anna.pk])
        export_mail.send(run.pk)
        ExportRun.objects.update(mailed_at=None, mailed=[])  # as if the worker had been killed before it wrote that
        export_mail.send(run.pk)
        first, second = (found.extra_headers["Message-ID"] for found in mail.outbox)
        assert first == second

    def test_who_may_not_take_it_is_not_told_and_that_is_said(self, store: Path) -> None:
        may, lost, gone, mute = (user_of(member(name, *AUDITOR)) for name in ("may", "lost", "gone", "mute"))
        for user in (may, lost, gone):
            user.email = f"{user.username}@staff.example"
            user.save()
        lost.user_permissions.clear()
        gone.is_active = False
        gone.save()
        run = kept(recipients=[may.pk, lost.pk, gone.pk, mute.pk, 10**6])
        export_mail.send_due()
        assert [found.to for found in mail.outbox] == [["may@staff.example"]]
        run.refresh_from_db()
        assert run.words == (
            "Not told by e-mail: 1 recipient without the rights to take the file; 2 recipients no longer on the staff; "
            "1 recipient without an e-mail address."
        )

    def test_an_address_that_is_refused_keeps_nobody_else_from_being_told_and_nobody_is_told_twice(
        self, store: Path, settings: Any
    ) -> None:
        people = [user_of(member(name, *AUDITOR)) for name in ("anna", "bad", "ben", "cara")]
        for user in people:
            user.email = f"{user.username}@staff.example"
            user.save()
        get_user_model().objects.filter(username="cara").update(email="cara@staff.example\nBcc: x@evil.example")
        with mail_server(refusing="bad@", busy="ben@") as server:
            settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
            settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", server.port
            run = kept(recipients=[user.pk for user in people])
            assert export_mail.send_due() == export_mail.send_due() == 0
            assert [to for to, _ in server.got] == [["anna@staff.example"]], "once, although ben's is not taken yet"
            server.busy = ""
            assert export_mail.send_due() == 1
        assert [to for to, _ in server.got] == [["anna@staff.example"], ["ben@staff.example"]]
        assert [found.get_all("Message-ID") for _, found in server.got] == [
            [f"<export-run-{run.pk}-{user.pk}@{export_mail.domain()}>"] for user in (people[0], people[2])
        ]
        run.refresh_from_db()
        assert run.words == "Not told by e-mail: 2 recipients whose address the mail server refused."

    def test_of_personal_data_only_who_may_see_it_is_told(self, store: Path) -> None:
        anna = user_of(member("anna", *AUDITOR))
        anna.email = "anna@staff.example"
        anna.save()
        kept(recipients=[anna.pk], personal=True)
        export_mail.send_due()
        assert mail.outbox == []

    def test_a_mail_server_that_is_away_is_tried_again_for_a_day(self, store: Path, settings: Any) -> None:
        anna = user_of(member("anna", *AUDITOR))
        anna.email = "anna@staff.example"
        anna.save()
        run = kept(recipients=[anna.pk])
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 1
        with pytest.raises(MailFailed, match="cannot be reached"):
            export_mail.send(run.pk)
        later = kept("staff:1", recipients=[anna.pk])
        assert export_mail.send_due() == 0
        run.refresh_from_db()
        later.refresh_from_db()
        assert (run.mailed_at, later.mailed_at, later.words) == (None, None, ""), "one try stands for all"
        assert run.words == "The e-mail is not sent yet: the mail server cannot be reached: Connection refused."
        settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
        assert export_mail.send_due() == 2
        ExportRun.objects.update(mailed_at=None, ended_at=timezone.now() - timedelta(days=2))
        assert export_mail.send_due() == 0

    def test_two_workers_do_not_mail_at_once(self, store: Path) -> None:
        anna = user_of(member("anna", *AUDITOR))
        anna.email = "anna@staff.example"
        anna.save()
        run = kept(recipients=[anna.pk])
        import psycopg

        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as other:
            other.execute("SELECT pg_advisory_lock(%s, %s)", [export_mail.LOCK, run.pk])
            assert export_mail.send_due() == 0
            other.execute("SELECT pg_advisory_unlock_all()")
            assert export_mail.send_due() == 1
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            assert cursor.fetchone() == (0,)

    def test_its_link_is_for_whom_it_was_sent_to_and_for_a_week(self, store: Path) -> None:
        anna, ben = member("anna", *AUDITOR), member("ben", *AUDITOR)
        run = kept(recipients=[user_of(anna).pk])
        where = f"/admin/exports/mailed/{run.pk}/"
        assert anna.get(where).status_code == 404, "no mail was sent yet"
        ExportRun.objects.update(mailed_at=timezone.now() - timedelta(days=6), mailed=[user_of(anna).pk])
        assert anna.get(where)["Location"] == downloads.page_of(run)
        Export.objects.update(recipients=[user_of(ben).pk])
        assert ben.get(where).status_code == 404, "a recipient of later ones"
        Export.objects.all().delete()
        assert anna.get(where)["Location"] == downloads.page_of(run)
        ExportRun.objects.update(mailed_at=timezone.now() - timedelta(days=8))
        answer = anna.get(where)
        assert answer.status_code == 410
        assert b"good for a week" in answer.content
