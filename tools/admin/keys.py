"""The pages of backends' keys: made, shown once, revoked."""

from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.html import format_html

from audit.admin_base import Action, PolicyAdmin, PolicyForm, act
from audit.templatetags.muniment import day, when
from tools.admin.pills import pill
from tools.credentials import issue
from tools.models import BackendKey


class KeyForm(PolicyForm):
    """A new key: for whom, what it is called, how long it works."""

    LASTS = [("90", "90 days"), ("365", "1 year"), ("30", "30 days"), ("", "no end")]
    lasts = forms.ChoiceField(choices=LASTS, required=False, initial="90", label="Works for")

    class Meta:
        model = BackendKey
        fields = ["backend", "label"]


@admin.register(BackendKey)
class BackendKeyAdmin(PolicyAdmin):
    """Keys are made and revoked; the secret is shown once, its digest never."""

    form = KeyForm
    intro = "With a key a backend proves who it is. Only a digest is stored: a key is shown once, when it is made."
    empty = "No key yet. Make one for a backend, and put it where the backend's secrets are."
    list_display = ["key", "backend", "label", "state", "made", "ends", "used"]
    list_filter = ["backend"]
    list_select_related = ["backend"]
    can_act = [
        Action(
            "revoke", "Revoke", "From the next call on this key does not work. That cannot be undone.",
            "revoke", lambda k: k.revoked_at is None, danger=True,
        )
    ]  # fmt: skip

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A key is never edited: what differs is another key."""
        return False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ["key", "backend", "label", "state", "made", "ends", "used"] if obj else ["backend", "label", "lasts"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.get_fields(request, obj) if obj else []

    def save_model(self, request: HttpRequest, obj: BackendKey, form: Any, change: bool) -> None:
        """The key is made by tools.credentials, which alone knows its secret."""
        if change or not self.may(request, "add"):
            raise PermissionDenied
        act(request, form.cleaned_data["change_reason"])
        lasts = form.cleaned_data["lasts"]
        secret = issue(obj.backend, label=obj.label, days=int(lasts) if lasts else None)
        made = BackendKey.objects.get(key_id=secret.split("_")[1])
        obj.pk, obj.key_id, obj.expires_at, obj.created_at = made.pk, made.key_id, made.expires_at, made.created_at
        obj._state.adding = False
        request._muniment_secret = secret  # type: ignore[attr-defined]

    def response_add(self, request: HttpRequest, obj: BackendKey, post_url_continue: Any = None) -> HttpResponse:
        """The whole key, in the answer to the very request that made it: a message would keep the secret in a
        cookie or a session until it is read."""
        context = {
            **self.admin_site.each_context(request), "title": f"Key for {obj.backend}", "opts": self.opts,
            "secret": request._muniment_secret, "key": obj, "back": self.url_of(obj),  # type: ignore[attr-defined]
        }  # fmt: skip
        return TemplateResponse(request, "admin/key_made.html", context, headers={"Cache-Control": "no-store"})

    @admin.display(description="key", ordering="key_id")
    def key(self, key: BackendKey) -> str:
        return format_html('<span class="mono">{}</span>', str(key))

    @admin.display(description="state")
    def state(self, key: BackendKey) -> str:
        if key.revoked_at:
            return pill("revoked", "deny")
        expired = key.expires_at is not None and key.expires_at <= timezone.now()
        return pill("expired", "deny") if expired else pill("active")

    @admin.display(description="made", ordering="created_at")
    def made(self, key: BackendKey) -> str:
        return when(key.created_at)

    @admin.display(description="ends", ordering="expires_at")
    def ends(self, key: BackendKey) -> str:
        return day(key.expires_at, "never")

    @admin.display(description="last used", ordering="last_used")
    def used(self, key: BackendKey) -> str:
        return when(key.last_used, "never")

    def revoke(self, request: HttpRequest, key: BackendKey, data: dict[str, Any]) -> str:
        """Refused from the next call on."""
        key.revoked_at = timezone.now()
        key.save(update_fields=["revoked_at"])
        return f"{key} is revoked."
