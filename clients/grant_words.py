"""Grants, and what is asked for, in sentences."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from clients.models import AccessRequest, Client, Grant
from tools.models import Scope, Tool

SOON = timedelta(days=14)  # an end that somebody should decide about


def sentence(grant: Grant | AccessRequest) -> str:
    """`Claude may use memory:read for everyone`, `No client may use memory:write in background mode`."""
    return sentence_of(
        effect=grant.effect, client=grant.client, scopes=grant.scopes.all(), tool=grant.tool, uid=grant.subject_id,
        role=grant.role, tenant=grant.tenant, modes=grant.modes,
    )  # fmt: skip


def sentence_of(
    *,
    effect: str,
    client: Client | None,
    scopes: Iterable[Scope],
    tool: Tool | None,
    uid: str | None = None,
    role: str | None = None,
    tenant: str | None = None,
    modes: Sequence[str] = (),
) -> str:
    """The same of a grant's parts."""
    who, may = str(client or "Any client"), "may use"
    if effect == "deny":
        who, may = (who, "must not use") if client else ("No client", may)
    names = ", ".join(scope.name for scope in scopes)
    what = " in ".join(filter(None, [names, f"the tool {tool}" if tool else ""])) or "anything"
    whom = whom_of(uid, role, tenant, modes)
    return f"{who} {may} {what} {whom}" + (", each call marked for review" if effect == "flag" else "")


def whom_of(uid: str | None, role: str | None, tenant: str | None, modes: Sequence[str]) -> str:
    """`for everyone`, `for the role doctor in tenant acme`."""
    limits = [
        f"for user {uid}" if uid else "",
        f"for the role {role}" if role else "",
        f"in tenant {tenant}" if tenant else "",
        f"in {' or '.join(modes)} mode" if modes else "",
    ]
    return " ".join(filter(None, limits)) or "for everyone"


def date_of(at: datetime) -> str:
    """`1 March 2027`, in UTC."""
    utc = at.astimezone(timezone.get_default_timezone())
    return f"{utc.day} {utc:%B %Y}"


def until(at: datetime | None) -> str:
    """`until 1 March 2027`, `for good`."""
    return "for good" if at is None else f"until {date_of(at)}"


def length(asked: AccessRequest) -> str:
    """How long what is asked for would live."""
    return until(asked.expires_at) if asked.days is None else f"for {asked.days} days from its approval"


def state(grant: Grant, now: datetime | None = None) -> tuple[str, str]:
    """(kind of pill, words)."""
    now = now or timezone.now()
    if grant.revoked_at:
        return "plain", "revoked"
    if grant.expires_at and grant.expires_at <= now:
        return "plain", "expired"
    if grant.starts_at and grant.starts_at > now:
        return "flag", "not yet"
    return {"allow": ("allow", "active"), "flag": ("flag", "active, flags"), "deny": ("deny", "blocks")}[grant.effect]


def ends_soon(grant: Grant, now: datetime) -> bool:
    """Whether it is active and ends within two weeks."""
    return grant.revoked_at is None and grant.expires_at is not None and now < grant.expires_at <= now + SOON


def facts(grant: Grant | AccessRequest) -> list[tuple[str, Any]]:
    """What a grant says, part by part: names and values. What does not narrow it is left out."""
    effect = {"allow": "Allows", "flag": "Allows, and marks each call for review", "deny": "Blocks"}[grant.effect]
    narrower = [
        ("Tool", f"{grant.tool} of {grant.tool.backend}" if grant.tool else ""),
        ("User", grant.subject_id),
        ("Role", grant.role),
        ("Tenant", grant.tenant),
        ("Agent mode", ", ".join(grant.modes)),
    ]
    narrowed = [(name, value) for name, value in narrower if value]
    return [
        ("Client", grant.client or "any client"),
        ("Effect", effect),
        ("Scopes", ", ".join(scope.name for scope in grant.scopes.all()) or "every one"),
        *(narrowed or [("For", "everyone, in every tool, tenant and agent mode")]),
    ]
