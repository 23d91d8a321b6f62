"""Records in words: pure functions from a statement (DESIGN.md section 6) to sentences and steps for people.

Nothing here guesses: what a statement does not establish is said to be not established. `names` maps a client's
slug to the name that staff know it by today; the statement holds the slug alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from audit import question_words, signal_words
from audit.reasons import REASONS
from audit.retention import words as retention_words

Statement = Mapping[str, Any]
TYPES = {
    "decision": "Call", "evaluation": "Question", "introspection": "Token check", "outcome": "Outcome",
    "policy": "Policy change",
    "request": "Request", "review": "Access review", "staff": "Staff action", "signal": "Signal",
    "denials": "Calls turned away", "ungoverned": "Ungoverned call", "key": "Key", "notice": "Notice",
    "retention": "Retention", "hold": "Hold", "erasure": "Erasure",
}  # fmt: skip
# Whose user nobody has seen a genuine token of, in words to stand beside the user.
UNVERIFIED = {"evaluation": "as the backend says", "ungoverned": "as claimed"}
REMEDIES = {
    "none": "", "reauthenticate": "The user signs in again, so that the client gets a new token.",
    "request_scope": "The user is asked to consent to the missing scopes.",
    "ask_administrator": "Staff decide: grant it, or leave it refused.", "retry_later": "Try again later.",
}  # fmt: skip
STAFF_ACTIONS = {
    "staff_key.make": "made a staff key for {owner}", "staff_key.revoke": "revoked a staff key of {owner}",
    "staff.sign_in": "signed in", "staff.sign_out": "signed out", "staff.sign_in_again": "showed again who they are",
    "staff.sign_in_failed": "refused a sign-in", "staff.sign_ins_failed": "refused {count} sign-ins",
    "staff.add": "added {about}", "staff.roles": "changed the roles of {about} from {before} to {after}",
    "staff.tenants": "changed the tenants that {about} is confined to from {before} to {after}",
    "staff.password": "set the password of {about}",
    "staff.notifications": "chose what to be told of by e-mail",
    "staff.deactivate": "deactivated {about}", "staff.reactivate": "reactivated {about}",
    "subject.block": "blocked user {subject}", "subject.unblock": "unblocked user {subject}",
    "subject.sign_out": "signed user {subject} out everywhere",
    "subject.deactivate": "deactivated user {subject}", "subject.reactivate": "reactivated user {subject}",
    "scim.created": "began to manage user {subject}", "scim.updated": "changed what it says of user {subject}",
    "signal.received": "reported {event}: {effect}",
    "scim.released": "let the {count} users of SCIM connection {connection} go",
    "scim.moved": "manages user {subject} in the place of another", "scim.deleted": "ended managing user {subject}",
    "person.lookup": "looked for a user by {by}", "personal.view": "looked at protected details of {subject}",
    "records.csv": "took a page of {count} records out as a file",
    "export.created": "defined export {export}", "export.changed": "changed export {export}",
    "export.enabled": "let export {export} run again", "export.disabled": "paused export {export}",
    "export.deleted": "deleted export {export}", "export.run": "began run {run} of export {export}",
    "export.done": "made the file of run {run} of export {export}, with {records} records",
    "export.failed": "could not make run {run} of export {export}",
    "export.cancelled": "cancelled run {run} of export {export}",
    "export.delivered": "delivered run {run} of export {export} to {destination}",
    "export.downloaded": "downloaded the {file} file of run {run} of export {export}",
    "export.mailed": "told {mailed} recipients by e-mail of run {run} of export {export}",
    "stream.started": "began stream {stream} to {place}", "stream.moved": "sends stream {stream} to {place} now",
    "stream.paused": "paused stream {stream}", "stream.resumed": "let stream {stream} go on",
    "stream.retried": "had {count} dead letters of stream {stream} sent again",
    "stream.skipped": "let a dead letter of stream {stream} go",
    "person.report": "made a report of all that was done with the data of user {subject}",
    "inbox.ignore_client": "decided to leave the client id {client_id} refused",
    "inbox.heed_client": "put the client id {client_id} back into the inbox",
    "client.approve_metadata": "approved the name and logo that are published at {client_id}",
    "inbox.ignore_tool": "decided to leave the tool {tool} of {backend} refused",
    "inbox.heed_tool": "put the tool {tool} of {backend} back into the inbox",
    "request.ask": "asked for a grant, in request {request}", "request.approve": "approved request {request}",
    "request.reject": "rejected request {request}", "request.withdraw": "withdrew request {request}",
    "request.lapse": "let request {request} lapse, which nobody decided",
    "hold.placed": "placed legal hold {hold}", "hold.release.asked": "asked to release legal hold {hold}",
    "hold.release.refused": "left legal hold {hold} in force, which {about} asked to release",
    "hold.released": "released legal hold {hold}, as {about} asked",
    "erasure.asked": "asked to erase user {subject}", "erasure.erased": "erased user {subject}",
    "erasure.refused": "could not have user {subject} erased",
    "review.start": "started an access review of the {of} {reviewed}",
    "review.finish": "finished an access review of the {of} {reviewed}",
}  # fmt: skip
TABLES = {
    "clients_issuer": "issuer", "clients_claimmapping": "claim mapping", "clients_keyset": "key set",
    "clients_introspection": "introspection of an issuer",
    "clients_client": "client", "clients_oauthclientid": "OAuth client id", "clients_acceptedissuer": "accepted issuer",
    "clients_grant": "grant", "clients_grant_scopes": "scope of a grant", "clients_limit": "limit",
    "tools_backend": "backend", "tools_backendmark": "mark of a backend", "tools_route": "route of a backend",
    "tools_backendkey": "backend key", "tools_scope": "scope", "tools_scope_implies": "implication of a scope",
    "tools_pinnedscope": "pin of a scope", "tools_tool": "tool", "tools_tool_scopes": "scope of a tool",
    "clients_scimconnection": "SCIM connection", "clients_signalstream": "signal stream",
    "audit_hold": "legal hold", "audit_retentionrule": "retention rule", "audit_retentionfloor": "floor of retention",
}  # fmt: skip
# Why calls were answered without a record of their own.
TURNED_AWAY = {code: reason.title for code, reason in REASONS.items()} | {
    "over_budget": "Too many failures", "backend_key": "No valid key of a backend",
    "staff_key": "No valid key of staff", "scim_token": "No valid token of a SCIM connection",
    "signal_stream": "No valid token of a signal stream", "event_refused": "An event that was refused",
    "logout_token": "A logout token that was refused",
    "no_route": "A path without a route", "path_ambiguous": "A path that can be read in two ways",
    "proxy_misconfigured": "A proxy that is not set up",
}  # fmt: skip
ONE_OF_MANY = re.compile(r"\b1 (record|recipient|dead letter|user)s\b")
OPERATIONS = {"insert": "added", "update": "changed", "delete": "removed"}
# Reasons of the rows 1 to 8 of the decision table: who calls could not be established.
NOT_ESTABLISHED = frozenset(
    code
    for code, reason in REASONS.items()
    if reason.status == 401 or code in ("issuer_unavailable", "proof_unavailable")
)


@dataclass(frozen=True, slots=True)
class Step:
    """One rule: `state` is passed, stopped or unknown."""

    state: str
    words: str


def short_uid(uid: str) -> str:
    """A uid that fits a line; the whole is where it leads to."""
    return uid if len(uid) <= 13 else f"{uid[:10]}…{uid[-3:]}"


def actor_words(actor: str | None) -> str:
    """Who acted. Names of staff are protected; the statement has their number."""
    kind, _, rest = (actor or "").partition(":")
    match kind:
        case "staff":
            return f"Staff member {rest}"
        case "backend":
            return f"Backend {rest}"
        case "database":
            return f"Somebody in the database as {rest}"
        case "command":
            return f"The command {rest}"
        case "scim":
            return f"SCIM connection {rest}"
        case "signals":
            return f"Signal stream {rest}"
        case "issuer":
            return f"Issuer {rest}"
        case "system":
            return "Muniment"
    return actor or "Somebody"


def title(statement: Statement, names: Mapping[str, str]) -> str:
    """The record in one sentence, without its full stop."""
    match statement.get("type"):
        case "decision":
            return _decision(statement, names)
        case "evaluation":
            return question_words.title(statement, client_words(statement, names), _user(statement))
        case "introspection":
            return _token_check(statement, names)
        case "outcome":
            return _outcome(statement, names)
        case "policy":
            return _policy(statement)
        case "hold" | "retention" if str(statement.get("action")).startswith("row."):
            return _past_the_pages(statement)
        case "staff" | "request" | "review" | "hold" | "erasure" | "signal":
            return _staff(statement)
        case "denials":
            counts = statement.get("counts") or {}
            return f"{sum(counts.values()):,} calls of {statement.get('backend') or 'no backend'} were turned away"
        case "ungoverned":
            user = f" of {_user(statement)}" if statement.get("subject") else ""
            through = f"let a call of {statement.get('tool')}{user} through while Muniment was away"
            return f"{statement.get('backend') or 'A backend'} {through}"
        case "retention":
            return retention_words.record(statement, actor_words(statement.get("actor")))
        case "notice" | "key":
            return _notice(statement)
    return f"{TYPES.get(str(statement.get('type')), str(statement.get('type')).capitalize())}"


def _token_check(statement: Statement, names: Mapping[str, str]) -> str:
    """A backend asked what a token is good for; no tool was named, and none was called."""
    user, client = statement.get("subject"), client_words(statement, names)
    whose = f"a token of {_user(statement)}" if user else "a token of nobody known"
    return f"{statement.get('backend') or 'A backend'} checked {whose}{f' from {client}' if client else ''}"


NOTICES = {
    "alert.raised": "An alert was raised: {alert}", "alert.cleared": "An alert is over: {alert}",
    "log.open": "Log {log} was opened", "log.close": "Log {log} was closed",
    "outbox.unfit": "What {actor} did does not fit a record; it is named by its digest",
    "limits.unavailable": "Calls cannot be counted against limits",
    "limits.available": "Calls are counted again: {uncounted} let through uncounted, {refused} refused",
    "key.published": "A new {use} key was published", "key.retired": "A {use} key was retired",
}  # fmt: skip


def _past_the_pages(statement: Statement) -> str:
    """A change of what is kept that was made in the database itself (audit migration 0015)."""
    done = OPERATIONS.get(str(statement.get("action")).removeprefix("row."), "changed")
    what = TABLES.get(str(statement.get("table")), "row")
    return f"{actor_words(statement.get('actor'))} {done} a {what}, past these pages"


def _notice(statement: Statement) -> str:
    """What the platform itself says."""
    action, kind = str(statement.get("action")), str(statement.get("type"))
    words = NOTICES.get(action)
    said = _Members(statement)
    said["alert"], said["actor"] = said["alert"].replace("-", " "), actor_words(statement.get("actor"))
    return words.format_map(said) if words else f"{TYPES[kind]}: {action}"


def _user(statement: Statement) -> str | None:
    """The user's uid as it fits a line; None where there is none."""
    user = statement.get("subject")
    return short_uid(user) if isinstance(user, str) else None


def client_words(statement: Statement, names: Mapping[str, str]) -> str | None:
    """The client's name; None where no registered client was established."""
    slug = statement.get("client")
    return None if slug is None else names.get(slug, slug)


def _decision(statement: Statement, names: Mapping[str, str]) -> str:
    caller = client_words(statement, names)
    if caller is None:
        caller = "An unregistered client" if statement.get("issuer") else "An unidentified caller"
    tool = statement.get("tool")
    if statement.get("decision") == "allow":
        return f"{caller} was allowed {tool}" + (", marked for review" if statement.get("flagged") else "")
    reason = REASONS.get(str(statement.get("reason")))
    why = reason.title if reason else str(statement.get("reason"))
    return f"{caller} was refused {tool}: {why[:1].lower()}{why[1:]}"


def _outcome(statement: Statement, names: Mapping[str, str]) -> str:
    outcome = statement.get("outcome") or {}
    ended = "ended well" if outcome.get("status") == "ok" else "ended in an error"
    counted = "" if outcome.get("count") is None else f", {amount(outcome['count'], 'item')}"
    return f"{statement.get('tool')} for {client_words(statement, names) or 'a client'} {ended}{counted}"


def _policy(statement: Statement) -> str:
    changes = statement.get("changes") or []
    actor = actor_words(statement.get("actor"))
    what = change_words(changes[0]) if changes else "changed nothing"
    more = f" and {amount(len(changes) - 1, 'more change')}" if len(changes) > 1 else ""
    return f"{actor} {what}{more}"


class _Members(dict[str, str]):
    """What a sentence may name of a statement; what the statement does not have is said so."""

    def __init__(self, statement: Statement) -> None:
        super().__init__((name, value_words(value)) for name, value in statement.items())
        if isinstance(user := statement.get("subject"), str):
            self["subject"] = short_uid(user)
        if statement.get("action") == "signal.received":
            self["effect"] = signal_words.effect(statement, self["subject"])
        for name in ("about", "owner"):  # other members of staff, by their number
            if str(statement.get(name)).startswith("staff:"):
                self[name] = actor_words(statement[name]).replace("Staff", "staff", 1)

    def __missing__(self, name: str) -> str:
        return "somebody" if name == "subject" else "something"


def _staff(statement: Statement) -> str:
    action = str(statement.get("action"))
    named = action if action in STAFF_ACTIONS else f"{statement.get('type')}.{action}"
    words = STAFF_ACTIONS.get(named) or f"did {action}".replace("{", "(").replace("}", ")")
    done = ONE_OF_MANY.sub(r"1 \1", words.format_map(_Members(statement)))
    return f"{actor_words(statement.get('actor'))} {done}"


def change_words(change: Mapping[str, Any]) -> str:
    """One change of one row: `added grant 3`."""
    done = OPERATIONS.get(str(change.get("op")), str(change.get("op")))
    side = change.get("new") or change.get("old") or {}
    called = side.get("slug") or side.get("issuer") or side.get("oauth_id") or side.get("name")
    revoked = (change.get("new") or {}).get("revoked_at") and not (change.get("old") or {}).get("revoked_at")
    done = "revoked" if revoked and change.get("op") == "update" else done
    table = TABLES.get(str(change.get("table")), str(change.get("table")))
    return f"{done} {table} {called or change.get('key')}"


def amount(number: int, noun: str) -> str:
    """`1 item`, `1,200 items`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def why(statement: Statement, names: Mapping[str, str]) -> str:
    """The second line of a record in a list."""
    kind = statement.get("type")
    if kind == "outcome":
        duration = (statement.get("outcome") or {}).get("duration_ms")
        return "" if duration is None else f"took {duration:,} ms"
    if kind == "policy":
        version = (statement.get("policy") or {}).get("version")
        return f"policy version {version}"
    if kind == "denials":
        counts = statement.get("counts") or {}
        return ", ".join(f"{TURNED_AWAY.get(c, c)}: {n:,}" for c, n in sorted(counts.items()))
    if isinstance(found := statement.get("found"), int):
        return f"{amount(found, 'user')} found"
    if kind == "evaluation" and question_words.is_search(statement):
        return question_words.found(statement)
    if kind == "ungoverned":
        return f"reported afterwards; the user is claimed, not verified ({statement.get('cause')})"
    if kind == "introspection" and statement.get("decision") == "allow":
        return f"active, for {' '.join(statement.get('effective') or []) or 'no scope'}"
    if kind not in ("decision", "evaluation", "introspection"):
        return ""
    if statement.get("decision") == "allow":
        grants = statement.get("grants") or []
        return f"by grant {', '.join(map(str, grants))}" if grants else "granted"
    return refusal(statement, names)


def refusal(statement: Statement, names: Mapping[str, str]) -> str:
    """Why a call was refused, as exactly as the statement says it."""
    code, get = str(statement.get("reason")), statement.get
    needs = " ".join(get("required") or [])
    match code:
        case "not_granted" if needs:
            return f"No grant lets {client_words(statement, names) or 'this client'} use {needs}."
        case "insufficient_scope" if needs:
            carried = " ".join(get("token_scopes") or []) or "no scope"
            return f"The token carries {carried}; the tool needs {needs}."
        case "grant_denied" if get("grants"):
            return f"Grant {statement['grants'][0]} forbids it."
        case "rate_limited" if get("limits"):
            return f"Limit {', '.join(map(str, statement['limits']))} lets no more calls through for now."
    return REASONS[code].sentence if code in REASONS else code


def steps(statement: Statement, names: Mapping[str, str]) -> list[Step]:
    """How a call was decided: the rules in their order (DESIGN.md section 5), read back from the statement, up to
    the one that decided."""
    reason = str(statement.get("reason"))
    stop = _stopped_at(statement, reason)
    sentence = refusal(statement, names)
    unverified = question_words.unverified(statement)
    found: list[Step] = []
    for rule, words in rules(statement, names):
        if rule == stop:
            found.append(Step("stopped", sentence))
            found.append(Step("unknown", "What would have come after it was not checked."))
            return found
        if words:
            found.append(Step("unknown" if rule in unverified else "passed", words))
    if statement.get("decision") != "allow":  # a reason that this version does not know
        found.append(Step("stopped", sentence))
    return found


RULE_OF_REASON = {
    "client_unknown": "client", "client_suspended": "client", "subject_blocked": "subject",
    "tenant_mismatch": "tenant", "tool_unknown": "tool", "tool_suspended": "tool",
    "insufficient_scope": "consent", "not_granted": "grants", "grant_denied": "grants",
    "delegation_exceeded": "delegation", "rate_limited": "limits",
}  # fmt: skip


def _stopped_at(statement: Statement, reason: str) -> str | None:
    if statement.get("decision") == "allow":
        return None
    if reason in NOT_ESTABLISHED:
        # A user who was established by a good token, and then signed out everywhere.
        return "subject" if reason == "token_expired" and statement.get("subject") else "token"
    return RULE_OF_REASON.get(reason)


def rules(statement: Statement, names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Each rule, with the words for when it held."""
    get = statement.get
    client = client_words(statement, names) or "the client"
    agent = get("agent") or {}
    needs = " ".join(get("required") or []) or "no scope, but a grant that names it"
    grants = ", ".join(str(number) for number in get("grants") or [])
    handed = agent.get("scopes")
    asserted = question_words.rules(statement, client_words(statement, names), _user(statement))
    found = [
        (
            "token",
            f"The token is genuine: issued by {get('issuer')}, made for {get('backend')}, in its time"
            + (f"; the proof of its {' and of its '.join(get('bound') or [])} came with it" if get("bound") else ""),
        ),
        ("client", f"It was issued to {client}, an active client"),
        ("subject", f"The user is {short_uid(str(get('subject')))}, not blocked"),
        ("tenant", f"The user belongs to tenant {get('tenant')}" if get("tenant") else ""),
        ("tool", f"The tool {get('tool')} is active and needs {needs}"),
        (
            "consent",
            f"The user consented: the token carries {' '.join(get('token_scopes') or []) or 'no scope'}",
        ),
        ("grants", f"{client} is granted it" + (f", by grant {grants}" if grants else "")),
        ("delegation", "" if handed is None else f"The agent was handed {' '.join(handed) or 'no scope'}"),
        ("limits", ""),
    ]
    # The explainer's own questions have nobody who asserts anything.
    return [(rule, asserted.get(rule, words)) for rule, words in found] if get("asserted") else found


@dataclass(frozen=True, slots=True)
class Change:
    """One column of a changed row, in words."""

    column: str
    old: str
    new: str


def changes(change: Mapping[str, Any]) -> list[Change]:
    """The columns of one changed row that differ; all of them for a row that is new or gone."""
    old, new = change.get("old") or {}, change.get("new") or {}
    columns = [c for c in sorted({*old, *new}) if c != "id" and old.get(c) != new.get(c)]
    return [Change(column_words(c), value_words(old.get(c)), value_words(new.get(c))) for c in columns]


def column_words(column: str) -> str:
    """`jwks_sha256` -> `jwks (digest)`."""
    words = column.removesuffix("_sha256").removesuffix("_id").replace("_", " ")
    return f"{words} (digest)" if column.endswith("_sha256") else words


def value_words(value: Any) -> str:
    """A value for people; empty is said, and a digest is cut."""
    match value:
        case None | "" | []:
            return "—"
        case True | False:
            return "yes" if value else "no"
        case list():
            return ", ".join(map(str, value))
        case str() if len(value) == 64 and set(value) <= set("0123456789abcdef"):
            return f"{value[:12]}…"
    return str(value)
