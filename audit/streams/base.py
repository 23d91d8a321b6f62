"""What every kind of stream is: a receiver of the operator's, to which records are brought in their order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any
from uuid import UUID

from audit import ocsf


class Undelivered(Exception):
    """The receiver did not take what was sent, and may later. In words for people, without secrets. `retry_after`:
    seconds that it asked to be left alone."""

    def __init__(self, words: str, retry_after: float | None = None) -> None:
        super().__init__(words)
        self.retry_after = retry_after


class Refused(Undelivered):
    """The receiver will not take one of the first `tried` records, however often they come."""

    def __init__(self, words: str, tried: int) -> None:
        super().__init__(words)
        self.tried = tried


@dataclass(frozen=True)
class Item:
    """One record on its way."""

    id: UUID
    index: int
    at: datetime
    leaf: bytes
    statement: bytes
    origin: str

    @cached_property
    def said(self) -> dict[str, Any]:
        """The members of its statement."""
        return ocsf.read(self.statement)

    @cached_property
    def event(self) -> dict[str, Any]:
        """It as OCSF."""
        return ocsf.event(
            {"id": self.id, "index": self.index, "at": self.at, "leaf": self.leaf}, self.said, self.origin
        )


class Receiver:
    """One configured stream. `place`: where it goes, without credentials; `wanted`: the values, by member of the
    statement, that a record must have one of; `first`: the index that a new stream starts from, None for what is sealed
    from now on; `most`: how many records are handed over at once."""

    kind: str = ""
    most: int = 100

    def __init__(self, name: str, place: str) -> None:
        self.name, self.place = name, place
        self.first: int | None = None
        self.wanted: Mapping[str, frozenset[Any]] = {}

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"

    def wants(self, item: Item) -> bool:
        """Whether the record is one of those that the stream is of. One whose statement cannot be read is one of every
        stream: it tells of tampering."""
        return not item.said or all(_value(item, member) in values for member, values in self.wanted.items())

    def send(self, items: Sequence[Item]) -> int:
        """Send some of the first of them, at least one, in their order; how many. To send them again does no harm.
        Raises Refused, Undelivered. Opens no transaction."""
        raise NotImplementedError


def _value(item: Item, member: str) -> str | bool | None:
    """What can be looked for; a changed statement may hold anything there."""
    value = item.said.get(member)
    return value if isinstance(value, str | bool) else None
