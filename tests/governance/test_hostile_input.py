"""Every page and every form of the admin, and every GET of the API, with what no honest browser sends: nothing fails.

A page's own forms are read from its HTML; their fields get something hostile one at a time, with the rest as the page
offered it, and all at once. How many hostile values each field gets is bounded here; with `soak` it is every one."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest
from django.contrib.auth.models import User

from clients import requests, reviews
from clients.models import Client
from clients.proposals import Proposal
from governance import staff_keys
from tests.governance.walking import addresses, called
from tests.staff import administrator
from tests.world import World
from tools.models import Scope

pytestmark = pytest.mark.timeout(900)
HOSTILE = [
    "a\x00b", "\ud800", "x" * 10_000, "\u202egnp.exe", "<script>alert(1)</script>", "=HYPERLINK(\"//x\")", str(10**400),
    "-1", "9223372036854775808", "'; DROP TABLE x; --", "%00%ff", "../../etc/passwd", "null", "[]", "{}", "١٢", "²",
    "NaN", "1e999", "0001-01-01T00:00:00", "9999-12-31T23:59:59+14:00", "usr_" + "a" * 36,
    "018f0000-0000-7000-8000-00000000000g",
    "//evil.example/", "\t\r\n", "alice@example.com", "{{ 7 }}", "\U0010ffff", "on", "",
]  # fmt: skip
# What pages take in their URLs, besides what their forms show.
QUERY = [
    "q", "o", "p", "e", "all", "_popup", "_to_field", "_facets", "next", "window", "since", "until", "before",
    "after", "sort", "page", "columns", "client", "tool", "subject", "role", "tenant", "mode", "backend", "only",
    "scope", "scopes", "effect", "extends", "kind", "what", "type", "decision", "reason", "flagged", "show", "state",
    "status__exact", "groups__id__exact", "request_key", "resource_key", "token", "handed", "cursor", "limit", "from",
    "to", "again", "code", "iss", "error",
]  # fmt: skip
API = ("/v1/records", "/v1/records/018f0000-0000-7000-8000-000000000000", "/v1/log/proof/inclusion",
       "/v1/log/proof/consistency", "/v1/log/checkpoint", "/v1/log/tile/0/000", "/v1/keys", "/v1/schema", "/reference",
       "/admin/", "/admin/login/")  # fmt: skip
# Addresses with a part that is a name or a number.
PARTS = ("audit/subject/{}/change/", "clients/grant/{}/act/extend/", "clients/grant/1/act/{}/", "people/{}/report/",
         "timeline/user/{}/", "timeline/{}/x/", "timeline/tool/{}/", "records/{}/", "inbox/{}/attach/", "inbox/1/{}/",
         "clients/accessrequest/{}/change/", "clients/review/{}/change/", "tools/tool/{}/decide/",
         "auth/user/{}/change/", "r/{}/{}/", "records/saved/{}/delete/", "{}/")  # fmt: skip
FURTHER_ROW = re.compile(r"-([1-9]\d*|__prefix__)-")
# Asks an issuer for its keys over the network; its form has no field.
LEFT_OUT = "act/refresh/"


@dataclass
class Form:
    """A form of a page: where it goes, and what it would send."""

    path: str
    method: str
    fields: dict[str, list[str]] = field(default_factory=dict)


class Forms(HTMLParser):
    """The forms of a page."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path, self.found, self.select = path, list[Form](), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        name = given.get("name", "")
        if tag == "form":
            action = urlsplit(given.get("action", "")).path or self.path
            self.found.append(Form(action, given.get("method", "get").lower()))
        elif self.found and name and name != "csrfmiddlewaretoken" and tag in ("input", "textarea", "select", "button"):
            kept = self.found[-1].fields.setdefault(name, [])
            self.select = name if tag == "select" else self.select
            if tag == "input" and (given.get("type") not in ("checkbox", "radio") or "checked" in given):
                kept.append(given.get("value", ""))
        elif self.found and tag == "option" and "selected" in given and self.select:
            self.found[-1].fields[self.select] = [given.get("value", "")]


@pytest.fixture
def world(db: None) -> World:
    """With one of most things, so that there is a form for each."""
    made = called()
    other = User.objects.create_superuser("otto", "", "correct horse battery")
    wish = Proposal("grant", "allow", Client.objects.get(), (Scope.objects.get(name="memory:write"),), days=30)
    requests.ask(other, wish, "pilot")
    reviews.start(client=Client.objects.get(), scope=None, user=other, reason="yearly")
    return made


def paths() -> list[str]:
    """Every address of the admin once, for each action too."""
    return [address.path for address in addresses() if not address.path.endswith(LEFT_OUT)]


def sent(given: dict[str, Any]) -> str:
    """As a query string, in which a half of a character is the bytes that a careless sender makes of it."""
    return urlencode(given, doseq=True, errors="surrogatepass")


class Attack:
    """One browser, and what failed."""

    def __init__(self) -> None:
        self.http, self.failed = administrator(), list[str]()
        self.user = User.objects.get(username="mara")

    def send(self, method: str, path: str, given: dict[str, Any]) -> Any:
        """Send it, whatever was done to the session before; what fails is noted."""
        try:
            if method == "get":
                answer = self.http.get(f"{path}?{sent(given)}")
            else:
                answer = self.http.post(path, sent(given), content_type="application/x-www-form-urlencoded")
        except Exception as error:
            self._note(method, path, given, repr(error)[:300])
            return None
        if answer.status_code >= 500:
            self._note(method, path, given, str(answer.status_code))
        if answer.status_code in (301, 302):
            goal = answer["Location"]
            if urlsplit(goal).netloc or goal.startswith(("//", "\\")):
                self._note(method, path, given, f"leads to {goal}")
        return answer

    def again(self) -> None:
        """Signed in anew, as who may do everything."""
        User.objects.filter(pk=self.user.pk).update(is_active=True, is_superuser=True, is_staff=True)
        self.http.force_login(User.objects.get(pk=self.user.pk))

    def _note(self, method: str, path: str, given: dict[str, Any], words: str) -> None:
        odd = {name: str(value)[:40] for name, value in given.items()}
        self.failed.append(f"{method} {path} {ascii(odd)[:200]}: {words}")

    def forms(self, path: str) -> list[Form]:
        """The forms of the page at a path."""
        self.again()
        answer = self.send("get", path, {})
        if answer is None or answer.status_code != 200 or "html" not in answer.get("Content-Type", ""):
            return []
        parser = Forms(path)
        parser.feed(answer.content.decode())
        return [one for one in parser.found if one.path.startswith("/admin/") and "logout" not in one.path]


def chosen(number: int, each: int | None) -> list[str]:
    """Some of the hostile values, others for each number, so that together all are tried; all of them where `each` is
    None."""
    return HOSTILE if each is None else [HOSTILE[(number * each + n) % len(HOSTILE)] for n in range(each)]


def bodies(form: Form, counter: Iterator[int], each: int | None) -> Iterator[dict[str, Any]]:
    """What to send: each field hostile alone, then several times, and all at once. Unless `each` is None, three fields
    are hostile together, in turn one of them several times, and of rows that are alike the first is."""
    names = [name for name in form.fields if each is None or not FURTHER_ROW.search(name)]
    if each is None:
        for name in names:
            yield from (form.fields | {name: [value]} for value in HOSTILE)
            yield form.fields | {name: ["1", "\x00", "1"]}
    for start in range(0, len(names) if each else 0, 3):
        together = {name: chosen(next(counter), each) for name in names[start : start + 3]}
        yield form.fields | together | ({names[start]: ["1", "\x00", "1"]} if start % 2 else {})
    for value in chosen(next(counter), each):
        yield {name: [value] for name in form.fields} | {"reason": ["x"], "change_reason": ["x"], "step": ["confirm"]}


def attack_forms(each: int | None) -> list[str]:
    attack, counter, seen = Attack(), itertools.count(), set[tuple[Any, ...]]()
    for path in paths():
        for form in attack.forms(path):
            key = (form.path, form.method, *sorted(form.fields))
            if key in seen:
                continue
            seen.add(key)
            attack.again()
            for body in bodies(form, counter, each):
                attack.send(form.method, form.path, body)
    assert len(seen) > 60, "the forms of the pages are found"
    return attack.failed


def attack_urls(each: int | None) -> list[str]:
    attack, counter = Attack(), itertools.count()
    key = staff_keys.issue(attack.user, "staff:1", "x")[1]
    for path in [*paths(), *API]:
        attack.again()
        if path.startswith("/v1/"):
            attack.http.defaults["HTTP_AUTHORIZATION"] = f"Bearer {key}"
        for value in chosen(next(counter), each):
            attack.send("get", path, dict.fromkeys(QUERY, value))
        for value in chosen(next(counter), each):
            name = QUERY[next(counter) % len(QUERY)]
            attack.send("get", path, {name: [value, "1"]})
    return attack.failed


def attack_lists(each: int | None, values: Sequence[str] = HOSTILE) -> list[str]:
    """One parameter at a time, another part of them with each value, and each with some; with `each` None, all."""
    attack = Attack()
    for value in values:
        names = QUERY if each is None else QUERY[HOSTILE.index(value) :: len(HOSTILE)]
        lists = ("/admin/records/", "/admin/access/matrix/", "/admin/access/explain/", "/admin/access/ask/",
                 "/admin/clients/grant/", "/admin/tools/tool/", "/admin/auth/user/", "/admin/inbox/",
                 "/admin/timeline/client/claude/")  # fmt: skip
        for turn, path in enumerate(lists, HOSTILE.index(value)):
            for name in names if each is None else names[turn % 2 :: 2]:
                attack.send("get", path, {name: value})
    return attack.failed


def attack_parts(each: int | None, values: Sequence[str] = HOSTILE) -> list[str]:
    """In the place of a name or number, by GET or by POST in turn; with `each` None, by both."""
    attack = Attack()
    for number, value in enumerate(v for v in values if "/" not in v and v):
        part = quote(value, errors="surrogatepass")
        for turn, path in enumerate(PARTS, number):
            for method in ("get", "post") if each is None else (("get", "post")[turn % 2],):
                attack.again()
                attack.send(method, f"/admin/{path.replace('{}', part)}", {})
    return attack.failed


def test_no_form_fails_whatever_is_sent(world: World) -> None:
    failed = attack_forms(1)
    assert not failed, "\n".join(failed)


def test_no_address_fails_whatever_its_query(world: World) -> None:
    failed = attack_urls(1)
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("attacked", [attack_lists, attack_parts])
def test_no_list_and_no_path_fails_by_one_value(world: World, attacked: Any, part: int) -> None:
    failed = attacked(1, HOSTILE[part::3])
    assert not failed, "\n".join(failed)


@pytest.mark.soak
@pytest.mark.parametrize("attacked", [attack_forms, attack_urls, attack_lists, attack_parts])
def test_no_hostile_value_at_all(world: World, attacked: Any) -> None:
    failed = attacked(None)
    assert not failed, "\n".join(failed)
