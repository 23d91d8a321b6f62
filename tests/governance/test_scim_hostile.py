"""SCIM under attack: bodies, patches, filters and addresses that nobody honest sends are answered as errors of SCIM,
change nothing, and say nothing of the inside."""

import json
import uuid
from typing import Any

import pytest
from django.db import OperationalError

from clients.models import ScimUser
from clients.scim import store
from tests import scim, world
from tests.scim import Provider, problem


@pytest.fixture
def okta(db: None) -> Provider:
    world.build()
    return scim.connect()


HOSTILE = [
    b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe{}", b'{"userName":"a","userName":"b"}',
    b'{"userName":"a","USERNAME":"b"}',
    b'{"userName":NaN}', b"[" * 30_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"schemas":[],"userName":"\\ud800"}',
    b'{"schemas":[],"userName":"\\u0000"}', b'{"schemas":[],"externalId":"a","userName":""}',
    b'{"schemas":[],"externalId":"a\\n","userName":"a"}', b'{"schemas":["x"],"externalId":"a","userName":"a"}',
    b'{"schemas":{},"externalId":"a","userName":"a"}', b'{"externalId":"a","userName":["a"]}',
    b'{"externalId":"a","userName":{"$ne":1}}', b'{"externalId":"a","userName":"a","active":"perhaps"}',
    b'{"externalId":"a","userName":"a","emails":{"value":1}}', b'{"externalId":"a","userName":"a","emails":[[]]}',
    b'{"externalId":"a","userName":"a","name":7}', json.dumps({"externalId": "a", "userName": "a" * 256}).encode(),
    b'{"externalId":"a","userName":"a","meta":[],"id":{}}', b'{"externalId":"a","userName":"a","active":1e400}',
    b'{"externalId":"a","userName":"a","active":[]}',
]  # fmt: skip
OPERATIONS: list[Any] = [
    [], {}, None, [1], [None], [{}], [{"op": "remove"}], [{"op": "add"}], [{"op": "move", "path": "active"}],
    [{"op": "replace", "path": "id", "value": "x"}], [{"op": "remove", "path": "userName"}],
    [{"op": "replace", "path": "userName", "value": None}], [{"op": "replace", "path": "userName", "value": ""}],
    [{"op": "replace", "path": "(" * 500, "value": 1}], [{"op": "replace", "path": 7, "value": 1}],
    [{"op": "add", "path": 'emails[type eq "\\ud800"].value', "value": "x"}],
    [{"op": "replace", "path": "emails[not (" * 40 + 'type eq "x"' + ")]" * 40, "value": "x"}],
    [{"op": "replace", "value": []}], [{"op": "replace", "path": "active", "value": {"a": {"b": 1}}}],
    [{"op": "replace", "path": "schemas", "value": ["urn:x"]}], [{"op": "remove", "path": "schemas"}],
    [{"op": "replace", "path": "meta.version", "value": "x"}], [{"op": "replace", "path": "name", "value": "x"}],
    [{"op": "add", "path": "emails", "value": [{"primary": True}, {"primary": True}]}],
    [{"op": "replace", "path": "active", "value": False}] * 51,
    [{"op": "add", "path": "emails", "value": [{"value": str(number)} for number in range(51)]}],
    [{"op": "add", "path": "emails", "value": [{"value": str(number)} for number in range(3000)]},
     {"op": "remove", "path": "emails"}],
    [{"op": "replace", "path": "externalId", "value": "a\u200b" * 300}],
]  # fmt: skip
FILTERS = [
    "(", ")", "userName", "userName eq", "eq eq eq", 'userName ne "a"', 'userName co "a"', 'userName sw "a"',
    "userName pr", 'not (userName eq "a")', 'userName eq "a" or userName eq "b"', 'userName gt "a"', "userName eq 1",
    "userName eq null", "userName eq true", 'emails.value eq "a"', 'emails[type eq "work"]', 'password eq "a"',
    'foo eq "bar"', 'name.familyName eq "a"', 'meta.version eq "1"', 'userName.x eq "a"', 'userName eq "a\\ud800"',
    'urn:x:userName eq "a"', "userName eq 'a'", 'userName eq "a"; DROP TABLE clients_scimuser', "\0", "'",
    " and ".join(['userName eq "a"'] * 20), " and ".join(['userName eq "a"'] * 10_000),
    "(" * 1200 + 'userName eq "a"' + ")" * 1200, "not (" * 400 + 'userName eq "a"' + ")" * 400,
]  # fmt: skip


class TestHostileInput:
    def test_bodies(self, okta: Provider) -> None:
        number = okta.made("kept")
        before = okta.call("GET", f"/Users/{number}").json()
        for body in HOSTILE:
            for method, path in (("POST", "/Users"), ("PUT", f"/Users/{number}")):
                status, kind = problem(okta.call(method, path, body))
                assert status == 400 and kind in ("invalidSyntax", "invalidValue"), (method, body[:80])
        assert problem(okta.call("POST", "/Users", b" " * 70_000)) == (413, None)
        assert problem(okta.call("POST", "/Users", b" " * 300_000)) == (413, None)
        assert problem(okta.call("POST", "/Users", {}, content_type="text/xml")) == (415, None)
        assert okta.call("GET", f"/Users/{number}").json() == before and ScimUser.objects.count() == 1

    def test_patches(self, okta: Provider) -> None:
        number = okta.made("kept")
        before = okta.call("GET", f"/Users/{number}").json()
        for operations in OPERATIONS:
            answer = okta.call("PATCH", f"/Users/{number}", {"schemas": [scim.PATCH], "Operations": operations})
            assert problem(answer)[0] == 400, (operations, answer.content)
        assert okta.call("GET", f"/Users/{number}").json() == before

    def test_a_user_does_not_grow_without_bound(self, okta: Provider) -> None:
        number = okta.made()
        sizes = [
            okta.patch(number, {"op": "add", "path": "emails", "value": [{"value": f"{turn}" * 20_000}]}).status_code
            for turn in range(5)
        ]
        assert sizes == [200, 200, 200, 400, 400]

    def test_filters(self, okta: Provider) -> None:
        okta.made("a")
        headers = {"Authorization": f"Bearer {okta.token}"}
        for text in FILTERS:
            answer = okta.http.get("/scim/v2/okta/Users", {"filter": text}, headers=headers)
            assert problem(answer)[0] == 400, text[:80]
            answer = okta.call("POST", "/.search", {"filter": text})
            assert problem(answer)[0] == (400 if len(text) < 60_000 else 413), text[:80]
        many = ",".join(["userName"] * 5000)
        assert problem(okta.call("POST", "/.search", {"attributes": many}))[0] == 400
        for other in (7, [], {}, True):
            assert problem(okta.call("POST", "/.search", {"filter": other}))[0] == 400

    def test_addresses_and_methods(self, okta: Provider) -> None:
        for path in ("/", "", "/Groups", "/Users/x/y", "/../../admin/", "/Users/%00", "/Schemas/urn:x", "/nope",
                     f"/Users/{uuid.uuid4()}", "/Users/" + "1" * 60):  # fmt: skip
            assert problem(okta.call("GET", path)) == (404, None), path
        for path in ("/Me", "/Bulk"):
            assert problem(okta.call("POST", path, {})) == (501, None)
        answer = okta.call("TRACE", "/Users")
        assert problem(answer) == (405, None) and answer["Allow"] == "GET, POST"
        assert problem(okta.call("GET", "/Schemas?filter=x")) == (403, None)
        assert okta.call("GET", "/Users/").status_code == 200

    def test_a_database_that_is_away_is_said_to_be(self, okta: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
        okta.made()

        def away(*_: Any) -> None:
            raise OperationalError("host=secret")

        monkeypatch.setattr(store, "one", away)
        answer = okta.call("GET", "/Users/x")
        assert problem(answer) == (503, None) and answer["Retry-After"] and b"secret" not in answer.content
