"""What the pages of keeping and handing over can show, in every state, as rows that nobody works on: for tests that
only look at pages."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.db import connections
from django.urls import reverse
from django.utils import timezone

from audit.models import (
    Destination,
    Erasure,
    Export,
    ExportRun,
    Hold,
    RetentionRule,
    RetentionRun,
    RetentionStep,
    Subject,
)
from governance.models import Notification

OWNER = "owner"  # of the tables: the role that serves makes no run of retention
FAILED = "The bucket cannot be reached: Connection refused. It is tried again in 4 minutes."


def make(long: str = "") -> None:
    """One of each, made by mara; with a text, every name and reason is that long and more."""
    me, now = f"staff:{get_user_model().objects.get(username='mara').pk}", timezone.now().replace(microsecond=0)
    _exports(me, now, long)
    _holds(me, now, long)
    _erasures(me, now, long)
    _retention(me, now, long)
    Notification.objects.create(
        kind="retention", about="run", made_at=now, words="Retention failed. " + long, path=reverse("admin:retention")
    )


def _exports(me: str, now: datetime, long: str) -> None:
    place = {"kind": "s3", "place": "s3://" + (long.replace(" ", "-") or "audit") * 2, "seen_at": now}
    lake = Destination.objects.create(name="l" * 64 if long else "lake", failures=2, error=FAILED, **place)
    given: dict[str, Any] = {"owner": me, "created_at": now, "query": "window=7d&decision=deny&client=" + "x" * 63}
    export = Export.objects.create(
        name=f"{long[:50]}{'n' * 70}" if long else "Denials to the lake", format="csv", schedule="30 2 * * 1-5",
        columns=["time", "user", "sub", "request_id"], personal=True, reason=f"An inspection. {long * 3}", failures=5,
        destination=lake.name, enabled=False, words=f"It failed five times in a row. {FAILED}", **given,
    )  # fmt: skip
    pack = Export.objects.create(name="Evidence pack, 2025" + "e" * 90 * bool(long), format="evidence", **given)
    done = {
        "sha256": "a" * 64,
        "records": 1_203_441,
        "bytes": 4_200_000_000,
        "manifest": "{}",
        "first": 0,
        "last": 10**9,
    }
    states: tuple[tuple[str, dict[str, Any]], ...] = (
        ("waiting", {}), ("running", {"first": 0, "last": 999, "next": 420, "seen_at": now}),
        ("failed", {"words": FAILED + long}), ("cancelled", {}),
        ("done", {**done, "counts": {"allow": 1_000_000, "deny": 203_441}, "erased_since": ["usr_" + "u" * 20] * 12}),
    )  # fmt: skip
    for number, (state, more) in enumerate(states):
        for one in (export, pack):
            at = now - timedelta(hours=number)
            name = f"{'f' * 200 if long else 'denials'}-{at:%Y%m%dT%H%M%SZ}.csv"
            ExportRun.objects.create(
                export=one.pk, owner=me, slot=at, since=at - timedelta(days=30), until=at, state=state, created_at=at,
                personal=one.personal, destination=one.destination, asked_by=me, file=name, began_at=at, **more,
            )  # fmt: skip


def _holds(me: str, now: datetime, long: str) -> None:
    given = {"placed_by": me, "placed_at": now, "reason": f"A lawsuit is to be expected. {long * 3}"}
    asked = {"release_asked_by": me, "release_asked_at": now, "release_reason": f"It was settled. {long * 3}"}
    over = {**asked, "release_asked_by": "staff:0", "released_by": me, "released_at": now}
    matter, tenant = "m" * 118 if long else "M-2026", "t" * 255 if long else "acme"
    begin = datetime(2025, 1, 1, tzinfo=UTC)
    Hold.objects.create(matter=f"{matter}-1", tenant=tenant, since=begin, until=now, **given)
    Hold.objects.create(matter=f"{matter}-2", client="x" * 63, tool="t" * 128, backend="y" * 63, **given, **asked)
    Hold.objects.create(matter=f"{matter}-3", client="claude", **given, **over)


def _erasures(me: str, now: datetime, long: str) -> None:
    given = {"asked_by": me, "asked_at": now, "reason": f"Asked for by letter. {long * 3}"}
    told = {"counts": {"records": 1204, "protected": 1200}, "erased_at": now, "backups_until": now + timedelta(days=35)}
    states: tuple[tuple[str, dict[str, Any]], ...] = (
        ("refused", {"words": "A legal hold covers records of this user.", "holds": [Hold.objects.latest("pk").pk]}),
        ("asked", {}), ("erased", told), ("complete", {**told, "hashes_gone_at": now}),
    )  # fmt: skip
    for number, (state, more) in enumerate(states):
        reference = f"DSR-{number}-" + "r" * 110 * bool(long)
        Erasure.objects.create(subject=f"usr_{number:020}", state=state, reference=reference, **given, **more)


def _retention(me: str, now: datetime, long: str) -> None:
    tenant = "t" * 255 if long else "acme"
    basis = f"A contract asks for it. {long * 3}"
    RetentionRule.objects.create(
        type="decision", backend="y" * 63, client="x" * 63, tenant=tenant, sensitive=True, days=90, basis=basis,
        changed_by=me, changed_at=now,
    )  # fmt: skip
    for state, due, deleted in (("deleting", 1_203_441, 12_001), ("failed", 9, 0), ("done", 0, 0)):
        run = RetentionRun.objects.using(OWNER).create(
            state=state,
            began_at=now,
            due=due,
            deleted=deleted,
            held=due // 100,
            words=long or "The log was not sealed.",
        )
        for month in range(1, 8):
            RetentionStep.objects.using(OWNER).create(
                run=run.pk, month=date(2026, month, 1), outbox=run.pk, due=due // 7, deleted=deleted // 7
            )
    connections[OWNER].close()


def pages() -> Iterator[tuple[str, str]]:
    """Name and path of each page about one of them."""
    yield "export-add", reverse("admin:export_add") + "?window=7d&decision=deny"
    export = Export.objects.get(format="csv")
    for name in ("export", "export_edit", "export_delete"):
        yield name.replace("_", "-"), reverse(f"admin:{name}", args=[export.pk])
    for run in ExportRun.objects.filter(export=export.pk):
        yield f"export-run-{run.state}", reverse("admin:export_run", args=[run.pk])
    pack = ExportRun.objects.filter(state="done").exclude(export=export.pk).get()
    yield "pack", reverse("admin:export", args=[pack.export])
    yield "pack-run", reverse("admin:export_run", args=[pack.pk])
    rule = RetentionRule.objects.get(days=90)
    for name in ("retention_rule", "retention_remove"):
        yield name.replace("_", "-"), reverse(f"admin:{name}", args=[rule.pk])
    yield "hold-add", reverse("admin:hold_add")
    for hold in Hold.objects.order_by("-pk")[:3]:
        yield f"hold-{hold.matter[-1]}", reverse("admin:hold", args=[hold.pk])
    for erasure in Erasure.objects.all():
        yield f"erasure-{erasure.state}", reverse("admin:erasure", args=[erasure.pk])
    yield "erase", reverse("admin:erase", args=[Subject.objects.latest("first_seen").pk])
