"""Row 8 of the decision table: a token that is bound comes with its proof, of a key (DPoP, RFC 9449) or of a
certificate (mTLS, RFC 8705); and one that its issuer must bind is bound.

Looking at a proof is pure, and is done each time that a call is decided. Using it up is not: all proofs of the calls
that are decided together are used in one exchange with Redis, by the HTTP request that each came with.
"""

import hmac
import time
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from audit.protection import keyed_hash
from clients import dpop, replays
from clients.bound import Bound
from clients.claims import Identity, Refused
from clients.dpop import Asked, Proof, WrongProof
from governance.contract import Call
from governance.decision import refuse

if TYPE_CHECKING:
    from governance.snapshot import BackendPolicy
    from governance.verification import Verdict

NONCE_SECONDS: Final = 120  # for so long a nonce is given out; it is good for as long again
UNBOUND: Final = Bound()
WORDS: Final = {
    "any": "this issuer's tokens must be bound to a key or to a certificate",
    "dpop": "this issuer's tokens must be bound to a key (DPoP)",
    "mtls": "this issuer's tokens must be bound to a certificate (mTLS)",
}


@dataclass(frozen=True, slots=True)
class Hint:
    """What an answer says of DPoP to a caller that uses it: the error of the challenge (RFC 9449 section 7.1; None:
    that of the reason), and a nonce for the next proof (section 9; None where none is demanded)."""

    error: str | None = None
    nonce: str | None = None


class Unproved(Refused):
    """A binding that is not proved. `hint` is None where no DPoP proof would help."""

    def __init__(self, refusal: Refused, hint: Hint | None) -> None:
        super().__init__(refusal.reason, refusal.detail)
        self.hint = hint


def look(call: Call, identity: Identity, backend: "BackendPolicy", now: float) -> tuple[Proof | None, Hint | None]:
    """What proves the binding of a call's token: a DPoP proof, which is still to be used, None where none is needed;
    and the hint for the answer. `now` is in seconds since the epoch. Raises Unproved.

    A proof that comes with a token that is bound to no key says nothing, and is not looked at."""
    issuer = backend.issuers[identity.issuer]
    bound = identity.bound or UNBOUND
    if missing := _missing(bound, issuer.require_binding):
        hint = None if issuer.require_binding == "mtls" else Hint("invalid_token")
        raise Unproved(Refused("proof_required", missing), hint)
    if bound.certificate is not None:
        _certificate(call, bound.certificate)
    if bound.key is None:
        return None, None
    nonces = good_nonces(backend.id, now) if issuer.dpop_nonce else None
    fresh = nonces[0] if nonces else None
    if call.dpop is None:
        words = Refused("proof_required", "the token is bound to a key (DPoP), and came without a proof of it")
        raise Unproved(words, Hint("invalid_dpop_proof", fresh))
    skew = min(issuer.leeway, dpop.MAX_SKEW)
    asked = Asked(call.dpop.method, call.dpop.url, call.token or "", bound.key, skew, nonces)
    try:
        return dpop.check(call.dpop.proof, asked, now), Hint(None, fresh)
    except WrongProof as wrong:
        raise Unproved(wrong, Hint(wrong.error, fresh)) from None


def _missing(bound: Bound, demanded: str) -> str | None:
    """What the issuer demands of its tokens, in words, where this one has it not."""
    fine = {
        "any": bound != UNBOUND, "dpop": bound.key is not None, "mtls": bound.certificate is not None
    }.get(demanded, True)  # fmt: skip
    return None if fine else WORDS[demanded]


def _certificate(call: Call, wanted: str) -> None:
    """RFC 8705 section 3: the certificate of the caller's TLS connection, which the backend reports, is the token's."""
    if call.mtls is None:
        words = "the token is bound to a certificate (mTLS), and the backend reported none"
        raise Unproved(Refused("proof_required", words), None)
    if not hmac.compare_digest(call.mtls.thumbprint.encode(), wanted.encode()):
        raise Unproved(Refused("proof_invalid", "the token is bound to another certificate"), None)


def good_nonces(backend: int, now: float) -> tuple[str, ...]:
    """The nonces that a proof for this backend may hold, the newest first, which is the one to give out. Nothing is
    kept: they are made of the time under the pepper, so that all processes know them, and nobody else makes one. The
    next one is good as well, since another process's clock may be ahead."""
    step = int(now // NONCE_SECONDS)
    return tuple(_nonce(backend, one) for one in (step, step - 1, step + 1))


def _nonce(backend: int, step: int) -> str:
    return urlsafe_b64encode(keyed_hash("dpop_nonce", f"{backend} {step}")[:18]).decode()


class Proofs:
    """Uses up the proofs of calls that are decided together. `requests` names, for each call by its place, the HTTP
    request that it is part of; a call that is decided again uses its proof in the same name."""

    def __init__(self, requests: Sequence[str]) -> None:
        self._requests = requests

    def settle(self, judged: Mapping[int, "Verdict"]) -> None:
        """Use the proofs of the decided calls; a call whose proof was used by another request, or of whose proof that
        cannot be told, becomes a denial."""
        waiting = [(verdict, verdict.proof, self._request(place, verdict)) for place, verdict in judged.items()]
        using = [(verdict, proof, request) for verdict, proof, request in waiting if proof is not None]
        try:
            good = replays.use([(proof, request) for _, proof, request in using], time.time())
        except replays.Away:
            for verdict, _, _ in using:
                _deny(verdict, "proof_unavailable", "", None)
            return
        for (verdict, _, _), fine in zip(using, good, strict=True):
            if not fine:
                _deny(verdict, "proof_invalid", "the proof was used before (jti)", "invalid_dpop_proof")

    def _request(self, place: int, verdict: "Verdict") -> str:
        """The backend may name the request itself, for several calls that serve the same one."""
        said = verdict.call.dpop.request if verdict.call.dpop else None
        return replays.request_name(str(verdict.backend.id), said) if said else self._requests[place]


def _deny(verdict: "Verdict", reason: str, detail: str, error: str | None) -> None:
    """Make of a verdict one of a caller who could not be established."""
    verdict.decision, verdict.identity, verdict.uid, verdict.proof = refuse(reason, detail), None, None, None
    verdict.state = (False, None, False)
    verdict.hint = Hint(error, verdict.hint.nonce if verdict.hint else None)
