"""Evidence packs: for a period, what happened and by which rules, mapped to controls of standards, as a signed ZIP that
a person can read in a browser and `muniment verify` can check (docs/evidence-packs.md).

Everything is read from the log with the rights of whoever it is made for. What is asked for at the same time for the
same period gives the same bytes, so that a run which was killed can be made again."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import IO, Any

from django.conf import settings
from django.utils import timezone

from audit import bundling, logtree, search
from audit.evidence import controls, pages_html, parts, reading
from audit.evidence.controls import Framework
from audit.evidence.files import Files, document
from audit.evidence.parts import Part
from audit.evidence.policy import Grants
from audit.evidence.reading import CALLS, Reader, Span
from audit.evidence.sections import SECTIONS, Section
from audit.evidence.tables import TABLES, time_text
from audit.exports.manifest import sign
from audit.models import Checkpoint
from audit.record_words import TYPES
from audit.retention import gone
from audit.viewer import Viewer, check
from muniment import packs

EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


class Refused(Exception):
    """Why there is no pack, in one line; `waits`: it can be made once more is sealed."""

    def __init__(self, message: str, waits: bool = False) -> None:
        super().__init__(message)
        self.waits = waits


def _nothing() -> None:
    """Between two pages nobody asked for anything."""


def write(
    file: IO[bytes], viewer: Viewer, since: datetime, until: datetime, frameworks: Sequence[str] = (), *,
    made_at: datetime | None = None, tick: Callable[[], None] = _nothing,
) -> dict[str, Any]:  # fmt: skip
    """Write the pack of [since, until) into `file`, which can be seeked, and return its manifest; its `counts` say how
    many records each part has. `frameworks`: slugs of `evidence_controls`, all of them where none is named. `made_at`:
    when it was asked for, which a repeat gives again. `tick` is called between pages and may raise to stop.

    Raises PermissionDenied, and Refused: for a period that is none or is not over, a framework that is not known, and
    (`waits`) while part of the period is not sealed."""
    check(viewer)
    try:
        chosen = controls.chosen(frameworks)
    except ValueError as error:
        raise Refused(str(error)) from None
    if "EXPORT_KEY" not in settings.MUNIMENT_KEYS:
        raise Refused("a pack is signed: it is made by a process that has the export key")
    made_at = made_at or timezone.now()
    if since >= until:
        raise Refused("the period must begin before it ends")
    if until > made_at:
        raise Refused("the period is not over yet")
    span, checkpoint = _span(viewer, since, until, made_at)
    files = Files(file)
    try:
        return _Pack(span, checkpoint, chosen, files, tick).write()
    finally:
        files.close()


class _Pack:
    """One pack."""

    def __init__(
        self, span: Span, checkpoint: Checkpoint | None, frameworks: Sequence[Framework], files: Files,
        tick: Callable[[], None],
    ) -> None:  # fmt: skip
        self.span, self.checkpoint, self.frameworks = span, checkpoint, frameworks
        self.files, self.tick = files, tick
        self.parts: list[Part] = []

    def write(self) -> dict[str, Any]:
        """All files, the manifest last."""
        self.parts = self._parts()
        manifest = self._manifest()
        pages_html.write(self.files, manifest, self.frameworks, self.parts)
        self.files.document("figures.json", document(self._figures()))
        self.files.document("checkpoint.txt", (self.checkpoint.note if self.checkpoint else "").encode())
        self.files.document("keys.json", bundling.jwks(self.span.made_at))
        manifest["files"] = dict(self.files.files)
        signed: dict[str, Any] = sign(manifest)
        self.files.document(packs.MANIFEST, document(signed))
        return signed

    def _parts(self) -> list[Part]:
        """Tables first, so that the pages begin with how much there is."""
        found = [parts.table(made, self.span, self.files, self.tick) for made in TABLES]
        reader, grants = Reader(self.span), self._grants_before()
        others = self._others()
        for made in SECTIONS:
            section = made if made.types else _of(made, others)
            found.append(parts.section(section, reader, grants, self.files, self.tick))
        return found

    def _grants_before(self) -> Grants:
        """Grants and names as they were when the period began."""
        grants, span = Grants(), self.span
        before = Span(span.viewer, EPOCH, span.since, 0, span.end, span.made_at)
        for page in reading.by_type(before, "policy"):
            for record in page:
                grants.take(reading.read(record))
            self.tick()
        return grants

    def _others(self) -> tuple[str, ...]:
        """The types of records that no section is about, of those that were counted."""
        known = {*CALLS, *(kind for section in SECTIONS for kind in section.types)}
        return tuple(sorted(self.span.kinds - known))

    def _manifest(self) -> dict[str, Any]:
        """What the pack is, without its files."""
        span, checkpoint = self.span, self.checkpoint
        log = logtree.log_of(span.end - 1) if span.end else None
        return {
            "format": packs.FORMAT, "made_at": time_text(span.made_at), "made_for": span.viewer.actor,
            "name": span.viewer.name, "url": settings.MUNIMENT_URL, "since": time_text(span.since),
            "until": time_text(span.until), "frameworks": [one.slug for one in self.frameworks],
            "origin": log.origin if log else settings.MUNIMENT_LOG_ORIGIN, "start": log.start if log else 0,
            "first": span.first, "last": span.end - 1,
            "checkpoint": checkpoint.note if checkpoint else None,
            "size": checkpoint.size if checkpoint else 0,
            "personal": False, "deleted": [f"{month:%Y-%m}" for month in gone.months(span.since, span.until)],
            "counts": {part.slug: part.records for part in self.parts if not part.counts_only},
        }  # fmt: skip

    def _figures(self) -> dict[str, Any]:
        """The same figures as the pages have them, for machines."""
        span = self.span
        return {
            "since": time_text(span.since), "until": time_text(span.until), "first": span.first, "last": span.end - 1,
            "parts": {
                part.slug: {"title": part.title, "query": part.query, "url": part.url, "records": part.records,
                            "lines": part.lines, "figures": part.figures}
                for part in self.parts
            },
            "controls": {
                f"{framework.slug}-{control.slug}": {"code": control.code, "parts": control.sections}
                for framework in self.frameworks for control in framework.controls
            },
        }  # fmt: skip


def _of(section: Section, types: tuple[str, ...]) -> Section:
    """The section of what is left, with the types that are left."""
    words = ", ".join(TYPES.get(kind, kind) for kind in types)
    return replace(section, types=types, query=f"Records of the types {words}." if types else section.query)


def _span(viewer: Viewer, since: datetime, until: datetime, made_at: datetime) -> tuple[Span, Checkpoint | None]:
    """The indices of the period, and the first checkpoint that has them all. Of a period without a record: of the one
    before it. Raises Refused while part of it is not sealed."""
    indices = search.visible(viewer, since, until).values_list("index", flat=True)
    first, last = indices.order_by("at").first(), indices.order_by("-at").first()
    if first is None or last is None:
        earlier = search.visible(viewer, EPOCH, since).order_by("-at").values_list("index", flat=True).first()
        end = 0 if earlier is None else earlier + 1
        return Span(viewer, since, until, end, end, made_at), _covering(end - 1) if end else None
    return Span(viewer, since, until, first, last + 1, made_at), _covering(last)


def _covering(index: int) -> Checkpoint:
    log = logtree.log_of(index)
    found = logtree.covering(log, index - log.start) if log else None
    if found is None:
        # Of a log that was closed before it sealed this one: the log after it took it over, and leads on from there.
        later = logtree.current()
        found = logtree.newest(later) if later and log and later.number > log.number else None
    if found is None:
        raise Refused("part of the period is not sealed yet: the sealer looks every second, so try again soon", True)
    return found
