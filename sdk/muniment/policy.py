"""The policy as the log tells it: replayed from the policy records alone, so that the digest in every decision can be
explained, and a rule that was slipped in past the log shows."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from muniment import statements

Row = dict[str, Any]


class PolicyFault(ValueError):
    """A policy record that does not follow from those before it. The text says how, without values."""


def digest_of(tables: Mapping[str, list[Row]]) -> str:
    """The name of a policy: SHA-256, in hex, of the canonical JSON of its non-empty tables, rows by id."""
    content = {name: sorted(rows, key=lambda row: row["id"]) for name, rows in tables.items() if rows}
    return sha256(statements.dump(content)).hexdigest()


class Replay:
    """The policy's tables, as the records applied so far make them. `version` is the newest complete one."""

    def __init__(self) -> None:
        self.version = 0
        self._tables: dict[str, dict[str, Row]] = {}
        self._part = 0  # of the version that is being applied; 0: none is
        self._known = True
        self._digest: str | None = None

    def apply(self, statement: Mapping[str, Any]) -> None:
        """Apply one policy record (type `policy`: version, part, parts, changes). Raises PolicyFault, having applied
        what could be, when it is out of order or its old values are not those that the log knew."""
        try:
            version, part, parts = statement["policy"]["version"], statement["part"], statement["parts"]
            changes = list(statement["changes"])
        except (KeyError, TypeError):
            raise PolicyFault("it does not say what changed") from None
        if not all(type(number) is int for number in (version, part, parts)):
            raise PolicyFault("it does not say of which version it is")
        faults = []
        if (version, part) != (self.version + 1, self._part + 1):
            faults.append(f"version {version} part {part} comes after version {self.version} part {self._part}")
        self._digest = None
        faults += [fault for change in changes if (fault := self._change(change))]
        self._part = part
        if part == parts:
            self.version, self._part = version, 0
        if faults:
            raise PolicyFault("; ".join(faults))

    def digest(self) -> str | None:
        """The digest of the newest version; None after a change too large for a record, which is named there only by
        its own digests."""
        if not self._known:
            return None
        if self._digest is None:
            self._digest = digest_of({name: list(rows.values()) for name, rows in self._tables.items()})
        return self._digest

    def _change(self, change: Any) -> str | None:
        try:
            table, key = change["table"], str(change["key"])
            if "new" not in change:
                self._known = False
                return None
            old, new = change["old"], change["new"]
        except (KeyError, TypeError):
            return "a change is not one"
        if type(table) is not str:
            return "a change is not one"
        if new is not None and not (isinstance(new, dict) and isinstance(new.get("id"), int)):
            return "a change is not one"
        rows = self._tables.setdefault(table, {})
        known = rows.get(key)
        if new is None:
            rows.pop(key, None)
        else:
            rows[key] = new
        return None if known == old or not self._known else f"the old value of {table} {key} is not what the log knew"
