"""The pages of tools: what is declared or added, approved, suspended, retired."""

import json
from hashlib import sha256
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html

from audit.admin_base import Action, PolicyAdmin
from tools.admin.pills import pill
from tools.models import Tool


def digest(tool: Tool) -> str:
    """SHA-256, in hex, of all that staff approve of a tool: what is declared, and what staff made of it since."""
    content = [
        tool.definition, tool.name, tool.description, tool.access, sorted(scope.name for scope in tool.scopes.all()),
        tool.input_schema,
    ]  # fmt: skip
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def visible(text: str) -> str:
    """A backend's text with what cannot be seen (zero width, other direction) as escapes: nothing hides in it."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


@admin.register(Tool)
class ToolAdmin(PolicyAdmin):
    """Tools: declared by their backends, or added here; only active ones can be called."""

    intro = "What backends offer to AI clients. Only active tools can be called."
    empty = "No tool yet. A backend declares its tools (PUT /v1/tools), and they wait here for approval."
    list_display = ["name", "backend", "access", "needs", "state"]
    list_filter = ["status", "backend", "access"]
    list_select_related = ["backend"]
    search_fields = ["name", "description"]
    fields = ["backend", "name", "description", "access", "scopes", "schema", "state"]
    can_act = [
        Action("approve", "Approve", "From the next call on it can be called, by clients that are granted its scopes.",
               "approve", lambda t: t.status in ("pending", "suspended"), digest=digest),
        Action("suspend", "Suspend", "From the next call on every call of it is refused.",
               "suspend", lambda t: t.status == "active", danger=True),
        Action("retire", "Retire", "It is over for good; every call of it is refused.",
               "retire", lambda t: t.status != "retired", danger=True),
    ]  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("scopes")

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **more: Any) -> Any:
        return super().formfield_for_manytomany(db_field, request, widget=forms.CheckboxSelectMultiple, **more)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Its name says what it is; its state is changed by actions alone."""
        return ["backend", "name", "schema", "state"] if obj else ["state"]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """A tool that is added here has no schema: only its backend declares one."""
        return [name for name in self.fields if obj or name != "schema"]

    def facts(self, tool: Tool) -> list[tuple[str, Any]]:
        """What approving lets happen."""
        return [
            ("Backend", tool.backend),
            ("Description", visible(tool.description) or "none"),
            ("Access", tool.access),
            ("Scopes", self.needs(tool)),
            ("Input schema", self.schema(tool)),
        ]

    @admin.display(description="input schema")
    def schema(self, tool: Tool) -> str:
        """Indented JSON. It is the backend's text: escaped."""
        if tool.input_schema is None:
            return "none declared"
        text = visible(json.dumps(tool.input_schema, indent=2, ensure_ascii=False))
        return format_html('<pre class="raw" tabindex="0" aria-label="Input schema">{}</pre>', text)

    @admin.display(description="needs")
    def needs(self, tool: Tool) -> str:
        return ", ".join(scope.name for scope in tool.scopes.all()) or "a grant that names it"

    @admin.display(description="state", ordering="status")
    def state(self, tool: Tool) -> str:
        return pill(tool.status)

    def _set(self, tool: Tool, status: str) -> str:
        tool.status = status
        tool.save(update_fields=["status"])
        return f"{tool} is {status}."

    def approve(self, request: HttpRequest, tool: Tool, data: dict[str, Any]) -> str:
        """Can be called."""
        return self._set(tool, "active")

    def suspend(self, request: HttpRequest, tool: Tool, data: dict[str, Any]) -> str:
        """Cannot, for now."""
        return self._set(tool, "suspended")

    def retire(self, request: HttpRequest, tool: Tool, data: dict[str, Any]) -> str:
        """Cannot, ever."""
        return self._set(tool, "retired")
