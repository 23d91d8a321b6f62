"""Finding records by an id that somebody typed: it stays in the POST; the search has its keyed hash."""

from django import forms

from audit.entries import LOOKUPS, lookup
from audit.records_form import printable

KINDS = {"request_id": "Request id", "trace_id": "Trace id", "session_id": "Session id"}
LONGEST = 256  # as long as a backend may send it


class IdForm(forms.Form):
    """An id of a request, a trace or a session, as the backend sent it."""

    kind = forms.ChoiceField(label="Which id", choices=list(KINDS.items()))
    value = forms.CharField(
        label="Id", max_length=LONGEST, validators=[printable],
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )  # fmt: skip

    def narrowing(self) -> dict[str, str]:
        """The filter, as the search's URL has it. Call it on a valid form only."""
        kind = self.cleaned_data["kind"]
        return {LOOKUPS[kind]: lookup(kind, self.cleaned_data["value"]).hex()}


class ResourceForm(forms.Form):
    """A resource: its type and its id, as the backend sent them."""

    resource_type = forms.CharField(
        label="Type of the resource", max_length=LONGEST, validators=[printable],
        widget=forms.TextInput(attrs={"autocomplete": "off", "placeholder": "memory"}),
    )  # fmt: skip
    resource_id = forms.CharField(
        label="Id of the resource", max_length=LONGEST, validators=[printable],
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )  # fmt: skip

    def narrowing(self) -> dict[str, str]:
        """The filter, as the search's URL has it. Call it on a valid form only."""
        told = f"{self.cleaned_data['resource_type']}\x00{self.cleaned_data['resource_id']}"
        return {"resource_key": lookup("resource", told).hex()}
