"""Evidence > Legal holds: which are in force, placing one, and releasing one, which takes two. GET shows, POST does."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, OperationalError
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.http import urlencode
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from audit import holds
from audit.admin_base import PlainForm, ReasonField
from audit.holds import HoldError
from audit.models import Hold, Record
from audit.people import UID
from audit.record_page import Pill
from audit.record_words import short_uid
from audit.records_form import Directory, printable
from audit.staff_names import names_of

SHOWN = 200
DAY = timedelta(days=1)
BUSY = "A deletion is under way and could not be waited for. Nothing was changed; try again in a moment."
UNKNOWN_TOOL = "This backend has no such tool, and no record is of one."
UNKNOWN_TENANT = "No record is of such a tenant."


class HoldForm(PlainForm):
    """What is held, for which matter, and why."""

    matter = forms.CharField(
        max_length=holds.LONGEST["matter"], validators=[printable], label="Matter number",
        help_text="As your legal department files it. It names nobody.",
    )  # fmt: skip
    subject = forms.CharField(
        required=False, max_length=40, label="User", widget=forms.TextInput(attrs={"placeholder": "usr_…"}),
        help_text="Their uid. On the page of a user, “Place a hold…” fills it in.",
    )  # fmt: skip
    client = forms.ChoiceField(required=False, label="Client")
    backend = forms.ChoiceField(required=False, label="Backend")
    tool = forms.CharField(
        required=False, max_length=128, validators=[printable], label="Tool",
        help_text="Of the backend that you chose.",
        widget=forms.TextInput(attrs={"list": "tools", "autocomplete": "off"}),
    )  # fmt: skip
    tenant = forms.CharField(required=False, max_length=255, validators=[printable], label="Tenant")
    since = forms.DateField(
        required=False,
        label="From",
        widget=forms.DateInput(attrs={"type": "date"}),
        help_text="That day included, in UTC.",
    )
    until = forms.DateField(
        required=False, label="To", widget=forms.DateInput(attrs={"type": "date"}),
        help_text="That day included, in UTC. Left open it holds what is still to come as well.",
    )  # fmt: skip
    reason = ReasonField()

    def __init__(self, directory: Directory, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.tools = directory.tools
        fields: dict[str, Any] = self.fields
        for name, found in (("client", directory.clients), ("backend", directory.backends)):
            fields[name].choices = [("", "any"), *((slug, f"{called} ({slug})") for slug, called in found.items())]
        fields["reason"].help_text = "Kept with the hold and in the log. Do not name people."

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        tool, backend, tenant = data.get("tool"), data.get("backend"), data.get("tenant")
        known = tool in self.tools or not (tool and backend)
        if not known and not Record.objects.filter(tool=tool, backend=backend).exists():
            self.add_error("tool", UNKNOWN_TOOL)
        if tenant and not Record.objects.filter(tenant=tenant).exists():
            self.add_error("tenant", UNKNOWN_TENANT)
        return data

    def criteria(self) -> dict[str, Any]:
        """For `holds.place`: days as moments, in UTC."""
        data: dict[str, Any] = {name: self.cleaned_data[name] or None for name in holds.CRITERIA}
        data["since"] = _moment(data["since"])
        # The last day that there is has no next one.
        data["until"] = _moment(data["until"] + DAY) if data["until"] and data["until"] < date.max else None
        return data


class WhyForm(PlainForm):
    """Why a hold should be released, or stays."""

    reason = ReasonField()


def _moment(day: date | None) -> datetime | None:
    return datetime.combine(day, time(), UTC) if day else None


@dataclass(frozen=True, slots=True)
class Line:
    """A hold as pages show it: its state, what it covers by name and value, and who did what."""

    hold: Hold
    pill: Pill
    covers: list[tuple[str, str]]
    names: Mapping[str, str]

    @property
    def placed_by(self) -> str:
        """Who placed it."""
        return self.names.get(self.hold.placed_by, "")

    @property
    def asked_by(self) -> str:
        """Who asked to release it."""
        return self.names.get(self.hold.release_asked_by or "", "")

    @property
    def released_by(self) -> str:
        """Who released it."""
        return self.names.get(self.hold.released_by or "", "")


class HoldViews:
    """The pages, for one admin site, which tells by `directory()` what things are called."""

    def __init__(self, site: Any) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        wrap, both = self.site.admin_view, require_http_methods(["GET", "HEAD", "POST"])
        return [
            path("holds/", wrap(require_safe(self.listed)), name="holds"),
            path("holds/add/", wrap(both(self.add)), name="hold_add"),
            path("holds/<int:number>/", wrap(require_safe(self.page)), name="hold"),
            path("holds/<int:number>/ask/", wrap(require_POST(self.ask)), name="hold_ask"),
            path("holds/<int:number>/decide/", wrap(require_POST(self.decide)), name="hold_decide"),
        ]

    def listed(self, request: HttpRequest) -> HttpResponse:
        """Those in force first, then the newest that were released."""
        _may_see(request)
        inforce = Hold.objects.filter(released_at=None).order_by("-placed_at", "-pk")
        released = Hold.objects.filter(released_at__isnull=False).order_by("-released_at", "-pk")
        found = self._lines([*inforce[: SHOWN + 1], *released[:SHOWN]])
        active = [line for line in found if line.hold.released_at is None]
        context = {
            **self.site.each_context(request), "title": "Legal holds", "active": active[:SHOWN],
            "more": len(active) > SHOWN, "most": SHOWN,
            "released": [line for line in found if line.hold.released_at is not None],
            "may_place": request.user.has_perm("audit.add_hold"), "me": f"staff:{request.user.pk}",
        }  # fmt: skip
        return TemplateResponse(request, "admin/holds.html", context)

    def add(self, request: HttpRequest) -> HttpResponse:
        """The form; `?subject=` suggests a user."""
        if not request.user.has_perm("audit.add_hold"):
            raise PermissionDenied
        directory, asked = self.site.directory(), request.GET.get("subject", "")
        initial = {"subject": asked if UID.match(asked) else ""}
        form = HoldForm(directory, request.POST if request.method == "POST" else None, initial=initial)
        if request.method == "POST" and form.is_valid():
            try:
                data = form.cleaned_data
                hold = holds.place(request.user, data["matter"], data["reason"], **form.criteria())
            except HoldError as error:
                form.add_error(error.field, str(error))
            except OperationalError:
                form.add_error(None, BUSY)
            else:
                messages.success(request, "The hold is in force: nothing that it covers is deleted or erased.")
                return HttpResponseRedirect(reverse("admin:hold", args=[hold.pk]))
        context = {**self.site.each_context(request), "title": "Place a hold", "form": form, "tools": directory.tools}
        return TemplateResponse(request, "admin/hold_add.html", context)

    def page(self, request: HttpRequest, number: int) -> HttpResponse:
        """One hold, and what may be done about it."""
        _may_see(request)
        return self._page(request, _known(number), WhyForm())

    def ask(self, request: HttpRequest, number: int) -> HttpResponse:
        """POST: ask that it be released."""
        hold, form = _known(number), WhyForm(request.POST)
        if not (request.user.has_perm("audit.add_hold") or request.user.has_perm("audit.release_hold")):
            raise PermissionDenied
        return self._done(request, hold, form, "ask")

    def decide(self, request: HttpRequest, number: int) -> HttpResponse:
        """POST: the second person releases it, or leaves it in force, which takes a reason."""
        hold, decision = _known(number), request.POST.get("decision")
        if not request.user.has_perm("audit.release_hold"):
            raise PermissionDenied
        if decision not in ("release", "refuse"):
            raise Http404
        return self._done(request, hold, WhyForm(request.POST), decision)

    def _done(self, request: HttpRequest, hold: Hold, form: WhyForm, what: str) -> HttpResponse:
        wrong = ""
        if what == "release" or form.is_valid():
            try:
                self._do(request, hold, "" if what == "release" else form.cleaned_data["reason"], what)
                return HttpResponseRedirect(reverse("admin:hold", args=[hold.pk]))
            except HoldError as error:
                wrong = str(error)
            except (OperationalError, IntegrityError):
                wrong = BUSY
        return self._page(request, _known(hold.pk), WhyForm() if what == "release" else form, wrong)

    def _do(self, request: HttpRequest, hold: Hold, reason: str, what: str) -> None:
        match what:
            case "ask":
                holds.ask_release(request.user, hold.pk, reason)
                messages.success(request, "It is asked for. The hold stays in force until a second person releases it.")
            case "release":
                holds.release(request.user, hold.pk)
                messages.success(request, "The hold is released: the rules of retention apply again.")
            case _:
                holds.refuse_release(request.user, hold.pk, reason)
                messages.success(request, "The hold stays in force.")

    def _page(self, request: HttpRequest, hold: Hold, form: forms.Form, wrong: str = "") -> HttpResponse:
        [line] = self._lines([hold])
        user, own = request.user, hold.release_asked_by == f"staff:{request.user.pk}"
        waiting, over = hold.release_asked_by is not None, hold.released_at is not None
        context = {
            **self.site.each_context(request), "title": f"Hold {hold.pk}: {hold.matter}", "line": line, "hold": hold,
            "form": form, "wrong": wrong, "own": own, "waiting": waiting and not over,
            "may_ask": not over and not waiting
            and (user.has_perm("audit.add_hold") or user.has_perm("audit.release_hold")),
            "may_decide": waiting and not over and not own and user.has_perm("audit.release_hold"),
            "records": records_of(hold) if user.has_perm("audit.view_record") else "",
        }  # fmt: skip
        return TemplateResponse(request, "admin/hold.html", context)

    def _lines(self, found: list[Hold]) -> list[Line]:
        names = names_of(who for hold in found for who in (hold.placed_by, hold.release_asked_by, hold.released_by))
        directory = self.site.directory()
        return [Line(hold, pill(hold), covers(hold, directory), names) for hold in found]


def _may_see(request: HttpRequest) -> None:
    if not request.user.has_perm("audit.view_hold"):
        raise PermissionDenied


def _known(number: int) -> Hold:
    """Raises Http404, also for a number that no column holds."""
    hold = Hold.objects.filter(pk=number).first() if number < 2**63 else None
    if hold is None:
        raise Http404("No such hold.")
    return hold


def pill(hold: Hold) -> Pill:
    """The state of a hold."""
    if hold.released_at is not None:
        return Pill("plain", "Released")
    return Pill("flag", "Release asked for") if hold.release_asked_by else Pill("deny", "In force")


def covers(hold: Hold, directory: Directory) -> list[tuple[str, str]]:
    """What a hold names, in words: all of it must fit a record."""
    client = directory.clients.get(hold.client or "", hold.client or "")
    backend = directory.backends.get(hold.backend or "", hold.backend or "")
    found = [
        ("User", short_uid(hold.subject or "")), ("Client", client), ("Backend", backend), ("Tool", hold.tool or ""),
        ("Tenant", hold.tenant or ""), ("From", _day(hold.since)), ("To", _day(hold.until and hold.until - DAY)),
    ]  # fmt: skip
    return [(name, value) for name, value in found if value]


def _day(at: datetime | None) -> str:
    return f"{at.astimezone(UTC).day} {at.astimezone(UTC):%B %Y}" if at else ""


def records_of(hold: Hold) -> str:
    """The search that finds what a hold covers, in the last year."""
    exact = {name: value for name in ("subject", *holds.NAMED) if (value := getattr(hold, name))}
    return f"{reverse('admin:records')}?{urlencode({'window': '1y', **exact})}"


def waiting(user: Any) -> QuerySet[Hold]:
    """The holds whose release waits for this member of staff: asked for by another."""
    if not user.has_perm("audit.release_hold"):
        return Hold.objects.none()
    asked = Hold.objects.filter(released_at=None, release_asked_by__isnull=False)
    return asked.exclude(release_asked_by=f"staff:{user.pk}")


def waiting_for(user: Any) -> int:
    """How many they are, as far as 100."""
    return waiting(user)[:100].count()
