"""Evidence > Exports: which there are, defining one from a search, and one with its runs. GET shows, POST does; who may
do what is asked again where it is done (`audit.exports.definitions`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import OuterRef, Subquery
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from audit import saved_searches
from audit.admin_base import HERE, ConfirmForm
from audit.evidence import controls
from audit.exports import definitions, rights
from audit.exports import words as export_words
from audit.exports.form import LOOK, ExportForm, column_label, initial_of, usual
from audit.models import Destination, Export, ExportRun
from audit.models.handing import OPEN
from audit.record_page import Pill
from audit.records_form import FilterForm
from audit.staff_names import names_of
from audit.viewer import viewer_of

MOST, MOST_RUNS, MOST_OPEN = 200, 50, 20
VIEW = "audit.view_export"
DELETE = {
    "label": "Delete the export", "danger": True,
    "explanation": "Its schedule ends and runs that are under way are stopped. Files that it made stay here for their"
    " time, and what it did stays in the log.",
}  # fmt: skip
DELETE_PACK = {
    "label": "Delete the pack", "danger": True,
    "explanation": "Its file stays here for its time, and that it was made stays in the log.",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One export in the list."""

    export: Export
    own: bool
    owner: str
    last: ExportRun | None
    pill: Pill | None
    next: datetime | None

    @property
    def words(self) -> dict[str, str]:
        """Format, schedule, and what is wrong with it."""
        return {
            "format": export_words.format_name(self.export.format),
            "schedule": export_words.schedule_words(self.export.schedule),
            "failures": f"failed {times(self.export.failures)}", "paused": export_words.paused_words(self.export),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run in a list."""

    run: ExportRun
    name: str
    pill: Pill
    span: str
    size: str
    progress: export_words.Progress


@dataclass(frozen=True, slots=True)
class Button:
    """What can be done, by POST or on a page that asks."""

    label: str
    url: str
    post: bool = True
    main: bool = False
    danger: bool = False


def times(number: int) -> str:
    """`once`, `3 times in a row`."""
    return "once" if number == 1 else f"{number:,} times in a row"


def line(run: ExportRun, now: datetime, name: str = "") -> RunLine:
    """A run for a list."""
    return RunLine(
        run, name or run.file, export_words.state(run, now), export_words.span(run.since, run.until),
        export_words.size(run.bytes), export_words.progress(run),
    )  # fmt: skip


def export_or_404(request: HttpRequest, number: int) -> Export:
    """An export by its number. Raises Http404, also for one that the viewer may not see."""
    found = Export.objects.filter(pk=number).first() if 0 < number < 2**63 else None
    if found is None or not rights.may_see(request.user, found):
        raise Http404("No such export.")
    return found


def allowed(request: HttpRequest) -> None:
    """Raises PermissionDenied for somebody who may see no exports."""
    if not request.user.has_perm(VIEW):
        raise PermissionDenied


def is_pack(request: HttpRequest, export: Export | None) -> bool:
    """Whether it is an evidence pack; the navigation then marks those, though paths are the same for all exports."""
    if export is None or export.format != "evidence":
        return False
    setattr(request, HERE, "admin:evidence_packs")
    return True


def last_runs(found: Sequence[Export]) -> dict[int, ExportRun]:
    """The newest run of each, by one look into the index for each."""
    newest = ExportRun.objects.filter(export=OuterRef("pk")).order_by("-slot").values("pk")[:1]
    numbers = Export.objects.filter(pk__in=[one.pk for one in found]).annotate(newest=Subquery(newest))
    runs = ExportRun.objects.in_bulk([n for n in numbers.values_list("newest", flat=True) if n is not None])
    return {run.export: run for run in runs.values()}


class ExportViews:
    """The pages, for one admin site, which tells by `directory()` what things are called."""

    def __init__(self, site: Any) -> None:
        self.site: AdminSite = site
        self.directory = site.directory

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        wrap, both = self.site.admin_view, require_http_methods(["GET", "HEAD", "POST"])
        return [
            path("exports/", wrap(require_safe(self.listed)), name="exports"),
            path("exports/add/", wrap(both(self.add)), name="export_add"),
            path("exports/<int:number>/", wrap(require_safe(self.one)), name="export"),
            path("exports/<int:number>/edit/", wrap(both(self.edit)), name="export_edit"),
            path("exports/<int:number>/delete/", wrap(both(self.delete)), name="export_delete"),
            path("exports/<int:number>/run/", wrap(require_POST(self.run)), name="export_ask"),
            path("exports/<int:number>/pause/", wrap(require_POST(self.pause)), name="export_pause"),
            path("exports/<int:number>/resume/", wrap(require_POST(self.resume)), name="export_resume"),
        ]

    def _page(self, request: HttpRequest, template: str, status: int = 200, **more: Any) -> HttpResponse:
        context = {**self.site.each_context(request), **more}
        return TemplateResponse(request, f"admin/{template}.html", context, status=status)

    # --- which there are ---------------------------------------------------------------------------------------

    def listed(self, request: HttpRequest) -> HttpResponse:
        """By name, with those under way before."""
        allowed(request)
        now, viewer = timezone.now(), viewer_of(request.user)
        visible = Export.objects.exclude(format="evidence")
        if viewer.tenants is not None:
            visible = visible.filter(owner=viewer.actor)
        found = list(visible.order_by("name", "pk")[: MOST + 1])
        shown, runs = found[:MOST], last_runs(found[:MOST])
        runs = {number: run for number, run in runs.items() if rights.may_see(request.user, run)}
        names = names_of(one.owner for one in shown)
        rows = [self._row(one, viewer.actor, names, runs.get(one.pk), now) for one in shown]
        called = {one.pk: one.name for one in shown}
        going = ExportRun.objects.filter(state__in=OPEN, export__in=called).order_by("created_at")[:MOST_OPEN]
        return self._page(
            request, "exports", title="Exports", rows=rows, more=len(found) > MOST,
            may_add=definitions.may_make(request.user),
            under_way=[line(run, now, called[run.export]) for run in going],
        )  # fmt: skip

    def _row(self, one: Export, actor: str, names: Mapping[str, str], last: ExportRun | None, now: datetime) -> Row:
        following = export_words.next_times(one.schedule, now, 1) if one.schedule and one.enabled else []
        return Row(
            one, one.owner == actor, names.get(one.owner, ""), last, export_words.state(last, now) if last else None,
            following[0] if following else None,
        )  # fmt: skip

    # --- defining one ------------------------------------------------------------------------------------------

    def add(self, request: HttpRequest) -> HttpResponse:
        """A new export, of the search that the URL has."""
        if not definitions.may_make(request.user):
            raise PermissionDenied
        form = ExportForm(viewer_of(request.user), request.POST if request.method == "POST" else None, initial=usual())
        return self._form(request, form, FilterForm(request.GET.dict(), self.directory()))

    def edit(self, request: HttpRequest, number: int) -> HttpResponse:
        """Another definition; with a search in the URL, of that."""
        allowed(request)
        export = export_or_404(request, number)
        if not may_edit(request.user, export):
            raise PermissionDenied
        given = request.GET.dict() or dict(parse_qsl(export.query))
        form = ExportForm(
            viewer_of(request.user), request.POST if request.method == "POST" else None, initial=initial_of(export)
        )
        return self._form(request, form, FilterForm(given, self.directory()), export)

    def _form(
        self, request: HttpRequest, form: ExportForm, search: FilterForm, export: Export | None = None
    ) -> HttpResponse:
        about_search: list[str] = [str(e) for errors in search.errors.values() for e in errors]
        looks = request.method == "POST" and LOOK in request.POST
        if request.method == "POST" and not looks and form.is_valid() and not about_search:
            try:
                return self._saved(request, form.definition(urlencode(search.kept())), export)
            except ValidationError as error:
                about_search = form.refuse(error)
        times_said = form.look_at_crontab() if looks else ""
        wrong = bool(form.errors or about_search) and request.method == "POST"
        context = {
            "title": f"Change “{export.name}”" if export else "New export", "form": form, "export": export,
            "crontab_times": times_said, "search_errors": about_search,
            "formats": [(name, words) for name, (_, words) in export_words.FORMATS.items()],
            "next_times": form.next_times(), "save": "Save" if export else "Make the export",
            "back": reverse("admin:export", args=[export.pk]) if export else reverse("admin:exports"),
            **self._search(request, search),
        }  # fmt: skip
        return self._page(request, "export_form", status=400 if wrong and not looks else 200, **context)

    def _search(self, request: HttpRequest, search: FilterForm) -> dict[str, Any]:
        viewer = viewer_of(request.user)
        saved = saved_searches.seen_by(viewer) if viewer.records else []
        return {
            "chips": search.chips(), "time_words": search.time_words(), "search_url": search.url(),
            "query": urlencode(search.kept()),
            "saved": [{"name": one.name, "query": one.url.partition("?")[2]} for one in saved],
        }  # fmt: skip

    def _saved(self, request: HttpRequest, given: definitions.Definition, export: Export | None) -> HttpResponse:
        """Save it; one without a schedule that is new runs at once. Raises ValidationError."""
        if export is not None:
            definitions.change(request.user, export, given)
            messages.success(request, "The export is changed. Its next run follows that.")
            return HttpResponseRedirect(reverse("admin:export", args=[export.pk]))
        made = definitions.make(request.user, given)
        if made.schedule:
            messages.success(request, "The export is made. It runs by its schedule from now on.")
            return HttpResponseRedirect(reverse("admin:export", args=[made.pk]))
        messages.success(request, "The export is made, and its first run is asked for.")
        return self._asked(request, made)

    # --- one export --------------------------------------------------------------------------------------------

    def one(self, request: HttpRequest, number: int) -> HttpResponse:
        """Its definition, its runs, and what can be done with it."""
        allowed(request)
        export, now = export_or_404(request, number), timezone.now()
        before = request.GET.get("before", "")
        runs = ExportRun.objects.filter(export=export.pk).order_by("-slot")
        if before.isascii() and before.isdigit() and len(before) < 12:
            runs = runs.filter(slot__lt=datetime.fromtimestamp(int(before), tz=now.tzinfo))
        found = list(runs[: MOST_RUNS + 1])
        more, shown = len(found) > MOST_RUNS, [run for run in found if rights.may_see(request.user, run)]
        about = self._about(request, export)
        context = {
            **about, "title": export.name, "export": export,
            "runs": [line(run, now) for run in shown[:MOST_RUNS]], "more": more,
            "older": f"?before={int(found[MOST_RUNS - 1].slot.timestamp())}" if more else "",
            "erased": any(run.erased_since for run in shown), "buttons": self._buttons(request, export),
        }  # fmt: skip
        return self._page(request, "export", **context)

    def _about(self, request: HttpRequest, export: Export) -> dict[str, Any]:
        search = FilterForm(dict(parse_qsl(export.query)), self.directory())
        following = export_words.next_times(export.schedule, timezone.now()) if export.enabled else []
        people = names_of([export.owner, *(f"staff:{number}" for number in export.recipients)])
        frameworks = {one.slug: one.name for one in controls.FRAMEWORKS}
        return {
            "is_pack": is_pack(request, export), "chips": search.chips(), "time_words": search.time_words(),
            "search_url": search.url() if search.is_valid() and request.user.has_perm("audit.view_record") else "",
            "format": export_words.format_name(export.format),
            "columns": [column_label(name) for name in export.columns],
            "frameworks": [frameworks.get(slug, slug) for slug in export.frameworks or frameworks],
            "schedule": export_words.schedule_words(export.schedule), "covers": export_words.covers(export.schedule),
            "next": export_words.times_words(following) if export.schedule else "",
            "destination": Destination.objects.filter(name=export.destination).first(),
            "recipients": [people.get(f"staff:{number}", "") for number in export.recipients],
            "owner": people.get(export.owner, export.owner), "paused": export_words.paused_words(export),
            "disabled": export_words.disabled_words(export),
            "failures": f"{times(export.failures)}." if export.failures else "",
        }  # fmt: skip

    def _buttons(self, request: HttpRequest, export: Export) -> Sequence[Button]:
        if not definitions.may_change(request.user, export):
            return []
        url = {name: reverse(f"admin:export_{name}", args=[export.pk])
               for name in ("ask", "pause", "resume", "edit", "delete")}  # fmt: skip
        found = [Button("Run now", url["ask"], main=True)] if definitions.may_use(request.user, export) else []
        if export.schedule or not export.enabled:
            found.append(Button("Pause", url["pause"]) if export.enabled else Button("Resume", url["resume"]))
        if may_edit(request.user, export):
            found.append(Button("Change…", url["edit"], post=False))
        return [*found, Button("Delete…", url["delete"], post=False, danger=True)]

    # --- what is done with it ----------------------------------------------------------------------------------

    def run(self, request: HttpRequest, number: int) -> HttpResponse:
        """POST: a run over its search's own time, now."""
        allowed(request)
        return self._asked(request, export_or_404(request, number))

    def _asked(self, request: HttpRequest, export: Export) -> HttpResponse:
        try:
            run = definitions.ask(request.user, export)
        except ValidationError as error:
            messages.error(request, " ".join(error.messages))
            return HttpResponseRedirect(reverse("admin:export", args=[export.pk]))
        return HttpResponseRedirect(reverse("admin:export_run", args=[run.pk]))

    def pause(self, request: HttpRequest, number: int) -> HttpResponse:
        """POST: its schedule rests."""
        allowed(request)
        export = export_or_404(request, number)
        definitions.disable(request.user, export)
        messages.success(request, "The export is paused. What is due meanwhile is made up for once it is resumed.")
        return HttpResponseRedirect(reverse("admin:export", args=[export.pk]))

    def resume(self, request: HttpRequest, number: int) -> HttpResponse:
        """POST: its schedule goes on."""
        allowed(request)
        export = export_or_404(request, number)
        definitions.enable(request.user, export)
        messages.success(request, "The export is resumed; what was due meanwhile is made up for.")
        return HttpResponseRedirect(reverse("admin:export", args=[export.pk]))

    def delete(self, request: HttpRequest, number: int) -> HttpResponse:
        """GET asks, POST deletes."""
        allowed(request)
        export = export_or_404(request, number)
        if not definitions.may_change(request.user, export):
            raise PermissionDenied
        pack = is_pack(request, export)
        if request.method == "POST":
            definitions.remove(request.user, export)
            messages.success(request, f"The {'pack' if pack else 'export'} is deleted.")
            return HttpResponseRedirect(reverse("admin:evidence_packs" if pack else "admin:exports"))
        return self._page(
            request, "act", title=f"Delete “{export.name}”", name=export.name, action=DELETE_PACK if pack else DELETE,
            form=ConfirmForm(),
            back=reverse("admin:export", args=[export.pk]),
        )  # fmt: skip


def may_edit(user: Any, export: Export) -> bool:
    """Whether somebody may change the definition: of a pack nobody, since each is made anew."""
    return definitions.may_use(user, export) and export.format != "evidence"
