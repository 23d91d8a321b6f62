"""The form of an export: what of the search, in which format, when, where to, and who is told. What it says is checked
again where the export is made (`audit.exports.definitions`) and where it runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django import forms
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.forms.utils import ErrorDict
from django.utils import timezone
from django.utils.text import capfirst

from audit.admin_base import PlainForm
from audit.exports import schedules
from audit.exports.columns import COLUMNS, DEFAULT, PERSONAL
from audit.exports.definitions import Definition
from audit.exports.formats import WITH_COLUMNS
from audit.exports.rights import WHOLE
from audit.exports.schedules import ScheduleError
from audit.exports.words import FORMATS, next_times, schedule_words, times_words
from audit.models import Destination, Export
from audit.records_form import printable
from audit.viewer import Viewer

MOST_STAFF = 200
CRONTAB, LOOK = "crontab", "look"
GROUPS = {
    "When, and which": ("time", "index", "record", "kind"),
    "Who, and what": (
        "user", "user known by", "client", "tool", "backend", "tenant", "agent mode", "scopes needed",
    ),
    "What was decided": ("decision", "reason", "flagged"),
    "What happened": ("outcome", "items touched", "milliseconds"),
    "Proof": ("statement",),
}  # fmt: skip
LABELS = {"sub": "Identifier at the issuer (sub)", "email": "E-mail address", "ip": "IP address"}
OTHERS, OF_PEOPLE = "More", "Personal data"
NOT_SEEN = "These show who users are: only who may see personal data can export them."
NO_PLACE = "No bucket, folder or server is set up. The operator names them in MUNIMENT_DESTINATIONS; then it is here."
NO_SHARED_PLACE = "Destinations are shared by all tenants, and you see some alone."
NOT_SET_UP = "This platform’s exports hold no personal data: the operator has not set MUNIMENT_EXPORT_PERSONAL."


@dataclass(frozen=True, slots=True)
class Group:
    """Columns that belong together, as check boxes, and why they cannot be ticked, where that is so."""

    words: str
    boxes: Sequence[Any]
    note: str = ""


def personal_refusal(viewer: Viewer) -> str:
    """Why somebody cannot export personal data; nothing where they can."""
    if not viewer.personal:
        return NOT_SEEN
    return "" if settings.MUNIMENT_EXPORT_PERSONAL else NOT_SET_UP


def staff(viewer: Viewer) -> list[tuple[int, str]]:
    """Who can be told by e-mail: active staff with an address who may see exports; of those who are confined to tenants
    themselves alone. Number and name, in one query."""
    users: Any = get_user_model().objects
    backend = settings.AUTHENTICATION_BACKENDS[0]  # of either the same
    known = users.with_perm("audit.view_export", backend=backend).filter(is_staff=True).exclude(email="")
    if viewer.tenants is not None:
        known = known.filter(pk=viewer.actor.removeprefix("staff:"))
    return [(user.pk, user.get_full_name() or user.get_username()) for user in known.order_by("username")[:MOST_STAFF]]


class ExportForm(PlainForm):
    """An export, new or changed. `cleaned_data` has what `audit.exports.definitions` takes, in `definition()`."""

    name = forms.CharField(
        label="Name", max_length=120, validators=[printable],
        error_messages={"required": "An export needs a name: its files are called by it."},
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
        help_text="Its files begin with it. It must not name a person.",
    )  # fmt: skip
    format = forms.ChoiceField(
        label="Format", widget=forms.RadioSelect, error_messages={"required": "Choose a format."},
        choices=[(name, words) for name, (words, _) in FORMATS.items() if name != "evidence"],
    )  # fmt: skip
    columns = forms.MultipleChoiceField(label="Columns", required=False, widget=forms.CheckboxSelectMultiple)
    reason = forms.CharField(
        label="Why with personal data", required=False, max_length=500, validators=[printable],
        widget=forms.Textarea(attrs={"rows": 2, "class": "reason"}),
        help_text="Only for columns of personal data. Kept with the export, and in the log. Do not name people.",
    )  # fmt: skip
    schedule = forms.ChoiceField(label="How often", required=False, widget=forms.RadioSelect)
    crontab = forms.CharField(
        label="Crontab", required=False, max_length=schedules.LONGEST,
        help_text="Minute, hour, day of the month, month and weekday, in UTC: 30 2 * * 1-5 is 02:30 from Monday to"
        " Friday.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false", "placeholder": "30 2 * * *"}),
    )  # fmt: skip
    destination = forms.ChoiceField(label="Destination", required=False, widget=forms.RadioSelect)
    recipients = forms.TypedMultipleChoiceField(
        label="Tell by e-mail", required=False, coerce=int, widget=forms.CheckboxSelectMultiple,
        help_text="They get a link, never the data. Offered are members of staff with an address who may see exports.",
    )  # fmt: skip

    def __init__(self, viewer: Viewer, data: Any = None, *, initial: Mapping[str, Any] | None = None) -> None:
        if data is not None and LOOK in data:
            data = data.copy()
            data["schedule"] = CRONTAB  # who looks at when it comes has chosen it
        super().__init__(data, initial=initial)
        self.viewer, self.refusal = viewer, personal_refusal(viewer)
        kept = (initial or {}).get("columns", ())
        offered = [*COLUMNS, *(() if self.refusal else PERSONAL), *(c for c in kept if c in PERSONAL and self.refusal)]
        self._offer("columns", [(name, column_label(name)) for name in offered])
        once = "Only when somebody runs it" if "name" in (initial or {}) else "Once, now"
        presets = [(name, schedule_words(name)) for name in schedules.PRESETS]
        self._offer("schedule", [("", once), *presets, (CRONTAB, "By a crontab")])
        self.confined = viewer.tenants is not None
        self.places_known = [] if self.confined else list(Destination.objects.order_by("name")[:100])
        self._offer("destination", [("", "Keep it for download here"), *map(_place, self.places_known)])
        self._offer("recipients", staff(viewer))
        if self.confined:
            self._offer("format", [(name, words) for name, words in self.fields["format"].choices if name not in WHOLE])  # type: ignore[attr-defined]
            self.fields["destination"].help_text = NO_SHARED_PLACE
        if not self.places_known and not self.confined:
            self.fields["destination"].help_text = NO_PLACE
        if not self.fields["recipients"].choices:  # type: ignore[attr-defined]
            self.fields["recipients"].help_text = "No member of staff who may see exports has an e-mail address."

    def _offer(self, name: str, choices: Iterable[tuple[Any, str]]) -> None:
        field = self.fields[name]
        assert isinstance(field, forms.ChoiceField)
        field.choices = list(choices)

    # --- how the page shows it ---------------------------------------------------------------------------------

    @property
    def names(self) -> list[Any]:
        """The first part of the form."""
        return [self["name"]]

    @property
    def why(self) -> list[Any]:
        """The reason, for those who may export personal data."""
        return [] if self.refusal else [self["reason"]]

    @property
    def places(self) -> list[Any]:
        """Where to, and who is told."""
        return [self["destination"], self["recipients"]]

    @property
    def column_groups(self) -> list[Group]:
        """The columns in groups; those of personal data last, with why not, where that is so."""
        boxes = {box.data["value"]: box for box in self["columns"]}
        known = {name for names in GROUPS.values() for name in names} | set(PERSONAL)
        groups = [Group(words, [boxes[n] for n in names if n in boxes]) for words, names in GROUPS.items()]
        groups.append(Group(OTHERS, [box for name, box in boxes.items() if name not in known]))
        people = Group(OF_PEOPLE, [box for name, box in boxes.items() if name in PERSONAL], self.refusal)
        return [group for group in groups if group.boxes] + [people]

    def next_times(self) -> list[tuple[str, str]]:
        """The next times of each preset, in words."""
        now = timezone.now()
        return [(name, f"Next: {times_words(next_times(name, now))}") for name in schedules.PRESETS]

    # --- what it says ------------------------------------------------------------------------------------------

    def clean_name(self) -> str:
        """Not an address: what is exported names nobody in its name."""
        name = str(self.cleaned_data["name"])
        if "@" in name:
            raise ValidationError("A name must not hold an e-mail address.")
        return name

    def clean_reason(self) -> str:
        """No address either."""
        reason = str(self.cleaned_data["reason"]).strip()
        if "@" in reason:
            raise ValidationError("A reason must not hold an e-mail address.")
        return reason

    def clean(self) -> dict[str, Any]:
        """The parts fit together."""
        data = super().clean() or {}
        self._check_columns(data)
        self._check_schedule(data)
        return data

    def _check_columns(self, data: dict[str, Any]) -> None:
        if data.get("format") not in WITH_COLUMNS:
            data["columns"], data["reason"] = [], ""
            return
        chosen = data.get("columns")
        if chosen is None:  # it has its error
            return
        if not chosen:
            self.add_error("columns", "Choose at least one column.")
        personal = [name for name in chosen if name in PERSONAL]
        if personal and self.refusal:
            self.add_error("columns", self.refusal)
        elif personal and not data.get("reason") and "reason" not in self.errors:
            self.add_error("reason", "Say why the file is to hold personal data.")
        elif not personal:
            data["reason"] = ""

    def _check_schedule(self, data: dict[str, Any]) -> None:
        if data.get("schedule") != CRONTAB:
            data["crontab"] = ""
            return
        data["crontab"] = self.crontab_text()
        if "crontab" not in self.errors and (wrong := crontab_mistake(data["crontab"])):
            self.add_error("crontab", wrong)

    def crontab_text(self) -> str:
        """The crontab as it was typed, whatever else was chosen."""
        return " ".join(str(self.data.get("crontab") or "").split())[: schedules.LONGEST]

    def look_at_crontab(self) -> str:
        """Only whether and when a crontab comes: other mistakes wait until the form is saved. Its next times in words,
        empty where it has a mistake."""
        self.full_clean()
        self._errors = ErrorDict()
        text = self.crontab_text()
        if wrong := crontab_mistake(text):
            self.add_error("crontab", wrong)
            return ""
        return f"Next: {times_words(next_times(text, timezone.now()))}"

    def definition(self, query: str) -> Definition:
        """The export of this search. Call it on a valid form only."""
        data = self.cleaned_data
        ordered = tuple(name for name in (*COLUMNS, *PERSONAL) if name in data["columns"])
        return Definition(
            name=data["name"], format=data["format"], query=query, columns=ordered,
            personal=any(name in PERSONAL for name in ordered), reason=data["reason"],
            schedule=data["crontab"] or data["schedule"], destination=data["destination"],
            recipients=tuple(data["recipients"]),
        )  # fmt: skip

    def refuse(self, error: ValidationError) -> list[str]:
        """Show what the export was refused for at the fields that it is about; what is about the search is returned."""
        if not hasattr(error, "error_dict"):
            self.add_error(None, error)
            return []
        about_search: list[str] = []
        for name, messages in error.message_dict.items():
            if name == "query":
                about_search += messages
            elif name == "schedule" and self.cleaned_data.get("schedule") == CRONTAB:
                self.add_error("crontab", messages)
            else:
                self.add_error(name if name in self.fields else None, messages)
        return about_search


def column_label(name: str) -> str:
    """What a column is called."""
    return LABELS.get(name) or capfirst(name.replace("_", " "))


def crontab_mistake(text: str) -> str:
    """What is wrong with the five fields of a crontab; nothing where it comes."""
    if not text or text in schedules.PRESETS:
        return "Write the five fields of a crontab."
    try:
        schedules.following(schedules.parse(text), timezone.now())
    except ScheduleError as error:
        return str(error)
    except StopIteration:
        return "That never comes."
    return ""


def _place(one: Destination) -> tuple[str, str]:
    """A destination for its radio button: name, place, and whether it works."""
    said = f" (failing: {one.error})" if one.failures and one.error else "" if one.reached_at else " (not used yet)"
    return one.name, f"{one.name}: {one.place}{said}"


def initial_of(export: Export) -> dict[str, Any]:
    """What the form of an export that exists begins with."""
    preset = export.schedule in schedules.PRESETS or not export.schedule
    return {
        "name": export.name, "format": export.format, "columns": export.columns, "reason": export.reason,
        "schedule": export.schedule if preset else CRONTAB, "crontab": "" if preset else export.schedule,
        "destination": export.destination, "recipients": export.recipients,
    }  # fmt: skip


def usual() -> dict[str, Any]:
    """What a new one begins with."""
    return {"format": "csv", "columns": DEFAULT, "schedule": "", "destination": ""}
