"""The page of retention: rules, floors, what goes next and what went, for those who may see them; and changing them, by
those who may, with a reason, each a record."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.test import Client as HttpClient

from audit import recent_sign_in
from audit.models import Record, RetentionFloor, RetentionRule, RetentionRun
from audit.retention import changes
from audit.retention.changes import BelowFloor, RuleError
from tests.audit.retained import Past, hold, past, rule
from tests.staff import administrator, member, newest
from tests.world import build

SEE, CHANGE = "audit.view_retentionrule", "audit.change_retentionrule"
GIVEN = {"type": "", "sensitive": "", "backend": "", "client": "", "tenant": "", "days": "400",
         "basis": "Art. 6(1)(f)", "reason": "a review"}  # fmt: skip


@pytest.fixture
def officer(db: None) -> HttpClient:
    build()
    return member("petra", SEE, CHANGE)


def text(response: Any) -> str:
    assert response.status_code == 200, response.status_code
    return " ".join(response.content.decode().split())


def user_of(http: HttpClient) -> Any:
    from django.contrib.auth import get_user_model

    return get_user_model().objects.get(pk=http.session["_auth_user_id"])


def test_an_empty_page_says_that_everything_is_kept(db: None) -> None:
    build()
    page = text(member("vera", SEE).get("/admin/retention/"))
    assert "There is no rule: every record is kept." in page and "No run yet." in page and "No legal hold" in page
    assert "Add a rule" not in page
    assert all(words in page for words in ("EU AI Act", "10.5.1", "164.316(b)(2)(i)", "CC7.2"))


def test_a_rule_is_added_changed_and_removed_and_each_is_recorded(officer: HttpClient) -> None:
    made = officer.post("/admin/retention/add/", GIVEN | {"type": "decision", "client": "claude", "sensitive": "no"})
    assert made.status_code == 302, text(made)
    row = RetentionRule.objects.get()
    assert (row.type, row.client, row.sensitive, row.days, row.backend) == ("decision", "claude", False, 400, None)
    columns = {"type": "decision", "client": "claude", "sensitive": False, "days": 400}
    told = newest("retention")
    assert (told["action"], told["rule"], told["new"], told.get("old")) == ("rule.added", row.pk, columns, None)
    assert told["actor"].startswith("staff:") and "review" not in str(told) and "6(1)" not in str(told)
    page = text(officer.get(f"/admin/retention/{row.pk}/"))
    assert 'value="400"' in page and "Art. 6(1)(f)" in page
    changed = officer.post(
        f"/admin/retention/{row.pk}/", GIVEN | {"type": "decision", "client": "claude", "days": "30"}
    )
    assert changed.status_code == 302
    told = newest("retention")
    assert (told["action"], told["old"]["days"], told["new"]["days"]) == ("rule.changed", 400, 30)
    assert "30 days" in text(officer.get("/admin/retention/"))
    assert officer.post(f"/admin/retention/{row.pk}/remove/", {"reason": "done"}).status_code == 302
    assert (newest("retention")["action"], RetentionRule.objects.count()) == ("rule.removed", 0)
    assert officer.get(f"/admin/retention/{row.pk}/remove/").status_code == 404


def test_without_the_permission_nothing_is_seen_and_nothing_changed(db: None) -> None:
    build()
    made = rule(30)
    paths = ["/admin/retention/add/", "/admin/retention/floors/", f"/admin/retention/{made.pk}/",
             f"/admin/retention/{made.pk}/remove/"]  # fmt: skip
    stranger, viewer = member("noor"), member("vera", SEE)
    assert stranger.get("/admin/retention/").status_code == 403
    for path in paths:
        assert viewer.get(path).status_code == 403 and viewer.post(path, GIVEN).status_code == 403, path
    for change in (lambda u: changes.save_rule(u, None, {"days": 1}, "x", "x"),
                   lambda u: changes.remove_rule(u, made.pk, "x"),
                   lambda u: changes.set_floors(u, {"hipaa": "warn"}, "x")):  # fmt: skip
        with pytest.raises(PermissionDenied):
            change(user_of(viewer))
    assert RetentionRule.objects.get().days == 30 and not RetentionFloor.objects.exists()


def test_a_change_asks_for_a_sign_in_that_is_recent(officer: HttpClient) -> None:
    session = officer.session
    session[recent_sign_in.SIGNED_IN_AT] = 1
    session.save()
    response = officer.post("/admin/retention/add/", GIVEN)
    assert response.status_code == 302 and "sign" in response["Location"] and not RetentionRule.objects.exists()
    assert "show again who you are" in text(officer.get("/admin/retention/add/"))


def test_a_change_without_the_token_of_its_form_is_refused(officer: HttpClient) -> None:
    strict = HttpClient(enforce_csrf_checks=True)
    strict.cookies = officer.cookies
    assert strict.post("/admin/retention/add/", GIVEN).status_code == 403
    assert officer.get("/admin/retention/", GIVEN).status_code == 200 and not RetentionRule.objects.exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"days": "0"}, "greater than or equal to 1"), ({"days": "36501"}, "less than or equal to"),
        ({"days": "x"}, "whole number"), ({"days": ""}, "required"), ({"basis": ""}, "required"),
        ({"reason": " "}, "required"), ({"type": "policy"}, "Select a valid choice"),
        ({"type": "outcome"}, "Select a valid choice"), ({"tenant": "a\x07b"}, "cannot be printed"),
        ({"type": "staff", "sensitive": "yes"}, "Only calls"), ({"client": "x" * 65}, "no name that a record can have"),
        ({"basis": "x" * 2001}, "at most 2000"), ({"days": "9" * 400}, "less than or equal"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_at_its_field(officer: HttpClient, wrong: dict[str, str], words: str) -> None:
    page = text(officer.post("/admin/retention/add/", GIVEN | wrong))
    assert words in page and "Nothing is changed yet" in page and not RetentionRule.objects.exists()


def test_two_rules_for_exactly_the_same_are_one_too_many(officer: HttpClient) -> None:
    rule(30, client="claude")
    page = text(officer.post("/admin/retention/add/", GIVEN | {"client": "claude"}))
    assert "There is a rule for exactly this already" in page and RetentionRule.objects.count() == 1


def test_a_rule_below_a_floor_that_refuses_is_a_field_error_that_names_source_and_days(officer: HttpClient) -> None:
    wanted = {"eu-ai-act": "refuse", "pci-dss": "off", "hipaa": "off", "soc-2": "off", "reason": "counsel"}
    assert officer.post("/admin/retention/floors/", wanted).status_code == 302
    told = newest("retention")
    assert (told["action"], told["preset"], told["old"], told["new"]) == ("floor.set", "eu-ai-act", "off", "refuse")
    page = text(officer.post("/admin/retention/add/", GIVEN | {"days": "183"}))
    assert "at least 184 days" in page and "Articles 19(1) and 26(6)" in page and not RetentionRule.objects.exists()
    assert officer.post("/admin/retention/add/", GIVEN | {"days": "183", "confirmed": "on"}).status_code == 200
    assert officer.post("/admin/retention/add/", GIVEN | {"days": "184"}).status_code == 302
    for_others = GIVEN | {"days": "30", "sensitive": "no"}
    assert officer.post("/admin/retention/add/", for_others).status_code == 302


def test_a_rule_below_a_floor_that_warns_is_saved_once_that_is_confirmed(officer: HttpClient) -> None:
    RetentionFloor.objects.create(preset="pci-dss", mode="warn")
    page = text(officer.post("/admin/retention/add/", GIVEN | {"days": "90"}))
    assert "10.5.1" in page and "Keep for a shorter time than that" in page and not RetentionRule.objects.exists()
    assert "Keep for a shorter time" not in text(officer.get("/admin/retention/add/"))
    assert officer.post("/admin/retention/add/", GIVEN | {"days": "90", "confirmed": "on"}).status_code == 302
    assert "below PCI DSS" in text(officer.get("/admin/retention/"))
    with pytest.raises(BelowFloor):
        changes.save_rule(user_of(officer), None, {"days": 30, "type": "staff"}, "x", "x")


def test_a_floor_that_comes_later_is_said_of_the_rules_below_it(officer: HttpClient) -> None:
    rule(30)
    RetentionFloor.objects.create(preset="hipaa", mode="refuse")
    assert "HIPAA refuses less than" in text(officer.get("/admin/retention/"))


def test_floors_are_set_once_and_strange_ones_are_not(officer: HttpClient) -> None:
    user = user_of(officer)
    assert changes.set_floors(user, {"hipaa": "warn", "soc-2": "off"}, "x") == 1
    assert changes.set_floors(user, {"hipaa": "warn"}, "x") == 0
    for wanted in ({"nis-2": "warn"}, {"hipaa": "perhaps"}):
        with pytest.raises(RuleError):
            changes.set_floors(user, wanted, "x")
    assert "Select a valid choice" in text(officer.post("/admin/retention/floors/", {"hipaa": "no", "reason": "x"}))


def test_removing_a_rule_says_what_its_records_go_by_then(officer: HttpClient) -> None:
    first, _ = rule(30, type="decision", client="claude"), rule(700)
    assert "all records: 700 days" in text(officer.get(f"/admin/retention/{first.pk}/remove/"))
    RetentionRule.objects.filter(days=700).delete()
    assert "its records are kept, unless" in text(officer.get(f"/admin/retention/{first.pk}/remove/"))


@pytest.fixture
def log(db: None, tmp_path: Path) -> Iterator[Past]:
    with past(tmp_path, 2026, 1, 5) as made:
        yield made


def test_the_page_previews_what_goes_and_tells_what_went(log: Past) -> None:
    log.call(4, outcome=True)
    log.call(1, user="held")
    log.at(2026, 2, 10).call(3)
    log.at(2026, 3, 1).call()
    hold(until=datetime(2026, 1, 1, tzinfo=UTC))
    rule(30, type="decision")
    rule(36500, client="nobody")
    http = administrator()
    page = text(http.get("/admin/retention/"))
    assert "9 records of January 2026 go" in page and "3 records of February 2026 go" in page
    assert log.retain(datetime(2026, 3, 1, 12, tzinfo=UTC)).state == "done"
    page = text(http.get("/admin/retention/"))
    assert '>9</span> of <span class="num">9</span> records deleted' in page and "January 2026" in page
    assert "9 records of January" not in page
    record = Record.objects.filter(type="retention").latest("at")
    assert "Muniment set out to delete 9 records of January 2026" in text(http.get(f"/admin/records/{record.pk}/"))


def test_a_run_that_failed_says_why(log: Past) -> None:
    RetentionRun.objects.using("owner").create(
        state="failed", began_at=log.now, words="a lock could not be had. It is tried again within five minutes."
    )
    assert "a lock could not be had" in text(administrator().get("/admin/retention/"))
