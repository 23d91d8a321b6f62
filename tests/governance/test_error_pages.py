"""What a browser is told when there is no page, and the headers of every kind of answer."""

from typing import Any
from unittest import mock

import pytest
from django.contrib.auth.models import Group, Permission
from django.db import OperationalError
from django.test import Client as HttpClient
from django.test import override_settings

from governance import home
from governance.headers import DENIED
from governance.roles import AUDITOR
from tests.staff import administrator, member
from tests.world import World, build


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


def text(response: Any) -> str:
    found: str = response.content.decode()
    return found


class TestTheWords:
    def test_what_may_not_be_seen_names_the_roles_that_could(self, world: World) -> None:
        response = member("noor").get("/admin/records/")
        assert response.status_code == 403
        assert "You may not see this" in text(response) and f"<strong>{AUDITOR}</strong>" in text(response)
        response = member("otto", "clients.view_client").get("/admin/clients/client/add/")
        assert response.status_code == 403
        assert "<strong>Access manager</strong>" in text(response) and f"<strong>{AUDITOR}</strong>" not in text(
            response
        )

    def test_a_role_is_named_while_it_has_the_right(self, world: World) -> None:
        role = Group.objects.create(name="Watcher")
        role.permissions.add(Permission.objects.get(codename="view_record"))
        noor = member("noor")
        try:
            assert "<strong>Watcher</strong>" in text(noor.get("/admin/records/"))
            role.permissions.clear()
            assert "Watcher" not in text(noor.get("/admin/records/"))
        finally:
            role.delete()

    def test_nothing_there(self, http: HttpClient) -> None:
        for path in ("/admin/nothing/", "/admin/clients/grant/nothing/act/extend/", "/nothing"):
            response = http.get(path)
            assert response.status_code == 404 and "There is nothing here" in text(response), path
        assert "<nav" in text(http.get("/admin/nothing/"))

    def test_a_stranger_gets_no_navigation(self, world: World) -> None:
        response = HttpClient().get("/nothing")
        assert response.status_code == 404 and "<nav" not in text(response)

    def test_a_failure_shows_no_detail_and_asks_nothing_of_the_database(self, http: HttpClient) -> None:
        http.raise_request_exception = False
        with mock.patch.object(home, "home", side_effect=RuntimeError("secret detail")):
            response = http.get("/admin/")
        assert response.status_code == 500
        assert "Something went wrong here" in text(response)
        assert "secret" not in text(response) and "Traceback" not in text(response)

    def test_a_database_that_is_away_is_said_to_be(self, http: HttpClient) -> None:
        http.raise_request_exception = False
        with mock.patch.object(home, "home", side_effect=OperationalError("no route to 10.0.0.7")):
            response = http.get("/admin/")
        assert response.status_code == 503 and response.headers["Retry-After"] == "5"
        assert "database cannot be reached" in text(response) and "10.0.0.7" not in text(response)

    def test_a_form_that_is_not_our_own_is_refused_in_our_words(self, http: HttpClient) -> None:
        strict = HttpClient(enforce_csrf_checks=True)
        strict.cookies = http.cookies
        response = strict.post("/admin/logout/", {"csrfmiddlewaretoken": "x" * 64})
        assert response.status_code == 403
        assert "Nothing was changed" in text(response) and "CSRF" not in text(response)

    def test_what_cannot_be_read(self, http: HttpClient) -> None:
        with override_settings(DATA_UPLOAD_MAX_NUMBER_FIELDS=2):
            response = http.post("/admin/clients/client/add/", {"a": "1", "b": "2", "c": "3"})
        assert response.status_code == 400 and "That cannot be read" in text(response)

    def test_what_only_takes_a_form_says_so(self, http: HttpClient) -> None:
        response = http.get("/admin/logout/")
        assert response.status_code == 405 and "POST" in response.headers["Allow"]
        assert "This address is not a page" in text(response)
        assert HttpClient().get("/v1/verify").headers["Content-Type"] == "application/problem+json"

    @pytest.mark.parametrize("path", ["/v1/nothing", "/v1/verify/"])
    def test_programs_get_problem_documents_instead(self, world: World, path: str) -> None:
        response = HttpClient().get(path)
        assert response.status_code == 404
        assert response.headers["Content-Type"] == "application/problem+json"


KINDS = {
    "a page": ("/admin/", 200), "home of a stranger": ("/admin/", 302), "a list": ("/admin/clients/grant/", 200),
    "the search": ("/admin/records/", 200), "the reference": ("/reference", 200), "the root": ("/", 302),
    "a missing slash": ("/admin/clients/grant", 301), "not found": ("/admin/nothing/", 404), "outside": ("/x", 404),
    "not allowed": ("/admin/logout/", 405), "the sign-in": ("/admin/login/", 200), "reasons": ("/admin/reasons/", 200),
    "a style sheet": ("/static/governance/look.css", 200), "a script": ("/static/governance/copy.js", 200),
    "a picture": ("/static/governance/mark.svg", 200), "a health check": ("/livez", 200),
}  # fmt: skip


class TestTheHeaders:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_of_answer_has_them(self, world: World, kind: str) -> None:
        path, status = KINDS[kind]
        client = HttpClient() if "stranger" in kind or kind == "the sign-in" else administrator()
        response = client.get(path)
        assert response.status_code == status
        strict(response, kept=path.startswith("/admin/"))

    def test_failures_and_refusals_have_them_too(self, http: HttpClient) -> None:
        http.raise_request_exception = False
        with mock.patch.object(home, "home", side_effect=RuntimeError):
            strict(http.get("/admin/"), kept=True)
        strict(member("noor").get("/admin/records/"), kept=True)
        strict(HttpClient(enforce_csrf_checks=True).post("/admin/login/"), kept=True)
        with override_settings(SECURE_SSL_REDIRECT=True):
            response = HttpClient().get("/admin/")
            assert response.status_code == 301
            strict(response, kept=True)
        response = http.get("/admin/", headers={"Host": "evil.example"})
        assert response.status_code == 400
        strict(response, kept=True)


def strict(response: Any, kept: bool) -> None:
    """No inline script or style, nothing from elsewhere, no power of the browser; what is evidence is not kept."""
    policy = dict(part.strip().partition(" ")[::2] for part in response.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["object-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["form-action"] == "'self'"
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    assert all(f"{power}=()" in response.headers["Permissions-Policy"] for power in DENIED)
    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    if kept:
        assert "no-store" in response.headers["Cache-Control"]
