"""Bringing notifications to people: one e-mail for what became known at once, and one webhook each. What cannot be
brought is tried again, ever more rarely, and given up in the end; the page of notifications says so."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.mail import EmailMessage
from django.db.models import QuerySet
from django.template.loader import render_to_string
from django.utils import timezone

from audit import webhooks
from audit.alone import alone
from audit.exports.mail import MailAway, MailFailed, MailRefused, domain, hand_over
from audit.webhooks import Address, AddressError, Unreachable
from governance.models import NotificationDelivery
from governance.notifications import KINDS, WEBHOOK, kinds_for, may_see

logger = logging.getLogger(__name__)

LOCK = 0x4D_6E  # the first half of our advisory locks: whoever brings notifications
SECONDS = 40.0  # of one round
MOST = 2000  # of one round
TRIES = 12
LONGEST = timedelta(hours=2)
"""Between two tries: a minute, two, four, up to two hours. Twelve tries are about eleven hours."""
MOST_LINES = 50  # of one e-mail


class ConfigError(ValueError):
    """MUNIMENT_NOTIFY_WEBHOOK cannot be. Never repeats it."""


class _NotTaken(Exception):
    """The webhook's receiver answered, and did not take it. In words."""


def webhook() -> tuple[Address, bytes] | None:
    """Where the operator's webhook is, and the key that signs; None where there is none. Raises ConfigError; the system
    check muniment.E012 says so at the start."""
    given = settings.MUNIMENT_NOTIFY_WEBHOOK.split()
    if not given:
        return None
    if len(given) != 2:
        raise ConfigError("it must be a URL and a secret, with white space between")
    try:
        return Address(given[0]), webhooks.key_of(given[1])
    except AddressError as error:
        about = "the secret " if str(error).startswith("must be") else ""
        raise ConfigError(f"{about}{error}") from None


def send_due(now: datetime | None = None) -> int:
    """Bring what is due to where it goes; how many were brought. Each minute, in the worker; to be killed does no
    harm: what was brought and not noted is brought again, as the same message."""
    now = now or timezone.now()
    until = time.monotonic() + SECONDS
    with alone(LOCK, 0) as mine:
        return sum(_sent(batch, now) for batch in _batches(now) if time.monotonic() < until) if mine else 0


def _batches(now: datetime) -> Iterator[list[NotificationDelivery]]:
    """What is due: for a mailbox all that became known at the same time, for the webhook one by one."""
    due = NotificationDelivery.objects.filter(done_at=None, given_up_at=None, next_at__lte=now)
    rows = list(due.select_related("notification").order_by("notification__made_at", "to", "notification_id")[:MOST])
    for (at, to), found in groupby(rows, key=lambda row: (row.notification.made_at, row.to)):
        # All of them, also what comes after the last row that was read: a repeat is then the same mail.
        same = due.filter(to=to, notification__made_at=at).select_related("notification").order_by("notification_id")
        yield from ([one] for one in found) if to == WEBHOOK else [list(same)]


def _sent(batch: Sequence[NotificationDelivery], now: datetime) -> int:
    rows = NotificationDelivery.objects.filter(pk__in=[one.pk for one in batch])
    if not rows.filter(next_at__lte=now, given_up_at=None).exists():
        return 0  # put off meanwhile, with all that goes the same way
    try:
        refused = _post(batch[0]) if batch[0].to == WEBHOOK else _mail(batch)
    except (Unreachable, MailAway) as error:
        # One try stands for all that go the same way: a place that is away must not hold up the others.
        due = NotificationDelivery.objects.filter(done_at=None, given_up_at=None, next_at__lte=now)
        _put_off(due.filter(to=WEBHOOK) if batch[0].to == WEBHOOK else due.exclude(to=WEBHOOK), now, str(error))
        return 0
    except (_NotTaken, MailFailed) as error:
        _put_off(rows, now, str(error), for_good=isinstance(error, MailRefused))
        return 0
    rows.update(**{"given_up_at": now, "error": refused} if refused else {"done_at": now, "error": ""})
    return 0 if refused else len(batch)


def _put_off(rows: QuerySet[NotificationDelivery], now: datetime, words: str, *, for_good: bool = False) -> None:
    """To be tried again, the later the more often it was; after the last try, or where that is of no use, given up."""
    logger.warning("notifications are not brought: %s", words)
    for tries in sorted(set(rows.values_list("tries", flat=True))):
        wait = min(timedelta(minutes=2 ** min(tries, 20)), LONGEST)
        given_up = now if for_good or tries + 1 >= TRIES else None
        rows.filter(tries=tries, next_at__lte=now).update(
            tries=tries + 1, next_at=now + wait, error=words, given_up_at=given_up
        )


def _mail(batch: Sequence[NotificationDelivery]) -> str:
    """E-mail one member of staff; why not, where they are not to be told any more. Raises MailFailed."""
    user: Any = get_user_model().objects.filter(pk=batch[0].to.partition(":")[2], is_active=True, is_staff=True).first()
    if user is None or not user.email:
        return "They are no longer on the staff, or have no e-mail address."
    able = kinds_for(user)
    told = [one for one in batch if one.notification.kind in able and may_see(user, one.notification)]
    if not told:
        return "They may not see what it is about any more."
    hand_over(message(user, told))
    return ""


def message(user: Any, batch: Sequence[NotificationDelivery]) -> EmailMessage:
    """The e-mail to one member of staff."""
    titles = sorted({KINDS[one.notification.kind].title for one in batch})
    base = settings.MUNIMENT_URL.rstrip("/")
    lines = [(one.notification.words, base + one.notification.path) for one in batch[:MOST_LINES]]
    said = {"lines": lines, "more": len(batch) - len(lines), "page": f"{base}/admin/notifications/"}
    first = batch[0].notification_id
    return EmailMessage(
        subject=f"Muniment: {titles[0] if len(batch) == 1 else f'{len(batch)} things need a look'}",
        body=render_to_string("mail/notification.txt", said),
        to=[user.email],
        headers={
            "Message-ID": f"<notification-{first}-{user.pk}@{domain()}>",
            "Auto-Submitted": "auto-generated",  # RFC 3834: no answers, please
        },
    )


def _post(one: NotificationDelivery) -> str:
    """Send it to the operator's webhook, as Standard Webhooks says; why not, where there is none. Raises
    Unreachable, _NotTaken."""
    try:
        place = webhook()
    except ConfigError as error:
        raise Unreachable(f"MUNIMENT_NOTIFY_WEBHOOK cannot be used: {error}") from None
    if place is None:
        return "No webhook is configured any more."
    address, key = place
    body = json.dumps(payload(one), ensure_ascii=True).encode()
    headers = webhooks.signed([key], f"notification_{one.notification_id}", webhooks.now(), body)
    answer = address.post(body, headers | {"Content-Type": "application/json"})
    if not answer.accepted:
        raise _NotTaken(f"the receiver answered {answer.status}")
    return ""


def payload(one: NotificationDelivery) -> dict[str, Any]:
    """What the webhook says."""
    told = one.notification
    return {
        "type": f"notification.{told.kind}",
        "timestamp": told.made_at.isoformat().replace("+00:00", "Z"),
        "data": {
            "title": KINDS[told.kind].title, "words": told.words,
            "url": settings.MUNIMENT_URL.rstrip("/") + told.path,
        },
    }  # fmt: skip
