"""What is wrong, or odd, about a grant that somebody thinks of, seen beside what is granted and blocked already.

An error cannot be saved; a warning can, by somebody who has read it. What a grant must never be is refused where it is
written (`clients.grants`); here it is explained before."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from django.utils import timezone

from clients import grants
from clients.grant_words import date_of, sentence
from clients.grants import GrantError, Identity
from clients.models import Grant
from clients.proposals import Proposal
from clients.sensitive import Closure, closure
from tools.models import Tool


@dataclass(frozen=True, slots=True)
class Problem:
    """`error` refuses it, else it is a warning. `field` is the form's; `grant` the number of the one in the way."""

    code: str
    words: str
    error: bool = False
    field: str | None = None
    grant: int | None = None


# What an approver cannot wave through: the grant would wait, unseen, for somebody to lift something else.
STOPPED = frozenset({"client_suspended", "tool_suspended"})


def problems(wanted: Proposal, now: datetime | None = None) -> list[Problem]:
    """All that is wrong or odd, errors first."""
    now, close = now or timezone.now(), closure()
    found = [*_by_itself(wanted), *_stopped(wanted)]
    if wanted.kind == "grant":
        found += [*_pointless_scopes(wanted, close), *_beside_others(wanted, now, close)]
    elif wanted.grant is not None and wanted.grant.revoked_at is not None:
        found.append(Problem("revoked", f"Grant {wanted.grant.pk} is revoked; a revoked grant stays so.", True))
    return sorted(found, key=lambda problem: not problem.error)


def _by_itself(wanted: Proposal) -> Iterator[Problem]:
    """What the writer of grants would refuse of it alone."""
    try:
        grants.checked_name(wanted.role, "role")
        grants.checked_name(wanted.tenant, "tenant")
        grants.check(wanted.unsaved(), wanted.scopes)
    except GrantError as error:
        yield Problem("refused", str(error), True, error.field)


def _stopped(wanted: Proposal) -> Iterator[Problem]:
    """Something that it names is not in use."""
    client, tool, subject = wanted.client, wanted.tool, wanted.subject
    if client is not None and client.status != "active":
        yield Problem("client_suspended", f"{client} is suspended: nothing is allowed to it until it is active again.")
    if client is not None and not client.oauth_client_ids.exists():
        yield Problem("client_unreachable", f"{client} has no OAuth client id yet, so no call can come from it.")
    if tool is not None and tool.status == "retired":
        yield Problem("tool_retired", f"{tool} is retired: no call of it is answered any more.", True, "tool")
    elif tool is not None and tool.status != "active":
        yield Problem("tool_suspended", f"{tool} is {tool.status}: it is refused until somebody approves it.")
    if subject is not None and subject.blocked_at is not None and wanted.effect != "deny":
        yield Problem("subject_blocked", "This user is blocked: every call is refused, whatever is granted.")
    elif subject is not None and subject.deactivated_at is not None and wanted.effect != "deny":
        words = "The identity provider deactivated this user: every call is refused, whatever is granted."
        yield Problem("subject_deactivated", words)


def _pointless_scopes(wanted: Proposal, close: Closure) -> Iterator[Problem]:
    """Scopes that open nothing."""
    tools = list(Tool.objects.exclude(status="retired").prefetch_related("scopes"))
    needed = {scope.name for tool in tools for scope in tool.scopes.all()}
    of_tool = {scope.name for scope in wanted.tool.scopes.all()} if wanted.tool else set()
    for name in wanted.scope_names():
        gives = {name} if wanted.effect == "deny" else close([name])
        if not gives & needed:
            yield Problem("scope_unused", f"No tool needs {name}, so it opens nothing.", field="scopes")
        elif wanted.tool is not None and not gives & of_tool:
            needs = " ".join(sorted(of_tool)) or "no scope"
            yield Problem("scope_beside", f"{wanted.tool} does not need {name}; it needs {needs}.", field="tool")


def _beside_others(wanted: Proposal, now: datetime, close: Closure) -> Iterator[Problem]:
    """Another says the same, says more, or forbids it."""
    new = wanted.identity()
    held = [(grant, grants.identity(grant)) for grant in _active(now)]
    for grant, known in held:
        if known == new or (known.effect == new.effect and _as_wide(known, new, close) and _as_wide(new, known, close)):
            words = f"Grant {grant.pk} says the same and is active: {sentence(grant)}. Extend it instead."
            yield Problem("duplicate", words, True, None, grant.pk)
            return
    for grant, known in held:
        if not _outlives(grant, wanted, now):
            continue
        if wanted.effect != "deny" and known.effect == "deny" and _forbids(known, wanted, new, close):
            whom = "to everybody" if not known.subject and not known.role and not known.tenant else "to all of them"
            words = f"Block {grant.pk} forbids this {whom}; nothing would change."
            yield Problem("forbidden", words, True, "scopes" if wanted.scopes else "tool", grant.pk)
            return
    for grant, known in held:
        if _outlives(grant, wanted, now) and _adds_nothing(known, new, close):
            ends = f" until {date_of(grant.expires_at)}" if grant.expires_at else ""
            words = f"Grant {grant.pk} gives the same and more{ends}: {sentence(grant)}. This would add nothing."
            if new.effect == "deny":
                words = f"Block {grant.pk} forbids the same and more{ends}: {sentence(grant)}. This would add nothing."
            yield Problem("adds_nothing", words, grant=grant.pk)
            return


def _active(now: datetime) -> list[Grant]:
    related = grants.active(now).select_related("client", "tool__backend")
    return list(related.prefetch_related("scopes", "tool__scopes").order_by("pk"))


def _outlives(grant: Grant, wanted: Proposal, now: datetime) -> bool:
    """Whether a grant is there for the whole life of what is wanted."""
    begins = max(wanted.starts_at or now, now)
    return (grant.starts_at is None or grant.starts_at <= begins) and (
        grant.expires_at is None or (wanted.expires_at is not None and grant.expires_at >= wanted.expires_at)
    )


def _reaches(wide: Identity, narrow: Identity, tool: bool = True) -> bool:
    """Whether every call that `narrow` matches is matched by `wide`, scopes aside."""
    pairs = [(wide.client, narrow.client), (wide.subject, narrow.subject), (wide.role, narrow.role),
             (wide.tenant, narrow.tenant), *([(wide.tool, narrow.tool)] if tool else [])]  # fmt: skip
    modes = not wide.modes or (bool(narrow.modes) and set(narrow.modes) <= set(wide.modes))
    return modes and all(one is None or one == other for one, other in pairs)


def _as_wide(wide: Identity, narrow: Identity, close: Closure) -> bool:
    """Whether `wide` gives, or forbids, all that `narrow` does."""
    if not _reaches(wide, narrow):
        return False
    if wide.effect == "deny":
        return not wide.scopes or (bool(narrow.scopes) and set(narrow.scopes) <= set(wide.scopes))
    # A tool without scopes is opened by a grant that names it, and by no other.
    if narrow.tool is not None and wide.tool is None and not _needs_scopes(narrow.tool):
        return False
    return close(narrow.scopes) <= close(wide.scopes)


def _needs_scopes(tool: int) -> bool:
    return Tool.scopes.through.objects.filter(tool_id=tool).exists()


def _adds_nothing(known: Identity, new: Identity, close: Closure) -> bool:
    """Whether what is there already does what the new one would: a flag beats an allow, so an allow adds nothing."""
    stronger = {"allow": ("allow", "flag"), "flag": ("flag",), "deny": ("deny",)}
    return known.effect in stronger[new.effect] and _as_wide(known, new, close)


def _forbids(block: Identity, wanted: Proposal, new: Identity, close: Closure) -> bool:
    """Whether a block stops every call that the grant would open: of each tool that it could help to open."""
    if not _reaches(block, new, tool=False):
        return False
    opened = _opened_by(wanted, close)
    if not opened:
        return not block.scopes and (block.tool is None or block.tool == new.tool)
    return all(
        (block.tool is None or block.tool == number) and (not block.scopes or needs & set(block.scopes))
        for number, needs in opened.items()
    )


def _opened_by(wanted: Proposal, close: Closure) -> dict[int, set[str]]:
    """The tools that a grant could help to open, with the scopes that they need."""
    given = close(wanted.scope_names())
    tools = [wanted.tool] if wanted.tool else Tool.objects.exclude(status="retired").prefetch_related("scopes")
    needs = {tool.pk: {scope.name for scope in tool.scopes.all()} for tool in tools}
    named = wanted.tool.pk if wanted.tool else None
    return {number: scopes for number, scopes in needs.items() if scopes & given or number == named}
