"""Asking an issuer about its opaque tokens, on the issuer's page. The secret goes in and is never shown."""

from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.utils.html import format_html

from audit.admin_base import LabelledFormSet, PlainModelForm
from audit.templatetags.muniment import when
from clients.admin.issuer_parts import IssuerPart
from clients.introspection_setup import (
    MAX_SECRET,
    clash_of_backend,
    clash_of_issuer,
    lock,
    set_secret,
    wrong_endpoint,
    wrong_secret,
)
from clients.models import Introspection

AGAIN = "Type it again: it would be sent elsewhere, or under another name, than it was given for."


class IntrospectionForm(PlainModelForm):
    """How to ask. A secret that is set stays until another is typed, but only for the address that it was set for:
    else whoever may edit issuers could have it sent to themselves."""

    endpoint = forms.URLField(
        max_length=500, assume_scheme="https", help_text="Where tokens are asked about (RFC 7662)."
    )  # fmt: skip
    new_secret = forms.CharField(
        label="Secret", required=False, strip=False, max_length=MAX_SECRET,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )  # fmt: skip

    class Meta:
        model = Introspection
        fields = ["endpoint", "method", "client_id", "signed", "cache_seconds"]
        labels: ClassVar = {"signed": "Signed answers only", "cache_seconds": "An answer is good for, in seconds"}
        help_texts: ClassVar = {
            "signed": "An answer that the issuer has not signed (RFC 9701) is none.",
            "cache_seconds": "At most. For so long a token that was revoked still works.",
        }

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        if "new_secret" in self.fields:
            told = "Kept encrypted, and never shown."
            if at := self.instance.secret_set_at:
                told = format_html("Set {}, and not shown. Empty: it stays.", when(at))
            self.fields["new_secret"].help_text = told

    def clean_endpoint(self) -> str:
        endpoint: str = self.cleaned_data["endpoint"]
        if words := wrong_endpoint(endpoint):
            raise ValidationError(words)
        return endpoint

    def clean_new_secret(self) -> str:
        secret: str = self.cleaned_data["new_secret"]
        if secret and (words := wrong_secret(secret)):
            raise ValidationError(words)
        return secret

    def clean(self) -> dict[str, Any] | None:
        data: dict[str, Any] = super().clean() or self.cleaned_data
        if not data.get("new_secret") and "new_secret" not in self.errors:
            if self.instance.secret is None:
                self.add_error("new_secret", "The issuer has to know who asks.")
            elif {"endpoint", "client_id"} & set(self.changed_data):
                self.add_error("new_secret", AGAIN)
        return data

    def save(self, commit: bool = True) -> Any:
        """With the secret, under a key that the issuer's id names: it is stored by now."""
        if secret := self.cleaned_data["new_secret"]:
            set_secret(self.instance, secret)
        return super().save(commit)


def kept_of(formset: Any) -> list[Any]:
    """The forms whose rows are not to be deleted."""
    return [form for form in formset.forms if not getattr(form, "cleaned_data", {}).get("DELETE")]


class IntrospectionFormSet(LabelledFormSet):
    """At most one issuer that a backend accepts is set to introspection."""

    def clean(self) -> None:
        super().clean()
        kept = kept_of(self)
        if any(self.errors) or not any(form.instance.pk or form.has_changed() for form in kept):
            return
        lock()
        if self.instance.enabled and (words := clash_of_issuer(self.instance)):
            kept[0].add_error("endpoint", words)


class IntrospectionInline(IssuerPart):
    """How the issuer is asked, and how asking went."""

    model = Introspection
    form = IntrospectionForm
    formset = IntrospectionFormSet
    verbose_name = verbose_name_plural = "introspection of opaque tokens"

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Who may only look has no field for the secret, and sees that one is set."""
        secret = "new_secret" if self.has_change_permission(request, obj) else "secret_set"
        return ["endpoint", "method", "client_id", secret, "signed", "cache_seconds", *(["went"] if obj else [])]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """What is told and not asked for."""
        return [name for name in self.get_fields(request, obj) if name in ("secret_set", "went")]

    @admin.display(description="secret set")
    def secret_set(self, row: Introspection) -> str:
        return when(row.secret_set_at, "never")

    @admin.display(description="last asked")
    def went(self, row: Introspection) -> str:
        """How the newest question went, as far as it was noted."""
        if row.error:
            failed, answered = when(row.failed_at), when(row.answered_at, "never")
            return format_html("Failed {}: {}. Last answered: {}.", failed, row.error, answered)
        return format_html("Answered {}", when(row.answered_at)) if row.answered_at else "not yet"


class AcceptedIssuerFormSet(LabelledFormSet):
    """Of the issuers that a backend accepts, at most one is set to introspection."""

    def clean(self) -> None:
        super().clean()
        if any(self.errors) or not self.instance.enabled:
            return
        lock()
        kept = [form.cleaned_data.get("issuer") for form in kept_of(self)]
        if words := clash_of_backend(self.instance, [issuer.pk for issuer in kept if issuer is not None]):
            raise ValidationError(words)
