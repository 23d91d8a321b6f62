"""Issuers, clients and backends in the admin: attributed changes, form errors instead of failures, kill switches."""

from typing import Any

import pytest
from django.db import IntegrityError
from django.test import Client as HttpClient

from clients import keysets
from clients.models import Client, Issuer, KeySet
from tests.staff import administrator, newest
from tests.world import ISSUER, World, build
from tools.models import Backend


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


def inline(prefix: str, *rows: dict[str, Any]) -> dict[str, Any]:
    """An inline formset's rows as the browser sends them."""
    data: dict[str, Any] = {f"{prefix}-TOTAL_FORMS": len(rows), f"{prefix}-INITIAL_FORMS": 0}
    for number, row in enumerate(rows):
        data |= {f"{prefix}-{number}-{name}": value for name, value in row.items()}
    return data


def new_client(issuer: Issuer, *ids: str, **other: Any) -> dict[str, Any]:
    rows = [{"issuer": issuer.pk, "oauth_id": one} for one in ids]
    return (
        {"slug": "ios", "name": "Inner for iOS", "kind": "mobile", "change_reason": "launch"}
        | other
        | inline("oauth_client_ids", *rows)
    )


def test_a_client_with_its_ids_is_one_version_of_the_policy_and_the_viewers(world: World, http: HttpClient) -> None:
    assert http.post("/admin/clients/client/add/", new_client(Issuer.objects.get(), "ios-app")).status_code == 302
    told = newest("policy")
    assert told["actor"] == "staff:1"
    assert [change["table"] for change in told["changes"]] == ["clients_client", "clients_oauthclientid"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"slug": "claude"}, "already exists"), ({"slug": "No Slug"}, "Lower-case letters"),
        ({"kind": "toaster"}, "valid choice"),
        ({"change_reason": ""}, "required"), ({"name": "a\x00b"}, "Null characters"), ({"name": ""}, "required"),
    ],
)  # fmt: skip
def test_a_wrong_client_is_a_form_error(world: World, http: HttpClient, other: dict[str, Any], words: str) -> None:
    response = http.post("/admin/clients/client/add/", new_client(Issuer.objects.get(), "ios-app", **other))
    assert response.status_code == 200 and words in response.content.decode()
    assert Client.objects.count() == 1


def test_an_oauth_id_that_is_taken_or_given_twice_is_a_form_error(world: World, http: HttpClient) -> None:
    issuer = Issuer.objects.get()
    for ids in (["claude-app"], ["twice", "twice"]):
        response = http.post("/admin/clients/client/add/", new_client(issuer, *ids))
        assert response.status_code == 200, ids
    assert Client.objects.count() == 1


def test_rows_that_a_sender_claims_by_the_thousand_are_not_made(world: World, http: HttpClient) -> None:
    ids = [f"app-{number}" for number in range(100)]
    http.post("/admin/clients/client/add/", new_client(Issuer.objects.get(), *ids))
    made = Client.objects.get(slug="ios")
    assert made.oauth_client_ids.count() == 100
    claimed = new_client(Issuer.objects.get()) | {"oauth_client_ids-TOTAL_FORMS": 10**9}
    for path, most in (("add", 100), (f"{made.pk}/change", 200)):
        page = http.post(f"/admin/clients/client/{path}/", claimed | {"slug": "new"}).content.decode()
        assert f"submit at most {most} forms" in page
        assert f"oauth_client_ids-{most - 1}-oauth_id" in page and f"oauth_client_ids-{most}-oauth_id" not in page
    assert Client.objects.count() == 2


def test_what_the_database_refuses_at_the_last_moment_is_a_form_error(
    world: World, http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_race(*_: Any, **__: Any) -> None:
        raise IntegrityError("duplicate key value violates something: (secret)=(value)")

    monkeypatch.setattr(Client, "save", lose_the_race)
    response = http.post("/admin/clients/client/add/", new_client(Issuer.objects.get(), "ios-app"))
    text = response.content.decode()
    assert response.status_code == 200 and "contradicts what is stored" in text and "secret" not in text


def test_a_suspended_client_is_refused_at_the_next_call(world: World, http: HttpClient) -> None:
    base = f"/admin/clients/client/{world.client.pk}/act"
    assert http.post(f"{base}/suspend/", {"reason": "an incident"}).status_code == 302
    assert world.verify()["reason"] == "client_suspended"
    assert http.post(f"{base}/activate/", {"reason": "solved"}).status_code == 302
    assert world.verify()["decision"] == "allow"


def test_a_disabled_issuer_and_backend_are_refused_at_the_next_call(world: World, http: HttpClient) -> None:
    issuer, backend = Issuer.objects.get(), Backend.objects.get()
    assert http.post(f"/admin/clients/issuer/{issuer.pk}/act/disable/", {"reason": "x"}).status_code == 302
    assert world.verify()["reason"] == "issuer_unknown"
    assert http.post(f"/admin/tools/backend/{backend.pk}/act/disable/", {"reason": "x"}).status_code == 302
    assert world.post("/v1/verify", {"token": None, "tool": "t"}).status_code == 401


ISSUER_FORM = {
    "issuer": "https://other.example/", "algorithms": ["ES256"], "leeway": 30, "max_lifetime": 3600,
    "allowed_networks": "10.0.0.0/8\n\n 192.168.1.0/24 ", "change_reason": "second provider",
} | inline("mapping") | inline("introspection") | inline("binding")  # fmt: skip


def test_an_issuer_is_added_with_its_networks(world: World, http: HttpClient) -> None:
    assert http.post("/admin/clients/issuer/add/", ISSUER_FORM).status_code == 302
    made = Issuer.objects.get(issuer="https://other.example/")
    assert made.allowed_networks == ["10.0.0.0/8", "192.168.1.0/24"] and made.algorithms == ["ES256"]
    assert (made.jwks_uri, made.tenant_claim) == (None, None)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"allowed_networks": "10.0.0.1/8"}, "not a network"), ({"allowed_networks": "everywhere"}, "not a network"),
        ({"algorithms": ["none"]}, "valid choice"), ({"algorithms": []}, "required"),
        ({"leeway": 301}, "less than or equal"),
        ({"max_lifetime": 2**40}, "less than or equal"), ({"issuer": ISSUER}, "already exists"),
        ({"jwks_uri": "file:///etc/passwd"}, "valid URL"),
    ],
)  # fmt: skip
def test_a_wrong_issuer_is_a_form_error(world: World, http: HttpClient, other: dict[str, Any], words: str) -> None:
    response = http.post("/admin/clients/issuer/add/", ISSUER_FORM | other)
    assert response.status_code == 200 and words in response.content.decode()
    assert Issuer.objects.count() == 1


def test_a_backend_lists_the_issuers_that_it_accepts(world: World, http: HttpClient) -> None:
    data = {
        "slug": "other", "name": "Other", "audiences": "https://other.example/mcp\nhttps://other.example/v2",
        "assertion_audiences": "", "change_reason": "launch",
    } | inline("accepted_issuers", {"issuer": Issuer.objects.get().pk}) | inline("routes")  # fmt: skip
    assert http.post("/admin/tools/backend/add/", data).status_code == 302
    made = Backend.objects.get(slug="other")
    assert made.audiences == ["https://other.example/mcp", "https://other.example/v2"]
    assert made.accepted_issuers.count() == 1 and not made.accepts_every_issuer


def test_keys_are_refreshed_by_post_alone(world: World, http: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []

    def refresh(issuer: int) -> bool:
        fetched.append(issuer)
        return True

    monkeypatch.setattr(keysets, "refresh", refresh)
    url = f"/admin/clients/keyset/{KeySet.objects.get().pk}/act/refresh/"
    assert http.get(url).status_code == 200 and fetched == []
    assert http.post(url).status_code == 302 and fetched == [Issuer.objects.get().pk]
    KeySet.objects.update(error="no answer")
    assert "no answer" in http.post(url).content.decode()
