"""Retention rules as SQL: which rule counts for each record, and from when on it is due.

What `audit.retention.rules` says in Python is said here for a million records at once. Whether a tool was sensitive is
in the statement alone: statements are canonical JSON (RFC 8785), in which a quotation mark within a string has a
backslash before it, so that the bytes looked for can stand there as a member and as nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from audit.retention.rules import CALLS, KEPT, Rule, ordered

SENSITIVE = "position('\"sensitive\":true'::bytea IN {}.statement) > 0"
# An outcome is due together with its call, whose time is in the call's id (UUIDv7, RFC 9562 section 5.7).
CALLED = "to_timestamp(('x' || left(replace(r.parent::text, '-', ''), 12))::bit(48)::bigint / 1000.0)"
PARENT = f"""(SELECT {SENSITIVE.format("p")} FROM audit_record p WHERE p.id = r.parent
    AND p.at >= {CALLED} - interval '1 millisecond' AND p.at < {CALLED} + interval '2 milliseconds' LIMIT 1)"""  # noqa: S608 - names are ours
KIND = "CASE r.type WHEN 'outcome' THEN 'decision' ELSE r.type END"
BORN = f"CASE WHEN r.type = 'outcome' AND r.parent IS NOT NULL THEN {CALLED} ELSE r.at END"
PLAIN = ("backend", "client", "tenant")


@dataclass(frozen=True, slots=True)
class Window:
    """Records in [low, high) of the log's time and [first, end) of its index."""

    low: datetime
    high: datetime
    first: int
    end: int


class Question:
    """What is asked of records: which of these rules counts (`rules`, by its place in `order`, from 1), whether the
    record is due at `now`, and whether a hold covers it."""

    def __init__(self, rules: Sequence[Rule], now: datetime, covered: tuple[str, list[Any]]) -> None:
        self.order = ordered(rules)
        self.cutoffs = [now - timedelta(days=rule.days) for rule in self.order]
        self.covered = covered

    def ranges(self, window: Window) -> tuple[str, list[Any]]:
        """First index, size and rules of each run of records that are due and not held; a last row with NULL for the
        first has the number of those that are due and held."""
        found, params = self._found(window)
        sql = f"""WITH found AS ({found}),
            due AS MATERIALIZED (SELECT index, held, rule FROM found WHERE born < (%s::timestamptz[])[rule]),
            islands AS (SELECT index, rule, index - dense_rank() OVER (ORDER BY index) AS island
                FROM due WHERE held IS NOT TRUE)
            SELECT min(index), count(DISTINCT index), array_agg(DISTINCT rule) FROM islands GROUP BY island
            UNION ALL SELECT NULL, count(*), NULL FROM due WHERE held ORDER BY 1 NULLS LAST"""  # noqa: S608 - values are parameters
        return sql, [*params, self.cutoffs]

    def counts(self, window: Window, most: int) -> tuple[str, list[Any]]:
        """For each rule that counts for some of these records (NULL: none does): how many, and how many of them are
        held; of `most` records at the most."""
        found, params = self._found(window)
        sql = f"""SELECT rule, count(*), count(*) FILTER (WHERE held) FROM ({found} LIMIT %s) AS found
            GROUP BY rule ORDER BY rule"""  # noqa: S608 - values are parameters
        return sql, [*params, most]

    def _found(self, window: Window) -> tuple[str, list[Any]]:
        """Index, time that its age counts from, held, and the rule that counts, of every record that rules are for."""
        held, held_params = self.covered
        where = "r.at >= %s AND r.at < %s AND r.index >= %s AND r.index < %s AND r.type <> ALL (%s)"
        asked = [window.low, window.high, window.first, window.end, list(KEPT)]
        if all(rule.sensitive is None for rule in self.order):
            rule, params = self._rule("NULL::boolean")
            sql = f"SELECT r.index, {BORN} AS born, ({held}) AS held, {rule} AS rule"
            sql += f" FROM audit_record r WHERE {where}"
            return sql, [*held_params, *params, *asked]
        given = [self._rule(sensitive) for sensitive in ("true", "false", "NULL::boolean")]
        yes, no, none = (sql for sql, _ in given)
        inner = f"""SELECT r.index, {BORN} AS born, ({held}) AS held, r.type = 'outcome' AS outcome,
            CASE WHEN r.type = ANY (%s) THEN {SENSITIVE.format("r")} WHEN r.type = 'outcome' THEN {PARENT} END AS said,
            {yes} AS yes, {no} AS no, {none} AS none FROM audit_record r WHERE {where}"""  # noqa: S608
        # Of an outcome whose call is gone it is not known any more: it is kept as long as either would be.
        sql = f"""SELECT index, born, held, CASE WHEN said THEN yes WHEN NOT said THEN no
            WHEN NOT outcome THEN none WHEN (%s::timestamptz[])[yes] <= (%s::timestamptz[])[no] THEN yes
            ELSE coalesce(no, yes) END AS rule FROM ({inner}) AS asked"""  # noqa: S608
        values = [value for _, params in given for value in params]
        return sql, [self.cutoffs, self.cutoffs, *held_params, list(CALLS), *values, *asked]

    def _rule(self, sensitive: str) -> tuple[str, list[Any]]:
        """The place of the first rule that fits, as an expression; `sensitive` is one, too."""
        whens, params = [], list[Any]()
        for place, rule in enumerate(self.order, 1):
            terms = []
            if rule.type is not None:
                terms.append(f"{KIND} = %s")
                params.append(rule.type)
            for name in PLAIN:
                if (value := getattr(rule, name)) is not None:
                    terms.append(f"r.{name} = %s")
                    params.append(value)
            if rule.sensitive is not None:
                terms.append(f"({sensitive}) IS {'TRUE' if rule.sensitive else 'FALSE'}")
            whens.append(f"WHEN {' AND '.join(terms) or 'true'} THEN {place}")
        return (f"CASE {' '.join(whens)} END" if whens else "NULL::integer"), params
