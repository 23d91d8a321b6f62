"""What the matrix and the explainer ask alike: for which user, and with which roles."""

from typing import Any

from django.core.exceptions import ValidationError

from audit.admin_base import PlainForm
from governance.asking import names_in

MAY_NOT_LOOK = "You may not look at users."


class ForWhomForm(PlainForm):
    """A form with a `subject` (UidField) and a `role`: who the user is may be asked by those who may look at users.
    `may_look` is False until the form of a page says otherwise."""

    may_look = False

    def clean_subject(self) -> Any:
        """The user, for those who may look at users."""
        user = self.cleaned_data["subject"]
        if user is not None and not self.may_look:
            raise ValidationError(MAY_NOT_LOOK)
        return user

    def clean_role(self) -> list[str]:
        """The roles, which stand with commas between."""
        return names_in(self.cleaned_data["role"])
