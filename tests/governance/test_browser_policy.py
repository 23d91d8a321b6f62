"""The matrix, the explainer and the kill switches in a real browser, with a small policy and with a large one. With
MUNIMENT_SHOTS=<folder> it also leaves a picture of each page there."""

import pytest
from django.contrib.auth import get_user_model

from audit import rollups
from clients import grants
from clients.grants import Actor
from clients.models import Client, OAuthClientId
from tests.browser import PASSWORD, Visitor
from tests.many import fill
from tests.staff import drained
from tests.world import World, build, token
from tools.models import Scope, Tool

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """Two clients and three tools, and every kind of cell."""
    # Playwright's synchronous API runs an event loop in this thread, which Django takes for asynchronous code.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    made = build()
    get_user_model().objects.create_superuser("mara", "", PASSWORD, first_name="Mara")
    issuer_id = made.client.oauth_client_ids.get().issuer_id
    mara = Actor("staff:1", "Mara")
    read, write = Scope.objects.get(name="memory:read"), Scope.objects.get(name="memory:write")
    for slug, name in (("chatgpt", "ChatGPT"), ("inner-ios", "Inner for iOS")):
        client = Client.objects.create(slug=slug, name=name)
        OAuthClientId.objects.create(client=client, issuer_id=issuer_id, oauth_id=f"{slug}-app")
        grants.create(actor=mara, reason="launch review", client=client, scopes=[read], effect="flag")
    grants.create(actor=mara, reason="nothing is written for now", client=client, scopes=[write], effect="deny")
    grants.create(actor=mara, reason="editors may", client=made.client, scopes=[write], role="editor")
    Tool.objects.create(backend=made.backend, name="memory.forget", access="destructive", status="pending")
    return made


def test_from_the_matrix_to_why_to_the_grant(world: World, visitor: Visitor) -> None:
    uid = world.verify()["subject"]["uid"]
    visitor.sign_in()
    page = visitor.page
    visitor.go("/admin/access/matrix/")
    visitor.shot("matrix")
    assert page.get_by_role("cell", name="Claude: missing grant").is_visible()
    assert page.get_by_text("Claude may call 1 of 3 tools.").is_visible()
    visitor.follow(page.get_by_role("cell", name="Claude: missing grant").get_by_role("link").first)
    assert page.get_by_role("heading", name="No: no grant lets Claude use memory:write.").is_visible()
    visitor.shot("explain-no")
    page.get_by_text("The token, the agent, the tenant and the roles").click()
    page.get_by_label("Roles of the user").fill("editor")
    page.get_by_label("User", exact=True).fill(uid)
    visitor.follow(page.get_by_role("button", name="Explain"))
    assert page.get_by_role("heading", name="Yes: Claude may use memory.capture for user").is_visible()
    visitor.shot("explain-yes")
    visitor.go("/admin/access/explain/?client=inner-ios&tool=inner/memory.capture")
    visitor.shot("explain-block")
    visitor.go("/admin/access/explain/")
    visitor.shot("explain-empty")
    visitor.go(f"/admin/access/matrix/?subject={uid}&mode=background&only=open")
    visitor.shot("matrix-user")
    visitor.follow(page.get_by_role("link", name="grant memory:write to Claude"))
    assert page.url.startswith(f"{visitor.url}/admin/clients/grant/add/?client=claude&scope=memory%3Awrite&subject=")
    assert visitor.complaints == []


def test_what_is_stopped_is_refused_until_it_is_resumed(world: World, visitor: Visitor) -> None:
    for sub in ("alice", "bob", "alice"):
        world.verify(token=token(sub=sub))
    drained()
    rollups.count()
    visitor.sign_in()
    page = visitor.page
    visitor.go("/admin/access/stops/")
    visitor.shot("stops-none")
    page.get_by_label("Client", exact=True).select_option("claude")
    visitor.follow(page.get_by_role("button", name="Stop this client"))
    assert page.get_by_text("there were 3 calls, 3 of them allowed").is_visible()
    visitor.shot("stop-client")
    page.get_by_label("Reason").fill("it sends what it should not")
    visitor.follow(page.get_by_role("button", name="Stop it now"))
    assert world.verify()["reason"] == "client_suspended"
    page.get_by_label("User", exact=True).fill(world.verify()["subject"]["uid"])
    visitor.follow(page.get_by_role("button", name="Stop this user"))
    page.get_by_label("Reason").fill("asked for by the user")
    visitor.follow(page.get_by_role("button", name="Stop it now"))
    drained()
    visitor.go("/admin/access/stops/")
    visitor.shot("stops")
    visitor.go("/admin/access/matrix/")
    assert page.get_by_text("Stopped: client Claude, user usr_").is_visible()
    visitor.shot("stops-banner")
    visitor.follow(page.get_by_role("link", name="Look", exact=True))
    visitor.follow(page.get_by_role("link", name="Resume client Claude"))
    visitor.shot("resume-client")
    page.get_by_label("Reason").fill("it was updated")
    visitor.follow(page.get_by_role("button", name="Resume it now"))
    visitor.follow(page.get_by_role("link", name="Resume user"))
    page.get_by_label("Reason").fill("the user wants it back")
    visitor.follow(page.get_by_role("button", name="Resume it now"))
    assert world.verify()["decision"] == "allow"
    assert page.get_by_text("Stopped: ").count() == 0
    assert visitor.complaints == []


def test_fifty_clients_and_five_hundred_tools_can_be_looked_at(world: World, visitor: Visitor) -> None:
    fill(world, clients=48)
    visitor.sign_in()
    page = visitor.page
    visitor.go("/admin/access/matrix/")
    visitor.shot("matrix-many")
    assert page.get_by_text("clients 1 to 20 of 50").is_visible()
    visitor.follow(page.get_by_role("link", name="More clients →"))
    assert page.get_by_text("clients 21 to 40 of 50").is_visible()
    page.get_by_text("Choose clients").click()
    for name in ("Client 03", "Client 07", "ChatGPT"):
        page.get_by_label(name, exact=True).check()
    page.get_by_label("Backend").select_option("backend-2")
    visitor.follow(page.get_by_role("button", name="Show"))
    assert page.get_by_text("clients 1 to 3 of 3").is_visible()
    visitor.shot("matrix-chosen")
    visitor.go("/admin/access/explain/?client=client-03&tool=backend-2/thing03.do")
    visitor.shot("explain-many")
    assert visitor.complaints == []
