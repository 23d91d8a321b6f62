"""Adding an issuer from what is known of its provider: `?preset=auth0` fills the form, which staff then check."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from clients.admin.issuer_parts import COLUMNS, ClaimMappingInline
from clients.presets import PRESETS, Preset


class WithPresets(admin.ModelAdmin):
    """The chooser and what it fills in, for the admin of issuers."""

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> Any:
        """With the providers to choose from, and what is to be known of the chosen one."""
        context = {"presets": list(PRESETS.values()), "preset": _chosen(request), **(extra_context or {})}
        return super().add_view(request, form_url, context)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """Of the chosen provider, and of nothing else that a URL says."""
        preset = _chosen(request)
        if preset is None:
            return {}
        return {
            "algorithms": list(preset.algorithms), "tenant_claim": preset.tenant_claim,
            "roles_claim": preset.roles_claim,
        }  # fmt: skip

    def get_formset_kwargs(self, request: HttpRequest, obj: Any, inline: Any, prefix: str) -> dict[str, Any]:
        """Only in the form that is shown: what is sent is new, whatever it was filled with."""
        made: dict[str, Any] = super().get_formset_kwargs(request, obj, inline, prefix)
        preset = _chosen(request)
        if preset is None or request.method == "POST" or obj.pk or not isinstance(inline, ClaimMappingInline):
            return made
        rules = {column: getattr(preset.claims, member) for member, column in COLUMNS.items()}
        return made | {"initial": [rules]} if any(rules.values()) else made


def _chosen(request: HttpRequest) -> Preset | None:
    return PRESETS.get(request.GET.get("preset", ""))
