"""Grants: made, extended and revoked through clients.grants, never edited, never deleted. Each asks for a reason
and offers an expiry; nothing changes on GET."""

from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import DataError, IntegrityError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.html import format_html

from audit.admin_base import Action, BaseAdmin, PlainForm, ReasonField, Refused, actor_of, words_of
from audit.models import Subject
from audit.templatetags.muniment import day, exact, exactly, when
from clients import grants
from clients.grants import Actor, GrantError
from clients.models import MODES, Client, Grant
from tools.admin import pill
from tools.models import Scope, Tool

ENDS = [
    ("30", "in 30 days"),
    ("90", "in 90 days"),
    ("365", "in a year"),
    ("on", "at a time of your choice"),
    ("never", "never"),
]
EFFECTS = [
    ("allow", "may use"),
    ("flag", "may use, and each call is marked for review"),
    ("deny", "must not use"),
]
DATETIME = forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M")


def sentence(grant: Grant) -> str:
    """`Claude may use memory:read for everyone`, `No client may use memory:write in background mode`."""
    who, may = str(grant.client or "Any client"), "may use"
    if grant.effect == "deny":
        who, may = (who, "must not use") if grant.client else ("No client", may)
    names = ", ".join(scope.name for scope in grant.scopes.all())
    tool = f"the tool {grant.tool}" if grant.tool else ""
    what = " in ".join(filter(None, [names, tool])) or "anything"
    limits = [
        f"for user {grant.subject_id}" if grant.subject_id else "",
        f"for the role {grant.role}" if grant.role else "",
        f"in tenant {grant.tenant}" if grant.tenant else "",
        f"in {' or '.join(grant.modes)} mode" if grant.modes else "",
    ]
    whom = " ".join(filter(None, limits)) or "for everyone"
    return f"{who} {may} {what} {whom}" + (", each call marked for review" if grant.effect == "flag" else "")


def state(grant: Grant) -> tuple[str, str]:
    """(kind of pill, words)."""
    now = timezone.now()
    if grant.revoked_at:
        return "plain", "revoked"
    if grant.expires_at and grant.expires_at <= now:
        return "plain", "expired"
    if grant.starts_at and grant.starts_at > now:
        return "flag", "not yet"
    return {"allow": ("allow", "active"), "flag": ("flag", "active, flags"), "deny": ("deny", "blocks")}[grant.effect]


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

    def end(self) -> datetime | None:
        """When it ends; None for never. Call it on a valid form only."""
        return end_of(self.cleaned_data)


def end_of(data: dict[str, Any]) -> datetime | None:
    """The end that a valid EndsForm says."""
    match data["ends"]:
        case "never":
            return None
        case "on":
            return data["expires_at"]
        case days:
            return timezone.now() + timedelta(days=int(days))


class GrantForm(EndsForm):
    """A new grant, read as a sentence: who may use what, for whom, until when, because."""

    client = forms.ModelChoiceField(Client.objects.all(), required=False, empty_label="any client")
    effect = forms.ChoiceField(
        label="Effect", initial="allow", widget=forms.RadioSelect,
        choices=EFFECTS,
    )  # fmt: skip
    scopes = forms.ModelMultipleChoiceField(
        Scope.objects.all(), required=False, widget=forms.CheckboxSelectMultiple,
        help_text="A block without scopes blocks everything that it matches.",
    )  # fmt: skip
    tool = forms.ModelChoiceField(
        Tool.objects.select_related("backend"), required=False, empty_label="any tool", label="Only in the tool"
    )
    subject = forms.CharField(
        label="Only for the user", required=False, max_length=40,
        widget=forms.TextInput(attrs={"placeholder": "usr_…", "autocomplete": "off"}),
    )  # fmt: skip
    role = forms.CharField(label="Only for the role", required=False, max_length=255)
    tenant = forms.CharField(label="Only in the tenant", required=False, max_length=255)
    modes = forms.MultipleChoiceField(
        label="Only as", required=False, choices=[(m, m) for m in MODES], widget=forms.CheckboxSelectMultiple,
        help_text="None ticked: in every mode.",
    )  # fmt: skip
    starts_at = forms.DateTimeField(label="It starts, in UTC", required=False, widget=DATETIME, help_text="Empty: now.")
    field_order = [
        "client", "effect", "scopes", "ends", "expires_at", "reason", "tool", "subject", "role", "tenant", "modes",
        "starts_at",
    ]  # fmt: skip

    def clean_subject(self) -> Subject | None:
        uid = self.cleaned_data["subject"]
        if not uid:
            return None
        subject = Subject.objects.filter(uid=uid).first()
        if subject is None:
            raise ValidationError("There is no user with this uid.")
        return subject

    def main(self) -> list[forms.BoundField]:
        """What every grant says."""
        return [self[name] for name in ("client", "effect", "scopes", "ends", "expires_at", "reason")]

    def narrower(self) -> list[forms.BoundField]:
        """What makes a grant narrower."""
        return [self[name] for name in ("tool", "subject", "role", "tenant", "modes", "starts_at")]

    def narrowed(self) -> bool:
        """Whether any of those is set or wrong, so that it must be in sight."""
        return any(field.errors or field.value() for field in self.narrower())


def prefilled(query: QueryDict) -> dict[str, Any]:
    """What a link from a refusal suggests: ?client=<slug>&scope=<name>; only a suggestion, saved by POST alone."""
    return {
        "client": Client.objects.filter(slug=query.get("client", "")).first(),
        "scopes": list(Scope.objects.filter(name__in=query.getlist("scope")[:50])),
    }


@admin.register(Grant)
class GrantAdmin(BaseAdmin):
    """Who may use what."""

    intro = "Who may use what. Nothing is allowed that is not granted; a block beats every grant."
    empty = "No grant yet, so every call is refused. Grant a client the scopes that its tools need."
    list_display = ["says", "effect_pill", "ends", "because", "made"]
    list_display_links = ["says"]
    list_filter = ["effect", "client", ("revoked_at", admin.EmptyFieldListFilter)]
    list_select_related = ["client", "tool"]
    search_fields = ["client__name", "client__slug", "scopes__name", "reason"]
    search_help_text = "A client, a scope, or words of the reason"
    can_act = [
        Action("extend", "Extend", "It ends at another time. Its reason and its scopes stay as they are.",
               "extend", lambda g: g.revoked_at is None, form=EndsForm, in_transaction=False),
        Action("revoke", "Revoke", "From the next call on nothing is decided by it any more. That cannot be undone.",
               "revoke", lambda g: g.revoked_at is None, danger=True, in_transaction=False),
    ]  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("scopes")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """What a grant says never changes: what differs is another grant."""
        return False

    def name_of(self, obj: Grant) -> str:
        return sentence(obj)

    @admin.display(description="grant")
    def says(self, grant: Grant) -> str:
        return sentence(grant)

    @admin.display(description="state", ordering="effect")
    def effect_pill(self, grant: Grant) -> str:
        kind, words = state(grant)
        return pill(words, kind)

    @admin.display(description="ends", ordering="expires_at")
    def ends(self, grant: Grant) -> str:
        return day(grant.expires_at, "never")

    @admin.display(description="because")
    def because(self, grant: Grant) -> str:
        return grant.reason

    @admin.display(description="made", ordering="created_at")
    def made(self, grant: Grant) -> str:
        by = format_html('<span class="by quiet small"> by {}</span>', grant.created_by) if grant.created_by else ""
        return format_html("{}{}", when(grant.created_at), by)

    # --- making one --------------------------------------------------------------------------------------------

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """The page for granting."""
        if not self.may(request, "add"):
            raise PermissionDenied
        if request.method == "POST":
            form = GrantForm(request.POST)
            if form.is_valid() and (made := self._create(request, form)) is not None:
                messages.success(request, f"{sentence(made)}: in force from the next call on.")
                return HttpResponseRedirect(self.url_of(made))
        else:
            form = GrantForm(initial=prefilled(request.GET))
        context = {**self.admin_site.each_context(request), "opts": self.opts, "form": form, "title": "New grant"}
        return TemplateResponse(request, "admin/grant_add.html", context)

    def _create(self, request: HttpRequest, form: GrantForm) -> Grant | None:
        """Make it; what is refused becomes an error of the form."""
        data = form.cleaned_data
        given = ("client", "scopes", "effect", "subject", "role", "tenant", "tool", "modes", "starts_at", "reason")
        try:
            return grants.create(
                actor=Actor(*actor_of(request)), expires_at=form.end(), **{name: data[name] for name in given}
            )
        except GrantError as error:
            form.add_error(None, str(error))
        except (IntegrityError, DataError) as error:
            form.add_error(None, words_of(error))
        return None

    # --- one grant ---------------------------------------------------------------------------------------------

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """One grant, to look at; a POST changes nothing."""
        grant = self.get_object(request, object_id)
        if grant is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined]
        if not self.has_view_permission(request, grant) or request.method not in ("GET", "HEAD"):
            raise PermissionDenied
        kind, words = state(grant)
        context = {
            **self.admin_site.each_context(request), "opts": self.opts, "title": sentence(grant), "grant": grant,
            "pill": {"kind": kind, "words": words.capitalize()}, "facts": self._facts(grant),
            "act_buttons": self.offered(request, grant),
        }  # fmt: skip
        return TemplateResponse(request, "admin/grant.html", context)

    def _facts(self, grant: Grant) -> list[tuple[str, Any]]:
        effect = {"allow": "Allows", "flag": "Allows, and marks each call for review", "deny": "Blocks"}[grant.effect]
        return [
            ("Client", grant.client or "any client"),
            ("Effect", effect),
            ("Scopes", ", ".join(scope.name for scope in grant.scopes.all()) or "every one"),
            ("Tool", grant.tool or "any tool"),
            ("User", grant.subject_id or "everyone"),
            ("Role", grant.role or "any role"),
            ("Tenant", grant.tenant or "any tenant"),
            ("Agent mode", ", ".join(grant.modes) or "every mode"),
            ("Reason", grant.reason),
            ("Made", exactly(grant.created_at)),
            ("By", grant.created_by or "not recorded here; the log knows"),
            ("Starts", exactly(grant.starts_at, "when it was made")),
            ("Ends", exactly(grant.expires_at, "never")),
            ("Revoked", exactly(grant.revoked_at, "no")),
        ]

    def extend(self, request: HttpRequest, grant: Grant, data: dict[str, Any]) -> str:
        """Another end, through the only writer of grants."""
        self._change(request, grant, data, expires_at=end_of(data))
        return f"{sentence(grant)}: it now ends {f'on {exact(grant.expires_at)}' if grant.expires_at else 'never'}."

    def revoke(self, request: HttpRequest, grant: Grant, data: dict[str, Any]) -> str:
        """Ended, through the only writer of grants."""
        self._change(request, grant, data)
        return f"Revoked: {sentence(grant)}. The next call is decided without it."

    def _change(self, request: HttpRequest, grant: Grant, data: dict[str, Any], **ends: Any) -> None:
        """Check again that they may, then change; what is refused is said on the form."""
        if not self.may(request, "change"):
            raise PermissionDenied
        actor, reason = Actor(*actor_of(request)), data["reason"]
        try:
            if ends:
                grants.extend(grant, actor=actor, reason=reason, **ends)
            else:
                grants.revoke(grant, actor=actor, reason=reason)
        except GrantError as error:
            raise Refused(str(error)) from None
