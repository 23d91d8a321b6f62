"""The pages about people in a real browser: find a person, their timeline, a record with its protected details, and the
report of all that was done with their data."""

import pytest
from django.contrib.auth import get_user_model

from audit import rollups
from audit.models import Record
from audit.subjects import resolve
from clients.models import Client, OAuthClientId
from tests.browser import PASSWORD, Visitor
from tests.staff import drained
from tests.world import World, build, token

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
NAME = "Łukasz-Ελένη"


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """A small world with two clients, and an administrator who may see everything."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    made = build()
    get_user_model().objects.create_superuser("mara", "", PASSWORD, first_name="Mara")
    phone = Client.objects.create(slug="inner-ios", name="Inner for iOS, the edition for the whole family")
    issuer = made.client.oauth_client_ids.get().issuer_id
    OAuthClientId.objects.create(client=phone, issuer_id=issuer, oauth_id="ios-app")
    return made


def calls(world: World) -> str:
    """A busy half hour of one user: reads with outcomes, a run of refusals, a background agent; and somebody else's."""
    about = {"ip": "203.0.113.9", "user_agent": "Claude-User/1.0 (MCP)", "session_id": "ses-9"}
    person = {"sub": "lukasz-7", "email": "łukasz@example.com"}
    uid = ""
    for number in range(24):
        request = {"id": f"req-{number}", **about}
        answer = world.verify(token=token(**person), request=request, resource={"type": "memory", "id": f"m_{number}"})
        uid = answer["subject"]["uid"]
        touched = {"status": "ok", "count": 2, "duration_ms": 31, "resources": [{"type": "memory", "id": "m_41"}]}
        if number % 2:
            world.post(f"/v1/records/{answer['record']}/outcome", touched)
    for _ in range(6):
        world.verify(tool="memory.capture", token=token(**person), request=about)
    world.verify(token=token(**person, client="ios-app"), agent={"mode": "background", "chain": ["digest"]})
    world.verify(token=token(sub="bob"))
    world.verify(token=token(client="nobody-knows"))
    resolve("https://other.example/", "lukasz-7", "łukasz@example.com")
    drained()
    rollups.count()
    return str(uid)


def test_staff_find_a_person_and_answer_for_their_data(world: World, visitor: Visitor) -> None:
    visitor.sign_in()
    uid = calls(world)
    page = visitor.page
    visitor.go("/admin/people/")
    visitor.shot("people")
    page.get_by_label("E-mail address, sub or uid").fill("nobody@example.com")
    visitor.follow(page.get_by_role("button", name="Find", exact=True))
    visitor.shot("people-nobody")
    page.get_by_label("E-mail address, sub or uid").fill("łukasz@example.com")
    visitor.follow(page.get_by_role("button", name="Find", exact=True))
    assert page.get_by_role("heading", name="Known by 2 issuers").is_visible()
    visitor.shot("people-two")
    visitor.follow(page.get_by_role("link", name=uid))
    assert page.url == f"{visitor.url}/admin/timeline/user/{uid}/"
    assert page.get_by_text("7 refusals in a row").first.is_visible()
    visitor.shot("timeline-user")
    visitor.follow(page.get_by_role("button", name="Show who this is…"))
    assert page.get_by_text("łukasz@example.com").is_visible()
    visitor.shot("timeline-user-shown")
    for kind, name in (("client", "claude"), ("tool", "inner/memory.recall"), ("client", "nobody")):
        visitor.go(f"/admin/timeline/{kind}/{name}/?window=24h")
        visitor.shot(f"timeline-{kind}{'-empty' if name == 'nobody' else ''}")

    record = Record.objects.filter(type="outcome").latest("at").parent
    visitor.go(f"/admin/records/{record}/")
    visitor.shot("record-closed")
    visitor.follow(page.get_by_role("button", name="Show protected details…"))
    assert page.get_by_text("203.0.113.9").is_visible() and page.get_by_text("memory m_41").is_visible()
    visitor.shot("record-details")
    drained()
    visitor.go(f"/admin/records/{Record.objects.filter(type='staff').latest('at').id}/")
    assert page.get_by_role("heading", level=1).inner_text().startswith("Staff member 1 looked at protected details")
    visitor.shot("record-look")

    visitor.go(f"/admin/people/{uid}/report/")
    visitor.shot("report-ask")
    visitor.follow(page.get_by_role("button", name="Show the report…"))
    assert page.get_by_text("AI clients were allowed to use this person's data").is_visible()
    visitor.shot("report")
    page.emulate_media(media="print")
    assert not page.get_by_role("navigation").first.is_visible() and not page.get_by_text("Print it with").is_visible()
    page.emulate_media(media="screen")
    visitor.go("/admin/audit/subject/")
    visitor.shot("users")
    visitor.go(f"/admin/audit/subject/{uid}/change/")
    visitor.shot("user")
    assert visitor.complaints == []


def test_the_pdf_is_saved_by_who_has_just_signed_in(world: World, visitor: Visitor) -> None:
    visitor.sign_in()
    uid = calls(world)
    visitor.go(f"/admin/people/{uid}/report/")
    with visitor.page.expect_download() as saved:
        visitor.page.get_by_role("button", name="Download as PDF…").click()
    assert saved.value.suggested_filename.startswith(f"muniment-report-{uid}-")
    assert saved.value.path().read_bytes().startswith(b"%PDF-")
    assert visitor.complaints == []
