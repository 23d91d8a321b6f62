"""Which scopes need a second person: those that are marked sensitive, and those that imply one."""

from collections import defaultdict
from collections.abc import Callable, Iterable

from tools.models import Scope

Closure = Callable[[Iterable[str]], frozenset[str]]


def closure() -> Closure:
    """From names of scopes to those and all that they imply, as the tables say now: read once, for many uses."""
    implied: dict[str, list[str]] = defaultdict(list)
    for wide, narrow in Scope.implies.through.objects.values_list("from_scope__name", "to_scope__name"):
        implied[wide].append(narrow)

    def close(names: Iterable[str]) -> frozenset[str]:
        found = set(names)
        waiting = list(found)
        while waiting:
            new = set(implied.get(waiting.pop(), ())) - found
            found |= new
            waiting += new
        return frozenset(found)

    return close


def sensitive_among(names: Iterable[str]) -> list[str]:
    """The names, sorted, of the sensitive scopes that a grant of these scopes covers."""
    covered = closure()(names)
    return list(Scope.objects.filter(name__in=covered, sensitive=True).order_by("name").values_list("name", flat=True))
