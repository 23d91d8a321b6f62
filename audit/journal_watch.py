"""Looks once a second whether the database still has what this machine answered, and whether it is sealed in time.

An entry of the journal leaves it once a checkpoint covers it while the database has that batch with that digest. From
then on the tree is what no loss gets past. A batch that is gone, or whose place another has, is raised at once as
`batch-missing`, at which the sealer stops; one that waits too long as `sealing-late`. The database is looked at, not
believed: a checkpoint counts that a log key signed which this process knew before, or which such a key introduced.
"""

import logging
import socket
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from threading import Event, Thread

from django.db import Error, connection
from django.utils import timezone

from audit import alerts
from audit.journal import Entry, Journal
from audit.models import Alert, Outbox, PublishedKey
from muniment.checkpoints import CheckpointError, read
from muniment.findings import counted
from muniment.keys import Trust
from muniment.notes import ED25519, Key, NoteError

logger = logging.getLogger(__name__)

EVERY = 1.0  # seconds
AGAIN = 0.25  # seconds until what is not there is looked for once more
LATE = 10_000  # milliseconds without a checkpoint
# Older ones, where the database has them, are forgotten: the chain of digests leads from each newer one to them.
MOST = 2000
# An alert of several processes is over when none of them has said so for a while.
QUIET = timedelta(seconds=2.5)

BATCHES = "SELECT first, digest FROM audit_batch WHERE first = ANY(%s)"
LOGS = """SELECT number, start, opened_at,
        (SELECT note FROM audit_checkpoint c WHERE c.log = l.number ORDER BY size DESC LIMIT 1)
    FROM audit_log l ORDER BY number"""


class Sealed:
    """What is sealed, as far as this process believes it: `log` is the newest log with a believed checkpoint (0: none),
    `upto` the index behind the newest sealed record. `opened` and `opened_at` are of the newest log that there is said
    to be. Raises django.db.Error."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.trust = Trust()
        self.log = self.upto = self.opened = 0
        self.opened_at: datetime | None = None
        self._starts: dict[int, int] = {1: 0}  # of each log, as it was first seen
        self._sizes: dict[tuple[int, str], int] = {}  # by number and believed note, of the newest of each log

    def look(self) -> None:
        """Read the newest checkpoint of each log."""
        with connection.cursor() as cursor:
            cursor.execute(LOGS)
            rows = cursor.fetchall()
        self.log = self.upto = self.opened = 0
        self.opened_at = None
        sizes = {}
        for number, start, opened_at, note in rows:
            self.opened, self.opened_at = number, opened_at
            size = self._believed(number, note) if note else None
            if size is None:  # a log that begins: what stands from its start on is not sealed by the one before
                self.upto = min(self.upto, start)
                continue
            sizes[number, note] = size
            self.upto = self._starts.setdefault(number, start) + size
            self.log = number
        self._sizes = sizes

    def _believed(self, number: int, note: str) -> int | None:
        """The size of a checkpoint; None for one that no known key signed for that log."""
        origin = self.origin if number == 1 else f"{self.origin}/{number}"
        if (number, note) in self._sizes:
            return self._sizes[number, note]
        for learn in (self._first_use, self._introductions):
            try:
                return read(note, self.trust.log_keys(origin)).size
            except CheckpointError:
                learn(origin, note)
        try:
            return read(note, self.trust.log_keys(origin)).size
        except CheckpointError:
            logger.warning("the newest checkpoint of log %d is signed by no known log key", number)
            return None

    def _first_use(self, origin: str, note: str) -> None:
        """The first checkpoint that is seen is believed, if a published log key signed it."""
        if self.trust.logs:
            return
        for key_id, public in PublishedKey.objects.filter(use="log").values_list("key_id", "public"):
            try:
                read(note, [Key(origin, ED25519, bytes(public))])
            except (CheckpointError, NoteError):
                continue
            self.trust.logs[key_id] = bytes(public)

    def _introductions(self, origin: str, note: str) -> None:
        """After that, a key is believed that a known one introduced. The outbox has what is in the log of late."""
        for members in Outbox.objects.filter(kind="key").order_by("id").values_list("members", flat=True):
            self.trust.learn({**(members or {}), "type": "key"})


class Watch:
    """The thread that looks after one journal. `origin` is log 1's; `clock` tells unix seconds."""

    def __init__(self, journal: Journal, origin: str, clock: Callable[[], float] = time.time) -> None:
        self.journal, self.clock = journal, clock
        self.host = socket.gethostname() or "a web process"
        self.sealed = Sealed(origin)
        self.entries: dict[tuple[int, bytes], Entry] = {}
        self.alerts: list[Alert] = []  # those open when the look began
        self.raised: set[str] = set()
        self.away = False
        # Nobody seals while the database is away, nor, perhaps, while we were.
        self.since = self._now()
        self.stopping = Event()
        self.thread = Thread(target=self._run, name="journal", daemon=True)

    def start(self) -> "Watch":
        """Start the thread."""
        self.thread.start()
        return self

    def stop(self) -> None:
        """Stop, and let go of the journal's slot."""
        self.stopping.set()
        if self.thread.is_alive():
            self.thread.join(timeout=10)
        self.journal.close()

    def look(self) -> None:
        """One look. Never raises for a database that is away or a file that cannot be written."""
        self.journal.take_over()
        self._gather()
        try:
            self._judge()
            self.away = False
        except Error as error:
            if not self.away:
                logger.warning("the journal cannot be compared with the database: %s", type(error).__name__)
            self.away, self.since = True, self._now()
            connection.close()
        self.journal.keep(self.entries.values())

    def _run(self) -> None:
        while not self.stopping.wait(EVERY):
            try:
                self.look()
            except Exception:
                logger.exception("looking after the journal failed")
        self._gather()
        self.journal.keep(self.entries.values())
        connection.close()

    def _now(self) -> int:
        return int(self.clock() * 1000)

    def _gather(self) -> None:
        for entry in self.journal.take():
            self.entries[entry.first, entry.digest] = entry

    # --- comparing ----------------------------------------------------------------------------------------

    def _judge(self) -> None:
        self.alerts = alerts.open_alerts()
        self._tell("journal-failing", f"{self.journal.failing}." if self.journal.failing else "")
        entries = sorted(self.entries.values(), key=lambda entry: (entry.at, entry.first))
        if entries:  # before they are looked for: what is there now, and was sealed by then, is done
            self.sealed.look()
        lost = self._lacking(entries)
        if lost:  # a commit that was on its way is there in the next statement
            self.stopping.wait(AGAIN)
            lost = self._lacking(lost)
        missing = {(entry.first, entry.digest) for entry in lost}
        self._tell_missing(runs(entries, missing))
        found = [entry for entry in entries if (entry.first, entry.digest) not in missing]
        waiting = self._drop_sealed(found)
        self._tell_late(waiting)

    def _lacking(self, entries: list[Entry]) -> list[Entry]:
        """Those whose place in the database is empty, or another's."""
        if not entries:
            return []
        with connection.cursor() as cursor:
            cursor.execute(BATCHES, [[entry.first for entry in entries]])
            there = {first: bytes(digest) for first, digest in cursor.fetchall()}
        return [entry for entry in entries if there.get(entry.first) != entry.digest]

    def _drop_sealed(self, found: list[Entry]) -> list[Entry]:
        """Let go of what is sealed; what is left, but for what the newest ones vouch for."""
        waiting = [entry for entry in found if entry.last >= self.sealed.upto]
        kept = waiting[-MOST:]
        if any(alert.kind == "sealer-halted" for alert in self.alerts):
            # After a loss, others may stand where the newest checkpoint had those that were lost.
            kept = found[-MOST:]
        keys = {(entry.first, entry.digest) for entry in kept}
        for entry in found:
            if (entry.first, entry.digest) not in keys:
                del self.entries[entry.first, entry.digest]
        return waiting

    # --- telling ------------------------------------------------------------------------------------------

    def _tell_late(self, waiting: list[Entry]) -> None:
        late = [entry for entry in waiting if self._now() - max(entry.at, self.since) > LATE]
        words = ""
        if late:
            count = sum(entry.size for entry in waiting)
            words = f"{counted(count, 'record')} from index {late[0].first:,} on, the oldest of {clock(late[0].at)}."
        self._tell("sealing-late", words)

    def _tell_missing(self, lost: list[list[Entry]]) -> None:
        """An alert for each run of batches that are gone; cleared if they are all found again."""
        names = {f"batch {run[0].first}": run for run in lost}
        for about in self.raised - set(names):
            alerts.clear("batch-missing", about)
        self.raised &= set(names)
        for about, run in names.items():
            if not self._accounted(about, run):
                if about not in self.raised:
                    logger.error("batches that were answered are not in the database, the first at %d", run[0].first)
                alerts.raise_alert("batch-missing", about, self._words(run))
                self.raised.add(about)
            # The next log was opened, which ended the alert; it is believed once it is sealed.
            elif self.sealed.log == self.sealed.opened and self.journal.put_by(self.sealed.log - 1, run):
                self.raised.discard(about)
                for entry in run:
                    del self.entries[entry.first, entry.digest]

    def _words(self, run: list[Entry]) -> str:
        records = counted(sum(entry.size for entry in run), "record")
        batches = "one write batch" if len(run) == 1 else f"{len(run):,} write batches"
        when = clock(run[0].at) if len(run) == 1 else f"{clock(run[0].at)} to {clock(run[-1].at)}"
        return (
            f"{self.host} wrote {records} in {batches}, from index {run[0].first:,} on, and answered for them, {when}. "
            "The database does not have them, or has others in their place."
        )

    def _accounted(self, about: str, run: list[Entry]) -> bool:
        """Whether the newest log was opened, after a loss, by people who knew of this one."""
        opened_at = self.sealed.opened_at
        if self.sealed.opened < 2 or opened_at is None or run[-1].at >= opened_at.timestamp() * 1000:
            return False
        return Alert.objects.filter(kind="batch-missing", about=about, raised_at__lt=opened_at).exists()

    def _tell(self, kind: str, words: str) -> None:
        """Raise what holds for this machine; end it when nobody here has said so for a while."""
        if words:
            alerts.raise_alert(kind, self.host, words)
            return
        quiet = timezone.now() - QUIET
        if any((a.kind, a.about) == (kind, self.host) and a.seen_at < quiet for a in self.alerts):
            alerts.clear(kind, self.host)


def runs(entries: Iterable[Entry], missing: set[tuple[int, bytes]]) -> list[list[Entry]]:
    """The missing ones, those that follow each other together. Each run is one loss, with one alert."""
    found: list[list[Entry]] = []
    follows = False
    for entry in entries:
        if is_missing := (entry.first, entry.digest) in missing:
            if not follows:
                found.append([])
            found[-1].append(entry)
        follows = is_missing
    return found


def clock(at: int) -> str:
    """Unix milliseconds as the time of day in UTC, with the date."""
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
