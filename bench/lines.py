"""The lines of the table: each a kind of request, with as many values of it as it is measured with."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

from django.contrib.auth import get_user_model
from django.urls import NoReverseMatch, reverse

from bench.values import Values, nothing
from bench.visits import Asked
from clients.models import Client
from governance import staff_keys
from tools.models import Backend

YEAR, WEEK = "1y", "7d"
# The filters of the search page whose values the records have, and the name of the same filter there.
COLUMNS = {
    "client": "client", "tool": "tool", "backend": "backend", "reason": "reason", "decision": "decision",
    "type": "type", "tenant": "tenant", "mode": "mode",
}  # fmt: skip
KEYS = ("request_key", "trace_key", "session_key", "resource_key")


@dataclass(frozen=True, slots=True)
class Line:
    """`step` says which page is timed: the one asked for, or the one to which its link `next` or `last` leads."""

    group: str
    name: str
    asked: list[Asked]
    step: str = "first"
    missing: str = ""
    rounds: int = 2  # after one that is not timed


def url(name: str, *arguments: Any, **query: Any) -> str:
    """Where a page is. Raises NoReverseMatch for one that there is not."""
    path = reverse(name, args=arguments)
    return f"{path}?{urlencode(query)}" if query else path


class Lines:
    """All lines, made from what the records hold."""

    def __init__(self, count: int) -> None:
        self.values, self.count = Values(count), count

    def all(self) -> Iterator[Line]:
        """In the order of the table; what does not exist is a line that says so."""
        makers = (self.filters, self.combinations, self.orders, self.lookups, self.records, self.timelines, self.people,
                  self.home, self.access, self.api)  # fmt: skip
        for maker in makers:
            try:
                yield from maker()
            except NoReverseMatch as error:
                yield Line(maker.__name__, maker.__name__, [], missing=str(error).partition(".")[0])

    # --- the search page ---------------------------------------------------------------------------------------

    def search(self, name: str, queries: Iterable[dict[str, Any]], step: str = "first", group: str = "search") -> Line:
        """A line of the search page."""
        return Line(group, name, [Asked(url("admin:records", **query)) for query in queries], step)

    @cached_property
    def columns(self) -> dict[str, list[Any]]:
        """Values of each column, the most frequent first; their neighbours in a list rarely go together."""
        found = {name: self.values.of(column) for name, column in COLUMNS.items()}
        found["subject"] = self.values.users()
        found["scope"] = self._scopes()
        found["flagged"] = ["1", "0"] * (self.count // 2)
        return found

    def _scopes(self) -> list[str]:
        """Single ones, of those that calls needed."""
        needed = dict.fromkeys(scope for scopes in self.values.of("scopes") for scope in scopes.split())
        return (list(needed) * self.count)[: self.count]

    def filters(self) -> Iterator[Line]:
        """No filter, then each alone: first page, the page after it, the last page, of a year; the first of a week."""
        plain = [{"window": window} for window in ("1h", "24h", WEEK, "30d", YEAR)] * (self.count // 5)
        yield self.search("no filter, each window", plain)
        for name, values in ({"no filter": [None] * self.count} | self.columns).items():
            year = [{name: value, "window": YEAR} if value else {"window": YEAR} for value in values]
            if name != "no filter":
                yield self.search(f"{name}, a week", [{name: value, "window": WEEK} for value in values])
            yield self.search(f"{name}, a year", year)
            yield self.search(f"{name}, a year, second page", year, "next")
            yield self.search(f"{name}, a year, last page", year, "last")

    def combinations(self) -> Iterator[Line]:
        """Two and three filters, as people combine them; those that go together rarely, and those that never do."""
        wanted = (
            ("client", "decision"), ("client", "reason"), ("tool", "reason"), ("client", "tool"), ("subject", "tool"),
            ("subject", "decision"), ("tenant", "reason"), ("backend", "mode"), ("scope", "decision"),
            ("flagged", "client"), ("mode", "reason"), ("client", "tool", "reason"), ("tenant", "client", "decision"),
            ("subject", "client", "tool"), ("scope", "mode", "client"), ("flagged", "tenant", "tool"),
        )  # fmt: skip
        for names in wanted:
            yield self.search(f"{' + '.join(names)}, a year", self._together(names))
        absent = [{name: "-", "reason": value, "window": YEAR} for name in ("client", "tenant")
                  for value in self.columns["reason"][: self.count // 2]]  # fmt: skip
        yield self.search("no client, or no tenant, + reason", absent)
        yield self.search("mode + reason, second page", self._together(("mode", "reason")), "next")
        yield self.search("what nothing matches", self._never())
        yield self.search("what does not go together", self._apart())

    def _together(self, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """Frequent with frequent, frequent with rare, rare with frequent."""
        found = []
        for number in range(self.count):
            steps = ((number * (1 + place) + place) % self.count for place in range(len(names)))
            pairs = {name: self.columns[name][step] for name, step in zip(names, steps, strict=True)}
            found.append(pairs | {"window": YEAR})
        return found

    def _never(self) -> list[dict[str, Any]]:
        rare = [{"client": "nobody"}, {"tool": "no.tool"}, {"tenant": "nowhere"}, {"subject": "usr_nobody"},
                {"reason": "token_malformed"}]  # fmt: skip
        return [query | {"window": YEAR} for query in rare * (self.count // len(rare))]

    def _apart(self) -> list[dict[str, Any]]:
        """Each is frequent, together they are nothing: the worst that an index scan can be asked."""
        apart = [
            {"decision": "allow", "reason": "not_granted"}, {"decision": "deny", "reason": "granted"},
            {"type": "outcome", "decision": "deny"}, {"type": "policy", "client": self.columns["client"][0]},
            {"type": "outcome", "mode": "interactive"},
        ]  # fmt: skip
        return [query | {"window": YEAR} for query in apart * (self.count // len(apart))]

    def orders(self) -> Iterator[Line]:
        """The oldest first."""
        for name in ("client", "reason", "subject"):
            queries = [{name: value, "window": YEAR, "sort": "oldest"} for value in self.columns[name]]
            yield self.search(f"{name}, a year, oldest first", queries)
            yield self.search(f"{name}, a year, oldest first, second page", queries, "next")

    def lookups(self) -> Iterator[Line]:
        """By the hashes of ids, those that are found and one that is not; and the whole way from a request id."""
        for kind in KEYS:
            yield self.search(kind, [{kind: key, "window": YEAR} for key in self.values.keys(kind)])
        kinds = ("request_id", "trace_id", "session_id", "resource")
        none = [{key: nothing(kind), "window": YEAR} for key, kind in zip(KEYS, kinds, strict=True)]
        yield self.search("a hash that nothing has", none * (self.count // 4))

    # --- the other pages ---------------------------------------------------------------------------------------

    def records(self) -> Iterator[Line]:
        """Records in full: their batch, their outcome, their proof."""
        for kind in ("decision", "outcome"):
            found = self.values.records(type=kind)
            yield Line("record", f"the page of a {kind}", [Asked(url("admin:record", row.id)) for row in found])

    def timelines(self) -> Iterator[Line]:
        """Of frequent and rare users, clients and tools."""
        tools = dict(self._tools())
        named = {"user": self.columns["subject"], "client": self.columns["client"],
                 "tool": [f"{tools[name]}/{name}" for name in self.columns["tool"] if name in tools]}  # fmt: skip
        for kind, names in named.items():
            paths = [url("admin:timeline", kind, name) for name in names]
            year = [Asked(f"{path}?window={YEAR}") for path in paths]
            yield Line("timeline", f"of a {kind}", [Asked(path) for path in paths])
            yield Line("timeline", f"of a {kind}, a year", year)
            yield Line("timeline", f"of a {kind}, a year, second page", year, "next")

    def _tools(self) -> Iterator[tuple[str, str]]:
        for backend in Backend.objects.prefetch_related("tools"):
            yield from ((tool.name, backend.slug) for tool in backend.tools.all())

    def people(self) -> Iterator[Line]:
        """From an e-mail address to a user, and the report of all that was done with a user's data."""
        path = url("admin:people")
        emails = self.values.emails()
        yield Line("people", "the page", [Asked(path)] * self.count)
        looks = [Asked(path, urlencode({"person": email})) for email in emails]
        yield Line("people", "find by e-mail", looks, rounds=1)  # a member of staff may not look up more in a minute
        users = self.columns["subject"][self.count // 2 :] * 2
        yield Line("people", "report of a user", [Asked(url("admin:person_report", uid)) for uid in users])

    def home(self) -> Iterator[Line]:
        """The home page."""
        yield Line("home", "home", [Asked(url("admin:index"))] * self.count)

    def access(self) -> Iterator[Line]:
        """The matrix of all clients and all tools, plain, for a user, for one backend."""
        size = f"{Client.objects.count()} clients, {sum(1 for _ in self._tools())} tools"
        subjects = [url("admin:access_matrix", subject=uid) for uid in self.columns["subject"]]
        yield Line("access", f"matrix, {size}", [Asked(url("admin:access_matrix"))] * self.count)
        yield Line("access", "matrix for a user", [Asked(path) for path in subjects])

    def api(self) -> Iterator[Line]:
        """GET /v1/records, by staff key, and one record."""
        owner = get_user_model().objects.get(username="bench")
        key = staff_keys.issue(owner, "command:bench", "", label="bench")[1]
        path = url("api_records")
        for name in ("client", "reason", "subject"):
            asked = [f"{path}?{urlencode({name: value, 'window': YEAR})}" for value in self.columns[name]]
            yield Line("api", f"{name}, a year", [Asked(query, key=key) for query in asked])
        ids = [f"{path}?{urlencode({'request_id': one, 'window': YEAR})}" for one in self.values.request_ids()]
        yield Line("api", "request_id", [Asked(query, key=key) for query in ids])
        rows = self.values.records(type="decision")
        yield Line("api", "one record", [Asked(f"{path}/{row.id}", key=key) for row in rows])


def next_of(body: str) -> str | None:
    """The next page, in an answer of the API."""
    found = json.loads(body).get("next")
    return None if found is None else str(found)
