"""Client ids that are URLs: what is published there is fetched with care, in the background, shown as unverified, and
approved by staff, who approve what they saw and nothing else."""

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.test import Client as HttpClient
from django.utils import timezone

from audit.models import Sighting
from clients import client_documents, metadata, tasks
from clients.client_documents import MAX_DOCUMENT, MAX_LOGO, fetch, logo_type, problem
from clients.fetching import FetchError
from clients.models import Client, ClientMetadata, Issuer, OAuthClientId
from tests.clients.keys import FakeIssuer, fake_issuer
from tests.clients.test_fetching import certificate, serving
from tests.staff import administrator, member, newest
from tests.world import ISSUER, World, build

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
GIF, JPEG, WEBP = b"GIF89a" + bytes(20), b"\xff\xd8\xff\xe0" + bytes(20), b"RIFF\x10\x00\x00\x00WEBPVP8 "
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
Pages = dict[str, bytes]


class Site:
    """A client's host on loopback: its document at /client, its logo at /logo."""

    def __init__(self, server: FakeIssuer) -> None:
        self.server, self.pages = server, Pages()
        self.url = f"{server.url}/client"
        server.answer = self.answer  # type: ignore[method-assign]
        self.say()

    def answer(self, path: str) -> tuple[int, bytes]:
        self.server.hits[path] += 1
        return (self.server.status, self.pages[path]) if path in self.pages else (404, b"{}")

    def say(self, logo: bytes | None = PNG, **changes: Any) -> None:
        """Publish the usual document with changes (None: without that member)."""
        usual = {"client_id": self.url, "client_name": "Claude", "logo_uri": f"{self.server.url}/logo"}
        document = {name: value for name, value in (usual | changes).items() if value is not None}
        self.pages = {"/client": json.dumps(document).encode()} | ({"/logo": logo} if logo is not None else {})


@pytest.fixture(scope="module")
def server() -> Iterator[FakeIssuer]:
    with fake_issuer() as running:
        yield running


@pytest.fixture
def site(server: FakeIssuer) -> Site:
    server.status, server.headers, server.delay, server.drip = 200, {}, 0.0, 0.0
    server.hits.clear()
    return Site(server)


def refusal(site: Site) -> str:
    with pytest.raises(FetchError) as caught:
        fetch(site.url, loopback_http=True)
    return str(caught.value)


# Which ids are URLs of a document


@pytest.mark.parametrize(
    "url",
    ["https://a.example/", "https://a.example/client.json", "https://a.example:8443/c?x=1", "https://a.example/.c"],
)
def test_these_ids_are_urls_of_a_document(url: str) -> None:
    assert problem(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "claude-app", "", "http://a.example/c", "http://127.0.0.1/c", "HTTPS://a.example/c", "https://a.example",
        "https:///c", "https://u@a.example/c", "https://u:p@a.example/c", "https://a.example/c#", "https://a.example/#f",
        "https://a.example/./c", "https://a.example/x/../c", "https://a.example/%2e%2E/c", "https://a.example/x%2F..%2Fc",
        "https://a.example/..", "https://a.example/a b", "https://a.example/\u00e9", "https://a.example/\tc",
        "https://a.example\\@evil.example/", "https://[::1/c", "https://a.example:x/c",
        "https://a.example/" + "c" * 255, "ftp://a.example/c", "javascript://a.example/%0aalert(1)",
    ],
)  # fmt: skip
def test_these_ids_are_none_and_are_not_fetched(url: str) -> None:
    assert problem(url)
    with pytest.raises(FetchError, match="no URL of a document"):
        fetch(url)


# What is taken of a document


def test_name_home_page_and_logo_are_read(site: Site) -> None:
    site.say(client_uri="https://claude.example/", redirect_uris=["https://claude.example/cb"])
    found = fetch(site.url, loopback_http=True)
    assert (found.name, found.uri, found.logo, found.logo_type) == (
        "Claude",
        "https://claude.example/",
        PNG,
        "image/png",
    )
    site.say(client_name=None, logo_uri=None, client_uri="javascript:alert(1)")
    bare = fetch(site.url, loopback_http=True)
    assert (bare.name, bare.uri, bare.logo) == ("", "", None)


@pytest.mark.parametrize("suffix", ["/", "?", "x", "#", " "])
def test_a_document_of_another_client_is_refused(site: Site, suffix: str) -> None:
    site.say(client_id=site.url + suffix)
    assert "of another client" in refusal(site)


def test_a_document_without_its_id_is_refused(site: Site) -> None:
    for value in (None, 5, [site.url], site.url.upper()):
        site.say(client_id=value)
        assert "of another client" in refusal(site)


@pytest.mark.parametrize("name", ["", "  ", 5, ["Claude"], "C" * 121, "Cla\u202eude", "Cla\x00ude", "\ud800", "a\nb"])
def test_a_name_that_cannot_be_shown_is_refused_and_not_quoted(site: Site, name: Any) -> None:
    site.say(client_name=name)
    assert refusal(site) == "client_name is not a printable text of 1 to 120 characters"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (PNG, "image/png"), (GIF, "image/gif"), (JPEG, "image/jpeg"), (WEBP, "image/webp"), (SVG, None), (b"", None),
        (b"<html>", None), (b"RIFF\x10\x00\x00\x00WAVE", None), (b" " + PNG, None), (b"BM" + bytes(20), None),
    ],
)  # fmt: skip
def test_a_logo_is_told_by_its_bytes_whatever_the_server_says(site: Site, content: bytes, kind: str | None) -> None:
    site.server.headers = {"Content-Type": "image/svg+xml" if kind else "image/png"}
    site.say(content)
    found = fetch(site.url, loopback_http=True)
    assert (found.logo_type or None, logo_type(content)) == (kind, kind)
    assert (found.logo is None) == (kind is None) == bool(found.note)


def test_a_logo_of_another_origin_is_not_fetched(site: Site) -> None:
    with fake_issuer() as other:
        for uri in (
            f"{other.url}/logo",
            "https://cdn.example/logo",
            "data:image/png;base64,AA",
            5,
            "https://[::1/",
            "",
        ):
            site.say(logo_uri=uri)
            found = fetch(site.url, loopback_http=True)
            assert found.logo is None and "not on the host" in found.note and not found.logo_unreachable
        assert not other.hits


def test_too_much_too_slow_and_elsewhere_are_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.say(pad="x" * MAX_DOCUMENT)
    assert "more than" in refusal(site) or "too large" in refusal(site)
    site.say(PNG + bytes(MAX_LOGO))
    found = fetch(site.url, loopback_http=True)
    assert found.logo is None and found.logo_unreachable
    site.say()
    site.server.status, site.server.headers = 302, {"Location": f"{site.server.url}/logo"}
    assert "redirects" in refusal(site)
    assert site.server.hits["/logo"] == 1, "only of the logo that was too large"
    site.server.status, site.server.headers = 200, {"Content-Encoding": "gzip"}
    assert "compressed" in refusal(site)
    site.server.headers, site.pages["/client"] = {}, b'{"client_id": 1, "client_id": 2}'
    assert "duplicate" in refusal(site)
    site.say()
    site.server.drip = 0.1
    monkeypatch.setattr(client_documents, "TIMEOUT", 0.3)
    started = time.monotonic()
    assert "in time" in refusal(site)
    assert time.monotonic() - started < 10


def test_an_address_that_is_not_public_is_not_connected_to(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = certificate(tmp_path, x509.IPAddress(ip_address("127.0.0.1")))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with fake_issuer(ssl_context=serving(path)) as running:
        here = Site(running)
        with pytest.raises(FetchError, match="not allowed"):
            fetch(here.url)
        assert not running.hits
        assert fetch(here.url, loopback_http=True).logo == PNG, "over TLS, where loopback may be"


# The background run


@pytest.fixture
def world(db: None, settings: Any) -> World:
    settings.MUNIMENT_DEMO = settings.MUNIMENT_CLIENT_METADATA = True  # loopback hosts are for development only
    return build()


def register(url: str) -> OAuthClientId:
    made: OAuthClientId = OAuthClientId.objects.create(
        client=Client.objects.get(), issuer=Issuer.objects.get(), oauth_id=url
    )
    return made


def sight(url: str, source: str = ISSUER, **changes: Any) -> Sighting:
    made: Sighting = Sighting.objects.create(
        kind="client", source=source, name=url, count=1, last_seen=timezone.now(), **changes
    )
    return made


def age(**delta: float) -> None:
    ClientMetadata.objects.update(attempted_at=timezone.now() - timedelta(**delta))


def test_registered_and_seen_clients_are_fetched_and_again_each_day(world: World, site: Site) -> None:
    register(site.url)
    assert tasks.refresh_client_metadata() == 1
    row = ClientMetadata.objects.get()
    assert (row.name, bytes(row.logo or b""), row.logo_type, row.error) == ("Claude", PNG, "image/png", "")
    assert not row.is_approved and row.host == site.server.url.removeprefix("http://")
    assert tasks.refresh_client_metadata() == 0 and site.server.hits["/client"] == 1
    age(hours=23)
    assert metadata.refresh() == 0
    age(hours=25)
    assert metadata.refresh() == 1 and site.server.hits["/client"] == 2


def test_nothing_is_fetched_where_the_operator_says_so(world: World, site: Site, settings: Any) -> None:
    register(site.url)
    settings.MUNIMENT_CLIENT_METADATA = False
    assert metadata.refresh() == 0 and not site.server.hits


def test_what_nobody_named_by_a_genuine_token_or_staff_ignore_is_not_fetched(world: World, site: Site) -> None:
    sight(site.url, source="https://stranger.example/")
    sight(site.url, ignored_at=timezone.now())
    sight("claude-app-2")
    assert metadata.refresh() == 0 and not site.server.hits
    Sighting.objects.filter(source=ISSUER, name=site.url).update(ignored_at=None)
    assert metadata.refresh() == 1
    Sighting.objects.all().delete()
    assert metadata.refresh() == 0 and not ClientMetadata.objects.exists(), "forgotten with the id"


def test_a_failure_keeps_what_was_had_and_is_tried_again_ever_later(world: World, site: Site) -> None:
    register(site.url)
    metadata.refresh()
    site.server.status = 500
    for number, minutes in ((1, 15), (2, 30), (3, 60)):
        age(hours=25)
        assert metadata.refresh() == 0
        row = ClientMetadata.objects.get()
        assert (row.failures, row.name, row.error) == (number, "Claude", "the server answered 500")
        hits = site.server.hits["/client"]
        age(minutes=minutes - 1)
        metadata.refresh()
        assert site.server.hits["/client"] == hits, "not yet"
    ClientMetadata.objects.update(failures=500)
    age(hours=25)
    site.server.status = 200
    assert metadata.refresh() == 1 and ClientMetadata.objects.get().failures == 0


def test_a_logo_that_is_away_for_once_changes_nothing(world: World, site: Site) -> None:
    register(site.url)
    metadata.refresh()
    before = ClientMetadata.objects.get().digest
    del site.pages["/logo"]
    age(hours=25)
    metadata.refresh()
    row = ClientMetadata.objects.get()
    assert row.digest == before and row.error == "the logo: the server answered 404"
    site.say(SVG)
    age(hours=25)
    metadata.refresh()
    assert ClientMetadata.objects.get().logo is None and ClientMetadata.objects.get().digest != before


def test_one_run_fetches_a_few_of_each_host_and_registered_ones_first(world: World, site: Site) -> None:
    for number in range(30):
        sight(f"{site.server.url}/made-up/{number}")
    register(site.url)
    assert metadata.refresh() == 1
    assert sum(site.server.hits.values()) == metadata.MOST_OF_HOST + 1, "and its logo"
    assert site.server.hits["/client"] == 1


def test_two_runs_at_once_fetch_it_once(world: World, site: Site) -> None:
    register(site.url)
    assert metadata._claim(site.url) is not None
    stale = ClientMetadata(url=site.url)
    assert metadata._is_due(stale, timezone.now())
    assert metadata.refresh() == 0 and not site.server.hits


def test_an_attempt_of_a_process_that_died_is_made_again_soon(world: World, site: Site) -> None:
    register(site.url)
    assert metadata._claim(site.url) is not None
    age(minutes=14)
    assert metadata.refresh() == 0
    age(minutes=16)
    assert metadata.refresh() == 1


def test_documents_are_not_fetched_inside_a_transaction(world: World) -> None:
    with transaction.atomic(), pytest.raises(RuntimeError):
        metadata.refresh()


# Staff


@pytest.fixture
def known(world: World, site: Site) -> ClientMetadata:
    register(site.url)
    site.say(client_name="<b>Claude</b>")
    metadata.refresh()
    found: ClientMetadata = ClientMetadata.objects.get()
    return found


def approve_url(row: ClientMetadata) -> str:
    return f"/admin/clients/client/published/{row.pk}/approve/"


def client_page(http: HttpClient) -> str:
    return http.get(f"/admin/clients/client/{Client.objects.get().pk}/change/").content.decode()


def test_it_is_unverified_until_somebody_approves_what_is_shown(known: ClientMetadata, site: Site) -> None:
    http = administrator()
    page = client_page(http)
    assert "Unverified" in page and f'as published by <bdi class="mono">{known.host}</bdi>' in page
    assert "&lt;b&gt;Claude&lt;/b&gt;" in page and "<b>Claude</b>" not in page
    asked = http.get(approve_url(known))
    assert known.digest in asked.content.decode() and not ClientMetadata.objects.get().is_approved
    answer = http.post(approve_url(known), {"definition": known.digest, "reason": "asked them"})
    assert answer.status_code == 302
    row = ClientMetadata.objects.get()
    assert row.is_approved and row.approved_by == "Mara"
    told = newest("staff")
    assert (told["action"], told["client_id"]) == ("client.approve_metadata", site.url)
    assert "Unverified" not in client_page(http) and Client.objects.get().name == "Claude"
    site.say(client_name="Claude Pro")
    age(hours=25)
    metadata.refresh()
    assert not ClientMetadata.objects.get().is_approved
    assert "changed since it was approved" in client_page(http)


def test_what_changed_since_the_page_was_opened_is_not_approved(known: ClientMetadata, site: Site) -> None:
    http = administrator()
    site.say(client_name="Mallory")
    age(hours=25)
    metadata.refresh()
    for digest in (known.digest, "", "x", known.digest.upper()):
        answer = http.post(approve_url(known), {"definition": digest, "reason": "asked them"})
        assert answer.status_code == 200 and not ClientMetadata.objects.get().is_approved
    fresh = ClientMetadata.objects.get().digest
    assert http.post(approve_url(known), {"definition": fresh}).status_code == 200, "a reason is needed"
    assert not ClientMetadata.objects.get().is_approved


def test_approving_takes_the_permission_where_it_is_done(known: ClientMetadata) -> None:
    seeing = member("ann", "clients.view_client")
    assert "Unverified" in client_page(seeing) and approve_url(known) not in client_page(seeing)
    sent = {"definition": known.digest, "reason": "r"}
    assert seeing.get(approve_url(known)).status_code == 403
    assert seeing.post(approve_url(known), sent).status_code == 403
    assert HttpClient().post(approve_url(known), sent).status_code == 302
    user = member("bob", "clients.view_client").get("/admin/").wsgi_request.user
    with pytest.raises(PermissionDenied):
        metadata.approve(known.pk, known.digest, user=user, reason="r")
    assert not ClientMetadata.objects.get().is_approved


def test_the_logo_is_served_from_here_as_a_picture_and_nothing_else(known: ClientMetadata) -> None:
    url = f"/admin/clients/client/published/{known.pk}/logo/"
    seeing = member("ann", "clients.view_client")
    answer = seeing.get(url)
    assert answer.status_code == 200 and answer.content == PNG
    headers = answer.headers
    assert headers["Content-Type"] == "image/png" and headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert "no-store" in headers["Cache-Control"] and "private" in headers["Cache-Control"]
    assert member("bob", "tools.view_tool").get(url).status_code == 403
    assert HttpClient().get(url).status_code == 302 and seeing.post(url).status_code == 405
    ClientMetadata.objects.update(logo=None, logo_type="")
    assert seeing.get(url).status_code == 404


def test_the_inbox_shows_it_too(world: World, site: Site) -> None:
    seen = sight(site.url)
    metadata.refresh()
    http = administrator()
    for url in ("/admin/inbox/", f"/admin/inbox/{seen.pk}/client/"):
        page = http.get(url).content.decode()
        assert "Unverified" in page and "as published by" in page
    form = http.get(f"/admin/inbox/{seen.pk}/client/").context["form"]
    assert form.initial["name"] == site.url[:120], "the published name is nobody's name yet"
