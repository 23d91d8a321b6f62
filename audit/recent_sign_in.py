"""Some things are done only by somebody who has just shown who they are: granting a sensitive scope, taking records
out, erasing. How long ago a session's holder last signed in is kept in the session itself, at sign-in."""

import time
from datetime import timedelta
from typing import Any

from django.http import HttpRequest, HttpResponseRedirect
from django.urls import reverse
from django.utils.http import urlencode

RECENT = timedelta(minutes=10)
SIGNED_IN_AT = "muniment_signed_in_at"  # POSIX seconds, in the session


def note(request: HttpRequest) -> None:
    """The session's holder has just signed in, or shown again who they are."""
    request.session[SIGNED_IN_AT] = int(time.time())


def is_recent(request: HttpRequest) -> bool:
    """Whether they did so within the last ten minutes. False for a session that does not say."""
    at: Any = request.session.get(SIGNED_IN_AT)
    return isinstance(at, int) and 0 <= time.time() - at < RECENT.total_seconds()


def ask_again(request: HttpRequest, back: str) -> HttpResponseRedirect:
    """To the page where they show again who they are, and from there to the path `back` of this site."""
    return HttpResponseRedirect(f"{reverse('admin:sign_in_again')}?{urlencode({'next': back})}")
