"""The pages of scopes: what they imply, whether they are sensitive, whether they pin the tools that need them."""

from collections.abc import Iterable
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest

from audit.admin_base import Action, PolicyAdmin, PolicyForm, Refused
from tools.models import PinnedScope, Scope


class ScopeForm(PolicyForm):
    """Refuses implications that would form a cycle; the database does too."""

    pinned = forms.BooleanField(
        required=False,
        help_text="Tools that need it are suspended when their definition changes, until somebody approves them again.",
    )

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        if "sensitive" in self.fields:
            words = "Granting it takes a second person, and calls that need it are marked."
            self.fields["sensitive"].help_text = words
        if self.instance.pk:
            self.initial["pinned"] = is_pinned(self.instance)

    def clean_implies(self) -> Any:
        implied = self.cleaned_data["implies"]
        if self.instance.pk and _reaches(self.instance.pk, {scope.pk for scope in implied}):
            raise ValidationError("That would form a cycle: one of these implies this scope already.")
        return implied


def is_pinned(scope: Scope) -> bool:
    """Whether tools that need it are suspended when their definition changes."""
    return hasattr(scope, "pin")


def pin(scope: Scope, wanted: bool) -> None:
    """Mark a scope so, or not any more: a change of policy, to be made in an attributed transaction."""
    if wanted:
        PinnedScope.objects.get_or_create(scope=scope)
    else:
        for found in PinnedScope.objects.filter(scope=scope):
            found.delete()


def sensitive_of(scopes: Iterable[Scope]) -> list[Scope]:
    """Those of the scopes that it takes a second person to grant: marked themselves, or implying one that is."""
    marked = set(Scope.objects.filter(sensitive=True).values_list("pk", flat=True))
    return [one for one in scopes if one.pk in marked or any(_reaches(target, {one.pk}) for target in marked)]


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
    list_display = ["name", "description", "implied", "sensitive", "pins"]
    list_select_related = ["pin"]
    search_fields = ["name", "description"]
    fields = ["name", "description", "implies", "sensitive", "pinned"]
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

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Who may not change it sees the mark in words: it is a row of its own, not a column."""
        if obj is None or self.has_change_permission(request, obj):
            return self.fields
        return [name if name != "pinned" else "pins" for name in self.fields]

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """With the mark, which is a row of its own. Permission and attribution are save_model's."""
        super().save_related(request, form, formsets, change)
        pin(form.instance, form.cleaned_data["pinned"])

    @admin.display(description="pins its tools", boolean=True)
    def pins(self, scope: Scope) -> bool:
        return is_pinned(scope)

    @admin.display(description="implies")
    def implied(self, scope: Scope) -> str:
        return ", ".join(other.name for other in scope.implies.all()) or "—"

    def remove(self, request: HttpRequest, scope: Scope, data: dict[str, Any]) -> str:
        """Delete it, if nothing uses it."""
        if scope.is_used():
            raise Refused("A tool, a grant, a request, a review or another scope uses it.")
        name = scope.name
        scope.delete()
        return f"{name} is removed."
