"""The marks and routes of a policy file's backends, after everything that they name was written."""

from collections.abc import Callable

from clients.policyfile import BackendEntry, PolicyFile, RouteEntry
from tools.models import Backend, BackendMark, Route, Tool

Key = tuple[str, tuple[str, ...]]


class Backends:
    """One run over the backends of a file. `note(action, kind, name, detail)` is told each change, `notices` what the
    person should know."""

    def __init__(
        self, file: PolicyFile, note: Callable[[str, str, object, str], None], notices: list[str]
    ) -> None:  # fmt: skip
        self.file, self.note, self.notices = file, note, notices

    def apply(self) -> None:
        """Make a backend's marks and routes those of the file. What an entry leaves out has its default: no mark, no
        route, which takes rights away and gives none."""
        rows = Backend.objects.select_for_update().in_bulk(field_name="slug")
        for entry in self.file.backends or []:
            row = rows[entry.slug]
            for mark, _ in BackendMark.MARKS:
                self._mark(row, mark, getattr(entry, mark))
            self._routes(row, entry)

    def _mark(self, row: Backend, mark: str, wanted: bool) -> None:
        found = row.marks.filter(mark=mark).first()
        if wanted and found is None:
            BackendMark.objects.create(backend=row, mark=mark)
            self.note("update", "backend", row.slug, mark)
        elif found is not None and not wanted:
            found.delete()
            self.note("update", "backend", row.slug, f"no longer {mark}")

    def _routes(self, row: Backend, entry: BackendEntry) -> None:
        wanted = {_key(route): list(dict.fromkeys(route.tools)) for route in entry.routes}
        known: dict[Key, Route] = {}
        for route in row.routes.all():
            # By psql the same methods may stand in two orders: one of the two goes.
            key = (route.path, tuple(sorted(route.methods)))
            if key in wanted and key not in known:
                known[key] = route
            else:
                route.delete()
                self.note("update", "backend", row.slug, f"no longer has the route {route}")
        for key, tools in wanted.items():
            self._route(row, known.get(key) or Route(backend=row, path=key[0], methods=list(key[1])), tools)
        self._warn(row, {tool for tools in wanted.values() for tool in tools})

    def _route(self, row: Backend, route: Route, tools: list[str]) -> None:
        if route.pk is not None and route.tools == tools:
            return
        route.tools = tools
        route.save()
        self.note("update", "backend", row.slug, f"{route} is {' '.join(tools) or 'closed'}")

    def _warn(self, row: Backend, named: set[str]) -> None:
        if named:
            declared = Tool.objects.filter(backend=row, name__in=named).values_list("name", flat=True)
            for name in sorted(named - set(declared)):
                self.notices.append(f"a route of {row.slug} names {name}, which it does not offer: that is refused")


def _key(route: RouteEntry) -> Key:
    return route.path, tuple(sorted(set(route.methods)))
