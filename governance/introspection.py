"""POST /v1/introspect: token introspection (RFC 7662), for MCP servers that know nothing else.

A token is active for the backend that asks if it would establish its user there, through an active client. Its scopes
are those that grants cover whatever the tool: least privilege, since no tool was named. Recorded before it is answered,
as an `introspection`: a look at a token, never a call of a tool.
"""

import binascii
import time
from base64 import b64decode
from typing import Any
from urllib.parse import unquote_plus

import msgspec
from django.core.exceptions import TooManyFieldsSent
from django.http import HttpRequest, HttpResponse

from audit import subjects
from audit.entries import Entry, Receipt, entry
from audit.protection import KeyDestroyed, token_digest
from audit.reasons import REASONS
from audit.recording import SubjectChanged, Unavailable
from clients.replays import request_name
from clients.tokens import Refused
from governance import possession, schema
from governance.api import BackendView, json_response, too_many
from governance.budgets import budgets
from governance.contract import Call, ClientCertificate, Dpop
from governance.decision import Question, SubjectState, decide_any_tool
from governance.possession import Proofs
from governance.problems import Problem, not_authenticated, overloaded
from governance.process import recorder
from governance.snapshot import BackendPolicy, Snapshot, snapshots
from governance.verification import (
    ATTEMPTS,
    UNTOUCHED,
    NotAuthenticated,
    PolicyMoved,
    State,
    Verdict,
    authenticate,
    bound_of,
    establish,
    note_unknown,
    private,
    statement,
    subject_changed,
    unestablished,
)
from tools.credentials import Credential

FORM = "application/x-www-form-urlencoded"


class IntrospectView(BackendView):
    """RFC 7662. The backend's key is a bearer token, or the secret of a client of any name (RFC 6749 section 2.3.1)."""

    endpoint = "introspect"
    METHODS = frozenset({"POST"})

    def presented(self, request: HttpRequest) -> str | None:
        """The key, from where a bearer token, a Basic password, or the form's `client_secret` is."""
        header = request.META.get("HTTP_AUTHORIZATION")
        if header is not None and header[:6].lower() == "basic ":
            return basic(header[6:])
        if header is None and (secret := one_of(request, "client_secret")):
            return f"Bearer {secret}"
        return header

    @schema.introspect
    def post(self, request: HttpRequest) -> HttpResponse:
        """What a token is good for; `{"active": false}`, and nothing else, for one that is good for nothing here."""
        if request.content_type != FORM:
            raise Problem(400, "invalid-content-type", "Not a form", f"Send `Content-Type: {FORM}`.")
        token = one_of(request, "token")
        credential = self.credential(request)
        if token is None:
            raise Problem(400, "invalid-parameter", "A parameter is not valid", "`token`: the token, once.")
        try:
            verdict = looked_at(request, credential, call_of(request, token))
        except NotAuthenticated:  # the key was revoked meanwhile
            raise not_authenticated() from None
        return json_response(body(verdict))


def basic(encoded: str) -> str | None:
    """The password of `Basic` credentials (RFC 7617) as a bearer token; None for what is none. It is form-encoded as
    RFC 6749 asks, or not, as many write it: a key has no character that this could change."""
    try:
        _, separator, secret = b64decode(encoded.strip(), validate=True).decode("ascii").partition(":")
    except (binascii.Error, ValueError):
        return None
    return f"Bearer {unquote_plus(secret)}" if separator else None


def one_of(request: HttpRequest, name: str) -> str | None:
    """The one value of a member of the form, or None. Raises a 400 Problem for a form that cannot be read."""
    try:
        found = request.POST.getlist(name)
    except TooManyFieldsSent:
        raise Problem(400, "invalid-form", "The form cannot be read", "It has too many members.") from None
    return found[0] if len(found) == 1 and found[0] else None


def call_of(request: HttpRequest, token: str) -> Call:
    """What is looked at: the token, and what came with it to prove its binding, in members of the form of our own
    (RFC 7662 section 2.1 leaves room for them). Raises a 400 Problem."""
    proof = {name: one_of(request, f"dpop_{name}") for name in ("proof", "method", "url", "request")}
    dpop = {name: value for name, value in proof.items() if value is not None}
    mtls = one_of(request, "x5t#S256")
    try:
        return Call(
            token, "", dpop=msgspec.convert(dpop, Dpop) if dpop else None,
            mtls=msgspec.convert({"x5t#S256": mtls}, ClientCertificate) if mtls else None,
        )  # fmt: skip
    except msgspec.ValidationError:
        words = "`dpop_proof`, `dpop_method` and `dpop_url` belong together; `x5t#S256` is a SHA-256 in base64url."
        raise Problem(400, "invalid-parameter", "A parameter is not valid", words) from None


def looked_at(request: HttpRequest, credential: Credential, call: Call) -> Verdict:
    """What the token is, recorded. Raises a Problem, NotAuthenticated, QueueFull or Unavailable: then nothing may be
    answered."""
    snapshot, backend = authenticate(credential)
    source = request.META.get("REMOTE_ADDR", "")
    if budgets.spent(backend.slug, source) and not snapshot.knows(backend.id, call.token):
        budgets.turned_away(backend.slug, "over_budget")
        raise too_many()
    verdict = recorded(credential, call)
    status = REASONS[verdict.decision.reason].status
    if status == 401:
        budgets.charge(backend.slug, source)
        if verdict.decision.reason == "token_expired":
            verdict.snapshot.forget(backend.id, verdict.digest)
    if status == 503:  # an outage of the issuer says nothing of the token
        raise overloaded(verdict.decision.explanation)
    return verdict


def recorded(credential: Credential, call: Call) -> Verdict:
    """Decide and record, again where policy or user changed meanwhile."""
    state, proofs = UNTOUCHED, Proofs([request_name()])
    for _ in range(ATTEMPTS):
        snapshot, backend = authenticate(credential)
        try:
            verdict = judge(snapshot, backend, call, state)
            proofs.settle({0: verdict})
            [result] = recorder().record([to_entry(verdict)])
        except PolicyMoved:
            continue
        except KeyDestroyed:  # the user was erased a moment ago, and is met as a new one
            subjects.forget(verdict.uid or "")
            continue
        match result:
            case Receipt():
                verdict.receipt = result
                return verdict
            case SubjectChanged():
                state = subject_changed(verdict, result.state)
            case Unavailable():
                raise result
        snapshots.at_head()
    raise Unavailable("the policy kept changing")


def judge(snapshot: Snapshot, backend: BackendPolicy, call: Call, state: State) -> Verdict:
    """Rows 1 to 11, and the scopes. Never raises for anything that a token may hold."""
    digest, now = token_digest(call.token or ""), time.time()
    try:
        identity = establish(snapshot, backend, call, digest, now)
        proof, hint = possession.look(call, identity, backend, now)
    except Refused as refusal:
        return unestablished(call, snapshot, backend, digest, refusal)
    uid = subjects.resolve(identity.issuer, identity.sub, identity.email, identity.tenant)
    question = Question(
        backend_id=backend.id, tool="", issuer=identity.issuer, client_id=identity.client_id, subject=uid,
        tenant=identity.tenant, roles=frozenset(identity.roles), token_scopes=identity.scopes,
        issued_at=identity.issued_at,
    )  # fmt: skip
    subject = SubjectState.of(state)
    decision = decide_any_tool(snapshot.policy, question, subject, now)
    return Verdict(call, snapshot, backend, decision, digest, identity, uid, state, proof=proof, hint=hint)


def to_entry(verdict: Verdict) -> Entry:
    """The record: what a call's has, but no tool."""
    if verdict.decision.reason == "client_unknown":
        note_unknown(verdict)
    said = statement(verdict) | {"type": "introspection", "tool": None}
    holder, bound = bound_of(verdict)
    return entry(said, private(verdict), holder, **bound)


def body(verdict: Verdict) -> dict[str, Any]:
    """RFC 7662 section 2.2. `sub` is the issuer's name of the user, which `iss` belongs to; `uid` is ours. `aud` is the
    audience by which the token is for this backend. No e-mail address is told."""
    identity, decision = verdict.identity, verdict.decision
    if not decision.allowed or identity is None:
        # To a caller that sends proofs on: what its client must know to make the next one (RFC 9449 sections 7.1, 8).
        hint = verdict.hint if verdict.call.dpop else None
        told = {"dpop_error": hint.error, "dpop_nonce": hint.nonce} if hint and hint.error else {}
        return {"active": False} | {name: value for name, value in told.items() if value}
    bound = identity.bound
    found = {
        "active": True,
        "scope": " ".join(decision.effective),
        "client_id": identity.client_id,
        "token_type": "DPoP" if bound and bound.key else "Bearer",
        "cnf": bound.claim if bound else None,
        "exp": identity.expires_at,
        "iat": identity.issued_at,
        "sub": identity.sub,
        "aud": next(one for one in identity.audience if one in verdict.backend.audiences),
        "iss": identity.issuer,
        "jti": identity.jti,
        "act": actors(identity.actors),
        "uid": verdict.uid,
    }
    return {name: value for name, value in found.items() if value is not None}


def actors(names: tuple[str, ...]) -> dict[str, Any] | None:
    """The `act` chain as the token has it (RFC 8693 section 4.1): the current actor outermost."""
    found: dict[str, Any] | None = None
    for name in reversed(names):
        found = {"sub": name} | ({"act": found} if found else {})
    return found
