"""Evidence > Retention: how long records are kept and why, what goes next, what went, and changing that. GET shows,
POST does; each change asks for a reason, and for a sign-in that is recent."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.text import capfirst
from django.views.decorators.http import require_http_methods, require_safe

from audit import recent_sign_in
from audit.admin_base import PlainForm, ReasonField, ReasonForm, validate_reason
from audit.models import Hold, RetentionRule, RetentionRun, RetentionStep
from audit.record_page import Pill
from audit.records_form import Directory, OpenChoice, printable
from audit.retention import changes, floors, words
from audit.retention.changes import BelowFloor, RuleError
from audit.retention.deciding import rule_of
from audit.retention.floors import Preset
from audit.retention.preview import Line, preview
from audit.retention.rules import CALLS, MOST_DAYS, SELECTORS, TYPES, Rule, ordered
from audit.staff_names import names_of

SHOWN = 10  # runs, and months of one
MOST_LINES = 12
STATES = {
    "deciding": Pill("flag", "Deciding"), "waiting": Pill("flag", "Waiting"), "deleting": Pill("flag", "Deleting"),
    "done": Pill("allow", "Done"), "failed": Pill("deny", "Failed"),
}  # fmt: skip
MODES = [(floors.OFF, "Off"), (floors.WARN, "Warn below it"), (floors.REFUSE, "Refuse below it")]


class RuleForm(PlainForm):
    """What a rule is for, how long, and why."""

    type = forms.ChoiceField(
        required=False, label="Records",
        choices=[("", "all records"), *((kind, words.about(Rule(0, 1, kind))) for kind in TYPES)],
        help_text="Policy changes, keys, notices, holds, erasures and retention itself are always kept.",
    )  # fmt: skip
    sensitive = forms.TypedChoiceField(
        required=False, label="Tools", empty_value=None, coerce=lambda value: value == "yes",
        choices=[("", "any"), ("yes", "sensitive ones"), ("no", "those that are not sensitive")],
        help_text="Whether a tool was sensitive when it was called.",
    )  # fmt: skip
    backend = OpenChoice("Backend")
    client = OpenChoice("Client")
    tenant = forms.CharField(required=False, max_length=255, validators=[printable], label="Tenant")
    days = forms.IntegerField(
        min_value=1, max_value=MOST_DAYS, label="Days to keep",
        help_text="From the record's own time. An outcome goes with its call.",
    )  # fmt: skip
    basis = forms.CharField(
        max_length=2000, label="Legal basis", validators=[validate_reason],
        widget=forms.Textarea(attrs={"rows": 2}), help_text="Why so long, and no longer. It names nobody.",
    )  # fmt: skip
    confirmed = forms.BooleanField(required=False, label="Keep for a shorter time than that")
    reason = ReasonField()

    def __init__(self, directory: Directory, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        fields: dict[str, Any] = self.fields
        for name, found in (("backend", directory.backends), ("client", directory.clients)):
            options = [("", "any"), *((slug, f"{called} ({slug})") for slug, called in found.items())]
            if (has := self.initial.get(name)) and has not in found:
                options.append((has, has))
            fields[name].choices = options
        self.warned: list[str] = []

    def shown(self) -> list[forms.BoundField]:
        """The fields; the box that confirms a warning only where there is one."""
        return [field for field in self if field.name != "confirmed" or self.warned]


class FloorForm(PlainForm):
    """What each floor does, and why it is changed."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        for preset in floors.PRESETS:
            self.fields[preset.key] = forms.ChoiceField(
                choices=MODES, help_text=preset.source,
                label=f"{preset.title}: {preset.span} ({preset.days:,} days)",
            )  # fmt: skip
        self.fields["reason"] = ReasonField()

    def wanted(self) -> dict[str, str]:
        """Preset -> mode."""
        return {preset.key: self.cleaned_data[preset.key] for preset in floors.PRESETS}


@dataclass(frozen=True, slots=True)
class Listed:
    """A rule as the page shows it, in the order in which rules are asked."""

    row: RetentionRule
    about: str
    long: str
    below: Sequence[Preset]
    raised: Preset | None
    by: str


@dataclass(frozen=True, slots=True)
class Past:
    """A run: how it ended or how far it is, and the months that it is of."""

    run: RetentionRun
    pill: Pill
    months: Sequence[tuple[str, int, int]]


class RetentionViews:
    """The pages, for one admin site, which tells by `directory()` what things are called."""

    def __init__(self, site: Any) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        wrap, both = self.site.admin_view, require_http_methods(["GET", "HEAD", "POST"])
        return [
            path("retention/", wrap(require_safe(self.page)), name="retention"),
            path("retention/add/", wrap(both(self.add)), name="retention_add"),
            path("retention/floors/", wrap(both(self.floors)), name="retention_floors"),
            path("retention/<int:number>/", wrap(both(self.change)), name="retention_rule"),
            path("retention/<int:number>/remove/", wrap(both(self.remove)), name="retention_remove"),
        ]

    # --- looking ----------------------------------------------------------------------------------------------

    def page(self, request: HttpRequest) -> HttpResponse:
        """Rules, floors, what goes next, and what went."""
        if not request.user.has_perm("audit.view_retentionrule"):
            raise PermissionDenied
        modes, now = changes.modes(), timezone.now()
        found = preview(now)
        context = {
            **self.site.each_context(request), "title": "Retention", "rules": listed(modes),
            "floors": [(preset, dict(MODES)[modes.get(preset.key, floors.OFF)]) for preset in floors.PRESETS],
            "lines": [(line, *_when(line, now.date())) for line in found.lines[:MOST_LINES]],
            "more_lines": max(0, len(found.lines) - MOST_LINES),
            "uncounted": [words.month(month) for month in found.uncounted[:3]],
            "uncounted_more": len(found.uncounted) > 3, "runs": runs(), "holds": Hold.objects.filter(released_at=None),
            "may": request.user.has_perm(changes.PERMISSION), "states": STATES,
        }  # fmt: skip
        return TemplateResponse(request, "admin/retention.html", context)

    # --- changing ---------------------------------------------------------------------------------------------

    def add(self, request: HttpRequest) -> HttpResponse:
        """A rule more."""
        return self._rule(request, None)

    def change(self, request: HttpRequest, number: int) -> HttpResponse:
        """Another time, or another basis, for a rule."""
        return self._rule(request, number)

    def _rule(self, request: HttpRequest, number: int | None) -> HttpResponse:
        self._may(request)
        row = None if number is None else self._row(number)
        initial = {} if row is None else {name: getattr(row, name) for name in (*SELECTORS, "days", "basis")}
        if row is not None and row.sensitive is not None:
            initial["sensitive"] = "yes" if row.sensitive else "no"
        form = RuleForm(self.site.directory(), request.POST if request.method == "POST" else None, initial=initial)
        if request.method == "POST":
            if not recent_sign_in.is_recent(request):
                return recent_sign_in.ask_again(request, request.path)
            if form.is_valid() and self._saved(request, number, form):
                return HttpResponseRedirect(reverse("admin:retention"))
        title = "New retention rule" if row is None else "Change a retention rule"
        return self._form(request, "admin/retention_rule.html", form, title=title, row=row)

    def _saved(self, request: HttpRequest, number: int | None, form: RuleForm) -> bool:
        data = form.cleaned_data
        given = {name: data[name] for name in (*SELECTORS, "days")}
        try:
            changes.save_rule(request.user, number, given, data["basis"], data["reason"], data["confirmed"])
        except RuleError as error:
            form.add_error(error.field, str(error))
            return False
        except BelowFloor as warning:
            form.warned = [changes.asks(preset) for preset in warning.presets]
            form.add_error("confirmed", "Confirm that it is kept for a shorter time, or choose more days.")
            return False
        messages.success(request, "The rule is saved, and on its way into the log. The next run follows it.")
        return True

    def remove(self, request: HttpRequest, number: int) -> HttpResponse:
        """Take a rule away."""
        self._may(request)
        row = self._row(number)
        form = ReasonForm(request.POST if request.method == "POST" else None)
        if request.method == "POST":
            if not recent_sign_in.is_recent(request):
                return recent_sign_in.ask_again(request, request.path)
            if form.is_valid():
                try:
                    changes.remove_rule(request.user, number, form.cleaned_data["reason"])
                    messages.success(request, "The rule is removed.")
                except RuleError as error:
                    messages.error(request, str(error))
                return HttpResponseRedirect(reverse("admin:retention"))
        rules = [rule_of(other) for other in RetentionRule.objects.all()]
        return self._form(
            request, "admin/retention_remove.html", form, title="Remove a retention rule", row=row,
            about=words.about(rule_of(row)), long=words.long(row.days),
            next=next_rule(rules, rule_of(row)),
        )  # fmt: skip

    def floors(self, request: HttpRequest) -> HttpResponse:
        """What the floors do."""
        self._may(request)
        known = {preset.key: changes.modes().get(preset.key, floors.OFF) for preset in floors.PRESETS}
        form = FloorForm(request.POST if request.method == "POST" else None, initial=known)
        if request.method == "POST":
            if not recent_sign_in.is_recent(request):
                return recent_sign_in.ask_again(request, request.path)
            if form.is_valid():
                changes.set_floors(request.user, form.wanted(), form.cleaned_data["reason"])
                messages.success(request, "The floors are saved.")
                return HttpResponseRedirect(reverse("admin:retention"))
        return self._form(request, "admin/retention_floors.html", form, title="Floors of retention")

    def _form(self, request: HttpRequest, template: str, form: forms.Form, **more: Any) -> HttpResponse:
        context = {
            **self.site.each_context(request), "form": form, "recent": recent_sign_in.is_recent(request),
            "again": recent_sign_in.ask_again(request, request.path)["Location"], **more,
        }  # fmt: skip
        return TemplateResponse(request, template, context)

    @staticmethod
    def _may(request: HttpRequest) -> None:
        if not request.user.has_perm(changes.PERMISSION):
            raise PermissionDenied

    @staticmethod
    def _row(number: int) -> RetentionRule:
        row = RetentionRule.objects.filter(pk=number).first()
        if row is None:
            raise Http404
        return row


def listed(modes: dict[str, str]) -> list[Listed]:
    """The rules, in the order in which they are asked."""
    rows = {row.pk: row for row in RetentionRule.objects.all()}
    names = names_of(row.changed_by for row in rows.values())
    found = []
    for rule in ordered(map(rule_of, rows.values())):
        refusing = floors.below(rule, modes, floors.REFUSE)
        found.append(Listed(
            rows[rule.id], capfirst(words.about(rule)), words.long(rule.days),
            floors.below(rule, modes, floors.WARN), refusing[0] if refusing else None,
            names.get(rows[rule.id].changed_by, ""),
        ))  # fmt: skip
    return found


def next_rule(rules: Sequence[Rule], gone: Rule) -> str:
    """What a rule's records would go by without it, as far as that can be said of all of them."""
    wider = [
        rule for rule in ordered(rules)
        if rule.id != gone.id and all(getattr(rule, n) in (None, getattr(gone, n)) for n in SELECTORS)
        and (rule.sensitive is None or gone.sensitive is not None or gone.type not in (None, *CALLS))
    ]  # fmt: skip
    if not wider:
        return ""
    return f"{words.about(wider[0])}: {words.long(wider[0].days)}"


def runs() -> list[Past]:
    """The newest runs, with their months."""
    found = list(RetentionRun.objects.order_by("-began_at", "-pk")[:SHOWN])
    months: dict[int, dict[date, tuple[int, int]]] = {run.pk: {} for run in found}
    steps = RetentionStep.objects.filter(run__in=months, holders=[]).order_by("month")
    for run, month, due, deleted in steps.values_list("run", "month", "due", "deleted"):
        was = months[run].get(month, (0, 0))
        months[run][month] = (was[0] + due, was[1] + deleted)
    return [Past(run, STATES[run.state], _months(months[run.pk])) for run in found]


def _months(found: dict[date, tuple[int, int]]) -> list[tuple[str, int, int]]:
    """Months in words, what was due of each, and what is deleted."""
    return [(words.month(month), *numbers) for month, numbers in list(found.items())[:SHOWN]]


def _when(line: Line, today: date) -> tuple[str, str]:
    return capfirst(line.when(today)), words.about(line.rule)
