"""Requests: what staff ask for, and the second person's decision, with what it would change in sight."""

from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import DataError, IntegrityError
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import urlencode
from django.views.decorators.http import require_POST

from audit import recent_sign_in
from audit.admin_base import MAX_REASON, PlainForm, ReadOnlyAdmin, validate_reason, words_of
from audit.templatetags.muniment import exactly, when
from audit.viewer import viewer_of
from clients import grant_checks, grants, proposals, requests, tenants
from clients.admin.chips import ChipsAdmin, StateFilter
from clients.admin.grant_form import DATETIME, linked
from clients.admin.granting import ATTEMPTS, MOVED, Seen, seen_of
from clients.grant_words import facts, length, sentence, until
from clients.grants import DECIDE, GrantError, PolicyMoved
from clients.models import AccessRequest
from tools.admin import pill

PILLS = {"waiting": "flag", "approved": "allow", "rejected": "deny"}
SOONER = [(7, "in a week"), (30, "in 30 days"), (90, "in 90 days"), (180, "in half a year")]
KEPT = "muniment_answer_{}"  # in the session: what was typed before somebody had to show again who they are


class RequestStates(StateFilter):
    """What of the requests is listed."""

    default = "waiting"
    names = {"waiting": "Waiting", "mine": "Mine", "decided": "Decided", "lapsed": "Lapsed", "all": "All"}

    def conditions(self, request: HttpRequest) -> dict[str, Q]:
        late = Q(status="waiting", lapses_at__lte=timezone.now())
        return {
            "waiting": Q(status="waiting") & ~late, "mine": Q(asked_by=f"staff:{request.user.pk}"),
            "decided": Q(status__in=("approved", "rejected", "withdrawn")), "lapsed": Q(status="lapsed") | late,
            "all": Q(),
        }  # fmt: skip


class DecideForm(PlainForm):
    """The decision: until when at most, and why."""

    ends = forms.ChoiceField(label="It ends", widget=forms.RadioSelect, initial="asked")
    expires_at = forms.DateTimeField(label="Time of its end, in UTC", required=False, widget=DATETIME)
    answer = forms.CharField(
        label="Why", required=False, max_length=MAX_REASON, validators=[validate_reason],
        widget=forms.Textarea(attrs={"rows": 2, "class": "reason"}),
        help_text="Needed to reject it. Who asked sees it; it is kept in the log. Do not name people.",
    )  # fmt: skip

    def __init__(self, end: datetime | None, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        now = timezone.now()
        sooner = [(str(days), words) for days, words in SOONER if end is None or now + timedelta(days=days) < end]
        choices = [("asked", f"as asked, {until(end)}"), *sooner, ("on", "sooner, at a time of your choice")]
        self.fields["ends"].choices = choices  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if data.get("ends") == "on" and not data.get("expires_at") and "expires_at" not in self.errors:
            self.add_error("expires_at", "Say when, or choose another end.")
        return data

    def sooner(self) -> datetime | None:
        """Another end than was asked for. Call it on a valid form only."""
        ends = self.cleaned_data["ends"]
        if ends.isdigit():
            return timezone.now() + timedelta(days=int(ends))
        end: datetime | None = self.cleaned_data["expires_at"]
        return end if ends == "on" else None


def again(asked: AccessRequest) -> str:
    """The query string with which the same can be asked again."""
    if asked.extends_id:
        return urlencode({"extends": asked.extends_id})
    parts = {
        "client": asked.client and asked.client.slug,
        "tool": asked.tool and f"{asked.tool.backend.slug}/{asked.tool.name}",
        "subject": asked.subject_id, "tenant": asked.tenant, "role": asked.role, "effect": asked.effect,
        "scope": [scope.name for scope in asked.scopes.all()], "mode": asked.modes,
    }  # fmt: skip
    return urlencode({name: value for name, value in parts.items() if value}, doseq=True)


@admin.register(AccessRequest)
class AccessRequestAdmin(ChipsAdmin, ReadOnlyAdmin):
    """What was asked for, and what became of it."""

    intro = "Who may not grant something asks for it. A second person decides, never the one who asked."
    empty = "Nothing here. Ask for a grant, and somebody else on the staff decides."
    states = RequestStates
    list_display = ["says", "state_pill", "asked", "because", "lapses"]
    list_display_links = ["says"]
    list_filter = [RequestStates]
    list_select_related = ["client", "tool"]
    ordering = ["-asked_at"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[AccessRequest]:
        """Everybody on the staff sees their own; the others' only who may see them. Who is confined to tenants sees
        those of their tenants."""
        found = super().get_queryset(request).select_related("client", "tool__backend", "subject", "extends", "grant")
        found = found.filter(tenants.own(tenants.of(request.user)))
        seen = found if self.may(request, "view") else found.filter(asked_by=f"staff:{request.user.pk}")
        return seen.prefetch_related("scopes")

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.is_active and getattr(request.user, "is_staff", False))

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def add_button(self, request: HttpRequest) -> tuple[str, str]:
        """Everybody on the staff may ask."""
        return reverse("admin:access_ask"), "Ask for a grant…"

    def get_urls(self) -> list[Any]:
        wrap = self.admin_site.admin_view
        return [
            path("<int:number>/decide/", wrap(require_POST(self.decide)), name="clients_accessrequest_decide"),
            path("<int:number>/withdraw/", wrap(require_POST(self.withdraw)), name="clients_accessrequest_withdraw"),
            *super().get_urls(),
        ]

    @admin.display(description="asked for")
    def says(self, asked: AccessRequest) -> str:
        longer = "longer: " if asked.extends_id else ""
        return f"{longer}{sentence(asked)} {length(asked)}"

    @admin.display(description="state", ordering="status")
    def state_pill(self, asked: AccessRequest) -> str:
        state = requests.state(asked)
        return pill(state, PILLS.get(state, "plain"))

    @admin.display(description="asked", ordering="asked_at")
    def asked(self, asked: AccessRequest) -> str:
        by = format_html('<span class="by quiet small"> by {}</span>', asked.asked_by_name)
        return format_html("{}{}", when(asked.asked_at), by)

    @admin.display(description="because")
    def because(self, asked: AccessRequest) -> str:
        return asked.reason

    @admin.display(description="lapses", ordering="lapses_at")
    def lapses(self, asked: AccessRequest) -> str:
        return when(asked.lapses_at) if requests.state(asked) == "waiting" else "—"

    @property
    def site(self) -> Any:
        """The admin site, with what it knows of the policy."""
        return self.admin_site

    # --- one request -------------------------------------------------------------------------------------------

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """One request, to read and to decide; a POST here changes nothing."""
        asked = self.get_object(request, object_id)
        if asked is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined]
        if request.method not in ("GET", "HEAD"):
            raise PermissionDenied
        kept = request.session.pop(KEPT.format(asked.pk), None)
        end = grants.end_of(asked, timezone.now())
        return self._page(request, asked, DecideForm(end, initial=kept), "")

    def _page(self, request: HttpRequest, asked: AccessRequest, form: DecideForm, notice: str) -> HttpResponse:
        state, own = requests.state(asked), requests.is_own(asked, request.user)
        context: dict[str, Any] = {
            **self.admin_site.each_context(request), "opts": self.opts, "asked": asked, "own": own, "state": state,
            "title": f"{sentence(asked)} {length(asked)}", "notice": notice, "form": form,
            "pill": {"kind": PILLS.get(state, "plain"), "words": state.capitalize()}, "facts": self._facts(asked),
            "may_decide": state == "waiting" and not own and request.user.has_perm(DECIDE), "again": again(asked),
        }  # fmt: skip
        if state == "waiting":
            wanted = proposals.of_request(asked, timezone.now())
            found = grant_checks.problems(wanted)
            impact = self.site.impact(wanted, viewer_of(request.user))
            context |= {
                "impact": impact, "wanted": wanted,
                "warnings": [linked(one.words, one) for one in found],
                "sensitive": grants.needs_second_person(asked.effect, wanted.scope_names()),
                "seen": seen_of(wanted, impact, found).signed(request.user),
            }  # fmt: skip
        return TemplateResponse(request, "admin/request.html", context)

    def _facts(self, asked: AccessRequest) -> list[tuple[str, Any]]:
        decided = asked.decided_at is not None and requests.state(asked) != "lapsed"
        return [
            *facts(asked),
            ("How long", length(asked)),
            ("Starts", exactly(asked.starts_at, "when it is approved")),
            ("Asked", exactly(asked.asked_at)),
            ("By", asked.asked_by_name),
            *([(asked.status.capitalize(), exactly(asked.decided_at)), ("By", asked.decided_by_name)] if decided else
              [("Lapses", exactly(asked.lapses_at))]),
        ]  # fmt: skip

    def _held(self, request: HttpRequest, number: int) -> AccessRequest:
        if number.bit_length() > 63 or (asked := self.get_object(request, str(number))) is None:
            raise Http404
        return asked

    def decide(self, request: HttpRequest, number: int) -> HttpResponse:
        """POST: approve or reject. Checked again where it is done (`clients.grants.SecondPerson`)."""
        asked = self._held(request, number)
        if not request.user.has_perm(DECIDE):
            raise PermissionDenied
        form = DecideForm(grants.end_of(asked, timezone.now()), request.POST)
        approving = request.POST.get("decision") == "approve"
        notice = ""
        if not approving and not request.POST.get("answer", "").strip():
            form.add_error("answer", "Say why, for who asked.")
        if form.is_valid():
            try:
                response, notice = self._decide(request, asked, form, approving)
            except GrantError as error:
                response = None
                form.add_error(error.field if error.field in form.fields else None, linked(str(error), error))
            except (IntegrityError, DataError) as error:
                response = None
                form.add_error(None, words_of(error))
            if response is not None:
                return response
        return self._page(request, self._held(request, number), form, notice)

    def _decide(
        self, request: HttpRequest, asked: AccessRequest, form: DecideForm, approving: bool
    ) -> tuple[HttpResponse | None, str]:
        """Do it; or no response, and why not in words."""
        if approving:
            return self._approve(request, asked, form)
        requests.reject(asked.pk, request.user, answer=form.cleaned_data["answer"])
        messages.success(request, "Rejected. Who asked sees why.")
        return HttpResponseRedirect(self.url_of(asked)), ""

    def _approve(self, request: HttpRequest, asked: AccessRequest, form: DecideForm) -> tuple[HttpResponse | None, str]:
        """Approve what was seen, under a policy in which it does what was seen; who approves a sensitive scope has just
        shown who they are. Else no response, or the one that asks them to."""
        seen = Seen.read(request.POST.get("seen", ""), request.user)
        done: AccessRequest | None = None
        for _ in range(ATTEMPTS):
            if requests.state(asked) != "waiting" or requests.is_own(asked, request.user):
                requests.approve(asked.pk, request.user)  # which says why not
            wanted = proposals.of_request(asked, timezone.now())
            impact = self.site.impact(wanted)
            if not recent_sign_in.is_recent(request) and self._sensitive(asked):
                return self._first_show_who(request, asked), ""
            now = seen_of(wanted, impact, grant_checks.problems(wanted))
            if seen is None or (seen.proposal, seen.impact, seen.warnings) != (now.proposal, now.impact, now.warnings):
                break
            try:
                done = requests.approve(
                    asked.pk, request.user, answer=form.cleaned_data["answer"], expires_at=form.sooner(),
                    version=impact.version,
                )  # fmt: skip
                break
            except PolicyMoved:
                asked = self._held(request, asked.pk)
        if done is None:
            return None, MOVED
        messages.success(request, f"Approved: {sentence(asked)}, in force from the next call on.")
        return HttpResponseRedirect(reverse("admin:clients_grant_change", args=[done.grant_id])), ""

    def _first_show_who(self, request: HttpRequest, asked: AccessRequest) -> HttpResponse:
        """Ask them to sign in again; what was typed waits for them."""
        typed = {name: request.POST.get(name, "") for name in ("answer", "ends", "expires_at")}
        request.session[KEPT.format(asked.pk)] = typed
        return recent_sign_in.ask_again(request, self.url_of(asked))

    def _sensitive(self, asked: AccessRequest) -> list[str]:
        return grants.needs_second_person(asked.effect, [scope.name for scope in asked.scopes.all()])

    def withdraw(self, request: HttpRequest, number: int) -> HttpResponse:
        """POST: take one's own request back."""
        asked = self._held(request, number)
        try:
            requests.withdraw(asked.pk, request.user)
            messages.success(request, "Withdrawn.")
        except GrantError as error:
            messages.warning(request, str(error))
        return HttpResponseRedirect(self.url_of(asked))
