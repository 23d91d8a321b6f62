"""GET /metrics: for Prometheus (text format 0.0.4 and OpenMetrics 1.0), and for nobody else.

With MUNIMENT_METRICS_TOKEN whoever sends it as a bearer token. Without it only a caller on the same machine, by a
loopback name and past every proxy: a proxy on that machine would else open it to the world.
"""

import hmac
import ipaddress
import logging
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

from governance import metrics
from governance.metrics_database import DatabaseCollector, gauge
from governance.metrics_slots import BROKEN

logger = logging.getLogger(__name__)

# What proxies add (RFC 7239 and its forerunners; RFC 9110 section 7.6.3).
PROXIED = ("HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PROTO", "HTTP_X_REAL_IP",
           "HTTP_FORWARDED", "HTTP_VIA")  # fmt: skip
OURS = "muniment_"


class ProcessCollector:
    """What the web processes counted, all of them together."""

    def collect(self) -> Iterator[Metric]:
        """The figures, and how many web processes there are. Files that cannot be read are told of, and left out."""
        slots = metrics.slots
        if slots is None:
            yield from (found for found in REGISTRY.collect() if found.name.startswith(OURS))
            yield gauge("web_processes", "Web processes that count together.", 1)
            return
        live = slots.live()
        found, broken = _merged(slots.files())
        yield from found
        yield gauge("web_processes", "Web processes that count together.", len(live))
        yield gauge("metrics_unreadable", "Files of counters that could not be read.", broken)


def _merged(files: list[str]) -> tuple[Iterable[Metric], int]:
    """The sums over all files; how many could not be read."""
    try:
        return MultiProcessCollector.merge(files), 0
    except (*BROKEN, OSError):
        whole = [file for file in files if _reads(file)]
        logger.warning("%d files of counters cannot be read", len(files) - len(whole))
        return MultiProcessCollector.merge(whole), len(files) - len(whole)


def _reads(file: str) -> bool:
    try:
        MultiProcessCollector.merge([file])
    except (*BROKEN, OSError):
        return False
    return True


def refusal(request: HttpRequest) -> HttpResponse | None:
    """Why this caller may not scrape, as an answer; None where it may."""
    if token := settings.MUNIMENT_METRICS_TOKEN:
        scheme, _, given = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode()):
            return None
        answer = HttpResponse("Send the metrics token as a bearer token.\n", status=401, content_type="text/plain")
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer
    if local(request):
        return None
    words = "Only from this machine, past every proxy; or set MUNIMENT_METRICS_TOKEN.\n"
    return HttpResponse(words, status=403, content_type="text/plain")


def local(request: HttpRequest) -> bool:
    """Whether a call came from this machine, and through no proxy that says of itself."""
    if any(name in request.META for name in PROXIED):
        return False
    try:
        host = urlsplit(f"//{request.META.get('HTTP_HOST', '')}").hostname or ""
    except ValueError:
        return False
    return _loopback(request.META.get("REMOTE_ADDR", "")) and (host == "localhost" or _loopback(host))


def _loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return bool((mapped or found).is_loopback)


@require_safe
def scrape(request: HttpRequest) -> HttpResponse:
    """All figures, in the format that is asked for. Without the database those of the processes still come."""
    if (answer := refusal(request)) is not None:
        return answer
    registry = CollectorRegistry()
    registry.register(ProcessCollector())
    registry.register(DatabaseCollector())
    encode, content_type = choose_encoder(request.META.get("HTTP_ACCEPT", ""))
    return HttpResponse(encode(registry), content_type=content_type, headers={"Cache-Control": "no-store"})
