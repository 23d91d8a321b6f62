"""Limits: made, changed and deleted through clients.limit_writing. What a limit counts never changes; its page shows
who is near or over it."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

from audit.admin_base import Action, ChoicesField, PolicyAdmin, PolicyForm, Refused, actor_of
from audit.viewer import tenants_of
from clients import limit_writing
from clients.admin.grant_form import ClientField, ToolField
from clients.buckets import Level
from clients.grants import Actor
from clients.limit_pressure import Near, named, near
from clients.limit_words import sentence
from clients.limit_writing import LimitError
from clients.limits import Away
from clients.models import MODES, Client, Limit
from tools.admin import pill
from tools.models import Tool

WHAT = ("per", "client", "tool", "tenant", "modes")  # what makes a limit another one
MOST_SHOWN = 50
OUTAGE = {"access": "destructive tools refused", "deny": "refused", "allow": "let through"}
AWAY = "Calls cannot be counted now: Redis is away."


class LimitForm(PolicyForm):
    """A limit, with what the writer of limits says of it at the field that it is about."""

    client = ClientField(label="Only through the client")
    tool = ToolField(label="Only of the tool")
    modes = ChoicesField(
        MODES, label="Only in the agent modes", required=False,
        help_text="None ticked: every mode, counted together. Each that is ticked is counted by itself.",
    )  # fmt: skip

    class Meta:
        model = Limit
        fields = "__all__"
        labels: ClassVar = {"burst": "At once"}

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        if "tenant" in self.fields:
            self.fields["tenant"].label = "Only in the tenant"
            self.fields["tenant"].help_text = "Empty: every tenant. Each is counted by itself."

    def clean(self) -> dict[str, Any] | None:
        data = super().clean()
        if self.errors:
            return data
        given = {name: value for name, value in self.cleaned_data.items() if name != "change_reason"}
        stored = {name: getattr(self.instance, name) for name in WHAT if name not in given}
        wanted = Limit(pk=self.instance.pk, **given, **stored)
        try:
            limit_writing.tidy(wanted)
            limit_writing.refuse_same(wanted)
        except LimitError as error:
            self.add_error(error.field if error.field in self.fields else None, str(error))
        return data

    def _get_validation_exclusions(self) -> set[str]:
        """Without what the database would say of two that count the same: the writer of limits says it in words."""
        return {*super()._get_validation_exclusions(), "per"}  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Line:
    """Somebody who is near or over a limit: in words, their page where they are a user, and how far."""

    who: str
    url: str
    more: str
    level: Level
    pill: tuple[str, str]


@admin.register(Limit)
class LimitAdmin(PolicyAdmin):
    """How often something may be called."""

    form = LimitForm
    intro = "How often something may be called. What is beyond a limit is refused, and says when to come back."
    empty = "No limit yet: whatever is granted may be called as often as anybody likes."
    change_form_template = "admin/limit.html"
    empty_value_display = "all of them"  # only how many at once can be empty
    list_display = ["says", "now", "outage", "because"]
    list_display_links = ["says"]
    list_filter = ["per"]
    list_select_related = ["client", "tool"]
    can_act = [
        Action("delete", "Delete", "From the next call on nothing is refused by it, and nothing is counted.",
               "remove", danger=True, permission="delete")
    ]  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Limit]:
        """Who is confined to tenants sees what holds for their users: theirs, and those of every tenant."""
        tenants = tenants_of(request.user)
        found: QuerySet[Limit] = super().get_queryset(request).select_related("client", "tool")
        return found if tenants is None else found.filter(Q(tenant__in=tenants) | Q(tenant=None))

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Of one that is there: what it counts, in words."""
        counted = ["of_client", "of_tool", "of_tenant", "of_modes"] if obj else WHAT[1:]
        return ["per", "count", "period", "burst", *counted, "on_outage"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ["per", "of_client", "of_tool", "of_tenant", "of_modes"] if obj else []

    @admin.display(description="only through the client")
    def of_client(self, limit: Limit) -> str:
        return str(limit.client or "any client")

    @admin.display(description="only of the tool")
    def of_tool(self, limit: Limit) -> str:
        return f"{limit.tool.name} of {limit.tool.backend}" if limit.tool else "any tool"

    @admin.display(description="only in the tenant")
    def of_tenant(self, limit: Limit) -> str:
        return limit.tenant or "every tenant, each counted by itself"

    @admin.display(description="only in the agent modes")
    def of_modes(self, limit: Limit) -> str:
        apart = ", each counted by itself" if len(limit.modes) > 1 else ""
        return ", ".join(limit.modes) + apart if limit.modes else "every mode, counted together"

    def name_of(self, obj: Limit) -> str:
        return sentence(obj)

    @admin.display(description="limit")
    def says(self, limit: Limit) -> str:
        """With its number, by which records name it."""
        return format_html('{} <span class="quiet small">limit {}</span>', sentence(limit), str(limit.pk))

    @admin.display(description="now")
    def now(self, limit: Limit) -> str:
        found = getattr(limit, "pressure", None)
        return pill("calls are not counted", "deny") if found is None else pill(*summary(found))

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """The list, with how each limit does at this moment."""
        made: Any = super().get_changelist_instance(request)
        for limit in made.result_list:
            limit.pressure = pressure(limit, request.user)
        return made

    @admin.display(description="when calls cannot be counted")
    def outage(self, limit: Limit) -> str:
        return OUTAGE[limit.on_outage]

    @admin.display(description="because")
    def because(self, limit: Limit) -> str:
        return limit.reason

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Through the only writer of limits, which asks again whether they may."""
        write = limit_writing.change if change else limit_writing.create
        write(obj, actor=Actor(*actor_of(request)), reason=form.cleaned_data["change_reason"])

    def remove(self, request: HttpRequest, limit: Limit, data: dict[str, Any]) -> str:
        """Through the only writer of limits."""
        words = sentence(limit)
        try:
            limit_writing.delete(limit, actor=Actor(*actor_of(request)), reason=data["reason"])
        except LimitError as error:
            raise Refused(str(error)) from None
        return f"Deleted: {words}. The next call is decided without it."

    def changeform_view(
        self, request: HttpRequest, object_id: Any = None, form_url: str = "", extra_context: Any = None
    ) -> Any:
        """The form, with who is near or over."""
        context: dict[str, Any] = {**(extra_context or {})}
        limit = self.get_object(request, object_id) if object_id is not None else None
        if limit is not None and self.has_view_permission(request, limit):
            found = pressure(limit, request.user)
            context |= {
                "limit": limit, "away": AWAY if found is None else "",
                "lines": lines(limit, (found or [])[:MOST_SHOWN], request.user),
                "left_out": max(0, len(found or []) - MOST_SHOWN),
            }  # fmt: skip
        return super().changeform_view(request, object_id, form_url, context)


def pressure(limit: Limit, user: Any) -> list[Near] | None:
    """Who is near or over it, of whom the viewer may see; None where calls cannot be counted now."""
    try:
        return near(limit, tenants_of(user))
    except Away:
        return None


def summary(found: list[Near]) -> tuple[str, str]:
    """In how many places it is nearly used up: words, and the kind of pill."""
    over = sum(one.level.full for one in found)
    parts = [f"{over:,} at the limit" if over else "", f"{len(found) - over:,} near it" if len(found) > over else ""]
    return ", ".join(filter(None, parts)) or "nobody near it", "deny" if over else "flag" if found else "plain"


def lines(limit: Limit, found: list[Near], user: Any) -> list[Line]:
    """Those, in words."""
    may_look = user.has_perm("audit.view_record")
    tools = {str(tool.pk): tool.name for tool in Tool.objects.filter(limits=limit)}
    if limit.per == "tool":
        numbers = [one.counted.what for one in found if one.counted.what.isdecimal() and len(one.counted.what) < 19]
        tools |= {str(tool.pk): tool.name for tool in Tool.objects.filter(pk__in=numbers)}
    names = dict(Client.objects.values_list("slug", "name"))
    return [_line(limit, one, tools, names, may_look) for one in found]


def _line(limit: Limit, one: Near, tools: dict[str, str], names: dict[str, str], may_look: bool) -> Line:
    counted, url = one.counted, ""
    what, _, slug = counted.what.partition(" ")
    if limit.per in ("subject", "subject_client"):
        url = reverse("admin:timeline", args=["user", what]) if may_look and what.startswith("usr_") else ""
    known = {"client": names.get(what), "tool": tools.get(what), "tenant": counted.tenant}
    who = known.get(limit.per) or what
    more = [
        f"through {names.get(slug, slug)}" if slug else "",
        f"tenant {counted.tenant}" if counted.tenant is not None and limit.per != "tenant" else "",
        f"{counted.mode} mode" if counted.mode else "",
    ]
    told = ("deny", "at the limit") if one.level.full else ("flag", "near it")
    return Line(who, url, ", ".join(filter(None, more)), one.level, told)


def waiting(user: Any, most: int) -> list[tuple[Limit, str]]:
    """Limits that somebody is near or over, at most so many, each with how many are; for Home. None while calls cannot
    be counted, which an alert says."""
    found: list[tuple[Limit, str]] = []
    tenants = tenants_of(user)
    seen = Limit.objects.select_related("client", "tool").order_by("pk")
    if tenants is not None:
        seen = seen.filter(Q(tenant__in=tenants) | Q(tenant=None))
    with suppress(Away):
        for limit in named(list(seen)):
            if held := near(limit, tenants):
                found.append((limit, summary(held)[0]))
            if len(found) == most:
                break
    return found
