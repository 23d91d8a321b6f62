"""System > Staff: who may come in, by which way, with which roles. Nobody's account is removed, nothing is changed but
by an action that asks why and is recorded, and nobody makes themselves, or anybody else, more than they are."""

from collections.abc import Sequence
from typing import Any, ClassVar

import django.contrib.auth.admin  # noqa: F401  (registers the stock pages, which are taken out below)
from django import forms
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.forms import UserCreationForm
from django.contrib.auth.models import Group, User
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from audit.admin_base import Action, LinesField, ReadOnlyAdmin, ReasonField, ReasonForm, Refused, actor_of
from audit.record_words import amount
from audit.templatetags.muniment import when
from governance import staff_roles, staff_tenants, tenant_names
from governance.roles import ADMINISTRATOR, ROLES

LAST = "You are the last one who can look after the staff. Make somebody else an administrator first."
NOT_BOTH = "A superuser may do everything, so one cannot be confined to tenants, nor can who is confined become one."
CONFINED_HELP = "One name a line, exactly as tokens have it. Empty: every tenant, and what belongs to none."
CONFINING = (
    "Counts from the next page on that they open. Whatever their roles give, they then see the records, users and"
    " grants of these tenants alone, and no page that is about the platform as a whole."
)
admin.site.unregister(User)


def comes_by_provider(user: User) -> bool:
    """Whether the identity provider says who this is, and which roles they have."""
    return hasattr(user, "identity")


def is_confined_here(user: User) -> bool:
    """Whether their tenants are said here, and not by the identity provider."""
    return not (settings.MUNIMENT_OIDC_TENANTS_CLAIM and comes_by_provider(user))


def is_local(user: User) -> bool:
    """Whether the account is Muniment's own, with a password."""
    return not comes_by_provider(user)


class RolesField(forms.MultipleChoiceField):
    """Which roles, each with what it may do."""

    def __init__(self) -> None:
        super().__init__(choices=self.known, widget=forms.CheckboxSelectMultiple, required=False)

    @staticmethod
    def known() -> list[tuple[str, str]]:
        """The roles in their order, then groups that somebody made by hand."""
        others = Group.objects.exclude(name__in=ROLES).order_by("name").values_list("name", flat=True)
        return [*((name, f"{name}: {words}") for name, (words, _) in ROLES.items()), *((n, n) for n in others)]


class TenantsField(LinesField):
    """Which tenants somebody is confined to, one a line."""

    def __init__(self) -> None:
        super().__init__(
            longest=tenant_names.LONGEST, required=False, label="Confined to these tenants", help_text=CONFINED_HELP
        )

    def clean(self, value: Any) -> list[str]:
        """No more than anybody can have."""
        try:
            return tenant_names.check(super().clean(value))
        except ValueError as error:
            raise ValidationError(str(error)) from None


class TenantsForm(ReasonForm):
    """Other tenants, and why."""

    tenants = TenantsField()
    field_order = ["tenants", "reason"]


class RolesForm(ReasonForm):
    """New roles, and why."""

    roles = RolesField()
    field_order = ["roles", "reason"]


def password_field(label: str) -> forms.CharField:
    """A password to be set."""
    return forms.CharField(
        label=label, strip=False, max_length=1000, widget=forms.PasswordInput(attrs={"autocomplete": "new-password"})
    )


class PasswordForm(ReasonForm):
    """A new password for somebody else, and why."""

    password = password_field("New password")
    again = password_field("The same again")
    field_order = ["password", "again", "reason"]

    def clean(self) -> dict[str, Any]:
        """Twice the same, and a good one."""
        data: dict[str, Any] = super().clean() or {}
        if data.get("password") and data.get("again") and data["password"] != data["again"]:
            self.add_error("again", "The two are not the same.")
        elif data.get("password"):
            try:
                validate_password(data["password"])
            except ValidationError as error:
                self.add_error("password", error)
        return data


class AddForm(UserCreationForm):
    """A new local account, its roles, and why."""

    roles = RolesField()
    tenants = TenantsField()
    reason = ReasonField()

    class Meta(UserCreationForm.Meta):
        fields = ("username", "first_name", "last_name", "email")

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **{"label_suffix": "", **more})
        self.fields["username"].help_text = "With which they sign in. It stays."
        self.fields["password1"].help_text = "At least 12 characters. They can change it once they are in."
        self.fields["password2"].help_text = ""


def _actions() -> list[Action]:
    return [
        Action("roles", "Change roles", "The roles count from the next page on that they open.", "set_roles", is_local,
               RolesForm),
        Action("tenants", "Confine to tenants", CONFINING, "set_tenants",
               lambda u: not u.is_superuser and is_confined_here(u), TenantsForm),
        Action("password", "Set a new password", "Tell it to them yourself. Wherever they are signed in, that ends.",
               "set_password", lambda u: is_local(u) and settings.MUNIMENT_LOCAL_PASSWORDS, PasswordForm),
        Action("superuser", "Make superuser", "A superuser may do everything but change a record. Roles are enough for"
               " all daily work.", "raise_up", lambda u: is_local(u) and u.is_active and not u.is_superuser,
               danger=True, permission="superuser"),
        Action("not-superuser", "Take superuser away", "They keep their roles.", "lower", lambda u: u.is_superuser,
               permission="superuser"),
        Action("deactivate", "Deactivate", "They are out with the next page that they open, and cannot sign in again.",
               "deactivate", lambda u: u.is_active, danger=True),
        Action("reactivate", "Reactivate", "They can sign in again.", "reactivate", lambda u: not u.is_active),
    ]  # fmt: skip


@admin.register(User)
class StaffAdmin(ReadOnlyAdmin):
    """Members of staff."""

    intro = "Everybody who may come into this admin. Each change is recorded, with who made it and why."
    empty = "Nobody yet."
    list_display = ["called", "held", "way", "signed_in", "state"]
    list_filter = ["is_active", "groups"]
    ordering = ["username"]
    fields = ["called", "account", "address", "way", "roles", "sees", "signed_in", "since", "state"]
    add_form = AddForm
    can_act: ClassVar[Sequence[Action]] = _actions()

    # --- what is shown -----------------------------------------------------------------------------------------

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        """With roles and identities, in as many queries as there are kinds."""
        rows: QuerySet[User] = super().get_queryset(request).select_related("identity")
        return rows.prefetch_related("groups", "tenants")

    def name_of(self, user: User) -> str:
        return staff_roles.name_of(user)

    @admin.display(description="name", ordering="username")
    def called(self, user: User) -> str:
        return staff_roles.name_of(user)

    @admin.display(description="user name")
    def account(self, user: User) -> str:
        return user.get_username()

    @admin.display(description="e-mail address")
    def address(self, user: User) -> str:
        return user.email or "—"

    @admin.display(description="roles")
    def held(self, user: User) -> str | SafeString:
        found = sorted(group.name for group in user.groups.all())  # as they were fetched for the whole list
        names = [*([staff_roles.SUPERUSER] if user.is_superuser else []), *found]
        pills = format_html_join(" ", '<span class="pill plain">{}</span>', ((name,) for name in names))
        tenants = len(staff_tenants.held_by(user))
        mark = format_html(' <span class="pill flag">{} only</span>', amount(tenants, "tenant")) if tenants else ""
        return format_html("{}{}", pills or "no role", mark)

    @admin.display(description="roles")
    def roles(self, user: User) -> str | SafeString:
        where = "By their groups at the identity provider; changed there." if comes_by_provider(user) else ""
        return format_html('{} <span class="quiet">{}</span>', self.held(user), where)

    @admin.display(description="sees")
    def sees(self, user: User) -> str | SafeString:
        names = staff_tenants.held_by(user)
        where = "" if is_confined_here(user) else "As the identity provider says; changed there."
        if user.is_superuser and names:
            where = "A superuser cannot be confined, so this account cannot sign in."
        listed = f"the tenants {', '.join(names)} alone" if names else "every tenant"
        return format_html('{} <span class="quiet">{}</span>', listed, where)

    @admin.display(description="signs in")
    def way(self, user: User) -> str:
        return "at the identity provider" if comes_by_provider(user) else "with a local password"

    @admin.display(description="last sign-in", ordering="last_login")
    def signed_in(self, user: User) -> str | SafeString:
        return format_html("signed in {}", when(user.last_login)) if user.last_login else "never signed in"

    @admin.display(description="here since", ordering="date_joined")
    def since(self, user: User) -> str:
        return when(user.date_joined)

    @admin.display(description="state", ordering="is_active")
    def state(self, user: User) -> SafeString:
        kind, words = ("allow", "Active") if user.is_active else ("plain", "Deactivated")
        return format_html('<span class="pill {}">{}</span>', kind, words)

    # --- who may do what ---------------------------------------------------------------------------------------

    def may(self, request: HttpRequest, permission: str) -> bool:
        """A superuser alone makes and unmakes superusers."""
        if permission == "superuser":
            return bool(request.user.is_superuser)
        return super().may(request, permission)

    def _is_above(self, actor: Any, user: User) -> bool:
        """Whether the account is out of the reach of who acts."""
        return user.is_superuser and not actor.is_superuser

    def offered(self, request: HttpRequest, obj: Any) -> list[dict[str, Any]]:
        return [] if self._is_above(request.user, obj) else super().offered(request, obj)

    def act_view(self, request: HttpRequest, object_id: str, action: str) -> HttpResponse:
        user = self.get_object(request, object_id)
        if user is not None and self._is_above(request.user, user):
            raise PermissionDenied
        return super().act_view(request, object_id, action)

    def form_of(self, request: HttpRequest, action: Action, obj: Any) -> forms.Form:
        """That of the roles begins with those of now."""
        given = request.POST if request.method == "POST" else None
        if action.name == "roles":
            return RolesForm(given, initial={"roles": staff_roles.held_by(obj)})
        if action.name == "tenants":
            return TenantsForm(given, initial={"tenants": staff_tenants.held_by(obj)})
        return super().form_of(request, action, obj)

    def _check(self, request: HttpRequest, user: User) -> None:
        """Again where the change is made, on the locked row, and as both are now: of two who take each other's account
        or role away at once, the second is out already. Else nobody might be left."""
        actor = staff_roles.as_now(request.user.pk)
        if actor is None or not actor.has_perm("auth.change_user") or self._is_above(actor, user):
            raise PermissionDenied

    def _tell(self, request: HttpRequest, action: str, user: User, data: dict[str, Any], **members: Any) -> None:
        private = {"reason": data.get("reason")}
        staff_roles.tell_about(*actor_of(request), action, user, private, **members)

    # --- what is done ------------------------------------------------------------------------------------------

    def set_roles(self, request: HttpRequest, user: User, data: dict[str, Any]) -> str:
        """Exactly these, from the next page on."""
        self._check(request, user)
        before, own = staff_roles.held_by(user), user.pk == request.user.pk
        roles = {name for name in before if name != staff_roles.SUPERUSER}
        wanted = set(data["roles"])
        if wanted == roles:
            raise Refused("These are the roles that they have.")
        if own and wanted - roles and not user.is_superuser:
            raise Refused("Nobody gives themselves a role. Ask another administrator.")
        gives_up = own and ADMINISTRATOR in roles - wanted and not user.is_superuser
        if gives_up and not staff_roles.others_can_administer(user):
            raise Refused(LAST)
        staff_roles.give(user, wanted)
        self._tell(request, "staff.roles", user, data, before=before, after=staff_roles.held_by(user))
        return f"{self.name_of(user)} has new roles."

    def set_tenants(self, request: HttpRequest, user: User, data: dict[str, Any]) -> str:
        """Exactly these, from the next page on; of none, every one."""
        self._check(request, user)
        before, wanted = staff_tenants.held_by(user), data["tenants"]
        if user.pk == request.user.pk:
            raise Refused("Nobody confines or frees themselves. Ask another administrator.")
        if user.is_superuser:
            raise Refused(NOT_BOTH)
        if wanted == before:
            raise Refused(
                "These are the tenants that they are confined to." if before else "They see every tenant now."
            )
        staff_tenants.give(user, wanted)
        self._tell(request, "staff.tenants", user, data, before=before, after=wanted)
        return (
            f"{self.name_of(user)} now sees {amount(len(wanted), 'tenant') + ' alone' if wanted else 'every tenant'}."
        )

    def set_password(self, request: HttpRequest, user: User, data: dict[str, Any]) -> str:
        """Somebody else's."""
        self._check(request, user)
        if user.pk == request.user.pk:
            raise Refused("Change your own password under “Change password”, which asks for the old one.")
        user.set_password(data["password"])
        user.save(update_fields=["password"])
        self._tell(request, "staff.password", user, data)
        return f"{self.name_of(user)} has a new password."

    def raise_up(self, request: HttpRequest, user: User, data: dict[str, Any]) -> str:
        """By a superuser, a local account."""
        return self._set_superuser(request, user, data, True)

    def lower(self, request: HttpRequest, user: User, data: dict[str, Any]) -> str:
        """By a superuser; not the last who can look after the staff."""
        return self._set_superuser(request, user, data, False)

    def _set_superuser(self, request: HttpRequest, user: User, data: dict[str, Any], value: bool) -> str:
        self._check(request, user)
        if not self.may(request, "superuser"):
            raise PermissionDenied
        before = staff_roles.held_by(user)
        if value and staff_tenants.held_by(user):
            raise Refused(NOT_BOTH)
        if not value and ADMINISTRATOR not in before and not staff_roles.others_can_administer(user):
            raise Refused(LAST)
        user.is_superuser = value
        user.save(update_fields=["is_superuser"])
        self._tell(request, "staff.roles", user, data, before=before, after=staff_roles.held_by(user))
        return f"{self.name_of(user)} is {'now' if value else 'no longer'} a superuser."

    def deactivate(self, request: HttpRequest, user: User, data: dict[str, Any]) -> str:
        """Out with the next request."""
        self._check(request, user)
        if user.pk == request.user.pk and not staff_roles.others_can_administer(user):
            raise Refused(LAST)
        user.is_active = False
        user.save(update_fields=["is_active"])
        self._tell(request, "staff.deactivate", user, data)
        return f"{self.name_of(user)} is deactivated."

    def reactivate(self, request: HttpRequest, user: User, data: dict[str, Any]) -> str:
        """May sign in again."""
        self._check(request, user)
        user.is_active = True
        user.save(update_fields=["is_active"])
        self._tell(request, "staff.reactivate", user, data)
        return f"{self.name_of(user)} can sign in again."

    # --- adding ------------------------------------------------------------------------------------------------

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        return super().add_view(request, form_url, {"title": "Add member of staff", **(extra_context or {})})

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Local accounts, where there are any; the others come by themselves."""
        return bool(settings.MUNIMENT_LOCAL_PASSWORDS) and self.may(request, "add")

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is not None:
            return super().get_fieldsets(request, obj)
        fields = [
            "username",
            "first_name",
            "last_name",
            "email",
            "password1",
            "password2",
            "roles",
            "tenants",
            "reason",
        ]
        return [(None, {"fields": fields})]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else super().get_readonly_fields(request, obj)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **more: Any) -> Any:
        return super().get_form(request, obj, change, **(more if change else {"form": self.add_form, **more}))

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """A new local account, in the admin's transaction."""
        if change or not self.has_add_permission(request):
            raise PermissionDenied
        obj.is_staff = True
        obj.save()
        staff_roles.give(obj, form.cleaned_data["roles"])
        staff_tenants.give(obj, form.cleaned_data["tenants"])
        roles, tenants = staff_roles.held_by(obj), form.cleaned_data["tenants"] or None
        self._tell(request, "staff.add", obj, form.cleaned_data, how="password", roles=roles, tenants=tenants)
