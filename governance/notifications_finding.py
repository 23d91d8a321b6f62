"""What is the case now that somebody should be told of. Each of these reads a few rows by an index."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from django.urls import NoReverseMatch, reverse

from audit import alerts, rollups
from audit.log_health import kind_of, pulse
from audit.models import Export, ExportRun
from audit.viewer import Viewer
from clients import grants, requests
from governance.home_figures import CALLS, search_url
from governance.notifications import Found

MOST = 500  # of one kind
DAYS_BEFORE = (7, 1)  # before a grant ends
LATELY = timedelta(days=1)
"""For so long after it failed a run of an export is spoken of."""
FLOOR, TIMES, DAYS = 50, 3, 7
"""Denials are unusual from 50 in an hour on, when they are more than three times the mean of the same hour of the seven
days before, and more than in any of them."""
LATE = timedelta(seconds=90)
OF_ALERTS = {
    "verification-failed": "verification", "batch-missing": "verification", "sealer-halted": "sealer",
    "sealing-late": "sealer", "retention-failed": "retention", "stream-stuck": "stream",
}  # fmt: skip
WHERE = {"retention": "admin:retention", "stream": "admin:streams"}


def everything(now: datetime) -> list[Found]:
    """All of it."""
    return [*waiting(now), *ending(now), *exports(now), *of_the_log(), *denials(now)]


def waiting(now: datetime) -> Iterator[Found]:
    """Requests that somebody else than who asked may decide."""
    for asked in requests.waiting(now).order_by("pk")[:MOST]:
        words = f"Request {asked.pk} waits for a decision until {_time(asked.lapses_at)}."
        path = _page("admin:clients_accessrequest_change", asked.pk)
        yield Found("request", f"request {asked.pk}", words, path, but=_number(asked.asked_by), tenant=asked.tenant)


def ending(now: datetime) -> Iterator[Found]:
    """Grants that end within a week, and once more those that end within a day."""
    soon = grants.active(now).filter(expires_at__lte=now + timedelta(days=DAYS_BEFORE[0]))
    for grant in soon.order_by("expires_at", "pk")[:MOST]:
        if grant.expires_at is None:
            continue
        left = grant.expires_at - now
        days = min(days for days in DAYS_BEFORE if left <= timedelta(days=days))
        kind = "block" if grant.effect == "deny" else "grant"
        words = f"The {kind} {grant.pk} ends at {_time(grant.expires_at)}, within {'a day' if days == 1 else 'a week'}."
        about = f"grant {grant.pk} {grant.expires_at.isoformat()} {days}"
        yield Found("grant", about, words, _page("admin:clients_grant_change", grant.pk), tenant=grant.tenant)


def exports(now: datetime) -> Iterator[Found]:
    """Runs that failed lately, and exports that were disabled since they failed too often."""
    failed = ExportRun.objects.filter(state="failed", ended_at__gt=now - LATELY).order_by("-ended_at")
    for run in failed[:MOST]:
        words = f"The run of export {run.export} that was due at {_time(run.slot)} failed."
        path = _page("admin:export_run", run.pk)
        yield Found("export", f"run {run.pk}", words, path, owner=_number(run.owner))
    for export in Export.objects.filter(enabled=False).exclude(words="").order_by("pk")[:MOST]:
        words = f"Export {export.pk} is disabled, since it failed five times in a row. Its schedule makes no files now."
        path = _page("admin:export", export.pk)
        yield Found("export", f"export {export.pk} disabled", words, path, owner=_number(export.owner))


def of_the_log() -> Iterator[Found]:
    """Alerts that are open; and a sealer of which nothing is heard, which raises none itself."""
    beat = pulse()
    for alert in alerts.open_alerts()[:MOST]:
        kind, about = OF_ALERTS.get(alert.kind, "log"), kind_of(alert)
        # Not its own words: they may quote what somebody configured.
        path = _page(WHERE.get(kind, "admin:log"))
        yield Found(kind, f"{alert.kind} {alert.about}", f"{about.title}. {about.remedy}", path)
    waits = beat.waiting_at is not None and beat.now - beat.waiting_at > LATE
    if beat.sealer != "halted" and (waits or (beat.sealer_at is not None and beat.now - beat.sealer_at > LATE)):
        last = f"It was last seen at {_time(beat.sealer_at)}." if beat.sealer_at else "It was never seen."
        words = f"No sign of the sealer. {last} {beat.waiting:,} records are not sealed."
        yield Found("sealer", "sealer silent", words, _page("admin:log"))


def denials(now: datetime) -> Iterator[Found]:
    """The hour before this one, and this one as far as it went, if unusually many calls were denied in it."""
    hour = timedelta(hours=1)
    this = rollups.floor(now, "1h")
    viewer = Viewer("system", "", records=True)
    since = this - hour - timedelta(days=DAYS)
    found = {one.at: one.denied for one in rollups.series(viewer, since, this + hour, "1h", **CALLS)}
    for start in (this - hour, this):
        before = [found.get(start - timedelta(days=day), 0) for day in range(1, DAYS + 1)]
        if told := unusual(found.get(start, 0), before):
            words = f"In the hour from {_time(start)} {told}"
            path = search_url(start, start + hour, decision="deny")
            yield Found("denials", f"hour {start.isoformat()}", words, path)


def unusual(number: int, before: Sequence[int]) -> str | None:
    """Whether so many denials in an hour are unusual beside those of the same hour of the days before, in words; None
    where they are not."""
    mean = sum(before) / len(before) if before else 0.0
    if number < FLOOR or number <= TIMES * mean or number <= max(before, default=0):
        return None
    return (
        f"{number:,} calls were denied. In the same hour of the {len(before)} days before it was {mean:,.0f} on"
        f" average, {max(before, default=0):,} at most."
    )


def _page(route: str, *args: int) -> str:
    """Where a page is; home for one that there is not, since that must keep nobody from being told."""
    try:
        return reverse(route, args=args)
    except NoReverseMatch:
        return reverse("admin:index")


def _number(actor: str) -> int | None:
    """The number of a member of staff; None for anybody else."""
    kind, _, number = actor.partition(":")
    return int(number) if kind == "staff" and number.isascii() and number.isdecimal() and len(number) < 19 else None


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"
