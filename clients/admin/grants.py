"""Grants: made, extended and revoked through clients.grants, never edited, never deleted. Each asks for a reason
and offers an expiry; nothing changes on GET."""

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from audit.admin_base import Action, Refused, actor_of
from audit.templatetags.muniment import day, exact, exactly, when
from audit.viewer import viewer_of
from clients import grant_history, grants, proposals, tenants
from clients.admin.chips import ChipsAdmin, StateFilter
from clients.admin.grant_form import EndsForm
from clients.admin.granting import Granting
from clients.grant_words import SOON, ends_soon, facts, sentence, state, until
from clients.grants import Actor, GrantError
from clients.models import Grant
from tools.admin import pill

__all__ = ["GrantAdmin", "sentence", "state"]


class GrantStates(StateFilter):
    """What of the grants is listed."""

    default = "active"
    names = {
        "active": "Active", "soon": "End soon", "blocks": "Blocks", "ended": "Revoked or expired", "all": "All",
    }  # fmt: skip

    def conditions(self, request: HttpRequest) -> dict[str, Q]:
        now = timezone.now()
        active = Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=now))
        return {
            "active": active, "soon": active & Q(expires_at__lte=now + SOON), "blocks": active & Q(effect="deny"),
            "ended": ~active, "all": Q(),
        }  # fmt: skip


@admin.register(Grant)
class GrantAdmin(ChipsAdmin):
    """Who may use what."""

    intro = "Who may use what. Nothing is allowed that is not granted; a block beats every grant."
    empty = "No grant here. Where none is active, every call is refused: grant a client the scopes that its tools need."
    states = GrantStates
    list_display = ["says", "effect_pill", "ends", "because", "made"]
    list_display_links = ["says"]
    list_filter = [GrantStates, "effect", "client"]
    list_select_related = ["client", "tool"]
    search_fields = ["client__name", "client__slug", "scopes__name", "reason"]
    search_help_text = "Client, scope or reason"
    can_act = [
        Action("extend", "Extend", "It ends at another time. Its reason and its scopes stay as they are.",
               "extend", lambda g: g.revoked_at is None, form=EndsForm, in_transaction=False),
        Action("revoke", "Revoke", "From the next call on nothing is decided by it any more. That cannot be undone.",
               "revoke", lambda g: g.revoked_at is None, danger=True, in_transaction=False),
    ]  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Grant]:
        """Who is confined to tenants sees what decides on their users."""
        found = super().get_queryset(request).filter(tenants.seen(tenants.of(request.user)))
        return found.prefetch_related("scopes")

    def get_ordering(self, request: HttpRequest) -> list[Any]:
        return ["expires_at", "pk"] if request.GET.get("state") == "soon" else ["-created_at"]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """What a grant says never changes: what differs is another grant."""
        return False

    def add_button(self, request: HttpRequest) -> tuple[str, str]:
        """Granting, or asking for it."""
        if self.may(request, "add"):
            return reverse("admin:clients_grant_add"), "New grant…"
        return reverse("admin:access_ask"), "Ask for a grant…"

    def name_of(self, obj: Grant) -> str:
        return sentence(obj)

    @admin.display(description="grant")
    def says(self, grant: Grant) -> str:
        return sentence(grant)

    @admin.display(description="state", ordering="effect")
    def effect_pill(self, grant: Grant) -> str:
        kind, words = state(grant)
        return pill(words, kind)

    @admin.display(description="ends", ordering="expires_at")
    def ends(self, grant: Grant) -> str:
        soon = pill("soon", "flag") if ends_soon(grant, timezone.now()) else ""
        return format_html("{} {}", day(grant.expires_at, "never"), soon)

    @admin.display(description="because")
    def because(self, grant: Grant) -> str:
        return grant.reason

    @admin.display(description="made", ordering="created_at")
    def made(self, grant: Grant) -> str:
        by = format_html('<span class="by quiet small"> by {}</span>', grant.created_by) if grant.created_by else ""
        return format_html("{}{}", when(grant.created_at), by)

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """The pages for granting."""
        return Granting(self.admin_site).grant(request)

    # --- one grant ---------------------------------------------------------------------------------------------

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """One grant, to look at; a POST changes nothing."""
        grant = self.get_object(request, object_id)
        if grant is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined]
        if not self.has_view_permission(request, grant) or request.method not in ("GET", "HEAD"):
            raise PermissionDenied
        kind, words = state(grant)
        viewer = viewer_of(request.user)
        asked = grant.requests.filter(tenants.own(viewer.tenants)).order_by("pk")
        # Records of the policy are of no tenant: who is confined to some is shown none of them.
        history = grant_history.of(viewer, grant) if viewer.records and viewer.tenants is None else None
        context = {
            **self.admin_site.each_context(request), "opts": self.opts, "title": sentence(grant), "grant": grant,
            "pill": {"kind": kind, "words": words.capitalize()}, "facts": self._facts(grant),
            "until": until(grant.expires_at),
            "act_buttons": self._buttons(request, grant), "asked": list(asked), "history": history,
            "confined": viewer.tenants is not None,
        }  # fmt: skip
        return TemplateResponse(request, "admin/grant.html", context)

    def _buttons(self, request: HttpRequest, grant: Grant) -> list[dict[str, Any]]:
        """What may be done with it; who may not extend it may ask."""
        if not tenants.may_write(tenants.of(request.user), grant):
            return []
        found = self.offered(request, grant)
        if grant.revoked_at is None and grant.expires_at is not None and not self.may(request, "change"):
            url = f"{reverse('admin:access_ask')}?extends={grant.pk}"
            found.append({"label": "Ask that it lasts longer", "danger": False, "url": url})
        return found

    def _facts(self, grant: Grant) -> list[tuple[str, Any]]:
        return [
            *facts(grant),
            ("Made", exactly(grant.created_at)),
            *([("By", grant.created_by)] if grant.created_by else []),
            *([("Starts", exactly(grant.starts_at))] if grant.starts_at else []),
            ("Ends", exactly(grant.expires_at, "never")),
            *([("Revoked", exactly(grant.revoked_at))] if grant.revoked_at else []),
        ]

    # --- extending and revoking --------------------------------------------------------------------------------

    def act_view(self, request: HttpRequest, object_id: str, action: str) -> HttpResponse:
        """With what it would change beside the question. Who is confined to tenants acts on grants of those alone."""
        seen = self.get_object(request, object_id)
        if seen is not None and not tenants.may_write(tenants.of(request.user), seen):
            raise PermissionDenied
        response = super().act_view(request, object_id, action)
        if isinstance(response, TemplateResponse):
            response.template_name = "admin/grant_act.html"
        return response

    def _asked(self, request: HttpRequest, action: Action, obj: Grant, form: Any) -> dict[str, Any]:
        """What relies on it, and whether a longer life takes a second person."""
        revoking = action.name == "revoke"
        wanted = proposals.to_revoke(obj) if revoking else proposals.to_extend(obj, None)
        site: Any = self.admin_site
        sensitive = [] if revoking else grants.needs_second_person(obj.effect, wanted.scope_names())
        return super()._asked(request, action, obj, form) | {
            "impact": site.impact(wanted, viewer_of(request.user)), "wanted": wanted, "sensitive": sensitive,
            "ends": exactly(obj.expires_at, "never"), "ask_url": reverse("admin:access_ask"),
        }  # fmt: skip

    def extend(self, request: HttpRequest, grant: Grant, data: dict[str, Any]) -> str:
        """Another end, through the only writer of grants."""
        form = EndsForm(request.POST)
        form.is_valid()
        self._change(request, grant, data, expires_at=form.end())
        return f"{sentence(grant)}: it now ends {f'on {exact(grant.expires_at)}' if grant.expires_at else 'never'}."

    def revoke(self, request: HttpRequest, grant: Grant, data: dict[str, Any]) -> str:
        """Ended, through the only writer of grants."""
        self._change(request, grant, data)
        return f"Revoked: {sentence(grant)}. The next call is decided without it."

    def _change(self, request: HttpRequest, grant: Grant, data: dict[str, Any], **ends: Any) -> None:
        """Check again that they may, then change; what is refused is said on the form."""
        if not self.may(request, "change"):
            raise PermissionDenied
        actor, reason = Actor(*actor_of(request)), data["reason"]
        try:
            if ends:
                grants.extend(grant, actor=actor, reason=reason, **ends)
            else:
                grants.revoke(grant, actor=actor, reason=reason)
        except GrantError as error:
            raise Refused(str(error)) from None
