"""Reading MUNIMENT_DESTINATIONS: a YAML list of places, whose errors say which entry and why, and never a value."""

import re
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import yaml

from audit.destinations.base import ConfigError, Destination, Fields
from audit.destinations.directory import Directory
from audit.destinations.https import Https
from audit.destinations.s3 import Bucket
from audit.destinations.sftp import Sftp

MAX_BYTES = 256 * 1024
MAX_ENTRIES = 100
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
KINDS: dict[str, Callable[[str, Fields], Destination]] = {
    "directory": Directory.parse,
    "s3": Bucket.parse,
    "sftp": Sftp.parse,
    "https": Https.parse,
}


class _Loader(yaml.SafeLoader):
    """YAML's safe subset without aliases, in which a key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len({str(key) for key in keys}) != len(keys):
            raise yaml.YAMLError
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError
        return super().compose_node(parent, index)


def parse(text: str) -> list[Destination]:
    """The destinations that the text lists, in their order. Raises ConfigError, which names an entry by its number."""
    found: list[Destination] = []
    for position, entry in enumerate(_entries(text), 1):
        try:
            destination = _one(entry)
        except ConfigError as error:
            raise ConfigError(f"entry {position}: {error}") from None
        if destination.name in [other.name for other in found]:
            raise ConfigError(f"entry {position}: there is another one of the same name")
        found.append(destination)
    return found


def _entries(text: str) -> list[Any]:
    if len(text) > MAX_BYTES:
        raise ConfigError(f"it is larger than {MAX_BYTES} bytes")
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"it is not YAML{where}") from None
    # A tag on what is no such value makes PyYAML raise whatever comes: KeyError, AttributeError, ...
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        raise ConfigError("it is not YAML, or gives a key twice") from None
    entries = [] if document is None else document
    if not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
        raise ConfigError(f"it must be a list of at most {MAX_ENTRIES} destinations")
    return entries


def _one(entry: Any) -> Destination:
    if not isinstance(entry, dict):
        raise ConfigError("it must be a mapping with name and kind")
    given = Fields(entry, _secret_of)
    name, kind = given.text("name"), given.text("kind")
    if not NAME.fullmatch(name):
        raise ConfigError("name must be lower-case letters, digits, - and _, 64 at most")
    if kind not in KINDS:
        raise ConfigError(f"kind must be one of {', '.join(KINDS)}")
    destination = KINDS[kind](name, given)
    given.done()
    if len(destination.place) > 255:
        raise ConfigError("its address is too long")
    return destination


def _secret_of(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return file.read(64 * 1024).decode().strip()
    except OSError as error:
        raise ConfigError(f"the file of a secret cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError("the file of a secret is not text") from None
