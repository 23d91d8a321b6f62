"""A sealed log with one of everything that an evidence pack tells of, made by the same code as any other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from django.contrib.auth import get_user_model
from django.utils import timezone

from audit import holds, viewer
from audit.evidence import packing
from audit.models import AnchorState, Checkpoint, Outbox, Subject, Verification
from audit.sealing import Sealer
from audit.staff_log import tell
from audit.viewer import Viewer
from clients import grants, requests, reviews
from clients.models import Grant
from clients.proposals import Proposal
from governance import process
from muniment.keys import Trust
from tests import world as worlds
from tests.audit.sealers import sealed, sealing
from tests.audit.trees import cosigned
from tests.reset import reset
from tests.staff import drained
from tests.world import World, token
from tools.models import Scope

EXPORT_KEY = Ed25519PrivateKey.generate()
FORMULA, MARKUP = '=HYPERLINK("http://evil.example","x")', "<script>alert(1)</script>"
LONG = "because " * 58 + "of this"


@dataclass
class Scene:
    """The log, who looks at it, and the period that has all of it."""

    world: World
    sealer: Sealer
    user: Any
    since: datetime
    until: datetime

    @property
    def viewer(self) -> Viewer:
        """With the rights of a superuser."""
        return viewer.viewer_of(self.user)

    def trust(self) -> Trust:
        """The keys as the platform publishes them."""
        return Trust.parse(self.world.http.get("/v1/keys").content.decode())

    def pack(self, *frameworks: str, **more: Any) -> tuple[bytes, dict[str, Any]]:
        """A pack of the period, and its manifest."""
        file = BytesIO()
        asked = {"viewer": self.viewer, "since": self.since, "until": self.until, "made_at": self.until} | more
        found = packing.write(file, frameworks=frameworks, **asked)
        return file.getvalue(), found


@contextmanager
def export_key() -> Iterator[None]:
    """A process that has the export key, as the worker has."""
    settings.MUNIMENT_KEYS["EXPORT_KEY"] = EXPORT_KEY.private_bytes_raw()
    try:
        yield
    finally:
        settings.MUNIMENT_KEYS.pop("EXPORT_KEY", None)


@contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    """The scene; the database is emptied before."""
    reset()
    with export_key(), sealing(folder) as sealer:
        try:
            yield _made(sealer)
        finally:
            process.stop_recorder()


def _made(sealer: Sealer) -> Scene:
    since = timezone.now() - timedelta(minutes=1)
    world = worlds.build()
    make, people = get_user_model().objects.create_superuser, []
    for name in ("mara", "noor"):
        people.append(make(name, "", "correct horse battery", first_name=name.capitalize()))
    world.verify()
    world.verify("memory.capture", token=token("bobadilla"))
    world.verify("memory.unheard_of", token=token("bobadilla"))
    _policy(world, *people)
    _keeping(*people)
    drained()
    sealed(sealer)
    cosigned(Checkpoint.objects.latest("size"), anchor="mailbox")
    AnchorState.objects.create(name="mailbox", kind="mail")
    now = timezone.now()
    findings = [{"code": "record-changed", "index": 1, "message": "record 1 was changed"}]
    Verification.objects.create(kind="full", began_at=now, ended_at=now, records=40, size=40)
    Verification.objects.create(
        kind="sample", began_at=now, ended_at=now, records=9, size=40, findings=findings, count=1
    )
    Verification.objects.create(kind="full", began_at=now)
    return Scene(world, sealer, people[0], since, timezone.now())


def _policy(world: World, mara: Any, noor: Any) -> None:
    """Grants, a request that a second person approves, a review in which one of two grants is revoked."""
    read, write = (Scope.objects.get(name=name) for name in ("memory:read", "memory:write"))
    actor = grants.Actor.of(mara)
    grants.create(actor=actor, reason=FORMULA, client=world.client, scopes=[write], role="doctor")
    gone = grants.create(actor=actor, reason=MARKUP, client=None, scopes=[read], tenant="=cmd|' /C calc'!A0")
    grants.revoke(gone, actor=actor, reason=LONG)
    asked = requests.ask(mara, Proposal("grant", "allow", world.client, (read,), role="nurse", days=7), "for the ward")
    requests.approve(asked.pk, noor, answer="seen and agreed")
    review = reviews.start(client=world.client, scope=None, user=mara, reason="yearly")
    for item in reviews.open_items(review):
        keeps = item.grant_id == world.grant.pk
        reviews.decide(review.pk, [item.pk], "keep" if keeps else "revoke", f"note on {item.grant_id}", user=mara)
    reviews.finish(review.pk, user=mara)
    assert Grant.objects.count() == 4


def _keeping(mara: Any, noor: Any) -> None:
    """What staff do besides: sign-ins, looks, an export, a hold that two release, retention, erasure, an alert."""
    actor, uid = f"staff:{mara.pk}", Subject.objects.order_by("uid").first()
    assert uid is not None
    tell(actor, "Mara", "staff.sign_in", how="password")
    tell(actor, "Mara", "staff.roles", {"about_name": MARKUP}, about=f"staff:{noor.pk}", before=[], after=["Auditor"])
    tell(actor, "Mara", "personal.view", subject=uid.uid)
    tell(actor, "Mara", "subject.block", {"reason": "asked by phone"}, subject=uid.uid)
    tell(actor, "N" * 150, "inbox.ignore_tool", {"reason": "W" * 480}, backend="b" * 64, tool="t" * 128)
    tell(actor, "Mara", "export.done", export=3, run=4, records=12)
    hold = holds.place(mara, "M-17", "the lawsuit", client="claude")
    holds.ask_release(mara, hold.pk, "it is settled")
    holds.release(noor, hold.pk)
    tell("system", "", "deleted", kind="retention", ranges=[[0, 3], [7, 2]], run=1, month="2025-01", held=2, rules=[1])
    tell(actor, "Mara", "refused", {"reference": "DSR-9"}, kind="erasure", subject=uid.uid, erasure=1)
    for kind, members in (
        ("notice", {"action": "alert.raised", "alert": "sealing-late"}),
        ("weather", {"action": "rain"}),
    ):
        Outbox.objects.create(kind=kind, members=members, at=timezone.now(), actor="system", xact="")


def read(pack: bytes, name: str) -> str:
    """A file of a pack."""
    with ZipFile(BytesIO(pack)) as archive:
        return archive.read(name).decode("utf-8-sig")


def names(pack: bytes) -> list[str]:
    """The files of a pack."""
    with ZipFile(BytesIO(pack)) as archive:
        return archive.namelist()
