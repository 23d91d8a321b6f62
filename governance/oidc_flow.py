"""The way to the identity provider and back: OpenID Connect's authorization code flow with PKCE (RFC 7636), by
mozilla-django-oidc's views, made strict. It begins with a link, not with a form, because a browser holds the whole way
of a form against `form-action`, and a provider may send it on to servers that nobody here knows.

What was begun is kept in the session, for ten minutes and one use. A callback that nothing here began changes nothing
and is not recorded, else any link could do so."""

import hmac
import time
from dataclasses import dataclass
from typing import Any, Final

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import BACKEND_SESSION_KEY, authenticate
from django.contrib.sessions.backends.base import UpdateError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.crypto import get_random_string
from django.utils.decorators import method_decorator
from django.utils.http import urlencode
from django.views import View
from django.views.decorators.cache import never_cache
from mozilla_django_oidc.utils import (
    absolutify,
    add_state_and_verifier_and_nonce_to_session,
    generate_code_challenge,
)
from mozilla_django_oidc.views import OIDCAuthenticationCallbackView, OIDCAuthenticationRequestView

from governance import entering, sign_in_throttle
from governance.failed_sign_ins import failures
from governance.oidc_provider import ProviderError, provider
from governance.staff_oidc import CALLBACK, STAFF_BACKEND, Again, Refused, is_configured

STATES: Final = "oidc_states"  # in the session, by mozilla-django-oidc
LIFE: Final = 600  # seconds from the beginning to the callback


@dataclass(frozen=True, slots=True)
class Begun:
    """What was begun: with what, when (POSIX seconds), where to go on to, and for which account if it is to show
    again who it is."""

    nonce: str
    code_verifier: str
    at: float
    next: str
    again: int | None


@method_decorator(never_cache, name="dispatch")
class Start(OIDCAuthenticationRequestView):
    """Off to the provider. `?again=1`: to show again who is signed in."""

    def __init__(self, **initial: Any) -> None:
        # Not the parent's, which wants the provider's addresses in the settings.
        View.__init__(self, **initial)

    def get(self, request: HttpRequest) -> HttpResponse:
        """Remember what is begun, and redirect."""
        if not is_configured():
            raise Http404
        goal, again = entering.safe(request, request.GET.get("next")), "again" in request.GET
        user: Any = request.user
        inside = user.is_authenticated and user.is_staff
        if inside and not again:
            return HttpResponseRedirect(goal)
        if again and not (inside and request.session.get(BACKEND_SESSION_KEY) == STAFF_BACKEND):
            return HttpResponseRedirect(reverse("admin:login"))
        if wait := sign_in_throttle.start(sign_in_throttle.address_of(request)):
            messages.error(request, f"Too many sign-ins were begun. Try again in {entering.in_minutes(wait)}.")
            return HttpResponseRedirect(reverse("admin:login"))
        try:
            endpoint = provider(settings.MUNIMENT_OIDC_ISSUER).metadata().authorization_endpoint
        except ProviderError as error:
            return entering.refused(request, Refused("provider", str(error)), goal, user.pk if again else None)
        question = self._begin(request, goal, user.pk if again else None)
        return HttpResponseRedirect(f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(question)}")

    def _begin(self, request: HttpRequest, goal: str, again: int | None) -> dict[str, str | int]:
        """What to ask of the provider, remembered in the session."""
        state, verifier = get_random_string(32), get_random_string(64)
        scopes = settings.MUNIMENT_OIDC_SCOPES.split()
        question: dict[str, str | int] = {
            "response_type": "code",
            "scope": " ".join(scopes if "openid" in scopes else ["openid", *scopes]),
            "client_id": settings.MUNIMENT_OIDC_CLIENT_ID,
            "redirect_uri": absolutify(request, reverse(CALLBACK)),
            "state": state,
            "nonce": get_random_string(32),
            "code_challenge": generate_code_challenge(verifier, "S256"),
            "code_challenge_method": "S256",
        }
        if again is not None:
            question |= {"prompt": "login", "max_age": 0}
        add_state_and_verifier_and_nonce_to_session(request, state, question, verifier)
        request.session[STATES][state] |= {"next": goal, "again": again}
        request.session.modified = True
        if not request.user.is_authenticated:  # so that what strangers begin does not stay
            request.session.set_expiry(LIFE)
        return question


@method_decorator(never_cache, name="dispatch")
class Callback(OIDCAuthenticationCallbackView):
    """Back from the provider."""

    def get(self, request: HttpRequest) -> HttpResponse:
        """Sign in whom the answer establishes, or say why not."""
        if not is_configured():
            raise Http404
        begun = take(request)
        if begun is None:
            return entering.refused(request, Refused("state", "nothing like it was begun in this session"))
        try:
            user = self._establish(request, begun)
        except Refused as error:
            address = sign_in_throttle.address_of(request)
            failures.note("oidc", error.reason, about=error.about or begun.again, address=address)
            return entering.refused(request, error, begun.next, begun.again)
        if begun.again is None:
            entering.enter(request, user, "oidc")
        else:
            entering.shown_again(request, "oidc")
        return HttpResponseRedirect(begun.next)

    def _establish(self, request: HttpRequest, begun: Begun) -> Any:
        """The member of staff; raises Refused."""
        if not 0 <= time.time() - begun.at < LIFE:
            raise Refused("state", "it was begun too long ago")
        check_sender(request)
        if request.GET.get("error"):
            raise Refused("denied", "the provider says that it failed")
        user: Any = request.user
        if begun.again is not None and not (user.is_authenticated and user.pk == begun.again):
            raise Refused("other", "another person is signed in by now", begun.again)
        # Asking takes time; what another tab does to the session meanwhile must not be undone.
        try:
            request.session.save()
        except UpdateError:
            raise Refused("state", "the session ended meanwhile") from None
        request.session = request.session.__class__(request.session.session_key)
        again = None if begun.again is None else Again(begun.again, begun.at)
        return authenticate(request, nonce=begun.nonce, code_verifier=begun.code_verifier, again=again)


def take(request: HttpRequest) -> Begun | None:
    """What the callback's `state` was begun with in this session, once."""
    states: Any = request.session.get(STATES)
    kept = states.pop(request.GET.get("state", ""), None) if isinstance(states, dict) else None
    if not isinstance(kept, dict):
        return None
    request.session.modified = True
    return Begun(kept["nonce"], kept["code_verifier"], kept["added_on"], kept["next"], kept["again"])


def check_sender(request: HttpRequest) -> None:
    """The answer comes from the issuer that was asked, where it says so (RFC 9207). Raises Refused."""
    try:
        named = provider(settings.MUNIMENT_OIDC_ISSUER).metadata().names_itself
    except ProviderError as error:
        raise Refused("provider", str(error)) from None
    sender = request.GET.get("iss")
    if sender is None and not named:
        return
    if not hmac.compare_digest((sender or "").encode("utf-8", "replace"), settings.MUNIMENT_OIDC_ISSUER.encode()):
        raise Refused("token", "the answer is of another issuer, or does not say of which")
