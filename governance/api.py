"""The verify endpoints: the hot path, top to bottom (DESIGN.md section 4).

api -> verification -> clients.tokens (identity) -> decision -> audit.recording
"""

import json
import re
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec
from django.core.exceptions import SuspiciousOperation
from django.http import HttpRequest, HttpResponse
from rest_framework.views import APIView

from audit import subjects
from audit.reasons import REASONS
from clients.replays import request_name
from governance import idempotency, metrics, schema, waiting
from governance.answers import answer, assertion, subject_body
from governance.budgets import budgets
from governance.contract import Call, Calls
from governance.problems import Problem, from_exception, method_not_allowed, not_authenticated, overloaded
from governance.snapshot import BackendPolicy, snapshots
from governance.verification import UNTOUCHED, NotAuthenticated, PolicyMoved, Verdict, authenticate, judge, verify
from tools import credentials
from tools.credentials import Credential

MAX_IDEMPOTENCY_KEY = 255
MAX_ITEMS = 100
# The one message of msgspec that repeats what was sent.
ENUM_VALUE = re.compile(r"Invalid enum value .*(?= - at `)", re.DOTALL)
SEALED = re.compile("sealed")
Fits = Callable[[BackendPolicy], bool]
_calls = msgspec.json.Decoder(Calls)
_call = msgspec.json.Decoder(Call)
_encode = msgspec.json.Encoder().encode


def decode(decoder: msgspec.json.Decoder[Any], body: bytes | msgspec.Raw) -> Any:
    """The body as its type. Raises a 400 Problem that names the member that is wrong, never its value."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        told = ENUM_VALUE.sub("Invalid enum value", str(error))
        raise Problem(400, "invalid-member", "A member of the body is not valid", told) from None
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise Problem(400, "invalid-json", "The body is not JSON", "It must be one JSON object in UTF-8.") from None


def parameter(request: HttpRequest, name: str, pattern: re.Pattern[str], words: str) -> str:
    """The one value of a query parameter. Raises a 400 Problem that names it and says what it must be."""
    given = values(request, name)
    if len(given) != 1 or not pattern.fullmatch(given[0]):
        raise invalid_parameter(name, words)
    return given[0]


def values(request: HttpRequest, name: str) -> list[str]:
    """All values of a query parameter. Raises a 400 Problem for more parameters than Django takes."""
    try:
        return request.GET.getlist(name)
    except SuspiciousOperation:
        raise invalid_parameter(name, "it is among too many parameters") from None


def invalid_parameter(name: str, words: str) -> Problem:
    """A query parameter that is missing, given twice, or not what it must be."""
    return Problem(400, "invalid-parameter", "A parameter is not valid", f"`{name}`: {words}.")


def json_response(body: Any, status: int = 200) -> HttpResponse:
    """An answer in JSON that nobody may keep."""
    return HttpResponse(
        _encode(body), status=status, content_type="application/json", headers={"Cache-Control": "no-store"}
    )


class BackendView(APIView):
    """A view for backends. Authentication is by the policy snapshot, so that a revoked key ends with the policy
    version; bodies are decoded by msgspec. DRF gives the description (OpenAPI); its dispatch, which negotiates
    and authenticates what is settled here, would cost as much as the decision."""

    METHODS = frozenset({"POST", "PUT"})
    endpoint = metrics.OTHER
    authentication_classes: list[Any] = []
    permission_classes: list[Any] = []

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Call the method's handler; a known error is a problem document. Both are counted and timed."""
        handler = getattr(self, (request.method or "").lower(), None) if request.method in self.METHODS else None
        if handler is None:
            return method_not_allowed([m for m in self.allowed_methods if m in self.METHODS]).response()
        began = time.perf_counter()
        try:
            response: HttpResponse = handler(request, *args, **kwargs)
        except Exception as error:
            problem = from_exception(error)
            metrics.refused(problem.status if problem else 500)
            if problem:
                return problem.response()
            raise
        finally:
            metrics.timers[self.endpoint].observe(time.perf_counter() - began)
        return response

    def credential(self, request: HttpRequest) -> Credential:
        """The backend key that was sent. Raises a 401 Problem, after noting the failure."""
        credential = credentials.read(self.presented(request))
        source = request.META.get("REMOTE_ADDR", "")
        spent = budgets.spent("", source)
        try:
            authenticate(credential, look=not spent)
        except NotAuthenticated:
            budgets.turned_away("", "backend_key")
            if spent:
                raise too_many() from None
            budgets.charge("", source)
            raise not_authenticated() from None
        assert credential is not None
        return credential

    def presented(self, request: HttpRequest) -> str | None:
        """Where the key is: `Bearer mk_...`."""
        return request.META.get("HTTP_AUTHORIZATION")

    def backend(self, request: HttpRequest) -> BackendPolicy:
        """The backend whose key was sent, for a call that records nothing: a record would refuse a key that was revoked
        a moment ago, so the policy is looked at anew. Raises a 401 Problem."""
        snapshots.at_head()
        try:
            return authenticate(self.credential(request))[1]
        except NotAuthenticated:  # revoked since
            raise not_authenticated() from None


def too_many() -> Problem:
    """The failure budget is used up."""
    return Problem(
        429, "too-many-failures", "Too many failures",
        "Too many calls from this source failed verification; they are counted, and answered again in a second.",
        headers={"Retry-After": "1"},
    )  # fmt: skip


class VerifyView(BackendView):
    """POST /v1/verify: verify the user's token, decide, record, answer."""

    endpoint = "verify"

    @schema.verify
    def post(self, request: HttpRequest) -> HttpResponse:
        """Allow or deny one call of a tool; a denial is a 200."""
        credential = self.credential(request)
        sealed = waits(request)
        body = request.body
        call = decode(_call, body)
        key = request.META.get("HTTP_IDEMPOTENCY_KEY")
        found = once(credential, key, body, call, request) if key else decided_one(credential, call, request)
        if sealed:
            self.endpoint = "verify_sealed"  # which takes a second or so by itself
            # The answer is made, and what is kept of it is kept: only now is the seal waited for
            found = found | {"tlog_proof": waiting.tlog_proof(UUID(found["record"]))}
        return json_response(found)


class VerifyBatchView(BackendView):
    """POST /v1/verify/batch: up to 100 calls, answered in order."""

    endpoint = "batch"

    @schema.verify_batch
    def post(self, request: HttpRequest) -> HttpResponse:
        """Each item is decided by itself; one that is not valid has a problem document in its place."""
        credential = self.credential(request)
        if waits(request):
            raise invalid_parameter("wait", "a batch does not wait; ask for the proofs of its records")
        items: list[Call | dict[str, Any]] = []
        for raw in raw_items(request.body):
            try:
                items.append(decode(_call, raw))
            except Problem as problem:
                items.append(problem.document())
        calls = [item for item in items if isinstance(item, Call)]
        answers = iter(decided(credential, calls, request) if calls else [])
        found = [next(answers) if isinstance(item, Call) else item for item in items]
        return json_response({"items": [one.document() if isinstance(one, Problem) else one for one in found]})


def waits(request: HttpRequest) -> bool:
    """Whether `?wait=sealed` is asked for. Raises a 400 Problem for any other value."""
    if not request.META.get("QUERY_STRING") or not values(request, "wait"):
        return False
    return bool(parameter(request, "wait", SEALED, "`sealed`, or leave it out"))


def raw_items(body: bytes) -> list[msgspec.Raw]:
    """The items of a batch, not decoded yet. A string that is no Unicode (a lone surrogate, which JavaScript can
    produce) makes msgspec give up on the whole body; then each item is looked at by itself."""
    try:
        return list(decode(_calls, body).items)
    except Problem as problem:
        try:
            items = json.loads(body.decode())["items"]
            if problem.kind == "invalid-json" and isinstance(items, list) and 1 <= len(items) <= MAX_ITEMS:
                return [msgspec.Raw(json.dumps(item).encode()) for item in items]
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise


def decided(
    credential: Credential, calls: list[Call], request: HttpRequest, fits: Fits | None = None,
    proofs_of: str | None = None,
) -> list[dict[str, Any] | Problem]:  # fmt: skip
    """The answers to calls, each recorded; a 429 Problem in the place of one that is beyond a failure budget.
    Raises a Problem, or what `problems` tells as one, when nothing may be answered; and PolicyMoved where the calls do
    not fit the policy any more, of which there is none without `fits`. `proofs_of` names the one request that all calls
    are part of, and so may use the same proof; without it each call is a request of its own."""
    snapshot, backend = authenticate(credential)
    sources = [call.request.ip or request.META.get("REMOTE_ADDR", "") for call in calls]
    admitted = [
        not budgets.spent(backend.slug, source) or snapshot.knows(backend.id, call.token)
        for call, source in zip(calls, sources, strict=True)
    ]
    if turned_away := admitted.count(False):
        budgets.turned_away(backend.slug, "over_budget", turned_away)
    try:
        entering = [call for call, enters in zip(calls, admitted, strict=True) if enters]
        verdicts = verify(credential, entering, fits, [proofs_of] * len(entering) if proofs_of else ())
    except NotAuthenticated:  # the key was revoked while the call was decided
        raise not_authenticated() from None
    found = iter(verdicts)
    answers: list[dict[str, Any] | Problem] = []
    for source, enters in zip(sources, admitted, strict=True):
        verdict = next(found) if enters else None
        # An outage of the issuer is nobody's failure: only what a caller sent is.
        if verdict and REASONS[verdict.decision.reason].status == 401:
            budgets.charge(backend.slug, source)
            if verdict.decision.reason == "token_expired":
                verdict.snapshot.forget(backend.id, verdict.digest)
        if verdict is None:
            answers.append(too_many())
        elif verdict.receipt is None:
            answers.append(overloaded("The record could not be written, so nothing is answered."))
        else:
            answers.append(answer(verdict))
    return answers


def decided_one(
    credential: Credential, call: Call, request: HttpRequest, proofs_of: str | None = None
) -> dict[str, Any]:  # fmt: skip
    """The answer to one call. Raises a Problem."""
    [found] = decided(credential, [call], request, proofs_of=proofs_of)
    if isinstance(found, Problem):
        raise found
    return found


def once(credential: Credential, key: str, body: bytes, call: Call, request: HttpRequest) -> dict[str, Any]:
    """The answer to a call that carries an Idempotency-Key: the first one again, where it still holds."""
    if not (len(key) <= MAX_IDEMPOTENCY_KEY and key.isascii() and key.isprintable()):
        raise Problem(400, "invalid-idempotency-key", "Idempotency-Key is not valid", "Printable ASCII, at most 255.")
    try:
        slot = idempotency.claim(credential.key_id, key, body)
    except idempotency.OtherBody:
        detail = "It was used with another body in the last ten minutes."
        raise Problem(422, "idempotency-key-reused", "Idempotency-Key was used before", detail) from None
    except idempotency.InFlight:
        detail = "The first call with this key has not been answered yet."
        raise Problem(409, "in-flight", "In flight", detail, headers={"Retry-After": "1"}) from None
    if slot and slot.answer and (again := repeated(slot.answer, credential, call)):
        return again
    try:
        # A retry is the same request: what it repeats may have used its proof, and was not answered.
        name = request_name(credential.key_id, key, sha256(body).hexdigest())
        fresh = decided_one(credential, call, request, name)
    except BaseException:
        if slot:
            slot.release()
        raise
    if slot and fresh.get("remedy") == "retry_later":
        slot.release()  # an outage: the retry is to be decided
    elif slot:
        slot.keep(fresh | {"named": fresh["subject"] is not None})
    return fresh


def repeated(kept: dict[str, Any], credential: Credential, call: Call) -> dict[str, Any] | None:
    """The kept answer, completed with what the token says of the user; None where an allow no longer holds."""
    snapshots.at_head()  # nothing is recorded that would refuse a key or a policy of a moment ago
    try:
        snapshot, backend = authenticate(credential)
        verdict: Verdict = judge(snapshot, backend, call)
        if verdict.uid is not None and (state := subjects.state(verdict.uid)) != UNTOUCHED and not state[2]:
            verdict = judge(snapshot, backend, call, state)  # who was signed out once may be back since
    except NotAuthenticated:
        raise not_authenticated() from None
    except PolicyMoved:
        return None
    if kept["decision"] == "allow":
        current = verdict.snapshot.version == kept["policy_version"] and verdict.decision.allowed
        if not current or not verdict.holds():
            return None
    again = {name: value for name, value in kept.items() if name != "named"}
    again["subject"] = subject_body(verdict) if kept["named"] else None
    if kept["decision"] == "allow" and call.assertion is not None:
        again["assertion"] = assertion(verdict, kept["record"])
    return again
