"""What waits for one member of staff: requests that they may decide, the inbox, reviews that are not finished, grants
that end soon."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Q
from django.urls import reverse

from audit.record_words import amount
from clients import grants
from clients.grant_words import SOON, sentence
from clients.models import Grant, Review
from governance import asking
from governance.navigation import COUNTS, capped

MOST_ENDING, MOST_REVIEWS = 10, 3


@dataclass(frozen=True, slots=True)
class Wait:
    """One thing that waits: what, in a sentence, more of it, and the button that leads there."""

    what: str
    more: str
    button: str
    url: str


@dataclass(frozen=True, slots=True)
class Ending:
    """A grant that ends soon, in a sentence; `extend` is where the viewer may extend it, None where they may not."""

    sentence: str
    url: str
    at: datetime
    extend: str | None


def waits(user: Any) -> list[Wait]:
    """What waits for this user, the most pressing first."""
    return [*_requests(user), *_inbox(user), *_reviews(user)]


def _requests(user: Any) -> Iterator[Wait]:
    route = "admin:clients_accessrequest_changelist"
    if (url := asking.url_of(route)) and user.has_perm("clients.decide_accessrequest") and (n := COUNTS[route](user)):
        words = f"{capped(n)} request{'' if n == 1 else 's'} to decide"
        yield Wait(words, "somebody asks for a grant, and a second person must agree", "Decide", url)


def _inbox(user: Any) -> Iterator[Wait]:
    if (url := asking.url_of("admin:inbox")) and user.has_perm("audit.view_sighting") and (
        n := COUNTS["admin:inbox"](user)
    ):  # fmt: skip
        words = f"{capped(n)} unknown client{'' if n == 1 else 's'} or tool{'' if n == 1 else 's'}"
        yield Wait(words, "refused until somebody decides", "Look", url)


def _reviews(user: Any) -> Iterator[Wait]:
    if not user.has_perm("clients.change_review"):
        return
    left = Count("items", filter=Q(items__decision=""))
    unfinished = Review.objects.filter(finished_at=None).select_related("client", "scope").annotate(left=left)
    for review in unfinished.order_by("started_at")[:MOST_REVIEWS]:
        if url := asking.url_of("admin:clients_review_change", review.pk):
            more = f"{amount(review.left, 'grant')} to keep or revoke" if review.left else "every grant is decided"
            yield Wait(f"Review of {review.client or review.scope}", more, "Continue" if review.left else "Finish", url)


def ending(user: Any, now: datetime) -> list[Ending]:
    """Grants that end within 14 days, the next one first; those that block are among them."""
    soon = grants.active(now).filter(expires_at__lte=now + SOON).order_by("expires_at", "pk")
    may = user.has_perm("clients.change_grant")
    return [
        Ending(
            sentence(grant), reverse("admin:clients_grant_change", args=[grant.pk]), grant.expires_at,
            reverse("admin:clients_grant_act", args=[grant.pk, "extend"]) if may else None,
        )
        for grant in _told(soon)
        if grant.expires_at is not None
    ]  # fmt: skip


def _told(soon: Any) -> list[Grant]:
    return list(soon.select_related("client", "tool").prefetch_related("scopes")[:MOST_ENDING])
