"""System > Notifications: what a member of staff is told of by e-mail, which of it they want, and what was told lately.
Everybody on the staff has it, for themselves."""

from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Q
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_http_methods

from audit.admin_base import PlainForm, actor_of
from audit.record_page import Pill
from audit.staff_log import tell
from audit.viewer import tenants_of
from governance.models import Notification, NotificationChoice, NotificationDelivery
from governance.notifications import KINDS, WEBHOOK, Kind, choose, kinds_for

SHOWN = 30
WATCHES = "audit.view_alert"  # of those who run the platform: how the webhook does


@dataclass(frozen=True, slots=True)
class Told:
    """One notification as the page shows it: when, what, whether it lasts, and what became of the e-mail to the viewer
    (and, for those who run the platform, of the webhook)."""

    row: Notification
    title: str
    pill: Pill
    mail: str
    webhook: str


class ChoiceForm(PlainForm):
    """Which kinds to be told of by e-mail."""

    kinds = forms.MultipleChoiceField(required=False, label="By e-mail", widget=forms.CheckboxSelectMultiple)

    def __init__(self, able: dict[str, Kind], *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.able = able
        kinds: Any = self.fields["kinds"]
        kinds.choices = [(code, kind.title) for code, kind in able.items()]

    def rows(self) -> list[tuple[str, Kind, bool]]:
        """Each kind with whether it is ticked."""
        ticked = set(self["kinds"].value() or [])
        return [(code, kind, code in ticked) for code, kind in self.able.items()]


class NotificationViews:
    """The page, for one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        page = require_http_methods(["GET", "HEAD", "POST"])(self.page)
        return [path("notifications/", self.site.admin_view(page), name="notifications")]

    def page(self, request: HttpRequest) -> HttpResponse:
        """GET: the page. POST: keep the choice."""
        user: Any = request.user
        able = kinds_for(user)
        if request.method == "POST":
            form = ChoiceForm(able, request.POST)
            if form.is_valid():
                self._keep(request, form.cleaned_data["kinds"])
                return HttpResponseRedirect(reverse("admin:notifications"))
        else:
            off = NotificationChoice.objects.filter(pk=user.pk).values_list("off", flat=True).first() or []
            form = ChoiceForm(able, initial={"kinds": [code for code in able if code not in off]})
        context = {
            **self.site.each_context(request), "title": "Notifications", "form": form, "email": user.email,
            "told": told(user, able), "watches": user.has_perm(WATCHES), "webhook": webhook_state(user),
        }  # fmt: skip
        return TemplateResponse(request, "admin/notifications.html", context, status=400 if form.errors else 200)

    def _keep(self, request: HttpRequest, wanted: list[str]) -> None:
        user: Any = request.user
        if not (user.is_active and user.is_staff):
            raise PermissionDenied
        with transaction.atomic():
            off = choose(user, wanted)
            tell(*actor_of(request), "staff.notifications", off=off)
        messages.success(request, "Your choice is kept.")


def told(user: Any, able: dict[str, Kind]) -> list[Told]:
    """The newest notifications of the kinds that somebody can be told of."""
    about = Notification.objects.filter(kind__in=able)
    if (tenants := tenants_of(user)) is not None:  # what was sent to them, and is of tenants that they see by now
        theirs = Q(tenant__in=tenants) | Q(kind="export")
        about = about.filter(theirs, deliveries__to=f"staff:{user.pk}")
    found = list(about.order_by("-made_at", "-pk")[:SHOWN])
    if not user.has_perm("audit.change_export"):  # of exports their own alone, which were sent to them
        mine = set(_deliveries(found, f"staff:{user.pk}"))
        found = [one for one in found if one.kind != "export" or one.pk in mine]
    mails, hooks = _deliveries(found, f"staff:{user.pk}"), _deliveries(found, WEBHOOK)
    return [
        Told(
            one, KINDS[one.kind].title, Pill("plain", "Over") if one.over_at else Pill("flag", "Lasts"),
            state(mails.get(one.pk)), state(hooks.get(one.pk)),
        )
        for one in found
    ]  # fmt: skip


def _deliveries(found: list[Notification], to: str) -> dict[int, NotificationDelivery]:
    rows = NotificationDelivery.objects.filter(notification__in=found, to=to)
    return {row.notification_id: row for row in rows}


def state(row: NotificationDelivery | None) -> str:
    """What became of one delivery, in words."""
    if row is None:
        return "not sent"
    if row.done_at:
        return "sent"
    if row.given_up_at:
        return f"not sent: {row.error or 'given up'}"
    times = "once" if row.tries == 1 else f"{row.tries} times"
    return f"tried {times}: {row.error}" if row.tries else "about to be sent"


def webhook_state(user: Any) -> str:
    """How the operator's webhook does, for those who run the platform; empty for others."""
    if not user.has_perm(WATCHES):
        return ""
    newest = NotificationDelivery.objects.filter(to=WEBHOOK).order_by("-pk").first()
    if newest is None:
        return "Nothing was sent to a webhook yet. The worker sends to the one of MUNIMENT_NOTIFY_WEBHOOK."
    failing = NotificationDelivery.objects.filter(to=WEBHOOK, done_at=None, given_up_at=None, tries__gt=0).first()
    return f"The webhook fails: {failing.error}." if failing else "The webhook takes what is sent."
