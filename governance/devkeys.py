"""Keys for development, made once as files of mode 0600 under ``var/keys`` (0700).

In production keys come from the operator (``MUNIMENT_<NAME>`` or ``MUNIMENT_<NAME>_FILE``), not from here.

    python -m governance.devkeys DIRECTORY [PROCESS]

makes the keys and prints the ``NAME_FILE=path`` lines of one process, for scripts.
"""

import base64
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

# Who gets what (DESIGN.md section 6, Keys): each process its own and no other.
KEYS_OF = {
    "web": ("DJANGO_SECRET", "WRITER_KEY", "ASSERTION_KEY", "KEY_ENCRYPTION_KEY", "PEPPER"),
    "worker": ("EXPORT_KEY",),
    "beat": (),
    "seal": ("LOG_KEY",),
    "manage": ("DJANGO_SECRET", "KEY_ENCRYPTION_KEY", "PEPPER"),
}
# What the worker gets besides where exports may hold personal data.
OPENS_PERSONAL = ("KEY_ENCRYPTION_KEY", "PEPPER")
NAMES = tuple(sorted({name for names in KEYS_OF.values() for name in names}))
SERVER_PASSWORDS = ("postgres_superuser", "postgres_owner", "postgres_muniment", "redis")


def make(directory: Path) -> dict[str, Path]:
    """Make the keys that are missing: NAME -> file holding 32 random bytes in base64 (RFC 4648 section 4).

    A key that exists is never replaced: what it signed or encrypted would be lost.
    """
    private_directory(directory)
    paths = {name: directory / name.lower() for name in NAMES}
    for path in paths.values():
        read_or_make(path, lambda: base64.b64encode(secrets.token_bytes(32)).decode())
    return paths


def variables(directory: Path, process: str, *, personal: bool = False) -> dict[str, str]:
    """The environment that names exactly the keys of ``process``; ``personal``: exports may hold personal data.
    KeyError for an unknown process."""
    names = (*KEYS_OF[process], *(OPENS_PERSONAL if personal and process == "worker" else ()))
    return {f"MUNIMENT_{name}_FILE": str(directory / name.lower()) for name in names}


def password(directory: Path, name: str) -> str:
    """The random password of one embedded server's role (48 hex digits, so that it needs no URL quoting)."""
    private_directory(directory)
    return read_or_make(directory / name, lambda: secrets.token_hex(24))


def private_directory(directory: Path) -> None:
    """Make ``directory`` with mode 0700. PermissionError where an existing one is open to others."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.stat()
    if found.st_mode & 0o077 or found.st_uid != os.geteuid():
        raise PermissionError(f"{directory} must belong to you alone (chmod 700)")


def read_or_make(path: Path, new: Callable[[], str]) -> str:
    """The text of ``path``, made whole or not at all: two starters at once agree on one value."""
    if not path.exists():
        draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(new())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # fails where another was faster, and never replaces
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    if path.stat().st_mode & 0o077:
        raise PermissionError(f"{path} must not be open to others (chmod 600)")
    return path.read_text().strip()


def main(arguments: list[str]) -> int:
    """Print the environment of one process (default: manage), making the keys first."""
    if not 1 <= len(arguments) <= 2:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    directory = Path(arguments[0]).absolute()
    make(directory)
    for name, value in variables(directory, arguments[1] if len(arguments) == 2 else "manage").items():
        sys.stdout.write(f"{name}={value}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
