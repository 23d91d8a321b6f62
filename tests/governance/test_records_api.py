"""GET /v1/records and /v1/records/{id}: what the owner of a staff key may read, exactly as it was hashed, page by page,
and never who anybody is."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client as HttpClient

from audit import search_scan
from audit.entries import lookup
from audit.models import Record
from audit.viewer import viewer_of
from governance import records_api, schema, staff_keys
from tests import world
from tests.world import World


class Tool:
    """An auditor's tool, with a key."""

    def __init__(self) -> None:
        owner = get_user_model().objects.create_user("ada", "", "correct horse battery", is_staff=True)
        owner.user_permissions.add(Permission.objects.get(codename="view_record"))
        self.key = staff_keys.issue(owner, "command:staff_key", "")[1]
        self.http = HttpClient()

    def get(self, path: str) -> Any:
        return self.http.get(path, headers={"Authorization": f"Bearer {self.key}"})

    def found(self, query: str = "", **given: Any) -> dict[str, Any]:
        answer = self.get(f"/v1/records?{query or urlencode(given)}")
        assert answer.status_code == 200, answer.content
        assert answer.headers["Cache-Control"] == "no-store"
        body: dict[str, Any] = answer.json()
        return body

    def ids(self, **given: Any) -> list[str]:
        return [item["id"] for item in self.found(**given)["items"]]

    def refused(self, query: str) -> dict[str, Any]:
        answer = self.get(f"/v1/records?{query}")
        assert answer.status_code == 400, answer.content
        assert answer.headers["Content-Type"] == "application/problem+json"
        body: dict[str, Any] = answer.json()
        assert body["type"] == "urn:muniment:problem:invalid-parameter"
        return body


@pytest.fixture
def made(db: None) -> World:
    return world.build()


@pytest.fixture
def tool(made: World) -> Tool:
    return Tool()


def calls(made: World, count: int) -> list[str]:
    """The ids of some calls, oldest first."""
    return [made.verify(request={"id": f"r{number}"})["record"] for number in range(count)]


def test_a_record_is_told_exactly_as_it_was_hashed(made: World, tool: Tool) -> None:
    answered = made.verify()
    [item] = tool.found(type="decision")["items"]
    row = Record.objects.get(id=answered["record"])
    assert (item["id"], item["index"]) == (answered["record"], answered["receipt"]["index"])
    assert item["leaf"] == answered["receipt"]["leaf"]
    raw = tool.get(f"/v1/records/{row.id}").content
    assert bytes(row.statement) in raw
    statement = json.dumps(item["statement"], sort_keys=True, separators=(",", ":")).encode()
    assert base64.b64decode(item["leaf"]) == sha256(b"\0" + statement).digest()
    assert datetime.fromisoformat(item["at"]) == row.at


def test_nothing_personal_leaves(made: World, tool: Tool) -> None:
    made.verify(
        token=world.token(sub="zenobia"), resource={"type": "memory", "id": "diary-of-zenobia"},
        request={"id": "req-zenobia", "ip": "203.0.113.77", "user_agent": "Zenobia/1.0"},
    )  # fmt: skip
    said = tool.get("/v1/records").content + tool.get("/v1/records?request_id=req-zenobia&window=1h").content
    for secret in (b"zenobia@example.com", b'"zenobia"', b"diary-of", b"203.0.113.77", b"Zenobia/1.0"):
        assert secret not in said
    assert b"usr_" in said


class TestFilters:
    def test_each_filter_finds_its_records_and_no_others(self, made: World, tool: Tool) -> None:
        allowed = made.verify(request={"id": "r1", "trace_id": "t1"})
        other = made.verify(token=world.token(sub="bob"), agent={"mode": "background"})
        denied = made.verify("memory.capture", resource={"type": "memory", "id": "m_1"})
        assert denied["decision"] == "deny"
        a, o, d = allowed["record"], other["record"], denied["record"]
        assert tool.ids(type="decision") == [d, o, a]
        assert tool.ids(decision="deny") == [d] and tool.ids(decision="allow") == [o, a]
        assert tool.ids(reason=denied["reason"]) == [d]
        assert tool.ids(subject=other["subject"]["uid"]) == [o]
        assert tool.ids(tool="memory.capture") == [d] and tool.ids(tool="memory.nothing") == []
        assert tool.ids(client="claude") == [d, o, a] and tool.ids(client="chatgpt") == []
        assert tool.ids(backend="inner", type="decision") == [d, o, a] and tool.ids(backend="outer") == []
        assert tool.ids(mode="background") == [o] and tool.ids(scope="memory:write") == [d]
        assert tool.ids(request_id="r1") == [a] and tool.ids(trace_id="t1") == [a] and tool.ids(request_id="r2") == []
        assert tool.ids(flagged="true") == [] and tool.ids(flagged="false", type="decision") == [d, o, a]
        key = lookup("resource", "memory\x00m_1").hex()
        assert tool.ids(resource_key=key) == [d] and tool.ids(session_key=key) == []
        assert tool.ids(decision="allow", mode="background", client="claude") == [o]
        stranger = made.verify(token=None)["record"]
        assert tool.ids(client="-", type="decision") == [stranger]
        assert tool.ids(tenant="-", type="decision") == [stranger, d, o, a]
        assert tool.ids(decision="deny", mode="background") == []

    def test_the_time_window_is_always_on(self, made: World, tool: Tool) -> None:
        first, second, third = calls(made, 3)
        at = [Record.objects.get(id=record).at for record in (first, second, third)]
        body = tool.found()
        assert {item["id"] for item in body["items"]} >= {first, second, third}
        assert datetime.fromisoformat(body["until"]) - datetime.fromisoformat(body["since"]) > timedelta(days=7)
        since, until = at[1].isoformat(), at[2].isoformat()
        assert tool.ids(since=since, until=until, type="decision") == [second]
        assert tool.ids(since=since, type="decision") == [third, second]
        eastern = at[1].astimezone(UTC).replace(tzinfo=None).isoformat() + "+00:00"
        assert tool.ids(since=eastern, type="decision") == [third, second]

    @pytest.mark.parametrize(
        ("query", "names"),
        [
            ("reasn=granted", "reasn"), ("email=alice@example.com", "email"), ("sub=alice", "sub"),
            ("session_id=s", "session_id"), ("decision=maybe", "decision"),
            ("decision=allow&decision=deny", "decision"),
            ("decision=", "decision"), ("flagged=1", "flagged"), ("mode=everything", "mode"),
            ("subject=alice@example.com", "subject"), ("subject=usr_" + "x" * 40, "subject"),
            ("request_key=" + "0" * 32, "request_key"), ("session_key=" + "0" * 31, "session_key"),
            ("resource_key=" + "G" * 32, "resource_key"), ("window=2y", "window"),
            ("window=1y&since=2026-01-01T00:00:00Z", "window"),
            ("since=yesterday", "since"), ("since=2026-01-01", "since"), ("since=2026-01-01T00:00:00", "since"),
            ("since=2026-02-30T00:00:00Z", "since"), ("since=0001-01-01T00:00:00%2B23:59", "since"),
            ("until=2026-01-01T00:00:00Z", "since"), ("since=9999-12-31T23:59:59Z", "since"),
            ("since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "since"),
            ("limit=0", "limit"), ("limit=51", "limit"), ("limit=-1", "limit"), ("limit=1e3", "limit"),
            ("limit=99999999999999999999", "limit"),
            ("limit=%D9%A3", "limit"), ("cursor=x", "cursor"), ("cursor=" + "A" * 41, "cursor"),
            ("cursor=%00", "cursor"),
            ("cursor=" + base64.urlsafe_b64encode(b"o-1").decode(), "cursor"),
            ("cursor=" + base64.urlsafe_b64encode(b"o99999999999999999999").decode(), "cursor"),
            ("tool=%00", "tool"), ("tool=a%00b", "tool"), ("client=" + "x" * 256, "client"), ("tenant=%0A", "tenant"),
            ("type=Decision", "type"), ("%00=1", "?"), ("a" * 5000 + "=1", "a" * 40),
        ],
    )  # fmt: skip
    def test_what_is_not_understood_is_refused_by_name_and_not_repeated(
        self, tool: Tool, query: str, names: str
    ) -> None:
        detail = tool.refused(query)["detail"]
        assert detail.startswith(f"`{names}`: ")
        assert "alice" not in detail and "\0" not in detail

    def test_too_many_parameters_are_refused(self, tool: Tool) -> None:
        tool.refused("&".join(f"type={number}" for number in range(1001)))

    @pytest.mark.parametrize("value", ["\ud800", "a" * 255, "' OR 1=1 --", "%", "日本"])
    def test_hostile_values_find_nothing(self, made: World, tool: Tool, value: str) -> None:
        calls(made, 1)
        for name in ("tool", "client", "tenant", "backend", "scope"):
            assert tool.found(f"{name}={quote(value.encode('utf-8', 'surrogatepass'))}")["items"] == []

    def test_the_description_names_exactly_the_parameters_that_are_taken(self) -> None:
        assert {name for name, _, _ in schema._SEARCH} == records_api.KNOWN


class TestPages:
    def test_they_lead_from_the_newest_to_the_oldest_and_back_without_a_gap(self, made: World, tool: Tool) -> None:
        made_ids = calls(made, 7)[::-1]
        body = tool.found(type="decision", limit=3)
        forward = [body]
        while body["next"]:
            body = tool.get(body["next"]).json()
            forward.append(body)
        assert [[item["id"] for item in page["items"]] for page in forward] == [
            made_ids[:3], made_ids[3:6], made_ids[6:]
        ]  # fmt: skip
        back = []
        while body["previous"]:
            body = tool.get(body["previous"]).json()
            back.append([item["id"] for item in body["items"]])
        assert back == [made_ids[3:6], made_ids[:3]]
        assert forward[0]["previous"] is None

    def test_a_link_stays_the_same_page_when_newer_records_come(self, made: World, tool: Tool) -> None:
        calls(made, 5)
        link = tool.found(type="decision", limit=2)["next"]
        before = tool.get(link).json()
        assert link.startswith("/v1/records?") and "window" not in link
        calls(made, 3)
        after = tool.get(link).json()
        assert after["items"] == before["items"] and after["next"] == before["next"]

    def test_a_full_page_has_fifty(self, made: World, tool: Tool) -> None:
        calls(made, 52)
        body = tool.found(type="decision")
        assert len(body["items"]) == 50
        rest = tool.get(body["next"]).json()
        assert len(rest["items"]) == 2 and rest["next"] is None
        again = tool.get(rest["previous"]).json()
        assert again["items"] == body["items"]

    def test_a_search_that_read_enough_says_how_far_it_came_and_goes_on(
        self, made: World, tool: Tool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        denied = [made.verify("memory.capture")["record"]]
        calls(made, 12)
        monkeypatch.setattr(search_scan, "BUDGET", 4)
        body, found, pages = tool.found(client="claude", decision="deny"), [], 0
        assert body["items"] == [] and body["reached"] is not None
        while pages < 20:
            found += [item["id"] for item in body["items"]]
            pages += 1
            if body["next"] is None:
                break
            body = tool.get(body["next"]).json()
        assert found == denied and 2 < pages < 10 and body["reached"] is None

    def test_beyond_the_last_record_there_is_a_way_back(self, made: World, tool: Tool) -> None:
        [oldest, *_] = calls(made, 3)
        at = Record.objects.get(id=oldest).at
        empty = tool.found(type="decision", cursor=records_api.cursor("o", at))
        assert empty["items"] == [] and empty["next"] is None
        assert [item["id"] for item in tool.get(empty["previous"]).json()["items"]][-1] == oldest

    def test_nothing_found_is_an_empty_page(self, tool: Tool) -> None:
        body = tool.found(client="nobody")
        assert (body["items"], body["next"], body["previous"]) == ([], None, None)


class TestOneRecord:
    def test_it_comes_with_its_outcome(self, made: World, tool: Tool) -> None:
        record = made.verify()["record"]
        assert tool.get(f"/v1/records/{record}").json()["outcome"] is None
        outcome = made.post(f"/v1/records/{record}/outcome", {"status": "ok"}).json()["record"]
        body = tool.get(f"/v1/records/{record}").json()
        assert body["outcome"] == outcome
        assert tool.get(f"/v1/records/{outcome}").json()["statement"]["parent"] == record

    @pytest.mark.parametrize(
        "record",
        [
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "not-a-uuid",
            "%00",
            "x" * 500,
        ],
    )
    def test_an_unknown_one_is_a_404(self, tool: Tool, record: str) -> None:
        answer = tool.get(f"/v1/records/{record}")
        assert answer.status_code == 404 and answer.headers["Content-Type"] == "application/problem+json"

    def test_other_methods_change_nothing(self, made: World, tool: Tool) -> None:
        record = made.verify()["record"]
        for path in ("/v1/records", f"/v1/records/{record}"):
            for method in ("post", "put", "patch", "delete"):
                answer = getattr(tool.http, method)(path, headers={"Authorization": f"Bearer {tool.key}"})
                assert answer.status_code == 405 and answer.headers["Allow"] == "GET, HEAD"
        head = tool.http.head("/v1/records", headers={"Authorization": f"Bearer {tool.key}"})
        assert head.status_code == 200

    def test_one_whose_bytes_somebody_spoiled_is_still_told(self, made: World, tool: Tool) -> None:
        record = Record(index=1, at=datetime(2026, 1, 1, tzinfo=UTC), statement=b"\xff{", leaf=bytes(32))
        assert records_api.item(record)["statement"] is None


def test_a_viewer_of_some_tenants_sees_those_alone(made: World, tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    from clients.models import Issuer

    Issuer.objects.update(tenant_claim="org")
    ours = made.verify(token=world.token(org="acme"))["record"]
    theirs = made.verify(token=world.token(sub="eve", org="globex"))["record"]
    nobodys = made.verify(token=world.token(sub="bob"))["record"]
    assert set(tool.ids(type="decision")) == {ours, theirs, nobodys}
    monkeypatch.setattr(staff_keys, "viewer_of", lambda user: replace(viewer_of(user), tenants=frozenset({"acme"})))
    assert tool.ids() == [ours] and tool.ids(tenant="globex") == []
    assert tool.get(f"/v1/records/{ours}").status_code == 200
    hidden = tool.get(f"/v1/records/{theirs}")
    unknown = tool.get("/v1/records/019a0000-0000-7000-8000-000000000000")
    assert hidden.status_code == 404 and hidden.content == unknown.content
    assert tool.get(f"/v1/records/{nobodys}").status_code == 404


def test_the_description_has_both_paths_under_the_staff_key(db: None) -> None:
    described = HttpClient().get("/v1/schema", headers={"Accept": "application/vnd.oai.openapi+json"}).json()
    assert described["components"]["securitySchemes"]["staffKey"]["bearerFormat"] == "sk_<key id>_<secret>"
    for path in ("/v1/records", "/v1/records/{record}"):
        assert described["paths"][path]["get"]["security"] == [{"staffKey": []}]
