"""Exports in a real browser: their pages in the states that people meet them in; and, with a real worker, from a search
to a file that `muniment verify` accepts, a legal hold, a look at what retention will do, and a user who is erased."""

import base64
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from signal import SIGKILL

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.utils import timezone

from audit.exports import definitions, queue
from audit.exports import runs as export_runs
from audit.exports.definitions import Definition
from audit.models import Destination, Export, ExportRun, Hold, Subject
from audit.sealing import Sealer
from governance.embedded_process import last_lines, launch, stop_group
from governance.supervisor_plan import worker_command
from tests.audit.exporting import Desk, desk
from tests.audit.filling import fill
from tests.audit.sealers import sealed, sealing
from tests.browser import PASSWORD, Visitor
from tests.conftest import WEB_KEYS
from tests.live import ROOT
from tests.sdk.test_cli_verify import muniment
from tests.world import World, build, token

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
LONG = "Everything that the department for exceptionally long names of things asked for, EMEA and beyond, 3rd edition"
ERROR = "The server at " + "storage." * 12 + "example refused the credentials <b onmouseover=alert(1)>. "


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> World:
    """A small world and an administrator."""
    # Playwright's synchronous API runs an event loop in this thread, which Django takes for asynchronous code.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    made = build()
    get_user_model().objects.create_superuser("mara", "mara@example.org", PASSWORD, first_name="Mara")
    return made


@pytest.fixture
def table(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with desk(tmp_path, monkeypatch) as made:
        yield made


def crowded(table: Desk) -> list[ExportRun]:
    """Exports and runs in every state, with what is as long as it may be."""
    mara, now = get_user_model().objects.get(username="mara"), timezone.now()
    Destination.objects.create(name="lake", kind="s3", place="s3://lake.example/audit", seen_at=now, reached_at=now)
    Destination.objects.create(
        name="x" * 64,
        kind="https",
        place="https://" + "p" * 240,
        seen_at=now,
        tried_at=now,
        failures=7,
        error=ERROR * 3,
    )
    records = fill([{"decision": "deny", "reason": "not_granted"} if n % 7 == 0 else {} for n in range(40)])
    table.seal()
    plain = table.export(mara, name="Denials of the day", format="csv", schedule="0 2 * * *", destination="lake",
                         query="window=7d&decision=deny&client=claude", recipients=(mara.pk,))  # fmt: skip
    long = table.export(mara, name=f"{LONG} x"[:120], schedule="*/7 1-5 1,15 */2 *", destination="x" * 64,
                        query="window=30d&tenant=" + "t" * 200 + "&tool=" + "u" * 120)  # fmt: skip
    Export.objects.filter(pk=long.pk).update(
        enabled=False, failures=5, words=f"5 runs in a row have failed, the last one: {ERROR * 2}"
    )
    made = table.run(plain, records[0].at, records[-1].at + timedelta(seconds=1), destination="")
    done = table.worked(made)
    assert done.state == "done", done.words
    ExportRun.objects.filter(pk=done.pk).update(erased_since=["usr_" + "a" * 30], delivered_at=now, destination="lake")
    hour = timedelta(hours=1)
    states = [
        table.run(long, now - hour, now, state="failed", words=f"Not delivered to {'x' * 64}: {ERROR * 3}"),
        table.run(plain, now - 3 * hour, now - 2 * hour, state="running", first=0, last=1_203_440, next=802_112,
                  records=5_120, began_at=now, seen_at=now),
        table.run(plain, now - 4 * hour, now - 3 * hour, words=export_runs.NOT_SEALED),
        table.run(plain, now - 5 * hour, now - 4 * hour, state="cancelled"),
    ]  # fmt: skip
    definitions.make(
        mara, Definition("Evidence pack, Jul to Sep 2026", "evidence", "since=2026-07-01T00:00:00Z", (), ("soc2",))
    )
    pack = Export.objects.get(format="evidence")
    packed = table.run(pack, now - 9 * hour, now - hour, state="done", file=f"pack-{pack.pk}.zip", bytes=81_204,
                       sha256="ab" * 32, manifest="{}", ended_at=now, began_at=now - hour)  # fmt: skip
    return [done, *states, packed]


def test_the_pages_are_fit_to_be_seen_in_every_state(table: Desk, visitor: Visitor) -> None:
    visitor.sign_in()
    for name, path in (("none-list", "exports/"), ("none-form", "exports/add/?window=30d"), ("none-packs", "packs/")):
        if visitor.shots:  # the walk through the navigation looks at them
            visitor.go(f"/admin/{path}")
            visitor.picture(f"exports-{name}")
    runs = crowded(table)
    for name, path in (("list", "exports/"), ("form", "exports/add/"), ("packs", "packs/")):
        visitor.go(f"/admin/{path}")
        visitor.shot(f"exports-{name}")
    for name, run in zip(("done", "failed", "running", "waiting", "cancelled", "packed"), runs, strict=True):
        visitor.go(f"/admin/exports/runs/{run.pk}/")
        visitor.shot(f"exports-run-{name}")
    for number, one in enumerate(Export.objects.order_by("pk")):
        visitor.go(f"/admin/exports/{one.pk}/")
        visitor.shot(f"exports-one-{number}")
    assert visitor.complaints == []


# --- with a real worker ----------------------------------------------------------------------------------------


@contextmanager
def worker(folder: Path) -> Iterator[Path]:
    """A real Celery worker with its own keys and the owner's URL; its log."""
    kept = {k: v for k, v in os.environ.items() if k.removeprefix("MUNIMENT_") not in WEB_KEYS}
    given = kept | {
        "MUNIMENT_PROCESS": "worker", "MUNIMENT_EXPORTS": str(folder), "PYTHONUNBUFFERED": "1",
        "MUNIMENT_EXPORT_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
    }  # fmt: skip
    log = folder.parent / "worker.log"
    command = [*worker_command(), "--without-gossip", "--without-mingle"]
    process = launch(command, log=log, account=None, death_signal=SIGKILL, environment=given, cwd=ROOT)
    try:
        yield log
    finally:
        stop_group(process, 5)


@pytest.fixture
def scene(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[World, Sealer, Path]]:
    """Calls of alice that are sealed, a sealer to go on with, a worker, and its log."""
    folder = tmp_path / "exports"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(settings, "MUNIMENT_EXPORTS", folder)
    with worker(folder) as log, sealing(tmp_path / "seal") as sealer:
        for number in range(30):
            world.verify(tool="nope" if number % 10 == 9 else "memory.recall")
        sealed(sealer)
        yield world, sealer, log


def task(name: str) -> None:
    """What beat would send at its time."""
    with queue._sender().connection_for_write() as connection:
        queue._sender().send_task(f"audit.tasks.{name}", connection=connection, expires=60)


def wait(visitor: Visitor, sealer: Sealer, log: Path, holds: Callable[[], bool], seconds: float = 90.0) -> None:
    """Seal, as the sealer does, until it holds."""
    for _ in range(int(seconds / 0.2)):
        sealer.step()
        if holds():
            return
        visitor.page.wait_for_timeout(200)
    raise AssertionError(f"waited in vain at {visitor.page.url}; the worker:\n{last_lines(log)}")


def test_an_export_is_made_and_verified_a_hold_placed_retention_previewed_and_a_user_erased(
    scene: tuple[World, Sealer, Path], visitor: Visitor, tmp_path: Path
) -> None:
    world, sealer, log = scene
    visitor.sign_in()
    export_of_a_search(visitor, lambda holds: wait(visitor, sealer, log, holds))
    downloaded_and_verified(visitor, world, tmp_path)
    alice, bob = (Subject.objects.get(uid=world.verify(token=token(sub))["subject"]["uid"]) for sub in ("alice", "bob"))
    held(visitor, bob)
    previewed(visitor)
    erased(visitor, alice)
    task("erase_users")
    wait(visitor, sealer, log, lambda: Subject.objects.filter(pk=alice.pk, erased_at__isnull=False).exists())
    visitor.page.reload()
    assert visitor.page.get_by_text("Identifiers and key destroyed").is_visible()
    visitor.go(f"/admin/timeline/user/{alice.uid}/")
    assert visitor.page.get_by_text("nobody can tell any more").is_visible()
    assert Subject.objects.get(pk=bob.pk).erased_at is None and visitor.complaints == []


def export_of_a_search(visitor: Visitor, until: Callable[[Callable[[], bool]], None]) -> None:
    """From a search to a run, which is watched: the page asks by itself, and is loaded anew when the run is over."""
    page = visitor.page
    visitor.go("/admin/records/?window=24h&decision=deny")
    visitor.follow(page.get_by_role("link", name="Export this search…"))
    page.get_by_label("Name", exact=True).fill("Denials")
    page.get_by_label("JSON Lines").check()
    page.get_by_label("Statement").check()
    visitor.follow(page.get_by_role("button", name="Make the export"))
    assert page.get_by_role("progressbar").is_visible()
    until(lambda: page.get_by_text("How to verify it").is_visible())
    assert page.get_by_text("3 records, ").is_visible() and ExportRun.objects.get().records == 3


def downloaded_and_verified(visitor: Visitor, world: World, folder: Path) -> None:
    """File and manifest are taken, and the command that the page shows accepts them, until a word is another."""
    file, manifest = (saved(visitor, name, folder) for name in ("Download", "Download the manifest"))
    assert [json.loads(line)["decision"] for line in file.read_text().splitlines()] == ["deny"] * 3
    (folder / "keys.json").write_bytes(world.http.get("/v1/keys").content)
    command = visitor.page.locator("pre.raw").inner_text().split()
    assert command == ["muniment", "verify", manifest.name, "--trust", "keys.json"]
    here = [str(folder / word) if word in (manifest.name, "keys.json") else word for word in command[1:]]
    assert (ran := muniment(*here)).status == 0, ran
    file.write_text(file.read_text().replace("deny", "allow", 1))
    assert muniment(*here).status == 1


def saved(visitor: Visitor, button: str, folder: Path) -> Path:
    """What a button of the page downloads, under the name that it says."""
    with visitor.page.expect_download() as found:
        visitor.page.get_by_role("button", name=button, exact=True).click()
    path = folder / found.value.suggested_filename
    path.write_bytes(Path(found.value.path()).read_bytes())
    return path


def held(visitor: Visitor, user: Subject) -> None:
    """A hold is placed on the user, who then cannot be erased."""
    page = visitor.page
    visitor.go(f"/admin/holds/add/?subject={user.uid}")
    page.get_by_label("Matter number").fill("2026-17")
    page.get_by_label("Reason").fill("a lawsuit that is to be expected")
    visitor.follow(page.get_by_role("button", name="Place the hold"))
    assert page.get_by_text("The hold is in force").is_visible() and Hold.objects.get().subject == user.uid
    visitor.go(f"/admin/people/{user.uid}/erase/")
    assert page.get_by_role("heading", name="A legal hold forbids it").is_visible()


def previewed(visitor: Visitor) -> None:
    """A rule of retention, and what it will do: all goes but the record under the hold."""
    page = visitor.page
    visitor.go("/admin/retention/add/")
    page.get_by_label("Days to keep").fill("400")
    page.get_by_label("Legal basis").fill("as long as claims can be made")
    page.get_by_label("Reason", exact=True).fill("the data protection officer asks for it")
    visitor.follow(page.get_by_role("button", name="Save the rule"))
    assert page.get_by_text(re.compile(r"\d records? of \w+ \d{4} goe?s?; 1 stays under a hold")).is_visible()


def erased(visitor: Visitor, user: Subject) -> None:
    """From the user's page to an erasure that is asked for."""
    page = visitor.page
    visitor.go(f"/admin/timeline/user/{user.uid}/")
    visitor.follow(page.get_by_role("link", name="Erase…"))
    assert page.get_by_role("heading", name="What is forgotten").is_visible()
    page.get_by_label("Reference").fill("DSR-12")
    page.get_by_label("Reason").fill("asked for by letter")
    page.get_by_label("type the uid").fill(user.uid)
    visitor.follow(page.get_by_role("button", name="Erase this user"))
    assert page.get_by_role("heading", name="The request").is_visible()
