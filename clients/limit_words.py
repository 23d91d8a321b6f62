"""Limits in sentences: pure, from a stored limit or from what a decision is made from."""

from collections.abc import Iterable

from clients.models import Limit

WHO = {
    "subject": "Each user", "subject_client": "Each user, through each client,", "client": "Each client",
    "tool": "Each tool", "tenant": "Each tenant",
}  # fmt: skip
PERIODS = {"second": "a second", "minute": "a minute", "hour": "an hour", "day": "a day"}
SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
LENGTHS = {seconds: period for period, seconds in SECONDS.items()}


def sentence(limit: Limit) -> str:
    """`Each user, through ChatGPT, may call 60 times a minute, at most 10 at once`."""
    return sentence_of(
        limit.per, limit.count, limit.period, limit.burst, limit.client.name if limit.client else None,
        limit.tool.name if limit.tool else None, limit.tenant, limit.modes,
    )  # fmt: skip


def sentence_of(
    per: str, count: int, period: str, burst: int | None = None, client: str | None = None, tool: str | None = None,
    tenant: str | None = None, modes: Iterable[str] = (),
) -> str:  # fmt: skip
    """The same of a limit's parts; `client` and `tool` by their names. It names no person."""
    who = WHO[per]
    if client and per == "client":
        who = client
    elif client:
        who = f"{WHO[per].partition(',')[0]}, through {client},"
    if per == "tool":
        what = f"{f'The tool {tool}' if tool else who} may be called"
        what += f" through {client}" if client else ""
    else:
        what = f"{who} may call{f' {tool}' if tool else ''}"
    where = " and ".join(filter(None, [f"in tenant {tenant}" if tenant else "", _modes(sorted(modes))]))
    return f"{what}{f' {where}' if where else ''} {rate(count, period, burst)}"


def _modes(modes: list[str]) -> str:
    """Each mode that a limit names has a budget of its own."""
    if len(modes) < 2:
        return f"in {modes[0]} mode" if modes else ""
    return f"in each of the modes {', '.join(modes[:-1])} and {modes[-1]}"


def rate(count: int, period: str, burst: int | None = None) -> str:
    """`60 times a minute, at most 10 at once`."""
    times = "once" if count == 1 else f"{count:,} times"
    at_once = f", at most {burst:,} at once" if burst is not None and burst < count else ""
    return f"{times} {PERIODS[period]}{at_once}"
