"""What staff may say of an issuer's claims, whether on its page or in a policy file (pure)."""

from typing import Final

from clients.claims import CLIENT_ID_CLAIMS, SCOPE_CLAIMS
from clients.jwks import ClaimRules

MAX_CLAIM: Final = 120  # characters of a claim's name
MAX_CLAIMS: Final = 10  # names where there may be several

# They are another one with each token, or the same for all users.
_NOBODY: Final = frozenset({"iss", "aud", "exp", "nbf", "iat", "jti", "act", "cnf", *CLIENT_ID_CLAIMS, *SCOPE_CLAIMS})


def problems(rules: ClaimRules, roles_claim: str | None = None) -> dict[str, str]:
    """What is wrong with the rules, by the member of ClaimRules that it is about; empty where nothing is. A sentence
    each, without full stop."""
    found = {}
    for member in ("subject", "email", "scopes", "client_id"):
        value: str | tuple[str, ...] = getattr(rules, member)
        names = value if isinstance(value, tuple) else (value,) if value else ()
        if words := _wrong(names):
            found[member] = words
    if rules.subject in _NOBODY:
        found["subject"] = f"{rules.subject} does not say who the user is"
    if roles_claim and roles_claim in rules.scopes:
        found["scopes"] = f"{roles_claim} holds the roles, and a role is never a scope"
    return found


def _wrong(names: tuple[str, ...]) -> str | None:
    if len(names) > MAX_CLAIMS:
        return f"at most {MAX_CLAIMS} claims can be named"
    for name in names:
        if not name.strip() or name != name.strip() or not name.isprintable() or len(name) > MAX_CLAIM:
            return f"the name of a claim is printable, has 1 to {MAX_CLAIM} characters and no space at its ends"
    return None
