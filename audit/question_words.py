"""Questions in words: what a backend asked without a token (records of the type `evaluation`), and what it was told.
Pure, for `audit.record_words`. Nobody was verified and nothing was used, so none of the words may read like a call."""

from collections.abc import Mapping
from typing import Any

from audit.reasons import REASONS

Statement = Mapping[str, Any]
NOBODY = "a user whom nobody has met"
FOUND = {"subject": "user", "resource": "tool or resource", "action": "action"}
MANY = {"subject": "users", "resource": "tools or resources", "action": "actions"}


def is_search(statement: Statement) -> bool:
    """Whether it was asked who may, with what, or what, rather than whether."""
    return isinstance(statement.get("search"), str)


def title(statement: Statement, client: str | None, user: str | None) -> str:
    """The question in one sentence. `client` and `user` are what they are called; None where there is none."""
    backend, tool = statement.get("backend"), statement.get("tool") or "something"
    through = f" through {client}" if client else ""
    match statement.get("search"):
        case "subject":
            return f"{backend} asked which users may use {tool}{through}"
        case "resource":
            return f"{backend} asked what {user or NOBODY} may use{through}"
        case "action":
            return f"{backend} asked what {user or NOBODY} may do{through}"
    return f"{backend} asked whether {user or NOBODY} may use {tool}{through}: {answer(statement)}"


def answer(statement: Statement) -> str:
    """Yes, or no and why, in a few words."""
    if statement.get("decision") == "allow":
        return "yes, marked for review" if statement.get("flagged") else "yes"
    code = str(statement.get("reason"))
    reason = REASONS[code].title if code in REASONS else code
    return f"no, {reason[:1].lower()}{reason[1:]}"


def pill(statement: Statement) -> str:
    """The same in a word or two."""
    if is_search(statement):
        return "Search without a token"
    return "Asked: yes" if statement.get("decision") == "allow" else "Asked: no"


def found(statement: Statement) -> str:
    """How much a search found."""
    kind, number = str(statement.get("search")), statement.get("results")
    if not isinstance(number, int) or kind not in FOUND:
        return ""
    return f"{number:,} {FOUND[kind] if number == 1 else MANY[kind]} found"


def unverified(statement: Statement) -> frozenset[str]:
    """The rules that nothing has shown to hold: a question has no token, and often no scopes of one."""
    if not statement.get("asserted"):
        return frozenset()
    return frozenset({"token"} if statement.get("token_scopes") is not None else {"token", "consent"})


def rules(statement: Statement, client: str | None, user: str | None) -> dict[str, str]:
    """The words of those rules that hold otherwise than of a call."""
    backend = statement.get("backend")
    said = f"{backend} said that it is a user of {statement.get('issuer')}" if statement.get("issuer") else ""
    scopes = statement.get("token_scopes")
    given = f"{backend} said that the token carries {' '.join(scopes) or 'no scope'}" if scopes is not None else ""
    through = f"{backend} said that it is through {client}, an active client" if client else ""
    return {
        "token": f"No token was shown, so nobody was verified: {said or 'nobody was established'}",
        "client": through or "No client was named: only grants for any client count",
        "subject": f"The user is {user}, not blocked" if user else f"The user is {NOBODY}: no grant names them",
        "tenant": f"{backend} said that the user belongs to tenant {statement.get('tenant')}"
        if statement.get("tenant")
        else "",
        "consent": given or "Whether the user consented was not asked: the scopes of no token were given",
    }
