"""Anchors: where checkpoints go, so that a log that is cut off or rewritten can be found out (DESIGN.md section 6).

`configured` reads MUNIMENT_ANCHORS, `push_all` hands the newest checkpoint to each, `held` reads back what they have.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from urllib.parse import SplitResult, urlsplit

from django.conf import settings

from audit.anchors import pushing
from audit.anchors.base import Anchor, AnchorError, ConfigError
from audit.anchors.directory import Directory
from audit.anchors.mail import Mail
from audit.anchors.s3 import Bucket
from audit.anchors.syslog import Syslog
from audit.anchors.witness import WitnessAnchor

__all__ = ["Anchor", "AnchorError", "ConfigError", "configured", "held", "parse", "push_all"]

KINDS: dict[str, Callable[[SplitResult], Anchor]] = {
    "file": Directory.parse,
    "s3": Bucket.parse,
    "syslog": Syslog.parse,
    "syslog+tcp": Syslog.parse,
    "mailto": Mail.parse,
    "witness+https": WitnessAnchor.parse,
    "witness+http": WitnessAnchor.parse,
}
MAX_NAME = 255


def parse(urls: Sequence[str]) -> list[Anchor]:
    """The anchors that these URLs say, in their order. Raises ConfigError, which names an entry by its number."""
    anchors: list[Anchor] = []
    for position, url in enumerate(urls, 1):
        try:
            anchor = _one(url)
        except ConfigError as error:
            raise ConfigError(f"entry {position}: {error}") from None
        if anchor.name in [other.name for other in anchors]:
            raise ConfigError(f"entry {position}: there is another one of the same kind and place")
        anchors.append(anchor)
    return anchors


def configured() -> list[Anchor]:
    """The anchors of MUNIMENT_ANCHORS. Raises ConfigError; the system check muniment.E006 says so at the start."""
    return parse(settings.MUNIMENT_ANCHORS)


def push_all() -> None:
    """Hand the newest checkpoint to every anchor that does not have it. To run twice, or to be killed, does no harm."""
    pushing.push(configured())


def held(origin: str, limit: int | None = None) -> Iterator[tuple[str, str]]:
    """What anchors hold of a log: an anchor's name and a note, for each anchor the largest first, at most `limit`.

    They are not verified. Of the kinds, directories and buckets can be read back. When one cannot be read, the others
    are read all the same; then AnchorError says which it was.
    """
    failed = []
    for anchor in configured():
        try:
            # Two origins can have one folder; what is of another one must not count.
            ours = (note for note in anchor.held(origin) if note.partition("\n")[0] == origin)
            for note in islice(ours, limit):
                yield anchor.name, note
        except AnchorError as error:
            failed.append(f"{anchor.name}: {error}")
    if failed:
        raise AnchorError("; ".join(failed))


def _one(url: str) -> Anchor:
    # urlsplit drops tabs and line ends silently, so they are refused before it sees them.
    if not url.isprintable() or len(url) > 2048:
        raise ConfigError("it is too long, or has a character that a URL may not have")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError("it is not a URL") from None
    if parts.scheme not in KINDS:
        raise ConfigError(f"it must begin with one of {', '.join(f'{kind}:' for kind in KINDS)}")
    anchor = KINDS[parts.scheme](parts)
    if len(anchor.name) > MAX_NAME:
        raise ConfigError("its name is too long")
    return anchor
