"""Which retention rule counts for a record: pure, so that the admin, the preview and the run say the same.

A rule names some of: type, backend, client, tenant, and whether the tool was sensitive. It fits a record where all that
it names is so. Of the rules that fit, the one that names most counts; of those that name equally many, the one that
keeps longest. A record that no rule fits is kept, and so is every record by which others are judged."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

KEPT = ("policy", "key", "retention", "hold", "erasure", "notice")
"""Types that no rule fits: without these records the others could not be verified, nor could it be shown that what is
gone went by rule."""
CALLS = ("decision", "evaluation", "introspection")
"""Types whose statement says whether the tool was sensitive."""
TYPES = (*CALLS, "denials", "ungoverned", "request", "review", "staff", "signal")
"""Types that a rule may name. An outcome is not among them: it goes with its call, by the rule of its call."""
SELECTORS = ("type", "backend", "client", "tenant", "sensitive")
MOST_DAYS = 36_500


@dataclass(frozen=True, slots=True)
class Facts:
    """What of a record rules ask for. `sensitive` is None for a record that is no call."""

    type: str
    backend: str | None = None
    client: str | None = None
    tenant: str | None = None
    sensitive: bool | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A retention rule. What it does not name is None. `days`: how long records are kept, from their own time."""

    id: int
    days: int
    type: str | None = None
    backend: str | None = None
    client: str | None = None
    tenant: str | None = None
    sensitive: bool | None = None

    @property
    def named(self) -> int:
        """How many things it names: the more, the more specific."""
        return sum(getattr(self, name) is not None for name in SELECTORS)

    def fits(self, facts: Facts) -> bool:
        """Whether all that it names is so."""
        return all((wanted := getattr(self, name)) is None or wanted == getattr(facts, name) for name in SELECTORS)


def ordered(rules: Iterable[Rule]) -> list[Rule]:
    """The rules in the order in which they are asked: the most specific first, then the longest, then the oldest."""
    return sorted(rules, key=lambda rule: (-rule.named, -rule.days, rule.id))


def counts(rules: Iterable[Rule], facts: Facts) -> Rule | None:
    """The rule that counts for a record; None where it is kept. An outcome is asked for with the facts of its call."""
    if facts.type in KEPT:
        return None
    return next((rule for rule in ordered(rules) if rule.fits(facts)), None)


def shortest(rules: Sequence[Rule]) -> int | None:
    """The fewest days that any rule keeps; None without rules. Nothing younger can be due."""
    return min((rule.days for rule in rules), default=None)
