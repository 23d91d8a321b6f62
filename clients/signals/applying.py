"""What a security event does, in one transaction: the users are signed out everywhere, the event is recorded, and its
receipt is kept, so that an answer that got lost costs nothing: the same event, sent again, is taken once."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, Literal

from django.utils import timezone

from audit import subjects
from audit.models import Outbox, Subject
from audit.outbox import acting
from clients.models import SignalReceipt, SignalStream
from clients.signals import events
from clients.signals.events import Meaning, User
from clients.signals.sets import EventToken, SetRefused

ATTEMPTS: Final = 3
# signed_out: tokens up to the moment are refused now; already: they were before; verified: the stream was tested.
Effect = Literal["signed_out", "already", "verified", "none"]


class Vanished(Exception):
    """The user was erased, again and again, while the event was applied: send it once more."""


class _Erased(Exception):
    """The user that an event names was erased since it was looked up."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of an event: how many users it was about, and why nothing was done, if so. `again`: it was taken
    before, and nothing was done now."""

    effect: Effect
    users: int = 0
    why: str | None = None
    again: bool = False


def take(stream: SignalStream, token: EventToken, now: float) -> Applied:
    """Do what a verified event of a stream asks for; once it returns, it is committed. `now` is seconds since the
    epoch. Raises SetRefused (see `events.meaning`; access_denied also for a stream that was disabled meanwhile),
    Vanished, or what the database raises: then nothing was done."""
    issuer = stream.issuer.issuer
    found = events.meaning(token, issuer, now)
    for _ in range(ATTEMPTS):
        # Users are met outside of the transaction: this process would remember one who was rolled back.
        uids = _uids(found.user, issuer) if found.user else []
        try:
            with acting(f"signals:{stream.name}", stream.name, _reason(found)):
                return _take(stream, token, found, uids)
        except _Erased:
            for uid in uids:
                subjects.forget(uid)
    raise Vanished


def _uids(user: User, issuer: str) -> list[str]:
    """The users whom an event names. One who never called is met now, since a token that was issued before may yet be
    used; by an address alone nobody can be."""
    if user.sub is not None:
        return [subjects.resolve(issuer, user.sub)]
    key = subjects.email_key(user.email or "")
    known = Subject.objects.filter(issuer=issuer, email_key=key, erased_at=None)
    return list(known.order_by("uid").values_list("uid", flat=True))


def _take(stream: SignalStream, token: EventToken, found: Meaning, uids: list[str]) -> Applied:
    held = SignalStream.objects.select_for_update().filter(pk=stream.pk, enabled=True).first()
    if held is None:
        raise SetRefused("access_denied", "the stream is disabled")
    _, first = SignalReceipt.objects.get_or_create(stream=held, jti=sha256(token.jti.encode()).digest())
    if not first:
        return Applied("none", again=True)
    applied = _sign_out(found, uids)
    _record(held, token, found, applied, uids)
    held.received_at, held.error = timezone.now(), ""
    if applied.effect == "verified":
        held.verified_at = held.received_at
    held.save(update_fields=["received_at", "verified_at", "error"])
    return applied


def _sign_out(found: Meaning, uids: list[str]) -> Applied:
    if found.user is None:
        verified = found.why == "stream" and found.name == "verification"
        return Applied("verified") if verified else Applied("none", why=found.why)
    users = list(Subject.objects.select_for_update().filter(uid__in=uids, erased_at=None).order_by("uid"))
    if not users:
        if found.user.sub is not None:
            raise _Erased
        return Applied("none", why="user_unknown")
    moment = datetime.fromtimestamp(found.moment, UTC)
    older = [user for user in users if user.signed_out_at is None or user.signed_out_at < moment]
    for user in older:
        user.signed_out_at = moment
        user.save(update_fields=["signed_out_at"])
    return Applied("signed_out" if older else "already", len(users))


def _reason(found: Meaning) -> str:
    """Why the users are signed out, for the record of each: protected, like all that others write."""
    told = found.notes.get("reason_admin") or found.notes.get("reason")
    return f"{found.name or 'an unknown event'}{f': {told}' if told else ''}"


def _record(stream: SignalStream, token: EventToken, found: Meaning, applied: Applied, uids: list[str]) -> None:
    """The event itself as a record. What a transmitter may fill freely is protected; nobody is named."""
    members: Mapping[str, Any] = {
        "action": "signal.received",
        "stream": stream.name,
        "event": found.name or "unknown",
        "effect": applied.effect,
        "why": applied.why,
        "users": applied.users,
        "subject": uids[0] if applied.users == 1 else None,
        "moment": int(found.moment) if found.user else None,
    }
    private = {"actor_name": stream.name, "jti": token.jti, **found.notes}
    if found.name is None:
        private["event_uri"] = token.event
    Outbox.objects.create(
        kind="signal",
        members={name: value for name, value in members.items() if value is not None},
        private=private,
        at=timezone.now(),
        actor=f"signals:{stream.name}",
        xact="",
    )
