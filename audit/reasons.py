"""The registry of reason codes (DESIGN.md section 5): for each, what the backend answers, what would help, and
the words for people. The same words are used in the API, in the admin and in docs/decisions.md."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason code: HTTP status for the backend's answer, remedy, a title and a sentence."""

    code: str
    status: int
    remedy: str
    title: str
    sentence: str


REASONS: dict[str, Reason] = {}


def _register(code: str, status: int, remedy: str, title: str, sentence: str) -> None:
    if code in REASONS:
        raise ValueError(f"reason code {code} is registered twice")
    REASONS[code] = Reason(code, status, remedy, title, sentence)


_register("granted", 200, "none", "Granted", "Every check passed.")
_register("token_missing", 401, "reauthenticate", "No token", "The call carried no access token.")
_register(
    "token_malformed",
    401,
    "reauthenticate",
    "Not a token",
    "What was sent is not a well-formed access token.",
)
_register(
    "issuer_unknown", 401, "reauthenticate", "Unknown issuer",
    "The token names an issuer that is not enabled for this backend.",
)  # fmt: skip
_register(
    "issuer_unavailable", 503, "retry_later", "Issuer unavailable",
    "The issuer, or its keys, cannot be reached at the moment, so the token could not be checked.",
)  # fmt: skip
_register(
    "token_invalid", 401, "reauthenticate", "Token not valid",
    "The token's signature or one of its claims does not hold.",
)  # fmt: skip
_register(
    "audience_mismatch",
    401,
    "reauthenticate",
    "Made for another service",
    "The token was not made for this backend.",
)
_register("token_expired", 401, "reauthenticate", "Token expired", "The token's time is over.")
_register(
    "proof_required",
    401,
    "reauthenticate",
    "Proof missing",
    "The token must be bound, to a key or a certificate, and come with the proof of it, and did not.",
)
_register(
    "proof_invalid",
    401,
    "reauthenticate",
    "Proof not valid",
    "The proof that came with the token does not hold.",
)
_register(
    "proof_unavailable", 503, "retry_later", "Proof not checked",
    "It cannot be told at the moment whether the proof that came with the token was used before.",
)  # fmt: skip
_register(
    "subject_unknown", 401, "none", "Unknown user",
    "The user who was named cannot be established.",
)  # fmt: skip
_register(
    "client_unknown", 403, "ask_administrator", "Unknown client",
    "The AI client is not registered. One that a genuine token names waits in the inbox.",
)  # fmt: skip
_register("client_suspended", 403, "ask_administrator", "Client suspended", "The AI client is suspended.")
_register("subject_blocked", 403, "none", "User blocked", "The user is blocked.")
_register(
    "tenant_mismatch",
    403,
    "none",
    "Another tenant",
    "The call names a tenant that is not the one in the user's token.",
)
_register(
    "tool_unknown", 403, "ask_administrator", "Unknown tool",
    "This backend has no such tool. It waits in the inbox.",
)  # fmt: skip
_register("tool_suspended", 403, "ask_administrator", "Tool not active", "The tool is not active.")
_register(
    "insufficient_scope", 403, "request_scope", "User has not consented",
    "The user's token does not carry the scopes that the tool needs.",
)  # fmt: skip
_register(
    "not_granted", 403, "ask_administrator", "Not granted",
    "No grant lets this client use the scopes that the tool needs.",
)  # fmt: skip
_register("grant_denied", 403, "ask_administrator", "Blocked by a grant", "A block forbids this call.")
_register(
    "delegation_exceeded", 403, "none", "Beyond what the agent was handed",
    "The scopes handed to the agent do not cover the tool.",
)  # fmt: skip
_register("rate_limited", 429, "retry_later", "Too many calls", "A limit lets no more calls through for now.")
