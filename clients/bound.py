"""What a token is bound to: its claim `cnf` (RFC 7800), read (pure)."""

import re
from dataclasses import dataclass
from typing import Final

# A SHA-256 in base64url without padding; the last character has two unused bits, which are zero (RFC 4648 section 3.5).
_THUMBPRINT: Final = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
_KEY, _CERTIFICATE = "jkt", "x5t#S256"


@dataclass(frozen=True, slots=True)
class Bound:
    """What whoever sends the token must prove to have: the key with the thumbprint `key` (RFC 9449 section 6.1,
    `jkt`), the certificate with the thumbprint `certificate` (RFC 8705 section 3.1, `x5t#S256`), or both."""

    key: str | None = None
    certificate: str | None = None

    @property
    def ways(self) -> tuple[str, ...]:
        """To what, by the names of these two."""
        return tuple(name for name, value in (("key", self.key), ("certificate", self.certificate)) if value)

    @property
    def claim(self) -> dict[str, str]:
        """The `cnf` that says so."""
        return {name: value for name, value in ((_KEY, self.key), (_CERTIFICATE, self.certificate)) if value}


def bound_to(cnf: object) -> Bound:
    """What a `cnf` says. Raises ValueError, in plain words, for what is none of the two, or more than these: what
    cannot be checked must not be left out."""
    if not isinstance(cnf, dict) or not cnf or not cnf.keys() <= {_KEY, _CERTIFICATE}:
        raise ValueError("the token is bound to something (cnf) that cannot be checked here")
    if not all(isinstance(value, str) and _THUMBPRINT.fullmatch(value) for value in cnf.values()):
        raise ValueError("the token is bound (cnf) to what is no SHA-256 thumbprint")
    return Bound(cnf.get(_KEY), cnf.get(_CERTIFICATE))
