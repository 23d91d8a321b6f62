"""What the bench searches for: frequent, middling and rare values of each column, taken from the records themselves."""

import re
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from django.db import connection

from audit.models import Head, Record, Subject
from bench.history import _lookup as lookup

SAMPLE = "SELECT {0}, count(*) FROM (SELECT * FROM audit_record TABLESAMPLE SYSTEM ({1}) REPEATABLE (7)) s"
ENOUGH = 60_000  # records in the sample
UUID = re.compile(r"[0-9a-f-]{36}")


def ranked(column: str) -> list[Any]:
    """The values of a column in a sample, the most frequent first."""
    part = min(100.0, 100 * ENOUGH / Head.objects.get().next)
    with connection.cursor() as cursor:
        cursor.execute(f"{SAMPLE.format(column, part)} WHERE {column} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1")
        return [value for value, _ in cursor.fetchall()]


def spread(values: list[Any], count: int) -> list[Any]:
    """As many values, from the most frequent to the rarest by turns; fewer are repeated."""
    if len(values) <= count:
        return list(islice(cycle(values), count))
    return [values[round(place * (len(values) - 1) / (count - 1))] for place in range(count)]


@dataclass(slots=True)
class Values:
    """Values for each filter of the search, `count` of each."""

    count: int

    def of(self, column: str) -> list[Any]:
        """From the most frequent to the rarest."""
        return spread(ranked(column), self.count)

    def users(self) -> list[str]:
        """Frequent ones, and others that the sample had not even once."""
        frequent = ranked("subject")
        rare = list(Subject.objects.exclude(uid__in=frequent).order_by("uid").values_list("uid", flat=True)[:50])
        return spread([*frequent[: 4 * self.count], *rare], self.count)

    def records(self, **filters: Any) -> list[Record]:
        """Records from all over the log."""
        head = Head.objects.get().next
        found = []
        for place in range(self.count):
            index = 1000 + place * (head - 2000) // self.count
            found += Record.objects.filter(index__gte=index, index__lt=index + 5000, **filters).order_by("index")[:1]
        return found

    def keys(self, kind: str) -> list[str]:
        """Look-up hashes in hex, of ids as bench.history made them."""
        return [bytes(getattr(record, kind)).hex() for record in self.records(**{f"{kind}__isnull": False})]

    def request_ids(self) -> list[str]:
        """Ids as the backend sent them."""
        return [f"req_{record.index:012x}" for record in self.records(request_key__isnull=False)]

    def emails(self) -> list[str]:
        """Addresses of users."""
        return [f"user{number}@example.com" for number in range(0, 37 * self.count, 37)]


def nothing(kind: str) -> str:
    """A hash that no record has."""
    return lookup(kind, "nobody ever sent this").hex()
