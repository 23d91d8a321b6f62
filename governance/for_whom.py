"""What the matrix and the explainer ask alike: for which user, in which tenant, and with which roles."""

from typing import Any

from django.core.exceptions import ValidationError

from audit.admin_base import PlainForm
from clients.tenants import Tenants
from governance.asking import UidField, names_in

MAY_NOT_LOOK = "You may not look at users."
MOST_SAID = 10  # tenants in the words of an error


class ForWhomForm(PlainForm):
    """A form with a `subject` (UidField), a `tenant` and a `role`: who the user is may be asked by those who may look
    at users. `may_look` is False until the form of a page says otherwise. `tenants` are those to which the viewer is
    confined: only for these, and for their users, can it be asked."""

    may_look = False
    tenants: Tenants = None

    def confine(self, tenants: Tenants) -> None:
        """For a viewer who is confined to these tenants, or to none (None)."""
        self.tenants = tenants
        subject = self.fields["subject"]
        assert isinstance(subject, UidField)
        subject.tenants = tenants

    def clean_subject(self) -> Any:
        """The user, for those who may look at users."""
        user = self.cleaned_data["subject"]
        if user is not None and not self.may_look:
            raise ValidationError(MAY_NOT_LOOK)
        return user

    def clean_tenant(self) -> str:
        """The tenant. Who is confined to one asks of that one, unless they say so."""
        tenant: str = self.cleaned_data["tenant"]
        if self.tenants is None or tenant in self.tenants:
            return tenant
        if not tenant:
            return next(iter(self.tenants)) if len(self.tenants) == 1 else ""
        names = ", ".join(sorted(self.tenants)[:MOST_SAID])
        raise ValidationError(f"You see these tenants: {names}.")

    def clean_role(self) -> list[str]:
        """The roles, which stand with commas between."""
        return names_in(self.cleaned_data["role"])
