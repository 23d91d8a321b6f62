"""What waits for one member of staff: requests that they may decide, holds that another asked to release, the inbox,
reviews that are not finished, grants that end soon."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Q
from django.urls import reverse

from audit import holds_page
from audit.record_words import amount
from audit.staff_names import names_of
from clients import grants, inbox, requests, tenants
from clients.admin import limits
from clients.grant_words import SOON, length, sentence
from clients.limit_words import sentence as limit_sentence
from clients.models import Grant, Review

MOST_ENDING, MOST_OF_A_KIND = 10, 3
BUTTONS = {"changed": "Compare"}


@dataclass(frozen=True, slots=True)
class Wait:
    """One thing that waits: what, in a sentence, more of it, and the button that leads there."""

    what: str
    more: str
    button: str
    url: str


@dataclass(frozen=True, slots=True)
class Ending:
    """A grant that ends soon, in a sentence, and the button with which the viewer extends it, or asks for that."""

    sentence: str
    url: str
    at: datetime
    button: str
    extend: str


def waits(user: Any) -> list[Wait]:
    """What waits for this user, the most pressing first."""
    return [*_requests(user), *_releases(user), *_inbox(user), *_limits(user), *_reviews(user)]


def _requests(user: Any) -> Iterator[Wait]:
    others = requests.to_decide(user).order_by("lapses_at", "pk")
    shown = list(others.select_related("client", "tool").prefetch_related("scopes")[: MOST_OF_A_KIND + 1])
    for asked in shown[:MOST_OF_A_KIND]:
        wish = "asks to extend" if asked.extends_id else "asks"
        yield Wait(
            f"{asked.asked_by_name} {wish}: {sentence(asked)}", f"{length(asked)}, “{asked.reason}”", "Decide",
            reverse("admin:clients_accessrequest_change", args=[asked.pk]),
        )  # fmt: skip
    if shown[MOST_OF_A_KIND:]:
        yield Wait("More requests to decide", "", "All", reverse("admin:clients_accessrequest_changelist"))


def _releases(user: Any) -> Iterator[Wait]:
    asked = list(holds_page.waiting(user).order_by("release_asked_at", "pk")[: MOST_OF_A_KIND + 1])
    names = names_of(hold.release_asked_by for hold in asked)
    for hold in asked[:MOST_OF_A_KIND]:
        what = f"{names.get(hold.release_asked_by or '', '')} asks to release the legal hold {hold.matter}"
        yield Wait(what, f"“{hold.release_reason}”", "Decide", reverse("admin:hold", args=[hold.pk]))
    if asked[MOST_OF_A_KIND:]:
        yield Wait("More holds to release or keep", "", "All", reverse("admin:holds"))


def _inbox(user: Any) -> Iterator[Wait]:
    if not user.has_perm("audit.view_sighting"):
        return
    items = inbox.waiting_items(MOST_OF_A_KIND + 1)
    for item in items[:MOST_OF_A_KIND]:
        yield Wait(item.sentence, "refused until somebody decides", BUTTONS.get(item.kind, "Look"), item.url)
    if items[MOST_OF_A_KIND:]:
        yield Wait("More in the inbox", "", "All", reverse("admin:inbox"))


def _limits(user: Any) -> Iterator[Wait]:
    if not user.has_perm("clients.view_limit"):
        return
    for limit, more in limits.waiting(user, MOST_OF_A_KIND):
        yield Wait(limit_sentence(limit), more, "Look", reverse("admin:clients_limit_change", args=[limit.pk]))


def _reviews(user: Any) -> Iterator[Wait]:
    if not user.has_perm("clients.change_review"):
        return
    left = Count("items", filter=Q(items__decision=""))
    unfinished = Review.objects.filter(finished_at=None).select_related("client", "scope").annotate(left=left)
    for review in unfinished.order_by("started_at")[:MOST_OF_A_KIND]:
        url = reverse("admin:clients_review_change", args=[review.pk])
        more = f"{amount(review.left, 'grant')} to keep or revoke" if review.left else "every grant is decided"
        yield Wait(f"Review of {review.client or review.scope}", more, "Continue" if review.left else "Finish", url)


def ending(user: Any, now: datetime) -> list[Ending]:
    """Grants that end within 14 days, the next one first; those that block are among them. Who is confined to tenants
    is told of those that they may extend."""
    soon = grants.active(now).filter(tenants.own(tenants.of(user)), expires_at__lte=now + SOON)
    soon = soon.order_by("expires_at", "pk")
    return [
        Ending(sentence(grant), reverse("admin:clients_grant_change", args=[grant.pk]), grant.expires_at,
               *_extending(user, grant))
        for grant in _told(soon)
        if grant.expires_at is not None
    ]  # fmt: skip


def _extending(user: Any, grant: Grant) -> tuple[str, str]:
    if user.has_perm("clients.change_grant"):
        return "Extend…", reverse("admin:clients_grant_act", args=[grant.pk, "extend"])
    return "Ask…", f"{reverse('admin:access_ask')}?extends={grant.pk}"


def _told(soon: Any) -> list[Grant]:
    return list(soon.select_related("client", "tool").prefetch_related("scopes")[:MOST_ENDING])
