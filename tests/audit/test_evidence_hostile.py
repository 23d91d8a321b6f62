"""What a caller named, and what staff typed, stays text on the pages of an evidence pack, which a browser opens from a
disk where no header protects the reader."""

import re
from io import BytesIO
from zipfile import ZipFile

from audit.evidence import controls, pages_html
from audit.evidence.files import Files, Rows
from audit.evidence.parts import Part, Shown
from audit.evidence.sections import SECTIONS
from audit.evidence.tables import TABLES

BAD = "</td><script>alert(1)</script><img src=x onerror=alert(1)>\"'>&\u202e"
MANIFEST = {
    "name": BAD, "made_for": "staff:1", "url": "https://muniment.test", "origin": BAD, "checkpoint": "x", "size": 1,
    "since": "2026-01-01T00:00:00.000000Z", "until": "2026-02-01T00:00:00.000000Z",
    "made_at": "2026-02-02T00:00:00.000000Z", "first": 0, "last": 1, "deleted": [],
}  # fmt: skip


def part(slug: str, title: str) -> Part:
    line = Shown("2026-01-02 00:00:00", 1, "https://muniment.test/r", BAD, BAD, BAD, BAD)
    made = Part(slug, title, "about", BAD, "https://muniment.test/s?a=1&b=2", {BAD: {BAD: 3}}, 1, 1, (line,))
    made.columns, made.rows = (BAD,), ((BAD,),)
    return made


def test_nothing_on_a_page_becomes_markup() -> None:
    into = BytesIO()
    files = Files(into)
    parts = [part(made.slug, made.title) for made in (*TABLES, *SECTIONS)]
    pages_html.write(files, MANIFEST, controls.FRAMEWORKS, parts)
    files.close()
    with ZipFile(into) as archive:
        pages = {name: archive.read(name).decode() for name in archive.namelist()}
    assert len(pages) > len(controls.FRAMEWORKS)
    for name, page in pages.items():
        assert not re.search(r"<script|<img|<[a-z][^>]*\son[a-z]+=", page), name
        assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page
    assert sum("&lt;script&gt;alert(1)" in page for page in pages.values()) == len(pages)


def test_nothing_in_a_table_becomes_a_formula_or_another_row() -> None:
    into = BytesIO()
    rows = Rows(into, ("a", "b"))
    rows.add(('=cmd|"x"', 'b","=1\r\n"=2'))
    assert into.getvalue() == '\ufeff"a","b"\r\n"\'=cmd|""x""","b"",""=1\r\n""=2"\r\n'.encode()
