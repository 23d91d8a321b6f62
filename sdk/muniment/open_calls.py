"""Calls of tools that fail open: written down before they run, reported in order once the platform is back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from muniment import client, forks
from muniment.background import logger
from muniment.calls import Incoming
from muniment.errors import Refused
from muniment.spool import File, SpoolDamaged, files, prepared, told
from muniment.tools import Finish

PATH = "/v1/ungoverned"
# What the platform says of lines that it will never take; of all else it may think otherwise tomorrow.
NEVER = frozenset({"invalid-member", "invalid-json", "spool-broken"})
LOOK = 60.0  # seconds between two looks for what other processes left
AGAIN = 5.0  # seconds after a refusal in which nothing is reported


class OpenCalls:
    """The open calls of one backend, over a folder that its processes share; each writes a file of its own, and reports
    what others left behind. Raises Misconfigured for a folder that is not private."""

    def __init__(self, folder: Path, platform: client.Platform) -> None:
        self._folder, self._platform = prepared(folder), platform
        self._lock = threading.Lock()
        self._reporting = threading.Lock()
        self._own: File | None = None
        self.waiting = bool(files(self._folder))
        self._look, self._again = time.monotonic() + LOOK, 0.0
        forks.remember(self)

    def after_fork(self) -> None:
        """In a child: the file is the parent's, and what waits in it is the parent's to report. What is nobody's is
        everybody's: a parent that only forks calls no tool, and would never come to it."""
        self._lock, self._reporting = threading.Lock(), threading.Lock()
        self._own, self.waiting, self._look = None, False, 0.0

    def due(self) -> bool:
        """Whether to report now, the platform being there: something waits, or it is time to look whether another
        process, that is no more, left something; it may have had an outage of which this one noticed nothing."""
        now = time.monotonic()
        return now >= self._again and (self.waiting or now >= self._look)

    def began(self, tool: str, given: Incoming, cause: str, report: Callable[[], Any]) -> Finish:
        """A call is about to run: it is on disk when this returns. `report` asks for a report, soon. What comes of the
        call is kept nowhere: nobody verified it. Raises SpoolFailed; then it must not run."""
        members = told(tool, given, cause)
        forks.notice()
        with self._lock:
            if self._own is None or self._own.finished:
                self._own = File.new(self._folder)
            self._own.append(members)
            self.waiting = True
        logger.warning("%s runs without the platform (%s); the call is in the spool", tool, cause)
        report()
        return lambda outcome: None

    def report(self) -> int:
        """Report what waits, each file in order; how many calls were reported. Raises Unavailable while the platform is
        away, and what else keeps it from taking them."""
        with self._reporting:
            self._look = time.monotonic() + LOOK
            count = sum(self._report(file) for file in self._left())
            own = self._own
            if own is not None:
                count += self._report(own)
            with self._lock:
                self.waiting = self._own is not None and self._own.waiting > 0
            return count

    def _left(self) -> Iterator[File]:
        """What processes left that are no more; one at a time, since each stays locked until it is let go of."""
        for path in files(self._folder):
            if self._own is not None and path == self._own.path:
                continue
            try:
                file = File.adopt(path)
            except SpoolDamaged as error:
                logger.error("a file of the spool is damaged after line %d, and was put aside", error.sequence)
                continue
            if file:
                self.waiting = True  # until all of it is reported
                yield file

    def _report(self, file: File) -> int:
        count = 0
        try:
            while not file.finished:
                for batch in file.batches():
                    entries = [line.data.decode() for line in batch]
                    self._platform.send(_request(file, entries))
                    file.taken(batch)
                    count += len(batch)
                with self._lock:  # a call that begins now is written before this, or into another file
                    file.finish()
        except Refused as error:
            if error.problem not in NEVER:
                file.again()
                self._again = time.monotonic() + AGAIN
                raise
            logger.error("the platform does not take a file of the spool (%s); it was put aside", error.problem)
            file.refuse()
        finally:
            if file is not self._own:
                file.close()
        return count

    def close(self) -> None:
        """Let go of the file; what is left in it is reported by the next process."""
        with self._lock:
            if self._own is not None:
                self._own.close()
                self._own = None


def _request(file: File, entries: list[str]) -> client.Request:
    return client.request("POST", PATH, {"spool": file.spool, "entries": entries}, of="report")
