"""The access matrix: every cell is what `decide()` says, for everyone or for whom is chosen; the counts are right; what
a cell offers leads on; many clients and tools stay on one screen and cheap; what is wrong in the URL is said."""

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client as HttpClient
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.models import Subject
from clients import grants
from clients.grants import Actor
from clients.models import AcceptedIssuer, Client, Issuer, OAuthClientId
from governance import matrix, whatif
from governance.decision import ClientPolicy, GrantPolicy, Policy, SubjectState, ToolPolicy
from governance.matrix import ALLOWED, DENIED, FLAGGED, INACTIVE, MISSING, Asked
from governance.snapshot import BackendPolicy, Snapshot, snapshots
from tests.many import fill
from tests.staff import administrator, member, signed_in
from tests.world import World, build, token
from tools.models import Backend, Scope, Tool

URL = "/admin/access/matrix/"
NOW = 1_800_000_000.0
MARA = Actor("staff:1", "Mara")
ISSUERS: dict[str, Any] = {"https://a/": None, "https://b/": None}


# --- every cell is what decide says ----------------------------------------------------------------------------

scopes = st.frozensets(st.sampled_from(["read", "write", "admin"]), max_size=2)
tools = st.lists(
    st.builds(
        ToolPolicy, id=st.just(0), name=st.just(""), access=st.sampled_from(["read", "write"]),
        status=st.sampled_from(["active", "active", "pending", "suspended", "retired"]),
        scopes=scopes.map(sorted).map(tuple), sensitive=st.booleans(),
    ),
    min_size=1, max_size=8,
)  # fmt: skip
maybe = st.one_of(st.none(), st.none(), st.just("x"), st.just("y"))
granted = st.lists(
    st.builds(
        GrantPolicy, id=st.just(0), effect=st.sampled_from(["allow", "allow", "flag", "deny"]),
        client_id=st.one_of(st.none(), st.integers(1, 3)), scopes=scopes, subject=maybe, role=maybe, tenant=maybe,
        tool_id=st.one_of(st.none(), st.integers(1, 8)),
        modes=st.frozensets(st.sampled_from(["interactive", "background"]), max_size=1),
        starts_at=st.one_of(st.none(), st.just(NOW + 60), st.just(NOW - 60)),
        expires_at=st.one_of(st.none(), st.just(NOW + 60), st.just(NOW - 60)),
    ),
    max_size=10,
)  # fmt: skip
asked = st.builds(
    Asked, subject=st.sampled_from(["", "x", "y"]), state=st.builds(SubjectState, blocked=st.booleans()),
    tenant=maybe, roles=st.frozensets(st.sampled_from(["x", "y"])), mode=st.sampled_from(["interactive", "background"]),
)  # fmt: skip


def policy_of(some_tools: list[ToolPolicy], some_grants: list[GrantPolicy], suspended: int) -> Snapshot:
    """Three clients, the third without an OAuth client id, one perhaps suspended; two backends."""
    named = [replace(tool, id=n, name=f"t{n}") for n, tool in enumerate(some_tools, 1)]
    by_client: dict[int | None, tuple[GrantPolicy, ...]] = {}
    for number, grant in enumerate(some_grants, 1):
        by_client[grant.client_id] = (*by_client.get(grant.client_id, ()), replace(grant, id=number))
    clients = {
        ("https://a/", f"c{n}"): ClientPolicy(n, f"c{n}", f"C{n}", "suspended" if n == suspended else "active")
        for n in (1, 2)
    }
    policy = Policy(
        clients=clients,
        tools={(1 + tool.id % 2, tool.name): tool for tool in named},
        grants_of_client=by_client,
        implied={"write": frozenset({"write", "read"}), "read": frozenset({"read"}), "admin": frozenset({"admin"})},
    )
    backends = {n: BackendPolicy(n, f"b{n}", frozenset(), "", frozenset(), ISSUERS) for n in (1, 2)}
    return Snapshot(1, "", policy, backends, {}, {})


@settings(max_examples=300, deadline=None)
@given(tools, granted, asked, st.integers(0, 2))
def test_a_cell_is_what_a_call_would_be_answered(
    some_tools: list[ToolPolicy], some_grants: list[GrantPolicy], whom: Asked, suspended: int
) -> None:
    snapshot = policy_of(some_tools, some_grants, suspended)
    every = [(backend, tool) for (backend, _), tool in snapshot.policy.tools.items()]
    found = matrix.rows(snapshot, [1, 2, 3], every, whom, NOW)
    for row, (backend, tool) in zip(found, every, strict=True):
        for client, cell in zip((1, 2, 3), row.cells, strict=True):
            said = whatif.answer(
                snapshot.policy, client, backend, tool.name, subject=whom.subject, state=whom.state,
                tenant=whom.tenant, roles=whom.roles, mode=whom.mode, now=NOW,
            )  # fmt: skip
            assert cell.reason == said.reason
            assert (cell.kind in (ALLOWED, FLAGGED)) == said.allowed
            assert (cell.kind == FLAGGED) == (said.allowed and said.flagged)
            assert cell.missing == (() if said.allowed else said.missing)
    for number, count in enumerate(matrix.counts(found, 3)):
        kinds = [row.cells[number].kind for row in found]
        assert count.tools == len(every)
        assert count.allowed == sum(kind in (ALLOWED, FLAGGED) for kind in kinds)
        assert count.flagged == sum(kind == FLAGGED for kind in kinds)


def test_tools_of_one_kind_are_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    alike = ToolPolicy(0, "", "read", "active", ("read",), False)
    snapshot = policy_of([alike] * 8, [], 0)
    made = []
    real = whatif.answer
    monkeypatch.setattr(whatif, "answer", lambda *a, **k: made.append(a) or real(*a, **k))  # type: ignore[func-returns-value]
    every = [(backend, tool) for (backend, _), tool in snapshot.policy.tools.items()]
    assert {c.kind for row in matrix.rows(snapshot, [1, 2], every, Asked(), NOW) for c in row.cells} == {MISSING}
    assert len(made) == 2
    named = GrantPolicy(9, "allow", None, frozenset({"read"}), None, None, None, 3, frozenset(), None, None)
    other = replace(snapshot, policy=whatif.with_grant(snapshot.policy, named))
    kinds = [[c.kind for c in row.cells] for row in matrix.rows(other, [1, 2], every, Asked(), NOW)]
    assert kinds.count([ALLOWED, ALLOWED]) == 1 and kinds.count([MISSING, MISSING]) == 7


# --- the page --------------------------------------------------------------------------------------------------


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def http(world: World) -> HttpClient:
    return administrator()


def cells(http: HttpClient, query: str = "") -> dict[tuple[str, str], str]:
    """(tool, client) -> kind, as the page shows it."""
    text = http.get(f"{URL}?{query}").content.decode()
    found = {}
    for row in re.findall(r'<tr><th scope="row".*?</tr>', text, re.S):
        name = re.search(r">([^<]+)</a>", row)
        for kind, client in re.findall(r'<td class="is-(\w+)">.*?<span class="who">(.*?): </span>', row, re.S):
            assert name is not None
            found[name[1], client] = kind
    return found


def test_the_page_shows_each_kind_in_symbol_and_words(world: World, http: HttpClient) -> None:
    chatgpt = Client.objects.create(slug="chatgpt", name="ChatGPT")
    issuer = Issuer.objects.get()
    OAuthClientId.objects.create(client=chatgpt, issuer=issuer, oauth_id="chatgpt-app")
    write, read = Scope.objects.get(name="memory:write"), Scope.objects.get(name="memory:read")
    grants.create(actor=MARA, reason="r", client=chatgpt, scopes=[read], effect="flag")
    grants.create(actor=MARA, reason="r", client=chatgpt, scopes=[write], effect="deny")
    Tool.objects.create(backend=world.backend, name="memory.forget", access="destructive", status="pending")
    assert cells(http) == {
        ("memory.capture", "Claude"): MISSING, ("memory.capture", "ChatGPT"): DENIED,
        ("memory.forget", "Claude"): INACTIVE, ("memory.forget", "ChatGPT"): INACTIVE,
        ("memory.recall", "Claude"): ALLOWED, ("memory.recall", "ChatGPT"): FLAGGED,
    }  # fmt: skip
    text = " ".join(re.sub(r"<[^>]+>", " ", http.get(URL).content.decode()).split())
    for words in ("✓ allowed", "! allowed, flagged", "✕ denied", "○ missing grant", "– not active"):
        assert words in text
    assert "Claude may call 1 of 3 tools ." in text
    assert "ChatGPT may call 1 of 3 tools , 1 of them flagged ." in text


@pytest.mark.parametrize("what", ["client", "pending", "suspended", "retired", "backend", "issuer", "ids", "accepted"])
def test_what_is_not_active_is_said_so_and_not_counted(world: World, http: HttpClient, what: str) -> None:
    assert cells(http)["memory.recall", "Claude"] == ALLOWED
    match what:
        case "client":
            Client.objects.update(status="suspended")
        case "backend":
            Backend.objects.update(enabled=False)
        case "issuer":
            Issuer.objects.update(enabled=False)
        case "ids":
            OAuthClientId.objects.all().delete()
        case "accepted":
            other = Issuer.objects.create(issuer="https://other.example/")
            Backend.objects.update(accepts_every_issuer=False)
            AcceptedIssuer.objects.create(backend=world.backend, issuer=other)
        case _:
            Tool.objects.update(status=what)
    assert cells(http)["memory.recall", "Claude"] == INACTIVE
    assert "may call none of 2 tools" in http.get(URL).content.decode()


def test_for_one_user_their_own_grants_count_and_being_blocked(world: World, http: HttpClient) -> None:
    uid = world.verify()["subject"]["uid"]
    user = Subject.objects.get(uid=uid)
    write = Scope.objects.get(name="memory:write")
    grants.create(actor=MARA, reason="r", client=world.client, scopes=[write], subject=user)
    assert cells(http)["memory.capture", "Claude"] == MISSING
    assert cells(http, f"subject={uid}")["memory.capture", "Claude"] == ALLOWED
    assert world.verify(tool="memory.capture")["decision"] == "allow"
    Subject.objects.update(blocked_at=timezone.now())
    assert set(cells(http, f"subject={uid}").values()) == {DENIED}
    assert "This user is blocked" in http.get(f"{URL}?subject={uid}").content.decode()
    assert cells(http)["memory.recall", "Claude"] == ALLOWED


def test_a_user_of_another_issuer_cannot_come_through_a_client_that_it_does_not_know(
    world: World, http: HttpClient
) -> None:
    Subject.objects.create(uid="usr_elsewhere", issuer="https://other.example/")
    assert set(cells(http, "subject=usr_elsewhere").values()) == {INACTIVE}


@pytest.mark.parametrize(
    ("narrow", "query", "claims", "agent"),
    [
        ({"role": "editor"}, "role=editor", {"roles": ["editor"]}, {}),
        ({"tenant": "acme"}, "tenant=acme", {"org_id": "acme"}, {}),
        ({"modes": ["background"]}, "mode=background", {}, {"mode": "background"}),
    ],
    ids=["role", "tenant", "mode"],
)
def test_for_a_role_a_tenant_or_a_mode_as_in_a_call(
    world: World, http: HttpClient, narrow: dict[str, Any], query: str, claims: dict[str, Any], agent: dict[str, Any]
) -> None:
    Issuer.objects.update(roles_claim="roles", tenant_claim="org_id")
    write = Scope.objects.get(name="memory:write")
    grants.create(actor=MARA, reason="r", client=world.client, scopes=[write], **narrow)
    assert cells(http)["memory.capture", "Claude"] == MISSING
    assert cells(http, query)["memory.capture", "Claude"] == ALLOWED
    assert world.verify(tool="memory.capture", token=token(**claims), agent=agent)["decision"] == "allow"
    assert world.verify(tool="memory.capture")["reason"] == "not_granted"


def test_a_cell_leads_to_why_and_a_missing_grant_to_the_grant(world: World, http: HttpClient) -> None:
    uid = world.verify()["subject"]["uid"]
    text = http.get(f"{URL}?subject={uid}&mode=background").content.decode()
    asked = f"client=claude&amp;tool=inner%2Fmemory.capture&amp;subject={uid}&amp;mode=background"
    assert f'href="/admin/access/explain/?{asked}"' in text
    wanted = f"client=claude&amp;scope=memory%3Awrite&amp;subject={uid}&amp;mode=background"
    assert f'href="/admin/clients/grant/add/?{wanted}"' in text
    assert http.get(f"/admin/access/explain/?{asked}".replace("&amp;", "&")).context["answer"].reason == "not_granted"


def test_who_may_not_grant_is_led_to_asking_for_it(world: World) -> None:
    text = member("vera", "clients.view_grant").get(URL).content.decode()
    assert "/admin/clients/grant/add/" not in text
    assert "/admin/access/ask/?client=claude&amp;scope=memory%3Awrite" in text


def test_a_tool_without_scopes_is_granted_by_its_name(world: World, http: HttpClient) -> None:
    Tool.objects.create(backend=world.backend, name="ping", access="read", status="active")
    assert "/admin/clients/grant/add/?client=claude&amp;tool=inner%2Fping" in http.get(URL).content.decode()


def test_only_those_who_may_see_grants_see_it_and_nothing_is_posted(world: World, http: HttpClient) -> None:
    assert member("vera", "clients.view_client").get(URL).status_code == 403
    assert HttpClient().get(URL).status_code == 302
    assert http.post(URL).status_code == 405


def test_who_may_not_look_at_users_cannot_choose_one(world: World) -> None:
    uid = world.verify()["subject"]["uid"]
    response = member("vera", "clients.view_grant").get(f"{URL}?subject={uid}")
    assert response.status_code == 400 and "You may not look at users." in response.content.decode()


@pytest.mark.parametrize(
    "query",
    [
        "subject=alice@example.com", "subject=usr_nobody", "subject=usr_%00", "subject=" + "x" * 9000, "mode=loud",
        "role=%00", "tenant=" + "t" * 300, "backend=nope", "q=%00", "q=" + "x" * 200, "only=everything",
        "client=nobody", "page=0", "page=-1", "page=1e9", "page=" + "9" * 40, "columns=x", "subject=%ED%B2%80",
        "role=" + ",".join(map(str, range(51))),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_url_is_a_field_error(world: World, http: HttpClient, query: str) -> None:
    response = http.get(f"{URL}?{query}")
    assert response.status_code == 400
    assert response.context["form"].errors and "groups" not in response.context
    assert 'class="errornote"' in response.content.decode()


def test_an_erased_user_is_not_asked_about(world: World, http: HttpClient) -> None:
    Subject.objects.create(uid="usr_gone", issuer="https://id.example/", erased_at=timezone.now())
    assert "erased" in str(http.get(f"{URL}?subject=usr_gone").context["form"].errors)


def test_without_a_client_or_a_tool_it_says_what_to_do(db: None) -> None:
    http = administrator()
    assert "No client yet." in http.get(URL).content.decode()
    Client.objects.create(slug="claude", name="Claude")
    assert "No tool fits." in http.get(URL).content.decode()


# --- many ------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(world: World) -> World:
    """50 clients, 500 tools in 10 backends, 400 grants, as in a large organisation."""
    fill(world)
    return world


@pytest.fixture
def looking(many: World) -> Iterator[HttpClient]:
    yield signed_in(get_user_model().objects.create_superuser("noor", "", "correct horse battery"))


def test_many_clients_and_tools_come_in_pages_and_the_counts_are_those_of_brute_force(
    many: World, looking: HttpClient
) -> None:
    response = looking.get(f"{URL}?only=open&columns=2")
    context = response.context
    assert (context["rows"].size_shown, context["columns"].size_shown) == (50, 20)
    snapshot, now = snapshots.at_head(), time.time()
    for one in context["summaries"]:
        answers = [
            whatif.answer(snapshot.policy, one.client.pk, backend, name, now=now)
            for backend, name in snapshot.policy.tools
        ]
        allowed = [answer for answer in answers if answer.allowed]
        assert one.count == matrix.Count(502, len(allowed), sum(answer.flagged for answer in allowed))
    assert sum(one.count.allowed for one in context["summaries"]) > 0
    text = response.content.decode()
    assert "Tools 1 to 50 of" in text and "clients 21 to 40 of 50" in text
    assert "columns=1" in text and "columns=3" in text and "page=2" in text


def test_filters_narrow_it_and_pages_beyond_the_last_are_the_last(many: World, looking: HttpClient) -> None:
    one = cells(looking, "backend=backend-3&client=claude&q=GET")
    assert len(one) == 25 and all("get" in tool for tool, _ in one)
    assert len(cells(looking, "page=99999&client=claude&client=client-00")) == 2 * (502 - 500)
    for only, kinds in {
        "missing": {MISSING},
        "denied": {DENIED},
        "flagged": {FLAGGED},
        "open": {MISSING, DENIED},
    }.items():
        found = cells(looking, f"client=client-01&only={only}")
        assert found and set(found.values()) <= kinds, only


def test_a_full_page_takes_few_queries(many: World, looking: HttpClient, django_assert_max_num_queries: Any) -> None:
    looking.get(URL)
    with django_assert_max_num_queries(25):
        looking.get(URL)
