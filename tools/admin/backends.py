"""The page of a backend. It is registered in clients/admin, beside the issuers that it lists."""

from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html_join

from audit.admin_base import Action, LinesField, PolicyAdmin, PolicyForm
from tools.admin.pills import pill
from tools.admin.routes import RouteInline
from tools.models import Backend, BackendMark


class BackendForm(PolicyForm):
    """Audiences are one a line."""

    audiences = LinesField(help_text="One a line: values of `aud` that name this backend (RFC 8707).")
    assertion_audiences = LinesField(
        required=False, help_text="One a line: services that may get identity assertions from it. Often none."
    )
    may_search = forms.BooleanField(
        required=False, help_text="It may ask which users may use a tool, and which tools a user may use (AuthZEN)."
    )
    enforces_mcp_name = forms.BooleanField(
        required=False,
        label="Enforces Mcp-Name",
        help_text="It refuses an MCP call whose Mcp-Name header is not the tool that the body names. Then a proxy asks"
        " for that tool alone, else for all tools of the route.",
    )

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        if self.instance.pk:
            self.initial.update(dict.fromkeys(marks_of(self.instance), True))


def marks_of(backend: Backend) -> set[str]:
    """What staff say of it by yes or no."""
    return {found.mark for found in backend.marks.all()}


def mark(backend: Backend, name: str, wanted: bool) -> None:
    """Mark a backend so, or not any more: a change of policy, to be made in an attributed transaction."""
    if wanted:
        BackendMark.objects.get_or_create(backend=backend, mark=name)
    else:
        for found in backend.marks.filter(mark=name):
            found.delete()


class BackendAdmin(PolicyAdmin):
    """A service that holds data. Registered in clients/admin, with its accepted issuers."""

    form = BackendForm
    intro = "Services that hold data and ask Muniment before they touch it."
    empty = "No backend yet. Add the service that your AI clients call; then make it a key."
    list_display = ["name", "slug", "state", "aims"]
    search_fields = ["slug", "name"]
    fields = [
        "slug", "name", "audiences", "assertion_audiences", "accepts_every_issuer", "may_search", "enforces_mcp_name",
    ]  # fmt: skip
    inlines = [RouteInline]
    can_act = [
        Action("disable", "Disable", "Its keys stop working: every call of this backend is answered 401.",
               "disable", lambda b: b.enabled, danger=True),
        Action("enable", "Enable", "Its keys work again.", "enable", lambda b: not b.enabled),
    ]  # fmt: skip

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Who may not change it sees the marks in words: they are rows of their own, not columns."""
        if obj is None or self.has_change_permission(request, obj):
            return self.fields
        names: dict[Any, str] = {"may_search": "searches", "enforces_mcp_name": "enforces"}
        return [names.get(name, name) for name in self.fields]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """The words of the marks."""
        return [name for name in self.get_fields(request, obj) if name in ("searches", "enforces")]

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """With the marks, which are rows of their own. Permission and attribution are save_model's."""
        super().save_related(request, form, formsets, change)
        for name, _ in BackendMark.MARKS:
            mark(form.instance, name, form.cleaned_data[name])

    @admin.display(description="may search", boolean=True)
    def searches(self, backend: Backend) -> bool:
        return "may_search" in marks_of(backend)

    @admin.display(description="enforces Mcp-Name", boolean=True)
    def enforces(self, backend: Backend) -> bool:
        return "enforces_mcp_name" in marks_of(backend)

    @admin.display(description="state", ordering="enabled")
    def state(self, backend: Backend) -> str:
        return pill("enabled" if backend.enabled else "disabled")

    @admin.display(description="audiences")
    def aims(self, backend: Backend) -> str:
        return format_html_join(" ", "<span class='mono'>{}</span>", ((one,) for one in backend.audiences))

    def disable(self, request: HttpRequest, backend: Backend, data: dict[str, Any]) -> str:
        """Kill switch."""
        backend.enabled = False
        backend.save(update_fields=["enabled"])
        return f"{backend} is disabled: its next call is refused."

    def enable(self, request: HttpRequest, backend: Backend, data: dict[str, Any]) -> str:
        """Back on."""
        backend.enabled = True
        backend.save(update_fields=["enabled"])
        return f"{backend} is enabled."
