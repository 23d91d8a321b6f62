"""Evidence > Erasures: which were asked for and how each does; and, from a user's page, asking for one after a look at
what will and will not be forgotten. GET shows, POST asks; the worker does it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import OperationalError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_safe

from audit import recent_sign_in
from audit.admin_base import PlainForm, ReasonField
from audit.erasure import asking, of_exports
from audit.erasure.asking import ErasureError
from audit.holds_page import BUSY
from audit.models import Erasure, Hold, Subject
from audit.people import UID
from audit.record_page import Pill
from audit.records_form import printable
from audit.staff_names import names_of

SHOWN = 200
LATE = timedelta(minutes=2)  # the worker looks each ten seconds
PERMISSION = "audit.add_erasure"


class EraseForm(PlainForm):
    """Why, by which request, and of whom once more."""

    reference = forms.CharField(
        max_length=asking.LONGEST["reference"], validators=[printable], label="Reference",
        help_text="The number of the person's request. It stays, so it names nobody.",
    )  # fmt: skip
    reason = ReasonField()
    confirm = forms.CharField(
        max_length=40, label="To erase for good, type the uid of this user",
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false", "class": "mono"}),
    )  # fmt: skip

    def __init__(self, uid: str, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.uid = uid
        self.fields["reason"].help_text = "It stays, with the erasure and in the log. Do not name people."

    def clean_confirm(self) -> str:
        """Exactly this user's uid."""
        if str(self.cleaned_data["confirm"]).strip() != self.uid:
            raise ValidationError("That is not the uid of this user.")
        return self.uid


@dataclass(frozen=True, slots=True)
class Line:
    """An erasure as pages show it."""

    row: Erasure
    pill: Pill
    words: str
    names: Mapping[str, str]

    @property
    def asked_by(self) -> str:
        """Who asked for it."""
        return self.names.get(self.row.asked_by, "")


class ErasureViews:
    """The pages, for one admin site."""

    def __init__(self, site: Any) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        wrap, both = self.site.admin_view, require_http_methods(["GET", "HEAD", "POST"])
        return [
            path("erasures/", wrap(require_safe(self.listed)), name="erasures"),
            path("erasures/<int:number>/", wrap(require_safe(self.page)), name="erasure"),
            path("people/<str:uid>/erase/", wrap(both(self.erase)), name="erase"),
        ]

    def listed(self, request: HttpRequest) -> HttpResponse:
        """The newest first."""
        _may_see(request)
        rows = list(Erasure.objects.order_by("-asked_at", "-pk")[: SHOWN + 1])
        context = {
            **self.site.each_context(request), "title": "Erasures", "lines": lines(rows[:SHOWN]),
            "more": len(rows) > SHOWN, "most": SHOWN,
        }  # fmt: skip
        return TemplateResponse(request, "admin/erasures.html", context)

    def page(self, request: HttpRequest, number: int) -> HttpResponse:
        """One erasure: how it does, and what it forgot."""
        _may_see(request)
        row = Erasure.objects.filter(pk=number).first() if number < 2**63 else None
        if row is None:
            raise Http404("No such erasure.")
        flagged = list(of_exports.runs().filter(erased_since__contains=[row.subject])[: of_exports.MOST])
        context = {
            **self.site.each_context(request), "title": f"Erasure {row.pk}", "line": lines([row])[0], "row": row,
            "steps": steps(row), "holds": Hold.objects.filter(pk__in=row.holds).order_by("pk"), "exports": flagged,
        }  # fmt: skip
        return TemplateResponse(request, "admin/erasure.html", context)

    def erase(self, request: HttpRequest, uid: str) -> HttpResponse:
        """GET: what would be forgotten, and what not. POST: ask for it, by who has just shown who they are."""
        if not request.user.has_perm(PERMISSION):
            raise PermissionDenied
        user = Subject.objects.filter(uid=uid).first() if UID.match(uid) else None
        if user is None:
            raise Http404("No such user.")
        if (there := self._already(request, user)) is not None:
            return there
        if request.method != "POST":
            return self._ask(request, user, EraseForm(uid))
        if not recent_sign_in.is_recent(request):
            return recent_sign_in.ask_again(request, request.path)
        form = EraseForm(uid, request.POST)
        if form.is_valid() and (made := self._asked(request, uid, form)) is not None:
            return HttpResponseRedirect(reverse("admin:erasure", args=[made.pk]))
        return self._ask(request, user, form)

    def _already(self, request: HttpRequest, user: Subject) -> HttpResponse | None:
        """To the erasure that there is, of a user who was erased or is to be."""
        latest = asking.latest(user.uid)
        if user.erased_at is None and (latest is None or latest.state == "refused"):
            return None
        messages.warning(request, asking.ANOTHER if user.erased_at is None else "This user was erased already.")
        if latest is None or not request.user.has_perm("audit.view_erasure"):
            return HttpResponseRedirect(reverse("admin:timeline", args=["user", user.uid]))
        return HttpResponseRedirect(reverse("admin:erasure", args=[latest.pk]))

    def _asked(self, request: HttpRequest, uid: str, form: EraseForm) -> Erasure | None:
        """The erasure that was asked for, or was refused under a hold; None where the form says what is wrong."""
        data = form.cleaned_data
        try:
            made = asking.ask(request.user, uid, data["reference"], data["reason"])
        except ErasureError as error:
            form.add_error(error.field, str(error))
        except OperationalError:
            form.add_error(None, BUSY)
        else:
            if made.state == "refused":
                messages.error(request, made.words)
            else:
                messages.success(request, "It is asked for: the worker erases the user within seconds.")
            return made
        return None

    def _ask(self, request: HttpRequest, user: Subject, form: EraseForm) -> HttpResponse:
        context = {
            **self.site.each_context(request), "title": "Erase a user", "person": user, "form": form,
            "survey": asking.survey(user), "most": asking.MOST, "recent": recent_sign_in.is_recent(request),
            "again": recent_sign_in.ask_again(request, request.path)["Location"],
        }  # fmt: skip
        return TemplateResponse(request, "admin/erase.html", context)


def _may_see(request: HttpRequest) -> None:
    if not request.user.has_perm("audit.view_erasure"):
        raise PermissionDenied


def lines(rows: list[Erasure]) -> list[Line]:
    """Erasures in words."""
    names = names_of(row.asked_by for row in rows)
    return [Line(row, *told(row), names) for row in rows]


def told(row: Erasure) -> tuple[Pill, str]:
    """The state of an erasure, and a sentence on it."""
    match row.state:
        case "refused":
            return Pill("deny", "Refused"), row.words
        case "asked":
            late = " It has not come to it: check that the worker runs." if row.asked_at < timezone.now() - LATE else ""
            return Pill("flag", "Waiting"), (row.words or "The worker erases the user within seconds.") + late
        case "complete":
            return Pill("allow", "Complete"), "No backup holds the user any more."
    if row.hashes_gone_at is None:
        return Pill("flag", "Erased"), row.words or "The look-up hashes of the user's records are being removed."
    return Pill("allow", "Erased"), "Backups made before may still hold the user until they expire."


def steps(row: Erasure) -> list[tuple[bool, str, Any]]:
    """What is done and what is still to come: (done, words, when)."""
    if row.state == "refused":
        return []
    return [
        (row.erased_at is not None, "Identifiers and key destroyed, and that recorded", row.erased_at),
        (row.hashes_gone_at is not None, "Look-up hashes removed from the user's records", row.hashes_gone_at),
        (row.state == "complete", "The last backup that may hold the user expires", row.backups_until),
    ]
