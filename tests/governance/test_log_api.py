"""The endpoints of the sealed log: checkpoint, tiles, proofs; over a log that is sealed by hand."""

import base64
import http.client
import json
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.test import Client
from django.utils import timezone
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audit.models import Record
from muniment import checkpoints, merkle, notes, proofs, tiles
from tests import live
from tests.audit import sealers
from tests.audit.trees import HandSealed, cosigned
from tests.staff import drained
from tests.world import World, build
from tools.credentials import issue
from tools.models import Backend, BackendKey

SOME = "019a0000-0000-7000-8000-000000000000"
FOR_EVER = "public, max-age=31536000, immutable"


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def sealed(world: World) -> HandSealed:
    """A log of 700 leaves that no records have."""
    sealed = HandSealed()
    sealed.seal(leaves(700))
    return sealed


def leaves(count: int) -> list[bytes]:
    return [sha256(b"%d" % index).digest() for index in range(count)]


def problem(response: Any, status: int, kind: str) -> str:
    """Its detail, after a look at what every problem has."""
    assert response.status_code == status, response.content
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["type"] == f"urn:muniment:problem:{kind}"
    return str(response.json()["detail"])


def inclusion(world: World, record: str, key: str | None = None) -> Any:
    headers = {"Authorization": f"Bearer {world.key if key is None else key}"}
    return world.http.get("/v1/log/proof/inclusion", {"record": record}, headers=headers)


def raw(texts: list[str]) -> list[bytes]:
    return [base64.b64decode(text) for text in texts]


# --- checkpoint ---


def test_without_a_checkpoint_there_is_a_404_that_says_so(world: World) -> None:
    response = world.http.get("/v1/log/checkpoint")
    problem(response, 404, "not-sealed-yet")
    assert response.headers["Retry-After"] == "1"
    HandSealed()
    problem(world.http.get("/v1/log/checkpoint"), 404, "not-sealed-yet")


def test_the_newest_checkpoint_is_public_never_cached_and_has_its_cosignatures(sealed: HandSealed) -> None:
    newest, witness = sealed.seal(leaves(3)), Ed25519PrivateKey.generate()
    cosigned(newest, witness)
    response = Client().get("/v1/log/checkpoint")
    assert (response.status_code, response.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert response.headers["Cache-Control"] == "no-store"
    assert checkpoints.read(response.text, [sealed.key]).size == 703
    key = notes.Key("witness.example", notes.COSIGNATURE, witness.public_key().public_bytes_raw())
    assert notes.verify(notes.Note.parse(response.text), key)


def test_an_older_log_is_served_below_its_number(world: World, sealed: HandSealed) -> None:
    second = HandSealed(number=2, start=700)
    problem(world.http.get("/v1/log/checkpoint"), 404, "not-sealed-yet")
    second.seal(leaves(5))
    for path, log, size in [("", second, 5), ("1/", sealed, 700), ("2/", second, 5)]:
        found = checkpoints.read(world.http.get(f"/v1/log/{path}checkpoint").text, [log.key])
        assert (found.origin, found.size) == (log.log.origin, size)
        assert world.http.get(f"/v1/log/{path}tile/0/000.p/5").content == b"".join(leaves(5))
        answer = world.http.get(f"/v1/log/{path}proof/consistency", {"from": 2, "to": 5}).json()
        assert (answer["log"], answer["from"], answer["to"]) == (log.number, 2, 5)
    for number in (0, 3, 32_768, 10**30):
        problem(world.http.get(f"/v1/log/{number}/checkpoint"), 404, "not-found")


# --- tiles ---


def test_from_the_tiles_alone_the_tree_can_be_built(sealed: HandSealed) -> None:
    def read(level: int, index: int) -> bytes:
        width = min(256, (700 >> 8 * level) - 256 * index)
        response = Client().get(f"/v1/log/tile/{tiles.path(level, index, width)}")
        assert (response.status_code, response.headers["Content-Type"]) == (200, "application/octet-stream")
        assert response.headers["Cache-Control"] == FOR_EVER
        return response.content

    tree = tiles.Tree(700, read)
    assert tree.root() == merkle.root(leaves(700))
    assert tree.leaves(0, 700) == leaves(700)


@pytest.mark.parametrize("path", ["0/000", "0/001", "0/002.p/188", "0/002.p/1", "0/000.p/255", "1/000.p/2"])
def test_what_the_newest_checkpoint_covers_is_there(sealed: HandSealed, path: str) -> None:
    assert Client().get(f"/v1/log/tile/{path}").status_code == 200


@pytest.mark.parametrize(
    "path",
    ["0/002.p/189", "0/002", "0/003.p/1", "0/003", "1/000.p/3", "1/000", "2/000.p/1", "63/000", "0/x999/999",
     "0/" + "x999/" * 12 + "999", "entries/000", "entries/000.p/3"],
)  # fmt: skip
def test_what_it_does_not_cover_is_not(sealed: HandSealed, path: str) -> None:
    response = Client().get(f"/v1/log/tile/{path}")
    problem(response, 404, "not-found")
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    ["", "0", "0/", "0/0", "0/0000", "0/000.p/0", "0/000.p/256", "0/000.p/", "0/000.p", "64/000", "-1/000", "00/000",
     "0/x000/000", "0/001/000", "0/ 00", "0/٠٠٠", "0/000/", "//", "../checkpoint", "%00", "0/000%00", "%ff",
     "0/000%0a"],
)  # fmt: skip
def test_what_is_no_tile_is_not_found(sealed: HandSealed, path: str) -> None:
    problem(Client().get(f"/v1/log/tile/{path}"), 404, "not-found")


def test_a_tree_with_holes_is_an_outage(sealed: HandSealed, superuser_url: str) -> None:
    import psycopg

    with psycopg.connect(superuser_url, autocommit=True) as superuser:
        superuser.execute("SET session_replication_role = replica")
        superuser.execute("UPDATE audit_tile SET hashes = substr(hashes, 1, 64) WHERE level = 0 AND index = 2")
        superuser.execute("DELETE FROM audit_tile WHERE level = 0 AND index = 1")
    for path in ("tile/0/001", "tile/0/002.p/3", "proof/consistency?from=300&to=700"):
        problem(Client().get(f"/v1/log/{path}"), 503, "unavailable")


# --- consistency ---


@pytest.mark.parametrize(("first", "size"), [(1, 1), (1, 700), (255, 256), (256, 257), (300, 699), (700, 700)])
def test_two_sizes_are_shown_to_be_consistent(sealed: HandSealed, first: int, size: int) -> None:
    answer = Client().get("/v1/log/proof/consistency", {"from": first, "to": size}).json()
    roots = merkle.root(leaves(first)), merkle.root(leaves(size))
    assert merkle.verify_consistency(first, size, *roots, raw(answer["path"]))


@pytest.mark.parametrize(
    ("query", "name"),
    [("", "from"), ("from=1", "to"), ("to=2", "from"), ("from=0&to=5", "from"), ("from=6&to=5", "from"),
     ("from=1&to=701", "to"), ("from=1&to=0", "to"), ("from=-1&to=5", "from"), ("from=1.0&to=5", "from"),
     ("from=1&to=" + "9" * 5000, "to"), ("from=" + "9" * 15 + "&to=700", "from"), ("from=1&from=2&to=5", "from"),
     ("from=%00&to=5", "from"), ("from=%D9%A1&to=5", "from"), ("from=1&to=5%0A", "to"), ("from=%ff&to=5", "from"),
     ("from=+1&to=5", "from"), ("&".join(f"from{n}=1" for n in range(1100)), "from")],
)  # fmt: skip
def test_a_wrong_size_is_a_400_that_names_it(sealed: HandSealed, query: str, name: str) -> None:
    detail = problem(Client().get(f"/v1/log/proof/consistency?{query}"), 400, "invalid-parameter")
    assert detail.startswith(f"`{name}`:")


# --- inclusion ---


def test_a_sealed_record_is_proven_to_its_backend(world: World) -> None:
    sealed = HandSealed()
    for _ in range(3):
        world.verify()
    answer = world.verify()
    sealed.seal()
    found = inclusion(world, answer["record"]).json()
    record = Record.objects.get(id=answer["record"])
    leaf = merkle.leaf_hash(bytes(record.statement))
    assert (found["record"], found["index"], found["leaf_index"]) == (answer["record"], record.index, record.index)
    assert (found["log"], found["leaf"]) == (1, answer["receipt"]["leaf"])
    checkpoint = checkpoints.read(found["checkpoint"], [sealed.key])
    assert checkpoint.size == found["size"]
    path = raw(found["path"])
    assert merkle.verify_inclusion(leaf, found["leaf_index"], found["size"], path, checkpoint.root)
    proof = proofs.Proof.parse(found["tlog_proof"])
    assert proofs.verify(proof, leaf, [sealed.key]) == checkpoint
    with pytest.raises(proofs.ProofError):
        proofs.verify(proof, merkle.leaf_hash(bytes(record.statement) + b" "), [sealed.key])


def test_what_a_real_sealer_sealed_is_proven_with_the_published_key(world: World, tmp_path: Path) -> None:
    answer = world.verify()
    sealer = sealers.sealer(tmp_path)
    try:
        sealers.sealed(sealer)
    finally:
        sealer.close()
    [jwk] = [key for key in world.http.get("/v1/keys").json()["keys"] if key["use"] == "log"]
    key = notes.Key.parse(jwk["vkey"])
    found = inclusion(world, answer["record"]).json()
    proofs.verify(proofs.Proof.parse(found["tlog_proof"]), base64.b64decode(answer["receipt"]["leaf"]), [key])
    tile = world.http.get(f"/v1/log/tile/0/000.p/{found['size']}").content
    root = checkpoints.read(world.http.get("/v1/log/checkpoint").text, [key]).root
    assert merkle.root([tile[at : at + 32] for at in range(0, len(tile), 32)]) == root


def test_in_a_later_log_the_leaf_counts_from_its_start(world: World) -> None:
    HandSealed()
    world.verify()
    start = Record.objects.count()
    second = HandSealed(number=2, start=start)
    answer = world.verify()
    second.seal()
    found = inclusion(world, answer["record"]).json()
    index = answer["receipt"]["index"]
    assert (found["log"], found["index"], found["leaf_index"]) == (2, index, index - start)
    leaf = base64.b64decode(found["leaf"])
    assert proofs.verify(proofs.Proof.parse(found["tlog_proof"]), leaf, [second.key])


def test_before_it_is_sealed_there_is_a_404_that_says_when_to_come_back(world: World) -> None:
    early = world.verify()["record"]
    problem(inclusion(world, early), 404, "not-sealed-yet")
    sealed = HandSealed()
    sealed.seal()
    late = world.verify()["record"]
    assert inclusion(world, early).status_code == 200
    response = inclusion(world, late)
    problem(response, 404, "not-sealed-yet")
    assert response.headers["Retry-After"] == "1"


def test_another_backends_record_is_answered_like_none(world: World) -> None:
    sealed = HandSealed()
    record = world.verify()["record"]
    sealed.seal()
    other = issue(Backend.objects.create(slug="other", name="Other", audiences=["x"]))
    foreign, none = inclusion(world, record, other), inclusion(world, "00000000-0000-7000-8000-000000000000", other)
    problem(foreign, 404, "record-unknown")
    assert foreign.content == none.content
    # Nor a record that is no backend's.
    drained()
    policy = Record.objects.exclude(backend="inner").first()
    assert policy is not None
    assert inclusion(world, str(policy.id)).content == none.content


def test_without_a_key_or_with_a_revoked_one_there_is_no_proof(world: World) -> None:
    record = world.verify()["record"]
    HandSealed().seal()
    assert inclusion(world, record).status_code == 200
    problem(inclusion(world, record, "mk_AAAAAAAAAAAA_" + "A" * 43), 401, "not-authenticated")
    problem(world.http.get(f"/v1/log/proof/inclusion?record={record}"), 401, "not-authenticated")
    BackendKey.objects.update(revoked_at=timezone.now())
    problem(inclusion(world, record), 401, "not-authenticated")


@pytest.mark.parametrize(
    "record", ["", "x", "\x00", "1" * 32, f"{{{SOME}}}", f"urn:uuid:{SOME}", f"{SOME}\n", "é" * 36, "٠" * 36]
)
def test_what_is_no_record_id_is_a_400(world: World, record: str) -> None:
    assert problem(inclusion(world, record), 400, "invalid-parameter").startswith("`record`:")


@pytest.mark.parametrize("record", ["f" * 8 + "-ffff-ffff-ffff-" + "f" * 12, str(UUID(int=0))])
def test_an_id_of_any_time_is_at_most_unknown(world: World, record: str) -> None:
    problem(inclusion(world, record), 404, "record-unknown")


# --- all of them ---

PATHS = ["/v1/log/checkpoint", "/v1/log/tile/0/000", "/v1/log/proof/consistency", "/v1/log/proof/inclusion",
         "/v1/log/1/checkpoint", "/v1/log/1/tile/0/000", "/v1/log/1/proof/consistency"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["post", "put", "delete", "patch", "options"])
def test_another_method_is_a_405(sealed: HandSealed, path: str, method: str) -> None:
    response = getattr(Client(), method)(path)
    problem(response, 405, "method-not-allowed")
    assert response.headers["Allow"] == "GET, HEAD"


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40), prefix=st.sampled_from(["", "tile/", "tile/0/", "1/", "1/tile/", "proof/", "99/"]))
@example(text="9" * 5000 + "/checkpoint", prefix="")
@example(text="x" * 9000, prefix="tile/")
@example(text="\x00", prefix="proof/")
def test_no_path_is_an_internal_error(sealed: HandSealed, text: str, prefix: str) -> None:
    path = "/v1/log/" + prefix + quote(text, safe="/", errors="surrogatepass")
    assert Client().get(path).status_code in (200, 400, 404)


@settings(max_examples=150, deadline=None)
@given(
    query=st.dictionaries(
        st.sampled_from(["from", "to", "record", "wait", "x"]),
        st.text(max_size=30) | st.integers().map(str) | st.uuids().map(str),
        max_size=3,
    )
)
def test_no_parameter_is_an_internal_error(world: World, sealed: HandSealed, query: dict[str, str]) -> None:
    text = "&".join(f"{name}={quote(value, errors='surrogatepass')}" for name, value in query.items())
    assert Client().get(f"/v1/log/proof/consistency?{text}").status_code in (200, 400)
    headers = {"Authorization": f"Bearer {world.key}"}
    assert Client().get(f"/v1/log/proof/inclusion?{text}", headers=headers).status_code in (400, 404)


def test_head_is_get_without_the_body_on_a_real_server(world: World, sealed: HandSealed) -> None:
    with live.web(workers=1) as [server]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=live.TIMEOUT)
        for path, cache in [
            ("/v1/log/tile/0/000", FOR_EVER), ("/v1/log/tile/0/002.p/7", FOR_EVER), ("/v1/log/checkpoint", "no-store"),
            ("/v1/log/tile/0/003", "no-store"),
        ]:  # fmt: skip
            seen = []
            for method in ("GET", "HEAD"):  # over one connection, which a body that is too much would spoil
                connection.request(method, path)
                response = connection.getresponse()
                seen.append((response.status, response.headers["Content-Length"], response.headers["Cache-Control"]))
                body = response.read()
                assert len(body) == (int(response.headers["Content-Length"]) if method == "GET" else 0)
            assert seen[0] == seen[1]
            assert seen[0][2] == cache
        connection.request("GET", "/v1/log/proof/consistency?from=5&to=9")
        assert len(json.loads(connection.getresponse().read())["path"]) > 0
        connection.close()


def test_the_description_has_each_of_them(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    found = world.http.get("/v1/schema", headers={"Accept": "application/json"}).json()["paths"]
    public = [path.replace("0/000", "{tile}") for path in PATHS if "/1/" not in path]
    older = [path.replace("/log/", "/log/{number}/") for path in public if "inclusion" not in path]
    assert {path for path in found if path.startswith("/v1/log/")} == {*public, *older}
    names = [operation["operationId"] for path in found.values() for operation in path.values()]
    assert len(names) == len(set(names))
    assert found["/v1/log/checkpoint"]["get"]["security"] == [{}]
    assert "security" not in found["/v1/log/proof/inclusion"]["get"]
    assert [p["name"] for p in found["/v1/log/{number}/tile/{tile}"]["get"]["parameters"]] == ["number", "tile"]
    assert "wait" in [parameter["name"] for parameter in found["/v1/verify"]["post"]["parameters"]]
    assert capsys.readouterr().err == ""


def test_the_key_of_a_log_has_the_name_that_its_checkpoints_have(world: World) -> None:
    from audit import keys

    private = Ed25519PrivateKey.generate()
    sealed = HandSealed(private=private)
    kid = keys.publish(private, "log")
    world.verify()
    sealed.seal()
    listed = {key["kid"]: key for key in world.http.get("/v1/keys").json()["keys"]}
    assert notes.Key.parse(listed[kid]["vkey"]) == sealed.key
    assert checkpoints.read(world.http.get("/v1/log/checkpoint").text, [notes.Key.parse(listed[kid]["vkey"])])
    assert {notes.Key.parse(key["vkey"]).name.partition("/")[2] for key in listed.values()} == {"log", "writer"}
