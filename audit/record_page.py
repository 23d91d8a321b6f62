"""What the pages show of a record: a row of the list, and the record in full with what the log proves of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from types import NoneType
from typing import Any

from audit import details, question_words, record_around, record_proof, record_words, search
from audit.models import Batch, Record
from audit.reasons import REASONS
from audit.record_words import Statement
from audit.viewer import Viewer
from muniment import merkle, statements

LABELS = {"role": "Database role", "by": "Looked for by", "found": "Users found", "count": "Records"}
WORDS = (
    "type", "action", "actor", "access", "backend", "client", "client_id", "decision", "issuer", "parent", "reason",
    "search", "subject", "tenant", "tool",
)  # fmt: skip
# Members that stand elsewhere on the page than among the facts, or only in the raw statement.
TOLD = frozenset({
    "actor", "v", "id", "at", "_sd", "type", "changes", "part", "parts", "policy", "counts", "subject", "grants",
    "limits", "public", "signature",
})  # fmt: skip
SKEW = timedelta(minutes=5)  # by which clocks may differ
UNREADABLE = "A record whose bytes are not a statement"


@dataclass(frozen=True, slots=True)
class Pill:
    """Colour and words: allow, deny, flag or plain."""

    kind: str
    words: str


ALTERED = Pill("deny", "Does not hold")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the list."""

    record: Record
    title: str
    why: str
    pill: Pill
    user: str | None


def read(record: Record) -> Statement:
    """The statement; empty when the stored bytes are none any more."""
    try:
        found = statements.load(bytes(record.statement))
    except statements.StatementError:
        return {}
    return found if isinstance(found, dict) and _well_formed(found) else {}


def _well_formed(statement: Statement) -> bool:
    """Whether the members that pages read are of the types that we write. Whoever changes the database may have written
    JSON of any shape."""
    get, agent = statement.get, statement.get("agent") or {}
    if not all(isinstance(get(name), (str, NoneType)) for name in WORDS):
        return False
    texts = [get(name) for name in ("required", "token_scopes", "effective", "roles", "tools", "_sd")]
    tables = [agent, *(get(name) for name in ("policy", "outcome", "counts"))]
    if not all(isinstance(table, dict) for table in tables if table is not None):
        return False
    texts += [agent.get("chain"), agent.get("scopes")]
    numbers, changes = [get("grants"), get("limits"), list((get("counts") or {}).values())], get("changes") or []
    return (
        all(_list_of(text, str) for text in texts)
        and all(_list_of(number, int) for number in numbers)
        and _list_of(changes, dict)
        and all(isinstance(change.get(side), (dict, NoneType)) for change in changes for side in ("old", "new"))
    )


def _list_of(value: Any, kind: type) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(one, kind) for one in value))


def pill(statement: Statement) -> Pill:
    """The decision; for a record without one, its kind."""
    if statement.get("type") == "evaluation":  # not in the colours of a call: nothing was used
        return Pill("plain", question_words.pill(statement))
    if statement.get("type") == "introspection":
        return Pill("plain", "Token active" if statement.get("decision") == "allow" else "Token refused")
    if statement.get("type") == "ungoverned":
        return Pill("plain", record_words.TYPES["ungoverned"])
    match statement.get("decision"), bool(statement.get("flagged")):
        case "allow", True:
            return Pill("flag", "Allowed, flagged")
        case "allow", False:
            return Pill("allow", "Allowed")
        case "deny", _:
            return Pill("deny", "Denied")
    kind = str(statement.get("type"))
    return Pill("plain", record_words.TYPES.get(kind, kind))


def row(record: Record, names: Mapping[str, str]) -> Row:
    """A line of the list, in sentences."""
    statement = read(record)
    if not statement:
        return Row(record, UNREADABLE, "Verify the log.", Pill("deny", "Unreadable"), None)
    user = statement.get("subject")
    sound = merkle.leaf_hash(bytes(record.statement)) == bytes(record.leaf)
    return Row(
        record,
        record_words.title(statement, names),
        record_words.why(statement, names),
        pill(statement) if sound else ALTERED,
        record_words.short_uid(user) if user else None,
    )


def page(record: Record, names: Mapping[str, str], viewer: Viewer | None = None) -> dict[str, Any]:
    """The context of the record page, without any detail that only some may see. `viewer` None: no links around it."""
    statement = read(record)
    is_question = statement.get("type") == "evaluation"
    decided = statement.get("type") == "decision" or (is_question and not question_words.is_search(statement))
    shown, sealing = receipt(record), record_proof.sealing(record)
    verdict = record_proof.verdict(record, sealing, shown["batch"] and shown["batch"].key_id)
    context: dict[str, Any] = {
        "record": record,
        "statement": statement,
        "title": record_words.title(statement, names) if statement else UNREADABLE,
        "pill": (ALTERED if verdict.findings else pill(statement)) if statement else Pill("deny", "Unreadable"),
        "is_call": decided and not is_question,
        "is_question": is_question,
        "decided": decided,
        "facts": facts(statement, names),
        "receipt": shown,
        "sealing": sealing,
        "verdict": verdict,
        "protected": protected(record, statement),
        "window": record_around.window_of(record.at),
        "parent_url": next(iter(record_around.link("", "admin:record", parent_of(statement))), None),
        "around": record_around.around(viewer, record, statement, record_words.client_words(statement, names))
        if viewer and statement
        else [],
        "raw": json.dumps(statement, indent=2, ensure_ascii=False) if statement else None,
    }
    if statement.get("actor"):
        context["actor"] = record_words.actor_words(str(statement["actor"]))
    if decided:
        context |= call(record, statement, names)
    if statement.get("type") == "policy":
        context["changes"] = [
            (record_words.change_words(change), record_words.changes(change))
            for change in statement.get("changes") or []
        ]
    return context


@dataclass(frozen=True, slots=True)
class Protected:
    """What a record protects. `open` are the details that everybody may read who may read records: what staff did;
    `closed` how many there are besides, `state` as in `details.Opened` where they were looked at."""

    count: int
    state: str
    open: list[details.Detail]
    closed: int


def protected(record: Record, statement: Statement) -> Protected:
    """The protected details as far as everybody may read them."""
    committed = statement.get("_sd")
    count = len(committed) if isinstance(committed, list) else 0
    if not count or not details.of_staff(record, statement):
        return Protected(count, "", [], count)
    found = details.opened(record, statement)
    return Protected(count, found.state, found.shown(personal=False), len(found.shown(personal=True)))


def call(record: Record, statement: Statement, names: Mapping[str, str]) -> dict[str, Any]:
    """How a call was decided, what would help, and what came of it."""
    reason = REASONS.get(str(statement.get("reason")))
    had_outcome = statement.get("type") == "decision" and statement.get("decision") == "allow"
    outcome = search.outcome_of(record) if had_outcome else None
    return {
        "steps": record_words.steps(statement, names),
        "remedy": record_words.REMEDIES.get(reason.remedy, "") if reason else "",
        "status": reason.status if reason else None,
        "outcome": outcome and read(outcome).get("outcome"),
        "outcome_record": outcome,
        # A refusal leads to what would solve it.
        "grantable": statement.get("reason") == "not_granted" and statement.get("client"),
    }


def receipt(record: Record) -> dict[str, Any]:
    """What the log says of the record: its place, its batch, and whether its bytes give its leaf."""
    data = bytes(record.statement)
    batch = Batch.objects.filter(first__lte=record.index).order_by("-first").first()
    if batch is not None and record.index >= batch.first + batch.size:
        batch = None
    return {
        "size": len(data),
        "sha256": sha256(data).hexdigest(),
        "leaf": bytes(record.leaf).hex(),
        "leaf_holds": merkle.leaf_hash(data) == bytes(record.leaf),
        "batch": batch,
        "position": record.index - batch.first + 1 if batch else None,
    }


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of the call's description. `value` None reads "not established". `link` is the filter that finds
    more records like it."""

    name: str
    value: str | None
    link: str | None = None
    mono: bool = False


def facts(statement: Statement, names: Mapping[str, str]) -> list[Fact]:
    """What the statement says, member by member, in the words of people."""
    get = statement.get
    if get("type") == "decision":
        return _call_facts(statement, names)
    if get("type") == "evaluation":
        return _question_facts(statement, names)
    if get("type") == "introspection":
        untold = ("Tool", "Access", "Scopes needed", "Agent")  # nothing was called, by any agent
        said = [fact for fact in _call_facts(statement, names) if fact.name not in untold]
        return [*said, Fact("Answer", record_words.why(statement, names))]
    if get("type") == "outcome":
        return [
            Fact("Client", record_words.client_words(statement, names), "client"),
            Fact("Tool", get("tool"), "tool"),
            Fact("User", get("subject"), "subject", mono=True),
            Fact("Backend", get("backend"), "backend"),
        ]
    if get("type") == "ungoverned":
        return _ungoverned_facts(statement, names)
    user = get("subject")
    found = [Fact("User", user, "subject", mono=True)] if isinstance(user, str) else []
    found += [
        Fact(LABELS.get(name) or record_words.column_words(name).capitalize(), record_words.value_words(value))
        for name, value in sorted(statement.items())
        if name not in TOLD and value is not None and not _nested(value)
    ]
    return [*found, Fact("Why", record_words.why(statement, names))] if get("counts") else found


def _question_facts(statement: Statement, names: Mapping[str, str]) -> list[Fact]:
    """Those of a call, of which a search has fewer; what was not said does not read as if it had failed."""
    get, searched = statement.get, question_words.is_search(statement)
    unsaid = {"Client", "OAuth client id"} | (
        {"Access", "Scopes needed", "In effect", "User", "Tool"} if searched else set()
    )
    found = [Fact("Said by", f"{get('backend')}, without a token")]
    for fact in _call_facts(statement, names):
        if fact.name == "In the token":
            scopes = get("token_scopes")
            found += [] if scopes is None else [Fact("Said to be in the token", " ".join(scopes) or "none")]
        elif fact.name == "User" and fact.value is None and not searched:
            found.append(Fact("User", question_words.NOBODY))
        elif fact.value not in (None, "none") or fact.name not in unsaid:
            found.append(fact)
    found += [Fact("Special cases", ", ".join(map(str, get("tools") or [])))] if get("tools") else []
    return [*found, Fact("Results", question_words.found(statement))] if searched else found


def _by_their_clock(microseconds: Any, recorded: Any) -> str | None:
    """A time that somebody else's clock told, and how it stands to ours of the record; None for what is none."""
    if not _is_time(microseconds):
        return None
    words = f"{datetime.fromtimestamp(microseconds / 1e6, UTC):%Y-%m-%d %H:%M:%S} UTC, by the backend's clock"
    late = timedelta(microseconds=recorded - microseconds) if _is_time(recorded) else timedelta(0)
    if late < -SKEW:
        return f"{words}, which is after it was reported: that clock cannot be right"
    return f"{words}, {record_words.amount(late.days, 'day')} before it was reported" if late.days else words


def _is_time(microseconds: Any) -> bool:
    return type(microseconds) is int and 0 <= microseconds < 2**53


def parent_of(statement: Statement) -> Any:
    """The record that this one belongs to. That of an ungoverned call names its place in the spool, and no record."""
    return None if statement.get("type") == "ungoverned" else statement.get("parent")


def _ungoverned_facts(statement: Statement, names: Mapping[str, str]) -> list[Fact]:
    """Of a call that a backend let through without us: all of it is the backend's word."""
    get = statement.get
    chain = (get("agent") or {}).get("chain") or []
    return [
        Fact("Said by", f"{get('backend')}, afterwards"),
        Fact("User, as claimed", get("subject") or "nobody known", "subject" if get("subject") else None, mono=True),
        Fact(
            "Client, as claimed",
            record_words.client_words(statement, names) or "none known",
            "client" if get("client") else None,
        ),
        Fact("Tool", get("tool"), "tool"),
        Fact("Called at", _by_their_clock(get("called_at"), get("at"))),
        Fact("Why without us", str(get("cause")).replace("_", " ")),
        Fact("Agents", " → ".join(map(str, chain)) or "none named"),
        Fact("In the backend's spool", f"line {get('sequence')} of {get('spool')}", mono=True),
    ]


def _agent(name: str) -> str:
    """The name of an agent in a chain; one that looks like two is in quotes."""
    return f"“{name}”" if "→" in name or "“" in name else name


def _nested(value: Any) -> bool:
    """Whether a value has no words of its own: the raw statement shows it."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value))


def _call_facts(statement: Statement, names: Mapping[str, str]) -> list[Fact]:
    get = statement.get
    agent = get("agent") or {}
    policy = get("policy") or {}
    chain = " → ".join(_agent(name) for name in agent.get("chain") or [])
    listed = lambda member: " ".join(get(member) or []) or "none"  # noqa: E731
    found = [
        Fact("User", get("subject"), "subject", mono=True),
        Fact("Client", record_words.client_words(statement, names), "client"),
        Fact("OAuth client id", get("client_id"), mono=True),
        Fact("Issuer", get("issuer"), mono=True),
        Fact("Backend", get("backend"), "backend"),
        Fact("Tool", get("tool"), "tool"),
        Fact("Access", get("access") and f"{get('access')}{', sensitive' if get('sensitive') else ''}"),
        Fact("Agent", f"{agent.get('mode')}{', through ' + chain if chain else ''}"),
        Fact("Scopes needed", listed("required")),
        Fact("In the token", listed("token_scopes") if get("issuer") else None),
        Fact("In effect", listed("effective")),
    ]
    found += [Fact("Tenant", get("tenant"), "tenant")] if get("tenant") else []
    found += [Fact("Roles", ", ".join(statement["roles"]))] if get("roles") else []
    digest = str(policy.get("digest") or "")
    return [*found, Fact("Policy", f"version {policy.get('version')}, digest {digest[:12]}…")]
