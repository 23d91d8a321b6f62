"""What to do about a refusal, for staff and for the user, by reason code. The words for what it means are in
`audit.reasons`; docs/decisions.md says more of each."""

from dataclasses import dataclass

from audit.reasons import REASONS

NOTHING = "Nothing."


@dataclass(frozen=True, slots=True)
class Help:
    """What staff do, and what the user does."""

    staff: str
    user: str


HELP: dict[str, Help] = {
    "token_missing": Help(
        "Nothing, unless one backend shows many: then it probably does not pass on the users' tokens.",
        "Sign in from the AI client.",
    ),
    "token_malformed": Help(
        "Nothing, unless one backend shows many: then its issuer may hand out tokens of another kind.",
        "Sign in again.",
    ),
    "issuer_unknown": Help(
        "If its tokens are to be accepted, add or enable the issuer, exactly as it names itself.",
        "Sign in with an account of an issuer that is accepted.",
    ),
    "issuer_unavailable": Help(
        "Look when its keys were last fetched, or on its own page when it last answered about a token, and what went"
        " wrong then. It mends itself once the issuer answers.",
        "Try again later.",
    ),
    "token_invalid": Help(
        "Many from one backend may be an attack, or an issuer whose algorithms or lifetime are set too tightly.",
        "Sign in again.",
    ),
    "audience_mismatch": Help(
        "If the token was meant for this backend, add its audience there.", "Connect the AI client anew."
    ),
    "token_expired": Help(NOTHING, "Usually nothing: the client gets a new token by itself. Else sign in again."),
    "proof_required": Help(
        "Nothing, unless one client shows many: then it cannot make proofs, or the issuer is set to demand binding and"
        " does not bind this client's tokens. Many from one place may be tokens that were stolen.",
        "Sign in again. If that does not help, use another client.",
    ),
    "proof_invalid": Help(
        "Many may be a client or backend whose clock is wrong, a backend that does not know its own URL, or tokens that"
        " were stolen: without their key they are of no use.",
        "Nothing: the client makes a new proof for each request.",
    ),
    "proof_unavailable": Help("Look after Redis: it mends itself once that answers.", "Try again later."),
    "subject_unknown": Help(
        "Nothing, unless one backend shows many: then it may name users otherwise than their issuer does.", NOTHING
    ),
    "client_unknown": Help(
        "If it is one of yours, attach its id to a client in the inbox. It still needs a grant then.", NOTHING
    ),
    "client_suspended": Help(
        "Somebody stopped it, and said why. Let it go on when that is over.", "Use another client."
    ),
    "subject_blocked": Help(
        "Somebody blocked the user, and said why: unblock the user when that is over. Or the identity provider"
        " deactivated the user, and alone takes that back.",
        "Ask whoever runs the service.",
    ),
    "tenant_mismatch": Help(
        "Look whether the issuer's tenant claim is set. Many may be a fault of the backend, or somebody who reaches for"
        " another tenant's data.",
        "Sign in to the right organisation.",
    ),
    "tool_unknown": Help("Once the backend has declared it, approve it in the inbox.", NOTHING),
    "tool_suspended": Help("Look at what changed of it, and approve it if that is right.", NOTHING),
    "insufficient_scope": Help("Nothing: this is the user's consent, not yours.", "Consent when the client asks."),
    "not_granted": Help(
        "Grant it, ask for it, or leave it refused. If there is a grant: it may have ended, or be for another user,"
        " role, tenant, tool or mode.",
        "Ask an administrator.",
    ),
    "grant_denied": Help(
        "Open the block: its reason says why it is there. Revoke it when that is over.", "Ask an administrator."
    ),
    "delegation_exceeded": Help(
        "Nothing: the agent was handed less than the user may do, by whoever built it.", NOTHING
    ),
    "rate_limited": Help("Nothing, unless the limit is too low: then open it under Limits.", "Try again later."),
}
assert HELP.keys() == REASONS.keys() - {"granted"}
