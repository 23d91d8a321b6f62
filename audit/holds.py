"""Legal holds: what must not be deleted or erased while a matter is open. One person places a hold; to release it takes
two. Each change is made under the guard row, so that retention and erasure, which take it before each step, see it at
once; and each is recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.core.exceptions import PermissionDenied
from django.db import OperationalError, connections, transaction
from django.utils import timezone

from audit import guard
from audit.holds_sql import covered_sql
from audit.models import Hold, Record, Subject
from audit.people import UID
from audit.staff_log import tell

CRITERIA = ("subject", "client", "tool", "backend", "tenant", "since", "until")
NAMED = ("client", "tool", "backend", "tenant")
LONGEST = {"matter": 120, "reason": 2000, "client": 64, "tool": 128, "backend": 64, "tenant": 255, "subject": 40}
LOCK = "2s"  # for the guard row: a batch of a deletion holds it shorter
OWN = ("hold", "erasure")  # types of records that tell of holds and erasures themselves
COVERED = "SELECT EXISTS (SELECT 1 FROM audit_record WHERE subject = %s AND type <> ALL (%s) AND {})"
NAMES_NOBODY = "An address has no business here: what is kept with a hold names nobody."
OF_OTHERS = "Release takes a second person, never the one who asked for it."


class HoldError(Exception):
    """The hold cannot be placed or released; the message is for the person who asked. `field` is what is wrong."""

    def __init__(self, words: str, field: str | None = None) -> None:
        super().__init__(words)
        self.field = field


@dataclass(frozen=True, slots=True)
class Actor:
    """A member of staff, and what they may do about holds, asked of their permissions now."""

    actor: str
    name: str
    may_place: bool
    may_release: bool


def actor_of(user: Any) -> Actor:
    """From a signed-in user."""
    name = (user.get_full_name() or user.get_username())[:150]
    may = user.is_active and user.is_staff
    return Actor(
        f"staff:{user.pk}", name, may and user.has_perm("audit.add_hold"), may and user.has_perm("audit.release_hold")
    )


def text(value: str, field: str, longest: int) -> str:
    """A text that is kept with a hold or an erasure. Raises HoldError for one that is empty, too long, cannot be
    printed, or holds an address."""
    found = value.strip()
    if not found:
        raise HoldError("This is required.", field)
    if len(found) > longest:
        raise HoldError(f"At most {longest:,} characters.", field)
    if not all(character.isprintable() or character in "\r\n\t" for character in found):
        raise HoldError("That holds characters that cannot be printed.", field)
    if "@" in found:
        raise HoldError(NAMES_NOBODY, field)
    return found


# --- placing and releasing ------------------------------------------------------------------------------------


def place(user: Any, matter: str, reason: str, **criteria: Any) -> Hold:
    """Place a hold on all that fits every one of the criteria (those of `CRITERIA`; times are aware datetimes, `until`
    is excluded). Raises PermissionDenied, HoldError; OperationalError where the guard row cannot be had."""
    who = actor_of(user)
    if not who.may_place:
        raise PermissionDenied
    given = checked(criteria)
    matter, reason = text(matter, "matter", LONGEST["matter"]), text(reason, "reason", LONGEST["reason"])
    with guard.locked(lock_timeout=LOCK):
        hold = Hold.objects.create(
            matter=matter, reason=reason, placed_by=who.actor, placed_at=timezone.now(), **given
        )  # fmt: skip
        _tell(who, hold, "placed", {"matter": matter, "reason": reason}, **said(given))
    return hold


def ask_release(user: Any, number: int, reason: str) -> Hold:
    """Ask that a hold be released; it stays in force until a second person agrees. Raises as `place`."""
    who = actor_of(user)
    if not (who.may_place or who.may_release):
        raise PermissionDenied
    reason = text(reason, "reason", LONGEST["reason"])
    with guard.locked(lock_timeout=LOCK):
        hold = _held(number)
        if hold.release_asked_by is not None:
            raise HoldError("Somebody has asked for that already.")
        hold.release_asked_by, hold.release_asked_at, hold.release_reason = who.actor, timezone.now(), reason
        hold.save(update_fields=["release_asked_by", "release_asked_at", "release_reason"])
        _tell(who, hold, "release.asked", {"matter": hold.matter, "reason": reason})
    return hold


def refuse_release(user: Any, number: int, reason: str) -> Hold:
    """Leave a hold in force that another asked to release. Raises as `place`."""
    with guard.locked(lock_timeout=LOCK):
        who, hold = _second(user, number)
        asked_by = hold.release_asked_by
        hold.release_asked_by, hold.release_asked_at, hold.release_reason = None, None, ""
        hold.save(update_fields=["release_asked_by", "release_asked_at", "release_reason"])
        private = {"matter": hold.matter, "reason": text(reason, "reason", LONGEST["reason"])}
        _tell(who, hold, "release.refused", private, about=asked_by)
    return hold


def release(user: Any, number: int) -> Hold:
    """Release a hold that another asked to release: what it covered may go from then on. Raises as `place`."""
    with guard.locked(lock_timeout=LOCK):
        who, hold = _second(user, number)
        hold.released_by, hold.released_at = who.actor, timezone.now()
        hold.save(update_fields=["released_by", "released_at"])
        _tell(who, hold, "released", {"matter": hold.matter, "reason": hold.release_reason},
              about=hold.release_asked_by)  # fmt: skip
    return hold


def _second(user: Any, number: int) -> tuple[Actor, Hold]:
    """The second person, and a hold that another asked to release; under the guard row. Raises as `place`."""
    who = actor_of(user)
    if not who.may_release:
        raise PermissionDenied
    hold = _held(number)
    if hold.release_asked_by is None:
        raise HoldError("Nobody asks to release it any more.")
    if hold.release_asked_by == who.actor:
        raise HoldError(OF_OTHERS)
    return who, hold


def _held(number: int) -> Hold:
    """A hold that is in force, as it is now; under the guard row."""
    hold = Hold.objects.filter(pk=number).first()
    if hold is None or hold.released_at is not None:
        raise HoldError("This hold was released already." if hold else "There is no such hold.")
    return hold


def _tell(who: Actor, hold: Hold, action: str, private: dict[str, Any], **members: Any) -> None:
    tell(who.actor, who.name, action, private, kind="hold", hold=hold.pk, **members)


def said(criteria: Mapping[str, Any]) -> dict[str, Any]:
    """The criteria as the record has them: times in ISO 8601, UTC."""
    return {
        name: value.astimezone(UTC).isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
        for name, value in criteria.items()
    }


# --- criteria -------------------------------------------------------------------------------------------------


def checked(criteria: Mapping[str, Any]) -> dict[str, Any]:
    """The criteria that are given. Raises HoldError where there is none, or what is given cannot be."""
    if unknown := set(criteria) - set(CRITERIA):
        raise ValueError(f"not a criterion of a hold: {', '.join(sorted(unknown))}")
    given = {name: value for name, value in criteria.items() if value not in (None, "")}
    if not given:
        raise HoldError("Say what it holds: at least one of these. A hold on everything is one from a day on.")
    for name in NAMED:
        if name in given and (len(given[name]) > LONGEST[name] or not given[name].isprintable()):
            raise HoldError("Nothing is called so.", name)
    if "subject" in given and not (UID.match(given["subject"]) and _met(given["subject"])):
        raise HoldError("There is no such user. Find the person first: it leads to the uid.", "subject")
    if "tool" in given and "backend" not in given:
        raise HoldError("Tools of several backends may have one name: say whose it is.", "backend")
    if "since" in given and "until" in given and given["since"] >= given["until"]:
        raise HoldError("It ends before it begins.", "until")
    return given


def _met(uid: str) -> bool:
    return Subject.objects.filter(uid=uid).exists() or Record.objects.filter(subject=uid).exists()


# --- which there are ------------------------------------------------------------------------------------------


def active(using: str = "default") -> list[Hold]:
    """Every hold that is in force, the oldest first. What deletes asks under the guard row."""
    return list(Hold.objects.using(using).filter(released_at=None).order_by("placed_at", "pk"))


def covering_subject(uid: str, using: str = "default", seconds: float = 5.0) -> list[Hold]:
    """The holds in force that keep this user from being erased: those on the user alone, and each other one that fits
    at least one record of the user, which is looked for along the index of users' records. What holds and erasures
    tell of the user is none: else a hold would cover its own record, and an erasure be refused for having been asked.

    A look that takes longer than `seconds` counts as a find: what cannot be told to be free is held."""
    return [hold for hold in active(using) if hold.subject in (None, uid) and _covers(hold, uid, using, seconds)]


def _covers(hold: Hold, uid: str, using: str, seconds: float) -> bool:
    if hold.subject == uid and not any(getattr(hold, name) for name in CRITERIA[1:]):
        return True
    covered, values = covered_sql([hold])
    try:
        # A savepoint: a look that is given up must not spoil the transaction around it.
        with transaction.atomic(using=using), connections[using].cursor() as cursor:
            cursor.execute("SELECT current_setting('statement_timeout')")
            (before,) = cursor.fetchone()
            cursor.execute("SELECT set_config('statement_timeout', %s, true)", [f"{int(seconds * 1000)}ms"])
            cursor.execute(COVERED.format(covered), [uid, list(OWN), *values])
            (found,) = cursor.fetchone()
            cursor.execute("SELECT set_config('statement_timeout', %s, true)", [before])
            return bool(found)
    except OperationalError:  # what a statement that was cancelled raises
        return True


def matters(holds: Sequence[Hold]) -> str:
    """The matters of some holds, for a sentence."""
    return ", ".join(dict.fromkeys(hold.matter for hold in holds))
