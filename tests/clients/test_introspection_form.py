"""An issuer is set to introspection on its page: the secret goes in and never out, and a backend has one to ask."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client as HttpClient

from audit.protection import KeyRing, reveal
from clients.introspected import desk
from clients.models import AcceptedIssuer, Introspection, Issuer
from tests.clients.introspecting import Server, active, introspecting, register
from tests.staff import administrator, member, newest
from tests.world import ISSUER, World, build
from tools.models import Backend

SECRET = "h7 &<s3cret>"
ADD = "/admin/clients/issuer/add/"


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


@pytest.fixture
def server() -> Iterator[Server]:
    desk.clear()
    with introspecting(t=active()) as found:
        yield found
    desk.clear()


def page(issuer: Issuer | None = None) -> str:
    issuer = issuer or Issuer.objects.get(issuer=ISSUER)
    return f"/admin/clients/issuer/{issuer.pk}/change/"


def held(http: HttpClient, at: str) -> dict[str, Any]:
    """What the form at an address holds, as a browser would send it."""
    context = http.get(at).context
    data: dict[str, Any] = {"change_reason": "opaque tokens"}
    fields = list(context["adminform"].form)
    for wrapped in context["inline_admin_formsets"]:
        fields += [*wrapped.formset.management_form, *(bound for one in wrapped.formset.forms for bound in one)]
    for bound in fields:
        value = bound.field.prepare_value(bound.value())
        if value is not None and value is not False and not bound.html_name.endswith("new_secret"):
            data.setdefault(bound.html_name, value)
    return data


def send(http: HttpClient, at: str, **changes: Any) -> Any:
    """The form, sent with changes; `i_...` is of the introspection."""
    data = held(http, at) | {name.replace("i_", "introspection-0-", 1): value for name, value in changes.items()}
    return http.post(at, {name: value for name, value in data.items() if value is not None})


def setting(http: HttpClient, at: str | None = None, **changes: Any) -> Any:
    usual = {"i_endpoint": "https://id.example/ask", "i_client_id": "muniment", "i_new_secret": SECRET}
    return send(http, at or page(), **usual | changes)


def opened() -> str:
    row = Introspection.objects.get()
    holder = f"introspection:{row.issuer_id}"
    return reveal(KeyRing().get(holder), bytes(row.secret or b""), holder.encode()).decode()


def test_an_issuer_is_set_to_introspection_and_its_tokens_are_asked_about(
    world: World, http: HttpClient, server: Server
) -> None:
    assert world.verify(token="t")["reason"] == "token_malformed"
    server.tokens["t"] = active(iss=ISSUER)
    assert setting(http, i_endpoint=f"{server.url}/ask").status_code == 302
    assert opened() == SECRET
    assert world.verify(token="t")["reason"] == "granted"
    [change] = newest("policy")["changes"]
    assert change["table"] == "clients_introspection" and change["new"]["secret_set_at"]
    assert "secret" not in change["new"] and SECRET not in str(change)
    text = http.get(page()).content.decode()
    assert "Answered" in text and SECRET not in text and "h7 &amp;" not in text and 'type="password"' in text


def test_a_new_issuer_has_its_secret_from_the_start(world: World, http: HttpClient) -> None:
    assert setting(http, ADD, issuer="https://new.example/").status_code == 302
    assert opened() == SECRET and Introspection.objects.get().issuer.issuer == "https://new.example/"


def test_a_secret_stays_until_another_is_typed(world: World, http: HttpClient) -> None:
    setting(http)
    at = Introspection.objects.get().secret_set_at
    assert send(http, page(), i_cache_seconds=5).status_code == 302
    row = Introspection.objects.get()
    assert (row.cache_seconds, row.secret_set_at, opened()) == (5, at, SECRET)
    assert send(http, page(), i_new_secret=" other ").status_code == 302
    assert opened() == " other " and Introspection.objects.get().secret_set_at != at


def test_a_secret_is_not_sent_elsewhere_by_who_does_not_know_it(world: World, http: HttpClient) -> None:
    setting(http)
    elsewhere = {"i_endpoint": "https://evil.example/ask"}
    for change in (elsewhere, {"i_client_id": "another"}):
        response = send(http, page(), **change)
        assert response.status_code == 200 and "Type it again" in response.content.decode()
    assert Introspection.objects.get().endpoint == "https://id.example/ask"
    assert send(http, page(), i_new_secret=SECRET, **elsewhere).status_code == 302


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"new_secret": ""}, "has to know who asks"), ({"new_secret": "a\nb"}, "can be printed"),
    ({"new_secret": "a\x00b"}, "Null characters"), ({"new_secret": "x" * 1001}, "at most 1000"),
    ({"endpoint": "ftp://id.example/"}, "https URL"), ({"endpoint": "https://me:pw@id.example/"}, "user name"),
    ({"endpoint": "https://id.example/#x"}, "fragment"), ({"endpoint": ""}, "required"),
    ({"client_id": ""}, "required"),
    ({"cache_seconds": 601}, "less than or equal"),
    ({"method": "none"}, "valid choice"),
]  # fmt: skip


def test_what_is_wrong_is_a_field_error_and_quotes_no_secret(world: World, http: HttpClient) -> None:
    usual = {"endpoint": "https://id.example/ask", "client_id": "muniment", "new_secret": SECRET}
    sent = held(http, page())
    for wrong, words in WRONG:
        response = http.post(
            page(), sent | {f"introspection-0-{name}": value for name, value in (usual | wrong).items()}
        )
        text = response.content.decode()
        assert response.status_code == 200 and words in text and "h7 &amp;" not in text, wrong
    assert not Introspection.objects.exists()


def test_plain_http_is_refused_in_production(world: World, http: HttpClient, settings: Any) -> None:
    settings.MUNIMENT_DEMO = False
    response = setting(http, i_endpoint="http://127.0.0.1/ask")
    assert response.status_code == 200 and "https URL" in response.content.decode()


def test_it_is_taken_away_with_a_tick(world: World, http: HttpClient) -> None:
    setting(http)
    assert send(http, page(), **{"introspection-0-DELETE": "on"}).status_code == 302
    assert not Introspection.objects.exists() and world.verify(token="t")["reason"] == "token_malformed"


def test_who_may_only_look_sees_how_it_is_asked_and_cannot_change_it(world: World, http: HttpClient) -> None:
    setting(http)
    Introspection.objects.update(error="the server answered 401", failed_at=Introspection.objects.get().secret_set_at)
    viewer = member("vera", "clients.view_issuer")
    text = viewer.get(page()).content.decode()
    assert "Claim mapping" not in text and "Binding of tokens" not in text, "no form where nothing is, and none to fill"
    assert not re.search(r'<(input|select|textarea)[^>]* name="introspection-0-(?!id|issuer)', text)
    assert (
        "https://id.example/ask" in text
        and "the server answered 401" in text
        and "&lt;" not in text
        and 'type="password"' not in text
    )
    assert "Does not answer" in viewer.get("/admin/clients/issuer/").content.decode()
    assert viewer.post(page(), held(http, page()) | {"introspection-0-client_id": "x"}).status_code == 403


class TestOneToAsk:
    def test_a_second_issuer_is_refused_in_words_that_name_the_backend(self, world: World, http: HttpClient) -> None:
        setting(http)
        for at, name in ((ADD, "https://new.example/"), (page(Issuer.objects.create(issuer="https://b/")), None)):
            response = setting(http, at, **({"issuer": name} if name else {}))
            text = response.content.decode()
            assert response.status_code == 200 and "The backend inner would accept" in text
        assert Introspection.objects.count() == 1

    def test_it_may_be_where_no_backend_accepts_both(self, world: World, http: HttpClient) -> None:
        setting(http)
        Backend.objects.update(accepts_every_issuer=False)
        AcceptedIssuer.objects.create(backend=world.backend, issuer=Issuer.objects.get())
        assert setting(http, ADD, issuer="https://new.example/").status_code == 302

    def test_a_disabled_one_may_be_set_and_not_be_enabled(self, world: World, http: HttpClient, server: Server) -> None:
        setting(http)
        second = register(server, issuer={"enabled": False})
        response = http.post(f"/admin/clients/issuer/{second.pk}/act/enable/", {"reason": "x"})
        assert response.status_code == 200 and "The backend inner would accept" in response.content.decode()
        second.refresh_from_db()
        assert not second.enabled
        Introspection.objects.exclude(issuer=second).delete()
        assert http.post(f"/admin/clients/issuer/{second.pk}/act/enable/", {"reason": "x"}).status_code == 302

    def test_a_backend_cannot_come_to_accept_both(self, world: World, http: HttpClient, server: Server) -> None:
        Backend.objects.update(accepts_every_issuer=False)
        first = Issuer.objects.get()
        AcceptedIssuer.objects.create(backend=world.backend, issuer=first)
        setting(http)
        second = register(server)
        at = f"/admin/tools/backend/{world.backend.pk}/change/"
        for changes in ({"accepts_every_issuer": "on"}, {"accepted_issuers-1-issuer": second.pk}):
            response = send(http, at, **changes)
            assert response.status_code == 200 and "The backend inner would accept" in response.content.decode()
        assert send(http, at, name="Inner 2").status_code == 302

    def test_a_disabled_backend_that_accepts_both_is_not_enabled(
        self, world: World, http: HttpClient, server: Server
    ) -> None:
        Backend.objects.update(enabled=False)
        setting(http)
        register(server)
        response = http.post(f"/admin/tools/backend/{world.backend.pk}/act/enable/", {"reason": "x"})
        assert response.status_code == 200 and "The backend inner would accept" in response.content.decode()
        assert not Backend.objects.get().enabled
