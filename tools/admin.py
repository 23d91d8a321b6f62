"""The pages of what is called: backends' keys, scopes and tools. The page of a backend is in clients/admin, beside
the issuers that it lists."""

import json
from hashlib import sha256
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.html import format_html, format_html_join

from audit.admin_base import Action, LinesField, PolicyAdmin, PolicyForm, Refused, act
from audit.templatetags.muniment import day, when
from tools.credentials import issue
from tools.models import Backend, BackendKey, Scope, Tool

PILLS = {"active": "allow", "enabled": "allow", "pending": "flag", "suspended": "deny", "disabled": "deny"}


def pill(words: str, kind: str | None = None) -> str:
    """A state in colour and words."""
    return format_html('<span class="pill {}">{}</span>', kind or PILLS.get(words, "plain"), words.capitalize())


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


class ScopeForm(PolicyForm):
    """Refuses implications that would form a cycle; the database does too."""

    def clean_implies(self) -> Any:
        implied = self.cleaned_data["implies"]
        if self.instance.pk and _reaches(self.instance.pk, {scope.pk for scope in implied}):
            raise ValidationError("That would form a cycle: one of these implies this scope already.")
        return implied


def _reaches(target: int, start: set[int]) -> bool:
    """Whether a scope is implied, over any number of steps, by one of these."""
    edges: dict[int, set[int]] = {}
    for source, implied in Scope.implies.through.objects.values_list("from_scope_id", "to_scope_id"):
        if source != target:
            edges.setdefault(source, set()).add(implied)
    seen, waiting = set(start), list(start)
    while waiting:
        new = edges.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return target in seen


@admin.register(Scope)
class ScopeAdmin(PolicyAdmin):
    """Named permissions."""

    form = ScopeForm
    intro = "What tools can need, users consent to, and staff grant."
    empty = "No scope yet. Add the permissions that your tools need, such as memory:read."
    list_display = ["name", "description", "implied", "sensitive"]
    search_fields = ["name", "description"]
    fields = ["name", "description", "implies", "sensitive"]
    can_act = [
        Action("remove", "Remove", "Takes the scope away. Only possible while no tool and no grant uses it.",
               "remove", danger=True, permission="delete")
    ]  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).prefetch_related("implies")

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **more: Any) -> Any:
        return super().formfield_for_manytomany(db_field, request, widget=forms.CheckboxSelectMultiple, **more)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Tokens name a scope: another name is another scope."""
        return ["name"] if obj else []

    @admin.display(description="implies")
    def implied(self, scope: Scope) -> str:
        return ", ".join(other.name for other in scope.implies.all()) or "—"

    def remove(self, request: HttpRequest, scope: Scope, data: dict[str, Any]) -> str:
        """Delete it, if nothing uses it."""
        if scope.tools.exists() or scope.grants.exists() or scope.implied_by.exists():
            raise Refused("A tool, a grant or another scope uses it.")
        name = scope.name
        scope.delete()
        return f"{name} is removed."


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
