"""The page of a backend. It is registered in clients/admin, beside the issuers that it lists."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html_join

from audit.admin_base import Action, LinesField, PolicyAdmin, PolicyForm
from tools.admin.pills import pill
from tools.models import Backend


class BackendForm(PolicyForm):
    """Audiences are one a line."""

    audiences = LinesField(help_text="One a line: values of `aud` that name this backend (RFC 8707).")
    assertion_audiences = LinesField(
        required=False, help_text="One a line: services that may get identity assertions from it. Often none."
    )


class BackendAdmin(PolicyAdmin):
    """A service that holds data. Registered in clients/admin, with its accepted issuers."""

    form = BackendForm
    intro = "Services that hold data and ask Muniment before they touch it."
    empty = "No backend yet. Add the service that your AI clients call; then make it a key."
    list_display = ["name", "slug", "state", "aims"]
    search_fields = ["slug", "name"]
    fields = ["slug", "name", "audiences", "assertion_audiences", "accepts_every_issuer"]
    can_act = [
        Action("disable", "Disable", "Its keys stop working: every call of this backend is answered 401.",
               "disable", lambda b: b.enabled, danger=True),
        Action("enable", "Enable", "Its keys work again.", "enable", lambda b: not b.enabled),
    ]  # fmt: skip

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
