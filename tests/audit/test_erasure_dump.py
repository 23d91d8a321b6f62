"""After an erasure the person is nowhere: not in a dump of the database, in exports of every format made afterwards, in
the log of the process, in Redis, nor in the files beside it. All proofs hold, and every other user is untouched."""

import base64
import io
import logging
import os
import subprocess
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django.conf import settings
from django.db import connections

from audit import subjects, verification
from audit.erasure import asking, erasing
from audit.models import DataKey, Head, PublishedKey, Record, Subject
from governance import idempotency
from governance.embedded_postgres import binaries
from muniment import verify
from tests.audit.exporting import AUDITOR, Desk, desk, staff
from tests.audit.test_erasure import ASKED, KEYS
from tests.staff import drained, signed_in
from tests.world import ISSUER, World, build, token

SUB, EMAIL = "zq-Marguerite.7781", "marguerite.qz@nowhere-7781.example"
CALL = {
    "request": {"id": "r-7781", "trace_id": "t-7781", "session_id": "s-7781", "ip": "203.0.113.77"},
    "resource": {"type": "memory", "id": f"of-{SUB}"},
}
FORMATS = ("jsonl", "csv", "parquet", "ocsf", "bundle")
PERSONAL = ("sub", "email", "resource")


def forms(text: str) -> set[bytes]:
    """A text as it may stand in a file: as it is, escaped, in hexadecimal, and in base64 wherever it begins."""
    raw = text.encode()
    found = {raw, raw.lower(), raw.upper(), quote(text).encode(), raw.hex().encode(), raw.hex().upper().encode()}
    found |= {raw.decode().encode("utf-16-le"), raw[::-1]}
    for shift in range(3):
        padded = base64.b64encode(b"\x00" * shift + raw)
        # Without the characters that what stands before and behind has a part in.
        whole = padded[(0, 2, 3)[shift] : len(padded) - 4]
        found |= {whole, whole.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


NAMED = forms(SUB) | forms(EMAIL)


def names(data: bytes) -> list[bytes]:
    """What of the person stands in some bytes, also within a zip."""
    found = [form for form in NAMED if form in data]
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found += [form for name in archive.namelist() for form in names(archive.read(name))]
    return found


def test_the_search_finds_what_it_is_to_find() -> None:
    for shift in range(5):
        said = b"x" * shift + f"{SUB} or {EMAIL}!".encode()
        for data in (said, base64.b64encode(said), base64.urlsafe_b64encode(said), said.hex().encode(), said.upper()):
            assert names(data), data
    assert not names(b"somebody else entirely <someone@nowhere.example>")


def dump(url: str) -> bytes:
    """All of the database, as its owner."""
    if not os.environ.get("MUNIMENT_TESTS_OWN_SERVERS"):
        pytest.skip("the database server is not the embedded one, whose pg_dump is at hand")
    done = subprocess.run([binaries() / "pg_dump", url], capture_output=True, timeout=60, check=True)
    assert b"audit_record" in done.stdout and b"PostgreSQL database dump complete" in done.stdout
    return done.stdout


def redis() -> bytes:
    """All that Redis holds: keys and values, as they are stored."""
    store = idempotency.store()
    return b"\n".join(key + b" " + (store.dump(key) or b"") for key in store.scan_iter("*"))


def beside() -> bytes:
    """The files of the process, without those of the servers."""
    var = settings.MUNIMENT_VAR
    files = [path for path in var.rglob("*") if path.is_file() and "servers" not in path.relative_to(var).parts]
    return b"\n".join(path.read_bytes() for path in files)


def person(world: World, officer: Any) -> str:
    """Everything that touches a user: calls, an outcome, a retried call, one refused, questions, looks of staff."""
    bearer = token(SUB, email=EMAIL)
    answer = world.verify(token=bearer, **CALL)
    uid = str(answer["subject"]["uid"])
    outcome = {"status": "ok", "count": 1, "resources": [{"type": "memory", "id": f"of-{SUB}"}]}
    assert world.post(f"/v1/records/{answer['record']}/outcome", outcome).status_code == 201
    body = {"token": bearer, "tool": "memory.recall", **CALL}
    for _ in range(2):
        assert world.post("/v1/verify", body, **{"Idempotency-Key": "once-7781"}).status_code == 200
    world.verify(token=bearer, tool="memory.capture", **CALL)
    asked = {"subject": {"type": "user", "id": SUB}, "action": {"name": "tools/call"},
             "resource": {"type": "tool", "id": "memory.recall"}}  # fmt: skip
    assert world.post("/access/v1/evaluation", asked).status_code == 200
    http = signed_in(officer)
    assert http.post("/admin/people/", {"person": EMAIL}).status_code == 302
    assert EMAIL in http.post(f"/admin/timeline/user/{uid}/").content.decode()
    assert http.post(f"/admin/people/{uid}/report/", {"since": "2020-01-01", "until": "2030-01-01"}).status_code == 200
    return uid


@pytest.fixture
def made(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> Any:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(settings, "MUNIMENT_EXPORT_PERSONAL", True)
    with desk(tmp_path, monkeypatch) as found:
        yield found
    connections["owner"].close()


def exported(made: Desk, officer: Any, called: str) -> dict[str, bytes]:
    """A file of each format with all that it can hold of users, and its manifest."""
    drained()
    made.seal()
    until, found = Head.objects.get().at, {}
    for kind in FORMATS:
        tabular = kind in ("jsonl", "csv", "parquet")
        given: dict[str, Any] = {"columns": ("time", "user", *PERSONAL), "personal": True} if tabular else {}
        export = made.export(officer, name=f"{called} {kind}", format=kind, reason="a request", **given)
        run = made.worked(made.run(export, until - timedelta(hours=1), until, file=f"{called}.{kind}"))
        assert run.state == "done", (kind, run.words)
        found[kind] = made.path(run).read_bytes() + b"\n" + run.manifest.encode()
        if kind == "bundle":
            with made.path(run).open("rb") as file:
                found_in_it = [one.code for one in verify.verify_file(file, made.trust).findings]
            assert set(found_in_it) <= {"keys-untrusted"}, "of the writer, whose key the desk does not hand out"
        else:
            assert made.findings(run) == []
    return found


def rows(uid: str) -> list[Any]:
    """All that the database has of a user."""
    columns = [field.name for field in Record._meta.fields]
    return [
        list(Subject.objects.filter(uid=uid).values_list()), list(DataKey.objects.filter(holder=uid).values_list()),
        list(Record.objects.filter(subject=uid).order_by("index").values_list(*columns)),
    ]  # fmt: skip


def test_an_erased_person_is_nowhere_all_proofs_hold_and_all_others_are_as_they_were(
    made: Desk, owner_url: str, caplog: Any
) -> None:
    world = build()
    officer = staff("pia", *AUDITOR, "audit.view_personal", "audit.add_erasure", "audit.view_subject")
    uid = person(world, officer)
    theirs_too = CALL | {"resource": {"type": "memory", "id": "of-bob"}}
    other = str(world.verify(token=token("bob"), **theirs_too)["subject"]["uid"])
    assert names(exported(made, officer, "before")["jsonl"]), "until then an export names the person"
    user, key = Subject.objects.get(uid=uid), DataKey.objects.get(holder=uid)
    hashes = [subjects.identity_key(ISSUER, SUB), subjects.email_key(EMAIL), bytes(key.wrapped), bytes(user.sub or b"")]
    ids = Record.objects.filter(subject=uid, type="decision").values_list(*KEYS)[0]
    before, content = dump(owner_url), rows(other)
    assert all(one.hex().encode() in before for one in hashes) and not names(before)
    for path in made.folder.iterdir():  # of those who have them; what is made afterwards is looked at
        path.unlink()

    asking.ask(officer, uid, **ASKED)
    erasing.work()

    files = exported(made, officer, "after")
    after = dump(owner_url)
    places = {"dump": after, "redis": redis(), "log": caplog.text.encode(), "beside": beside(), **files}
    assert {place: names(data) for place, data in places.items() if names(data)} == {}
    assert uid.encode() in after and uid.encode() in files["jsonl"] and b"bob@example.com" in files["jsonl"]
    assert not any(one.hex().encode() in after for one in hashes)
    theirs = Record.objects.filter(subject=uid)
    assert not theirs.filter(**{f"{name}__isnull": False for name in KEYS}).exists() and all(ids)
    assert theirs.filter(type="decision").count() >= 3, "what was counted stays counted"
    assert rows(other) == content
    trust = made.trust
    trust.writers |= {one.key_id: bytes(one.public) for one in PublishedKey.objects.filter(use="writer")}
    assert verification.verify(trust=trust).findings == []
