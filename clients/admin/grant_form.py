"""The forms of granting and asking: a sentence to be completed, who may use what, for whom, until when, because."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.http import QueryDict
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from audit.admin_base import PlainForm, ReasonField
from audit.models import Subject
from clients import tenants as confinement
from clients.grant_checks import Problem
from clients.grants import GrantError
from clients.models import MODES, Client
from clients.proposals import Proposal
from clients.sensitive import Closure, closure
from tools.models import Scope, Tool

ENDS = [
    ("30", "in 30 days"),
    ("90", "in 90 days"),
    ("365", "in a year"),
    ("on", "at a time of your choice"),
    ("never", "never"),
]
EFFECTS = [
    ("allow", "use"),
    ("flag", "use, and each call is marked for review"),
    ("deny", "not use: a block"),
]
DATETIME = forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M")
LONGEST = 255  # of any name in a link


class EndsForm(PlainForm):
    """Why, and until when."""

    ends = forms.ChoiceField(label="It ends", choices=ENDS, initial="90", widget=forms.RadioSelect)
    expires_at = forms.DateTimeField(label="Time of its end, in UTC", required=False, widget=DATETIME)
    reason = ReasonField()

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if data.get("ends") == "on" and not data.get("expires_at") and "expires_at" not in self.errors:
            self.add_error("expires_at", "Say when, or choose another end.")
        return data

    def days(self) -> int | None:
        """Its life in days, where it was given so. Call it on a valid form only."""
        ends = self.cleaned_data["ends"]
        return int(ends) if ends.isdigit() else None

    def end(self, now: datetime | None = None) -> datetime | None:
        """When it ends; None for never. Call it on a valid form only."""
        if (days := self.days()) is not None:
            return (now or timezone.now()) + timedelta(days=days)
        end: datetime | None = self.cleaned_data["expires_at"]
        return end if self.cleaned_data["ends"] == "on" else None


class BoxedEndsForm(EndsForm):
    """For a request, which is never for good."""

    ends = forms.ChoiceField(label="It ends", choices=ENDS[:-1], initial="90", widget=forms.RadioSelect)


class ScopesField(forms.ModelMultipleChoiceField):
    """Scopes, with what each implies, and whether it takes a second person."""

    close: Closure
    sensitive: set[str]

    def __init__(self, **more: Any) -> None:
        super().__init__(Scope.objects.all(), required=False, widget=forms.CheckboxSelectMultiple, **more)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ScopesField":
        made: ScopesField = super().__deepcopy__(memo)
        made.close = closure()  # once for each form
        made.sensitive = set(Scope.objects.filter(sensitive=True).values_list("name", flat=True))
        return made

    def label_from_instance(self, scope: Any) -> str:
        covered = self.close([scope.name])
        also = ", ".join(sorted(covered - {scope.name}))
        sensitive = " (sensitive: a second person approves)" if covered & self.sensitive else ""
        return scope.name + (f", with {also}" if also else "") + sensitive


class ToolField(forms.ModelChoiceField):
    """A tool that is not retired, with its backend."""

    def __init__(self, **more: Any) -> None:
        tools = Tool.objects.select_related("backend").exclude(status="retired")
        super().__init__(tools, required=False, empty_label="any tool", **more)

    def label_from_instance(self, tool: Any) -> str:
        return f"{tool.name} of {tool.backend}" + ("" if tool.status == "active" else f" ({tool.status})")


class ClientField(forms.ModelChoiceField):
    """A client; suspended ones say so."""

    def __init__(self, **more: Any) -> None:
        super().__init__(Client.objects.all(), required=False, empty_label="Any client", **more)

    def label_from_instance(self, client: Any) -> str:
        return client.name if client.status == "active" else f"{client.name} ({client.status})"


class GrantForm(EndsForm):
    """A new grant, read as a sentence. The labels are the words between its parts."""

    client = ClientField(label="Client")
    effect = forms.ChoiceField(label="may", initial="allow", widget=forms.RadioSelect, choices=EFFECTS)
    scopes = ScopesField(label="the scopes", help_text="None ticked: only for a block, of everything that it matches.")
    tool = ToolField(label="only in the tool")
    subject = forms.CharField(
        label="only for the user", required=False, max_length=40,
        widget=forms.TextInput(attrs={"placeholder": "usr_…", "autocomplete": "off"}),
    )  # fmt: skip
    role = forms.CharField(label="only for the role", required=False, max_length=255)
    tenant = forms.CharField(label="only in the tenant", required=False, max_length=255)
    modes = forms.MultipleChoiceField(
        label="only in the agent mode", required=False, choices=[(m, m) for m in MODES],
        widget=forms.CheckboxSelectMultiple, help_text="None ticked: in every mode.",
    )  # fmt: skip
    starts_at = forms.DateTimeField(label="from (UTC)", required=False, widget=DATETIME, help_text="Empty: from now.")
    field_order = [
        "client", "effect", "scopes", "tool", "subject", "role", "tenant", "modes", "starts_at", "ends", "expires_at",
        "reason",
    ]  # fmt: skip

    def __init__(self, *given: Any, tenants: confinement.Tenants = None, **more: Any) -> None:
        """With `tenants`, for who is confined to those."""
        super().__init__(*given, **more)
        self.tenants = tenants
        if tenants is not None:
            theirs = [("", "choose a tenant")] * (len(tenants) != 1) + [(name, name) for name in sorted(tenants)]
            self.fields["tenant"] = forms.ChoiceField(label=self.fields["tenant"].label, choices=theirs)
        self.fields["ends"].label, self.fields["expires_at"].label = "ending", "at (UTC)"
        self.fields["reason"].label = "because"

    def clean_subject(self) -> Subject | None:
        uid = self.cleaned_data["subject"]
        if not uid:
            return None
        subject = Subject.objects.filter(uid=uid).first()
        if subject is None or not confinement.knows(self.tenants, subject):
            raise ValidationError(confinement.NO_USER)
        if subject.erased_at is not None:
            raise ValidationError("This user was erased.")
        return subject

    def first(self) -> list[forms.BoundField]:
        """Who may use what."""
        return [self[name] for name in ("client", "effect", "scopes")]

    def narrower(self) -> list[forms.BoundField]:
        """What makes a grant narrower."""
        return [self[name] for name in ("tool", "subject", "role", "tenant", "modes", "starts_at")]

    def last(self) -> list[forms.BoundField]:
        """Until when, and why."""
        return [self[name] for name in ("ends", "expires_at", "reason")]

    def narrowed(self) -> bool:
        """Whether any of those is set or wrong, or must be chosen, so that it must be in sight."""
        return self.tenants is not None or any(field.errors or field.value() for field in self.narrower())

    def proposal(self, now: datetime) -> Proposal:
        """What it says, made at this time. Call it on a valid form only."""
        data = self.cleaned_data
        return Proposal(
            kind="grant", effect=data["effect"], client=data["client"], scopes=tuple(data["scopes"]),
            subject=data["subject"], role=data["role"] or None, tenant=data["tenant"] or None, tool=data["tool"],
            modes=tuple(data["modes"]), starts_at=data["starts_at"], expires_at=self.end(now), days=self.days(),
        )  # fmt: skip

    def refuse(self, problems: Iterable[Problem | GrantError]) -> None:
        """Show what is wrong, at the field that it is about, with a link to what is in the way."""
        for problem in problems:
            words = problem.words if isinstance(problem, Problem) else str(problem)
            field = problem.field if problem.field in self.fields else None
            self.add_error(field, ValidationError(linked(words, problem)))


class AskForm(GrantForm):
    """The same, for a request, which is never for good."""

    ends = forms.ChoiceField(choices=ENDS[:-1], initial="90", widget=forms.RadioSelect)


def linked(words: str, problem: Problem | GrantError) -> Any:
    """The words, with a link to the grant or the request that is in the way."""
    found: Any = format_html("{}", words)
    if problem.grant:
        url = reverse("admin:clients_grant_change", args=[problem.grant])
        found = format_html('{} <a href="{}">Open grant {}</a>', found, url, problem.grant)
        if getattr(problem, "code", "duplicate") == "duplicate":
            extend = reverse("admin:clients_grant_act", args=[problem.grant, "extend"])
            found = format_html('{} <a href="{}">Extend it…</a>', found, extend)
    if getattr(problem, "request", None):
        number = getattr(problem, "request", None)
        url = reverse("admin:clients_accessrequest_change", args=[number])
        found = format_html('{} <a href="{}">Open request {}</a>', found, url, number)
    return found


def suggested(query: QueryDict) -> dict[str, Any]:
    """What a link suggests: ?client=<slug>&scope=<name>&tool=<backend>/<name>&subject=<uid>&tenant=&mode=. Only a
    suggestion; what does not fit is left out."""
    one = {name: _plain(query.get(name, "")) for name in ("client", "tool", "subject", "tenant", "role")}
    backend, _, tool = one["tool"].partition("/")
    found: dict[str, Any] = {
        "client": Client.objects.filter(slug=one["client"]).first(),
        "scopes": list(Scope.objects.filter(name__in=[_plain(name) for name in query.getlist("scope")[:50]])),
        "tool": Tool.objects.filter(backend__slug=backend, name=tool).exclude(status="retired").first(),
        "subject": one["subject"][:40], "tenant": one["tenant"], "role": one["role"],
        "modes": [mode for mode in query.getlist("mode")[:10] if mode in MODES],
    }  # fmt: skip
    if query.get("effect") in dict(EFFECTS):
        found["effect"] = query["effect"]
    return {name: value for name, value in found.items() if value}


def _plain(text: str) -> str:
    return text if len(text) <= LONGEST and text.isprintable() else ""
