"""Notifications: what somebody should look at is told once while it lasts, by e-mail to those who can do something
about it and by one webhook of the operator. Words and links alone: no data of users, no text that anybody typed.

`refresh` compares what is the case now (`notifications_finding`) with what is told already; `notifications_sending`
brings it to people."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.utils import timezone

from audit.viewer import tenants_of
from governance.models import Notification, NotificationChoice, NotificationDelivery

WEBHOOK = "webhook"
BACKEND = "governance.staff_passwords.PasswordBackend"  # what permissions are asked of: of either the same
AGAIN = timedelta(hours=1)
"""What comes and goes is not told again within so long."""
KEPT = timedelta(days=90)
MOST_NEW = 200  # of one minute; the rest is told in the next


@dataclass(frozen=True, slots=True)
class Kind:
    """What is told of, and the permissions of which one is enough to be told: of those who can act."""

    title: str
    explanation: str
    permissions: tuple[str, ...]


KINDS = {
    "request": Kind(
        "A request waits for a decision", "Somebody asks for a grant, or for a longer life of one.",
        ("clients.decide_accessrequest",),
    ),
    "grant": Kind(
        "A grant ends soon", "Seven days before, and one day before.", ("clients.change_grant",),
    ),
    "export": Kind(
        "An export failed", "Of exports that are yours, and of all if you may change them; also when one is disabled"
        " after it failed five times in a row.", ("audit.change_export",),
    ),
    "verification": Kind(
        "The verification of the log found something", "Each finding must be explained; the database must be kept.",
        ("audit.view_alert",),
    ),
    "sealer": Kind(
        "Records are not sealed", "The sealer halted, gives no sign, or is late.", ("audit.view_alert",),
    ),
    "log": Kind(
        "Something else about the log needs a look", "Such as an anchor that cannot be reached.",
        ("audit.view_alert",),
    ),
    "denials": Kind(
        "An unusual number of denials", "In one hour, compared with the same hour of the seven days before.",
        ("clients.change_client", "audit.view_alert"),
    ),
    "retention": Kind(
        "Retention failed", "What should be deleted by now is still there.",
        ("audit.change_retentionrule", "audit.view_alert"),
    ),
    "stream": Kind(
        "A stream to a SIEM is stuck", "It has been failing for long.", ("audit.change_stream",),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """Something that is the case now. `owner`: a member of staff who is told besides; `but`: one who is not, since it
    is their own doing. Both by number. `tenant`: of which it is; of none, who is confined to tenants is not told."""

    kind: str
    about: str
    words: str
    path: str
    owner: int | None = None
    but: int | None = None
    tenant: str | None = None


def refresh(now: datetime | None = None) -> int:
    """Tell of what is new, and end what is over; how many are new. Each minute, in the worker; to be killed or to run
    twice does no harm."""
    from governance.notifications_finding import everything

    now = now or timezone.now()
    found = {(one.kind, one.about[:255]): one for one in everything(now)}
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('muniment.notifications', 0))")
        _end(found.keys(), now)
        told = set(Notification.objects.filter(over_at=None).values_list("kind", "about"))
        told |= set(Notification.objects.filter(over_at__gt=now - AGAIN).values_list("kind", "about"))
        fresh = [one for key, one in found.items() if key not in told][:MOST_NEW]
        _make(fresh, now)
    Notification.objects.filter(over_at__lt=now - KEPT).delete()
    return len(fresh)


def _end(lasting: Iterable[tuple[str, str]], now: datetime) -> None:
    keys = set(lasting)
    over = [
        pk for pk, kind, about in Notification.objects.filter(over_at=None).values_list("pk", "kind", "about")
        if (kind, about) not in keys
    ]  # fmt: skip
    Notification.objects.filter(pk__in=over).update(over_at=now)
    # Who was not told in time need not be told any more, except that it happened: that is on the page.
    waiting = NotificationDelivery.objects.filter(notification__in=over, done_at=None, given_up_at=None)
    waiting.update(given_up_at=now, error="It was over before it could be told.")


def _make(fresh: list[Found], now: datetime) -> None:
    audience = {kind: _audience(kind) for kind in {one.kind for one in fresh}}
    for one in fresh:
        made = Notification.objects.create(
            kind=one.kind, about=one.about[:255], words=one.words, path=one.path, made_at=now, tenant=one.tenant
        )
        told = {number for number, seen in audience[one.kind].items() if not seen or one.tenant in seen}
        numbers = (told | _owner(one)) - {one.but}
        places = [f"staff:{number}" for number in sorted(n for n in numbers if n is not None)]
        places += [WEBHOOK] if settings.MUNIMENT_NOTIFY_WEBHOOK else []
        NotificationDelivery.objects.bulk_create(
            [NotificationDelivery(notification=made, to=place, next_at=now) for place in places]
        )


def _audience(kind: str) -> dict[int | None, set[str]]:
    """Who is told of a kind, each with the tenants that they are confined to: those with a permission for it and a
    mailbox, who want to be."""
    found: dict[int | None, set[str]] = {}
    off = set(NotificationChoice.objects.filter(off__contains=[kind]).values_list("pk", flat=True))
    for permission in KINDS[kind].permissions:
        people: Any = get_user_model().objects.with_perm(permission, backend=BACKEND).filter(is_staff=True)
        for user in people.exclude(email="").exclude(pk__in=off).prefetch_related("tenants"):
            found[user.pk] = {row.tenant for row in user.tenants.all()}
    return found


def _owner(one: Found) -> set[int | None]:
    if one.owner is None or NotificationChoice.objects.filter(pk=one.owner, off__contains=[one.kind]).exists():
        return set()
    people = get_user_model().objects.filter(pk=one.owner, is_active=True, is_staff=True).exclude(email="")
    return set(people.values_list("pk", flat=True))


def kinds_for(user: Any) -> dict[str, Kind]:
    """The kinds that a member of staff can be told of, by the permissions that they have now. Of exports everybody is
    who may make one."""
    own = {"export"} if user.has_perm("audit.add_export") else set()
    return {code: kind for code, kind in KINDS.items() if code in own or any(map(user.has_perm, kind.permissions))}


def may_see(user: Any, one: Notification) -> bool:
    """Whether somebody sees what a notification is about by the tenants that they are confined to now: those of when
    they were told may have been others. Of exports their own were told, which are of none."""
    tenants = tenants_of(user)
    return tenants is None or one.kind == "export" or one.tenant in tenants


def choose(user: Any, wanted: Iterable[str]) -> list[str]:
    """Keep which kinds somebody wants e-mail of; those that they want none of. Kinds that they cannot be told of now
    stay as they were."""
    able, on = set(kinds_for(user)), set(wanted)
    choice = NotificationChoice.objects.filter(pk=user.pk).first() or NotificationChoice(user=user)
    choice.off = sorted((set(choice.off) - able) | (able - on))
    choice.save()
    return list(choice.off)
