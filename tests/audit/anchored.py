"""A hand-sealed log whose key is published, a clock, and anchors over it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import psycopg
import pytest
from django.utils import timezone

from audit import anchors
from audit.alerts import open_alerts
from audit.models import Anchoring, AnchorState, PublishedKey
from muniment import keys
from tests.audit.trees import HandSealed


class AnchoredLog(HandSealed):
    """Leaves are made up; its key is among the published ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        public = self.key.public
        PublishedKey.objects.create(key_id=keys.thumbprint(public), use="log", public=public)

    def grow(self, count: int, seed: str = "") -> str:
        """Seal so many leaves more; the note of the checkpoint."""
        size = self.builder.size
        return self.seal([sha256(f"{seed}{size + n}".encode()).digest() for n in range(count)]).note


@dataclass
class Clock:
    """What time it is; `add` moves it."""

    now: datetime

    def add(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def stopped(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of this process, stopped."""
    clock = Clock(datetime(2026, 11, 24, 12, tzinfo=UTC))
    monkeypatch.setattr(timezone, "now", lambda: clock.now)
    return clock


def push() -> None:
    anchors.push_all()


def state() -> AnchorState:
    """Of the only anchor."""
    return AnchorState.objects.get()


def sizes() -> list[int]:
    """Of the checkpoints that anchors took."""
    return list(Anchoring.objects.order_by("size").values_list("size", flat=True))


def alerts() -> list[tuple[str, str]]:
    """Kind and subject of those that are open."""
    return [(alert.kind, alert.about) for alert in open_alerts()]


def rolled_back(superuser_url: str, size: int) -> None:
    """The database as it was at this size: newer checkpoints, anchorings and tiles never were."""
    with psycopg.connect(superuser_url) as superuser:
        superuser.execute("SET session_replication_role = replica")
        for table in ("audit_checkpoint", "audit_anchoring"):
            superuser.execute(f"DELETE FROM {table} WHERE size > %s", [size])
        superuser.execute("DELETE FROM audit_tile")
        superuser.execute("DELETE FROM audit_anchorstate")


def rewritten(log: AnchoredLog, superuser_url: str, size: int, seed: str = "another history ") -> AnchoredLog:
    """The same log and key with another history of this size: what an administrator with the log key could make."""
    rolled_back(superuser_url, 0)
    with psycopg.connect(superuser_url) as superuser:
        for table in ("audit_log", "audit_publishedkey"):
            superuser.execute(f"DELETE FROM {table}")
    again = AnchoredLog(private=log.private)
    again.grow(size, seed)
    return again
