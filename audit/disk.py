"""What files need to outlast a power cut."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """A new file's name is on disk only when its folder is. Raises OSError."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
