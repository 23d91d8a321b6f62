"""The log's pages in a real browser, in the states that people meet them in: empty, sealed, anchored, in trouble."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth import get_user_model
from django.utils import timezone

from audit import alerts
from audit.models import Anchoring, AnchorState, Checkpoint, Record, Verification
from audit.sealing import Sealer
from tests.audit.sealers import altered, sealed, sealer
from tests.browser import PASSWORD, Visitor
from tests.world import World, build

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
LONG = "witness+https://witness.the-compliance-department-of-a-company-with-a-long-name.example:8443/" + "prefix/" * 20
ERROR = "<b onmouseover=alert(1)>" + "The witness answered 409: it holds a checkpoint of another size. " * 4


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """A small world and an administrator."""
    # Playwright's synchronous API runs an event loop in this thread, which Django takes for asynchronous code.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    made = build()
    get_user_model().objects.create_superuser("mara", "", PASSWORD, first_name="Mara")
    return made


@pytest.fixture
def active(world: World, tmp_path: Path) -> Iterator[Sealer]:
    """A sealer, which has not looked at the log yet."""
    made = sealer(tmp_path / "seal")
    yield made
    made.close()


def anchored(newest: Checkpoint, size: int) -> None:
    """Three places: one that has it all, one that fails and has a name that fits nowhere, one never reached."""
    now = timezone.now()
    for name, kind, holds, failures, error in [
        ("file:///mnt/compliance/checkpoints", "directory", newest.size, 0, ""),
        (LONG, "witness", size, 12, ERROR),
        ("syslog://log.example:514", "syslog", None, 1, "Nobody listens there."),
    ]:
        AnchorState.objects.create(
            name=name[:255], kind=kind, log=1 if holds else None, size=holds, reached_at=now if holds else None,
            tried_at=now - timedelta(seconds=20), failures=failures, error=error,
        )  # fmt: skip
        if holds:
            line = f"— witness.example {'A' * 100}=\n" if kind == "witness" else ""
            Anchoring.objects.create(anchor=name[:255], log=1, size=holds, at=now, cosignature=line)


def test_the_log_is_seen_from_its_beginning_to_its_trouble(
    world: World, active: Sealer, visitor: Visitor, superuser_url: str
) -> None:
    page = visitor.page
    visitor.sign_in()
    visitor.go("/admin/log/")
    visitor.shot("log-empty")
    first = world.verify()
    visitor.go(f"/admin/records/{first['record']}/")
    assert page.get_by_text("Not sealed yet").first.is_visible()
    visitor.shot("log-record-unsealed")

    sealed(active)
    for _ in range(30):
        world.verify()
    sealed(active)
    visitor.go("/admin/")
    assert page.get_by_text("Log sound: ").is_visible()
    visitor.shot("log-home")
    visitor.follow(page.get_by_role("link", name="Log", exact=True))
    visitor.shot("log-sealed")
    with page.expect_download() as saved:
        page.get_by_role("link", name="Download checkpoint").click()
    assert Path(saved.value.path()).read_text() == Checkpoint.objects.latest("size").note

    anchored(Checkpoint.objects.latest("size"), Checkpoint.objects.earliest("size").size)
    visitor.go(f"/admin/records/{first['record']}/")
    page.get_by_role("button", name="Verify now").focus()
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.get_by_text("Everything holds").is_visible()
    visitor.shot("log-record-verified")
    with page.expect_download() as saved:
        page.get_by_role("link", name="Download proof").click()
    assert saved.value.suggested_filename.endswith(".tlog-proof")

    record = Record.objects.get(id=first["record"])
    altered(superuser_url, f"UPDATE audit_record SET statement = statement || ' ' WHERE index = {record.index}")
    trouble(record)
    for path, name in (("/admin/", "home"), ("/admin/log/", "log"), (f"/admin/records/{record.id}/", "record")):
        visitor.go(path)
        visitor.shot(f"log-trouble-{name}")
    for path in ("checkpoint", "alert", "verification"):
        visitor.go(f"/admin/audit/{path}/")
        visitor.shot(f"log-list-{path}")
        visitor.follow(page.locator("#result_list tbody a").first)
        visitor.shot(f"log-one-{path}")
    assert visitor.complaints == []


def trouble(record: Record) -> None:
    """Open alerts, alerts that are over, and a verification that found something."""
    alerts.raise_alert("anchor-failing", LONG, ERROR)
    alerts.clear("anchor-failing")
    alerts.raise_alert("verification-failed", "full", "1 record does not hold")
    alerts.raise_alert("anchor-failing", LONG, ERROR)
    now = timezone.now()
    findings = [
        {"code": "record-changed", "index": record.index, "message": f"record {record.index}: not the sealed bytes"},
        {"code": "record-missing", "index": 10**6, "message": "record 1,000,000 is gone"},
        {"code": "cut-off", "index": None, "message": "3 records are gone from the end"},
    ]
    Verification.objects.create(
        kind="full", began_at=now - timedelta(hours=3), ended_at=now - timedelta(hours=2), records=30, size=40,
        findings=findings, count=23,
    )  # fmt: skip
    Verification.objects.create(
        kind="sample", began_at=now - timedelta(hours=5), ended_at=now - timedelta(hours=5), records=30, size=40
    )
    Verification.objects.create(kind="full", began_at=now - timedelta(hours=9))
