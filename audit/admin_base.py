"""What every page of the admin shares: changes are attributed to who makes them and say why, what the database
refuses becomes a form error, and actions are done by POST on a page that asks for the reason.

The log is the only history: Django's own admin log, which anybody with the database could rewrite, is not kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.db import DatabaseError, DataError, IntegrityError, connection, router, transaction
from django.db.models.constants import LOOKUP_SEP
from django.forms import BaseInlineFormSet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.functional import cached_property
from django.utils.text import capfirst

from audit.outbox import attribute

MAX_REASON = 500
REFUSED = "_muniment_refused"  # on a request: what the database said to the same form a moment ago
HERE = "_muniment_here"  # on a request: the route of the navigation's line that its page belongs to
# The database's own words for what it refused are not for people; these are, by constraint.
CONSTRAINTS = {
    "scope_implies_no_cycle": "The implications would form a cycle.",
    "grant_starts_before_it_expires": "It would expire before it starts.",
    "sighting_once": "This is in the inbox already.",
}
ANY_CONSTRAINT = "This contradicts what is stored already; somebody may have changed it a moment ago."


class Refused(Exception):
    """The change cannot be made; the message is for the person who asked."""


def actor_of(request: HttpRequest) -> tuple[str, str]:
    """Who acts, as the log names staff (`staff:<id>`), and the name for people, which the log protects."""
    user: Any = request.user
    return f"staff:{user.pk}", (user.get_full_name() or user.get_username())[:150]


def act(request: HttpRequest, reason: str) -> None:
    """Attribute what the rest of this transaction changes. Raises RuntimeError outside of one, since there the
    attribution would end with this statement."""
    if not connection.in_atomic_block:
        raise RuntimeError("a change of policy is attributed within its transaction")
    with connection.cursor() as cursor:
        attribute(cursor, *actor_of(request), reason)


def words_of(error: DatabaseError) -> str:
    """A sentence for a refusal by the database; never a value."""
    diagnostics = getattr(error.__cause__, "diag", None)
    name = getattr(diagnostics, "constraint_name", None) or ""
    return CONSTRAINTS.get(name, ANY_CONSTRAINT)


def validate_reason(text: str) -> None:
    """Line breaks are fine, other control characters are not."""
    if not all(character.isprintable() or character in "\r\n\t" for character in text):
        raise ValidationError("The reason holds characters that cannot be printed.")


class ReasonField(forms.CharField):
    """Why: required, kept in the log, protected there."""

    def __init__(self) -> None:
        super().__init__(
            label="Reason",
            max_length=MAX_REASON,
            widget=forms.Textarea(attrs={"rows": 2, "class": "reason"}),
            help_text="Kept with the change in the log. Do not name people.",
            validators=[validate_reason],
        )


class PlainForm(forms.Form):
    """A form whose labels end without a colon."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **{"label_suffix": "", **more})


class ReasonForm(PlainForm):
    """A confirmation that says why."""

    reason = ReasonField()


class ConfirmForm(PlainForm):
    """A confirmation of what changes no policy by itself."""


class PlainModelForm(forms.ModelForm):
    """A form over a model whose labels end without a colon."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **{"label_suffix": "", **more})


class PolicyForm(PlainModelForm):
    """A form over a policy table: with a reason, and with what the database refused, if it did."""

    change_reason = ReasonField()
    refused: ClassVar[str | None] = None

    def clean(self) -> dict[str, Any] | None:
        if self.refused:
            raise ValidationError(self.refused)
        return super().clean()


class LinesField(forms.CharField):
    """An array of strings, one a line; `check` raises ValueError for one that is wrong."""

    def __init__(self, check: Callable[[str], object] = str, longest: int = 255, **more: Any) -> None:
        self.check, self.longest = check, longest
        super().__init__(widget=forms.Textarea(attrs={"rows": 3, "class": "mono"}), **more)

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, (list, tuple)) else value

    def has_changed(self, initial: Any, data: Any) -> bool:
        return super().has_changed(self.prepare_value(initial), data)

    def clean(self, value: Any) -> list[str]:
        text = super().clean(value)
        lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
        for line in lines:
            if len(line) > self.longest or not line.isprintable():
                raise ValidationError(f"Each line is printable and at most {self.longest} characters long.")
            try:
                self.check(line)
            except ValueError as error:
                raise ValidationError(f"{line}: {error}") from None
        return lines


class ChoicesField(forms.MultipleChoiceField):
    """An array whose members come from a short list."""

    def __init__(self, names: Sequence[str], **more: Any) -> None:
        super().__init__(choices=[(n, n) for n in names], widget=forms.CheckboxSelectMultiple, **more)

    def has_changed(self, initial: Any, data: Any) -> bool:
        return sorted(initial or []) != sorted(data or [])


@dataclass(frozen=True, slots=True)
class Action:
    """Something done to one object, on a page of its own that asks for a reason.

    `method` names a method of the ModelAdmin: (request, object, cleaned data) -> what to say. `offered` says
    whether it makes sense for the object. `permission` is of the object's model (`change` by default).
    `in_transaction` is False for what must not be done inside one, and then attributes itself.
    `digest` is for what staff decide by what the page says of the object (its `facts`): the form carries the digest
    of that, and what is another by the time that the object is locked is refused (only in a transaction)."""

    name: str
    label: str
    explanation: str
    method: str
    offered: Callable[[Any], bool] = lambda _: True
    form: type[forms.Form] = ReasonForm
    danger: bool = False
    permission: str = "change"
    in_transaction: bool = True
    digest: Callable[[Any], str] | None = None


class CappedPaginator(Paginator):
    """Counts to 10,000 and no further; beyond that, a search is the way, not a page number."""

    MOST = 10_000

    @cached_property
    def count(self) -> int:
        listed: Any = self.object_list
        return int(listed.order_by()[: self.MOST].count())  # in an order, all would be sorted to be counted


class BaseAdmin(admin.ModelAdmin):
    """List and detail pages without bulk actions, without deletion, without counting twice, with actions."""

    form: type[forms.ModelForm] = PlainModelForm
    actions = None
    show_full_result_count = False
    list_per_page = 50
    paginator = CappedPaginator
    can_act: ClassVar[Sequence[Action]] = ()
    intro = ""
    empty = ""

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nothing is deleted: it is suspended, disabled, retired or revoked, and stays as history."""
        return False

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """The log has it."""

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> Any:
        """The log has it."""

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """The object; None also for a key that the database would not take."""
        # A field without a name is none, which Django looks up all the same.
        return None if "\0" in object_id else super().get_object(request, object_id, from_field or None)

    def lookup_allowed(self, lookup: str, value: Any, request: Any = None) -> bool:
        """Only what the list offers to filter by: by another column (the digest of a password, the hash of an address)
        its value could be asked out, a character at a time."""
        filters = [one[0] if isinstance(one, (list, tuple)) else one for one in self.get_list_filter(request)]
        offered = [getattr(one, "parameter_name", one) for one in filters]
        if lookup.split(LOOKUP_SEP)[0] not in offered or "\0" in str(value):
            return False
        return bool(super().lookup_allowed(lookup, value, request))

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """The history is the log's."""
        return HttpResponseRedirect(reverse("admin:records") + "?type=policy&window=30d")

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """The list, with a sentence on what it holds and one for when it is empty."""
        about = {"title": capfirst(self.opts.verbose_name_plural), "intro": self.intro, "empty": self.empty}
        return super().changelist_view(request, about | (extra_context or {}))

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **more: Any) -> Any:
        """Without the pop-up windows that make, change and delete what a field points to."""
        field: Any = super().formfield_for_dbfield(db_field, request, **more)
        if hasattr(getattr(field, "widget", None), "can_add_related"):
            field.widget = field.widget.widget
        return field

    # --- actions -----------------------------------------------------------------------------------------------

    def get_urls(self) -> list[Any]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_act"
        view = self.admin_site.admin_view(self.act_view)
        return [path("<path:object_id>/act/<slug:action>/", view, name=name), *super().get_urls()]

    def may(self, request: HttpRequest, permission: str) -> bool:
        """Whether the viewer has the model's own permission, whatever the stock form offers."""
        return request.user.has_perm(f"{self.opts.app_label}.{permission}_{self.opts.model_name}")

    def offered(self, request: HttpRequest, obj: Any) -> list[dict[str, Any]]:
        """The buttons for one object."""
        return [
            {"label": a.label, "danger": a.danger, "url": self.url_of(obj, a.name)}
            for a in self.can_act
            if a.offered(obj) and self.may(request, a.permission)
        ]

    def name_of(self, obj: Any) -> str:
        """What an object is called on its pages."""
        return str(obj)

    def facts(self, obj: Any) -> list[tuple[str, Any]]:
        """What the page of an action with a `digest` says of the object: names and values."""
        return []

    def url_of(self, obj: Any, action: str | None = None) -> str:
        """Where an object, or an action on it, is."""
        prefix = f"admin:{self.opts.app_label}_{self.opts.model_name}"
        if action is None:
            return reverse(f"{prefix}_change", args=[quote(obj.pk)])
        return reverse(f"{prefix}_act", args=[obj.pk, action])

    def changeform_view(
        self, request: HttpRequest, object_id: Any = None, form_url: str = "", extra_context: Any = None
    ) -> Any:
        """The form; what the database refuses is shown in it instead of failing."""
        context: dict[str, Any] = {"show_save_and_add_another": False, **(extra_context or {})}
        if object_id is not None and (obj := self.get_object(request, unquote(object_id))) is not None:
            context |= {"act_buttons": self.offered(request, obj), "title": self.name_of(obj), "subtitle": None}
        try:
            return super().changeform_view(request, object_id, form_url, context)
        except (IntegrityError, DataError) as error:
            setattr(request, REFUSED, words_of(error))
        return super().changeform_view(request, object_id, form_url, context)

    def form_of(self, request: HttpRequest, action: Action, obj: Any) -> forms.Form:
        """The form of an action on an object, with what was posted."""
        return action.form(request.POST if request.method == "POST" else None)

    def act_view(self, request: HttpRequest, object_id: str, action: str) -> HttpResponse:
        """GET asks, POST does; nothing changes on GET."""
        chosen = next((a for a in self.can_act if a.name == action), None)
        obj = self.get_object(request, object_id)
        if chosen is None or obj is None:
            raise Http404
        if not self.may(request, chosen.permission):
            raise PermissionDenied
        if not chosen.offered(obj):
            messages.warning(request, f"“{chosen.label}” does not apply to it as it is now.")
            return HttpResponseRedirect(self.url_of(obj))
        form = self.form_of(request, chosen, obj)
        if request.method == "POST" and form.is_valid():
            try:
                messages.success(request, self._do(request, chosen, obj, form.cleaned_data))
                return HttpResponseRedirect(self._after(obj))
            except Refused as error:
                form.add_error(None, str(error))
            except (IntegrityError, DataError) as error:
                form.add_error(None, words_of(error))
            if (obj := self.get_object(request, object_id)) is None:  # as it is now, not as it was before the lock
                raise Http404
        return TemplateResponse(request, "admin/act.html", self._asked(request, chosen, obj, form))

    def _asked(self, request: HttpRequest, action: Action, obj: Any, form: forms.Form) -> dict[str, Any]:
        """What the page of an action shows. The facts and their digest are of the same object in memory."""
        return {
            **self.admin_site.each_context(request), "opts": self.opts, "object": obj, "action": action,
            "form": form, "title": f"{action.label}: {self.name_of(obj)}", "name": self.name_of(obj),
            "back": self.url_of(obj), "facts": self.facts(obj) if action.digest else [],
            "definition": action.digest(obj) if action.digest else None,
        }  # fmt: skip

    def _after(self, obj: Any) -> str:
        """The object's page, or the list when the action removed it."""
        if self.model._default_manager.filter(pk=obj.pk).exists():
            return self.url_of(obj)
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_changelist")

    def _do(self, request: HttpRequest, action: Action, obj: Any, data: dict[str, Any]) -> str:
        """Do it, on the object as it is now, if it is still allowed and still makes sense."""
        method = getattr(self, action.method)
        if not action.in_transaction:
            return str(method(request, obj, data))
        with transaction.atomic(using=router.db_for_write(self.model)):
            held = type(obj)._default_manager.select_for_update(of=("self",)).filter(pk=obj.pk).first()
            if held is None:
                raise Refused("Somebody removed it a moment ago.")
            if not self.may(request, action.permission):
                raise PermissionDenied
            if not action.offered(held):
                raise Refused("Somebody changed it a moment ago.")
            if action.digest and action.digest(held) != request.POST.get("definition"):
                name = self.opts.verbose_name
                raise Refused(f"The {name} changed since the page was opened. Read what it is now, then decide again.")
            act(request, data.get("reason", ""))
            return str(method(request, held, data))


class PolicyAdmin(BaseAdmin):
    """Pages over a policy table: every form asks why, every change is recorded as the viewer's."""

    form: type[forms.ModelForm] = PolicyForm

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **more: Any) -> Any:
        """A form class for this request, so that it can carry what the database refused."""
        made: Any = super().get_form(request, obj, change, **more)
        made.refused = getattr(request, REFUSED, None)
        return made

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """The reason comes last, and only where something can be saved."""
        sets: list[tuple[Any, dict[str, Any]]] = [
            (name, {**options}) for name, options in super().get_fieldsets(request, obj)
        ]
        may_save = self.has_add_permission(request) if obj is None else self.has_change_permission(request, obj)
        fields = [f for f in sets[-1][1]["fields"] if f != "change_reason"]
        sets[-1][1]["fields"] = [*fields, "change_reason"] if may_save else fields
        return sets

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Inside the admin's transaction: say who and why first, check again that they may."""
        if not self.may(request, "change" if change else "add"):
            raise PermissionDenied
        act(request, form.cleaned_data["change_reason"])
        super().save_model(request, obj, form, change)


class ReadOnlyAdmin(BaseAdmin):
    """Pages to look at. Actions, where there are any, check the model's own permissions."""

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Everything that is shown."""
        return self.fields or super().get_readonly_fields(request, obj)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class LabelledFormSet(BaseInlineFormSet):
    """Its check boxes say what they do, which the head of their table does not to everybody."""

    def add_fields(self, form: Any, index: int | None) -> None:
        super().add_fields(form, index)
        if "DELETE" in form.fields:
            form.fields["DELETE"].widget.attrs["aria-label"] = "Delete"


class PolicyInline(admin.TabularInline):
    """Rows that belong to one object; the form around them attributes their change. Deleting one is a change of
    the object."""

    extra = 1
    formset = LabelledFormSet
    most_more = 100  # rows at once; Django's own bound are thousands, which take seconds to show

    def get_formset(self, request: HttpRequest, obj: Any = None, **more: Any) -> Any:
        """However many rows a sender claims, no more are made than there are and `most_more`."""
        if request.method == "POST":
            [owner] = [one for one in self.model._meta.fields if one.related_model is self.parent_model]
            there = self.model._default_manager.filter(**{owner.name: obj}).count() if obj else 0
            more["max_num"] = more["absolute_max"] = there + self.most_more
        return super().get_formset(request, obj, **more)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_change_permission(request, obj)

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **more: Any) -> Any:
        """Without pop-up windows, and with a label, which the head of a table is not."""
        field: Any = super().formfield_for_dbfield(db_field, request, **more)
        if hasattr(getattr(field, "widget", None), "can_add_related"):
            field.widget = field.widget.widget
        if field is not None:
            field.widget.attrs["aria-label"] = capfirst(db_field.verbose_name)
        return field


def bytes_hex(value: Any) -> str:
    """A binary column, readable."""
    return bytes(value).hex() if value is not None else "—"
