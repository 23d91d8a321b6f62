"""Evidence > People: find a user by e-mail address, `sub` or uid. What is typed is in a POST and stays there: it leads
to a uid, and no URL, message or log line has it."""

from typing import Any
from urllib.parse import parse_qsl, urlsplit

from django import forms
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, URLPattern, path, reverse
from django.utils.http import url_has_allowed_host_and_scheme, urlencode
from django.views.decorators.http import require_http_methods

from audit import people
from audit.admin_base import PlainForm
from audit.models import Subject
from audit.viewer import viewer_of

# Pages that take a user as `subject`, to which a look-up may lead back.
BACK = ("admin:records", "admin:access_matrix", "admin:access_explain", "admin:clients_grant_add", "admin:access_ask")
# Of what such a page showed before: where in the list it was, which another user's list has not.
NOT_KEPT = frozenset({"subject", "before", "after"})
TOO_MANY = "That is the most look-ups that anybody may make in a minute. Wait a minute, then go on."


def printable(text: str) -> None:
    """Neither control characters nor halves of characters are part of any identifier."""
    if not text.isprintable():
        raise ValidationError("That holds characters that cannot be printed.")


class PersonForm(PlainForm):
    """Whom to find."""

    person = forms.CharField(
        label="E-mail address, sub or uid", max_length=people.LONGEST, strip=True, validators=[printable],
        error_messages={"required": "Say whom to find.", "max_length": "That is longer than any identifier."},
        widget=forms.TextInput(attrs={"autocomplete": "off", "autofocus": True, "spellcheck": "false"}),
    )  # fmt: skip
    next = forms.CharField(required=False, max_length=2000, widget=forms.HiddenInput)


class PeopleViews:
    """The page, for one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        view = require_http_methods(["GET", "HEAD", "POST"])(self.people)
        return [path("people/", self.site.admin_view(view), name="people")]

    def people(self, request: HttpRequest) -> HttpResponse:
        """GET asks whom; POST finds them, and goes to the one that was found."""
        viewer = viewer_of(request.user)
        if not viewer.records:
            raise PermissionDenied
        if request.method != "POST":
            return self._page(request, PersonForm(initial={"next": safe(request.GET.get("next", ""))}))
        form = PersonForm(request.POST)
        if not form.is_valid():
            return self._page(request, form, status=400)
        back = safe(form.cleaned_data["next"])
        try:
            found = people.look_up(viewer, form.cleaned_data["person"])
        except people.TooMany:
            form.add_error(None, TOO_MANY)
            return self._page(request, form, status=429)
        if len(found.uids) == 1:
            return HttpResponseRedirect(where(found.uids[0], back))
        users = Subject.objects.filter(uid__in=found.uids[: people.SHOWN]).order_by("first_seen")
        return self._page(
            request, form, found=found, users=[(user, where(user.uid, back)) for user in users],
        )  # fmt: skip

    def _page(self, request: HttpRequest, form: PersonForm, status: int = 200, **more: Any) -> HttpResponse:
        context = {
            **self.site.each_context(request), "title": "Find a person", "form": form, "most": people.MOST,
            "may_list": request.user.has_perm("audit.view_subject"), **more,
        }  # fmt: skip
        return TemplateResponse(request, "admin/people.html", context, status=status)


def safe(target: str) -> str:
    """A path of this site that takes a user, else nothing."""
    if not url_has_allowed_host_and_scheme(target, allowed_hosts=None):
        return ""
    for route in BACK:
        try:
            if urlsplit(target).path == reverse(route):
                return target
        except (NoReverseMatch, ValueError):
            continue
    return ""


def where(uid: str, back: str) -> str:
    """The page that a look-up came from, now about this user; else the user's timeline."""
    if not back:
        return reverse("admin:timeline", args=["user", uid])
    parts = urlsplit(back)
    kept = [(name, value) for name, value in parse_qsl(parts.query) if name not in NOT_KEPT and "@" not in value]
    return f"{parts.path}?{urlencode([*kept, ('subject', uid)])}"
