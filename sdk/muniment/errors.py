"""What a guarded call can fail with. Each has the `status` that the backend answers its own caller with, and no text in
any of them holds a token, a key or what a user sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muniment.calls import Decision

RETRY_AFTER = 1  # seconds, where the platform named none


class MunimentError(Exception):
    """Base of all. `status` is an HTTP status."""

    status = 500
    retry_after: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers that belong to the status."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


class Misconfigured(MunimentError):
    """The backend is set up wrongly: no URL or key, a key that the platform refuses, a folder that cannot be written.
    Never an outage: a tool that fails open is refused as well."""


class Refused(MunimentError):
    """The platform refused the request itself and decided nothing; `problem` is the name of its problem document
    (RFC 9457), such as `invalid-member`. A fault of the backend, never an outage."""

    def __init__(self, problem: str, title: str, detail: str = "") -> None:
        super().__init__(f"{title} ({problem})" + (f": {detail}" if detail else ""))
        self.problem = problem


class Throttled(MunimentError):
    """Too many calls of this backend and source failed verification (429 of the platform itself), or more are under way
    than connections may be made. Not an outage: the platform is there, and who is throttled must not get in by that."""

    status = 429

    def __init__(
        self, retry_after: int | None = None, words: str = "Too many calls failed verification; try again in a moment."
    ) -> None:
        super().__init__(words)
        self.retry_after = retry_after or RETRY_AFTER


class Unavailable(MunimentError):
    """The platform gave no answer, or a 5xx: an outage. `cause` is one of `unreachable`, `timeout`, `status_5xx` (with
    the number), `breaker_open`, `in_flight`."""

    status = 503

    def __init__(self, cause: str, retry_after: int | None = None) -> None:
        super().__init__("Access cannot be verified at the moment, so the call was refused.")
        self.cause = cause
        self.retry_after = retry_after or RETRY_AFTER


class Unproved(MunimentError):
    """A token that was looked at, whatever the tool, is bound to a key, and its DPoP proof does not hold. `error` is
    one of RFC 9449 section 7.1; `nonce` is for the next proof, where one is demanded."""

    status = 401

    def __init__(self, error: str, nonce: str | None = None) -> None:
        super().__init__("The proof that came with the access token does not hold.")
        self.error, self.nonce = error, nonce

    @property
    def headers(self) -> dict[str, str]:
        """The challenge, and `DPoP-Nonce`."""
        return {"WWW-Authenticate": f'DPoP error="{self.error}"'} | ({"DPoP-Nonce": self.nonce} if self.nonce else {})


class Denied(MunimentError):
    """The platform decided, and denied. `status` is 401, 403, 429 or 503; `www_authenticate` is the ready challenge
    (RFC 6750, RFC 9728), where signing in again or more scopes could help, else None; `remedy` says what would help."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.explanation)
        self.decision = decision
        self.status = decision.status
        self.reason = decision.reason
        self.remedy = decision.remedy
        self.www_authenticate = decision.www_authenticate
        self.retry_after = decision.retry_after
        self.record = decision.record
        self.missing = decision.missing

    @property
    def headers(self) -> dict[str, str]:
        """`WWW-Authenticate`, `DPoP-Nonce` and `Retry-After`, where they apply."""
        named = {"WWW-Authenticate": self.www_authenticate, "DPoP-Nonce": self.decision.dpop_nonce}
        return super().headers | {name: value for name, value in named.items() if value}

    @property
    def document(self) -> dict[str, object]:
        """A problem document (RFC 9457) for the backend's own caller; nothing of the token is in it."""
        return {
            "type": f"urn:muniment:problem:{self.reason.replace('_', '-')}",
            "title": str(self),
            "status": self.status,
            "reason": self.reason,
            "remedy": self.remedy,
            "record": self.record,
        }
