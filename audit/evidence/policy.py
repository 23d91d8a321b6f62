"""What policy records tell of grants: replayed from the log alone, so that a pack can name the client, the tool and the
scopes of a grant by the words that were in force then. Audit knows no table of grants."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from audit.record_words import Statement, short_uid

GRANTS = frozenset({"clients_grant", "clients_grant_scopes"})
# Of the tables that grants name: which column says what a row is called.
NAMED = {"clients_client": "slug", "tools_tool": "name", "tools_scope": "name"}
Change = Mapping[str, Any]


class Grants:
    """Grants and names as the policy records that were taken in tell them. Never raises for what a record may hold."""

    def __init__(self) -> None:
        self.names: dict[str, dict[int, str]] = {table: {} for table in NAMED}
        self.rows: dict[int, Change] = {}
        self.scopes: dict[int, dict[int, int]] = {}  # grant -> row of the link -> scope
        self._of_link: dict[int, int] = {}

    def take(self, statement: Statement) -> None:
        """Take in a policy record."""
        for change in statement.get("changes") or []:
            table, new = change.get("table"), change.get("new")
            number = row_of(change)
            if number is None:
                continue
            if table in NAMED and isinstance(new, dict) and isinstance(name := new.get(NAMED[table]), str):
                self.names[table][number] = name
            elif table == "clients_grant":
                self._grant(number, new, change.get("op"))
            elif table == "clients_grant_scopes":
                self._link(number, new, change.get("op"))

    def _grant(self, number: int, new: Any, done: Any) -> None:
        if isinstance(new, dict):
            self.rows[number] = new
        elif done == "delete":
            self.rows.pop(number, None)
            self.scopes.pop(number, None)

    def _link(self, number: int, new: Any, done: Any) -> None:
        if isinstance(new, dict) and type(new.get("grant_id")) is int and type(new.get("scope_id")) is int:
            self._of_link[number] = new["grant_id"]
            self.scopes.setdefault(new["grant_id"], {})[number] = new["scope_id"]
        elif done == "delete" and number in self._of_link:
            self.scopes.get(self._of_link.pop(number), {}).pop(number, None)

    def grant_of_link(self, change: Change) -> int | None:
        """The grant whose scopes a change of `clients_grant_scopes` is about."""
        side = change.get("new") or change.get("old") or {}
        found = side.get("grant_id")
        return found if type(found) is int else None

    def sentence(self, number: int) -> str:
        """`claude may use memory:read for everyone`; what is not known is said so."""
        row = self.rows.get(number)
        if row is None:
            return "what it was for is not on record before the end of the period"
        client, tool = self._name("clients_client", row.get("client_id")), self._name("tools_tool", row.get("tool_id"))
        denied = row.get("effect") == "deny"
        who = client or ("no client" if denied else "any client")
        may = "must not use" if denied and client else "may use"
        scopes = sorted(self._name("tools_scope", scope) for scope in self.scopes.get(number, {}).values())
        what = " in ".join(filter(None, [", ".join(scopes), f"the tool {tool}" if tool else ""])) or "anything"
        flagged = ", each call marked for review" if row.get("effect") == "flag" else ""
        return f"{who} {may} {what} {_for_whom(row)}{_until(row)}{flagged}"

    def _name(self, table: str, number: Any) -> str:
        if number is None:
            return ""
        return self.names[table].get(number, f"number {number}") if type(number) is int else "one that is not named"

    def in_force(self, at: datetime) -> int:
        """How many grants were neither revoked nor over at a time."""
        return sum(_in_force(row, at) for row in self.rows.values())


def row_of(change: Change) -> int | None:
    """The number of the row that a change is about; None for what is no number."""
    try:
        return int(str(change.get("key")))
    except ValueError:
        return None


def time_of(value: Any) -> datetime | None:
    """A time as the log has it; None for none, and for what is none."""
    try:
        found = datetime.fromisoformat(value)
        return found if found.tzinfo else None
    except (TypeError, ValueError):
        return None


def _for_whom(row: Change) -> str:
    user, modes = row.get("subject_id"), row.get("modes")
    said = [
        f"for user {short_uid(str(user))}" if user else "",
        f"for the role {row['role']}" if row.get("role") else "",
        f"in tenant {row['tenant']}" if row.get("tenant") else "",
        f"in {' or '.join(map(str, modes))} mode" if isinstance(modes, list) and modes else "",
    ]
    return " ".join(filter(None, said)) or "for everyone"


def _until(row: Change) -> str:
    ends = time_of(row.get("expires_at"))
    return f", until {ends:%Y-%m-%d}" if ends else ""


def _in_force(row: Change, at: datetime) -> bool:
    revoked, ends, starts = (time_of(row.get(name)) for name in ("revoked_at", "expires_at", "starts_at"))
    return (revoked is None or revoked > at) and (ends is None or ends > at) and (starts is None or starts <= at)
