"""Home: how much there is, whether the log is sound, what waits, where to go."""

from typing import Any

from django.http import HttpRequest
from django.utils import timezone

from audit.log_health import Pulse, health
from audit.log_page import notices
from audit.models import Head, Sighting
from governance.navigation import MOST_SHOWN, capped


def home(request: HttpRequest, pulse: Pulse) -> dict[str, Any]:
    """What the home page shows to this viewer."""
    head = Head.objects.get()
    name = request.user.get_short_name() if request.user.is_authenticated else ""
    state, may_look = health(pulse), request.user.has_perm("audit.view_record")
    return {
        "title": f"Welcome{name and chr(32)}{name}", "head": head,
        "health": state, "notices": notices(state.pulse.alerts if may_look else []),
        "newest": head.at if head.next else None, "now": timezone.now(),
        "waiting": capped(Sighting.objects.filter(ignored_at=None)[: MOST_SHOWN + 1].count()),
        "undrained": head.policy - head.drained,
    }  # fmt: skip
