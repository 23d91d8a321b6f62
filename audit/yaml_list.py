"""Lists that the operator writes in YAML, read strictly: no aliases, no key twice, bounded; errors without a value."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 256 * 1024
MAX_ENTRIES = 100
MAX_SECRET = 64 * 1024  # bytes of a file with a secret


class ListError(ValueError):
    """The text is no such list, or a file that it names cannot be read. Never repeats any of it."""


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


def entries(text: str) -> list[dict[str, Any]]:
    """The mappings of the list, in their order; none for an empty text. Raises ListError."""
    if len(text) > MAX_BYTES:
        raise ListError(f"it is larger than {MAX_BYTES} bytes")
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ListError(f"it is not YAML{where}") from None
    # A tag on what is no such value makes PyYAML raise whatever comes: KeyError, AttributeError, ...
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        raise ListError("it is not YAML, or gives a key twice") from None
    found = [] if document is None else document
    if not isinstance(found, list) or len(found) > MAX_ENTRIES:
        raise ListError(f"it must be a list with at most {MAX_ENTRIES} entries")
    for position, entry in enumerate(found, 1):
        if not isinstance(entry, dict):
            raise ListError(f"entry {position}: it must be a mapping with name and kind")
    return found


def secret_of(path: str) -> str:
    """The stripped text of a file. Raises ListError."""
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_SECRET).decode().strip()
    except OSError as error:
        raise ListError(f"the file of a secret cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ListError("the file of a secret is not text") from None
