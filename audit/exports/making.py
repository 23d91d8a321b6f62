"""Making the file of one run: pages of records below the sealed size go into it, and what is safe on the disk is saved,
so that a run which is killed goes on from there. With the rights that the export's owner has at that time."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import IO, Any
from urllib.parse import parse_qsl

from django.conf import settings
from django.contrib.auth import get_user_model
from django.utils import timezone

from audit import search
from audit.exports import files, formats, rights, store
from audit.exports.claims import Claim
from audit.exports.columns import PERSONAL
from audit.models import Export, ExportRun
from audit.records_form import Directory, FilterForm
from audit.search import Query
from audit.search_pages import Row
from audit.viewer import Viewer, viewer_of
from muniment.exported import NONE

SAVED_RECORDS, SAVED_SECONDS = 50_000, 5.0
CHECKED_SECONDS = 0.5
NARROWED = "Its owner was confined to other tenants since it was begun. Run the export again."
ASKED_AGAIN = 60.0  # seconds after which the owner's rights are asked for again


class Refused(Exception):
    """The run must not be made, or cannot; no other attempt would be better. The words are for people."""


def viewer_for(run: ExportRun) -> Viewer:
    """The owner of a run with the rights of now. Raises Refused where those do not suffice."""
    number = run.owner.removeprefix("staff:")
    user = get_user_model().objects.filter(pk=int(number)).first() if number.isdecimal() else None
    if user is None or not user.is_active or not user.is_staff:
        raise Refused("Its owner is no longer on the staff.")
    viewer = viewer_of(user)
    if not viewer.records or not user.has_perm("audit.add_export"):
        raise Refused("Its owner may no longer export records.")
    if run.personal and not viewer.personal:
        raise Refused("It has personal data, and its owner may no longer see personal data.")
    if run.personal and not (settings.MUNIMENT_EXPORT_PERSONAL and "KEY_ENCRYPTION_KEY" in settings.MUNIMENT_KEYS):
        raise Refused("It has personal data, and exports of this platform may not (MUNIMENT_EXPORT_PERSONAL).")
    return viewer


def check(run: ExportRun, export: Export) -> None:
    """Whether a run may be made, and delivered, now: by the rights of its owner, and only what it was begun as. Raises
    Refused."""
    viewer = viewer_for(run)
    if run.state == "delivering" and not rights.within(run, viewer.tenants):
        raise Refused(NARROWED)
    if not run.personal and not set(PERSONAL).isdisjoint(export.columns):
        raise Refused("It has columns of personal data, and was not begun as an export of personal data.")


def query_of(export: Export, run: ExportRun) -> Query:
    """What a run looks for: the export's search, in the time of the run. Raises Refused."""
    form = FilterForm(dict(parse_qsl(export.query)), Directory())
    if not form.is_valid():
        raise Refused("Its search is none that can be made any more.")
    asked = form.query()
    return Query(run.since, run.until, asked.filters, asked.lookups)


def make(claim: Claim, export: Export, sealed: int) -> None:
    """Write the run's file, all of it, up to its last record. Raises Refused, Cancelled, Lost, OSError and
    audit.exports.store.StoreFailed."""
    store.check_space()
    query = query_of(export, claim.run)
    if export.format in formats.BY_LINES:
        _Pages(claim, export, query, sealed).lines()
    elif export.format == "parquet":
        _Pages(claim, export, query, sealed).parquet()
    else:
        _whole(claim, export, query)


class _Pages:
    """A run that is made of pages of rows."""

    def __init__(self, claim: Claim, export: Export, query: Query, sealed: int) -> None:
        self.claim, self.run, self.export, self.query, self.sealed = claim, claim.run, export, query, sealed
        self.counts = Counter(self.run.counts)
        self.records = self.run.records
        self.next = 0
        self._checked = self._saved = time.monotonic()
        self._saved_records = 0

    def lines(self) -> None:
        """Text: it goes on where it was, if what was saved is there."""
        run = self.run
        if not files.has(run, run.offset) or run.next is None or not self._same(viewer_for(run)):
            self._anew()
        assert run.next is not None
        self.next = run.next
        made = formats.lines(self.export.format, self.export.columns)
        with files.opened(run, run.offset) as file:
            if not run.offset:
                file.write(made.head)
                self._save(file)
            self._each(made.sql, lambda rows: self._add(file, made.page(rows, self.sealed)))
            self._save(file)

    def _add(self, file: IO[bytes], data: bytes) -> None:
        file.write(data)
        late = time.monotonic() - self._saved > SAVED_SECONDS
        if late or self.records - self._saved_records >= SAVED_RECORDS:
            self._save(file)

    def _save(self, file: IO[bytes]) -> None:
        offset = files.synced(file)
        # That it came on is what counts: interruptions before are forgiven.
        self.claim.save(next=self.next, offset=offset, records=self.records, counts=dict(self.counts), tries=0)
        self._saved, self._saved_records = time.monotonic(), self.records

    def parquet(self) -> None:
        """A file with its directory at the end: it begins anew."""
        from audit.exports.formats import parquet  # loads pyarrow, which is large

        self._anew()
        with files.opened(self.run, 0) as file:
            writer = parquet.Writer(file, self.export.columns)
            try:
                self._each(writer.columns.sql, lambda rows: self._row_group(writer, rows))
            except BaseException:
                writer.abort()
                raise
            writer.close()
            files.synced(file)
        self.claim.save(next=self.next, records=self.records, counts=dict(self.counts))

    def _row_group(self, writer: Any, rows: list[Row]) -> None:
        """Add to it, and save how far it is; nothing of it is to go on from."""
        writer.page(rows, self.sealed)
        if time.monotonic() - self._saved > SAVED_SECONDS:
            self.claim.save(next=self.next, records=self.records)
            self._saved = time.monotonic()

    def _anew(self) -> None:
        self.counts, self.records = Counter(), 0
        _note(self.claim, viewer_for(self.run))

    def _same(self, viewer: Viewer) -> bool:
        """Whether what is written is what they may see: of no tenant more, and of none less."""
        made_with = self.run.definition.get(rights.MADE_WITH, ())
        return bool(made_with == rights.noted(viewer.tenants))

    def _each(self, sql: Sequence[str], take: Callable[[list[Row]], None]) -> None:
        """Have `take` take all pages from where the run stands; the owner's rights are asked for once a minute."""
        assert self.run.next is not None and self.run.last is not None
        self.next, behind = self.run.next, self.run.last + 1
        while self.next < behind:
            viewer, since = viewer_for(self.run), time.monotonic()
            if not self._same(viewer):
                raise Refused(NARROWED)
            for reached, rows in search.pages(viewer, self.query, self.next, behind, sql):
                self._check()
                self.next = reached
                self.records += len(rows)
                self.counts.update(row[1] or NONE for row in rows)
                take(rows)
                if time.monotonic() - since > ASKED_AGAIN:
                    break

    def _check(self) -> None:
        if time.monotonic() - self._checked > CHECKED_SECONDS:
            self.claim.check()
            self._checked = time.monotonic()


def _whole(claim: Claim, export: Export, query: Query) -> None:
    """A format that writes its file in one go: it begins anew."""
    from audit import bundling
    from audit.evidence import packing
    from audit.exports.formats import whole

    run, viewer = claim.run, viewer_for(claim.run)
    if viewer.tenants is not None:
        raise Refused("It shows all of the log, and its owner may see that of some tenants alone.")
    _note(claim, viewer)
    tick = _Tick(claim)
    try:
        with files.opened(run, 0) as file:
            if export.format == "bundle":
                whole.bundle(file, query, tick)
            else:
                made = whole.pack(file, viewer, export, query, run.created_at, tick)
            files.synced(file)
    except (bundling.Refused, packing.Refused) as error:
        raise Refused(f"It cannot be made: {error}.") from None
    counts = _counted(viewer, query, run, tick) if export.format == "bundle" else {NONE: made}
    claim.save(next=(run.last or 0) + 1, records=sum(counts.values()), counts=counts)


def _counted(viewer: Viewer, query: Query, run: ExportRun, tick: Callable[[], None]) -> dict[str, int]:
    """The records of a bundle's search by decision."""
    counts: Counter[str] = Counter()
    for _, rows in search.pages(viewer, query, run.first or 0, (run.last or 0) + 1):
        counts.update(row[1] or NONE for row in rows)
        tick()
    return dict(counts)


def _note(claim: Claim, viewer: Viewer) -> None:
    """It begins anew, for this viewer."""
    definition = claim.run.definition | {rights.MADE_WITH: rights.noted(viewer.tenants)}
    claim.save(next=claim.run.first, offset=0, records=0, counts={}, definition=definition)


class _Tick:
    """Called often; looks now and then whether to go on, and whether the owner still may. Raises as `make`."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self._checked = self._asked = time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._checked < CHECKED_SECONDS:
            return
        self._checked = now
        self.claim.check()
        if now - self._asked > ASKED_AGAIN:
            if viewer_for(self.claim.run).tenants is not None:
                raise Refused(NARROWED)
            self._asked = now
        if self.claim.run.seen_at is None or (timezone.now() - self.claim.run.seen_at).total_seconds() > SAVED_SECONDS:
            self.claim.save()
            self.claim.run.seen_at = timezone.now()
