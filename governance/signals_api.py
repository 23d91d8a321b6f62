"""Where signals arrive that end access before a token does: security events by push (RFC 8935), and back-channel logout
(OpenID Connect Back-Channel Logout 1.0). Each is answered once its effect has committed: no call that starts after the
answer is decided without it.

The two standards prescribe the bodies of their errors, which therefore are no problem documents (RFC 9457); what is no
error of the event itself (too large, too many failures, an outage) is one.
"""

import time
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse

from clients import keysets
from clients.jwks import IssuerPolicy
from clients.models import SignalStream
from clients.signals import applying, credentials, keys, logout, polling
from clients.signals.logout import Logout, LogoutRefused
from clients.signals.sets import MAX_SET, Code, SetRefused
from clients.tokens import MAX_TOKEN, Refused, UnknownKey
from governance import signals_schema
from governance.api import BackendView, too_many
from governance.budgets import budgets
from governance.introspection import FORM, one_of
from governance.problems import Problem, overloaded
from governance.snapshot import Snapshot, snapshots
from tools.credentials import Seen, check

EVENT_TYPE = "application/secevent+jwt"
UNCACHED = {"Cache-Control": "no-store"}
# Whose failures are counted together; no backend has a slug like these.
PUSH, LOGOUT = "/v1/signals", "/v1/signals/logout"
MAX_GOOD = 1000


class EventRefused(Problem):
    """An event that was refused, in the words of RFC 8935 section 2.3."""

    def __init__(self, code: Code, detail: str, status: int = 400, **more: Any) -> None:
        super().__init__(status, code, detail, **more)

    def response(self) -> JsonResponse:
        """As RFC 8935 wants it: the code, and a description in a language that is named."""
        headers = UNCACHED | {"Content-Language": "en"} | self.headers
        return JsonResponse({"err": self.kind, "description": self.title}, status=self.status, headers=headers)


class LogoutProblem(Problem):
    """A logout that was refused, in the words of Back-Channel Logout 1.0 section 2.8."""

    def __init__(self, detail: str) -> None:
        super().__init__(400, "invalid_request", detail)

    def response(self) -> JsonResponse:
        """As RFC 6749 section 5.2 has it."""
        said = {"error": self.kind, "error_description": self.title}
        return JsonResponse(said, status=self.status, headers=UNCACHED)


_good = Seen(MAX_GOOD)  # push tokens, by stream


class SignalsView(BackendView):
    """POST /v1/signals/<stream>: one security event (RFC 8935)."""

    METHODS = frozenset({"POST"})

    @signals_schema.push
    def post(self, request: HttpRequest, stream: str) -> HttpResponse:
        """202 without a body, after the effect has committed; also for an event that was taken before, and for one
        that has no effect here."""
        row = authenticated(request, stream)
        try:
            if (request.content_type or "").lower() != EVENT_TYPE:
                raise SetRefused("invalid_request", f"Content-Type is not {EVENT_TYPE}")
            event = keys.verified(row, body_of(request), time.time())
            applying.take(row, event, time.time())
        except SetRefused as refused:
            budgets.turned_away("", "event_refused")
            polling.note_refused(row, refused)
            raise EventRefused(refused.code, refused.detail) from None
        except keys.KeysUnavailable:
            raise overloaded("The transmitter's keys cannot be had at the moment.") from None
        except applying.Vanished:
            raise overloaded("The user is being erased.") from None
        return HttpResponse(status=202, headers=UNCACHED)


def body_of(request: HttpRequest) -> str:
    """The event token. Raises a 413 Problem, and SetRefused."""
    body = request.body
    if len(body) > MAX_SET:
        raise Problem(413, "body-too-large", "Body too large", f"At most {MAX_SET // 1024} KiB.")
    if not body.isascii():
        raise SetRefused("invalid_request", "the body is no event token")
    return body.decode("ascii")


def authenticated(request: HttpRequest, name: str) -> SignalStream:
    """The enabled stream of this name, if the push token is its. Raises a 401 EventRefused, and a 429 Problem once
    this source has failed too often."""
    source = request.META.get("REMOTE_ADDR", "")
    spent = budgets.spent(PUSH, source)
    credential = credentials.read(request.META.get("HTTP_AUTHORIZATION"))
    row = None
    if not spent or check(credential, _good.get(name), 0):
        pushed = SignalStream.objects.filter(name=name, delivery="push", enabled=True)
        row = pushed.select_related("issuer").first()
    kept = credentials.known(row)
    if check(credential, kept, 0) and row is not None and kept is not None:
        _good.add(name, kept.digest)
        return row
    budgets.turned_away("", "signal_stream")
    if spent:
        raise too_many()
    budgets.charge(PUSH, source)
    raise EventRefused(
        "authentication_failed", "Send the push token of this stream: Authorization: Bearer ss_...", 401,
        headers={"WWW-Authenticate": "Bearer"},
    )  # fmt: skip


class LogoutView(BackendView):
    """POST /v1/signals/logout: an issuer says that a user signed out there. The token proves itself; whoever sends it
    is not asked who they are, so failures are counted by where they come from."""

    METHODS = frozenset({"POST"})

    @signals_schema.logout
    def post(self, request: HttpRequest) -> HttpResponse:
        """200 once the user's older tokens are refused."""
        source = request.META.get("REMOTE_ADDR", "")
        spent = budgets.spent(LOGOUT, source)
        try:
            logout.sign_out(verified_logout(request, look=not spent))
        except (LogoutRefused, Refused) as refused:
            budgets.turned_away("", "logout_token")
            if spent:
                raise too_many() from None
            budgets.charge(LOGOUT, source)  # an outage too: nobody who sends nonsense meanwhile is asked who they are
            if isinstance(refused, Refused) and refused.reason == "issuer_unavailable":
                raise overloaded("The issuer's keys cannot be had at the moment.") from None
            raise LogoutProblem(refused.detail if isinstance(refused, Refused) else str(refused)) from None
        except applying.Vanished:
            raise overloaded("The user is being erased.") from None
        return HttpResponse(status=200, headers=UNCACHED)


def verified_logout(request: HttpRequest, look: bool = True) -> Logout:
    """Whose logout a request is about. Raises LogoutRefused, and Refused where the key is not known, or the issuer's
    keys cannot be had. Anybody may send one: while wrong ones pour in, `look` is off, and nobody is asked anything for
    one that does not hold by what this process knows; so they keep no genuine one out."""
    if (request.content_type or "").lower() != FORM:
        raise LogoutRefused(f"Content-Type is not {FORM}")
    token = one_of(request, "logout_token")
    if token is None or len(token) > MAX_TOKEN:
        raise LogoutRefused("logout_token is missing, there twice, or too long")
    if not look:
        read_logout(snapshots.current(), token)
    snapshot = snapshots.at_head()  # nothing is recorded that would refuse an issuer that was disabled a moment ago
    try:
        return read_logout(snapshot, token)
    except UnknownKey as unknown:
        outcome = keysets.claim_and_refresh(unknown.issuer_id)
        if snapshots.at_head().version != snapshot.version:
            return read_logout(snapshots.current(), token)
        if outcome != "unchanged":  # it may be a key that is not known yet, and a refusal would lose the logout
            raise Refused("issuer_unavailable", "Its newest keys could not be fetched now.") from None
        raise


def read_logout(snapshot: Snapshot, token: str) -> Logout:
    """Verify a logout token under one policy. Raises as `verified_logout`, and UnknownKey."""
    now = time.time()
    found = logout.read(token, issuers_of(snapshot), snapshot.policy.clients.keys(), now)
    if not snapshots.keys_are_fresh(snapshot, found.issuer.id, now):
        raise Refused("issuer_unavailable", "The keys that we have of it are too old.")
    return found


def issuers_of(snapshot: Snapshot) -> dict[str, IssuerPolicy]:
    """Every issuer whose tokens are accepted anywhere, by its exact name."""
    return {name: policy for backend in snapshot.backends.values() for name, policy in backend.issuers.items()}
