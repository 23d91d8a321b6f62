"""Granting and asking, in two steps: a sentence to complete, and what it would change; then it is saved.

Nothing is saved but what was seen: the preview carries a signed word of the proposal and its effect; where either is
another by then, the new preview is shown instead."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from django.contrib import messages
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.db import DataError, IntegrityError, transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import urlencode

from audit.admin_base import actor_of, words_of
from audit.viewer import viewer_of
from clients import grant_checks, grants, proposals, requests, tenants
from clients.admin.grant_form import AskForm, BoxedEndsForm, GrantForm, linked, suggested
from clients.grant_words import sentence, until
from clients.grants import Actor, GrantError, NeedsApproval, PolicyMoved
from clients.models import Grant
from clients.proposals import Proposal

ADD = "clients.add_grant"
GOOD_FOR = 3600  # seconds that a preview is good for
ATTEMPTS = 5  # to save it, while others change the policy without a difference to it
TOO_OLD = "What you saw was too old, or of another grant. This is what it would do now; look once more."
MOVED = "The policy changed since you looked: it would do something else now. Look once more."
TICK = "Read what is odd about it, and tick the box."


@dataclass(frozen=True, slots=True)
class Seen:
    """What somebody saw before they confirmed it: digests of the proposal and of its effect, the warnings, and the
    moment at which it ends."""

    proposal: str
    impact: str
    warnings: list[str]
    end: str | None

    def signed(self, user: Any) -> str:
        """For a hidden field; good for this user alone, and for an hour."""
        return signing.dumps(asdict(self), salt=f"muniment.seen.{user.pk}")

    @classmethod
    def read(cls, text: str, user: Any) -> "Seen | None":
        """What `signed` made; None for anything else."""
        try:
            return cls(**signing.loads(text, salt=f"muniment.seen.{user.pk}", max_age=GOOD_FOR))
        except (signing.BadSignature, TypeError, ValueError, json.JSONDecodeError):
            return None

    def at(self) -> datetime | None:
        """The end that was shown; None for never."""
        return None if self.end is None else datetime.fromisoformat(self.end)


def seen_of(wanted: Proposal, impact: Any, warnings: list[grant_checks.Problem]) -> Seen:
    """What a preview shows, to be compared with what is confirmed."""
    end = None if wanted.expires_at is None else wanted.expires_at.isoformat()
    return Seen(wanted.digest(), impact.digest, [problem.words for problem in warnings], end)


class Granting:
    """The pages of granting and of asking, for one admin site."""

    def __init__(self, site: Any) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        return [path("access/ask/", self.site.admin_view(self.ask), name="access_ask")]

    def grant(self, request: HttpRequest) -> HttpResponse:
        """Granting. Who may not is led to asking, with what the link suggested."""
        if not request.user.has_perm(ADD):
            if request.method != "GET":
                raise PermissionDenied
            return HttpResponseRedirect(f"{reverse('admin:access_ask')}?{request.GET.urlencode()}")
        return self._steps(request, GrantForm)

    def ask(self, request: HttpRequest) -> HttpResponse:
        """Asking: everybody on the staff may. With `extends`, for a longer life of a grant."""
        given = request.POST if request.method == "POST" else request.GET
        if "extends" in given:
            return self._longer(request, given["extends"])
        return self._steps(request, AskForm)

    # --- a new grant -------------------------------------------------------------------------------------------

    def _steps(self, request: HttpRequest, kind: type[GrantForm]) -> HttpResponse:
        """GET: the form. POST: the preview of what the form says, or, confirmed, the grant or the request."""
        theirs = tenants.of(request.user)
        if request.method != "POST":
            return self._form(request, kind(initial=suggested(request.GET), tenants=theirs))
        form, step = kind(request.POST, tenants=theirs), request.POST.get("step")
        if step == "edit" or not form.is_valid():
            return self._form(request, form)
        seen = Seen.read(request.POST.get("seen", ""), request.user) if step == "confirm" else None
        wanted = form.proposal(timezone.now())
        if seen is not None and wanted.days is not None:
            wanted = wanted.until(seen.at())  # what is saved ends when it was said to
        found = grant_checks.problems(wanted)
        sensitive = grants.needs_second_person(wanted.effect, wanted.scope_names())
        self._unboxed(form, wanted, sensitive)
        form.refuse(problem for problem in found if problem.error)
        if form.errors:
            return self._form(request, form)
        warnings = [problem for problem in found if not problem.error]
        notice = ""
        if step == "confirm":
            done, notice = self._confirm(request, form, wanted, warnings, seen)
            if done is not None:
                return done
            if form.errors:
                return self._form(request, form)
        return self._preview(request, form, wanted, warnings, sensitive, notice)

    def _unboxed(self, form: GrantForm, wanted: Proposal, sensitive: list[str]) -> None:
        """What a second person has to approve is for a limited time."""
        if sensitive and wanted.expires_at is None:
            form.add_error("ends", f"{NeedsApproval(sensitive)} A request is for a limited time: choose an end.")

    def _confirm(
        self, request: HttpRequest, form: GrantForm, wanted: Proposal, warnings: list[grant_checks.Problem],
        seen: Seen | None,
    ) -> tuple[HttpResponse | None, str]:  # fmt: skip
        """Save what was seen, under a policy in which it does what was seen; or why it is shown again."""
        for _ in range(ATTEMPTS):
            impact = self.site.impact(wanted)
            if notice := _not_as_seen(request, wanted, impact, warnings, seen):
                return None, notice
            try:
                return self._save(request, form, wanted, impact.version), ""
            except PolicyMoved:
                continue
            except NeedsApproval as error:
                return None, str(error)
            except GrantError as error:
                form.refuse([error])
            except (IntegrityError, DataError) as error:
                form.add_error(None, words_of(error))
            return None, ""
        return None, MOVED

    def _save(self, request: HttpRequest, form: GrantForm, wanted: Proposal, version: int) -> HttpResponse:
        """Grant it, if the policy is still at this version, or ask for it."""
        reason = form.cleaned_data["reason"]
        if isinstance(form, AskForm):
            asked = requests.ask(request.user, wanted, reason)
            messages.success(request, "Asked. Nothing changes before a second person approves it.")
            return HttpResponseRedirect(reverse("admin:clients_accessrequest_change", args=[asked.pk]))
        if not request.user.has_perm(ADD):
            raise PermissionDenied
        with transaction.atomic():
            made = grants.create(actor=Actor(*actor_of(request)), reason=reason, **wanted.members())
            grants.only_at(version)
        messages.success(request, f"{sentence(made)}: in force from {_from(made)} on.")
        return HttpResponseRedirect(reverse("admin:clients_grant_change", args=[made.pk]))

    def _form(self, request: HttpRequest, form: GrantForm) -> HttpResponse:
        asking = isinstance(form, AskForm)
        if not form.is_bound and request.user.has_perm("audit.view_record"):
            back = urlencode({"next": request.get_full_path()})
            words = '<a href="{}?{}">Find a user</a> by e-mail address or sub first; it leads back here.'
            form.fields["subject"].help_text = format_html(words, reverse("admin:people"), back)
        context = {
            **self.site.each_context(request), "opts": Grant._meta, "form": form, "asking": asking,
            "title": "Ask for a grant" if asking else "New grant",
        }  # fmt: skip
        return TemplateResponse(request, "admin/grant_add.html", context)

    def _preview(
        self, request: HttpRequest, form: GrantForm, wanted: Proposal, warnings: list[grant_checks.Problem],
        sensitive: list[str], notice: str,
    ) -> HttpResponse:  # fmt: skip
        """What it would change; nothing is saved."""
        impact = self.site.impact(wanted, viewer_of(request.user))
        asking = isinstance(form, AskForm) or bool(sensitive)
        context = {
            **self.site.each_context(request), "opts": Grant._meta, "form": form, "wanted": wanted, "impact": impact,
            "title": f"{wanted.sentence()} {until(wanted.expires_at)}", "reason": form.cleaned_data["reason"],
            "warnings": [linked(problem.words, problem) for problem in warnings], "sensitive": sensitive,
            "hidden": [field.as_hidden() for field in form], "notice": notice, "asking": asking,
            "seen": seen_of(wanted, impact, warnings).signed(request.user),
            "own": reverse("admin:access_ask" if isinstance(form, AskForm) else "admin:clients_grant_add"),
            "to": reverse("admin:access_ask" if asking else "admin:clients_grant_add"),
        }  # fmt: skip
        return TemplateResponse(request, "admin/grant_preview.html", context)

    # --- a longer life -----------------------------------------------------------------------------------------

    def _longer(self, request: HttpRequest, number: str) -> HttpResponse:
        """Ask that a grant may end later: one dialog. `number` is as the browser sent it."""
        grant = None
        if number.isdecimal() and len(number) < 19:
            seen = Grant.objects.filter(tenants.seen(tenants.of(request.user)))
            grant = seen.select_related("client", "tool__backend", "subject").filter(pk=int(number)).first()
        if grant is None:
            raise Http404
        tenants.check(tenants.of(request.user), grant)
        form = BoxedEndsForm(request.POST if request.method == "POST" else None)
        if request.method == "POST" and form.is_valid():
            wanted = proposals.to_extend(grant, form.end(), form.days())
            try:
                asked = requests.ask(request.user, wanted, form.cleaned_data["reason"])
                messages.success(request, "Asked. The grant stays as it is until a second person approves it.")
                return HttpResponseRedirect(reverse("admin:clients_accessrequest_change", args=[asked.pk]))
            except GrantError as error:
                form.add_error(error.field if error.field in form.fields else None, linked(str(error), error))
        wanted = proposals.to_extend(grant, None)
        impact = self.site.impact(wanted, viewer_of(request.user))
        context = {
            **self.site.each_context(request), "form": form, "grant": grant, "impact": impact, "wanted": wanted,
            "title": f"Ask that it may last longer: {sentence(grant)}", "name": sentence(grant),
            "back": reverse("admin:clients_grant_change", args=[grant.pk]), "ends": until(grant.expires_at),
        }  # fmt: skip
        return TemplateResponse(request, "admin/request_longer.html", context)


def _not_as_seen(
    request: HttpRequest, wanted: Proposal, impact: Any, warnings: list[grant_checks.Problem], seen: Seen | None
) -> str:
    """Why what is confirmed is not what was seen; empty where it is."""
    if seen is None or seen.proposal != wanted.digest():
        return TOO_OLD
    now = seen_of(wanted, impact, warnings)
    if now.impact != seen.impact or now.warnings != seen.warnings:
        return MOVED
    return TICK if warnings and request.POST.get("anyway") != "on" else ""


def _from(made: Grant) -> str:
    return "its start" if made.starts_at and made.starts_at > timezone.now() else "the next call"
