"""The page of the inbox, and its dialogs: what waits for a decision about unknown clients and tools, in sentences, each
decided in one step with a reason. Nothing changes on GET."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.text import slugify
from django.views.decorators.http import require_http_methods, require_safe

from audit.admin_base import PlainForm, ReasonField, ReasonForm
from audit.models import Sighting
from clients import inbox, metadata
from clients.inbox import InboxError
from clients.models import Client, ClientMetadata, Issuer
from tools.difference import visible
from tools.models import SLUG, Scope, Tool

MOST_LISTED = 100  # of each section
KINDS = ("client", "tool")
STARTS = [("active", "active"), ("suspended", "suspended: every call is refused until somebody activates it")]


class AttachForm(PlainForm):
    """To which client the id belongs, and how that is known."""

    client = forms.ModelChoiceField(Client.objects.order_by("name", "slug"), empty_label="choose…")
    reason = ReasonField()


class NewClientForm(PlainForm):
    """A client for the id."""

    name = forms.CharField(max_length=120)
    slug = forms.CharField(
        max_length=63,
        validators=[SLUG],
        help_text="How records name it, for ever. Lower-case letters, digits, hyphens.",
    )
    kind = forms.ChoiceField(choices=Client.KINDS, initial="mcp")
    status = forms.ChoiceField(label="It starts", choices=STARTS, widget=forms.RadioSelect)
    reason = ReasonField()


class AddToolForm(PlainForm):
    """What the tool does and needs, as its backend did not say."""

    access = forms.ChoiceField(choices=Tool.ACCESS, widget=forms.RadioSelect)
    scopes = forms.ModelMultipleChoiceField(
        Scope.objects.all(), required=False, widget=forms.CheckboxSelectMultiple,
        help_text="None ticked: it needs a grant that names it.",
    )  # fmt: skip
    description = forms.CharField(required=False, max_length=2000, widget=forms.Textarea(attrs={"rows": 2}))
    status = forms.ChoiceField(label="It starts", choices=STARTS, widget=forms.RadioSelect)
    reason = ReasonField()


@dataclass(frozen=True, slots=True)
class Dialog:
    """One decision about what was seen: for which kinds of sighting, who may, what is asked, what it means."""

    kinds: tuple[str, ...]
    permission: str
    form: type[forms.Form]
    label: str
    explanation: str
    ignored: bool = False
    needs_issuer: bool = False


DIALOGS = {
    "attach": Dialog(
        ("client",), "clients.change_client", AttachForm, "Attach to a client",
        "From the next call on, calls with this id are the client's: its grants decide them.", needs_issuer=True,
    ),
    "client": Dialog(
        ("client",), "clients.add_client", NewClientForm, "New client",
        "A client of its own. It may use nothing until it is granted something.", needs_issuer=True,
    ),
    "tool": Dialog(
        ("tool",), "tools.add_tool", AddToolForm, "Add the tool",
        "The backend has not declared it, so you say what it does and needs. If the backend declares later that it does"
        " or needs something else, it is suspended until somebody approves that.",
    ),
    "ignore": Dialog(
        ("client", "tool"), "audit.change_sighting", ReasonForm, "Ignore",
        "It leaves this page. Its calls go on being refused and counted.",
    ),
    "heed": Dialog(
        ("client", "tool"), "audit.change_sighting", ReasonForm, "Put back", "It waits here for a decision again.",
        ignored=True,
    ),
}  # fmt: skip


class FindForm(forms.Form):
    """Part of a name."""

    q = forms.CharField(label="Name", required=False, max_length=255, widget=forms.TextInput(attrs={"type": "search"}))


@dataclass(frozen=True, slots=True)
class Seen:
    """A sighting as the page shows it."""

    sighting: Sighting
    sentence: str
    calls_url: str
    attachable: bool
    buttons: list[tuple[str, str]]
    published: ClientMetadata | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """A tool that changed, in a sentence."""

    tool: Tool
    sentence: str
    at: datetime


class InboxViews:
    """The pages, for one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        wrap = self.site.admin_view
        decide = require_http_methods(["GET", "HEAD", "POST"])(self.dialog)
        return [
            path("inbox/", wrap(require_safe(self.page)), name="inbox"),
            path("inbox/<int:number>/<slug:what>/", wrap(decide), name="inbox_decide"),
        ]

    def page(self, request: HttpRequest) -> HttpResponse:
        """What waits, or with `show=ignored` what does not; `q` narrows the unknown by a part of their name."""
        if not request.user.has_perm("audit.view_sighting"):
            raise PermissionDenied
        ignored = request.GET.get("show") == "ignored"
        find = FindForm(request.GET)
        part = find.cleaned_data["q"] if find.is_valid() else ""
        clients, tools = (self._seen(request, kind, ignored, part) for kind in KINDS)
        context = {
            **self.site.each_context(request), "title": "Inbox", "ignored": ignored, "find": find, "part": part,
            "clients": clients, "tools": tools, "most": MOST_LISTED,
            "full": max(len(clients), len(tools)) == MOST_LISTED,
        }  # fmt: skip
        if not ignored:
            context |= self._declared(request)
            context["hidden"] = sum(inbox.unknown(kind, ignored=True)[:MOST_LISTED].count() for kind in KINDS)
        return TemplateResponse(request, "admin/inbox.html", context, status=200 if find.is_valid() else 400)

    def _seen(self, request: HttpRequest, kind: str, ignored: bool, part: str) -> list[Seen]:
        found = inbox.unknown(kind, ignored)
        found = found.filter(name__icontains=part) if part else found
        now, names = timezone.now(), inbox.backend_names()
        issuers = set(Issuer.objects.values_list("issuer", flat=True))
        shown = [(one, one.kind != "client" or one.source in issuers) for one in found[:MOST_LISTED]]
        published = metadata.of(one.name for one, _ in shown) if kind == "client" else {}
        return [
            Seen(
                one, inbox.item_of(one, names, now).sentence, _calls(one), ours, _buttons(request, one, ours),
                published.get(one.name),
            )
            for one, ours in shown
        ]  # fmt: skip

    def _declared(self, request: HttpRequest) -> dict[str, Any]:
        """What backends declared: only for those who may see tools."""
        if not request.user.has_perm("tools.view_tool"):
            return {}
        return {
            "pending": inbox.pending().prefetch_related("scopes")[:MOST_LISTED],
            "changed": _changed(inbox.changed()),
            "drifted": _changed(inbox.drifted()),
        }

    def dialog(self, request: HttpRequest, number: int, what: str) -> HttpResponse:
        """GET asks, POST does."""
        dialog, one = DIALOGS.get(what), Sighting.objects.filter(pk=number).first()
        if dialog is None:
            raise Http404
        # Permission first: who may not decide learns nothing of what is there.
        if not request.user.has_perm(dialog.permission) or not request.user.has_perm("audit.view_sighting"):
            raise PermissionDenied
        if one is None or one.kind not in dialog.kinds or (one.ignored_at is not None) != dialog.ignored:
            messages.warning(request, "That is not in the inbox any more: somebody decided on it a moment ago.")
            return HttpResponseRedirect(reverse("admin:inbox"))
        form = dialog.form(request.POST) if request.method == "POST" else dialog.form(initial=_suggested(one))
        if request.method == "POST" and form.is_valid():
            try:
                messages.success(request, DO[what](one, form.cleaned_data, request.user))
                return HttpResponseRedirect(reverse("admin:inbox"))
            except InboxError as error:
                form.add_error(error.field if error.field in form.fields else None, str(error))
        return TemplateResponse(request, "admin/inbox_dialog.html", self._asked(request, one, dialog, form))

    def _asked(self, request: HttpRequest, one: Sighting, dialog: Dialog, form: forms.Form) -> dict[str, Any]:
        issuer = inbox.issuer_of(one) if one.kind == "client" else None
        return {
            **self.site.each_context(request), "title": f"{dialog.label}: {visible(one.name)}", "sighting": one,
            "dialog": dialog, "form": form, "issuer": issuer, "backend": inbox.backend_names().get(one.source),
            "refused": dialog.needs_issuer and issuer is None,
            "published": metadata.of([one.name]).get(one.name) if one.kind == "client" else None,
        }  # fmt: skip


def _changed(found: QuerySet[Tool]) -> list[Changed]:
    return [
        Changed(tool, inbox.changed_words(tool), tool.approved.changed_at or tool.approved.at)
        for tool in found[:MOST_LISTED]
    ]


def _calls(one: Sighting) -> str:
    """Where the calls are that were counted. Those of an unknown client are found by their reason: the log's search
    knows registered clients."""
    query = {"window": "30d", "reason": f"{one.kind}_unknown"}
    if one.kind == "tool":
        query |= {"backend": one.source, "tool": one.name}
    return f"{reverse('admin:records')}?{urlencode(query)}"


def _buttons(request: HttpRequest, one: Sighting, ours: bool) -> list[tuple[str, str]]:
    """Label and URL of what the viewer may decide of it."""
    return [
        (f"{dialog.label}…", reverse("admin:inbox_decide", args=[one.pk, what]))
        for what, dialog in DIALOGS.items()
        if one.kind in dialog.kinds
        and (one.ignored_at is not None) == dialog.ignored
        and (ours or not dialog.needs_issuer)
        and request.user.has_perm(dialog.permission)
    ]


def _suggested(one: Sighting) -> dict[str, Any]:
    """A name and a slug from the id, to be bettered."""
    return {"name": one.name[:120], "slug": slugify(one.name)[:63].strip("-_").replace("_", "-"), "kind": "mcp"}


def _attach(one: Sighting, data: dict[str, Any], user: Any) -> str:
    client = data["client"]
    inbox.attach(one.pk, client, user=user, reason=data["reason"])
    stopped = "" if client.status == "active" else f" {client} is {client.status}, so its calls stay refused."
    return f"{visible(one.name)} is {client}'s from the next call on.{stopped}"


def _make_client(one: Sighting, data: dict[str, Any], user: Any) -> str:
    made = inbox.make_client(one.pk, user=user, **data)
    return f"{made} is a client, {made.status}. It may use nothing yet: grant it what it needs."


def _add_tool(one: Sighting, data: dict[str, Any], user: Any) -> str:
    made = inbox.add_tool(one.pk, user=user, **data)
    return f"{made} is added, {made.status}."


def _ignore(one: Sighting, data: dict[str, Any], user: Any) -> str:
    inbox.ignore(one.pk, user=user, reason=data["reason"])
    return f"{visible(one.name)} is ignored: its calls go on being refused and counted."


def _heed(one: Sighting, data: dict[str, Any], user: Any) -> str:
    inbox.heed(one.pk, user=user, reason=data["reason"])
    return f"{visible(one.name)} is back in the inbox."


DO: dict[str, Callable[[Sighting, dict[str, Any], Any], str]] = {
    "attach": _attach, "client": _make_client, "tool": _add_tool, "ignore": _ignore, "heed": _heed,
}  # fmt: skip
