"""Exports for tests: members of staff with rights, a key and a folder, a log that is sealed by hand, and runs that are
worked on in this process."""

import base64
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission

from audit.exports import definitions, queue, runs, store
from audit.exports.definitions import Definition
from audit.keys import public_of
from audit.models import Export, ExportRun, Outbox
from muniment import exported
from muniment.keys import Trust, thumbprint
from tests.audit.trees import HandSealed

AUDITOR = ("audit.view_record", "audit.view_export", "audit.add_export", "audit.export_record")
COLUMNS = ("time", "index", "record", "kind", "decision", "user", "client", "tool")


def staff(name: str, *permissions: str) -> Any:
    """A member of staff with these permissions."""
    user = get_user_model().objects.create_user(name, "", None, is_staff=True, first_name=name.capitalize())
    for permission in permissions:
        app, codename = permission.split(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))
    return get_user_model().objects.get(pk=user.pk)


def without(user: Any, permission: str) -> None:
    """Take a permission away."""
    user.user_permissions.remove(Permission.objects.get(codename=permission.split(".")[1]))


@dataclass
class Desk:
    """Where exports are made: a folder, a key, an auditor, and a log that is sealed when the test says so."""

    folder: Path
    key: Ed25519PrivateKey
    sent: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.auditor = staff("ada", *AUDITOR)
        self._log: HandSealed | None = None

    def seal(self) -> None:
        """All records that there are."""
        self._log = self._log or HandSealed()
        self._log.seal()

    @property
    def trust(self) -> Trust:
        """The keys to trust."""
        one = public_of(self.key)
        trust = Trust(exports={thumbprint(one): one})
        if self._log:
            two = public_of(self._log.private)
            trust.logs[thumbprint(two)] = two
        return trust

    def export(self, user: Any = None, **given: Any) -> Export:
        """A definition."""
        columns = COLUMNS if given.get("format", "jsonl") in ("jsonl", "csv", "parquet") else ()
        return definitions.make(
            user or self.auditor, Definition(**{"name": "all", "format": "jsonl", "columns": columns} | given)
        )

    def run(self, export: Export, since: datetime, until: datetime, **more: Any) -> ExportRun:
        """A run of one's own range, waiting."""
        slot = until.replace(microsecond=0)
        return ExportRun.objects.create(**{
            "export": export.pk, "owner": export.owner, "slot": slot, "since": since, "until": until,
            "personal": export.personal, "destination": export.destination, "created_at": datetime.now(UTC),
            "file": f"all-{export.pk}-{slot:%Y%m%dT%H%MZ}.{export.format}",
        } | more)  # fmt: skip

    def worked(self, run: ExportRun) -> ExportRun:
        """The run, after a worker had it once, as if the time to try it again had come."""
        ExportRun.objects.filter(pk=run.pk).update(retry_at=None)
        runs.work(run.pk)
        run.refresh_from_db()
        return run

    def path(self, run: ExportRun) -> Path:
        return self.folder / run.file

    def findings(self, run: ExportRun) -> list[str]:
        """What `muniment verify` finds of its file."""
        report, _ = exported.verify(self.folder / (run.file + exported.SUFFIX), self.trust)
        return [one.line for one in report.findings]

    def leftovers(self) -> set[str]:
        """What lies in the folder besides finished files."""
        return {path.name for path in self.folder.iterdir() if path.name.startswith(".")}


def told(action: str) -> list[dict[str, Any]]:
    """What the outbox has of an action, the oldest first."""
    rows = Outbox.objects.filter(kind="staff", members__action=action).order_by("id")
    return [{**row.members, "actor": row.actor, "private": row.private} for row in rows]


@contextmanager
def desk(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A desk, whose messages to the worker are only noted."""
    key = Ed25519PrivateKey.generate()
    patch.setitem(settings.MUNIMENT_KEYS, "EXPORT_KEY", key.private_bytes_raw())
    patch.setattr(settings, "MUNIMENT_EXPORTS", folder)
    patch.setattr(store, "RESERVE", 0)
    made = Desk(folder, key)
    patch.setattr(queue, "_send", lambda numbers, after: made.sent.extend(numbers))
    yield made


def environment(folder: Path) -> dict[str, str]:
    """What a worker process is given: its own key, and none of the web's."""
    return {
        "MUNIMENT_PROCESS": "worker",
        "MUNIMENT_EXPORTS": str(folder),
        "MUNIMENT_EXPORT_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
    }
