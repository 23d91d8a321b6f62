"""Foreign test vectors: read where they are, never copied (see their README)."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import live

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], list[dict[str, Any]]]:
    """Loads a file of vectors by its path below MUNIMENT_VECTORS (or ../shared/vectors); skips without it."""
    folder = Path(os.environ.get("MUNIMENT_VECTORS") or REPOSITORY.parent / "shared" / "vectors")

    def load(name: str) -> list[dict[str, Any]]:
        if not (folder / name).is_file():
            pytest.skip(f"no foreign vectors: {name} is not in MUNIMENT_VECTORS or ../shared/vectors")
        cases: list[dict[str, Any]] = json.loads((folder / name).read_text("utf-8"))
        return cases

    return load


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of the platform while it is away."""
    with live.closed_port() as port:
        yield port
