"""System > SCIM: identity providers that manage an issuer's users here. A connection is made, disabled and enabled, and
given another token; what its tokens' `sub` is found by never changes, since its users were found by it."""

from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.html import format_html

from audit.admin_base import Action, PolicyAdmin, PolicyForm, actor_of
from audit.recent_sign_in import ask_again, is_recent
from audit.record_words import amount
from audit.staff_log import tell
from audit.templatetags.muniment import when
from clients.models import ScimConnection, ScimUser
from clients.scim import tokens
from tools.admin import pill

SHOWN = "_muniment_token_made"  # on a request: the token that it made


class ConnectionForm(PolicyForm):
    """A new connection: whose users it manages, and how they are told."""

    class Meta:
        model = ScimConnection
        fields = ["name", "issuer", "subject_attribute"]
        help_texts = {
            "name": "Part of the address that the provider calls, and of what is recorded. It cannot be changed.",
            "issuer": "Whose tokens these users have.",
        }

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        if "subject_attribute" in self.fields:
            self.fields["subject_attribute"].help_text = (
                "What users are known by in tokens of the issuer (Try claims… on its page shows it) must be what the"
                " provider sends as this, to the letter. It cannot be changed."
            )


@admin.register(ScimConnection)
class ScimConnectionAdmin(PolicyAdmin):
    """Connections, by which tokens are shown once and their digests never."""

    form = ConnectionForm
    intro = (
        "Identity providers that manage users here by SCIM 2.0. Who is deactivated there is refused at the next call,"
        " whatever token they hold."
    )
    empty = "No connection yet. Add one, and give its address and token to the identity provider."
    list_display = ["name", "issuer", "state", "managed", "used"]
    list_select_related = ["issuer"]
    can_act = [
        Action("disable", "Disable", "Every call of the provider is refused. Its users stay as they are: who is"
               " active stays active, whatever happens to them there.", "disable", lambda c: c.enabled, danger=True),
        Action("enable", "Enable", "Its calls are answered again.", "enable", lambda c: not c.enabled),
        Action("token", "New token", "The token that the provider has now stops working at once. Its users stay as"
               " they are.", "renew", danger=True),
        Action("release", "Let its users go", "What is kept of them here goes, and another connection may manage them."
               " Access stays as it is: who is active stays active, and who is deactivated stays so until another"
               " connection has them as active.", "release", lambda c: not c.enabled and c.users.exists(), danger=True),
    ]  # fmt: skip

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A connection is not edited: what differs is another one."""
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[ScimConnection]:
        """With how many users each manages."""
        return super().get_queryset(request).annotate(number=Count("users"))

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Of one that is there, all that can be said of it."""
        if obj is None:
            return ["name", "issuer", "subject_attribute"]
        return ["name", "issuer", "subject_attribute", "address", "state", "managed", "made", "used"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.get_fields(request, obj) if obj else []

    def save_model(self, request: HttpRequest, obj: ScimConnection, form: forms.ModelForm, change: bool) -> None:
        """Make it, with a token."""
        if change:
            raise PermissionDenied
        super().save_model(request, obj, form, change)
        setattr(request, SHOWN, tokens.renew(obj))

    def response_add(self, request: HttpRequest, obj: ScimConnection, post_url_continue: Any = None) -> HttpResponse:
        """The token, in the answer to the very request that made it."""
        return self._shown(request, obj)

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Only for who has just shown who they are: with a token one reads what is kept of people."""
        if self.has_add_permission(request) and not is_recent(request):
            return ask_again(request, request.path)
        return super().add_view(request, form_url, extra_context)

    def act_view(self, request: HttpRequest, object_id: str, action: str) -> HttpResponse:
        """As always, but that another token is for who has just shown who they are, and is shown at once: a message
        would keep it."""
        if action == "token" and self.may(request, "change") and not is_recent(request):
            return ask_again(request, request.path)
        answer = super().act_view(request, object_id, action)
        if not hasattr(request, SHOWN):
            return answer
        return self._shown(request, ScimConnection.objects.get(pk=object_id))

    def _shown(self, request: HttpRequest, obj: ScimConnection) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request), "title": f"Token for {obj}", "opts": self.opts,
            "secret": getattr(request, SHOWN), "address": tokens.address(obj), "back": self.url_of(obj),
        }  # fmt: skip
        return TemplateResponse(request, "admin/scim_made.html", context, headers={"Cache-Control": "no-store"})

    @admin.display(description="address for the provider")
    def address(self, connection: ScimConnection) -> str:
        return format_html('<span class="mono">{}</span>', tokens.address(connection))

    @admin.display(description="state", ordering="enabled")
    def state(self, connection: ScimConnection) -> str:
        return pill("enabled" if connection.enabled else "disabled")

    @admin.display(description="manages")
    def managed(self, connection: Any) -> str:
        return amount(connection.number, "user")

    @admin.display(description="token made", ordering="token_set_at")
    def made(self, connection: ScimConnection) -> str:
        return when(connection.token_set_at, "never")

    @admin.display(description="last used", ordering="last_used")
    def used(self, connection: ScimConnection) -> str:
        return when(connection.last_used, "never")

    def disable(self, request: HttpRequest, connection: ScimConnection, data: dict[str, Any]) -> str:
        """Its calls are refused."""
        connection.enabled = False
        connection.save(update_fields=["enabled"])
        return f"{connection} is disabled: its next call is refused."

    def enable(self, request: HttpRequest, connection: ScimConnection, data: dict[str, Any]) -> str:
        """Back on."""
        connection.enabled = True
        connection.save(update_fields=["enabled"])
        return f"{connection} is enabled."

    def release(self, request: HttpRequest, connection: ScimConnection, data: dict[str, Any]) -> str:
        """For a provider that was given up: one that is in use would make them anew."""
        count, _ = ScimUser.objects.filter(connection=connection).delete()
        tell(*actor_of(request), "scim.released", {"reason": data["reason"]}, connection=connection.name, count=count)
        return f"{connection} manages nobody any more."

    def renew(self, request: HttpRequest, connection: ScimConnection, data: dict[str, Any]) -> str:
        """Another token; the old one is refused from the next call on."""
        setattr(request, SHOWN, tokens.renew(connection))
        return f"{connection} has a new token. The old one does not work any more."
