"""A member of staff who is confined to one tenant opens every address of the admin, follows the links, asks the API,
and tries to change what is another tenant's: nothing that marks the other tenant comes back, and nothing changes."""

import io
import re
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urljoin, urlsplit

import pytest
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.test import Client as HttpClient
from django.urls import URLPattern, URLResolver, resolve
from django.urls.resolvers import RoutePattern

from audit.record_words import short_uid
from audit.viewer import viewer_of
from clients.models import Client
from clients.proposals import Proposal
from governance import impact, staff_keys
from governance.roles import ROLES
from tests.governance.confined import ACME, GLOBEX, Scene, account, build_scene
from tests.governance.walking import BY_KIND, PART, USUAL, contents
from tests.staff import signed_in
from tools.models import Scope

pytestmark = pytest.mark.timeout(300)
MOST = 600  # pages of one crawl
ALIKE, OF_A_PAGE = 2, 3  # links that are followed: that differ in their arguments alone, and to one page at all
LINK = re.compile(r'(?:href|src|action)="([^"]+)"')
GONE = re.compile(r"<li[^>]*>[^<]* with ID “[^”]*” doesn’t exist[^<]*</li>")  # said on the next page, of what was typed
LEAVING = {"logout", "password_change"}
# Written by everybody who comes and looks.
PASSING = ("audit_outbox", "audit_record", "audit_batch", "audit_head", "audit_datakey", "audit_rollup",
           "django_session", "audit_sighting")  # fmt: skip
NOBODY, NO_RECORD, NO_ROW = "usr_nobodynobodynobody", "018f0000-0000-7000-8000-00000000dead", "999999"


@pytest.fixture(scope="module")
def scene(migrated: None) -> Iterator[Scene]:
    """One for all crawls, which change nothing of it."""
    from governance import process
    from tests.reset import reset

    reset()
    yield build_scene()
    process.stop_recorder()


# --- addresses -------------------------------------------------------------------------------------------------


def routes(patterns: list[Any], prefix: str = "/admin/") -> Iterator[tuple[str, str]]:
    """The name and the route of every page."""
    for pattern in patterns:
        if not isinstance(pattern.pattern, RoutePattern):
            continue
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from routes(pattern.url_patterns, route)
        elif isinstance(pattern, URLPattern):
            yield pattern.name or "", route


@dataclass(frozen=True)
class Arguments:
    """What fills routes: by the route's beginning, and by the name of a part of it."""

    by_route: dict[str, str]
    by_name: dict[str, str]


def arguments(scene: Scene, tenant: str, missing: bool = False) -> Arguments:
    """What is of a tenant; `missing`: of the same forms, and of nobody."""
    who = NOBODY if missing else scene.uids["alice" if tenant == ACME else "gwen"]
    rows = {kind: NO_ROW if missing else str(row.pk) for (of, kind), row in scene.made.items() if of == tenant}
    by_route = {
        "/admin/exports/runs/": rows.get("run"), "/admin/exports/mailed/": rows.get("run"),
        "/admin/exports/": rows.get("export"), "/admin/records/saved/": rows.get("search"),
        "/admin/clients/grant/": rows["grant"], "/admin/clients/accessrequest/": rows["request"],
        "/admin/clients/limit/": rows["limit"], "/admin/audit/subject/": who,
    }  # fmt: skip
    record = NO_RECORD if missing else scene.records[tenant][0]
    return Arguments({route: own for route, own in by_route.items() if own}, {"record": record, "uid": who})


def paths(given: Arguments) -> dict[str, str]:
    """Every address, with these arguments where they fit, else with what there is: path to the name of its page."""
    found = {f"/admin/timeline/user/{given.by_name['uid']}/": "timeline"}
    for name, route in routes(admin.site.get_urls()):
        own = next((value for prefix, value in given.by_route.items() if route.startswith(prefix)), None)
        model = next((m for m in admin.site._registry if route.startswith(home(m))), None)
        first = model._default_manager.order_by("pk").first() if model and own is None else None
        row = own or str(first.pk if first else 1)
        values = USUAL | given.by_name | {"object_id": row, "number": own or "1", "run": own or "1"}
        actions = [one.name for one in getattr(admin.site._registry[model], "can_act", ())] if model else []
        for action in actions or ["x"]:
            filled = values | {"action": action}
            path = PART.sub(lambda m, v=filled: v.get(m[2]) or BY_KIND.get(m[1] or "str", "x"), route)  # type: ignore[misc]
            found[path] = name
    return found


def home(model: Any) -> str:
    """Where the pages of a model are."""
    return f"/admin/{model._meta.app_label}/{model._meta.model_name}/"


# --- crawling --------------------------------------------------------------------------------------------------


def texts(response: Any) -> str:
    """All that an answer says: its headers, its body, and what is in it where it is an archive."""
    body = b"".join(response.streaming_content) if response.streaming else response.content
    headers = "\n".join(f"{name}: {value}" for name, value in response.items())
    if body.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            body = b"\n".join(archive.read(name) for name in archive.namelist())
    return f"{headers}\n{body.decode(errors='replace')}"


class Crawl:
    """What one browser gets to see. `seen` has the status by path, `marked` the marks of the other tenant by path."""

    def __init__(self, scene: Scene, http: HttpClient, of_a_page: int = OF_A_PAGE) -> None:
        self.scene, self.http, self.of_a_page = scene, http, of_a_page
        http.raise_request_exception = False
        self.seen: dict[str, int] = {}
        self.ours: set[str] = set()
        self.names: dict[str, str] = {}
        self.marked: dict[str, list[str]] = {}
        self._kinds: dict[Any, int] = {}

    def run(self, start: Iterable[str], follow: bool = True) -> "Crawl":
        """Open these, and what they lead to."""
        waiting = deque(start)
        while waiting and len(self.seen) < MOST:
            url = waiting.popleft()
            if url in self.seen:
                continue
            response = self.http.get(url)
            text = GONE.sub("", texts(response))
            self.seen[url], self.names[url] = response.status_code, resolve(urlsplit(url).path).url_name or ""
            found = (self.scene.uids["alice"], "reason acme", *self.scene.records[ACME])
            self.ours.update(one for one in found if one in text and one not in url)
            # A page repeats what it was asked.
            if marks := [mark for mark in self.scene.found(text) if mark not in unquote_plus(url)]:
                self.marked[url] = marks
            if follow and response.status_code < 400:
                more = [response["Location"]] if response.status_code in (301, 302) else LINK.findall(text)
                waiting.extend(self._new(urljoin(url, one.replace("&amp;", "&")) for one in more))
        return self

    def _new(self, urls: Iterable[str]) -> Iterator[str]:
        """Those that are pages of the admin, not too many of a kind."""
        for url in urls:
            parts = urlsplit(url)
            path = parts.path
            if parts.netloc or not path.startswith("/admin/") or url in self.seen:
                continue
            name = resolve(path).url_name
            if name in LEAVING:
                continue
            members = frozenset(key for key, _ in parse_qsl(parts.query)) - {"_changelist_filters"}
            counts = []
            for kind in (name, (name, members)):
                self._kinds[kind] = self._kinds.get(kind, 0) + 1
                counts.append(self._kinds[kind])
            if counts[0] <= self.of_a_page and counts[1] <= ALIKE:
                yield f"{path}?{parts.query}" if parts.query else path


def confined(name: str, *roles: str) -> Any:
    """A member of staff of acme with these roles."""
    user = account(name, roles[0], ACME)
    user.groups.set(Group.objects.filter(name__in=roles))
    return get_user_model().objects.get(pk=user.pk)


def asked(scene: Scene) -> list[str]:
    """Pages asked for what is the other tenant's, by every member that names something."""
    gwen, record = scene.uids["gwen"], scene.records[GLOBEX][0]
    search = [f"tenant={GLOBEX}", f"subject={gwen}", "role=x", f"parent={record}", "client=claude"]
    return [
        *(f"/admin/records/?window=30d&{one}" for one in search),
        f"/admin/access/matrix/?tenant={GLOBEX}", f"/admin/access/matrix/?subject={gwen}",
        f"/admin/access/explain/?client=claude&tool=inner/memory.recall&tenant={GLOBEX}",
        f"/admin/access/explain/?client=claude&tool=inner/memory.recall&subject={gwen}",
        f"/admin/access/ask/?extends={scene.made[GLOBEX, 'grant'].pk}",
        *(f"/admin/clients/grant/?state=all&q={q}" for q in ("reason", GLOBEX)),
        "/admin/clients/accessrequest/?state=all", "/admin/clients/limit/?q=reason", "/admin/audit/subject/?q=usr",
        "/admin/?window=30d", f"/admin/timeline/user/{scene.uids['sam']}/?window=30d",
        f"/admin/people/{scene.uids['sam']}/report/", f"/admin/audit/subject/{scene.uids['sam']}/change/",
    ]  # fmt: skip


def test_who_is_confined_finds_nothing_of_another_tenant_anywhere(scene: Scene) -> None:
    """With every role, so that all that confinement keeps is there."""
    crawl = Crawl(scene, signed_in(confined("all-of-them", *ROLES)))
    ours = {scene.uids["alice"], "reason acme", *scene.records[ACME][:3]}
    crawl.run([*paths(arguments(scene, ACME)), *paths(arguments(scene, GLOBEX)), *asked(scene)])
    assert not crawl.marked, report(crawl.marked)
    assert ours <= crawl.ours, "what is theirs is there"
    assert [url for url, status in crawl.seen.items() if status >= 500] == []
    opened = {crawl.names[url] for url, status in crawl.seen.items() if status == 200}
    assert {
        "index", "records", "record", "timeline", "people", "access_matrix", "access_explain",
        "clients_grant_changelist", "clients_grant_change", "clients_grant_add", "clients_accessrequest_changelist",
        "clients_accessrequest_change", "audit_subject_changelist", "exports", "reasons", "notifications",
        "clients_client_change", "tools_tool_change",
    } <= opened  # fmt: skip
    assert len(crawl.seen) < MOST, "the crawl ended by itself"


def report(marked: dict[str, list[str]]) -> str:
    """Where there were marks."""
    return "\n".join(f"{url}: {', '.join(marks)[:100]}" for url, marks in marked.items())


SEEN_BY_ALL = {
    "records", "record", "timeline", "clients_grant_changelist", "clients_grant_change",
    "clients_accessrequest_changelist", "clients_accessrequest_change", "exports", "export", "export_run",
}  # fmt: skip


def test_the_same_pages_are_full_of_it_for_who_is_not_confined(scene: Scene) -> None:
    """Else finding nothing would say nothing."""
    http = signed_in(account("free-auditor", "Auditor"))
    wanted = [path for path, name in paths(arguments(scene, GLOBEX)).items() if name in SEEN_BY_ALL]
    crawl = Crawl(scene, http).run([*wanted, *asked(scene), "/admin/records/?window=30d"], follow=False)
    assert {crawl.names[url] for url in crawl.marked} >= SEEN_BY_ALL


def every_role(scene: Scene, follow: bool) -> None:
    """Each role by itself is led elsewhere here and there: to asking, say, where another grants."""
    known = paths(arguments(scene, GLOBEX))
    for role in ROLES:
        http = signed_in(confined(f"{role} {follow}".lower().replace(" ", "-"), role))
        start = [
            "/admin/",
            "/admin/access/ask/",
            *[path for path, name in known.items() if follow or name in SEEN_BY_ALL],
        ]
        start += asked(scene) if follow else []
        crawl = Crawl(scene, http, 4 * OF_A_PAGE).run(start, follow)
        assert not crawl.marked, f"{role}: {report(crawl.marked)}"
        assert [url for url, status in crawl.seen.items() if status >= 500] == []


def test_no_role_alone_is_shown_it(scene: Scene) -> None:
    every_role(scene, follow=False)


@pytest.mark.soak
def test_no_role_alone_finds_it_by_any_link(scene: Scene) -> None:
    every_role(scene, follow=True)


def test_what_is_of_another_tenant_is_answered_like_what_is_not_there(scene: Scene) -> None:
    http = signed_in(confined("prober", *ROLES))
    there, nowhere = (paths(arguments(scene, GLOBEX, missing)) for missing in (False, True))
    pairs = [pair for pair in zip(there, nowhere, strict=True) if pair[0] != pair[1]]
    assert [pair for pair in pairs if not alike(http, *pair, scene)] == []
    assert len(pairs) > 40


def alike(http: HttpClient, one: str, other: str, scene: Scene) -> bool:
    """Whether two addresses are answered alike. One of two pages may tell of a moment, or of the log, later."""
    return any(plain(http, one, scene) == plain(http, other, scene) for _ in range(3))


def plain(http: HttpClient, path: str, scene: Scene) -> tuple[int, str]:
    """What an address is answered, but for what it repeats of the path, and for tokens of forms."""
    response = http.get(path)
    text = GONE.sub("", re.sub(r'value="[A-Za-z0-9]{64}"', "", texts(response)))
    for name in (scene.uids["gwen"], NOBODY, scene.records[GLOBEX][0], NO_RECORD):
        text = text.replace(name, "").replace(short_uid(name), "")
    return response.status_code, re.sub(r"\d+", "", text)


def test_the_api_tells_a_confined_owner_nothing_of_it(scene: Scene) -> None:
    http = HttpClient()
    keys = {
        who: staff_keys.issue(owner, "command:staff_key", "")[1]
        for who, owner in (("confined", confined("tool", *ROLES)), ("free", account("free-tool", "Auditor")))
    }
    lines = [
        "/v1/records?window=30d&type=decision", f"/v1/records?window=30d&tenant={GLOBEX}",
        "/v1/records?window=30d&type=policy",
        f"/v1/records?window=30d&subject={scene.uids['gwen']}", f"/v1/records?window=30d&trace_id=trace-{GLOBEX}",
        *(f"/v1/records/{record}" for record in scene.records[GLOBEX][:3]),
    ]  # fmt: skip
    for line in lines:
        texted = {who: texts(http.get(line, headers={"Authorization": f"Bearer {key}"})) for who, key in keys.items()}
        assert not [mark for mark in scene.found(texted["confined"]) if mark not in line], line
        assert "policy" in line or scene.found(texted["free"]), line
    gone = [
        http.get(f"/v1/records/{record}", headers={"Authorization": f"Bearer {keys['confined']}"})
        for record in (scene.records[GLOBEX][0], NO_RECORD)
    ]
    assert [one.status_code for one in gone] == [404, 404] and gone[0].content == gone[1].content


def test_what_a_change_would_do_is_counted_over_calls_of_their_tenants(scene: Scene) -> None:
    """Of a block for everybody, which they could not make, too."""
    client, scopes = Client.objects.get(slug="claude"), tuple(Scope.objects.all())
    wanted = Proposal("grant", "deny", client, scopes)
    told = {}
    for name, user in (("theirs", confined("weigher", *ROLES)), ("all", account("free-weigher", "Auditor"))):
        told[name] = impact.of(wanted, viewer_of(user)).replay
    theirs, every = told["theirs"], told["all"]
    assert theirs is not None and every is not None and theirs.read == 4 < every.read
    assert {str(one) for turn in theirs.turns for one, _ in turn.examples} <= set(scene.records[ACME])
    assert {uid for turn in theirs.turns for uid in turn.users} <= {scene.uids["alice"], scene.uids["sam"]}
    assert scene.uids["gwen"] in {uid for turn in every.turns for uid in turn.users}


# --- changing --------------------------------------------------------------------------------------------------

CHANGING = {
    "reason": "x",
    "answer": "x",
    "decision": "reject",
    "ends": "30",
    "name": "x",
    "_save": "Save",
    "post": "yes",
}
OWN = {"password_change", "logout", "notifications", "sign_in_again", "records_save"}
LOOKING = {"timeline"}  # which takes a POST for a look


def test_nothing_of_it_can_be_changed(scene: Scene) -> None:
    http = signed_in(confined("changer", *ROLES))
    http.raise_request_exception = False
    there, nowhere = (paths(arguments(scene, GLOBEX, missing)) for missing in (False, True))
    theirs = {path for path in there if path not in nowhere}
    shared = tuple(home(model) for model in admin.site._registry)  # whose pages every role is tried on elsewhere
    before, wrong = contents(), []
    for path, name in there.items():
        if name in OWN or (path.startswith(shared) and path not in theirs):
            continue
        answer = http.post(path, CHANGING)
        status = answer.status_code
        if marks := [mark for mark in scene.found(GONE.sub("", texts(answer))) if mark not in path]:
            wrong.append((path, marks))
        if status >= 500 or (status == 200 and name not in LOOKING and path in theirs):
            wrong.append((path, status))
    after = contents()
    assert not wrong, "\n".join(map(str, wrong))
    assert [table for table in before if before[table] != after[table] and not table.startswith(PASSING)] == []


def test_who_is_looked_for_in_another_tenant_is_found_by_nothing(scene: Scene) -> None:
    http, free = signed_in(confined("finder", *ROLES)), signed_in(account("free-finder", "Privacy officer"))
    for known, unknown in (
        (f"gwen@{GLOBEX}.example", "nobody@nowhere.example"), ("gwen", "nobody"), (scene.uids["gwen"], NOBODY),
    ):  # fmt: skip
        assert looked_for(free, known, scene)[0] == 302, "who is not confined is led to her"
        assert looked_for(http, known, scene) == looked_for(http, unknown, scene)
    for kind in ("request", "trace", "session"):
        led = http.post("/admin/records/find/?window=30d", {"kind": f"{kind}_id", "value": f"{kind}-{GLOBEX}"})
        there = texts(http.get(led["Location"])) if led.status_code == 302 else texts(led)
        assert not scene.found(there.replace(f"{kind}-{GLOBEX}", ""))


def looked_for(http: HttpClient, term: str, scene: Scene) -> tuple[int, str]:
    """What a look-up of a person is answered, but for what was typed."""
    answer = http.post("/admin/people/", {"person": term})
    text = re.sub(r'value="[A-Za-z0-9]{64}"', "", texts(answer)).replace(term, "")
    return answer.status_code, re.sub(r"[0-9]+", "", text)


def test_the_file_of_a_search_has_their_own_records_alone(scene: Scene) -> None:
    text = texts(signed_in(confined("filer", *ROLES)).post("/admin/records/csv/?window=30d"))
    assert not scene.found(text) and scene.records[ACME][0] in text
    free = texts(signed_in(account("free-filer", "Auditor")).post("/admin/records/csv/?window=30d"))
    assert scene.found(free)
