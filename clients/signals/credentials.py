"""With which token a transmitter pushes: made here, shown once, kept as a digest; and the one with which we poll, kept
under a key of its own."""

import re
import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from django.conf import settings
from django.utils import timezone

from audit.protection import KeyDestroyed, KeyRing, protect, reveal
from clients.models import SignalStream
from tools import credentials
from tools.credentials import Credential, Known, digest_of

KIND: Final = "signal_stream"
FORM: Final = re.compile(r"(ss)_([A-Za-z0-9_-]{43})", re.ASCII)


def fresh(stream: SignalStream) -> str:
    """A new push token for the stream, which is to be saved with `digest` and `token_set_at`; the token itself is
    nowhere else. The one before stops working."""
    secret = secrets.token_urlsafe(32)
    stream.digest, stream.token_set_at = digest_of(KIND, secret), timezone.now()
    return f"ss_{secret}"


def address(stream: SignalStream) -> str:
    """Where the transmitter pushes to: what staff give it beside the token."""
    return f"{settings.MUNIMENT_URL.rstrip('/')}/v1/signals/{stream.name}"


def read(header: str | None) -> Credential | None:
    """The push token in an `Authorization: Bearer` header (RFC 6750 section 2.1), or None. It names no stream: the
    address does."""
    return credentials.read(header, FORM, KIND)


def known(stream: SignalStream | None) -> Known | None:
    """The stream's push token, as it is kept; None where there is none."""
    return None if stream is None or stream.digest is None else Known(bytes(stream.digest))


def holder(stream: SignalStream) -> str:
    """Whose key protects the token with which we poll."""
    return f"signals:{stream.pk}"


def keep(stream: SignalStream, token: str) -> None:
    """Protect the token with which we poll; the stream is to be saved with `token` and `token_set_at`. The ring is not
    the process's: a key that is rolled back must not be remembered."""
    name = holder(stream)
    stream.token = protect(KeyRing().get(name, create=True), token.encode(), name.encode())
    stream.token_set_at = timezone.now()


def poll_token(stream: SignalStream) -> str | None:
    """The token with which we poll, in clear; None where there is none, or it can't be opened any more."""
    if stream.token is None:
        return None
    name = holder(stream)
    try:
        return reveal(KeyRing().get(name), bytes(stream.token), name.encode()).decode()
    except (KeyDestroyed, InvalidTag):
        return None
