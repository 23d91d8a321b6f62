"""Telling the recipients of an export that its file is there: a link by e-mail, never data, and never to anybody but
staff who may take the file now."""

import logging
import smtplib
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import parseaddr
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage
from django.db import transaction
from django.template.loader import render_to_string
from django.utils import timezone

from audit.alone import alone
from audit.exports.downloads import mailed_link, may_take, staff_of
from audit.models import Export, ExportRun
from audit.staff_log import tell

logger = logging.getLogger(__name__)

TRIED_FOR = timedelta(days=1)
"""For so long after its end a run's mail is tried again; then its words say that it was not sent."""
LOCK = 0x4D_6D  # the first half of our advisory locks: mail of a run


class MailFailed(Exception):
    """The mail server did not take a mail. In words, without an address."""


class MailAway(MailFailed):
    """The mail server cannot be reached: the next mail would not be taken either."""


class MailRefused(MailFailed):
    """A mail can never be taken, since the recipient's address is refused."""


@dataclass
class _Outcome:
    """How many were mailed, and why others were not, in words with how many."""

    mailed: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    def skip(self, why: str) -> None:
        self.skipped[why] = self.skipped.get(why, 0) + 1

    @property
    def words(self) -> str:
        """Empty where everybody was told."""
        said = [
            f"{number} {'recipient' if number == 1 else 'recipients'} {why}" for why, number in self.skipped.items()
        ]
        return f"Not told by e-mail: {'; '.join(said)}." if said else ""


def send_due() -> int:
    """Mail the recipients of every run that is done and of whom they were not told; how many runs. Each minute. To run
    twice, or to be killed, does no harm: a mail that goes out again has the same Message-ID (RFC 5322 section 3.6.4)
    and is the same mail to whoever receives it."""
    done = ExportRun.objects.filter(state="done", mailed_at=None, ended_at__gt=timezone.now() - TRIED_FOR)
    wanted = Export.objects.exclude(recipients=[]).values("pk")
    sent = 0
    for number in list(done.filter(export__in=wanted).order_by("pk").values_list("pk", flat=True)[:200]):
        with alone(LOCK, number) as mine:
            try:
                sent += mine and send(number)
            except MailFailed as error:
                logger.warning("the mail about export run %s was not sent: %s", number, error)
                ExportRun.objects.filter(pk=number, mailed_at=None).update(
                    words=f"The e-mail is not sent yet: {error}."
                )
                if isinstance(error, MailAway):
                    break  # the next one would not be taken either
    return sent


def send(number: int) -> bool:
    """Mail the recipients of one run; False where it was done before. Raises MailFailed when the mail server takes no
    mail now; who was told by then is noted."""
    run = ExportRun.objects.filter(pk=number, state="done", mailed_at=None).first()
    export = Export.objects.filter(pk=run.export).first() if run else None
    if run is None or export is None:
        return False
    outcome = _Outcome()
    people = {user.pk: user for user in staff_of(export.recipients)}
    for one in dict.fromkeys(export.recipients):
        if one in run.mailed or _told(people.get(one), run, export, outcome):
            outcome.mailed += 1
    with transaction.atomic():
        ExportRun.objects.filter(pk=number, mailed_at=None).update(mailed_at=timezone.now(), words=outcome.words)
        tell(
            "system", "", "export.mailed", export=run.export, run=run.pk, owner=run.owner, mailed=outcome.mailed,
            skipped=sum(outcome.skipped.values()),
        )  # fmt: skip
    return True


def _told(user: Any, run: ExportRun, export: Export, outcome: _Outcome) -> bool:
    """Mail one recipient, or say in the outcome why not. Raises MailFailed."""
    if user is None or not user.is_active:
        outcome.skip("no longer on the staff")
    elif not may_take(user, run):
        outcome.skip("without the rights to take the file")
    elif not user.email:
        outcome.skip("without an e-mail address")
    else:
        try:
            hand_over(message(user, run, export))
        except MailRefused:
            outcome.skip("whose address the mail server refused")
            return False
        run.mailed.append(user.pk)
        ExportRun.objects.filter(pk=run.pk).update(mailed=run.mailed)
        return True
    return False


def message(user: Any, run: ExportRun, export: Export) -> EmailMessage:
    """What one recipient gets: which run, how large, and where; no data and nobody's name."""
    said = {"run": run, "export": export, "url": mailed_link(run.pk)}
    return EmailMessage(
        subject=f"Muniment: an export is ready ({export.pk}, {run.slot:%Y-%m-%d %H:%M} UTC)",
        body=render_to_string("mail/export_done.txt", said),
        to=[user.email],
        headers={
            "Message-ID": f"<export-run-{run.pk}-{user.pk}@{domain()}>",
            "Auto-Submitted": "auto-generated",  # RFC 3834: no answers, please
        },
    )


def domain() -> str:
    """The domain under which our mails are sent."""
    return parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2] or "localhost"


def hand_over(mail: EmailMessage) -> None:
    """Give a mail to the mail server, in bounded time (EMAIL_TIMEOUT). Raises MailFailed, MailAway, and MailRefused
    where it would be of no use to try again."""
    try:
        mail.send()
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        kind = MailRefused if all(code >= 500 for code in codes) else MailFailed
        raise kind(f"the mail server refused the recipient ({max(codes, default=0)})") from None
    except smtplib.SMTPResponseException as error:
        raise MailFailed(f"the mail server refused it ({error.smtp_code})") from None
    except smtplib.SMTPException as error:
        raise MailFailed(f"the mail server refused it ({type(error).__name__})") from None
    except OSError as error:
        raise MailAway(f"the mail server cannot be reached: {error.strerror or type(error).__name__}") from None
    except ValueError:  # an address that cannot be one (BadHeaderError, UnicodeError)
        raise MailRefused("the recipient's address cannot be one") from None
