"""POST /access/v1/search/...: who may, with what, and what may be done; for backends that may search, page by page."""

from base64 import urlsafe_b64decode
from typing import Any

import pytest
from django.test import override_settings
from django.utils import timezone

from audit import details, subjects
from audit.models import Record, Subject
from clients.models import Grant, Issuer
from governance import authzen_search
from tests.governance.authzen import CALL, CAPTURE, CLAUDE, RECALL, ask, find, ids, said, user
from tests.world import ISSUER, World, build
from tools.models import BackendMark, Scope, Tool

WHO: dict[str, Any] = {"subject": {"type": "user"}, "action": CALL, "resource": RECALL, "context": CLAUDE}
WITH_WHAT: dict[str, Any] = {"subject": user(), "action": CALL, "resource": {"type": "tool"}, "context": CLAUDE}
WHAT: dict[str, Any] = {"subject": user(), "resource": {"type": "memory", "id": "m-55"}, "context": CLAUDE}
SEARCHES = [("subject", WHO), ("resource", WITH_WHAT), ("action", WHAT)]


@pytest.fixture
def world(db: None) -> World:
    """With users who were met, and a backend that may search."""
    made = build()
    BackendMark.objects.create(backend=made.backend, mark="may_search")
    for name in ("alice", "bob", "carol"):
        subjects.resolve(ISSUER, name, f"{name}@example.com")
    return made


def uids() -> list[str]:
    return sorted(Subject.objects.values_list("uid", flat=True))


def all_pages(world: World, kind: str, limit: int | None = None, **members: Any) -> list[dict[str, Any]]:
    """Every page of a search."""
    wish = {} if limit is None else {"limit": limit}
    pages = [find(world, kind, **members, page=wish)]
    while pages[-1]["page"]["next_token"]:
        assert len(pages) < 20
        pages.append(find(world, kind, **members, page=wish | {"token": pages[-1]["page"]["next_token"]}))
    return pages


class TestMay:
    @pytest.mark.parametrize(("kind", "members"), SEARCHES)
    def test_only_a_backend_that_may_search_is_answered(self, world: World, kind: str, members: Any) -> None:
        assert find(world, kind, **members)["results"]
        BackendMark.objects.all().delete()
        for body in (members, {}):
            response = world.post(f"/access/v1/search/{kind}", body)
            assert response.status_code == 403
            assert response.json()["type"] == "urn:muniment:problem:search-not-allowed"
        assert ask(world)["decision"] is True, "an evaluation needs no permission"

    def test_a_key_is_needed_before_a_permission(self, world: World) -> None:
        assert world.post("/access/v1/search/subject", WHO, key="").status_code == 401


class TestSubjects:
    def test_the_known_users_who_may_by_uid_and_by_nothing_else(self, world: World) -> None:
        found = find(world, "subject", **WHO)
        assert ids(found) == uids() and found["page"] == {"next_token": "", "count": 3}
        assert {name for one in found["results"] for name in one} == {"type", "id"}
        assert find(world, "subject", **WHO | {"resource": CAPTURE})["results"] == []

    def test_who_is_blocked_signed_out_or_of_another_issuer_is_not_found(self, world: World) -> None:
        first, second, third = uids()
        Subject.objects.filter(uid=first).update(blocked_at=timezone.now())
        Subject.objects.filter(uid=second).update(signed_out_at=timezone.now())
        Issuer.objects.create(issuer="https://other.example/", algorithms=["RS256"])
        world.backend.accepts_every_issuer = False
        world.backend.save()
        assert ids(find(world, "subject", **WHO)) == [], "the backend accepts no issuer at all"
        world.backend.accepts_every_issuer = True
        world.backend.save()
        subjects.resolve("https://other.example/", "dave")
        assert ids(find(world, "subject", **WHO)) == [third]
        for result in ids(find(world, "subject", **WHO)):
            assert ask(world, subject=user(result))["decision"] is True
        of_other = WHO | {"subject": {"type": "user", "properties": {"iss": "https://other.example/"}}}
        assert ids(find(world, "subject", **of_other)) == [], "whose client has another id there"

    def test_a_grant_for_a_user_or_a_role_finds_who_it_is_for(self, world: World) -> None:
        _, second, _ = uids()
        Grant.objects.update(subject=second)
        assert ids(find(world, "subject", **WHO)) == [second]
        Grant.objects.update(subject=None, role="nurse")
        assert ids(find(world, "subject", **WHO)) == []
        nurses = WHO | {"subject": {"type": "user", "properties": {"role": "nurse"}}}
        assert ids(find(world, "subject", **nurses)) == uids()

    def test_in_a_tenant_those_are_found_whose_tokens_have_named_it(self, world: World) -> None:
        for name, tenant in (("alice", "acme"), ("bob", "globex"), ("carol", "globex"), ("carol", "acme")):
            subjects.resolve(ISSUER, name, f"{name}@example.com", tenant)
        for grant_of in (None, "acme"):
            Grant.objects.update(tenant=grant_of)
            found = find(world, "subject", **WHO | {"subject": {"type": "user", "properties": {"tenant": "acme"}}})
            assert ids(found) == sorted(subjects.resolve(ISSUER, name) for name in ("alice", "carol"))
        elsewhere = WHO | {"subject": {"type": "user", "properties": {"tenant": "third"}}}
        assert ids(find(world, "subject", **elsewhere)) == []

    def test_an_id_is_ignored_and_an_unknown_type_or_tool_finds_nothing(self, world: World) -> None:
        assert ids(find(world, "subject", **WHO | {"subject": {"type": "user", "id": 5}})) == uids()
        for other in (
            {"subject": {"type": "spaceship"}},
            {"resource": {"type": "x y", "id": "z"}},
            {"action": {"name": "x"}},
        ):
            assert find(world, "subject", **WHO | other)["results"] == []

    def test_where_it_is_set_so_users_are_named_as_their_issuer_does_but_for_addresses(self, world: World) -> None:
        address = subjects.resolve(ISSUER, "dora@example.com")
        with override_settings(MUNIMENT_AUTHZEN_SUBJECTS="sub"):
            found = find(world, "subject", **WHO)
        assert sorted(ids(found)) == sorted(["alice", "bob", "carol", address])
        assert said(found["context"])["named_by"] == "sub"

    def test_a_search_ends_after_so_many_and_goes_on_from_there(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(authzen_search, "LOOKED", 1)
        first, second, third = uids()
        Subject.objects.filter(uid=first).update(blocked_at=timezone.now())
        pages = all_pages(world, "subject", **WHO)
        assert [ids(page) for page in pages] == [[], [second], [third]]
        assert said(pages[0]["context"])["looked"] == 1


class TestResources:
    def test_the_tools_that_the_user_may_call(self, world: World) -> None:
        assert ids(find(world, "resource", **WITH_WHAT)) == ["memory.recall"]
        world.grant.scopes.add(Scope.objects.get(name="memory:write"))
        assert ids(find(world, "resource", **WITH_WHAT)) == ["memory.capture", "memory.recall"]
        Tool.objects.filter(name="memory.capture").update(status="suspended")
        assert ids(find(world, "resource", **WITH_WHAT)) == ["memory.recall"]

    def test_resources_are_those_that_the_policy_names(self, world: World) -> None:
        for name, scope in (("m-1", "memory:read"), ("m-2", "memory:write")):
            made = Tool.objects.create(
                backend=world.backend, name=f"memory.recall:id:{name}", access="read", status="active"
            )
            made.scopes.add(Scope.objects.get(name=scope))
        wish = WITH_WHAT | {"action": {"name": "recall"}, "resource": {"type": "memory"}}
        assert find(world, "resource", **wish)["results"] == [{"type": "memory", "id": "m-1"}]
        for other in ({"action": {"name": "forget"}}, {"resource": {"type": "x"}}):
            assert find(world, "resource", **wish | other)["results"] == []

    def test_whom_nobody_has_met_finds_nothing_and_neither_does_a_stop(self, world: World) -> None:
        for nobody in (user("nobody"), user("usr_nobody"), {"type": "robot", "id": "alice"}):
            assert find(world, "resource", **WITH_WHAT | {"subject": nobody})["results"] == []
        Subject.objects.update(blocked_at=timezone.now())
        assert find(world, "resource", **WITH_WHAT)["results"] == []


class TestActions:
    def test_what_the_user_may_do(self, world: World) -> None:
        assert find(world, "action", **WHAT)["results"] == [{"name": "recall"}]
        assert find(world, "action", **WHAT | {"resource": RECALL})["results"] == [{"name": "tools/call"}]
        assert find(world, "action", **WHAT | {"resource": CAPTURE})["results"] == []
        assert find(world, "action", **WHAT | {"subject": user("nobody")})["results"] == []
        assert find(world, "action", **WHAT | {"resource": {"type": "mem", "id": "m"}})["results"] == []


class TestPages:
    @pytest.mark.parametrize(("limit", "expected"), [(1, [1, 1, 1]), (2, [2, 1]), (3, [3]), (10**9, [3]), (None, [3])])
    def test_every_result_is_on_one_page(self, world: World, limit: int | None, expected: list[int]) -> None:
        pages = all_pages(world, "subject", limit, **WHO)
        assert [page["page"]["count"] for page in pages] == [len(page["results"]) for page in pages] == expected
        assert [one for page in pages for one in ids(page)] == uids()

    def test_names_are_paged_as_users_are(self, world: World) -> None:
        world.grant.scopes.add(Scope.objects.get(name="memory:write"))
        for kind, members, expected in (
            ("resource", WITH_WHAT, ["memory.capture", "memory.recall"]), ("action", WHAT, ["capture", "recall"]),
        ):  # fmt: skip
            pages = all_pages(world, kind, 1, **members)
            assert [one for page in pages for one in ids(page)] == expected

    def test_no_results_are_no_end(self, world: World) -> None:
        found = find(world, "subject", **WHO, page={"limit": 0})
        assert found["results"] == [] and found["page"]["next_token"]
        assert ids(find(world, "subject", **WHO, page={"token": found["page"]["next_token"]})) == uids()

    def test_a_token_is_of_one_search_of_one_backend(self, world: World) -> None:
        token = find(world, "subject", **WHO, page={"limit": 1})["page"]["next_token"]
        others: list[tuple[str, Any]] = [
            ("subject", WHO | {"resource": CAPTURE}), ("subject", WHO | {"context": {}}), ("resource", WITH_WHAT),
        ]  # fmt: skip
        for kind, members in others:
            response = world.post(f"/access/v1/search/{kind}", members | {"page": {"token": token}})
            assert response.status_code == 400
            assert response.json()["type"] == "urn:muniment:problem:invalid-page-token"
        assert not {uid for uid in uids() if uid.encode() in urlsafe_b64decode(token)}, "it tells nobody's uid"
        for forged in ("x", "A" * 16, token[:-4], f"AAAA{token[4:]}", token + "AAAA", "é", "\x00", "%ff.%ff", "usr_x"):
            assert world.post("/access/v1/search/subject", WHO | {"page": {"token": forged}}).status_code == 400

    @pytest.mark.parametrize(
        "page", [{"limit": -1}, {"limit": "1"}, {"limit": 1.5}, {"token": 5}, {"token": "x" * 1025}, []]
    )
    def test_a_page_that_is_none_is_a_400(self, world: World, page: Any) -> None:
        assert world.post("/access/v1/search/subject", WHO | {"page": page}).status_code == 400


class TestTheRecord:
    @pytest.mark.parametrize(("kind", "members"), SEARCHES)
    def test_what_was_asked_is_recorded_and_not_whom_it_found(self, world: World, kind: str, members: Any) -> None:
        found = find(world, kind, **members)
        record, statement = Record.objects.get(id=found["context"]["record"]), said(found["context"])
        assert (record.type, record.decision, record.reason, record.client) == ("evaluation", None, None, "claude")
        assert (statement["asserted"], statement["search"]) == (True, kind)
        assert statement["results"] == len(found["results"]) > 0
        assert (record.tool, record.subject is None) == (
            ("memory.recall", True) if kind == "subject" else (None, False)
        )
        for uid in ids(found) if kind == "subject" else ("alice", "m-55"):
            assert uid.encode() not in bytes(record.statement)
        opened = details.opened(record, statement).members
        assert opened.get("named") == (None if kind == "subject" else {"type": "user", "id": "alice"})
        assert opened.get("resource") == ({"type": "memory", "id": "m-55"} if kind == "action" else None)

    def test_a_revoked_grant_is_gone_from_the_very_next_search(self, world: World) -> None:
        version = find(world, "resource", **WITH_WHAT)["context"]["policy_version"]
        world.grant.delete()
        found = find(world, "resource", **WITH_WHAT)
        assert found["results"] == [] and found["context"]["policy_version"] > version
