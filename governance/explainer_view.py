"""Access > Can they?: the page of the explainer. It changes nothing, and its URL names a user by uid alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse, QueryDict
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_safe

from audit import record_words
from audit.reasons import REASONS
from audit.record_page import Pill
from audit.viewer import tenants_of
from clients import tenants
from clients.admin.grants import sentence, state
from clients.models import Client, Grant
from governance import asking, explainer, reach
from governance.asking import ToolField, UidField, mode_field, name_field
from governance.explainer import Answer, Asked
from governance.for_whom import ForWhomForm
from governance.snapshot import snapshots
from tools.models import SCOPE_NAME, Tool

MOST_SCOPES = 100
ALL, THESE = "all", "these"


class ScopesField(forms.CharField):
    """Scopes with spaces between, as in a token; cleans to a tuple."""

    def __init__(self, label: str, help_text: str) -> None:
        attrs = {"autocomplete": "off", "class": "mono"}
        super().__init__(
            label=label, required=False, max_length=4000, help_text=help_text, widget=forms.TextInput(attrs=attrs)
        )

    def clean(self, value: Any) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(super().clean(value).split()))
        if len(names) > MOST_SCOPES:
            raise ValidationError(f"At most {MOST_SCOPES} scopes.")
        for name in names:
            SCOPE_NAME(name)
        return names


class ExplainForm(ForWhomForm):
    """The question, as its URL says it."""

    client = forms.ChoiceField(label="Client")
    tool = ToolField()
    subject = UidField(required=False, help_text="Empty: somebody whom no grant names.")
    token = forms.ChoiceField(
        label="The token carries", required=False,
        choices=[(ALL, "all scopes that the tool needs"), (THESE, "exactly these scopes:")],
    )  # fmt: skip
    scopes = ScopesField("Scopes in the token", "With spaces between; only for “exactly these”.")
    mode = mode_field()
    handed = ScopesField("Scopes handed to the agent", "Empty: the agent was not handed fewer than the token has.")
    tenant = name_field("Tenant of the user")
    role = name_field("Roles of the user", help_text="With commas between.")

    def __init__(self, data: Mapping[str, Any] | None, may_look: bool) -> None:
        super().__init__(data, auto_id="ask_%s")
        self.may_look = may_look
        self.clients = {client.slug: client for client in Client.objects.all()}
        offered: Any = self.fields
        offered["client"].choices = [("", "choose a client"), *((c.slug, c.name) for c in self.clients.values())]
        offered["tool"].offer(asking.tools())

    def main(self) -> list[forms.BoundField]:
        """What every question says."""
        return [self[name] for name in ("client", "tool", "subject")]

    def more(self) -> list[forms.BoundField]:
        """What is taken as usual unless it is said."""
        return [self[name] for name in ("token", "scopes", "mode", "handed", "tenant", "role")]

    def narrowed(self) -> bool:
        """Whether any of those is said or wrong, so that it must be in sight."""
        usual = {"token": ALL, "mode": "interactive"}
        return any(field.errors or field.value() not in (None, "", usual.get(field.name)) for field in self.more())

    def asked(self) -> Asked:
        """The question. Call it on a valid form only."""
        data = self.cleaned_data
        client, tool, user = self.clients[data["client"]], data["tool"], data["subject"]
        exactly = data["token"] == THESE or bool(data["scopes"])
        return Asked(
            client.pk, client.slug, client.name, tool.backend_id, tool.backend, tool.backend_name, tool.name,
            user=user.uid if user else None, issuer=user.issuer if user else None, state=asking.state_of(user),
            tenant=data["tenant"] or None, roles=tuple(data["role"]), scopes=data["scopes"] if exactly else None,
            mode=data["mode"] or "interactive", handed=data["handed"] or None,
        )  # fmt: skip


def members_of(query: QueryDict) -> dict[str, str] | None:
    """What the URL asks; None where it asks nothing. Roles and scopes may be repeated; who gives scopes means those."""
    if not {"client", "tool"} & query.keys():
        return None
    found = {key: value for key, value in query.items() if isinstance(value, str)}
    found |= {"scopes": " ".join(query.getlist("scopes")), "role": ",".join(query.getlist("role"))}
    if found["scopes"].strip():
        found["token"] = THESE
    return found


@dataclass(frozen=True, slots=True)
class GrantLine:
    """A grant in its sentence, with its state and where it is."""

    grant: Grant
    sentence: str
    pill: Pill
    url: str


@dataclass(frozen=True, slots=True)
class Help:
    """What would help, and the pages where it is done: label and URL."""

    words: str
    buttons: Sequence[tuple[str, str]] = ()


class ExplainerViews:
    """The page, for one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        view = self.site.admin_view(require_safe(self.explain))
        return [path("access/explain/", view, name="access_explain")]

    def explain(self, request: HttpRequest) -> HttpResponse:
        """The question, and its answer if one was asked."""
        if not request.user.has_perm("clients.view_grant"):
            raise PermissionDenied
        data = members_of(request.GET)
        form = ExplainForm(data, request.user.has_perm("audit.view_subject"))
        form.confine(tenants_of(request.user))
        context: dict[str, Any] = {
            **self.site.each_context(request), "title": "Can they use it?", "form": form,
            "plain_url": reverse("admin:access_explain"),
        }  # fmt: skip
        if form.is_valid():
            context |= answered(request.user, form.asked())
        status = 400 if data is not None and not form.is_valid() else 200
        return TemplateResponse(request, "admin/explain.html", context, status=status)


def answered(user: Any, asked: Asked) -> dict[str, Any]:
    """The answer, for the page."""
    snapshot = snapshots.at_head()
    answer = explainer.explain(snapshot, asked)
    return {
        "title": f"Can {explainer.whom(asked)} use {asked.tool} from {asked.client_name}?",
        "asked": asked,
        "answer": answer,
        "pill": pill_of(answer),
        "version": snapshot.version,
        "help": help_for(user, asked, answer),
        "decided": lines(answer.decided, user),
        "outweighed": lines(answer.outweighed, user),
        "near": lines(answer.near, user),
    }


def pill_of(answer: Answer) -> Pill:
    """The answer in two words."""
    if answer.allowed:
        return Pill("flag", "Allowed, flagged") if answer.flagged else Pill("allow", "Allowed")
    return Pill("deny", f"Denied: {explainer.title_of(answer.reason).lower()}")


def lines(numbers: Sequence[int], user: Any) -> list[GrantLine]:
    """Those of these grants that the viewer sees, in their order, at most MOST_SHOWN."""
    seen = Grant.objects.filter(tenants.seen(tenants_of(user)), pk__in=numbers)
    theirs = set(seen.values_list("pk", flat=True))
    shown = [number for number in numbers if number in theirs][: explainer.MOST_SHOWN]
    found = seen.select_related("client", "tool").prefetch_related("scopes").in_bulk(shown)
    made = []
    for number in shown:
        if (grant := found.get(number)) is not None:
            kind, words = state(grant)
            url = reverse("admin:clients_grant_change", args=[grant.pk])
            made.append(GrantLine(grant, sentence(grant), Pill(kind, words.capitalize()), url))
    return made


def help_for(user: Any, asked: Asked, answer: Answer) -> Help | None:
    """What would help with a refusal; None for a yes."""
    if answer.allowed:
        return None
    match answer.reason:
        case "not_granted":
            return _grant(user, asked, answer)
        case "grant_denied":
            number = answer.decided[0]
            url = reverse("admin:clients_grant_change", args=[number])
            return Help("A block beats every grant. Whoever made it had a reason: read it before you revoke it.",
                        [(f"Look at grant {number}", url)])  # fmt: skip
        case "client_suspended" | "subject_blocked" | reach.BACKEND_DISABLED:
            words = "Somebody stopped it. See who and why; when that is over, it can be let on again."
            return Help(words, [("Look at what is stopped", reverse("admin:access_stops"))])
        case "client_unknown" | reach.NO_ISSUER:
            words = "The client needs an OAuth client id at an issuer that is enabled and that the backend accepts."
            page = reverse("admin:clients_client_change", args=[asked.client_id])
            return Help(words, [(f"Look at {asked.client_name}", page)])
        case "tool_suspended" | "tool_unknown":
            return _tool(asked)
        case "delegation_exceeded":
            return Help("The agent is handed the scopes by whoever sent it, or it stays refused.")
    return Help(record_words.REMEDIES[REASONS[answer.reason].remedy] or "Nothing that staff could do.")


def _grant(user: Any, asked: Asked, answer: Answer) -> Help:
    """To the grant that would help, or to where it is asked for."""
    missing = answer.decision.missing if answer.decision else ()
    wanted = asking.suggestion(asked.client, missing, asked.backend, asked.tool, subject=asked.user)
    page, verb = asking.grant_url(user)
    what = " ".join(missing) or f"the tool {asked.tool}"
    return Help("Grant it, or leave it refused.", [(f"{verb} {what}…", f"{page}?{asking.query_of(wanted)}")])


def _tool(asked: Asked) -> Help:
    tool = Tool.objects.filter(backend=asked.backend_id, name=asked.tool).first()
    status = tool.status if tool else ""
    words = {
        "pending": "It was never approved. Somebody must look at what it does, and approve it.",
        "suspended": "It was stopped, or it changed since it was approved. Then somebody has to decide.",
        "retired": "It was retired for good.",
    }.get(status, "The backend has no such tool any more.")
    buttons = [(f"Look at {asked.tool}", reverse("admin:tools_tool_change", args=[tool.pk]))] if tool else []
    if status in ("pending", "suspended"):
        buttons.append(("Inbox", reverse("admin:inbox")))
    return Help(words, buttons)
