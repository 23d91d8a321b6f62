"""Reading MUNIMENT_STREAMS: a YAML list of receivers, whose errors say which entry and why, and never a value."""

import re
from collections.abc import Callable
from typing import Any

from audit.destinations.base import ConfigError, Fields
from audit.streams.base import Receiver
from audit.streams.syslog import Syslog
from audit.streams.webhook import Webhook
from audit.yaml_list import ListError, entries, secret_of

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
KINDS: dict[str, Callable[[str, Fields], Receiver]] = {"webhook": Webhook.parse, "syslog": Syslog.parse}
FILTERS = ("type", "decision", "reason", "backend", "client", "tenant", "tool", "flagged")
MAX_VALUES = 100
MAX_PLACE = 255
MAX_INDEX = 2**63 - 1


def parse(text: str) -> list[Receiver]:
    """The streams that the text lists, in their order. Raises ConfigError, which names an entry by its number."""
    try:
        listed = entries(text)
    except ListError as error:
        raise ConfigError(str(error)) from None
    found: list[Receiver] = []
    for position, entry in enumerate(listed, 1):
        try:
            receiver = _one(entry)
        except (ConfigError, ListError) as error:
            raise ConfigError(f"entry {position}: {error}") from None
        if receiver.name in [other.name for other in found]:
            raise ConfigError(f"entry {position}: there is another one of the same name")
        found.append(receiver)
    return found


def _one(entry: dict[str, Any]) -> Receiver:
    plain = dict(entry)
    wanted, first = _wanted(plain.pop("filter", None)), _first(plain.pop("from", None))
    given = Fields(plain, secret_of)
    name, kind = given.text("name"), given.text("kind")
    if not NAME.fullmatch(name):
        raise ConfigError("name must be lower-case letters, digits, - and _, 64 at most")
    if kind not in KINDS:
        raise ConfigError(f"kind must be one of {', '.join(KINDS)}")
    receiver = KINDS[kind](name, given)
    given.done()
    if len(receiver.place) > MAX_PLACE:
        raise ConfigError("its address is too long")
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
