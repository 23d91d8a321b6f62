"""What a security event means for access, and whose (pure; CAEP 1.0, RISC 1.0, SSF 1.0 section 7.1.4, RFC 9493).

Muniment holds no sessions: what ends one of a user's sessions ends all access of the user by older tokens, since it
cannot be told which token came of which session. An event that is not understood has no effect, and says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from clients.signals.sets import LEEWAY, MAX_TEXT, EventToken, SetRefused, seconds

_CAEP: Final = "https://schemas.openid.net/secevent/caep/event-type/"
_RISC: Final = "https://schemas.openid.net/secevent/risc/event-type/"
_SSF: Final = "https://schemas.openid.net/secevent/ssf/event-type/"
# After each of these a token that was issued before is not to be believed any more.
ENDING: Final = {
    _CAEP + "session-revoked": "session-revoked",
    _CAEP + "token-claims-change": "token-claims-change",
    _CAEP + "credential-change": "credential-change",
    _RISC + "account-disabled": "account-disabled",
    _RISC + "account-purged": "account-purged",
    _RISC + "sessions-revoked": "sessions-revoked",
    _RISC + "credential-compromise": "credential-compromise",
    _RISC + "account-credential-change-required": "account-credential-change-required",
}
VERIFICATION: Final = _SSF + "verification"
STREAM_UPDATED: Final = _SSF + "stream-updated"
NAMES: Final = ENDING | {VERIFICATION: "verification", STREAM_UPDATED: "stream-updated"}
MAX_EMAIL: Final = 320
MAX_NOTE: Final = 500

Why = Literal["event_unknown", "subject_unsupported", "user_unknown", "stream"]


@dataclass(frozen=True, slots=True)
class User:
    """Whom an event is about: by `sub` at the stream's issuer, or by e-mail address; one of the two."""

    sub: str | None = None
    email: str | None = None


@dataclass(frozen=True, slots=True)
class Meaning:
    """What is to be done. `name` is the event's short name, None for one that is not known here. With a `user`, the
    tokens issued up to `moment` (seconds since the epoch) are to be refused; without, nothing is, because of `why`.
    `notes` are free text of the transmitter."""

    name: str | None
    user: User | None
    moment: float
    why: Why | None
    notes: Mapping[str, str]


def meaning(token: EventToken, issuer: str, now: float) -> Meaning:
    """What a verified event means for users of `issuer` (the stream's). Raises SetRefused for an event that is known
    and does not say whom it is about (invalid_request), or speaks of another issuer's users (access_denied)."""
    name, notes = NAMES.get(token.event), _notes(token)
    moment = _moment(token, now)
    if token.event not in ENDING:
        why: Why = "event_unknown" if name is None else "stream"
        return Meaning(name, None, moment, why, notes)
    user = _user(_subject(token), issuer)
    return Meaning(name, user, moment, None if user else "subject_unsupported", notes)


def _subject(token: EventToken) -> Mapping[str, Any]:
    """The one subject: `sub_id` beside the event, or `subject` inside, as before SSF 1.0. Both must say the same."""
    given = [one for one in (token.sub_id, token.payload.get("subject")) if one is not None]
    if not given or not all(isinstance(one, dict) and one == given[0] for one in given):
        raise SetRefused("invalid_request", "sub_id is missing, no object, or another than the event's own subject")
    found: Mapping[str, Any] = given[0]
    return found


def _user(subject: Mapping[str, Any], issuer: str, nested: bool = False) -> User | None:
    """The user that a subject identifier names; None for a kind of subject that says nothing of a user to us."""
    match subject.get("format"):
        case "iss_sub":
            if _text(subject, "iss") != issuer:
                raise SetRefused("access_denied", "the subject is a user of another issuer than the stream's")
            return User(sub=_text(subject, "sub"))
        case "email":
            return User(email=_email(subject))
        case "aliases" if not nested:
            return _alias(subject, issuer)
        # Drafts of SSF left the format out of a complex subject, which is known by its `user` then.
        case "complex" | None if not nested and isinstance(subject.get("user"), dict):
            return _user(subject["user"], issuer, nested=True)
        case str():
            return None
    raise SetRefused("invalid_request", "the subject has no format")


def _alias(subject: Mapping[str, Any], issuer: str) -> User | None:
    """RFC 9493 section 3.2.8: several names of one user, of which `iss_sub` is the surest."""
    names = subject.get("identifiers")
    if not isinstance(names, list) or not all(isinstance(one, dict) for one in names):
        raise SetRefused("invalid_request", "the aliases are no list of identifiers")
    for wanted in ("iss_sub", "email"):
        if found := [one for one in names if one.get("format") == wanted]:
            if len(found) > 1:
                raise SetRefused("invalid_request", "the aliases name more than one user")
            return _user(found[0], issuer, nested=True)
    return None


def _text(subject: Mapping[str, Any], name: str) -> str:
    # As strict as for tokens (clients.claims): a user whom no token can name is none.
    value = subject.get(name)
    if not isinstance(value, str) or not value.isprintable() or not value.strip() or len(value) > MAX_TEXT:
        raise SetRefused("invalid_request", f"the subject's {name} is not a printable string of 1 to {MAX_TEXT}")
    return value


def _email(subject: Mapping[str, Any]) -> str:
    value = subject.get("email")
    if not isinstance(value, str) or not value.isprintable() or "@" not in value or len(value) > MAX_EMAIL:
        raise SetRefused("invalid_request", "the subject's email is no e-mail address")
    return value.strip()


def _moment(token: EventToken, now: float) -> float:
    """When it happened, by the transmitter's clock, which also dates the tokens and may be ahead of ours. An event that
    does not say so in seconds ends more rather than less: what was issued up to now. So does one of a time to come."""
    for said in (token.payload.get("event_timestamp"), token.happened_at):
        if (at := seconds(said)) is not None:
            return at if at <= now + LEEWAY else now
    return now


def _notes(token: EventToken) -> dict[str, str]:
    """The reasons that an event gives, and the state of a verification: bounded, and printable."""
    notes = {}
    for name in ("reason_admin", "reason", "status", "state"):
        said = token.payload.get(name)
        if isinstance(said, dict):  # by language (CAEP 1.0 section 2)
            said = said.get("en") or next(iter(said.values()), None)
        if isinstance(said, str) and said.isprintable() and said:
            notes[name] = said[:MAX_NOTE]
    return notes
