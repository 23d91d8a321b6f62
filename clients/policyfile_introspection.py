"""How the issuers of a policy file are asked about opaque tokens, after the issuer itself was written.

A secret never stands in the file: the file names a variable of the environment in which it is applied. Its prefix keeps
whoever writes policy files from having any other secret of that environment sent to an address of theirs."""

import hmac
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag

from audit.protection import KeyDestroyed, KeyRing, reveal
from clients.introspection_setup import MAX_SECRET, any_clash, lock, set_secret, wrong_endpoint, wrong_secret
from clients.models import Introspection, Issuer
from clients.policyfile import IntrospectionEntry, PolicyFileError

Note = Callable[[str, str, object, str], None]
COLUMNS = ("endpoint", "method", "client_id", "signed", "cache_seconds")


def apply_introspection(path: str, row: Issuer, entry: IntrospectionEntry | None, note: Note) -> None:
    """Make the introspection of an issuer that of its entry; left out, it is asked nothing. A secret that the entry
    does not name stays, but for another address or client id. Raises PolicyFileError."""
    found = Introspection.objects.select_for_update().filter(issuer=row).first()
    if entry is None:
        if found is not None:
            found.delete()
            note("update", "issuer", row.issuer, "is no longer asked about opaque tokens")
        return
    if words := wrong_endpoint(entry.endpoint):
        raise PolicyFileError(f"{path}.endpoint", words)
    wanted = found or Introspection(issuer=row)
    values: dict[str, Any] = {name: getattr(entry, name) for name in COLUMNS}
    differing = [name for name, value in values.items() if found is None or getattr(found, name) != value]
    secret = _secret(f"{path}.secret_env", entry.secret_env)
    if secret is None and (wanted.secret is None or {"endpoint", "client_id"} & set(differing)):
        why = "would be sent elsewhere than it was set for" if wanted.secret else "is not set"
        raise PolicyFileError(f"{path}.secret_env", f"must name the variable that holds the secret, which {why}")
    if secret is not None and not _is_secret_of(wanted, secret):
        set_secret(wanted, secret)
        differing.append("secret")
    if not differing:
        return
    for name, value in values.items():
        setattr(wanted, name, value)
    wanted.save()
    note("update", "issuer", row.issuer, f"introspection: {', '.join(differing)}")


def check_one_to_ask() -> None:
    """Raise PolicyFileError where a backend, as everything is now, could not tell which issuer to ask."""
    lock()
    if words := any_clash():
        raise PolicyFileError("issuers", words)


def _secret(path: str, variable: str | None) -> str | None:
    """What the variable holds, or the file that `<variable>_FILE` names, without white space around it."""
    if variable is None:
        return None
    found = os.environ.get(variable)
    if not found and (name := os.environ.get(f"{variable}_FILE")):
        try:
            with Path(name).open("rb") as file:
                found = file.read(4 * MAX_SECRET + 1).decode()
        except OSError as error:
            raise PolicyFileError(path, f"{variable}_FILE cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise PolicyFileError(path, f"{variable}_FILE cannot be read: it is no text") from None
    if not found:
        raise PolicyFileError(path, f"{variable} (or {variable}_FILE) is not set where the file is applied")
    secret = found.strip()
    if words := wrong_secret(secret):
        raise PolicyFileError(path, f"{variable}: {words}")
    return secret


def _is_secret_of(row: Introspection, secret: str) -> bool:
    """Whether the stored secret is this one; one that does not open is none."""
    if row.secret is None:
        return False
    holder = f"introspection:{row.issuer_id}"
    try:
        stored = reveal(KeyRing().get(holder), bytes(row.secret), holder.encode())
    except (KeyDestroyed, InvalidTag):
        return False
    return hmac.compare_digest(stored, secret.encode())
