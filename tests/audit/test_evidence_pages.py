"""The pages of an evidence pack in a real browser, from the folder that it was unpacked into: nothing is wider than a
phone, axe finds no barrier, nothing is fetched from elsewhere, links lead to files that are there."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.audit.evidence_scene import scene
from tests.browser import CHROMIUM, NARROW, Visitor, launched

PAGES = ("index", "controls/soc2-cc6-1")


@pytest.fixture(scope="module")
def folder(migrated: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pack of a period in which much happened (`full`), and one of a period without a record (`empty`)."""
    made = tmp_path_factory.mktemp("packs")
    old = datetime(2020, 1, 1, tzinfo=UTC)
    with scene(made / "sealer") as found:
        packs = {"full": found.pack()[0], "empty": found.pack(since=old, until=old + timedelta(days=90))[0]}
    for name, pack in packs.items():
        with ZipFile(BytesIO(pack)) as archive:
            archive.extractall(made / name)
    yield made


@pytest.fixture(scope="module")
def visitor(folder: Path) -> Iterator[Visitor]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = launched(play)
        try:
            yield Visitor(browser, folder.as_uri())
        finally:
            browser.close()


@pytest.mark.parametrize("state", ["full", "empty"])
def test_pages_fit_every_screen_and_paper_and_can_be_read_by_everybody(
    visitor: Visitor, folder: Path, state: str
) -> None:
    for name in PAGES:
        visitor.page.goto((folder / state / f"{name}.html").as_uri())
        visitor.shot(f"evidence-{state}-{name.rpartition('/')[2]}")
    visitor.page.set_viewport_size(NARROW)
    visitor.page.emulate_media(media="print")
    visitor.picture(f"evidence-{state}-print")
    visitor.page.emulate_media(media="screen")
    assert not visitor.complaints


def test_links_lead_to_files_of_the_pack_or_to_the_admin(visitor: Visitor, folder: Path) -> None:
    seen = 0
    for page in sorted((folder / "full").rglob("*.html")):
        visitor.page.goto(page.as_uri())
        for link in visitor.page.eval_on_selector_all("a", "all => all.map(a => a.href)"):
            seen += 1
            inside = link.removeprefix(folder.as_uri())
            if inside == link:
                assert link.startswith("http://127.0.0.1:8000/admin/"), link
            else:
                assert (folder / inside.lstrip("/")).is_file(), link
    assert seen > 100 and not visitor.complaints
