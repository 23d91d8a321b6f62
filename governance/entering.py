"""What every way of signing in ends in: a session that is new and recorded, or a sentence that says why not."""

import logging
import secrets
from typing import Any, Final

from django.contrib import messages
from django.contrib.auth import login
from django.http import HttpRequest, HttpResponseRedirect
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme, urlencode

from audit import recent_sign_in
from audit.admin_base import actor_of
from audit.record_words import amount
from audit.staff_log import tell
from governance import staff_oidc, staff_roles

logger = logging.getLogger(__name__)

MAX_NEXT: Final = 2000  # characters


def in_minutes(seconds: int) -> str:
    """`15 minutes`, and never less than it takes."""
    return amount(max(1, -(-seconds // 60)), "minute")


def safe(request: HttpRequest, url: str | None) -> str:
    """A path of this site to go on to; home, for anything else."""
    good = url and len(url) <= MAX_NEXT and url.isprintable() and url.startswith("/")
    if good and url_has_allowed_host_and_scheme(url, {request.get_host()}, require_https=request.is_secure()):
        return str(url)
    return reverse("admin:index")


def enter(request: HttpRequest, user: Any, how: str) -> None:
    """Sign somebody in, in a session that is new in every part. No record, no sign-in."""
    roles = staff_roles.held_by(user)
    tell(f"staff:{user.pk}", staff_roles.name_of(user), "staff.sign_in", how=how, roles=roles)
    request.session.flush()
    login(request, user)


def shown_again(request: HttpRequest, how: str) -> None:
    """Somebody who is signed in has shown again who they are: recorded, and a new session key."""
    tell(*actor_of(request), "staff.sign_in_again", how=how)
    request.session.cycle_key()
    recent_sign_in.note(request)


def refused(request: HttpRequest, error: staff_oidc.Refused, next_url: str = "", again: int | None = None) -> Any:
    """Back to the page that it was begun on, with a sentence and a reference to the process's log."""
    reference = secrets.token_hex(4)
    logger.warning("sign-in %s refused: %s (%s)", reference, error.reason, error.detail)
    messages.error(request, f"{staff_oidc.REASONS[error.reason]} Reference: {reference}")
    page = "admin:login" if again is None else "admin:sign_in_again"
    return HttpResponseRedirect(f"{reverse(page)}?{urlencode({'next': next_url or reverse('admin:index')})}")
