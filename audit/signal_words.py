"""Signals in words: what came of an event that a transmitter reported (records of the type `signal`). Pure, for
`audit.record_words`."""

from collections.abc import Mapping
from typing import Any

WHY = {
    "event_unknown": "nothing was done, since such events are not known here",
    "subject_unsupported": "nothing was done, since it says nothing of a user that could be known here",
    "user_unknown": "nothing was done, since no user of the issuer has that address",
    "stream": "it is about the stream alone",
}


def effect(statement: Mapping[str, Any], user: str) -> str:
    """What an event did. `user` is what its one user is called; of several it is said how many they are."""
    count = statement.get("users")
    who, one = (f"user {user}", True) if count == 1 else (f"{count} users", False)
    match statement.get("effect"):
        case "signed_out":
            return f"{who} {'is' if one else 'are'} signed out everywhere"
        case "already":
            return f"{who} {'was' if one else 'were'} signed out after that already"
        case "verified":
            return "the stream works"
    return WHY.get(str(statement.get("why")), "nothing was done")
