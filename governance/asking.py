"""What the pages share on which staff ask about the policy (matrix, explainer, kill switches): their fields, and the
links from one to the other. A user is named by uid alone, so that no URL holds anything personal."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from django import forms
from django.core.exceptions import ValidationError
from django.urls import reverse
from django.utils.http import urlencode

from audit import subjects
from audit.models import Subject
from clients.models import MODES
from clients.tenants import NO_USER, Tenants, knows
from governance.decision import SubjectState
from tools.models import Tool

UID = r"\Ausr_[A-Za-z0-9_\-]{1,36}\Z"
PATTERN = UID[2:-2]  # for browsers, to which an unescaped hyphen there is an error
NOT_A_UID = "A user is named by uid (usr_…). An e-mail address must not be in a URL."
MAX_NAME, MOST_ROLES = 255, 50  # of a role or tenant; of roles of one user


class ToolName(NamedTuple):
    """A tool, and the backend that offers it, by their names."""

    backend_id: int
    backend: str
    backend_name: str
    name: str

    @property
    def path(self) -> str:
        """`inner/memory.recall`: what names it in a URL."""
        return f"{self.backend}/{self.name}"


def tools(**only: Any) -> list[ToolName]:
    """Every tool (`only` those of a status), by backend and name."""
    columns = ("backend_id", "backend__slug", "backend__name", "name")
    found = Tool.objects.filter(**only).order_by("backend__slug", "name").values_list(*columns)
    return [ToolName(*row) for row in found]


class UidField(forms.RegexField):
    """A user's uid; the user is there. Cleans to the Subject, or None. With `tenants`, for who is confined to those,
    the users of others are not there."""

    tenants: Tenants = None

    def __init__(self, **more: Any) -> None:
        super().__init__(
            UID, label="User", max_length=40, strip=True,
            error_messages={"invalid": NOT_A_UID, "max_length": NOT_A_UID},
            widget=forms.TextInput(
                attrs={"pattern": PATTERN, "placeholder": "usr_…", "title": "A uid: usr_…", "autocomplete": "off"}
            ), **more,
        )  # fmt: skip

    def clean(self, value: Any) -> Subject | None:
        uid = super().clean(value)
        if not uid:
            return None
        found = Subject.objects.filter(uid=uid).first()
        if found is None or not knows(self.tenants, found):
            raise ValidationError(NO_USER)
        if found.erased_at is not None:
            raise ValidationError("This user was erased, and is met as a new one.")
        return found


class ToolField(forms.CharField):
    """A tool of a backend, `inner/memory.recall`, in one of `tools`; cleans to that. A list to choose from; where there
    are many, a text that a browser completes (the page has a <datalist> with the id `tools`)."""

    MOST_LISTED = 60

    def __init__(self, **more: Any) -> None:
        super().__init__(label="Tool", max_length=200, strip=True, **more)
        self.known: Mapping[str, ToolName] = {}

    def offer(self, tools: Iterable[ToolName]) -> None:
        """What there is to choose from, in order."""
        self.known = {tool.path: tool for tool in tools}
        if len(self.known) > self.MOST_LISTED:
            attrs = {"list": "tools", "placeholder": "backend/tool", "autocomplete": "off"}
            self.widget = forms.TextInput(attrs=attrs)
            return
        groups: dict[str, list[tuple[str, str]]] = {}
        for tool in self.known.values():
            groups.setdefault(tool.backend_name, []).append((tool.path, tool.name))
        self.widget = forms.Select(choices=[("", "choose a tool"), *groups.items()])

    @property
    def completed(self) -> list[str]:
        """What the browser completes from; nothing where there is a list."""
        return list(self.known) if len(self.known) > self.MOST_LISTED else []

    def clean(self, value: Any) -> ToolName | None:
        path = super().clean(value)
        if path and path not in self.known:
            raise ValidationError("There is no such tool. Write it as backend/tool.")
        return self.known.get(path)


def name_field(label: str, **more: Any) -> forms.CharField:
    """A role or tenant, as the token says it."""
    attrs = {"autocomplete": "off"}
    return forms.CharField(
        label=label, required=False, max_length=MAX_NAME, strip=True, widget=forms.TextInput(attrs=attrs), **more
    )


def mode_field() -> forms.ChoiceField:
    """An agent mode; interactive unless another is chosen."""
    return forms.ChoiceField(label="Agent mode", required=False, choices=[(mode, mode) for mode in MODES])


def names_in(text: str) -> list[str]:
    """Names with commas between. Raises ValidationError for too many."""
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if len(found) > MOST_ROLES:
        raise ValidationError(f"At most {MOST_ROLES}.")
    return found


def state_of(user: Subject | None) -> SubjectState:
    """What ends the user's access, as it is now."""
    if user is None:
        return SubjectState()
    return SubjectState.of(subjects.state(user.uid))


def query_of(members: Mapping[str, Any]) -> str:
    """A query string of the members that say something; lists become repeated members."""
    said = {key: value for key, value in members.items() if value not in (None, "", [], ())}
    return urlencode(said, doseq=True)


def grant_url(user: Any) -> tuple[str, str]:
    """Where the viewer can have something granted, and what that is called: granted, or asked for."""
    if user.has_perm("clients.add_grant"):
        return reverse("admin:clients_grant_add"), "Grant"
    return reverse("admin:access_ask"), "Ask for"


def suggestion(client: str | None, scopes: Iterable[str], backend: str, tool: str, **more: Any) -> dict[str, Any]:
    """A grant that would help, as the pages that make or ask for one take it: of the scopes, or, where the tool needs
    none, of the tool itself. `more` is whom it is for (subject, role, tenant, mode)."""
    wanted = list(scopes)
    return {"client": client, "scope": wanted, "tool": "" if wanted else f"{backend}/{tool}", **more}
