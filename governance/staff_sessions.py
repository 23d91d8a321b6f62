"""How long somebody stays signed in: half an hour without activity, twelve hours in all, and not one request after the
account was deactivated. When that is, is kept in the session itself."""

import time
from collections.abc import Callable
from typing import Any, Final

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import SESSION_KEY, logout
from django.contrib.auth.signals import user_logged_in
from django.dispatch import receiver
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from audit import recent_sign_in
from audit.templatetags.muniment import lapse

STARTED: Final = "muniment_started_at"  # POSIX seconds
SEEN: Final = "muniment_seen_at"
WITHOUT: Final = ("/livez", "/readyz")  # they answer for themselves, whatever the database does
STEP: Final = 60  # seconds: activity is written down so often, and not with each request


@receiver(user_logged_in)
def begin(sender: Any, request: HttpRequest, **more: Any) -> None:
    """Somebody has just signed in, whatever the way."""
    request.session[STARTED] = request.session[SEEN] = int(time.time())
    recent_sign_in.note(request)


class StaffSessions:
    """Middleware, inside those of sessions, users and messages: ends a session whose time is over."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer, as nobody where the session has ended."""
        has_one = settings.SESSION_COOKIE_NAME in request.COOKIES and request.path_info not in WITHOUT
        if has_one and SESSION_KEY in request.session:
            if not request.user.is_authenticated:  # deactivated, gone, or with another password since
                request.session.flush()
            elif words := over(request.session, time.time()):
                logout(request)
                messages.info(request, words)
            else:
                touch(request.session, time.time())
        return self.get_response(request)


def over(session: Any, now: float) -> str:
    """Why a session has ended, in words; nothing while it has not. One that does not say when it began has."""
    started, seen = session.get(STARTED), session.get(SEEN)
    if type(started) is not int or type(seen) is not int:
        return "You were signed out. Sign in again."
    if not 0 <= now - started < settings.SESSION_COOKIE_AGE:
        return f"You were signed out after {lapse(settings.SESSION_COOKIE_AGE)}. Sign in again."
    if now - seen >= settings.MUNIMENT_SESSION_IDLE:
        idle = lapse(settings.MUNIMENT_SESSION_IDLE)
        return f"You were signed out after {idle} without activity. Sign in again."
    return ""


def touch(session: Any, now: float) -> None:
    """Note activity, at most once a minute: each note is a write."""
    if now - session[SEEN] >= min(STEP, settings.MUNIMENT_SESSION_IDLE / 2):
        session[SEEN] = int(now)
