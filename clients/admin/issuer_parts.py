"""What belongs to one issuer and is edited on its page: its mapping of claims."""

from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.http import HttpRequest

from audit.admin_base import LabelledFormSet, LinesField, PlainModelForm, PolicyInline
from audit.models import Subject
from clients.jwks import ClaimRules
from clients.mapping import MAX_CLAIM, problems
from clients.models import ClaimMapping

# Members of ClaimRules, and the columns that hold them.
COLUMNS = {
    "subject": "subject_claim", "email": "email_claim", "scopes": "scope_claims", "client_id": "client_id_claims",
}  # fmt: skip
CONFIRM = (
    "This makes every user of the issuer a new one, without the grants, blocks and history of the old. Tick the box to"
    " say that you mean it."
)


class IssuerPart(PolicyInline):
    """A row that belongs to one issuer, one field below the other. Its permissions are the issuer's."""

    template = "admin/edit_inline/stacked.html"
    extra = 1

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Who may only look sees a row that is there, and no empty form, which nobody would take from them."""
        if self.has_change_permission(request, obj):
            return True
        there = obj is None or self.model._default_manager.filter(issuer=obj).exists()
        return there and request.user.has_perm("clients.view_issuer")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm("clients.change_issuer" if obj else "clients.add_issuer")

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_change_permission(request, obj)


class ClaimMappingForm(PlainModelForm):
    """Names of claims. Wrong ones are found by the set of forms, which knows the issuer."""

    scope_claims = LinesField(
        longest=MAX_CLAIM, required=False,
        help_text="One a line, instead of scope, scp and permissions. Empty: those.",
    )  # fmt: skip
    client_id_claims = LinesField(
        longest=MAX_CLAIM, required=False,
        help_text="One a line; the first that a token has counts. Empty: client_id, azp, cid, appid.",
    )  # fmt: skip
    confirmed = forms.BooleanField(
        label="Every user becomes a new one", required=False,
        help_text="Needed where the subject claim changes and the issuer has users: they are known by it.",
    )  # fmt: skip

    class Meta:
        model = ClaimMapping
        fields = ["subject_claim", "email_claim", "scope_claims", "client_id_claims"]
        labels = {"email_claim": "E-mail claim"}


class ClaimMappingFormSet(LabelledFormSet):
    """The mapping, if there is one: checked together with the issuer, and against what it was."""

    def clean(self) -> None:
        super().clean()
        if any(self.errors):
            return
        known = ClaimMapping.objects.filter(issuer=self.instance.pk).first() if self.instance.pk else None
        kept = [form for form in self.forms if not form.cleaned_data.get("DELETE")]
        kept = [form for form in kept if form.instance.pk or form.has_changed()]
        rules = rules_of(kept[0].cleaned_data) if kept else ClaimRules()
        for member, words in problems(rules, self.instance.roles_claim).items():
            kept[0].add_error(COLUMNS[member], f"{words[0].upper()}{words[1:]}.")
        before = known.subject_claim if known else ""
        if (before or "sub") == (rules.subject or "sub") or self._confirmed():
            return
        if Subject.objects.filter(issuer=self.instance.issuer).exists():
            raise ValidationError(CONFIRM)

    def _confirmed(self) -> bool:
        return any(form.cleaned_data.get("confirmed") for form in self.forms if hasattr(form, "cleaned_data"))


class ClaimMappingInline(IssuerPart):
    """Which claims say what."""

    model = ClaimMapping
    verbose_name_plural = "claim mapping"
    form = ClaimMappingForm
    formset = ClaimMappingFormSet

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """A new issuer has no users who could become others."""
        return [*COLUMNS.values(), *(["confirmed"] if obj else [])]


def rules_of(data: dict[str, Any]) -> ClaimRules:
    """The rules that a form holds, by the names of the columns."""
    return ClaimRules(
        data.get("subject_claim") or "", data.get("email_claim") or "",
        tuple(data.get("scope_claims") or ()), tuple(data.get("client_id_claims") or ()),
    )  # fmt: skip
