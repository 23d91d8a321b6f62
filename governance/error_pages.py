"""What a browser is told when there is no page: in our words and our look, without a detail that helps an attacker.

Calls of the API get problem documents instead (`governance.problems`)."""

import sys
from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.contrib.auth.models import Group, Permission
from django.db import DatabaseError, InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.urls import Resolver404, resolve

from governance import navigation, problems
from governance.confined import KEPT, is_confined

CSRF = {
    "title": "That did not reach us as your own",
    "words": "Nothing was changed. Either this page was open since before you last signed in, or your browser holds no"
    " cookies for this address, or another site sent you here.",
    "next": "Go back, load the page again, and do it once more.",
}
BAD_REQUEST = {
    "title": "That cannot be read",
    "words": "What was sent is not what this page asks for: it is too long, or holds characters that it cannot hold.",
    "next": "Nothing was changed.",
}
NOT_FOUND = {
    "title": "There is nothing here",
    "words": "The address is wrong, or what was here is gone: records are kept only as long as they are retained.",
    "next": "",
}
SERVER_ERROR = {
    "title": "Something went wrong here",
    "words": "It is not your doing. What you asked for was not done, unless a page says otherwise, and what went wrong"
    " is in the server's own log.",
    "next": "Try again in a moment. If it happens again, tell whoever runs this platform, with the time.",
}
AWAY = {
    "title": "The database cannot be reached",
    "words": "Nothing was changed. While it is away, calls of AI clients are refused too, since what cannot be"
    " recorded is not answered.",
    "next": "Try again in a moment.",
}
NOT_ALLOWED = {
    "title": "This address is not a page",
    "words": "It takes what a form sends, and shows nothing by itself. Nothing was changed.",
    "next": "Go back to where the form is.",
}
CONFINED = {
    "title": "You may not see this",
    "words": "You see some tenants alone, and this is about all of them, or about what they share.",
    "next": "Ask somebody who is not confined to tenants.",
}
VERBS = {"add": "add", "change": "view", "changelist": "view", "act": "change"}


def _page(request: HttpRequest, status: int, about: dict[str, Any], plain: bool = False) -> HttpResponse:
    """A page with the navigation, or without it (`plain`) where nothing may be asked of the database."""
    context = {**about, "status": status, "plain": True}
    if not plain and hasattr(request, "user"):
        try:
            context |= {**admin.site.each_context(request), "title": about["title"], "plain": False}
        except (DatabaseError, InterfaceError):
            plain = True
    html = render_to_string("admin/error.html", context, None if plain else request)
    return HttpResponse(html, status=status)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler400."""
    if problems.is_api(request):
        return problems.bad_request().response()
    return _page(request, 400, BAD_REQUEST, plain=True)


def denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler403: with the roles that may see what this viewer may not; no role would help who is confined to
    tenants, where confinement takes the permission away."""
    needed = permission_of(request)
    user = getattr(request, "user", None)
    if user is not None and user.is_authenticated and needed not in KEPT and is_confined(user):
        return _page(request, 403, CONFINED)
    roles = roles_with(needed) if needed else []
    about = {
        "title": "You may not see this", "roles": roles,
        "words": "Your roles do not let you see this page, or do what it does.",
        "next": "" if roles else "Ask an administrator which role would.",
    }  # fmt: skip
    return _page(request, 403, about)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler404."""
    if problems.is_api(request):
        return problems.not_found().response()
    return _page(request, 404, NOT_FOUND)


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500: no detail leaves. A database that is away is said to be, with 503."""
    if problems.is_api(request):
        return problems.internal().response()
    if isinstance(sys.exception(), (OperationalError, InterfaceError)):
        response = _page(request, 503, AWAY, plain=True)
        response.headers["Retry-After"] = "5"
        return response
    return _page(request, 500, SERVER_ERROR, plain=True)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Django's CSRF_FAILURE_VIEW. Which check failed is not said."""
    return _page(request, 403, CSRF)


class NotAllowed:
    """Innermost middleware: a browser that opens what only takes a form (405) gets a page instead of nothing."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer; with a page where the answer is an empty 405."""
        response = self.get_response(request)
        if response.status_code != 405 or problems.is_api(request) or response.content:
            return response
        page = _page(request, 405, NOT_ALLOWED)
        page.headers["Allow"] = response.headers["Allow"]
        return page


def permission_of(request: HttpRequest) -> str | None:
    """The permission that the page takes and the viewer lacks, where that can be told from its address: Django's name
    for a page of a model, or a line of the navigation."""
    try:
        name = (request.resolver_match or resolve(request.path_info)).url_name or ""
    except Resolver404:
        return None
    needed = navigation.permission_for(request.path)
    for model in admin.site._registry:
        prefix = f"{model._meta.app_label}_{model._meta.model_name}_"
        if name.startswith(prefix) and (verb := VERBS.get(name.removeprefix(prefix))):
            verb = "change" if request.method == "POST" and verb == "view" else verb
            needed = f"{model._meta.app_label}.{verb}_{model._meta.model_name}"
    return None if needed is None or request.user.has_perm(needed) else needed


def roles_with(permission: str) -> list[str]:
    """The names of the roles that have a permission, as they are now."""
    app, _, codename = permission.partition(".")
    found = Permission.objects.filter(content_type__app_label=app, codename=codename)
    return list(Group.objects.filter(permissions__in=found).distinct().order_by("name").values_list("name", flat=True))
