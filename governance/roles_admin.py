"""System > Roles: what each role may do, in plain words, and who has it. For reading: roles come with a release."""

from collections.abc import Iterable
from typing import Any

import django.contrib.auth.admin  # noqa: F401  (registers the stock pages, which are taken out below)
from django.contrib import admin
from django.contrib.auth.models import Group, Permission, User
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from audit.admin_base import ReadOnlyAdmin
from governance import staff_roles
from governance.roles import ROLES

VERBS = {"view": "Sees", "add": "Adds", "change": "Changes", "delete": "Removes"}
# What Django and django-celery-beat call otherwise than we do.
NOUNS = {"auth.user": "members of staff", "auth.group": "roles", "django_celery_beat.periodictask": "schedules"}
MOST_NAMES = 50
admin.site.unregister(Group)


def in_words(permissions: Iterable[Permission]) -> list[tuple[str, str]]:
    """A verb and what it is about, for each verb: (`Sees`, `clients, grants`). Permissions of their own words come
    last, under `And`."""
    nouns: dict[str, list[str]] = {}
    own: list[str] = []
    for permission in permissions:
        verb, _, model = permission.codename.partition("_")
        about = permission.content_type
        if verb in VERBS and model == about.model:
            nouns.setdefault(verb, []).append(noun(about))
        else:
            own.append(permission.name[:1].lower() + permission.name[1:])
    told = [(words, ", ".join(sorted(set(nouns[verb])))) for verb, words in VERBS.items() if verb in nouns]
    return [*told, *([("And", "; ".join(sorted(own)))] if own else [])]


def noun(about: Any) -> str:
    """What several of a model are called."""
    model = about.model_class()
    called = NOUNS.get(f"{about.app_label}.{about.model}")
    return called or (str(model._meta.verbose_name_plural) if model else f"{about.model} (no longer there)")


@admin.register(Group)
class RoleAdmin(ReadOnlyAdmin):
    """One page with all of them."""

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Each role in a sentence, what it may do, who has it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        order = {name: number for number, name in enumerate(ROLES)}
        groups = Group.objects.prefetch_related("permissions__content_type")
        found = sorted(groups, key=lambda group: (order.get(group.name, len(order)), group.name))
        roles = [self._role(request, group) for group in found]
        powers = self._people(request, User.objects.filter(is_superuser=True))
        context = {
            **self.admin_site.each_context(request), "title": "Roles", "roles": roles, "superusers": powers,
            "opts": self.opts, **(extra_context or {}),
        }  # fmt: skip
        return TemplateResponse(request, "admin/staff_roles.html", context)

    def change_view(self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None) -> Any:
        """It is on that page."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return HttpResponseRedirect(reverse("admin:auth_group_changelist"))

    def _role(self, request: HttpRequest, group: Group) -> dict[str, Any]:
        sentence = ROLES[group.name][0] if group.name in ROLES else "Made by hand; no release knows it."
        return {
            "name": group.name, "sentence": sentence, "may": in_words(group.permissions.all()),
            "people": self._people(request, User.objects.filter(groups=group)),
        }  # fmt: skip

    def _people(self, request: HttpRequest, users: Any) -> dict[str, Any]:
        """Those who are active: by name for who may see the staff, else how many."""
        found = list(users.filter(is_active=True, is_staff=True).order_by("username")[: MOST_NAMES + 1])
        names = [(staff_roles.name_of(user), reverse("admin:auth_user_change", args=[user.pk])) for user in found]
        more = len(found) > MOST_NAMES
        counted = f"{len(found)} {'person' if len(found) == 1 else 'people'}"
        shown = names[:MOST_NAMES] if request.user.has_perm("auth.view_user") else []
        return {
            "count": len(found),
            "words": f"more than {MOST_NAMES} people" if more else counted,
            "names": shown,
            "more": more and bool(shown),
        }
