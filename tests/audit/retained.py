"""A log of months past, made through the real verification and the real recorder, and runs of retention over it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from django.db import connections
from django.utils import timezone

from audit import maintenance, verification
from audit.models import Head, Hold, Record, RetentionRule, RetentionRun
from audit.retention import running
from audit.sealing import Sealer
from governance import process
from tests.audit import sealers
from tests.audit.test_partitions import drop_months
from tests.staff import drained
from tests.world import World, build, token

OUTCOME = {"status": "ok", "count": 1}


@dataclass
class Past:
    """A world whose log is written at the times that a test says. `now` is the clock of the log."""

    world: World
    sealer: Sealer
    now: datetime
    calls: list[str] = field(default_factory=list)

    def at(self, *when: int) -> "Past":
        """Move the clock: year, month, day, hour, ..."""
        self.now = datetime(*when, tzinfo=UTC)  # type: ignore[misc, arg-type]
        maintenance.make_partition(self.now.date())
        return self

    def call(self, count: int = 1, user: str = "alice", outcome: bool = False, **members: Any) -> list[str]:
        """Calls, the ids of their records; with outcomes."""
        made = []
        for _ in range(count):
            answer = self.world.verify(**({"token": token(user)} | members))
            made.append(answer["record"])
            if outcome:
                response = self.world.post(f"/v1/records/{answer['record']}/outcome", OUTCOME)
                assert response.status_code == 201, response.content
        self.calls += made
        return made

    def seal(self) -> None:
        """All that is recorded is sealed."""
        drained()
        sealers.sealed(self.sealer)

    def retain(self, now: datetime | None = None) -> RetentionRun:
        """A whole run: decided, sealed, deleted."""
        self.seal()
        run = running.run(now or self.now, wait=0)
        for _ in range(3):
            if run.state in ("done", "failed"):
                break
            self.seal()
            run = running.go_on(wait=0) or run
        return run


@contextmanager
def past(folder: Path, *when: int) -> Iterator[Past]:
    """A world and its sealer, in an empty database without months, whose log begins then."""
    process.stop_recorder()
    _drop_months()
    with sealers.sealing(folder / "seal") as sealer:
        made = Past(build(), sealer, datetime.now(UTC))
        made.at(*when)
        process.start_recorder(clock=lambda: made.now)
        drained()  # the policy's records come first
        try:
            yield made
        finally:
            process.stop_recorder()
            connections["owner"].close()
    _drop_months()


def _drop_months() -> None:
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"], autocommit=True) as owner:
        drop_months(owner)


def rule(days: int, **named: Any) -> RetentionRule:
    """A rule, as it is in the database."""
    return RetentionRule.objects.create(
        days=days, basis="a test", changed_by="staff:1", changed_at=timezone.now(), **named
    )


def hold(**named: Any) -> Hold:
    """A hold in force."""
    return Hold.objects.create(matter="M-1", reason="a test", placed_by="staff:1", placed_at=timezone.now(), **named)


def released(placed: Hold) -> None:
    """A hold that was in force is so no more."""
    now = timezone.now()
    said = {"release_asked_by": "staff:1", "release_asked_at": now, "released_by": "staff:2", "released_at": now}
    Hold.objects.filter(pk=placed.pk).update(**said)


def there(*ids: str) -> int:
    """How many of these records there are."""
    return Record.objects.filter(id__in=ids).count()


def findings() -> list[str]:
    """What the verification of the log finds."""
    return [f"{found.code} {found.index}" for found in verification.verify().findings]


def tables() -> list[str]:
    """The partitions with a month of their own."""
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"]) as owner:
        found = owner.execute("SELECT relid::regclass::text FROM pg_partition_tree('audit_record') WHERE level = 1")
        return sorted(name for (name,) in found.fetchall() if name != "audit_record_default")


def indices(kind: str | None = None) -> list[int]:
    """The indices that there are, of a type."""
    found = Record.objects.order_by("index")
    return list((found.filter(type=kind) if kind else found).values_list("index", flat=True))


def gaps() -> int:
    """How many records are gone."""
    return Head.objects.get().next - Record.objects.count()
