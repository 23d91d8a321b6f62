"""Staff keys: made once and shown once, by the command or in the admin; they have their owner's rights of now, are
throttled like backend keys, and each making and revoking is recorded without naming anybody."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.management import CommandError, call_command
from django.test import Client as HttpClient
from django.utils import timezone

from audit.models import Outbox, Record
from audit.recent_sign_in import SIGNED_IN_AT
from governance import staff_keys
from governance.budgets import Budgets
from governance.models import StaffKey
from tests import staff, world
from tests.world import World
from tools import credentials

FORM = re.compile(r"sk_([A-Za-z0-9]{12})_([A-Za-z0-9_-]{43})")


@pytest.fixture
def made(db: None) -> World:
    return world.build()


def auditor(name: str = "ada", *permissions: str) -> Any:
    """A member of staff who reads records."""
    user = get_user_model().objects.create_user(name, f"{name}@example.com", "correct horse battery", is_staff=True)
    for codename in ("view_record", *permissions):
        user.user_permissions.add(Permission.objects.get(codename=codename))
    return user


def ask(key: str, path: str = "/v1/records") -> Any:
    return HttpClient().get(path, headers={"Authorization": f"Bearer {key}"})


def key_of(user: Any, **more: Any) -> str:
    return staff_keys.issue(user, "command:staff_key", "", **more)[1]


class TestTheCommand:
    def test_create_prints_the_key_alone_and_keeps_no_secret(
        self, made: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        auditor()
        call_command("staff_key", "create", "ADA@example.com", "--label", "siem", "--days", "30")
        key = capsys.readouterr().out.strip()
        match = FORM.fullmatch(key)
        assert match and ask(key).status_code == 200
        row = StaffKey.objects.get(key_id=match[1])
        assert match[2].encode() not in bytes(row.digest) and row.label == "siem"
        assert row.expires_at is not None and (row.expires_at - row.created_at).days in (29, 30)

    def test_it_is_recorded_without_the_secret_and_without_a_name(
        self, made: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        owner = auditor()
        call_command("staff_key", "create", "ada", "--label", "of Ada Lovelace")
        key = capsys.readouterr().out.strip()
        told = staff.newest("staff")
        assert (told["action"], told["actor"]) == ("staff_key.make", "command:staff_key")
        assert (told["key"], told["owner"]) == (key.split("_")[1], f"staff:{owner.pk}")
        [record] = Record.objects.filter(type="staff")
        said = bytes(record.statement).decode()
        assert "Lovelace" not in said and "ada@" not in said and key.split("_", 2)[2] not in said

    def test_a_note_says_that_the_owner_may_not_read_records(
        self, made: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        get_user_model().objects.create_user("bob", "", "correct horse battery", is_staff=True)
        call_command("staff_key", "create", "bob")
        said = capsys.readouterr()
        assert FORM.fullmatch(said.out.strip()) and "403" in said.err

    def test_revoke_ends_a_key_at_the_next_call(self, made: World, capsys: pytest.CaptureFixture[str]) -> None:
        key = key_of(auditor())
        assert ask(key).status_code == 200
        call_command("staff_key", "revoke", key)
        assert capsys.readouterr().out == f"revoked {key.split('_')[1]}\n"
        assert ask(key).status_code == 401
        assert staff.newest("staff")["action"] == "staff_key.revoke"
        with pytest.raises(CommandError, match="revoked already") as again:
            call_command("staff_key", "revoke", key.split("_")[1])
        assert again.value.returncode == 2

    def test_list_shows_when_but_never_what(self, made: World, capsys: pytest.CaptureFixture[str]) -> None:
        key = key_of(auditor())
        call_command("staff_key", "list")
        head, line = capsys.readouterr().out.splitlines()
        assert line.split("\t")[:2] == [key.split("_")[1], "ada"] and head.count("\t") == line.count("\t")
        assert key.split("_", 2)[2] not in line

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["create", "nobody@example.com"], "no active member of staff"),
            (["create", ""], "no active member of staff"),
            (["create", "a\0b"], "no active member of staff"),
            (["create", "gone"], "no active member of staff"),
            (["create", "customer"], "no active member of staff"),
            (["create", "twice@example.com"], "several members"),
            (["create", "ada", "--days", "0"], "--days"),
            (["create", "ada", "--label", "a\nb"], "--label"),
            (["revoke", "nope"], "no key with this id"),
            (["revoke", "a\0b"], "no key with this id"),
        ],
    )
    def test_errors_are_one_line_and_exit_status_2(self, made: World, arguments: list[str], words: str) -> None:
        users = get_user_model().objects
        auditor()
        users.create_user("gone", "", "correct horse battery", is_staff=True, is_active=False)
        users.create_user("customer", "", "correct horse battery")
        for name in ("one", "two"):
            users.create_user(name, "twice@example.com", "correct horse battery", is_staff=True)
        with pytest.raises(CommandError, match=words) as error:
            call_command("staff_key", *arguments)
        assert error.value.returncode == 2 and "\n" not in str(error.value) and "\0" not in str(error.value)
        assert not StaffKey.objects.exists() and not Outbox.objects.filter(kind="staff").exists()


class TestAKey:
    def test_it_has_its_owners_rights_of_now(self, made: World) -> None:
        owner = auditor()
        key = key_of(owner)
        assert ask(key).status_code == 200
        owner.user_permissions.clear()
        answer = ask(key)
        assert answer.status_code == 403 and answer.json()["type"] == "urn:muniment:problem:not-permitted"

    @pytest.mark.parametrize("change", [{"is_active": False}, {"is_staff": False}])
    def test_it_ends_with_its_owners_account(self, made: World, change: dict[str, bool]) -> None:
        owner = auditor()
        key = key_of(owner)
        get_user_model().objects.filter(pk=owner.pk).update(**change)
        assert ask(key).status_code == 401

    def test_it_ends_when_it_expires(self, made: World) -> None:
        key = key_of(auditor(), days=1)
        assert ask(key).status_code == 200
        StaffKey.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        assert ask(key).status_code == 401

    def test_every_refusal_reads_the_same(self, made: World) -> None:
        owner = auditor()
        good, revoked, expired = (key_of(owner) for _ in range(3))
        StaffKey.objects.filter(key_id=revoked.split("_")[1]).update(revoked_at=timezone.now())
        StaffKey.objects.filter(key_id=expired.split("_")[1]).update(expires_at=timezone.now())
        wrong = good[:-1] + ("A" if good[-1] != "A" else "B")
        unknown = f"sk_{'A' * 12}_{'A' * 43}"
        answers = [ask(key) for key in (wrong, unknown, revoked, expired, "", "sk_x_y", made.key, f"{good}\u0660")]
        assert {answer.status_code for answer in answers} == {401}
        assert len({answer.content for answer in answers}) == 1
        assert all(answer.headers["WWW-Authenticate"] == "Bearer" for answer in answers)
        assert ask(good).status_code == 200

    def test_it_is_no_backend_key_and_a_backend_key_is_none(self, made: World) -> None:
        key = key_of(auditor())
        as_backend = "mk_" + key[3:]
        for path in ("/v1/verify", "/v1/verify/batch"):
            for given in (key, as_backend):
                assert made.post(path, {"token": None, "tool": "memory.recall"}, key=given).status_code == 401
        assert ask("sk_" + made.key[3:]).status_code == 401

    def test_a_session_of_the_admin_opens_nothing(self, made: World) -> None:
        http = staff.administrator()
        assert http.get("/v1/records").status_code == 401

    def test_when_it_was_used_is_noted_to_the_minute_and_at_most_once_a_minute(
        self, made: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key = key_of(auditor())
        assert ask(key).status_code == 200
        first = StaffKey.objects.get().last_used
        assert first is not None and (first.second, first.microsecond) == (0, 0)
        StaffKey.objects.update(last_used=None)
        assert ask(key).status_code == 200
        assert StaffKey.objects.get().last_used is None
        credentials._touched.clear()
        assert ask(key).status_code == 200
        assert StaffKey.objects.get().last_used is not None

    def test_wrong_keys_have_a_budget_and_a_good_one_is_let_through_it(
        self, made: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        few = Budgets(rate=0.001, burst=3)
        for module in ("records_api", "api"):
            monkeypatch.setattr(f"governance.{module}.budgets", few)
        good, late = key_of(auditor()), key_of(auditor("eve"))
        assert ask(good).status_code == 200
        unknown = f"sk_{'A' * 12}_{'A' * 43}"
        assert [ask(unknown).status_code for _ in range(5)] == [401, 401, 401, 429, 429]
        assert ask(unknown).headers["Retry-After"] == "1"
        assert ask(good).status_code == 200  # known to this process
        assert ask(late).status_code == 429  # not met before: it waits, as in any flood
        assert few._turned_away["", "staff_key"] == 7


class TestTheAdmin:
    def browser(self, user: Any, recent: bool = True) -> HttpClient:
        http = staff.signed_in(user)
        session = http.session
        session[SIGNED_IN_AT] = int(timezone.now().timestamp()) - (0 if recent else 3600)
        session.save()
        return http

    ADD = "/admin/governance/staffkey/add/"
    FORM = {"label": "notebook", "lasts": "30", "reason": "quarterly audit"}

    def test_a_member_of_staff_makes_a_key_for_themselves_and_sees_it_once(self, made: World) -> None:
        owner = auditor()
        http = self.browser(owner)
        assert http.get(self.ADD).status_code == 200 and not StaffKey.objects.exists()
        answer = http.post(self.ADD, self.FORM)
        [key] = re.findall(r'value="(sk_[^"]+)"', answer.content.decode())
        assert "no-store" in answer.headers["Cache-Control"] and ask(key).status_code == 200
        row = StaffKey.objects.get()
        assert row.owner_id == owner.pk and row.expires_at is not None
        assert key not in str(answer.cookies)
        shown = http.get(f"/admin/governance/staffkey/{row.pk}/change/").content.decode()
        assert row.key_id in shown and key.split("_", 2)[2] not in shown
        told = staff.newest("staff")
        assert (told["action"], told["actor"], told["key"]) == ("staff_key.make", f"staff:{owner.pk}", row.key_id)

    def test_whoever_signed_in_long_ago_shows_again_who_they_are(self, made: World) -> None:
        http = self.browser(auditor(), recent=False)
        for answer in (http.get(self.ADD), http.post(self.ADD, self.FORM)):
            assert answer.status_code == 302 and "next=" in answer.headers["Location"]
        assert not StaffKey.objects.exists()

    def test_whoever_may_not_read_records_makes_none(self, made: World) -> None:
        user = get_user_model().objects.create_user("bob", "", "correct horse battery", is_staff=True)
        http = self.browser(user)
        assert http.get(self.ADD).status_code == 403 and http.post(self.ADD, self.FORM).status_code == 403
        assert not StaffKey.objects.exists()

    @pytest.mark.parametrize(
        "change",
        [{"reason": ""}, {"label": ""}, {"lasts": "0"}, {"lasts": "9999999"}, {"label": "a\0b"}, {"label": "x" * 121},
         {"reason": "x" * 501}],
    )  # fmt: skip
    def test_what_is_wrong_is_said_at_the_field(self, made: World, change: dict[str, str]) -> None:
        answer = self.browser(auditor()).post(self.ADD, self.FORM | change)
        assert answer.status_code == 200 and b"errorlist" in answer.content
        assert not StaffKey.objects.exists()

    def test_one_sees_and_revokes_ones_own_and_an_administrator_everybodys(self, made: World) -> None:
        owner, other = auditor(), auditor("eve")
        row = StaffKey.objects.get(key_id=key_of(owner).split("_")[1])
        page = f"/admin/governance/staffkey/{row.pk}/change/"
        revoke = f"/admin/governance/staffkey/{row.pk}/act/revoke/"
        stranger = self.browser(other)
        assert row.key_id not in stranger.get("/admin/governance/staffkey/").content.decode()
        assert stranger.get(page).status_code == 302
        assert stranger.post(revoke, {"reason": "mine now"}).status_code == 404
        auditing = self.browser(auditor("olga", "view_staffkey"))
        assert row.key_id in auditing.get("/admin/governance/staffkey/").content.decode()
        assert auditing.post(revoke, {"reason": "mine now"}).status_code == 403
        assert StaffKey.objects.get().revoked_at is None
        assert self.browser(owner).get(revoke).status_code == 200 and StaffKey.objects.get().revoked_at is None
        assert self.browser(owner).post(revoke, {"reason": "lost"}).status_code == 302
        assert StaffKey.objects.get().revoked_at is not None
        second = StaffKey.objects.get(key_id=key_of(owner).split("_")[1])
        looks_after = self.browser(auditor("root", "view_staffkey", "change_staffkey"))
        done = looks_after.post(f"/admin/governance/staffkey/{second.pk}/act/revoke/", {"reason": "left"})
        assert done.status_code == 302 and StaffKey.objects.get(pk=second.pk).revoked_at is not None

    def test_nobody_edits_or_deletes_a_key(self, made: World) -> None:
        row = StaffKey.objects.get(key_id=key_of(auditor()).split("_")[1])
        http = staff.administrator()
        assert http.post(f"/admin/governance/staffkey/{row.pk}/change/", {"label": "x"}).status_code == 403
        assert http.post(f"/admin/governance/staffkey/{row.pk}/delete/", {"post": "yes"}).status_code == 403
        assert StaffKey.objects.get().label == ""
