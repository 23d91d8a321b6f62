"""System > Staff keys: whose tools read records. Everybody who reads records makes keys for themselves and revokes
them; an administrator sees and revokes everybody's, and makes none for others."""

from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from audit.admin_base import Action, PlainForm, ReadOnlyAdmin, ReasonField, Refused, actor_of, validate_reason
from audit.recent_sign_in import ask_again, is_recent
from audit.templatetags.muniment import day, when
from governance import staff_keys
from governance.models import StaffKey
from tools.admin import pill

READ = "audit.view_record"
VIEW, CHANGE = "governance.view_staffkey", "governance.change_staffkey"


class MakeForm(PlainForm):
    """What a new key is called, and how long it works."""

    LASTS = [("90", "90 days"), ("30", "30 days"), ("365", "1 year")]
    label = forms.CharField(
        label="What it is for", max_length=120, validators=[validate_reason],
        help_text="The tool that will use it, and where.",
    )  # fmt: skip
    lasts = forms.ChoiceField(choices=LASTS, initial="90", label="Works for")
    reason = ReasonField()


@admin.register(StaffKey)
class StaffKeyAdmin(ReadOnlyAdmin):
    """Keys are made and revoked, never edited; the secret is shown once, its digest never."""

    intro = (
        "With a staff key a tool reads the records that its owner may read, at GET /v1/records. Only a digest is"
        " stored: a key is shown once, when it is made."
    )
    empty = "No key yet. Make one for a tool of yours that searches records, such as a SIEM or a notebook."
    list_display = ["key", "of", "label", "state", "made", "ends", "used"]
    list_select_related = ["owner"]
    fields = ["key", "of", "label", "state", "made", "ends", "used"]
    can_act = [
        Action(
            "revoke", "Revoke", "From the next call on this key does not work. That cannot be undone.",
            "revoke", lambda key: key.revoked_at is None, danger=True,
        )
    ]  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> Any:
        """One's own; everybody's for those who look after them."""
        found = super().get_queryset(request).select_related("owner")
        return found if request.user.has_perm(VIEW) else found.filter(owner=request.user.pk)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: StaffKey | None = None) -> bool:
        own = obj is None or obj.owner_id == request.user.pk
        return request.user.has_perm(VIEW) or (own and request.user.has_perm(READ))

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """For oneself alone, and only where it would be of use."""
        return request.user.has_perm(READ)

    def may(self, request: HttpRequest, permission: str) -> bool:
        """Whether one may revoke at all; whose, is checked with the key."""
        return request.user.has_perm(CHANGE) or request.user.has_perm(READ)

    def offered(self, request: HttpRequest, obj: StaffKey) -> list[dict[str, Any]]:
        """Revoking is offered to the owner and to those who look after keys."""
        return super().offered(request, obj) if self._looks_after(request, obj) else []

    def _looks_after(self, request: HttpRequest, key: StaffKey) -> bool:
        return key.owner_id == request.user.pk or request.user.has_perm(CHANGE)

    def revoke(self, request: HttpRequest, key: StaffKey, data: dict[str, Any]) -> str:
        """Refused from the next call on."""
        if not self._looks_after(request, key):
            raise PermissionDenied
        if not staff_keys.revoke(key, *actor_of(request), data["reason"]):
            raise Refused("Somebody revoked it a moment ago.")
        return f"{key} is revoked."

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Make a key for me: GET asks, POST makes it and shows it, in the answer to that very request."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        back = reverse("admin:governance_staffkey_changelist")
        if not is_recent(request):
            return ask_again(request, request.path)
        form = MakeForm(request.POST if request.method == "POST" else None)
        context = {**self.admin_site.each_context(request), "opts": self.opts, "back": back}
        if request.method == "POST" and form.is_valid():
            with transaction.atomic():
                key, secret = self._make(request, form.cleaned_data)
            context |= {"title": "Your staff key", "secret": secret, "key": key, "sender": "Your tool"}
            context |= {"back": self.url_of(key)}
            return TemplateResponse(request, "admin/key_made.html", context, headers={"Cache-Control": "no-store"})
        context |= {"title": "Make a key for me", "form": form}
        return TemplateResponse(request, "admin/staff_key_make.html", context)

    def _make(self, request: HttpRequest, data: dict[str, Any]) -> tuple[StaffKey, str]:
        if not request.user.has_perm(READ):
            raise PermissionDenied
        label, days, reason = data["label"], int(data["lasts"]), data["reason"]
        return staff_keys.issue(request.user, *actor_of(request), label=label, days=days, reason=reason)

    @admin.display(description="key", ordering="key_id")
    def key(self, key: StaffKey) -> str:
        return format_html('<span class="mono">{}</span>', str(key))

    @admin.display(description="owner", ordering="owner__username")
    def of(self, key: StaffKey) -> str:
        owner: Any = key.owner
        return str(owner.get_full_name() or owner.get_username())

    @admin.display(description="state")
    def state(self, key: StaffKey) -> str:
        """What the next call with it would find."""
        owner: Any = key.owner
        if key.revoked_at:
            return pill("revoked", "deny")
        if key.expires_at is not None and key.expires_at <= timezone.now():
            return pill("expired", "deny")
        if not (owner.is_active and owner.is_staff):
            return pill("owner left", "deny")
        return pill("active") if owner.has_perm(READ) else pill("owner may not read records", "flag")

    @admin.display(description="made", ordering="created_at")
    def made(self, key: StaffKey) -> str:
        return when(key.created_at)

    @admin.display(description="ends", ordering="expires_at")
    def ends(self, key: StaffKey) -> str:
        return day(key.expires_at, "never")

    @admin.display(description="last used", ordering="last_used")
    def used(self, key: StaffKey) -> str:
        return when(key.last_used, "never")
