"""Places that the operator lists in YAML (MUNIMENT_DESTINATIONS, MUNIMENT_STREAMS): read strictly, with errors that say
which entry and why, and never a value, which may be a secret."""

import re
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml

MAX_BYTES = 256 * 1024
MAX_ENTRIES = 100
MAX_TEXT = 4096  # characters of one value
MAX_SECRET = 64 * 1024  # bytes of a file with a secret
MAX_PLACE = 255
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class ConfigError(ValueError):
    """The list or an entry of it cannot be. Never repeats a value of the entry, which may be a secret."""


class Place(Protocol):
    """What an entry becomes. `place`: where it is, without credentials."""

    name: str
    place: str


T = TypeVar("T", bound=Place)


class Fields:
    """One entry of the configuration, value by value; what was not asked for is refused at the end."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = dict(given)

    def raw(self, name: str) -> Any:
        """Whatever it is; None where it is missing."""
        return self._given.pop(name, None)

    def text(self, name: str, default: str | None = None) -> str:
        """A printable text. Raises ConfigError where it is missing and there is no default."""
        value = self._given.pop(name, None)
        if value is None:
            if default is None:
                raise ConfigError(f"{name} is missing")
            return default
        if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= MAX_TEXT:
            raise ConfigError(f"{name} must be a text of one line, in quotes if it is a number")
        return value

    def lines(self, name: str) -> list[str]:
        """The lines of a text, at least one. Raises ConfigError."""
        value = self._given.pop(name, None)
        found = [line.strip() for line in value.splitlines() if line.strip()] if isinstance(value, str) else []
        if not found or len(found) > 20 or not all(line.isprintable() and len(line) <= MAX_TEXT for line in found):
            raise ConfigError(f"{name} must be a text with a line for each")
        return found

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number. Raises ConfigError."""
        value = self._given.pop(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ConfigError(f"{name} must be a number from {least} to {most}")
        return value

    def secret(self, name: str, default: str | None = None) -> str:
        """A secret, given as NAME or in a file as NAME_file. Raises ConfigError, which never repeats it."""
        path = self.text(f"{name}_file", "")
        if path and name in self._given:
            raise ConfigError(f"either {name} or {name}_file, not both")
        if not path:
            if name not in self._given and default is None:
                raise ConfigError(f"{name} (or {name}_file) is missing")
            return self.text(name, default)
        value = _secret_of(path)
        if not value.isprintable() or not 0 < len(value) <= MAX_TEXT:
            raise ConfigError(f"what {name}_file names is not one line of text")
        return value

    def done(self) -> None:
        """Everything that belongs to this kind was asked for. Raises ConfigError for what is left, by name only where
        the name is a plain word."""
        for name in self._given:
            known = isinstance(name, str) and re.fullmatch(r"[a-z_]{1,30}", name)
            raise ConfigError(f"{name} is not something that this kind takes" if known else "it has an unknown key")


def places(text: str, make: Callable[[Fields], T]) -> list[T]:
    """What the text lists, in its order, each name once. Raises ConfigError, which names an entry by its number."""
    found: list[T] = []
    for position, entry in enumerate(_entries(text), 1):
        try:
            if not isinstance(entry, dict):
                raise ConfigError("it must be a mapping with name and kind")
            made = make(Fields(entry))
            if made.name in [other.name for other in found]:
                raise ConfigError("there is another one of the same name")
        except ConfigError as error:
            raise ConfigError(f"entry {position}: {error}") from None
        found.append(made)
    return found


def of_kind(given: Fields, kinds: Mapping[str, Callable[[str, Fields], T]]) -> T:
    """One place, made by what makes those of its kind. Raises ConfigError."""
    name, kind = given.text("name"), given.text("kind")
    if not NAME.fullmatch(name):
        raise ConfigError("name must be lower-case letters, digits, - and _, 64 at most")
    if kind not in kinds:
        raise ConfigError(f"kind must be one of {', '.join(kinds)}")
    made = kinds[kind](name, given)
    given.done()
    if len(made.place) > MAX_PLACE:
        raise ConfigError("its address is too long")
    return made


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
        raise ConfigError(f"it must be a list with at most {MAX_ENTRIES} entries")
    return entries


def _secret_of(path: str) -> str:
    """The stripped text of a file."""
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_SECRET).decode().strip()
    except OSError as error:
        raise ConfigError(f"the file of a secret cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError("the file of a secret is not text") from None
