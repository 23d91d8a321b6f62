"""What an issuer's tokens must be bound to, edited on the issuer's page."""

from typing import Any

from django import forms

from audit.admin_base import PlainModelForm
from clients.admin.issuer_parts import IssuerPart
from clients.models import IssuerBinding


class IssuerBindingForm(PlainModelForm):
    """Where nothing is set, it says so: what a new row begins with would look as if it were demanded, and choosing just
    that would be no change."""

    require = forms.ChoiceField(
        label="Its tokens must be bound", required=False,
        choices=[(key, words if key else "not demanded") for key, words in IssuerBinding.REQUIRE],
    )  # fmt: skip

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        if self.instance.pk is None:
            self.initial["require"] = ""


class IssuerBindingInline(IssuerPart):
    """Demanded of every token of the issuer. One that is bound needs its proof whatever stands here."""

    model = IssuerBinding
    verbose_name_plural = "binding of tokens"
    form = IssuerBindingForm
    fields = ["require", "dpop_nonce"]
