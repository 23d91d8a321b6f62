"""The routes of a backend, on its page."""

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.http import HttpRequest

from audit.admin_base import LinesField, PlainModelForm, PolicyInline
from tools.models import TOOL_NAME, Route
from tools.routes import METHODS, MOST_TOOLS


def check_method(text: str) -> None:
    """Raise ValueError for what is no method that a route can name."""
    if text not in METHODS:
        raise ValueError(f"a method is one of {', '.join(METHODS)}")


def check_tool(text: str) -> None:
    """Raise ValueError for what cannot be the name of a tool."""
    try:
        TOOL_NAME(text)
    except ValidationError as error:
        raise ValueError(error.messages[0]) from None


class RouteForm(PlainModelForm):
    """Methods and tools are one a line."""

    methods = LinesField(check_method, longest=7, required=False)
    tools = LinesField(check_tool, longest=128, required=False)

    class Meta:
        model = Route
        fields = ["path", "methods", "tools"]

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        # Who may only look has no such fields.
        for name, words in (("path", "/notes/*"), ("methods", "any method"), ("tools", "closed: no tool")):
            if name in self.fields:
                label = {"aria-label": name.capitalize(), "placeholder": words, "rows": 2}
                self.fields[name].widget.attrs.update(label)

    def clean_methods(self) -> list[str]:
        """In one order, so that the same methods are the same route."""
        return sorted(self.cleaned_data["methods"])

    def clean_tools(self) -> list[str]:
        """As many as a call is decided for at once."""
        tools: list[str] = self.cleaned_data["tools"]
        if len(tools) > MOST_TOOLS:
            raise forms.ValidationError(f"At most {MOST_TOOLS} tools.")
        return tools


class RouteInline(PolicyInline):
    """Which tools a path stands for, where a proxy asks. Its permissions are the backend's."""

    model = Route
    form = RouteForm
    verbose_name_plural = "routes, for a proxy that asks before it lets a request through"
    extra = 0

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("tools.view_backend") or self.has_change_permission(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("tools.change_backend" if obj else "tools.add_backend")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_change_permission(request, obj)
