"""Searches that staff keep under a name, for themselves or for all who read records. What is kept is the search's own
URL: known filters only, names and uids, windows as they were said, so that "last 7 days" stays just that."""

from dataclasses import dataclass
from urllib.parse import urlencode

from django import forms
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.urls import reverse

from audit.admin_base import PlainForm
from audit.models import SavedSearch
from audit.records_form import FilterForm, printable
from audit.viewer import Viewer, check

MOST = 100  # of one member of staff
LONGEST = SavedSearch._meta.get_field("query").max_length or 0


class Refused(Exception):
    """It cannot be kept; the message is for the person who asked."""


class SaveForm(PlainForm):
    """What to call it, and who sees it."""

    name = forms.CharField(
        label="Name", max_length=120, validators=[printable],
        error_messages={"required": "A saved search needs a name."},
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )  # fmt: skip
    shared = forms.BooleanField(label="Others on the staff see it too", required=False)

    def clean_name(self) -> str:
        """Not an address: what is shared names nobody."""
        name: str = self.cleaned_data["name"]
        if "@" in name:
            raise ValidationError("A name must not hold an e-mail address.")
        return name


@dataclass(frozen=True, slots=True)
class Saved:
    """One of the list."""

    id: int
    name: str
    url: str
    own: bool
    shared: bool


def seen_by(viewer: Viewer) -> list[Saved]:
    """One's own, and those that others share; at most a hundred of each. What others call a search, and look for, may
    be of another tenant: who is confined to some sees their own alone."""
    own = _of(viewer)[:MOST]
    others = SavedSearch.objects.filter(~Q(owner=viewer.actor), shared=True)[: MOST if viewer.tenants is None else 0]
    url = reverse("admin:records")
    return [Saved(s.pk, s.name, f"{url}?{s.query}", s.owner == viewer.actor, s.shared) for s in (*own, *others)]


def save(viewer: Viewer, name: str, shared: bool, search: FilterForm) -> None:
    """Keep a search. Raises PermissionDenied; Refused for a name that is taken, and for too many."""
    check(viewer)
    if not search.is_valid():
        raise Refused("The search has a mistake; nothing was saved.")
    query = urlencode(search.kept())
    if len(query) > LONGEST:
        raise Refused("The search is longer than what can be saved.")
    if _of(viewer)[MOST - 1 : MOST].exists():
        raise Refused(f"{MOST} saved searches are the most; delete one first.")
    try:
        with transaction.atomic():
            SavedSearch.objects.create(owner=viewer.actor, name=name, query=query, shared=shared)
    except IntegrityError:
        raise Refused("You have a saved search of this name already.") from None


def delete(viewer: Viewer, number: int) -> bool:
    """Delete one of one's own; whether there was one. Raises PermissionDenied."""
    check(viewer)
    return bool(_of(viewer).filter(pk=number).delete()[0])


def _of(viewer: Viewer) -> QuerySet[SavedSearch]:
    return SavedSearch.objects.filter(owner=viewer.actor)
