"""Evidence > Exports > one run: how far it is, what came of it, its file, and how to verify that. Its progress is a
fragment of its own, which a small script asks for again; without script there is a button."""

from typing import Any

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from audit.exports import definitions, downloads, rights, words
from audit.exports.page import Button, allowed, is_pack
from audit.models import Export, ExportRun
from audit.models.handing import OPEN
from audit.record_words import short_uid
from audit.staff_names import names_of
from audit.templatetags.muniment import lapse

MOST_NAMED = 10  # users who were erased since, named by uid
STATE = "X-Run-State"
GONE = "The export was deleted; only its runs are left. "


class ExportRunViews:
    """The pages, for one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        wrap = self.site.admin_view
        return [
            path("exports/runs/<int:number>/", wrap(require_safe(self.run)), name="export_run"),
            path("exports/runs/<int:number>/progress/", wrap(require_safe(self.progress)), name="export_run_progress"),
            path("exports/runs/<int:number>/cancel/", wrap(require_POST(self.cancel)), name="export_run_cancel"),
            path("exports/runs/<int:number>/retry/", wrap(require_POST(self.retry)), name="export_run_retry"),
        ]

    def run(self, request: HttpRequest, number: int) -> HttpResponse:
        """The run."""
        allowed(request)
        run = run_or_404(request, number)
        export = Export.objects.filter(pk=run.export).first()
        pack = is_pack(request, export)
        context = {
            **self.site.each_context(request), **_live(run), **_facts(run), "title": _title(run),
            "export": export, "is_pack": pack,
            "pill": words.state(run, timezone.now()), "buttons": _buttons(request, run, export),
            "may_download": downloads.may_take(request.user, run) and _is_kept(run),
            "no_download": _why_not(run), "verify": verify_command(run, export),
        }  # fmt: skip
        return TemplateResponse(request, "admin/export_run.html", context)

    def progress(self, request: HttpRequest, number: int) -> HttpResponse:
        """How far it is, as a part of the page; a header says its state."""
        allowed(request)
        run = run_or_404(request, number)
        answer = TemplateResponse(request, "admin/export_live.html", _live(run))
        answer[STATE], answer["Cache-Control"] = run.state, "no-store"
        return answer

    def cancel(self, request: HttpRequest, number: int) -> HttpResponse:
        """POST: it is stopped at its next page."""
        allowed(request)
        run, export = _changeable(request, number)
        if definitions.cancel(request.user, run, export):
            messages.success(request, "The run is being cancelled.")
        else:
            messages.warning(request, "The run was over already.")
        return HttpResponseRedirect(downloads.page_of(run))

    def retry(self, request: HttpRequest, number: int) -> HttpResponse:
        """POST: it is tried again, now."""
        allowed(request)
        run, export = _changeable(request, number)
        if definitions.retry(request.user, run, export):
            messages.success(request, "The run is tried again.")
        else:
            messages.warning(request, "There is nothing to try again.")
        return HttpResponseRedirect(downloads.page_of(run))


def _title(run: ExportRun) -> str:
    return f"Run of {run.slot.day} {run.slot:%b %Y, %H:%M} UTC"


def run_or_404(request: HttpRequest, number: int) -> ExportRun:
    """A run by its number. Raises Http404, also for one that the viewer may not see."""
    found = ExportRun.objects.filter(pk=number).first() if 0 < number < 2**63 else None
    if found is None or not rights.may_see(request.user, found):
        raise Http404("No such run.")
    return found


def _changeable(request: HttpRequest, number: int) -> tuple[ExportRun, Export]:
    """A run and its export, of which `audit.exports.definitions` asks who may. Raises Http404, also where the export is
    gone."""
    run = run_or_404(request, number)
    export = Export.objects.filter(pk=run.export).first()
    if export is None:
        raise Http404("Its export was deleted.")
    return run, export


def _live(run: ExportRun) -> dict[str, Any]:
    return {
        "run": run, "open": run.state in OPEN, "progress": words.progress(run),
        "sentence": words.sentence(run),
    }  # fmt: skip


def _facts(run: ExportRun) -> dict[str, Any]:
    people = names_of([run.asked_by])
    seconds = words.took(run)
    erased = [short_uid(uid) for uid in run.erased_since[:MOST_NAMED]]
    more = len(run.erased_since) - len(erased)
    who = ", ".join(erased) + (f" and {more:,} more" if more else "")
    return {
        "span": words.span(run.since, run.until), "size": words.size(run.bytes),
        "asked": "By its schedule" if run.asked_by == "system" else f"By {people.get(run.asked_by, run.asked_by)}",
        "took": lapse(seconds) if seconds is not None else "", "counts": words.counts_words(run.counts),
        "erased_words": f"This file was made before {who} {'was' if len(run.erased_since) == 1 else 'were'} erased, and"
        " holds personal data of them. Delete it wherever it was handed to, and tell whoever has it."
        " Here it is not handed out any more, and deleted within a day.",
    }  # fmt: skip


def _buttons(request: HttpRequest, run: ExportRun, export: Export | None) -> list[Button]:
    if export is None or not definitions.may_change(request.user, export):
        return []
    found = []
    if run.state in OPEN and not run.cancel:
        found.append(Button("Cancel", reverse("admin:export_run_cancel", args=[run.pk])))
    if run.state in ("failed", "cancelled") or (run.state in OPEN and run.retry_at is not None):
        found.append(Button("Try again now", reverse("admin:export_run_retry", args=[run.pk]), main=True))
    return found


def _is_kept(run: ExportRun) -> bool:
    """Whether there is a file that may be taken: also of one that could not be delivered; not where it holds a user
    who was erased since."""
    there = bool(run.sha256) and run.removed_at is None and run.state in ("done", "delivering", "failed")
    return there and not run.erased_since


def _why_not(run: ExportRun) -> str:
    if run.erased_since:
        return "Run the export again to have a file without whoever was erased."
    if run.removed_at is not None:
        return "The file was kept for its time and is not here any more. Run the export again to have it once more."
    if not _is_kept(run):
        return "It was cancelled, so its file is not kept." if run.state == "cancelled" else "It is being made again."
    if run.personal:
        return "Downloading it takes the right to see personal data, and to take records out."
    return "Downloading it takes the right to take records out."


def verify_command(run: ExportRun, export: Export | None) -> str:
    """What an auditor types: of an export its manifest, beside its file; of a pack, which has its manifest within, the
    pack itself."""
    pack = export is not None and export.format == "evidence"
    return f"muniment verify {run.file}{'' if pack else '.manifest.json'} --trust keys.json"
