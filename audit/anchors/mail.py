"""A mailbox as an anchor: a mail with the note, at most one an hour."""

import re
import smtplib
from urllib.parse import SplitResult, unquote

from django.core.mail import EmailMessage

from audit.anchors.base import Anchor, AnchorError, ConfigError, Submission, check_parts, number, options

EVERY_SECONDS = 3600
_ADDRESS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@((?:[A-Za-z0-9-]{1,63}\.)*[A-Za-z0-9-]{1,63})")

BODY = """This is an automatic message of Muniment, the log of what AI clients may do and did.

The log {origin} had {size} records when this was sent. The lines below are its signed
checkpoint. Keep this message where the administrators of the log cannot delete it: from it anybody can later show
whether one of these records was changed or removed. To check it, save the lines between the two rules, as they
are, in a file and give that to the verifier: muniment verify --checkpoint FILE

-----
{note}-----
"""


class Mail(Anchor):
    """`mailto:a@b.example,c@d.example?every=SECONDS`, sent by the server of MUNIMENT_EMAIL_URL. The name has the
    domains alone: it stands in the log, where no e-mail address may stand."""

    kind = "mail"

    def __init__(self, name: str, recipients: list[str], every: float) -> None:
        super().__init__(name)
        self._recipients, self.every = recipients, every

    @classmethod
    def parse(cls, parts: SplitResult) -> "Mail":
        """From an entry of MUNIMENT_ANCHORS. Raises ConfigError."""
        check_parts(parts)
        given = options(parts, "every")
        every = number(given.get("every", str(EVERY_SECONDS)), "every", 0, 7 * 86400)
        recipients = unquote(parts.path).split(",")
        domains = [found[1] for one in recipients if (found := _ADDRESS.fullmatch(one))]
        if parts.netloc or len(domains) != len(recipients):
            raise ConfigError("it must be mailto:somebody@example.org, several with commas between")
        return cls(f"mailto:{','.join(f'*@{domain}' for domain in sorted(set(domains)))}", recipients, every)

    def send(self, submission: Submission) -> str:
        """Hand the mail to the mail server, which may still lose it."""
        found = submission.checkpoint
        message = EmailMessage(
            subject=f"Checkpoint of {found.origin}: {found.size} records",
            body=BODY.format(origin=found.origin, size=found.size, note=submission.note),
            to=self._recipients,
            headers={"Auto-Submitted": "auto-generated"},  # RFC 3834: no answers, please
        )
        try:
            message.send()
        except smtplib.SMTPResponseException as error:
            raise AnchorError(f"the mail server refused the mail ({error.smtp_code})") from None
        except smtplib.SMTPException as error:
            raise AnchorError(f"the mail server refused the mail ({type(error).__name__})") from None
        except (OSError, ValueError) as error:
            words = getattr(error, "strerror", None) or type(error).__name__
            raise AnchorError(f"the mail server cannot be reached: {words}") from None
        return ""
