"""Row 16 of the decision table: which limits a call that is allowed so far counts against, and what comes of it.

The calls of one request are paid for together, in one question to Redis. A call that is decided again, because the
policy moved on, does not pay again; one that is then refused, or could not be recorded, gets back what it paid.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

from audit.entries import Entry, entry
from clients.buckets import Bucket, Counted
from clients.limit_words import LENGTHS, sentence_of
from clients.limits import Away, Payment, Refusal, counter
from governance.decision import ClientPolicy, Decision, LimitPolicy, Policy, ToolPolicy

if TYPE_CHECKING:
    from governance.verification import Verdict

MOST_NAMED = 3  # limits in an explanation


def applying(
    policy: Policy, client: ClientPolicy, tool: ToolPolicy, tenant: str | None, mode: str
) -> list[LimitPolicy]:
    """The limits that a call counts against. One for each tenant says nothing of a token that has none."""
    return [
        limit
        for limit in policy.limits
        if (limit.client_id is None or limit.client_id == client.id)
        and (limit.tool_id is None or limit.tool_id == tool.id)
        and (limit.tenant is None or limit.tenant == tenant)
        and (not limit.modes or mode in limit.modes)
        and (limit.per != "tenant" or tenant is not None)
    ]


def bucket(limit: LimitPolicy, uid: str, client: str, tool_id: int, tenant: str | None, mode: str) -> Bucket:
    """What of the limit a call takes from: whom it is counted for, in its tenant, and in its mode where the limit names
    modes. One that names none counts all together, so that nobody gets more by saying another mode."""
    what = {"subject": uid, "subject_client": f"{uid} {client}", "client": client, "tool": str(tool_id), "tenant": ""}
    counted = Counted(what[limit.per], tenant, mode if limit.modes else None)
    return Bucket(limit.id, limit.count, limit.seconds, limit.burst, counted)


def words(limit: LimitPolicy, client: ClientPolicy | None, tool: ToolPolicy | None) -> str:
    """The limit in a sentence, for a call of this client and tool."""
    return sentence_of(
        limit.per, limit.count, LENGTHS[limit.seconds], limit.burst,
        client.name if client and limit.client_id is not None else None,
        tool.name if tool and limit.tool_id is not None else None, limit.tenant, limit.modes,
    )  # fmt: skip


def uncountable(limits: Iterable[LimitPolicy], tool: ToolPolicy) -> list[LimitPolicy]:
    """Those of the limits that refuse a call of this tool when it cannot be counted."""
    refusing = ("deny", "access") if tool.access == "destructive" else ("deny",)
    return [limit for limit in limits if limit.on_outage in refusing]


@dataclass(slots=True)
class Purse:
    """What the calls of one request have paid, by their places in it, and which could not be counted (True: and were
    refused)."""

    payments: dict[int, Payment] = field(default_factory=dict)
    uncounted: dict[int, bool] = field(default_factory=dict)

    def settle(self, verdicts: Mapping[int, "Verdict"]) -> None:
        """Take from the limits of calls that are allowed and have not paid, all at once, in their order; deny those
        that a limit refuses. What was paid for another decision than this one goes back first."""
        wanted = {place: _buckets(verdict) for place, verdict in verdicts.items()}
        old = [p for p in wanted if p in self.payments and self.payments[p].buckets != wanted[p]]
        self._give_back(old)
        for place in wanted:
            self.uncounted.pop(place, None)
        unpaid = [place for place, buckets in wanted.items() if buckets and place not in self.payments]
        if not unpaid:
            return
        try:
            found = counter.take([wanted[place] for place in unpaid])
        except Away:
            for place in unpaid:
                self._uncounted(place, verdicts[place])
            return
        for place, result in zip(unpaid, found, strict=True):
            if isinstance(result, Payment):
                self.payments[place] = result
            else:
                _refuse(verdicts[place], result)

    def close(self, unanswered: Iterable[int]) -> None:
        """All is recorded that will be. Calls without a record are not answered, so that they get back what they
        paid."""
        for place in unanswered:
            self.uncounted.pop(place, None)
        outage.met(self.uncounted.values())
        self._give_back(unanswered)

    def _give_back(self, places: Iterable[int]) -> None:
        counter.give_back([self.payments.pop(place) for place in places if place in self.payments])

    def _uncounted(self, place: int, verdict: "Verdict") -> None:
        decision, policy = verdict.decision, verdict.snapshot.policy
        assert decision.tool is not None  # it was allowed so far
        refusing = uncountable(_limits(verdict), decision.tool)
        self.uncounted[place] = bool(refusing)
        if refusing:
            _stop(decision, policy, [limit.id for limit in refusing], 1, "Calls cannot be counted at the moment.")


def _limits(verdict: "Verdict") -> list[LimitPolicy]:
    """The limits of an allowed call."""
    policy, decision, identity = verdict.snapshot.policy, verdict.decision, verdict.identity
    if not (policy.limits and decision.allowed and decision.client and decision.tool and identity):
        return []
    return applying(policy, decision.client, decision.tool, identity.tenant, verdict.call.agent.mode)


def _buckets(verdict: "Verdict") -> tuple[Bucket, ...]:
    """What an allowed call takes from; none for a denial."""
    limits = _limits(verdict)
    if not limits:
        return ()
    decision, identity = verdict.decision, verdict.identity
    assert decision.client and decision.tool and identity and verdict.uid
    about = (verdict.uid, decision.client.slug, decision.tool.id, identity.tenant, verdict.call.agent.mode)
    return tuple(bucket(limit, *about) for limit in limits)


def _refuse(verdict: "Verdict", refusal: Refusal) -> None:
    numbers = [one.limit for one in refusal.buckets]
    _stop(verdict.decision, verdict.snapshot.policy, numbers, refusal.retry_after, "")


def _stop(decision: Decision, policy: Policy, numbers: list[int], retry_after: int, why: str) -> None:
    named = [limit for limit in policy.limits if limit.id in numbers[:MOST_NAMED]]
    told = [f"{words(limit, decision.client, decision.tool)}." for limit in named]
    decision.limits, decision.retry_after = tuple(numbers), retry_after
    decision.stop("limits", "rate_limited", " ".join(filter(None, [why, *told])))


class Outage:
    """How many calls were let through uncounted, and refused, while Redis was away; each outage becomes two records,
    one when it begins and one when it is over."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.clear()

    def clear(self) -> None:
        """As in a new process."""
        self._told, self._let_through, self._refused = False, 0, 0

    def met(self, refused: Collection[bool]) -> None:
        """Calls could not be counted; whether each was refused."""
        if refused:
            with self._lock:
                self._refused += sum(refused)
                self._let_through += len(refused) - sum(refused)

    def notices(self) -> list[Entry]:
        """What there is to record since the last look. Calls that end after the outage did, or one so short that no
        look fell into it, are told as well."""
        away = counter.away
        said: dict[str, object] = {"type": "notice", "action": "limits.unavailable" if away else "limits.available"}
        with self._lock:
            if away == self._told and (away or not (self._let_through or self._refused)):
                return []
            self._told = away
            if not away:
                said |= {"uncounted": self._let_through, "refused": self._refused}
                self._let_through = self._refused = 0
        return [entry(said, {}, "system")]


outage = Outage()
