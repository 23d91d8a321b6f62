"""Evidence > Log: the page that says whether the log is sound, in sentences first; and its newest checkpoint as a file.

Read only. Whoever may see records may see it.
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.views.decorators.http import require_safe

from audit import logtree
from audit.log_health import SCOPES, Health, ended, health, kind_of
from audit.models import Alert, Anchoring, AnchorState, Checkpoint, Log, PublishedKey, Record, Verification
from audit.record_page import Pill
from audit.record_proof import Found, told
from audit.seal_words import REMEDIES, TAMPERED
from audit.streams.page import lines
from audit.templatetags.muniment import lapse, when
from audit.viewer import check_whole
from muniment.findings import counted
from muniment.notes import NoteError

SHOWN = 10
"""Alerts that are over, verifications, and findings of one verification that the page shows."""
VERDICTS = {
    "sound": Pill("allow", "Sound"), "attention": Pill("flag", "Needs a look"), "alarm": Pill("deny", "Alarm"),
}  # fmt: skip
KINDS = {"directory": "Folder", "s3": "Bucket", "syslog": "Syslog", "mail": "Mailbox", "witness": "Witness"}
RARELY = timedelta(hours=2)
"""Without an attempt for so long, an anchor that is behind is not tried as it should be: mail goes once an hour."""


@dataclass(frozen=True, slots=True)
class Notice:
    """An alert for people: what it means, of what, and what to do."""

    alert: Alert
    title: str
    words: str
    remedy: str

    @property
    def lasting(self) -> bool:
        """Whether it was seen again long enough after it was raised to be told."""
        return self.alert.seen_at - self.alert.raised_at > timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Place:
    """One anchor: what it holds, how it does, and the newest cosignature of a witness."""

    name: str
    kind: str
    log: int | None
    size: int | None
    reached_at: datetime | None
    pill: Pill
    words: SafeString | str
    error: str


@dataclass(frozen=True, slots=True)
class Run:
    """One verification of the log."""

    run: Verification
    what: str
    pill: Pill
    findings: Sequence[Found]
    more: int


@dataclass(frozen=True, slots=True)
class Cosignature:
    """What a witness gave: its name, for which size, when we got it, and the line itself."""

    name: str
    size: int
    at: datetime
    line: str


def notices(alerts: Iterable[Alert]) -> list[Notice]:
    """Alerts in words."""
    return [Notice(a, kind_of(a).title, ended(a.words), _remedy(a)) for a in alerts]


def _remedy(alert: Alert) -> str:
    """What to do; of a sealer that halted, what its cause asks for."""
    said = kind_of(alert).remedy
    return f"{REMEDIES.get(alert.about, TAMPERED)[1]} {said}" if alert.kind == "sealer-halted" else said


def place(anchor: AnchorState, state: Health) -> Place:
    """One anchor in words."""
    behind = state.newest is not None and (anchor.log, anchor.size) != (state.newest.log, state.newest.size)
    again = "It is tried again, after 15 minutes at the latest."
    words: SafeString | str
    pill, words = Pill("allow", "Reached"), format_html("Took it {}.", when(anchor.reached_at))
    if anchor.tried_at is None:
        pill, words = Pill("plain", "Not tried yet"), "The worker tries it within a minute of its start."
    elif anchor.failures:
        times = "once" if anchor.failures == 1 else f"{anchor.failures:,} times in a row"
        pill = Pill("deny", "Failing")
        words = format_html("Failed {}, the last time {}. {}", times, when(anchor.tried_at, seconds=True), again)
    elif behind and state.pulse.now - anchor.tried_at > RARELY:
        pill = Pill("flag", "Not tried lately")
        words = format_html("Last tried {}: check that the worker and its schedule run.", when(anchor.tried_at))
    kind = KINDS.get(anchor.kind, anchor.kind)
    return Place(anchor.name, kind, anchor.log, anchor.size, anchor.reached_at, pill, words, anchor.error)


def runs(verifications: Sequence[Verification], most: int = SHOWN) -> list[Run]:
    """Verifications in words, with at most so many findings of each; each leads to its record, where there is one."""
    shown = {run.pk: [f for f in run.findings[:most] if isinstance(f, dict)] for run in verifications}
    indices = {f.get("index") for findings in shown.values() for f in findings}
    urls = record_urls(i for i in indices if isinstance(i, int))
    made = []
    for run in verifications:
        pill = Pill("plain", "Running or interrupted")
        if run.count:
            pill = Pill("deny", counted(run.count, "finding"))
        elif run.ended_at:
            pill = Pill("allow", "Nothing wrong")
        found = [_found(f, urls) for f in shown[run.pk]]
        made.append(Run(run, _scope(run), pill, found, max(0, run.count - len(found))))
    return made


def _scope(run: Verification) -> str:
    what = capfirst(SCOPES.get(run.kind, run.kind))
    if run.ended_at is None:
        return what
    took = lapse((run.ended_at - run.began_at).total_seconds())
    return f"{what}: {counted(run.records, 'record')} of {run.size:,} sealed, in {took}"


def _found(finding: Mapping[str, Any], urls: Mapping[int, str]) -> Found:
    index = finding.get("index")
    number = index if isinstance(index, int) else None
    url = urls.get(number) if number is not None else None
    return told(str(finding.get("code")), str(finding.get("message") or ""), number, url)


def record_urls(indices: Iterable[int]) -> dict[int, str]:
    """The pages of records, by index; without those that are not in the database."""
    rows = Record.objects.filter(index__in=set(indices)).values_list("index", "id")
    return {index: reverse("admin:record", args=[record]) for index, record in rows}


def cosignatures(anchors: Iterable[AnchorState]) -> list[Cosignature]:
    """The newest cosignature of each witness."""
    made = []
    for anchor in anchors:
        if anchor.log is None or anchor.size is None:
            continue
        newest = Anchoring.objects.filter(anchor=anchor.name, log=anchor.log, size=anchor.size).first()
        if newest is not None and newest.cosignature:
            made.append(Cosignature(anchor.name, newest.size, newest.at, newest.cosignature.strip()))
    return made


def seams(logs: Sequence[Log]) -> list[str]:
    """Where one log was closed and the next opened, in words."""
    words = []
    for earlier, later in pairwise(logs):
        last = logtree.newest(earlier)
        closed = f"Log {earlier.number} was closed at {counted(last.size if last else 0, 'record')}."
        words.append(f"{closed} Log {later.number} goes on from record {later.start:,}, which names that end.")
    return words


def checkpoint_note(checkpoint: Checkpoint) -> str:
    """The signed note with its cosignatures; as it is stored where it is none any more."""
    try:
        return logtree.with_cosignatures(checkpoint)
    except NoteError:
        return checkpoint.note


def file_name(checkpoint: Checkpoint, origin: str) -> str:
    """`checkpoint-muniment.example-log-80000.txt`."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", origin).strip("-.")
    return f"checkpoint-{plain}-{checkpoint.size}.txt"


class LogViews:
    """The page and the file, for one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        wrap = self.site.admin_view
        return [
            path("log/", wrap(require_safe(self.page)), name="log"),
            path("log/checkpoint/", wrap(require_safe(self.checkpoint)), name="log_checkpoint"),
        ]

    def page(self, request: HttpRequest) -> HttpResponse:
        """The log, in words."""
        check_whole(request.user)
        if not request.user.has_perm("audit.view_record"):
            raise PermissionDenied
        context = self.site.each_context(request)
        state = health(context["pulse"])
        logs = list(Log.objects.order_by("number"))
        context |= {
            "title": "Log", "health": state, "verdict": VERDICTS[state.pulse.state], "logs": logs,
            "origin": logs[-1].origin if logs else "", "notices": notices(state.pulse.alerts),
            "closed": notices(Alert.objects.exclude(cleared_at=None).order_by("-cleared_at", "-id")[:SHOWN]),
            "places": [place(anchor, state) for anchor in state.anchors],
            "cosignatures": cosignatures(a for a in state.anchors if a.kind == "witness"),
            "note": checkpoint_note(state.newest) if state.newest else "",
            "runs": runs(list(Verification.objects.order_by("-began_at")[:SHOWN])),
            "root": b64encode(state.newest.root).decode() if state.newest else "", "several_logs": len(logs) > 1,
            "streams": lines(), "interval": lapse(settings.MUNIMENT_ANCHOR_INTERVAL),
            "keys": PublishedKey.objects.order_by("use", "not_before"), "seams": seams(logs),
        }  # fmt: skip
        return TemplateResponse(request, "admin/log.html", context)

    def checkpoint(self, request: HttpRequest) -> HttpResponse:
        """The newest checkpoint, with the cosignatures of witnesses, to be kept where nobody here can change it."""
        check_whole(request.user)
        if not request.user.has_perm("audit.view_record"):
            raise PermissionDenied
        log = logtree.current()
        newest = logtree.newest(log) if log else None
        if log is None or newest is None:
            messages.warning(request, "There is no checkpoint yet: nothing is sealed.")
            return HttpResponseRedirect(reverse("admin:log"))
        return download(checkpoint_note(newest), file_name(newest, log.origin), "text/plain; charset=utf-8")


def download(content: str | bytes, name: str, kind: str) -> HttpResponse:
    """A file to be saved. `name` is made by us, of plain characters."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return HttpResponse(content, content_type=kind, headers=headers)
