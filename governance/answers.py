"""What a backend is told of a decided call (DESIGN.md section 4)."""

import re
import time
from base64 import b64encode
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import jwt
from django.conf import settings

from audit.entries import Receipt
from audit.reasons import REASONS
from clients.dpop import ALGORITHMS
from governance.process import signer
from governance.verification import Verdict

ASSERTION_LIFE = 60  # seconds
# Where signing in again, or asking for more scopes, could help (RFC 6750 section 3).
ERRORS = {"insufficient_scope": "insufficient_scope", "token_missing": None}
OURS = re.compile(r'(?P<scheme>Bearer|DPoP)(?: error="(?P<error>[a-z_]+)")?')


def answer(verdict: Verdict) -> dict[str, Any]:
    """The body of a verify answer; only for a verdict that has its receipt."""
    decision, receipt = verdict.decision, verdict.receipt
    assert receipt is not None, "nothing is answered that is not recorded"
    reason = REASONS[decision.reason]
    body: dict[str, Any] = {
        "decision": "allow" if decision.allowed else "deny",
        "reason": reason.code,
        "explanation": decision.explanation,
        "flagged": decision.flagged,
        "record": str(receipt.id),
        "policy_version": verdict.snapshot.version,
        "subject": subject_body(verdict),
        "client": None,
        "tool": None,
        "scopes": {
            "required": decision.required,
            "token": decision.token_scopes,
            "granted": decision.granted,
            "effective": decision.effective,
            "missing": decision.missing,
        },
        "receipt": receipt_body(receipt),
        "status": reason.status,
    }
    if verdict.hint and verdict.hint.nonce:
        body["dpop_nonce"] = verdict.hint.nonce
    if decision.client:
        body["client"] = {"slug": decision.client.slug, "name": decision.client.name}
    if decision.tool:
        body["tool"] = {"name": decision.tool.name, "access": decision.tool.access}
    if decision.allowed:
        if verdict.call.assertion is not None:
            body["assertion"] = assertion(verdict, str(receipt.id))
        return body
    body["remedy"] = reason.remedy
    if reason.remedy in ("reauthenticate", "request_scope"):
        body["www_authenticate"] = challenge(verdict)
    if reason.remedy == "retry_later":
        body["retry_after"] = decision.retry_after or 1
    return body


def subject_body(verdict: Verdict) -> dict[str, Any] | None:
    """The verified user; None where nobody was established."""
    identity = verdict.identity
    if identity is None:
        return None
    return {
        "uid": verdict.uid,
        "issuer": identity.issuer,
        "sub": identity.sub,
        "email": identity.email,
        "tenant": identity.tenant,
        "roles": identity.roles,
    }


def receipt_body(receipt: Receipt) -> dict[str, Any]:
    """The receipt as JSON: byte strings in base64."""
    return {
        "index": receipt.index,
        "leaf": text(receipt.leaf),
        "signature": text(receipt.signature),
        "key": receipt.key_id,
        "batch": {
            "first": receipt.first,
            "size": receipt.size,
            "previous": text(receipt.previous),
            "root": text(receipt.root),
            "position": receipt.position,
            "path": [text(node) for node in receipt.path],
        },
    }


def text(data: bytes) -> str:
    """Standard base64 (RFC 4648 section 4)."""
    return b64encode(data).decode()


def challenge(verdict: Verdict) -> str:
    """A `WWW-Authenticate` value (RFC 6750 section 3, RFC 9449 section 7.1, RFC 9728 section 5.1) with all scopes of
    the operation."""
    tool = verdict.snapshot.policy.tools.get((verdict.backend.id, verdict.call.tool))
    reason, hint, issuers = verdict.decision.reason, verdict.hint, verdict.backend.issuers.values()
    error = (hint and hint.error) or ERRORS.get(reason, "invalid_token")
    # Where only tokens that are bound to a key are of use, a client that has none yet must know as well.
    always = bool(issuers) and all(one.require_binding == "dpop" for one in issuers)
    scheme = "DPoP" if always or hint or verdict.call.dpop else "Bearer"
    return challenge_of(scheme, error, reason, tool.scopes if tool else (), verdict.backend.first_audience)


def challenge_like(given: str, reason: str, scopes: Sequence[str], audience: str) -> str:
    """A challenge of ours with other scopes."""
    found = OURS.match(given)
    assert found is not None
    return challenge_of(found["scheme"], found["error"], reason, scopes, audience)


def challenge_of(scheme: str, error: str | None, reason: str, scopes: Sequence[str], audience: str) -> str:
    """The challenge of a denial for this reason, by a backend with this audience."""
    parts = []
    if error:
        parts += [f'error="{error}"', f'error_description="{REASONS[reason].sentence}"']
    if scopes:
        parts.append(f'scope="{" ".join(scopes)}"')
    if metadata := resource_metadata(audience):
        parts.append(f'resource_metadata="{metadata}"')
    if scheme == "DPoP":
        parts.append(f'algs="{ALGORITHMS}"')
    return f"{scheme} {', '.join(parts)}" if parts else scheme


def resource_metadata(audience: str) -> str | None:
    """Where the backend's protected-resource metadata is (RFC 9728 section 3.1), if its audience is a URL."""
    url = urlsplit(audience)
    if url.scheme not in ("https", "http") or not url.netloc or '"' in audience:
        return None
    return f"{url.scheme}://{url.netloc}/.well-known/oauth-protected-resource{url.path.rstrip('/')}"


def assertion(verdict: Verdict, record: str) -> str | None:
    """A signed JWT about the verified user for one registered audience, at most 60 s (RFC 7519); None when the
    audience is not registered for this backend."""
    audience, decision = verdict.call.assertion, verdict.decision
    if audience not in verdict.backend.assertion_audiences or decision.client is None or verdict.identity is None:
        return None
    key, now = signer("ASSERTION_KEY", "assertion"), int(time.time())
    claims = {
        "iss": settings.MUNIMENT_URL,
        "aud": audience,
        "sub": verdict.uid,
        "iat": now,
        "exp": min(now + ASSERTION_LIFE, verdict.identity.expires_at),
        "jti": record,
        "client": decision.client.slug,
        "tool": verdict.call.tool,
        "scope": " ".join(decision.effective),
    }
    headers = {"typ": "muniment-assertion+jwt", "kid": key.key_id}
    return jwt.encode(claims, key.private, algorithm="EdDSA", headers=headers)
