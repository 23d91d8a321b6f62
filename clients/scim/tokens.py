"""Tokens of SCIM connections: `scim_<connection>_<secret>`. Only a digest under the pepper is kept; a token is shown
once, replaced as a whole, and good for the connection that it was made for alone."""

import re
import secrets

from django.conf import settings
from django.utils import timezone

from clients.models import ScimConnection
from tools import credentials
from tools.credentials import Credential, Known, Seen

FORM, KIND = re.compile(r"scim_([0-9]{1,18})_([A-Za-z0-9_-]{43})", re.ASCII), "scim_token"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
MAX_SEEN = 1000


class NotAuthenticated(Exception):
    """The token is missing, unknown, replaced, or another connection's; or there is no such connection."""


class SwitchedOff(Exception):
    """The token is good, and staff switched the connection off."""


_seen = Seen(MAX_SEEN)  # by connection


def renew(connection: ScimConnection) -> str:
    """Give a connection another token, from now on the only one, and return it whole: this is the only time that it
    exists in clear. A change of policy, to be made in an attributed transaction."""
    secret = secrets.token_urlsafe(32)
    connection.digest, connection.token_set_at = credentials.digest_of(KIND, secret), timezone.now()
    connection.save(update_fields=["digest", "token_set_at"])
    return f"scim_{connection.pk}_{secret}"


def address(connection: ScimConnection) -> str:
    """Where a provider calls: what staff give it beside the token."""
    return f"{settings.MUNIMENT_URL.rstrip('/')}/scim/v2/{connection.name}"


def read(header: str | None) -> Credential | None:
    """The token in an `Authorization: Bearer` header (RFC 6750 section 2.1), or None."""
    return credentials.read(header, FORM, KIND)


def connection(name: str, credential: Credential | None, look: bool = True) -> ScimConnection:
    """The connection of this name, called with its own token. With `look` off only a token that was good in this
    process before is looked up. Raises NotAuthenticated, and SwitchedOff to who has the token. One comparison is made
    in any case."""
    row = None
    if look or credentials.check(credential, _seen.get(name), 0):
        found = ScimConnection.objects.select_related("issuer").filter(name=name) if NAME.fullmatch(name) else None
        row = found.first() if found is not None else None
    kept = Known(bytes(row.digest)) if row is not None and row.digest is not None else None
    good = credentials.check(credential, kept, 0)
    if not good or row is None or kept is None or credential is None or credential.key_id != str(row.pk):
        raise NotAuthenticated
    if not row.enabled:
        raise SwitchedOff
    _seen.add(name, kept.digest)
    credentials.touch(str(row.pk), ScimConnection, "pk")
    return row


def forget() -> None:
    """Drop what this process remembers."""
    _seen.clear()
