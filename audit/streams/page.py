"""System > Streams: how far each is, why one waits, and the records that its receiver refused. GET shows, POST does.

Streams are configured by the operator; here they can be paused, and dead letters sent again or let go."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_POST, require_safe

from audit.admin_base import ReasonForm
from audit.models import DeadLetter, Stream
from audit.record_page import Pill
from audit.streams import control
from audit.streams.control import Standing, StreamError, standing, standings
from audit.streams.delivering import sealed_end
from audit.templatetags.muniment import lapse, when
from muniment.findings import counted

SHOWN = 200  # open dead letters
SETTLED = 20
KINDS = {"webhook": "Webhook", "syslog": "Syslog"}
PILLS = {
    "sending": Pill("allow", "Delivering"), "waiting": Pill("plain", "Nothing sent yet"),
    "failing": Pill("deny", "Failing"), "paused": Pill("flag", "Paused"), "gone": Pill("flag", "Not configured"),
}  # fmt: skip
MAX_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Line:
    """A stream in words."""

    stream: Stream
    kind: str
    pill: Pill
    words: SafeString | str
    behind: str
    letters: str
    url: str


def lines() -> list[Line]:
    """Every stream in words; for the log page too."""
    return [line(found) for found in standings()]


def line(found: Standing) -> Line:
    """One stream in words."""
    stream = found.stream
    return Line(
        stream, KINDS.get(stream.kind, stream.kind), PILLS[found.state], _words(found), _behind(found),
        counted(found.letters, "dead letter") if found.letters else "", reverse("admin:stream", args=[stream.name]),
    )  # fmt: skip


def _behind(found: Standing) -> str:
    """`1,203 records, 4 minutes behind`; nothing where it has all."""
    if not found.lag:
        return ""
    words = counted(found.lag, "record")
    return f"{words}, {lapse(found.seconds(timezone.now()))} behind" if found.since else f"{words} behind"


def _words(found: Standing) -> SafeString | str:
    stream = found.stream
    match found.state:
        case "gone":
            words = "A worker last had it in its configuration {}. If it still should, check that a worker runs."
            return format_html(words, when(stream.seen_at))
        case "paused":
            return format_html("Paused {}. Nothing is lost: it goes on where it was.", when(stream.paused_at))
        case "failing":
            times = "once" if stream.failures == 1 else f"{stream.failures:,} times in a row"
            words = "Failed {}, the last time {}. It is tried again by itself."
            return format_html(words, times, when(stream.tried_at, seconds=True))
        case "waiting":
            return "The worker begins with the next record that is sealed."
    return format_html("Last took records {}.", when(stream.sent_at, seconds=True)) if stream.sent_at else ""


class StreamViews:
    """The pages, for one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        wrap = self.site.admin_view
        return [
            path("streams/", wrap(require_safe(self.listed)), name="streams"),
            path("streams/<slug:name>/", wrap(require_safe(self.page)), name="stream"),
            path("streams/<slug:name>/pause/", wrap(require_POST(self.pause)), name="stream_pause"),
            path("streams/<slug:name>/resume/", wrap(require_POST(self.resume)), name="stream_resume"),
            path("streams/<slug:name>/letters/", wrap(require_POST(self.letters)), name="stream_letters"),
        ]

    def listed(self, request: HttpRequest) -> HttpResponse:
        """Every stream."""
        _may_see(request)
        context = {**self.site.each_context(request), "title": "Streams", "lines": lines()}
        return TemplateResponse(request, "admin/streams.html", context)

    def page(self, request: HttpRequest, name: str) -> HttpResponse:
        """One stream, its dead letters, and what may be done."""
        _may_see(request)
        return self._page(request, name, ReasonForm())

    def pause(self, request: HttpRequest, name: str) -> HttpResponse:
        """POST: send nothing for now, which takes a reason."""
        form = ReasonForm(request.POST)
        if not form.is_valid():
            _may_change(request)
            return self._page(request, name, form)
        words = "It is paused: nothing is sent until it is resumed."
        return self._done(request, name, words, lambda: control.pause(
            request.user, name, form.cleaned_data["reason"]))  # fmt: skip

    def resume(self, request: HttpRequest, name: str) -> HttpResponse:
        """POST: go on."""
        words = "It goes on where it was, within a few seconds."
        return self._done(request, name, words, lambda: control.resume(request.user, name))

    def letters(self, request: HttpRequest, name: str) -> HttpResponse:
        """POST: `again` or `letgo` with the number of a dead letter, or `again` with `all`."""
        again, gone = request.POST.get("again"), request.POST.get("letgo")
        if again == "all":
            return self._done(request, name, "They are sent again within a few seconds.",
                              lambda: control.send_again(request.user, name, None))  # fmt: skip
        if again is not None:
            return self._done(request, name, "It is sent again within a few seconds.",
                              lambda: control.send_again(request.user, name, _number(again)))  # fmt: skip
        return self._done(request, name, "It is let go: it is not sent any more.",
                          lambda: control.let_go(request.user, name, _number(gone)))  # fmt: skip

    def _done(self, request: HttpRequest, name: str, words: str, do: Any) -> HttpResponse:
        _may_change(request)
        try:
            do()
            messages.success(request, words)
        except StreamError as error:
            messages.error(request, str(error))
        return HttpResponseRedirect(reverse("admin:stream", args=[name]))

    def _page(self, request: HttpRequest, name: str, form: ReasonForm) -> HttpResponse:
        stream = Stream.objects.filter(name=name).first()
        if stream is None:
            raise Http404("No such stream.")
        found = standing(stream, sealed_end(), timezone.now())
        settled = DeadLetter.objects.filter(stream=name, settled_at__isnull=False).order_by("-settled_at")
        may = request.user.has_perm("audit.change_stream")
        context = {
            **self.site.each_context(request), "title": f"Stream {name}", "line": line(found), "stream": stream,
            "letters": _shown(control.open_letters(name)[:SHOWN]), "settled": _shown(settled[:SETTLED]),
            "more": max(0, found.letters - SHOWN), "form": form, "may_change": may, "wrong": bool(form.errors),
            "unasked": may and control.open_letters(name).filter(asked_at=None).exists(),
        }  # fmt: skip
        return TemplateResponse(request, "admin/stream.html", context)


def _shown(found: Any) -> Sequence[tuple[DeadLetter, str]]:
    """Dead letters, each with the page of its record."""
    return [(letter, reverse("admin:record", args=[letter.record])) for letter in found]


def _number(text: str | None) -> int:
    """The number of a dead letter. Raises Http404."""
    if not text or not text.isascii() or not text.isdecimal() or len(text) > 19 or int(text) > MAX_ID:
        raise Http404("No such dead letter.")
    return int(text)


def _may_see(request: HttpRequest) -> None:
    if not request.user.has_perm("audit.view_stream"):
        raise PermissionDenied


def _may_change(request: HttpRequest) -> None:
    if not request.user.has_perm("audit.change_stream"):
        raise PermissionDenied
