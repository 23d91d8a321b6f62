"""Access > Access matrix: every tool and what each client may do with it. It changes nothing, and its URL names a user
by uid alone. A page has 50 tools and 20 clients at most; on a narrow screen a tool's row becomes a sentence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from django import forms
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, QueryDict
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import escape, format_html
from django.utils.safestring import SafeString
from django.views.decorators.http import require_safe

from audit.record_words import short_uid
from audit.viewer import tenants_of
from clients.models import Client
from governance import asking, matrix
from governance.asking import UidField, mode_field, name_field
from governance.decision import ToolPolicy
from governance.for_whom import ForWhomForm
from governance.matrix import ALLOWED, DENIED, FLAGGED, INACTIVE, MISSING, Asked, Count, Row
from governance.snapshot import Snapshot, snapshots
from tools.models import Backend

T = TypeVar("T")
PER_PAGE, COLUMNS = 50, 20
IN_WORDS = 6  # with more clients than this a cell has its symbol alone to look at
MOST_PAGES = 100_000
# Kind -> symbol and words.
SIGNS = {
    ALLOWED: ("✓", "allowed"), FLAGGED: ("!", "allowed, flagged"), DENIED: ("✕", "denied"),
    MISSING: ("○", "missing grant"), INACTIVE: ("–", "not active"),
}  # fmt: skip
ONLY: dict[str, tuple[str, Callable[[Row], bool]]] = {
    "open": ("missing or denied", lambda row: any(c.kind in (MISSING, DENIED) for c in row.cells)),
    "missing": ("missing a grant", lambda row: any(c.kind == MISSING for c in row.cells)),
    "denied": ("denied", lambda row: any(c.kind == DENIED for c in row.cells)),
    "flagged": ("flagged", lambda row: any(c.kind == FLAGGED for c in row.cells)),
    "allowed": ("allowed", lambda row: any(c.kind in (ALLOWED, FLAGGED) for c in row.cells)),
}


class MatrixForm(ForWhomForm):
    """What is shown, and for whom, as the URL says it."""

    subject = UidField(required=False)
    role = name_field("Roles")
    tenant = name_field("Tenant")
    mode = mode_field()
    backend = forms.ChoiceField(label="Backend", required=False)
    q = forms.CharField(label="Part of a tool's name", required=False, max_length=128)
    only = forms.ChoiceField(
        label="Tools", required=False, choices=[("", "every tool"), *((k, words) for k, (words, _) in ONLY.items())]
    )
    client = forms.MultipleChoiceField(label="Clients", required=False, widget=forms.CheckboxSelectMultiple)
    page = forms.IntegerField(required=False, min_value=1, max_value=MOST_PAGES, widget=forms.HiddenInput)
    columns = forms.IntegerField(required=False, min_value=1, max_value=MOST_PAGES, widget=forms.HiddenInput)

    def __init__(
        self, query: QueryDict, clients: Sequence[Client], backends: Sequence[Backend], may_look: bool
    ) -> None:
        super().__init__(query)
        self.may_look = may_look
        fields: Any = self.fields
        fields["client"].choices = [(client.slug, client.name) for client in clients]
        fields["backend"].choices = [("", "every backend"), *((backend.slug, backend.name) for backend in backends)]

    def asked(self) -> Asked:
        """For whom. Call it on a valid form only."""
        data = self.cleaned_data
        user = data["subject"]
        return Asked(
            user.uid if user else "", user.issuer if user else None, asking.state_of(user), data["tenant"] or None,
            frozenset(data["role"]), data["mode"] or "interactive",
        )  # fmt: skip

    def whom(self) -> dict[str, Any]:
        """The members of the URL that say for whom, for links to other pages."""
        data = self.cleaned_data
        mode = data["mode"] if data["mode"] != "interactive" else ""
        user = data["subject"]
        return {
            "subject": user.uid if user else "", "role": ",".join(data["role"]), "tenant": data["tenant"], "mode": mode,
        }  # fmt: skip

    def url(self, **changes: Any) -> str:
        """The URL of this matrix with changes; its first page, unless they say another."""
        kept = {name: self.cleaned_data[name] for name in ("backend", "q", "only", "client")}
        return f"{reverse('admin:access_matrix')}?{asking.query_of(self.whom() | kept | changes)}"

    def filters(self) -> list[forms.BoundField]:
        """Its fields, in order, but for the clients, which have a place of their own."""
        return [self[name] for name in ("subject", "role", "tenant", "mode", "backend", "q", "only")]


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one backend."""

    backend: Backend
    rows: list["Line"]


@dataclass(frozen=True, slots=True)
class Line:
    """One tool: what it is, and its cells as HTML."""

    tool: ToolPolicy
    url: str
    cells: list[SafeString]


@dataclass(frozen=True, slots=True)
class Summary:
    """What one client may call, with the links to what is counted."""

    client: Client
    count: Count
    url: str
    flagged_url: str


class MatrixViews:
    """The page, for one admin site."""

    def __init__(self, site: AdminSite) -> None:
        self.site = site

    def urls(self) -> list[URLPattern]:
        """To be put before the site's own."""
        view = self.site.admin_view(require_safe(self.matrix))
        return [path("access/matrix/", view, name="access_matrix")]

    def matrix(self, request: HttpRequest) -> HttpResponse:
        """One page of it."""
        if not request.user.has_perm("clients.view_grant"):
            raise PermissionDenied
        clients, backends = list(Client.objects.all()), list(Backend.objects.all())
        form = MatrixForm(request.GET, clients, backends, request.user.has_perm("audit.view_subject"))
        form.confine(tenants_of(request.user))
        context: dict[str, Any] = {
            **self.site.each_context(request), "title": "Access matrix", "form": form, "no_clients": not clients,
            "plain_url": reverse("admin:access_matrix"),
        }  # fmt: skip
        valid = form.is_valid()
        if valid and clients:
            context |= shown(request.user, form, clients, backends)
        return TemplateResponse(request, "admin/matrix.html", context, status=200 if valid else 400)


def shown(user: Any, form: MatrixForm, clients: Sequence[Client], backends: Sequence[Backend]) -> dict[str, Any]:
    """The page of the matrix that a valid form asks for."""
    data, snapshot, asked = form.cleaned_data, snapshots.at_head(), form.asked()
    chosen = [client for client in clients if not data["client"] or client.slug in data["client"]]
    columns = Pages(chosen, COLUMNS, data["columns"])
    tools = _tools(snapshot, backends, data["backend"], data["q"])
    found = matrix.rows(snapshot, [client.pk for client in columns.shown], tools, asked)
    _, fits = ONLY.get(data["only"], ("", lambda row: True))
    rows = Pages([row for row in found if fits(row)], PER_PAGE, data["page"])
    cells = Cells(user, form, columns.shown)
    counted = matrix.counts(found, len(columns.shown))
    return {
        "clients": columns.shown,
        "groups": _groups(rows.shown, cells, backends),
        "rows": rows,
        "columns": columns,
        "some_clients": len(chosen) < len(clients),
        "tools_in_all": len(tools),
        "compact": len(columns.shown) > IN_WORDS,
        "summaries": [_summary(form, c, n) for c, n in zip(columns.shown, counted, strict=True)],
        "some_may": sum(1 for count in counted if count.allowed),
        "whom": whom(form),
        "matching": bool(data["backend"] or data["q"]),
        "blocked": asked.state.blocked,
        "version": snapshot.version,
        "signs": [(symbol, words) for symbol, words in SIGNS.values()],
        "newer": form.url(page=rows.number - 1, columns=columns.number) if rows.number > 1 else None,
        "older": form.url(page=rows.number + 1, columns=columns.number) if rows.more else None,
        "left": form.url(columns=columns.number - 1, page=rows.number) if columns.number > 1 else None,
        "right": form.url(columns=columns.number + 1, page=rows.number) if columns.more else None,
    }


class Pages(Generic[T]):
    """A list by pages; a page beyond the last is the last."""

    def __init__(self, found: Sequence[T], size: int, number: int | None) -> None:
        self.total = len(found)
        self.pages = max(1, -(-self.total // size))
        self.number = min(number or 1, self.pages)
        self.first = (self.number - 1) * size + 1
        self.shown = found[self.first - 1 : self.first - 1 + size]
        self.size_shown = len(self.shown)
        self.last = self.first - 1 + self.size_shown
        self.more = self.number < self.pages


def _tools(snapshot: Snapshot, backends: Sequence[Backend], backend: str, part: str) -> list[tuple[int, ToolPolicy]]:
    """The tools that the filters leave, by backend and name."""
    slugs = {one.pk: one.slug for one in backends if not backend or one.slug == backend}
    wanted = part.lower()
    found = [
        (number, tool)
        for (number, name), tool in snapshot.policy.tools.items()
        if number in slugs and wanted in name.lower()
    ]
    return sorted(found, key=lambda pair: (slugs[pair[0]], pair[1].name))


def _groups(rows: Sequence[Row], cells: "Cells", backends: Sequence[Backend]) -> list[Group]:
    known = {backend.pk: backend for backend in backends}
    groups = []
    for number, members in groupby(rows, key=lambda row: row.backend_id):
        backend = known[number]
        groups.append(Group(backend, [cells.line(backend, row) for row in members]))
    return groups


def _summary(form: MatrixForm, client: Client, count: Count) -> Summary:
    only = {"client": [client.slug]}
    return Summary(client, count, form.url(**only, only="allowed"), form.url(**only, only="flagged"))


def whom(form: MatrixForm) -> str:
    """For whom the matrix is, in words."""
    data = form.cleaned_data
    parts = [
        f"for user {short_uid(data['subject'].uid)}" if data["subject"] else "for everyone",
        f"with the role {' and '.join(data['role'])}" if data["role"] else "",
        f"in tenant {data['tenant']}" if data["tenant"] else "",
        f"in {data['mode'] or 'interactive'} mode",
    ]
    return " ".join(filter(None, parts))


class Cells:
    """Cells as HTML. A page has a thousand, so what is the same in a row, in a column or everywhere is made and escaped
    once."""

    CELL = (
        '<td class="{}"><a href="{}{}" title="{}: {}"><span class="who">{}: </span>'
        '<span class="sign" aria-hidden="true">{}</span> <span class="say">{}</span></a>{}</td>'
    )
    GIVE = (
        ' <a class="give" href="{}{}" title="{} {} to {}"><span aria-hidden="true">+</span><span class="say"> {}</span>'
        '<span class="unseen"> {} to {}</span></a>'
    )

    def __init__(self, user: Any, form: MatrixForm, clients: Sequence[Client]) -> None:
        members = asking.query_of(form.whom())
        self.tail = f"&{members}" if members else ""
        grant, verb = asking.grant_url(user)
        self.verb, self.small = escape(verb), escape(verb.lower())
        self.signs = {
            kind: (escape(f"is-{kind}"), escape(sign), escape(words)) for kind, (sign, words) in SIGNS.items()
        }
        explain = reverse("admin:access_explain")
        self.clients = [
            (escape(c.name), escape(f"{explain}?client={c.slug}"), escape(f"{grant}?client={c.slug}")) for c in clients
        ]

    def line(self, backend: Backend, row: Row) -> Line:
        """One row."""
        tool = row.tool
        query = f"&tool={quote(f'{backend.slug}/{tool.name}', safe='')}{self.tail}"
        wanted: dict[tuple[str, ...], tuple[SafeString, SafeString]] = {}
        for missing in {cell.missing for cell in row.cells if cell.kind == MISSING}:
            scopes = "".join(f"&scope={quote(scope, safe='')}" for scope in missing)
            asks = scopes + self.tail if missing else query
            wanted[missing] = escape(asks), escape(" ".join(missing) or tool.name)
        escaped = escape(query)
        cells = []
        for (name, explain, grant), cell in zip(self.clients, row.cells, strict=True):
            kind, sign, words = self.signs[cell.kind]
            give: SafeString | str = ""
            if cell.kind == MISSING:
                asks, what = wanted[cell.missing]
                give = format_html(self.GIVE, grant, asks, self.verb, what, name, self.small, what, name)
            cells.append(format_html(self.CELL, kind, explain, escaped, name, words, name, sign, words, give))
        return Line(tool, reverse("admin:tools_tool_change", args=[tool.id]), cells)
