"""Home: what happened, what waits for the viewer, what a grant would solve, and whether the log is sound. Each part is
made only for those who may see what it tells."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.contrib.auth import get_user_model
from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone

from audit.log_health import Pulse, health
from audit.log_page import notices
from audit.models import Head
from audit.viewer import viewer_of
from clients.models import Client
from governance import home_start
from governance.home_figures import DEFAULT, WINDOWS, figures, newcomers
from governance.home_waiting import ending, waits
from governance.roles import ADMINISTRATOR
from governance.solvable import solvable

MOST_NAMED = 3


def home(request: HttpRequest, pulse: Pulse | None) -> dict[str, Any]:
    """What the home page shows to this viewer. Without a pulse (of who is confined to tenants) nothing of the log."""
    user: Any = request.user
    now = timezone.now()
    state, may_look = health(pulse) if pulse else None, user.has_perm("audit.view_record")
    name = user.get_short_name()
    return {
        "title": f"Welcome, {name}" if name else "Home",
        "now": now, "health": state, "notices": notices(state.pulse.alerts if state and may_look else []),
        "waits": waits(user),
        "ending": ending(user, now) if user.has_perm("clients.view_grant") else None,
        **(_of_records(request, now) if may_look else {}),
        **({} if user.get_all_permissions() else {"administrators": administrators()}),
    }  # fmt: skip


def _of_records(request: HttpRequest, now: datetime) -> dict[str, Any]:
    """What only those see who may read records."""
    viewer = viewer_of(request.user)
    about = _of_the_log() if viewer.tenants is None else {}
    if not home_start.called(viewer):
        return about | {"start": home_start.steps(request.user)}
    chosen = request.GET.get("window", "")
    chosen = chosen if chosen in WINDOWS else DEFAULT
    clients: Mapping[str, str] = dict(Client.objects.values_list("slug", "name"))
    return about | {
        "figures": figures(viewer, chosen, now, clients),
        "windows": [(key, window.words) for key, window in WINDOWS.items()], "chosen": chosen,
        "solvable": solvable(viewer, request.user, now, clients),
        "newcomers": newcomers(viewer, now, clients),
    }  # fmt: skip


def _of_the_log() -> dict[str, Any]:
    head = Head.objects.get()
    return {
        "head": head,
        "newest": head.at if head.next else None,
        "undrained": head.policy - head.drained,
    }


def administrators() -> list[str]:
    """Whom to ask for a role: a few names of those who can give one."""
    can = Q(groups__name=ADMINISTRATOR) | Q(is_superuser=True)
    found = get_user_model().objects.filter(can, is_active=True, is_staff=True, tenants=None).distinct().order_by("pk")
    return [user.get_full_name() or user.get_username() for user in found[:MOST_NAMED]]
