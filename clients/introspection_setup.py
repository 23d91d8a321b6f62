"""Setting an issuer to introspection: the secret, where it may be sent, and that a backend has one issuer to ask.

An opaque token names no issuer. With two that could be asked, the token of one would be shown to the other, so that a
backend that accepts both takes no opaque token at all (`tokens.identify`); here that is refused before it is so."""

from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from django.conf import settings
from django.db import connection
from django.db.models import Q, QuerySet
from django.utils import timezone

from audit.protection import KeyRing, protect
from clients.models import Introspection, Issuer
from tools.models import Backend

MAX_SECRET: Final = 1000  # characters


def set_secret(row: Introspection, secret: str) -> None:
    """Put a secret into a row whose issuer is stored; the caller saves it, in the same transaction. The ring is not the
    process's: a key that is rolled back must not be remembered."""
    holder = f"introspection:{row.issuer_id}"
    row.secret = protect(KeyRing().get(holder, create=True), secret.encode(), holder.encode())
    row.secret_set_at = timezone.now()


def wrong_secret(secret: str) -> str | None:
    """What is wrong with a secret, in words that quote nothing of it."""
    if not secret or len(secret) > MAX_SECRET or not secret.isprintable():
        return f"A secret has 1 to {MAX_SECRET} characters that can be printed."
    return None


def wrong_endpoint(url: str) -> str | None:
    """What is wrong with the address that is asked; whether it may be connected to is decided at each question."""
    try:
        parts = urlsplit(url)
        plain = parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        plain = False
    if not plain or not url.isascii() or not url.isprintable() or set(url) & set(' \\"<>#'):
        return "It must be a URL without a user name and without a fragment."
    if parts.scheme != "https" and not (settings.MUNIMENT_DEMO and parts.scheme == "http"):
        return "It must be an https URL."
    return None


def lock() -> None:
    """Until the transaction ends nobody else sets issuers to introspection, or makes a backend accept others. So of two
    changes that clash together, the second sees the first."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('muniment.introspection', 0))")


def asked_by(backend: Backend) -> QuerySet[Issuer]:
    """The enabled issuers set to introspection that a backend accepts."""
    asked = Issuer.objects.filter(enabled=True, introspection__isnull=False)
    return asked if backend.accepts_every_issuer else asked.filter(accepted_by__backend=backend)


def clash_of_issuer(issuer: Issuer) -> str | None:
    """Which backend could not tell whom to ask if this issuer, stored or not, were enabled and set to introspection."""
    accepts = Q(accepts_every_issuer=True)
    if issuer.pk:
        accepts |= Q(accepted_issuers__issuer=issuer)
    for backend in Backend.objects.filter(accepts, enabled=True).distinct():
        if other := asked_by(backend).exclude(pk=issuer.pk).first():
            return _words(backend, [other.issuer, issuer.issuer])
    return None


def clash_of_backend(backend: Backend, listed: Iterable[int]) -> str | None:
    """Why a backend, stored or not, could not tell whom to ask if these issuers (by id) were those that it lists."""
    asked = Issuer.objects.filter(enabled=True, introspection__isnull=False)
    if not backend.accepts_every_issuer:
        asked = asked.filter(pk__in=list(listed))
    names = list(asked.values_list("issuer", flat=True))
    return _words(backend, names) if len(names) > 1 else None


def any_clash() -> str | None:
    """Which enabled backend cannot tell whom to ask, as everything is now."""
    for backend in Backend.objects.filter(enabled=True):
        names = list(asked_by(backend).values_list("issuer", flat=True))
        if len(names) > 1:
            return _words(backend, names)
    return None


def _words(backend: Backend, names: Iterable[str]) -> str:
    return (
        f"The backend {backend.slug} would accept {' and '.join(sorted(names))}, which are all set to introspection. An"
        " opaque token names no issuer, so a backend can have one to ask."
    )
