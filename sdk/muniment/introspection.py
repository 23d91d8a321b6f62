"""What a token is good for at this backend, whatever the tool: POST /v1/introspect (RFC 7662).

A look at a token, never a call: what a tool may do is decided by `Muniment.verify` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from muniment.calls import Incoming, header_value, sendable
from muniment.client import Request
from muniment.errors import Refused, Unproved

if TYPE_CHECKING:
    from muniment.guard import Muniment

FORM = "application/x-www-form-urlencoded"
ERRORS = ("invalid_dpop_proof", "invalid_token", "use_dpop_nonce")  # RFC 9449 sections 7.1 and 9


@dataclass(frozen=True, slots=True)
class Shown:
    """A token that is good here. `scopes` are those of it that grants cover, implied ones too; `audience` is the one by
    which it is for this backend; `expires_at` is in seconds since 1970. `answer` is the whole answer."""

    uid: str
    issuer: str
    sub: str = field(repr=False)
    client_id: str
    scopes: tuple[str, ...]
    audience: str
    expires_at: int | None
    answer: Mapping[str, Any] = field(repr=False)


def introspect(guard: Muniment, token: str, given: Incoming | None = None) -> Shown | None:
    """What a token is good for; None for one that is good for nothing here. `given` is the request that it came with:
    a token that is bound is good with its proof alone. Raises Unproved for a DPoP proof that does not hold, Unavailable
    in an outage (also of the token's issuer), and Throttled, Refused or Misconfigured."""
    return shown(guard.platform.send(_request(token, given))) if token else None


async def aintrospect(guard: Muniment, token: str, given: Incoming | None = None) -> Shown | None:
    """`introspect`, for an event loop."""
    return shown(await guard.platform.asend(_request(token, given))) if token else None


def _request(token: str, given: Incoming | None) -> Request:
    form = {"token": sendable(token)}
    if given and given.dpop:
        form |= {f"dpop_{name}": value for name, value in given.dpop.body().items()}
    if given and given.certificate:
        form["x5t#S256"] = given.certificate
    return Request("POST", "/v1/introspect", urlencode(form).encode(), kind=FORM, of="look")


def shown(answer: Mapping[str, Any]) -> Shown | None:
    """An answer, read. Raises Refused for what is none, and Unproved."""
    if answer.get("active") is False:
        error = answer.get("dpop_error")
        if isinstance(error, str) and error in ERRORS:
            raise Unproved(error, header_value(answer.get("dpop_nonce")))
        return None
    names = ("uid", "iss", "sub", "client_id", "aud")
    expires, scope = answer.get("exp"), answer.get("scope", "")
    told = all(isinstance(answer.get(name), str) and answer[name] for name in names) and isinstance(scope, str)
    if answer.get("active") is not True or not told or not isinstance(expires, int | None):
        raise Refused("not-introspection", "What answers at the URL is not Muniment")
    uid, issuer, sub, client_id, audience = (answer[name] for name in names)
    return Shown(uid, issuer, sub, client_id, tuple(scope.split(" ")) if scope else (), audience, expires, answer)
