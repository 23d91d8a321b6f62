"""What a person must look at: raised once, seen again while it lasts, cleared when it is over; the admin's home and the
log page show what is open. Each raise and each end is a `notice` in the log: whoever deletes the row is seen."""

from dataclasses import dataclass
from datetime import datetime

from django.db import IntegrityError, transaction
from django.utils import timezone

from audit.models import Alert, Outbox


@dataclass(frozen=True, slots=True)
class Kind:
    """What an alert of this kind means, and what to do, in plain words."""

    title: str
    remedy: str


KINDS = {
    "sealer-halted": Kind("Sealing has stopped", "Run `manage.py seal --explain` on the sealer's machine."),
    "batch-missing": Kind(
        "Answered calls are missing from the database",
        "A web process answered calls whose records are gone. Look for a restored backup, a failover or tampering; "
        "keep the receipts of the backends. If the records are lost, two people close the log and open the next.",
    ),
    "journal-failing": Kind(
        "A web process cannot write its journal of answered calls",
        "Free space on its disk, or give it its folder `batches` under MUNIMENT_VAR. Calls are answered; but if that "
        "process also ends, a loss of its newest records could go unnoticed.",
    ),
    "sealing-late": Kind("Records wait too long to be sealed", "Check that the sealer runs."),
    "anchor-failing": Kind("An anchor cannot be reached", "Until it is reached, newer records are not anchored there."),
    "stream-stuck": Kind(
        "A stream to a SIEM has been failing for long",
        "See what it says under System > Streams. Nothing is lost: it goes on where it stopped.",
    ),
    "retention-failed": Kind(
        "Retention could not be carried out", "Read why on the page Retention. Nothing is lost; it is tried again."
    ),
    "limits-uncounted": Kind(
        "Calls cannot be counted against limits",
        "Bring Redis back. Meanwhile each limit says whether its calls go through or are refused; the log counts both.",
    ),
    "verification-failed": Kind("The verification of the log found something", "Read the findings; keep the database."),
}


def raise_alert(kind: str, about: str, words: str) -> None:
    """Raise an alert, or note that it lasts. `about` says of which (an anchor's name, a process); `words` may change
    while it lasts."""
    about, now = about[:255], timezone.now()
    if kind not in KINDS:
        raise ValueError(f"not a kind of alert: {kind}")
    if Alert.objects.filter(kind=kind, about=about, cleared_at=None).update(words=words, seen_at=now):
        return
    try:
        with transaction.atomic():
            Alert.objects.create(kind=kind, about=about, words=words, raised_at=now, seen_at=now)
            _notice("alert.raised", kind, about, words, now)
    except IntegrityError:  # another process was faster
        pass


def clear(kind: str, about: str | None = None) -> int:
    """End an alert, or all of one kind; how many were open."""
    now = timezone.now()
    with transaction.atomic():
        found = Alert.objects.select_for_update().filter(kind=kind, cleared_at=None)
        ended = list(found if about is None else found.filter(about=about[:255]))
        for alert in ended:
            alert.cleared_at = now
            alert.save(update_fields=["cleared_at"])
            _notice("alert.cleared", kind, alert.about, "", now)
    return len(ended)


def open_alerts() -> list[Alert]:
    """What is open, the oldest first."""
    return list(Alert.objects.filter(cleared_at=None).order_by("raised_at", "id"))


def _notice(action: str, kind: str, about: str, words: str, at: datetime) -> None:
    members = {"action": action, "alert": kind, "about": about}
    private = {"words": words} if words else None
    Outbox.objects.create(kind="notice", members=members, private=private, at=at, actor="system", xact="")
