"""Granting and asking in the admin as a browser without script does it: the form, the preview, the confirmation."""

from html.parser import HTMLParser
from typing import Any

from django.test import Client as HttpClient

from clients.models import Client
from tools.models import Scope

ADD, ASK = "/admin/clients/grant/add/", "/admin/access/ask/"


class _Hidden(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        name = given.get("name")
        if tag == "input" and given.get("type") == "hidden" and name and name != "csrfmiddlewaretoken":
            self.fields.setdefault(name, []).append(given.get("value") or "")


def hidden_in(text: str) -> dict[str, list[str]]:
    """The hidden fields of the forms of a page, from its text."""
    parser = _Hidden()
    parser.feed(text)
    return parser.fields


def hidden(page: Any) -> dict[str, list[str]]:
    """The same of a response."""
    return hidden_in(page.content.decode())


def given(*scopes: str, client: str | None = "claude", **other: Any) -> dict[str, Any]:
    """What the form says: these scopes for 90 days."""
    return {
        "client": Client.objects.get(slug=client).pk if client else "", "effect": "allow", "ends": "90",
        "scopes": [Scope.objects.get(name=name).pk for name in scopes], "reason": "pilot with 40 users",
    } | other  # fmt: skip


def preview(http: HttpClient, data: dict[str, Any], url: str = ADD) -> Any:
    """Step one: nothing is saved by it."""
    return http.post(url, data | {"step": "preview"})


def confirm(http: HttpClient, page: Any, url: str = ADD, **other: Any) -> Any:
    """Step two, from what the preview's form holds."""
    return http.post(url, hidden(page) | {"step": "confirm"} | other)


def grant(http: HttpClient, data: dict[str, Any], url: str = ADD, **other: Any) -> Any:
    """Both steps."""
    page = preview(http, data, url)
    assert page.status_code == 200, page.status_code
    return confirm(http, page, url, **other)


def ask(http: HttpClient, data: dict[str, Any], **other: Any) -> Any:
    """Both steps of asking."""
    return grant(http, data, ASK, **other)
