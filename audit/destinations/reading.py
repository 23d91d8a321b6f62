"""Reading MUNIMENT_DESTINATIONS: which kinds there are."""

from collections.abc import Callable

from audit.configured import Fields, of_kind, places
from audit.destinations.base import Destination
from audit.destinations.directory import Directory
from audit.destinations.https import Https
from audit.destinations.s3 import Bucket
from audit.destinations.sftp import Sftp

KINDS: dict[str, Callable[[str, Fields], Destination]] = {
    "directory": Directory.parse,
    "s3": Bucket.parse,
    "sftp": Sftp.parse,
    "https": Https.parse,
}


def parse(text: str) -> list[Destination]:
    """The destinations that the text lists, in their order. Raises ConfigError, which names an entry by its number."""
    return places(text, lambda given: of_kind(given, KINDS))
