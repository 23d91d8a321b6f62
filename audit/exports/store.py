"""Where the files of exports are kept for download: one folder (MUNIMENT_EXPORTS), each file under the name of its run
for MUNIMENT_EXPORT_DAYS. A file has its name only when it is whole and on disk (`audit.exports.files` makes it)."""

import errno
import os
import re
import shutil
import stat
import time
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from audit.destinations.base import FILE_NAME
from audit.disk import sync_folder
from audit.models import ExportRun
from audit.models.handing import OPEN
from muniment.exported import SUFFIX

RESERVE = 64 * 2**20
"""Bytes that an export leaves free on the disk: others write there too."""
MANIFEST = SUFFIX
SWEPT = 5000  # files that one sweep deletes at most
LEFT_ALONE = 3600.0  # seconds for which what nobody seems to write any more is left
ERASED = (
    "The file is not handed out any more: it was made before a user was erased, and holds personal data of them. "
    "Run the export again to have one without."
)
_PART = re.compile(r"\.([0-9]{1,18})\.[a-z0-9.]{1,40}")


class StoreFailed(Exception):
    """The folder of exports cannot be used, or has not what was asked for. In words for people, without a path."""


def folder() -> Path:
    """The folder, made where it is missing. Raises StoreFailed."""
    root: Path = settings.MUNIMENT_EXPORTS
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = root.stat()
    except OSError as error:
        raise StoreFailed(words(error)) from None
    if state.st_mode & 0o007:
        raise StoreFailed("The folder of exports is open to everybody on this machine: take their rights away (0700).")
    return root


def check_space(needed: int = 0) -> None:
    """Whether so many bytes more can be kept, with a reserve. Raises StoreFailed."""
    try:
        free = shutil.disk_usage(folder()).free
    except OSError as error:
        raise StoreFailed(words(error)) from None
    if free < needed + RESERVE:
        raise StoreFailed(f"There is no space left where exports are kept: {free // 2**20:,} MiB are free.")


def part(run: int, kind: str = "part") -> Path:
    """Where the worker writes what is not whole yet: `.<run>.<kind>`. Raises StoreFailed."""
    return folder() / f".{run}.{kind}"


def path(name: str) -> Path:
    """Where a whole file is, or is to be. Raises StoreFailed for a name that is not plain."""
    if not FILE_NAME.fullmatch(name):
        raise StoreFailed("That is not the name of a file of an export.")
    return folder() / name


def keep(source: Path, name: str) -> Path:
    """Give a part its name, once it is on disk; nothing has the name before. What a run that was killed here made
    before is replaced by the same. Raises StoreFailed."""
    target = path(name)
    try:
        with source.open("rb+") as file:
            os.fchmod(file.fileno(), 0o600)
            os.fsync(file.fileno())
        source.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise StoreFailed(words(error)) from None
    return target


def open_kept(run: ExportRun, *, manifest: bool = False) -> IO[bytes]:
    """The kept file of a run, or its manifest, to be read. Raises StoreFailed where it is not here, or not as it was
    made."""
    if run.removed_at is not None:
        raise StoreFailed(f"The file was deleted on {run.removed_at:%-d %B %Y}: files are kept for a limited time.")
    if run.erased_since:
        raise StoreFailed(ERASED)
    if not run.file or run.state in ("waiting", "running", "cancelled"):
        raise StoreFailed("The file is not made yet, or was never made.")
    place = path(run.file + (MANIFEST if manifest else ""))
    try:
        number = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        raise StoreFailed("The file is not on this server. Another one may have it, or it was moved away.") from None
    state, size = os.fstat(number), len(run.manifest.encode()) if manifest else run.bytes
    if not stat.S_ISREG(state.st_mode) or state.st_size != size:
        os.close(number)
        raise StoreFailed("What is kept under the file's name is not what was made. It is not handed out.")
    return os.fdopen(number, "rb")


def remove(run: ExportRun) -> None:
    """Delete what is kept of a run. To run twice does no harm. Raises StoreFailed."""
    for name in (run.file, run.file + MANIFEST) if run.file else ():
        try:
            path(name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreFailed(words(error)) from None


def sweep(now: datetime | None = None) -> int:
    """Delete the files whose time is over or that hold a user who was erased since, and what killed workers left; how
    many files of runs went. Daily; to be
    killed or to run twice does no harm: a run says that its file is gone only after it is. Raises StoreFailed."""
    now = now or timezone.now()
    before = now - timedelta(days=settings.MUNIMENT_EXPORT_DAYS)
    over = Q(ended_at__lt=before) | ~Q(erased_since=[])
    found = ExportRun.objects.filter(over, removed_at=None).exclude(file="").exclude(state__in=OPEN)
    runs = list(found.order_by("ended_at")[:SWEPT])
    for run in runs:
        remove(run)
        ExportRun.objects.filter(pk=run.pk, removed_at=None).update(removed_at=now)
    _sweep_leftovers()
    return len(runs)


def _sweep_leftovers() -> None:
    """Unfinished files of runs that are over, and files that no run has, such as those of a database that was restored
    to an older state: each after it has lain still for long enough."""
    for found in sorted(folder().iterdir())[: 4 * SWEPT]:
        with suppress(OSError):
            still = time.time() - found.lstat().st_mtime
            if still > LEFT_ALONE and (matched := _PART.fullmatch(found.name)):
                if not ExportRun.objects.filter(pk=int(matched[1]), state__in=OPEN).exists():
                    found.unlink()
            elif still > settings.MUNIMENT_EXPORT_DAYS * 86400 and FILE_NAME.fullmatch(found.name):
                kept = ExportRun.objects.filter(file=found.name.removesuffix(MANIFEST), removed_at=None)
                if not kept.exists():
                    found.unlink()


def words(error: OSError) -> str:
    """What went wrong with the folder or its disk, in a sentence without a path."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "There is no space left where exports are kept."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "The folder of exports cannot be written by the worker."
    what = os.strerror(error.errno) if error.errno else type(error).__name__
    return f"The folder of exports cannot be used: {what}."
