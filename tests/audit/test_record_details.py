"""The record page's protected details: what of a user is opened by POST for those who may, recorded first; what staff
did is readable by every auditor; what was forgotten or tampered with says so."""

import json
import re
from typing import Any
from uuid import UUID

import pytest
from django.db import DatabaseError, connections
from django.test import Client as HttpClient

from audit import details, record_view, subjects
from audit.models import Outbox, Record
from audit.record_page import read
from audit.staff_log import tell
from tests.staff import drained, member, newest, statement
from tests.world import World, build

AUDITOR, PRIVACY = ("audit.view_record",), ("audit.view_record", "audit.view_personal")
REQUEST = {
    "id": "req-77", "trace_id": "trace-5", "session_id": "ses-9", "ip": "203.0.113.9", "user_agent": "Claude-User/1.0",
}  # fmt: skip


@pytest.fixture
def world(db: None) -> World:
    return build()


def call(world: World) -> str:
    """A call with everything that is protected, and its outcome."""
    answer = world.verify(request=REQUEST, resource={"type": "memory", "id": "m_1"}, tenant=None)
    touched = {"status": "ok", "count": 2, "resources": [{"type": "memory", "id": f"m_{n}"} for n in (41, 42)]}
    world.post(f"/v1/records/{answer['record']}/outcome", touched)
    return str(answer["record"])


def opened(http: HttpClient, record: Any) -> Any:
    return http.post(f"/admin/records/{record}/details/")


def looks() -> list[dict[str, Any]]:
    drained()
    told = [statement(r) for r in Record.objects.filter(type="staff")]
    return [one for one in told if one["action"] == "personal.view"]


def test_a_privacy_officer_sees_the_details_and_the_look_is_recorded(world: World) -> None:
    record = call(world)
    answer = opened(member("pia", *PRIVACY), record)
    text = answer.content.decode()
    for word in ("alice", "alice@example.com", "req-77", "ses-9", "203.0.113.9", "Claude-User/1.0", "memory m_1"):
        assert f">{word}<" in text
    assert "memory m_41\nmemory m_42" in text  # what was touched is on the outcome's record
    assert "no-store" in answer["Cache-Control"]
    told = newest("staff")
    assert (told["action"], told["record"]) == ("personal.view", record)
    assert told["subject"] == statement(Record.objects.get(id=record))["subject"]


def test_the_page_alone_shows_and_records_nothing(world: World) -> None:
    record = call(world)
    text = member("pia", *PRIVACY).get(f"/admin/records/{record}/").content.decode()
    assert "Show protected details" in text and "alice" not in text and "203.0.113.9" not in text
    assert looks() == []


def test_without_the_right_nothing_is_opened_and_nobody_is_told(world: World) -> None:
    record, auditor = call(world), member("ada", *AUDITOR)
    text = auditor.get(f"/admin/records/{record}/").content.decode()
    assert "Privacy officers can open them" in text and "Show protected details" not in text
    assert opened(auditor, record).status_code == 403
    assert opened(member("pat", "audit.view_personal"), record).status_code == 403
    assert looks() == []


def test_nothing_opens_on_get(world: World) -> None:
    assert member("pia", *PRIVACY).get(f"/admin/records/{call(world)}/details/").status_code == 405


def test_what_cannot_be_told_is_not_shown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **more: Any) -> None:
        raise DatabaseError("no")

    record, http = call(world), member("pia", *PRIVACY)
    monkeypatch.setattr(record_view, "tell", refuse)
    answer = opened(http, record)
    assert answer.status_code == 302 and b"alice" not in answer.content
    text = http.get(answer["Location"]).content.decode()
    assert "could not be recorded" in text and "alice" not in text


def test_the_look_is_told_before_the_details_are_opened(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(*given: Any) -> Any:
        assert Outbox.objects.filter(kind="staff", members__action="personal.view").exists()
        return real(*given)

    record, real = call(world), record_view.show
    monkeypatch.setattr(record_view, "show", check)
    assert opened(member("pia", *PRIVACY), record).status_code == 200


def test_a_destroyed_key_reads_forgotten_even_if_this_process_still_has_it(world: World) -> None:
    record = call(world)
    uid = statement(Record.objects.get(id=record))["subject"]
    destroy(uid)
    text = opened(member("pia", *PRIVACY), record).content.decode()
    assert "Forgotten." in text and "alice" not in text


def destroy(holder: str) -> None:
    """As an erasure does; the serving role may not."""
    with connections["owner"].cursor() as cursor:
        cursor.execute("DELETE FROM audit_datakey WHERE holder = %s", [holder])
    connections["owner"].close()


@pytest.mark.parametrize("change", ["disclosures", "leaf", "swapped", "committed", "holder"])
def test_what_was_tampered_with_does_not_open(world: World, change: str) -> None:
    record, other = (Record.objects.get(id=call(world)) for _ in range(2))
    said = read(record)
    match change:
        case "disclosures":
            data = bytes(record.disclosures or b"")
            record.disclosures = data[:-1] + bytes([data[-1] ^ 1])
        case "leaf":
            record.leaf = bytes(32)
        case "swapped":
            record.disclosures = other.disclosures
        case "committed":
            said = {**said, "_sd": said["_sd"][1:]}
        case "holder":
            record.holder = subjects.resolve("https://id.example/", "mallory")
    assert details.opened(record, said).state == "broken"
    assert details.opened(other, read(other)).state == "open"


def test_what_is_not_there_is_said_so(world: World) -> None:
    record = Record.objects.get(id=call(world))
    record.disclosures = None
    assert details.opened(record, read(record)).state == "gone"
    assert details.opened(record, {"_sd": []}).state == "none"
    assert details.opened(record, {"_sd": "nonsense"}).state in ("broken", "gone")


def test_every_auditor_reads_who_changed_policy_and_why(world: World) -> None:
    mara = member("mara", "clients.view_client", "clients.change_client")
    mara.post(f"/admin/clients/client/{world.client.pk}/act/suspend/", {"reason": "an incident <b>"})
    drained()
    record = Record.objects.filter(type="policy").latest("at")
    text = member("ada", *AUDITOR).get(f"/admin/records/{record.id}/").content.decode()
    assert "an incident &lt;b&gt;" in text and re.search(r"<bdi>mara</bdi></strong>,\s*Staff member", text)
    assert "Show protected details" not in text
    assert looks() == []


def test_what_is_of_a_user_in_a_record_of_staff_stays_closed(world: World) -> None:
    tell("staff:1", "Mara", "demo.thing", {"reason": "seen", "email": "alice@example.com"}, subject="usr_1")
    drained()
    record = Record.objects.filter(type="staff").latest("at")
    text = member("ada", *AUDITOR).get(f"/admin/records/{record.id}/").content.decode()
    assert "seen" in text and "alice@" not in text and "1 protected detail." in text
    assert "alice@example.com" in opened(member("pia", *PRIVACY), record.id).content.decode()


def test_callers_who_were_not_established_are_protected_too(world: World) -> None:
    record = world.verify(token=None, request=REQUEST)["record"]
    assert "203.0.113.9" not in member("ada", *AUDITOR).get(f"/admin/records/{record}/").content.decode()
    assert "203.0.113.9" in opened(member("pia", *PRIVACY), record).content.decode()
    assert "subject" not in newest("staff")


def test_the_page_leads_to_what_is_around(world: World) -> None:
    record = call(world)
    drained()
    answer = member("ada", *AUDITOR).get(f"/admin/records/{record}/")
    led = {link.words: link.url for link in answer.context["around"]}
    uid = statement(Record.objects.get(id=record))["subject"]
    assert led["All records of the same session"].startswith("/admin/records/?window=1h&session_key=")
    assert led["Everything of this user"] == f"/admin/timeline/user/{uid}/?window=1h"
    assert led["All calls of memory.recall"] == "/admin/timeline/tool/inner/memory.recall/?window=1h"
    version = Record.objects.filter(type="policy").latest("at")
    policy = next(url for words, url in led.items() if words.startswith("What made policy version"))
    assert policy == f"/admin/records/{version.id}/"
    assert "ses-9" not in answer.content.decode()


@pytest.mark.parametrize("kind", ["request", "review", "signal", "ungoverned", "of the future"])
def test_each_kind_of_record_has_a_title(kind: str) -> None:
    from audit.record_words import TYPES, title

    assert title({"type": kind, "actor": "staff:1", "action": "some.thing"}, {})
    assert kind in TYPES or kind == "of the future"


def test_a_sentence_of_staff_survives_whatever_the_statement_lacks() -> None:
    from audit.record_words import STAFF_ACTIONS, title

    for action in [*STAFF_ACTIONS, "with {braces}", "{"]:
        assert title({"type": "staff", "action": action}, {})


def test_one_of_many_is_told_as_one() -> None:
    from audit.record_words import title

    said = {"type": "staff", "actor": "staff:7", "action": "export.done", "run": 1, "export": 11}
    assert title({**said, "records": 1}, {}).endswith("of run 1 of export 11, with 1 record")
    for many in (0, 11, 21):
        assert title({**said, "records": many}, {}).endswith(f"with {many} records")


def test_an_unknown_record_has_no_details(world: World) -> None:
    assert opened(member("pia", *PRIVACY), UUID(int=2**127)).status_code == 404


def test_erased_in_another_process(world: World) -> None:
    record = Record.objects.get(id=call(world))
    assert details.opened(record, read(record)).state == "open"
    destroy(record.holder or "")
    assert details.opened(record, read(record)).state == "forgotten"


@pytest.mark.parametrize(
    "statement",
    [
        {"type": "decision", "required": 5}, {"type": "decision", "grants": "x"}, {"type": "decision", "agent": []},
        {"type": "decision", "agent": {"chain": [1]}}, {"type": "policy", "changes": [1]},
        {"type": "denials", "counts": 1}, {"type": "policy", "changes": [{"old": 1}]},
        {"type": "outcome", "outcome": "x"}, {"type": "decision", "_sd": {}},
        {"type": "staff", "actor": 5, "action": {"a": 1}, "subject": []}, {"type": 5},
        {"type": "decision", "policy": 1}, {"type": "notice", "action": [1]}, {"type": "key"},
        {"type": "decision", "client": [], "tool": {}, "parent": 1},
        {"type": "request", "request": "../x", "record": "x", "review": -1, "grant": 10**30},
    ],
)  # fmt: skip
def test_whatever_somebody_wrote_over_a_statement_is_shown(world: World, statement: dict[str, Any]) -> None:
    """Not an error of the server: the page is where people look for what was tampered with."""
    record, ada = Record.objects.get(id=call(world)), member("ada", *AUDITOR)
    with connections["owner"].cursor() as cursor:
        cursor.execute("ALTER TABLE audit_record DISABLE TRIGGER muniment_append_only")
        data = json.dumps(statement).encode()
        cursor.execute("UPDATE audit_record SET statement = %s WHERE at = %s", [data, record.at])
        cursor.execute("ALTER TABLE audit_record ENABLE TRIGGER muniment_append_only")
    connections["owner"].close()
    for url in (f"/admin/records/{record.id}/", f"/admin/timeline/user/{record.subject}/"):
        assert ada.get(url).status_code == 200, url
    assert "does not hold" in ada.get(f"/admin/records/{record.id}/").content.decode()
    assert opened(member("pia", *PRIVACY), record.id).status_code == 200


def column(record: Record, name: str, value: Any) -> None:
    """As somebody with the database does; the statement stays."""
    with connections["owner"].cursor() as cursor:
        cursor.execute("ALTER TABLE audit_record DISABLE TRIGGER muniment_append_only")
        cursor.execute(f"UPDATE audit_record SET {name} = %s WHERE at = %s", [value, record.at])
        cursor.execute("ALTER TABLE audit_record ENABLE TRIGGER muniment_append_only")
    connections["owner"].close()


def test_a_look_is_recorded_of_whom_the_statement_names_whatever_the_column_says(world: World) -> None:
    record = Record.objects.get(id=call(world))
    column(record, "subject", "usr_somebody_else")
    assert "alice@example.com" in opened(member("pia", *PRIVACY), record.id).content.decode()
    assert newest("staff")["subject"] == record.subject


def test_another_calls_outcome_is_not_opened_with_a_call(world: World) -> None:
    record, other = (Record.objects.get(id=call(world)) for _ in range(2))
    outcome = Record.objects.get(parent=record.id)
    column(outcome, "parent", None)
    column(Record.objects.get(parent=other.id), "parent", record.id)
    text = opened(member("pia", *PRIVACY), record.id).content.decode()
    assert "alice@example.com" in text and "m_41" not in text
