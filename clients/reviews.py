"""Access reviews: the only writer of them. The population is frozen as a review begins: the grants of one client, or
those that cover one scope, each with its sentence as it was. Each is kept or revoked with a note; nobody adds or takes
away any. When all are decided the review can be finished, and is a record in the log.

Who may is checked here, where the change is made. Revoking goes through clients.grants, at once."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import PermissionDenied
from django.db import connection, transaction
from django.db.models import Count, Exists, F, Max, OuterRef, Q, QuerySet, Subquery
from django.utils import timezone

from audit.staff_log import tell
from clients import grants
from clients.grant_words import sentence
from clients.grants import Actor, GrantError
from clients.models import Client, Grant, Review, ReviewItem
from clients.sensitive import closure
from tools.models import Scope

OVERDUE = timedelta(days=90)
MOST_GRANTS = 5_000  # in one review
# Of what one record tells: a statement has a bound of 64 KiB, and what is disclosed is read whole.
PART_GRANTS, PART_NOTES = 500, 48_000


class ReviewError(ValueError):
    """It cannot be done; the message is for the person who asked."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a review is, in grants. `gone` were revoked or expired elsewhere before anybody decided."""

    total: int
    kept: int
    revoked: int
    gone: int

    @property
    def decided(self) -> int:
        """How many need no decision any more."""
        return self.kept + self.revoked + self.gone

    @property
    def left(self) -> int:
        """How many must still be decided."""
        return self.total - self.decided


@dataclass(frozen=True, slots=True)
class Overdue:
    """A client whose grants nobody reviewed for long: when they were last, None for never."""

    client: Client
    grants: int
    reviewed: datetime | None


# --- reading ---------------------------------------------------------------------------------------------------


def population(client: Client | None, scope: Scope | None) -> QuerySet[Grant]:
    """The active grants that a review is about: of a client, its own and those for any client; of a scope, those that
    cover it through what scopes imply, and the blocks that forbid it. Exactly one of both is given."""
    if client is not None:
        found = grants.active().filter(Q(client=client) | Q(client=None))
    else:
        assert scope is not None
        close = closure()
        names = Scope.objects.values_list("name", flat=True)
        covering = [name for name in names if scope.name in close([name])]
        # A block forbids what it names, not what that implies; without scopes it forbids everything.
        blocks = Q(effect="deny") & (Q(scopes=scope) | Q(scopes=None))
        found = grants.active().filter((~Q(effect="deny") & Q(scopes__name__in=covering)) | blocks).distinct()
    return found.select_related("client", "tool").prefetch_related("scopes").order_by("pk")


def gone(at: datetime) -> Q:
    """Items that nobody decided and whose grant is not active any more."""
    return Q(decision="") & (Q(grant__revoked_at__isnull=False) | Q(grant__expires_at__lte=at))


def open_items(review: Review) -> QuerySet[ReviewItem]:
    """What must still be decided, in the order in which the grants were made."""
    alive = Q(grant__expires_at=None) | Q(grant__expires_at__gt=timezone.now())
    items = review.items.filter(alive, decision="", grant__revoked_at=None)
    return items.select_related("grant").order_by("grant_id")


def progress(review: Review) -> Progress:
    """How far it is; of a finished review, how it ended."""
    lost = Q(decision="") if review.finished_at else gone(timezone.now())
    counted = review.items.aggregate(
        total=Count("pk"),
        kept=Count("pk", filter=Q(decision="keep")),
        revoked=Count("pk", filter=Q(decision="revoke")),
        gone=Count("pk", filter=lost),
    )
    return Progress(**counted)


def about(review: Review) -> tuple[str, str, str]:
    """(client or scope, its name in the log, its name for people)."""
    if review.client is not None:
        return "client", review.client.slug, review.client.name
    assert review.scope is not None
    return "scope", review.scope.name, review.scope.name


def overdue(now: datetime) -> list[Overdue]:
    """Active clients with grants of their own, no open review, and none finished for 90 days; the longest first."""
    done = Review.objects.filter(client=OuterRef("pk"), finished_at__isnull=False).order_by().values("client")
    newest = Subquery(done.annotate(newest=Max("finished_at")).values("newest"))
    at_work = Review.objects.filter(client=OuterRef("pk"), finished_at=None)
    alive = Q(grants__revoked_at=None) & (Q(grants__expires_at=None) | Q(grants__expires_at__gt=now))
    found = (
        Client.objects.filter(~Exists(at_work), status="active")
        .annotate(held=Count("grants", filter=alive), reviewed=newest)
        .filter(Q(reviewed=None) | Q(reviewed__lte=now - OVERDUE), held__gt=0)
        .order_by(F("reviewed").asc(nulls_first=True), "name")
    )
    return [Overdue(client, client.held, client.reviewed) for client in found]


# --- writing ---------------------------------------------------------------------------------------------------


def start(*, client: Client | None, scope: Scope | None, user: Any, reason: str) -> Review:
    """Begin a review of a client or a scope: what is to be reviewed is what is active now. Raises PermissionDenied, or
    ReviewError."""
    _require(user, "clients.add_review")
    actor, why = Actor.of(user), _checked(reason)
    review = Review(client=client, scope=scope, reason=why, started_by=actor.id, started_by_name=actor.name)
    of, name, words = about(review)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"muniment.review {of} {name}"])
        if Review.objects.filter(client=client, scope=scope, finished_at=None).exists():
            raise ReviewError(f"A review of {words} is open already. Finish that one first.")
        held = list(population(client, scope)[: MOST_GRANTS + 1])
        if not held:
            raise ReviewError(f"No active grant concerns {words}: there is nothing to review.")
        if len(held) > MOST_GRANTS:
            raise ReviewError(f"More than {MOST_GRANTS:,} grants concern {words}, which nobody could review at once.")
        review.save(force_insert=True)
        items = [ReviewItem(review=review, grant=grant, sentence=sentence(grant)) for grant in held]
        ReviewItem.objects.bulk_create(items, batch_size=1_000)
        _tell_start(review, actor, [grant.pk for grant in held])
    return review


def decide(number: int, items: Collection[int], decision: str, note: str, *, user: Any) -> int:
    """Keep or revoke the grants of these items, all with the same note, or none of them; how many. `decision` is keep
    or revoke. Raises PermissionDenied, or ReviewError: also where somebody decided on one of them a moment ago."""
    _require(user, "clients.change_review")
    if decision not in ("keep", "revoke"):
        raise ReviewError("Choose whether to keep or to revoke.")
    if decision == "revoke":
        _require(user, "clients.change_grant")
    if not items:
        raise ReviewError("Tick the grants that you decide on.")
    actor, note = Actor.of(user), _checked(note)
    with transaction.atomic():
        review = _hold(number)
        chosen = review.items.select_for_update(of=("self",)).filter(pk__in=set(items)).order_by("grant_id")
        held = list(chosen)
        if len(held) != len(set(items)):
            raise ReviewError("Some of these are not in this review.")
        for item in held:
            _decide_one(item, decision, note, actor)
    return len(held)


def _decide_one(item: ReviewItem, decision: str, note: str, actor: Actor) -> None:
    if item.decision:
        done = {"keep": "kept", "revoke": "revoked"}[item.decision]
        raise ReviewError(f"{item.decided_by_name} {done} grant {item.grant_id} a moment ago. Nothing was changed.")
    # Locked, so that it is not revoked by another in between; held to the end of the transaction.
    grant = Grant.objects.select_for_update().get(pk=item.grant_id)
    now = timezone.now()
    if grant.revoked_at is not None or (grant.expires_at is not None and grant.expires_at <= now):
        over = "revoked" if grant.revoked_at else "over"
        raise ReviewError(f"Grant {grant.pk} is {over} already: nothing is left to decide of it. Nothing was changed.")
    if decision == "revoke":
        try:
            grants.revoke(grant, actor=actor, reason=note)
        except GrantError as error:
            raise ReviewError(str(error)) from None
    item.decision, item.note, item.decided_at, item.decided_by_name = decision, note, now, actor.name
    item.save(update_fields=["decision", "note", "decided_at", "decided_by_name"])


def finish(number: int, *, user: Any) -> Review:
    """Close a review in which all is decided, and have it recorded. Raises PermissionDenied, or ReviewError."""
    _require(user, "clients.change_review")
    actor = Actor.of(user)
    with transaction.atomic():
        review = _hold(number)
        if left := open_items(review).count():
            raise ReviewError(f"{left} of its grants {'is' if left == 1 else 'are'} not decided yet.")
        review.finished_at, review.finished_by_name = timezone.now(), actor.name
        review.save(update_fields=["finished_at", "finished_by_name"])
        _tell_finish(review, actor)
    return review


def _hold(number: int) -> Review:
    """An open review, locked: decisions in one review come one after the other."""
    review = Review.objects.select_for_update(of=("self",)).filter(pk=number).first()
    if review is None:
        raise ReviewError("There is no such review.")
    if review.finished_at is not None:
        raise ReviewError(f"{review.finished_by_name} finished this review: nothing in it can be changed any more.")
    return review


def _require(user: Any, permission: str) -> None:
    if not user.has_perm(permission):
        raise PermissionDenied


def _checked(reason: str) -> str:
    try:
        return grants.checked_reason(reason)
    except GrantError as error:
        raise ReviewError(str(error)) from None


# --- evidence --------------------------------------------------------------------------------------------------


def _members(review: Review) -> dict[str, Any]:
    of, name, _ = about(review)
    return {"review": review.pk, "of": of, "reviewed": name, of: name}


def _tell_start(review: Review, actor: Actor, held: list[int]) -> None:
    """The population, in parts where it is large."""
    parts = [held[first : first + PART_GRANTS] for first in range(0, len(held), PART_GRANTS)]
    for number, part in enumerate(parts):
        tell(
            actor.id, actor.name, "review.start", {"reason": review.reason}, kind="review", **_members(review),
            grants=part, part=number + 1, parts=len(parts),
        )  # fmt: skip


def _tell_finish(review: Review, actor: Actor) -> None:
    """What became of each grant, in parts where there are many; notes and reason as protected details."""
    parts = list(_parts(review))
    for number, part in enumerate(parts):
        outcome: dict[str, Any] = {"kept": [], "revoked": [], "gone": []}
        for item in part:
            outcome[{"keep": "kept", "revoke": "revoked", "": "gone"}[item.decision]].append(item.grant_id)
        notes = {str(item.grant_id): item.note for item in part if item.note}
        tell(
            actor.id, actor.name, "review.finish", {"reason": review.reason, "notes": notes}, kind="review",
            **_members(review), **outcome, part=number + 1, parts=len(parts),
        )  # fmt: skip


def _parts(review: Review) -> Iterator[list[ReviewItem]]:
    part: list[ReviewItem] = []
    length = 0
    for item in review.items.order_by("grant_id"):
        size = len(item.note.encode())
        if len(part) == PART_GRANTS or length + size > PART_NOTES:
            yield part
            part, length = [], 0
        part.append(item)
        length += size
    yield part
