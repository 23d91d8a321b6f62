"""Reading MUNIMENT_STREAMS: which kinds there are, and what a stream leaves out."""

from collections.abc import Callable
from typing import Any

from audit.configured import ConfigError, Fields, of_kind, places
from audit.streams.base import Receiver
from audit.streams.syslog import Syslog
from audit.streams.webhook import Webhook

KINDS: dict[str, Callable[[str, Fields], Receiver]] = {"webhook": Webhook.parse, "syslog": Syslog.parse}
FILTERS = ("type", "decision", "reason", "backend", "client", "tenant", "tool", "flagged")
MAX_VALUES = 100
MAX_INDEX = 2**63 - 1


def parse(text: str) -> list[Receiver]:
    """The streams that the text lists, in their order. Raises ConfigError, which names an entry by its number."""
    return places(text, _one)


def _one(given: Fields) -> Receiver:
    wanted, first = _wanted(given.raw("filter")), _first(given.raw("from"))
    receiver = of_kind(given, KINDS)
    receiver.wanted, receiver.first = wanted, first
    return receiver


def _first(value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value <= MAX_INDEX):
        raise ConfigError("from must be the index of a record: 0 is the first")
    return value


def _wanted(value: Any) -> dict[str, frozenset[Any]]:
    """What `filter` says: for each member one value or several. Raises ConfigError."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not value or not set(value) <= set(FILTERS):
        raise ConfigError(f"filter must be a mapping of {', '.join(FILTERS)}")
    found = {}
    for member, given in value.items():
        values = given if isinstance(given, list) else [given]
        kind = bool if member == "flagged" else str
        if not 0 < len(values) <= MAX_VALUES or not all(type(one) is kind for one in values):
            words = "true or false" if kind is bool else "a text, or a list of texts"
            raise ConfigError(f"{member} of filter must be {words}")
        found[member] = frozenset(values)
    return found
