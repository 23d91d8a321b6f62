"""The sections of an evidence pack: which records belong to each, what they say line by line, and what is counted of
them. Every record of the period that is not of a call belongs to exactly one section; the last takes what is left."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from django.db.models import Q

from audit import record_words
from audit.evidence.policy import GRANTS, Grants, row_of
from audit.evidence.reading import Found, Span
from audit.models import PublishedKey
from audit.reasons import REASONS
from audit.record_page import UNREADABLE
from audit.record_words import Statement, amount

Tally = tuple[str, str, int]
"""A table of a section, a row of it, and by how much that row grows."""

DONE = "What was done"
REVIEWED = "Grants reviewed"
OUTCOMES = {"kept": "kept", "revoked": "revoked", "gone": "gone before it was decided"}
LOOKS = frozenset({"personal.view", "person.lookup"})
OUT = ("export.", "stream.", "bundle.", "records.csv", "person.report")
PEOPLE = ("staff.", "staff_key.")


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that a record tells: what was done, in a word or two, and in a sentence. `row` names the row of the
    policy that it is about, by which its own reason is found."""

    done: str
    what: str
    row: str = ""


DONE_WORDS = {
    "review.start": "begun", "review.finish": "finished", "request.ask": "asked", "request.approve": "approved",
    "request.reject": "rejected", "request.withdraw": "withdrawn", "request.lapse": "lapsed",
    "staff.sign_in": "signed in", "staff.sign_out": "signed out", "staff.sign_in_again": "signed in again",
    "staff.sign_in_failed": "sign-in refused", "staff.sign_ins_failed": "sign-ins refused",
    "staff.roles": "roles changed", "staff.tenants": "tenants changed", "staff.add": "added",
    "staff.deactivate": "deactivated",
    "staff.reactivate": "reactivated", "staff.password": "password set", "staff_key.make": "key made",
    "staff_key.revoke": "key revoked", "subject.block": "user blocked", "subject.unblock": "user unblocked",
    "subject.sign_out": "user signed out", "personal.view": "details looked at", "person.lookup": "person looked for",
    "person.report": "report on a person", "records.csv": "page taken as a file",
    "bundle.disclosed": "bundle disclosed",
    "key.published": "published", "key.retired": "retired", "alert.raised": "alert raised",
    "alert.cleared": "alert over", "log.open": "log opened", "log.close": "log closed",
    "limits.unavailable": "limits not counted", "limits.available": "limits counted again",
    "outbox.unfit": "could not be recorded as it was", "release.asked": "release asked",
    "release.refused": "release refused",
}  # fmt: skip
# What requests and holds name, in words.
NAMED = {
    "client": "client", "scopes": "scopes", "backend": "backend", "tool": "tool", "subject": "user",
    "tenant": "tenant", "for_role": "role", "modes": "agent mode", "effect": "effect", "days": "days",
    "granted_until": "granted until", "since": "from", "until": "to",
}  # fmt: skip
# What stands elsewhere in the line, or says nothing to a person.
UNTOLD = frozenset({"v", "id", "at", "type", "action", "actor", "role", "_sd"})

Lines = Callable[[Found, Grants], list[Line]]


@dataclass(frozen=True, slots=True)
class Section:
    """A section. `filters` make the search that leads to its records, `query` says in words what of them it takes;
    `types` empty: the types that no other section has. `expected` are the rows that are told even where they are 0."""

    slug: str
    title: str
    about: str
    query: str
    types: tuple[str, ...] = ()
    filters: Mapping[str, str] = field(default_factory=dict)
    picks: Callable[[Statement], bool] = lambda statement: True
    lines: Lines = lambda found, grants: [_plain(found)]
    tallies: Callable[[Found, Sequence[Line]], Iterable[Tally]] = lambda found, lines: _by_done(found, lines)
    expected: tuple[str, ...] = ()
    closing: Callable[[Grants, Span], Iterable[Tally]] = lambda grants, span: ()


# --- lines -----------------------------------------------------------------------------------------------------


def _plain(found: Found) -> Line:
    """A record in one sentence; what was done is its action."""
    said = found.statement
    if not said:
        return Line("unreadable", UNREADABLE)
    action = str(said.get("action") or said.get("reason") or said.get("type"))
    return Line(done_words(action), _sentence(said) + _named(said))


def done_words(action: str) -> str:
    """What was done, in a word or two."""
    return DONE_WORDS.get(action) or action.replace(".", " ").replace("_", " ")


def _named(said: Statement) -> str:
    """What a request or a hold is about, where the sentence does not say it."""
    if said.get("type") not in ("request", "hold"):
        return ""
    found = [
        f"{words} {record_words.value_words(said[name])}" for name, words in NAMED.items() if said.get(name) is not None
    ]
    return f" ({', '.join(found)})" if found else ""


def _sentence(said: Statement) -> str:
    """A record in one sentence; of a kind that has none of its own, who did it and what it names."""
    title, kind = record_words.title(said, {}), str(said.get("type"))
    if title != record_words.TYPES.get(kind, kind.capitalize()):
        return title
    named = [
        f"{record_words.column_words(name)} {record_words.value_words(value)}"
        for name, value in sorted(said.items())
        if name not in UNTOLD and value is not None and not isinstance(value, (dict, list))
    ]
    done = str(said.get("action") or "").replace(".", " ").replace("_", " ")
    actor = said.get("actor")
    who = record_words.actor_words(actor if isinstance(actor, str) else None)
    return f"{who}: {title.lower()} {done}" + (f" ({', '.join(named)})" if named else "")


def _grant_lines(found: Found, grants: Grants) -> list[Line]:
    """One line for each grant that a policy record made, changed, revoked or removed."""
    done: dict[int, str] = {}
    for change in found.statement.get("changes") or []:
        number = row_of(change) if change.get("table") == "clients_grant" else grants.grant_of_link(change)
        if change.get("table") in GRANTS and number is not None:
            done.setdefault(number, _grant_done(change))
            if change.get("table") == "clients_grant":
                done[number] = _grant_done(change)
    return [
        Line(word, f"Grant {number}, {word}: {grants.sentence(number)}", f"clients_grant/{number}")
        for number, word in done.items()
    ]


def _grant_done(change: Mapping[str, object]) -> str:
    old, new = (side if isinstance(side := change.get(name), dict) else {} for name in ("old", "new"))
    if change.get("table") != "clients_grant":
        return "scopes changed"
    if change.get("op") == "update" and new.get("revoked_at") and not old.get("revoked_at"):
        return "revoked"
    if change.get("op") == "update" and old.get("expires_at") != new.get("expires_at"):
        return "end changed"
    return {"insert": "made", "delete": "removed"}.get(str(change.get("op")), "changed")


def _policy_lines(found: Found, grants: Grants) -> list[Line]:
    """One line for each other change of a policy record."""
    if not found.statement:
        return [_plain(found)]
    return [
        Line(record_words.TABLES.get(str(change.get("table")), str(change.get("table"))),
             record_words.change_words(change), f"{change.get('table')}/{change.get('key')}")
        for change in found.statement.get("changes") or []
        if change.get("table") not in GRANTS
    ]  # fmt: skip


def _review_lines(found: Found, grants: Grants) -> list[Line]:
    """The beginning or the end of a review, and of an end what became of each grant, with its own note."""
    said, whole = found.statement, _plain(found)
    of = f"in the review of the {said.get('of')} {said.get('reviewed')}"
    lines = [] if type(part := said.get("part")) is int and part > 1 else [whole]
    for name in OUTCOMES:
        numbers = said.get(name)
        for number in numbers if isinstance(numbers, list) else []:
            if type(number) is int:
                words = f"Grant {number}, {OUTCOMES[name]} {of}: {grants.sentence(number)}"
                lines.append(Line(name, words, str(number)))
    return lines or [whole]


def _deleted(found: Found, grants: Grants) -> list[Line]:
    line, said = _plain(found), found.statement
    if said.get("action") != "deleted":
        return [line]
    return [Line("deleted", f"{amount(_deleted_records(said), 'record')} deleted by rule{_ranges(said)}")]


def _deleted_records(said: Statement) -> int:
    return sum(size for _, size in _pairs(said))


def _ranges(said: Statement) -> str:
    pairs = _pairs(said)
    return f", from {pairs[0][0]:,} to {sum(pairs[-1]) - 1:,}" if pairs and pairs[-1][1] else ""


def _pairs(said: Statement) -> list[tuple[int, int]]:
    ranges = said.get("ranges")
    found = [pair for pair in ranges if isinstance(pair, list)] if isinstance(ranges, list) else []
    return [(p[0], p[1]) for p in found if len(p) == 2 and all(type(n) is int and n >= 0 for n in p)]


# --- tallies ---------------------------------------------------------------------------------------------------


def _by_done(found: Found, lines: Sequence[Line]) -> Iterator[Tally]:
    for line in lines:
        yield DONE, line.done, 1


def _of_review(found: Found, lines: Sequence[Line]) -> Iterator[Tally]:
    """What was done, and apart from it what became of the grants that were reviewed."""
    for line in lines:
        yield (REVIEWED if line.done in OUTCOMES else DONE), line.done, 1


def _of_denial(found: Found, lines: Sequence[Line]) -> Iterator[Tally]:
    record = found.record
    known = REASONS.get(record.reason or "")
    yield "By reason", f"{known.title} ({record.reason})" if known else record.reason or "none", 1
    yield "By client", record.client or "not established", 1
    yield "By tool", f"{record.backend or 'no backend'}: {record.tool or 'none'}", 1


def _of_turned_away(found: Found, lines: Sequence[Line]) -> Iterator[Tally]:
    for code, number in (found.statement.get("counts") or {}).items():
        yield "Calls turned away", record_words.TURNED_AWAY.get(code, code), number


def _of_retention(found: Found, lines: Sequence[Line]) -> Iterator[Tally]:
    yield from _by_done(found, lines)
    if found.statement.get("action") == "deleted":
        yield "Records", "deleted by rule", _deleted_records(found.statement)
        held = found.statement.get("held")
        yield "Records", "kept under a hold", held if type(held) is int else 0


def _keys_in_use(span: Span) -> Iterator[Tally]:
    """The published keys at the end of the period, by use."""
    over = Q(not_after=None) | Q(not_after__gte=span.until)
    for use in PublishedKey.USES:
        found = PublishedKey.objects.filter(over, use=use, not_before__lt=span.until)
        yield "Keys in use at the end of the period", use, found.count()


def _action(statement: Statement) -> str:
    return str(statement.get("action") or "")


# --- the sections ----------------------------------------------------------------------------------------------

# Grants come first: what they are called in the period is known to the sections after them.
SECTIONS = (
    Section(
        "grants", "Grants made and revoked",
        "Each grant that was made, changed, revoked or removed, with the reason that was given.",
        "Policy records that change a grant or its scopes.", ("policy",), {"type": "policy"},
        lambda said: any(change.get("table") in GRANTS for change in said.get("changes") or []),
        _grant_lines, expected=("made", "revoked"),
        closing=lambda grants, span: [("At the end of the period", "grants in force", grants.in_force(span.until))],
    ),
    Section(
        "access-reviews", "Access reviews", "Reviews of who may use what: begun, and finished with what was kept.",
        "All records of reviews.", ("review",), {"type": "review"}, lines=_review_lines, tallies=_of_review,
        expected=("begun", "finished"),
    ),
    Section(
        "policy-changes", "Other changes of the policy",
        "Changes of issuers, clients, backends, tools, scopes and their keys: what was changed, by whom and why.",
        "Policy records that change something other than grants.", ("policy",), {"type": "policy"},
        lambda said: not said or any(change.get("table") not in GRANTS for change in said.get("changes") or []),
        _policy_lines,
    ),
    Section(
        "requests", "Requests and approvals", "What was asked for, and what a second person decided.",
        "All records of requests.", ("request",), {"type": "request"}, expected=("asked", "approved", "rejected"),
    ),
    Section(
        "denials", "Refused calls", "Each call of an AI client that was refused, with the rule that refused it.",
        "Calls that were denied.", ("decision",), {"decision": "deny", "type": "decision"}, tallies=_of_denial,
    ),
    Section(
        "turned-away", "Calls turned away in a flood",
        "Calls beyond a budget of failures, which are counted instead of recorded one by one.",
        "All records of calls that were turned away.", ("denials",), {"type": "denials"}, tallies=_of_turned_away,
    ),
    Section(
        "ungoverned", "Calls let through without a decision",
        "Calls that a backend let through while Muniment was away, as it reported them afterwards.",
        "All ungoverned calls.", ("ungoverned",), {"type": "ungoverned"},
        lines=lambda found, grants: [Line("let through", record_words.title(found.statement, {}))],
    ),
    Section(
        "staff", "Staff: sign-ins, roles and keys",
        "Sign-ins, refused sign-ins, and changes of who is on the staff, in which role and with which key.",
        "Staff records about sign-ins, accounts, roles and staff keys.", ("staff",), {"type": "staff"},
        lambda said: _action(said).startswith(PEOPLE), expected=("signed in", "roles changed", "added", "deactivated"),
    ),
    Section(
        "stops", "Stops and other acts of staff",
        "Users blocked or signed out, unknown clients and tools left refused, and whatever else staff did.",
        "Staff records that are in none of the other sections.", ("staff",), {"type": "staff"},
        lambda said: not _action(said).startswith((*PEOPLE, *OUT)) and _action(said) not in LOOKS,
        lambda found, grants: [_plain(found)], expected=("user blocked", "user unblocked"),
    ),
    Section(
        "looks", "Looks at personal data", "Each time that somebody on the staff looked at who a user is.",
        "Staff records of looks at protected details, and of searches for a person.", ("staff",), {"type": "staff"},
        lambda said: _action(said) in LOOKS, lambda found, grants: [_plain(found)],
    ),
    Section(
        "exports", "Evidence taken out", "Exports, packs, reports, bundles and downloads: what left, and with whom.",
        "Staff records of exports, downloads, reports, files and streams.", ("staff",), {"type": "staff"},
        lambda said: _action(said).startswith(OUT), lambda found, grants: [_plain(found)],
    ),
    Section(
        "holds", "Legal holds", "Holds that were placed and released, with the second person's word.",
        "All records of holds.", ("hold",), {"type": "hold"}, lines=lambda found, grants: [_plain(found)],
        expected=("placed", "released"),
    ),
    Section(
        "retention", "Retention", "What was deleted by rule, and how the rules were changed.",
        "All records of retention.", ("retention",), {"type": "retention"}, lines=_deleted, tallies=_of_retention,
    ),
    Section(
        "erasures", "Erasures", "Users who were forgotten on request, or whose request was refused. Never who.",
        "All records of erasures.", ("erasure",), {"type": "erasure"}, lines=lambda found, grants: [_plain(found)],
        expected=("asked", "refused", "erased"),
    ),
    Section(
        "keys", "Key rotations", "Keys that were published and retired, each introduced by a key before it.",
        "All records of keys.", ("key",), {"type": "key"}, expected=("published", "retired"),
        closing=lambda grants, span: _keys_in_use(span),
    ),
    Section(
        "notices", "Alerts and notices", "What the platform itself reported: alerts raised and over, logs opened.",
        "All notices.", ("notice",), {"type": "notice"}, lines=lambda found, grants: [_plain(found)],
        expected=("alert raised", "alert over"),
    ),
    Section(
        "other", "Other records", "Records of kinds that none of the sections above is about.",
        "Records of other types, where there are any.", lines=lambda found, grants: [_plain(found)],
    ),
)  # fmt: skip
BY_SLUG = {section.slug: section for section in SECTIONS}
