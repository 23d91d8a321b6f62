"""Access > Kill switches: what is stopped now and who stopped it; stopping something, after a look at what that hits;
and resuming. GET asks, POST does; each change needs the permission of what is changed, and a reason."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.contrib.admin.utils import quote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_http_methods, require_safe

from audit.admin_base import PlainForm, ReasonForm, Refused, actor_of
from audit.viewer import viewer_of
from clients.models import Client, Issuer
from governance import asking, stops
from governance.asking import NOT_A_UID, PATTERN, UID
from governance.stops import SWITCHES, Stop, Switch
from governance.stops_evidence import Told, hits, told
from tools.models import Backend

# Where one of a kind has its own page.
PAGES = {
    "client": "admin:clients_client_change", "backend": "admin:tools_backend_change", "tool": "admin:tools_tool_change",
    "issuer": "admin:clients_issuer_change", "user": "admin:audit_subject_change",
}  # fmt: skip


class TargetForm(PlainForm):
    """What is to be stopped or resumed by a member of staff: the kind, and what names it."""

    kind = forms.ChoiceField(choices=[(kind, kind) for kind in SWITCHES], widget=forms.HiddenInput)
    what = forms.CharField(max_length=255, widget=forms.HiddenInput)

    def __init__(self, user: Any, *given: Any) -> None:
        super().__init__(*given)
        self.user = user

    def clean(self) -> dict[str, Any]:
        """Finds it, as `row`."""
        data = super().clean() or {}
        if self.errors:
            return data
        data["row"] = stops.find_for(self.user, data["kind"], data["what"])
        if data["row"] is None:
            strange = data["kind"] == "user" and not re.match(UID, data["what"])
            self.add_error("what", NOT_A_UID if strange else f"There is no such {SWITCHES[data['kind']].noun}.")
        return data


@dataclass(frozen=True, slots=True)
class Line:
    """Something that is stopped, for the list: who did it, and whether the viewer may resume it."""

    stop: Stop
    url: str
    told: Told | None
    since: datetime | None
    may: bool


@dataclass(frozen=True, slots=True)
class Chooser:
    """A way to choose what to stop, of one kind."""

    switch: Switch
    field: forms.BoundField
    completed: Sequence[str]


class StopViews:
    """The pages, for one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        wrap, both = self.site.admin_view, require_http_methods(["GET", "HEAD", "POST"])
        return [
            path("access/stops/", wrap(require_safe(self.stops)), name="access_stops"),
            path("access/stops/stop/", wrap(both(self.stop)), name="access_stop"),
            path("access/stops/resume/", wrap(both(self.resume)), name="access_resume"),
        ]

    def stops(self, request: HttpRequest) -> HttpResponse:
        """What is stopped, and what could be."""
        return self._list(request)

    def stop(self, request: HttpRequest) -> HttpResponse:
        """Stop something."""
        return self._change(request, stopping=True)

    def resume(self, request: HttpRequest) -> HttpResponse:
        """Resume something."""
        return self._change(request, stopping=False)

    def _list(self, request: HttpRequest, wrong: TargetForm | None = None) -> HttpResponse:
        if not stops.visible(request.user):
            raise PermissionDenied
        found = stops.now_stopped(request.user)
        known = told(viewer_of(request.user), found)
        context: dict[str, Any] = {
            **self.site.each_context(request), "title": "Kill switches", "wrong": wrong,
            "lines": [line(request.user, stop, known.get(stop)) for stop in found],
            "choosers": choosers(request.user), "stopped": None,
            "deactivated": [(user, page_of(user)) for user in stops.deactivated(request.user)],
        }  # fmt: skip
        return TemplateResponse(request, "admin/stops.html", context, status=400 if wrong else 200)

    def _change(self, request: HttpRequest, stopping: bool) -> HttpResponse:
        """The page that asks why, and what it does when it is answered."""
        asked = request.POST if request.method == "POST" else request.GET
        target = TargetForm(request.user, asked)
        if not target.is_valid():
            return self._list(request, target)
        kind, row = target.cleaned_data["kind"], target.cleaned_data["row"]
        switch = SWITCHES[kind]
        if not (request.user.has_perm(switch.view) and stops.may_change(request.user, kind, str(row.pk))):
            raise PermissionDenied
        form = ReasonForm(request.POST if request.method == "POST" else None)
        objection = stops.objection(kind, row, stopping)
        if request.method != "POST" and objection is not None:
            messages.warning(request, f"{row}: {objection}")
            return HttpResponseRedirect(reverse("admin:access_stops"))
        if request.method == "POST" and form.is_valid():
            try:
                return self._done(request, kind, target.cleaned_data["what"], form.cleaned_data["reason"], stopping)
            except Refused as refused:
                form.add_error(None, str(refused))
        context = {**self.site.each_context(request), **asked_about(request, switch, row, stopping)}
        context |= {"form": form, "target": target}
        return TemplateResponse(request, "admin/stop.html", context)

    def _done(self, request: HttpRequest, kind: str, key: str, reason: str, stopping: bool) -> HttpResponse:
        """Do it, and say so. Raises Refused."""
        change = stops.stop if stopping else stops.resume
        stop = change(request.user, actor_of(request), kind, key, reason)
        words = "stopped: its next call is refused" if stopping else "resumed: calls are decided by the policy again"
        messages.success(request, f"{stop.noun} {stop.name} is {words}.")
        return HttpResponseRedirect(reverse("admin:access_stops"))


def page_of(stop: Stop) -> str:
    """Where what is stopped has its own page."""
    return reverse(PAGES[stop.kind], args=[quote(stop.row)])


def line(user: Any, stop: Stop, known: Told | None) -> Line:
    """One line of the list."""
    since = stop.since or (known.at if known else None)
    return Line(stop, page_of(stop), known, since, stops.may_change(user, stop.kind, stop.row))


def asked_about(request: HttpRequest, switch: Switch, row: Any, stopping: bool) -> dict[str, Any]:
    """What the page says of what is to be stopped or resumed."""
    stop = stops.as_stop(switch, row)
    viewer = viewer_of(request.user)
    verb = "Stop" if stopping else "Resume"
    return {
        "title": f"{verb} {stop.noun} {stop.name}",
        "verb": verb,
        "stop": stop,
        "stopping": stopping,
        "explanation": switch.explanation if stopping else "From the next call on, it is decided by the policy again.",
        "hits": hits(viewer, stop.kind, row) if stopping else None,
        "told": None if stopping else told(viewer, [stop]).get(stop),
        "of_clients": "clients" if stop.kind == "tool" else "tools",
        "sign_out": reverse("admin:audit_subject_act", args=[stop.row, "sign-out"])
        if stopping and stop.kind == "user"
        else None,
    }


def choosers(user: Any) -> list[Chooser]:
    """The kinds of which the viewer may stop something, each with what there is."""
    made = []
    for switch in stops.visible(user):
        if user.has_perm(switch.change):
            field = _field(switch.kind)
            form = _Choose(field, switch.kind)
            made.append(Chooser(switch, form["what"], getattr(field, "completed", [])))
    return made


class _Choose(PlainForm):
    """One field, under an id of its own."""

    def __init__(self, field: forms.Field, kind: str) -> None:
        super().__init__(auto_id=f"{kind}_%s")
        self.fields["what"] = field


def _field(kind: str) -> forms.Field:
    """What can be stopped of a kind."""
    match kind:
        case "user":
            attrs = {"pattern": PATTERN, "placeholder": "usr_…", "title": "A uid: usr_…", "autocomplete": "off"}
            return forms.CharField(label="User", max_length=40, widget=forms.TextInput(attrs=attrs))
        case "tool":
            field = asking.ToolField()
            field.offer(asking.tools(status="active"))
            return field
        case "client":
            found = [(one.slug, one.name) for one in Client.objects.filter(status="active")]
        case "backend":
            found = [(one.slug, one.name) for one in Backend.objects.filter(enabled=True)]
        case _:
            found = [(one.issuer, one.issuer) for one in Issuer.objects.filter(enabled=True)]
    return forms.ChoiceField(label=SWITCHES[kind].noun.capitalize(), choices=[("", "choose one"), *found])
