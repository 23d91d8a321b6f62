"""The pages of access reviews: which there are and which are due, starting one, deciding grant by grant, and the
finished review to print. Nothing changes on GET; nobody adds or takes away what is reviewed."""

from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.urls import path
from django.utils import timezone
from django.utils.text import capfirst
from django.views.decorators.http import require_POST

from audit.admin_base import BaseAdmin, PlainForm, ReasonField
from audit.record_words import amount
from audit.templatetags.muniment import relative
from audit.viewer import viewer_of
from clients import review_evidence, reviews
from clients.grant_words import sentence, state
from clients.models import Client, Review, ReviewItem
from clients.review_evidence import Usage
from clients.reviews import Overdue, Progress, ReviewError
from tools.models import Scope

MOST_SHOWN = 100  # of the open grants of a review, of its decided ones while it is open, of finished reviews
MOST_DUE = 10


class StartForm(PlainForm):
    """Of what, and why."""

    client = forms.ModelChoiceField(
        Client.objects.order_by("name", "slug"), required=False, empty_label="—", label="Of a client",
        help_text="Its grants, and those for any client.",
    )  # fmt: skip
    scope = forms.ModelChoiceField(
        Scope.objects.all(), required=False, empty_label="—", label="Or of a scope",
        help_text="All grants that cover it, through what scopes imply, and the blocks that forbid it.",
    )  # fmt: skip
    reason = ReasonField()

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if not self.errors and (data.get("client") is None) == (data.get("scope") is None):
            raise forms.ValidationError("Choose a client or a scope, and not both.")
        return data


class DecideForm(PlainForm):
    """Why these are kept or revoked."""

    note = ReasonField()

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        words = "Why the ticked grants are kept or revoked: kept with each, and in the log. Do not name people."
        self.fields["note"].label, self.fields["note"].help_text = "Note", words


@dataclass(frozen=True, slots=True)
class Row:
    """One grant of a review as its page shows it; `pill` is (kind, words), `calls` None where they were not counted."""

    item: ReviewItem
    pill: tuple[str, str]
    calls: int | None
    ticked: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """A review in the list."""

    review: Review
    url: str
    progress: Progress
    words: str


@admin.register(Review)
class ReviewAdmin(BaseAdmin):
    """Access reviews."""

    def get_urls(self) -> list[Any]:
        wrap = self.admin_site.admin_view
        return [
            path("<int:number>/decide/", wrap(require_POST(self.decide)), name="clients_review_decide"),
            path("<int:number>/finish/", wrap(require_POST(self.finish)), name="clients_review_finish"),
            *super().get_urls(),
        ]

    def _context(self, request: HttpRequest, **more: Any) -> dict[str, Any]:
        return {**self.admin_site.each_context(request), "opts": self.opts, **more}

    # --- which there are ---------------------------------------------------------------------------------------

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Open ones first, then what is due, then what was finished."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        now = timezone.now()
        known = Review.objects.select_related("client", "scope")
        due = reviews.overdue(now)
        context = self._context(
            request, title="Access reviews", may_start=self.may(request, "add"),
            unfinished=[self._listed(review) for review in known.filter(finished_at=None)[:MOST_SHOWN]],
            finished=[
                self._listed(review)
                for review in known.exclude(finished_at=None).order_by("-finished_at")[:MOST_SHOWN]
            ],
            due=[(one, due_words(one)) for one in due[:MOST_DUE]], more_due=max(0, len(due) - MOST_DUE),
        )  # fmt: skip
        return TemplateResponse(request, "admin/review_list.html", context)

    def _listed(self, review: Review) -> Listed:
        done = reviews.progress(review)
        return Listed(review, self.url_of(review), done, progress_words(done, review))

    # --- starting one ------------------------------------------------------------------------------------------

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """What is to be reviewed, and why; with what is suggested, how much that is."""
        if not self.may(request, "add"):
            raise PermissionDenied
        form = StartForm(request.POST) if request.method == "POST" else StartForm(initial=_suggested(request.GET))
        if request.method == "POST" and form.is_valid():
            try:
                made = reviews.start(user=request.user, **form.cleaned_data)
                messages.success(request, f"{capfirst(str(made))} is started: keep or revoke each grant.")
                return HttpResponseRedirect(self.url_of(made))
            except ReviewError as error:
                form.add_error(None, str(error))
        context = self._context(request, title="New review", form=form, grants=_population(form))
        return TemplateResponse(request, "admin/review_add.html", context)

    # --- one review --------------------------------------------------------------------------------------------

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """One review: what is left to decide, or what was decided. A POST to this path changes nothing."""
        review = self.get_object(request, object_id)
        if review is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined]
        if not self.has_view_permission(request, review) or request.method not in ("GET", "HEAD"):
            raise PermissionDenied
        return self._page(request, review, DecideForm(), set(), everything="all" in request.GET)

    def decide(self, request: HttpRequest, number: int) -> HttpResponse:
        """POST: the ticked grants are kept or revoked, with one note."""
        review, decision = self._changeable(request, number), request.POST.get("decision", "")
        if decision == "revoke" and not request.user.has_perm("clients.change_grant"):
            raise PermissionDenied
        form, ticked = DecideForm(request.POST), _numbers(request.POST.getlist("item"))
        if form.is_valid():
            try:
                count = reviews.decide(number, ticked, decision, form.cleaned_data["note"], user=request.user)
            except ReviewError as error:
                form.add_error(None, str(error))
            else:
                done = "kept" if decision == "keep" else "revoked: the next call is decided without"
                messages.success(request, f"{amount(count, 'grant')} {done}{_them(decision, count)}.")
                return HttpResponseRedirect(self.url_of(review))
        return self._page(request, self._changeable(request, number), form, ticked)

    def finish(self, request: HttpRequest, number: int) -> HttpResponse:
        """POST: close it, and have it recorded."""
        review = self._changeable(request, number)
        try:
            reviews.finish(number, user=request.user)
            messages.success(request, "The review is finished, and on its way into the log.")
        except ReviewError as error:
            messages.error(request, str(error))
        return HttpResponseRedirect(self.url_of(review))

    def _changeable(self, request: HttpRequest, number: int) -> Review:
        if not self.may(request, "change"):
            raise PermissionDenied
        review = self.get_object(request, str(number))
        if review is None:
            raise Http404
        return review

    def _page(
        self, request: HttpRequest, review: Review, form: forms.Form, ticked: set[int], everything: bool = False
    ) -> HttpResponse:
        done, viewer = reviews.progress(review), viewer_of(request.user)
        used = None
        if review.finished_at is None and done.left and viewer.records:
            used = review_evidence.usage(viewer, review, timezone.now())
        context = self._context(
            request, title=capfirst(str(review)), review=review, progress=done, words=progress_words(done, review),
            about=reviews.about(review), form=form, usage=used, may_change=self.may(request, "change"),
            open=_open(review, used, ticked, everything), decided=_decided(review), most=MOST_SHOWN,
            records=review_evidence.records_of(viewer, review) if viewer.records else None,
        )  # fmt: skip
        return TemplateResponse(request, "admin/review.html", context)


def _suggested(query: QueryDict) -> dict[str, Any]:
    """?client=<slug> or ?scope=<name>; only a suggestion."""
    client, scope = query.get("client", "")[:63], query.get("scope", "")[:128]
    if "\x00" in client + scope:
        return {}
    return {"client": Client.objects.filter(slug=client).first(), "scope": Scope.objects.filter(name=scope).first()}


def _population(form: StartForm) -> list[str] | None:
    """The grants that would be reviewed, if it is said of what: the first of them, in sentences."""
    chosen = form.cleaned_data if form.is_bound and hasattr(form, "cleaned_data") else form.initial
    client, scope = chosen.get("client"), chosen.get("scope")
    if (client is None) == (scope is None):
        return None
    return [sentence(grant) for grant in reviews.population(client, scope)[: MOST_SHOWN + 1]]


def _numbers(given: list[str]) -> set[int]:
    """The ids that a form sent; what is no id is left out."""
    return {int(one) for one in given[:1_000] if one.isascii() and one.isdigit() and len(one) < 19}


def _open(review: Review, used: Usage | None, ticked: set[int], everything: bool) -> list[Row]:
    if review.finished_at is not None:
        return []
    items = reviews.open_items(review)[:MOST_SHOWN]
    return [
        Row(
            item, state(item.grant), used.calls.get(item.grant_id, 0) if used else None, everything or item.pk in ticked
        )
        for item in items
    ]


def _decided(review: Review) -> list[Row]:
    """What was decided, or is gone: all of a finished review, the newest of an open one."""
    items = review.items.select_related("grant")
    if review.finished_at is not None:
        return [Row(item, _outcome(item), None) for item in items.order_by("grant_id")]
    over = items.filter(reviews.gone(timezone.now())) | items.exclude(decision="")
    return [Row(item, _outcome(item), None) for item in over.order_by("-decided_at", "grant_id")[:MOST_SHOWN]]


def _outcome(item: ReviewItem) -> tuple[str, str]:
    if item.decision:
        return {"keep": ("allow", "kept"), "revoke": ("deny", "revoked")}[item.decision]
    return "plain", "revoked elsewhere" if item.grant.revoked_at else "expired"


def _them(decision: str, count: int) -> str:
    return "" if decision == "keep" else " it" if count == 1 else " them"


def progress_words(done: Progress, review: Review) -> str:
    """`3 of 12 grants are decided: 2 kept, 1 revoked`."""
    parts = [f"{number:,} {word}" for number, word in ((done.kept, "kept"), (done.revoked, "revoked")) if number]
    if done.gone:
        parts.append(f"{done.gone:,} gone by then" if review.finished_at else f"{done.gone:,} gone meanwhile")
    said = f": {', '.join(parts)}" if parts else ""
    if not done.left:
        return f"{amount(done.total, 'grant')}{said}"
    return f"{done.total - done.left:,} of {amount(done.total, 'grant')} decided{said}"


def due_words(one: Overdue) -> str:
    """`No review of Claude for 120 days`, `Claude was never reviewed`."""
    if one.reviewed is None:
        return f"{one.client} was never reviewed"
    return f"No review of {one.client} for {relative(one.reviewed, timezone.now()).removesuffix(' ago')}"
